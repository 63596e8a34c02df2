//! The directories of the layer that entries are being put into.
//!
//! A few stay open, the latest used first. A directory's times, and the default ACL that would change what is made in
//! it, are put on when it leaves that list, and taken along again when it comes back; so nothing has to be remembered
//! about directories to the end of the layer.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawDir, ResolveFlags, XattrFlags, fchmod, fchown,
    fgetxattr, fremovexattr, fsetxattr, fstat, futimens, mkdirat, openat, openat2, readlinkat,
    statat, unlinkat,
};
use rustix::io::Errno;

use crate::layer::{Form, LayerDir, join};
use crate::tar::{EPOCH, Time};
use crate::tree::timestamps;
use crate::{Error, Result, RootPath};

const MOST_OPEN: usize = 64;
/// Symlinks followed on the way to one entry, as the kernel has it.
const MOST_LINKS: usize = 40;
/// The longest path, as the kernel has it.
pub(super) const LONGEST_PATH: usize = 4095;
pub(super) const DEFAULT_ACL: &str = "system.posix_acl_default";
/// What a directory is like that nobody describes.
pub(super) const IMPLICIT_MODE: u32 = 0o755;

/// One open directory.
#[derive(Debug)]
pub(super) struct OpenDir {
    fd: OwnedFd,
    /// The path without symlinks, relative to the layer.
    pub(super) path: Vec<u8>,
    /// The modification time it is to have.
    pub(super) mtime: Cell<Time>,
    pub(super) default_acl: RefCell<Option<Vec<u8>>>,
    /// Whether new files may get another group than the process's.
    pub(super) gives_group: Cell<bool>,
    is_touched: Cell<bool>,
}

impl OpenDir {
    /// Says that the directory is about to change, so that its time has to be put back.
    pub(super) fn touch(&self) {
        self.is_touched.set(true);
    }

    fn settle(&self) -> Result<()> {
        if let Some(acl) = self.default_acl.borrow_mut().take() {
            fsetxattr(&self.fd, DEFAULT_ACL, &acl, XattrFlags::empty())
                .map_err(|source| Error::io("set the default ACL of", &self.path, source))?;
            self.touch();
        }
        if self.is_touched.replace(false) {
            futimens(&self.fd, &timestamps(self.mtime.get()))
                .map_err(|source| Error::io("set the times of", &self.path, source))?;
        }
        Ok(())
    }
}

impl AsFd for OpenDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

pub(super) struct Dirs<'a> {
    layer: &'a LayerDir,
    form: Form,
    /// The latest used first.
    open: Vec<Rc<OpenDir>>,
    /// Directories made because something lies in them.
    implicit: BTreeSet<Vec<u8>>,
    implicit_memory: usize,
    memory_limit: usize,
    group: u32,
    umask: u32,
    has_openat2: bool,
    pub(super) has_default_acls: bool,
}

