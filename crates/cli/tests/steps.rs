//! How RUN steps are run: time limits, further tries, output without an end, proxies.

use testkit::Environment;

fn environment(instructions: &str) -> Environment {
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    environment.write("ctx/Dockerfile", format!("FROM busybox\n{instructions}\n"));
    environment
}

#[test]
fn a_step_that_takes_too_long_is_killed() {
    testkit::require_fixtures!("busybox:latest");
    let environment = environment("RUN sleep 1000 & sleep 1000");
    let began = std::time::Instant::now();
    environment
        .run(["build", "--step-timeout", "1s", "ctx"])
        .fails_with(1)
        .says("killed: it took longer than 1s (--step-timeout)");
    assert!(began.elapsed().as_secs() < 500);
    environment
        .run(["build", "--step-timeout", "soon", "ctx"])
        .fails_with(2);
}

#[test]
fn a_step_is_tried_again_with_a_clean_layer() {
    testkit::require_fixtures!("busybox:latest");
    let environment = environment(
        "RUN --mount=type=cache,target=/c n=$(cat /c/n 2>/dev/null || echo 0); echo $((n+1)) > /c/n; \
         test ! -e /left || exit 9; touch /left; test $n = 2",
    );
    let failed = environment.run(["build", "--retry", "1", "ctx"]);
    failed
        .fails_with(1)
        .says("exit code: 1; trying again (1 of 1)");
    environment.ok(["build", "--retry", "5", "-q", "ctx"]);
}

#[test]
fn proxies_of_the_docker_configuration_are_given_to_steps_and_stay_out_of_the_image() {
    testkit::require_fixtures!("busybox:latest");
    let environment =
        environment("RUN echo $HTTP_PROXY $http_proxy $NO_PROXY $https_proxy > /proxies");
    environment.write(
        "docker/config.json",
        r#"{"proxies": {"default": {"httpProxy": "http://p:1", "httpsProxy": "http://p:2", "noProxy": "local"}}}"#,
    );
    let docker = environment.work().join("docker");
    let words = [
        "build",
        "--build-arg",
        "https_proxy=http://mine",
        "-o",
        "out",
        "ctx",
    ];
    let mut command = environment.command(words);
    testkit::Outcome::of(command.env("DOCKER_CONFIG", docker)).success();
    let read = |path: &str| std::fs::read_to_string(environment.work().join(path));
    assert_eq!(
        read("out/proxies").expect("a file"),
        "http://p:1 http://p:1 local http://mine\n"
    );
}

#[test]
fn a_quiet_build_says_what_its_failed_step_printed_last() {
    testkit::require_fixtures!("busybox:latest");
    let environment = environment("RUN seq 100; echo reason >&2; exit 7");
    let failed = environment.run(["build", "-q", "ctx"]).fails_with(1);
    failed
        .says(" 100\n")
        .says(" reason\n")
        .says("exit code: 7")
        .says("Dockerfile:2:1");
    assert!(!failed.stderr.contains(" 50\n"), "{}", failed.told());
    environment.write("ctx/Dockerfile", "FROM busybox\nRUN seq 100\n");
    assert_eq!(environment.ok(["build", "-q", "ctx"]).stderr, "");
}

/// The peak of the memory a process had, in KiB; it is a zombie's no more.
fn peak_memory(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}

#[test]
fn output_without_an_end_does_not_grow_the_builder() {
    testkit::require_fixtures!("busybox:latest");
    // One line, and lines of nearly nothing.
    for printing in [
        "head -c 120000000 /dev/zero | tr '\\0' x",
        "yes | head -c 4000000",
    ] {
        for progress in ["plain", "quiet"] {
            let environment = environment(&format!("RUN {printing}"));
            let words = ["build", "--progress", progress, "ctx"];
            let mut command = environment.command(words);
            let null = std::process::Stdio::null;
            let mut child = command
                .stdout(null())
                .stderr(null())
                .spawn()
                .expect("it starts");
            let mut peak = 0;
            let status = loop {
                peak = peak.max(peak_memory(child.id()));
                if let Some(status) = child.try_wait().expect("it can be waited for") {
                    break status;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            };
            assert!(status.success(), "{printing}, {progress}");
            assert!(peak < 160 << 10, "{printing}, {progress}: {peak} KiB");
        }
    }
}

#[test]
fn cache_mounts_are_listed_and_removed_but_for_those_in_use() {
    testkit::require_fixtures!("busybox:latest");
    let environment = environment(
        "RUN --mount=type=cache,id=one,target=/c seq 10000 > /c/file\n\
         RUN --mount=type=cache,id=two,target=/c true",
    );
    environment.ok(["build", "-q", "ctx"]);
    let ids = || {
        let list = ["cache", "mounts", "ls", "--format", "{{.ID}} {{.FullName}}"];
        let text = environment.ok(list).stdout;
        let pairs = text.lines().filter_map(|line| line.split_once(' '));
        let pairs = pairs.map(|(id, name)| (id.to_owned(), name.to_owned()));
        pairs.collect::<Vec<_>>()
    };
    let found = ids();
    let words: Vec<&str> = found.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(words, ["/one", "/two"]);
    let table = environment.ok(["cache", "mounts", "ls"]).stdout;
    assert!(table.starts_with("NAME "), "{table}");

    let remove = |what: &str| environment.run(["cache", "mounts", "rm", what]);
    remove("three")
        .fails_with(1)
        .says("there is no cache mount \"three\"");
    remove("").fails_with(1);
    // As a step holds it.
    let folder = environment.root().join("mounts").join(&found[0].1);
    let lock = std::fs::File::open(&folder).expect("a folder");
    lock.lock_shared().expect("a lock");
    remove("one").fails_with(1).says("in use");
    assert!(folder.join("fs/file").exists());
    drop(lock);
    remove("one").success();
    assert!(!folder.exists());
    let left = ids();
    assert_eq!(left.len(), 1);
    remove(&left[0].1[..8]).success();
    assert!(ids().is_empty());
    environment.ok(["cache", "mounts", "rm", "--all"]);
    environment.ok(["build", "-q", "--no-cache", "ctx"]);
    assert_eq!(ids().len(), 2);
}
