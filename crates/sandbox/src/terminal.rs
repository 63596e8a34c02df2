//! A pair of pseudo terminals, for a command that is to have one.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Returns the side of who shows the terminal and the side of the command.
pub fn open_terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let unlocked: libc::c_int = 0;
    // SAFETY: the descriptors that the kernel gives are new and owned here alone; the lock is read from a
    // variable that lives over the call.
    unsafe {
        let front = owned(libc::posix_openpt(
            libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC,
        ))?;
        if libc::ioctl(front.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) < 0 {
            return Err(io::Error::last_os_error());
        }
        // By descriptor: the name may mean another file system's terminal.
        let back = owned(libc::ioctl(
            front.as_raw_fd(),
            libc::TIOCGPTPEER,
            libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC,
        ))?;
        Ok((front, back))
    }
}

/// # Safety
///
/// A descriptor that is not negative is new and owned by nobody else.
unsafe fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    match fd {
        ..0 => Err(io::Error::last_os_error()),
        // SAFETY: by the contract of this function.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}
