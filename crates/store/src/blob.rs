//! Content, named by its digest.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;

use oci::Digest;
use rusqlite::OptionalExtension;
use sha2::{Digest as _, Sha256};

use crate::lease::Leased;
use crate::{Store, StoreError};

/// The blobs of a store.
#[derive(Debug, Clone, Copy)]
pub struct Blobs<'a> {
    pub(crate) store: &'a Store,
}

impl Blobs<'_> {
    /// Returns where a blob lies, or would lie.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        let mut path = self.store.path("blobs");
        path.push(digest.algorithm().to_string());
        path.push(digest.hex());
        path
    }

    /// Returns the size of a blob that is there and whole.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        if !self.is_known(digest) {
            return None;
        }
        match self.store.lease_blob(digest) {
            Leased::Here(size) => Some(size),
            Leased::Gone => None,
            Leased::NotAsked => Some(std::fs::metadata(self.path(digest)).ok()?.len()),
        }
    }

    /// Returns whether there is a record of it: without one it is what a collector that was killed had
    /// no time to remove, and may go at any moment.
    fn is_known(&self, digest: &Digest) -> bool {
        let boot: Option<String> = self
            .store
            .database()
            .prepare_cached("SELECT boot FROM blob WHERE digest = ?1")
            .and_then(|mut statement| {
                statement
                    .query_row([digest.as_str()], |row| row.get(0))
                    .optional()
            })
            .ok()
            .flatten();
        match boot {
            None => false,
            Some(boot) if boot.is_empty() || boot == self.store.inner.boot => true,
            Some(_) => self.is_whole(digest),
        }
    }

    /// Returns whether a blob is what it should be that may not have reached the disk when the machine
    /// went down last; it is read once, when it is first used again.
    fn is_whole(&self, digest: &Digest) -> bool {
        let read = || -> std::io::Result<Digest> {
            let mut hash = Sha256::new();
            let mut file = File::open(self.path(digest))?;
            let mut buffer = vec![0; 1 << 18];
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok(Digest::from_sha256(hash.finalize().into())),
                    count => hash.update(&buffer[..count]),
                }
            }
        };
        if !read().is_ok_and(|found| found == *digest) {
            return false;
        }
        let trusted = self.store.write("trust a blob again", |transaction| {
            transaction.execute(
                "UPDATE blob SET boot = '' WHERE digest = ?1",
                [digest.as_str()],
            )
        });
        trusted.is_ok()
    }

    fn need(&self, digest: &Digest) -> Result<(), StoreError> {
        match self.is_known(digest) && self.store.lease_blob(digest) != Leased::Gone {
            true => Ok(()),
            false => Err(StoreError::NoBlob {
                digest: digest.clone(),
            }),
        }
    }

    /// Opens a blob.
    pub fn open(&self, digest: &Digest) -> Result<File, StoreError> {
        let path = self.path(digest);
        self.need(digest)?;
        File::open(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => StoreError::NoBlob {
                digest: digest.clone(),
            },
            _ => StoreError::io("open", path)(error),
        })
    }

    /// Reads a small blob whole and checks it.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.path(digest);
        self.need(digest)?;
        let bytes = std::fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => StoreError::NoBlob {
                digest: digest.clone(),
            },
            _ => StoreError::io("read", path)(error),
        })?;
        let actual = Digest::sha256_of(&bytes);
        if actual != *digest {
            return Err(StoreError::Mismatch {
                expected: digest.clone(),
                actual,
            });
        }
        Ok(bytes)
    }

    /// Begins a blob.
    pub fn writer(&self) -> Result<BlobWriter, StoreError> {
        self.begin(Some(Sha256::new()))
    }

    /// Begins a blob whose bytes are hashed on their way to it: it is published under the digest that is expected.
    pub fn writer_of_hashed(&self) -> Result<BlobWriter, StoreError> {
        self.begin(None)
    }

    fn begin(&self, hash: Option<Sha256>) -> Result<BlobWriter, StoreError> {
        let ingest = self.store.path("ingest");
        let file = loop {
            let file = tempfile::Builder::new()
                .prefix("blob-")
                .tempfile_in(&ingest)
                .map_err(StoreError::io("create a file in", &ingest))?;
            file.as_file()
                .lock()
                .map_err(StoreError::io("lock", file.path()))?;
            // A collector may have swept it away before it was locked.
            if file.path().exists() {
                break file;
            }
        };
        Ok(BlobWriter {
            store: self.store.clone(),
            file,
            hash,
            size: 0,
        })
    }

    /// Stores small content and returns its digest.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::sha256_of(bytes);
        if self.size(&digest) == Some(bytes.len() as u64) {
            return Ok(digest);
        }
        let mut writer = self.writer()?;
        writer.append(bytes)?;
        let (digest, _) = writer.commit(None)?;
        Ok(digest)
    }
}

