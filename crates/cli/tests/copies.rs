//! What of a context COPY brings over, as the reference does.

use std::fs;

use testkit::{Environment, Outcome};

fn environment() -> Environment {
    Environment::new(env!("CARGO_BIN_EXE_lapstrake"))
}

#[track_caller]
fn script(environment: &Environment, text: &str) {
    let told = Outcome::of(environment.program("sh").args(["-euc", text]));
    assert!(told.status.success(), "{}", told.told());
}

/// Builds what a Dockerfile says of the scratch folder's `ctx` into the folder `out`.
fn build(environment: &Environment, dockerfile: &str) -> Outcome {
    let _ = fs::remove_dir_all(environment.work().join("out"));
    fs::write(environment.work().join("Dockerfile"), dockerfile).unwrap();
    let arguments = [
        "build",
        "--progress=plain",
        "-o",
        "out",
        "-f",
        "Dockerfile",
        "ctx",
    ];
    Outcome::of(&mut environment.command(arguments))
}

/// Lists the files of the output with the number of their names.
#[track_caller]
fn listed(environment: &Environment, dockerfile: &str) -> String {
    let built = build(environment, dockerfile);
    assert!(built.status.success(), "{}", built.told());
    let list = "cd out && find . -type f -printf '%P %n\\n' | sort";
    let told = Outcome::of(environment.program("sh").args(["-euc", list]));
    told.stdout
}

#[test]
fn an_exception_for_a_directory_does_not_bring_secrets_in() {
    let environment = environment();
    script(
        &environment,
        "mkdir -p ctx/app ctx/logs && cd ctx && echo s > app/.env && echo m > app/main && echo l > logs/a.log
        printf '**/*.log\\n**/.env\\n!app\\n!logs\\n' > .dockerignore",
    );
    assert_eq!(
        listed(
            &environment,
            "FROM scratch\nCOPY app /app/\nCOPY logs /logs/\n"
        ),
        "app/main 1\n"
    );
}

#[test]
fn each_source_and_match_is_a_copy_of_its_own() {
    let environment = environment();
    script(
        &environment,
        "mkdir -p ctx/lib ctx/d/sub && cd ctx && echo 1 > lib/libfoo.so.1.2
        ln -s libfoo.so.1.2 lib/libfoo.so.1 && ln -s libfoo.so.1 lib/libfoo.so
        echo a > one && ln one two && echo b > d/sub/f && ln d/sub/f d/sub/g",
    );
    let dockerfile = "FROM scratch\nCOPY lib/libfoo* /l/\nCOPY one two /o/\nCOPY d d/sub /d/\n";
    assert_eq!(
        listed(&environment, dockerfile),
        "d/f 2\nd/g 2\nd/sub/f 2\nd/sub/g 2\nl/libfoo.so 1\nl/libfoo.so.1 1\nl/libfoo.so.1.2 1\no/one 1\no/two 1\n"
    );
}

#[test]
fn a_malformed_pattern_is_an_error() {
    let environment = environment();
    script(
        &environment,
        "mkdir ctx && echo a > ctx/a.txt && echo b > ctx/b.txt",
    );
    let built = build(&environment, "FROM scratch\nCOPY [a.txt b.txt /o/\n");
    assert_eq!(built.status.code(), Some(1), "{}", built.told());
    assert!(
        built.stderr.contains("syntax error in pattern \"[a.txt\""),
        "{}",
        built.told()
    );
}

#[test]
fn a_name_in_an_empty_stage_is_an_error_and_an_unknown_group_leaves_the_users() {
    let environment = environment();
    script(
        &environment,
        "mkdir ctx && echo a > ctx/a && echo 'daemon:x:7:8::/:/x' > ctx/passwd",
    );
    let built = build(&environment, "FROM scratch\nCOPY --chown=foo a /a\n");
    assert_eq!(built.status.code(), Some(1), "{}", built.told());
    assert!(
        built
            .stderr
            .contains("\"foo\" cannot be looked up in /etc/passwd"),
        "{}",
        built.told()
    );
    let dockerfile = "FROM scratch\nCOPY passwd /etc/\nCOPY --chown=daemon:nosuch a /a\nCOPY --chown=3:nosuch a /b\n";
    fs::write(environment.work().join("Dockerfile"), dockerfile).unwrap();
    let output = "type=tar,dest=out.tar";
    let arguments = ["build", "-q", "-o", output, "-f", "Dockerfile", "ctx"];
    let built = Outcome::of(&mut environment.command(arguments));
    assert!(built.status.success(), "{}", built.told());
    let list = "tar --numeric-owner -tvf out.tar | awk '{print $6, $2}' | grep '^[ab] '";
    let told = Outcome::of(environment.program("sh").args(["-euc", list]));
    assert_eq!(told.stdout, "a 7/8\nb 3/3\n");
}
