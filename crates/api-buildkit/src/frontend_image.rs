//! Frontends that are images: run as steps are, with LLBBridge on their standard streams.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bollard_buildkit_proto::health::health_server::HealthServer;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_server::LlbBridgeServer;
use bollard_buildkit_proto::pb;
use engine::container::Streams;
use engine::{KnownImages, ProcessStatus, TreeContainerRequest, TreeMount, TreeProcessRequest};
use frontend::NamedContext;
use llb::{Draft, GraphBuilder, Metadata, Mount, NetworkMode, Op, SourceOp};
use oci::{ImageConfig, Platform};
use prost::Message;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tonic::transport::Server as Transport;
use tonic::transport::server::Connected;

use crate::bridge::Bridge;
use crate::build::{Build, FrontendResult, Tree};
use crate::control::worker_record;
use crate::dockerfile::unsupported_cap;
use crate::error::Failure;
use crate::exec::{from_process, to_process};
use crate::gateway::{GatewayService, Lookup, find_image, image_name};
use crate::named_contexts::named_context;
use crate::options::Attributes;
use crate::policy::Policies;
use crate::scope::Scope;
use crate::serve::{Healthy, MOST};

const CAPS_LABEL: &str = "moby.buildkit.frontend.caps";
const NETWORK_LABEL: &str = "moby.buildkit.frontend.network.none";
/// Where a frontend finds the graph it comes from itself.
const OWN_GRAPH: &str = "/run/config/buildkit/metadata/frontend.bin";
/// Of what a frontend prints, as much is said when it fails, in bytes.
const TAIL: usize = 4 << 10;

/// A frontend's image.
struct Image {
    tree: Arc<Tree>,
    config: ImageConfig,
}

/// Runs the frontend that the attribute `source` names. Blocks.
pub(crate) fn run(
    build: &Arc<Build>,
    scope: &Arc<Scope>,
    attrs: &Attributes,
    inputs: BTreeMap<String, pb::Definition>,
) -> Result<FrontendResult, Failure> {
    let source = attrs
        .get("source")
        .ok_or_else(|| Failure::unknown("no source specified for gateway"))?;
    let image = image_of(build, scope, source, attrs, &inputs)?;
    refuse_unknown_caps(&image.config, attrs, !inputs.is_empty())?;
    let solved = image.tree.solve(build)?;
    let config = &image.config.config;
    let without_network = config.labels.get(NETWORK_LABEL).map(String::as_str);
    let request = TreeContainerRequest {
        mounts: vec![TreeMount {
            tree: Some(solved),
            mount: Mount {
                dest: "/".to_owned(),
                ..Mount::default()
            },
        }],
        files: vec![(OWN_GRAPH.to_owned(), image.tree.definition.encode_to_vec())],
        network: match without_network.and_then(dockerfile::parse_bool) {
            Some(true) => NetworkMode::None,
            _ => NetworkMode::Sandbox,
        },
        hostname: String::new(),
        extra_hosts: Vec::new(),
        limits: build.limits.clone(),
        client: Arc::clone(&build.client),
        entitlements: Vec::new(),
    };
    let container = build.engine.tree_container(request, &build.cancel)?;
    let bridge = Bridge::new(build, scope, inputs);
    let _entered = build.runtime.enter();
    let (to_frontend, stdin) = to_process()?;
    let (from_frontend, stdout) = from_process()?;
    let (messages, stderr) =
        io::pipe().map_err(|error| Failure::unknown(format!("no pipe: {error}")))?;
    let served = build.runtime.spawn(serve(
        Streamed {
            input: from_frontend,
            output: to_frontend,
        },
        Arc::clone(&bridge),
    ));
    let name = source.clone();
    let messages = std::thread::Builder::new()
        .name("frontend".to_owned())
        .spawn(move || follow(messages, &name))
        .map_err(|error| Failure::unknown(format!("no thread: {error}")))?;
    let streams = Streams {
        stdin: Some(stdin),
        stdout: Some(stdout),
        stderr: Some(stderr.into()),
    };
    let process = process_of(build, config, attrs);
    let ended = container
        .start(&process, streams)
        .and_then(engine::TreeProcess::wait);
    container.end();
    served.abort();
    bridge.containers.release_all();
    let printed = messages.join().unwrap_or_default();
    let returned = bridge.returned.send_replace(None);
    conclude(build, source, returned, ended, &printed)
}