/// A blob that is being written. Dropped without [`BlobWriter::commit`], it is removed.
#[derive(Debug)]
pub struct BlobWriter {
    store: Store,
    file: tempfile::NamedTempFile,
    /// None where whoever writes knows the digest.
    hash: Option<Sha256>,
    size: u64,
}

impl BlobWriter {
    /// Appends bytes.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
        self.size += bytes.len() as u64;
        self.file
            .as_file_mut()
            .write_all(bytes)
            .map_err(StoreError::io("write", self.file.path()))
    }

    /// Returns the bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Publishes the blob under its digest, synced, after it was compared with what is expected.
    pub fn commit(self, expected: Option<(&Digest, u64)>) -> Result<(Digest, u64), StoreError> {
        self.file
            .as_file()
            .sync_data()
            .map_err(StoreError::io("sync", self.file.path()))?;
        self.publish(expected, "")
    }

    /// Publishes a blob that can be made or fetched again: after a crash of the machine it counts as
    /// lost, so nothing waits for the disk now.
    pub fn commit_volatile(
        self,
        expected: Option<(&Digest, u64)>,
    ) -> Result<(Digest, u64), StoreError> {
        let boot = self.store.inner.boot.clone();
        self.publish(expected, &boot)
    }

    fn publish(
        self,
        expected: Option<(&Digest, u64)>,
        boot: &str,
    ) -> Result<(Digest, u64), StoreError> {
        let digest = match self.hash {
            Some(hash) => Digest::from_sha256(hash.finalize().into()),
            None => {
                let known = expected.map(|(digest, _)| digest.clone());
                known.expect("who hashes the bytes says their digest")
            }
        };
        if let Some((wanted, size)) = expected {
            if size != self.size {
                return Err(StoreError::Size {
                    digest: wanted.clone(),
                    actual: self.size,
                    expected: size,
                });
            }
            if *wanted != digest {
                return Err(StoreError::Mismatch {
                    expected: wanted.clone(),
                    actual: digest,
                });
            }
        }
        // What is there may be leased by others: it is not replaced by another file of equal content,
        // nor by one that is published at the same moment.
        let _lock = self.store.lock(&format!("blob-{}", digest.hex()))?;
        if self.store.blobs().size(&digest) == Some(self.size) {
            return Ok((digest, self.size));
        }
        let path = self.store.blobs().path(&digest);
        let file = self
            .file
            .persist(&path)
            .map_err(|error| StoreError::io("rename a blob to", &path)(error.error))?;
        let now = self.store.now();
        self.store.write("add a blob", |transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO blob(digest, size, created, used, boot) VALUES(?1, ?2, ?3, ?3, ?4)
                     ON CONFLICT(digest) DO UPDATE SET size = ?2, used = ?3, boot = ?4",
                )?
                .execute(rusqlite::params![
                    digest.to_string(),
                    self.size as i64,
                    now,
                    boot
                ])
        })?;
        // The writer's own lock becomes the lease: there is no moment between them.
        self.store.lease_written(&digest, file)?;
        Ok((digest, self.size))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.append(bytes).map_err(std::io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
