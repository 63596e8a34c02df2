//! Records of builds through the real binary: what is kept, what is said of it, and what is never kept.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

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

fn build(environment: &Environment, arguments: &[&str]) -> Outcome {
    let mut all = vec!["build", "--progress=plain"];
    all.extend(arguments);
    all.push("ctx");
    environment.run(all)
}

/// Returns the ids of all builds, the newest first.
fn ids(environment: &Environment) -> Vec<String> {
    let listed = environment.ok(["history", "ls", "-q"]).stdout;
    listed.lines().map(str::to_owned).collect()
}

/// Returns what `why` says of a step, or of all that ran.
fn why(environment: &Environment, arguments: &[&str]) -> String {
    let mut all = vec!["why"];
    all.extend(arguments);
    environment.ok(all).stdout
}

fn inspect(environment: &Environment, build: &str) -> Value {
    let text = environment.ok(["history", "inspect", "--format=json", build]);
    serde_json::from_str(&text.stdout).expect("JSON")
}

#[test]
fn builds_are_listed_and_found_by_what_they_are_called() {
    needs_busybox!();
    let environment = environment();
    let nothing = environment.ok(["history", "ls"]);
    assert_eq!(
        nothing.stdout,
        "BUILD ID   NAME   STATUS   CREATED AT   DURATION\n"
    );
    environment
        .run(["history", "inspect"])
        .fails_with(1)
        .says("there are no builds yet");
    environment.write(
        "ctx/Dockerfile",
        "FROM busybox AS one\nRUN echo hello > /a\n",
    );
    build(&environment, &["-t", "app"]).success();
    build(&environment, &["-t", "app", "--target", "one"]).success();
    let ids = ids(&environment);
    assert_eq!(ids.len(), 2);
    let listed = environment.ok([
        "history",
        "ls",
        "--format",
        "{{.Ref}} {{.Name}} {{.Status}}",
    ]);
    assert_eq!(
        listed.stdout,
        format!("{} ctx (one) Completed\n{} ctx Completed\n", ids[0], ids[1])
    );
    let json = environment.ok(["history", "ls", "--format=json"]).stdout;
    let newest: Value = serde_json::from_str(json.lines().next().expect("a line")).expect("JSON");
    assert_eq!(newest["ref"], ids[0].as_str());
    assert_eq!(newest["status"], "Completed");
    assert_eq!(newest["total_steps"], newest["completed_steps"]);
    assert_eq!(newest["cached_steps"], 2);
    for (reference, expected) in [
        ("^0", &ids[0]),
        ("^1", &ids[1]),
        (ids[1].as_str(), &ids[1]),
        (&ids[1][..8], &ids[1]),
    ] {
        let found = environment.ok(["history", "inspect", "--format={{.Ref}}", reference]);
        assert_eq!(found.stdout.trim(), expected);
    }
    environment.run(["history", "inspect", "^2"]).fails_with(1);
    environment.run(["history", "inspect", "^x"]).fails_with(1);
    environment
        .run(["history", "inspect", "no-such"])
        .fails_with(1);
    environment.ok(["history", "rm", "^0", "^1"]);
    assert_eq!(self::ids(&environment), [""; 0]);
    // What an image was made of is another matter, of the same name in Docker.
    let image = environment.ok(["history", "app"]).stdout;
    assert!(image.contains("CREATED BY"), "{image}");
    let alias = environment.ok(["buildx", "history", "ls", "-q"]);
    assert_eq!(alias.stdout, "");
}

