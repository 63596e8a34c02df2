//! The streams of a command: pipes or a terminal, copied to where they are wanted.
//!
//! A command never gets a descriptor of this process: it could do more with a terminal or a file
//! than read and write.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use sandbox::Stdio;

use super::log::LogWriter;
use crate::EngineError;
use crate::step::output::pipe;

/// Where the streams of a command come from and go to.
#[derive(Debug, Default)]
pub struct Streams {
    /// Without one the command reads nothing.
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    pub rows: u16,
    pub columns: u16,
}

/// The terminal of a command, seen from outside.
#[derive(Debug, Clone)]
pub struct Terminal(Arc<OwnedFd>);

impl Terminal {
    /// Tells the command of another size.
    pub fn resize(&self, size: TerminalSize) {
        // Only its look depends on it.
        let _ = rustix::termios::tcsetwinsize(
            &*self.0,
            rustix::termios::Winsize {
                ws_row: size.rows,
                ws_col: size.columns,
                ws_xpixel: 0,
                ws_ypixel: 0,
            },
        );
    }
}

/// Whether the terminal that input came from is still there, and what is to happen when it is not.
#[derive(Default)]
struct Vanishing(Mutex<Vanished>);

#[derive(Default)]
enum Vanished {
    #[default]
    NotYet,
    Watched(Box<dyn FnOnce() + Send>),
    Gone,
}

impl Vanishing {
    /// The terminal is gone.
    fn happen(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Vanished::Watched(act) = std::mem::replace(&mut *state, Vanished::Gone) {
            act();
        }
    }

    /// Has `act` called when the terminal goes; at once where it has gone.
    fn watch(&self, act: impl FnOnce() + Send + 'static) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *state {
            Vanished::Gone => act(),
            _ => *state = Vanished::Watched(Box::new(act)),
        }
    }
}

/// The threads that copy.
pub(crate) struct Copying {
    outputs: Vec<JoinHandle<()>>,
    vanishing: Arc<Vanishing>,
    pub(crate) terminal: Option<Terminal>,
}

impl Copying {
    /// Makes the command's side of the streams, and copies between it and `streams`.
    ///
    /// Output goes to `log` too. Input is copied until its end or that of the process: nobody waits for it.
    pub(crate) fn start(
        streams: Streams,
        tty: bool,
        log: Option<LogWriter>,
    ) -> Result<(Self, Stdio), EngineError> {
        let log = log.map(|log| Arc::new(Mutex::new(log)));
        match tty {
            true => Self::terminal(streams, log),
            false => Self::pipes(streams, log),
        }
    }

    fn pipes(
        streams: Streams,
        log: Option<Arc<Mutex<LogWriter>>>,
    ) -> Result<(Self, Stdio), EngineError> {
        let mut stdio = Stdio::default();
        if let Some(input) = streams.stdin {
            let (read, write) = pipe()?;
            stdio.stdin = Some(read);
            copy_input(input, write, Arc::default())?;
        }
        let mut outputs = Vec::new();
        for (target, slot, is_error) in [
            (streams.stdout, &mut stdio.stdout, false),
            (streams.stderr, &mut stdio.stderr, true),
        ] {
            if target.is_none() && log.is_none() {
                continue;
            }
            let (read, write) = pipe()?;
            *slot = Some(write);
            outputs.push(copy_output(read, target, log.clone(), is_error)?);
        }
        let copying = Self {
            outputs,
            vanishing: Arc::default(),
            terminal: None,
        };
        Ok((copying, stdio))
    }

    fn terminal(
        streams: Streams,
        log: Option<Arc<Mutex<LogWriter>>>,
    ) -> Result<(Self, Stdio), EngineError> {
        let (front, back) =
            sandbox::open_terminal().map_err(EngineError::io("make", "a terminal"))?;
        let again = |fd: &OwnedFd| {
            fd.try_clone()
                .map_err(EngineError::io("copy", "a descriptor"))
        };
        let vanishing = Arc::<Vanishing>::default();
        if let Some(input) = streams.stdin {
            copy_input(input, again(&front)?, Arc::clone(&vanishing))?;
        }
        let output = copy_output(again(&front)?, streams.stdout, log, false)?;
        let stdio = Stdio {
            stdin: Some(again(&back)?),
            stdout: Some(again(&back)?),
            stderr: Some(back),
        };
        let copying = Self {
            outputs: vec![output],
            vanishing,
            terminal: Some(Terminal(Arc::new(front))),
        };
        Ok((copying, stdio))
    }

    /// Has `act` called when the terminal that is typed at vanishes: nobody can end the command any more.
    pub(crate) fn on_vanishing(&self, act: impl FnOnce() + Send + 'static) {
        self.vanishing.watch(act);
    }

    /// Waits until all output has arrived.
    pub(crate) fn finish(self) {
        for output in self.outputs {
            let _ = output.join();
        }
    }
}

fn copy_input(input: OwnedFd, to: OwnedFd, vanishing: Arc<Vanishing>) -> Result<(), EngineError> {
    // One that has vanished does not say any more that it was a terminal.
    let from_terminal = rustix::termios::isatty(&input);
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            let to_terminal = rustix::termios::isatty(&to);
            let (mut input, mut to) = (File::from(input), File::from(to));
            let mut buffer = [0; 8 << 10];
            loop {
                let count = match input.read(&mut buffer) {
                    Ok(count) => count,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(_) => return vanishing.happen(),
                };
                if count == 0 {
                    break;
                }
                // When the command does not read any more, its end is near.
                if to.write_all(&buffer[..count]).is_err() {
                    return;
                }
            }
            if from_terminal && to_terminal {
                // Its keys are passed on as they are, so this is not the key for an end: it was hung up.
                vanishing.happen();
            } else if to_terminal {
                // The end of the input of a terminal is a key.
                let _ = to.write_all(b"\x04");
            }
        })
        .map(drop)
        .map_err(|source| EngineError::Thread { source })
}

fn copy_output(
    from: OwnedFd,
    to: Option<OwnedFd>,
    log: Option<Arc<Mutex<LogWriter>>>,
    is_error: bool,
) -> Result<JoinHandle<()>, EngineError> {
    std::thread::Builder::new()
        .name("output".to_owned())
        .spawn(move || {
            let mut from = File::from(from);
            let mut to = to.map(File::from);
            let mut buffer = vec![0; 64 << 10];
            loop {
                let count = match from.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(count) => count,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    // A terminal that the last process has closed.
                    Err(_) => return,
                };
                if let Some(log) = &log {
                    let mut log = log.lock().unwrap_or_else(|poison| poison.into_inner());
                    let _ = log.write(is_error, &buffer[..count]);
                }
                // When whoever listened has gone, the command is told by its next write.
                if let Some(file) = &mut to
                    && file.write_all(&buffer[..count]).is_err()
                {
                    return;
                }
            }
        })
        .map_err(|source| EngineError::Thread { source })
}
