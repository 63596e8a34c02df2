//! `cargo xtask bench compress`: the export of one large layer, against `tar` and a parallel compressor.
//!
//! Ours and theirs run in turn, and what counts is the ratio of the medians: of wall time and of processor time, since a
//! machine that others use tells little by its clock.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use clap::Args;

use super::workloads::real_files;
use crate::command::{command, output};
use crate::program;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Megabytes of files of this machine
    #[arg(long, value_name = "NUMBER", default_value_t = 512)]
    megabytes: u64,
    /// Runs of each
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    runs: usize,
    /// The program to measure [default: built for release]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Where the files, the store and the archives go
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/tmp/lapstrake-compress"
    )]
    work: PathBuf,
}

/// A compression, what it is measured against, and how far it may be from it.
struct Pair {
    name: &'static str,
    output: &'static str,
    reference: &'static str,
    most_wall: f64,
    most_size: f64,
}

const PAIRS: [Pair; 2] = [
    Pair {
        name: "gzip",
        output: "compression=gzip,compression-level=6",
        reference: "pigz -p \"$(nproc)\" -6",
        most_wall: 0.6,
        most_size: 1.04,
    },
    Pair {
        name: "zstd",
        output: "compression=zstd,compression-level=3",
        reference: "zstd -q -T0 -3",
        most_wall: 1.3,
        most_size: f64::INFINITY,
    },
];

/// The most memory an export may take, in megabytes.
const MOST_MEMORY: f64 = 150.0;

/// What one run took.
#[derive(Debug, Clone, Copy)]
struct Cost {
    wall: f64,
    processor: f64,
    megabytes: f64,
    bytes: u64,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let program = match &arguments.program {
        Some(program) => std::path::absolute(program)?,
        None => program::release()?,
    };
    let work = &arguments.work;
    let context = work.join("context");
    if !context.join("Dockerfile").is_file() {
        real_files(&context.join("files"), arguments.megabytes * 1_000_000)?;
        fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY files /\n")?;
    }
    let mut misses = Vec::new();
    for pair in &PAIRS {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..arguments.runs.max(1) {
            theirs.push(their_cost(pair, work)?);
            ours.push(our_cost(pair, &program, work)?);
        }
        tell(pair, &ours, &theirs, &mut misses);
    }
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load: {}", load.trim());
    fs::remove_dir_all(work).with_context(|| format!("failed to remove {}", work.display()))?;
    if !misses.is_empty() {
        bail!("{}", misses.join("; "));
    }
    Ok(())
}

fn their_cost(pair: &Pair, work: &Path) -> anyhow::Result<Cost> {
    let script = format!(
        "tar -C \"$0/context/files\" -cf - . | {} > \"$0/theirs\"",
        pair.reference
    );
    let mut shell = timed();
    shell.args(["bash", "-c", &script]).arg(work);
    cost(&mut shell, &work.join("theirs"))
}

/// Measures an export whose layer is in the store, and compressed nowhere.
fn our_cost(pair: &Pair, program: &Path, work: &Path) -> anyhow::Result<Cost> {
    let root = work.join("root");
    let build = |command: &mut Command| {
        command.arg("--root").arg(&root).args(["build", "--quiet"]);
    };
    let mut before = command(&program.display().to_string(), [""; 0]);
    build(&mut before);
    output(
        before
            .args(["--output", "type=image,name=layer"])
            .arg(work.join("context")),
    )?;
    let archive = work.join("ours");
    let mut timed = timed();
    timed.arg(program);
    build(&mut timed);
    timed
        .arg("--output")
        .arg(format!(
            "type=oci,dest={},{}",
            archive.display(),
            pair.output
        ))
        .arg(work.join("context"));
    let cost = cost(&mut timed, &archive);
    fs::remove_dir_all(&root)?;
    cost
}

fn timed() -> Command {
    command("/usr/bin/time", ["-f", "%e %U %S %M"])
}

fn cost(command: &mut Command, written: &Path) -> anyhow::Result<Cost> {
    let output = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .context("measuring needs the program `time` (Debian: apt-get install time)")?;
    let told = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("what was measured failed:\n{told}");
    }
    let last = told.trim().lines().next_back().unwrap_or_default();
    let numbers: Vec<f64> = last
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    let [wall, user, system, kilobytes] = numbers[..] else {
        bail!("`time` told nothing: {last:?}");
    };
    let bytes = fs::metadata(written)?.len();
    fs::remove_file(written)?;
    Ok(Cost {
        wall,
        processor: user + system,
        megabytes: kilobytes / 1000.0,
        bytes,
    })
}

fn median(costs: &[Cost], of: fn(&Cost) -> f64) -> f64 {
    let mut values: Vec<f64> = costs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn tell(pair: &Pair, ours: &[Cost], theirs: &[Cost], misses: &mut Vec<String>) {
    let both = |of: fn(&Cost) -> f64| (median(ours, of), median(theirs, of));
    let (wall, processor) = (both(|cost| cost.wall), both(|cost| cost.processor));
    let size = both(|cost| cost.bytes as f64 / 1e6);
    let memory = median(ours, |cost| cost.megabytes);
    println!(
        "{}: wall {:.1} s against {:.1} s ({:.2}), processor {:.1} s against {:.1} s ({:.2}), {:.1} MB against {:.1} MB \
         ({:.3}), memory {memory:.0} MB",
        pair.name,
        wall.0,
        wall.1,
        wall.0 / wall.1,
        processor.0,
        processor.1,
        processor.0 / processor.1,
        size.0,
        size.1,
        size.0 / size.1,
    );
    let mut most = |what: &str, ratio: f64, most: f64| {
        if ratio > most {
            misses.push(format!(
                "{}: {what} {ratio:.2} is more than {most:.2}",
                pair.name
            ));
        }
    };
    most("wall time", wall.0 / wall.1, pair.most_wall);
    most("size", size.0 / size.1, pair.most_size);
    most("memory in MB", memory, MOST_MEMORY);
}
