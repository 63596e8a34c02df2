//! `lapstrake container …` and the same commands at the top.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use engine::container::{
    self, Container, ContainerState, Control, CopyOptions, CopySource, CopyTarget, LogReader,
};
use serde_json::{Map, Value};
use store::Store;

use super::inspect::Inspect;
use super::run::{Create, Exec, Monitor, Run, Start};
use crate::arguments::Global;
use crate::failure::{Failure, exit};
use crate::table::{Listing, human_duration, human_size};
use crate::{log, output, settings};

/// Manage containers
#[derive(Debug, Subcommand)]
pub(crate) enum Containers {
    Create(Box<Create>),
    Run(Box<Run>),
    Start(Start),
    Stop(Stop),
    Kill(Kill),
    Exec(Exec),
    Logs(Logs),
    Wait(Wait),
    Cp(Cp),
    Inspect(Inspect),
    Rm(Remove),
    Rename(Rename),
    Port(Port),
    Export(Export),
    #[command(visible_alias = "ps", alias = "list")]
    Ls(List),
    Prune(Prune),
    #[command(hide = true)]
    Monitor(Monitor),
}

impl Containers {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::Create(command) => command.run(global),
            Self::Run(command) => command.run(global),
            Self::Start(command) => command.run(global),
            Self::Stop(command) => command.run(global),
            Self::Kill(command) => command.run(global),
            Self::Exec(command) => command.run(global),
            Self::Logs(command) => command.run(global),
            Self::Wait(command) => command.run(global),
            Self::Cp(command) => command.run(global),
            Self::Inspect(command) => command.run_for_containers(global),
            Self::Rm(command) => command.run(global),
            Self::Rename(command) => command.run(global),
            Self::Port(command) => command.run(global),
            Self::Export(command) => command.run(global),
            Self::Ls(command) => command.run(global),
            Self::Prune(command) => command.run(global),
            Self::Monitor(command) => command.run(global),
        }
    }
}

/// Copy files between a container and this machine
#[derive(Debug, Args)]
#[command(
    after_help = "One of the two is CONTAINER:PATH, the other a path here, or - for a tar stream."
)]
pub(crate) struct Cp {
    /// Keep owners
    #[arg(long, short = 'a')]
    archive: bool,
    /// Follow a source that is a symlink
    #[arg(long, short = 'L')]
    follow_link: bool,
    /// Do not say what was copied
    #[arg(long, short = 'q')]
    quiet: bool,
    #[arg(value_name = "SOURCE")]
    source: String,
    #[arg(value_name = "TARGET")]
    target: String,
}

impl Cp {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let source = match (split(&self.source), self.source.as_str()) {
            (Some((container, path)), _) => CopySource::Container { container, path },
            (None, "-") => CopySource::Stdin,
            (None, path) => CopySource::Local(PathBuf::from(path)),
        };
        let target = match (split(&self.target), self.target.as_str()) {
            (Some((container, path)), _) => CopyTarget::Container { container, path },
            (None, "-") => CopyTarget::Stdout,
            (None, path) => CopyTarget::Local(PathBuf::from(path)),
        };
        let options = CopyOptions {
            archive: self.archive,
            follow_link: self.follow_link,
        };
        let engine = settings::open_engine(global)?;
        let bytes = engine
            .copy(&source, &target, options)
            .map_err(exit::engine)?;
        if !self.quiet && self.target != "-" {
            eprintln!(
                "Successfully copied {} to {}",
                human_size(bytes),
                self.target
            );
        }
        Ok(())
    }
}

/// Splits `CONTAINER:PATH`; what begins like a path is one, as Docker has it.
fn split(text: &str) -> Option<(String, String)> {
    if text.starts_with('/') || text.starts_with('.') {
        return None;
    }
    let (container, path) = text.split_once(':')?;
    Some((container.to_owned(), path.to_owned()))
}

/// Remove containers
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Kill a container that runs; one that is not there is no failure
    #[arg(long, short = 'f')]
    force: bool,
    /// Containers have no volumes of their own
    #[arg(long, short = 'v', hide = true)]
    volumes: bool,
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Remove {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let store = settings::open_for_files(global)?;
        for_each(&self.containers, |wanted| {
            let container = match container::find_container(&store, wanted) {
                Err(error) if self.force => {
                    log::error(&error.to_string());
                    return Ok(());
                }
                other => other?,
            };
            container::remove_container(&store, &container, self.force)?;
            output::print(&format!("{wanted}\n"))
        })
    }
}

