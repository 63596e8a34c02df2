//! The space the store takes: limits after each build, what may go and what may not.

use testkit::soak::Trial;
use testkit::{Environment, Outcome, configuration};

fn environment() -> Environment {
    Environment::new(env!("CARGO_BIN_EXE_lapstrake"))
}

/// Sets the limits of the store.
fn limit(environment: &Environment, gc: &str) {
    environment.write_config(&format!("{}\n[gc]\n{gc}\n", configuration(&["docker.io"])));
}

/// Returns the bytes of everything in the store, and of what images and containers hold of it.
fn used(environment: &Environment) -> (u64, u64) {
    let listing = environment.ok(["system", "df", "-v", "--format", "json"]);
    let entries = listing.stdout.lines().map(|line| {
        let entry: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
        let bytes = entry["Bytes"].as_u64().expect("bytes");
        (bytes, entry["InUse"] == "true")
    });
    entries.fold((0, 0), |(all, held), (bytes, is_held)| {
        (all + bytes, held + if is_held { bytes } else { 0 })
    })
}

/// A build of its own: 3 MB in a stage that only it has, and the name `app<number>` if it is to have one.
fn build(environment: &Environment, number: usize, named: bool) -> Outcome {
    let context = format!("ctx{number}");
    environment.write(
        &format!("{context}/Dockerfile"),
        format!(
            "FROM busybox AS build\nRUN echo {number} && head -c 3000000 /dev/urandom > /big\n\
             FROM scratch\nCOPY --from=build /etc/passwd /{number}\n"
        ),
    );
    let tag = format!("app{number}");
    let mut arguments = vec!["build"];
    match named {
        true => arguments.extend(["-t", &tag]),
        false => arguments.extend(["-o", "type=cacheonly"]),
    }
    arguments.push(&context);
    environment.ok(arguments)
}

#[test]
fn the_limit_holds_after_every_build() {
    testkit::require_fixtures!("busybox:latest");
    let environment = environment();
    limit(&environment, "max-used-space = \"10MB\"");
    for number in 0..5 {
        let outcome = build(&environment, number, false);
        assert!(!outcome.stderr.contains("warning"), "{}", outcome.told());
        let (used, _) = used(&environment);
        assert!(used <= 10 << 20, "{used} bytes after build {number}");
    }
    // The last one fits, so it is still known.
    let again = build(&environment, 4, false);
    again.says("CACHED");
}

#[test]
fn the_limit_holds_after_ten_builds_at_once() {
    testkit::require_fixtures!("busybox:latest");
    let environment = environment();
    limit(&environment, "max-used-space = \"10MB\"");
    std::thread::scope(|scope| {
        for number in 0..10 {
            let environment = &environment;
            scope.spawn(move || build(environment, number, number % 2 == 0));
        }
    });
    let (used, held) = used(&environment);
    assert!(used <= 10 << 20, "{used} bytes, {held} of them held");
    for number in [0, 2, 4, 6, 8] {
        let name = format!("app{number}");
        let out = format!("out{number}");
        environment.write(&format!("use{number}/Dockerfile"), format!("FROM {name}\n"));
        environment.ok(["build", "-o", &out, &format!("use{number}")]);
        assert!(
            environment
                .work()
                .join(out)
                .join(number.to_string())
                .exists()
        );
    }
}

#[test]
fn builds_at_once_beside_prunes_neither_fail_nor_come_out_wrong() {
    testkit::require_fixtures!("busybox:latest");
    let trial = Trial {
        count: 2,
        seed: 1,
        is_told: false,
    };
    testkit::soak::prunes(&environment(), trial);
}

#[test]
fn what_is_held_alone_over_the_limit_is_named() {
    testkit::require_fixtures!("busybox:latest");
    let environment = environment();
    limit(&environment, "max-used-space = \"1MB\"");
    environment.write(
        "big/Dockerfile",
        "FROM busybox\nRUN head -c 3000000 /dev/urandom > /big\n",
    );
    let outcome = environment.ok(["build", "-t", "big", "big"]);
    outcome.says("its limit is 1.05MB");
    outcome.says("most of it because of docker.io/library/big:latest");
    let (used, held) = used(&environment);
    assert_eq!(used, held, "all the rest is gone");
    environment.ok(["run", "--rm", "big", "true"]);
}

