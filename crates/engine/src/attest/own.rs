//! The provenance of builds that are asked for here, not by a client.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::attest::{Provenance, Request, filter_arguments};
use frontend::PlatformBuild;
use oci::Timestamp;

use super::{Attestation, ProvenanceOf, Taken};
use crate::request::{BuildRequest, Context, DockerfileSource};

/// Proxies are of the machine, and may hold passwords.
const PROXIES: [&str; 5] = [
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "no_proxy",
    "all_proxy",
];

/// Says how one platform of a build was built.
pub(crate) fn attest(
    wanted: &Provenance,
    request: &BuildRequest,
    build: &PlatformBuild,
    taken: Taken,
    (invocation, started): (&str, Timestamp),
) -> Attestation {
    let mut sources = taken.sources().clone();
    let from_here = matches!(request.context, Context::Directory(_) | Context::Tar(_));
    match &request.dockerfile {
        DockerfileSource::File(_) | DockerfileSource::Bytes { .. } => {
            sources.add_local("dockerfile");
        }
        DockerfileSource::InContext(_) if from_here => sources.add_local("dockerfile"),
        DockerfileSource::InContext(_) | DockerfileSource::Url(_) => {}
    }
    sources.tidy();
    Attestation::of_provenance(ProvenanceOf {
        wanted: wanted.clone(),
        request: Request {
            frontend: "dockerfile.v0".to_owned(),
            arguments: filter_arguments(&arguments(request)),
            ..Request::default()
        },
        sources,
        graph: Arc::new(build.graph.clone()),
        taken,
        invocation: invocation.to_owned(),
        started,
        frontend_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        environment: Arc::default(),
    })
}

/// Returns what was asked for, in the words a client of BuildKit has for it.
fn arguments(request: &BuildRequest) -> BTreeMap<String, String> {
    let mut arguments = BTreeMap::new();
    let given = request.build_args.iter();
    let given = given.filter(|(name, _)| !PROXIES.contains(&name.to_lowercase().as_str()));
    for (name, value) in given {
        arguments.insert(format!("build-arg:{name}"), value.clone());
    }
    for (name, value) in &request.labels {
        arguments.insert(format!("label:{name}"), value.clone());
    }
    for (name, value) in &request.named_contexts {
        arguments.insert(format!("context:{name}"), value.clone());
    }
    if let Some(target) = &request.target {
        arguments.insert("target".to_owned(), target.clone());
    }
    if let Context::Git(url) | Context::Http(url) = &request.context {
        arguments.insert("context".to_owned(), url.clone());
    }
    let name = match &request.dockerfile {
        DockerfileSource::File(path) => path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned()),
        DockerfileSource::InContext(name) | DockerfileSource::Bytes { name, .. } => {
            Some(name.clone())
        }
        DockerfileSource::Url(_) => None,
    };
    if let Some(name) = name {
        arguments.insert("filename".to_owned(), name);
    }
    arguments
}
