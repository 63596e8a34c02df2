//! Events in the JSON shape of BuildKit's solve status, one object a line.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci::{Digest, Timestamp};
use serde::{Serialize, Serializer};

use crate::{Event, Group, Outcome, Vertex, VertexState};

/// What BuildKit's clients write for a canceled vertex, and know it by.
const CANCELED: &str = "context canceled";

/// Returns an event as one line of `rawjson`, with its newline.
pub fn json_line(event: &Event) -> Vec<u8> {
    let mut line = status_json(std::slice::from_ref(event));
    line.push(b'\n');
    line
}

/// Returns several events as one solve status.
pub fn status_json(events: &[Event]) -> Vec<u8> {
    let mut status = SolveStatus::default();
    for event in events {
        match event {
            Event::Vertex { vertex, state } => status.vertexes.push(wire_vertex(vertex, state)),
            Event::Status(part) => status.statuses.push(WireStatus {
                id: &part.id,
                vertex: &part.vertex,
                name: &part.name,
                total: part.total,
                current: part.current,
                timestamp: part.timestamp,
                started: part.started,
                completed: part.completed,
            }),
            Event::Log(log) => status.logs.push(WireLog {
                vertex: &log.vertex,
                stream: log.stream.number(),
                data: Bytes(&log.data),
                timestamp: log.timestamp,
            }),
            Event::Warning(warning) => status.warnings.push(WireWarning {
                vertex: &warning.vertex,
                level: warning.level,
                short: Bytes(warning.short.as_bytes()),
                detail: warning
                    .detail
                    .iter()
                    .map(|line| Bytes(line.as_bytes()))
                    .collect(),
                url: &warning.url,
                source_info: warning.source.as_deref().map(|source| WireSource {
                    filename: &source.filename,
                    data: Bytes(&source.data),
                    language: &source.language,
                }),
                range: warning
                    .ranges
                    .iter()
                    .map(|range| WireRange {
                        start: position(range.start),
                        end: position(range.end),
                    })
                    .collect(),
            }),
        }
    }
    oci::json::compact(&status).expect("a status has only string keys")
}

fn wire_vertex<'a>(vertex: &'a Vertex, state: &'a VertexState) -> WireVertex<'a> {
    let (started, completed, outcome) = match state {
        VertexState::Waiting => (None, None, None),
        VertexState::Running { started } => (Some(*started), None, None),
        VertexState::Completed {
            started,
            completed,
            outcome,
        } => (Some(*started), Some(*completed), Some(outcome)),
    };
    WireVertex {
        digest: &vertex.digest,
        inputs: &vertex.inputs,
        name: &vertex.name,
        started,
        completed,
        cached: outcome == Some(&Outcome::Cached),
        error: match outcome {
            Some(Outcome::Failed { error }) => error,
            Some(Outcome::Canceled) => CANCELED,
            _ => "",
        },
        progress_group: vertex.group.as_ref().map(wire_group),
    }
}

fn wire_group(group: &Group) -> WireGroup<'_> {
    WireGroup {
        id: &group.id,
        name: &group.name,
        weak: group.weak,
    }
}

fn position(position: crate::Position) -> WirePosition {
    WirePosition {
        line: position.line,
        character: position.character,
    }
}

#[derive(Default, Serialize)]
struct SolveStatus<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vertexes: Vec<WireVertex<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    statuses: Vec<WireStatus<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logs: Vec<WireLog<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<WireWarning<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WireVertex<'a> {
    digest: &'a Digest,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    inputs: &'a [Digest],
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<Timestamp>,
    #[serde(skip_serializing_if = "is_false")]
    cached: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress_group: Option<WireGroup<'a>>,
}

#[derive(Serialize)]
struct WireGroup<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "is_false")]
    weak: bool,
}

#[derive(Serialize)]
struct WireStatus<'a> {
    id: &'a str,
    vertex: &'a Digest,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    total: u64,
    current: u64,
    timestamp: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<Timestamp>,
}

#[derive(Serialize)]
struct WireLog<'a> {
    vertex: &'a Digest,
    stream: u8,
    data: Bytes<'a>,
    timestamp: Timestamp,
}

#[derive(Serialize)]
struct WireWarning<'a> {
    vertex: &'a Digest,
    level: u8,
    #[serde(skip_serializing_if = "Bytes::is_empty")]
    short: Bytes<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    detail: Vec<Bytes<'a>>,
    #[serde(skip_serializing_if = "str::is_empty")]
    url: &'a str,
    #[serde(rename = "sourceInfo", skip_serializing_if = "Option::is_none")]
    source_info: Option<WireSource<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    range: Vec<WireRange>,
}

