//! Paths inside a container.

use std::fmt;

use crate::{Error, Result};

/// An absolute path inside a tree: cleaned, without `.`, `..`, empty components or NUL bytes.
///
/// It names a place in *some* tree and is only ever resolved through one; it cannot be joined to a host path.
/// `..` is taken away lexically, as the reference does before it resolves symlinks.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootPath(Vec<u8>);

impl RootPath {
    /// The root itself.
    pub fn root() -> RootPath {
        RootPath(b"/".to_vec())
    }

    /// Cleans `path`, which is taken as relative to the root whether it starts with a slash or not.
    ///
    /// Fails on a NUL byte and on a component longer than a file name can be.
    pub fn new(path: impl AsRef<[u8]>) -> Result<RootPath> {
        let path = path.as_ref();
        let invalid = |reason| Error::InvalidPath {
            path: String::from_utf8_lossy(path).into_owned(),
            reason,
        };
        if path.contains(&0) {
            return Err(invalid("it contains a NUL byte"));
        }
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in components(path) {
            match part {
                b"." => {}
                b".." => {
                    parts.pop();
                }
                part if part.len() > 255 => return Err(invalid("a file name in it is too long")),
                part => parts.push(part),
            }
        }
        let mut clean = Vec::with_capacity(path.len() + 1);
        for part in parts {
            clean.push(b'/');
            clean.extend_from_slice(part);
        }
        if clean.is_empty() {
            clean.push(b'/');
        }
        Ok(RootPath(clean))
    }

    /// Returns the bytes, which start with a slash and, but for the root, do not end with one.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the path without its leading slash; empty for the root.
    pub fn relative(&self) -> &[u8] {
        &self.0[1..]
    }

    pub fn is_root(&self) -> bool {
        self.0.len() == 1
    }

    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        components(&self.0)
    }

    /// Returns the last component; `None` for the root.
    pub fn file_name(&self) -> Option<&[u8]> {
        self.components().next_back()
    }

    /// Returns the path without its last component; `None` for the root.
    pub fn parent(&self) -> Option<RootPath> {
        let name = self.file_name()?;
        let end = self.0.len() - name.len() - 1;
        Some(RootPath(if end == 0 {
            b"/".to_vec()
        } else {
            self.0[..end].to_vec()
        }))
    }

    /// Appends one file name.
    pub(crate) fn child(&self, name: &[u8]) -> RootPath {
        debug_assert!(!name.is_empty() && !name.contains(&b'/'));
        let mut bytes = self.0.clone();
        if !self.is_root() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        RootPath(bytes)
    }
}

impl AsRef<[u8]> for RootPath {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for RootPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(&self.0).fmt(f)
    }
}

impl fmt::Debug for RootPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// Splits at slashes, leaving empty components out.
pub(crate) fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(input: &str, expect: &str) {
        assert_eq!(RootPath::new(input).unwrap().to_string(), expect, "{input}");
    }

    #[test]
    fn paths_are_cleaned_and_cannot_rise_above_the_root() {
        check("", "/");
        check(".", "/");
        check("/", "/");
        check("a", "/a");
        check("a//b/./c/", "/a/b/c");
        check("../../etc", "/etc");
        check("/a/b/../../../x", "/x");
        check("a/..", "/");
    }

    #[test]
    fn a_nul_byte_and_a_long_name_are_refused() {
        assert!(RootPath::new("a\0b").is_err());
        assert!(RootPath::new("x".repeat(256)).is_err());
        assert!(RootPath::new("x".repeat(255)).is_ok());
    }

    #[test]
    fn a_parent_is_the_path_without_its_last_name() {
        let path = RootPath::new("/a/b").unwrap();
        assert_eq!(path.file_name(), Some(&b"b"[..]));
        assert_eq!(path.parent().unwrap().to_string(), "/a");
        assert_eq!(path.parent().unwrap().parent().unwrap().to_string(), "/");
        assert_eq!(RootPath::root().parent(), None);
    }
}
