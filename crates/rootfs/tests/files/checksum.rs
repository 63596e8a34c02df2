//! Content checksums of trees and of captured contexts, which must agree.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{Stack, build, can_mount, describe, lines, path_of, set_time};
use rootfs::checksum::{Selection, checksum, layer};
use rootfs::context::Capture;
use rootfs::copy::Owner;
use rootfs::filter::{Filter, FilterState, Verdict};
use rootfs::memo::{FileContent, FileMemo, FileStamp, MemoTable, NoMemo};
use rootfs::{Error, OverlayXattrs, Tree};

/// Returns the checksum of a selection, which a tree and a captured context must agree on.
fn sum(dir: &Path, selection: &Selection) -> Result<[u8; 32], String> {
    let of_tree =
        checksum(&Tree::open(dir).unwrap(), selection, &NoMemo).map_err(|error| error.to_string());
    let capture = Capture::new(dir, None, None).unwrap();
    let of_capture = capture
        .checksum(selection, &NoMemo)
        .map_err(|error| error.to_string());
    assert_eq!(of_tree, of_capture, "{selection:?}");
    of_tree
}

fn tree(lines: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), lines);
    dir
}

const BASE: &str = "d/f file x\nd/g file y 755\nd/s -> f\nd/sub/h file z\nd/p fifo\nother file o";

#[track_caller]
fn check_differs(change: &str) {
    let (a, b) = (tree(BASE), tree(&format!("{BASE}\n{change}")));
    let selection = Selection::path("/d");
    assert_ne!(
        sum(a.path(), &selection),
        sum(b.path(), &selection),
        "{change}"
    );
}

#[track_caller]
fn check_equal(change: &str) {
    let (a, b) = (tree(BASE), tree(&format!("{BASE}\n{change}")));
    let selection = Selection::path("/d");
    assert_eq!(
        sum(a.path(), &selection),
        sum(b.path(), &selection),
        "{change}"
    );
}

#[test]
fn everything_that_a_copy_brings_over_counts() {
    check_differs("d/f file X");
    check_differs("d/new file x");
    check_differs("d/new dir");
    check_differs("d/g gone");
    check_differs("d/f file x 600");
    check_differs("d/f file x 644 1:0");
    check_differs("d/f file x 644 0:1");
    check_differs("d/sub dir 700");
    check_differs("d dir 700");
    check_differs("d/s gone\nd/s -> g");
    check_differs("d/s gone\nd/s file f");
    check_differs("d/f xattr user.k v");
    check_differs("d/sub xattr user.k v");
    check_differs("d/p gone\nd/p dev 1:3");
    check_differs("d/f gone\nd/f file y\nd/g file x 755");
}

#[test]
fn times_and_other_files_do_not_count() {
    check_equal("d/f time 5\nd/sub time 6\nd time 7\nd/s time 8");
    check_equal("other file changed\nd2/x file x");
    check_equal("d/f gone\nd/f file x");
    check_equal("d/sub/k file k\nd/sub/k gone");
}

#[test]
fn a_file_or_directory_is_known_by_what_it_is_not_by_its_name() {
    let a = tree("a/f file x\nb/f file x\nc file x");
    let of = |path: &str| sum(a.path(), &Selection::path(path)).unwrap();
    assert_eq!(of("/a"), of("/b"));
    assert_eq!(of("/a/f"), of("/c"));
    assert_ne!(of("/a"), of("/c"));
}

#[test]
fn names_cannot_be_mistaken_for_each_other() {
    let a = tree("ab/c file x");
    let b = tree("a/bc file x");
    let c = tree("a/b/c file x");
    let all: Vec<_> = [&a, &b, &c]
        .iter()
        .map(|dir| sum(dir.path(), &Selection::path("/")).unwrap())
        .collect();
    assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2]);
}

#[test]
fn contents_only_leaves_the_directory_itself_out() {
    let (a, b) = (tree("d/f file x\nd dir 700"), tree("d/f file x\nd dir 755"));
    let contents = Selection {
        contents_only: true,
        ..Selection::path("/d")
    };
    assert_eq!(sum(a.path(), &contents), sum(b.path(), &contents));
    assert_ne!(
        sum(a.path(), &Selection::path("/d")),
        sum(b.path(), &Selection::path("/d"))
    );
}

