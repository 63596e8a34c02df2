//! From the name of a repository to the servers to ask, in their order.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use reqwest::header::{HeaderName, HeaderValue};

use super::containers::RegistriesConf;
use super::{KeyPair, Mirror, RegistrySettings, Settings, containerd};
use crate::RegistryError;

/// How a server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Https,
    Http,
    /// TLS, and plain HTTP where the server does not speak TLS.
    HttpsOrHttp,
    /// Plain HTTP, and TLS where the server wants it. TLS cannot come first: a simple HTTP server waits for the end of
    /// a line that a TLS greeting need not have.
    HttpOrHttps,
}

/// What a connection must present and trust. Files are read with the first connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TlsSettings {
    pub(crate) skip_verify: bool,
    pub(crate) authorities: Vec<PathBuf>,
    pub(crate) key_pairs: Vec<KeyPair>,
}

/// What an endpoint may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capabilities {
    pub(crate) pull: bool,
    pub(crate) resolve: bool,
    pub(crate) push: bool,
}

impl Capabilities {
    pub(crate) const ALL: Self = Self {
        pull: true,
        resolve: true,
        push: true,
    };
    pub(crate) const MIRROR: Self = Self {
        pull: true,
        resolve: true,
        push: false,
    };
}

/// One repository on one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Host and port.
    pub(crate) authority: String,
    pub(crate) scheme: Scheme,
    /// Where the API begins, `/v2/` or with a prefix; begins and ends with a slash.
    pub(crate) path: String,
    /// The repository as this server calls it, below `path`.
    pub(crate) repository: String,
    pub(crate) capabilities: Capabilities,
    pub(crate) tls: Arc<TlsSettings>,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// The registry that this one mirrors, told to it as containerd does.
    pub(crate) mirrored: Option<String>,
    /// The name under which credentials are kept.
    pub(crate) credentials: String,
}

impl Endpoint {
    /// Whether the API begins where it should, so that the names of repositories in token scopes are known.
    pub(crate) fn has_plain_path(&self) -> bool {
        self.path == "/v2/"
    }
}

/// Somewhere to find the content of a repository.
#[derive(Debug, Clone)]
pub(crate) enum Host {
    Remote(Arc<Endpoint>),
    Layout(PathBuf),
}

/// Answers where repositories are, reading each configuration file at most once.
#[derive(Debug)]
pub(crate) struct HostTable {
    settings: Arc<Settings>,
    registries_conf: Mutex<Option<Arc<RegistriesConf>>>,
    host_files: Mutex<BTreeMap<String, Option<Arc<containerd::HostFile>>>>,
}

/// What is wanted of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By<'a> {
    Tag(&'a str),
    Digest,
}

impl HostTable {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        Self {
            settings,
            registries_conf: Mutex::default(),
            host_files: Mutex::default(),
        }
    }

    /// Returns the servers to ask for a repository, mirrors first and the registry itself last.
    pub(crate) fn hosts(
        &self,
        registry: &str,
        repository: &str,
        by: By<'_>,
    ) -> Result<Vec<Host>, RegistryError> {
        let registry = canonical_registry(registry);
        if !is_authority(registry) {
            return Err(RegistryError::Settings {
                origin: format!("the name {registry}/{repository}"),
                message: format!("{registry:?} is not a host"),
            });
        }
        if let Some(settings) = self.settings.registries.get(registry) {
            return Ok(self.own(registry, repository, settings));
        }
        if let Some(file) = self.host_file(registry)? {
            return Ok(file.hosts(registry, repository));
        }
        self.registries_conf()?.hosts(registry, repository, by)
    }

    fn own(&self, registry: &str, repository: &str, settings: &RegistrySettings) -> Vec<Host> {
        let mut hosts = Vec::new();
        for mirror in &settings.mirrors {
            hosts.push(match mirror {
                Mirror::Layout(path) => Host::Layout(path.clone()),
                Mirror::Remote {
                    secure,
                    authority,
                    path,
                } => {
                    let own = self.settings.registries.get(canonical_registry(authority));
                    let mut endpoint =
                        own_endpoint(authority, own.unwrap_or(&RegistrySettings::default()));
                    if let Some(secure) = secure {
                        endpoint.scheme = if *secure { Scheme::Https } else { Scheme::Http };
                    }
                    endpoint.path = api_path(path);
                    repository.clone_into(&mut endpoint.repository);
                    endpoint.capabilities = Capabilities::MIRROR;
                    endpoint.mirrored = Some(registry.to_owned());
                    Host::Remote(Arc::new(endpoint))
                }
            });
        }
        let mut endpoint = own_endpoint(registry, settings);
        repository.clone_into(&mut endpoint.repository);
        hosts.push(Host::Remote(Arc::new(endpoint)));
        hosts
    }

    fn registries_conf(&self) -> Result<Arc<RegistriesConf>, RegistryError> {
        let mut slot = self.registries_conf.lock().expect("no panic while held");
        if let Some(conf) = &*slot {
            return Ok(Arc::clone(conf));
        }
        let conf = Arc::new(RegistriesConf::read(&self.settings.configuration)?);
        *slot = Some(Arc::clone(&conf));
        Ok(conf)
    }

    fn host_file(
        &self,
        registry: &str,
    ) -> Result<Option<Arc<containerd::HostFile>>, RegistryError> {
        let mut files = self.host_files.lock().expect("no panic while held");
        if let Some(file) = files.get(registry) {
            return Ok(file.clone());
        }
        let file = containerd::read(&self.settings.configuration.host_directories, registry)?
            .map(Arc::new);
        files.insert(registry.to_owned(), file.clone());
        Ok(file)
    }
}

