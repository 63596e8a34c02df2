//! Copies, each to three forms of one destination.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::support::{Stack, can_mount, describe, lines, on_each_form, source};
use rootfs::Tree;
use rootfs::copy::{Copy, LinkPolicy, ModeChange, Owner, Powers, Timestamp, Wildcard, copy};
use rootfs::filter::{Filter, FilterState, Verdict};

#[track_caller]
fn check_copy(from: &str, layers: &[&str], request: &Copy, expect: &str) {
    let from = source(from);
    let tree = Tree::open(from.path()).unwrap();
    let result = on_each_form(layers, |dest| copy(&tree, dest, request).map(|_| ()));
    assert_eq!(result.unwrap(), lines(expect));
}

#[track_caller]
fn check_failure(from: &str, layers: &[&str], request: &Copy, expect: &str) {
    let from = source(from);
    let tree = Tree::open(from.path()).unwrap();
    let result = on_each_form(layers, |dest| copy(&tree, dest, request).map(|_| ()));
    assert_eq!(result.unwrap_err(), expect);
}

/// A copy as the Dockerfile frontend makes it.
fn dockerfile_copy(from: &str, to: &str) -> Copy {
    Copy {
        follow_symlink: true,
        dir_contents: true,
        create_dest_path: true,
        wildcard: Wildcard::Required,
        ..Copy::new(from, to)
    }
}

#[test]
fn a_file_goes_to_a_name_or_into_a_directory() {
    check_copy(
        "a file x 640",
        &[""],
        &dockerfile_copy("/a", "/b"),
        "b file x 640",
    );
    check_copy(
        "a file x",
        &[""],
        &dockerfile_copy("/a", "/b/"),
        "b dir 755\nb/a file x 644",
    );
    check_copy(
        "a file x",
        &["b dir 700"],
        &dockerfile_copy("/a", "/b"),
        "b dir 700\nb/a file x 644",
    );
    check_copy(
        "a file x",
        &["b dir 1777"],
        &dockerfile_copy("/a", "/b/c/"),
        "b dir 1777\nb/c dir 755\nb/c/a file x 644",
    );
    check_copy(
        "a file x",
        &["b file old"],
        &dockerfile_copy("/a", "/b"),
        "b file x 644",
    );
    check_copy(
        "a file x",
        &[""],
        &dockerfile_copy("/a", "/"),
        "a file x 644",
    );
    check_copy(
        "a file x",
        &[""],
        &dockerfile_copy("/a", "/."),
        "a file x 644",
    );
}

#[test]
fn a_directory_gives_its_contents_or_itself() {
    let from = "d dir 700\nd/sub dir 750\nd/sub/f file x 600\nd/g file y";
    check_copy(
        from,
        &[""],
        &dockerfile_copy("/d", "/to"),
        "to dir 755\nto/g file y 644\nto/sub dir 750\nto/sub/f file x 600",
    );
    check_copy(
        from,
        &["to dir 711\nto/sub dir 777\nto/sub/old file o"],
        &dockerfile_copy("/d", "/to/"),
        "to dir 711\nto/g file y 644\nto/sub dir 750\nto/sub/f file x 600\nto/sub/old file o 644",
    );
    let itself = Copy {
        create_dest_path: true,
        ..Copy::new("/d", "/to")
    };
    check_copy(
        from,
        &[""],
        &itself,
        "to dir 700\nto/g file y 644\nto/sub dir 750\nto/sub/f file x 600",
    );
    check_copy(
        from,
        &["to dir"],
        &itself,
        "to dir 755\nto/d dir 700\nto/d/g file y 644\nto/d/sub dir 750\nto/d/sub/f file x 600",
    );
    check_copy(
        from,
        &[""],
        &dockerfile_copy("/", "/"),
        "d dir 700\nd/g file y 644\nd/sub dir 750\nd/sub/f file x 600",
    );
}

