//! Attestations of what was built: what a graph took from outside, and statements about what it came to.

mod capture;
mod own;
mod statement;

use std::sync::Arc;

use ::attest::{Provenance, Request, Sources};
use llb::Graph;
use oci::Timestamp;
use serde_json::{Map, Value};

pub use capture::Taken;
pub(crate) use capture::capture;
pub(crate) use own::attest;
pub(crate) use statement::{beside_files, manifest_of};

/// Something to be said of a result, beside it.
#[derive(Debug, Clone)]
pub struct Attestation {
    /// The name of the file beside exported files.
    pub file: String,
    /// Not with archives and files.
    pub inline_only: bool,
    pub content: AttestationContent,
}

/// What is said.
#[derive(Debug, Clone)]
pub enum AttestationContent {
    /// How it was built: written once it is exported, when layers and the end are known.
    Provenance(Arc<ProvenanceOf>),
    /// A document that is there.
    Document {
        predicate_type: String,
        predicate: Value,
    },
}

/// A build whose provenance is wanted.
#[derive(Debug)]
pub struct ProvenanceOf {
    pub wanted: Provenance,
    pub request: Request,
    /// Tidied.
    pub sources: Sources,
    pub graph: Arc<Graph>,
    pub taken: Taken,
    pub invocation: String,
    pub started: Timestamp,
    pub frontend_version: Option<String>,
    pub environment: Arc<Map<String, Value>>,
}

impl Attestation {
    /// Makes the attestation of a build's provenance.
    pub fn of_provenance(provenance: ProvenanceOf) -> Self {
        Self {
            file: provenance.wanted.filename.clone(),
            inline_only: provenance.wanted.inline_only,
            content: AttestationContent::Provenance(Arc::new(provenance)),
        }
    }
}
