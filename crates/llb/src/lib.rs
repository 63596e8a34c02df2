//! The build graph: ops, vertices, canonical digests, BuildKit's LLB wire form.
//!
//! *Responsibility.* Holds a build as a graph of vertices ([`Graph`]); makes one of drafts ([`GraphBuilder`]) or of
//! BuildKit's `pb.Definition` ([`Graph::decode_definition`]); names every vertex by a digest; writes the wire form
//! ([`Graph::encode_definition`]) and a text for people and tests ([`Graph::dump`]).
//!
//! *Not here.* Execution, cache keys, anything of Dockerfiles.
//!
//! *Invariants.*
//! - A [`Graph`] is made only by validation: inputs stand before the vertices that use them, every number in an op
//!   names something that is there, everything is reachable from the root, no two vertices are equal.
//! - A [`VertexId`] is the SHA-256 of the vertex's canonical encoding: the bytes Go's deterministic encoder gives for
//!   `pb.Op` (fields by number, members of a oneof last, maps sorted), inputs named by their own ids. Metadata is no
//!   part of it.
//! - What came in wire form and is not changed goes out with the same bytes, unknown fields included. Unknown fields
//!   are part of the identity.
//! - Definitions are hostile until decoded: sizes are bounded and nothing recurses on them.

#![forbid(unsafe_code)]

pub mod attr;
mod build;
mod caps;
mod decode;
mod dump;
mod encode;
mod error;
mod graph;
mod metadata;
mod op;
mod wire;

pub use build::{ExecMount, ExecSpec, FileSpec, SecretMount, SshMount};
pub use error::LlbError;
pub use graph::{Draft, Edge, Graph, GraphBuilder, Output, Vertex, VertexId};
pub use metadata::{
    LinuxResources, Location, Metadata, Position, ProgressGroup, Range, SourceFile,
};
pub use op::{
    Action, ActionInput, BuildOp, CacheSharing, CdiDevice, ContentCache, Copy, CopyMode, DiffOp,
    ExecOp, FileAction, FileOp, HostIp, MakeDirectory, MakeFile, MergeOp, Meta, Mount, MountKind,
    NetworkMode, Op, Owner, ProxyEnv, Remove, SecretEnv, SecretFile, SecurityMode, SourceOp,
    Symlink, Ulimit, UserRef,
};
