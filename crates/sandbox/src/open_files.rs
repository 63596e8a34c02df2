//! How many files the builder may have open: one for each layer in use, far more than what is usual for a program.

use std::sync::OnceLock;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// What the limit was before it was raised.
static USUAL: OnceLock<Rlimit> = OnceLock::new();

/// Raises the limit of this process as far as it may be. Commands get the usual one: many programs go through all the
/// numbers they may have.
pub fn raise_open_files() {
    let usual = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: usual.maximum,
        ..usual
    };
    if USUAL.set(usual).is_ok()
        && let Err(errno) = setrlimit(Resource::Nofile, raised)
    {
        tracing::debug!(%errno, "the limit of open files stays as it is");
    }
}

/// Gives a child process the limit that was usual.
pub(crate) fn lower_again(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let (Some(usual), Some(pid)) = (USUAL.get(), pid)
        && let Err(errno) = prlimit(Some(pid), Resource::Nofile, *usual)
    {
        tracing::debug!(%errno, "commands get the builder's limit of open files");
    }
}
