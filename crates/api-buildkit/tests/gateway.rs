//! Frontends that are images, and containers of frontends, with a server whose steps run.

mod common;

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bollard_buildkit_proto::moby::buildkit::v1 as pbc;
use bollard_buildkit_proto::moby::buildkit::v1::frontend as pbf;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::exec_message::Input;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_client::LlbBridgeClient;
use bollard_buildkit_proto::pb;
use engine::{BuildRequest, Cancel, Context, DockerfileSource, ImageOutput, Output};
use progress::Sink;
use prost::Message;
use testclient::{Client, Directory, Offer, offer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

/// No registry is there: the image is found in the store.
const IMAGE: &str = "127.0.0.1:1/frontend:latest";

/// A server in a process of its own, whose store has [`IMAGE`].
struct GatewayServer {
    folder: tempfile::TempDir,
    process: Child,
}

impl GatewayServer {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let (root, socket) = (folder.path().join("root"), folder.path().join("socket"));
        make_image(&root, &folder.path().join("image"));
        let mut process = Command::new(env!("CARGO_BIN_EXE_test-server"))
            .args([&root, &socket])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a server");
        let mut said = String::new();
        let mut output = BufReader::new(process.stdout.take().expect("its words"));
        output.read_line(&mut said).expect("a line");
        assert_eq!(said, "ready\n");
        Self { folder, process }
    }

    async fn client(&self, offer: Offer) -> Client {
        let channel = testclient::channel(self.folder.path().join("socket")).await;
        Client::connect(channel.expect("a connection"), offer, "").await
    }
}

impl Drop for GatewayServer {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let ended = self.process.wait().expect("an end");
        assert!(std::thread::panicking() || ended.success(), "{ended}");
    }
}

/// Makes an image of the test's frontend, with what it is linked with.
fn make_image(root: &Path, folder: &Path) {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_test-frontend"));
    let linked = Command::new(&program)
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .output()
        .expect("what it is linked with");
    let linked = String::from_utf8(linked.stdout).expect("text");
    let libraries = linked
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for library in libraries {
        let target = folder.join(library.trim_start_matches('/'));
        std::fs::create_dir_all(target.parent().expect("a folder")).expect("a folder");
        std::fs::copy(library, target).expect("a library");
    }
    std::fs::create_dir_all(folder).expect("a folder");
    std::fs::copy(program, folder.join("frontend")).expect("a program");
    let dockerfile = "FROM scratch\nCOPY . /\nENTRYPOINT [\"/frontend\"]\n\
        LABEL moby.buildkit.frontend.caps=moby.buildkit.frontend.inputs\n";
    let request = BuildRequest {
        context: Context::Directory(folder.to_owned()),
        dockerfile: DockerfileSource::Bytes {
            name: "Dockerfile".to_owned(),
            bytes: dockerfile.as_bytes().to_vec(),
        },
        tags: vec![IMAGE.parse().expect("a name")],
        outputs: vec![Output::Image(ImageOutput {
            store: true,
            ..ImageOutput::default()
        })],
        ..BuildRequest::default()
    };
    let engine = common::open_engine(root);
    let built = engine.build(&request, &Sink::discard(), &Cancel::default());
    built.expect("an image");
}

fn with_server<F: std::future::Future<Output = ()>>(test: impl FnOnce(GatewayServer) -> F) {
    common::with(GatewayServer::start, test);
}

