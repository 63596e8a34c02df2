//! What is served: the names of the store, and the documents and blobs behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use oci::media_type::Naming;
use oci::{Digest, Reference};

use super::route::{ManifestReference, Page};
use crate::EngineError;
use crate::images::{StoredSet, Subject};
use crate::request::LayerOptions;
use crate::step::Shared;

/// The images of a store as a registry has them.
pub(super) struct Content {
    shared: Arc<Shared>,
    options: LayerOptions,
    /// What was made of a name's images, by what they are.
    made: Mutex<BTreeMap<Digest, Arc<StoredSet>>>,
}

/// A document with its media type.
pub(super) struct Document {
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) bytes: Vec<u8>,
}

/// A blob: a small one, or a file.
pub(super) enum Blob {
    Bytes(Vec<u8>),
    File(File, u64),
}

impl Content {
    pub(super) fn new(shared: Arc<Shared>, options: LayerOptions) -> Self {
        Self {
            shared,
            options,
            made: Mutex::default(),
        }
    }

    /// Returns the repositories and the tags in each, with what they stand for.
    fn repositories(&self) -> Result<BTreeMap<String, BTreeMap<String, Subject>>, EngineError> {
        let store = &self.shared.store;
        let mut found: BTreeMap<String, BTreeMap<String, Subject>> = BTreeMap::new();
        for name in store.names()? {
            let Ok(reference) = Reference::parse_normalized(&name.reference) else {
                continue;
            };
            let Some(subject) = Subject::of_name(store, &name, None)? else {
                continue;
            };
            let tag = reference.tag().unwrap_or("latest").to_owned();
            let repository = repository(&reference);
            found.entry(repository).or_default().insert(tag, subject);
        }
        Ok(found)
    }

    fn repository(&self, name: &str) -> Result<Option<BTreeMap<String, Subject>>, EngineError> {
        let mut all = self.repositories()?;
        // By its full name it is found too.
        let short = Reference::parse_normalized(name).map(|full| repository(&full));
        Ok(match all.remove(name) {
            Some(found) => Some(found),
            None => short.ok().and_then(|short| all.remove(&short)),
        })
    }

    pub(super) fn catalog(&self, page: &Page) -> Result<(Vec<String>, bool), EngineError> {
        Ok(part(self.repositories()?.into_keys(), page))
    }

    pub(super) fn tags(
        &self,
        name: &str,
        page: &Page,
    ) -> Result<Option<(Vec<String>, bool)>, EngineError> {
        let found = self.repository(name)?;
        Ok(found.map(|tags| part(tags.into_keys(), page)))
    }

    pub(super) fn manifest(
        &self,
        name: &str,
        reference: &ManifestReference,
    ) -> Result<Option<Document>, EngineError> {
        let Some(tags) = self.repository(name)? else {
            return Ok(None);
        };
        match reference {
            ManifestReference::Tag(tag) => {
                let Some(subject) = tags.get(tag) else {
                    return Ok(None);
                };
                let set = self.make(subject)?;
                let root = set.root().map(|root| root.digest.clone());
                Ok(root.and_then(|root| document(&set, &root)))
            }
            ManifestReference::Digest(digest) => self.first(&tags, |set| document(set, digest)),
        }
    }

    pub(super) fn blob(&self, name: &str, digest: &Digest) -> Result<Option<Blob>, EngineError> {
        let Some(tags) = self.repository(name)? else {
            return Ok(None);
        };
        let found = self.first(&tags, |set| {
            set.images.iter().find_map(|image| {
                if image.config_descriptor.digest == *digest {
                    return Some(Some(Blob::Bytes(image.config.clone())));
                }
                let mut layers = image.layers.iter();
                layers.any(|layer| layer.digest == *digest).then_some(None)
            })
        })?;
        match found {
            Some(None) => {}
            // Some tools ask for a manifest as for a blob.
            None => {
                let document = self.first(&tags, |set| document(set, digest))?;
                return Ok(document.map(|document| Blob::Bytes(document.bytes)));
            }
            Some(bytes) => return Ok(bytes),
        }
        let blobs = self.shared.store.blobs();
        let file = blobs.open(digest)?;
        let size = file
            .metadata()
            .map_err(EngineError::io("read", blobs.path(digest)))?
            .len();
        Ok(Some(Blob::File(file, size)))
    }

    /// Looks at what the tags of a repository stand for: first at what was made already.
    fn first<T>(
        &self,
        tags: &BTreeMap<String, Subject>,
        mut look: impl FnMut(&StoredSet) -> Option<T>,
    ) -> Result<Option<T>, EngineError> {
        let mut later = Vec::new();
        for subject in tags.values() {
            let known = self.known(subject);
            match known {
                None => later.push(subject),
                Some(set) => {
                    if let Some(found) = look(&set) {
                        return Ok(Some(found));
                    }
                }
            }
        }
        for subject in later {
            if let Some(found) = look(&*self.make(subject)?) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Returns what was made of a subject, if all of its blobs are still there.
    fn known(&self, subject: &Subject) -> Option<Arc<StoredSet>> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let set = made.get(key(subject)).cloned()?;
        let blobs = self.shared.store.blobs();
        let mut layers = set.images.iter().flat_map(|image| &image.layers);
        layers
            .all(|layer| blobs.size(&layer.digest) == Some(layer.size))
            .then_some(set)
    }

    fn make(&self, subject: &Subject) -> Result<Arc<StoredSet>, EngineError> {
        if let Some(known) = self.known(subject) {
            return Ok(known);
        }
        let _blobs = self.shared.store.hold_blobs();
        let set = StoredSet::of(&self.shared, subject, &self.options, Naming::Oci)?;
        let set = Arc::new(set);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.insert(key(subject).clone(), Arc::clone(&set));
        // What has no name any more is not kept in memory for ever.
        const MOST: usize = 1024;
        if made.len() > MOST {
            made.retain(|known, _| known == key(subject));
        }
        Ok(set)
    }
}

fn key(subject: &Subject) -> &Digest {
    subject.index.as_ref().unwrap_or(&subject.image.id)
}

fn document(set: &StoredSet, digest: &Digest) -> Option<Document> {
    let index = set
        .index
        .iter()
        .map(|(descriptor, bytes)| (descriptor, bytes));
    let manifests = set
        .images
        .iter()
        .map(|image| (&image.manifest_descriptor, &image.manifest));
    let (descriptor, bytes) = index
        .chain(manifests)
        .find(|(descriptor, _)| descriptor.digest == *digest)?;
    Some(Document {
        media_type: descriptor.media_type.clone(),
        digest: digest.clone(),
        bytes: bytes.clone(),
    })
}

/// Returns the repository under which a name is served: as people write it, in letters that a repository may have.
fn repository(reference: &Reference) -> String {
    reference
        .clone()
        .without_version()
        .familiar()
        .replace(':', "_")
}

/// Returns a part of a list, and whether more follows.
fn part(names: impl Iterator<Item = String>, page: &Page) -> (Vec<String>, bool) {
    let all: BTreeSet<String> = names.collect();
    let after = all
        .into_iter()
        .filter(|name| page.last.as_ref().is_none_or(|last| name > last));
    let mut found: Vec<String> = after.collect();
    let most = page.most.unwrap_or(usize::MAX);
    let more = found.len() > most;
    found.truncate(most);
    // Nothing follows a part without anything in it.
    let more = more && !found.is_empty();
    (found, more)
}
