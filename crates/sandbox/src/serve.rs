//! The helper process: takes requests, makes steps, reports their end.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};

use crate::capabilities::Set;
use crate::cgroups::{Group, Hierarchies};
use crate::child::{self, Plan, Prepared, Report, StepNetwork};
use crate::dial;
use crate::enter;
use crate::error::{self, SandboxError, failed};
use crate::exit::{Exit, Status, Usage};
use crate::helper::{NetworkMode, Options};
use crate::machine::Machine;
use crate::mounts;
use crate::network::{Namespace, Pool};
use crate::oci;
use crate::resolve::{self, Stub};
use crate::runtime::Runtime;
use crate::seccomp::Filter;
use crate::spec::{Entered, Network, Overlay, Root, Source, Spec, Upper};
use crate::sys::{self, Cloned, WaitStatus};
use crate::wire::{self, Event, Request};
use crate::world;

/// Serves until the socket on standard input closes; returns the exit code.
///
/// `parent` is the process that started this one: when it is gone already there is nobody to serve.
pub(crate) fn serve(parent: u32) -> i32 {
    match Server::new(parent).and_then(|mut server| server.run()) {
        Ok(()) => 0,
        Err(error) => {
            // The builder sees the closed socket; this line says why, where a person may look.
            eprintln!("lapstrake: sandbox helper: {}", error::chain(&error));
            1
        }
    }
}

struct Server {
    socket: OwnedFd,
    /// This process, in names.
    pid: u32,
    machine: Machine,
    filter: Filter,
    network: NetworkMode,
    cgroup_parent: Option<String>,
    hierarchies: Hierarchies,
    /// Ready network namespaces, where the mode has any.
    pool: Option<Pool>,
    /// The helper alone holds the writing end: children see a hang-up when it dies.
    liveness: (OwnedFd, OwnedFd),
    steps: BTreeMap<u64, Step>,
}

struct Step {
    pid: Pid,
    pidfd: OwnedFd,
    report: OwnedFd,
    /// Where what was made for mounts lies: the upper directory or the plain root.
    tree: Option<OwnedFd>,
    /// What keeps the step's network served.
    network: Option<OwnedFd>,
    /// The step's network, to be connected to from outside; absent where it is of no such use.
    namespace: Option<OwnedFd>,
    host_network: bool,
    group: Option<Group>,
}

