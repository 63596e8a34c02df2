//! Builds through the real binary: what runs, when, what comes out, and what is said when it fails.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use testkit::{Environment, Outcome};

fn environment() -> Environment {
    Environment::new(env!("CARGO_BIN_EXE_lapstrake"))
}

macro_rules! needs_busybox {
    () => {
        testkit::require_fixtures!("busybox:latest");
    };
}

/// Builds `dockerfile` with further arguments and returns its outcome.
fn build(environment: &Environment, dockerfile: &str, arguments: &[&str]) -> testkit::Outcome {
    environment.write("ctx/Dockerfile", dockerfile);
    let mut all = vec!["build", "--progress=plain"];
    all.extend(arguments);
    all.push("ctx");
    environment.run(all)
}

/// One step of a `rawjson` progress: when it ran, and whether it did.
#[derive(Debug, Default, Clone)]
struct Step {
    started: Option<String>,
    completed: Option<String>,
    cached: bool,
}

fn steps(stderr: &str) -> BTreeMap<String, Step> {
    let mut found: BTreeMap<String, Step> = BTreeMap::new();
    for line in stderr.lines().filter(|line| line.starts_with('{')) {
        let status: Value = serde_json::from_str(line).expect("a line of JSON");
        for vertex in status["vertexes"].as_array().into_iter().flatten() {
            let step = found
                .entry(vertex["name"].as_str().unwrap_or_default().to_owned())
                .or_default();
            let text = |key: &str| vertex[key].as_str().map(str::to_owned);
            step.started = text("started").or(step.started.take());
            step.completed = text("completed").or(step.completed.take());
            step.cached |= vertex["cached"].as_bool().unwrap_or(false);
        }
    }
    found
}

#[test]
fn stages_off_the_path_of_the_target_do_not_run() {
    needs_busybox!();
    let environment = environment();
    let dockerfile = "FROM busybox AS base
FROM base AS broken
RUN false
FROM base AS other
RUN echo other > /other
FROM scratch AS client
COPY --from=base /etc/passwd /passwd
FROM scratch AS server
COPY --from=other /other /other
COPY --from=broken /x /x
";
    let outcome = build(
        &environment,
        dockerfile,
        &["--target=client", "--tag=client"],
    );
    assert!(outcome.status.success(), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("RUN"), "{}", outcome.stderr);
}

#[test]
fn independent_stages_run_at_the_same_time() {
    needs_busybox!();
    let environment = environment();
    // Each waits for the other: one after the other they would wait for ever.
    let dockerfile = "FROM busybox AS base
FROM base AS one
RUN --mount=type=cache,target=/meet touch /meet/one && until [ -e /meet/two ]; do sleep 0.01; done && echo 1 > /out
FROM base AS two
RUN --mount=type=cache,target=/meet touch /meet/two && until [ -e /meet/one ]; do sleep 0.01; done && echo 2 > /out
FROM scratch
COPY --from=one /out /one
COPY --from=two /out /two
";
    environment.write("ctx/Dockerfile", dockerfile);
    let outcome = environment.ok(["build", "--progress=rawjson", "ctx"]);
    let steps = steps(&outcome.stderr);
    let runs: Vec<&Step> = steps
        .iter()
        .filter(|(name, _)| name.contains("RUN"))
        .map(|(_, step)| step)
        .collect();
    assert_eq!(runs.len(), 2);
    // Times of one clock in one notation: text compares as they do.
    assert!(
        runs[0].started < runs[1].completed && runs[1].started < runs[0].completed,
        "{runs:?}"
    );
}

#[test]
fn the_final_image_holds_what_was_copied_and_its_size_is_theirs() {
    needs_busybox!();
    let environment = environment();
    let dockerfile = "FROM busybox AS build
RUN head -c 4200000 /dev/urandom > /client
FROM scratch
COPY --from=build /client /bin/
";
    let outcome = build(&environment, dockerfile, &["-t", "buildme", "-q"]);
    assert!(outcome.status.success(), "{}", outcome.stderr);
    let listing = environment.ok(["images", "buildme"]).stdout;
    let lines: Vec<&str> = listing.lines().collect();
    assert!(lines[0].starts_with("REPOSITORY   TAG"), "{listing}");
    assert!(lines[1].ends_with("4.2MB"), "{listing}");
    let id = environment
        .ok(["images", "-q", "--no-trunc", "buildme"])
        .stdout;
    assert_eq!(id, outcome.stdout, "-q prints the id that images shows");
    let out = environment.work().join("out");
    environment.ok(["build", "-q", "-o", "out", "ctx"]);
    let names: Vec<_> = walk(&out);
    assert_eq!(names, ["bin", "bin/client"]);
}

