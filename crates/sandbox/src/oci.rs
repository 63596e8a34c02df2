//! A step by an OCI runtime, seen from the step's first process.
//!
//! The process is the first of a pid namespace here too, and has a mount namespace in which everything for the
//! runtime lies in one file system in memory: the root with its mounts, `config.json`, the runtime's state. It starts
//! the runtime (`create`, `start`), inherits the container's first process when `create` ends, and so hears exactly
//! how it ends. When it dies, or the helper, or the builder, the kernel takes the container, the runtime and all
//! that was mounted along: nothing is left that could be cleaned up later.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode};
use rustix::mount::{MountAttrFlags, UnmountFlags};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
use rustix::thread::ThreadNameSpaceType;

use crate::bundle::{self, Facts};
use crate::capabilities::Set;
use crate::child::{self, Report};
use crate::command::{self, Command, StartError};
use crate::error::{self, SandboxError, failed};
use crate::exit::Status;
use crate::mounts;
use crate::runtime::{Kind, Runtime, wait_for};
use crate::signals;
use crate::spec::{Security, Spec, User};
use crate::sys::{self, Cloned, WaitStatus};
use crate::users::{self, Identity};
use crate::world::{self, DEVICES, MASKED, What, World};

/// How long a runtime may take to make or to start a container, on a machine under load.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long it may take to tidy up after itself.
const TIDYING: Duration = Duration::from_secs(10);

/// What it says beyond is not read.
const MAX_LOG: u64 = 64 << 10;

/// Directories that exist almost anywhere and that no runtime needs: one of them is covered.
const STAGES: [&str; 8] = [
    "/mnt", "/media", "/srv", "/opt", "/home", "/tmp", "/run", "/var",
];

/// The runtime of a step.
#[derive(Debug)]
pub(crate) struct Chosen<'a> {
    pub(crate) runtime: &'a Runtime,
    /// The container's name, of which there is no other on the machine.
    pub(crate) id: String,
    /// The group in the unified hierarchy that the command belongs into.
    pub(crate) unified: Option<BorrowedFd<'a>>,
}

/// A step that is ready for the runtime.
struct Stage {
    path: PathBuf,
    identity: Identity,
    env: Vec<String>,
    cwd: OwnedFd,
    cwd_text: String,
    root: OwnedFd,
}

