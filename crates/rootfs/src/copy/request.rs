//! What a file operation is asked to do.

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use super::mode::ModeChange;
use crate::apply::Limits;
use crate::filter::Filter;

/// A user and a group by number, as they are inside the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// A point in time as a file holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanoseconds: u32,
}

impl Timestamp {
    /// Reads the nanoseconds since the epoch of LLB; `None` for its -1, which stands for "not given".
    pub fn from_llb(nanoseconds: i64) -> Option<Timestamp> {
        (nanoseconds != -1).then(|| Timestamp {
            seconds: nanoseconds.div_euclid(1_000_000_000),
            nanoseconds: nanoseconds.rem_euclid(1_000_000_000) as u32,
        })
    }
}

/// Whether the source path of a copy is a pattern.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wildcard {
    /// It is a plain path.
    #[default]
    No,
    /// It is a pattern that must match something.
    Required,
    /// It is a pattern; nothing matching is no error.
    MayBeEmpty,
}

/// Whether files of the source may become hard links in the destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkPolicy {
    /// Data is cloned or copied.
    #[default]
    Never,
    /// A file whose owner, mode, time and xattrs come out as they are in the source is linked.
    ///
    /// Only for sources that never change (committed layers, staged files that nobody else uses), and only
    /// where no other layer that will be a lower of the same mount holds a link to the same inode: the overlay
    /// would show both as one file. [`CopyReport::linked`](super::CopyReport::linked) tells whether it was done.
    Allowed,
    /// The same is moved, and directories with all they hold where nothing is in their place.
    ///
    /// Only for sources that are given up with the copy and hold no attributes but those that travel. A pattern with
    /// several matches, of which one may lie in another or lead to it, is [`Allowed`](Self::Allowed) to link.
    Moved,
}

/// Files that were linked into a layer. A second copy of the same file is a file of its own, as in the reference.
#[derive(Debug, Default)]
pub struct LinkedOnce(Mutex<HashSet<(u64, u64)>>);

impl LinkedOnce {
    /// Tells whether an inode, by its device and number, is linked for the first time.
    pub(super) fn is_first(&self, inode: (u64, u64)) -> bool {
        let mut linked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        linked.insert(inode)
    }
}

/// What becomes of files that have power over the machine they are copied to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Powers {
    /// They are copied as they are.
    #[default]
    Kept,
    /// Device nodes are left out, and counted in [`CopyReport::left_out`](super::CopyReport::left_out).
    NoDevices,
    /// As before, and files lose setuid and setgid bits and their capabilities.
    Dropped,
}

/// One copy action, in the terms of LLB's `FileActionCopy`.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Path or pattern in the source.
    pub source: String,
    /// Path in the destination; a trailing `/` or `/.` says that it is a directory.
    pub dest: String,
    /// A source that is a symlink is followed (inside its root).
    pub follow_symlink: bool,
    /// A source directory stands for its contents.
    pub dir_contents: bool,
    /// A source that is an archive is unpacked.
    pub unpack: bool,
    /// Missing parents of the destination are made; otherwise they are an error.
    pub create_dest_path: bool,
    pub wildcard: Wildcard,
    /// Include and exclude patterns.
    pub filter: Option<Arc<dyn Filter>>,
    /// An entry of another type in the way is replaced instead of being an error.
    pub replace: bool,
    pub mode: Option<ModeChange>,
    /// The owner of everything copied; without it that of the source.
    pub owner: Option<Owner>,
    /// The time of everything copied; without it that of the source.
    pub time: Option<Timestamp>,
    pub link: LinkPolicy,
    /// What was linked by this and other copies into one layer.
    pub linked: Option<Arc<LinkedOnce>>,
    pub powers: Powers,
    /// What an archive may unpack to.
    pub limits: Limits,
    /// Ends the unpacking of an archive once it is set.
    pub stopped: Option<Arc<AtomicBool>>,
}

impl Copy {
    /// A copy with the options that LLB has when nothing is set.
    pub fn new(source: impl Into<String>, dest: impl Into<String>) -> Copy {
        Copy {
            source: source.into(),
            dest: dest.into(),
            follow_symlink: false,
            dir_contents: false,
            unpack: false,
            create_dest_path: false,
            wildcard: Wildcard::No,
            filter: None,
            replace: false,
            mode: None,
            owner: None,
            time: None,
            link: LinkPolicy::Never,
            linked: None,
            powers: Powers::Kept,
            limits: Limits::default(),
            stopped: None,
        }
    }

    /// Returns whether all of a directory may be moved as it is.
    pub(super) fn keeps_everything(&self) -> bool {
        self.link == LinkPolicy::Moved
            && self.powers == Powers::Kept
            && self.filter.is_none()
            && self.owner.is_none()
            && self.mode.is_none()
            && self.time.is_none()
    }
}

/// Makes a directory (LLB's `FileActionMkDir`).
#[derive(Clone, Debug)]
pub struct Mkdir {
    pub path: String,
    pub mode: u32,
    pub make_parents: bool,
    pub owner: Option<Owner>,
    pub time: Option<Timestamp>,
}

/// Makes or overwrites a file (LLB's `FileActionMkFile`).
#[derive(Clone, Debug)]
pub struct Mkfile {
    pub path: String,
    pub mode: u32,
    pub data: Vec<u8>,
    pub owner: Option<Owner>,
    pub time: Option<Timestamp>,
}

/// Makes a symlink (LLB's `FileActionSymlink`).
#[derive(Clone, Debug)]
pub struct Symlink {
    /// What the link says.
    pub target: String,
    /// Where the link is made.
    pub path: String,
    pub owner: Option<Owner>,
    pub time: Option<Timestamp>,
}

/// Removes a path and all below it (LLB's `FileActionRm`).
#[derive(Clone, Debug)]
pub struct Remove {
    pub path: String,
    pub allow_not_found: bool,
    pub wildcard: bool,
}
