//! `lapstrake images` and `lapstrake rmi`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use clap::Args;
use engine::images::Subject;
use oci::{Digest, ImageConfig, Platform, Reference};
use serde_json::{Map, Value};
use store::{Image, ImageName, Store};

use crate::failure::Failure;
use crate::glob;
use crate::table::{Listing, human_duration, human_size};

/// List images
#[derive(Debug, Args)]
pub(crate) struct Images {
    /// Only images of this name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    repository: Option<String>,
    /// Show all images; there are no hidden ones
    #[arg(long, short = 'a')]
    all: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Only images that match: reference=PATTERN, dangling=BOOL, label=KEY[=VALUE], before=IMAGE, since=IMAGE
    #[arg(long = "filter", short = 'f', value_name = "FILTER")]
    filters: Vec<String>,
    /// How to print: table, json, or a template such as '{{.Repository}}:{{.Tag}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
    /// Print only ids
    #[arg(long, short = 'q')]
    quiet: bool,
}

/// Remove images, or one of their names
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Names or ids
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// Remove an image that has several names
    #[arg(long, short = 'f')]
    force: bool,
    /// Accepted for Docker's sake
    #[arg(long, hide = true)]
    no_prune: bool,
}

/// One line of the listing: an image under one of its names.
struct Row {
    /// The image's id, or that of the index over several.
    id: Digest,
    /// Bytes of content, of all platforms.
    size: u64,
    platform: String,
    /// The image that is meant where one is wanted.
    image: Image,
    name: Option<(Reference, ImageName)>,
}

impl Images {
    /// Prints the images.
    pub(crate) fn run(&self, store: &Store) -> Result<()> {
        let mut rows = rows(store)?;
        if let Some(wanted) = &self.repository {
            let wanted = wanted.to_lowercase();
            rows.retain(|row| row.is_named(&wanted));
        }
        for filter in &self.filters {
            keep(store, &mut rows, filter)?;
        }
        let mut out = String::new();
        if self.quiet {
            let mut seen = BTreeSet::new();
            for row in &rows {
                if seen.insert(row.id.clone()) {
                    out.push_str(&self.id(row));
                    out.push('\n');
                }
            }
        } else {
            out = self.listing(store, &rows).render(self.format.as_deref())?;
        }
        crate::output::print(&out)
    }

    fn id(&self, row: &Row) -> String {
        match self.no_trunc {
            true => row.id.to_string(),
            false => row.id.short().to_owned(),
        }
    }

    fn listing(&self, store: &Store, rows: &[Row]) -> Listing<'static> {
        let now = store.now();
        let rows = rows.iter().map(|row| {
            let (repository, tag, digest) = row.texts();
            let age = human_duration(now - row.image.created);
            let fields = [
                ("Repository", Value::from(repository)),
                ("Tag", tag.into()),
                ("Digest", digest.into()),
                ("ID", self.id(row).into()),
                ("CreatedSince", format!("{age} ago").into()),
                ("CreatedAt", crate::output::date(row.image.created).into()),
                ("Size", human_size(row.size).into()),
                ("VirtualSize", human_size(row.size).into()),
                ("Platform", row.platform.clone().into()),
                ("Containers", "N/A".into()),
                ("SharedSize", "N/A".into()),
                ("UniqueSize", "N/A".into()),
            ];
            let pairs = fields
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value));
            pairs.collect::<Map<_, _>>()
        });
        Listing {
            columns: if self.digests { &WITH_DIGESTS } else { &PLAIN },
            rows: rows.collect(),
        }
    }
}

const PLAIN: [(&str, &str); 5] = [
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("Size", "SIZE"),
];

const WITH_DIGESTS: [(&str, &str); 6] = [
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("Size", "SIZE"),
];

impl Row {
    fn of_name(
        image: &Image,
        reference: Reference,
        name: &ImageName,
        images: &BTreeMap<&Digest, &Image>,
    ) -> Self {
        let meant = name.images().iter().filter_map(|id| images.get(id));
        let all: Vec<&&Image> = meant.collect();
        let platforms: Vec<&str> = all.iter().map(|image| image.platform.as_str()).collect();
        Self {
            id: match &name.variants {
                Some(variants) => variants.index.clone(),
                None => image.id.clone(),
            },
            size: all.iter().map(|image| image.size).sum(),
            platform: platforms.join(","),
            image: image.clone(),
            name: Some((reference, name.clone())),
        }
    }

