//! The control socket of a container that runs: signals, and further commands in it.
//!
//! One message is one packet of JSON; the streams of a command travel beside it. A connection ends
//! when the container has ended.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use sandbox::{Helper, Running, Stdio};
use serde::{Deserialize, Serialize};
use store::Store;

use crate::{Engine, EngineError};

/// A command and its environment fit; the kernel refuses longer packets anyway.
const MAX_MESSAGE: usize = 128 << 10;

#[derive(Serialize, Deserialize)]
enum Request {
    /// To the container's command, or to the command that this connection has started.
    Signal(i32),
    /// With three descriptors.
    Exec(sandbox::Entered),
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Ended(sandbox::Exit),
    Failed(String),
}

/// A connection to the process that runs a container.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
}

/// A further command in a container.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    pub command: Vec<String>,
    /// `NAME=VALUE`, over the container's.
    pub env: Vec<String>,
    pub user: Option<String>,
    pub working_dir: Option<String>,
    pub tty: bool,
    pub privileged: bool,
}

impl Control {
    /// Connects to a container; `None` if it does not run.
    pub fn connect(store: &Store, id: &str) -> Result<Option<Self>, EngineError> {
        let folder = store.container_folder(id);
        let Ok(address) = Address::of(&folder) else {
            return Ok(None);
        };
        let socket = socket()?;
        match rustix::net::connect(&socket, &address.name) {
            Ok(()) => Ok(Some(Self { socket })),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => Ok(None),
            Err(errno) => Err(EngineError::io("connect to", folder.join(NAME))(
                errno.into(),
            )),
        }
    }

    /// Sends a signal to the command.
    pub fn signal(&self, signal: i32) -> Result<(), EngineError> {
        match send(self.socket.as_fd(), &Request::Signal(signal), &[]) {
            // It has ended: nobody is left to be told.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            result => result.map_err(EngineError::io("write to", "the control socket")),
        }
    }

    /// Waits for the end of the container; returns whether it came in time.
    pub fn wait(&self, timeout: Duration) -> Result<bool, EngineError> {
        let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
        let timeout = rustix::event::Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        loop {
            match rustix::event::poll(&mut polled, Some(&timeout)) {
                Ok(count) => return Ok(count > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    return Err(EngineError::io("wait for", "a container")(errno.into()));
                }
            }
        }
    }

