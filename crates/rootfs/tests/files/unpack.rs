//! ADD of archives, and paths that try to leave their tree.

use std::fs;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::support::{Stack, build, can_mount, describe, lines};
use rootfs::apply::Limits;
use rootfs::copy::{Copy, Owner, copy, latest_in_archive};
use rootfs::{Error, Follow, NewDirs, Root, RootPath, Tree};

/// One member of an archive: name, type, link target or content, mode.
type Member<'a> = (&'a str, u8, &'a str, u32);

fn archive(members: &[Member<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, kind, content, mode) in members {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(tar::EntryType::new(*kind));
        header.set_mode(*mode);
        header.set_uid(11);
        header.set_gid(12);
        header.set_mtime(1000);
        let is_link = matches!(kind, b'1' | b'2');
        let data = if is_link { "" } else { content };
        if is_link {
            header.as_gnu_mut().unwrap().linkname[..content.len()]
                .copy_from_slice(content.as_bytes());
        }
        header.set_size(data.len() as u64);
        if *kind == b'3' {
            header.set_device_major(0).unwrap();
            header.set_device_minor(0).unwrap();
        }
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn add(bytes: &[u8], dest: &Tree, to: &str) -> rootfs::Result<()> {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("a"), bytes).unwrap();
    let request = Copy {
        unpack: true,
        create_dest_path: true,
        ..Copy::new("/a", to)
    };
    copy(&Tree::open(source.path()).unwrap(), dest, &request).map(|_| ())
}

const MEMBERS: &[Member<'_>] = &[
    ("./", b'5', "", 0o700),
    ("d/", b'5', "", 0o711),
    ("d/f", b'0', "x", 0o4755),
    ("d/l", b'2', "/etc/passwd", 0o777),
    ("d/h", b'1', "d/f", 0o4755),
    ("implied/dir/g", b'0', "y", 0o644),
    ("p", b'6', "", 0o600),
];
const UNPACKED: &str = "to dir 755\nto/d dir 711 11:12\nto/d/f file x 4755 11:12\nto/d/h = to/d/f 11:12\n\
    to/d/l -> /etc/passwd 11:12\nto/implied dir 755\nto/implied/dir dir 755\nto/implied/dir/g file y 644 11:12\n\
    to/p fifo 600 11:12";

#[track_caller]
fn check(bytes: &[u8], start: &str, to: &str, expect: &str) {
    let plain = tempfile::tempdir().unwrap();
    build(plain.path(), start);
    add(bytes, &Tree::open(plain.path()).unwrap(), to).unwrap();
    assert_eq!(describe(plain.path()), lines(expect));
    if can_mount() {
        let stack = Stack::new(&[start]);
        add(bytes, &stack.writable(), to).unwrap();
        assert_eq!(stack.describe(), lines(expect), "over layers");
    }
}

#[test]
fn archives_of_all_compressions_are_unpacked() {
    let plain = archive(MEMBERS);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&plain).unwrap();
    check(&plain, "", "/to/", UNPACKED);
    check(&plain, "", "/to", UNPACKED);
    check(&gzip.finish().unwrap(), "", "/to/", UNPACKED);
    check(&bzip2.finish().unwrap(), "", "/to/", UNPACKED);
    check(
        &zstd::encode_all(&plain[..], 1).unwrap(),
        "",
        "/to/",
        UNPACKED,
    );
}

#[test]
fn xz_archives_are_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    fs::write(&path, archive(MEMBERS)).unwrap();
    match std::process::Command::new("xz").arg(&path).status() {
        Ok(status) if status.success() => check(
            &fs::read(dir.path().join("a.xz")).unwrap(),
            "",
            "/to/",
            UNPACKED,
        ),
        _ => println!("skipped: there is no xz to make an archive with"),
    }
}

#[test]
fn what_is_no_archive_is_copied() {
    const XZ_OF_HELLO: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x00, 0x21,
        0x01, 0x16, 0x00, 0x00, 0x00,
    ];
    for bytes in [
        &b"plain text"[..],
        b"",
        XZ_OF_HELLO,
        b"BZh91AY",
        &[0x1f, 0x8b, 8, 0, 0],
        &[0; 2048],
    ] {
        let to = tempfile::tempdir().unwrap();
        add(bytes, &Tree::open(to.path()).unwrap(), "/to/").unwrap();
        assert_eq!(fs::read(to.path().join("to/a")).unwrap(), bytes);
    }
}

#[test]
fn what_is_in_the_way_is_replaced_and_directories_are_merged() {
    let bytes = archive(&[
        ("d/", b'5', "", 0o700),
        ("d/f", b'0', "new", 0o600),
        ("x", b'0', "file", 0o600),
        ("y/", b'5', "", 0o755),
    ]);
    check(
        &bytes,
        "to/d/old file o\nto/d/f -> /elsewhere\nto/x/below file b\nto/y file was",
        "/to",
        "to dir 755\nto/d dir 700 11:12\nto/d/f file new 600 11:12\nto/d/old file o 644\nto/x file file 600 11:12\nto/y dir 755 11:12",
    );
}

