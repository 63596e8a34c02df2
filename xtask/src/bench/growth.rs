//! `cargo xtask bench growth`: how time and memory grow with the size of what is built, and with what the store holds.
//!
//! Each curve is measured at several sizes and fitted by a power of the size over its larger half: an exponent of one is
//! linear growth. What is worse than linear, or takes more memory than it may, is told and fails the command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use super::curves::{CURVES, Curve};
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
    /// The program to measure [default: built for release]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Where contexts and states go
    #[arg(long, value_name = "DIR", default_value = "/var/tmp/lapstrake-growth")]
    work: PathBuf,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write docs/growth.md and its chart anew
    #[arg(long)]
    docs: bool,
}

/// An exponent up to this is linear growth and the noise of the machine.
const LINEAR: f64 = 1.1;

/// What was measured at one size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Point {
    pub(super) size: u64,
    pub(super) seconds: f64,
    /// The most memory that was resident.
    pub(super) megabytes: f64,
}

/// A curve with its points.
#[derive(Debug)]
pub(super) struct Grown {
    pub(super) curve: &'static Curve,
    pub(super) points: Vec<Point>,
}

impl Grown {
    /// Returns the exponent of the power of the size that fits the times of the larger half best.
    pub(super) fn exponent(&self) -> Option<f64> {
        let half = &self.points[self.points.len() / 2..];
        let logs: Vec<(f64, f64)> = half
            .iter()
            .map(|point| ((point.size as f64).ln(), point.seconds.max(1e-4).ln()))
            .collect();
        let count = logs.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / count;
        let (x, y) = (mean(|log| log.0), mean(|log| log.1));
        let spread: f64 = logs.iter().map(|log| (log.0 - x).powi(2)).sum();
        let both: f64 = logs.iter().map(|log| (log.0 - x) * (log.1 - y)).sum();
        (logs.len() > 1 && spread > 0.0).then(|| both / spread)
    }

    fn most_memory(&self) -> f64 {
        self.points
            .iter()
            .map(|point| point.megabytes)
            .fold(0.0, f64::max)
    }

    /// Returns what is wrong with the growth.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if let Some(exponent) = self.exponent().filter(|exponent| *exponent > LINEAR) {
            faults.push(format!("time grows with the power {exponent:.2}"));
        }
        if let Some(most) = self
            .curve
            .megabytes
            .filter(|most| self.most_memory() > *most)
        {
            faults.push(format!(
                "{:.0} MB are more than {most:.0}",
                self.most_memory()
            ));
        }
        faults
    }
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    fixtures::make(&["busybox:latest"])?;
    let program = match &arguments.program {
        Some(program) => std::path::absolute(program)?,
        None => program::release()?,
    };
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
    fs::create_dir_all(&arguments.work)?;
    let mut all = Vec::new();
    for curve in CURVES {
        if !arguments.only.is_empty() && !arguments.only.iter().any(|name| name == curve.name) {
            continue;
        }
        let largest = curve.sizes.last().copied().unwrap_or(1) as f64;
        let mut grown = Grown {
            curve,
            points: Vec::new(),
        };
        for &size in curve.sizes {
            if size as f64 > largest * arguments.scale {
                break;
            }
            let bench = Bench::new(&program, &arguments.work)?;
            let point = (curve.measure)(&bench, size)
                .with_context(|| format!("{} at {size} failed", curve.name))?;
            println!(
                "{:16} {size:>9} {:18} {:>9.3} s {:>7.1} MB",
                curve.name, curve.unit, point.seconds, point.megabytes
            );
            grown.points.push(point);
        }
        all.push(grown);
    }
    println!("\n{}", table(&all));
    if let Some(file) = &arguments.json {
        fs::write(file, as_json(&all)?)?;
    }
    if arguments.docs {
        let docs = workspace::root().join("docs");
        fs::write(docs.join("growth.md"), page(&all))?;
        fs::write(docs.join("growth.svg"), super::curves::chart(&all))?;
    }
    match all.iter().map(|grown| grown.faults().len()).sum() {
        0 => Ok(()),
        count => bail!("{count} curves grow too fast"),
    }
}

/// The program with a state and a context of its own.
#[derive(Debug)]
pub(super) struct Bench {
    program: PathBuf,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(program: &Path, work: &Path) -> anyhow::Result<Bench> {
        let folder = tempfile::tempdir_in(work).context("failed to make a folder")?;
        fs::create_dir(folder.path().join("ctx"))?;
        Ok(Bench {
            program: program.to_owned(),
            folder,
        })
    }

    pub(super) fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    pub(super) fn context(&self) -> PathBuf {
        self.folder.path().join("ctx")
    }

    pub(super) fn dockerfile(&self, text: &str) -> anyhow::Result<()> {
        fs::write(self.folder.path().join("Dockerfile"), text).context("failed to write")
    }

