//! Lowers a Dockerfile to an LLB graph and an image configuration.
//!
//! *Responsibility.* Follows the stages of a Dockerfile from the target, expands their words, and turns instructions
//! into vertices and changes of the image config, as BuildKit's `dockerfile2llb` does. It does no
//! I/O: what must be known of base images is asked for as a list of [`Request`]s and comes in as [`Answers`].
//!
//! *Not here.* Parsing; looking images up; running anything; the layers of the image.
//!
//! *Invariants.* The same Dockerfile, options and answers give the same graph, byte for byte. Only stages the target
//! needs are asked for. An error carries the lines of the instruction it comes from.

#![forbid(unsafe_code)]

mod lowered;
mod options;
mod resolve;

pub use lowered::{ContextUse, Lowered, PlatformBuild, StageRole, StageSummary};
pub use options::{MainContext, NamedContext, NoCache, Options, ResolveMode};
pub use resolve::{Answers, ImageRequest, Request, ResolvedImage, SourceRequest};
