//! Brings images into the store.

use oci::{Digest, Platform, PlatformMatcher, Reference};
use progress::{Sink, Vertex};
use store::Image;

use crate::{Cancel, Engine, EngineError};

/// An image that was brought in.
#[derive(Debug, Clone)]
pub struct Pulled {
    pub reference: Reference,
    /// What the registry knows it by: the digest of an index, or of a manifest.
    pub digest: Digest,
    pub image: Image,
    /// The store had all of it.
    pub was_there: bool,
}

impl Engine {
    /// Pulls an image and gives it its name. Where no platform is asked for, it is that of this machine, or else what
    /// there is; one that is asked for it must have.
    pub fn pull(
        &self,
        name: &str,
        platform: Option<&Platform>,
        sink: &Sink,
        cancel: &Cancel,
    ) -> Result<Pulled, EngineError> {
        let reference = Reference::parse_normalized(name)
            .map_err(|error| EngineError::Request(format!("{name}: {error}")))?
            .or_latest();
        let shown = format!("pulling {}", reference.familiar());
        let running = sink.vertex(Vertex::named(shown)).start();
        let pulled = self.bring(reference, platform, &running, cancel);
        running.conclude(&pulled, |error| crate::error::chain(error));
        pulled
    }

    /// Returns the tags that a registry has of a repository, in the order of their names.
    pub fn remote_tags(&self, name: &str) -> Result<Vec<String>, EngineError> {
        let reference = Reference::parse_normalized(name)
            .map_err(|error| EngineError::Request(format!("{name}: {error}")))?;
        let images = &self.shared.images;
        let tags = images.client().tags(&reference);
        let mut tags = images.runtime().block_on(tags)?;
        tags.sort();
        Ok(tags)
    }

    fn bring(
        &self,
        reference: Reference,
        platform: Option<&Platform>,
        running: &progress::RunningVertex,
        cancel: &Cancel,
    ) -> Result<Pulled, EngineError> {
        let store = self.store();
        let _blobs = store.hold_blobs();
        let wanted = platform.cloned().unwrap_or_else(Platform::host);
        let pinned = self.shared.images.resolve(&reference, &wanted, true)?;
        if platform.is_some() && !PlatformMatcher::runnable(&wanted).matches(&pinned.platform) {
            return Err(EngineError::NoPlatform {
                reference: Box::new(reference),
                platform: wanted.to_string(),
                available: pinned.platform.to_string(),
            });
        }
        let before = store.name(&reference.to_string())?;
        let layers = pinned.unpack(&self.shared, running, cancel)?;
        let mut size = 0;
        for layer in &layers {
            size += store.layer_info(layer.id())?.content;
        }
        let image = Image {
            id: pinned.id.clone(),
            manifest: pinned.manifest.clone(),
            layers: Some(layers.iter().map(store::Layer::id).collect()),
            platform: pinned.platform.to_string(),
            size,
            created: pinned.config.created.map_or(0, |time| time.unix_seconds()),
            annotations: Default::default(),
        };
        // By digest alone it stays without a name that could be listed.
        let names = reference.tag().map(|_| tagged(&reference));
        store.put_image(&image, names.as_slice(), Some(&pinned.digest))?;
        Ok(Pulled {
            was_there: before.is_some_and(|name| {
                name.image == image.id && name.digest.as_ref() == Some(&pinned.digest)
            }),
            reference,
            digest: pinned.digest,
            image,
        })
    }
}

/// Returns a reference with its tag alone.
fn tagged(reference: &Reference) -> Reference {
    let tag = reference.tag().unwrap_or("latest");
    let bare = reference.clone().without_version();
    bare.clone().with_tag(tag).unwrap_or(bare)
}
