//! `cargo xtask soak`: long trials of the real program.

use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use testkit::Environment;
use testkit::soak::{self, Trial};

use crate::command::run as run_command;
use crate::{fixtures, program};

/// Try the program for long, from a printed seed.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    trial: Kind,
}

#[derive(Debug, Subcommand)]
enum Kind {
    /// Kill builders at random moments; the store stays whole
    Kill {
        #[command(flatten)]
        options: Options,
        /// Kills
        #[arg(long, default_value_t = 500)]
        count: u64,
    },
    /// Build ten times at once beside prunes; none fails or comes out wrong
    Prunes {
        #[command(flatten)]
        options: Options,
        /// Turns of ten builds
        #[arg(long, default_value_t = 50)]
        count: u64,
    },
    /// Edit a context at random; a cached build equals one without cache
    Edits {
        #[command(flatten)]
        options: Options,
        /// Edits
        #[arg(long, default_value_t = 1000)]
        count: u64,
    },
    /// Pull, build, push and cache over bad connections to a registry; each is right or a clear error
    Registry {
        #[command(flatten)]
        options: Options,
        /// Pulls, builds, pushes, exports and imports of caches
        #[arg(long, default_value_t = 200)]
        count: u64,
    },
    /// Have 64 clients of a server build at once, cancel and vanish; nothing hangs and nothing of them is left
    Clients {
        #[command(flatten)]
        options: Options,
        /// Builds
        #[arg(long, default_value_t = 1000)]
        count: u64,
    },
}

#[derive(Debug, Args)]
struct Options {
    /// Where the chances come from [default: the clock]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// The program to try [default: built for development]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

/// Runs a trial.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (options, count, trial): (_, _, fn(&Environment, Trial)) = match &arguments.trial {
        Kind::Kill { options, count } => (options, *count, soak::kill),
        Kind::Prunes { options, count } => (options, *count, soak::prunes),
        Kind::Edits { options, count } => (options, *count, soak::edits),
        Kind::Registry { options, count } => (options, *count, registry),
        Kind::Clients { options, count } => (options, *count, testclient::soak::clients),
    };
    let program = match &options.program {
        Some(program) => std::path::absolute(program)?,
        None => {
            run_command(program::cargo().args(["build", "--package", "cli"]))?;
            program::tested()?
        }
    };
    if !program.is_file() {
        bail!("there is no program {}", program.display());
    }
    fixtures::make(&["busybox:latest"])?;
    let seed = match options.seed {
        Some(seed) => seed,
        None => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("failed to read the clock")?
            .as_millis() as u64,
    };
    let began = Instant::now();
    let trial_of = Trial {
        count,
        seed,
        is_told: true,
    };
    trial(&Environment::new(program), trial_of);
    println!("{count} turns in {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}

/// Runs the trial with a registry and tells what came of it.
fn registry(environment: &Environment, trial: Trial) {
    let tally = soak::registry(environment, trial);
    for error in &tally.errors {
        println!("{error}");
    }
    for (deed, (right, failed)) in &tally.deeds {
        println!("{deed}: {right} right, {failed} with a clear error");
    }
    println!("{} connections and requests in trouble", tally.troubles);
    let failed = trial.count - tally.right();
    println!(
        "{} right, {failed} with a clear error, 0 wrong",
        tally.right()
    );
}
