//! `lapstrake system …`, `builder …`, `info`, `version`, `login` and `logout`.

use std::io::{BufRead, IsTerminal, Read};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use oci::Platform;
use registry::{Credential, CredentialSources, RegistryError, Stored};
use serde_json::json;
use store::{OpenOptions, Store};

use super::build::Build;
use super::history::HistoryCommand;
use super::space::{BuilderPrune, Df, Prune};
use super::system_check::Check;
use crate::arguments::{ChosenRuntime, Global};
use crate::failure::{Failure, exit};
use crate::settings::Outlook;
use crate::template::Template;
use crate::{output, places, settings};

/// Look after the state directory
#[derive(Debug, Subcommand)]
pub(crate) enum System {
    Df(Df),
    Prune(Prune),
    Info(Info),
    Check(Check),
}

impl System {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::Df(command) => command.run(global),
            Self::Prune(command) => command.run(global),
            Self::Info(command) => command.run(global),
            Self::Check(command) => command.run(global),
        }
    }
}

/// Build, and look after what builds have left
#[derive(Debug, Subcommand)]
pub(crate) enum Builder {
    /// Build an image from a Dockerfile
    Build(Box<Build>),
    Prune(BuilderPrune),
    /// Look after the records of builds
    #[command(subcommand)]
    History(HistoryCommand),
    /// Show the version
    #[command(hide = true)]
    Version,
}

impl Builder {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::Build(build) => super::build::run(build, global),
            Self::Prune(command) => command.run(global),
            Self::History(command) => command.run(global),
            Self::Version => output::print(&format!("lapstrake {}\n", env!("CARGO_PKG_VERSION")))
                .map_err(exit::builder),
        }
    }
}

/// Show what this is and where it keeps things
#[derive(Debug, Args)]
pub(crate) struct Info {
    /// How to print: json, or a template
    #[arg(long, short = 'f', value_name = "FORMAT")]
    format: Option<String>,
    #[command(flatten)]
    runtime: ChosenRuntime,
}

impl Info {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        // Before the namespaces are entered in which everybody is root.
        let root = places::root(global).map_err(exit::usage)?;
        let runtime = settings::runtime(global, self.runtime.named());
        let runtime = match runtime.map_err(exit::usage)? {
            Some(runtime) => format!("{} ({})", runtime.title(), runtime.path().display()),
            None => "native".to_owned(),
        };
        let outlook = settings::outlook()?;
        let store = Store::open(&root, OpenOptions::new(None)).map_err(exit::builder)?;
        let text = self.text(&store, &outlook, &runtime).map_err(exit::build)?;
        output::print(&text).map_err(exit::builder)
    }

    fn text(&self, store: &Store, outlook: &Outlook, runtime: &str) -> Result<String> {
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
            "Isolation": outlook.isolation.rung.to_string(),
            "IsolationNotes": outlook.isolation.notes,
            "StepNetwork": outlook.network,
            "StepRuntime": runtime,
            "ServerVersion": env!("CARGO_PKG_VERSION"),
        });
        let notes: String = outlook
            .isolation
            .notes
            .iter()
            .map(|note| format!(" {note}\n"))
            .collect();
        match self.format.as_deref() {
            Some("json") => Ok(format!("{value}\n")),
            Some(template) if !template.is_empty() => {
                Ok(format!("{}\n", Template::parse(template)?.apply(&value)?))
            }
            _ => Ok(format!(
                "Containers: {}\n Running: {running}\n Stopped: {}\nImages: {}\nVersion: {}\n\
                 Storage Driver: overlay\nKernel Version: {kernel}\nOSType: {}\nArchitecture: {}\n\
                 CPUs: {cores}\nRoot Dir: {}\nIds: {}\nIsolation: {}\n{notes}Step Network: {}\nStep Runtime: {runtime}\n",
                value["Containers"],
                value["ContainersStopped"],
                value["Images"],
                env!("CARGO_PKG_VERSION"),
                host.os,
                host.architecture,
                store.root().display(),
                store.ids(),
                outlook.isolation.rung,
                outlook.network,
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
            .map_err(|error| match error {
                RegistryError::Unauthorized { .. } => exit::build(
                    anyhow!(error).context("the registry refuses this username or password"),
                ),
                other => exit::build_error(other),
            })?;
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
        bail!(
            "Cannot perform an interactive login from a non TTY device; use --username NAME --password-stdin"
        );
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
