//! Events of a build in BuildKit's shapes.

use std::sync::Arc;

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::{
    StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning,
};
use bollard_buildkit_proto::pb;
use progress::{Event, Outcome, VertexState};

/// Bytes of logs in one message; clients take four million in all.
const MOST_LOGS: usize = 1 << 20;
/// Parts in one message.
const MOST_PARTS: usize = 512;

pub(crate) fn timestamp(time: oci::Timestamp) -> Timestamp {
    Timestamp {
        seconds: time.unix_seconds(),
        nanos: time.nanoseconds() as i32,
    }
}

/// Returns one event as a status.
pub(crate) fn of_event(event: &Event) -> StatusResponse {
    let mut response = StatusResponse::default();
    match event {
        Event::Vertex { vertex, state } => response.vertexes.push(of_vertex(vertex, state)),
        Event::Status(part) => response.statuses.push(VertexStatus {
            id: part.id.clone(),
            vertex: part.vertex.to_string(),
            name: part.name.clone(),
            current: part.current as i64,
            total: part.total as i64,
            timestamp: Some(timestamp(part.timestamp)),
            started: part.started.map(timestamp),
            completed: part.completed.map(timestamp),
        }),
        Event::Log(log) => response.logs.push(VertexLog {
            vertex: log.vertex.to_string(),
            timestamp: Some(timestamp(log.timestamp)),
            stream: i64::from(log.stream.number()),
            msg: log.data.to_vec(),
        }),
        Event::Warning(warning) => response.warnings.push(VertexWarning {
            vertex: warning.vertex.to_string(),
            level: i64::from(warning.level),
            short: warning.short.clone().into_bytes(),
            detail: warning
                .detail
                .iter()
                .map(|line| line.clone().into_bytes())
                .collect(),
            url: warning.url.clone(),
            info: warning.source.as_ref().map(|source| pb::SourceInfo {
                filename: source.filename.clone(),
                data: source.data.clone(),
                definition: None,
                language: source.language.clone(),
            }),
            ranges: warning.ranges.iter().map(of_range).collect(),
        }),
    }
    response
}

fn of_range(range: &progress::Range) -> pb::Range {
    let position = |position: progress::Position| pb::Position {
        line: position.line as i32,
        character: position.character as i32,
    };
    pb::Range {
        start: Some(position(range.start)),
        end: Some(position(range.end)),
    }
}

fn of_vertex(vertex: &progress::Vertex, state: &VertexState) -> Vertex {
    let mut told = Vertex {
        digest: vertex.digest.to_string(),
        inputs: vertex.inputs.iter().map(ToString::to_string).collect(),
        name: vertex.name.clone(),
        progress_group: vertex.group.as_ref().map(|group| pb::ProgressGroup {
            id: group.id.clone(),
            name: group.name.clone(),
            weak: group.weak,
        }),
        ..Vertex::default()
    };
    match state {
        VertexState::Waiting => {}
        VertexState::Running { started } => told.started = Some(timestamp(*started)),
        VertexState::Completed {
            started,
            completed,
            outcome,
        } => {
            told.started = Some(timestamp(*started));
            told.completed = Some(timestamp(*completed));
            match outcome {
                Outcome::Done => {}
                Outcome::Cached => told.cached = true,
                Outcome::Failed { error } => told.error.clone_from(error),
                Outcome::Canceled => "context canceled".clone_into(&mut told.error),
            }
        }
    }
    told
}

/// Returns statuses as few messages, none of them large.
pub(crate) fn joined(events: &[Arc<StatusResponse>]) -> Vec<StatusResponse> {
    let mut messages = Vec::new();
    let mut message = StatusResponse::default();
    let (mut parts, mut logs) = (0, 0);
    for event in events {
        message.vertexes.extend(event.vertexes.iter().cloned());
        message.statuses.extend(event.statuses.iter().cloned());
        message.logs.extend(event.logs.iter().cloned());
        message.warnings.extend(event.warnings.iter().cloned());
        parts += 1;
        logs += event.logs.iter().map(|log| log.msg.len()).sum::<usize>();
        if parts >= MOST_PARTS || logs >= MOST_LOGS {
            messages.push(std::mem::take(&mut message));
            (parts, logs) = (0, 0);
        }
    }
    if parts > 0 {
        messages.push(message);
    }
    messages
}
