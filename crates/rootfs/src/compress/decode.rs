//! Reads a layer blob: tells its format, inflates it and hashes it on threads beside the one that uses it.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};

use flate2::bufread::MultiGzDecoder;
use oci::{Digest, Digester};

use super::Format;
use super::queue::{Receiver, Sender, bounded};
use crate::{Error, Result};

/// Bytes in one piece of the pipeline.
const PIECE: usize = 256 << 10;
/// Pieces that may wait between two threads.
const QUEUE: usize = 6;

/// Returns the format that the first four bytes of a blob show.
pub fn format(start: &[u8]) -> Format {
    match start {
        [0x1f, 0x8b, 0x08, ..] => Format::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Format::Zstd,
        _ => Format::Uncompressed,
    }
}

/// What is known of a blob once it has been read to its end.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) format: Format,
    pub(crate) blob: Digest,
    pub(crate) blob_size: u64,
    pub(crate) diff_id: Digest,
    pub(crate) size: u64,
}

/// Bounds on what a blob may ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Bytes of the uncompressed content.
    pub(crate) bytes: u64,
    pub(crate) zstd_window_log: u32,
}

/// The uncompressed content of a blob that is being read on other threads.
#[derive(Debug)]
pub(crate) struct Decoding<'scope> {
    input: Receiver<Result<Arc<Piece>>>,
    current: Option<(Arc<Piece>, usize)>,
    inflating: ScopedJoinHandle<'scope, Format>,
    hashing: ScopedJoinHandle<'scope, (Digester, Digester)>,
}

/// Starts to read, inflate and hash a blob.
///
/// Two threads are started in `scope`; they end when the blob does, or when what is returned is dropped.
pub(crate) fn start<'scope, R: Read + Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    reader: R,
    bounds: Bounds,
) -> Decoding<'scope> {
    let (output, input) = bounded(QUEUE);
    let (hash, hashed) = bounded(QUEUE);
    let pool = Arc::new(Pool::default());
    let hashing = scope.spawn(move || hash_pieces(&hashed));
    let inflating = scope.spawn(move || {
        let blob = Blob {
            reader,
            pool: pool.clone(),
            hash: hash.clone(),
            current: None,
        };
        let (format, outcome) = inflate(blob, &pool, bounds, |piece| {
            // A hash thread that is gone has panicked; its join will say so.
            let _ = hash.send(Hashed::Content(piece.clone()));
            output.send(Ok(piece)).is_ok()
        });
        if let Err(error) = outcome {
            let _ = output.send(Err(error));
        }
        format
    });
    Decoding {
        input,
        current: None,
        inflating,
        hashing,
    }
}

impl Decoding<'_> {
    /// Reads to the end of the blob and returns what it turned out to be.
    pub(crate) fn finish(mut self) -> Result<Summary> {
        loop {
            let length = self.fill_buf().map_err(crate::tar::read::read_error)?.len();
            if length == 0 {
                break;
            }
            self.consume(length);
        }
        let format = joined(self.inflating);
        let (blob, content) = joined(self.hashing);
        Ok(Summary {
            format,
            blob_size: blob.length(),
            blob: blob.finish(),
            size: content.length(),
            diff_id: content.finish(),
        })
    }
}

impl Read for Decoding<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let piece = self.fill_buf()?;
        let length = piece.len().min(buffer.len());
        buffer[..length].copy_from_slice(&piece[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for Decoding<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let is_used = self
            .current
            .as_ref()
            .is_none_or(|(piece, position)| *position == piece.length);
        if is_used {
            self.current = None;
            match self.input.receive() {
                Some(Ok(piece)) => self.current = Some((piece, 0)),
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => return Ok(&[]),
            }
        }
        Ok(match &self.current {
            Some((piece, position)) => &piece.filled()[*position..],
            None => &[],
        })
    }

    fn consume(&mut self, length: usize) {
        if let Some((piece, position)) = &mut self.current {
            *position = (*position + length).min(piece.length);
        }
    }
}

