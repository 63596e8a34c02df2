//! Logs of steps: what was printed, byte for byte, with the stream and the time of each piece.
//!
//! A file is a line that names the form, then blocks: a byte that says how the block is held, the length
//! as four bytes (little-endian), the bytes. Inside of blocks lie pieces: the stream's number (one byte),
//! the time (eight bytes, nanoseconds since 1970), the length (four bytes), the bytes.
//! The first megabyte is written as it comes, so that a killed build leaves what was printed; what follows is
//! compressed, block by block. A block that is cut short is the end, for now: a log is read while it is written.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::StoreError;

const FORM: &[u8] = b"lapstrake log 1\n";
/// Bytes of pieces that are written as they come.
const PLAIN: u64 = 1 << 20;
/// Bytes of pieces that are compressed at once.
const BLOCK: usize = 256 << 10;
/// The largest block that is read: larger ones were written by nobody.
const MOST: usize = 64 << 20;
const LEVEL: i32 = 1;
/// Nanoseconds after which pieces wait no longer for others, so that who reads along is not left behind; only what
/// comes just before a silence waits for its end.
const LONGEST_WAIT: i64 = 1_000_000_000;

const HELD_PLAIN: u8 = 0;
const HELD_ZSTD: u8 = 1;

/// A piece of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPiece {
    /// The file descriptor's number.
    pub stream: u8,
    /// Nanoseconds since 1970.
    pub time: i64,
    pub data: Vec<u8>,
}

/// Writes a log as it comes.
#[derive(Debug)]
pub struct LogWriter {
    file: File,
    path: PathBuf,
    /// Pieces that wait to be compressed.
    waiting: Vec<u8>,
    /// The time of the first of them.
    since: i64,
    plain: u64,
    bytes: u64,
}

impl LogWriter {
    pub(crate) fn create(path: PathBuf) -> Result<Self, StoreError> {
        let mut file = File::create(&path).map_err(StoreError::io("create the log", &path))?;
        file.write_all(FORM)
            .map_err(StoreError::io("write the log", &path))?;
        Ok(Self {
            file,
            path,
            waiting: Vec::new(),
            since: 0,
            plain: 0,
            bytes: 0,
        })
    }

    /// Adds what was printed.
    pub fn write(&mut self, stream: u8, time: i64, data: &[u8]) -> Result<(), StoreError> {
        self.bytes += data.len() as u64;
        for data in data.chunks(MOST / 2) {
            let mut piece = Vec::with_capacity(data.len() + 13);
            piece.push(stream);
            piece.extend_from_slice(&time.to_le_bytes());
            piece.extend_from_slice(&(data.len() as u32).to_le_bytes());
            piece.extend_from_slice(data);
            if self.plain < PLAIN {
                self.plain += piece.len() as u64;
                self.block(HELD_PLAIN, &piece)?;
                continue;
            }
            if self.waiting.is_empty() {
                self.since = time;
            }
            self.waiting.extend_from_slice(&piece);
            let waited = time.saturating_sub(self.since);
            if self.waiting.len() >= BLOCK || waited >= LONGEST_WAIT {
                self.compress()?;
            }
        }
        Ok(())
    }

    /// Writes what waits.
    pub fn flush(&mut self) -> Result<(), StoreError> {
        match self.waiting.is_empty() {
            true => Ok(()),
            false => self.compress(),
        }
    }

    /// Writes what waits. Returns how many bytes were printed.
    pub fn finish(mut self) -> Result<u64, StoreError> {
        self.flush()?;
        Ok(self.bytes)
    }

    fn compress(&mut self) -> Result<(), StoreError> {
        let waiting = std::mem::take(&mut self.waiting);
        let packed = zstd::bulk::compress(&waiting, LEVEL)
            .map_err(StoreError::io("compress the log", &self.path))?;
        self.block(HELD_ZSTD, &packed)
    }

    fn block(&mut self, held: u8, bytes: &[u8]) -> Result<(), StoreError> {
        // One call, so that a killed writer leaves whole blocks but for the last.
        let mut block = Vec::with_capacity(bytes.len() + 5);
        block.push(held);
        block.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        block.extend_from_slice(bytes);
        self.file
            .write_all(&block)
            .map_err(StoreError::io("write the log", &self.path))
    }
}

/// Reads a log piece by piece, in memory one block at a time.
///
/// After its end it may be asked again: it goes on with what was written since.
#[derive(Debug)]
pub struct LogReader {
    file: BufReader<File>,
    path: PathBuf,
    /// Where the next block begins; zero before the form was read.
    offset: u64,
    block: Vec<u8>,
    at: usize,
    failed: bool,
}

