//! A tree of files: one directory, or a stack of layer directories seen merged.
//!
//! The merging is overlay's own (upper over lowers, whiteouts, opaque directories), done here in user space so that
//! file operations need no mount: files keep the device of the layer that holds them, and can be cloned or linked.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::copy::{Owner, Timestamp};
use crate::layer::{Form, OverlayXattrs};
use crate::meta::{self, Kind, Meta};
use crate::{Error, Result};

/// A tree of files.
///
/// Cheap to clone. Safe to read from many threads; whoever writes sees to it that no other writes to the same tree.
#[derive(Clone, Debug)]
pub struct Tree {
    root: Arc<Dir>,
}

/// The most directories in each other: as many as the longest path can name.
const MOST_DEPTH: u32 = 2048;

/// An open directory of a tree.
#[derive(Debug)]
pub(crate) struct Dir {
    parent: Option<Arc<Dir>>,
    name: CString,
    depth: u32,
    form: Form,
    writable: bool,
    /// Made by this process and known to hold only what it has put there.
    fresh: bool,
    /// The directory that takes writes; in a writable stack it comes to be when it is first needed.
    upper: OnceLock<OwnedFd>,
    /// Held while the upper directory is made: several threads may write the first file in it.
    copying: Mutex<()>,
    /// The directories seen below, the highest first.
    lowers: Vec<OwnedFd>,
    /// What keeps a detached mount alive whose root this is.
    _mount: Option<OwnedFd>,
}

/// Where a file was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) meta: Meta,
    /// 0 is the upper directory, `n` is `lowers[n - 1]`.
    holder: usize,
}

/// What a directory has under a name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lookup {
    Missing,
    /// Nothing, because the upper directory has a whiteout there.
    Whiteout,
    Found(Entry),
}

/// A listed name.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) name: CString,
    pub(crate) kind: Option<Kind>,
    holder: usize,
}

impl Tree {
    /// A tree in one directory, which may be written to.
    ///
    /// For a mounted overlay (also a detached mount, which then lives as long as the tree) and for any directory without overlay's marks.
    pub fn plain(dir: OwnedFd) -> Tree {
        // A detached mount is a descriptor without access; the directory has to be opened through it.
        let is_path = rustix::fs::fcntl_getfl(&dir).is_ok_and(|flags| flags.contains(OFlags::PATH));
        match is_path.then(|| meta::open_dir(dir.as_fd(), c".")) {
            Some(Ok(opened)) => Tree::new(Form::Plain, Some(opened), Vec::new(), true, Some(dir)),
            // What cannot be opened says so when it is used.
            Some(Err(_)) | None => Tree::new(Form::Plain, Some(dir), Vec::new(), true, None),
        }
    }

    /// Opens the directory at a host path as a plain tree.
    pub fn open(path: &Path) -> Result<Tree> {
        open_host_dir(path).map(Tree::plain)
    }

    /// The merged, read-only view of layer directories, the lowest first. No layers are an empty tree.
    pub fn layers(lowers: Vec<OwnedFd>, xattrs: OverlayXattrs) -> Tree {
        Tree::new(Form::Overlay(xattrs), None, lowers, false, None)
    }

    /// Opens layer directories at host paths as a read-only view, the lowest first.
    pub fn open_layers(lowers: &[impl AsRef<Path>], xattrs: OverlayXattrs) -> Result<Tree> {
        let lowers: Result<Vec<_>> = lowers
            .iter()
            .map(|path| open_host_dir(path.as_ref()))
            .collect();
        Ok(Tree::layers(lowers?, xattrs))
    }

    /// The merged view of layers with a directory on top that takes all changes, in overlay form.
    ///
    /// What is written is a layer: directories on the way get the metadata that the view shows for them, as
    /// overlay's copy-up would. `upper` should be on the file system of the lowers for files to be cloned or linked.
    pub fn writable(lowers: Vec<OwnedFd>, upper: OwnedFd, xattrs: OverlayXattrs) -> Tree {
        Tree::new(Form::Overlay(xattrs), Some(upper), lowers, true, None)
    }

    fn new(
        form: Form,
        upper: Option<OwnedFd>,
        mut lowers: Vec<OwnedFd>,
        writable: bool,
        mount: Option<OwnedFd>,
    ) -> Tree {
        lowers.reverse();
        Tree {
            root: Arc::new(Dir {
                parent: None,
                name: CString::default(),
                depth: 0,
                form,
                writable,
                fresh: false,
                upper: upper.map(OnceLock::from).unwrap_or_default(),
                copying: Mutex::default(),
                lowers,
                _mount: mount,
            }),
        }
    }