    fn texts(&self) -> (String, String, String) {
        const NONE: &str = "<none>";
        let Some((reference, name)) = &self.name else {
            return (NONE.to_owned(), NONE.to_owned(), NONE.to_owned());
        };
        let digest = name.digest.as_ref().map(ToString::to_string);
        (
            reference.clone().without_version().familiar(),
            reference.tag().unwrap_or(NONE).to_owned(),
            digest.unwrap_or_else(|| NONE.to_owned()),
        )
    }

    /// Returns whether the row has this name, with or without its tag.
    fn is_named(&self, wanted: &str) -> bool {
        self.name.as_ref().is_some_and(|(reference, _)| {
            glob::matches(wanted, &reference.clone().without_version().familiar())
                || glob::matches(wanted, &reference.familiar())
        })
    }
}

/// Returns every image under every name, newest first.
fn rows(store: &Store) -> Result<Vec<Row>> {
    rows_of(&store.names()?, &store.images()?)
}

/// Joins images with their names, each found by its id: a store may have many thousands of both.
fn rows_of(names: &[ImageName], images: &[Image]) -> Result<Vec<Row>> {
    let by_id: BTreeMap<&Digest, &Image> = images.iter().map(|image| (&image.id, image)).collect();
    let mut names_of: BTreeMap<&Digest, Vec<&ImageName>> = BTreeMap::new();
    let mut named = BTreeSet::new();
    for name in names {
        names_of.entry(&name.image).or_default().push(name);
        named.extend(name.images());
    }
    let mut rows = Vec::new();
    for image in images {
        for name in names_of.get(&image.id).into_iter().flatten() {
            let reference = Reference::parse_normalized(&name.reference)
                .with_context(|| format!("the store has the name {:?}", name.reference))?;
            rows.push(Row::of_name(image, reference, name, &by_id));
        }
        if !named.contains(&image.id) && !names_of.contains_key(&image.id) {
            rows.push(Row {
                id: image.id.clone(),
                size: image.size,
                platform: image.platform.clone(),
                image: image.clone(),
                name: None,
            });
        }
    }
    Ok(rows)
}

/// Keeps the rows that a filter lets through.
fn keep(store: &Store, rows: &mut Vec<Row>, filter: &str) -> Result<()> {
    let (key, value) = filter
        .split_once('=')
        .with_context(|| format!("invalid filter {filter:?}: it is not KEY=VALUE"))?;
    match key {
        "reference" => rows.retain(|row| row.is_named(value)),
        "dangling" => {
            let wanted = matches!(value, "true" | "1");
            rows.retain(|row| row.name.is_none() == wanted);
        }
        "label" => {
            let mut failure = None;
            rows.retain(|row| match has_label(store, &row.image, value) {
                Ok(found) => found,
                Err(error) => {
                    failure = Some(error);
                    false
                }
            });
            if let Some(error) = failure {
                return Err(error);
            }
        }
        "before" | "since" => {
            let pivot = find(store, value)?.0.created;
            rows.retain(|row| match key {
                "before" => row.image.created < pivot,
                _ => row.image.created > pivot,
            });
        }
        _ => {
            bail!("invalid filter {key:?}: there are reference, dangling, label, before and since")
        }
    }
    Ok(())
}

pub(super) fn has_label(store: &Store, image: &Image, wanted: &str) -> Result<bool> {
    let config: ImageConfig = serde_json::from_slice(&store.blobs().read(&image.id)?)?;
    let labels = &config.config.labels;
    Ok(match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
        None => labels.contains_key(wanted),
    })
}

/// Returns the image of a name or of an id, which may be shortened, and the name if it was one.
pub(crate) fn find(store: &Store, wanted: &str) -> Result<(Image, Option<ImageName>)> {
    engine::images::find(store, wanted)?.with_context(|| format!("No such image: {wanted}"))
}

/// Returns all that a name or an id stands for, or what of it is for a platform.
pub(crate) fn find_subject(
    store: &Store,
    wanted: &str,
    platform: Option<&Platform>,
) -> Result<(Subject, Option<ImageName>)> {
    engine::images::find_subject(store, wanted, platform)?.with_context(|| match platform {
        None => format!("No such image: {wanted}"),
        Some(platform) => format!("No such image: {wanted} for {platform}"),
    })
}

/// Refuses to take the last name of an image that a container is made of.
fn refuse_used(store: &Store, image: &Image, wanted: &str) -> Result<()> {
    let containers = store.containers()?;
    match containers.iter().find(|found| found.image == image.id) {
        None => Ok(()),
        Some(container) => bail!(
            "conflict: unable to remove repository reference \"{wanted}\" (must force) - container {} is using its referenced image {}",
            &container.id[..12],
            image.id.short()
        ),
    }
}

