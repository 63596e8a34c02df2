//! Servers of tests.

// Each file of tests uses a part of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use api_buildkit::{Access, Address, Collector, Server, Settings};
use bollard_buildkit_proto::pb;
use engine::{Cancel, Engine, EngineSettings};
use prost::Message;
use store::Ids;
use testclient::{Client, Offer};

/// A server in this process, with its own state.
pub(crate) struct TestServer {
    folder: tempfile::TempDir,
    stop: Cancel,
    thread: Option<JoinHandle<()>>,
}

impl TestServer {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let socket = Address::Unix(folder.path().join("socket"));
        Self::listen(folder, socket, Access::default()).0
    }

    /// Ends, and begins again with the same state.
    pub(crate) fn restart(mut self) -> Self {
        self.stop();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().expect("a directory"));
        let socket = Address::Unix(folder.path().join("socket"));
        Self::listen(folder, socket, Access::default()).0
    }

    /// Serves on an address, and returns where that is.
    pub(crate) fn listen(
        folder: tempfile::TempDir,
        address: Address,
        access: Access,
    ) -> (Self, String) {
        Self::begin(folder, address, access, None)
    }

    /// Sends spans to a collector.
    pub(crate) fn traced(collector: Collector) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let socket = Address::Unix(folder.path().join("socket"));
        Self::begin(folder, socket, Access::default(), Some(collector)).0
    }

    fn begin(
        folder: tempfile::TempDir,
        address: Address,
        access: Access,
        collector: Option<Collector>,
    ) -> (Self, String) {
        let engine = open_engine(&folder.path().join("root"));
        let settings = Settings {
            addresses: vec![address],
            access,
            entitlements: Vec::new(),
            environment: serde_json::Map::new(),
            collector,
            history: Default::default(),
        };
        let stop = Cancel::default();
        let (ready, is_ready) = mpsc::channel();
        let stopping = stop.clone();
        let thread = std::thread::spawn(move || {
            Server::new(engine, settings)
                .run(&stopping, |addresses| {
                    ready.send(addresses[0].clone()).expect("a test that waits");
                })
                .expect("a server that ends well");
        });
        let address = is_ready.recv().expect("a server that starts");
        let server = Self {
            folder,
            stop,
            thread: Some(thread),
        };
        (server, address)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub(crate) async fn client(&self, offer: Offer, shared_key: &str) -> Client {
        let channel = testclient::channel(self.socket()).await;
        Client::connect(channel.expect("a connection"), offer, shared_key).await
    }

    /// Stops the server and waits for its end.
    pub(crate) fn stop(&mut self) {
        self.stop.request();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server does not panic");
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Opens a store of its own.
pub(crate) fn open_engine(root: &Path) -> Engine {
    Engine::open(EngineSettings {
        root: root.to_owned(),
        ids: Ids::Rootful,
        registries: registry::Settings::default(),
        sandbox: sandbox::Options::default(),
        step_limits: sandbox::Limits::default(),
        slots: None,
        runtime: None,
        notes: Vec::new(),
        limits: None,
        history: Default::default(),
    })
    .expect("an engine")
}

/// Returns the names in a directory that begin with a prefix.
pub(crate) fn names(folder: &Path, prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// Runs a test with a server, where an engine can be opened as these tests do.
pub(crate) fn with<S, F: Future<Output = ()>>(
    start: impl FnOnce() -> S,
    test: impl FnOnce(S) -> F,
) {
    if !testkit::is_root() {
        testkit::skip!("the store of these tests is root's");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(test(start()));
}

/// Runs a test with a server in this process.
pub(crate) fn with_server<F: Future<Output = ()>>(test: impl FnOnce(TestServer) -> F) {
    with(TestServer::start, test);
}

/// Returns a graph that makes one file.
pub(crate) fn definition(path: &str, content: &str) -> pb::Definition {
    let mut file = llb::FileSpec::new(None);
    file.action(llb::Action::MakeFile(llb::MakeFile {
        path: path.to_owned(),
        mode: 0o644,
        data: content.as_bytes().to_vec(),
        ..llb::MakeFile::default()
    }));
    let mut builder = llb::GraphBuilder::default();
    let output = builder.add(file.into_draft(llb::Metadata::named("make a file")));
    let graph = builder.finish(Some(output)).expect("a graph");
    pb::Definition::decode(graph.encode_definition().as_slice()).expect("a definition")
}

/// Returns a graph that is one source.
pub(crate) fn source(identifier: &str) -> pb::Definition {
    let source = pb::Op {
        op: Some(pb::op::Op::Source(pb::SourceOp {
            identifier: identifier.to_owned(),
            attrs: std::collections::BTreeMap::new(),
        })),
        ..pb::Op::default()
    };
    let digest = oci::Digest::sha256_of(&source.encode_to_vec()).to_string();
    let end = pb::Op {
        inputs: vec![pb::Input { digest, index: 0 }],
        ..pb::Op::default()
    };
    pb::Definition {
        def: vec![source.encode_to_vec(), end.encode_to_vec()],
        ..pb::Definition::default()
    }
}
