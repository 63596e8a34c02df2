//! Images of the store as others take them: with a manifest, and layers in blobs.

use oci::media_type::Naming;
use oci::{Descriptor, ImageConfig, Manifest, Platform, Reference};
use store::Image;

use crate::EngineError;
use crate::export::layers::encode_stored;
use crate::request::LayerOptions;
use crate::step::Shared;

/// An image whose parts can all be written.
#[derive(Debug)]
pub(crate) struct StoredImage {
    pub(crate) config: Vec<u8>,
    pub(crate) config_descriptor: Descriptor,
    pub(crate) manifest: Vec<u8>,
    pub(crate) manifest_descriptor: Descriptor,
    /// Blobs of the store, lowest first.
    pub(crate) layers: Vec<Descriptor>,
}

impl StoredImage {
    /// Returns the image as it was pulled, if all of that is there; else its layers are encoded.
    pub(crate) fn of(
        shared: &Shared,
        image: &Image,
        options: &LayerOptions,
        naming: Naming,
    ) -> Result<Self, EngineError> {
        let config = shared.store.blobs().read(&image.id)?;
        if !options.force
            && let Some(original) = original(shared, image, &config)?
        {
            return Ok(original);
        }
        let parsed: ImageConfig =
            serde_json::from_slice(&config).map_err(|error| EngineError::Image {
                subject: image.id.to_string(),
                reason: error.to_string(),
            })?;
        let ids = image.layers.as_deref().unwrap_or_default();
        let layers = shared.store.layers(ids)?;
        let layers = layers.filter(|layers| layers.len() == parsed.rootfs.diff_ids.len());
        let layers = layers.ok_or_else(|| EngineError::Image {
            subject: image.id.to_string(),
            reason: "a layer of it is missing from the store".to_owned(),
        })?;
        let epoch = parsed.created.map(|time| time.unix_seconds());
        let encoded = encode_stored(
            shared,
            &layers,
            &parsed.rootfs.diff_ids,
            epoch,
            options,
            naming,
        )?;
        let layers: Vec<Descriptor> = encoded.into_iter().map(|layer| layer.descriptor).collect();
        let config_descriptor = Descriptor::of(naming.config(), &config);
        let manifest = Manifest::new(naming, config_descriptor.clone(), layers.clone());
        let manifest = oci::json::compact(&manifest).expect("a manifest can be written as JSON");
        let platform: Platform = parsed.platform;
        Ok(Self {
            manifest_descriptor: Descriptor::of(naming.manifest(), &manifest)
                .with_platform(platform),
            config,
            config_descriptor,
            manifest,
            layers,
        })
    }
}

/// Fetches a blob that was collected after it was unpacked; returns whether a registry had it.
fn fetch_again(shared: &Shared, image: &Image, layer: &Descriptor) -> Result<bool, EngineError> {
    for name in shared.store.names()? {
        let Ok(reference) = Reference::parse_normalized(&name.reference) else {
            continue;
        };
        if name.image != image.id || name.digest.is_none() {
            continue;
        }
        let images = &shared.images;
        let handle = images.runtime().handle();
        let mut reader = images.client().blob_reader(handle, &reference, layer, None);
        let mut writer = shared.store.blobs().writer()?;
        // A registry that does not answer is as one that does not have it.
        if std::io::copy(&mut reader, &mut writer).is_ok()
            && writer.commit(Some((&layer.digest, layer.size))).is_ok()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns the image by the manifest it came with.
fn original(
    shared: &Shared,
    image: &Image,
    config: &[u8],
) -> Result<Option<StoredImage>, EngineError> {
    let blobs = shared.store.blobs();
    let Some(raw) = image
        .manifest
        .as_ref()
        .and_then(|digest| blobs.read(digest).ok())
    else {
        return Ok(None);
    };
    let Ok(manifest) = serde_json::from_slice::<Manifest>(&raw) else {
        return Ok(None);
    };
    if manifest.config.digest != image.id {
        return Ok(None);
    }
    for layer in &manifest.layers {
        if blobs.size(&layer.digest) != Some(layer.size) && !fetch_again(shared, image, layer)? {
            return Ok(None);
        }
    }
    let media_type = manifest
        .media_type
        .as_deref()
        .unwrap_or(oci::media_type::OCI_MANIFEST);
    let mut manifest_descriptor = Descriptor::of(media_type, &raw);
    if let Ok(platform) = image.platform.parse::<Platform>() {
        manifest_descriptor = manifest_descriptor.with_platform(platform);
    }
    Ok(Some(StoredImage {
        config: config.to_vec(),
        config_descriptor: manifest.config,
        manifest: raw,
        manifest_descriptor,
        layers: manifest.layers,
    }))
}
