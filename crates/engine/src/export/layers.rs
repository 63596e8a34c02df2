//! Layers as tars, measured and encoded.

use std::sync::Mutex;

use oci::media_type::{self, Kind, Naming};
use oci::{Descriptor, Digest};
use rootfs::compress::{CompressOptions, Compression};
use rootfs::diff::{DiffOptions, Diffed};
use rootfs::{Form, LayerDir};
use store::{Encoding, Layer};

use super::Course;
use super::ahead::Stoppable;
use super::blocks::{self, StoredBlocks};
use super::image::layer_type;
use crate::build::Built;
use crate::request::{self, BuildRequest, LayerOptions};
use crate::step::Shared;
use crate::{Cancel, EngineError};

/// The tar of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerTar {
    pub(crate) diff_id: Digest,
    pub(crate) size: u64,
}

/// The tar of a layer in a blob.
#[derive(Debug, Clone)]
pub(crate) struct EncodedLayer {
    pub(crate) tar: LayerTar,
    pub(crate) descriptor: Descriptor,
}

/// Returns the digests of the layers' tars; what is known is not computed again.
pub(crate) fn measure_all(
    shared: &Shared,
    request: &BuildRequest,
    built: &Built,
    options: &LayerOptions,
    course: Course<'_>,
) -> Result<Vec<LayerTar>, EngineError> {
    in_parallel(&built.layers, |index, layer| {
        if let Some(ahead) = course.ahead {
            ahead.take(layer);
        }
        let clamp = Clamp::of_layer(request, built, index).of(options);
        measure(shared, &built.layers[..index], layer, clamp)
    })
}

/// Returns the layers as blobs of the store, encoded as the output asks.
pub(crate) fn encode_all(
    shared: &Shared,
    request: &BuildRequest,
    built: &Built,
    options: &LayerOptions,
    naming: Naming,
    course: Course<'_>,
) -> Result<Vec<EncodedLayer>, EngineError> {
    in_parallel(&built.layers, |index, layer| {
        if let Some(ahead) = course.ahead {
            ahead.take(layer);
        }
        let clamp = Clamp::of_layer(request, built, index).of(options);
        let below = &built.layers[..index];
        encode(
            shared,
            below,
            layer,
            clamp,
            options,
            naming,
            Some(course.cancel),
        )
    })
}

/// Returns the layers of an image of the store as blobs; their tars are those its config names.
///
/// `epoch` is the time the image may have been made for.
pub(crate) fn encode_stored(
    shared: &Shared,
    layers: &[Layer],
    diff_ids: &[Digest],
    epoch: Option<i64>,
    options: &LayerOptions,
    naming: Naming,
) -> Result<Vec<EncodedLayer>, EngineError> {
    in_parallel(layers, |index, layer| {
        let below = &layers[..index];
        let clamps = std::iter::once(None).chain(epoch.map(Some));
        for clamp in clamps {
            if measure(shared, below, layer, clamp)?.diff_id != diff_ids[index] {
                continue;
            }
            let encoded = encode(shared, below, layer, clamp, options, naming, None)?;
            if encoded.tar.diff_id == diff_ids[index] {
                return Ok(encoded);
            }
            // Written anew it is another tar; the layer stays that of the image it came with.
            if clamp.is_none() {
                let info = shared.store.layer_info(layer.id())?;
                let size = info.tar.map_or(0, |(_, size)| size);
                shared
                    .store
                    .set_layer_tar(layer.id(), &diff_ids[index], size)?;
            }
        }
        Err(EngineError::Image {
            subject: format!("layer {}", diff_ids[index]),
            reason: "its tar is not in the store any more, and its registry cannot be asked"
                .to_owned(),
        })
    })
}

/// What the time of a layer's files is cut to depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clamp {
    /// A layer that came with the base image is kept bit for bit.
    pub(super) from_image: bool,
    pub(super) epoch: Option<i64>,
}

impl Clamp {
    pub(super) fn of_layer(request: &BuildRequest, built: &Built, index: usize) -> Self {
        Self {
            from_image: index < built.build.config.rootfs.diff_ids.len(),
            epoch: built.build.epoch.or(request.source_date_epoch),
        }
    }

    /// Returns the time no file of the layer is later than.
    pub(super) fn of(self, options: &LayerOptions) -> Option<i64> {
        match self.from_image || options.rewrite_timestamp == Some(false) {
            true => None,
            false => self.epoch,
        }
    }
}