#[test]
fn an_owner_given_by_the_step_replaces_those_of_the_files() {
    let (a, b) = (tree("d/f file x 644 3:4"), tree("d/f file x 644"));
    let owned = Selection {
        owner: Some(Owner { uid: 9, gid: 9 }),
        ..Selection::path("/d")
    };
    assert_eq!(sum(a.path(), &owned), sum(b.path(), &owned));
}

#[test]
fn symlinks_are_followed_inside_the_tree_or_stand_for_themselves() {
    let a = tree("l -> /d\nd/f file x\nin -> d/f\nout -> /etc/passwd\nup -> ../../d");
    let follow = |path: &str| Selection {
        follow_symlink: true,
        ..Selection::path(path)
    };
    let of = |selection: Selection| sum(a.path(), &selection);
    assert_eq!(of(follow("/l")), of(Selection::path("/d")));
    assert_eq!(of(follow("/up")), of(Selection::path("/d")));
    assert_eq!(of(follow("/in")), of(Selection::path("/d/f")));
    assert_eq!(of(Selection::path("/l/f")), of(Selection::path("/d/f")));
    assert_ne!(of(Selection::path("/in")), of(Selection::path("/d/f")));
    assert_eq!(
        of(follow("/out")),
        Err("/out: no such file or directory".to_owned())
    );
}

#[test]
fn wildcards_count_the_names_that_match() {
    let a = tree("a1 file x\na2/f file y\nb file z\nsub/a3 file w\nl -> a2");
    let b = tree("a1 file x\na2/f file y\nb file CHANGED\nsub/a3 file w\nl -> a2");
    let c = tree("a1 file x\na2/f file y\na4 file new");
    let wild = |path: &str| Selection {
        wildcard: true,
        follow_symlink: true,
        ..Selection::path(path)
    };
    assert_eq!(sum(a.path(), &wild("/a*")), sum(b.path(), &wild("/a*")));
    assert_ne!(sum(a.path(), &wild("/a*")), sum(c.path(), &wild("/a*")));
    assert_ne!(sum(a.path(), &wild("/b*")), sum(b.path(), &wild("/b*")));
    assert_eq!(sum(a.path(), &wild("/*/a3")), sum(b.path(), &wild("/*/a3")));
    // As COPY has it, whether there is a wildcard or not: a path whose parent is a symlink is a path.
    assert_eq!(sum(a.path(), &wild("/l/f")), sum(a.path(), &wild("/a2/f")));
    assert_eq!(
        sum(a.path(), &wild("/l/f*")),
        sum(a.path(), &wild("/a2/f*"))
    );
    assert_eq!(
        sum(a.path(), &wild("/none*")),
        sum(b.path(), &wild("/neither?"))
    );
    assert!(sum(a.path(), &wild("/no/such*")).is_err());
    sum(a.path(), &wild("/l*")).unwrap();
}

#[derive(Debug)]
struct OnlyC;

impl Filter for OnlyC {
    fn judge(&self, path: &[u8], parent: &FilterState) -> (Verdict, FilterState) {
        let inside = parent.0.is_some() || path.ends_with(b"all");
        let state = FilterState(inside.then(|| Box::from([true])));
        let verdict = match path {
            _ if inside || path.ends_with(b".c") => Verdict::Take,
            path if path.ends_with(b"pruned") => Verdict::Prune,
            _ => Verdict::Descend,
        };
        (verdict, state)
    }
}

#[test]
fn a_filter_leaves_out_what_it_does_not_take() {
    let base = "a.c file x\nsub/b.c file y\nsub/b.o file z\nnone/o file z\npruned/p.c file q\nall/x file w";
    let filtered = Selection {
        filter: Some(Arc::new(OnlyC)),
        ..Selection::path("/")
    };
    let check = |change: &str, same: bool| {
        let (a, b) = (tree(base), tree(&format!("{base}\n{change}")));
        let equal = sum(a.path(), &filtered) == sum(b.path(), &filtered);
        assert_eq!(equal, same, "{change}");
    };
    check("sub/b.o file changed", true);
    check("none/more file changed", true);
    check("none dir 700", true);
    check("pruned/p.c file changed", true);
    check("sub/b.c file changed", false);
    check("sub dir 700", false);
    check("all/x file changed", false);
    check("sub/new.c file n", false);
    // The capture itself may be filtered: what is below is the same selection.
    let dir = tree(base);
    let capture = Capture::new(dir.path(), Some(&OnlyC), None).unwrap();
    assert_eq!(
        capture.checksum(&Selection::path("/"), &NoMemo).unwrap(),
        sum(dir.path(), &filtered).unwrap()
    );
    let paths: Vec<String> = capture
        .files()
        .map(|file| String::from_utf8(file.path).unwrap())
        .collect();
    assert_eq!(paths, ["a.c", "all", "all/x", "sub", "sub/b.c"]);
}

