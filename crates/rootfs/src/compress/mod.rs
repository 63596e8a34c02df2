//! Compression of layers: bytes depend on the content and the options, never on the number of threads.

pub(crate) mod block;
pub(crate) mod decode;
mod gzip;
pub(crate) mod pipe;
pub(crate) mod queue;

use std::fmt;
use std::io::{Read, Write};
use std::num::NonZeroUsize;

use oci::Digest;

pub use decode::format;

use crate::Result;
use block::Block;
use decode::Bounds;

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

/// Stands for the zstd that compresses, and for how its frames are cut into jobs.
const ZSTD_COMPRESSOR: &str = "zstd 1.5.7, jobs of 4 MiB";

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

    /// Returns this compression with its level brought into the range there is.
    /// Returns what stands for the code that compresses: with another one the same content has other bytes.
    ///
    /// To be kept with whatever is remembered of compressed bytes.
    pub fn compressor(self) -> &'static str {
        match self {
            Compression::Uncompressed => "",
            Compression::Gzip { .. } => gzip::COMPRESSOR,
            Compression::Zstd { .. } => ZSTD_COMPRESSOR,
        }
    }

    fn clamped(self) -> Compression {
        match self {
            Compression::Uncompressed => self,
            Compression::Gzip { level } => Compression::Gzip {
                level: level.min(9),
            },
            Compression::Zstd { level } => Compression::Zstd {
                level: level.clamp(1, 22),
            },
        }
    }
}

/// How to compress, and with what.
#[derive(Clone, Copy)]
pub struct CompressOptions<'a> {
    pub compression: Compression,
    /// Threads that compress; the others only carry.
    pub threads: NonZeroUsize,
    /// Blocks compressed before; for gzip only. Without it no keys are computed and no places are told.
    pub memo: Option<&'a dyn BlockMemo>,
}

impl CompressOptions<'_> {
    /// Returns options that use all cores and remember nothing.
    pub fn new(compression: Compression) -> CompressOptions<'static> {
        CompressOptions {
            compression,
            threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            memo: None,
        }
    }
}

impl fmt::Debug for CompressOptions<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("CompressOptions")
            .field("compression", &self.compression)
            .field("threads", &self.threads)
            .field("memo", &self.memo.is_some())
            .finish()
    }
}

/// Finds blocks that were compressed before, in the blobs they went into.
///
/// Called from several threads. What comes back goes into the new blob as it is after a look at its checksum, so it must
/// come from a place as private as the blobs are.
pub trait BlockMemo: Sync {
    /// Returns the compressed block that was once made under `key`; it may be gone at any time.
    fn lookup(&self, key: &BlockKey) -> Option<CompressedBlock>;
}

/// A compressed block, as it stands in a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompressedBlock {
    pub bytes: Vec<u8>,
    /// The checksum that [`BlockPlace`] gave for it.
    pub checksum: u32,
}

/// What a compressed block was made from, and by what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey {
    /// The SHA-256 of the compressor's name and version, its level and the raw block.
    pub digest: [u8; 32],
}

/// Where a block lies in the blob that was written.
///
/// To be remembered beside the blob, for a [`BlockMemo`] to find it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockPlace {
    pub key: BlockKey,
    pub offset: u64,
    pub length: u64,
    /// The CRC-32 of the compressed bytes.
    pub checksum: u32,
}

/// A blob made from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recompressed {
    /// The digest and size of the uncompressed content.
    pub diff_id: Digest,
    pub size: u64,
    /// The digest and size of the bytes that went out.
    pub blob: Digest,
    pub blob_size: u64,
}

/// Reads a layer blob of any format and writes its content with another compression.
///
/// The content is passed through unread and may be no tar. More than `limit` uncompressed bytes are refused.
pub fn recompress(
    reader: impl Read + Send,
    limit: u64,
    options: &CompressOptions<'_>,
    mut writer: impl Write,
) -> Result<Recompressed> {
    const BLOCK: usize = 1 << 20;
    let bounds = Bounds {
        bytes: limit,
        zstd_window_log: 27,
    };
    let produce = |output: pipe::Output<'_>| {
        std::thread::scope(|scope| {
            let mut content = decode::start(scope, reader, bounds);
            let mut block = Block::default();
            loop {
                let end = content
                    .by_ref()
                    .take(BLOCK as u64)
                    .read_to_end(&mut block.bytes)
                    .map_err(crate::tar::read::read_error)?;
                if end == 0 {
                    return content.finish().map(drop);
                }
                match output(block) {
                    Some(empty) => block = empty,
                    None => return Ok(()),
                }
            }
        })
    };
    let ((), piped) = pipe::run(produce, |_| {}, options, &mut writer)?;
    Ok(Recompressed {
        diff_id: piped.diff_id,
        size: piped.size,
        blob: piped.blob,
        blob_size: piped.blob_size,
    })
}
