//! Writes a layer directory as a canonical layer tar.
//!
//! Entries come depth first, those of a directory in the order of the bytes of their names, whiteouts before all others.
//! Copies that overlay made of files that were not changed then are left out.

mod assemble;
mod options;
mod walk;

use std::io::Write;

pub(crate) use walk::is_same_content;

pub use options::{DiffOptions, Diffed, TimePrecision, Written};

use crate::Result;
use crate::compress::{CompressOptions, Compression, pipe, queue};
use crate::layer::LayerDir;
use crate::tree::Tree;
use assemble::{Assembler, ContentHash};
use walk::Walk;

/// Entries that go from the walk to the reading of files at a time.
const BATCH: usize = 32;
/// Batches that the walk may be ahead; each of their entries may hold a file open.
const AHEAD: usize = 3;

/// Writes `layer` as a blob.
///
/// `lowers` is the merged view of the layers below, empty for the first layer; what it shows already is left out, and so
/// is a whiteout of nothing. Without it everything in `layer` counts. The walk, the reading of files, the hash of the tar
/// and each thread of the compressor run side by side; memory is bounded whatever the layer is.
pub fn write_layer(
    layer: &LayerDir,
    lowers: Option<&Tree>,
    options: &DiffOptions,
    compress: &CompressOptions<'_>,
    mut writer: impl Write,
) -> Result<Written> {
    let mut content_hash = ContentHash::default();
    let produce = |output: pipe::Output<'_>| produce(layer, lowers, options, output);
    let observe = |block: &_| content_hash.update(block);
    let ((entries, content_size), piped) = pipe::run(produce, observe, compress, &mut writer)?;
    Ok(Written {
        layer: Diffed {
            diff_id: piped.diff_id,
            size: piped.size,
            entries,
            content_size,
            content_id: options.content_id.then(|| content_hash.finish()),
        },
        blob: piped.blob,
        blob_size: piped.blob_size,
        blocks: piped.blocks,
    })
}

/// Computes what the tar of `layer` would be, without writing it anywhere.
pub fn diff_layer(
    layer: &LayerDir,
    lowers: Option<&Tree>,
    options: &DiffOptions,
) -> Result<Diffed> {
    let compress = CompressOptions::new(Compression::Uncompressed);
    write_layer(layer, lowers, options, &compress, std::io::sink()).map(|written| written.layer)
}

fn produce(
    layer: &LayerDir,
    lowers: Option<&Tree>,
    options: &DiffOptions,
    output: pipe::Output<'_>,
) -> Result<(u64, u64)> {
    std::thread::scope(|scope| {
        let (to_read, found) = queue::bounded(AHEAD);
        let walking = scope.spawn(move || {
            let mut batch = Vec::with_capacity(BATCH);
            let walk = Walk::new(options.form, |item| {
                batch.push(item);
                batch.len() < BATCH
                    || to_read
                        .send(std::mem::replace(&mut batch, Vec::with_capacity(BATCH)))
                        .is_ok()
            });
            walk.run(layer, lowers)?;
            // Nobody may want it any more, if something failed there.
            let _ = to_read.send(batch);
            Ok(())
        });
        let mut assembler = Assembler::new(options, output);
        'items: while let Some(batch) = found.receive() {
            for item in batch {
                if !assembler.item(item)? {
                    break 'items;
                }
            }
        }
        // The walk may still be waiting for room.
        drop(found);
        crate::compress::decode::joined(walking)?;
        Ok(assembler.finish())
    })
}
