//! Looking into steps: a shell where one failed, and later, from the store.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use testkit::Environment;

fn environment(dockerfile: &str) -> Environment {
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    environment.write("ctx/Dockerfile", dockerfile);
    environment
}

/// A program on a pseudo-terminal of its own.
struct Session {
    child: Child,
    front: File,
    pieces: Receiver<Vec<u8>>,
    reading: Arc<AtomicBool>,
    seen: String,
}

impl Session {
    fn start(mut command: Command) -> Self {
        let (front, back) = sandbox::open_terminal().expect("a terminal");
        let stream = || Stdio::from(back.try_clone().expect("a copy"));
        command.stdin(stream()).stdout(stream()).stderr(stream());
        let child = command.spawn().expect("it starts");
        drop((back, command));
        let front = File::from(front);
        let mut reader = front.try_clone().expect("a copy");
        let (sender, pieces) = channel();
        let reading = Arc::new(AtomicBool::new(true));
        let goes_on = Arc::clone(&reading);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            let moment = rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 20_000_000,
            };
            while goes_on.load(Ordering::SeqCst) {
                let mut polled = [PollFd::new(&reader, PollFlags::IN)];
                if rustix::event::poll(&mut polled, Some(&moment)) == Ok(0) {
                    continue;
                }
                // Ends with an error once nobody has the other side.
                let Ok(count @ 1..) = reader.read(&mut buffer) else {
                    return;
                };
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            front,
            pieces,
            reading,
            seen: String::new(),
        }
    }

    fn wait_for(&mut self, text: &str) {
        while !self.seen.contains(text) {
            match self.pieces.recv_timeout(Duration::from_secs(60)) {
                Ok(piece) => self.seen.push_str(&String::from_utf8_lossy(&piece)),
                Err(_) => panic!("{text:?} does not come; there was\n{}", self.seen),
            }
        }
    }

    fn type_in(&mut self, text: &str) {
        self.front.write_all(text.as_bytes()).expect("it is read");
    }

    /// Closes the terminal's side of whoever sits at it, and returns how the program ended.
    fn vanish(mut self) -> Option<i32> {
        self.reading.store(false, Ordering::SeqCst);
        drop(self.front);
        self.child.wait().expect("it ends").code()
    }

    /// Returns the exit code, and all that was shown.
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().expect("it ends");
        while let Ok(piece) = self.pieces.recv_timeout(Duration::from_secs(60)) {
            self.seen.push_str(&String::from_utf8_lossy(&piece));
        }
        (status.code(), self.seen)
    }
}

#[test]
fn a_shell_opens_where_a_step_failed_and_the_build_fails_all_the_same() {
    testkit::require_fixtures!("busybox:latest");
    let environment = environment(
        "FROM busybox\nENV NAME=value\nWORKDIR /here\nUSER 7:8\nUSER root\n\
         RUN --mount=type=cache,target=/cache --mount=type=secret,id=word \
         --mount=type=secret,id=word,env=WORD --mount=type=tmpfs,target=/memory --network=none \
         mkdir /left && echo written > /left/file && echo kept > /cache/file && exit 7\n",
    );
    environment.write("word", "open sesame");
    let mut command = environment.command([
        "build",
        "--on-failure=shell",
        "--secret",
        "id=word,src=word",
        "-t",
        "never",
        "ctx",
    ]);
    command.env("BUILDKIT_PROGRESS", "plain");
    let mut session = Session::start(command);
    session.wait_for("changes are thrown away");
    session.wait_for("the step runs: /bin/sh -c");
    session.type_in(
        "echo got $(cat /left/file /cache/file /run/secrets/word) $WORD in $PWD with $NAME as $(id -u)\n",
    );
    session.wait_for("got written kept open sesame open sesame in /here with value as 0");
    session.type_in("echo networks: $(ls /sys/class/net); grep -c ' /memory ' /proc/mounts; tty\n");
    session.wait_for("networks: lo\r\n1\r\n/dev/");
    // Ctrl-C belongs to the shell.
    session.type_in("sh -c 'echo under''way; exec sleep 1000'\n");
    session.wait_for("underway");
    session.type_in("\x03");
    session.type_in("echo still $((20 + 3)) here\n");
    session.wait_for("still 23 here");
    session.type_in("exit 3\n");
    let (code, seen) = session.end();
    assert_eq!(code, Some(1), "{seen}");
    assert!(seen.contains("exit code: 7"), "{seen}");
    assert_eq!(environment.ok(["images", "-q"]).stdout, "");
    let begun = std::fs::read_dir(environment.root().join("ingest"));
    assert_eq!(begun.map_or(0, Iterator::count), 0);
}

/// Counts the processes of this machine in whose command line a word stands.
fn processes_with(word: &str) -> usize {
    let all = std::fs::read_dir("/proc").expect("read").flatten();
    all.filter(|entry| {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(word)
    })
    .count()
}

