//! Takes the result of a build to where it is wanted.

pub(crate) mod ahead;
pub(crate) mod archive;
mod blocks;
pub(crate) mod files;
pub(crate) mod image;
pub(crate) mod layers;
pub(crate) mod layout;
mod load;
pub(crate) mod push;
mod squash;

use oci::media_type::Naming;
use oci::{Descriptor, Digest, Reference};
use progress::{Outcome, RunningVertex, Sink, Vertex};

use self::ahead::Ahead;
use self::image::{Assembly, Attesting};
use crate::build::Built;
use crate::request::{ArchiveOutput, BuildRequest, Destination, Output};
use crate::step::Shared;
use crate::{Cancel, EngineError};

/// What the outputs name.
#[derive(Debug, Default)]
pub(crate) struct Exported {
    /// What the image is called by here: the digest of its config, or of its index.
    pub(crate) image: Option<Digest>,
    /// The digest of the config of the only platform.
    pub(crate) config: Option<Digest>,
    /// The manifest or index that others can ask for.
    pub(crate) root: Option<Descriptor>,
    pub(crate) names: Vec<Reference>,
}

/// What outputs have to do with the build they end.
#[derive(Clone, Copy)]
pub(crate) struct Course<'a> {
    /// Layers that were begun before.
    pub(crate) ahead: Option<&'a Ahead>,
    pub(crate) cancel: &'a Cancel,
}

/// Carries out all outputs of a request.
pub(crate) fn export(
    shared: &Shared,
    request: &BuildRequest,
    built: &[Built],
    multi_platform: bool,
    sink: &Sink,
    course: Course<'_>,
) -> Result<Exported, EngineError> {
    let squashed;
    let built = match request.squash {
        false => built,
        true => {
            squashed = squash::squash_all(shared, built, sink)?;
            squashed.as_slice()
        }
    };
    let mut exported = Exported::default();
    for output in &request.outputs {
        if course.cancel.is_requested() {
            return Err(EngineError::Canceled);
        }
        let name = match output {
            Output::Image(_) => "exporting to image",
            Output::Oci(_) => "exporting to oci image format",
            Output::Docker(ArchiveOutput {
                destination: Destination::Engine(engine),
                ..
            }) => &format!("importing to {}", engine.name),
            Output::Docker(_) => "exporting to docker image format",
            Output::Local { .. } => "exporting to client directory",
            Output::Tar { .. } => "exporting to client tarball",
            Output::CacheOnly => continue,
        };
        let running = sink.vertex(Vertex::named(name)).start();
        let result = match output {
            Output::Image(output) => image::to_store(
                shared,
                request,
                output,
                built,
                multi_platform,
                &running,
                course,
            ),
            Output::Oci(output) => {
                let assembly = assembly(shared, request, output, Naming::Oci, &running, course);
                archive::to_oci(&assembly, output, built, multi_platform)
            }
            Output::Docker(output) => {
                let assembly = assembly(shared, request, output, Naming::Docker, &running, course);
                archive::to_docker(&assembly, output, built, multi_platform)
            }
            Output::Local {
                destination,
                platform_split,
            } => files::to_directory(shared, destination, *platform_split, built, &running),
            Output::Tar { destination } => files::to_tar(shared, destination, built, course.cancel),
            Output::CacheOnly => Ok(Exported::default()),
        };
        match result {
            Ok(found) => {
                running.complete(Outcome::Done);
                exported.image = found.image.or(exported.image);
                exported.config = found.config.or(exported.config);
                exported.root = found.root.or(exported.root);
                if !found.names.is_empty() {
                    exported.names = found.names;
                }
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

fn assembly<'a>(
    shared: &'a Shared,
    request: &'a BuildRequest,
    output: &'a ArchiveOutput,
    usual: Naming,
    running: &'a RunningVertex,
    course: Course<'a>,
) -> Assembly<'a> {
    Assembly {
        shared,
        request,
        layers: &output.layers,
        annotations: &output.annotations,
        naming: image::naming(&output.layers, usual),
        running,
        course,
        names: &output.names,
        attestations: Attesting::NotInline,
    }
}
