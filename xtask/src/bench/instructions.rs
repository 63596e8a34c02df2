//! `cargo xtask bench instructions`: instructions of the hot paths that are pure, against a baseline in the repository.
//!
//! Times vary with the machine and its load, counts hardly: a change that makes a path longer shows. Each workload is
//! counted by callgrind with a few rounds and with more of them; what one round costs is the difference, so that
//! starting up and making the inputs are not in it. Counts belong to a compiler: the baseline names the one it was made
//! with, and under another one only the figures are shown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::command::{command, output};
use crate::{program, workspace};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Write the counts down as the new baseline
    #[arg(long)]
    update: bool,
    /// Only workloads whose name has this in it
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// The most that a count may differ from its baseline, as a part of it.
const TOLERANCE: f64 = 0.03;
/// Rounds of the two counts.
const ROUNDS: (u64, u64) = (1, 4);

#[derive(Debug, Default, Serialize, Deserialize)]
struct Baseline {
    /// The compiler, as it names itself.
    compiler: String,
    /// Instructions of one round, by the name of the workload.
    instructions: BTreeMap<String, u64>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let program = program::release_of("hotpaths")?;
    let path = workspace::root().join("crates/hotpaths/instructions.json");
    let baseline = read(&path)?;
    let compiler = output(&mut command("rustc", ["--version"]))?
        .trim()
        .to_owned();
    let is_judged = baseline.compiler == compiler && !arguments.update;
    if !is_judged && !arguments.update {
        println!(
            "the baseline is of {}, this is {compiler}: nothing is judged",
            baseline.compiler
        );
    }
    let mut counted = Baseline {
        compiler,
        ..Baseline::default()
    };
    let mut off = 0;
    println!(
        "{:44} {:>14} {:>14} {:>8}",
        "", "instructions", "baseline", ""
    );
    for name in output(&mut command::<&str>(&program.to_string_lossy(), []))?.lines() {
        if arguments
            .only
            .as_ref()
            .is_some_and(|only| !name.contains(only))
        {
            continue;
        }
        let count = count(&program, name)?;
        counted.instructions.insert(name.to_owned(), count);
        let before = baseline.instructions.get(name).copied();
        let change = before.map(|before| count as f64 / before as f64 - 1.0);
        let is_off = is_judged && change.is_none_or(|change| change.abs() > TOLERANCE);
        off += usize::from(is_off);
        println!(
            "{name:44} {count:>14} {:>14} {:>8}{}",
            before.map_or("-".to_owned(), |before| before.to_string()),
            change.map_or(String::new(), |change| format!("{:+.1} %", change * 100.0)),
            if is_off { "  OFF" } else { "" },
        );
    }
    if arguments.update {
        let text = serde_json::to_string_pretty(&counted)? + "\n";
        return std::fs::write(&path, text).context("failed to write the baseline");
    }
    match off {
        0 => Ok(()),
        off => bail!(
            "{off} counts are more than {} % off: mend it, or accept it with --update and say why in the commit",
            TOLERANCE * 100.0
        ),
    }
}

fn read(path: &Path) -> anyhow::Result<Baseline> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("failed to read {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Baseline::default()),
        Err(error) => Err(error).with_context(|| format!("failed to read {}", path.display())),
    }
}

/// Returns the instructions of one round.
fn count(program: &PathBuf, name: &str) -> anyhow::Result<u64> {
    let (few, many) = ROUNDS;
    let (least, most) = (
        run_counted(program, name, few)?,
        run_counted(program, name, many)?,
    );
    Ok(most.saturating_sub(least) / (many - few))
}

fn run_counted(program: &PathBuf, name: &str, rounds: u64) -> anyhow::Result<u64> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("counts");
    let mut valgrind = command("valgrind", ["--tool=callgrind", "--quiet"]);
    valgrind.arg(format!("--callgrind-out-file={}", out.display()));
    output(valgrind.arg(program).arg(name).arg(rounds.to_string()))
        .context("counting needs valgrind")?;
    let counts = std::fs::read_to_string(&out).context("valgrind left no counts")?;
    let total = counts
        .lines()
        .filter_map(|line| {
            line.strip_prefix("totals: ")
                .or(line.strip_prefix("summary: "))
        })
        .next_back()
        .context("the counts have no total")?;
    total
        .trim()
        .parse()
        .with_context(|| format!("no count: {total:?}"))
}
