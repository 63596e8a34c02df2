//! Development tasks, run as `cargo xtask TASK`.

mod command;
mod conformance;
mod fixtures;
mod tools;
mod workspace;

use clap::{Parser, Subcommand};

/// Development tasks of lapstrake.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Hold what we answer against recorded answers of the reference implementation
    Conformance(conformance::Arguments),
    /// Make the base images of the tests and examples as OCI layouts, once
    Fixtures(fixtures::Arguments),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Conformance(arguments) => conformance::run(&arguments),
        Task::Fixtures(arguments) => fixtures::run(&arguments),
    }
}