    pub(crate) fn root(&self) -> &Arc<Dir> {
        &self.root
    }

    /// Makes a directory of the tree a root of its own, out of which nothing below it resolves.
    pub(crate) fn at(dir: Arc<Dir>) -> Tree {
        Tree { root: dir }
    }

    /// Returns the only directory of a tree that is no stack.
    pub(crate) fn single(&self) -> Option<BorrowedFd<'_>> {
        self.root.single()
    }
}

pub(crate) fn open_host_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|errno| Error::io("open", path.as_os_str().as_encoded_bytes(), errno))
}

impl Dir {
    pub(crate) fn parent(&self) -> Option<&Arc<Dir>> {
        self.parent.as_ref()
    }

    pub(crate) fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Returns the path in the tree, for messages.
    pub(crate) fn path(&self) -> Vec<u8> {
        let mut names = Vec::new();
        let mut dir = self;
        while let Some(parent) = &dir.parent {
            names.push(dir.name.as_bytes());
            dir = parent;
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        if path.is_empty() { b"/".to_vec() } else { path }
    }

    /// Returns the path of something in this directory, for messages.
    pub(crate) fn path_of(&self, name: &CStr) -> Vec<u8> {
        let mut path = self.path();
        if !path.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        path
    }

    /// Returns the depth of a directory in this one; a tree that no path can name to its end is refused.
    fn deeper(&self, name: &CStr) -> Result<u32> {
        if self.depth >= MOST_DEPTH {
            return Err(self.error("go deeper into", name, Errno::NAMETOOLONG));
        }
        Ok(self.depth + 1)
    }

    pub(crate) fn error(&self, action: &'static str, name: &CStr, errno: Errno) -> Error {
        Error::io(action, self.path_of(name), errno)
    }

    fn single(&self) -> Option<BorrowedFd<'_>> {
        match (self.form, self.upper.get(), &self.lowers[..]) {
            (_, Some(upper), []) => Some(upper.as_fd()),
            (_, None, [lower]) => Some(lower.as_fd()),
            _ => None,
        }
    }

