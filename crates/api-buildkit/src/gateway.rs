//! LLBBridge: what a frontend asks of the build it belongs to.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_server::LlbBridge;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::{self as pbf, result};
use bollard_buildkit_proto::moby::buildkit::v1::{StatusResponse, VertexWarning};
use bollard_buildkit_proto::pb;
use engine::{FoundImage, ImageLookup};
use oci::{Digest, Platform, Reference};
use progress::{Event, Outcome, SourceInfo, Vertex, Warning};
use tokio::sync::Notify;
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::bridge::{Bridge, existing, from_wire, sorted, to_wire};
use crate::build::{Build, FrontendRequest};
use crate::caps;
use crate::containers;
use crate::control::worker_record;
use crate::error::Failure;
use crate::exec;
use crate::files;
use crate::policy::{Policies, Source};
use crate::scope::Scope;
use crate::source_meta;

/// How long a call waits for the build it names.
const PATIENCE: Duration = Duration::from_secs(5);

/// The builds whose frontends run at their clients.
#[derive(Default)]
pub(crate) struct Gateway {
    builds: Mutex<HashMap<String, Arc<Bridge>>>,
    changed: Notify,
}

/// Takes the build away when it ends.
pub(crate) struct GatewayGuard {
    gateway: Arc<Gateway>,
    id: String,
}

impl Drop for GatewayGuard {
    fn drop(&mut self) {
        self.gateway.table().remove(&self.id);
    }
}

impl Gateway {
    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Bridge>>> {
        self.builds
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }

    /// Lets the client's calls reach a build.
    pub(crate) fn register(self: &Arc<Self>, id: &str, bridge: Arc<Bridge>) -> GatewayGuard {
        self.table().insert(id.to_owned(), bridge);
        self.changed.notify_waiters();
        GatewayGuard {
            gateway: Arc::clone(self),
            id: id.to_owned(),
        }
    }

    async fn bridge_of<T>(&self, request: &Request<T>) -> Result<Arc<Bridge>, Status> {
        let id = request.metadata().get("buildkit-controlapi-buildid");
        let id = id
            .and_then(|id| id.to_str().ok())
            .ok_or_else(|| Status::unknown("no buildid found in context"))?;
        let found = async {
            loop {
                let changed = self.changed.notified();
                if let Some(bridge) = self.table().get(id) {
                    return Arc::clone(bridge);
                }
                changed.await;
            }
        };
        tokio::time::timeout(PATIENCE, found)
            .await
            .map_err(|_| Status::not_found(format!("no such job {id}")))
    }
}

/// Runs what blocks.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Failure::new(
            Code::Internal,
            format!("internal error: {error}"),
        )),
    }
}

pub(crate) fn platform_of(platform: Option<&pb::Platform>) -> Platform {
    match platform {
        None => Platform::host(),
        Some(platform) => Platform {
            os: platform.os.clone(),
            architecture: platform.architecture.clone(),
            variant: platform.variant.clone(),
            os_version: platform.os_version.clone(),
            os_features: platform.os_features.clone(),
        },
    }
}

