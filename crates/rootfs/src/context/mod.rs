//! A build context: a directory of the user's, captured at the start of a build.
//!
//! One parallel walk takes the names and attributes of everything that the filter leaves in. Which files are read
//! is decided later, by what steps need; files whose step will run are staged: copied once and hashed from the copy. What
//! changes in the directory after that is not seen.

mod copies;
mod select;
mod stage;
mod walk;

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::checksum::{self, Header, Selection, Sum, read_settled};
use crate::copy::Owner;
use crate::filter::Filter;
use crate::memo::{CarefulMemo, FileContent, FileMemo, FileStamp, file_clock};
use crate::meta::{Kind, Meta};
use crate::pool;
use crate::tree::open_host_dir;
use crate::{Error, Result};

pub use copies::{Copies, Earlier, Staged, write_copies};

/// Files that one thread reads in one go.
const BATCH: usize = 64;

/// What lies in a context, as it was when it was captured.
#[derive(Debug)]
pub struct Capture {
    root: OwnedFd,
    /// Depth first, the entries of each directory sorted by name; the first is the root.
    entries: Vec<Entry>,
    /// The names of all entries, one after the other.
    names: Vec<u8>,
    /// What symlinks say, by entry.
    links: HashMap<u32, CString>,
    /// What was read of files.
    contents: Vec<Mutex<Content>>,
    /// What was read of the few that say more than [`Content`] has room for.
    others: Mutex<HashMap<u32, Known>>,
    /// The owner that everything counts as having.
    owner: Option<Owner>,
}

/// One captured file.
#[derive(Debug)]
struct Entry {
    name: (u32, u16),
    parent: u32,
    /// The entry after all that is below this one.
    end: u32,
    meta: Meta,
}

/// What is known of one file. Small, as there is one for each file of a context.
#[derive(Clone, Copy, Debug, Default)]
enum Content {
    #[default]
    Unread,
    /// Data, as of the attributes of the walk, without extended attributes.
    Data([u8; 32]),
    /// Said elsewhere.
    Other,
}

/// What was read of a file, and the attributes it then had.
#[derive(Clone, Copy, Debug)]
struct Known {
    meta: Meta,
    content: FileContent,
}

/// A captured file, to look at.
#[derive(Clone, Debug)]
pub struct CapturedFile {
    /// Path below the context, without a leading slash.
    pub path: Vec<u8>,
    pub kind: Kind,
    pub size: u64,
}

/// What counts of one file of a selection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedFile {
    /// Path below the context, without a leading slash; empty for the context itself.
    pub path: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub owner: Owner,
    /// Tells data, link target, device and extended attributes from others.
    pub content: [u8; 32],
}

/// One entry that a selection takes.
struct Selected {
    index: u32,
    /// Length of the path in the checksum.
    length: u32,
    /// Where it begins in [`Taken::paths`].
    start: usize,
    contents_only: bool,
}

/// What a selection takes.
#[derive(Default)]
struct Taken {
    entries: Vec<Selected>,
    /// Paths in the checksum, one after the other: components each led in by a zero byte.
    paths: Vec<u8>,
    /// Symlinks on the way to them, and what they lead through.
    through: Vec<u32>,
}

impl Taken {
    fn add(&mut self, index: u32, path: &[u8], contents_only: bool) {
        self.entries.push(Selected {
            index,
            length: path.len() as u32,
            start: self.paths.len(),
            contents_only,
        });
        self.paths.extend_from_slice(path);
    }

    fn path(&self, of: &Selected) -> &[u8] {
        &self.paths[of.start..][..of.length as usize]
    }