fn own_endpoint(registry: &str, settings: &RegistrySettings) -> Endpoint {
    let mut endpoint = default_endpoint(registry);
    let trust = !settings.ca.is_empty() || !settings.tlsconfigdir.is_empty();
    endpoint.scheme = match settings.http {
        Some(true) if settings.insecure => Scheme::HttpOrHttps,
        Some(true) => Scheme::Http,
        Some(false) => Scheme::Https,
        None if trust => Scheme::Https,
        None if settings.insecure && endpoint.scheme == Scheme::Https => Scheme::HttpsOrHttp,
        None => endpoint.scheme,
    };
    let mut tls = TlsSettings {
        skip_verify: settings.insecure || (endpoint.tls.skip_verify && !trust),
        authorities: settings.ca.clone(),
        key_pairs: settings.keypair.clone(),
    };
    for directory in &settings.tlsconfigdir {
        containerd::add_certificates(directory, &mut tls);
    }
    endpoint.tls = Arc::new(tls);
    endpoint
}

/// Returns how a registry is reached that nobody said anything about; the repository is left empty.
pub(crate) fn default_endpoint(registry: &str) -> Endpoint {
    let canonical = canonical_registry(registry);
    let loopback = is_loopback(canonical);
    let (scheme, skip_verify) = match port(canonical) {
        _ if !loopback => (Scheme::Https, false),
        Some(80) => (Scheme::Http, true),
        Some(443) | None => (Scheme::HttpsOrHttp, true),
        Some(_) => (Scheme::HttpOrHttps, true),
    };
    Endpoint {
        authority: server(canonical).to_owned(),
        scheme,
        path: "/v2/".to_owned(),
        repository: String::new(),
        capabilities: Capabilities::ALL,
        tls: Arc::new(TlsSettings {
            skip_verify,
            ..TlsSettings::default()
        }),
        headers: Vec::new(),
        mirrored: None,
        credentials: canonical.to_owned(),
    }
}

/// Returns the one name for a registry that has several.
pub(crate) fn canonical_registry(name: &str) -> &str {
    match name {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "docker.io",
        name => name,
    }
}

/// Returns the server behind the name of a registry.
fn server(registry: &str) -> &str {
    match registry {
        "docker.io" => "registry-1.docker.io",
        registry => registry,
    }
}

/// Returns where the API begins on a mirror with a path: `prefix` comes after `/v2/`, unless the path says otherwise.
fn api_path(prefix: &str) -> String {
    match prefix {
        "" => "/v2/".to_owned(),
        prefix if prefix.split('/').any(|part| part == "v2") => format!("/{prefix}/"),
        prefix => format!("/v2/{prefix}/"),
    }
}

fn port(authority: &str) -> Option<u16> {
    let (_, port) = split_authority(authority);
    port.and_then(|port| port.parse().ok())
}

fn split_authority(authority: &str) -> (&str, Option<&str>) {
    let bracket = authority.rfind(']').unwrap_or(0);
    match authority[bracket..].rfind(':') {
        Some(colon) => (
            &authority[..bracket + colon],
            Some(&authority[bracket + colon + 1..]),
        ),
        None => (authority, None),
    }
}

