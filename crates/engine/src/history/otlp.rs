//! A build as spans of OpenTelemetry, in the bytes that collectors take.
//!
//! The messages are those of opentelemetry-proto 1.x (`trace/v1/trace.proto`), as far as they are used here. Ids come
//! from the build's own, which is random: the same record gives the same spans.

use std::collections::BTreeMap;

use oci::{Digest, Timestamp};
use prost::Message;
use sha2::{Digest as _, Sha256};

use super::record::{
    BuildRecord, BuildStatus, StepOutcome, StepRecord, TransferRecord, nanoseconds_of,
};

/// The span that a build belongs to, as W3C's trace context names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceParent {
    trace: [u8; 16],
    span: [u8; 8],
    state: String,
    /// Whether who began the trace records it.
    pub is_sampled: bool,
}

impl TraceParent {
    /// Reads the values of `TRACEPARENT` and `TRACESTATE`; none for what is not valid, which starts a trace anew.
    pub fn parse(parent: &str, state: &str) -> Option<TraceParent> {
        let mut parts = parent.trim().split('-');
        let version = hexadecimal::<1>(parts.next()?)?[0];
        let (trace, span) = (hexadecimal(parts.next()?)?, hexadecimal(parts.next()?)?);
        let flags = hexadecimal::<1>(parts.next()?)?[0];
        // Later versions may say more behind it; the first says no more.
        let is_known = version != 0xff && (version > 0 || parts.next().is_none());
        (is_known && trace != [0; 16] && span != [0; 8]).then(|| TraceParent {
            trace,
            span,
            state: state.trim().to_owned(),
            is_sampled: flags & 1 == 1,
        })
    }
}

/// Reads exactly so many bytes in lower-case digits.
fn hexadecimal<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    let is_plain = |digit: &u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(digit);
    if digits.len() != 2 * N || !digits.iter().all(is_plain) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

/// Spans in one message: collectors refuse very large ones.
const MOST_SPANS: usize = 2048;

/// Returns a build as messages of the type `ExportTraceServiceRequest`: a span for the build, below it one for each
/// step that ran, below that one for each thing it moved. `resource` says what all of it comes from.
pub fn spans(
    record: &BuildRecord,
    parent: Option<&TraceParent>,
    resource: &[(String, String)],
) -> Vec<Vec<u8>> {
    let spans = all_spans(record, parent);
    let attributes: Vec<KeyValue> = resource
        .iter()
        .map(|(key, value)| attribute(key, Value::String(value.clone())))
        .collect();
    let message = |spans: &[Span]| {
        let scope = InstrumentationScope {
            name: "lapstrake".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource {
                    attributes: attributes.clone(),
                }),
                scope_spans: vec![ScopeSpans {
                    scope: Some(scope),
                    spans: spans.to_vec(),
                }],
            }],
        }
        .encode_to_vec()
    };
    spans.chunks(MOST_SPANS).map(message).collect()
}

fn all_spans(record: &BuildRecord, parent: Option<&TraceParent>) -> Vec<Span> {
    let ids = Ids::new(record, parent);
    let end = record.completed.unwrap_or(record.started);
    let mut spans = vec![build_span(record, parent, &ids, end)];
    let numbers: BTreeMap<&Digest, usize> = (0..)
        .zip(&record.steps)
        .filter(|(_, step)| step.started.is_some())
        .map(|(number, step)| (&step.vertex, number))
        .collect();
    for (number, step) in record.steps.iter().enumerate() {
        let Some(started) = step.started else {
            continue;
        };
        let id = ids.span(&format!("step {number}"));
        let needed = step.inputs.iter().filter_map(|input| numbers.get(input));
        let links = needed.map(|number| Link {
            trace_id: ids.trace.clone(),
            span_id: ids.span(&format!("step {number}")),
        });
        spans.push(Span {
            parent_span_id: ids.root.clone(),
            links: links.collect(),
            attributes: step_attributes(step),
            status: step_status(step),
            ..ids.begin(&id, &step.name, started, step.completed.unwrap_or(end))
        });
        for (place, transfer) in step.transfers.iter().enumerate() {
            if let Some(span) = transfer_span(transfer, &ids, &format!("{number}.{place}")) {
                spans.push(Span {
                    parent_span_id: id.clone(),
                    ..span
                });
            }
        }
    }
    spans
}

