//! Makes configs and manifests, and puts images into the store.

use std::collections::BTreeMap;

use ::attest::AttestationManifest;
use oci::media_type::{self, Naming};
use oci::{
    Descriptor, History, ImageConfig, Index, Manifest, Platform, PlatformMatcher, Reference,
    Timestamp,
};
use progress::RunningVertex;
use store::{Image, Layer, NewNames, Variants};

use super::Course;
use super::Exported;
use super::layers::{self, EncodedLayer, LayerTar};
use crate::EngineError;
use crate::attest;
use crate::build::Built;
use crate::request::{AnnotatedPart, Annotation, BuildRequest, ImageOutput, LayerOptions};
use crate::step::Shared;

/// An image whose parts can all be written.
#[derive(Debug)]
pub(crate) struct Assembled {
    pub(crate) platform: Platform,
    /// Seconds since 1970.
    pub(crate) created: i64,
    pub(crate) config: Vec<u8>,
    pub(crate) config_descriptor: Descriptor,
    pub(crate) annotations: BTreeMap<String, String>,
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
    // A frontend that dates its last step means the image too, if that step made what is last.
    let steps = config.history.iter().filter(|entry| !entry.empty_layer);
    let is_whole = steps.count() >= times.len();
    let told = config.history.last().filter(|_| is_whole);
    let told = told.and_then(|entry| entry.created);
    date_history(&mut config, base, &times);
    crate::cache::inline::write(&mut config, &built.inline);
    let last = config
        .history
        .iter()
        .filter_map(|entry| entry.created)
        .next_back();
    config.created = match epoch {
        Some(epoch) => Some(timestamp(epoch)?),
        // A frontend that sets a time means it; ours leaves it to the layers.
        None => config
            .created
            .or(told)
            .or_else(|| times.get(base..).and_then(<[_]>::last).copied())
            .or(last),
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

/// How the parts of an image are made for one output.
pub(crate) struct Assembly<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) request: &'a BuildRequest,
    pub(crate) layers: &'a LayerOptions,
    pub(crate) annotations: &'a [Annotation],
    pub(crate) naming: Naming,
    pub(crate) running: &'a RunningVertex,
    pub(crate) course: Course<'a>,
    /// What the image will be called, which is what attestations speak of.
    pub(crate) names: &'a [Reference],
    pub(crate) attestations: Attesting,
}

/// Which attestations go with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attesting {
    None,
    /// Those that are not for registries alone.
    NotInline,
    All,
}