impl Server {
    fn new(parent: u32) -> Result<Server, SandboxError> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(failed("set the death signal"))?;
        let actual =
            rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
        if actual != Some(parent) {
            return Err(SandboxError::HelperGone);
        }
        sys::close_range(3, false).map_err(failed("close descriptors"))?;
        // Keys of the terminal are for the builder, which decides what becomes of its steps.
        rustix::process::setsid().map_err(failed("start a session"))?;
        // One keyring for all steps of a build: they must not see the user's, and one a step would use up
        // the user's quota. A kernel without keyrings has none to hide.
        let _ = sys::join_new_session_keyring();
        // When memory runs out the steps go before the builder. Where it may not be said, chance decides.
        let _ = std::fs::write("/proc/self/oom_score_adj", "100");
        let socket = take_socket().map_err(failed("take the socket"))?;
        let liveness = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(failed("make a pipe"))?;
        let filter = Filter::docker_default(Set::docker_default())?;
        let machine = Machine::examine()?;
        Ok(Server {
            socket,
            pid: std::process::id(),
            machine,
            filter,
            network: NetworkMode::Host,
            cgroup_parent: None,
            hierarchies: Hierarchies::default(),
            pool: None,
            liveness,
            steps: BTreeMap::new(),
        })
    }

    fn run(&mut self) -> Result<(), SandboxError> {
        loop {
            let ids: Vec<u64> = self.steps.keys().copied().collect();
            let mut polled = vec![PollFd::new(&self.socket, PollFlags::IN)];
            polled.extend(
                self.steps
                    .values()
                    .map(|step| PollFd::new(&step.pidfd, PollFlags::IN)),
            );
            match rustix::event::poll(&mut polled, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(SandboxError::io("wait for events", error)),
            }
            let ready: Vec<bool> = polled
                .iter()
                .map(|polled| !polled.revents().is_empty())
                .collect();
            drop(polled);
            let ended = ids
                .iter()
                .zip(&ready[1..])
                .filter(|(_, ready)| **ready)
                .map(|(id, _)| *id);
            for id in ended {
                self.finish(id)?;
            }
            if ready[0] {
                let received = wire::receive::<Request>(self.socket.as_fd())
                    .map_err(|error| SandboxError::io("receive a request", error))?;
                match received {
                    Some((request, fds)) => self.handle(request, fds)?,
                    None => return self.end_all(),
                }
            }
        }
    }

    fn handle(&mut self, request: Request, fds: Vec<OwnedFd>) -> Result<(), SandboxError> {
        match request {
            Request::Start { options } => self.start(&options),
            Request::Spawn {
                id,
                spec,
                sources,
                runtime,
            } => match self.spawn(id, &spec, fds, sources, runtime.as_ref()) {
                Ok(()) => Ok(()),
                Err(error) => self.send(&Event::Failed {
                    id,
                    failure: error::Failure::of(&error),
                }),
            },
            Request::Enter { id, step, entered } => match self.enter(id, step, &entered, fds) {
                Ok(()) => Ok(()),
                Err(error) => self.send(&Event::Failed {
                    id,
                    failure: error::Failure::of(&error),
                }),
            },
            Request::Dial { id, step } => match self.dial(id, step, fds) {
                Ok(()) => Ok(()),
                Err(error) => self.send(&Event::Failed {
                    id,
                    failure: error::Failure::of(&error),
                }),
            },
            Request::Signal { id, signal } => {
                if let (Some(step), Some(signal)) =
                    (self.steps.get(&id), Signal::from_named_raw(signal))
                {
                    // Init passes it on to the command. One that ended needs no signal.
                    let _ = rustix::process::pidfd_send_signal(&step.pidfd, signal);
                }
                Ok(())
            }
            Request::Kill { id } => {
                if let Some(step) = self.steps.get(&id) {
                    // Process 1 takes all others of its namespace along. One that ended needs no signal.
                    let _ = rustix::process::pidfd_send_signal(&step.pidfd, Signal::KILL);
                }
                Ok(())
            }
        }
    }

    fn send(&self, event: &Event) -> Result<(), SandboxError> {
        wire::send(self.socket.as_fd(), event, &[])
            .map_err(|error| SandboxError::io("report an event", error))
    }

    fn start(&mut self, options: &Options) -> Result<(), SandboxError> {
        self.cgroup_parent.clone_from(&options.cgroup_parent);
        if let Some(directory) = &options.stub_layer {
            world::fill_stub_layer(directory).map_err(|source| SandboxError::Path {
                action: "make the layer of mount points in",
                path: directory.clone(),
                source,
            })?;
            self.machine.stub_layer = Some(directory.clone());
        }
        let mut notes = self.machine.notes().to_vec();
        let candidates: &[NetworkMode] = match options.network {
            NetworkMode::Auto if self.machine.user_namespace => {
                &[NetworkMode::Pasta, NetworkMode::Slirp]
            }
            NetworkMode::Auto => &[NetworkMode::Bridge],
            NetworkMode::Host | NetworkMode::None => &[],
            NetworkMode::Bridge => &[NetworkMode::Bridge],
            NetworkMode::Pasta => &[NetworkMode::Pasta],
            NetworkMode::Slirp => &[NetworkMode::Slirp],
        };
        self.network = match options.network {
            NetworkMode::None => NetworkMode::None,
            _ => NetworkMode::Host,
        };
        let mut reasons = Vec::new();
        for mode in candidates {
            let own = [self.socket.as_fd(), self.liveness.1.as_fd()];
            match Pool::start(*mode, &own) {
                Ok(pool) => {
                    self.pool = Some(pool);
                    self.network = *mode;
                    break;
                }
                Err(error) => reasons.push(error::chain(&error)),
            }
        }
        if self.pool.is_none() && !candidates.is_empty() {
            notes.push(share_network(options, reasons)?);
        }
        self.send(&Event::Ready {
            network: self.network,
            notes,
        })?;
        // While the builder prepares its first step: this also removes the groups that killed builders left.
        self.hierarchies = Hierarchies::find(self.cgroup_parent.as_deref());
        Ok(())
    }

    fn spawn(
        &mut self,
        id: u64,
        spec: &Spec,
        fds: Vec<OwnedFd>,
        sources: usize,
        runtime: Option<&Runtime>,
    ) -> Result<(), SandboxError> {
        let mut fds = fds.into_iter();
        let stdio = [fds.next(), fds.next(), fds.next()];
        let [Some(stdin), Some(stdout), Some(stderr)] = stdio else {
            return Err(SandboxError::Protocol(
                "a step without standard streams".to_owned(),
            ));
        };
        let sources: Vec<OwnedFd> = fds.by_ref().take(sources).collect();
        let keep: Vec<OwnedFd> = fds.collect();
        let prepared = prepare_sources(spec, &sources)?;
        let console = if spec.terminal {
            mounts::bind(stdin.as_fd()).ok()
        } else {
            None
        };
        let tree = open_tree_of(&spec.root)?;
        let (report, report_writer) = report_pipe()?;
        let (network, lease) = self.network_for(spec.network)?;
        let host_network = matches!(network, StepNetwork::Host);
        let namespace = match &network {
            StepNetwork::Ready(namespace) => Some(namespace.try_clone()),
            StepNetwork::Host | StepNetwork::Loopback => None,
        };
        let namespace = namespace
            .transpose()
            .map_err(|error| SandboxError::io("copy a descriptor", error))?;
        let group = self.group_for(id, spec);
        let mut flags =
            libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        // A runtime makes its own of those, and enters the groups late.
        if group.is_none() && runtime.is_none() {
            flags |= libc::CLONE_NEWCGROUP;
        }
        if matches!(network, StepNetwork::Loopback) {
            flags |= libc::CLONE_NEWNET;
        }
        let unified = group
            .as_ref()
            .and_then(|group| group.unified.as_ref())
            .map(AsFd::as_fd);
        let start_in = unified.filter(|_| runtime.is_none());
        // SAFETY: the helper has one thread.
        match unsafe { sys::clone_process(flags, start_in) }.map_err(failed("clone the step"))? {
            Cloned::Child => {
                drop((report, tree, sources, lease, namespace));
                let groups = group.as_ref().map(|group| group.old.as_slice());
                let runtime = runtime.map(|runtime| oci::Chosen {
                    runtime,
                    id: format!("lapstrake-{}-{id}", self.pid),
                    unified,
                });
                self.run_child(Plan {
                    runtime,
                    spec,
                    prepared,
                    console,
                    stdio: [stdin, stdout, stderr],
                    keep,
                    report: report_writer,
                    liveness: self.liveness.0.as_fd(),
                    filter: Some(&self.filter),
                    machine: &self.machine,
                    network,
                    groups,
                })
            }
            Cloned::Parent { pid, pidfd } => {
                self.steps.insert(
                    id,
                    Step {
                        pid,
                        pidfd,
                        report,
                        tree,
                        network: lease,
                        namespace,
                        group,
                        host_network,
                    },
                );
                Ok(())
            }
        }
    }

    /// Starts a further command in the world of a step.
    fn enter(
        &mut self,
        id: u64,
        step: u64,
        entered: &Entered,
        fds: Vec<OwnedFd>,
    ) -> Result<(), SandboxError> {
        let target = self
            .steps
            .get(&step)
            .ok_or_else(|| SandboxError::Setup("the container is not running".to_owned()))?;
        let (target_fd, host_network) = (
            target
                .pidfd
                .try_clone()
                .map_err(|error| SandboxError::io("copy a descriptor", error))?,
            target.host_network,
        );
        let mut fds = fds.into_iter();
        let (Some(stdin), Some(stdout), Some(stderr)) = (fds.next(), fds.next(), fds.next()) else {
            return Err(SandboxError::Protocol(
                "a command without standard streams".to_owned(),
            ));
        };
        let keep: Vec<OwnedFd> = fds.collect();
        self.attend(id, host_network, |helper, report| {
            enter::run(enter::Plan {
                entered,
                step: target_fd.as_fd(),
                host_network,
                stdio: [stdin, stdout, stderr],
                keep,
                report,
                liveness: helper.liveness.0.as_fd(),
                filter: &helper.filter,
                groups_forbidden: helper.machine.groups_forbidden,
            })
        })
    }

    /// Starts a process that makes connections in the network of a step.
    fn dial(&mut self, id: u64, step: u64, fds: Vec<OwnedFd>) -> Result<(), SandboxError> {
        let target = self
            .steps
            .get(&step)
            .ok_or_else(|| SandboxError::Setup("the container is not running".to_owned()))?;
        let copied = target.namespace.as_ref().map(OwnedFd::try_clone);
        let namespace = copied
            .transpose()
            .map_err(|error| SandboxError::io("copy a descriptor", error))?;
        let host_network = target.host_network;
        if namespace.is_none() && !host_network {
            return Err(SandboxError::Setup(
                "the container has no network".to_owned(),
            ));
        }
        let Some(socket) = fds.into_iter().next() else {
            return Err(SandboxError::Protocol("no socket to answer on".to_owned()));
        };
        self.attend(id, host_network, |helper, report| {
            dial::run(dial::Plan {
                namespace,
                socket,
                report,
                liveness: helper.liveness.0.as_fd(),
            })
        })
    }

    /// Starts a process that belongs to a step and has nothing of its own to be given up. `run`
    /// ends the process itself and does not return.
    fn attend(
        &mut self,
        id: u64,
        host_network: bool,
        run: impl FnOnce(&Self, OwnedFd),
    ) -> Result<(), SandboxError> {
        let (report, report_writer) = report_pipe()?;
        // SAFETY: the helper has one thread.
        match unsafe { sys::clone_process(0, None) }
            .map_err(|error| SandboxError::io("clone a process", error))?
        {
            Cloned::Child => {
                drop(report);
                self.close_own();
                run(self, report_writer);
                std::process::abort()
            }
            Cloned::Parent { pid, pidfd } => {
                self.steps.insert(
                    id,
                    Step {
                        pid,
                        pidfd,
                        report,
                        tree: None,
                        network: None,
                        namespace: None,
                        group: None,
                        host_network,
                    },
                );
                Ok(())
            }
        }
    }

    /// Makes the control groups of a step that has limits, of its own or of those it is to be below.
    fn group_for(&self, id: u64, spec: &Spec) -> Option<Group> {
        if spec.limits.is_empty() && self.cgroup_parent.is_none() {
            return None;
        }
        Some(self.hierarchies.make(id, &spec.limits))
    }

    /// Finds the network of a step, and what must be kept as long as the step uses it.
    fn network_for(
        &mut self,
        wanted: Network,
    ) -> Result<(StepNetwork, Option<OwnedFd>), SandboxError> {
        match (wanted, &mut self.pool) {
            (Network::None, _) => Ok((StepNetwork::Loopback, None)),
            (Network::Default, Some(pool)) => {
                let Namespace { namespace, lease } = pool.take()?;
                Ok((StepNetwork::Ready(namespace), Some(lease)))
            }
            (Network::Default, None) if self.network == NetworkMode::None => {
                Ok((StepNetwork::Loopback, None))
            }
            (Network::Default | Network::Host, _) => Ok((StepNetwork::Host, None)),
        }
    }

    /// Goes on in a child: without what belongs to the helper alone, and to other steps.
    fn run_child(&self, plan: Plan<'_>) -> ! {
        self.close_own();
        child::run(plan)
    }

    fn close_own(&self) {
        let own = [self.socket.as_fd(), self.liveness.1.as_fd()];
        let others = self.steps.values().flat_map(|step| {
            [
                Some(&step.pidfd),
                Some(&step.report),
                step.tree.as_ref(),
                step.network.as_ref(),
                step.namespace.as_ref(),
            ]
        });
        let pool = self.pool.iter().flat_map(Pool::descriptors);
        for fd in own
            .into_iter()
            .chain(others.flatten().chain(pool).map(AsFd::as_fd))
        {
            // SAFETY: their owners are the copy of the helper's state in this process, which is never used
            // or dropped again: what runs in a child does not return.
            unsafe { rustix::io::close(std::os::fd::AsRawFd::as_raw_fd(&fd)) };
        }
    }

    /// Takes in a step whose init has ended, so that nothing of it is left, and reports.
    fn finish(&mut self, id: u64) -> Result<(), SandboxError> {
        let Some(step) = self.steps.remove(&id) else {
            return Ok(());
        };
        let event = match step.finish() {
            Ok(exit) => Event::Exited { id, exit },
            Err(error) => Event::Failed {
                id,
                failure: error::Failure::of(&error),
            },
        };
        self.send(&event)
    }

    fn end_all(&mut self) -> Result<(), SandboxError> {
        for step in self.steps.values() {
            let _ = rustix::process::pidfd_send_signal(&step.pidfd, Signal::KILL);
        }
        for step in std::mem::take(&mut self.steps).into_values() {
            // Nobody is left to hear how it ended.
            let _ = step.finish();
        }
        Ok(())
    }
}

