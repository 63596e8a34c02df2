//! Cache records: from keys to results, and what else can be computed again.

use rusqlite::OptionalExtension;
use serde_json::Value;

use oci::Digest;

use crate::{LayerId, Store, StoreError};

/// How old the time of use of a remembered value may be before it is renewed, in seconds.
const MEMO_RENEWAL: i64 = 86_400;

/// A cache key, definition or content: a SHA-256.
pub type Key = [u8; 32];

/// Names a result of one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResultId(pub u64);

/// The result of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Names the result.
    pub result: ResultId,
    /// The layers of the tree, lowest first.
    pub layers: Vec<LayerId>,
    /// What the engine keeps with it: names, times, the log.
    pub info: Value,
    /// Seconds since 1970.
    pub created: i64,
}

/// How exactly it is known when something was used, in seconds: a build that finds everything need not
/// write every time.
const MARK_EVERY: i64 = 60;

/// A blob that holds a layer's tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// The media type a manifest names it by.
    pub media_type: String,
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

impl Encoding {
    /// The form of the blob that a layer of an image came in. It is there as long as the layer is.
    pub const ORIGINAL: &str = "original";
}

impl Store {
    /// Returns the result recorded under a key.
    pub fn find(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        self.database()
            .prepare_cached(
                "SELECT result.id, result.layers, result.info, result.created
                 FROM record JOIN result ON result.id = record.result WHERE record.key = ?1",
            )
            .and_then(|mut statement| statement.query_row([key.as_slice()], record_row).optional())
            .map_err(StoreError::database("look up a key"))?
            .map(record_of_row)
            .transpose()
    }

    /// Returns the newest results of an operation, whatever its inputs were.
    pub fn results_of(&self, operation: &Key, most: usize) -> Result<Vec<Record>, StoreError> {
        let rows: Vec<RecordRow> = self
            .database()
            .prepare_cached(
                "SELECT DISTINCT result.id, result.layers, result.info, result.created
                 FROM record JOIN result ON result.id = record.result
                 WHERE record.operation = ?1 ORDER BY result.id DESC LIMIT ?2",
            )
            .and_then(|mut statement| {
                statement
                    .query_map(
                        rusqlite::params![operation.as_slice(), most as i64],
                        record_row,
                    )?
                    .collect()
            })
            .map_err(StoreError::database("look up an operation"))?;
        rows.into_iter().map(record_of_row).collect()
    }

    /// Returns whether any key of this operation is recorded.
    pub fn knows_operation(&self, operation: &Key) -> Result<bool, StoreError> {
        self.database()
            .prepare_cached("SELECT 1 FROM record WHERE operation = ?1 LIMIT 1")
            .and_then(|mut statement| statement.exists([operation.as_slice()]))
            .map_err(StoreError::database("look up an operation"))
    }

