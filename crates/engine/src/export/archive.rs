//! Writes images as archives: OCI layout, and what `docker load` takes.

use std::fs::File;

use oci::media_type::Naming;
use oci::{Descriptor, Digest, Index, Reference, layout};

use super::Exported;
use super::files::NewFile;
use super::image::{Assembled, Assembly};
use super::layout::LayoutWriter;
use super::load::{self, Loading};
use crate::EngineError;
use crate::build::Built;
use crate::request::{ArchiveOutput, Destination};
use crate::step::Shared;

/// A layout that appears under its name only once it is whole.
pub(crate) struct Begun {
    pub(crate) writer: LayoutWriter,
    end: End,
}

impl Begun {
    /// Returns why nothing more could be written: what the other side says, if it said something.
    fn reason_or(self, error: EngineError) -> EngineError {
        drop(self.writer);
        match self.end {
            End::Answer(loading) => loading.finish().err().unwrap_or(error),
            End::Nothing | End::Rename(_) => error,
        }
    }
}

/// What is left to do once all is written.
enum End {
    Nothing,
    Rename(NewFile),
    Answer(Loading),
}

pub(crate) fn begin(shared: &Shared, output: &ArchiveOutput) -> Result<Begun, EngineError> {
    let path = match &output.destination {
        Destination::Stdout => {
            return Ok(Begun {
                writer: LayoutWriter::stream(Box::new(std::io::BufWriter::new(std::io::stdout()))),
                end: End::Nothing,
            });
        }
        Destination::Engine(engine) => {
            let (out, loading) = load::begin(shared.images.runtime().handle(), engine)?;
            let out = std::io::BufWriter::with_capacity(256 << 10, out);
            return Ok(Begun {
                writer: LayoutWriter::stream(Box::new(out)),
                end: End::Answer(loading),
            });
        }
        Destination::Path(path) => path,
    };
    if !output.tar {
        return Ok(Begun {
            writer: LayoutWriter::directory(path)?,
            end: End::Nothing,
        });
    }
    let Some(new) = NewFile::begin(path)? else {
        // A device or a pipe is written to as it is.
        let file = File::create(path).map_err(EngineError::io("open", path))?;
        return Ok(Begun {
            writer: LayoutWriter::stream(Box::new(std::io::BufWriter::new(file))),
            end: End::Nothing,
        });
    };
    Ok(Begun {
        writer: LayoutWriter::archive(new.another()?, path),
        end: End::Rename(new),
    })
}

fn finish(begun: Begun) -> Result<(), EngineError> {
    let written = begun.writer.finish();
    match begun.end {
        // What the other side says tells more than that it wanted no more.
        End::Answer(loading) => loading.finish().and(written),
        _ if written.is_err() => written,
        End::Nothing => Ok(()),
        End::Rename(new) => new.finish(),
    }
}

fn write_image(
    shared: &Shared,
    writer: &mut LayoutWriter,
    image: &Assembled,
) -> Result<(), EngineError> {
    for layer in &image.layers {
        let mut blob = shared.store.blobs().open(&layer.descriptor.digest)?;
        writer.blob(&layer.descriptor.digest, layer.descriptor.size, &mut blob)?;
    }
    writer.bytes(&image.config_descriptor.digest, &image.config)?;
    writer.bytes(&image.manifest_descriptor.digest, &image.manifest)
}

/// Names a descriptor in an index as BuildKit does: once for each name.
pub(crate) fn named(
    descriptor: &Descriptor,
    names: &[Reference],
    created: Option<&str>,
) -> Vec<Descriptor> {
    let stamp = |descriptor: Descriptor| match created {
        Some(created) => descriptor.with_annotation(layout::ANNOTATION_CREATED, created),
        None => descriptor,
    };
    if names.is_empty() {
        return vec![stamp(descriptor.clone())];
    }
    names
        .iter()
        .map(|name| {
            let descriptor = descriptor
                .clone()
                .with_annotation(layout::ANNOTATION_CONTAINERD_NAME, name.to_string())
                .with_annotation(layout::ANNOTATION_REF_NAME, name.tag().unwrap_or("latest"));
            stamp(descriptor)
        })
        .collect()
}

