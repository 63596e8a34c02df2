//! What takes space, and who holds it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use oci::{Digest, Manifest};
use rusqlite::Connection;

use crate::{LayerId, Store, StoreError};

/// One thing that takes space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// What it is.
    pub item: Item,
    /// What kind of thing it is.
    pub kind: ItemKind,
    /// Bytes on disk.
    pub bytes: u64,
    /// Seconds since 1970.
    pub created: i64,
    /// Seconds since 1970.
    pub used: i64,
    /// The image with a name, or the container, that needs it.
    pub holder: Option<String>,
    /// Where it came from.
    pub origin: String,
    /// For a blob: the layers that came in it, which it does not go before.
    pub tar_of: Vec<LayerId>,
}

/// What takes space.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    Layer(LayerId),
    Blob(Digest),
    /// A cache mount, by the name of its directory.
    Mount(String),
    /// The logs of a build, by its id. They go by the rules of the history alone.
    Build(String),
    /// The records themselves, with what is remembered of files of contexts.
    Records,
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Item::Layer(id) => write!(f, "layer-{}", id.0),
            Item::Blob(digest) => write!(f, "{digest}"),
            Item::Mount(name) => write!(f, "mount-{}", name.get(..12).unwrap_or(name)),
            Item::Build(id) => write!(f, "build-{id}"),
            Item::Records => f.write_str("records"),
        }
    }
}

/// The kinds of things that take space, by BuildKit's names where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ItemKind {
    /// A step's result.
    Regular,
    /// Files of a context, for a mount.
    Local,
    /// A layer that came with an image.
    Image,
    /// Compressed layers, configs, manifests, downloads.
    Blob,
    /// A cache mount.
    CacheMount,
    /// Logs of a build.
    Build,
    /// What the store needs itself.
    Internal,
}

impl ItemKind {
    /// All kinds with their names.
    pub const NAMES: [(&'static str, ItemKind); 7] = [
        ("regular", ItemKind::Regular),
        ("source.local", ItemKind::Local),
        ("image", ItemKind::Image),
        ("blob", ItemKind::Blob),
        ("exec.cachemount", ItemKind::CacheMount),
        ("build", ItemKind::Build),
        ("internal", ItemKind::Internal),
    ];
}

impl fmt::Display for ItemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, kind)| kind == self);
        f.write_str(name.map_or("", |(name, _)| name))
    }
}

impl FromStr for ItemKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(name, _)| *name == text);
        found.map(|(_, kind)| *kind).ok_or_else(|| {
            let names = Self::NAMES.map(|(name, _)| name).join(", ");
            format!("there is no type {text:?}; there are {names}")
        })
    }
}

/// Below this many bytes a blob is not worth removing before larger things: what a name resolves
/// to is in such blobs, and without it the next build needs a network.
const SMALL: u64 = 64 << 10;

impl Usage {
    /// The order of removal: the longest unused first; of things used last at the same time those made
    /// later, as they lie above the others; small blobs after everything else, and what a layer came in after it.
    pub(crate) fn removal_order(&self) -> (bool, i64, bool, std::cmp::Reverse<&Item>) {
        let small = self.kind == ItemKind::Blob && self.bytes < SMALL;
        let after = !self.tar_of.is_empty();
        (small, self.used, after, std::cmp::Reverse(&self.item))
    }
}

impl Store {
    /// Lists all that takes space, what would be removed first in front.
    pub fn usage(&self) -> Result<Vec<Usage>, StoreError> {
        self.measure_mounts()?;
        let database = self.database();
        let list = || -> rusqlite::Result<(Vec<Usage>, Holdings)> {
            let mut usage = layers(&database)?;
            usage.extend(blobs(&database)?);
            usage.extend(mounts(&database)?);
            usage.extend(builds(&database)?);
            Ok((usage, holdings(&database)?))
        };
        let (mut usage, holdings) = list().map_err(StoreError::database("list what is used"))?;
        drop(database);
        let mut layers_of: BTreeMap<Digest, Vec<LayerId>> = BTreeMap::new();
        for (layer, blob) in &holdings.tars {
            layers_of.entry(blob.clone()).or_default().push(*layer);
        }
        let used: BTreeMap<LayerId, i64> = usage
            .iter()
            .filter_map(|entry| match entry.item {
                Item::Layer(id) => Some((id, entry.used)),
                _ => None,
            })
            .collect();
        let held = self.held(holdings);
        for entry in &mut usage {
            if let Item::Blob(digest) = &entry.item
                && let Some(layers) = layers_of.remove(digest)
            {
                let latest = layers.iter().filter_map(|layer| used.get(layer)).max();
                entry.used = entry.used.max(latest.copied().unwrap_or(0));
                entry.tar_of = layers;
            }
            entry.holder = match &entry.item {
                Item::Build(_) => Some(HISTORY.to_owned()),
                item => held.get(item).cloned(),
            };
        }
        let now = self.now();
        usage.push(Usage {
            item: Item::Records,
            kind: ItemKind::Internal,
            bytes: self.own_bytes(),
            created: now,
            used: now,
            holder: Some("the store itself".to_owned()),
            origin: "records and digests of files".to_owned(),
            tar_of: Vec::new(),
        });
        usage.sort_by(|a, b| a.removal_order().cmp(&b.removal_order()));
        Ok(usage)
    }

