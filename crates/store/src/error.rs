//! What can go wrong in the store.

use std::path::PathBuf;

use oci::Digest;

/// Why an operation of the store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A system call failed.
    #[error("failed to {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// The record database refused.
    #[error("failed to {action} in the record database")]
    Database {
        action: &'static str,
        source: rusqlite::Error,
    },
    /// A blob's bytes are not what its name says.
    #[error("content is {actual}, expected {expected}")]
    Mismatch { expected: Digest, actual: Digest },
    /// A blob has another size than announced.
    #[error("content of {digest} has {actual} bytes, expected {expected}")]
    Size {
        digest: Digest,
        actual: u64,
        expected: u64,
    },
    /// A record holds something this version cannot read.
    #[error("record of {subject} is damaged: {reason}")]
    Damaged { subject: String, reason: String },
    /// The state directory was made by a newer lapstrake.
    #[error(
        "state directory {} has {what} {found}, this version reads up to {known}; \
         use a newer lapstrake or another --root", path.display()
    )]
    TooNew {
        path: PathBuf,
        what: &'static str,
        found: u32,
        known: u32,
    },
    /// The state directory belongs to another id map.
    #[error(
        "state directory {} was made {found}, this process runs {wanted}; \
         use another --root", path.display()
    )]
    OtherIds {
        path: PathBuf,
        found: String,
        wanted: String,
    },
    /// Locks do not hold there.
    #[error(
        "state directory {} lies on a network file system ({kind}), where locks between \
         processes cannot be trusted; use a --root on a local disk", path.display()
    )]
    NetworkFileSystem { path: PathBuf, kind: &'static str },
    /// Two containers cannot have one name.
    #[error("the container name {name:?} is already in use")]
    NameTaken { name: String },
    /// An image is not there, or not any more.
    #[error("image {id} is not in the store")]
    NoImage { id: Digest },
    /// A blob is not there.
    #[error("content {digest} is not in the store")]
    NoBlob { digest: Digest },
}

impl StoreError {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> StoreError {
        let path = path.into();
        move |source| StoreError::Io {
            action,
            path,
            source,
        }
    }

    pub(crate) fn database(action: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError {
        move |source| StoreError::Database {
            action,
            source: in_plain_words(source),
        }
    }

    /// Returns whether the records themselves cannot be read: no file of records, or a broken one.
    pub fn is_damaged(&self) -> bool {
        match self {
            StoreError::Database { source, .. } => matches!(
                source.sqlite_error_code(),
                Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt)
            ),
            _ => false,
        }
    }

    /// Returns whether the disk, or the user's share of it, is full.
    pub fn is_no_space(&self) -> bool {
        match self {
            StoreError::Io { source, .. } => matches!(
                source.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            ),
            StoreError::Database { source, .. } => {
                source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
            }
            _ => false,
        }
    }
}

/// Says of a failure to make the index of the write-ahead log larger what it is: the disk is full.
fn in_plain_words(error: rusqlite::Error) -> rusqlite::Error {
    use rusqlite::ffi;
    match error {
        rusqlite::Error::SqliteFailure(failure, _)
            if failure.extended_code == ffi::SQLITE_IOERR_SHMSIZE =>
        {
            let full = ffi::Error::new(ffi::SQLITE_FULL);
            rusqlite::Error::SqliteFailure(full, Some("database or disk is full".to_owned()))
        }
        error => error,
    }
}
