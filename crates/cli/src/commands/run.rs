//! `lapstrake run`, `create`, `start` and `exec`: commands in containers.

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use engine::Engine;
use engine::container::{
    self, Container, ContainerMount, ContainerNetwork, CreateRequest, ExecRequest, MountSource,
    PullPolicy, RunningContainer, Streams,
};
use sandbox::Status;

use crate::arguments::{Global, ProgressMode};
use crate::attach::{self, RawTerminal};
use crate::failure::{Failure, exit};
use crate::{build_request, log, output, screen, settings};

/// What a container is to be.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Name of the container
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Set a variable; without a value it is taken from the environment
    #[arg(long, short = 'e', value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Mount a directory or file of this machine
    #[arg(long, short = 'v', value_name = "SOURCE:TARGET[:ro]")]
    volume: Vec<String>,
    /// Mount something: type=bind,source=…,target=…[,readonly] or type=tmpfs,target=…
    #[arg(long, value_name = "MOUNT")]
    mount: Vec<String>,
    /// Mount an empty directory in memory
    #[arg(long, value_name = "TARGET[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// Working directory
    #[arg(long, short = 'w', value_name = "DIR")]
    workdir: Option<String>,
    /// User, and group
    #[arg(long, short = 'u', value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Take another entrypoint than the image's
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// Network: bridge, none or host
    #[arg(long, alias = "net", value_name = "MODE", default_value = "bridge")]
    network: String,
    /// Host name
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Add a line to /etc/hosts
    #[arg(long, value_name = "HOST:IP")]
    add_host: Vec<String>,
    /// Set a label
    #[arg(long, short = 'l', value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Give the command a terminal
    #[arg(long, short = 't')]
    tty: bool,
    /// Pass standard input on
    #[arg(long, short = 'i')]
    interactive: bool,
    /// Remove the container when it ends
    #[arg(long)]
    rm: bool,
    /// Mount the root read-only
    #[arg(long)]
    read_only: bool,
    /// Do not confine the command
    #[arg(long)]
    privileged: bool,
    /// Signal that asks the container to stop
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES")]
    shm_size: Option<String>,
    /// Platform of the image
    #[arg(long, value_name = "PLATFORM", env = "DOCKER_DEFAULT_PLATFORM")]
    platform: Option<String>,
    /// When to ask the registry for the image: missing, always or never
    #[arg(long, value_name = "POLICY", default_value = "missing")]
    pull: String,
    /// Docker's own init; every container has one here
    #[arg(long, hide = true)]
    init: bool,
    /// Let a port of the container be reached on this machine
    #[arg(long, short = 'p', value_name = "[[IP:]PORT:]CONTAINER_PORT")]
    publish: Vec<String>,
    /// Publish all ports that the image exposes
    #[arg(long, short = 'P')]
    publish_all: bool,
    /// The image, its command and the command's arguments
    #[arg(
        value_name = "IMAGE [COMMAND [ARG…]]",
        required = true,
        trailing_var_arg = true
    )]
    words: Vec<String>,
}

/// Create a container without running it
#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    options: Options,
    /// Print nothing about a pull
    #[arg(long, short = 'q')]
    quiet: bool,
}

/// Run a command in a new container
#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    options: Options,
    /// Run in the background and print the container's id
    #[arg(long, short = 'd')]
    detach: bool,
    /// Print nothing about a pull
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Write the container's id to a file
    #[arg(long, value_name = "FILE")]
    cidfile: Option<PathBuf>,
}

/// Start containers that do not run
#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Show what it prints, pass signals on, and end with its code
    #[arg(long, short = 'a')]
    attach: bool,
    /// Pass standard input on
    #[arg(long, short = 'i')]
    interactive: bool,
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

