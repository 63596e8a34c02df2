//! How steps end: codes, signals, failures to start, kills.

mod support;

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use sandbox::{SandboxError, Spec, Status, Stdio};
use support::{Bench, able};

support::everything_holds!();

#[track_caller]
fn check(script: &str, expected: Status) {
    if able() {
        assert_eq!(
            Bench::new().run_shell(script).status(),
            expected,
            "{script}"
        );
    }
}

#[test]
fn exit_codes_are_exact() {
    check("exit 0", Status::Code(0));
    check("exit 7", Status::Code(7));
    check("exit 255", Status::Code(255));
}

#[test]
fn signals_are_exact_and_have_their_default_action() {
    if support::native("the command is process 1, which no signal of its own ends by default") {
        check("kill -TERM $$", Status::Signal(15));
        check("kill -KILL $$", Status::Signal(9));
        check("kill -PIPE $$; echo alive", Status::Signal(13));
        check("kill -SEGV $$", Status::Signal(11));
    }
    // None is blocked.
    for signal in ["TERM", "USR1", "ALRM", "PIPE"] {
        let script = format!("trap 'exit 3' {signal}; kill -{signal} $$; sleep 5");
        check(&script, Status::Code(3));
    }
    assert_eq!(Status::Signal(9).shell_code(), 137);
}

#[track_caller]
fn check_start(args: &[&str], code: i32, reason: &str) {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let tree = bench.lower();
    support::write_program(&tree.join("script"), b"#!/no/interpreter -x\n");
    support::write_program(&tree.join("text"), b"\x00\x01\x02");
    std::fs::write(tree.join("plain"), "not executable").expect("a file");
    let spec = Spec::new(
        bench.root("step"),
        args.iter().map(|text| (*text).to_owned()).collect(),
    );
    let expected = Status::NotStarted {
        code,
        reason: reason.to_owned(),
    };
    assert_eq!(bench.run(&spec).status(), expected);
}

#[test]
fn a_command_that_can_not_start_says_why() {
    check_start(
        &["foo"],
        127,
        "exec: \"foo\": executable file not found in $PATH",
    );
    check_start(
        &["/foo"],
        127,
        "exec: \"/foo\": stat /foo: no such file or directory",
    );
    check_start(&["/bin"], 126, "exec: \"/bin\": is a directory");
    check_start(&["/plain"], 126, "exec: \"/plain\": permission denied");
    check_start(&["/text"], 126, "exec /text: exec format error");
    let missing = "exec /script: no such file or directory: its interpreter /no/interpreter is not in the image";
    check_start(&["/script"], 127, missing);
    check_start(&[], 127, "exec: no command");
    check_start(&[""], 127, "exec: no command");
}

#[test]
fn orphans_are_reaped_while_the_command_runs_and_killed_after_it() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let script = "(sleep 0.05 & ) ; sleep 0.2; ps -o stat | grep -c Z; sleep 1000 & exit 0";
    let start = Instant::now();
    let outcome = bench.run_shell(script);
    assert_eq!(
        (outcome.status(), outcome.stdout.as_str()),
        (Status::Code(0), "0\n")
    );
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "a process that was left must not hold the step"
    );
}

#[test]
fn a_kill_ends_every_process_within_a_second() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let spec = bench.shell(
        "step",
        "trap '' TERM INT; (trap '' TERM; setsid sleep 1000) & echo ready; sleep 1000",
    );
    let stdio = Stdio {
        stdout: Some(writer.into()),
        ..Stdio::default()
    };
    let running = bench
        .executor
        .spawn(&spec, stdio, Vec::new(), Vec::new())
        .expect("a step");
    let mut output = BufReader::new(reader);
    let mut line = String::new();
    output.read_line(&mut line).expect("a line");
    let start = Instant::now();
    running.kill();
    assert_eq!(running.wait().expect("an end").status, Status::Signal(9));
    // Whoever still lived would hold the pipe open.
    assert_eq!(output.read_line(&mut line).expect("the end"), 0);
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_dropped_step_is_killed_and_so_are_those_of_a_dropped_helper() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let start = |name: &str| {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let stdio = Stdio {
            stdout: Some(writer.into()),
            ..Stdio::default()
        };
        let running = bench.executor.spawn(
            &bench.shell(name, "echo ready; sleep 1000"),
            stdio,
            vec![],
            vec![],
        );
        let mut output = BufReader::new(reader);
        output.read_line(&mut String::new()).expect("a line");
        (running.expect("a step"), output)
    };
    let at_end = |mut output: BufReader<std::io::PipeReader>| {
        output.read_line(&mut String::new()).expect("the end") == 0
    };
    let (dropped, output) = start("dropped");
    drop(dropped);
    assert!(at_end(output));
    let (running, output) = start("running");
    drop((bench.executor, bench.helper));
    assert!(at_end(output));
    assert!(matches!(running.wait(), Err(SandboxError::HelperGone)));
}

