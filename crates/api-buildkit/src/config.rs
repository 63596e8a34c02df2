//! `buildkitd.toml`: the keys of it that mean something here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::NetworkMode;
use store::{Space, SpaceLimits};
use toml::{Table, Value};

use crate::attestations::read_environment;
use crate::error::ServeError;
use crate::listen::Tls;
use crate::serve::HistoryLimits;

/// What a configuration file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Where to listen (`[grpc] address`).
    pub addresses: Vec<String>,
    /// How TCP is protected (`[grpc.tls]`).
    pub tls: Option<Tls>,
    /// Who owns sockets (`[grpc] uid` and `gid`).
    pub socket_user: Option<u32>,
    pub socket_group: Option<u32>,
    /// What clients may ask for (`insecure-entitlements`).
    pub entitlements: Vec<String>,
    /// The state directory.
    pub root: Option<String>,
    /// Steps at once (`[worker.oci] max-parallelism`).
    pub max_parallelism: Option<usize>,
    /// The control group of steps (`[worker.oci] defaultCgroupParent`).
    pub cgroup_parent: Option<String>,
    /// The network of steps (`[worker.oci] networkMode`).
    pub network: Option<NetworkMode>,
    /// The space the store may take (`[worker.oci] gc`, `reservedSpace`, `maxUsedSpace`, `minFreeSpace`).
    pub space: Option<SpaceLimits>,
    /// What is kept of builds (`[history]`).
    pub history: HistoryLimits,
    /// What is said of this builder in provenance (the files of `provenanceEnvDir`).
    pub provenance_environment: serde_json::Map<String, serde_json::Value>,
    /// What is not understood, or means nothing here.
    pub warnings: Vec<Warning>,
}

/// A key that was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    pub key: String,
}

