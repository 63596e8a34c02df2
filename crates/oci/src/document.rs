//! Documents beside the bytes they were read from.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::media_type::{self, Kind};
use crate::{Descriptor, Digest, ImageConfig, Index, Manifest, json};

/// Why bytes are no valid document.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("{digest} is not a valid {document}")]
    Json {
        document: &'static str,
        digest: Digest,
        source: serde_json::Error,
    },
    #[error("{document} is {actual}, expected {expected}")]
    Mismatch {
        document: &'static str,
        expected: Digest,
        actual: Digest,
    },
    #[error("{document} {digest} says it is {media_type:?}")]
    MediaType {
        document: &'static str,
        digest: Digest,
        media_type: String,
    },
    #[error("{document} {digest} has a field {field:?}, which belongs to another kind of document")]
    Ambiguous {
        document: &'static str,
        digest: Digest,
        field: &'static str,
    },
    #[error("{document} {digest} has schema version {version}, only 2 is supported")]
    SchemaVersion {
        document: &'static str,
        digest: Digest,
        version: u32,
    },
}

/// A kind of document that images are made of.
pub trait Document: Serialize + DeserializeOwned {
    /// What it is called in messages.
    const NAME: &'static str;

    /// Returns the bytes a new document is written in.
    fn to_bytes(&self) -> Vec<u8>;

    /// Refuses what has the right JSON types but cannot be meant.
    fn check(&self, digest: &Digest) -> Result<(), DocumentError>;
}

impl Document for Manifest {
    const NAME: &'static str = "image manifest";

    fn to_bytes(&self) -> Vec<u8> {
        json::indented(self).expect("a manifest has only string keys")
    }

    fn check(&self, digest: &Digest) -> Result<(), DocumentError> {
        check_version::<Self>(digest, self.schema_version)?;
        check_media_type::<Self>(digest, self.media_type.as_deref(), Kind::Manifest)?;
        check_fields::<Self>(digest, &self.other, &["manifests", "fsLayers", "history"])
    }
}

impl Document for Index {
    const NAME: &'static str = "image index";

    fn to_bytes(&self) -> Vec<u8> {
        json::indented(self).expect("an index has only string keys")
    }

    fn check(&self, digest: &Digest) -> Result<(), DocumentError> {
        check_version::<Self>(digest, self.schema_version)?;
        check_media_type::<Self>(digest, self.media_type.as_deref(), Kind::Index)?;
        check_fields::<Self>(
            digest,
            &self.other,
            &["config", "layers", "fsLayers", "history"],
        )
    }
}

impl Document for ImageConfig {
    const NAME: &'static str = "image config";

    fn to_bytes(&self) -> Vec<u8> {
        json::compact(self).expect("a config has only string keys")
    }

    fn check(&self, _digest: &Digest) -> Result<(), DocumentError> {
        Ok(())
    }
}

fn check_version<T: Document>(digest: &Digest, version: u32) -> Result<(), DocumentError> {
    match version {
        2 => Ok(()),
        version => Err(DocumentError::SchemaVersion {
            document: T::NAME,
            digest: digest.clone(),
            version,
        }),
    }
}

fn check_media_type<T: Document>(
    digest: &Digest,
    media_type: Option<&str>,
    expected: Kind,
) -> Result<(), DocumentError> {
    match media_type {
        Some(media_type) if media_type::kind(media_type) != expected => {
            Err(DocumentError::MediaType {
                document: T::NAME,
                digest: digest.clone(),
                media_type: media_type.to_owned(),
            })
        }
        _ => Ok(()),
    }
}

