//! `cargo xtask bench instructions`: instructions of the hot paths that are pure, against a baseline in the repository.
//!
//! Times vary with the machine and its load, counts hardly: a change that makes a path longer shows. Each workload is
//! counted by cachegrind with one round and with more of them; what a round costs is the difference, so that
//! starting up and making the inputs are not in it. Counts belong to a compiler, a profile and a kind of processor: the
//! baseline names those it was made with, and under others only the figures are shown. `cargo xtask test` counts too
//! where they are the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::command::{command, output};
use crate::{program, tools, workspace};

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
const ROUNDS: (u64, u64) = (1, 3);

#[derive(Debug, Default, Serialize, Deserialize)]
struct Baseline {
    #[serde(flatten)]
    made_with: Circumstances,
    /// Instructions of one round, by the name of the workload.
    instructions: BTreeMap<String, u64>,
}

/// What counts depend on beside the code.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Circumstances {
    /// The compiler, as it names itself.
    compiler: String,
    /// The settings of the profile for releases.
    profile: String,
    architecture: String,
}

impl Circumstances {
    fn here() -> anyhow::Result<Self> {
        let manifest = workspace::root().join("Cargo.toml");
        let text = std::fs::read_to_string(&manifest)
            .with_context(|| format!("failed to read {}", manifest.display()))?;
        let changed = std::env::vars()
            .filter(|(name, _)| name.starts_with("CARGO_PROFILE_RELEASE_") || name == "RUSTFLAGS")
            // Neither moves an instruction.
            .filter(|(name, _)| !name.ends_with("_STRIP") && !name.ends_with("_DEBUG"))
            .map(|(name, value)| format!("{name}={value}"));
        Ok(Circumstances {
            compiler: output(&mut command("rustc", ["--version"]))?
                .trim()
                .to_owned(),
            profile: profile_of(&text, changed),
            architecture: std::env::consts::ARCH.to_owned(),
        })
    }

    /// Says in which point others differ from these, if they do.
    fn difference(&self, here: &Circumstances) -> Option<String> {
        [
            (&self.compiler, &here.compiler),
            (&self.profile, &here.profile),
            (&self.architecture, &here.architecture),
        ]
        .into_iter()
        .find(|(baseline, here)| baseline != here)
        .map(|(baseline, here)| {
            format!("the baseline was made with {baseline:?}, this is {here:?}")
        })
    }
}

/// Returns the settings of the profile as one line: its own, the packages with others, what the environment changes.
fn profile_of(manifest: &str, changed: impl Iterator<Item = String>) -> String {
    let (mut own, mut packages) = (Vec::new(), Vec::new());
    let mut section = "";
    for line in manifest.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if line.is_empty() || line.starts_with('#') || line.starts_with("strip") {
            // Nothing that code is made by.
        } else if section == "profile.release" {
            own.push(line.to_owned());
        } else if let Some(package) = section.strip_prefix("profile.release.package.") {
            packages.push(format!("{package}: {line}"));
        }
    }
    packages.sort();
    own.extend(packages);
    own.extend(changed);
    own.join(", ")
}

/// Counts with the tests: only where the baseline was made with what is here.
pub(crate) fn check() -> anyhow::Result<()> {
    let baseline = read(&baseline_path())?;
    if let Some(difference) = baseline.made_with.difference(&Circumstances::here()?) {
        println!("skipped: counts of instructions ({difference})");
        return Ok(());
    }
    if !tools::is_there("valgrind") {
        println!("skipped: counts of instructions (valgrind is not installed)");
        return Ok(());
    }
    run(&Arguments {
        update: false,
        only: None,
    })
}

