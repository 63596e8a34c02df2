//! A further command in the world of a step that runs: `exec`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::thread::ThreadNameSpaceType;

use crate::capabilities::Set;
use crate::child::{self, Report};
use crate::command::Command;
use crate::error::{self, SandboxError, failed};
use crate::seccomp::Filter;
use crate::spec::{Entered, Security, User};
use crate::users::{self, Identity};
use crate::{signals, sys, world};

/// Everything the child needs, made before the clone.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) entered: &'a Entered,
    /// The init of the step that is entered.
    pub(crate) step: BorrowedFd<'a>,
    /// The step shares the network of the builder.
    pub(crate) host_network: bool,
    pub(crate) stdio: [OwnedFd; 3],
    pub(crate) keep: Vec<OwnedFd>,
    pub(crate) report: OwnedFd,
    /// Hangs up when the helper dies.
    pub(crate) liveness: BorrowedFd<'a>,
    pub(crate) filter: &'a Filter,
    pub(crate) groups_forbidden: bool,
}

/// Runs in the child; never returns.
pub(crate) fn run(plan: Plan<'_>) -> ! {
    signals::hold();
    let started = start(&plan);
    let Plan {
        stdio,
        keep,
        report,
        ..
    } = plan;
    let code = match started {
        Ok(command) => {
            drop(stdio);
            let code = child::supervise(command, &report);
            drop(keep);
            code
        }
        Err(error) => {
            child::send(&report, &Report::Failed(error::Failure::of(&error)));
            1
        }
    };
    sys::exit_now(code)
}

fn start(plan: &Plan<'_>) -> Result<rustix::process::Pid, SandboxError> {
    let entered = plan.entered;
    child::die_with_helper(plan.liveness)?;
    rustix::process::umask(rustix::fs::Mode::empty());
    let mut spaces = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::PROCESS_ID;
    if !plan.host_network {
        spaces |= ThreadNameSpaceType::NETWORK;
    }
    // Entering a mount namespace also takes its root as root and working directory.
    rustix::thread::move_into_thread_name_spaces(plan.step, spaces)
        .map_err(failed("enter the namespaces of the container"))?;
    let root = world::open_root()?;
    let identity = match &entered.user {
        User::Named(name) => users::resolve_user(root.as_fd(), name)?,
        User::Ids { uid, gid, groups } => Identity {
            uid: *uid,
            gid: *gid,
            groups: groups.clone(),
        },
    };
    let cwd = world::working_directory(root.as_fd(), &entered.cwd)?;
    let env = child::environment(&entered.env, &identity, root.as_fd())?;
    let insecure = entered.security == Security::Insecure;
    let command = Command {
        args: &entered.args,
        env,
        cwd,
        identity,
        stdio: &plan.stdio,
        terminal: entered.terminal,
        rlimits: &[],
        capabilities: (!insecure).then(Set::docker_default),
        filter: (!insecure).then_some(plan.filter),
        groups_forbidden: plan.groups_forbidden,
    };
    child::fork_command(&command, &plan.report)
}
