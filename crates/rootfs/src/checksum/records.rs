//! The records that a checksum is made of.

use std::ffi::CString;

use sha2::{Digest as _, Sha256};

use crate::copy::Owner;
use crate::memo::FileContent;
use crate::meta::{Kind, Meta};

const VERSION: &[u8] = b"lapstrake content 1\n";
/// What comes before the path in a record: its length.
const LENGTH: usize = size_of::<u64>();

/// What counts of one file besides its path.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) owner: Owner,
    pub(crate) rdev: (u32, u32),
    pub(crate) link: Option<CString>,
    pub(crate) opaque: bool,
    pub(crate) content: FileContent,
}

/// The content of what has none.
pub(crate) const NOTHING: FileContent = FileContent {
    data: [0; 32],
    xattrs: None,
};

impl Header {
    /// The header of something without data and xattrs.
    pub(crate) fn new(meta: &Meta, owner: Option<Owner>) -> Header {
        Header {
            // What a copy makes of a socket.
            kind: if meta.kind == Kind::Socket {
                Kind::File
            } else {
                meta.kind
            },
            mode: if meta.kind == Kind::Symlink {
                0o777
            } else {
                meta.mode
            },
            owner: owner.unwrap_or(meta.owner),
            rdev: meta.rdev,
            link: None,
            opaque: false,
            content: NOTHING,
        }
    }

    /// The header of a directory of which only the contents count.
    pub(crate) fn contents_only() -> Header {
        Header {
            kind: Kind::Directory,
            mode: 0,
            owner: Owner { uid: 0, gid: 0 },
            rdev: (0, 0),
            link: None,
            opaque: false,
            content: NOTHING,
        }
    }

    /// Appends the record of a file with this header.
    fn write(&self, path: &[u8], to: &mut Vec<u8>) {
        let kind = match self.kind {
            Kind::File => b'f',
            Kind::Directory => b'd',
            Kind::Symlink => b'l',
            Kind::Character => b'c',
            Kind::Block => b'b',
            Kind::Fifo => b'p',
            Kind::Socket => b's',
        };
        let flags = u8::from(self.opaque) << 1 | u8::from(self.content.xattrs.is_some());
        to.extend_from_slice(&(path.len() as u64).to_le_bytes());
        to.extend_from_slice(path);
        to.extend_from_slice(&[kind, flags]);
        for number in [self.mode, self.owner.uid, self.owner.gid] {
            to.extend_from_slice(&number.to_le_bytes());
        }
        match self.kind {
            Kind::File => to.extend_from_slice(&self.content.data),
            Kind::Symlink => {
                let link = self.link.as_deref().unwrap_or_default().to_bytes();
                to.extend_from_slice(&(link.len() as u64).to_le_bytes());
                to.extend_from_slice(link);
            }
            Kind::Character | Kind::Block => {
                to.extend_from_slice(&self.rdev.0.to_le_bytes());
                to.extend_from_slice(&self.rdev.1.to_le_bytes());
            }
            Kind::Directory | Kind::Fifo | Kind::Socket => {}
        }
        if let Some(xattrs) = &self.content.xattrs {
            to.extend_from_slice(xattrs);
        }
    }
}

/// The running checksum; records must come sorted by path.
pub(crate) struct Sum {
    hash: Sha256,
    record: Vec<u8>,
}

impl Sum {
    pub(crate) fn new() -> Sum {
        Sum {
            hash: Sha256::new_with_prefix(VERSION),
            record: Vec::new(),
        }
    }

    /// Adds a file. In `path` the separator is a zero byte, so that sorting keeps a directory before its contents.
    pub(crate) fn add(&mut self, path: &[u8], header: &Header) {
        self.record.clear();
        header.write(path, &mut self.record);
        self.hash.update(&self.record);
    }

    pub(crate) fn finish(self) -> [u8; 32] {
        self.hash.finalize().into()
    }
}

/// Records that one thread has made. A tree may have hundreds of thousands: they lie one after the other.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    records: Vec<Place>,
}

