//! The `lapstrake` binary.
//!
//! *Responsibility*: arguments, terminals, errors in words, exit codes.
//!
//! *Not here*: building; it is the engine's.

mod annotations;
mod arguments;
mod attach;
mod build_cache;
mod build_request;
mod commands;
mod diagnostics;
mod engines;
mod failure;
mod glob;
mod output;
mod places;
mod screen;
mod settings;
mod signals;
mod summary;
mod table;
mod template;
mod words;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command};
use failure::{Failure, exit};

fn main() -> ExitCode {
    // Before anything else: a helper has one thread and no open files of ours.
    sandbox::entry::run_if_requested();
    let arguments = Arguments::parse();
    start_log();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.show();
            ExitCode::from(failure.code())
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let global = arguments.global;
    match arguments.command {
        Command::Build(build) => commands::build::run(&build, &global),
        Command::Check(check) => check.run(),
        Command::Graph(command) => command.run(),
        Command::Run(command) => command.run(&global),
        Command::Create(command) => command.run(&global),
        Command::Start(command) => command.run(&global),
        Command::Stop(command) => command.run(&global),
        Command::Kill(command) => command.run(&global),
        Command::Exec(command) => command.run(&global),
        Command::Logs(command) => command.run(&global),
        Command::Wait(command) => command.run(&global),
        Command::Cp(command) => command.run(&global),
        Command::Ps(command) => command.run(&global),
        Command::Rm(command) => command.run(&global),
        Command::Rename(command) => command.run(&global),
        Command::Container(command) => command.run(&global),
        Command::Images(images) => images
            .run(&settings::open_records(&global)?)
            .map_err(exit::usage),
        Command::Image(command) => command.run(&global),
        Command::Tag(command) => command.run(&global),
        Command::History(command) => command.run(&global),
        Command::Report(command) => command.run(&global),
        Command::Why(command) => command.run(&global),
        Command::Debug(command) => command.run(&global),
        Command::Plan(command) => command.run(&global),
        Command::Inspect(command) => command.run(&global),
        Command::Save(command) => command.run(&global),
        Command::Load(command) => command.run(&global),
        Command::Import(command) => command.run(&global),
        Command::Pull(command) => command.run(&global),
        Command::Push(command) => command.run(&global),
        Command::Registry(command) => command.run(&global),
        Command::Login(command) => command.run(&global),
        Command::Logout(command) => command.run(),
        Command::System(command) => command.run(&global),
        Command::Builder(command) => command.run(&global),
        Command::Cache(command) => command.run(&global),
        Command::Serve(command) => command.run(&global),
        Command::Info(command) => command.run(&global),
        Command::Version(command) => command.run(),
        Command::Rmi(remove) => remove
            .run(&settings::open_records(&global)?)
            .map_err(exit::build),
    }
}

/// Starts the log of diagnostics, if `LAPSTRAKE_LOG` asks for one.
fn start_log() {
    let Ok(filter) = std::env::var("LAPSTRAKE_LOG") else {
        return;
    };
    let filter = tracing_subscriber::EnvFilter::new(filter);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}