impl Config {
    /// Reads a file. The tables `registry` are the registry client's, and are only passed over here.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ServeError> {
        let invalid = |reason: String| ServeError::Config {
            path: path.to_owned(),
            reason,
        };
        let file: Table = toml::from_str(text).map_err(|error| invalid(error.to_string()))?;
        let mut config = Self::default();
        for (key, value) in &file {
            match (key.as_str(), value) {
                ("registry", Value::Table(_)) | ("debug" | "trace", Value::Boolean(_)) => {}
                // The command line's own tables, which it reads itself.
                ("gc" | "run", Value::Table(_)) => {}
                ("history", Value::Table(history)) => config.read_history(history, &invalid)?,
                ("root", Value::String(root)) => config.root = Some(root.clone()),
                ("provenanceEnvDir", Value::String(folder)) => {
                    config.provenance_environment = read_environment(Path::new(folder))
                        .map_err(|error| invalid(format!("{key} {folder:?}: {error}")))?;
                }
                ("insecure-entitlements", value) => {
                    config.entitlements = texts(value)
                        .ok_or_else(|| invalid(format!("{key} is no list of names")))?;
                }
                ("grpc", Value::Table(grpc)) => config.read_grpc(grpc, &invalid)?,
                ("worker", Value::Table(workers)) => config.read_workers(workers, &invalid)?,
                (key, _) => config.warn(key.to_owned()),
            }
        }
        Ok(config)
    }

    fn read_grpc(
        &mut self,
        grpc: &Table,
        invalid: &dyn Fn(String) -> ServeError,
    ) -> Result<(), ServeError> {
        let id = |name: &str, value: &Value| {
            let number = value.as_integer().and_then(|number| number.try_into().ok());
            number.ok_or_else(|| invalid(format!("grpc.{name} is no id")))
        };
        for (key, value) in grpc {
            match (key.as_str(), value) {
                ("address", value) => {
                    self.addresses = texts(value).ok_or_else(|| {
                        invalid("grpc.address is no list of addresses".to_owned())
                    })?;
                }
                ("uid", value) => self.socket_user = Some(id("uid", value)?),
                ("gid", value) => self.socket_group = Some(id("gid", value)?),
                ("tls", Value::Table(tls)) => self.read_tls(tls, invalid)?,
                (key, _) => self.warn(format!("grpc.{key}")),
            }
        }
        Ok(())
    }

    fn read_tls(
        &mut self,
        table: &Table,
        invalid: &dyn Fn(String) -> ServeError,
    ) -> Result<(), ServeError> {
        let mut files = [None, None, None];
        for (key, value) in table {
            let place = match key.as_str() {
                "cert" => 0,
                "key" => 1,
                "ca" => 2,
                key => {
                    self.warn(format!("grpc.tls.{key}"));
                    continue;
                }
            };
            let path = value.as_str();
            let path = path.ok_or_else(|| invalid(format!("grpc.tls.{key} is no path")))?;
            files[place] = Some(PathBuf::from(path)).filter(|_| !path.is_empty());
        }
        self.tls = match files {
            [None, None, None] => None,
            [Some(certificate), Some(key), client_authority] => Some(Tls {
                certificate,
                key,
                client_authority,
            }),
            _ => {
                let reason = "grpc.tls needs both cert and key";
                return Err(invalid(reason.to_owned()));
            }
        };
        Ok(())
    }

    fn read_workers(
        &mut self,
        workers: &Table,
        invalid: &dyn Fn(String) -> ServeError,
    ) -> Result<(), ServeError> {
        for (name, worker) in workers {
            let (Value::Table(worker), "oci") = (worker, name.as_str()) else {
                self.warn(format!("worker.{name}"));
                continue;
            };
            self.read_worker(worker, invalid)?;
        }
        Ok(())
    }

    fn read_worker(
        &mut self,
        worker: &Table,
        invalid: &dyn Fn(String) -> ServeError,
    ) -> Result<(), ServeError> {
        let mut space = SpaceLimits::NONE;
        let mut collects = true;
        for (key, value) in worker {
            match (key.as_str(), value) {
                ("max-parallelism", Value::Integer(number)) => {
                    let number = usize::try_from(*number).map_err(|_| {
                        invalid("worker.oci.max-parallelism is negative".to_owned())
                    })?;
                    self.max_parallelism = (number > 0).then_some(number);
                }
                ("defaultCgroupParent", Value::String(parent)) => {
                    self.cgroup_parent = Some(parent.clone()).filter(|parent| !parent.is_empty());
                }
                ("networkMode", Value::String(mode)) => {
                    self.network = Some(match mode.as_str() {
                        "" | "auto" => NetworkMode::Auto,
                        "bridge" => NetworkMode::Bridge,
                        "host" => NetworkMode::Host,
                        "none" => NetworkMode::None,
                        other => {
                            let reason = format!(
                                "worker.oci.networkMode {other:?} cannot be had here; there are auto, bridge, host and none"
                            );
                            return Err(invalid(reason));
                        }
                    });
                }
                ("gc", Value::Boolean(gc)) => collects = *gc,
                ("reservedSpace" | "gckeepstorage", value) => {
                    space.reserved = space_of(key, value, invalid)?
                }
                ("maxUsedSpace", value) => space.max_used = space_of(key, value, invalid)?,
                ("minFreeSpace", value) => space.min_free = space_of(key, value, invalid)?,
                ("enabled", Value::Boolean(true)) => {}
                (key, _) => self.warn(format!("worker.oci.{key}")),
            }
        }
        if let (Some(reserved), None, None) = (space.reserved, space.max_used, space.min_free) {
            // By itself it is what BuildKit brings the store down to.
            space.max_used = Some(reserved);
        }
        self.space = match collects {
            false => Some(SpaceLimits::NONE),
            true if space == SpaceLimits::NONE => None,
            true => Some(space),
        };
        Ok(())
    }

    fn read_history(
        &mut self,
        history: &Table,
        invalid: &dyn Fn(String) -> ServeError,
    ) -> Result<(), ServeError> {
        for (key, value) in history {
            match (key.as_str(), value) {
                ("maxEntries", Value::Integer(number)) => {
                    let number = usize::try_from(*number);
                    let negative = || invalid("history.maxEntries is negative".to_owned());
                    self.history.entries = Some(number.map_err(|_| negative())?);
                }
                ("maxAge", value) => {
                    let age = age(value).ok_or_else(|| {
                        invalid(format!(
                            "history.maxAge {value} is no duration such as \"48h\""
                        ))
                    })?;
                    self.history.age = Some(age);
                }
                // The command line's own.
                ("max-builds" | "max-log-space" | "max-age", _) => {}
                (key, _) => self.warn(format!("history.{key}")),
            }
        }
        Ok(())
    }

    fn warn(&mut self, key: String) {
        self.warnings.push(Warning { key });
    }
}

/// Reads an amount of space: bytes, or text such as `10GB` and `20%`.
fn space_of(
    key: &str,
    value: &Value,
    invalid: &dyn Fn(String) -> ServeError,
) -> Result<Option<Space>, ServeError> {
    let space = match value {
        Value::Integer(bytes) => u64::try_from(*bytes)
            .map(Space::Bytes)
            .map_err(|_| format!("{bytes} is negative")),
        Value::String(text) => text.parse::<Space>(),
        other => Err(format!("{other} is no amount of space")),
    };
    space
        .map(Some)
        .map_err(|reason| invalid(format!("worker.oci.{key}: {reason}")))
}

