//! The containerd content service, for reading: blobs of ended builds, and those of the store.

use std::convert::Infallible;
use std::fs::File;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bollard_buildkit_proto::google::protobuf::Timestamp;
use engine::Engine;
use oci::Digest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::Service;

use crate::content::{ReadRequest, ReadResponse};
use crate::error::Failure;
use crate::gateway::blocking;
use crate::history::{self, Records};

/// Bytes in one message.
const PIECE: usize = 1 << 20;

/// What is served; its clones are one.
#[derive(Clone)]
pub(crate) struct ReadingService {
    pub(crate) engine: Engine,
    pub(crate) records: Arc<Records>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct InfoRequest {
    #[prost(string, tag = "1")]
    digest: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Info {
    #[prost(string, tag = "1")]
    digest: String,
    #[prost(int64, tag = "2")]
    size: i64,
    #[prost(message, optional, tag = "3")]
    created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "4")]
    updated_at: Option<Timestamp>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct InfoResponse {
    #[prost(message, optional, tag = "1")]
    info: Option<Info>,
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<T, Status>> + Send>>;

impl ReadingService {
    /// Opens a blob. Blocks.
    fn open(&self, digest: &str) -> Result<(File, u64), Status> {
        let parsed: Digest = digest
            .parse()
            .map_err(|_| Status::invalid_argument(format!("{digest:?} is no digest")))?;
        let missing = || Status::not_found(format!("content {digest}: not found"));
        let file = match self.records.blob(&parsed) {
            Some(file) => file,
            None => self
                .engine
                .store()
                .blobs()
                .open(&parsed)
                .map_err(|_| missing())?,
        };
        let size = file.metadata().map_err(|_| missing())?.len();
        Ok((file, size))
    }
}

impl UnaryService<InfoRequest> for ReadingService {
    type Response = InfoResponse;
    type Future = Answer<Response<InfoResponse>>;

    fn call(&mut self, request: Request<InfoRequest>) -> Self::Future {
        let (service, digest) = (self.clone(), request.into_inner().digest);
        Box::pin(async move {
            let asked = digest.clone();
            let (file, size) = blocking(move || Ok(service.open(&asked)?)).await?;
            let changed = file.metadata().and_then(|metadata| metadata.modified());
            let since = changed
                .ok()
                .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
                .unwrap_or_default();
            let time = Timestamp {
                seconds: since.as_secs() as i64,
                nanos: since.subsec_nanos() as i32,
            };
            Ok(Response::new(InfoResponse {
                info: Some(Info {
                    digest,
                    size: size as i64,
                    created_at: Some(time),
                    updated_at: Some(time),
                }),
            }))
        })
    }
}

impl ServerStreamingService<ReadRequest> for ReadingService {
    type Response = ReadResponse;
    type ResponseStream = ReceiverStream<Result<ReadResponse, Status>>;
    type Future = Answer<Response<Self::ResponseStream>>;

    fn call(&mut self, request: Request<ReadRequest>) -> Self::Future {
        let (service, asked) = (self.clone(), request.into_inner());
        Box::pin(async move {
            let (Ok(offset), Ok(size)) = (u64::try_from(asked.offset), u64::try_from(asked.size))
            else {
                return Err(Status::invalid_argument("offset and size are not negative"));
            };
            let digest = asked.digest;
            let (file, length) = blocking(move || Ok(service.open(&digest)?)).await?;
            let end = match size {
                0 => length,
                size => offset.saturating_add(size).min(length),
            };
            if offset > length {
                return Err(Status::out_of_range(format!(
                    "read past object length {length} bytes"
                )));
            }
            let (pieces, answers) = mpsc::channel(2);
            tokio::spawn(send(Arc::new(file), offset..end, pieces));
            Ok(Response::new(ReceiverStream::new(answers)))
        })
    }
}

/// Sends a part of a file. No thread waits for a reader: each piece is read when there is room for it.
async fn send(
    file: Arc<File>,
    part: Range<u64>,
    pieces: mpsc::Sender<Result<ReadResponse, Status>>,
) {
    let mut offset = part.start;
    while offset < part.end {
        let Ok(room) = pieces.reserve().await else {
            return;
        };
        let most = PIECE.min(usize::try_from(part.end - offset).unwrap_or(PIECE));
        let file = Arc::clone(&file);
        let read = move || {
            history::read_part(&file, offset, most)
                .map_err(|error| Failure::new(Code::Internal, format!("failed to read: {error}")))
        };
        match blocking(read).await {
            Ok(data) if data.is_empty() => return,
            Ok(data) => {
                let read = data.len() as u64;
                room.send(Ok(ReadResponse {
                    offset: offset as i64,
                    data,
                }));
                offset += read;
            }
            Err(failure) => return room.send(Err(failure.into())),
        }
    }
}

impl Service<http::Request<Body>> for ReadingService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let method = request.uri().path().rsplit('/').next();
            Ok(match method.unwrap_or_default() {
                "Info" => {
                    let codec = ProstCodec::<InfoResponse, InfoRequest>::default();
                    Grpc::new(codec).unary(service, request).await
                }
                "Read" => {
                    let codec = ProstCodec::<ReadResponse, ReadRequest>::default();
                    Grpc::new(codec).server_streaming(service, request).await
                }
                method => {
                    Status::unimplemented(format!("{method}: blobs are for reading")).into_http()
                }
            })
        })
    }
}

impl NamedService for ReadingService {
    const NAME: &'static str = "containerd.services.content.v1.Content";
}