fn walk(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut work = vec![root.to_owned()];
    while let Some(folder) = work.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            names.push(
                path.strip_prefix(root)
                    .expect("below")
                    .display()
                    .to_string(),
            );
            if path.is_dir() {
                work.push(path);
            }
        }
    }
    names.sort();
    names
}

#[test]
fn an_unchanged_build_runs_nothing_and_gives_the_same_image() {
    needs_busybox!();
    let environment = environment();
    let dockerfile = "FROM busybox AS a
WORKDIR /src
COPY file .
RUN cat file > copy
FROM scratch
COPY --from=a /src/copy /
";
    environment.write("ctx/file", "1");
    let first = build(&environment, dockerfile, &["-q"]);
    let again = environment.ok(["build", "--progress=rawjson", "--iidfile=id", "ctx"]);
    let id = std::fs::read_to_string(environment.work().join("id")).expect("an id");
    assert_eq!(id, first.stdout.trim());
    let ran = |steps: &BTreeMap<String, Step>| -> Vec<String> {
        let numbered = steps
            .iter()
            .filter(|(name, _)| name.contains('/') && name.starts_with('['));
        let ran = numbered.filter(|(_, step)| !step.cached && step.started.is_some());
        ran.map(|(name, _)| name.clone())
            .filter(|name| !name.contains("internal"))
            .collect()
    };
    assert_eq!(ran(&steps(&again.stderr)), Vec::<String>::new());
    // A file of the same size and times is another file.
    let path = environment.work().join("ctx/file");
    let times = std::fs::metadata(&path)
        .expect("a file")
        .modified()
        .expect("a time");
    std::fs::write(&path, "2").expect("it is written");
    let file = std::fs::File::options()
        .write(true)
        .open(&path)
        .expect("a file");
    file.set_modified(times).expect("a time is set");
    let changed = environment.ok(["build", "-q", "ctx"]);
    assert_ne!(changed.stdout, first.stdout);
}

#[test]
fn a_step_that_changes_nothing_stops_the_rebuild() {
    needs_busybox!();
    let environment = environment();
    let dockerfile = "FROM busybox AS gen
COPY input .
RUN wc -c < input > /size
FROM busybox
COPY --from=gen /size /size
RUN echo expensive > /done
";
    environment.write("ctx/input", "aa");
    let first = build(&environment, dockerfile, &[]);
    assert!(first.status.success(), "{}", first.stderr);
    environment.write("ctx/input", "bb");
    let again = environment.ok(["build", "--progress=rawjson", "ctx"]);
    let steps = steps(&again.stderr);
    let cached = |part: &str| {
        let (_, step) = steps
            .iter()
            .find(|(name, _)| name.contains(part))
            .expect("the step is shown");
        step.cached
    };
    assert!(!cached("wc -c"));
    assert!(cached("COPY --from=gen"), "{steps:?}");
    assert!(cached("echo expensive"), "{steps:?}");
}

/// Checks that a build fails with this code and says all of these words, pointing at a line.
fn check_failure(dockerfile: &str, arguments: &[&str], code: i32, words: &[&str]) {
    let environment = environment();
    environment.write("ctx/hello.txt", "hello");
    let outcome = build(&environment, dockerfile, arguments);
    assert_eq!(outcome.status.code(), Some(code), "{}", outcome.stderr);
    for word in words {
        assert!(
            outcome.stderr.contains(word),
            "{word:?} is not in: {}",
            outcome.stderr
        );
    }
    let ingest = environment.root().join("ingest");
    let left = std::fs::read_dir(&ingest).map_or(0, Iterator::count);
    assert_eq!(left, 0, "something half-written is left");
}