/// Reads seconds, or a sum of amounts such as `1h30m`.
fn age(value: &Value) -> Option<Duration> {
    let seconds = match value {
        Value::Integer(seconds) => u64::try_from(*seconds).ok()?,
        Value::String(text) => {
            let mut seconds = 0_u64;
            let mut rest = text.as_str();
            while !rest.is_empty() {
                let end = rest
                    .find(|c: char| !c.is_ascii_digit())
                    .unwrap_or(rest.len());
                let number: u64 = rest[..end].parse().ok()?;
                let unit = match rest[end..].chars().next() {
                    None | Some('s') => 1,
                    Some('m') => 60,
                    Some('h') => 3600,
                    Some('d') => 86_400,
                    Some(_) => return None,
                };
                seconds = seconds.checked_add(number.checked_mul(unit)?)?;
                rest = rest.get(end + 1..).unwrap_or_default();
            }
            seconds
        }
        _ => return None,
    };
    Some(Duration::from_secs(seconds))
}

fn texts(value: &Value) -> Option<Vec<String>> {
    let list = value.as_array()?.iter();
    list.map(|item| item.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_keys_are_read_and_others_named() {
        let text = r#"
            debug = true
            insecure-entitlements = ["network.host"]
            other = 1
            [grpc]
            address = ["unix:///run/x.sock"]
            uid = 0
            gid = 7
            debugAddress = "0.0.0.0:6060"
            [grpc.tls]
            cert = "/c.pem"
            key = "/k.pem"
            ca = "/ca.pem"
            [worker.oci]
            max-parallelism = 3
            gc = true
            maxUsedSpace = "10GB"
            reservedSpace = 4096
            defaultCgroupParent = "builds"
            networkMode = "bridge"
            snapshotter = "overlayfs"
            [history]
            maxAge = "1h30m"
            maxEntries = 7
            [gc]
            enabled = true
            [worker.containerd]
            enabled = false
            [registry."docker.io"]
            mirrors = ["localhost:5000"]
        "#;
        let config = Config::parse(Path::new("x.toml"), text).unwrap();
        assert_eq!(config.entitlements, ["network.host"]);
        assert_eq!(config.addresses, ["unix:///run/x.sock"]);
        assert_eq!(
            (config.socket_user, config.socket_group),
            (Some(0), Some(7))
        );
        assert_eq!(
            config.tls,
            Some(Tls {
                certificate: "/c.pem".into(),
                key: "/k.pem".into(),
                client_authority: Some("/ca.pem".into()),
            })
        );
        let mut keys: Vec<&str> = config
            .warnings
            .iter()
            .map(|warning| warning.key.as_str())
            .collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            [
                "grpc.debugAddress",
                "other",
                "worker.containerd",
                "worker.oci.snapshotter"
            ]
        );
        let space = config.space.expect("limits");
        assert_eq!(space.max_used, Some(Space::Bytes(10 << 30)));
        assert_eq!(space.reserved, Some(Space::Bytes(4096)));
        assert_eq!(config.cgroup_parent.as_deref(), Some("builds"));
        assert_eq!(config.network, Some(NetworkMode::Bridge));
        let history = HistoryLimits {
            entries: Some(7),
            age: Some(Duration::from_secs(5400)),
        };
        assert_eq!(config.history, history);
        let kept =
            Config::parse(Path::new("x.toml"), "[worker.oci]\ngckeepstorage = 4096").unwrap();
        let kept = kept.space.and_then(|space| space.max_used);
        assert_eq!(kept, Some(Space::Bytes(4096)));
        let off = Config::parse(Path::new("x.toml"), "[worker.oci]\ngc = false").unwrap();
        assert_eq!(off.space, Some(SpaceLimits::NONE));
    }

    #[test]
    fn what_cannot_be_meant_is_an_error() {
        for text in [
            "insecure-entitlements = 1",
            "[grpc]\naddress = \"x\"",
            "[worker.oci]\nmax-parallelism = -1",
            "[worker.oci]\nmaxUsedSpace = \"much\"",
            "[worker.oci]\nnetworkMode = \"cni\"",
            "[history]\nmaxAge = \"long\"",
            "[history]\nmaxEntries = -1",
            "[grpc]\nuid = -1",
            "[grpc.tls]\ncert = \"x\"",
            "[grpc.tls]\nca = 1",
            "= x",
        ] {
            assert!(Config::parse(Path::new("x.toml"), text).is_err(), "{text}");
        }
    }
}