    fn holder(&self, holder: usize) -> Option<BorrowedFd<'_>> {
        match holder {
            0 => self.upper.get().map(AsFd::as_fd),
            n => self.lowers.get(n - 1).map(AsFd::as_fd),
        }
    }

    fn holders(&self) -> impl DoubleEndedIterator<Item = (usize, BorrowedFd<'_>)> {
        (0..=self.lowers.len()).filter_map(|index| Some((index, self.holder(index)?)))
    }

    /// Returns the descriptor of the directory that holds an entry.
    pub(crate) fn fd_of(&self, entry: &Entry) -> BorrowedFd<'_> {
        self.holder(entry.holder)
            .expect("an entry is found in a directory that is open")
    }

    /// Returns the topmost directory, whose metadata count; `None` in a tree without layers.
    pub(crate) fn top(&self) -> Option<BorrowedFd<'_>> {
        self.holders().next().map(|(_, fd)| fd)
    }

    /// Returns the attributes of this directory.
    pub(crate) fn meta(&self) -> Result<Option<Meta>> {
        let Some(top) = self.top() else {
            return Ok(None);
        };
        meta::stat_fd(top)
            .map(Some)
            .map_err(|errno| self.error("stat", c"", errno))
    }

    pub(crate) fn lookup(&self, name: &CStr) -> Result<Lookup> {
        self.lookup_from(0, name)
    }

    fn lookup_from(&self, first: usize, name: &CStr) -> Result<Lookup> {
        for (holder, fd) in self.holders().filter(|(holder, _)| *holder >= first) {
            match meta::stat(fd, name) {
                Ok(meta) if meta.is_whiteout() && self.form != Form::Plain => {
                    return Ok(if holder == 0 {
                        Lookup::Whiteout
                    } else {
                        Lookup::Missing
                    });
                }
                Ok(meta) => return Ok(Lookup::Found(Entry { meta, holder })),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(self.error("stat", name, errno)),
            }
        }
        Ok(Lookup::Missing)
    }

    /// Returns what is seen under a name.
    pub(crate) fn find(&self, name: &CStr) -> Result<Option<Entry>> {
        Ok(match self.lookup(name)? {
            Lookup::Found(entry) => Some(entry),
            Lookup::Missing | Lookup::Whiteout => None,
        })
    }

    /// Returns the attributes of a listed name.
    pub(crate) fn stat_listed(&self, listed: &Listed) -> Result<Entry> {
        let holder = listed.holder;
        let fd = self
            .holder(holder)
            .expect("a listed name comes from a directory that is open");
        let meta = meta::stat(fd, &listed.name)
            .map_err(|errno| self.error("stat", &listed.name, errno))?;
        Ok(Entry { meta, holder })
    }

    /// Opens the directory that `entry` is.
    pub(crate) fn open_dir(self: &Arc<Dir>, name: &CStr, entry: &Entry) -> Result<Arc<Dir>> {
        let upper = OnceLock::new();
        let mut lowers = Vec::new();
        for (holder, fd) in self.holders().filter(|(holder, _)| *holder >= entry.holder) {
            if holder > entry.holder {
                match meta::stat(fd, name) {
                    Ok(below) if below.is_dir() => {}
                    // Anything else ends the directory: what is below it is not seen.
                    Ok(_) => break,
                    Err(Errno::NOENT) => continue,
                    Err(errno) => return Err(self.error("stat", name, errno)),
                }
            }
            let dir = meta::open_dir(fd, name).map_err(|errno| self.error("open", name, errno))?;
            let last = holder == self.lowers.len() || self.is_opaque(dir.as_fd(), name)?;
            if holder == 0 {
                let _ = upper.set(dir);
            } else {
                lowers.push(dir);
            }
            if last {
                break;
            }
        }
        Ok(Arc::new(Dir {
            parent: Some(Arc::clone(self)),
            name: name.to_owned(),
            depth: self.deeper(name)?,
            form: self.form,
            writable: self.writable,
            fresh: false,
            upper,
            copying: Mutex::default(),
            lowers,
            _mount: None,
        }))
    }

    fn is_opaque(&self, dir: BorrowedFd<'_>, name: &CStr) -> Result<bool> {
        let Form::Overlay(xattrs) = self.form else {
            return Ok(true);
        };
        let value = meta::xattr(dir, xattrs.opaque())
            .map_err(|errno| self.error("read the xattrs of", name, errno))?;
        Ok(value.as_deref() == Some(b"y"))
    }

    /// Opens the file that `entry` is for reading.
    pub(crate) fn open_file(&self, name: &CStr, entry: &Entry) -> Result<OwnedFd> {
        meta::open_file(self.fd_of(entry), name).map_err(|errno| self.error("open", name, errno))
    }

    pub(crate) fn read_link(&self, name: &CStr, entry: &Entry) -> Result<CString> {
        rustix::fs::readlinkat(self.fd_of(entry), name, Vec::with_capacity(256))
            .map_err(|errno| self.error("read link", name, errno))
    }

    /// Lists what is seen, sorted by name.
    pub(crate) fn list(&self) -> Result<Vec<Listed>> {
        let mut listing: Vec<Listed> = Vec::new();
        let count = self.holders().count();
        let mut seen: HashSet<CString> = HashSet::new();
        for (rank, (holder, fd)) in self.holders().enumerate() {
            let start = listing.len();
            meta::list(fd, |name, kind| {
                if rank == 0 || !seen.contains(name) {
                    listing.push(Listed {
                        name: name.to_owned(),
                        kind,
                        holder,
                    });
                }
            })
            .map_err(|errno| self.error("list", c"", errno))?;
            if self.form == Form::Plain {
                continue;
            }
            if rank + 1 < count {
                seen.extend(listing[start..].iter().map(|listed| listed.name.clone()));
            }
            self.drop_whiteouts(fd, start, &mut listing)?;
        }
        listing.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(listing)
    }

    fn drop_whiteouts(
        &self,
        fd: BorrowedFd<'_>,
        start: usize,
        listing: &mut Vec<Listed>,
    ) -> Result<()> {
        let mut index = start;
        while index < listing.len() {
            let listed = &listing[index];
            if matches!(listed.kind, Some(Kind::Character) | None) {
                let meta = meta::stat(fd, &listed.name)
                    .map_err(|errno| self.error("stat", &listed.name, errno))?;
                if meta.is_whiteout() {
                    listing.swap_remove(index);
                    continue;
                }
            }
            index += 1;
        }
        Ok(())
    }
}

