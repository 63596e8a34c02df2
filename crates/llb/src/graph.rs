//! Graphs, and how they are made.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;

use oci::Platform;
use sha2::{Digest as _, Sha256};

use crate::{
    ActionInput, CacheSharing, ExecOp, LlbError, MergeOp, Metadata, MountKind, Op, SourceFile,
    encode,
};

/// The identity of a vertex: the SHA-256 of its canonical encoding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VertexId([u8; 32]);

impl VertexId {
    pub(crate) fn of(encoding: &[u8]) -> Self {
        Self(Sha256::digest(encoding).into())
    }

    pub(crate) fn with_unknown(self, unknown: &[u8]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(b"unknown fields of ");
        hasher.update(self.0);
        hasher.update(unknown);
        Self(hasher.finalize().into())
    }

    /// Reads `sha256:` and 64 digits in lower case.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digest: oci::Digest = text.parse().ok()?;
        if digest.algorithm() != oci::Algorithm::Sha256 {
            return None;
        }
        digest.to_hash().try_into().ok().map(Self)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the id as a content digest.
    pub fn digest(&self) -> oci::Digest {
        oci::Digest::from_sha256(self.0)
    }

    pub(crate) fn write_to(&self, text: &mut Vec<u8>) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        text.extend_from_slice(b"sha256:");
        for byte in self.0 {
            text.push(DIGITS[usize::from(byte >> 4)]);
            text.push(DIGITS[usize::from(byte & 15)]);
        }
    }
}

/// `sha256:` and the hash in hexadecimal.
impl fmt::Display for VertexId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::with_capacity(71);
        self.write_to(&mut text);
        formatter.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for VertexId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// A use of an output of a vertex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edge {
    /// Position in [`Graph::vertices`].
    pub vertex: usize,
    pub output: usize,
}

/// One node of the graph.
#[derive(Debug, Clone)]
pub struct Vertex {
    pub(crate) id: VertexId,
    pub(crate) op: Op,
    pub(crate) inputs: Vec<Edge>,
    pub(crate) platform: Option<Arc<Platform>>,
    pub(crate) constraints: Vec<String>,
    pub(crate) metadata: Metadata,
    pub(crate) foreign: Option<Arc<Foreign>>,
}

/// The wire form of a vertex that was decoded and is not what we would write.
#[derive(Debug, Default)]
pub(crate) struct Foreign {
    /// Empty where they are what we would write.
    pub(crate) bytes: Vec<u8>,
    /// The digests by which `bytes` names its inputs.
    pub(crate) links: Vec<VertexId>,
    /// Fields not known here, from all of `bytes`.
    pub(crate) unknown: Vec<u8>,
    /// Fields of the metadata not known here.
    pub(crate) unknown_metadata: Vec<u8>,
}

impl Vertex {
    pub fn id(&self) -> VertexId {
        self.id
    }

    pub fn op(&self) -> &Op {
        &self.op
    }

    /// Returns what the vertex uses. The vertices stand before this one.
    pub fn inputs(&self) -> &[Edge] {
        &self.inputs
    }

    /// Returns what a process runs on or an image is chosen for; `None` where it makes no difference.
    pub fn platform(&self) -> Option<&Platform> {
        self.platform.as_deref()
    }

    /// Returns filters for the worker that may run the vertex.
    pub fn constraints(&self) -> &[String] {
        &self.constraints
    }

    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Returns the SHA-256 of what the vertex does, whatever its inputs are.
    ///
    /// As in the reference, what only says by which way a step gets at something is no part of it: proxies,
    /// addresses of further hosts, which cache directory is mounted and who may use it at once.
    pub fn operation_digest(&self) -> [u8; 32] {
        let mut buffer = Vec::new();
        let (count, none) = (self.inputs.len(), std::iter::empty());
        let platform = self.platform.as_deref();
        let plain = match &self.op {
            Op::Exec(exec) if has_ways(exec) => Some(Op::Exec(Box::new(without_ways(exec)))),
            _ => None,
        };
        let op = plain.as_ref().unwrap_or(&self.op);
        encode::operation(&mut buffer, op, count, none, platform, &self.constraints);
        Sha256::digest(&buffer).into()
    }
}

fn has_ways(exec: &ExecOp) -> bool {
    exec.meta.proxy_env.is_some()
        || !exec.meta.extra_hosts.is_empty()
        || exec
            .mounts
            .iter()
            .any(|mount| matches!(mount.kind, MountKind::Cache { .. }))
}