#[test]
fn a_shell_whose_terminal_vanishes_ends_and_leaves_nothing() {
    testkit::require_fixtures!("busybox:latest");
    let environment = environment("FROM busybox\nRUN exit 7\n");
    let mut session =
        Session::start(environment.command(["build", "--on-failure=shell", "-t", "never", "ctx"]));
    session.wait_for("changes are thrown away");
    // The shell itself does not read: only who holds its terminal can notice.
    let word = format!("8{}", std::process::id());
    session.type_in(&format!("trap '' HUP; echo under''way; sleep {word}\n"));
    session.wait_for("underway");
    while processes_with(&word) == 0 {
        std::thread::yield_now();
    }
    assert_eq!(session.vanish(), Some(1));
    assert_eq!(processes_with(&word), 0);
    let begun = std::fs::read_dir(environment.root().join("ingest"));
    assert_eq!(begun.map_or(0, Iterator::count), 0);
}

#[test]
fn a_shell_on_failure_needs_a_terminal_and_an_image_with_a_shell() {
    testkit::require_fixtures!("busybox:latest");
    let bare = "FROM busybox AS tools\nFROM scratch\n\
                COPY --from=tools /bin/busybox /bin/false\nRUN [\"/bin/false\"]\n";
    let environment = environment(bare);
    environment
        .run(["build", "--on-failure=shell", "ctx"])
        .fails_with(2)
        .says("needs a terminal")
        .says("lapstrake debug");
    let words = ["build", "--on-failure", "shell", "ctx"];
    let mut session = Session::start(environment.command(words));
    session.wait_for("the image has no shell");
    let (code, seen) = session.end();
    assert_eq!(code, Some(1), "{seen}");
    let good = "FROM busybox\nRUN true\n";
    environment.write("ctx/Dockerfile", good);
    let (code, seen) = Session::start(environment.command(words)).end();
    assert_eq!(
        (code, seen.contains("thrown away")),
        (Some(0), false),
        "{seen}"
    );
}

#[test]
fn steps_are_looked_into_later() {
    testkit::require_fixtures!("busybox:latest");
    let text = "FROM busybox\nARG API_TOKEN=hush\nENV NAME=value\nWORKDIR /here\nRUN mkdir -p /home/me\nUSER 7\n\
                RUN touch /tmp/mine\nCOPY file /copied\nRUN touch /tmp/two; exit 4\n";
    let environment = environment(text);
    environment.write("ctx/file", "from the context\n");
    environment.run(["build", "ctx"]).fails_with(1);
    let look = |wanted: &str, script: &str| {
        let words = ["debug", wanted, "--", "sh", "-c", script];
        environment.run(words).success().stdout
    };
    // The failed step, as it began.
    let told = look("", "echo $NAME $PWD $(id -u); ls /tmp");
    assert_eq!(told, "value /here 7\nmine\n");
    let told = look("^0:WORKDIR", "echo $PWD; ls -d /here; ls /home");
    assert_eq!(told, "/\n/here\n", "WORKDIR runs no process");
    assert_eq!(look(":touch /tmp/mine", "ls /tmp"), "mine\n");
    assert_eq!(look(":COPY", "cat /copied"), "from the context\n");
    let before = ["debug", "--before", ":mkdir -p", "--", "ls", "/home"];
    assert_eq!(environment.ok(before).stdout, "");
    assert_eq!(look(":mkdir -p", "ls /home"), "me\n");
    // What is written there is nowhere afterwards.
    look(":mkdir -p", "rm -r /home/me");
    assert_eq!(look(":mkdir -p", "ls /home"), "me\n");
    let failing = ["debug", ":mkdir -p", "--", "sh", "-c", "exit 9"];
    environment.run(failing).fails_with(9);
    environment
        .run(["debug", "--", "/no/such/program"])
        .fails_with(127)
        .says("unable to start container process");
    environment
        .run(["debug", ":nothing of the kind"])
        .fails_with(1)
        .says("has no step");
    environment
        .run(["debug", "zzz"])
        .fails_with(1)
        .says("there is no build \"zzz\"");

    let mut session = Session::start(environment.command(["debug"]));
    session.wait_for("the step runs: /bin/sh -c 'touch /tmp/two; exit 4'");
    session.wait_for("not set, as their values are not kept: API_TOKEN");
    session.type_in("echo I am $(id -u); exit 5\n");
    session.wait_for("I am 7");
    assert_eq!(session.end().0, Some(5));

    // A step that was cached is entered as where it ran.
    environment.write("ctx/Dockerfile", text.replace("exit 4", "exit 6"));
    environment.run(["build", "ctx"]).fails_with(1);
    assert_eq!(
        look(":touch /tmp/mine", "echo $NAME $(ls /tmp)"),
        "value mine\n"
    );
    environment.ok(["system", "prune", "-af"]);
    environment
        .run(["debug"])
        .fails_with(1)
        .says("no longer in the store");
}