#[derive(Serialize)]
struct WireSource<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    filename: &'a str,
    #[serde(skip_serializing_if = "Bytes::is_empty")]
    data: Bytes<'a>,
    #[serde(skip_serializing_if = "str::is_empty")]
    language: &'a str,
}

#[derive(Serialize)]
struct WireRange {
    start: WirePosition,
    end: WirePosition,
}

#[derive(Serialize)]
struct WirePosition {
    #[serde(skip_serializing_if = "is_zero_place")]
    line: u32,
    #[serde(skip_serializing_if = "is_zero_place")]
    character: u32,
}

/// Bytes, in base64 as Go writes them.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0))
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

fn is_zero_place(value: &u32) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Log, Position, Range, SourceInfo, Status, Stream, Warning};
    use std::sync::Arc;

    fn check(event: Event, expect: &str) {
        let line = String::from_utf8(json_line(&event)).unwrap();
        let short = line.replace(Digest::sha256_of(b"v").as_str(), "V");
        assert_eq!(short, format!("{expect}\n"));
    }

    fn vertex(state: VertexState) -> Event {
        let digest = Digest::sha256_of(b"v");
        let group = Group {
            id: "g".to_owned(),
            name: "group".to_owned(),
            weak: false,
        };
        let vertex = Vertex {
            digest: digest.clone(),
            name: "a && b".to_owned(),
            inputs: vec![digest],
            group: Some(group),
        };
        Event::Vertex {
            vertex: Arc::new(vertex),
            state,
        }
    }

    const FIXED: &str = r#"{"vertexes":[{"digest":"V","inputs":["V"],"name":"a \u0026\u0026 b""#;

    #[test]
    fn a_vertex_tells_its_state() {
        let group = r#""progressGroup":{"id":"g","name":"group"}}]}"#;
        let started = Timestamp::EPOCH;
        let completed = Timestamp::from_unix(1, 500_000_000).unwrap();
        check(vertex(VertexState::Waiting), &format!("{FIXED},{group}"));
        check(
            vertex(VertexState::Running { started }),
            &format!(r#"{FIXED},"started":"1970-01-01T00:00:00Z",{group}"#),
        );
        for (outcome, shown) in [
            (Outcome::Done, ""),
            (Outcome::Cached, r#""cached":true,"#),
            (Outcome::Canceled, r#""error":"context canceled","#),
            (
                Outcome::Failed {
                    error: "no".to_owned(),
                },
                r#""error":"no","#,
            ),
        ] {
            check(
                vertex(VertexState::Completed {
                    started,
                    completed,
                    outcome,
                }),
                &format!(
                    r#"{FIXED},"started":"1970-01-01T00:00:00Z","completed":"1970-01-01T00:00:01.5Z",{shown}{group}"#
                ),
            );
        }
    }

    #[test]
    fn parts_logs_and_warnings_have_the_shape_of_buildkit() {
        let digest = Digest::sha256_of(b"v");
        check(
            Event::Status(Status {
                vertex: digest.clone(),
                id: "layer".to_owned(),
                name: "downloading".to_owned(),
                current: 0,
                total: 7,
                timestamp: Timestamp::EPOCH,
                started: Some(Timestamp::EPOCH),
                completed: None,
            }),
            r#"{"statuses":[{"id":"layer","vertex":"V","name":"downloading","total":7,"current":0,"timestamp":"1970-01-01T00:00:00Z","started":"1970-01-01T00:00:00Z"}]}"#,
        );
        check(
            Event::Log(Log {
                vertex: digest.clone(),
                stream: Stream::Stdout,
                data: Arc::from(*b"hi\n\xff"),
                timestamp: Timestamp::EPOCH,
            }),
            r#"{"logs":[{"vertex":"V","stream":1,"data":"aGkK/w==","timestamp":"1970-01-01T00:00:00Z"}]}"#,
        );
        let place = |line, character| Position { line, character };
        check(
            Event::Warning(Warning {
                vertex: digest,
                level: 1,
                short: "s".to_owned(),
                detail: vec!["d".to_owned()],
                url: String::new(),
                source: Some(Arc::new(SourceInfo {
                    filename: "Dockerfile".to_owned(),
                    data: b"FROM a".to_vec(),
                    language: "Dockerfile".to_owned(),
                })),
                ranges: vec![Range {
                    start: place(1, 0),
                    end: place(1, 6),
                }],
            }),
            r#"{"warnings":[{"vertex":"V","level":1,"short":"cw==","detail":["ZA=="],"sourceInfo":{"filename":"Dockerfile","data":"RlJPTSBh","language":"Dockerfile"},"range":[{"start":{"line":1},"end":{"line":1,"character":6}}]}]}"#,
        );
    }
}
