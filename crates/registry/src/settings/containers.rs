//! `registries.conf` (containers-registries.conf(5), version 2) of Podman, Buildah and Skopeo.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::hosts::{By, default_endpoint, is_authority, is_path};
use super::{
    Capabilities, ConfigurationSources, Endpoint, Host, Scheme, TlsSettings, read_optional,
    settings_error,
};
use crate::RegistryError;

/// The tables of the main file and its drop-ins, one a prefix.
#[derive(Debug, Default)]
pub(super) struct RegistriesConf {
    registries: Vec<Registry>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Registry {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    #[serde(rename = "mirror-by-digest-only")]
    mirror_by_digest_only: bool,
    mirror: Vec<RegistryMirror>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct RegistryMirror {
    location: String,
    insecure: bool,
    #[serde(rename = "pull-from-mirror")]
    pull_from_mirror: PullFromMirror,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
enum PullFromMirror {
    #[default]
    #[serde(rename = "all", alias = "")]
    All,
    #[serde(rename = "digest-only")]
    DigestOnly,
    #[serde(rename = "tag-only")]
    TagOnly,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    registry: Vec<Registry>,
}

impl RegistriesConf {
    pub(super) fn read(sources: &ConfigurationSources) -> Result<Self, RegistryError> {
        let mut conf = Self::default();
        for path in &sources.registries_conf {
            if let Some(text) = read_optional(path)? {
                conf.add(path, &text)?;
                break;
            }
        }
        for directory in &sources.registries_conf_directories {
            let Ok(entries) = std::fs::read_dir(directory) else {
                continue;
            };
            let mut paths: Vec<PathBuf> = entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .collect();
            paths.retain(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "conf")
            });
            paths.sort();
            for path in paths {
                if let Some(text) = read_optional(&path)? {
                    conf.add(&path, &text)?;
                }
            }
        }
        Ok(conf)
    }

    fn add(&mut self, path: &Path, text: &str) -> Result<(), RegistryError> {
        let file: File = toml::from_str(text).map_err(|error| settings_error(path, &error))?;
        for mut registry in file.registry {
            if registry.prefix.is_empty() {
                registry.prefix.clone_from(&registry.location);
            }
            if registry.prefix.is_empty() {
                return Err(settings_error(
                    path,
                    &"a registry has neither prefix nor location",
                ));
            }
            let locations = registry
                .mirror
                .iter()
                .map(|mirror| &mirror.location)
                .chain([&registry.location]);
            for location in locations.filter(|location| !location.is_empty()) {
                let (authority, prefix) = location.split_once('/').unwrap_or((location, ""));
                if !is_authority(authority) || !is_path(prefix) {
                    return Err(settings_error(
                        path,
                        &format!("{location:?} is not a location"),
                    ));
                }
            }
            self.registries
                .retain(|known| known.prefix != registry.prefix);
            self.registries.push(registry);
        }
        Ok(())
    }

    /// Returns the servers for a repository, by the table with the longest matching prefix.
    pub(super) fn hosts(
        &self,
        registry: &str,
        repository: &str,
        by: By<'_>,
    ) -> Result<Vec<Host>, RegistryError> {
        let name = format!("{registry}/{repository}");
        let versioned = match by {
            By::Tag(tag) => format!("{name}:{tag}"),
            By::Digest => format!("{name}@"),
        };
        let chosen = self
            .registries
            .iter()
            .filter_map(|table| Some((table, matched_length(&table.prefix, &versioned)?)))
            .max_by_key(|(table, _)| table.prefix.len());
        let Some((table, matched)) = chosen else {
            return Ok(vec![located(registry, repository, false)]);
        };
        if table.blocked {
            return Err(RegistryError::Settings {
                origin: "registries.conf".to_owned(),
                message: format!("{} is blocked for {name}", table.prefix),
            });
        }
        let rest = name.get(matched..).unwrap_or_default();
        let mut hosts = Vec::new();
        for mirror in &table.mirror {
            let usable = match (mirror.pull_from_mirror, by) {
                (_, By::Tag(_)) if table.mirror_by_digest_only => false,
                (PullFromMirror::DigestOnly, By::Tag(_))
                | (PullFromMirror::TagOnly, By::Digest) => false,
                _ => true,
            };
            if usable && let Some((host, path)) = split(&format!("{}{rest}", mirror.location)) {
                hosts.push(mirror_of(registry, located(host, path, mirror.insecure)));
            }
        }
        let location = match table.location.as_str() {
            "" => name,
            location => format!("{location}{rest}"),
        };
        let (host, path) = split(&location).ok_or_else(|| RegistryError::Settings {
            origin: "registries.conf".to_owned(),
            message: format!("{location:?} is not a repository"),
        })?;
        hosts.push(located(host, path, table.insecure));
        Ok(hosts)
    }
}

/// Returns how much of `name` a prefix covers, if it matches at all.
fn matched_length(prefix: &str, name: &str) -> Option<usize> {
    if let Some(domain) = prefix.strip_prefix('*') {
        let host = &name[..name.find('/')?];
        return (domain.starts_with('.') && host.ends_with(domain)).then_some(host.len());
    }
    let rest = name.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with(['/', ':', '@'])).then_some(prefix.len())
}

/// Splits a location; the registry itself has no path.
fn split(name: &str) -> Option<(&str, &str)> {
    let (host, path) = name.split_once('/').unwrap_or((name, ""));
    is_authority(host).then_some((host, path))
}

