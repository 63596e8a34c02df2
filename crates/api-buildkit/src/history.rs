//! Builds that have ended, on disk: what was asked, what was told, and what was made of it.
//!
//! *On disk*: `served/<sha256 of the build's name>/` in the state directory, with `record` (a
//! `moby.buildkit.v1.BuildHistoryRecord`) and `blobs/<sha256>`. A record appears whole or not at all. Who writes holds a
//! lock on `served/lock`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bollard_buildkit_proto::moby::buildkit::v1::{BuildHistoryRecord, Descriptor, StatusResponse};
use oci::Digest;
use prost::Message;

use crate::serve::HistoryLimits;

/// What is remembered of builds that are not pinned; the last one always is.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// How many builds are remembered whatever their age.
    entries: usize,
    /// How long a build is remembered whatever their number.
    age: Duration,
    /// How many are remembered at most.
    most: usize,
    /// Bytes of all, with those that are pinned.
    bytes: u64,
}

const LIMITS: Limits = Limits {
    entries: 50,
    age: Duration::from_secs(48 * 60 * 60),
    most: 1000,
    bytes: 512 << 20,
};

/// A larger record or message was written by nobody.
const LARGEST: u64 = 64 << 20;

/// The kinds of blobs, by BuildKit's names.
pub(crate) const STATUS_TYPE: &str = "application/vnd.buildkit.status.v0";
pub(crate) const ERROR_TYPE: &str = "application/vnd.googeapis.google.rpc.status+proto";
pub(crate) const TRACE_TYPE: &str = "application/vnd.buildkit.otlp.json.v0";
pub(crate) const STATEMENT_TYPE: &str = "application/vnd.in-toto+json";

/// The builds that this server, and others on the same state directory, have carried out.
#[derive(Debug)]
pub(crate) struct Records {
    folder: PathBuf,
    limits: Limits,
}

/// The blobs of one record, while it is changed.
#[derive(Debug)]
pub(crate) struct Blobs<'a> {
    folder: &'a Path,
}

impl Blobs<'_> {
    pub(crate) fn read(&self, blob: &Descriptor) -> io::Result<Vec<u8>> {
        let name = name_of(blob)?;
        let mut bytes = Vec::new();
        let file = File::open(self.folder.join("blobs").join(name))?;
        file.take(LARGEST).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn add(&self, blob: &Blob) -> io::Result<()> {
        write_blob(self.folder, blob)
    }
}

/// A blob and what is said of it.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) descriptor: Descriptor,
    bytes: Vec<u8>,
}

impl Blob {
    pub(crate) fn new(media_type: &str, bytes: Vec<u8>) -> Self {
        Self {
            descriptor: Descriptor {
                media_type: media_type.to_owned(),
                digest: Digest::sha256_of(&bytes).to_string(),
                size: bytes.len() as i64,
                annotations: Default::default(),
            },
            bytes,
        }
    }

    #[must_use]
    pub(crate) fn with_annotation(mut self, name: &str, value: &str) -> Self {
        let annotations = &mut self.descriptor.annotations;
        annotations.insert(name.to_owned(), value.to_owned());
        self
    }
}

