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
pub(super) fn parents(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    slashes.map(|(index, _)| &path[..index])
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
        assert_eq!(parents(b"a/b/c").collect::<Vec<_>>(), [&b"a"[..], b"a/b"]);
        assert_eq!(parents(b"a").count(), 0);
    }
}
