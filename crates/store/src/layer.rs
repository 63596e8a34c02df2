//! Layer directories: made, committed, leased.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use rusqlite::OptionalExtension;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use crate::mount::sizes;
use crate::{Store, StoreError};

/// Names a layer directory of one store.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct LayerId(pub u64);

/// A committed layer, leased: it is not removed while any clone of this exists, in any process.
#[derive(Debug, Clone)]
pub struct Layer {
    inner: Arc<LayerLease>,
}

#[derive(Debug)]
struct LayerLease {
    id: LayerId,
    path: PathBuf,
    /// The layer's folder, locked shared.
    folder: File,
}

/// The leases this process holds, so that a layer is locked once.
#[derive(Debug, Default)]
pub(crate) struct LayerTable(Mutex<HashMap<LayerId, Weak<LayerLease>>>);

/// What is recorded of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Digest and length of the layer's tar, once someone has made it.
    pub tar: Option<(oci::Digest, u64)>,
    /// Checksum of the content without times, once someone has computed it.
    pub content_id: Option<[u8; 32]>,
    /// Bytes on disk.
    pub bytes: u64,
    /// Bytes of file content.
    pub content: u64,
    /// The step or image it came from.
    pub origin: String,
    /// Seconds since 1970.
    pub created: i64,
}

impl Layer {
    /// Returns the layer's name.
    pub fn id(&self) -> LayerId {
        self.inner.id
    }

    /// Returns the layer's tree, an overlay lower directory.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }
}

impl AsFd for Layer {
    /// The descriptor that carries the lease; a process that inherits it holds the lease too.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.folder.as_fd()
    }
}

impl PartialEq for Layer {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for Layer {}

/// A layer that is being made. Dropped without [`MutLayer::commit`], it is removed.
#[derive(Debug)]
pub struct MutLayer {
    store: Store,
    folder: PathBuf,
    /// The folder, locked exclusively: what is not locked in `ingest` is rubbish.
    lock: Option<File>,
}

impl MutLayer {
    /// Returns the directory to fill: an overlay upper directory.
    pub fn path(&self) -> PathBuf {
        self.folder.join("fs")
    }

    /// Returns an empty directory beside it, for overlay's `workdir`.
    pub fn work(&self) -> PathBuf {
        self.folder.join("work")
    }

    /// Returns the descriptor that keeps the folder alive, for a child that writes into it.
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.lock
            .as_ref()
            .expect("the lock is taken only by commit and drop")
            .as_fd()
    }

    /// Makes it a layer of the store.
    pub fn commit(self, info: LayerInfo) -> Result<Layer, StoreError> {
        self.commit_as(info, None)
    }

    /// Makes it the layer of an image, found by `unpack_key` from now on. If another process was
    /// first, its layer is returned and this one removed.
    pub fn commit_unpacked(self, info: LayerInfo, unpack_key: &str) -> Result<Layer, StoreError> {
        self.commit_as(info, Some(unpack_key))
    }

