//! Paths as text.

/// Returns the shortest equal path: no double slashes, no `.`, `..` resolved where something stands before it.
pub(super) fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut kept: Vec<&str> = Vec::new();
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." if kept.last().is_some_and(|last| *last != "..") => {
                kept.pop();
            }
            ".." if rooted => {}
            component => kept.push(component),
        }
    }
    match (rooted, kept.is_empty()) {
        (true, _) => format!("/{}", kept.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => kept.join("/"),
    }
}

/// Returns the directories above a path, the outermost first; a path that ends in a slash is below itself.
pub(super) fn parents(path: &str) -> Vec<String> {
    let directory = clean(path.rfind('/').map_or("", |slash| &path[..=slash]));
    if directory == "." {
        return Vec::new();
    }
    let ends = directory
        .match_indices('/')
        .map(|(slash, _)| slash)
        .chain([directory.len()]);
    ends.map(|end| directory[..end].to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_shortest() {
        for (path, expect) in [
            ("", "."),
            (".", "."),
            ("a/./b//c/", "a/b/c"),
            ("a/../..", ".."),
            ("../a/..", ".."),
            ("/..", "/"),
            ("/../a", "/a"),
            ("!a/..", "."),
        ] {
            assert_eq!(clean(path), expect, "{path}");
        }
    }

    #[test]
    fn parents_begin_at_the_top() {
        assert_eq!(parents("a/b/c"), ["a", "a/b"]);
        assert_eq!(parents("a/b/"), ["a", "a/b"]);
        assert_eq!(parents("a/../b/c"), ["b"]);
        assert_eq!(parents("/a/b"), ["", "/a"]);
        assert!(parents("a").is_empty() && parents("a/../b").is_empty());
    }
}
