//! One build: what its frontend and its client can do with it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use attest::{Request, Sources};
use bollard_buildkit_proto::pb;
use engine::{
    BuildClient, BuildRequest, Caches, Cancel, Engine, ExportTree, GraphRequest, KnownImages,
    Limits, Solved,
};
use llb::Graph;
use oci::Timestamp;
use progress::Sink;
use prost::Message;
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::attestations::Wanted;
use crate::caches;
use crate::client::SessionClient;
use crate::dockerfile::{self, Outcome};
use crate::error::Failure;
use crate::frontend_image;
use crate::jobs::Job;
use crate::policy::Policies;
use crate::scope::{Produced, Producers, Scope};

/// A build under way.
pub(crate) struct Build {
    pub(crate) engine: Engine,
    pub(crate) client: Arc<dyn BuildClient>,
    /// The same, where it is at the other end of a session.
    remote: Option<Arc<SessionClient>>,
    /// Where calls are waited for.
    pub(crate) runtime: Handle,
    pub(crate) sink: Sink,
    /// Who listens in a client's words.
    pub(crate) job: Option<Arc<Job>>,
    pub(crate) cancel: Cancel,
    /// Limits of what runs beside the graph.
    pub(crate) limits: Limits,
    /// The request of this machine that it belongs to, and the id of that build.
    part_of: Option<(Arc<BuildRequest>, String)>,
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
}

/// A graph, and its tree once somebody needs it.
pub(crate) struct Tree {
    pub(crate) definition: pb::Definition,
    pub(crate) graph: Arc<Graph>,
    images: KnownImages,
    solved: Mutex<Option<Result<Solved, Failure>>>,
    /// What was solved, where policies have made another graph of it.
    converted: OnceLock<Arc<Graph>>,
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
    /// What it says of its trees, by platform.
    pub(crate) attestations: BTreeMap<String, Vec<Said>>,
}

/// What a frontend says of a tree, in the files of another.
#[derive(Clone)]
pub(crate) struct Said {
    pub(crate) kind: SaidKind,
    pub(crate) metadata: BTreeMap<String, Vec<u8>>,
    pub(crate) tree: Option<Arc<Tree>>,
    pub(crate) path: String,
    pub(crate) predicate_type: String,
}

