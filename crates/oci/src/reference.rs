//! Image references, by the grammar and the normalization of distribution/reference.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Algorithm, Digest, DigestError};

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";
const LONGEST_PATH: usize = 255;
const LONGEST_TAG: usize = 128;

/// Why a text is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("{text:?} is not an image reference")]
    Format { text: String },
    #[error("the repository name in {text:?} must be lower case")]
    UpperCase { text: String },
    #[error("{text:?} cannot be an image name: it looks like an image id")]
    Identifier { text: String },
    #[error("the repository name in {text:?} has more than {LONGEST_PATH} characters")]
    TooLong { text: String },
    #[error("{text:?} names its image by a digest that is not valid")]
    Digest { text: String, source: DigestError },
    #[error("{text:?} names its image by {algorithm}, only sha256 is supported")]
    Algorithm { text: String, algorithm: Algorithm },
    #[error("{tag:?} is not a valid tag")]
    Tag { tag: String },
}

/// The name of an image: registry, repository, and a tag or digest or both or neither.
///
/// Always normalized: `busybox` is `docker.io/library/busybox`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Host and port; empty for the rare name whose first component looks like a domain but is none (`a_b.c/d`).
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Reads a reference as users write it, adding what they leave out but for the tag.
    pub fn parse_normalized(text: &str) -> Result<Self, ReferenceError> {
        let format = || ReferenceError::Format {
            text: text.to_owned(),
        };
        if text.len() == 64
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err(ReferenceError::Identifier {
                text: text.to_owned(),
            });
        }
        let (domain, remainder) = split_domain(text);
        let remote = remainder.split(':').next().unwrap_or_default();
        if remote.to_lowercase() != remote {
            return Err(ReferenceError::UpperCase {
                text: text.to_owned(),
            });
        }
        let whole = format!("{domain}/{remainder}");
        let (rest, digest) = match whole.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (whole.as_str(), None),
        };
        let last_component = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[last_component..].split_once(':') {
            Some((_, tag)) => (&rest[..rest.len() - tag.len() - 1], Some(tag)),
            None => (rest, None),
        };
        let (domain, path) = split_name(name).ok_or_else(format)?;
        if tag.is_some_and(|tag| !is_tag(tag)) || digest.is_some_and(|digest| !is_digest(digest)) {
            return Err(format());
        }
        if path.len() > LONGEST_PATH {
            return Err(ReferenceError::TooLong {
                text: text.to_owned(),
            });
        }
        let digest = digest
            .map(|digest| content_digest(text, digest))
            .transpose()?;
        Ok(Self {
            domain: domain.to_owned(),
            path: path.to_owned(),
            tag: tag.map(str::to_owned),
            digest,
        })
    }

    /// Returns host and port of the registry, `docker.io` where none was given.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Returns the repository in the registry, `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns domain and path.
    pub fn name(&self) -> String {
        match self.domain.as_str() {
            "" => self.path.clone(),
            domain => format!("{domain}/{}", self.path),
        }
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Whether there is neither tag nor digest.
    pub fn is_name_only(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }

    /// Returns the reference with the tag `latest` where it has neither tag nor digest.
    #[must_use]
    pub fn or_latest(mut self) -> Self {
        if self.is_name_only() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    pub fn with_tag(mut self, tag: &str) -> Result<Self, ReferenceError> {
        if !is_tag(tag) {
            return Err(ReferenceError::Tag {
                tag: tag.to_owned(),
            });
        }
        self.tag = Some(tag.to_owned());
        Ok(self)
    }

    #[must_use]
    pub fn with_digest(mut self, digest: Digest) -> Self {
        self.digest = Some(digest);
        self
    }

    /// Returns the reference without tag and digest.
    #[must_use]
    pub fn without_version(mut self) -> Self {
        self.tag = None;
        self.digest = None;
        self
    }

    /// Returns the short text that Docker shows: without `docker.io` and `library`.
    pub fn familiar(&self) -> String {
        let mut name = self.name();
        if self.domain == DEFAULT_DOMAIN {
            name = match self.path.strip_prefix(OFFICIAL_PREFIX) {
                Some(official) if !official.contains('/') => official.to_owned(),
                _ => self.path.clone(),
            };
        }
        self.versioned(name)
    }

    fn versioned(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(&digest.to_string());
        }
        name
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.versioned(self.name()))
    }
}

/// Same as [`Reference::parse_normalized`].
impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse_normalized(text)
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Tells by its looks whether the first component is a registry, and adds what Docker Hub's names leave out.
fn split_domain(text: &str) -> (&str, String) {
    let (domain, remainder) = match text.split_once('/') {
        None => return (DEFAULT_DOMAIN, format!("{OFFICIAL_PREFIX}{text}")),
        Some((LEGACY_DEFAULT_DOMAIN, rest)) => (DEFAULT_DOMAIN, rest),
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.to_lowercase() != first =>
        {
            (first, rest)
        }
        Some(_) => (DEFAULT_DOMAIN, text),
    };
    if domain == DEFAULT_DOMAIN && !remainder.contains('/') {
        return (domain, format!("{OFFICIAL_PREFIX}{remainder}"));
    }
    (domain, remainder.to_owned())
}

/// Splits `domain/path` where the grammar allows it, else takes the whole as a path.
fn split_name(name: &str) -> Option<(&str, &str)> {
    match name.split_once('/') {
        Some((domain, path)) if is_domain(domain) && is_path(path) => Some((domain, path)),
        _ if is_path(name) => Some(("", name)),
        _ => None,
    }
}

