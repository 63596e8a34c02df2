//! Garbage collection with a hard cap.
//!
//! What is named (images with a name, and all they are made of) or leased (locked by any process)
//! is never removed. Everything else goes when the cap asks for it, the longest unused first.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::path::Path;

use oci::{Digest, Manifest};
use rustix::fs::{FlockOperation, flock};

use crate::layer::remove_tree;
use crate::{LayerId, Store, StoreError};

/// What to keep.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CollectPolicy {
    /// Bytes that may be used in all; the rest goes. `None` is no limit.
    pub max_used: Option<u64>,
    /// Bytes below which nothing is removed for the limit's sake.
    pub reserved: u64,
    /// Bytes that must be free on the file system.
    pub min_free: Option<u64>,
    /// Removes what has not been used since this time (seconds since 1970), limit or not.
    pub unused_since: Option<i64>,
    /// Removes images without a name.
    pub dangling_images: bool,
    /// Removes images with a name too, unless a running build uses them.
    pub named_images: bool,
    /// Only counts what would go.
    pub dry_run: bool,
}

/// What a collection did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Collected {
    /// Layers removed.
    pub layers: u64,
    /// Blobs removed.
    pub blobs: u64,
    /// Image records removed.
    pub images: Vec<Digest>,
    /// Bytes given back.
    pub bytes: u64,
    /// Bytes still used.
    pub used: u64,
    /// Set where what is held alone is more than the limit: bytes, and who holds them.
    pub held: Option<(u64, String)>,
}

/// One thing that takes space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// A layer or a blob.
    pub item: Item,
    /// Bytes on disk.
    pub bytes: u64,
    /// Seconds since 1970.
    pub created: i64,
    /// Seconds since 1970.
    pub used: i64,
    /// Whether an image with a name needs it.
    pub named: bool,
    /// Where it came from.
    pub origin: String,
}

/// What takes space.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    Layer(LayerId),
    Blob(Digest),
}

impl Store {
    /// Lists all that takes space, the longest unused first.
    pub fn usage(&self) -> Result<Vec<Usage>, StoreError> {
        let held = self.held_by_names(false)?;
        let mut usage = self.layer_usage()?;
        usage.extend(self.blob_usage()?);
        for entry in &mut usage {
            entry.named = held.contains_key(&entry.item);
        }
        // Of layers used last at the same time, those made later lie above the others.
        usage.sort_by(|a, b| (a.used, &b.item).cmp(&(b.used, &a.item)));
        Ok(usage)
    }

    /// Removes what the policy does not keep.
    pub fn collect(&self, policy: &CollectPolicy) -> Result<Collected, StoreError> {
        let _lock = self.lock("collect")?;
        let mut done = Collected::default();
        if !policy.dry_run {
            self.sweep()?;
        }
        if policy.dangling_images || policy.named_images {
            done.images = self.remove_images(policy)?;
        }
        let held = self.held_by_names(policy.named_images && policy.dry_run)?;
        let usage = self.usage()?;
        let mut used: u64 = usage.iter().map(|entry| entry.bytes).sum();
        let mut kept: u64 = 0;
        let mut holder = String::new();
        for entry in usage {
            if let Some(name) = held.get(&entry.item) {
                kept += entry.bytes;
                holder.clone_from(name);
                continue;
            }
            if !self.is_surplus(policy, used, &entry)? {
                continue;
            }
            let removed = match (&entry.item, policy.dry_run) {
                (_, true) => true,
                (Item::Layer(id), _) => self.remove_layer(*id, &rule_of(policy, &entry))?,
                (Item::Blob(digest), _) => self.remove_blob(digest)?,
            };
            if removed {
                used -= entry.bytes;
                done.bytes += entry.bytes;
                match entry.item {
                    Item::Layer(_) => done.layers += 1,
                    Item::Blob(_) => done.blobs += 1,
                }
            } else {
                kept += entry.bytes;
                holder = "a running build".to_owned();
            }
        }
        done.used = used;
        if policy.max_used.is_some_and(|limit| kept > limit) {
            done.held = Some((kept, holder));
        }
        Ok(done)
    }

    fn is_surplus(
        &self,
        policy: &CollectPolicy,
        used: u64,
        entry: &Usage,
    ) -> Result<bool, StoreError> {
        if policy.unused_since.is_some_and(|time| entry.used < time) {
            return Ok(true);
        }
        if used <= policy.reserved {
            return Ok(false);
        }
        if policy.max_used.is_some_and(|limit| used > limit) {
            return Ok(true);
        }
        match policy.min_free {
            None => Ok(false),
            Some(wanted) => {
                let statistics = rustix::fs::statvfs(self.root())
                    .map_err(|errno| StoreError::io("measure", self.root())(errno.into()))?;
                Ok(statistics.f_bavail * statistics.f_frsize < wanted)
            }
        }
    }