/// How it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SaidKind {
    /// A file is a predicate.
    Predicate,
    /// Each file of a directory is a statement.
    Statements,
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
            converted: OnceLock::new(),
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
            converted: OnceLock::new(),
            number: next_number(),
            scope: OnceLock::new(),
        })))
    }

    /// Says whose request it is made for; the first word counts.
    pub(crate) fn belongs_to(&self, scope: &Arc<Scope>) {
        let _ = self.scope.set(Arc::clone(scope));
    }

    /// Returns the graph that was solved: with the sources that policies had it take.
    pub(crate) fn solved_graph(&self) -> &Arc<Graph> {
        self.converted.get().unwrap_or(&self.graph)
    }

    pub(crate) fn images(&self) -> &KnownImages {
        &self.images
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
            Ok(Some(converted)) => Arc::clone(self.converted.get_or_init(|| Arc::new(converted))),
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
            part_of: build.part_of.clone(),
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
    pub(crate) client: Arc<dyn BuildClient>,
    pub(crate) remote: Option<Arc<SessionClient>>,
    pub(crate) runtime: Handle,
    pub(crate) cancel: Cancel,
    pub(crate) limits: Limits,
    pub(crate) part_of: Option<(Arc<BuildRequest>, String)>,
    pub(crate) sink: Sink,
    /// Who listens in a client's words.
    pub(crate) job: Option<Arc<Job>>,
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
            remote,
            runtime,
            cancel,
            limits,
            part_of,
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
            client,
            remote,
            runtime,
            sink,
            job,
            cancel,
            limits,
            part_of,
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
        }
    }

    /// Uses caches that were read already.
    pub(crate) fn use_caches(&self, caches: Caches) {
        let _ = self.read_caches.set((caches, Vec::new()));
    }

    /// Returns the name of the client's session; empty where there is none.
    pub(crate) fn session_id(&self) -> &str {
        self.remote.as_ref().map_or("", |client| &client.session.id)
    }

    /// Returns the client at the other end of the session.
    pub(crate) fn remote(&self) -> Result<&Arc<SessionClient>, Failure> {
        let none = || Failure::unknown("the build has no session with a client");
        self.remote.as_ref().ok_or_else(none)
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

    /// Carries out a frontend's request, or a client's, made within a scope. Blocks.
    pub(crate) fn solve(
        self: &Arc<Self>,
        request: FrontendRequest,
        scope: &Arc<Scope>,
    ) -> Result<FrontendResult, Failure> {
        let result = match (request.definition, request.frontend.as_str()) {
            (Some(_), "dockerfile.v0" | "gateway.v0") => {
                return Err(Failure::unknown(
                    "cannot solve with Definition and Frontend specified",
                ));
            }
            (Some(definition), _) => {
                let converted = match request.policies.is_empty() {
                    true => None,
                    false => self.policies.and(&request.policies).apply(&definition)?,
                };
                let definition = converted.unwrap_or(definition);
                let result = FrontendResult {
                    trees: Trees::One(Tree::of_definition(definition)?),
                    ..FrontendResult::default()
                };
                self.assign(&result, scope);
                result
            }
            (None, _) if !request.policies.is_empty() => {
                return Err(Failure::unsupported(
                    "a source policy that a frontend has for another",
                ));
            }
            (None, "dockerfile.v0") => self.dockerfile(request.attrs, &request.inputs, scope)?,
            (None, "gateway.v0") => self.gateway(&request.attrs, request.inputs, scope)?,
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
        self: &Arc<Self>,
        attrs: BTreeMap<String, String>,
        inputs: &BTreeMap<String, pb::Definition>,
        outer: &Arc<Scope>,
    ) -> Result<FrontendResult, Failure> {
        let producers = self.produced.producers();
        let scope = Scope::new(producers.request("dockerfile.v0", &attrs, inputs));
        match dockerfile::build(self, attrs, inputs, &scope)? {
            Outcome::Built(result) => Ok(self.made(result, &scope, outer)),
            Outcome::Forward(forward) => self
                .gateway(&forward.attrs, inputs.clone(), outer)
                .map_err(|failure| forward.place(failure)),
        }
    }

    /// Runs the frontend that is an image.
    pub(crate) fn gateway(
        self: &Arc<Self>,
        attrs: &BTreeMap<String, String>,
        inputs: BTreeMap<String, pb::Definition>,
        outer: &Arc<Scope>,
    ) -> Result<FrontendResult, Failure> {
        let producers = self.produced.producers();
        let scope = Scope::new(producers.request("gateway.v0", attrs, &inputs));
        let result = frontend_image::run(self, &scope, attrs, inputs)?;
        Ok(self.made(result, &scope, outer))
    }

    /// Notes for what request a result was made.
    fn made(
        &self,
        result: FrontendResult,
        scope: &Arc<Scope>,
        outer: &Arc<Scope>,
    ) -> FrontendResult {
        self.assign(&result, scope);
        outer.add(scope);
        for tree in result.trees.all() {
            let sources = Sources::default();
            let record = self.request_with_root(scope, &sources).record(&sources);
            self.produced.add(&tree.graph, record);
        }
        result
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

    /// Returns the trees by the names of their platforms; that of a single one is empty.
    pub(crate) fn named(&self) -> Vec<(&str, &Arc<Tree>)> {
        match self {
            Self::One(tree) => tree.iter().map(|tree| ("", tree)).collect(),
            Self::ByPlatform(trees) => {
                let named = trees.iter();
                named
                    .filter_map(|(id, tree)| Some((id.as_str(), tree.as_ref()?)))
                    .collect()
            }
        }
    }

    /// Returns the graphs of exported trees, in their order.
    pub(crate) fn in_order(&self, exported: &[ExportTree]) -> Vec<Option<Arc<Graph>>> {
        let graph = |tree: &Option<Arc<Tree>>| tree.as_ref().map(|tree| Arc::clone(&tree.graph));
        match self {
            Self::One(tree) => vec![graph(tree)],
            Self::ByPlatform(trees) => exported
                .iter()
                .map(|exported| {
                    let platform = exported.platform.normalized();
                    let own = trees.iter().find(|(id, _)| {
                        id.parse::<oci::Platform>()
                            .is_ok_and(|own| own.normalized() == platform)
                    });
                    own.and_then(|(_, tree)| graph(tree))
                })
                .collect(),
        }
    }
}

/// Returns a name that nothing else has.
pub(crate) fn new_id() -> String {
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
