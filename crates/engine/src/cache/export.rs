//! Writes what a build has as a portable cache.

use std::collections::BTreeMap;
use std::sync::Arc;

use oci::media_type::Naming;
use oci::{Descriptor, Digest, Manifest, Reference};
use progress::{Outcome, RunningVertex, Sink, Vertex};
use registry::BlobSource;
use store::{Key, Layer, LayerId};

use super::config::{Blob, MEDIA_TYPE, PortableCache, PortableRecord};
use super::import;
use super::inline::InlineRecord;
use super::layout::CacheDirectory;
use crate::EngineError;
use crate::build::Built;
use crate::export::ahead::Ahead;
use crate::export::{layers, push};
use crate::matching::{InputUse, content_key};
use crate::request::{CacheMode, CachePlace, CacheTarget, LayerOptions};
use crate::snapshot::Snapshot;
use crate::step::Shared;
use crate::vertex::{RecordInfo, VertexAction, VertexWork};

/// How often a name is read again that others push to at the same time.
const ATTEMPTS: usize = 8;

/// Writes all caches that are asked for. One that cannot be written is told; the build is not to blame.
pub(crate) fn export(
    shared: &Shared,
    targets: &[CacheTarget],
    works: &[Arc<VertexWork>],
    built: &[Built],
    epoch: Option<i64>,
    sink: &Sink,
    ahead: Option<&Ahead>,
) {
    std::thread::scope(|scope| {
        for target in targets {
            if target.place == CachePlace::Inline {
                continue;
            }
            let name = format!("exporting cache to {}", target.place);
            let running = sink.vertex(Vertex::named(name)).start();
            let finish = |running: RunningVertex, written: Result<(), EngineError>| {
                if let Err(error) = written {
                    let text = crate::error::chain(&error);
                    running.warn(format!("cache {} is not written: {text}", target.place));
                }
                running.complete(Outcome::Done);
            };
            // One after the other, as they mostly want the same blobs; what is sent is sent at once.
            match collect(shared, target, works, built, epoch, ahead) {
                Ok(cache) => {
                    scope.spawn(move || {
                        let written = write(shared, target, cache, &running);
                        finish(running, written);
                    });
                }
                Err(error) => finish(running, Err(error)),
            }
        }
    });
}

/// Returns what the config of an image says of the keys its layers were made for.
pub(crate) fn inline_records(
    shared: &Shared,
    targets: &[CacheTarget],
    works: &[Arc<VertexWork>],
    layers: &[Layer],
) -> Result<Vec<InlineRecord>, EngineError> {
    let mut records = Vec::new();
    if !targets
        .iter()
        .any(|target| target.place == CachePlace::Inline)
    {
        return Ok(records);
    }
    let ids: Vec<LayerId> = layers.iter().map(Layer::id).collect();
    for work in works {
        let output = match info_of(shared, work)? {
            Some(info) => match <[_; 1]>::try_from(info.outputs) {
                Ok([output]) => output,
                Err(_) => continue,
            },
            // Steps below one that was found in another image were not looked up: that image has their records.
            None if !matches!(work.action, VertexAction::Operation(_)) => continue,
            None => match work.context.imports.present(shared, &work.record_key)? {
                Some(output) => output,
                None => continue,
            },
        };
        if ids.starts_with(&output) {
            records.push(InlineRecord {
                key: Digest::from_sha256(work.record_key).to_string(),
                operation: Digest::from_sha256(work.operation).to_string(),
                layers: output.len(),
            });
        }
    }
    records.sort_by(|a, b| (a.layers, &a.key).cmp(&(b.layers, &b.key)));
    records.dedup();
    Ok(records)
}

/// Returns what is recorded of a step; sources are not cached, they are found as they are.
fn info_of(shared: &Shared, work: &VertexWork) -> Result<Option<RecordInfo>, EngineError> {
    if !matches!(work.action, VertexAction::Operation(_)) {
        return Ok(None);
    }
    let record = shared.store.find(&work.record_key)?;
    Ok(record.and_then(|record| serde_json::from_value(record.info).ok()))
}