/// Writing.
impl Dir {
    /// Returns the directory that takes writes, after making it where only lower layers have it.
    pub(crate) fn writable(&self) -> Result<BorrowedFd<'_>> {
        if let Some(upper) = self.upper.get() {
            return Ok(upper.as_fd());
        }
        let read_only = || Error::ReadOnly {
            path: String::from_utf8_lossy(&self.path()).into_owned(),
        };
        let (Some(parent), true) = (&self.parent, self.writable) else {
            return Err(read_only());
        };
        let lower = self.lowers.first().ok_or_else(read_only)?;
        let parent_fd = parent.writable()?;
        let _copying = self.copying.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(upper) = self.upper.get() {
            return Ok(upper.as_fd());
        }
        let made = copy_up(lower.as_fd(), parent_fd, &self.name)
            .map_err(|errno| self.error("copy up the directory", c"", errno))?;
        Ok(self.upper.get_or_init(|| made).as_fd())
    }

    /// Makes a directory where nothing is seen; its mode is 0700 until it is set.
    pub(crate) fn create_dir(self: &Arc<Dir>, name: &CStr) -> Result<Arc<Dir>> {
        let fd = self.writable()?;
        let mut hides = false;
        if !self.fresh && self.form != Form::Plain {
            if let Lookup::Whiteout = self.lookup(name)? {
                self.unlink(name)?;
            }
            hides = matches!(self.lookup_from(1, name)?, Lookup::Found(_));
        }
        rustix::fs::mkdirat(fd, name, Mode::RWXU)
            .map_err(|errno| self.error("create the directory", name, errno))?;
        let dir = meta::open_dir(fd, name).map_err(|errno| self.error("open", name, errno))?;
        if let (true, Form::Overlay(xattrs)) = (hides, self.form) {
            rustix::fs::fsetxattr(&dir, xattrs.opaque(), b"y", XattrFlags::empty())
                .map_err(|errno| self.error("make opaque", name, errno))?;
        }
        Ok(Arc::new(Dir {
            parent: Some(Arc::clone(self)),
            name: name.to_owned(),
            depth: self.deeper(name)?,
            form: self.form,
            writable: true,
            fresh: true,
            upper: OnceLock::from(dir),
            copying: Mutex::default(),
            lowers: Vec::new(),
            _mount: None,
        }))
    }

    /// Takes away what is in the way of a new file that is no directory, and returns where to make it.
    ///
    /// Afterwards the upper directory has nothing under the name; what a lower layer has there will be hidden by
    /// the new file itself.
    pub(crate) fn make_way(self: &Arc<Dir>, name: &CStr, replace: bool) -> Result<BorrowedFd<'_>> {
        if self.fresh {
            return self.writable();
        }
        self.clear_way(name, replace)
    }

    /// Does the same where the names may have been used before, as those of an archive.
    pub(crate) fn clear_way(self: &Arc<Dir>, name: &CStr, replace: bool) -> Result<BorrowedFd<'_>> {
        let fd = self.writable()?;
        match self.lookup(name)? {
            Lookup::Missing => {}
            Lookup::Whiteout => self.unlink(name)?,
            Lookup::Found(entry) if entry.meta.is_dir() => {
                if !replace {
                    return Err(Error::ReplaceDirectory {
                        path: String::from_utf8_lossy(&self.path_of(name)).into_owned(),
                    });
                }
                if entry.holder == 0 {
                    remove_tree(fd, name).map_err(|errno| self.error("remove", name, errno))?;
                }
            }
            Lookup::Found(entry) if entry.holder == 0 => self.unlink(name)?,
            Lookup::Found(_) => {}
        }
        Ok(fd)
    }

    /// Removes what is seen under a name, with all below it.
    pub(crate) fn remove(self: &Arc<Dir>, name: &CStr) -> Result<()> {
        let Lookup::Found(entry) = self.lookup(name)? else {
            return Ok(());
        };
        let fd = self.writable()?;
        if entry.holder == 0 {
            remove_tree(fd, name).map_err(|errno| self.error("remove", name, errno))?;
        }
        if self.form != Form::Plain && matches!(self.lookup_from(1, name)?, Lookup::Found(_)) {
            rustix::fs::mknodat(fd, name, FileType::CharacterDevice, Mode::empty(), 0)
                .map_err(|errno| self.error("make a whiteout for", name, errno))?;
        }
        Ok(())
    }

    fn unlink(&self, name: &CStr) -> Result<()> {
        let fd = self.writable()?;
        rustix::fs::unlinkat(fd, name, AtFlags::empty())
            .map_err(|errno| self.error("remove", name, errno))
    }

    pub(crate) fn set_owner(&self, owner: Owner) -> Result<()> {
        set_owner_fd(self.writable()?, owner)
            .map_err(|errno| self.error("change the owner of", c"", errno))
    }

    pub(crate) fn set_mode(&self, mode: u32) -> Result<()> {
        rustix::fs::fchmod(self.writable()?, Mode::from_raw_mode(mode))
            .map_err(|errno| self.error("change the mode of", c"", errno))
    }

    pub(crate) fn set_time(&self, time: Timestamp) -> Result<()> {
        rustix::fs::futimens(self.writable()?, &timestamps(time))
            .map_err(|errno| self.error("set the time of", c"", errno))
    }
}

