//! Control: the calls a client begins with.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bollard_buildkit_proto::moby::buildkit::v1 as pbc;
use bollard_buildkit_proto::moby::buildkit::v1::control_server::Control;
use bollard_buildkit_proto::moby::buildkit::v1::types::{BuildkitVersion, WorkerRecord};
use engine::{Cancel, Engine};
use oci::Platform;
use progress::{Sink, system_clock};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::attestations::Wanted;
use crate::auth::SessionCredentials;
use crate::bridge::Bridge;
use crate::build::{Build, BuildParts, FrontendRequest, FrontendResult};
use crate::caches;
use crate::client::SessionClient;
use crate::error::Failure;
use crate::export::{self, Exported};
use crate::filter::Filters;
use crate::gateway::{Gateway, blocking};
use crate::history_filter::HistoryFilters;
use crate::jobs::{JobGuard, JobReceiver, Jobs};
use crate::policy::Policies;
use crate::scope::Producers;
use crate::session::Sessions;
use crate::trace::Parent;
use crate::usage;
use crate::verifier::Verifier;
use crate::wire;

/// What all calls share.
pub(crate) struct Shared {
    pub(crate) engine: Engine,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) gateway: Arc<Gateway>,
    /// What clients may ask for.
    pub(crate) entitlements: Vec<String>,
    /// What is said of the builder in provenance.
    pub(crate) environment: Arc<serde_json::Map<String, serde_json::Value>>,
    pub(crate) producers: Arc<Producers>,
    /// Where directories of clients are kept.
    pub(crate) folder: PathBuf,
    /// Asks all builds to stop.
    pub(crate) stop: Cancel,
}

/// The service; its clones are one.
#[derive(Clone)]
pub(crate) struct ControlService(pub(crate) Arc<Shared>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Asks a build to stop when the call it belongs to ends.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.request();
    }
}

#[tonic::async_trait]
impl Control for ControlService {
    async fn disk_usage(
        &self,
        request: Request<pbc::DiskUsageRequest>,
    ) -> Result<Response<pbc::DiskUsageResponse>, Status> {
        let asked = request.into_inner();
        let engine = self.0.engine.clone();
        let record = blocking(move || usage::records(&engine, &asked)).await?;
        Ok(Response::new(pbc::DiskUsageResponse { record }))
    }

    type PruneStream = Answers<pbc::UsageRecord>;

    async fn prune(
        &self,
        request: Request<pbc::PruneRequest>,
    ) -> Result<Response<Self::PruneStream>, Status> {
        let asked = request.into_inner();
        let engine = self.0.engine.clone();
        let gone = blocking(move || usage::prune(&engine, &asked)).await?;
        let answers = gone.into_iter().map(Ok);
        Ok(Response::new(Box::pin(tokio_stream::iter(answers))))
    }