    /// Returns a build of the Dockerfile, not yet started, under a program that tells its memory.
    fn build(&self, words: &[&str]) -> std::process::Command {
        // `time` is the program, not the shell's word: the shell's tells no memory.
        let mut command = command("/usr/bin/time", ["-f", "%M"]);
        command
            .arg(&self.program)
            .arg("--root")
            .arg(self.root())
            .args(["build", "-q", "-f"])
            .arg(self.folder.path().join("Dockerfile"))
            .args(words)
            .arg(self.context())
            .env(
                "LAPSTRAKE_CONFIG",
                workspace::fixtures().join("config.toml"),
            )
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    /// Builds once and measures it.
    pub(super) fn measure(&self, size: u64, words: &[&str]) -> anyhow::Result<Point> {
        self.measure_at_once(size, 1, words)
    }

    /// Builds so often at once and measures until the last has ended; the memory is that of the largest.
    pub(super) fn measure_at_once(
        &self,
        size: u64,
        count: u64,
        words: &[&str],
    ) -> anyhow::Result<Point> {
        let began = Instant::now();
        let children: Vec<_> = (0..count)
            .map(|_| self.build(words).spawn())
            .collect::<Result<_, _>>()
            .context("measuring memory needs the program `time` (Debian: apt-get install time)")?;
        let mut megabytes: f64 = 0.0;
        for child in children {
            let output = child.wait_with_output()?;
            let told = String::from_utf8_lossy(&output.stderr);
            if !output.status.success() {
                bail!("the build failed:\n{told}");
            }
            let kilobytes = told.trim().lines().next_back().unwrap_or_default();
            let kilobytes: f64 = kilobytes.parse().context("`time` told no memory")?;
            megabytes = megabytes.max(kilobytes / 1000.0);
        }
        Ok(Point {
            size,
            seconds: began.elapsed().as_secs_f64(),
            megabytes,
        })
    }
}

/// Adds so many records of a result to a store, as builds leave them.
pub(super) fn fill_records(root: &Path, count: u64) -> anyhow::Result<()> {
    let store = store::Store::open(root, store::OpenOptions::new(None))?;
    let info = json!({"name": "RUN make", "took": 1.5});
    for number in 0..count {
        let key = |what: u8| -> store::Key {
            let mut key = [what; 32];
            // Keys are hashes: neighbours in time lie far from each other in the index.
            key[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
            key
        };
        store.record(&key(1), &[key(2), key(3)], &[store::LayerId(1)], &info)?;
    }
    Ok(())
}

fn table(all: &[Grown]) -> String {
    let mut text = String::from(
        "| curve | sizes | time, least to most | exponent | memory, most | |\n|---|---|---|---|---|---|\n",
    );
    for grown in all {
        let (Some(first), Some(last)) = (grown.points.first(), grown.points.last()) else {
            continue;
        };
        let faults = grown.faults();
        text.push_str(&format!(
            "| {} | {} to {} {} | {:.3} s to {:.3} s | {} | {:.0} MB | {} |\n",
            grown.curve.about,
            first.size,
            last.size,
            grown.curve.unit,
            first.seconds,
            last.seconds,
            grown
                .exponent()
                .map_or("-".to_owned(), |it| format!("{it:.2}")),
            grown.most_memory(),
            match faults.is_empty() {
                true => "fine".to_owned(),
                false => faults.join("; "),
            }
        ));
    }
    text
}

fn page(all: &[Grown]) -> String {
    format!(
        "# How it grows\n\nWritten by `cargo xtask bench growth --docs`. Each curve is one build at several sizes, on a \
         machine with {} cores; the exponent is that of the power of the size that fits the larger half of the curve \
         (one is linear), and time below it is start-up. Memory is what was resident at most.\n\n{}\n\
         ![Time over size, both logarithmic](growth.svg)\n",
        std::thread::available_parallelism().map_or(1, usize::from),
        table(all)
    )
}

fn as_json(all: &[Grown]) -> anyhow::Result<String> {
    let curves: Vec<_> = all
        .iter()
        .map(|grown| {
            let points: Vec<_> = grown
                .points
                .iter()
                .map(|point| json!({"size": point.size, "seconds": point.seconds, "megabytes": point.megabytes}))
                .collect();
            json!({"name": grown.curve.name, "unit": grown.curve.unit, "exponent": grown.exponent(), "points": points})
        })
        .collect();
    Ok(serde_json::to_string_pretty(&curves)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grown(times: &[(u64, f64)]) -> Grown {
        Grown {
            curve: &CURVES[0],
            points: times
                .iter()
                .map(|&(size, seconds)| Point {
                    size,
                    seconds,
                    megabytes: 10.0,
                })
                .collect(),
        }
    }

    #[test]
    fn the_exponent_is_that_of_the_larger_half() {
        let linear = grown(&[(1, 0.5), (10, 0.5), (100, 1.0), (1000, 10.0)]);
        assert!((linear.exponent().unwrap() - 1.0).abs() < 1e-9);
        assert!(linear.faults().is_empty());
        let square = grown(&[(1, 0.1), (10, 0.1), (100, 1.0), (1000, 100.0)]);
        assert!((square.exponent().unwrap() - 2.0).abs() < 1e-9);
        assert_eq!(square.faults().len(), 1);
        assert_eq!(grown(&[(1, 0.1)]).exponent(), None);
    }
}