impl Step {
    fn finish(self) -> Result<Exit, SandboxError> {
        let (_, init, usage) = sys::wait_child(Some(self.pid))
            .map_err(|error| SandboxError::io("wait for the step", error))?;
        let mut text = String::new();
        std::fs::File::from(self.report)
            .read_to_string(&mut text)
            .map_err(|error| SandboxError::io("read the report of the step", error))?;
        let mut ended = None;
        let mut not_started = None;
        let mut failed = None;
        let mut stubs: Vec<Stub> = Vec::new();
        for line in text.lines() {
            match serde_json::from_str(line)
                .map_err(|error| SandboxError::Protocol(error.to_string()))?
            {
                Report::Stubs(made) => stubs = made,
                Report::Failed(failure) => failed = Some(failure),
                Report::NotStarted { code, reason } => {
                    not_started = Some(Status::NotStarted { code, reason })
                }
                Report::Ended {
                    status,
                    peak_memory,
                } => ended = Some((status, peak_memory)),
            }
        }
        if let Some(tree) = &self.tree {
            resolve::remove_stubs(tree.as_fd(), &stubs);
        }
        let counts = self.group.as_ref().map(Group::counts).unwrap_or_default();
        if let Some(failure) = failed {
            return Err(failure.into_error());
        }
        let (status, peak_memory) = match (ended, init) {
            (Some(ended), _) => ended,
            // Init was killed, and all processes with it.
            (None, WaitStatus::Signal(signal)) => (Status::Signal(signal), 0),
            (None, WaitStatus::Code(code)) => {
                return Err(SandboxError::Setup(format!(
                    "the step's init ended with code {code}"
                )));
            }
        };
        Ok(Exit {
            status: not_started.unwrap_or(status),
            out_of_memory: counts.out_of_memory,
            usage: Usage {
                user: duration(usage.ru_utime),
                system: duration(usage.ru_stime),
                peak_memory: counts.peak_memory.unwrap_or(peak_memory),
                // Blocks of 512 bytes, whatever the device (getrusage(2)).
                read: u64::try_from(usage.ru_inblock).unwrap_or(0) * 512,
                written: u64::try_from(usage.ru_oublock).unwrap_or(0) * 512,
                unset_limits: self
                    .group
                    .as_ref()
                    .map(|group| group.unset.clone())
                    .unwrap_or_default(),
            },
        })
    }
}

