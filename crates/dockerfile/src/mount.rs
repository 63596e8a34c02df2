//! `RUN --mount` and `--device`: comma-separated fields, most of them read only when variables are known.

use crate::Word;

/// A `--mount` as written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MountSpec {
    /// The value of the flag.
    pub text: Word,
    /// The `from=` field, which cannot hold a variable and so is known at once.
    pub from: Option<String>,
}

/// A mount with all its fields read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub kind: MountKind,
    pub from: String,
    pub source: String,
    pub target: String,
    pub read_only: bool,
    /// In bytes, 0 if not given; only of a tmpfs.
    pub size_limit: i64,
    /// The `id=` field of a cache, secret or ssh mount.
    pub id: String,
    pub sharing: Option<CacheSharing>,
    pub required: bool,
    /// The environment variable that gets a secret.
    pub env: Option<String>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// The `type=` field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MountKind {
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

/// The `sharing=` field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CacheSharing {
    Shared,
    Private,
    Locked,
}
