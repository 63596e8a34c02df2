//! Contexts by other names: what stands in the place of an image or a stage (`--build-context`).

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard_buildkit_proto::pb;
use frontend::NamedContext;
use oci::{ImageConfig, Platform, Reference};

use crate::build::{Build, Tree};
use crate::dockerfile::{parse_ignore, patterns_of};
use crate::error::Failure;
use crate::files::Files;
use crate::options::{self, Attributes};
use crate::policy::IMAGE;

/// Returns the contexts that a client gives, by their names.
pub(crate) fn named_contexts(
    build: &Build,
    attrs: &Attributes,
    inputs: &BTreeMap<String, pb::Definition>,
) -> Result<BTreeMap<String, NamedContext>, Failure> {
    let mut named = BTreeMap::new();
    for (name, value) in options::with_prefix(attrs, "context:") {
        let context = context_of(build, attrs, inputs, &name, &value)?;
        named.insert(name, context);
    }
    Ok(named)
}

/// Returns the context that stands for a name, if there is one.
pub(crate) fn named_context(
    build: &Build,
    attrs: &Attributes,
    inputs: &BTreeMap<String, pb::Definition>,
    name: &str,
) -> Result<Option<NamedContext>, Failure> {
    let familiar = Reference::parse_normalized(name).map(|reference| reference.familiar());
    let familiar = familiar.unwrap_or_else(|_| name.to_owned());
    let familiar = familiar.strip_suffix(":latest").unwrap_or(&familiar);
    let given = attrs.get(&format!("context:{familiar}"));
    given
        .map(|value| context_of(build, attrs, inputs, familiar, value))
        .transpose()
}

fn context_of(
    build: &Build,
    attrs: &Attributes,
    inputs: &BTreeMap<String, pb::Definition>,
    name: &str,
    value: &str,
) -> Result<NamedContext, Failure> {
    let invalid = || Failure::unknown(format!("invalid context specifier {value} for {name}"));
    let (scheme, rest) = value.split_once(':').ok_or_else(invalid)?;
    let context = match scheme {
        "docker-image" => {
            let image = rest.trim_start_matches("//");
            match other_than_image(build, image)? {
                None => NamedContext::Image(image.to_owned()),
                Some(identifier) => converted_context(&identifier).ok_or_else(|| {
                    Failure::unknown(format!(
                        "unsupported context source {identifier} for {name}"
                    ))
                })?,
            }
        }
        "local" => {
            let shown = format!("[context {name}] load .dockerignore");
            let local = Files::Local(rest.to_owned());
            let found = local.read(build, &shown, &[".dockerignore"])?;
            let ignore = match found.into_iter().next().flatten() {
                Some(bytes) => patterns_of(&parse_ignore(".dockerignore", &bytes)?),
                None => Vec::new(),
            };
            NamedContext::Local {
                name: rest.to_owned(),
                ignore,
            }
        }
        "input" => {
            let definition = inputs
                .get(rest)
                .ok_or_else(|| Failure::unknown(format!("invalid input {rest} for {name}")))?;
            let tree = Tree::of_definition(definition.clone())?;
            let graph = match tree {
                Some(tree) => Arc::clone(&tree.graph),
                None => Arc::new(llb::Graph::scratch()),
            };
            let config = input_config(attrs, rest)
                .map_err(|error| error.context(&format!("invalid input {rest} for {name}")))?;
            NamedContext::Graph {
                graph,
                config: config.map(Box::new),
            }
        }
        "oci-layout" => oci_layout(rest)?,
        "git" | "http" | "https" | "ssh" => NamedContext::Url(value.to_owned()),
        _ if scheme.starts_with("git@") => NamedContext::Url(value.to_owned()),
        _ => {
            return Err(Failure::unknown(format!(
                "unsupported context source {scheme} for {name}"
            )));
        }
    };
    Ok(context)
}

/// Returns what a policy has in the place of an image, if it is no image.
fn other_than_image(build: &Build, image: &str) -> Result<Option<String>, Failure> {
    let Ok(reference) = Reference::parse_normalized(image) else {
        return Ok(None);
    };
    let identifier = build
        .policies
        .in_place_of_image(&reference.or_latest(), &Platform::host())?;
    Ok(identifier.filter(|identifier| !identifier.starts_with(IMAGE)))
}

/// Reads the identifier of a source that stands for a named context now.
fn converted_context(identifier: &str) -> Option<NamedContext> {
    let (scheme, rest) = identifier.split_once("://")?;
    match scheme {
        "local" => Some(NamedContext::Local {
            name: rest.to_owned(),
            ignore: Vec::new(),
        }),
        "oci-layout" => oci_layout(rest).ok(),
        "git" | "http" | "https" => Some(NamedContext::Url(identifier.to_owned())),
        _ => None,
    }
}

/// Reads `STORE[:TAG]@DIGEST`.
fn oci_layout(text: &str) -> Result<NamedContext, Failure> {
    let text = text.trim_start_matches("//");
    let (name, digest) = text
        .rsplit_once('@')
        .ok_or_else(|| Failure::unknown(format!("oci-layout reference {text:?} has no digest")))?;
    let digest = digest.parse().map_err(|error| {
        Failure::unknown(format!(
            "could not parse oci-layout reference {text:?}: {error}"
        ))
    })?;
    let tag = name.rfind(':').filter(|at| !name[*at..].contains('/'));
    Ok(NamedContext::OciLayout {
        store: name[..tag.unwrap_or(name.len())].to_owned(),
        digest,
    })
}

/// Reads the image config that was given with an input.
fn input_config(attrs: &Attributes, name: &str) -> Result<Option<ImageConfig>, Failure> {
    let invalid = |error: &dyn std::fmt::Display| {
        Failure::unknown(format!("failed to parse input metadata: {error}"))
    };
    let Some(json) = attrs.get(&format!("input-metadata:{name}")) else {
        return Ok(None);
    };
    let metadata: BTreeMap<String, String> =
        serde_json::from_str(json).map_err(|error| invalid(&error))?;
    let Some(config) = metadata.get("containerimage.config") else {
        return Ok(None);
    };
    let config = STANDARD.decode(config).map_err(|error| invalid(&error))?;
    serde_json::from_slice(&config)
        .map(Some)
        .map_err(|error| invalid(&error))
}
