//! Garbage collection with a hard cap.
//!
//! What is named (images with a name, and all they are made of), belongs to a container, or is leased
//! (locked by any process) is never removed. Everything else goes when the cap asks for it.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::path::PathBuf;

use oci::Digest;
use rusqlite::Transaction;
use rustix::fs::{FlockOperation, flock};

use crate::layer::remove_tree;
use crate::lease::same_file;
use crate::usage::holdings;
use crate::{Item, ItemKind, LayerId, Store, StoreError, Usage};

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
    /// Touches nothing else than these kinds; all if empty.
    pub kinds: BTreeSet<ItemKind>,
    /// Touches nothing else than what has one of these ids, or begins of ids; all if empty.
    pub ids: Vec<String>,
    /// Touches nothing else than these.
    pub items: Option<BTreeSet<Item>>,
    /// Removes images without a name.
    pub dangling_images: bool,
    /// Only counts what would go.
    pub dry_run: bool,
}

impl CollectPolicy {
    /// Returns whether an item may be touched at all.
    pub fn covers(&self, entry: &Usage) -> bool {
        let kind = self.kinds.is_empty() || self.kinds.contains(&entry.kind);
        let id = entry.item.to_string();
        let items = self.items.as_ref();
        kind && items.is_none_or(|items| items.contains(&entry.item))
            && (self.ids.is_empty() || self.ids.iter().any(|wanted| id.starts_with(wanted)))
    }

    fn rule(&self, entry: &Usage) -> String {
        match (self.unused_since, self.max_used, self.min_free) {
            (Some(i64::MAX), None, None) => "prune".to_owned(),
            (Some(time), _, _) if entry.used < time => "unused for too long".to_owned(),
            (_, Some(limit), _) => format!("max-used-space={limit}"),
            (_, None, Some(free)) => format!("min-free-space={free}"),
            _ => "prune".to_owned(),
        }
    }
}

/// What a collection did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Collected {
    /// What was removed, in this order.
    pub items: Vec<Usage>,
    /// Image records removed.
    pub images: Vec<Digest>,
    /// Bytes given back.
    pub bytes: u64,
    /// Bytes still used.
    pub used: u64,
    /// Set where what is held alone is more than the limit: bytes, and who holds most of them.
    pub held: Option<(u64, String)>,
}

/// A file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    pub size: u64,
    /// What an ordinary user may still write.
    pub free: u64,
}

/// Things removed in one transaction.
const BATCH: usize = 64;

/// How long the record of a layer may be there before its directory, in seconds: moments, unless the builder
/// is stopped in between.
const UNFINISHED: i64 = 600;

/// Notes older than this explain nothing any more, in seconds.
const TOMBSTONE_LIFE: i64 = 90 * 86_400;

/// Something to remove, locked against everybody else.
struct Doomed {
    entry: Usage,
    rule: String,
    place: PathBuf,
    lock: Option<File>,
}

impl Store {
    /// Removes what the policy does not keep, if anything: a store within its limits costs one row and
    /// one system call.
    pub fn collect_surplus(
        &self,
        policy: &CollectPolicy,
        disk: Disk,
    ) -> Result<Option<Collected>, StoreError> {
        let used = self.used_bytes()?;
        let over = policy.max_used.is_some_and(|limit| used > limit);
        let tight = policy.min_free.is_some_and(|wanted| disk.free < wanted);
        if used <= policy.reserved || !(over || tight) {
            return Ok(None);
        }
        self.collect(policy).map(Some)
    }

    /// Removes what the policy does not keep.
    pub fn collect(&self, policy: &CollectPolicy) -> Result<Collected, StoreError> {
        let _lock = self.lock("collect")?;
        let mut done = Collected::default();
        if !policy.dry_run {
            self.sweep()?;
            self.shorten_changes();
        }
        if policy.dangling_images {
            done.images = self.remove_dangling_images(policy.dry_run)?;
        }
        let mut usage = self.usage()?.into_iter();
        let mut kept = Kept::default();
        let mut state = State {
            used: usage.as_slice().iter().map(|entry| entry.bytes).sum(),
            free: match policy.min_free {
                Some(_) => self.free_bytes()?,
                None => 0,
            },
        };
        let mut gone = BTreeSet::new();
        loop {
            let mut doomed = Vec::new();
            for entry in usage.by_ref() {
                if let Some(holder) = &entry.holder {
                    kept.add(holder, entry.bytes);
                    continue;
                }
                if entry.tar_of.iter().any(|layer| !gone.contains(layer)) {
                    continue;
                }
                if !policy.covers(&entry) || !state.is_surplus(policy, &entry) {
                    continue;
                }
                let layer = match entry.item {
                    Item::Layer(id) => Some(id),
                    _ => None,
                };
                if policy.dry_run {
                    state.remove(&entry);
                    gone.extend(layer);
                    done.bytes += entry.bytes;
                    done.items.push(entry);
                    continue;
                }
                match self.doom(entry, policy)? {
                    Ok(found) => {
                        state.remove(&found.entry);
                        gone.extend(layer);
                        doomed.push(found);
                    }
                    Err(entry) => kept.add("a running build", entry.bytes),
                }
                if doomed.len() == BATCH {
                    break;
                }
            }
            if doomed.is_empty() {
                break;
            }
            for entry in self.bury(doomed, &mut kept, &mut state)? {
                done.bytes += entry.bytes;
                done.items.push(entry);
            }
        }
        if !done.items.is_empty() && !policy.dry_run {
            self.shorten_changes();
            state.used = self.used_bytes()?;
        }
        done.used = state.used;
        if policy.max_used.is_some_and(|limit| done.used > limit) {
            done.held = kept.most();
        }
        Ok(done)
    }