impl Chosen<'_> {
    /// Has the runtime start the command; returns its process, which is a child of this one.
    pub(crate) fn start(
        &self,
        world: World<'_>,
        stdio: &[OwnedFd; 3],
        old_groups: &[OwnedFd],
        report: &OwnedFd,
    ) -> Result<Pid, SandboxError> {
        let (spec, machine, host_network) = (world.spec, world.machine, world.host_network);
        if !machine.fresh_proc {
            return Err(self.runtime.refuse("a step without a /proc of its own"));
        }
        let stage = self.stage(world, report)?;
        let sys_tree = machine.user_namespace && host_network;
        let text = |name: &str| format!("{}/{name}", stage.path.display());
        if sys_tree {
            let place = stage.make_directory("sys")?;
            let tree = mounts::open_path("/sys".as_ref())
                .and_then(|sys| mounts::bind(sys.as_fd()))
                .and_then(|tree| {
                    sys::mount_setattr(tree.as_fd(), mounts::READ_ONLY, true)?;
                    mounts::attach(tree.as_fd(), place.as_fd())
                });
            tree.map_err(failed("make the file system for /sys"))?;
        }
        // Two files are always there when any are; not seen any more once there is a /proc of its own.
        let foreign =
            std::fs::read_dir("/proc/sys/fs/binfmt_misc").is_ok_and(|formats| formats.count() > 2);
        self.set_scene(machine.unified_cgroups)?;
        self.look_up(spec, &stage, machine.groups_forbidden, foreign, report)?;
        let rlimits = spec.rlimits.iter().map(|limit| {
            let number = command::resource_number(limit.resource);
            let (soft, hard) = sys::attainable_limit(number, limit.soft, limit.hard)
                .map_err(failed("read the limits of this process"))?;
            Ok((limit.resource, soft, hard))
        });
        let (root, devices, sys) = (text("rootfs"), text("dev"), text("sys"));
        let config = bundle::config(&Facts {
            spec,
            identity: &stage.identity,
            env: &stage.env,
            cwd: &stage.cwd_text,
            rlimits: rlimits.collect::<Result<_, SandboxError>>()?,
            own_capabilities: own_capabilities()?,
            root: &root,
            devices: &devices,
            sys: sys_tree.then_some(&sys),
            // This process is the first in its own /proc, and in the step's network already.
            network: (!host_network).then_some("/proc/1/ns/net"),
            control_groups: machine.unified_cgroups,
            groups_forbidden: machine.groups_forbidden,
        });
        let bytes = serde_json::to_vec(&config)
            .map_err(|error| SandboxError::Protocol(error.to_string()))?;
        let path = stage.path.join("config.json");
        std::fs::write(&path, bytes).map_err(failed("write the bundle for the runtime"))?;
        for fd in stdio {
            command::hand_over(fd.as_fd(), stage.identity.uid);
        }
        // Nothing is blocked for it: the runtime would hand that on. What comes now is held.
        let pid = self.create(&stage.path, stdio)?;
        if spec.security == Security::Sandbox && !machine.user_namespace {
            self.close_devices(pid)?;
        }
        self.join_groups(pid, old_groups)?;
        self.verb(&stage.path, "start", &[], PATIENCE)?;
        signals::forward_to(pid);
        Ok(pid)
    }

    /// Has the runtime forget the container, when its command has ended.
    pub(crate) fn tidy(&self) {
        let Some(stage) = self.stage_place() else {
            return;
        };
        // What these two know of it is in the file system that goes with this process.
        if self.runtime.kind == Kind::Other {
            let _ = self.verb(stage, "delete", &["--force"], TIDYING);
        }
    }

    /// Builds the root, with all mounts that need nothing of the command's own namespaces, in a file system in memory.
    fn stage(&self, mut world: World<'_>, report: &OwnedFd) -> Result<Stage, SandboxError> {
        let spec = world.spec;
        let sys_before = mounts::mount_id("/sys").ok();
        let entries = world.entries()?;
        let host = world.host_side()?;
        let root = world.root()?;
        // What was put aside there to clone parts of it has done its work.
        while sys_before.is_some() && mounts::mount_id("/sys").ok() != sys_before {
            rustix::mount::unmount("/sys", UnmountFlags::DETACH).map_err(failed("clear /sys"))?;
        }
        let path = self.stage_place().map(Path::to_owned).ok_or_else(|| {
            self.runtime
                .refuse("a machine that has none of the usual directories")
        })?;
        // From here on, what lay at this path is hidden: every source is open by now.
        let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
        mounts::tmpfs(Some(64 << 20), 0o700, attributes)
            .and_then(|memory| {
                let place = mounts::open_path(&path)?;
                mounts::attach(memory.as_fd(), place.as_fd())
            })
            .map_err(failed("make a place for the runtime"))?;
        let mut stage = Stage {
            path,
            identity: Identity {
                uid: 0,
                gid: 0,
                groups: Vec::new(),
            },
            env: Vec::new(),
            cwd: root.try_clone().map_err(failed("copy a descriptor"))?,
            cwd_text: String::new(),
            root,
        };
        let root = stage.root.as_fd();
        let place = stage.make_directory("rootfs")?;
        mounts::attach(root, place.as_fd()).map_err(failed("mount the root of the step"))?;
        stage.make_directory("state")?;
        stage.identity = match &spec.user {
            User::Named(name) => users::resolve_user(root, name)?,
            User::Ids { uid, gid, groups } => Identity {
                uid: *uid,
                gid: *gid,
                groups: groups.clone(),
            },
        };
        let mut stubs = Vec::new();
        let result = world::attach_all(&entries, &host, root, &mut stubs);
        child::send(report, &Report::Stubs(stubs));
        result?;
        let devices = entries.iter().find_map(|entry| match &entry.what {
            What::Devices(mount) => Some(mount),
            _ => None,
        });
        if let Some(devices) = devices {
            let place = stage.make_directory("dev")?;
            mounts::bind(devices.as_fd())
                .and_then(|copy| mounts::attach(copy.as_fd(), place.as_fd()))
                .map_err(failed("mount /dev"))?;
        }
        stage.env = child::environment(&spec.env, &stage.identity, root)?;
        let (cwd, text) = self.working_directory(spec, &stage)?;
        (stage.cwd, stage.cwd_text) = (cwd, text);
        if spec.read_only_root {
            sys::mount_setattr(stage.root.as_fd(), mounts::READ_ONLY, false)
                .map_err(failed("make the root read-only"))?;
        }
        Ok(stage)
    }

    fn stage_place(&self) -> Option<&'static Path> {
        let program = self.runtime.path();
        let real = std::fs::canonicalize(program).unwrap_or_else(|_| program.to_owned());
        STAGES
            .into_iter()
            .map(Path::new)
            .find(|place| place.is_dir() && !program.starts_with(place) && !real.starts_with(place))
    }

    /// Makes the working directory and finds its path without links.
    ///
    /// A runtime changes into it by name, in a root that has `/proc`: a name that leads there, to a descriptor the
    /// runtime has open, must not reach it (CVE-2024-21626).
    fn working_directory(
        &self,
        spec: &Spec,
        stage: &Stage,
    ) -> Result<(OwnedFd, String), SandboxError> {
        let wanted = world::clean(&spec.cwd);
        let below = |place: &str| wanted.starts_with(place);
        if below("/proc/") || below("/sys/") {
            return Err(self
                .runtime
                .refuse(&format!("the working directory {wanted}")));
        }
        let cwd = world::working_directory(stage.root.as_fd(), &spec.cwd)?;
        let link = format!("/proc/self/fd/{}", cwd.as_raw_fd());
        let real = std::fs::read_link(link).map_err(failed("find the working directory"))?;
        let inside = real.strip_prefix(stage.path.join("rootfs")).ok();
        let inside = inside.and_then(Path::to_str).ok_or_else(|| {
            self.runtime
                .refuse(&format!("the working directory {}", spec.cwd))
        })?;
        if inside.starts_with("proc/") || inside.starts_with("sys/") {
            return Err(self
                .runtime
                .refuse(&format!("the working directory /{inside}")));
        }
        let inside = format!("/{inside}");
        Ok((cwd, inside))
    }

    /// Prepares what the runtime itself sees: its own `/proc`, and no control groups to change.
    fn set_scene(&self, unified_cgroups: bool) -> Result<(), SandboxError> {
        let inert = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        // The machine's own would show the runtime other processes under the numbers it knows.
        mounts::filesystem("proc", &[], inert)
            .and_then(|proc| {
                let place = mounts::open_path("/proc".as_ref())?;
                mounts::attach(proc.as_fd(), place.as_fd())
            })
            .map_err(failed("mount /proc for the runtime"))?;
        let Ok(groups) = mounts::open_path("/sys/fs/cgroup".as_ref()) else {
            return Ok(());
        };
        let result = match self.runtime.kind {
            // It refuses a machine with both kinds of control groups, also when it is to leave them alone.
            Kind::Crun if !unified_cgroups => {
                mounts::tmpfs(Some(4096), 0o755, MountAttrFlags::MOUNT_ATTR_RDONLY)
                    .and_then(|empty| mounts::attach(empty.as_fd(), groups.as_fd()))
            }
            Kind::Crun | Kind::Other => Ok(()),
            Kind::Runc => mounts::bind(groups.as_fd()).and_then(|copy| {
                sys::mount_setattr(copy.as_fd(), mounts::READ_ONLY, true)?;
                mounts::attach(copy.as_fd(), groups.as_fd())
            }),
        };
        result.map_err(failed("protect the control groups"))
    }

    /// Finds the program as [`Command`] does, in a process that goes into the root for it, so that the words for one
    /// that is not there do not depend on the runtime. Never returns when there is none.
    fn look_up(
        &self,
        spec: &Spec,
        stage: &Stage,
        groups_forbidden: bool,
        foreign: bool,
        report: &OwnedFd,
    ) -> Result<(), SandboxError> {
        // SAFETY: this process is a clone of the single-threaded helper and started no thread.
        match unsafe { sys::clone_process(0, None) }.map_err(failed("look for the program"))? {
            Cloned::Parent { pid, .. } => {
                let (_, status, _) = sys::wait_child(Some(pid))
                    .map_err(failed("wait for the search for the program"))?;
                match status {
                    WaitStatus::Code(0) => Ok(()),
                    WaitStatus::Code(code) if code > 1 => {
                        // Said by the other; the reason is what counts.
                        let ended = Report::Ended {
                            status: Status::Code(code),
                            peak_memory: 0,
                        };
                        child::send(report, &ended);
                        sys::exit_now(0)
                    }
                    _ => sys::exit_now(1),
                }
            }
            Cloned::Child => {
                let command = Command {
                    args: &spec.args,
                    env: stage.env.clone(),
                    cwd: match stage.cwd.try_clone() {
                        Ok(cwd) => cwd,
                        Err(_) => sys::exit_now(1),
                    },
                    identity: stage.identity.clone(),
                    stdio: &[],
                    terminal: false,
                    rlimits: &[],
                    capabilities: None,
                    filter: None,
                    groups_forbidden,
                };
                let code = match command.search(stage.root.as_fd(), foreign) {
                    Ok(()) => 0,
                    Err(StartError::Setup(error)) => {
                        child::send(report, &Report::Failed(error::Failure::of(&error)));
                        1
                    }
                    Err(StartError::Command { code, reason }) => {
                        child::send(report, &Report::NotStarted { code, reason });
                        code
                    }
                };
                sys::exit_now(code)
            }
        }
    }

    /// Makes the container; its first process waits for its start, and is a child of this one afterwards.
    fn create(&self, stage: &Path, stdio: &[OwnedFd; 3]) -> Result<Pid, SandboxError> {
        let pid_file = stage.join("pid");
        let stream = |fd: &OwnedFd| fd.try_clone().map_err(failed("copy a descriptor"));
        let mut command = self
            .runtime
            .command(&stage.join("state"), &stage.join("log"));
        command
            .arg("create")
            .arg("--bundle")
            .arg(stage)
            .arg("--pid-file")
            .arg(&pid_file)
            .arg("--no-new-keyring")
            .arg(&self.id)
            .stdin(stream(&stdio[0])?)
            .stdout(stream(&stdio[1])?)
            .stderr(stream(&stdio[2])?);
        self.run(command, stage, "create", PATIENCE)?;
        let text = std::fs::read_to_string(&pid_file).unwrap_or_default();
        let pid = text.trim().parse().ok().filter(|pid| *pid > 1);
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        pid.and_then(Pid::from_raw)
            // What is no child of this process now is no process that the runtime left.
            .filter(|pid| rustix::process::waitid(WaitId::Pid(*pid), look).is_ok())
            .ok_or_else(|| SandboxError::Runtime {
                name: self.runtime.name().to_owned(),
                reason: "it made a container and does not say which process is in it".to_owned(),
            })
    }

    fn verb(
        &self,
        stage: &Path,
        verb: &'static str,
        options: &[&str],
        patience: Duration,
    ) -> Result<(), SandboxError> {
        let mut command = self
            .runtime
            .command(&stage.join("state"), &stage.join("log"));
        command.arg(verb).args(options).arg(&self.id);
        self.run(command, stage, verb, patience)
    }

    fn run(
        &self,
        mut command: std::process::Command,
        stage: &Path,
        verb: &'static str,
        patience: Duration,
    ) -> Result<(), SandboxError> {
        let failed = |reason: String| SandboxError::Runtime {
            name: self.runtime.name().to_owned(),
            reason,
        };
        rustix::process::umask(Mode::from_raw_mode(0o022));
        let ended = command
            .spawn()
            .and_then(|mut child| wait_for(&mut child, patience))
            .map_err(|error| failed(format!("its {verb} can't be run: {error}")))?;
        match ended {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(failed(match said(&stage.join("log")) {
                Some(words) => format!("{verb} failed: {words}"),
                None => format!("{verb} failed with {status} and no word in its log"),
            })),
            None => Err(failed(format!("{verb} took longer than {patience:?}"))),
        }
    }

    /// Sees to it that no mount of the container, whose first process waits, makes device nodes open.
    ///
    /// `config.json` has no word for the attributes of the root, and crun takes from it what the root came with. A
    /// user namespace needs none of this: devices are closed in what it mounts.
    fn close_devices(&self, pid: Pid) -> Result<(), SandboxError> {
        let entered = || -> rustix::io::Result<()> {
            let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
            rustix::thread::move_into_thread_name_spaces(
                process.as_fd(),
                ThreadNameSpaceType::MOUNT,
            )
        };
        // SAFETY: this process is a clone of the single-threaded helper and started no thread.
        match unsafe { sys::clone_process(0, None) }.map_err(failed("protect the root"))? {
            Cloned::Child => {
                let protected = entered().map_err(std::io::Error::from).and_then(|()| {
                    let root = mounts::open_path("/".as_ref())?;
                    sys::mount_setattr(root.as_fd(), mounts::NO_DEVICES, false)
                });
                sys::exit_now(i32::from(protected.is_err()))
            }
            Cloned::Parent { pid, .. } => {
                sys::wait_child(Some(pid))
                    .map_err(failed("wait for the protection of the root"))?;
            }
        }
        // What counts is how it is now, whatever became of that.
        let path = format!("/proc/{}/mountinfo", pid.as_raw_nonzero());
        let text = std::fs::read_to_string(path).map_err(failed("read the step's mounts"))?;
        match open_to_devices(&text) {
            None => Ok(()),
            Some(place) => Err(SandboxError::Runtime {
                name: self.runtime.name().to_owned(),
                reason: format!("it mounts {place} so that device nodes can be opened there"),
            }),
        }
    }

    /// Puts the container's first process, which waits, into the groups that limit the command. The runtime stays out:
    /// limits for a command may be too tight for it.
    fn join_groups(&self, pid: Pid, old: &[OwnedFd]) -> Result<(), SandboxError> {
        let number = pid.as_raw_nonzero().to_string();
        for procs in old {
            rustix::io::write(procs, number.as_bytes())
                .map_err(failed("enter the control group"))?;
        }
        if let Some(group) = self.unified {
            let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
            let procs = rustix::fs::openat(group, "cgroup.procs", flags, Mode::empty())
                .map_err(failed("open the control group"))?;
            rustix::io::write(&procs, number.as_bytes())
                .map_err(failed("enter the control group"))?;
        }
        Ok(())
    }
}