/// Moves the socket away from standard input, where no child must find it.
fn take_socket() -> rustix::io::Result<OwnedFd> {
    // SAFETY: the builder starts the helper with the socket as standard input, which stays open.
    let stdin = unsafe { BorrowedFd::borrow_raw(0) };
    let socket = rustix::io::fcntl_dupfd_cloexec(stdin, 3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(socket)
}

/// The pipe by which the process of a step says how it ended.
fn report_pipe() -> Result<(OwnedFd, OwnedFd), SandboxError> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| SandboxError::io("make a pipe", error))
}

/// Opens the sources that only this mount namespace can open.
fn prepare_sources(
    spec: &Spec,
    sources: &[OwnedFd],
) -> Result<Vec<Option<Prepared>>, SandboxError> {
    let prepare = |source: &Source| -> io::Result<Option<Prepared>> {
        let Source::Descriptor { index, subpath } = source else {
            return Ok(None);
        };
        let fd = sources
            .get(*index)
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let place = world::beneath(fd.try_clone()?, subpath)?;
        let mount = match mounts::bind(place.as_fd()) {
            // A detached mount itself: kernels before 6.15 can't clone it, but it can be attached once.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => place,
            other => other?,
        };
        Ok(Some(Prepared { mount }))
    };
    let prepared = spec.mounts.iter().map(|mount| {
        prepare(&mount.source)
            .map_err(|error| world::source_error(&mount.source, &mount.target, error))
    });
    prepared.collect()
}

