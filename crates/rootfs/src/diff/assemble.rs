//! Turns the entries of a walk into the blocks of a tar.

use std::os::fd::AsFd;

use sha2::{Digest as _, Sha256};

use super::options::{DiffOptions, TimePrecision};
use super::walk::{Content, Item, What};
use crate::compress::block::{self, Block, Note};
use crate::layer::OPAQUE_NAME;
use crate::meta::{Kind as FileKind, Meta, Xattr};
use crate::tar::write::Header;
use crate::tar::{BLOCK, Kind, Time, padding};
use crate::{Error, Result};

/// Takes items in, and hands blocks on to `output`, which returns false when it wants no more.
pub(super) struct Assembler<'a, F> {
    options: &'a DiffOptions,
    block: Block,
    headers: Vec<u8>,
    output: F,
    pub(super) entries: u64,
    pub(super) content_size: u64,
}

impl<'a, F: FnMut(Block) -> Option<Block>> Assembler<'a, F> {
    /// `output` takes a full block and returns an empty one; `None` when it wants no more.
    pub(super) fn new(options: &'a DiffOptions, output: F) -> Assembler<'a, F> {
        Assembler {
            options,
            block: Block::default(),
            headers: Vec::new(),
            output,
            entries: 0,
            content_size: 0,
        }
    }

    /// Appends an item; returns false when no more are wanted.
    pub(super) fn item(&mut self, item: Item) -> Result<bool> {
        self.entries += 1;
        let mut headers = std::mem::take(&mut self.headers);
        headers.clear();
        let content = self.describe(&item, &mut headers);
        let size = content.as_ref().map_or(0, |(_, size)| *size);
        let mut is_wanted = true;
        if block::ends_before(
            self.block.bytes.len(),
            &item.path,
            headers.len() as u64 + size,
        ) {
            is_wanted = self.hand_on();
        }
        if self.options.content_id {
            self.block.notes.push(Note::Entry(listing(&item)));
        }
        self.block.bytes.extend_from_slice(&headers);
        self.headers = headers;
        if let Some((file, size)) = content {
            is_wanted = is_wanted && self.content(&item.path, file, size)?;
        }
        if self.options.content_id {
            self.block.notes.push(Note::End);
        }
        Ok(is_wanted)
    }

    /// Ends the archive and hands the last block on.
    pub(super) fn finish(mut self) -> (u64, u64) {
        self.fill(2 * BLOCK);
        self.hand_on();
        (self.entries, self.content_size)
    }

    /// Appends the headers of an item; returns its content, if it has any of its own.
    fn describe<'i>(
        &self,
        item: &'i Item,
        headers: &mut Vec<u8>,
    ) -> Option<(&'i std::os::fd::OwnedFd, u64)> {
        let What::Node {
            meta,
            xattrs,
            content,
        } = &item.what
        else {
            Header::mark(&item.path).append(headers, std::iter::empty());
            return None;
        };
        let kind = match (content, meta.kind) {
            (Content::HardLink(_), _) => Kind::HardLink,
            (_, FileKind::Directory) => Kind::Directory,
            (_, FileKind::Symlink) => Kind::Symlink,
            (_, FileKind::Character) => Kind::CharDevice,
            (_, FileKind::Block) => Kind::BlockDevice,
            (_, FileKind::Fifo) => Kind::Fifo,
            (_, FileKind::File | FileKind::Socket) => Kind::File,
        };
        let path = match (kind, item.path.as_slice()) {
            (Kind::Directory, b"") => b"./".to_vec(),
            (Kind::Directory, path) => [path, b"/"].concat(),
            (_, path) => path.to_vec(),
        };
        let link = match content {
            Content::Symlink(target) | Content::HardLink(target) => target.as_slice(),
            Content::None | Content::File(_) => b"",
        };
        let file = match content {
            Content::File(file) => Some((file, meta.size)),
            _ => None,
        };
        let header = Header {
            path: &path,
            link,
            kind,
            mode: meta.mode,
            uid: meta.owner.uid,
            gid: meta.owner.gid,
            size: file.map_or(0, |(_, size)| size),
            mtime: self.time(meta),
            device: if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
                meta.rdev
            } else {
                (0, 0)
            },
        };
        header.append(
            headers,
            xattrs
                .iter()
                .map(|xattr| (xattr.name.to_bytes(), &xattr.value[..])),
        );
        file
    }

    fn time(&self, meta: &Meta) -> Time {
        let mut time = meta.modified;
        if let Some(clamp) = self.options.clamp {
            time = time.min(Time {
                seconds: clamp,
                nanoseconds: 0,
            });
        }
        if self.options.precision == TimePrecision::Seconds {
            time.nanoseconds = 0;
        }
        time
    }

    fn content(&mut self, path: &[u8], file: &impl AsFd, size: u64) -> Result<bool> {
        let mut written = 0;
        while written < size {
            let left = size - written;
            let most = block::ends_within(size, written).map_or(left, |end| end.min(left));
            let ends_block = most < left;
            let start = self.block.bytes.len();
            self.read(path, file, most as usize)?;
            written += most;
            if self.options.content_id {
                let end = self.block.bytes.len();
                self.block.notes.push(Note::Content { start, end });
            }
            if ends_block && !self.hand_on() {
                return Ok(false);
            }
        }
        self.content_size += size;
        self.fill(padding(size) as usize);
        Ok(true)
    }

    /// Reads just `length` bytes into the block.
    fn read(&mut self, path: &[u8], file: &impl AsFd, length: usize) -> Result<()> {
        let bytes = &mut self.block.bytes;
        let mut start = bytes.len();
        bytes.resize(start + length, 0);
        while start < bytes.len() {
            let count = rustix::io::retry_on_intr(|| rustix::io::read(file, &mut bytes[start..]))
                .map_err(|source| Error::io("read", path, source))?;
            if count == 0 {
                return Err(Error::Changed {
                    path: String::from_utf8_lossy(path).into_owned(),
                });
            }
            start += count;
        }
        Ok(())
    }

    fn fill(&mut self, length: usize) {
        self.block.bytes.resize(self.block.bytes.len() + length, 0);
    }

    fn hand_on(&mut self) -> bool {
        match (self.output)(std::mem::take(&mut self.block)) {
            Some(block) => {
                self.block = block;
                true
            }
            None => false,
        }
    }
}

