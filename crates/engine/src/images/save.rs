//! Writes images of the store into an archive, and pushes them.

use oci::media_type::Naming;
use oci::{Descriptor, Digest, Reference};
use progress::{Sink, Vertex};
use registry::BlobSource;

use super::stored::{StoredSet, Subject};
use crate::export::push::BlobToPush;
use crate::export::{archive, push};
use crate::request::{ArchiveOutput, Compression, Destination, LayerOptions};
use crate::{Engine, EngineError};

impl Engine {
    /// Writes images, each with its names, as an archive that `docker load` takes: an OCI layout
    /// with Docker's `manifest.json` beside it, which names the image of this machine where there are several.
    pub fn save(
        &self,
        subjects: &[(Subject, Vec<Reference>)],
        destination: Destination,
    ) -> Result<(), EngineError> {
        let _blobs = self.store().hold_blobs();
        let options = LayerOptions {
            compression: Compression::Uncompressed,
            ..LayerOptions::default()
        };
        let output = ArchiveOutput {
            destination,
            tar: true,
            names: Vec::new(),
            layers: options.clone(),
            annotations: Vec::new(),
        };
        let mut begun = archive::begin(&self.shared, &output)?;
        let writer = &mut begun.writer;
        let mut manifests: Vec<Descriptor> = Vec::new();
        let mut entries = Vec::new();
        for (subject, names) in subjects {
            let naming = match subject.index {
                None => Naming::Docker,
                Some(_) => Naming::Oci,
            };
            let set = StoredSet::of(&self.shared, subject, &options, naming)?;
            for stored in &set.images {
                for layer in &stored.layers {
                    let mut blob = self.store().blobs().open(&layer.digest)?;
                    writer.blob(&layer.digest, layer.size, &mut blob)?;
                }
                writer.bytes(&stored.config_descriptor.digest, &stored.config)?;
                writer.bytes(&stored.manifest_descriptor.digest, &stored.manifest)?;
                if stored.config_descriptor.digest == subject.image.id {
                    let layers = stored.layers.iter().map(|layer| &layer.digest);
                    entries.push(archive::docker_entry(&subject.image.id, layers, names));
                }
            }
            if let Some((descriptor, bytes)) = &set.index {
                writer.bytes(&descriptor.digest, bytes)?;
            }
            let root = set.root().into_iter();
            manifests.extend(root.flat_map(|root| archive::named(root, names, None)));
        }
        archive::finish_with(begun, manifests, Some(&entries))
    }

    /// Pushes what is under a name; returns the digest and size of its manifest or index.
    pub fn push(
        &self,
        subject: &Subject,
        name: &Reference,
        sink: &Sink,
    ) -> Result<(Digest, u64), EngineError> {
        let running = sink
            .vertex(Vertex::named(format!("pushing {}", name.familiar())))
            .start();
        let _blobs = self.store().hold_blobs();
        let work = || -> Result<(Digest, u64), EngineError> {
            let options = LayerOptions::default();
            let set = StoredSet::of(&self.shared, subject, &options, Naming::Oci)?;
            let mut blobs: Vec<BlobToPush> = Vec::new();
            let mut manifests = Vec::new();
            for (stored, image) in set.images.iter().zip(&subject.images) {
                let ids = image.layers.as_deref().unwrap_or_default();
                let kept = self.store().layers(ids)?.unwrap_or_default();
                for (index, layer) in stored.layers.iter().enumerate() {
                    if blobs
                        .iter()
                        .any(|known| known.descriptor.digest == layer.digest)
                    {
                        continue;
                    }
                    let path = self.store().blobs().path(&layer.digest);
                    blobs.push(BlobToPush {
                        descriptor: layer.clone(),
                        source: BlobSource::File(path),
                        from: match kept.get(index) {
                            Some(layer) => push::origin_of(&self.shared, layer)?,
                            None => None,
                        },
                    });
                }
                blobs.push(BlobToPush {
                    descriptor: stored.config_descriptor.clone(),
                    source: BlobSource::Bytes(stored.config.clone().into()),
                    from: None,
                });
                manifests.push((stored.manifest_descriptor.clone(), stored.manifest.clone()));
            }
            manifests.extend(set.index.clone());
            push::push_blobs(&self.shared, name, &blobs, &running)?;
            push::push_manifests(&self.shared, name, &manifests, false, &running)?;
            let (root, bytes) = manifests.last().expect("a subject has one image at least");
            // From now on the registry knows it by this.
            self.store().blobs().put(bytes)?;
            let (id, digest) = (&subject.image.id, Some(&root.digest));
            self.store()
                .set_name_of(name, id, digest, subject.variants().as_ref())?;
            Ok((root.digest.clone(), bytes.len() as u64))
        };
        let result = work();
        running.conclude(&result, |error| crate::error::chain(error));
        result
    }
}