    fn layer_usage(&self) -> Result<Vec<Usage>, StoreError> {
        self.database()
            .prepare_cached(
                "SELECT layer.id, layer.bytes, layer.created, layer.origin,
                   max(layer.used, coalesce((SELECT max(result.used) FROM result_layer
                     JOIN result ON result.id = result_layer.result
                     WHERE result_layer.layer = layer.id), 0))
                 FROM layer WHERE boot <> 'ingest'",
            )
            .and_then(|mut statement| {
                statement
                    .query_map([], |row| {
                        Ok(Usage {
                            item: Item::Layer(LayerId(row.get::<_, i64>(0)? as u64)),
                            bytes: row.get::<_, i64>(1)? as u64,
                            created: row.get(2)?,
                            origin: row.get(3)?,
                            used: row.get(4)?,
                            named: false,
                        })
                    })?
                    .collect()
            })
            .map_err(StoreError::database("list the layers"))
    }

    fn blob_usage(&self) -> Result<Vec<Usage>, StoreError> {
        let rows: Vec<(String, i64, i64, i64)> = self
            .database()
            .prepare_cached("SELECT digest, size, created, used FROM blob")
            .and_then(|mut statement| {
                statement
                    .query_map([], |row| {
                        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
                    })?
                    .collect()
            })
            .map_err(StoreError::database("list the blobs"))?;
        rows.into_iter()
            .map(|(digest, size, created, used)| {
                let digest: Digest = digest.parse().map_err(|_| StoreError::Damaged {
                    subject: "the blobs".to_owned(),
                    reason: format!("{digest:?} is no digest"),
                })?;
                Ok(Usage {
                    item: Item::Blob(digest),
                    bytes: size as u64,
                    created,
                    used,
                    origin: "blob".to_owned(),
                    named: false,
                })
            })
            .collect()
    }

    /// Returns what images with a name and containers need, each with one such name.
    fn held_by_names(&self, nothing: bool) -> Result<BTreeMap<Item, String>, StoreError> {
        let mut held = BTreeMap::new();
        for container in self.containers()? {
            let holder = format!("container {}", container.name);
            held.insert(Item::Blob(container.image), holder.clone());
            for layer in container.layers {
                held.insert(Item::Layer(layer), holder.clone());
            }
        }
        if nothing {
            return Ok(held);
        }
        for name in self.names()? {
            let Some(image) = self.image(&name.image)? else {
                continue;
            };
            let mut hold = |item| {
                held.entry(item).or_insert_with(|| name.reference.clone());
            };
            hold(Item::Blob(image.id.clone()));
            for layer in image.layers.iter().flatten() {
                hold(Item::Layer(*layer));
            }
            let Some(digest) = &image.manifest else {
                continue;
            };
            hold(Item::Blob(digest.clone()));
            if let Some(index) = &name.digest {
                hold(Item::Blob(index.clone()));
            }
            let manifest = self.blobs().read(digest).ok();
            let parsed = manifest.and_then(|raw| serde_json::from_slice::<Manifest>(&raw).ok());
            // Once unpacked, the compressed form can go: an export makes or fetches it again.
            if image.layers.is_none() {
                for layer in parsed.into_iter().flat_map(|manifest| manifest.layers) {
                    hold(Item::Blob(layer.digest));
                }
            }
        }
        Ok(held)
    }

    fn remove_images(&self, policy: &CollectPolicy) -> Result<Vec<Digest>, StoreError> {
        let named: BTreeSet<Digest> = match policy.named_images {
            true => BTreeSet::new(),
            false => self.names()?.into_iter().map(|name| name.image).collect(),
        };
        let mut removed = Vec::new();
        for image in self.images()? {
            if !named.contains(&image.id) {
                if !policy.dry_run {
                    self.remove_image(&image.id)?;
                }
                removed.push(image.id);
            }
        }
        Ok(removed)
    }

    /// Removes a layer and every result it is part of; returns `false` if it is leased.
    fn remove_layer(&self, id: LayerId, rule: &str) -> Result<bool, StoreError> {
        let place = self.path(&format!("layers/{}", id.0));
        let folder = match File::open(&place) {
            Ok(folder) => Some(folder),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(StoreError::io("open", place)(error)),
        };
        if let Some(folder) = &folder
            && flock(folder, FlockOperation::NonBlockingLockExclusive).is_err()
        {
            return Ok(false);
        }
        let now = self.now();
        self.write("forget a layer", |transaction| {
            let id = id.0 as i64;
            transaction.execute(
                "INSERT OR REPLACE INTO tombstone(key, at, rule) SELECT record.key, ?2, ?3
                 FROM record JOIN result_layer ON result_layer.result = record.result
                 WHERE result_layer.layer = ?1",
                rusqlite::params![id, now, rule],
            )?;
            transaction.execute(
                "DELETE FROM record WHERE result IN
                   (SELECT result FROM result_layer WHERE layer = ?1)",
                [id],
            )?;
            transaction.execute(
                "DELETE FROM result WHERE id IN (SELECT result FROM result_layer WHERE layer = ?1)",
                [id],
            )?;
            transaction.execute(
                "DELETE FROM result_layer WHERE result NOT IN (SELECT id FROM result)",
                [],
            )?;
            transaction.execute("DELETE FROM layer WHERE id = ?1", [id])
        })?;
        if folder.is_some() {
            let grave = self.path(&format!("ingest/removed-{}", id.0));
            std::fs::rename(&place, &grave).map_err(StoreError::io("rename", &place))?;
            drop(folder);
            remove_tree(&grave).map_err(StoreError::io("remove", &grave))?;
        }
        Ok(true)
    }

