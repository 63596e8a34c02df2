//! Files of a context that an earlier build has copied are linked where they are still the same.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::checksum::{Counting, let_files_settle};
use crate::support::{build, describe};
use rootfs::OverlayXattrs;
use rootfs::checksum::{Census, Selection, census, layer};
use rootfs::context::{Capture, Copies, Earlier, Staged, write_copies};
use rootfs::copy::Owner;
use rootfs::memo::NoMemo;

const XATTRS: OverlayXattrs = OverlayXattrs::Trusted;

fn capture(dir: &Path) -> Capture {
    Capture::new(dir, None, Some(Owner { uid: 0, gid: 0 })).unwrap()
}

fn stage(capture: &Capture, into: &Path, memo: &Counting, earlier: Option<&Earlier>) -> Staged {
    fs::create_dir_all(into).unwrap();
    let all = [Selection::path("/")];
    capture.stage(&all, into, memo, earlier).unwrap()
}

/// A context, and the layer to which `moved/` an earlier build has brought it.
struct Bench {
    dir: tempfile::TempDir,
    memo: Counting,
    census: Census,
    copies: Vec<u8>,
}

impl Bench {
    fn new(lines: &str) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("ctx")).unwrap();
        build(&dir.path().join("ctx"), lines);
        let_files_settle();
        let memo = Counting::default();
        let capture = capture(&dir.path().join("ctx"));
        let layer = dir.path().join("layer");
        fs::create_dir(&layer).unwrap();
        let staged = stage(&capture, &dir.path().join("staged"), &memo, None);
        assert_eq!(staged.linked, 0);
        fs::rename(dir.path().join("staged"), layer.join("moved")).unwrap();
        let census = census(&layer, XATTRS, &staged).unwrap();
        Bench {
            memo: memo.next(),
            copies: write_copies(&capture, &staged, &census),
            census,
            dir,
        }
    }

    fn context(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("ctx").join(name)
    }

    /// Stages again, checks that it is the same as copied afresh, and returns what was linked.
    fn again(self) -> Vec<String> {
        let copies = Copies::from_bytes(self.copies.clone());
        let (fresh, linked) = (
            self.dir.path().join("fresh"),
            self.dir.path().join("linked"),
        );
        let layer = self.dir.path().join("layer");
        let before = describe(&layer);
        let earlier = Earlier::open(&layer, copies).unwrap();
        let capture = capture(&self.context(""));
        stage(&capture, &fresh, &self.memo, None);
        let staged = stage(&capture, &linked, &self.memo, Some(&earlier));
        assert_eq!(describe(&linked), describe(&fresh));
        for path in ["a", "d/b", "d/c"] {
            let time = |dir: &Path| fs::metadata(dir.join(path)).map(|meta| meta.mtime_nsec());
            assert_eq!(time(&linked).ok(), time(&fresh).ok(), "{path}");
        }
        assert_eq!(describe(&layer), before);
        let sum = |dir: &Path| census(dir, XATTRS, &NoMemo).unwrap().checksum;
        assert_eq!(sum(&linked), sum(&fresh));
        assert_eq!(
            census(&linked, XATTRS, &staged).unwrap().checksum,
            sum(&fresh)
        );
        let names = ["a", "d/b", "d/c", "moved/a"].into_iter().filter(|name| {
            let inode = |path: &Path| fs::symlink_metadata(path).map(|meta| meta.ino()).ok();
            let (new, old) = (linked.join(name), layer.join("moved").join(name));
            inode(&new).is_some() && inode(&new) == inode(&old)
        });
        let names: Vec<String> = names.map(str::to_owned).collect();
        assert_eq!(staged.linked, names.len() as u64);
        names
    }
}

const CONTEXT: &str = "a file one\nd/b file two 755\nd/c file three 600\ns -> a";

#[test]
fn what_is_the_same_is_linked() {
    assert_eq!(Bench::new(CONTEXT).again(), ["a", "d/b", "d/c"]);
}

#[test]
fn what_was_written_to_is_copied() {
    let bench = Bench::new(CONTEXT);
    let path = bench.context("a");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "ONE").unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(modified).unwrap();
    assert_eq!(bench.again(), ["d/b", "d/c"]);
}

#[test]
fn what_has_other_attributes_is_copied() {
    let bench = Bench::new(CONTEXT);
    let mode = fs::Permissions::from_mode(0o640);
    fs::set_permissions(bench.context("d/b"), mode).unwrap();
    assert_eq!(bench.again(), ["a", "d/c"]);
}

#[test]
fn what_has_changed_places_is_copied() {
    let bench = Bench::new("d/b file two\nd/c file 3\ne/b file TWO\na file x");
    fs::rename(bench.context("d"), bench.context("t")).unwrap();
    fs::rename(bench.context("e"), bench.context("d")).unwrap();
    fs::rename(bench.context("t"), bench.context("e")).unwrap();
    assert_eq!(bench.again(), ["a"]);
}

#[test]
fn several_names_and_attributes_are_left_to_copies() {
    let bench = Bench::new("a file one\nd/b = a\nd/c file three\nd/c xattr user.k v");
    assert_eq!(bench.again(), [""; 0]);
}

#[test]
fn a_layer_that_is_not_as_it_was_is_no_source() {
    let bench = Bench::new(CONTEXT);
    let moved = bench.dir.path().join("layer/moved");
    fs::remove_file(moved.join("a")).unwrap();
    fs::rename(moved.join("d"), moved.join("e")).unwrap();
    std::os::unix::fs::symlink("e", moved.join("d")).unwrap();
    assert_eq!(bench.again(), [""; 0]);
}

#[test]
fn damaged_copies_are_none() {
    let bench = Bench::new(CONTEXT);
    let bytes = bench.copies;
    assert_ne!(Copies::from_bytes(bytes.clone()), Copies::default());
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert_eq!(Copies::from_bytes(damaged), Copies::default());
        assert_eq!(Copies::from_bytes(bytes[..at].to_vec()), Copies::default());
    }
}

#[test]
fn a_census_says_what_a_walk_would() {
    let bench = Bench::new(&format!("{CONTEXT}\nz = d/c"));
    let path = bench.dir.path().join("layer");
    assert_eq!(bench.census.checksum, layer(&path, XATTRS).unwrap());
    assert_eq!(bench.census.content, 11);
    let names = bench.census.files.iter().map(|(path, _)| path.as_slice());
    assert_eq!(
        names.collect::<Vec<_>>(),
        [&b"moved/a"[..], b"moved/d/b", b"moved/d/c", b"moved/z"]
    );
    let inodes = ["moved/a", "moved/d/b", "moved/d/c", "moved/z"]
        .map(|name| fs::metadata(path.join(name)).unwrap().ino());
    let told: Vec<u64> = bench.census.files.iter().map(|(_, inode)| *inode).collect();
    assert_eq!(told, inodes);
}