    /// Returns the bytes of all that takes space, from one row that is kept up to date.
    pub fn used_bytes(&self) -> Result<u64, StoreError> {
        let read = || {
            self.database()
                .prepare_cached(
                    "SELECT bytes, EXISTS(SELECT 1 FROM mount WHERE bytes IS NULL) FROM total",
                )
                .and_then(|mut statement| {
                    let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get(1)?));
                    statement.query_row([], row)
                })
                .map_err(StoreError::database("read what is used"))
        };
        let (mut bytes, unmeasured) = read()?;
        if unmeasured {
            self.measure_mounts()?;
            (bytes, _) = read()?;
        }
        Ok(bytes.max(0) as u64 + self.own_bytes())
    }

    /// Returns the bytes of the record database with its log of changes, and of what is remembered of contexts.
    fn own_bytes(&self) -> u64 {
        let size = |path: &str| std::fs::metadata(self.path(path)).map_or(0, |meta| meta.len());
        let memos = std::fs::read_dir(self.path("memos"));
        let memos = memos.into_iter().flatten().flatten();
        let memos = memos.filter_map(|entry| Some(entry.metadata().ok()?.len()));
        size("records.db") + size("records.db-wal") + memos.sum::<u64>()
    }

    /// Returns what images with a name and containers need, each with one such name.
    pub(crate) fn held(&self, holdings: Holdings) -> BTreeMap<Item, String> {
        let mut held = BTreeMap::new();
        for holding in holdings.holders {
            let mut hold = |item| {
                held.entry(item).or_insert_with(|| holding.holder.clone());
            };
            hold(Item::Blob(holding.image));
            for layer in holding.layers.iter().flatten() {
                hold(Item::Layer(*layer));
                // Written anew it would be another tar, and the image another image.
                if let Some(blob) = holdings.tars.get(layer) {
                    hold(Item::Blob(blob.clone()));
                }
            }
            let documents = holding
                .manifest
                .iter()
                .chain(&holding.index)
                .chain(&holding.variants);
            documents.for_each(|digest| hold(Item::Blob(digest.clone())));
            // What was made here and is unpacked is compressed again for an export, to the same bytes.
            if let (None, Some(digest)) = (&holding.layers, &holding.manifest) {
                // Read as a file: the database may be in use by the caller.
                let manifest = std::fs::read(self.blobs().path(digest)).ok();
                let parsed = manifest.and_then(|raw| serde_json::from_slice::<Manifest>(&raw).ok());
                for layer in parsed.into_iter().flat_map(|manifest| manifest.layers) {
                    hold(Item::Blob(layer.digest));
                }
            }
        }
        held
    }
}

/// What is held, and by whom.
#[derive(Debug)]
pub(crate) struct Holdings {
    holders: Vec<Holding>,
    /// The blobs that layers of images came in.
    tars: BTreeMap<LayerId, Digest>,
}

/// A container or a name, and what it points to.
#[derive(Debug)]
struct Holding {
    holder: String,
    image: Digest,
    layers: Option<Vec<LayerId>>,
    manifest: Option<Digest>,
    index: Option<Digest>,
    variants: Option<Digest>,
}

/// Lists the containers and names with the images they hold.
pub(crate) fn holdings(database: &Connection) -> rusqlite::Result<Holdings> {
    let mut statement = database.prepare_cached(
        "SELECT 'container ' || name, image, layers, NULL, NULL, NULL FROM container
         UNION ALL
         SELECT * FROM (SELECT name.reference, image.id, image.layers, image.manifest, name.digest,
             CASE WHEN json_valid(name.variants) THEN json_extract(name.variants, '$.index') END
           FROM name JOIN named ON named.reference = name.reference
             JOIN image ON image.id = named.image ORDER BY name.reference, image.id)",
    )?;
    let digest = |text: Option<String>| text.and_then(|text| text.parse::<Digest>().ok());
    let rows = statement.query_map([], |row| {
        let layers: Option<String> = row.get(2)?;
        Ok(digest(row.get(1)?).map(|image| Holding {
            image,
            holder: row.get(0).unwrap_or_default(),
            layers: layers.and_then(|text| serde_json::from_str(&text).ok()),
            manifest: digest(row.get(3).unwrap_or_default()),
            index: digest(row.get(4).unwrap_or_default()),
            variants: digest(row.get(5).unwrap_or_default()),
        }))
    })?;
    // A row with a damaged image holds nothing that could be named here; the check reports it.
    let holders = rows
        .filter_map(Result::transpose)
        .collect::<rusqlite::Result<_>>()?;
    Ok(Holdings {
        holders,
        tars: tars(database)?,
    })
}