/// A failure the frontend returned counts first, then how its process ended, then its result.
fn conclude(
    build: &Build,
    source: &str,
    returned: Option<Result<FrontendResult, Failure>>,
    ended: Result<ProcessStatus, engine::EngineError>,
    printed: &str,
) -> Result<FrontendResult, Failure> {
    if let Some(Err(failure)) = returned {
        return Err(failure);
    }
    if build.cancel.is_requested() {
        return Err(Failure::new(tonic::Code::Cancelled, "context canceled"));
    }
    let ending = match ended? {
        ProcessStatus::Code(0) => {
            return returned.unwrap_or_else(|| {
                Err(Failure::unknown(format!(
                    "the frontend {source} ended without a result"
                )))
            });
        }
        ProcessStatus::NotStarted { reason, .. } => format!("cannot be started: {reason}"),
        status => format!("failed: exit code: {}", status.shell_code()),
    };
    let printed = match printed.trim() {
        "" => String::new(),
        printed => format!(": {printed}"),
    };
    Err(Failure::unknown(format!(
        "the frontend {source} {ending}{printed}"
    )))
}

/// Finds the image: a context of the client's by that name, or one of a registry.
fn image_of(
    build: &Build,
    scope: &Scope,
    source: &str,
    attrs: &Attributes,
    inputs: &BTreeMap<String, pb::Definition>,
) -> Result<Image, Failure> {
    let empty = || Failure::unknown("gateway source didn't return default result");
    let (name, store) = match named_context(build, attrs, inputs, source)? {
        None => (source.to_owned(), None),
        Some(NamedContext::Image(name)) => (name, None),
        Some(NamedContext::OciLayout { store, digest }) => {
            (format!("{store}@{digest}"), Some(store))
        }
        Some(NamedContext::Graph { graph, config }) => {
            let tree = Tree::of_graph((*graph).clone(), KnownImages::default())?;
            return Ok(Image {
                tree: tree.ok_or_else(empty)?,
                config: config.map(|config| *config).unwrap_or_default(),
            });
        }
        Some(_) => {
            return Err(Failure::unsupported(format!(
                "the context that stands for the frontend {source}"
            )));
        }
    };
    let host = Platform::host();
    let lookup = match &store {
        None => Lookup::Registry(attrs.get("image-resolve-mode").map_or("", String::as_str)),
        Some(store) => Lookup::Store(store),
    };
    let name = match &store {
        None => image_name(build, &Policies::default(), &name, &host)?,
        Some(_) => name,
    };
    let (reference, found) = find_image(build, scope, &name, &host, lookup, "")?;
    let mut images = KnownImages::default();
    let mut op = SourceOp::default();
    let pinned = format!(
        "{}@{}",
        reference.to_string().split('@').next().unwrap_or_default(),
        found.digest
    );
    match &store {
        None => {
            images.insert(&reference.to_string(), &host, &found);
            op.identifier = format!("docker-image://{pinned}");
        }
        Some(store) => {
            images.insert_of_store(&pinned, &host, &found);
            op.identifier = format!("oci-layout://{pinned}");
            op.attrs
                .insert(llb::attr::OCI_LAYOUT_STORE_ID.to_owned(), store.clone());
        }
    }
    let mut draft = Draft::new(Op::Source(op), Vec::new());
    draft.platform = Some(Arc::new(host));
    draft.metadata = Metadata::named(format!("[internal] load frontend {source}"));
    let mut builder = GraphBuilder::default();
    let output = builder.add(draft);
    let graph = builder
        .finish(Some(output))
        .map_err(|error| Failure::unknown(format!("no graph of the frontend: {error}")))?;
    Ok(Image {
        tree: Tree::of_graph(graph, images)?.ok_or_else(empty)?,
        config: (*found.config).clone(),
    })
}

