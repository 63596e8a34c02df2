//! Results that travel: what one machine keeps with `--cache-to` another takes with `--cache-from`.

use std::fs;
use std::path::Path;

use testkit::{Environment, Outcome};

#[allow(dead_code)]
#[path = "../../registry/tests/it/server.rs"]
mod server;

use server::{Fault, Registry};

const DOCKERFILE: &str = "FROM busybox AS tools
RUN head -c 2000 /dev/urandom > /tool
FROM busybox
COPY --from=tools /tool /tool
RUN head -c 2000 /dev/urandom > /random && ln -s tool /link && mkdir -m 700 /private
COPY file /file
";

/// A machine with its own store, the same files, and the same directory for caches.
fn machine(caches: &Path) -> Environment {
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    environment.write("ctx/Dockerfile", DOCKERFILE);
    environment.write("ctx/file", "first");
    std::os::unix::fs::symlink(caches, environment.work().join("caches")).expect("a link");
    environment
}

fn build(environment: &Environment, arguments: &[&str]) -> Outcome {
    let mut all = vec!["build", "--progress=plain", "-t", "app"];
    all.extend(arguments);
    all.push("ctx");
    environment.ok(all)
}

fn id(environment: &Environment) -> String {
    environment
        .ok(["image", "inspect", "-f", "{{.Id}}", "app"])
        .stdout
}

/// Counts the RUN steps that were really run.
fn runs(outcome: &Outcome) -> usize {
    let steps = outcome
        .stderr
        .lines()
        .filter(|line| line.contains("] RUN "));
    let cached = outcome
        .stderr
        .lines()
        .filter(|line| line.ends_with(" CACHED"));
    let number = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let cached: Vec<String> = cached.map(number).collect();
    let mut steps: Vec<String> = steps.map(number).collect();
    steps.sort();
    steps.dedup();
    steps.retain(|step| !cached.contains(step));
    steps.len()
}

fn serve() -> (tokio::runtime::Runtime, Registry) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let registry = runtime.block_on(Registry::start());
    (runtime, registry)
}

/// The steps are random: an image that is equal was taken, not built.
#[test]
fn a_directory_brings_the_same_image_to_another_machine() {
    testkit::require_fixtures!("busybox:latest");
    let caches = tempfile::tempdir().expect("a folder");
    let first = machine(caches.path());
    build(&first, &["--cache-to", "type=local,dest=caches/one"]);
    let second = machine(caches.path());
    let outcome = build(&second, &["--cache-from", "type=local,src=caches/one"]);
    assert_eq!(runs(&outcome), 0, "{}", outcome.told());
    assert_eq!(id(&first), id(&second));
    second.ok(["run", "--rm", "app", "sh", "-c", "cat /link > /dev/null"]);
    // It is recorded there now.
    let again = build(&second, &[]);
    assert_eq!(runs(&again), 0, "{}", again.told());
    assert_eq!(id(&first), id(&second));
    second.ok(["system", "check"]);
}

#[test]
fn the_least_holds_the_image_and_the_most_all_steps() {
    testkit::require_fixtures!("busybox:latest");
    let caches = tempfile::tempdir().expect("a folder");
    let first = machine(caches.path());
    build(&first, &["--cache-to", "type=local,dest=caches/min"]);
    build(
        &first,
        &["--cache-to", "type=local,dest=caches/max,mode=max"],
    );
    for (name, expect) in [("min", 1), ("max", 0)] {
        let other = machine(caches.path());
        // Only the stage before is wanted: it is in no layer of the image.
        let from = format!("type=local,src=caches/{name}");
        let outcome = build(&other, &["--target=tools", "--cache-from", &from]);
        assert_eq!(runs(&outcome), expect, "{name}: {}", outcome.told());
    }
    // A change at the end takes what lies before it.
    let other = machine(caches.path());
    other.write("ctx/file", "second");
    let outcome = build(&other, &["--cache-from", "type=local,src=caches/max"]);
    assert_eq!(runs(&outcome), 0, "{}", outcome.told());
    assert_ne!(id(&first), id(&other));
}