/// Run a command in a container that runs
#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Set a variable
    #[arg(long, short = 'e', value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Working directory
    #[arg(long, short = 'w', value_name = "DIR")]
    workdir: Option<String>,
    /// User, and group
    #[arg(long, short = 'u', value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Give the command a terminal
    #[arg(long, short = 't')]
    tty: bool,
    /// Pass standard input on
    #[arg(long, short = 'i')]
    interactive: bool,
    /// Do not confine the command
    #[arg(long)]
    privileged: bool,
    /// The container, the command and its arguments
    #[arg(
        value_name = "CONTAINER COMMAND [ARG…]",
        required = true,
        num_args = 2..,
        trailing_var_arg = true
    )]
    words: Vec<String>,
}

/// Run a container for who started it in the background
#[derive(Debug, Args)]
pub(crate) struct Monitor {
    id: String,
}

/// What `docker run` ends with when the command was never reached.
const NOT_RUN: u8 = 125;

impl Options {
    fn request(&self) -> Result<CreateRequest> {
        let (image, command) = self.words.split_first().context("no image was named")?;
        let mut env = Vec::new();
        for path in &self.env_file {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("failed to read {}", path.display()))?;
            let lines = text.lines().map(str::trim_start);
            env.extend(
                lines
                    .filter(|line| !line.is_empty() && !line.starts_with('#'))
                    .filter_map(variable),
            );
        }
        env.extend(self.env.iter().filter_map(|text| variable(text)));
        let mut mounts = Vec::new();
        for text in &self.volume {
            mounts.push(volume(text)?);
        }
        for text in &self.mount {
            mounts.push(mount(text)?);
        }
        for text in &self.tmpfs {
            mounts.push(tmpfs(text)?);
        }
        let mut ports = Vec::new();
        for text in &self.publish {
            ports.extend(container::published_ports(text)?);
        }
        if self.network == "host" && (self.publish_all || !ports.is_empty()) {
            log::warning("Published ports are discarded when using host network mode");
        }
        let labels = self.label.iter().map(|text| {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            (key.to_owned(), value.to_owned())
        });
        Ok(CreateRequest {
            image: image.clone(),
            name: self.name.clone(),
            platform: match self.platform.as_deref() {
                None | Some("") => None,
                Some(text) => Some(
                    text.parse()
                        .with_context(|| format!("invalid platform {text:?}"))?,
                ),
            },
            pull: match self.pull.as_str() {
                "missing" => PullPolicy::Missing,
                "always" => PullPolicy::Always,
                "never" => PullPolicy::Never,
                other => {
                    bail!("invalid --pull {other:?}: there are missing, always and never")
                }
            },
            command: command.to_vec(),
            entrypoint: self.entrypoint.as_ref().map(|text| match text.as_str() {
                "" => Vec::new(),
                text => vec![text.to_owned()],
            }),
            env,
            labels: labels.collect(),
            working_dir: self.workdir.clone(),
            user: self.user.clone(),
            hostname: self.hostname.clone(),
            mounts,
            network: match self.network.as_str() {
                "bridge" | "default" => ContainerNetwork::Bridge,
                "none" => ContainerNetwork::None,
                "host" => ContainerNetwork::Host,
                other => bail!("network {other} not found: there are bridge, none and host"),
            },
            ports,
            publish_all: self.publish_all,
            add_hosts: self.add_host.clone(),
            tty: self.tty,
            stdin: self.interactive,
            remove: self.rm,
            read_only: self.read_only,
            privileged: self.privileged,
            stop_signal: self.stop_signal.clone(),
            shm_size: self
                .shm_size
                .as_deref()
                .map(|text| build_request::bytes("--shm-size", text))
                .transpose()?,
        })
    }
}

/// Returns `NAME=VALUE`; a name alone has the value of this environment, or is left out.
fn variable(text: &str) -> Option<String> {
    match text.contains('=') {
        true => Some(text.to_owned()),
        false => std::env::var(text)
            .ok()
            .map(|value| format!("{text}={value}")),
    }
}

fn absolute_target(text: &str, target: &str) -> Result<String> {
    match target.starts_with('/') && target != "/" {
        true => Ok(target.to_owned()),
        false => bail!("invalid mount {text:?}: {target:?} is no absolute path in the container"),
    }
}

