//! One build: what its frontend and its client can do with it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use attest::{Request, Sources};
use bollard_buildkit_proto::pb;
use engine::{Caches, Cancel, Engine, GraphRequest, KnownImages, Solved};
use llb::Graph;
use oci::Timestamp;
use progress::Sink;
use prost::Message;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::attestations::Wanted;
use crate::caches;
use crate::client::SessionClient;
use crate::dockerfile;
use crate::error::Failure;
use crate::jobs::Job;
use crate::policy::Policies;
use crate::scope::{Produced, Producers, Scope};

/// A build under way.
pub(crate) struct Build {
    pub(crate) engine: Engine,
    pub(crate) client: Arc<SessionClient>,
    pub(crate) sink: Sink,
    pub(crate) job: Arc<Job>,
    pub(crate) cancel: Cancel,
    /// What the client allows, and the server too.
    pub(crate) entitlements: Vec<String>,
    pub(crate) inputs: BTreeMap<String, pb::Definition>,
    /// By what the client knows it.
    pub(crate) id: String,
    pub(crate) started: Timestamp,
    pub(crate) attestations: Wanted,
    pub(crate) caches: caches::Wanted,
    /// What may be taken from outside, and what in its place.
    pub(crate) policies: Policies,
    /// The caches, once they were read, and the folders they are in.
    read_caches: OnceLock<(Caches, Vec<TempDir>)>,
    /// What the client itself does.
    pub(crate) scope: Arc<Scope>,
    /// What the client asked for.
    pub(crate) asked: Request,
    produced: Produced,
    trees: Mutex<HashMap<String, Arc<Tree>>>,
    /// What a client's own frontend came to.
    pub(crate) returned: watch::Sender<Option<Result<FrontendResult, Failure>>>,
}

/// A graph, and its tree once somebody needs it.
pub(crate) struct Tree {
    pub(crate) definition: pb::Definition,
    pub(crate) graph: Arc<Graph>,
    images: KnownImages,
    solved: Mutex<Option<Result<Solved, Failure>>>,
    pub(crate) number: u64,
    scope: OnceLock<Arc<Scope>>,
}

/// Returns a number that no other tree has.
fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What a frontend made: trees, and notes for the exporters.
#[derive(Clone, Default)]
pub(crate) struct FrontendResult {
    pub(crate) trees: Trees,
    pub(crate) metadata: BTreeMap<String, Vec<u8>>,
}

/// One tree, or one for each platform. `None` is an empty one.
#[derive(Clone)]
pub(crate) enum Trees {
    One(Option<Arc<Tree>>),
    ByPlatform(Vec<(String, Option<Arc<Tree>>)>),
}

impl Default for Trees {
    fn default() -> Self {
        Self::One(None)
    }
}

/// What a frontend is asked for.
#[derive(Debug, Default)]
pub(crate) struct FrontendRequest {
    pub(crate) definition: Option<pb::Definition>,
    pub(crate) frontend: String,
    pub(crate) attrs: BTreeMap<String, String>,
    pub(crate) inputs: BTreeMap<String, pb::Definition>,
    pub(crate) evaluate: bool,
    /// For this request alone.
    pub(crate) policies: Policies,
}

impl Tree {
    /// Reads a definition; an empty one is an empty tree.
    pub(crate) fn of_definition(definition: pb::Definition) -> Result<Option<Arc<Self>>, Failure> {
        if definition.def.is_empty() {
            return Ok(None);
        }
        let graph = Graph::decode_definition(&definition.encode_to_vec())
            .map_err(|error| Failure::unknown(format!("failed to load LLB: {error}")))?;
        Ok(Some(Arc::new(Self {
            definition,
            graph: Arc::new(graph),
            images: KnownImages::default(),
            solved: Mutex::default(),
            number: next_number(),
            scope: OnceLock::new(),
        })))
    }

