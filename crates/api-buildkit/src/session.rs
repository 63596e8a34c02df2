//! Sessions: connections on which a client serves calls, tunnelled through a stream it opened.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::BytesMessage;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::error::Failure;

/// Bytes on their way in one direction.
const BUFFER: usize = 1 << 20;
/// How long a build waits for the session that it names.
const PATIENCE: Duration = Duration::from_secs(5);

/// The sessions that are open.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    open: Mutex<HashMap<String, Arc<Session>>>,
    changed: Notify,
}

/// A client that can be called.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: String,
    /// Says which client it is over many sessions; empty if it does not say.
    pub(crate) shared_key: String,
    methods: HashSet<String>,
    channel: Channel,
    closed: watch::Receiver<bool>,
}

impl Session {
    /// Returns whether the client serves a method (`/package.Service/Method`, in any case).
    pub(crate) fn supports(&self, method: &str) -> bool {
        self.methods.contains(&method.to_lowercase())
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Returns when the client has gone.
    pub(crate) async fn closed(&self) {
        let mut closed = self.closed.clone();
        let _ = closed.wait_for(|closed| *closed).await;
    }
}

impl Sessions {
    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Session>>> {
        self.open
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }

    /// Returns a session, waiting a little for one that is about to come.
    pub(crate) async fn get(&self, id: &str) -> Result<Arc<Session>, Failure> {
        let found = async {
            loop {
                let changed = self.changed.notified();
                if let Some(session) = self.table().get(id) {
                    return Arc::clone(session);
                }
                changed.await;
            }
        };
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(session) => Ok(session),
            Err(_) => Err(Failure::unknown(format!("no active session for {id}"))),
        }
    }

    /// Opens a session over a stream and returns the bytes that go back.
    pub(crate) async fn open(
        self: &Arc<Self>,
        metadata: &MetadataMap,
        incoming: Streaming<BytesMessage>,
    ) -> Result<ReceiverStream<Result<BytesMessage, Status>>, Status> {
        let text = |name: &str| {
            let value = metadata.get(name)?;
            Some(value.to_str().ok()?.to_owned())
        };
        let id = text("x-docker-expose-session-uuid")
            .filter(|id| !id.is_empty())
            .ok_or_else(|| Status::invalid_argument("the session has no id"))?;
        let methods = metadata.get_all("x-docker-expose-session-grpc-method");
        let methods = methods
            .iter()
            .filter_map(|method| Some(method.to_str().ok()?.to_lowercase()))
            .collect();
        let (ours, tunnel) = tokio::io::duplex(BUFFER);
        let (outgoing, back) = mpsc::channel(16);
        let (close, closed) = watch::channel(false);
        let session = Arc::new(Session {
            id: id.clone(),
            shared_key: text("x-docker-expose-session-sharedkey").unwrap_or_default(),
            methods,
            channel: channel(ours),
            closed,
        });
        {
            let mut table = self.table();
            if table.contains_key(&id) {
                return Err(Status::new(
                    Code::AlreadyExists,
                    format!("session {id} already exists"),
                ));
            }
            table.insert(id.clone(), session);
        }
        self.changed.notify_waiters();
        let sessions = Arc::clone(self);
        tokio::spawn(async move {
            pump(tunnel, incoming, outgoing).await;
            sessions.table().remove(&id);
            let _ = close.send(true);
        });
        Ok(ReceiverStream::new(back))
    }
}

/// Moves bytes both ways until either side ends.
async fn pump(
    tunnel: DuplexStream,
    mut incoming: Streaming<BytesMessage>,
    outgoing: mpsc::Sender<Result<BytesMessage, Status>>,
) {
    let (mut from_us, mut to_us) = tokio::io::split(tunnel);
    let inward = async {
        while let Ok(Some(message)) = incoming.message().await {
            if to_us.write_all(&message.data).await.is_err() {
                break;
            }
        }
        let _ = to_us.shutdown().await;
    };
    let outward = async {
        let mut buffer = vec![0; 32 << 10];
        while let Ok(count @ 1..) = from_us.read(&mut buffer).await {
            let data = buffer[..count].to_vec();
            if outgoing.send(Ok(BytesMessage { data })).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = inward => {}
        () = outward => {}
    }
}

/// Makes a channel over one connection, which is never made again.
fn channel(connection: DuplexStream) -> Channel {
    let connection = Arc::new(Mutex::new(Some(connection)));
    let connector = tower::service_fn(move |_| {
        let connection = connection
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
            .take();
        async move {
            connection
                .map(TokioIo::new)
                .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected))
        }
    });
    Endpoint::from_static("http://session")
        .initial_stream_window_size(BUFFER as u32)
        .initial_connection_window_size(4 * BUFFER as u32)
        .connect_with_connector_lazy(connector)
}
