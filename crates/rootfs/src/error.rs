use std::io;

/// What can go wrong with file trees.
///
/// Paths in it are paths inside the tree that was worked on, never host paths, where a tree is the subject.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("failed to {action} {path}")]
    Io {
        action: &'static str,
        path: String,
        source: io::Error,
    },
    #[error("{path}: no such file or directory")]
    NotFound { path: String },
    #[error("{path} is not a directory")]
    NotADirectory { path: String },
    #[error("cannot copy to non-directory: {path}")]
    CopyToNonDirectory { path: String },
    #[error("cannot replace directory {path} with a file")]
    ReplaceDirectory { path: String },
    #[error("too many symbolic links in {path}")]
    TooManyLinks { path: String },
    #[error("invalid path {path:?}: {reason}")]
    InvalidPath { path: String, reason: &'static str },
    #[error("invalid file mode {text:?}: {reason}")]
    InvalidMode { text: String, reason: &'static str },
    #[error("{count} layers are more than the {most} one overlay can hold")]
    TooManyLowers { count: usize, most: usize },
    #[error("overlay file systems cannot be used: {reason}")]
    OverlayUnsupported { reason: String },
    #[error("the tree is read-only at {path}")]
    ReadOnly { path: String },
    #[error("{path} changed while it was read")]
    Changed { path: String },
    #[error("{member} in the archive {archive}: {reason}")]
    Archive {
        archive: String,
        member: String,
        reason: String,
    },
    #[error("layer tar is malformed at byte {offset}: {reason}")]
    MalformedTar { offset: u64, reason: &'static str },
    #[error("layer tar is cut off")]
    TruncatedTar,
    #[error("layer entry {path:?} is refused: {reason}")]
    RefusedEntry { path: String, reason: &'static str },
    #[error("layer has more than {limit} {what}")]
    LayerLimit { what: &'static str, limit: u64 },
    #[error("archive has more than {limit} {what}")]
    ArchiveLimit { what: &'static str, limit: u64 },
    #[error("stopped while an archive was read")]
    Stopped,
    #[error("failed to read layer")]
    ReadLayer { source: io::Error },
    #[error("failed to decompress layer")]
    Decompress { source: io::Error },
    #[error("failed to compress layer")]
    Compress { source: io::Error },
    #[error("failed to write layer")]
    WriteLayer { source: io::Error },
    #[error("layer tar is {actual}, expected {expected}")]
    DiffId {
        expected: oci::Digest,
        actual: oci::Digest,
    },
    #[error("{path} cannot be in a layer: {reason}")]
    NotInLayer { path: String, reason: &'static str },
}

/// The result of an operation on file trees.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Names the action and the path of a failed system call; a missing file becomes [`Error::NotFound`].
    pub(crate) fn io(
        action: &'static str,
        path: impl AsRef<[u8]>,
        source: impl Into<io::Error>,
    ) -> Error {
        let source = source.into();
        let path = String::from_utf8_lossy(path.as_ref()).into_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Error::NotFound { path },
            _ => Error::Io {
                action,
                path,
                source,
            },
        }
    }
}
