//! Makes configs and manifests, and puts images into the store.

use oci::media_type::{self, Naming};
use oci::{
    Descriptor, Digest, History, ImageConfig, Index, Manifest, Platform, Reference, Timestamp,
};
use progress::RunningVertex;
use store::{Image, Layer};

use super::Exported;
use super::layers::{self, EncodedLayer, LayerTar};
use crate::EngineError;
use crate::build::Built;
use crate::request::{BuildRequest, ImageOutput, LayerOptions};
use crate::step::Shared;

/// An image whose parts can all be written.
#[derive(Debug)]
pub(crate) struct Assembled {
    pub(crate) platform: Platform,
    pub(crate) config: Vec<u8>,
    pub(crate) config_descriptor: Descriptor,
    pub(crate) manifest: Vec<u8>,
    pub(crate) manifest_descriptor: Descriptor,
    pub(crate) layers: Vec<EncodedLayer>,
}

/// Makes the config of a built image, complete with layers and times.
pub(crate) fn config_of(
    shared: &Shared,
    request: &BuildRequest,
    built: &Built,
    tars: &[LayerTar],
) -> Result<ImageConfig, EngineError> {
    let mut config = built.build.config.clone();
    let base = config.rootfs.diff_ids.len();
    config.rootfs.kind = "layers".to_owned();
    config.rootfs.diff_ids = tars.iter().map(|tar| tar.diff_id.clone()).collect();
    let epoch = built.build.epoch.or(request.source_date_epoch);
    let mut times = Vec::with_capacity(built.layers.len());
    for layer in &built.layers {
        let created = match epoch {
            Some(epoch) => epoch,
            None => shared.store.layer_info(layer.id())?.created,
        };
        times.push(timestamp(created)?);
    }
    date_history(&mut config, base, &times);
    let last = config
        .history
        .iter()
        .filter_map(|entry| entry.created)
        .next_back();
    config.created = match epoch {
        Some(epoch) => Some(timestamp(epoch)?),
        None => times
            .get(base..)
            .and_then(<[_]>::last)
            .copied()
            .or(last)
            .or(config.created),
    };
    Ok(config)
}

fn timestamp(seconds: i64) -> Result<Timestamp, EngineError> {
    Timestamp::from_unix(seconds, 0).map_err(|error| {
        EngineError::Request(format!("the time {seconds} cannot be written: {error}"))
    })
}

/// Gives the history of this build its times; what a layer of the base says stays.
fn date_history(config: &mut ImageConfig, base: usize, times: &[Timestamp]) {
    let history = &mut config.history;
    let described = history.iter().filter(|entry| !entry.empty_layer).count();
    // Layers that no instruction made, such as those of a merge with a stage.
    for _ in described..times.len() {
        history.push(History {
            created_by: String::new(),
            comment: "lapstrake.exporter.image.v0".to_owned(),
            ..History::default()
        });
    }
    let mut layer = 0;
    let mut latest = times.get(base).copied();
    for entry in history.iter_mut() {
        if !entry.empty_layer {
            if layer >= base {
                latest = times.get(layer).copied().or(latest);
            }
            if entry.created.is_none() {
                entry.created = times.get(layer).copied();
            }
            layer += 1;
        } else if entry.created.is_none() {
            entry.created = latest.or(times.last().copied());
        }
    }
}

/// Makes all parts of an image, its layers encoded.
pub(crate) fn assemble(
    shared: &Shared,
    request: &BuildRequest,
    built: &Built,
    options: &LayerOptions,
    naming: Naming,
    running: &RunningVertex,
) -> Result<Assembled, EngineError> {
    let status = running.status_of("exporting layers", "", 0);
    let layers = layers::encode_all(shared, request, built, options, naming)?;
    status.finish(0);
    let tars: Vec<LayerTar> = layers.iter().map(|layer| layer.tar.clone()).collect();
    let config = config_of(shared, request, built, &tars)?;
    let config = oci::json::compact(&config).expect("a config can be written as JSON");
    let config_descriptor = Descriptor::of(naming.config(), &config);
    let descriptors = layers
        .iter()
        .map(|layer| layer.descriptor.clone())
        .collect();
    let mut manifest = Manifest::new(naming, config_descriptor.clone(), descriptors);
    manifest.annotations = request.annotations.clone();
    let manifest = oci::json::compact(&manifest).expect("a manifest can be written as JSON");
    let platform = platform_of(built);
    let manifest_descriptor =
        Descriptor::of(naming.manifest(), &manifest).with_platform(platform.clone());
    for descriptor in [&manifest_descriptor, &config_descriptor] {
        let what = match descriptor.digest == config_descriptor.digest {
            true => "config",
            false => "manifest",
        };
        running
            .status_of(&format!("exporting {what} {}", descriptor.digest), "", 0)
            .finish(0);
    }
    Ok(Assembled {
        platform,
        config,
        config_descriptor,
        manifest,
        manifest_descriptor,
        layers,
    })
}