    fn remove_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        let path = self.blobs().path(digest);
        match File::open(&path) {
            Ok(file) => match file.try_lock() {
                Ok(()) => std::fs::remove_file(&path).map_err(StoreError::io("remove", &path))?,
                Err(TryLockError::WouldBlock) => return Ok(false),
                Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", path)(error)),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(StoreError::io("open", path)(error)),
        }
        self.write("forget a blob", |transaction| {
            let digest = digest.to_string();
            transaction.execute("DELETE FROM encoding WHERE digest = ?1", [&digest])?;
            transaction.execute("DELETE FROM blob WHERE digest = ?1", [&digest])
        })?;
        Ok(true)
    }

    /// Removes what writers that died were writing: what is in `ingest` and not locked.
    pub fn sweep_ingest(&self) -> Result<(), StoreError> {
        for path in self.entries("ingest")? {
            remove_unlocked(&path)?;
        }
        Ok(())
    }

    /// Removes also layers without a record, and records of layers that were never finished.
    pub(crate) fn sweep(&self) -> Result<(), StoreError> {
        self.sweep_ingest()?;
        for path in self.entries("layers")? {
            let name = path.file_name().and_then(|name| name.to_str());
            let id = name.and_then(|name| name.parse().ok()).map(LayerId);
            if !id.map_or(Ok(false), |id| self.has_record(id))? {
                remove_unlocked(&path)?;
            }
        }
        self.sweep_containers()?;
        self.write("forget unfinished layers", |transaction| {
            transaction.execute(
                "DELETE FROM layer WHERE boot = 'ingest' AND created < ?1",
                [self.now() - 3600],
            )
        })?;
        Ok(())
    }

    fn entries(&self, folder: &str) -> Result<Vec<std::path::PathBuf>, StoreError> {
        let path = self.path(folder);
        let list = || -> std::io::Result<Vec<std::path::PathBuf>> {
            std::fs::read_dir(&path)?
                .map(|entry| Ok(entry?.path()))
                .collect()
        };
        list().map_err(StoreError::io("list", &path))
    }

    /// Removes the folders of containers that were never recorded.
    fn sweep_containers(&self) -> Result<(), StoreError> {
        let Ok(entries) = std::fs::read_dir(self.path("containers")) else {
            return Ok(());
        };
        for entry in entries.flatten() {
            let Ok(id) = entry.file_name().into_string() else {
                continue;
            };
            if let Some(_lock) = self.try_lock_container(&id)?
                && self.container(&id)?.is_none()
            {
                remove_tree(&entry.path()).map_err(StoreError::io("remove", entry.path()))?;
            }
        }
        Ok(())
    }

    fn has_record(&self, id: LayerId) -> Result<bool, StoreError> {
        self.database()
            .prepare_cached("SELECT 1 FROM layer WHERE id = ?1")
            .and_then(|mut statement| statement.exists([id.0 as i64]))
            .map_err(StoreError::database("look up a layer"))
    }
}

fn rule_of(policy: &CollectPolicy, entry: &Usage) -> String {
    match policy {
        CollectPolicy {
            unused_since: Some(time),
            ..
        } if entry.used < *time => "unused for too long".to_owned(),
        CollectPolicy {
            max_used: Some(limit),
            ..
        } => format!("max-used-space={limit}"),
        CollectPolicy {
            min_free: Some(free),
            ..
        } => format!("min-free-space={free}"),
        _ => "prune".to_owned(),
    }
}

/// Removes a file or directory unless a process holds its lock.
fn remove_unlocked(path: &Path) -> Result<(), StoreError> {
    let Ok(file) = File::open(path) else {
        return Ok(());
    };
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(());
    }
    let is_folder = file.metadata().is_ok_and(|meta| meta.is_dir());
    if is_folder {
        remove_tree(path).map_err(StoreError::io("remove", path))
    } else {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", path)(error))
            }
            _ => Ok(()),
        }
    }
}
