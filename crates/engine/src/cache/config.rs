//! The document that says what a portable cache holds: BuildKit's `cacheconfig.v0`, with what only
//! lapstrake knows in a field of its own that others pass over.
//!
//! Layers are listed with their parent's place in the list, so that a list of them is a chain; records name the
//! chains that a key yields. What is read is hostile: nothing in it is used before it was checked, and a record that
//! does not hold together is left out.

use std::collections::{BTreeMap, HashMap};

use oci::media_type::{self, Kind};
use oci::{Descriptor, Digest, Timestamp};
use serde::{Deserialize, Serialize};
use store::Key;

/// A layer as a blob, the digest of its tar, and when it was made (seconds since the epoch).
pub(crate) type Blob = (Descriptor, Digest, i64);

/// The media type of the document.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.buildkit.cacheconfig.v0";

/// The largest document that is read, in bytes.
pub(crate) const MOST_BYTES: u64 = 32 << 20;

/// Layers a chain may have: more than any kernel mounts.
const LONGEST_CHAIN: usize = 500;

/// Records that are kept, the last confirmed ones.
const MOST_RECORDS: usize = 4000;

/// For how long a record is kept that no build has confirmed, in seconds.
const LIFE: i64 = 30 * 86_400;

/// The results of one cache.
#[derive(Debug, Clone, Default)]
pub(crate) struct PortableCache {
    layers: Vec<PortableLayer>,
    /// By blob, time and parent: steps that were run at different times may have made the same.
    places: HashMap<(Digest, i64, Option<usize>), usize>,
    records: BTreeMap<Key, PortableRecord>,
}

/// A layer on those below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortableLayer {
    pub(crate) descriptor: Descriptor,
    pub(crate) diff_id: Digest,
    /// When it was made, in seconds since 1970: part of the config of images.
    pub(crate) created: i64,
    parent: Option<usize>,
}

/// What a key yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortableRecord {
    pub(crate) operation: Key,
    /// What the operation and the content of its inputs make a key of, where that is known.
    pub(crate) content: Option<Key>,
    /// The uppermost layer of each output; `None` is an empty tree.
    pub(crate) outputs: Vec<Option<usize>>,
    pub(crate) name: String,
    /// Milliseconds it took.
    pub(crate) took: u64,
    /// When a build last had it, in seconds since 1970.
    pub(crate) confirmed: i64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Document {
    #[serde(default)]
    layers: Vec<DocumentLayer>,
    #[serde(default)]
    records: Vec<DocumentRecord>,
}

#[derive(Debug, Serialize, Deserialize)]
struct DocumentLayer {
    #[serde(default)]
    blob: String,
    /// -1 for none; absent for 0.
    #[serde(default)]
    parent: i64,
    annotations: Option<DocumentAnnotations>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct DocumentAnnotations {
    #[serde(rename = "mediaType")]
    media_type: String,
    #[serde(rename = "diffID")]
    diff_id: String,
    size: u64,
    #[serde(rename = "createdAt")]
    created: Option<Timestamp>,
}

#[derive(Debug, Serialize, Deserialize)]
struct DocumentRecord {
    #[serde(default)]
    digest: String,
    #[serde(default, rename = "layers", skip_serializing_if = "Vec::is_empty")]
    results: Vec<DocumentResult>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lapstrake: Option<OwnRecord>,
}

#[derive(Debug, Serialize, Deserialize)]
struct DocumentResult {
    layer: usize,
    #[serde(rename = "createdAt", skip_serializing_if = "Option::is_none")]
    created: Option<Timestamp>,
}

#[derive(Debug, Serialize, Deserialize)]
struct OwnRecord {
    version: u32,
    operation: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    outputs: Vec<Option<usize>>,
    name: String,
    took: u64,
    confirmed: i64,
}

/// The version of [`OwnRecord`].
const VERSION: u32 = 1;

impl PortableCache {
    /// Reads a document. Records of others, and those that do not hold together, are left out.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let document: Document = serde_json::from_slice(bytes)?;
        let mut cache = Self::default();
        // The place in this cache of each layer of the document that can be used.
        let mut places: Vec<Option<usize>> = Vec::with_capacity(document.layers.len());
        for layer in &document.layers {
            let place = layer_of(layer, &places).map(|(layer, parent)| cache.place(layer, parent));
            places.push(place);
        }
        for record in document.records {
            let Some((key, record)) = record_of(record, &places) else {
                continue;
            };
            let chains = record.outputs.iter().flatten();
            if chains
                .clone()
                .all(|top| cache.chain(*top).len() < LONGEST_CHAIN)
            {
                cache.records.insert(key, record);
            }
        }
        Ok(cache)
    }

