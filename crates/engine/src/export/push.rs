//! Pushes images to the registries of their names.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use oci::{Descriptor, Digest, Reference};
use progress::{RunningVertex, StatusHandle};
use registry::{BlobSource, PushOptions};
use store::Layer;

use super::image::{AssembledSet, Assembly};
use crate::EngineError;
use crate::build::Built;
use crate::request::ImageOutput;
use crate::step::Shared;

/// Blobs that are sent at once to one repository.
const MOST_AT_ONCE: usize = 4;

/// Pushes the result under all names: blobs, then manifests, then the index.
pub(crate) fn push(
    assembly: &Assembly<'_>,
    output: &ImageOutput,
    built: &[Built],
    multi_platform: bool,
    names: &[Reference],
) -> Result<AssembledSet, EngineError> {
    if names.is_empty() {
        return Err(EngineError::Request(
            "nothing to push to: give the image a name with --tag".to_owned(),
        ));
    }
    let shared = assembly.shared;
    let set = assembly.make(built, multi_platform)?;
    let mut blobs: BTreeMap<Digest, BlobToPush> = BTreeMap::new();
    for (built, image) in built.iter().zip(&set.images) {
        let base = built.build.config.rootfs.diff_ids.len();
        for (index, (layer, kept)) in image.layers.iter().zip(&built.layers).enumerate() {
            let descriptor = layer.descriptor.clone();
            let blob = BlobToPush {
                source: BlobSource::File(shared.store.blobs().path(&descriptor.digest)),
                from: match index < base {
                    true => origin_of(shared, kept)?,
                    false => None,
                },
                descriptor,
            };
            blobs.insert(layer.descriptor.digest.clone(), blob);
        }
        let config = BlobToPush {
            descriptor: image.config_descriptor.clone(),
            source: BlobSource::Bytes(image.config.clone().into()),
            from: None,
        };
        blobs.insert(image.config_descriptor.digest.clone(), config);
    }
    for said in &set.attestations {
        for (descriptor, bytes) in said.layers.iter().chain([&said.config]) {
            let blob = BlobToPush {
                descriptor: descriptor.clone(),
                source: BlobSource::Bytes(bytes.clone().into()),
                from: None,
            };
            blobs.insert(descriptor.digest.clone(), blob);
        }
    }
    let mut manifests: Vec<(Descriptor, Vec<u8>)> = set
        .images
        .iter()
        .map(|image| (image.manifest_descriptor.clone(), image.manifest.clone()))
        .collect();
    let said = set.attestations.iter();
    manifests.extend(said.map(|said| (said.descriptor.clone(), said.manifest.clone())));
    manifests.extend(set.index.clone());
    let blobs: Vec<BlobToPush> = blobs.into_values().collect();
    for name in names {
        let running = assembly.running;
        push_blobs(shared, name, &blobs, running)?;
        push_manifests(shared, name, &manifests, output.push_by_digest, running)?;
    }
    Ok(set)
}

/// A blob to push.
#[derive(Debug, Clone)]
pub(crate) struct BlobToPush {
    pub(crate) descriptor: Descriptor,
    pub(crate) source: BlobSource,
    /// A repository that it came from.
    pub(crate) from: Option<Reference>,
}

/// Returns where a layer of an image came from: a registry that has it need not be sent it again.
pub(crate) fn origin_of(shared: &Shared, layer: &Layer) -> Result<Option<Reference>, EngineError> {
    let origin = shared.store.layer_info(layer.id())?.origin;
    Ok(Reference::parse_normalized(&origin).ok())
}

/// How much of the blobs has been sent, told as one number.
struct Sent {
    of_each: Vec<AtomicU64>,
    told: AtomicU64,
    status: StatusHandle,
}

impl Sent {
    /// A megabyte at a time is often enough for eyes.
    const STEP: u64 = 1 << 20;

    fn note(&self, number: usize, bytes: u64) {
        self.of_each[number].store(bytes, Ordering::Relaxed);
        let each = self
            .of_each
            .iter()
            .map(|bytes| bytes.load(Ordering::Relaxed));
        let sum: u64 = each.sum();
        // An upload that begins again brings the number down.
        if sum.abs_diff(self.told.load(Ordering::Relaxed)) >= Self::STEP {
            self.told.store(sum, Ordering::Relaxed);
            self.status.update(sum);
        }
    }
}

/// Sends blobs to a repository, as far as it has not got them, and tells of the bytes.
pub(crate) fn push_blobs(
    shared: &Shared,
    name: &Reference,
    blobs: &[BlobToPush],
    running: &RunningVertex,
) -> Result<(), EngineError> {
    let total = blobs.iter().map(|blob| blob.descriptor.size).sum();
    let status = running.status_of(format!("pushing layers for {name}"), "", total);
    let sent = Arc::new(Sent {
        of_each: blobs.iter().map(|_| AtomicU64::new(0)).collect(),
        told: AtomicU64::new(0),
        status: status.clone(),
    });
    let queue = Mutex::new(blobs.iter().enumerate());
    let failure = Mutex::new(None);
    let images = &shared.images;
    std::thread::scope(|scope| {
        for _ in 0..MOST_AT_ONCE.min(blobs.len()) {
            scope.spawn(|| {
                loop {
                    let next = queue
                        .lock()
                        .unwrap_or_else(|poison| poison.into_inner())
                        .next();
                    let Some((number, blob)) = next else {
                        return;
                    };
                    let told = Arc::clone(&sent);
                    let options = PushOptions {
                        progress: Some(Arc::new(move |bytes| told.note(number, bytes))),
                        mount_from: blob.from.iter().cloned().collect(),
                        ..PushOptions::default()
                    };
                    let (descriptor, source) = (&blob.descriptor, &blob.source);
                    let push = images
                        .client()
                        .push_blob(name, descriptor, source, &options);
                    if let Err(error) = images.wait(push) {
                        let mut failure =
                            failure.lock().unwrap_or_else(|poison| poison.into_inner());
                        failure.get_or_insert(error);
                        return;
                    }
                    // Also where the registry had it.
                    sent.note(number, blob.descriptor.size);
                }
            });
        }
    });
    match failure
        .into_inner()
        .unwrap_or_else(|poison| poison.into_inner())
    {
        Some(error) => Err(pushing(name, error)),
        None => {
            status.finish(total);
            Ok(())
        }
    }
}

/// Says of a registry's error what was to be sent.
fn pushing(name: &Reference, error: EngineError) -> EngineError {
    match error {
        EngineError::Registry(source) => EngineError::Push {
            reference: Box::new(name.clone()),
            source: Box::new(source),
        },
        other => other,
    }
}

pub(crate) fn push_manifests(
    shared: &Shared,
    name: &Reference,
    manifests: &[(Descriptor, Vec<u8>)],
    by_digest: bool,
    running: &RunningVertex,
) -> Result<(), EngineError> {
    let images = &shared.images;
    let last = manifests.len().saturating_sub(1);
    for (number, (descriptor, bytes)) in manifests.iter().enumerate() {
        let tagged = number == last && !by_digest;
        let target = match tagged {
            true => name.clone(),
            false => name
                .clone()
                .without_version()
                .with_digest(descriptor.digest.clone()),
        };
        let what = format!("pushing manifest for {target}");
        let status = running.status_of(&what, "", 0);
        let push = images
            .client()
            .push_manifest(&target, &descriptor.media_type, bytes);
        images.wait(push).map_err(|error| pushing(name, error))?;
        status.finish(0);
    }
    Ok(())
}