/// Returns what the image says it is for; what was asked for where it does not say.
fn platform_of(built: &Built) -> Platform {
    let said = &built.build.config.platform;
    match said.os.is_empty() || said.architecture.is_empty() {
        true => built.build.platform.clone(),
        false => said.clone(),
    }
}

/// Makes the index over the images of several platforms.
pub(crate) fn index_of(images: &[Assembled], naming: Naming) -> (Vec<u8>, Descriptor) {
    let manifests = images
        .iter()
        .map(|image| image.manifest_descriptor.clone())
        .collect();
    let index = Index::new(naming, manifests);
    let bytes = oci::json::compact(&index).expect("an index can be written as JSON");
    let descriptor = Descriptor::of(naming.index(), &bytes);
    (bytes, descriptor)
}

/// Puts the image into the store, and pushes it where that is asked for.
pub(crate) fn to_store(
    shared: &Shared,
    request: &BuildRequest,
    output: &ImageOutput,
    built: &[Built],
    multi_platform: bool,
    running: &RunningVertex,
) -> Result<Exported, EngineError> {
    let mut names = request.tags.clone();
    names.extend(output.names.iter().cloned());
    let mut exported = Exported::default();
    if output.store {
        for built in built {
            exported.image = Some(store_one(shared, request, built, &names, running)?);
        }
    }
    if output.push {
        let pushed = super::push::push(
            shared,
            request,
            output,
            built,
            multi_platform,
            &names,
            running,
        )?;
        exported.manifest = pushed.manifest;
        exported.image = exported.image.or(pushed.image);
    }
    Ok(exported)
}

/// Records one image; nothing is compressed for it.
fn store_one(
    shared: &Shared,
    request: &BuildRequest,
    built: &Built,
    names: &[Reference],
    running: &RunningVertex,
) -> Result<Digest, EngineError> {
    let status = running.status_of("exporting layers", "", 0);
    let tars = layers::measure_all(shared, request, built)?;
    status.finish(0);
    let config = config_of(shared, request, built, &tars)?;
    let created = config.created.map_or(0, |time| time.unix_seconds());
    let config = oci::json::compact(&config).expect("a config can be written as JSON");
    let id = shared.store.blobs().put(&config)?;
    let mut size = 0;
    for layer in &built.layers {
        size += shared.store.layer_info(layer.id())?.content;
    }
    running
        .status_of(&format!("writing image {id}"), "", 0)
        .finish(0);
    let image = Image {
        id: id.clone(),
        manifest: None,
        layers: Some(built.layers.iter().map(Layer::id).collect()),
        platform: platform_of(built).to_string(),
        size,
        created,
    };
    shared.store.put_image(&image, names, None)?;
    for name in names {
        running
            .status_of(&format!("naming to {name}"), "", 0)
            .finish(0);
    }
    Ok(id)
}

/// Returns the naming of media types for an output.
pub(crate) fn naming(options: &LayerOptions, usual: Naming) -> Naming {
    match options.oci_media_types {
        Some(true) => Naming::Oci,
        Some(false) => Naming::Docker,
        None => usual,
    }
}

/// Returns the media type of a layer that is encoded in some way.
pub(crate) fn layer_type(naming: Naming, format: rootfs::compress::Format) -> &'static str {
    naming.layer(match format {
        rootfs::compress::Format::Uncompressed => media_type::Compression::None,
        rootfs::compress::Format::Gzip => media_type::Compression::Gzip,
        rootfs::compress::Format::Zstd => media_type::Compression::Zstd,
    })
}
