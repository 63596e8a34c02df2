//! `lapstrake build`.

use std::io::IsTerminal;
use std::sync::mpsc::sync_channel;

use anyhow::Context;
use clap::Args;
use engine::history::{BuildRecord, History};
use engine::{BuildFailure, BuildResult, Cancel, Destination, Engine, Output};
use progress::render::{self, Folds, Palette, Plain, Quiet, RawJson, Render, Size, Tty};
use progress::{Event, Sink, system_clock};

use super::call::Call;
use super::debug::{self, OnFailure};
use super::{space, why};
use crate::arguments::{ChosenRuntime, Global, ProgressMode};
use crate::failure::{Failure, exit};
use crate::{build_request, diagnostics, log, output, settings, signals, summary, telemetry};

/// Build an image from a Dockerfile
#[derive(Debug, Args)]
pub(crate) struct Build {
    /// Context: a directory, a git URL, an http URL, or - for a tar or a Dockerfile on stdin
    #[arg(value_name = "PATH|URL|-")]
    pub(crate) context: String,
    /// Name of the image, NAME[:TAG]
    #[arg(long = "tag", short = 't', value_name = "NAME[:TAG]")]
    pub(crate) tags: Vec<String>,
    /// The Dockerfile [default: PATH/Dockerfile]; - reads it from stdin
    #[arg(long, short = 'f', value_name = "FILE")]
    pub(crate) file: Option<String>,
    /// Stage to build [default: the last one]
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,
    /// Set a build argument; without a value it is taken from the environment
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    pub(crate) build_args: Vec<String>,
    /// Further context: a directory, docker-image://, oci-layout://, target:STAGE of this file, or a URL
    #[arg(long = "build-context", value_name = "NAME=VALUE")]
    pub(crate) build_contexts: Vec<String>,
    /// Set a label of the image
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub(crate) labels: Vec<String>,
    /// Set an annotation of the manifest, or of PART: index, manifest-descriptor, index-descriptor
    #[arg(long = "annotation", value_name = "[PART:]KEY=VALUE")]
    pub(crate) annotations: Vec<String>,
    /// Platforms to build for, such as linux/amd64,linux/arm64
    #[arg(
        long = "platform",
        value_name = "PLATFORM",
        value_delimiter = ',',
        env = "DOCKER_DEFAULT_PLATFORM"
    )]
    pub(crate) platforms: Vec<String>,
    /// Where the result goes: a directory, or type=image|oci|docker|local|tar|registry|cacheonly,…
    #[arg(long = "output", short = 'o', value_name = "OUTPUT")]
    pub(crate) outputs: Vec<String>,
    /// Push the image to the registry of its name
    #[arg(long)]
    pub(crate) push: bool,
    /// Load the image into Docker, Podman or containerd where one runs here; it is in the store too
    #[arg(long)]
    pub(crate) load: bool,
    /// Make one layer of those that the build adds
    #[arg(long)]
    pub(crate) squash: bool,
    /// Use results of other machines: NAME, type=registry,ref=NAME or type=local,src=DIR
    #[arg(long = "cache-from", value_name = "SOURCE")]
    pub(crate) cache_from: Vec<String>,
    /// Keep results for other machines: type=registry,ref=NAME | type=local,dest=DIR | type=inline, with
    /// mode=min|max
    #[arg(long = "cache-to", value_name = "TARGET")]
    pub(crate) cache_to: Vec<String>,
    /// Use no recorded results
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// Use no recorded results of these stages
    #[arg(long = "no-cache-filter", value_name = "STAGE", value_delimiter = ',')]
    pub(crate) no_cache_filters: Vec<String>,
    /// Ask the registry for newer base images
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub(crate) pull: Option<bool>,
    /// Network of RUN steps: default, none or host
    #[arg(long, value_name = "MODE", default_value = "default")]
    pub(crate) network: String,
    #[command(flatten)]
    pub(crate) runtime: ChosenRuntime,
    /// Add a line to /etc/hosts of RUN steps
    #[arg(long = "add-host", value_name = "HOST:IP")]
    pub(crate) add_hosts: Vec<String>,
    /// Size of /dev/shm in RUN steps
    #[arg(long, value_name = "BYTES")]
    pub(crate) shm_size: Option<String>,
    /// Limits of RUN steps, such as nofile=1024:2048
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]")]
    pub(crate) ulimits: Vec<String>,
    /// Memory limit of RUN steps
    #[arg(long, short = 'm', value_name = "BYTES")]
    pub(crate) memory: Option<String>,
    /// Memory and swap limit of RUN steps
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<String>,
    /// Processors a RUN step may use
    #[arg(long, value_name = "NUMBER")]
    pub(crate) cpus: Option<String>,
    /// Weight of RUN steps for the processors
    #[arg(long, short = 'c', value_name = "WEIGHT")]
    pub(crate) cpu_shares: Option<u64>,
    /// Length of a scheduling period, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_period: Option<u64>,
    /// Time of the processors in a period, in microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<i64>,
    /// Processors RUN steps may run on, such as 0-2
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_cpus: Option<String>,
    /// Memory nodes RUN steps may use
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_mems: Option<String>,
    /// Processes a RUN step may have
    #[arg(long, value_name = "NUMBER")]
    pub(crate) pids_limit: Option<i64>,
    /// Parent control group of RUN steps
    #[arg(long, value_name = "GROUP")]
    pub(crate) cgroup_parent: Option<String>,
    /// Secret for RUN steps: id=ID[,src=FILE][,env=NAME]
    #[arg(long = "secret", value_name = "SECRET")]
    pub(crate) secrets: Vec<String>,
    /// Let RUN steps trust further certificates: a PEM file, or host for what this machine trusts
    #[arg(long, value_name = "FILE|host")]
    pub(crate) ca_bundle: Option<String>,
    /// Kill a RUN step that takes longer, such as 10m
    #[arg(long, value_name = "DURATION")]
    pub(crate) step_timeout: Option<String>,
    /// Try a RUN step that failed again, at most this often
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(crate) retry: u32,
    /// Open a shell where a RUN step failed: in its files, with its mounts, variables, user and secrets
    #[arg(long, value_enum, value_name = "ACTION", conflicts_with = "keep_going")]
    pub(crate) on_failure: Option<OnFailure>,
    /// SSH agent or keys for RUN steps: default or ID[=SOCKET|KEY[,KEY]]
    #[arg(long = "ssh", value_name = "SSH")]
    pub(crate) ssh: Vec<String>,
    /// Allow network.host or security.insecure
    #[arg(long = "allow", value_name = "ENTITLEMENT", value_delimiter = ',')]
    pub(crate) allow: Vec<String>,
    /// Progress on stderr
    #[arg(long, value_enum, env = "BUILDKIT_PROGRESS", default_value = "auto")]
    pub(crate) progress: ProgressMode,
    /// Print nothing but the image's id
    #[arg(long, short = 'q')]
    pub(crate) quiet: bool,
    /// Write the image's id to a file
    #[arg(long, value_name = "FILE")]
    pub(crate) iidfile: Option<std::path::PathBuf>,
    /// Write what was built to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) metadata_file: Option<std::path::PathBuf>,
    /// Write when each step ran to a file, as Perfetto and Chrome's about:tracing read it
    #[arg(long, value_name = "FILE")]
    pub(crate) profile: Option<std::path::PathBuf>,
    /// RUN steps at once [default: max(16, 4 × cores)]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) jobs: Option<usize>,
    /// Finish what does not depend on a failed step
    #[arg(long)]
    pub(crate) keep_going: bool,
    /// Say why each step that ran did so
    #[arg(long)]
    pub(crate) explain: bool,
    /// Say how the image was built, beside it where it is pushed or written in OCI layout: true (all there is), mode=min,
    /// version=v0.2, …
    #[arg(long, value_name = "OPTIONS", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) provenance: Option<String>,
    /// Have a scanner list what is in the image, beside it like --provenance: true (the usual scanner),
    /// generator=IMAGE, …
    #[arg(long, value_name = "OPTIONS", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) sbom: Option<String>,
    /// Attestations: type=provenance,… as --provenance, type=sbom,… as --sbom
    #[arg(long, value_name = "ATTEST")]
    pub(crate) attest: Vec<String>,
    /// Say something of the build instead: check, outline or targets[,format=json]
    #[arg(long, value_name = "METHOD")]
    pub(crate) call: Option<String>,
    /// Check the Dockerfile and build nothing, as --call=check
    #[arg(long)]
    pub(crate) check: bool,
    /// Write the build's graph to stdout as buildctl reads it, and build nothing
    #[arg(long, conflicts_with_all = ["check", "call"])]
    pub(crate) print_llb: bool,
    #[command(flatten)]
    pub(crate) accepted: Accepted,
}

