//! What goes wrong, and how it is told to clients.

use std::panic::Location;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard_buildkit_proto::google::protobuf::Any;
use bollard_buildkit_proto::google::rpc;
use dockerfile::Diagnostic;
use engine::{EngineError, FailedVertex, GraphFailure};
use prost::Message;
use serde_json::{Value, json};
use tonic::{Code, Status};

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    #[error("invalid address {address:?}: {reason}")]
    Address { address: String, reason: String },
    #[error("failed to {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("failed to listen on {address}")]
    Listen {
        address: String,
        source: std::io::Error,
    },
    #[error("{} cannot be used for TLS: {reason}", path.display())]
    Tls { path: PathBuf, reason: String },
    #[error(
        "{address} is open to other machines, and does not ask who they are: give --tlscert, --tlskey and --tlscacert, or listen on 127.0.0.1, or ask for it with --allow-unprotected-tcp"
    )]
    Unprotected { address: String },
    #[error("no socket was passed: LISTEN_FDS and LISTEN_PID are not set for this process")]
    NothingPassed,
    #[error("failed to start the runtime")]
    Runtime { source: std::io::Error },
    #[error("the server failed")]
    Transport { source: tonic::transport::Error },
    #[error("invalid configuration {}: {reason}", path.display())]
    Config { path: PathBuf, reason: String },
}

/// A failed call: its words, and the places in files that it is about.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
    /// As clients know them: type and JSON.
    details: Vec<(String, Value)>,
    /// Where in the program it came up, and what it was passed through.
    places: Vec<&'static Location<'static>>,
}

/// Lines of a file.
pub(crate) struct Place {
    pub(crate) filename: String,
    pub(crate) data: Vec<u8>,
    /// Pairs of the first and the last.
    pub(crate) lines: Vec<(u32, u32)>,
}

/// The kinds of typed errors BuildKit's clients know.
const TYPES: &str = "github.com/moby/buildkit/";

