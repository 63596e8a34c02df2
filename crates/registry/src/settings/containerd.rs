//! `hosts.toml` of containerd, and the certificate directories of Docker and Podman.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use reqwest::header::{HeaderName, HeaderValue};
use serde::Deserialize;

use super::hosts::{default_endpoint, is_authority};
use super::{
    Capabilities, Endpoint, Host, KeyPair, Scheme, TlsSettings, read_optional, settings_error,
};
use crate::RegistryError;

/// What a directory says of one registry: its servers, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostFile {
    endpoints: Vec<Endpoint>,
}

impl HostFile {
    pub(super) fn hosts(&self, registry: &str, repository: &str) -> Vec<Host> {
        let endpoint = |endpoint: &Endpoint| {
            let mirrored = (endpoint.credentials != registry).then(|| registry.to_owned());
            Host::Remote(Arc::new(Endpoint {
                repository: repository.to_owned(),
                mirrored,
                ..endpoint.clone()
            }))
        };
        self.endpoints.iter().map(endpoint).collect()
    }
}

/// Looks for a registry in directories, the first that knows it counts.
pub(super) fn read(
    directories: &[PathBuf],
    registry: &str,
) -> Result<Option<HostFile>, RegistryError> {
    for root in directories {
        for name in directory_names(registry) {
            let directory = root.join(name);
            let path = directory.join("hosts.toml");
            match read_optional(&path)? {
                Some(text) if !text.trim().is_empty() => {
                    return parse(&path, registry, &text).map(Some);
                }
                _ => {}
            }
            let mut tls = TlsSettings::default();
            add_certificates(&directory, &mut tls);
            if tls != TlsSettings::default() {
                let mut endpoint = default_endpoint(registry);
                if !tls.authorities.is_empty() {
                    endpoint.scheme = Scheme::Https;
                } else {
                    tls.skip_verify = endpoint.tls.skip_verify;
                }
                endpoint.tls = Arc::new(tls);
                return Ok(Some(HostFile {
                    endpoints: vec![endpoint],
                }));
            }
        }
    }
    Ok(None)
}

/// A colon cannot stand in every file name, so containerd also takes `host_port_`.
fn directory_names(registry: &str) -> Vec<String> {
    let mut names = vec![registry.to_owned()];
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.insert(0, format!("{host}_{port}_"));
    }
    names.push("_default".to_owned());
    names
}

