//! What a container has printed, byte for byte.
//!
//! *On disk*: frames of one byte for the stream (1 or 2), eight for the time in nanoseconds since
//! 1970, four for a length (little-endian all), and as many bytes.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use store::Store;

use crate::EngineError;

const HEADER: usize = 13;

/// Some output of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// It came from standard error.
    pub is_error: bool,
    /// Nanoseconds since 1970.
    pub time: u64,
    pub bytes: Vec<u8>,
}

/// Reads the log of a container from its beginning; it may go on after the end.
#[derive(Debug)]
pub struct LogReader {
    file: Option<File>,
    pending: Vec<u8>,
}

impl LogReader {
    /// Opens the log of a container, which is empty if it never ran.
    pub fn open(store: &Store, id: &str) -> Result<Self, EngineError> {
        let path = store.container_folder(id).join(NAME);
        let file = match File::open(&path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(EngineError::io("open", path)(error)),
        };
        Ok(Self {
            file,
            pending: Vec::new(),
        })
    }

    /// Returns what has come since the last call; a frame that is half written waits.
    pub fn entries(&mut self) -> Result<Vec<LogEntry>, EngineError> {
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut self.pending)
                .map_err(EngineError::io("read", "a container's log"))?;
        }
        let mut entries = Vec::new();
        let mut rest = self.pending.as_slice();
        while let Some((entry, after)) = frame(rest) {
            entries.push(entry);
            rest = after;
        }
        self.pending = rest.to_vec();
        Ok(entries)
    }
}

fn frame(bytes: &[u8]) -> Option<(LogEntry, &[u8])> {
    let (header, rest) = bytes.split_at_checked(HEADER)?;
    let time = u64::from_le_bytes(header[1..9].try_into().ok()?);
    let length = u32::from_le_bytes(header[9..13].try_into().ok()?) as usize;
    let (bytes, rest) = rest.split_at_checked(length)?;
    let entry = LogEntry {
        is_error: header[0] == 2,
        time,
        bytes: bytes.to_vec(),
    };
    Some((entry, rest))
}

const NAME: &str = "log";

/// Writes to the log of a container.
#[derive(Debug)]
pub(crate) struct LogWriter {
    file: File,
}

impl LogWriter {
    pub(super) fn open(folder: &Path) -> Result<Self, EngineError> {
        let path = folder.join(NAME);
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(EngineError::io("open", &path))?;
        Ok(Self { file })
    }

    /// Appends one piece of output whole.
    pub(super) fn write(&mut self, is_error: bool, bytes: &[u8]) -> std::io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let time = now.map_or(0, |since| since.as_nanos() as u64);
        let mut frame = Vec::with_capacity(HEADER + bytes.len());
        frame.push(if is_error { 2 } else { 1 });
        frame.extend(time.to_le_bytes());
        frame.extend((bytes.len() as u32).to_le_bytes());
        frame.extend(bytes);
        self.file.write_all(&frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read_as_it_was_written_and_half_frames_wait() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::open(folder.path()).unwrap();
        writer.write(false, b"out\xff\n").unwrap();
        writer.write(true, b"err").unwrap();
        let bytes = std::fs::read(folder.path().join(NAME)).unwrap();
        let mut reader = LogReader {
            file: None,
            pending: bytes[..bytes.len() - 1].to_vec(),
        };
        let first = reader.entries().unwrap();
        assert_eq!(first.len(), 1);
        assert_eq!(
            (first[0].is_error, first[0].bytes.as_slice()),
            (false, &b"out\xff\n"[..])
        );
        reader.pending.push(b'r');
        let second = reader.entries().unwrap();
        assert_eq!(
            (second[0].is_error, second[0].bytes.as_slice()),
            (true, &b"err"[..])
        );
    }
}
