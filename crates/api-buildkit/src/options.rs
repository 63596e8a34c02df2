//! Reads the attributes of the Dockerfile frontend.

use std::collections::BTreeMap;

use dockerfile::parse_bool;
use engine::{Compression, LayerOptions};
use frontend::{NoCache, Options, ResolveMode};
use llb::{HostIp, LinuxResources, NetworkMode, Ulimit};
use oci::Platform;

use crate::error::Failure;

/// Attributes by name.
pub(crate) type Attributes = BTreeMap<String, String>;

/// Returns the attributes that start with a prefix, without it.
pub(crate) fn with_prefix(attrs: &Attributes, prefix: &str) -> BTreeMap<String, String> {
    let pairs = attrs.iter();
    pairs
        .filter_map(|(name, value)| Some((name.strip_prefix(prefix)?.to_owned(), value.clone())))
        .collect()
}

/// Reads everything that is not about contexts.
pub(crate) fn options(attrs: &Attributes) -> Result<Options, Failure> {
    let text = |name: &str| attrs.get(name).map_or("", String::as_str);
    let platforms = list(text("platform"))
        .map(|text| {
            let platform: Result<Platform, _> = text.parse();
            platform
                .map(|platform| platform.normalized())
                .map_err(|error| {
                    Failure::unknown(format!("failed to parse target platform {text}: {error}"))
                })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let multi_platform = match text("multi-platform") {
        "" => platforms.len() > 1,
        value => {
            let asked = parse_bool(value).ok_or_else(|| {
                Failure::unknown(format!("invalid boolean value for multi-platform: {value}"))
            })?;
            if !asked && platforms.len() > 1 {
                return Err(Failure::unknown(
                    "conflicting config: returning multiple target platforms is not allowed",
                ));
            }
            asked
        }
    };
    let options = Options {
        target: attrs.get("target").filter(|name| !name.is_empty()).cloned(),
        build_args: with_prefix(attrs, "build-arg:"),
        labels: with_prefix(attrs, "label:"),
        platforms,
        build_platforms: vec![Platform::host()],
        multi_platform,
        shm_size: match text("shm-size") {
            "" => 0,
            value => value.parse().map_err(|error| {
                Failure::unknown(format!("failed to parse shm size {value:?}: {error}"))
            })?,
        },
        ulimits: list(text("ulimit")).map(ulimit).collect::<Result<_, _>>()?,
        extra_hosts: list(text("add-hosts"))
            .map(host)
            .collect::<Result<_, _>>()?,
        network: match text("force-network-mode") {
            "" | "sandbox" | "default" => NetworkMode::Sandbox,
            "none" => NetworkMode::None,
            "host" => NetworkMode::Host,
            other => return Err(Failure::unknown(format!("invalid netmode {other}"))),
        },
        hostname: text("hostname").to_owned(),
        cgroup_parent: text("cgroup-parent").to_owned(),
        resources: resources(attrs)?,
        no_cache: match attrs.get("no-cache").map(String::as_str) {
            None => NoCache::None,
            Some("") => NoCache::All,
            Some(names) => NoCache::Stages(names.split(',').map(str::to_owned).collect()),
        },
        resolve_mode: match text("image-resolve-mode") {
            "" | "default" => ResolveMode::Default,
            "pull" => ResolveMode::Pull,
            "local" => ResolveMode::Local,
            other => {
                return Err(Failure::unknown(format!(
                    "invalid image-resolve-mode: {other}"
                )));
            }
        },
        ..Options::default()
    };
    options
        .heeding_build_args()
        .map_err(|found| Failure::of_dockerfile("Dockerfile", b"", &found))
}

/// Splits what Go's clients join with commas; quotes are taken off.
fn list(text: &str) -> impl Iterator<Item = &str> {
    let parts = text.split(',').map(|part| part.trim_matches('"'));
    parts.filter(|part| !part.is_empty())
}

/// Reads a truth of an exporter; the bare name says yes.
pub(crate) fn flag(attrs: &Attributes, name: &str) -> Result<Option<bool>, Failure> {
    match attrs.get(name).map(String::as_str) {
        None => Ok(None),
        Some("") => Ok(Some(true)),
        Some(value) => parse_bool(value).map(Some).ok_or_else(|| {
            Failure::unknown(format!("non-bool value specified for {name}: {value}"))
        }),
    }
}

/// Reads how an exporter is to write layers.
pub(crate) fn layers(attrs: &Attributes) -> Result<LayerOptions, Failure> {
    let text = |name: &str| attrs.get(name).map(String::as_str);
    Ok(LayerOptions {
        compression: match text("compression") {
            None | Some("gzip") => Compression::Gzip,
            Some("zstd") => Compression::Zstd,
            Some("uncompressed") => Compression::Uncompressed,
            Some(other) => {
                return Err(Failure::unknown(format!(
                    "unsupported layer compression type: {other}"
                )));
            }
        },
        level: match text("compression-level") {
            None => None,
            Some(text) => Some(text.parse().map_err(|_| {
                Failure::unknown(format!(
                    "non-integer value {text} specified for compression-level"
                ))
            })?),
        },
        force: flag(attrs, "force-compression")?.unwrap_or(false),
        oci_media_types: flag(attrs, "oci-mediatypes")?,
        rewrite_timestamp: Some(flag(attrs, "rewrite-timestamp")?.unwrap_or(false)),
    })
}

fn ulimit(text: &str) -> Result<Ulimit, Failure> {
    let invalid = || Failure::unknown(format!("failed to parse ulimit: invalid {text:?}"));
    let (name, limits) = text.split_once('=').ok_or_else(invalid)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    Ok(Ulimit {
        name: name.to_owned(),
        soft: soft.parse().map_err(|_| invalid())?,
        hard: hard.parse().map_err(|_| invalid())?,
    })
}

fn host(text: &str) -> Result<HostIp, Failure> {
    let (name, ip) = text
        .split_once('=')
        .ok_or_else(|| Failure::unknown(format!("invalid key-value pair {text}")))?;
    let ip: std::net::IpAddr = ip
        .parse()
        .map_err(|_| Failure::unknown(format!("failed to parse IP {ip}")))?;
    Ok(HostIp {
        host: name.to_lowercase(),
        ip: ip.to_string(),
    })
}

fn resources(attrs: &Attributes) -> Result<Option<LinuxResources>, Failure> {
    fn number<T: std::str::FromStr + Default>(
        attrs: &Attributes,
        name: &str,
        valid: impl Fn(&T) -> bool,
    ) -> Result<T, Failure> {
        match attrs.get(name).filter(|value| !value.is_empty()) {
            None => Ok(T::default()),
            Some(text) => match text.parse::<T>() {
                Ok(value) if valid(&value) => Ok(value),
                _ => Err(Failure::unknown(format!("invalid {name} value: {text}"))),
            },
        }
    }
    let text = |name: &str| attrs.get(name).cloned().unwrap_or_default();
    let resources = LinuxResources {
        memory: number(attrs, "memory", |value: &i64| *value > 0)?,
        memory_swap: number(attrs, "memswap", |value: &i64| *value == -1 || *value > 0)?,
        cpu_shares: number(attrs, "cpushares", |value: &u64| *value > 0)?,
        cpu_period: number(attrs, "cpuperiod", |value: &u64| *value > 0)?,
        cpu_quota: number(attrs, "cpuquota", |value: &i64| *value > 0)?,
        cpuset_cpus: text("cpusetcpus"),
        cpuset_mems: text("cpusetmems"),
    };
    Ok((resources != LinuxResources::default()).then_some(resources))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pairs: &[(&str, &str)]) -> Result<Options, String> {
        let attrs = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        options(&attrs).map_err(|failure| failure.message)
    }

    #[test]
    fn attributes_become_options() {
        let options = check(&[
            ("target", "dev"),
            ("build-arg:A", "1"),
            ("label:l", "x"),
            ("platform", "linux/amd64,linux/arm64"),
            ("add-hosts", "Foo=1.2.3.4"),
            ("ulimit", "nofile=1:2"),
            ("no-cache", "a,b"),
            ("shm-size", "64"),
        ])
        .unwrap();
        assert_eq!(options.target.as_deref(), Some("dev"));
        assert_eq!(options.build_args["A"], "1");
        assert_eq!(options.labels["l"], "x");
        assert!(options.multi_platform);
        assert_eq!(options.extra_hosts[0].host, "foo");
        assert_eq!((options.ulimits[0].soft, options.ulimits[0].hard), (1, 2));
        assert_eq!(
            options.no_cache,
            NoCache::Stages(vec!["a".to_owned(), "b".to_owned()])
        );
        assert_eq!(options.shm_size, 64);
        assert_eq!(check(&[("no-cache", "")]).unwrap().no_cache, NoCache::All);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_name() {
        for (name, value) in [
            ("platform", "???"),
            ("shm-size", "x"),
            ("ulimit", "nofile"),
            ("add-hosts", "a=b"),
            ("force-network-mode", "x"),
            ("image-resolve-mode", "x"),
            ("memory", "0"),
            ("multi-platform", "x"),
        ] {
            assert!(check(&[(name, value)]).is_err(), "{name}={value}");
        }
    }
}
