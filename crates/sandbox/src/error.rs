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
}

impl SandboxError {
    pub(crate) fn io(action: impl Into<String>, source: impl Into<io::Error>) -> SandboxError {
        SandboxError::Io {
            action: action.into(),
            source: source.into(),
        }
    }
}
