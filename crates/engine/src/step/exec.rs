//! Runs a process: RUN.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};

use llb::{ExecOp, Mount, MountKind, NetworkMode, SecurityMode};
use progress::{RunningVertex, Stream};
use sandbox::{Content, Overlay, Root, Source, Spec, Status, Stdio, Upper, User};
use store::{Layer, MutLayer};

use crate::shell::StepState;
use crate::snapshot::Snapshot;
use crate::staged::StagedCopy;
use crate::step::cache_mount::CacheMounts;
use crate::step::output::{self, OutputReader, pipe};
use crate::step::trust::TrustLayer;
use crate::step::{StepContext, advice, attributes_of_root, ssh};
use crate::{Cancel, EngineError};

/// What a process gets from the steps before it.
pub(crate) struct Inputs<'a> {
    pub(crate) trees: &'a [Snapshot],
    /// What it takes of contexts, by the number of the input.
    pub(crate) staged: BTreeMap<usize, Arc<StagedCopy>>,
    /// What the graph lets it take.
    pub(crate) resources: Option<&'a llb::LinuxResources>,
}

impl Inputs<'_> {
    fn staged_of(&self, input: Option<usize>) -> Option<&Arc<StagedCopy>> {
        self.staged.get(&input?)
    }
}

/// What has to live as long as the step runs.
#[derive(Default)]
pub(crate) struct Held {
    /// Layers being written, with the output each becomes; without one it is thrown away.
    pub(crate) written: Vec<(Option<usize>, MutLayer, Vec<Layer>)>,
    pub(crate) layers: Vec<Layer>,
    cache_mounts: CacheMounts,
    /// Files of contexts, which processes see where they were copied to.
    staged: Vec<Arc<StagedCopy>>,
    agents: Vec<ssh::AgentSocket>,
    secrets: Vec<Vec<u8>>,
    /// The ids of secrets that nobody has given, and that were not required.
    absent_secrets: Vec<String>,
    /// What lies between the root's layers, which are named here, and what is written.
    trust: Option<(TrustLayer, Vec<Layer>)>,
}

impl Held {
    /// Returns the locks of all that is written, for processes: they hold them should the builder die before them.
    pub(crate) fn locks(&self) -> Result<Vec<OwnedFd>, EngineError> {
        let mut locks = Vec::new();
        for (_, layer, _) in &self.written {
            locks.push(clone_fd(layer.lock())?);
        }
        for copy in &self.staged {
            locks.push(clone_fd(copy.layer.lock())?);
        }
        for lock in self.cache_mounts.locks() {
            locks.push(clone_fd(lock)?);
        }
        if let Some((trust, _)) = &self.trust {
            locks.push(clone_fd(trust)?);
        }
        Ok(locks)
    }
}

/// Why one try of a step failed, and what is left of it if that is to be kept.
struct Failed {
    error: EngineError,
    state: Option<Box<StepState>>,
}

impl<E: Into<EngineError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            state: None,
        }
    }
}

/// Runs the process and returns its outputs by number; again with clean layers as often as the build allows.
pub(crate) fn run(
    context: &StepContext,
    op: &ExecOp,
    inputs: &Inputs<'_>,
    vertex: &RunningVertex,
    name: &str,
    cancel: &Cancel,
    usage: &mut Option<sandbox::Usage>,
) -> Result<Vec<Snapshot>, EngineError> {
    let all = context.steps.retries;
    let mut retry = 0;
    loop {
        let failed = match run_once(context, op, inputs, vertex, name, cancel, usage) {
            Ok(outputs) => return Ok(outputs),
            Err(failed) => failed,
        };
        if !matches!(failed.error, EngineError::Step { .. }) || retry == all {
            context.keep_failed(failed.state);
            return Err(failed.error);
        }
        retry += 1;
        let error = &failed.error;
        vertex.warn(format!("{error}; trying again ({retry} of {all})"));
    }
}

