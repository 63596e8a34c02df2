//! `cargo xtask bench steps`: what a RUN step costs beyond the kernel's own price.
//!
//! The kernel's price is that of `unshare` with the namespaces a step has and `true` in them, less what starting
//! `unshare` itself costs. It has no seccomp filter and no overlay, so that it is rather too low than too high. A
//! step's price is the time of a build with many steps, their layers committed, less that of a build with one, by
//! the number of further steps.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;

use crate::command::{command, output};
use crate::{fixtures, program, workspace};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The program to measure [default: built for release]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Steps in a row
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    steps: u32,
    /// How often each thing is measured; the median counts
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    rounds: usize,
    /// Measure as this user too, rootless (as root only)
    #[arg(long, value_name = "USER")]
    user: Option<String>,
}

/// What a step may cost beyond the kernel's price.
const GOAL: Duration = Duration::from_millis(5);
/// The same for an ordinary user.
const ROOTLESS_GOAL: Duration = Duration::from_millis(10);

/// The namespaces of a step.
const NAMESPACES: [&str; 7] = [
    "--pid", "--fork", "--ipc", "--uts", "--net", "--mount", "--cgroup",
];

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    fixtures::make(&["busybox:latest"])?;
    let program = match &arguments.program {
        Some(program) => std::path::absolute(program)?,
        None => program::release()?,
    };
    if arguments.steps == 0 || arguments.rounds == 0 {
        bail!("nothing is to be measured");
    }
    let mut bench = Bench {
        program,
        steps: arguments.steps,
        rounds: arguments.rounds,
        user: None,
        folder: tempfile::tempdir().context("failed to make a folder")?,
        missed: false,
    };
    bench.prepare()?;
    let floor = bench.floor()?;
    println!("{:34} {:>7}  {:>7}   {:>7}", "", "a step", "beyond", "goal");
    println!("{:34} {}", "the kernel's own price", milliseconds(floor));
    let alone = ["--network", "none"];
    bench.measure("a step, loopback only", &alone, floor, Some(GOAL))?;
    // The kernel's price has no links to a bridge or to a program in it: told, not judged.
    bench.measure("a step, its own network", &[], floor, None)?;
    if let Some(user) = &arguments.user {
        bench.user = Some(user.clone());
        bench.give_away(user)?;
        bench.measure(
            "rootless, loopback only",
            &alone,
            floor,
            Some(ROOTLESS_GOAL),
        )?;
        bench.measure("rootless, its own network", &[], floor, None)?;
    }
    match bench.missed {
        true => bail!("a goal was missed"),
        false => Ok(()),
    }
}

struct Bench {
    program: PathBuf,
    steps: u32,
    rounds: usize,
    user: Option<String>,
    folder: tempfile::TempDir,
    missed: bool,
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes both Dockerfiles.
    fn prepare(&self) -> anyhow::Result<()> {
        for (name, steps) in [("one", 1), ("many", self.steps + 1)] {
            let folder = self.path(name);
            std::fs::create_dir(&folder)?;
            let lines = (0..steps).map(|number| format!("RUN [\"/bin/true\", \"{number}\"]\n"));
            let text: String = std::iter::once("FROM busybox\n".to_owned())
                .chain(lines)
                .collect();
            std::fs::write(folder.join("Dockerfile"), text)?;
        }
        Ok(())
    }

    /// Lets a user read everything and write a state directory of its own.
    fn give_away(&mut self, user: &str) -> anyhow::Result<()> {
        let copy = self.path("lapstrake");
        std::fs::copy(&self.program, &copy).context("failed to copy the program")?;
        self.program = copy;
        let images = self.path("fixtures");
        output(command("cp", ["-rL"]).args([&workspace::fixtures(), &images]))?;
        let mirrors = format!(
            "[registry.\"docker.io\"]\nmirrors = [\"oci-layout:{}\"]\n",
            images.display()
        );
        std::fs::write(self.path("config.toml"), mirrors)?;
        let state = self.path("rootless");
        std::fs::create_dir(&state)?;
        let folder = self.folder.path();
        output(command("chmod", ["-R", "a+rX"]).arg(folder))?;
        output(command("chown", [user]).arg(&state))?;
        Ok(())
    }

    /// Returns the price of namespaces and an exec.
    fn floor(&self) -> anyhow::Result<Duration> {
        let time = |words: &[&str]| {
            self.median(|| {
                let mut whole = Duration::ZERO;
                // As many as the steps of a build, so that what comes and goes on the machine meets both.
                for _ in 0..self.steps {
                    let started = Instant::now();
                    output(&mut command(words[0], &words[1..]))?;
                    whole += started.elapsed();
                }
                Ok(whole / self.steps)
            })
        };
        let mut words = vec!["unshare"];
        words.extend(NAMESPACES);
        words.push("true");
        let with = time(&words)?;
        let without = time(&["unshare", "true"])?;
        let bare = time(&["true"])?;
        Ok((with + bare).saturating_sub(without))
    }

    fn measure(
        &mut self,
        name: &str,
        options: &[&str],
        floor: Duration,
        goal: Option<Duration>,
    ) -> anyhow::Result<()> {
        // The base image is unpacked once, before anything is measured.
        self.build("one", options)?;
        let each = self.median(|| {
            let one = self.build("one", options)?;
            let many = self.build("many", options)?;
            Ok(many.saturating_sub(one) / self.steps)
        })?;
        let beyond = each.saturating_sub(floor);
        let missed = goal.is_some_and(|goal| beyond > goal);
        self.missed |= missed;
        println!(
            "{name:34} {}  {}   {}{}",
            milliseconds(each),
            milliseconds(beyond),
            goal.map(milliseconds).unwrap_or_default(),
            if missed { "  missed" } else { "" }
        );
        Ok(())
    }

    fn build(&self, context: &str, options: &[&str]) -> anyhow::Result<Duration> {
        let words = ["build", "--no-cache", "-q", "-o", "type=cacheonly"];
        let mut command = self.command();
        command.args(words).args(options).arg(self.path(context));
        let started = Instant::now();
        output(&mut command)?;
        Ok(started.elapsed())
    }

    fn command(&self) -> Command {
        let (config, state) = match self.user {
            Some(_) => (self.path("config.toml"), self.path("rootless")),
            None => (
                workspace::fixtures().join("config.toml"),
                self.path("state"),
            ),
        };
        let mut command = match &self.user {
            Some(user) => {
                let words = ["--reuid", user, "--regid", user, "--init-groups"];
                let mut command = command("setpriv", words);
                command.arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command
            .env("LAPSTRAKE_CONFIG", config)
            .env("LAPSTRAKE_ROOT", state)
            .env("HOME", self.folder.path())
            .current_dir(Path::new("/"))
            .stdin(Stdio::null());
        command
    }

    fn median(
        &self,
        mut measure: impl FnMut() -> anyhow::Result<Duration>,
    ) -> anyhow::Result<Duration> {
        let mut times = (0..self.rounds)
            .map(|_| measure())
            .collect::<anyhow::Result<Vec<_>>>()?;
        times.sort_unstable();
        Ok(times[times.len() / 2])
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:6.2} ms", time.as_secs_f64() * 1000.0)
}
