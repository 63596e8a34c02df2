//! Turns a graph into vertices with keys.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use llb::{Graph, Op, Vertex, VertexId};
use oci::Digest;
use progress::{Group, Sink};
use rootfs::checksum::Selection;
use solver::Class;
use store::Key;

use crate::EngineError;
use crate::context::{ContextTree, selections_of};
use crate::driver::Task;
use crate::keys::{KeyBuilder, KeyPart, hex};
use crate::shared_vertex::SharedVertex;
use crate::source::fetched::Fetched;
use crate::source::image::PinnedImage;
use crate::step::StepContext;
use crate::vertex::{VertexAction, VertexWork};

/// What a graph's sources were pinned to.
pub(crate) struct Pinned {
    /// Images by identifier and platform, as [`image_key`] writes them.
    pub(crate) images: BTreeMap<(String, String), PinnedImage>,
    /// Files behind URLs and repositories by vertex.
    pub(crate) fetched: BTreeMap<VertexId, Fetched>,
    /// Local directories by name.
    pub(crate) contexts: BTreeMap<String, Arc<ContextTree>>,
    /// Local directories by vertex, where one name may stand for several selections.
    pub(crate) directories: BTreeMap<VertexId, Arc<ContextTree>>,
}

/// Whether files of contexts are copied for steps that will run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Staging {
    Now,
    Never,
}

/// Makes the vertices of a graph, inputs first.
pub(crate) fn plan(
    graph: &Graph,
    pinned: &Pinned,
    context: &Arc<StepContext>,
    sink: &Sink,
) -> Result<Vec<Arc<VertexWork>>, (VertexId, EngineError)> {
    vertices(graph, pinned, context, sink, Staging::Now)
}

/// Makes the vertices of a graph to look at: nothing is copied, and they are never run.
pub(crate) fn preview(
    graph: &Graph,
    pinned: &Pinned,
    context: &Arc<StepContext>,
) -> Result<Vec<Arc<VertexWork>>, (VertexId, EngineError)> {
    vertices(graph, pinned, context, &Sink::discard(), Staging::Never)
}

fn vertices(
    graph: &Graph,
    pinned: &Pinned,
    context: &Arc<StepContext>,
    sink: &Sink,
    staging: Staging,
) -> Result<Vec<Arc<VertexWork>>, (VertexId, EngineError)> {
    let nonce = random();
    let mut works: Vec<Arc<VertexWork>> = Vec::with_capacity(graph.vertices().len());
    for vertex in graph.vertices() {
        let inputs: Vec<(Arc<VertexWork>, usize)> = vertex
            .inputs()
            .iter()
            .map(|edge| (Arc::clone(&works[edge.vertex]), edge.output))
            .collect();
        let failed = |error| (vertex.id(), error);
        let action = action_of(vertex, pinned).map_err(failed)?;
        let taken = taken_of_contexts(&action, &inputs).map_err(failed)?;
        let stage = || stage(context, vertex, &taken, &inputs).map_err(failed);
        let may_run = staging == Staging::Now && !taken.is_empty();
        // Nothing is known of a new directory: copying it at once reads it once.
        let at_once = may_run && taken.iter().any(|(tree, _)| tree.is_new());
        if at_once {
            stage()?;
        }
        let mut keys = Keys::of(vertex, &action, &inputs, &taken).map_err(failed)?;
        if may_run && !at_once {
            let recorded = || context.shared.store.find(&keys.record);
            let ignored = vertex.metadata().ignore_cache;
            if ignored || recorded().map_err(|error| failed(error.into()))?.is_none() {
                stage()?;
                keys = Keys::of(vertex, &action, &inputs, &taken).map_err(failed)?;
            }
        }
        let forced = vertex.metadata().ignore_cache && !matches!(action, VertexAction::Context(_));
        if forced {
            keys.identity = KeyBuilder::new("without recorded results")
                .key("key", &keys.identity)
                .part("nonce", &nonce)
                .finish();
        }
        // A context was shown when it was captured.
        let is_context = matches!(action, VertexAction::Context(_));
        let (shared, handle) = SharedVertex::announce(sink, shown(vertex, &inputs));
        works.push(Arc::new(VertexWork {
            key: keys.identity,
            record_key: keys.record,
            operation: keys.operation,
            outside: keys.outside,
            name: name_of(vertex),
            handle,
            shared,
            inputs,
            action,
            resources: vertex.metadata().linux_resources.clone(),
            forced,
            context: Arc::clone(context),
            shown: AtomicBool::new(is_context),
            notes: Mutex::default(),
            id: vertex.id(),
        }));
    }
    Ok(works)
}

