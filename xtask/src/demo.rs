//! `cargo xtask demo`: the two-program Go example in one stage and in many, side by side.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};

use crate::command::{output, run as run_command};
use crate::{fixtures, program, timeline, workspace};

/// The build of which a picture is made.
const PICTURED: &str = "Dockerfile.parallel";

/// How the demo is run.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Also draw when the steps of the parallel build ran, as an SVG
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    /// Use this program instead of one built for release
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

/// Builds the program, makes what it needs, builds the example both ways and shows the difference.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let lapstrake = match &arguments.program {
        Some(program) => program.clone(),
        None => {
            println!("building lapstrake for release");
            program::release()?
        }
    };
    println!("making the base image");
    fixtures::make(&["golang:1.23-alpine"])?;

    let state = workspace::root().join("target/demo");
    let demo = Demo {
        lapstrake: &lapstrake,
        state: &state,
        picture: arguments.picture.as_deref(),
    };
    build(&demo, "buildme:single", "Dockerfile")?;
    build(&demo, "buildme:multi", PICTURED)?;
    println!("\n$ lapstrake images buildme");
    run_command(demo.command().args(["images", "buildme"]))?;
    println!(
        "\nTo go on:\n  export PATH={}:$PATH LAPSTRAKE_CONFIG={} LAPSTRAKE_ROOT={}\n  cd examples/buildme",
        lapstrake.parent().unwrap_or(Path::new(".")).display(),
        workspace::fixtures().join("config.toml").display(),
        state.display(),
    );
    Ok(())
}

struct Demo<'a> {
    lapstrake: &'a Path,
    state: &'a Path,
    picture: Option<&'a Path>,
}

impl Demo<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new(self.lapstrake);
        command
            .env(
                "LAPSTRAKE_CONFIG",
                workspace::fixtures().join("config.toml"),
            )
            .env("LAPSTRAKE_ROOT", self.state)
            .current_dir(workspace::root().join("examples/buildme"))
            .stdin(Stdio::null());
        command
    }
}

fn build(demo: &Demo<'_>, tag: &str, dockerfile: &str) -> anyhow::Result<()> {
    println!("\n$ lapstrake build --no-cache -t {tag} -f {dockerfile} .");
    let started = Instant::now();
    let mut command = demo.command();
    command.args([
        "build",
        "--no-cache",
        "--progress=rawjson",
        "-t",
        tag,
        "-f",
        dockerfile,
        ".",
    ]);
    let ended = command
        .output()
        .with_context(|| format!("failed to start {}", demo.lapstrake.display()))?;
    if !ended.status.success() {
        // Once more as a person would see it: the words of the failure.
        let mut again = demo.command();
        output(again.args([
            "build",
            "--progress=plain",
            "-t",
            tag,
            "-f",
            dockerfile,
            ".",
        ]))?;
        bail!("the build of {tag} failed once, but not a second time");
    }
    let steps = timeline::steps(&String::from_utf8_lossy(&ended.stderr));
    print!("{}", timeline::draw(&steps));
    if let Some(path) = demo.picture.filter(|_| dockerfile == PICTURED) {
        let title = format!("lapstrake build --no-cache -t {tag} -f {dockerfile} .");
        std::fs::write(path, timeline::picture(&title, &steps))
            .with_context(|| format!("failed to write {}", path.display()))?;
    }
    println!("  built in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}
