//! Runs containers, and further commands in those that run.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sandbox::{Content, Overlay, Root, Running, Source, Spec, Status, Upper, User};
use store::{Layer, NamedLock};

use super::control::{Control, ExecRequest, Listener};
use super::log::LogWriter;
use super::publish::{Bound, Published, PublishedPort};
use super::streams::{Copying, Terminal};
use super::{Container, ContainerConfig, ContainerNetwork, ContainerState, MountSource};
use crate::{Engine, EngineError};

pub use super::streams::Streams;

/// A container that runs. It ends with this process.
#[derive(Debug)]
pub struct RunningContainer {
    engine: Engine,
    container: Container,
    started: i64,
    running: Arc<Running>,
    terminal: Option<Terminal>,
    held: Held,
}

/// What has to live as long as the container runs.
struct Held {
    copying: Copying,
    listener: Listener,
    published: Published,
    lock: NamedLock,
    _layers: Vec<Layer>,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held")
            .field("lock", &self.lock)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts a container that does not run; with `keep_log`, what it prints can be read later.
    pub fn start_container(
        &self,
        container: &Container,
        streams: Streams,
        keep_log: bool,
    ) -> Result<RunningContainer, EngineError> {
        let store = self.store();
        let Some(lock) = store.try_lock_container(&container.id)? else {
            return Err(EngineError::Request(format!(
                "container {} is already running",
                container.name
            )));
        };
        if container.config.args.is_empty() {
            return Err(EngineError::Request("no command specified".to_owned()));
        }
        let layers = store
            .layers(&container.layers)?
            .ok_or_else(|| EngineError::Image {
                subject: container.config.image.clone(),
                reason: "a layer of it is missing from the store".to_owned(),
            })?;
        let folder = store.container_folder(&container.id);
        let spec = self.specify(container, &layers, &folder)?;
        let bound = self.bind_ports(&container.config)?;
        let log = match keep_log {
            true => Some(LogWriter::open(&folder)?),
            false => None,
        };
        let (copying, stdio) = Copying::start(streams, container.config.tty, log)?;
        // The processes hold the locks of what they use, should this process die before them.
        let mut keep = Vec::new();
        for fd in std::iter::once(lock.as_fd()).chain(layers.iter().map(AsFd::as_fd)) {
            let fd = fd.try_clone_to_owned();
            keep.push(fd.map_err(EngineError::io("copy", "a descriptor"))?);
        }
        let helper = self.shared.helper()?;
        let running = Arc::new(helper.spawn(&spec, stdio, Vec::new(), keep)?);
        copying.on_vanishing({
            let running = Arc::downgrade(&running);
            // As the kernel does it to those who have the terminal themselves: SIGHUP.
            move || {
                if let Some(running) = running.upgrade() {
                    running.signal(1);
                }
            }
        });
        let listener = Listener::start(self, &folder, &running)?;
        let mut container = container.clone();
        let started = store.now();
        container.state = ContainerState::Running {
            started,
            pid: std::process::id(),
            ports: bound.ports(),
        };
        let published = match bound.ports().is_empty() {
            true => Published::default(),
            false => bound.serve(helper.dialer(&running)?)?,
        };
        store.set_container_info(&container.id, &container.info())?;
        Ok(RunningContainer {
            engine: self.clone(),
            container,
            started,
            running,
            terminal: copying.terminal.clone(),
            held: Held {
                copying,
                listener,
                published,
                lock,
                _layers: layers,
            },
        })
    }

    /// Takes the ports of this machine that a container is to be reached by.
    fn bind_ports(&self, config: &ContainerConfig) -> Result<Bound, EngineError> {
        // As in Docker, one with the machine's own network has its ports there, and one without has none.
        if config.network != ContainerNetwork::Bridge || config.ports.is_empty() {
            return Ok(Bound::default());
        }
        if self.shared.helper()?.network() != sandbox::NetworkMode::Host {
            return Bound::bind(&config.ports);
        }
        // It shares the machine's network for want of one: its port is the machine's, and another one would lead to
        // whatever the machine has at the port of the container.
        let is_own =
            |port: &PublishedPort| port.address.is_none() && port.port == Some(port.container);
        match config.ports.iter().find(|port| !is_own(port)) {
            None => Ok(Bound::default()),
            Some(port) => Err(EngineError::Request(format!(
                "port {} cannot be published: containers share the network of this machine (`lapstrake info` says why); \
                 -p {0}:{0} and --network host use its ports as they are",
                port.container
            ))),
        }
    }

