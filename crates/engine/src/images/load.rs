//! Reads images out of archives: Docker's, old and new, and OCI layouts.
//!
//! Every file of the archive becomes a blob, named by what it is, whatever the archive calls it;
//! what no image needs goes with the next collection.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Component, Path};

use oci::media_type::{Kind, Naming};
use oci::{Descriptor, Digest, ImageConfig, Index, Manifest, Platform, PlatformMatcher, Reference};
use progress::{Sink, Vertex};
use serde::Deserialize;
use store::{BlobWriter, Image, Layer, NewNames, Variants};

use crate::export::image::layer_type;
use crate::{Cancel, Engine, EngineError};

/// An image that was loaded.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub image: Image,
    pub names: Vec<Reference>,
}

/// A document larger than this is no document.
const MAX_DOCUMENT: u64 = 8 << 20;

/// Links that may follow each other in an old archive.
const MAX_LINKS: usize = 8;

/// How deep the files of an unpacked archive lie: `blobs/sha256/…`.
const MAX_DEPTH: usize = 2;

/// What an archive holds.
#[derive(Default)]
pub(crate) struct Files {
    files: BTreeMap<String, (Digest, u64)>,
    links: BTreeMap<String, String>,
}

/// One entry of Docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// What an archive names, before it is unpacked.
struct Found {
    images: Vec<FoundImage>,
    /// The index over several images.
    index: Option<Digest>,
    /// What the archive calls it: a manifest or an index.
    root: Option<Digest>,
    names: Vec<Reference>,
}

struct FoundImage {
    config: Digest,
    layers: Vec<Descriptor>,
    manifest: Option<Digest>,
}

impl Engine {
    /// Loads all images of an archive, which may be compressed with gzip or zstd.
    pub fn load(
        &self,
        archive: impl Read,
        platform: Option<&Platform>,
        sink: &Sink,
        cancel: &Cancel,
    ) -> Result<Vec<Loaded>, EngineError> {
        self.load_files(
            || self.read_archive(archive, cancel),
            platform,
            sink,
            cancel,
        )
    }

    /// Loads all images of a directory that is an OCI layout, or an archive that was unpacked.
    pub fn load_directory(
        &self,
        directory: &Path,
        platform: Option<&Platform>,
        sink: &Sink,
        cancel: &Cancel,
    ) -> Result<Vec<Loaded>, EngineError> {
        self.load_files(
            || self.read_directory(directory, cancel),
            platform,
            sink,
            cancel,
        )
    }

    fn load_files(
        &self,
        read: impl FnOnce() -> Result<Files, EngineError>,
        platform: Option<&Platform>,
        sink: &Sink,
        cancel: &Cancel,
    ) -> Result<Vec<Loaded>, EngineError> {
        let running = sink.vertex(Vertex::named("loading images")).start();
        let _blobs = self.store().hold_blobs();
        let work = || -> Result<Vec<Loaded>, EngineError> {
            let files = read()?;
            let found = match files.get("manifest.json") {
                Some(file) if !self.has_index(&files) => self.by_docker(&files, file)?,
                _ => self.by_index(&files, platform)?,
            };
            found
                .into_iter()
                .map(|found| self.unpack_loaded(found, &running, cancel))
                .collect()
        };
        let result = work();
        running.conclude(&result, |error| crate::error::chain(error));
        result
    }

