//! Pictures of Dockerfiles.
//!
//! *Responsibility*: the stages and steps of a Dockerfile as a [`Picture`], with what the target needs; its layout;
//! SVG, Mermaid and DOT.
//!
//! *Not here*: reading files; looking images up; any I/O at all. What a base image brings along (ONBUILD) is not in a
//! picture.
//!
//! *Invariants*
//! - The same input gives the same bytes.
//! - Every text is hostile: nothing in a name or an instruction becomes markup.
//! - Time and size grow with the Dockerfile, not with a power of it.

#![forbid(unsafe_code)]

mod escape;
mod layout;
mod picture;
mod stages;
mod svg;
mod text;

pub use picture::{Edge, EdgeKind, Node, NodeKind, Picture, Role, Row};
pub use stages::{StageOptions, UnknownTarget, stage_picture};
pub use svg::svg;
pub use text::{dot, mermaid};