fn run_once(
    context: &StepContext,
    op: &ExecOp,
    inputs: &Inputs<'_>,
    vertex: &RunningVertex,
    name: &str,
    cancel: &Cancel,
    usage: &mut Option<sandbox::Usage>,
) -> Result<Vec<Snapshot>, Failed> {
    let mut held = Held::default();
    let spec = specify(context, op, inputs, &mut held, cancel)?;
    let executor = context.shared.executor()?;
    for note in context.shared.notes() {
        vertex.warn(note);
    }
    let (stdout, stdout_end) = pipe()?;
    let (stderr, stderr_end) = pipe()?;
    let stdio = Stdio {
        stdin: None,
        stdout: Some(stdout_end),
        stderr: Some(stderr_end),
    };
    let running = Arc::new(executor.spawn(&spec, stdio, Vec::new(), held.locks()?)?);
    let guard = cancel.on_request({
        let running = Arc::downgrade(&running);
        move || {
            if let Some(running) = running.upgrade() {
                running.kill();
            }
        }
    });
    let secrets = &held.secrets;
    let late = AtomicBool::new(false);
    let exit = std::thread::scope(|scope| {
        let reader = |end, stream| OutputReader::new(end, vertex.logger(stream), secrets);
        let (ended, end) = channel::<()>();
        if let Some(timeout) = context.steps.timeout {
            let (running, late) = (&running, &late);
            scope.spawn(move || {
                if end.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout) {
                    late.store(true, Ordering::SeqCst);
                    running.kill();
                }
            });
        }
        output::read_to_end([
            reader(stdout, Stream::Stdout),
            reader(stderr, Stream::Stderr),
        ]);
        let exit = running.wait();
        drop(ended);
        exit
    });
    drop(guard);
    let exit = exit?;
    for limit in &exit.usage.unset_limits {
        vertex.warn(format!("the limit could not be set: {limit}"));
    }
    *usage = Some(exit.usage.clone());
    if cancel.is_requested() {
        return Err(EngineError::Canceled.into());
    }
    let accepted: &[i32] = match op.meta.valid_exit_codes.as_slice() {
        [] => &[0],
        codes => codes,
    };
    if !matches!(exit.status, Status::Code(code) if accepted.contains(&code)) {
        let (ending, help) = match context.steps.timeout {
            Some(timeout) if late.load(Ordering::SeqCst) => {
                let ending = format!("killed: it took longer than {timeout:?} (--step-timeout)");
                (ending, None)
            }
            _ => (
                ending_in_words(&exit) + &crate::error::fullness(&context.shared.store),
                advice::of_exit(&op.meta.args, &exit, &held.absent_secrets),
            ),
        };
        let error = EngineError::Step {
            command: op.meta.args.join(" "),
            ending,
            help,
        };
        let keep = context.steps.keep_failed;
        let state = keep.then(|| Box::new(StepState::new(&context.shared, name, spec, held)));
        return Err(Failed { error, state });
    }
    if let Some((trust, image)) = &held.trust {
        let image = context.tree(image)?;
        for (output, layer, _) in &held.written {
            if output.is_some() {
                trust.strip(&image, &layer.path())?;
            }
        }
    }
    Ok(commit(context, op, inputs, held, name)?)
}

/// Says how a process ended.
fn ending_in_words(exit: &sandbox::Exit) -> String {
    let ending = match &exit.status {
        Status::Code(code) => format!("exit code: {code}"),
        Status::Signal(signal) => format!("killed by signal {signal} ({})", signal_name(*signal)),
        Status::NotStarted { code, reason } => format!("{reason} (exit code: {code})"),
    };
    match exit.out_of_memory {
        true => format!("killed: out of memory ({ending})"),
        false => ending,
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => "unknown",
    }
}

/// Makes the outputs of what the process has written.
fn commit(
    context: &StepContext,
    op: &ExecOp,
    inputs: &Inputs<'_>,
    mut held: Held,
    name: &str,
) -> Result<Vec<Snapshot>, EngineError> {
    let count = op.mounts.iter().filter_map(|mount| mount.output);
    let count = count.max().map_or(0, |last| last + 1);
    let mut outputs = vec![Snapshot::Layers(Vec::new()); count];
    for mount in &op.mounts {
        // A mount that could not be written to goes on as it came.
        if let (Some(output), Some(input)) = (mount.output, mount.input) {
            outputs[output] = inputs.trees[input].clone();
        }
    }
    for (output, layer, mut below) in held.written.drain(..) {
        if let Some(output) = output {
            below.push(context.commit(layer, name)?);
            outputs[output] = Snapshot::Layers(below);
        }
    }
    Ok(outputs)
}