    /// Starts a further command; [`Control::finish`] waits for its end.
    pub fn exec(
        &self,
        entered: &sandbox::Entered,
        streams: [BorrowedFd<'_>; 3],
    ) -> Result<(), EngineError> {
        send(
            self.socket.as_fd(),
            &Request::Exec(entered.clone()),
            &streams,
        )
        .map_err(EngineError::io("write to", "the control socket"))
    }

    /// Waits for the end of the command that was started.
    pub fn finish(&self) -> Result<sandbox::Status, EngineError> {
        let received = receive(self.socket.as_fd())
            .map_err(EngineError::io("read from", "the control socket"))?;
        match received {
            Some((Answer::Ended(exit), _)) => Ok(exit.status),
            Some((Answer::Failed(reason), _)) => Err(EngineError::Request(reason)),
            // The container ended, and all its commands with it.
            None => Ok(sandbox::Status::Signal(9)),
        }
    }
}

/// Listens for requests as long as it exists.
pub(super) struct Listener {
    socket: Arc<OwnedFd>,
    path: std::path::PathBuf,
}

impl Listener {
    /// Makes the socket and a thread that answers on it.
    pub(super) fn start(
        engine: &Engine,
        folder: &Path,
        running: &Arc<Running>,
    ) -> Result<Self, EngineError> {
        let path = folder.join(NAME);
        let failed = |errno: rustix::io::Errno| EngineError::io("listen on", &path)(errno.into());
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(EngineError::io("remove", &path)(error));
            }
            _ => {}
        }
        let address = Address::of(folder).map_err(EngineError::io("open", folder))?;
        let socket = Arc::new(socket()?);
        rustix::net::bind(&*socket, &address.name).map_err(failed)?;
        rustix::net::listen(&*socket, 16).map_err(failed)?;
        let listener = Self {
            socket: Arc::clone(&socket),
            path,
        };
        let engine = engine.clone();
        let running = Arc::downgrade(running);
        std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                // Ends when the socket is shut down.
                while let Ok(connection) = rustix::net::accept_with(&*socket, SocketFlags::CLOEXEC)
                {
                    let Some(running) = running.upgrade() else {
                        return;
                    };
                    let engine = engine.clone();
                    let answering = std::thread::Builder::new().name("control".to_owned());
                    // One that cannot be answered is closed, which its other end sees.
                    let _ = answering.spawn(move || answer(&engine, &running, &connection));
                }
            })
            .map_err(|source| EngineError::Thread { source })?;
        Ok(listener)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&*self.socket, rustix::net::Shutdown::Both);
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Answers on one connection until its other end closes it.
fn answer(engine: &Engine, running: &Running, connection: &OwnedFd) {
    let Ok(helper) = engine.shared.helper() else {
        return;
    };
    let mut command: Option<Arc<Running>> = None;
    while let Ok(Some((request, descriptors))) = receive::<Request>(connection.as_fd()) {
        match request {
            Request::Signal(signal) => match &command {
                Some(command) => command.signal(signal),
                None => running.signal(signal),
            },
            Request::Exec(entered) => match start(helper, running, &entered, descriptors) {
                Ok(started) => {
                    let started = Arc::new(started);
                    command = Some(Arc::clone(&started));
                    let Ok(connection) = connection.try_clone() else {
                        return;
                    };
                    // Not on the helper's thread: a full socket would hold it up.
                    let waiting = std::thread::Builder::new().name("control".to_owned());
                    let _ = waiting.spawn(move || {
                        let answer = match started.wait() {
                            Ok(exit) => Answer::Ended(exit),
                            Err(error) => Answer::Failed(crate::error::chain(&error)),
                        };
                        let _ = send(connection.as_fd(), &answer, &[]);
                    });
                }
                Err(error) => {
                    let answer = Answer::Failed(crate::error::chain(&error));
                    let _ = send(connection.as_fd(), &answer, &[]);
                }
            },
        }
    }
}

fn start(
    helper: &Helper,
    running: &Running,
    entered: &sandbox::Entered,
    descriptors: Vec<OwnedFd>,
) -> Result<Running, EngineError> {
    let mut descriptors = descriptors.into_iter();
    let stdio = Stdio {
        stdin: descriptors.next(),
        stdout: descriptors.next(),
        stderr: descriptors.next(),
    };
    Ok(helper.enter(running, entered, stdio, Vec::new())?)
}

const NAME: &str = "control";

/// The address of a folder's socket: by descriptor, since the folder's own path may be too long for one.
struct Address {
    name: SocketAddrUnix,
    _folder: OwnedFd,
}

impl Address {
    fn of(folder: &Path) -> std::io::Result<Self> {
        use std::os::fd::AsRawFd;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(folder, flags, Mode::empty())?;
        let path = format!("/proc/self/fd/{}/{NAME}", folder.as_raw_fd());
        Ok(Self {
            name: SocketAddrUnix::new(path)?,
            _folder: folder,
        })
    }
}

fn socket() -> Result<OwnedFd, EngineError> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| EngineError::io("make", "a socket")(errno.into()))
}

fn send<M: Serialize>(
    socket: BorrowedFd<'_>,
    message: &M,
    descriptors: &[BorrowedFd<'_>],
) -> std::io::Result<()> {
    let payload = serde_json::to_vec(message).map_err(std::io::Error::other)?;
    if payload.len() > MAX_MESSAGE {
        return Err(std::io::Error::other("the command is too long"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let slices = [IoSlice::new(&payload)];
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &slices, &mut control, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Receives one message; `None` at the end of the connection.
fn receive<M: serde::de::DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> std::io::Result<Option<(M, Vec<OwnedFd>)>> {
    let mut payload = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut payload)];
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)
    });
    let length = match received {
        Ok(received) => received.bytes,
        Err(rustix::io::Errno::CONNRESET) => 0,
        Err(errno) => return Err(errno.into()),
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if length == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(&payload[..length]).map_err(std::io::Error::other)?;
    Ok(Some((message, descriptors)))
}
