//! `lapstrake serve` as a process: its address, its socket, its end.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use testkit::{Environment, is_root, require_fixtures, require_programs, skip};

fn environment() -> Environment {
    Environment::new(env!("CARGO_BIN_EXE_lapstrake"))
}

/// Starts a server and waits until it says that clients can come.
#[expect(clippy::zombie_processes, reason = "who starts a server ends it")]
fn start(command: &mut Command) -> Child {
    let mut child = command
        .stderr(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .expect("a server");
    let mut lines = BufReader::new(child.stderr.take().expect("its words"));
    loop {
        let mut line = String::new();
        let count = lines.read_line(&mut line).expect("a line");
        if count == 0 {
            let ended = child.wait().expect("an end");
            panic!("the server ended: {ended}");
        }
        if line.starts_with("serving on ") {
            return child;
        }
    }
}

fn terminate(child: &Child) {
    let id = child.id().to_string();
    let sent = Command::new("kill").args(["-TERM", &id]).status();
    assert!(sent.expect("kill").success());
}

#[test]
fn an_address_that_is_none_is_refused() {
    let environment = environment();
    for (arguments, said) in [
        (vec!["serve"], "--addr is missing"),
        (vec!["serve", "--addr", "/run/x.sock"], "none of unix://"),
        (
            vec!["serve", "--addr", "unix://x.sock"],
            "starts with a slash",
        ),
        (vec!["serve", "--addr", "tcp://localhost"], "no port"),
    ] {
        environment.run(arguments).fails_with(2).says(said);
    }
}

#[test]
fn the_socket_is_for_owner_and_group_and_goes_with_the_server() {
    require_programs!("kill");
    if !is_root() {
        skip!("a server of its own needs root here");
    }
    let environment = environment();
    let socket = environment.work().join("socket");
    let address = format!("unix://{}", socket.display());
    let serve = || environment.command(["serve", "--addr", address.as_str()]);
    let mut server = start(&mut serve());
    let mode = std::fs::metadata(&socket)
        .expect("a socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o660);
    // A second one does not take the socket away from the first.
    let second = testkit::Outcome::of(&mut serve());
    second.fails_with(3).says("in use");
    terminate(&server);
    assert!(server.wait().expect("an end").success());
    assert!(!socket.exists());
    // What a killed server leaves is no hindrance.
    let mut killed = start(&mut serve());
    killed.kill().expect("a server");
    killed.wait().expect("an end");
    assert!(socket.exists());
    let mut server = start(&mut serve());
    terminate(&server);
    assert!(server.wait().expect("an end").success());
}

#[test]
fn clients_that_cancel_and_vanish_leave_nothing() {
    require_fixtures!("busybox:latest");
    require_programs!("kill");
    if !is_root() {
        skip!("a server of its own needs root here");
    }
    let trial = testkit::soak::Trial {
        count: 24,
        seed: 7,
        is_told: false,
    };
    testclient::soak::clients(&environment(), trial);
}

#[test]
fn buildctl_builds_where_it_can_be_had() {
    require_fixtures!("busybox:latest");
    if !is_root() {
        skip!("a server of its own needs root here");
    }
    // No package of Debian has it, so that no run can ask for it to be there.
    if std::process::Command::new("buildctl")
        .arg("--version")
        .output()
        .is_err()
    {
        skip!("no buildctl on this machine");
    }
    let environment = environment();
    let socket = environment.work().join("socket");
    let address = format!("unix://{}", socket.display());
    let mut server = start(&mut environment.command(["serve", "--addr", address.as_str()]));
    environment.write(
        "context/Dockerfile",
        "FROM busybox AS b\nRUN --mount=type=secret,id=s cp /run/secrets/s /got\nFROM scratch\nCOPY --from=b /got /\nCOPY foo /\n",
    );
    environment.write("context/foo", "foo");
    environment.write("secret", "hush");
    let built = testkit::Outcome::of(environment.program("buildctl").args([
        "--addr",
        address.as_str(),
        "build",
        "--progress=plain",
        "--frontend=dockerfile.v0",
        "--local=context=context",
        "--local=dockerfile=context",
        "--secret=id=s,src=secret",
        "--output=type=local,dest=out",
    ]));
    built.success();
    let read = |name: &str| std::fs::read_to_string(environment.work().join("out").join(name));
    assert_eq!(read("got").expect("a file"), "hush");
    assert_eq!(read("foo").expect("a file"), "foo");
    terminate(&server);
    assert!(server.wait().expect("an end").success());
}