impl Stage {
    fn make_directory(&self, name: &str) -> Result<OwnedFd, SandboxError> {
        let path = self.path.join(name);
        rustix::fs::mkdirat(CWD, &path, Mode::from_raw_mode(0o755))
            .map_err(failed("make a place for the runtime"))?;
        mounts::open_path(&path).map_err(failed("open a place for the runtime"))
    }
}

/// Returns the first mount (proc_pid_mountinfo(5)) in which device nodes open and that is none of the devices every
/// command has.
fn open_to_devices(mountinfo: &str) -> Option<&str> {
    // In these nobody can make a node; terminals, which devpts makes, are for opening.
    const WITHOUT_NODES: [&str; 6] = ["devpts", "proc", "sysfs", "mqueue", "cgroup", "cgroup2"];
    let lines = mountinfo.lines().filter(|line| {
        let kind = line
            .split_once(" - ")
            .and_then(|(_, rest)| rest.split(' ').next());
        !kind.is_some_and(|kind| WITHOUT_NODES.contains(&kind))
    });
    let mut mounts = lines.filter_map(|line| {
        let mut fields = line.split(' ').skip(4);
        Some((fields.next()?, fields.next()?))
    });
    let known = |place: &str| {
        let device = place.strip_prefix("/dev/");
        device.is_some_and(|name| DEVICES.contains(&name)) || MASKED.contains(&place)
    };
    let open = mounts.find(|(place, options)| {
        !options.split(',').any(|option| option == "nodev") && !known(place)
    });
    open.map(|(place, _)| place)
}

