//! What is recorded of cache mounts. Their directories are the engine's: `mounts/<name>`, locked
//! shared or exclusively by whoever uses one.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::{Store, StoreError};

impl Store {
    /// Says that a cache mount is used now, and may grow.
    pub fn use_mount(&self, name: &str, id: &str) -> Result<(), StoreError> {
        let now = self.now();
        self.write("record a cache mount", |transaction| {
            transaction.execute(
                "INSERT INTO mount(name, id, bytes, created, used) VALUES(?1, ?2, NULL, ?3, ?3)
                 ON CONFLICT(name) DO UPDATE SET bytes = NULL, used = ?3",
                rusqlite::params![name, id, now],
            )?;
            Ok(())
        })
    }

    /// Records cache mounts that are there without a record: their maker was killed, or knew no records.
    pub(crate) fn adopt_mounts(&self) -> Result<(), StoreError> {
        for path in self.entries("mounts")? {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            let known = self
                .database()
                .prepare_cached("SELECT 1 FROM mount WHERE name = ?1")
                .and_then(|mut statement| statement.exists([name]))
                .map_err(StoreError::database("look up a cache mount"))?;
            if !known && path.is_dir() {
                let id = std::fs::read_to_string(path.join("id")).unwrap_or_default();
                self.use_mount(name, &id)?;
            }
        }
        Ok(())
    }

    /// Measures the cache mounts that were used since they were last measured.
    pub(crate) fn measure_mounts(&self) -> Result<(), StoreError> {
        let names: Vec<(String, i64)> = self
            .database()
            .prepare_cached("SELECT name, used FROM mount WHERE bytes IS NULL ORDER BY name")
            .and_then(|mut statement| {
                statement
                    .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect()
            })
            .map_err(StoreError::database("list the cache mounts"))?;
        if names.is_empty() {
            return Ok(());
        }
        let measured: Vec<(String, i64, u64)> = names
            .into_iter()
            .map(|(name, used)| {
                let bytes = sizes(&self.path("mounts").join(&name)).disk;
                (name, used, bytes)
            })
            .collect();
        self.write("record the size of cache mounts", |transaction| {
            for (name, used, bytes) in &measured {
                // Whoever used it meanwhile has it measured again.
                transaction.execute(
                    "UPDATE mount SET bytes = ?3 WHERE name = ?1 AND used = ?2",
                    rusqlite::params![name, used, *bytes as i64],
                )?;
            }
            Ok(())
        })
    }
}

/// What a tree takes.
#[derive(Debug, Default)]
pub(crate) struct Sizes {
    /// Bytes on disk.
    pub(crate) disk: u64,
    /// Bytes of file content.
    pub(crate) content: u64,
}

/// Measures a tree, a file with several links once, as far as it can be seen.
pub(crate) fn sizes(root: &Path) -> Sizes {
    let mut found = Sizes::default();
    let mut linked = std::collections::HashSet::new();
    let mut work = vec![root.to_owned()];
    while let Some(folder) = work.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                work.push(entry.path());
            } else if meta.nlink() > 1 && !linked.insert(meta.ino()) {
                continue;
            } else if meta.is_file() {
                found.content += meta.len();
            }
            found.disk += meta.blocks() * 512;
        }
    }
    found
}
