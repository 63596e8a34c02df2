//! The store through its public face.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use oci::{Digest, Reference};
use store::{
    CollectPolicy, Ids, Image, Item, Key, Layer, LayerInfo, OpenOptions, Store, StoreError,
};

fn open(root: &Path) -> Store {
    Store::open(root, OpenOptions::new(Some(Ids::Rootful))).expect("the store opens")
}

fn info(bytes: u64) -> LayerInfo {
    LayerInfo {
        tar: None,
        content_id: None,
        bytes,
        content: bytes,
        origin: "test".to_owned(),
        created: 0,
    }
}

fn layer(store: &Store, name: &str, bytes: u64) -> Layer {
    let layer = store.new_layer().expect("a layer begins");
    std::fs::write(layer.path().join(name), name).expect("a file is written");
    layer.commit(info(bytes)).expect("a layer is committed")
}

const KEY: Key = [7; 32];

/// So much that what the store needs itself is nothing beside it.
const GIB: u64 = 1 << 30;

#[test]
fn a_dropped_layer_leaves_nothing() {
    let root = tempfile::tempdir().expect("a directory");
    let store = open(root.path());
    let begun = store.new_layer().expect("a layer begins");
    let path = begun.path();
    assert!(path.exists());
    drop(begun);
    assert!(!path.exists());
}

#[test]
fn a_result_is_found_again_by_another_opening() {
    let root = tempfile::tempdir().expect("a directory");
    let first = open(root.path());
    let layer = layer(&first, "a", 10);
    first
        .record(
            &[1; 32],
            &[KEY],
            &[layer.id()],
            &serde_json::json!({"name": "x"}),
        )
        .expect("a result is recorded");
    let second = open(root.path());
    let record = second
        .find(&KEY)
        .expect("it is readable")
        .expect("it is there");
    assert_eq!(record.layers, [layer.id()]);
    assert_eq!(record.info["name"], "x");
    let found = second
        .layers(&record.layers)
        .expect("it is readable")
        .expect("leased");
    assert_eq!(
        std::fs::read(found[0].path().join("a")).expect("a file"),
        b"a"
    );
    assert!(second.knows_operation(&[1; 32]).expect("it is readable"));
}

#[test]
fn collection_spares_the_leased_and_the_named() {
    let root = tempfile::tempdir().expect("a directory");
    let clock = Arc::new(AtomicI64::new(100));
    let options = OpenOptions {
        ids: Some(Ids::Rootful),
        clock: {
            let clock = Arc::clone(&clock);
            Arc::new(move || clock.load(Ordering::SeqCst))
        },
        ..OpenOptions::new(None)
    };
    let store = Store::open(root.path(), options).expect("the store opens");
    let leased = layer(&store, "leased", 1000);
    let named = layer(&store, "named", 1000).id();
    let surplus = layer(&store, "surplus", 1000).id();
    store
        .record(&[1; 32], &[KEY], &[surplus], &serde_json::json!({}))
        .expect("a result is recorded");
    let config = store.blobs().put(b"{}").expect("a blob is stored");
    let image = Image {
        id: config.clone(),
        manifest: None,
        layers: Some(vec![named]),
        platform: "linux/amd64".to_owned(),
        size: 1000,
        created: 0,
        annotations: Default::default(),
    };
    let name = Reference::parse_normalized("app:latest").expect("a name");
    store
        .put_image(&image, &[name], None)
        .expect("an image is recorded");

    clock.store(200, Ordering::SeqCst);
    let policy = CollectPolicy {
        max_used: Some(10),
        ..CollectPolicy::default()
    };
    let done = store.collect(&policy).expect("a collection");
    assert_eq!((done.items.len(), done.bytes), (1, 1000));
    let (at, rule) = store.tombstone(&KEY).expect("readable").expect("a note");
    assert_eq!((at, rule.as_str()), (200, "max-used-space=10"));
    assert!(done.held.is_some(), "what is held is more than the limit");
    assert!(store.find(&KEY).expect("readable").is_none());
    assert!(store.layer(surplus).expect("readable").is_none());
    assert!(leased.path().exists());
    assert!(store.layer(named).expect("readable").is_some());
    assert!(store.blobs().size(&config).is_some());
}