#[test]
fn owners_modes_and_times_can_be_overridden() {
    let from = "d/f file x 600 7:8\nd/s -> f\nd/x file y 4755";
    let request = Copy {
        owner: Some(Owner { uid: 5, gid: 6 }),
        ..dockerfile_copy("/d", "/a/b/")
    };
    check_copy(
        from,
        &[""],
        &request,
        "a dir 755 5:6\na/b dir 755 5:6\na/b/f file x 600 5:6\na/b/s -> f 5:6\na/b/x file y 4755 5:6",
    );
    let keep = dockerfile_copy("/d", "/a/");
    check_copy(
        from,
        &[""],
        &keep,
        "a dir 755\na/f file x 600 7:8\na/s -> f\na/x file y 4755",
    );
    let octal = Copy {
        mode: Some(ModeChange::parse("0711").unwrap()),
        ..keep.clone()
    };
    check_copy(
        from,
        &[""],
        &octal,
        "a dir 711\na/f file x 711 7:8\na/s -> f\na/x file y 711",
    );
    let symbolic = Copy {
        mode: Some(ModeChange::parse("u=rwX,go=rX").unwrap()),
        ..keep
    };
    check_copy(
        from,
        &[""],
        &symbolic,
        "a dir 755\na/f file x 644 7:8\na/s -> f\na/x file y 755",
    );
}

#[test]
fn times_are_those_of_the_source_or_the_given_one() {
    let from = source("d/f file x\nd/sub/g file y\nd/f time 1000\nd/sub time 2000");
    let tree = Tree::open(from.path()).unwrap();
    let modified = |path: &Path| rustix::fs::lstat(path).unwrap().st_mtime;
    let to = tempfile::tempdir().unwrap();
    copy(
        &tree,
        &Tree::open(to.path()).unwrap(),
        &dockerfile_copy("/d", "/to/"),
    )
    .unwrap();
    assert_eq!(modified(&to.path().join("to/f")), 1000);
    assert_eq!(modified(&to.path().join("to/sub")), 2000);

    let to = tempfile::tempdir().unwrap();
    let time = Some(Timestamp {
        seconds: 77,
        nanoseconds: 5,
    });
    let request = Copy {
        time,
        ..dockerfile_copy("/d", "/a/b/")
    };
    copy(&tree, &Tree::open(to.path()).unwrap(), &request).unwrap();
    for path in ["a", "a/b", "a/b/f", "a/b/sub", "a/b/sub/g"] {
        assert_eq!(modified(&to.path().join(path)), 77, "{path}");
    }
}

#[test]
fn symlinks_in_the_destination_lead_inside_it() {
    let outside = tempfile::tempdir().unwrap();
    let absolute = outside.path().display();
    let layers = format!(
        "out -> {absolute}\nup -> ../../../../../../x\nabs -> /real\nreal dir 700\nloop -> loop"
    );
    let at_target = |request: &Copy, expect: &str| {
        let from = source("f file x");
        let tree = Tree::open(from.path()).unwrap();
        let result =
            on_each_form(&[&layers], |dest| copy(&tree, dest, request).map(|_| ())).unwrap();
        assert!(result.contains(expect), "{result}");
    };
    at_target(&dockerfile_copy("/f", "/abs/"), "real/f file x 644\n");
    at_target(&dockerfile_copy("/f", "/abs/n/"), "real/n/f file x 644\n");
    at_target(&dockerfile_copy("/f", "/up/"), "\nx/f file x 644\n");
    at_target(
        &dockerfile_copy("/f", "/out/"),
        &format!(
            "{}/f file x 644\n",
            absolute.to_string().trim_start_matches('/')
        ),
    );
    assert_eq!(describe(outside.path()), "");
    check_failure(
        "f file x",
        &["loop -> loop"],
        &dockerfile_copy("/f", "/loop/"),
        "too many symbolic links in /loop",
    );
}

#[test]
fn symlinks_in_the_source_lead_inside_it() {
    let secret = tempfile::tempdir().unwrap();
    fs::write(secret.path().join("secret"), "s").unwrap();
    let absolute = secret.path().display();
    let from = format!(
        "a -> {absolute}/secret\nb -> ../../../../..{absolute}\nin -> /d/f\nd/f file x\ndir -> d"
    );
    check_failure(
        &from,
        &[""],
        &dockerfile_copy("/a", "/to"),
        "/a: no such file or directory",
    );
    check_failure(
        &from,
        &[""],
        &dockerfile_copy("/b/secret", "/to"),
        "/b/secret: no such file or directory",
    );
    check_copy(
        &from,
        &[""],
        &dockerfile_copy("/in", "/to/"),
        "to dir 755\nto/in file x 644",
    );
    check_copy(
        &from,
        &[""],
        &dockerfile_copy("/dir", "/to/"),
        "to dir 755\nto/f file x 644",
    );
    check_copy(
        &from,
        &[""],
        &dockerfile_copy("/dir/f", "/to/"),
        "to dir 755\nto/f file x 644",
    );
    let unfollowed = Copy {
        create_dest_path: true,
        ..Copy::new("/in", "/to/")
    };
    check_copy(&from, &[""], &unfollowed, "to dir 755\nto/in -> /d/f");
}

