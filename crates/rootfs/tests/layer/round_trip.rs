//! Layers written and unpacked again, and what others make of them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rootfs::compress::{CompressOptions, Compression};
use rootfs::diff::{DiffOptions, Diffed, TimePrecision, diff_layer, write_layer};
use rootfs::{Error, Form, LayerDir, OverlayXattrs, Tree};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use crate::support::*;

fn tar_of(
    layer: &Path,
    lowers: Option<&Tree>,
    options: &DiffOptions,
) -> Result<(Vec<u8>, Diffed), Error> {
    let mut tar = Vec::new();
    let compress = CompressOptions::new(Compression::Uncompressed);
    let written = write_layer(
        &LayerDir::open(layer).unwrap(),
        lowers,
        options,
        &compress,
        &mut tar,
    )?;
    assert_eq!(written.blob, oci::Digest::sha256_of(&tar));
    assert_eq!(written.blob, written.layer.diff_id);
    assert_eq!(written.blob_size, tar.len() as u64);
    Ok((tar, written.layer))
}

fn options() -> DiffOptions {
    let mut options = DiffOptions::new(OVERLAY);
    options.content_id = true;
    options
}

/// Names of the entries of a tar, with what they are.
fn names(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| String::from_utf8_lossy(&entry.unwrap().path_bytes()).into_owned())
        .collect()
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn whiteout(path: &Path) {
    rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

fn make_opaque(path: &Path) {
    rustix::fs::setxattr(path, "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
}

/// Makes a tree of all kinds of things, as the seed has it.
fn grow(root: &Path, seed: u64) {
    let mut random = Random(seed);
    let mut dirs = vec![root.to_path_buf()];
    let mut files: Vec<PathBuf> = Vec::new();
    for number in 0..120 {
        let parent = dirs[random.below(dirs.len() as u64) as usize].clone();
        let name = match random.below(12) {
            0 => format!("{}{number}", "long".repeat(40)),
            1 => format!("ümläut {number}\n"),
            _ => format!("{:x}{number}", random.below(256)),
        };
        let path = parent.join(name);
        match random.below(12) {
            0 | 1 => {
                fs::create_dir(&path).unwrap();
                if random.below(4) == 0 {
                    make_opaque(&path);
                }
                dirs.push(path.clone());
            }
            2 => std::os::unix::fs::symlink(
                format!("../{}", "t".repeat(random.below(200) as usize + 1)),
                &path,
            )
            .unwrap(),
            3 => rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap(),
            4 => {
                let device = rustix::fs::makedev(
                    random.below(4000) as u32 + 1,
                    random.below(1 << 20) as u32,
                );
                let kind = if random.below(2) == 0 {
                    FileType::CharacterDevice
                } else {
                    FileType::BlockDevice
                };
                rustix::fs::mknodat(CWD, &path, kind, Mode::RUSR, device).unwrap();
            }
            5 if !files.is_empty() => {
                fs::hard_link(&files[random.below(files.len() as u64) as usize], &path).unwrap();
                continue;
            }
            6 => {
                whiteout(&path);
                continue;
            }
            _ => {
                let length = match random.below(10) {
                    0 => random.below(3 << 20),
                    1 => 0,
                    2 => 512 * random.below(5),
                    _ => random.below(5000),
                };
                fs::write(&path, random.bytes(length as usize)).unwrap();
                files.push(path.clone());
            }
        }
        let (uid, gid) = (random.below(3) as u32 * 1_500_000, random.below(3) as u32);
        rustix::fs::chownat(
            CWD,
            &path,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .unwrap();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if !kind.is_symlink() {
            let modes = [0o644, 0o755, 0o600, 0o4755, 0o2711, 0o1777, 0];
            let mode = modes[random.below(modes.len() as u64) as usize];
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        }
        if (kind.is_file() || kind.is_dir()) && random.below(5) == 0 {
            let length = random.below(60) as usize;
            let value = random.bytes(length);
            rustix::fs::setxattr(&path, "user.some", &value, XattrFlags::empty()).unwrap();
        }
    }
    for path in dirs.iter().chain(&files) {
        if path != root {
            let nanoseconds = if random.below(2) == 0 {
                0
            } else {
                random.below(1_000_000_000) as i64
            };
            set_time(path, random.below(1 << 31) as i64 - (1 << 20), nanoseconds);
        }
    }
    set_time(root, 0, 0);
}

/// Tells a tree with times, contents and which names are one file.
fn whole(root: &Path) -> Vec<String> {
    let mut first_names = std::collections::BTreeMap::new();
    let lines = tree(root);
    let mut told: Vec<String> = lines.lines().map(str::to_owned).collect();
    let mut pending = vec![root.to_path_buf()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let first = first_names
            .entry(meta.ino())
            .or_insert_with(|| path.clone())
            .clone();
        let content = if meta.is_file() {
            oci::Digest::sha256_of(&fs::read(&path).unwrap()).to_string()
        } else {
            String::new()
        };
        let inside = |path: &Path| path.strip_prefix(root).unwrap().to_owned();
        let time = if meta.file_type().is_dir() || meta.is_file() {
            mtime(&path)
        } else {
            (0, 0)
        };
        told.push(format!(
            "{:?} {time:?} {:?} {content}",
            inside(&path),
            inside(&first)
        ));
        if meta.is_dir() {
            let mut children: Vec<_> = fs::read_dir(&path)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            children.sort();
            pending.extend(children.into_iter().rev());
        }
    }
    told
}

#[test]
fn an_unpacked_layer_is_the_one_that_was_written() {
    if !is_root() {
        return;
    }
    for seed in 1..25 {
        let source = tempfile::tempdir().unwrap();
        fs::set_permissions(source.path(), Permissions::from_mode(0o755)).unwrap();
        grow(source.path(), seed * 0x1234_5678_9abc);
        let (tar, diffed) = tar_of(source.path(), None, &options()).unwrap();
        let place = Place::new();
        let applied = place
            .apply(&tar[..])
            .unwrap_or_else(|error| panic!("{seed}: {}", told(&error)));
        let layer = place.path().join("layer");
        assert_eq!(whole(&layer), whole(source.path()), "{seed}");
        assert_eq!(applied.diff_id, diffed.diff_id, "{seed}");
        assert_eq!(applied.entries, diffed.entries, "{seed}");
        assert_eq!(applied.content_size, diffed.content_size, "{seed}");
        assert!(applied.implicit.is_empty(), "{seed}");
        // And once more around.
        let (again, rediffed) = tar_of(&layer, None, &options()).unwrap();
        assert!(again == tar, "{seed}: the tar differs");
        assert_eq!(rediffed, diffed, "{seed}");
    }
}

#[test]
fn a_tar_does_not_depend_on_the_order_in_which_files_were_made() {
    if !is_root() {
        return;
    }
    let make = |names: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, name).unwrap();
            set_time(&path, 5, 0);
        }
        for sub in ["", "a", "a/b", "ab"] {
            set_time(&dir.path().join(sub), 6, 0);
            fs::set_permissions(dir.path().join(sub), Permissions::from_mode(0o755)).unwrap();
        }
        whiteout(&dir.path().join("zz"));
        tar_of(dir.path(), None, &options()).unwrap().0
    };
    let tar = make(&["a/b/c", "ab/x", "a.b", "a/b0", "é"]);
    assert!(tar == make(&["é", "a/b0", "a.b", "ab/x", "a/b/c"]));
    assert_eq!(
        names(&tar),
        [
            ".wh.zz", "a/", "a/b/", "a/b/c", "a/b0", "a.b", "ab/", "ab/x", "é"
        ]
    );
}