/// Where an image is looked for.
#[derive(Clone, Copy)]
pub(crate) enum Lookup<'a> {
    /// With the client's resolve mode.
    Registry(&'a str),
    /// In a content store of the client.
    Store(&'a str),
}

/// Finds an image and shows it as a vertex of the build. Blocks.
pub(crate) fn find_image(
    build: &Build,
    scope: &Scope,
    name: &str,
    platform: &Platform,
    lookup: Lookup<'_>,
    shown: &str,
) -> Result<(Reference, FoundImage), Failure> {
    let reference = Reference::parse_normalized(name)
        .map_err(|error| Failure::unknown(format!("failed to parse {name}: {error}")))?
        .or_latest();
    let shown = match shown {
        "" => format!("resolve image config for {reference}"),
        shown => shown.to_owned(),
    };
    let running = build.sink.vertex(Vertex::named(shown)).start();
    let engine = &build.engine;
    let found = match lookup {
        Lookup::Registry(mode) => engine.find(&reference, platform, ImageLookup::from_mode(mode)),
        Lookup::Store(store) => engine.find_in_store(&*build.client, store, &reference, platform),
    };
    match found {
        Ok(image) => {
            running.complete(Outcome::Done);
            scope.add_image(attest::ImageSource {
                reference: reference.clone(),
                platform: Some(platform.normalized()),
                digest: Some(image.digest.clone()),
                local: matches!(lookup, Lookup::Store(_)),
            });
            Ok((reference, image))
        }
        Err(error) => {
            running.complete(Outcome::Failed {
                error: engine::chain(&error),
            });
            Err(error.into())
        }
    }
}

/// Returns the name of the image that the policies have in the place of another.
pub(crate) fn image_name(
    build: &Build,
    more: &Policies,
    name: &str,
    platform: &Platform,
) -> Result<String, Failure> {
    let Ok(reference) = Reference::parse_normalized(name) else {
        return Ok(name.to_owned());
    };
    let other = build
        .policies
        .and(more)
        .image_name(&reference.or_latest(), platform)?;
    Ok(other.unwrap_or_else(|| name.to_owned()))
}

/// The service; its clones answer the same frontends.
#[derive(Clone)]
pub(crate) enum GatewayService {
    /// Calls name the build they belong to.
    OfClients(Arc<Gateway>),
    /// Whoever calls is this frontend.
    Of(Arc<Bridge>),
}

impl GatewayService {
    async fn bridge_of<T>(&self, request: &Request<T>) -> Result<Arc<Bridge>, Status> {
        match self {
            Self::OfClients(gateway) => gateway.bridge_of(request).await,
            Self::Of(bridge) => Ok(Arc::clone(bridge)),
        }
    }
}

#[tonic::async_trait]
impl LlbBridge for GatewayService {
    async fn resolve_image_config(
        &self,
        request: Request<pbf::ResolveImageConfigRequest>,
    ) -> Result<Response<pbf::ResolveImageConfigResponse>, Status> {
        let bridge = self.bridge_of(&request).await?;
        let asked = request.into_inner();
        let answer = blocking(move || {
            let platform = platform_of(asked.platform.as_ref());
            let mode = match asked.resolver_type {
                0 => Lookup::Registry(&asked.resolve_mode),
                _ => Lookup::Store(&asked.store_id),
            };
            let name = match mode {
                Lookup::Store(_) => asked.r#ref.clone(),
                Lookup::Registry(_) => {
                    let more = Policies::parse(&asked.source_policies)?;
                    image_name(&bridge.build, &more, &asked.r#ref, &platform)?
                }
            };
            let (build, scope) = (&bridge.build, &bridge.scope);
            let (reference, image) =
                find_image(build, scope, &name, &platform, mode, &asked.log_name)?;
            Ok(pbf::ResolveImageConfigResponse {
                digest: image.digest.to_string(),
                config: image.raw_config,
                r#ref: reference.to_string(),
            })
        });
        Ok(Response::new(answer.await?))
    }

    async fn resolve_source_meta(
        &self,
        request: Request<pbf::ResolveSourceMetaRequest>,
    ) -> Result<Response<pbf::ResolveSourceMetaResponse>, Status> {
        let bridge = self.bridge_of(&request).await?;
        let mut asked = request.into_inner();
        let Some(mut source) = asked.source.take() else {
            return Err(Status::invalid_argument("source is required"));
        };
        let answer = blocking(move || {
            let more = Policies::parse(&asked.source_policies)?;
            let now = Source::new(&source.identifier, source.attrs);
            let policies = bridge.build.policies.and(&more);
            let then = policies
                .evaluate(&now, asked.platform.as_ref())
                .map_err(|failure| failure.context("could not resolve image due to policy"))?;
            let then = then.unwrap_or(now);
            source.identifier = then.identifier;
            source.attrs = then.attrs.into_iter().collect();
            asked.source = Some(source);
            source_meta::of(&bridge.build, &bridge.scope, asked)
        });
        Ok(Response::new(answer.await?))
    }

    async fn solve(
        &self,
        request: Request<pbf::SolveRequest>,
    ) -> Result<Response<pbf::SolveResponse>, Status> {
        let bridge = self.bridge_of(&request).await?;
        let asked = request.into_inner();
        let (map_allowed, with_definitions) =
            (asked.allow_result_return, asked.allow_result_array_ref);
        let answer = blocking(move || {
            let result = bridge.solve(FrontendRequest {
                policies: Policies::parse(&asked.source_policies)?,
                definition: asked.definition,
                frontend: asked.frontend,
                attrs: sorted(asked.frontend_opt),
                inputs: sorted(asked.frontend_inputs),
                evaluate: asked.evaluate,
            })?;
            let result = to_wire(&bridge.build, &result, with_definitions);
            let single = match &result.result {
                Some(result::Result::RefDeprecated(id)) => id.clone(),
                Some(result::Result::Ref(named)) => named.id.clone(),
                _ => String::new(),
            };
            Ok(pbf::SolveResponse {
                r#ref: if map_allowed { String::new() } else { single },
                result: Some(result),
            })
        });
        Ok(Response::new(answer.await?))
    }

    async fn read_file(
        &self,
        request: Request<pbf::ReadFileRequest>,
    ) -> Result<Response<pbf::ReadFileResponse>, Status> {
        let bridge = self.bridge_of(&request).await?;
        let asked = request.into_inner();
        let answer = blocking(move || {
            let tree = existing(&bridge.build, &asked.r#ref)?;
            let range = range_of(asked.range);
            files::read(&bridge.build, &tree, &asked.file_path, range)
        });
        Ok(Response::new(pbf::ReadFileResponse {
            data: answer.await?,
        }))
    }

    async fn read_dir(
        &self,
        request: Request<pbf::ReadDirRequest>,
    ) -> Result<Response<pbf::ReadDirResponse>, Status> {
        let bridge = self.bridge_of(&request).await?;
        let asked = request.into_inner();
        let answer = blocking(move || {
            let tree = existing(&bridge.build, &asked.r#ref)?;
            files::list(
                &bridge.build,
                &tree,
                &asked.dir_path,
                &asked.include_pattern,
            )
        });
        Ok(Response::new(pbf::ReadDirResponse {
            entries: answer.await?,
        }))
    }

    async fn stat_file(
        &self,
        request: Request<pbf::StatFileRequest>,
    ) -> Result<Response<pbf::StatFileResponse>, Status> {
        let bridge = self.bridge_of(&request).await?;
        let asked = request.into_inner();
        let answer = blocking(move || {
            let tree = existing(&bridge.build, &asked.r#ref)?;
            files::stat(&bridge.build, &tree, &asked.path)
        });
        Ok(Response::new(pbf::StatFileResponse {
            stat: Some(answer.await?),
        }))
    }

    async fn evaluate(
        &self,
        request: Request<pbf::EvaluateRequest>,
    ) -> Result<Response<pbf::EvaluateResponse>, Status> {
        let bridge = self.bridge_of(&request).await?;
        let asked = request.into_inner();
        blocking(move || {
            if let Some(tree) = bridge.build.tree(&asked.r#ref)? {
                tree.solve(&bridge.build)?;
            }
            Ok(())
        })
        .await?;
        Ok(Response::new(pbf::EvaluateResponse {}))
    }

    async fn ping(
        &self,
        request: Request<pbf::PingRequest>,
    ) -> Result<Response<pbf::PongResponse>, Status> {
        let bridge = self.bridge_of(&request).await?;
        Ok(Response::new(pbf::PongResponse {
            frontend_api_caps: caps::gateway(),
            llb_caps: caps::graphs(),
            workers: vec![worker_record(&bridge.build.engine)],
        }))
    }

    async fn r#return(
        &self,
        request: Request<pbf::ReturnRequest>,
    ) -> Result<Response<pbf::ReturnResponse>, Status> {
        let bridge = self.bridge_of(&request).await?;
        let asked = request.into_inner();
        let result = match asked.error {
            Some(error) => Err(Failure::from_rpc(&error)),
            None => Ok(from_wire(&bridge.build, asked.result.unwrap_or_default())?),
        };
        bridge.set_result(result)?;
        Ok(Response::new(pbf::ReturnResponse {}))
    }

    async fn inputs(
        &self,
        request: Request<pbf::InputsRequest>,
    ) -> Result<Response<pbf::InputsResponse>, Status> {
        let bridge = self.bridge_of(&request).await?;
        Ok(Response::new(pbf::InputsResponse {
            definitions: bridge.inputs.clone().into_iter().collect(),
        }))
    }

    async fn new_container(
        &self,
        request: Request<pbf::NewContainerRequest>,
    ) -> Result<Response<pbf::NewContainerResponse>, Status> {
        let bridge = self.bridge_of(&request).await?;
        let asked = request.into_inner();
        blocking(move || containers::create(&bridge, asked)).await?;
        Ok(Response::new(pbf::NewContainerResponse {}))
    }

    async fn release_container(
        &self,
        request: Request<pbf::ReleaseContainerRequest>,
    ) -> Result<Response<pbf::ReleaseContainerResponse>, Status> {
        let bridge = self.bridge_of(&request).await?;
        let asked = request.into_inner();
        blocking(move || bridge.containers.release(&asked.container_id)).await?;
        Ok(Response::new(pbf::ReleaseContainerResponse {}))
    }

    type ExecProcessStream = Pin<Box<dyn Stream<Item = Result<pbf::ExecMessage, Status>> + Send>>;

    async fn exec_process(
        &self,
        request: Request<Streaming<pbf::ExecMessage>>,
    ) -> Result<Response<Self::ExecProcessStream>, Status> {
        let bridge = self.bridge_of(&request).await?;
        let answers = exec::serve(bridge, request.into_inner());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn read_file_container(
        &self,
        request: Request<pbf::ReadFileRequest>,
    ) -> Result<Response<pbf::ReadFileResponse>, Status> {
        let bridge = self.bridge_of(&request).await?;
        let asked = request.into_inner();
        let answer = blocking(move || {
            let tree = bridge.containers.tree(&asked.r#ref, asked.mount_index)?;
            let range = range_of(asked.range);
            files::read_of(Some(&tree), &asked.file_path, range)
        });
        Ok(Response::new(pbf::ReadFileResponse {
            data: answer.await?,
        }))
    }

    async fn read_dir_container(
        &self,
        request: Request<pbf::ReadDirRequest>,
    ) -> Result<Response<pbf::ReadDirResponse>, Status> {
        let bridge = self.bridge_of(&request).await?;
        let asked = request.into_inner();
        let answer = blocking(move || {
            let tree = bridge.containers.tree(&asked.r#ref, asked.mount_index)?;
            files::list_of(Some(&tree), &asked.dir_path, &asked.include_pattern)
        });
        Ok(Response::new(pbf::ReadDirResponse {
            entries: answer.await?,
        }))
    }

    async fn stat_file_container(
        &self,
        request: Request<pbf::StatFileRequest>,
    ) -> Result<Response<pbf::StatFileResponse>, Status> {
        let bridge = self.bridge_of(&request).await?;
        let asked = request.into_inner();
        let answer = blocking(move || {
            let tree = bridge.containers.tree(&asked.r#ref, asked.mount_index)?;
            files::stat_of_path(Some(&tree), &asked.path)
        });
        Ok(Response::new(pbf::StatFileResponse {
            stat: Some(answer.await?),
        }))
    }

    async fn warn(
        &self,
        request: Request<pbf::WarnRequest>,
    ) -> Result<Response<pbf::WarnResponse>, Status> {
        let bridge = self.bridge_of(&request).await?;
        let asked = request.into_inner();
        let warning = VertexWarning {
            vertex: asked.digest,
            level: asked.level,
            short: asked.short,
            detail: asked.detail,
            url: asked.url,
            info: asked.info,
            ranges: asked.ranges,
        };
        match &bridge.build.job {
            Some(job) => job.tell(StatusResponse {
                warnings: vec![warning],
                ..StatusResponse::default()
            }),
            None => warn_here(&bridge.build, &warning),
        }
        Ok(Response::new(pbf::WarnResponse {}))
    }
}

/// Tells a warning where no client listens.
fn warn_here(build: &Build, warning: &VertexWarning) {
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    // A name that nothing has is no reason to say nothing.
    let vertex = warning.vertex.parse();
    build.sink.send(Event::Warning(Warning {
        vertex: vertex.unwrap_or_else(|_| Digest::sha256_of(warning.vertex.as_bytes())),
        level: u8::try_from(warning.level).unwrap_or(1),
        short: text(&warning.short),
        detail: warning.detail.iter().map(text).collect(),
        url: warning.url.clone(),
        source: warning.info.as_ref().map(|info| {
            Arc::new(SourceInfo {
                filename: info.filename.clone(),
                data: info.data.clone(),
                language: info.language.clone(),
            })
        }),
        ranges: Vec::new(),
    }));
}

fn range_of(range: Option<pbf::FileRange>) -> Option<(u64, u64)> {
    range.map(|range| (range.offset.max(0) as u64, range.length.max(0) as u64))
}

pub(crate) fn seconds(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 0 }
}
