//! What takes space in the store, as `du` tells it, and what `prune` gives back.

use std::collections::BTreeSet;

use bollard_buildkit_proto::moby::buildkit::v1 as pbc;
use engine::Engine;
use store::{CollectPolicy, Item, ItemKind, Usage};

use crate::error::Failure;
use crate::filter::Filters;
use crate::gateway::seconds;

/// Returns what takes space in the store and can be given back; what is kept of builds is not among it.
fn usage(engine: &Engine) -> Result<Vec<Usage>, Failure> {
    let mut all = engine
        .store()
        .usage()
        .map_err(|error| Failure::unknown(engine::chain(&error)))?;
    all.retain(|usage| !matches!(usage.kind, ItemKind::Build | ItemKind::Internal));
    Ok(all)
}

fn record(usage: &Usage) -> pbc::UsageRecord {
    pbc::UsageRecord {
        id: usage.item.to_string(),
        mutable: usage.kind == ItemKind::CacheMount,
        in_use: usage.holder.is_some(),
        size: usage.bytes as i64,
        created_at: Some(seconds(usage.created)),
        last_used_at: Some(seconds(usage.used)),
        usage_count: 1,
        description: usage.origin.clone(),
        record_type: usage.kind.to_string(),
        ..pbc::UsageRecord::default()
    }
}

/// Returns what takes space, as far as it is asked for. Blocks.
pub(crate) fn records(
    engine: &Engine,
    asked: &pbc::DiskUsageRequest,
) -> Result<Vec<pbc::UsageRecord>, Failure> {
    let filters = Filters::parse(&asked.filter)?;
    let limit = (asked.age_limit > 0).then(|| before(engine, asked.age_limit));
    let all = usage(engine)?;
    let wanted = all
        .iter()
        .filter(|usage| matches(&filters, usage) && limit.is_none_or(|limit| usage.used <= limit));
    Ok(wanted.map(record).collect())
}

/// Returns the second that was so many nanoseconds ago.
fn before(engine: &Engine, nanoseconds: i64) -> i64 {
    engine.store().now() - nanoseconds / 1_000_000_000
}

fn matches(filters: &Filters, usage: &Usage) -> bool {
    filters.matches(|path| {
        let [field] = path else {
            return None;
        };
        let record = record(usage);
        // What is either so or not has no value.
        let is = |yes: bool| yes.then(String::new);
        let text = |text: String| Some(text).filter(|text| !text.is_empty());
        match field.as_str() {
            "id" => text(record.id),
            "description" => text(record.description),
            "type" => text(record.record_type),
            "inuse" => is(record.in_use),
            "mutable" => is(record.mutable),
            "immutable" => is(!record.mutable),
            "shared" => is(record.shared),
            "private" => is(!record.shared),
            _ => None,
        }
    })
}

/// Removes what is asked for, and returns what that was. Blocks.
pub(crate) fn prune(
    engine: &Engine,
    asked: &pbc::PruneRequest,
) -> Result<Vec<pbc::UsageRecord>, Failure> {
    let filters = Filters::parse(&asked.filter)?;
    let all = usage(engine)?;
    let matching = || {
        let matching = all.iter().filter(|usage| matches(&filters, usage));
        matching.map(|usage| usage.item.clone()).collect()
    };
    let bytes = |number: i64| u64::try_from(number).ok().filter(|number| *number > 0);
    let limited = asked.max_used_space > 0 || asked.min_free_space > 0 || asked.keep_duration > 0;
    let policy = CollectPolicy {
        max_used: match limited {
            true => bytes(asked.max_used_space),
            false => Some(0),
        },
        reserved: bytes(asked.reserved_space).unwrap_or(0),
        min_free: bytes(asked.min_free_space),
        unused_since: (asked.keep_duration > 0).then(|| before(engine, asked.keep_duration)),
        items: (!filters.is_empty()).then(matching),
        dangling_images: asked.all && filters.is_empty(),
        ..CollectPolicy::default()
    };
    engine
        .store()
        .collect(&policy)
        .map_err(|error| Failure::unknown(engine::chain(&error)))?;
    let left: BTreeSet<Item> = usage(engine)?.into_iter().map(|usage| usage.item).collect();
    let gone = all.iter().filter(|usage| !left.contains(&usage.item));
    Ok(gone.map(record).collect())
}
