//! Lends this process's terminal, streams and signals to a command in a container.

use std::io::IsTerminal;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use engine::container::{Streams, Terminal, TerminalSize};
use rustix::termios::{OptionalActions, Termios};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::Signals;

/// Returns this process's streams; standard input only where it is wanted.
pub(crate) fn streams(stdin: bool) -> Result<Streams> {
    let copy = |fd: std::os::fd::BorrowedFd<'_>| {
        fd.try_clone_to_owned()
            .context("failed to copy a standard stream")
    };
    Ok(Streams {
        stdin: match stdin {
            true => Some(copy(std::io::stdin().as_fd())?),
            false => None,
        },
        stdout: Some(copy(std::io::stdout().as_fd())?),
        stderr: Some(copy(std::io::stderr().as_fd())?),
    })
}

/// This terminal without its own meaning of keys; as it was once this is dropped.
pub(crate) struct RawTerminal {
    before: Option<Termios>,
}

impl RawTerminal {
    /// Hands the keys to the command, where there is a terminal and the command wants them.
    pub(crate) fn enter(wanted: bool) -> Self {
        let stdin = std::io::stdin();
        let before = match wanted && stdin.is_terminal() {
            true => rustix::termios::tcgetattr(&stdin).ok(),
            false => None,
        };
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            // A terminal that stays as it was is only less convenient.
            let _ = rustix::termios::tcsetattr(&stdin, OptionalActions::Now, &raw);
        }
        Self { before }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Passes signals on from now on, and the size of this terminal.
pub(crate) fn forward(
    terminal: Option<Terminal>,
    signal: impl Fn(i32) + Send + 'static,
) -> Result<()> {
    let resize = move || {
        if let (Some(terminal), Some(size)) = (&terminal, size()) {
            terminal.resize(size);
        }
    };
    resize();
    let mut signals = Signals::new([
        SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
    ])
    .context("failed to listen for signals")?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for number in signals.forever() {
                match number {
                    SIGWINCH => resize(),
                    number => signal(number),
                }
            }
        })
        .context("failed to start a thread")?;
    Ok(())
}

fn size() -> Option<TerminalSize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0).then_some(TerminalSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}
