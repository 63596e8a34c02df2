//! Turns a graph into vertices with keys.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use llb::{Graph, Op, Vertex, VertexId};
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
    /// Images by identifier and platform, as `key_of_image` writes them.
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
        let (operation, outside) =
            operation_key(context, vertex, &action, &inputs, staging).map_err(failed)?;
        let mut record_key = definition_of(&operation);
        let mut key = definition_of(&operation);
        for (number, (input, output)) in inputs.iter().enumerate() {
            // The content of a context is part of the operation's key already.
            if matches!(input.action, VertexAction::Context(_)) {
                continue;
            }
            let name = format!("input {number}");
            let output = (*output as u64).to_be_bytes();
            record_key = record_key
                .key(&name, &input.record_key)
                .part("output", &output);
            key = key.key(&name, &input.key).part("output", &output);
        }
        let forced = vertex.metadata().ignore_cache && !matches!(action, VertexAction::Context(_));
        if forced {
            key = key.part("without recorded results", &nonce);
        }
        // A context was shown when it was captured.
        let is_context = matches!(action, VertexAction::Context(_));
        let (shared, handle) = SharedVertex::announce(sink, shown(vertex, &inputs));
        works.push(Arc::new(VertexWork {
            key: key.finish(),
            record_key: record_key.finish(),
            operation,
            outside,
            name: name_of(vertex),
            handle,
            shared,
            inputs,
            action,
            forced,
            context: Arc::clone(context),
            shown: AtomicBool::new(is_context),
            notes: Mutex::default(),
            id: vertex.id(),
        }));
    }
    Ok(works)
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
    context: &StepContext,
    vertex: &Vertex,
    action: &VertexAction,
    inputs: &[(Arc<VertexWork>, usize)],
    staging: Staging,
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
        VertexAction::Operation(op) => {
            return operation_on_contexts(context, vertex, op, inputs, staging);
        }
    };
    Ok((key.finish(), outside))
}

/// Returns the key of an operation, with the content of the files it takes from contexts.
///
/// Files of a step that will run are copied here, at the start of the build, and hashed from the
/// copy: what changes in the directory from now on gets into neither the step nor its key.
fn operation_on_contexts(
    context: &StepContext,
    vertex: &Vertex,
    op: &Op,
    inputs: &[(Arc<VertexWork>, usize)],
    staging: Staging,
) -> Result<(Key, Vec<KeyPart>), EngineError> {
    let key_of = |contexts: &[(&ContextTree, Vec<Selection>)]| -> Result<_, EngineError> {
        let mut key = KeyBuilder::new("operation").key("operation", &vertex.operation_digest());
        let mut outside = Vec::new();
        for (tree, selections) in contexts {
            for selection in selections {
                let checksum = tree.checksum(selection)?;
                key = key.part("context files", &checksum);
                outside.push(KeyPart {
                    name: format!("files: {}", selection.path),
                    value: hex(&checksum),
                });
            }
        }
        Ok((key.finish(), outside))
    };
    let mut contexts = Vec::new();
    for (number, (input, _)) in inputs.iter().enumerate() {
        if let VertexAction::Context(tree) = &input.action {
            contexts.push((tree.as_ref(), selections_of(op, number)?));
        }
    }
    let stage = || -> Result<(), EngineError> {
        for (tree, selections) in &contexts {
            tree.stage(&context.shared, vertex.id(), selections)?;
        }
        Ok(())
    };
    if contexts.is_empty() {
        return key_of(&[]);
    }
    if staging == Staging::Never {
        return key_of(&contexts);
    }
    // Nothing is known of a new directory: copying it at once reads it once.
    if contexts.iter().any(|(tree, _)| tree.is_new()) {
        stage()?;
        return key_of(&contexts);
    }
    let (key, outside) = key_of(&contexts)?;
    if vertex.metadata().ignore_cache || !context.shared.store.knows_operation(&key)? {
        stage()?;
        return key_of(&contexts);
    }
    Ok((key, outside))
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
