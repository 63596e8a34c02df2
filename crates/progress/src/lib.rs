//! Typed build events, the handle to send them, and their renderers.
//!
//! *Responsibility*: what a build tells while it runs — which vertices there are, when they start and end, how far
//! transfers have come, what steps print, what is to be warned of — as values; their JSON form, which is BuildKit's
//! (`--progress=rawjson`).
//!
//! *Not here*: who shows it where (the program chooses a renderer and hands it a writer), log files, masking of
//! secrets.
//!
//! *Invariants*
//! - A vertex that was announced is completed: a handle that is dropped says so by `Canceled`.
//! - The bytes of a log are passed on untouched.
//! - Names, errors and warnings say nothing of who opens a URL.
//! - The clock is the sender's; renderers take the time as an argument.

#![forbid(unsafe_code)]

mod event;
pub mod render;
mod sink;
mod wire;

pub use event::{
    Event, Group, Log, Outcome, Position, Range, SourceInfo, Status, Stream, Vertex, VertexState,
    Warning,
};
pub use sink::{Logger, Receiver, RunningVertex, Sink, StatusHandle, VertexHandle, system_clock};
pub use wire::{json_line, status_json};
