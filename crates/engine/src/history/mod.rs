//! Records of builds: what each was asked for, what it did and why, what it printed.

use store::{HistoryLimits, LogReader, Store};

use crate::EngineError;
use crate::vertex::RecordInfo;

mod archive;
mod complete;
mod diff;
mod explain;
pub(crate) mod files;
mod hidden;
mod otlp;
mod parts;
mod record;
pub(crate) mod recorder;
mod replay;
mod request;
#[cfg(test)]
mod testing;
mod totals;
mod trace;

pub use diff::{BuildDiff, OutputDiff, StepDiff};
pub use explain::{Change, Explanation, Reason, Root};
pub use files::{FileChanges, FileEntry, FileList};
pub use record::{
    BuildRecord, BuildStatus, BuildSummary, CachedBy, DockerfileRecord, ErrorRecord, GroupRecord,
    KeyRecord, LayerRecord, Miss, OutputRecord, ProcessRecord, RECORD_VERSION, RequestRecord,
    SourceRecord, StepKind, StepOutcome, StepRecord, TransferRecord, UsageRecord, WarningRecord,
    nanoseconds_between, time_of,
};

pub use otlp::{TraceParent, spans};
pub use totals::Totals;
pub use trace::trace;

pub(crate) use complete::{Known, complete, conclude};
pub(crate) use explain::last_run;
pub(crate) use hidden::is_secret;
pub(crate) use record::nanoseconds_of;
pub(crate) use request::opening;

/// Larger records than this were written by nobody.
const MOST_RECORD_BYTES: usize = 256 << 20;

/// The builds of a store.
#[derive(Debug, Clone)]
pub struct History {
    store: Store,
}

impl History {
    /// Opens the history of a store.
    pub fn new(store: &Store) -> Self {
        Self {
            store: store.clone(),
        }
    }

    /// Lists all builds, the newest first; those that run come before.
    pub fn list(&self) -> Result<Vec<BuildSummary>, EngineError> {
        let mut builds = Vec::new();
        for open in self.store.open_builds()? {
            if let Some(record) = read_opening(&open) {
                builds.push(record.summary());
            }
        }
        for entry in self.store.builds()? {
            match serde_json::from_str::<BuildSummary>(&entry.summary) {
                Ok(summary) => builds.push(summary),
                Err(error) => tracing::warn!(%error, id = entry.id, "a build cannot be read"),
            }
        }
        builds.sort_by(|a, b| {
            let runs = |build: &BuildSummary| build.status == BuildStatus::Running;
            (runs(b), b.started, &b.id).cmp(&(runs(a), a.started, &a.id))
        });
        Ok(builds)
    }

    /// Finds a build: by its id or the beginning of it, by `^N` (the newest is `^0`), or the newest if empty.
    pub fn find(&self, reference: &str) -> Result<BuildSummary, EngineError> {
        let builds = self.list()?;
        // buildx writes BUILDER/NODE/ID too.
        let reference = reference.rsplit('/').next().unwrap_or(reference);
        let none = || EngineError::Request("there are no builds yet".to_owned());
        let offset = match reference.strip_prefix('^') {
            Some("") => Some(0),
            Some(number) => Some(number.parse::<usize>().map_err(|_| {
                EngineError::Request(format!(
                    "invalid build {reference:?}: behind ^ stands how many builds to go back"
                ))
            })?),
            None if reference.is_empty() => Some(0),
            None => None,
        };
        if let Some(offset) = offset {
            let count = builds.len();
            let mut newest = builds;
            newest.sort_by(|a, b| (b.started, &b.id).cmp(&(a.started, &a.id)));
            return match newest.into_iter().nth(offset) {
                Some(build) => Ok(build),
                None if count == 0 => Err(none()),
                None => Err(EngineError::Request(format!(
                    "there is no build {reference}: {count} are recorded"
                ))),
            };
        }
        let mut found = builds
            .into_iter()
            .filter(|build| build.id.starts_with(reference));
        match (found.next(), found.next()) {
            (Some(build), None) => Ok(build),
            (Some(build), Some(_)) if build.id == reference => Ok(build),
            (Some(_), Some(_)) => Err(EngineError::Request(format!(
                "several builds begin with {reference:?}; give more of the id"
            ))),
            (None, _) => Err(EngineError::Request(format!(
                "there is no build {reference:?}; `lapstrake history ls` lists them"
            ))),
        }
    }

