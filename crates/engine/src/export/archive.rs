//! Writes images as archives: OCI layout, and what `docker load` takes.

use std::fs::File;
use std::path::Path;

use oci::media_type::Naming;
use oci::{Descriptor, Index, Reference, layout};
use progress::RunningVertex;

use super::Exported;
use super::image::{Assembled, assemble, index_of, naming};
use super::layout::LayoutWriter;
use crate::EngineError;
use crate::build::Built;
use crate::request::{ArchiveOutput, BuildRequest, Destination};
use crate::step::Shared;

/// A layout that appears under its name only once it is whole.
pub(crate) struct Begun {
    pub(crate) writer: LayoutWriter,
    rename: Option<(tempfile::TempPath, std::path::PathBuf)>,
}

pub(crate) fn begin(output: &ArchiveOutput) -> Result<Begun, EngineError> {
    let path = match &output.destination {
        Destination::Stdout => {
            return Ok(Begun {
                writer: LayoutWriter::stream(Box::new(std::io::BufWriter::new(std::io::stdout()))),
                rename: None,
            });
        }
        Destination::Path(path) => path,
    };
    if !output.tar {
        return Ok(Begun {
            writer: LayoutWriter::directory(path)?,
            rename: None,
        });
    }
    // A device or a pipe is written to as it is.
    if path.exists() && !path.is_file() {
        let file = File::create(path).map_err(EngineError::io("open", path))?;
        return Ok(Begun {
            writer: LayoutWriter::stream(Box::new(std::io::BufWriter::new(file))),
            rename: None,
        });
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let temporary = tempfile::Builder::new()
        .prefix(".lapstrake-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder)
        .map_err(EngineError::io("create a file in", folder))?;
    let (file, temporary) = temporary.into_parts();
    Ok(Begun {
        writer: LayoutWriter::archive(file, path),
        rename: Some((temporary, path.clone())),
    })
}

pub(crate) fn finish(begun: Begun) -> Result<(), EngineError> {
    begun.writer.finish()?;
    match begun.rename {
        None => Ok(()),
        Some((temporary, path)) => temporary
            .persist(&path)
            .map_err(|error| EngineError::io("rename an archive to", &path)(error.error)),
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
    shared: &Shared,
    request: &BuildRequest,
    output: &ArchiveOutput,
    built: &[Built],
    multi_platform: bool,
    running: &RunningVertex,
) -> Result<Exported, EngineError> {
    let naming = naming(&output.layers, Naming::Oci);
    let images = built
        .iter()
        .map(|built| assemble(shared, request, built, &output.layers, naming, running))
        .collect::<Result<Vec<_>, _>>()?;
    let status = running.status_of("sending tarball", "", 0);
    let mut begun = begin(output)?;
    let writer = &mut begun.writer;
    let root = match (images.as_slice(), multi_platform) {
        ([image], false) => {
            write_image(shared, writer, image)?;
            image.manifest_descriptor.clone()
        }
        (images, _) => {
            for image in images {
                write_image(shared, writer, image)?;
            }
            let (bytes, descriptor) = index_of(images, naming);
            writer.bytes(&descriptor.digest, &bytes)?;
            descriptor
        }
    };
    let manifests = named(&root, &output.names, None);
    let index = Index::new(Naming::Oci, manifests);
    let index = oci::json::compact(&index).expect("an index can be written as JSON");
    writer.file(layout::INDEX_FILE, &index)?;
    writer.file(layout::LAYOUT_FILE, layout::LAYOUT_CONTENT.as_bytes())?;
    finish(begun)?;
    status.finish(0);
    Ok(Exported {
        image: images
            .first()
            .map(|image| image.config_descriptor.digest.clone()),
        manifest: Some(root.digest),
    })
}

/// Writes an archive that `docker load` takes: an OCI layout with Docker's `manifest.json` beside it.
pub(crate) fn to_docker(
    shared: &Shared,
    request: &BuildRequest,
    output: &ArchiveOutput,
    built: &[Built],
    running: &RunningVertex,
) -> Result<Exported, EngineError> {
    let [built] = built else {
        return Err(EngineError::Request(
            "docker's archive holds one platform; use type=oci for several".to_owned(),
        ));
    };
    let naming = naming(&output.layers, Naming::Docker);
    let image = assemble(shared, request, built, &output.layers, naming, running)?;
    let status = running.status_of("sending tarball", "", 0);
    let mut begun = begin(output)?;
    let writer = &mut begun.writer;
    write_image(shared, writer, &image)?;
    let index = Index::new(
        Naming::Oci,
        named(&image.manifest_descriptor, &output.names, None),
    );
    let index = oci::json::compact(&index).expect("an index can be written as JSON");
    writer.file(layout::INDEX_FILE, &index)?;
    let tags: Vec<String> = output.names.iter().map(Reference::familiar).collect();
    let layers: Vec<String> = image
        .layers
        .iter()
        .map(|layer| layout::blob_path(&layer.descriptor.digest))
        .collect();
    let manifest = serde_json::json!([{
        "Config": layout::blob_path(&image.config_descriptor.digest),
        "RepoTags": tags,
        "Layers": layers,
    }]);
    writer.file("manifest.json", manifest.to_string().as_bytes())?;
    writer.file(layout::LAYOUT_FILE, layout::LAYOUT_CONTENT.as_bytes())?;
    finish(begun)?;
    status.finish(0);
    Ok(Exported {
        image: Some(image.config_descriptor.digest),
        manifest: Some(image.manifest_descriptor.digest),
    })
}
