//! Takes the result of a build to where it is wanted.

pub(crate) mod archive;
mod blocks;
mod files;
mod image;
pub(crate) mod layers;
pub(crate) mod layout;
pub(crate) mod push;

use oci::Digest;
use progress::{Outcome, Sink, Vertex};

use crate::EngineError;
use crate::build::Built;
use crate::request::{BuildRequest, Output};
use crate::step::Shared;

/// What the outputs name.
#[derive(Debug, Default)]
pub(crate) struct Exported {
    pub(crate) image: Option<Digest>,
    pub(crate) manifest: Option<Digest>,
}

/// Carries out all outputs of a request.
pub(crate) fn export(
    shared: &Shared,
    request: &BuildRequest,
    built: &[Built],
    multi_platform: bool,
    sink: &Sink,
) -> Result<Exported, EngineError> {
    let mut exported = Exported::default();
    for output in &request.outputs {
        let name = match output {
            Output::Image(_) => "exporting to image",
            Output::Oci(_) => "exporting to oci image format",
            Output::Docker(_) => "exporting to docker image format",
            Output::Local { .. } => "exporting to client directory",
            Output::Tar { .. } => "exporting to client tarball",
            Output::CacheOnly => continue,
        };
        let running = sink.vertex(Vertex::named(name)).start();
        let result = match output {
            Output::Image(output) => {
                image::to_store(shared, request, output, built, multi_platform, &running)
            }
            Output::Oci(output) => {
                archive::to_oci(shared, request, output, built, multi_platform, &running)
            }
            Output::Docker(output) => archive::to_docker(shared, request, output, built, &running),
            Output::Local {
                destination,
                platform_split,
            } => files::to_directory(shared, destination, *platform_split, built),
            Output::Tar { destination } => files::to_tar(shared, destination, built),
            Output::CacheOnly => Ok(Exported::default()),
        };
        match result {
            Ok(found) => {
                running.complete(Outcome::Done);
                exported.image = found.image.or(exported.image);
                exported.manifest = found.manifest.or(exported.manifest);
            }
            Err(error) => {
                running.complete(Outcome::Failed {
                    error: crate::error::chain(&error),
                });
                return Err(error);
            }
        }
    }
    Ok(exported)
}