#[test]
fn a_callback_hears_the_end_once() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let (sender, receiver) = std::sync::mpsc::channel();
    let running = bench
        .executor
        .spawn(
            &bench.shell("step", "exit 4"),
            Stdio::default(),
            vec![],
            vec![],
        )
        .expect("a step");
    let early = sender.clone();
    running.on_exit(move |exit| early.send(exit.expect("an end").status).expect("sent"));
    assert_eq!(receiver.recv().expect("an end"), Status::Code(4));
    running.on_exit(move |exit| sender.send(exit.expect("an end").status).expect("sent"));
    assert_eq!(receiver.try_recv().expect("at once"), Status::Code(4));
}

#[test]
fn many_steps_run_at_once() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    std::thread::scope(|scope| {
        for index in 0..24 {
            let bench = &bench;
            scope.spawn(move || {
                let name = format!("step{index}");
                let outcome = bench.run(&bench.shell(
                    &name,
                    &format!("echo {index} > /mine; cat /mine; exit {index}"),
                ));
                assert_eq!(
                    (outcome.status(), outcome.stdout),
                    (Status::Code(index), format!("{index}\n"))
                );
            });
        }
    });
}

#[test]
fn locks_are_held_as_long_as_the_step_lives_and_no_longer() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let path = bench.path("lock");
    let lock = std::fs::File::create(&path).expect("a file");
    lock.lock_shared().expect("a lock");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let stdio = Stdio {
        stdout: Some(writer.into()),
        ..Stdio::default()
    };
    let spec = bench.shell("step", "ls -l /proc/self/fd | grep -c lock; sleep 1000");
    let running = bench
        .executor
        .spawn(&spec, stdio, vec![], vec![lock.into()])
        .expect("a step");
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line).expect("a line");
    assert_eq!(line, "0\n", "the command does not see the lock");
    let other = std::fs::File::open(&path).expect("a file");
    assert!(other.try_lock().is_err(), "the step holds it");
    running.kill();
    running.wait().expect("an end");
    other.try_lock().expect("free");
}

#[test]
fn usage_is_measured() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let outcome = bench.run_shell("dd if=/dev/zero of=/dev/null bs=20M count=20 2>/dev/null; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done");
    let usage = outcome.exit.expect("an end").usage;
    assert!(usage.user > Duration::from_millis(5), "{usage:?}");
    assert!(
        usage.peak_memory > 20 << 20 && usage.peak_memory < 100 << 20,
        "{usage:?}"
    );
}

#[test]
fn a_large_output_does_not_pass_through_the_builder() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let spec = bench.shell("step", "head -c 50000000 /dev/zero");
    assert_eq!(bench.run(&spec).stdout.len(), 50_000_000);
}

/// Set for a test program that is to be a builder which is killed.
const BUILDER: &str = "LAPSTRAKE_TEST_BUILDER";

/// Not a test of its own: the builder of the next one, in a process that may be killed.
#[test]
fn a_builder_that_waits_to_be_killed() {
    let Some(marker) = std::env::var_os(BUILDER) else {
        return;
    };
    let bench = Bench::new();
    println!("in {}", bench.directory.path().display());
    let script = format!(
        "echo step-is-up; (setsid sleep {0} &); sleep {0}",
        marker.to_str().expect("text")
    );
    let steps = ["one", "two"].map(|name| {
        let stdout = std::io::stdout();
        let stdout = std::os::fd::AsFd::as_fd(&stdout)
            .try_clone_to_owned()
            .expect("stdout");
        let stdio = Stdio {
            stdout: Some(stdout),
            ..Stdio::default()
        };
        bench
            .executor
            .spawn(&bench.shell(name, &script), stdio, vec![], vec![])
            .expect("a step")
    });
    for step in steps {
        step.wait().expect("never");
    }
}

#[test]
fn a_builder_that_is_killed_leaves_no_process_and_no_mount() {
    if !able() {
        return;
    }
    let marker = format!("7{}", std::process::id());
    let mut builder = std::process::Command::new("/proc/self/exe")
        .args([
            "--exact",
            "a_builder_that_waits_to_be_killed",
            "--nocapture",
        ])
        .env(BUILDER, &marker)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("a builder");
    let output = BufReader::new(builder.stdout.take().expect("output"));
    let mut directory = None;
    let mut running = 0;
    for line in output.lines() {
        let line = line.expect("a line");
        if let Some(path) = line.strip_prefix("in ") {
            directory = Some(path.to_owned());
        }
        running += usize::from(line.contains("step-is-up"));
        if running == 2 {
            break;
        }
    }
    let alive = || {
        let processes = std::fs::read_dir("/proc").expect("read").flatten();
        processes
            .filter(|entry| {
                let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
                let text = String::from_utf8_lossy(&command).into_owned()
                    + &String::from_utf8_lossy(&environment);
                text.contains(&format!("sleep\0{marker}"))
                    || text.contains(&format!("{BUILDER}={marker}"))
            })
            .count()
    };
    while alive() < 5 {
        assert!(
            builder.try_wait().expect("a builder").is_none(),
            "the builder waits for its steps"
        );
        std::thread::yield_now();
    }
    let start = Instant::now();
    builder.kill().expect("killed");
    builder.wait().expect("an end");
    while alive() > 0 {
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "{} processes live on",
            alive()
        );
        std::thread::yield_now();
    }
    let directory = directory.expect("a directory");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains(&directory));
    std::fs::remove_dir_all(directory).expect("nothing holds it");
}