#[test]
fn a_registry_keeps_what_several_machines_push_under_one_name() {
    testkit::require_fixtures!("busybox:latest");
    let (_runtime, registry) = serve();
    let name = format!("{}/cache:main", registry.authority);
    let caches = tempfile::tempdir().expect("a folder");
    let to = format!("type=registry,ref={name},mode=max");
    let machines: Vec<Environment> = (0..4)
        .map(|number| {
            let machine = machine(caches.path());
            machine.write("ctx/file", format!("of machine {number}"));
            machine
        })
        .collect();
    std::thread::scope(|scope| {
        for machine in &machines {
            scope.spawn(|| {
                let outcome = build(machine, &["--cache-to", &to]);
                assert!(
                    !outcome.stderr.contains("is not written"),
                    "{}",
                    outcome.told()
                );
            });
        }
    });
    for number in 0..4 {
        let other = self::machine(caches.path());
        other.write("ctx/file", format!("of machine {number}"));
        let outcome = build(&other, &["--cache-from", &name]);
        let ran = outcome
            .stderr
            .lines()
            .filter(|line| line.contains("COPY file"))
            .count();
        assert!(ran > 0, "{}", outcome.told());
        assert_eq!(runs(&outcome), 0, "machine {number}: {}", outcome.told());
    }
}

#[test]
fn an_image_carries_its_own_cache() {
    testkit::require_fixtures!("busybox:latest");
    let (_runtime, registry) = serve();
    let name = format!("{}/app:1", registry.authority);
    let caches = tempfile::tempdir().expect("a folder");
    let first = machine(caches.path());
    let inline = "BUILDKIT_INLINE_CACHE=1";
    first.ok(["build", "--build-arg", inline, "-t", &name, "--push", "ctx"]);
    let second = machine(caches.path());
    second.write("ctx/file", "second");
    let outcome = build(&second, &["--cache-from", &name]);
    // The tools are not in the image, but nothing asks for them: what is made of them is.
    assert_eq!(runs(&outcome), 0, "{}", outcome.told());
}

#[test]
fn caches_that_cannot_be_reached_cost_a_warning() {
    testkit::require_fixtures!("busybox:latest");
    let (_runtime, registry) = serve();
    registry.faults(|_| Some(Fault::Status(403)));
    let caches = tempfile::tempdir().expect("a folder");
    let machine = machine(caches.path());
    let name = format!("{}/cache:main", registry.authority);
    let outcome = build(
        &machine,
        &[
            "--cache-from",
            &name,
            "--cache-to",
            &name,
            "--cache-from",
            "type=local,src=nowhere",
        ],
    );
    outcome.says("is not used");
    outcome.says("is not written");
    outcome.says("nowhere");
    let why = machine
        .ok(["why", "RUN head -c 2000 /dev/urandom > /tool"])
        .stdout;
    for text in [
        "no earlier build has such a step",
        "was not used: ",
        "nowhere",
    ] {
        assert!(why.contains(text), "{why}");
    }
    // Nobody looks at the progress of these.
    for quiet in ["-q", "--progress=quiet"] {
        let words = ["build", quiet, "--cache-to", &name, "ctx"];
        let told = machine.ok(words).stderr;
        let warnings = told
            .lines()
            .filter(|line| line.starts_with("warning: cache "));
        assert_eq!(warnings.count(), 1, "{told}");
    }
}

#[test]
fn why_tells_which_cache_had_a_result_and_which_had_none() {
    testkit::require_fixtures!("busybox:latest");
    let caches = tempfile::tempdir().expect("a folder");
    let first = machine(caches.path());
    build(
        &first,
        &["--cache-to", "type=local,dest=caches/max,mode=max"],
    );
    let second = machine(caches.path());
    let from = ["--cache-from", "type=local,src=caches/max"];
    build(&second, &from);
    let why = second.ok(["why", "RUN head -c 2000 /dev/urandom > /random"]);
    assert!(
        why.stdout.contains("what builds on it was there"),
        "{}",
        why.stdout
    );
    let why = second.ok(["why", "COPY file /file"]);
    assert!(
        why.stdout
            .contains("cached\n  its result came from the cache ")
            && why.stdout.contains("caches/max"),
        "{}",
        why.stdout
    );
    let why = second.ok(["why"]).stdout;
    assert!(
        why.contains(" of them in the cache ") && why.contains("caches/max"),
        "{why}"
    );
    second.write("ctx/file", "second");
    build(&second, &from);
    let why = second.ok(["why", "COPY file /file"]).stdout;
    assert!(
        why.contains("have changed") && why.contains("caches/max has no result for it"),
        "{why}"
    );
    let third = machine(caches.path());
    third.write(
        "ctx/Dockerfile",
        "FROM busybox\nRUN echo a > /a\nRUN echo b > /b\n",
    );
    build(&third, &from);
    let why = third.ok(["why"]).stdout;
    let lines: Vec<&str> = why.lines().collect();
    assert_eq!(lines[0], "no earlier build has any of these 3 steps");
    assert!(lines[1].ends_with("caches/max has none of them"), "{why}");
}

