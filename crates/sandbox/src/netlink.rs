//! The few requests of rtnetlink that a step's network needs.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// A socket that speaks for the network namespace it was opened in.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
}

// From linux/if_link.h, linux/if_bridge.h and linux/veth.h; the C library's crate has not all of them.
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_PROTINFO: u16 = 12;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const VETH_INFO_PEER: u16 = 1;
const NESTED: u16 = 1 << 15;

impl Netlink {
    pub(crate) fn open() -> io::Result<Netlink> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is 0.
            None,
        )?;
        Ok(Netlink { socket })
    }

    /// Makes a bridge; fails with `AlreadyExists` when there is one.
    pub(crate) fn add_bridge(&self, name: &str) -> io::Result<()> {
        let mut message = Message::link(
            libc::RTM_NEWLINK,
            libc::NLM_F_CREATE | libc::NLM_F_EXCL,
            0,
            false,
        );
        message.text(libc::IFLA_IFNAME, name);
        message.nested(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, "bridge"));
        self.request(message)
    }

    /// Makes a pair of interfaces: `name` here as a port of `bridge`, `peer` in another network namespace.
    /// Fails with `AlreadyExists` when there is one of that name.
    pub(crate) fn add_pair(
        &self,
        name: &str,
        bridge: u32,
        peer: &str,
        namespace: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let namespace = namespace.as_raw_fd().cast_unsigned();
        let mut message = Message::link(
            libc::RTM_NEWLINK,
            libc::NLM_F_CREATE | libc::NLM_F_EXCL,
            0,
            true,
        );
        message.text(libc::IFLA_IFNAME, name);
        message.number(libc::IFLA_MASTER, bridge);
        message.nested(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "veth");
            info.nested(IFLA_INFO_DATA, |data| {
                data.nested(VETH_INFO_PEER, |other| {
                    other.bytes.extend_from_slice(&interface(0, false));
                    other.text(libc::IFLA_IFNAME, peer);
                    other.number(IFLA_NET_NS_FD, namespace);
                });
            });
        });
        self.request(message)
    }

    /// Keeps a port of a bridge from the other isolated ports: steps reach the gateway, not each other.
    pub(crate) fn isolate_port(&self, port: u32) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_SETLINK, 0);
        let mut header = interface(port, false);
        header[0] = u8::try_from(libc::AF_BRIDGE).unwrap_or_default();
        message.bytes.extend_from_slice(&header);
        message.nested(IFLA_PROTINFO | NESTED, |port| {
            port.attribute(IFLA_BRPORT_ISOLATED, &[1])
        });
        self.request(message)
    }

    pub(crate) fn set_up(&self, index: u32) -> io::Result<()> {
        self.request(Message::link(libc::RTM_NEWLINK, 0, index, true))
    }

    pub(crate) fn add_address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE);
        let family = u8::try_from(libc::AF_INET).unwrap_or_default();
        message.bytes.extend_from_slice(&[family, prefix, 0, 0]);
        message.bytes.extend_from_slice(&index.to_ne_bytes());
        message.attribute(libc::IFA_LOCAL, &address.octets());
        message.attribute(libc::IFA_ADDRESS, &address.octets());
        self.request(message)
    }

    pub(crate) fn add_default_route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        let family = u8::try_from(libc::AF_INET).unwrap_or_default();
        let (table, protocol) = (libc::RT_TABLE_MAIN, libc::RTPROT_BOOT);
        let header = [
            family,
            0,
            0,
            0,
            table,
            protocol,
            libc::RT_SCOPE_UNIVERSE,
            libc::RTN_UNICAST,
        ];
        message.bytes.extend_from_slice(&header);
        message.bytes.extend_from_slice(&[0; 4]);
        message.attribute(libc::RTA_GATEWAY, &gateway.octets());
        self.request(message)
    }

    /// Sends a request and waits for its acknowledgement.
    fn request(&self, message: Message) -> io::Result<()> {
        let bytes = message.finish();
        rustix::io::retry_on_intr(|| rustix::net::send(&self.socket, &bytes, SendFlags::empty()))?;
        let mut answer = vec![0_u8; 8192];
        let (length, _) = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&self.socket, &mut answer[..], RecvFlags::empty())
        })?;
        // A header of 16 bytes, then the error number, negated.
        let error = answer[..length]
            .get(16..20)
            .and_then(|bytes| bytes.try_into().ok())
            .map(i32::from_ne_bytes);
        match error {
            Some(0) => Ok(()),
            Some(error) => Err(io::Error::from_raw_os_error(-error)),
            None => Err(io::Error::from(io::ErrorKind::InvalidData)),
        }
    }
}

/// One request in the making.
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: libc::c_int) -> Message {
        let flags =
            u16::try_from(flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK).unwrap_or_default();
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Message { bytes }
    }

    fn link(kind: u16, flags: libc::c_int, index: u32, up: bool) -> Message {
        let mut message = Message::new(kind, flags);
        message.bytes.extend_from_slice(&interface(index, up));
        message
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.align();
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat());
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes
    }
}

/// `struct ifinfomsg`.
fn interface(index: u32, up: bool) -> [u8; 16] {
    let flags = if up { libc::IFF_UP.cast_unsigned() } else { 0 };
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..].copy_from_slice(&flags.to_ne_bytes());
    bytes
}
