//! `lapstrake system df`, `system prune` and `builder prune`: what takes space, and how to get it back.

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use serde_json::{Map, Value};
use store::{CollectPolicy, Collected, ItemKind, Space, Store, Usage};

use super::container::stopped;
use crate::arguments::Global;
use crate::failure::{Failure, exit};
use crate::table::{Listing, human_duration, human_size};
use crate::{log, output, settings};

/// Show what takes space
#[derive(Debug, Args)]
pub(crate) struct Df {
    /// How to print: table, json, or a template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Show every layer, blob, cache mount and log, what would be removed first in front
    #[arg(long, short = 'v')]
    verbose: bool,
    /// With --verbose, only what matches: type=, id=, until=24h, unused-for=24h, inuse=true
    #[arg(long = "filter", value_name = "FILTER")]
    filters: Vec<String>,
}

const KINDS: [(&str, &str); 5] = [
    ("Type", "TYPE"),
    ("TotalCount", "TOTAL"),
    ("Active", "ACTIVE"),
    ("Size", "SIZE"),
    ("Reclaimable", "RECLAIMABLE"),
];

const ITEMS: [(&str, &str); 7] = [
    ("ID", "ID"),
    ("Type", "TYPE"),
    ("Size", "SIZE"),
    ("CreatedSince", "CREATED"),
    ("LastUsedSince", "LAST USED"),
    ("Holder", "HELD BY"),
    ("Origin", "ORIGIN"),
];