/// Options of `docker build` that change nothing here: what they ask for is done anyway, or said not to be.
#[derive(Debug, Args)]
pub(crate) struct Accepted {
    /// Containers of steps are always removed
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) rm: Option<bool>,
    #[arg(long, hide = true)]
    pub(crate) force_rm: bool,
    #[arg(long, hide = true)]
    pub(crate) compress: bool,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) disable_content_trust: Option<bool>,
    #[arg(long, hide = true)]
    pub(crate) isolation: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) security_opt: Vec<String>,
    /// The builder of docker buildx
    #[arg(long, hide = true)]
    pub(crate) builder: Option<String>,
}

impl Build {
    /// Returns what was asked for and has no effect, each with the reason.
    fn without_effect(&self) -> Vec<String> {
        let accepted = &self.accepted;
        let isolation = accepted.isolation.as_deref().unwrap_or_default();
        let builder = accepted.builder.as_deref().unwrap_or_default();
        let is_usual = |name: &str| name.is_empty() || name == "default";
        let told = [
            (
                accepted.rm == Some(false),
                "--rm=false",
                "steps leave no containers; --on-failure=shell and `lapstrake debug` look into a step that failed",
            ),
            (
                accepted.compress,
                "--compress",
                "the context is read where it is and sent nowhere",
            ),
            (
                accepted.disable_content_trust == Some(false),
                "--disable-content-trust=false",
                "signatures of content trust are not checked; name images by digest",
            ),
            (
                !is_usual(isolation),
                "--isolation",
                "there is one way to isolate steps on Linux; `lapstrake info` shows it",
            ),
            (
                !accepted.security_opt.is_empty(),
                "--security-opt",
                "steps have the usual system call filter and capabilities; RUN --security=insecure with --allow \
                 security.insecure has neither",
            ),
            (
                !is_usual(builder),
                "--builder",
                "there is one builder, which is this program",
            ),
            (
                self.cpu_period.is_some() && self.cpu_quota.is_none(),
                "--cpu-period",
                "a period limits nothing without --cpu-quota",
            ),
            (
                self.cpu_quota.is_some() && self.cpus.is_some(),
                "--cpu-quota",
                "--cpus sets the same limit",
            ),
        ];
        let told = told.into_iter().filter(|(asked, _, _)| *asked);
        told.map(|(_, option, why)| format!("{option} has no effect: {why}"))
            .collect()
    }
}

