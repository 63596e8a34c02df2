//! `system check` finds what is damaged in a store, and mends it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use testkit::Environment;

/// Returns an environment with an image built of two steps.
fn built() -> Environment {
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    environment.write(
        "ctx/Dockerfile",
        "FROM busybox\nRUN seq 5000 > /numbers\nCOPY file /\n",
    );
    environment.write("ctx/file", "from the context");
    build(&environment);
    environment
}

fn build(environment: &Environment) {
    environment.ok(["build", "-t", "app", "ctx"]);
    let outcome = environment.ok([
        "run",
        "--rm",
        "app",
        "sh",
        "-c",
        "wc -l < /numbers; cat /file",
    ]);
    assert_eq!(outcome.stdout, "5000\nfrom the context");
}

fn json(environment: &Environment, arguments: &[&str], code: i32) -> Value {
    let mut all = vec!["system", "check", "--format=json"];
    all.extend(arguments);
    let outcome = environment.run(all).fails_with(code);
    serde_json::from_str(&outcome.stdout).expect("a JSON document")
}

/// Returns the first file below a folder that a test accepts, in the order of paths.
fn find(folder: &Path, accept: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)
        .ok()?
        .map(|entry| entry.expect("an entry").path())
        .collect();
    entries.sort();
    entries
        .into_iter()
        .find_map(|path| match path.is_dir() && !path.is_symlink() {
            true => find(&path, accept),
            false => accept(&path).then_some(path),
        })
}

fn flip(path: &Path) {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).expect("it has a byte");
    file.write_all_at(&[!byte[0]], 0)
        .expect("it can be written");
}

/// Damages a fresh store; the check has to name it, mend it, and let the same build come out again.
fn check(damage: impl FnOnce(&Path), expect: &str) {
    testkit::require_fixtures!("busybox:latest");
    let environment = built();
    assert_eq!(json(&environment, &[], 0)["problems"], Value::Array(vec![]));
    damage(&environment.root());
    let found = json(&environment, &[], 1);
    assert_eq!(found["clean"], false);
    assert!(found["problems"].to_string().contains(expect), "{found}");
    let again = json(&environment, &[], 1);
    assert_eq!(
        found["problems"], again["problems"],
        "looking changes nothing"
    );
    let mended = json(&environment, &["--repair"], 0);
    assert!(mended["problems"].to_string().contains(expect), "{mended}");
    assert_eq!(json(&environment, &[], 0)["problems"], Value::Array(vec![]));
    build(&environment);
    assert_eq!(json(&environment, &[], 0)["problems"], Value::Array(vec![]));
}

fn large_blob(root: &Path) -> PathBuf {
    let large = |path: &Path| path.metadata().is_ok_and(|meta| meta.len() > 100_000);
    find(&root.join("blobs"), &large).expect("a layer's blob")
}

fn config_blob(root: &Path) -> PathBuf {
    let config = |path: &Path| {
        fs::read(path).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains("seq 5000"))
    };
    find(&root.join("blobs"), &config).expect("the image's config")
}

fn in_layers(root: &Path, name: &str) -> PathBuf {
    let named = |path: &Path| path.file_name().is_some_and(|found| found == name);
    find(&root.join("layers"), &named).expect("a file of a layer")
}

#[test]
fn a_truncated_blob_is_found() {
    check(
        |root| {
            let blob = fs::OpenOptions::new().write(true).open(large_blob(root));
            blob.expect("a blob").set_len(1000).expect("it is cut");
        },
        "has 1000 bytes",
    );
}

#[test]
fn a_blob_with_another_byte_is_found() {
    check(|root| flip(&large_blob(root)), "holds sha256:");
}

#[test]
fn a_config_that_is_gone_is_found() {
    check(
        |root| fs::remove_file(config_blob(root)).expect("it is removed"),
        "cannot be opened",
    );
}

#[test]
fn a_layer_that_is_gone_is_found() {
    check(
        |root| {
            let file = in_layers(root, "numbers");
            let layer = file.ancestors().nth(2).expect("a layer");
            fs::remove_dir_all(layer).expect("it is removed");
        },
        "is not there",
    );
}

#[test]
fn a_truncated_file_of_a_layer_is_found() {
    check(
        |root| fs::write(in_layers(root, "numbers"), "1\n").expect("it is written"),
        "bytes of files",
    );
}

#[test]
fn a_file_of_a_layer_with_another_byte_is_found() {
    check(|root| flip(&in_layers(root, "numbers")), "its tar is");
}

#[test]
fn a_truncated_file_of_a_base_image_is_found() {
    check(
        |root| fs::write(in_layers(root, "busybox"), "1\n").expect("it is written"),
        "bytes of files",
    );
}

#[test]
fn records_that_are_garbage_are_put_aside() {
    testkit::require_fixtures!("busybox:latest");
    let environment = built();
    fs::write(
        environment.root().join("records.db"),
        "garbage ".repeat(2000),
    )
    .expect("written");
    for name in ["records.db-wal", "records.db-shm"] {
        let _ = fs::remove_file(environment.root().join(name));
    }
    environment.run(["images"]).fails_with(3);
    environment.run(["system", "check"]).fails_with(3);
    let outcome = environment.ok(["system", "check", "--repair"]);
    assert!(outcome.stdout.contains("put aside"), "{}", outcome.told());
    build(&environment);
    assert_eq!(
        json(&environment, &[], 0)["leftovers"],
        Value::Array(vec![])
    );
}

#[test]
fn what_a_killed_build_has_left_is_no_damage() {
    testkit::require_fixtures!("busybox:latest");
    let environment = built();
    let root = environment.root();
    fs::create_dir_all(root.join("ingest/layer-left/fs")).expect("a folder");
    fs::create_dir_all(root.join("layers/999/fs")).expect("a folder");
    let blob = root.join("blobs/sha256").join("ab".repeat(32));
    fs::write(&blob, "half").expect("a file");
    let found = json(&environment, &[], 0);
    assert_eq!(
        found["leftovers"].as_array().expect("a list").len(),
        3,
        "{found}"
    );
    assert!(blob.exists());
    json(&environment, &["--repair"], 0);
    assert!(!blob.exists());
    assert_eq!(
        json(&environment, &[], 0)["leftovers"],
        Value::Array(vec![])
    );
    build(&environment);
}

#[test]
fn a_layer_that_a_container_has_is_told_and_left() {
    testkit::require_fixtures!("busybox:latest");
    let environment = built();
    environment.ok(["create", "--name", "kept", "app"]);
    flip(&in_layers(&environment.root(), "numbers"));
    json(&environment, &["--repair"], 1);
    environment.ok(["rm", "kept"]);
    json(&environment, &["--repair"], 0);
    build(&environment);
}
