//! The file systems a command sees.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::mount::MountAttrFlags;

use crate::child::Prepared;
use crate::error::SandboxError;
use crate::machine::Machine;
use crate::mounts;
use crate::resolve::{self, Kind, Stub};
use crate::spec::{Content, Mount, Overlay, Root, Security, Source, Spec, User};
use crate::sys;
use crate::users::{self, Identity};

/// Docker's size of `/dev/shm`.
const SHM_SIZE: u64 = 64 << 20;

/// Docker's size of the `/dev` file system.
const DEV_SIZE: u64 = 64 << 20;

/// Hidden from confined commands, as runc is told by containerd: what tells of or reaches into the host.
pub(crate) const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Read-only for confined commands.
pub(crate) const READ_ONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What a confined command may open. `null` is first: it also covers what is hidden.
pub(crate) const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

const DEVICE_LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
];

/// What the world is built from.
#[derive(Debug)]
pub(crate) struct World<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) prepared: Vec<Option<Prepared>>,
    pub(crate) console: Option<OwnedFd>,
    pub(crate) machine: &'a Machine,
    pub(crate) host_network: bool,
    /// An OCI runtime mounts what belongs to the command's own namespaces.
    pub(crate) by_runtime: bool,
}

/// One mount to attach, in order.
pub(crate) struct Entry {
    pub(crate) target: String,
    pub(crate) what: What,
}

#[derive(Clone, Copy)]
enum Base {
    Proc,
    Devices,
    Terminals,
    Memory,
    Queues,
    Sys,
    ControlGroups,
}

/// What every command has, in this order.
const BASE: [(&str, Base); 7] = [
    ("/proc", Base::Proc),
    ("/dev", Base::Devices),
    ("/dev/pts", Base::Terminals),
    ("/dev/shm", Base::Memory),
    ("/dev/mqueue", Base::Queues),
    ("/sys", Base::Sys),
    ("/sys/fs/cgroup", Base::ControlGroups),
];

pub(crate) enum What {
    /// A directory for a mount that somebody else makes.
    Place,
    /// `/dev`, to be filled when it is attached.
    Devices(OwnedFd),
    /// The step's view of control groups, attached where there is a place for it.
    ControlGroups(OwnedFd),
    Tree(OwnedFd),
    File(OwnedFd),
}

/// What must be opened on the host before the root changes.
pub(crate) struct HostSide {
    /// The few devices of [`DEVICES`], mounted one by one, since nothing else in the step may be a device:
    /// root of a step may make nodes (Docker lets it), and the host's disks must not open by them.
    devices: Vec<(&'static str, OwnedFd)>,
    /// All devices of the host, for a command that is not confined.
    nodes: Vec<(String, FileType, u64)>,
}

impl World<'_> {
    /// Builds the world and makes it the root of this process.
    ///
    /// Returns who the command runs as and its open working directory. `made` hears what was made for mounts.
    pub(crate) fn build(
        mut self,
        made: impl FnOnce(Vec<Stub>),
    ) -> Result<(Identity, OwnedFd), SandboxError> {
        let spec = self.spec;
        let entries = self.entries()?;
        let host = self.host_side()?;
        let root = self.root()?;
        let attached =
            mounts::attach_over_root(root.as_fd()).and_then(|()| mounts::pivot_to(root.as_fd()));
        attached.map_err(|error| SandboxError::io("change to the root of the step", error))?;
        let identity = match &spec.user {
            User::Named(name) => users::resolve_user(root.as_fd(), name)?,
            User::Ids { uid, gid, groups } => Identity {
                uid: *uid,
                gid: *gid,
                groups: groups.clone(),
            },
        };
        let mut stubs = Vec::new();
        let result = attach_all(&entries, &host, root.as_fd(), &mut stubs);
        // Also those of a world that failed half-way are taken out again.
        made(stubs);
        result?;
        if spec.security == Security::Sandbox {
            mask(root.as_fd(), host.devices[0].1.as_fd())
                .map_err(|(path, error)| SandboxError::io(format!("mask {path}"), error))?;
        }
        if let Some(console) = &self.console {
            place_console(root.as_fd(), console.as_fd())
                .map_err(|error| SandboxError::io("set up /dev/console", error))?;
        }
        let cwd = working_directory(root.as_fd(), &spec.cwd)?;
        if spec.read_only_root {
            sys::mount_setattr(root.as_fd(), mounts::READ_ONLY, false)
                .map_err(|error| SandboxError::io("make the root read-only", error))?;
        }
        Ok((identity, cwd))
    }