/// Events that may wait to be shown; steps that print faster than that wait too.
const EVENTS: usize = 512;

/// Builds, or says what was asked for instead.
pub(crate) fn run(build: &Build, global: &Global) -> Result<(), Failure> {
    let call = Call::of(build).map_err(exit::usage)?;
    for text in build.without_effect() {
        log::warning(&text);
    }
    if build.on_failure.is_some() {
        debug::require_terminal()?;
    }
    let (mut request, _spool) = build_request::request(build).map_err(exit::usage)?;
    if request.steps.ca_bundle.is_none() {
        request.steps.ca_bundle = settings::ca_bundle(global).map_err(exit::usage)?;
    }
    let sandbox = sandbox::Options::default();
    let runtime = build.runtime.named();
    let runtime = settings::runtime(global, runtime).map_err(exit::usage)?;
    let engine = settings::open_engine_with(global, sandbox, runtime)?;
    match call {
        Some(call) => {
            let answer = with_progress(build, engine, |engine, sink, _| {
                call.ask(engine, &request, sink)
            })?;
            answer.show()
        }
        None => {
            let history = History::new(engine.store());
            let result = with_progress(build, engine, |engine, sink, cancel| {
                engine.build(&request, sink, cancel)
            });
            let record = match &result {
                Ok(result) => result.record.as_deref(),
                Err(Failure::Build(failure)) => failure.record.as_deref(),
                Err(_) => None,
            };
            let _sending = record.map(|record| telemetry::send(global, record));
            conclude(build, &history, record);
            if let (Some(path), Some(record)) = (&build.profile, record) {
                write_profile(path, record).map_err(exit::builder)?;
            }
            if let Err(failure @ Failure::Build(failed)) = &result
                && let Some(state) = &failed.state
            {
                failure.show(None);
                debug::after_failure(state);
                return Err(Failure::Said(failure.code()));
            }
            finish(build, &request.outputs, &result?).map_err(exit::builder)
        }
    }
}

