//! The builder's side: starts the helper process and follows the steps it runs.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio as ProcessStdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;

use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};

use crate::dial::Dialer;
use crate::entry;
use crate::error::{Failure, SandboxError};
use crate::exit::Exit;
use crate::open_files;
use crate::runtime::Runtime;
use crate::spec::{Entered, Spec};
use crate::wire::{self, Event, Request};

/// How the helper is to run its steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// What [`crate::Network::Default`] means.
    pub network: NetworkMode,
    /// Whether to fail where [`Options::network`] cannot be had, instead of having steps share the builder's network.
    pub own_network: bool,
    /// The control group below which limited steps get theirs; the builder's own when absent.
    pub cgroup_parent: Option<String>,
    /// A directory on the file system of the layers, empty or filled by an earlier builder: the helper makes
    /// the places in it that every step mounts over, and lays it under all layers. So a step over an image
    /// that lacks them changes nothing in its upper directory for them.
    pub stub_layer: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            network: NetworkMode::Auto,
            own_network: false,
            cgroup_parent: None,
            stub_layer: None,
        }
    }
}

/// The network of steps that ask for no special one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NetworkMode {
    /// The best of the others that can be had.
    Auto,
    /// A network namespace of its own behind a bridge with masquerading (root only).
    Bridge,
    /// A network namespace of its own with `pasta` in user space.
    Pasta,
    /// A network namespace of its own with `slirp4netns` in user space.
    Slirp,
    /// The builder's own network.
    Host,
    /// Loopback only.
    None,
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            NetworkMode::Auto => "auto",
            NetworkMode::Bridge => "bridge",
            NetworkMode::Pasta => "pasta",
            NetworkMode::Slirp => "slirp4netns",
            NetworkMode::Host => "host",
            NetworkMode::None => "none",
        })
    }
}

/// The standard streams of a step. `/dev/null` where absent.
#[derive(Debug, Default)]
pub struct Stdio {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// The helper process of one build: single-threaded, so that it may clone safely.
///
/// It dies with the thread that this value owns, and when its socket closes; all steps die with it.
/// Dropping it ends every step and waits until the helper is gone.
pub struct Helper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    network: NetworkMode,
    notes: Vec<String>,
}