    fn commit_as(mut self, info: LayerInfo, unpack_key: Option<&str>) -> Result<Layer, StoreError> {
        let work = self.work();
        remove_tree(&work).map_err(StoreError::io("remove", &work))?;
        let store = self.store.clone();
        if let Some(key) = unpack_key
            && let Some(layer) = store.layer_of_image(key)?
        {
            return Ok(layer);
        }
        let now = store.now();
        let mut wanted = None;
        let (id, place) = loop {
            let id = store.write("add a layer", |transaction| {
                if add_row(transaction, wanted, &info, now)? == 0 {
                    // Another took this id; the next one of its own is above it.
                    add_row(transaction, None, &info, now)?;
                }
                Ok(LayerId(transaction.last_insert_rowid() as u64))
            })?;
            // The row is invisible (boot = 'ingest') until the directory has its place.
            let place = store.path(&format!("layers/{}", id.0));
            match std::fs::rename(&self.folder, &place) {
                Ok(()) => break (id, place),
                // Records that were lost have begun to count anew: from here on above what is there.
                Err(error) if wanted.is_none() && is_taken(&error) => {
                    wanted = Some(store.forget_taken(id)?);
                }
                Err(error) => return Err(StoreError::io("rename a layer to", &place)(error)),
            }
        };
        let lock = self.lock.take().expect("a layer is committed once");
        flock(&lock, FlockOperation::LockShared)
            .map_err(|errno| StoreError::io("lock", &place)(errno.into()))?;
        let lease = Arc::new(LayerLease {
            id,
            path: place.join("fs"),
            folder: lock,
        });
        let boot = &store.inner.boot;
        let published = store.write("publish a layer", |transaction| {
            // A collector whose clock has jumped may have taken the row for one that was left.
            add_row(transaction, Some(id), &info, now)?;
            transaction.execute(
                "UPDATE OR IGNORE layer SET boot = ?2, unpack_key = ?3 WHERE id = ?1",
                rusqlite::params![id.0 as i64, boot, unpack_key],
            )
        })?;
        if published == 0 {
            // Another process published the same image layer in between.
            let key = unpack_key.unwrap_or_default();
            if let Some(layer) = store.layer_of_image(key)? {
                return Ok(layer);
            }
            return Err(StoreError::Damaged {
                subject: format!("layer {}", id.0),
                reason: "it was removed while the layer was added".to_owned(),
            });
        }
        store.inner.layers.remember(&lease);
        Ok(Layer { inner: lease })
    }
}

fn is_taken(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{AlreadyExists, DirectoryNotEmpty};
    matches!(error.kind(), AlreadyExists | DirectoryNotEmpty)
}

/// Adds the row of a layer that is not published yet, unless it is there; without an id it gets a new one.
fn add_row(
    transaction: &rusqlite::Transaction<'_>,
    id: Option<LayerId>,
    info: &LayerInfo,
    now: i64,
) -> rusqlite::Result<usize> {
    transaction.execute(
        "INSERT OR IGNORE INTO layer(id, unpack_key, diff_id, tar_size, content_id, bytes, origin, boot, created, used, content)
         VALUES(?8, NULL, ?1, ?2, ?3, ?4, ?5, 'ingest', ?6, ?6, ?7)",
        rusqlite::params![
            info.tar.as_ref().map(|(digest, _)| digest.to_string()),
            info.tar.as_ref().map(|(_, size)| *size as i64),
            info.content_id.as_ref().map(|id| id.as_slice()),
            info.bytes as i64,
            info.origin,
            now,
            info.content as i64,
            id.map(|id| id.0 as i64),
        ],
    )
}

impl Drop for MutLayer {
    fn drop(&mut self) {
        if self.lock.is_some() {
            let _ = remove_tree(&self.folder);
        }
    }
}

impl LayerTable {
    fn get(&self, id: LayerId) -> Option<Layer> {
        let table = self.0.lock().unwrap_or_else(|poison| poison.into_inner());
        let inner = table.get(&id)?.upgrade()?;
        Some(Layer { inner })
    }

    fn remember(&self, lease: &Arc<LayerLease>) {
        let mut table = self.0.lock().unwrap_or_else(|poison| poison.into_inner());
        table.retain(|_, weak| weak.strong_count() > 0);
        table.insert(lease.id, Arc::downgrade(lease));
    }
}

impl Store {
    /// Makes an empty layer to fill.
    pub fn new_layer(&self) -> Result<MutLayer, StoreError> {
        let ingest = self.path("ingest");
        let (folder, lock) = loop {
            let folder = tempfile::Builder::new()
                .prefix("layer-")
                .tempdir_in(&ingest)
                .map_err(StoreError::io("create a directory in", &ingest))?
                .keep();
            let Ok(lock) = open_folder(&folder) else {
                continue;
            };
            flock(&lock, FlockOperation::LockExclusive)
                .map_err(|errno| StoreError::io("lock", &folder)(errno.into()))?;
            // A collector may have swept it away before it was locked.
            if folder.exists() {
                break (folder, lock);
            }
        };
        let layer = MutLayer {
            store: self.clone(),
            folder,
            lock: Some(lock),
        };
        for path in [layer.path(), layer.work()] {
            std::fs::create_dir(&path).map_err(StoreError::io("create", &path))?;
        }
        Ok(layer)
    }