/// A cache that lies costs time, never the result.
#[test]
fn what_a_cache_promises_is_checked() {
    testkit::require_fixtures!("busybox:latest");
    let damage = |name: &str, change: &dyn Fn(&Path)| {
        let caches = tempfile::tempdir().expect("a folder");
        let first = machine(caches.path());
        build(
            &first,
            &["--cache-to", "type=local,dest=caches/one,mode=max"],
        );
        let blobs = caches.path().join("one/blobs/sha256");
        for entry in fs::read_dir(blobs).expect("blobs") {
            change(&entry.expect("a blob").path());
        }
        let second = machine(caches.path());
        let outcome = build(&second, &["--cache-from", "type=local,src=caches/one"]);
        assert_eq!(runs(&outcome), 2, "{name}: {}", outcome.told());
        second.ok(["run", "--rm", "app", "test", "-s", "/random"]);
        second.ok(["system", "check"]);
    };
    let is_layer = |path: &Path| {
        let bytes = fs::read(path).expect("a blob");
        bytes.starts_with(&[0x1f, 0x8b])
    };
    damage("another byte", &|path| {
        if is_layer(path) {
            let mut bytes = fs::read(path).expect("a blob");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(path, bytes).expect("it is written");
        }
    });
    damage("a cut", &|path| {
        if is_layer(path) {
            let bytes = fs::read(path).expect("a blob");
            fs::write(path, &bytes[..bytes.len() / 2]).expect("it is written");
        }
    });
    damage("a longer one", &|path| {
        if is_layer(path) {
            let mut bytes = fs::read(path).expect("a blob");
            bytes.extend([0; 1000]);
            fs::write(path, bytes).expect("it is written");
        }
    });
    damage("garbage", &|path| {
        fs::write(path, "{}").expect("it is written")
    });
    damage("nothing", &|path| {
        fs::remove_file(path).expect("it is removed")
    });
}

#[test]
fn without_cache_nothing_is_taken() {
    testkit::require_fixtures!("busybox:latest");
    let caches = tempfile::tempdir().expect("a folder");
    let first = machine(caches.path());
    build(
        &first,
        &["--cache-to", "type=local,dest=caches/one,mode=max"],
    );
    let second = machine(caches.path());
    let from = ["--no-cache", "--cache-from", "type=local,src=caches/one"];
    assert_eq!(runs(&build(&second, &from)), 2);
}

#[test]
fn a_directory_does_not_grow_for_ever() {
    testkit::require_fixtures!("busybox:latest");
    let caches = tempfile::tempdir().expect("a folder");
    let first = machine(caches.path());
    let to = ["--cache-to", "type=local,dest=caches/one"];
    build(&first, &to);
    let count = || {
        fs::read_dir(caches.path().join("one/blobs/sha256"))
            .expect("blobs")
            .count()
    };
    let before = count();
    for _ in 0..3 {
        build(&first, &to);
    }
    assert_eq!(count(), before);
}

#[test]
fn what_is_no_cache_is_refused() {
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    environment.write("ctx/Dockerfile", "FROM scratch\n");
    let check = |arguments: [&str; 2], expect: &str| {
        let mut all = vec!["build"];
        all.extend(arguments);
        all.push("ctx");
        environment.run(all).fails_with(2).says(expect);
    };
    check(["--cache-to", "type=gha"], "there is no type \"gha\"");
    check(["--cache-to", "type=local"], "it has no dest");
    check(["--cache-from", "type=local"], "it has no src");
    check(["--cache-to", "type=inline,mode=most"], "there is no mode");
    check(["--cache-from", "type=registry,ref=x,color=red"], "color");
}