#[test]
fn a_later_member_of_the_same_name_replaces_the_earlier() {
    let bytes = archive(&[
        ("new/a", b'0', "one", 0o600),
        ("new/a", b'0', "two", 0o644),
        ("new/d/", b'5', "", 0o755),
        ("new/d/x", b'0', "x", 0o600),
        ("new/d", b'0', "file", 0o600),
        ("new/l", b'2', "a", 0o777),
        ("new/l", b'2', "b", 0o777),
        ("new/h", b'0', "was", 0o600),
        ("new/h", b'1', "new/a", 0o644),
    ]);
    check(
        &bytes,
        "",
        "/to",
        "to dir 755\nto/new dir 755\nto/new/a file two 644 11:12\nto/new/d file file 600 11:12\n\
         to/new/h = to/new/a 11:12\nto/new/l -> b 11:12",
    );
}

#[test]
fn an_owner_is_given_to_what_is_unpacked() {
    let to = tempfile::tempdir().unwrap();
    let source = tempfile::tempdir().unwrap();
    fs::write(
        source.path().join("a"),
        archive(&[("d/f", b'0', "x", 0o644)]),
    )
    .unwrap();
    let owner = Some(Owner { uid: 5, gid: 6 });
    let request = Copy {
        unpack: true,
        create_dest_path: true,
        owner,
        ..Copy::new("/a", "/to/")
    };
    copy(
        &Tree::open(source.path()).unwrap(),
        &Tree::open(to.path()).unwrap(),
        &request,
    )
    .unwrap();
    assert_eq!(
        describe(to.path()),
        lines("to dir 755 5:6\nto/d dir 755\nto/d/f file x 644 5:6")
    );
}

#[test]
fn symlinks_of_an_archive_lead_inside_the_target() {
    let outside = tempfile::tempdir().unwrap();
    let absolute = outside.path().display().to_string();
    let link = format!("..{absolute}");
    let bytes = archive(&[
        ("abs", b'2', &absolute, 0o777),
        ("abs/f", b'0', "x", 0o644),
        ("up", b'2', &link, 0o777),
        ("up/g", b'0', "y", 0o644),
    ]);
    let to = tempfile::tempdir().unwrap();
    add(&bytes, &Tree::open(to.path()).unwrap(), "/to/").unwrap();
    assert_eq!(describe(outside.path()), "");
    let inside = to.path().join("to").join(absolute.trim_start_matches('/'));
    assert_eq!(
        describe(&inside),
        "f file x 644 11:12\ng file y 644 11:12\n"
    );
}

#[test]
fn members_that_climb_end_at_the_target() {
    let bytes = archive(&[
        ("../f", b'0', "x", 0o644),
        ("a/../../../g", b'0', "y", 0o644),
        ("h", b'1', "../../f", 0o644),
    ]);
    check(
        &bytes,
        "f file outside",
        "/to/",
        "f file outside 644\nto dir 755\nto/f file x 644 11:12\nto/g file y 644 11:12\nto/h = to/f 11:12",
    );
}

#[test]
fn links_to_nothing_and_whiteouts_are_refused() {
    for member in [
        ("h", b'1', "../../etc/passwd", 0o644),
        ("h", b'1', "nothing", 0o644),
        ("w", b'3', "", 0o644),
    ] {
        let to = tempfile::tempdir().unwrap();
        let result = add(&archive(&[member]), &Tree::open(to.path()).unwrap(), "/to/");
        assert!(
            matches!(result, Err(Error::Archive { .. } | Error::Io { .. })),
            "{member:?}: {result:?}"
        );
        assert_eq!(describe(to.path()), "to dir 755\n");
    }
}

#[test]
fn a_hard_link_through_a_symlink_does_not_reach_outside() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    let absolute = outside.path().display().to_string();
    let to = tempfile::tempdir().unwrap();
    let bytes = archive(&[
        ("l", b'2', &absolute, 0o777),
        ("h", b'1', "l/secret", 0o644),
    ]);
    add(&bytes, &Tree::open(to.path()).unwrap(), "/to/").unwrap_err();
    assert_eq!(
        fs::metadata(outside.path().join("secret"))
            .map(|meta| std::os::unix::fs::MetadataExt::nlink(&meta))
            .unwrap(),
        1
    );
}

#[test]
fn a_truncated_archive_is_an_error() {
    let bytes = archive(&[("f", b'0', "0123456789", 0o644), ("g", b'0', "x", 0o644)]);
    let to = tempfile::tempdir().unwrap();
    add(&bytes[..512 + 5], &Tree::open(to.path()).unwrap(), "/to/").unwrap_err();
}

