//! What an earlier build has copied of a context: files that are still the same are linked instead of copied again.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, OFlags};

use super::{Capture, open_beneath};
use crate::copy::Owner;
use crate::memo::{FileContent, FileMemo, FileStamp};
use crate::meta::{self, Kind, Meta};
use crate::tree::open_host_dir;
use crate::{Result, checksum};

/// Copies of a context's files by the paths they have in the context: where in a layer they are and what they hold.
///
/// Only files of one name without extended attributes are among them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Copies {
    bytes: Vec<u8>,
    /// Where the entries begin in `bytes`, sorted by path.
    starts: Vec<u32>,
}

/// One copy.
struct Copied<'a> {
    /// In the context.
    path: &'a [u8],
    /// Below the layer's directory, without a leading slash.
    place: &'a [u8],
    /// The SHA-256 of the data.
    data: &'a [u8; 32],
}

const MAGIC: &[u8; 8] = b"LSCOPY1\n";
/// The magic and a checksum of what follows.
const HEAD: usize = MAGIC.len() + 4;

/// Writes where the files that were staged have come to lie in a layer, for [`Copies::from_bytes`].
pub fn write_copies(capture: &Capture, staged: &Staged, layer: &checksum::Census) -> Vec<u8> {
    // The paths in the context are mostly no longer than those in the layer.
    let each = layer
        .files
        .iter()
        .map(|(place, _)| 2 * place.len() + 4 + 32);
    let mut bytes = Vec::with_capacity(HEAD + each.sum::<usize>());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&[0; 4]);
    for (place, inode) in &layer.files {
        let Some(file) = staged.find(*inode).filter(|file| file.is_alone) else {
            continue;
        };
        let path = capture.path(file.index);
        let lengths = [path.len(), place.len()].map(u16::try_from);
        let [Ok(first), Ok(second)] = lengths else {
            continue;
        };
        bytes.extend_from_slice(&first.to_le_bytes());
        bytes.extend_from_slice(&second.to_le_bytes());
        bytes.extend_from_slice(&path);
        bytes.extend_from_slice(place);
        bytes.extend_from_slice(&file.data);
    }
    let sum = crc32fast::hash(&bytes[HEAD..]);
    bytes[MAGIC.len()..HEAD].copy_from_slice(&sum.to_le_bytes());
    bytes
}

impl Copies {
    /// Reads what [`write_copies`] wrote; what is damaged or of another version is empty.
    pub fn from_bytes(bytes: Vec<u8>) -> Copies {
        let entries = bytes
            .strip_prefix(MAGIC)
            .and_then(|rest| rest.split_first_chunk::<4>())
            .filter(|(sum, entries)| u32::from_le_bytes(**sum) == crc32fast::hash(entries));
        if entries.is_none() {
            return Copies::default();
        }
        let mut starts = Vec::new();
        let mut at = HEAD;
        while at < bytes.len() {
            let (Some(copied), Ok(start)) = (read(&bytes[at..]), u32::try_from(at)) else {
                return Copies::default();
            };
            at += 4 + copied.path.len() + copied.place.len() + copied.data.len();
            starts.push(start);
        }
        let mut copies = Copies { bytes, starts };
        let mut starts = std::mem::take(&mut copies.starts);
        starts.sort_unstable_by(|a, b| copies.path_at(*a).cmp(copies.path_at(*b)));
        copies.starts = starts;
        copies
    }

    fn path_at(&self, start: u32) -> &[u8] {
        read(&self.bytes[start as usize..]).map_or(b"", |copied| copied.path)
    }

    fn find(&self, path: &[u8]) -> Option<Copied<'_>> {
        let found = self
            .starts
            .binary_search_by(|start| self.path_at(*start).cmp(path));
        read(&self.bytes[self.starts[found.ok()?] as usize..])
    }
}

/// Reads the entry that bytes begin with.
fn read(bytes: &[u8]) -> Option<Copied<'_>> {
    let (first, rest) = bytes.split_first_chunk::<2>()?;
    let (second, rest) = rest.split_first_chunk::<2>()?;
    let (path, rest) = rest.split_at_checked(u16::from_le_bytes(*first).into())?;
    let (place, rest) = rest.split_at_checked(u16::from_le_bytes(*second).into())?;
    let (data, _) = rest.split_first_chunk::<32>()?;
    Some(Copied { path, place, data })
}

