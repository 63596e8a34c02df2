//! `cargo xtask bench growth`: how time and memory grow with the size of what is built, and with what the store holds.
//!
//! Each curve is measured at several sizes and fitted by a power of the size over its larger half: an exponent of one is
//! linear growth. What is worse than linear, or takes more memory than it may, is told and fails the command.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::Args;

use super::curves::{CURVES, Curve, Phase, Run};
use super::growth_report::{Figures, Grown, Point};
use crate::command::command;
use crate::{fixtures, program, workspace};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Curves, by name [default: all]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    only: Vec<String>,
    /// Leave out sizes above this share of the largest
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    scale: f64,
    /// Keep what an earlier run measured with the same program, and measure the rest
    #[arg(long)]
    resume: bool,
    /// The program to measure [default: built for release]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Where contexts, states and figures go
    #[arg(long, value_name = "DIR", default_value = "/var/tmp/lapstrake-growth")]
    work: PathBuf,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write docs/growth.md and its chart anew
    #[arg(long)]
    docs: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(unknown) = arguments
        .only
        .iter()
        .find(|name| CURVES.iter().all(|curve| curve.name != **name))
    {
        let known: Vec<&str> = CURVES.iter().map(|curve| curve.name).collect();
        bail!(
            "no curve is named {unknown}; there are {}",
            known.join(", ")
        );
    }
    fixtures::make(&["busybox:latest"])?;
    let program = match &arguments.program {
        Some(program) => std::path::absolute(program)?,
        None => program::release()?,
    };
    fs::create_dir_all(&arguments.work)?;
    let kept = arguments.work.join("figures.json");
    let named = about_program(&program)?;
    let order: Vec<String> = CURVES
        .iter()
        .flat_map(|curve| curve.phases.iter().map(|phase| name_of(curve, phase)))
        .collect();
    let mut figures = Figures::of_earlier(&kept, &named);
    for curve in CURVES {
        let is_wanted =
            arguments.only.is_empty() || arguments.only.iter().any(|name| name == curve.name);
        let is_there = curve.phases.iter().all(|phase| {
            let name = name_of(curve, phase);
            figures.curves.iter().any(|grown| grown.name == name)
        });
        if !is_wanted || (arguments.resume && is_there) {
            continue;
        }
        for grown in measure(curve, arguments, &program)? {
            figures.put(grown, &order);
        }
        // At once, so that an interrupted run can go on here.
        figures.write(&kept)?;
    }
    println!("\n{}", figures.table());
    if let Some(file) = &arguments.json {
        figures.write(file)?;
    }
    if arguments.docs {
        let docs = workspace::root().join("docs");
        fs::write(docs.join("growth.md"), figures.page())?;
        fs::write(docs.join("growth.svg"), figures.chart())?;
    }
    let faulty = figures.curves.iter().filter(|it| !it.faults().is_empty());
    match faulty.count() {
        0 => Ok(()),
        count => bail!("{count} curves grow too fast"),
    }
}

fn name_of(curve: &Curve, phase: &Phase) -> String {
    format!("{} {}", curve.name, phase.name)
        .trim_end()
        .to_owned()
}

/// Tells one program from another.
fn about_program(program: &Path) -> anyhow::Result<String> {
    let about = fs::metadata(program)
        .with_context(|| format!("failed to look at {}", program.display()))?;
    let modified = about.modified()?.duration_since(std::time::UNIX_EPOCH)?;
    Ok(format!("{} bytes of {}", about.len(), modified.as_secs()))
}

/// Measures all that is to be measured of one thing that grows.
fn measure(curve: &Curve, arguments: &Arguments, program: &Path) -> anyhow::Result<Vec<Grown>> {
    let mut all: Vec<Grown> = curve
        .phases
        .iter()
        .map(|phase| Grown {
            name: name_of(curve, phase),
            about: phase.about.to_owned(),
            unit: curve.unit.to_owned(),
            most_megabytes: phase.megabytes,
            points: Vec::new(),
        })
        .collect();
    let bench = Bench::new(program, &arguments.work)?;
    if arguments.scale > 0.5 {
        bench.needs_gigabytes(curve.gigabytes)?;
    }
    let largest = curve.sizes.last().copied().unwrap_or(1) as f64;
    let mut before = 0;
    for &size in curve.sizes {
        if size as f64 > largest * arguments.scale {
            break;
        }
        let failed = || format!("{} at {size} failed", curve.name);
        (curve.grow)(&bench, before, size).with_context(failed)?;
        before = size;
        for (grown, phase) in all.iter_mut().zip(curve.phases) {
            let point = bench.measure(phase, size).with_context(failed)?;
            println!(
                "{:16} {size:>9} {:10} {:>9.3} s {:>9.3} s of CPU {:>7.1} MB",
                grown.name, curve.unit, point.seconds, point.cpu, point.megabytes
            );
            grown.points.push(point);
        }
    }
    Ok(all)
}

/// The program with a state and a context of its own; both go when this is dropped, or with the next of its kind.
#[derive(Debug)]
pub(super) struct Bench {
    program: PathBuf,
    folder: PathBuf,
    nonces: Cell<u64>,
}