/// Adds `*.crt` as authorities and pairs of `*.cert` and `*.key`, in the order of their names.
pub(super) fn add_certificates(directory: &Path, tls: &mut TlsSettings) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    for path in paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => tls.authorities.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                if key.exists() {
                    tls.key_pairs.push(KeyPair { key, cert: path });
                }
            }
            _ => {}
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Table {
    capabilities: Vec<String>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    skip_verify: Option<bool>,
    header: toml::map::Map<String, toml::Value>,
    override_path: bool,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct File {
    server: String,
    #[serde(flatten)]
    root: Table,
    host: toml::map::Map<String, toml::Value>,
}

impl Default for File {
    fn default() -> Self {
        Self {
            server: String::new(),
            root: Table::default(),
            host: toml::map::Map::new(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Client {
    One(PathBuf),
    Many(Vec<Pair>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Pair {
    /// Certificate and key in one file.
    Together(PathBuf),
    Apart([PathBuf; 2]),
}

fn parse(path: &Path, registry: &str, text: &str) -> Result<HostFile, RegistryError> {
    let file: File = toml::from_str(text).map_err(|error| settings_error(path, &error))?;
    let directory = path.parent().unwrap_or(Path::new(""));
    let mut endpoints = Vec::new();
    // The order of the file is the order of the mirrors.
    for (server, table) in file.host {
        let table: Table = table
            .try_into()
            .map_err(|error: toml::de::Error| settings_error(path, &error))?;
        endpoints.push(
            endpoint(&server, &table, directory)
                .map_err(|message| settings_error(path, &message))?,
        );
    }
    let mut last = match file.server.as_str() {
        "" => {
            let mut last = default_endpoint(registry);
            apply(&mut last, &file.root, directory)?;
            last
        }
        server => endpoint(server, &file.root, directory)
            .map_err(|message| settings_error(path, &message))?,
    };
    // The server a file names for a registry is that registry: it goes by the same credentials.
    registry.clone_into(&mut last.credentials);
    endpoints.push(last);
    Ok(HostFile { endpoints })
}

fn endpoint(server: &str, table: &Table, directory: &Path) -> Result<Endpoint, String> {
    let (scheme, rest) = match server.split_once("://") {
        Some(("http", rest)) => (Scheme::Http, rest),
        Some(("https", rest)) => (Scheme::Https, rest),
        Some(_) => return Err(format!("{server:?} is neither http nor https")),
        None => (Scheme::Https, server),
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if !is_authority(authority) {
        return Err(format!("{server:?} has no valid host"));
    }
    let mut endpoint = default_endpoint(authority);
    authority.clone_into(&mut endpoint.authority);
    endpoint.scheme = scheme;
    endpoint.tls = Arc::default();
    let path = path.trim_matches('/');
    endpoint.path = match path {
        "" if table.override_path => "/".to_owned(),
        "" => "/v2/".to_owned(),
        path if table.override_path || path == "v2" || path.ends_with("/v2") => format!("/{path}/"),
        path => format!("/{path}/v2/"),
    };
    apply(&mut endpoint, table, directory).map_err(|error| error.to_string())?;
    Ok(endpoint)
}

fn apply(endpoint: &mut Endpoint, table: &Table, directory: &Path) -> Result<(), RegistryError> {
    let invalid = |message: String| settings_error(&directory.join("hosts.toml"), &message);
    if !table.capabilities.is_empty() {
        let mut capabilities = Capabilities {
            pull: false,
            resolve: false,
            push: false,
        };
        for name in &table.capabilities {
            match name.to_ascii_lowercase().as_str() {
                "pull" => capabilities.pull = true,
                "resolve" => capabilities.resolve = true,
                "push" => capabilities.push = true,
                "referrers" => {}
                _ => return Err(invalid(format!("unknown capability {name:?}"))),
            }
        }
        endpoint.capabilities = capabilities;
    }
    let mut tls = TlsSettings::clone(&endpoint.tls);
    match &table.ca {
        None => {}
        Some(OneOrMany::One(path)) => tls.authorities.push(directory.join(path)),
        Some(OneOrMany::Many(paths)) => tls
            .authorities
            .extend(paths.iter().map(|path| directory.join(path))),
    }
    let pair = |cert: &Path, key: &Path| KeyPair {
        cert: directory.join(cert),
        key: directory.join(key),
    };
    match &table.client {
        None => {}
        Some(Client::One(path)) => tls.key_pairs.push(pair(path, path)),
        Some(Client::Many(pairs)) => tls.key_pairs.extend(pairs.iter().map(|entry| match entry {
            Pair::Together(path) => pair(path, path),
            Pair::Apart([cert, key]) => pair(cert, key),
        })),
    }
    if !tls.authorities.is_empty() {
        tls.skip_verify = false;
    }
    if let Some(skip_verify) = table.skip_verify {
        tls.skip_verify = skip_verify;
    }
    let has_tls =
        !tls.authorities.is_empty() || !tls.key_pairs.is_empty() || table.skip_verify.is_some();
    if endpoint.scheme == Scheme::Http && has_tls && !endpoint.authority.ends_with(":80") {
        endpoint.scheme = Scheme::HttpsOrHttp;
    }
    endpoint.tls = Arc::new(tls);
    for (name, values) in &table.header {
        let name: HeaderName = name
            .parse()
            .map_err(|_| invalid(format!("invalid header {name:?}")))?;
        for value in header_values(values)
            .ok_or_else(|| invalid(format!("invalid value of header {name}")))?
        {
            endpoint.headers.push((name.clone(), value));
        }
    }
    Ok(())
}

fn header_values(value: &toml::Value) -> Option<Vec<HeaderValue>> {
    let one = |value: &toml::Value| {
        let mut value = HeaderValue::from_str(value.as_str()?).ok()?;
        value.set_sensitive(true);
        Some(value)
    };
    match value {
        toml::Value::Array(values) => values.iter().map(one).collect(),
        value => Some(vec![one(value)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::hosts::describe;
    use super::*;

    fn check(registry: &str, text: &str, expect: &[&str]) -> Vec<Endpoint> {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join(registry);
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("hosts.toml"), text).unwrap();
        let file = read(
            &[root.path().join("none"), root.path().to_owned()],
            registry,
        )
        .unwrap()
        .unwrap();
        assert_eq!(describe(&file.hosts(registry, "library/a")), expect);
        file.endpoints
    }

    #[test]
    fn hosts_keep_the_order_of_the_file_and_the_server_is_last() {
        check(
            "docker.io",
            r#"
            server = "https://registry-1.docker.io"
            [host."https://z.example"]
            capabilities = ["pull"]
            [host."http://a.example:5000/p"]
            capabilities = ["pull", "resolve"]
            skip_verify = true
            [host."https://m.example/api/hub"]
            override_path = true
            "#,
            &[
                "Https z.example/v2/library/a",
                "HttpsOrHttp a.example:5000/p/v2/library/a insecure",
                "Https m.example/api/hub/library/a push",
                "Https registry-1.docker.io/v2/library/a push",
            ],
        );
    }

    #[test]
    fn certificates_and_headers_belong_to_their_host() {
        let endpoints = check(
            "r.example",
            r#"
            ca = "ca.crt"
            [host."https://m.example"]
            ca = ["/a.crt", "b.crt"]
            client = [["c.cert", "c.key"], "both.pem"]
            [host."https://m.example".header]
            x-one = "1"
            x-two = ["2", "3"]
            "#,
            &[
                "Https m.example/v2/library/a push",
                "Https r.example/v2/library/a push",
            ],
        );
        let tls = &endpoints[0].tls;
        assert_eq!(tls.authorities[0], Path::new("/a.crt"));
        assert!(tls.authorities[1].ends_with("r.example/b.crt"));
        assert!(
            tls.key_pairs[0].key.ends_with("c.key") && tls.key_pairs[1].key.ends_with("both.pem")
        );
        assert_eq!(endpoints[0].headers.len(), 3);
        assert_eq!(endpoints[0].credentials, "m.example");
        assert!(endpoints[1].tls.authorities[0].ends_with("r.example/ca.crt"));
    }

    #[test]
    fn a_directory_of_certificates_is_enough() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("r.example:5000");
        std::fs::create_dir(&directory).unwrap();
        for name in ["ca.crt", "b.cert", "b.key", "lonely.cert"] {
            std::fs::write(directory.join(name), "").unwrap();
        }
        let file = read(&[root.path().to_owned()], "r.example:5000")
            .unwrap()
            .unwrap();
        let tls = &file.endpoints[0].tls;
        assert_eq!((tls.authorities.len(), tls.key_pairs.len()), (1, 1));
        assert!(
            read(&[root.path().to_owned()], "other.example")
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn mistakes_name_their_file() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("r.example");
        std::fs::create_dir(&directory).unwrap();
        for text in [
            "server = ",
            "[host.\"ftp://x\"]",
            "[host.\"https://x\"]\ncapabilities = [\"fly\"]",
        ] {
            std::fs::write(directory.join("hosts.toml"), text).unwrap();
            let error = read(&[root.path().to_owned()], "r.example")
                .unwrap_err()
                .to_string();
            assert!(error.contains("hosts.toml"), "{error}");
        }
    }
}