/// Makes `name` in `parent` as a copy of the directory `lower`, without its contents.
fn copy_up(
    lower: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    name: &CStr,
) -> std::result::Result<OwnedFd, Errno> {
    let meta = meta::stat_fd(lower)?;
    rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
    let dir = meta::open_dir(parent, name)?;
    set_owner_fd(dir.as_fd(), meta.owner)?;
    rustix::fs::fchmod(&dir, Mode::from_raw_mode(meta.mode))?;
    for attribute in meta::xattrs(lower)? {
        meta::set_xattr(dir.as_fd(), &attribute)?;
    }
    rustix::fs::futimens(&dir, &timestamps(meta.modified))?;
    Ok(dir)
}

/// Removes a file, or a directory with all below it, without following symlinks.
pub(crate) fn remove_tree(dir: BorrowedFd<'_>, name: &CStr) -> std::result::Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    // Depth first with an explicit stack: a hostile tree is deeper than any thread's stack.
    let mut stack = vec![Removal::open(dir, name)?];
    while let Some(top) = stack.last_mut() {
        let Some(name) = top.rest.pop() else {
            let done = stack.pop().expect("the loop holds the top of the stack");
            let above = stack.last().map_or(dir, |top| top.dir.as_fd());
            rustix::fs::unlinkat(above, &done.name, AtFlags::REMOVEDIR)?;
            continue;
        };
        match rustix::fs::unlinkat(&top.dir, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
        let below = Removal::open(top.dir.as_fd(), &name)?;
        stack.push(below);
    }
    Ok(())
}

/// A directory that is being emptied.
struct Removal {
    dir: OwnedFd,
    name: CString,
    rest: Vec<CString>,
}

impl Removal {
    fn open(parent: BorrowedFd<'_>, name: &CStr) -> std::result::Result<Removal, Errno> {
        let dir = meta::open_dir(parent, name)?;
        let mut rest = Vec::new();
        meta::list(dir.as_fd(), |name, _| rest.push(name.to_owned()))?;
        Ok(Removal {
            dir,
            name: name.to_owned(),
            rest,
        })
    }
}

pub(crate) fn timestamps(time: Timestamp) -> rustix::fs::Timestamps {
    let spec = rustix::fs::Timespec {
        tv_sec: time.seconds,
        tv_nsec: i64::from(time.nanoseconds) as _,
    };
    rustix::fs::Timestamps {
        last_access: spec,
        last_modification: spec,
    }
}

fn ids(owner: Owner) -> (Option<rustix::fs::Uid>, Option<rustix::fs::Gid>) {
    // -1 would mean "leave as it is"; no file can have that owner.
    let uid = (owner.uid != u32::MAX).then(|| rustix::fs::Uid::from_raw(owner.uid));
    let gid = (owner.gid != u32::MAX).then(|| rustix::fs::Gid::from_raw(owner.gid));
    (uid, gid)
}

pub(crate) fn set_owner_fd(file: BorrowedFd<'_>, owner: Owner) -> std::result::Result<(), Errno> {
    let (uid, gid) = ids(owner);
    rustix::fs::fchown(file, uid, gid)
}

pub(crate) fn set_owner_at(
    dir: BorrowedFd<'_>,
    name: &CStr,
    owner: Owner,
) -> std::result::Result<(), Errno> {
    let (uid, gid) = ids(owner);
    rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
}
