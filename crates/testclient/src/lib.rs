//! A client of BuildKit's API, as `buildctl` is one, for tests and soaks.
//!
//! *Responsibility*: opens a session over a channel, offers directories and secrets, asks for builds and takes results.
//!
//! *Not here*: servers; what is asserted.
//!
//! *Invariants*: nothing it does outlives a [`Client`].

pub mod soak;
pub mod verifier;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::fsutil::types::{Packet, Stat};
use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::{Secrets, SecretsServer};
use bollard_buildkit_proto::moby::buildkit::secrets::v1::{GetSecretRequest, GetSecretResponse};
use bollard_buildkit_proto::moby::buildkit::v1 as pbc;
use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use bollard_buildkit_proto::moby::filesync::v1::BytesMessage;
use bollard_buildkit_proto::moby::filesync::v1::file_send_server::{FileSend, FileSendServer};
use bollard_buildkit_proto::moby::filesync::v1::file_sync_server::{FileSync, FileSyncServer};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Server as Transport};
use tonic::{Request, Response, Status, Streaming};

/// Connects to a server's socket.
pub async fn channel(socket: PathBuf) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_static("http://server")
        .connect_with_connector(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move {
                tokio::net::UnixStream::connect(socket)
                    .await
                    .map(TokioIo::new)
            }
        }))
        .await
}

/// What a client's directories hold, in the order of the protocol.
#[derive(Debug, Clone, Default)]
pub struct Directory(pub Vec<(Stat, Vec<u8>)>);

impl Directory {
    pub fn file(mut self, path: &str, content: &str) -> Self {
        let stat = Stat {
            path: path.to_owned(),
            mode: 0o644,
            size: content.len() as i64,
            mod_time: 1_700_000_000_000_000_000,
            ..Stat::default()
        };
        self.0.push((stat, content.as_bytes().to_vec()));
        self
    }

    pub fn entry(mut self, path: &str, mode: u32, linkname: &str) -> Self {
        let stat = Stat {
            path: path.to_owned(),
            mode,
            linkname: linkname.to_owned(),
            ..Stat::default()
        };
        self.0.push((stat, Vec::new()));
        self
    }
}

