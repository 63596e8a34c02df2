//! The errors of the crate.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Why a sandbox could not be made or used. A command that ran and failed is no error.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("failed to {action}")]
    Io { action: String, source: io::Error },
    #[error("failed to {action} {}", path.display())]
    Path {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// Setting up the step failed before its command was started. The words come from the step's own process.
    #[error("{0}")]
    Setup(String),
    /// What the step asks for does not fit the files it runs in: no failure of the sandbox.
    #[error("{}", .0.reason)]
    Unfit(Unfit),
    #[error("unable to find {kind} {name}: {reason}")]
    UnknownUser {
        kind: &'static str,
        name: String,
        reason: &'static str,
    },
    #[error("the sandbox helper ended unexpectedly")]
    HelperGone,
    #[error("malformed message of the sandbox helper: {0}")]
    Protocol(String),
    #[error("{0}")]
    Isolation(String),
    /// An OCI runtime can't be used, or not for this.
    #[error("the runtime {name}: {reason}")]
    Runtime { name: String, reason: String },
}

/// Why a step cannot run in its files, and what its author can do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfit {
    pub reason: String,
    pub help: Option<String>,
    /// The user or group that was meant.
    pub user: Option<String>,
}

/// What the builder hears of a step that could not be set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    reason: String,
    unfit: Option<Unfit>,
}

impl Failure {
    pub(crate) fn of(error: &SandboxError) -> Self {
        Self {
            reason: chain(error),
            unfit: error.unfit(),
        }
    }

    pub(crate) fn into_error(self) -> SandboxError {
        match self.unfit {
            Some(unfit) => SandboxError::Unfit(unfit),
            None => SandboxError::Setup(self.reason),
        }
    }
}

impl SandboxError {
    /// Returns what is wrong with the step, where it is the step and not the sandbox.
    pub fn unfit(&self) -> Option<Unfit> {
        match self {
            SandboxError::Unfit(unfit) => Some(unfit.clone()),
            SandboxError::UnknownUser {
                kind,
                name,
                reason: _,
            } => Some(Unfit {
                reason: self.to_string(),
                help: match name.bytes().all(|byte| byte.is_ascii_digit()) {
                    true => None,
                    false => Some(format!(
                        "make the {kind} in an earlier step, or name it by its number, which needs no entry"
                    )),
                },
                user: Some(name.clone()),
            }),
            _ => None,
        }
    }

    /// Returns the error of doing something at a place that the step has named: the step's, where what lies there is in
    /// the way.
    pub(crate) fn at_place(action: String, error: io::Error, help: &str) -> SandboxError {
        let reason = match (error.raw_os_error(), error.kind()) {
            (Some(libc::ENOENT), _) => "no such file or directory",
            (Some(libc::ENOTDIR), _) | (None, io::ErrorKind::NotADirectory) => "not a directory",
            (Some(libc::EISDIR), _) => "is a directory",
            (Some(libc::ELOOP), _) => "too many levels of symbolic links",
            (Some(libc::ENAMETOOLONG), _) => "the name is too long",
            // Of the kernel, where a directory is mounted on a file or a file on a directory.
            (Some(libc::EINVAL), _) => "one is a directory, the other is not",
            _ => return SandboxError::io(action, error),
        };
        SandboxError::Unfit(Unfit {
            reason: format!("failed to {action}: {reason}"),
            help: Some(help.to_owned()),
            user: None,
        })
    }

    pub(crate) fn io(action: impl Into<String>, source: impl Into<io::Error>) -> SandboxError {
        SandboxError::Io {
            action: action.into(),
            source: source.into(),
        }
    }
}

/// Returns what turns a system error into one that says what failed.
pub(crate) fn failed<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> SandboxError {
    move |error| SandboxError::io(action, error)
}

/// Returns the system's words for an error number, in lower case, as Go prints them.
pub(crate) fn errno_text(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_lowercase().chain(letters).collect())
        .unwrap_or_default()
}

/// Returns an error with all its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
