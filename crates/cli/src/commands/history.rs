//! `lapstrake history`: builds that were made, with the commands of `docker buildx history`; and, as in Docker, what
//! an image was made of.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use engine::history::{BuildRecord, BuildStatus, BuildSummary, History, StepRecord};
use oci::Timestamp;
use progress::render::{Plain, RawJson, Render};
use serde_json::{Map, Value, json};

use self::diff::Diff;
use self::inspect::Inspect;
use super::image::HistoryOf;
use crate::arguments::{Global, ProgressMode};
use crate::failure::{Failure, exit};
use crate::table::{Listing, human_duration};
use crate::{output, settings, words};

mod diff;
mod inspect;

/// Show what an image was made of, or look after the records of builds
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "Examples:
  lapstrake history app            show what an image was made of
  lapstrake history ls             list the builds
  lapstrake history inspect ^1     show the build before the last one
  lapstrake history logs           print what the steps of the last build have printed
  lapstrake history diff ^1 ^0     show what changed between two builds")]
pub(crate) struct HistoryArguments {
    #[command(subcommand)]
    command: Option<HistoryCommand>,
    #[command(flatten)]
    image: Option<HistoryOf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum HistoryCommand {
    #[command(visible_alias = "list")]
    Ls(List),
    Inspect(Inspect),
    Logs(Logs),
    #[command(visible_alias = "remove")]
    Rm(Remove),
    Export(Export),
    Import(Import),
    Diff(Diff),
}

impl HistoryArguments {
    pub(crate) fn run(self, global: &Global) -> Result<(), Failure> {
        match (self.command, self.image) {
            (Some(command), _) => command.run(global),
            (None, Some(image)) => image.run(global),
            (None, None) => Err(exit::usage(anyhow::anyhow!(
                "no image is named; `lapstrake history ls` lists the builds"
            ))),
        }
    }
}

impl HistoryCommand {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let history = History::new(&settings::open_records(global)?);
        match self {
            Self::Ls(command) => command.run(&history),
            Self::Inspect(command) => command.run(&history),
            Self::Logs(command) => command.run(&history),
            Self::Rm(command) => command.run(&history),
            Self::Export(command) => command.run(&history),
            Self::Import(command) => command.run(&history),
            Self::Diff(command) => command.run(&history),
        }
    }
}

/// Reads the record a user means; the newest if none is named.
pub(crate) fn record_of(history: &History, reference: Option<&str>) -> Result<BuildRecord> {
    let build = history.find(reference.unwrap_or_default())?;
    Ok(history.record(&build.id)?)
}

/// Finds the one step a user means.
pub(crate) fn step_of<'a>(record: &'a BuildRecord, text: &str) -> Result<&'a StepRecord> {
    let found = record.find_steps(text);
    let names = |steps: &[&StepRecord]| {
        let lines = steps
            .iter()
            .map(|step| format!("  {}", words::one_line(&step.name)));
        lines.collect::<Vec<_>>().join("\n")
    };
    match found.as_slice() {
        [step] => Ok(step),
        [] => {
            let all: Vec<&StepRecord> = record.steps.iter().collect();
            bail!(
                "the build {} has no step {text:?}; it has\n{}",
                record.id,
                names(&all)
            )
        }
        several => bail!(
            "{text:?} is said of several steps; say which\n{}",
            names(several)
        ),
    }
}

/// List builds
#[derive(Debug, Args)]
pub(crate) struct List {
    /// How to print: table, json, or a template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Do not shorten names
    #[arg(long)]
    no_trunc: bool,
    /// Print only ids
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Show builds that match: status=completed, ref=ID
    #[arg(long = "filter", short = 'f', value_name = "FILTER")]
    filters: Vec<String>,
}

const COLUMNS: [(&str, &str); 5] = [
    ("Ref", "BUILD ID"),
    ("Name", "NAME"),
    ("Status", "STATUS"),
    ("CreatedAt", "CREATED AT"),
    ("Duration", "DURATION"),
];
/// The longest name in a table, as in buildx.
const LONGEST_NAME: usize = 36;

impl List {
    fn run(&self, history: &History) -> Result<(), Failure> {
        let builds = history.list().map_err(exit::engine)?;
        let text = self.text(builds).map_err(exit::usage)?;
        output::print(&text).map_err(exit::builder)
    }