/// The calls a client answers.
#[derive(Debug, Clone, Default)]
pub struct Offer {
    pub directories: Arc<Mutex<HashMap<String, Directory>>>,
    pub secrets: HashMap<String, Vec<u8>>,
    /// How many files were asked for.
    pub requested: Arc<AtomicUsize>,
    /// What exporters sent.
    pub received: Arc<Mutex<Vec<u8>>>,
    /// Waits before each piece of a result is taken.
    pub pause: std::time::Duration,
    /// Never answers for this directory.
    pub silent: Option<String>,
    /// Decides about sources.
    pub verifier: Option<verifier::Verifier>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl FileSync for Offer {
    type DiffCopyStream = Answers<Packet>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        let name = request.metadata().get("dir-name");
        let name = name.and_then(|name| name.to_str().ok()).unwrap_or_default();
        if self.silent.as_deref() == Some(name) {
            return Ok(Response::new(Box::pin(tokio_stream::pending())));
        }
        let found = self.directories.lock().unwrap().get(name).cloned();
        let directory =
            found.ok_or_else(|| Status::not_found(format!("no access allowed to dir {name:?}")))?;
        let wanted: Vec<String> = request
            .metadata()
            .get_all("followpaths")
            .iter()
            .filter_map(|path| Some(path.to_str().ok()?.to_owned()))
            .collect();
        let files: Vec<_> = directory
            .0
            .into_iter()
            .filter(|(stat, _)| {
                wanted.is_empty()
                    || wanted.iter().any(|path| {
                        *path == stat.path || stat.path.starts_with(&format!("{path}/"))
                    })
            })
            .collect();
        let requested = Arc::clone(&self.requested);
        let mut requests = request.into_inner();
        let (packets, answers) = tokio::sync::mpsc::channel(16);
        tokio::spawn(async move {
            let packet = |kind: PacketType| Packet {
                r#type: kind as i32,
                ..Packet::default()
            };
            for (stat, _) in &files {
                let mut named = packet(PacketType::PacketStat);
                named.stat = Some(stat.clone());
                let _ = packets.send(Ok(named)).await;
            }
            let _ = packets.send(Ok(packet(PacketType::PacketStat))).await;
            while let Ok(Some(asked)) = requests.message().await {
                match asked.r#type() {
                    PacketType::PacketReq => {
                        requested.fetch_add(1, Ordering::SeqCst);
                        let mut data = packet(PacketType::PacketData);
                        data.id = asked.id;
                        let end = data.clone();
                        data.data.clone_from(&files[asked.id as usize].1);
                        if !data.data.is_empty() {
                            let _ = packets.send(Ok(data)).await;
                        }
                        let _ = packets.send(Ok(end)).await;
                    }
                    PacketType::PacketFin => {
                        let _ = packets.send(Ok(packet(PacketType::PacketFin))).await;
                        return;
                    }
                    _ => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    type TarStreamStream = Answers<Packet>;

    async fn tar_stream(
        &self,
        _request: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::TarStreamStream>, Status> {
        Err(Status::unimplemented("tar"))
    }
}

#[tonic::async_trait]
impl FileSend for Offer {
    type DiffCopyStream = Answers<BytesMessage>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        let mut pieces = request.into_inner();
        let mut all = Vec::new();
        while let Some(piece) = pieces.message().await? {
            all.extend(piece.data);
            tokio::time::sleep(self.pause).await;
        }
        *self.received.lock().unwrap() = all;
        Ok(Response::new(Box::pin(tokio_stream::empty())))
    }
}

#[tonic::async_trait]
impl Secrets for Offer {
    async fn get_secret(
        &self,
        request: Request<GetSecretRequest>,
    ) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        match self.secrets.get(&id) {
            Some(data) => Ok(Response::new(GetSecretResponse { data: data.clone() })),
            None => Err(Status::not_found(id)),
        }
    }
}

/// A client with an open session.
#[derive(Debug)]
pub struct Client {
    pub control: ControlClient<Channel>,
    pub channel: Channel,
    pub session: String,
    pub offer: Offer,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// Returns a name that no other test of this process uses.
pub fn name(what: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("{what}{}", NEXT.fetch_add(1, Ordering::SeqCst))
}

impl Client {
    /// Opens a session over a channel.
    pub async fn connect(channel: Channel, offer: Offer, shared_key: &str) -> Self {
        let session = name("session");
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let (mut read, mut write) = tokio::io::split(ours);
        let (outgoing, stream) = tokio::sync::mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(stream));
        let metadata = request.metadata_mut();
        metadata.insert("x-docker-expose-session-uuid", session.parse().unwrap());
        metadata.insert(
            "x-docker-expose-session-sharedkey",
            shared_key.parse().unwrap(),
        );
        for method in [
            "/moby.filesync.v1.FileSync/diffcopy",
            "/moby.filesync.v1.FileSend/diffcopy",
            "/moby.buildkit.secrets.v1.Secrets/getsecret",
        ] {
            let key = "x-docker-expose-session-grpc-method";
            metadata.append(key, method.parse().unwrap());
        }
        let verifier = offer.verifier.clone();
        if verifier.is_some() {
            let key = "x-docker-expose-session-grpc-method";
            let method = verifier::METHOD.to_lowercase();
            metadata.append(key, method.parse().unwrap());
        }
        let services = Transport::builder()
            .add_service(FileSyncServer::new(offer.clone()))
            .add_service(FileSendServer::new(offer.clone()))
            .add_service(SecretsServer::new(offer.clone()))
            .add_optional_service(verifier)
            .serve_with_incoming(tokio_stream::once(Ok::<_, std::io::Error>(theirs)));
        let mut control = ControlClient::new(channel.clone());
        let mut opening = control.clone();
        let tasks = vec![
            tokio::spawn(async move { drop(services.await) }),
            tokio::spawn(async move {
                let mut buffer = vec![0; 32 << 10];
                while let Ok(count @ 1..) = read.read(&mut buffer).await {
                    let data = buffer[..count].to_vec();
                    if outgoing.send(pbc::BytesMessage { data }).await.is_err() {
                        return;
                    }
                }
            }),
            tokio::spawn(async move {
                let mut incoming = opening
                    .session(request)
                    .await
                    .expect("a session")
                    .into_inner();
                while let Ok(Some(message)) = incoming.message().await {
                    if write.write_all(&message.data).await.is_err() {
                        return;
                    }
                }
            }),
        ];
        control.info(pbc::InfoRequest {}).await.expect("an answer");
        Self {
            control,
            channel,
            session,
            offer,
            tasks,
        }
    }

    /// Returns a request for the Dockerfile frontend with a tar as its output.
    pub fn request(&self) -> pbc::SolveRequest {
        pbc::SolveRequest {
            r#ref: name("build"),
            session: self.session.clone(),
            frontend: "dockerfile.v0".to_owned(),
            exporters: vec![pbc::Exporter {
                r#type: "tar".to_owned(),
                attrs: HashMap::new(),
            }],
            ..pbc::SolveRequest::default()
        }
    }

    pub async fn solve(
        &mut self,
        request: pbc::SolveRequest,
    ) -> Result<HashMap<String, String>, Status> {
        let answer = self.control.solve(request).await?;
        Ok(answer.into_inner().exporter_response)
    }

    /// Returns the records of all builds that are remembered.
    ///
    /// # Panics
    ///
    /// If the server does not answer.
    pub async fn history(&mut self) -> Vec<pbc::BuildHistoryRecord> {
        self.history_of(pbc::BuildHistoryRequest::default()).await
    }

    /// Returns the records of the builds that are asked for.
    ///
    /// # Panics
    ///
    /// If the server does not answer.
    pub async fn history_of(
        &mut self,
        request: pbc::BuildHistoryRequest,
    ) -> Vec<pbc::BuildHistoryRecord> {
        let request = pbc::BuildHistoryRequest {
            early_exit: true,
            ..request
        };
        let events = self.control.listen_build_history(request).await;
        let mut events = events.expect("a history").into_inner();
        let mut records = Vec::new();
        while let Some(event) = events.message().await.expect("an event") {
            records.push(event.record.expect("a record"));
        }
        records
    }

    /// Returns the files of the last tar that came.
    pub fn files(&self) -> BTreeMap<String, String> {
        let received = self.offer.received.lock().unwrap().clone();
        let mut archive = tar::Archive::new(received.as_slice());
        let mut files = BTreeMap::new();
        for entry in archive.entries().expect("a tar") {
            let mut entry = entry.expect("an entry");
            if entry.header().entry_type().is_file() {
                let mut text = String::new();
                std::io::Read::read_to_string(&mut entry, &mut text).expect("text");
                let path = entry.path().expect("a path").to_string_lossy().into_owned();
                files.insert(path, text);
            }
        }
        files
    }
}

/// Returns an offer of a Dockerfile and a context.
pub fn offer(dockerfile: &str, context: Directory) -> Offer {
    let offer = Offer::default();
    {
        let mut directories = offer.directories.lock().unwrap();
        let file = Directory::default().file("Dockerfile", dockerfile);
        directories.insert("dockerfile".to_owned(), file);
        directories.insert("context".to_owned(), context);
    }
    offer
}

/// Returns an offer of one file, and of a Dockerfile that copies it.
pub fn one_file(path: &str, content: &str) -> Offer {
    let dockerfile = format!("FROM scratch\nCOPY {path} /\n");
    offer(&dockerfile, Directory::default().file(path, content))
}

/// Makes a call of a frontend at the client, which says what build it belongs to.
///
/// # Panics
///
/// If the name of the build cannot stand in a header.
pub fn of<T>(id: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let id = id.parse().expect("an id");
    request
        .metadata_mut()
        .insert("buildkit-controlapi-buildid", id);
    request
}
