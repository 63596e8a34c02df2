//! What is said of the mistakes that everyone makes once: what, where, why, and what to do.

use testkit::Environment;

/// What the context has, beside the Dockerfile.
fn environment() -> Environment {
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    environment.write("ctx/crlf.sh", "#!/bin/sh\r\necho hi\r\n");
    environment.write("ctx/bash.sh", "#!/bin/bash\necho hi\n");
    environment.write("ctx/main.go", "package main\n");
    environment
}

/// Builds; what is said last, from the word `error` on, has to be this.
#[track_caller]
fn check(environment: &Environment, dockerfile: &str, options: &[&str], expect: &str) {
    environment.write("ctx/Dockerfile", dockerfile);
    let arguments = ["build", "--progress=quiet"].into_iter();
    let arguments: Vec<&str> = arguments.chain(options.iter().copied()).collect();
    let mut arguments = arguments;
    arguments.push("ctx");
    let outcome = environment.run(arguments);
    let at = outcome.stderr.find("error").unwrap_or_default();
    assert_eq!(
        outcome.stderr[at..].trim_end(),
        expect,
        "{}",
        outcome.stderr
    );
    let code = if expect.contains("ctx/Dockerfile") {
        1
    } else {
        2
    };
    assert_eq!(outcome.status.code(), Some(code), "{}", outcome.stderr);
    for never in ["panicked", "os error", "Error {", "Some(", "backtrace"] {
        assert!(!outcome.stderr.contains(never), "{}", outcome.stderr);
    }
}

#[test]
fn users_that_the_image_has_not() {
    testkit::require_fixtures!("busybox:latest");
    let environment = environment();
    check(
        &environment,
        "FROM busybox\nUSER nosuch\nENV A=b\nRUN id\n",
        &[],
        "error: unable to find user nosuch: no matching entries in passwd file
 --> ctx/Dockerfile:2:6
  |
2 | USER nosuch
  |      ^^^^^^
  |
  = help: make the user in an earlier step, or name it by its number, which needs no entry",
    );
    check(
        &environment,
        "FROM busybox\nARG G=crowd\nUSER root:$G\nRUN id\n",
        &[],
        "error: unable to find group crowd: no matching entries in group file
 --> ctx/Dockerfile:3:6
  |
3 | USER root:$G
  |      ^^^^^^^
  |
  = help: make the group in an earlier step, or name it by its number, which needs no entry",
    );
    check(
        &environment,
        "FROM busybox\nUSER 99999999999\nRUN id\n",
        &[],
        "error: unable to find user 99999999999: uids and gids must be in range 0-2147483647
 --> ctx/Dockerfile:2:6
  |
2 | USER 99999999999
  |      ^^^^^^^^^^^",
    );
}

#[test]
fn places_that_a_step_cannot_have() {
    testkit::require_fixtures!("busybox:latest");
    let environment = environment();
    let check = |step: &str, reason: &str| {
        environment.write("ctx/Dockerfile", format!("FROM busybox\n{step}\n"));
        let told = environment
            .run(["build", "--progress=quiet", "ctx"])
            .fails_with(1);
        let line = 1 + step.lines().count();
        told.says(&format!("error: {reason}\n --> ctx/Dockerfile:{line}:1"));
        told.says("= help: ");
    };
    check(
        "RUN --mount=type=bind,target=/etc/passwd/x true",
        "failed to mount /etc/passwd/x: not a directory",
    );
    check(
        "RUN --mount=type=cache,target=/etc/passwd true",
        "failed to mount /etc/passwd: one is a directory, the other is not",
    );
    check(
        "RUN --mount=type=bind,target=/proc/x true",
        "failed to mount /proc/x: no such file or directory",
    );
    check(
        "RUN --mount=type=cache,target=/x,from=busybox,source=/none true",
        "failed to open the source /none of the mount at /x: no such file or directory",
    );
    check(
        "RUN ln -s /l /l\nRUN --mount=type=bind,target=/l/a true",
        "failed to mount /l/a: too many levels of symbolic links",
    );
    check(
        "WORKDIR /a\nRUN rm -r /a && touch /a\nRUN true",
        "failed to change to the working directory /a: not a directory",
    );
}

