//! Pictures of Dockerfiles, and pages about builds.
//!
//! *Responsibility*: the stages and steps of a Dockerfile as a [`Picture`], with what the target needs; its layout;
//! SVG, Mermaid and DOT. A recorded build as one page of HTML that needs nothing else ([`page`]).
//!
//! *Not here*: reading files; looking images up; any I/O at all. What a base image brings along (ONBUILD) is not in a
//! picture.
//!
//! *Invariants*
//! - The same input gives the same bytes.
//! - Every text is hostile: nothing in a name or an instruction becomes markup.
//! - Time and size grow with the Dockerfile, not with a power of it. A page says what it leaves out.
//! - A page asks no network for anything and runs no script but its own: its policy names that by its digest.

#![forbid(unsafe_code)]

mod escape;
mod layout;
mod log;
mod page;
mod picture;
mod stages;
mod svg;
mod text;
mod words;

pub use log::LogText;
pub use page::{Earlier, Facts, Image, ImageFile, ImageLayer, LayerContent, Page, page};
pub use picture::{Edge, EdgeKind, Node, NodeKind, Picture, Role, Row};
pub use stages::{StageOptions, UnknownTarget, stage_picture};
pub use svg::svg;
pub use text::{dot, mermaid};