/// Opens where a root's changes lie.
fn open_tree_of(root: &Root) -> Result<Option<OwnedFd>, SandboxError> {
    let path = match root {
        Root::Directory(path) => path,
        Root::Overlay(Overlay {
            upper: Some(Upper { upper, .. }),
            ..
        }) => upper,
        Root::Overlay(Overlay { upper: None, .. }) => return Ok(None),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) => Err(SandboxError::Path {
            action: "open",
            path: path.clone(),
            source: error.into(),
        }),
    }
}

fn duration(time: libc::timeval) -> Duration {
    Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0))
        + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
}

/// Says why steps share the network of the builder, where that may be.
fn share_network(options: &Options, mut reasons: Vec<String>) -> Result<String, SandboxError> {
    reasons.dedup();
    let reasons = reasons.join("; ");
    match options.own_network {
        true => Err(SandboxError::Setup(format!(
            "steps would share the network of the builder, which is ruled out: {reasons}"
        ))),
        false => Ok(format!("steps share the network of the builder: {reasons}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_of_the_builder_is_no_last_resort_where_it_is_ruled_out() {
        let reasons = || vec!["no nft".to_owned(), "no nft".to_owned()];
        let shared = share_network(&Options::default(), reasons());
        let words = "steps share the network of the builder: no nft";
        assert_eq!(shared.expect("a note"), words);
        let options = Options {
            own_network: true,
            ..Options::default()
        };
        let refused = share_network(&options, reasons()).expect_err("a refusal");
        assert!(
            refused.to_string().contains("ruled out: no nft"),
            "{refused}"
        );
    }
}
