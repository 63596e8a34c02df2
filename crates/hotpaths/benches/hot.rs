//! Times the hot paths: `cargo bench -p hotpaths [NAME]`.
//!
//! The machine's noise is in all of it; what is compared over time are instructions (`cargo xtask bench instructions`).

use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::process::Command;

use divan::{Bencher, black_box};
use rootfs::apply::{ApplyOptions, apply_layer};
use rootfs::checksum::Selection;
use rootfs::compress::{CompressOptions, Compression};
use rootfs::context::Capture;
use rootfs::copy::{Copy, copy};
use rootfs::diff::{DiffOptions, diff_layer, write_layer};
use rootfs::memo::{MemoTable, NoMemo};
use rootfs::{Form, LayerDir, Overlay, OverlayXattrs, Tree};

fn main() {
    divan::main();
}

#[divan::bench(args = hotpaths::workloads())]
fn pure(bencher: Bencher<'_, '_>, workload: &hotpaths::Workload) {
    // The first makes the input.
    workload.round();
    bencher.bench_local(|| workload.round());
}

/// Makes 2,000 files of 4 KiB of text in 100 directories.
fn tree(root: &Path) {
    let line = "what a file of a program's source looks like, more or less;\n";
    for number in 0..2000 {
        let dir = root.join(format!("d{:02}", number % 100));
        fs::create_dir_all(&dir).expect("a directory");
        let text = format!("{number}\n{}", line.repeat(68));
        fs::write(dir.join(format!("f{number}")), text).expect("a file");
    }
}

const FORM: Form = Form::Overlay(OverlayXattrs::Trusted);

#[divan::bench]
fn walk_a_context(bencher: Bencher<'_, '_>) {
    let dir = tempfile::tempdir().expect("a directory");
    tree(dir.path());
    bencher.bench(|| {
        Capture::new(dir.path(), None, None)
            .expect("a capture")
            .len()
    });
}

#[divan::bench]
fn hash_a_context_anew(bencher: Bencher<'_, '_>) {
    let dir = tempfile::tempdir().expect("a directory");
    tree(dir.path());
    bencher.bench(|| {
        let capture = Capture::new(dir.path(), None, None).expect("a capture");
        capture
            .checksum(&Selection::path("/"), &NoMemo)
            .expect("a checksum")
    });
}

#[divan::bench]
fn hash_a_context_that_is_known(bencher: Bencher<'_, '_>) {
    let dir = tempfile::tempdir().expect("a directory");
    tree(dir.path());
    // What was written within the tick of the clock is not remembered.
    let clock = fs::metadata(dir.path())
        .and_then(|it| it.modified())
        .expect("a time");
    while clock.elapsed().is_ok_and(|passed| passed.as_millis() < 50) {
        std::thread::yield_now();
    }
    let sum = |memo: &MemoTable| {
        let capture = Capture::new(dir.path(), None, None).expect("a capture");
        capture
            .checksum(&Selection::path("/"), memo)
            .expect("a checksum")
    };
    let memo = MemoTable::default();
    sum(&memo);
    let memo = MemoTable::from_bytes(memo.to_bytes());
    bencher.bench(|| sum(&memo));
}

#[divan::bench]
fn copy_a_tree(bencher: Bencher<'_, '_>) {
    let dir = tempfile::tempdir().expect("a directory");
    tree(dir.path());
    bencher
        .with_inputs(|| tempfile::tempdir().expect("a directory"))
        .bench_local_refs(|to| {
            let mut wanted = Copy::new("/", "/");
            wanted.dir_contents = true;
            let from = Tree::open(dir.path()).expect("a tree");
            copy(&from, &Tree::open(to.path()).expect("a tree"), &wanted).expect("a copy")
        });
}

#[divan::bench(args = ["uncompressed", "gzip", "zstd"])]
fn write_a_layer(bencher: Bencher<'_, '_>, how: &str) {
    let compression = match how {
        "gzip" => Compression::GZIP,
        "zstd" => Compression::ZSTD,
        _ => Compression::Uncompressed,
    };
    let dir = tempfile::tempdir().expect("a directory");
    tree(dir.path());
    let layer = LayerDir::open(dir.path()).expect("a layer");
    let (options, compress) = (DiffOptions::new(FORM), CompressOptions::new(compression));
    bencher.bench(|| {
        write_layer(&layer, None, &options, &compress, std::io::sink()).expect("a layer")
    });
}

#[divan::bench]
fn unpack_a_gzip_layer(bencher: Bencher<'_, '_>) {
    let dir = tempfile::tempdir().expect("a directory");
    tree(dir.path());
    let layer = LayerDir::open(dir.path()).expect("a layer");
    let mut blob = Vec::new();
    let compress = CompressOptions::new(Compression::GZIP);
    write_layer(&layer, None, &DiffOptions::new(FORM), &compress, &mut blob).expect("a layer");
    bencher
        .with_inputs(|| tempfile::tempdir().expect("a directory"))
        .bench_local_refs(|to| {
            let to = LayerDir::open(to.path()).expect("a layer");
            apply_layer(Cursor::new(&blob), &to, &ApplyOptions::new(FORM)).expect("unpacked")
        });
}

#[divan::bench]
fn find_what_a_layer_changes(bencher: Bencher<'_, '_>) {
    let (below, above) = (tempfile::tempdir(), tempfile::tempdir());
    let (below, above) = (below.expect("a directory"), above.expect("a directory"));
    tree(below.path());
    tree(above.path());
    let layer = LayerDir::open(above.path()).expect("a layer");
    let lower = Tree::open_layers(&[below.path()], OverlayXattrs::Trusted).expect("a tree");
    bencher.bench_local(|| {
        diff_layer(&layer, Some(&lower), &DiffOptions::new(FORM)).expect("a difference")
    });
}

/// As root only.
#[divan::bench(args = [1, 10, 100])]
fn mount_an_overlay(bencher: Bencher<'_, '_>, layers: usize) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let names = (0..layers).map(|number| dir.path().join(number.to_string()));
    let lowers: Vec<_> = names.collect();
    let (upper, work) = (dir.path().join("upper"), dir.path().join("work"));
    for path in lowers.iter().chain([&upper, &work]) {
        fs::create_dir(path).expect("a directory");
    }
    bencher.bench_local(|| {
        let overlay = Overlay::open(&lowers, OverlayXattrs::Trusted).expect("layers");
        let mut overlay = overlay.with_upper(&upper, &work).expect("an upper layer");
        // Unmounting would sync the whole file system otherwise.
        overlay.volatile = true;
        overlay.mount_detached().expect("a mount")
    });
}

/// What starting any process costs here: a floor for steps.
#[divan::bench]
fn start_a_process(bencher: Bencher<'_, '_>) {
    bencher.bench(|| black_box(Command::new("true").status().expect("a process")));
}