    /// Takes a graph that was made here.
    pub(crate) fn of_graph(
        graph: Graph,
        images: KnownImages,
    ) -> Result<Option<Arc<Self>>, Failure> {
        if graph.root().is_none() {
            return Ok(None);
        }
        let encoded = graph.encode_definition();
        let definition = pb::Definition::decode(encoded.as_slice())
            .map_err(|error| Failure::unknown(format!("failed to write LLB: {error}")))?;
        Ok(Some(Arc::new(Self {
            definition,
            graph: Arc::new(graph),
            images,
            solved: Mutex::default(),
            number: next_number(),
            scope: OnceLock::new(),
        })))
    }

    /// Says whose request it is made for; the first word counts.
    pub(crate) fn belongs_to(&self, scope: &Arc<Scope>) {
        let _ = self.scope.set(Arc::clone(scope));
    }

    pub(crate) fn scope(&self) -> Option<&Arc<Scope>> {
        self.scope.get()
    }

    /// Returns the tree, made now if it was not before. Blocks.
    pub(crate) fn solve(&self, build: &Build) -> Result<Solved, Failure> {
        let mut solved = self
            .solved
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        if let Some(solved) = &*solved {
            return solved.clone();
        }
        let graph = match build.policies.apply_to_graph(&self.definition) {
            Ok(None) => Arc::clone(&self.graph),
            Ok(Some(converted)) => Arc::new(converted),
            Err(failure) => {
                *solved = Some(Err(failure.clone()));
                return Err(failure);
            }
        };
        let request = GraphRequest {
            graph,
            images: self.images.clone(),
            client: build.client.clone(),
            entitlements: build.entitlements.clone(),
            caches: build.read_caches(),
        };
        let result = build
            .engine
            .solve_graph(&request, &build.sink, &build.cancel)
            .map_err(|failure| Failure::of_graph(&failure));
        if let (Some(scope), Ok(solved)) = (self.scope.get(), &result) {
            scope.add_tree(self.number, solved.taken());
        }
        *solved = Some(result.clone());
        result
    }
}

/// What a build is made of.
pub(crate) struct BuildParts {
    pub(crate) engine: Engine,
    pub(crate) client: SessionClient,
    pub(crate) sink: Sink,
    pub(crate) job: Arc<Job>,
    pub(crate) id: String,
    pub(crate) entitlements: Vec<String>,
    pub(crate) inputs: BTreeMap<String, pb::Definition>,
    pub(crate) attestations: Wanted,
    pub(crate) caches: caches::Wanted,
    pub(crate) frontend: String,
    pub(crate) attrs: BTreeMap<String, String>,
    pub(crate) producers: Arc<Producers>,
    pub(crate) policies: Policies,
}

impl Build {
    pub(crate) fn new(parts: BuildParts) -> Self {
        let BuildParts {
            engine,
            client,
            sink,
            job,
            id,
            entitlements,
            inputs,
            attestations,
            caches,
            frontend,
            attrs,
            producers,
            policies,
        } = parts;
        let asked = producers.request(&frontend, &attrs, &inputs);
        Self {
            engine,
            client: Arc::new(client),
            sink,
            job,
            cancel: Cancel::default(),
            entitlements,
            inputs,
            id,
            started: crate::attestations::now(),
            attestations,
            caches,
            policies,
            read_caches: OnceLock::new(),
            scope: Scope::new(Request::default()),
            asked,
            produced: producers.of_build(),
            trees: Mutex::default(),
            returned: watch::channel(None).0,
        }
    }

    /// Returns the caches that the client names, read when they are first needed. Blocks.
    fn read_caches(&self) -> Caches {
        let (caches, _) = self.read_caches.get_or_init(|| self.caches.read(self));
        caches.clone()
    }

    /// Returns a scope's request, and the client's own where that is another.
    pub(crate) fn request_with_root(&self, scope: &Scope, sources: &Sources) -> Request {
        let mut request = scope.request.clone();
        if request.frontend.is_empty() || self.asked.is_empty() {
            return request;
        }
        let root = self.asked.clone().record(sources);
        if root != request.clone().record(sources) {
            request.root = Some(Box::new(root));
        }
        request
    }

