//! What is sent: content that can be read again from any place, as a retry needs it.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use tokio::sync::mpsc;

/// Is told how many bytes have come or gone so far; the number falls when an upload begins again.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// Opens some content at an offset.
pub type Opener = Arc<dyn Fn(u64) -> io::Result<Box<dyn Read + Send>> + Send + Sync>;

const PIECE: usize = 256 << 10;
/// How many pieces wait for the network.
const PIECES: usize = 4;

/// Where the content of a blob is read from.
#[derive(Clone)]
pub enum BlobSource {
    Bytes(Bytes),
    File(PathBuf),
    /// Called on a blocking thread, once for each attempt.
    Opener(Opener),
}

impl fmt::Debug for BlobSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(formatter, "Bytes({})", bytes.len()),
            Self::File(path) => formatter.debug_tuple("File").field(path).finish(),
            Self::Opener(_) => formatter.write_str("Opener(..)"),
        }
    }
}

impl BlobSource {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        match self {
            Self::Bytes(bytes) => {
                let start = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                Ok(Box::new(io::Cursor::new(bytes.slice(start..))))
            }
            Self::File(path) => {
                let mut file = std::fs::File::open(path)?;
                file.seek(SeekFrom::Start(offset))?;
                Ok(Box::new(file))
            }
            Self::Opener(open) => open(offset),
        }
    }
}

/// A part of a blob on its way to a registry.
#[derive(Clone)]
pub(crate) struct Upload {
    pub(crate) source: BlobSource,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) progress: Option<Progress>,
}

impl fmt::Debug for Upload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "Upload({:?}, {}..{})",
            self.source, self.start, self.end
        )
    }
}

impl Upload {
    pub(crate) fn length(&self) -> u64 {
        self.end - self.start
    }

    /// Returns the bytes as a body; `sent` counts those that the connection took.
    pub(crate) fn body(&self, sent: Arc<AtomicU64>) -> reqwest::Body {
        let (sender, receiver) = mpsc::channel(PIECES);
        let upload = self.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = upload.read(&sender) {
                let _ = sender.blocking_send(Err(LocalError(Arc::new(error))));
            }
        });
        let (start, progress) = (self.start, self.progress.clone());
        let pieces = stream::unfold(receiver, move |mut receiver| {
            let (sent, progress) = (Arc::clone(&sent), progress.clone());
            async move {
                let piece: Result<Bytes, LocalError> = receiver.recv().await?;
                if let Ok(piece) = &piece {
                    let before = sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
                    if let Some(progress) = &progress {
                        progress(start + before + piece.len() as u64);
                    }
                }
                Some((piece, receiver))
            }
        });
        reqwest::Body::wrap_stream(pieces)
    }

    fn read(&self, sender: &mpsc::Sender<Result<Bytes, LocalError>>) -> io::Result<()> {
        let mut reader = self.source.open(self.start)?.take(self.length());
        let mut left = self.length();
        while left > 0 {
            let mut piece = BytesMut::zeroed(left.min(PIECE as u64) as usize);
            let mut filled = 0;
            while filled < piece.len() {
                match reader.read(&mut piece[filled..]) {
                    Ok(0) => {
                        return Err(io::Error::new(
                            io::ErrorKind::UnexpectedEof,
                            "it is shorter than it should be",
                        ));
                    }
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            left -= filled as u64;
            if sender.blocking_send(Ok(piece.freeze())).is_err() {
                return Ok(()); // The request is over.
            }
        }
        Ok(())
    }
}

/// Marks an error as one of this machine on its way through the HTTP library.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
struct LocalError(Arc<io::Error>);

/// Returns the error of reading here that made a request fail, if that was why.
pub(crate) fn local_error(error: &(dyn std::error::Error + 'static)) -> Option<io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(LocalError(error)) = error.downcast_ref() {
            return Some(io::Error::new(error.kind(), error.to_string()));
        }
        next = error.source();
    }
    None
}