#[test]
fn a_blob_that_is_not_what_was_promised_is_refused() {
    let root = tempfile::tempdir().expect("a directory");
    let store = open(root.path());
    let mut writer = store.blobs().writer().expect("a blob begins");
    writer.append(b"other").expect("it is written");
    let wanted = Digest::sha256_of(b"bytes");
    let refused = writer.commit(Some((&wanted, 5)));
    assert!(matches!(refused, Err(StoreError::Mismatch { .. })));
    assert_eq!(store.blobs().size(&wanted), None);
    let ingest = std::fs::read_dir(root.path().join("ingest")).expect("a folder");
    assert_eq!(ingest.count(), 0, "nothing half-written stays");
}

#[test]
fn stores_of_other_ids_and_newer_formats_are_refused() {
    let root = tempfile::tempdir().expect("a directory");
    drop(open(root.path()));
    let map = "0 1000 1,1 100000 65536".to_owned();
    let other = Store::open(root.path(), OpenOptions::new(Some(Ids::Rootless { map })));
    assert!(matches!(other, Err(StoreError::OtherIds { .. })));
    std::fs::write(root.path().join("format"), "999 rootful\n").expect("it is written");
    let newer = Store::open(root.path(), OpenOptions::new(None));
    assert!(matches!(newer, Err(StoreError::TooNew { found: 999, .. })));
}

#[test]
fn eight_can_open_a_new_store_at_once() {
    let root = tempfile::tempdir().expect("a directory");
    std::thread::scope(|scope| {
        for number in 0..8u8 {
            let root = root.path();
            scope.spawn(move || {
                let store = open(root);
                let layer = layer(&store, "x", 1);
                store
                    .record(
                        &[number; 32],
                        &[[number; 32]],
                        &[layer.id()],
                        &serde_json::json!({}),
                    )
                    .expect("a result is recorded");
            });
        }
    });
    let store = open(root.path());
    for number in 0..8u8 {
        assert!(store.find(&[number; 32]).expect("readable").is_some());
    }
}

#[test]
fn an_image_layer_is_unpacked_once() {
    let root = tempfile::tempdir().expect("a directory");
    let store = open(root.path());
    let first = store.new_layer().expect("a layer begins");
    let second = store.new_layer().expect("a layer begins");
    let first = first.commit_unpacked(info(1), "diff").expect("committed");
    let again = second.commit_unpacked(info(1), "diff").expect("committed");
    assert_eq!(first.id(), again.id());
    let found = store.layer_of_image("diff").expect("readable");
    assert_eq!(found.map(|layer| layer.id()), Some(first.id()));
}

#[test]
fn named_locks_exclude_and_leave_no_file() {
    let root = tempfile::tempdir().expect("a directory");
    let store = open(root.path());
    let held = store.lock("step").expect("a lock");
    assert!(store.try_lock("step").expect("no error").is_none());
    drop(held);
    drop(
        store
            .try_lock("step")
            .expect("no error")
            .expect("it is free"),
    );
    let left = std::fs::read_dir(root.path().join("locks")).expect("a folder");
    assert_eq!(left.count(), 0);
}

/// Opens a store as after a start of the machine.
fn open_after_boot(root: &Path, boot: &str) -> Store {
    let options = OpenOptions {
        boot: boot.to_owned(),
        ..OpenOptions::new(Some(Ids::Rootful))
    };
    Store::open(root, options).expect("the store opens")
}