impl LogReader {
    /// Opens a log; `None` where there is none.
    pub fn open(path: &Path) -> Result<Option<Self>, StoreError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("open the log", path)(error)),
        };
        let mut log = Self {
            file: BufReader::new(file),
            path: path.to_owned(),
            offset: 0,
            block: Vec::new(),
            at: 0,
            failed: false,
        };
        log.read_form()?;
        Ok(Some(log))
    }

    /// Reads the line that names the form; `false` if it was not written yet.
    fn read_form(&mut self) -> Result<bool, StoreError> {
        let mut form = [0; FORM.len()];
        if !self.fill(&mut form)? {
            return Ok(false);
        }
        if form != FORM {
            return Err(self.damaged("it does not begin like one"));
        }
        self.offset = FORM.len() as u64;
        Ok(true)
    }

    /// Returns where the log is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the next block; `false` at the end.
    fn next_block(&mut self) -> Result<bool, StoreError> {
        if self.offset == 0 && !self.read_form()? {
            return Ok(false);
        }
        let mut head = [0; 5];
        if !self.fill(&mut head)? {
            return Ok(false);
        }
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > MOST {
            return Err(self.damaged("a block is too long"));
        }
        let mut bytes = vec![0; length];
        if !self.fill(&mut bytes)? {
            return Ok(false);
        }
        self.block = match head[0] {
            HELD_PLAIN => bytes,
            HELD_ZSTD => zstd::bulk::decompress(&bytes, MOST)
                .map_err(|_| self.damaged("a block cannot be unpacked"))?,
            _ => return Err(self.damaged("a block is held in no known way")),
        };
        self.at = 0;
        self.offset += (5 + length) as u64;
        Ok(true)
    }

    /// Reads so many bytes; where they are not there, what comes next is where the last block has ended.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<bool, StoreError> {
        match self.file.read_exact(bytes) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self
                .file
                .seek(io::SeekFrom::Start(self.offset))
                .map(|_| false)
                .map_err(StoreError::io("read the log", &self.path)),
            Err(error) => Err(StoreError::io("read the log", &self.path)(error)),
        }
    }

    fn damaged(&self, reason: &str) -> StoreError {
        StoreError::Damaged {
            subject: format!("the log {}", self.path.display()),
            reason: reason.to_owned(),
        }
    }

    fn piece(&mut self) -> Option<LogPiece> {
        let rest = &self.block[self.at..];
        let (head, rest) = rest.split_at_checked(13)?;
        let time = i64::from_le_bytes(head[1..9].try_into().ok()?);
        let length = u32::from_le_bytes(head[9..13].try_into().ok()?) as usize;
        let data = rest.get(..length)?.to_vec();
        let stream = head[0];
        self.at += 13 + length;
        Some(LogPiece { stream, time, data })
    }
}

impl Iterator for LogReader {
    type Item = Result<LogPiece, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        loop {
            if let Some(piece) = self.piece() {
                return Some(Ok(piece));
            }
            if self.at != self.block.len() {
                self.failed = true;
                return Some(Err(self.damaged("a piece is cut short")));
            }
            match self.next_block() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> Result<Vec<LogPiece>, StoreError> {
        LogReader::open(path)?.expect("the log is there").collect()
    }

    #[test]
    fn bytes_come_back_as_they_were() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("log");
        let mut log = LogWriter::create(path.clone()).expect("a log");
        // Beyond what is kept plain, so that both kinds of block are there.
        let mut expected = Vec::new();
        for number in 0..200_u32 {
            let data = vec![(number % 251) as u8; 20_000 + number as usize];
            log.write((number % 2) as u8 + 1, i64::from(number), &data)
                .expect("room");
            expected.push(LogPiece {
                stream: (number % 2) as u8 + 1,
                time: i64::from(number),
                data,
            });
        }
        let bytes: usize = expected.iter().map(|piece| piece.data.len()).sum();
        assert_eq!(log.finish().expect("room"), bytes as u64);
        assert_eq!(read(&path).expect("a whole log"), expected);
        let size = std::fs::metadata(&path).expect("a file").len();
        assert!(size < bytes as u64 / 2, "{size} of {bytes}");
    }

    #[test]
    fn a_log_that_is_cut_short_ends_there() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("log");
        let mut log = LogWriter::create(path.clone()).expect("a log");
        log.write(1, 5, b"whole").expect("room");
        log.write(1, 6, b"not whole").expect("room");
        log.finish().expect("room");
        let bytes = std::fs::read(&path).expect("a file");
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).expect("room");
            let pieces = read(&path).expect("no error");
            assert!(pieces.len() <= 1, "{length}");
        }
        std::fs::write(&path, &bytes).expect("room");
        assert_eq!(read(&path).expect("a whole log").len(), 2);
    }

    #[test]
    fn a_log_is_read_while_it_is_written() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("log");
        let mut log = LogWriter::create(path.clone()).expect("a log");
        let second = 1_000_000_000;
        let large = vec![b'x'; PLAIN as usize];
        log.write(1, 0, &large).expect("room");
        // Compressed; the second does not wait for a whole block.
        log.write(1, second, b"one").expect("room");
        log.write(2, 3 * second, b"two").expect("room");
        log.write(1, 3 * second, b"three").expect("room");
        log.finish().expect("room");
        let bytes = std::fs::read(&path).expect("a file");
        std::fs::write(&path, b"").expect("room");
        let mut reader = LogReader::open(&path).expect("a log").expect("a log");
        let mut read = Vec::new();
        let tail = bytes.len() - 100;
        for length in [0, 5, FORM.len(), 40, PLAIN as usize]
            .into_iter()
            .chain(tail..=bytes.len())
        {
            std::fs::write(&path, &bytes[..length]).expect("room");
            read.extend(reader.by_ref().map(|piece| piece.expect("a piece").data));
        }
        assert_eq!(read, [&large[..], b"one", b"two", b"three"]);
    }

    #[test]
    fn rubbish_is_an_error_and_no_panic() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("log");
        let check = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("room");
            assert!(matches!(read(&path), Err(StoreError::Damaged { .. })));
        };
        check(b"something else, and long enough");
        let with = |rest: &[u8]| [FORM, rest].concat();
        check(&with(&[0, 0xff, 0xff, 0xff, 0xff]));
        check(&with(&[7, 1, 0, 0, 0, 0]));
        check(&with(&[1, 1, 0, 0, 0, 0]));
        check(&with(&[0, 1, 0, 0, 0, 9]));
    }
}
