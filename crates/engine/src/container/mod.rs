//! Containers: images that can be run, looked into and changed.
//!
//! A container is the layers of its image and a directory of its own on top. It needs no process to
//! be: files go in and out of it whether it runs or not. While it runs, one process holds its lock
//! and listens on its control socket; when that process dies, the kernel gives the lock free.

pub(crate) mod control;
mod copy;
mod create;
mod log;
mod publish;
mod run;
pub(crate) mod streams;

use std::path::PathBuf;

use oci::Digest;
use serde::{Deserialize, Serialize};
use store::{LayerId, NamedLock, Store};

use crate::{Engine, EngineError};

pub use control::{Control, ExecRequest};
pub use copy::{CopyOptions, CopySource, CopyTarget};
pub use create::{CreateRequest, PullPolicy, signal_number};
pub use log::{LogEntry, LogReader};
pub use publish::{BoundPort, PublishedPort, published_ports};
pub use run::{ContainerHandle, RunningContainer, Streams, exec};
pub use streams::{Terminal, TerminalSize};

/// A container of the store.
#[derive(Debug, Clone)]
pub struct Container {
    /// 64 hexadecimal digits.
    pub id: String,
    pub name: String,
    /// The id of its image.
    pub image: Digest,
    pub layers: Vec<LayerId>,
    pub config: ContainerConfig,
    pub state: ContainerState,
    /// Seconds since 1970.
    pub created: i64,
}

/// How a container is run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// The image as it was asked for.
    pub image: String,
    /// The whole command; empty where neither the image nor the user named one.
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    pub user: String,
    pub hostname: String,
    pub mounts: Vec<ContainerMount>,
    pub network: ContainerNetwork,
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
    /// `NAME:IP`.
    pub add_hosts: Vec<String>,
    pub labels: std::collections::BTreeMap<String, String>,
    /// It has a terminal.
    pub tty: bool,
    /// Its standard input is open.
    pub stdin: bool,
    /// It is removed when it ends.
    pub remove: bool,
    pub read_only: bool,
    /// It is not confined.
    pub privileged: bool,
    /// The number of the signal that asks it to stop.
    pub stop_signal: i32,
    pub shm_size: Option<u64>,
}

/// The network of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerNetwork {
    #[default]
    Bridge,
    None,
    Host,
}

/// Something of the machine inside a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerMount {
    pub target: String,
    pub source: MountSource,
    pub read_only: bool,
}

/// Where the content of a mount comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountSource {
    Bind(PathBuf),
    Tmpfs { size: Option<u64>, mode: u32 },
}

/// How far a container has come. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum ContainerState {
    Created,
    Running {
        started: i64,
        /// The process that runs it and holds its lock.
        pid: u32,
        /// Where its ports are reached.
        #[serde(default)]
        ports: Vec<BoundPort>,
    },
    Exited {
        started: i64,
        finished: i64,
        code: i32,
    },
    /// It was to be started and could not be.
    Failed {
        finished: i64,
        code: i32,
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Info {
    config: ContainerConfig,
    state: ContainerState,
}

impl Container {
    fn of_record(store: &Store, record: store::Container) -> Result<Self, EngineError> {
        let info: Info =
            serde_json::from_str(&record.info).map_err(|error| store::StoreError::Damaged {
                subject: format!("container {}", record.name),
                reason: error.to_string(),
            })?;
        let mut container = Self {
            id: record.id,
            name: record.name,
            image: record.image,
            layers: record.layers,
            config: info.config,
            state: info.state,
            created: record.created,
        };
        // Who ran it may have died without a word.
        if let ContainerState::Running { started, .. } = container.state
            && store.try_lock_container(&container.id)?.is_some()
        {
            container.state = ContainerState::Exited {
                started,
                finished: started,
                code: 137,
            };
        }
        Ok(container)
    }

    fn info(&self) -> String {
        let info = Info {
            config: self.config.clone(),
            state: self.state.clone(),
        };
        serde_json::to_string(&info).expect("a container can be written as JSON")
    }

    /// Returns where its ports are reached; none where it does not run.
    pub fn ports(&self) -> &[BoundPort] {
        match &self.state {
            ContainerState::Running { ports, .. } => ports,
            _ => &[],
        }
    }

    /// Returns whether it runs.
    pub fn is_running(&self) -> bool {
        matches!(self.state, ContainerState::Running { .. })
    }
}

/// Returns all containers, newest first.
pub fn containers(store: &Store) -> Result<Vec<Container>, EngineError> {
    store
        .containers()?
        .into_iter()
        .map(|record| Container::of_record(store, record))
        .collect()
}

/// Returns the container of a name, an id or the beginning of one.
pub fn find_container(store: &Store, wanted: &str) -> Result<Container, EngineError> {
    let all = store.containers()?;
    let named = wanted.strip_prefix('/').unwrap_or(wanted);
    if let Some(record) = all.iter().find(|record| record.name == named) {
        return Container::of_record(store, record.clone());
    }
    let mut found = all
        .into_iter()
        .filter(|record| !wanted.is_empty() && record.id.starts_with(wanted));
    match (found.next(), found.next()) {
        (Some(record), None) => Container::of_record(store, record),
        (None, _) => Err(EngineError::Request(format!("No such container: {wanted}"))),
        (Some(_), Some(_)) => Err(EngineError::Request(format!(
            "{wanted} is the beginning of several container ids; write more of it"
        ))),
    }
}

/// Says in Docker's words that a name is taken.
fn name_taken(error: store::StoreError) -> EngineError {
    match error {
        store::StoreError::NameTaken { name } => EngineError::Request(format!(
            "Conflict. The container name \"/{name}\" is already in use. You have to remove (or rename) that container to be able to reuse that name."
        )),
        other => other.into(),
    }
}

/// Waits until a container does not run, and keeps it from being started.
fn lock_stopped(store: &Store, id: &str) -> Result<NamedLock, EngineError> {
    Ok(store.lock(&format!("container-{id}"))?)
}

impl Engine {
    /// Removes a container and what was written in it; with `force` it is killed if it runs.
    pub fn remove_container(&self, container: &Container, force: bool) -> Result<(), EngineError> {
        remove_container(self.store(), container, force)
    }
}

/// Removes a container and what was written in it; with `force` it is killed if it runs.
pub fn remove_container(
    store: &Store,
    container: &Container,
    force: bool,
) -> Result<(), EngineError> {
    let lock = match store.try_lock_container(&container.id)? {
        Some(lock) => lock,
        None if force => {
            if let Some(control) = Control::connect(store, &container.id)? {
                control.signal(9)?;
            }
            lock_stopped(store, &container.id)?
        }
        None => {
            return Err(EngineError::Request(format!(
                "cannot remove container {:?}: container is running: stop the container before removing or force remove",
                container.name
            )));
        }
    };
    store.remove_container(&container.id)?;
    drop(lock);
    Ok(())
}

/// Gives a container another name.
pub fn rename_container(
    store: &Store,
    container: &Container,
    name: &str,
) -> Result<(), EngineError> {
    let name = create::checked_name(name)?;
    store
        .rename_container(&container.id, name)
        .map_err(name_taken)
}

/// Waits for the end of a container and returns how it ended.
pub fn wait_for_container(store: &Store, id: &str) -> Result<i32, EngineError> {
    let lock = lock_stopped(store, id)?;
    drop(lock);
    let Some(record) = store.container(id)? else {
        return Ok(0);
    };
    Ok(match Container::of_record(store, record)?.state {
        ContainerState::Exited { code, .. } | ContainerState::Failed { code, .. } => code,
        ContainerState::Created | ContainerState::Running { .. } => 0,
    })
}
