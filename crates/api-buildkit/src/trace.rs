//! Traces: what a build did when, and what its client tells of its own time.
//!
//! Clients send their spans here (OpenTelemetry's `TraceService`). They are kept for the builds that carry the same
//! trace id, whose record has both, in the form that BuildKit's clients read: one JSON object a span.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::{BuildHistoryRecord, StatusResponse, Vertex};
use bytes::Bytes;
use oci::Digest;
use prost::Message as _;
use serde_json::{Value, json};
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tower::Service;

use crate::collector::{AsItCame, Collector};

/// Traces of clients that are kept, the last ones.
const MOST_TRACES: usize = 64;
/// Spans of one of them.
const MOST_SPANS: usize = 4096;
/// Bytes of one span as it is written; larger ones are left out.
const MOST_OF_A_SPAN: usize = 64 << 10;
/// Bytes of all that are kept.
const MOST_BYTES: usize = 64 << 20;

/// Which trace a build belongs to: 32 and 16 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parent {
    pub(crate) trace: String,
    /// The client's span; none if the client does not trace.
    pub(crate) span: Option<String>,
    /// Whether who began it has it recorded.
    pub(crate) is_sampled: bool,
}

impl Parent {
    /// Reads `traceparent` (W3C Trace Context), or makes a trace of the build's own.
    pub(crate) fn of_call(metadata: &MetadataMap, build: &str) -> Self {
        let given = metadata.get("traceparent").and_then(|value| {
            let mut parts = value.to_str().ok()?.split('-');
            let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
            let valid = |text: &str, length: usize| {
                let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
                text.len() == length && digits && text.bytes().any(|byte| byte != b'0')
            };
            (version.len() == 2 && valid(trace, 32) && valid(span, 16)).then(|| Self {
                trace: trace.to_lowercase(),
                span: Some(span.to_lowercase()),
                is_sampled: parts
                    .next()
                    .and_then(|flags| u8::from_str_radix(flags, 16).ok())
                    .is_none_or(|flags| flags & 1 == 1),
            })
        });
        given.unwrap_or_else(|| Self {
            trace: Digest::sha256_of(build.as_bytes()).hex()[..32].to_owned(),
            span: None,
            is_sampled: true,
        })
    }
}

/// Returns the spans of a build, itself first, and then its steps by their start.
pub(crate) fn of_build(
    record: &BuildHistoryRecord,
    told: &[Arc<StatusResponse>],
    parent: &Parent,
) -> Vec<Value> {
    let span_id = |of: &str| {
        let text = format!("{}/{of}", record.r#ref);
        Digest::sha256_of(text.as_bytes()).hex()[..16].to_owned()
    };
    let root = span_id("");
    let error = record.error.as_ref().map_or("", |error| &error.message);
    let mut spans = vec![span(&Span {
        name: "moby.buildkit.v1.Control/Solve",
        trace: &parent.trace,
        id: &root,
        parent: parent.span.as_deref(),
        start: record.created_at,
        end: record.completed_at,
        error,
        attributes: json!([
            attribute("ref", &record.r#ref),
            attribute("frontend", &record.frontend)
        ]),
    })];
    let mut steps: BTreeMap<&str, Vertex> = BTreeMap::new();
    for vertex in told.iter().flat_map(|status| &status.vertexes) {
        let step = steps.entry(&vertex.digest).or_default();
        let started = step.started.or(vertex.started);
        *step = vertex.clone();
        step.started = started;
    }
    let mut steps: Vec<Vertex> = steps.into_values().collect();
    let time = |time: Option<Timestamp>| time.map(|time| (time.seconds, time.nanos));
    steps.sort_by_cached_key(|step| (time(step.started), step.digest.clone()));
    for step in steps {
        if step.started.is_none() || step.completed.is_none() {
            continue;
        }
        let cached = if step.cached { "true" } else { "false" };
        spans.push(span(&Span {
            name: &step.name,
            trace: &parent.trace,
            id: &span_id(&step.digest),
            parent: Some(&root),
            start: step.started,
            end: step.completed,
            error: &step.error,
            attributes: json!([
                attribute("vertex", &step.digest),
                attribute("cached", cached)
            ]),
        }));
    }
    spans
}

/// Writes spans as they are kept.
pub(crate) fn write(spans: &[Value]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for span in spans {
        bytes.extend(span.to_string().into_bytes());
        bytes.push(b'\n');
    }
    bytes
}

/// Reads spans that were kept.
pub(crate) fn read(bytes: &[u8]) -> Vec<Value> {
    let spans = serde_json::Deserializer::from_slice(bytes).into_iter();
    spans.map_while(Result::ok).collect()
}

struct Span<'a> {
    name: &'a str,
    trace: &'a str,
    id: &'a str,
    parent: Option<&'a str>,
    start: Option<Timestamp>,
    end: Option<Timestamp>,
    error: &'a str,
    attributes: Value,
}

fn span(of: &Span<'_>) -> Value {
    let context = |span: &str, trace: &str| json!({"TraceID": trace, "SpanID": span, "TraceFlags": "01", "TraceState": "", "Remote": false});
    let nothing = "0000000000000000";
    let parent = match of.parent {
        Some(parent) => context(parent, of.trace),
        None => context(nothing, &format!("{nothing}{nothing}")),
    };
    let time = |time: Option<Timestamp>| {
        let time = time.unwrap_or_default();
        let nanos = u32::try_from(time.nanos).unwrap_or_default();
        oci::Timestamp::from_unix(time.seconds, nanos).map_or_else(
            |_| "0001-01-01T00:00:00Z".to_owned(),
            |time| time.to_string(),
        )
    };
    let code = if of.error.is_empty() {
        "Unset"
    } else {
        "Error"
    };
    let scope = json!({"Name": "lapstrake", "Version": env!("CARGO_PKG_VERSION"), "SchemaURL": "", "Attributes": null});
    json!({
        "Name": of.name,
        "SpanContext": context(of.id, of.trace),
        "Parent": parent,
        "SpanKind": 1,
        "StartTime": time(of.start),
        "EndTime": time(of.end),
        "Attributes": of.attributes,
        "Events": null,
        "Links": null,
        "Status": {"Code": code, "Description": of.error},
        "DroppedAttributes": 0,
        "DroppedEvents": 0,
        "DroppedLinks": 0,
        "ChildSpanCount": 0,
        "Resource": null,
        "InstrumentationScope": scope,
        "InstrumentationLibrary": scope,
    })
}

fn attribute(name: &str, value: &str) -> Value {
    json!({"Key": name, "Value": {"Type": "STRING", "Value": value}})
}

/// Spans that clients sent, by their traces.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    kept: Mutex<VecDeque<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    trace: String,
    spans: Vec<Value>,
    /// As they are written.
    bytes: usize,
}

