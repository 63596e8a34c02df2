//! Any text as an ignore file, and paths against it (behind the first NUL, one a line): no panic, and a walk that
//! matches parents first finds what matching each path alone finds.
#![no_main]

use dockerfile::ignore::{IgnoreFile, Matched, Matcher};
use libfuzzer_sys::fuzz_target;

/// The answer for a path as a walk finds it, and whether a parent hid it.
fn walk(matcher: &Matcher, path: &[u8]) -> Option<Matched> {
    let mut matched: Option<Matched> = None;
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    for end in ends.chain([path.len()]) {
        let part = &path[..end];
        let found = match &matched {
            None => matcher.matched(part),
            Some(parent) => matcher.matched_below(parent, part),
        };
        let found = found.ok()?;
        if end < path.len() && matcher.hides_below(part, &found) {
            let below = matcher.matched(path).ok()?;
            assert!(below.is_ignored(), "hidden below {}, yet taken", String::from_utf8_lossy(part));
        }
        matched = Some(found);
    }
    matched
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
        let _ = walk(&matcher, path);
        if let Ok(matched) = matcher.matched(path) {
            assert_eq!(matched.is_ignored(), matcher.reason(&matched).is_some());
        }
    }
});
