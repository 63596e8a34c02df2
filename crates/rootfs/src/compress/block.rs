//! The blocks a tar is cut into for compression.
//!
//! Where a block ends follows from the paths and sizes of the files in it, and not from what came long before: after a
//! change the cuts find each other again, and the blocks behind it are those from before the change.

/// The least size at which the hash of a path may end a block.
const LEAST: usize = 512 << 10;
/// The size at which a block ends before the next file in any case.
const MOST: usize = 2 << 20;
/// Files from this size on have blocks of their own, each of this size.
const LARGE: u64 = 1 << 20;
/// A block smaller than this is not ended for the sake of a large file.
const SMALL: usize = 128 << 10;
/// One path in so many ends a block.
const ONE_IN: u64 = 16;

/// What is to be hashed beside the tar itself, for the content id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Note {
    /// An entry begins, which the listing describes.
    Entry(Vec<u8>),
    /// These bytes of the block are content of the entry.
    Content { start: usize, end: usize },
    /// The content of the entry is complete.
    End,
}

/// A stretch of a tar.
#[derive(Debug, Default)]
pub(crate) struct Block {
    pub(crate) bytes: Vec<u8>,
    pub(crate) notes: Vec<Note>,
}

/// Whether the block that is `length` long ends before an entry of `path`, whose headers and content are `size` long.
pub(crate) fn ends_before(length: usize, path: &[u8], size: u64) -> bool {
    if length == 0 {
        return false;
    }
    if size >= LARGE {
        return length >= SMALL;
    }
    length as u64 + size > MOST as u64 || (length >= LEAST && hash(path).is_multiple_of(ONE_IN))
}

/// Returns after how many bytes of a file of `size` the block ends next, when `written` of them are written.
pub(crate) fn ends_within(size: u64, written: u64) -> Option<u64> {
    (size >= LARGE).then(|| LARGE - written % LARGE)
}

/// FNV-1a, and a last step that brings the high bits down.
fn hash(path: &[u8]) -> u64 {
    let hash = path.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}
