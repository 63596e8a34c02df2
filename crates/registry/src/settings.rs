//! What a user or another tool has configured about registries.

mod containerd;
mod containers;
mod hosts;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::RegistryError;
use crate::credentials::{CredentialProvider, CredentialSources};
use crate::retry::RetryPolicy;

pub(crate) use hosts::{
    By, Capabilities, Endpoint, Host, HostTable, Scheme, TlsSettings, canonical_registry,
    is_loopback,
};

#[cfg(test)]
pub(crate) use hosts::default_endpoint;

/// Everything a [`Client`](crate::Client) needs to know. Holding it costs nothing: files are read when a registry is
/// first asked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// lapstrake's own settings, by registry (`docker.io`, `localhost:5000`). An entry here is all that counts for its
    /// registry; only for others the files of other tools are looked at.
    pub registries: BTreeMap<String, RegistrySettings>,
    /// Where other tools keep theirs.
    pub configuration: ConfigurationSources,
    pub credentials: Arc<dyn CredentialProvider>,
    pub retry: RetryPolicy,
    pub timeouts: Timeouts,
    pub proxy: ProxyUse,
    pub user_agent: String,
}

impl Default for Settings {
    /// Returns settings that look at no file and no environment variable.
    fn default() -> Self {
        Self {
            registries: BTreeMap::new(),
            configuration: ConfigurationSources::default(),
            credentials: Arc::new(CredentialSources::default()),
            retry: RetryPolicy::default(),
            timeouts: Timeouts::default(),
            proxy: ProxyUse::None,
            user_agent: concat!("lapstrake/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

impl Settings {
    /// Returns settings with the files, credentials and proxies that this user's environment names.
    pub fn from_environment() -> Self {
        Self {
            configuration: ConfigurationSources::from_environment(),
            credentials: Arc::new(CredentialSources::from_environment()),
            proxy: ProxyUse::Environment,
            ..Self::default()
        }
    }

    /// Adds the tables `[registry."<host>"]` of a configuration file; its other tables are left to others.
    ///
    /// The keys are those of `buildkitd.toml`. `origin` names the file in errors; a relative path in it is taken from
    /// the directory of the file.
    pub fn read_toml(&mut self, origin: &Path, text: &str) -> Result<(), RegistryError> {
        #[derive(Deserialize)]
        struct File {
            #[serde(default)]
            registry: BTreeMap<String, RegistrySettings>,
        }
        let file: File = toml::from_str(text).map_err(|error| settings_error(origin, &error))?;
        let directory = origin.parent().unwrap_or(Path::new(""));
        for (name, mut settings) in file.registry {
            settings.anchor(directory);
            self.registries
                .insert(hosts::canonical_registry(&name).to_owned(), settings);
        }
        Ok(())
    }
}

/// What lapstrake's configuration says of one registry.
///
/// Keys that it has not are passed over: whoever reads the file says so.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RegistrySettings {
    /// Asked in this order before the registry itself.
    pub mirrors: Vec<Mirror>,
    /// Plain HTTP; by default only with a loopback address.
    pub http: Option<bool>,
    /// Certificates are not checked, and plain HTTP is taken where there is no TLS.
    pub insecure: bool,
    /// Files with certificates to trust beside those of the system.
    pub ca: Vec<PathBuf>,
    pub keypair: Vec<KeyPair>,
    /// Directories with `*.crt` (authorities) and pairs `*.cert` and `*.key`.
    pub tlsconfigdir: Vec<PathBuf>,
}

impl RegistrySettings {
    fn anchor(&mut self, directory: &Path) {
        let anchor = |path: &mut PathBuf| *path = directory.join(&*path);
        self.ca.iter_mut().for_each(anchor);
        self.tlsconfigdir.iter_mut().for_each(anchor);
        for pair in &mut self.keypair {
            anchor(&mut pair.key);
            anchor(&mut pair.cert);
        }
        for mirror in &mut self.mirrors {
            if let Mirror::Layout(path) = mirror {
                anchor(path);
            }
        }
    }
}

/// A client certificate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct KeyPair {
    pub key: PathBuf,
    pub cert: PathBuf,
}

/// Where else the images of a registry may be found.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Mirror {
    /// Another registry. Without a scheme, the settings of its own host say how it is spoken to.
    Remote {
        secure: Option<bool>,
        authority: String,
        path: String,
    },
    /// Directories on this machine: `oci-layout:PATH`.
    ///
    /// PATH is an image layout whose `index.json` names each image in full (`org.opencontainers.image.ref.name` or
    /// `io.containerd.image.name`), or has such layouts below it: `PATH/library/busybox`, `PATH/busybox` for official
    /// images, or `PATH/docker.io/library/busybox`, whose `index.json` names them by tag or in full.
    Layout(PathBuf),
}

impl std::str::FromStr for Mirror {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid =
            || format!("{text:?} is not a mirror: expected a URL, a host or oci-layout:PATH");
        if let Some(path) = text.strip_prefix("oci-layout:") {
            let path = match path.strip_prefix("//") {
                Some(absolute) if absolute.starts_with('/') => absolute,
                _ => path,
            };
            return match path {
                "" => Err(invalid()),
                path => Ok(Self::Layout(PathBuf::from(path))),
            };
        }
        let (secure, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Some(false), rest),
            Some(("https", rest)) => (Some(true), rest),
            Some(_) => return Err(invalid()),
            None => (None, text),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_matches('/');
        if !hosts::is_authority(authority) || !hosts::is_path(path) {
            return Err(invalid());
        }
        Ok(Self::Remote {
            secure,
            authority: authority.to_owned(),
            path: path.to_owned(),
        })
    }
}