#[test]
fn an_entry_of_another_type_is_in_the_way_or_replaced() {
    let file = dockerfile_copy("/f", "/to/");
    check_failure(
        "f file x",
        &["to/f/old file o"],
        &file,
        "cannot replace directory /to/f with a file",
    );
    let replace = Copy {
        replace: true,
        ..file
    };
    check_copy(
        "f file x",
        &["to/f/old file o"],
        &replace,
        "to dir 755\nto/f file x 644",
    );

    let dir = dockerfile_copy("/d", "/to/");
    check_failure(
        "d/f/n file x",
        &["to/f file o"],
        &dir,
        "cannot copy to non-directory: /to/f",
    );
    check_failure(
        "d/f/n file x",
        &["to/f -> /"],
        &dir,
        "cannot copy to non-directory: /to/f",
    );
    let replace = Copy {
        replace: true,
        ..dir
    };
    check_copy(
        "d/f/n file x",
        &["to/f file o"],
        &replace,
        "to dir 755\nto/f dir 755\nto/f/n file x 644",
    );
    check_copy(
        "d/f/n file x",
        &["to/f -> /"],
        &replace,
        "to dir 755\nto/f dir 755\nto/f/n file x 644",
    );
    // A symlink in the place of a file is replaced in any case.
    check_copy(
        "f file x",
        &["to/f -> /g\ng file y"],
        &dockerfile_copy("/f", "/to/"),
        "g file y 644\nto dir 755\nto/f file x 644",
    );
}

#[test]
fn a_directory_over_removed_layers_does_not_show_what_was_below() {
    let layers = ["to/d/old file o\nto/d/sub/older file p", "to/d/more file m"];
    let from = "s/d file x";
    let replace = Copy {
        replace: true,
        ..dockerfile_copy("/s", "/to/")
    };
    check_copy(from, &layers, &replace, "to dir 755\nto/d file x 644");

    let again = source("t/d/new file n");
    let from = source(from);
    let result = on_each_form(&layers, |dest| {
        copy(&Tree::open(from.path()).unwrap(), dest, &replace)?;
        let request = Copy {
            replace: true,
            ..dockerfile_copy("/t", "/to/")
        };
        copy(&Tree::open(again.path()).unwrap(), dest, &request)?;
        Ok(())
    });
    assert_eq!(
        result.unwrap(),
        lines("to dir 755\nto/d dir 755\nto/d/new file n 644")
    );
}

#[test]
fn parents_that_lower_layers_have_keep_what_they_are() {
    let layers = [
        "a dir 700",
        "a dir 711 3:4\na xattr user.k v\na/b dir 1777\na/b/c dir 700",
        "z dir",
    ];
    check_copy(
        "f file x",
        &layers,
        &dockerfile_copy("/f", "/a/b/c/d/"),
        "a dir 711 3:4 user.k=v\na/b dir 1777\na/b/c dir 700\na/b/c/d dir 755\na/b/c/d/f file x 644\nz dir 755",
    );
}

#[test]
fn hard_links_special_files_and_xattrs_come_along() {
    check_copy(
        "d/a file x\nd/sub/b = d/a\nd/c = d/a\nd/p fifo\nd/n dev 1:3\nd/a xattr user.k v\nd/sub xattr user.dir w",
        &[""],
        &dockerfile_copy("/d", "/to/"),
        "to dir 755\nto/a file x 644 user.k=v\nto/c = to/a user.k=v\nto/n dev 1:3 600\nto/p fifo 644\n\
         to/sub dir 755 user.dir=w\nto/sub/b = to/a user.k=v",
    );
}

