//! The image config (image-spec, config.md) with Docker's extensions.

use std::collections::{BTreeMap, BTreeSet};

use serde::ser::{Error as _, SerializeMap};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::json::null_default;
use crate::{Digest, Platform, Timestamp};

/// The config of an image: what it runs on, how to run it, and of what it was made.
///
/// Written with its fields in sorted order, unknown ones among them, as BuildKit's exporter leaves them.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct ImageConfig {
    #[serde(default)]
    pub created: Option<Timestamp>,
    #[serde(default, deserialize_with = "null_default")]
    pub author: String,
    #[serde(flatten)]
    pub platform: Platform,
    #[serde(default, deserialize_with = "null_default")]
    pub config: ContainerConfig,
    #[serde(default, deserialize_with = "null_default")]
    pub rootfs: RootFs,
    #[serde(default, deserialize_with = "null_default")]
    pub history: Vec<History>,
    /// Fields not known here.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl ImageConfig {
    /// Returns the config of an image without layers, settings or history.
    pub fn new(platform: Platform) -> Self {
        Self {
            platform,
            ..Self::default()
        }
    }

    /// Drops the fields not known here, at every level.
    ///
    /// An image that is built on another takes over what its builder understands, no more: the rest (the container
    /// id of the old builder, its parent, …) describes the other image.
    #[must_use]
    pub fn without_unknown(mut self) -> Self {
        self.other.clear();
        self.config.other.clear();
        self.rootfs.other.clear();
        self.history
            .iter_mut()
            .for_each(|entry| entry.other.clear());
        self
    }

    fn fields(&self) -> serde_json::Result<BTreeMap<&str, Value>> {
        let mut fields: BTreeMap<&str, Value> = BTreeMap::new();
        for (name, value) in &self.other {
            fields.insert(name, value.clone());
        }
        let platform = &self.platform;
        fields.insert("architecture", platform.architecture.as_str().into());
        fields.insert("os", platform.os.as_str().into());
        for (name, text) in [
            ("author", &self.author),
            ("os.version", &platform.os_version),
            ("variant", &platform.variant),
        ] {
            if !text.is_empty() {
                fields.insert(name, text.as_str().into());
            }
        }
        if !platform.os_features.is_empty() {
            fields.insert("os.features", serde_json::to_value(&platform.os_features)?);
        }
        if self.created.is_some() {
            fields.insert("created", serde_json::to_value(self.created)?);
        }
        fields.insert("config", serde_json::to_value(&self.config)?);
        fields.insert("rootfs", serde_json::to_value(&self.rootfs)?);
        fields.insert("history", serde_json::to_value(&self.history)?);
        Ok(fields)
    }
}

impl Serialize for ImageConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields = self.fields().map_err(S::Error::custom)?;
        let mut map = serializer.serialize_map(Some(fields.len()))?;
        for (name, value) in &fields {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// How a container of an image is run (`config` in the document).
///
/// An empty text, list or map means not set. Hostname, StopTimeout and the like of old Docker builders stay in `other`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    #[serde(
        deserialize_with = "null_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub user: String,
    #[serde(with = "set", skip_serializing_if = "BTreeSet::is_empty")]
    pub exposed_ports: BTreeSet<String>,
    /// `NAME=value`, in order.
    #[serde(
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub env: Vec<String>,
    #[serde(
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub entrypoint: Vec<String>,
    #[serde(
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub cmd: Vec<String>,
    #[serde(with = "set", skip_serializing_if = "BTreeSet::is_empty")]
    pub volumes: BTreeSet<String>,
    #[serde(
        deserialize_with = "null_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub working_dir: String,
    #[serde(
        deserialize_with = "null_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: BTreeMap<String, String>,
    #[serde(
        deserialize_with = "null_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub stop_signal: String,
    /// Windows: `cmd` or `entrypoint` is one command line, already quoted.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_false")]
    pub args_escaped: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Instructions that run when another image is built on this one.
    #[serde(
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub on_build: Vec<String>,
    /// The shell of the shell forms of RUN, CMD and ENTRYPOINT.
    #[serde(
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub shell: Vec<String>,
    /// Fields not known here.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// How to see that a container is well. Durations are nanoseconds; zero means to inherit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `NONE`, `CMD` and arguments, `CMD-SHELL` and a command; empty to inherit.
    #[serde(
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub test: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: i64,
}

/// The layers of an image, uncompressed, lowest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFs {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(deserialize_with = "null_default")]
    pub diff_ids: Vec<Digest>,
    /// Fields not known here.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self {
            kind: "layers".to_owned(),
            diff_ids: Vec::new(),
            other: BTreeMap::new(),
        }
    }
}

