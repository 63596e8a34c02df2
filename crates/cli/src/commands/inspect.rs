//! `lapstrake inspect`: images and containers in Docker's shape.

use anyhow::{Result, anyhow};
use clap::Args;
use engine::container::{self, Container, ContainerNetwork, ContainerState, MountSource};
use oci::{Platform, Reference};
use serde_json::{Value, json};
use store::{Image, Store};

use super::image::{config_of, familiar, platform};
use super::images::find_subject;
use crate::arguments::Global;
use crate::failure::{Failure, exit};
use crate::template::Template;
use crate::{log, output, settings};

/// Show all that is known of images or containers
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// How to print: json, or a template such as '{{.Id}}'
    #[arg(long, short = 'f', value_name = "FORMAT")]
    format: Option<String>,
    /// Only things of this kind: image or container
    #[arg(long = "type", value_name = "KIND")]
    kind: Option<String>,
    /// The image for this platform, where there are several
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Accepted for Docker's sake, and said to have no effect
    #[arg(long, short = 's', hide = true)]
    size: bool,
    /// Names or ids
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

impl Inspect {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        self.show(global, self.kind.as_deref())
    }

    pub(crate) fn run_for_images(&self, global: &Global) -> Result<(), Failure> {
        self.show(global, Some("image"))
    }

    pub(crate) fn run_for_containers(&self, global: &Global) -> Result<(), Failure> {
        self.show(global, Some("container"))
    }

    /// Shows what is there; what is not is a failure at the end.
    fn show(&self, global: &Global, kind: Option<&str>) -> Result<(), Failure> {
        if self.size {
            log::warning("--size has no effect: what containers have written is not counted here");
        }
        if !matches!(kind, None | Some("image" | "container")) {
            return Err(exit::usage(anyhow!(
                "there are the kinds image and container"
            )));
        }
        let platform = platform(self.platform.as_deref()).map_err(exit::usage)?;
        let platform = platform.as_ref();
        let store = settings::open_records(global)?;
        let mut found = Vec::new();
        let mut missing = Vec::new();
        for name in &self.names {
            match look(&store, name, kind, platform).map_err(exit::builder)? {
                Some(value) => found.push(value),
                None => missing.push(name),
            }
        }
        let text = match self.format.as_deref() {
            None | Some("") => pretty(&Value::from(found)),
            Some("json") => format!("{}\n", Value::from(found)),
            Some(template) => {
                let template = Template::parse(template).map_err(exit::usage)?;
                let mut text = String::new();
                for value in &found {
                    text.push_str(&template.apply(value).map_err(exit::build)?);
                    text.push('\n');
                }
                text
            }
        };
        output::print(&text).map_err(exit::builder)?;
        if missing.is_empty() {
            return Ok(());
        }
        for name in missing {
            log::error(&format!("No such {}: {name}", kind.unwrap_or("object")));
        }
        Err(Failure::Said(1))
    }
}

/// Writes JSON as Docker does: four blanks a step.
fn pretty(value: &Value) -> String {
    use serde::Serialize;
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    value
        .serialize(&mut serializer)
        .expect("JSON can be written to memory");
    text.push(b'\n');
    String::from_utf8_lossy(&text).into_owned()
}

fn look(
    store: &Store,
    name: &str,
    kind: Option<&str>,
    platform: Option<&Platform>,
) -> Result<Option<Value>> {
    if kind != Some("image")
        && let Ok(container) = container::find_container(store, name)
    {
        return Ok(Some(container_value(store, &container)));
    }
    if kind != Some("container")
        && let Ok((subject, _)) = find_subject(store, name, platform)
    {
        return image_value(store, &subject.image).map(Some);
    }
    Ok(None)
}

fn date(seconds: i64) -> String {
    match seconds {
        0 => "0001-01-01T00:00:00Z".to_owned(),
        seconds => oci::Timestamp::from_unix(seconds, 0)
            .map(|time| time.to_string())
            .unwrap_or_default(),
    }
}

fn image_value(store: &Store, image: &Image) -> Result<Value> {
    let config = config_of(store, image)?;
    let (mut tags, mut digests) = (Vec::new(), Vec::new());
    let mut tagged = 0;
    for name in store.names()? {
        if !name.images().contains(&image.id) {
            continue;
        }
        tagged = tagged.max(name.updated);
        tags.push(familiar(&name.reference));
        if let (Some(digest), Ok(reference)) =
            (&name.digest, Reference::parse_normalized(&name.reference))
        {
            let bare = reference.without_version().familiar();
            let known = format!("{bare}@{digest}");
            if !digests.contains(&known) {
                digests.push(known);
            }
        }
    }
    let mut layers = Vec::new();
    for layer in image.layers.iter().flatten() {
        layers.push(store.layer_info(*layer)?.content);
    }
    let mut inner = container_config(&config.config);
    if let Value::Object(map) = &mut inner {
        map.insert("Image".to_owned(), "".into());
    }
    Ok(json!({
        "Id": image.id.to_string(),
        "RepoTags": tags,
        "RepoDigests": digests,
        "Parent": "",
        "Comment": config.history.last().map(|entry| entry.comment.clone()).unwrap_or_default(),
        "Created": config.created.map(|time| time.to_string()).unwrap_or_default(),
        "DockerVersion": "",
        "Author": config.author,
        "Config": inner,
        "Architecture": config.platform.architecture,
        "Variant": config.platform.variant,
        "Os": config.platform.os,
        "Size": image.size,
        "RootFS": {
            "Type": "layers",
            "Layers": config.rootfs.diff_ids.iter().map(ToString::to_string).collect::<Vec<_>>(),
        },
        "Metadata": {"LastTagTime": date(tagged)},
    }))
}

