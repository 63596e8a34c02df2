//! Signals that reach a step's init go on to the command.
//!
//! Init is process 1 of its namespace: it gets only signals it has a handler for, and SIGKILL.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use rustix::process::{Pid, Signal};

/// The command's process; 0 before it is started.
static COMMAND: AtomicI32 = AtomicI32::new(0);

/// Signals that came before the command did, one bit each.
static EARLY: AtomicU64 = AtomicU64::new(0);

/// Those that a process makes for itself by a fault, and those about its own children, stay its own.
const OWN: [i32; 10] = [
    libc::SIGKILL,
    libc::SIGSTOP,
    libc::SIGCHLD,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGSYS,
];

/// Takes signals from now on, for a command that is yet to be started.
pub(crate) fn hold() {
    for signal in (1..=31).filter(|signal| !OWN.contains(signal)) {
        let handler: extern "C" fn(libc::c_int) = forward;
        // SAFETY: an all-zero `sigaction` is valid; the handler touches atomics and calls kill(2) only, which
        // may be done in a handler.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

/// Holds back all signals, over the fork of the command: it must not run the handler of its parent.
pub(crate) fn block() {
    // SAFETY: a full set is valid, and the call only reads it.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
}

/// Sends what has come and what will come to the command, and lets signals in again.
pub(crate) fn forward_to(command: Pid) {
    COMMAND.store(command.as_raw_nonzero().get(), Ordering::SeqCst);
    let early = EARLY.swap(0, Ordering::SeqCst);
    for number in (1..=31).filter(|number| early & (1 << number) != 0) {
        if let Some(signal) = Signal::from_named_raw(number) {
            let _ = rustix::process::kill_process(command, signal);
        }
    }
    // SAFETY: an empty set is valid, and the call only reads it.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

extern "C" fn forward(signal: libc::c_int) {
    match COMMAND.load(Ordering::SeqCst) {
        0 => {
            EARLY.fetch_or(1 << signal, Ordering::SeqCst);
        }
        // SAFETY: takes numbers only.
        command => unsafe {
            libc::kill(command, signal);
        },
    }
}
