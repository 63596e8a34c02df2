//! Cache mounts that travel between machines, as an OCI artifact: `lapstrake cache mounts export|import`.
//!
//! *The artifact*: a manifest whose config is a [`Document`] and whose layers are the directories, each a tar of a
//! plain tree. Nothing in it depends on the machine or on the time of the export: equal directories make equal bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use oci::media_type::Naming;
use oci::{Descriptor, Digest, Index, Manifest, Reference};
use progress::{RunningVertex, Sink, Vertex};
use registry::BlobSource;
use rootfs::apply::{ApplyOptions, Devices, Ownership, apply_layer};
use rootfs::compress::CompressOptions;
use rootfs::diff::{DiffOptions, write_layer};
use rootfs::{Form, LayerDir};
use serde::{Deserialize, Serialize};

use super::layout::{Artifact, CacheDirectory, MOST_MANIFEST, read_blob, read_file};
use crate::export::image::layer_type;
use crate::export::layers::compression_of;
use crate::export::{ahead, archive, push};
use crate::images::load::Files;
use crate::request::{ArchiveOutput, Destination, LayerOptions};
use crate::source::pull::Stoppable;
use crate::step::Shared;
use crate::step::cache_mount::{CacheMount, EXCLUSIVE};
use crate::{Cancel, Engine, EngineError};

/// The media type of [`Document`].
const MEDIA_TYPE: &str = "application/vnd.lapstrake.cache-mounts.config.v1+json";
/// What the artifact is, for registries that look.
const ARTIFACT_TYPE: &str = "application/vnd.lapstrake.cache-mounts.v1";
/// The form of [`Document`]; one of a newer form is not read.
const VERSION: u32 = 1;

/// Where cache mounts are taken to, or from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountsPlace {
    /// An archive of an OCI layout; without a path on standard output or input.
    Archive(Option<PathBuf>),
    /// A directory in OCI layout: what else it holds stays.
    Directory {
        path: PathBuf,
        tag: String,
    },
    Registry(Reference),
}

impl std::fmt::Display for MountsPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Archive(None) => f.write_str("-"),
            Self::Archive(Some(path)) | Self::Directory { path, .. } => path.display().fmt(f),
            Self::Registry(reference) => f.write_str(&reference.familiar()),
        }
    }
}

/// A cache mount that was taken out or brought in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovedMount {
    /// Of its directory.
    pub name: String,
    /// As the Dockerfile has it.
    pub id: String,
    /// Of the compressed tar.
    pub digest: Digest,
    pub size: u64,
    /// It was there already and stayed as it was.
    pub kept: bool,
}

/// The config of the artifact.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Document {
    version: u32,
    /// By id.
    mounts: Vec<Entry>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    /// Names the directory in every store: see [`CacheMount`].
    name: String,
    id: String,
    /// Of the tar.
    diff_id: Digest,
    /// Of the blob, which is among the layers of the manifest.
    layer: Digest,
}

impl Engine {
    /// Writes cache mounts, by their names, as one artifact. One that a step uses cannot be written.
    pub fn export_mounts(
        &self,
        mounts: &BTreeMap<String, String>,
        place: &MountsPlace,
        options: &LayerOptions,
        sink: &Sink,
        cancel: &Cancel,
    ) -> Result<Vec<MovedMount>, EngineError> {
        let running = sink.vertex(Vertex::named(format!("exporting cache mounts to {place}")));
        let running = running.start();
        let result = export(&self.shared, mounts, place, options, &running, cancel);
        running.conclude(&result, |error| crate::error::chain(error));
        result
    }

    /// Brings in the cache mounts of an artifact whose ids are wanted. What is there already stays, unless it is to be
    /// replaced.
    pub fn import_mounts(
        &self,
        place: &MountsPlace,
        wanted: &dyn Fn(&str) -> bool,
        replace: bool,
        sink: &Sink,
        cancel: &Cancel,
    ) -> Result<Vec<MovedMount>, EngineError> {
        let running = sink.vertex(Vertex::named(format!(
            "importing cache mounts from {place}"
        )));
        let running = running.start();
        // Blobs of an archive are in the store only for that long.
        let _blobs = self.store().hold_blobs();
        let work = || {
            let incoming = self.open_artifact(place, cancel)?;
            incoming.import(wanted, replace, &running, cancel)
        };
        let result = work();
        running.conclude(&result, |error| crate::error::chain(error));
        result
    }

    fn open_artifact<'a>(
        &'a self,
        place: &'a MountsPlace,
        cancel: &Cancel,
    ) -> Result<Incoming<'a>, EngineError> {
        let files = match place {
            MountsPlace::Archive(path) => {
                let archive: Box<dyn Read> = match path {
                    Some(path) => {
                        Box::new(File::open(path).map_err(EngineError::io("open", path))?)
                    }
                    None => Box::new(std::io::stdin()),
                };
                self.read_archive(archive, cancel)?
            }
            MountsPlace::Directory { .. } | MountsPlace::Registry(_) => Files::default(),
        };
        let shared = &self.shared;
        Ok(Incoming {
            shared,
            place,
            files,
        })
    }
}

