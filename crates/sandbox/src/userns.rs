//! The rung of isolation: which one can be had, why no better one, and how it is entered.
//!
//! What decides takes [`Facts`] and returns values; only [`probe`] and [`enter_if_needed`] touch the machine.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::MountPropagationFlags;
use rustix::process::{Gid, Uid};

use crate::error::{SandboxError, failed};
use crate::machine;
use crate::sys::{self, Cloned, WaitStatus};

/// How far a step is from the rights of the machine's root, the farthest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rung {
    /// No namespace can be made: no step can run.
    Unavailable,
    /// The builder is root: steps have namespaces, Docker's capabilities and seccomp filter.
    Root,
    /// A user namespace with the user's own id only.
    SingleId,
    /// A user namespace with subordinate ids: root of a step is nobody on the machine.
    SubordinateIds,
}

impl Rung {
    /// Returns the rung of a name that [`fmt::Display`] gives.
    pub fn from_name(name: &str) -> Option<Rung> {
        [
            Rung::Unavailable,
            Rung::Root,
            Rung::SingleId,
            Rung::SubordinateIds,
        ]
        .into_iter()
        .find(|rung| rung.to_string() == name)
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Rung::Unavailable => "unavailable",
            Rung::Root => "root",
            Rung::SingleId => "single-id",
            Rung::SubordinateIds => "subordinate-ids",
        })
    }
}

/// The isolation of this machine and process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Isolation {
    pub rung: Rung,
    /// What stands before a better rung; `None` where nothing does, or nobody knows of a better one.
    pub obstacle: Option<Obstacle>,
    /// Why no better rung, and what this one limits; one sentence each, for the user.
    pub notes: Vec<String>,
}

/// What stands before a better rung.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// `kernel.apparmor_restrict_unprivileged_userns` is 1, and no profile allows it.
    AppArmor,
    /// As many user namespaces as `user.max_user_namespaces` allows are there.
    NamespaceLimit,
    /// The kernel's setting, a seccomp filter or a chroot forbids user namespaces.
    NamespacesForbidden,
    /// There is no such system call, or it is hidden.
    NoNamespaces,
    /// The kernel refuses user namespaces for another reason: its error number.
    NamespacesRefused(i32),
    /// A file with ranges of ids has none for this user.
    NoRange { file: &'static str, uid: u32 },
    /// A program is missing.
    NoTool { name: &'static str },
    /// A program is neither setuid nor has capabilities.
    UnprivilegedTool { path: PathBuf },
    /// A program is on a file system mounted `nosuid`.
    NoSuid { path: PathBuf },
    /// The process has `no_new_privs`, so that no program gains rights.
    NoNewPrivileges,
    /// A program that maps ids refused it, with its words.
    MapRefused(String),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NONE_MADE: &str = "user namespaces can't be made";
        match self {
            Obstacle::AppArmor => formatter.write_str(
                "AppArmor forbids user namespaces to ordinary users (kernel.apparmor_restrict_unprivileged_userns \
                 is 1): give the builder a profile that allows userns, or set it to 0",
            ),
            Obstacle::NamespaceLimit => write!(
                formatter,
                "{NONE_MADE}: the limit user.max_user_namespaces is reached or 0"
            ),
            Obstacle::NamespacesForbidden => write!(
                formatter,
                "{NONE_MADE}: they are forbidden (kernel.unprivileged_userns_clone, a seccomp filter of a container, \
                 or a chroot)"
            ),
            Obstacle::NoNamespaces => write!(
                formatter,
                "{NONE_MADE}: the kernel has none, or a seccomp filter of a container hides them"
            ),
            Obstacle::NamespacesRefused(errno) => {
                write!(formatter, "{NONE_MADE}: {}", crate::error::errno_text(*errno))
            }
            Obstacle::NoRange { file, uid } => write!(
                formatter,
                "no subordinate ids: {file} has no range for uid {uid}"
            ),
            Obstacle::NoTool { name } => write!(
                formatter,
                "{name} is not installed (package uidmap or shadow-utils)"
            ),
            Obstacle::UnprivilegedTool { path } => write!(
                formatter,
                "{} is neither setuid nor has capabilities",
                path.display()
            ),
            Obstacle::NoSuid { path } => write!(
                formatter,
                "{} is on a file system mounted nosuid",
                path.display()
            ),
            Obstacle::NoNewPrivileges => formatter
                .write_str("no_new_privs is set for this process, so newuidmap gains no rights"),
            Obstacle::MapRefused(reason) => formatter.write_str(reason),
        }
    }
}

