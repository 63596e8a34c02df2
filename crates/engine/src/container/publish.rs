//! Ports of a container on this machine: what connects to them is connected to the container.
//!
//! The process that runs the container listens; the other side of each connection is made in the container's network
//! by the sandbox. That needs no rights, no rules of a firewall, and works with every kind of network.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use sandbox::Dialer;
use serde::{Deserialize, Serialize};

use crate::EngineError;

/// A port of a container that is to be reached on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// All of this machine's where absent.
    pub address: Option<IpAddr>,
    /// One that is free where absent.
    pub port: Option<u16>,
    pub container: u16,
}

/// Where a port of a container that runs is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BoundPort {
    pub container: u16,
    pub address: SocketAddr,
}

/// Reads `[[ADDRESS:][PORT]:]CONTAINER_PORT[/tcp]`; ports may be ranges of one length.
pub fn published_ports(text: &str) -> Result<Vec<PublishedPort>, EngineError> {
    let wrong = |reason: &str| EngineError::Request(format!("invalid publish {text:?}: {reason}"));
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    match protocol {
        "tcp" => {}
        "udp" | "sctp" => {
            return Err(wrong(&format!(
                "ports of {protocol} cannot be published, only those of tcp"
            )));
        }
        _ => return Err(wrong(&format!("{protocol:?} is no protocol"))),
    }
    let (rest, container) = match ports.rsplit_once(':') {
        Some((rest, container)) => (Some(rest), container),
        None => (None, ports),
    };
    let (address, host) = match rest {
        None => (None, ""),
        Some(rest) => match rest.rsplit_once(':') {
            None => (None, rest),
            Some((address, host)) => (Some(address.trim_matches(['[', ']'])), host),
        },
    };
    let address = match address {
        None | Some("") => None,
        Some(address) => {
            let parsed = address.parse();
            Some(parsed.map_err(|_| wrong(&format!("{address:?} is no IP address")))?)
        }
    };
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Ok(first..=last),
            _ => Err(wrong(&format!("{text:?} is no port from 1 to 65535"))),
        }
    };
    let containers = range(container)?;
    // Zero is how some write a free one.
    if matches!(host, "" | "0") {
        return Ok(containers
            .map(|container| PublishedPort {
                address,
                port: None,
                container,
            })
            .collect());
    }
    let hosts = range(host)?;
    if hosts.len() != containers.len() {
        return Err(wrong("the two ranges of ports have different lengths"));
    }
    Ok(hosts
        .zip(containers)
        .map(|(port, container)| PublishedPort {
            address,
            port: Some(port),
            container,
        })
        .collect())
}

/// Each takes a descriptor and a thread, twice with IPv6.
const MOST_PORTS: usize = 256;
/// How often a free port is looked for.
const DRAWS: usize = 16;

/// The listeners of a container that is about to run.
#[derive(Debug, Default)]
pub(super) struct Bound {
    listeners: Vec<(TcpListener, BoundPort)>,
}

impl Bound {
    /// Takes the ports of this machine, so that a container is not started without them.
    pub(super) fn bind(ports: &[PublishedPort]) -> Result<Self, EngineError> {
        if ports.len() > MOST_PORTS {
            return Err(EngineError::Request(format!(
                "{} ports are to be published; there can be {MOST_PORTS}",
                ports.len()
            )));
        }
        let mut bound = Self::default();
        for port in ports {
            bound.add(port)?;
        }
        bound.listeners.sort_by_key(|(_, bound)| *bound);
        Ok(bound)
    }

    fn add(&mut self, wanted: &PublishedPort) -> Result<(), EngineError> {
        let first = wanted.address.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let container = wanted.container;
        for attempt in 1.. {
            let address = SocketAddr::new(first, wanted.port.unwrap_or(0));
            let listener = listen(address).map_err(|error| refused(address, &error))?;
            let address = listener
                .local_addr()
                .map_err(|error| refused(address, &error))?;
            let bound = BoundPort { container, address };
            if wanted.address.is_none() {
                let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port());
                match listen(address) {
                    Ok(listener) => {
                        let bound = BoundPort { container, address };
                        self.listeners.push((listener, bound));
                    }
                    // A machine without IPv6 is reached by the other.
                    Err(error) if is_without_ipv6(&error) => {}
                    // Free for one of the two only: another one may be for both.
                    Err(_) if wanted.port.is_none() && attempt < DRAWS => continue,
                    Err(error) => return Err(refused(address, &error)),
                }
            }
            self.listeners.push((listener, bound));
            return Ok(());
        }
        unreachable!("the last attempt returns")
    }

    pub(super) fn ports(&self) -> Vec<BoundPort> {
        self.listeners.iter().map(|(_, bound)| *bound).collect()
    }

    /// Connects what comes to the container.
    pub(super) fn serve(self, dialer: Dialer) -> Result<Published, EngineError> {
        let dialer = Arc::new(dialer);
        let mut published = Published::default();
        for (listener, bound) in self.listeners {
            let copy = listener.as_fd().try_clone_to_owned();
            let copy = copy.map_err(EngineError::io("copy", "a descriptor"))?;
            published.sockets.push(copy);
            let dialer = Arc::clone(&dialer);
            thread()
                .spawn(move || accept(&listener, bound.container, &dialer))
                .map_err(|source| EngineError::Thread { source })?;
        }
        Ok(published)
    }
}

