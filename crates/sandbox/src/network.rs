//! Network namespaces for steps, made before they are needed.
//!
//! A process of its own (the maker) makes them, so that a step finds one ready: with a bridge and
//! masquerading as root, with `pasta` or `slirp4netns` otherwise. Each serves one step only: what a step
//! leaves in it (connections in TIME_WAIT hold their ports) must not meet the next one.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use crate::error::{self, SandboxError, failed};
use crate::helper::NetworkMode;
use crate::mounts;
use crate::names::PASTA_RESOLVER;
use crate::netlink::Netlink;
use crate::sys::{self, Cloned, WaitStatus};
use crate::wire;

/// How many namespaces wait for a step.
const READY: usize = 2;

/// A program in user space that is not there after this time is not coming.
const PATIENCE: Duration = Duration::from_secs(5);

/// A network namespace for one step.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) namespace: OwnedFd,
    /// Closed with the step: the maker then takes away what served the namespace.
    pub(crate) lease: OwnedFd,
}

/// The namespaces that wait, and the maker of more.
#[derive(Debug)]
pub(crate) struct Pool {
    maker: Pid,
    socket: OwnedFd,
    ready: VecDeque<Namespace>,
    asked: usize,
}

impl Drop for Pool {
    fn drop(&mut self) {
        // What it started to serve namespaces dies with it.
        let _ = rustix::process::kill_process(self.maker, Signal::KILL);
        let _ = sys::wait_child(Some(self.maker));
    }
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// Two descriptors beside it: the namespace and its lease.
    Made,
    Failed(String),
}

impl Pool {
    /// Starts the maker for a mode, tried by making one namespace. `close` are the helper's own descriptors.
    pub(crate) fn start(mode: NetworkMode, close: &[BorrowedFd<'_>]) -> Result<Pool, SandboxError> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(failed("make a socket pair"))?;
        // SAFETY: the helper has one thread.
        match unsafe { sys::clone_process(0, None) }
            .map_err(failed("fork the maker of networks"))?
        {
            Cloned::Child => {
                drop(ours);
                for fd in close {
                    // SAFETY: their owners are in the copy of the helper's state, never used again here.
                    unsafe { rustix::io::close(fd.as_raw_fd()) };
                }
                let code = match Maker::new(mode, theirs).and_then(|mut maker| maker.run()) {
                    Ok(()) => 0,
                    Err(_) => 1,
                };
                sys::exit_now(code)
            }
            Cloned::Parent { pid, .. } => {
                let mut pool = Pool {
                    maker: pid,
                    socket: ours,
                    ready: VecDeque::new(),
                    asked: 0,
                };
                pool.ask(1)?;
                let first = pool.receive()?;
                pool.ready.push_back(first);
                pool.ask(READY - 1)?;
                Ok(pool)
            }
        }
    }

    /// Takes a namespace, one that is ready if there is one.
    pub(crate) fn take(&mut self) -> Result<Namespace, SandboxError> {
        while self.answered()? {
            // One that could not be made ahead is made again when it is needed.
            let made = self.receive().ok();
            self.ready.extend(made);
        }
        let wanted = (READY + 1).saturating_sub(self.ready.len() + self.asked);
        self.ask(wanted)?;
        if let Some(namespace) = self.ready.pop_front() {
            return Ok(namespace);
        }
        match self.receive() {
            Err(_) => {
                self.ask(1)?;
                self.receive()
            }
            made => made,
        }
    }

    /// The pool's own descriptors, which no step may keep.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = &OwnedFd> {
        let ready = self
            .ready
            .iter()
            .flat_map(|ready| [&ready.namespace, &ready.lease]);
        std::iter::once(&self.socket).chain(ready)
    }

    fn ask(&mut self, count: usize) -> Result<(), SandboxError> {
        for _ in 0..count {
            wire::send(self.socket.as_fd(), &(), &[]).map_err(failed("ask for a network"))?;
        }
        self.asked += count;
        Ok(())
    }