#[test]
fn a_record_says_what_was_asked_and_what_came_of_it() {
    needs_busybox!();
    let environment = environment();
    environment.write(
        "ctx/Dockerfile",
        "FROM busybox AS base\nARG V\nRUN echo $V > /v\nFROM base AS unused\nRUN false\nFROM base\nCOPY f /f\n",
    );
    environment.write("ctx/f", "f");
    build(
        &environment,
        &["-t", "app", "--build-arg", "V=1", "--label", "a=b"],
    )
    .success();
    let record = inspect(&environment, "^0");
    assert_eq!(record["Name"], "ctx");
    assert_eq!(record["Status"], "completed");
    assert_eq!(record["BuildArgs"][0]["Name"], "V");
    assert_eq!(record["BuildArgs"][0]["Value"], "1");
    assert_eq!(record["Labels"][0]["Value"], "b");
    assert_eq!(record["Tags"][0], "app:latest");
    let step = |name: &str| -> Value {
        let steps = record["Steps"].as_array().expect("steps");
        let found = steps.iter().find(|step| {
            step["name"]
                .as_str()
                .is_some_and(|shown| shown.contains(name))
        });
        found
            .unwrap_or_else(|| panic!("no step {name}: {steps:?}"))
            .clone()
    };
    let run = step("RUN echo");
    assert_eq!(run["kind"], "exec");
    assert_eq!(run["stage"], "base");
    assert_eq!(run["lines"][0], 3);
    assert_eq!(run["outcome"], "ran");
    assert!(run["usage"]["peak_memory"].as_u64() > Some(0), "{run}");
    assert!(run["layer"]["size"].as_u64() > Some(0), "{run}");
    let parts = run["key"]["parts"].as_array().expect("parts");
    assert!(
        parts
            .iter()
            .any(|part| part["name"] == "ARG V" && part["value"] == "1"),
        "{parts:?}"
    );
    assert_eq!(step("COPY f")["kind"], "file");
    assert!(!record.to_string().contains("RUN false"), "{record}");
    let image = environment.ok(["images", "-q", "--no-trunc", "app"]).stdout;
    assert_eq!(record["Outputs"][0]["image"], image.trim());
    let pretty = environment.ok(["history", "inspect"]).stdout;
    for expected in [
        "Name:       ctx\n",
        "Status:   Completed\n",
        "Steps:    3 (0 cached, 3 ran)\n",
    ] {
        assert!(pretty.contains(expected), "{pretty}");
    }
}

#[test]
fn logs_are_kept_byte_for_byte_and_found_for_cached_steps() {
    needs_busybox!();
    let environment = environment();
    environment.write(
        "ctx/Dockerfile",
        "FROM busybox\nRUN printf 'a\\rb\\000\\377\\n\\033[1mc'; echo error >&2\nRUN seq 1 200000\n",
    );
    build(&environment, &[]).success();
    let log = |build: &str, step: &str| {
        let output = environment
            .command(["history", "logs", build, step])
            .output()
            .expect("it starts");
        assert!(output.status.success());
        output.stdout
    };
    let expected: &[u8] = b"a\rb\0\xff\n\x1b[1mc";
    let found = log("^0", "printf");
    // The two streams may come in either order.
    let whole = [
        &[expected, b"error\n"].concat(),
        &[b"error\n", expected].concat(),
    ];
    assert!(whole.contains(&&found), "{found:?}");
    let long: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    assert!(log("^0", "seq") == long.as_bytes());
    build(&environment, &[]).success();
    assert!(
        log("^0", "seq") == long.as_bytes(),
        "the log of a cached step"
    );
    let replayed = environment.ok(["history", "logs", "^1"]).stdout;
    assert!(replayed.contains("[3/3] RUN seq 1 200000\n"), "{replayed}");
    assert!(replayed.contains(" 200000\n"));
    let json = environment
        .ok(["history", "logs", "--progress=rawjson", "^1"])
        .stdout;
    for line in json.lines() {
        let _: Value = serde_json::from_str(line).expect("each line is JSON");
    }
    // With the build its logs go.
    environment.ok(["history", "rm", "^1"]);
    assert_eq!(log("^0", "seq"), b"");
}

#[test]
fn secrets_are_in_no_record() {
    needs_busybox!();
    let environment = environment();
    environment.write(
        "ctx/Dockerfile",
        "FROM busybox\nARG API_TOKEN\nRUN --mount=type=secret,id=s cat /run/secrets/s; echo for $API_TOKEN > /dev/null\n",
    );
    let secret = environment.write("secret", "correct-horse-battery\n");
    let secret = format!("id=s,src={}", secret.display());
    let token = "API_TOKEN=staple-of-tokens";
    build(&environment, &["--secret", &secret, "--build-arg", token]).success();
    let printed = environment.ok(["history", "logs", "^0", "RUN"]).stdout;
    assert_eq!(printed, "***\n");
    let record = inspect(&environment, "^0").to_string();
    assert!(!record.contains("correct-horse"), "{record}");
    assert!(!record.contains("staple"), "{record}");
    assert!(record.contains("hidden:"), "{record}");
    for entry in std::fs::read_dir(environment.root().join("builds")).expect("a folder") {
        let folder = std::fs::read_dir(entry.expect("an entry").path()).expect("a folder");
        for file in folder {
            let bytes = std::fs::read(file.expect("an entry").path()).expect("a file");
            let text = String::from_utf8_lossy(&bytes);
            assert!(
                !text.contains("correct-horse") && !text.contains("staple"),
                "{text}"
            );
        }
    }
    // That it has changed is seen all the same.
    let token = "API_TOKEN=another-of-tokens";
    build(&environment, &["--secret", &secret, "--build-arg", token]).success();
    let said = why(&environment, &["RUN"]);
    assert!(
        said.contains("ARG API_TOKEN was (hidden), is (hidden)\n"),
        "{said}"
    );
}

