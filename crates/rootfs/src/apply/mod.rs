//! Unpacks a layer tar into a layer directory, each layer by itself and without regard to those below.
//!
//! What the tar takes for granted of the layers below is noted while it is unpacked, and mended afterwards.

mod dirs;
mod mend;
mod options;
mod unpack;

use std::io::Read;

pub use mend::mend;
pub use options::{Applied, ApplyOptions, Devices, LeftOut, Limits, Ownership};

use crate::compress::decode::{self, Bounds};
use crate::layer::LayerDir;
use crate::tar::read::Reader;
use crate::{Error, Result};

/// Unpacks the layer blob that `reader` gives into the empty directory `dest`.
///
/// Reading and inflating, hashing and unpacking each have a thread; memory is bounded whatever the layer is. The blob is
/// read to its end. On failure `dest` holds part of the layer and is to be thrown away. Nothing is synced.
///
/// In [`Form::Plain`](crate::Form::Plain) `dest` may hold files already; then symlinks in it are followed with `dest` as
/// root.
pub fn apply_layer(
    reader: impl Read + Send,
    dest: &LayerDir,
    options: &ApplyOptions,
) -> Result<Applied> {
    let bounds = Bounds {
        bytes: options.limits.bytes,
        zstd_window_log: options.limits.zstd_window_log,
    };
    std::thread::scope(|scope| {
        let mut tar = Reader::new(decode::start(scope, reader, bounds));
        let unpacked = unpack::Unpacker::new(dest, options).run(&mut tar)?;
        let summary = tar.into_inner().finish()?;
        if let Some(expected) = &options.diff_id
            && *expected != summary.diff_id
        {
            return Err(Error::DiffId {
                expected: expected.clone(),
                actual: summary.diff_id,
            });
        }
        Ok(Applied {
            diff_id: summary.diff_id,
            size: summary.size,
            blob: summary.blob,
            blob_size: summary.blob_size,
            format: summary.format,
            entries: unpacked.entries,
            content_size: unpacked.content_size,
            root: unpacked.root,
            implicit: unpacked.implicit,
            left_out: unpacked.left_out,
        })
    })
}
