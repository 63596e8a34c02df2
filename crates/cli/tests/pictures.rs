//! Pictures of Dockerfiles and pages about builds.

use std::io::Write;
use std::process::Stdio;

use testkit::Environment;

fn environment() -> Environment {
    Environment::new(env!("CARGO_BIN_EXE_lapstrake"))
}

#[test]
fn a_graph_is_written_in_the_language_of_its_file() {
    let environment = environment();
    environment.example("buildme");
    let graph = |arguments: &[&str]| {
        let file = ["graph", "-f", "buildme/Dockerfile.targets"];
        environment.ok(file.iter().chain(arguments)).stdout
    };
    let drawn = graph(&["--target", "client"]);
    assert!(drawn.starts_with("<svg xmlns="), "{drawn}");
    assert!(
        drawn.contains("<title id=\"graph-title\">Stages of buildme/Dockerfile.targets</title>")
    );
    assert!(drawn.contains(
        "Target: client. It needs: base, build-client. Not built: build-server, server."
    ));
    for (name, start) in [
        ("s.mmd", "flowchart LR\n"),
        ("s.dot", "digraph stages {\n"),
        ("s.svg", "<svg "),
    ] {
        assert_eq!(graph(&["-o", name]), "");
        let written = std::fs::read_to_string(environment.work().join(name)).unwrap();
        assert!(written.starts_with(start), "{written}");
    }
    let written = std::fs::read_to_string(environment.work().join("s.svg")).unwrap();
    assert_eq!(graph(&[]), written);
    let chart = graph(&["--format", "mermaid", "-o", "-"]);
    assert!(
        chart.contains("subgraph n4[\"server (target)\"]"),
        "{chart}"
    );
}

#[test]
fn a_graph_of_standard_input_needs_no_file() {
    let environment = environment();
    let mut command =
        environment.command(["graph", "-f", "-", "--format", "dot", "--build-arg", "V=2"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"ARG V=1\nFROM app:$V")
        .unwrap();
    let told = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert!(told.contains("[label=\"app:2\", shape=ellipse]"), "{told}");
}

#[test]
fn what_cannot_be_drawn_is_said() {
    let environment = environment();
    environment.write("Dockerfile", "FROM a AS one\nFROM b AS two\n");
    let outcome = environment.run(["graph", "--target", "on"]);
    assert_eq!(outcome.status.code(), Some(1));
    assert_eq!(
        outcome.stderr,
        "error: there is no stage \"on\"; the stages are one, two\n"
    );
    environment.write("Dockerfile", "FROM a\nRUM x\n");
    let outcome = environment.run(["graph"]);
    assert_eq!(outcome.status.code(), Some(1));
    assert!(
        outcome.stderr.contains("= help: did you mean RUN?"),
        "{}",
        outcome.stderr
    );
    let outcome = environment.run(["graph", "nowhere"]);
    assert_eq!(outcome.status.code(), Some(2));
    assert!(
        outcome
            .stderr
            .starts_with("error: failed to read nowhere/Dockerfile"),
        "{}",
        outcome.stderr
    );
}