fn volume(text: &str) -> Result<ContainerMount> {
    let mut parts = text.split(':');
    let (Some(source), Some(target)) = (parts.next(), parts.next()) else {
        bail!("volumes without a directory of this machine are not supported: {text:?}");
    };
    let mut read_only = false;
    for option in parts.flat_map(|options| options.split(',')) {
        match option {
            "ro" | "readonly" => read_only = true,
            // Labels, propagation and consistency have no other meaning here.
            "rw" | "z" | "Z" | "cached" | "delegated" | "consistent" | "rprivate" | "private" => {}
            other => bail!("invalid mode {other:?} of the volume {text:?}"),
        }
    }
    let is_path = source.starts_with('/') || source.starts_with('.') || source.starts_with('~');
    if !is_path {
        bail!("named volumes are not supported yet: {source:?}; use a path such as ./{source}");
    }
    Ok(ContainerMount {
        target: absolute_target(text, target)?,
        source: MountSource::Bind(
            std::path::absolute(source).with_context(|| format!("invalid volume {text:?}"))?,
        ),
        read_only,
    })
}

fn mount(text: &str) -> Result<ContainerMount> {
    let (mut kind, mut source, mut target) = ("volume", None, None);
    let (mut read_only, mut size) = (false, None);
    for field in text.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, "true"));
        match key {
            "type" => kind = value,
            "source" | "src" => source = Some(value),
            "target" | "destination" | "dst" => target = Some(value),
            "readonly" | "ro" => read_only = matches!(value, "true" | "1"),
            "tmpfs-size" => size = Some(build_request::bytes("--mount", value)?),
            _ => bail!("invalid --mount {text:?}: the field {key:?} is not known"),
        }
    }
    let target = target.with_context(|| format!("invalid --mount {text:?}: it has no target"))?;
    let source = match (kind, source) {
        ("bind", Some(source)) => {
            let path = std::path::absolute(source)?;
            if !path.exists() {
                bail!("bind source path does not exist: {}", path.display());
            }
            MountSource::Bind(path)
        }
        ("bind", None) => bail!("invalid --mount {text:?}: it has no source"),
        ("tmpfs", _) => MountSource::Tmpfs { size, mode: 0o1777 },
        (other, _) => bail!("mounts of type {other} are not supported; there are bind and tmpfs"),
    };
    Ok(ContainerMount {
        target: absolute_target(text, target)?,
        source,
        read_only,
    })
}

fn tmpfs(text: &str) -> Result<ContainerMount> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let (mut size, mut mode, mut read_only) = (None, 0o1777, false);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", value)) => size = Some(build_request::bytes("--tmpfs", value)?),
            Some(("mode", value)) => {
                mode = u32::from_str_radix(value, 8)
                    .with_context(|| format!("invalid mode of --tmpfs {text:?}"))?;
            }
            None if option == "ro" => read_only = true,
            _ => {}
        }
    }
    Ok(ContainerMount {
        target: absolute_target(text, target)?,
        source: MountSource::Tmpfs { size, mode },
        read_only,
    })
}

/// Makes the container; a pull is shown on stderr.
fn create(engine: &Engine, request: &CreateRequest, quiet: bool) -> Result<Container, Failure> {
    let missing = request.pull != PullPolicy::Never
        && engine::images::find(engine.store(), &request.image)
            .map_err(exit::engine)?
            .is_none();
    let mode = match (quiet, missing || request.pull == PullPolicy::Always) {
        (false, true) => ProgressMode::Auto,
        _ => ProgressMode::Quiet,
    };
    if missing && !quiet {
        log::info(&format!("Unable to find image '{}' locally", request.image));
    }
    screen::show(engine, mode, |sink, cancel| {
        engine.create_container(request, sink, cancel)
    })
}

