//! Development tasks, run as `cargo xtask TASK`.

mod bench;
mod command;
mod conformance;
mod demo;
mod dist;
mod docs;
mod fixtures;
mod program;
mod soak;
mod test;
mod timeline;
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
    /// Measure what the program promises
    Bench(bench::Arguments),
    /// Hold what we answer against recorded answers of the reference implementation
    Conformance(conformance::Arguments),
    /// Build the two-program example in one stage and in many, and show the difference
    Demo(demo::Arguments),
    /// Make the packages: static program, archive, Debian package, checksums
    Dist(dist::Arguments),
    /// Write the pages that are made from the program
    Docs,
    /// Make the base images of the tests and examples as OCI layouts, once
    Fixtures(fixtures::Arguments),
    /// Install other builders in a root of their own, to be compared with
    Peers,
    /// Try the program for long: kills, edits
    Soak(soak::Arguments),
    /// Install and make everything the tests need, then run all tests
    Test,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Conformance(arguments) => conformance::run(&arguments),
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Dist(arguments) => dist::run(&arguments),
        Task::Docs => docs::run(),
        Task::Fixtures(arguments) => fixtures::run(&arguments),
        Task::Peers => bench::peers::make(),
        Task::Soak(arguments) => soak::run(&arguments),
        Task::Test => test::run(),
    }
}