/// Describes an entry by all that makes it what it is, times left out; every part is framed by its length.
fn listing(item: &Item) -> Vec<u8> {
    let mut listing = Vec::new();
    let mut part = |bytes: &[u8]| {
        listing.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        listing.extend_from_slice(bytes);
    };
    part(&item.path);
    match &item.what {
        What::Mark if item.path.ends_with(OPAQUE_NAME) => part(b"opaque"),
        What::Mark => part(b"whiteout"),
        What::Node {
            meta,
            xattrs,
            content,
        } => {
            match content {
                Content::HardLink(target) => {
                    part(b"hard link");
                    part(target);
                    return listing;
                }
                Content::Symlink(target) => {
                    part(b"symlink");
                    part(target);
                }
                Content::File(_) => part(b"file"),
                Content::None => part(match meta.kind {
                    FileKind::Directory => b"directory",
                    FileKind::Character => b"character device",
                    FileKind::Block => b"block device",
                    _ => b"fifo",
                }),
            }
            for number in [
                meta.mode,
                meta.owner.uid,
                meta.owner.gid,
                meta.rdev.0,
                meta.rdev.1,
            ] {
                part(&number.to_le_bytes());
            }
            for Xattr { name, value } in xattrs {
                part(name.to_bytes());
                part(value);
            }
        }
    }
    listing
}

/// Hashes listings and contents, as the notes of the blocks give them.
#[derive(Debug, Default)]
pub(super) struct ContentHash {
    listings: Sha256,
    content: Sha256,
}

impl ContentHash {
    pub(super) fn update(&mut self, block: &Block) {
        for note in &block.notes {
            match note {
                Note::Entry(listing) => {
                    self.listings.update((listing.len() as u64).to_le_bytes());
                    self.listings.update(listing);
                }
                Note::Content { start, end } => self.content.update(&block.bytes[*start..*end]),
                Note::End => self.listings.update(self.content.finalize_reset()),
            }
        }
    }

    pub(super) fn finish(self) -> oci::Digest {
        oci::Digest::from_sha256(self.listings.finalize().into())
    }
}
