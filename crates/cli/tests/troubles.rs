//! What a bad connection to a registry brings is right or a clear error.

use testkit::Environment;
use testkit::soak::{self, Trial};

#[allow(dead_code)]
#[path = "../../registry/tests/it/server.rs"]
mod server;

use server::{Fault, Registry};

/// A registry with an image of one layer under two tags, and who asks it.
fn world() -> (tokio::runtime::Runtime, Registry, Environment) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let registry = runtime.block_on(Registry::start());
    let world = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    world.write("ctx/file", "0123456789\n".repeat(20_000));
    world.write("ctx/Dockerfile", "FROM scratch\nCOPY file /file\n");
    let name = |tag: &str| format!("{}/app:{tag}", registry.authority);
    let (one, two) = (name("1"), name("2"));
    world.ok(["build", "-q", "-t", &one, "-t", &two, "--push", "ctx"]);
    world.ok(["system", "prune", "-f", "-a"]);
    (runtime, registry, world)
}

/// Changes a bit of each layer that is fetched, so many times.
fn change(registry: &Registry, mut times: u32) {
    let layers: Vec<String> = {
        let state = registry.state();
        let layers = state
            .blobs
            .iter()
            .filter(|(_, blob)| !blob.starts_with(b"{"));
        layers.map(|((_, digest), _)| digest.to_string()).collect()
    };
    registry.faults(move |seen| {
        let is_layer = layers.iter().any(|layer| seen.path.ends_with(layer));
        if seen.method != "GET" || !is_layer || times == 0 {
            return None;
        }
        times -= 1;
        Some(Fault::Flip)
    });
}

#[test]
fn a_layer_that_was_changed_on_the_way_is_fetched_again() {
    let (_runtime, registry, world) = world();
    let name = format!("{}/app:1", registry.authority);
    change(&registry, 2);
    world.ok(["pull", "-q", &name]);
    world.write("from/Dockerfile", format!("FROM {name}\n"));
    world.ok(["build", "-q", "-o", "out", "from"]);
    let found = std::fs::read(world.work().join("out/file")).expect("a file");
    assert_eq!(found, "0123456789\n".repeat(20_000).as_bytes());
    world.ok(["system", "prune", "-f", "-a"]);
    // For ever is too often: what is told names the layer and the image.
    change(&registry, u32::MAX);
    let failed = world.run(["pull", "-q", &name]).fails_with(1);
    failed
        .says("failed to unpack layer sha256:")
        .says(&format!("of {name}"));
    assert_eq!(world.ok(["images", "-q"]).stdout, "");
    world.ok(["system", "check"]);
}

#[test]
fn all_tags_of_a_name_are_pulled_and_some_are_removed() {
    let (_runtime, registry, world) = world();
    let app = format!("{}/app", registry.authority);
    world.ok(["pull", "-q", "-a", &app]);
    let tags = || world.ok(["images", "--format", "{{.Tag}}"]).stdout;
    assert_eq!(tags().lines().count(), 2);
    let one = format!("{app}:1");
    world
        .run(["pull", "-a", &one])
        .fails_with(1)
        .says("tag can't be used");
    // One that has a label, and is older than a day only by its own word.
    let text = "FROM scratch\nCOPY file /other\nLABEL keep=1\n";
    world.write("ctx/Dockerfile", text);
    world.ok([
        "build",
        "-q",
        "-t",
        "kept",
        "--build-arg",
        "SOURCE_DATE_EPOCH=1000",
        "ctx",
    ]);
    let prune = |filter: &str| {
        let told = world
            .ok(["image", "prune", "-a", "-f", "--filter", filter])
            .stdout;
        told.matches("deleted: ").count()
    };
    assert_eq!(prune("label=absent"), 0);
    assert_eq!(prune("until=24h"), 1);
    world.ok(["build", "-q", "-t", "kept", "ctx"]);
    assert_eq!(prune("label!=keep"), 1);
    assert_eq!(tags(), "latest\n");
    assert_eq!(prune("label=keep=1"), 1);
    world
        .run(["image", "prune", "-f", "--filter", "x=y"])
        .fails_with(2)
        .says("there are until, label, label! and dangling");
}

#[test]
fn a_bad_connection_to_a_registry_brings_what_is_right_or_an_error() {
    testkit::require_fixtures!("busybox:latest");
    testkit::require_programs!("docker-registry");
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    let trial = Trial {
        count: 8,
        seed: 1,
        is_told: false,
    };
    let tally = soak::registry(&environment, trial);
    assert!(tally.troubles > trial.count, "{tally:?}");
    assert!(tally.right() > trial.count / 2, "{tally:?}");
}