/// Returns the step with nothing in it that only says by which way it gets at something.
fn without_ways(exec: &ExecOp) -> ExecOp {
    let mut exec = exec.clone();
    exec.meta.proxy_env = None;
    for host in &mut exec.meta.extra_hosts {
        host.ip.clear();
    }
    for mount in &mut exec.mounts {
        if let MountKind::Cache { id, sharing } = &mut mount.kind {
            id.clear();
            *sharing = CacheSharing::default();
        }
    }
    exec
}

/// A build. See the crate's invariants.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    pub(crate) vertices: Vec<Vertex>,
    pub(crate) root: Option<Edge>,
    pub(crate) sources: Vec<SourceFile>,
    /// Fields of a decoded definition not known here.
    pub(crate) unknown: Vec<u8>,
}

impl Graph {
    /// Returns the graph whose result is an empty tree.
    pub fn scratch() -> Self {
        Self::default()
    }

    /// Returns all vertices, inputs before their users.
    pub fn vertices(&self) -> &[Vertex] {
        &self.vertices
    }

    /// Returns the result of the build; `None` is an empty tree.
    pub fn root(&self) -> Option<Edge> {
        self.root
    }

    /// Returns the files the build was described in.
    pub fn sources(&self) -> &[SourceFile] {
        &self.sources
    }
}

/// An output of a draft, for use as an input of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Output {
    pub(crate) draft: usize,
    pub(crate) index: usize,
}

impl Output {
    /// Returns another output of the same vertex.
    #[must_use]
    pub fn at(self, index: usize) -> Self {
        Self { index, ..self }
    }
}

/// A vertex to be.
#[derive(Debug, Clone)]
pub struct Draft {
    pub op: Op,
    pub inputs: Vec<Output>,
    pub platform: Option<Arc<Platform>>,
    pub constraints: Vec<String>,
    pub metadata: Metadata,
}

impl Draft {
    pub fn new(op: Op, inputs: Vec<Output>) -> Self {
        Self {
            op,
            inputs,
            platform: None,
            constraints: Vec::new(),
            metadata: Metadata::default(),
        }
    }
}

/// Collects drafts and makes a graph of those that the root needs.
#[derive(Debug, Clone, Default)]
pub struct GraphBuilder {
    pub(crate) drafts: Vec<Pending>,
    pub(crate) sources: Vec<SourceFile>,
    /// Numbers of the files that were added, by a hash of what is in them.
    known: HashMap<u64, Vec<usize>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Pending {
    pub(crate) draft: Draft,
    pub(crate) foreign: Option<Arc<Foreign>>,
}

impl GraphBuilder {
    /// Adds a source file, unless it is there, and returns its number for [`crate::Location::source`].
    pub fn source(&mut self, file: SourceFile) -> usize {
        // Where it came from is written in more than one way.
        let parts = (&file.filename, &file.language, &file.data);
        let hash = self.known.hasher().hash_one(parts);
        let alike = self.known.entry(hash).or_default();
        let same = |known: &&usize| {
            let known = &self.sources[**known];
            (&known.filename, &known.language, &known.data) == parts
        };
        if let Some(known) = alike.iter().find(same).copied() {
            let definition = &mut self.sources[known].definition;
            *definition = definition.take().or(file.definition);
            return known;
        }
        alike.push(self.sources.len());
        self.sources.push(file);
        self.sources.len() - 1
    }

    /// Adds a vertex and returns its first output.
    pub fn add(&mut self, draft: Draft) -> Output {
        self.add_pending(Pending {
            draft,
            foreign: None,
        })
    }

    /// Returns a vertex to be, for what is known of it only later.
    pub fn draft_mut(&mut self, output: Output) -> &mut Draft {
        &mut self.drafts[output.draft].draft
    }

    /// Adds all vertices of a graph and returns its root; `None` is an empty tree.
    pub fn import(&mut self, graph: &Graph) -> Option<Output> {
        let files = graph.sources.iter().cloned();
        let sources: Vec<usize> = files.map(|file| self.source(file)).collect();
        let mut placed = Vec::with_capacity(graph.vertices.len());
        for vertex in &graph.vertices {
            let output = |edge: &Edge| -> Output {
                let output: Output = placed[edge.vertex];
                output.at(edge.output)
            };
            let inputs = vertex.inputs.iter().map(output).collect();
            let mut metadata = vertex.metadata.clone();
            for location in &mut metadata.locations {
                location.source = sources[location.source];
            }
            let draft = Draft {
                op: vertex.op.clone(),
                inputs,
                platform: vertex.platform.clone(),
                constraints: vertex.constraints.clone(),
                metadata,
            };
            placed.push(self.add_pending(Pending {
                draft,
                foreign: vertex.foreign.clone(),
            }));
        }
        graph.root.map(|edge| placed[edge.vertex].at(edge.output))
    }

