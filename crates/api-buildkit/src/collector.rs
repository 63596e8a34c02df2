//! Spans on their way to a collector of OpenTelemetry: those of clients as they came, and those of builds.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use oci::Timestamp;
use prost::Message;
use serde_json::Value;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::ProstEncoder;

use crate::trace::{
    AnyValue, ExportRequest, ExportResponse, Pair, Resource, ResourceSpans, ScopeSpans, SentSpan,
    SpanStatus,
};

/// What takes messages for a collector (`ExportTraceServiceRequest`). It must not block.
type Take = dyn Fn(Vec<u8>) + Send + Sync;

/// A collector of OpenTelemetry.
#[derive(Clone)]
pub struct Collector {
    /// What this server is, in the collector's words.
    resource: Vec<(String, String)>,
    send: Arc<Take>,
}

impl std::fmt::Debug for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collector").finish_non_exhaustive()
    }
}

impl Collector {
    /// Makes one of what takes messages, without blocking, and of what is said of this server.
    pub fn new(
        resource: Vec<(String, String)>,
        send: impl Fn(Vec<u8>) + Send + Sync + 'static,
    ) -> Self {
        Self {
            resource,
            send: Arc::new(send),
        }
    }

    /// Passes a client's message on.
    pub(crate) fn pass(&self, message: &[u8]) {
        (self.send)(message.to_vec());
    }

    /// Sends spans as they are kept.
    pub(crate) fn send(&self, spans: &[Value]) {
        let attributes = self.resource.iter().map(|(key, value)| pair(key, value));
        let request = ExportRequest {
            resources: vec![ResourceSpans {
                resource: Some(Resource {
                    attributes: attributes.collect(),
                }),
                scopes: vec![ScopeSpans {
                    spans: spans.iter().filter_map(sent).collect(),
                }],
            }],
        };
        (self.send)(request.encode_to_vec());
    }
}

fn pair(key: &str, value: &str) -> Pair {
    Pair {
        key: key.to_owned(),
        value: Some(AnyValue {
            text: Some(value.to_owned()),
        }),
    }
}

/// Returns a span as it is sent; `None` for what is none.
fn sent(span: &Value) -> Option<SentSpan> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let time = |value: &Value| {
        let time: Timestamp = value.as_str()?.parse().ok()?;
        let seconds = u64::try_from(time.unix_seconds()).ok()?;
        Some(seconds * 1_000_000_000 + u64::from(time.nanoseconds()))
    };
    let attributes = span["Attributes"].as_array().into_iter().flatten();
    let attributes = attributes.filter_map(|attribute| {
        let value = attribute["Value"]["Value"].as_str()?;
        Some(pair(attribute["Key"].as_str()?, value))
    });
    let parent = bytes_of(&span["Parent"]["SpanID"])?;
    Some(SentSpan {
        trace: bytes_of(&span["SpanContext"]["TraceID"])?,
        id: bytes_of(&span["SpanContext"]["SpanID"])?,
        parent: match parent.iter().all(|byte| *byte == 0) {
            true => Vec::new(),
            false => parent,
        },
        name: text(&span["Name"]),
        // An internal one.
        kind: 1,
        start: time(&span["StartTime"]).unwrap_or_default(),
        end: time(&span["EndTime"]).unwrap_or_default(),
        attributes: attributes.collect(),
        status: Some(SpanStatus {
            code: match span["Status"]["Code"].as_str() {
                Some("Error") => 2,
                _ => 0,
            },
            message: text(&span["Status"]["Description"]),
        }),
    })
}

fn bytes_of(digits: &Value) -> Option<Vec<u8>> {
    let digits = digits.as_str()?;
    let pairs = (0..digits.len()).step_by(2);
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    pairs.map(byte).collect()
}

/// Reads messages as the bytes they came as.
#[derive(Debug, Default)]
pub(crate) struct AsItCame;

impl Codec for AsItCame {
    type Encode = ExportResponse;
    type Decode = Bytes;
    type Encoder = ProstEncoder<ExportResponse>;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Self
    }
}

impl Decoder for AsItCame {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let count = source.remaining();
        Ok(Some(source.copy_to_bytes(count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Mutex;

    #[test]
    fn spans_are_sent_as_they_are_kept() {
        let messages = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&messages);
        let resource = vec![("service.name".to_owned(), "x".to_owned())];
        let collector = Collector::new(resource, move |message| {
            taken.lock().unwrap().push(message);
        });
        let id = |trace: &str, span: &str| json!({"TraceID": trace, "SpanID": span});
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let span = json!({
            "Name": "step",
            "SpanContext": id(trace, "b7ad6b7169203331"),
            "Parent": id(trace, "0000000000000000"),
            "StartTime": "1970-01-01T00:00:01.5Z",
            "EndTime": "1970-01-01T00:00:02Z",
            "Attributes": [{"Key": "k", "Value": {"Type": "STRING", "Value": "v"}}],
            "Status": {"Code": "Error", "Description": "broken"},
        });
        collector.send(&[span, json!({"Name": "none"})]);
        let message = messages.lock().unwrap().remove(0);
        let request = ExportRequest::decode(message.as_slice()).unwrap();
        let of = &request.resources[0];
        let named = of.resource.as_ref().unwrap();
        assert_eq!(named.attributes, [pair("service.name", "x")]);
        let [span] = of.scopes[0].spans.as_slice() else {
            panic!("one span");
        };
        assert_eq!((span.trace[0], span.id[7]), (0x0a, 0x31));
        assert_eq!(span.parent, [0_u8; 0]);
        assert_eq!((span.start, span.end), (1_500_000_000, 2_000_000_000));
        assert_eq!(span.attributes, [pair("k", "v")]);
        let status = span.status.as_ref().unwrap();
        assert_eq!((status.code, status.message.as_str()), (2, "broken"));
    }
}
