//! Development tasks, run as `cargo xtask TASK`.

use clap::{Parser, Subcommand};

/// Development tasks of lapstrake.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {}
}