/// Does something for each word; what fails is said, and the rest goes on.
fn for_each(words: &[String], work: impl Fn(&str) -> Result<()>) -> Result<(), Failure> {
    let mut failed = false;
    for word in words {
        if let Err(error) = work(word) {
            log::error(&format!("{error:#}"));
            failed = true;
        }
    }
    match failed {
        true => Err(Failure::Said(1)),
        false => Ok(()),
    }
}

/// Stop containers: a signal, and after a time another
#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// Seconds before it is killed
    #[arg(
        long,
        short = 't',
        alias = "timeout",
        default_value_t = 10,
        value_name = "SECONDS"
    )]
    time: u64,
    /// Signal to begin with
    #[arg(long, short = 's', value_name = "SIGNAL")]
    signal: Option<String>,
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Stop {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let store = settings::open_records(global)?;
        for_each(&self.containers, |wanted| {
            let container = container::find_container(&store, wanted)?;
            let signal = match &self.signal {
                Some(text) => container::signal_number(text)?,
                None => container.config.stop_signal,
            };
            if let Some(control) = Control::connect(&store, &container.id)? {
                control.signal(signal)?;
                if !control.wait(Duration::from_secs(self.time))? {
                    control.signal(9)?;
                }
                container::wait_for_container(&store, &container.id)?;
            }
            output::print(&format!("{wanted}\n"))
        })
    }
}

/// Send a signal to containers
#[derive(Debug, Args)]
pub(crate) struct Kill {
    #[arg(long, short = 's', default_value = "KILL", value_name = "SIGNAL")]
    signal: String,
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Kill {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let store = settings::open_records(global)?;
        let signal = container::signal_number(&self.signal).map_err(exit::engine)?;
        for_each(&self.containers, |wanted| {
            let container = container::find_container(&store, wanted)?;
            match Control::connect(&store, &container.id)? {
                Some(control) => control.signal(signal)?,
                None => bail!(
                    "cannot kill container: {wanted}: container {} is not running",
                    container.id
                ),
            }
            if signal == 9 {
                container::wait_for_container(&store, &container.id)?;
            }
            output::print(&format!("{wanted}\n"))
        })
    }
}

/// Wait for containers to end and print their exit codes
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Wait {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let store = settings::open_records(global)?;
        for_each(&self.containers, |wanted| {
            let container = container::find_container(&store, wanted)?;
            let code = container::wait_for_container(&store, &container.id)?;
            output::print(&format!("{code}\n"))
        })
    }
}

/// Give a container another name
#[derive(Debug, Args)]
pub(crate) struct Rename {
    container: String,
    name: String,
}

impl Rename {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let store = settings::open_records(global)?;
        let container = container::find_container(&store, &self.container).map_err(exit::engine)?;
        container::rename_container(&store, &container, &self.name).map_err(exit::engine)
    }
}

/// Show what a container has printed
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Go on until it ends
    #[arg(long, short = 'f')]
    follow: bool,
    /// Show times
    #[arg(long, short = 't')]
    timestamps: bool,
    /// Only this many of the last lines
    #[arg(long, short = 'n', default_value = "all", value_name = "NUMBER")]
    tail: String,
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// How often a log that grows is looked at.
const LOOK: Duration = Duration::from_millis(100);

impl Logs {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let store = settings::open_records(global)?;
        let container = container::find_container(&store, &self.container).map_err(exit::engine)?;
        self.show(&store, &container).map_err(exit::build)
    }

    fn show(&self, store: &Store, container: &Container) -> Result<()> {
        let tail = match self.tail.as_str() {
            "all" => None,
            text => Some(
                text.parse::<usize>()
                    .with_context(|| format!("invalid --tail {text:?}"))?,
            ),
        };
        let mut reader = LogReader::open(store, &container.id)?;
        let mut lines = Lines::default();
        let mut first = lines.split(reader.entries()?);
        if !self.follow {
            first.extend(lines.rest());
        }
        if let Some(tail) = tail {
            first.drain(..first.len().saturating_sub(tail));
        }
        self.print(&first)?;
        if !self.follow {
            return Ok(());
        }
        loop {
            let ended = match Control::connect(store, &container.id)? {
                Some(control) => control.wait(LOOK)?,
                None => true,
            };
            self.print(&lines.split(reader.entries()?))?;
            if ended {
                return self.print(&lines.rest());
            }
        }
    }

    fn print(&self, lines: &[Line]) -> Result<()> {
        for line in lines {
            let mut bytes = Vec::with_capacity(line.bytes.len() + 32);
            if self.timestamps {
                bytes.extend(timestamp(line.time).as_bytes());
                bytes.push(b' ');
            }
            bytes.extend(&line.bytes);
            let written = match line.is_error {
                true => std::io::stderr().write_all(&bytes),
                false => std::io::stdout().write_all(&bytes),
            };
            match written {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                result => result?,
            }
        }
        Ok(())
    }
}