/// Copies in a layer that never changes, to be linked where they are still what the context has.
///
/// Whoever gives them answers for it that no mount will have this layer and the new one as lowers with a file of the one
/// at another path than in the other: the overlay would show both as one file.
#[derive(Debug)]
pub struct Earlier {
    layer: OwnedFd,
    copies: Copies,
}

/// The directory of the copy that was linked last: those of one directory mostly lie in one.
pub(super) struct Near {
    path: Vec<u8>,
    dir: OwnedFd,
}

impl Earlier {
    /// Opens the layer they are in.
    pub fn open(layer: &Path, copies: Copies) -> Result<Earlier> {
        let layer = open_host_dir(layer)?;
        Ok(Earlier { layer, copies })
    }

    /// Links the copy of the file at a path of the context, if it holds `content` and has the attributes the file has
    /// in the context, with another owner. Returns the copy's attributes.
    pub(super) fn link(
        &self,
        path: &[u8],
        (meta, owner): (&Meta, Owner),
        content: &FileContent,
        near: &mut Option<Near>,
        (to, name): (BorrowedFd<'_>, &CString),
    ) -> Option<Meta> {
        let copied = self.copies.find(path)?;
        if meta.links > 1 || content.xattrs.is_some() || content.data != *copied.data {
            return None;
        }
        let (parent, last) = match copied.place.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&copied.place[..at], &copied.place[at + 1..]),
            None => (&b"."[..], copied.place),
        };
        if near.as_ref().is_none_or(|near| near.path != parent) {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            *near = Some(Near {
                dir: open_beneath(self.layer.as_fd(), parent, flags).ok()?,
                path: parent.to_vec(),
            });
        }
        let dir = near.as_ref()?.dir.as_fd();
        let last = CString::new(last).ok()?;
        let there = meta::stat(dir, &last).ok()?;
        let same = there.kind == Kind::File
            && (there.size, there.mode) == (meta.size, meta.mode)
            && (there.modified, there.owner) == (meta.modified, owner);
        if !same {
            return None;
        }
        // Whatever is in the way of a link is not in the way of a copy, or is told by it.
        rustix::fs::linkat(dir, &last, to, name, AtFlags::empty()).ok()?;
        Some(there)
    }
}

/// What staging did.
#[derive(Debug, Default)]
pub struct Staged {
    pub files: u64,
    pub bytes: u64,
    /// Files among them that are links to earlier copies.
    pub linked: u64,
    /// Regular files without extended attributes, sorted by inode.
    copies: Vec<StagedFile>,
}

/// One regular file that was staged.
#[derive(Debug)]
pub(super) struct StagedFile {
    pub(super) inode: u64,
    pub(super) index: u32,
    pub(super) size: u64,
    pub(super) data: [u8; 32],
    /// It has one name in the context.
    pub(super) is_alone: bool,
}

impl Staged {
    /// Takes what the threads have staged.
    pub(super) fn new(
        (files, bytes, linked): (u64, u64, u64),
        staged: Vec<Vec<StagedFile>>,
    ) -> Staged {
        let mut copies = Vec::with_capacity(staged.iter().map(Vec::len).sum());
        copies.extend(staged.into_iter().flatten());
        copies.sort_unstable_by_key(|file| file.inode);
        Staged {
            files,
            bytes,
            linked,
            copies,
        }
    }

    fn find(&self, inode: u64) -> Option<&StagedFile> {
        let found = self.copies.binary_search_by_key(&inode, |file| file.inode);
        Some(&self.copies[found.ok()?])
    }
}

/// Knows what was staged wherever it has been moved to, as long as nobody writes to it.
impl FileMemo for Staged {
    fn recall(&self, stamp: &FileStamp) -> Option<FileContent> {
        let file = self.find(stamp.inode)?;
        (file.size == stamp.size).then_some(FileContent {
            data: file.data,
            xattrs: None,
        })
    }

    fn remember(&self, _stamp: &FileStamp, _content: &FileContent) {}
}