    /// Reads the record of a build that [`History::find`] has found.
    pub fn record(&self, id: &str) -> Result<BuildRecord, EngineError> {
        if let Some(bytes) = self.store.build_record(id)? {
            return decode(id, &bytes);
        }
        let open = self.store.open_builds()?;
        open.iter()
            .find(|open| open.id == id)
            .and_then(read_opening)
            .ok_or_else(|| EngineError::Request(format!("there is no build {id:?}")))
    }

    /// Opens the log of a step: what it printed in this build, or, where it was cached, when it ran.
    ///
    /// `None` if it printed nothing, or nothing is known of it any more.
    pub fn log(
        &self,
        record: &BuildRecord,
        step: &StepRecord,
    ) -> Result<Option<LogReader>, EngineError> {
        if let Some(log) = self.store.build_log(&record.id, step.vertex.hex())? {
            return Ok(Some(log));
        }
        if step.outcome != StepOutcome::Cached {
            return Ok(None);
        }
        match self.origin(step)? {
            Some((build, vertex)) => Ok(self.store.build_log(&build, &vertex)?),
            None => Ok(None),
        }
    }

    /// Returns the build in which the result of a step was made, and the name of its log there.
    fn origin(&self, step: &StepRecord) -> Result<Option<(String, String)>, EngineError> {
        let key = step.key.as_ref().and_then(|key| unhex(&key.definition));
        let Some(key) = key else { return Ok(None) };
        let Some(found) = self.store.find(&key)? else {
            return Ok(None);
        };
        let info: Option<RecordInfo> = serde_json::from_value(found.info).ok();
        // Both become names of files.
        let is_name =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        Ok(info
            .map(|info| (info.build, info.vertex))
            .filter(|(build, vertex)| is_name(build) && is_name(vertex)))
    }

    /// Returns how the process of a cached step was started in the build that made the result.
    pub(crate) fn process_where_it_ran(
        &self,
        step: &StepRecord,
    ) -> Result<Option<ProcessRecord>, EngineError> {
        let Some((build, vertex)) = self.origin(step)? else {
            return Ok(None);
        };
        // It may have been forgotten since.
        let Ok(record) = self.record(&build) else {
            return Ok(None);
        };
        let ran = record.steps.into_iter();
        let mut ran = ran.filter(|step| step.vertex.hex() == vertex);
        Ok(ran.find_map(|step| step.process))
    }

    /// Removes a build and its logs; `false` if it runs.
    pub fn remove(&self, id: &str) -> Result<bool, EngineError> {
        Ok(self.store.remove_build(id)?)
    }

    /// Explains why a step of a build ran, against earlier builds of the same Dockerfile, or of one like it.
    pub fn explain(
        &self,
        record: &BuildRecord,
        step: &StepRecord,
        earlier: &[BuildRecord],
    ) -> Explanation {
        explain::explain(record, step, earlier, &|checksum| self.files(checksum))
    }

    /// Does the same where lists of files are known that are not kept.
    pub(crate) fn explain_with(
        &self,
        record: &BuildRecord,
        step: &StepRecord,
        earlier: &[BuildRecord],
        lists: &std::collections::HashMap<String, FileList>,
    ) -> Explanation {
        let find = |checksum: &str| match lists.get(checksum) {
            Some(list) => Some(list.clone()),
            None => self.files(checksum),
        };
        explain::explain(record, step, earlier, &find)
    }

