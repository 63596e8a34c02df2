//! A client's content stores: blobs of its layouts and caches, read and written over its session.
//!
//! The calls are those of containerd's content service (`containerd.services.content.v1`).

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use http::uri::PathAndQuery;
use oci::{Descriptor, Digest, Manifest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use crate::error::Failure;
use crate::session::Session;
use crate::wire;

/// Bytes in one message.
const PIECE: usize = 1 << 20;
/// The largest document that is read, in bytes.
const MAX_DOCUMENT: u64 = 16 << 20;
/// How a call says which store is meant.
const STORE_HEADER: &str = "buildkit-attachable-store-id";

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReadRequest {
    #[prost(string, tag = "1")]
    pub(crate) digest: String,
    #[prost(int64, tag = "2")]
    pub(crate) offset: i64,
    #[prost(int64, tag = "3")]
    pub(crate) size: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReadResponse {
    #[prost(int64, tag = "1")]
    pub(crate) offset: i64,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) data: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WriteRequest {
    #[prost(int32, tag = "1")]
    action: i32,
    #[prost(string, tag = "2")]
    r#ref: String,
    #[prost(int64, tag = "3")]
    total: i64,
    #[prost(string, tag = "4")]
    expected: String,
    #[prost(int64, tag = "5")]
    offset: i64,
    #[prost(bytes = "vec", tag = "6")]
    data: Vec<u8>,
    #[prost(map = "string, string", tag = "7")]
    labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WriteResponse {
    #[prost(int32, tag = "1")]
    action: i32,
    #[prost(int64, tag = "4")]
    offset: i64,
}

const WRITE: i32 = 1;
const COMMIT: i32 = 2;

/// One content store of a client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ContentStore<'a> {
    pub(crate) session: &'a Session,
    pub(crate) id: &'a str,
}

impl ContentStore<'_> {
    async fn grpc(&self, method: &str) -> Result<Grpc<Channel>, Failure> {
        let service = format!("/containerd.services.content.v1.Content/{method}");
        if !self.session.supports(&service) {
            return Err(Failure::unknown(format!(
                "the client has no content store {:?}",
                self.id
            )));
        }
        let mut grpc = Grpc::new(self.session.channel()).max_decoding_message_size(64 << 20);
        grpc.ready()
            .await
            .map_err(|error| Failure::unknown(format!("the client is gone: {error}")))?;
        Ok(grpc)
    }

    /// Writes a blob to `into`, unchecked.
    pub(crate) async fn read(&self, digest: &Digest, into: &mut dyn Write) -> Result<(), Failure> {
        let mut grpc = self.grpc("Read").await?;
        let mut request = Request::new(ReadRequest {
            digest: digest.to_string(),
            ..ReadRequest::default()
        });
        wire::put(request.metadata_mut(), STORE_HEADER, &[self.id.to_owned()])?;
        let path = PathAndQuery::from_static("/containerd.services.content.v1.Content/Read");
        let codec = ProstCodec::<ReadRequest, ReadResponse>::default();
        let answers = grpc.server_streaming(request, path, codec).await;
        let failed = |status| Failure::from(status).context(&format!("{digest} in {}", self.id));
        let mut answers = answers.map_err(failed)?.into_inner();
        while let Some(piece) = answers.message().await.map_err(failed)? {
            into.write_all(&piece.data)
                .map_err(|error| Failure::unknown(format!("{digest} in {}: {error}", self.id)))?;
        }
        Ok(())
    }

    /// Reads a document and checks it.
    async fn document(&self, digest: &Digest) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        self.read(digest, &mut AtMost::new(&mut bytes, MAX_DOCUMENT))
            .await?;
        match Digest::sha256_of(&bytes) == *digest {
            true => Ok(bytes),
            false => Err(Failure::unknown(format!("{digest} is something else"))),
        }
    }

    /// Writes a blob, unless the store has it.
    async fn write(&self, digest: &Digest, path: &Path) -> Result<(), Failure> {
        let unreadable = |error| Failure::unknown(format!("failed to read the result: {error}"));
        let mut file = File::open(path).map_err(unreadable)?;
        let total = file.metadata().map_err(unreadable)?.len() as i64;
        let mut grpc = self.grpc("Write").await?;
        let (pieces, outgoing) = mpsc::channel(2);
        let mut request = Request::new(ReceiverStream::new(outgoing));
        wire::put(request.metadata_mut(), STORE_HEADER, &[self.id.to_owned()])?;
        let expected = digest.to_string();
        let send = async move {
            let mut offset = 0;
            loop {
                let mut data = vec![0; PIECE];
                let count = file.read(&mut data).map_err(unreadable)?;
                data.truncate(count);
                let piece = WriteRequest {
                    action: if count == 0 { COMMIT } else { WRITE },
                    r#ref: format!("lapstrake-{expected}"),
                    total,
                    expected: expected.clone(),
                    offset,
                    data,
                    labels: HashMap::new(),
                };
                offset += count as i64;
                if pieces.send(piece).await.is_err() || count == 0 {
                    return Ok(());
                }
            }
        };
        let receive = async {
            let path = PathAndQuery::from_static("/containerd.services.content.v1.Content/Write");
            let codec = ProstCodec::<WriteRequest, WriteResponse>::default();
            let mut answers = grpc.streaming(request, path, codec).await?.into_inner();
            while answers.message().await?.is_some() {}
            Ok(())
        };
        let (sent, received): (Result<(), Failure>, Result<(), Failure>) =
            tokio::join!(send, receive);
        sent?;
        match received {
            Err(failure) if failure.code == Code::AlreadyExists => Ok(()),
            received => received,
        }
    }

    /// Writes all blobs of a layout.
    pub(crate) async fn write_layout(&self, layout: &Path) -> Result<(), Failure> {
        let unreadable = |error| Failure::unknown(format!("failed to read the result: {error}"));
        let folder = layout.join(oci::layout::BLOBS_DIRECTORY).join("sha256");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(unreadable)? {
            names.push(entry.map_err(unreadable)?.path());
        }
        names.sort();
        for path in names {
            let name = path.file_name().and_then(|name| name.to_str());
            let digest = name.and_then(|name| format!("sha256:{name}").parse().ok());
            if let Some(digest) = digest {
                self.write(&digest, &path).await?;
            }
        }
        Ok(())
    }

    /// Copies all that a manifest or an index of layers names into a layout.
    pub(crate) async fn read_layout(&self, root: &Digest, layout: &Path) -> Result<(), Failure> {
        let no_room = |error: std::io::Error| Failure::unknown(format!("no room: {error}"));
        let raw = self.document(root).await?;
        let named = named_in(&raw)
            .map_err(|error| Failure::unknown(format!("the manifest {root}: {error}")))?;
        let place = |digest: &Digest| layout.join(oci::layout::blob_path(digest));
        let folder = layout.join(oci::layout::BLOBS_DIRECTORY).join("sha256");
        std::fs::create_dir_all(folder).map_err(no_room)?;
        for blob in named {
            let mut file = File::create(place(&blob.digest)).map_err(no_room)?;
            self.read(&blob.digest, &mut AtMost::new(&mut file, blob.size))
                .await?;
        }
        std::fs::write(place(root), raw).map_err(no_room)
    }
}