    /// Returns what was evicted under a key: when, in seconds since 1970, and by which rule.
    pub fn tombstone(&self, key: &crate::Key) -> Result<Option<(i64, String)>, StoreError> {
        use rusqlite::OptionalExtension;
        self.database()
            .prepare_cached("SELECT at, rule FROM tombstone WHERE key = ?1")
            .and_then(|mut statement| {
                let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
                statement.query_row([key.as_slice()], row).optional()
            })
            .map_err(StoreError::database("look up what was evicted"))
    }

    /// Brings the log of changes into the database and cuts it off, if nobody reads just now: else it is left to who
    /// comes next.
    fn shorten_changes(&self) {
        let database = self.database();
        let shorten = || -> rusqlite::Result<()> {
            database.busy_timeout(std::time::Duration::ZERO)?;
            database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        };
        if let Err(error) = shorten() {
            tracing::debug!(%error, "the log of changes stays");
        }
        if let Err(error) = database.busy_timeout(crate::database::PATIENCE) {
            tracing::warn!(%error, "who waits for the records gives up at once");
        }
    }

    fn free_bytes(&self) -> Result<u64, StoreError> {
        Ok(self.disk()?.free)
    }

    /// Returns how large the file system is that the store lies on, and how full.
    pub fn disk(&self) -> Result<Disk, StoreError> {
        let statistics = rustix::fs::statvfs(self.root())
            .map_err(|errno| StoreError::io("measure", self.root())(errno.into()))?;
        Ok(Disk {
            size: statistics.f_blocks * statistics.f_frsize,
            free: statistics.f_bavail * statistics.f_frsize,
        })
    }

    fn remove_dangling_images(&self, dry_run: bool) -> Result<Vec<Digest>, StoreError> {
        let names = self.names()?;
        let named: BTreeSet<&Digest> = names.iter().flat_map(|name| name.images()).collect();
        let dangling = self.images()?.into_iter().map(|image| image.id);
        let dangling: Vec<Digest> = dangling.filter(|id| !named.contains(id)).collect();
        match dry_run {
            true => Ok(dangling),
            false => self.remove_images_without_name(&dangling),
        }
    }

