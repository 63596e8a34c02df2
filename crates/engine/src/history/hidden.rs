//! Keeps secrets out of records.
//!
//! Values of `--secret` are nowhere in a graph. What people put into build arguments though is sometimes a
//! token: of a variable whose name says so, a digest is kept that is keyed by the store, enough to see that a
//! value has changed, and of no use to who reads a record elsewhere.

use std::cell::OnceCell;

use sha2::{Digest as _, Sha256};

/// Hides values.
pub(crate) struct Hidden {
    key: OnceCell<[u8; 16]>,
    load: Box<dyn Fn() -> [u8; 16]>,
}

impl Hidden {
    /// Makes one that hashes with a key, which is asked for when it is first needed.
    pub(crate) fn new(load: impl Fn() -> [u8; 16] + 'static) -> Self {
        Self {
            key: OnceCell::new(),
            load: Box::new(load),
        }
    }

    /// Returns a variable's value, or what stands for it.
    pub(crate) fn value(&self, name: &str, value: &str) -> String {
        if !is_secret(name) || value.is_empty() {
            return value.to_owned();
        }
        let mut hash = Sha256::new_with_prefix(self.key.get_or_init(|| (self.load)()));
        for part in [name, value] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        format!("hidden:{}", &crate::keys::hex(&hash.finalize())[..12])
    }
}

/// Words of a name that say that its value is secret: those of the check's rule SecretsUsedInArgOrEnv, and
/// a few more.
const SECRET: [&str; 14] = [
    "apikey",
    "auth",
    "creds",
    "credential",
    "credentials",
    "key",
    "pass",
    "passphrase",
    "passwd",
    "password",
    "pat",
    "pword",
    "secret",
    "token",
];
/// Words of a name that is not the secret itself.
const NOT_SECRET: [&str; 3] = ["public", "file", "version"];

/// Returns whether a variable's name says that its value is secret.
pub(crate) fn is_secret(name: &str) -> bool {
    let has = |words: &[&str]| {
        name.split('_')
            .any(|part| words.iter().any(|word| part.eq_ignore_ascii_case(word)))
    };
    has(&SECRET) && !has(&NOT_SECRET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_kept_but_can_be_told_apart() {
        let hidden = Hidden::new(|| [1; 16]);
        assert_eq!(hidden.value("VERSION", "1.2"), "1.2");
        let one = hidden.value("API_TOKEN", "hunter2");
        assert!(one.starts_with("hidden:") && !one.contains("hunter2"));
        assert_eq!(one, hidden.value("API_TOKEN", "hunter2"));
        assert_ne!(one, hidden.value("API_TOKEN", "hunter3"));
        assert_ne!(one, Hidden::new(|| [2; 16]).value("API_TOKEN", "hunter2"));
    }

    #[test]
    fn names_say_what_is_secret() {
        for name in ["TOKEN", "npm_token", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"] {
            assert!(is_secret(name), "{name}");
        }
        for name in ["PATH", "KEYBOARD", "PUBLIC_KEY", "TOKEN_FILE", "AUTHOR"] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