    /// Reads the builds a build is compared with: earlier ones of the same context and Dockerfile, the nearest first;
    /// after them others of the same name, as a checkout has another directory each time.
    pub fn earlier(
        &self,
        record: &BuildRecord,
        most: usize,
    ) -> Result<Vec<BuildRecord>, EngineError> {
        let project = record.project();
        let mut builds = self.list()?;
        builds.retain(|build| {
            let alike = build.project == project || build.name == record.name;
            build.id != record.id && build.started < record.started && alike
        });
        builds.sort_by(|a, b| {
            let key = |build: &BuildSummary| (build.project == project, build.started);
            key(b).cmp(&key(a)).then(a.id.cmp(&b.id))
        });
        let mut records = Vec::new();
        for build in builds.into_iter().take(most) {
            match self.record(&build.id) {
                Ok(record) => records.push(record),
                Err(error) => tracing::warn!(%error, id = build.id, "a build cannot be read"),
            }
        }
        Ok(records)
    }

    /// Compares two builds.
    pub fn diff(&self, a: &BuildRecord, b: &BuildRecord) -> BuildDiff {
        diff::diff(a, b, &|checksum| self.files(checksum))
    }

    /// Returns the list of files behind a part of a key, where it is kept.
    pub fn files(&self, checksum: &str) -> Option<FileList> {
        files::find(&self.store, &unhex(checksum)?)
    }
}

/// Writes the record of a build that has ended.
pub(crate) fn keep(store: &Store, record: &BuildRecord) -> Result<(), EngineError> {
    let summary = serde_json::to_string(&record.summary()).expect("a summary can be written");
    store.finish_build(&store::FinishedBuild {
        id: &record.id,
        started: nanoseconds_of(record.started),
        summary: &summary,
        record: &encode(record)?,
    })?;
    Ok(())
}

/// Removes the oldest builds, after one that printed so much.
pub(crate) fn trim(
    store: &Store,
    record: &BuildRecord,
    printed: u64,
    limits: &HistoryLimits,
) -> Result<(), EngineError> {
    // Builds that only find what they need leave little, and are not to read a list of all builds each time.
    let looks = printed > 0 || record.started.nanoseconds().is_multiple_of(16);
    if looks {
        store.trim_builds(limits)?;
    }
    Ok(())
}

fn encode(record: &BuildRecord) -> Result<Vec<u8>, EngineError> {
    let json = serde_json::to_vec(record).expect("a record can be written as JSON");
    zstd::bulk::compress(&json, 1).map_err(EngineError::io("compress", "a record"))
}

fn decode(id: &str, bytes: &[u8]) -> Result<BuildRecord, EngineError> {
    let damaged = |reason: String| {
        EngineError::Store(store::StoreError::Damaged {
            subject: format!("build {id}"),
            reason,
        })
    };
    let json = zstd::bulk::decompress(bytes, MOST_RECORD_BYTES)
        .map_err(|error| damaged(error.to_string()))?;
    #[derive(serde::Deserialize)]
    struct Probe {
        version: u32,
    }
    let probe: Probe = serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))?;
    if probe.version > RECORD_VERSION {
        return Err(damaged(format!(
            "it has version {}, this lapstrake reads up to {RECORD_VERSION}",
            probe.version
        )));
    }
    serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))
}

fn read_opening(open: &store::OpenBuild) -> Option<BuildRecord> {
    let mut record: BuildRecord = serde_json::from_slice(&open.opening).ok()?;
    record.id.clone_from(&open.id);
    record.status = match open.running {
        true => BuildStatus::Running,
        false => BuildStatus::Killed,
    };
    Some(record)
}

/// Reads 32 bytes written as hexadecimal digits.
pub(crate) fn unhex(text: &str) -> Option<store::Key> {
    let mut key = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(key)
}

/// Draws an id as buildx does: 25 lower-case letters and digits.
pub(crate) fn new_id() -> String {
    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let bytes = crate::plan::random();
    // 256 is no multiple of 36; that the first letters come a little more often harms nobody.
    bytes[..25]
        .iter()
        .map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        let key: store::Key = std::array::from_fn(|index| index as u8 * 7);
        assert_eq!(unhex(&crate::keys::hex(&key)), Some(key));
        assert_eq!(unhex("zz"), None);
        assert_eq!(unhex(&"g".repeat(64)), None);
        assert_eq!(unhex(&"+1".repeat(32)), None);
    }

    #[test]
    fn ids_look_like_those_of_buildx() {
        let id = new_id();
        assert_eq!(id.len(), 25);
        assert!(
            id.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        );
        assert_ne!(id, new_id());
    }
}