/// Lets the engine work while its progress is shown; once this returns all of it was.
fn with_progress<T>(
    build: &Build,
    engine: Engine,
    work: impl FnOnce(&Engine, &Sink, &Cancel) -> Result<T, BuildFailure>,
) -> Result<T, Failure> {
    let cancel = Cancel::default();
    signals::cancel_on_signal(&cancel)
        .context("failed to listen for signals")
        .map_err(exit::builder)?;
    let (sender, events) = sync_channel::<Event>(EVENTS);
    let mut renderer = renderer(build);
    let screen = std::thread::Builder::new()
        .name("progress".to_owned())
        .spawn(move || render::drive(&events, renderer.as_mut(), system_clock))
        .context("failed to start a thread")
        .map_err(exit::builder)?;
    let result = {
        let sink = Sink::new(sender, system_clock);
        let waiting = engine.clone();
        let _guard = cancel.on_request(move || waiting.stop_waiting());
        work(&engine, &sink, &cancel)
    };
    let surplus = engine.collect_surplus();
    // The screen ends when the last sender has gone, which the engine's works may still hold.
    drop(engine);
    let _ = screen.join();
    match surplus {
        Ok(Some((policy, done))) => space::warn_of_holder(&policy, &done),
        Ok(None) => {}
        Err(error) => log::warning(&format!(
            "the store was not brought within its limits: {}",
            engine::chain(&error)
        )),
    }
    result.map_err(Failure::Build)
}

fn renderer(build: &Build) -> Box<dyn Render + Send> {
    renderer_of(match build.quiet {
        true => ProgressMode::Quiet,
        false => build.progress,
    })
}

pub(crate) fn renderer_of(mode: ProgressMode) -> Box<dyn Render + Send> {
    let stderr = std::io::stderr;
    let mode = match mode {
        ProgressMode::Auto if log::is_json() => ProgressMode::Rawjson,
        ProgressMode::Auto if stderr().is_terminal() => ProgressMode::Tty,
        ProgressMode::Auto => ProgressMode::Plain,
        mode => mode,
    };
    match mode {
        // The log of a step that failed is text; the error is said as an object.
        ProgressMode::Quiet if log::is_json() => {
            Box::new(Quiet::new(std::io::sink(), log::warning))
        }
        ProgressMode::Quiet => Box::new(Quiet::new(stderr(), log::warning)),
        ProgressMode::Rawjson => Box::new(RawJson::new(stderr())),
        ProgressMode::Plain | ProgressMode::Auto => {
            Box::new(Plain::new(std::io::BufWriter::new(stderr())).folded(folds()))
        }
        ProgressMode::Tty => {
            let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let palette = if plain {
                Palette::Plain
            } else {
                Palette::Colors
            };
            Box::new(Tty::new(stderr(), palette, terminal_size))
        }
    }
}

/// Returns how the page folds on which this machine's logs are read.
fn folds() -> Folds {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| value == "true");
    match (is_set("GITHUB_ACTIONS"), is_set("GITLAB_CI")) {
        (true, _) => Folds::GitHub,
        (false, true) => Folds::GitLab,
        (false, false) => Folds::None,
    }
}

