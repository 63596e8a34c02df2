//! The tar format: a reader of everything that is met in layers, a writer of the one canonical form.

pub(crate) mod header;
pub(crate) mod pax;
pub(crate) mod read;
pub(crate) mod sparse;
pub(crate) mod write;

/// Tar is made of blocks of this size.
pub(crate) const BLOCK: usize = 512;

/// Returns how many bytes fill `size` up to a whole block.
pub(crate) const fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

pub(crate) use crate::copy::Timestamp as Time;

/// The time of what nobody gives a time.
pub(crate) const EPOCH: Time = Time {
    seconds: 0,
    nanoseconds: 0,
};

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

impl Kind {
    pub(crate) const fn flag(self) -> u8 {
        match self {
            Kind::File => b'0',
            Kind::HardLink => b'1',
            Kind::Symlink => b'2',
            Kind::CharDevice => b'3',
            Kind::BlockDevice => b'4',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        }
    }
}

/// One xattr of an entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Xattr {
    pub(crate) name: Vec<u8>,
    pub(crate) value: Vec<u8>,
}
