//! The record database: one SQLite file that many processes share.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use crate::StoreError;

/// The schema. Entry `n` takes a database from version `n` (its `user_version`) to `n + 1`.
///
/// An entry that was released is never edited: a change of the schema is a further entry.
const MIGRATIONS: &[&str] = &[
    "
CREATE TABLE layer(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  unpack_key TEXT UNIQUE,      -- diff id or chain id, for layers that came from an image
  diff_id TEXT,                -- digest of the layer's tar, once it is known
  tar_size INTEGER,
  content_id BLOB,             -- checksum without times, once it is known
  bytes INTEGER NOT NULL,      -- on disk
  content INTEGER NOT NULL,    -- of file content
  origin TEXT NOT NULL,        -- the step or image it came from
  boot TEXT NOT NULL,          -- boot id while it may not have reached the disk, else empty
  created INTEGER NOT NULL,    -- all times are seconds since 1970
  used INTEGER NOT NULL
);
CREATE INDEX layer_by_diff_id ON layer(diff_id);
CREATE TABLE blob(
  digest TEXT PRIMARY KEY, size INTEGER NOT NULL, created INTEGER NOT NULL, used INTEGER NOT NULL,
  boot TEXT NOT NULL           -- boot id while it may not have reached the disk, else empty
) WITHOUT ROWID;
CREATE TABLE encoding(         -- blobs that hold a layer's tar, compressed or not
  diff_id TEXT NOT NULL, form TEXT NOT NULL, media_type TEXT NOT NULL,
  digest TEXT NOT NULL, size INTEGER NOT NULL, PRIMARY KEY(diff_id, form)
) WITHOUT ROWID;
CREATE TABLE result(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  layers TEXT NOT NULL,        -- JSON list of layer ids, lowest first
  info TEXT NOT NULL,          -- JSON, the engine's
  created INTEGER NOT NULL, used INTEGER NOT NULL
);
CREATE TABLE result_layer(result INTEGER NOT NULL, layer INTEGER NOT NULL);
CREATE INDEX result_layer_by_layer ON result_layer(layer);
CREATE INDEX result_layer_by_result ON result_layer(result);
CREATE TABLE record(key BLOB PRIMARY KEY, operation BLOB NOT NULL, result INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX record_by_operation ON record(operation);
CREATE INDEX record_by_result ON record(result);
CREATE TABLE tombstone(key BLOB PRIMARY KEY, at INTEGER NOT NULL, rule TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE image(
  id TEXT PRIMARY KEY,         -- config digest
  manifest TEXT,               -- digest of the manifest it was pulled by, if it was
  layers TEXT,                 -- JSON list of layer ids; null while they are not unpacked
  platform TEXT NOT NULL, size INTEGER NOT NULL, created INTEGER NOT NULL, used INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE name(
  reference TEXT PRIMARY KEY, image TEXT NOT NULL, digest TEXT, updated INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE memo(             -- what can be computed again: file digests, source metadata
  space TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, used INTEGER NOT NULL,
  PRIMARY KEY(space, key)
) WITHOUT ROWID;
",
    "
CREATE TABLE container(
  id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE,
  image TEXT NOT NULL, layers TEXT NOT NULL,  -- JSON list of layer ids, lowest first
  info TEXT NOT NULL,          -- JSON, the engine's
  created INTEGER NOT NULL
);
",
    "
CREATE TABLE mount(            -- directories of cache mounts, under `mounts/`
  name TEXT PRIMARY KEY, id TEXT NOT NULL,
  bytes INTEGER,               -- null while it may have changed since it was measured
  created INTEGER NOT NULL, used INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE total(bytes INTEGER NOT NULL);  -- one row: what all layers, blobs and mounts take
INSERT INTO total SELECT coalesce((SELECT sum(bytes) FROM layer), 0)
  + coalesce((SELECT sum(size) FROM blob), 0);
CREATE TRIGGER layer_added AFTER INSERT ON layer
  BEGIN UPDATE total SET bytes = bytes + new.bytes; END;
CREATE TRIGGER layer_removed AFTER DELETE ON layer
  BEGIN UPDATE total SET bytes = bytes - old.bytes; END;
CREATE TRIGGER layer_changed AFTER UPDATE OF bytes ON layer
  BEGIN UPDATE total SET bytes = bytes + new.bytes - old.bytes; END;
CREATE TRIGGER blob_added AFTER INSERT ON blob
  BEGIN UPDATE total SET bytes = bytes + new.size; END;
CREATE TRIGGER blob_removed AFTER DELETE ON blob
  BEGIN UPDATE total SET bytes = bytes - old.size; END;
CREATE TRIGGER blob_changed AFTER UPDATE OF size ON blob
  BEGIN UPDATE total SET bytes = bytes + new.size - old.size; END;
CREATE TRIGGER mount_added AFTER INSERT ON mount
  BEGIN UPDATE total SET bytes = bytes + coalesce(new.bytes, 0); END;
CREATE TRIGGER mount_removed AFTER DELETE ON mount
  BEGIN UPDATE total SET bytes = bytes - coalesce(old.bytes, 0); END;
CREATE TRIGGER mount_changed AFTER UPDATE OF bytes ON mount
  BEGIN UPDATE total SET bytes = bytes + coalesce(new.bytes, 0) - coalesce(old.bytes, 0); END;
",
    "
CREATE TABLE build(            -- builds that have ended
  started INTEGER PRIMARY KEY, -- nanoseconds since 1970
  id TEXT NOT NULL,
  bytes INTEGER NOT NULL,      -- of its logs
  summary TEXT NOT NULL        -- JSON, the engine's
);
CREATE TABLE build_record(started INTEGER PRIMARY KEY, record BLOB NOT NULL);
",
    "
ALTER TABLE image ADD COLUMN annotations TEXT; -- JSON: those of the manifest it was built with
ALTER TABLE name ADD COLUMN variants TEXT;     -- JSON: an index and its images, where the name means several
CREATE VIEW named(reference, image) AS         -- all images that a name stands for
  SELECT reference, image FROM name UNION
  SELECT name.reference, json_each.value FROM name, json_each(name.variants, '$.images')
    WHERE name.variants IS NOT NULL AND json_valid(name.variants);
",
    "
UPDATE total SET bytes = bytes + (SELECT coalesce(sum(bytes), 0) FROM build); -- logs count too
CREATE TRIGGER build_added AFTER INSERT ON build
  BEGIN UPDATE total SET bytes = bytes + new.bytes; END;
CREATE TRIGGER build_removed AFTER DELETE ON build
  BEGIN UPDATE total SET bytes = bytes - old.bytes; END;
",
];

/// The newest format this version reads and writes.
pub(crate) const FORMAT: u32 = MIGRATIONS.len() as u32;

/// How long one process waits for another.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes that the log of changes keeps for later when it has been brought into the database.
const KEPT_CHANGES: i64 = 4 << 20;

/// Opens the database. The caller holds the lock of the root exclusively if the file is new:
/// the first switch to WAL is not protected by SQLite's own busy handler.
pub(crate) fn open(path: &Path) -> Result<Connection, StoreError> {
    let connection = Connection::open(path).map_err(StoreError::database("open a connection"))?;
    let configure = || -> rusqlite::Result<()> {
        connection.busy_timeout(PATIENCE)?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "foreign_keys", "OFF")?;
        connection.pragma_update(None, "cache_size", -4096)?;
        connection.pragma_update(None, "journal_size_limit", KEPT_CHANGES)?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(())
    };
    configure().map_err(StoreError::database("configure the connection"))?;
    Ok(connection)
}

/// Bytes of the log of changes that may stay when the last process leaves.
const MOST_CHANGES: u64 = 512 << 10;

/// Prepares for the end of a connection: SQLite's own way is to bring the log of changes into the database when
/// the last connection closes, which waits for the disk four times. A build that finds everything writes some pages; a
/// small log stays for the next process, which reads it in a fraction of a millisecond. What a power cut may take is
/// the same either way: what was written in the last seconds, in order.
pub(crate) fn before_close(connection: &Connection, path: &Path) {
    let mut changes = path.as_os_str().to_owned();
    changes.push("-wal");
    let small = std::fs::metadata(changes).is_ok_and(|meta| meta.len() <= MOST_CHANGES);
    let switch = rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
    if let Err(error) = connection.set_db_config(switch, small) {
        tracing::debug!(%error, "the log of changes is brought in");
    }
}

/// Reads the format of a database; 0 is one without tables.
pub(crate) fn format(connection: &Connection) -> Result<u32, StoreError> {
    connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(StoreError::database("read the format"))
}

/// Brings the database to [`FORMAT`]. The caller holds the lock of the root exclusively.
///
/// A new one is made without waiting for the disk: if the machine goes down before it is there, the file is empty, or
/// its log of changes ends early, and it is made again. Nothing is lost with it that outlives the machine.
pub(crate) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let run = |connection: &mut Connection| -> rusqlite::Result<()> {
        let version = |connection: &Connection| -> rusqlite::Result<u32> {
            connection.pragma_query_value(None, "user_version", |row| row.get(0))
        };
        let is_new = version(connection)? == 0;
        if is_new {
            connection.pragma_update(None, "synchronous", "OFF")?;
        }
        let journal: String =
            connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
        if journal != "wal" {
            connection.pragma_update(None, "journal_mode", "WAL")?;
        }
        let transaction =
            connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let found = version(&transaction)?;
        for migration in MIGRATIONS.iter().skip(found as usize) {
            transaction.execute_batch(migration)?;
        }
        if found < FORMAT {
            transaction.pragma_update(None, "user_version", FORMAT)?;
        }
        transaction.commit()?;
        if is_new {
            connection.pragma_update(None, "synchronous", "NORMAL")?;
        }
        Ok(())
    };
    run(connection).map_err(StoreError::database("migrate the records"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ids, OpenOptions, Store, StoreError};

    /// Makes a store as the version made it that knew the first `version` entries, with something in it.
    fn store_of(version: u32, root: &Path) {
        drop(Store::open(root, OpenOptions::new(Some(Ids::Rootful))).expect("a store"));
        let path = root.join("records.db");
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(root.join(format!("records.db{suffix}")));
        }
        let connection = open(&path).expect("a database");
        for migration in &MIGRATIONS[..version as usize] {
            connection.execute_batch(migration).expect("a schema");
        }
        connection
            .pragma_update(None, "user_version", version)
            .expect("a version");
        let digest = format!("sha256:{}", "0".repeat(64));
        connection
            .execute_batch(&format!(
                "INSERT INTO layer(bytes, content, origin, boot, created, used)
                   VALUES(1000, 900, 'step', '', 5, 5);
                 INSERT INTO blob VALUES('{digest}', 30, 5, 5, '');
                 INSERT INTO name(reference, image, digest, updated) VALUES('docker.io/library/app:latest', '{digest}', NULL, 5);"
            ))
            .expect("records");
    }

    #[test]
    fn a_store_of_every_older_version_is_brought_up_to_date() {
        for version in 1..=FORMAT {
            let root = tempfile::tempdir().expect("a directory");
            store_of(version, root.path());
            let store = Store::open(root.path(), OpenOptions::new(None)).expect("it opens");
            let found = format(&store.database()).expect("a version");
            assert_eq!(found, FORMAT, "from version {version}");
            let names = store.names().expect("the names");
            assert_eq!(names.len(), 1, "from version {version}");
            let total: i64 = store
                .database()
                .query_row("SELECT bytes FROM total", [], |row| row.get(0))
                .expect("a sum");
            assert_eq!(total, 1030, "from version {version}");
            assert!(store.used_bytes().expect("a sum") > 1030, "and the records");
        }
    }

    #[test]
    fn eight_may_bring_an_older_store_up_to_date_at_once() {
        let root = tempfile::tempdir().expect("a directory");
        store_of(1, root.path());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| Store::open(root.path(), OpenOptions::new(None)).expect("it opens"));
            }
        });
    }

    #[test]
    fn records_of_a_newer_version_are_refused_and_left_alone() {
        let root = tempfile::tempdir().expect("a directory");
        store_of(FORMAT, root.path());
        let connection = open(&root.path().join("records.db")).expect("a database");
        connection
            .pragma_update(None, "user_version", FORMAT + 1)
            .expect("a version");
        let refused = Store::open(root.path(), OpenOptions::new(None));
        match refused {
            Err(error @ StoreError::TooNew { .. }) => {
                assert!(
                    error.to_string().contains("use a newer lapstrake"),
                    "{error}"
                );
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(format(&connection).expect("a version"), FORMAT + 1);
    }
}