/// Says what is to be run. What has to live as long goes to `held`.
pub(crate) fn specify(
    context: &StepContext,
    op: &ExecOp,
    inputs: &Inputs<'_>,
    held: &mut Held,
    cancel: &Cancel,
) -> Result<Spec, EngineError> {
    let root = op.mounts.iter().find(|mount| mount.dest == "/");
    let root = root.ok_or_else(|| EngineError::Graph("a process has no root".to_owned()))?;
    let layers = layers_of(context, root.input, inputs, held)?;
    let overlay = writable(context, &layers, root.output, held)?;
    let mut spec = Spec::new(Root::Overlay(overlay), op.meta.args.clone());
    spec.read_only_root = root.read_only;
    spec.env = environment(op);
    spec.cwd = match op.meta.cwd.as_str() {
        "" => "/".to_owned(),
        cwd => cwd.to_owned(),
    };
    spec.user = User::Named(op.meta.user.clone());
    if !op.meta.hostname.is_empty() {
        spec.hostname.clone_from(&op.meta.hostname);
    }
    spec.network = match op.network {
        NetworkMode::Sandbox => sandbox::Network::Default,
        NetworkMode::Host => sandbox::Network::Host,
        NetworkMode::None => sandbox::Network::None,
    };
    spec.security = match op.security {
        SecurityMode::Sandbox => sandbox::Security::Sandbox,
        SecurityMode::Insecure => sandbox::Security::Insecure,
    };
    context.check_entitlements(op)?;
    spec.shm_size = context.shm_size;
    let parent = &op.meta.cgroup_parent;
    spec.limits = super::limits::of_group(&context.limits, inputs.resources, parent);
    spec.rlimits = super::limits::rlimits(&op.meta.ulimits)?;
    if let Some(device) = op.cdi_devices.iter().find(|device| !device.optional) {
        return Err(EngineError::Unsupported(format!(
            "the device {}",
            device.name
        )));
    }
    spec.mounts = super::network::files(context, op, &spec)?;
    let mut mounts: Vec<&Mount> = op.mounts.iter().filter(|mount| mount.dest != "/").collect();
    // What is deeper is mounted later, whatever the order it was written in.
    mounts.sort_by_key(|mount| {
        mount
            .dest
            .split('/')
            .filter(|part| !part.is_empty())
            .count()
    });
    held.cache_mounts = caches_of(context, op, inputs, held, cancel)?;
    for mount in mounts {
        if let Some(mount) = mount_of(context, mount, inputs, held)? {
            spec.mounts.push(mount);
        }
    }
    for secret in &op.secret_env {
        if let Some(value) = context.secret(&secret.id, secret.optional)? {
            let text = String::from_utf8(value.clone()).map_err(|_| {
                EngineError::Request(format!(
                    "secret {} is no text and cannot be a variable",
                    secret.id
                ))
            })?;
            spec.env.push(format!("{}={text}", secret.name));
            held.secrets.push(value);
        } else {
            held.absent_secrets.push(secret.id.clone());
        }
    }
    if let Some(trust) = &context.trust {
        let layer = TrustLayer::make(context, trust, &layers, &mut spec)?;
        if let (Root::Overlay(overlay), false) = (&mut spec.root, layers.is_empty()) {
            overlay.lowers.push(layer.path());
        }
        held.trust = Some((layer, layers));
    }
    Ok(spec)
}

/// The search path of an image that names none, as in BuildKit.
pub(crate) const DEFAULT_PATH: &str =
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn environment(op: &ExecOp) -> Vec<String> {
    let mut env = Vec::new();
    if let Some(proxy) = &op.meta.proxy_env {
        let pairs = [
            ("HTTP_PROXY", &proxy.http_proxy),
            ("HTTPS_PROXY", &proxy.https_proxy),
            ("FTP_PROXY", &proxy.ftp_proxy),
            ("NO_PROXY", &proxy.no_proxy),
            ("ALL_PROXY", &proxy.all_proxy),
        ];
        for (name, value) in pairs {
            if !value.is_empty() {
                env.push(format!("{name}={value}"));
                env.push(format!("{}={value}", name.to_lowercase()));
            }
        }
    }
    env.extend(op.meta.env.iter().cloned());
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.push(DEFAULT_PATH.to_owned());
    }
    env
}

/// Takes the directories of cache mounts.
fn caches_of(
    context: &StepContext,
    op: &ExecOp,
    inputs: &Inputs<'_>,
    held: &mut Held,
    cancel: &Cancel,
) -> Result<CacheMounts, EngineError> {
    let mut wanted = Vec::new();
    for mount in &op.mounts {
        if let MountKind::Cache { id, sharing } = &mount.kind {
            let base = layers_of(context, mount.input, inputs, held)?;
            wanted.push((id.as_str(), base, (*sharing).into()));
        }
    }
    CacheMounts::claim(context, &wanted, cancel)
}