struct Line {
    is_error: bool,
    time: u64,
    bytes: Vec<u8>,
}

/// Cuts output into lines, each stream for itself.
#[derive(Default)]
struct Lines {
    pending: [Option<Line>; 2],
}

impl Lines {
    fn split(&mut self, entries: Vec<container::LogEntry>) -> Vec<Line> {
        let mut lines = Vec::new();
        for entry in entries {
            for piece in entry.bytes.split_inclusive(|byte| *byte == b'\n') {
                let slot = &mut self.pending[usize::from(entry.is_error)];
                let line = slot.get_or_insert_with(|| Line {
                    is_error: entry.is_error,
                    time: entry.time,
                    bytes: Vec::new(),
                });
                line.bytes.extend(piece);
                if piece.ends_with(b"\n") {
                    lines.extend(slot.take());
                }
            }
        }
        lines
    }

    fn rest(&mut self) -> Vec<Line> {
        self.pending.iter_mut().filter_map(Option::take).collect()
    }
}

fn timestamp(nanoseconds: u64) -> String {
    let format = time::macros::format_description!(
        "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:9]Z"
    );
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanoseconds))
        .ok()
        .and_then(|date| date.format(format).ok())
        .unwrap_or_default()
}

/// List containers
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Also those that do not run
    #[arg(long, short = 'a')]
    all: bool,
    /// Only the newest, whatever it does
    #[arg(long, short = 'l')]
    latest: bool,
    /// Only this many of the newest, whatever they do
    #[arg(long, short = 'n', value_name = "NUMBER")]
    last: Option<usize>,
    /// Only containers that match: name=, id=, status=, label=, ancestor=, exited=
    #[arg(long = "filter", short = 'f', value_name = "FILTER")]
    filters: Vec<String>,
    /// How to print: table, json, or a template such as '{{.Names}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Do not shorten ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// Print only ids
    #[arg(long, short = 'q')]
    quiet: bool,
}

const COLUMNS: [(&str, &str); 7] = [
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("CreatedAgo", "CREATED"),
    ("Status", "STATUS"),
    ("Ports", "PORTS"),
    ("Names", "NAMES"),
];

impl List {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let store = settings::open_records(global)?;
        let mut found = container::containers(&store).map_err(exit::engine)?;
        for filter in &self.filters {
            keep(&mut found, filter).map_err(exit::usage)?;
        }
        let by_state = self
            .filters
            .iter()
            .any(|filter| filter.starts_with("status=") || filter.starts_with("exited="));
        let last = match self.latest {
            true => Some(1),
            false => self.last,
        };
        match last {
            Some(count) => found.truncate(count),
            None if self.all || by_state => {}
            None => found.retain(Container::is_running),
        }
        let mut out = String::new();
        if self.quiet {
            for container in &found {
                out.push_str(self.id(container));
                out.push('\n');
            }
        } else {
            let now = store.now();
            let listing = Listing {
                columns: &COLUMNS,
                rows: found.iter().map(|found| self.row(found, now)).collect(),
            };
            out = listing
                .render(self.format.as_deref())
                .map_err(exit::usage)?;
        }
        output::print(&out).map_err(exit::builder)
    }

    fn id<'a>(&self, container: &'a Container) -> &'a str {
        match self.no_trunc {
            true => &container.id,
            false => &container.id[..12],
        }
    }

    fn row(&self, container: &Container, now: i64) -> Map<String, Value> {
        let command = container.config.args.join(" ");
        let command = match self.no_trunc || command.chars().count() <= 20 {
            true => command,
            false => format!("{}…", command.chars().take(19).collect::<String>()),
        };
        let age = format!("{} ago", human_duration(now - container.created));
        let labels: Vec<String> = container
            .config
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let fields = [
            ("ID", self.id(container).to_owned()),
            ("Image", container.config.image.clone()),
            ("Command", format!("\"{command}\"")),
            ("CreatedAgo", age.clone()),
            ("RunningFor", age),
            ("CreatedAt", output::date(container.created)),
            ("Status", status(container, now)),
            ("State", state(container).to_owned()),
            ("Ports", ports(container)),
            ("Names", container.name.clone()),
            ("Labels", labels.join(",")),
        ];
        fields
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect()
    }
}

