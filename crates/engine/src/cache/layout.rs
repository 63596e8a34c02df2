//! A cache in a directory in OCI layout.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use oci::media_type::Naming;
use oci::{Descriptor, Digest, Index, Manifest, layout};

use super::config::{MEDIA_TYPE, MOST_BYTES, PortableCache};
use crate::EngineError;
use crate::export::layout::LayoutWriter;

/// The annotation that names an entry of the index.
const NAME: &str = "org.opencontainers.image.ref.name";

/// The largest index or manifest that is read, in bytes.
pub(crate) const MOST_MANIFEST: u64 = 8 << 20;

/// A document with blobs, as a registry keeps it.
pub(crate) struct Artifact {
    pub(crate) naming: Naming,
    /// What it is, where it is no image.
    pub(crate) kind: Option<&'static str>,
    /// Of the document.
    pub(crate) media_type: &'static str,
    pub(crate) document: Vec<u8>,
    pub(crate) blobs: Vec<Descriptor>,
}

impl Artifact {
    /// Returns the descriptor of its document, its manifest, and the descriptor of that.
    pub(crate) fn documents(&self) -> (Descriptor, Vec<u8>, Descriptor) {
        let config = Descriptor::of(self.media_type, &self.document);
        let mut manifest = Manifest::new(self.naming, config.clone(), self.blobs.clone());
        manifest.artifact_type = self.kind.map(str::to_owned);
        let manifest = oci::json::compact(&manifest).expect("a manifest can be written as JSON");
        let entry = Descriptor::of(self.naming.manifest(), &manifest);
        (config, manifest, entry)
    }
}

/// A directory, locked against others who write to it.
pub(crate) struct CacheDirectory {
    path: PathBuf,
    _lock: File,
}