fn mount_of(
    context: &StepContext,
    mount: &Mount,
    inputs: &Inputs<'_>,
    held: &mut Held,
) -> Result<Option<sandbox::Mount>, EngineError> {
    let source = match &mount.kind {
        MountKind::Bind => bind_source(context, mount, inputs, held)?,
        MountKind::Cache { id, .. } => {
            let base = layers_of(context, mount.input, inputs, held)?;
            Source::Bind {
                path: held.cache_mounts.path(context, id, &base)?,
                subpath: mount.selector.clone(),
            }
        }
        MountKind::Tmpfs { size } => Source::Tmpfs {
            size: (*size > 0).then_some(*size as u64),
            mode: 0o1777,
        },
        MountKind::Secret(file) => {
            let Some(value) = context.secret(&file.id, file.optional)? else {
                held.absent_secrets.push(file.id.clone());
                return Ok(None);
            };
            held.secrets.push(value.clone());
            Source::File {
                content: Content(value),
                mode: file.mode,
                uid: file.uid,
                gid: file.gid,
            }
        }
        MountKind::Ssh(file) => {
            let Some(agent) = ssh::AgentSocket::open(context, file)? else {
                return Ok(None);
            };
            let source = Source::Bind {
                path: agent.path(),
                subpath: String::new(),
            };
            held.agents.push(agent);
            source
        }
    };
    Ok(Some(sandbox::Mount {
        target: mount.dest.clone(),
        source,
        read_only: mount.read_only || matches!(mount.kind, MountKind::Secret(_)),
    }))
}

fn bind_source(
    context: &StepContext,
    mount: &Mount,
    inputs: &Inputs<'_>,
    held: &mut Held,
) -> Result<Source, EngineError> {
    let subpath = mount.selector.clone();
    if let (Some(copy), None) = (inputs.staged_of(mount.input), mount.output) {
        return staged_source(context, mount, copy, held);
    }
    let layers = layers_of(context, mount.input, inputs, held)?;
    if !mount.read_only {
        return Ok(Source::Overlay {
            overlay: writable(context, &layers, mount.output, held)?,
            subpath,
        });
    }
    Ok(Source::Overlay {
        overlay: Overlay {
            lowers: paths(&layers),
            upper: None,
        },
        subpath,
    })
}

/// Returns files of a context where they were copied to; what is written to them is dropped.
fn staged_source(
    context: &StepContext,
    mount: &Mount,
    copy: &Arc<StagedCopy>,
    held: &mut Held,
) -> Result<Source, EngineError> {
    let below = copy.layer.path();
    held.staged.push(Arc::clone(copy));
    let upper = match mount.read_only {
        true => None,
        false => {
            let layer = context.store.new_layer()?;
            attributes_of_root(Some(&below), &layer.path())?;
            let upper = Upper {
                upper: layer.path(),
                work: layer.work(),
            };
            held.written.push((None, layer, Vec::new()));
            Some(upper)
        }
    };
    Ok(Source::Overlay {
        overlay: Overlay {
            lowers: vec![below],
            upper,
        },
        subpath: mount.selector.clone(),
    })
}

/// Returns an overlay over the layers with a fresh upper directory.
fn writable(
    context: &StepContext,
    layers: &[Layer],
    output: Option<usize>,
    held: &mut Held,
) -> Result<Overlay, EngineError> {
    let layer = context.new_layer(layers)?;
    let overlay = Overlay {
        lowers: paths(layers),
        upper: Some(Upper {
            upper: layer.path(),
            work: layer.work(),
        }),
    };
    held.written.push((output, layer, layers.to_vec()));
    Ok(overlay)
}

fn paths(layers: &[Layer]) -> Vec<PathBuf> {
    layers.iter().map(|layer| layer.path().to_owned()).collect()
}

fn layers_of(
    context: &StepContext,
    input: Option<usize>,
    inputs: &Inputs<'_>,
    held: &mut Held,
) -> Result<Vec<Layer>, EngineError> {
    let layers = match input.map(|input| &inputs.trees[input]) {
        None => Vec::new(),
        Some(Snapshot::Layers(layers)) => layers.clone(),
        Some(Snapshot::Context(tree)) => vec![context.materialize(tree)?],
    };
    held.layers.extend(layers.iter().cloned());
    Ok(layers)
}

fn clone_fd(fd: impl AsFd) -> Result<OwnedFd, EngineError> {
    fd.as_fd()
        .try_clone_to_owned()
        .map_err(EngineError::io("copy", "a descriptor"))
}
