//! What is kept of builds that have ended, and asked for by clients that come later.

mod common;

use std::sync::{Arc, Mutex};

use api_buildkit::Collector;
use bollard_buildkit_proto::google::rpc;
use bollard_buildkit_proto::moby::buildkit::v1 as pbc;
use common::with_server;
use http::uri::PathAndQuery;
use prost::Message;
use testclient::{Client, Directory, offer, one_file};
use tonic::client::Grpc;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, Message)]
struct ReadRequest {
    #[prost(string, tag = "1")]
    digest: String,
    #[prost(int64, tag = "2")]
    offset: i64,
    #[prost(int64, tag = "3")]
    size: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ReadResponse {
    #[prost(int64, tag = "1")]
    offset: i64,
    #[prost(bytes = "vec", tag = "2")]
    data: Vec<u8>,
}

/// As much of OpenTelemetry's `ExportTraceServiceRequest` as there is to one span.
#[derive(Clone, PartialEq, Message)]
struct ExportRequest {
    #[prost(message, optional, tag = "1")]
    resource: Option<ResourceSpans>,
    #[prost(string, tag = "77")]
    more: String,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "2")]
    scope: Option<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "2")]
    span: Option<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ExportResponse {}

/// Returns a span of the trace that a build without one of its client has.
fn span_of(build: &str, name: &str) -> ExportRequest {
    let trace = oci::Digest::sha256_of(build.as_bytes());
    let trace = (0..16).map(|at| u8::from_str_radix(&trace.hex()[at * 2..at * 2 + 2], 16));
    let span = Span {
        trace: trace.collect::<Result<_, _>>().expect("digits"),
        id: vec![1; 8],
        name: name.to_owned(),
    };
    let scope = Some(ScopeSpans { span: Some(span) });
    ExportRequest {
        resource: Some(ResourceSpans { scope }),
        more: "more".to_owned(),
    }
}

async fn send_span(client: &Client, request: ExportRequest) {
    let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
    let codec = ProstCodec::<ExportRequest, ExportResponse>::default();
    let mut grpc = Grpc::new(client.channel.clone());
    grpc.ready().await.expect("a connection");
    let sent = grpc.unary(
        Request::new(request),
        PathAndQuery::from_static(path),
        codec,
    );
    sent.await.expect("an answer");
}

/// Reads a blob as containerd's clients do.
async fn read(client: &Client, digest: &str, offset: i64, size: i64) -> Result<Vec<u8>, Status> {
    let mut grpc = Grpc::new(client.channel.clone());
    grpc.ready().await.expect("a connection");
    let request = Request::new(ReadRequest {
        digest: digest.to_owned(),
        offset,
        size,
    });
    let path = PathAndQuery::from_static("/containerd.services.content.v1.Content/Read");
    let codec = ProstCodec::<ReadRequest, ReadResponse>::default();
    let answers = grpc.server_streaming(request, path, codec).await?;
    let (mut answers, mut bytes) = (answers.into_inner(), Vec::new());
    while let Some(piece) = answers.message().await? {
        assert_eq!(piece.offset - offset, bytes.len() as i64);
        bytes.extend(piece.data);
    }
    Ok(bytes)
}

