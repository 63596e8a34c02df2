//! File operations with the semantics of LLB's FileOp.
//!
//! All of them take [`Tree`](crate::Tree)s: a mounted overlay or a plain directory, or layers seen merged with a
//! directory on top that takes the changes. Callers run with a umask of 0 or not: modes come out as they were asked for.

mod bounded;
pub(crate) mod data;
pub(crate) mod links;
mod mode;
mod ops;
pub(crate) mod pattern;
mod request;
mod unpack;
mod walk;

pub use mode::{ModeChange, SymbolicMode};
pub use ops::{copy, mkdir, mkfile, mkfile_from, remove, symlink};
pub use pattern::has_wildcards;
pub use request::{
    Copy, LinkPolicy, LinkedOnce, Mkdir, Mkfile, Owner, Powers, Remove, Symlink, Timestamp,
    Wildcard,
};
pub use unpack::latest_in_archive;

/// What a copy did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Entries made or overwritten, directories included.
    pub entries: u64,
    /// Bytes of file data, however they were brought over.
    pub bytes: u64,
    /// Files that became hard links of files in the source.
    pub linked: u64,
    /// Files whose blocks are shared with the source.
    pub cloned: u64,
    /// Device nodes that were not copied, as [`Powers`] asked for.
    pub left_out: u64,
}