fn baseline_path() -> PathBuf {
    workspace::root().join("crates/hotpaths/instructions.json")
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let program = program::release_of("hotpaths")?;
    let path = baseline_path();
    let mut baseline = read(&path)?;
    let made_with = Circumstances::here()?;
    let difference = baseline.made_with.difference(&made_with);
    if let (Some(difference), true, Some(_)) = (&difference, arguments.update, &arguments.only) {
        bail!("{difference}: --update takes all counts anew, without --only");
    }
    let is_judged = difference.is_none() && !arguments.update;
    if let (Some(difference), false) = (difference, arguments.update) {
        println!("{difference}: nothing is judged");
    }
    let names: Vec<String> = output(&mut command::<&str>(&program.to_string_lossy(), []))?
        .lines()
        .filter(|name| {
            let only = arguments.only.as_ref();
            only.is_none_or(|only| name.contains(only))
        })
        .map(str::to_owned)
        .collect();
    let counts = count_all(&program, &names)?;
    let mut off = 0;
    println!(
        "{:44} {:>14} {:>14} {:>8}",
        "", "instructions", "baseline", ""
    );
    for (name, count) in names.iter().zip(&counts) {
        let before = baseline.instructions.get(name).copied();
        let change = before.map(|before| *count as f64 / before as f64 - 1.0);
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
        // Those that were not asked for keep theirs.
        if arguments.only.is_none() {
            baseline.instructions.clear();
        }
        baseline.made_with = made_with;
        baseline.instructions.extend(names.into_iter().zip(counts));
        let text = serde_json::to_string_pretty(&baseline)? + "\n";
        return std::fs::write(&path, text).context("failed to write the baseline");
    }
    match off {
        0 => Ok(()),
        off => bail!(
            "{off} counts are more than {} % off: mend it, or accept it with `cargo xtask bench instructions --update` \
             and say why in the commit",
            TOLERANCE * 100.0
        ),
    }
}

/// Counts all workloads, as many at once as there are processors.
fn count_all(program: &Path, names: &[String]) -> anyhow::Result<Vec<u64>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut counted = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(name) = names.get(at) else {
                return anyhow::Ok(counted);
            };
            counted.push((at, count(program, name)?));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut counts = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut counts = Vec::new();
        for thread in threads {
            counts.extend(thread.join().expect("counting does not panic")?);
        }
        anyhow::Ok(counts)
    })?;
    counts.sort_unstable();
    Ok(counts.into_iter().map(|(_, count)| count).collect())
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
fn count(program: &Path, name: &str) -> anyhow::Result<u64> {
    let (few, many) = ROUNDS;
    let (least, most) = (
        run_counted(program, name, few)?,
        run_counted(program, name, many)?,
    );
    Ok(most.saturating_sub(least) / (many - few))
}

fn run_counted(program: &Path, name: &str, rounds: u64) -> anyhow::Result<u64> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("counts");
    let mut valgrind = command(
        "valgrind",
        ["--tool=cachegrind", "--cache-sim=no", "--quiet"],
    );
    valgrind.arg(format!("--cachegrind-out-file={}", out.display()));
    output(valgrind.arg(program).arg(name).arg(rounds.to_string()))
        .context("counting needs valgrind")?;
    let counts = std::fs::read_to_string(&out).context("valgrind left no counts")?;
    let total = counts
        .lines()
        .filter_map(|line| line.strip_prefix("summary: "))
        .next_back()
        .context("the counts have no total")?;
    total
        .trim()
        .parse()
        .with_context(|| format!("no count: {total:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_told_by_what_makes_code() {
        let manifest = "[profile.dev]\nopt-level = 1\n\n# Small.\n[profile.release]\nopt-level = \"s\"\nstrip = true\n\n\
            [profile.release.package.tar]\nopt-level = 3\n\n[profile.release.package.oci]\nopt-level = 3\n";
        assert_eq!(
            profile_of(
                manifest,
                ["CARGO_PROFILE_RELEASE_LTO=off".to_owned()].into_iter()
            ),
            "opt-level = \"s\", oci: opt-level = 3, tar: opt-level = 3, CARGO_PROFILE_RELEASE_LTO=off"
        );
    }

    #[test]
    fn what_differs_is_said() {
        let of = |compiler: &str| Circumstances {
            compiler: compiler.to_owned(),
            ..Circumstances::default()
        };
        assert_eq!(of("a").difference(&of("a")), None);
        let said = of("a").difference(&of("b")).expect("a difference");
        assert_eq!(said, "the baseline was made with \"a\", this is \"b\"");
    }
}
