//! `cargo xtask bench`: measures what the program promises, against what the machine can do.

mod compare;
mod compress;
mod curves;
mod growth;
mod growth_report;
pub(crate) mod instructions;
pub(crate) mod peers;
mod report;
mod steps;
mod workloads;

use clap::{Args, Subcommand};

/// What is measured.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// The same workloads on every builder there is, in turn
    Compare(compare::Arguments),
    /// The export of a large layer, against tar and a parallel compressor
    Compress(compress::Arguments),
    /// How time and memory grow with the size of what is built and with what is in the store
    Growth(growth::Arguments),
    /// Instructions of the pure hot paths, against a baseline
    Instructions(instructions::Arguments),
    /// RUN steps that do nothing, in a row, against the kernel's own price of namespaces and an exec
    Steps(steps::Arguments),
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    match &arguments.bench {
        Bench::Compare(arguments) => compare::run(arguments),
        Bench::Compress(arguments) => compress::run(arguments),
        Bench::Growth(arguments) => growth::run(arguments),
        Bench::Instructions(arguments) => instructions::run(arguments),
        Bench::Steps(arguments) => steps::run(arguments),
    }
}