impl<'a> Dirs<'a> {
    pub(super) fn new(
        layer: &'a LayerDir,
        form: Form,
        memory_limit: usize,
        umask: u32,
    ) -> Dirs<'a> {
        Dirs {
            layer,
            form,
            open: Vec::with_capacity(MOST_OPEN + 1),
            implicit: BTreeSet::new(),
            implicit_memory: 0,
            memory_limit,
            group: rustix::process::getegid().as_raw(),
            umask,
            has_openat2: true,
            has_default_acls: false,
        }
    }

    /// Returns the directory `path`, making it and following symlinks of this layer where need be.
    pub(super) fn make(&mut self, path: &[u8]) -> Result<Rc<OpenDir>> {
        self.find(path, true)
    }

    /// Returns the directory `path`, following symlinks of this layer where need be.
    pub(super) fn existing(&mut self, path: &[u8]) -> Result<Rc<OpenDir>> {
        self.find(path, false)
    }

    fn find(&mut self, path: &[u8], make: bool) -> Result<Rc<OpenDir>> {
        match self.real(path) {
            Ok(dir) => Ok(dir),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => self.walk(path, make),
            Err(source) => Err(Error::io("open directory", path, source)),
        }
    }

    /// Opens a directory whose path has no symlinks.
    fn real(&mut self, path: &[u8]) -> rustix::io::Result<Rc<OpenDir>> {
        if let Some(index) = self.open.iter().position(|dir| dir.path == path) {
            // Most entries lie where the one before did.
            if index > 0 {
                let dir = self.open.remove(index);
                self.open.insert(0, dir);
            }
            return Ok(self.open[0].clone());
        }
        let fd = self.open_real(path)?;
        let status = fstat(&fd)?;
        let default_acl = if self.has_default_acls {
            take_default_acl(fd.as_fd())?
        } else {
            None
        };
        let mtime = Time {
            seconds: status.st_mtime as i64,
            nanoseconds: status.st_mtime_nsec as u32,
        };
        let dir = OpenDir {
            fd,
            path: path.to_vec(),
            mtime: Cell::new(mtime),
            default_acl: RefCell::new(default_acl),
            gives_group: Cell::new(status.st_mode & 0o2000 != 0 || status.st_gid != self.group),
            is_touched: Cell::new(false),
        };
        self.keep(dir).map_err(|_| Errno::IO)
    }

    fn open_real(&mut self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        const FLAGS: OFlags = OFlags::RDONLY
            .union(OFlags::DIRECTORY)
            .union(OFlags::NOFOLLOW)
            .union(OFlags::CLOEXEC);
        if path.is_empty() {
            return openat(self.layer, ".", FLAGS, Mode::empty());
        }
        if self.has_openat2 {
            let resolve =
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            match openat2(self.layer, path, FLAGS, Mode::empty(), resolve) {
                Err(Errno::NOSYS | Errno::PERM) => self.has_openat2 = false,
                outcome => return outcome,
            }
        }
        let mut fd = openat(self.layer, ".", FLAGS, Mode::empty())?;
        for part in crate::path::components(path) {
            fd = openat(&fd, part, FLAGS, Mode::empty())?;
        }
        Ok(fd)
    }

    /// Puts a directory at the front of the list.
    fn keep(&mut self, dir: OpenDir) -> Result<Rc<OpenDir>> {
        while self.open.len() >= MOST_OPEN {
            if let Some(last) = self.open.pop() {
                last.settle()?;
            }
        }
        let dir = Rc::new(dir);
        self.open.insert(0, dir.clone());
        Ok(dir)
    }

    /// Goes down `path` name by name. A symlink leads where it leads with the layer as root, never out of it.
    fn walk(&mut self, path: &[u8], make: bool) -> Result<Rc<OpenDir>> {
        // What is open has no symlinks on the way to it: the longest such part needs no look.
        let known = (0..path.len())
            .rev()
            .find(|end| path[*end] == b'/' && self.open.iter().any(|dir| dir.path == path[..*end]))
            .unwrap_or(0);
        let mut at = path[..known].to_vec();
        let mut links = 0;
        let mut ahead: Vec<Vec<u8>> = crate::path::components(&path[known..])
            .rev()
            .map(<[u8]>::to_vec)
            .collect();
        while let Some(name) = ahead.pop() {
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    let end = at.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                    at.truncate(end);
                    continue;
                }
                _ => {}
            }
            let dir = self
                .real(&at)
                .map_err(|source| Error::io("open directory", &at, source))?;
            let child = join(&at, &name);
            if child.len() > LONGEST_PATH {
                return Err(refused(path, "its path is too long"));
            }
            match statat(&dir, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(status) => match FileType::from_raw_mode(status.st_mode) {
                    FileType::Directory => at = child,
                    FileType::Symlink => {
                        links += 1;
                        if links > MOST_LINKS {
                            return Err(Error::TooManyLinks { path: lossy(path) });
                        }
                        let target = readlinkat(&dir, name.as_slice(), Vec::new())
                            .map_err(|source| Error::io("read link", &child, source))?;
                        let target = target.as_bytes();
                        if target.starts_with(b"/") {
                            at.clear();
                        }
                        ahead.extend(crate::path::components(target).rev().map(<[u8]>::to_vec));
                    }
                    FileType::CharacterDevice if make && self.is_whiteout(&status) => {
                        dir.touch();
                        unlinkat(&dir, name.as_slice(), AtFlags::empty())
                            .map_err(|source| Error::io("remove whiteout", &child, source))?;
                        if let Some(made) = self.make_dir(&dir, &name, IMPLICIT_MODE)? {
                            self.set_opaque(&made)?;
                        }
                        at = child;
                    }
                    _ => {
                        return Err(Error::NotADirectory {
                            path: lossy(&child),
                        });
                    }
                },
                Err(Errno::NOENT) if make => {
                    self.make_dir(&dir, &name, IMPLICIT_MODE)?;
                    self.note_implicit(&child)?;
                    at = child;
                }
                Err(Errno::NOENT) => return Err(Error::NotFound { path: lossy(path) }),
                Err(source) => return Err(Error::io("look up", &child, source)),
            }
        }
        self.real(&at)
            .map_err(|source| Error::io("open directory", &at, source))
    }

    /// Makes and opens the directory `name`, the process's own and of the time 0; `None` when something is there.
    pub(super) fn make_dir(
        &mut self,
        parent: &OpenDir,
        name: &[u8],
        mode: u32,
    ) -> Result<Option<Rc<OpenDir>>> {
        let path = join(&parent.path, name);
        let failed = |source| Error::io("make directory", &path, source);
        parent.touch();
        match mkdirat(parent, name, Mode::from_raw_mode(mode & 0o777)) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(None),
            Err(source) => return Err(failed(source)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(parent, name, flags, Mode::empty()).map_err(failed)?;
        if parent.gives_group.get() {
            fchown(&fd, None, Some(Gid::from_raw(self.group))).map_err(failed)?;
        }
        if mode & !0o777 != 0 || mode & self.umask != 0 || parent.gives_group.get() {
            fchmod(&fd, Mode::from_raw_mode(mode)).map_err(failed)?;
        }
        let made = self.keep(OpenDir {
            fd,
            path,
            mtime: Cell::new(EPOCH),
            default_acl: RefCell::default(),
            gives_group: Cell::new(false),
            is_touched: Cell::new(true),
        })?;
        Ok(Some(made))
    }

    fn note_implicit(&mut self, path: &[u8]) -> Result<()> {
        // A set's node and the list it becomes.
        self.implicit_memory += 2 * path.len() + 96;
        if self.implicit_memory > self.memory_limit {
            return Err(Error::LayerLimit {
                what: "bytes of paths of directories it leaves out",
                limit: self.memory_limit as u64,
            });
        }
        self.implicit.insert(path.to_vec());
        Ok(())
    }

    /// Says that the tar describes the directory `path` after all.
    pub(super) fn note_explicit(&mut self, path: &[u8]) {
        self.implicit.remove(path);
    }

    pub(super) fn set_opaque(&self, dir: &OpenDir) -> Result<()> {
        let Form::Overlay(xattrs) = self.form else {
            return Ok(());
        };
        dir.touch();
        fsetxattr(dir, xattrs.opaque(), b"y", XattrFlags::empty())
            .map_err(|source| Error::io("make opaque", &dir.path, source))
    }

    /// Whether this is a whiteout that was made here; none come in from outside.
    pub(super) fn is_whiteout(&self, status: &rustix::fs::Stat) -> bool {
        matches!(self.form, Form::Overlay(_))
            && FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice
            && status.st_rdev == 0
    }

    /// Removes whatever `name` is, with all that is in it.
    pub(super) fn clear(
        &mut self,
        parent: &OpenDir,
        name: &[u8],
        status: &rustix::fs::Stat,
    ) -> Result<()> {
        let path = join(&parent.path, name);
        parent.touch();
        if FileType::from_raw_mode(status.st_mode) != FileType::Directory {
            return unlinkat(parent, name, AtFlags::empty())
                .map_err(|source| Error::io("replace", &path, source));
        }
        let is_within = |other: &[u8]| {
            other
                .strip_prefix(&path[..])
                .is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        };
        self.open.retain(|dir| !is_within(&dir.path));
        self.implicit.retain(|other| !is_within(other));
        self.remove_tree(&path)?;
        unlinkat(parent, name, AtFlags::REMOVEDIR)
            .map_err(|source| Error::io("replace", &path, source))
    }

    /// Removes all that is in a directory; one is open at a time, however deep and full they are.
    fn remove_tree(&mut self, path: &[u8]) -> Result<()> {
        let failed = |path: &[u8], source| Error::io("remove", path, source);
        let mut pending = vec![path.to_vec()];
        let mut buffer: Vec<u8> = Vec::with_capacity(16 << 10);
        while let Some(at) = pending.last() {
            let fd = self.open_real(at).map_err(|source| failed(at, source))?;
            let mut is_empty = true;
            let mut full = None;
            let mut entries = RawDir::new(&fd, buffer.spare_capacity_mut());
            while let Some(entry) = entries.next() {
                let entry = entry.map_err(|source| failed(at, source))?;
                let name = entry.file_name().to_bytes();
                if name == b"." || name == b".." {
                    continue;
                }
                is_empty = false;
                let outcome = match unlinkat(&fd, name, AtFlags::empty()) {
                    Err(Errno::ISDIR | Errno::PERM) => unlinkat(&fd, name, AtFlags::REMOVEDIR),
                    outcome => outcome,
                };
                match outcome {
                    Ok(()) => {}
                    Err(Errno::NOTEMPTY | Errno::EXIST) => {
                        full = Some(join(at, name));
                        break;
                    }
                    Err(source) => return Err(failed(&join(at, name), source)),
                }
            }
            match full {
                Some(child) => pending.push(child),
                // Empty it goes when its parent is read again. A listing changed while it was read is read once more.
                None if is_empty => drop(pending.pop()),
                None => {}
            }
        }
        Ok(())
    }

    /// Puts all times on and returns the directories that the tar takes for granted.
    pub(super) fn finish(self) -> Result<Vec<RootPath>> {
        for dir in &self.open {
            dir.settle()?;
        }
        self.implicit.iter().map(RootPath::new).collect()
    }
}

fn take_default_acl(fd: BorrowedFd<'_>) -> rustix::io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; 64 << 10];
    match fgetxattr(fd, DEFAULT_ACL, &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            fremovexattr(fd, DEFAULT_ACL)?;
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(source) => Err(source),
    }
}

pub(super) fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

pub(super) fn refused(path: &[u8], reason: &'static str) -> Error {
    Error::RefusedEntry {
        path: lossy(path),
        reason,
    }
}
