//! Input that cannot be built: what is said, where it points, how it ends, and what is left behind.

use std::fs;

use testkit::{Environment, Outcome, require_fixtures, require_programs, skip};

fn environment() -> Environment {
    Environment::new(env!("CARGO_BIN_EXE_lapstrake"))
}

/// Builds a Dockerfile that fails with one of some codes, saying these texts, and leaves nothing.
#[track_caller]
fn check(dockerfile: &str, arguments: &[&str], codes: &[i32], texts: &[&str]) {
    let environment = environment();
    environment.write("Dockerfile", dockerfile);
    let mut command = environment.command(["build", "--progress=plain", "-t", "never"]);
    let told = Outcome::of(command.args(arguments).arg("."));
    let code = told.status.code().unwrap_or(-1);
    assert!(codes.contains(&code), "{}", told.told());
    for text in texts {
        told.says(text);
    }
    assert_eq!(told.stdout, "", "stdout carries results only");
    assert_leaves_nothing(&environment);
}

#[track_caller]
fn assert_leaves_nothing(environment: &Environment) {
    assert_eq!(environment.ok(["images", "-q"]).stdout, "");
    let ingest = environment.root().join("ingest");
    let left: Vec<_> = fs::read_dir(ingest).into_iter().flatten().collect();
    assert!(left.is_empty(), "half-written: {left:?}");
}

#[test]
fn an_unknown_target_names_the_nearest_stage() {
    require_fixtures!("busybox:latest");
    let dockerfile =
        "FROM busybox AS builder\nRUN true\nFROM scratch\nCOPY --from=builder /etc/passwd /\n";
    check(
        dockerfile,
        &["--target", "bulider"],
        &[1],
        &["bulider", "builder"],
    );
}

#[test]
fn a_stage_cannot_copy_from_itself() {
    require_fixtures!("busybox:latest");
    let dockerfile = "FROM busybox AS a\nCOPY --from=a /etc/passwd /x\n";
    check(dockerfile, &[], &[1], &["Dockerfile:2", "COPY --from=a"]);
}

#[test]
fn a_stage_cannot_copy_from_a_later_number() {
    require_fixtures!("busybox:latest");
    let dockerfile = "FROM busybox AS a\nCOPY --from=1 /etc/passwd /x\nFROM busybox\n";
    check(dockerfile, &["--target", "a"], &[1], &["Dockerfile:2"]);
}

#[test]
fn a_missing_file_is_pointed_at() {
    require_fixtures!("busybox:latest");
    let dockerfile = "FROM busybox\nRUN true\nCOPY nowhere.txt /\n";
    check(dockerfile, &[], &[1], &["nowhere.txt", "Dockerfile:3"]);
}

#[test]
fn the_source_that_is_missing_is_marked_among_others() {
    for (copy, place) in [
        ("COPY Dockerfile nodir/x* /d/", "Dockerfile:4:17"),
        ("ENV N=no\nCOPY Dockerfile $N/x /d/", "Dockerfile:5:17"),
        ("COPY --from=a . /nothing /d/", "Dockerfile:4:17"),
        ("COPY --from=a --parents f nothing /d/", "Dockerfile:4:27"),
        ("COPY --parents nodir/./x Dockerfile /d/", "Dockerfile:4:16"),
    ] {
        let dockerfile = format!("FROM scratch AS a\nCOPY Dockerfile f\nFROM scratch\n{copy}\n");
        check(&dockerfile, &[], &[1], &[place, "no such file"]);
    }
}

#[test]
fn options_of_the_check_that_cannot_be_read_fail_the_build() {
    let dockerfile = "# check=what\nFROM scratch\nLABEL a=b\n";
    let says = "failed to parse check options: invalid check option";
    check(dockerfile, &[], &[1], &[says, "Dockerfile:1:9"]);
    let argument = ["--build-arg", "BUILDKIT_DOCKERFILE_CHECK=error=true"];
    let says = "lint violation found for rules: LegacyKeyValueFormat";
    check("FROM scratch\nENV a b\n", &argument, &[1], &[says]);
}

#[test]
fn a_path_above_the_context_is_explained() {
    let dockerfile = "FROM scratch\nCOPY Dockerfile ../../x /\n";
    check(
        dockerfile,
        &[],
        &[1],
        &["Dockerfile:2:17", "--build-context"],
    );
}

#[test]
fn what_is_left_out_is_shown() {
    for (dockerfile, text) in [
        ("FROM scratch\nENV\n", "write ENV NAME=VALUE"),
        ("FROM $BASE\n", "--build-arg NAME=IMAGE"),
        ("FROM scratch\nRUN --mnt=x y\n", "did you mean --mount?"),
        ("FROM scratch\nEXPOSE 70000\n", "a number up to 65535"),
    ] {
        check(dockerfile, &[], &[1], &[text]);
    }
}

#[test]
fn an_unknown_instruction_is_pointed_at() {
    let dockerfile = "FROM scratch\nCOPPY a /\n";
    check(dockerfile, &[], &[1], &["COPPY", "Dockerfile:2"]);
}

#[test]
fn a_digest_that_is_not_there_is_pointed_at() {
    require_fixtures!("busybox:latest");
    let digest = "0".repeat(64);
    let dockerfile = format!("FROM busybox@sha256:{digest}\nRUN true\n");
    check(&dockerfile, &[], &[1, 3], &["Dockerfile:1", &digest]);
}

#[test]
fn an_unreachable_registry_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let dockerfile = format!("FROM {address}/app\nRUN true\n");
    check(&dockerfile, &[], &[1, 3], &["Dockerfile:1", &address]);
}

#[test]
fn a_command_that_fails_is_pointed_at_with_its_code() {
    require_fixtures!("busybox:latest");
    let dockerfile = "FROM busybox\nRUN echo before && exit 7\n";
    check(dockerfile, &[], &[1], &["before", "Dockerfile:2", "7"]);
}

#[test]
fn a_full_disk_is_the_builders_failure() {
    require_fixtures!("alpine:latest");
    require_programs!("unshare", "mount");
    let environment = environment();
    environment.write("Dockerfile", "FROM alpine\nRUN true\n");
    let script = "mount -t tmpfs -o size=24m small \"$LAPSTRAKE_ROOT\" || exit 99
        lapstrake build --progress=plain -t never . ; code=$?
        lapstrake images -q
        ls -A \"$LAPSTRAKE_ROOT\"/ingest
        exit $code";
    fs::create_dir(environment.root()).unwrap();
    let told = Outcome::of(
        environment
            .program("unshare")
            .args(["-m", "sh", "-c", script]),
    );
    if matches!(told.status.code(), Some(99)) || told.stderr.starts_with("unshare:") {
        skip!("this machine allows no mount: {}", told.stderr);
    }
    let told = told.fails_with(3);
    told.says("No space left on device");
    assert_eq!(told.stdout, "", "no image and nothing half-written is left");
}
