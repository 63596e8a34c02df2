//! File operations with the semantics of LLB's FileOp.

mod mode;
mod request;

pub use mode::{ModeChange, SymbolicMode};
pub use request::{Copy, LinkPolicy, Mkdir, Mkfile, Owner, Remove, Symlink, Timestamp, Wildcard};

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
}
