//! `lapstrake image …`, and the same commands at the top.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use engine::images::Subject;
use engine::{Destination, Engine};
use oci::{Digest, ImageConfig, Platform, Reference};
use serde_json::{Map, Value};
use store::{CollectPolicy, Image, Store};

use super::build::Build;
use super::image_content::{DiffOf, Import, TreeOf};
use super::images::{Images, Remove, find, find_subject};
use super::inspect::Inspect;
use crate::arguments::{Global, ProgressMode};
use crate::failure::{Failure, exit};
use crate::table::{Listing, human_duration, human_size};
use crate::{build_request, log, output, screen, settings};

/// Manage images
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Build an image from a Dockerfile
    Build(Box<Build>),
    #[command(alias = "list")]
    Ls(Images),
    Rm(Remove),
    Prune(Prune),
    Tag(Tag),
    History(HistoryOf),
    Inspect(Inspect),
    Save(Save),
    Load(Load),
    Pull(Pull),
    Push(Push),
    Import(Import),
    Tree(TreeOf),
    Diff(DiffOf),
}

impl ImageCommand {
    pub(crate) fn run(self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::Build(build) => super::build::run(&build, global),
            Self::Ls(images) => images
                .run(&settings::open_records(global)?)
                .map_err(exit::usage),
            Self::Rm(remove) => remove.run(&settings::open_records(global)?),
            Self::Prune(command) => command.run(global),
            Self::Tag(command) => command.run(global),
            Self::History(command) => command.run(global),
            Self::Inspect(command) => command.run_for_images(global),
            Self::Save(command) => command.run(global),
            Self::Load(command) => command.run(global),
            Self::Pull(command) => command.run(global),
            Self::Push(command) => command.run(global),
            Self::Import(command) => command.run(global),
            Self::Tree(command) => command.run(global),
            Self::Diff(command) => command.run(global),
        }
    }
}

/// Give an image another name
#[derive(Debug, Args)]
pub(crate) struct Tag {
    /// Name or id
    source: String,
    /// The new name
    target: String,
}

impl Tag {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let store = settings::open_records(global)?;
        let target = build_request::reference(&self.target).map_err(exit::usage)?;
        let (subject, _) = find_subject(&store, &self.source, None).map_err(exit::build)?;
        store
            .set_name_of(
                &target,
                &subject.image.id,
                None,
                subject.variants().as_ref(),
            )
            .map_err(exit::builder)
    }
}

/// Show what an image was made of
#[derive(Debug, Args)]
pub(crate) struct HistoryOf {
    /// Do not shorten ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// Print only ids
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Print sizes and ages for people
    #[arg(long, short = 'H', num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = true, action = clap::ArgAction::Set)]
    human: bool,
    /// How to print: table, json, or a template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Name or id
    image: String,
}

const HISTORY: [(&str, &str); 5] = [
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];

impl HistoryOf {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let store = settings::open_records(global)?;
        let text = self.text(&store).map_err(exit::build)?;
        output::print(&text).map_err(exit::builder)
    }

    fn text(&self, store: &Store) -> Result<String> {
        let (image, _) = find(store, &self.image)?;
        let config = config_of(store, &image)?;
        let mut sizes = Vec::new();
        for layer in image.layers.iter().flatten() {
            sizes.push(store.layer_info(*layer)?.content);
        }
        let mut sizes = sizes.into_iter();
        let now = store.now();
        let mut rows = Vec::new();
        for entry in &config.history {
            let size = match entry.empty_layer {
                true => 0,
                false => sizes.next().unwrap_or(0),
            };
            let created = entry.created.map(|time| time.unix_seconds());
            let by = entry.created_by.replace('\t', " ");
            let by = match self.no_trunc || by.chars().count() <= 45 {
                true => by,
                false => format!("{}…", by.chars().take(44).collect::<String>()),
            };
            let date = created.map(output::date).unwrap_or_default();
            let fields: [(&str, Value); 7] = [
                ("ID", "<missing>".into()),
                (
                    "CreatedSince",
                    match created {
                        Some(time) if self.human => {
                            format!("{} ago", human_duration(now - time)).into()
                        }
                        Some(_) => date.clone().into(),
                        None => "N/A".into(),
                    },
                ),
                ("CreatedAt", date.into()),
                ("CreatedBy", by.into()),
                (
                    "Size",
                    match self.human {
                        true => human_size(size).into(),
                        false => size.to_string().into(),
                    },
                ),
                ("Comment", entry.comment.clone().into()),
                ("Tags", "".into()),
            ];
            let row = fields.map(|(name, value)| (name.to_owned(), value));
            rows.push(row.into_iter().collect::<Map<_, _>>());
        }
        rows.reverse();
        let id = match self.no_trunc {
            true => image.id.to_string(),
            false => image.id.short().to_owned(),
        };
        if let Some(first) = rows.first_mut() {
            first.insert("ID".to_owned(), id.into());
        }
        if self.quiet {
            let ids = rows.iter().filter_map(|row| row["ID"].as_str());
            return Ok(ids.map(|id| format!("{id}\n")).collect());
        }
        Listing {
            columns: &HISTORY,
            rows,
        }
        .render(self.format.as_deref())
    }
}

