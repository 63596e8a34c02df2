//! Images of the store as others take them: with a manifest, and layers in blobs.

use oci::media_type::Naming;
use oci::{Descriptor, Digest, ImageConfig, Index, Manifest, Platform, PlatformMatcher, Reference};
use store::{Image, ImageName, Variants};

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
        let mut manifest = Manifest::new(naming, config_descriptor.clone(), layers.clone());
        manifest.annotations = match known_manifest(shared, image) {
            Some((known, _)) => known.annotations,
            None => image.annotations.clone(),
        };
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

/// Images of the store as one thing: an image, or several under an index.
#[derive(Debug)]
pub(crate) struct StoredSet {
    pub(crate) images: Vec<StoredImage>,
    pub(crate) index: Option<(Descriptor, Vec<u8>)>,
}

impl StoredSet {
    /// Returns all that a name stands for.
    pub(crate) fn of(
        shared: &Shared,
        subject: &Subject,
        options: &LayerOptions,
        naming: Naming,
    ) -> Result<Self, EngineError> {
        let images = subject
            .images
            .iter()
            .map(|image| StoredImage::of(shared, image, options, naming));
        let images = images.collect::<Result<Vec<_>, _>>()?;
        let Some(index) = &subject.index else {
            return Ok(Self {
                images,
                index: None,
            });
        };
        let raw = shared.store.blobs().read(index)?;
        let unreadable = |error: serde_json::Error| EngineError::Image {
            subject: format!("index {index}"),
            reason: error.to_string(),
        };
        let mut index: Index = serde_json::from_slice(&raw).map_err(unreadable)?;
        // Encoded anew they have other digests; what their entries say besides stays.
        let entries: Vec<Descriptor> = images
            .iter()
            .zip(&subject.images)
            .enumerate()
            .map(|(number, (image, of))| {
                let mut entry = image.manifest_descriptor.clone();
                let mut known = index.manifests.iter();
                let known = match &of.manifest {
                    Some(digest) => known.find(|known| known.digest == *digest),
                    // The index was made of these, in this order.
                    None => known.nth(number),
                };
                if let Some(known) = known {
                    entry.annotations = known.annotations.clone();
                    entry.platform = known.platform.clone().or(entry.platform);
                }
                entry
            })
            .collect();
        if entries != index.manifests {
            index.media_type = Some(naming.index().to_owned());
            index.manifests = entries;
        }
        let (bytes, media_type) = match entries_kept(&index, &raw) {
            true => (raw, index.media_type.clone()),
            false => (
                oci::json::compact(&index).expect("an index can be written as JSON"),
                index.media_type.clone(),
            ),
        };
        let media_type = media_type.unwrap_or_else(|| naming.index().to_owned());
        Ok(Self {
            images,
            index: Some((Descriptor::of(media_type, &bytes), bytes)),
        })
    }

    /// Returns what names the whole.
    pub(crate) fn root(&self) -> Option<&Descriptor> {
        match &self.index {
            Some((descriptor, _)) => Some(descriptor),
            None => self.images.first().map(|image| &image.manifest_descriptor),
        }
    }
}

/// Returns whether an index is still the one that was read.
fn entries_kept(index: &Index, raw: &[u8]) -> bool {
    serde_json::from_slice::<Index>(raw).is_ok_and(|read| read == *index)
}

/// What a name or an id of the store stands for.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The image that is meant where one is wanted; the first of `images` that fits this machine.
    pub image: Image,
    /// All of them; one where there is no index.
    pub images: Vec<Image>,
    /// The index over them, a blob of the store.
    pub index: Option<Digest>,
}

impl Subject {
    /// Returns an image without an index.
    pub fn single(image: Image) -> Self {
        Self {
            images: vec![image.clone()],
            image,
            index: None,
        }
    }

    /// Returns the index with its images as a name records it.
    pub fn variants(&self) -> Option<Variants> {
        self.index.as_ref().map(|index| Variants {
            index: index.clone(),
            images: self.images.iter().map(|image| image.id.clone()).collect(),
        })
    }

    /// Returns all that a name stands for, or what of it is for a platform.
    pub fn of_name(
        store: &store::Store,
        name: &ImageName,
        platform: Option<&Platform>,
    ) -> Result<Option<Self>, EngineError> {
        let mut images = Vec::new();
        for id in name.images() {
            images.extend(store.image(id)?);
        }
        if let Some(platform) = platform {
            return Ok(best_for(&images, platform).map(Self::single));
        }
        let usual = images.iter().find(|image| image.id == name.image);
        Ok(usual.or(images.first()).cloned().map(|image| Self {
            image,
            images,
            index: name
                .variants
                .as_ref()
                .map(|variants| variants.index.clone()),
        }))
    }
}

/// Returns the image that serves a platform best.
pub(crate) fn best_for(images: &[Image], platform: &Platform) -> Option<Image> {
    let matcher = PlatformMatcher::runnable(platform);
    let mut fitting: Vec<(Platform, &Image)> = images
        .iter()
        .filter_map(|image| Some((image.platform.parse::<Platform>().ok()?, image)))
        .filter(|(found, _)| matcher.matches(found))
        .collect();
    fitting.sort_by(|(a, _), (b, _)| matcher.compare(a, b));
    fitting.first().map(|(_, image)| (*image).clone())
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

/// Returns the manifest that is recorded for an image.
fn known_manifest(shared: &Shared, image: &Image) -> Option<(Manifest, Vec<u8>)> {
    let raw = shared.store.blobs().read(image.manifest.as_ref()?).ok()?;
    let manifest: Manifest = serde_json::from_slice(&raw).ok()?;
    (manifest.config.digest == image.id).then_some((manifest, raw))
}

/// Returns the image by the manifest it came with.
fn original(
    shared: &Shared,
    image: &Image,
    config: &[u8],
) -> Result<Option<StoredImage>, EngineError> {
    let blobs = shared.store.blobs();
    let Some((manifest, raw)) = known_manifest(shared, image) else {
        return Ok(None);
    };
    for layer in &manifest.layers {
        if blobs.size(&layer.digest) == Some(layer.size) {
            continue;
        }
        if !fetch_again(shared, image, layer)? {
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
