//! `buildkitd.toml`: the keys of it that mean something here.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::attestations::read_environment;
use crate::error::ServeError;
use crate::listen::Tls;

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

    fn warn(&mut self, key: String) {
        self.warnings.push(Warning { key });
    }
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
        assert_eq!(keys, ["grpc.debugAddress", "other", "worker"]);
    }

    #[test]
    fn what_cannot_be_meant_is_an_error() {
        for text in [
            "insecure-entitlements = 1",
            "[grpc]\naddress = \"x\"",
            "[grpc]\nuid = -1",
            "[grpc.tls]\ncert = \"x\"",
            "[grpc.tls]\nca = 1",
            "= x",
        ] {
            assert!(Config::parse(Path::new("x.toml"), text).is_err(), "{text}");
        }
    }
}