#[test]
fn options_without_effect_say_so_in_a_line_each() {
    let environment = environment();
    environment.write("ctx/Dockerfile", "FROM scratch\nCOPY main.go /\n");
    let check = |options: &[&str], told: &[&str]| {
        let words = ["build", "-q"].iter().chain(options).chain(&["ctx"]);
        let outcome = environment.run(words.copied()).success();
        let lines: Vec<&str> = outcome.stderr.lines().collect();
        assert_eq!(lines.len(), told.len(), "{options:?}: {lines:?}");
        for (line, told) in lines.iter().zip(told) {
            let begin = format!("warning: {told} has no effect: ");
            assert!(line.starts_with(&begin), "{line}");
        }
        assert!(outcome.stdout.starts_with("sha256:"), "{}", outcome.stdout);
    };
    check(
        &["--security-opt", "seccomp=unconfined"],
        &["--security-opt"],
    );
    check(&["--isolation=hyperv"], &["--isolation"]);
    check(
        &["--builder", "mine", "--compress"],
        &["--compress", "--builder"],
    );
    check(&["--rm=false"], &["--rm=false"]);
    check(
        &["--disable-content-trust=false"],
        &["--disable-content-trust=false"],
    );
    check(&["--cpu-period=1000"], &["--cpu-period"]);
    check(&["--cpus=1", "--cpu-quota=1000"], &["--cpu-quota"]);
    // What they ask for is so anyway.
    let usual = [
        "--rm",
        "--force-rm",
        "--disable-content-trust",
        "--isolation=default",
        "--builder=default",
    ];
    check(&usual, &[]);
}

#[test]
fn keys_of_the_configuration_without_effect_are_told_once() {
    let environment = environment();
    environment.write("ctx/Dockerfile", "FROM scratch\nCOPY main.go /\n");
    let text = "[gc]\nmax-used-spce = 1\n\n[regsitry.x]\nmirrors = []\n";
    environment.write_config(text);
    let check = |words: &[&str]| {
        let told = environment.run(words.iter().copied()).success().stderr;
        let warnings: Vec<&str> = told
            .lines()
            .filter_map(|line| line.split_once("config.toml:"))
            .map(|(_, line)| line)
            .collect();
        let expected = [
            "2: the key gc.max-used-spce is not known and has no effect; did you mean gc.max-used-space?",
            "4: the key regsitry is not known and has no effect; did you mean registry?",
        ];
        assert_eq!(warnings, expected, "{words:?}: {told}");
    };
    check(&["build", "-q", "ctx"]);
    check(&["info"]);
}

#[test]
fn a_policy_that_would_not_be_followed_is_refused() {
    let environment = environment();
    environment.write("ctx/Dockerfile", "FROM scratch\n");
    let mut command = environment.command(["build", "ctx"]);
    command.env("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY", "policy.json");
    testkit::Outcome::of(&mut command)
        .fails_with(2)
        .says("source policies are only followed by `lapstrake serve`");
}

#[test]
fn files_and_stages_that_are_not_there() {
    testkit::require_fixtures!("busybox:latest");
    let environment = environment();
    check(
        &environment,
        "FROM busybox\nCOPY mian.go /\n",
        &[],
        "error: /mian.go: no such file or directory in the build context
 --> ctx/Dockerfile:2:6
  |
2 | COPY mian.go /
  |      ^^^^^^^
  |
  = help: did you mean main.go?",
    );
    check(
        &environment,
        "FROM busybox AS one\nFROM scratch\nCOPY --from=2 /x /\n",
        &[],
        "error[stage-index]: invalid stage index 2
 --> ctx/Dockerfile:3:13
  |
3 | COPY --from=2 /x /
  |             ^ no stage has this number
  |
  = note: stages are counted from 0; there are 2",
    );
    environment.write(
        "ctx/Dockerfile",
        "FROM busybox AS builder\nFROM scratch\nCOPY --from=bulder /x /\n",
    );
    let told = environment
        .run(["build", "--progress=quiet", "ctx"])
        .fails_with(1)
        .stderr;
    let help = "  = note: no stage above has this name, so it is taken for an image's
  = help: did you mean builder?\n";
    assert!(told.ends_with(help), "{told}");
}