/// By what a vertex is known.
struct Keys {
    /// What it does, with what it takes from outside the graph, which `outside` names.
    operation: Key,
    outside: Vec<KeyPart>,
    /// That and its inputs.
    record: Key,
    /// As `record`, of inputs whose recorded results do not count where they do not.
    identity: Key,
}

impl Keys {
    fn of(
        vertex: &Vertex,
        action: &VertexAction,
        inputs: &[(Arc<VertexWork>, usize)],
        taken: &[Taken<'_>],
    ) -> Result<Self, EngineError> {
        let (operation, outside) = operation_key(vertex, action, taken)?;
        let mut record = definition_of(&operation);
        let mut identity = definition_of(&operation);
        for (number, (input, output)) in inputs.iter().enumerate() {
            // The content of a context is part of the operation's key already.
            if matches!(input.action, VertexAction::Context(_)) {
                continue;
            }
            let name = format!("input {number}");
            let output = (*output as u64).to_be_bytes();
            record = record.key(&name, &input.record_key).part("output", &output);
            identity = identity.key(&name, &input.key).part("output", &output);
        }
        Ok(Self {
            operation,
            outside,
            record: record.finish(),
            identity: identity.finish(),
        })
    }
}

/// Begins the key of a vertex by what it does; that of one without inputs is complete.
pub(crate) fn definition_of(operation: &Key) -> KeyBuilder {
    KeyBuilder::new("definition").key("operation", operation)
}

/// Makes the driver's tasks of vertices; equal keys become one.
pub(crate) fn tasks(works: &[Arc<VertexWork>]) -> Vec<Task<VertexWork>> {
    let mut seen = HashMap::new();
    let mut tasks = Vec::with_capacity(works.len());
    for work in works {
        if seen.insert(work.key, ()).is_some() {
            continue;
        }
        let step = matches!(&work.action, VertexAction::Operation(Op::Exec(_)));
        tasks.push(Task {
            key: work.key,
            inputs: work.inputs.iter().map(|(input, _)| input.key).collect(),
            class: if step { Class::Step } else { Class::Free },
            work: Arc::clone(work),
        });
    }
    tasks
}

fn name_of(vertex: &Vertex) -> String {
    match vertex.metadata().name.as_str() {
        "" => vertex.op().kind().to_owned(),
        name => name.to_owned(),
    }
}

fn shown(vertex: &Vertex, inputs: &[(Arc<VertexWork>, usize)]) -> progress::Vertex {
    let mut shown = progress::Vertex::new(vertex.id().digest(), name_of(vertex));
    shown.inputs = inputs.iter().map(|(input, _)| input.id.digest()).collect();
    shown.group = vertex
        .metadata()
        .progress_group
        .as_ref()
        .map(|group| Group {
            id: group.id.clone(),
            name: group.name.clone(),
            weak: group.weak,
        });
    shown
}

fn action_of(vertex: &Vertex, pinned: &Pinned) -> Result<VertexAction, EngineError> {
    let Op::Source(source) = vertex.op() else {
        return Ok(VertexAction::Operation(vertex.op().clone()));
    };
    let missing = || EngineError::Graph(format!("the source {} was not pinned", source.identifier));
    if let Some(tree) = pinned.directories.get(&vertex.id()) {
        return Ok(VertexAction::Context(Arc::clone(tree)));
    }
    if let Some(name) = source.identifier.strip_prefix("local://") {
        let tree = pinned.contexts.get(name).ok_or_else(missing)?;
        return Ok(VertexAction::Context(Arc::clone(tree)));
    }
    if let Some(fetched) = pinned.fetched.get(&vertex.id()) {
        return Ok(VertexAction::Fetched(fetched.clone()));
    }
    let key = image_key(vertex);
    if let Some(image) = pinned.images.get(&key) {
        return Ok(VertexAction::Image(image.clone()));
    }
    match source.identifier.split_once("://") {
        Some(("docker-image" | "oci-layout", _)) => Err(missing()),
        _ => Err(EngineError::Unsupported(format!(
            "the source {}",
            source.identifier
        ))),
    }
}

/// Returns by what an image source is found in [`Pinned`].
pub(crate) fn image_key(vertex: &Vertex) -> (String, String) {
    let identifier = match vertex.op() {
        Op::Source(source) => source.identifier.clone(),
        _ => String::new(),
    };
    let platform = vertex
        .platform()
        .map(|platform| platform.normalized().to_string());
    (identifier, platform.unwrap_or_default())
}

/// Returns the key of what a vertex does, and what it takes from outside the graph by name.
fn operation_key(
    vertex: &Vertex,
    action: &VertexAction,
    taken: &[Taken<'_>],
) -> Result<(Key, Vec<KeyPart>), EngineError> {
    let named = |name: &str, value: String| {
        let name = name.to_owned();
        vec![KeyPart { name, value }]
    };
    let (key, outside) = match action {
        VertexAction::Image(image) => {
            // The config names all layers: by whatever name or index it came, it is the same image.
            let id = image.id.to_string();
            let key = KeyBuilder::new("image").part("config", id.as_bytes());
            (key, named("image", id))
        }
        VertexAction::Fetched(fetched) => {
            let (name, value) = fetched.content();
            return Ok((fetched.operation_key(), named(name, value)));
        }
        VertexAction::Context(tree) => {
            let key = KeyBuilder::new("context").part("capture", &tree.number().to_be_bytes());
            (key, Vec::new())
        }
        VertexAction::Operation(_) => return operation_on_contexts(vertex, taken),
    };
    Ok((key.finish(), outside))
}

/// A context, and what an operation takes of it.
type Taken<'a> = (&'a ContextTree, Vec<Selection>);

fn taken_of_contexts<'a>(
    action: &VertexAction,
    inputs: &'a [(Arc<VertexWork>, usize)],
) -> Result<Vec<Taken<'a>>, EngineError> {
    let VertexAction::Operation(op) = action else {
        return Ok(Vec::new());
    };
    let mut taken = Vec::new();
    for (number, (input, _)) in inputs.iter().enumerate() {
        if let VertexAction::Context(tree) = &input.action {
            taken.push((tree.as_ref(), selections_of(op, number)?));
        }
    }
    Ok(taken)
}

