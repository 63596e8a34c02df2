//! Builds asked for over the socket, by a client that speaks as `buildctl` does.

mod common;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use bollard_buildkit_proto::google::rpc;
use bollard_buildkit_proto::health::HealthCheckRequest;
use bollard_buildkit_proto::health::health_client::HealthClient;
use bollard_buildkit_proto::moby::buildkit::v1 as pbc;
use bollard_buildkit_proto::moby::buildkit::v1::frontend as pbf;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_client::LlbBridgeClient;
use bollard_buildkit_proto::pb;
use common::{definition, names, source, with_server};
use prost::Message;
use testclient::verifier::{Answer, Decision, Said, Verifier};
use testclient::{Client, Directory, name, of, offer, one_file};
use tonic::{Code, Request, Status};

const DIRECTORY: u32 = 1 << 31 | 0o755;
const SYMLINK: u32 = 1 << 27 | 0o777;

fn details(status: &Status) -> Vec<(String, serde_json::Value)> {
    let status = rpc::Status::decode(status.details()).expect("typed details");
    status
        .details
        .into_iter()
        .map(|any| {
            let value = serde_json::from_slice(&any.value).expect("JSON");
            (any.type_url, value)
        })
        .collect()
}

#[test]
fn a_build_takes_its_files_from_the_client_and_sends_the_result() {
    with_server(|server| async move {
        let context = Directory::default()
            .entry("d", DIRECTORY, "")
            .file("d/inner", "two")
            .file("foo", "one");
        let offer = offer("FROM scratch\nCOPY . /\n", context);
        let mut client = server.client(offer, "").await;
        let request = client.request();
        client.solve(request).await.expect("a build");
        let files = client.files();
        assert_eq!(files["foo"], "one");
        assert_eq!(files["d/inner"], "two");
        assert_eq!(names(&server.root().join("sync"), "one-"), [""; 0]);
    });
}

#[test]
fn the_built_in_frontend_may_be_named_as_an_image_is() {
    with_server(|server| async move {
        let mut client = server.client(one_file("foo", "x"), "").await;
        let attrs = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter();
            pairs
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect::<HashMap<String, String>>()
        };
        let request = pbc::SolveRequest {
            frontend: "gateway.v0".to_owned(),
            frontend_attrs: attrs(&[("source", "dockerfile.v0"), ("cmdline", "dockerfile.v0")]),
            ..client.request()
        };
        client.solve(request).await.expect("a build");
        assert_eq!(client.files()["foo"], "x");
        // Unless a context stands for the name.
        let other = ("context:dockerfile.v0", "input:nothing");
        let request = pbc::SolveRequest {
            frontend: "gateway.v0".to_owned(),
            frontend_attrs: attrs(&[("source", "dockerfile.v0"), other]),
            ..client.request()
        };
        let status = client.solve(request).await.expect_err("no such input");
        assert!(
            status.message().contains("invalid input nothing"),
            "{}",
            status.message()
        );
    });
}

#[test]
fn only_what_changed_is_sent_again() {
    with_server(|server| async move {
        let context = Directory::default().file("a", "1").file("b", "2");
        let offer = offer("FROM scratch\nCOPY a b /\n", context);
        let mut client = server.client(offer, "my-directory").await;
        let request = client.request();
        client.solve(request).await.expect("a build");
        let before = client.offer.requested.swap(0, Ordering::SeqCst);
        assert_eq!(before, 3, "the Dockerfile and both files");
        let changed = Directory::default().file("a", "1").file("b", "three");
        client
            .offer
            .directories
            .lock()
            .unwrap()
            .insert("context".to_owned(), changed);
        let request = client.request();
        client.solve(request).await.expect("a build");
        assert_eq!(client.offer.requested.load(Ordering::SeqCst), 2);
        assert_eq!(client.files()["b"], "three");
    });
}

