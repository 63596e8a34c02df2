//! Every form of tar and of compression that is met in layers.

use std::fs;
use std::io::Write;
use std::process::Command;

use flate2::write::GzEncoder;
use rootfs::Form;
use rootfs::apply::{ApplyOptions, Ownership};
use rootfs::compress::Format;

use crate::support::*;

#[track_caller]
fn check(tar: Tar, expect: &str) {
    let place = Place::new();
    place
        .apply(&tar.end()[..])
        .unwrap_or_else(|error| panic!("{}", told(&error)));
    let root = " d 755 0:0\n";
    assert_eq!(place.tree(), format!("{root}{expect}"));
}

#[test]
fn headers_of_all_dialects_are_read() {
    if !is_root() {
        return;
    }
    check(
        Tar::new().head(Head::new(b'0', "name").bytes(345, b"prefix/of/it")),
        "prefix d 755 0:0\nprefix/of d 755 0:0\nprefix/of/it d 755 0:0\nprefix/of/it/name f 644 0:0 0\n",
    );
    // GNU keeps times where others have the prefix.
    check(
        Tar::new().head(Head::new(b'0', "name").gnu().bytes(345, b"14700000000\0")),
        "name f 644 0:0 0\n",
    );
    let star = Head::new(b'0', "name")
        .bytes(345, b"short")
        .bytes(476, b"14700000000\x0014700000000\0");
    check(
        Tar::new().head(star.bytes(508, b"tar\0")),
        "short d 755 0:0\nshort/name f 644 0:0 0\n",
    );
    check(
        Tar::new().head(Head::new(0, "old/").bytes(257, &[0; 8])),
        "old d 644 0:0\n",
    );
    check(
        Tar::new().body(Head::new(0, "old").bytes(257, &[0; 8]), b"x"),
        "old f 644 0:0 1\n",
    );
    check(
        Tar::new().body(Head::new(b'7', "contiguous"), b"x"),
        "contiguous f 644 0:0 1\n",
    );
    let binary = Head::new(b'0', "a").bytes(108, &[0x80, 0, 0, 0, 0, 0x2d, 0xc6, 0xc0]);
    check(Tar::new().head(binary), "a f 644 3000000:0 0\n");
}

#[test]
fn records_and_long_names_replace_the_headers() {
    if !is_root() {
        return;
    }
    let name = "n".repeat(200);
    let line = format!("{name} f 644 0:0 1\n");
    check(
        Tar::new().pax(&[format!("path={name}")]).file("x", "1"),
        &line,
    );
    check(Tar::new().long(b'L', name.as_bytes()).file("x", "1"), &line);
    check(
        Tar::new()
            .long(b'K', name.as_bytes())
            .long(b'L', b"s")
            .symlink("x", "y"),
        &format!("s l 0:0 {name}\n"),
    );
    // What stands behind the records is what they are about; an empty one takes nothing away.
    check(
        Tar::new().pax(&["path=a", "path="]).file("x", ""),
        "x f 644 0:0 0\n",
    );
    check(
        Tar::new().pax(&["path=a"]).pax(&["uid=7"]).file("x", ""),
        "x f 644 7:0 0\n",
    );
    check(
        Tar::new()
            .body(
                Head::new(b'g', "pax_global_header"),
                b"19 comment=abcdefg\n",
            )
            .file("x", ""),
        "x f 644 0:0 0\n",
    );
    check(
        Tar::new()
            .pax(&["uid=3000000", "gid=4000000"])
            .file("a", ""),
        "a f 644 3000000:4000000 0\n",
    );
    check(
        Tar::new().file(b"\xff\xfe\n", ""),
        "\\xff\\xfe\\n f 644 0:0 0\n",
    );
    check(
        Tar::new()
            .pax(&["SCHILY.xattr.user.a=1\n2=3", "SCHILY.xattr.user.b="])
            .file("a", ""),
        "a f 644 0:0 0 user.a=1\\n2=3 user.b=\n",
    );
}

#[test]
fn times_are_kept_to_the_nanosecond_also_those_of_directories() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let tar = Tar::new()
        .pax(&["mtime=1700000000.123456789"])
        .dir("d")
        .pax(&["mtime=1600000000.5"])
        .file("d/a", "")
        .pax(&["mtime=-1.25"])
        .symlink("d/s", "a")
        .dir("e")
        .file("d/b", "")
        .link("e/h", "d/a");
    place.apply(&tar.end()[..]).unwrap();
    let time = |name: &str| mtime(&place.path().join("layer").join(name));
    assert_eq!(time("d"), (1_700_000_000, 123_456_789));
    assert_eq!(time("d/a"), (1_600_000_000, 500_000_000));
    assert_eq!(time("d/s"), (-2, 750_000_000));
    assert_eq!(time("e"), (1000, 0));
    assert_eq!(time(""), (0, 0));
}