/// One step in the making of an image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    #[serde(
        deserialize_with = "null_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub created_by: String,
    #[serde(
        deserialize_with = "null_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub author: String,
    #[serde(
        deserialize_with = "null_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub comment: String,
    /// The step made no layer.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_false")]
    pub empty_layer: bool,
    /// Fields not known here.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// Sets stand in JSON as objects whose values are empty objects.
mod set {
    use super::*;

    pub(super) fn serialize<S: Serializer>(
        set: &BTreeSet<String>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(
            set.iter()
                .map(|name| (name, BTreeMap::<String, String>::new())),
        )
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeSet<String>, D::Error> {
        let map = Option::<BTreeMap<String, serde::de::IgnoredAny>>::deserialize(deserializer)?;
        Ok(map.unwrap_or_default().into_keys().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Document, Parsed};

    fn written(config: &ImageConfig) -> String {
        String::from_utf8(config.to_bytes()).unwrap()
    }

    #[test]
    fn fields_are_written_in_the_order_others_write_them() {
        let config = ImageConfig {
            created: Some(Timestamp::EPOCH),
            config: ContainerConfig {
                exposed_ports: ["80/tcp".to_owned()].into(),
                env: vec!["PATH=/bin".to_owned()],
                cmd: vec!["sh".to_owned()],
                working_dir: "/".to_owned(),
                labels: [
                    ("b".to_owned(), "2".to_owned()),
                    ("a".to_owned(), "<1>".to_owned()),
                ]
                .into(),
                healthcheck: Some(Healthcheck {
                    test: vec!["CMD-SHELL".to_owned(), "true".to_owned()],
                    interval: 5_000_000_000,
                    retries: 3,
                    ..Healthcheck::default()
                }),
                on_build: vec!["RUN true".to_owned()],
                shell: vec!["/bin/sh".to_owned(), "-c".to_owned()],
                ..ContainerConfig::default()
            },
            history: vec![History {
                created_by: "RUN a && b".to_owned(),
                empty_layer: true,
                ..History::default()
            }],
            ..ImageConfig::new("linux/arm/v7".parse().unwrap())
        };
        assert_eq!(
            written(&config),
            concat!(
                r#"{"architecture":"arm","config":{"ExposedPorts":{"80/tcp":{}},"Env":["PATH=/bin"],"Cmd":["sh"],"#,
                r#""WorkingDir":"/","Labels":{"a":"\u003c1\u003e","b":"2"},"Healthcheck":{"Test":["CMD-SHELL","true"],"#,
                r#""Interval":5000000000,"Retries":3},"OnBuild":["RUN true"],"Shell":["/bin/sh","-c"]},"#,
                r#""created":"1970-01-01T00:00:00Z","history":[{"created_by":"RUN a \u0026\u0026 b","empty_layer":true}],"#,
                r#""os":"linux","rootfs":{"type":"layers","diff_ids":[]},"variant":"v7"}"#
            )
        );
    }

    #[test]
    fn configs_of_docker_with_nulls_are_read_and_their_unknown_fields_kept() {
        let text = concat!(
            r#"{"architecture":"amd64","config":{"Hostname":"x","Cmd":null,"Env":null,"Labels":null,"OnBuild":null,"#,
            r#""Volumes":null,"User":"","StopTimeout":3},"container":"abc","created":"2020-01-01T00:00:00.5Z","#,
            r#""docker_version":"19","history":[{"created":"2020-01-01T00:00:00Z","created_by":"x"}],"os":"linux","#,
            r#""rootfs":{"type":"layers","diff_ids":null}}"#
        );
        let parsed = Parsed::<ImageConfig>::parse(text.as_bytes()).unwrap();
        assert_eq!(parsed.config.other["Hostname"], "x");
        assert_eq!(parsed.other["docker_version"], "19");
        assert_eq!(
            written(&parsed),
            concat!(
                r#"{"architecture":"amd64","config":{"Hostname":"x","StopTimeout":3},"container":"abc","#,
                r#""created":"2020-01-01T00:00:00.5Z","docker_version":"19","#,
                r#""history":[{"created":"2020-01-01T00:00:00Z","created_by":"x"}],"os":"linux","#,
                r#""rootfs":{"type":"layers","diff_ids":[]}}"#
            )
        );
        let known = parsed.into_value().without_unknown();
        assert!(
            !written(&known).contains("Hostname") && !written(&known).contains("docker_version")
        );
    }

    #[test]
    fn a_written_config_reads_back_equal() {
        let config = ImageConfig::new("windows(10.0.17763+win32k)/amd64".parse().unwrap());
        let parsed = Parsed::<ImageConfig>::parse(config.to_bytes()).unwrap();
        assert_eq!(*parsed, config);
    }
}