impl TryFrom<String> for Mirror {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// The files of other tools that say something about registries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigurationSources {
    /// `registries.conf` of Podman and others: the first that exists counts.
    pub registries_conf: Vec<PathBuf>,
    /// Directories of drop-ins to it, later ones stronger.
    pub registries_conf_directories: Vec<PathBuf>,
    /// Directories with a directory for each registry, holding `hosts.toml` or certificates: the first that knows the
    /// registry counts.
    pub host_directories: Vec<PathBuf>,
}

impl ConfigurationSources {
    pub fn from_environment() -> Self {
        let mut sources = Self::default();
        let home = std::env::home_dir();
        let user = home
            .as_deref()
            .map(|home| variable("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config")));
        match variable("CONTAINERS_REGISTRIES_CONF") {
            Some(path) => sources.registries_conf.push(path),
            None => {
                sources.registries_conf.extend(
                    user.iter()
                        .map(|user| user.join("containers/registries.conf")),
                );
                sources
                    .registries_conf
                    .push("/etc/containers/registries.conf".into());
                sources
                    .registries_conf_directories
                    .push("/etc/containers/registries.conf.d".into());
                sources.registries_conf_directories.extend(
                    user.iter()
                        .map(|user| user.join("containers/registries.conf.d")),
                );
            }
        }
        for directory in ["containers/certs.d", "docker/certs.d"] {
            sources
                .host_directories
                .extend(user.iter().map(|user| user.join(directory)));
        }
        for directory in [
            "/etc/containerd/certs.d",
            "/etc/containers/certs.d",
            "/etc/docker/certs.d",
        ] {
            sources.host_directories.push(directory.into());
        }
        sources
    }
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// For the head of an answer, and for each further piece of its body.
    pub silence: Duration,
    /// For the answer to an upload that is complete: the registry may check it first.
    pub commit: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            silence: Duration::from_secs(45),
            commit: Duration::from_secs(300),
        }
    }
}

/// Whether proxies are used. An address of this machine is never reached through one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyUse {
    /// As `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say.
    Environment,
    None,
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

fn settings_error(origin: &Path, error: &dyn std::fmt::Display) -> RegistryError {
    RegistryError::Settings {
        origin: origin.display().to_string(),
        message: error.to_string().trim_end().to_owned(),
    }
}