#[test]
fn the_part_that_changed_is_named() {
    needs_busybox!();
    let environment = environment();
    let dockerfile = "FROM busybox AS base
ARG VERSION=1
RUN echo $VERSION > /version
FROM busybox AS files
COPY src /src
FROM base
COPY --from=files /src /src
";
    environment.write("ctx/Dockerfile", dockerfile);
    environment.write("ctx/src/main.go", "one");
    environment.write("ctx/src/util.go", "one");
    let first = build(&environment, &["--explain"]).success();
    assert!(
        first
            .stderr
            .contains("no earlier build has any of these 4 steps\n"),
        "{}",
        first.stderr
    );
    let again = build(&environment, &["--explain"]).success();
    assert!(
        again.stderr.contains("ran: all results were there\n"),
        "{}",
        again.stderr
    );

    build(&environment, &["--build-arg", "VERSION=2"]).success();
    let said = why(&environment, &["RUN"]);
    assert_eq!(
        said,
        "[base 2/2] RUN echo 2 > /version: ran\n  ARG VERSION was 1, is 2\n"
    );
    let said = why(&environment, &["line 7"]);
    assert!(
        said.ends_with("because of [base 2/2] RUN echo 2 > /version: ARG VERSION was 1, is 2\n"),
        "{said}"
    );
    let json = why(&environment, &["--format=json", "RUN"]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json[0]["reasons"][0]["reason"], "changed");
    assert_eq!(json[0]["reasons"][0]["part"], "ARG VERSION");

    environment.write("ctx/src/main.go", "two");
    environment.write("ctx/src/new.go", "new");
    build(&environment, &["--build-arg", "VERSION=2"]).success();
    assert_eq!(
        why(&environment, &["COPY src"]),
        "[files 2/2] COPY src /src: ran\n  2 files of /src:\n    src/main.go has changed\n    src/new.go is new\n"
    );
    // What ran before is still said of the build before.
    let said = why(&environment, &["^1", "RUN"]);
    assert!(said.contains("ARG VERSION was 1, is 2"), "{said}");

    environment.write(
        "ctx/Dockerfile",
        dockerfile.replace("echo $VERSION", "echo v$VERSION"),
    );
    build(&environment, &["--build-arg", "VERSION=2"]).success();
    let said = why(&environment, &["base 2"]);
    assert!(
        said.contains("command was echo $VERSION > /version, is echo v$VERSION > /version\n"),
        "{said}"
    );
    environment
        .run(["why", "no such step"])
        .fails_with(1)
        .says("it has\n");
    environment
        .run(["why", "COPY"])
        .fails_with(1)
        .says("several steps");
}

#[test]
fn what_was_forced_removed_or_failed_is_told_apart() {
    needs_busybox!();
    let environment = environment();
    environment.write(
        "ctx/Dockerfile",
        "FROM busybox\nRUN date +%N > /time\nRUN cat /time\n",
    );
    build(&environment, &[]).success();
    build(&environment, &["--no-cache"]).success();
    let said = why(&environment, &["RUN date"]);
    assert!(
        said.contains("recorded results were not to be used (--no-cache)\n"),
        "{said}"
    );
    environment.ok(["builder", "prune", "--all", "--force"]);
    build(&environment, &[]).success();
    let said = why(&environment, &["RUN date"]);
    assert!(said.contains("its result was removed at "), "{said}");
    assert!(said.contains(" by the rule "), "{said}");

    environment.write("ctx/Dockerfile", "FROM busybox\nRUN exit 7\n");
    let failed = build(&environment, &[]).fails_with(1);
    assert!(failed.stderr.contains("Failed after "), "{}", failed.stderr);
    let record = inspect(&environment, "^0");
    assert_eq!(record["Status"], "failed");
    assert!(
        record["Error"]["Message"]
            .as_str()
            .is_some_and(|text| text.contains("exit code: 7")),
        "{record}"
    );
    let listed = environment
        .ok(["history", "ls", "--filter=status=error", "-q"])
        .stdout;
    assert_eq!(listed.lines().count(), 1);
    build(&environment, &[]).fails_with(1);
    let said = why(&environment, &["RUN exit"]);
    assert!(said.contains("in which it did not finish\n"), "{said}");
}