    /// Carries out a frontend's request, or a client's. Blocks.
    pub(crate) fn solve(&self, request: FrontendRequest) -> Result<FrontendResult, Failure> {
        let result = match (request.definition, request.frontend.as_str()) {
            (Some(_), "dockerfile.v0" | "gateway.v0") => {
                return Err(Failure::unknown(
                    "cannot solve with Definition and Frontend specified",
                ));
            }
            (Some(definition), _) => {
                let converted = match request.policies.is_empty() {
                    true => None,
                    false => request.policies.apply(&definition)?,
                };
                let definition = converted.unwrap_or(definition);
                let result = FrontendResult {
                    trees: Trees::One(Tree::of_definition(definition)?),
                    metadata: BTreeMap::new(),
                };
                self.assign(&result, &self.scope);
                result
            }
            (None, _) if !request.policies.is_empty() => {
                return Err(Failure::unsupported(
                    "a source policy that a frontend has for another",
                ));
            }
            (None, "dockerfile.v0") => self.dockerfile(request.attrs, &request.inputs)?,
            (None, "gateway.v0") => {
                let mut attrs = request.attrs;
                let source = attrs.remove("source").unwrap_or_default();
                if !is_builtin(&source) {
                    return Err(Failure::unsupported(format!(
                        "the frontend image {source:?}"
                    )));
                }
                attrs.remove("cmdline");
                self.dockerfile(attrs, &request.inputs)?
            }
            (None, "") => FrontendResult::default(),
            (None, name) => return Err(Failure::unknown(format!("invalid frontend: {name}"))),
        };
        if request.evaluate {
            for tree in result.trees.all() {
                tree.solve(self)?;
            }
        }
        Ok(result)
    }

    fn dockerfile(
        &self,
        attrs: BTreeMap<String, String>,
        inputs: &BTreeMap<String, pb::Definition>,
    ) -> Result<FrontendResult, Failure> {
        let producers = self.produced.producers();
        let scope = Scope::new(producers.request("dockerfile.v0", &attrs, inputs));
        let result = dockerfile::build(self, attrs, inputs, &scope)?;
        self.assign(&result, &scope);
        self.scope.add(&scope);
        for tree in result.trees.all() {
            let sources = Sources::default();
            let record = self.request_with_root(&scope, &sources).record(&sources);
            self.produced.add(&tree.graph, record);
        }
        Ok(result)
    }

    fn assign(&self, result: &FrontendResult, scope: &Arc<Scope>) {
        for tree in result.trees.all() {
            tree.belongs_to(scope);
        }
    }

    /// Gives a tree a name by which the client can speak of it.
    pub(crate) fn register(&self, tree: &Arc<Tree>) -> String {
        let id = new_id();
        self.table().insert(id.clone(), Arc::clone(tree));
        id
    }

    /// Returns a tree by its name; `None` for the empty one.
    pub(crate) fn tree(&self, id: &str) -> Result<Option<Arc<Tree>>, Failure> {
        if id.is_empty() {
            return Ok(None);
        }
        let found = self.table().get(id).cloned();
        found
            .map(Some)
            .ok_or_else(|| Failure::unknown(format!("no such ref: {id}")))
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Tree>>> {
        self.trees
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }
}

impl Trees {
    /// Returns the trees that are not empty.
    pub(crate) fn all(&self) -> Vec<&Arc<Tree>> {
        match self {
            Self::One(tree) => tree.iter().collect(),
            Self::ByPlatform(trees) => trees.iter().filter_map(|(_, tree)| tree.as_ref()).collect(),
        }
    }
}

/// Whether the built-in frontend stands for an image of the Dockerfile frontend.
pub(crate) fn is_builtin(source: &str) -> bool {
    let Ok(reference) = oci::Reference::parse_normalized(source) else {
        return source == "dockerfile.v0";
    };
    let name = reference.name();
    source == "dockerfile.v0"
        || name == "docker.io/docker/dockerfile"
        || name == "docker.io/docker/dockerfile-upstream"
}

/// Returns a name that nothing else has.
fn new_id() -> String {
    let mut bytes = [0; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        match rustix::rand::getrandom(&mut bytes[filled..], flags) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            // Names of one build need only differ from each other.
            Err(_) => {
                static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
                let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                bytes[..8].copy_from_slice(&number.to_be_bytes());
                break;
            }
        }
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