/// Layers that are alike, twice in one image and in another order in the next one: nobody may wait for himself, nor two
/// for each other.
#[test]
fn images_that_share_layers_are_brought_in_at_once() {
    testkit::require_fixtures!("busybox:latest");
    let first = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    first.write("ctx/one", "1");
    first.write("ctx/two", "2");
    let dockerfile = |first: &str, second: &str| {
        format!(
            "FROM busybox\nRUN true\nCOPY --link {first} /{first}\nRUN true\nCOPY --link {second} /{second}\n"
        )
    };
    first.write("ctx/Dockerfile", dockerfile("one", "two"));
    first.ok(["build", "-o", "type=oci,dest=a.tar", "-t", "a", "ctx"]);
    first.write("ctx/Dockerfile", dockerfile("two", "one"));
    first.ok(["build", "-o", "type=oci,dest=b.tar", "-t", "b", "ctx"]);
    for _ in 0..3 {
        let second = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
        let loads = ["a.tar", "b.tar", "a.tar", "b.tar"].map(|archive| {
            let archive = first.work().join(archive).display().to_string();
            second
                .command(["load", "-q", "-i", &archive])
                .spawn()
                .expect("it starts")
        });
        for mut load in loads {
            assert!(load.wait().expect("it ends").success());
        }
        assert_eq!(second.ok(["images", "-q"]).stdout.lines().count(), 2);
    }
}

/// The first stage makes the same file in another way.
fn generated(environment: &Environment, way: &str) {
    let dockerfile = format!(
        "FROM busybox AS made\nRUN echo made > /file && touch -d @1 /file && : {way}\nFROM busybox\n\
         COPY --from=made /file /file\nRUN head -c 2000 /dev/urandom > /random\n"
    );
    environment.write("ctx/Dockerfile", dockerfile);
}

#[test]
fn what_another_machine_made_is_found_by_the_content_of_its_inputs_too() {
    testkit::require_fixtures!("busybox:latest");
    let caches = tempfile::tempdir().expect("a folder");
    let first = machine(caches.path());
    generated(&first, "one");
    build(
        &first,
        &["--cache-to", "type=local,dest=caches/max,mode=max"],
    );
    let from = ["--cache-from", "type=local,src=caches/max"];
    // Its first step has to run, and what it makes is equal.
    let second = machine(caches.path());
    generated(&second, "two");
    let outcome = build(&second, &from);
    assert_eq!(runs(&outcome), 1, "{}", outcome.told());
    assert_eq!(id(&first), id(&second));
    // Taken by its key, it is still known by its content when the cache is out of reach.
    let third = machine(caches.path());
    generated(&third, "one");
    assert_eq!(runs(&build(&third, &from)), 0);
    generated(&third, "three");
    let outcome = build(&third, &[]);
    assert_eq!(runs(&outcome), 1, "{}", outcome.told());
    assert_eq!(id(&first), id(&third));
    // And passed on, with what came from elsewhere.
    build(
        &third,
        &["--cache-to", "type=local,dest=caches/passed,mode=max"],
    );
    let fourth = machine(caches.path());
    generated(&fourth, "four");
    let outcome = build(&fourth, &["--cache-from", "type=local,src=caches/passed"]);
    assert_eq!(runs(&outcome), 1, "{}", outcome.told());
    assert_eq!(id(&first), id(&fourth));
    // Another content is another step.
    generated(&fourth, "four && echo other > /file");
    let outcome = build(&fourth, &from);
    assert_eq!(runs(&outcome), 2, "{}", outcome.told());
    fourth.ok(["system", "check"]);
}

#[test]
fn several_caches_are_written_at_once() {
    testkit::require_fixtures!("busybox:latest");
    let (_runtime, registry) = serve();
    let caches = tempfile::tempdir().expect("a folder");
    let first = machine(caches.path());
    let (one, two) = (
        format!("{}/one:1", registry.authority),
        format!("{}/two:1", registry.authority),
    );
    let in_registry = |name: &str| format!("type=registry,ref={name},mode=max");
    build(
        &first,
        &[
            "--cache-to",
            &in_registry(&one),
            "--cache-to",
            &in_registry(&two),
            "--cache-to",
            "type=local,dest=caches/local,mode=max,compression=zstd",
            "--cache-to",
            "type=local,dest=caches/min",
        ],
    );
    for from in [
        one.as_str(),
        &two,
        "type=local,src=caches/local",
        "type=local,src=caches/min",
    ] {
        let other = machine(caches.path());
        let outcome = build(&other, &["--cache-from", from]);
        assert_eq!(runs(&outcome), 0, "{from}: {}", outcome.told());
        assert_eq!(id(&first), id(&other), "{from}");
    }
}
