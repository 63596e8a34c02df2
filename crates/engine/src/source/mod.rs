//! Where content comes from.

pub(crate) mod dockerfile;
pub(crate) mod fetched;
pub(crate) mod git;
pub(crate) mod git_program;
pub(crate) mod http;
pub(crate) mod image;
pub(crate) mod layout;
pub(crate) mod local_client;
pub(crate) mod main_context;
mod missing;
pub(crate) mod pull;

use tempfile::TempDir;

use crate::EngineError;

/// A directory of this process alone, removed when it is dropped.
pub(crate) fn temporary(purpose: &str) -> Result<TempDir, EngineError> {
    tempfile::Builder::new()
        .prefix(&format!("lapstrake-{purpose}-"))
        .tempdir()
        .map_err(EngineError::io("create", "a temporary directory"))
}
