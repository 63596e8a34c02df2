//! A server whose steps have a helper: `test-server ROOT SOCKET`. It ends when its standard input does.
//!
//! With a third word, a directory, it builds that into the directory's `out` instead.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use api_buildkit::{Access, Address, Server, Settings};
use engine::{BuildRequest, Cancel, Engine, EngineSettings, Frontends, Output};
use progress::Sink;

fn main() {
    engine::become_helper_if_asked();
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(root), Some(socket)) = (arguments.next(), arguments.next()) else {
        panic!("test-server ROOT SOCKET");
    };
    let settings = EngineSettings::of_this_machine(root).expect("a machine to build on");
    let engine = Engine::open(EngineSettings {
        registries: registry::Settings::default(),
        ..settings
    })
    .expect("an engine");
    if let Some(directory) = arguments.next() {
        build(&engine, directory);
        return;
    }
    let settings = Settings {
        addresses: vec![Address::Unix(socket)],
        access: Access::default(),
        entitlements: Vec::new(),
        environment: serde_json::Map::new(),
        collector: None,
        history: Default::default(),
    };
    let stop = Cancel::default();
    let stopping = stop.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        stopping.request();
    });
    Server::new(engine, settings)
        .run(&stop, |_| println!("ready"))
        .expect("a server that ends well");
}

fn build(engine: &Engine, directory: PathBuf) {
    let request = BuildRequest {
        outputs: vec![Output::Local {
            destination: directory.join("out"),
            platform_split: None,
        }],
        frontends: Some(Frontends(Arc::new(api_buildkit::Frontends))),
        ..BuildRequest::of_directory(directory)
    };
    let request = request.for_target("t").with_argument("A", "b");
    if let Err(failure) = engine.build(&request, &Sink::discard(), &Cancel::default()) {
        let step = &failure.steps[0];
        eprint!("{:?} {}", step.lines, engine::chain(&step.error));
        std::process::exit(1);
    }
}