#[test]
fn a_cache_mount_counts_and_goes_too() {
    testkit::require_fixtures!("busybox:latest");
    let environment = environment();
    environment.write(
        "ctx/Dockerfile",
        "FROM busybox\nRUN --mount=type=cache,id=big,target=/c head -c 3000000 /dev/urandom > /c/f\n",
    );
    environment.ok(["build", "-t", "app", "ctx"]);
    let filter = ["system", "df", "-v", "--filter", "type=exec.cachemount"];
    let listing = environment.ok(filter);
    assert!(
        listing.stdout.contains("cache mount /big"),
        "{}",
        listing.told()
    );
    assert!(used(&environment).0 > 3_000_000);
    environment.ok(["builder", "prune", "-f", "--filter", "type=exec.cachemount"]);
    assert!(!environment.ok(filter).stdout.contains("cache mount /big"));
    // Nothing else went: all is found again.
    environment.ok(["build", "-t", "app", "ctx"]).says("CACHED");
    environment.ok(["build", "--no-cache", "-t", "app", "ctx"]);
    assert!(environment.ok(filter).stdout.contains("cache mount /big"));
}

#[test]
fn limits_that_cannot_be_read_are_said_with_their_place() {
    let environment = environment();
    limit(&environment, "max-used-space = \"10 parsecs\"");
    environment.write("ctx/Dockerfile", "FROM scratch\n");
    let outcome = environment.run(["build", "ctx"]).fails_with(2);
    outcome.says("gc.max-used-space");
    limit(&environment, "max-used = 1");
    environment
        .ok(["build", "ctx"])
        .says("the key gc.max-used is not known and has no effect");
}

#[test]
fn logs_and_records_count_and_go_by_rules_of_their_own() {
    testkit::require_fixtures!("busybox:latest");
    let environment = environment();
    let history = |rules: &str| {
        let config = configuration(&["docker.io"]);
        environment.write_config(&format!("{config}\n[history]\n{rules}\n"));
    };
    let loud = |number: usize| {
        // What does not compress, so that it takes as much as was printed.
        environment.write(
            "ctx/Dockerfile",
            format!("FROM busybox\nRUN : {number}; head -c 600000 /dev/urandom | base64\n"),
        );
        environment.ok(["build", "-q", "ctx"]);
    };
    let logs = || {
        let filter = ["--filter", "type=build", "--format", "json"];
        let listing = environment.ok([&["system", "df", "-v"], &filter[..]].concat());
        let bytes = |line: &str| {
            let entry: serde_json::Value = serde_json::from_str(line).expect("JSON");
            entry["Bytes"].as_u64().expect("bytes")
        };
        listing.stdout.lines().map(bytes).collect::<Vec<u64>>()
    };
    for number in 0..3 {
        loud(number);
    }
    assert_eq!(logs().len(), 3);
    assert!(logs().iter().all(|bytes| *bytes > 600_000), "{:?}", logs());
    let listing = environment.ok(["system", "df"]);
    let line = listing
        .stdout
        .lines()
        .find(|line| line.starts_with("Build Records"));
    assert!(line.expect("a line").contains('3'), "{}", listing.told());
    // No prune takes them.
    environment.ok(["system", "prune", "-f", "-a"]);
    assert_eq!(logs().len(), 3);
    let told = environment.ok(["history", "logs", "^2"]);
    assert!(told.stdout.len() + told.stderr.len() > 600_000);
    environment.ok(["system", "check"]);
    history("max-log-space = \"2MB\"");
    loud(3);
    assert_eq!(logs().len(), 2);
    history("max-builds = 1");
    loud(4);
    assert_eq!(logs().len(), 1);
    environment.ok(["history", "rm", "--all"]);
    assert_eq!(logs().len(), 0);
    environment.ok(["system", "check"]);
    for (rules, expect) in [
        ("max-age = \"soon\"", "history.max-age"),
        ("max-log-space = \"20%\"", "history.max-log-space"),
    ] {
        history(rules);
        environment.run(["build", "ctx"]).fails_with(2).says(expect);
    }
    history("most = 1");
    environment
        .ok(["build", "ctx"])
        .says("the key history.most is not known and has no effect");
}
