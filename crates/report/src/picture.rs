//! What is drawn: stages with their steps, what they come from, and how they hang together.

/// A graph of stages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Picture {
    /// Stages in the order of the file, then what they come from.
    pub nodes: Vec<Node>,
    /// Each once; in the order of the steps that use them.
    pub edges: Vec<Edge>,
}

/// A stage, or something a stage takes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub kind: NodeKind,
    /// The stage's name, `stage-N` where it has none; an image's name as written.
    pub name: String,
    pub role: Role,
    /// The steps of a stage, its `FROM` first; none for anything else.
    pub rows: Vec<Row>,
}

/// What a node stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeKind {
    Stage,
    Image,
    /// The build context, or a named one.
    Context,
    /// A URL.
    Remote,
}

/// Whether a node is part of the build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Target,
    /// The target depends on it.
    Needed,
    /// Nothing of it is built.
    Skipped,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The instruction on one line.
    pub text: String,
    /// First and last line in the Dockerfile.
    pub lines: (usize, usize),
}

/// A step uses a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edge {
    /// A position in [`Picture::nodes`], as is `to`.
    pub from: usize,
    pub to: usize,
    /// The step in the node it leads to.
    pub row: usize,
    pub kind: EdgeKind,
}

/// How a step uses a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EdgeKind {
    /// `FROM`
    Base,
    /// `COPY`, `ADD`
    Copy,
    /// `RUN --mount`
    Mount,
}

impl Picture {
    /// Returns whether the build takes this way.
    pub fn is_needed(&self, edge: &Edge) -> bool {
        self.nodes[edge.to].role != Role::Skipped
    }
}
