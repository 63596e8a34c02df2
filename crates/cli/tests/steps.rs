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
