//! The handles by which a build tells what happens.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, mpsc};
use std::time::{SystemTime, UNIX_EPOCH};

use oci::{Digest, Timestamp};

use crate::{Event, Log, Outcome, Status, Stream, Vertex, VertexState, Warning};

/// Takes events; called from any thread.
pub trait Receiver: Send + Sync {
    fn receive(&self, event: Event);
}

/// An unbounded queue. Events to nobody are dropped.
impl Receiver for mpsc::Sender<Event> {
    fn receive(&self, event: Event) {
        let _ = self.send(event);
    }
}

/// A bounded queue: steps wait while it is full, so that a flood of output cannot fill the memory.
impl Receiver for mpsc::SyncSender<Event> {
    fn receive(&self, event: Event) {
        let _ = self.send(event);
    }
}

struct Discard;

impl Receiver for Discard {
    fn receive(&self, _event: Event) {}
}

/// Returns a text as it may be shown: URLs come with tokens and passwords.
fn shown(text: String) -> String {
    match oci::without_user_info(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(shown) => shown,
    }
}

/// Returns the time of the machine.
pub fn system_clock() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs())
        .ok()
        .and_then(|seconds| Timestamp::from_unix(seconds, since.subsec_nanos()).ok())
        .unwrap_or(Timestamp::EPOCH)
}

/// Sends events. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Sink {
    receiver: Arc<dyn Receiver>,
    clock: fn() -> Timestamp,
}

impl fmt::Debug for Sink {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sink").finish_non_exhaustive()
    }
}

impl Sink {
    /// Makes a sink whose events carry the time of `clock` (see [`system_clock`]).
    pub fn new(receiver: impl Receiver + 'static, clock: fn() -> Timestamp) -> Self {
        Self {
            receiver: Arc::new(receiver),
            clock,
        }
    }

    /// Makes a sink that forgets everything.
    pub fn discard() -> Self {
        Self::new(Discard, || Timestamp::EPOCH)
    }

    /// Makes a sink with the same clock whose events go to another receiver.
    pub fn with_receiver(&self, receiver: impl Receiver + 'static) -> Self {
        Self::new(receiver, self.clock)
    }

    pub fn send(&self, event: Event) {
        self.receiver.receive(event);
    }

    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Announces a vertex.
    pub fn vertex(&self, mut vertex: Vertex) -> VertexHandle {
        vertex.name = shown(vertex.name);
        let vertex = Arc::new(vertex);
        self.send(Event::Vertex {
            vertex: vertex.clone(),
            state: VertexState::Waiting,
        });
        VertexHandle {
            sink: self.clone(),
            vertex,
        }
    }

    /// Sends a warning that is already complete.
    pub fn warn(&self, warning: Warning) {
        self.send(Event::Warning(warning));
    }
}

/// A vertex that has been announced.
#[derive(Debug, Clone)]
pub struct VertexHandle {
    sink: Sink,
    vertex: Arc<Vertex>,
}

impl VertexHandle {
    pub fn digest(&self) -> &Digest {
        &self.vertex.digest
    }

    /// Says that work on the vertex begins. May be called again after an earlier run has completed.
    pub fn start(&self) -> RunningVertex {
        let started = self.sink.now();
        self.sink.send(Event::Vertex {
            vertex: self.vertex.clone(),
            state: VertexState::Running { started },
        });
        RunningVertex {
            handle: self.clone(),
            started,
            completed: false,
        }
    }

    /// Says that the result was there already.
    pub fn cached(&self) {
        self.start().complete(Outcome::Cached);
    }
}

/// A vertex that is being worked on; canceled when dropped before it was completed.
#[derive(Debug)]
pub struct RunningVertex {
    handle: VertexHandle,
    started: Timestamp,
    completed: bool,
}

impl RunningVertex {
    pub fn digest(&self) -> &Digest {
        self.handle.digest()
    }

    /// Returns a handle that sends what the vertex prints.
    pub fn logger(&self, stream: Stream) -> Logger {
        Logger {
            sink: self.handle.sink.clone(),
            vertex: self.digest().clone(),
            stream,
        }
    }

    /// Begins a part of the vertex (`exporting layers`, the digest of a blob).
    pub fn status(&self, id: impl Into<String>) -> StatusHandle {
        self.status_of(id, "", 0)
    }

    /// Begins a part of the vertex that moves `total` bytes (zero when unknown).
    pub fn status_of(
        &self,
        id: impl Into<String>,
        name: impl Into<String>,
        total: u64,
    ) -> StatusHandle {
        let sink = self.handle.sink.clone();
        let started = sink.now();
        let status = Status {
            vertex: self.digest().clone(),
            id: shown(id.into()),
            name: shown(name.into()),
            current: 0,
            total,
            timestamp: started,
            started: Some(started),
            completed: None,
        };
        sink.send(Event::Status(status.clone()));
        StatusHandle { sink, status }
    }

