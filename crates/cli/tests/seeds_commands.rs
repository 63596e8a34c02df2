//! Each command of the lessons on multi-stage builds, letter by letter, with `docker` being this program.

use testkit::{Environment, Outcome, require_fixtures};

/// Stages of all names that the commands use.
const DOCKERFILE: &str = "FROM busybox AS builder
RUN echo app > /app
FROM scratch AS client
COPY --from=builder /app /client
FROM scratch AS server
COPY --from=builder /app /server
FROM builder AS development
CMD [\"cat\", \"/app\"]
FROM scratch AS production
COPY --from=0 /app /
";

#[track_caller]
fn type_in(environment: &Environment, line: &str) -> Outcome {
    let script = format!("docker() {{ lapstrake \"$@\"; }}\n{line}");
    Outcome::of(environment.program("sh").args(["-c", &script])).success()
}

#[test]
fn commands_for_docker_are_taken_as_they_are() {
    require_fixtures!("busybox:latest");
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    environment.write("Dockerfile", DOCKERFILE);
    environment.write(
        "Dockerfile.build",
        "FROM busybox\nWORKDIR /go/src/app\nRUN echo app > app\n",
    );
    for line in [
        "docker build --tag=buildme .",
        "docker build --tag=buildme-client --target=client .",
        "docker build --tag=buildme-server --target=server .",
        "docker build -t multi-realworld-app .",
        "docker build -t realworld-app .",
        "docker build -t alexellis2/href-counter:build . -f Dockerfile.build",
        "docker container create --name extract alexellis2/href-counter:build",
        "docker container cp extract:/go/src/app/app ./app",
        "docker container rm -f extract",
        "docker build --no-cache -t alexellis2/href-counter:latest .",
        "docker build --target builder -t alexellis2/href-counter:latest .",
        "docker build --target development -t bulidtest/development:latest .",
        "docker build --target production -t buildtest/production:latest .",
        "DOCKER_BUILDKIT=1 docker build .",
    ] {
        type_in(&environment, line);
    }
    let taken = std::fs::read_to_string(environment.work().join("app")).expect("it was copied out");
    assert_eq!(taken, "app\n");

    let rows = |line: &str| {
        let told = type_in(&environment, line).stdout;
        let names = told
            .lines()
            .map(|line| line.split_whitespace().next().unwrap_or_default());
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort();
        names
    };
    assert_eq!(rows("docker images buildme"), ["REPOSITORY", "buildme"]);
    assert_eq!(
        rows("docker images -f=reference='*realworld-app'"),
        ["REPOSITORY", "multi-realworld-app", "realworld-app"]
    );
    let told = type_in(&environment, "docker run --rm bulidtest/development:latest").stdout;
    assert_eq!(told, "app\n");
}
