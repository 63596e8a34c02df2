//! System calls that no crate in use wraps.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;

/// One instruction of a seccomp program: `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jump_true: u8,
    pub(crate) jump_false: u8,
    pub(crate) value: u32,
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Puts a filter over this thread.
pub(crate) fn install_filter(program: &[Instruction]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let description = libc::sock_fprog {
        len: length,
        filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: `Instruction` has the layout of `sock_filter`; the description points at `length` of them
    // for the whole call, and the kernel only reads.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            &raw const description,
        )
    };
    check(result).map(drop)
}

/// Which side of a clone this is.
#[derive(Debug)]
pub(crate) enum Cloned {
    Child,
    Parent { pid: Pid, pidfd: OwnedFd },
}

/// Clones this process into new namespaces (`CLONE_NEW*` in `flags`), as `fork` does otherwise.
///
/// `cgroup` is the control group (v2) the child starts in.
///
/// # Safety
///
/// The process must have one thread only: the child has a copy of its memory with every lock as it was.
pub(crate) unsafe fn clone_process(
    flags: libc::c_int,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let mut arguments = libc::clone_args {
        flags: u64::from(flags.cast_unsigned()) | libc::CLONE_PIDFD.cast_unsigned() as u64,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    if let Some(cgroup) = cgroup {
        // The C library's constant is too narrow for this bit.
        const CLONE_INTO_CGROUP: u64 = 1 << 33;
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: the arguments live over the call; without CLONE_VM and a stack this is a fork, which the
    // caller's promise of a single thread makes sound.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of::<libc::clone_args>(),
        )
    };
    let pid = check(result)?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel wrote a new descriptor into `pidfd`, and nobody else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(Cloned::Parent { pid, pidfd })
}

/// Changes the attributes of a mount, and of all mounts below it when `recursive`.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, set: u64, recursive: bool) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        userns: u64,
    }
    let attributes = Attributes {
        set,
        clear: 0,
        propagation: 0,
        userns: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: an empty path and a structure of the stated size, both only read during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    check(result).map(drop)
}

/// Sets the capabilities of this thread.
pub(crate) fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let half = |shift: u32| {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "each half is taken on purpose"
        )]
        Data {
            effective: (effective >> shift) as u32,
            permitted: (permitted >> shift) as u32,
            inheritable: (inheritable >> shift) as u32,
        }
    };
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 takes a header and two data structures, which live over the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) }).map(drop)
}

/// Leaves the session keyring for a new, empty one.
pub(crate) fn join_new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: takes no pointer but the name, which may be null.
    let result = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        )
    };
    check(result).map(drop)
}

/// Closes, or marks close-on-exec, every descriptor from `first` on.
pub(crate) fn close_range(first: u32, close_on_exec: bool) -> io::Result<()> {
    let flags = if close_on_exec {
        libc::CLOSE_RANGE_CLOEXEC
    } else {
        0
    };
    // SAFETY: takes numbers only. Callers that close own no descriptor in the range any more.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) }).map(drop)
}

/// Gives every signal its default action and unblocks all.
pub(crate) fn reset_signals() {
    // SAFETY: no handler runs Rust code here; default actions and an empty mask are always valid.
    // Signals that have no settable action (SIGKILL, SIGSTOP, those of the C library) just refuse.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Waits for a child; `None` for any child. Returns its number, status and usage.
pub(crate) fn wait_child(pid: Option<Pid>) -> io::Result<(Pid, WaitStatus, libc::rusage)> {
    let target = pid.map_or(-1, |pid| pid.as_raw_nonzero().get());
    loop {
        let mut status = 0;
        // SAFETY: an all-zero `rusage` is a valid value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to values that live over the call.
        let result = unsafe { libc::wait4(target, &raw mut status, 0, &raw mut usage) };
        match check(result.into()) {
            Ok(pid) => {
                let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
                let pid = pid.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
                return Ok((pid, WaitStatus::from_raw(status), usage));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitStatus {
    Code(i32),
    Signal(i32),
}

impl WaitStatus {
    fn from_raw(status: libc::c_int) -> WaitStatus {
        if libc::WIFSIGNALED(status) {
            WaitStatus::Signal(libc::WTERMSIG(status))
        } else {
            WaitStatus::Code(libc::WEXITSTATUS(status))
        }
    }
}

/// Returns the peak resident set of the largest child that was waited for, in bytes.
pub(crate) fn peak_memory_of_children() -> u64 {
    // SAFETY: an all-zero `rusage` is a valid value, and the kernel fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024
}

/// Returns a limit as [`set_limit`] would set it, without setting it.
pub(crate) fn attainable_limit(
    resource: libc::__rlimit_resource_t,
    soft: Option<u64>,
    hard: Option<u64>,
) -> io::Result<(u64, u64)> {
    let mut own = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure lives over the call, which fills it.
    check(unsafe { libc::getrlimit(resource, &raw mut own) }.into())?;
    let (soft, hard) = (
        soft.unwrap_or(libc::RLIM_INFINITY),
        hard.unwrap_or(libc::RLIM_INFINITY),
    );
    let raised = libc::rlimit {
        rlim_cur: own.rlim_cur,
        rlim_max: own.rlim_max.max(hard),
    };
    // SAFETY: the structures live over the calls and are only read. What could be raised is lowered again.
    let may = unsafe {
        libc::setrlimit(resource, &raw const raised) == 0
            && libc::setrlimit(resource, &raw const own) == 0
    };
    let most = if may { hard } else { hard.min(own.rlim_max) };
    Ok((soft.min(most), most))
}

/// Ends this process at once: nothing is flushed or dropped.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: always sound; used in children whose memory is a copy of the helper's.
    unsafe { libc::_exit(code) }
}

/// Makes the terminal on `fd` the controlling one of this session.
pub(crate) fn set_controlling_terminal(fd: RawFd) -> io::Result<()> {
    // SAFETY: takes a descriptor and a number.
    check(unsafe { libc::ioctl(fd, libc::TIOCSCTTY, 0) }.into()).map(drop)
}

/// Brings the loopback interface of this network namespace up.
pub(crate) fn bring_loopback_up() -> io::Result<()> {
    // SAFETY: the request is a fully initialised `ifreq` with a terminated name, and the socket is owned
    // and closed here.
    unsafe {
        let socket =
            check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0).into())?;
        let socket = OwnedFd::from_raw_fd(RawFd::try_from(socket).map_err(io::Error::other)?);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l'.cast_signed();
        request.ifr_name[1] = b'o'.cast_signed();
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request).into())
            .map(drop)
    }
}

