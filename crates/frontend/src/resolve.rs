//! What a lowering must be told about the world, asked for all at once.

use std::collections::BTreeMap;

use oci::{Digest, ImageConfig, Platform};

use crate::ResolveMode;

/// A question whose answer a lowering needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Request {
    /// The config of an image.
    Image(ImageRequest),
    /// The time of a source, for `SOURCE_DATE_EPOCH`: a git commit's, or that of a file behind a URL.
    SourceTime(SourceRequest),
}

/// Asks for the config of an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageRequest {
    /// Normalized, with a tag or a digest.
    pub reference: String,
    pub platform: Platform,
    pub mode: ResolveMode,
    /// The OCI layout it is in; `None` is a registry, or the builder's own store.
    pub store: Option<String>,
    /// The name of the vertex under which progress is shown.
    pub name: String,
}

/// Asks for the time of a source.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceRequest {
    pub identifier: String,
    pub attrs: BTreeMap<String, String>,
    pub name: String,
}

/// An image that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedImage {
    /// The reference it was found by, if another than was asked for (a policy may say so).
    pub reference: Option<String>,
    /// The digest of its manifest or index; `None` for one that has none.
    pub digest: Option<Digest>,
    pub config: ImageConfig,
}

/// Why an image cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unresolved {
    pub reason: String,
    /// What to do about it.
    pub help: Option<String>,
}

/// The answers there are.
///
/// An answer that is an error fails the build at the instruction that asked.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    pub images: BTreeMap<ImageRequest, Result<ResolvedImage, Unresolved>>,
    /// Seconds since 1970; `None` where the source has no time.
    pub source_times: BTreeMap<SourceRequest, Result<Option<i64>, String>>,
}
