//! Makes containers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use oci::{ImageConfig, Platform};
use progress::Sink;
use rootfs::copy::Mkdir;
use store::{Image, Layer};

use super::{
    Container, ContainerConfig, ContainerMount, ContainerNetwork, ContainerState, PublishedPort,
};
use crate::{Cancel, Engine, EngineError};

/// What a container is to be.
#[derive(Debug, Clone, Default)]
pub struct CreateRequest {
    /// A name or an id.
    pub image: String,
    pub name: Option<String>,
    pub platform: Option<Platform>,
    pub pull: PullPolicy,
    /// Takes the place of the image's CMD.
    pub command: Vec<String>,
    /// Takes the place of the image's ENTRYPOINT and CMD.
    pub entrypoint: Option<Vec<String>>,
    /// `NAME=VALUE`; a name alone takes the variable of the image away.
    pub env: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub working_dir: Option<String>,
    pub user: Option<String>,
    pub hostname: Option<String>,
    pub mounts: Vec<ContainerMount>,
    pub network: ContainerNetwork,
    pub ports: Vec<PublishedPort>,
    /// All ports that the image exposes are published too.
    pub publish_all: bool,
    pub add_hosts: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    pub remove: bool,
    pub read_only: bool,
    pub privileged: bool,
    /// A name or a number.
    pub stop_signal: Option<String>,
    pub shm_size: Option<u64>,
}

/// When a registry is asked for an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PullPolicy {
    #[default]
    Missing,
    Always,
    Never,
}

/// The search path of an image that names none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Engine {
    /// Makes a container. An image that is not in the store is pulled if the policy allows it.
    pub fn create_container(
        &self,
        request: &CreateRequest,
        sink: &Sink,
        cancel: &Cancel,
    ) -> Result<Container, EngineError> {
        let image = self.image_for(request, sink, cancel)?;
        let layer_ids = image.layers.clone().unwrap_or_default();
        let store = self.store();
        // Leased until the record holds them.
        let layers = store
            .layers(&layer_ids)?
            .ok_or_else(|| EngineError::Image {
                subject: request.image.clone(),
                reason: "a layer of it is missing from the store".to_owned(),
            })?;
        let raw = store.blobs().read(&image.id)?;
        let config: ImageConfig =
            serde_json::from_slice(&raw).map_err(|error| EngineError::Image {
                subject: request.image.clone(),
                reason: error.to_string(),
            })?;
        let id = draw_id()?;
        // A folder without a record and without a lock is rubbish.
        let _lock = store.try_lock_container(&id)?;
        let folder = store.container_folder(&id);
        let upper = folder.join("fs");
        std::fs::create_dir_all(&upper).map_err(EngineError::io("create", &upper))?;
        crate::step::attributes_of_root(layers.last().map(Layer::path), &upper)?;
        self.make_volumes(&layers, &upper, &config.config.volumes)?;
        let container = Container {
            name: match &request.name {
                Some(name) => checked_name(name)?.to_owned(),
                None => drawn_name(store, &id)?,
            },
            config: configured(request, &config, &id)?,
            id,
            image: image.id,
            layers: layer_ids,
            state: ContainerState::Created,
            created: store.now(),
        };
        let added = store.add_container(&store::Container {
            id: container.id.clone(),
            name: container.name.clone(),
            image: container.image.clone(),
            layers: container.layers.clone(),
            info: container.info(),
            created: container.created,
        });
        if let Err(error) = added {
            let _ = std::fs::remove_dir_all(&folder);
            return Err(super::name_taken(error));
        }
        Ok(container)
    }

    /// Makes the directories that the image takes for granted as it calls them volumes.
    fn make_volumes(
        &self,
        layers: &[Layer],
        upper: &Path,
        volumes: &BTreeSet<String>,
    ) -> Result<(), EngineError> {
        let tree = self.shared.writable_tree(layers, upper)?;
        for path in volumes {
            let wanted = Mkdir {
                path: path.clone(),
                mode: 0o755,
                make_parents: true,
                owner: None,
                time: None,
            };
            rootfs::copy::mkdir(&tree, &wanted)?;
        }
        Ok(())
    }

    fn image_for(
        &self,
        request: &CreateRequest,
        sink: &Sink,
        cancel: &Cancel,
    ) -> Result<Image, EngineError> {
        let platform = request.platform.clone();
        let found = match request.pull {
            PullPolicy::Always => None,
            PullPolicy::Missing | PullPolicy::Never => {
                let (store, name) = (self.store(), &request.image);
                crate::images::find_subject(store, name, platform.as_ref())?
                    .map(|(subject, _)| subject.image)
            }
        };
        let fits = |image: &Image| match &platform {
            None => true,
            Some(wanted) => image
                .platform
                .parse()
                .is_ok_and(|found: Platform| oci::PlatformMatcher::exactly(wanted).matches(&found)),
        };
        match found {
            Some(image) if fits(&image) && image.layers.is_some() => Ok(image),
            _ if request.pull == PullPolicy::Never => Err(EngineError::Request(format!(
                "No such image: {}",
                request.image
            ))),
            _ => {
                let pulled = self.pull(&request.image, platform.as_ref(), sink, cancel)?;
                Ok(pulled.image)
            }
        }
    }
}

