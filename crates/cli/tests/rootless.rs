//! Builds by ordinary users: with subordinate ids and without, many at once.

use std::process::Stdio;

use testkit::{Environment, Outcome, USER_WITH_ONE_ID};

fn environment(uid: u32) -> Environment {
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    environment.give_to(uid, &["busybox"]);
    environment
}

/// Runs the binary as a user.
fn run(environment: &Environment, uid: u32, arguments: &[&str]) -> Outcome {
    Outcome::of(&mut environment.command_of(uid, arguments))
}

/// Ends a test with a counted line where it cannot become another user, or has no image.
macro_rules! require_users {
    () => {
        testkit::require_fixtures!("busybox:latest");
        testkit::require_programs!("setpriv");
        if !testkit::is_root() {
            testkit::skip!("only root can become another user");
        }
    };
}

#[test]
fn a_user_with_one_id_builds_and_runs_and_is_told_the_limits() {
    require_users!();
    let uid = USER_WITH_ONE_ID;
    let environment = environment(uid);
    environment.write(
        "ctx/Dockerfile",
        "FROM busybox\n\
         RUN mkdir -p /etc && echo 'wheel:x:10:root' >> /etc/group\n\
         RUN id > /id && touch /file && chown 0:0 /file\n",
    );
    let build = run(&environment, uid, &["build", "-t", "one", "ctx"]).success();
    build.says("no subordinate ids: /etc/subuid has no range for uid 54321");
    build.says("only your own id is mapped");
    let count = build.stderr.matches("only your own id is mapped").count();
    assert_eq!(count, 1, "it is said once: {}", build.stderr);
    let told = run(&environment, uid, &["run", "--rm", "one", "cat", "/id"]).success();
    assert!(told.stdout.starts_with("uid=0"), "{}", told.told());

    let info = run(&environment, uid, &["info", "-f", "{{.Isolation}}"]).success();
    assert_eq!(info.stdout.trim(), "single-id");
    let info = run(&environment, uid, &["info"]).success();
    assert!(
        info.stdout.contains("/etc/subuid has no range"),
        "{}",
        info.stdout
    );

    let minimum = ["--min-isolation", "subordinate-ids", "build", "ctx"];
    run(&environment, uid, &minimum)
        .fails_with(3)
        .says("the isolation of this machine is single-id, below the subordinate-ids");
    run(
        &environment,
        uid,
        &["--min-isolation", "best", "build", "ctx"],
    )
    .fails_with(2)
    .says("there is no isolation \"best\"");
}

#[test]
fn what_needs_further_ids_fails_with_one_and_says_why() {
    require_users!();
    let uid = USER_WITH_ONE_ID;
    let environment = environment(uid);
    let check = |instruction: &str, words: &str| {
        environment.write("ctx/Dockerfile", format!("FROM busybox\n{instruction}\n"));
        let outcome = run(&environment, uid, &["build", "ctx"]);
        assert!(!outcome.status.success(), "{}", outcome.told());
        outcome
            .says(words)
            .says("subordinate ids are needed for it");
    };
    check(
        "COPY --chown=1000 Dockerfile /",
        "cannot be given to 1000:1000",
    );
    check("USER 1000:0\nRUN true", "user 1000 is not mapped");
    check("USER 0:1000\nRUN true", "group 1000 is not mapped");
}

#[test]
fn an_archive_of_others_becomes_the_one_user_there_is() {
    require_users!();
    testkit::require_programs!("tar");
    let uid = USER_WITH_ONE_ID;
    let environment = environment(uid);
    environment.write("ctx/Dockerfile", "FROM busybox\nADD a.tar /there\n");
    environment.write("ctx/file", "content");
    Outcome::of(environment.program("tar").args([
        "-C",
        "ctx",
        "--owner=1000",
        "--group=1000",
        "-cf",
        "ctx/a.tar",
        "file",
    ]))
    .success();
    run(&environment, uid, &["build", "-q", "-o", "out", "ctx"]).success();
    let file = std::fs::read_to_string(environment.work().join("out/there/file"));
    assert_eq!(file.expect("a file"), "content");
}

const MANY: usize = 8;

const SHARED: &str = "FROM busybox AS base
RUN seq 5000 > /numbers && sleep 0.1
FROM base AS one
ARG N
RUN echo $N > /one
FROM base AS two
ARG N
RUN --mount=type=cache,target=/c,sharing=locked echo $N >> /c/n; echo $N > /two
FROM base
COPY --from=one /one /
COPY --from=two /two /
RUN cat /one /two > /both; wc -l < /numbers >> /both
";