impl Create {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let request = self.options.request().map_err(exit::usage)?;
        let engine = settings::open_engine(global)?;
        let container = create(&engine, &request, self.quiet)?;
        output::print(&format!("{}\n", container.id)).map_err(exit::builder)
    }
}

/// A failure before the command was reached, as `docker run` has it.
fn not_run(failure: Failure) -> Failure {
    match failure {
        Failure::Plain { error, .. } => Failure::Plain {
            code: NOT_RUN,
            error,
        },
        other => other,
    }
}

impl Run {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        self.run_inner(global)
    }

    fn run_inner(&self, global: &Global) -> Result<(), Failure> {
        let plain = |error| Failure::Plain {
            code: NOT_RUN,
            error,
        };
        let request = self.options.request().map_err(plain)?;
        if request.tty && request.stdin && !self.detach && !std::io::stdin().is_terminal() {
            return Err(exit::build(anyhow!("the input device is not a TTY")));
        }
        let engine = settings::open_engine(global).map_err(not_run)?;
        let container = create(&engine, &request, self.quiet).map_err(not_run)?;
        if let Some(path) = &self.cidfile {
            std::fs::write(path, &container.id)
                .with_context(|| format!("failed to write {}", path.display()))
                .map_err(plain)?;
        }
        if self.detach {
            start_monitor(global, &container)?;
            return output::print(&format!("{}\n", container.id)).map_err(plain);
        }
        let streams = attach::streams(request.stdin).map_err(plain)?;
        let started = engine
            .start_container(&container, streams, !request.remove)
            .map_err(exit::engine);
        let running = match started {
            Ok(running) => running,
            Err(failure) => {
                if request.remove {
                    let _ = engine.remove_container(&container, true);
                }
                return Err(not_run(failure));
            }
        };
        if !self.quiet {
            for note in engine.notes() {
                log::warning(&note);
            }
        }
        follow(running, request.tty)
    }
}

/// Waits for a container in the foreground; its end is that of this process.
fn follow(running: RunningContainer, tty: bool) -> Result<(), Failure> {
    let handle = running.handle();
    let terminal = RawTerminal::enter(tty);
    let other = handle.clone();
    attach::forward(handle.terminal().cloned(), move |signal| {
        other.signal(signal)
    })
    .map_err(exit::builder)?;
    let status = running.wait();
    drop(terminal);
    match status {
        Ok(status) => end_with(&status),
        Err(error) => Err(not_run(exit::engine(error))),
    }
}

/// Ends this process as the command has ended.
pub(crate) fn end_with(status: &Status) -> Result<(), Failure> {
    if let Status::NotStarted { reason, .. } = status {
        let hint = match reason.contains("executable file not found") {
            true => " (the image may have no shell and no tools: run what is in it by its path)",
            false => "",
        };
        log::error(&format!(
            "unable to start container process: {reason}{hint}"
        ));
    }
    match u8::try_from(status.shell_code()) {
        Ok(0) => Ok(()),
        Ok(code) => Err(Failure::Said(code)),
        Err(_) => Err(Failure::Said(255)),
    }
}

/// Runs a container in a process of its own, and returns once it was started.
fn start_monitor(global: &Global, container: &Container) -> Result<(), Failure> {
    let program = std::env::current_exe()
        .context("failed to find this program")
        .map_err(exit::builder)?;
    let mut process = Process::new(program);
    if let Some(root) = &global.root {
        process.arg("--root").arg(root);
    }
    if let Some(config) = &global.config {
        process.arg("--config").arg(config);
    }
    if let Some(rung) = &global.min_isolation {
        process.arg("--min-isolation").arg(rung);
    }
    let mut child = process
        .args(["container", "monitor", &container.id])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("failed to start a process")
        .map_err(exit::builder)?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        let _ = std::io::BufReader::new(out).read_line(&mut line);
    }
    match line.trim_end().split_once(' ') {
        Some(("started", _)) => Ok(()),
        Some((code, reason)) => Err(Failure::Plain {
            code: code.parse().unwrap_or(NOT_RUN),
            error: anyhow!("unable to start container process: {reason}"),
        }),
        None => Err(Failure::Plain {
            code: NOT_RUN,
            error: anyhow!("the process that was to run the container died"),
        }),
    }
}