    /// Brings all files of an archive into the store.
    pub(crate) fn read_archive(
        &self,
        archive: impl Read,
        cancel: &Cancel,
    ) -> Result<Files, EngineError> {
        let failed = || EngineError::io("read", "the archive");
        let mut reader = BufReader::with_capacity(1 << 18, archive);
        let start = reader.fill_buf().map_err(failed())?;
        let plain: Box<dyn Read> = match start {
            [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                Box::new(zstd::Decoder::with_buffer(reader).map_err(failed())?)
            }
            _ => Box::new(reader),
        };
        let mut archive = tar::Archive::new(plain);
        let mut files = Files::default();
        for entry in archive.entries().map_err(not_an_archive)? {
            if cancel.is_requested() {
                return Err(EngineError::Canceled);
            }
            let mut entry = entry.map_err(not_an_archive)?;
            let Some(name) = clean(&entry.path().map_err(not_an_archive)?) else {
                return Err(wrong("a name in it leads out of it"));
            };
            match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    let mut writer = self.store().blobs().writer()?;
                    pass(&mut entry, &mut writer, failed())?;
                    let file = writer.commit(None)?;
                    files.files.insert(name, file);
                }
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    let is_hard = entry.header().entry_type() == tar::EntryType::Link;
                    let target = entry.link_name().map_err(not_an_archive)?;
                    let folder = match is_hard {
                        true => None,
                        false => Path::new(&name).parent(),
                    };
                    let target = target
                        .and_then(|target| clean(&folder.unwrap_or(Path::new("")).join(target)));
                    if let Some(target) = target {
                        files.links.insert(name, target);
                    }
                }
                _ => {}
            }
        }
        Ok(files)
    }

    /// Brings what images are made of from a directory into the store. Links are not followed.
    fn read_directory(&self, directory: &Path, cancel: &Cancel) -> Result<Files, EngineError> {
        let mut files = Files::default();
        let mut folders = vec![(directory.to_owned(), String::new(), 0)];
        while let Some((folder, prefix, depth)) = folders.pop() {
            let failed = || EngineError::io("list", &folder);
            for entry in std::fs::read_dir(&folder).map_err(failed())? {
                if cancel.is_requested() {
                    return Err(EngineError::Canceled);
                }
                let entry = entry.map_err(failed())?;
                let Some(name) = entry
                    .file_name()
                    .to_str()
                    .map(|name| format!("{prefix}{name}"))
                else {
                    continue;
                };
                let kind = entry.file_type().map_err(failed())?;
                if kind.is_dir() && depth < MAX_DEPTH {
                    folders.push((entry.path(), format!("{name}/"), depth + 1));
                } else if kind.is_file() {
                    let failed = || EngineError::io("read", entry.path());
                    let mut file = std::fs::File::open(entry.path()).map_err(failed())?;
                    let mut writer = self.store().blobs().writer()?;
                    pass(&mut file, &mut writer, failed())?;
                    files.files.insert(name, writer.commit(None)?);
                }
            }
        }
        Ok(files)
    }

    fn document<T: serde::de::DeserializeOwned>(
        &self,
        what: &str,
        (digest, size): &(Digest, u64),
    ) -> Result<T, EngineError> {
        if *size > MAX_DOCUMENT {
            return Err(wrong(&format!("its {what} has {size} bytes")));
        }
        let raw = self.store().blobs().read(digest)?;
        serde_json::from_slice(&raw).map_err(|error| wrong(&format!("its {what}: {error}")))
    }

    fn by_docker(
        &self,
        files: &Files,
        manifest: &(Digest, u64),
    ) -> Result<Vec<Found>, EngineError> {
        let entries: Vec<Entry> = self.document("manifest.json", manifest)?;
        let mut found = Vec::new();
        for entry in entries {
            let (config, _) = files.need(&entry.config)?;
            let layers = entry.layers.iter().map(|path| {
                let (digest, size) = files.need(path)?;
                Ok(Descriptor::new(
                    self.kind_of(digest)?,
                    digest.clone(),
                    *size,
                ))
            });
            let names = entry.repo_tags.unwrap_or_default();
            let names = names.iter().map(|name| {
                Reference::parse_normalized(name)
                    .map(Reference::or_latest)
                    .map_err(|error| wrong(&error.to_string()))
            });
            let image = FoundImage {
                config: config.clone(),
                layers: layers.collect::<Result<_, EngineError>>()?,
                manifest: None,
            };
            found.push(Found {
                images: vec![image],
                index: None,
                root: None,
                names: names.collect::<Result<_, _>>()?,
            });
        }
        Ok(found)
    }

    /// Returns the media type of a layer, of which Docker's document does not say how it is compressed.
    fn kind_of(&self, layer: &Digest) -> Result<&'static str, EngineError> {
        let mut start = Vec::new();
        self.store()
            .blobs()
            .open(layer)?
            .take(4)
            .read_to_end(&mut start)
            .map_err(EngineError::io("read", layer.to_string()))?;
        Ok(layer_type(Naming::Docker, rootfs::compress::format(&start)))
    }

    fn by_index(
        &self,
        files: &Files,
        platform: Option<&Platform>,
    ) -> Result<Vec<Found>, EngineError> {
        let Some(file) = files.get(oci::layout::INDEX_FILE) else {
            return Err(wrong(
                "it has neither manifest.json nor index.json; is it an image?",
            ));
        };
        let index: Index = self.document("index.json", file)?;
        let mut found: Vec<Found> = Vec::new();
        for entry in &index.manifests {
            if entry.is_attestation() {
                continue;
            }
            let names = name_in(entry);
            match found
                .iter_mut()
                .find(|known| known.root.as_ref() == Some(&entry.digest))
            {
                Some(known) => known.names.extend(names),
                None => {
                    let mut images = Vec::new();
                    self.manifests_below(files, entry, 0, &mut images)?;
                    found.push(self.chosen(entry, images, names, platform)?);
                }
            }
        }
        Ok(found)
    }

    /// Returns whether what Docker's document cannot tell is in the archive: images of several platforms.
    fn has_index(&self, files: &Files) -> bool {
        let file = files.get(oci::layout::INDEX_FILE);
        let index = file.and_then(|file| self.document::<Index>("index.json", file).ok());
        index.is_some_and(|index| {
            let mut entries = index.manifests.iter();
            entries.any(|entry| entry.kind() == Kind::Index)
        })
    }

    /// Collects the images that are in the archive, whatever platforms its indexes name besides.
    fn manifests_below(
        &self,
        files: &Files,
        descriptor: &Descriptor,
        depth: usize,
        images: &mut Vec<(Platform, FoundImage)>,
    ) -> Result<(), EngineError> {
        const MOST_IMAGES: usize = 256;
        if depth > 4 {
            return Err(wrong("its indexes are nested too deeply"));
        }
        let file = files.need(&oci::layout::blob_path(&descriptor.digest))?;
        if file.0 != descriptor.digest {
            return Err(wrong(&format!(
                "{} is {} in truth",
                descriptor.digest, file.0
            )));
        }
        if descriptor.kind() == Kind::Index {
            let index: Index = self.document("index", file)?;
            for entry in index.manifests.iter().filter(|entry| {
                let is_image = matches!(entry.kind(), Kind::Manifest | Kind::Index);
                is_image && !entry.is_attestation()
            }) {
                if files.get(&oci::layout::blob_path(&entry.digest)).is_some() {
                    self.manifests_below(files, entry, depth + 1, images)?;
                }
            }
            return Ok(());
        }
        let parsed: Manifest = self.document("manifest", file)?;
        let size = self.store().blobs().size(&parsed.config.digest);
        let size = size.ok_or_else(|| wrong(&format!("{} is not in it", parsed.config.digest)))?;
        let config: ImageConfig = self.document("config", &(parsed.config.digest.clone(), size))?;
        let platform = descriptor.platform.clone().unwrap_or(config.platform);
        if images.len() == MOST_IMAGES {
            return Err(wrong("it has too many images"));
        }
        images.push((
            platform,
            FoundImage {
                config: parsed.config.digest,
                layers: parsed.layers,
                manifest: Some(descriptor.digest.clone()),
            },
        ));
        Ok(())
    }

    /// Returns what is loaded of an entry: all of it, or the image of one platform.
    fn chosen(
        &self,
        entry: &Descriptor,
        mut images: Vec<(Platform, FoundImage)>,
        names: Option<Reference>,
        platform: Option<&Platform>,
    ) -> Result<Found, EngineError> {
        let is_index = entry.kind() == Kind::Index;
        if let Some(platform) = platform {
            let matcher = PlatformMatcher::runnable(platform);
            images.retain(|(found, _)| matcher.matches(found));
            images.sort_by(|(a, _), (b, _)| matcher.compare(a, b));
            images.truncate(1);
        }
        if images.is_empty() {
            return Err(wrong("it has no image for this platform"));
        }
        let several = is_index && platform.is_none();
        Ok(Found {
            images: images.into_iter().map(|(_, image)| image).collect(),
            index: several.then(|| entry.digest.clone()),
            root: Some(entry.digest.clone()),
            names: names.into_iter().collect(),
        })
    }

    fn unpack_loaded(
        &self,
        found: Found,
        running: &progress::RunningVertex,
        cancel: &Cancel,
    ) -> Result<Loaded, EngineError> {
        let shown = match found.names.first() {
            Some(name) => name.clone(),
            None => Reference::parse_normalized("loaded").expect("a plain name"),
        };
        let mut images = Vec::new();
        for image in found.images {
            images.push(self.unpack_image(image, &shown, running, cancel)?);
        }
        let store = self.store();
        let variants = found.index.map(|index| Variants {
            index,
            images: images.iter().map(|image| image.id.clone()).collect(),
        });
        let image = super::stored::best_for(&images, &Platform::host())
            .or_else(|| images.first().cloned())
            .ok_or_else(|| wrong("it has no image"))?;
        // No registry knows it by these names because of that.
        let names = NewNames {
            names: &found.names,
            digest: None,
            variants: variants.as_ref(),
        };
        store.put_images(&images, &image.id, names)?;
        Ok(Loaded {
            image,
            names: found.names,
        })
    }

    fn unpack_image(
        &self,
        found: FoundImage,
        shown: &Reference,
        running: &progress::RunningVertex,
        cancel: &Cancel,
    ) -> Result<Image, EngineError> {
        let store = self.store();
        let size = store.blobs().size(&found.config).unwrap_or(0);
        let config: ImageConfig = self.document("config", &(found.config.clone(), size))?;
        let diff_ids = config.rootfs.diff_ids.clone();
        if diff_ids.len() != found.layers.len() {
            return Err(wrong(&format!(
                "it has {} layers, its config {}",
                found.layers.len(),
                diff_ids.len()
            )));
        }
        let pairs: Vec<(Descriptor, Digest)> = found.layers.into_iter().zip(diff_ids).collect();
        for (layer, _) in &pairs {
            // Nothing is fetched from anywhere for an archive.
            if store.blobs().size(&layer.digest) != Some(layer.size) {
                return Err(wrong(&format!("layer {} is not in it", layer.digest)));
            }
        }
        let layers = crate::source::pull::pull(&self.shared, shown, &pairs, running, cancel)?;
        let mut content = 0;
        for layer in &layers {
            content += store.layer_info(layer.id())?.content;
        }
        Ok(Image {
            id: found.config,
            manifest: found.manifest,
            layers: Some(layers.iter().map(Layer::id).collect()),
            platform: config.platform.to_string(),
            size: content,
            created: config.created.map_or(0, |time| time.unix_seconds()),
            annotations: BTreeMap::new(),
        })
    }
}

