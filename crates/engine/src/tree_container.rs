//! Containers on trees of graphs: what a frontend runs beside the graph, and frontends themselves.
//!
//! What their processes write is thrown away with them.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use llb::{ExecOp, HostIp, Mount, NetworkMode, SecretEnv, SecurityMode};
use rootfs::Tree;
use sandbox::{Content, Entered, Limits, Running, Source, Spec, Status, Stdio, User};
use store::Layer;

use crate::cancel::CancelGuard;
use crate::client::BuildClient;
use crate::container::streams::Copying;
use crate::container::{ContainerHandle, Streams};
use crate::snapshot::Snapshot;
use crate::step::StepContext;
use crate::step::exec::{self, DEFAULT_PATH, Held};
use crate::{Cancel, Engine, EngineError, Solved};

/// What a container is made of.
#[derive(Clone)]
pub struct TreeContainerRequest {
    /// One of them is the root, `/`.
    pub mounts: Vec<TreeMount>,
    /// Read-only files laid over the root: paths and contents.
    pub files: Vec<(String, Vec<u8>)>,
    pub network: NetworkMode,
    /// Empty for that of steps.
    pub hostname: String,
    pub extra_hosts: Vec<HostIp>,
    pub limits: Limits,
    /// Who has the secrets and agents.
    pub client: Arc<dyn BuildClient>,
    /// What the processes may do: `network.host`, `security.insecure`.
    pub entitlements: Vec<String>,
}

impl std::fmt::Debug for TreeContainerRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TreeContainerRequest")
            .field("mounts", &self.mounts)
            .field("network", &self.network)
            .finish_non_exhaustive()
    }
}

/// One mount of a container. Of `mount`, the input and the output do not count.
#[derive(Debug, Clone)]
pub struct TreeMount {
    /// What is mounted; `None` is an empty tree.
    pub tree: Option<Solved>,
    pub mount: Mount,
}

/// A process to run in a container.
#[derive(Debug, Clone, Default)]
pub struct TreeProcessRequest {
    pub args: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// Empty for `/`.
    pub cwd: String,
    pub user: String,
    pub tty: bool,
    pub security: SecurityMode,
    pub secret_env: Vec<SecretEnv>,
}

/// A container. The first process that is started in it makes its world, and all others end with that.
pub struct TreeContainer {
    context: StepContext,
    network: NetworkMode,
    spec: Spec,
    /// The layers of the trees, by the number of the mount.
    below: Vec<Vec<Layer>>,
    first: Mutex<World>,
    cancel: Cancel,
    held: Held,
}

impl std::fmt::Debug for TreeContainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TreeContainer").finish_non_exhaustive()
    }
}

impl Engine {
    /// Makes a container; nothing runs in it yet. A request to cancel kills what will.
    pub fn tree_container(
        &self,
        request: TreeContainerRequest,
        cancel: &Cancel,
    ) -> Result<TreeContainer, EngineError> {
        let mut context = StepContext {
            entitlements: request.entitlements,
            client: Some(request.client),
            ..StepContext::new(Arc::clone(&self.shared))
        };
        if !request.limits.is_empty() {
            context.limits = request.limits;
        }
        let mut op = ExecOp {
            network: request.network,
            ..ExecOp::default()
        };
        op.meta.hostname = request.hostname;
        op.meta.extra_hosts = request.extra_hosts;
        let mut inputs = Vec::new();
        let mut below = Vec::new();
        for (number, TreeMount { tree, mut mount }) in request.mounts.into_iter().enumerate() {
            let layers = tree.map(Solved::into_layers).unwrap_or_default();
            mount.input = (!layers.is_empty()).then_some(inputs.len());
            // By this what is written is found again; nothing is committed.
            mount.output = Some(number);
            if mount.input.is_some() {
                inputs.push(Snapshot::Layers(layers.clone()));
            }
            below.push(layers);
            op.mounts.push(mount);
        }
        let mut held = Held::default();
        let inputs = exec::Inputs {
            trees: &inputs,
            staged: std::collections::BTreeMap::new(),
            resources: None,
        };
        let mut spec = exec::specify(&context, &op, &inputs, &mut held, cancel)?;
        for (target, content) in request.files {
            spec.mounts.push(sandbox::Mount {
                target,
                source: Source::File {
                    content: Content(content),
                    mode: 0o444,
                    uid: 0,
                    gid: 0,
                },
                read_only: true,
            });
        }
        Ok(TreeContainer {
            network: op.network,
            context,
            spec,
            below,
            first: Mutex::default(),
            cancel: cancel.clone(),
            held,
        })
    }
}

