//! What a layer tar is asked to be, and what came out.

use oci::Digest;

use crate::compress::BlockPlace;
use crate::layer::Form;

/// How exact the modification times in a tar are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TimePrecision {
    /// To the nanosecond: a PAX record for every time that is not a whole second.
    Nanoseconds,
    /// Cut to the second, as the reference does.
    Seconds,
}

/// How to write a layer tar.
#[derive(Debug, Clone)]
pub struct DiffOptions {
    pub form: Form,
    pub precision: TimePrecision,
    /// Times later than this (seconds since the epoch) become this: `SOURCE_DATE_EPOCH`.
    pub clamp: Option<i64>,
    /// Whether to compute [`Diffed::content_id`] too, which hashes every file once more.
    pub content_id: bool,
}

impl DiffOptions {
    /// Returns options that keep times as they are and compute no content id.
    pub fn new(form: Form) -> DiffOptions {
        DiffOptions {
            form,
            precision: TimePrecision::Nanoseconds,
            clamp: None,
            content_id: false,
        }
    }
}

/// What a layer tar turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diffed {
    /// The digest and size of the uncompressed tar.
    pub diff_id: Digest,
    pub size: u64,
    /// Entries of the tar, whiteouts included.
    pub entries: u64,
    /// Bytes of file content.
    pub content_size: u64,
    /// The digest of what the layer holds, times left out; the key of its content.
    pub content_id: Option<Digest>,
}

/// A layer written out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub layer: Diffed,
    /// The digest and size of the bytes that went out.
    pub blob: Digest,
    pub blob_size: u64,
    /// Where compressed blocks lie in the blob, when they were looked up: to be remembered.
    pub blocks: Vec<BlockPlace>,
}
