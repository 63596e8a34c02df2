//! Times of files, kept and put back: what a change of content may hide behind.

use std::fs::{self, FileTimes};
use std::path::Path;

/// Returns when a file was written and read last.
///
/// # Panics
///
/// If it is not there.
pub fn times_of(path: &Path) -> FileTimes {
    let meta = fs::metadata(path).expect("a file");
    FileTimes::new()
        .set_modified(meta.modified().expect("a time"))
        .set_accessed(meta.accessed().expect("a time"))
}

/// Sets when a file was written and read last.
///
/// # Panics
///
/// If it can't be.
pub fn set_times(path: &Path, times: FileTimes) {
    let file = fs::File::open(path).expect("a file");
    file.set_times(times).expect("times can be set");
}
