//! The events of a build.

use std::sync::Arc;

use oci::{Digest, Timestamp};

/// One thing a build tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A vertex is new or has changed its state.
    Vertex {
        vertex: Arc<Vertex>,
        state: VertexState,
    },
    Status(Status),
    Log(Log),
    Warning(Warning),
}

/// A node of the build graph, or something else that takes its time, as people see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Vertex {
    pub digest: Digest,
    /// As shown: `[builder 2/5] RUN make`.
    pub name: String,
    pub inputs: Vec<Digest>,
    pub group: Option<Group>,
}

impl Vertex {
    /// Makes a vertex without inputs and group.
    pub fn new(digest: Digest, name: impl Into<String>) -> Self {
        Self {
            digest,
            name: name.into(),
            inputs: Vec::new(),
            group: None,
        }
    }

    /// Makes a vertex that is no node of the graph ("exporting to image"), found by its name.
    pub fn named(name: impl Into<String>) -> Self {
        let name = name.into();
        Self::new(Digest::sha256_of(name.as_bytes()), name)
    }
}

/// Vertices of one group are shown as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub id: String,
    pub name: String,
    /// The group is shown only when a vertex that is not weak starts.
    pub weak: bool,
}

/// How far a vertex has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VertexState {
    Waiting,
    Running {
        started: Timestamp,
    },
    Completed {
        started: Timestamp,
        completed: Timestamp,
        outcome: Outcome,
    },
}

/// How a vertex ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Cached,
    Failed { error: String },
    Canceled,
}

/// How far a part of a vertex has come: a layer, an export step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub vertex: Digest,
    /// Unique in the vertex, and shown: a blob's digest, `exporting layers`.
    pub id: String,
    /// What is done: `downloading`, `extracting`; often empty.
    pub name: String,
    /// Bytes done.
    pub current: u64,
    /// Bytes in all; zero when unknown.
    pub total: u64,
    pub timestamp: Timestamp,
    pub started: Option<Timestamp>,
    pub completed: Option<Timestamp>,
}

/// Where a step wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    /// Returns the file descriptor's number, as BuildKit sends it.
    pub const fn number(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }
}

/// A piece of what a step printed, cut anywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub vertex: Digest,
    pub stream: Stream,
    pub data: Arc<[u8]>,
    pub timestamp: Timestamp,
}

/// Something that does not fail a build but should be known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    pub vertex: Digest,
    /// 1 is the most important.
    pub level: u8,
    /// One line.
    pub short: String,
    pub detail: Vec<String>,
    pub url: String,
    pub source: Option<Arc<SourceInfo>>,
    pub ranges: Vec<Range>,
}

/// A file that warnings and errors point into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceInfo {
    pub filename: String,
    pub data: Vec<u8>,
    pub language: String,
}

/// From a place in a file to another, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    pub start: Position,
    pub end: Position,
}

/// A place in a file. Lines count from 1, characters from 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub line: u32,
    pub character: u32,
}
