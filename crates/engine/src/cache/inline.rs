//! A cache inside the config of an image: which keys yield how many of its layers.

use oci::ImageConfig;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::{PortableCache, PortableRecord, key_of};

/// The field of the config.
const FIELD: &str = "org.lapstrake.cache.v1";

/// Records that are read from one image: an image has no more layers than that.
const MOST: usize = 1000;

/// One key, and how many of the image's layers it yields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InlineRecord {
    pub(crate) key: String,
    pub(crate) operation: String,
    pub(crate) layers: usize,
}

/// Writes records into the config of an image.
pub(crate) fn write(config: &mut ImageConfig, records: &[InlineRecord]) {
    if !records.is_empty() {
        let value = serde_json::to_value(records).expect("records can be written as JSON");
        config.other.insert(FIELD.to_owned(), value);
    }
}

/// Reads the records of an image whose layers are given, lowest first.
pub(crate) fn read(
    config: &ImageConfig,
    layers: &[(oci::Descriptor, oci::Digest)],
) -> PortableCache {
    let mut cache = PortableCache::default();
    let field = config.other.get(FIELD).cloned().unwrap_or(Value::Null);
    let records: Vec<InlineRecord> = serde_json::from_value(field).unwrap_or_default();
    // What the history says of the time of each layer is part of the config of the next image.
    let described = config.history.iter().filter(|entry| !entry.empty_layer);
    let times: Vec<i64> = described
        .map(|entry| entry.created.map_or(0, |time| time.unix_seconds()))
        .collect();
    for record in records.into_iter().take(MOST) {
        let (Some(key), Some(operation)) = (key_of(&record.key), key_of(&record.operation)) else {
            continue;
        };
        let Some(layers) = layers.get(..record.layers) else {
            continue;
        };
        let layers = layers
            .iter()
            .enumerate()
            .map(|(index, (descriptor, diff_id))| {
                let created = times.get(index).copied().unwrap_or(0);
                (descriptor.clone(), diff_id.clone(), created)
            });
        let top = cache.add_chain(layers);
        let record = PortableRecord {
            operation,
            content: None,
            outputs: vec![top],
            name: String::new(),
            took: 0,
            confirmed: 0,
        };
        cache.add_record(key, record);
    }
    cache
}