    fn specify(
        &self,
        container: &Container,
        layers: &[Layer],
        folder: &Path,
    ) -> Result<Spec, EngineError> {
        let config = &container.config;
        let work = folder.join("work");
        match std::fs::remove_dir_all(&work) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(EngineError::io("remove", &work)(error));
            }
            _ => {}
        }
        std::fs::create_dir(&work).map_err(EngineError::io("create", &work))?;
        let overlay = Overlay {
            lowers: layers.iter().map(|layer| layer.path().to_owned()).collect(),
            upper: Some(Upper {
                upper: folder.join("fs"),
                work,
            }),
        };
        let mut spec = Spec::new(Root::Overlay(overlay), config.args.clone());
        spec.read_only_root = config.read_only;
        spec.env.clone_from(&config.env);
        spec.cwd = match config.working_dir.as_str() {
            "" => "/".to_owned(),
            path => path.to_owned(),
        };
        spec.user = User::Named(config.user.clone());
        spec.hostname.clone_from(&config.hostname);
        spec.network = match config.network {
            ContainerNetwork::Bridge => sandbox::Network::Default,
            ContainerNetwork::None => sandbox::Network::None,
            ContainerNetwork::Host => sandbox::Network::Host,
        };
        spec.security = security(config.privileged);
        spec.shm_size = config.shm_size;
        spec.terminal = config.tty;
        spec.mounts = self.name_files(config, spec.network)?;
        for mount in &config.mounts {
            let source = match &mount.source {
                MountSource::Bind(path) => Source::Bind {
                    path: bind_source(path)?,
                    subpath: String::new(),
                },
                MountSource::Tmpfs { size, mode } => Source::Tmpfs {
                    size: *size,
                    mode: *mode,
                },
            };
            spec.mounts.push(sandbox::Mount {
                target: mount.target.clone(),
                source,
                read_only: mount.read_only,
            });
        }
        Ok(spec)
    }

    /// Returns the files that tell a container about names.
    fn name_files(
        &self,
        config: &ContainerConfig,
        network: sandbox::Network,
    ) -> Result<Vec<sandbox::Mount>, EngineError> {
        let mut extra = Vec::new();
        for entry in &config.add_hosts {
            let parsed = entry.split_once([':', '=']).and_then(|(name, address)| {
                let address: IpAddr = address.trim_matches(['[', ']']).parse().ok()?;
                Some((name.to_owned(), address))
            });
            extra.push(parsed.ok_or_else(|| {
                EngineError::Request(format!("bad format for add-host: {entry:?}"))
            })?);
        }
        let file = |target: &str, text: String| sandbox::Mount {
            target: target.to_owned(),
            source: Source::File {
                content: Content(text.into_bytes()),
                mode: 0o644,
                uid: 0,
                gid: 0,
            },
            read_only: false,
        };
        let mode = self.shared.helper()?.network();
        let hosts = sandbox::hosts_file(&config.hostname, &extra);
        let mut files = vec![
            file("/etc/hostname", format!("{}\n", config.hostname)),
            file("/etc/hosts", hosts),
        ];
        if network != sandbox::Network::None {
            let resolvers = sandbox::resolver_file(network, mode);
            files.push(file("/etc/resolv.conf", resolvers));
        }
        // What the user mounts there himself stays.
        files.retain(|file| !config.mounts.iter().any(|own| own.target == file.target));
        Ok(files)
    }

    /// Runs a further command in a container that runs, and returns how it ended.
    ///
    /// `started` is given the connection, for signals, and the command's terminal.
    pub fn exec(
        &self,
        container: &Container,
        request: &ExecRequest,
        streams: Streams,
        started: impl FnOnce(Arc<Control>, Option<Terminal>),
    ) -> Result<Status, EngineError> {
        exec(self.store(), container, request, streams, started)
    }
}

