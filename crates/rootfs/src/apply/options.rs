//! What an unpack is asked for and what it answers.

use oci::Digest;

use crate::RootPath;
use crate::compress::Format;
use crate::layer::Form;

/// What to do with device nodes of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// Make them.
    Create,
    /// Leave them out and count them: a user namespace cannot make them.
    Skip,
    /// Fail.
    Refuse,
}

/// Whose the unpacked files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// As the tar says.
    Keep,
    /// The process's own, for a user namespace that maps a single id.
    Ignore,
    /// One owner for everything.
    Set { uid: u32, gid: u32 },
}

/// The bounds past which a layer counts as a bomb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries of the tar.
    pub entries: u64,
    /// Bytes of the uncompressed tar.
    pub bytes: u64,
    /// Bytes of memory for what has to be remembered to the end: directories the tar leaves out.
    pub memory: usize,
    /// The binary logarithm of the largest zstd window that is accepted.
    pub zstd_window_log: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            entries: 10_000_000,
            bytes: 1 << 40,
            memory: 32 << 20,
            zstd_window_log: 27,
        }
    }
}

/// How to unpack a layer.
#[derive(Debug, Clone)]
pub struct ApplyOptions {
    pub form: Form,
    pub devices: Devices,
    pub ownership: Ownership,
    pub limits: Limits,
    /// The digest the uncompressed tar must have; checked after the last byte.
    pub diff_id: Option<Digest>,
}

impl ApplyOptions {
    /// Returns options that keep owners, make devices and expect nothing.
    pub fn new(form: Form) -> ApplyOptions {
        ApplyOptions {
            form,
            devices: Devices::Create,
            ownership: Ownership::Keep,
            limits: Limits::default(),
            diff_id: None,
        }
    }
}

/// What came out of an unpack.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The digest and size of the uncompressed tar.
    pub diff_id: Digest,
    pub size: u64,
    /// The digest and size of the bytes as they came in.
    pub blob: Digest,
    pub blob_size: u64,
    pub format: Format,
    /// Entries of the tar, those left out included.
    pub entries: u64,
    /// Bytes of file content.
    pub content_size: u64,
    /// Whether the tar says what the root directory is like.
    pub root: bool,
    /// Directories that the tar takes for granted, in order; [`mend`](super::mend) fills in what they are like.
    pub implicit: Vec<RootPath>,
    pub left_out: LeftOut,
}

/// What an unpack left out, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Device nodes, by [`Devices::Skip`].
    pub devices: u64,
    /// 0:0 character devices, which overlay would take for whiteouts.
    pub whiteout_devices: u64,
    /// Xattrs that do not travel: overlay's own, `trusted.` and labels of the host.
    pub reserved_xattrs: u64,
    /// Xattrs the file system would not take.
    pub unsupported_xattrs: u64,
}
