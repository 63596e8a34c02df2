//! What a bad connection to a registry brings is right or a clear error.

use testkit::Environment;
use testkit::soak::{self, Trial};

#[test]
fn a_bad_connection_to_a_registry_brings_what_is_right_or_an_error() {
    testkit::require_fixtures!("busybox:latest");
    testkit::require_programs!("docker-registry");
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    let trial = Trial {
        count: 12,
        seed: 1,
        is_told: false,
    };
    let tally = soak::registry(&environment, trial);
    assert!(tally.right() > trial.count / 2, "{tally:?}");
}