    /// Says something that does not fail the vertex but should be known.
    pub fn warn(&self, short: impl Into<String>) {
        self.handle.sink.warn(Warning {
            vertex: self.digest().clone(),
            level: 1,
            short: shown(short.into()),
            detail: Vec::new(),
            url: String::new(),
            source: None,
            ranges: Vec::new(),
        });
    }

    pub fn complete(mut self, outcome: Outcome) {
        self.end(outcome);
    }

    /// Completes it as a result has it; `said` puts an error into words.
    pub fn conclude<T, E>(self, result: &Result<T, E>, said: impl FnOnce(&E) -> String) {
        self.complete(match result {
            Ok(_) => Outcome::Done,
            Err(error) => Outcome::Failed { error: said(error) },
        });
    }

    fn end(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.completed, true) {
            return;
        }
        let outcome = match outcome {
            Outcome::Failed { error } => Outcome::Failed {
                error: shown(error),
            },
            outcome => outcome,
        };
        let sink = &self.handle.sink;
        let state = VertexState::Completed {
            started: self.started,
            completed: sink.now(),
            outcome,
        };
        sink.send(Event::Vertex {
            vertex: self.handle.vertex.clone(),
            state,
        });
    }
}

impl Drop for RunningVertex {
    fn drop(&mut self) {
        self.end(Outcome::Canceled);
    }
}

/// Sends what a step prints.
#[derive(Debug, Clone)]
pub struct Logger {
    sink: Sink,
    vertex: Digest,
    stream: Stream,
}

impl Logger {
    pub fn log(&self, data: impl Into<Arc<[u8]>>) {
        let data = data.into();
        if data.is_empty() {
            return;
        }
        self.sink.send(Event::Log(Log {
            vertex: self.vertex.clone(),
            stream: self.stream,
            data,
            timestamp: self.sink.now(),
        }));
    }
}

/// A part of a vertex that is under way.
#[derive(Debug, Clone)]
pub struct StatusHandle {
    sink: Sink,
    status: Status,
}

impl StatusHandle {
    /// Says how many bytes are done. The caller sees to it that this is not called for every small piece.
    pub fn update(&self, current: u64) {
        let status = Status {
            current,
            timestamp: self.sink.now(),
            ..self.status.clone()
        };
        self.sink.send(Event::Status(status));
    }

    /// Says that the part is done; `current` is how many bytes it was.
    pub fn finish(self, current: u64) {
        let now = self.sink.now();
        let status = Status {
            current,
            timestamp: now,
            completed: Some(now),
            ..self.status.clone()
        };
        self.sink.send(Event::Status(status));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(tell: impl FnOnce(&Sink)) -> Vec<Event> {
        let (sender, receiver) = mpsc::channel();
        let sink = Sink::new(sender, || Timestamp::EPOCH);
        tell(&sink);
        drop(sink);
        receiver.into_iter().collect()
    }

    fn states<'a>(events: &'a [Event]) -> Vec<&'a VertexState> {
        let state = |event: &'a Event| match event {
            Event::Vertex { state, .. } => Some(state),
            _ => None,
        };
        events.iter().filter_map(state).collect()
    }

    #[test]
    fn a_vertex_that_is_dropped_was_canceled() {
        let events = collect(|sink| drop(sink.vertex(Vertex::named("x")).start()));
        let states = states(&events);
        assert_eq!(states.len(), 3);
        assert!(matches!(
            states[2],
            VertexState::Completed {
                outcome: Outcome::Canceled,
                ..
            }
        ));
    }

    #[test]
    fn a_vertex_completes_once() {
        let events = collect(|sink| sink.vertex(Vertex::named("x")).cached());
        let states = states(&events);
        assert_eq!(states.len(), 3);
        assert!(matches!(
            states[2],
            VertexState::Completed {
                outcome: Outcome::Cached,
                ..
            }
        ));
    }

    #[test]
    fn handles_send_from_other_threads() {
        let events = collect(|sink| {
            let running = sink.vertex(Vertex::named("x")).start();
            let logger = running.logger(Stream::Stderr);
            std::thread::spawn(move || logger.log(*b"abc"))
                .join()
                .unwrap();
            let status = running.status_of("layer", "downloading", 5);
            status.update(2);
            status.finish(5);
            running.complete(Outcome::Done);
        });
        assert!(
            matches!(&events[2], Event::Log(log) if log.data[..] == *b"abc" && log.stream == Stream::Stderr)
        );
        assert!(
            matches!(&events[5], Event::Status(status) if status.current == 5 && status.completed.is_some())
        );
        assert_eq!(events.len(), 7);
    }
}
