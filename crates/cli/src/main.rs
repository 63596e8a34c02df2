//! The `lapstrake` binary.
fn main() {}
