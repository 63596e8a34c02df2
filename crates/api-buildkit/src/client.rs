//! What the engine asks of a client, asked over its session.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bollard_buildkit_proto::moby::buildkit::secrets::v1::GetSecretRequest;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_client::SecretsClient;
use bollard_buildkit_proto::moby::sshforward::v1::ssh_client::SshClient;
use bollard_buildkit_proto::moby::sshforward::v1::{BytesMessage, CheckAgentRequest};
use bollard_buildkit_proto::moby::upload::v1::BytesMessage as UploadMessage;
use bollard_buildkit_proto::moby::upload::v1::upload_client::UploadClient;
use engine::{AgentAddress, BuildClient, EngineError, LocalDirectory, LocalFiles};
use oci::Digest;
use progress::RunningVertex;
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request};

use crate::content::ContentStore;
use crate::error::Failure;
use crate::filesync;
use crate::session::{Session, Sessions};

/// A client at the end of a session. Its methods are not to be called on the runtime's threads.
#[derive(Debug, Clone)]
pub(crate) struct SessionClient {
    pub(crate) runtime: Handle,
    pub(crate) sessions: Arc<Sessions>,
    /// The build's own session.
    pub(crate) session: Arc<Session>,
    /// Where directories of clients are kept.
    pub(crate) folder: PathBuf,
    /// Secrets that were given already: a build sees one value.
    pub(crate) secrets: Arc<Mutex<BTreeMap<String, Option<Vec<u8>>>>>,
    /// What was uploaded already, by URL.
    pub(crate) uploads: Arc<Mutex<BTreeMap<String, NamedTempFile>>>,
    /// Sessions that have directories which the build's own has not, by directory.
    pub(crate) local_sessions: Arc<Mutex<BTreeMap<String, String>>>,
}

fn no_room(error: std::io::Error) -> Failure {
    Failure::unknown(format!("no room: {error}"))
}

fn engine_error(failure: Failure) -> EngineError {
    EngineError::Request(failure.message)
}

impl SessionClient {
    async fn session_of(&self, wanted: &LocalFiles) -> Result<Arc<Session>, Failure> {
        let other = self.local_sessions().get(&wanted.name).cloned();
        match other.or_else(|| wanted.session.clone()) {
            Some(id) if id != self.session.id => self.sessions.get(&id).await,
            _ => Ok(Arc::clone(&self.session)),
        }
    }

    pub(crate) fn local_sessions(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.local_sessions
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }

    /// Returns the directory that a client's directory is kept in, to be used by nobody else.
    fn place(&self, session: &Session, wanted: &LocalFiles) -> std::io::Result<LocalDirectory> {
        std::fs::create_dir_all(&self.folder)?;
        if !session.shared_key.is_empty() && !wanted.fresh {
            let name = Digest::sha256_of(
                format!(
                    "{}\n{}\n{}",
                    wanted.name, wanted.shared_key_hint, session.shared_key
                )
                .as_bytes(),
            );
            let lock = File::create(self.folder.join(format!("{}.lock", name.hex())))?;
            if lock.try_lock().is_ok() {
                let path = self.folder.join(name.hex());
                std::fs::create_dir_all(&path)?;
                return Ok(LocalDirectory {
                    path,
                    filter: None,
                    held: Box::new(lock),
                });
            }
        }
        let own = tempfile::Builder::new()
            .prefix("one-")
            .tempdir_in(&self.folder)?;
        Ok(LocalDirectory {
            path: own.path().to_owned(),
            filter: None,
            held: Box::new(own),
        })
    }
}

impl SessionClient {
    /// Makes a folder that goes away when it is dropped.
    pub(crate) fn own_folder(&self) -> Result<tempfile::TempDir, Failure> {
        std::fs::create_dir_all(&self.folder).map_err(no_room)?;
        tempfile::Builder::new()
            .prefix("one-")
            .tempdir_in(&self.folder)
            .map_err(no_room)
    }

    fn own_file(&self) -> Result<NamedTempFile, Failure> {
        std::fs::create_dir_all(&self.folder).map_err(no_room)?;
        tempfile::Builder::new()
            .prefix("one-")
            .tempfile_in(&self.folder)
            .map_err(no_room)
    }

    /// Takes what the client offers behind a URL.
    fn pull(&self, url: &str) -> Result<NamedTempFile, Failure> {
        if !self.session.supports("/moby.upload.v1.Upload/Pull") {
            return Err(Failure::unknown("the client offers no uploads"));
        }
        let mut file = self.own_file()?;
        let rest = url.strip_prefix("http://").unwrap_or(url);
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let transfer = async {
            let mut request = Request::new(tokio_stream::pending::<UploadMessage>());
            let metadata = request.metadata_mut();
            crate::wire::put(metadata, "urlpath", &[format!("/{path}")])?;
            crate::wire::put(metadata, "urlhost", &[host.to_owned()])?;
            let mut client =
                UploadClient::new(self.session.channel()).max_decoding_message_size(64 << 20);
            let mut pieces = client.pull(request).await?.into_inner();
            while let Some(piece) = pieces.message().await? {
                file.write_all(&piece.data).map_err(no_room)?;
            }
            Ok::<(), Failure>(())
        };
        self.runtime.block_on(transfer)?;
        Ok(file)
    }
}

