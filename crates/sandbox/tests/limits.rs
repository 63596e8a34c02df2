//! Limits that control groups set, where they may be written.

mod support;

use sandbox::{Limits, Status};
use support::{Bench, able, skip};

/// Runs a script under limits; `None` when this machine can't set them.
fn run(limits: Limits, script: &str) -> Option<support::Outcome> {
    if !able() {
        return None;
    }
    let bench = Bench::new();
    let mut spec = bench.shell("step", script);
    spec.limits = limits;
    let outcome = bench.run(&spec);
    let unset = outcome
        .exit
        .as_ref()
        .map(|exit| exit.usage.unset_limits.clone())
        .unwrap_or_default();
    if unset.is_empty() {
        return Some(outcome);
    }
    skip(&unset.join("; "));
    None
}

support::everything_holds!();

#[test]
fn a_step_over_its_memory_is_killed_and_said_to_be() {
    let limits = Limits {
        memory: Some(32 << 20),
        memory_swap: Some(32 << 20),
        ..Limits::default()
    };
    if let Some(outcome) = run(
        limits,
        "dd if=/dev/zero of=/dev/null bs=200M count=1; exit $?",
    ) {
        let exit = outcome.exit.expect("an end");
        assert!(exit.out_of_memory, "{exit:?}");
        assert!(!exit.status.success());
        assert!(exit.usage.peak_memory <= 32 << 20, "{exit:?}");
    }
}

#[test]
fn a_step_within_its_memory_is_not() {
    let limits = Limits {
        memory: Some(64 << 20),
        ..Limits::default()
    };
    if let Some(outcome) = run(
        limits,
        "dd if=/dev/zero of=/dev/null bs=10M count=1 2>/dev/null; echo fine",
    ) {
        assert_eq!(outcome.printed(), "fine");
        assert!(!outcome.exit.expect("an end").out_of_memory);
    }
}

#[test]
fn a_step_has_no_more_processes_than_it_may() {
    let script = "for n in 1 2 3 4 5 6 7 8 9; do sleep 5 & done 2>&1; jobs | grep -c sleep";
    if let Some(outcome) = run(
        Limits {
            pids: Some(6),
            ..Limits::default()
        },
        script,
    ) {
        let text = outcome.stdout + &outcome.stderr;
        assert!(text.contains("can't fork"), "{text}");
    }
}

#[test]
fn a_step_has_its_share_of_the_processors() {
    let limits = Limits {
        cpu_milli: Some(200),
        cpuset_cpus: Some("0".to_owned()),
        ..Limits::default()
    };
    let script = "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done; nproc";
    let start = std::time::Instant::now();
    if let Some(outcome) = run(limits, script) {
        assert_eq!(outcome.printed(), "1");
        let usage = outcome.exit.expect("an end").usage;
        let (used, passed) = (
            (usage.user + usage.system).as_secs_f64(),
            start.elapsed().as_secs_f64(),
        );
        assert!(
            used < 0.1 || used / passed < 0.5,
            "{used} s of a processor in {passed} s"
        );
    }
}

#[test]
fn groups_do_not_stay() {
    let limits = Limits {
        pids: Some(20),
        ..Limits::default()
    };
    let Some(outcome) = run(limits, "exit 3") else {
        return;
    };
    assert_eq!(outcome.status(), Status::Code(3));
    // The helper that ran it has ended; others of these tests may be at work.
    let arguments = ["/sys/fs/cgroup", "-maxdepth", "6", "-name", "lapstrake-*-*"];
    let output = std::process::Command::new("find")
        .args(arguments)
        .output()
        .expect("find");
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let helper = line
            .rsplit('/')
            .next()
            .and_then(|name| name.split('-').nth(1))
            .expect("a name");
        assert!(
            std::path::Path::new("/proc").join(helper).exists(),
            "{line}"
        );
    }
}

#[test]
fn a_limit_that_can_not_be_set_does_not_stop_the_step() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let mut spec = bench.shell("step", "echo ran");
    spec.limits = Limits {
        cpuset_cpus: Some("9999".to_owned()),
        ..Limits::default()
    };
    let outcome = bench.run(&spec);
    assert_eq!(outcome.printed(), "ran");
    let unset = outcome.exit.expect("an end").usage.unset_limits;
    assert!(
        unset.len() == 1 && unset[0].starts_with("cpuset-cpus: "),
        "{unset:?}"
    );
}