impl Helper {
    /// Starts `/proc/self/exe` as the helper. Its `main` must call [`crate::entry::run_if_requested`] first.
    pub fn start(options: &Options) -> Result<Helper, SandboxError> {
        let (ours, theirs) = socket_pair()?;
        let shared = Arc::new(Shared {
            socket: ours,
            sending: Mutex::new(()),
            steps: Mutex::new(Steps {
                next: 0,
                running: BTreeMap::new(),
                gone: false,
            }),
        });
        let (started, ready) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("sandbox-helper".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || follow(&shared, theirs, &started)
            })
            .map_err(|error| SandboxError::io("start the helper's thread", error))?;
        let mut helper = Helper {
            shared,
            thread: Some(thread),
            network: NetworkMode::Host,
            notes: Vec::new(),
        };
        helper.shared.send(
            &Request::Start {
                options: options.clone(),
            },
            &[],
        )?;
        (helper.network, helper.notes) = ready.recv().map_err(|_| SandboxError::HelperGone)??;
        Ok(helper)
    }

    /// Returns the network that steps with [`crate::Network::Default`] get.
    pub fn network(&self) -> NetworkMode {
        self.network
    }

    /// Returns what could not be had, in words for the user.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Starts a step.
    ///
    /// `sources` are the descriptors that [`crate::Source::Descriptor`] names by index. `keep` stay open as
    /// long as any process of the step may live: locks on what it uses. The command itself never sees them.
    pub fn spawn(
        &self,
        spec: &Spec,
        stdio: Stdio,
        sources: Vec<OwnedFd>,
        keep: Vec<OwnedFd>,
    ) -> Result<Running, SandboxError> {
        self.spawn_with(spec, stdio, sources, keep, None)
    }

    /// Starts a step, which a runtime runs where there is one.
    pub(crate) fn spawn_with(
        &self,
        spec: &Spec,
        stdio: Stdio,
        sources: Vec<OwnedFd>,
        keep: Vec<OwnedFd>,
        runtime: Option<&Runtime>,
    ) -> Result<Running, SandboxError> {
        let null = match &stdio {
            Stdio {
                stdin: Some(_),
                stdout: Some(_),
                stderr: Some(_),
            } => None,
            _ => Some(open_null()?),
        };
        let stream = |fd: &Option<OwnedFd>| fd.as_ref().or(null.as_ref()).map(|fd| fd.try_clone());
        let mut fds = Vec::with_capacity(3 + sources.len() + keep.len());
        for fd in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
            let fd = stream(fd)
                .transpose()
                .map_err(|error| SandboxError::io("copy a descriptor", error))?;
            fds.extend(fd);
        }
        let count = sources.len();
        fds.extend(sources);
        fds.extend(keep);
        if fds.len() > wire::MAX_DESCRIPTORS {
            return Err(SandboxError::Setup(format!(
                "too many descriptors for one step: {}",
                fds.len()
            )));
        }
        let running = self.register()?;
        let id = running.id;
        let request = Request::Spawn {
            id,
            spec: Box::new(spec.clone()),
            sources: count,
            runtime: runtime.cloned(),
        };
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        self.shared.send(&request, &borrowed)?;
        Ok(running)
    }

    /// Starts a further command in the world of a step that runs. It ends with the step at the latest.
    pub fn enter(
        &self,
        step: &Running,
        entered: &Entered,
        stdio: Stdio,
        keep: Vec<OwnedFd>,
    ) -> Result<Running, SandboxError> {
        let null = open_null()?;
        let mut fds = Vec::with_capacity(3 + keep.len());
        for fd in [stdio.stdin, stdio.stdout, stdio.stderr] {
            let fd = match fd {
                Some(fd) => fd,
                None => null
                    .try_clone()
                    .map_err(|error| SandboxError::io("copy a descriptor", error))?,
            };
            fds.push(fd);
        }
        fds.extend(keep);
        let running = self.register()?;
        let id = running.id;
        let request = Request::Enter {
            id,
            step: step.id,
            entered: Box::new(entered.clone()),
        };
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        self.shared.send(&request, &borrowed)?;
        Ok(running)
    }

    /// Makes a way into the network of a step that runs.
    pub fn dialer(&self, step: &Running) -> Result<Dialer, SandboxError> {
        let (ours, theirs) = socket_pair()?;
        let running = self.register()?;
        let id = running.id;
        let request = Request::Dial { id, step: step.id };
        self.shared.send(&request, &[theirs.as_fd()])?;
        Ok(Dialer::new(ours, running))
    }

    /// Makes a place for a process that the helper is about to be asked for.
    fn register(&self) -> Result<Running, SandboxError> {
        let (id, slot) = self.shared.register()?;
        Ok(Running {
            id,
            slot,
            shared: Arc::clone(&self.shared),
        })
    }
}

fn socket_pair() -> Result<(OwnedFd, OwnedFd), SandboxError> {
    socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| SandboxError::io("make a socket pair", error))
}

