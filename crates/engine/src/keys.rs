//! Cache keys: every part framed by its length, named, under a version.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use store::Key;

/// Raised whenever what a key means, or what a step yields for it, changes.
const VERSION: &str = "lapstrake-key-1";

/// One named part of a key, kept with the result so that a later miss can be explained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPart {
    /// What the part is: "operation", "input 0", "context files".
    pub name: String,
    /// The value, a digest or a short text.
    pub value: String,
}

/// Collects the parts of a key.
#[derive(Debug, Clone)]
pub(crate) struct KeyBuilder {
    hash: Sha256,
    parts: Vec<KeyPart>,
}

impl KeyBuilder {
    /// Begins a key of a kind: keys of two kinds are never equal.
    pub(crate) fn new(kind: &str) -> Self {
        let mut builder = Self {
            hash: Sha256::new(),
            parts: Vec::new(),
        };
        builder.frame(VERSION.as_bytes());
        builder.frame(kind.as_bytes());
        builder
    }

    /// Adds a part.
    pub(crate) fn part(mut self, name: &str, value: &[u8]) -> Self {
        self.frame(name.as_bytes());
        self.frame(value);
        let value = match std::str::from_utf8(value) {
            Ok(text) if text.len() <= 200 && !text.contains('\0') => text.to_owned(),
            _ => hex(&Sha256::digest(value)),
        };
        self.parts.push(KeyPart {
            name: name.to_owned(),
            value,
        });
        self
    }

    /// Adds a part that is itself a key.
    pub(crate) fn key(mut self, name: &str, key: &Key) -> Self {
        self.frame(name.as_bytes());
        self.frame(key);
        self.parts.push(KeyPart {
            name: name.to_owned(),
            value: hex(key),
        });
        self
    }

    /// Returns the key and its parts.
    pub(crate) fn finish(self) -> (Key, Vec<KeyPart>) {
        (self.hash.finalize().into(), self.parts)
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
            parts.iter().fold(begin, add).finish().0
        };
        assert_ne!(key(&[("a", "bc")]), key(&[("ab", "c")]));
        assert_ne!(key(&[("a", "b"), ("c", "")]), key(&[("a", "b")]));
        assert_ne!(
            key(&[("a", "bc")]),
            KeyBuilder::new("other").part("a", b"bc").finish().0
        );
    }
}
