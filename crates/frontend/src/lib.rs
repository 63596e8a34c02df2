//! Lowers a Dockerfile to an LLB graph and an image configuration.
//!
//! *Responsibility.* Follows the stages of a Dockerfile from the target, expands their words, and turns instructions
//! into vertices and changes of the image config, as BuildKit's `dockerfile2llb` does. A [`Lowering`] does no I/O: it
//! asks for what it must know of base images ([`Step::Resolve`]), all images at once, until it is done.
//!
//! *Not here.* Parsing; looking images up; running anything; the layers of the image.
//!
//! *Invariants.* The same Dockerfile, options and answers give the same graph, byte for byte. Only stages the target
//! needs are asked for. An error carries the lines of the instruction it comes from.

#![forbid(unsafe_code)]

mod dispatch;
mod error;
mod git;
mod lowered;
mod lowering;
mod name;
mod options;
mod owner;
mod pass;
mod path;
mod resolve;
mod state;
mod text;

pub use git::git_source;
pub use lowered::{ContextUse, Lowered, PlatformBuild, ScanTarget, StageRole, StageSummary};
pub use lowering::{Lowering, Step};
pub use options::{MainContext, NamedContext, NoCache, Options, ResolveMode, is_true};
pub use pass::context::context_source;
pub use resolve::{Answers, ImageRequest, Request, ResolvedImage, SourceRequest, Unresolved};
