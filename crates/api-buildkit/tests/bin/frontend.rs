//! What images of tests have: a frontend that speaks LLBBridge on its standard streams, and, with arguments, small
//! programs for containers.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use bollard_buildkit_proto::google::rpc;
use bollard_buildkit_proto::moby::buildkit::v1::frontend as pbf;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_client::LlbBridgeClient;
use bollard_buildkit_proto::pb;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tonic::transport::{Channel, Endpoint};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => frontend(),
        ["cat"] => {
            std::io::copy(&mut std::io::stdin(), &mut std::io::stdout()).expect("a copy");
        }
        ["exit", code] => std::process::exit(code.parse().expect("a code")),
        ["say", out, error] => {
            print!("{out}");
            eprint!("{error}");
        }
        ["write", path, text] => std::fs::write(path, text).expect("a file"),
        ["read", path] => {
            let mut text = String::new();
            let mut file = std::fs::File::open(path).expect("a file");
            file.read_to_string(&mut text).expect("text");
            print!("{text}");
        }
        ["size"] => {
            let size = rustix::termios::tcgetwinsize(std::io::stdin()).expect("a terminal");
            println!("{} {}", size.ws_row, size.ws_col);
        }
        ["wait"] => {
            println!("waiting");
            std::io::stdout().flush().expect("a flush");
            loop {
                std::thread::park();
            }
        }
        other => panic!("unknown words: {other:?}"),
    }
}

fn options() -> HashMap<String, String> {
    let given = std::env::vars().filter(|(name, _)| name.starts_with("BUILDKIT_FRONTEND_OPT_"));
    given
        .filter_map(|(_, value)| {
            let (name, value) = value.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        })
        .collect()
}

fn frontend() {
    let options = options();
    let mode = options.get("mode").map_or("", String::as_str);
    match mode {
        "crash" => {
            eprintln!("this went wrong");
            std::process::exit(3);
        }
        "silent" => return,
        "hang" => loop {
            std::thread::park();
        },
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(converse(mode, &options));
}

async fn converse(mode: &str, options: &HashMap<String, String>) {
    let mut bridge = LlbBridgeClient::new(connect().await);
    if mode == "refuse" {
        let error = rpc::Status {
            code: tonic::Code::InvalidArgument as i32,
            message: "not like this".to_owned(),
            details: Vec::new(),
        };
        let back = pbf::ReturnRequest {
            result: None,
            error: Some(error),
        };
        bridge.r#return(back).await.expect("an end");
        return;
    }
    bridge.ping(pbf::PingRequest {}).await.expect("a pong");
    let own = std::fs::read("/run/config/buildkit/metadata/frontend.bin").expect("its own graph");
    let own = pb::Definition::decode(own.as_slice()).expect("a definition");
    assert!(!own.def.is_empty());
    let workers = std::env::var("BUILDKIT_WORKERS").expect("the workers");
    let workers: serde_json::Value = serde_json::from_str(&workers).expect("JSON");
    // Files tell what came in.
    let mut told: Vec<String> = options
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    told.sort();
    told.push(format!(
        "workers={}",
        workers.as_array().map_or(0, Vec::len)
    ));
    let inputs = bridge.inputs(pbf::InputsRequest {}).await.expect("inputs");
    let mut inputs: Vec<String> = inputs.into_inner().definitions.into_keys().collect();
    inputs.sort();
    told.push(format!("inputs={}", inputs.join(",")));
    let mut file = llb::FileSpec::new(None);
    file.action(llb::Action::MakeFile(llb::MakeFile {
        path: "/told".to_owned(),
        mode: 0o644,
        data: told.join("\n").into_bytes(),
        ..llb::MakeFile::default()
    }));
    let mut builder = llb::GraphBuilder::default();
    let output = builder.add(file.into_draft(llb::Metadata::named("tell")));
    let graph = builder.finish(Some(output)).expect("a graph");
    let definition = pb::Definition::decode(graph.encode_definition().as_slice());
    let solve = pbf::SolveRequest {
        definition: Some(definition.expect("a definition")),
        allow_result_return: true,
        allow_result_array_ref: true,
        ..pbf::SolveRequest::default()
    };
    let solved = bridge.solve(solve).await.expect("a result").into_inner();
    let back = pbf::ReturnRequest {
        result: solved.result,
        error: None,
    };
    bridge.r#return(back).await.expect("an end");
}

/// Makes a channel of the standard streams.
async fn connect() -> Channel {
    let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().expect("a descriptor");
    let input = pipe::Receiver::from_owned_fd(own(std::io::stdin().as_fd())).expect("a pipe");
    let output = pipe::Sender::from_owned_fd(own(std::io::stdout().as_fd())).expect("a pipe");
    let mut streams = Some(Streams { input, output });
    Endpoint::from_static("http://builder")
        .connect_with_connector(tower::service_fn(move |_| {
            let streams = streams.take().map(TokioIo::new);
            async move {
                streams.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected))
            }
        }))
        .await
        .expect("a connection")
}

struct Streams {
    input: pipe::Receiver,
    output: pipe::Sender,
}

impl AsyncRead for Streams {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.input).poll_read(context, buffer)
    }
}

impl AsyncWrite for Streams {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.output).poll_write(context, buffer)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.output).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.output).poll_shutdown(context)
    }
}