#[test]
fn what_is_below_already_is_left_out() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (lower, upper) = (dir.path().join("lower"), dir.path().join("upper"));
    for root in [&lower, &upper] {
        for sub in [
            "same/deep",
            "touched",
            "changed",
            "mode",
            "opaque",
            "replaced",
            "removed",
        ] {
            fs::create_dir_all(root.join(sub)).unwrap();
        }
        for file in [
            "same/deep/file",
            "touched/file",
            "changed/content",
            "changed/size",
            "changed/mode",
            "changed/xattr",
            "kept",
        ] {
            fs::write(root.join(file), "content").unwrap();
            set_time(&root.join(file), 7, 7);
        }
        for link in ["link", "link2"] {
            std::os::unix::fs::symlink("target", root.join(link)).unwrap();
            set_time(&root.join(link), 7, 7);
        }
    }
    let in_upper = |name: &str| upper.join(name);
    // Copies of what was not changed then, and directories that were only gone through.
    set_time(&in_upper("touched/file"), 7, 8);
    fs::write(in_upper("changed/content"), "CONTENT").unwrap();
    set_time(&in_upper("changed/content"), 7, 7);
    fs::write(in_upper("changed/size"), "longer content").unwrap();
    set_time(&in_upper("changed/size"), 7, 7);
    fs::set_permissions(in_upper("changed/mode"), Permissions::from_mode(0o600)).unwrap();
    rustix::fs::setxattr(
        in_upper("changed/xattr"),
        "user.a",
        b"b",
        XattrFlags::empty(),
    )
    .unwrap();
    fs::set_permissions(in_upper("mode"), Permissions::from_mode(0o700)).unwrap();
    fs::remove_file(in_upper("link2")).unwrap();
    std::os::unix::fs::symlink("tarGet", in_upper("link2")).unwrap();
    set_time(&in_upper("link2"), 7, 7);
    // Marks: with something below, and with nothing, as overlay makes them of new directories.
    make_opaque(&in_upper("opaque"));
    fs::create_dir(in_upper("new")).unwrap();
    make_opaque(&in_upper("new"));
    fs::remove_dir(in_upper("removed")).unwrap();
    whiteout(&in_upper("removed"));
    whiteout(&in_upper("never"));
    fs::remove_dir(in_upper("replaced")).unwrap();
    fs::write(in_upper("replaced"), "now a file").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(in_upper("socket")).unwrap();
    // A new name of a file that is below is a file of its own: the copy under the old name is left out.
    fs::write(lower.join("twin"), "twin").unwrap();
    fs::write(in_upper("twin"), "twin").unwrap();
    for root in [&lower, &upper] {
        set_time(&root.join("twin"), 7, 7);
    }
    fs::hard_link(in_upper("twin"), in_upper("twin2")).unwrap();
    for entry in ["", "same", "new"] {
        set_time(&in_upper(entry), 99, 0);
    }

    let lowers = Tree::open_layers(&[&lower], OverlayXattrs::Trusted).unwrap();
    let (tar, _) = tar_of(&upper, Some(&lowers), &options()).unwrap();
    assert_eq!(
        names(&tar),
        [
            ".wh.removed",
            "changed/",
            "changed/content",
            "changed/mode",
            "changed/size",
            "changed/xattr",
            "link2",
            "mode/",
            "new/",
            "opaque/",
            "opaque/.wh..wh..opq",
            "replaced",
            "touched/",
            "touched/file",
            "twin2",
        ]
    );
    // With no layers below nothing is hidden; with none known all marks count.
    let none = Tree::layers(Vec::new(), OverlayXattrs::Trusted);
    let count = |lowers| names(&tar_of(&upper, lowers, &options()).unwrap().0).len();
    assert_eq!(count(Some(&none)), 19);
    assert_eq!(count(None), 23);
}