impl Assembly<'_> {
    /// Makes all images, their layers encoded, and the index over them where one is wanted.
    pub(crate) fn make(
        &self,
        built: &[Built],
        multi_platform: bool,
    ) -> Result<AssembledSet, EngineError> {
        let images = built.iter().map(|built| {
            let status = self.running.status_of("exporting layers", "", 0);
            let layers = {
                let (shared, request) = (self.shared, self.request);
                let (options, naming) = (self.layers, self.naming);
                layers::encode_all(shared, request, built, options, naming, self.course)?
            };
            status.finish(0);
            self.image(built, layers)
        });
        let images = images.collect::<Result<Vec<_>, _>>()?;
        let attestations = self.attest(built, &images)?;
        self.set(images, attestations, multi_platform)
    }

    /// Makes the manifests of what is said of the images.
    fn attest(
        &self,
        built: &[Built],
        images: &[Assembled],
    ) -> Result<Vec<AttestationManifest>, EngineError> {
        if self.attestations == Attesting::None {
            return Ok(Vec::new());
        }
        let with_inline = self.attestations == Attesting::All;
        let made = built.iter().zip(images).map(|(built, image)| {
            let of = &image.manifest_descriptor;
            let (shared, layers) = (self.shared, &image.layers);
            attest::manifest_of(shared, built, self.names, of, layers, with_inline)
        });
        let made: Vec<AttestationManifest> = made
            .filter_map(Result::transpose)
            .collect::<Result<_, EngineError>>()?;
        if !made.is_empty() && self.naming != Naming::Oci {
            return Err(EngineError::Request(
                "cannot export attestations with \"oci-mediatypes=false\"".to_owned(),
            ));
        }
        for manifest in &made {
            let digest = &manifest.descriptor.digest;
            self.running
                .status_of(format!("exporting attestation manifest {digest}"), "", 0)
                .finish(0);
        }
        Ok(made)
    }

    /// Makes all images with layers that are not compressed, and that no blob holds.
    fn make_plain(
        &self,
        built: &[Built],
        multi_platform: bool,
    ) -> Result<AssembledSet, EngineError> {
        let kind = self.naming.layer(media_type::Compression::None);
        let images = built.iter().map(|built| {
            let status = self.running.status_of("exporting layers", "", 0);
            let tars =
                layers::measure_all(self.shared, self.request, built, self.layers, self.course)?;
            status.finish(0);
            let layers = tars.into_iter().map(|tar| EncodedLayer {
                descriptor: Descriptor::new(kind, tar.diff_id.clone(), tar.size),
                tar,
            });
            self.image(built, layers.collect())
        });
        let images = images.collect::<Result<Vec<_>, _>>()?;
        self.set(images, Vec::new(), multi_platform)
    }

    /// Notes on a layer to what time its files were cut, where that was asked for.
    fn noted(&self, built: &Built, index: usize, layer: &Descriptor) -> Descriptor {
        let clamp = layers::Clamp::of_layer(self.request, built, index);
        match (self.layers.rewrite_timestamp, clamp.of(self.layers)) {
            (Some(true), Some(epoch)) => layer
                .clone()
                .with_annotation("buildkit/rewritten-timestamp", epoch.to_string()),
            _ => layer.clone(),
        }
    }

    fn image(&self, built: &Built, layers: Vec<EncodedLayer>) -> Result<Assembled, EngineError> {
        let naming = self.naming;
        let tars: Vec<LayerTar> = layers.iter().map(|layer| layer.tar.clone()).collect();
        let config = config_of(self.shared, self.request, built, &tars)?;
        let created = config.created.map_or(0, |time| time.unix_seconds());
        let config = oci::json::compact(&config).expect("a config can be written as JSON");
        let config_descriptor = Descriptor::of(naming.config(), &config);
        let descriptors = layers
            .iter()
            .enumerate()
            .map(|(index, layer)| self.noted(built, index, &layer.descriptor))
            .collect();
        let platform = platform_of(built);
        let mut manifest = Manifest::new(naming, config_descriptor.clone(), descriptors);
        let annotations = self.annotations_of(AnnotatedPart::Manifest, Some(&platform));
        manifest.annotations = annotations.clone();
        let manifest = oci::json::compact(&manifest).expect("a manifest can be written as JSON");
        let mut manifest_descriptor =
            Descriptor::of(naming.manifest(), &manifest).with_platform(platform.clone());
        manifest_descriptor.annotations =
            self.annotations_of(AnnotatedPart::ManifestDescriptor, Some(&platform));
        let made = [
            ("manifest", &manifest_descriptor.digest),
            ("config", &config_descriptor.digest),
        ];
        for (what, digest) in made {
            self.running
                .status_of(format!("exporting {what} {digest}"), "", 0)
                .finish(0);
        }
        Ok(Assembled {
            platform,
            created,
            config,
            config_descriptor,
            annotations,
            manifest,
            manifest_descriptor,
            layers,
        })
    }

    fn set(
        &self,
        images: Vec<Assembled>,
        attestations: Vec<AttestationManifest>,
        multi_platform: bool,
    ) -> Result<AssembledSet, EngineError> {
        let is_index = |part| matches!(part, AnnotatedPart::Index | AnnotatedPart::IndexDescriptor);
        if images.len() <= 1 && !multi_platform && attestations.is_empty() {
            if let Some(lost) = self.annotations.iter().find(|note| is_index(note.part)) {
                return Err(EngineError::Request(format!(
                    "the annotation {} is for an index, and an image for one platform has none",
                    lost.key
                )));
            }
            return Ok(AssembledSet {
                images,
                attestations,
                index: None,
            });
        }
        let manifests = images
            .iter()
            .map(|image| &image.manifest_descriptor)
            .chain(attestations.iter().map(|said| &said.descriptor))
            .cloned()
            .collect();
        let mut index = Index::new(self.naming, manifests);
        index.annotations = self.annotations_of(AnnotatedPart::Index, None);
        let bytes = oci::json::compact(&index).expect("an index can be written as JSON");
        let mut descriptor = Descriptor::of(self.naming.index(), &bytes);
        descriptor.annotations = self.annotations_of(AnnotatedPart::IndexDescriptor, None);
        Ok(AssembledSet {
            images,
            attestations,
            index: Some((descriptor, bytes)),
        })
    }

    fn annotations_of(
        &self,
        part: AnnotatedPart,
        platform: Option<&Platform>,
    ) -> BTreeMap<String, String> {
        let meant = |note: &&Annotation| {
            note.part == part
                && match (&note.platform, platform) {
                    (None, _) => true,
                    (Some(wanted), Some(platform)) => {
                        PlatformMatcher::exactly(wanted).matches(platform)
                    }
                    (Some(_), None) => false,
                }
        };
        let notes = self.annotations.iter().filter(meant);
        notes
            .map(|note| (note.key.clone(), note.value.clone()))
            .collect()
    }
}