impl Remove {
    /// Removes names, and images that have lost their last one.
    pub(crate) fn run(&self, store: &Store) -> Result<(), Failure> {
        let mut failed = false;
        for wanted in &self.images {
            let removed = match engine::images::find_subject(store, wanted, None) {
                Ok(None) => {
                    crate::log::error(&format!("No such image: {wanted}"));
                    // As Docker has it: what is not there any more is what was wanted.
                    failed |= !self.force;
                    continue;
                }
                Ok(Some((subject, name))) => self.remove(store, wanted, &subject, name),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = removed {
                crate::log::error(&format!("{error:#}"));
                failed = true;
            }
        }
        match failed {
            true => Err(Failure::Said(1)),
            false => Ok(()),
        }
    }

    fn remove(
        &self,
        store: &Store,
        wanted: &str,
        subject: &Subject,
        name: Option<ImageName>,
    ) -> Result<()> {
        let id = subject.index.as_ref().unwrap_or(&subject.image.id);
        let is_meant = |name: &&ImageName| match &subject.index {
            Some(index) => name
                .variants
                .as_ref()
                .is_some_and(|known| known.index == *index),
            None => name.images().contains(&subject.image.id),
        };
        let all = store.names()?;
        let names: Vec<&ImageName> = all.iter().filter(is_meant).collect();
        let mut out = String::new();
        let last = name.is_none() || names.len() <= 1;
        if last && !self.force {
            for image in &subject.images {
                refuse_used(store, image, wanted)?;
            }
        }
        let untag = match &name {
            Some(name) => vec![name],
            None if names.len() > 1 && !self.force => bail!(
                "image {wanted} has {} names ({}); remove them one by one, or use --force",
                names.len(),
                names
                    .iter()
                    .map(|name| name.reference.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
            None => names.clone(),
        };
        for name in &untag {
            store.remove_name(&name.reference)?;
            let familiar = Reference::parse_normalized(&name.reference)
                .map_or_else(|_| name.reference.clone(), |reference| reference.familiar());
            out.push_str(&format!("Untagged: {familiar}\n"));
        }
        let left = store.names()?;
        let is_free = |image: &&Image| !left.iter().any(|name| name.images().contains(&image.id));
        let free: Vec<&Image> = subject.images.iter().filter(is_free).collect();
        for image in &free {
            store.remove_image(&image.id)?;
        }
        if untag.len() == names.len() && (subject.index.is_some() || !free.is_empty()) {
            out.push_str(&format!("Deleted: {id}\n"));
        }
        crate::output::print(&out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(number: u32) -> Image {
        Image {
            id: Digest::sha256_of(&number.to_le_bytes()),
            manifest: None,
            layers: None,
            platform: "linux/amd64".to_owned(),
            size: 7,
            created: 0,
            annotations: BTreeMap::new(),
        }
    }

    fn name(reference: &str, image: u32) -> ImageName {
        ImageName {
            reference: format!("docker.io/library/{reference}:latest"),
            image: self::image(image).id,
            digest: None,
            variants: None,
            updated: 0,
        }
    }

    #[test]
    fn images_stand_in_their_order_once_for_each_name_or_nameless() {
        let names = [name("a", 3), name("b", 1), name("c", 3)];
        let rows = rows_of(&names, &[image(3), image(2), image(1)]).unwrap();
        let texts: Vec<String> = rows.iter().map(|row| row.texts().0).collect();
        assert_eq!(texts, ["a", "c", "<none>", "b"]);
        assert!(rows.iter().all(|row| row.size == 7));
    }

    #[test]
    fn images_of_an_index_belong_to_its_row() {
        let mut several = name("several", 1);
        several.variants = Some(store::Variants {
            index: Digest::sha256_of(b"index"),
            images: vec![image(1).id, image(2).id],
        });
        let rows = rows_of(&[several], &[image(2), image(1)]).unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].size, 14);
        assert_eq!(rows[0].platform, "linux/amd64,linux/amd64");
    }

    #[test]
    fn a_hundred_thousand_images_are_joined_with_their_names() {
        // With a look at all names for each image this would be ten thousand million comparisons.
        const COUNT: u32 = 100_000;
        let images: Vec<Image> = (0..COUNT).map(image).collect();
        let names: Vec<ImageName> = (0..COUNT)
            .map(|number| name(&format!("app-{number}"), number))
            .collect();
        assert_eq!(rows_of(&names, &images).unwrap().len(), COUNT as usize);
    }
}