fn refuse_unknown_caps(
    config: &ImageConfig,
    attrs: &Attributes,
    has_inputs: bool,
) -> Result<(), Failure> {
    fn caps(text: Option<&String>) -> BTreeSet<&str> {
        let caps = text.into_iter().flat_map(|text| text.split(','));
        let bare = caps.map(|cap| cap.split('+').next().unwrap_or(cap));
        bare.filter(|cap| !cap.is_empty()).collect()
    }
    let known = caps(config.config.labels.get(CAPS_LABEL));
    let mut wanted = caps(attrs.get("frontend.caps"));
    if has_inputs {
        wanted.insert("moby.buildkit.frontend.inputs");
    }
    match wanted.difference(&known).next() {
        None => Ok(()),
        Some(cap) => Err(unsupported_cap(cap)),
    }
}

fn process_of(
    build: &Build,
    config: &oci::ContainerConfig,
    attrs: &Attributes,
) -> TreeProcessRequest {
    let mut env = config.env.clone();
    for (number, (name, value)) in attrs.iter().enumerate() {
        env.push(format!("BUILDKIT_FRONTEND_OPT_{number}={name}={value}"));
    }
    let session = build.session_id();
    env.push(format!("BUILDKIT_SESSION_ID={session}"));
    let worker = worker_record(&build.engine);
    let labels: BTreeMap<_, _> = worker.labels.into_iter().collect();
    let platforms: Vec<_> = worker
        .platforms
        .into_iter()
        .map(|platform| {
            let mut json = json!({"architecture": platform.architecture, "os": platform.os});
            if !platform.variant.is_empty() {
                json["variant"] = platform.variant.into();
            }
            json
        })
        .collect();
    let workers = json!([{"ID": worker.id, "Labels": labels, "Platforms": platforms}]);
    env.push(format!("BUILDKIT_WORKERS={workers}"));
    env.push("BUILDKIT_EXPORTEDPRODUCT=buildkit".to_owned());
    TreeProcessRequest {
        args: match config.entrypoint.as_slice() {
            [] => vec!["/run".to_owned()],
            entrypoint => entrypoint.to_vec(),
        },
        env,
        cwd: config.working_dir.clone(),
        user: String::new(),
        ..TreeProcessRequest::default()
    }
}

/// Answers a frontend until it closes its end.
async fn serve(streams: Streamed, bridge: Arc<Bridge>) {
    let served = Transport::builder()
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .add_service(
            LlbBridgeServer::new(GatewayService::Of(bridge))
                .max_decoding_message_size(MOST)
                .max_encoding_message_size(MOST),
        )
        .add_service(HealthServer::new(Healthy))
        .serve_with_incoming(tokio_stream::once(Ok::<_, io::Error>(streams)));
    if let Err(error) = served.await {
        tracing::debug!(%error, "the connection with a frontend failed");
    }
}

/// Reads what a frontend prints and returns the end of it.
fn follow(mut messages: io::PipeReader, name: &str) -> String {
    let mut tail = Vec::new();
    let mut buffer = [0; 4 << 10];
    while let Ok(count @ 1..) = messages.read(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..count]);
        tracing::debug!(frontend = name, "{}", text.trim_end());
        tail.extend_from_slice(&buffer[..count]);
        if tail.len() > 2 * TAIL {
            tail.drain(..tail.len() - TAIL);
        }
    }
    let start = tail.len().saturating_sub(TAIL);
    String::from_utf8_lossy(&tail[start..]).into_owned()
}

/// A connection made of two pipes.
struct Streamed {
    input: pipe::Receiver,
    output: pipe::Sender,
}

impl Connected for Streamed {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Streamed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_read(context, buffer)
    }
}

impl AsyncWrite for Streamed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.output).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.output).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.output).poll_shutdown(context)
    }
}
