//! What one tree has that another has not.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use crate::diff::is_same_content;
use crate::meta::{self, Kind, Meta};
use crate::resolve::Follow;
use crate::tree::{Dir, Entry, Listed, Tree};
use crate::{OverlayXattrs, Result, RootPath};

/// How a path of the one tree differs from the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Added,
    Modified,
    Removed,
}

/// One path that differs.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Absolute, in the tree.
    pub path: Vec<u8>,
    pub change: Change,
    /// What is there in the first tree.
    pub before: Option<Meta>,
    /// What is there in the second.
    pub after: Option<Meta>,
}

/// The directories of one path in both trees.
struct Pair {
    before: Option<Arc<Dir>>,
    after: Option<Arc<Dir>>,
    /// Names that are still to be looked at, the last one first.
    rest: Vec<(Option<Listed>, Option<Listed>)>,
}

/// Tells `each` what differs between two trees, a directory before what is in it, names in the order of their bytes.
///
/// Below a directory that only one tree has, everything is told. Times count for nothing: files that say the same with
/// the same owner, mode and xattrs are the same.
pub fn compare(before: &Tree, after: &Tree, mut each: impl FnMut(Difference)) -> Result<()> {
    let mut stack = vec![pair(
        Some(Arc::clone(before.root())),
        Some(Arc::clone(after.root())),
    )?];
    // Depth first with an explicit stack: a hostile tree is deeper than any thread's stack.
    while let Some(top) = stack.last_mut() {
        let Some((old, new)) = top.rest.pop() else {
            stack.pop();
            continue;
        };
        let stat = |dir: &Option<Arc<Dir>>, listed: &Option<Listed>| match (dir, listed) {
            (Some(dir), Some(listed)) => dir.stat_listed(listed).map(Some),
            _ => Ok(None),
        };
        let name: CString = match (&old, &new) {
            (Some(listed), _) | (None, Some(listed)) => listed.name.clone(),
            (None, None) => continue,
        };
        let old = stat(&top.before, &old)?;
        let new = stat(&top.after, &new)?;
        let change = match (&old, &new) {
            (None, _) => Some(Change::Added),
            (_, None) => Some(Change::Removed),
            (Some(old), Some(new)) => {
                let side =
                    |dir: &Option<Arc<Dir>>| Arc::clone(dir.as_ref().expect("it was listed"));
                let same = is_same(&side(&top.before), old, &side(&top.after), new, &name)?;
                (!same).then_some(Change::Modified)
            }
        };
        if let Some(change) = change {
            let dir = top.after.as_ref().or(top.before.as_ref());
            each(Difference {
                path: dir.expect("one of them was listed").path_of(&name),
                change,
                before: old.map(|entry| entry.meta),
                after: new.map(|entry| entry.meta),
            });
        }
        let open = |dir: &Option<Arc<Dir>>, entry: &Option<Entry>| match (dir, entry) {
            (Some(dir), Some(entry)) if entry.meta.is_dir() => dir.open_dir(&name, entry).map(Some),
            _ => Ok(None),
        };
        let (old, new) = (open(&top.before, &old)?, open(&top.after, &new)?);
        if old.is_some() || new.is_some() {
            stack.push(pair(old, new)?);
        }
    }
    Ok(())
}

fn pair(before: Option<Arc<Dir>>, after: Option<Arc<Dir>>) -> Result<Pair> {
    let list = |dir: &Option<Arc<Dir>>| dir.as_ref().map_or(Ok(Vec::new()), |dir| dir.list());
    let mut old = list(&before)?.into_iter().peekable();
    let mut new = list(&after)?.into_iter().peekable();
    let mut rest = Vec::new();
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => old.name.cmp(&new.name),
        };
        rest.push(match order {
            Ordering::Less => (old.next(), None),
            Ordering::Greater => (None, new.next()),
            Ordering::Equal => (old.next(), new.next()),
        });
    }
    rest.reverse();
    Ok(Pair {
        before,
        after,
        rest,
    })
}

/// Returns whether two entries say the same.
fn is_same(
    old_dir: &Arc<Dir>,
    old: &Entry,
    new_dir: &Arc<Dir>,
    new: &Entry,
    name: &CStr,
) -> Result<bool> {
    let (a, b) = (&old.meta, &new.meta);
    if (a.device, a.inode) == (b.device, b.inode) {
        return Ok(true);
    }
    if a.kind != b.kind || a.mode != b.mode || a.owner != b.owner {
        return Ok(false);
    }
    match a.kind {
        Kind::Symlink => Ok(old_dir.read_link(name, old)? == new_dir.read_link(name, new)?),
        Kind::Character | Kind::Block => Ok(a.rdev == b.rdev),
        Kind::Fifo | Kind::Socket => Ok(true),
        Kind::Directory => {
            let open = |dir: &Arc<Dir>, entry: &Entry| {
                meta::open_dir(dir.fd_of(entry), name)
                    .map_err(|errno| dir.error("open", name, errno))
            };
            same_xattrs(old_dir, &open(old_dir, old)?, &open(new_dir, new)?, name)
        }
        Kind::File => {
            if a.size != b.size {
                return Ok(false);
            }
            let old = old_dir.open_file(name, old)?;
            let new = new_dir.open_file(name, new)?;
            let content = is_same_content(old.as_fd(), new.as_fd())
                .map_err(|errno| new_dir.error("read", name, errno))?;
            Ok(content && same_xattrs(old_dir, &old, &new, name)?)
        }
    }
}

