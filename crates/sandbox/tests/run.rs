//! Commands, their ends and what they leave.

mod support;

use sandbox::Status;
use support::{Bench, able};

#[test]
fn a_command_runs_and_its_output_is_its_own() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let outcome = bench.run_shell("echo out; echo err >&2; echo left > /left");
    assert_eq!(outcome.printed(), "out");
    assert_eq!(outcome.stderr, "err\n");
    assert_eq!(
        std::fs::read_to_string(bench.changes("step").join("left")).expect("a file"),
        "left\n"
    );
    assert_eq!(outcome.status(), Status::Code(0));
}
