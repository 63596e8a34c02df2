//! `lapstrake cache mounts`: the directories of `RUN --mount=type=cache`.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow, bail};
use clap::{Args, Subcommand};
use serde_json::{Map, Value};
use store::{CollectPolicy, Item, ItemKind, Store, Usage};

use super::cache_transfer::{Export, Import};
use crate::arguments::Global;
use crate::failure::{Failure, exit};
use crate::table::{Listing, human_duration, human_size};
use crate::{output, settings};

/// Look after what steps keep between builds
#[derive(Debug, Subcommand)]
pub(crate) enum Cache {
    /// Look after cache mounts
    #[command(subcommand)]
    Mounts(Mounts),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Mounts {
    Ls(List),
    Rm(Remove),
    Export(Export),
    Import(Import),
}

/// List cache mounts
#[derive(Debug, Args)]
#[command(visible_alias = "list")]
pub(crate) struct List {
    /// How to print: table, json, or a template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print only the names
    #[arg(long, short = 'q')]
    quiet: bool,
}

/// Remove cache mounts; one that a build uses stays
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// All of them
    #[arg(long, short = 'a', conflicts_with = "mounts")]
    all: bool,
    /// Ids as the Dockerfile has them, or names (or their beginning) as `ls` shows them
    #[arg(value_name = "ID", required_unless_present = "all")]
    mounts: Vec<String>,
}

const COLUMNS: [(&str, &str); 5] = [
    ("Name", "NAME"),
    ("ID", "ID"),
    ("Size", "SIZE"),
    ("CreatedSince", "CREATED"),
    ("LastUsedSince", "LAST USED"),
];

/// How much of a name is shown.
const SHORT: usize = 12;

impl Cache {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let Self::Mounts(command) = self;
        match command {
            Mounts::Ls(command) => command.run(global),
            Mounts::Rm(command) => command.run(global),
            Mounts::Export(command) => command.run(global),
            Mounts::Import(command) => command.run(global),
        }
    }
}

/// One cache mount.
pub(super) struct Mount {
    /// Of its directory.
    pub(super) name: String,
    /// As the Dockerfile has it.
    pub(super) id: String,
    usage: Usage,
}

impl Mount {
    /// Returns whether a user may mean it by this id or name.
    pub(super) fn is_called(&self, wanted: &str) -> bool {
        !wanted.is_empty() && (is_same_id(&self.id, wanted) || self.name.starts_with(wanted))
    }
}

/// Returns whether an id that is kept is the one a user means: the frontend puts a slash before every id.
pub(super) fn is_same_id(kept: &str, wanted: &str) -> bool {
    kept.trim_start_matches('/') == wanted.trim_start_matches('/')
}

pub(super) fn mounts(store: &Store) -> Result<Vec<Mount>> {
    let usage = store.usage()?.into_iter();
    let found = usage.filter_map(|usage| match &usage.item {
        Item::Mount(name) => Some(Mount {
            name: name.clone(),
            id: usage
                .origin
                .strip_prefix("cache mount ")
                .unwrap_or(&usage.origin)
                .to_owned(),
            usage,
        }),
        Item::Layer(_) | Item::Blob(_) | Item::Build(_) | Item::Records => None,
    });
    let mut found: Vec<Mount> = found.collect();
    found.sort_by(|left, right| (&left.id, &left.name).cmp(&(&right.id, &right.name)));
    Ok(found)
}

impl List {
    fn run(&self, global: &Global) -> Result<(), Failure> {
        let store = settings::open_for_files(global)?;
        let text = self.text(&store).map_err(exit::build)?;
        output::print(&text).map_err(exit::builder)
    }

    fn text(&self, store: &Store) -> Result<String> {
        let found = mounts(store)?;
        if self.quiet {
            return Ok(found
                .iter()
                .map(|mount| format!("{}\n", mount.name))
                .collect());
        }
        let now = store.now();
        let ago = |time| format!("{} ago", human_duration(now - time));
        let rows = found.iter().map(|mount| {
            let name: String = mount.name.chars().take(SHORT).collect();
            let fields: [(&str, Value); 7] = [
                ("Name", name.into()),
                ("FullName", mount.name.clone().into()),
                ("ID", mount.id.clone().into()),
                ("Size", human_size(mount.usage.bytes).into()),
                ("Bytes", mount.usage.bytes.into()),
                ("CreatedSince", ago(mount.usage.created).into()),
                ("LastUsedSince", ago(mount.usage.used).into()),
            ];
            let fields = fields.map(|(name, value)| (name.to_owned(), value));
            fields.into_iter().collect::<Map<_, _>>()
        });
        Listing {
            columns: &COLUMNS,
            rows: rows.collect(),
        }
        .render(self.format.as_deref())
    }
}

impl Remove {
    fn run(&self, global: &Global) -> Result<(), Failure> {
        let store = settings::open_for_files(global)?;
        let names = self.names(&store).map_err(exit::build)?;
        // Without names the policy would cover every cache mount there is.
        if names.is_empty() {
            return Ok(());
        }
        let policy = CollectPolicy {
            unused_since: Some(i64::MAX),
            kinds: BTreeSet::from([ItemKind::CacheMount]),
            ids: names.iter().cloned().collect(),
            ..CollectPolicy::default()
        };
        let done = store.collect(&policy).map_err(exit::builder)?;
        let removed: BTreeSet<String> = done
            .items
            .iter()
            .map(|usage| usage.item.to_string())
            .collect();
        let text: String = removed.iter().map(|name| format!("{name}\n")).collect();
        output::print(&text).map_err(exit::builder)?;
        let kept = names.iter().filter(|name| !removed.contains(*name)).count();
        match kept {
            0 => Ok(()),
            1 => Err(exit::build(anyhow!("a cache mount is in use and stays"))),
            kept => Err(exit::build(anyhow!(
                "{kept} cache mounts are in use and stay"
            ))),
        }
    }

    /// Returns what collections call the mounts that are to go.
    fn names(&self, store: &Store) -> Result<BTreeSet<String>> {
        let found = mounts(store)?;
        let name_of = |mount: &Mount| mount.usage.item.to_string();
        if self.all {
            return Ok(found.iter().map(name_of).collect());
        }
        let mut names = BTreeSet::new();
        for wanted in &self.mounts {
            let same = found.iter().filter(|mount| mount.is_called(wanted));
            let same: Vec<String> = same.map(name_of).collect();
            if same.is_empty() {
                bail!("there is no cache mount {wanted:?}");
            }
            names.extend(same);
        }
        Ok(names)
    }
}
