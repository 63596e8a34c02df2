//! Tells a recorded build again, as the events it was told by.

use std::sync::Arc;

use oci::Timestamp;
use progress::{Event, Group, Log, Outcome, Status, Stream, Vertex, VertexState, Warning};

use super::History;
use super::record::{BuildRecord, StepOutcome, StepRecord, time_of};
use crate::EngineError;

impl History {
    /// Sends the events of a build, step by step in the order in which they began; `send` may end it with `false`.
    ///
    /// Logs are read as they are sent: a long one takes no memory.
    pub fn replay(
        &self,
        record: &BuildRecord,
        send: &mut dyn FnMut(Event) -> bool,
    ) -> Result<(), EngineError> {
        let mut steps: Vec<&StepRecord> = record.steps.iter().collect();
        steps.sort_by_key(|step| (step.started.is_none(), step.started));
        for step in steps {
            if !self.replay_step(record, step, send)? {
                return Ok(());
            }
        }
        for warning in &record.warnings {
            let vertex = record.steps.first().map(|step| step.vertex.clone());
            let Some(vertex) = vertex else { break };
            let warning = Warning {
                vertex,
                level: 1,
                short: warning.text.clone(),
                detail: Vec::new(),
                url: warning.url.clone(),
                source: None,
                ranges: Vec::new(),
            };
            if !send(Event::Warning(warning)) {
                break;
            }
        }
        Ok(())
    }

    /// Sends the events of one step; returns whether to go on.
    pub fn replay_step(
        &self,
        record: &BuildRecord,
        step: &StepRecord,
        send: &mut dyn FnMut(Event) -> bool,
    ) -> Result<bool, EngineError> {
        let vertex = Arc::new(Vertex {
            digest: step.vertex.clone(),
            name: step.name.clone(),
            inputs: step.inputs.clone(),
            group: step.group.as_ref().map(|group| Group {
                id: group.id.clone(),
                name: group.name.clone(),
                weak: group.weak,
            }),
        });
        let mut state = |state| {
            let vertex = Arc::clone(&vertex);
            send(Event::Vertex { vertex, state })
        };
        let Some(started) = step.started else {
            return Ok(state(VertexState::Waiting));
        };
        if !state(VertexState::Running { started }) {
            return Ok(false);
        }
        for part in &step.transfers {
            let status = Status {
                vertex: step.vertex.clone(),
                id: part.id.clone(),
                name: part.name.clone(),
                current: part.current,
                total: part.total,
                timestamp: part.completed.or(part.started).unwrap_or(started),
                started: part.started,
                completed: part.completed,
            };
            if !send(Event::Status(status)) {
                return Ok(false);
            }
        }
        // What a cached step printed when it ran belongs to that build, unless this one showed it meanwhile.
        if (step.outcome != StepOutcome::Cached || step.printed > 0)
            && let Some(log) = self.log(record, step)?
        {
            for piece in log {
                let piece = piece?;
                let log = Log {
                    vertex: step.vertex.clone(),
                    stream: match piece.stream {
                        2 => Stream::Stderr,
                        _ => Stream::Stdout,
                    },
                    data: piece.data.into(),
                    timestamp: time_of(piece.time),
                };
                if !send(Event::Log(log)) {
                    return Ok(false);
                }
            }
        }
        let Some(outcome) = outcome(step) else {
            return Ok(true);
        };
        let completed: Timestamp = step.completed.unwrap_or(started);
        let vertex = Arc::clone(&vertex);
        let state = VertexState::Completed {
            started,
            completed,
            outcome,
        };
        Ok(send(Event::Vertex { vertex, state }))
    }
}

fn outcome(step: &StepRecord) -> Option<Outcome> {
    Some(match step.outcome {
        StepOutcome::Ran => Outcome::Done,
        StepOutcome::Cached => Outcome::Cached,
        StepOutcome::Canceled => Outcome::Canceled,
        StepOutcome::Failed => Outcome::Failed {
            error: step.error.clone(),
        },
        StepOutcome::Skipped => return None,
    })
}