fn same_xattrs(dir: &Arc<Dir>, old: &OwnedFd, new: &OwnedFd, name: &CStr) -> Result<bool> {
    let read = |file: &OwnedFd| {
        meta::xattrs(file.as_fd()).map_err(|errno| dir.error("read the xattrs of", name, errno))
    };
    Ok(read(old)? == read(new)?)
}

/// A file of a layer that the layers above hide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// Absolute, in the tree.
    pub path: Vec<u8>,
    pub size: u64,
    /// The first layer, counted from the lowest, with which it is no longer seen.
    pub by: usize,
    /// Whether something else is seen in its place then.
    pub replaced: bool,
}

/// Returns for each layer, the lowest first, the files in it that the layers above hide, in the order of their paths.
///
/// A file with several names is hidden once all of them are; it is told by the last of them.
pub fn hidden(layers: &[impl AsRef<Path>], xattrs: OverlayXattrs) -> Result<Vec<Vec<Hidden>>> {
    let last = Tree::open_layers(layers, xattrs)?;
    let mut lost: Vec<Vec<Lost>> = Vec::with_capacity(layers.len());
    for layer in layers {
        let mut files: Vec<Lost> = Vec::new();
        let mut seen: HashSet<(u64, u64)> = HashSet::new();
        for_each_file(&Tree::open(layer.as_ref())?, |path, meta| {
            let id = (meta.device, meta.inode);
            if meta.kind != Kind::File {
                return Ok(());
            }
            let path = RootPath::new(&path)?;
            if is_at(&last, &path, id)?.is_none() {
                seen.insert(id);
                return Ok(());
            }
            let size = meta.size;
            files.push(Lost {
                path,
                id,
                size,
                by: None,
            });
            Ok(())
        })?;
        files.retain(|file| !seen.contains(&file.id));
        lost.push(files);
    }
    // One view at a time is open: there may be more layers than descriptors for all of them.
    for count in 2..=layers.len() {
        let view = Tree::open_layers(&layers[..count], xattrs)?;
        let below = lost[..count - 1].iter_mut().flatten();
        for file in below.filter(|file| file.by.is_none()) {
            file.by = is_at(&view, &file.path, file.id)?.map(|replaced| (count - 1, replaced));
        }
    }
    Ok(lost.into_iter().map(last_names).collect())
}

/// A name of a file that is not seen any more.
struct Lost {
    path: RootPath,
    id: (u64, u64),
    size: u64,
    by: Option<(usize, bool)>,
}

/// Returns `None` where a tree has this very file under a path, else whether it has another one.
fn is_at(tree: &Tree, path: &RootPath, id: (u64, u64)) -> Result<Option<bool>> {
    let found = tree.stat(path, Follow::Parents)?;
    Ok(match found {
        Some(found) if (found.device, found.inode) == id => None,
        found => Some(found.is_some()),
    })
}

/// Keeps of each file the name that was lost last.
fn last_names(files: Vec<Lost>) -> Vec<Hidden> {
    let mut last: BTreeMap<(u64, u64), Hidden> = BTreeMap::new();
    for file in files {
        let (by, replaced) = file.by.unwrap_or_default();
        let hidden = Hidden {
            path: file.path.as_bytes().to_vec(),
            size: file.size,
            by,
            replaced,
        };
        match last.get_mut(&file.id) {
            Some(known) if (known.by, &known.path) >= (by, &hidden.path) => {}
            Some(known) => *known = hidden,
            None => drop(last.insert(file.id, hidden)),
        }
    }
    let mut found: Vec<Hidden> = last.into_values().collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// The files of one layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// How many there are, a file with several names once.
    pub files: usize,
    /// Absolute paths and sizes, the largest first.
    pub largest: Vec<(Vec<u8>, u64)>,
}

/// Returns how many files a layer has, and the largest of them, at most `most`.
pub fn contents(layer: impl AsRef<Path>, most: usize) -> Result<Contents> {
    let mut contents = Contents::default();
    let mut seen: HashSet<(u64, u64)> = HashSet::new();
    // The smallest that is kept is the first to go.
    let mut kept: BTreeSet<(u64, std::cmp::Reverse<Vec<u8>>)> = BTreeSet::new();
    for_each_file(&Tree::open(layer.as_ref())?, |path, meta| {
        if meta.kind != Kind::File || !seen.insert((meta.device, meta.inode)) {
            return Ok(());
        }
        contents.files += 1;
        kept.insert((meta.size, std::cmp::Reverse(path)));
        if kept.len() > most {
            kept.pop_first();
        }
        Ok(())
    })?;
    let largest = kept.into_iter().rev();
    contents.largest = largest.map(|(size, path)| (path.0, size)).collect();
    Ok(contents)
}

