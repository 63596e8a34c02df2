//! The errors of the crate.

use std::io;
use std::path::PathBuf;

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

impl SandboxError {
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