#[test]
fn what_reached_the_disk_is_used_again_after_the_machine_went_down() {
    let root = tempfile::tempdir().expect("a directory");
    let first = open_after_boot(root.path(), "one");
    let whole = layer(&first, "whole", 5).id();
    let lost = layer(&first, "lost", 4).id();
    let image = first.new_layer().expect("a layer begins");
    let image = image
        .commit_unpacked(info(0), "diff")
        .expect("committed")
        .id();
    let put = |bytes: &[u8]| {
        let mut writer = first.blobs().writer().expect("a blob begins");
        writer.append(bytes).expect("it is written");
        writer.commit_volatile(None).expect("it is committed").0
    };
    let (kept, cut) = (put(b"kept"), put(b"cut"));
    drop(first);
    let path = root.path().join(format!("layers/{}/fs/lost", lost.0));
    std::fs::write(path, "").expect("it is emptied");
    let blob = root.path().join("blobs/sha256").join(cut.hex());
    std::fs::write(blob, "").expect("it is emptied");
    for boot in ["two", "three"] {
        let store = open_after_boot(root.path(), boot);
        assert!(store.layer(whole).expect("readable").is_some());
        assert!(store.layer(lost).expect("readable").is_none());
        let found = store.layer_of_image("diff").expect("readable");
        assert_eq!(found.map(|layer| layer.id()), Some(image));
        assert_eq!(store.blobs().read(&kept).expect("a blob"), b"kept");
        assert_eq!(store.blobs().size(&cut), None);
    }
}

#[test]
fn a_clock_that_jumps_loses_nothing() {
    let root = tempfile::tempdir().expect("a directory");
    let clock = Arc::new(AtomicI64::new(1_000_000));
    let options = OpenOptions {
        clock: {
            let clock = Arc::clone(&clock);
            Arc::new(move || clock.load(Ordering::SeqCst))
        },
        ..OpenOptions::new(Some(Ids::Rootful))
    };
    let store = Store::open(root.path(), options).expect("the store opens");
    let held = layer(&store, "held", 10);
    for now in [1_000_100, 0, -5_000_000, i64::MAX / 2, 1_000_200] {
        clock.store(now, Ordering::SeqCst);
        let made = layer(&store, "made", GIB);
        let json = serde_json::json!({});
        store
            .record(&[1; 32], &[KEY], &[made.id()], &json)
            .expect("recorded");
        store.mark_used(&KEY, &[KEY]).expect("marked");
        drop(made);
        let policy = CollectPolicy {
            max_used: Some(2 * GIB),
            ..CollectPolicy::default()
        };
        let done = store.collect(&policy).expect("a collection");
        assert!(done.used <= 2 * GIB, "at {now}: {done:?}");
        assert!(held.path().exists(), "at {now}");
        assert!(store.check(false).expect("a check").is_clean(), "at {now}");
    }
}

/// A store whose clock the test sets.
fn with_clock(root: &Path, start: i64) -> (Store, Arc<AtomicI64>) {
    let clock = Arc::new(AtomicI64::new(start));
    let read = Arc::clone(&clock);
    let options = OpenOptions {
        clock: Arc::new(move || read.load(Ordering::SeqCst)),
        ..OpenOptions::new(Some(Ids::Rootful))
    };
    let store = Store::open(root, options).expect("the store opens");
    (store, clock)
}

