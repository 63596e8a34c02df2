//! The last steps in the command's own process: its ids, its limits, `execve`.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::capabilities::Set;
use crate::error::{SandboxError, failed};
use crate::seccomp::Filter;
use crate::spec::{Resource, Rlimit};
use crate::sys;
use crate::users::Identity;

/// Everything the command's process needs after its fork.
#[derive(Debug)]
pub(crate) struct Command<'a> {
    pub(crate) args: &'a [String],
    pub(crate) env: Vec<String>,
    pub(crate) cwd: OwnedFd,
    pub(crate) identity: Identity,
    pub(crate) stdio: &'a [OwnedFd],
    pub(crate) terminal: bool,
    pub(crate) rlimits: &'a [Rlimit],
    /// What is left of the capabilities; `None` leaves all.
    pub(crate) capabilities: Option<Set>,
    pub(crate) filter: Option<&'a Filter>,
    /// The user namespace has one id and no groups to give: those of the builder stay.
    pub(crate) groups_forbidden: bool,
}

/// Why a command did not start.
#[derive(Debug)]
pub(crate) enum StartError {
    /// The sandbox's fault.
    Setup(SandboxError),
    /// The command's: the exit code of a shell and runc's words.
    Command { code: i32, reason: String },
}

impl From<SandboxError> for StartError {
    fn from(error: SandboxError) -> StartError {
        StartError::Setup(error)
    }
}

