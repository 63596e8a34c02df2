//! `cargo xtask test`: everything the tests need, then all tests.

use std::time::Instant;

use anyhow::bail;
use clap::Parser;

use crate::bench::instructions;
use crate::command::run as run_command;
use crate::{conformance, fixtures, program, tools, workspace};

/// The task of conformance with its options as they are without any.
#[derive(Debug, Parser)]
struct Conformance {
    #[command(flatten)]
    arguments: conformance::Arguments,
}

/// Installs tools, makes the fixtures, runs the tests and, where the corpus is, conformance; counts instructions.
pub(crate) fn run() -> anyhow::Result<()> {
    let started = Instant::now();
    tools::ensure(tools::TESTS)?;
    fixtures::make(&[])?;
    println!(
        "fixtures are there after {:.0} s",
        started.elapsed().as_secs_f64()
    );

    // All run whatever the others say: one run tells all that is wrong.
    let mut tests = program::cargo();
    if tools::is_there("cargo-nextest") {
        tests.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
    } else {
        tests.args(["test", "--workspace", "--no-fail-fast"]);
    }
    let tested = run_command(tests.env("LAPSTRAKE_TEST_REQUIRED", "1"));
    let conformed = if workspace::root().join("../shared/conformance").is_dir() {
        conform()
    } else {
        println!("skipped: conformance (no ../shared/conformance beside the checkout)");
        Ok(())
    };
    let counted = instructions::check();
    println!("all in {:.0} s", started.elapsed().as_secs_f64());
    let failed: Vec<String> = [tested, conformed, counted]
        .into_iter()
        .filter_map(|part| Some(format!("{:#}", part.err()?)))
        .collect();
    match failed.as_slice() {
        [] => Ok(()),
        failed => bail!("{}", failed.join("; ")),
    }
}

/// Runs conformance with the program that the tests have been built with: no second build.
fn conform() -> anyhow::Result<()> {
    let program = program::tested()?;
    let words = [
        "conformance".as_ref(),
        "--builder".as_ref(),
        program.as_os_str(),
    ];
    conformance::run(&Conformance::parse_from(words).arguments)
}