/// Returns the key of a result by the content of its inputs; `None` where they are not here.
fn content_of(shared: &Shared, work: &VertexWork, info: &RecordInfo) -> Option<Key> {
    if let Some(known) = &info.content {
        return crate::history::unhex(known);
    }
    let VertexAction::Operation(op) = &work.action else {
        return None;
    };
    if info.inputs.len() != work.inputs.len() {
        return None;
    }
    let found = || -> Result<Option<Key>, EngineError> {
        let mut inputs = Vec::with_capacity(info.inputs.len());
        for ((input, _), layers) in work.inputs.iter().zip(&info.inputs) {
            inputs.push(match (&input.action, layers) {
                (VertexAction::Context(tree), None) => Snapshot::Context(Arc::clone(tree)),
                (_, Some(layers)) => match shared.store.layers(layers)? {
                    Some(layers) => Snapshot::Layers(layers),
                    None => return Ok(None),
                },
                (_, None) => return Ok(None),
            });
        }
        let uses = InputUse::of(op, inputs.len());
        content_key(shared, &work.operation, &inputs, &uses).map(Some)
    };
    found().unwrap_or_else(|error| {
        tracing::debug!(%error, name = work.name, "a result is exported without its content");
        None
    })
}

/// Gathers the results of a build with their layers as blobs.
fn collect(
    shared: &Shared,
    target: &CacheTarget,
    works: &[Arc<VertexWork>],
    built: &[Built],
    epoch: Option<i64>,
    ahead: Option<&Ahead>,
) -> Result<PortableCache, EngineError> {
    let now = shared.store.now();
    let images: Vec<Vec<LayerId>> = built
        .iter()
        .map(|built| built.layers.iter().map(Layer::id).collect())
        .collect();
    let mut cache = PortableCache::default();
    let mut encoder = Encoder {
        shared,
        options: &target.layers,
        epoch,
        ahead,
        known: BTreeMap::new(),
    };
    'works: for work in works {
        let Some(info) = info_of(shared, work)? else {
            continue;
        };
        let in_image = |output: &Vec<LayerId>| images.iter().any(|image| image.starts_with(output));
        if target.mode == CacheMode::Min && !info.outputs.iter().all(in_image) {
            continue;
        }
        let mut outputs = Vec::with_capacity(info.outputs.len());
        for output in &info.outputs {
            // Collected meanwhile: what remains is still worth having.
            let Some(layers) = shared.store.layers(output)? else {
                continue 'works;
            };
            let Some(chain) = encoder.chain(&layers)? else {
                continue 'works;
            };
            outputs.push(cache.add_chain(chain));
        }
        let record = PortableRecord {
            operation: work.operation,
            content: content_of(shared, work, &info),
            outputs,
            name: work.name.clone(),
            took: info.took,
            confirmed: now,
        };
        cache.add_record(work.record_key, record);
    }
    Ok(cache)
}

/// Makes blobs of layers, each once.
struct Encoder<'a> {
    shared: &'a Shared,
    options: &'a LayerOptions,
    epoch: Option<i64>,
    ahead: Option<&'a Ahead>,
    known: BTreeMap<LayerId, Option<Blob>>,
}