    pub(crate) fn root(&self) -> Result<OwnedFd, SandboxError> {
        let result = match &self.spec.root {
            Root::Overlay(overlay) => {
                mounts::overlay(&self.over_stubs(overlay), self.machine.user_namespace)
            }
            Root::Directory(path) => {
                mounts::open_path(path).and_then(|fd| mounts::bind(fd.as_fd()))
            }
        };
        let protected = result.and_then(|root| {
            match self.no_devices() {
                0 => {}
                attributes => sys::mount_setattr(root.as_fd(), attributes, true)?,
            }
            Ok(root)
        });
        let refused = |error: io::Error| {
            // What overlayfs says of an upper directory that it cannot use.
            let action = match (&self.spec.root, error.raw_os_error()) {
                (Root::Overlay(_), Some(libc::EINVAL)) => {
                    "mount the root of the step: the state directory has to lie on a file system that overlayfs can \
                     write to, in a container on a volume"
                }
                _ => "mount the root of the step",
            };
            SandboxError::io(action, error)
        };
        protected.map_err(refused)
    }

    /// Lays the places for the mounts of every step under the layers, where there are any.
    fn over_stubs(&self, overlay: &Overlay) -> Overlay {
        let mut overlay = overlay.clone();
        if let (Some(stubs), false) = (&self.machine.stub_layer, overlay.lowers.is_empty()) {
            overlay.lowers.insert(0, stubs.clone());
        }
        overlay
    }

    /// The attribute of every mount in which a confined command could make device nodes.
    fn no_devices(&self) -> u64 {
        match self.spec.security {
            Security::Sandbox => mounts::NO_DEVICES,
            Security::Insecure => 0,
        }
    }

    /// Returns all mounts in order: the base ones, those of the spec from the shortest path on. One at the
    /// place of a base mount replaces it, as BuildKit has it.
    ///
    /// They are made before the root changes: a user namespace may mount `/proc` and `/sys` only where it
    /// sees those of the machine, whole.
    pub(crate) fn entries(&mut self) -> Result<Vec<Entry>, SandboxError> {
        let prepared = std::mem::take(&mut self.prepared);
        let no_devices = self.no_devices();
        let replaced = |place: &str| {
            self.spec
                .mounts
                .iter()
                .any(|mount| clean(&mount.target) == place)
        };
        let mut bases = Vec::new();
        for (target, base) in BASE.into_iter().filter(|(target, _)| !replaced(target)) {
            let what = self.base(base).map_err(|error| {
                SandboxError::io(format!("make the file system for {target}"), error)
            })?;
            bases.extend(what.map(|what| Entry {
                target: target.to_owned(),
                what,
            }));
        }
        // From here on `/sys` of the host may be covered.
        let mut files = None;
        let mut own = Vec::new();
        for (mount, prepared) in self.spec.mounts.iter().zip(prepared) {
            let target = clean(&mount.target);
            let what = self
                .detached(&mount.source, prepared, &mut files)
                .and_then(|detached| {
                    let read_only = if mount.read_only {
                        mounts::READ_ONLY
                    } else {
                        0
                    };
                    match read_only | no_devices {
                        0 => {}
                        attributes => sys::mount_setattr(detached.as_fd(), attributes, true)?,
                    }
                    Ok(if is_directory(detached.as_fd())? {
                        What::Tree(detached)
                    } else {
                        What::File(detached)
                    })
                });
            let what = what.map_err(|error| source_error(&mount.source, &target, error))?;
            own.push(Entry { target, what });
        }
        own.sort_by(|left, right| left.target.split('/').cmp(right.target.split('/')));
        let mut entries = Vec::new();
        let mut bases = bases.into_iter().peekable();
        for (target, _) in BASE {
            match own.iter().position(|entry| entry.target == target) {
                Some(at) => entries.push(own.remove(at)),
                None => entries.extend(bases.next_if(|base| base.target == target)),
            }
        }
        entries.extend(own);
        Ok(entries)
    }