#[test]
fn builds_travel_as_files() {
    needs_busybox!();
    let here = environment();
    here.write(
        "ctx/Dockerfile",
        "FROM busybox\nCOPY f /f\nRUN echo printed\n",
    );
    here.write("ctx/f", "f");
    build(&here, &[]).success();
    let id = ids(&here).remove(0);
    let file = here.work().join("build.tar");
    let file = file.to_str().expect("a plain path");
    here.ok(["history", "export", "-o", file]);
    let there = environment();
    let imported = there.ok(["history", "import", file]).stdout;
    assert_eq!(imported.trim(), id);
    there.ok(["history", "import", file]);
    assert_eq!(ids(&there), [id.as_str()]);
    let log = there.ok(["history", "logs", &id, "RUN"]).stdout;
    assert_eq!(log, "printed\n");
    assert_eq!(inspect(&there, &id), inspect(&here, &id));
    let bytes = std::fs::read(file).expect("a file");
    there.write("cut", &bytes[..bytes.len() / 2]);
    there.write("garbage", "this is no build");
    there.ok(["history", "rm", "--all"]);
    for name in ["cut", "garbage", "missing"] {
        there.run(["history", "import", name]).fails_with(1);
    }
    assert_eq!(ids(&there), [""; 0]);
    let left = std::fs::read_dir(there.root().join("builds")).expect("a folder");
    assert_eq!(left.count(), 0);
}

#[test]
fn two_builds_are_compared() {
    needs_busybox!();
    let environment = environment();
    environment.write(
        "ctx/Dockerfile",
        "FROM busybox\nARG V\nRUN echo $V\nRUN true\n",
    );
    build(&environment, &["--build-arg", "V=1"]).success();
    build(&environment, &["--build-arg", "V=2"]).success();
    let diff = environment.ok(["history", "diff"]).stdout;
    for expected in [
        "asked for otherwise\n  --build-arg V was 1, is 2\n",
        "[2/3] RUN echo 2: ran in ",
        "\n      ARG V was 1, is 2\n",
        "image for ",
    ] {
        assert!(diff.contains(expected), "{expected:?} in\n{diff}");
    }
    let same = environment.ok(["history", "diff", "^0", "^0"]).stdout;
    assert!(same.contains("  and 3 that are equal\n"), "{same}");
    let json = environment
        .ok(["history", "diff", "--format=json", "^1", "^0"])
        .stdout;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["request"][0]["part"], "--build-arg V");
}

