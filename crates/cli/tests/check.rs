//! What is said of a Dockerfile without building it: `check`, `build --call`, `build --print-llb`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Stdio;

use llb::Graph;
use serde_json::Value;
use testkit::{Environment, Outcome};

fn environment() -> Environment {
    Environment::new(env!("CARGO_BIN_EXE_lapstrake"))
}

const MESSY: &str = "from scratch AS Base\nMAINTAINER me\nENV a b\nCOPY x /x\nCMD y\n";

#[test]
fn findings_are_printed_as_docker_prints_them_and_fail() {
    let environment = environment();
    environment.write("Dockerfile", "FROM scratch\nWORKDIR rel\n");
    let told = environment.run(["build", "--check", "--progress=quiet", "."]);
    assert_eq!(told.status.code(), Some(1), "{}", told.told());
    let expected = "Check complete, 1 warning has been found!

WARNING: WorkdirRelativePath - https://docs.docker.com/go/dockerfile/rule/workdir-relative-path/
Relative workdir \"rel\" can have unexpected results if the base image changes
Dockerfile:2
--------------------
   1 |     FROM scratch
   2 | >>> WORKDIR rel
   3 |     
--------------------
";
    assert_eq!(told.stdout, expected);
    assert_eq!(told.stderr, "");
    for (call, code) in [("check,ignorestatus=true", 0), ("lint", 1)] {
        let told = environment.run(["build", "--progress=quiet", "--call", call, "."]);
        assert_eq!(
            (told.stdout.as_str(), told.status.code()),
            (expected, Some(code))
        );
    }
}

#[test]
fn a_clean_file_passes() {
    let environment = environment();
    environment.write("Dockerfile", "FROM scratch\nCOPY x /x\n");
    let told = environment.ok(["build", "--call=check", "."]);
    assert_eq!(told.stdout, "Check complete, no warnings found.\n");
    assert_eq!(environment.ok(["check"]).stdout, "no warnings\n");
}

#[test]
fn findings_as_json_have_dockers_shape() {
    let environment = environment();
    environment.write("sub/dev.Dockerfile", MESSY);
    let told = environment.run([
        "build",
        "--call=check,format=json",
        "-f",
        "sub/dev.Dockerfile",
        ".",
    ]);
    assert_eq!(told.status.code(), Some(1), "{}", told.told());
    let report: Value = serde_json::from_str(&told.stdout).unwrap();
    assert_eq!(report["sources"][0]["filename"], "dev.Dockerfile");
    assert_eq!(report["warnings"][0]["ruleName"], "StageNameCasing");
    assert_eq!(
        report["warnings"][0]["location"]["ranges"][0]["start"]["line"],
        1
    );
}

#[test]
fn what_cannot_be_built_is_an_error_beside_the_findings() {
    let environment = environment();
    environment.write("Dockerfile", "FROM scratch AS Base\nCOPY --from=3 x /x\n");
    let told = environment.run(["build", "--check", "--progress=quiet", "."]);
    assert_eq!(told.status.code(), Some(1));
    assert!(told.stdout.contains("StageNameCasing"), "{}", told.stdout);
    told.says("invalid stage index 3").says("Dockerfile:2");
}

#[test]
fn targets_and_parameters_are_listed() {
    let environment = environment();
    let dockerfile = "# base is what all need\nFROM scratch AS base\n# WHO is greeted\nARG WHO=you\nLABEL a=$WHO\nFROM base\n";
    environment.write("Dockerfile", dockerfile);
    let targets = environment.ok(["build", "--call=targets", "."]).stdout;
    assert_eq!(
        targets,
        "TARGET    DESCRIPTION\nbase      is what all need\n(default) \n"
    );
    let outline = environment
        .ok(["build", "--call=outline", "--target=base", "."])
        .stdout;
    assert_eq!(
        outline,
        "TARGET:      base\nDESCRIPTION: is what all need\n\nBUILD ARG   VALUE   DESCRIPTION\nWHO         you     is greeted\n\n"
    );
    let told = environment
        .ok(["build", "--call=targets,format=json", "."])
        .stdout;
    let targets: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(targets["targets"][1]["default"], true);
    let told = environment.run(["build", "--call=outline", "--target=bse", "."]);
    assert_eq!(told.status.code(), Some(1));
    told.says("did you mean base?");
}

#[test]
fn an_unknown_method_is_refused() {
    let environment = environment();
    environment.write("Dockerfile", "FROM scratch\n");
    let told = environment.run(["build", "--call=czech", "."]);
    assert_eq!(told.status.code(), Some(2));
    told.says("there is no method \"czech\"");
}

