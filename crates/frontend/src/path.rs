//! Paths of file actions, on top of those of `dockerfile::paths`.

use dockerfile::paths::{clean, join};

/// Returns the last element: `.` of an empty path, `/` of the root.
pub(crate) fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    match path.trim_end_matches('/') {
        "" => "/",
        trimmed => trimmed.rsplit('/').next().unwrap_or(trimmed),
    }
}

/// Returns the path as file actions hold it: absolute and clean.
pub(crate) fn action_path(parent: &str, path: &str) -> String {
    let cleaned = clean(path);
    match cleaned.starts_with('/') {
        true => cleaned,
        false => join(&join("/", parent), &cleaned),
    }
}

/// Returns the destination of a copy: absolute and clean, but what says "into this directory" stays.
pub(crate) fn copy_destination(parent: &str, path: &str) -> String {
    let mut dest = action_path(parent, path);
    if path.ends_with('/') && !dest.ends_with('/') {
        dest.push('/');
    } else if path.ends_with("/.") {
        if dest != "/" {
            dest.push('/');
        }
        dest.push('.');
    }
    dest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_element_is_that_of_go() {
        for (path, expected) in [("", "."), ("///", "/"), ("a/b/", "b"), ("/a", "a")] {
            assert_eq!(base(path), expected, "{path}");
        }
    }

    #[test]
    fn a_destination_keeps_what_makes_it_a_directory() {
        for (path, expected) in [
            ("x", "/w/x"),
            ("x/", "/w/x/"),
            ("./", "/w/"),
            ("/x/.", "/x/."),
            ("/.", "/."),
            ("/", "/"),
            ("../y", "/y"),
        ] {
            assert_eq!(copy_destination("/w", path), expected, "{path}");
        }
    }
}