    /// Forgets the row of a layer whose place is taken. Returns the first id above all places.
    fn forget_taken(&self, id: LayerId) -> Result<LayerId, StoreError> {
        self.write("forget an unfinished layer", |transaction| {
            transaction.execute("DELETE FROM layer WHERE id = ?1", [id.0 as i64])
        })?;
        let number = |path: PathBuf| path.file_name()?.to_str()?.parse::<u64>().ok();
        let places = self.entries("layers")?.into_iter().filter_map(number);
        Ok(LayerId(places.max().unwrap_or(id.0).max(id.0) + 1))
    }

    /// Leases a layer; `None` if it is not there (any more).
    pub fn layer(&self, id: LayerId) -> Result<Option<Layer>, StoreError> {
        if let Some(layer) = self.inner.layers.get(id) {
            return Ok(Some(layer));
        }
        let place = self.path(&format!("layers/{}", id.0));
        let Ok(folder) = open_folder(&place) else {
            return Ok(None);
        };
        flock(&folder, FlockOperation::LockShared)
            .map_err(|errno| StoreError::io("lock", &place)(errno.into()))?;
        // The collector renames a layer away under its exclusive lock before it removes it.
        let held = rustix::fs::fstat(&folder);
        let named = rustix::fs::stat(&place);
        if held.map(|stat| stat.st_ino).ok() != named.map(|stat| stat.st_ino).ok() {
            return Ok(None);
        }
        let path = place.join("fs");
        if !self.is_whole(id, &path)? {
            return Ok(None);
        }
        let lease = Arc::new(LayerLease { id, path, folder });
        self.inner.layers.remember(&lease);
        Ok(Some(Layer { inner: lease }))
    }

    /// Returns whether a layer is published and whole.
    ///
    /// Nothing is synced when a layer is made. One that was made before the machine went down last is
    /// looked at once, when it is first used again: files that never reached the disk are gone or empty.
    fn is_whole(&self, id: LayerId, path: &Path) -> Result<bool, StoreError> {
        let found: Option<(String, i64)> = self
            .database()
            .prepare_cached("SELECT boot, content FROM layer WHERE id = ?1 AND boot <> 'ingest'")
            .and_then(|mut statement| {
                let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
                statement.query_row([id.0 as i64], row).optional()
            })
            .map_err(StoreError::database("look up a layer"))?;
        let Some((boot, content)) = found else {
            return Ok(false);
        };
        if boot.is_empty() || boot == self.inner.boot {
            return Ok(true);
        }
        if !path.is_dir() || sizes(path).content != content as u64 {
            return Ok(false);
        }
        self.write("trust a layer again", |transaction| {
            transaction.execute("UPDATE layer SET boot = '' WHERE id = ?1", [id.0 as i64])
        })?;
        Ok(true)
    }

    /// Leases all layers of a chain, or none if one is gone.
    pub fn layers(&self, ids: &[LayerId]) -> Result<Option<Vec<Layer>>, StoreError> {
        ids.iter().map(|id| self.layer(*id)).collect()
    }

    /// Leases the layer that was unpacked from an image layer under this key.
    pub fn layer_of_image(&self, unpack_key: &str) -> Result<Option<Layer>, StoreError> {
        let id = self
            .database()
            .prepare_cached("SELECT id FROM layer WHERE unpack_key = ?1 AND boot <> 'ingest'")
            .and_then(|mut statement| {
                statement
                    .query_row([unpack_key], |row| row.get::<_, i64>(0))
                    .optional()
            })
            .map_err(StoreError::database("look up an image layer"))?;
        let Some(id) = id else { return Ok(None) };
        let layer = self.layer(LayerId(id as u64))?;
        if layer.is_none() {
            // The directory is gone or not whole: let the next unpack take the key.
            self.write("forget a lost layer", |transaction| {
                transaction.execute("UPDATE layer SET unpack_key = NULL WHERE id = ?1", [id])
            })?;
        }
        Ok(layer)
    }

