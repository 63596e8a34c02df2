//! The messages between the builder and its helper: a length, JSON, and descriptors beside the length.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::exit::Exit;
use crate::helper::Options;
use crate::runtime::Runtime;
use crate::spec::{Entered, Spec};

/// The kernel's own limit on descriptors in one message (SCM_MAX_FD).
pub(crate) const MAX_DESCRIPTORS: usize = 253;

/// No message is longer; a secret or a here-document fits many times over.
const MAX_MESSAGE: usize = 64 << 20;

/// From the builder to the helper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// The first message.
    Start {
        options: Options,
    },
    /// Descriptors beside it: stdin, stdout, stderr, `sources` mount sources, then those to keep.
    Spawn {
        id: u64,
        spec: Box<Spec>,
        sources: usize,
        /// What runs it instead of the helper itself.
        runtime: Option<Runtime>,
    },
    /// Descriptors beside it: stdin, stdout, stderr, then those to keep.
    Enter {
        id: u64,
        /// The step whose world the command gets.
        step: u64,
        entered: Box<Entered>,
    },
    /// One descriptor beside it: a socket for what is asked of the process in the step's network.
    Dial {
        id: u64,
        /// The step whose network is connected to.
        step: u64,
    },
    Signal {
        id: u64,
        signal: i32,
    },
    Kill {
        id: u64,
    },
}

/// From the helper to the builder.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    /// The helper is ready; what it could not have, in words for the user.
    Ready {
        network: crate::helper::NetworkMode,
        notes: Vec<String>,
    },
    Exited {
        id: u64,
        exit: Exit,
    },
    /// The step could not be set up.
    Failed {
        id: u64,
        failure: Failure,
    },
}

/// Sends one message. Blocks until all of it is in the socket.
pub(crate) fn send<M: Serialize>(
    socket: BorrowedFd<'_>,
    message: &M,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let payload = serde_json::to_vec(message).map_err(io::Error::other)?;
    let length = u32::try_from(payload.len())
        .map_err(io::Error::other)?
        .to_le_bytes();
    if payload.len() > MAX_MESSAGE || fds.len() > MAX_DESCRIPTORS {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let total = length.len() + payload.len();
    let slices = [IoSlice::new(&length), IoSlice::new(&payload)];
    let mut sent = rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &slices, &mut control, SendFlags::NOSIGNAL)
    })?;
    while sent < total {
        // The length is shorter than any socket buffer, so it went with the first piece.
        let rest = payload
            .get(sent.saturating_sub(length.len())..)
            .unwrap_or_default();
        sent += rustix::io::retry_on_intr(|| rustix::net::send(socket, rest, SendFlags::NOSIGNAL))?;
    }
    Ok(())
}

/// Receives one message and its descriptors; `None` when the other side closed.
pub(crate) fn receive<M: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let mut length = [0_u8; 4];
    let mut fds = Vec::new();
    if !receive_exact(socket, &mut length, &mut fds)? {
        return Ok(None);
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_MESSAGE {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    let mut payload = vec![0_u8; length];
    if !receive_exact(socket, &mut payload, &mut fds)? {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    let message = serde_json::from_slice(&payload).map_err(io::Error::other)?;
    Ok(Some((message, fds)))
}

/// Fills `buffer`; `false` when the other side closed before its first byte.
fn receive_exact(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        let mut space =
            vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(
                socket,
                &mut [IoSliceMut::new(&mut buffer[filled..])],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        })?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if received.bytes == 0 {
            return match filled {
                0 => Ok(false),
                _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            };
        }
        filled += received.bytes;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn a_long_message_arrives_whole_with_its_descriptors() {
        let (left, right) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("socketpair");
        let text = "x".repeat(1 << 20);
        let sender = {
            let text = text.clone();
            std::thread::spawn(move || {
                let file = std::fs::File::open("/dev/null").expect("open");
                send(left.as_fd(), &text, &[file.as_fd(), file.as_fd()]).expect("send");
                send(left.as_fd(), &"second", &[]).expect("send");
            })
        };
        let (message, fds) = receive::<String>(right.as_fd())
            .expect("receive")
            .expect("a message");
        assert_eq!((message, fds.len()), (text, 2));
        let (message, fds) = receive::<String>(right.as_fd())
            .expect("receive")
            .expect("a message");
        assert_eq!((message.as_str(), fds.len()), ("second", 0));
        assert!(receive::<String>(right.as_fd()).expect("receive").is_none());
        sender.join().expect("sender");
    }
}