    fn answered(&self) -> Result<bool, SandboxError> {
        let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
        let at_once = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let ready = rustix::event::poll(&mut polled, Some(&at_once))
            .map_err(failed("wait for a network"))?;
        Ok(ready > 0 && self.asked > 0)
    }

    fn receive(&mut self) -> Result<Namespace, SandboxError> {
        let received =
            wire::receive::<Answer>(self.socket.as_fd()).map_err(failed("receive a network"))?;
        self.asked = self.asked.saturating_sub(1);
        match received {
            Some((Answer::Made, fds)) => {
                let mut fds = fds.into_iter();
                match (fds.next(), fds.next()) {
                    (Some(namespace), Some(lease)) => Ok(Namespace { namespace, lease }),
                    _ => Err(SandboxError::Protocol(
                        "a network without descriptors".to_owned(),
                    )),
                }
            }
            Some((Answer::Failed(reason), _)) => Err(SandboxError::Setup(reason)),
            None => Err(SandboxError::Setup(
                "the maker of networks ended".to_owned(),
            )),
        }
    }
}

/// The maker: waits for requests, and for leases to end.
struct Maker {
    socket: OwnedFd,
    kind: Kind,
    /// The other end of each lease, and what serves the namespace.
    leases: Vec<(OwnedFd, Option<Server>)>,
    next_name: u64,
}

/// A program that serves one namespace.
struct Server {
    pid: Pid,
    /// Where the program found the namespace: a mount that only the maker and its programs see.
    place: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end, and it is reaped all the same.
        let _ = rustix::process::kill_process(self.pid, Signal::KILL);
        let _ = sys::wait_child(Some(self.pid));
        let _ = rustix::mount::unmount(&self.place, rustix::mount::UnmountFlags::DETACH);
        let _ = std::fs::remove_file(&self.place);
    }
}

/// A directory that programs for networks do without: covered, in the maker's own mount namespace, by a file
/// system for the namespaces they serve. They give up the rights by which they could open another process's.
const PLACES: &str = "/dev/shm";

enum Kind {
    Bridge(Bridge),
    Pasta(PathBuf),
    Slirp(PathBuf),
}

struct Bridge {
    netlink: Netlink,
    index: u32,
    gateway: Ipv4Addr,
    next: u16,
    /// nft, until the first namespace is made.
    rules: Option<Child>,
}

/// The bridge that all builders of a machine share; like the masquerading beside it, it stays.
const BRIDGE: &str = "lapstrake0";

/// Networks of 16 bits, of which the first that is free is taken.
const CANDIDATES: [[u8; 2]; 4] = [[10, 213], [10, 197], [172, 29], [172, 25]];