/// Returns a config with all fields that Docker shows, also the empty ones.
fn container_config(config: &oci::ContainerConfig) -> Value {
    let set = |names: &std::collections::BTreeSet<String>| match names.is_empty() {
        true => Value::Null,
        false => names
            .iter()
            .map(|name| (name.clone(), json!({})))
            .collect::<serde_json::Map<_, _>>()
            .into(),
    };
    let list = |items: &[String]| match items {
        [] => Value::Null,
        items => Value::from(items.to_vec()),
    };
    let mut value = json!({
        "Hostname": "",
        "Domainname": "",
        "User": config.user,
        "AttachStdin": false,
        "AttachStdout": false,
        "AttachStderr": false,
        "ExposedPorts": set(&config.exposed_ports),
        "Tty": false,
        "OpenStdin": false,
        "StdinOnce": false,
        "Env": list(&config.env),
        "Cmd": list(&config.cmd),
        "Volumes": set(&config.volumes),
        "WorkingDir": config.working_dir,
        "Entrypoint": list(&config.entrypoint),
        "OnBuild": list(&config.on_build),
        "Labels": match config.labels.is_empty() {
            true => Value::Null,
            false => json!(config.labels),
        },
    });
    if let Value::Object(map) = &mut value {
        if map["ExposedPorts"].is_null() {
            map.shift_remove("ExposedPorts");
        }
        if let Some(check) = &config.healthcheck {
            map.insert("Healthcheck".to_owned(), json!(check));
        }
        if !config.stop_signal.is_empty() {
            map.insert("StopSignal".to_owned(), config.stop_signal.clone().into());
        }
        if !config.shell.is_empty() {
            map.insert("Shell".to_owned(), json!(config.shell));
        }
    }
    value
}

fn container_value(store: &Store, container: &Container) -> Value {
    let config = &container.config;
    let (path, args) = match config.args.split_first() {
        Some((path, args)) => (path.clone(), args.to_vec()),
        None => (String::new(), Vec::new()),
    };
    let (status, started, finished, code, error, pid) = match &container.state {
        ContainerState::Created => ("created", 0, 0, 0, String::new(), 0),
        ContainerState::Running { started, pid, .. } => {
            ("running", *started, 0, 0, String::new(), *pid)
        }
        ContainerState::Exited {
            started,
            finished,
            code,
        } => ("exited", *started, *finished, *code, String::new(), 0),
        ContainerState::Failed {
            finished,
            code,
            reason,
        } => ("created", 0, *finished, *code, reason.clone(), 0),
    };
    let mounts: Vec<Value> = config
        .mounts
        .iter()
        .map(|mount| {
            let (kind, source) = match &mount.source {
                MountSource::Bind(path) => ("bind", path.display().to_string()),
                MountSource::Tmpfs { .. } => ("tmpfs", String::new()),
            };
            json!({
                "Type": kind,
                "Source": source,
                "Destination": mount.target,
                "Mode": "",
                "RW": !mount.read_only,
                "Propagation": "rprivate",
            })
        })
        .collect();
    let network = match config.network {
        ContainerNetwork::Bridge => "bridge",
        ContainerNetwork::None => "none",
        ContainerNetwork::Host => "host",
    };
    json!({
        "Id": container.id,
        "Created": date(container.created),
        "Path": path,
        "Args": args,
        "State": {
            "Status": status,
            "Running": container.is_running(),
            "Paused": false,
            "Restarting": false,
            "OOMKilled": false,
            "Dead": false,
            "Pid": pid,
            "ExitCode": code,
            "Error": error,
            "StartedAt": date(started),
            "FinishedAt": date(finished),
        },
        "Image": container.image.to_string(),
        "LogPath": store.container_folder(&container.id).join("log").display().to_string(),
        "Name": format!("/{}", container.name),
        "RestartCount": 0,
        "Platform": "linux",
        "HostConfig": {
            "NetworkMode": network,
            "PortBindings": port_bindings(config),
            "AutoRemove": config.remove,
            "Privileged": config.privileged,
            "ReadonlyRootfs": config.read_only,
            "ExtraHosts": config.add_hosts,
        },
        "NetworkSettings": { "Ports": bound_ports(container) },
        "Mounts": mounts,
        "Config": {
            "Hostname": config.hostname,
            "User": config.user,
            "Tty": config.tty,
            "OpenStdin": config.stdin,
            "Env": config.env,
            "Cmd": config.args,
            "Image": config.image,
            "WorkingDir": config.working_dir,
            "Labels": config.labels,
            "StopSignal": config.stop_signal.to_string(),
        },
    })
}

/// Returns the ports to publish, as Docker tells them.
fn port_bindings(config: &engine::container::ContainerConfig) -> Value {
    let mut bindings = serde_json::Map::new();
    for port in &config.ports {
        let binding = json!({
            "HostIp": port.address.map(|address| address.to_string()).unwrap_or_default(),
            "HostPort": port.port.map(|port| port.to_string()).unwrap_or_default(),
        });
        push(&mut bindings, port.container, binding);
    }
    Value::Object(bindings)
}

/// Returns where the ports are reached, as Docker tells them.
fn bound_ports(container: &Container) -> Value {
    let mut bound = serde_json::Map::new();
    for port in container.ports() {
        let binding = json!({
            "HostIp": port.address.ip().to_string(),
            "HostPort": port.address.port().to_string(),
        });
        push(&mut bound, port.container, binding);
    }
    Value::Object(bound)
}

fn push(ports: &mut serde_json::Map<String, Value>, container: u16, binding: Value) {
    let known = ports
        .entry(format!("{container}/tcp"))
        .or_insert_with(|| json!([]));
    if let Value::Array(bindings) = known {
        bindings.push(binding);
    }
}
