//! The configuration file, and opening what it names.

use std::path::{Path, PathBuf};
use std::sync::Once;

use anyhow::{Context, Result, anyhow, bail};
use engine::{CaBundle, Engine, EngineSettings};
use sandbox::{Helper, NetworkMode, Runtime, userns};
use store::{HistoryLimits, Ids, OpenOptions, Space, SpaceLimits, Store};

use crate::arguments::Global;
use crate::failure::{Failure, exit};
use crate::{configuration, places};

/// Opens the store to read and write records only; no namespace is entered.
pub(crate) fn open_records(global: &Global) -> Result<Store, Failure> {
    let root = places::root(global).map_err(exit::usage)?;
    Store::open(&root, OpenOptions::new(None)).map_err(exit::builder)
}

/// Opens the store to change files in it: in the namespaces they were written in.
pub(crate) fn open_for_files(global: &Global) -> Result<Store, Failure> {
    let root = places::root(global).map_err(exit::usage)?;
    enter(global)?;
    let ids = ids().map_err(exit::builder)?;
    Store::open(&root, OpenOptions::new(Some(ids))).map_err(exit::builder)
}

/// Enters the namespaces a build needs and opens the engine. To be called before any thread starts.
pub(crate) fn open_engine(global: &Global) -> Result<Engine, Failure> {
    open_engine_with(global, sandbox::Options::default(), None)
}

/// As [`open_engine`], with steps run in a way of the caller's choice.
pub(crate) fn open_engine_with(
    global: &Global,
    sandbox: sandbox::Options,
    runtime: Option<Runtime>,
) -> Result<Engine, Failure> {
    Engine::open(engine_settings(global, sandbox, runtime)?).map_err(exit::builder)
}

/// Enters the namespaces a build needs, and returns how an engine is opened in them.
pub(crate) fn engine_settings(
    global: &Global,
    mut sandbox: sandbox::Options,
    runtime: Option<Runtime>,
) -> Result<EngineSettings, Failure> {
    let root = places::root(global).map_err(exit::usage)?;
    let registries = registries(global).map_err(exit::usage)?;
    let isolation = enter(global)?;
    sandbox.own_network |= minimum_isolation(global).map_err(exit::usage)?.network;
    sandbox::raise_open_files();
    Ok(EngineSettings {
        root,
        ids: ids().map_err(exit::builder)?,
        registries,
        limits: limits(global).map_err(exit::usage)?,
        history: history_limits(global).map_err(exit::usage)?,
        sandbox,
        step_limits: sandbox::Limits::default(),
        slots: None,
        runtime,
        notes: limits_of(&isolation),
    })
}

/// Returns what a user has to know about an isolation before the first step runs on it.
pub(crate) fn limits_of(isolation: &userns::Isolation) -> Vec<String> {
    match isolation.rung {
        userns::Rung::SingleId => isolation.notes.clone(),
        // Nothing that works better elsewhere fails on these; `lapstrake info` has their notes.
        _ => Vec::new(),
    }
}

/// The isolation of steps here, as far as it can be told without running one.
pub(crate) struct Outlook {
    pub(crate) isolation: userns::Isolation,
    /// What steps without a special network get, in a word.
    pub(crate) network: String,
}

/// Finds out what steps would get. An ordinary user's process is in its namespaces afterwards, if it may be.
pub(crate) fn outlook() -> Result<Outlook, Failure> {
    let mut isolation = userns::probe().map_err(exit::builder)?;
    let network = match isolation.rung {
        userns::Rung::Unavailable => "none".to_owned(),
        // A helper would make the bridge, which stays.
        userns::Rung::Root => match sandbox::bridge_obstacle() {
            None => NetworkMode::Bridge.to_string(),
            Some(reason) => {
                isolation
                    .notes
                    .push(format!("steps share the network of the builder: {reason}"));
                NetworkMode::Host.to_string()
            }
        },
        userns::Rung::SingleId | userns::Rung::SubordinateIds => {
            isolation =
                userns::enter_if_needed(&userns::Config::default()).map_err(exit::builder)?;
            let helper = Helper::start(&sandbox::Options::default()).map_err(exit::builder)?;
            for note in helper.notes() {
                if !isolation.notes.contains(note) {
                    isolation.notes.push(note.clone());
                }
            }
            helper.network().to_string()
        }
    };
    Ok(Outlook { isolation, network })
}

