//! `config.json` of Docker and `auth.json` of Podman, which have one form.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

use super::{Credential, failure};
use crate::RegistryError;

const DOCKER_HUB: &str = "https://index.docker.io/v1/";
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A file with logins; what is not understood in it is kept.
#[derive(Debug)]
pub(super) struct AuthFile {
    path: PathBuf,
    content: Map<String, Value>,
}

impl AuthFile {
    pub(super) fn empty(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            content: Map::new(),
        }
    }

    /// Reads a file; none is there is no error.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, RegistryError> {
        use std::io::ErrorKind::{NotADirectory, NotFound};
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), NotFound | NotADirectory) => return Ok(None),
            Err(source) => {
                return Err(RegistryError::Io {
                    action: "read",
                    path: path.to_owned(),
                    source,
                });
            }
        };
        if bytes.trim_ascii().is_empty() {
            return Ok(Some(Self::empty(path)));
        }
        // The message of a JSON error never cites the text.
        let content = serde_json::from_slice(&bytes).map_err(|error| RegistryError::Settings {
            origin: path.display().to_string(),
            message: error.to_string(),
        })?;
        Ok(Some(Self {
            path: path.to_owned(),
            content,
        }))
    }

    /// Returns the name of the helper that keeps the logins of a registry.
    pub(super) fn helper(&self, registry: &str) -> Option<&str> {
        let helpers = self.content.get("credHelpers").and_then(Value::as_object);
        let own = helpers.and_then(|helpers| {
            helpers
                .iter()
                .find(|(key, _)| registry_of(key) == registry)
                .and_then(|(_, name)| name.as_str())
        });
        let name = own.or_else(|| self.content.get("credsStore").and_then(Value::as_str));
        name.filter(|name| !name.is_empty())
    }

    /// Returns the login for a repository: the one for the longest part of its path counts (Podman keeps them so).
    pub(super) fn credential(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Option<Credential>, RegistryError> {
        let Some(entries) = self.content.get("auths").and_then(Value::as_object) else {
            return Ok(None);
        };
        let mut path = format!("{registry}/{repository}");
        loop {
            for (key, entry) in entries {
                let matches = if path == registry {
                    registry_of(key) == registry
                } else {
                    *key == path
                };
                if matches && let Some(credential) = self.entry(key, entry)? {
                    return Ok(Some(credential));
                }
            }
            match path.rfind('/') {
                Some(slash) => path.truncate(slash),
                None => return Ok(None),
            }
        }
    }

    fn entry(&self, key: &str, entry: &Value) -> Result<Option<Credential>, RegistryError> {
        let field = |name| {
            entry
                .get(name)
                .and_then(Value::as_str)
                .filter(|text| !text.is_empty())
        };
        if let Some(token) = field("identitytoken") {
            return Ok(Some(Credential::IdentityToken(token.to_owned())));
        }
        if let Some(token) = field("registrytoken") {
            return Ok(Some(Credential::RegistryToken(token.to_owned())));
        }
        let (username, password) = match field("auth") {
            Some(encoded) => self.decode(key, encoded)?,
            None => (
                field("username").unwrap_or_default().to_owned(),
                field("password").unwrap_or_default().to_owned(),
            ),
        };
        Ok((!username.is_empty()).then_some(Credential::Basic { username, password }))
    }

    fn decode(&self, key: &str, encoded: &str) -> Result<(String, String), RegistryError> {
        let invalid = || {
            failure(
                key,
                format!("the login in {} is not valid", self.path.display()),
            )
        };
        let bytes = BASE64.decode(encoded).map_err(|_| invalid())?;
        let text = String::from_utf8(bytes).map_err(|_| invalid())?;
        let (username, password) = text.split_once(':').ok_or_else(invalid)?;
        Ok((
            username.to_owned(),
            password.trim_end_matches('\0').to_owned(),
        ))
    }

    pub(super) fn with_credential(
        mut self,
        registry: &str,
        credential: &Credential,
    ) -> Result<Self, RegistryError> {
        let mut entry = Map::new();
        match credential {
            Credential::Basic { username, .. } if username.contains(':') => {
                return Err(failure(registry, "a user name cannot have a colon"));
            }
            Credential::Basic { username, password } => {
                entry.insert(
                    "auth".into(),
                    BASE64.encode(format!("{username}:{password}")).into(),
                );
            }
            Credential::IdentityToken(token) => {
                entry.insert("identitytoken".into(), token.as_str().into());
            }
            Credential::RegistryToken(token) => {
                entry.insert("registrytoken".into(), token.as_str().into());
            }
        }
        self.forget(registry);
        self.auths()?
            .insert(key_of(registry).to_owned(), Value::Object(entry));
        Ok(self)
    }

    /// Docker leaves an empty entry for what a helper keeps, so that a list of registries can be had from the file.
    pub(super) fn with_placeholder(mut self, registry: &str) -> Self {
        self.forget(registry);
        if let Ok(auths) = self.auths() {
            auths.insert(key_of(registry).to_owned(), Value::Object(Map::new()));
        }
        self
    }

    /// Returns the file without the logins of a registry, or nothing if it has none.
    pub(super) fn without(mut self, registry: &str) -> Option<Self> {
        self.forget(registry).then_some(self)
    }

    fn forget(&mut self, registry: &str) -> bool {
        let Some(auths) = self.content.get_mut("auths").and_then(Value::as_object_mut) else {
            return false;
        };
        let before = auths.len();
        auths.retain(|key, _| registry_of(key) != registry);
        auths.len() != before
    }

    fn auths(&mut self) -> Result<&mut Map<String, Value>, RegistryError> {
        let auths = self
            .content
            .entry("auths")
            .or_insert_with(|| Value::Object(Map::new()));
        auths
            .as_object_mut()
            .ok_or_else(|| RegistryError::Settings {
                origin: self.path.display().to_string(),
                message: "auths is no object".to_owned(),
            })
    }

    /// Writes the file in one step, readable by its owner alone. A symbolic link stays one.
    pub(super) fn write(&self) -> Result<(), RegistryError> {
        let failed = |action| {
            let path = self.path.clone();
            move |source| RegistryError::Io {
                action,
                path,
                source,
            }
        };
        let target = std::fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let directory = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if !directory.exists() {
            let mut builder = std::fs::DirBuilder::new();
            std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
            builder
                .create(directory)
                .map_err(failed("create the directory of"))?;
        }
        let mut text = serde_json::to_vec_pretty(&self.content).expect("JSON read before");
        text.push(b'\n');
        let mut file = tempfile::Builder::new()
            .prefix(".config.json.")
            .permissions(std::fs::Permissions::from_mode(0o600))
            .tempfile_in(directory)
            .map_err(failed("create"))?;
        file.write_all(&text)
            .and_then(|()| file.as_file().sync_all())
            .map_err(failed("write"))?;
        file.persist(&target)
            .map_err(|error| failed("replace")(error.error))?;
        Ok(())
    }
}

