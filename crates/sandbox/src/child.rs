//! A step's first process: builds its world, starts the command, and is its init.
//!
//! It runs as a copy of the helper made by `clone3`, in new namespaces. It stays as process 1 and starts
//! the command as a child instead of becoming it: a command that is process 1 ignores signals it has no
//! handler for (`kill -9 $$` does nothing there), and inherits orphans it does not know to reap. So exit
//! codes and signals are those of an ordinary process. What the command leaves running is killed by the
//! kernel when init ends.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::mount::MountPropagationFlags;
use rustix::process::{DumpableBehavior, Pid, Signal};
use serde::{Deserialize, Serialize};

use crate::capabilities::Set;
use crate::command::{Command, StartError};
use crate::error::{self, SandboxError, failed};
use crate::exit::Status;
use crate::machine::Machine;
use crate::oci;
use crate::resolve::Stub;
use crate::seccomp::Filter;
use crate::signals;
use crate::spec::{Security, Spec};
use crate::sys::{self, Cloned, WaitStatus};
use crate::users::{self, Identity};
use crate::world::{self, World};

/// What init tells the helper, one JSON value a line.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// What was made in the root for mounts.
    Stubs(Vec<Stub>),
    /// The world could not be built.
    Failed(error::Failure),
    /// The command could not be started.
    NotStarted {
        code: i32,
        reason: String,
    },
    Ended {
        status: Status,
        peak_memory: u64,
    },
}

/// A mount source that the helper opened, since only it is in the mount namespace of the descriptor.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// A detached mount.
    pub(crate) mount: OwnedFd,
}

/// Everything the child needs, made before the clone.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) spec: &'a Spec,
    /// What starts the command in place of this process.
    pub(crate) runtime: Option<oci::Chosen<'a>>,
    /// One for each of the spec's mounts that names a descriptor.
    pub(crate) prepared: Vec<Option<Prepared>>,
    pub(crate) console: Option<OwnedFd>,
    pub(crate) stdio: [OwnedFd; 3],
    /// Closed when init ends, that is when all processes of the step are gone.
    pub(crate) keep: Vec<OwnedFd>,
    pub(crate) report: OwnedFd,
    /// Hangs up when the helper dies.
    pub(crate) liveness: BorrowedFd<'a>,
    pub(crate) filter: Option<&'a Filter>,
    pub(crate) machine: &'a Machine,
    pub(crate) network: StepNetwork,
    /// `cgroup.procs` of the old control groups that the step has, when it has groups of its own.
    pub(crate) groups: Option<&'a [OwnedFd]>,
}

/// The network of one step.
#[derive(Debug)]
pub(crate) enum StepNetwork {
    Host,
    /// A new namespace, made with the step; its loopback is still down.
    Loopback,
    /// A namespace that was made ready.
    Ready(OwnedFd),
}

/// Runs in the child; never returns.
pub(crate) fn run(plan: Plan<'_>) -> ! {
    signals::hold();
    let code = match start(plan) {
        Ok((command, report, keep, runtime)) => {
            // The standard streams and the mounts' descriptors are closed by now: their readers see the end
            // when the command's side ends. What is kept lives until this process does.
            let code = supervise(command, &report);
            if let Some(chosen) = &runtime {
                chosen.tidy();
            }
            drop(keep);
            code
        }
        Err((error, report)) => {
            send(&report, &Report::Failed(error::Failure::of(&error)));
            1
        }
    };
    sys::exit_now(code)
}

type Started<'a> = (Pid, OwnedFd, Vec<OwnedFd>, Option<oci::Chosen<'a>>);

