//! What can be wrong with a graph or its wire form.

use crate::VertexId;

/// Why there is no graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LlbError {
    #[error("definition has {size} bytes, more than {limit}")]
    TooLarge { size: usize, limit: usize },
    #[error("definition has {count} vertices, more than {limit}")]
    TooMany { count: usize, limit: usize },
    #[error("{message} is cut off or malformed at byte {offset}")]
    Malformed {
        message: &'static str,
        offset: usize,
    },
    #[error("{message} holds text that is not UTF-8")]
    Text { message: &'static str },
    #[error("field {field} of {message} has wire type {wire_type}")]
    WireType {
        message: &'static str,
        field: u32,
        wire_type: u8,
    },
    #[error("{value} is not a valid {what}")]
    Value { what: &'static str, value: i64 },
    #[error("the last operation of the definition names {count} results, expected one")]
    Root { count: usize },
    #[error("vertex {position} has no operation, or one not known here")]
    NoOperation { position: usize },
    #[error("vertex {position} refers to {digest:?}, which is not in the definition")]
    MissingInput { position: usize, digest: String },
    #[error("vertex {position} depends on itself")]
    Cycle { position: usize },
    #[error("{kind} vertex {position} uses output {output} of a vertex that has {outputs}")]
    NoSuchOutput {
        kind: &'static str,
        position: usize,
        output: i64,
        outputs: usize,
    },
    #[error("{kind} vertex {position} uses its input {input} of {inputs}")]
    NoSuchInput {
        kind: &'static str,
        position: usize,
        input: i64,
        inputs: usize,
    },
    #[error("{kind} vertex {position} {problem}")]
    Invalid {
        kind: &'static str,
        position: usize,
        problem: &'static str,
    },
    #[error("a location of vertex {vertex} is in source file {source_file} of {count}")]
    NoSuchSource {
        vertex: VertexId,
        source_file: i64,
        count: usize,
    },
}