#[test]
fn many_builds_at_once_share_a_store_and_get_their_own_results() {
    require_users!();
    let Some(uid) = testkit::ordinary_user() else {
        return;
    };
    let environment = environment(uid);
    environment.write("ctx/Dockerfile", SHARED);
    let builds: Vec<_> = (0..MANY)
        .map(|number| {
            let (argument, out) = (format!("N={number}"), format!("out{number}"));
            let words = ["build", "-q", "--build-arg", &argument, "-o", &out, "ctx"];
            let mut command = environment.command_of(uid, words);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().expect("it starts")
        })
        .collect();
    for (number, build) in builds.into_iter().enumerate() {
        let output = build.wait_with_output().expect("it ends");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "build {number}: {told}");
        let both = environment.work().join(format!("out{number}/both"));
        let both = std::fs::read_to_string(both).expect("a file");
        assert_eq!(both, format!("{number}\n{number}\n5000\n"));
    }
    let mounts = std::fs::read_dir(environment.root().join("mounts")).expect("a folder");
    let found: Vec<_> = mounts
        .map(|entry| entry.expect("an entry").path().join("fs/n"))
        .collect();
    assert_eq!(found.len(), 1);
    let lines = std::fs::read_to_string(&found[0]).expect("a file");
    assert_eq!(lines.lines().count(), MANY, "{lines}");
}

/// A machine with a world behind it, and a tunnel device that everybody may open: its loopback has a server, and so has
/// the world.
const MACHINE: &str = "
mkdir -p /dev/net; mount -t tmpfs none /mnt; mknod -m 666 /mnt/tun c 10 200; mount --bind /mnt/tun /dev/net/tun
ip link set lo up; mkfifo /mnt/up
unshare -n sh -ec 'echo $$ > /mnt/pid; read go < /mnt/up; ip addr add 192.0.2.2/24 dev world; ip link set world up;
    timeout 60 /bin/busybox nc -l -p 80 -e /bin/echo through' > /dev/null 2>&1 &
while [ ! -s /mnt/pid ]; do :; done
ip link add uplink type veth peer name world netns $(cat /mnt/pid)
ip addr add 192.0.2.1/24 dev uplink; ip link set uplink up; ip route add default via 192.0.2.2
echo go > /mnt/up
hidden=$1; shift
if [ -n \"$hidden\" ] && path=$(command -v \"$hidden\"); then mount --bind /dev/null \"$(readlink -f \"$path\")\"; fi
timeout 60 /bin/busybox nc -ll -p 81 -e /bin/echo reached > /dev/null 2>&1 &
loopback=$!
/bin/busybox timeout 10 sh -c 'until /bin/busybox nc 127.0.0.1 81 < /dev/null; do :; done' > /dev/null
\"$@\" && code=0 || code=$?
kill $loopback $(cat /mnt/pid) 2> /dev/null || :
exit $code";

#[test]
fn steps_of_a_user_reach_the_world_but_not_the_loopback_of_the_machine() {
    testkit::require_programs!("pasta");
    reaches_the_world_but_not_the_loopback("pasta");
}

#[test]
fn steps_of_a_user_without_pasta_reach_no_more_and_no_less() {
    testkit::require_programs!("slirp4netns");
    reaches_the_world_but_not_the_loopback("slirp4netns");
}

fn reaches_the_world_but_not_the_loopback(network: &str) {
    require_users!();
    testkit::require_programs!("ip", "unshare");
    let Some(uid) = testkit::ordinary_user() else {
        return;
    };
    if !std::path::Path::new("/bin/busybox").exists() {
        testkit::skip!("no /bin/busybox on this machine");
    }
    let environment = environment(uid);
    // The router of a step is the builder itself, if anything leads to it.
    environment.write(
        "ctx/Dockerfile",
        "FROM busybox\n\
         RUN timeout 20 nc 192.0.2.2 80 < /dev/null | head -n 1 > /world; \
         for host in 127.0.0.1 $(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'); do \
         timeout 3 nc $host 81 < /dev/null >> /loopback; done; ls /sys/class/net | wc -l > /links\n",
    );
    // What would be taken before it is no program on this machine.
    let hidden = match network {
        "pasta" => "",
        _ => "pasta",
    };
    let on_machine = |words: &[&str]| {
        let user = environment.command_of(uid, words);
        let mut command = environment.program("unshare");
        command.args(["--mount", "--net", "--pid", "--fork", "--kill-child"]);
        command.args(["--mount-proc", "sh", "-ec", MACHINE, "sh", hidden]);
        command.arg(user.get_program()).args(user.get_args());
        for (name, value) in user.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        Outcome::of(&mut command).success()
    };
    let info = on_machine(&["info", "-f", "{{.StepNetwork}}"]);
    assert_eq!(info.stdout.trim(), network);
    on_machine(&["build", "-o", "out", "ctx"]);
    let read = |name: &str| {
        let path = environment.work().join("out").join(name);
        std::fs::read_to_string(path).unwrap_or_default()
    };
    assert_eq!(read("world"), "through\n");
    assert_eq!(read("loopback"), "");
    assert_eq!(read("links"), "2\n");
}

#[test]
fn a_store_belongs_to_who_builds_first_not_to_who_looks_first() {
    require_users!();
    let uid = USER_WITH_ONE_ID;
    let environment = environment(uid);
    environment.write("ctx/Dockerfile", "FROM busybox\nRUN true\n");
    for look in ["images", "ps", "info"] {
        run(&environment, uid, &[look]).success();
    }
    run(&environment, uid, &["build", "-q", "ctx"]).success();
    let info = run(&environment, uid, &["info", "-f", "{{.Ids}}"]).success();
    assert!(info.stdout.starts_with("rootless"), "{}", info.stdout);
}