fn is_without_ipv6(error: &io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    matches!(
        errno,
        Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL)
    )
}

fn refused(address: SocketAddr, error: &io::Error) -> EngineError {
    let reason = match error.kind() {
        io::ErrorKind::AddrInUse => "port is already allocated".to_owned(),
        io::ErrorKind::PermissionDenied => format!(
            "{error}; ports below 1024 need root, or a lower net.ipv4.ip_unprivileged_port_start"
        ),
        _ => error.to_string(),
    };
    EngineError::Request(format!("Bind for {address} failed: {reason}"))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket: OwnedFd =
        rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 128)?;
    Ok(TcpListener::from(socket))
}

/// The ports of a container that runs. They are given back when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Published {
    sockets: Vec<OwnedFd>,
}

impl Drop for Published {
    fn drop(&mut self) {
        for socket in &self.sockets {
            // Whoever accepts on it wakes up and closes it.
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
    }
}

fn accept(listener: &TcpListener, port: u16, dialer: &Arc<Dialer>) {
    loop {
        let client = match listener.accept() {
            Ok((client, _)) => client,
            // It was shut down.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            // One that went away again, a network that failed it, or no descriptor left: the next may do better.
            Err(_) => {
                std::thread::sleep(std::time::Duration::from_millis(50));
                continue;
            }
        };
        let dialer = Arc::clone(dialer);
        // A container that is slow to take this connection holds up no other.
        let _ = thread().spawn(move || connect(client, port, &dialer));
    }
}

fn thread() -> std::thread::Builder {
    std::thread::Builder::new().name("published".to_owned())
}

/// Passes on what each side says, each way in a thread of its own. Where nobody listens in the container, the
/// connection is closed.
fn connect(client: TcpStream, port: u16, dialer: &Dialer) -> io::Result<()> {
    let server = dialer.connect(port)?;
    let (client_too, server_too) = (client.try_clone()?, server.try_clone()?);
    thread().spawn(move || pass(server_too, client_too))?;
    pass(client, server);
    Ok(())
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    // An end that was not in order is one all the same.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_in_docker() {
        let check = |text: &str, expected: &str| {
            let told = match published_ports(text) {
                Ok(ports) => ports
                    .iter()
                    .map(|port| {
                        let address = port.address.map(|address| address.to_string());
                        format!("{address:?} {:?} {}", port.port, port.container)
                    })
                    .collect::<Vec<_>>()
                    .join("; "),
                Err(error) => error.to_string(),
            };
            assert_eq!(told, expected, "{text}");
        };
        check("80", "None None 80");
        check("8080:80", "None Some(8080) 80");
        check("8080:80/tcp", "None Some(8080) 80");
        check(":80", "None None 80");
        check("0:80", "None None 80");
        check("127.0.0.1:8080:80", "Some(\"127.0.0.1\") Some(8080) 80");
        check("127.0.0.1::80", "Some(\"127.0.0.1\") None 80");
        check("[::1]:8080:80", "Some(\"::1\") Some(8080) 80");
        check("81-82:8081-8082", "None Some(81) 8081; None Some(82) 8082");
        check(
            "53:53/udp",
            "invalid publish \"53:53/udp\": ports of udp cannot be published, only those of tcp",
        );
        check(
            "81-83:81",
            "invalid publish \"81-83:81\": the two ranges of ports have different lengths",
        );
        for text in ["", "x", "0", "1:x", "65536", "1:2:3", "host:1:2", "2-1"] {
            let error = published_ports(text).expect_err(text).to_string();
            assert!(error.starts_with("invalid publish"), "{error}");
        }
    }
}
