//! `cargo xtask conformance`: what we answer, held against recorded answers of the reference implementation.

mod parser;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::workspace;

/// The options of the task.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Folder of the corpus [default: ../shared/conformance beside the checkout]
    #[arg(long, value_name = "DIR")]
    corpus: Option<PathBuf>,
    /// Run one kind of cases only
    #[arg(long, value_name = "KIND")]
    only: Option<Kind>,
    /// Run only the cases whose name contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
}

/// A kind of cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Parse trees, stages, targets, outline and lint of Dockerfiles
    Parser,
}

impl Kind {
    const ALL: [Kind; 1] = [Kind::Parser];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Parser => "parser",
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
        Some(corpus) => corpus.clone(),
        None => workspace::root().join("../shared/conformance"),
    };
    if !corpus.is_dir() {
        bail!("no conformance corpus at {}", corpus.display());
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
        run_kind(&corpus, &mut tally).with_context(|| format!("failed to run the {kind} cases"))?;
        println!("{kind}: {} passed, {} failed", tally.passed, tally.failed);
        passed += tally.passed;
        failed += tally.failed;
    }
    println!("all: {passed} passed, {failed} failed");
    if failed > 0 {
        bail!("{failed} cases failed");
    }
    Ok(())
}

fn run_kind(corpus: &Path, tally: &mut Tally) -> anyhow::Result<()> {
    match tally.kind {
        Kind::Parser => parser::run(corpus, tally),
    }
}