/// How long a command that cannot be started may take to say so.
const START: Duration = Duration::from_millis(150);

impl Monitor {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        // Not of the session of whoever asked: it goes on when that ends.
        let _ = rustix::process::setsid();
        let say = |line: &str| output::print(&format!("{}\n", line.replace('\n', " ")));
        let start = || -> Result<(Engine, Container, RunningContainer), Failure> {
            let engine = settings::open_engine(global)?;
            let container =
                container::find_container(engine.store(), &self.id).map_err(exit::engine)?;
            let running = engine
                .start_container(&container, Streams::default(), true)
                .map_err(exit::engine)?;
            Ok((engine, container, running))
        };
        let (engine, container, running) = match start() {
            Ok(started) => started,
            Err(failure) => {
                let _ = say(&format!("{NOT_RUN} {}", failure.text()));
                return Err(failure);
            }
        };
        let other = running.handle();
        attach::forward(None, move |signal| other.signal(signal)).map_err(exit::builder)?;
        let (sender, ended) = std::sync::mpsc::channel();
        let waiting = std::thread::spawn(move || {
            let _ = sender.send(running.wait());
        });
        match ended.recv_timeout(START) {
            Ok(Ok(Status::NotStarted { code, reason })) => {
                let _ = say(&format!("{code} {reason}"));
            }
            Ok(Err(error)) => {
                let _ = say(&format!("{NOT_RUN} {}", engine::chain(&error)));
            }
            Ok(Ok(_)) | Err(_) => {
                let _ = say(&format!("started {}", container.id));
            }
        }
        close_stdout();
        let _ = waiting.join();
        drop(engine);
        Ok(())
    }
}

/// Lets whoever waits for this process's words go.
fn close_stdout() {
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

impl Start {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        if !self.attach && !self.interactive {
            let store = settings::open_records(global)?;
            for wanted in &self.containers {
                let container = container::find_container(&store, wanted).map_err(exit::engine)?;
                if !container.is_running() {
                    start_monitor(global, &container)?;
                }
                output::print(&format!("{wanted}\n")).map_err(exit::builder)?;
            }
            return Ok(());
        }
        let [wanted] = self.containers.as_slice() else {
            return Err(exit::build(anyhow!(
                "you cannot start and attach multiple containers at once"
            )));
        };
        let engine = settings::open_engine(global)?;
        let container = container::find_container(engine.store(), wanted).map_err(exit::engine)?;
        let streams = attach::streams(self.interactive).map_err(exit::builder)?;
        let running = engine
            .start_container(&container, streams, true)
            .map_err(exit::engine)?;
        follow(running, container.config.tty)
    }
}

impl Exec {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let store = settings::open_records(global)?;
        let Some((wanted, command)) = self.words.split_first() else {
            return Err(exit::usage(anyhow!("no container was named")));
        };
        if self.tty && self.interactive && !std::io::stdin().is_terminal() {
            return Err(exit::build(anyhow!("the input device is not a TTY")));
        }
        let container = container::find_container(&store, wanted).map_err(exit::engine)?;
        let request = ExecRequest {
            command: command.to_vec(),
            env: self.env.iter().filter_map(|text| variable(text)).collect(),
            user: self.user.clone(),
            working_dir: self.workdir.clone(),
            tty: self.tty,
            privileged: self.privileged,
        };
        let streams = attach::streams(self.interactive).map_err(exit::builder)?;
        let raw = RawTerminal::enter(self.tty);
        let status = container::exec(
            &store,
            &container,
            &request,
            streams,
            |control, terminal| {
                let _ = attach::forward(terminal, move |signal| {
                    let _ = control.signal(signal);
                });
            },
        );
        drop(raw);
        end_with(&status.map_err(exit::engine)?)
    }
}