#[test]
fn times_of_directories_survive_entries_that_come_back_to_them() {
    if !is_root() {
        return;
    }
    // More directories than are kept open, each come back to.
    let place = Place::new();
    let mut tar = Tar::new();
    for number in 0..200 {
        tar = tar
            .dir(format!("{number:03}"))
            .pax(&["mtime=5.5"])
            .dir(format!("{number:03}/sub"));
    }
    for number in 0..200 {
        tar = tar
            .file(format!("{number:03}/late"), "")
            .file(format!("{number:03}/sub/late"), "");
    }
    let applied = place.apply(&tar.end()[..]).unwrap();
    assert!(applied.implicit.is_empty());
    for number in 0..200 {
        let layer = place.path().join("layer");
        assert_eq!(mtime(&layer.join(format!("{number:03}"))), (1000, 0));
        assert_eq!(
            mtime(&layer.join(format!("{number:03}/sub"))),
            (5, 500_000_000)
        );
    }
}

#[test]
fn modes_owners_and_capabilities_are_exact() {
    if !is_root() {
        return;
    }
    let capability =
        b"SCHILY.xattr.security.capability=\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let capability: &[u8] = capability;
    check(
        Tar::new()
            .head(Head::new(b'0', "setuid").mode(0o4755).owner(1000, 1001))
            .head(Head::new(b'0', "sticky").mode(0o6777))
            .head(Head::new(b'5', "tmp").mode(0o1777))
            .head(Head::new(b'5', "gives").mode(0o2775).owner(0, 50))
            .file("gives/file", "")
            .dir("gives/dir")
            .file("gives/made/file", "")
            .head(Head::new(b'5', "none").mode(0))
            .file("none/file", "")
            .pax(&[capability])
            .head(Head::new(b'0', "ping").mode(0o755).owner(1, 1)),
        "gives d 2775 0:50\n\
         gives/dir d 755 0:0\n\
         gives/file f 644 0:0 0\n\
         gives/made d 755 0:0\n\
         gives/made/file f 644 0:0 0\n\
         none d 0 0:0\n\
         none/file f 644 0:0 0\n\
         ping f 755 1:1 0 security.capability=\\x01\\x00\\x00\\x02\\x00\\x04\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\n\
         setuid f 4755 1000:1001 0\n\
         sticky f 6777 0:0 0\n\
         tmp d 1777 0:0\n",
    );
}

#[test]
fn a_default_acl_does_not_reach_into_the_layer() {
    if !is_root() {
        return;
    }
    // user::rwx, group::---, other::---
    let acl = b"SCHILY.xattr.system.posix_acl_default=\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x04\0\0\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";
    let acl: &[u8] = acl;
    let place = Place::new();
    let mut tar = Tar::new().pax(&[acl]).dir("d").file("d/a", "").dir("d/sub");
    for number in 0..100 {
        tar = tar.dir(format!("other{number}"));
    }
    place.apply(&tar.file("d/late", "").end()[..]).unwrap();
    let tree = place.tree();
    assert!(
        tree.contains("d d 755 0:0 system.posix_acl_default="),
        "{tree}"
    );
    assert!(
        tree.contains("d/a f 644 0:0 0\nd/late f 644 0:0 0\nd/sub d 755 0:0\n"),
        "{tree}"
    );
}

#[test]
fn owners_are_kept_ignored_or_set() {
    if !is_root() {
        return;
    }
    let tar = Tar::new()
        .head(Head::new(b'0', "a").owner(5, 6).mode(0o4755))
        .head(Head::new(b'5', "d").owner(5, 6).mode(0o755))
        .head(Head::new(b'2', "s").owner(5, 6).link("a"))
        .end();
    let check = |ownership, owner: &str| {
        let place = Place::new();
        let mut options = ApplyOptions::new(OVERLAY);
        options.ownership = ownership;
        place.apply_with(&tar[..], &options).unwrap();
        let expect = format!(" d 755 0:0\na f 4755 {owner} 0\nd d 755 {owner}\ns l {owner} a\n");
        assert_eq!(place.tree(), expect);
    };
    check(Ownership::Keep, "5:6");
    check(Ownership::Ignore, "0:0");
    check(Ownership::Set { uid: 8, gid: 9 }, "8:9");
}

