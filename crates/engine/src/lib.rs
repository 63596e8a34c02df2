//! Binds graph, solver, store, sandbox and registry into builds.
//!
//! *Responsibility*: [`Engine::build`] takes a request and carries it out: Dockerfile, graph, keys,
//! sources, steps, exports. What it does on the way is told to a [`progress::Sink`].
//!
//! Programs of one's own find what they need in [`library`].
//!
//! *Not here*: arguments, terminals, exit codes.
//!
//! *Invariants*: a step runs only with its inputs whole and leased; a result is recorded only when
//! it is committed; nothing of a build that failed or was canceled stays but what was recorded.

#![forbid(unsafe_code)]

mod attest;
mod build;
mod cache;
mod cancel;
mod check;
mod client;
pub mod container;
mod context;
mod distribution;
mod driver;
mod engine;
mod error;
mod export;
pub mod forecast;
mod frontends;
mod graphs;
pub mod history;
pub mod images;
mod inspect;
mod keys;
pub mod library;
mod matching;
mod plan;
mod request;
mod sbom;
mod shared_vertex;
mod shell;
mod snapshot;
mod source;
mod staged;
mod step;
mod tree_container;
mod verify;
mod vertex;

pub use attest::{Attestation, AttestationContent, ProvenanceOf, Taken};
pub use build::BuildResult;
pub use cache::mounts::{MountsPlace, MovedMount};
pub use cancel::{Cancel, CancelGuard};
pub use client::{AgentAddress, BuildClient, LocalDirectory, LocalFiles, LocalFilter, UPLOAD_HOST};
pub use distribution::RegistryServer;
pub use engine::{Engine, EngineSettings};
pub use error::{Blame, BuildFailure, EngineError, StepFailure, chain, resolve_help, room_help};
pub use frontends::{FrontendCall, FrontendOutput, Frontends, RunFrontend, is_builtin_frontend};
pub use graphs::{
    Caches, ExportTree, FailedVertex, FoundImage, GraphFailure, GraphRequest, ImageLookup,
    KnownImages, Solved, SourceNow,
};
pub use inspect::Inspected;
pub use keys::KeyPart;
pub use library::become_helper_if_asked;
pub use request::{
    AnnotatedPart, Annotation, ArchiveOutput, BuildRequest, CaBundle, CacheMode, CachePlace,
    CacheSource, CacheTarget, Compression, ContainerEngine, Context, Destination, DockerfileSource,
    EngineDoor, IgnoreCache, ImageOutput, LayerOptions, Output, SecretSource, StepOptions,
};
pub use sandbox::{Limits, NetworkMode, Status as ProcessStatus};
pub use sbom::{SPDX, Scan};
pub use shell::StepState;
pub use source::main_context::looks_like_archive;
pub use tree_container::{
    TreeContainer, TreeContainerRequest, TreeMount, TreeProcess, TreeProcessRequest,
};
pub use verify::verify_layers;