#[test]
fn what_was_used_in_a_future_that_was_none_ages_again() {
    let root = tempfile::tempdir().expect("a directory");
    let (store, clock) = with_clock(root.path(), 1000);
    let old = layer(&store, "old", GIB).id();
    // The clock is a hundred years ahead for one build.
    clock.store(1000 + 3_000_000_000, Ordering::SeqCst);
    let future = layer(&store, "future", GIB).id();
    clock.store(2000, Ordering::SeqCst);
    let recent = layer(&store, "recent", GIB).id();
    let keep = |max_used: u64| CollectPolicy {
        max_used: Some(max_used),
        ..CollectPolicy::default()
    };
    let removed = |max_used: u64| -> Vec<String> {
        let done = store.collect(&keep(max_used)).expect("a collection");
        done.items
            .iter()
            .map(|entry| entry.item.to_string())
            .collect()
    };
    assert_eq!(removed(2 * GIB + GIB / 2), [format!("layer-{}", old.0)]);
    // From here on it is as old as the collection that noticed.
    clock.store(3000, Ordering::SeqCst);
    let newest = layer(&store, "newest", GIB).id();
    let order = removed(GIB + GIB / 2);
    assert!(order.contains(&format!("layer-{}", future.0)), "{order:?}");
    assert!(order.contains(&format!("layer-{}", recent.0)), "{order:?}");
    assert!(store.layer(newest).expect("readable").is_some());
}

#[test]
fn a_collector_with_a_wrong_clock_takes_no_layer_from_who_makes_it() {
    let root = tempfile::tempdir().expect("a directory");
    let (store, _) = with_clock(root.path(), 1000);
    let (ahead, _) = with_clock(root.path(), 1000 + 3_000_000_000);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let collections = AtomicUsize::new(0);
    /// Ends the collector however the scope is left.
    struct Stop<'a>(&'a std::sync::atomic::AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    std::thread::scope(|scope| {
        let end = Stop(&stop);
        scope.spawn(|| {
            let policy = CollectPolicy {
                max_used: Some(u64::MAX),
                ..CollectPolicy::default()
            };
            while !stop.load(Ordering::SeqCst) {
                ahead.collect(&policy).expect("a collection");
                collections.fetch_add(1, Ordering::SeqCst);
            }
        });
        while collections.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        let made: Vec<_> = (0..200)
            .map(|number| layer(&store, &number.to_string(), 10))
            .collect();
        drop(end);
        for (number, layer) in made.iter().enumerate() {
            assert!(layer.path().join(number.to_string()).exists());
        }
    });
    let report = store.check(false).expect("a check");
    assert!(report.is_clean(), "{report:?}");
    let usage = store.usage().expect("a list");
    let layers = usage
        .iter()
        .filter(|entry| matches!(entry.item, Item::Layer(_)));
    assert_eq!(layers.map(|entry| entry.bytes).sum::<u64>(), 2000);
}

#[test]
fn a_store_that_a_power_cut_left_empty_is_made_again() {
    for file in ["format", "records.db"] {
        let root = tempfile::tempdir().expect("a directory");
        let first = open(root.path());
        let kept = layer(&first, "a", 10).id();
        drop(first);
        // What the file system had not written: the name is there, its bytes are not.
        std::fs::write(root.path().join(file), "").expect("a file");
        let store = open(root.path());
        let new = layer(&store, "b", 10);
        assert_ne!(
            new.id(),
            kept,
            "{file}: what lies there is not written over"
        );
        assert!(new.path().join("b").exists(), "{file}");
        let format = std::fs::read_to_string(root.path().join("format")).expect("a format");
        assert!(format.ends_with(" rootful\n"), "{file}: {format:?}");
    }
}

#[test]
fn the_log_of_changes_counts_and_is_cut_off_by_a_collection() {
    let root = tempfile::tempdir().expect("a directory");
    let store = open(root.path());
    let size = |name: &str| std::fs::metadata(root.path().join(name)).map_or(0, |meta| meta.len());
    let value = vec![1; 100_000];
    store
        .remember("test", [(b"key".as_slice(), value.as_slice())])
        .expect("a value is remembered");
    let log = size("records.db-wal");
    assert!(log > 100_000, "{log}");
    let used = store.used_bytes().expect("a sum");
    assert_eq!(used, size("records.db") + log);
    store
        .collect(&CollectPolicy::default())
        .expect("a collection");
    assert_eq!(size("records.db-wal"), 0);
    let used = store.used_bytes().expect("a sum");
    assert_eq!(used, size("records.db"));
}
