//! `cargo xtask demo`: the two-program Go example in one stage and in many, side by side.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};

use crate::command::{output, run as run_command};
use crate::{fixtures, program, timeline, workspace};

/// Builds the program, makes what it needs, builds the example both ways and shows the difference.
pub(crate) fn run() -> anyhow::Result<()> {
    println!("building lapstrake for release");
    let lapstrake = program::release()?;
    println!("making the base image");
    fixtures::make(&["golang:1.23-alpine"])?;

    let state = workspace::root().join("target/demo");
    let demo = Demo {
        lapstrake: &lapstrake,
        state: &state,
    };
    build(&demo, "buildme:single", "Dockerfile")?;
    build(&demo, "buildme:multi", "Dockerfile.parallel")?;
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
    println!("  built in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}