    /// Returns the document, and the blobs it names, each once.
    pub(crate) fn to_document(&self) -> (Vec<u8>, Vec<Descriptor>) {
        let mut blobs: Vec<Descriptor> = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        let layers = self.layers.iter().map(|layer| {
            if seen.insert(layer.descriptor.digest.clone()) {
                blobs.push(layer.descriptor.clone());
            }
            DocumentLayer {
                blob: layer.descriptor.digest.to_string(),
                parent: layer.parent.map_or(-1, |parent| parent as i64),
                annotations: Some(DocumentAnnotations {
                    media_type: layer.descriptor.media_type.clone(),
                    diff_id: layer.diff_id.to_string(),
                    size: layer.descriptor.size,
                    created: Timestamp::from_unix(layer.created, 0).ok(),
                }),
            }
        });
        let layers = layers.collect();
        let records = self.records.iter().map(|(key, record)| {
            let tops = record.outputs.iter().flatten();
            DocumentRecord {
                digest: Digest::from_sha256(*key).to_string(),
                results: tops
                    .map(|top| DocumentResult {
                        layer: *top,
                        created: Timestamp::from_unix(self.layers[*top].created, 0).ok(),
                    })
                    .collect(),
                lapstrake: Some(OwnRecord {
                    version: VERSION,
                    operation: Digest::from_sha256(record.operation).to_string(),
                    content: record
                        .content
                        .map(|key| Digest::from_sha256(key).to_string()),
                    outputs: record.outputs.clone(),
                    name: record.name.clone(),
                    took: record.took,
                    confirmed: record.confirmed,
                }),
            }
        });
        let document = Document {
            layers,
            records: records.collect(),
        };
        let bytes = serde_json::to_vec(&document).expect("a cache can be written as JSON");
        (bytes, blobs)
    }

    /// Returns the records with their keys.
    pub(crate) fn records(&self) -> impl Iterator<Item = (&Key, &PortableRecord)> {
        self.records.iter()
    }

    /// Returns the layers of a chain, lowest first.
    pub(crate) fn chain(&self, top: usize) -> Vec<&PortableLayer> {
        let mut chain = Vec::new();
        let mut next = Some(top);
        while let Some(place) = next
            && chain.len() < LONGEST_CHAIN
        {
            let layer = &self.layers[place];
            chain.push(layer);
            next = layer.parent;
        }
        chain.reverse();
        chain
    }

    /// Adds a chain, lowest first, and returns the place of its uppermost layer.
    pub(crate) fn add_chain(&mut self, layers: impl IntoIterator<Item = Blob>) -> Option<usize> {
        let mut top = None;
        for (descriptor, diff_id, created) in layers {
            let layer = PortableLayer {
                descriptor,
                diff_id,
                created,
                parent: top,
            };
            top = Some(self.place(layer, top));
        }
        top
    }

    /// Adds what a key yields.
    pub(crate) fn add_record(&mut self, key: Key, record: PortableRecord) {
        self.records.insert(key, record);
    }