#[test]
fn required_paths_must_be_selected() {
    let a = tree("src/a.c file x\nsrc/b/c file y");
    let require = |path: &str, required: &str| {
        let selection = Selection {
            filter: Some(Arc::new(OnlyC)),
            required: vec![required.to_owned()],
            ..Selection::path(path)
        };
        sum(a.path(), &selection).is_ok()
    };
    assert!(require("/", "/src/a.c"));
    assert!(require("/src", "/src/a.c"));
    assert!(!require("/src", "/src/b"));
    assert!(!require("/", "/nothing"));
    let require = |path: &str, required: &str| {
        let selection = Selection {
            wildcard: true,
            filter: Some(Arc::new(OnlyC)),
            required: vec![required.to_owned()],
            ..Selection::path(path)
        };
        sum(a.path(), &selection).is_ok()
    };
    assert!(require("/", "/src/a.c"));
    assert!(!require("/", "/nothing"));
}

#[test]
fn layers_count_as_they_are_seen() {
    if !can_mount() {
        return;
    }
    let stack = Stack::new(&[
        "d/a file 1\nd/gone file 1\nd/b file 1",
        "d/gone dev 0:0\nd/b file 2",
    ]);
    let mounted = stack.overlay().mount_detached().unwrap();
    for path in ["/", "/d", "/d/b"] {
        let selection = Selection::path(path);
        let merged = checksum(&stack.view(), &selection, &NoMemo).unwrap();
        let kernel = checksum(
            &Tree::open(&path_of(&mounted)).unwrap(),
            &selection,
            &NoMemo,
        )
        .unwrap();
        let plain = tree("d/a file 1\nd/b file 2");
        assert_eq!(merged, kernel);
        assert_eq!(merged, sum(plain.path(), &selection).unwrap());
    }
}

#[test]
fn the_checksum_of_a_layer_counts_overlays_marks() {
    let opaque = |dir: &Path| {
        rustix::fs::lsetxattr(
            dir,
            "trusted.overlay.opaque",
            b"y",
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
    };
    let (a, b, c) = (
        tree("d/f file x"),
        tree("d/f file x\nd/w dev 0:0"),
        tree("d/f file x\nd time 3"),
    );
    let of = |dir: &tempfile::TempDir| layer(dir.path(), OverlayXattrs::Trusted).unwrap();
    assert_ne!(of(&a), of(&b));
    assert_eq!(of(&a), of(&c));
    opaque(&c.path().join("d"));
    assert_ne!(of(&a), of(&c));
}

/// Counts what it is asked and told.
#[derive(Debug, Default)]
pub(crate) struct Counting {
    table: MemoTable,
    recalled: AtomicUsize,
    remembered: AtomicUsize,
}

impl FileMemo for Counting {
    fn recall(&self, stamp: &FileStamp) -> Option<FileContent> {
        let found = self.table.recall(stamp);
        self.recalled
            .fetch_add(usize::from(found.is_some()), Ordering::Relaxed);
        found
    }

    fn remember(&self, stamp: &FileStamp, content: &FileContent) {
        self.remembered.fetch_add(1, Ordering::Relaxed);
        self.table.remember(stamp, content);
    }
}

impl Counting {
    pub(crate) fn next(self) -> Counting {
        Counting {
            table: MemoTable::from_bytes(self.table.to_bytes()),
            ..Counting::default()
        }
    }
}

/// Waits until the file system's clock has passed the stamps of everything made so far.
pub(crate) fn let_files_settle() {
    let probe = tempfile::NamedTempFile::new().unwrap();
    let clock = || {
        fs::write(probe.path(), "x").unwrap();
        let meta = fs::metadata(probe.path()).unwrap();
        meta.ctime() * 1000 + meta.ctime_nsec() / 1_000_000
    };
    let start = clock();
    while clock() < start + 60 {
        std::thread::yield_now();
    }
}

fn capture_sum(dir: &Path, memo: &dyn FileMemo) -> [u8; 32] {
    Capture::new(dir, None, None)
        .unwrap()
        .checksum(&Selection::path("/"), memo)
        .unwrap()
}

#[test]
fn unchanged_files_are_not_read_again_and_changed_ones_are() {
    let dir = tree("a file x\nb file y\nd/c file z");
    let memo = Counting::default();
    capture_sum(dir.path(), &memo);
    assert_eq!(
        memo.remembered.into_inner(),
        0,
        "files that were just written are racy"
    );

    let_files_settle();
    let memo = Counting::default();
    let first = capture_sum(dir.path(), &memo);
    assert_eq!(memo.remembered.load(Ordering::Relaxed), 5);
    let memo = memo.next();
    assert_eq!(capture_sum(dir.path(), &memo), first);
    assert_eq!(memo.recalled.load(Ordering::Relaxed), 5);
    let of_tree = checksum(
        &Tree::open(dir.path()).unwrap(),
        &Selection::path("/"),
        &memo,
    )
    .unwrap();
    assert_eq!(of_tree, first);

    // Same size, same modification time.
    let path = dir.path().join("a");
    let modified = fs::metadata(&path).unwrap();
    fs::write(&path, "Y").unwrap();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(modified.modified().unwrap())
        .unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().mtime_nsec(),
        modified.mtime_nsec()
    );
    assert_ne!(capture_sum(dir.path(), &memo), first);
}

