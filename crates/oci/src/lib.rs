//! OCI values: digest, descriptor, platform, image reference, manifest, index, config.
//!
//! *Responsibility*: the types that name and describe images, their parsing and validation, and the exact bytes in
//! which they are written (the shape Go's encoder gives them, so that what this builder writes can be compared with
//! what others write).
//!
//! *Not here*: network, files, compression, any choice of policy.
//!
//! *Invariants*
//! - A [`Digest`] is always well formed; a [`Reference`] is always normalized.
//! - A [`Parsed`] keeps the bytes it was read from: a document is never written again to be passed on.
//! - What a document holds beyond the known fields is kept (`other`) and written back in sorted order.
//! - No unordered map: writing a value twice gives the same bytes.

#![forbid(unsafe_code)]

mod config;
mod descriptor;
mod digest;
mod document;
pub mod json;
pub mod layout;
mod manifest;
pub mod media_type;
mod platform;
mod reference;
mod timestamp;
mod user_info;

pub use config::{ContainerConfig, Healthcheck, History, ImageConfig, RootFs};
pub use descriptor::Descriptor;
pub use digest::{Algorithm, Digest, DigestError, Digester};
pub use document::{Document, DocumentError, Parsed};
pub use manifest::{Index, Manifest};
pub use platform::{Platform, PlatformError, PlatformMatcher};
pub use reference::{Reference, ReferenceError};
pub use timestamp::{Timestamp, TimestampError};
pub use user_info::without_user_info;