#[test]
fn a_killed_build_is_listed_until_it_is_removed() {
    needs_busybox!();
    let environment = environment();
    environment.write(
        "ctx/Dockerfile",
        "FROM busybox\nRUN echo begun; sleep 600\n",
    );
    let mut child = environment
        .command(["build", "--progress=plain", "ctx"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
    let said = stderr
        .lines()
        .any(|line| line.is_ok_and(|line| line.ends_with(" begun")));
    assert!(said, "the step has begun");
    let status = || {
        let format = "--format={{.Status}}";
        environment.ok(["history", "ls", format]).stdout
    };
    assert_eq!(status(), "Running\n");
    environment
        .run(["history", "rm", "^0"])
        .fails_with(1)
        .says("runs");
    child.kill().expect("it runs");
    child.wait().expect("it was started");
    assert_eq!(status(), "Killed\n");
    let shown = environment.ok(["history", "inspect"]).stdout;
    assert!(shown.contains("Killed\n"), "{shown}");
    environment.ok(["history", "rm", "--all"]);
    assert_eq!(status(), "");
}

#[test]
fn a_build_ends_with_what_it_came_to() {
    needs_busybox!();
    let environment = environment();
    environment.write(
        "ctx/Dockerfile",
        "FROM busybox\nRUN echo a > /a\nRUN sleep 0.6\n",
    );
    let first = build(&environment, &["-t", "app"]).success().stderr;
    let id = environment.ok(["images", "-q", "app"]).stdout;
    let built = first
        .lines()
        .find(|line| line.starts_with("Built in "))
        .expect("a line");
    assert!(built.contains(id.trim()), "{built}");
    assert!(first.contains("\n  3 steps: 3 ran\n"), "{first}");
    assert!(
        first.contains("\n  slowest: [3/3] RUN sleep 0.6 "),
        "{first}"
    );
    let again = build(&environment, &["-t", "app"]).success().stderr;
    assert!(again.ends_with("\n  3 steps, all cached\n"), "{again}");
    let quiet = environment.ok(["build", "-q", "ctx"]);
    assert_eq!(quiet.stderr, "");
    let json = environment.ok(["build", "--progress=rawjson", "--explain", "ctx"]);
    for line in json.stderr.lines() {
        let _: Value = serde_json::from_str(line).expect("each line is JSON");
    }
}

#[test]
fn a_plan_says_what_would_run_and_changes_nothing() {
    needs_busybox!();
    let environment = environment();
    environment.write(
        "ctx/Dockerfile",
        "FROM busybox AS base\nCOPY f /f\nRUN cat /f > /g\nFROM busybox\nCOPY --from=base /g /g\nRUN sleep 0.3\n",
    );
    environment.write("ctx/f", "one");
    let plan = |arguments: &[&str]| {
        let mut all = vec!["plan"];
        all.extend(arguments);
        all.push("ctx");
        environment.ok(all).stdout
    };
    let first = plan(&[]);
    assert!(
        first.contains("run       [base 3/3] RUN cat /f > /g\n"),
        "{first}"
    );
    assert!(first.contains("5 steps: 0 cached, 5 to run\n"), "{first}");
    assert!(first.contains("to fetch: "), "{first}");
    build(&environment, &[]).success();
    let json = plan(&["--format=json"]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let fates: Vec<&str> = json["steps"]
        .as_array()
        .expect("steps")
        .iter()
        .filter_map(|step| step["fate"].as_str())
        .collect();
    assert_eq!(fates, ["cached"; 5]);
    environment.write("ctx/f", "two");
    let before = std::fs::read_dir(environment.root().join("layers"))
        .expect("a folder")
        .count();
    let changed = plan(&[]);
    assert!(changed.contains("cached    [base 1/3] FROM "), "{changed}");
    assert!(
        changed.contains("run       [base 2/3] COPY f /f  (last time "),
        "{changed}"
    );
    assert!(
        changed.contains("          file f has changed\n"),
        "{changed}"
    );
    assert!(
        changed.contains("[stage-1 3/3] RUN sleep 0.3  (last time 0."),
        "{changed}"
    );
    assert!(changed.contains("\nexpected: 0."), "{changed}");
    let after = std::fs::read_dir(environment.root().join("layers"))
        .expect("a folder")
        .count();
    assert_eq!(before, after);
    assert_eq!(ids(&environment).len(), 1);
    let forced = plan(&["--no-cache"]);
    assert!(forced.contains("5 steps: 1 cached, 4 to run"), "{forced}");
    environment
        .run(["plan", "--target=none", "ctx"])
        .fails_with(1);
    // What a cache of another machine has need not run here.
    environment.ok(["build", "--cache-to=type=local,dest=kept,mode=max", "ctx"]);
    let elsewhere = [
        "--root=elsewhere",
        "plan",
        "--cache-from=type=local,src=kept",
        "ctx",
    ];
    let told = environment.ok(elsewhere).stdout;
    assert!(told.contains("5 steps: 5 cached\n"), "{told}");
}

#[test]
fn all_failures_are_told_with_keep_going() {
    needs_busybox!();
    let environment = environment();
    environment.write(
        "ctx/Dockerfile",
        "FROM busybox AS a\nRUN exit 3\nFROM busybox AS b\nRUN exit 4\nFROM busybox AS c\nRUN sleep 0.3; echo finished\nFROM busybox\nCOPY --from=a / /a\nCOPY --from=b / /b\nCOPY --from=c / /c\n",
    );
    let failed = build(&environment, &["--keep-going"]).fails_with(1);
    assert!(failed.stderr.contains("exit code: 3"), "{}", failed.stderr);
    assert!(failed.stderr.contains("exit code: 4"), "{}", failed.stderr);
    let record = inspect(&environment, "^0");
    assert_eq!(
        record["Errors"].as_array().map(Vec::len),
        Some(2),
        "{record}"
    );
    let log = environment.ok(["history", "logs", "^0", "c 2"]).stdout;
    assert_eq!(log, "finished\n");
    let outcomes: Vec<&str> = record["Steps"]
        .as_array()
        .expect("steps")
        .iter()
        .filter(|step| {
            step["name"]
                .as_str()
                .is_some_and(|name| name.contains("RUN"))
        })
        .filter_map(|step| step["outcome"].as_str())
        .collect();
    let mut outcomes = outcomes;
    outcomes.sort_unstable();
    assert_eq!(outcomes, ["failed", "failed", "ran"]);
}
