//! The way of blocks from where they are made to the blob: hashed, compressed and written, each on its own threads.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use oci::{Digest, Digester};

use super::block::Block;
use super::decode::joined;
use super::gzip::{self, Deflated, Deflater};
use super::queue::{Receiver, Sender, bounded};
use super::{BlockPlace, CompressOptions, Compression};
use crate::{Error, Result};

/// Bytes that a thread of zstd compresses at a time. It is part of what the bytes depend on.
const ZSTD_JOB: u32 = 4 << 20;
/// The most threads of zstd: each holds several jobs in memory.
const ZSTD_THREADS: usize = 4;

/// What went through.
#[derive(Debug)]
pub(crate) struct Piped {
    pub(crate) diff_id: Digest,
    pub(crate) size: u64,
    pub(crate) blob: Digest,
    pub(crate) blob_size: u64,
    /// Where blocks lie in the blob, where they are remembered.
    pub(crate) blocks: Vec<BlockPlace>,
}

/// Takes a full block and returns an empty one, or `None` when no more are wanted.
pub(crate) type Output<'a> = &'a mut dyn FnMut(Block) -> Option<Block>;

/// Runs `produce` on one thread, `observe` and the hash of the blocks on another, the compressor on those it was given,
/// and writes here.
pub(crate) fn run<T: Send>(
    produce: impl FnOnce(Output<'_>) -> Result<T> + Send,
    observe: impl FnMut(&Block) + Send,
    options: &CompressOptions<'_>,
    writer: &mut dyn Write,
) -> Result<(T, Piped)> {
    let threads = options.threads.get();
    let compression = options.compression.clamped();
    // Enough that no thread waits for a slow block elsewhere, few enough that memory stays small.
    let ahead = (threads + 2).min(16);
    let pool = &Pool::default();
    std::thread::scope(|scope| {
        let (to_hash, hashed) = bounded::<Arc<Block>>(ahead);
        let (to_write, written) = bounded::<Pending>(ahead);
        let (to_deflate, deflated) = bounded::<(Arc<Block>, Sender<Deflated>)>(ahead);
        let hashing = scope.spawn(move || hash(&hashed, pool, observe));
        if let Compression::Gzip { level } = compression {
            for _ in 0..threads {
                let (blocks, memo) = (deflated.clone(), options.memo);
                scope.spawn(move || deflate(&blocks, pool, Deflater::new(level, memo)));
            }
        }
        drop(deflated);
        let is_gzip = matches!(compression, Compression::Gzip { .. });
        let producing = scope.spawn(move || {
            let mut output = |block: Block| {
                let block = Arc::new(block);
                to_hash.send(block.clone()).ok()?;
                if is_gzip {
                    let (result, pending) = bounded(1);
                    to_deflate.send((block, result)).ok()?;
                    to_write.send(Pending::Deflated(pending)).ok()?;
                } else {
                    to_write.send(Pending::Raw(block)).ok()?;
                }
                Some(pool.take())
            };
            produce(&mut output)
        });
        let mut blob = Blob {
            writer,
            digester: None,
            size: 0,
            blocks: Vec::new(),
        };
        let outcome = write(&written, pool, options, &mut blob);
        drop(written);
        let produced = joined(producing);
        let content = joined(hashing);
        let produced = produced?;
        outcome?;
        let size = content.length();
        let diff_id = content.finish();
        let digest = match blob.digester {
            Some(digester) => digester.finish(),
            None => diff_id.clone(),
        };
        let piped = Piped {
            diff_id,
            size,
            blob: digest,
            blob_size: blob.size,
            blocks: blob.blocks,
        };
        Ok((produced, piped))
    })
}

enum Pending {
    Raw(Arc<Block>),
    Deflated(Receiver<Deflated>),
}

fn hash(blocks: &Receiver<Arc<Block>>, pool: &Pool, mut observe: impl FnMut(&Block)) -> Digester {
    let mut digester = Digester::default();
    while let Some(block) = blocks.receive() {
        digester.update(&block.bytes);
        observe(&block);
        pool.give(block);
    }
    digester
}

fn deflate(
    blocks: &Receiver<(Arc<Block>, Sender<Deflated>)>,
    pool: &Pool,
    mut deflater: Deflater<'_>,
) {
    while let Some((block, result)) = blocks.receive() {
        let deflated = deflater.block(&block.bytes);
        pool.give(block);
        // Nobody waits for it when writing has failed.
        let _ = result.send(deflated);
    }
}

fn write(
    blocks: &Receiver<Pending>,
    pool: &Pool,
    options: &CompressOptions<'_>,
    blob: &mut Blob<'_>,
) -> Result<()> {
    let failed = |source| Error::WriteLayer { source };
    match options.compression.clamped() {
        Compression::Uncompressed => {
            while let Some(Pending::Raw(block)) = blocks.receive() {
                blob.write_all(&block.bytes).map_err(failed)?;
                pool.give(block);
            }
        }
        Compression::Gzip { .. } => {
            blob.digester = Some(Digester::default());
            while let Some(Pending::Deflated(pending)) = blocks.receive() {
                // A deflating thread that panicked takes this one along when the scope ends.
                let Some(deflated) = pending.receive() else {
                    break;
                };
                if let Some(key) = deflated.key {
                    blob.blocks.push(BlockPlace {
                        key,
                        offset: blob.size,
                        length: deflated.bytes.len() as u64,
                        checksum: crc32fast::hash(&deflated.bytes),
                    });
                }
                blob.write_all(&deflated.bytes).map_err(failed)?;
            }
            if blob.size == 0 {
                blob.write_all(&gzip::EMPTY).map_err(failed)?;
            }
        }
        Compression::Zstd { level } => {
            blob.digester = Some(Digester::default());
            let broken = |source| Error::Compress { source };
            let mut encoder =
                zstd::stream::write::Encoder::new(&mut *blob, level).map_err(broken)?;
            encoder.include_checksum(true).map_err(broken)?;
            // Never none: without worker threads the bytes are others. How many there are does not matter to them.
            let threads = options.threads.get().min(ZSTD_THREADS) as u32;
            encoder.multithread(threads).map_err(broken)?;
            encoder
                .set_parameter(zstd::zstd_safe::CParameter::JobSize(ZSTD_JOB))
                .map_err(broken)?;
            while let Some(Pending::Raw(block)) = blocks.receive() {
                encoder.write_all(&block.bytes).map_err(failed)?;
                pool.give(block);
            }
            encoder.finish().map_err(failed)?;
        }
    }
    blob.writer.flush().map_err(failed)
}

/// Where the bytes go in the end.
struct Blob<'a> {
    writer: &'a mut dyn Write,
    /// None where the blob is the tar, whose digest is computed anyway.
    digester: Option<Digester>,
    size: u64,
    blocks: Vec<BlockPlace>,
}

impl Write for Blob<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let length = self.writer.write(bytes)?;
        if let Some(digester) = &mut self.digester {
            digester.update(&bytes[..length]);
        }
        self.size += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.writer.flush()
    }
}

/// Blocks to be filled again.
#[derive(Default)]
struct Pool {
    free: Mutex<Vec<Block>>,
}

impl Pool {
    fn take(&self) -> Block {
        self.free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
            .unwrap_or_default()
    }

    /// Takes a block back from the last who holds it.
    fn give(&self, block: Arc<Block>) {
        if let Some(mut block) = Arc::into_inner(block) {
            block.bytes.clear();
            block.notes.clear();
            self.free
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(block);
        }
    }
}
