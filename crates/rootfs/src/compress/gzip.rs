//! A gzip member made of blocks that know nothing of each other, so that they can be made at the same time and again.

use crc32fast::Hasher;
use flate2::{Compress, Compression, FlushCompress, Status};
use sha2::{Digest as _, Sha256};

use super::{BlockKey, BlockMemo, CompressedBlock};

/// What stands for the compressor in a block's key: another one makes other bytes of the same block.
pub(super) const COMPRESSOR: &str = "zlib-rs 0.6.8, raw deflate, sync flush, level ";

/// Deflate, no name, no time, no hint about the level, made on an unknown system.
pub(super) const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
/// An empty last block.
const LAST: [u8; 2] = [3, 0];

/// One block, compressed.
pub(super) struct Deflated {
    pub(super) bytes: Vec<u8>,
    /// The checksum and size of what it was.
    pub(super) checksum: Hasher,
    pub(super) raw_size: u64,
    /// What it is known by, where blocks are remembered.
    pub(super) key: Option<BlockKey>,
}

/// Compresses blocks, one by one.
pub(super) struct Deflater<'a> {
    level: u32,
    compress: Compress,
    output: Vec<u8>,
    memo: Option<&'a dyn BlockMemo>,
}

impl<'a> Deflater<'a> {
    pub(super) fn new(level: u32, memo: Option<&'a dyn BlockMemo>) -> Deflater<'a> {
        Deflater {
            level,
            compress: Compress::new(Compression::new(level), false),
            output: Vec::new(),
            memo,
        }
    }

    pub(super) fn block(&mut self, raw: &[u8]) -> Deflated {
        let mut checksum = Hasher::new();
        checksum.update(raw);
        let raw_size = raw.len() as u64;
        let key = self.memo.map(|_| key(self.level, raw));
        let remembered = self.memo.zip(key).and_then(|(memo, key)| memo.lookup(&key));
        let bytes = match remembered.and_then(whole) {
            Some(bytes) => bytes,
            None => self.deflate(raw).to_vec(),
        };
        Deflated {
            bytes,
            checksum,
            raw_size,
            key,
        }
    }

    fn deflate(&mut self, raw: &[u8]) -> &[u8] {
        self.compress.reset();
        self.output.clear();
        // All goes out in one call, so that nothing depends on how much room there was.
        self.output
            .reserve(raw.len() + raw.len() / 100 + (16 << 10));
        let status = self
            .compress
            .compress_vec(raw, &mut self.output, FlushCompress::Sync);
        let is_whole = self.compress.total_in() == raw.len() as u64
            && self.output.len() < self.output.capacity();
        assert!(
            matches!(status, Ok(Status::Ok)) && is_whole,
            "deflate has room for its output"
        );
        &self.output
    }
}

/// What follows the blocks: an empty one, the checksum and the size.
pub(super) fn trailer(checksum: Hasher, size: u64) -> Vec<u8> {
    let size = (size as u32).to_le_bytes();
    [&LAST[..], &checksum.finalize().to_le_bytes(), &size].concat()
}

fn key(level: u32, raw: &[u8]) -> BlockKey {
    let mut hash = Sha256::new();
    hash.update(COMPRESSOR);
    hash.update([level as u8]);
    hash.update(raw);
    BlockKey {
        digest: hash.finalize().into(),
    }
}

/// Returns a remembered block; `None` when it is not what was written once.
fn whole(block: CompressedBlock) -> Option<Vec<u8>> {
    (crc32fast::hash(&block.bytes) == block.checksum && !block.bytes.is_empty())
        .then_some(block.bytes)
}