impl CacheDirectory {
    /// Makes the directory if it is not there, and waits for others who write to it.
    pub(crate) fn open(path: &Path) -> Result<Self, EngineError> {
        std::fs::create_dir_all(path).map_err(EngineError::io("create", path))?;
        let lock = File::open(path).map_err(EngineError::io("open", path))?;
        lock.lock().map_err(EngineError::io("lock", path))?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Returns the cache that is there under a tag, if there is one that can be read.
    pub(crate) fn read(&self, tag: &str) -> Option<PortableCache> {
        read(&self.path, tag, None).ok()
    }

    /// Writes a cache under a tag; blobs that no entry names any more are removed.
    pub(crate) fn write(
        &self,
        tag: &str,
        cache: &PortableCache,
        naming: Naming,
        open: impl FnMut(&Digest) -> Result<File, EngineError>,
    ) -> Result<(), EngineError> {
        let (document, blobs) = cache.to_document();
        let artifact = Artifact {
            naming,
            kind: None,
            media_type: MEDIA_TYPE,
            document,
            blobs,
        };
        self.put(tag, &artifact, open)
    }

    /// Writes an artifact under a tag; blobs that no entry names any more are removed.
    pub(crate) fn put(
        &self,
        tag: &str,
        artifact: &Artifact,
        mut open: impl FnMut(&Digest) -> Result<File, EngineError>,
    ) -> Result<(), EngineError> {
        let mut writer = LayoutWriter::directory(&self.path)?;
        for blob in &artifact.blobs {
            let there = self.path.join(layout::blob_path(&blob.digest));
            if std::fs::metadata(&there).is_ok_and(|meta| meta.len() == blob.size) {
                continue;
            }
            writer.blob(&blob.digest, blob.size, &mut open(&blob.digest)?)?;
        }
        let (config, manifest, mut entry) = artifact.documents();
        writer.bytes(&config.digest, &artifact.document)?;
        entry.annotations.insert(NAME.to_owned(), tag.to_owned());
        writer.bytes(&entry.digest, &manifest)?;
        let mut index: Index = self
            .index()
            .unwrap_or_else(|| Index::new(Naming::Oci, Vec::new()));
        index
            .manifests
            .retain(|other| other.annotations.get(NAME).map(String::as_str) != Some(tag));
        index.manifests.push(entry);
        let bytes = oci::json::compact(&index).expect("an index can be written as JSON");
        writer.file(layout::LAYOUT_FILE, layout::LAYOUT_CONTENT.as_bytes())?;
        writer.file(layout::INDEX_FILE, &bytes)?;
        writer.finish()?;
        self.remove_unnamed(&index);
        Ok(())
    }

    fn index(&self) -> Option<Index> {
        let bytes = read_file(&self.path.join(layout::INDEX_FILE), MOST_MANIFEST).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Removes what no manifest of the index names. If one of them cannot be read, all stays.
    fn remove_unnamed(&self, index: &Index) {
        let mut named = BTreeSet::new();
        for entry in &index.manifests {
            named.insert(entry.digest.clone());
            let manifest = read_blob(&self.path, &entry.digest, MOST_MANIFEST);
            let Some(manifest) = manifest
                .ok()
                .and_then(|raw| serde_json::from_slice::<Manifest>(&raw).ok())
            else {
                return;
            };
            named.insert(manifest.config.digest);
            named.extend(manifest.layers.into_iter().map(|layer| layer.digest));
        }
        let Ok(entries) = std::fs::read_dir(self.path.join("blobs/sha256")) else {
            return;
        };
        for entry in entries.flatten() {
            let digest = entry
                .file_name()
                .to_str()
                .map(|hex| format!("sha256:{hex}"));
            let digest = digest.and_then(|text| text.parse::<Digest>().ok());
            if digest.is_some_and(|digest| !named.contains(&digest)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// Reads the cache of a directory: the manifest with this tag, or with this digest.
pub(crate) fn read(
    directory: &Path,
    tag: &str,
    digest: Option<&Digest>,
) -> Result<PortableCache, EngineError> {
    let path = directory.join(layout::INDEX_FILE);
    let wrong = |reason: &str| EngineError::Image {
        subject: directory.display().to_string(),
        reason: reason.to_owned(),
    };
    let digest = match digest {
        Some(digest) => digest.clone(),
        None => {
            let bytes = read_file(&path, MOST_MANIFEST).map_err(EngineError::io("read", &path))?;
            let index: Index =
                serde_json::from_slice(&bytes).map_err(|error| wrong(&error.to_string()))?;
            let entry = index
                .manifests
                .iter()
                .find(|entry| entry.annotations.get(NAME).map(String::as_str) == Some(tag));
            entry
                .ok_or_else(|| wrong(&format!("it has no cache with the tag {tag}")))?
                .digest
                .clone()
        }
    };
    let raw = read_blob(directory, &digest, MOST_MANIFEST)?;
    // BuildKit's older form is an index with the config among its entries.
    let entries = match serde_json::from_slice::<Manifest>(&raw) {
        Ok(manifest) => vec![manifest.config],
        Err(_) => {
            let index: Index =
                serde_json::from_slice(&raw).map_err(|error| wrong(&error.to_string()))?;
            index.manifests
        }
    };
    let config = entries
        .iter()
        .find(|entry| entry.media_type == MEDIA_TYPE)
        .ok_or_else(|| wrong("it is no cache"))?;
    let document = read_blob(directory, &config.digest, MOST_BYTES)?;
    PortableCache::parse(&document).map_err(|error| wrong(&error.to_string()))
}

/// Reads a blob of a directory and checks it.
pub(crate) fn read_blob(
    directory: &Path,
    digest: &Digest,
    most: u64,
) -> Result<Vec<u8>, EngineError> {
    let path = directory.join(layout::blob_path(digest));
    let bytes = read_file(&path, most).map_err(EngineError::io("read", &path))?;
    match digest.is_of(&bytes) {
        true => Ok(bytes),
        false => Err(EngineError::Image {
            subject: path.display().to_string(),
            reason: "its content is not what its name says".to_owned(),
        }),
    }
}

pub(crate) fn read_file(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > most {
        true => Err(std::io::Error::other("it is too large")),
        false => Ok(bytes),
    }
}
