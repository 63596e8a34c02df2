//! What is kept of builds that have ended, and asked for by clients that come later.

mod common;

use bollard_buildkit_proto::google::rpc;
use bollard_buildkit_proto::moby::buildkit::v1 as pbc;
use common::TestServer;
use http::uri::PathAndQuery;
use prost::Message;
use testclient::{Client, Directory, offer};
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

async fn records(client: &mut Client) -> Vec<pbc::BuildHistoryRecord> {
    let request = pbc::BuildHistoryRequest {
        early_exit: true,
        ..pbc::BuildHistoryRequest::default()
    };
    let answers = client.control.listen_build_history(request).await;
    let mut answers = answers.expect("a history").into_inner();
    let mut records = Vec::new();
    while let Some(event) = answers.message().await.expect("an event") {
        records.extend(event.record);
    }
    records
}

fn with_server<F: std::future::Future<Output = ()>>(test: impl FnOnce(TestServer) -> F) {
    if !testkit::is_root() {
        testkit::skip!("the store of these tests is root's");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(test(TestServer::start()));
}

#[test]
fn what_is_told_of_a_build_can_be_read_from_the_next_server() {
    with_server(|server| async move {
        let offered = offer(
            "FROM scratch\nCOPY a /\n",
            Directory::default().file("a", "1"),
        );
        let mut client = server.client(offered.clone(), "").await;
        let request = client.request();
        let build = request.r#ref.clone();
        client.solve(request).await.expect("a build");
        drop(client);

        let server = tokio::task::spawn_blocking(|| server.restart())
            .await
            .expect("a server");
        let mut client = server.client(offered, "").await;
        let records = records(&mut client).await;
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
        let records = records(&mut client).await;
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
        let offer = offer(
            "FROM scratch\nCOPY a /\n",
            Directory::default().file("a", "1"),
        );
        let mut client = server.client(offer, "").await;
        let request = client.request();
        client.solve(request).await.expect("a build");
        let record = records(&mut client).await.remove(0);
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
        let offer = offer(
            "FROM scratch\nCOPY a /\n",
            Directory::default().file("a", "1"),
        );
        let mut client = server.client(offer, "").await;
        let request = client.request();
        let build = request.r#ref.clone();
        client.solve(request).await.expect("a build");
        let pin = pbc::UpdateBuildHistoryRequest {
            r#ref: build.clone(),
            pinned: true,
            ..pbc::UpdateBuildHistoryRequest::default()
        };
        let finalize = pbc::UpdateBuildHistoryRequest {
            r#ref: build,
            finalize: true,
            ..pbc::UpdateBuildHistoryRequest::default()
        };
        for change in [pin.clone(), finalize] {
            let changed = client.control.update_build_history(change).await;
            changed.expect("a change");
            assert!(records(&mut client).await[0].pinned);
        }
        let other = pbc::UpdateBuildHistoryRequest {
            r#ref: "other".to_owned(),
            ..pin
        };
        let refused = client.control.update_build_history(other).await;
        assert_eq!(refused.expect_err("a refusal").code(), Code::NotFound);
    });
}
