//! Which entries below a source directory are taken.

use std::fmt;

/// What a filter says of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The entry is taken; what lies below a directory is judged by itself.
    Take,
    /// The entry is not taken, but something below it may be.
    Descend,
    /// Neither the entry nor anything below it is taken.
    Prune,
}

/// What a filter remembers of a directory for judging its children.
///
/// Opaque to the walk: for the reference's patterns it is which of them matched the directory
/// (include patterns first, then exclude patterns).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterState(pub Option<Box<[bool]>>);

/// Decides which entries are taken.
///
/// Called for each entry below the root of a walk, parents before children, with the path relative to
/// the root (`a/b`, never empty), and with the state that was given for the parent (the default state
/// for an entry right below the root). Must be a pure function of its arguments: calls come from many threads.
pub trait Filter: Send + Sync + fmt::Debug {
    fn judge(&self, path: &[u8], parent: &FilterState) -> (Verdict, FilterState);
}

/// Takes everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct TakeAll;

impl Filter for TakeAll {
    fn judge(&self, _path: &[u8], _parent: &FilterState) -> (Verdict, FilterState) {
        (Verdict::Take, FilterState::default())
    }
}
