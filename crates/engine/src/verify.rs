//! Verifies the content of layers against what was recorded when they were made.

use rootfs::{Form, LayerDir};
use store::{CheckReport, Ids, Image, Layer, LayerId, Store};

use crate::EngineError;
use crate::step::usage;

/// Checks the files of all layers: how much they hold, their content's checksum where one was computed,
/// and, for layers that were built here and are part of an image, the digest of their tar.
///
/// With `repair` damaged layers are removed, with all that was made of them; what a container or a
/// running build has stays.
pub fn verify_layers(
    store: &Store,
    report: &mut CheckReport,
    repair: bool,
) -> Result<(), EngineError> {
    let images = store.images()?;
    for id in store.published_layers()? {
        // Collected meanwhile, or in use by the collector.
        let Some(layer) = store.layer(id)? else {
            continue;
        };
        let Some(reason) = problem(store, &layer, &images)? else {
            continue;
        };
        drop(layer);
        let mended = match repair {
            true => store.drop_layer(id)?,
            false => None,
        };
        report.problem(format!("layer {}", id.0), reason, mended);
    }
    Ok(())
}

fn problem(store: &Store, layer: &Layer, images: &[Image]) -> Result<Option<String>, EngineError> {
    let info = store.layer_info(layer.id())?;
    let xattrs = match store.ids() {
        Ids::Rootful => rootfs::OverlayXattrs::Trusted,
        Ids::Rootless { .. } => rootfs::OverlayXattrs::User,
    };
    let content = match usage(layer.path()) {
        Ok((_, content)) => content,
        Err(error) => return Ok(Some(format!("cannot be read: {error}"))),
    };
    let is_image = store.is_image_layer(layer.id())?;
    if content != info.content && !(is_image && holds_again(store, &info, content)?) {
        return Ok(Some(format!(
            "holds {content} bytes of files, {} are recorded",
            info.content
        )));
    }
    if let Some(expected) = info.content_id
        && rootfs::checksum::layer(layer.path(), xattrs)? != expected
    {
        return Ok(Some("its content is not what it was".to_owned()));
    }
    let (Some((expected, _)), false) = (&info.tar, is_image) else {
        return Ok(None);
    };
    let Some(below) = below(store, layer.id(), images)? else {
        return Ok(None);
    };
    let lowers = crate::snapshot::tree_of(&below, xattrs)?;
    let options = rootfs::diff::DiffOptions::new(Form::Overlay(xattrs));
    let found = rootfs::diff::diff_layer(&LayerDir::open(layer.path())?, Some(&lowers), &options)?;
    Ok((found.diff_id != *expected)
        .then(|| format!("its tar is {}, not {expected}", found.diff_id)))
}

/// Returns whether an image's layer holds this much when it is unpacked again: its tar may name a file
/// twice, and then there is less than it had.
fn holds_again(store: &Store, info: &store::LayerInfo, content: u64) -> Result<bool, EngineError> {
    let Some((diff_id, _)) = &info.tar else {
        return Ok(false);
    };
    let Some(blob) = store.encoding(diff_id, store::Encoding::ORIGINAL)? else {
        return Ok(false);
    };
    let again = store.new_layer()?;
    let dir = LayerDir::open(again.path())?;
    let options = crate::source::pull::options(store, Some(diff_id));
    let unpacked = rootfs::apply::apply_layer(store.blobs().open(&blob.digest)?, &dir, &options);
    Ok(unpacked.is_ok() && usage(&again.path()).is_ok_and(|(_, found)| found == content))
}

/// Returns the layers an image has below one of its layers, leased.
fn below(store: &Store, id: LayerId, images: &[Image]) -> Result<Option<Vec<Layer>>, EngineError> {
    for image in images {
        let layers = image.layers.as_deref().unwrap_or_default();
        let Some(index) = layers.iter().position(|layer| *layer == id) else {
            continue;
        };
        if let Some(layers) = store.layers(&layers[..index])? {
            return Ok(Some(layers));
        }
    }
    Ok(None)
}