#[test]
fn roots_are_not_left_through_any_path() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    let absolute = outside.path().display().to_string();
    let dir = tempfile::tempdir().unwrap();
    build(
        dir.path(),
        &format!(
            "abs -> {absolute}\nup -> ../../../../..{absolute}\nd/in -> ../f\nf file x\nloop -> loop\nmagic -> /proc/self/root"
        ),
    );
    let root = Root::open(dir.path()).unwrap();
    let tree = root.tree();
    let path = |text: &str| RootPath::new(text).unwrap();
    for out in [
        "/abs/secret",
        "/up/secret",
        "../../abs/secret",
        "/magic/etc/passwd",
    ] {
        assert!(
            matches!(tree.open_file(&path(out)), Err(Error::NotFound { .. })),
            "{out}"
        );
        assert!(
            tree.stat(&path(out), Follow::Last).unwrap().is_none(),
            "{out}"
        );
        assert!(root.open_dir(&path(out)).is_err(), "{out}");
        assert!(root.open_place(&path(out)).is_err(), "{out}");
    }
    assert_eq!(tree.read(&path("/d/in"), 10).unwrap().unwrap(), b"x");
    assert!(tree.read(&path("/d/in"), 0).is_err());
    assert_eq!(tree.read(&path("/nothing"), 10).unwrap(), None);
    assert_eq!(tree.read_link(&path("/d/in")).unwrap().unwrap(), b"../f");
    assert!(matches!(
        tree.stat(&path("/loop"), Follow::Last),
        Err(Error::TooManyLinks { .. })
    ));

    let new = NewDirs {
        mode: 0o750,
        owner: None,
        time: None,
    };
    assert_eq!(
        tree.mkdir_all(&path("/up/x/y"), &new).unwrap(),
        absolute.split('/').count() - 1 + 2
    );
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert!(
        dir.path()
            .join(absolute.trim_start_matches('/'))
            .join("x/y")
            .is_dir()
    );
    assert_eq!(tree.mkdir_all(&path("/up/x/y"), &new).unwrap(), 0);
}

#[test]
fn a_tree_deeper_than_any_path_is_refused_without_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let mut at = rustix::fs::open(dir.path(), rustix::fs::OFlags::RDONLY, 0.into()).unwrap();
    for _ in 0..2500 {
        rustix::fs::mkdirat(&at, "d", 0o755.into()).unwrap();
        at = rustix::fs::openat(&at, "d", rustix::fs::OFlags::RDONLY, 0.into()).unwrap();
    }
    let to = tempfile::tempdir().unwrap();
    let tree = Tree::open(dir.path()).unwrap();
    let request = Copy {
        dir_contents: true,
        create_dest_path: true,
        ..Copy::new("/", "/")
    };
    assert!(copy(&tree, &Tree::open(to.path()).unwrap(), &request).is_err());
    let remove = rootfs::copy::Remove {
        path: "/d".to_owned(),
        allow_not_found: false,
        wildcard: false,
    };
    rootfs::copy::remove(&tree, &remove).unwrap();
    rootfs::copy::remove(&Tree::open(to.path()).unwrap(), &remove).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Unpacks a bomb of a megabyte of zeros in a kilobyte, and of many entries, within these limits.
#[track_caller]
fn add_within(bytes: &[u8], limits: Limits, stopped: bool) -> rootfs::Result<()> {
    let (source, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(source.path().join("a"), bytes).unwrap();
    let request = Copy {
        unpack: true,
        limits,
        stopped: Some(Arc::new(AtomicBool::new(stopped))),
        ..Copy::new("/a", "/to/")
    };
    let request = Copy {
        create_dest_path: true,
        ..request
    };
    let source = Tree::open(source.path()).unwrap();
    copy(&source, &Tree::open(to.path()).unwrap(), &request).map(|_| ())
}

#[test]
fn an_archive_that_grows_past_the_limits_is_given_up() {
    let zeros = "\0".repeat(1 << 20);
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(&archive(&[("zeros", b'0', &zeros, 0o644)]))
        .unwrap();
    let bomb = bomb.finish().unwrap();
    let many = archive(MEMBERS);
    let usual = Limits::default();
    add_within(&bomb, usual, false).unwrap();
    let few_bytes = Limits {
        bytes: 1 << 19,
        ..usual
    };
    let told = add_within(&bomb, few_bytes, false).unwrap_err();
    assert_eq!(told.to_string(), "archive has more than 524288 bytes");
    let few_entries = Limits {
        entries: 2,
        ..usual
    };
    let told = add_within(&many, few_entries, false).unwrap_err();
    assert_eq!(told.to_string(), "archive has more than 2 entries");
    let little_memory = Limits { memory: 8, ..usual };
    let told = add_within(&many, little_memory, false).unwrap_err();
    assert!(matches!(told, Error::ArchiveLimit { .. }), "{told}");
    let told = add_within(&many, usual, true).unwrap_err();
    assert!(matches!(told, Error::Stopped), "{told}");

    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &bomb).unwrap();
    let latest = |limits| {
        let file = fs::File::open(file.path()).unwrap();
        latest_in_archive(file, limits, None)
    };
    assert_eq!(latest(usual).unwrap(), Some(1000));
    assert!(matches!(
        latest(few_bytes).unwrap_err(),
        Error::ArchiveLimit { .. }
    ));
}