/// What is known of the machine and of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub uid: u32,
    pub gid: u32,
    /// May make mount namespaces: root, or inside a user namespace already.
    pub privileged: bool,
    /// The ids of a user namespace this process is in already; `None` in the initial one.
    pub mapped_ids: Option<u64>,
    pub no_new_privs: bool,
    pub newuidmap: Tool,
    pub newgidmap: Tool,
    /// Start and count of each range of `/etc/subuid` for this user.
    pub subordinate_uids: Vec<(u32, u32)>,
    pub subordinate_gids: Vec<(u32, u32)>,
    pub namespaces: Namespaces,
}

/// A program that must run as root to be of use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tool {
    Missing,
    /// Neither setuid nor with file capabilities.
    Unprivileged(PathBuf),
    /// On a file system mounted `nosuid`.
    NoSuid(PathBuf),
    Ready(PathBuf),
}

/// What became of the try to make namespaces as this user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespaces {
    Allowed,
    /// Made, but a new `/proc` could not be mounted in them: the machine's own has hidden parts.
    ProcHidden,
    /// Made, but without any right in them: AppArmor's limit (`kernel.apparmor_restrict_unprivileged_userns`).
    AppArmor,
    /// Refused, with the error number.
    Refused(i32),
}

/// What a build asks of its isolation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Refuse to run below this rung.
    pub minimum: Option<Rung>,
}

/// How the user namespace gets its ids.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    /// None is made.
    Direct,
    Single,
    Subordinate,
}

/// Says which rung of isolation this process would get, and why no better one. Changes nothing.
pub fn probe() -> Result<Isolation, SandboxError> {
    let (isolation, _) = decide(&gather()?);
    Ok(isolation)
}

/// Brings this process to the best rung there is: its own mount namespace, as an ordinary user inside a
/// new user namespace in which it is root.
///
/// To be called before any thread starts, and only when a build needs it.
pub fn enter_if_needed(config: &Config) -> Result<Isolation, SandboxError> {
    let facts = gather()?;
    let (mut isolation, entry) = decide(&facts);
    check_minimum(config, &isolation)?;
    if isolation.rung == Rung::Unavailable {
        return Err(SandboxError::Isolation(isolation.notes.join("; ")));
    }
    match entry {
        Entry::Direct => {
            sys::unshare(libc::CLONE_NEWNS).map_err(failed("make a mount namespace"))?;
        }
        Entry::Single => enter_single(&facts)?,
        Entry::Subordinate => {
            if let Err(reason) = enter_subordinate(&facts)? {
                let obstacle = Obstacle::MapRefused(reason);
                isolation = Isolation {
                    rung: Rung::SingleId,
                    notes: vec![obstacle.to_string(), SINGLE_LIMIT.to_owned()],
                    obstacle: Some(obstacle),
                };
                check_minimum(config, &isolation)?;
                map_single(&facts)?;
                become_root()?;
            }
        }
    }
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(failed("make the mounts private"))?;
    Ok(isolation)
}

fn check_minimum(config: &Config, isolation: &Isolation) -> Result<(), SandboxError> {
    match config.minimum {
        Some(minimum) if isolation.rung < minimum => Err(SandboxError::Isolation(format!(
            "the isolation of this machine is {}, below the {minimum} that was asked for: {}",
            isolation.rung,
            isolation.notes.join("; ")
        ))),
        _ => Ok(()),
    }
}

const SINGLE_LIMIT: &str = "only your own id is mapped: files of other owners become yours, and steps that \
                            change users or owners fail";