#[test]
fn files_that_lead_out_of_the_context_are_refused() {
    with_server(|server| async move {
        let outside = server.root().join("../outside");
        for (context, said) in [
            (Directory::default().file("../outside", "x"), "invalid path"),
            (Directory::default().file("/outside", "x"), "invalid path"),
            (
                Directory::default()
                    .entry("a", DIRECTORY, "")
                    .file("a/../../outside", "x"),
                "invalid path",
            ),
            (
                Directory::default()
                    .entry("l", SYMLINK, "../..")
                    .file("l/outside", "x"),
                "its directory was not sent",
            ),
            (
                Directory::default().entry("l", 0o644, "/etc/passwd"),
                "a link to a file that was not sent",
            ),
            (Directory::default().file("a", "x").file("a", "y"), "twice"),
        ] {
            let offer = offer("FROM scratch\nCOPY . /\n", context);
            let mut client = server.client(offer, "").await;
            let request = client.request();
            let status = client.solve(request).await.expect_err("a refusal");
            assert!(status.message().contains(said), "{}", status.message());
        }
        assert!(!outside.exists());
    });
}

#[test]
fn errors_say_which_lines_of_the_dockerfile_they_are_about() {
    with_server(|server| async move {
        for (dockerfile, line) in [
            ("FROM scratch\nCOPY missing /\n", 2),
            ("FROM scratch\nENV a=b\nCOPY --foo=bar / /\n", 3),
            ("#syntax=127.0.0.1:1/other\nFROM scratch\n", 1),
        ] {
            let offer = offer(dockerfile, Directory::default().file("a", ""));
            let mut client = server.client(offer, "").await;
            let request = client.request();
            let status = client.solve(request).await.expect_err("an error");
            let details = details(&status);
            let source = details
                .iter()
                .find(|(kind, _)| kind == "github.com/moby/buildkit/errdefs.Source+json");
            let (_, source) = source.unwrap_or_else(|| panic!("{}", status.message()));
            assert_eq!(source["info"]["filename"], "Dockerfile");
            assert_eq!(source["ranges"][0]["start"]["line"], line, "{dockerfile}");
        }
    });
}

#[test]
fn a_clients_own_graph_is_solved_as_it_is() {
    with_server(|server| async move {
        let mut client = server.client(offer("", Directory::default()), "").await;
        let request = pbc::SolveRequest {
            frontend: String::new(),
            definition: Some(definition("/made", "from a graph")),
            ..client.request()
        };
        client.solve(request).await.expect("a build");
        assert_eq!(client.files()["made"], "from a graph");
    });
}

#[test]
fn a_frontend_at_the_client_reads_and_returns() {
    with_server(|server| async move {
        let client = server.client(one_file("foo", "x"), "").await;
        let request = pbc::SolveRequest {
            frontend: String::new(),
            ..client.request()
        };
        let id = request.r#ref.clone();
        let mut control = client.control.clone();
        let build = tokio::spawn(async move { control.solve(request).await });
        let mut bridge = LlbBridgeClient::new(client.channel.clone());
        let pong = bridge
            .ping(of(&id, pbf::PingRequest {}))
            .await
            .expect("a pong");
        let caps = pong.into_inner().frontend_api_caps;
        assert!(caps.iter().any(|cap| cap.id == "readfile" && cap.enabled));
        let solve = pbf::SolveRequest {
            frontend: "dockerfile.v0".to_owned(),
            allow_result_return: true,
            allow_result_array_ref: true,
            ..pbf::SolveRequest::default()
        };
        let solved = bridge
            .solve(of(&id, solve))
            .await
            .expect("a result")
            .into_inner();
        let result = solved.result.expect("a result");
        assert!(result.metadata.contains_key("containerimage.config"));
        let Some(pbf::result::Result::Ref(tree)) = &result.result else {
            panic!("one tree");
        };
        let read = pbf::ReadFileRequest {
            r#ref: tree.id.clone(),
            file_path: "/foo".to_owned(),
            ..pbf::ReadFileRequest::default()
        };
        let read = bridge
            .read_file(of(&id, read))
            .await
            .expect("a file")
            .into_inner();
        assert_eq!(read.data, b"x");
        let list = pbf::ReadDirRequest {
            r#ref: tree.id.clone(),
            dir_path: "/".to_owned(),
            ..pbf::ReadDirRequest::default()
        };
        let list = bridge
            .read_dir(of(&id, list))
            .await
            .expect("a list")
            .into_inner();
        assert_eq!(list.entries[0].path, "foo");
        let missing = pbf::StatFileRequest {
            r#ref: tree.id.clone(),
            path: "/bar".to_owned(),
            ..pbf::StatFileRequest::default()
        };
        let missing = bridge
            .stat_file(of(&id, missing))
            .await
            .expect_err("no file");
        assert_eq!(missing.code(), Code::NotFound);
        let back = pbf::ReturnRequest {
            result: Some(result),
            error: None,
        };
        bridge.r#return(of(&id, back)).await.expect("an end");
        build.await.expect("a task").expect("a build");
        assert_eq!(client.files()["foo"], "x");
    });
}