#[test]
fn the_root_is_written_only_when_it_is_different() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let written = |lowers: Option<&Tree>| names(&tar_of(dir.path(), lowers, &options()).unwrap().0);
    assert!(written(None).is_empty());
    fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
    assert_eq!(written(None), ["./"]);
    let lowers = Tree::open_layers(&[dir.path()], OverlayXattrs::Trusted).unwrap();
    assert!(written(Some(&lowers)).is_empty());
}

#[test]
fn a_name_that_would_be_a_whiteout_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(".wh.x"), "").unwrap();
    let error = tar_of(dir.path(), None, &options()).unwrap_err();
    assert!(
        told(&error).contains(".wh.x cannot be in a layer"),
        "{}",
        told(&error)
    );
    let (tar, _) = tar_of(dir.path(), None, &DiffOptions::new(Form::Plain)).unwrap();
    assert!(names(&tar).contains(&".wh.x".to_owned()));
}

#[test]
fn times_are_clamped_and_cut_as_the_tar_is_written() {
    let dir = tempfile::tempdir().unwrap();
    for (name, seconds, nanoseconds) in [("early", 100, 5), ("edge", 1000, 5), ("late", 5000, 5)] {
        fs::write(dir.path().join(name), "").unwrap();
        set_time(&dir.path().join(name), seconds, nanoseconds);
    }
    let times = |precision, clamp| {
        let mut options = DiffOptions::new(Form::Plain);
        (options.precision, options.clamp) = (precision, clamp);
        let (tar, _) = tar_of(dir.path(), None, &options).unwrap();
        let place = Place::new();
        place
            .apply_with(&tar[..], &rootfs::apply::ApplyOptions::new(Form::Plain))
            .unwrap();
        ["early", "edge", "late"].map(|name| mtime(&place.path().join("layer").join(name)))
    };
    assert_eq!(
        times(TimePrecision::Nanoseconds, None),
        [(100, 5), (1000, 5), (5000, 5)]
    );
    assert_eq!(
        times(TimePrecision::Seconds, None),
        [(100, 0), (1000, 0), (5000, 0)]
    );
    assert_eq!(
        times(TimePrecision::Nanoseconds, Some(1000)),
        [(100, 5), (1000, 0), (1000, 0)]
    );
}