    /// Returns whether a layer came with an image.
    pub fn is_image_layer(&self, id: LayerId) -> Result<bool, StoreError> {
        self.database()
            .prepare_cached("SELECT 1 FROM layer WHERE id = ?1 AND unpack_key IS NOT NULL")
            .and_then(|mut statement| statement.exists([id.0 as i64]))
            .map_err(StoreError::database("look up a layer"))
    }

    /// Returns what is recorded of a layer.
    pub fn layer_info(&self, id: LayerId) -> Result<LayerInfo, StoreError> {
        let row = self
            .database()
            .prepare_cached(
                "SELECT diff_id, tar_size, content_id, bytes, origin, created, content FROM layer WHERE id = ?1",
            )
            .and_then(|mut statement| {
                statement.query_row([id.0 as i64], |row| {
                    Ok((
                        row.get::<_, Option<String>>(0)?,
                        row.get::<_, Option<i64>>(1)?,
                        row.get::<_, Option<Vec<u8>>>(2)?,
                        row.get::<_, i64>(3)?,
                        row.get::<_, String>(4)?,
                        row.get::<_, i64>(5)?,
                        row.get::<_, i64>(6)?,
                    ))
                })
            })
            .map_err(StoreError::database("read a layer"))?;
        let (diff_id, tar_size, content_id, bytes, origin, created, content) = row;
        let tar = match (diff_id, tar_size) {
            (Some(text), Some(size)) => {
                let digest = text.parse().map_err(|_| StoreError::Damaged {
                    subject: format!("layer {}", id.0),
                    reason: format!("{text:?} is no digest"),
                })?;
                Some((digest, size as u64))
            }
            _ => None,
        };
        Ok(LayerInfo {
            tar,
            content_id: content_id.and_then(|bytes| bytes.try_into().ok()),
            bytes: bytes as u64,
            content: content as u64,
            origin,
            created,
        })
    }

    /// Records the digest and length of a layer's tar.
    pub fn set_layer_tar(
        &self,
        id: LayerId,
        diff_id: &oci::Digest,
        size: u64,
    ) -> Result<(), StoreError> {
        self.write("record a diff id", |transaction| {
            transaction.execute(
                "UPDATE layer SET diff_id = ?2, tar_size = ?3 WHERE id = ?1",
                rusqlite::params![id.0 as i64, diff_id.to_string(), size as i64],
            )?;
            Ok(())
        })
    }

    /// Says when a layer was made, where that was before it came here.
    pub fn set_layer_age(&self, id: LayerId, created: i64) -> Result<(), StoreError> {
        self.write("record when a layer was made", |transaction| {
            transaction.execute(
                "UPDATE layer SET created = min(created, ?2) WHERE id = ?1",
                rusqlite::params![id.0 as i64, created],
            )?;
            Ok(())
        })
    }

    /// Records the content checksum of a layer.
    pub fn set_layer_content_id(&self, id: LayerId, content: &[u8; 32]) -> Result<(), StoreError> {
        self.write("record a content id", |transaction| {
            transaction.execute(
                "UPDATE layer SET content_id = ?2 WHERE id = ?1",
                rusqlite::params![id.0 as i64, content.as_slice()],
            )?;
            Ok(())
        })
    }
}

fn open_folder(path: &Path) -> std::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// Removes a tree of hostile content: directories without permissions, any depth.
pub(crate) fn remove_tree(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            std::fs::remove_dir_all(path)
        }
        Err(error) => Err(error),
    }
}

/// Gives this user all permissions on the directories below, for a store without privileges.
fn open_up(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut work = vec![path.to_owned()];
    while let Some(folder) = work.pop() {
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700))?;
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                work.push(entry.path());
            }
        }
    }
    Ok(())
}