fn enter(global: &Global) -> Result<userns::Isolation, Failure> {
    let config = userns::Config {
        minimum: minimum_isolation(global).map_err(exit::usage)?.users,
    };
    userns::enter_if_needed(&config).map_err(exit::builder)
}

/// What `--min-isolation` asks for.
#[derive(Default)]
struct MinimumIsolation {
    users: Option<userns::Rung>,
    network: bool,
}

fn minimum_isolation(global: &Global) -> Result<MinimumIsolation> {
    let names = global.min_isolation.as_deref();
    names.map_or(Ok(MinimumIsolation::default()), MinimumIsolation::parse)
}

impl MinimumIsolation {
    fn parse(names: &str) -> Result<Self> {
        let mut minimum = Self::default();
        for name in names.split(',') {
            match userns::Rung::from_name(name) {
                Some(rung) if minimum.users.is_none() => minimum.users = Some(rung),
                Some(_) => bail!("--min-isolation names two rungs: {name} is the second"),
                None if name == "network" => minimum.network = true,
                None => bail!(
                    "there is no isolation {name:?}; there are root, single-id and subordinate-ids, and network beside them"
                ),
            }
        }
        Ok(minimum)
    }
}

/// Returns the registries' settings: those of the environment, and those of the configuration file.
pub(crate) fn registries(global: &Global) -> Result<registry::Settings> {
    let mut settings = registry::Settings::from_environment();
    if let Some((path, text)) = read_config(global)? {
        settings
            .read_toml(&path, &text)
            .with_context(|| unreadable(&path))?;
    }
    Ok(settings)
}

/// The table `[gc]` of the configuration file.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct Collection {
    enabled: Option<bool>,
    #[serde(alias = "maxUsedSpace")]
    max_used_space: Option<Amount>,
    #[serde(alias = "reservedSpace")]
    reserved_space: Option<Amount>,
    #[serde(alias = "minFreeSpace")]
    min_free_space: Option<Amount>,
}

/// The table `[history]` of the configuration file.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct Records {
    max_builds: Option<usize>,
    max_log_space: Option<Amount>,
    max_age: Option<String>,
}

/// The table `[run]` of the configuration file.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct Steps {
    ca_bundle: Option<String>,
    runtime: Option<String>,
}

/// The tables of the configuration file that are read here. Those of registries are read by their client; what nobody
/// reads is warned of.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct File {
    gc: Option<Collection>,
    history: Records,
    run: Steps,
}

/// Bytes as a number, or an amount in words: "10GB", "20%".
#[derive(Debug, serde::Deserialize)]
#[serde(untagged)]
enum Amount {
    Number(u64),
    Text(String),
}

impl Collection {
    /// Returns the limits of the store; `None` where none is set.
    fn limits(self) -> Result<Option<SpaceLimits>> {
        if self.enabled == Some(false) {
            return Ok(Some(SpaceLimits::NONE));
        }
        let space = |name: &str, amount: Option<Amount>| match amount {
            None => Ok(None),
            Some(Amount::Number(bytes)) => Ok(Some(Space::Bytes(bytes))),
            Some(Amount::Text(text)) => match text.parse() {
                Ok(space) => Ok(Some(space)),
                Err(error) => Err(anyhow!("gc.{name}: {error}")),
            },
        };
        let limits = SpaceLimits {
            max_used: space("max-used-space", self.max_used_space)?,
            reserved: space("reserved-space", self.reserved_space)?,
            min_free: space("min-free-space", self.min_free_space)?,
        };
        Ok(limits.are_set().then_some(limits))
    }
}

impl Records {
    fn limits(self) -> Result<HistoryLimits> {
        let mut limits = HistoryLimits::default();
        if let Some(builds) = self.max_builds {
            limits.builds = builds;
        }
        match self.max_log_space {
            None => {}
            Some(Amount::Number(bytes)) => limits.log_bytes = bytes,
            Some(Amount::Text(text)) => match text.parse() {
                Ok(Space::Bytes(bytes)) => limits.log_bytes = bytes,
                Ok(Space::Percent(_)) => {
                    bail!("history.max-log-space: {text:?} is no number of bytes");
                }
                Err(error) => bail!("history.max-log-space: {error}"),
            },
        }
        if let Some(age) = self.max_age {
            let age = crate::commands::space::duration(&age);
            limits.age = Some(age.context("history.max-age")?);
        }
        Ok(limits)
    }
}

