//! Paths inside of images, as text: the rules by which the reference joins and cleans them.
//!
//! On Linux a path is kept as written where it is absolute. For Windows images drive letters are taken off and
//! backslashes turned.

/// Why a Windows path is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("No relative path specified in {}", crate::quote(path))]
    DriveOnly { path: String },
    #[error("UNC paths are not supported")]
    Unc,
    #[error("The specified path is not on the system drive (C:)")]
    OtherDrive,
}

/// Returns the shortest path that means the same by its text alone (Go's `path.Clean`).
pub fn clean(path: &str) -> String {
    if is_clean(path) {
        return path.to_owned();
    }
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    match (rooted, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}

/// Tells whether an absolute path is as short as it can be. Most are.
fn is_clean(path: &str) -> bool {
    let mut last = b'/';
    path.len() > 1
        && path.starts_with('/')
        && path.bytes().skip(1).all(|byte| {
            // A dot at the begin of a name may be one of `.` and `..`; two slashes are one too many.
            let is_plain = last != b'/' || (byte != b'/' && byte != b'.');
            last = byte;
            is_plain
        })
        && last != b'/'
}

/// Joins two paths and cleans the result (Go's `path.Join`); empty ones are left out.
pub fn join(first: &str, second: &str) -> String {
    match (first, second) {
        ("", "") => String::new(),
        ("", path) | (path, "") => clean(path),
        ("/", path) if is_clean(path) => path.to_owned(),
        (first, second) => clean(&format!("{first}/{second}")),
    }
}

/// Tells whether a path is absolute in an image of that operating system.
pub fn is_absolute(path: &str, os: &str) -> bool {
    without_drive(path, os, false).is_ok_and(|path| path.starts_with('/'))
}

/// Returns the absolute path of `path` in `parent`, with forward slashes.
///
/// With `keep_slash` a slash or `/.` at the end stays, since `COPY` gives them a meaning.
///
/// # Errors
///
/// Only for Windows.
pub fn normalize(
    parent: &str,
    path: &str,
    os: &str,
    keep_slash: bool,
) -> Result<String, PathError> {
    let original = to_slash(path, os);
    let parent = to_slash(parent, os);
    let parent = without_drive(
        if parent.is_empty() { "/" } else { &parent },
        os,
        keep_slash,
    )?;
    let parent = if parent.starts_with('/') {
        parent
    } else {
        join("/", &parent)
    };
    let mut path = without_drive(
        if original.is_empty() {
            &parent
        } else {
            &original
        },
        os,
        keep_slash,
    )?;
    if !is_absolute(&path, os) {
        path = join(&parent, &path);
    }
    if keep_slash {
        if original.ends_with('/') && !path.ends_with('/') {
            path.push('/');
        } else if original.ends_with("/.") {
            if path != "/" {
                path.push('/');
            }
            path.push('.');
        }
    }
    Ok(to_slash(&path, os))
}

/// Returns the working directory after `WORKDIR path` in `current`, in the notation of the operating system.
///
/// # Errors
///
/// Only for Windows.
pub fn workdir(current: &str, path: &str, os: &str) -> Result<String, PathError> {
    let path = normalize(current, path, os, false)?;
    Ok(if os == "windows" {
        path.replace('/', "\\")
    } else {
        path
    })
}

/// Returns the path with forward slashes.
pub fn to_slash(path: &str, os: &str) -> String {
    if os == "windows" {
        path.replace('\\', "/")
    } else {
        path.to_owned()
    }
}

/// Takes the letter of the system drive off and cleans the path; does nothing but for Windows.
///
/// # Errors
///
/// Only for Windows.
pub fn without_drive(path: &str, os: &str, keep_slash: bool) -> Result<String, PathError> {
    if os != "windows" {
        return Ok(path.to_owned());
    }
    if path.len() == 2 && path.ends_with(':') {
        return Err(PathError::DriveOnly {
            path: path.to_owned(),
        });
    }
    let path = to_slash(path, os);
    if path.starts_with("//") {
        return Err(PathError::Unc);
    }
    let rest = match path.split_once(':') {
        None => path.as_str(),
        Some((drive, rest)) if drive.eq_ignore_ascii_case("c") => rest,
        Some(_) => return Err(PathError::OtherDrive),
    };
    let cleaned = clean(rest);
    Ok(if keep_slash && cleaned.len() > 1 && rest.ends_with('/') {
        cleaned + "/"
    } else {
        cleaned
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_by_their_text() {
        let check = |path: &str, expect: &str| assert_eq!(clean(path), expect, "{path}");
        check("", ".");
        check("a//b/./c/..", "a/b");
        check("/../a", "/a");
        check("../../a", "../../a");
        check("/", "/");
        check("a/..", ".");
        check("/a/.b/c..", "/a/.b/c..");
        check("/a/../b", "/b");
        check("/a/./b/", "/a/b");
    }

    #[test]
    fn relative_paths_are_joined_and_absolute_ones_kept() {
        let check = |parent: &str, path: &str, keep: bool, expect: &str| {
            assert_eq!(
                normalize(parent, path, "linux", keep).as_deref(),
                Ok(expect),
                "{parent} {path}"
            );
        };
        check("/a", "b/../c", false, "/a/c");
        check("/a", "/b//c/", false, "/b//c/");
        check("", "b/", true, "/b/");
        check("/a", "b/.", true, "/a/b/.");
        check("/a", "", false, "/a");
        check("a", "b", false, "/a/b");
    }

    #[test]
    fn windows_paths_lose_their_drive() {
        let check = |path: &str, expect: Result<&str, PathError>| {
            assert_eq!(
                workdir("C:\\a", path, "windows"),
                expect.map(str::to_owned),
                "{path}"
            );
        };
        check("b", Ok("\\a\\b"));
        check("C:\\x\\y\\", Ok("\\x\\y"));
        check("/x", Ok("\\x"));
        check("d:\\x", Err(PathError::OtherDrive));
        check(
            "c:",
            Err(PathError::DriveOnly {
                path: "c:".to_owned(),
            }),
        );
        check("\\\\server\\x", Err(PathError::Unc));
    }
}
