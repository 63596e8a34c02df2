//! Listens, serves, and ends.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use bollard_buildkit_proto::health::health_check_response::ServingStatus;
use bollard_buildkit_proto::health::health_server::{Health, HealthServer};
use bollard_buildkit_proto::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use bollard_buildkit_proto::moby::buildkit::v1::control_server::ControlServer;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_server::LlbBridgeServer;
use engine::{Cancel, Engine};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::Stream;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::Server as Transport;
use tonic::{Request, Response, Status};

use crate::client;
use crate::control::{ControlService, Shared};
use crate::error::ServeError;
use crate::gateway::{Gateway, GatewayService};
use crate::info::WithInfo;

/// The largest message a client may send, in bytes.
const MOST: usize = 64 << 20;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp(String),
}

impl FromStr for Address {
    type Err = ServeError;

    fn from_str(text: &str) -> Result<Self, ServeError> {
        let invalid = |reason: &str| ServeError::Address {
            address: text.to_owned(),
            reason: reason.to_owned(),
        };
        match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(PathBuf::from(path))),
            Some(("unix", _)) => Err(invalid("the path of a socket starts with a slash")),
            Some(("tcp", place)) => match place.rsplit_once(':') {
                Some((_, port)) if port.parse::<u16>().is_ok() => Ok(Self::Tcp(place.to_owned())),
                _ => Err(invalid("it has no port")),
            },
            _ => Err(invalid("it is neither unix:///PATH nor tcp://HOST:PORT")),
        }
    }
}

/// How the server is run.
#[derive(Debug, Clone)]
pub struct Settings {
    pub address: Address,
    /// What clients may ask for: `network.host`, `security.insecure`.
    pub entitlements: Vec<String>,
    /// What is said of this builder in provenance, by name.
    pub environment: serde_json::Map<String, serde_json::Value>,
}

/// A server that can be run once.
#[derive(Debug)]
pub struct Server {
    engine: Engine,
    settings: Settings,
}

impl Server {
    pub fn new(engine: Engine, settings: Settings) -> Self {
        Self { engine, settings }
    }

    /// Serves until `stop` is requested; builds that are under way then are canceled.
    ///
    /// `ready` is called once clients can connect, with the address they can.
    pub fn run(self, stop: &Cancel, ready: impl FnOnce(&str)) -> Result<(), ServeError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(2048)
            .thread_name("serve")
            .enable_all()
            .build()
            .map_err(|source| ServeError::Runtime { source })?;
        // The engine's own runtime must not end on a thread of this one.
        let engine = self.engine.clone();
        let result = runtime.block_on(self.serve(stop, ready));
        // What is left are calls that were canceled and have nobody to answer to.
        runtime.shutdown_timeout(std::time::Duration::from_secs(10));
        drop(engine);
        result
    }

    async fn serve(self, stop: &Cancel, ready: impl FnOnce(&str)) -> Result<(), ServeError> {
        let folder = self.engine.store().root().join("sync");
        let _sweeper = sweep(&folder);
        let shared = Arc::new(Shared {
            engine: self.engine,
            sessions: Arc::default(),
            jobs: Arc::default(),
            gateway: Arc::new(Gateway::default()),
            entitlements: self.settings.entitlements,
            environment: Arc::new(self.settings.environment),
            producers: Arc::default(),
            folder,
            stop: stop.clone(),
        });
        let gateway = GatewayService(Arc::clone(&shared.gateway));
        let (ending, ended) = tokio::sync::watch::channel(false);
        let _on_stop = stop.on_request(move || {
            ending.send_replace(true);
        });
        let mut wait = ended.clone();
        let shutdown = async move {
            let _ = wait.wait_for(|ended| *ended).await;
        };
        let router = Transport::builder()
            .http2_keepalive_interval(Some(std::time::Duration::from_secs(60)))
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .add_service(WithInfo {
                inner: ControlServer::new(ControlService(shared))
                    .max_decoding_message_size(MOST)
                    .max_encoding_message_size(MOST),
                version: crate::control::version(),
            })
            .add_service(
                LlbBridgeServer::new(gateway)
                    .max_decoding_message_size(MOST)
                    .max_encoding_message_size(MOST),
            )
            .add_service(HealthServer::new(Healthy));
        let served = async {
            match &self.settings.address {
                Address::Unix(path) => {
                    let listener = listen_unix(path)?;
                    ready(&format!("unix://{}", path.display()));
                    let incoming = UnixListenerStream::new(listener);
                    router
                        .serve_with_incoming_shutdown(incoming, shutdown)
                        .await
                }
                Address::Tcp(place) => {
                    let failed = |source| ServeError::Listen {
                        address: place.clone(),
                        source,
                    };
                    let listener = TcpListener::bind(place).await.map_err(failed)?;
                    let bound = listener.local_addr().map_err(failed)?;
                    ready(&format!("tcp://{bound}"));
                    let incoming = TcpListenerStream::new(listener);
                    router
                        .serve_with_incoming_shutdown(incoming, shutdown)
                        .await
                }
            }
            .map_err(|source| ServeError::Transport { source })
        };
        // Connections that a client leaves open end with the server.
        let mut wait = ended;
        let grace = async move {
            let _ = wait.wait_for(|ended| *ended).await;
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        };
        let result = tokio::select! {
            result = served => result,
            () = grace => Ok(()),
        };
        if let Address::Unix(path) = &self.settings.address {
            let _ = fs::remove_file(path);
        }
        result
    }
}

