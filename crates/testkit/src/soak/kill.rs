//! Kills builders at random moments: whatever they were at, the store stays whole.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::{Chance, Trial};
use crate::Environment;

const DOCKERFILE: &str = "FROM busybox AS base
COPY . /src
RUN cat /src/* | sha256sum > /sum
FROM base AS one
RUN for i in $(seq 50); do echo $i > /f$i; done
FROM base AS two
RUN --mount=type=cache,target=/kept cp /sum /kept/ && seq 20000 > /numbers && sleep 0.05
FROM busybox
COPY --from=one /f50 /
COPY --from=two /numbers /
RUN cat /f50 /numbers | wc -l > /count
";

/// Something a builder is killed at.
const DEEDS: [&[&str]; 11] = [
    &["build", "-q", "-t", "app", "ctx"],
    &["build", "-q", "-t", "app", "ctx"],
    &["build", "-q", "--no-cache", "-t", "other", "ctx"],
    &["build", "-q", "-o", "type=oci,dest=out.tar", "ctx"],
    &["build", "-q", "-o", "out", "ctx"],
    &["pull", "-q", "busybox"],
    &["save", "-o", "saved.tar", "app"],
    &["load", "-q", "-i", "whole.tar"],
    &["builder", "prune", "-f", "--keep-storage", "3MB"],
    &["system", "prune", "-f", "-a"],
    &["system", "check", "--repair"],
];

/// Kills a builder `count` times at random moments of builds, pulls, exports and prunes, at times two at
/// once; checks the store after each, and at last what comes out of a build.
///
/// # Panics
///
/// When the store is not whole after a kill, or the last build is not what it should be.
pub fn kill(environment: &Environment, trial: Trial) {
    trial.tell(0);
    let mut chance = Chance(trial.seed);
    environment.write("ctx/Dockerfile", DOCKERFILE);
    for number in 0..40 {
        environment.write(&format!("ctx/file{number}"), "x".repeat(1000 * number));
    }
    environment.ok(["build", "-q", "-t", "app", "ctx"]);
    environment.ok(["save", "-o", "whole.tar", "app"]);
    let whole = measure(environment);
    for turn in 1..=trial.count {
        // Each build has steps of its own.
        environment.write("ctx/turn", chance.below(trial.count.max(8)).to_string());
        if chance.below(4) == 0 {
            environment.run(["rmi", "-f", "busybox"]);
        }
        let mut running: Vec<(Child, Instant, String)> = Vec::new();
        for _ in 0..=chance.below(2) {
            let number = chance.below(DEEDS.len() as u64) as usize;
            let moment = whole[number].mul_f64(chance.part());
            let child = start(environment, DEEDS[number]);
            running.push((child, Instant::now() + moment, DEEDS[number].join(" ")));
        }
        running.sort_by_key(|(_, moment, _)| *moment);
        let mut told = String::new();
        for (mut child, moment, what) in running {
            // The moment is what is varied: nothing is waited for.
            while Instant::now() < moment {
                std::thread::sleep(Duration::from_micros(500));
            }
            let _ = child.kill();
            let _ = child.wait();
            told.push_str(&format!("{what}; "));
        }
        let checked = environment.run(["system", "check"]);
        let seed = trial.seed;
        assert!(
            checked.status.success() && !checked.stdout.contains("damaged:"),
            "seed {seed}, turn {turn}, killed: {told}\n{}",
            checked.told()
        );
        trial.tell(turn);
    }
    the_end_is_right(environment);
}

fn start(environment: &Environment, words: &[&str]) -> Child {
    let mut command = environment.command(words);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("it starts")
}

/// Returns how long each deed takes when nobody kills it.
fn measure(environment: &Environment) -> Vec<Duration> {
    let mut times = Vec::new();
    for (number, deed) in DEEDS.iter().enumerate() {
        environment.write("ctx/turn", format!("measured {number}"));
        if !environment
            .run(["image", "inspect", "app"])
            .status
            .success()
        {
            environment.ok(["load", "-q", "-i", "whole.tar"]);
        }
        let began = Instant::now();
        environment.ok(*deed);
        times.push(began.elapsed());
    }
    times
}

fn the_end_is_right(environment: &Environment) {
    environment.write("ctx/turn", "the last");
    let build = ["build", "-q", "-o", "last", "ctx"];
    environment.ok(build);
    let read = |name: &str| {
        let path = environment.work().join("last").join(name);
        std::fs::read_to_string(path).expect("a file")
    };
    assert_eq!(read("count").trim(), "20001");
    assert_eq!(read("f50"), "50\n");
    environment.ok(["system", "check", "--repair"]);
    let checked = environment.ok(["system", "check", "--format=json"]).stdout;
    assert!(checked.contains("\"leftovers\":[]"), "{checked}");
    assert!(checked.contains("\"problems\":[]"), "{checked}");
    // With everything pruned nothing is left but what is empty.
    environment.ok(["system", "prune", "-f", "-a"]);
    for folder in ["layers", "ingest", "blobs/sha256", "mounts"] {
        let left = std::fs::read_dir(environment.root().join(folder)).map_or(0, Iterator::count);
        assert_eq!(left, 0, "in {folder}");
    }
    environment.ok(build);
}
