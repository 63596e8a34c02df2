//! Blobs in use: held by a shared lock on their file, as long as a build of this process goes on.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Mutex, MutexGuard};

use oci::Digest;
use rustix::fs::{FlockOperation, flock, fstat, stat};

use crate::{Store, StoreError};

/// The blobs this process holds, and how many users it has who want them held.
#[derive(Debug, Default)]
pub(crate) struct BlobTable(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    users: usize,
    files: HashMap<Digest, File>,
}

/// What asking for a lease found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Leased {
    /// It is held from now on; its size.
    Here(u64),
    /// It is not there.
    Gone,
    /// Nobody wants blobs held.
    NotAsked,
}

/// As long as this lives, every blob that is found, read or written through the store stays there.
#[derive(Debug)]
pub struct BlobLease {
    store: Store,
}

impl Drop for BlobLease {
    fn drop(&mut self) {
        let mut held = self.store.inner.blobs.held();
        held.users -= 1;
        if held.users == 0 {
            held.files.clear();
        }
    }
}

impl BlobTable {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

impl Store {
    /// Holds the blobs that are used from now on, until what is returned is dropped.
    pub fn hold_blobs(&self) -> BlobLease {
        self.inner.blobs.held().users += 1;
        BlobLease {
            store: self.clone(),
        }
    }

    pub(crate) fn lease_blob(&self, digest: &Digest) -> Leased {
        let mut held = self.inner.blobs.held();
        if held.users == 0 {
            return Leased::NotAsked;
        }
        let size_of = |file: &File| match fstat(file) {
            Ok(found) => Leased::Here(found.st_size as u64),
            Err(_) => Leased::Gone,
        };
        let path = self.blobs().path(digest);
        if let Some(file) = held.files.get(digest) {
            // Someone may have removed it by hand.
            return match same_file(file, &path) {
                true => size_of(file),
                false => Leased::Gone,
            };
        }
        let Ok(file) = File::open(&path) else {
            return Leased::Gone;
        };
        // The collector holds its lock only while it removes: what it has is as good as gone.
        if flock(&file, FlockOperation::NonBlockingLockShared).is_err() || !same_file(&file, &path)
        {
            return Leased::Gone;
        }
        let found = size_of(&file);
        held.files.insert(digest.clone(), file);
        found
    }

    /// Turns the exclusive lock of a writer into a lease.
    pub(crate) fn lease_written(&self, digest: &Digest, file: File) -> Result<(), StoreError> {
        let mut held = self.inner.blobs.held();
        if held.users == 0 {
            return Ok(());
        }
        flock(&file, FlockOperation::LockShared)
            .map_err(|errno| StoreError::io("lock", self.blobs().path(digest))(errno.into()))?;
        held.files.insert(digest.clone(), file);
        Ok(())
    }
}

/// Returns whether a path names this very file.
pub(crate) fn same_file(file: &File, path: &std::path::Path) -> bool {
    match (fstat(file), stat(path)) {
        (Ok(held), Ok(named)) => (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino),
        _ => false,
    }
}