/// Returns the capabilities this process has.
fn own_capabilities() -> Result<Set, SandboxError> {
    let status =
        std::fs::read_to_string("/proc/self/status").map_err(failed("read /proc/self/status"))?;
    let effective = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    effective
        .map(Set)
        .ok_or_else(|| SandboxError::Protocol("/proc/self/status".to_owned()))
}

/// Returns the last error in a runtime's log, in one line; `None` when it says nothing.
fn said(log: &Path) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Line {
        level: Option<String>,
        msg: String,
    }
    let mut bytes = Vec::new();
    let log = std::fs::File::open(log).ok()?;
    log.take(MAX_LOG).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let words = text
        .lines()
        .rev()
        .find_map(|line| match serde_json::from_str::<Line>(line) {
            Ok(line)
                if line
                    .level
                    .as_deref()
                    .is_none_or(|level| level == "error" || level == "fatal") =>
            {
                Some(line.msg)
            }
            Ok(_) => None,
            Err(_) => Some(line.to_owned()).filter(|line| !line.trim().is_empty()),
        })?;
    let plain: String = words
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .take(1000)
        .collect();
    Some(plain.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::{open_to_devices, said};

    #[test]
    fn mounts_that_open_devices_are_found() {
        let root = "20 1 0:30 / / rw,nodev,relatime - overlay overlay rw\n";
        let null = "21 20 0:5 /null /dev/null rw,nosuid shared:1 - devtmpfs none rw\n";
        let mask = "22 20 0:5 /null /proc/keys rw,nosuid - devtmpfs none rw\n";
        let check = |more: &str, expected| {
            assert_eq!(
                open_to_devices(&format!("{root}{null}{mask}{more}")),
                expected
            );
        };
        check("", None);
        check(
            "24 20 0:40 /bus /proc/bus ro,relatime - proc proc rw\n",
            None,
        );
        check("23 20 0:31 / /dev/pts rw,nosuid - devpts none rw\n", None);
        check("23 20 0:31 / /dev rw,nosuid,nodev - tmpfs none rw\n", None);
        check(
            "23 20 0:31 / /dev rw,nosuid - tmpfs nodev rw\n",
            Some("/dev"),
        );
        check("23 20 0:31 / / rw,nodevice - tmpfs none rw\n", Some("/"));
        check(
            "23 20 8:1 /null /dev/sda rw - devtmpfs none rw\n",
            Some("/dev/sda"),
        );
    }

    #[test]
    fn the_last_error_of_a_log_is_told_and_nothing_else_of_it() {
        let check = |log: &[u8], expected: Option<&str>| {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("log");
            std::fs::write(&path, log).expect("a file");
            assert_eq!(said(&path).as_deref(), expected);
        };
        check(b"", None);
        check(b"{\"level\":\"warning\",\"msg\":\"no matter\"}\n", None);
        check(
            b"{\"level\":\"error\",\"msg\":\"first\"}\n{\"msg\":\"sec\\u001bond\",\"level\":\"error\"}\n{\"level\":\"info\",\"msg\":\"x\"}\n",
            Some("sec ond"),
        );
        check(b"\xff\x00garbage\n\n", Some("\u{fffd} garbage"));
        assert_eq!(said("/nonexistent/log".as_ref()), None);
    }
}