impl Failure {
    #[track_caller]
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: Vec::new(),
            places: vec![Location::caller()],
        }
    }

    /// A failure without a class, as most of the reference's are.
    #[track_caller]
    pub(crate) fn unknown(message: impl Into<String>) -> Self {
        Self::new(Code::Unknown, message)
    }

    #[track_caller]
    pub(crate) fn unsupported(what: impl std::fmt::Display) -> Self {
        Self::new(Code::Unimplemented, format!("{what} is not supported"))
    }

    /// Puts words before the message.
    #[must_use]
    #[track_caller]
    pub(crate) fn context(mut self, words: &str) -> Self {
        self.places.push(Location::caller());
        self.message = format!("{words}: {}", self.message);
        self
    }

    /// Adds a place in a source file. Lines and characters are pairs, first and last.
    #[must_use]
    pub(crate) fn with_source(
        mut self,
        filename: &str,
        language: &str,
        data: &[u8],
        ranges: &[llb::Range],
    ) -> Self {
        let ranges: Vec<Value> = ranges.iter().map(range).collect();
        self.details.push((
            format!("{TYPES}errdefs.Source+json"),
            json!({
                "info": {
                    "filename": filename,
                    "data": STANDARD.encode(data),
                    "language": language,
                    // Clients take it for granted, and only show it.
                    "definition": {},
                },
                "ranges": ranges,
            }),
        ));
        self
    }

    /// Returns the places in files that it is about.
    pub(crate) fn sources(&self) -> impl Iterator<Item = Place> {
        let details = self.details.iter();
        let sources = details.filter(|(kind, _)| kind.ends_with("errdefs.Source+json"));
        sources.map(|(_, value)| {
            let line = |range: &Value, end: &str| range[end]["line"].as_u64().unwrap_or(0) as u32;
            let ranges = value["ranges"].as_array().into_iter().flatten();
            Place {
                filename: value["info"]["filename"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
                data: value["info"]["data"]
                    .as_str()
                    .and_then(|data| STANDARD.decode(data).ok())
                    .unwrap_or_default(),
                lines: ranges
                    .map(|range| (line(range, "start"), line(range, "end")))
                    .collect(),
            }
        })
    }

    /// Tells whether it says where in a file it lies.
    pub(crate) fn has_source(&self) -> bool {
        let mut kinds = self.details.iter().map(|(kind, _)| kind);
        kinds.any(|kind| kind.ends_with("errdefs.Source+json"))
    }

    #[must_use]
    pub(crate) fn with_detail(mut self, kind: &str, value: Value) -> Self {
        self.details.push((format!("{TYPES}{kind}"), value));
        self
    }

    /// Makes the failure of what is wrong with a Dockerfile.
    #[track_caller]
    pub(crate) fn of_dockerfile(name: &str, data: &[u8], diagnostics: &[Diagnostic]) -> Self {
        let Some(first) = diagnostics.first() else {
            return Self::unknown("the Dockerfile is invalid");
        };
        let ranges: Vec<llb::Range> = first
            .lines
            .iter()
            .map(|lines| llb::Range::lines(lines.first as u32, lines.last as u32))
            .collect();
        let failure = Self::unknown(first.full_message());
        match ranges.is_empty() {
            true => failure,
            false => failure.with_source(name, "Dockerfile", data, &ranges),
        }
    }

    #[track_caller]
    pub(crate) fn of_engine(error: &EngineError) -> Self {
        let code = match error {
            EngineError::Canceled => Code::Cancelled,
            EngineError::Unsupported(_) => Code::Unimplemented,
            _ => Code::Unknown,
        };
        let message = match error {
            EngineError::Canceled => "context canceled".to_owned(),
            EngineError::Unsupported(what) => format!("{what} is not supported"),
            error => engine::chain(error),
        };
        Self::new(code, message)
    }

    #[track_caller]
    pub(crate) fn of_graph(failure: &GraphFailure) -> Self {
        match failure.failed.first() {
            None => Self::new(Code::Internal, "the build failed, and nothing says why"),
            Some(failed) => Self::of_vertex(failed),
        }
    }

    #[track_caller]
    fn of_vertex(failed: &FailedVertex) -> Self {
        let mut told = Self::of_engine(&failed.error);
        if let EngineError::Step {
            command, ending, ..
        } = &*failed.error
        {
            told.message = format!("process {command:?} did not complete successfully: {ending}");
        }
        if let Some(digest) = &failed.digest {
            told = told.with_detail("errdefs.Vertex+json", json!({"digest": digest.to_string()}));
        }
        for (file, ranges) in &failed.locations {
            told = told.with_source(&file.filename, &file.language, &file.data, ranges);
        }
        told
    }

    /// Reads the failure that a client's own frontend came to.
    pub(crate) fn from_rpc(status: &rpc::Status) -> Self {
        let details = status.details.iter();
        Self {
            code: Code::from_i32(status.code),
            message: status.message.clone(),
            places: Vec::new(),
            details: details
                .filter_map(|any| {
                    Some((
                        any.type_url.clone(),
                        serde_json::from_slice(&any.value).ok()?,
                    ))
                })
                .collect(),
        }
    }

    pub(crate) fn to_rpc(&self) -> rpc::Status {
        rpc::Status {
            code: self.code as i32,
            message: self.message.clone(),
            details: self
                .details
                .iter()
                .chain(&self.stack())
                .map(|(kind, value)| Any {
                    type_url: kind.clone(),
                    value: value.to_string().into_bytes(),
                })
                .collect(),
        }
    }

    /// Returns the places as the stack that clients show when they are asked for all they know.
    fn stack(&self) -> Option<(String, Value)> {
        let frame = |place: &&Location<'_>| json!({"Name": "lapstrake", "File": place.file(), "Line": place.line()});
        let frames: Vec<Value> = self.places.iter().map(frame).collect();
        (!frames.is_empty()).then(|| {
            let stack = json!({
                "frames": frames,
                "cmdline": ["lapstrake", "serve"],
                "pid": std::process::id(),
                "version": concat!("v", env!("CARGO_PKG_VERSION")),
            });
            (format!("{TYPES}stack.Stack+json"), stack)
        })
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let details = failure.to_rpc().encode_to_vec();
        Status::with_details(failure.code, failure.message, details.into())
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::new(status.code(), status.message())
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::of_engine(&error)
    }
}

impl From<GraphFailure> for Failure {
    fn from(failure: GraphFailure) -> Self {
        Self::of_graph(&failure)
    }
}

fn range(range: &llb::Range) -> Value {
    let position = |position: &llb::Position| {
        let mut value = serde_json::Map::new();
        if position.line > 0 {
            value.insert("line".to_owned(), position.line.into());
        }
        if position.character > 0 {
            value.insert("character".to_owned(), position.character.into());
        }
        Value::Object(value)
    };
    json!({"start": position(&range.start), "end": position(&range.end)})
}