impl Command<'_> {
    /// Becomes the command; returns only when that fails.
    pub(crate) fn execute(&self) -> StartError {
        match self.prepare() {
            Ok(()) => self.replace_process(),
            Err(error) => StartError::Setup(error),
        }
    }

    fn prepare(&self) -> Result<(), SandboxError> {
        rustix::process::setsid().map_err(failed("start a session"))?;
        sys::reset_signals();
        for (number, fd) in self.stdio.iter().enumerate() {
            hand_over(fd.as_fd(), self.identity.uid);
            let number = i32::try_from(number).unwrap_or(0);
            sys::duplicate_to(fd.as_fd(), number).map_err(failed("set up the standard streams"))?;
        }
        if self.terminal {
            sys::set_controlling_terminal(0).map_err(failed("take the terminal"))?;
        }
        rustix::process::fchdir(&self.cwd).map_err(failed("change to the working directory"))?;
        for limit in self.rlimits {
            set_limit(limit).map_err(|error| {
                SandboxError::io(format!("set ulimit {:?}", limit.resource), error)
            })?;
        }
        rustix::process::umask(Mode::from_raw_mode(0o022));
        if let Some(set) = self.capabilities {
            sys::drop_bounding_set(set.0).map_err(failed("drop capabilities"))?;
        }
        if let Some(filter) = self.filter {
            // Before the ids and capabilities go: without no_new_privs (setuid programs work in a build, as
            // in Docker) a filter needs CAP_SYS_ADMIN. The filter allows what follows.
            filter
                .install()
                .map_err(failed("install the seccomp filter"))?;
        }
        self.switch_ids()?;
        if let Some(set) = self.capabilities {
            let kept = if self.identity.uid == 0 { set.0 } else { 0 };
            sys::set_capabilities(kept, kept, 0).map_err(failed("drop capabilities"))?;
        }
        // A command that entered a step dies with the process that waits for it.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .map_err(failed("set the death signal"))?;
        // Whatever is open beside the standard streams belongs to the sandbox.
        sys::close_range(3, true).map_err(failed("close descriptors"))
    }

    fn switch_ids(&self) -> Result<(), SandboxError> {
        let Identity { uid, gid, groups } = &self.identity;
        let unmapped = |what: &'static str, id: u32| {
            move |error: Errno| match error {
                Errno::INVAL => SandboxError::Setup(format!(
                    "{what} {id} is not mapped in this user namespace: subordinate ids are needed for it \
                     (`lapstrake info` says why there are none)"
                )),
                _ => SandboxError::io(format!("become {what} {id}"), error),
            }
        };
        // The main group is among the supplementary ones, as containerd has it.
        let mut all = vec![*gid];
        all.extend(groups.iter().filter(|group| *group != gid));
        let all: Vec<Gid> = all.into_iter().map(Gid::from_raw).collect();
        if !self.groups_forbidden {
            rustix::thread::set_thread_groups(&all).map_err(unmapped("group", *gid))?;
        }
        let gid_value = Gid::from_raw(*gid);
        rustix::thread::set_thread_res_gid(gid_value, gid_value, gid_value)
            .map_err(unmapped("group", *gid))?;
        let uid_value = Uid::from_raw(*uid);
        rustix::thread::set_thread_res_uid(uid_value, uid_value, uid_value)
            .map_err(unmapped("user", *uid))
    }

    /// Goes into a root as the command's user and finds the program there, and the interpreter it names.
    ///
    /// `foreign_programs`: the kernel may have been told how to run what is not its own.
    pub(crate) fn search(
        &self,
        root: BorrowedFd<'_>,
        foreign_programs: bool,
    ) -> Result<(), StartError> {
        rustix::process::fchdir(root)
            .and_then(|()| rustix::process::chroot("."))
            .and_then(|()| rustix::process::fchdir(&self.cwd))
            .map_err(failed("enter the root of the step"))?;
        self.switch_ids()?;
        let path = self.find(self.program()?)?;
        match interpreter(&path) {
            Some(name) if matches!(rustix::fs::stat(&name), Err(Errno::NOENT)) => {
                Err(exec_error(&path, &io::Error::from(Errno::NOENT)))
            }
            _ if !foreign_programs && !is_own_program(&path) => {
                Err(exec_error(&path, &io::Error::from(Errno::NOEXEC)))
            }
            _ => Ok(()),
        }
    }

    fn program(&self) -> Result<&str, StartError> {
        let name = self.args.first().filter(|name| !name.is_empty());
        name.map(String::as_str)
            .ok_or_else(|| refused(127, "exec: no command".to_owned()))
    }

    fn replace_process(&self) -> StartError {
        let name = match self.program() {
            Ok(name) => name,
            Err(error) => return error,
        };
        let path = match self.find(name) {
            Ok(path) => path,
            Err(error) => return error,
        };
        let strings = |texts: &[String]| {
            texts
                .iter()
                .map(|text| CString::new(text.as_str()))
                .collect::<Result<Vec<_>, _>>()
        };
        let (Ok(program), Ok(args), Ok(env)) = (
            CString::new(path.as_str()),
            strings(self.args),
            strings(&self.env),
        ) else {
            let reason = format!(
                "exec: {name:?}: invalid argument: a NUL byte in the command or its environment"
            );
            return StartError::Command { code: 126, reason };
        };
        let error = sys::execute(&program, &args, &env);
        exec_error(&path, &error)
    }

    /// Finds the program as runc does.
    fn find(&self, name: &str) -> Result<String, StartError> {
        if name.contains('/') {
            return match executable(name) {
                Ok(()) => Ok(name.to_owned()),
                Err(Errno::ISDIR) => Err(refused(126, format!("exec: {name:?}: is a directory"))),
                Err(Errno::ACCESS) => {
                    Err(refused(126, format!("exec: {name:?}: permission denied")))
                }
                Err(error) => {
                    let reason = crate::error::errno_text(error.raw_os_error());
                    Err(refused(
                        127,
                        format!("exec: {name:?}: stat {name}: {reason}"),
                    ))
                }
            };
        }
        let path = self
            .env
            .iter()
            .find_map(|variable| variable.strip_prefix("PATH="))
            .unwrap_or_default();
        let candidates = path.split(':').map(|directory| match directory {
            "" => format!("./{name}"),
            directory => format!("{}/{name}", directory.trim_end_matches('/')),
        });
        for candidate in candidates {
            if executable(&candidate).is_ok() {
                return Ok(candidate);
            }
        }
        Err(refused(
            127,
            format!("exec: {name:?}: executable file not found in $PATH"),
        ))
    }
}

/// Gives a stream to the command's user, so that it may open `/dev/stdout` anew. `/dev/null` is everybody's.
pub(crate) fn hand_over(fd: BorrowedFd<'_>, uid: u32) {
    if uid == 0 {
        return;
    }
    if let Ok(stat) = rustix::fs::fstat(fd) {
        let pipe = FileType::from_raw_mode(stat.st_mode) == FileType::Fifo;
        if pipe || rustix::termios::isatty(fd) {
            // Not ours to give: then the command has the descriptor all the same.
            let _ = rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), None);
        }
    }
}

fn refused(code: i32, reason: String) -> StartError {
    StartError::Command { code, reason }
}