/// Runs a further command in a container that runs, and returns how it ended.
pub fn exec(
    store: &store::Store,
    container: &Container,
    request: &ExecRequest,
    streams: Streams,
    started: impl FnOnce(Arc<Control>, Option<Terminal>),
) -> Result<Status, EngineError> {
    let config = &container.config;
    let Some(control) = Control::connect(store, &container.id)? else {
        return Err(EngineError::Request(format!(
            "container {} is not running",
            container.id
        )));
    };
    let mut env = config.env.clone();
    if request.tty && !env.iter().any(|variable| variable.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    for variable in &request.env {
        let name = variable.split('=').next().unwrap_or_default();
        env.retain(|known| known.split('=').next() != Some(name));
        if variable.contains('=') {
            env.push(variable.clone());
        }
    }
    let cwd = match request.working_dir.as_deref() {
        Some(path) => path,
        None if config.working_dir.is_empty() => "/",
        None => &config.working_dir,
    };
    let user = request.user.as_ref().unwrap_or(&config.user);
    let entered = sandbox::Entered {
        args: request.command.clone(),
        env,
        cwd: cwd.to_owned(),
        user: User::Named(user.clone()),
        security: security(request.privileged || config.privileged),
        terminal: request.tty,
    };
    let (copying, stdio) = Copying::start(streams, request.tty, None)?;
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(EngineError::io("open", "/dev/null"))?;
    let fd = |fd: &Option<std::os::fd::OwnedFd>| match fd {
        Some(fd) => fd.try_clone(),
        None => null.as_fd().try_clone_to_owned(),
    };
    let mut own = Vec::with_capacity(3);
    for stream in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
        own.push(fd(stream).map_err(EngineError::io("copy", "a descriptor"))?);
    }
    control.exec(&entered, [own[0].as_fd(), own[1].as_fd(), own[2].as_fd()])?;
    // From here on only the command has its side: its end is seen.
    drop((own, stdio));
    let control = Arc::new(control);
    started(Arc::clone(&control), copying.terminal.clone());
    let status = control.finish()?;
    copying.finish();
    Ok(status)
}

fn security(privileged: bool) -> sandbox::Security {
    match privileged {
        true => sandbox::Security::Insecure,
        false => sandbox::Security::Sandbox,
    }
}

/// Returns the directory or file of a mount; a directory that is not there is made, as Docker does.
fn bind_source(path: &Path) -> Result<PathBuf, EngineError> {
    if !path.exists() {
        std::fs::create_dir_all(path).map_err(EngineError::io("create", path))?;
    }
    Ok(path.to_owned())
}

impl RunningContainer {
    /// Returns what can ask it to end, also while another thread waits for it.
    pub fn handle(&self) -> ContainerHandle {
        ContainerHandle::new(&self.running, self.terminal.clone())
    }

    /// Waits for its end, records it and returns it.
    pub fn wait(self) -> Result<Status, EngineError> {
        let Self {
            engine,
            mut container,
            started,
            running,
            terminal,
            held,
        } = self;
        let result = running.wait();
        drop(terminal);
        held.copying.finish();
        let finished = engine.store().now();
        container.state = match &result {
            Ok(exit) => match &exit.status {
                Status::NotStarted { code, reason } => ContainerState::Failed {
                    finished,
                    code: *code,
                    reason: reason.clone(),
                },
                status => ContainerState::Exited {
                    started,
                    finished,
                    code: status.shell_code(),
                },
            },
            Err(error) => ContainerState::Failed {
                finished,
                code: 125,
                reason: crate::error::chain(error),
            },
        };
        engine
            .store()
            .set_container_info(&container.id, &container.info())?;
        drop((held.listener, held.published));
        drop(held.lock);
        if container.config.remove {
            super::remove_container(engine.store(), &container, true)?;
        }
        Ok(result?.status)
    }
}

/// Reaches a container that runs.
#[derive(Debug, Clone)]
pub struct ContainerHandle {
    running: std::sync::Weak<Running>,
    terminal: Option<Terminal>,
}

impl ContainerHandle {
    pub(crate) fn new(running: &Arc<Running>, terminal: Option<Terminal>) -> Self {
        Self {
            running: Arc::downgrade(running),
            terminal,
        }
    }

    /// Sends a signal to its command.
    pub fn signal(&self, signal: i32) {
        if let Some(running) = self.running.upgrade() {
            running.signal(signal);
        }
    }

    /// Returns its terminal, if it has one.
    pub fn terminal(&self) -> Option<&Terminal> {
        self.terminal.as_ref()
    }
}