    /// Lets all vertices that are there now use recorded results.
    pub fn heed_cache(&mut self) {
        for pending in &mut self.drafts {
            pending.draft.metadata.ignore_cache = false;
        }
    }

    pub(crate) fn add_pending(&mut self, pending: Pending) -> Output {
        self.drafts.push(pending);
        Output {
            draft: self.drafts.len() - 1,
            index: 0,
        }
    }

    /// Returns the graph of what `root` needs, equal vertices unified.
    ///
    /// # Errors
    ///
    /// If an op names an input or output that is not there, or is not complete.
    pub fn finish(self, root: Option<Output>) -> Result<Graph, LlbError> {
        let Self {
            drafts, sources, ..
        } = self;
        let Some(root) = root else {
            return Ok(Graph {
                sources,
                ..Graph::default()
            });
        };
        let mut assembly = Assembly {
            placed: vec![Place::Unseen; drafts.len()],
            by_id: HashMap::with_capacity(drafts.len()),
            vertices: Vec::with_capacity(drafts.len()),
            drafts,
            buffer: Vec::new(),
        };
        assembly.walk(root.draft)?;
        let edge = assembly.edge("root", root.draft, root)?;
        let graph = Graph {
            vertices: assembly.vertices,
            root: Some(edge),
            sources,
            unknown: Vec::new(),
        };
        graph.check_locations()?;
        Ok(graph)
    }
}

impl Graph {
    fn check_locations(&self) -> Result<(), LlbError> {
        for vertex in &self.vertices {
            for location in &vertex.metadata.locations {
                if location.source >= self.sources.len() {
                    return Err(LlbError::NoSuchSource {
                        vertex: vertex.id,
                        source_file: location.source as i64,
                        count: self.sources.len(),
                    });
                }
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Unseen,
    Open,
    At(usize),
}

/// Names an input once that an op uses twice: two drafts may turn out to be one vertex. As in the reference merges and
/// differences are left alone: there each input has its own meaning.
fn unify_inputs(op: &mut Op, inputs: &mut Vec<Edge>) {
    if inputs.len() < 2 || !matches!(op, Op::Exec(_) | Op::File(_)) {
        return;
    }
    let mut first = HashMap::with_capacity(inputs.len());
    let mut kept = Vec::with_capacity(inputs.len());
    let numbers: Vec<usize> = inputs
        .iter()
        .map(|edge| {
            *first.entry(*edge).or_insert_with(|| {
                kept.push(*edge);
                kept.len() - 1
            })
        })
        .collect();
    if kept.len() < inputs.len() {
        op.renumber_inputs(&numbers);
        *inputs = kept;
    }
}

/// A graph in the making: a walk from the root, inputs first.
struct Assembly {
    /// Those that are placed are empty.
    drafts: Vec<Pending>,
    placed: Vec<Place>,
    by_id: HashMap<VertexId, usize>,
    vertices: Vec<Vertex>,
    buffer: Vec<u8>,
}

impl Assembly {
    /// Places `root` and all it needs. Keeps its own stack: chains may be as long as the definition.
    fn walk(&mut self, root: usize) -> Result<(), LlbError> {
        let mut stack = vec![(root, 0)];
        while let Some((draft, next)) = stack.pop() {
            if let Place::At(_) = self.placed[draft] {
                continue;
            }
            self.placed[draft] = Place::Open;
            let inputs = &self.drafts[draft].draft.inputs;
            match inputs.get(next) {
                Some(input) => {
                    stack.push((draft, next + 1));
                    match self.placed.get(input.draft) {
                        Some(Place::Unseen) => stack.push((input.draft, 0)),
                        Some(Place::At(_)) => {}
                        Some(Place::Open) | None => {
                            return Err(LlbError::Cycle { position: draft });
                        }
                    }
                }
                None => self.place(draft)?,
            }
        }
        Ok(())
    }

    fn edge(&self, kind: &'static str, user: usize, output: Output) -> Result<Edge, LlbError> {
        let Place::At(vertex) = self.placed[output.draft] else {
            return Err(LlbError::Cycle { position: user });
        };
        let outputs = self.vertices[vertex].op.outputs();
        if output.index >= outputs {
            return Err(LlbError::NoSuchOutput {
                kind,
                position: user,
                output: output.index as i64,
                outputs,
            });
        }
        Ok(Edge {
            vertex,
            output: output.index,
        })
    }

    fn place(&mut self, position: usize) -> Result<(), LlbError> {
        let emptied = Pending {
            draft: Draft::new(Op::Merge(MergeOp::default()), Vec::new()),
            foreign: None,
        };
        let pending = std::mem::replace(&mut self.drafts[position], emptied);
        let Pending { mut draft, foreign } = pending;
        check(position, &draft.op, draft.inputs.len())?;
        let kind = draft.op.kind();
        let inputs = draft.inputs.iter();
        let mut inputs: Vec<Edge> = inputs
            .map(|input| self.edge(kind, position, *input))
            .collect::<Result<_, _>>()?;
        if foreign.is_none() {
            unify_inputs(&mut draft.op, &mut inputs);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let named = inputs
            .iter()
            .map(|edge| (self.vertices[edge.vertex].id, edge.output));
        let platform = draft.platform.as_deref();
        encode::operation(
            &mut buffer,
            &draft.op,
            inputs.len(),
            named,
            platform,
            &draft.constraints,
        );
        let mut id = VertexId::of(&buffer);
        self.buffer = buffer;
        if let Some(foreign) = foreign
            .as_ref()
            .filter(|foreign| !foreign.unknown.is_empty())
        {
            id = id.with_unknown(&foreign.unknown);
        }
        let at = match self.by_id.entry(id) {
            Entry::Occupied(known) => {
                self.vertices[*known.get()].metadata.merge(draft.metadata);
                *known.get()
            }
            Entry::Vacant(free) => {
                self.vertices.push(Vertex {
                    id,
                    op: draft.op,
                    inputs,
                    platform: draft.platform,
                    constraints: draft.constraints,
                    metadata: draft.metadata,
                    foreign,
                });
                *free.insert(self.vertices.len() - 1)
            }
        };
        self.placed[position] = Place::At(at);
        Ok(())
    }
}

/// Checks that an op is complete and that its numbers name what is there.
fn check(position: usize, op: &Op, inputs: usize) -> Result<(), LlbError> {
    let kind = op.kind();
    let invalid = |problem| {
        Err(LlbError::Invalid {
            kind,
            position,
            problem,
        })
    };
    let input = |number: Option<usize>| match number {
        Some(number) if number >= inputs => Err(LlbError::NoSuchInput {
            kind,
            position,
            input: number as i64,
            inputs,
        }),
        _ => Ok(()),
    };
    match op {
        Op::Source(source) if source.identifier.is_empty() => invalid("has no identifier"),
        Op::Source(_) if inputs != 0 => invalid("has inputs"),
        Op::Source(_) => Ok(()),
        Op::Exec(exec) => {
            if exec.meta.args.is_empty() {
                return invalid("has no arguments");
            }
            if !exec.mounts.iter().any(|mount| mount.dest == "/") {
                return invalid("has no root");
            }
            if !distinct(exec.mounts.iter().map(|mount| mount.output)) {
                return invalid("gives one output to two mounts");
            }
            if op.outputs() > exec.mounts.len() {
                return invalid("has an output beyond the number of its mounts");
            }
            exec.mounts.iter().try_for_each(|mount| input(mount.input))
        }
        Op::File(file) => {
            if file.actions.is_empty() {
                return invalid("has no actions");
            }
            if !distinct(file.actions.iter().map(|action| action.output)) {
                return invalid("gives one output to two actions");
            }
            if op.outputs() > file.actions.len() {
                return invalid("has an output beyond the number of its actions");
            }
            for (number, action) in file.actions.iter().enumerate() {
                for from in [action.input, action.secondary_input].into_iter().flatten() {
                    match from {
                        ActionInput::Vertex(from) => input(Some(from))?,
                        ActionInput::Action(from) if from >= number => {
                            return invalid("has an action that uses a later one");
                        }
                        ActionInput::Action(_) => {}
                    }
                }
                for from in action.action.names_from() {
                    input(Some(from))?;
                }
            }
            Ok(())
        }
        Op::Merge(merge) => merge.inputs.iter().try_for_each(|number| input(*number)),
        Op::Diff(diff) => input(diff.lower).and_then(|()| input(diff.upper)),
        Op::Build(build) => {
            input(build.builder)?;
            build.inputs.values().try_for_each(|number| input(*number))
        }
    }
}

fn distinct(outputs: impl Iterator<Item = Option<usize>>) -> bool {
    let mut seen: Vec<usize> = outputs.flatten().collect();
    let count = seen.len();
    seen.sort_unstable();
    seen.dedup();
    seen.len() == count
}
