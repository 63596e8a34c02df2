//! Graphs that a client hands over, solved, read and exported piece by piece.

use std::collections::BTreeMap;
use std::sync::Arc;

use frontend::PlatformBuild;
use llb::{Graph, Op, SourceFile, VertexId, attr};
use oci::{Digest, ImageConfig, Platform, Reference};
use progress::{Outcome, Sink, Vertex};
use rootfs::Tree;
use solver::FailurePolicy;
use store::Layer;

use crate::attest::{self, Attestation, Taken};
use crate::build::Built;
use crate::cache::{Imports, export as export_cache};
use crate::client::{BuildClient, LocalDirectory, LocalFiles};
use crate::context::ContextTree;
use crate::export::{self, Course, Exported};
use crate::history::recorder::Passing;
use crate::plan::{self, Pinned};
use crate::request::{BuildRequest, CacheSource, CacheTarget};
use crate::snapshot::Snapshot;
use crate::source::fetched::{self, Fetched};
use crate::source::git_program::GitAccess;
use crate::source::http;
use crate::source::image::PinnedImage;
use crate::source::layout::LayoutPlace;
use crate::step::StepContext;
use crate::vertex::VertexWork;
use crate::{BuildResult, Cancel, Engine, EngineError};

/// How an image is looked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ImageLookup {
    /// In the registry; in the store if the registry cannot be reached, or if it has no such image for this client and the name
    /// was given to one here.
    #[default]
    RegistryFirst,
    /// In the registry alone.
    Registry,
    /// In the store, and in the registry if it is not there.
    StoreFirst,
}

/// An image that was found: what pins it, and its config as it came.
#[derive(Debug, Clone)]
pub struct FoundImage {
    pub digest: Digest,
    pub config: Arc<ImageConfig>,
    pub platform: Platform,
    /// The bytes of the config.
    pub raw_config: Vec<u8>,
    pinned: PinnedImage,
}

/// What a source is now.
#[derive(Debug, Clone)]
pub struct SourceNow {
    /// A digest, or the name of a commit.
    pub checksum: String,
    /// In seconds since 1970, of a file whose server says so.
    pub time: Option<i64>,
    /// The bytes of a commit.
    pub commit: Option<Vec<u8>>,
}

/// Images that were found while a graph was made, so that they need not be found again.
#[derive(Debug, Clone, Default)]
pub struct KnownImages(BTreeMap<(String, String), PinnedImage>);

impl KnownImages {
    /// Adds an image by the name it stands by in a graph.
    pub fn insert(&mut self, reference: &str, platform: &Platform, image: &FoundImage) {
        let name = crate::build::pinned_name(reference, &image.digest);
        let platform = platform.normalized().to_string();
        self.0.insert((name, platform), image.pinned.clone());
    }

    /// Adds an image of a layout by the name it stands by in a graph.
    pub fn insert_of_store(&mut self, reference: &str, platform: &Platform, image: &FoundImage) {
        let platform = platform.normalized().to_string();
        let name = format!("oci-layout://{reference}");
        self.0.insert((name, platform), image.pinned.clone());
    }

    pub(crate) fn of(images: BTreeMap<(String, String), PinnedImage>) -> Self {
        Self(images)
    }

    /// Adds all images of another set.
    pub fn extend(&mut self, other: &KnownImages) {
        let theirs = other.0.iter();
        self.0
            .extend(theirs.map(|(key, image)| (key.clone(), image.clone())));
    }
}

/// A graph to solve, for a client.
#[derive(Clone)]
pub struct GraphRequest {
    pub graph: Arc<Graph>,
    pub images: KnownImages,
    pub client: Arc<dyn BuildClient>,
    /// What the steps may do: `network.host`, `security.insecure`.
    pub entitlements: Vec<String>,
    /// Results of other machines.
    pub caches: Caches,
    /// The request of this machine that it belongs to, and the id of the build.
    pub part_of: Option<(Arc<BuildRequest>, String)>,
}

