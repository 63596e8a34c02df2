//! `cargo xtask bench compare`: the same workloads on every builder there is, in turn.
//!
//! Every workload runs on every builder one after the other (A B C, A B C, …), so that a drift of the machine's
//! speed hits all of them alike; what counts is the ratio inside one call.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::bail;
use clap::Args;

use super::peers::{self, Peers};
use super::report::{self, Cell, Report, Row};
use super::workloads::{Phase, Place, WORKLOADS, Workload};
use crate::command::output;
use crate::{fixtures, program, workspace};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Workloads, by name [default: all]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    only: Vec<String>,
    /// How often each is run; the median counts
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    runs: usize,
    /// Size of the workloads, 1 as published
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    scale: f64,
    /// The program to measure [default: built for release]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Where contexts and the builders' states go
    #[arg(long, value_name = "DIR", default_value = "/var/tmp/lapstrake-bench")]
    work: PathBuf,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a chart
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write docs/benchmarks.md and its chart anew
    #[arg(long)]
    docs: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let workloads = chosen(&arguments.only)?;
    if arguments.runs == 0 {
        bail!("nothing is to be measured");
    }
    fixtures::make(&["busybox:latest", "golang:1.23-alpine"])?;
    let program = match &arguments.program {
        Some(program) => std::path::absolute(program)?,
        None => program::release()?,
    };
    fs::create_dir_all(&arguments.work)?;
    let work = arguments.work.canonicalize()?;
    let peers = match peers::is_there() {
        true => Some(Peers::start(&work)?),
        false => {
            println!("no other builders (`cargo xtask peers` installs them): measuring ours alone");
            None
        }
    };
    let builders = builders(&program, peers.as_ref(), &work);
    let mut report = Report::new(
        builders.iter().map(|it| it.name.to_owned()).collect(),
        arguments.runs,
        versions(&program, peers.as_ref())?,
    );
    for workload in workloads {
        let place = workload.place(&work, arguments.scale)?;
        let mut rows: Vec<Row> = workload
            .phases
            .iter()
            .map(|phase| Row::new(workload, phase, builders.len()))
            .collect();
        for _ in 0..arguments.runs {
            round(workload, &place, &builders, &mut rows, &work)?;
        }
        for row in rows {
            println!("{}", report.line(&row));
            report.rows.push(row);
        }
    }
    println!("\n{}", report.table());
    if let Some(file) = &arguments.json {
        fs::write(file, report.json()?)?;
    }
    if let Some(file) = &arguments.svg {
        fs::write(file, report::chart(&report))?;
    }
    if arguments.docs {
        let docs = workspace::root().join("docs");
        fs::write(docs.join("benchmarks.md"), report.page())?;
        fs::write(docs.join("benchmarks.svg"), report::chart(&report))?;
    }
    Ok(())
}

fn chosen(names: &[String]) -> anyhow::Result<Vec<&'static Workload>> {
    if let Some(unknown) = names
        .iter()
        .find(|name| WORKLOADS.iter().all(|it| it.name != **name))
    {
        let known: Vec<&str> = WORKLOADS.iter().map(|it| it.name).collect();
        bail!(
            "no workload is named {unknown}; there are {}",
            known.join(", ")
        );
    }
    Ok(WORKLOADS
        .iter()
        .filter(|it| names.is_empty() || names.iter().any(|name| name == it.name))
        .collect())
}

/// Runs a workload once on each builder and its limits once.
fn round(
    workload: &Workload,
    place: &Place,
    builders: &[Builder<'_>],
    rows: &mut [Row],
    work: &Path,
) -> anyhow::Result<()> {
    for (index, builder) in builders.iter().enumerate() {
        let out = work.join(format!("out-{index}.tar"));
        let build = |file: &Path| timed(builder.build(file, workload, place, &out));
        builder.reset()?;
        for (phase, row) in workload.phases.iter().zip(&mut *rows) {
            let done = workload
                .before(phase, place, |file| build(file).map(|_| ()))
                .and_then(|()| build(&place.file()));
            match done {
                Ok(seconds) => row.builders[index].add(seconds),
                Err(error) => {
                    eprintln!(
                        "{} {}: {}: {error:#}",
                        workload.name, phase.name, builder.name
                    );
                    row.builders[index] = Cell::failed();
                    break;
                }
            }
        }
        builder.reset()?;
        let _ = fs::remove_file(&out);
    }
    for (phase, row) in workload.phases.iter().zip(rows) {
        if let Some(seconds) = limit(phase, place, work)? {
            row.limit.add(seconds);
        }
    }
    Ok(())
}

/// Does what any builder must do.
fn limit(phase: &Phase, place: &Place, work: &Path) -> anyhow::Result<Option<f64>> {
    let Some(words) = phase.limit else {
        return Ok(None);
    };
    let out = work.join("out-limit");
    let mut command = Command::new("sh");
    command
        .args(["-c", words])
        .env("context", place.context())
        .env("out", &out)
        .env("count", place.count().to_string())
        .stdin(Stdio::null());
    let seconds = timed(command)?;
    let _ = fs::remove_file(&out);
    Ok(Some(seconds))
}

fn timed(mut command: Command) -> anyhow::Result<f64> {
    let started = Instant::now();
    output(&mut command)?;
    Ok(started.elapsed().as_secs_f64())
}

/// One builder, writing to one kind of output.
struct Builder<'a> {
    name: &'static str,
    how: How<'a>,
}