fn tars(database: &Connection) -> rusqlite::Result<BTreeMap<LayerId, Digest>> {
    let mut statement = database.prepare_cached(
        "SELECT layer.id, encoding.digest FROM layer
           JOIN encoding ON encoding.diff_id = layer.diff_id AND encoding.form = 'original'
         WHERE layer.unpack_key IS NOT NULL ORDER BY layer.id",
    )?;
    let rows = statement.query_map([], |row| {
        let digest: Option<Digest> = row.get::<_, String>(1)?.parse().ok();
        Ok(digest.map(|digest| (LayerId(row.get::<_, i64>(0).unwrap_or(0) as u64), digest)))
    })?;
    rows.filter_map(Result::transpose).collect()
}

fn layers(database: &Connection) -> rusqlite::Result<Vec<Usage>> {
    let mut statement = database.prepare_cached(
        "SELECT layer.id, layer.bytes, layer.created, layer.origin,
           max(layer.used, coalesce((SELECT max(result.used) FROM result_layer
             JOIN result ON result.id = result_layer.result
             WHERE result_layer.layer = layer.id), 0)),
           layer.unpack_key IS NOT NULL
         FROM layer WHERE boot <> 'ingest'",
    )?;
    let rows = statement.query_map([], |row| {
        let origin: String = row.get(3)?;
        let kind = match (row.get(5)?, origin.as_str()) {
            (true, _) => ItemKind::Image,
            (false, "context") => ItemKind::Local,
            (false, _) => ItemKind::Regular,
        };
        Ok(Usage {
            item: Item::Layer(LayerId(row.get::<_, i64>(0)? as u64)),
            kind,
            bytes: row.get::<_, i64>(1)? as u64,
            created: row.get(2)?,
            origin,
            used: row.get(4)?,
            holder: None,
            tar_of: Vec::new(),
        })
    })?;
    rows.collect()
}

fn blobs(database: &Connection) -> rusqlite::Result<Vec<Usage>> {
    let mut statement =
        database.prepare_cached("SELECT digest, size, created, used FROM blob ORDER BY digest")?;
    let rows = statement.query_map([], |row| {
        let digest: String = row.get(0)?;
        let bytes = row.get::<_, i64>(1)? as u64;
        let (created, used) = (row.get(2)?, row.get(3)?);
        Ok(digest.parse().ok().map(|digest| Usage {
            item: Item::Blob(digest),
            kind: ItemKind::Blob,
            bytes,
            created,
            used,
            holder: None,
            origin: "blob".to_owned(),
            tar_of: Vec::new(),
        }))
    })?;
    rows.filter_map(Result::transpose).collect()
}

/// Who holds the logs of builds.
const HISTORY: &str = "the history of builds";

fn builds(database: &Connection) -> rusqlite::Result<Vec<Usage>> {
    let mut statement = database
        .prepare_cached("SELECT id, bytes, started FROM build WHERE bytes > 0 ORDER BY started")?;
    let rows = statement.query_map([], |row| {
        let id: String = row.get(0)?;
        let started = row.get::<_, i64>(2)? / 1_000_000_000;
        Ok(Usage {
            origin: format!("logs of build {id}"),
            item: Item::Build(id),
            kind: ItemKind::Build,
            bytes: row.get::<_, i64>(1)? as u64,
            created: started,
            used: started,
            holder: None,
            tar_of: Vec::new(),
        })
    })?;
    rows.collect()
}

fn mounts(database: &Connection) -> rusqlite::Result<Vec<Usage>> {
    let mut statement = database
        .prepare_cached("SELECT name, id, bytes, created, used FROM mount ORDER BY name")?;
    let rows = statement.query_map([], |row| {
        Ok(Usage {
            item: Item::Mount(row.get(0)?),
            kind: ItemKind::CacheMount,
            origin: format!("cache mount {}", row.get::<_, String>(1)?),
            bytes: row.get::<_, Option<i64>>(2)?.unwrap_or(0) as u64,
            created: row.get(3)?,
            used: row.get(4)?,
            holder: None,
            tar_of: Vec::new(),
        })
    })?;
    rows.collect()
}
