//! `cargo xtask conformance`: what we answer, held against recorded answers of the reference implementation.

mod behaviour;
mod image;
mod parser;
mod tables;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::workspace;

/// The options of the task.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Folder of the corpus [default: ../shared/conformance beside the checkout, if it is there]
    #[arg(long, value_name = "DIR")]
    corpus: Option<PathBuf>,
    /// Run one kind of cases only
    #[arg(long, value_name = "KIND")]
    only: Option<Kind>,
    /// Run only the cases whose name contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    #[command(flatten, next_help_heading = "Behaviour cases")]
    behaviour: behaviour::Options,
}

/// A kind of cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Parse trees, stages, targets, outline and lint of Dockerfiles
    Parser,
    /// Expansion of words, ignore patterns, platforms, references
    Tables,
    /// Whole builds
    Behaviour,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Parser, Kind::Tables, Kind::Behaviour];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Parser => "parser",
            Kind::Tables => "tables",
            Kind::Behaviour => "behaviour",
        })
    }
}

/// Counts cases, and prints a line for each that fails.
#[derive(Debug)]
pub(crate) struct Tally {
    kind: Kind,
    filter: Option<String>,
    passed: usize,
    failed: usize,
}

impl Tally {
    /// Tells whether a case was asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|filter| name.contains(filter.as_str()))
    }

    /// Returns the text that the names asked for contain.
    fn filter(&self) -> Option<&str> {
        self.filter.as_deref()
    }

    fn is_empty(&self) -> bool {
        self.passed + self.failed == 0
    }

    /// Counts a case; it fails if there is a line of what differs.
    pub(crate) fn count(&mut self, name: &str, difference: Option<&str>) {
        match difference {
            None => self.passed += 1,
            Some(difference) => {
                self.failed += 1;
                println!("{} {name}: {difference}", self.kind);
            }
        }
    }
}

/// Runs the cases; fails if one does.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let corpus = match &arguments.corpus {
        Some(corpus) if !corpus.is_dir() => bail!("no conformance corpus at {}", corpus.display()),
        Some(corpus) => corpus.clone(),
        None => workspace::root().join("../shared/conformance"),
    };
    if !corpus.is_dir() {
        println!(
            "skipped: there is no conformance corpus at {}",
            corpus.display()
        );
        return Ok(());
    }
    let (mut passed, mut failed) = (0, 0);
    for kind in Kind::ALL {
        if arguments.only.is_some_and(|only| only != kind) {
            continue;
        }
        let mut tally = Tally {
            kind,
            filter: arguments.filter.clone(),
            passed: 0,
            failed: 0,
        };
        run_kind(&corpus, arguments, &mut tally)
            .with_context(|| format!("failed to run the {kind} cases"))?;
        println!("{kind}: {} passed, {} failed", tally.passed, tally.failed);
        passed += tally.passed;
        failed += tally.failed;
    }
    println!("{passed} passed, {failed} failed");
    if failed > 0 {
        bail!("{failed} cases failed");
    }
    Ok(())
}

fn run_kind(corpus: &Path, arguments: &Arguments, tally: &mut Tally) -> anyhow::Result<()> {
    match tally.kind {
        Kind::Parser => parser::run(corpus, tally),
        Kind::Tables => tables::run(corpus, tally),
        Kind::Behaviour => behaviour::run(corpus, &arguments.behaviour, tally),
    }
}