/// Runs `work` for each layer, as many at once as there are cores, and keeps the order.
fn in_parallel<T: Send>(
    layers: &[Layer],
    work: impl Fn(usize, &Layer) -> Result<T, EngineError> + Sync,
) -> Result<Vec<T>, EngineError> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if layers.len() <= 1 {
        return layers
            .iter()
            .enumerate()
            .map(|(index, layer)| work(index, layer))
            .collect();
    }
    let next = std::sync::atomic::AtomicUsize::new(0);
    let results: Mutex<Vec<Option<Result<T, EngineError>>>> =
        Mutex::new(layers.iter().map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..cores.min(layers.len()) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    let Some(layer) = layers.get(index) else {
                        return;
                    };
                    let result = work(index, layer);
                    let mut results = results.lock().unwrap_or_else(|poison| poison.into_inner());
                    results[index] = Some(result);
                }
            });
        }
    });
    let results = results
        .into_inner()
        .unwrap_or_else(|poison| poison.into_inner());
    results.into_iter().flatten().collect()
}

fn diff_options(shared: &Shared, clamp: Option<i64>) -> DiffOptions {
    let mut options = DiffOptions::new(Form::Overlay(shared.xattrs()));
    options.clamp = clamp;
    options
}

pub(super) fn measure(
    shared: &Shared,
    below: &[Layer],
    layer: &Layer,
    clamp: Option<i64>,
) -> Result<LayerTar, EngineError> {
    if let Some(known) = known_tar(shared, layer, clamp)? {
        return Ok(known);
    }
    let dir = LayerDir::open(layer.path())?;
    let lowers = shared.tree(below)?;
    let options = diff_options(shared, clamp);
    let diffed = rootfs::diff::diff_layer(&dir, Some(&lowers), &options)?;
    remember_tar(shared, layer, clamp, &diffed)
}

/// Returns the digest of the tar of a layer with nothing below.
pub(crate) fn measure_one(shared: &Shared, layer: &Layer) -> Result<Digest, EngineError> {
    Ok(measure(shared, &[], layer, None)?.diff_id)
}

/// Tars with clamped times are not those of the layer's record, and are remembered apart.
fn clamped_key(layer: &Layer, clamp: i64) -> Vec<u8> {
    format!("{} {clamp}", layer.id().0).into_bytes()
}

fn known_tar(
    shared: &Shared,
    layer: &Layer,
    clamp: Option<i64>,
) -> Result<Option<LayerTar>, EngineError> {
    let Some(clamp) = clamp else {
        let tar = shared.store.layer_info(layer.id())?.tar;
        return Ok(tar.map(|(diff_id, size)| LayerTar { diff_id, size }));
    };
    let found = shared
        .store
        .recall("clamped tar", &clamped_key(layer, clamp))?;
    let text = found.and_then(|bytes| String::from_utf8(bytes).ok());
    let parsed = text.as_deref().and_then(|text| {
        let (digest, size) = text.split_once(' ')?;
        Some(LayerTar {
            diff_id: digest.parse().ok()?,
            size: size.parse().ok()?,
        })
    });
    Ok(parsed)
}

fn remember_tar(
    shared: &Shared,
    layer: &Layer,
    clamp: Option<i64>,
    diffed: &Diffed,
) -> Result<LayerTar, EngineError> {
    match clamp {
        None => shared
            .store
            .set_layer_tar(layer.id(), &diffed.diff_id, diffed.size)?,
        Some(clamp) => {
            let key = clamped_key(layer, clamp);
            let value = format!("{} {}", diffed.diff_id, diffed.size);
            shared
                .store
                .remember("clamped tar", [(key.as_slice(), value.as_bytes())])?;
        }
    }
    Ok(LayerTar {
        diff_id: diffed.diff_id.clone(),
        size: diffed.size,
    })
}

/// Returns the compression that is asked for, and what names the bytes it makes.
pub(crate) fn compression_of(options: &LayerOptions) -> Result<(Compression, String), EngineError> {
    let wrong = |level: i32| {
        EngineError::Request(format!(
            "there is no compression level {level} for this compression"
        ))
    };
    let compression = match options.compression {
        request::Compression::Uncompressed => Compression::Uncompressed,
        request::Compression::Gzip => match options.level {
            None => Compression::GZIP,
            Some(level @ 0..=9) => Compression::Gzip {
                level: level as u32,
            },
            Some(level) => return Err(wrong(level)),
        },
        request::Compression::Zstd => match options.level {
            None => Compression::ZSTD,
            Some(level @ 1..=22) => Compression::Zstd { level },
            Some(level) => return Err(wrong(level)),
        },
    };
    // Bytes made by another compressor may differ: they are not taken for the same.
    let compressor = compression.compressor();
    Ok((compression, format!("{compression:?} {compressor}")))
}