#[test]
fn fixing_mends_the_file_in_place_and_says_what_is_left() {
    let environment = environment();
    environment.write("real", MESSY);
    let real = environment.work().join("real");
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
    symlink("real", environment.work().join("Dockerfile")).unwrap();
    let patch = environment.run(["check", "--diff"]);
    assert_eq!(patch.status.code(), Some(1));
    assert!(patch.stdout.contains("\n+ENV a=b\n"), "{}", patch.stdout);
    assert_eq!(
        fs::read_to_string(&real).unwrap(),
        MESSY,
        "--diff changes nothing"
    );
    let told = environment.run(["check", "--fix"]);
    assert_eq!(told.status.code(), Some(1), "one finding takes thought");
    for text in [
        "fixed Dockerfile:3: LegacyKeyValueFormat",
        "warning[JSONArgsRecommended]",
        "findings fixed, 1 warning\n",
    ] {
        assert!(told.stdout.contains(text), "{}", told.stdout);
    }
    assert_eq!(
        fs::read_to_string(&real).unwrap(),
        "FROM scratch AS base\nLABEL org.opencontainers.image.authors=\"me\"\nENV a=b\nCOPY x /x\nCMD y\n"
    );
    assert!(environment.work().join("Dockerfile").is_symlink());
    let mode = fs::metadata(&real).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o640);
}

#[test]
fn a_file_that_does_not_parse_is_left_alone() {
    let environment = environment();
    environment.write("Dockerfile", "from scratch\nRUNN x\n");
    let told = environment.run(["check", "--fix"]);
    assert_eq!(told.status.code(), Some(1));
    assert!(told.stdout.contains("did you mean RUN?"), "{}", told.stdout);
    assert!(
        told.stdout.ends_with("the file cannot be built\n"),
        "{}",
        told.stdout
    );
    let left = fs::read_to_string(environment.work().join("Dockerfile")).unwrap();
    assert_eq!(left, "from scratch\nRUNN x\n");
}

#[test]
fn the_file_is_named_in_each_way() {
    let environment = environment();
    environment.write("a/Dockerfile", "FROM scratch\nCOPY x /x\n");
    environment.write("a/.dockerignore", "x\n");
    for arguments in [
        &["check", "a"][..],
        &["check", "a/Dockerfile"],
        &["check", "-f", "a/Dockerfile", "a"],
    ] {
        let told = environment.run(arguments);
        assert_eq!(told.status.code(), Some(1), "{arguments:?}");
        let expected = "warning[CopyIgnoredFile]";
        assert!(
            told.stdout.contains(expected),
            "{arguments:?}: {}",
            told.stdout
        );
    }
    let mut command = environment.command(["check", "-f", "-", "--format", "sarif"]);
    let input = fs::File::open(environment.work().join("a/Dockerfile")).unwrap();
    let told = Outcome::of(command.stdin(Stdio::from(input)));
    let log: Value = serde_json::from_str(&told.stdout).unwrap();
    assert_eq!(log["version"], "2.1.0");
    assert_eq!(environment.run(["check", "nowhere"]).status.code(), Some(2));
}

#[test]
fn the_graph_is_written_as_buildkit_reads_it() {
    let environment = environment();
    let dockerfile =
        "FROM scratch AS unused\nCOPY other /\nFROM scratch\nWORKDIR /w\nCOPY --chmod=644 x y ./\n";
    environment.write("Dockerfile", dockerfile);
    environment.write(".dockerignore", "*.log\n");
    let mut command = environment.command(["build", "--print-llb", "--platform=linux/arm64", "."]);
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let graph = Graph::decode_definition(&output.stdout).unwrap();
    assert_eq!(
        graph.encode_definition(),
        output.stdout,
        "the same bytes again"
    );
    let dump = graph.dump();
    for text in [
        "local://context",
        "local.excludepatterns: [\"*.log\"]",
        "local.followpaths: [\"x\",\"y\"]",
        "mkdir \"/w\"",
        "mode=0644",
    ] {
        assert!(dump.contains(text), "{text} is not in\n{dump}");
    }
    assert!(
        !dump.contains("other"),
        "what the target does not need is not there:\n{dump}"
    );
    let told = environment.run([
        "build",
        "--print-llb",
        "--platform=linux/arm64,linux/amd64",
        ".",
    ]);
    assert_eq!(told.status.code(), Some(1));
    told.says("a definition is for one platform");
}

#[test]
fn a_finding_at_many_places_quotes_the_first_of_them() {
    let world = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    let empty = "\n".repeat(100_000);
    world.write("Dockerfile", format!("FROM scratch\nRUN a \\\n{empty}b\n"));
    let told = world.run(["check", "."]).told();
    assert!(told.contains("more places like these"), "{told}");
    assert!(told.lines().count() < 60, "{} lines", told.lines().count());
}