impl Encoder<'_> {
    /// Returns a chain as blobs; `None` if a layer cannot be written as the tar it is known by.
    fn chain(&mut self, layers: &[Layer]) -> Result<Option<Vec<Blob>>, EngineError> {
        let mut chain = Vec::with_capacity(layers.len());
        for (index, layer) in layers.iter().enumerate() {
            let known = match self.known.get(&layer.id()) {
                Some(known) => known.clone(),
                None => {
                    let made = self.encode(&layers[..index], layer)?;
                    self.known.insert(layer.id(), made.clone());
                    made
                }
            };
            match known {
                Some(known) => chain.push(known),
                None => return Ok(None),
            }
        }
        Ok(Some(chain))
    }

    fn encode(&self, below: &[Layer], layer: &Layer) -> Result<Option<Blob>, EngineError> {
        let store = &self.shared.store;
        let info = store.layer_info(layer.id())?;
        let from_image = store.is_image_layer(layer.id())?;
        let clamp = match from_image {
            true => None,
            false => self.epoch,
        };
        if let Some(ahead) = self.ahead {
            ahead.take(layer);
        }
        let encoded = layers::encode_one(self.shared, below, layer, clamp, self.options, None)?;
        if let (true, Some((diff_id, size))) = (from_image, &info.tar)
            && encoded.tar.diff_id != *diff_id
        {
            // Written anew it is another tar; the layer stays that of the image it came with.
            store.set_layer_tar(layer.id(), diff_id, *size)?;
            return Ok(None);
        }
        let created = self.epoch.unwrap_or(info.created);
        Ok(Some((encoded.descriptor, encoded.tar.diff_id, created)))
    }
}

fn write(
    shared: &Shared,
    target: &CacheTarget,
    mut cache: PortableCache,
    running: &RunningVertex,
) -> Result<(), EngineError> {
    let naming = match target.layers.oci_media_types {
        Some(false) => Naming::Docker,
        _ => Naming::Oci,
    };
    match &target.place {
        CachePlace::Inline => Ok(()),
        CachePlace::Local { directory, tag } => {
            let directory = CacheDirectory::open(directory)?;
            if let Some(there) = directory.read(tag) {
                cache.merge(&there, shared.store.now());
            }
            directory.write(tag, &cache, naming, |digest| {
                Ok(shared.store.blobs().open(digest)?)
            })
        }
        CachePlace::Registry(reference) => push_merged(shared, reference, &cache, naming, running),
    }
}

/// Pushes a cache together with what is there under its name.
///
/// A registry cannot replace a tag only if it is still what was read, so it is looked at before and after, and
/// everything is done again if someone else was there.
fn push_merged(
    shared: &Shared,
    reference: &Reference,
    own: &PortableCache,
    naming: Naming,
    running: &RunningVertex,
) -> Result<(), EngineError> {
    let images = &shared.images;
    let head = || {
        let head = images.wait(images.client().head(reference));
        head.ok().map(|descriptor| descriptor.digest)
    };
    // Set where the registry has lost what it says it has.
    let mut alone = false;
    for attempt in 0.. {
        let before = head();
        let there = match before {
            Some(_) if !alone => import::read_remote(shared, reference).ok().flatten(),
            _ => None,
        };
        let last = attempt + 1 >= ATTEMPTS;
        if attempt > 0 && !alone && there.as_ref().is_some_and(|there| there.includes(own)) {
            return Ok(());
        }
        let mut cache = own.clone();
        if let Some(there) = &there {
            cache.merge(there, shared.store.now());
        }
        let (document, layers) = cache.to_document();
        let config = Descriptor::of(MEDIA_TYPE, &document);
        let (_, owned) = own.to_document();
        let mut blobs: Vec<push::BlobToPush> = owned
            .into_iter()
            .map(|layer| {
                let path = shared.store.blobs().path(&layer.digest);
                push::BlobToPush {
                    descriptor: layer,
                    source: BlobSource::File(path),
                    from: None,
                }
            })
            .collect();
        blobs.push(push::BlobToPush {
            descriptor: config.clone(),
            source: BlobSource::Bytes(document.into()),
            from: None,
        });
        push::push_blobs(shared, reference, &blobs, running)?;
        let manifest = Manifest::new(naming, config, layers);
        let manifest = oci::json::compact(&manifest).expect("a manifest can be written as JSON");
        let descriptor = Descriptor::of(naming.manifest(), &manifest);
        if head() != before && !last {
            continue;
        }
        let pushed = descriptor.digest.clone();
        let manifests = [(descriptor, manifest)];
        match push::push_manifests(shared, reference, &manifests, false, running) {
            Err(_) if there.is_some() && !last => {
                alone = true;
                continue;
            }
            result => result?,
        }
        if head().is_none_or(|digest| digest == pushed) || last {
            return Ok(());
        }
    }
    Ok(())
}