/// Decides on the rung.
fn decide(facts: &Facts) -> (Isolation, Entry) {
    let mut notes = Vec::new();
    if facts.privileged {
        let rung = match facts.mapped_ids {
            None => Rung::Root,
            Some(0 | 1) => Rung::SingleId,
            Some(_) => Rung::SubordinateIds,
        };
        match rung {
            Rung::Root => notes.push(
                "the builder runs as root: run it as an ordinary user with subordinate ids for steps whose root is \
                 nobody on this machine"
                    .to_owned(),
            ),
            Rung::SingleId => notes.push(SINGLE_LIMIT.to_owned()),
            Rung::SubordinateIds | Rung::Unavailable => {}
        }
        let isolation = Isolation {
            rung,
            obstacle: None,
            notes,
        };
        return (isolation, Entry::Direct);
    }
    let refused = match facts.namespaces {
        Namespaces::Allowed => None,
        Namespaces::ProcHidden => {
            notes.push(
                "parts of /proc are hidden here (as container runtimes do), so a new one can't be mounted: steps see \
                 the processes of the builder in it"
                    .to_owned(),
            );
            None
        }
        Namespaces::AppArmor => Some(Obstacle::AppArmor),
        Namespaces::Refused(errno) => Some(refusal(errno)),
    };
    let (rung, entry, obstacle) = match (refused, missing_for_subordinate(facts)) {
        (Some(refused), _) => (Rung::Unavailable, Entry::Direct, Some(refused)),
        (None, None) => (Rung::SubordinateIds, Entry::Subordinate, None),
        (None, Some(missing)) => (Rung::SingleId, Entry::Single, Some(missing)),
    };
    notes.extend(obstacle.as_ref().map(ToString::to_string));
    if rung == Rung::SingleId {
        notes.push(SINGLE_LIMIT.to_owned());
    }
    let isolation = Isolation {
        rung,
        obstacle,
        notes,
    };
    (isolation, entry)
}

fn refusal(errno: i32) -> Obstacle {
    match errno {
        libc::ENOSPC => Obstacle::NamespaceLimit,
        libc::EPERM => Obstacle::NamespacesForbidden,
        libc::ENOSYS | libc::EINVAL => Obstacle::NoNamespaces,
        errno => Obstacle::NamespacesRefused(errno),
    }
}

/// Says what stands against subordinate ids.
fn missing_for_subordinate(facts: &Facts) -> Option<Obstacle> {
    for (file, ranges) in [
        ("/etc/subuid", &facts.subordinate_uids),
        ("/etc/subgid", &facts.subordinate_gids),
    ] {
        if ranges.is_empty() {
            let uid = facts.uid;
            return Some(Obstacle::NoRange { file, uid });
        }
    }
    for (name, tool) in [
        ("newuidmap", &facts.newuidmap),
        ("newgidmap", &facts.newgidmap),
    ] {
        match tool {
            Tool::Missing => return Some(Obstacle::NoTool { name }),
            Tool::Unprivileged(found) => {
                return Some(Obstacle::UnprivilegedTool {
                    path: found.clone(),
                });
            }
            Tool::NoSuid(found) => {
                return Some(Obstacle::NoSuid {
                    path: found.clone(),
                });
            }
            Tool::Ready(_) => {}
        }
    }
    facts.no_new_privs.then_some(Obstacle::NoNewPrivileges)
}

/// Looks at the machine and at this process.
fn gather() -> Result<Facts, SandboxError> {
    let status = read("/proc/self/status")?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
            .unwrap_or_default()
    };
    let map = read("/proc/self/uid_map")?;
    let mapped: u64 = map
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok())
        .sum();
    let effective = u64::from_str_radix(field("CapEff"), 16).unwrap_or(0);
    const CAP_SYS_ADMIN: u32 = 21;
    let uid = rustix::process::geteuid();
    let privileged = uid.is_root() && effective & 1 << CAP_SYS_ADMIN != 0;
    let name = user_name(uid.as_raw());
    let ranges = |file: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        parse_ranges(&text, name.as_deref(), uid.as_raw())
    };
    Ok(Facts {
        uid: uid.as_raw(),
        gid: rustix::process::getegid().as_raw(),
        privileged,
        mapped_ids: (!machine::is_initial_map(&map)).then_some(mapped),
        no_new_privs: field("NoNewPrivs") == "1",
        newuidmap: find_tool("newuidmap"),
        newgidmap: find_tool("newgidmap"),
        subordinate_uids: ranges("/etc/subuid"),
        subordinate_gids: ranges("/etc/subgid"),
        namespaces: if privileged {
            Namespaces::Allowed
        } else {
            try_namespaces()?
        },
    })
}

