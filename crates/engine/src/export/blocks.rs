//! Compressed blocks, found again in the blobs that layers were written to.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use oci::Digest;
use rootfs::compress::{BlockKey, BlockMemo, BlockPlace, CompressedBlock};

use crate::EngineError;
use crate::step::Shared;

/// What the store calls what it remembers of blocks.
const SPACE: &str = "compressed block";

/// The blocks of all blobs that the store has written itself and still has.
pub(super) struct StoredBlocks<'a> {
    shared: &'a Shared,
    found: AtomicU64,
    missing: AtomicU64,
}

impl<'a> StoredBlocks<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            found: AtomicU64::new(0),
            missing: AtomicU64::new(0),
        }
    }

    /// Returns how many blocks were found again, and how many had to be compressed.
    pub(super) fn counts(&self) -> (u64, u64) {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (read(&self.found), read(&self.missing))
    }

    fn find(&self, key: &BlockKey) -> Option<CompressedBlock> {
        let store = &self.shared.store;
        let value = store.recall(SPACE, &key.digest).ok()??;
        let (blob, offset, length, checksum) = parse(&value)?;
        let file = store.blobs().open(&blob).ok()?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, offset).ok()?;
        Some(CompressedBlock { bytes, checksum })
    }
}

impl BlockMemo for StoredBlocks<'_> {
    fn lookup(&self, key: &BlockKey) -> Option<CompressedBlock> {
        let found = self.find(key);
        let count = match found {
            Some(_) => &self.found,
            None => &self.missing,
        };
        count.fetch_add(1, Ordering::Relaxed);
        found
    }
}

/// Remembers where the blocks of a blob lie; to be called once the blob is in the store.
pub(super) fn remember(
    shared: &Shared,
    blob: &Digest,
    places: &[BlockPlace],
) -> Result<(), EngineError> {
    let values: Vec<String> = places
        .iter()
        .map(|place| {
            format!(
                "{blob} {} {} {}",
                place.offset, place.length, place.checksum
            )
        })
        .collect();
    let keys = places.iter().map(|place| place.key.digest.as_slice());
    shared
        .store
        .remember(SPACE, keys.zip(values.iter().map(String::as_bytes)))?;
    Ok(())
}

fn parse(value: &[u8]) -> Option<(Digest, u64, usize, u32)> {
    /// No block is larger, compressed or not.
    const MOST: usize = 16 << 20;
    let mut parts = std::str::from_utf8(value).ok()?.split(' ');
    let mut next = || parts.next();
    let blob = next()?.parse().ok()?;
    let offset = next()?.parse().ok()?;
    let length = next()?.parse().ok().filter(|length| *length <= MOST)?;
    Some((blob, offset, length, next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_is_none_is_a_miss() {
        let blob = Digest::sha256_of(b"blob");
        let check =
            |text: String, expect| assert_eq!(parse(text.as_bytes()).is_some(), expect, "{text}");
        check(format!("{blob} 10 20 30"), true);
        check(format!("{blob} 10 20"), false);
        check(format!("{blob} 10 99999999999 30"), false);
        check(format!("{blob} -1 20 30"), false);
        check("blob 10 20 30".to_owned(), false);
        check(String::new(), false);
    }
}