    /// Makes one of the mounts that every command has.
    fn base(&self, base: Base) -> io::Result<Option<What>> {
        let insecure = self.spec.security == Security::Insecure;
        let nosuid = MountAttrFlags::MOUNT_ATTR_NOSUID;
        let inert = nosuid | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let protected = if insecure {
            inert
        } else {
            inert | MountAttrFlags::MOUNT_ATTR_RDONLY
        };
        let mount = match base {
            Base::Proc | Base::Sys if self.by_runtime => return Ok(Some(What::Place)),
            Base::Queues | Base::ControlGroups if self.by_runtime => return Ok(None),
            Base::Proc if self.machine.fresh_proc => mounts::filesystem("proc", &[], inert)?,
            Base::Proc => clone_of_host("/proc")?,
            Base::Devices => {
                let attributes = if insecure {
                    nosuid
                } else {
                    nosuid | MountAttrFlags::MOUNT_ATTR_NODEV
                };
                return Ok(Some(What::Devices(mounts::tmpfs(
                    Some(DEV_SIZE),
                    0o755,
                    attributes,
                )?)));
            }
            Base::Terminals => pseudo_terminals(nosuid | MountAttrFlags::MOUNT_ATTR_NOEXEC)?,
            // A mount of the step's own takes its place.
            Base::Memory
                if self
                    .spec
                    .mounts
                    .iter()
                    .any(|mount| clean(&mount.target) == "/dev/shm") =>
            {
                return Ok(None);
            }
            Base::Memory => {
                mounts::tmpfs(Some(self.spec.shm_size.unwrap_or(SHM_SIZE)), 0o1777, inert)?
            }
            Base::Queues => mounts::filesystem("mqueue", &[], inert)?,
            // A new one shows the network's devices: it takes rights over the network namespace.
            Base::Sys if self.machine.user_namespace && self.host_network => {
                let mount = clone_of_host("/sys")?;
                sys::mount_setattr(mount.as_fd(), mounts::READ_ONLY, true)?;
                mount
            }
            Base::Sys => mounts::filesystem("sysfs", &[], protected)?,
            // Where there is no unified hierarchy, or none may be mounted, there is nothing to show.
            Base::ControlGroups if !self.machine.unified_cgroups => return Ok(None),
            Base::ControlGroups => {
                return Ok(mounts::filesystem("cgroup2", &[], protected)
                    .ok()
                    .map(What::ControlGroups));
            }
        };
        Ok(Some(What::Tree(mount)))
    }

    fn detached(
        &self,
        source: &Source,
        prepared: Option<Prepared>,
        files: &mut Option<Files>,
    ) -> io::Result<OwnedFd> {
        match source {
            Source::Bind { path, subpath } => {
                let base = mounts::open_path(path)?;
                mounts::bind(beneath(base, subpath)?.as_fd())
            }
            Source::Descriptor { .. } => match prepared {
                Some(prepared) => Ok(prepared.mount),
                None => Err(io::Error::from(io::ErrorKind::NotFound)),
            },
            Source::Overlay { overlay, subpath } => {
                let mount = mounts::overlay(overlay, self.machine.user_namespace)?;
                if clean(subpath) == "/" {
                    return Ok(mount);
                }
                mounts::attach_aside(mount.as_fd())?;
                mounts::bind(beneath(mount, subpath)?.as_fd())
            }
            Source::Tmpfs { size, mode } => {
                mounts::tmpfs(*size, *mode, MountAttrFlags::MOUNT_ATTR_NOSUID)
            }
            Source::File {
                content,
                mode,
                uid,
                gid,
            } => {
                let files = match files {
                    Some(files) => files,
                    None => files.insert(Files::new(self.spec)?),
                };
                files.add(content, *mode, *uid, *gid)
            }
        }
    }