/// Returns the config of an image.
pub(crate) fn config_of(store: &Store, image: &Image) -> Result<ImageConfig> {
    let raw = store.blobs().read(&image.id)?;
    serde_json::from_slice(&raw).with_context(|| format!("failed to read the config {}", image.id))
}

/// Write images into an archive that docker load takes
#[derive(Debug, Args)]
pub(crate) struct Save {
    /// File to write; standard output if absent
    #[arg(long, short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
    /// Only the image for this platform, where there are several
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Names or ids
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

impl Save {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        if self.output.is_none() && std::io::stdout().is_terminal() {
            return Err(exit::build(anyhow!(
                "cowardly refusing to save to a terminal. Use the -o flag or redirect"
            )));
        }
        let engine = settings::open_engine(global)?;
        let images = self.chosen(engine.store()).map_err(exit::build)?;
        let destination = match &self.output {
            Some(path) => Destination::Path(path.clone()),
            None => Destination::Stdout,
        };
        engine.save(&images, destination).map_err(exit::engine)
    }

    /// Returns the images with the names they were asked for by; a name without a tag means all of its tags.
    fn chosen(&self, store: &Store) -> Result<Vec<(Subject, Vec<Reference>)>> {
        let platform = platform(self.platform.as_deref())?;
        let platform = platform.as_ref();
        let mut chosen: Vec<(Subject, Vec<Reference>)> = Vec::new();
        let mut add = |subject: Subject, name: Option<Reference>| {
            let at = chosen.iter().position(|(known, _)| {
                known.image.id == subject.image.id && known.index == subject.index
            });
            let at = at.unwrap_or_else(|| {
                chosen.push((subject, Vec::new()));
                chosen.len() - 1
            });
            chosen[at].1.extend(name);
        };
        for wanted in &self.images {
            let (subject, name) = match find_subject(store, wanted, platform) {
                Ok(found) => found,
                Err(error) => {
                    let tags = all_tags(store, wanted, platform)?;
                    if tags.is_empty() {
                        return Err(error);
                    }
                    for (name, subject) in tags {
                        add(subject, Some(name));
                    }
                    continue;
                }
            };
            let name = name.map(|name| Reference::parse_normalized(&name.reference));
            add(subject, name.transpose()?);
        }
        Ok(chosen)
    }
}

fn all_tags(
    store: &Store,
    wanted: &str,
    platform: Option<&Platform>,
) -> Result<Vec<(Reference, Subject)>> {
    let Ok(wanted) = Reference::parse_normalized(wanted) else {
        return Ok(Vec::new());
    };
    if !wanted.is_name_only() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for name in store.names()? {
        let reference = Reference::parse_normalized(&name.reference)?;
        if reference.name() == wanted.name()
            && let Some(subject) = Subject::of_name(store, &name, platform)?
        {
            found.push((reference, subject));
        }
    }
    Ok(found)
}

/// Load images from an archive: docker save's, or an OCI layout
#[derive(Debug, Args)]
pub(crate) struct Load {
    /// File, or directory in OCI layout, to read; standard input if absent
    #[arg(long, short = 'i', value_name = "PATH")]
    input: Option<PathBuf>,
    /// Platform, where the archive has several
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Show no progress
    #[arg(long, short = 'q')]
    quiet: bool,
}

/// Opens a file that may be an archive of images; one that is none is told of before anything is read into the store.
fn open_archive(path: &Path) -> Result<impl Read + 'static> {
    let open = || format!("open {}", path.display());
    let mut file = std::fs::File::open(path).with_context(open)?;
    let mut head = Vec::new();
    file.by_ref()
        .take(HEAD)
        .read_to_end(&mut head)
        .with_context(open)?;
    if !engine::looks_like_archive(&head) {
        bail!(
            "{} is no archive of images; `lapstrake save -o FILE IMAGE` writes one",
            path.display()
        );
    }
    Ok(std::io::Cursor::new(head).chain(file))
}

/// As many bytes as tell an archive from other files.
const HEAD: u64 = 1024;