enum How<'a> {
    Lapstrake {
        program: &'a Path,
        state: PathBuf,
        store: bool,
    },
    BuildKit {
        peers: &'a Peers,
        store: bool,
    },
    Buildah(&'a Peers, PathBuf),
}

fn builders<'a>(program: &'a Path, peers: Option<&'a Peers>, work: &Path) -> Vec<Builder<'a>> {
    let ours = |name, store| Builder {
        name,
        how: How::Lapstrake {
            program,
            state: work.join("lapstrake"),
            store,
        },
    };
    let mut builders = vec![ours("lapstrake", false)];
    if let Some(peers) = peers {
        builders.push(Builder {
            name: "BuildKit",
            how: How::BuildKit {
                peers,
                store: false,
            },
        });
        builders.push(Builder {
            name: "buildah",
            how: How::Buildah(peers, work.join("buildah")),
        });
    }
    builders.push(ours("lapstrake, store", true));
    if let Some(peers) = peers {
        builders.push(Builder {
            name: "BuildKit, cache only",
            how: How::BuildKit { peers, store: true },
        });
    }
    builders
}

impl Builder<'_> {
    fn build(&self, file: &Path, workload: &Workload, place: &Place, out: &Path) -> Command {
        let archive = format!("type=oci,dest={}", out.display());
        let mut command = match &self.how {
            How::Lapstrake {
                program,
                state,
                store,
            } => {
                let mut command = Command::new(program);
                command
                    .env(
                        "LAPSTRAKE_CONFIG",
                        workspace::fixtures().join("config.toml"),
                    )
                    .env("LAPSTRAKE_ROOT", state)
                    .args(["build", "--quiet"]);
                match store {
                    true => command.args(["--tag", "bench"]),
                    false => command.args(["--output", &archive]),
                };
                command
            }
            How::BuildKit { peers, store } => {
                let mut command = peers.command("docker");
                command.args(["buildx", "build", "--quiet", "--network", "host"]);
                match store {
                    true => command.args(["--output", "type=cacheonly"]),
                    false => command.args(["--output", &archive]),
                };
                command
            }
            How::Buildah(peers, _) => {
                let mut command = peers.buildah();
                let archive = format!("oci-archive:{}", out.display());
                command.args(["--quiet", "--layers", "--tag", &archive]);
                command
            }
        };
        if let Some(target) = workload.target {
            command.args(["--target", target]);
        }
        command.arg("--file").arg(file).arg(place.context());
        command
    }

    /// Leaves the builder as if it had never built.
    fn reset(&self) -> anyhow::Result<()> {
        match &self.how {
            How::Lapstrake { state, .. } => fixtures::tree::remove(state),
            How::BuildKit { peers, .. } => {
                output(
                    peers
                        .command("docker")
                        .args(["buildx", "prune", "--all", "--force"]),
                )?;
                output(
                    peers
                        .command("docker")
                        .args(["system", "prune", "--all", "--force"]),
                )?;
                Ok(())
            }
            How::Buildah(peers, state) => {
                let words = "umount \"$1/overlay\" 2>/dev/null; rm -rf \"$1\" /run/buildah";
                output(peers.command("sh").args(["-c", words, "reset"]).arg(state))?;
                Ok(())
            }
        }
    }
}

fn versions(program: &Path, peers: Option<&Peers>) -> anyhow::Result<Vec<String>> {
    let mut versions = vec![
        output(Command::new(program).arg("--version"))?
            .trim()
            .to_owned(),
    ];
    if let Some(peers) = peers {
        versions.push(peers::version(peers, "dockerd", &["--version"])?);
        versions.push(peers::version(peers, "docker", &["buildx", "version"])?);
        versions.push(peers::version(peers, "buildah", &["--version"])?);
    }
    Ok(versions)
}
