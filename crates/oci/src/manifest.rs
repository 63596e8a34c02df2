//! Manifest and index (image-spec, manifest.md and image-index.md; Docker's schema 2 has the same shape).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::json::null_default;
use crate::media_type::{Kind, Naming};
use crate::{Descriptor, PlatformMatcher};

/// The manifest of one image: its config and layers, lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    #[serde(rename = "schemaVersion")]
    pub schema_version: u32,
    #[serde(rename = "mediaType", default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(
        rename = "artifactType",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub artifact_type: Option<String>,
    pub config: Descriptor,
    #[serde(default, deserialize_with = "null_default")]
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
    /// Fields not known here.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl Manifest {
    pub fn new(naming: Naming, config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: Some(naming.manifest().to_owned()),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
            other: BTreeMap::new(),
        }
    }
}

/// An index: manifests for several platforms, or the entry point of a layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    #[serde(rename = "schemaVersion")]
    pub schema_version: u32,
    #[serde(rename = "mediaType", default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(
        rename = "artifactType",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub artifact_type: Option<String>,
    #[serde(default, deserialize_with = "null_default")]
    pub manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(
        default,
        deserialize_with = "null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
    /// Fields not known here.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl Index {
    pub fn new(naming: Naming, manifests: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: Some(naming.index().to_owned()),
            artifact_type: None,
            manifests,
            subject: None,
            annotations: BTreeMap::new(),
            other: BTreeMap::new(),
        }
    }

    /// Returns the manifests and indexes that may be for a platform of `matcher`, best first.
    ///
    /// Entries without a platform come last, in their order: only their config can tell. Attestations and what is no
    /// image are left out.
    pub fn candidates(&self, matcher: &PlatformMatcher) -> Vec<&Descriptor> {
        let images = self.manifests.iter().filter(|entry| {
            matches!(entry.kind(), Kind::Manifest | Kind::Index) && !entry.is_attestation()
        });
        let (mut matching, mut unknown) = (Vec::new(), Vec::new());
        for entry in images {
            match &entry.platform {
                Some(platform) if matcher.matches(platform) => matching.push((platform, entry)),
                Some(_) => {}
                None => unknown.push(entry),
            }
        }
        matching.sort_by(|(a, _), (b, _)| matcher.compare(a, b));
        matching
            .into_iter()
            .map(|(_, entry)| entry)
            .chain(unknown)
            .collect()
    }
}
