//! Resolution of paths inside a tree; no symlink leads out of it.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::copy::{Owner, Timestamp};
use crate::meta::{self, Kind, Meta};
use crate::path::components;
use crate::tree::{Dir, Entry, Tree, open_host_dir};
use crate::{Error, Result, RootPath};

/// The most symlinks followed in one path, as in the reference.
const MOST_LINKS: usize = 255;

/// A name in a directory and what stands under it.
pub type NamedMeta = (Vec<u8>, Meta);

/// What to do with a symlink that is the last component of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// It is followed, inside the tree.
    Last,
    /// It stands for itself. Symlinks before the last component are always followed.
    Parents,
}

/// Where a path leads.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// The deepest directory on the way that exists.
    pub(crate) dir: Arc<Dir>,
    /// What follows it: nothing if the path is that directory, one name if the path is something else in it, and
    /// if nothing is there, all names that are missing.
    pub(crate) rest: Vec<CString>,
    /// What is found under the only name of `rest`, which is no directory.
    pub(crate) leaf: Option<Entry>,
}

impl Resolved {
    /// Returns whether something is there.
    pub(crate) fn exists(&self) -> bool {
        self.rest.is_empty() || self.leaf.is_some()
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.rest.is_empty()
    }

    /// Returns the path without symlinks.
    pub(crate) fn path(&self) -> Vec<u8> {
        let mut path = self.dir.path();
        for name in &self.rest {
            if !path.ends_with(b"/") {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
        }
        path
    }
}

/// What new directories on a path get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewDirs {
    pub mode: u32,
    pub owner: Option<Owner>,
    pub time: Option<Timestamp>,
}

