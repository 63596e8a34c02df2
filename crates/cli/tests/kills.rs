//! A builder that is killed leaves nothing behind that harms.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use testkit::Environment;
use testkit::soak::{self, Trial};

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
fn killed_builders_do_no_harm() {
    testkit::require_fixtures!("busybox:latest");
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    let trial = Trial {
        count: 25,
        seed: 1,
        is_told: false,
    };
    soak::kill(&environment, trial);
    // The steps of a builder that died die with it: their helper may take a moment to be reaped.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !processes_of(&environment.root()).is_empty() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(processes_of(&environment.root()), Vec::<String>::new());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc is there");
    assert!(!mounts.contains(&environment.root().display().to_string()));
}

/// A builder under way whose step has begun.
struct Building {
    child: std::process::Child,
    said: std::sync::mpsc::Receiver<String>,
}

impl Building {
    /// Starts a build and waits until it has printed `mark`.
    fn start(environment: &Environment, mark: &str) -> Self {
        let mut child = environment
            .command(["build", "--progress", "plain", "ctx"])
            .stderr(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("it starts");
        let stderr = child.stderr.take().expect("a pipe");
        let (sender, said) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            use std::io::BufRead;
            for line in std::io::BufReader::new(stderr).lines() {
                if sender.send(line.unwrap_or_default()).is_err() {
                    return;
                }
            }
        });
        let mut building = Self { child, said };
        building.wait_for(mark);
        building
    }

    fn wait_for(&mut self, mark: &str) {
        loop {
            let line = self.said.recv_timeout(Duration::from_secs(60));
            if line.expect("the builder says it").contains(mark) {
                return;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(self.child.id() as i32).expect("a process id");
        kill_process(id, signal).expect("a signal can be sent");
    }

    /// Returns the exit code.
    fn end(mut self) -> Option<i32> {
        self.child.wait().expect("it ends").code()
    }
}

/// Returns the processes whose command line has a word.
fn processes_with(word: &str) -> usize {
    let entries = std::fs::read_dir("/proc").expect("/proc is there");
    entries
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
        .filter(|line| {
            line.split(|byte| *byte == 0)
                .any(|part| part == word.as_bytes())
        })
        .count()
}

#[test]
fn an_interrupt_ends_every_process_and_leaves_nothing() {
    testkit::require_fixtures!("busybox:latest");
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
        // A number of this test's own, by which its processes are found.
        let time = format!("{}", 1_000_000 + std::process::id());
        environment.write(
            "ctx/Dockerfile",
            format!(
                "FROM busybox\nRUN trap '' INT TERM HUP; sleep {time} & echo un''derway; sleep {time}\n"
            ),
        );
        let building = Building::start(&environment, " underway");
        building.signal(signal);
        assert_eq!(building.end(), Some(130));
        assert_eq!(processes_with(&time), 0, "{signal:?}");
        let begun = std::fs::read_dir(environment.root().join("ingest"));
        assert_eq!(begun.map_or(0, Iterator::count), 0, "{signal:?}");
    }
}

#[test]
fn an_interrupt_ends_a_wait_for_a_cache_mount() {
    testkit::require_fixtures!("busybox:latest");
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    let mount = "--mount=type=cache,target=/c,sharing=locked";
    let time = format!("{}", 2_000_000 + std::process::id());
    let holding = format!("FROM busybox\nRUN {mount} echo hol''ding; sleep {time}\n");
    environment.write("ctx/Dockerfile", &holding);
    let holder = Building::start(&environment, " holding");
    environment.write("ctx/Dockerfile", holding.replace("hol''ding", "other"));
    let waiting = Building::start(&environment, "echo other");
    waiting.signal(Signal::INT);
    assert_eq!(waiting.end(), Some(130));
    holder.signal(Signal::INT);
    assert_eq!(holder.end(), Some(130));
}

#[test]
fn an_interrupt_ends_a_wait_for_a_server() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("an address");
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    for text in [
        format!("FROM scratch\nADD http://{address}/file /\n"),
        format!("FROM {address}/image\nCOPY . /\n"),
    ] {
        environment.write("ctx/Dockerfile", &text);
        let building = Building::start(&environment, &address.to_string());
        // It has asked, and nobody answers.
        let connection = silent.accept().expect("a connection");
        building.signal(Signal::INT);
        assert_eq!(building.end(), Some(130), "{text}");
        drop(connection);
    }
}

#[test]
fn a_second_interrupt_kills_at_once() {
    testkit::require_fixtures!("busybox:latest");
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    let time = format!("{}", 3_000_000 + std::process::id());
    let text = format!("FROM busybox\nRUN echo un''derway; sleep {time}\n");
    environment.write("ctx/Dockerfile", text);
    let mut building = Building::start(&environment, " underway");
    // A helper that does nothing any more: the step cannot be ended in order.
    let children = format!("/proc/{0}/task", building.child.id());
    let tasks = std::fs::read_dir(children).expect("it runs");
    let children =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok());
    let children: Vec<i32> = children
        .flat_map(|ids| {
            ids.split_whitespace()
                .filter_map(|id| id.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(!children.is_empty());
    for id in &children {
        let id = Pid::from_raw(*id).expect("a process id");
        kill_process(id, Signal::STOP).expect("a signal can be sent");
    }
    let mut sent = 0;
    let code = loop {
        if let Some(status) = building.child.try_wait().expect("it can be waited for") {
            break status.code();
        }
        building.signal(Signal::INT);
        sent += 1;
        // Two that come at once are one.
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(code, Some(130));
    assert!((2..50).contains(&sent), "{sent}");
    let deadline = Instant::now() + Duration::from_secs(10);
    while processes_with(&time) > 0 && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(processes_with(&time), 0);
}