/// Whether a path is a file this user may execute.
fn executable(path: &str) -> Result<(), Errno> {
    let stat = rustix::fs::statat(CWD, path, AtFlags::empty())?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

/// Says why the kernel refused a file that was found.
fn exec_error(path: &str, error: &io::Error) -> StartError {
    let text = crate::error::errno_text(error.raw_os_error().unwrap_or(0));
    match error.raw_os_error() {
        Some(libc::ENOENT) => {
            let reason = match interpreter(path) {
                Some(interpreter) if interpreter.ends_with('\r') => format!(
                    "exec {path}: {text}: its lines end in CRLF, so that its interpreter is {interpreter:?}; save it with \
                     LF alone"
                ),
                Some(interpreter) => format!(
                    "exec {path}: {text}: its interpreter {interpreter} is not in the image"
                ),
                None => format!("exec {path}: {text}"),
            };
            refused(127, reason)
        }
        _ => refused(126, format!("exec {path}: {text}")),
    }
}

/// Whether the kernel runs a file by itself: a script, or an ELF file for this kind of machine.
///
/// One that can't be read may be such a file.
fn is_own_program(path: &str) -> bool {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mut head = [0; 20];
    let length = rustix::fs::open(path, flags, Mode::empty())
        .and_then(|fd| rustix::io::read(&fd, &mut head[..]));
    let Ok(length) = length else { return true };
    if head.starts_with(b"#!") {
        return true;
    }
    let machines: &[u16] = match std::env::consts::ARCH {
        "x86_64" => &[62, 3],
        "aarch64" => &[183, 40],
        _ => return true,
    };
    let machine = u16::from_le_bytes([head[18], head[19]]);
    length == head.len() && head.starts_with(b"\x7fELF") && machines.contains(&machine)
}

/// Returns the interpreter that a script names in its first line, or a program in its headers.
fn interpreter(path: &str) -> Option<String> {
    let fd = rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )
    .ok()?;
    let mut head = vec![0; 4096];
    let length = rustix::io::read(&fd, &mut head[..]).ok()?;
    head.truncate(length);
    let name = if head.starts_with(b"#!") {
        let line = head[2..].split(|byte| *byte == b'\n').next()?;
        // The kernel takes blanks and tabs for what parts words, and nothing else.
        line.split(|byte| matches!(byte, b' ' | b'\t'))
            .find(|word| !word.is_empty())?
    } else {
        elf_interpreter(&head)?
    };
    Some(String::from_utf8_lossy(name).into_owned())
}

/// Finds PT_INTERP in the first page of a 64-bit little-endian ELF file, where linkers put it.
fn elf_interpreter(head: &[u8]) -> Option<&[u8]> {
    const PT_INTERP: u64 = 3;
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let number = |offset: usize, length: usize| {
        let bytes = head.get(offset..offset.checked_add(length)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0_u64, |value, byte| value << 8 | u64::from(*byte)),
        )
    };
    let table = usize::try_from(number(32, 8)?).ok()?;
    let size = usize::try_from(number(54, 2)?).ok()?;
    for index in 0..usize::try_from(number(56, 2)?).ok()? {
        let entry = table.checked_add(index.checked_mul(size)?)?;
        if number(entry, 4)? == PT_INTERP {
            let offset = usize::try_from(number(entry.checked_add(8)?, 8)?).ok()?;
            return head.get(offset..)?.split(|byte| *byte == 0).next();
        }
    }
    None
}

fn set_limit(limit: &Rlimit) -> io::Result<()> {
    sys::set_limit(resource_number(limit.resource), limit.soft, limit.hard)
}

/// Returns the kernel's number of a resource.
pub(crate) fn resource_number(resource: Resource) -> libc::__rlimit_resource_t {
    match resource {
        Resource::Core => libc::RLIMIT_CORE,
        Resource::Cpu => libc::RLIMIT_CPU,
        Resource::Data => libc::RLIMIT_DATA,
        Resource::Fsize => libc::RLIMIT_FSIZE,
        Resource::Locks => libc::RLIMIT_LOCKS,
        Resource::Memlock => libc::RLIMIT_MEMLOCK,
        Resource::Msgqueue => libc::RLIMIT_MSGQUEUE,
        Resource::Nice => libc::RLIMIT_NICE,
        Resource::Nofile => libc::RLIMIT_NOFILE,
        Resource::Nproc => libc::RLIMIT_NPROC,
        Resource::Rss => libc::RLIMIT_RSS,
        Resource::Rtprio => libc::RLIMIT_RTPRIO,
        Resource::Rttime => libc::RLIMIT_RTTIME,
        Resource::Sigpending => libc::RLIMIT_SIGPENDING,
        Resource::Stack => libc::RLIMIT_STACK,
    }
}