fn attrs(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    let pairs = pairs.iter();
    pairs
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn an_image_is_a_frontend() {
    with_server(|server| async move {
        let mut client = server.client(offer("", Directory::default())).await;
        let request = pbc::SolveRequest {
            frontend: "gateway.v0".to_owned(),
            frontend_attrs: attrs(&[("source", IMAGE), ("key", "a=b")]),
            frontend_inputs: HashMap::from([("more".to_owned(), common::definition("/empty", ""))]),
            ..client.request()
        };
        client.solve(request).await.expect("a build");
        let told = client.files().remove("told").expect("a file");
        let told: Vec<&str> = told.lines().collect();
        let source = format!("source={IMAGE}");
        assert_eq!(told, ["key=a=b", &source, "workers=1", "inputs=more"]);
    });
}

#[test]
fn a_syntax_line_names_the_frontend() {
    with_server(|server| async move {
        let dockerfile = format!("# syntax={IMAGE} with words\nANYTHING goes\n");
        let mut client = server
            .client(offer(&dockerfile, Directory::default()))
            .await;
        let request = pbc::SolveRequest {
            frontend_attrs: attrs(&[("target", "t")]),
            ..client.request()
        };
        client.solve(request).await.expect("a build");
        let told = client.files().remove("told").expect("a file");
        assert!(
            told.contains(&format!("cmdline={IMAGE} with words\n")),
            "{told}"
        );
        assert!(told.contains("\ntarget=t\n"), "{told}");
        // The line of a file that was handed on already is not followed.
        let request = pbc::SolveRequest {
            frontend_attrs: attrs(&[("cmdline", "x")]),
            ..client.request()
        };
        let failed = client.solve(request).await.expect_err("no Dockerfile");
        assert!(
            failed.message().contains("ANYTHING"),
            "{}",
            failed.message()
        );
    });
}

#[test]
fn a_frontend_that_fails_says_why() {
    with_server(|server| async move {
        let mut client = server.client(offer("", Directory::default())).await;
        for (mode, said, code) in [
            ("crash", "exit code: 3: this went wrong", Code::Unknown),
            ("silent", "ended without a result", Code::Unknown),
            ("refuse", "not like this", Code::InvalidArgument),
        ] {
            let request = pbc::SolveRequest {
                frontend: "gateway.v0".to_owned(),
                frontend_attrs: attrs(&[("source", IMAGE), ("mode", mode)]),
                ..client.request()
            };
            let status = client.solve(request).await.expect_err("a failure");
            assert!(status.message().contains(said), "{}", status.message());
            assert_eq!(status.code(), code, "{mode}");
        }
        let request = pbc::SolveRequest {
            frontend: "gateway.v0".to_owned(),
            frontend_attrs: attrs(&[("source", IMAGE), ("frontend.caps", "what.no.one.has")]),
            ..client.request()
        };
        let status = client.solve(request).await.expect_err("a refusal");
        assert!(
            status.message().contains("what.no.one.has"),
            "{}",
            status.message()
        );
        assert_eq!(status.code(), Code::Unimplemented);
    });
}

#[test]
fn a_frontend_ends_with_its_client() {
    with_server(|server| async move {
        let client = server.client(offer("", Directory::default())).await;
        let request = pbc::SolveRequest {
            frontend: "gateway.v0".to_owned(),
            frontend_attrs: attrs(&[("source", IMAGE), ("mode", "hang")]),
            ..client.request()
        };
        let id = request.r#ref.clone();
        let mut control = client.control.clone();
        let build = tokio::spawn(async move { control.solve(request).await });
        let mut control = client.control.clone();
        let status = control.status(pbc::StatusRequest { r#ref: id }).await;
        let mut status = status.expect("a status").into_inner();
        // Its image is there, so that it is about to run.
        let loaded = |part: &pbc::StatusResponse| {
            let mut vertexes = part.vertexes.iter();
            vertexes
                .any(|vertex| vertex.name.contains("load frontend") && vertex.completed.is_some())
        };
        while !loaded(&status.message().await.expect("a status").expect("more")) {}
        drop(client);
        let _ = build.await.expect("a task").expect_err("an end");
        while let Ok(Some(_)) = status.message().await {}
        // The server ends well, which it does not with a process left.
    });
}

#[test]
fn an_image_is_a_frontend_for_builds_of_this_machine() {
    if !testkit::is_root() {
        testkit::skip!("the store of these tests is root's");
    }
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (root, context) = (folder.path().join("root"), folder.path().join("context"));
    make_image(&root, &folder.path().join("image"));
    std::fs::create_dir(&context).expect("a folder");
    let build = |dockerfile: String| {
        std::fs::write(context.join("Dockerfile"), dockerfile).expect("a file");
        Command::new(env!("CARGO_BIN_EXE_test-server"))
            .args([&root, &folder.path().join("no-socket"), &context])
            .output()
            .expect("a builder")
    };
    let built = build(format!("# syntax={IMAGE}\nANYTHING\n"));
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{said}");
    let told = std::fs::read_to_string(context.join("out/told")).expect("a file");
    let told: Vec<&str> = told.lines().collect();
    for line in [
        "build-arg:A=b",
        "filename=Dockerfile",
        "target=t",
        "inputs=",
    ] {
        assert!(told.contains(&line), "{told:?}");
    }
    let failed = build("# syntax=127.0.0.1:1/none\n".to_owned());
    assert!(!failed.status.success());
    let said = String::from_utf8_lossy(&failed.stderr);
    assert!(said.starts_with("Some((1, 1)) failed to resolve"), "{said}");
}

/// A frontend at the client with a container whose root is [`IMAGE`].
struct Gateway {
    bridge: LlbBridgeClient<Channel>,
    id: String,
}

impl Gateway {
    fn of<T>(&self, message: T) -> Request<T> {
        testclient::of(&self.id, message)
    }

    async fn start(client: &Client) -> (Self, tokio::task::JoinHandle<Result<(), Status>>) {
        let request = pbc::SolveRequest {
            frontend: String::new(),
            ..client.request()
        };
        let id = request.r#ref.clone();
        let mut control = client.control.clone();
        let build = tokio::spawn(async move { control.solve(request).await.map(drop) });
        let bridge = LlbBridgeClient::new(client.channel.clone());
        (Self { bridge, id }, build)
    }

    async fn container(&mut self, id: &str) -> Result<(), Status> {
        let mut builder = llb::GraphBuilder::default();
        let op = llb::SourceOp {
            identifier: format!("docker-image://{IMAGE}"),
            ..llb::SourceOp::default()
        };
        let output = builder.add(llb::Draft::new(llb::Op::Source(op), Vec::new()));
        let graph = builder.finish(Some(output)).expect("a graph");
        let definition = pb::Definition::decode(graph.encode_definition().as_slice());
        let solve = pbf::SolveRequest {
            definition: Some(definition.expect("a definition")),
            allow_result_return: true,
            allow_result_array_ref: true,
            ..pbf::SolveRequest::default()
        };
        let solve = self.of(solve);
        let solved = self.bridge.solve(solve).await?.into_inner();
        let Some(Some(pbf::result::Result::Ref(tree))) = solved.result.map(|result| result.result)
        else {
            panic!("one tree");
        };
        let mount = |dest: &str, result: &str, readonly| pb::Mount {
            dest: dest.to_owned(),
            result_id: result.to_owned(),
            readonly,
            ..pb::Mount::default()
        };
        let request = self.of(pbf::NewContainerRequest {
            container_id: id.to_owned(),
            mounts: vec![
                mount("/", &tree.id, false),
                mount("/own", "", false),
                mount("/same", &tree.id, true),
            ],
            hostname: "named".to_owned(),
            ..pbf::NewContainerRequest::default()
        });
        self.bridge.new_container(request).await.map(drop)
    }

    /// Starts a process in the container.
    async fn exec(&mut self, container: &str, args: &[&str], fds: &[u32], tty: bool) -> Process {
        let (messages, stream) = mpsc::channel(16);
        let init = pbf::InitMessage {
            container_id: container.to_owned(),
            meta: Some(pb::Meta {
                args: args.iter().map(|word| (*word).to_owned()).collect(),
                cwd: "/".to_owned(),
                ..pb::Meta::default()
            }),
            fds: fds.to_vec(),
            tty,
            ..pbf::InitMessage::default()
        };
        let process = Process {
            messages,
            answers: None,
        };
        process.send(Input::Init(init)).await;
        let request = self.of(ReceiverStream::new(stream));
        let answers = self.bridge.exec_process(request).await.expect("a call");
        Process {
            answers: Some(answers.into_inner()),
            ..process
        }
    }
}

struct Process {
    messages: mpsc::Sender<pbf::ExecMessage>,
    answers: Option<Streaming<pbf::ExecMessage>>,
}

/// What came of a process.
#[derive(Debug, Default, PartialEq)]
struct Came {
    code: Option<u32>,
    out: String,
    error: String,
}

impl Process {
    async fn send(&self, input: Input) {
        let message = pbf::ExecMessage {
            process_id: "p".to_owned(),
            input: Some(input),
        };
        self.messages
            .send(message)
            .await
            .expect("a call that goes on");
    }

    async fn next(&mut self) -> Option<Input> {
        let answers = self.answers.as_mut().expect("answers");
        answers.message().await.expect("a message")?.input
    }

    /// Waits for its end.
    async fn end(mut self) -> Came {
        assert!(matches!(self.next().await, Some(Input::Started(_))));
        self.rest().await
    }

    async fn rest(mut self) -> Came {
        let mut came = Came::default();
        loop {
            match self.next().await {
                Some(Input::File(file)) => {
                    let text = String::from_utf8(file.data).expect("text");
                    match file.fd {
                        1 => came.out += &text,
                        _ => came.error += &text,
                    }
                }
                Some(Input::Exit(exit)) => {
                    assert_eq!(exit.error.is_some(), exit.code != 0);
                    came.code = Some(exit.code);
                }
                Some(Input::Done(_)) => return came,
                other => panic!("unexpected: {other:?}"),
            }
        }
    }
}

#[test]
fn a_container_of_a_frontend_runs_processes() {
    with_server(|server| async move {
        let client = server.client(offer("", Directory::default())).await;
        let (mut gateway, build) = Gateway::start(&client).await;
        gateway.container("c").await.expect("a container");
        let twice = gateway
            .container("c")
            .await
            .expect_err("a name that is taken");
        assert_eq!(twice.code(), Code::AlreadyExists);
        // The first process is the container's world.
        let mut world = gateway.exec("c", &["/frontend", "wait"], &[1], false).await;
        assert!(matches!(world.next().await, Some(Input::Started(_))));
        let Some(Input::File(file)) = world.next().await else {
            panic!("its words");
        };
        assert_eq!(file.data, b"waiting\n");
        let said = gateway
            .exec("c", &["/frontend", "say", "one", "two"], &[1, 2], false)
            .await;
        let said = said.end().await;
        assert_eq!(
            (said.code, &*said.out, &*said.error),
            (Some(0), "one", "two")
        );
        let cat = gateway
            .exec("c", &["/frontend", "cat"], &[0, 1], false)
            .await;
        let piece = |data: &[u8], eof| pbf::FdMessage {
            fd: 0,
            eof,
            data: data.to_vec(),
        };
        cat.send(Input::File(piece(b"through", false))).await;
        cat.send(Input::File(piece(b"", true))).await;
        assert_eq!(cat.end().await.out, "through");
        let failed = gateway
            .exec("c", &["/frontend", "exit", "7"], &[], false)
            .await;
        assert_eq!(failed.end().await.code, Some(7));
        let missing = gateway.exec("c", &["/nothing"], &[], false).await;
        assert_eq!(missing.end().await.code, Some(127));
        let sized = gateway
            .exec("c", &["/frontend", "size"], &[0, 1], true)
            .await;
        assert_eq!(sized.end().await.out, "0 0\r\n");
        // What is written is seen by the others, and by whoever reads the container's files.
        for path in ["/root-file", "/own/file"] {
            let wrote = gateway
                .exec("c", &["/frontend", "write", path, "text"], &[], false)
                .await;
            assert_eq!(wrote.end().await.code, Some(0), "{path}");
        }
        let refused = gateway
            .exec("c", &["/frontend", "write", "/same/x", "text"], &[], false)
            .await;
        assert_ne!(refused.end().await.code, Some(0));
        for (path, mount) in [("/root-file", 0), ("/file", 1)] {
            let read = gateway.of(pbf::ReadFileRequest {
                r#ref: "c".to_owned(),
                file_path: path.to_owned(),
                mount_index: mount,
                ..pbf::ReadFileRequest::default()
            });
            let read = gateway.bridge.read_file_container(read).await;
            assert_eq!(read.expect("a file").into_inner().data, b"text");
        }
        let list = gateway.of(pbf::ReadDirRequest {
            r#ref: "c".to_owned(),
            dir_path: "/".to_owned(),
            mount_index: 1,
            ..pbf::ReadDirRequest::default()
        });
        let list = gateway
            .bridge
            .read_dir_container(list)
            .await
            .expect("a list");
        assert_eq!(list.into_inner().entries[0].path, "file");
        // A signal ends the world, and releasing what is left.
        let signal = pbf::SignalMessage {
            name: "TERM".to_owned(),
        };
        world.send(Input::Signal(signal)).await;
        assert_eq!(world.rest().await.code, Some(128 + 15));
        let release = || pbf::ReleaseContainerRequest {
            container_id: "c".to_owned(),
        };
        let first = gateway.of(release());
        gateway
            .bridge
            .release_container(first)
            .await
            .expect("an end");
        let second = gateway.of(release());
        let second = gateway.bridge.release_container(second).await;
        assert!(
            second
                .expect_err("no container")
                .message()
                .contains("not found")
        );
        let back = gateway.of(pbf::ReturnRequest::default());
        gateway.bridge.r#return(back).await.expect("an end");
        build.await.expect("a task").expect("a build");
    });
}

#[test]
fn a_container_ends_with_its_frontend() {
    with_server(|server| async move {
        let client = server.client(offer("", Directory::default())).await;
        let (mut gateway, build) = Gateway::start(&client).await;
        gateway.container("c").await.expect("a container");
        let mut world = gateway.exec("c", &["/frontend", "wait"], &[1], false).await;
        assert!(matches!(world.next().await, Some(Input::Started(_))));
        let back = gateway.of(pbf::ReturnRequest::default());
        gateway.bridge.r#return(back).await.expect("an end");
        build.await.expect("a task").expect("a build");
        assert_eq!(world.rest().await.code, Some(128 + 9));
    });
}
