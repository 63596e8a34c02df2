//! RUN steps by OCI runtimes: `--runtime`.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use testkit::Environment;

fn environment(instructions: &str) -> Environment {
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    environment.write("ctx/Dockerfile", format!("FROM busybox\n{instructions}\n"));
    environment
}

const EVERYTHING: &str = "WORKDIR /made/here
RUN --mount=type=bind,target=/ctx --mount=type=cache,target=/cache --mount=type=tmpfs,target=/memory \
--mount=type=secret,id=word --mount=type=secret,id=word,env=WORD --network=none \
cat /ctx/file /run/secrets/word > /memory/both && echo kept > /cache/file && cp /memory/both /both && \
echo $WORD $PWD $(ls /sys/class/net) >> /both && grep -c ' /memory ' /proc/mounts >> /both
USER 7:8
RUN id -u >> /tmp/id; id -G >> /tmp/id; echo again > /dev/stdout";

fn builds_as_the_sandbox_does(runtime: &str) {
    let environment = environment(EVERYTHING);
    environment.write("ctx/file", "from the context\n");
    environment.write("word", "open sesame\n");
    let build = |options: &[&str]| {
        let common = ["build", "--secret", "id=word,src=word", "--no-cache", "-o"];
        environment.ok([&common, options, &["ctx"]].concat())
    };
    build(&["native"]);
    build(&["other", "--runtime", runtime]);
    let listing = |folder: &str| {
        let mut found = environment.program("find");
        found.args([folder, "-printf", "%P %y %m %U:%G %s %l\n"]);
        let output = testkit::Outcome::of(&mut found).success().stdout;
        let mut lines: Vec<String> = output.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(listing("native"), listing("other"));
    let read = |name: &str| {
        std::fs::read_to_string(environment.work().join("other").join(name)).expect("a file")
    };
    assert_eq!(
        read("both"),
        "from the context\nopen sesame\nopen sesame /made/here lo\n1\n"
    );
    assert_eq!(read("tmp/id"), "7\n8\n");

    let record = environment.ok(["history", "inspect"]).stdout;
    let named = record
        .lines()
        .find_map(|line| line.strip_prefix("Runtime:"));
    assert!(
        named.is_some_and(|named| named.trim().starts_with(&format!("{runtime} "))),
        "{record}"
    );
    let mut info = environment.command(["info", "-f", "{{.StepRuntime}}"]);
    let info = testkit::Outcome::of(info.env("LAPSTRAKE_RUNTIME", runtime)).success();
    assert!(
        info.stdout.starts_with(&format!("{runtime} ")),
        "{}",
        info.stdout
    );

    environment.write("ctx/Dockerfile", "FROM busybox\nRUN sh -c 'exit 42'\n");
    environment
        .run(["build", "--runtime", runtime, "ctx"])
        .fails_with(1)
        .says("exit code: 42");
    environment.write("ctx/Dockerfile", "FROM busybox\nRUN [\"nosuch\"]\n");
    environment
        .run(["build", "--runtime", runtime, "ctx"])
        .fails_with(1)
        .says("exec: \"nosuch\": executable file not found in $PATH");
    environment.write(
        "ctx/Dockerfile",
        "FROM busybox\nWORKDIR /proc/self/fd/8\nRUN ls\n",
    );
    environment
        .run(["build", "--runtime", runtime, "ctx"])
        .says("the working directory /proc/self/fd/8 is not possible with it");
}

#[test]
fn crun_builds_as_the_sandbox_does() {
    testkit::require_fixtures!("busybox:latest");
    testkit::require_programs!("crun");
    builds_as_the_sandbox_does("crun");
}

#[test]
fn runc_builds_as_the_sandbox_does() {
    testkit::require_fixtures!("busybox:latest");
    testkit::require_programs!("runc");
    builds_as_the_sandbox_does("runc");
}

#[test]
fn results_are_found_whatever_ran_the_step() {
    testkit::require_fixtures!("busybox:latest");
    testkit::require_programs!("crun");
    let environment = environment("RUN cat /proc/sys/kernel/random/uuid > /random");
    let build = |runtime: &str, out: &str| {
        environment.ok(["build", "-q", "--runtime", runtime, "-o", out, "ctx"]);
        std::fs::read_to_string(environment.work().join(out).join("random")).expect("a file")
    };
    assert_eq!(build("native", "one"), build("crun", "two"));
}

#[test]
fn the_configuration_names_a_runtime_and_the_command_line_another() {
    let environment = environment("RUN true");
    environment.write("config.toml", "[run]\nruntime = \"./nosuch\"\n");
    environment
        .run(["--config", "config.toml", "info"])
        .fails_with(2)
        .says("nosuch: there is no such file");
    environment.ok(["--config", "config.toml", "info", "--runtime", "native"]);
    environment
        .run(["build", "--runtime", "no-such-runtime", "ctx"])
        .fails_with(2)
        .says("the runtime no-such-runtime: it is not in PATH");
    environment
        .run(["build", "--runtime", "./ctx/Dockerfile", "ctx"])
        .fails_with(2)
        .says("it is no program");
}

/// Builds with a script in place of a runtime, and compares what is said of it.
#[track_caller]
fn check_odd(script: &str, words: &str) {
    let environment = environment("RUN true");
    environment.write("odd", format!("#!/bin/sh\n{script}\n"));
    let path = environment.work().join("odd");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("permissions");
    let failed = environment.run(["build", "--runtime", "./odd", "ctx"]);
    assert!(!failed.status.success());
    failed.says(words);
    environment.ok(["build", "ctx"]);
}

#[test]
fn odd_runtimes_fail_the_step_in_words() {
    testkit::require_fixtures!("busybox:latest");
    check_odd("exit 9", "it does not tell its version");
    let odd = |rest: &str| format!("[ \"$1\" = --version ] && echo odd version 1 && exit; {rest}");
    check_odd(&odd("exit 42"), "create failed with exit status: 42");
    check_odd(&odd("kill -9 $$"), "create failed with signal: 9");
    check_odd(&odd("exit 0"), "does not say which process is in it");
    let log = "printf 'gar\\033[31mbage\\n' > \"$4\"; exit 1";
    check_odd(&odd(log), "create failed: gar [31mbage");
    // A process that is no container, then one that is not even there.
    let pid = |pid: &str| {
        format!("while [ \"$1\" != --pid-file ]; do shift || exit 0; done; echo {pid} > \"$2\"")
    };
    check_odd(&odd(&pid("1")), "does not say which process is in it");
    check_odd(&odd(&pid("77777")), "does not say which process is in it");
    check_odd(&odd(&pid("-1")), "does not say which process is in it");
}

/// Starts a build whose step waits, and returns it with the number in the step's command line.
fn waiting_build(environment: &Environment, runtime: &str) -> (std::process::Child, String) {
    let number = format!("9{}", std::process::id());
    environment.write(
        "ctx/Dockerfile",
        format!("FROM busybox\nRUN (setsid sleep {number} &); sleep {number}\n"),
    );
    let mut build = environment.command(["build", "--runtime", runtime, "ctx"]);
    let child = build.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut child = child.expect("it starts");
    while sleepers(&number) < 2 {
        assert!(
            child.try_wait().expect("a build").is_none(),
            "the build waits"
        );
        std::thread::yield_now();
    }
    (child, number)
}

/// Counts the processes that sleep for so long.
fn sleepers(number: &str) -> usize {
    let all = std::fs::read_dir("/proc").expect("read").flatten();
    all.filter(|entry| {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        command == format!("sleep\0{number}\0").into_bytes()
    })
    .count()
}

#[test]
fn a_killed_build_leaves_nothing_of_a_runtime() {
    testkit::require_fixtures!("busybox:latest");
    for runtime in ["crun", "runc"] {
        if !testkit::has_program(runtime) {
            eprintln!("skipped: no {runtime} on this machine");
            continue;
        }
        let environment = environment("");
        let (mut build, number) = waiting_build(&environment, runtime);
        build.kill().expect("killed");
        build.wait().expect("an end");
        while sleepers(&number) > 0 {
            std::thread::yield_now();
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        assert!(!mounts.contains(environment.root().to_str().expect("text")));
        for place in ["/run/crun", "/run/runc"] {
            let left = std::fs::read_dir(place).into_iter().flatten().flatten();
            let left =
                left.filter(|entry| entry.file_name().to_string_lossy().contains("lapstrake"));
            assert_eq!(left.count(), 0, "{place}");
        }
        environment.write("ctx/Dockerfile", "FROM busybox\nRUN true\n");
        environment.ok(["build", "--runtime", runtime, "ctx"]);

        let (mut build, number) = waiting_build(&environment, runtime);
        let pid = rustix::process::Pid::from_child(&build);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("interrupted");
        assert_eq!(build.wait().expect("an end").code(), Some(130));
        assert_eq!(sleepers(&number), 0);
    }
}

const MANY: usize = 10;

#[test]
fn many_builds_at_once_by_a_runtime_get_their_own_results() {
    testkit::require_fixtures!("busybox:latest");
    testkit::require_programs!("crun");
    let environment = environment("ARG N\nRUN hostname; echo $N > /n");
    let builds: Vec<_> = (0..MANY)
        .map(|number| {
            let (argument, out) = (format!("N={number}"), format!("out{number}"));
            let words = [
                "build",
                "-q",
                "--runtime",
                "crun",
                "--build-arg",
                &argument,
                "-o",
                &out,
                "ctx",
            ];
            let mut command = environment.command(words);
            command.stdout(Stdio::null()).stderr(Stdio::piped());
            command.spawn().expect("it starts")
        })
        .collect();
    for (number, build) in builds.into_iter().enumerate() {
        let output = build.wait_with_output().expect("it ends");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "build {number}: {told}");
        let path = environment.work().join(format!("out{number}/n"));
        assert_eq!(
            std::fs::read_to_string(path).expect("a file"),
            format!("{number}\n")
        );
    }
}