#[test]
fn whiteouts_take_overlays_form() {
    if !is_root() {
        return;
    }
    let opaque = "trusted.overlay.opaque=y";
    check(
        Tar::new()
            .file("a/.wh.gone", "")
            .file("b/.wh..wh..opq", "")
            .file("b/new", ""),
        &format!("a d 755 0:0\na/gone c 0 0:0 0:0\nb d 755 0:0 {opaque}\nb/new f 644 0:0 0\n"),
    );
    // What is in the same layer stays, and hides what is below, whichever comes first.
    check(
        Tar::new().file(".wh.f", "").file("f", "x"),
        "f f 644 0:0 1\n",
    );
    check(
        Tar::new().file("f", "x").file(".wh.f", ""),
        "f f 644 0:0 1\n",
    );
    check(
        Tar::new().file(".wh.d", "").dir("d"),
        &format!("d d 755 0:0 {opaque}\n"),
    );
    check(
        Tar::new().dir("d").file(".wh.d", ""),
        &format!("d d 755 0:0 {opaque}\n"),
    );
    check(
        Tar::new().file(".wh.d", "").file("d/x", ""),
        &format!("d d 755 0:0 {opaque}\nd/x f 644 0:0 0\n"),
    );
    check(
        Tar::new().file(".wh.s", "").symlink("s", "t"),
        "s l 0:0 t\n",
    );
    // The name of a whiteout is longer than the one it hides.
    let name = "n".repeat(255);
    check(
        Tar::new().pax(&[format!("path=.wh.{name}")]).file("x", ""),
        &format!("{name} c 0 0:0 0:0\n"),
    );
    // aufs kept its own things under such names.
    check(Tar::new().file(".wh..wh.aufs", "").dir(".wh..wh.plnk"), "");
    let place = Place::new();
    let options = ApplyOptions::new(Form::Plain);
    place
        .apply_with(&Tar::new().file(".wh.f", "").end()[..], &options)
        .unwrap();
    assert_eq!(place.tree(), " d 755 0:0\n.wh.f f 644 0:0 0\n");
}

#[test]
fn duplicates_replace_each_other() {
    if !is_root() {
        return;
    }
    check(Tar::new().file("a", "1").file("a", "22"), "a f 644 0:0 2\n");
    check(
        Tar::new().file("a", "1").link("b", "a").file("a", "22"),
        "a f 644 0:0 2\nb f 644 0:0 1\n",
    );
    check(
        Tar::new()
            .dir("d")
            .file("d/x", "")
            .head(Head::new(b'5', "d").mode(0o700)),
        "d d 700 0:0\nd/x f 644 0:0 0\n",
    );
    check(
        Tar::new().file("d/e/x", "").file("d", "1"),
        "d f 644 0:0 1\n",
    );
    check(
        Tar::new().symlink("a", "b").symlink("a", "c"),
        "a l 0:0 c\n",
    );
    check(
        Tar::new().file("a", "1").file("b", "2").link("b", "a"),
        "a f 644 0:0 1\nb f 644 0:0 1\n",
    );
}

#[test]
fn directories_that_are_taken_for_granted_are_named() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let tar = Tar::new()
        .file("b/c/x", "")
        .dir("a/d")
        .dir("b")
        .symlink("s", "t/u")
        .file("s/v/x", "")
        .file("z/x", "")
        .file("z", "");
    let applied = place.apply(&tar.end()[..]).unwrap();
    let implicit: Vec<String> = applied.implicit.iter().map(ToString::to_string).collect();
    assert_eq!(implicit, ["/a", "/b/c", "/t", "/t/u", "/t/u/v"]);
    assert!(!applied.root);
    assert_eq!(applied.entries, 7);
    let applied = Place::new().apply(&Tar::new().dir("./").end()[..]).unwrap();
    assert!(applied.root && applied.implicit.is_empty());
}

/// Reads a file as it is, and whether it takes less room than its size.
fn sparse(place: &Place, name: &str) -> (Vec<u8>, bool) {
    use std::os::unix::fs::MetadataExt;
    let path = place.path().join("layer").join(name);
    let meta = fs::metadata(&path).unwrap();
    (fs::read(&path).unwrap(), meta.blocks() * 512 < meta.size())
}

