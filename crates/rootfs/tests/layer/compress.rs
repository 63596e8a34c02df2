//! Compression: the same bytes on any number of threads, and from any store of blocks.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use rootfs::compress::{
    BlockKey, BlockMemo, BlockPlace, CompressOptions, CompressedBlock, Compression, recompress,
};
use rootfs::diff::{DiffOptions, Written, write_layer};
use rootfs::{Error, Form, LayerDir};

use crate::support::*;

fn options(compression: Compression, threads: usize) -> CompressOptions<'static> {
    CompressOptions {
        compression,
        threads: NonZeroUsize::new(threads).unwrap(),
        memo: None,
    }
}

fn write(layer: &Path, compress: &CompressOptions<'_>) -> (Vec<u8>, Written) {
    let mut blob = Vec::new();
    let mut options = DiffOptions::new(Form::Plain);
    options.clamp = Some(0);
    let written = write_layer(
        &LayerDir::open(layer).unwrap(),
        None,
        &options,
        compress,
        &mut blob,
    )
    .unwrap();
    assert_eq!(written.blob, oci::Digest::sha256_of(&blob));
    assert_eq!(written.blob_size, blob.len() as u64);
    (blob, written)
}

/// Makes files like those of a system: words, and sizes from nothing to some megabytes.
fn fill(root: &Path, count: u64) {
    let mut random = Random(0xc0ffee);
    let words: Vec<String> = (0..500)
        .map(|_| format!("{:x} ", random.next() >> (random.below(40) + 8)))
        .collect();
    for number in 0..count {
        let dir = root.join(format!("d{}", number % 7));
        fs::create_dir_all(&dir).unwrap();
        let length = if number % 40 == 3 {
            1_500_000 + random.below(1_500_000)
        } else {
            random.below(40_000)
        };
        let mut text = String::new();
        while text.len() < length as usize {
            text.push_str(&words[random.below(500) as usize]);
        }
        let path = dir.join(format!("file {number}"));
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

fn uncompressed(blob: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    match rootfs::compress::format(blob) {
        rootfs::compress::Format::Uncompressed => tar.extend_from_slice(blob),
        rootfs::compress::Format::Gzip => {
            flate2::read::MultiGzDecoder::new(blob)
                .read_to_end(&mut tar)
                .map(drop)
                .unwrap();
        }
        rootfs::compress::Format::Zstd => tar = zstd::decode_all(blob).unwrap(),
    }
    tar
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 200);
    let (tar, plain) = write(dir.path(), &options(Compression::Uncompressed, 1));
    for compression in [
        Compression::GZIP,
        Compression::Gzip { level: 0 },
        Compression::Gzip { level: 1 },
        Compression::Gzip { level: 9 },
        Compression::ZSTD,
        Compression::Zstd { level: 1 },
    ] {
        let (one, written) = write(dir.path(), &options(compression, 1));
        assert_eq!(written.layer, plain.layer);
        assert!(uncompressed(&one) == tar, "{compression:?}");
        for threads in [2, 3, 8] {
            let (more, _) = write(dir.path(), &options(compression, threads));
            assert!(more == one, "{compression:?} with {threads} threads");
        }
    }
}

/// The digest of what the pinned compressors make of a known tar. A change of it is a change of the bytes of every layer:
/// then the name of the compressor in the keys of blocks has to change too.
#[test]
fn the_bytes_are_those_of_the_pinned_compressors() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 120);
    let check = |compression, expect: &str| {
        let (_, written) = write(dir.path(), &options(compression, 2));
        assert_eq!(
            written.blob.to_string(),
            format!("sha256:{expect}"),
            "{compression:?}"
        );
    };
    check(
        Compression::Uncompressed,
        "1293b18fe674cec5a6151b071fc31de67cc58110a7ac449832b90373dfc2402c",
    );
    check(
        Compression::GZIP,
        "0b976524428a55521461e8853916bb1626d2b5fb82fcf97ccfaf9b2204bb6024",
    );
    check(
        Compression::Gzip { level: 1 },
        "777766c9c06388e9fb8aa8662c7751ee31b54ba427cc388814822734f1644637",
    );
    check(
        Compression::ZSTD,
        "81022feb480c754899ac700e483afa032944cd5be3189b7fbfc6af6c98fba654",
    );
}