    pub(crate) fn host_side(&self) -> Result<HostSide, SandboxError> {
        let opened = |error| SandboxError::io("open the devices of the host", error);
        let device = |name: &'static str| {
            let path = format!("/dev/{name}");
            let clone = clone_of_host(&path);
            let action = || format!("open {path}, which steps get from this machine");
            Ok((
                name,
                clone.map_err(|error| SandboxError::io(action(), error))?,
            ))
        };
        let devices: Result<Vec<_>, SandboxError> = DEVICES.into_iter().map(device).collect();
        let own = self.spec.security == Security::Insecure && !self.machine.user_namespace;
        let nodes = if own {
            host_nodes().map_err(opened)?
        } else {
            Vec::new()
        };
        Ok(HostSide {
            devices: devices?,
            nodes,
        })
    }
}

fn clone_of_host(path: &str) -> io::Result<OwnedFd> {
    mounts::bind(mounts::open_path(path.as_ref())?.as_fd())
}

/// Makes the places that every step mounts over. Other builders may be at it at the same moment.
pub(crate) fn fill_stub_layer(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let directory = mounts::open_path(directory)?;
    rustix::fs::chmodat(
        &directory,
        ".",
        Mode::from_raw_mode(0o755),
        rustix::fs::AtFlags::empty(),
    )?;
    let places = [
        ("/dev", Kind::Directory),
        ("/proc", Kind::Directory),
        ("/sys", Kind::Directory),
        ("/etc/hosts", Kind::File),
        ("/etc/resolv.conf", Kind::File),
    ];
    for (path, kind) in places {
        resolve::make_in_root(directory.as_fd(), path, kind, &mut Vec::new())?;
    }
    Ok(())
}

/// Opens the root of this process.
pub(crate) fn open_root() -> Result<OwnedFd, SandboxError> {
    rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| SandboxError::io("open the root of the step", error))
}

/// What to do where something lies at the place of a mount or of the working directory.
const IN_THE_WAY: &str =
    "name another place, or remove in an earlier step what lies at this one or on the way to it";

/// Returns the error of a mount whose source cannot be opened.
pub(crate) fn source_error(source: &Source, target: &str, error: io::Error) -> SandboxError {
    let action = |subpath: &str| format!("open the source {subpath} of the mount at {target}");
    match source {
        Source::Bind { subpath, .. }
        | Source::Descriptor { subpath, .. }
        | Source::Overlay { subpath, .. }
            if clean(subpath) != "/" =>
        {
            let help = "the source is a path in what the mount is from";
            SandboxError::at_place(action(&clean(subpath)), error, help)
        }
        _ => SandboxError::io(format!("open the source of the mount at {target}"), error),
    }
}

pub(crate) fn attach_all(
    entries: &[Entry],
    host: &HostSide,
    root: BorrowedFd<'_>,
    stubs: &mut Vec<Stub>,
) -> Result<(), SandboxError> {
    for entry in entries {
        attach_entry(entry, host, root, stubs).map_err(|error| {
            let action = format!("mount {}", entry.target);
            match BASE.iter().any(|(target, _)| *target == entry.target) {
                true => SandboxError::io(action, error),
                false => SandboxError::at_place(action, error, IN_THE_WAY),
            }
        })?;
    }
    Ok(())
}

