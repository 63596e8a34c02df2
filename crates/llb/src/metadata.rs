//! What is known of a vertex beside what it does. Never part of its identity.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Notes beside a vertex.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// What people see (`llb.customname`); empty if the vertex has no name of its own.
    pub name: String,
    /// The instruction as written (`com.docker.dockerfile.v1.command`); empty if the vertex comes from none.
    pub command: String,
    /// Recorded results are not used.
    pub ignore_cache: bool,
    /// Texts nothing here interprets.
    pub description: BTreeMap<String, String>,
    /// Whether the result goes into an exported cache; `None` leaves it to the build.
    pub export_cache: Option<bool>,
    /// Capabilities asked of the builder beyond those the op itself needs.
    pub caps: BTreeMap<String, bool>,
    /// Vertices shown as one.
    pub progress_group: Option<Box<ProgressGroup>>,
    pub linux_resources: Option<Box<LinuxResources>>,
    /// The places in the source files it comes from.
    pub locations: Vec<Location>,
}

impl Metadata {
    /// Returns metadata that is a name alone.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// Takes in what another mention of the same vertex says: later words replace earlier ones, nothing is lost.
    pub(crate) fn merge(&mut self, other: Self) {
        if !other.name.is_empty() {
            self.name = other.name;
        }
        if !other.command.is_empty() {
            self.command = other.command;
        }
        self.ignore_cache |= other.ignore_cache;
        self.description.extend(other.description);
        if other.export_cache.is_some() {
            self.export_cache = other.export_cache;
        }
        self.caps.extend(other.caps);
        if other.progress_group.is_some() {
            self.progress_group = other.progress_group;
        }
        if other.linux_resources.is_some() {
            self.linux_resources = other.linux_resources;
        }
        self.locations.extend(other.locations);
    }
}

/// A group of vertices that is shown as one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProgressGroup {
    pub id: String,
    pub name: String,
    /// Shown alone where no strong member of the group runs.
    pub weak: bool,
}

/// Limits of the control group of a step. Zero and empty mean none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinuxResources {
    pub memory: i64,
    pub memory_swap: i64,
    pub cpu_shares: u64,
    pub cpu_period: u64,
    pub cpu_quota: i64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
}

/// A file that a build was described in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceFile {
    pub filename: String,
    /// As GitHub's linguist names it (`Dockerfile`).
    pub language: String,
    pub data: Arc<[u8]>,
    /// The definition that yields the file, in wire form.
    pub definition: Option<Vec<u8>>,
}

/// Ranges in one source file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Location {
    /// Position in [`crate::Graph::sources`].
    pub source: usize,
    pub ranges: Vec<Range>,
}

/// From one position to another, both included. Lines count from 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Range {
    pub start: Position,
    pub end: Position,
}

impl Range {
    /// Returns a range of whole lines.
    pub fn lines(first: u32, last: u32) -> Self {
        let at = |line| Position { line, character: 0 };
        Self {
            start: at(first),
            end: at(last),
        }
    }
}

/// A place in a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    pub line: u32,
    pub character: u32,
}
