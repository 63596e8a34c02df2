//! In-toto statements (in-toto attestation framework, v1).

use oci::Digest;
use serde_json::{Value, json};

use crate::sources::digest_set;

/// The predicate type of SPDX documents.
pub const SPDX: &str = "https://spdx.dev/Document";

/// What a statement speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub name: String,
    pub digest: Digest,
}

/// Something that is said of subjects.
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    pub predicate_type: String,
    pub subjects: Vec<Subject>,
    pub predicate: Value,
}

impl Statement {
    pub fn to_json(&self) -> Value {
        let subjects = self.subjects.iter();
        let subjects: Vec<Value> = subjects
            .map(|subject| json!({"name": subject.name, "digest": digest_set(&subject.digest)}))
            .collect();
        json!({
            "_type": "https://in-toto.io/Statement/v1",
            "predicateType": self.predicate_type,
            "subject": subjects,
            "predicate": self.predicate,
        })
    }
}