#[test]
fn sparse_files_of_all_four_forms_are_the_same_file() {
    if !is_root() {
        return;
    }
    let size = 1 << 20;
    let mut whole = vec![0; size];
    whole[..512].fill(b'a');
    whole[size / 2..size / 2 + 1024].fill(b'b');
    let stored = [&whole[..512], &whole[size / 2..size / 2 + 1024]].concat();
    let map = [(0, 512), (size / 2, 1024), (size, 0)];
    let pairs: Vec<String> = map
        .iter()
        .map(|(offset, length)| format!("{offset},{length}"))
        .collect();
    let all = |records: &[&str]| {
        let size = format!("GNU.sparse.size={size}");
        let records: Vec<String> = [&size[..], "GNU.sparse.numblocks=3"]
            .iter()
            .chain(records)
            .map(ToString::to_string)
            .collect();
        records
    };
    let mut zero = all(&[]);
    for (offset, length) in map {
        zero.push(format!("GNU.sparse.offset={offset}"));
        zero.push(format!("GNU.sparse.numbytes={length}"));
    }
    let one = all(&[
        &format!("GNU.sparse.map={}", pairs.join(",")),
        "GNU.sparse.name=s",
    ]);
    let leading = format!("3\n{}\n", pairs.join("\n").replace(',', "\n"));
    let leading = [leading.as_bytes(), &vec![0; 512 - leading.len()], &stored].concat();
    let version = [
        "GNU.sparse.major=1",
        "GNU.sparse.minor=0",
        "GNU.sparse.name=s",
        &format!("GNU.sparse.realsize={size}"),
    ];
    let mut old = Head::new(b'S', "s")
        .gnu()
        .size(1536)
        .bytes(483, format!("{size:011o}\0").as_bytes());
    for (index, (offset, length)) in map.iter().enumerate().take(1) {
        old = old.bytes(
            386 + 24 * index,
            format!("{offset:011o}\0{length:011o}\0").as_bytes(),
        );
    }
    old = old.bytes(482, &[1]);
    let mut extension = [0; 512];
    for (index, (offset, length)) in map[1..].iter().enumerate() {
        let slot = format!("{offset:011o}\0{length:011o}\0");
        extension[24 * index..24 * index + 24].copy_from_slice(slot.as_bytes());
    }
    for tar in [
        Tar::new().pax(&zero).body(Head::new(b'0', "s"), &stored),
        Tar::new()
            .pax(&one)
            .body(Head::new(b'0', "GNUSparseFile.0/s"), &stored),
        Tar::new()
            .pax(&version)
            .body(Head::new(b'0', "GNUSparseFile.0/s"), &leading),
        Tar::new().head(old).raw(&extension).padded(&stored),
    ] {
        let place = Place::new();
        place
            .apply(&tar.file("next", "").end()[..])
            .unwrap_or_else(|error| panic!("{}", told(&error)));
        let (content, has_holes) = sparse(&place, "s");
        assert!(content == whole, "the content differs");
        assert!(has_holes);
        assert!(place.path().join("layer/next").exists());
    }
}