impl fmt::Debug for Helper {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Helper")
            .field("network", &self.network)
            .finish_non_exhaustive()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // The helper reads the end of its socket, kills its steps and exits; the thread then reaps it.
        let _ = rustix::net::shutdown(&self.shared.socket, Shutdown::Write);
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

/// A step that was started. Dropping it before its end kills the step.
pub struct Running {
    id: u64,
    slot: Arc<Slot>,
    shared: Arc<Shared>,
}

impl Running {
    /// Waits for the end of the step: every process of it is gone then, and its mounts with them.
    pub fn wait(&self) -> Result<Exit, SandboxError> {
        let mut state = lock(&self.slot.state);
        loop {
            match &*state {
                SlotState::Ended(end) => return end.to_result(),
                SlotState::Running { .. } => {
                    state = self
                        .slot
                        .ended
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Calls `callback` at the end of the step, on the helper's thread (at once, on this thread, when the
    /// step has ended already). A later callback replaces an earlier one. It must not block.
    pub fn on_exit(&self, callback: impl FnOnce(Result<Exit, SandboxError>) + Send + 'static) {
        let mut state = lock(&self.slot.state);
        match &mut *state {
            SlotState::Running { callback: waiting } => *waiting = Some(Box::new(callback)),
            SlotState::Ended(end) => {
                let result = end.to_result();
                drop(state);
                callback(result);
            }
        }
    }

    /// Sends a signal to the command, by its number; one that is not known does nothing.
    pub fn signal(&self, signal: i32) {
        // A helper that is gone has taken the step with it.
        let _ = self.shared.send(
            &Request::Signal {
                id: self.id,
                signal,
            },
            &[],
        );
    }

    /// Kills every process of the step. Its end is reported as usual.
    pub fn kill(&self) {
        // A helper that is gone has taken the step with it.
        let _ = self.shared.send(&Request::Kill { id: self.id }, &[]);
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Running")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let running = matches!(*lock(&self.slot.state), SlotState::Running { .. });
        if running {
            self.kill();
        }
    }
}

type Callback = Box<dyn FnOnce(Result<Exit, SandboxError>) + Send>;

struct Shared {
    socket: OwnedFd,
    sending: Mutex<()>,
    steps: Mutex<Steps>,
}

struct Steps {
    next: u64,
    running: BTreeMap<u64, Arc<Slot>>,
    gone: bool,
}

struct Slot {
    state: Mutex<SlotState>,
    ended: Condvar,
}

enum SlotState {
    Running { callback: Option<Callback> },
    Ended(End),
}

#[derive(Clone)]
enum End {
    Exited(Exit),
    Failed(Failure),
    HelperGone,
}

impl End {
    fn to_result(&self) -> Result<Exit, SandboxError> {
        match self.clone() {
            End::Exited(exit) => Ok(exit),
            End::Failed(failure) => Err(failure.into_error()),
            End::HelperGone => Err(SandboxError::HelperGone),
        }
    }
}

impl Shared {
    fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), SandboxError> {
        let _sending = lock(&self.sending);
        wire::send(self.socket.as_fd(), request, fds).map_err(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => SandboxError::HelperGone,
            _ => SandboxError::io("talk to the sandbox helper", error),
        })
    }

    fn register(&self) -> Result<(u64, Arc<Slot>), SandboxError> {
        let mut steps = lock(&self.steps);
        if steps.gone {
            return Err(SandboxError::HelperGone);
        }
        let id = steps.next;
        steps.next += 1;
        let slot = Arc::new(Slot {
            state: Mutex::new(SlotState::Running { callback: None }),
            ended: Condvar::new(),
        });
        steps.running.insert(id, Arc::clone(&slot));
        Ok((id, slot))
    }

    fn end(&self, id: u64, end: &End) {
        let slot = lock(&self.steps).running.remove(&id);
        if let Some(slot) = slot {
            slot.end(end);
        }
    }

    fn end_all(&self) {
        let running = {
            let mut steps = lock(&self.steps);
            steps.gone = true;
            std::mem::take(&mut steps.running)
        };
        for slot in running.values() {
            slot.end(&End::HelperGone);
        }
    }
}

impl Slot {
    fn end(&self, end: &End) {
        let before = std::mem::replace(&mut *lock(&self.state), SlotState::Ended(end.clone()));
        self.ended.notify_all();
        if let SlotState::Running {
            callback: Some(callback),
        } = before
        {
            callback(end.to_result());
        }
    }
}

type Started = mpsc::SyncSender<Result<(NetworkMode, Vec<String>), SandboxError>>;

/// The helper's thread: its parent for the kernel, and the reader of its events.
///
/// The helper's parent-death signal follows this thread, which lives until the helper has ended.
fn follow(shared: &Shared, theirs: OwnedFd, started: &Started) {
    let child = Command::new("/proc/self/exe")
        .arg0(entry::HELPER_NAME)
        .arg(std::process::id().to_string())
        .env_clear()
        .current_dir("/")
        .stdin(ProcessStdio::from(theirs))
        .stdout(ProcessStdio::null())
        .stderr(ProcessStdio::inherit())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            shared.end_all();
            let action = match std::path::Path::new("/dev/null").exists() {
                true => "start the sandbox helper",
                false => "start the sandbox helper without a /dev/null",
            };
            let _ = started.send(Err(SandboxError::io(action, error)));
            return;
        }
    };
    open_files::lower_again(child.id());
    while let Ok(Some((event, _))) = wire::receive::<Event>(shared.socket.as_fd()) {
        match event {
            Event::Ready { network, notes } => {
                let _ = started.try_send(Ok((network, notes)));
            }
            Event::Exited { id, exit } => shared.end(id, &End::Exited(exit)),
            Event::Failed { id, failure } => shared.end(id, &End::Failed(failure)),
        }
    }
    let _ = started.try_send(Err(SandboxError::HelperGone));
    let _ = child.kill();
    let _ = child.wait();
    shared.end_all();
}

fn open_null() -> Result<OwnedFd, SandboxError> {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| SandboxError::io("open /dev/null", error))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
