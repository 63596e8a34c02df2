//! A blob for threads that block: unpacking runs on plain threads.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use oci::{Descriptor, Reference};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::content::Progress;
use crate::{Client, RegistryError};

/// How many pieces, each of at most some 400 KiB, wait for the reader.
const PIECES: usize = 8;

/// Reads a blob that a task of a runtime fetches.
///
/// The end is reached only when the whole blob came and has its digest; an error holds a [`RegistryError`]. Dropping
/// the reader ends the fetch. Must not be read on a thread that runs tasks.
#[derive(Debug)]
pub struct BlobReader {
    receiver: mpsc::Receiver<Result<Piece, RegistryError>>,
    piece: Bytes,
    finished: bool,
}

#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    End,
}

impl Client {
    /// Begins to fetch a blob and returns at once; see [`fetch_blob`](Self::fetch_blob).
    pub fn blob_reader(
        &self,
        runtime: &Handle,
        repository: &Reference,
        descriptor: &Descriptor,
        progress: Option<Progress>,
    ) -> BlobReader {
        let (sender, receiver) = mpsc::channel(PIECES);
        let (client, repository, descriptor) =
            (self.clone(), repository.clone(), descriptor.clone());
        runtime.spawn(async move {
            let closed = sender.clone();
            let fetch = async {
                if let Err(error) = pump(&client, &repository, &descriptor, progress, &sender).await
                {
                    let _ = sender.send(Err(error)).await;
                }
            };
            tokio::select! {
                () = fetch => {}
                () = closed.closed() => {}
            }
        });
        BlobReader {
            receiver,
            piece: Bytes::new(),
            finished: false,
        }
    }
}

async fn pump(
    client: &Client,
    repository: &Reference,
    descriptor: &Descriptor,
    progress: Option<Progress>,
    sender: &mpsc::Sender<Result<Piece, RegistryError>>,
) -> Result<(), RegistryError> {
    let mut blob = client.fetch_blob(repository, descriptor, progress).await?;
    while let Some(piece) = blob.next().await? {
        if sender.send(Ok(Piece::Bytes(piece))).await.is_err() {
            return Ok(());
        }
    }
    let _ = sender.send(Ok(Piece::End)).await;
    Ok(())
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.piece.is_empty() {
            if self.finished {
                return Ok(0);
            }
            match self.receiver.blocking_recv() {
                Some(Ok(Piece::Bytes(piece))) => self.piece = piece,
                Some(Ok(Piece::End)) => self.finished = true,
                Some(Err(error)) => return Err(error.into()),
                // The runtime was shut down, or an error was given before.
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::BrokenPipe,
                        "the fetch of the blob ended early",
                    ));
                }
            }
        }
        let length = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}