#[test]
fn the_content_id_leaves_times_out_and_nothing_else() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("d/file");
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(&file, vec![1; 3 << 20]).unwrap();
    std::os::unix::fs::symlink("a", dir.path().join("s")).unwrap();
    let id = || diff_layer(&LayerDir::open(dir.path()).unwrap(), None, &options()).unwrap();
    let first = id();
    set_time(&file, 1, 1);
    let touched = id();
    assert_eq!(touched.content_id, first.content_id);
    assert_ne!(touched.diff_id, first.diff_id);
    let mut seen = vec![first.content_id];
    let mut changed = |what: &str| {
        let id = id().content_id;
        assert!(!seen.contains(&id), "{what}");
        seen.push(id);
    };
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    changed("mode");
    std::os::unix::fs::chown(&file, Some(1), None).unwrap();
    changed("owner");
    rustix::fs::setxattr(&file, "user.a", b"b", XattrFlags::empty()).unwrap();
    changed("xattr");
    let mut content = vec![1; 3 << 20];
    content[2 << 20] = 2;
    fs::write(&file, content).unwrap();
    changed("content");
    fs::hard_link(&file, dir.path().join("d/other")).unwrap();
    changed("hard link");
    fs::remove_file(dir.path().join("s")).unwrap();
    std::os::unix::fs::symlink("b", dir.path().join("s")).unwrap();
    changed("symlink");
    whiteout(&dir.path().join("w"));
    changed("whiteout");
    make_opaque(&dir.path().join("d"));
    changed("opaque");
}

#[test]
fn gnu_tar_and_python_read_what_is_written() {
    if !is_root() {
        return;
    }
    for program in ["tar", "python3"] {
        if Command::new(program).arg("--version").output().is_err() {
            println!("skipped: needs {program}");
            return;
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, blob) = (dir.path().join("source"), dir.path().join("layer.tar.gz"));
    fs::create_dir(&source).unwrap();
    grow(&source, 0xfeed);
    let mut options = DiffOptions::new(Form::Plain);
    options.precision = TimePrecision::Nanoseconds;
    let compress = CompressOptions::new(Compression::GZIP);
    let file = fs::File::create(&blob).unwrap();
    let written = write_layer(
        &LayerDir::open(&source).unwrap(),
        None,
        &options,
        &compress,
        file,
    )
    .unwrap();

    let listed = Command::new("tar")
        .args(["-tzf"])
        .arg(&blob)
        .output()
        .unwrap();
    assert!(
        listed.status.success() && listed.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&listed.stderr)
    );
    assert_eq!(
        listed.stdout.split(|byte| *byte == b'\n').count() as u64 - 1,
        written.layer.entries
    );
    let compared = Command::new("tar")
        .args(["-dzf"])
        .arg(&blob)
        .arg("-C")
        .arg(&source)
        .output()
        .unwrap();
    assert!(
        compared.status.success(),
        "{}",
        String::from_utf8_lossy(&compared.stdout)
    );
    let script = "import sys, tarfile\n\
        tar = tarfile.open(sys.argv[1], 'r:gz')\n\
        size = 0\n\
        for member in tar:\n    \
            if member.isreg(): size += len(tar.extractfile(member).read())\n\
        print(len(tar.getmembers()), size)";
    let read = Command::new("python3")
        .args(["-c", script])
        .arg(&blob)
        .output()
        .unwrap();
    let expect = format!("{} {}\n", written.layer.entries, written.layer.content_size);
    assert_eq!(
        String::from_utf8_lossy(&read.stdout),
        expect,
        "{}",
        String::from_utf8_lossy(&read.stderr)
    );
}
