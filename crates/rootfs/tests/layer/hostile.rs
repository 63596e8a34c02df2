//! Tars made to break out, to exhaust or to confuse. None may touch anything outside of the layer.

use std::io::{self, Read};

use rootfs::Error;
use rootfs::apply::{ApplyOptions, Devices};

use crate::malformed::malformed;
use crate::support::*;

/// What is to come of a tar.
pub(crate) enum Expect {
    /// It is unpacked, and the tree has these lines among others.
    Tree(&'static [&'static str]),
    /// It is unpacked, and the tree has this line nowhere.
    Without(&'static str),
    /// It is refused, with this in the error.
    Refused(&'static str),
}
use Expect::{Refused, Tree, Without};

fn pax_mtime(text: &str) -> Tar {
    Tar::new().pax(&[format!("mtime={text}")]).file("a", "")
}

/// Cases of paths and links that lead elsewhere.
fn escapes() -> Vec<(&'static str, Tar, Expect)> {
    let long_name = "n".repeat(256);
    let deep = "d/".repeat(3000);
    vec![
        (
            "absolute path",
            Tar::new().file("/outside/victim", "x"),
            Tree(&["outside/victim f 644 0:0 1"]),
        ),
        (
            "path above the root",
            Tar::new().file("../outside/victim", "x"),
            Tree(&["outside/victim f 644 0:0 1"]),
        ),
        (
            "path far above",
            Tar::new().file("../../../../../../../../tmp/x", "x"),
            Tree(&["tmp/x f 644 0:0 1"]),
        ),
        (
            "parent inside a path",
            Tar::new().file("a/../../outside/victim", "x"),
            Tree(&["outside/victim f 644 0:0 1"]),
        ),
        (
            "only parents",
            Tar::new().file("../..", "x"),
            Refused("the root can only be a directory"),
        ),
        (
            "file as root",
            Tar::new().file("./", "x"),
            Refused("the root can only be a directory"),
        ),
        (
            "symlink as root",
            Tar::new().symlink(".", "../outside"),
            Refused("the root can only be a directory"),
        ),
        (
            "hard link as root",
            Tar::new().file("a", "").link("/", "a"),
            Refused("the root can only be a directory"),
        ),
        (
            "absolute path of records",
            Tar::new().pax(&["path=/../outside/victim"]).file("x", "x"),
            Tree(&["outside/victim f"]),
        ),
        (
            "long name above",
            Tar::new().long(b'L', b"../outside/victim").file("x", "x"),
            Tree(&["outside/victim f"]),
        ),
        (
            "through a symlink to the parent",
            Tar::new()
                .symlink("up", "..")
                .file("up/outside/victim", "x"),
            Tree(&["up l 0:0 ..", "outside/victim f 644 0:0 1"]),
        ),
        (
            "through an absolute symlink",
            Tar::new()
                .symlink("etc", "/outside")
                .file("etc/victim", "x"),
            Tree(&["etc l 0:0 /outside", "outside/victim f 644 0:0 1"]),
        ),
        (
            "through a symlink far up",
            Tar::new()
                .symlink("a", "../../../../outside")
                .file("a/victim", "x"),
            Tree(&["a l 0:0 ../../../../outside", "outside/victim f"]),
        ),
        (
            "through a chain of symlinks",
            Tar::new()
                .symlink("a", "b/..")
                .symlink("b", "c")
                .symlink("c", "../..")
                .file("a/outside/victim", "x"),
            Tree(&["outside/victim f 644 0:0 1"]),
        ),
        (
            "through a symlink in a directory",
            Tar::new()
                .dir("d")
                .symlink("d/up", "../../outside")
                .file("d/up/victim", "x"),
            Tree(&["outside/victim f 644 0:0 1"]),
        ),
        (
            "symlink made first, then written as a file",
            Tar::new().symlink("f", "../outside/victim").file("f", "x"),
            Tree(&["f f 644 0:0 1"]),
        ),
        (
            "symlink made first, then a directory",
            Tar::new()
                .symlink("d", "../outside")
                .dir("d")
                .file("d/victim", "x"),
            Tree(&["d d 755 0:0", "d/victim f 644 0:0 1"]),
        ),
        (
            "directory replaced by a symlink, then written through",
            Tar::new()
                .dir("d")
                .file("d/a", "")
                .symlink("d", "../outside")
                .file("d/victim", "xy"),
            Tree(&["d l 0:0 ../outside", "outside/victim f 644 0:0 2"]),
        ),
        (
            "directory in use replaced by a symlink and a directory again",
            Tar::new()
                .file("d/e/a", "")
                .symlink("d", "/outside")
                .symlink("d", "..")
                .dir("d")
                .file("d/e/b", ""),
            Tree(&["d d 755 0:0", "d/e/b f 644 0:0 0"]),
        ),
        (
            "whiteout through a symlink",
            Tar::new()
                .symlink("up", "../outside")
                .file("up/.wh.victim", ""),
            Tree(&["outside/victim c 0 0:0 0:0"]),
        ),
        (
            "opaque through a symlink",
            Tar::new()
                .symlink("up", "..")
                .file("up/outside/.wh..wh..opq", ""),
            Tree(&["outside d 755 0:0 trusted.overlay.opaque=y"]),
        ),
        (
            "whiteout of the parent",
            Tar::new().file("a/.wh...", ""),
            Refused("whiteout of no name"),
        ),
        (
            "whiteout of itself",
            Tar::new().file("a/.wh..", ""),
            Refused("whiteout of no name"),
        ),
        (
            "whiteout of nothing",
            Tar::new().file("a/.wh.", ""),
            Refused("whiteout of no name"),
        ),
        (
            "whiteout with a slash",
            Tar::new().file(".wh./../../outside/victim", ""),
            Tree(&["outside/victim f"]),
        ),
        (
            "hard link above",
            Tar::new().link("h", "../outside/victim"),
            Refused("not in the layer"),
        ),
        (
            "hard link to an absolute path",
            Tar::new().link("h", "/etc/passwd"),
            Refused("not in the layer"),
        ),
        (
            "hard link through a symlink",
            Tar::new()
                .symlink("up", "../outside")
                .link("h", "up/victim"),
            Refused("not in the layer"),
        ),
        (
            "hard link to a symlink out, then written",
            Tar::new()
                .symlink("s", "../outside/victim")
                .link("h", "s")
                .file("h", "x"),
            Tree(&["h f 644 0:0 1", "s l 0:0 ../outside/victim"]),
        ),
        (
            "hard link to nothing",
            Tar::new().link("h", "missing"),
            Refused("not in the layer"),
        ),
        (
            "hard link to the root",
            Tar::new().link("h", "."),
            Refused("hard link to a directory"),
        ),
        (
            "hard link to a directory",
            Tar::new().dir("d").link("h", "d"),
            Refused("hard link to a directory"),
        ),
        (
            "hard link to itself",
            Tar::new().file("a", "x").link("a", "./a"),
            Tree(&["a f 644 0:0 1"]),
        ),
        (
            "hard link with nothing in it",
            Tar::new().link("h", ""),
            Refused("hard link to a directory"),
        ),
        (
            "hard link to a whiteout",
            Tar::new().file(".wh.a", "").link("b", "a"),
            Refused("not in the layer"),
        ),
        (
            "hard link below a file",
            Tar::new().file("a", "").link("b", "a/c"),
            Refused("not in the layer"),
        ),
        (
            "symlink to nothing",
            Tar::new().symlink("s", ""),
            Refused("symbolic link to nothing"),
        ),
        (
            "symlink loop",
            Tar::new()
                .symlink("a", "b")
                .symlink("b", "a")
                .file("a/x", ""),
            Refused("too many symbolic links"),
        ),
        (
            "symlink to itself",
            Tar::new().symlink("a", "a").file("a/x", ""),
            Refused("too many symbolic links"),
        ),
        (
            "growing symlink",
            Tar::new().symlink("a", "a/a/a/a").file("a/x", ""),
            Refused("too many symbolic links"),
        ),
        (
            "file as a directory",
            Tar::new().file("a", "").file("a/b", ""),
            Refused("a is not a directory"),
        ),
        (
            "fifo as a directory",
            Tar::new().head(Head::new(b'6', "a")).file("a/b", ""),
            Refused("not a directory"),
        ),
        (
            "name too long",
            Tar::new().pax(&[format!("path={long_name}")]).file("x", ""),
            Refused("too long"),
        ),
        (
            "path too long",
            Tar::new().pax(&[format!("path={deep}x")]).file("x", ""),
            Refused("too long"),
        ),
        (
            "NUL in a path",
            Tar::new().pax(&["path=a\0b"]).file("x", ""),
            Refused("NUL"),
        ),
        (
            "NUL in a link",
            Tar::new().pax(&["linkpath=a\0b"]).symlink("x", "y"),
            Refused("NUL"),
        ),
    ]
}

/// Cases of things that must not come into a layer.
fn contraband() -> Vec<(&'static str, Tar, Expect)> {
    let big_id = "uid=4294967295";
    vec![
        (
            "overlay's whiteout",
            Tar::new()
                .head(Head::new(b'3', "a").device(0, 0))
                .file("b", ""),
            Without("a c"),
        ),
        (
            "overlay's marks",
            Tar::new()
                .pax(&[
                    "SCHILY.xattr.trusted.overlay.opaque=y",
                    "SCHILY.xattr.trusted.overlay.redirect=/etc",
                ])
                .dir("d"),
            Tree(&["d d 755 0:0\n"]),
        ),
        (
            "overlay's marks of a user",
            Tar::new()
                .pax(&[
                    "SCHILY.xattr.user.overlay.opaque=y",
                    "SCHILY.xattr.user.overlay.metacopy=",
                ])
                .file("a", ""),
            Tree(&["a f 644 0:0 0\n"]),
        ),
        (
            "overlay's marks by libarchive",
            Tar::new()
                .pax(&[
                    "LIBARCHIVE.xattr.trusted%2Eoverlay%2Eopaque=eQ==",
                    "LIBARCHIVE.xattr.user.ok=eQ",
                ])
                .dir("d"),
            Tree(&["d d 755 0:0 user.ok=y\n"]),
        ),
        (
            "labels of a security module",
            Tar::new()
                .pax(&["SCHILY.xattr.security.selinux=system_u:object_r:shadow_t:s0"])
                .file("a", ""),
            Tree(&["a f 644 0:0 0\n"]),
        ),
        (
            "a device number too large",
            Tar::new().head(Head::new(b'4', "a").device(4096, 0)),
            Refused("out of range"),
        ),
        (
            "an owner that means none",
            Tar::new().pax(&[big_id]).file("a", ""),
            Refused("owner is out of range"),
        ),
        (
            "an owner below zero",
            Tar::new().head(Head::new(b'0', "a").bytes(108, &[0xff; 8])),
            Refused("no number"),
        ),
        (
            "an owner too large",
            Tar::new().pax(&["gid=99999999999"]).file("a", ""),
            Refused("owner is out of range"),
        ),
        (
            "an owner in words",
            Tar::new().pax(&["uid=root"]).file("a", ""),
            Refused("number that is none"),
        ),
        (
            "a time in words",
            pax_mtime("yesterday"),
            Refused("time that is none"),
        ),
        (
            "a time beyond all",
            pax_mtime("9223372036854775807.999999999"),
            Tree(&["a f"]),
        ),
        (
            "a time before all",
            pax_mtime("-9223372036854775807.5"),
            Tree(&["a f"]),
        ),
    ]
}

#[test]
fn no_tar_reaches_outside_of_its_layer() {
    if !is_root() {
        return;
    }
    let cases: Vec<_> = escapes()
        .into_iter()
        .chain(contraband())
        .chain(malformed())
        .collect();
    assert!(cases.len() >= 90, "{}", cases.len());
    for (case, tar, expect) in cases {
        let place = Place::new();
        let outcome = place.apply(&tar.end()[..]);
        place.assert_outside_is_untouched(case);
        let tree = place.tree();
        match (outcome, expect) {
            (Ok(_), Tree(lines)) => {
                for line in lines {
                    assert!(
                        tree.lines()
                            .any(|told| format!("{told}\n").starts_with(line)),
                        "{case}: {line} not in\n{tree}"
                    );
                }
            }
            (Ok(_), Without(line)) => assert!(
                !tree.lines().any(|told| told.starts_with(line)),
                "{case}:\n{tree}"
            ),
            (Err(error), Refused(reason)) => {
                let told = told(&error);
                assert!(told.contains(reason), "{case}: {told}");
            }
            (Ok(_), Refused(reason)) => panic!("{case}: unpacked, expected: {reason}\n{tree}"),
            (Err(error), _) => panic!("{case}: {}", told(&error)),
        }
    }
}

#[test]
fn a_tar_cut_off_anywhere_is_refused_or_harmless() {
    let tar = Tar::new()
        .pax(&["path=some/where", "SCHILY.xattr.user.a=b"])
        .file("x", "content")
        .long(b'L', b"long")
        .file("y", &"z".repeat(1500))
        .symlink("s", "y")
        .end();
    for length in (0..tar.len()).step_by(97) {
        let place = Place::new();
        if let Err(error) = place.apply(&tar[..length]) {
            assert!(matches!(error, Error::TruncatedTar), "{length}: {error}");
        }
        place.assert_outside_is_untouched("cut off");
    }
}

#[test]
fn bits_that_flip_never_reach_outside() {
    if !is_root() {
        return;
    }
    let tar = Tar::new()
        .symlink("up", "../outside")
        .file("up/victim", "x")
        .pax(&["path=../outside/victim", "linkpath=../outside"])
        .link("h", "up")
        .dir("d")
        .file("d/.wh.x", "")
        .end();
    let mut random = Random(0x5eed_0001);
    for _ in 0..400 {
        let mut broken = tar.clone();
        for _ in 0..=random.below(4) {
            let bit = random.below(broken.len() as u64 * 8) as usize;
            broken[bit / 8] ^= 1 << (bit % 8);
        }
        // Headers are made whole again, so that what is broken is read at all.
        for block in broken.chunks_exact_mut(512) {
            if block[257..262] == *b"ustar" {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let place = Place::new();
        let _ = place.apply(&broken[..]);
        place.assert_outside_is_untouched("flipped bits");
    }
}

/// A tar that never ends: the same entry again and again.
struct Endless {
    entry: Vec<u8>,
    position: usize,
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = &self.entry[self.position..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.position = (self.position + length) % self.entry.len();
        Ok(length)
    }
}

#[test]
fn bombs_end_at_their_limit() {
    let mut options = ApplyOptions::new(OVERLAY);
    options.limits.entries = 1000;
    options.limits.bytes = 64 << 20;
    options.limits.memory = 64 << 10;
    let check = |entry: Vec<u8>, reason: &str| {
        let place = Place::new();
        let error = place
            .apply_with(Endless { entry, position: 0 }, &options)
            .unwrap_err();
        assert!(told(&error).contains(reason), "{}", told(&error));
    };
    check(Tar::new().file("a", "x").bytes, "more than 1000 entries");
    check(
        Tar::new()
            .head(Head::new(b'0', "big").size(1 << 30))
            .raw(&[0; 512])
            .bytes,
        "more than 67108864 bytes",
    );
    check(
        Tar::new().pax(&["path=a"]).bytes,
        "more than 67108864 bytes",
    );
    check(vec![0; 512], "more than 67108864 bytes");

    let place = Place::new();
    let mut tar = Tar::new();
    for number in 0..900 {
        tar = tar.file(format!("{number}/{}/x", "d".repeat(60)), "");
    }
    let error = place.apply_with(&tar.end()[..], &options).unwrap_err();
    assert!(told(&error).contains("bytes of paths"), "{}", told(&error));

    // 64 MiB of zeros are some 64 KiB of gzip and less of zstd.
    let zeros = || io::repeat(0).take(65 << 20);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(
        &mut gzip,
        &Tar::new().head(Head::new(b'0', "z").size(1 << 32)).bytes,
    )
    .unwrap();
    io::copy(&mut zeros(), &mut gzip).unwrap();
    let error = Place::new()
        .apply_with(&gzip.finish().unwrap()[..], &options)
        .unwrap_err();
    assert!(
        told(&error).contains("more than 67108864 bytes"),
        "{}",
        told(&error)
    );

    options.limits.zstd_window_log = 20;
    let mut zstd = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    zstd.window_log(24).unwrap();
    io::copy(&mut zeros(), &mut zstd).unwrap();
    let error = Place::new()
        .apply_with(&zstd.finish().unwrap()[..], &options)
        .unwrap_err();
    assert!(told(&error).contains("decompress"), "{}", told(&error));
}

#[test]
fn memory_stays_bounded_whatever_the_layer_is() {
    if !is_root() {
        return;
    }
    let peak = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap()
            .trim()
            .to_owned();
        line.trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let before = peak();
    // Large records, many names in one directory that is then replaced, deep directories, one large file.
    let value = "v".repeat(60_000);
    let mut entry = Tar::new()
        .pax(&[format!("SCHILY.xattr.trusted.x={value}")])
        .file("a", "x");
    for depth in 1..45 {
        entry = entry.dir("d/".repeat(depth));
    }
    entry = entry
        .file("d", "x")
        .body(Head::new(b'0', "big"), &vec![7; 4 << 20]);
    let mut options = ApplyOptions::new(OVERLAY);
    options.limits.entries = 1500;
    let place = Place::new();
    let error = place
        .apply_with(
            Endless {
                entry: entry.bytes,
                position: 0,
            },
            &options,
        )
        .unwrap_err();
    assert!(matches!(error, Error::LayerLimit { .. }), "{error}");
    let grown = (peak() - before) / 1024;
    // Other tests may run beside this one.
    assert!(grown < 100, "grown by {grown} MiB");
}

#[test]
fn a_deep_tree_is_replaced_without_deep_recursion() {
    if !is_root() {
        return;
    }
    let path = "d/".repeat(1500);
    let place = Place::new();
    let tar = Tar::new()
        .pax(&[format!("path={path}x")])
        .file("x", "")
        .file("d", "flat");
    place.apply(&tar.end()[..]).unwrap();
    assert_eq!(place.tree(), " d 755 0:0\nd f 644 0:0 4\n");
}

#[test]
fn devices_are_made_left_out_or_refused() {
    if !is_root() {
        return;
    }
    let tar = || {
        let null = Head::new(b'3', "dev/null").mode(0o666).device(1, 3);
        let disk = Head::new(b'4', "dev/sda")
            .mode(0o660)
            .owner(0, 6)
            .device(8, 0);
        Tar::new()
            .head(null)
            .head(disk)
            .head(Head::new(b'6', "pipe").mode(0o622))
            .end()
    };
    let place = Place::new();
    place.apply(&tar()[..]).unwrap();
    let made = "dev/null c 666 0:0 1:3\ndev/sda b 660 0:6 8:0\npipe p 622 0:0\n";
    assert_eq!(place.tree(), format!(" d 755 0:0\ndev d 755 0:0\n{made}"));

    let mut options = ApplyOptions::new(OVERLAY);
    options.devices = Devices::Skip;
    let place = Place::new();
    let applied = place.apply_with(&tar()[..], &options).unwrap();
    assert_eq!(applied.left_out.devices, 2);
    assert_eq!(place.tree(), " d 755 0:0\npipe p 622 0:0\n");

    options.devices = Devices::Refuse;
    let error = Place::new().apply_with(&tar()[..], &options).unwrap_err();
    assert!(told(&error).contains("it is a device"));
}