#[test]
fn what_gnu_tar_writes_is_read_in_all_its_formats() {
    if !is_root() || Command::new("tar").arg("--version").output().is_err() {
        println!("skipped: needs GNU tar");
        return;
    }
    let source = tempfile::tempdir().unwrap();
    let script = "d=$(printf 'd%.0s' $(seq 150)) && mkdir -p dir/$d && cd dir && echo hi > plain && ln plain hard && ln -s plain soft \
        && mkfifo fifo && truncate -s 3M holes && printf x >> holes && printf y | dd of=holes bs=1 seek=1000000 conv=notrunc 2>/dev/null \
        && touch $d/$(printf 'n%.0s' $(seq 200)) && chmod 4711 plain && chown -h 1234:5678 soft && touch -d @1234567890 . $d plain";
    assert!(
        Command::new("sh")
            .args(["-c", script])
            .current_dir(source.path())
            .status()
            .unwrap()
            .success()
    );
    let expect = tree(&source.path().join("dir"));
    for format in ["gnu", "oldgnu", "pax", "posix"] {
        for version in ["0.0", "0.1", "1.0"] {
            let output = Command::new("tar")
                .args([
                    "-c",
                    "--sort=name",
                    "--format",
                    format,
                    "-S",
                    "--sparse-version",
                    version,
                    "-C",
                ])
                .arg(source.path().join("dir"))
                .arg(".")
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            let place = Place::new();
            place
                .apply(&output.stdout[..])
                .unwrap_or_else(|error| panic!("{format} {version}: {}", told(&error)));
            assert_eq!(place.tree(), expect, "{format} {version}");
            let holes = fs::read(source.path().join("dir/holes")).unwrap();
            assert!(
                sparse(&place, "holes") == (holes, true),
                "{format} {version}"
            );
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn blobs_of_all_formats_are_the_same_layer() {
    let tar = Tar::new()
        .file("a", "content")
        .file("b", &"x".repeat(300_000))
        .end();
    let (start, rest) = tar.split_at(700);
    let frame = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    // A frame that decoders pass over, as zstd:chunked ends with.
    let skippable = [&[0x5e, 0x2a, 0x4d, 0x18, 5, 0, 0, 0][..], b"index"].concat();
    for (name, blob, format) in [
        ("plain", tar.clone(), Format::Uncompressed),
        ("gzip", gzip(&tar), Format::Gzip),
        (
            "a gzip member for each file, as eStargz",
            [gzip(start), gzip(rest), gzip(b"")].concat(),
            Format::Gzip,
        ),
        ("zstd", frame(&tar), Format::Zstd),
        (
            "zstd:chunked",
            [
                frame(start),
                skippable.clone(),
                frame(rest),
                skippable.clone(),
            ]
            .concat(),
            Format::Zstd,
        ),
        (
            "zstd that starts with an index",
            [skippable, frame(&tar)].concat(),
            Format::Zstd,
        ),
    ] {
        let place = Place::new();
        let mut options = ApplyOptions::new(Form::Plain);
        options.ownership = Ownership::Ignore;
        options.diff_id = Some(oci::Digest::sha256_of(&tar));
        let applied = place
            .apply_with(&blob[..], &options)
            .unwrap_or_else(|error| panic!("{name}: {}", told(&error)));
        assert_eq!(applied.format, format, "{name}");
        assert_eq!(
            (applied.size, applied.blob_size),
            (tar.len() as u64, blob.len() as u64),
            "{name}"
        );
        assert_eq!(applied.blob, oci::Digest::sha256_of(&blob), "{name}");
        assert_eq!(
            fs::read(place.path().join("layer/a")).unwrap(),
            b"content",
            "{name}"
        );
        assert_eq!(applied.content_size, 300_007);
    }
}

#[test]
fn what_follows_the_archive_counts_for_the_digest() {
    let tar = [Tar::new().file("a", "").end(), vec![7; 100_000]].concat();
    let applied = Place::new().apply(&gzip(&tar)[..]).unwrap();
    assert_eq!(applied.diff_id, oci::Digest::sha256_of(&tar));
}

#[test]
fn blobs_that_are_damaged_are_refused() {
    let tar = Tar::new().file("a", &"content ".repeat(10_000)).end();
    let check = |blob: &[u8], reason: &str| {
        let error = Place::new().apply(blob).unwrap_err();
        assert!(told(&error).contains(reason), "{}", told(&error));
    };
    let mut blob = gzip(&tar);
    check(&blob[..blob.len() / 2], "decompress");
    check(&blob[..blob.len() - 3], "decompress");
    check(&[&blob[..], b"trailing"].concat(), "decompress");
    let end = blob.len() - 6;
    blob[end] ^= 1;
    check(&blob, "decompress");
    let blob = zstd::encode_all(&tar[..], 3).unwrap();
    check(&blob[..blob.len() - 3], "decompress");

    let mut options = ApplyOptions::new(OVERLAY);
    options.diff_id = Some(oci::Digest::sha256_of(b"other"));
    let error = Place::new().apply_with(&tar[..], &options).unwrap_err();
    assert!(matches!(error, rootfs::Error::DiffId { .. }));
}

#[test]
fn the_failure_of_the_reader_is_told_as_such() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the connection was cut"))
        }
    }
    let error = Place::new().apply(Broken).unwrap_err();
    assert_eq!(told(&error), "failed to read layer: the connection was cut");
    let tar = gzip(&Tar::new().file("a", &"content ".repeat(10_000)).end());
    let error = Place::new()
        .apply(std::io::Read::chain(&tar[..40], Broken))
        .unwrap_err();
    assert_eq!(told(&error), "failed to read layer: the connection was cut");
}