    fn indices(&self) -> impl Iterator<Item = u32> {
        self.entries.iter().map(|selected| selected.index)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Capture {
    /// Walks the directory at a host path. What the filter prunes is not even looked at.
    ///
    /// Everything counts as owned by `owner` (a client's files are root's in the reference); `None` keeps the owners.
    pub fn new(path: &Path, filter: Option<&dyn Filter>, owner: Option<Owner>) -> Result<Capture> {
        let root = open_host_dir(path)?;
        walk::walk(root, filter, owner)
    }

    /// Returns how many entries there are, the root included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether there is nothing in the context.
    pub fn is_empty(&self) -> bool {
        self.entries.len() <= 1
    }

    /// Returns all entries but the root, depth first, sorted by name.
    pub fn files(&self) -> impl Iterator<Item = CapturedFile> {
        (1..self.entries.len() as u32).map(|index| CapturedFile {
            path: self.path(index),
            kind: self.entry(index).meta.kind,
            size: self.entry(index).meta.size,
        })
    }

    /// Returns the checksum of a selection; equal to [`checksum::checksum`] of a tree with the same files.
    ///
    /// Files that the memo does not know are read. One that is gone or has become something else since the walk is
    /// [`Error::Changed`]: the context has to be captured again.
    pub fn checksum(&self, selection: &Selection, memo: &dyn FileMemo) -> Result<[u8; 32]> {
        let taken = self.select(selection)?;
        self.read(taken.indices().collect(), memo)?;
        let mut sum = Sum::new();
        for selected in &taken.entries {
            let header = match selected.contents_only {
                true => Header::contents_only(),
                false => self.header(selected.index, selection.owner),
            };
            sum.add(taken.path(selected), &header);
        }
        Ok(sum.finish())
    }

    /// Returns the first files of a selection with what counts of each, in the order of the checksum, and how many
    /// more there are.
    pub fn list(
        &self,
        selection: &Selection,
        most: usize,
        memo: &dyn FileMemo,
    ) -> Result<(Vec<ListedFile>, usize)> {
        let taken = self.select(selection)?;
        self.read(taken.indices().take(most).collect(), memo)?;
        let listed = taken.entries.iter().take(most).map(|selected| {
            let header = match selected.contents_only {
                true => Header::contents_only(),
                false => self.header(selected.index, selection.owner),
            };
            // The sum of one file: it says what data, links, devices and extended attributes there are.
            let mut sum = Sum::new();
            let (mode, owner) = (header.mode, header.owner);
            let bare = Header {
                mode: 0,
                owner: Owner { uid: 0, gid: 0 },
                ..header
            };
            sum.add(b"", &bare);
            ListedFile {
                path: self.path(selected.index),
                kind: bare.kind,
                mode,
                owner,
                content: sum.finish(),
            }
        });
        let more = taken.entries.len().saturating_sub(most);
        Ok((listed.collect(), more))
    }

    /// Returns a digest of when everything but the context itself was last changed.
    ///
    /// It is in no checksum, since no step's result depends on it; but a copy that is shown as the directory itself does.
    pub fn times(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for index in 1..self.entries.len() as u32 {
            let path = self.path(index);
            let modified = self.entry(index).meta.modified;
            hash.update((path.len() as u64).to_be_bytes());
            hash.update(&path);
            hash.update(modified.seconds.to_be_bytes());
            hash.update(modified.nanoseconds.to_be_bytes());
        }
        hash.finalize().into()
    }

    /// Returns what of a selection is not as it was captured or read: the context changed meanwhile.
    ///
    /// For whoever has copied from the directory itself. Costs one `statx` a file.
    pub fn verify(&self, selection: &Selection) -> Result<()> {
        for index in self.select(selection)?.indices() {
            let then = self
                .known(index)
                .map_or(self.entry(index).meta, |known| known.meta);
            let now = self
                .open(index, OFlags::PATH)
                .and_then(crate::meta::stat_fd);
            if !now.is_ok_and(|now| {
                then.is_dir() && now.is_dir() || FileStamp::of(&now) == FileStamp::of(&then)
            }) {
                return Err(self.changed(index));
            }
        }
        Ok(())
    }

    fn known(&self, index: u32) -> Option<Known> {
        match *lock(&self.contents[index as usize]) {
            Content::Unread => None,
            Content::Data(data) => Some(Known {
                meta: self.entry(index).meta,
                content: FileContent { data, xattrs: None },
            }),
            Content::Other => lock(&self.others).get(&index).copied(),
        }
    }

    fn learn(&self, index: u32, known: Known) {
        let mut content = lock(&self.contents[index as usize]);
        *content = match known.content.xattrs {
            None if known.meta == self.entry(index).meta => Content::Data(known.content.data),
            _ => {
                lock(&self.others).insert(index, known);
                Content::Other
            }
        };
    }

    fn entry(&self, index: u32) -> &Entry {
        &self.entries[index as usize]
    }

    fn name(&self, index: u32) -> &[u8] {
        let (start, length) = self.entry(index).name;
        &self.names[start as usize..][..usize::from(length)]
    }

    /// Returns the path below the root; empty for the root.
    fn path(&self, mut index: u32) -> Vec<u8> {
        let mut names = Vec::new();
        while index != 0 {
            names.push(self.name(index));
            index = self.entry(index).parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    fn changed(&self, index: u32) -> Error {
        Error::Changed {
            path: String::from_utf8_lossy(&self.path(index)).into_owned(),
        }
    }

    /// Opens an entry by its path, through no symlink.
    fn open(&self, index: u32, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
        let path = self.path(index);
        let path: &[u8] = if path.is_empty() { b"." } else { &path };
        open_beneath(self.root.as_fd(), path, flags)
    }

    /// Returns what counts of an entry; files have been read.
    fn header(&self, index: u32, owner: Option<Owner>) -> Header {
        let entry = self.entry(index);
        let owner = owner.or(self.owner);
        match self.known(index) {
            Some(known) => Header {
                content: known.content,
                ..Header::new(&known.meta, owner)
            },
            None => Header {
                link: self.links.get(&index).cloned(),
                ..Header::new(&entry.meta, owner)
            },
        }
    }

    /// Reads those of `indices` that are files or directories and are not known yet.
    fn read(&self, mut indices: Vec<u32>, memo: &dyn FileMemo) -> Result<()> {
        let memo = CarefulMemo::new(memo);
        indices.retain(|index| {
            let readable = matches!(
                self.entry(*index).meta.kind,
                Kind::File | Kind::Directory | Kind::Socket
            );
            readable && self.known(*index).is_none()
        });
        self.learn_devices(&indices, &memo);
        indices.retain(|index| {
            let meta = self.entry(*index).meta;
            let content = match meta.kind {
                Kind::Socket => Some(FileContent {
                    data: empty_hash(),
                    xattrs: None,
                }),
                _ => memo.recall(&meta),
            };
            content.is_none_or(|content| {
                self.learn(*index, Known { meta, content });
                false
            })
        });
        let batches: Vec<Vec<u32>> = indices.chunks(BATCH).rev().map(<[u32]>::to_vec).collect();
        pool::run(batches, pool::threads(), |batch, _| {
            batch
                .into_iter()
                .try_for_each(|index| self.read_one(index, &memo))
        })
    }

    fn learn_devices(&self, indices: &[u32], memo: &CarefulMemo<'_>) {
        let mut last = None;
        for index in indices {
            let device = self.entry(*index).meta.device;
            if last != Some(device) {
                last = Some(device);
                if let Ok(file) = self.open(*index, OFlags::PATH) {
                    memo.learn(device, file.as_fd());
                }
            }
        }
    }

    fn read_one(&self, index: u32, memo: &CarefulMemo<'_>) -> Result<()> {
        let captured = self.entry(index).meta;
        let clock = file_clock();
        let failed = |errno| match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => self.changed(index),
            errno => Error::io("read", self.path(index), errno),
        };
        let file = self
            .open(index, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
            .map_err(failed)?;
        let known = if captured.kind == Kind::Directory {
            let meta = crate::meta::stat_fd(&file).map_err(failed)?;
            let xattrs = checksum::hash_xattrs(file.as_fd()).map_err(failed)?;
            let content = FileContent {
                xattrs,
                ..checksum::NOTHING
            };
            if FileStamp::of(&meta) == FileStamp::of(&captured) {
                memo.remember(&meta, clock, &content);
            }
            // The names in it are those of the walk, so its own attributes are too.
            Known {
                meta: captured,
                content,
            }
        } else {
            let read = read_settled(file.as_fd()).map_err(failed)?;
            if read.steady {
                memo.remember(&read.meta, clock, &read.content);
            }
            Known {
                meta: read.meta,
                content: read.content,
            }
        };
        self.learn(index, known);
        Ok(())
    }
}

fn empty_hash() -> [u8; 32] {
    Sha256::digest([]).into()
}

/// Opens a path below a directory; no component of it may be a symlink.
fn open_beneath(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
) -> std::result::Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN) => {}
        result => return result,
    }
    let mut names = crate::path::components(path).peekable();
    let mut dir: Option<OwnedFd> = None;
    while let Some(name) = names.next() {
        let at = dir.as_ref().map_or(root, AsFd::as_fd);
        let flags = match names.peek() {
            Some(_) => OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            None => flags,
        };
        dir = Some(rustix::fs::openat(at, name, flags, Mode::empty())?);
    }
    dir.ok_or(Errno::NOENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_each_file_is_small() {
        // A context may have hundreds of thousands of them, and a build must do with 150 MB.
        assert!(size_of::<Entry>() <= 120);
        assert!(size_of::<Mutex<Content>>() <= 40);
        assert!(size_of::<Selected>() <= 24);
    }
}