fn for_each_file(tree: &Tree, mut each: impl FnMut(Vec<u8>, Meta) -> Result<()>) -> Result<()> {
    let mut stack = vec![Arc::clone(tree.root())];
    while let Some(dir) = stack.pop() {
        for listed in dir.list()? {
            let entry = dir.stat_listed(&listed)?;
            if entry.meta.is_dir() {
                stack.push(dir.open_dir(&listed.name, &entry)?);
            } else {
                each(dir.path_of(&listed.name), entry.meta)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn the_largest_files_come_first() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("d")).unwrap();
        for (name, size) in [("b", 5), ("a", 5), ("d/c", 9), ("e", 1)] {
            fs::write(folder.path().join(name), vec![0; size]).unwrap();
        }
        fs::hard_link(folder.path().join("d/c"), folder.path().join("d/z")).unwrap();
        symlink("a", folder.path().join("l")).unwrap();
        let found = contents(folder.path(), 2).unwrap();
        assert_eq!(found.files, 4);
        let sizes: Vec<u64> = found.largest.iter().map(|(_, size)| *size).collect();
        assert_eq!(sizes, [9, 5]);
        assert_eq!(found.largest[1].0, b"/a");
        assert_eq!(contents(folder.path(), 0).unwrap().largest, []);
    }

    #[test]
    fn differences_are_told_in_order_and_times_are_none() {
        let folder = tempfile::tempdir().unwrap();
        for side in ["a", "b"] {
            let root = folder.path().join(side);
            fs::create_dir_all(root.join("same/deep")).unwrap();
            fs::write(root.join("same/deep/file"), "content").unwrap();
            symlink("same", root.join("link")).unwrap();
        }
        let a = folder.path().join("a");
        let b = folder.path().join("b");
        fs::create_dir(a.join("gone")).unwrap();
        fs::write(a.join("gone/file"), "1").unwrap();
        fs::write(b.join("new"), "22").unwrap();
        fs::write(a.join("content"), "aa").unwrap();
        fs::write(b.join("content"), "bb").unwrap();
        fs::write(a.join("mode"), "x").unwrap();
        fs::write(b.join("mode"), "x").unwrap();
        fs::set_permissions(b.join("mode"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(a.join("turned"), "file").unwrap();
        fs::create_dir(b.join("turned")).unwrap();
        fs::write(b.join("turned/inside"), "").unwrap();
        let mut found = Vec::new();
        compare(
            &Tree::open(&a).unwrap(),
            &Tree::open(&b).unwrap(),
            |difference| {
                let path = String::from_utf8(difference.path).unwrap();
                found.push(format!("{:?} {path}", difference.change));
            },
        )
        .unwrap();
        assert_eq!(
            found,
            [
                "Modified /content",
                "Removed /gone",
                "Removed /gone/file",
                "Modified /mode",
                "Added /new",
                "Modified /turned",
                "Added /turned/inside",
            ]
        );
    }

    #[test]
    fn hidden_files_are_told_with_what_hides_them() {
        let folder = tempfile::tempdir().unwrap();
        let layer = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.join("d")).unwrap();
            path
        };
        let (low, middle, high) = (layer("0"), layer("1"), layer("2"));
        fs::write(low.join("kept"), "1").unwrap();
        fs::write(low.join("over"), "22").unwrap();
        fs::write(low.join("d/gone"), "333").unwrap();
        fs::hard_link(low.join("d/gone"), low.join("still-here")).unwrap();
        fs::write(low.join("d/both"), "4444").unwrap();
        fs::hard_link(low.join("d/both"), low.join("both")).unwrap();
        fs::write(middle.join("over"), "x").unwrap();
        fs::write(middle.join("both"), "y").unwrap();
        // A directory that hides all below it does so without a whiteout, which only root can make.
        let opaque = rustix::fs::setxattr(
            high.join("d"),
            OverlayXattrs::User.opaque(),
            b"y",
            rustix::fs::XattrFlags::empty(),
        );
        if opaque.is_err() {
            println!("skipped: no xattrs on this file system");
            return;
        }
        let found = hidden(&[low, middle, high], OverlayXattrs::User).unwrap();
        let told: Vec<Vec<String>> = found
            .iter()
            .map(|layer| {
                let told = layer.iter().map(|hidden| {
                    let path = String::from_utf8_lossy(&hidden.path);
                    let (size, by, replaced) = (hidden.size, hidden.by, hidden.replaced);
                    format!("{path} {size} by {by} {replaced}")
                });
                told.collect()
            })
            .collect();
        let expect: [&[&str]; 3] = [&["/d/both 4 by 2 false", "/over 2 by 1 true"], &[], &[]];
        assert_eq!(told, expect);
    }
}