fn read(path: &'static str) -> Result<String, SandboxError> {
    fs::read_to_string(path).map_err(|source| SandboxError::Path {
        action: "read",
        path: path.into(),
        source,
    })
}

fn user_name(uid: u32) -> Option<String> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let mut lines = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>());
    let found = lines.find(|fields| fields.get(2).and_then(|text| text.parse().ok()) == Some(uid));
    found.and_then(|fields| fields.first().map(|name| (*name).to_owned()))
}

/// Returns the ranges of one user: `name:start:count` or `uid:start:count` a line.
fn parse_ranges(text: &str, name: Option<&str>, uid: u32) -> Vec<(u32, u32)> {
    let uid = uid.to_string();
    let parse = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields
            .next()
            .filter(|owner| Some(*owner) == name || *owner == uid)?;
        let (start, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (!owner.is_empty() && count > 0).then_some((start, count))
    };
    text.lines().filter_map(parse).collect()
}

fn find_tool(name: &str) -> Tool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/bin".into(), "/bin".into()]);
    let Some(found) = directories
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
    else {
        return Tool::Missing;
    };
    judge_tool(found)
}

fn judge_tool(path: PathBuf) -> Tool {
    let nosuid = rustix::fs::statvfs(&path)
        .is_ok_and(|found| found.f_flag.contains(rustix::fs::StatVfsMountFlags::NOSUID));
    if nosuid {
        return Tool::NoSuid(path);
    }
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let setuid = fs::metadata(&path)
        .is_ok_and(|metadata| metadata.uid() == 0 && metadata.permissions().mode() & 0o4000 != 0);
    let capable = rustix::fs::getxattr(&path, "security.capability", &mut [0_u8; 64][..]).is_ok();
    if setuid || capable {
        Tool::Ready(path)
    } else {
        Tool::Unprivileged(path)
    }
}

/// Makes the namespaces in a child that ends at once.
fn try_namespaces() -> Result<Namespaces, SandboxError> {
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID;
    // SAFETY: the child makes system calls only, on borrowed text: it allocates nothing and takes no lock,
    // which is sound beside other threads too.
    match unsafe { sys::clone_process(flags, None) } {
        Ok(Cloned::Child) => sys::exit_now(match try_mounts() {
            Ok(true) => 0,
            Ok(false) => 1,
            Err(_) => 2,
        }),
        Ok(Cloned::Parent { pid, .. }) => {
            let (_, status, _) =
                sys::wait_child(Some(pid)).map_err(failed("try user namespaces"))?;
            Ok(match status {
                WaitStatus::Code(0) => Namespaces::Allowed,
                WaitStatus::Code(1) => Namespaces::ProcHidden,
                _ => Namespaces::AppArmor,
            })
        }
        Err(error) => Ok(Namespaces::Refused(error.raw_os_error().unwrap_or(0))),
    }
}

/// Whether mounts may be changed at all (else an error), and a new `/proc` mounted.
fn try_mounts() -> io::Result<bool> {
    rustix::mount::mount_change(
        c"/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let none: Option<&std::ffi::CStr> = None;
    let flags = rustix::mount::MountFlags::empty();
    Ok(rustix::mount::mount(c"proc", c"/proc", c"proc", flags, none).is_ok())
}

fn enter_single(facts: &Facts) -> Result<(), SandboxError> {
    sys::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS)
        .map_err(failed("make a user namespace"))?;
    map_single(facts)?;
    become_root()
}