#[test]
fn a_whiteout_is_never_copied() {
    let from = source("d/a file x\nd/w dev 0:0");
    let tree = Tree::open(from.path()).unwrap();
    let to = Stack::new(&["w file y"]);
    let error = copy(&tree, &to.writable(), &dockerfile_copy("/d", "/")).unwrap_err();
    assert_eq!(error.to_string(), "failed to create /w");
}

#[test]
fn wildcards_match_names_and_nothing_is_an_error_or_not() {
    let from = "a1 file x\na2/f file y\nb1 file z\nsub/a3 file w\nl -> a2";
    check_copy(
        from,
        &[""],
        &dockerfile_copy("/a*", "/to/"),
        "to dir 755\nto/a1 file x 644\nto/f file y 644",
    );
    check_copy(
        from,
        &[""],
        &dockerfile_copy("/*/a3", "/to/"),
        "to dir 755\nto/a3 file w 644",
    );
    check_copy(
        from,
        &[""],
        &dockerfile_copy("/l/*", "/to/"),
        "to dir 755\nto/f file y 644",
    );
    check_failure(
        from,
        &[""],
        &dockerfile_copy("/x*", "/to/"),
        "/x*: no such file or directory",
    );
    let may_be_empty = Copy {
        wildcard: Wildcard::MayBeEmpty,
        ..dockerfile_copy("/x*", "/to/")
    };
    check_copy(from, &["k file k"], &may_be_empty, "k file k 644");
}