fn attach_entry(
    entry: &Entry,
    host: &HostSide,
    root: BorrowedFd<'_>,
    stubs: &mut Vec<Stub>,
) -> io::Result<()> {
    let (mount, kind) = match &entry.what {
        What::ControlGroups(mount) => {
            let Ok(target) = resolve::open_in_root(root, &entry.target) else {
                return Ok(());
            };
            return mounts::attach(mount.as_fd(), target.as_fd());
        }
        What::Place => {
            resolve::make_in_root(root, &entry.target, Kind::Directory, stubs)?;
            return Ok(());
        }
        What::Devices(mount) | What::Tree(mount) => (mount, Kind::Directory),
        What::File(mount) => (mount, Kind::File),
    };
    let target = resolve::make_in_root(root, &entry.target, kind, stubs)?;
    mounts::attach(mount.as_fd(), target.as_fd())?;
    match &entry.what {
        What::Devices(mount) => fill_devices(mount.as_fd(), host),
        _ => Ok(()),
    }
}

fn pseudo_terminals(attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let base = [
        ("newinstance", None),
        ("ptmxmode", Some("0666")),
        ("mode", Some("0620")),
    ];
    let with_group: Vec<_> = base.iter().copied().chain([("gid", Some("5"))]).collect();
    // Group 5 (tty) may not be mapped in a user namespace.
    mounts::filesystem("devpts", &with_group, attributes)
        .or_else(|_| mounts::filesystem("devpts", &base, attributes))
}

fn fill_devices(dev: BorrowedFd<'_>, host: &HostSide) -> io::Result<()> {
    for name in ["pts", "shm", "mqueue"] {
        rustix::fs::mkdirat(dev, name, Mode::from_raw_mode(0o755))?;
    }
    for (name, target) in DEVICE_LINKS {
        rustix::fs::symlinkat(target, dev, name)?;
    }
    for (path, kind, number) in &host.nodes {
        if let Some((directory, _)) = path.rsplit_once('/') {
            resolve::make_in_root(dev, directory, Kind::Directory, &mut Vec::new())?;
        }
        rustix::fs::mknodat(
            dev,
            path.as_str(),
            *kind,
            Mode::from_raw_mode(0o600),
            *number,
        )?;
    }
    for (name, mount) in &host.devices {
        let place = make_file(dev, name, 0o666)?;
        mounts::attach(mount.as_fd(), place.as_fd())?;
    }
    Ok(())
}

fn make_file(directory: BorrowedFd<'_>, name: &str, mode: u32) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(mode)).map_err(io::Error::from)
}

/// Lists the device nodes of the host's `/dev`, terminals and links left out.
fn host_nodes() -> io::Result<Vec<(String, FileType, u64)>> {
    let mut nodes = Vec::new();
    let mut pending = vec![String::new()];
    while let Some(directory) = pending.pop() {
        let entries = match std::fs::read_dir(std::path::Path::new("/dev").join(&directory)) {
            Ok(entries) => entries,
            Err(_) if !directory.is_empty() => continue,
            Err(error) => return Err(error),
        };
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let path = if directory.is_empty() {
                name
            } else {
                format!("{directory}/{name}")
            };
            let Ok(stat) = rustix::fs::lstat(entry.path()) else {
                continue;
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory if !matches!(path.as_str(), "pts" | "shm" | "mqueue") => {
                    pending.push(path)
                }
                kind @ (FileType::CharacterDevice | FileType::BlockDevice)
                    if path != "ptmx" && !DEVICES.contains(&path.as_str()) =>
                {
                    nodes.push((path, kind, stat.st_rdev));
                }
                _ => {}
            }
        }
    }
    nodes.sort_by(|left, right| left.0.cmp(&right.0));
    Ok(nodes)
}