impl Df {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let store = settings::open_records(global)?;
        let filters = Filters::parse(&self.filters, store.now()).map_err(exit::usage)?;
        if !self.filters.is_empty() && !self.verbose {
            return Err(exit::usage(anyhow!("--filter needs --verbose")));
        }
        let text = match self.verbose {
            true => self.items(&store, &filters),
            false => self.kinds(&store),
        };
        output::print(&text.map_err(exit::build)?).map_err(exit::builder)
    }

    fn kinds(&self, store: &Store) -> Result<String> {
        let (own, usage): (Vec<Usage>, Vec<Usage>) = store
            .usage()?
            .into_iter()
            .partition(|entry| matches!(entry.kind, ItemKind::Build | ItemKind::Internal));
        let records: u64 = own.iter().map(|entry| entry.bytes).sum();
        let builds = store.builds()?.len();
        let sum = |held: bool| -> u64 {
            let entries = usage.iter().filter(|entry| entry.holder.is_some() == held);
            entries.map(|entry| entry.bytes).sum()
        };
        let (named, surplus) = (sum(true), sum(false));
        let free = usage.iter().filter(|entry| entry.holder.is_none()).count();
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
            ("Build Cache", free, 0, surplus, surplus),
            // Docker has no such line. The rules of the history say when they go.
            ("Build Records", builds, 0, records, 0),
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

    fn items(&self, store: &Store, filters: &Filters) -> Result<String> {
        let now = store.now();
        let usage = store.usage()?;
        let rows = usage.iter().filter(|entry| filters.take(entry));
        let rows = rows.map(|entry| {
            let held = entry.holder.clone().unwrap_or_default();
            row([
                ("ID", entry.item.to_string().into()),
                ("Type", entry.kind.to_string().into()),
                ("Size", human_size(entry.bytes).into()),
                ("Bytes", entry.bytes.into()),
                ("CreatedSince", ago(now, entry.created).into()),
                ("LastUsedSince", ago(now, entry.used).into()),
                ("InUse", entry.holder.is_some().to_string().into()),
                ("Holder", held.into()),
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

fn ago(now: i64, time: i64) -> String {
    format!("{} ago", human_duration(now.saturating_sub(time).max(0)))
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

/// What `--filter` can say of things that take space.
#[derive(Debug, Default)]
struct Filters {
    policy: CollectPolicy,
    in_use: Option<bool>,
}

impl Filters {
    fn parse(texts: &[String], now: i64) -> Result<Self> {
        let mut filters = Self::default();
        for text in texts {
            let policy = &mut filters.policy;
            match text.split_once('=') {
                Some(("until" | "unused-for", text)) => {
                    policy.unused_since = Some(now.saturating_sub(duration(text)?));
                }
                Some(("type", name)) => {
                    let kind = name.parse().map_err(|error: String| anyhow!(error))?;
                    policy.kinds.insert(kind);
                }
                Some(("id", id)) => policy.ids.push(id.to_owned()),
                Some(("inuse", "true")) => filters.in_use = Some(true),
                Some(("inuse", "false")) => filters.in_use = Some(false),
                None if text == "inuse" => filters.in_use = Some(true),
                _ => bail!(
                    "invalid filter {text:?}: there are type, id, inuse, until and unused-for"
                ),
            }
        }
        Ok(filters)
    }

    fn take(&self, entry: &Usage) -> bool {
        let old = self
            .policy
            .unused_since
            .is_none_or(|time| entry.used < time);
        let in_use = self
            .in_use
            .is_none_or(|wanted| wanted == entry.holder.is_some());
        self.policy.covers(entry) && old && in_use
    }
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
    /// Only what matches, of the results of builds: type=, id=, until=24h, unused-for=24h
    #[arg(long = "filter", value_name = "FILTER")]
    filters: Vec<String>,
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
        let filters = Filters::parse(&self.filters, store.now()).map_err(exit::usage)?;
        let mut out = String::new();
        // A filter picks among results of builds; containers and images have none of these properties.
        if self.filters.is_empty() {
            out = remove_containers_and_images(&store, self.all)?;
        }
        let mut policy = filters.policy;
        policy.unused_since.get_or_insert(i64::MAX);
        let done = store.collect(&policy).map_err(exit::builder)?;
        out.push_str(&format!(
            "Total reclaimed space: {}\n",
            human_size(done.bytes)
        ));
        output::print(&out).map_err(exit::builder)
    }
}

fn remove_containers_and_images(store: &Store, all: bool) -> Result<String, Failure> {
    let mut out = String::new();
    for container in stopped(store).map_err(exit::build)? {
        engine::container::remove_container(store, &container, false).map_err(exit::engine)?;
        out.push_str(&format!("{}\n", container.id));
    }
    if !out.is_empty() {
        out = format!("Deleted Containers:\n{out}\n");
    }
    let mut filters = super::image::PruneFilters::default();
    filters.all = all;
    let images = super::image::prune(store, &filters).map_err(exit::build)?;
    if !images.is_empty() {
        out.push_str(&format!("Deleted Images:\n{images}\n"));
    }
    Ok(out)
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
    /// Keep as much as fits, the last used
    #[arg(long, alias = "keep-storage", value_name = "BYTES|PERCENT")]
    max_used_space: Option<Space>,
    /// Keep at least this much
    #[arg(long, value_name = "BYTES|PERCENT")]
    reserved_space: Option<Space>,
    /// Leave this much of the disk free
    #[arg(long, value_name = "BYTES|PERCENT")]
    min_free_space: Option<Space>,
    /// Only what matches: type=, id=, until=24h, unused-for=24h
    #[arg(long = "filter", value_name = "FILTER")]
    filters: Vec<String>,
    /// List what goes
    #[arg(long)]
    verbose: bool,
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
}

impl BuilderPrune {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let store = settings::open_for_files(global)?;
        let policy = self.policy(&store).map_err(exit::usage)?;
        if !self.force && !self.dry_run && !output::confirm("This will remove build cache.") {
            return Err(exit::build(anyhow!("nothing was removed; use --force")));
        }
        let done = store.collect(&policy).map_err(exit::builder)?;
        let mut out = String::new();
        if self.verbose || self.dry_run {
            for entry in &done.items {
                let size = human_size(entry.bytes);
                out.push_str(&format!("{}\t{size}\t{}\n", entry.item, entry.origin));
            }
        }
        out.push_str(&format!("Total:\t{}\n", human_size(done.bytes)));
        output::print(&out).map_err(exit::builder)?;
        warn_of_holder(&policy, &done);
        Ok(())
    }

    fn policy(&self, store: &Store) -> Result<CollectPolicy> {
        let disk = store.disk()?.size;
        let bytes = |space: Option<Space>| space.map(|space| space.of_disk(disk));
        let mut policy = CollectPolicy {
            max_used: bytes(self.max_used_space),
            reserved: bytes(self.reserved_space).unwrap_or(0),
            min_free: bytes(self.min_free_space),
            dry_run: self.dry_run,
            ..Filters::parse(&self.filters, store.now())?.policy
        };
        let limited = policy.max_used.is_some() || policy.min_free.is_some();
        if !limited && policy.unused_since.is_none() && policy.reserved == 0 {
            policy.unused_since = Some(i64::MAX);
        } else if !limited && policy.unused_since.is_none() {
            // As much as may go, down to what is reserved.
            policy.max_used = Some(0);
        }
        Ok(policy)
    }
}

/// Says who holds it, where what cannot be removed is more than the limit.
pub(crate) fn warn_of_holder(policy: &CollectPolicy, done: &Collected) {
    if let (Some((bytes, holder)), Some(limit)) = (&done.held, policy.max_used) {
        log::warning(&format!(
            "the store takes {}, its limit is {}: {} cannot be removed, most of it because of {holder}",
            human_size(done.used),
            human_size(limit),
            human_size(*bytes),
        ));
    }
}

/// Reads `24h`, `1h30m`, `90s` or `7d`.
pub(crate) fn duration(text: &str) -> Result<i64> {
    let wrong = || format!("invalid duration {text:?}: use for example 24h");
    let mut seconds: i64 = 0;
    let mut rest = text;
    if rest.is_empty() {
        bail!(wrong());
    }
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
        let part = number.checked_mul(unit).with_context(wrong)?;
        seconds = seconds.checked_add(part).with_context(wrong)?;
        rest = &rest[end + 1..];
    }
    Ok(seconds)
}