/// Takes files whose name ends in a word, and directories only for their sake.
#[derive(Debug)]
struct EndsIn(&'static str);

impl Filter for EndsIn {
    fn judge(&self, path: &[u8], _parent: &FilterState) -> (Verdict, FilterState) {
        let verdict = match path {
            path if path.ends_with(self.0.as_bytes()) => Verdict::Take,
            path if path.ends_with(b"pruned") => Verdict::Prune,
            _ => Verdict::Descend,
        };
        (verdict, FilterState::default())
    }
}

#[test]
fn a_filter_takes_what_it_takes_and_makes_parents_only_for_it() {
    let from = "d/a.c file x\nd/a.o file y\nd/sub dir 711\nd/sub/b.c file z\nd/empty dir\nd/none/c.o file o\nd/pruned/p.c file p";
    let request = Copy {
        filter: Some(Arc::new(EndsIn(".c"))),
        ..dockerfile_copy("/d", "/to/")
    };
    check_copy(
        from,
        &[""],
        &request,
        "to dir 755\nto/a.c file x 644\nto/sub dir 711\nto/sub/b.c file z 644",
    );
}

#[test]
fn many_files_are_copied_over_threads() {
    let from = tempfile::tempdir().unwrap();
    for dir in 0..20 {
        let dir = from.path().join(format!("d{dir}"));
        fs::create_dir(&dir).unwrap();
        (0..150)
            .for_each(|file| fs::write(dir.join(format!("f{file}")), "x".repeat(file)).unwrap());
    }
    let to = tempfile::tempdir().unwrap();
    let report = copy(
        &Tree::open(from.path()).unwrap(),
        &Tree::open(to.path()).unwrap(),
        &dockerfile_copy("/", "/"),
    )
    .unwrap();
    assert_eq!(report.entries, 20 + 20 * 150);
    assert_eq!(describe(from.path()), describe(to.path()));
}

#[test]
fn a_source_of_layers_is_seen_merged() {
    if !can_mount() {
        return;
    }
    let stack = Stack::new(&[
        "d/a file 1\nd/b file 1\nd/gone file 1\nd/opaque/x file 1",
        "d/b file 2\nd/gone dev 0:0\nd/opaque/y file 2",
    ]);
    let opaque = stack.lowers[1].join("d/opaque");
    rustix::fs::lsetxattr(
        &opaque,
        "trusted.overlay.opaque",
        b"y",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    let to = tempfile::tempdir().unwrap();
    copy(
        &stack.view(),
        &Tree::open(to.path()).unwrap(),
        &dockerfile_copy("/d", "/"),
    )
    .unwrap();
    assert_eq!(
        describe(to.path()),
        lines("a file 1 644\nb file 2 644\nopaque dir 755\nopaque/y file 2 644")
    );
    assert_eq!(
        stack.describe(),
        lines("d dir 755\nd/a file 1 644\nd/b file 2 644\nd/opaque dir 755\nd/opaque/y file 2 644")
    );
}

#[test]
fn files_are_linked_only_where_nothing_about_them_changes() {
    let from = Stack::new(&["d/same file x\nd/owned file y 644 3:3\nd/noted file z"]);
    rustix::fs::lsetxattr(
        from.lowers[0].join("d/noted"),
        "trusted.overlay.origin",
        b"o",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    let to = tempfile::tempdir().unwrap();
    let request = Copy {
        link: LinkPolicy::Allowed,
        owner: Some(Owner { uid: 0, gid: 0 }),
        ..dockerfile_copy("/d", "/")
    };
    let report = copy(&from.view(), &Tree::open(to.path()).unwrap(), &request);
    let report = report.unwrap();
    assert_eq!(
        report.linked,
        u64::from(
            rustix::fs::stat(to.path()).unwrap().st_dev
                == rustix::fs::stat(from.dir.path()).unwrap().st_dev
        )
    );
    assert_eq!(
        describe(to.path()),
        lines("noted file z 644\nowned file y 644\nsame file x 644")
    );
}

#[test]
fn a_source_that_is_given_up_moves_by_whole_directories() {
    if !can_mount() {
        return;
    }
    let from =
        source("a/one file 1 640\na/deep/two file 2\na/link -> one\nb/three file 3\nfour file 4");
    fs::hard_link(from.path().join("four"), from.path().join("b/again")).unwrap();
    let inode = |path: &Path| rustix::fs::stat(path).unwrap().st_ino;
    let before = inode(&from.path().join("a/deep/two"));
    let to = Stack::new(&["dest/b/there file x"]);
    let request = Copy {
        link: LinkPolicy::Moved,
        ..dockerfile_copy("/", "/dest")
    };
    copy(&Tree::open(from.path()).unwrap(), &to.writable(), &request).unwrap();
    let upper = to.upper().join("dest");
    if rustix::fs::stat(from.path()).unwrap().st_dev == rustix::fs::stat(&upper).unwrap().st_dev {
        assert_eq!(inode(&upper.join("a/deep/two")), before);
        assert!(!from.path().join("a").exists());
    }
    assert_eq!(inode(&upper.join("four")), inode(&upper.join("b/again")));
    assert_eq!(
        to.describe(),
        lines(
            "dest dir 755\ndest/a dir 755\ndest/a/deep dir 755\ndest/a/deep/two file 2 644\n\
             dest/a/link -> one\ndest/a/one file 1 640\ndest/b dir 755\ndest/b/again file 4 644\n\
             dest/b/there file x 644\ndest/b/three file 3 644\ndest/four = dest/b/again"
        )
    );
}

#[test]
fn a_moved_source_gets_what_the_copy_asks_for() {
    let from = source("a/one file 1\na/two file 2\nb/three file 3");
    let to = tempfile::tempdir().unwrap();
    let request = Copy {
        link: LinkPolicy::Moved,
        mode: Some(ModeChange::Set(0o600)),
        ..dockerfile_copy("/", "/")
    };
    copy(
        &Tree::open(from.path()).unwrap(),
        &Tree::open(to.path()).unwrap(),
        &request,
    )
    .unwrap();
    assert_eq!(
        describe(to.path()),
        lines("a dir 600\na/one file 1 600\na/two file 2 600\nb dir 600\nb/three file 3 600")
    );
}

#[test]
fn holes_stay_holes() {
    let from = tempfile::tempdir().unwrap();
    let file = fs::File::create(from.path().join("f")).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"end", 10 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"mid", 5 << 20).unwrap();
    file.set_len(20 << 20).unwrap();
    let to = tempfile::tempdir().unwrap();
    copy(
        &Tree::open(from.path()).unwrap(),
        &Tree::open(to.path()).unwrap(),
        &dockerfile_copy("/f", "/f"),
    )
    .unwrap();
    let copied = fs::read(to.path().join("f")).unwrap();
    assert_eq!(copied, fs::read(from.path().join("f")).unwrap());
    assert!(rustix::fs::stat(to.path().join("f")).unwrap().st_blocks < 1024);
}

#[test]
fn without_create_dest_path_the_parent_must_be_there() {
    let request = Copy::new("/a", "/to/b");
    check_failure(
        "a file x",
        &[""],
        &request,
        "/to/b: no such file or directory",
    );
    check_copy(
        "a file x",
        &["to dir"],
        &request,
        "to dir 755\nto/b file x 644",
    );
}

#[test]
fn files_with_power_over_the_machine_can_be_left_behind() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    let from = source("plain file x 644\nprogram file x 755\ndir dir 755");
    let program = from.path().join("program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o6755)).unwrap();
    let device = from.path().join("dir/null");
    let null = rustix::fs::makedev(1, 3);
    let mode = Mode::from_raw_mode(0o666);
    if mknodat(CWD, &device, FileType::CharacterDevice, mode, null).is_err() {
        println!("skipped: no device node can be made here");
        return;
    }
    let tree = Tree::open(from.path()).unwrap();
    for (powers, mode, left_out) in [
        (Powers::Kept, 0o6755, 0),
        (Powers::NoDevices, 0o6755, 1),
        (Powers::Dropped, 0o755, 1),
    ] {
        let to = tempfile::tempdir().unwrap();
        let mut wanted = Copy::new("/", "/");
        wanted.dir_contents = true;
        wanted.powers = powers;
        let report = copy(&tree, &Tree::open(to.path()).unwrap(), &wanted).unwrap();
        assert_eq!(report.left_out, left_out, "{powers:?}");
        let copied = fs::metadata(to.path().join("program")).unwrap();
        assert_eq!(copied.mode() & 0o7777, mode, "{powers:?}");
        let is_there = fs::symlink_metadata(to.path().join("dir/null")).is_ok();
        assert_eq!(is_there, left_out == 0, "{powers:?}");
        assert!(to.path().join("plain").exists());
    }
}

#[test]
fn threads_that_write_the_first_file_of_a_directory_share_it() {
    if !can_mount() {
        return;
    }
    let mut tree = String::new();
    for outer in 0..6 {
        for inner in 0..6 {
            for file in 0..3 {
                tree += &format!("d/s{outer}/t{inner}/f{file} file x\n");
            }
        }
    }
    let from = source(&tree);
    for _ in 0..20 {
        let to = Stack::new(&[&tree]);
        let request = dockerfile_copy("/d", "/d");
        copy(&Tree::open(from.path()).unwrap(), &to.writable(), &request).unwrap();
    }
}

#[test]
fn matches_that_lead_to_one_file_are_files_of_their_own() {
    let moved = |from: &str, pattern: &str| {
        let from = source(from);
        let to = tempfile::tempdir().unwrap();
        let request = Copy {
            link: LinkPolicy::Moved,
            ..dockerfile_copy(pattern, "/o/")
        };
        let dest = Tree::open(to.path()).unwrap();
        copy(&Tree::open(from.path()).unwrap(), &dest, &request).unwrap();
        describe(to.path())
    };
    assert_eq!(
        moved("l -> l.1\nl.1 -> l.1.2\nl.1.2 file x", "/l*"),
        lines("o dir 755\no/l file x 644\no/l.1 file x 644\no/l.1.2 file x 644")
    );
    assert_eq!(
        moved("a file x\nb = a", "/*"),
        lines("o dir 755\no/a file x 644\no/b file x 644")
    );
    assert_eq!(
        moved("d0 -> d2/sub\nd2/sub/four file 4", "/d*"),
        lines("o dir 755\no/four file 4 644\no/sub dir 755\no/sub/four file 4 644")
    );
    assert_eq!(
        moved("d/a file x\nd/b = d/a", "/d*"),
        lines("o dir 755\no/a file x 644\no/b = o/a")
    );
}

#[test]
fn new_directories_take_the_setgid_bit_over() {
    if !can_mount() {
        return;
    }
    let from = source("f file x");
    let to = Stack::new(&["o dir 2775 0:50"]);
    let request = dockerfile_copy("/f", "/o/w/v/");
    copy(&Tree::open(from.path()).unwrap(), &to.writable(), &request).unwrap();
    assert_eq!(
        to.describe(),
        lines("o dir 2775 0:50\no/w dir 2755 0:50\no/w/v dir 2755 0:50\no/w/v/f file x 644")
    );
}