#[test]
fn what_is_told_of_a_build_can_be_read_from_the_next_server() {
    with_server(|server| async move {
        let offered = one_file("a", "1");
        let mut client = server.client(offered.clone(), "").await;
        let request = client.request();
        let build = request.r#ref.clone();
        client.solve(request).await.expect("a build");
        drop(client);

        let server = tokio::task::spawn_blocking(|| server.restart())
            .await
            .expect("a server");
        let mut client = server.client(offered, "").await;
        let records = client.history().await;
        assert_eq!(records.len(), 1);
        let record = &records[0];
        assert_eq!(record.r#ref, build);
        assert!(record.num_completed_steps > 0);

        let said = &record.result.as_ref().expect("a result").attestations[0];
        let kind = &said.annotations["in-toto.io/predicate-type"];
        assert_eq!(kind, "https://slsa.dev/provenance/v1");
        let bytes = read(&client, &said.digest, 0, 0).await.expect("a blob");
        assert_eq!(bytes.len() as i64, said.size);
        let predicate: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
        assert!(predicate["buildDefinition"].is_object());

        let trace = record.trace.as_ref().expect("a trace");
        let bytes = read(&client, &trace.digest, 0, 0).await.expect("a blob");
        let spans = String::from_utf8(bytes).expect("text");
        assert!(spans.lines().any(|span| span.contains("COPY a /")));

        let request = pbc::StatusRequest {
            r#ref: build.clone(),
        };
        let told = client.control.status(request).await.expect("a status");
        let mut told = told.into_inner();
        let mut names = Vec::new();
        while let Some(status) = told.message().await.expect("a status") {
            names.extend(status.vertexes.into_iter().map(|vertex| vertex.name));
        }
        assert!(names.iter().any(|name| name.contains("COPY a /")));
    });
}

#[test]
fn an_error_is_kept_with_its_details() {
    with_server(|server| async move {
        let offer = offer("FROM scratch\nCOPY missing /\n", Directory::default());
        let mut client = server.client(offer, "").await;
        let request = client.request();
        let error = client.solve(request).await.expect_err("an error");
        let records = client.history().await;
        let brief = records[0].error.as_ref().expect("an error");
        assert_eq!(
            (brief.message.as_str(), brief.details.len()),
            (error.message(), 0)
        );
        let blob = records[0].external_error.as_ref().expect("all of it");
        let bytes = read(&client, &blob.digest, 0, 0).await.expect("a blob");
        let whole = rpc::Status::decode(bytes.as_slice()).expect("a status");
        let kinds = whole.details.iter().map(|any| any.type_url.as_str());
        let kinds: Vec<&str> = kinds.collect();
        for kind in [
            "errdefs.Vertex+json",
            "errdefs.Source+json",
            "stack.Stack+json",
        ] {
            let kind = format!("github.com/moby/buildkit/{kind}");
            assert!(kinds.contains(&kind.as_str()), "{kind} in {kinds:?}");
        }
    });
}

#[test]
fn only_what_there_is_can_be_read() {
    with_server(|server| async move {
        let mut client = server.client(one_file("a", "1"), "").await;
        let request = client.request();
        client.solve(request).await.expect("a build");
        let record = client.history().await.remove(0);
        let logs = record.logs.expect("logs");
        let part = read(&client, &logs.digest, 2, 3).await.expect("a part");
        assert_eq!(part.len(), 3);
        let end = read(&client, &logs.digest, logs.size, 0).await;
        assert_eq!(end.expect("nothing"), b"");
        let none = format!("sha256:{}", "0".repeat(64));
        for (digest, offset, code) in [
            (logs.digest.as_str(), logs.size + 1, Code::OutOfRange),
            (logs.digest.as_str(), -1, Code::InvalidArgument),
            (none.as_str(), 0, Code::NotFound),
            ("sha256:../../record", 0, Code::InvalidArgument),
        ] {
            let status = read(&client, digest, offset, 0)
                .await
                .expect_err("a refusal");
            assert_eq!(status.code(), code, "{digest} {offset}");
        }
    });
}

#[test]
fn a_build_that_is_pinned_or_finalized_stays_and_one_that_is_not_there_is_named() {
    with_server(|server| async move {
        let mut client = server.client(one_file("a", "1"), "").await;
        let request = client.request();
        let build = request.r#ref.clone();
        client.solve(request).await.expect("a build");
        let pin = pbc::UpdateBuildHistoryRequest {
            r#ref: build.clone(),
            pinned: true,
            ..pbc::UpdateBuildHistoryRequest::default()
        };
        let finalize = pbc::UpdateBuildHistoryRequest {
            r#ref: build.clone(),
            finalize: true,
            ..pbc::UpdateBuildHistoryRequest::default()
        };
        let changed = client.control.update_build_history(pin.clone()).await;
        changed.expect("a change");
        let before = client.history().await.remove(0);
        assert!(before.pinned);
        // What its client tells of its own time comes when the build has ended.
        send_span(&client, span_of(&build, "time of the client")).await;
        for _ in 0..2 {
            let changed = client.control.update_build_history(finalize.clone()).await;
            changed.expect("a change");
        }
        let after = client.history().await.remove(0);
        assert!(after.pinned);
        let (before, after) = (
            before.trace.expect("a trace"),
            after.trace.expect("a trace"),
        );
        let spans = read(&client, &after.digest, 0, 0).await.expect("a blob");
        let spans = String::from_utf8(spans).expect("text");
        assert_eq!(spans.matches("time of the client").count(), 1, "{spans}");
        assert!(spans.contains("COPY a /"));
        // The trace as it was is kept no longer.
        let gone = read(&client, &before.digest, 0, 0).await;
        assert_eq!(gone.expect_err("no blob").code(), Code::NotFound);
        let other = pbc::UpdateBuildHistoryRequest {
            r#ref: "other".to_owned(),
            ..pin
        };
        let refused = client.control.update_build_history(other).await;
        assert_eq!(refused.expect_err("a refusal").code(), Code::NotFound);
    });
}

#[test]
fn provenance_names_what_a_policy_had_a_build_take() {
    use pbc::sourcepolicy::{MatchType, Policy, PolicyAction, Rule, Selector, Update};
    with_server(|server| async move {
        let mut client = server.client(one_file("a", "1"), "").await;
        let mut graph = llb::GraphBuilder::default();
        let source = llb::Op::Source(llb::SourceOp {
            identifier: "local://nowhere".to_owned(),
            attrs: Default::default(),
        });
        let root = graph.add(llb::Draft::new(source, Vec::new()));
        let graph = graph.finish(Some(root)).expect("a graph");
        let rule = Rule {
            action: PolicyAction::Convert as i32,
            selector: Some(Selector {
                identifier: "local://nowhere".to_owned(),
                match_type: MatchType::Exact as i32,
                constraints: Vec::new(),
            }),
            updates: Some(Update {
                identifier: "local://context".to_owned(),
                attrs: Default::default(),
            }),
        };
        let request = pbc::SolveRequest {
            frontend: String::new(),
            definition: Some(
                Message::decode(graph.encode_definition().as_slice()).expect("a definition"),
            ),
            source_policy: Some(Policy {
                version: 1,
                rules: vec![rule],
            }),
            ..client.request()
        };
        client.solve(request).await.expect("a build");
        assert_eq!(client.files()["a"], "1");
        let record = client.history().await.remove(0);
        let said = &record.result.expect("a result").attestations[0];
        let said = read(&client, &said.digest, 0, 0).await.expect("a blob");
        let said = String::from_utf8(said).expect("text");
        assert!(said.contains("local://context"), "{said}");
        assert!(!said.contains("local://nowhere"), "{said}");
    });
}

#[test]
fn a_collector_gets_the_spans_of_builds_and_those_of_clients_as_they_came() {
    let messages = Arc::new(Mutex::new(Vec::<Vec<u8>>::new()));
    let taken = Arc::clone(&messages);
    let collector = Collector::new(Vec::new(), move |message| {
        taken.lock().unwrap().push(message);
    });
    let start = || common::TestServer::traced(collector);
    common::with(start, |server| async move {
        let mut client = server.client(one_file("a", "1"), "").await;
        let request = client.request();
        let build = request.r#ref.clone();
        client.solve(request).await.expect("a build");
        let sent = messages.lock().unwrap().remove(0);
        let has = |text: &str| sent.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(has("moby.buildkit.v1.Control/Solve") && has("COPY a /"));

        let request = span_of(&build, "time of the client");
        send_span(&client, request.clone()).await;
        // With a field that nobody here knows.
        let messages = std::mem::take(&mut *messages.lock().unwrap());
        assert_eq!(messages, [request.encode_to_vec()]);
    });
}
