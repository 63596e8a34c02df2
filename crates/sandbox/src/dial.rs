//! Connections into the network of a step that runs, for who is outside of it: published ports.
//!
//! Each question brings the socket it is answered through, so that connections that take their time hold up no others.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::thread::LinkNameSpaceType;
use serde::{Deserialize, Serialize};

use crate::child::{self, Report};
use crate::error::{self, SandboxError, failed};
use crate::exit::Status;
use crate::helper::Running;
use crate::{sys, wire};

/// What is asked of the process in the step's network. Beside it is the socket for the answer.
#[derive(Debug, Serialize, Deserialize)]
struct Dial {
    port: u16,
}

/// A connection beside it, or why there is none.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Connected,
    Failed(i32),
}

/// Connections that may be on their way at once, each with two descriptors. More are refused.
const MOST_AT_ONCE: usize = 256;

/// Those among them to one port, so that one that takes none leaves room for the others.
const MOST_TO_A_PORT: usize = 64;

/// Everything the child needs, made before the clone.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// The network of the step; absent where it shares the builder's.
    pub(crate) namespace: Option<OwnedFd>,
    /// The builder's questions.
    pub(crate) socket: OwnedFd,
    pub(crate) report: OwnedFd,
    /// Hangs up when the helper dies.
    pub(crate) liveness: BorrowedFd<'a>,
}

/// Runs in the child; never returns. It ends when the builder asks no more.
pub(crate) fn run(plan: Plan<'_>) -> ! {
    let report = match serve(&plan) {
        Ok(()) => Report::Ended {
            status: Status::Code(0),
            peak_memory: 0,
        },
        Err(error) => Report::Failed(error::Failure::of(&error)),
    };
    child::send(&plan.report, &report);
    sys::exit_now(0)
}

fn serve(plan: &Plan<'_>) -> Result<(), SandboxError> {
    child::die_with_helper(plan.liveness)?;
    if let Some(namespace) = &plan.namespace {
        let kind = Some(LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)
            .map_err(failed("enter the network of the container"))?;
    }
    let questions = plan.socket.as_fd();
    let mut waiting: Vec<Waiting> = Vec::new();
    loop {
        let ready = ready(questions, &waiting)
            .map_err(|errno| SandboxError::io("wait for connections", io::Error::from(errno)))?;
        let (asked, ends) = ready
            .split_first()
            .map_or((false, &[][..]), |(a, b)| (*a, b));
        let mut ends = ends.iter().copied();
        waiting = waiting
            .into_iter()
            .filter_map(|one| match ends.next() {
                Some(true) => one.proceed(),
                _ => Some(one),
            })
            .collect();
        if !asked {
            continue;
        }
        let question = wire::receive::<Dial>(questions)
            .map_err(|error| SandboxError::io("receive a port", error))?;
        let Some((Dial { port }, sockets)) = question else {
            return Ok(());
        };
        // Without its socket, for want of descriptors, who asks sees that it was closed.
        let Some(answers) = sockets.into_iter().next() else {
            continue;
        };
        let to_it = waiting.iter().filter(|one| one.port == port).count();
        if to_it < MOST_TO_A_PORT && waiting.len() < MOST_AT_ONCE {
            waiting.extend(Waiting::begin(port, answers));
        } else {
            answer(&answers, Err(Errno::AGAIN));
        }
    }
}

/// Waits until something can be done: returns whether there is a question, and for each connection whether it or who
/// asked for it has come to an end.
fn ready(questions: BorrowedFd<'_>, waiting: &[Waiting]) -> Result<Vec<bool>, Errno> {
    let mut polled = vec![PollFd::from_borrowed_fd(questions, PollFlags::IN)];
    for one in waiting {
        polled.push(PollFd::new(&one.connection, PollFlags::OUT));
        polled.push(PollFd::new(&one.answers, PollFlags::empty()));
    }
    match rustix::event::poll(&mut polled, None) {
        Err(Errno::INTR) => return Ok(Vec::new()),
        other => other.map(drop)?,
    }
    let is_ready = |polled: &PollFd<'_>| !polled.revents().is_empty();
    let (asked, ends) = polled.split_at(1);
    let mut ready: Vec<bool> = asked.iter().map(is_ready).collect();
    ready.extend(ends.chunks(2).map(|pair| pair.iter().any(is_ready)));
    Ok(ready)
}

/// A connection on its way.
struct Waiting {
    port: u16,
    connection: OwnedFd,
    answers: OwnedFd,
}

impl Waiting {
    /// Begins to connect; what fails at once is answered at once.
    fn begin(port: u16, answers: OwnedFd) -> Option<Self> {
        let begun = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let connection =
                rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
            // On its loopback interface: what listens on all addresses listens there too, and nothing is ever far away.
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            match rustix::net::connect(&connection, &address) {
                Ok(()) | Err(Errno::INPROGRESS) => Ok(connection),
                Err(errno) => Err(errno),
            }
        };
        match begun() {
            Ok(connection) => Some(Self {
                port,
                connection,
                answers,
            }),
            Err(errno) => {
                answer(&answers, Err(errno));
                None
            }
        }
    }

    /// Answers if the connection was made or has failed, and gives up if nobody wants it any more.
    fn proceed(self) -> Option<Self> {
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut polled = [PollFd::new(&self.connection, PollFlags::OUT)];
        let ended = rustix::event::poll(&mut polled, Some(&now));
        if !matches!(ended, Ok(1..)) {
            // It was the other end of the answers that closed.
            return None;
        }
        let outcome = match sockopt::socket_error(&self.connection) {
            Ok(Ok(())) => rustix::io::ioctl_fionbio(&self.connection, false),
            Ok(Err(errno)) | Err(errno) => Err(errno),
        };
        answer(&self.answers, outcome.map(|()| self.connection.as_fd()));
        None
    }
}

/// Answers; whoever has gone away meanwhile gets none.
fn answer(to: &OwnedFd, outcome: Result<BorrowedFd<'_>, Errno>) {
    let _ = match outcome {
        Ok(connection) => wire::send(to.as_fd(), &Answer::Connected, &[connection]),
        Err(errno) => wire::send(to.as_fd(), &Answer::Failed(errno.raw_os_error()), &[]),
    };
}

/// Makes connections in the network of a step. It ends with the step at the latest, and when it is dropped.
#[derive(Debug)]
pub struct Dialer {
    socket: Mutex<OwnedFd>,
    _process: Running,
}

impl Dialer {
    pub(crate) fn new(socket: OwnedFd, process: Running) -> Self {
        Self {
            socket: Mutex::new(socket),
            _process: process,
        }
    }

    /// Connects to a port of the step. Several may wait for theirs at the same time.
    pub fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        {
            let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
            wire::send(socket.as_fd(), &Dial { port }, &[theirs.as_fd()])?;
        }
        drop(theirs);
        match wire::receive(ours.as_fd())? {
            Some((Answer::Connected, fds)) => match fds.into_iter().next() {
                Some(fd) => Ok(TcpStream::from(fd)),
                None => Err(io::Error::from(io::ErrorKind::InvalidData)),
            },
            Some((Answer::Failed(number), _)) => Err(io::Error::from_raw_os_error(number)),
            None => Err(io::Error::from(io::ErrorKind::BrokenPipe)),
        }
    }
}
