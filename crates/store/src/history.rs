//! Records of builds, and the logs of their steps.
//!
//! A build that runs anything has a folder, `builds/<id>`, locked as long as it runs; a build that finds
//! everything has none. The record is one row, written when the build ends. A folder without a record that
//! nobody holds belonged to a builder that was killed.

use std::fs::File;
use std::path::PathBuf;

use rusqlite::OptionalExtension;
use rustix::fs::{FlockOperation, flock};

use crate::layer::remove_tree;
use crate::log::{LogReader, LogWriter};
use crate::mount::sizes;
use crate::{Store, StoreError};

/// A build as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildEntry {
    pub id: String,
    /// Nanoseconds since 1970. No two builds of a store have the same.
    pub started: i64,
    /// JSON, the engine's: what lists show.
    pub summary: String,
}

/// A build that has no record: it runs, or its builder was killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenBuild {
    pub id: String,
    /// What [`Store::begin_build`] was given.
    pub opening: Vec<u8>,
    pub running: bool,
}

/// What is kept when a build ends.
#[derive(Debug, Clone, Copy)]
pub struct FinishedBuild<'a> {
    pub id: &'a str,
    /// Nanoseconds since 1970.
    pub started: i64,
    /// JSON, the engine's: what lists show.
    pub summary: &'a str,
    /// The whole record, in a form of the engine's.
    pub record: &'a [u8],
}

/// What is kept of the history of builds; the newest build always is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryLimits {
    /// How many builds.
    pub builds: usize,
    /// Bytes of their logs.
    pub log_bytes: u64,
    /// For how long, in seconds; `None` is for ever.
    pub age: Option<i64>,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self {
            builds: 500,
            log_bytes: 2 << 30,
            age: None,
        }
    }
}

/// Builds of killed builders whose logs are kept.
const MOST_KILLED: usize = 20;

/// The folder of a build that runs, locked until this is dropped.
#[derive(Debug)]
pub struct BuildFolder {
    path: PathBuf,
    _lock: File,
}

/// What a build's folder is opened with.
const OPENING: &str = "opening";

impl BuildFolder {
    /// Returns where it is.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Begins a log. `name` becomes a file name.
    pub fn log(&self, name: &str) -> Result<LogWriter, StoreError> {
        LogWriter::create(self.path.join(name))
    }
}

