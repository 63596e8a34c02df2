//! How a step ended.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The end of one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub status: Status,
    /// A process of the step was killed because its memory limit was reached.
    pub out_of_memory: bool,
    pub usage: Usage,
}

/// What the command's main process returned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    Code(i32),
    Signal(i32),
    /// The command could not be started: 127 (not found) or 126 (not executable), with words such as
    /// `exec: "foo": executable file not found in $PATH`.
    NotStarted {
        code: i32,
        reason: String,
    },
}

impl Status {
    /// Returns whether the command succeeded.
    pub fn success(&self) -> bool {
        *self == Status::Code(0)
    }

    /// Returns the exit code as a shell gives it: 128 and the signal's number for a signal.
    pub fn shell_code(&self) -> i32 {
        match self {
            Status::Code(code) | Status::NotStarted { code, .. } => *code,
            Status::Signal(signal) => 128 + signal,
        }
    }
}

/// What a step used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub user: Duration,
    pub system: Duration,
    /// Peak resident set of the largest process, or of the whole step where a control group tells.
    pub peak_memory: u64,
    /// Bytes read from and written to block devices.
    pub read: u64,
    pub written: u64,
    /// Limits that were asked for and could not be set, with the reason, in a fixed order.
    pub unset_limits: Vec<String>,
}
