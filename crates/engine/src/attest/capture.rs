//! Notes what a graph takes from outside.

use std::sync::Arc;

use ::attest::{ImageSource, Sources};
use llb::{Graph, MountKind, NetworkMode, Op};

use crate::source::fetched::Fetched;
use crate::vertex::{VertexAction, VertexWork};

/// What a graph took from outside, and its vertices, by which its results are recorded.
#[derive(Clone, Default)]
pub struct Taken {
    pub(crate) sources: Arc<Sources>,
    pub(crate) works: Arc<Vec<Arc<VertexWork>>>,
}

impl std::fmt::Debug for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Taken")
            .field("sources", &self.sources)
            .finish_non_exhaustive()
    }
}

impl Taken {
    /// Returns what was taken, as it was found.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }
}

/// Notes what a planned graph takes.
pub(crate) fn capture(graph: &Graph, works: &[Arc<VertexWork>]) -> Taken {
    let mut sources = Sources::default();
    for (vertex, work) in graph.vertices().iter().zip(works) {
        match vertex.op() {
            Op::Source(source) => {
                add_source(&mut sources, vertex, &source.identifier, &work.action);
            }
            Op::Exec(exec) => {
                sources.network_access |= exec.network != NetworkMode::None;
                for mount in &exec.mounts {
                    match &mount.kind {
                        MountKind::Secret(file) => sources.add_secret(&file.id, file.optional),
                        MountKind::Ssh(file) => sources.add_ssh(&file.id, file.optional),
                        _ => {}
                    }
                }
                for secret in &exec.secret_env {
                    sources.add_secret(&secret.id, secret.optional);
                }
            }
            Op::Build(_) => sources.incomplete = true,
            Op::File(_) | Op::Merge(_) | Op::Diff(_) => {}
        }
    }
    Taken {
        sources: Arc::new(sources),
        works: Arc::new(works.to_vec()),
    }
}

fn add_source(
    sources: &mut Sources,
    vertex: &llb::Vertex,
    identifier: &str,
    action: &VertexAction,
) {
    match action {
        VertexAction::Image(image) => sources.add_image(ImageSource {
            reference: image.reference.clone(),
            platform: Some(vertex.platform().unwrap_or(&image.platform).normalized()),
            digest: Some(image.digest.clone()),
            local: identifier.starts_with("oci-layout://"),
        }),
        VertexAction::Fetched(Fetched::Git(tree)) => {
            sources.add_git(&tree.place(), tree.commit());
        }
        VertexAction::Fetched(Fetched::Http(file)) => {
            match crate::source::http::is_upload_url(identifier) {
                // What a client sends by itself is nowhere to be found again.
                true => sources.incomplete = true,
                false => sources.add_http(identifier, file.digest.clone()),
            }
        }
        VertexAction::Context(_) => {
            sources.add_local(identifier.strip_prefix("local://").unwrap_or(identifier));
        }
        VertexAction::Operation(_) => sources.incomplete = true,
    }
}
