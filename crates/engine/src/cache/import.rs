//! Reads portable caches, and brings in what they have for a key.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci::media_type::{self, Kind};
use oci::{Descriptor, Digest, Index, Manifest, Platform, Reference};
use progress::{Outcome, RunningVertex, Sink, Vertex};
use store::{Key, Layer, LayerId};

use super::config::{MEDIA_TYPE, MOST_BYTES, PortableCache, PortableRecord};
use super::{inline, layout};
use crate::request::CacheSource;
use crate::source::image::ImageContent;
use crate::source::pull;
use crate::step::Shared;
use crate::{Cancel, EngineError};

/// What the caches of one build have, by key: the first cache that has one counts.
#[derive(Debug, Default)]
pub(crate) struct Imports {
    found: HashMap<Key, (Arc<Imported>, PortableRecord)>,
    /// The same by the content of the inputs.
    by_content: HashMap<Key, (Arc<Imported>, PortableRecord)>,
    /// The operations of these.
    operations: HashSet<Key>,
}

/// One cache, and where its blobs are.
#[derive(Debug)]
struct Imported {
    /// As the user named it.
    source: String,
    cache: PortableCache,
    blobs: Blobs,
}

#[derive(Debug, Clone)]
enum Blobs {
    Directory(PathBuf),
    Registry(Reference),
}

/// A result that was brought in.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// The layers of each output.
    pub(crate) outputs: Vec<Vec<Layer>>,
    /// Milliseconds it took to make.
    pub(crate) took: u64,
    /// What its inputs held where it was made, if that is known.
    pub(crate) content: Option<Key>,
}

