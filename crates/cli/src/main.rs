//! The `lapstrake` binary.
//!
//! *Responsibility*: arguments, terminals, errors in words, exit codes.
//!
//! *Not here*: building; it is the engine's.

// The docs of arguments are their help, where brackets stand for what may be left out.
#![allow(rustdoc::broken_intra_doc_links)]

mod annotations;
mod arguments;
mod attach;
mod build_attestations;
mod build_cache;
mod build_outputs;
mod build_request;
mod command_line;
mod commands;
mod configuration;
mod configuration_page;
mod diagnostics;
mod engines;
mod examples;
mod failure;
mod glob;
mod log;
mod output;
mod places;
mod screen;
mod settings;
mod signals;
mod summary;
mod table;
mod telemetry;
mod template;
mod unified;
mod words;

use std::process::ExitCode;

use arguments::{Arguments, Command};
use failure::{Failure, exit};

fn main() -> ExitCode {
    // Before anything else: a helper has one thread and no open files of ours.
    sandbox::entry::run_if_requested();
    let arguments = match command_line::read(std::env::args_os().collect()) {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    log::start(&arguments.global);
    let root = places::root(&arguments.global).ok();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.show(root.as_deref());
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
        Command::Port(command) => command.run(&global),
        Command::Export(command) => command.run(&global),
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
        Command::Doctor(command) => command.run(&global),
        Command::Explain(command) => command.run(),
        Command::Version(command) => command.run(),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
        Command::Reference(command) => command.run(),
        Command::Rmi(remove) => remove.run(&settings::open_records(&global)?),
    }
}

/// Says what is wrong with the command line; or shows the help that was asked for.
fn refuse(error: &clap::Error) -> ExitCode {
    // The arguments could not be read; what follows a lone -- belongs to another program.
    let words: Vec<_> = std::env::args_os()
        .take_while(|word| word != "--")
        .collect();
    let wants_json = std::env::var_os("LAPSTRAKE_LOG_FORMAT").is_some_and(|value| value == "json")
        || words.iter().any(|word| word == "--log-format=json")
        || words
            .windows(2)
            .any(|pair| pair == ["--log-format", "json"]);
    if error.use_stderr() && wants_json {
        let text = error.render().to_string();
        let message = text.trim_start_matches("error: ").trim_end();
        log::line(&serde_json::json!({"level": "error", "code": "usage", "message": message}));
    } else {
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}