    /// Takes over the records of another cache that are not here, less those that are too old or too many.
    pub(crate) fn merge(&mut self, other: &PortableCache, now: i64) {
        let mut others: Vec<(&Key, &PortableRecord)> = other
            .records
            .iter()
            .filter(|(key, record)| {
                !self.records.contains_key(*key) && record.confirmed >= now.saturating_sub(LIFE)
            })
            .collect();
        others.sort_by_key(|(key, record)| (std::cmp::Reverse(record.confirmed), **key));
        others.truncate(MOST_RECORDS.saturating_sub(self.records.len()));
        for (key, record) in others {
            let outputs = record.outputs.iter().map(|top| {
                let chain = other.chain((*top)?);
                let chain = chain.into_iter().map(|layer| {
                    let PortableLayer {
                        descriptor,
                        diff_id,
                        created,
                        parent: _,
                    } = layer.clone();
                    (descriptor, diff_id, created)
                });
                self.add_chain(chain)
            });
            let outputs = outputs.collect();
            let record = PortableRecord {
                outputs,
                ..record.clone()
            };
            self.records.insert(*key, record);
        }
    }

    /// Returns whether it has all that another has.
    pub(crate) fn includes(&self, other: &PortableCache) -> bool {
        other
            .records
            .keys()
            .all(|key| self.records.contains_key(key))
    }

    fn place(&mut self, mut layer: PortableLayer, parent: Option<usize>) -> usize {
        layer.parent = parent;
        let key = (layer.descriptor.digest.clone(), layer.created, parent);
        if let Some(place) = self.places.get(&key) {
            return *place;
        }
        self.layers.push(layer);
        self.places.insert(key, self.layers.len() - 1);
        self.layers.len() - 1
    }
}

/// Checks a layer of a document; its parent stands before it.
fn layer_of(
    layer: &DocumentLayer,
    places: &[Option<usize>],
) -> Option<(PortableLayer, Option<usize>)> {
    let parent = match layer.parent {
        -1 => None,
        place => Some((*places.get(usize::try_from(place).ok()?)?)?),
    };
    let annotations = layer.annotations.as_ref()?;
    let is_layer = matches!(
        media_type::kind(&annotations.media_type),
        Kind::Layer {
            nondistributable: false,
            ..
        }
    );
    if !is_layer {
        return None;
    }
    let digest = sha256(&layer.blob)?;
    let media_type = annotations.media_type.clone();
    let layer = PortableLayer {
        descriptor: Descriptor::new(media_type, digest, annotations.size),
        diff_id: sha256(&annotations.diff_id)?,
        created: annotations.created.map_or(0, |time| time.unix_seconds()),
        parent,
    };
    Some((layer, parent))
}

fn record_of(record: DocumentRecord, places: &[Option<usize>]) -> Option<(Key, PortableRecord)> {
    let own = record.lapstrake.filter(|own| own.version == VERSION)?;
    let outputs = own.outputs.iter().map(|top| match top {
        None => Some(None),
        Some(top) => places.get(*top).copied().flatten().map(Some),
    });
    Some((
        key_of(&record.digest)?,
        PortableRecord {
            operation: key_of(&own.operation)?,
            content: own.content.as_deref().and_then(key_of),
            outputs: outputs.collect::<Option<Vec<_>>>()?,
            name: own.name,
            took: own.took,
            confirmed: own.confirmed,
        },
    ))
}

fn sha256(text: &str) -> Option<Digest> {
    let digest: Digest = text.parse().ok()?;
    (digest.algorithm() == oci::Algorithm::Sha256).then_some(digest)
}