/// Maps this user alone to root. The kernel wants `setgroups` forbidden first. What is mapped already stays.
fn map_single(facts: &Facts) -> Result<(), SandboxError> {
    let write = |path: &'static str, text: String| {
        fs::write(path, text).map_err(|source| SandboxError::Path {
            action: "write",
            path: path.into(),
            source,
        })
    };
    if read("/proc/self/uid_map")?.trim().is_empty() {
        write("/proc/self/uid_map", format!("0 {} 1", facts.uid))?;
    }
    if read("/proc/self/gid_map")?.trim().is_empty() {
        write("/proc/self/setgroups", "deny".to_owned())?;
        write("/proc/self/gid_map", format!("0 {} 1", facts.gid))?;
    }
    Ok(())
}

/// Makes a user namespace and has newuidmap and newgidmap fill its maps; `Err` with the reason when they would not.
fn enter_subordinate(facts: &Facts) -> Result<Result<(), String>, SandboxError> {
    let (Tool::Ready(newuidmap), Tool::Ready(newgidmap)) = (&facts.newuidmap, &facts.newgidmap)
    else {
        return Ok(Err("newuidmap is not usable".to_owned()));
    };
    let target = std::process::id();
    let uids = map_arguments(target, facts.uid, &facts.subordinate_uids);
    let gids = map_arguments(target, facts.gid, &facts.subordinate_gids);
    let (wait, go) = std::io::pipe().map_err(failed("make a pipe"))?;
    let (answer, mut answer_writer) = std::io::pipe().map_err(failed("make a pipe"))?;
    // The tools are privileged in the namespace they are started from, so a child from before must start them.
    // SAFETY: the caller promises that no thread was started yet.
    match unsafe { sys::clone_process(0, None) }.map_err(failed("fork"))? {
        Cloned::Child => {
            drop((go, answer));
            let mut wait = wait;
            let _ = io::Read::read_to_end(&mut wait, &mut Vec::new());
            let result = run_tool(newuidmap, &uids).and_then(|()| run_tool(newgidmap, &gids));
            if let Err(reason) = &result {
                let _ = io::Write::write_all(&mut answer_writer, reason.as_bytes());
            }
            sys::exit_now(i32::from(result.is_err()))
        }
        Cloned::Parent { pid, .. } => {
            drop((wait, answer_writer));
            let made = sys::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS);
            drop(go);
            let reason = io::read_to_string(answer).unwrap_or_default();
            let (_, status, _) =
                sys::wait_child(Some(pid)).map_err(failed("wait for newuidmap"))?;
            made.map_err(failed("make a user namespace"))?;
            if status != WaitStatus::Code(0) {
                return Ok(Err(reason));
            }
            become_root()?;
            Ok(Ok(()))
        }
    }
}

/// Returns the arguments of newuidmap: root is this user, ids from 1 on are the subordinate ones.
fn map_arguments(target: u32, own: u32, ranges: &[(u32, u32)]) -> Vec<String> {
    let mut arguments = vec![
        target.to_string(),
        "0".to_owned(),
        own.to_string(),
        "1".to_owned(),
    ];
    let mut next = 1_u32;
    for (start, count) in ranges {
        let count = (*count).min(u32::MAX - next);
        arguments.extend([next.to_string(), start.to_string(), count.to_string()]);
        next += count;
    }
    arguments
}

fn run_tool(path: &Path, arguments: &[String]) -> Result<(), String> {
    let output = std::process::Command::new(path)
        .args(arguments)
        .env_clear()
        .output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            Err(format!("{} refused: {}", path.display(), text.trim()))
        }
        Err(error) => Err(format!("{} could not be run: {error}", path.display())),
    }
}