/// Draws the id of a container.
fn draw_id() -> Result<String, EngineError> {
    use std::fmt::Write;
    let mut bytes = [0; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut bytes[filled..], flags)
            .map_err(|errno| EngineError::io("draw", "random bytes")(errno.into()))?;
    }
    let mut id = String::with_capacity(64);
    for byte in bytes {
        let _ = write!(id, "{byte:02x}");
    }
    Ok(id)
}

const MOODS: [&str; 16] = [
    "ample", "brave", "brisk", "calm", "eager", "fair", "fleet", "handy", "hardy", "keen", "merry",
    "neat", "proud", "quiet", "steady", "trim",
];
const PARTS: [&str; 16] = [
    "anchor", "boom", "bow", "cleat", "deck", "garboard", "gunwale", "hull", "keel", "mast", "oar",
    "plank", "rudder", "sail", "stern", "thwart",
];

/// Returns a name that is easier to say than an id.
fn drawn_name(store: &store::Store, id: &str) -> Result<String, EngineError> {
    let digit = |at: usize| usize::from_str_radix(&id[at..=at], 16).unwrap_or(0);
    let name = format!("{}_{}", MOODS[digit(0)], PARTS[digit(1)]);
    let taken = store.containers()?.iter().any(|other| other.name == name);
    Ok(match taken {
        true => format!("{name}_{}", &id[2..8]),
        false => name,
    })
}