impl Load {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let platform = platform(self.platform.as_deref()).map_err(exit::usage)?;
        let directory = self.input.as_deref().filter(|path| path.is_dir());
        let input: Box<dyn std::io::Read> = match &self.input {
            Some(_) if directory.is_some() => Box::new(std::io::empty()),
            Some(path) => Box::new(open_archive(path).map_err(exit::build)?),
            None if std::io::stdin().is_terminal() => {
                return Err(exit::build(anyhow!(
                    "requested load from stdin, but stdin is empty"
                )));
            }
            None => Box::new(std::io::stdin().lock()),
        };
        let engine = settings::open_engine(global)?;
        let loaded = screen::show(&engine, ProgressMode::Quiet, |sink, cancel| {
            let platform = platform.as_ref();
            match directory {
                Some(directory) => engine.load_directory(directory, platform, sink, cancel),
                None => engine.load(input, platform, sink, cancel),
            }
        })?;
        let mut out = String::new();
        for loaded in loaded {
            for name in &loaded.names {
                out.push_str(&format!("Loaded image: {}\n", name.familiar()));
            }
            if loaded.names.is_empty() {
                out.push_str(&format!("Loaded image ID: {}\n", loaded.image.id));
            }
        }
        output::print(&out).map_err(exit::builder)
    }
}

pub(crate) fn platform(text: Option<&str>) -> Result<Option<Platform>> {
    match text {
        None | Some("") => Ok(None),
        Some(text) => {
            let platform = text.parse();
            Ok(Some(
                platform.with_context(|| format!("invalid platform {text:?}"))?,
            ))
        }
    }
}

/// Bring an image from a registry
#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// All tags of the name
    #[arg(long, short = 'a')]
    all_tags: bool,
    /// Platform of the image
    #[arg(long, value_name = "PLATFORM", env = "DOCKER_DEFAULT_PLATFORM")]
    platform: Option<String>,
    /// Show no progress
    #[arg(long, short = 'q')]
    quiet: bool,
    /// NAME[:TAG|@DIGEST]
    image: String,
}

impl Pull {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let platform = platform(self.platform.as_deref()).map_err(exit::usage)?;
        let platform = platform.as_ref();
        let reference = Reference::parse_normalized(&self.image)
            .context("invalid reference format")
            .map_err(exit::build)?;
        let engine = settings::open_engine(global)?;
        let mode = match self.quiet {
            true => ProgressMode::Quiet,
            false => ProgressMode::Auto,
        };
        if self.all_tags {
            if !reference.is_name_only() {
                return Err(exit::build(anyhow!("tag can't be used with --all-tags/-a")));
            }
            for tag in engine.remote_tags(&self.image).map_err(exit::engine)? {
                self.pull(&engine, &format!("{}:{tag}", self.image), platform, mode)?;
            }
            return Ok(());
        }
        if reference.is_name_only() && !self.quiet {
            output::print("Using default tag: latest\n").map_err(exit::builder)?;
        }
        self.pull(&engine, &self.image, platform, mode)
    }

    fn pull(
        &self,
        engine: &Engine,
        name: &str,
        platform: Option<&Platform>,
        mode: ProgressMode,
    ) -> Result<(), Failure> {
        let pulled = screen::show(engine, mode, |sink, cancel| {
            engine.pull(name, platform, sink, cancel)
        })?;
        let mut out = String::new();
        if !self.quiet {
            let status = match pulled.was_there {
                true => "Image is up to date",
                false => "Downloaded newer image",
            };
            out = format!(
                "Digest: {}\nStatus: {status} for {}\n",
                pulled.digest,
                pulled.reference.familiar()
            );
        }
        out.push_str(&format!("{}\n", pulled.reference));
        output::print(&out).map_err(exit::builder)
    }
}

/// Send an image to the registry of its name
#[derive(Debug, Args)]
pub(crate) struct Push {
    /// All tags of the name
    #[arg(long, short = 'a')]
    all_tags: bool,
    /// Show no progress
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Only the image for this platform, where there are several
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Accepted for Docker's sake
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    disable_content_trust: Option<bool>,
    /// NAME[:TAG]
    image: String,
}

impl Push {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        if self.disable_content_trust == Some(false) {
            log::warning("--disable-content-trust=false has no effect: nothing is signed here");
        }
        let engine = settings::open_engine(global)?;
        let chosen = self.chosen(engine.store()).map_err(exit::build)?;
        let mode = match self.quiet {
            true => ProgressMode::Quiet,
            false => ProgressMode::Auto,
        };
        for (name, subject) in chosen {
            if !self.quiet {
                let repository = name.clone().without_version();
                let line = format!("The push refers to repository [{repository}]\n");
                output::print(&line).map_err(exit::builder)?;
            }
            let (digest, size) =
                screen::show(&engine, mode, |sink, _| engine.push(&subject, &name, sink))?;
            let line = match self.quiet {
                true => format!("{name}\n"),
                false => format!(
                    "{}: digest: {digest} size: {size}\n",
                    name.tag().unwrap_or("latest")
                ),
            };
            output::print(&line).map_err(exit::builder)?;
        }
        Ok(())
    }

    fn chosen(&self, store: &Store) -> Result<Vec<(Reference, Subject)>> {
        let platform = platform(self.platform.as_deref())?;
        if self.all_tags {
            let found = all_tags(store, &self.image, platform.as_ref())?;
            if found.is_empty() {
                bail!(
                    "tag can't be used with --all-tags, or no such image: {}",
                    self.image
                );
            }
            return Ok(found);
        }
        let reference = build_request::reference(&self.image)?;
        let Some(name) = store.name(&reference.to_string())? else {
            bail!(
                "An image does not exist locally with the tag: {}",
                self.image
            );
        };
        let subject = Subject::of_name(store, &name, platform.as_ref())?;
        let subject = subject.with_context(|| match &platform {
            None => "the store lacks the image of this name".to_owned(),
            Some(platform) => format!("{} has no image for {platform}", self.image),
        })?;
        Ok(vec![(reference, subject)])
    }
}