impl Tree {
    /// Walks a path component by component.
    ///
    /// A missing component is no error: what follows it is taken as it is written, with `..` taken back.
    /// A file in the place of a directory is one.
    pub(crate) fn resolve(&self, path: &RootPath, follow: Follow) -> Result<Resolved> {
        let mut walk = Resolved {
            dir: Arc::clone(self.root()),
            rest: Vec::new(),
            leaf: None,
        };
        let mut ahead: Vec<Vec<u8>> = path.components().rev().map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            if name == b"." {
                continue;
            }
            if walk.leaf.is_some() {
                return Err(Error::NotADirectory {
                    path: String::from_utf8_lossy(&walk.path()).into_owned(),
                });
            }
            if name == b".." {
                if walk.rest.pop().is_none() && !Arc::ptr_eq(&walk.dir, self.root()) {
                    let parent = walk.dir.parent().expect("only the root has no parent");
                    walk.dir = Arc::clone(parent);
                }
                continue;
            }
            let name = CString::new(name).map_err(|_| Error::InvalidPath {
                path: path.to_string(),
                reason: "it contains a NUL byte",
            })?;
            if !walk.rest.is_empty() {
                walk.rest.push(name);
                continue;
            }
            match walk.dir.find(&name)? {
                None => walk.rest.push(name),
                Some(entry) if entry.meta.is_dir() => {
                    walk.dir = walk.dir.open_dir(&name, &entry)?
                }
                Some(entry)
                    if entry.meta.kind == Kind::Symlink
                        && (follow == Follow::Last || !ahead.is_empty()) =>
                {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Error::TooManyLinks {
                            path: path.to_string(),
                        });
                    }
                    let target = walk.dir.read_link(&name, &entry)?;
                    if target.as_bytes().starts_with(b"/") {
                        walk.dir = Arc::clone(self.root());
                    }
                    ahead.extend(components(target.as_bytes()).rev().map(<[u8]>::to_vec));
                }
                Some(entry) => {
                    walk.rest.push(name);
                    walk.leaf = Some(entry);
                }
            }
        }
        Ok(walk)
    }

    /// Returns the attributes of what a path leads to; `None` where nothing is.
    pub fn stat(&self, path: &RootPath, follow: Follow) -> Result<Option<Meta>> {
        match self.resolve(path, follow) {
            Ok(Resolved {
                leaf: Some(entry), ..
            }) => Ok(Some(entry.meta)),
            Ok(found) if found.is_dir() => found.dir.meta(),
            Ok(_) | Err(Error::NotADirectory { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens a file for reading, with symlinks followed.
    pub fn open_file(&self, path: &RootPath) -> Result<OwnedFd> {
        if let Some(root) = self.single()
            && let Some(opened) = open_in_root(
                root,
                path,
                OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
            )
        {
            return opened.map_err(|errno| Error::io("open", path, errno));
        }
        let found = self.resolve(path, Follow::Last)?;
        match (&found.rest[..], &found.leaf) {
            ([name], Some(entry)) => found.dir.open_file(name, entry),
            ([], _) => Err(Error::io("open", path, Errno::ISDIR)),
            _ => Err(Error::NotFound {
                path: path.to_string(),
            }),
        }
    }

    /// Reads a whole file of at most `limit` bytes, with symlinks followed; `None` where nothing is.
    pub fn read(&self, path: &RootPath, limit: u64) -> Result<Option<Vec<u8>>> {
        let file = match self.open_file(path) {
            Ok(file) => File::from(file),
            Err(Error::NotFound { .. } | Error::NotADirectory { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let meta = meta::stat_fd(&file).map_err(|errno| Error::io("stat", path, errno))?;
        if meta.kind != Kind::File {
            return Err(Error::io("read", path, Errno::INVAL));
        }
        let mut data = Vec::new();
        let read = file.take(limit.saturating_add(1)).read_to_end(&mut data);
        read.map_err(|source| Error::io("read", path, source))?;
        if data.len() as u64 > limit {
            return Err(Error::io("read", path, Errno::FBIG));
        }
        Ok(Some(data))
    }

    /// Returns what a symlink says; `None` where no symlink is.
    pub fn read_link(&self, path: &RootPath) -> Result<Option<Vec<u8>>> {
        let found = self.resolve(path, Follow::Parents)?;
        match (&found.rest[..], &found.leaf) {
            ([name], Some(entry)) if entry.meta.kind == Kind::Symlink => {
                Ok(Some(found.dir.read_link(name, entry)?.into_bytes()))
            }
            _ => Ok(None),
        }
    }

    /// Returns the names in a directory with their attributes, sorted by name; `None` where no directory is.
    pub fn read_dir(&self, path: &RootPath) -> Result<Option<Vec<NamedMeta>>> {
        let found = match self.resolve(path, Follow::Last) {
            Ok(found) if found.is_dir() => found,
            Ok(_) | Err(Error::NotADirectory { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut entries = Vec::new();
        for listed in found.dir.list()? {
            let entry = found.dir.stat_listed(&listed)?;
            entries.push((listed.name.as_bytes().to_vec(), entry.meta));
        }
        Ok(Some(entries))
    }

    /// Makes a directory and all that is missing above it, with symlinks followed inside the tree.
    ///
    /// Directories that exist stay as they are; each new one gets what `new` says. A dangling symlink on the way
    /// leads to new directories at its target. Returns how many were made.
    pub fn mkdir_all(&self, path: &RootPath, new: &NewDirs) -> Result<usize> {
        let found = self.resolve(path, Follow::Last)?;
        Ok(make_missing(found, new)?.1.len())
    }
}

/// Makes the directories that `found` lacks; returns the last one and those that are new.
pub(crate) fn make_missing(found: Resolved, new: &NewDirs) -> Result<(Arc<Dir>, Vec<Arc<Dir>>)> {
    if found.leaf.is_some() {
        return Err(Error::NotADirectory {
            path: String::from_utf8_lossy(&found.path()).into_owned(),
        });
    }
    let mut dir = found.dir;
    let mut made = Vec::with_capacity(found.rest.len());
    for name in &found.rest {
        dir = dir.create_dir(name)?;
        if let Some(owner) = new.owner {
            dir.set_owner(owner)?;
        }
        // As in the reference, a directory made in one with the setgid bit has it too.
        let inherited = dir.meta()?.map_or(0, |meta| meta.mode & 0o2000);
        dir.set_mode(new.mode & 0o777 | inherited)?;
        if let Some(time) = new.time {
            dir.set_time(time)?;
        }
        made.push(Arc::clone(&dir));
    }
    Ok((dir, made))
}

/// Whether this kernel, or the filter around this process, lacks `openat2`.
static NO_OPENAT2: AtomicBool = AtomicBool::new(false);

/// Opens a path with the kernel's own resolution inside a root.
///
/// Returns `None` where the caller has to walk by itself: no `openat2`, or a rename raced with a `..`.
fn open_in_root(
    root: BorrowedFd<'_>,
    path: &RootPath,
    flags: OFlags,
) -> Option<std::result::Result<OwnedFd, Errno>> {
    if NO_OPENAT2.load(Ordering::Relaxed) {
        return None;
    }
    let relative: &[u8] = if path.is_root() {
        b"."
    } else {
        path.relative()
    };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..8 {
        match rustix::fs::openat2(
            root,
            relative,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        ) {
            Err(Errno::AGAIN) => {}
            // EPERM is how older seccomp profiles refuse a call that they do not know.
            Err(Errno::NOSYS | Errno::PERM) => {
                NO_OPENAT2.store(true, Ordering::Relaxed);
                return None;
            }
            // Our own limit on symlinks is higher than the kernel's.
            Err(Errno::LOOP) => return None,
            result => return Some(result),
        }
    }
    None
}

/// The open root directory of a plain tree.
#[derive(Clone, Debug)]
pub struct Root {
    tree: Tree,
}

impl Root {
    /// Opens the directory at a host path.
    pub fn open(path: &Path) -> Result<Root> {
        open_host_dir(path).map(Root::from_fd)
    }

    /// Takes an open directory, for example a detached mount.
    pub fn from_fd(dir: OwnedFd) -> Root {
        Root {
            tree: Tree::plain(dir),
        }
    }

    /// Returns the tree for the operations that all trees have.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Opens what a path leads to as a directory, fit for `fchdir`, listing and mounting on.
    pub fn open_dir(&self, path: &RootPath) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        if let Some(opened) = open_in_root(self.as_fd(), path, flags) {
            return opened.map_err(|errno| Error::io("open", path, errno));
        }
        let found = self.tree.resolve(path, Follow::Last)?;
        match (found.exists(), found.is_dir(), found.dir.top()) {
            (true, true, Some(fd)) => {
                meta::open_dir(fd, c".").map_err(|errno| Error::io("open", path, errno))
            }
            (true, ..) => Err(Error::NotADirectory {
                path: path.to_string(),
            }),
            (false, ..) => Err(Error::NotFound {
                path: path.to_string(),
            }),
        }
    }

    /// Opens a place of any type without opening the file itself (`O_PATH`), for example as a mount point.
    pub fn open_place(&self, path: &RootPath) -> Result<OwnedFd> {
        if let Some(opened) = open_in_root(self.as_fd(), path, OFlags::PATH) {
            return opened.map_err(|errno| Error::io("open", path, errno));
        }
        let found = self.tree.resolve(path, Follow::Last)?;
        let name: &CStr = match (&found.rest[..], &found.leaf) {
            ([name], Some(_)) => name,
            ([], _) => c".",
            _ => {
                return Err(Error::NotFound {
                    path: path.to_string(),
                });
            }
        };
        let top = found.dir.top().expect("a plain tree has one directory");
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(top, name, flags, Mode::empty())
            .map_err(|errno| Error::io("open", path, errno))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tree.single().expect("a root is one directory")
    }
}