/// Reads a key, written as a digest.
pub(crate) fn key_of(text: &str) -> Option<Key> {
    sha256(text)?.to_hash().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(number: u8) -> Blob {
        let digest = Digest::from_sha256([number; 32]);
        let descriptor = Descriptor::new(media_type::OCI_LAYER_GZIP, digest.clone(), 10);
        (descriptor, digest, i64::from(number))
    }

    fn record(outputs: Vec<Option<usize>>, confirmed: i64) -> PortableRecord {
        PortableRecord {
            operation: [9; 32],
            content: Some([8; 32]),
            outputs,
            name: "RUN x".to_owned(),
            took: 5,
            confirmed,
        }
    }

    fn cache(key: u8, layers: &[u8], confirmed: i64) -> PortableCache {
        let mut cache = PortableCache::default();
        let top = cache.add_chain(layers.iter().map(|number| layer(*number)));
        cache.add_record([key; 32], record(vec![top, None], confirmed));
        cache
    }

    fn diff_ids(cache: &PortableCache, key: u8) -> Vec<Digest> {
        let top = cache.records[&[key; 32]].outputs[0].expect("an output");
        let chain = cache.chain(top).into_iter();
        chain.map(|layer| layer.diff_id.clone()).collect()
    }

    #[test]
    fn a_document_says_all_of_it() {
        let cache = cache(1, &[1, 2, 3], 50);
        let (bytes, blobs) = cache.to_document();
        assert_eq!(blobs.len(), 3);
        let read = PortableCache::parse(&bytes).expect("it is read");
        assert_eq!(read.layers, cache.layers);
        assert_eq!(read.records, cache.records);
        assert_eq!(read.to_document().0, bytes);
    }

    #[test]
    fn a_merge_keeps_both_and_shares_layers() {
        let mut first = cache(1, &[1, 2, 3], 50);
        first.merge(&cache(2, &[1, 2, 4], 40), 60);
        assert_eq!(first.layers.len(), 4);
        assert_eq!(diff_ids(&first, 1).len(), 3);
        assert_eq!(diff_ids(&first, 2)[2], layer(4).1);
        assert!(first.includes(&cache(2, &[1], 0)));
    }

    #[test]
    fn a_merge_leaves_out_what_nobody_had_for_long() {
        let mut first = cache(1, &[1], LIFE * 2);
        first.merge(&cache(2, &[2], LIFE - 1), LIFE * 2);
        assert_eq!(first.records.len(), 1);
        assert_eq!(first.layers.len(), 1);
    }

    #[test]
    fn what_does_not_hold_together_is_left_out() {
        let check = |layers: &str, records: &str, expect: usize| {
            let text = format!("{{\"layers\":[{layers}],\"records\":[{records}]}}");
            let read = PortableCache::parse(text.as_bytes()).expect("it is read");
            assert_eq!(read.records.len(), expect, "{text}");
        };
        let digest = format!("sha256:{}", "a".repeat(64));
        let layer = |parent: i64| {
            format!(
                "{{\"blob\":\"{digest}\",\"parent\":{parent},\"annotations\":{{\"mediaType\":\
                 \"application/vnd.oci.image.layer.v1.tar+gzip\",\"diffID\":\"{digest}\",\"size\":1}}}}"
            )
        };
        let record = |top: i64| {
            format!(
                "{{\"digest\":\"{digest}\",\"layers\":[],\"lapstrake\":{{\"version\":1,\"operation\":\
                 \"{digest}\",\"outputs\":[{top}],\"name\":\"x\",\"took\":1,\"confirmed\":1}}}}"
            )
        };
        check(&layer(-1), &record(0), 1);
        // A layer that is not there, that is its own parent, that lies on a later one.
        check(&layer(-1), &record(1), 0);
        check(&layer(0), &record(0), 0);
        check(&format!("{},{}", layer(1), layer(-1)), &record(0), 0);
        check(&layer(-7), &record(0), 0);
        // BuildKit's own records say nothing here.
        check(&layer(-1), &format!("{{\"digest\":\"{digest}\"}}"), 0);
        check(&layer(-1).replace("sha256:", "sha256:../"), &record(0), 0);
        check(&layer(-1).replace("layer.v1.tar", "config"), &record(0), 0);
    }
}