/// Says what a build came to, and why its steps ran if that was asked.
fn conclude(build: &Build, history: &History, record: Option<&BuildRecord>) {
    let quiet = build.quiet || build.progress == ProgressMode::Quiet;
    let Some(record) = record.filter(|_| !quiet) else {
        return;
    };
    let json = build.progress == ProgressMode::Rawjson || log::is_json();
    if !json {
        eprint!(
            "{}",
            summary::summary(record, terminal_size().columns.max(60))
        );
    }
    if build.explain {
        match why::explain_all(history, record) {
            // One more line of JSON among those of the progress.
            Ok(reasons) if json => {
                eprintln!("{}", serde_json::json!({ "explanations": reasons }));
            }
            Ok(reasons) => eprint!("\n{}", why::text(record, &reasons)),
            Err(error) => log::warning(&format!("the steps cannot be explained: {error:#}")),
        }
    }
}

fn write_profile(path: &std::path::Path, record: &BuildRecord) -> anyhow::Result<()> {
    let text = serde_json::to_string(&engine::history::trace(record))?;
    std::fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
}

fn terminal_size() -> Size {
    match rustix::termios::tcgetwinsize(std::io::stderr()) {
        Ok(size) if size.ws_col > 0 => Size {
            columns: usize::from(size.ws_col),
            rows: usize::from(size.ws_row),
        },
        _ => Size {
            columns: 80,
            rows: 24,
        },
    }
}

/// Writes what a script asked for.
fn finish(build: &Build, outputs: &[Output], result: &BuildResult) -> anyhow::Result<()> {
    if let Some((name, text)) = &result.dockerfile
        && !build.quiet
    {
        let source = diagnostics::Source::new(name, text);
        for warning in &result.warnings {
            log::finding(warning, &source);
        }
    }
    let id = result.image.as_ref().map(ToString::to_string);
    if let (Some(path), Some(id)) = (&build.iidfile, &id) {
        std::fs::write(path, id).with_context(|| format!("failed to write {}", path.display()))?;
    }
    if let Some(path) = &build.metadata_file {
        let text = serde_json::to_string_pretty(&metadata(result))?;
        std::fs::write(path, text)
            .with_context(|| format!("failed to write {}", path.display()))?;
    }
    if build.load
        && !build.quiet
        && !outputs
            .iter()
            .any(|output| matches!(output, Output::Docker(_)))
    {
        log::note(
            "--load: neither Docker nor Podman nor containerd runs here; the image is in lapstrake's store",
        );
    }
    let taken = outputs.iter().any(|output| match output {
        Output::Tar { destination } => *destination == Destination::Stdout,
        Output::Oci(archive) | Output::Docker(archive) => {
            archive.destination == Destination::Stdout
        }
        _ => false,
    });
    if build.quiet
        && !taken
        && let Some(id) = &id
    {
        output::print(&format!("{id}\n"))?;
    }
    Ok(())
}

/// Returns what `--metadata-file` holds, under the names that docker buildx gives it.
fn metadata(result: &BuildResult) -> serde_json::Value {
    let mut metadata = serde_json::Map::new();
    let mut add = |key: &str, value: Option<serde_json::Value>| {
        if let Some(value) = value {
            metadata.insert(key.to_owned(), value);
        }
    };
    let text = |digest: &oci::Digest| digest.to_string().into();
    add(
        "containerimage.config.digest",
        result.config.as_ref().map(text),
    );
    let descriptor = result.descriptor.as_ref();
    add(
        "containerimage.descriptor",
        descriptor.map(|descriptor| serde_json::json!(descriptor)),
    );
    let digest = descriptor.map(|descriptor| &descriptor.digest);
    add(
        "containerimage.digest",
        digest.or(result.image.as_ref()).map(text),
    );
    if !result.names.is_empty() {
        let names: Vec<String> = result.names.iter().map(ToString::to_string).collect();
        add("image.name", Some(names.join(",").into()));
    }
    metadata.into()
}