#[test]
fn failures_say_what_where_and_what_was_meant() {
    needs_busybox!();
    check_failure(
        "FROM busybox AS builder\nRUN true\n",
        &["--target=biulder"],
        1,
        &["biulder", "did you mean builder?"],
    );
    check_failure(
        "FROM busybox\nCOPY helo.txt /x\n",
        &[],
        1,
        &["helo.txt", "Dockerfile:2", "did you mean hello.txt?"],
    );
    check_failure(
        "FROM busybox\nRUN echo to-stderr >&2; exit 3\n",
        &[],
        1,
        &["exit code: 3", "Dockerfile:2", "to-stderr"],
    );
    check_failure("FROM busybox\nRUN kill -9 $$\n", &[], 1, &["SIGKILL"]);
    check_failure(
        "FROM busybox\nRUNN true\n",
        &[],
        1,
        &["unknown instruction", "did you mean RUN?"],
    );
    check_failure(
        "FROM 127.0.0.1:1/x:1\n",
        &[],
        1,
        &["127.0.0.1:1", "Dockerfile:1"],
    );
    check_failure(
        "FROM busybox AS a\nCOPY --from=b /x /x\nFROM busybox AS b\nCOPY --from=a /x /x\n",
        &[],
        1,
        &["Dockerfile:"],
    );
    let wrong = format!("FROM busybox@sha256:{}\n", "0".repeat(64));
    check_failure(&wrong, &[], 1, &["not found", "Dockerfile:1"]);
}

#[test]
fn usage_errors_have_their_own_code() {
    let environment = environment();
    assert_eq!(environment.run(["build"]).status.code(), Some(2));
    assert_eq!(
        environment
            .run(["build", "--no-such-option", "."])
            .status
            .code(),
        Some(2)
    );
    assert_eq!(
        environment
            .run(["build", "-o", "type=nosuch", "."])
            .status
            .code(),
        Some(2)
    );
    assert_eq!(environment.run(["build", "nowhere"]).status.code(), Some(2));
}

#[test]
fn other_tools_take_the_archive() {
    needs_busybox!();
    testkit::require_programs!("skopeo", "umoci");
    let environment = environment();
    let dockerfile = "FROM busybox\nRUN mkdir /d && echo 1 > /d/f && rm /bin/vi\nLABEL a=b\n";
    let outcome = build(
        &environment,
        dockerfile,
        &["-o", "type=oci,dest=out.tar,name=app:1"],
    );
    assert!(outcome.status.success(), "{}", outcome.stderr);
    let run = |program: &str, arguments: &[&str]| {
        let output = environment
            .program(program)
            .args(arguments)
            .output()
            .expect("it starts");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let inspected = run("skopeo", &["inspect", "oci-archive:out.tar"]);
    let inspected: Value = serde_json::from_str(&inspected).expect("JSON");
    assert_eq!(inspected["Labels"]["a"], "b");
    run(
        "skopeo",
        &[
            "--insecure-policy",
            "copy",
            "oci-archive:out.tar",
            "oci:layout:1",
        ],
    );
    run("umoci", &["unpack", "--image", "layout:1", "bundle"]);
    let rootfs = environment.work().join("bundle/rootfs");
    assert_eq!(
        std::fs::read_to_string(rootfs.join("d/f")).expect("a file"),
        "1\n"
    );
    assert!(!rootfs.join("bin/vi").exists());
}

#[test]
fn builds_at_once_share_a_store() {
    needs_busybox!();
    let environment = environment();
    for number in 0..8 {
        // Two of each kind meet on the same steps.
        let kind = number % 4;
        let text = format!("FROM busybox\nRUN echo {kind} > /kind\nRUN cat /kind /kind > /twice\n");
        environment.write(&format!("ctx{number}/Dockerfile"), text);
    }
    let children: Vec<_> = (0..8)
        .map(|number| {
            let context = format!("ctx{number}");
            let mut command = environment.command(["build", "-q", context.as_str()]);
            command
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped());
            command.spawn().expect("it starts")
        })
        .collect();
    let mut ids = Vec::new();
    for child in children {
        let output = child.wait_with_output().expect("it ends");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        ids.push(output.stdout);
    }
    for number in 0..4 {
        assert_eq!(ids[number], ids[number + 4], "equal builds give one image");
    }
}

#[test]
fn more_layers_than_files_may_usually_be_open() {
    needs_busybox!();
    let environment = environment();
    let copies: String = (0..300)
        .map(|number| format!("COPY f /{number}\n"))
        .collect();
    let text = format!(
        "FROM scratch AS many\n{copies}FROM busybox\nCOPY --from=many /299 /f\nRUN ulimit -n\n"
    );
    environment.write("ctx/Dockerfile", text);
    environment.write("ctx/f", "f");
    let mut command = environment.program("sh");
    let binary = env!("CARGO_BIN_EXE_lapstrake");
    let script = format!("ulimit -Sn 256 && exec {binary} build --progress=plain ctx");
    let outcome = Outcome::of(command.args(["-c", &script])).success();
    // The commands of the image are not to know.
    outcome.says(" 256");
}
