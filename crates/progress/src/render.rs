//! Renderers: from events to what people and programs read.
//!
//! A renderer writes into a `Write` and takes the time as an argument; it reads no clock, environment or terminal.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use oci::Timestamp;

use crate::{Event, Warning, status_json};

mod format;
mod plain;
mod quiet;
mod screen;
mod trace;
mod tty;

pub use plain::{Folds, Plain};
pub use quiet::Quiet;
pub use tty::{Palette, Size, Tty};

/// How often a display is drawn again while nothing happens, and the most often it is drawn at all.
const PERIOD: Duration = Duration::from_millis(100);
/// How many events are taken at once.
const BATCH: usize = 4096;
/// How many bytes of logs are taken at once, and come at most between two times something is shown.
const BATCH_BYTES: usize = 1 << 18;

/// Shows events.
pub trait Render {
    /// Takes in what has happened, without showing it yet where showing costs.
    fn update(&mut self, events: &[Event]) -> io::Result<()>;

    /// Shows the state of things at `now`.
    fn refresh(&mut self, now: Timestamp) -> io::Result<()>;

    /// Shows what takes up room until it is shown. Called between two calls of [`Render::refresh`] when much has come.
    fn relieve(&mut self, _now: Timestamp) -> io::Result<()> {
        Ok(())
    }

    /// Shows what is left, and the logs of failed steps. Nothing is called after this.
    fn finish(&mut self, now: Timestamp) -> io::Result<()>;
}

/// Shows what comes from the queue until all its senders are gone; returns the warnings that came by.
///
/// An error in writing does not end the build: the queue is emptied first, then the error is returned.
pub fn drive(
    events: &Receiver<Event>,
    renderer: &mut dyn Render,
    clock: fn() -> Timestamp,
) -> io::Result<Vec<Warning>> {
    let mut warnings = Vec::new();
    let mut result = Ok(());
    let mut batch = Vec::new();
    let mut pending = 0;
    let mut shown = std::time::Instant::now();
    loop {
        // Up to when something is shown next, so that the end of a burst does not wait for what comes after it.
        let wait = PERIOD.saturating_sub(shown.elapsed());
        let ended = match events.recv_timeout(wait) {
            Ok(event) => {
                let mut bytes = log_bytes(&event);
                batch.push(event);
                while batch.len() < BATCH && bytes < BATCH_BYTES {
                    let Ok(event) = events.try_recv() else { break };
                    bytes += log_bytes(&event);
                    batch.push(event);
                }
                pending += bytes;
                false
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
        };
        warnings.extend(batch.iter().filter_map(|event| match event {
            Event::Warning(warning) => Some(warning.clone()),
            _ => None,
        }));
        if result.is_ok() {
            result = renderer.update(&batch).and_then(|()| {
                if ended {
                    return renderer.finish(clock());
                }
                if shown.elapsed() >= PERIOD {
                    shown = std::time::Instant::now();
                    pending = 0;
                    return renderer.refresh(clock());
                }
                if pending >= BATCH_BYTES {
                    pending = 0;
                    return renderer.relieve(clock());
                }
                Ok(())
            });
        }
        batch.clear();
        if ended {
            return result.map(|()| warnings);
        }
    }
}

fn log_bytes(event: &Event) -> usize {
    match event {
        Event::Log(log) => log.data.len(),
        _ => 0,
    }
}

/// Writes events as BuildKit's JSON, one solve status a line.
#[derive(Debug)]
pub struct RawJson<W> {
    output: W,
}

impl<W: Write> RawJson<W> {
    pub fn new(output: W) -> Self {
        Self { output }
    }
}

impl<W: Write> Render for RawJson<W> {
    fn update(&mut self, events: &[Event]) -> io::Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        let mut line = status_json(events);
        line.push(b'\n');
        self.output.write_all(&line)?;
        self.output.flush()
    }

    fn refresh(&mut self, _now: Timestamp) -> io::Result<()> {
        Ok(())
    }

    fn finish(&mut self, _now: Timestamp) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Outcome, Sink, Stream, Vertex, system_clock};

    /// Runs a small build against a renderer; returns the warnings.
    fn drive_a_build(renderer: &mut dyn Render) -> io::Result<Vec<Warning>> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let build = std::thread::spawn(move || {
            let sink = Sink::new(sender, system_clock);
            let running = sink.vertex(Vertex::named("step")).start();
            running.logger(Stream::Stdout).log(*b"hello\n");
            sink.warn(Warning {
                vertex: running.digest().clone(),
                level: 1,
                short: "beware".to_owned(),
                detail: Vec::new(),
                url: String::new(),
                source: None,
                ranges: Vec::new(),
            });
            running.complete(Outcome::Done);
        });
        let result = drive(&receiver, renderer, system_clock);
        build.join().unwrap();
        result
    }

    #[test]
    fn a_build_is_shown_to_its_end_and_its_warnings_returned() {
        let mut output = Vec::new();
        let warnings = drive_a_build(&mut Plain::new(&mut output)).unwrap();
        let text = String::from_utf8(output).unwrap();
        assert!(
            text.starts_with("#1 step\n") && text.contains(" hello\n") && text.contains("#1 DONE "),
            "{text}"
        );
        assert_eq!(
            warnings
                .iter()
                .map(|warning| warning.short.as_str())
                .collect::<Vec<_>>(),
            ["beware"]
        );
    }

    #[test]
    fn the_end_of_a_burst_is_shown_before_anything_else_comes() {
        /// Says when something was shown after the log had come.
        struct Shown(bool, std::sync::mpsc::Sender<()>);
        impl Render for Shown {
            fn update(&mut self, events: &[Event]) -> io::Result<()> {
                self.0 |= events.iter().any(|event| matches!(event, Event::Log(_)));
                Ok(())
            }
            fn refresh(&mut self, _now: Timestamp) -> io::Result<()> {
                if self.0 {
                    let _ = self.1.send(());
                }
                Ok(())
            }
            fn finish(&mut self, _now: Timestamp) -> io::Result<()> {
                Ok(())
            }
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        let (shown, is_shown) = std::sync::mpsc::channel();
        let build = std::thread::spawn(move || {
            let sink = Sink::new(sender, system_clock);
            let running = sink.vertex(Vertex::named("step")).start();
            running.logger(Stream::Stdout).log(*b"the last line\n");
            // Nothing comes until it was shown.
            is_shown.recv().unwrap();
        });
        drive(&receiver, &mut Shown(false, shown), system_clock).unwrap();
        build.join().unwrap();
    }

    #[test]
    fn json_is_one_object_a_line() {
        let mut output = Vec::new();
        drive_a_build(&mut RawJson::new(&mut output)).unwrap();
        let text = String::from_utf8(output).unwrap();
        assert!(text.lines().count() >= 1);
        for line in text.lines() {
            assert!(
                serde_json::from_str::<serde_json::Value>(line)
                    .unwrap()
                    .is_object()
            );
        }
    }

    #[test]
    fn a_build_goes_on_when_nobody_reads() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _data: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert_eq!(
            drive_a_build(&mut Plain::new(Closed)).unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
        assert!(
            drive_a_build(&mut Quiet::new(Vec::new(), |_| ()))
                .unwrap()
                .len()
                == 1
        );
    }
}
