//! Compression of layers: whose bytes depend on the content and the options, never on the number of threads.

pub(crate) mod decode;
pub(crate) mod queue;

pub use decode::format;

/// The form in which the bytes of a layer lie in a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    Uncompressed,
    Gzip,
    Zstd,
}

/// How to compress a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    Uncompressed,
    /// Level 0 to 9.
    Gzip {
        level: u32,
    },
    /// Level 1 to 22.
    Zstd {
        level: i32,
    },
}

impl Compression {
    pub const GZIP: Compression = Compression::Gzip { level: 6 };
    pub const ZSTD: Compression = Compression::Zstd { level: 3 };

    pub const fn format(self) -> Format {
        match self {
            Compression::Uncompressed => Format::Uncompressed,
            Compression::Gzip { .. } => Format::Gzip,
            Compression::Zstd { .. } => Format::Zstd,
        }
    }
}

/// Remembers compressed blocks by what they were made from.
///
/// What is remembered must only ever be what was stored under the very key: it goes into a blob as it is. A lookup may
/// miss at any time. Both are called from several threads.
pub trait BlockMemo: Sync {
    /// Returns what was stored under `key`.
    fn lookup(&self, key: &BlockKey) -> Option<Vec<u8>>;

    /// Stores `compressed` under `key`; failing to is no error.
    fn store(&self, key: &BlockKey, compressed: &[u8]);
}

/// What a compressed block was made from, and by what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey {
    /// The SHA-256 of the compressor's name, its level and the raw block.
    pub digest: [u8; 32],
}