impl Files {
    pub(crate) fn get(&self, name: &str) -> Option<&(Digest, u64)> {
        let mut name = name;
        for _ in 0..MAX_LINKS {
            if let Some(file) = self.files.get(name) {
                return Some(file);
            }
            name = self.links.get(name)?;
        }
        None
    }

    pub(crate) fn need(&self, name: &str) -> Result<&(Digest, u64), EngineError> {
        let clean = clean(Path::new(name)).unwrap_or_default();
        self.get(&clean)
            .ok_or_else(|| wrong(&format!("{name:?} is not in it")))
    }
}

/// Reads all there is into a blob. Of a disk that is full the writer tells.
fn pass(
    from: &mut dyn Read,
    into: &mut BlobWriter,
    unreadable: impl FnOnce(std::io::Error) -> EngineError,
) -> Result<(), EngineError> {
    let mut buffer = vec![0; 1 << 17];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => into.append(&buffer[..read])?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
}

/// Returns a path in an archive without `.` and `..`; `None` for one that leads out of it.
fn clean(path: &Path) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => parts.push(name.to_str()?),
            Component::ParentDir => drop(parts.pop()?),
            Component::CurDir | Component::RootDir => {}
            Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

/// Returns the full name that an entry of a layout has; a bare tag is none.
fn name_in(entry: &Descriptor) -> Option<Reference> {
    let annotation = |name| entry.annotations.get(name);
    let text = match annotation(oci::layout::ANNOTATION_CONTAINERD_NAME) {
        Some(text) => text,
        None => {
            annotation(oci::layout::ANNOTATION_REF_NAME).filter(|text| text.contains([':', '/']))?
        }
    };
    Reference::parse_normalized(text)
        .ok()
        .map(Reference::or_latest)
}

/// Says what is wrong with a tar without its bytes, which may be anything.
fn not_an_archive(error: std::io::Error) -> EngineError {
    let told = error.to_string();
    let is_cut = told.starts_with("unexpected EOF") || told.starts_with("failed to read entire");
    if is_cut || error.kind() == std::io::ErrorKind::UnexpectedEof {
        return wrong("it is cut off, or not a tar");
    }
    if told.contains("numeric field") || told.contains("cksum") {
        return wrong("it is not a tar, nor one that is compressed with gzip or zstd");
    }
    let plain = told.chars().filter(|letter| !letter.is_control());
    wrong(&plain.take(200).collect::<String>())
}

fn wrong(reason: &str) -> EngineError {
    EngineError::Image {
        subject: "archive".to_owned(),
        reason: reason.to_owned(),
    }
}