/// Duplicates a descriptor to a standard stream, without close-on-exec.
pub(crate) fn duplicate_to(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    debug_assert!(
        (0..3).contains(&number) && fd.as_raw_fd() > 2,
        "only the standard streams are overwritten"
    );
    // SAFETY: the standard streams belong to the process as a whole; no Rust value owns them here.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) }.into()).map(drop)
}

/// Takes every capability not in `kept` out of the bounding set.
pub(crate) fn drop_bounding_set(kept: u64) -> io::Result<()> {
    for capability in 0..64_u32 {
        if kept & 1 << capability != 0 {
            continue;
        }
        // SAFETY: takes numbers only.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match check(result.into()) {
            Ok(_) => {}
            // The first number the kernel does not know.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sets a resource limit; one above what this process may set is cut to that.
pub(crate) fn set_limit(
    resource: libc::__rlimit_resource_t,
    soft: Option<u64>,
    hard: Option<u64>,
) -> io::Result<()> {
    let wanted = libc::rlimit {
        rlim_cur: soft.unwrap_or(libc::RLIM_INFINITY),
        rlim_max: hard.unwrap_or(libc::RLIM_INFINITY),
    };
    // SAFETY: the structure lives over the call and is only read.
    let result = check(unsafe { libc::setrlimit(resource, &raw const wanted) }.into());
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
        other => return other.map(drop),
    }
    let mut own = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure lives over the call, which fills it.
    check(unsafe { libc::getrlimit(resource, &raw mut own) }.into())?;
    let cut = libc::rlimit {
        rlim_cur: wanted.rlim_cur.min(own.rlim_max),
        rlim_max: wanted.rlim_max.min(own.rlim_max),
    };
    // SAFETY: as above.
    check(unsafe { libc::setrlimit(resource, &raw const cut) }.into()).map(drop)
}

/// Replaces this process; returns only the error.
pub(crate) fn execute(program: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| {
        strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([std::ptr::null()])
            .collect::<Vec<_>>()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: terminated strings in terminated lists, alive over the call.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Moves this process into new namespaces.
pub(crate) fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: takes a number; files and memory stay as they are, so no Rust value is invalidated.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// Returns the index of an interface of this network namespace.
pub(crate) fn interface_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: a terminated string that lives over the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Returns the IPv4 address of an interface of this network namespace.
pub(crate) fn interface_address(name: &str) -> io::Result<[u8; 4]> {
    // SAFETY: the request is fully initialised and keeps its last byte zero, so the name is terminated; the
    // kernel answers with a `sockaddr_in`, whose address is read by its layout.
    unsafe {
        let socket =
            check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0).into())?;
        let socket = OwnedFd::from_raw_fd(RawFd::try_from(socket).map_err(io::Error::other)?);
        let mut request: libc::ifreq = std::mem::zeroed();
        for (place, byte) in request
            .ifr_name
            .iter_mut()
            .take(libc::IFNAMSIZ - 1)
            .zip(name.bytes())
        {
            *place = byte.cast_signed();
        }
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFADDR, &raw mut request).into())?;
        let address = (&raw const request.ifr_ifru.ifru_addr)
            .cast::<libc::sockaddr_in>()
            .read_unaligned();
        Ok(address.sin_addr.s_addr.to_ne_bytes())
    }
}