#[test]
fn what_the_frontend_of_a_client_came_to_is_what_the_build_fails_with() {
    with_server(|server| async move {
        let client = server.client(offer("", Directory::default()), "").await;
        let request = pbc::SolveRequest {
            frontend: String::new(),
            ..client.request()
        };
        let id = request.r#ref.clone();
        let mut control = client.control.clone();
        let build = tokio::spawn(async move { control.solve(request).await });
        let mut back = Request::new(pbf::ReturnRequest {
            result: None,
            error: Some(rpc::Status {
                code: Code::InvalidArgument as i32,
                message: "not like this".to_owned(),
                details: Vec::new(),
            }),
        });
        let key = "buildkit-controlapi-buildid";
        back.metadata_mut().insert(key, id.parse().expect("an id"));
        let mut bridge = LlbBridgeClient::new(client.channel.clone());
        bridge.r#return(back).await.expect("an end");
        let status = build.await.expect("a task").expect_err("the failure");
        assert_eq!(status.message(), "not like this");
        assert_eq!(status.code(), Code::InvalidArgument);
    });
}

#[test]
fn a_client_that_vanishes_leaves_nothing() {
    with_server(|mut server| async move {
        let mut silent = offer("FROM scratch\nCOPY . /\n", Directory::default());
        silent.silent = Some("context".to_owned());
        let client = server.client(silent, "").await;
        let mut request = client.request();
        request.r#ref = name("gone");
        let id = request.r#ref.clone();
        let mut control = client.control.clone();
        let build = tokio::spawn(async move { control.solve(request).await });
        // The build is under way once its status can be followed.
        let mut control = client.control.clone();
        let status = control.status(pbc::StatusRequest { r#ref: id }).await;
        let mut status = status.expect("a status").into_inner();
        status.message().await.expect("a first status");
        drop(client);
        let ended = build.await.expect("a task").expect_err("an end");
        assert!(!ended.message().is_empty());
        while let Ok(Some(_)) = status.message().await {}
        tokio::task::spawn_blocking(move || {
            server.stop();
            assert_eq!(names(&server.root().join("sync"), "one-"), [""; 0]);
            assert!(!server.socket().exists());
        })
        .await
        .expect("a server that ends");
    });
}

#[test]
fn findings_come_with_their_lines_in_the_status() {
    with_server(|server| async move {
        let dockerfile = "FROM scratch as base\nCOPY foo /\n";
        let offer = offer(dockerfile, Directory::default().file("foo", ""));
        let mut client = server.client(offer, "").await;
        let request = client.request();
        let id = request.r#ref.clone();
        client.solve(request).await.expect("a build");
        let status = client
            .control
            .status(pbc::StatusRequest { r#ref: id })
            .await;
        let mut status = status.expect("a status").into_inner();
        let (mut vertexes, mut warnings) = (Vec::new(), Vec::new());
        while let Some(part) = status.message().await.expect("a status") {
            vertexes.extend(part.vertexes);
            warnings.extend(part.warnings);
        }
        let [warning] = warnings.as_slice() else {
            panic!("{warnings:?}");
        };
        let short = String::from_utf8_lossy(&warning.short);
        assert!(short.starts_with("FromAsCasing: "), "{short}");
        assert!(short.ends_with("(line 1)"), "{short}");
        let about = warning.ranges[0].start.as_ref().expect("a place");
        assert_eq!(about.line, 1);
        assert!(
            vertexes
                .iter()
                .any(|vertex| vertex.digest == warning.vertex)
        );
        assert!(vertexes.iter().any(|vertex| vertex.completed.is_some()));
    });
}

#[test]
fn what_is_not_there_is_refused_by_its_name() {
    with_server(|server| async move {
        let mut client = server.client(one_file("foo", ""), "").await;
        let attrs = |name: &str, value: &str| HashMap::from([(name.to_owned(), value.to_owned())]);
        let base = client.request();
        for (request, said) in [
            (
                pbc::SolveRequest {
                    frontend: "other.v0".to_owned(),
                    ..base.clone()
                },
                "other.v0",
            ),
            (
                pbc::SolveRequest {
                    frontend: "gateway.v0".to_owned(),
                    frontend_attrs: attrs("source", "127.0.0.1:1/front"),
                    ..base.clone()
                },
                "127.0.0.1:1/front",
            ),
            (
                pbc::SolveRequest {
                    entitlements: vec!["network.host".to_owned()],
                    ..base.clone()
                },
                "network.host is not allowed",
            ),
            (
                pbc::SolveRequest {
                    frontend_attrs: attrs("attest:sbom", "generator=127.0.0.1:1/scanner"),
                    ..base.clone()
                },
                "the SBOM generator cannot be had",
            ),
            (
                pbc::SolveRequest {
                    exporters: vec![pbc::Exporter {
                        r#type: "floppy".to_owned(),
                        attrs: HashMap::new(),
                    }],
                    ..base.clone()
                },
                "floppy",
            ),
        ] {
            let request = pbc::SolveRequest {
                r#ref: name("refused"),
                ..request
            };
            let status = client.solve(request).await.expect_err("a refusal");
            assert!(status.message().contains(said), "{}", status.message());
        }
    });
}

#[test]
fn a_source_policy_says_what_a_build_takes() {
    use pbc::sourcepolicy::{MatchType, Policy, PolicyAction, Rule, Selector, Update};
    with_server(|server| async move {
        let offer = offer(
            "FROM busybox AS base\nFROM scratch\nCOPY --from=base foo /\n",
            Directory::default().file("foo", "replaced"),
        );
        let mut client = server.client(offer, "").await;
        let rule =
            |action: PolicyAction, kind: MatchType, identifier: &str, to: Option<&str>| Rule {
                action: action as i32,
                selector: Some(Selector {
                    identifier: identifier.to_owned(),
                    match_type: kind as i32,
                    constraints: Vec::new(),
                }),
                updates: to.map(|to| Update {
                    identifier: to.to_owned(),
                    attrs: HashMap::new(),
                }),
            };
        let image = "docker-image://docker.io/library/busybox:latest";
        let request = |client: &Client, rules: Vec<Rule>| pbc::SolveRequest {
            source_policy: Some(Policy { version: 1, rules }),
            ..client.request()
        };
        let deny = rule(
            PolicyAction::Deny,
            MatchType::Wildcard,
            "docker-image://*",
            None,
        );
        let denied = request(&client, vec![deny]);
        let status = client.solve(denied).await.expect_err("a refusal");
        let said = format!("source \"{image}\" denied by policy");
        assert!(status.message().contains(&said), "{}", status.message());

        let convert = |to| rule(PolicyAction::Convert, MatchType::Exact, image, Some(to));
        let to_url = request(&client, vec![convert("https://example.com/")]);
        let status = client.solve(to_url).await.expect_err("a refusal");
        let said = "ref mutated by policy to non-image";
        assert!(status.message().contains(said), "{}", status.message());

        // A context by another name may become a directory of the client.
        let named = pbc::SolveRequest {
            frontend_attrs: HashMap::from([(
                "context:base".to_owned(),
                "docker-image://busybox".to_owned(),
            )]),
            ..request(&client, vec![convert("local://context")])
        };
        client.solve(named).await.expect("a build");
        assert_eq!(client.files()["foo"], "replaced");

        let solved = pbc::SolveRequest {
            frontend: String::new(),
            definition: Some(source("local://nowhere")),
            ..request(
                &client,
                vec![rule(
                    PolicyAction::Convert,
                    MatchType::Regex,
                    "^local://.*$",
                    Some("local://context"),
                )],
            )
        };
        client.solve(solved).await.expect("a build");
        assert_eq!(client.files()["foo"], "replaced");
    });
}

#[test]
fn a_client_may_decide_about_each_source() {
    let url = |source: &pbf::ResolveSourceMetaResponse| {
        let source = source.source.as_ref().expect("a source");
        source.identifier.clone()
    };
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&asked);
    let decide = move |told: pbf::ResolveSourceMetaResponse| {
        let identifier = url(&told);
        heard.lock().unwrap().push(identifier.clone());
        let decision = match identifier.as_str() {
            "local://elsewhere" => Decision {
                action: 2,
                update: Some(pb::SourceOp {
                    identifier: "local://context".to_owned(),
                    ..pb::SourceOp::default()
                }),
                ..Decision::default()
            },
            "local://context" => Decision::default(),
            "local://curious" => {
                return Answer {
                    request: Some(pbf::ResolveSourceMetaRequest {
                        source: told.source,
                        ..pbf::ResolveSourceMetaRequest::default()
                    }),
                    ..Answer::default()
                };
            }
            _ => Decision {
                action: 1,
                messages: vec![Said {
                    message: "not this one".to_owned(),
                }],
                ..Decision::default()
            },
        };
        Answer {
            decision: Some(decision),
            request: None,
        }
    };
    let mut offer = one_file("foo", "x");
    offer.verifier = Some(Verifier(Arc::new(decide)));
    with_server(|server| async move {
        let mut client = server.client(offer, "").await;
        let request = |client: &Client, identifier: &str| pbc::SolveRequest {
            frontend: String::new(),
            definition: Some(source(identifier)),
            source_policy_session: client.session.clone(),
            ..client.request()
        };
        let converted = request(&client, "local://elsewhere");
        client.solve(converted).await.expect("a build");
        assert_eq!(client.files()["foo"], "x");
        let asked = std::mem::take(&mut *asked.lock().unwrap());
        assert_eq!(asked, ["local://elsewhere", "local://context"]);

        let denied = request(&client, "docker-image://127.0.0.1:1/a");
        let status = client.solve(denied).await.expect_err("a refusal");
        let said =
            "source \"docker-image://127.0.0.1:1/a:latest\" not allowed by policy: action DENY";
        assert!(status.message().contains(said), "{}", status.message());
        let details = details(&status);
        let denial = details
            .iter()
            .find(|(kind, _)| kind.ends_with("DecisionResponse+json"));
        let (_, denial) = denial.expect("what the client said");
        assert_eq!(denial["denyMessages"][0]["message"], "not this one");

        // One that asks without an end is not asked for ever.
        let curious = request(&client, "local://curious");
        let status = client.solve(curious).await.expect_err("an end");
        let said = "too many policy requests";
        assert!(status.message().contains(said), "{}", status.message());

        let plain = server.client(one_file("foo", "x"), "").await;
        let nobody = request(&plain, "local://context");
        let status = client.solve(nobody).await.expect_err("nobody decides");
        assert!(
            status.message().contains("PolicyVerifier"),
            "{}",
            status.message()
        );
    });
}

#[test]
fn the_server_tells_about_itself() {
    with_server(|server| async move {
        let channel = testclient::channel(server.socket()).await;
        let channel = channel.expect("a connection");
        let health = HealthClient::new(channel.clone())
            .check(HealthCheckRequest::default())
            .await
            .expect("an answer");
        assert_eq!(health.into_inner().status, 1);
        let mut control = pbc::control_client::ControlClient::new(channel);
        let workers = control
            .list_workers(pbc::ListWorkersRequest::default())
            .await;
        let workers = workers.expect("an answer").into_inner().record;
        assert_eq!(workers.len(), 1);
        assert_eq!(workers[0].platforms[0].os, "linux");
        let used = control.disk_usage(pbc::DiskUsageRequest::default()).await;
        assert!(used.expect("an answer").into_inner().record.is_empty());
    });
}

#[test]
fn prune_gives_back_what_builds_left() {
    with_server(|server| async move {
        let mut client = server.client(one_file("foo", "x"), "").await;
        let request = client.request();
        client.solve(request).await.expect("a build");
        let usage = client
            .control
            .disk_usage(pbc::DiskUsageRequest::default())
            .await;
        assert!(!usage.expect("an answer").into_inner().record.is_empty());
        let mut types = BTreeMap::new();
        for kind in ["regular", "blob", "exec.cachemount"] {
            let asked = pbc::DiskUsageRequest {
                filter: vec![format!("type=={kind}")],
                ..pbc::DiskUsageRequest::default()
            };
            let usage = client.control.disk_usage(asked).await;
            let found = usage.expect("an answer").into_inner().record;
            assert!(found.iter().all(|record| record.record_type == kind));
            types.insert(kind, found.len());
        }
        assert!(
            types["regular"] > 0 && types["exec.cachemount"] == 0,
            "{types:?}"
        );
        let young = pbc::DiskUsageRequest {
            age_limit: 3_600_000_000_000,
            ..pbc::DiskUsageRequest::default()
        };
        let usage = client.control.disk_usage(young).await;
        assert!(usage.expect("an answer").into_inner().record.is_empty());
        let bad = pbc::DiskUsageRequest {
            filter: vec!["type=regular".to_owned()],
            ..pbc::DiskUsageRequest::default()
        };
        let refused = client.control.disk_usage(bad).await.expect_err("a refusal");
        assert_eq!(refused.code(), Code::InvalidArgument);

        assert_eq!(
            prune(&mut client, &["type==exec.cachemount"]).await,
            [""; 0]
        );
        let gone = prune(&mut client, &["type==regular"]).await;
        assert_eq!(gone, vec!["regular"; types["regular"]]);
        prune(&mut client, &[]).await;
        let usage = client
            .control
            .disk_usage(pbc::DiskUsageRequest::default())
            .await;
        assert!(usage.expect("an answer").into_inner().record.is_empty());
    });
}

/// Gives back all there is, as far as filters match, and returns the types of what that was.
async fn prune(client: &mut Client, filter: &[&str]) -> Vec<String> {
    let prune = pbc::PruneRequest {
        all: true,
        filter: filter.iter().map(|text| (*text).to_owned()).collect(),
        ..pbc::PruneRequest::default()
    };
    let gone = client.control.prune(prune).await;
    let mut gone = gone.expect("an answer").into_inner();
    let mut types = Vec::new();
    while let Some(record) = gone.message().await.expect("a record") {
        types.push(record.record_type);
    }
    types
}

#[test]
fn the_history_tells_of_builds_until_they_are_forgotten() {
    with_server(|server| async move {
        let mut client = server.client(one_file("foo", "x"), "").await;
        let good = client.request();
        let bad = pbc::SolveRequest {
            r#ref: name("bad"),
            frontend_attrs: HashMap::from([("target".to_owned(), "nowhere".to_owned())]),
            ..client.request()
        };
        let hidden = pbc::SolveRequest {
            internal: true,
            ..client.request()
        };
        let (good_id, bad_id) = (good.r#ref.clone(), bad.r#ref.clone());
        client.solve(good).await.expect("a build");
        client.solve(bad).await.expect_err("a failure");
        client.solve(hidden).await.expect("a build");
        let history = client.history().await;
        let [first, second] = history.as_slice() else {
            panic!("{history:?}");
        };
        assert_eq!((&first.r#ref, &second.r#ref), (&good_id, &bad_id));
        assert!(first.error.is_none() && first.completed_at.is_some());
        assert_eq!(first.num_completed_steps, first.num_total_steps);
        let error = second.error.as_ref().expect("an error");
        assert!(error.message.contains("nowhere"), "{}", error.message);
        for (filter, limit, expected) in [
            ("status==error", 0, vec![&bad_id]),
            ("status==completed", 0, vec![&good_id]),
            ("startedAt<1h", 0, vec![]),
            ("", 0, vec![&good_id, &bad_id]),
            // With a limit the last stands first.
            ("", 1, vec![&bad_id]),
            ("duration<1h", 7, vec![&bad_id, &good_id]),
        ] {
            let asked = pbc::BuildHistoryRequest {
                filter: vec![filter.to_owned()],
                limit,
                ..pbc::BuildHistoryRequest::default()
            };
            let found = client.history_of(asked).await;
            let found: Vec<&String> = found.iter().map(|record| &record.r#ref).collect();
            assert_eq!(found, expected, "{filter} {limit}");
        }
        let asked = pbc::BuildHistoryRequest {
            filter: vec!["status=error".to_owned()],
            ..pbc::BuildHistoryRequest::default()
        };
        let refused = client.control.listen_build_history(asked).await;
        assert_eq!(
            refused.expect_err("a refusal").code(),
            Code::InvalidArgument
        );
        let forget = pbc::UpdateBuildHistoryRequest {
            r#ref: good_id,
            delete: true,
            ..pbc::UpdateBuildHistoryRequest::default()
        };
        let forgotten = client.control.update_build_history(forget.clone()).await;
        forgotten.expect("an end");
        assert_eq!(client.history().await.len(), 1);
        let again = client.control.update_build_history(forget).await;
        assert_eq!(again.expect_err("nothing").code(), Code::NotFound);
    });
}