/// Caches of other machines that were read.
#[derive(Debug, Clone, Default)]
pub struct Caches(Arc<Imports>);

impl Caches {
    pub(crate) fn of(imports: Imports) -> Self {
        Self(Arc::new(imports))
    }
}

impl std::fmt::Debug for GraphRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GraphRequest").finish_non_exhaustive()
    }
}

/// The tree a graph came to. Its layers are held as long as this is.
#[derive(Debug, Clone, Default)]
pub struct Solved {
    layers: Vec<Layer>,
    taken: Taken,
}

impl Solved {
    /// Returns what the graph took from outside.
    pub fn taken(&self) -> &Taken {
        &self.taken
    }

    /// Returns what was done for it.
    pub(crate) fn works(&self) -> impl Iterator<Item = Arc<VertexWork>> {
        self.taken.works.iter().cloned()
    }

    pub(crate) fn into_layers(self) -> Vec<Layer> {
        self.layers
    }
}

/// One image, or tree, to export.
#[derive(Debug, Clone)]
pub struct ExportTree {
    pub platform: Platform,
    pub config: ImageConfig,
    pub tree: Solved,
    /// Time for all that is written, in seconds since 1970.
    pub epoch: Option<i64>,
    /// What is said of it beside it.
    pub attestations: Vec<Attestation>,
}

/// Why a graph was not solved.
#[derive(Debug)]
pub struct GraphFailure {
    /// What failed, at least one.
    pub failed: Vec<FailedVertex>,
}

/// A vertex that failed, or a failure at none.
#[derive(Debug, Clone)]
pub struct FailedVertex {
    pub digest: Option<Digest>,
    pub name: Option<String>,
    /// The files and ranges it comes from.
    pub locations: Vec<(SourceFile, Vec<llb::Range>)>,
    pub error: Arc<EngineError>,
}

impl From<EngineError> for GraphFailure {
    fn from(error: EngineError) -> Self {
        Self::at(None, error)
    }
}

impl GraphFailure {
    fn at(vertex: Option<(&Graph, VertexId)>, error: EngineError) -> Self {
        Self {
            failed: vec![FailedVertex::new(vertex, None, Arc::new(error))],
        }
    }
}

impl FailedVertex {
    fn new(
        vertex: Option<(&Graph, VertexId)>,
        name: Option<String>,
        error: Arc<EngineError>,
    ) -> Self {
        let locations = vertex.and_then(|(graph, id)| {
            let vertex = graph.vertices().iter().find(|vertex| vertex.id() == id)?;
            let places = vertex.metadata().locations.iter();
            let places = places.filter_map(|place| {
                let file = graph.sources().get(place.source)?.clone();
                Some((file, place.ranges.clone()))
            });
            Some(places.collect())
        });
        Self {
            digest: vertex.map(|(_, id)| id.digest()),
            name,
            locations: locations.unwrap_or_default(),
            error,
        }
    }
}

impl Engine {
    /// Finds the image of a name.
    pub fn find(
        &self,
        reference: &Reference,
        platform: &Platform,
        lookup: ImageLookup,
    ) -> Result<FoundImage, EngineError> {
        let resolve = |pull| self.shared.images.resolve(reference, platform, pull);
        let pinned = match lookup {
            ImageLookup::StoreFirst => resolve(false)?,
            ImageLookup::Registry => resolve(true)?,
            ImageLookup::RegistryFirst => match resolve(true) {
                Ok(image) => image,
                Err(error) => self.stand_in(reference, platform, error)?,
            },
        };
        Ok(FoundImage {
            digest: pinned.digest.clone(),
            config: Arc::clone(&pinned.config),
            platform: pinned.platform.clone(),
            raw_config: self.shared.store.blobs().read(&pinned.id)?,
            pinned,
        })
    }

