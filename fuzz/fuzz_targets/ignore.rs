//! Any text as an ignore file, and paths against it (behind the first NUL, one a line): no panic, and nothing is passed
//! over that a walk would take.
#![no_main]

use dockerfile::ignore::{IgnoreFile, Matched, Matcher};
use libfuzzer_sys::fuzz_target;

/// Matches a path as a walk does, its parents first. What lies below a directory that a walk passes over is ignored.
fn walk(matcher: &Matcher, path: &[u8]) {
    let mut matched: Option<Matched> = None;
    let mut is_hidden = false;
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    for end in ends.chain([path.len()]) {
        let part = &path[..end];
        let found = match &matched {
            None => matcher.matched(part),
            Some(parent) => matcher.matched_below(parent, part),
        };
        let Ok(found) = found else { return };
        assert!(!is_hidden || found.is_ignored(), "taken, yet passed over: {}", String::from_utf8_lossy(part));
        is_hidden |= matcher.hides_below(part, &found);
        matched = Some(found);
    }
}

fuzz_target!(|data: &[u8]| {
    let (file, paths) = match data.iter().position(|byte| *byte == 0) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &b"a/b/c\n.git/x\ndir/file.txt\n"[..]),
    };
    let Ok(file) = IgnoreFile::parse(&String::from_utf8_lossy(file)) else {
        return;
    };
    let Ok(matcher) = file.matcher() else { return };
    for path in paths.split(|byte| *byte == b'\n').take(16) {
        let is_clean = path.split(|byte| *byte == b'/').all(|part| !matches!(part, b"" | b"." | b".."));
        if !is_clean {
            let _ = matcher.matched(path);
            continue;
        }
        walk(&matcher, path);
        if let Ok(matched) = matcher.matched(path) {
            assert_eq!(matched.is_ignored(), matcher.reason(&matched).is_some());
        }
    }
});
