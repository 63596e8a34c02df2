//! Failures and the exit codes they mean.

use std::path::Path;

use engine::{Blame, BuildFailure, EngineError};

use crate::table::WrongFormat;
use crate::{diagnostics, log};

/// Why the program ends with another code than 0.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something with a code of its own.
    Plain { code: u8, error: anyhow::Error },
    /// A build failed.
    Build(BuildFailure),
    /// What there is to say was said.
    Said(u8),
}

/// Exit codes, and what they mean; `run` and `exec` end with their command's own.
pub(crate) const EXIT_CODES: [(&str, &str); 8] = [
    ("0", "It worked."),
    (
        "1",
        "The build failed, or what was asked for is not there. For `check`: there are findings.",
    ),
    (
        "2",
        "The command line, an option's value or the configuration is wrong.",
    ),
    (
        "3",
        "The builder itself failed: no space, no permission, a damaged store.",
    ),
    ("125", "`run` and `exec`: the container could not be made."),
    ("126", "`run` and `exec`: the command cannot be executed."),
    ("127", "`run` and `exec`: there is no such command."),
    ("130", "It was interrupted (Ctrl-C)."),
];

/// Exit codes: 0 built, 1 the build failed, 2 usage, 3 the builder failed, 130 interrupted.
pub(crate) mod exit {
    use super::Failure;

    pub(crate) fn build(error: anyhow::Error) -> Failure {
        Failure::Plain { code: 1, error }
    }

    pub(crate) fn build_error(error: impl Into<anyhow::Error>) -> Failure {
        build(error.into())
    }

    pub(crate) fn usage(error: anyhow::Error) -> Failure {
        Failure::Plain { code: 2, error }
    }

    /// The code that says whose failure it is.
    pub(crate) fn engine(error: engine::EngineError) -> Failure {
        let code = match error.blame() {
            engine::Blame::Build => 1,
            engine::Blame::Builder => 3,
            engine::Blame::Canceled => 130,
        };
        Failure::Plain {
            code,
            error: error.into(),
        }
    }

    pub(crate) fn builder(error: impl Into<anyhow::Error>) -> Failure {
        Failure::Plain {
            code: 3,
            error: error.into(),
        }
    }
}

impl Failure {
    pub(crate) fn code(&self) -> u8 {
        match self {
            // Whoever lists something says what becomes of a failure; a wrong format is the command line's.
            Failure::Plain { error, .. } if error.is::<WrongFormat>() => 2,
            Failure::Plain { code, .. } | Failure::Said(code) => *code,
            Failure::Build(failure) => match failure.blame() {
                Blame::Build => 1,
                Blame::Builder => 3,
                Blame::Canceled => 130,
            },
        }
    }

    /// Returns what went wrong, in one line.
    pub(crate) fn text(&self) -> String {
        match self {
            Failure::Said(code) => format!("code {code}"),
            Failure::Plain { error, .. } => engine::chain(error.as_ref()),
            Failure::Build(failure) => format!("{failure:?}"),
        }
    }

    /// Says on stderr what went wrong, where, and why.
    ///
    /// `root` is the state directory, where something was to be done there.
    pub(crate) fn show(&self, root: Option<&Path>) {
        match self {
            Failure::Said(_) => {}
            Failure::Plain { error, .. } => {
                let mut text = engine::chain(error.as_ref());
                let engine = error
                    .chain()
                    .find_map(|cause| cause.downcast_ref::<EngineError>());
                let help = engine.and_then(|error| {
                    let for_room = || engine::room_help(error, root?);
                    engine::resolve_help(error).or_else(for_room)
                });
                if let Some(help) = help {
                    text.push_str("\n  help: ");
                    text.push_str(&help);
                }
                log::error(&text);
            }
            Failure::Build(failure) => diagnostics::show_failure(failure),
        }
    }
}