/// Returns the blobs that a manifest, or an index in its place, names.
fn named_in(raw: &[u8]) -> serde_json::Result<Vec<Descriptor>> {
    let blobs = match serde_json::from_slice::<Manifest>(raw) {
        Ok(manifest) => {
            let mut blobs = manifest.layers;
            blobs.push(manifest.config);
            blobs
        }
        Err(_) => serde_json::from_slice::<oci::Index>(raw)?.manifests,
    };
    let is_sha256 = |blob: &Descriptor| blob.digest.algorithm() == oci::Algorithm::Sha256;
    Ok(blobs.into_iter().filter(is_sha256).collect())
}

/// Refuses what is more than was announced.
struct AtMost<'a> {
    into: &'a mut dyn Write,
    left: u64,
}

impl<'a> AtMost<'a> {
    fn new(into: &'a mut dyn Write, most: u64) -> Self {
        Self { into, left: most }
    }
}

impl Write for AtMost<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or_else(|| std::io::Error::other("it is too large"))?;
        self.into.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.into.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_of_manifests_and_of_indexes_are_found() {
        let (a, b) = (Digest::sha256_of(b"a"), Digest::sha256_of(b"b"));
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{a}","size":1}},"layers":[{{"digest":"{b}","size":1}}]}}"#
        );
        let named_in = |raw: &[u8]| {
            let blobs = super::named_in(raw).ok()?.into_iter();
            Some(blobs.map(|blob| blob.digest).collect::<Vec<_>>())
        };
        assert_eq!(
            named_in(manifest.as_bytes()).unwrap(),
            [b.clone(), a.clone()]
        );
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"{a}","size":1}}]}}"#);
        assert_eq!(named_in(index.as_bytes()).unwrap(), [a]);
        assert!(named_in(b"[").is_none());
    }
}