fn build_span(
    record: &BuildRecord,
    parent: Option<&TraceParent>,
    ids: &Ids,
    end: Timestamp,
) -> Span {
    let text = |name: &str, value: &str| attribute(name, Value::String(value.to_owned()));
    let mut attributes = vec![
        text("lapstrake.build.id", &record.id),
        text("lapstrake.build.context", &record.request.context),
        text("lapstrake.build.dockerfile", &record.request.dockerfile),
    ];
    if let Some(target) = &record.request.target {
        attributes.push(text("lapstrake.build.target", target));
    }
    for outcome in [StepOutcome::Ran, StepOutcome::Cached] {
        let steps = record.steps.iter().filter(|step| step.outcome == outcome);
        let name = format!("lapstrake.build.steps.{}", word(outcome));
        attributes.push(attribute(&name, Value::Int(steps.count() as i64)));
    }
    let status = match record.status {
        BuildStatus::Completed | BuildStatus::Running => None,
        BuildStatus::Canceled => Some(failed("canceled")),
        BuildStatus::Failed | BuildStatus::Killed => {
            let first = record.errors.first();
            Some(failed(
                first.map_or("the build failed", |error| &error.message),
            ))
        }
    };
    let name = format!("build {}", record.name);
    Span {
        parent_span_id: parent
            .map(|parent| parent.span.to_vec())
            .unwrap_or_default(),
        attributes,
        status,
        ..ids.begin(&ids.root, &name, record.started, end)
    }
}

fn transfer_span(transfer: &TransferRecord, ids: &Ids, place: &str) -> Option<Span> {
    let (from, to) = (transfer.started?, transfer.completed?);
    let id = ids.span(&format!("transfer {place}"));
    let bytes = i64::try_from(transfer.current).unwrap_or(i64::MAX);
    Some(Span {
        attributes: vec![attribute("lapstrake.transfer.bytes", Value::Int(bytes))],
        ..ids.begin(&id, &transfer.id, from, to)
    })
}

fn step_attributes(step: &StepRecord) -> Vec<KeyValue> {
    let text = |name: &str, value: String| attribute(name, Value::String(value));
    let count = |name: &str, value: u64| {
        attribute(name, Value::Int(i64::try_from(value).unwrap_or(i64::MAX)))
    };
    let mut attributes = vec![
        text("lapstrake.step.vertex", step.vertex.to_string()),
        text("lapstrake.step.kind", word(step.kind)),
        text("lapstrake.step.outcome", word(step.outcome)),
    ];
    if let Some(stage) = &step.stage {
        attributes.push(text("lapstrake.step.stage", stage.clone()));
    }
    if let Some((first, _)) = step.lines {
        attributes.push(count("code.line.number", first.into()));
    }
    if let Some(cached_by) = step.cached_by {
        attributes.push(text("lapstrake.step.cached_by", word(cached_by)));
    }
    if let Some(layer) = &step.layer {
        attributes.push(count("lapstrake.step.layer.bytes", layer.size));
    }
    if let Some(usage) = &step.usage {
        attributes.extend([
            count("lapstrake.step.cpu.user_us", usage.user),
            count("lapstrake.step.cpu.system_us", usage.system),
            count("lapstrake.step.memory.peak_bytes", usage.peak_memory),
            count("lapstrake.step.disk.read_bytes", usage.read),
            count("lapstrake.step.disk.written_bytes", usage.written),
        ]);
    }
    attributes
}

fn step_status(step: &StepRecord) -> Option<Status> {
    match step.outcome {
        StepOutcome::Failed => Some(failed(&step.error)),
        StepOutcome::Canceled => Some(failed("canceled")),
        StepOutcome::Ran | StepOutcome::Cached | StepOutcome::Skipped => None,
    }
}

/// Returns the word for a variant in the record.
fn word(value: impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

fn failed(message: &str) -> Status {
    Status {
        message: message.to_owned(),
        code: STATUS_ERROR,
    }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
    }
}

/// Makes the ids of one build's spans.
struct Ids {
    build: String,
    trace: Vec<u8>,
    root: Vec<u8>,
    state: String,
}

impl Ids {
    fn new(record: &BuildRecord, parent: Option<&TraceParent>) -> Ids {
        let mut ids = Ids {
            build: record.id.clone(),
            trace: Vec::new(),
            root: Vec::new(),
            state: parent
                .map(|parent| parent.state.clone())
                .unwrap_or_default(),
        };
        ids.trace = match parent {
            Some(parent) => parent.trace.to_vec(),
            None => ids.hash("trace")[..16].to_vec(),
        };
        ids.root = ids.span("build");
        ids
    }

    fn hash(&self, of: &str) -> [u8; 32] {
        Sha256::digest(format!("{}\n{of}", self.build)).into()
    }