/// By what a result is looked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted<'a> {
    Key(&'a Key),
    Content(&'a Key),
}

impl Imports {
    /// Reads caches, all at once. What cannot be read is told and left out.
    pub(crate) fn load(
        shared: &Shared,
        sources: &[CacheSource],
        platforms: &[Platform],
        sink: &Sink,
    ) -> Self {
        let mut imports = Self::default();
        let loaded: Vec<Vec<Imported>> = std::thread::scope(|scope| {
            let threads: Vec<_> = sources
                .iter()
                .map(|source| scope.spawn(move || load_one(shared, source, platforms, sink)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_default())
                .collect()
        });
        for imported in loaded.into_iter().flatten() {
            let imported = Arc::new(imported);
            for (key, record) in imported.cache.records() {
                let entry = (Arc::clone(&imported), record.clone());
                if let Some(content) = record.content {
                    imports.operations.insert(record.operation);
                    let entry = entry.clone();
                    imports.by_content.entry(content).or_insert(entry);
                }
                imports.found.entry(*key).or_insert(entry);
            }
        }
        imports
    }

    /// Returns whether there is something for a key.
    pub(crate) fn has(&self, key: &Key) -> bool {
        self.found.contains_key(key)
    }

    /// Returns the cache that has something.
    pub(crate) fn source_of(&self, wanted: Wanted<'_>) -> Option<&str> {
        let (imported, _) = self.entry(wanted)?;
        Some(&imported.source)
    }

    fn entry(&self, wanted: Wanted<'_>) -> Option<&(Arc<Imported>, PortableRecord)> {
        match wanted {
            Wanted::Key(key) => self.found.get(key),
            Wanted::Content(content) => self.by_content.get(content),
        }
    }

    /// Returns whether there may be something for an operation by the content of its inputs.
    pub(crate) fn knows_operation(&self, operation: &Key) -> bool {
        self.operations.contains(operation)
    }

    /// Returns whether there is something for an operation on this content.
    pub(crate) fn has_content(&self, content: &Key) -> bool {
        self.by_content.contains_key(content)
    }

    /// Returns the layers of what has one output and is here, though nobody may have asked for it.
    pub(crate) fn present(
        &self,
        shared: &Shared,
        key: &Key,
    ) -> Result<Option<Vec<LayerId>>, EngineError> {
        let Some((imported, record)) = self.found.get(key) else {
            return Ok(None);
        };
        let [Some(top)] = record.outputs.as_slice() else {
            return Ok(None);
        };
        let chain = imported.cache.chain(*top).into_iter();
        let pairs: Vec<(Descriptor, Digest)> = chain
            .map(|layer| (layer.descriptor.clone(), layer.diff_id.clone()))
            .collect();
        let layers = pull::present(shared, &pairs)?;
        Ok(layers.map(|layers| layers.iter().map(Layer::id).collect()))
    }

    /// Brings in what there is: blobs are checked on their way, and unpacked like those of images.
    pub(crate) fn fetch(
        &self,
        shared: &Shared,
        wanted: Wanted<'_>,
        running: &RunningVertex,
        cancel: &Cancel,
    ) -> Result<Option<Fetched>, EngineError> {
        let Some((imported, record)) = self.entry(wanted) else {
            return Ok(None);
        };
        let mut outputs = Vec::with_capacity(record.outputs.len());
        for top in &record.outputs {
            let chain = top.map_or_else(Vec::new, |top| imported.cache.chain(top));
            let pairs: Vec<(Descriptor, Digest)> = chain
                .iter()
                .map(|layer| (layer.descriptor.clone(), layer.diff_id.clone()))
                .collect();
            let reference = match &imported.blobs {
                Blobs::Registry(reference) => reference.clone(),
                Blobs::Directory(directory) => {
                    take_blobs(shared, directory, &pairs, cancel)?;
                    Reference::parse_normalized("cache").expect("a plain name")
                }
            };
            let layers = pull::pull(shared, &reference, &pairs, running, cancel)?;
            for (layer, known) in layers.iter().zip(&chain) {
                // What does not say when it was made was made now.
                if known.created > 0 {
                    shared.store.set_layer_age(layer.id(), known.created)?;
                }
            }
            outputs.push(layers);
        }
        Ok(Some(Fetched {
            outputs,
            took: record.took,
            content: record.content,
        }))
    }
}

/// Copies the blobs of layers that are not unpacked yet from a directory into the store, checked.
fn take_blobs(
    shared: &Shared,
    directory: &Path,
    layers: &[(Descriptor, Digest)],
    cancel: &Cancel,
) -> Result<(), EngineError> {
    let missing = pull::missing(shared, layers)?;
    for descriptor in missing {
        if shared.store.blobs().size(&descriptor.digest) == Some(descriptor.size) {
            continue;
        }
        let path = directory.join(oci::layout::blob_path(&descriptor.digest));
        let file = std::fs::File::open(&path).map_err(EngineError::io("open", &path))?;
        let mut from = file.take(descriptor.size.saturating_add(1));
        let mut writer = shared.store.blobs().writer()?;
        let mut buffer = vec![0; 1 << 18];
        loop {
            if cancel.is_requested() {
                return Err(EngineError::Canceled);
            }
            match from
                .read(&mut buffer)
                .map_err(EngineError::io("read", &path))?
            {
                0 => break,
                count => writer.append(&buffer[..count])?,
            }
        }
        writer.commit_volatile(Some((&descriptor.digest, descriptor.size)))?;
    }
    Ok(())
}

fn load_one(
    shared: &Shared,
    source: &CacheSource,
    platforms: &[Platform],
    sink: &Sink,
) -> Vec<Imported> {
    let name = format!("importing cache manifest from {source}");
    let running = sink.vertex(Vertex::named(name)).start();
    let loaded = match source {
        CacheSource::Local {
            directory,
            tag,
            digest,
        } => layout::read(directory, tag, digest.as_ref()).map(|cache| {
            let blobs = Blobs::Directory(directory.clone());
            vec![(cache, blobs)]
        }),
        CacheSource::Registry(reference) => from_registry(shared, reference, platforms),
    };
    match loaded {
        Ok(loaded) => {
            running.complete(Outcome::Done);
            let source = source.to_string();
            let imported = loaded.into_iter().map(|(cache, blobs)| Imported {
                source: source.clone(),
                cache,
                blobs,
            });
            imported.collect()
        }
        Err(error) => {
            let text = crate::error::chain(&error);
            running.warn(format!("{}{text}", not_used(&source.to_string())));
            running.complete(Outcome::Done);
            Vec::new()
        }
    }
}

/// Begins the warning of a cache that cannot be read.
pub(crate) fn not_used(source: &str) -> String {
    format!("cache {source} is not used: ")
}

/// Reads the cache behind a name: a cache of its own, or the one inside an image.
fn from_registry(
    shared: &Shared,
    reference: &Reference,
    platforms: &[Platform],
) -> Result<Vec<(PortableCache, Blobs)>, EngineError> {
    if let Some(cache) = read_remote(shared, reference)? {
        let blobs = Blobs::Registry(reference.clone());
        return Ok(vec![(cache, blobs)]);
    }
    let mut found = Vec::new();
    for platform in platforms {
        let image = shared.images.resolve(reference, platform, true)?;
        if let ImageContent::Registry(layers) = &image.content {
            let cache = inline::read(&image.config, layers);
            found.push((cache, Blobs::Registry(reference.clone())));
        }
    }
    Ok(found)
}

/// Reads a cache in a registry; `None` if the name is an image's.
pub(crate) fn read_remote(
    shared: &Shared,
    reference: &Reference,
) -> Result<Option<PortableCache>, EngineError> {
    let images = &shared.images;
    let resolved = images.wait(images.client().resolve(reference))?;
    let Some(config) = config_in(&resolved.raw) else {
        return Ok(None);
    };
    let fetch = images
        .client()
        .fetch_blob_bytes(reference, &config, MOST_BYTES);
    let document = images.wait(fetch)?;
    let cache = PortableCache::parse(&document).map_err(|error| EngineError::Image {
        subject: reference.to_string(),
        reason: format!("its cache cannot be read: {error}"),
    })?;
    Ok(Some(cache))
}

/// Returns the descriptor of a cache's document in a manifest, or in an index as BuildKit once wrote it.
fn config_in(raw: &[u8]) -> Option<Descriptor> {
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(raw) {
        return (manifest.config.media_type == MEDIA_TYPE).then_some(manifest.config);
    }
    let index: Index = serde_json::from_slice(raw).ok()?;
    let is_layer =
        |entry: &Descriptor| matches!(media_type::kind(&entry.media_type), Kind::Layer { .. });
    let config = index
        .manifests
        .iter()
        .find(|entry| entry.media_type == MEDIA_TYPE)?;
    let rest = index.manifests.iter().filter(|entry| *entry != config);
    rest.clone().all(is_layer).then(|| config.clone())
}