#[test]
fn steps_that_end_badly() {
    testkit::require_fixtures!("busybox:latest");
    let environment = environment();
    check(
        &environment,
        "FROM busybox\nRUN nosuchcommand\n",
        &[],
        "error: process \"/bin/sh -c nosuchcommand\" did not complete successfully: exit code: 127
 --> ctx/Dockerfile:2:1
  |
2 | RUN nosuchcommand
  | ^^^^^^^^^^^^^^^^^
  |
  = help: the shell did not find a command, or what runs a script: is it installed in this stage, and do the lines of the script end as Unix has it (LF, not CRLF)?",
    );
    check(
        &environment,
        "FROM busybox\nCOPY --chmod=755 crlf.sh /\nRUN [\"/crlf.sh\"]\n",
        &[],
        r#"error: process "/crlf.sh" did not complete successfully: exec /crlf.sh: no such file or directory: its lines end in CRLF, so that its interpreter is "/bin/sh\r"; save it with LF alone (exit code: 127)
 --> ctx/Dockerfile:3:1
  |
3 | RUN ["/crlf.sh"]
  | ^^^^^^^^^^^^^^^^"#,
    );
    check(
        &environment,
        "FROM busybox\nCOPY --chmod=755 bash.sh /\nRUN [\"/bash.sh\"]\n",
        &[],
        r#"error: process "/bash.sh" did not complete successfully: exec /bash.sh: no such file or directory: its interpreter /bin/bash is not in the image (exit code: 127)
 --> ctx/Dockerfile:3:1
  |
3 | RUN ["/bash.sh"]
  | ^^^^^^^^^^^^^^^^"#,
    );
    check(
        &environment,
        "FROM busybox\nCOPY --chmod=644 bash.sh /\nRUN /bash.sh\n",
        &[],
        "error: process \"/bin/sh -c /bash.sh\" did not complete successfully: exit code: 126
 --> ctx/Dockerfile:3:1
  |
3 | RUN /bash.sh
  | ^^^^^^^^^^^^
  |
  = help: the file may not be executed: COPY --chmod=755 it, or RUN chmod +x before",
    );
    check(
        &environment,
        "FROM scratch\nRUN true\n",
        &[],
        r#"error: process "/bin/sh -c true" did not complete successfully: exec: "/bin/sh": stat /bin/sh: no such file or directory (exit code: 127)
 --> ctx/Dockerfile:2:1
  |
2 | RUN true
  | ^^^^^^^^
  |
  = help: the image has no /bin/sh: name another with SHELL, begin the stage with an image that has one, or write the command as a list, which needs no shell: RUN ["program", "argument"]"#,
    );
    check(
        &environment,
        "FROM busybox\nRUN [\"echo hello\"]\n",
        &[],
        r#"error: process "echo hello" did not complete successfully: exec: "echo hello": executable file not found in $PATH (exit code: 127)
 --> ctx/Dockerfile:2:1
  |
2 | RUN ["echo hello"]
  | ^^^^^^^^^^^^^^^^^^
  |
  = help: the first word of the list is the program: write RUN ["echo", "hello"], or RUN echo hello for a shell to read"#,
    );
    check(
        &environment,
        "FROM busybox\nRUN kill -9 $$\n",
        &[],
        "error: process \"/bin/sh -c kill -9 $$\" did not complete successfully: killed by signal 9 (SIGKILL)
 --> ctx/Dockerfile:2:1
  |
2 | RUN kill -9 $$
  | ^^^^^^^^^^^^^^
  |
  = help: most often that is for want of memory: let fewer steps run at once (--jobs), or give it more (--memory, or the limit of the machine or container that builds)",
    );
    check(
        &environment,
        "FROM busybox\nRUN --mount=type=secret,id=token cat /run/secrets/token 2>/dev/null\n",
        &[],
        "error: process \"/bin/sh -c cat /run/secrets/token 2>/dev/null\" did not complete successfully: exit code: 1
 --> ctx/Dockerfile:2:1
  |
2 | RUN --mount=type=secret,id=token cat /run/secrets/token 2>/dev/null
  | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  |
  = help: the build was not given the secret token that the step may have: --secret id=token,src=FILE",
    );
    check(
        &environment,
        "FROM busybox\nRUN --mount=type=cache true\n",
        &[],
        "error[mount]: invalid mount target \"/\"
 --> ctx/Dockerfile:2:13
  |
2 | RUN --mount=type=cache true
  |             ^^^^^^^^^^ this mount
  |
  = help: say where in the step's file system it is to be: target=PATH",
    );
}

