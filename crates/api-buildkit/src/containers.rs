//! Containers of a frontend: made of results, to run processes in beside the graph.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bollard_buildkit_proto::moby::buildkit::v1::frontend as pbf;
use bollard_buildkit_proto::pb;
use engine::{TreeContainer, TreeContainerRequest, TreeMount};
use llb::{CacheSharing, HostIp, Mount, MountKind, NetworkMode, SecretFile};
use tonic::Code;

use crate::bridge::Bridge;
use crate::error::Failure;

/// The containers a frontend has, by the names it gave them.
#[derive(Debug, Default)]
pub(crate) struct Containers(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    open: BTreeMap<String, Arc<TreeContainer>>,
    /// The frontend has ended.
    closed: bool,
}

impl Containers {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, id: &str) -> Result<Arc<TreeContainer>, Failure> {
        let found = self.table().open.get(id).cloned();
        found.ok_or_else(|| {
            Failure::new(
                Code::NotFound,
                format!("container {id:?} previously released or not created"),
            )
        })
    }

    /// Opens the files of a mount of a container.
    pub(crate) fn tree(&self, id: &str, mount: i32) -> Result<rootfs::Tree, Failure> {
        let container = self.get(id)?;
        let number = usize::try_from(mount)
            .map_err(|_| Failure::unknown(format!("mount index {mount} is out of range")))?;
        Ok(container.tree(number)?)
    }

    fn add(&self, id: &str, container: TreeContainer) -> Result<(), Failure> {
        let mut table = self.table();
        if table.closed {
            return Err(Failure::new(Code::Cancelled, "context canceled"));
        }
        if table.open.contains_key(id) {
            return Err(Failure::new(
                Code::AlreadyExists,
                format!("Container {id} already exists"),
            ));
        }
        table.open.insert(id.to_owned(), Arc::new(container));
        Ok(())
    }

    /// Ends a container with all that runs in it. Blocks.
    pub(crate) fn release(&self, id: &str) -> Result<(), Failure> {
        let container = self.table().open.remove(id);
        match container {
            Some(container) => {
                container.end();
                Ok(())
            }
            None => Err(Failure::unknown(format!(
                "container details for {id} not found"
            ))),
        }
    }

    /// Ends all containers, and those that come later. Blocks.
    pub(crate) fn release_all(&self) {
        let open = {
            let mut table = self.table();
            table.closed = true;
            std::mem::take(&mut table.open)
        };
        open.values().for_each(|container| container.end());
    }
}

/// Makes a container. Blocks.
pub(crate) fn create(bridge: &Bridge, asked: pbf::NewContainerRequest) -> Result<(), Failure> {
    let build = &bridge.build;
    let mut mounts = Vec::with_capacity(asked.mounts.len());
    for mount in asked.mounts {
        let tree = build.tree(&mount.result_id).map_err(|failure| {
            let words = format!(
                "failed to find ref {} for {:?} mount",
                mount.result_id, mount.dest
            );
            failure.context(&words)
        })?;
        let tree = tree.map(|tree| tree.solve(build)).transpose()?;
        mounts.push(TreeMount {
            tree,
            mount: mount_of(mount)?,
        });
    }
    let network = match pb::NetMode::try_from(asked.network) {
        Ok(pb::NetMode::Unset) => NetworkMode::Sandbox,
        Ok(pb::NetMode::Host) => NetworkMode::Host,
        Ok(pb::NetMode::None) => NetworkMode::None,
        Err(_) => {
            return Err(Failure::unsupported(format!(
                "the network mode {}",
                asked.network
            )));
        }
    };
    let hosts = asked.extra_hosts.into_iter();
    let request = TreeContainerRequest {
        mounts,
        files: Vec::new(),
        network,
        hostname: asked.hostname,
        extra_hosts: hosts
            .map(|entry| HostIp {
                host: entry.host,
                ip: entry.ip,
            })
            .collect(),
        limits: build.limits.clone(),
        client: Arc::clone(&build.client),
        entitlements: build.entitlements.clone(),
    };
    let container = build.engine.tree_container(request, &build.cancel)?;
    bridge.containers.add(&asked.container_id, container)
}

fn mount_of(mount: pb::Mount) -> Result<Mount, Failure> {
    let dest = match mount.dest.starts_with('/') {
        true => mount.dest,
        false => format!("/{}", mount.dest),
    };
    let unknown = || Failure::unknown(format!("mount type {} not implemented", mount.mount_type));
    let kind = pb::MountType::try_from(mount.mount_type).map_err(|_| unknown())?;
    if dest == "/" && kind != pb::MountType::Bind {
        return Err(Failure::unknown(format!(
            "invalid mount type {} for /",
            kind.as_str_name()
        )));
    }
    let kind = match kind {
        pb::MountType::Bind => MountKind::Bind,
        pb::MountType::Secret => {
            let secret = mount.secret_opt.unwrap_or_default();
            MountKind::Secret(SecretFile {
                id: secret.id,
                uid: secret.uid,
                gid: secret.gid,
                mode: secret.mode,
                optional: secret.optional,
            })
        }
        pb::MountType::Ssh => {
            let agent = mount.ssh_opt.unwrap_or_default();
            MountKind::Ssh(SecretFile {
                id: agent.id,
                uid: agent.uid,
                gid: agent.gid,
                mode: agent.mode,
                optional: agent.optional,
            })
        }
        pb::MountType::Cache => {
            let cache = mount.cache_opt.unwrap_or_default();
            MountKind::Cache {
                sharing: match cache.sharing() {
                    pb::CacheSharingOpt::Shared => CacheSharing::Shared,
                    pb::CacheSharingOpt::Private => CacheSharing::Private,
                    pb::CacheSharingOpt::Locked => CacheSharing::Locked,
                },
                id: cache.id,
            }
        }
        pb::MountType::Tmpfs => MountKind::Tmpfs {
            size: mount.tmpfs_opt.map_or(0, |tmpfs| tmpfs.size),
        },
    };
    Ok(Mount {
        dest,
        selector: mount.selector,
        read_only: mount.readonly,
        kind,
        ..Mount::default()
    })
}