/// Takes root's ids in the new user namespace.
fn become_root() -> Result<(), SandboxError> {
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
        .map_err(failed("become root"))?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
        .map_err(failed("become root"))?;
    // The change of ids closed /proc/self to this process itself.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)
        .map_err(failed("open /proc/self"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> Facts {
        Facts {
            uid: 1000,
            gid: 1000,
            privileged: false,
            mapped_ids: None,
            no_new_privs: false,
            newuidmap: Tool::Ready("/usr/bin/newuidmap".into()),
            newgidmap: Tool::Ready("/usr/bin/newgidmap".into()),
            subordinate_uids: vec![(100_000, 65536)],
            subordinate_gids: vec![(100_000, 65536)],
            namespaces: Namespaces::Allowed,
        }
    }

    #[track_caller]
    fn check(facts: &Facts, rung: Rung, reason: &str) {
        let (isolation, _) = decide(facts);
        assert_eq!(isolation.rung, rung);
        let notes = isolation.notes.join("; ");
        assert!(
            notes.contains(reason) && notes.is_empty() == reason.is_empty(),
            "{notes}"
        );
    }

    #[test]
    fn each_obstacle_leads_to_its_rung_and_is_named() {
        check(&ready(), Rung::SubordinateIds, "");
        check(
            &Facts {
                subordinate_uids: vec![],
                ..ready()
            },
            Rung::SingleId,
            "/etc/subuid has no range for uid 1000",
        );
        check(
            &Facts {
                subordinate_gids: vec![],
                ..ready()
            },
            Rung::SingleId,
            "/etc/subgid has no range",
        );
        check(
            &Facts {
                newuidmap: Tool::Missing,
                ..ready()
            },
            Rung::SingleId,
            "newuidmap is not installed",
        );
        check(
            &Facts {
                newgidmap: Tool::NoSuid("/x/newgidmap".into()),
                ..ready()
            },
            Rung::SingleId,
            "mounted nosuid",
        );
        check(
            &Facts {
                newuidmap: Tool::Unprivileged("/x".into()),
                ..ready()
            },
            Rung::SingleId,
            "neither setuid",
        );
        check(
            &Facts {
                no_new_privs: true,
                ..ready()
            },
            Rung::SingleId,
            "no_new_privs",
        );
        check(
            &Facts {
                namespaces: Namespaces::ProcHidden,
                ..ready()
            },
            Rung::SubordinateIds,
            "parts of /proc",
        );
        check(
            &Facts {
                namespaces: Namespaces::AppArmor,
                ..ready()
            },
            Rung::Unavailable,
            "AppArmor",
        );
        check(
            &Facts {
                namespaces: Namespaces::Refused(libc::ENOSPC),
                ..ready()
            },
            Rung::Unavailable,
            "max_user_namespaces",
        );
        check(
            &Facts {
                namespaces: Namespaces::Refused(libc::EPERM),
                ..ready()
            },
            Rung::Unavailable,
            "forbidden",
        );
        check(
            &Facts {
                privileged: true,
                ..ready()
            },
            Rung::Root,
            "runs as root",
        );
        check(
            &Facts {
                privileged: true,
                mapped_ids: Some(65537),
                ..ready()
            },
            Rung::SubordinateIds,
            "",
        );
        check(
            &Facts {
                privileged: true,
                mapped_ids: Some(1),
                ..ready()
            },
            Rung::SingleId,
            "only your own id",
        );
    }

    #[test]
    fn a_minimum_refuses_what_is_below_it() {
        let config = Config {
            minimum: Some(Rung::SubordinateIds),
        };
        let below = Isolation {
            rung: Rung::SingleId,
            obstacle: None,
            notes: vec!["no subordinate ids".to_owned()],
        };
        let error = check_minimum(&config, &below)
            .expect_err("below")
            .to_string();
        assert!(
            error.contains("single-id") && error.contains("no subordinate ids"),
            "{error}"
        );
        assert!(
            check_minimum(
                &config,
                &Isolation {
                    rung: Rung::SubordinateIds,
                    obstacle: None,
                    notes: vec![]
                }
            )
            .is_ok()
        );
        for rung in [
            Rung::Unavailable,
            Rung::Root,
            Rung::SingleId,
            Rung::SubordinateIds,
        ] {
            assert_eq!(Rung::from_name(&rung.to_string()), Some(rung));
        }
    }

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let text = "other:1:2\nme:100000:65536\n# me:5:5\n1000:300000:10\nme:bad:1\nme:7:0\n";
        assert_eq!(
            parse_ranges(text, Some("me"), 1000),
            [(100_000, 65536), (300_000, 10)]
        );
        assert_eq!(parse_ranges(text, None, 7), []);
        let arguments = map_arguments(42, 1000, &[(100_000, 65536), (300_000, 10)]).join(" ");
        assert_eq!(arguments, "42 0 1000 1 1 100000 65536 65537 300000 10");
    }
}