/// What is quicker than this is measured again, as the machine disturbs it most.
const SHORT: f64 = 1.0;
const MOST_REPEATS: usize = 5;

impl Bench {
    fn new(program: &Path, work: &Path) -> anyhow::Result<Bench> {
        let folder = work.join("now");
        if folder.exists() {
            fs::remove_dir_all(&folder).context("failed to remove what an earlier run left")?;
        }
        fs::create_dir_all(folder.join("ctx"))?;
        Ok(Bench {
            program: program.to_owned(),
            folder,
            nonces: Cell::new(0),
        })
    }

    fn needs_gigabytes(&self, wanted: u64) -> anyhow::Result<()> {
        let about = rustix::fs::statvfs(&self.folder)?;
        let free = about.f_bavail * about.f_frsize / 1_000_000_000;
        ensure!(
            free > wanted,
            "{} has {free} GB free, this curve needs {wanted}: give another place with --work, or less with --scale",
            self.folder.display()
        );
        Ok(())
    }

    pub(super) fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    pub(super) fn context(&self) -> PathBuf {
        self.folder.join("ctx")
    }

    /// Returns another number each time.
    pub(super) fn nonce(&self) -> u64 {
        self.nonces.set(self.nonces.get() + 1);
        self.nonces.get()
    }

    pub(super) fn dockerfile(&self, text: &str) -> anyhow::Result<()> {
        fs::write(self.folder.join("Dockerfile"), text).context("failed to write")
    }

    /// Empties the store.
    pub(super) fn forget(&self) -> anyhow::Result<()> {
        match fs::remove_dir_all(self.root()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("failed to remove a store")
            }
            _ => Ok(()),
        }
    }

    /// Builds into the store, so that the next build finds all it needs.
    pub(super) fn build_once(&self) -> anyhow::Result<()> {
        let child = self.start(&Run::Build(&["-t", "grown"]))?;
        finish(child).map(drop)
    }

    fn start(&self, run: &Run) -> anyhow::Result<Child> {
        // `time` is the program, not the shell's word: the shell's tells no memory.
        let mut command: Command = command("/usr/bin/time", ["-f", "%M %U %S"]);
        command
            .arg(&self.program)
            .arg("--root")
            .arg(self.root())
            .current_dir(&self.folder)
            .env(
                "LAPSTRAKE_CONFIG",
                workspace::fixtures().join("config.toml"),
            )
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        match run {
            Run::Build(words) | Run::BuildsAtOnce(words) => command
                .args(["build", "-q", "-f", "Dockerfile"])
                .args(*words)
                .arg("ctx"),
            Run::Command(words) => command.args(*words),
        };
        command
            .spawn()
            .context("measuring memory needs the program `time` (Debian: apt-get install time)")
    }

    /// Measures one phase; of what is short, several times, and the quickest counts.
    fn measure(&self, phase: &Phase, size: u64) -> anyhow::Result<Point> {
        let mut best: Option<Point> = None;
        for _ in 0..MOST_REPEATS {
            (phase.before)(self)?;
            let found = self.measure_once(phase, size)?;
            let is_better = best.is_none_or(|best| found.seconds < best.seconds);
            let megabytes = best.map_or(0.0, |best| best.megabytes);
            if is_better {
                best = Some(found);
            }
            if let Some(best) = &mut best {
                best.megabytes = megabytes.max(found.megabytes);
            }
            if found.seconds > SHORT {
                break;
            }
        }
        best.context("nothing was measured")
    }

    /// Measures until the last of what was started has ended; the memory is that of the largest.
    fn measure_once(&self, phase: &Phase, size: u64) -> anyhow::Result<Point> {
        let count = match phase.run {
            Run::BuildsAtOnce(_) => size,
            Run::Build(_) | Run::Command(_) => 1,
        };
        let began = Instant::now();
        let children: Vec<Child> = (0..count)
            .map(|_| self.start(&phase.run))
            .collect::<Result<_, _>>()?;
        let mut point = Point {
            size,
            seconds: 0.0,
            cpu: 0.0,
            megabytes: 0.0,
        };
        for child in children {
            let (megabytes, cpu) = finish(child)?;
            point.megabytes = point.megabytes.max(megabytes);
            point.cpu += cpu;
        }
        point.seconds = began.elapsed().as_secs_f64();
        Ok(point)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("failed to remove {}: {error}", self.folder.display());
        }
    }
}

/// Waits for a process that was started under `time`; returns its megabytes and seconds of CPU.
fn finish(child: Child) -> anyhow::Result<(f64, f64)> {
    let output = child.wait_with_output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("the program failed:\n{told}");
    }
    let line = told.trim().lines().next_back().unwrap_or_default();
    let numbers: Vec<f64> = line.split(' ').filter_map(|it| it.parse().ok()).collect();
    let [kilobytes, user, system] = numbers[..] else {
        bail!("`time` told no memory: {line}");
    };
    Ok((kilobytes / 1000.0, user + system))
}
