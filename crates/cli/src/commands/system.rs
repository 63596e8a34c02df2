//! `lapstrake system …`, `builder …`, `info`, `version`, `login` and `logout`.

use std::io::{BufRead, IsTerminal, Read};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use oci::Platform;
use registry::{Credential, CredentialSources, Stored};
use serde_json::{Map, Value, json};
use store::{CollectPolicy, Item, Store};

use super::build::Build;
use super::container::stopped;
use crate::arguments::Global;
use crate::failure::{Failure, exit};
use crate::table::{Listing, human_size};
use crate::template::Template;
use crate::{build_request, output, settings};

/// Look after the state directory
#[derive(Debug, Subcommand)]
pub(crate) enum System {
    Df(Df),
    Prune(Prune),
    Info(Info),
}

impl System {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::Df(command) => command.run(global),
            Self::Prune(command) => command.run(global),
            Self::Info(command) => command.run(global),
        }
    }
}

/// Build, and look after what builds have left
#[derive(Debug, Subcommand)]
pub(crate) enum Builder {
    /// Build an image from a Dockerfile
    Build(Box<Build>),
    Prune(BuilderPrune),
    /// Show the version
    #[command(hide = true)]
    Version,
}

impl Builder {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::Build(build) => super::build::run(build, global),
            Self::Prune(command) => command.run(global),
            Self::Version => output::print(&format!("lapstrake {}\n", env!("CARGO_PKG_VERSION")))
                .map_err(exit::builder),
        }
    }
}

/// Show what takes space
#[derive(Debug, Args)]
pub(crate) struct Df {
    /// How to print: table, json, or a template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Show every layer and blob
    #[arg(long, short = 'v')]
    verbose: bool,
}

const KINDS: [(&str, &str); 5] = [
    ("Type", "TYPE"),
    ("TotalCount", "TOTAL"),
    ("Active", "ACTIVE"),
    ("Size", "SIZE"),
    ("Reclaimable", "RECLAIMABLE"),
];

const ITEMS: [(&str, &str); 4] = [
    ("ID", "ID"),
    ("Size", "SIZE"),
    ("InUse", "IN USE"),
    ("Origin", "ORIGIN"),
];

impl Df {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let store = settings::open_records(global)?;
        let text = match self.verbose {
            true => self.items(&store),
            false => self.kinds(&store),
        };
        output::print(&text.map_err(exit::build)?).map_err(exit::builder)
    }

    fn kinds(&self, store: &Store) -> Result<String> {
        let usage = store.usage()?;
        let named: u64 = usage
            .iter()
            .filter(|entry| entry.named)
            .map(|entry| entry.bytes)
            .sum();
        let all: u64 = usage.iter().map(|entry| entry.bytes).sum();
        let free = usage.iter().filter(|entry| !entry.named).count();
        let containers = engine::container::containers(store)?;
        let mut written = [0, 0];
        for container in &containers {
            let bytes = size_of(&store.container_folder(&container.id));
            written[usize::from(container.is_running())] += bytes;
        }
        let images = store.images()?;
        let used = images.iter().filter(|image| {
            containers
                .iter()
                .any(|container| container.image == image.id)
        });
        let running = containers.iter().filter(|found| found.is_running()).count();
        let rows = [
            ("Images", images.len(), used.count(), named, 0),
            (
                "Containers",
                containers.len(),
                running,
                written[0] + written[1],
                written[0],
            ),
            ("Local Volumes", 0, 0, 0, 0),
            ("Build Cache", free, 0, all - named, all - named),
        ];
        let rows = rows.map(|(kind, total, active, size, reclaimable)| {
            let reclaimable = match size {
                0 => "0B".to_owned(),
                size => format!(
                    "{} ({}%)",
                    human_size(reclaimable),
                    reclaimable * 100 / size
                ),
            };
            row([
                ("Type", kind.into()),
                ("TotalCount", total.to_string().into()),
                ("Active", active.to_string().into()),
                ("Size", human_size(size).into()),
                ("Reclaimable", reclaimable.into()),
            ])
        });
        Listing {
            columns: &KINDS,
            rows: rows.into_iter().collect(),
        }
        .render(self.format.as_deref())
    }

    fn items(&self, store: &Store) -> Result<String> {
        let rows = store.usage()?.into_iter().map(|entry| {
            let id = match &entry.item {
                Item::Layer(id) => format!("layer {}", id.0),
                Item::Blob(digest) => digest.to_string(),
            };
            row([
                ("ID", id.into()),
                ("Size", human_size(entry.bytes).into()),
                ("InUse", entry.named.to_string().into()),
                ("Origin", entry.origin.clone().into()),
            ])
        });
        Listing {
            columns: &ITEMS,
            rows: rows.collect(),
        }
        .render(self.format.as_deref())
    }
}

