//! What can be typed: Docker's names where Docker has one.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands;

/// Builds container images from Dockerfiles: no daemon, no root, one binary.
#[derive(Debug, Parser)]
#[command(name = "lapstrake", version, propagate_version = true)]
#[command(after_help = "Examples:
  lapstrake build -t app .                      build the Dockerfile here and name the image
  lapstrake build --target client -o out .      build one stage and take its files
  lapstrake images                              list what was built
  lapstrake run --rm app                        try it out")]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// State directory [default: $XDG_DATA_HOME/lapstrake, or /var/lib/lapstrake as root]
    #[arg(long, global = true, env = "LAPSTRAKE_ROOT", value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Configuration file [default: $XDG_CONFIG_HOME/lapstrake/config.toml]
    #[arg(long, global = true, env = "LAPSTRAKE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Refuse to run steps with less isolation: root, single-id or subordinate-ids; ,network for a network of their own
    #[arg(
        long,
        global = true,
        env = "LAPSTRAKE_MIN_ISOLATION",
        value_name = "RUNG"
    )]
    pub(crate) min_isolation: Option<String>,
    /// Log what the program does; LAPSTRAKE_LOG chooses more finely
    #[arg(long, short = 'D', global = true, env = "LAPSTRAKE_DEBUG", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) debug: bool,
    /// How errors, warnings and the log are written to stderr
    #[arg(
        long,
        global = true,
        env = "LAPSTRAKE_LOG_FORMAT",
        value_enum,
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub(crate) log_format: LogFormat,
}

/// The choice of what runs RUN steps.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ChosenRuntime {
    /// Run RUN steps with an OCI runtime: crun, runc, or the path of one [default: native, the built-in sandbox]
    #[arg(long, env = "LAPSTRAKE_RUNTIME", value_name = "NAME|PATH")]
    runtime: Option<String>,
}

impl ChosenRuntime {
    pub(crate) fn named(&self) -> Option<&str> {
        self.runtime.as_deref().filter(|name| !name.is_empty())
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build an image from a Dockerfile
    #[command(visible_alias = "b")]
    Build(Box<commands::build::Build>),
    /// Check a Dockerfile without building it
    Check(commands::check::Check),
    Graph(commands::graph::Graph),
    /// Run a command in a new container
    Run(Box<commands::run::Run>),
    /// Create a container without running it
    Create(Box<commands::run::Create>),
    /// Start containers that do not run
    Start(commands::run::Start),
    /// Stop containers
    Stop(commands::container::Stop),
    /// Send a signal to containers
    Kill(commands::container::Kill),
    /// Run a command in a container that runs
    Exec(commands::run::Exec),
    /// Show what a container has printed
    Logs(commands::container::Logs),
    /// Wait for containers to end and print their exit codes
    Wait(commands::container::Wait),
    /// Copy files between a container and this machine
    Cp(commands::container::Cp),
    /// List containers
    Ps(commands::container::List),
    /// Remove containers
    Rm(commands::container::Remove),
    /// Give a container another name
    Rename(commands::container::Rename),
    Port(commands::container::Port),
    Export(commands::container::Export),
    /// Manage containers
    #[command(subcommand)]
    Container(commands::container::Containers),
    /// List images
    Images(commands::images::Images),
    /// Remove images
    Rmi(commands::images::Remove),
    /// Manage images
    #[command(subcommand)]
    Image(Box<commands::image::ImageCommand>),
    /// Give an image another name
    Tag(commands::image::Tag),
    History(commands::history::HistoryArguments),
    Why(commands::why::Why),
    Report(commands::report::Report),
    Debug(commands::debug::Debug),
    Plan(commands::plan::Plan),
    /// Show all that is known of images or containers
    Inspect(commands::inspect::Inspect),
    /// Write images into an archive
    Save(commands::image::Save),
    /// Load images from an archive
    Load(commands::image::Load),
    /// Make an image out of a tar
    Import(commands::image_content::Import),
    /// Bring an image from a registry
    Pull(commands::image::Pull),
    /// Send an image to the registry of its name
    Push(commands::image::Push),
    /// Serve the images of the store to other tools
    #[command(subcommand)]
    Registry(commands::registry::RegistryCommand),
    /// Log in to a registry
    Login(commands::system::Login),
    /// Log out from a registry
    Logout(commands::system::Logout),
    /// Look after the state directory
    #[command(subcommand)]
    System(commands::system::System),
    /// Look after what builds have left
    #[command(subcommand, alias = "buildx")]
    Builder(Box<commands::system::Builder>),
    /// Look after what steps keep between builds
    #[command(subcommand)]
    Cache(commands::cache::Cache),
    /// Serve BuildKit's API, for docker buildx and other clients
    Serve(commands::serve::Serve),
    /// Show what this is and where it keeps things
    Info(commands::system::Info),
    /// Check whether builds can work here, and say how to mend what is in the way
    Doctor(commands::doctor::Doctor),
    /// Explain the code of a finding or an error
    Explain(commands::explain::Explain),
    /// Show the version
    Version(commands::system::Version),
    /// Print the completions of a shell
    Completions(commands::manual::Completions),
    /// Write manual pages, one for each command
    Man(commands::manual::Man),
    #[command(hide = true)]
    Reference(commands::manual::Reference),
}

/// How errors, warnings and the log are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    // Without words of their own: they would make the help of each command twice as long.
    Text,
    Json,
}

/// When progress is shown, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// A live view on a terminal, plain lines elsewhere
    Auto,
    /// A live view
    Tty,
    /// Lines in order, for logs
    Plain,
    /// One JSON object a line, in BuildKit's shape
    Rawjson,
    /// Nothing but the result
    #[value(alias = "none")]
    Quiet,
}