/// Returns where the ports of a container are reached, as Docker writes it.
fn ports(container: &Container) -> String {
    let ports: Vec<String> = container
        .ports()
        .iter()
        .map(|port| format!("{}->{}/tcp", port.address, port.container))
        .collect();
    ports.join(", ")
}

/// Show where the ports of a container are reached
#[derive(Debug, Args)]
pub(crate) struct Port {
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Only this port of the container
    #[arg(value_name = "PORT[/tcp]")]
    port: Option<String>,
}

impl Port {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let store = settings::open_records(global)?;
        let container = container::find_container(&store, &self.container).map_err(exit::engine)?;
        let mut out = String::new();
        let Some(wanted) = &self.port else {
            for port in container.ports() {
                out.push_str(&format!("{}/tcp -> {}\n", port.container, port.address));
            }
            return output::print(&out).map_err(exit::builder);
        };
        let number = wanted.strip_suffix("/tcp").unwrap_or(wanted);
        for port in container.ports() {
            if port.container.to_string() == number {
                out.push_str(&format!("{}\n", port.address));
            }
        }
        if out.is_empty() {
            let name = &self.container;
            return Err(exit::build(anyhow!(
                "no public port '{wanted}' published for {name}"
            )));
        }
        output::print(&out).map_err(exit::builder)
    }
}

/// Write all files of a container as a tar
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// File to write; standard output if absent
    #[arg(long, short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Export {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let engine = settings::open_engine(global)?;
        let Some(path) = &self.output else {
            if std::io::stdout().is_terminal() {
                return Err(exit::build(anyhow!(
                    "cowardly refusing to write a tar to a terminal; use --output or redirect"
                )));
            }
            let out = std::io::stdout().lock();
            engine
                .export_container(&self.container, out)
                .map_err(exit::engine)?;
            return Ok(());
        };
        engine
            .export_container_to(&self.container, path)
            .map_err(exit::engine)?;
        Ok(())
    }
}

fn state(container: &Container) -> &'static str {
    match container.state {
        ContainerState::Created | ContainerState::Failed { .. } => "created",
        ContainerState::Running { .. } => "running",
        ContainerState::Exited { .. } => "exited",
    }
}

fn status(container: &Container, now: i64) -> String {
    match &container.state {
        ContainerState::Created | ContainerState::Failed { .. } => "Created".to_owned(),
        ContainerState::Running { started, .. } => format!("Up {}", human_duration(now - started)),
        ContainerState::Exited { finished, code, .. } => {
            format!("Exited ({code}) {} ago", human_duration(now - finished))
        }
    }
}

fn keep(found: &mut Vec<Container>, filter: &str) -> Result<()> {
    let (key, value) = filter
        .split_once('=')
        .with_context(|| format!("invalid filter {filter:?}: it is not KEY=VALUE"))?;
    match key {
        "name" => found.retain(|container| container.name.contains(value)),
        "id" => found.retain(|container| container.id.starts_with(value)),
        "status" => found.retain(|container| state(container) == value),
        "ancestor" => found.retain(|container| {
            container.config.image == value
                || container.config.image.split(':').next() == Some(value)
                || container.image.hex().starts_with(value)
        }),
        "label" => found.retain(|container| match value.split_once('=') {
            Some((key, value)) => {
                container.config.labels.get(key).map(String::as_str) == Some(value)
            }
            None => container.config.labels.contains_key(value),
        }),
        "exited" => {
            let wanted: i32 = value
                .parse()
                .with_context(|| format!("invalid filter {filter:?}"))?;
            found.retain(|container| {
                matches!(container.state, ContainerState::Exited { code, .. } if code == wanted)
            });
        }
        _ => {
            bail!("invalid filter {key:?}: there are name, id, status, label, ancestor and exited")
        }
    }
    Ok(())
}

/// Remove all containers that do not run
#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Do not ask
    #[arg(long, short = 'f')]
    force: bool,
}

impl Prune {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        if !self.force && !output::confirm("This will remove all stopped containers.") {
            return Err(exit::build(anyhow!("nothing was removed; use --force")));
        }
        let store = settings::open_for_files(global)?;
        let mut out = String::new();
        for container in stopped(&store).map_err(exit::build)? {
            container::remove_container(&store, &container, false).map_err(exit::engine)?;
            out.push_str(&format!("{}\n", container.id));
        }
        if !out.is_empty() {
            out.insert_str(0, "Deleted Containers:\n");
        }
        output::print(&out).map_err(exit::builder)
    }
}

/// Returns the containers that do not run.
pub(crate) fn stopped(store: &Store) -> Result<Vec<Container>> {
    let mut found = container::containers(store)?;
    found.retain(|container| !container.is_running());
    Ok(found)
}