impl Traces {
    fn table(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        self.kept
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }

    /// Returns the spans of a trace that clients have sent so far.
    pub(crate) fn of(&self, trace: &str) -> Vec<Value> {
        let table = self.table();
        let kept = table.iter().find(|kept| kept.trace == trace);
        kept.map(|kept| kept.spans.clone()).unwrap_or_default()
    }

    fn add(&self, trace: String, span: Value) {
        let bytes = span.to_string().len();
        let mut table = self.table();
        let mut kept = match table.iter().position(|kept| kept.trace == trace) {
            Some(place) => table.remove(place).unwrap_or_default(),
            None => Kept {
                trace,
                ..Kept::default()
            },
        };
        if bytes <= MOST_OF_A_SPAN && kept.spans.len() < MOST_SPANS {
            kept.spans.push(span);
            kept.bytes += bytes;
        }
        // The one that was added to last stands last.
        table.push_back(kept);
        let mut all: usize = table.iter().map(|kept| kept.bytes).sum();
        while table.len() > MOST_TRACES || (all > MOST_BYTES && table.len() > 1) {
            all -= table.pop_front().map_or(0, |oldest| oldest.bytes);
        }
    }

    fn take(&self, request: ExportRequest) {
        let scopes = request.resources.into_iter().flat_map(|one| one.scopes);
        for sent in scopes.flat_map(|scope| scope.spans) {
            if sent.trace.len() != 16 || sent.id.len() != 8 {
                continue;
            }
            let time = |nanoseconds: u64| {
                Some(Timestamp {
                    seconds: (nanoseconds / 1_000_000_000) as i64,
                    nanos: (nanoseconds % 1_000_000_000) as i32,
                })
            };
            let (trace, id) = (hex(&sent.trace), hex(&sent.id));
            let parent = (sent.parent.len() == 8).then(|| hex(&sent.parent));
            let status = sent.status.unwrap_or_default();
            let failed = status.code == 2;
            let texts = sent.attributes.iter().filter_map(|pair| {
                let text = pair.value.as_ref()?.text.as_ref()?;
                Some(attribute(&pair.key, text))
            });
            let made = span(&Span {
                name: &sent.name,
                trace: &trace,
                id: &id,
                parent: parent.as_deref(),
                start: time(sent.start),
                end: time(sent.end),
                error: match (failed, status.message.as_str()) {
                    (false, _) => "",
                    (true, "") => "failed",
                    (true, message) => message,
                },
                attributes: texts.collect(),
            });
            self.add(trace.clone(), made);
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is read of OpenTelemetry's `ExportTraceServiceRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ExportRequest {
    #[prost(message, repeated, tag = "1")]
    pub(crate) resources: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    pub(crate) resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) scopes: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Resource {
    #[prost(message, repeated, tag = "1")]
    pub(crate) attributes: Vec<Pair>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    pub(crate) spans: Vec<SentSpan>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SentSpan {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) trace: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) parent: Vec<u8>,
    #[prost(string, tag = "5")]
    pub(crate) name: String,
    #[prost(int32, tag = "6")]
    pub(crate) kind: i32,
    #[prost(fixed64, tag = "7")]
    pub(crate) start: u64,
    #[prost(fixed64, tag = "8")]
    pub(crate) end: u64,
    #[prost(message, repeated, tag = "9")]
    pub(crate) attributes: Vec<Pair>,
    #[prost(message, optional, tag = "15")]
    pub(crate) status: Option<SpanStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Pair {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) value: Option<AnyValue>,
}

/// Of all kinds of values, texts.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AnyValue {
    #[prost(string, optional, tag = "1")]
    pub(crate) text: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SpanStatus {
    #[prost(string, tag = "2")]
    pub(crate) message: String,
    #[prost(int32, tag = "3")]
    pub(crate) code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ExportResponse {}

/// Takes spans; its clones are one.
#[derive(Debug, Clone)]
pub(crate) struct TraceService {
    pub(crate) traces: Arc<Traces>,
    /// Who is to have them too.
    pub(crate) collector: Option<Collector>,
}

impl UnaryService<Bytes> for TraceService {
    type Response = ExportResponse;
    type Future = std::future::Ready<Result<Response<ExportResponse>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let message = request.into_inner();
        std::future::ready(match ExportRequest::decode(message.clone()) {
            Ok(spans) => {
                // As it came: there is more in it than is read here.
                if let Some(collector) = &self.collector {
                    collector.pass(&message);
                }
                self.traces.take(spans);
                Ok(Response::new(ExportResponse {}))
            }
            Err(error) => Err(Status::invalid_argument(error.to_string())),
        })
    }
}

impl Service<http::Request<Body>> for TraceService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if !request.uri().path().ends_with("/Export") {
                return Ok(Status::unimplemented("spans are only taken").into_http());
            }
            Ok(Grpc::new(AsItCame).unary(service, request).await)
        })
    }
}

