//! Attestations: provenance (SLSA v1 and v0.2) and the documents that tie statements to images.
//!
//! *Responsibility*: reads what a user asks for ([`Provenance`], [`Sbom`]); holds what is known of a build
//! ([`Sources`], [`Request`]); writes the predicate in BuildKit's form, in-toto statements, and the manifest that stands
//! beside an image in an index.
//!
//! *Not here*: I/O of any kind, running scanners, what a build uses: the engine tells.
//!
//! *Invariants*
//! - What is written depends on nothing but the arguments: no clock, no unordered map.
//! - No credentials of a URL are written.

#![forbid(unsafe_code)]

mod error;
mod manifest;
mod options;
mod predicate;
mod purl;
mod request;
mod sources;
mod statement;
mod steps;
mod url;

pub use error::AttestError;
pub use manifest::{AttestationManifest, attestation_manifest};
pub use options::{Mode, Provenance, Sbom, Version, fields};
pub use predicate::{Build, Layers, predicate};
pub use purl::{Package, package_url};
pub use request::{ConfigSource, Request, RequestRecord, filter_arguments};
pub use sources::{GitSource, HttpSource, ImageSource, SecretUse, Sources};
pub use statement::{SPDX, Statement, Subject};
pub use steps::step_numbers;
pub use url::without_credentials;
