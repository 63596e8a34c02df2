//! `lapstrake debug`, and the shell that `lapstrake build --on-failure=shell` opens.

use std::io::IsTerminal;
use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};
use engine::StepState;
use engine::container::Streams;
use engine::history::{BuildRecord, History, StepOutcome, StepRecord};
use sandbox::Status;

use super::history::{record_of, step_of};
use super::run::end_with;
use crate::arguments::Global;
use crate::attach::{self, RawTerminal};
use crate::failure::{Failure, exit};
use crate::{settings, words};

/// What a build does when a RUN step has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnFailure {
    /// Open a shell in what the step left, then end as it would have
    Shell,
}

/// Open a shell, or run a command, in the files of a step of a recorded build
///
/// A step that failed is entered as it began, one that ended well as it left its files; with its variables, its
/// directory and its user. Its mounts and secrets are not there. What is changed is thrown away.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lapstrake debug                        the step the last build failed at, or its last one
  lapstrake debug ':RUN make'            a step of the last build, by a part of its instruction
  lapstrake debug ^1:12                  the step on line 12 of the Dockerfile, in the build before
  lapstrake debug --before :'builder 3'  a step as it began
  lapstrake debug 7dq2 -- ls -l /app     a command instead of a shell")]
pub(crate) struct Debug {
    /// Enter the files as they were before the step, also where it ended well
    #[arg(long)]
    before: bool,
    /// The build and the step: ID, the beginning of one, or ^N; a step as `lapstrake why` takes it
    #[arg(value_name = "BUILD[:STEP]")]
    wanted: Option<String>,
    /// Run this instead of a shell
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Debug {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let engine = settings::open_engine(global)?;
        let history = History::new(engine.store());
        let wanted = self.wanted.as_deref().unwrap_or_default();
        let (build, step) = match wanted.split_once(':') {
            Some((build, step)) => (build, Some(step)),
            None => (wanted, None),
        };
        let record = record_of(&history, Some(build)).map_err(exit::build)?;
        let step = match step {
            Some(step) => step_of(&record, step),
            None => default_step(&record),
        };
        let step = step.map_err(exit::build)?;
        let state = engine
            .state_of(&record, step, self.before)
            .map_err(exit::engine)?;
        let is_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let command = match self.command.as_slice() {
            [] => vec![state.shell().map_err(exit::engine)?],
            command => command.to_vec(),
        };
        if is_terminal && self.command.is_empty() {
            eprint!("{}", introduction(&state, &command));
        }
        let streams = attach::streams(true).map_err(exit::builder)?;
        let status = enter(&state, command, streams, is_terminal)?;
        end_with(&status)
    }
}

/// Returns the step somebody means who names none: the first that failed, else the last.
fn default_step(record: &BuildRecord) -> Result<&StepRecord> {
    let mut steps = record.steps.iter().filter(|step| step.is_instruction());
    let failed = steps
        .clone()
        .find(|step| step.outcome == StepOutcome::Failed);
    failed
        .or_else(|| steps.rfind(|step| step.outcome != StepOutcome::Skipped))
        .with_context(|| format!("the build {} has no step to look into", record.id))
}

/// Refuses `--on-failure=shell` where nobody could type.
pub(crate) fn require_terminal() -> Result<(), Failure> {
    match std::io::stdin().is_terminal() && std::io::stderr().is_terminal() {
        true => Ok(()),
        false => Err(exit::usage(anyhow!(
            "--on-failure=shell needs a terminal; without one, build and then look into the step with \
             lapstrake debug -- COMMAND"
        ))),
    }
}

/// Opens a shell in what a failed step has left, and returns when it ends.
pub(crate) fn after_failure(state: &StepState) {
    let opened = state.shell().map_err(exit::engine).and_then(|shell| {
        let command = vec![shell];
        eprint!("{}", introduction(state, &command));
        // Standard output is for what a script asked for.
        let copy = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map_err(exit::builder);
        let streams = Streams {
            stdin: Some(copy(std::io::stdin().as_fd())?),
            stdout: Some(copy(std::io::stderr().as_fd())?),
            stderr: None,
        };
        enter(state, command, streams, true)
    });
    if let Err(failure) = opened {
        eprintln!("no shell was opened");
        failure.show(None);
    }
}

fn enter(
    state: &StepState,
    command: Vec<String>,
    streams: Streams,
    terminal: bool,
) -> Result<Status, Failure> {
    let raw = RawTerminal::enter(terminal);
    let status = state.run(command, streams, terminal, |handle| {
        let terminal = handle.terminal().cloned();
        // Without, the command only misses what is sent to this process.
        let _ = attach::forward(terminal, move |signal| handle.signal(signal));
    });
    drop(raw);
    status.map_err(exit::engine)
}

fn introduction(state: &StepState, command: &[String]) -> String {
    let mut text = format!(
        "\n{} in the files of {}; changes are thrown away\n",
        command.join(" "),
        words::one_line(state.name())
    );
    if !state.command().is_empty() {
        let quoted: Vec<String> = state.command().iter().map(|word| quoted(word)).collect();
        let line = words::one_line(&quoted.join(" "));
        text.push_str(&format!("the step runs: {line}\n"));
    }
    if !state.missing_variables().is_empty() {
        let names = state.missing_variables().join(", ");
        text.push_str(&format!("not set, as their values are not kept: {names}\n"));
    }
    text
}

/// Writes a word as a shell reads it.
fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=:,@%+".contains(&byte);
    match !word.is_empty() && word.bytes().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}
