//! Locks between processes, released by the kernel when their holder dies.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use crate::{LockNote, StoreError};

/// A lock with a name, held until it is dropped.
///
/// Two holders in one process exclude each other too: each opens the file for itself.
#[derive(Debug)]
pub struct NamedLock {
    file: File,
    path: PathBuf,
}

impl NamedLock {
    pub(crate) fn acquire(path: &Path) -> Result<Self, StoreError> {
        loop {
            let file = open(path)?;
            file.lock().map_err(StoreError::io("lock", path))?;
            if let Some(lock) = Self::still_named(file, path) {
                return Ok(lock);
            }
        }
    }

    pub(crate) fn try_acquire(path: &Path) -> Result<Option<Self>, StoreError> {
        loop {
            let file = open(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", path)(error)),
            }
            if let Some(lock) = Self::still_named(file, path) {
                return Ok(Some(lock));
            }
        }
    }

    /// Says to who waits where the log is of what is done under the lock.
    pub fn note(&mut self, note: &LockNote) -> Result<(), StoreError> {
        let line = note.line();
        // What an earlier holder left may be longer; no note is read in between.
        rustix::fs::ftruncate(&self.file, 0)
            .and_then(|()| rustix::io::pwrite(&self.file, line.as_bytes(), 0))
            .map_err(|errno| StoreError::io("write the lock", &self.path)(errno.into()))?;
        Ok(())
    }

    /// The last holder removes the file; whoever waited on the removed one must begin again.
    fn still_named(file: File, path: &Path) -> Option<Self> {
        let named = rustix::fs::stat(path).ok()?;
        let held = rustix::fs::fstat(&file).ok()?;
        ((named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)).then(|| Self {
            file,
            path: path.to_owned(),
        })
    }
}

impl AsFd for NamedLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for NamedLock {
    fn drop(&mut self) {
        // Removed while it is still held, so that no two can hold files of one name.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn open(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .read(true)
        .open(path)
        .map_err(StoreError::io("open the lock", path))
}