/// Remove images that have no name
#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Also those with a name, unless a container is made of them
    #[arg(long, short = 'a')]
    all: bool,
    /// Only images that match: until=24h, label=KEY[=VALUE], label!=KEY[=VALUE], dangling=BOOL
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(long, short = 'f')]
    force: bool,
}

impl Prune {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let mut filters = PruneFilters::parse(&self.filter).map_err(exit::usage)?;
        filters.all |= self.all;
        let warning = match filters.all {
            true => {
                "This will remove all images without at least one container associated to them."
            }
            false => "This will remove all dangling images.",
        };
        if !self.force && !output::confirm(warning) {
            return Err(exit::build(anyhow!("nothing was removed; use --force")));
        }
        let store = settings::open_for_files(global)?;
        let mut out = prune(&store, &filters).map_err(exit::build)?;
        if !out.is_empty() {
            out.insert_str(0, "Deleted Images:\n");
            out.push('\n');
        }
        let done = store
            .collect(&CollectPolicy::default())
            .map_err(exit::builder)?;
        out.push_str(&format!(
            "Total reclaimed space: {}\n",
            human_size(done.bytes)
        ));
        output::print(&out).map_err(exit::builder)
    }
}

/// Which images are removed.
#[derive(Debug, Default)]
pub(crate) struct PruneFilters {
    /// Also those with a name.
    pub(crate) all: bool,
    /// Made before this many seconds ago.
    older_than: Option<i64>,
    /// Labels they have, or have not.
    labels: Vec<(String, bool)>,
}

impl PruneFilters {
    fn parse(texts: &[String]) -> Result<Self> {
        let mut filters = Self::default();
        for text in texts {
            match text.split_once('=') {
                Some(("until", age)) => {
                    filters.older_than = Some(super::space::duration(age)?);
                }
                Some(("label", label)) => filters.labels.push((label.to_owned(), true)),
                Some(("label!", label)) => filters.labels.push((label.to_owned(), false)),
                Some(("dangling", "true" | "1")) => {}
                Some(("dangling", "false" | "0")) => filters.all = true,
                _ => bail!("invalid filter {text:?}: there are until, label, label! and dangling"),
            }
        }
        Ok(filters)
    }

    fn match_image(&self, store: &Store, image: &Image) -> Result<bool> {
        let is_too_young = |age| image.created > store.now().saturating_sub(age);
        if self.older_than.is_some_and(is_too_young) {
            return Ok(false);
        }
        for (label, is_wanted) in &self.labels {
            if super::images::has_label(store, image, label)? != *is_wanted {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Removes images that nothing needs and says which; what they are made of goes with a collection.
pub(crate) fn prune(store: &Store, filters: &PruneFilters) -> Result<String> {
    let mut kept: BTreeSet<_> = store
        .containers()?
        .into_iter()
        .map(|container| container.image)
        .collect();
    let names = store.names()?;
    let mut out = String::new();
    let images = store.images()?;
    for image in &images {
        if !filters.match_image(store, image)? {
            kept.insert(image.id.clone());
        }
    }
    for name in &names {
        if filters.all && !name.images().iter().any(|image| kept.contains(image)) {
            store.remove_name(&name.reference)?;
            out.push_str(&format!("untagged: {}\n", familiar(&name.reference)));
        }
    }
    let surplus = images.into_iter().map(|image| image.id);
    let surplus: Vec<Digest> = surplus.filter(|id| !kept.contains(id)).collect();
    for id in store.remove_images_without_name(&surplus)? {
        out.push_str(&format!("deleted: {id}\n"));
    }
    Ok(out)
}

/// Returns a name of the store as people write it.
pub(crate) fn familiar(reference: &str) -> String {
    Reference::parse_normalized(reference)
        .map_or_else(|_| reference.to_owned(), |reference| reference.familiar())
}
