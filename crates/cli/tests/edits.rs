//! What a build takes from its records is what it would make anew.

use testkit::Environment;
use testkit::soak::{self, Trial};

#[test]
fn a_cached_build_equals_one_without_cache_after_random_edits() {
    testkit::require_fixtures!("busybox:latest");
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    let trial = Trial {
        count: 16,
        seed: 1,
        is_told: false,
    };
    soak::edits(&environment, trial);
}