/// Where a record lies, and what is not part of it.
#[derive(Debug)]
struct Place {
    start: u32,
    end: u32,
    path_length: u32,
    kind: Kind,
    /// Only counts if something below it does.
    only_as_parent: bool,
    /// Of a regular file; 0 for others.
    inode: u64,
}

/// A record to look at.
#[derive(Clone, Copy)]
pub(super) struct Record<'a> {
    place: &'a Place,
    bytes: &'a [u8],
}

impl<'a> Record<'a> {
    pub(super) fn path(&self) -> &'a [u8] {
        &self.bytes[LENGTH..][..self.place.path_length as usize]
    }

    /// Returns the inode of a regular file.
    pub(super) fn inode(&self) -> Option<u64> {
        (self.place.inode != 0).then_some(self.place.inode)
    }
}

impl Batch {
    pub(super) fn with_capacity(files: usize) -> Batch {
        Batch {
            bytes: Vec::with_capacity(files * 96),
            records: Vec::with_capacity(files),
        }
    }

    /// Appends the record of a file; `inode` is 0 for all but regular ones.
    pub(super) fn add(&mut self, path: &[u8], header: &Header, inode: u64, only_as_parent: bool) {
        let start = self.bytes.len() as u32;
        header.write(path, &mut self.bytes);
        self.records.push(Place {
            start,
            end: self.bytes.len() as u32,
            path_length: path.len() as u32,
            kind: header.kind,
            only_as_parent,
            inode,
        });
    }

    fn record(&self, index: u32) -> Record<'_> {
        let place = &self.records[index as usize];
        Record {
            place,
            bytes: &self.bytes[place.start as usize..place.end as usize],
        }
    }
}

/// All records of a selection, in order.
#[derive(Debug)]
pub(super) struct Records {
    batches: Vec<Batch>,
    order: Vec<(u32, u32)>,
}

impl Records {
    /// Sorts what the threads have found, and drops directories that were not taken and have nothing below them that was.
    pub(super) fn new(mut batches: Vec<Batch>) -> Records {
        for batch in &mut batches {
            batch.bytes.shrink_to_fit();
        }
        let mut order = Vec::with_capacity(batches.iter().map(|batch| batch.records.len()).sum());
        for (number, batch) in batches.iter().enumerate() {
            order.extend((0..batch.records.len() as u32).map(|index| (number as u32, index)));
        }
        let path = |(batch, index): &(u32, u32)| batches[*batch as usize].record(*index).path();
        order.sort_unstable_by(|a, b| path(a).cmp(path(b)).then(a.cmp(b)));
        let mut records = Records { batches, order };
        records.keep_parents_of_included();
        records
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Record<'_>> {
        self.order.iter().map(|place| self.record(*place))
    }

    /// Returns the checksum of all.
    pub(super) fn sum(&self) -> [u8; 32] {
        let mut hash = Sha256::new_with_prefix(VERSION);
        self.iter().for_each(|record| hash.update(record.bytes));
        hash.finalize().into()
    }

    fn record(&self, (batch, index): (u32, u32)) -> Record<'_> {
        self.batches[batch as usize].record(index)
    }

    fn keep_parents_of_included(&mut self) {
        if !self.iter().any(|record| record.place.only_as_parent) {
            return;
        }
        let only_as_parent = self.iter().map(|record| record.place.only_as_parent);
        let mut keep: Vec<bool> = only_as_parent.map(|only| !only).collect();
        let mut above: Vec<(usize, &[u8])> = Vec::new();
        for (index, record) in self.iter().enumerate() {
            while above
                .last()
                .is_some_and(|(_, dir)| !is_below(record.path(), dir))
            {
                above.pop();
            }
            if keep[index] {
                above.iter().for_each(|(parent, _)| keep[*parent] = true);
            }
            if record.place.kind == Kind::Directory {
                above.push((index, record.path()));
            }
        }
        let mut keep = keep.into_iter();
        self.order.retain(|_| keep.next().unwrap_or(false));
    }
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir)
        .is_some_and(|rest| rest.first() == Some(&0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_each_file_is_small() {
        assert!(size_of::<Place>() <= 24);
    }
}