/// Hides what a confined command must not see and protects what it must not write.
///
/// `null` is the host's, never the step's own: a mount over `/dev` could have put anything in its place
/// (CVE-2025-31133).
fn mask(root: BorrowedFd<'_>, null: BorrowedFd<'_>) -> Result<(), (&'static str, io::Error)> {
    for path in MASKED {
        let Ok(target) = resolve::open_in_root(root, path) else {
            continue;
        };
        let cover = || -> io::Result<()> {
            if is_directory(target.as_fd())? {
                let empty = mounts::tmpfs(Some(4096), 0o755, MountAttrFlags::MOUNT_ATTR_RDONLY)?;
                return mounts::attach(empty.as_fd(), target.as_fd());
            }
            match mounts::bind(null) {
                // Not attached yet, since a mount of the spec took the place of /dev: now it is.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    mounts::attach(null, target.as_fd())
                }
                copy => mounts::attach(copy?.as_fd(), target.as_fd()),
            }
        };
        cover().map_err(|error| (path, error))?;
    }
    for path in READ_ONLY_PATHS {
        let Ok(target) = resolve::open_in_root(root, path) else {
            continue;
        };
        let protect = || -> io::Result<()> {
            let mount = mounts::bind(target.as_fd())?;
            sys::mount_setattr(mount.as_fd(), mounts::READ_ONLY, true)?;
            mounts::attach(mount.as_fd(), target.as_fd())
        };
        protect().map_err(|error| (path, error))?;
    }
    Ok(())
}

fn place_console(root: BorrowedFd<'_>, console: BorrowedFd<'_>) -> io::Result<()> {
    let target = resolve::make_in_root(root, "/dev/console", Kind::File, &mut Vec::new())?;
    mounts::attach(console, target.as_fd())
}

/// Opens the working directory, made when it is missing. Never through a link of `/proc` to an open descriptor.
pub(crate) fn working_directory(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, SandboxError> {
    let failed = |error| {
        let action = format!("change to the working directory {path}");
        SandboxError::at_place(action, error, IN_THE_WAY)
    };
    let cwd =
        resolve::make_in_root(root, path, Kind::Directory, &mut Vec::new()).map_err(failed)?;
    if !is_directory(cwd.as_fd()).map_err(failed)? {
        return Err(failed(io::Error::from(io::ErrorKind::NotADirectory)));
    }
    Ok(cwd)
}

/// A file system in memory for all files of a step, each of which is then mounted by itself.
struct Files {
    mount: OwnedFd,
    count: usize,
}

impl Files {
    fn new(spec: &Spec) -> io::Result<Files> {
        // Room for each file, its content in whole pages, and for the directory.
        let room = |mount: &Mount| match &mount.source {
            Source::File { content, .. } => (content.0.len() as u64).next_multiple_of(4096) + 8192,
            _ => 0,
        };
        let size = spec.mounts.iter().map(room).sum::<u64>() + 16384;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = mounts::tmpfs(Some(size), 0o700, attributes)?;
        mounts::attach_aside(mount.as_fd())?;
        Ok(Files { mount, count: 0 })
    }

    /// Makes one file and returns a mount of it.
    fn add(&mut self, content: &Content, mode: u32, uid: u32, gid: u32) -> io::Result<OwnedFd> {
        use rustix::fs::{Gid, Uid};
        let name = self.count.to_string();
        self.count += 1;
        let fd = make_file(self.mount.as_fd(), &name, 0o600)?;
        let mut rest = content.0.as_slice();
        while !rest.is_empty() {
            let written = rustix::io::retry_on_intr(|| rustix::io::write(&fd, rest))?;
            rest = rest.get(written..).unwrap_or_default();
        }
        rustix::fs::fchown(&fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))?;
        mounts::bind(fd.as_fd())
    }
}

/// Opens `subpath` inside `base`; `base` itself when there is none.
pub(crate) fn beneath(base: OwnedFd, subpath: &str) -> io::Result<OwnedFd> {
    if clean(subpath) == "/" {
        Ok(base)
    } else {
        resolve::open_in_root(base.as_fd(), subpath)
    }
}

fn is_directory(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let stat = rustix::fs::statat(fd, "", rustix::fs::AtFlags::EMPTY_PATH)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Returns an absolute path without `.`, `..` and doubled slashes.
pub(crate) fn clean(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_compared_in_one_form() {
        assert_eq!(clean("a/./b//../c/"), "/a/c");
        assert_eq!(clean("/../.."), "/");
        assert_eq!(clean(""), "/");
    }
}