#[test]
fn gzip_itself_finds_no_fault() {
    if Command::new("gzip").arg("--version").output().is_err() {
        println!("skipped: needs gzip");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for count in [0, 1, 150] {
        fill(dir.path(), count);
        let (blob, _) = write(dir.path(), &options(Compression::GZIP, 2));
        let mut gzip = Command::new("gzip")
            .arg("-t")
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        gzip.stdin.take().unwrap().write_all(&blob).unwrap();
        let output = gzip.wait_with_output().unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// Remembers blocks where they lie in blobs.
#[derive(Default)]
struct Memo {
    blobs: Vec<Vec<u8>>,
    places: HashMap<BlockKey, (usize, BlockPlace)>,
    hits: AtomicUsize,
    misses: AtomicUsize,
}

impl Memo {
    /// Returns hits and misses since the last time.
    fn counts(&self) -> (usize, usize) {
        (
            self.hits.swap(0, Ordering::SeqCst),
            self.misses.swap(0, Ordering::SeqCst),
        )
    }

    /// Writes a layer with what is remembered, and remembers what was written.
    fn write(&mut self, layer: &Path, compression: Compression) -> Vec<u8> {
        let remembering = CompressOptions {
            memo: Some(&*self),
            ..options(compression, 2)
        };
        let (blob, written) = write(layer, &remembering);
        for place in written.blocks {
            self.places.insert(place.key, (self.blobs.len(), place));
        }
        self.blobs.push(blob.clone());
        blob
    }
}

impl BlockMemo for Memo {
    fn lookup(&self, key: &BlockKey) -> Option<CompressedBlock> {
        let found = self.places.get(key).map(|(blob, place)| {
            let start = place.offset as usize;
            CompressedBlock {
                bytes: self.blobs[*blob][start..start + place.length as usize].to_vec(),
                checksum: place.checksum,
            }
        });
        let count = if found.is_some() {
            &self.hits
        } else {
            &self.misses
        };
        count.fetch_add(1, Ordering::SeqCst);
        found
    }
}

#[test]
fn after_a_change_only_the_blocks_around_it_are_compressed() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 400);
    let mut memo = Memo::default();
    let first = memo.write(dir.path(), Compression::GZIP);
    let (_, blocks) = memo.counts();
    assert!(blocks > 15, "{blocks}");
    assert!(first == write(dir.path(), &options(Compression::GZIP, 2)).0);
    assert!(first == memo.write(dir.path(), Compression::GZIP));
    assert_eq!(memo.counts(), (blocks, 0));

    type Change<'a> = (&'a str, &'a dyn Fn(&Path));
    let changes: [Change<'_>; 4] = [
        ("a file changed", &|root| {
            fs::write(root.join("d1/file 8"), "other").unwrap()
        }),
        ("a file that is new", &|root| {
            fs::write(root.join("d2/a new file"), vec![b'n'; 30_000]).unwrap()
        }),
        ("a large file changed in the middle", &|root| {
            let path = root.join("d1/file 43");
            let mut content = fs::read(&path).unwrap();
            assert!(content.len() > 1_500_000);
            content[600_000] ^= 1;
            fs::write(&path, content).unwrap();
        }),
        ("a file that is gone", &|root| {
            fs::remove_file(root.join("d4/file 11")).unwrap()
        }),
    ];
    for (what, change) in changes {
        change(dir.path());
        for sub in fs::read_dir(dir.path()).unwrap() {
            let path = sub.unwrap().path();
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .unwrap();
        }
        let again = memo.write(dir.path(), Compression::GZIP);
        let (hits, misses) = memo.counts();
        assert!(
            (1..=4).contains(&misses),
            "{what}: {misses} of {}",
            hits + misses
        );
        assert!(
            again == write(dir.path(), &options(Compression::GZIP, 2)).0,
            "{what}"
        );
    }
}

#[test]
fn a_damaged_block_is_compressed_again() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 60);
    let mut memo = Memo::default();
    let first = memo.write(dir.path(), Compression::GZIP);
    for byte in memo.blobs[0].iter_mut().step_by(1000) {
        *byte ^= 1;
    }
    assert!(first == memo.write(dir.path(), Compression::GZIP));
}

#[test]
fn a_level_is_part_of_what_a_block_is_known_by() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 30);
    let mut memo = Memo::default();
    for level in [6, 1] {
        let compression = Compression::Gzip { level };
        assert!(
            memo.write(dir.path(), compression) == write(dir.path(), &options(compression, 1)).0
        );
        assert_eq!(memo.counts().0, 0);
    }
}

#[test]
fn a_blob_is_recompressed_with_its_content_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 60);
    let mut content = write(dir.path(), &options(Compression::Uncompressed, 1)).0;
    content.extend_from_slice(b"what follows the archive");
    let all = [
        Compression::Uncompressed,
        Compression::GZIP,
        Compression::ZSTD,
    ];
    for from in all {
        let mut blob = Vec::new();
        recompress(&content[..], u64::MAX, &options(from, 2), &mut blob).unwrap();
        for to in all {
            let mut out = Vec::new();
            let made = recompress(&blob[..], u64::MAX, &options(to, 2), &mut out).unwrap();
            assert!(uncompressed(&out) == content, "{from:?} to {to:?}");
            assert_eq!(made.diff_id, oci::Digest::sha256_of(&content));
            assert_eq!(
                (made.size, made.blob_size),
                (content.len() as u64, out.len() as u64)
            );
            assert_eq!(made.blob, oci::Digest::sha256_of(&out));
        }
    }
    let error = recompress(
        &content[..],
        1000,
        &options(Compression::GZIP, 2),
        io::sink(),
    )
    .unwrap_err();
    assert!(matches!(error, Error::LayerLimit { .. }));
}

#[test]
fn the_failure_of_the_writer_ends_everything() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self
                .0
                .checked_sub(bytes.len())
                .ok_or_else(|| io::Error::other("the disk is full"))?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 300);
    let layer = LayerDir::open(dir.path()).unwrap();
    for compression in [
        Compression::Uncompressed,
        Compression::GZIP,
        Compression::ZSTD,
    ] {
        for room in [0, 5, 500_000] {
            let diff = DiffOptions::new(Form::Plain);
            let error =
                write_layer(&layer, None, &diff, &options(compression, 2), Full(room)).unwrap_err();
            assert_eq!(
                told(&error),
                "failed to write layer: the disk is full",
                "{compression:?} {room}"
            );
        }
    }
}