impl Store {
    /// Makes the folder of a build.
    pub fn begin_build(&self, id: &str, opening: &[u8]) -> Result<BuildFolder, StoreError> {
        let path = self.path(&format!("builds/{id}"));
        std::fs::create_dir_all(&path).map_err(StoreError::io("create", &path))?;
        let lock = File::open(&path).map_err(StoreError::io("open", &path))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|errno| StoreError::io("lock", &path)(errno.into()))?;
        let file = path.join(OPENING);
        std::fs::write(&file, opening).map_err(StoreError::io("write", &file))?;
        Ok(BuildFolder { path, _lock: lock })
    }

    /// Records a build that has ended. One transaction.
    pub fn finish_build(&self, build: &FinishedBuild<'_>) -> Result<(), StoreError> {
        let bytes = sizes(&self.path(&format!("builds/{}", build.id))).disk;
        self.write("record a build", |transaction| {
            let mut started = build.started;
            let mut insert = transaction.prepare_cached(
                "INSERT OR IGNORE INTO build(started, id, bytes, summary) VALUES(?1, ?2, ?3, ?4)",
            )?;
            // Two builds may begin at once, and imported ones too.
            while insert.execute(rusqlite::params![
                started,
                build.id,
                bytes as i64,
                build.summary
            ])? == 0
            {
                started += 1;
            }
            transaction
                .prepare_cached("INSERT INTO build_record(started, record) VALUES(?1, ?2)")?
                .execute(rusqlite::params![started, build.record])?;
            Ok(())
        })
    }

    /// Lists the recorded builds, the newest first.
    pub fn builds(&self) -> Result<Vec<BuildEntry>, StoreError> {
        self.database()
            .prepare_cached("SELECT id, started, summary FROM build ORDER BY started DESC")
            .and_then(|mut statement| {
                statement
                    .query_map([], |row| {
                        Ok(BuildEntry {
                            id: row.get(0)?,
                            started: row.get(1)?,
                            summary: row.get(2)?,
                        })
                    })?
                    .collect()
            })
            .map_err(StoreError::database("list the builds"))
    }

    /// Returns the record of a build.
    pub fn build_record(&self, id: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.database()
            .prepare_cached(
                "SELECT record FROM build JOIN build_record USING(started) WHERE id = ?1",
            )
            .and_then(|mut statement| statement.query_row([id], |row| row.get(0)).optional())
            .map_err(StoreError::database("read a build"))
    }

    /// Lists the builds without a record, in the order of their ids.
    pub fn open_builds(&self) -> Result<Vec<OpenBuild>, StoreError> {
        let folder = self.path("builds");
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StoreError::io("list", &folder)(error)),
        };
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let Ok(id) = entry.file_name().into_string() else {
                continue;
            };
            // Looked at before the record is asked for: it is written while the folder is held.
            let running = is_held(&entry.path());
            let Ok(opening) = std::fs::read(entry.path().join(OPENING)) else {
                continue;
            };
            if self.build_record(&id)?.is_none() {
                found.push(OpenBuild {
                    id,
                    opening,
                    running,
                });
            }
        }
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }

    /// Opens a log of a build; `None` where there is none.
    pub fn build_log(&self, id: &str, name: &str) -> Result<Option<LogReader>, StoreError> {
        LogReader::open(&self.path(&format!("builds/{id}/{name}")))
    }

    /// Removes a build, its record and its logs; `false` if it runs or was not there.
    pub fn remove_build(&self, id: &str) -> Result<bool, StoreError> {
        let folder = self.path(&format!("builds/{id}"));
        let had_folder = folder.exists();
        if had_folder {
            if is_held(&folder) {
                return Ok(false);
            }
            remove_tree(&folder).map_err(StoreError::io("remove", &folder))?;
        }
        let rows = self.write("forget a build", |transaction| {
            transaction.execute(
                "DELETE FROM build_record WHERE started = (SELECT started FROM build WHERE id = ?1)",
                [id],
            )?;
            transaction.execute("DELETE FROM build WHERE id = ?1", [id])
        })?;
        Ok(had_folder || rows > 0)
    }

    /// Removes the oldest builds until the limits hold. The newest stays.
    pub fn trim_builds(&self, limits: &HistoryLimits) -> Result<(), StoreError> {
        let rows: Vec<(String, i64, i64)> = self
            .database()
            .prepare_cached("SELECT id, bytes, started FROM build ORDER BY started DESC")
            .and_then(|mut statement| {
                statement
                    .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                    .collect()
            })
            .map_err(StoreError::database("list the builds"))?;
        let mut used = 0;
        let mut surplus = Vec::new();
        let oldest = limits.age.map(|age| self.now().saturating_sub(age));
        for (number, (id, size, started)) in rows.into_iter().enumerate() {
            used += size as u64;
            let is_old = oldest.is_some_and(|oldest| started / 1_000_000_000 < oldest);
            let is_surplus = number >= limits.builds || used > limits.log_bytes || is_old;
            if number > 0 && is_surplus {
                surplus.push(id);
            }
        }
        let mut killed = Vec::new();
        for open in self.open_builds()?.into_iter().filter(|open| !open.running) {
            let folder = self.path(&format!("builds/{}", open.id));
            let modified = rustix::fs::stat(&folder).map_or(0, |stat| stat.st_mtime);
            killed.push((std::cmp::Reverse(modified), open.id));
        }
        killed.sort();
        surplus.extend(killed.into_iter().skip(MOST_KILLED).map(|(_, id)| id));
        for id in surplus {
            self.remove_build(&id)?;
        }
        Ok(())
    }
}