    /// Returns the image of the store that counts where the registry has none.
    fn stand_in(
        &self,
        reference: &Reference,
        platform: &Platform,
        error: EngineError,
    ) -> Result<PinnedImage, EngineError> {
        let images = &self.shared.images;
        match &error {
            EngineError::Resolve { source, .. } if source.is_unreachable() => images
                .resolve(reference, platform, false)
                .map_err(|_| error),
            // What is here by the registry's name may have been pulled with the login of someone else; what was given that name
            // here was not.
            EngineError::Resolve { .. } => images.made_here(reference, platform)?.ok_or(error),
            _ => Err(error),
        }
    }

    /// Finds an image in a layout of a client, by the digest in its name; its blobs are in the store from now on.
    pub fn find_in_store(
        &self,
        client: &dyn BuildClient,
        store: &str,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<FoundImage, EngineError> {
        let digest = reference.digest().cloned().ok_or_else(|| {
            EngineError::Request(format!("{reference} in the layout {store} has no digest"))
        })?;
        let place = LayoutPlace::Client { client, store };
        let (shared, images) = (&self.shared, &self.shared.images);
        let pinned = images.resolve_layout(shared, place, reference, platform, &digest)?;
        Ok(FoundImage {
            digest,
            config: Arc::clone(&pinned.config),
            platform: pinned.platform.clone(),
            raw_config: self.shared.store.blobs().read(&pinned.id)?,
            pinned,
        })
    }

    /// Reads caches of other machines. One that cannot be read is told, and left out.
    pub fn read_caches(
        &self,
        sources: &[CacheSource],
        platforms: &[Platform],
        sink: &Sink,
    ) -> Caches {
        match sources.is_empty() {
            true => Caches::default(),
            false => Caches(Arc::new(Imports::load(
                &self.shared,
                sources,
                platforms,
                sink,
            ))),
        }
    }

    /// Writes caches of trees for other machines. One that cannot be written is told.
    pub fn write_caches(&self, trees: Vec<ExportTree>, targets: &[CacheTarget], sink: &Sink) {
        let works: Vec<_> = trees
            .iter()
            .flat_map(|tree| tree.tree.taken.works.iter().cloned())
            .collect();
        let epoch = trees.iter().find_map(|tree| tree.epoch);
        let built: Vec<Built> = trees.into_iter().map(ExportTree::into_built).collect();
        let _blobs = self.shared.store.hold_blobs();
        export_cache::export(&self.shared, targets, &works, &built, epoch, sink, None);
    }

    /// Solves a graph to the tree of its root.
    pub fn solve_graph(
        &self,
        request: &GraphRequest,
        sink: &Sink,
        cancel: &Cancel,
    ) -> Result<Solved, GraphFailure> {
        let graph = &request.graph;
        let Some(root) = graph.root() else {
            return Ok(Solved::default());
        };
        // Other processes that need a step of this graph follow what it prints while it runs.
        let recorder = Passing::new(&self.shared.store, sink);
        let sink = recorder.sink();
        let mut context = StepContext {
            log: recorder.id().to_owned(),
            entitlements: request.entitlements.clone(),
            client: Some(Arc::clone(&request.client)),
            cancel: cancel.clone(),
            imports: Arc::clone(&request.caches.0),
            ..StepContext::new(Arc::clone(&self.shared))
        };
        let mut driver = self.driver.clone();
        if let Some((part_of, id)) = &request.part_of {
            context.heed(part_of, id)?;
            driver = self.driver(part_of);
        }
        let context = Arc::new(context);
        let mut held = Vec::new();
        let mut pinned = Pinned {
            images: self.pin_images(request, sink)?,
            fetched: fetched::pin_all(&self.shared, &context.git_access(), None, graph, sink)
                .map_err(|(id, error)| GraphFailure::at(Some((graph, id)), error))?,
            contexts: BTreeMap::new(),
            directories: BTreeMap::new(),
        };
        self.take_uploads(request, &mut pinned, sink)?;
        pinned.directories = self.sync_directories(request, sink, &mut held)?;
        let works = plan::plan(graph, &pinned, &context, sink)
            .map_err(|(id, error)| GraphFailure::at(Some((graph, id)), planning(error)))?;
        let target = Arc::clone(&works[root.vertex]);
        let taken = attest::capture(graph, &works);
        let outputs = driver.solve(
            plan::tasks(&works),
            vec![target.key],
            FailurePolicy::Cancel,
            cancel,
        );
        pinned.directories.values().for_each(|tree| tree.remember());
        let outputs = outputs.map_err(|failed| GraphFailure {
            failed: failed
                .into_iter()
                .map(|failed| {
                    let vertex = failed.work.as_ref().map(|work| (&**graph, work.id));
                    let name = failed.work.as_ref().map(|work| work.name.clone());
                    let error = match &*failed.error {
                        EngineError::Files(rootfs::Error::NotFound { path }) => {
                            Arc::new(not_found(path))
                        }
                        _ => failed.error,
                    };
                    FailedVertex::new(vertex, name, error)
                })
                .collect(),
        })?;
        let Some(output) = outputs.first() else {
            return Ok(Solved::default());
        };
        let layers = match &output.outputs[root.output] {
            Snapshot::Layers(layers) => layers.clone(),
            Snapshot::Context(tree) => vec![context.materialize(tree)?],
        };
        Ok(Solved { layers, taken })
    }

    fn pin_images(
        &self,
        request: &GraphRequest,
        sink: &Sink,
    ) -> Result<BTreeMap<(String, String), PinnedImage>, GraphFailure> {
        let mut images = request.images.0.clone();
        for vertex in request.graph.vertices() {
            let Op::Source(source) = vertex.op() else {
                continue;
            };
            let in_layout = source.identifier.strip_prefix("oci-layout://");
            let in_registry = source.identifier.strip_prefix("docker-image://");
            let Some(name) = in_registry.or(in_layout) else {
                continue;
            };
            let key = plan::image_key(vertex);
            if images.contains_key(&key) {
                continue;
            }
            let failed = |error| GraphFailure::at(Some((&request.graph, vertex.id())), error);
            let reference = Reference::parse_normalized(name)
                .map_err(|error| failed(EngineError::Request(format!("{name}: {error}"))))?;
            let platform = vertex.platform().cloned().unwrap_or_else(Platform::host);
            let shown = shown_name(vertex, source);
            let mode = source.attrs.get(attr::IMAGE_RESOLVE_MODE);
            let lookup = ImageLookup::from_mode(mode.map_or("", String::as_str));
            let found = match in_layout {
                None => self.find(&reference, &platform, lookup),
                Some(_) => {
                    let store = source.attrs.get(attr::OCI_LAYOUT_STORE_ID);
                    let store = store
                        .cloned()
                        .unwrap_or_else(|| reference.path().to_owned());
                    self.find_in_store(&*request.client, &store, &reference, &platform)
                }
            };
            match found {
                Ok(image) => images.insert(key, image.pinned),
                Err(error) => {
                    let running = sink
                        .vertex(Vertex::new(vertex.id().digest(), shown))
                        .start();
                    running.complete(Outcome::Failed {
                        error: crate::error::chain(&error),
                    });
                    return Err(failed(error));
                }
            };
        }
        Ok(images)
    }

    fn take_uploads(
        &self,
        request: &GraphRequest,
        pinned: &mut Pinned,
        sink: &Sink,
    ) -> Result<(), GraphFailure> {
        for vertex in request.graph.vertices() {
            let Op::Source(source) = vertex.op() else {
                continue;
            };
            if !http::is_upload(source) {
                continue;
            }
            let shown = Vertex::new(vertex.id().digest(), shown_name(vertex, source));
            let running = sink.vertex(shown).start();
            let upload =
                |into: &mut dyn std::io::Write| request.client.upload(&source.identifier, into);
            match http::receive(&self.shared, source, upload) {
                Ok(file) => {
                    running.complete(Outcome::Done);
                    pinned.fetched.insert(vertex.id(), Fetched::Http(file));
                }
                Err(error) => {
                    running.complete(Outcome::Failed {
                        error: crate::error::chain(&error),
                    });
                    return Err(GraphFailure::at(Some((&request.graph, vertex.id())), error));
                }
            }
        }
        Ok(())
    }

    fn sync_directories(
        &self,
        request: &GraphRequest,
        sink: &Sink,
        held: &mut Vec<LocalDirectory>,
    ) -> Result<BTreeMap<VertexId, Arc<ContextTree>>, GraphFailure> {
        let mut trees = BTreeMap::new();
        for vertex in request.graph.vertices() {
            let Op::Source(source) = vertex.op() else {
                continue;
            };
            let Some(local) = source.identifier.strip_prefix("local://") else {
                continue;
            };
            let name = shown_name(vertex, source);
            let running = sink.vertex(Vertex::new(vertex.id().digest(), name)).start();
            let capture = |held: &mut Vec<LocalDirectory>| -> Result<ContextTree, EngineError> {
                let wanted = local_files(local, source)?;
                let directory = request.client.directory(&wanted, &running)?;
                let filter = directory.filter.clone().unwrap_or_default();
                let (include, exclude) = (&filter.include, &filter.exclude);
                let tree = ContextTree::capture_of(
                    &self.shared,
                    &directory.path,
                    (include, exclude),
                    true,
                )?;
                held.push(directory);
                Ok(tree)
            };
            match capture(held) {
                Ok(tree) => {
                    running.complete(Outcome::Done);
                    trees.insert(vertex.id(), Arc::new(tree));
                }
                Err(error) => {
                    running.complete(Outcome::Failed {
                        error: crate::error::chain(&error),
                    });
                    return Err(GraphFailure::at(Some((&request.graph, vertex.id())), error));
                }
            }
        }
        Ok(trees)
    }

    /// Finds out what a source is now; of a repository also the commit as git keeps it, if that is asked for.
    pub fn source_now(
        &self,
        source: &llb::SourceOp,
        name: &str,
        with_commit: bool,
        client: &Arc<dyn BuildClient>,
        cancel: &Cancel,
        sink: &Sink,
    ) -> Result<SourceNow, EngineError> {
        let running = sink.vertex(Vertex::named(name)).start();
        let access = GitAccess::default()
            .of_client(Some(Arc::clone(client)))
            .until(cancel);
        let found = Fetched::pin(&self.shared, &access, source, &running).and_then(|pinned| {
            let (time, commit) = match &pinned {
                Fetched::Http(_) => (pinned.time(&access, &running)?, None),
                Fetched::Git(tree) if with_commit => {
                    (None, Some(tree.commit_object(&access, &running)?))
                }
                Fetched::Git(_) => (None, None),
            };
            let checksum = pinned.content().1;
            Ok(SourceNow {
                checksum,
                time,
                commit,
            })
        });
        running.conclude(&found, |error| crate::error::chain(error));
        found
    }

    /// Returns the time of a source: a commit's, or that of a file behind a URL.
    pub fn source_time(
        &self,
        source: &llb::SourceOp,
        name: &str,
        client: &Arc<dyn BuildClient>,
        cancel: &Cancel,
        sink: &Sink,
    ) -> Result<Option<i64>, EngineError> {
        let running = sink.vertex(Vertex::named(name)).start();
        let access = GitAccess::default()
            .of_client(Some(Arc::clone(client)))
            .until(cancel);
        let pinned = Fetched::pin(&self.shared, &access, source, &running);
        let time = pinned.and_then(|pinned| pinned.own_time(&self.shared, &access, &running));
        running.conclude(&time, |error| crate::error::chain(error));
        time
    }

    /// Opens a solved tree for reading.
    pub fn open_tree(&self, solved: &Solved) -> Result<Option<Tree>, EngineError> {
        match solved.layers.is_empty() {
            true => Ok(None),
            false => self.shared.tree(&solved.layers).map(Some),
        }
    }

    /// Carries out the outputs of a request; of the request only outputs, names, annotations, the inline
    /// cache and time count.
    pub fn export(
        &self,
        trees: Vec<ExportTree>,
        multi_platform: bool,
        request: &BuildRequest,
        sink: &Sink,
        cancel: &Cancel,
    ) -> Result<BuildResult, EngineError> {
        let works: Vec<_> = trees
            .iter()
            .flat_map(|tree| tree.tree.taken.works.iter().cloned())
            .collect();
        let mut built: Vec<Built> = trees.into_iter().map(ExportTree::into_built).collect();
        let _blobs = self.shared.store.hold_blobs();
        let shared = &self.shared;
        for built in &mut built {
            let (targets, layers) = (&request.cache_to, &built.layers);
            built.inline = export_cache::inline_records(shared, targets, &works, layers)?;
        }
        let ahead = None;
        let course = Course { ahead, cancel };
        let exported = export::export(shared, request, &built, multi_platform, sink, course);
        let exported = exported.map_err(|error| match cancel.is_requested() {
            true => EngineError::Canceled,
            false => error,
        })?;
        let Exported {
            image,
            config,
            root,
            names,
        } = exported;
        Ok(BuildResult {
            image,
            config,
            descriptor: root,
            names,
            ..BuildResult::default()
        })
    }
}

impl ExportTree {
    pub(crate) fn into_built(self) -> Built {
        Built {
            build: PlatformBuild {
                platform: self.platform,
                graph: Graph::scratch(),
                config: self.config,
                base_config: None,
                epoch: self.epoch,
                ignore_cache: false,
                contexts: Vec::new(),
                scan_targets: Vec::new(),
                stages: Vec::new(),
            },
            layers: self.tree.layers,
            inline: Vec::new(),
            attestations: self.attestations,
        }
    }
}

impl ImageLookup {
    /// Reads a client's resolve mode.
    pub fn from_mode(mode: &str) -> Self {
        match mode {
            "pull" => Self::Registry,
            "local" => Self::StoreFirst,
            _ => Self::RegistryFirst,
        }
    }
}

fn shown_name(vertex: &llb::Vertex, source: &llb::SourceOp) -> String {
    match vertex.metadata().name.as_str() {
        "" => source.identifier.clone(),
        name => name.to_owned(),
    }
}

fn local_files(name: &str, source: &llb::SourceOp) -> Result<LocalFiles, EngineError> {
    let text = |name: &str| source.attrs.get(name).filter(|value| !value.is_empty());
    let list = |name: &str| match text(name) {
        None => Ok(Vec::new()),
        Some(json) => serde_json::from_str::<Vec<String>>(json).map_err(|error| {
            EngineError::Graph(format!(
                "{name} of {} is no list: {error}",
                source.identifier
            ))
        }),
    };
    Ok(LocalFiles {
        name: name.to_owned(),
        session: text(attr::LOCAL_SESSION_ID).cloned(),
        include_patterns: list(attr::INCLUDE_PATTERNS)?,
        exclude_patterns: list(attr::EXCLUDE_PATTERNS)?,
        follow_paths: list(attr::FOLLOW_PATHS)?,
        shared_key_hint: text(attr::SHARED_KEY_HINT).cloned().unwrap_or_default(),
        fresh: text(attr::LOCAL_DIFFER).is_some_and(|differ| differ == "none"),
    })
}

/// Says in the reference's words that a file is not there.
fn planning(error: EngineError) -> EngineError {
    match &error {
        EngineError::Files(rootfs::Error::NotFound { path }) => not_found(path),
        _ => error,
    }
}

fn not_found(path: &str) -> EngineError {
    EngineError::Request(format!(
        "failed to calculate checksum of ref: \"{path}\": not found"
    ))
}
