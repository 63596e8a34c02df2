//! A build told by hand, with a clock that is set.

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;
use std::sync::Arc;

use oci::{Digest, Timestamp};

use super::Render;
use crate::{Event, Group, Log, Outcome, Status, Stream, Vertex, VertexState, Warning};

/// Where a renderer writes in tests.
#[derive(Debug, Clone, Default)]
pub(crate) struct Output(Rc<RefCell<Vec<u8>>>);

impl Output {
    /// Returns what was written since the last call.
    pub(crate) fn take(&self) -> String {
        String::from_utf8_lossy(&self.0.take()).into_owned()
    }
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A point in time, in milliseconds after the build began.
pub(crate) fn at(milliseconds: u32) -> Timestamp {
    Timestamp::from_unix(
        i64::from(milliseconds / 1000),
        milliseconds % 1000 * 1_000_000,
    )
    .unwrap()
}

/// A renderer that is told of a build; vertices are called by their names.
pub(crate) struct Teller<R> {
    pub(crate) renderer: R,
    pub(crate) output: Output,
    group: Option<Group>,
}

impl<R: Render> Teller<R> {
    pub(crate) fn new(make: impl FnOnce(Output) -> R) -> Self {
        let output = Output::default();
        Self {
            renderer: make(output.clone()),
            output,
            group: None,
        }
    }

    /// Puts the vertices that follow into a group.
    pub(crate) fn group(&mut self, id: &str, weak: bool) -> &mut Self {
        self.group = Some(Group {
            id: id.to_owned(),
            name: format!("group {id}"),
            weak,
        });
        self
    }

    pub(crate) fn alone(&mut self) -> &mut Self {
        self.group = None;
        self
    }

    fn tell(&mut self, event: Event) -> &mut Self {
        self.renderer.update(&[event]).unwrap();
        self
    }

    fn vertex(&mut self, name: &str, state: VertexState) -> &mut Self {
        let vertex = Vertex {
            group: self.group.clone(),
            ..Vertex::named(name)
        };
        self.tell(Event::Vertex {
            vertex: Arc::new(vertex),
            state,
        })
    }

    pub(crate) fn add(&mut self, name: &str) -> &mut Self {
        self.vertex(name, VertexState::Waiting)
    }

    pub(crate) fn start(&mut self, name: &str, time: u32) -> &mut Self {
        self.vertex(name, VertexState::Running { started: at(time) })
    }

    pub(crate) fn end(
        &mut self,
        name: &str,
        (start, end): (u32, u32),
        outcome: Outcome,
    ) -> &mut Self {
        self.vertex(
            name,
            VertexState::Completed {
                started: at(start),
                completed: at(end),
                outcome,
            },
        )
    }

    pub(crate) fn done(&mut self, name: &str, times: (u32, u32)) -> &mut Self {
        self.end(name, times, Outcome::Done)
    }

    pub(crate) fn fail(&mut self, name: &str, times: (u32, u32), error: &str) -> &mut Self {
        self.end(
            name,
            times,
            Outcome::Failed {
                error: error.to_owned(),
            },
        )
    }

    pub(crate) fn log(&mut self, name: &str, time: u32, text: &str) -> &mut Self {
        let vertex = Digest::sha256_of(name.as_bytes());
        let data = text.as_bytes().into();
        self.tell(Event::Log(Log {
            vertex,
            stream: Stream::Stdout,
            data,
            timestamp: at(time),
        }))
    }

    pub(crate) fn part(
        &mut self,
        name: &str,
        id: &str,
        (current, total): (u64, u64),
        (start, now): (u32, u32),
        completed: bool,
    ) -> &mut Self {
        self.tell(Event::Status(Status {
            vertex: Digest::sha256_of(name.as_bytes()),
            id: id.to_owned(),
            name: String::new(),
            current,
            total,
            timestamp: at(now),
            started: Some(at(start)),
            completed: completed.then(|| at(now)),
        }))
    }

    pub(crate) fn warn(&mut self, name: &str, short: &str) -> &mut Self {
        self.tell(Event::Warning(Warning {
            vertex: Digest::sha256_of(name.as_bytes()),
            level: 1,
            short: short.to_owned(),
            detail: Vec::new(),
            url: String::new(),
            source: None,
            ranges: Vec::new(),
        }))
    }

    pub(crate) fn refresh(&mut self, time: u32) -> &mut Self {
        self.renderer.refresh(at(time)).unwrap();
        self
    }

    pub(crate) fn finish(&mut self, time: u32) -> &mut Self {
        self.renderer.finish(at(time)).unwrap();
        self
    }

    #[track_caller]
    pub(crate) fn check(&mut self, expect: &str) -> &mut Self {
        let found = self.output.take();
        assert!(found == expect, "found:\n{found}\nexpected:\n{expect}");
        self
    }
}
