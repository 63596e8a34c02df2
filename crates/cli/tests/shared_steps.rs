//! A step that two builders need at the same time runs once, and both show what it prints.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use testkit::Environment;

/// How long a test waits for what has to happen before it fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A step that prints what the test sends it, and ends when the test says so.
struct Gate {
    listener: TcpListener,
}

impl Gate {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a listener");
        Self { listener }
    }

    fn dockerfile(&self, then: &str) -> String {
        let port = self.listener.local_addr().expect("an address").port();
        format!("FROM busybox\nRUN --network=host nc 127.0.0.1 {port} </dev/null {then}\n")
    }

    /// Waits until the step runs.
    fn reached(&self) -> TcpStream {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => return stream,
                Err(error) => assert!(Instant::now() < end, "the step never ran: {error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns whether it runs once more.
    fn is_reached_again(&self) -> bool {
        self.listener.accept().is_ok()
    }
}

/// The base image is there, so that the step is all there is to share.
fn world() -> Environment {
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    environment.write("base/Dockerfile", "FROM busybox\nRUN true\n");
    environment.ok(["build", "-q", "base"]);
    environment
}

/// A builder under way.
struct Builder {
    child: Child,
    lines: Receiver<String>,
    said: String,
}

impl Builder {
    fn start(environment: &Environment, arguments: &[&str]) -> Self {
        let mut all = vec!["build", "--allow=network.host", "--progress=plain"];
        all.extend(arguments);
        all.push("ctx");
        let mut child = environment
            .command(all)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let stderr = child.stderr.take().expect("a pipe");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            use std::io::BufRead;
            for line in std::io::BufReader::new(stderr).lines() {
                if sender.send(line.unwrap_or_default()).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            lines,
            said: String::new(),
        }
    }

    /// Waits until it has printed a text.
    #[track_caller]
    fn says(&mut self, text: &str) {
        loop {
            let Ok(line) = self.lines.recv_timeout(PATIENCE) else {
                panic!("it never said {text:?}:\n{}", self.said);
            };
            self.said.push_str(&line);
            self.said.push('\n');
            if line.contains(text) {
                return;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(self.child.id() as i32).expect("a process id");
        kill_process(id, signal).expect("a signal can be sent");
    }

    /// Waits for its end. Returns its exit code and all it said.
    fn end(mut self) -> (Option<i32>, String) {
        let code = self.child.wait().expect("it ends").code();
        for line in self.lines.iter() {
            self.said.push_str(&line);
            self.said.push('\n');
        }
        (code, self.said)
    }
}

const SHARED: &str = "shared with build ";

#[test]
fn a_step_that_two_builders_need_runs_once_and_both_show_its_log() {
    testkit::require_fixtures!("busybox:latest");
    let environment = world();
    let gate = Gate::new();
    environment.write("ctx/Dockerfile", gate.dockerfile("&& date +%N > /made"));
    let mut first = Builder::start(&environment, &["-t", "first"]);
    let mut step = gate.reached();
    step.write_all(b"before the other\n").expect("it reads");
    first.says("before the other");
    let mut second = Builder::start(&environment, &["-t", "second"]);
    second.says(SHARED);
    second.says("before the other");
    step.write_all(b"while both wait\n").expect("it reads");
    first.says("while both wait");
    second.says("while both wait");
    // The last of a long log is not lost either.
    for _ in 0..200 {
        step.write_all(&[b'Q'; 10_000]).expect("it reads");
        step.write_all(b"\n").expect("it reads");
    }
    step.write_all(b"the last line\n").expect("it reads");
    drop(step);
    for builder in [first, second] {
        let (code, said) = builder.end();
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(said.matches("the last line").count(), 1);
    }
    assert!(!gate.is_reached_again());
    let id = |name| {
        let shown = environment.ok(["image", "inspect", "-f", "{{.Id}}", name]);
        shown.stdout
    };
    assert_eq!(id("first"), id("second"));
    // Each build keeps the whole log.
    for build in ["^0", "^1"] {
        let told = environment.ok(["history", "logs", build]);
        let log = told.stdout + &told.stderr;
        assert_eq!(log.matches("while both wait").count(), 1, "{build}");
        assert_eq!(log.matches('Q').count(), 2_000_000, "{build}");
    }
}

#[test]
fn the_step_of_a_builder_that_dies_runs_in_the_one_that_waits() {
    testkit::require_fixtures!("busybox:latest");
    let environment = world();
    let gate = Gate::new();
    environment.write("ctx/Dockerfile", gate.dockerfile(""));
    let first = Builder::start(&environment, &[]);
    let mut step = gate.reached();
    let mut others = [(); 2].map(|()| Builder::start(&environment, &[]));
    step.write_all(b"from the first\n").expect("it reads");
    others
        .iter_mut()
        .for_each(|other| other.says("from the first"));
    first.signal(Signal::KILL);
    assert_eq!(first.end().0, None);
    // One of the two takes it over, the other follows that one.
    let mut again = gate.reached();
    again.write_all(b"from the next\n").expect("it reads");
    others
        .iter_mut()
        .for_each(|other| other.says("from the next"));
    drop(again);
    let mut took_over = 0;
    for other in others {
        let (code, said) = other.end();
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(said.matches("from the first").count(), 1, "{said}");
        took_over += said.matches("it runs here").count();
    }
    assert!(!gate.is_reached_again());
    // Plain output has a line for the beginning of a status, and one for its end at most.
    assert!(took_over >= 1);
    environment.ok(["system", "check"]);
}

#[test]
fn a_step_that_fails_elsewhere_is_tried_here() {
    testkit::require_fixtures!("busybox:latest");
    let environment = world();
    let gate = Gate::new();
    environment.write("ctx/Dockerfile", gate.dockerfile("| grep good"));
    let first = Builder::start(&environment, &[]);
    let step = gate.reached();
    let mut second = Builder::start(&environment, &[]);
    second.says(SHARED);
    drop(step);
    let (code, said) = first.end();
    assert_eq!(code, Some(1), "{said}");
    let mut step = gate.reached();
    step.write_all(b"good\n").expect("it reads");
    drop(step);
    let (code, said) = second.end();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_build_without_cache_joins_no_other() {
    testkit::require_fixtures!("busybox:latest");
    let environment = world();
    let gate = Gate::new();
    environment.write("ctx/Dockerfile", gate.dockerfile(""));
    let builders = [&[][..], &["--no-cache"], &["--no-cache"]]
        .map(|arguments| Builder::start(&environment, arguments));
    // All at once: none waits for another.
    let steps = [gate.reached(), gate.reached(), gate.reached()];
    drop(steps);
    for builder in builders {
        let (code, said) = builder.end();
        assert_eq!(code, Some(0), "{said}");
        assert!(!said.contains(SHARED), "{said}");
    }
}

#[test]
fn an_interrupt_ends_a_wait_for_a_step() {
    testkit::require_fixtures!("busybox:latest");
    let environment = world();
    let gate = Gate::new();
    environment.write("ctx/Dockerfile", gate.dockerfile(""));
    let first = Builder::start(&environment, &[]);
    let step = gate.reached();
    let mut second = Builder::start(&environment, &[]);
    second.says(SHARED);
    second.signal(Signal::INT);
    assert_eq!(second.end().0, Some(130));
    drop(step);
    let (code, said) = first.end();
    assert_eq!(code, Some(0), "{said}");
}