/// Returns one layer as a blob of the store.
pub(crate) fn encode_one(
    shared: &Shared,
    below: &[Layer],
    layer: &Layer,
    clamp: Option<i64>,
    options: &LayerOptions,
    stop: Option<&Cancel>,
) -> Result<EncodedLayer, EngineError> {
    let naming = match options.oci_media_types {
        Some(false) => Naming::Docker,
        _ => Naming::Oci,
    };
    encode(shared, below, layer, clamp, options, naming, stop)
}

pub(super) fn encode(
    shared: &Shared,
    below: &[Layer],
    layer: &Layer,
    clamp: Option<i64>,
    options: &LayerOptions,
    naming: Naming,
    stop: Option<&Cancel>,
) -> Result<EncodedLayer, EngineError> {
    let (compression, form) = compression_of(options)?;
    if let Some(tar) = known_tar(shared, layer, clamp)? {
        let original = shared.store.encoding(&tar.diff_id, Encoding::ORIGINAL)?;
        let is_wanted = |original: &Encoding| {
            let wanted = layer_type(Naming::Oci, compression.format());
            let same = media_type::kind(&original.media_type) == media_type::kind(wanted);
            !options.force || (same && options.level.is_none())
        };
        let found = match &original {
            Some(original) if is_wanted(original) => Some(original.clone()),
            _ => shared.store.encoding(&tar.diff_id, &form)?,
        };
        let encoding = match (found, original) {
            (Some(found), _) => Some(found),
            (None, Some(original)) => {
                let made = convert(shared, &tar, &original, compression, stop)?;
                shared.store.set_encoding(&tar.diff_id, &form, &made)?;
                Some(made)
            }
            (None, None) => None,
        };
        if let Some(encoding) = encoding {
            return Ok(described(tar, &encoding, naming));
        }
    }
    let dir = LayerDir::open(layer.path())?;
    let lowers = shared.tree(below)?;
    let diff = diff_options(shared, clamp);
    let mut blob = shared.store.blobs().writer_of_hashed()?;
    let memo = StoredBlocks::new(shared);
    let mut compress = CompressOptions::new(compression);
    compress.memo = Some(&memo);
    let writer = Stoppable {
        inner: &mut blob,
        stop,
    };
    let written = rootfs::diff::write_layer(&dir, Some(&lowers), &diff, &compress, writer)?;
    let (found, compressed) = memo.counts();
    tracing::debug!(layer = layer.id().0, found, compressed, "blocks of a layer");
    let tar = remember_tar(shared, layer, clamp, &written.layer)?;
    let (digest, size) = blob.commit_volatile(Some((&written.blob, written.blob_size)))?;
    blocks::remember(shared, &digest, &written.blocks)?;
    let encoding = Encoding {
        media_type: layer_type(Naming::Oci, compression.format()).to_owned(),
        digest,
        size,
    };
    shared.store.set_encoding(&tar.diff_id, &form, &encoding)?;
    Ok(described(tar, &encoding, naming))
}

/// Compresses the tar that a layer of an image came in as an output asks: written anew it would be another tar.
fn convert(
    shared: &Shared,
    tar: &LayerTar,
    original: &Encoding,
    compression: Compression,
    stop: Option<&Cancel>,
) -> Result<Encoding, EngineError> {
    let reader = shared.store.blobs().open(&original.digest)?;
    let mut blob = shared.store.blobs().writer_of_hashed()?;
    let writer = Stoppable {
        inner: &mut blob,
        stop,
    };
    let options = CompressOptions::new(compression);
    let made = rootfs::compress::recompress(reader, tar.size, &options, writer)?;
    if made.diff_id != tar.diff_id {
        return Err(EngineError::LayerMismatch {
            digest: original.digest.clone(),
            expected: tar.diff_id.clone(),
            actual: made.diff_id,
        });
    }
    let (digest, size) = blob.commit_volatile(Some((&made.blob, made.blob_size)))?;
    Ok(Encoding {
        media_type: layer_type(Naming::Oci, compression.format()).to_owned(),
        digest,
        size,
    })
}

fn described(tar: LayerTar, encoding: &Encoding, naming: Naming) -> EncodedLayer {
    let media_type = match media_type::kind(&encoding.media_type) {
        Kind::Layer { compression, .. } => naming.layer(compression).to_owned(),
        _ => encoding.media_type.clone(),
    };
    EncodedLayer {
        descriptor: Descriptor::new(media_type, encoding.digest.clone(), encoding.size),
        tar,
    }
}