impl Records {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            limits: LIMITS,
        }
    }

    /// Keeps as many, and as long, as is asked for.
    pub(crate) fn within(mut self, asked: HistoryLimits) -> Self {
        if let Some(entries) = asked.entries {
            self.limits.entries = entries;
            self.limits.most = self.limits.most.max(entries);
        }
        if let Some(age) = asked.age {
            self.limits.age = age;
        }
        self
    }

    /// Returns what keeps other writers out, also those of other servers, as long as it is held.
    fn lock(&self) -> io::Result<File> {
        fs::create_dir_all(&self.folder)?;
        let lock = File::create(self.folder.join("lock"))?;
        lock.lock()?;
        Ok(lock)
    }

    fn place(&self, id: &str) -> PathBuf {
        self.folder.join(Digest::sha256_of(id.as_bytes()).hex())
    }

    /// Keeps a build that has ended, in the place of one with the same name.
    pub(crate) fn keep(&self, record: &BuildHistoryRecord, blobs: &[Blob]) -> io::Result<()> {
        let _lock = self.lock()?;
        let begun = self.begin()?;
        let (whole, place) = (begun.path().join("whole"), self.place(&record.r#ref));
        fs::create_dir_all(whole.join("blobs"))?;
        for blob in blobs {
            write_blob(&whole, blob)?;
        }
        fs::write(whole.join("record"), record.encode_to_vec())?;
        if place.exists() {
            fs::rename(&place, begun.path().join("old"))?;
        }
        fs::rename(&whole, &place)?;
        self.collect();
        Ok(())
    }

    /// Makes a folder for what is not whole yet, or no longer; it is removed with the value, or when a server starts.
    fn begin(&self) -> io::Result<tempfile::TempDir> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("begun-").tempdir_in(&self.folder)
    }

    /// Returns all records, the oldest first.
    pub(crate) fn all(&self) -> Vec<BuildHistoryRecord> {
        let mut records: Vec<_> = self
            .folders()
            .iter()
            .filter_map(|folder| read_record(folder).ok())
            .collect();
        records.sort_by_cached_key(|record| (began(record), record.r#ref.clone()));
        records
    }

    pub(crate) fn find(&self, id: &str) -> Option<BuildHistoryRecord> {
        read_record(&self.place(id)).ok()
    }

    /// Changes a record; `None` if there is none of this name. Blobs that it speaks of no longer are removed.
    pub(crate) fn update(
        &self,
        id: &str,
        change: impl FnOnce(&mut BuildHistoryRecord, &Blobs<'_>) -> io::Result<()>,
    ) -> io::Result<Option<BuildHistoryRecord>> {
        let _lock = self.lock()?;
        let place = self.place(id);
        let Ok(mut record) = read_record(&place) else {
            return Ok(None);
        };
        change(&mut record, &Blobs { folder: &place })?;
        let mut file = tempfile::NamedTempFile::new_in(&place)?;
        file.write_all(&record.encode_to_vec())?;
        file.persist(place.join("record"))?;
        let named = named_blobs(&record);
        for entry in fs::read_dir(place.join("blobs"))?.flatten() {
            if !named.contains(entry.file_name().to_string_lossy().as_ref()) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(Some(record))
    }

    /// Removes a record with its blobs and returns it.
    pub(crate) fn remove(&self, id: &str) -> io::Result<Option<BuildHistoryRecord>> {
        let _lock = self.lock()?;
        let place = self.place(id);
        let Ok(record) = read_record(&place) else {
            return Ok(None);
        };
        self.discard(&place)?;
        Ok(Some(record))
    }

    /// Removes a record's folder, at once for who looks.
    fn discard(&self, place: &Path) -> io::Result<()> {
        let begun = self.begin()?;
        fs::rename(place, begun.path().join("old"))?;
        begun.close()
    }

    /// Opens a blob of any record.
    pub(crate) fn blob(&self, digest: &Digest) -> Option<File> {
        if digest.algorithm() != oci::Algorithm::Sha256 {
            return None;
        }
        let folders = self.folders();
        let mut files = folders.iter().filter_map(|folder| {
            let path = folder.join("blobs").join(digest.hex());
            File::open(path).ok()
        });
        files.next()
    }

    /// Returns what a build told while it ran.
    pub(crate) fn told(&self, record: &BuildHistoryRecord) -> io::Result<Vec<StatusResponse>> {
        let digest = record.logs.as_ref().map(|logs| logs.digest.parse());
        let Some(Ok(digest)) = digest else {
            return Ok(Vec::new());
        };
        match self.blob(&digest) {
            Some(file) => read_statuses(file),
            None => Ok(Vec::new()),
        }
    }

    fn folders(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return Vec::new();
        };
        let folders = entries.filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name();
            let name = name.to_str()?;
            let is_record = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_record.then(|| entry.path())
        });
        folders.collect()
    }

    /// Forgets what is neither new nor among the last, the oldest for want of room, and what cannot be read.
    fn collect(&self) {
        let mut kept = Vec::new();
        let mut bytes = 0;
        for folder in self.folders() {
            match read_record(&folder) {
                Ok(record) => {
                    let size = size_of(&folder);
                    match record.pinned {
                        true => bytes += size,
                        false => kept.push((began(&record), record.r#ref, folder, size)),
                    }
                }
                // Its file is gone or damaged, and will not come back.
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) =>
                {
                    tracing::warn!(%error, folder = %folder.display(), "the record of a build is removed");
                    self.discard_or_warn(&folder);
                }
                Err(error) => {
                    tracing::warn!(%error, folder = %folder.display(), "the record of a build cannot be read");
                }
            }
        }
        kept.sort();
        let limits = &self.limits;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let oldest = now.unwrap_or_default().saturating_sub(limits.age).as_secs() as i64;
        for (number, (began, _, folder, size)) in kept.into_iter().rev().enumerate() {
            bytes += size;
            let is_old = number >= limits.entries && began.0 < oldest;
            if number > 0 && (number >= limits.most || is_old || bytes > limits.bytes) {
                self.discard_or_warn(&folder);
            }
        }
    }

    fn discard_or_warn(&self, folder: &Path) {
        if let Err(error) = self.discard(folder) {
            tracing::warn!(%error, folder = %folder.display(), "the record of a build is not removed");
        }
    }

    /// Removes what a killed server left half made.
    pub(crate) fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with("begun-") {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// When a build began, to be compared.
pub(crate) fn began(record: &BuildHistoryRecord) -> (i64, i32) {
    let time = record.created_at.as_ref();
    time.map_or((0, 0), |time| (time.seconds, time.nanos))
}

fn write_blob(folder: &Path, blob: &Blob) -> io::Result<()> {
    let blobs = folder.join("blobs");
    let hex = blob.descriptor.digest.rsplit(':').next();
    let mut file = tempfile::NamedTempFile::new_in(&blobs)?;
    file.write_all(&blob.bytes)?;
    file.persist(blobs.join(hex.unwrap_or_default()))?;
    Ok(())
}

/// Reads a record; the error is of the kind `InvalidData` where it is none.
fn read_record(folder: &Path) -> io::Result<BuildHistoryRecord> {
    let mut bytes = Vec::new();
    let file = File::open(folder.join("record"))?;
    file.take(LARGEST).read_to_end(&mut bytes)?;
    BuildHistoryRecord::decode(bytes.as_slice())
        .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

/// Returns by what name a blob is kept.
fn name_of(blob: &Descriptor) -> io::Result<String> {
    let digest: Result<Digest, _> = blob.digest.parse();
    let digest = digest.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    Ok(digest.hex().to_owned())
}

/// Returns the names of the blobs that a record speaks of.
fn named_blobs(record: &BuildHistoryRecord) -> BTreeSet<String> {
    let results = record.result.iter().chain(record.results.values());
    let own = [&record.logs, &record.trace, &record.external_error];
    let blobs = own.into_iter().flatten();
    blobs
        .chain(results.flat_map(|result| &result.attestations))
        .filter_map(|blob| name_of(blob).ok())
        .collect()
}

/// Returns the bytes of a record with its blobs.
fn size_of(folder: &Path) -> u64 {
    let files = [folder.to_owned(), folder.join("blobs")];
    let files = files.iter().filter_map(|folder| fs::read_dir(folder).ok());
    let sizes = files.flatten().filter_map(|entry| {
        let metadata = entry.ok()?.metadata().ok()?;
        metadata.is_file().then_some(metadata.len())
    });
    sizes.sum()
}

/// Writes statuses one behind the other, each with its length before it.
pub(crate) fn write_statuses(statuses: &[StatusResponse]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for status in statuses {
        bytes.extend((status.encoded_len() as u32).to_le_bytes());
        bytes.extend(status.encode_to_vec());
    }
    bytes
}

fn read_statuses(file: File) -> io::Result<Vec<StatusResponse>> {
    let mut file = io::BufReader::new(file);
    let mut statuses = Vec::new();
    loop {
        let mut length = [0; 4];
        match file.read_exact(&mut length) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(statuses),
            Err(error) => return Err(error),
        }
        let length = u32::from_le_bytes(length);
        if u64::from(length) > LARGEST {
            return Err(io::Error::other("a status is too large"));
        }
        let mut bytes = vec![0; length as usize];
        file.read_exact(&mut bytes)?;
        statuses.push(StatusResponse::decode(bytes.as_slice()).map_err(io::Error::other)?);
    }
}

/// Reads a part of a file: `most` bytes from `offset` on, fewer only where it ends.
pub(crate) fn read_part(file: &File, offset: u64, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; most];
    let mut filled = 0;
    while filled < most {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard_buildkit_proto::google::protobuf::Timestamp;

    fn record(id: &str, seconds: i64) -> BuildHistoryRecord {
        BuildHistoryRecord {
            r#ref: id.to_owned(),
            created_at: Some(Timestamp { seconds, nanos: 0 }),
            ..BuildHistoryRecord::default()
        }
    }

    fn names(records: &Records) -> Vec<String> {
        records.all().into_iter().map(|one| one.r#ref).collect()
    }

    #[test]
    fn records_outlive_the_server_with_their_blobs() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::new(folder.path().join("served"));
        assert!(records.all().is_empty());
        let blob = Blob::new("text/plain", b"hello".to_vec());
        let digest: Digest = blob.descriptor.digest.parse().unwrap();
        records
            .keep(&record("../b", 2), std::slice::from_ref(&blob))
            .unwrap();
        records.keep(&record("a", 1), &[]).unwrap();

        let again = Records::new(folder.path().join("served"));
        assert_eq!(names(&again), ["a", "../b"]);
        let mut text = String::new();
        let mut file = again.blob(&digest).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert_eq!(read_part(&file, 1, 2).unwrap(), b"el");
        assert_eq!(read_part(&file, 3, 9).unwrap(), b"lo");
        assert_eq!(read_part(&file, 9, 9).unwrap(), b"");

        assert!(again.remove("../b").unwrap().is_some());
        assert!(again.remove("../b").unwrap().is_none());
        assert!(again.blob(&digest).is_none());
        assert_eq!(names(&again), ["a"]);
    }

    #[test]
    fn statuses_are_read_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::new(folder.path().to_owned());
        let status = StatusResponse {
            vertexes: vec![Default::default(); 3],
            ..StatusResponse::default()
        };
        let told = vec![status.clone(), StatusResponse::default()];
        let blob = Blob::new(STATUS_TYPE, write_statuses(&told));
        let mut one = record("a", 1);
        one.logs = Some(blob.descriptor.clone());
        records.keep(&one, std::slice::from_ref(&blob)).unwrap();
        assert_eq!(records.told(&one).unwrap(), told);
        // What is cut off is an error, not half of the story.
        let hex = blob.descriptor.digest.rsplit(':').next().unwrap();
        let path = records.place("a").join("blobs").join(hex);
        fs::write(path, &blob.bytes[..5]).unwrap();
        assert!(records.told(&one).is_err());
    }

    fn limited(folder: &Path, limits: Limits) -> Records {
        Records {
            folder: folder.to_owned(),
            limits,
        }
    }

    const NOTHING: Limits = Limits {
        entries: 0,
        age: Duration::ZERO,
        most: usize::MAX,
        bytes: u64::MAX,
    };

    fn pin(records: &Records, id: &str) {
        let pin = |record: &mut BuildHistoryRecord, _: &Blobs<'_>| {
            record.pinned = true;
            Ok(())
        };
        records.update(id, pin).unwrap().unwrap();
    }

    #[test]
    fn only_the_last_are_remembered_and_those_that_are_pinned() {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits {
            entries: 3,
            ..NOTHING
        };
        let records = limited(folder.path(), limits);
        records.keep(&record("pinned", 0), &[]).unwrap();
        pin(&records, "pinned");
        for number in 1..6 {
            records
                .keep(&record(&format!("{number}"), number), &[])
                .unwrap();
        }
        assert_eq!(names(&records), ["pinned", "3", "4", "5"]);
    }

    #[test]
    fn what_is_young_stays_up_to_a_number() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap().as_secs() as i64;
        let limits = Limits {
            entries: 1,
            age: Duration::from_secs(1 << 20),
            most: 3,
            ..NOTHING
        };
        let records = limited(folder.path(), limits);
        records.keep(&record("old", now - (1 << 21)), &[]).unwrap();
        // The last one stays whatever its age, and none that is older than the limit beside it.
        assert_eq!(names(&records), ["old"]);
        for (number, id) in ["a", "b", "c"].into_iter().enumerate() {
            records.keep(&record(id, now + number as i64), &[]).unwrap();
        }
        assert_eq!(names(&records), ["a", "b", "c"]);
        records.keep(&record("d", now + 3), &[]).unwrap();
        assert_eq!(names(&records), ["b", "c", "d"]);
    }

    #[test]
    fn the_oldest_make_room_for_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits {
            entries: usize::MAX,
            bytes: 3000,
            ..NOTHING
        };
        let records = limited(folder.path(), limits);
        let blob = |text: &str| Blob::new("text/plain", text.repeat(1000).into_bytes());
        records.keep(&record("pinned", 0), &[blob("a")]).unwrap();
        pin(&records, "pinned");
        // What nobody speaks of was removed when the record changed.
        assert!(size_of(&records.place("pinned")) < 1000);
        for (number, id) in ["b", "c", "d"].into_iter().enumerate() {
            let one = record(id, number as i64 + 1);
            records.keep(&one, &[blob(id)]).unwrap();
        }
        assert_eq!(names(&records), ["pinned", "c", "d"]);
        // One alone may be larger.
        records.keep(&record("e", 9), &[blob("eeee")]).unwrap();
        assert_eq!(names(&records), ["pinned", "e"]);
    }

    #[test]
    fn what_cannot_be_read_is_removed_with_the_next_record() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::new(folder.path().to_owned());
        for id in ["damaged", "lost", "whole"] {
            records.keep(&record(id, 1), &[]).unwrap();
        }
        fs::write(records.place("damaged").join("record"), b"\xff\xff").unwrap();
        fs::remove_file(records.place("lost").join("record")).unwrap();
        let other = folder.path().join("other");
        fs::create_dir(&other).unwrap();
        assert_eq!(names(&records), ["whole"]);
        assert!(records.find("damaged").is_none());
        records.keep(&record("next", 2), &[]).unwrap();
        assert_eq!(names(&records), ["whole", "next"]);
        assert!(!records.place("damaged").exists() && !records.place("lost").exists());
        assert!(other.exists());
    }

    #[test]
    fn changes_of_one_record_at_once_are_all_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("served");
        Records::new(path.clone())
            .keep(&record("a", 1), &[])
            .unwrap();
        std::thread::scope(|scope| {
            for number in 0..8 {
                // Each like a server of its own.
                let records = Records::new(path.clone());
                scope.spawn(move || {
                    let count = |record: &mut BuildHistoryRecord, _: &Blobs<'_>| {
                        let name = format!("{number}");
                        record.exporter_response.insert(name, String::new());
                        Ok(())
                    };
                    records.update("a", count).unwrap().unwrap();
                });
            }
        });
        let record = Records::new(path).find("a").unwrap();
        assert_eq!(record.exporter_response.len(), 8);
    }
}
