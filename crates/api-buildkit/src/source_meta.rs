//! What a source is now, without taking it.

use std::sync::Arc;

use bollard_buildkit_proto::moby::buildkit::v1::frontend as pbf;
use bollard_buildkit_proto::pb;
use engine::BuildClient;

use crate::build::Build;
use crate::error::Failure;
use crate::gateway::{Lookup, find_image, platform_of, seconds};
use crate::policy::IMAGE;
use crate::scope::Scope;

/// Tells what a source is now. Blocks.
pub(crate) fn of(
    build: &Build,
    scope: &Scope,
    asked: pbf::ResolveSourceMetaRequest,
) -> Result<pbf::ResolveSourceMetaResponse, Failure> {
    let source = asked.source.unwrap_or_default();
    let in_layout = source.identifier.strip_prefix("oci-layout://");
    let store = in_layout.map(|name| {
        let given = source.attrs.get(llb::attr::OCI_LAYOUT_STORE_ID);
        let bare = name.split(['@', ':']).next().unwrap_or(name);
        given.cloned().unwrap_or_else(|| bare.to_owned())
    });
    let in_registry = source.identifier.strip_prefix(IMAGE);
    let Some(name) = in_registry.or(in_layout) else {
        let with_commit = asked.git.is_some_and(|git| git.return_object);
        return meta_of(build, source, with_commit, &asked.log_name);
    };
    let platform = platform_of(asked.platform.as_ref());
    let mode = match &store {
        None => Lookup::Registry(&asked.resolve_mode),
        Some(store) => Lookup::Store(store),
    };
    let (_, image) = find_image(build, scope, name, &platform, mode, &asked.log_name)?;
    let no_config = asked.image.is_some_and(|image| image.no_config);
    Ok(pbf::ResolveSourceMetaResponse {
        image: Some(pbf::ResolveSourceImageResponse {
            digest: image.digest.to_string(),
            config: match no_config {
                true => Vec::new(),
                false => image.raw_config,
            },
            attestation_chain: None,
        }),
        source: Some(source),
        git: None,
        http: None,
    })
}

/// Tells what a source that is no image is now. Blocks.
fn meta_of(
    build: &Build,
    source: pb::SourceOp,
    with_commit: bool,
    shown: &str,
) -> Result<pbf::ResolveSourceMetaResponse, Failure> {
    let mut answer = pbf::ResolveSourceMetaResponse {
        source: Some(source.clone()),
        ..pbf::ResolveSourceMetaResponse::default()
    };
    let scheme = source.identifier.split("://").next().unwrap_or_default();
    if !matches!(scheme, "git" | "http" | "https") {
        // Of a client's directory there is nothing to tell before it comes.
        return match scheme {
            "local" => Ok(answer),
            _ => Err(Failure::unsupported(format!(
                "the metadata of the source {}",
                source.identifier
            ))),
        };
    }
    let op = llb::SourceOp {
        identifier: source.identifier.clone(),
        attrs: source.attrs.into_iter().collect(),
    };
    let shown = match shown {
        "" => format!("resolve {}", source.identifier),
        shown => shown.to_owned(),
    };
    let client: Arc<dyn BuildClient> = build.client.clone();
    let now = build.engine.source_now(
        &op,
        &shown,
        with_commit,
        &client,
        &build.cancel,
        &build.sink,
    )?;
    let checksum = now.checksum;
    match scheme {
        "git" => {
            answer.git = Some(pbf::ResolveSourceGitResponse {
                commit_checksum: checksum.clone(),
                checksum,
                commit_object: now.commit.unwrap_or_default(),
                ..pbf::ResolveSourceGitResponse::default()
            });
        }
        _ => {
            answer.http = Some(pbf::ResolveSourceHttpResponse {
                checksum,
                filename: op
                    .attrs
                    .get(llb::attr::HTTP_FILENAME)
                    .cloned()
                    .unwrap_or_default(),
                last_modified: now.time.map(seconds),
                checksum_response: None,
            });
        }
    }
    Ok(answer)
}