impl BuildClient for SessionClient {
    fn directory(
        &self,
        wanted: &LocalFiles,
        running: &RunningVertex,
    ) -> Result<LocalDirectory, EngineError> {
        let status = running.status_of(format!("transferring {}:", wanted.name), "transferring", 0);
        let transfer = async {
            let session = self.session_of(wanted).await?;
            let place = self
                .place(&session, wanted)
                .map_err(|error| Failure::unknown(format!("no room for the context: {error}")))?;
            let mut shown = Instant::now();
            let progress = |bytes| {
                if shown.elapsed() >= Duration::from_millis(100) {
                    shown = Instant::now();
                    status.update(bytes);
                }
            };
            let bytes = filesync::receive(&session, wanted, &place.path, progress).await?;
            Ok((place, bytes))
        };
        let (place, bytes) = self.runtime.block_on(transfer).map_err(engine_error)?;
        status.finish(bytes);
        Ok(place)
    }

    fn upload(&self, url: &str, into: &mut dyn Write) -> Result<(), EngineError> {
        let failed = |error: std::io::Error| {
            EngineError::Request(format!("failed to take an upload: {error}"))
        };
        // The client gives each only once; a build may need it more often.
        let mut uploads = self
            .uploads
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        if !uploads.contains_key(url) {
            let file = self.pull(url).map_err(engine_error)?;
            uploads.insert(url.to_owned(), file);
        }
        let file = &uploads[url];
        let mut file = file.reopen().map_err(failed)?;
        std::io::copy(&mut file, into).map_err(failed)?;
        Ok(())
    }

    fn content(
        &self,
        store: &str,
        digest: &Digest,
        into: &mut dyn Write,
    ) -> Result<(), EngineError> {
        let id = format!("oci:{store}");
        let content = ContentStore {
            session: &self.session,
            id: &id,
        };
        self.runtime
            .block_on(content.read(digest, into))
            .map_err(engine_error)
    }

    fn secret(&self, id: &str) -> Result<Option<Vec<u8>>, EngineError> {
        let mut known = self
            .secrets
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        if let Some(value) = known.get(id) {
            return Ok(value.clone());
        }
        if !self
            .session
            .supports("/moby.buildkit.secrets.v1.Secrets/GetSecret")
        {
            return Ok(None);
        }
        let ask = async {
            let mut client =
                SecretsClient::new(self.session.channel()).max_decoding_message_size(16 << 20);
            let request = GetSecretRequest {
                id: id.to_owned(),
                ..GetSecretRequest::default()
            };
            match client.get_secret(request).await {
                Ok(answer) => Ok(Some(answer.into_inner().data)),
                Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => {
                    Ok(None)
                }
                Err(status) => Err(Failure::from(status).context(&format!("secret {id}"))),
            }
        };
        let value = self.runtime.block_on(ask).map_err(engine_error)?;
        known.insert(id.to_owned(), value.clone());
        Ok(value)
    }

    fn agent(&self, id: &str) -> Result<Option<AgentAddress>, EngineError> {
        if !self
            .session
            .supports("/moby.sshforward.v1.SSH/ForwardAgent")
        {
            return Ok(None);
        }
        let open = async {
            let mut client = SshClient::new(self.session.channel());
            let request = CheckAgentRequest { id: id.to_owned() };
            match client.check_agent(request).await {
                Ok(_) => {}
                Err(status) if status.code() == Code::NotFound => return Ok(None),
                Err(status) => return Err(Failure::from(status)),
            }
            let folder = tempfile::Builder::new()
                .prefix("lapstrake-agent-")
                .tempdir()
                .map_err(|error| Failure::unknown(format!("no socket for an agent: {error}")))?;
            let socket = folder.path().join("agent");
            let listener = UnixListener::bind(&socket)
                .map_err(|error| Failure::unknown(format!("no socket for an agent: {error}")))?;
            let session = Arc::clone(&self.session);
            let id = id.to_owned();
            let task = tokio::spawn(async move {
                while let Ok((connection, _)) = listener.accept().await {
                    tokio::spawn(forward(Arc::clone(&session), id.clone(), connection));
                }
            });
            Ok(Some(AgentAddress {
                socket,
                held: Box::new(Forwarding {
                    task,
                    _folder: folder,
                }),
            }))
        };
        self.runtime.block_on(open).map_err(engine_error)
    }
}

/// Ends the forwarding when nobody uses it any more.
struct Forwarding {
    task: tokio::task::JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes one connection on to the client's agent.
async fn forward(session: Arc<Session>, id: String, connection: UnixStream) {
    let (mut from_step, mut to_step) = connection.into_split();
    let (pieces, outgoing) = mpsc::channel(4);
    let mut request = Request::new(ReceiverStream::new(outgoing));
    if crate::wire::put(request.metadata_mut(), "buildkit.ssh.id", &[id]).is_err() {
        return;
    }
    let mut client = SshClient::new(session.channel());
    let outward = async move {
        let mut buffer = vec![0; 32 << 10];
        while let Ok(count @ 1..) = from_step.read(&mut buffer).await {
            let data = buffer[..count].to_vec();
            if pieces.send(BytesMessage { data }).await.is_err() {
                break;
            }
        }
    };
    let inward = async move {
        let Ok(answers) = client.forward_agent(request).await else {
            return;
        };
        let mut answers = answers.into_inner();
        while let Ok(Some(piece)) = answers.message().await {
            if to_step.write_all(&piece.data).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(outward, inward);
}

/// Removes directories of clients that were left by a killed server.
pub(crate) fn sweep(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with("one-") {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
