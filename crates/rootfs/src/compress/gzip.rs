//! Gzip members that know nothing of each other, one for each block, so that they can be made at the same time and again.
//!
//! A gzip file is a series of members (RFC 1952, section 2.2), and what reads layers reads them all.

use libdeflater::{CompressionLvl, Compressor};
use sha2::{Digest as _, Sha256};

use super::{BlockKey, BlockMemo, CompressedBlock};

/// What stands for the compressor in a block's key: another one makes other bytes of the same block.
pub(super) const COMPRESSOR: &str = "libdeflate 1.26, a gzip member a block, level ";

/// The member of nothing: where there is no block, there still is a gzip file.
pub(super) const EMPTY: [u8; 20] = [
    0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// The levels of libdeflate that make of real files about what zlib's levels 0 to 9 make of them, in half the time.
const LEVELS: [i32; 10] = [0, 1, 1, 2, 3, 3, 4, 5, 7, 9];

/// One block, compressed.
pub(super) struct Deflated {
    pub(super) bytes: Vec<u8>,
    /// What it is known by, where blocks are remembered.
    pub(super) key: Option<BlockKey>,
}

/// Compresses blocks, one by one.
pub(super) struct Deflater<'a> {
    level: u32,
    compressor: Compressor,
    output: Vec<u8>,
    memo: Option<&'a dyn BlockMemo>,
}

impl<'a> Deflater<'a> {
    /// Returns what compresses at one of zlib's levels.
    pub(super) fn new(level: u32, memo: Option<&'a dyn BlockMemo>) -> Deflater<'a> {
        let own = LEVELS[(level as usize).min(LEVELS.len() - 1)];
        let own = CompressionLvl::new(own).expect("the levels of the table are libdeflate's");
        Deflater {
            level,
            compressor: Compressor::new(own),
            output: Vec::new(),
            memo,
        }
    }

    pub(super) fn block(&mut self, raw: &[u8]) -> Deflated {
        let key = self.memo.map(|_| key(self.level, raw));
        let remembered = self.memo.zip(key).and_then(|(memo, key)| memo.lookup(&key));
        let bytes = match remembered.and_then(whole) {
            Some(bytes) => bytes,
            None => self.deflate(raw).to_vec(),
        };
        Deflated { bytes, key }
    }

    fn deflate(&mut self, raw: &[u8]) -> &[u8] {
        let bound = self.compressor.gzip_compress_bound(raw.len());
        if self.output.len() < bound {
            self.output.resize(bound, 0);
        }
        let length = self
            .compressor
            .gzip_compress(raw, &mut self.output)
            .expect("the bound leaves room for the output");
        &self.output[..length]
    }
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