fn row<const N: usize>(fields: [(&str, Value); N]) -> Map<String, Value> {
    fields
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// Returns the bytes of the files below a folder, as far as they can be seen.
fn size_of(folder: &std::path::Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size_of(&entry.path()),
        Ok(meta) if meta.is_file() => meta.len(),
        _ => 0,
    });
    sizes.sum()
}

/// Remove what nothing needs: stopped containers, images without a name, results of builds
#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Also images with a name, unless a container is made of them
    #[arg(long, short = 'a')]
    all: bool,
    /// Do not ask
    #[arg(long, short = 'f')]
    force: bool,
    /// There are no volumes to remove
    #[arg(long, hide = true)]
    volumes: bool,
}

impl Prune {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let warning = "This will remove all stopped containers, images that are not used, and all build cache.";
        if !self.force && !output::confirm(warning) {
            return Err(exit::build(anyhow!("nothing was removed; use --force")));
        }
        let store = settings::open_for_files(global)?;
        let mut out = String::new();
        for container in stopped(&store).map_err(exit::build)? {
            engine::container::remove_container(&store, &container, false).map_err(exit::engine)?;
            out.push_str(&format!("{}\n", container.id));
        }
        if !out.is_empty() {
            out = format!("Deleted Containers:\n{out}\n");
        }
        let images = super::image::prune(&store, self.all).map_err(exit::build)?;
        if !images.is_empty() {
            out.push_str(&format!("Deleted Images:\n{images}\n"));
        }
        let policy = CollectPolicy {
            unused_since: Some(i64::MAX),
            ..CollectPolicy::default()
        };
        let done = store.collect(&policy).map_err(exit::builder)?;
        out.push_str(&format!(
            "Total reclaimed space: {}\n",
            human_size(done.bytes)
        ));
        output::print(&out).map_err(exit::builder)
    }
}

/// Remove results of builds
#[derive(Debug, Args)]
pub(crate) struct BuilderPrune {
    /// All of them; without a limit this is so anyway
    #[arg(long, short = 'a')]
    all: bool,
    /// Do not ask
    #[arg(long, short = 'f')]
    force: bool,
    /// Keep as much as fits
    #[arg(long, alias = "keep-storage", value_name = "BYTES")]
    max_used_space: Option<String>,
    /// Keep at least this much
    #[arg(long, value_name = "BYTES")]
    reserved_space: Option<String>,
    /// Leave this much of the disk free
    #[arg(long, value_name = "BYTES")]
    min_free_space: Option<String>,
    /// Only what matches: until=24h, or unused-for=24h
    #[arg(long = "filter", value_name = "FILTER")]
    filters: Vec<String>,
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
}

