//! A build on a time axis, in the form that Perfetto and Chrome's `about:tracing` read.
//!
//! Trace Event Format: complete events (`X`) for steps, nestable asynchronous ones (`b`, `e`) for what they moved.
//! Times are microseconds since the start of the build, with three digits behind the point.

use oci::Timestamp;
use serde_json::{Value, json};

use super::record::{BuildRecord, StepOutcome, StepRecord, nanoseconds_of};

const PROCESS: u32 = 1;

/// Returns the steps of a build as a trace. Steps that ran at the same time lie in rows of their own.
pub fn trace(record: &BuildRecord) -> Value {
    let start = nanoseconds_of(record.started);
    let since = |time: Timestamp| (nanoseconds_of(time) - start).max(0);
    let mut timed: Vec<(i64, i64, &StepRecord)> = record
        .steps
        .iter()
        .filter_map(|step| Some((since(step.started?), since(step.completed?), step)))
        .collect();
    timed.sort_by(|a, b| (a.0, a.1, &a.2.name).cmp(&(b.0, b.1, &b.2.name)));

    let mut events = vec![json!({
        "ph": "M", "pid": PROCESS, "name": "process_name", "args": { "name": record.name },
    })];
    // When each row is free again.
    let mut rows: Vec<i64> = Vec::new();
    for (number, (from, to, step)) in timed.into_iter().enumerate() {
        let row = match rows.iter().position(|free| *free <= from) {
            Some(row) => row,
            None => {
                rows.push(0);
                rows.len() - 1
            }
        };
        rows[row] = to;
        events.push(json!({
            "ph": "X", "pid": PROCESS, "tid": row + 1,
            "ts": microseconds(from), "dur": microseconds(to - from),
            "name": step.name, "cat": step.kind, "args": details(step),
        }));
        for (place, transfer) in step.transfers.iter().enumerate() {
            let (Some(from), Some(to)) = (transfer.started, transfer.completed) else {
                continue;
            };
            for (phase, time) in [("b", from), ("e", to)] {
                events.push(json!({
                    "ph": phase, "pid": PROCESS, "tid": row + 1, "ts": microseconds(since(time)),
                    "id": format!("{number}.{place}"), "cat": "transfer", "name": transfer.id,
                    "args": { "bytes": transfer.current },
                }));
            }
        }
    }
    for row in 1..=rows.len() {
        events.push(json!({
            "ph": "M", "pid": PROCESS, "tid": row, "name": "thread_name",
            "args": { "name": format!("row {row}") },
        }));
    }
    json!({ "traceEvents": events, "displayTimeUnit": "ms", "otherData": { "build": record.id } })
}

fn microseconds(nanoseconds: i64) -> f64 {
    nanoseconds as f64 / 1000.0
}

fn details(step: &StepRecord) -> Value {
    let mut details = json!({ "outcome": step.outcome, "vertex": step.vertex });
    let mut add = |name: &str, value: Value| details[name] = value;
    if let Some(stage) = &step.stage {
        add("stage", json!(stage));
    }
    if let Some((first, _)) = step.lines {
        add("line", json!(first));
    }
    if let Some(cached_by) = step.cached_by {
        add("cached by", json!(cached_by));
    }
    if let Some(usage) = &step.usage {
        add("usage", json!(usage));
    }
    if let Some(layer) = &step.layer {
        add("layer bytes", json!(layer.size));
    }
    if step.outcome == StepOutcome::Failed {
        add("error", json!(step.error));
    }
    details
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[test]
    fn steps_at_the_same_time_lie_in_rows_of_their_own() {
        let steps = [("a", 0, 3), ("b", 1, 2), ("c", 2, 4)].map(|(name, from, to)| StepRecord {
            started: Some(Timestamp::from_unix(from, 0).unwrap()),
            ..testing::step(name, &[], to)
        });
        let record = testing::record("one", &steps);
        let trace = trace(&record);
        let placed: Vec<_> = trace["traceEvents"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|event| event["ph"] == "X")
            .map(|event| {
                let of = |name: &str| event[name].as_f64().unwrap();
                (
                    event["name"].as_str().unwrap(),
                    of("tid"),
                    of("ts"),
                    of("dur"),
                )
            })
            .collect();
        assert_eq!(
            placed,
            [
                ("a", 1.0, 0.0, 3e6),
                ("b", 2.0, 1e6, 1e6),
                ("c", 2.0, 2e6, 2e6)
            ]
        );
    }
}