/// Whether a host, with or without port, is this machine.
pub(crate) fn is_loopback(authority: &str) -> bool {
    let (host, _) = split_authority(authority);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => {
            host.eq_ignore_ascii_case("localhost")
                || host.to_ascii_lowercase().ends_with(".localhost")
        }
    }
}

/// Whether `text` is a host with or without a port and nothing more.
pub(crate) fn is_authority(text: &str) -> bool {
    let (host, port) = split_authority(text);
    let port_is_valid = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0));
    let host_is_valid = match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
        }
    };
    port_is_valid && host_is_valid
}

/// Whether `text` is a path that can go into a URL as it is.
pub(crate) fn is_path(text: &str) -> bool {
    text.is_empty()
        || text.split('/').all(|part| {
            !matches!(part, "" | "." | "..")
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"._-~".contains(&byte))
        })
}

#[cfg(test)]
pub(super) fn describe(hosts: &[Host]) -> Vec<String> {
    let describe = |host: &Host| match host {
        Host::Layout(path) => format!("layout {}", path.display()),
        Host::Remote(endpoint) => format!(
            "{:?} {}{}{}{}{}",
            endpoint.scheme,
            endpoint.authority,
            endpoint.path,
            endpoint.repository,
            if endpoint.tls.skip_verify {
                " insecure"
            } else {
                ""
            },
            if endpoint.capabilities.push {
                " push"
            } else {
                ""
            },
        ),
    };
    hosts.iter().map(describe).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn check(toml: &str, registry: &str, repository: &str, expect: &[&str]) {
        let mut settings = Settings::default();
        settings.read_toml(Path::new("/etc/l.toml"), toml).unwrap();
        let table = HostTable::new(Arc::new(settings));
        let hosts = table
            .hosts(registry, repository, By::Tag("latest"))
            .unwrap();
        assert_eq!(describe(&hosts), expect);
    }

    #[test]
    fn a_registry_without_settings_is_spoken_to_with_tls_unless_it_is_here() {
        check(
            "",
            "docker.io",
            "library/busybox",
            &["Https registry-1.docker.io/v2/library/busybox push"],
        );
        check("", "a.example", "b", &["Https a.example/v2/b push"]);
        check(
            "",
            "localhost:5000",
            "b",
            &["HttpOrHttps localhost:5000/v2/b insecure push"],
        );
        check(
            "",
            "127.3.2.1",
            "b",
            &["HttpsOrHttp 127.3.2.1/v2/b insecure push"],
        );
        check("", "[::1]:80", "b", &["Http [::1]:80/v2/b insecure push"]);
        check("", "10.0.0.1:5000", "b", &["Https 10.0.0.1:5000/v2/b push"]);
    }

    #[test]
    fn mirrors_come_first_and_are_never_pushed_to() {
        check(
            r#"
            [registry."docker.io"]
            mirrors = ["http://127.0.0.1:5000", "oci-layout:/i", "m.example/hub", "https://x.example/a/v2/b"]
            [registry."m.example"]
            insecure = true
            "#,
            "docker.io",
            "library/busybox",
            &[
                "Http 127.0.0.1:5000/v2/library/busybox insecure",
                "layout /i",
                "HttpsOrHttp m.example/v2/hub/library/busybox insecure",
                "Https x.example/a/v2/b/library/busybox",
                "Https registry-1.docker.io/v2/library/busybox push",
            ],
        );
    }

    #[test]
    fn trust_given_for_a_loopback_registry_is_not_skipped() {
        let toml = "[registry.\"localhost:5000\"]\nca = [\"ca.pem\"]\n";
        check(
            toml,
            "localhost:5000",
            "b",
            &["Https localhost:5000/v2/b push"],
        );
        let toml = "[registry.\"h\"]\nhttp = true\n";
        check(toml, "h", "b", &["Http h/v2/b push"]);
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for name in ["", "a/b", "a@b", "a:0", "a:x", "[::1", "a b", "user:pw@h"] {
            assert!(!is_authority(name), "{name}");
        }
        assert!(is_authority("a-b.example:443"));
        assert!(is_authority("[fe80::1]"));
    }

    #[test]
    fn this_machine_has_many_names() {
        for name in [
            "localhost",
            "LOCALHOST:1",
            "127.0.0.1",
            "127.255.0.9:5000",
            "[::1]:5000",
            "a.localhost",
        ] {
            assert!(is_loopback(name), "{name}");
        }
        for name in [
            "localhost.example",
            "128.0.0.1",
            "127.0.0.1.example",
            "[::2]",
        ] {
            assert!(!is_loopback(name), "{name}");
        }
    }
}