#[test]
fn renames_and_edits_through_hard_links_are_noticed() {
    let dir = tree("a file 1\nb file 2\nc file 3\nlink = c");
    let_files_settle();
    let memo = Counting::default();
    let first = capture_sum(dir.path(), &memo);
    let memo = memo.next();
    let rename =
        |from: &str, to: &str| fs::rename(dir.path().join(from), dir.path().join(to)).unwrap();
    rename("a", "t");
    rename("b", "a");
    rename("t", "b");
    let swapped = capture_sum(dir.path(), &memo);
    assert_ne!(swapped, first);
    assert_eq!(swapped, capture_sum(dir.path(), &NoMemo));
    fs::File::options()
        .write(true)
        .open(dir.path().join("link"))
        .unwrap()
        .write_at(b"4", 0)
        .unwrap();
    assert_eq!(
        capture_sum(dir.path(), &memo),
        capture_sum(dir.path(), &NoMemo)
    );
    assert_ne!(capture_sum(dir.path(), &memo), swapped);
}

#[test]
fn a_change_within_the_tick_of_the_clock_is_never_missed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, "0000").unwrap();
    let mut memo = Counting::default();
    for round in 1..200 {
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_at(format!("{round:04}").as_bytes(), 0).unwrap();
        set_time(&path, 1_000_000);
        let with_memo = capture_sum(dir.path(), &memo);
        assert_eq!(with_memo, capture_sum(dir.path(), &NoMemo), "round {round}");
        memo = memo.next();
    }
}

#[test]
fn what_is_staged_is_what_the_checksum_is_of() {
    let dir = tree(
        "d/f file x 600 3:4\nd/g = d/f\nd/s -> f\nd/sub dir 711\nd/sub/h file z 755\nd/sub xattr user.k v\nd/f xattr user.f w\n\
         d/p fifo\nunused file u\nl -> d/sub\nd/f time 1234\nd/sub time 99",
    );
    let owner = Some(Owner { uid: 0, gid: 0 });
    let capture = Capture::new(dir.path(), None, owner).unwrap();
    let selections = [
        Selection::path("/d"),
        Selection {
            follow_symlink: true,
            ..Selection::path("/l/h")
        },
    ];
    let before: Vec<_> = selections
        .iter()
        .map(|one| capture.checksum(one, &NoMemo).unwrap())
        .collect();
    let staged = tempfile::tempdir().unwrap();
    let memo = Counting::default();
    let report = capture
        .stage(&selections, staged.path(), &memo, None)
        .unwrap();
    assert_eq!((report.files, report.bytes), (6, 2));
    assert_eq!(
        describe(staged.path()),
        lines(
            "d dir 755\nd/f file x 600 user.f=w\nd/g = d/f user.f=w\nd/p fifo 644\nd/s -> f\nd/sub dir 711 user.k=v\n\
             d/sub/h file z 755\nl -> d/sub"
        )
    );
    assert_eq!(
        fs::metadata(staged.path().join("d/f")).unwrap().mtime(),
        1234
    );
    assert_eq!(
        fs::metadata(staged.path().join("d/sub")).unwrap().mtime(),
        99
    );
    let after: Vec<_> = selections
        .iter()
        .map(|one| capture.checksum(one, &NoMemo).unwrap())
        .collect();
    assert_eq!(before, after);
    let of_stage: Vec<_> = selections
        .iter()
        .map(|one| sum(staged.path(), one).unwrap())
        .collect();
    assert_eq!(before, of_stage);
}