impl Maker {
    fn new(mode: NetworkMode, socket: OwnedFd) -> Result<Maker, SandboxError> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(failed("set the death signal"))?;
        let tool = |name: &str| {
            find_program(name)
                .ok_or_else(|| SandboxError::Setup(format!("{name} is not installed")))
        };
        let in_user_space = |program: PathBuf| {
            rustix::fs::access(
                "/dev/net/tun",
                rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK,
            )
            .map_err(failed("open /dev/net/tun"))?;
            make_places().map_err(failed("make a place for network namespaces"))?;
            Ok(program)
        };
        let kind = match mode {
            NetworkMode::Bridge => Bridge::open().map(Kind::Bridge),
            NetworkMode::Pasta => tool("pasta").and_then(in_user_space).map(Kind::Pasta),
            NetworkMode::Slirp => tool("slirp4netns").and_then(in_user_space).map(Kind::Slirp),
            other => Err(SandboxError::Setup(format!(
                "the network mode {other:?} needs no namespaces"
            ))),
        };
        match kind {
            Ok(kind) => Ok(Maker {
                socket,
                kind,
                leases: Vec::new(),
                next_name: 0,
            }),
            Err(error) => {
                // The answer to the request that is under way.
                let answer = Answer::Failed(error::chain(&error));
                wire::send(socket.as_fd(), &answer, &[]).map_err(failed("answer"))?;
                Err(error)
            }
        }
    }

    fn run(&mut self) -> Result<(), SandboxError> {
        loop {
            let mut polled = vec![PollFd::new(&self.socket, PollFlags::IN)];
            polled.extend(
                self.leases
                    .iter()
                    .map(|(lease, _)| PollFd::new(lease, PollFlags::IN)),
            );
            match rustix::event::poll(&mut polled, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(SandboxError::io("wait for requests", error)),
            }
            let ready: Vec<bool> = polled
                .iter()
                .map(|polled| !polled.revents().is_empty())
                .collect();
            drop(polled);
            let mut ended = ready[1..].iter();
            self.leases.retain(|_| ended.next() != Some(&true));
            if ready[0] {
                let request = wire::receive::<()>(self.socket.as_fd())
                    .map_err(failed("receive a request"))?;
                if request.is_none() {
                    return Ok(());
                }
                self.answer()?;
            }
        }
    }

    fn answer(&mut self) -> Result<(), SandboxError> {
        let mut made = self.make();
        if let Kind::Bridge(Bridge { rules, .. }) = &mut self.kind
            && let Some(rules) = rules.take()
            && let Err(error) = finish_rules(rules)
        {
            made = Err(error);
        }
        match made {
            Ok((namespace, server)) => {
                let (lease, other) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
                    .map_err(failed("make a pipe"))?;
                let fds = [namespace.as_fd(), other.as_fd()];
                wire::send(self.socket.as_fd(), &Answer::Made, &fds).map_err(failed("answer"))?;
                self.leases.push((lease, server));
                Ok(())
            }
            Err(error) => {
                let answer = Answer::Failed(error::chain(&error));
                wire::send(self.socket.as_fd(), &answer, &[]).map_err(failed("answer"))
            }
        }
    }

    /// Makes a namespace in a child that configures it from inside and ends.
    fn make(&mut self) -> Result<(OwnedFd, Option<Server>), SandboxError> {
        let (mut wait, mut go) = io::pipe().map_err(failed("make a pipe"))?;
        let (answer, mut answer_writer) = io::pipe().map_err(failed("make a pipe"))?;
        // SAFETY: the maker has one thread.
        match unsafe { sys::clone_process(libc::CLONE_NEWNET, None) }
            .map_err(failed("make a network namespace"))?
        {
            Cloned::Child => {
                drop((go, answer));
                let mut address = [0; 8];
                let result = match wait.read_exact(&mut address) {
                    Ok(()) => configure(&self.kind, address),
                    Err(error) => Err(failed("hear from the maker")(error)),
                };
                if let Err(error) = &result {
                    let _ = answer_writer.write_all(error::chain(error).as_bytes());
                }
                sys::exit_now(i32::from(result.is_err()))
            }
            Cloned::Parent { pid, .. } => {
                drop((wait, answer_writer));
                let served = self.serve(pid).and_then(|(namespace, server, address)| {
                    go.write_all(&address).map_err(failed("tell the address"))?;
                    Ok((namespace, server))
                });
                drop(go);
                let reason = io::read_to_string(answer).unwrap_or_default();
                let (_, status, _) =
                    sys::wait_child(Some(pid)).map_err(failed("wait for the network"))?;
                let (namespace, server) = served?;
                if status == WaitStatus::Code(0) {
                    return Ok((namespace, server));
                }
                Err(SandboxError::Setup(reason))
            }
        }
    }

    /// Connects the namespace of `pid` from outside. Returns it with what serves it, its address and gateway.
    fn serve(&mut self, pid: Pid) -> Result<(OwnedFd, Option<Server>, [u8; 8]), SandboxError> {
        let path = format!("/proc/{}/ns/net", pid.as_raw_nonzero());
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        let namespace = rustix::fs::open(&path, flags, rustix::fs::Mode::empty())
            .map_err(failed("open the network namespace"))?;
        let mut command = match &mut self.kind {
            Kind::Bridge(bridge) => {
                let address = bridge
                    .connect(namespace.as_fd())
                    .map_err(failed("connect the network to the bridge"))?;
                let mut both = [0; 8];
                both[..4].copy_from_slice(&address.octets());
                both[4..].copy_from_slice(&bridge.gateway.octets());
                return Ok((namespace, None, both));
            }
            Kind::Pasta(program) => {
                let mut command = Command::new(program);
                // Neither the host's ports nor its loopback: only the way out, and the host's resolver.
                command.args([
                    "--foreground",
                    "--quiet",
                    "--config-net",
                    "--ipv4-only",
                    "--no-map-gw",
                ]);
                command.args(["-t", "none", "-u", "none", "-T", "none", "-U", "none"]);
                command.args(["--dns-forward", PASTA_RESOLVER, "--netns-only", "--netns"]);
                command
            }
            Kind::Slirp(program) => {
                let mut command = Command::new(program);
                command.args([
                    "--configure",
                    "--mtu=65520",
                    "--disable-host-loopback",
                    "--netns-type=path",
                ]);
                command
            }
        };
        self.next_name += 1;
        let place = Path::new(PLACES).join(self.next_name.to_string());
        std::fs::write(&place, "").map_err(failed("make a place for the network namespace"))?;
        rustix::mount::mount_bind(&path, &place).map_err(failed("mount the network namespace"))?;
        command.arg(&place);
        if matches!(self.kind, Kind::Slirp(_)) {
            command.arg("tap0");
        }
        let pid = start(command)?;
        Ok((namespace, Some(Server { pid, place }), [0; 8]))
    }
}

