//! Listens, serves, and ends.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use bollard_buildkit_proto::health::health_check_response::ServingStatus;
use bollard_buildkit_proto::health::health_server::{Health, HealthServer};
use bollard_buildkit_proto::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use bollard_buildkit_proto::moby::buildkit::v1::control_server::ControlServer;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_server::LlbBridgeServer;
use engine::{Cancel, Engine};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server as Transport;
use tonic::{Request, Response, Status};

use crate::client;
use crate::collector::Collector;
use crate::control::{ControlService, Shared};
use crate::error::ServeError;
use crate::gateway::{Gateway, GatewayService};
use crate::history::Records;
use crate::info::WithInfo;
use crate::jobs::Jobs;
use crate::listen::{Access, Address, Listening};
use crate::reading::ReadingService;
use crate::trace::{TraceService, Traces};

/// The largest message a client may send, in bytes.
pub(crate) const MOST: usize = 64 << 20;

/// How the server is run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// At least one.
    pub addresses: Vec<Address>,
    pub access: Access,
    /// What clients may ask for: `network.host`, `security.insecure`.
    pub entitlements: Vec<String>,
    /// What is said of this builder in provenance, by name.
    pub environment: serde_json::Map<String, serde_json::Value>,
    /// Who is to have the spans of builds, and those that clients send.
    pub collector: Option<Collector>,
    pub history: HistoryLimits,
}

/// What is kept of the builds of clients; `None` for what is usual.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HistoryLimits {
    /// How many are kept whatever their age.
    pub entries: Option<usize>,
    /// How long they are kept whatever their number.
    pub age: Option<std::time::Duration>,
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
    /// `ready` is called once clients can connect, with the addresses they can connect to.
    pub fn run(self, stop: &Cancel, ready: impl FnOnce(&[String])) -> Result<(), ServeError> {
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

    async fn serve(self, stop: &Cancel, ready: impl FnOnce(&[String])) -> Result<(), ServeError> {
        let root = self.engine.store().root().to_owned();
        let folder = root.join("sync");
        let records = Records::new(root.join("served")).within(self.settings.history);
        let records = Arc::new(records);
        let traces = Arc::new(Traces::default());
        let collector = self.settings.collector;
        let mut listening =
            Listening::open(&self.settings.addresses, &self.settings.access).await?;
        let _sweeper = sweep(&folder, &records);
        let reading = ReadingService {
            engine: self.engine.clone(),
            records: Arc::clone(&records),
        };
        let shared = Arc::new(Shared {
            engine: self.engine,
            sessions: Arc::default(),
            jobs: Arc::new(Jobs::new(records, Arc::clone(&traces), collector.clone())),
            gateway: Arc::new(Gateway::default()),
            entitlements: self.settings.entitlements,
            environment: Arc::new(self.settings.environment),
            producers: Arc::default(),
            folder,
            stop: stop.clone(),
        });
        let gateway = GatewayService::OfClients(Arc::clone(&shared.gateway));
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
            .add_service(reading)
            .add_service(TraceService { traces, collector })
            .add_service(HealthServer::new(Healthy));
        ready(&listening.addresses);
        let (_nobody, none) = tokio::sync::mpsc::channel(1);
        let incoming = std::mem::replace(&mut listening.incoming, none);
        let served = async {
            router
                .serve_with_incoming_shutdown(ReceiverStream::new(incoming), shutdown)
                .await
                .map_err(|source| ServeError::Transport { source })
        };
        // Connections that a client leaves open end with the server.
        let mut wait = ended;
        let grace = async move {
            let _ = wait.wait_for(|ended| *ended).await;
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        };
        tokio::select! {
            result = served => result,
            () = grace => Ok(()),
        }
    }
}

/// Removes what a killed server left, unless another is at work here.
fn sweep(folder: &Path, records: &Records) -> Option<File> {
    fs::create_dir_all(folder).ok()?;
    let file = File::create(folder.join("lock")).ok()?;
    if file.try_lock().is_ok() {
        client::sweep(folder);
        records.sweep();
        file.unlock().ok()?;
    }
    file.lock_shared().ok()?;
    Some(file)
}

/// Says that all is well, which it is as long as anything is said.
#[derive(Debug)]
pub(crate) struct Healthy;

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
