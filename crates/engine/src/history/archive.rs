//! Builds as files: a record with its logs and lists of files, to be looked at elsewhere.
//!
//! A file is a tar, compressed with zstd: `build.json`, `logs/<vertex>` as the store keeps them, and
//! `files/<checksum>.json`. What is read may come from anyone: names, lengths and contents are checked.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::Path;

use store::LogReader;

use super::record::BuildRecord;
use super::{FileList, History, RECORD_VERSION, files, unhex};
use crate::EngineError;

/// The largest record or list that is read.
const MOST_JSON: u64 = 256 << 20;
/// The largest log that is read.
const MOST_LOG: u64 = 4 << 30;
/// Begins names of parts that are checksums of files.
const FILES: &str = "files: ";

impl History {
    /// Writes a build into a file.
    pub fn export(&self, record: &BuildRecord, output: impl Write) -> Result<(), EngineError> {
        let failed = EngineError::io("write", "the build");
        self.write_archive(record, output)
            .map_err(|error| match error.downcast::<EngineError>() {
                Ok(error) => error,
                Err(error) => failed(error),
            })
    }

    fn write_archive(&self, record: &BuildRecord, output: impl Write) -> std::io::Result<()> {
        let mut tar = tar::Builder::new(zstd::Encoder::new(output, 3)?);
        let json = serde_json::to_vec(record).expect("a record can be written as JSON");
        append(&mut tar, "build.json", &json)?;
        let mut lists = BTreeSet::new();
        for step in &record.steps {
            if let Some(log) = self.log(record, step).map_err(std::io::Error::other)? {
                let path = log.path().to_owned();
                let name = format!("logs/{}", step.vertex.hex());
                tar.append_path_with_name(path, name)?;
            }
            for part in step.key.iter().flat_map(|key| &key.parts) {
                if part.name.starts_with(FILES) {
                    lists.insert(&part.value);
                }
            }
        }
        for checksum in lists {
            if let Some(list) = self.files(checksum) {
                let json = serde_json::to_vec(&list).expect("a list can be written as JSON");
                append(&mut tar, &format!("files/{checksum}.json"), &json)?;
            }
        }
        tar.into_inner()?.finish()?.flush()
    }

    /// Reads a build from a file that [`History::export`] has written, and returns it.
    ///
    /// A build of the same id that is already there stays as it is.
    pub fn import(&self, input: impl Read) -> Result<BuildRecord, EngineError> {
        let unreadable = |error: std::io::Error| invalid(&error.to_string());
        let stream = zstd::Decoder::new(input).map_err(unreadable)?;
        let mut archive = tar::Archive::new(stream);
        let mut entries = archive.entries().map_err(unreadable)?;
        let first = entries
            .next()
            .ok_or_else(|| invalid("it is empty"))?
            .map_err(unreadable)?;
        if first.path_bytes().as_ref() != b"build.json" {
            return Err(invalid("it does not begin with build.json"));
        }
        let record: BuildRecord = read_json(first)
            .map_err(unreadable)?
            .ok_or_else(|| invalid("build.json cannot be read"))?;
        check(&record).map_err(invalid)?;
        if self.store.build_record(&record.id)?.is_some() {
            return Ok(record);
        }
        let folder = self.store.begin_build(&record.id, b"")?;
        let rest = self.import_rest(entries, folder.path());
        let kept = rest.and_then(|()| super::keep(&self.store, &record));
        drop(folder);
        if kept.is_err() {
            self.store.remove_build(&record.id)?;
        }
        kept.map(|()| record)
    }

    /// Takes the logs and lists that follow a record.
    fn import_rest<R: Read>(
        &self,
        entries: tar::Entries<'_, R>,
        folder: &Path,
    ) -> Result<(), EngineError> {
        let unreadable = |error: std::io::Error| invalid(&error.to_string());
        for entry in entries {
            let entry = entry.map_err(unreadable)?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            if let Some(vertex) = name.strip_prefix("logs/")
                && unhex(vertex).is_some()
            {
                let path = folder.join(vertex);
                keep_log(entry, &path).map_err(EngineError::io("write", &path))?;
                check_log(&path)?;
            } else if let Some(checksum) = name
                .strip_prefix("files/")
                .and_then(|rest| rest.strip_suffix(".json"))
                .and_then(unhex)
                && let Some(list) = read_json::<FileList>(entry).map_err(unreadable)?
                && files::find(&self.store, &checksum).is_none()
            {
                files::put(&self.store, &checksum, &list)?;
            }
        }
        Ok(())
    }
}

fn invalid(reason: &str) -> EngineError {
    EngineError::Request(format!("this is no build: {reason}"))
}

/// Refuses a record that could not have been written here.
fn check(record: &BuildRecord) -> Result<(), &'static str> {
    if record.version > RECORD_VERSION {
        return Err("it was written by a newer lapstrake");
    }
    let is_id = !record.id.is_empty()
        && record.id.len() <= 64
        && record.id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !is_id {
        return Err("it has no valid id");
    }
    let is_over = record.has_ended() && record.completed.is_some();
    match is_over {
        true => Ok(()),
        false => Err("it has not ended"),
    }
}

fn append<W: Write>(tar: &mut tar::Builder<W>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append_data(&mut header, name, bytes)
}

fn read_json<T: serde::de::DeserializeOwned>(entry: impl Read) -> std::io::Result<Option<T>> {
    let mut bytes = Vec::new();
    entry.take(MOST_JSON).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes).ok())
}

fn keep_log(entry: impl Read, path: &Path) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    std::io::copy(&mut entry.take(MOST_LOG), &mut file)?;
    Ok(())
}

/// Reads a log that was brought in, to its end; returns how much was printed.
fn check_log(path: &Path) -> Result<(), EngineError> {
    for piece in LogReader::open(path)?.into_iter().flatten() {
        piece?;
    }
    Ok(())
}
