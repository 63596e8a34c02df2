//! The behaviour cases: whole builds, run and judged by the corpus' own script.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::Tally;
use crate::{program, tools};

/// Some contexts name files under this port, so it is the one to serve on.
const PORT: u16 = 5055;
const BUSYBOX: &str = "/bin/busybox";

/// The options of this kind.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Program to build with [default: ours, built for release]
    #[arg(long, value_name = "FILE")]
    builder: Option<PathBuf>,
    /// Leave out the builds with this tag
    #[arg(long, value_name = "TAG")]
    skip_tag: Vec<String>,
    /// Run this many builds at once
    #[arg(long, value_name = "N", default_value_t = 2)]
    jobs: usize,
    /// Give up a build after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u32,
    /// Judge the words of errors too
    #[arg(long)]
    check_errors: bool,
    /// Keep the folders of the builds here
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// Runs all cases, each in the same fresh state directory.
pub(crate) fn run(corpus: &Path, options: &Options, tally: &mut Tally) -> anyhow::Result<()> {
    if !Path::new(BUSYBOX).exists() {
        bail!(
            "the base images are made of {BUSYBOX}: install it with `apt-get install busybox-static`"
        );
    }
    if !tools::is_root() {
        bail!("the contexts have files of several owners: the behaviour cases run as root only");
    }
    let builder = match &options.builder {
        Some(builder) => fs::canonicalize(builder)
            .with_context(|| format!("failed to find {}", builder.display()))?,
        None => program::release()?,
    };
    let state = tempfile::tempdir().context("failed to make a state directory")?;
    let mut skipped = options.skip_tag.clone();
    let port = match free_port(PORT) {
        Some(port) => port,
        None => {
            println!("behaviour: port {PORT} is taken, the builds with the tag http are skipped");
            skipped.push("http".to_owned());
            free_port(0).context("no port is free on the loopback interface")?
        }
    };
    let config = state.path().join("config.toml");
    let mirror = format!("[registry.\"docker.io\"]\nmirrors = [\"http://127.0.0.1:{port}\"]\n");
    fs::write(&config, mirror).with_context(|| format!("failed to write {}", config.display()))?;

    let mut command = Command::new("python3");
    command
        .arg(corpus.join("run_behaviour.py"))
        .args(["--corpus".as_ref(), corpus.as_os_str()])
        .args(["--builder".as_ref(), builder.as_os_str()])
        .arg(format!(
            "--template={}",
            template(&state.path().join("root"), &config)
        ))
        .arg(format!("--port={port}"))
        .arg(format!("--jobs={}", options.jobs))
        .arg(format!("--timeout={}", options.timeout))
        .args(skipped.iter().map(|tag| format!("--skip-tag={tag}")))
        .args(tally.filter().map(|filter| format!("--only=*{filter}*")))
        .args(options.check_errors.then_some("--check-errors"))
        .args(
            options
                .keep
                .iter()
                .map(|folder| format!("--keep={}", folder.display())),
        );
    judge(command, tally)
}

/// Returns the call of our builder, in the script's notation.
fn template(root: &Path, config: &Path) -> String {
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    format!(
        "{{builder}} --root {} --config {} build -f {{dockerfile}} --output type=oci,dest={{out}} {{flags}} {{context}}",
        quoted(root),
        quoted(config)
    )
}

/// Cases whose recorded answer is not followed, with the reason; `docs/conformance.md` says more.
const DEVIATIONS: [(&str, &str); 1] = [(
    "bk-testMountTmpfsSize-1",
    "file systems of a step are mounted nodev, which the recorded options lack",
)];

/// Runs the script, passing its lines on, and counts them.
fn judge(mut command: Command, tally: &mut Tally) -> anyhow::Result<()> {
    let mut script = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("failed to start python3")?;
    let output = script.stdout.take().context("the script has no output")?;
    for line in BufReader::new(output).lines() {
        let line = line.context("failed to read the output of the script")?;
        match line.split_once(' ') {
            Some(("PASS", name)) => tally.count(name, None),
            Some(("FAIL", rest)) => {
                let (name, why) = rest.split_once(": ").unwrap_or((rest, "failed"));
                match DEVIATIONS.iter().find(|(known, _)| *known == name) {
                    Some((_, reason)) => println!("DEVIATES {name}: {reason}"),
                    None => tally.count(name, Some(why)),
                }
            }
            // The sum, which is ours to give, and what stands below a failure.
            _ if line.ends_with(" failed") => {}
            _ => println!("{line}"),
        }
    }
    let status = script.wait().context("failed to wait for the script")?;
    // It ends with 1 when cases failed, which have been counted.
    if !matches!(status.code(), Some(0 | 1)) || tally.is_empty() {
        bail!("run_behaviour.py judged no case or broke ({status})");
    }
    Ok(())
}

/// Returns the port if nothing listens on it; for 0, some port.
fn free_port(port: u16) -> Option<u16> {
    let listener = TcpListener::bind(("127.0.0.1", port)).ok()?;
    Some(listener.local_addr().ok()?.port())
}