    async fn solve(
        &self,
        request: Request<pbc::SolveRequest>,
    ) -> Result<Response<pbc::SolveResponse>, Status> {
        let metadata = request.metadata().clone();
        let asked = request.into_inner();
        let trace = Parent::of_call(&metadata, &asked.r#ref);
        let record = pbc::BuildHistoryRecord {
            r#ref: asked.r#ref.clone(),
            frontend: asked.frontend.clone(),
            frontend_attrs: asked.frontend_attrs.clone(),
            exporters: asked.exporters.clone(),
            ..pbc::BuildHistoryRecord::default()
        };
        let guard = self.0.jobs.begin(record, asked.internal, trace)?;
        let result = self.0.solve(asked, &guard).await;
        guard.finish(&result).await;
        let response = result?.response;
        Ok(Response::new(pbc::SolveResponse {
            exporter_response: response.into_iter().collect(),
        }))
    }

    type StatusStream = Answers<pbc::StatusResponse>;

    async fn status(
        &self,
        request: Request<pbc::StatusRequest>,
    ) -> Result<Response<Self::StatusStream>, Status> {
        let (listener, answers) = mpsc::channel(8);
        let build = request.into_inner().r#ref;
        self.0.jobs.follow(&build, listener).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    type SessionStream = Answers<pbc::BytesMessage>;

    async fn session(
        &self,
        request: Request<Streaming<pbc::BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let metadata = request.metadata().clone();
        let back = self
            .0
            .sessions
            .open(&metadata, request.into_inner())
            .await?;
        Ok(Response::new(Box::pin(back)))
    }

    async fn list_workers(
        &self,
        request: Request<pbc::ListWorkersRequest>,
    ) -> Result<Response<pbc::ListWorkersResponse>, Status> {
        let filters = Filters::parse(&request.into_inner().filter)?;
        let mut record = vec![worker_record(&self.0.engine)];
        record.retain(|worker| {
            filters.matches(|path| match path.split_first()? {
                (first, []) if first == "id" => Some(worker.id.clone()),
                (first, rest) if first == "labels" => worker.labels.get(&rest.join(".")).cloned(),
                _ => None,
            })
        });
        Ok(Response::new(pbc::ListWorkersResponse { record }))
    }

    async fn info(
        &self,
        _request: Request<pbc::InfoRequest>,
    ) -> Result<Response<pbc::InfoResponse>, Status> {
        Ok(Response::new(pbc::InfoResponse {
            buildkit_version: Some(version()),
        }))
    }

    type ListenBuildHistoryStream = Answers<pbc::BuildHistoryEvent>;

    async fn listen_build_history(
        &self,
        request: Request<pbc::BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        let asked = request.into_inner();
        let filters = HistoryFilters::parse(&asked.filter, SystemTime::now())?;
        let limit = usize::try_from(asked.limit)
            .map_err(|_| Status::invalid_argument(format!("invalid limit {}", asked.limit)))?;
        let jobs = Arc::clone(&self.0.jobs);
        let (mut now, mut later) = blocking(move || Ok(jobs.history())).await?;
        let early_exit = asked.early_exit;
        let is_wanted = move |event: &pbc::BuildHistoryEvent| {
            let record = event.record.as_ref();
            let named = record.is_some_and(|record| record.r#ref == asked.r#ref);
            (asked.r#ref.is_empty() || named) && (is_started(event) || !asked.active_only)
        };
        let (listener, answers) = mpsc::channel(8);
        // Filters and the limit are for builds that have ended.
        let matches = |event: &pbc::BuildHistoryEvent| {
            let mut record = event.record.iter();
            is_started(event) || record.any(|record| filters.matches(record))
        };
        now.retain(|event| is_wanted(event) && matches(event));
        if limit > 0 {
            now.reverse();
            let mut left = limit;
            now.retain(|event| {
                let stays = is_started(event) || left > 0;
                left -= usize::from(stays && !is_started(event));
                stays
            });
        }
        tokio::spawn(async move {
            for event in now {
                if listener.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            if early_exit {
                return;
            }
            loop {
                let event = tokio::select! {
                    event = later.recv() => event,
                    () = listener.closed() => return,
                };
                let answer = match event {
                    Ok(event) if is_wanted(&event) => Ok(event),
                    Ok(_) => continue,
                    Err(_) => Err(Status::data_loss("the listener is too far behind")),
                };
                if listener.send(answer).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn update_build_history(
        &self,
        request: Request<pbc::UpdateBuildHistoryRequest>,
    ) -> Result<Response<pbc::UpdateBuildHistoryResponse>, Status> {
        let asked = request.into_inner();
        let (jobs, build) = (Arc::clone(&self.0.jobs), asked.r#ref);
        blocking(move || {
            let changed = match (asked.delete, asked.finalize) {
                (true, _) => jobs.forget(&build),
                (false, true) => jobs.finalize(&build),
                (false, false) => jobs.pin(&build, asked.pinned),
            };
            Ok(changed?)
        })
        .await?;
        Ok(Response::new(pbc::UpdateBuildHistoryResponse {}))
    }
}

impl Shared {
    /// Carries out a build, from its frontend to its exporters.
    async fn solve(
        &self,
        mut asked: pbc::SolveRequest,
        guard: &JobGuard,
    ) -> Result<Exported, Failure> {
        if asked.exporters.is_empty() && !asked.exporter_deprecated.is_empty() {
            asked.exporters.push(pbc::Exporter {
                r#type: std::mem::take(&mut asked.exporter_deprecated),
                attrs: std::mem::take(&mut asked.exporter_attrs_deprecated),
            });
        }
        name_what_is_built_in(&mut asked);
        self.refuse_what_is_not_there(&asked)?;
        let session = self.sessions.get(&asked.session).await?;
        let runtime = tokio::runtime::Handle::current();
        let client = Arc::new(SessionClient {
            runtime: runtime.clone(),
            sessions: Arc::clone(&self.sessions),
            session: Arc::clone(&session),
            folder: self.folder.clone(),
            secrets: Arc::default(),
            uploads: Arc::default(),
            local_sessions: Arc::new(Mutex::default()),
        });
        let verifier = match asked.source_policy_session.as_str() {
            "" => None,
            id => {
                let session = self.sessions.get(id).await?;
                Some(Arc::new(Verifier::new(session, runtime.clone())?))
            }
        };
        let sink = Sink::new(JobReceiver(Arc::clone(guard.job())), system_clock);
        let credentials = SessionCredentials(Arc::clone(&session));
        let attrs = sorted(asked.frontend_attrs.clone());
        let build = Arc::new(Build::new(BuildParts {
            engine: self.engine.with_credentials(Arc::new(credentials)),
            client: client.clone(),
            remote: Some(client),
            runtime,
            cancel: Cancel::default(),
            limits: engine::Limits::default(),
            part_of: None,
            sink,
            job: Some(Arc::clone(guard.job())),
            id: asked.r#ref.clone(),
            entitlements: asked.entitlements.clone(),
            inputs: sorted(asked.frontend_inputs.clone()),
            attestations: Wanted::parse(&attrs, Arc::clone(&self.environment))?,
            caches: caches::Wanted::parse(asked.cache.as_ref(), &attrs)?,
            frontend: asked.frontend.clone(),
            attrs,
            producers: Arc::clone(&self.producers),
            policies: Policies::parse(&asked.source_policy)?.with_verifier(verifier.clone()),
        }));
        if let Some(verifier) = &verifier {
            verifier.belongs_to(&build);
        }
        let _cancel = CancelOnDrop(build.cancel.clone());
        let stopping = {
            let cancel = build.cancel.clone();
            self.stop.on_request(move || cancel.request())
        };
        let work = self.carry_out(asked, Arc::clone(&build));
        let result = tokio::select! {
            result = work => result,
            () = session.closed() => {
                Err(Failure::new(Code::Cancelled, "the client's session has ended"))
            }
        };
        drop(stopping);
        let engine = self.engine.clone();
        // Who asked does not wait for the store to be brought within its limits.
        tokio::task::spawn_blocking(move || {
            if let Err(error) = engine.collect_surplus() {
                tracing::warn!(%error, "the store is not brought within its limits");
            }
        });
        result
    }

    async fn carry_out(
        &self,
        asked: pbc::SolveRequest,
        build: Arc<Build>,
    ) -> Result<Exported, Failure> {
        let epoch = asked
            .frontend_attrs
            .get("build-arg:SOURCE_DATE_EPOCH")
            .filter(|epoch| epoch.bytes().all(|byte| byte.is_ascii_digit()))
            .cloned();
        let result = if asked.frontend.is_empty() && asked.definition.is_none() {
            let bridge = Bridge::new(&build, &build.scope, build.inputs.clone());
            let _reachable = self.gateway.register(&asked.r#ref, Arc::clone(&bridge));
            let result = returned(&bridge).await;
            // Its containers end with it; what still calls it keeps them no longer.
            blocking(move || {
                bridge.containers.release_all();
                Ok(())
            })
            .await?;
            result?
        } else {
            let build = Arc::clone(&build);
            let request = FrontendRequest {
                definition: asked.definition,
                frontend: asked.frontend,
                attrs: sorted(asked.frontend_attrs),
                inputs: sorted(asked.frontend_inputs),
                evaluate: false,
                policies: Policies::default(),
            };
            blocking(move || build.solve(request, &build.scope)).await?
        };
        let exporters = asked.exporters;
        blocking(move || export::export(&build, &result, &exporters, epoch.as_deref())).await
    }

    fn refuse_what_is_not_there(&self, asked: &pbc::SolveRequest) -> Result<(), Failure> {
        for name in &asked.entitlements {
            match name.as_str() {
                "network.host" | "security.insecure" => {}
                other => {
                    return Err(Failure::unknown(format!("invalid entitlement {other}")));
                }
            }
            if !self.entitlements.contains(name) {
                return Err(Failure::unknown(format!(
                    "granting entitlement {name} is not allowed by build daemon configuration: {name} is not allowed"
                )));
            }
        }
        Ok(())
    }
}

/// Waits for what the client's own frontend comes to.
async fn returned(bridge: &Bridge) -> Result<FrontendResult, Failure> {
    let mut returned = bridge.returned.subscribe();
    let result = returned
        .wait_for(Option::is_some)
        .await
        .map_err(|_| Failure::new(Code::Cancelled, "context canceled"))?
        .clone();
    result.unwrap_or_else(|| Err(Failure::new(Code::Cancelled, "context canceled")))
}

/// Takes a request for the built-in frontend by the way of images as one for it, unless a context stands for its name.
fn name_what_is_built_in(asked: &mut pbc::SolveRequest) {
    let attrs = &mut asked.frontend_attrs;
    let name = "dockerfile.v0";
    let is_named = attrs.get("source").is_some_and(|source| source == name);
    let mut given = attrs.keys().filter_map(|key| key.strip_prefix("context:"));
    let is_context = given.any(|context| context.split("::").next() == Some(name));
    if asked.frontend == "gateway.v0" && is_named && !is_context {
        attrs.remove("source");
        name.clone_into(&mut asked.frontend);
    }
}

fn sorted<V>(map: HashMap<String, V>) -> BTreeMap<String, V> {
    map.into_iter().collect()
}

fn is_started(event: &pbc::BuildHistoryEvent) -> bool {
    event.r#type == pbc::BuildHistoryEventType::Started as i32
}

pub(crate) fn version() -> BuildkitVersion {
    BuildkitVersion {
        package: "lapstrake".to_owned(),
        version: concat!("v", env!("CARGO_PKG_VERSION")).to_owned(),
        revision: String::new(),
    }
}

/// Describes the one worker there is.
pub(crate) fn worker_record(engine: &Engine) -> WorkerRecord {
    let root = engine.store().root().to_string_lossy().into_owned();
    let label = |name: &str| format!("org.mobyproject.buildkit.worker.{name}");
    let hostname = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    WorkerRecord {
        id: oci::Digest::sha256_of(root.as_bytes()).hex()[..25].to_owned(),
        labels: HashMap::from([
            (label("executor"), "oci".to_owned()),
            (label("snapshotter"), "overlayfs".to_owned()),
            (label("hostname"), hostname),
        ]),
        platforms: vec![wire::platform(&Platform::host())],
        gc_policy: Vec::new(),
        buildkit_version: Some(version()),
        cdi_devices: Vec::new(),
    }
}
