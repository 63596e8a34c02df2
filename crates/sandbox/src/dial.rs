//! Connections into the network of a step that runs, for who is outside of it: published ports.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::thread::LinkNameSpaceType;
use serde::{Deserialize, Serialize};

use crate::child::{self, Report};
use crate::error::{self, SandboxError, failed};
use crate::exit::Status;
use crate::helper::Running;
use crate::{sys, wire};

/// What is asked of the process in the step's network.
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
        Err(error) => Report::Failed(error::chain(&error)),
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
    let socket = plan.socket.as_fd();
    while let Some((Dial { port }, _)) =
        wire::receive(socket).map_err(|error| SandboxError::io("receive a port", error))?
    {
        // On its loopback interface: what listens on all addresses listens there too, and nothing is ever far away.
        let sent = match TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))) {
            Ok(stream) => wire::send(socket, &Answer::Connected, &[stream.as_fd()]),
            Err(error) => {
                let number = error.raw_os_error().unwrap_or(libc::ECONNREFUSED);
                wire::send(socket, &Answer::Failed(number), &[])
            }
        };
        if sent.is_err() {
            break;
        }
    }
    Ok(())
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

    /// Connects to a port of the step.
    pub fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        wire::send(socket.as_fd(), &Dial { port }, &[])?;
        match wire::receive(socket.as_fd())? {
            Some((Answer::Connected, fds)) => match fds.into_iter().next() {
                Some(fd) => Ok(TcpStream::from(fd)),
                None => Err(io::Error::from(io::ErrorKind::InvalidData)),
            },
            Some((Answer::Failed(number), _)) => Err(io::Error::from_raw_os_error(number)),
            None => Err(io::Error::from(io::ErrorKind::BrokenPipe)),
        }
    }
}