/// The images of all platforms, and the index over them.
#[derive(Debug)]
pub(crate) struct AssembledSet {
    pub(crate) images: Vec<Assembled>,
    pub(crate) attestations: Vec<AttestationManifest>,
    pub(crate) index: Option<(Descriptor, Vec<u8>)>,
}

impl AssembledSet {
    /// Returns what names the whole: the index, or the only manifest.
    pub(crate) fn root(&self) -> Option<&Descriptor> {
        match &self.index {
            Some((descriptor, _)) => Some(descriptor),
            None => self.images.first().map(|image| &image.manifest_descriptor),
        }
    }

    /// Returns what a build is told it made.
    pub(crate) fn exported(&self, names: &[Reference]) -> Exported {
        let image = match &self.index {
            Some((descriptor, _)) => Some(descriptor.digest.clone()),
            None => self
                .images
                .first()
                .map(|image| image.config_descriptor.digest.clone()),
        };
        Exported {
            image,
            config: match self.images.as_slice() {
                [image] if self.index.is_none() || !self.attestations.is_empty() => {
                    Some(image.config_descriptor.digest.clone())
                }
                _ => None,
            },
            root: self.root().cloned(),
            names: names.to_vec(),
        }
    }
}

/// Returns what the image says it is for; what was asked for where it does not say.
fn platform_of(built: &Built) -> Platform {
    let said = &built.build.config.platform;
    match said.os.is_empty() || said.architecture.is_empty() {
        true => built.build.platform.clone(),
        false => said.clone(),
    }
}

/// Puts the image into the store, and pushes it where that is asked for.
pub(crate) fn to_store(
    shared: &Shared,
    request: &BuildRequest,
    output: &ImageOutput,
    built: &[Built],
    multi_platform: bool,
    running: &RunningVertex,
    course: Course<'_>,
) -> Result<Exported, EngineError> {
    let mut names = request.tags.clone();
    for name in &output.names {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    let mut exported = Exported::default();
    if output.store {
        let options = LayerOptions {
            rewrite_timestamp: output.layers.rewrite_timestamp,
            ..LayerOptions::default()
        };
        let assembly = Assembly {
            shared,
            request,
            layers: &options,
            annotations: &output.annotations,
            naming: Naming::Oci,
            running,
            course,
            names: &names,
            // The store keeps images alone.
            attestations: Attesting::None,
        };
        let set = assembly.make_plain(built, multi_platform)?;
        keep(shared, built, &set, &names, running)?;
        exported = set.exported(&names);
        // What is in the store has no manifest that anyone else could ask for.
        if set.index.is_none() {
            exported.root = None;
        }
    }
    if output.push {
        let assembly = Assembly {
            shared,
            request,
            layers: &output.layers,
            annotations: &output.annotations,
            naming: naming(&output.layers, Naming::Oci),
            running,
            course,
            names: &names,
            attestations: Attesting::All,
        };
        let set = super::push::push(&assembly, output, built, multi_platform, &names)?;
        let pushed = set.exported(&names);
        exported.image = exported.image.or(pushed.image);
        exported.config = exported.config.or(pushed.config);
        exported.root = pushed.root;
        exported.names = pushed.names;
    }
    Ok(exported)
}

/// Records images and names; nothing is compressed for them.
fn keep(
    shared: &Shared,
    built: &[Built],
    set: &AssembledSet,
    names: &[Reference],
    running: &RunningVertex,
) -> Result<(), EngineError> {
    let store = &shared.store;
    let mut images = Vec::new();
    for (built, image) in built.iter().zip(&set.images) {
        let id = store.blobs().put(&image.config)?;
        let mut size = 0;
        for layer in &built.layers {
            size += store.layer_info(layer.id())?.content;
        }
        running
            .status_of(format!("writing image {id}"), "", 0)
            .finish(0);
        images.push(Image {
            id,
            manifest: None,
            layers: Some(built.layers.iter().map(Layer::id).collect()),
            platform: image.platform.to_string(),
            size,
            created: image.created,
            annotations: image.annotations.clone(),
        });
    }
    let variants = match &set.index {
        None => None,
        Some((_, bytes)) => {
            let ids = images.iter().map(|image| image.id.clone());
            Some(Variants {
                index: store.blobs().put(bytes)?,
                images: ids.collect(),
            })
        }
    };
    let host = PlatformMatcher::runnable(&Platform::host());
    let usual = set
        .images
        .iter()
        .find(|image| host.matches(&image.platform))
        .or(set.images.first());
    let Some(usual) = usual else {
        return Ok(());
    };
    let given = NewNames {
        names,
        digest: None,
        variants: variants.as_ref(),
    };
    store.put_images(&images, &usual.config_descriptor.digest, given)?;
    for name in names {
        running
            .status_of(format!("naming to {name}"), "", 0)
            .finish(0);
    }
    Ok(())
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