    /// Records a result under its keys; a key that was taken names the new result from now on.
    pub fn record(
        &self,
        operation: &Key,
        keys: &[Key],
        layers: &[LayerId],
        info: &Value,
    ) -> Result<ResultId, StoreError> {
        let now = self.now();
        let list = serde_json::to_string(layers).expect("numbers can be written");
        self.write("record a result", |transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO result(layers, info, created, used) VALUES(?1, ?2, ?3, ?3)",
                )?
                .execute(rusqlite::params![list, info.to_string(), now])?;
            let id = transaction.last_insert_rowid();
            for layer in layers {
                transaction
                    .prepare_cached("INSERT INTO result_layer(result, layer) VALUES(?1, ?2)")?
                    .execute([id, layer.0 as i64])?;
            }
            name_result(transaction, operation, keys, id)?;
            Ok(ResultId(id as u64))
        })
    }

    /// Gives a recorded result further keys.
    pub fn alias(&self, operation: &Key, keys: &[Key], result: ResultId) -> Result<(), StoreError> {
        self.write("name a result", |transaction| {
            name_result(transaction, operation, keys, result.0 as i64)
        })
    }

    /// Says that what is recorded under these keys was used now, for the collector's order.
    ///
    /// `of` is the key that speaks for all: if its result was marked a short while ago, nothing is done.
    pub fn mark_used(&self, of: &Key, keys: &[Key]) -> Result<(), StoreError> {
        let now = self.now();
        let marked: Option<i64> = self
            .database()
            .prepare_cached(
                "SELECT result.used FROM record JOIN result ON result.id = record.result
                 WHERE record.key = ?1",
            )
            .and_then(|mut statement| {
                statement
                    .query_row([of.as_slice()], |row| row.get(0))
                    .optional()
            })
            .map_err(StoreError::database("look up when a result was used"))?;
        if marked.is_some_and(|marked| (now - MARK_EVERY..=now).contains(&marked)) {
            return Ok(());
        }
        self.write("mark results as used", |transaction| {
            let mut statement = transaction.prepare_cached(
                "UPDATE result SET used = ?2
                 WHERE id = (SELECT result FROM record WHERE key = ?1)",
            )?;
            for key in keys {
                statement.execute(rusqlite::params![key.as_slice(), now])?;
            }
            Ok(())
        })
    }

    /// Returns a blob that holds the tar of this diff id in the given form.
    pub fn encoding(&self, diff_id: &Digest, form: &str) -> Result<Option<Encoding>, StoreError> {
        let row = self
            .database()
            .prepare_cached(
                "SELECT media_type, digest, size FROM encoding WHERE diff_id = ?1 AND form = ?2",
            )
            .and_then(|mut statement| {
                statement
                    .query_row([diff_id.to_string().as_str(), form], |row| {
                        Ok((
                            row.get::<_, String>(0)?,
                            row.get::<_, String>(1)?,
                            row.get::<_, i64>(2)?,
                        ))
                    })
                    .optional()
            })
            .map_err(StoreError::database("look up an encoding"))?;
        let Some((media_type, digest, size)) = row else {
            return Ok(None);
        };
        let digest: Digest = digest.parse().map_err(|_| StoreError::Damaged {
            subject: format!("encoding of {diff_id}"),
            reason: format!("{digest:?} is no digest"),
        })?;
        // The blob may have been collected since.
        if self.blobs().size(&digest) != Some(size as u64) {
            return Ok(None);
        }
        Ok(Some(Encoding {
            media_type,
            digest,
            size: size as u64,
        }))
    }

    /// Records that a blob holds the tar of this diff id. `form` says how it is compressed.
    pub fn set_encoding(
        &self,
        diff_id: &Digest,
        form: &str,
        encoding: &Encoding,
    ) -> Result<(), StoreError> {
        self.write("record an encoding", |transaction| {
            transaction.execute(
                "INSERT OR REPLACE INTO encoding(diff_id, form, media_type, digest, size)
                 VALUES(?1, ?2, ?3, ?4, ?5)",
                rusqlite::params![
                    diff_id.to_string(),
                    form,
                    encoding.media_type,
                    encoding.digest.to_string(),
                    encoding.size as i64
                ],
            )?;
            Ok(())
        })
    }

    /// Returns a remembered value.
    pub fn recall(&self, space: &str, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let found: Option<(Vec<u8>, i64)> = self
            .database()
            .prepare_cached("SELECT value, used FROM memo WHERE space = ?1 AND key = ?2")
            .and_then(|mut statement| {
                statement
                    .query_row(rusqlite::params![space, key], |row| {
                        Ok((row.get(0)?, row.get(1)?))
                    })
                    .optional()
            })
            .map_err(StoreError::database("recall a value"))?;
        let now = self.now();
        if let Some((_, used)) = found
            && now.saturating_sub(used) > MEMO_RENEWAL
        {
            self.write("renew a value", |transaction| {
                transaction.execute(
                    "UPDATE memo SET used = ?3 WHERE space = ?1 AND key = ?2",
                    rusqlite::params![space, key, now],
                )?;
                Ok(())
            })?;
        }
        Ok(found.map(|(value, _)| value))
    }

    /// Remembers values; those that nobody recalls for long are forgotten.
    pub fn remember<'a>(
        &self,
        space: &str,
        values: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<(), StoreError> {
        let now = self.now();
        self.write("remember values", |transaction| {
            let mut statement = transaction.prepare_cached(
                "INSERT OR REPLACE INTO memo(space, key, value, used) VALUES(?1, ?2, ?3, ?4)",
            )?;
            for (key, value) in values {
                statement.execute(rusqlite::params![space, key, value, now])?;
            }
            Ok(())
        })
    }
}

type RecordRow = (i64, String, String, i64);

fn record_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<RecordRow> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
}

fn record_of_row((id, layers, info, created): RecordRow) -> Result<Record, StoreError> {
    let damaged = |error: serde_json::Error| StoreError::Damaged {
        subject: format!("result {id}"),
        reason: error.to_string(),
    };
    Ok(Record {
        result: ResultId(id as u64),
        layers: serde_json::from_str(&layers).map_err(damaged)?,
        info: serde_json::from_str(&info).map_err(damaged)?,
        created,
    })
}

fn name_result(
    transaction: &rusqlite::Transaction<'_>,
    operation: &Key,
    keys: &[Key],
    result: i64,
) -> rusqlite::Result<()> {
    let mut statement = transaction.prepare_cached(
        "INSERT OR REPLACE INTO record(key, operation, result) VALUES(?1, ?2, ?3)",
    )?;
    for key in keys {
        statement.execute(rusqlite::params![
            key.as_slice(),
            operation.as_slice(),
            result
        ])?;
    }
    Ok(())
}