/// Returns the key under which Docker keeps and asks helpers for a registry.
pub(super) fn key_of(registry: &str) -> &str {
    match registry {
        "docker.io" => DOCKER_HUB,
        registry => registry,
    }
}

/// Returns the registry that a key in a file stands for; keys may be URLs.
fn registry_of(key: &str) -> &str {
    let name = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"));
    let name = match name {
        // Only of a URL is the path no part of the name.
        Some(url) => url.split('/').next().unwrap_or_default(),
        None => key
            .strip_suffix("/v1/")
            .or_else(|| key.strip_suffix("/v2/"))
            .unwrap_or(key)
            .trim_end_matches('/'),
    };
    crate::settings::canonical_registry(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> AuthFile {
        AuthFile {
            path: "config.json".into(),
            content: serde_json::from_str(text).unwrap(),
        }
    }

    fn check(text: &str, registry: &str, repository: &str, expect: Option<(&str, &str)>) {
        let expect = expect.map(|(username, password)| Credential::Basic {
            username: username.into(),
            password: password.into(),
        });
        assert_eq!(
            file(text).credential(registry, repository).unwrap(),
            expect,
            "{registry}/{repository}"
        );
    }

    #[test]
    fn keys_are_hosts_urls_or_paths() {
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
            "https://u.example": {"username": "u", "password": "p:q"},
            "v.example/v1/": {"auth": "djp3Og"},
            "q.example/org": {"auth": "b3JnOjE="},
            "q.example/org/deep": {"auth": "ZGVlcDoy"},
            "q.example": {"auth": "YWxsOjM="},
            "empty.example": {}
        }}"#;
        check(text, "docker.io", "library/busybox", Some(("hub", "pw")));
        check(text, "u.example", "x", Some(("u", "p:q")));
        check(text, "v.example", "x", Some(("v", "w:")));
        check(text, "q.example", "org/a", Some(("org", "1")));
        check(text, "q.example", "org/deep/er", Some(("deep", "2")));
        check(text, "q.example", "organ/a", Some(("all", "3")));
        check(text, "empty.example", "x", None);
        check(text, "example", "x", None);
    }

    #[test]
    fn helpers_are_chosen_by_registry_then_for_all() {
        let file = file(
            r#"{"credHelpers": {"a.example": "one", "https://index.docker.io/v1/": "hub"}, "credsStore": "all"}"#,
        );
        assert_eq!(file.helper("a.example"), Some("one"));
        assert_eq!(file.helper("docker.io"), Some("hub"));
        assert_eq!(file.helper("b.example"), Some("all"));
        assert_eq!(
            super::AuthFile::empty(Path::new("x")).helper("b.example"),
            None
        );
    }

    #[test]
    fn tokens_are_preferred_and_bad_logins_named() {
        let text = r#"{"auths": {"a": {"auth": "AAAA", "identitytoken": "t"}, "b": {"registrytoken": "r"}, "c": {"auth": "!"}}}"#;
        let file = file(text);
        assert_eq!(
            file.credential("a", "x").unwrap(),
            Some(Credential::IdentityToken("t".into()))
        );
        assert_eq!(
            file.credential("b", "x").unwrap(),
            Some(Credential::RegistryToken("r".into()))
        );
        let message = file.credential("c", "x").unwrap_err().to_string();
        assert_eq!(
            message,
            "failed to get credentials for c: the login in config.json is not valid"
        );
    }

    #[test]
    fn a_login_leaves_the_rest_of_the_file_and_is_for_the_owner_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("new/config.json");
        let basic = Credential::Basic {
            username: "u".into(),
            password: "p".into(),
        };
        AuthFile::empty(&path)
            .with_credential("docker.io", &basic)
            .unwrap()
            .write()
            .unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));

        std::fs::write(
            &path,
            r#"{"z": 1, "auths": {"index.docker.io": {"auth": "eDp5"}, "b": {}}, "a": [2]}"#,
        )
        .unwrap();
        let link = root.path().join("link.json");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let read = AuthFile::read(&link).unwrap().unwrap();
        read.with_credential("docker.io", &basic)
            .unwrap()
            .write()
            .unwrap();
        assert!(link.is_symlink());
        let expect =
            r#"{"z":1,"auths":{"b":{},"https://index.docker.io/v1/":{"auth":"dTpw"}},"a":[2]}"#;
        let written: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(written.to_string(), expect);
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1
        );

        let without = AuthFile::read(&path)
            .unwrap()
            .unwrap()
            .without("docker.io")
            .unwrap();
        assert_eq!(
            Value::Object(without.content).to_string(),
            r#"{"z":1,"auths":{"b":{}},"a":[2]}"#
        );
        assert!(
            AuthFile::read(&path)
                .unwrap()
                .unwrap()
                .without("c")
                .is_none()
        );
    }
}