/// Copies the files of a step that may run, before anything else happens; they are hashed from the copy: what changes in the
/// directory from now on gets into neither the step nor its key.
fn stage(
    context: &StepContext,
    vertex: &Vertex,
    taken: &[Taken<'_>],
    inputs: &[(Arc<VertexWork>, usize)],
) -> Result<(), EngineError> {
    for (tree, selections) in taken {
        tree.stage(&context.shared, vertex, selections, || layers_below(inputs))?;
    }
    Ok(())
}

/// Returns the layers of all images that something is built upon.
fn layers_below(inputs: &[(Arc<VertexWork>, usize)]) -> BTreeSet<Digest> {
    let mut layers = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut next: Vec<&VertexWork> = inputs.iter().map(|(input, _)| input.as_ref()).collect();
    while let Some(work) = next.pop() {
        if !seen.insert(work.key) {
            continue;
        }
        if let VertexAction::Image(image) = &work.action {
            layers.extend(image.config.rootfs.diff_ids.iter().cloned());
        }
        next.extend(work.inputs.iter().map(|(input, _)| input.as_ref()));
    }
    layers
}

/// Returns the key of an operation, with the content of the files it takes from contexts.
fn operation_on_contexts(
    vertex: &Vertex,
    taken: &[Taken<'_>],
) -> Result<(Key, Vec<KeyPart>), EngineError> {
    let mut key = KeyBuilder::new("operation").key("operation", &vertex.operation_digest());
    let mut outside = Vec::new();
    for (tree, selections) in taken {
        let mut checksums = Vec::with_capacity(selections.len());
        for selection in selections {
            let checksum = tree.checksum(selection)?;
            key = key.part("context files", &checksum);
            outside.push(KeyPart {
                name: format!("files: {}", selection.path),
                value: hex(&checksum),
            });
            checksums.push(checksum);
        }
        tree.plan(vertex.id(), checksums);
    }
    Ok((key.finish(), outside))
}

/// Returns bytes that no other build has.
pub(crate) fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            // Kernels have had it since 3.17; what is left is a filter that forbids it.
            Err(_) => break,
        }
    }
    bytes
}