/// A document that can be read as two kinds would be another image to another reader (CVE-2021-41190).
fn check_fields<T: Document>(
    digest: &Digest,
    other: &BTreeMap<String, Value>,
    foreign: &[&'static str],
) -> Result<(), DocumentError> {
    match foreign.iter().find(|field| other.contains_key(**field)) {
        Some(field) => Err(DocumentError::Ambiguous {
            document: T::NAME,
            digest: digest.clone(),
            field,
        }),
        None => Ok(()),
    }
}

/// A document, the bytes it stands in, and their digest.
#[derive(Debug, Clone)]
pub struct Parsed<T> {
    value: T,
    raw: Arc<[u8]>,
    digest: Digest,
}

impl<T: Document> Parsed<T> {
    /// Reads a document.
    pub fn parse(raw: impl Into<Arc<[u8]>>) -> Result<Self, DocumentError> {
        let raw = raw.into();
        let digest = Digest::sha256_of(&raw);
        Self::parse_with(raw, digest)
    }

    /// Reads a document that must have the digest `expected`.
    pub fn parse_expecting(
        raw: impl Into<Arc<[u8]>>,
        expected: &Digest,
    ) -> Result<Self, DocumentError> {
        let raw = raw.into();
        if !expected.is_of(&raw) {
            let actual = Digest::sha256_of(&raw);
            return Err(DocumentError::Mismatch {
                document: T::NAME,
                expected: expected.clone(),
                actual,
            });
        }
        Self::parse_with(raw, expected.clone())
    }

    fn parse_with(raw: Arc<[u8]>, digest: Digest) -> Result<Self, DocumentError> {
        let value: T = serde_json::from_slice(&raw).map_err(|source| DocumentError::Json {
            document: T::NAME,
            digest: digest.clone(),
            source,
        })?;
        value.check(&digest)?;
        Ok(Self { value, raw, digest })
    }

    /// Writes a new document.
    pub fn of(value: T) -> Self {
        let raw: Arc<[u8]> = value.to_bytes().into();
        let digest = Digest::sha256_of(&raw);
        Self { value, raw, digest }
    }
}

impl<T> Parsed<T> {
    pub fn value(&self) -> &T {
        &self.value
    }

    pub fn into_value(self) -> T {
        self.value
    }

    /// Returns the bytes, exactly as read or written.
    pub fn raw(&self) -> &Arc<[u8]> {
        &self.raw
    }

    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    pub fn size(&self) -> u64 {
        self.raw.len() as u64
    }

    pub fn descriptor(&self, media_type: impl Into<String>) -> Descriptor {
        Descriptor::new(media_type, self.digest.clone(), self.size())
    }
}

impl<T> Deref for Parsed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2}"#;

    fn manifest(fields: &str) -> Result<Parsed<Manifest>, DocumentError> {
        Parsed::parse(
            format!(r#"{{"schemaVersion":2,"config":{CONFIG},"layers":[]{fields}}}"#).into_bytes(),
        )
    }

    #[test]
    fn raw_bytes_are_kept_as_they_were() {
        let text =
            format!("{{ \"layers\":null,\"x\":[1], \"config\":{CONFIG}, \"schemaVersion\":2}}\n");
        let parsed = Parsed::<Manifest>::parse(text.clone().into_bytes()).unwrap();
        assert_eq!(parsed.raw()[..], *text.as_bytes());
        assert_eq!(*parsed.digest(), Digest::sha256_of(text.as_bytes()));
        assert_eq!(parsed.other["x"], serde_json::json!([1]));
        assert!(parsed.layers.is_empty());
    }

    #[test]
    fn a_digest_asked_for_is_verified() {
        let raw = manifest("").unwrap().raw().clone();
        let digest = Digest::sha256_of(&raw);
        assert!(Parsed::<Manifest>::parse_expecting(raw.clone(), &digest).is_ok());
        let other = Digest::sha256_of(b"");
        assert!(matches!(
            Parsed::<Manifest>::parse_expecting(raw, &other),
            Err(DocumentError::Mismatch { .. })
        ));
    }

    #[test]
    fn a_manifest_cannot_pass_for_an_index() {
        assert!(matches!(
            manifest(r#","manifests":[]"#),
            Err(DocumentError::Ambiguous {
                field: "manifests",
                ..
            })
        ));
        assert!(matches!(
            manifest(r#","mediaType":"application/vnd.oci.image.index.v1+json""#),
            Err(DocumentError::MediaType { .. })
        ));
        let index = format!(r#"{{"schemaVersion":2,"manifests":[],"config":{CONFIG}}}"#);
        assert!(matches!(
            Parsed::<Index>::parse(index.into_bytes()),
            Err(DocumentError::Ambiguous {
                field: "config",
                ..
            })
        ));
        let schema1 = r#"{"schemaVersion":1,"manifests":[]}"#;
        assert!(matches!(
            Parsed::<Index>::parse(schema1.as_bytes()),
            Err(DocumentError::SchemaVersion { version: 1, .. })
        ));
    }

    #[test]
    fn a_written_document_reads_back_equal() {
        let layer =
            Descriptor::of(crate::media_type::OCI_LAYER_GZIP, b"x").with_annotation("a", "<b>");
        let config = Descriptor::of(crate::media_type::OCI_CONFIG, b"{}");
        let written = Parsed::of(Manifest::new(
            crate::media_type::Naming::Oci,
            config,
            vec![layer],
        ));
        let read = Parsed::<Manifest>::parse(written.raw().clone()).unwrap();
        assert_eq!(read.value(), written.value());
        assert_eq!(read.digest(), written.digest());
        let text = String::from_utf8(written.raw().to_vec()).unwrap();
        assert!(
            text.starts_with("{\n  \"schemaVersion\": 2,\n  \"mediaType\": \""),
            "{text}"
        );
        assert!(text.contains("\"a\": \"\\u003cb\\u003e\""), "{text}");
    }
}