/// Returns whether a process holds the lock of a folder.
fn is_held(path: &std::path::Path) -> bool {
    match File::open(path) {
        Ok(folder) => flock(&folder, FlockOperation::NonBlockingLockShared).is_err(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ItemKind;
    use crate::testing::store;

    fn finish(store: &Store, id: &str, started: i64, bytes: u64) {
        if bytes > 0 {
            let folder = store.begin_build(id, b"{}").expect("a folder");
            let file = folder.path().join("log");
            std::fs::write(file, vec![b'x'; bytes as usize]).expect("room");
        }
        store
            .finish_build(&FinishedBuild {
                id,
                started,
                summary: "{}",
                record: id.as_bytes(),
            })
            .expect("room");
    }

    fn ids(store: &Store) -> Vec<String> {
        let builds = store.builds().expect("a list");
        builds.into_iter().map(|build| build.id).collect()
    }

    #[test]
    fn builds_are_listed_newest_first_also_when_they_began_at_once() {
        let (_folder, store) = store();
        finish(&store, "a", 5, 0);
        finish(&store, "b", 5, 0);
        finish(&store, "c", 1, 0);
        assert_eq!(ids(&store), ["b", "a", "c"]);
        assert_eq!(store.build_record("b").expect("a row"), Some(b"b".to_vec()));
        assert!(store.remove_build("b").expect("removed"));
        assert!(!store.remove_build("b").expect("gone"));
        assert_eq!(store.build_record("b").expect("no row"), None);
        assert_eq!(ids(&store), ["a", "c"]);
    }

    #[test]
    fn a_build_runs_while_its_folder_is_held() {
        let (_folder, store) = store();
        assert_eq!(store.open_builds().expect("a list"), []);
        let folder = store.begin_build("x", b"{}").expect("a folder");
        let mut log = folder.log("step").expect("a log");
        log.write(1, 0, b"hello").expect("room");
        assert!(store.open_builds().expect("a list")[0].running);
        assert!(!store.remove_build("x").expect("it is held"));
        drop(folder);
        assert!(!store.open_builds().expect("a list")[0].running);
        let log = store.build_log("x", "step").expect("a log");
        assert_eq!(log.expect("a log").count(), 1);
        finish(&store, "x", 1, 5);
        assert_eq!(store.open_builds().expect("a list"), []);
        assert!(store.remove_build("x").expect("removed"));
        assert!(store.build_log("x", "step").expect("none").is_none());
    }

    #[test]
    fn the_oldest_builds_go_when_there_are_too_many() {
        let (_folder, store) = store();
        for number in 0..5 {
            finish(
                &store,
                &format!("b{number}"),
                number * 1_000_000_000,
                10_000,
            );
        }
        let of_one = sizes(&store.path("builds/b4")).disk;
        let limits = |builds, logs| HistoryLimits {
            builds,
            log_bytes: logs * of_one,
            age: None,
        };
        let counted = || {
            let usage = store.usage().expect("a list");
            let builds = usage.iter().filter(|entry| entry.kind == ItemKind::Build);
            builds.map(|entry| entry.bytes).sum::<u64>()
        };
        assert_eq!(counted(), 5 * of_one);
        store.trim_builds(&limits(4, 5)).expect("trimmed");
        assert_eq!(ids(&store), ["b4", "b3", "b2", "b1"]);
        store.trim_builds(&limits(4, 2)).expect("trimmed");
        assert_eq!(ids(&store), ["b4", "b3"]);
        assert_eq!(counted(), 2 * of_one);
        assert!(store.check(false).expect("a check").is_clean());
        let old = HistoryLimits {
            age: Some(60),
            ..HistoryLimits::default()
        };
        store.trim_builds(&old).expect("trimmed");
        assert_eq!(ids(&store), ["b4"], "the newest stays");
        store.trim_builds(&limits(0, 0)).expect("trimmed");
        assert_eq!(ids(&store), ["b4"]);
    }
}
