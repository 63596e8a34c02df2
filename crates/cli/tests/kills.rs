//! A builder that is killed leaves nothing behind that harms.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use testkit::Environment;

const KILLS: u64 = 25;

const DOCKERFILE: &str = "FROM busybox AS base
COPY . /src
RUN cat /src/* | sha256sum > /sum
FROM base AS one
RUN for i in $(seq 50); do echo $i > /f$i; done
FROM base AS two
RUN seq 20000 > /numbers && sleep 0.05
FROM busybox
COPY --from=one /f50 /
COPY --from=two /numbers /
RUN cat /f50 /numbers | wc -l > /count
";

/// Returns the processes of the machine whose command line names the state directory.
fn processes_of(root: &Path) -> Vec<String> {
    let wanted = root.display().to_string();
    let entries = std::fs::read_dir("/proc").expect("/proc is there");
    entries
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(&wanted))
        .collect()
}

#[test]
fn a_killed_build_does_no_harm_to_the_next() {
    testkit::require_fixtures!("busybox:latest");
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    environment.write("ctx/Dockerfile", DOCKERFILE);
    for number in 0..40 {
        environment.write(&format!("ctx/file{number}"), "x".repeat(1000 * number));
    }
    let build = ["build", "-q", "-o", "type=oci,dest=out.tar", "ctx"];
    let whole = {
        let began = Instant::now();
        environment.ok(build);
        began.elapsed()
    };
    for turn in 0..KILLS {
        // Each build has steps of its own, and each kill comes at another moment of it.
        environment.write("ctx/turn", turn.to_string());
        let mut command = environment.command(build);
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let mut child = command.spawn().expect("it starts");
        let moment = whole.mul_f64((turn * 7 % KILLS) as f64 / KILLS as f64);
        wait_for(moment);
        let id = Pid::from_raw(child.id() as i32).expect("a process id");
        let _ = kill_process(id, Signal::KILL);
        let _ = child.wait();
    }
    let outcome = environment.ok(build);
    assert!(!outcome.stdout.is_empty());
    environment.ok(["build", "-q", "-o", "out", "ctx"]);
    let count = std::fs::read_to_string(environment.work().join("out/count")).expect("a file");
    assert_eq!(count.trim(), "20001");
    // The steps of a builder that died die with it: their helper may take a moment to be reaped.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !processes_of(&environment.root()).is_empty() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(processes_of(&environment.root()), [String::new(); 0]);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc is there");
    assert!(!mounts.contains(&environment.root().display().to_string()));
}

/// Lets the builder get as far as it gets in this time: the moment itself is what is varied.
fn wait_for(time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {
        std::thread::sleep(Duration::from_millis(1));
    }
}