#[test]
fn options_that_cannot_be_meant() {
    let environment = environment();
    let scratch = "FROM scratch\nCOPY main.go /\n";
    for (option, expect) in [
        (
            "--ulimit=foo",
            "invalid --ulimit \"foo\": it is not NAME=SOFT[:HARD]",
        ),
        (
            "--add-host=foo",
            "invalid --add-host \"foo\": it is not HOST:IP",
        ),
        ("--label==x", "invalid --label \"=x\": it has no name"),
        (
            "--build-arg==x",
            "invalid --build-arg \"=x\": it has no name",
        ),
        (
            "--push",
            "nothing to push to: give the image a name with --tag",
        ),
        (
            "--output=type=oci,dest=nowhere/app.tar",
            "invalid --output \"type=oci,dest=nowhere/app.tar\": there is no directory nowhere",
        ),
        (
            "--output=type=docker,dest=ctx",
            "invalid --output \"type=docker,dest=ctx\": ctx is a directory; name a file, or say tar=false",
        ),
        (
            "--provenance=max",
            "invalid --provenance=max: \"max\" is no name=value, as in mode=max, and neither true nor false",
        ),
    ] {
        check(
            &environment,
            scratch,
            &[option],
            &format!("error: {expect}"),
        );
    }
    let told = environment
        .run(["build", "--progress=quiet", "nowhere"])
        .fails_with(2)
        .stderr;
    assert_eq!(
        told,
        "error: failed to prepare the context: there is no directory \"nowhere\"\n"
    );
    environment.write("folder/Dockerfile/x", "");
    let told = environment
        .run(["build", "--progress=quiet", "folder"])
        .fails_with(1)
        .stderr;
    let said = "error: failed to read the Dockerfile: folder/Dockerfile is a directory; name the file with --file\n";
    assert!(told.ends_with(said), "{told}");
}

#[test]
fn a_registry_that_does_not_answer_is_named_with_what_was_sent() {
    let environment = environment();
    environment.write("ctx/Dockerfile", "FROM scratch\nCOPY main.go /\n");
    // Nobody listens at the port of a listener that is gone.
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("an address").port()
    };
    let name = format!("127.0.0.1:{port}/app:1");
    let outcome = environment.run(["build", "--progress=quiet", "-t", &name, "--push", "ctx"]);
    let told = outcome.fails_with(1).stderr;
    let said = format!(
        "error: failed to push {name}: failed to connect to 127.0.0.1:{port}: Connection refused
  help: look at the registry's name and the network; what was built is recorded, so a second try only sends it\n"
    );
    assert!(told.ends_with(&said), "{told}");
}