impl File {
    fn parse(text: &str) -> Result<Self> {
        Ok(toml::from_str(text)?)
    }
}

/// Returns the limits of the store that the configuration sets; `None` where it sets none.
pub(crate) fn limits(global: &Global) -> Result<Option<SpaceLimits>> {
    let Some((path, text)) = read_config(global)? else {
        return Ok(None);
    };
    let limits = || File::parse(&text)?.gc.unwrap_or_default().limits();
    limits().with_context(|| unreadable(&path))
}

/// Reads all of the configuration, as a build does.
pub(crate) fn check(global: &Global) -> Result<()> {
    registries(global)?;
    limits(global)?;
    history_limits(global)?;
    ca_bundle(global)?;
    Ok(())
}

/// Returns what the configuration says of the history of builds.
fn history_limits(global: &Global) -> Result<HistoryLimits> {
    let Some((path, text)) = read_config(global)? else {
        return Ok(HistoryLimits::default());
    };
    let limits = || File::parse(&text)?.history.limits();
    limits().with_context(|| unreadable(&path))
}

/// Returns the configuration file and its text; `None` if there is none and none was asked for.
///
/// Keys without effect are warned of when it is first read.
pub(crate) fn read_config(global: &Global) -> Result<Option<(PathBuf, String)>> {
    static WARNED: Once = Once::new();
    let (path, asked) = places::config(global)?;
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            WARNED.call_once(|| configuration::warn(&path, &text));
            Ok(Some((path, text)))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !asked => Ok(None),
        Err(error) => Err(error).with_context(|| unreadable(&path)),
    }
}

fn unreadable(path: &Path) -> String {
    format!("failed to read the configuration {}", path.display())
}

/// Returns what the configuration says of all steps, and the directory that its paths are relative to.
fn steps(global: &Global) -> Result<(Steps, PathBuf)> {
    let Some((path, text)) = read_config(global)? else {
        return Ok(Default::default());
    };
    let file = File::parse(&text).with_context(|| unreadable(&path))?;
    let place = path.parent().unwrap_or(Path::new("")).to_owned();
    Ok((file.run, place))
}

/// Returns the certificates that the configuration has all steps trust.
pub(crate) fn ca_bundle(global: &Global) -> Result<Option<CaBundle>> {
    let (steps, place) = steps(global)?;
    Ok(steps
        .ca_bundle
        .map(|text| match crate::build_request::ca_bundle(&text) {
            CaBundle::File(file) => CaBundle::File(place.join(file)),
            CaBundle::Host => CaBundle::Host,
        }))
}

/// Finds the runtime that was asked for, or else the one the configuration names; `None` for the built-in sandbox.
pub(crate) fn runtime(global: &Global, asked: Option<&str>) -> Result<Option<Runtime>> {
    let name = match asked {
        Some(name) => Some(name.to_owned()),
        None => {
            let (steps, place) = steps(global)?;
            steps.runtime.map(|name| match name.contains('/') {
                true => place.join(name).to_string_lossy().into_owned(),
                false => name,
            })
        }
    };
    Ok(match name {
        Some(name) => Runtime::find(&name)?,
        None => None,
    })
}

/// Returns whose ids files written by this process carry.
fn ids() -> Result<Ids> {
    Ids::of_this_process().context("failed to read the id map")
}

/// Returns all that is read of a configuration, to compare.
#[cfg(test)]
pub(crate) fn read_all(path: &Path, text: &str) -> Result<String> {
    let mut registries = registry::Settings::default();
    registries.read_toml(path, text)?;
    let file = File::parse(text)?;
    Ok(format!(
        "{:?} {:?} {:?} {:?}",
        registries.registries,
        file.gc.unwrap_or_default().limits()?,
        file.history.limits()?,
        file.run,
    ))
}