    fn text(&self, builds: Vec<BuildSummary>) -> Result<String> {
        let mut kept = Vec::new();
        for build in builds {
            if self.matches(&build)? {
                kept.push(build);
            }
        }
        if self.quiet {
            return Ok(kept.iter().map(|build| format!("{}\n", build.id)).collect());
        }
        let now = progress::system_clock();
        if self.format.as_deref() == Some("json") {
            let lines = kept.iter().map(|build| format!("{}\n", json_of(build)));
            return Ok(lines.collect());
        }
        let table = self
            .format
            .as_deref()
            .is_none_or(|format| format.starts_with("table"));
        let rows = kept.iter().map(|build| self.row(build, now, table));
        Listing {
            columns: &COLUMNS,
            rows: rows.collect(),
        }
        .render(self.format.as_deref())
    }

    fn row(&self, build: &BuildSummary, now: Timestamp, table: bool) -> Map<String, Value> {
        let age = human_duration(now.unix_seconds() - build.started.unix_seconds());
        let took =
            engine::history::nanoseconds_between(build.started, build.completed.unwrap_or(now));
        let duration = match (build.status, build.completed) {
            (BuildStatus::Running, _) => format!("{}+", words::duration(took)),
            (_, None) => String::new(),
            (_, Some(_)) => words::duration(took),
        };
        let mut name = words::one_line(&build.name);
        let length = name.chars().count();
        if table && !self.no_trunc && length > LONGEST_NAME {
            let rest: String = name.chars().skip(length - LONGEST_NAME + 2).collect();
            name = format!("..{rest}");
        }
        let value = json!({
            "Ref": build.id,
            "Name": name,
            "Status": status_in_lists(build.status),
            "CreatedAt": format!("{age} ago"),
            "Duration": duration,
            "TotalSteps": build.total,
            "CompletedSteps": build.done,
            "CachedSteps": build.cached,
            "Error": build.error,
            "Link": "",
        });
        match value {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    fn matches(&self, build: &BuildSummary) -> Result<bool> {
        for filter in &self.filters {
            let (key, wanted, equal) = match filter.split_once("!=") {
                Some((key, value)) => (key, value, false),
                None => match filter.split_once('=') {
                    Some((key, value)) => (key, value, true),
                    None => bail!("invalid filter {filter:?}: it is not KEY=VALUE"),
                },
            };
            let matched = match key {
                "status" => status_in_filters(build.status) == wanted,
                "ref" if equal => build.id.contains(wanted),
                "ref" => build.id == wanted,
                "name" => build.name.contains(wanted),
                key => bail!("there is no filter {key:?}; there are status, ref and name"),
            };
            if matched != equal {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn json_of(build: &BuildSummary) -> Value {
    let mut value = json!({
        "cached_steps": build.cached,
        "completed_steps": build.done,
        "created_at": build.started,
        "name": build.name,
        "ref": build.id,
        "status": status_in_lists(build.status),
        "total_steps": build.total,
    });
    if let Some(completed) = build.completed {
        value["completed_at"] = json!(completed);
    }
    value
}

fn status_in_lists(status: BuildStatus) -> &'static str {
    match status {
        BuildStatus::Running => "Running",
        BuildStatus::Completed => "Completed",
        BuildStatus::Failed => "Error",
        BuildStatus::Canceled => "Canceled",
        BuildStatus::Killed => "Killed",
    }
}

fn status_in_filters(status: BuildStatus) -> &'static str {
    match status {
        BuildStatus::Failed => "error",
        status => status_in_inspect(status),
    }
}

fn status_in_inspect(status: BuildStatus) -> &'static str {
    match status {
        BuildStatus::Running => "running",
        BuildStatus::Completed => "completed",
        BuildStatus::Failed => "failed",
        BuildStatus::Canceled => "canceled",
        BuildStatus::Killed => "killed",
    }
}

/// Print what the steps of a build have printed
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// How to print: plain or rawjson
    #[arg(long, value_name = "MODE", value_enum, default_value = "plain")]
    progress: ProgressMode,
    /// The build: an id, the beginning of one, or ^N for the Nth before the last [default: the last]
    build: Option<String>,
    /// One step: its name or a part of it, its stage and number, or a line. Its bytes are printed as they are,
    /// also where it was cached.
    step: Option<String>,
}

impl Logs {
    fn run(&self, history: &History) -> Result<(), Failure> {
        let record = record_of(history, self.build.as_deref()).map_err(exit::build)?;
        let done = match &self.step {
            Some(step) => {
                let step = step_of(&record, step).map_err(exit::build)?;
                print_log(history, &record, step)
            }
            None => self.replay(history, &record),
        };
        match done {
            Err(error) if is_broken_pipe(&error) => Ok(()),
            done => done.map_err(exit::builder),
        }
    }

    fn replay(&self, history: &History, record: &BuildRecord) -> Result<()> {
        let out = std::io::BufWriter::new(std::io::stdout().lock());
        let mut renderer: Box<dyn Render + '_> = match self.progress {
            ProgressMode::Rawjson => Box::new(RawJson::new(out)),
            ProgressMode::Quiet => return Ok(()),
            ProgressMode::Plain | ProgressMode::Auto | ProgressMode::Tty => {
                Box::new(Plain::new(out))
            }
        };
        let now = record.completed.unwrap_or_else(progress::system_clock);
        let mut failed = Ok(());
        history.replay(record, &mut |event| {
            let shown = renderer
                .update(&[event])
                .and_then(|()| renderer.refresh(now));
            failed = shown;
            failed.is_ok()
        })?;
        failed?;
        renderer.finish(now)?;
        Ok(())
    }
}

/// Prints a step's log, byte for byte.
fn print_log(history: &History, record: &BuildRecord, step: &StepRecord) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if let Some(log) = history.log(record, step)? {
        for piece in log {
            out.write_all(&piece?.data)?;
        }
    }
    out.flush()?;
    Ok(())
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Remove builds
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Remove all builds that do not run
    #[arg(long, conflicts_with = "builds", required_unless_present = "builds")]
    all: bool,
    /// The builds: ids, beginnings of them, or ^N
    #[arg(value_name = "BUILD")]
    builds: Vec<String>,
}

