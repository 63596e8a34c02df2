//! Images in OCI layouts of this machine: contexts `oci-layout://DIRECTORY[:TAG][@DIGEST]`.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use oci::layout::{ANNOTATION_CONTAINERD_NAME, ANNOTATION_REF_NAME, INDEX_FILE, blob_path};
use oci::{Descriptor, Digest, Index};

use crate::EngineError;
use crate::client::BuildClient;
use crate::step::Shared;

/// The largest index or manifest that is read, in bytes.
const MAX_DOCUMENT: u64 = 16 << 20;

/// Reads the name of a layout, and finds the digest of the image it means.
///
/// Without a tag or digest the layout has to hold one image, or one with the tag `latest`.
pub(crate) fn find(text: &str) -> Result<(PathBuf, Digest), EngineError> {
    let (text, digest) = match text.rsplit_once('@') {
        Some((text, digest)) => {
            let digest = digest.parse().map_err(|error| {
                EngineError::Request(format!("invalid oci-layout reference {text:?}: {error}"))
            })?;
            (text, Some(digest))
        }
        None => (text, None),
    };
    let whole = PathBuf::from(text);
    let (directory, tag) = match text.rsplit_once(':') {
        Some((directory, tag)) if !tag.contains('/') && !whole.is_dir() => {
            (PathBuf::from(directory), Some(tag))
        }
        _ => (whole, None),
    };
    if let Some(digest) = digest {
        return Ok((directory, digest));
    }
    let path = directory.join(INDEX_FILE);
    let raw = read(&path, MAX_DOCUMENT)?;
    let index: Index = serde_json::from_slice(&raw).map_err(|error| EngineError::Image {
        subject: path.display().to_string(),
        reason: error.to_string(),
    })?;
    let chosen = choose(&index, tag).ok_or_else(|| {
        let (directory, what) = (directory.display(), tag.unwrap_or("latest"));
        EngineError::Request(format!(
            "the layout {directory} has no image {what:?}; it has {}",
            names(&index)
        ))
    })?;
    Ok((directory, chosen.digest.clone()))
}

fn choose<'i>(index: &'i Index, tag: Option<&str>) -> Option<&'i Descriptor> {
    let wanted = tag.unwrap_or("latest");
    let named = index.manifests.iter().find(|entry| {
        let names = name_of(entry);
        names.iter().any(|name| {
            *name == wanted || name.rsplit_once(':').is_some_and(|(_, tag)| tag == wanted)
        })
    });
    match (named, tag, index.manifests.as_slice()) {
        (Some(entry), _, _) | (None, None, [entry]) => Some(entry),
        _ => None,
    }
}

fn name_of(entry: &Descriptor) -> Vec<&str> {
    [ANNOTATION_REF_NAME, ANNOTATION_CONTAINERD_NAME]
        .iter()
        .filter_map(|name| entry.annotations.get(*name))
        .map(String::as_str)
        .collect()
}

fn names(index: &Index) -> String {
    let names = index.manifests.iter().flat_map(name_of);
    let names: Vec<&str> = names.collect();
    match names.is_empty() {
        true => format!("{} without names", index.manifests.len()),
        false => names.join(", "),
    }
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, EngineError> {
    let file = std::fs::File::open(path).map_err(EngineError::io("open", path))?;
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(EngineError::io("read", path))?;
    match bytes.len() as u64 > limit {
        true => Err(EngineError::Image {
            subject: path.display().to_string(),
            reason: format!("it is larger than {limit} bytes"),
        }),
        false => Ok(bytes),
    }
}

/// Where the blobs of a layout are.
#[derive(Clone, Copy)]
pub(crate) enum LayoutPlace<'a> {
    Directory(&'a Path),
    /// With a client, which knows it by this name.
    Client {
        client: &'a dyn BuildClient,
        store: &'a str,
    },
}

/// Takes no more than it has room for.
struct Limited<W> {
    inner: W,
    left: u64,
}

impl<W: Write> Write for Limited<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(std::io::Error::other("it is larger than it may be"));
        }
        let written = self.inner.write(bytes)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// Returns a document of a layout, which is in the store from now on.
pub(crate) fn document(
    shared: &Shared,
    place: LayoutPlace<'_>,
    digest: &Digest,
) -> Result<Vec<u8>, EngineError> {
    let raw = match place {
        LayoutPlace::Directory(directory) => {
            read(&directory.join(blob_path(digest)), MAX_DOCUMENT)?
        }
        LayoutPlace::Client { client, store } => {
            let mut into = Limited {
                inner: Vec::new(),
                left: MAX_DOCUMENT,
            };
            client.content(store, digest, &mut into)?;
            into.inner
        }
    };
    let mut writer = shared.store.blobs().writer()?;
    writer.append(&raw)?;
    writer.commit_volatile(Some((digest, raw.len() as u64)))?;
    Ok(raw)
}

/// Copies a blob of a layout into the store, unless it is there.
pub(crate) fn take(
    shared: &Shared,
    place: LayoutPlace<'_>,
    descriptor: &Descriptor,
) -> Result<(), EngineError> {
    let blobs = shared.store.blobs();
    if blobs.size(&descriptor.digest) == Some(descriptor.size) {
        return Ok(());
    }
    let mut writer = blobs.writer()?;
    match place {
        LayoutPlace::Directory(directory) => {
            let path = directory.join(blob_path(&descriptor.digest));
            let mut file = std::fs::File::open(&path).map_err(EngineError::io("open", &path))?;
            let mut buffer = vec![0; 1 << 20];
            loop {
                let count = file
                    .read(&mut buffer)
                    .map_err(EngineError::io("read", &path))?;
                if count == 0 || writer.size() > descriptor.size {
                    break;
                }
                writer.append(&buffer[..count])?;
            }
        }
        LayoutPlace::Client { client, store } => {
            let into = AppendTo(&mut writer);
            let mut into = Limited {
                inner: into,
                left: descriptor.size,
            };
            client.content(store, &descriptor.digest, &mut into)?;
        }
    }
    writer.commit_volatile(Some((&descriptor.digest, descriptor.size)))?;
    Ok(())
}

struct AppendTo<'a>(&'a mut store::BlobWriter);

impl Write for AppendTo<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.append(bytes).map_err(std::io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
