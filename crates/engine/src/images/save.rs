//! Writes images of the store into an archive, and pushes them.

use oci::media_type::Naming;
use oci::{Descriptor, Digest, Index, Reference, layout};
use progress::{Outcome, Sink, Vertex};
use registry::BlobSource;
use store::Image;

use super::stored::StoredImage;
use crate::export::{archive, push};
use crate::request::{ArchiveOutput, Compression, Destination, LayerOptions};
use crate::{Engine, EngineError};

impl Engine {
    /// Writes images, each with its names, as an archive that `docker load` takes: an OCI layout
    /// with Docker's `manifest.json` beside it.
    pub fn save(
        &self,
        images: &[(Image, Vec<Reference>)],
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
        };
        let mut begun = archive::begin(&output)?;
        let writer = &mut begun.writer;
        let mut manifests: Vec<Descriptor> = Vec::new();
        let mut entries = Vec::new();
        for (image, names) in images {
            let stored = StoredImage::of(&self.shared, image, &options, Naming::Docker)?;
            for layer in &stored.layers {
                let mut blob = self.store().blobs().open(&layer.digest)?;
                writer.blob(&layer.digest, layer.size, &mut blob)?;
            }
            writer.bytes(&stored.config_descriptor.digest, &stored.config)?;
            writer.bytes(&stored.manifest_descriptor.digest, &stored.manifest)?;
            manifests.extend(archive::named(&stored.manifest_descriptor, names, None));
            let paths = stored
                .layers
                .iter()
                .map(|layer| layout::blob_path(&layer.digest));
            entries.push(serde_json::json!({
                "Config": layout::blob_path(&stored.config_descriptor.digest),
                "RepoTags": names.iter().map(Reference::familiar).collect::<Vec<_>>(),
                "Layers": paths.collect::<Vec<_>>(),
            }));
        }
        let index = Index::new(Naming::Oci, manifests);
        let index = oci::json::compact(&index).expect("an index can be written as JSON");
        writer.file(layout::INDEX_FILE, &index)?;
        let entries = serde_json::Value::from(entries).to_string();
        writer.file("manifest.json", entries.as_bytes())?;
        writer.file(layout::LAYOUT_FILE, layout::LAYOUT_CONTENT.as_bytes())?;
        archive::finish(begun)
    }

    /// Pushes an image under a name; returns the digest and size of its manifest.
    pub fn push(
        &self,
        image: &Image,
        name: &Reference,
        sink: &Sink,
    ) -> Result<(Digest, u64), EngineError> {
        let running = sink
            .vertex(Vertex::named(format!("pushing {}", name.familiar())))
            .start();
        let _blobs = self.store().hold_blobs();
        let work = || -> Result<(Digest, u64), EngineError> {
            let options = LayerOptions::default();
            let stored = StoredImage::of(&self.shared, image, &options, Naming::Oci)?;
            let mut blobs: Vec<(Descriptor, BlobSource)> = Vec::new();
            for layer in &stored.layers {
                if blobs.iter().any(|(known, _)| known.digest == layer.digest) {
                    continue;
                }
                let path = self.store().blobs().path(&layer.digest);
                blobs.push((layer.clone(), BlobSource::File(path)));
            }
            blobs.push((
                stored.config_descriptor.clone(),
                BlobSource::Bytes(stored.config.clone().into()),
            ));
            push::push_blobs(&self.shared, name, &blobs)?;
            let manifests = [(stored.manifest_descriptor.clone(), stored.manifest.clone())];
            push::push_manifests(&self.shared, name, &manifests, false, &running)?;
            // From now on the registry knows it by this.
            let digest = self.store().blobs().put(&stored.manifest)?;
            self.store().set_name(name, &image.id, Some(&digest))?;
            Ok((digest, stored.manifest.len() as u64))
        };
        let result = work();
        running.complete(match &result {
            Ok(_) => Outcome::Done,
            Err(error) => Outcome::Failed {
                error: crate::error::chain(error),
            },
        });
        result
    }
}