fn export(
    shared: &Shared,
    mounts: &BTreeMap<String, String>,
    place: &MountsPlace,
    options: &LayerOptions,
    running: &RunningVertex,
    cancel: &Cancel,
) -> Result<Vec<MovedMount>, EngineError> {
    // Removed at the end, and after a killed exporter by the next builder.
    let scratch = shared.store.new_layer()?;
    let mut entries = Vec::new();
    let mut blobs: BTreeMap<Digest, (Descriptor, PathBuf)> = BTreeMap::new();
    let mut moved = Vec::new();
    for (name, id) in mounts {
        let status = running.status_of(id.clone(), "packing", 0);
        let path = scratch.path().join(name);
        let (descriptor, diff_id) = pack(shared, name, id, &path, options, cancel)?;
        status.finish(descriptor.size);
        entries.push(Entry {
            name: name.clone(),
            id: id.clone(),
            diff_id,
            layer: descriptor.digest.clone(),
        });
        moved.push(MovedMount {
            name: name.clone(),
            id: id.clone(),
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            kept: false,
        });
        blobs.insert(descriptor.digest.clone(), (descriptor, path));
    }
    entries.sort_by(|a, b| (&a.id, &a.name).cmp(&(&b.id, &b.name)));
    moved.sort_by(|a, b| (&a.id, &a.name).cmp(&(&b.id, &b.name)));
    let document = Document {
        version: VERSION,
        mounts: entries,
    };
    let artifact = Artifact {
        naming: Naming::Oci,
        kind: Some(ARTIFACT_TYPE),
        media_type: MEDIA_TYPE,
        document: oci::json::compact(&document).expect("a document can be written as JSON"),
        blobs: blobs.values().map(|(blob, _)| blob.clone()).collect(),
    };
    let paths = blobs.into_iter().map(|(digest, (_, path))| (digest, path));
    write(shared, place, &artifact, &paths.collect(), running)?;
    Ok(moved)
}

/// Writes one directory as a compressed tar; returns its blob and the digest of the tar.
fn pack(
    shared: &Shared,
    name: &str,
    id: &str,
    path: &Path,
    options: &LayerOptions,
    cancel: &Cancel,
) -> Result<(Descriptor, Digest), EngineError> {
    let folder = shared.store.root().join("mounts").join(name);
    let mount = CacheMount::acquire(&folder, EXCLUSIVE)?.ok_or_else(|| in_use(id))?;
    let dir = LayerDir::open(mount.path())?;
    let (compression, _) = compression_of(options)?;
    let blob = File::create(path).map_err(EngineError::io("create", path))?;
    let writer = ahead::Stoppable {
        inner: blob,
        stop: Some(cancel),
    };
    let diff = DiffOptions::new(Form::Plain);
    let compress = CompressOptions::new(compression);
    let written = write_layer(&dir, None, &diff, &compress, writer);
    if cancel.is_requested() {
        return Err(EngineError::Canceled);
    }
    let written = written?;
    let kind = layer_type(Naming::Oci, compression.format());
    let descriptor = Descriptor::new(kind, written.blob, written.blob_size);
    Ok((descriptor, written.layer.diff_id))
}

fn write(
    shared: &Shared,
    place: &MountsPlace,
    artifact: &Artifact,
    paths: &BTreeMap<Digest, PathBuf>,
    running: &RunningVertex,
) -> Result<(), EngineError> {
    let open = |digest: &Digest| {
        let path = &paths[digest];
        File::open(path).map_err(EngineError::io("open", path))
    };
    let (config, manifest, entry) = artifact.documents();
    match place {
        MountsPlace::Directory { path, tag } => {
            CacheDirectory::open(path)?.put(tag, artifact, open)
        }
        MountsPlace::Archive(path) => {
            let output = ArchiveOutput {
                destination: match path {
                    Some(path) => Destination::Path(path.clone()),
                    None => Destination::Stdout,
                },
                tar: true,
                names: Vec::new(),
                layers: LayerOptions::default(),
                annotations: Vec::new(),
            };
            let mut begun = archive::begin(shared, &output)?;
            for blob in &artifact.blobs {
                let mut content = open(&blob.digest)?;
                begun.writer.blob(&blob.digest, blob.size, &mut content)?;
            }
            begun.writer.bytes(&config.digest, &artifact.document)?;
            begun.writer.bytes(&entry.digest, &manifest)?;
            archive::finish_with(begun, vec![entry], None)
        }
        MountsPlace::Registry(reference) => {
            let blobs = artifact.blobs.iter().map(|blob| push::BlobToPush {
                descriptor: blob.clone(),
                source: BlobSource::File(paths[&blob.digest].clone()),
                from: None,
            });
            let mut blobs: Vec<_> = blobs.collect();
            blobs.push(push::BlobToPush {
                descriptor: config,
                source: BlobSource::Bytes(artifact.document.clone().into()),
                from: None,
            });
            push::push_blobs(shared, reference, &blobs, running)?;
            push::push_manifests(shared, reference, &[(entry, manifest)], false, running)
        }
    }
}