impl BuilderPrune {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let store = settings::open_for_files(global)?;
        let policy = self.policy(store.now()).map_err(exit::usage)?;
        if !self.force && !self.dry_run && !output::confirm("This will remove build cache.") {
            return Err(exit::build(anyhow!("nothing was removed; use --force")));
        }
        let done = store.collect(&policy).map_err(exit::builder)?;
        let mut out = format!("Total:\t{}\n", human_size(done.bytes));
        if let Some((bytes, holder)) = done.held {
            out.push_str(&format!(
                "{} cannot go: {holder} and others need it\n",
                human_size(bytes)
            ));
        }
        output::print(&out).map_err(exit::builder)
    }

    fn policy(&self, now: i64) -> Result<CollectPolicy> {
        let bytes = |name: &str, text: &Option<String>| {
            text.as_deref()
                .map(|text| build_request::bytes(name, text))
                .transpose()
        };
        let mut policy = CollectPolicy {
            max_used: bytes("--max-used-space", &self.max_used_space)?,
            reserved: bytes("--reserved-space", &self.reserved_space)?.unwrap_or(0),
            min_free: bytes("--min-free-space", &self.min_free_space)?,
            dry_run: self.dry_run,
            ..CollectPolicy::default()
        };
        for filter in &self.filters {
            match filter.split_once('=') {
                Some(("until" | "unused-for", text)) => {
                    policy.unused_since = Some(now - duration(text)?);
                }
                _ => bail!("invalid filter {filter:?}: there are until and unused-for"),
            }
        }
        let limited = policy.max_used.is_some() || policy.min_free.is_some();
        if !limited && policy.unused_since.is_none() {
            policy.unused_since = Some(i64::MAX);
        }
        Ok(policy)
    }
}

/// Reads `24h`, `1h30m`, `90s` or `7d`.
fn duration(text: &str) -> Result<i64> {
    let wrong = || format!("invalid duration {text:?}: use for example 24h");
    let mut seconds = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .with_context(wrong)?;
        let number: i64 = rest[..end].parse().with_context(wrong)?;
        let unit = match rest.as_bytes()[end] {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => 86_400,
            _ => bail!(wrong()),
        };
        seconds += number.checked_mul(unit).with_context(wrong)?;
        rest = &rest[end + 1..];
    }
    Ok(seconds)
}

/// Show what this is and where it keeps things
#[derive(Debug, Args)]
pub(crate) struct Info {
    /// How to print: json, or a template
    #[arg(long, short = 'f', value_name = "FORMAT")]
    format: Option<String>,
}

impl Info {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let store = settings::open_records(global)?;
        let text = self.text(&store).map_err(exit::build)?;
        output::print(&text).map_err(exit::builder)
    }

    fn text(&self, store: &Store) -> Result<String> {
        let containers = engine::container::containers(store)?;
        let running = containers.iter().filter(|found| found.is_running()).count();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let uname = rustix::system::uname();
        let kernel = uname.release().to_string_lossy().into_owned();
        let host = Platform::host();
        let value = json!({
            "Containers": containers.len(),
            "ContainersRunning": running,
            "ContainersStopped": containers.len() - running,
            "Images": store.images()?.len(),
            "Driver": "overlay",
            "KernelVersion": kernel,
            "OSType": host.os,
            "Architecture": host.architecture,
            "NCPU": cores,
            "RootDir": store.root().display().to_string(),
            "Ids": store.ids().to_string(),
            "ServerVersion": env!("CARGO_PKG_VERSION"),
        });
        match self.format.as_deref() {
            Some("json") => Ok(format!("{value}\n")),
            Some(template) if !template.is_empty() => {
                Ok(format!("{}\n", Template::parse(template)?.apply(&value)?))
            }
            _ => Ok(format!(
                "Containers: {}\n Running: {running}\n Stopped: {}\nImages: {}\nVersion: {}\n\
                 Storage Driver: overlay\nKernel Version: {kernel}\nOSType: {}\nArchitecture: {}\n\
                 CPUs: {cores}\nRoot Dir: {}\nIds: {}\n",
                value["Containers"],
                value["ContainersStopped"],
                value["Images"],
                env!("CARGO_PKG_VERSION"),
                host.os,
                host.architecture,
                store.root().display(),
                store.ids(),
            )),
        }
    }
}

/// Show the version
#[derive(Debug, Args)]
pub(crate) struct Version {
    /// How to print: json, or a template
    #[arg(long, short = 'f', value_name = "FORMAT")]
    format: Option<String>,
}

