//! Verifies what the records say against what is there, and mends what does not fit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Mutex;

use oci::Digest;
use sha2::{Digest as _, Sha256};

use crate::collect::{forget, forget_result, remove_unlocked};
use crate::usage::holdings;
use crate::{Item, LayerId, Store, StoreError};

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Things looked at, by kind.
    pub checked: BTreeMap<&'static str, u64>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// What killed processes have left: no harm, only space.
    pub leftovers: Vec<Problem>,
}

/// Something that is not as it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What it is about: `blob sha256:…`, `layer 5`.
    pub subject: String,
    /// What is wrong.
    pub reason: String,
    /// What was done about it; `None` where nothing was.
    pub mended: Option<String>,
}

impl CheckReport {
    /// Returns whether nothing is wrong, or not any more.
    pub fn is_clean(&self) -> bool {
        self.problems.iter().all(|problem| problem.mended.is_some())
    }

    /// Counts things looked at.
    pub fn count(&mut self, kind: &'static str, number: u64) {
        *self.checked.entry(kind).or_default() += number;
    }

    /// Adds something that is wrong.
    pub fn problem(&mut self, subject: String, reason: String, mended: Option<String>) {
        self.problems.push(Problem {
            subject,
            reason,
            mended,
        });
    }

    fn leftover(&mut self, subject: String, reason: &str, repair: bool) {
        self.leftovers.push(Problem {
            subject,
            reason: reason.to_owned(),
            mended: repair.then(|| "removed".to_owned()),
        });
    }
}

/// The rule that notes give for what a repair removed.
const RULE: &str = "system check --repair";

impl Store {
    /// Checks blobs, layers, results, images and names; with `repair` mends what can be mended.
    ///
    /// Whatever builds do meanwhile is no problem, and nothing they use is touched.
    pub fn check(&self, repair: bool) -> Result<CheckReport, StoreError> {
        let _lock = self.lock("collect")?;
        let mut report = CheckReport::default();
        self.check_database(&mut report)?;
        self.check_blobs(&mut report, repair)?;
        self.check_layers(&mut report, repair)?;
        self.check_images(&mut report, repair)?;
        self.check_results(&mut report, repair)?;
        self.check_total(&mut report, repair)?;
        self.check_ingest(&mut report, repair)?;
        Ok(report)
    }

    fn check_database(&self, report: &mut CheckReport) -> Result<(), StoreError> {
        let told: Vec<String> = self
            .database()
            .prepare("PRAGMA integrity_check(20)")
            .and_then(|mut statement| statement.query_map([], |row| row.get(0))?.collect())
            .map_err(StoreError::database("check the records"))?;
        for line in told.into_iter().filter(|line| line != "ok") {
            report.problem("records.db".to_owned(), line, None);
        }
        report.count("records", 1);
        Ok(())
    }

    fn check_blobs(&self, report: &mut CheckReport, repair: bool) -> Result<(), StoreError> {
        let recorded = self.recorded_blobs()?;
        report.count("blobs", recorded.len() as u64);
        let findings = Mutex::new(BTreeMap::new());
        let queue = Mutex::new(recorded.iter());
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        std::thread::scope(|scope| {
            for _ in 0..cores.min(recorded.len()) {
                scope.spawn(|| {
                    loop {
                        let next = locked(&queue).next();
                        let Some((digest, size)) = next else {
                            return;
                        };
                        let reason = self.blob_problem(digest, *size);
                        if let Some(reason) = reason {
                            locked(&findings).insert(digest.clone(), reason);
                        }
                    }
                });
            }
        });
        let findings = findings
            .into_inner()
            .unwrap_or_else(|poison| poison.into_inner());
        for (digest, reason) in findings {
            // It may have been collected, or been replaced, since the list was made.
            let known = self.recorded_blobs()?.contains_key(&digest);
            if !known {
                continue;
            }
            let mended = match repair {
                true => self.drop_blob(&digest)?,
                false => None,
            };
            report.problem(format!("blob {digest}"), reason, mended);
        }
        for path in self.entries("blobs/sha256")? {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let digest: Option<Digest> = format!("sha256:{name}").parse().ok();
            if digest.is_none_or(|digest| !recorded.contains_key(&digest))
                && self.is_unrecorded_blob(name)?
            {
                report.leftover(path.display().to_string(), "has no record", repair);
                if repair {
                    remove_unlocked(&path)?;
                }
            }
        }
        Ok(())
    }

