//! Builds that have ended, on disk: what was asked, what was told, and what was made of it.
//!
//! *On disk*: `served/<sha256 of the build's name>/` in the state directory, with `record` (a
//! `moby.buildkit.v1.BuildHistoryRecord`) and `blobs/<sha256>`. A record appears whole or not at all.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bollard_buildkit_proto::moby::buildkit::v1::{BuildHistoryRecord, Descriptor, StatusResponse};
use oci::Digest;
use prost::Message;

/// How many builds are remembered whatever their age.
const ENTRIES: usize = 50;
/// How long a build is remembered whatever their number.
const AGE: Duration = Duration::from_secs(48 * 60 * 60);
/// How many are remembered at most.
const MOST: usize = 1000;
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
        Self { folder }
    }

    fn place(&self, id: &str) -> PathBuf {
        self.folder.join(Digest::sha256_of(id.as_bytes()).hex())
    }

    /// Keeps a build that has ended, in the place of one with the same name.
    pub(crate) fn keep(&self, record: &BuildHistoryRecord, blobs: &[Blob]) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let begun = tempfile::Builder::new()
            .prefix("begun-")
            .tempdir_in(&self.folder)?;
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

    /// Returns all records, the oldest first.
    pub(crate) fn all(&self) -> Vec<BuildHistoryRecord> {
        let mut records: Vec<_> = self
            .folders()
            .iter()
            .filter_map(|folder| read_record(folder))
            .collect();
        records.sort_by_cached_key(|record| (began(record), record.r#ref.clone()));
        records
    }

    pub(crate) fn find(&self, id: &str) -> Option<BuildHistoryRecord> {
        read_record(&self.place(id))
    }

    /// Changes a record, and adds blobs to it; `None` if there is none of this name.
    pub(crate) fn update(
        &self,
        id: &str,
        blobs: &[Blob],
        change: impl FnOnce(&mut BuildHistoryRecord),
    ) -> io::Result<Option<BuildHistoryRecord>> {
        let place = self.place(id);
        let Some(mut record) = read_record(&place) else {
            return Ok(None);
        };
        for blob in blobs {
            write_blob(&place, blob)?;
        }
        change(&mut record);
        let mut file = tempfile::NamedTempFile::new_in(&place)?;
        file.write_all(&record.encode_to_vec())?;
        file.persist(place.join("record"))?;
        Ok(Some(record))
    }

    /// Removes a record with its blobs and returns it.
    pub(crate) fn remove(&self, id: &str) -> io::Result<Option<BuildHistoryRecord>> {
        let place = self.place(id);
        let Some(record) = read_record(&place) else {
            return Ok(None);
        };
        fs::remove_dir_all(&place)?;
        Ok(Some(record))
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
            let begun = entry.file_name().to_string_lossy().starts_with("begun-");
            (!begun).then(|| entry.path())
        });
        folders.collect()
    }

    /// Forgets what is neither new nor among the last.
    fn collect(&self) {
        let records = self.all();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let oldest = now.unwrap_or_default().saturating_sub(AGE).as_secs() as i64;
        let others = records.iter().rev().filter(|record| !record.pinned);
        for (number, record) in others.enumerate() {
            let is_old = began(record).0 < oldest;
            if number >= MOST || (number >= ENTRIES && is_old) {
                let _ = fs::remove_dir_all(self.place(&record.r#ref));
            }
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

fn read_record(folder: &Path) -> Option<BuildHistoryRecord> {
    let mut bytes = Vec::new();
    let file = File::open(folder.join("record")).ok()?;
    file.take(LARGEST).read_to_end(&mut bytes).ok()?;
    BuildHistoryRecord::decode(bytes.as_slice()).ok()
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

/// Reads a part of a file: from `offset`, `size` bytes or all if that is zero, at most `most` at once.
pub(crate) fn read_part(
    file: &mut File,
    offset: u64,
    most: usize,
    left: Option<u64>,
) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(offset))?;
    let most = left.map_or(most as u64, |left| left.min(most as u64));
    let mut bytes = Vec::new();
    Read::by_ref(file).take(most).read_to_end(&mut bytes)?;
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
        assert_eq!(read_part(&mut file, 1, 2, None).unwrap(), b"el");
        assert_eq!(read_part(&mut file, 3, 9, Some(1)).unwrap(), b"l");

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

    #[test]
    fn only_the_last_are_remembered_and_those_that_are_pinned() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::new(folder.path().to_owned());
        records.keep(&record("pinned", 0), &[]).unwrap();
        records
            .update("pinned", &[], |record| record.pinned = true)
            .unwrap()
            .unwrap();
        for number in 0..ENTRIES as i64 + 3 {
            let one = record(&format!("{number}"), number + 1);
            records.keep(&one, &[]).unwrap();
        }
        let names = names(&records);
        assert_eq!(names.len(), ENTRIES + 1);
        assert_eq!(&names[..2], ["pinned", "3"]);
    }
}