impl TreeContainer {
    /// Starts a process. Without a terminal it gets the streams as they are.
    pub fn start(
        &self,
        request: &TreeProcessRequest,
        streams: Streams,
    ) -> Result<TreeProcess, EngineError> {
        self.context.check_entitlements(&ExecOp {
            network: self.network,
            security: request.security,
            ..ExecOp::default()
        })?;
        let env = self.environment(request)?;
        let (copying, stdio) = match request.tty {
            true => {
                let (copying, stdio) = Copying::start(streams, true, None)?;
                (Some(copying), stdio)
            }
            false => (
                None,
                Stdio {
                    stdin: streams.stdin,
                    stdout: streams.stdout,
                    stderr: streams.stderr,
                },
            ),
        };
        let cwd = match request.cwd.as_str() {
            "" => "/".to_owned(),
            cwd => cwd.to_owned(),
        };
        let security = match request.security {
            SecurityMode::Sandbox => sandbox::Security::Sandbox,
            SecurityMode::Insecure => sandbox::Security::Insecure,
        };
        let helper = self.context.shared.helper()?;
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        let running = match &*first {
            World::New => {
                let mut spec = self.spec.clone();
                spec.args.clone_from(&request.args);
                spec.env = env;
                spec.cwd = cwd;
                spec.user = User::Named(request.user.clone());
                spec.security = security;
                spec.terminal = request.tty;
                let locks = self.held.locks()?;
                let running = Arc::new(helper.spawn(&spec, stdio, Vec::new(), locks)?);
                *first = World::Running(Arc::clone(&running));
                running
            }
            World::Running(world) => {
                let entered = Entered {
                    args: request.args.clone(),
                    env,
                    cwd,
                    user: User::Named(request.user.clone()),
                    security,
                    terminal: request.tty,
                };
                Arc::new(helper.enter(world, &entered, stdio, Vec::new())?)
            }
            World::Ended => {
                return Err(EngineError::Request("the container has ended".to_owned()));
            }
        };
        drop(first);
        let killed = Arc::downgrade(&running);
        let guard = self.cancel.on_request(move || {
            if let Some(running) = Weak::upgrade(&killed) {
                running.kill();
            }
        });
        Ok(TreeProcess {
            running,
            copying,
            _guard: guard,
        })
    }

    fn environment(&self, request: &TreeProcessRequest) -> Result<Vec<String>, EngineError> {
        let mut env = request.env.clone();
        let mut default = |name: &str, variable: &str| {
            if !env.iter().any(|known| known.starts_with(name)) {
                env.push(variable.to_owned());
            }
        };
        default("PATH=", DEFAULT_PATH);
        if request.tty {
            default("TERM=", "TERM=xterm");
        }
        for secret in &request.secret_env {
            let Some(value) = self.context.secret(&secret.id, secret.optional)? else {
                continue;
            };
            let value = String::from_utf8(value).map_err(|_| {
                EngineError::Request(format!(
                    "secret {} is no text and cannot be a variable",
                    secret.id
                ))
            })?;
            env.push(format!("{}={value}", secret.name));
        }
        Ok(env)
    }

    /// Opens the files of a mount, by its number, as the processes see them now.
    pub fn tree(&self, number: usize) -> Result<Tree, EngineError> {
        let none = || {
            EngineError::Request(format!(
                "the container has no mount {number} with files that can be read"
            ))
        };
        let below = self.below.get(number).ok_or_else(none)?;
        let mut written = self.held.written.iter();
        match written.find(|(output, ..)| *output == Some(number)) {
            Some((_, layer, _)) => self.context.writable_tree(below, &layer.path()),
            None if below.is_empty() => Err(none()),
            None => self.context.shared.tree(below),
        }
    }
}

impl TreeContainer {
    /// Ends all that runs in it, and waits until it is gone; nothing more can be started.
    pub fn end(&self) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        let world = std::mem::replace(&mut *first, World::Ended);
        drop(first);
        if let World::Running(running) = world {
            running.kill();
            // Its mounts have to be gone before the layers they are made of.
            let _ = running.wait();
        }
    }
}

impl Drop for TreeContainer {
    fn drop(&mut self) {
        self.end();
    }
}

/// How far a container has come.
#[derive(Debug, Default)]
enum World {
    #[default]
    New,
    /// The first process, which may have ended.
    Running(Arc<Running>),
    Ended,
}

/// A process of a container.
pub struct TreeProcess {
    running: Arc<Running>,
    copying: Option<Copying>,
    _guard: CancelGuard,
}

impl std::fmt::Debug for TreeProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TreeProcess").finish_non_exhaustive()
    }
}

impl TreeProcess {
    /// Returns what reaches it, also while another thread waits for it.
    pub fn handle(&self) -> ContainerHandle {
        let copying = self.copying.as_ref();
        let terminal = copying.and_then(|copying| copying.terminal.clone());
        ContainerHandle::new(&self.running, terminal)
    }

    /// Waits for its end and that of its terminal's output.
    pub fn wait(self) -> Result<Status, EngineError> {
        let exit = self.running.wait();
        if let Some(copying) = self.copying {
            copying.finish();
        }
        Ok(exit?.status)
    }
}
