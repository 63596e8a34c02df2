//! What can be wrong with what is asked for.

/// Why an attestation cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttestError {
    #[error("invalid {name} {value:?} of {attestation}: {reason}")]
    Option {
        attestation: &'static str,
        name: String,
        value: String,
        reason: &'static str,
    },
    #[error("failed to parse {attestation}: {reason}")]
    Fields {
        attestation: String,
        reason: &'static str,
    },
    #[error("provenance materials are incomplete: what is taken from {} is not captured", names.join(", "))]
    Incomplete { names: Vec<String> },
}