fn is_domain(text: &str) -> bool {
    let (host, port) = if let Some(bracketed) = text.strip_prefix('[') {
        let Some((address, rest)) = bracketed.split_once(']') else {
            return false;
        };
        if address.is_empty()
            || !address
                .bytes()
                .all(|byte| byte.is_ascii_hexdigit() || byte == b':')
        {
            return false;
        }
        match rest.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if rest.is_empty() => (None, None),
            None => return false,
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(text), None),
        }
    };
    let label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.first().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
            && bytes
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
    };
    host.is_none_or(|host| host.split('.').all(label))
        && port
            .is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

fn is_path(text: &str) -> bool {
    text.split('/').all(is_path_component)
}

/// Runs of lower-case letters and digits, joined by one dot, one or two underscores, or any number of dashes.
fn is_path_component(text: &str) -> bool {
    let alphanumeric = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9');
    let mut rest = text.as_bytes();
    loop {
        let run = rest.iter().take_while(|byte| alphanumeric(byte)).count();
        if run == 0 {
            return false;
        }
        rest = &rest[run..];
        let separator = match rest {
            [] => return true,
            [b'_', b'_', ..] => 2,
            [b'_' | b'.', ..] => 1,
            [b'-', ..] => rest.iter().take_while(|byte| **byte == b'-').count(),
            _ => return false,
        };
        rest = &rest[separator..];
    }
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.bytes().next().is_some_and(word)
        && text.len() <= LONGEST_TAG
        && text
            .bytes()
            .all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

/// Whether the text has the form of some digest, of a supported algorithm or not.
fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else {
        return false;
    };
    let component = |component: &str| {
        component
            .as_bytes()
            .first()
            .is_some_and(u8::is_ascii_alphabetic)
            && component.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    algorithm.split(['-', '_', '+', '.']).all(component)
        && hex.len() >= 32
        && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Images are kept under their SHA-256, so a name by another hash could not be checked against them.
fn content_digest(text: &str, digest: &str) -> Result<Digest, ReferenceError> {
    let digest: Digest = digest.parse().map_err(|source| ReferenceError::Digest {
        text: text.to_owned(),
        source,
    })?;
    match digest.algorithm() {
        Algorithm::Sha256 => Ok(digest),
        algorithm => Err(ReferenceError::Algorithm {
            text: text.to_owned(),
            algorithm,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &str) {
        let shown = match Reference::parse_normalized(text) {
            Ok(reference) => format!(
                "{} {reference} {}",
                reference.domain(),
                reference.familiar()
            ),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expect, "{text}");
    }

    #[test]
    fn names_of_docker_hub_are_completed() {
        check("busybox", "docker.io docker.io/library/busybox busybox");
        check(
            "busybox:1",
            "docker.io docker.io/library/busybox:1 busybox:1",
        );
        check(
            "index.docker.io/busybox",
            "docker.io docker.io/library/busybox busybox",
        );
        check(
            "moby/buildkit",
            "docker.io docker.io/moby/buildkit moby/buildkit",
        );
        check(
            "docker.io/library/a/b",
            "docker.io docker.io/library/a/b library/a/b",
        );
        check(
            "localhost:5000",
            "docker.io docker.io/library/localhost:5000 localhost:5000",
        );
    }

    #[test]
    fn a_first_component_that_looks_like_a_host_is_the_registry() {
        check("localhost/a", "localhost localhost/a localhost/a");
        check(
            "r.example:5000/a/b:t",
            "r.example:5000 r.example:5000/a/b:t r.example:5000/a/b:t",
        );
        check("[fe80::1]/a", "[fe80::1] [fe80::1]/a [fe80::1]/a");
        check("Registry/a", "Registry Registry/a Registry/a");
        check("a_b.c/d", " a_b.c/d a_b.c/d");
    }

    #[test]
    fn tag_and_digest_may_stand_together() {
        let digest = Digest::sha256_of(b"");
        check(
            &format!("a:1@{digest}"),
            &format!("docker.io docker.io/library/a:1@{digest} a:1@{digest}"),
        );
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "a:",
            "a:.x",
            "a@",
            "a@sha256:00",
            "a..b",
            "a.-b",
            "a b",
            "é",
            "host:x/a",
            "-h.c/a",
            "[::1/a",
            "[]/a",
            "[::g]/a",
            "h:/a",
            "a:b:c",
            "docker.io",
            "docker.io/",
        ] {
            let parsed = Reference::parse_normalized(text);
            assert!(parsed.is_err() || text == "docker.io", "{text}: {parsed:?}");
        }
        check(
            "Busybox",
            "the repository name in \"Busybox\" must be lower case",
        );
        check(
            &format!("a:{}", "t".repeat(129)),
            &format!("\"a:{}\" is not an image reference", "t".repeat(129)),
        );
        check(
            &"0".repeat(64),
            &format!(
                "\"{}\" cannot be an image name: it looks like an image id",
                "0".repeat(64)
            ),
        );
        assert!(Reference::parse_normalized(&format!("r.io/{}", "a".repeat(256))).is_err());
        assert!(Reference::parse_normalized(&format!("r.io/{}", "a".repeat(255))).is_ok());
    }

    #[test]
    fn latest_stands_in_for_a_missing_version_only() {
        let name = |text: &str| {
            Reference::parse_normalized(text)
                .unwrap()
                .or_latest()
                .to_string()
        };
        assert_eq!(name("a"), "docker.io/library/a:latest");
        assert_eq!(name("a:1"), "docker.io/library/a:1");
        let pinned = format!("docker.io/library/a@{}", Digest::sha256_of(b""));
        assert_eq!(name(&pinned), pinned);
    }
}