fn start(plan: Plan<'_>) -> Result<Started<'_>, (SandboxError, OwnedFd)> {
    let Plan {
        spec,
        runtime,
        prepared,
        console,
        stdio,
        keep,
        report,
        liveness,
        filter,
        machine,
        network,
        groups,
    } = plan;
    let build = |report: &OwnedFd| -> Result<Pid, SandboxError> {
        isolate(spec, liveness, &network)?;
        let host_network = matches!(network, StepNetwork::Host);
        let world = World {
            spec,
            prepared,
            console,
            machine,
            host_network,
            by_runtime: runtime.is_some(),
        };
        if let Some(chosen) = &runtime {
            return chosen.start(world, &stdio, groups.unwrap_or_default(), report);
        }
        join_groups(groups)?;
        let (identity, cwd) = world.build(|stubs| send(report, &Report::Stubs(stubs)))?;
        let env = environment(&spec.env, &identity, world::open_root()?.as_fd())?;
        let insecure = spec.security == Security::Insecure;
        let command = Command {
            args: &spec.args,
            env,
            cwd,
            identity,
            stdio: &stdio,
            terminal: spec.terminal,
            rlimits: &spec.rlimits,
            capabilities: (!insecure).then(Set::docker_default),
            filter: if insecure { None } else { filter },
            groups_forbidden: machine.groups_forbidden,
        };
        fork_command(&command, report)
    };
    match build(&report) {
        Ok(pid) => Ok((pid, report, keep, runtime)),
        Err(error) => Err((error, report)),
    }
}

/// Cuts this process off from the helper and the host, mounts excepted.
fn isolate(
    spec: &Spec,
    liveness: BorrowedFd<'_>,
    network: &StepNetwork,
) -> Result<(), SandboxError> {
    die_with_helper(liveness)?;
    rustix::process::umask(rustix::fs::Mode::empty());
    rustix::system::sethostname(spec.hostname.as_bytes()).map_err(failed("set the host name"))?;
    match network {
        StepNetwork::Host => {}
        StepNetwork::Loopback => {
            sys::bring_loopback_up().map_err(failed("bring the loopback interface up"))?;
        }
        StepNetwork::Ready(namespace) => {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)
                .map_err(failed("enter the network namespace"))?;
        }
    }
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(failed("make the mounts private"))
}

/// Enters the old control groups; then what the step sees of control groups begins at its own.
fn join_groups(groups: Option<&[OwnedFd]>) -> Result<(), SandboxError> {
    let Some(groups) = groups else { return Ok(()) };
    for procs in groups {
        // 0 is the process that writes.
        rustix::io::write(procs, b"0").map_err(failed("enter the control group"))?;
    }
    sys::unshare(libc::CLONE_NEWCGROUP).map_err(failed("make a control group namespace"))
}

/// Sees to it that this process does not outlive the helper.
pub(crate) fn die_with_helper(liveness: BorrowedFd<'_>) -> Result<(), SandboxError> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(failed("set the death signal"))?;
    // The helper may have died before the signal was set; then its end of the pipe is closed.
    let mut poll = [rustix::event::PollFd::from_borrowed_fd(
        liveness,
        rustix::event::PollFlags::IN,
    )];
    let at_once = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    if rustix::event::poll(&mut poll, Some(&at_once)).map_err(failed("look after the helper"))? != 0
    {
        return Err(SandboxError::HelperGone);
    }
    Ok(())
}

pub(crate) fn environment(
    env: &[String],
    identity: &Identity,
    root: BorrowedFd<'_>,
) -> Result<Vec<String>, SandboxError> {
    let mut env = env.to_vec();
    if !env.iter().any(|variable| variable.starts_with("HOME=")) {
        env.push(format!("HOME={}", users::home(root, identity.uid)));
    }
    Ok(env)
}

/// Forks the command. Its memory is a copy of the helper's: from here on nobody may look into init.
pub(crate) fn fork_command(command: &Command<'_>, report: &OwnedFd) -> Result<Pid, SandboxError> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| SandboxError::io("protect init", error))?;
    signals::block();
    // SAFETY: this process is a clone of the single-threaded helper and started no thread.
    match unsafe { sys::clone_process(0, None) }
        .map_err(|error| SandboxError::io("fork the command", error))?
    {
        Cloned::Parent { pid, .. } => {
            signals::forward_to(pid);
            Ok(pid)
        }
        Cloned::Child => {
            let code = match command.execute() {
                StartError::Setup(error) => {
                    send(report, &Report::Failed(error::Failure::of(&error)));
                    1
                }
                StartError::Command { code, reason } => {
                    send(report, &Report::NotStarted { code, reason });
                    code
                }
            };
            sys::exit_now(code)
        }
    }
}

/// Reaps until the command ends and reports how it did; returns init's own exit code.
pub(crate) fn supervise(command: Pid, report: &OwnedFd) -> i32 {
    loop {
        match sys::wait_child(None) {
            Ok((pid, status, _)) if pid == command => {
                let status = match status {
                    WaitStatus::Code(code) => Status::Code(code),
                    WaitStatus::Signal(signal) => Status::Signal(signal),
                };
                send(
                    report,
                    &Report::Ended {
                        status,
                        peak_memory: sys::peak_memory_of_children(),
                    },
                );
                return 0;
            }
            Ok(_) => {}
            Err(_) => return 1,
        }
    }
}

pub(crate) fn send(report: &OwnedFd, message: &Report) {
    let Ok(mut line) = serde_json::to_vec(message) else {
        return;
    };
    line.push(b'\n');
    let Ok(copy) = report.try_clone() else { return };
    // When the helper is gone there is nobody to tell.
    let _ = std::fs::File::from(copy).write_all(&line);
}