/// Returns the content of a file, or nothing where there is none or this user may not read it.
fn read_optional(path: &Path) -> Result<Option<String>, RegistryError> {
    use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    match std::fs::read(path) {
        Ok(content) => match String::from_utf8(content) {
            Ok(text) => Ok(Some(text)),
            Err(error) => Err(settings_error(path, &error)),
        },
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => Ok(None),
        Err(error) if error.kind() == PermissionDenied => {
            tracing::debug!(path = %path.display(), "settings are not readable");
            Ok(None)
        }
        Err(source) => Err(RegistryError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_mirror(text: &str, expect: Option<Mirror>) {
        assert_eq!(text.parse().ok(), expect, "{text}");
    }

    #[test]
    fn mirrors_are_urls_hosts_or_layouts() {
        let remote = |secure, authority: &str, path: &str| {
            Some(Mirror::Remote {
                secure,
                authority: authority.into(),
                path: path.into(),
            })
        };
        check_mirror(
            "http://127.0.0.1:5000",
            remote(Some(false), "127.0.0.1:5000", ""),
        );
        check_mirror(
            "https://a.example/b/c/",
            remote(Some(true), "a.example", "b/c"),
        );
        check_mirror("a.example:5000/b", remote(None, "a.example:5000", "b"));
        check_mirror("[::1]:5000", remote(None, "[::1]:5000", ""));
        check_mirror("oci-layout:/a/b", Some(Mirror::Layout("/a/b".into())));
        check_mirror("oci-layout:///a/b", Some(Mirror::Layout("/a/b".into())));
        check_mirror("oci-layout:b", Some(Mirror::Layout("b".into())));
        for invalid in [
            "",
            "oci-layout:",
            "ftp://a",
            "http://",
            "http:///a",
            "https://user@host",
            "a b",
            "a/../b",
            "a/b?c",
            "a#b",
        ] {
            check_mirror(invalid, None);
        }
    }

    #[test]
    fn own_settings_have_the_keys_of_buildkitd() {
        let mut settings = Settings::default();
        let text = r#"
            [worker.oci]
            enabled = true
            [registry."index.docker.io"]
            mirrors = ["http://127.0.0.1:5000", "oci-layout:images"]
            [registry."a.example:5000"]
            http = true
            insecure = true
            ca = ["ca.pem"]
            [[registry."a.example:5000".keypair]]
            key = "/k.pem"
            cert = "c.pem"
        "#;
        settings
            .read_toml(Path::new("/etc/lapstrake/lapstrake.toml"), text)
            .unwrap();
        let docker = &settings.registries["docker.io"];
        assert_eq!(
            docker.mirrors[1],
            Mirror::Layout("/etc/lapstrake/images".into())
        );
        let other = &settings.registries["a.example:5000"];
        assert_eq!((other.http, other.insecure), (Some(true), true));
        assert_eq!(other.ca, [PathBuf::from("/etc/lapstrake/ca.pem")]);
        assert_eq!(other.keypair[0].key, PathBuf::from("/k.pem"));
        assert_eq!(other.keypair[0].cert, PathBuf::from("/etc/lapstrake/c.pem"));
    }

    #[test]
    fn a_wrong_value_names_its_file_and_an_unknown_key_is_left_to_the_reader() {
        let unknown = "[registry.\"a\"]\nmirror = [\"b\"]\n";
        let mut settings = Settings::default();
        settings.read_toml(Path::new("x.toml"), unknown).unwrap();
        let text = "[registry.\"a\"]\nmirrors = \"b\"\n";
        let error = Settings::default()
            .read_toml(Path::new("x.toml"), text)
            .unwrap_err();
        let message = error.to_string();
        assert!(
            message.starts_with("invalid registry settings in x.toml: "),
            "{message}"
        );
        assert!(message.contains("mirrors"), "{message}");
    }
}