/// Returns what a thread returned; its panic goes on here.
pub(crate) fn joined<T>(handle: ScopedJoinHandle<'_, T>) -> T {
    handle
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

enum Hashed {
    Blob(Arc<Piece>),
    Content(Arc<Piece>),
}

fn hash_pieces(pieces: &Receiver<Hashed>) -> (Digester, Digester) {
    let (mut blob, mut content) = (Digester::default(), Digester::default());
    while let Some(piece) = pieces.receive() {
        match piece {
            Hashed::Blob(piece) => blob.update(piece.filled()),
            Hashed::Content(piece) => content.update(piece.filled()),
        }
    }
    (blob, content)
}

/// Inflates `blob` and hands on piece after piece until `output` returns false.
fn inflate<R: Read>(
    mut blob: Blob<R>,
    pool: &Arc<Pool>,
    bounds: Bounds,
    output: impl FnMut(Arc<Piece>) -> bool,
) -> (Format, Result<()>) {
    let format = match blob.fill_buf() {
        Ok(start) => format(start),
        Err(error) => {
            return (
                Format::Uncompressed,
                Err(crate::tar::read::read_error(error)),
            );
        }
    };
    let outcome = match format {
        Format::Uncompressed => pump(blob, pool, bounds.bytes, output),
        Format::Gzip => pump(MultiGzDecoder::new(blob), pool, bounds.bytes, output),
        Format::Zstd => zstd::stream::read::Decoder::with_buffer(blob)
            .and_then(|mut decoder| {
                decoder.window_log_max(bounds.zstd_window_log)?;
                Ok(decoder)
            })
            .map_err(|source| Error::Decompress { source })
            .and_then(|decoder| pump(decoder, pool, bounds.bytes, output)),
    };
    (format, outcome)
}

fn pump(
    mut content: impl Read,
    pool: &Arc<Pool>,
    limit: u64,
    mut output: impl FnMut(Arc<Piece>) -> bool,
) -> Result<()> {
    let mut size = 0_u64;
    loop {
        let mut piece = pool.piece();
        let outcome = piece.fill(&mut content);
        size += piece.length as u64;
        if size > limit {
            return Err(Error::LayerLimit {
                what: "bytes",
                limit,
            });
        }
        if piece.length > 0 && !output(Arc::new(piece)) {
            return Ok(());
        }
        match outcome {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => {
                return Err(match error.downcast::<Error>() {
                    Ok(error) => error,
                    Err(source) => Error::Decompress { source },
                });
            }
        }
    }
}

/// The blob as it comes in; every piece of it also goes to be hashed.
struct Blob<R> {
    reader: R,
    pool: Arc<Pool>,
    hash: Sender<Hashed>,
    current: Option<(Arc<Piece>, usize)>,
}

impl<R: Read> Read for Blob<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let piece = self.fill_buf()?;
        let length = piece.len().min(buffer.len());
        buffer[..length].copy_from_slice(&piece[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl<R: Read> BufRead for Blob<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self
            .current
            .as_ref()
            .is_none_or(|(piece, position)| *position == piece.length)
        {
            let mut piece = self.pool.piece();
            // An error of the reader is not one of the decoder that asked.
            piece
                .fill(&mut self.reader)
                .map_err(|source| io::Error::other(Error::ReadLayer { source }))?;
            let piece = Arc::new(piece);
            let _ = self.hash.send(Hashed::Blob(piece.clone()));
            self.current = Some((piece, 0));
        }
        Ok(match &self.current {
            Some((piece, position)) => &piece.filled()[*position..],
            None => &[],
        })
    }

    fn consume(&mut self, length: usize) {
        if let Some((piece, position)) = &mut self.current {
            *position = (*position + length).min(piece.length);
        }
    }
}

/// Buffers to be used again.
#[derive(Default)]
struct Pool {
    free: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    fn piece(self: &Arc<Self>) -> Piece {
        let free = self
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        Piece {
            bytes: free.unwrap_or_else(|| vec![0; PIECE]),
            length: 0,
            pool: self.clone(),
        }
    }
}

/// A buffer of the pipeline, given back to its pool by the last who drops it.
struct Piece {
    bytes: Vec<u8>,
    length: usize,
    pool: Arc<Pool>,
}

impl Piece {
    fn filled(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Reads until the buffer is full; returns false at the end of `input`. What came before an error is kept.
    fn fill(&mut self, input: &mut impl Read) -> io::Result<bool> {
        while self.length < self.bytes.len() {
            match input.read(&mut self.bytes[self.length..]) {
                Ok(0) => return Ok(false),
                Ok(length) => self.length += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.pool
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(bytes);
    }
}

impl fmt::Debug for Piece {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Piece")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}
