//! The engine as other programs use it: the examples, as programs of their own.

use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::{Environment, Outcome, require_programs};

/// Returns an example that was built beside this test.
fn example(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a test has a path");
    let folder = own.ancestors().nth(2).expect("it lies in target/…/deps");
    folder.join("examples").join(name)
}

/// Writes a context whose one step runs a program that needs no other file.
fn context(environment: &Environment) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let busybox = std::env::split_paths(&path)
        .map(|folder| folder.join("busybox"))
        .find(|path| path.is_file())
        .expect("busybox was asked for");
    environment.write(
        "ctx/busybox",
        std::fs::read(busybox).expect("it can be read"),
    );
    environment.write(
        "ctx/Dockerfile",
        "FROM scratch AS made\n\
         ARG BUILT_BY\n\
         COPY --chmod=755 busybox /bin/\n\
         RUN [\"/bin/busybox\", \"echo\", \"a step ran\"]\n\
         FROM scratch\n\
         COPY --from=made /bin/busybox /\n",
    );
}

fn run(environment: &Environment, program: &Path, arguments: &[&str]) -> Outcome {
    let mut command: Command = environment.program(program);
    command.arg(environment.root()).args(arguments);
    Outcome::of(&mut command)
}

#[test]
fn a_program_builds_an_image() {
    require_programs!("busybox");
    let program = example("build_from_code");
    let environment = Environment::new("/bin/true");
    context(&environment);
    let told = run(&environment, &program, &["ctx", "made-here"]).success();
    let lines: Vec<&str> = told.stdout.lines().collect();
    assert_eq!(
        lines[0],
        "named docker.io/library/made-here:latest",
        "{}",
        told.told()
    );
    assert!(lines[1].starts_with("image sha256:"), "{}", told.told());

    environment.write("ctx/Dockerfile", "FROM scratch\nRUM x\n");
    let told = run(&environment, &program, &["ctx"]).fails_with(1);
    told.says("unknown instruction: RUM");
}

#[test]
fn a_program_follows_a_build() {
    require_programs!("busybox");
    let program = example("progress_sink");
    let environment = Environment::new("/bin/true");
    context(&environment);
    let first = run(&environment, &program, &["ctx"]).success();
    assert!(first.stdout.contains("a step ran"), "{}", first.told());
    assert!(
        first
            .stdout
            .contains("[stage-1 1/1] COPY --from=made /bin/busybox / ran"),
        "{}",
        first.told()
    );
    let second = run(&environment, &program, &["ctx"]).success();
    assert!(
        second.stdout.contains("/busybox / was there"),
        "{}",
        second.told()
    );
}