impl Version {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let host = Platform::host();
        let part = json!({
            "Version": env!("CARGO_PKG_VERSION"),
            "Os": host.os,
            "Arch": host.architecture,
        });
        // There is no server; who asks for its version gets that of what does its work.
        let value = json!({"Client": part, "Server": part});
        let text = match self.format.as_deref() {
            Some("json") => format!("{value}\n"),
            Some(template) if !template.is_empty() => {
                let template = Template::parse(template).map_err(exit::usage)?;
                format!("{}\n", template.apply(&value).map_err(exit::build)?)
            }
            _ => format!(
                "lapstrake\n Version:    {}\n OS/Arch:    {host}\n",
                env!("CARGO_PKG_VERSION")
            ),
        };
        output::print(&text).map_err(exit::builder)
    }
}

/// Log in to a registry
#[derive(Debug, Args)]
pub(crate) struct Login {
    #[arg(long, short = 'u', value_name = "NAME")]
    username: Option<String>,
    /// Seen by others on this machine: rather use --password-stdin
    #[arg(long, short = 'p', value_name = "PASSWORD")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Docker Hub if absent
    server: Option<String>,
}

/// The registry of names without one.
const DEFAULT_REGISTRY: &str = "docker.io";

impl Login {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let credential = self.credential().map_err(exit::build)?;
        let server = self.server.as_deref().unwrap_or(DEFAULT_REGISTRY);
        let settings = settings::registries(global).map_err(exit::usage)?;
        let sources = CredentialSources::from_environment();
        let stored = runtime()?
            .block_on(registry::login(&settings, &sources, server, &credential))
            .map_err(exit::build_error)?;
        if let Stored::File(path) = stored {
            eprintln!(
                "WARNING! Your credentials are stored unencrypted in '{}'.",
                path.display()
            );
        }
        output::print("Login Succeeded\n").map_err(exit::builder)
    }

    fn credential(&self) -> Result<Credential> {
        let username = match &self.username {
            Some(name) => name.clone(),
            None if self.password_stdin => bail!("Must provide --username with --password-stdin"),
            None => ask("Username: ", false)?,
        };
        let password = match (&self.password, self.password_stdin) {
            (Some(_), true) => bail!("--password and --password-stdin are mutually exclusive"),
            (Some(password), false) => {
                eprintln!(
                    "WARNING! Using --password via the CLI is insecure. Use --password-stdin."
                );
                password.clone()
            }
            (None, true) => {
                let mut text = String::new();
                std::io::stdin()
                    .lock()
                    .read_to_string(&mut text)
                    .context("failed to read the password")?;
                text.trim_end_matches(['\r', '\n']).to_owned()
            }
            (None, false) => ask("Password: ", true)?,
        };
        if password.is_empty() {
            bail!("password is empty");
        }
        Ok(Credential::Basic { username, password })
    }
}

/// Asks on the terminal; what is secret is not shown.
fn ask(question: &str, secret: bool) -> Result<String> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!("Cannot perform an interactive login from a non TTY device");
    }
    eprint!("{question}");
    let before = rustix::termios::tcgetattr(&stdin)?;
    if secret {
        let mut hidden = before.clone();
        hidden.local_modes -= rustix::termios::LocalModes::ECHO;
        rustix::termios::tcsetattr(&stdin, rustix::termios::OptionalActions::Now, &hidden)?;
    }
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    if secret {
        rustix::termios::tcsetattr(&stdin, rustix::termios::OptionalActions::Now, &before)?;
        eprintln!();
    }
    read.context("failed to read the answer")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Log out from a registry
#[derive(Debug, Args)]
pub(crate) struct Logout {
    /// Docker Hub if absent
    server: Option<String>,
}

impl Logout {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let server = self.server.as_deref().unwrap_or(DEFAULT_REGISTRY);
        let sources = CredentialSources::from_environment();
        let found = runtime()?
            .block_on(registry::logout(&sources, server))
            .map_err(exit::build_error)?;
        let line = match found {
            true => format!("Removing login credentials for {server}\n"),
            false => format!("Not logged in to {server}\n"),
        };
        output::print(&line).map_err(exit::builder)
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the network")
        .map_err(exit::builder)
}