    fn span(&self, of: &str) -> Vec<u8> {
        self.hash(of)[..8].to_vec()
    }

    fn begin(&self, id: &[u8], name: &str, from: Timestamp, to: Timestamp) -> Span {
        let start = nanoseconds_of(from);
        Span {
            trace_id: self.trace.clone(),
            span_id: id.to_vec(),
            trace_state: self.state.clone(),
            name: name.to_owned(),
            kind: KIND_INTERNAL,
            start_time_unix_nano: u64::try_from(start).unwrap_or(0),
            // A clock that was set back in between makes no span that ends before it begins.
            end_time_unix_nano: u64::try_from(nanoseconds_of(to).max(start)).unwrap_or(0),
            flags: SAMPLED,
            ..Span::default()
        }
    }
}

/// `SPAN_KIND_INTERNAL`.
const KIND_INTERNAL: i32 = 1;
/// `STATUS_CODE_ERROR`.
const STATUS_ERROR: i32 = 2;
/// The flag of W3C's trace context.
const SAMPLED: u32 = 1;

#[derive(Clone, PartialEq, Message)]
struct ExportTraceServiceRequest {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<InstrumentationScope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct InstrumentationScope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    trace_state: String,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, repeated, tag = "13")]
    links: Vec<Link>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
    #[prost(fixed32, tag = "16")]
    flags: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Link {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 3")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Value {
    #[prost(string, tag = "1")]
    String(String),
    #[prost(int64, tag = "3")]
    Int(i64),
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    /// Reads the messages back.
    fn decode(messages: &[Vec<u8>]) -> Vec<Span> {
        let requests = messages.iter().map(|message| {
            ExportTraceServiceRequest::decode(message.as_slice()).expect("a message")
        });
        requests
            .flat_map(|request| request.resource_spans)
            .flat_map(|of| of.scope_spans)
            .flat_map(|of| of.spans)
            .collect()
    }

    #[test]
    fn each_step_is_a_span_below_the_build_and_points_to_what_it_needs() {
        let steps = [
            testing::step("FROM a", &[], 1),
            testing::step("RUN b", &["FROM a"], 2),
        ];
        let record = testing::record("one", &steps);
        let spans = decode(&spans(&record, None, &[]));
        let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(names, ["build app", "FROM a", "RUN b"]);
        let (build, from, run) = (&spans[0], &spans[1], &spans[2]);
        assert!(build.parent_span_id.is_empty());
        assert_eq!(from.parent_span_id, build.span_id);
        assert_eq!(run.links[0].span_id, from.span_id);
        assert_eq!(run.end_time_unix_nano, 2_000_000_000);
        assert!(spans.iter().all(|span| span.trace_id == build.trace_id));
        assert_eq!((build.trace_id.len(), build.span_id.len()), (16, 8));
    }

    #[test]
    fn a_step_that_failed_has_its_error_as_status() {
        let step = StepRecord {
            outcome: StepOutcome::Failed,
            error: "exit code: 1".to_owned(),
            ..testing::step("RUN false", &[], 1)
        };
        let spans = decode(&spans(&testing::record("one", &[step]), None, &[]));
        let status = spans[1].status.as_ref().expect("a status");
        assert_eq!((status.code, status.message.as_str()), (2, "exit code: 1"));
    }

    #[test]
    fn a_build_of_many_steps_goes_in_several_messages() {
        let steps: Vec<StepRecord> = (0..5000)
            .map(|number| testing::step(&format!("RUN {number}"), &[], 1))
            .collect();
        let messages = spans(&testing::record("one", &steps), None, &[]);
        assert_eq!(messages.len(), 3);
        let mut ids: Vec<Vec<u8>> = decode(&messages)
            .into_iter()
            .map(|span| span.span_id)
            .collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 5001);
    }

    #[test]
    fn a_trace_parent_is_taken_over_and_anything_else_is_not() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parent = TraceParent::parse(text, "vendor=1").expect("the specification's own");
        assert!(parent.is_sampled);
        let record = testing::record("one", &[]);
        let spans = decode(&spans(&record, Some(&parent), &[]));
        assert_eq!(spans[0].trace_id[..2], [0x0a, 0xf7]);
        assert_eq!(spans[0].parent_span_id[..2], [0xb7, 0xad]);
        assert_eq!(spans[0].trace_state, "vendor=1");
        for text in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319\u{e9}-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceParent::parse(text, ""), None, "{text}");
        }
        let later = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more";
        assert!(
            !TraceParent::parse(later, "")
                .expect("a later version")
                .is_sampled
        );
    }
}