/// Writes an archive or directory in OCI layout.
pub(crate) fn to_oci(
    assembly: &Assembly<'_>,
    output: &ArchiveOutput,
    built: &[Built],
    multi_platform: bool,
) -> Result<Exported, EngineError> {
    let set = assembly.make(built, multi_platform)?;
    let status = assembly.running.status_of("sending tarball", "", 0);
    let mut begun = begin(assembly.shared, output)?;
    let writer = &mut begun.writer;
    for image in &set.images {
        write_image(assembly.shared, writer, image)?;
    }
    for said in &set.attestations {
        for (descriptor, bytes) in said.layers.iter().chain([&said.config]) {
            writer.bytes(&descriptor.digest, bytes)?;
        }
        writer.bytes(&said.descriptor.digest, &said.manifest)?;
    }
    if let Some((descriptor, bytes)) = &set.index {
        writer.bytes(&descriptor.digest, bytes)?;
    }
    finish_layout(begun, set.root(), &output.names, None)?;
    status.finish(0);
    Ok(set.exported(&output.names))
}

/// Writes an archive that `docker load` takes: an OCI layout with Docker's `manifest.json` beside it.
pub(crate) fn to_docker(
    assembly: &Assembly<'_>,
    output: &ArchiveOutput,
    built: &[Built],
    multi_platform: bool,
) -> Result<Exported, EngineError> {
    let ([_], false) = (built, multi_platform) else {
        return Err(EngineError::Request(
            "docker's archive holds one platform; use type=oci for several".to_owned(),
        ));
    };
    if built.iter().any(|built| {
        let mut said = built.attestations.iter();
        said.any(|attestation| !attestation.inline_only)
    }) {
        return Err(EngineError::Request(
            "docker's archive holds no attestations; use type=oci or type=image,push=true, or --provenance=false"
                .to_owned(),
        ));
    }
    let set = assembly.make(built, false)?;
    if let Destination::Engine(engine) = &output.destination
        && let [image] = set.images.as_slice()
    {
        let runtime = assembly.shared.images.runtime().handle();
        let id = &image.config_descriptor.digest;
        if load::name_what_is_there(runtime, engine, id, &output.names) {
            let status = assembly.running.status_of("is there already", "", 0);
            status.finish(0);
            return Ok(set.exported(&output.names));
        }
    }
    let status = assembly.running.status_of("sending tarball", "", 0);
    let mut begun = begin(assembly.shared, output)?;
    for image in &set.images {
        if let Err(error) = write_image(assembly.shared, &mut begun.writer, image) {
            return Err(begun.reason_or(error));
        }
    }
    let entries: Vec<serde_json::Value> = set
        .images
        .iter()
        .map(|image| {
            let layers = image.layers.iter().map(|layer| &layer.descriptor.digest);
            docker_entry(&image.config_descriptor.digest, layers, &output.names)
        })
        .collect();
    finish_layout(begun, set.root(), &output.names, Some(&entries))?;
    status.finish(0);
    Ok(set.exported(&output.names))
}

/// Returns an entry of Docker's `manifest.json`.
pub(crate) fn docker_entry<'a>(
    config: &Digest,
    layers: impl Iterator<Item = &'a Digest>,
    names: &[Reference],
) -> serde_json::Value {
    serde_json::json!({
        "Config": layout::blob_path(config),
        "RepoTags": names.iter().map(Reference::familiar).collect::<Vec<_>>(),
        "Layers": layers.map(layout::blob_path).collect::<Vec<_>>(),
    })
}

fn finish_layout(
    begun: Begun,
    root: Option<&Descriptor>,
    names: &[Reference],
    docker: Option<&[serde_json::Value]>,
) -> Result<(), EngineError> {
    let manifests = root.map(|root| named(root, names, None));
    finish_with(begun, manifests.unwrap_or_default(), docker)
}

/// Writes the documents that name what is in a layout, and ends it.
pub(crate) fn finish_with(
    mut begun: Begun,
    manifests: Vec<Descriptor>,
    docker: Option<&[serde_json::Value]>,
) -> Result<(), EngineError> {
    let writer = &mut begun.writer;
    let index = Index::new(Naming::Oci, manifests);
    let index = oci::json::compact(&index).expect("an index can be written as JSON");
    writer.file(layout::INDEX_FILE, &index)?;
    if let Some(entries) = docker {
        let entries = serde_json::Value::from(entries.to_vec()).to_string();
        writer.file("manifest.json", entries.as_bytes())?;
    }
    writer.file(layout::LAYOUT_FILE, layout::LAYOUT_CONTENT.as_bytes())?;
    finish(begun)
}