/// Covers [`PLACES`] for this process and what it starts.
fn make_places() -> io::Result<()> {
    use rustix::mount::{MountAttrFlags, MountPropagationFlags};
    sys::unshare(libc::CLONE_NEWNS)?;
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let places = mounts::tmpfs(Some(1 << 20), 0o755, MountAttrFlags::MOUNT_ATTR_NOSUID)?;
    mounts::attach(places.as_fd(), mounts::open_path(PLACES.as_ref())?.as_fd())
}

fn start(mut command: Command) -> Result<Pid, SandboxError> {
    let child = command
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    use std::os::unix::process::CommandExt;
    // SAFETY: the closure makes one system call.
    unsafe {
        child.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
                .map_err(io::Error::from)
        });
    }
    let name = command.get_program().to_owned();
    let child = command.spawn().map_err(|error| {
        SandboxError::io(format!("start {}", Path::new(&name).display()), error)
    })?;
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| SandboxError::Protocol("a process without a number".to_owned()))
}

/// Runs in the new namespace.
fn configure(kind: &Kind, address: [u8; 8]) -> Result<(), SandboxError> {
    sys::bring_loopback_up().map_err(failed("bring the loopback interface up"))?;
    match kind {
        Kind::Bridge(_) => {
            let [a, b, c, d, e, f, g, h] = address;
            let inside = || -> io::Result<()> {
                let netlink = Netlink::open()?;
                let index = sys::interface_index("eth0")?;
                netlink.add_address(index, Ipv4Addr::new(a, b, c, d), 16)?;
                netlink.set_up(index)?;
                netlink.add_default_route(Ipv4Addr::new(e, f, g, h))
            };
            inside().map_err(failed("configure the network"))
        }
        Kind::Pasta(program) | Kind::Slirp(program) => {
            let start = Instant::now();
            while !has_default_route() {
                if start.elapsed() > PATIENCE {
                    return Err(SandboxError::Setup(format!(
                        "{} gives no network",
                        program.display()
                    )));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(())
        }
    }
}

fn has_default_route() -> bool {
    let routes = std::fs::read_to_string("/proc/self/net/route").unwrap_or_default();
    routes
        .lines()
        .skip(1)
        .any(|line| line.split_whitespace().nth(1) == Some("00000000"))
}

impl Bridge {
    /// Opens the machine's bridge, made when there is none.
    fn open() -> Result<Bridge, SandboxError> {
        let netlink = Netlink::open().map_err(failed("open a netlink socket"))?;
        match netlink.add_bridge(BRIDGE) {
            Ok(()) => {
                let gateway = free_network().ok_or_else(|| {
                    SandboxError::Setup("no network is free for the bridge".to_owned())
                })?;
                let index = sys::interface_index(BRIDGE).map_err(failed("find the bridge"))?;
                netlink
                    .add_address(index, gateway, 16)
                    .map_err(failed("give the bridge its address"))?;
                netlink
                    .set_up(index)
                    .map_err(failed("bring the bridge up"))?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("make a bridge")(error)),
        }
        let index = sys::interface_index(BRIDGE).map_err(failed("find the bridge"))?;
        let start = Instant::now();
        let gateway = loop {
            // Another builder may be making it at this moment.
            match sys::interface_address(BRIDGE) {
                Ok(address) => break Ipv4Addr::from(address),
                Err(error) if start.elapsed() > PATIENCE => {
                    return Err(failed("read the address of the bridge")(error));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        // The rules are for IPv4: with another address the machine would be reached around them.
        let _ = std::fs::write(
            format!("/proc/sys/net/ipv6/conf/{BRIDGE}/disable_ipv6"),
            "1",
        );
        let rules = Some(masquerade(gateway)?);
        let next = u16::try_from(std::process::id() % 60000).unwrap_or(0);
        Ok(Bridge {
            netlink,
            index,
            gateway,
            next,
            rules,
        })
    }

    /// Connects a namespace. The name of the interface here holds its address: the kernel lets only one have it.
    fn connect(&mut self, namespace: BorrowedFd<'_>) -> io::Result<Ipv4Addr> {
        let [a, b, _, _] = self.gateway.octets();
        for _ in 0..60000 {
            // 0.1 is the gateway.
            self.next = if self.next >= 60000 { 1 } else { self.next + 1 };
            let [c, d] = (self.next + 1).to_be_bytes();
            let name = format!("lapstrake{c:02x}{d:02x}");
            match self.netlink.add_pair(&name, self.index, "eth0", namespace) {
                Ok(()) => {
                    // Old kernels have no isolated ports; then steps see each other, as Docker's do.
                    let _ = sys::interface_index(&name)
                        .and_then(|port| self.netlink.isolate_port(port));
                    return Ok(Ipv4Addr::new(a, b, c, d));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from(io::ErrorKind::AddrNotAvailable))
    }
}

/// Returns the gateway of the first candidate that no route of the machine leads into.
fn free_network() -> Option<Ipv4Addr> {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    CANDIDATES
        .iter()
        .map(|[a, b]| Ipv4Addr::new(*a, *b, 0, 1))
        .find(|gateway| !overlaps(&routes, *gateway))
}

/// Whether a route other than the default one meets the network of 16 bits around an address.
fn overlaps(routes: &str, address: Ipv4Addr) -> bool {
    let own = u32::from(address) & 0xffff_0000;
    routes.lines().skip(1).any(|line| {
        let number = |index: usize| {
            let word = line.split_whitespace().nth(index)?;
            u32::from_str_radix(word, 16).ok().map(u32::from_be)
        };
        match (number(1), number(7)) {
            (Some(destination), Some(mask)) if mask != 0 => {
                let common = mask & 0xffff_0000;
                destination & common == own & common
            }
            _ => false,
        }
    })
}

/// Has the machine forward for the bridge's network, and keeps what is on the bridge from the machine itself, its resolver
/// excepted, and from each other: by ports of the bridge, and here where a packet takes the way over the gateway. Said again by every builder, with the same effect.
///
/// Returns nft at work, so that the first namespace is made beside it.
fn masquerade(gateway: Ipv4Addr) -> Result<Child, SandboxError> {
    let forward = "/proc/sys/net/ipv4/ip_forward";
    let forwards = std::fs::read_to_string(forward).is_ok_and(|text| text.trim() == "1");
    let nft = find_program("nft")
        .ok_or_else(|| SandboxError::Setup("nft is not installed".to_owned()))?;
    let [a, b, _, _] = gateway.octets();
    let mut rules = format!(
        "add table ip lapstrake\n\
         add chain ip lapstrake postrouting {{ type nat hook postrouting priority 100; policy accept; }}\n\
         flush chain ip lapstrake postrouting\n\
         add rule ip lapstrake postrouting ip saddr {a}.{b}.0.0/16 oifname != \"{BRIDGE}\" masquerade\n\
         add chain ip lapstrake input {{ type filter hook input priority 0; policy accept; }}\n\
         flush chain ip lapstrake input\n\
         add rule ip lapstrake input iifname \"{BRIDGE}\" ct state established,related accept\n\
         add rule ip lapstrake input iifname \"{BRIDGE}\" udp dport 53 accept\n\
         add rule ip lapstrake input iifname \"{BRIDGE}\" tcp dport 53 accept\n\
         add rule ip lapstrake input iifname \"{BRIDGE}\" drop\n\
         add chain ip lapstrake between {{ type filter hook forward priority 0; policy accept; }}\n\
         flush chain ip lapstrake between\n\
         add rule ip lapstrake between iifname \"{BRIDGE}\" oifname \"{BRIDGE}\" drop\n"
    );
    if !forwards {
        // A machine that forwarded nothing must not become a router for others by this. The rule stays, and
        // comes before the switch.
        rules.push_str(&format!(
            "add chain ip lapstrake forward {{ type filter hook forward priority 0; policy accept; }}\n\
             flush chain ip lapstrake forward\n\
             add rule ip lapstrake forward iifname != \"{BRIDGE}\" oifname != \"{BRIDGE}\" drop\n"
        ));
    }
    let mut child = Command::new(nft)
        .args(["-f", "-"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed("start nft"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(rules.as_bytes())
            .map_err(failed("give nft its rules"))?;
    }
    Ok(child)
}

/// Says what stands against a bridge, as far as that can be seen without making one.
pub fn bridge_obstacle() -> Option<String> {
    find_program("nft")
        .is_none()
        .then(|| "nft is not installed".to_owned())
}

fn finish_rules(rules: Child) -> Result<(), SandboxError> {
    let output = rules.wait_with_output().map_err(failed("wait for nft"))?;
    if output.status.success() {
        let forward = "/proc/sys/net/ipv4/ip_forward";
        // Written only when it is needed: it resets other settings of the network.
        if std::fs::read_to_string(forward).is_ok_and(|text| text.trim() == "0") {
            std::fs::write(forward, "1").map_err(failed("allow forwarding"))?;
        }
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let reason = text.lines().next().unwrap_or_default();
    Err(SandboxError::Setup(format!(
        "nft refused the masquerading: {reason}"
    )))
}

fn find_program(name: &str) -> Option<PathBuf> {
    [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ]
    .iter()
    .map(|directory| Path::new(directory).join(name))
    .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_a_route_meets_is_not_taken() {
        let head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n";
        let check = |route: &str, expected: bool| {
            assert_eq!(
                overlaps(&format!("{head}{route}\n"), Ipv4Addr::new(10, 213, 0, 1)),
                expected,
                "{route}"
            );
        };
        check("eth0 00000000 0102000A 0003 0 0 0 00000000 0 0 0", false);
        check("eth0 0000D50A 00000000 0001 0 0 0 0000FFFF 0 0 0", true);
        check("eth0 0005D50A 00000000 0001 0 0 0 00FFFFFF 0 0 0", true);
        check("eth0 0000000A 00000000 0001 0 0 0 000000FF 0 0 0", true);
        check("eth0 0000D60A 00000000 0001 0 0 0 0000FFFF 0 0 0", false);
    }
}