/// Returns a name if it is one by Docker's rule.
pub(super) fn checked_name(name: &str) -> Result<&str, EngineError> {
    let name = name.strip_prefix('/').unwrap_or(name);
    let mut characters = name.chars();
    let good = characters
        .next()
        .is_some_and(|first| first.is_ascii_alphanumeric())
        && name.len() > 1
        && characters.all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    match good {
        true => Ok(name),
        false => Err(EngineError::Request(format!(
            "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        ))),
    }
}

/// Lays what was asked for over what the image says.
fn configured(
    request: &CreateRequest,
    image: &ImageConfig,
    id: &str,
) -> Result<ContainerConfig, EngineError> {
    let said = &image.config;
    let hostname = match (&request.hostname, request.network) {
        (Some(hostname), _) => hostname.clone(),
        (None, _) => id[..12].to_owned(),
    };
    let mut labels = said.labels.clone();
    labels.extend(request.labels.clone());
    let stop_signal = match &request.stop_signal {
        Some(text) => text.as_str(),
        None => said.stop_signal.as_str(),
    };
    let working_dir = match &request.working_dir {
        Some(path) if !path.starts_with('/') => {
            return Err(EngineError::Request(format!(
                "the working directory {path:?} is invalid, it needs to be an absolute path"
            )));
        }
        Some(path) => path.clone(),
        None => said.working_dir.clone(),
    };
    Ok(ContainerConfig {
        image: request.image.clone(),
        args: command(request, image),
        env: environment(request, &said.env, &hostname),
        working_dir,
        user: request.user.clone().unwrap_or_else(|| said.user.clone()),
        hostname,
        mounts: request.mounts.clone(),
        network: request.network,
        ports: ports(request, said),
        add_hosts: request.add_hosts.clone(),
        labels,
        tty: request.tty,
        stdin: request.stdin,
        remove: request.remove,
        read_only: request.read_only,
        privileged: request.privileged,
        stop_signal: match stop_signal {
            "" => 15,
            text => signal_number(text)?,
        },
        shm_size: request.shm_size,
    })
}

/// Returns the ports to publish: those asked for, and on demand the other ones that the image exposes.
fn ports(request: &CreateRequest, image: &oci::ContainerConfig) -> Vec<PublishedPort> {
    let mut ports = request.ports.clone();
    if request.publish_all {
        for exposed in &image.exposed_ports {
            // The image says nothing of this machine's ports and addresses.
            let exposed = match exposed.contains(':') {
                true => Vec::new(),
                false => super::published_ports(exposed).unwrap_or_default(),
            };
            for port in exposed {
                if !ports.iter().any(|known| known.container == port.container) {
                    ports.push(port);
                }
            }
        }
    }
    ports
}

/// Returns the command: an entrypoint of the user's takes the image's CMD away, as Docker has it.
fn command(request: &CreateRequest, image: &ImageConfig) -> Vec<String> {
    let (mut args, usual) = match &request.entrypoint {
        Some(entrypoint) => (entrypoint.clone(), Vec::new()),
        None => (image.config.entrypoint.clone(), image.config.cmd.clone()),
    };
    match request.command.as_slice() {
        [] => args.extend(usual),
        command => args.extend_from_slice(command),
    }
    args
}

fn environment(request: &CreateRequest, image: &[String], hostname: &str) -> Vec<String> {
    let mut env = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if request.tty {
        env.push("TERM=xterm".to_owned());
    }
    for variable in image.iter().chain(&request.env) {
        let (name, is_set) = match variable.split_once('=') {
            Some((name, _)) => (name, true),
            None => (variable.as_str(), false),
        };
        let place = env.iter().position(|known| {
            known
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('='))
        });
        match (place, is_set) {
            (Some(place), true) => env[place].clone_from(variable),
            (Some(place), false) => drop(env.remove(place)),
            (None, true) => env.push(variable.clone()),
            (None, false) => {}
        }
    }
    env
}

/// Returns the number of a signal: `15`, `TERM` or `SIGTERM`.
pub fn signal_number(text: &str) -> Result<i32, EngineError> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = match name.parse() {
        Ok(number) => Some(number),
        Err(_) => NAMES
            .iter()
            .position(|known| *known == name)
            .map(|place| place as i32 + 1),
    };
    number
        .filter(|number| (1..=31).contains(number))
        .ok_or_else(|| EngineError::Request(format!("Invalid signal: {text}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(entrypoint: &[&str], cmd: &[&str]) -> ImageConfig {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let mut image = ImageConfig::default();
        image.config.entrypoint = words(entrypoint);
        image.config.cmd = words(cmd);
        image
    }

    #[test]
    fn a_command_is_put_together_as_in_docker() {
        let check = |entrypoint: Option<&[&str]>, command: &[&str], expected: &[&str]| {
            let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
            let request = CreateRequest {
                entrypoint: entrypoint.map(words),
                command: words(command),
                ..CreateRequest::default()
            };
            assert_eq!(
                super::command(&request, &image(&["/e"], &["c"])),
                expected,
                "{request:?}"
            );
        };
        check(None, &[], &["/e", "c"]);
        check(None, &["x"], &["/e", "x"]);
        check(Some(&["/o"]), &[], &["/o"]);
        check(Some(&["/o"]), &["x"], &["/o", "x"]);
        check(Some(&[]), &["x"], &["x"]);
    }

    #[test]
    fn variables_of_the_user_replace_those_of_the_image() {
        let request = CreateRequest {
            env: vec!["B=2".to_owned(), "GONE".to_owned(), "C=3".to_owned()],
            ..CreateRequest::default()
        };
        let image = ["B=1", "GONE=x", "PATH=/bin"].map(str::to_owned);
        assert_eq!(
            environment(&request, &image, "me"),
            ["PATH=/bin", "HOSTNAME=me", "B=2", "C=3"]
        );
    }

    #[test]
    fn signals_have_names_and_numbers() {
        let check = |text, expected: Option<i32>| assert_eq!(signal_number(text).ok(), expected);
        check("SIGTERM", Some(15));
        check("kill", Some(9));
        check("28", Some(28));
        check("0", None);
        check("NOTHING", None);
    }
}