impl NamedService for TraceService {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(traceparent: &str) -> Parent {
        let mut metadata = MetadataMap::new();
        metadata.insert("traceparent", traceparent.parse().unwrap());
        Parent::of_call(&metadata, "build")
    }

    #[test]
    fn a_build_belongs_to_its_client_s_trace() {
        let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let ours = parent(&format!("00-{trace}-{span}-01"));
        assert_eq!(
            (ours.trace.as_str(), ours.span.as_deref()),
            (trace, Some(span))
        );
        for bad in [
            "",
            "00",
            "00-1-2-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        ] {
            let own = parent(bad);
            assert_eq!((own.trace.len(), own.span), (32, None), "{bad}");
        }
    }

    #[test]
    fn steps_are_spans_within_the_build() {
        let time = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let step = |digest: &str, from, to| Vertex {
            digest: digest.to_owned(),
            name: format!("step {digest}"),
            started: time(from),
            completed: to,
            ..Vertex::default()
        };
        let told = Arc::new(StatusResponse {
            vertexes: vec![
                step("b", 2, None),
                step("b", 2, time(3)),
                step("a", 3, time(4)),
                step("c", 4, None),
            ],
            ..StatusResponse::default()
        });
        let record = BuildHistoryRecord {
            r#ref: "x".to_owned(),
            created_at: time(1),
            completed_at: time(5),
            ..BuildHistoryRecord::default()
        };
        let spans = of_build(&record, &[told], &parent(""));
        let names: Vec<_> = spans
            .iter()
            .map(|span| span["Name"].as_str().unwrap())
            .collect();
        assert_eq!(
            names,
            ["moby.buildkit.v1.Control/Solve", "step b", "step a"]
        );
        assert_eq!(spans[1]["Parent"], spans[0]["SpanContext"]);
        assert_eq!(spans[2]["EndTime"], "1970-01-01T00:00:04Z");
        assert_eq!(read(&write(&spans)), spans);
    }

    #[test]
    fn spans_of_clients_are_kept_by_their_trace() {
        let traces = Traces::default();
        let sent = |trace: u8| SentSpan {
            trace: vec![trace; 16],
            id: vec![7; 8],
            name: "client".to_owned(),
            ..SentSpan::default()
        };
        let spans = vec![sent(1), SentSpan::default(), sent(2)];
        traces.take(ExportRequest {
            resources: vec![ResourceSpans {
                scopes: vec![ScopeSpans { spans }],
                ..ResourceSpans::default()
            }],
        });
        assert_eq!(traces.of(&"01".repeat(16)).len(), 1);
        assert_eq!(traces.of(&"00".repeat(16)).len(), 0);
        for number in 3..=2 + MOST_TRACES as u8 {
            traces.add(hex(&[number; 16]), json!({}));
        }
        assert_eq!(traces.of(&"01".repeat(16)).len(), 0);
    }
}