/// An artifact that is read.
struct Incoming<'a> {
    shared: &'a Shared,
    place: &'a MountsPlace,
    /// Those of an archive, which are in the store.
    files: Files,
}

impl Incoming<'_> {
    fn import(
        &self,
        wanted: &dyn Fn(&str) -> bool,
        replace: bool,
        running: &RunningVertex,
        cancel: &Cancel,
    ) -> Result<Vec<MovedMount>, EngineError> {
        let manifest = self.manifest()?;
        let document = self.document(&manifest.config)?;
        let document = parse(&document).map_err(|reason| self.wrong(reason))?;
        let store = &self.shared.store;
        let mounts = store.root().join("mounts");
        std::fs::create_dir_all(&mounts).map_err(EngineError::io("create", &mounts))?;
        let mut moved = Vec::new();
        for entry in document.mounts.iter().filter(|entry| wanted(&entry.id)) {
            let mut layers = manifest.layers.iter();
            let layer = layers.find(|layer| layer.digest == entry.layer);
            let layer = layer.ok_or_else(|| self.wrong(format!("{} is not in it", entry.layer)))?;
            let mount = CacheMount::acquire(&mounts.join(&entry.name), EXCLUSIVE)?;
            let mount = mount.ok_or_else(|| in_use(&entry.id))?;
            let kept = mount.path().exists() && !replace;
            if !kept {
                let status = running.status_of(entry.id.clone(), "unpacking", layer.size);
                mount.replace(&entry.id, |tree| self.unpack(entry, layer, tree, cancel))?;
                store.use_mount(&entry.name, &entry.id)?;
                status.finish(layer.size);
            }
            moved.push(MovedMount {
                name: entry.name.clone(),
                id: entry.id.clone(),
                digest: layer.digest.clone(),
                size: layer.size,
                kept,
            });
        }
        Ok(moved)
    }

    /// Returns the manifest of the artifact.
    fn manifest(&self) -> Result<Manifest, EngineError> {
        let index = match self.place {
            MountsPlace::Registry(reference) => {
                let images = &self.shared.images;
                let resolve = images.client().resolve(reference);
                let raw = images.wait(resolve)?.raw;
                let manifest = serde_json::from_slice::<Manifest>(&raw).ok();
                let is_ours = |manifest: &Manifest| manifest.config.media_type == MEDIA_TYPE;
                return manifest.filter(is_ours).ok_or_else(|| self.nothing());
            }
            MountsPlace::Directory { path, .. } => {
                let path = path.join(oci::layout::INDEX_FILE);
                read_file(&path, MOST_MANIFEST).map_err(|error| match error.kind() {
                    std::io::ErrorKind::NotFound => self.nothing(),
                    _ => EngineError::io("read", &path)(error),
                })?
            }
            MountsPlace::Archive(_) => self.small(self.files.need(oci::layout::INDEX_FILE)?)?,
        };
        let index: Index = serde_json::from_slice(&index).map_err(|error| self.wrong(error))?;
        for entry in &index.manifests {
            let is_named = match self.place {
                MountsPlace::Directory { tag, .. } => {
                    entry.annotations.get(oci::layout::ANNOTATION_REF_NAME) == Some(tag)
                }
                _ => true,
            };
            if !is_named {
                continue;
            }
            let raw = self.document(entry)?;
            if let Ok(manifest) = serde_json::from_slice::<Manifest>(&raw)
                && manifest.config.media_type == MEDIA_TYPE
            {
                return Ok(manifest);
            }
        }
        Err(self.nothing())
    }

    /// Returns a small blob, checked.
    fn document(&self, wanted: &Descriptor) -> Result<Vec<u8>, EngineError> {
        match self.place {
            MountsPlace::Directory { path, .. } => read_blob(path, &wanted.digest, MOST_MANIFEST),
            MountsPlace::Archive(_) => self.small(self.named(wanted)?),
            MountsPlace::Registry(reference) => {
                let images = &self.shared.images;
                let client = images.client();
                let fetch = client.fetch_blob_bytes(reference, wanted, MOST_MANIFEST);
                Ok(images.wait(fetch)?.to_vec())
            }
        }
    }

    /// Opens a blob. What is read is not checked yet.
    fn blob(&self, wanted: &Descriptor) -> Result<Box<dyn Read + Send>, EngineError> {
        Ok(match self.place {
            MountsPlace::Directory { path, .. } => {
                let path = path.join(oci::layout::blob_path(&wanted.digest));
                Box::new(File::open(&path).map_err(EngineError::io("open", &path))?)
            }
            MountsPlace::Archive(_) => {
                let (digest, _) = self.named(wanted)?;
                Box::new(self.shared.store.blobs().open(digest)?)
            }
            MountsPlace::Registry(reference) => {
                let images = &self.shared.images;
                let handle = images.runtime().handle();
                let client = images.client();
                Box::new(client.blob_reader(handle, reference, wanted, None))
            }
        })
    }

    /// Returns the file an archive has for a blob, if it is that blob.
    fn named(&self, wanted: &Descriptor) -> Result<&(Digest, u64), EngineError> {
        let file = self.files.need(&oci::layout::blob_path(&wanted.digest))?;
        match file.0 == wanted.digest {
            true => Ok(file),
            false => Err(self.wrong(format!("{} is {} in truth", wanted.digest, file.0))),
        }
    }

    fn small(&self, (digest, size): &(Digest, u64)) -> Result<Vec<u8>, EngineError> {
        match *size > MOST_MANIFEST {
            true => Err(self.wrong(format!("a document in it has {size} bytes"))),
            false => Ok(self.shared.store.blobs().read(digest)?),
        }
    }

    fn unpack(
        &self,
        entry: &Entry,
        layer: &Descriptor,
        tree: &Path,
        cancel: &Cancel,
    ) -> Result<(), EngineError> {
        let mut options = ApplyOptions::new(Form::Plain);
        options.diff_id = Some(entry.diff_id.clone());
        // No step could open one there.
        options.devices = Devices::Skip;
        if self.shared.store.ids().is_single() {
            options.ownership = Ownership::Ignore;
        }
        let reader = Stoppable {
            inner: self.blob(layer)?.take(layer.size.saturating_add(1)),
            stop: cancel,
        };
        let applied = apply_layer(reader, &LayerDir::open(tree)?, &options);
        if cancel.is_requested() {
            return Err(EngineError::Canceled);
        }
        let applied = applied?;
        match applied.blob == layer.digest {
            true => Ok(()),
            false => Err(self.wrong(format!("{} is {} in truth", layer.digest, applied.blob))),
        }
    }

    fn nothing(&self) -> EngineError {
        EngineError::NoCacheMounts {
            place: self.place.to_string(),
        }
    }

    fn wrong(&self, reason: impl std::fmt::Display) -> EngineError {
        EngineError::Image {
            subject: self.place.to_string(),
            reason: reason.to_string(),
        }
    }
}