/// Removes what a killed server left, unless another is at work here.
fn sweep(folder: &Path) -> Option<File> {
    fs::create_dir_all(folder).ok()?;
    let file = File::create(folder.join("lock")).ok()?;
    if file.try_lock().is_ok() {
        client::sweep(folder);
        file.unlock().ok()?;
    }
    file.lock_shared().ok()?;
    Some(file)
}

/// Opens a socket for its owner and group; one that nobody listens on is replaced.
fn listen_unix(path: &Path) -> Result<UnixListener, ServeError> {
    let failed = |source| ServeError::Listen {
        address: format!("unix://{}", path.display()),
        source,
    };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|source| ServeError::Io {
            action: "create",
            path: folder.to_owned(),
            source,
        })?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(failed(std::io::ErrorKind::AddrInUse.into())),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)?;
        }
        Err(_) => {}
    }
    // Nobody else may connect before the mode is set: the socket is made with it.
    let old = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o117));
    let listener = UnixListener::bind(path);
    rustix::process::umask(old);
    let listener = listener.map_err(failed)?;
    fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}

/// Says that all is well, which it is as long as anything is said.
#[derive(Debug)]
struct Healthy;

#[tonic::async_trait]
impl Health for Healthy {
    async fn check(
        &self,
        _request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse {
            status: ServingStatus::Serving as i32,
        }))
    }

    async fn list(
        &self,
        _request: Request<HealthListRequest>,
    ) -> Result<Response<HealthListResponse>, Status> {
        let serving = HealthCheckResponse {
            status: ServingStatus::Serving as i32,
        };
        Ok(Response::new(HealthListResponse {
            statuses: [(String::new(), serving)].into(),
        }))
    }

    type WatchStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        _request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        use tokio_stream::StreamExt as _;
        let first = tokio_stream::once(Ok(HealthCheckResponse {
            status: ServingStatus::Serving as i32,
        }));
        let then = tokio_stream::pending();
        Ok(Response::new(Box::pin(first.chain(then))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_sockets_or_ports() {
        assert_eq!(
            "unix:///run/x.sock".parse::<Address>().unwrap(),
            Address::Unix(PathBuf::from("/run/x.sock"))
        );
        assert_eq!(
            "tcp://127.0.0.1:1234".parse::<Address>().unwrap(),
            Address::Tcp("127.0.0.1:1234".to_owned())
        );
        for bad in [
            "",
            "unix://x",
            "tcp://host",
            "tcp://host:x",
            "npipe:////x",
            "/run/x",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