    fn recorded_blobs(&self) -> Result<BTreeMap<Digest, u64>, StoreError> {
        let rows: Vec<(String, i64)> = self
            .database()
            .prepare_cached("SELECT digest, size FROM blob")
            .and_then(|mut statement| {
                let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
                statement.query_map([], row)?.collect()
            })
            .map_err(StoreError::database("list the blobs"))?;
        Ok(rows
            .into_iter()
            .filter_map(|(digest, size)| Some((digest.parse().ok()?, size as u64)))
            .collect())
    }

    pub(crate) fn is_unrecorded_blob(&self, hex: &str) -> Result<bool, StoreError> {
        self.database()
            .prepare_cached("SELECT 1 FROM blob WHERE digest = ?1")
            .and_then(|mut statement| statement.exists([format!("sha256:{hex}")]))
            .map(|known| !known)
            .map_err(StoreError::database("look up a blob"))
    }

    /// Returns what is wrong with a blob.
    fn blob_problem(&self, digest: &Digest, size: u64) -> Option<String> {
        let path = self.blobs().path(digest);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) => return Some(format!("cannot be opened: {error}")),
        };
        let found = file.metadata().map_or(0, |meta| meta.len());
        if found != size {
            return Some(format!("has {found} bytes, {size} are recorded"));
        }
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 18];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => hash.update(&buffer[..count]),
                Err(error) => return Some(format!("cannot be read: {error}")),
            }
        }
        let actual = Digest::from_sha256(hash.finalize().into());
        (actual != *digest).then(|| format!("holds {actual}"))
    }

    /// Removes a blob that is not what it should be; `None` if a process uses it.
    fn drop_blob(&self, digest: &Digest) -> Result<Option<String>, StoreError> {
        let path = self.blobs().path(digest);
        if let Ok(file) = File::open(&path)
            && file.try_lock().is_err()
        {
            return Ok(None);
        }
        let now = self.now();
        self.write("forget a damaged blob", |transaction| {
            forget(transaction, &Item::Blob(digest.clone()), now, RULE)
        })?;
        let _ = std::fs::remove_file(&path);
        Ok(Some("removed".to_owned()))
    }

    fn check_layers(&self, report: &mut CheckReport, repair: bool) -> Result<(), StoreError> {
        for id in self.published_layers()? {
            report.count("layers", 1);
            let place = self.path(&format!("layers/{}", id.0));
            if place.join("fs").is_dir() || !self.published_layers()?.contains(&id) {
                continue;
            }
            let reason = format!("{} is not there", place.display());
            let mended = match repair {
                true => self.drop_layer(id)?,
                false => None,
            };
            report.problem(format!("layer {}", id.0), reason, mended);
        }
        let known: BTreeSet<LayerId> = self.all_layers()?;
        for path in self.entries("layers")? {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let id = name.parse().ok().map(LayerId);
            let recorded = id.is_some_and(|id| known.contains(&id));
            if !recorded && !self.all_layers()?.iter().any(|known| Some(*known) == id) {
                report.leftover(path.display().to_string(), "has no record", repair);
                if repair {
                    remove_unlocked(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Lists the layers that can be used.
    pub fn published_layers(&self) -> Result<Vec<LayerId>, StoreError> {
        self.layer_ids("SELECT id FROM layer WHERE boot <> 'ingest' AND ?1 IS NOT NULL ORDER BY id")
    }

    fn all_layers(&self) -> Result<BTreeSet<LayerId>, StoreError> {
        let ids =
            self.layer_ids("SELECT id FROM layer WHERE boot <> 'ingest' AND ?1 IS NOT NULL")?;
        Ok(ids.into_iter().collect())
    }

    fn layer_ids(&self, sql: &str) -> Result<Vec<LayerId>, StoreError> {
        self.database()
            .prepare_cached(sql)
            .and_then(|mut statement| {
                let row = |row: &rusqlite::Row<'_>| Ok(LayerId(row.get::<_, i64>(0)? as u64));
                statement.query_map([&self.inner.boot], row)?.collect()
            })
            .map_err(StoreError::database("list the layers"))
    }

    /// Forgets a layer that is damaged, and what was made of it, unless a container or a process has it.
    /// Images made of it are taken as not unpacked if a registry can give them again, and removed
    /// otherwise. Returns what was done.
    pub fn drop_layer(&self, id: LayerId) -> Result<Option<String>, StoreError> {
        let place = self.path(&format!("layers/{}", id.0));
        let folder = File::open(&place).ok();
        if folder
            .as_ref()
            .is_some_and(|folder| folder.try_lock().is_err())
        {
            return Ok(None);
        }
        let now = self.now();
        let done = self.write("forget a damaged layer", |transaction| {
            let number = id.0 as i64;
            let used: bool = transaction.query_row(
                "SELECT EXISTS(SELECT 1 FROM container, json_each(container.layers)
                   WHERE json_each.value = ?1)",
                [number],
                |row| row.get(0),
            )?;
            if used {
                return Ok(None);
            }
            let made_of = "FROM image WHERE layers IS NOT NULL AND json_valid(layers)
                AND EXISTS(SELECT 1 FROM json_each(image.layers) WHERE value = ?1)";
            transaction.execute(
                &format!(
                    "UPDATE image SET layers = NULL
                     WHERE manifest IS NOT NULL AND id IN (SELECT id {made_of})"
                ),
                [number],
            )?;
            transaction.execute(
                &format!(
                    "DELETE FROM name WHERE reference IN
                       (SELECT reference FROM named WHERE image IN (SELECT id {made_of}))"
                ),
                [number],
            )?;
            let images = transaction.execute(
                &format!("DELETE FROM image WHERE id IN (SELECT id {made_of})"),
                [number],
            )?;
            forget(transaction, &Item::Layer(id), now, RULE)?;
            Ok(Some(match images {
                0 => "removed; what was made of it is made again".to_owned(),
                count => format!("removed, with {count} images that were built of it"),
            }))
        })?;
        if done.is_some() && folder.is_some() {
            let grave = self.path(&format!("ingest/removed-layer-{}", id.0));
            std::fs::rename(&place, &grave).map_err(StoreError::io("rename", &place))?;
            drop(folder);
            remove_unlocked(&grave)?;
        }
        Ok(done)
    }

    fn check_images(&self, report: &mut CheckReport, repair: bool) -> Result<(), StoreError> {
        let rows: Vec<(String, Option<String>)> = self
            .database()
            .prepare("SELECT id, layers FROM image ORDER BY id")
            .and_then(|mut statement| {
                let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
                statement.query_map([], row)?.collect()
            })
            .map_err(StoreError::database("list the images"))?;
        let layers = self.all_layers()?;
        report.count("images", rows.len() as u64);
        for (id, list) in rows {
            let reason = match id.parse::<Digest>() {
                Err(_) => Some("its id is no digest".to_owned()),
                Ok(digest) if self.is_unrecorded_blob(digest.hex())? => {
                    Some("its config is not there".to_owned())
                }
                Ok(_) => missing_layer(list.as_deref(), &layers),
            };
            let Some(reason) = reason else { continue };
            let mended = match repair {
                true => Some(self.drop_image_record(&id)?),
                false => None,
            };
            report.problem(format!("image {id}"), reason, mended);
        }
        let lost: Vec<String> = self
            .database()
            .prepare("SELECT DISTINCT reference FROM named WHERE image NOT IN (SELECT id FROM image) ORDER BY 1")
            .and_then(|mut statement| statement.query_map([], |row| row.get(0))?.collect())
            .map_err(StoreError::database("list the names"))?;
        for reference in lost {
            let mended = match repair {
                true => self.remove_name(&reference)?.then(|| "removed".to_owned()),
                false => None,
            };
            report.problem(
                format!("name {reference}"),
                "points to an image that is not there".to_owned(),
                mended,
            );
        }
        for container in self.containers()? {
            report.count("containers", 1);
            let gone = container.layers.iter().find(|id| !layers.contains(id));
            if let Some(id) = gone {
                let reason = format!("its layer {} is not there", id.0);
                report.problem(format!("container {}", container.name), reason, None);
            }
        }
        Ok(())
    }

    fn drop_image_record(&self, id: &str) -> Result<String, StoreError> {
        self.write("forget a damaged image", |transaction| {
            let names = transaction.execute(
                "DELETE FROM name WHERE reference IN (SELECT reference FROM named WHERE image = ?1)",
                [id],
            )?;
            transaction.execute("DELETE FROM image WHERE id = ?1", [id])?;
            Ok(format!(
                "removed, with {names} names; pull or build it again"
            ))
        })
    }

    fn check_results(&self, report: &mut CheckReport, repair: bool) -> Result<(), StoreError> {
        let rows: Vec<(i64, String, String)> = self
            .database()
            .prepare("SELECT id, layers, info FROM result ORDER BY id")
            .and_then(|mut statement| {
                let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
                statement.query_map([], row)?.collect()
            })
            .map_err(StoreError::database("list the results"))?;
        let layers = self.all_layers()?;
        report.count("results", rows.len() as u64);
        let now = self.now();
        for (id, list, info) in rows {
            let unreadable = serde_json::from_str::<serde_json::Value>(&info).err();
            let reason = match unreadable {
                Some(error) => Some(format!("its record cannot be read: {error}")),
                None => missing_layer(Some(&list), &layers),
            };
            let Some(reason) = reason else { continue };
            if repair {
                self.write("forget a damaged result", |transaction| {
                    forget_result(transaction, id, now, RULE)
                })?;
            }
            let mended = repair.then(|| "removed; its step runs again".to_owned());
            report.problem(format!("result {id}"), reason, mended);
        }
        Ok(())
    }

    fn check_total(&self, report: &mut CheckReport, repair: bool) -> Result<(), StoreError> {
        let sum = "(SELECT coalesce(sum(bytes), 0) FROM layer)
            + (SELECT coalesce(sum(size), 0) FROM blob)
            + (SELECT coalesce(sum(bytes), 0) FROM mount)
            + (SELECT coalesce(sum(bytes), 0) FROM build)";
        let (kept, summed): (i64, i64) = self
            .database()
            .query_row(&format!("SELECT bytes, {sum} FROM total"), [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .map_err(StoreError::database("add up what is used"))?;
        if kept == summed {
            return Ok(());
        }
        if repair {
            self.write("record what is used", |transaction| {
                transaction.execute(&format!("UPDATE total SET bytes = {sum}"), [])
            })?;
        }
        let mended = repair.then(|| "added up again".to_owned());
        let reason = format!("is {kept} bytes, all things together have {summed}");
        report.problem("the recorded size".to_owned(), reason, mended);
        Ok(())
    }

    fn check_ingest(&self, report: &mut CheckReport, repair: bool) -> Result<(), StoreError> {
        for path in self.entries("ingest")? {
            let in_use = File::open(&path).is_ok_and(|file| file.try_lock().is_err());
            if !in_use && path.exists() {
                report.leftover(path.display().to_string(), "was never finished", repair);
                if repair {
                    remove_unlocked(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Returns whether an image with a name or a container needs this.
    pub fn holder_of(&self, item: &Item) -> Result<Option<String>, StoreError> {
        let found = holdings(&self.database()).map_err(StoreError::database("list the names"))?;
        Ok(self.held(found).remove(item))
    }
}

/// Says which layer of a recorded list is not there.
fn missing_layer(list: Option<&str>, known: &BTreeSet<LayerId>) -> Option<String> {
    let list = list?;
    match serde_json::from_str::<Vec<LayerId>>(list) {
        Err(error) => Some(format!("its list of layers cannot be read: {error}")),
        Ok(ids) => {
            let gone = ids.iter().find(|id| !known.contains(id))?;
            Some(format!("its layer {} is not there", gone.0))
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// Puts records that cannot be read aside, so that the store can be used again; returns where they are.
///
/// Images and results are lost with them; the next collection removes the files they named.
pub fn set_records_aside(root: &Path, now: i64) -> Result<std::path::PathBuf, StoreError> {
    let aside = root.join(format!("records.db.damaged-{now}"));
    let path = root.join("records.db");
    std::fs::rename(&path, &aside).map_err(StoreError::io("rename", &path))?;
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(root.join(format!("records.db{suffix}")));
    }
    Ok(aside)
}