fn located(host: &str, repository: &str, insecure: bool) -> Host {
    let mut endpoint = default_endpoint(host);
    repository.clone_into(&mut endpoint.repository);
    if insecure {
        if endpoint.scheme == Scheme::Https {
            endpoint.scheme = Scheme::HttpsOrHttp;
        }
        endpoint.tls = Arc::new(TlsSettings {
            skip_verify: true,
            ..TlsSettings::default()
        });
    }
    Host::Remote(Arc::new(endpoint))
}

fn mirror_of(registry: &str, host: Host) -> Host {
    match host {
        Host::Remote(endpoint) => Host::Remote(Arc::new(Endpoint {
            capabilities: Capabilities::MIRROR,
            mirrored: Some(registry.to_owned()),
            ..Endpoint::clone(&endpoint)
        })),
        layout @ Host::Layout(_) => layout,
    }
}

#[cfg(test)]
mod tests {
    use super::super::hosts::describe;
    use super::*;

    const CONF: &str = r#"
        unqualified-search-registries = ["docker.io"]
        short-name-mode = "enforcing"
        [[registry]]
        location = "docker.io"
        [[registry.mirror]]
        location = "m.example/hub"
        [[registry.mirror]]
        location = "d.example:5000"
        insecure = true
        pull-from-mirror = "digest-only"
        [[registry]]
        prefix = "docker.io/library"
        location = "inner.example/official"
        insecure = true
        [[registry]]
        prefix = "*.corp.example"
        mirror-by-digest-only = true
        [[registry.mirror]]
        location = "cache.example/corp"
        [[registry]]
        prefix = "bad.example/x"
        blocked = true
    "#;

    fn check(name: &str, by: By<'_>, expect: &[&str]) {
        let mut conf = RegistriesConf::default();
        conf.add(Path::new("registries.conf"), CONF).unwrap();
        let (registry, repository) = name.split_once('/').unwrap();
        assert_eq!(
            describe(&conf.hosts(registry, repository, by).unwrap()),
            expect,
            "{name}"
        );
    }

    #[test]
    fn the_longest_prefix_is_rewritten_to_its_locations() {
        let tag = By::Tag("latest");
        check(
            "docker.io/grafana/loki",
            tag,
            &[
                "Https m.example/v2/hub/grafana/loki",
                "Https registry-1.docker.io/v2/grafana/loki push",
            ],
        );
        check(
            "docker.io/grafana/loki",
            By::Digest,
            &[
                "Https m.example/v2/hub/grafana/loki",
                "HttpsOrHttp d.example:5000/v2/grafana/loki insecure",
                "Https registry-1.docker.io/v2/grafana/loki push",
            ],
        );
        check(
            "docker.io/library/a",
            tag,
            &["HttpsOrHttp inner.example/v2/official/a insecure push"],
        );
        check(
            "docker.io/libraryx/a",
            tag,
            &[
                "Https m.example/v2/hub/libraryx/a",
                "Https registry-1.docker.io/v2/libraryx/a push",
            ],
        );
        check("a.corp.example/b", tag, &["Https a.corp.example/v2/b push"]);
        check(
            "a.corp.example/b",
            By::Digest,
            &[
                "Https cache.example/v2/corp/b",
                "Https a.corp.example/v2/b push",
            ],
        );
        check("other.example/b", tag, &["Https other.example/v2/b push"]);
        check("bad.example/xy", tag, &["Https bad.example/v2/xy push"]);
    }

    #[test]
    fn a_registry_is_found_without_a_repository() {
        check(
            "other.example/",
            By::Digest,
            &["Https other.example/v2/ push"],
        );
        check(
            "docker.io/",
            By::Tag("latest"),
            &[
                "Https m.example/v2/hub/",
                "Https registry-1.docker.io/v2/ push",
            ],
        );
    }

    #[test]
    fn a_blocked_registry_is_an_error() {
        let mut conf = RegistriesConf::default();
        conf.add(Path::new("registries.conf"), CONF).unwrap();
        let error = conf.hosts("bad.example", "x/y", By::Digest).unwrap_err();
        assert!(error.to_string().contains("blocked"), "{error}");
    }

    #[test]
    fn drop_ins_replace_tables_of_the_same_prefix() {
        let root = tempfile::tempdir().unwrap();
        let main = root.path().join("registries.conf");
        let drop_ins = root.path().join("registries.conf.d");
        std::fs::create_dir(&drop_ins).unwrap();
        std::fs::write(
            &main,
            "[[registry]]\nlocation = \"a.example\"\ninsecure = true\n",
        )
        .unwrap();
        std::fs::write(
            drop_ins.join("9.conf"),
            "[[registry]]\nprefix = \"a.example\"\nlocation = \"b.example\"\n",
        )
        .unwrap();
        std::fs::write(drop_ins.join("9.txt"), "not toml").unwrap();
        let sources = ConfigurationSources {
            registries_conf: vec![root.path().join("none"), main],
            registries_conf_directories: vec![drop_ins],
            host_directories: Vec::new(),
        };
        let hosts = RegistriesConf::read(&sources)
            .unwrap()
            .hosts("a.example", "x", By::Digest)
            .unwrap();
        assert_eq!(describe(&hosts), ["Https b.example/v2/x push"]);
    }
}