    /// Locks something that is to go; gives it back if somebody uses it.
    fn doom(
        &self,
        entry: Usage,
        policy: &CollectPolicy,
    ) -> Result<Result<Doomed, Usage>, StoreError> {
        let place = match &entry.item {
            Item::Layer(id) => self.path(&format!("layers/{}", id.0)),
            Item::Blob(digest) => self.blobs().path(digest),
            Item::Mount(name) => self.path("mounts").join(name),
            // The rules of the history say when these go.
            Item::Build(_) | Item::Records => return Ok(Err(entry)),
        };
        let lock = match File::open(&place) {
            Ok(file) => match file.try_lock() {
                Ok(()) => Some(file),
                Err(TryLockError::WouldBlock) => return Ok(Err(entry)),
                Err(TryLockError::Error(error)) => {
                    return Err(StoreError::io("lock", place)(error));
                }
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(StoreError::io("open", place)(error)),
        };
        Ok(Ok(Doomed {
            rule: policy.rule(&entry),
            entry,
            place,
            lock,
        }))
    }

    /// Forgets what is doomed and removes it; what got a name meanwhile is spared.
    fn bury(
        &self,
        mut doomed: Vec<Doomed>,
        kept: &mut Kept,
        state: &mut State,
    ) -> Result<Vec<Usage>, StoreError> {
        let now = self.now();
        // In one transaction, so that no name is given between the look and the removal.
        let spared = self.write("forget what is removed", |transaction| {
            let held = self.held(holdings(transaction)?);
            let mut spared = Vec::new();
            for (number, found) in doomed.iter().enumerate() {
                match held.get(&found.entry.item) {
                    Some(holder) => spared.push((number, holder.clone())),
                    None => forget(transaction, &found.entry.item, now, &found.rule)?,
                }
            }
            Ok(spared)
        })?;
        for (number, holder) in spared.into_iter().rev() {
            let found = doomed.remove(number);
            kept.add(&holder, found.entry.bytes);
            state.used += found.entry.bytes;
        }
        let mut graves = Vec::new();
        let mut gone = Vec::with_capacity(doomed.len());
        for found in doomed {
            if let Some(file) = &found.lock {
                match &found.entry.item {
                    // Once it was forgotten, a writer may have put another file in its place.
                    Item::Blob(digest) => {
                        let _lock = self.lock(&format!("blob-{}", digest.hex()))?;
                        if same_file(file, &found.place) {
                            remove_file(&found.place)?;
                        }
                    }
                    item => {
                        let grave = self.path(&format!("ingest/removed-{item}"));
                        std::fs::rename(&found.place, &grave)
                            .map_err(StoreError::io("rename", &found.place))?;
                        graves.push(grave);
                    }
                }
            }
            gone.push(found.entry);
        }
        for grave in graves {
            remove_tree(&grave).map_err(StoreError::io("remove", &grave))?;
        }
        Ok(gone)
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
                // Whoever is about to publish it holds its lock.
                remove_unlocked(&path)?;
                if let (Some(id), false) = (id, path.exists()) {
                    self.write("forget an unfinished layer", |transaction| {
                        transaction.execute(
                            "DELETE FROM layer WHERE id = ?1 AND boot = 'ingest'",
                            [id.0 as i64],
                        )
                    })?;
                }
            }
        }
        for path in self.entries("blobs/sha256")? {
            let name = path.file_name().and_then(|name| name.to_str());
            if self.is_unrecorded_blob(name.unwrap_or_default())? {
                remove_unlocked(&path)?;
            }
        }
        self.adopt_mounts()?;
        self.sweep_containers()?;
        self.forget_the_future()?;
        self.forget_the_past()?;
        self.write("forget unfinished layers", |transaction| {
            transaction.execute(
                "DELETE FROM layer WHERE boot = 'ingest' AND created < ?1",
                [self.now() - UNFINISHED],
            )
        })?;
        Ok(())
    }

    pub(crate) fn entries(&self, folder: &str) -> Result<Vec<PathBuf>, StoreError> {
        let path = self.path(folder);
        let list = || -> std::io::Result<Vec<PathBuf>> {
            let mut entries: Vec<PathBuf> = std::fs::read_dir(&path)?
                .map(|entry| Ok(entry?.path()))
                .collect::<std::io::Result<_>>()?;
            entries.sort();
            Ok(entries)
        };
        match list() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            result => result.map_err(StoreError::io("list", &path)),
        }
    }

    /// Takes what was last used at a time that has not come yet, by a clock that was wrong, as used now: it would
    /// be the last to go for ever.
    fn forget_the_future(&self) -> Result<(), StoreError> {
        let now = self.now();
        self.write("mend times of use", |transaction| {
            for table in ["layer", "blob", "result", "mount", "memo"] {
                let sql = format!("UPDATE {table} SET used = ?1 WHERE used > ?1");
                transaction.prepare_cached(&sql)?.execute([now])?;
            }
            Ok(())
        })
    }

    /// Removes notes that explain nothing any more, and what was remembered so long ago that it is found out again.
    fn forget_the_past(&self) -> Result<(), StoreError> {
        let before = self.now().saturating_sub(TOMBSTONE_LIFE);
        self.write("forget old notes", |transaction| {
            transaction.execute("DELETE FROM tombstone WHERE at < ?1", [before])?;
            // A salt is drawn once: what was hidden with it is compared for as long as there is history.
            transaction.execute(
                "DELETE FROM memo WHERE used < ?1 AND space <> 'salt'",
                [before],
            )
        })?;
        for path in self.entries("memos")? {
            let modified = rustix::fs::stat(&path).map(|stat| stat.st_mtime);
            if modified.is_ok_and(|time| time < before) {
                remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Removes the folders of containers that were never recorded.
    fn sweep_containers(&self) -> Result<(), StoreError> {
        for path in self.entries("containers")? {
            let Some(id) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            if let Some(_lock) = self.try_lock_container(id)?
                && self.container(id)?.is_none()
            {
                remove_tree(&path).map_err(StoreError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    fn has_record(&self, id: LayerId) -> Result<bool, StoreError> {
        self.database()
            .prepare_cached("SELECT 1 FROM layer WHERE id = ?1 AND boot <> 'ingest'")
            .and_then(|mut statement| statement.exists([id.0 as i64]))
            .map_err(StoreError::database("look up a layer"))
    }
}

/// How full it is while a collection goes on.
struct State {
    used: u64,
    free: u64,
}

impl State {
    fn is_surplus(&self, policy: &CollectPolicy, entry: &Usage) -> bool {
        if policy.unused_since.is_some_and(|time| entry.used < time) {
            return true;
        }
        if self.used <= policy.reserved {
            return false;
        }
        policy.max_used.is_some_and(|limit| self.used > limit)
            || policy.min_free.is_some_and(|wanted| self.free < wanted)
    }

    fn remove(&mut self, entry: &Usage) {
        self.used -= entry.bytes;
        self.free += entry.bytes;
    }
}

/// What could not go, and who has it.
#[derive(Default)]
struct Kept {
    bytes: u64,
    holders: std::collections::BTreeMap<String, u64>,
}

impl Kept {
    fn add(&mut self, holder: &str, bytes: u64) {
        self.bytes += bytes;
        *self.holders.entry(holder.to_owned()).or_default() += bytes;
    }

    /// Returns all bytes, and the holder of the most.
    fn most(self) -> Option<(u64, String)> {
        let most = self.holders.into_iter().max_by_key(|(_, bytes)| *bytes)?;
        Some((self.bytes, most.0))
    }
}

/// Removes the records of something that is removed, and of all that cannot be without it.
pub(crate) fn forget(
    transaction: &Transaction<'_>,
    item: &Item,
    now: i64,
    rule: &str,
) -> rusqlite::Result<()> {
    let run = |sql: &str, parameters: &[&dyn rusqlite::ToSql]| -> rusqlite::Result<usize> {
        transaction.prepare_cached(sql)?.execute(parameters)
    };
    match item {
        Item::Layer(id) => {
            let id = id.0 as i64;
            let mut statement = transaction
                .prepare_cached("SELECT DISTINCT result FROM result_layer WHERE layer = ?1")?;
            let results: Vec<i64> = statement
                .query_map([id], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            for result in results {
                forget_result(transaction, result, now, rule)?;
            }
            run(
                "DELETE FROM image WHERE id NOT IN (SELECT image FROM named)
                   AND id NOT IN (SELECT image FROM container)
                   AND layers IS NOT NULL AND json_valid(layers)
                   AND EXISTS(SELECT 1 FROM json_each(image.layers) WHERE value = ?1)",
                &[&id],
            )?;
            run("DELETE FROM layer WHERE id = ?1", &[&id])?;
        }
        Item::Blob(digest) => {
            let digest = digest.to_string();
            run("DELETE FROM encoding WHERE digest = ?1", &[&digest])?;
            run(
                "DELETE FROM image WHERE id = ?1 AND id NOT IN (SELECT image FROM named)
                   AND id NOT IN (SELECT image FROM container)",
                &[&digest],
            )?;
            run("DELETE FROM blob WHERE digest = ?1", &[&digest])?;
        }
        Item::Mount(name) => {
            run("DELETE FROM mount WHERE name = ?1", &[name])?;
        }
        Item::Build(_) | Item::Records => {}
    }
    Ok(())
}

/// Removes a result with its keys; each key keeps a note of when and why.
pub(crate) fn forget_result(
    transaction: &Transaction<'_>,
    result: i64,
    now: i64,
    rule: &str,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO tombstone(key, at, rule)
             SELECT key, ?2, ?3 FROM record WHERE result = ?1",
        )?
        .execute(rusqlite::params![result, now, rule])?;
    for sql in [
        "DELETE FROM record WHERE result = ?1",
        "DELETE FROM result_layer WHERE result = ?1",
        "DELETE FROM result WHERE id = ?1",
    ] {
        transaction.prepare_cached(sql)?.execute([result])?;
    }
    Ok(())
}

fn remove_file(path: &std::path::Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Removes a file or directory unless a process holds its lock.
pub(crate) fn remove_unlocked(path: &std::path::Path) -> Result<(), StoreError> {
    let Ok(file) = File::open(path) else {
        return Ok(());
    };
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(());
    }
    let is_folder = file.metadata().is_ok_and(|meta| meta.is_dir());
    match is_folder {
        true => remove_tree(path).map_err(StoreError::io("remove", path)),
        false => remove_file(path),
    }
}
