//! The rungs of isolation: each obstacle made for real, its rung and its words, and steps that run on it.

mod support;

use sandbox::userns;
use support::{Bench, run_as_user};

/// Set for a test program that says its rung and does nothing else.
const PROBE: &str = "LAPSTRAKE_TEST_PROBE";

#[used]
#[unsafe(link_section = ".init_array")]
static PROBE_BEFORE_MAIN: extern "C" fn() = probe_before_main;

extern "C" fn probe_before_main() {
    if std::env::var_os(PROBE).is_some() {
        let isolation = userns::probe().expect("a probe");
        println!("rung {}: {}", isolation.rung, isolation.notes.join("; "));
        std::process::exit(0);
    }
}

/// Compares the rung of an ordinary user on a machine that `script` changed.
#[track_caller]
fn check(script: &str, rung: &str, reason: &str) {
    let script = format!("ip link set lo up; {script}");
    let env = [(PROBE, "1"), (support::ROOTLESS, "0")];
    if let Some(text) = run_as_user(&[], &script, &env) {
        assert!(
            text.starts_with(&format!("rung {rung}: ")) && text.contains(reason),
            "{text}"
        );
    }
}

/// Runs a step as an ordinary user on a machine that `script` changed.
#[track_caller]
fn check_step(script: &str) {
    let script = format!("ip link set lo up; {script}");
    if let Some(text) = run_as_user(&["--exact", "a_step_on_this_rung"], &script, &[]) {
        assert!(text.contains("the step ran"), "{text}");
    }
}

const AS_NOBODY: &str = "shift 6; exec setpriv --reuid 54321 --regid 54321 --clear-groups \"$@\"";
const HIDE_PROC: &str = "mount -t tmpfs none /proc/fs; exec \"$@\"";

#[test]
fn a_user_with_subordinate_ids_has_the_best_rung() {
    check("exec \"$@\"", "subordinate-ids", "");
}

#[test]
fn without_subordinate_ids_there_is_one_id() {
    check(
        AS_NOBODY,
        "single-id",
        "/etc/subuid has no range for uid 54321",
    );
    check_step(AS_NOBODY);
}

#[test]
fn no_new_privs_stands_against_newuidmap() {
    check(
        "exec setpriv --no-new-privs \"$@\"",
        "single-id",
        "no_new_privs is set",
    );
    check_step("exec setpriv --no-new-privs \"$@\"");
}

#[test]
fn a_nosuid_file_system_stands_against_newuidmap() {
    let script =
        "mount --bind /usr/bin /usr/bin; mount -o remount,bind,nosuid /usr/bin; exec \"$@\"";
    check(
        script,
        "single-id",
        "newuidmap is on a file system mounted nosuid",
    );
    check_step(script);
}

#[test]
fn a_missing_newuidmap_is_named() {
    let script = "mount --bind /dev/null /usr/bin/newuidmap; exec \"$@\"";
    check(script, "single-id", "newuidmap");
}

#[test]
fn a_hidden_proc_is_shared_and_said() {
    check(
        HIDE_PROC,
        "subordinate-ids",
        "parts of /proc are hidden here",
    );
    check_step(HIDE_PROC);
}

#[test]
fn a_step_on_this_rung() {
    if !support::rootless() {
        return;
    }
    let bench = Bench::new();
    let outcome = bench.run_shell(
        "id -u; test -r /proc/self/status && test -c /dev/null && echo x > /x && cat /x",
    );
    assert_eq!(outcome.printed(), "0\nx");
    println!("the step ran; {:?}", bench.helper.notes());
}