#[test]
fn a_change_after_the_walk_is_in_the_stage_and_its_checksum_or_in_neither() {
    let dir = tree("f file old\ng file same\nh file gone-later");
    let selection = Selection::path("/f");
    let capture = Capture::new(dir.path(), None, None).unwrap();
    let before = capture.checksum(&selection, &NoMemo).unwrap();
    fs::write(dir.path().join("f"), "new and longer").unwrap();
    assert!(matches!(
        capture.verify(&selection),
        Err(Error::Changed { .. })
    ));
    capture.verify(&Selection::path("/g")).unwrap();

    let staged = tempfile::tempdir().unwrap();
    capture
        .stage(
            std::slice::from_ref(&selection),
            staged.path(),
            &NoMemo,
            None,
        )
        .unwrap();
    let after = capture.checksum(&selection, &NoMemo).unwrap();
    assert_ne!(before, after);
    assert_eq!(after, sum(staged.path(), &selection).unwrap());

    fs::write(dir.path().join("f"), "newer").unwrap();
    assert_eq!(capture.checksum(&selection, &NoMemo).unwrap(), after);

    fs::remove_file(dir.path().join("h")).unwrap();
    let gone = capture.checksum(&Selection::path("/h"), &NoMemo);
    assert!(matches!(gone, Err(Error::Changed { .. })));
}

#[test]
fn a_file_swapped_for_a_symlink_after_the_walk_is_not_followed() {
    let secret = tree("secret file s");
    let dir = tree("f file x\nd/g file y");
    let capture = Capture::new(dir.path(), None, None).unwrap();
    fs::remove_file(dir.path().join("f")).unwrap();
    std::os::unix::fs::symlink(secret.path().join("secret"), dir.path().join("f")).unwrap();
    fs::remove_dir_all(dir.path().join("d")).unwrap();
    std::os::unix::fs::symlink(secret.path(), dir.path().join("d")).unwrap();
    fs::write(secret.path().join("g"), "outside").unwrap();
    for path in ["/f", "/d/g"] {
        let selection = Selection::path(path);
        assert!(
            matches!(
                capture.checksum(&selection, &NoMemo),
                Err(Error::Changed { .. })
            ),
            "{path}"
        );
        let staged = tempfile::tempdir().unwrap();
        let result = capture.stage(&[selection], staged.path(), &NoMemo, None);
        assert!(matches!(result, Err(Error::Changed { .. })), "{path}");
    }
}

#[test]
fn files_that_never_stand_still_are_staged_as_their_checksum_says() {
    use std::sync::atomic::AtomicBool;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, vec![0; 300_000]).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = fs::File::options().write(true).open(&path).unwrap();
            let mut byte = 0_u8;
            while !stop.load(Ordering::Relaxed) {
                byte = byte.wrapping_add(1);
                file.write_at(&[byte; 4096], u64::from(byte) * 1000)
                    .unwrap();
                file.set_len(200_000 + u64::from(byte) * 500).unwrap();
            }
        });
        for _ in 0..20 {
            let capture = Capture::new(dir.path(), None, None).unwrap();
            let all = Selection::path("/");
            let staged = tempfile::tempdir().unwrap();
            let memo = Counting::default();
            let result = capture.stage(std::slice::from_ref(&all), staged.path(), &memo, None);
            let sums = result.and_then(|_| {
                Ok((
                    capture.checksum(&all, &NoMemo)?,
                    checksum(&Tree::open(staged.path())?, &all, &NoMemo)?,
                ))
            });
            stop.store(sums.is_err(), Ordering::Relaxed);
            let (of_capture, of_stage) = sums.unwrap();
            stop.store(of_capture != of_stage, Ordering::Relaxed);
            assert_eq!(of_capture, of_stage);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_file_swapped_for_a_device_is_not_read_for_ever() {
    let dir = tree("f file x");
    let capture = Capture::new(dir.path(), None, None).unwrap();
    build(dir.path(), "f gone\nf dev 1:5");
    let selection = Selection::path("/f");
    assert!(matches!(
        capture.checksum(&selection, &NoMemo),
        Err(Error::Changed { .. })
    ));
    let staged = tempfile::tempdir().unwrap();
    assert!(matches!(
        capture.stage(&[selection], staged.path(), &NoMemo, None),
        Err(Error::Changed { .. })
    ));
}