impl Remove {
    fn run(&self, history: &History) -> Result<(), Failure> {
        let all;
        // All are found before any is removed: ^1 is another one after ^0 has gone.
        let ids: Vec<String> = match self.all {
            true => {
                all = history.list().map_err(exit::engine)?;
                all.into_iter().map(|build| build.id).collect()
            }
            false => {
                let found = self.builds.iter().map(|build| history.find(build));
                found
                    .map(|build| build.map(|build| build.id))
                    .collect::<Result<_, _>>()
                    .map_err(exit::engine)?
            }
        };
        for id in ids {
            let removed = history.remove(&id).map_err(exit::engine)?;
            if !removed && !self.all {
                return Err(exit::build(anyhow::anyhow!("the build {id} runs")));
            }
            if removed {
                output::print(&format!("{id}\n")).map_err(exit::builder)?;
            }
        }
        Ok(())
    }
}

/// Write a build into a file, with its logs
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Where to write; - is standard output [default: ID.lapstrake-build]
    #[arg(long, short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
    /// The build: an id, the beginning of one, or ^N for the Nth before the last [default: the last]
    build: Option<String>,
}

impl Export {
    fn run(&self, history: &History) -> Result<(), Failure> {
        let record = record_of(history, self.build.as_deref()).map_err(exit::build)?;
        if !record.has_ended() {
            let error = anyhow::anyhow!("the build {} has not ended", record.id);
            return Err(exit::build(error));
        }
        let path = match &self.output {
            Some(path) if path.as_os_str() == "-" => {
                let out = std::io::stdout().lock();
                return history.export(&record, out).map_err(exit::engine);
            }
            Some(path) => path.clone(),
            None => PathBuf::from(format!("{}.lapstrake-build", record.id)),
        };
        let file = std::fs::File::create(&path)
            .with_context(|| format!("failed to create {}", path.display()))
            .map_err(exit::build)?;
        history.export(&record, file).map_err(exit::engine)?;
        output::print(&format!("{}\n", path.display())).map_err(exit::builder)
    }
}

/// Read builds from files that export has written
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The file; - is standard input
    #[arg(long = "file", short = 'f', value_name = "FILE")]
    options: Vec<PathBuf>,
    /// The file; - is standard input
    #[arg(value_name = "FILE", required_unless_present = "options")]
    files: Vec<PathBuf>,
}

impl Import {
    fn run(&self, history: &History) -> Result<(), Failure> {
        for path in self.options.iter().chain(&self.files) {
            let imported = match path.as_os_str() == "-" {
                true => history.import(std::io::stdin().lock()),
                false => {
                    let file = std::fs::File::open(path)
                        .with_context(|| format!("failed to open {}", path.display()))
                        .map_err(exit::build)?;
                    history.import(std::io::BufReader::new(file))
                }
            };
            let record = imported
                .with_context(|| format!("failed to import {}", path.display()))
                .map_err(exit::build)?;
            output::print(&format!("{}\n", record.id)).map_err(exit::builder)?;
        }
        Ok(())
    }
}
