//! Cache keys: every part framed by its length, named, under a version.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use store::Key;

/// Raised whenever what a key means, or what a step yields for it, changes.
const VERSION: &str = "lapstrake-key-1";

/// One named part of a key, kept with the build so that a later miss can be explained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPart {
    /// What the part is: "command", "ENV PATH", "files of context: /src".
    pub name: String,
    /// The value, a digest or a short text.
    pub value: String,
}

/// Makes a key of its parts.
#[derive(Debug, Clone)]
pub(crate) struct KeyBuilder {
    hash: Sha256,
}

impl KeyBuilder {
    /// Begins a key of a kind: keys of two kinds are never equal.
    pub(crate) fn new(kind: &str) -> Self {
        let mut builder = Self {
            hash: Sha256::new(),
        };
        builder.frame(VERSION.as_bytes());
        builder.frame(kind.as_bytes());
        builder
    }

    /// Adds a part.
    pub(crate) fn part(mut self, name: &str, value: &[u8]) -> Self {
        self.frame(name.as_bytes());
        self.frame(value);
        self
    }

    /// Adds a part that is itself a key.
    pub(crate) fn key(mut self, name: &str, key: &Key) -> Self {
        self.frame(name.as_bytes());
        self.frame(key);
        self
    }

    /// Returns the key.
    pub(crate) fn finish(self) -> Key {
        self.hash.finalize().into()
    }

    fn frame(&mut self, bytes: &[u8]) {
        self.hash.update((bytes.len() as u64).to_be_bytes());
        self.hash.update(bytes);
    }
}

/// Writes bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_into_each_other() {
        let key = |parts: &[(&str, &str)]| {
            let begin = KeyBuilder::new("test");
            let add =
                |key: KeyBuilder, (name, value): &(&str, &str)| key.part(name, value.as_bytes());
            parts.iter().fold(begin, add).finish()
        };
        assert_ne!(key(&[("a", "bc")]), key(&[("ab", "c")]));
        assert_ne!(key(&[("a", "b"), ("c", "")]), key(&[("a", "b")]));
        assert_ne!(
            key(&[("a", "bc")]),
            KeyBuilder::new("other").part("a", b"bc").finish()
        );
    }
}