/// Reads and checks a document that came from outside.
fn parse(bytes: &[u8]) -> Result<Document, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let read = |error: serde_json::Error| format!("its document cannot be read: {error}");
    let Version { version } = serde_json::from_slice(bytes).map_err(read)?;
    if version != VERSION {
        return Err(format!(
            "its form {version} is not known here; {VERSION} is"
        ));
    }
    let document: Document = serde_json::from_slice(bytes).map_err(read)?;
    for entry in &document.mounts {
        // It becomes the name of a directory.
        if crate::history::unhex(&entry.name).is_none() {
            return Err(format!("{:?} is no name of a cache mount", entry.name));
        }
        if entry.id.is_empty() || entry.id.len() > 4096 || entry.id.contains(char::is_control) {
            return Err(format!("{:?} is no id of a cache mount", entry.id));
        }
    }
    Ok(document)
}

fn in_use(id: &str) -> EngineError {
    EngineError::Request(format!("the cache mount {id:?} is in use by a build"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_from_outside_are_checked() {
        let name = "0".repeat(64);
        let digest = Digest::from_sha256([7; 32]);
        let check = |name: &str, id: &str, version: u32, expected: &str| {
            let text = serde_json::json!({
                "version": version,
                "mounts": [{"name": name, "id": id, "diffId": digest, "layer": digest}],
            });
            let found = parse(text.to_string().as_bytes()).err().unwrap_or_default();
            assert!(found.contains(expected), "{found:?}");
            assert_eq!(found.is_empty(), expected.is_empty(), "{found:?}");
        };
        check(&name, "/root/.cache", 1, "");
        check("../../etc", "/root/.cache", 1, "is no name");
        check(&format!("{name}.1"), "/root/.cache", 1, "is no name");
        check(&name, "a\nb", 1, "is no id");
        check(&name, "", 1, "is no id");
        check(&name, "/x", 2, "form 2 is not known");
        assert!(parse(b"{}").is_err());
        assert!(parse(b"[").is_err());
    }
}
