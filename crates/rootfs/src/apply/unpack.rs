//! Puts the entries of a layer tar into its directory.

use std::io::BufRead;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, XattrFlags, chmodat, chownat, fchmod, fchown,
    fsetxattr, ftruncate, futimens, linkat, lsetxattr, makedev, mknodat, openat, statat, symlinkat,
    utimensat,
};
use rustix::io::Errno;

use super::dirs::{DEFAULT_ACL, Dirs, LONGEST_PATH, OpenDir, refused};
use super::options::{ApplyOptions, Devices, LeftOut, Ownership};
use crate::layer::{
    Form, LayerDir, OPAQUE_NAME, OverlayXattrs, WHITEOUT_PREFIX, join, xattr_travels,
};
use crate::tar::read::{Entry, Reader};
use crate::tar::{EPOCH, Kind, Xattr};
use crate::tree::timestamps;
use crate::{Error, Result, RootPath};

/// The longest name of a file, as the kernel has it.
const LONGEST_NAME: usize = 255;

/// What was unpacked.
pub(super) struct Unpacked {
    pub(super) entries: u64,
    pub(super) content_size: u64,
    pub(super) root: bool,
    pub(super) implicit: Vec<RootPath>,
    pub(super) left_out: LeftOut,
}

pub(super) struct Unpacker<'a> {
    options: &'a ApplyOptions,
    dirs: Dirs<'a>,
    /// The owner that new files get by themselves.
    own: (u32, u32),
    umask: u32,
    out: Unpacked,
}

impl<'a> Unpacker<'a> {
    pub(super) fn new(layer: &'a LayerDir, options: &'a ApplyOptions) -> Unpacker<'a> {
        let umask = umask();
        Unpacker {
            options,
            dirs: Dirs::new(layer, options.form, options.limits.memory, umask),
            own: (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            ),
            umask,
            out: Unpacked {
                entries: 0,
                content_size: 0,
                root: false,
                implicit: Vec::new(),
                left_out: LeftOut::default(),
            },
        }
    }

    /// Unpacks up to the end of the archive.
    pub(super) fn run<R: BufRead>(mut self, tar: &mut Reader<R>) -> Result<Unpacked> {
        if self.options.form != Form::Plain {
            // The root of a layer that does not describe it is as old as other directories that nobody describes.
            let root = self.dirs.make(b"")?;
            root.mtime.set(EPOCH);
            root.touch();
        }
        let limit = self.options.limits.entries;
        while let Some(entry) = tar.next()? {
            self.out.entries += 1;
            if self.out.entries > limit {
                return Err(Error::LayerLimit {
                    what: "entries",
                    limit,
                });
            }
            self.entry(entry, tar)?;
        }
        self.out.implicit = self.dirs.finish()?;
        Ok(self.out)
    }

    fn entry<R: BufRead>(&mut self, entry: Entry, tar: &mut Reader<R>) -> Result<()> {
        if entry.path.contains(&0) || entry.link.contains(&0) {
            return Err(refused(&entry.path, "its name has a NUL byte"));
        }
        if let Some((parent, name)) = self.long_whiteout(&entry.path)? {
            return self.whiteout(parent.relative(), name);
        }
        let path = RootPath::new(&entry.path)?;
        if path.as_bytes().len() > LONGEST_PATH {
            return Err(refused(&entry.path, "its path is too long"));
        }
        let Some(name) = path.file_name() else {
            return self.root(&entry);
        };
        let parent = path.relative();
        let parent = &parent[..parent.len().saturating_sub(name.len() + 1)];
        if matches!(self.options.form, Form::Overlay(_)) && name.starts_with(WHITEOUT_PREFIX) {
            return self.whiteout(parent, name);
        }
        match entry.kind {
            Kind::Directory => self.directory(parent, name, &entry),
            Kind::File => self.file(parent, name, &entry, tar),
            Kind::HardLink => self.hard_link(parent, name, &entry),
            Kind::Symlink => self.symlink(parent, name, &entry),
            Kind::Fifo | Kind::CharDevice | Kind::BlockDevice => self.node(parent, name, &entry),
        }
    }

    /// Splits the path of a whiteout whose own name is longer than a file name can be; the name it hides need not be.
    fn long_whiteout<'p>(&self, path: &'p [u8]) -> Result<Option<(RootPath, &'p [u8])>> {
        let start = path
            .iter()
            .rposition(|byte| *byte == b'/')
            .map_or(0, |slash| slash + 1);
        let (parent, name) = path.split_at(start);
        let is_long =
            name.len() > LONGEST_NAME && name.len() <= LONGEST_NAME + WHITEOUT_PREFIX.len();
        if self.options.form == Form::Plain || !is_long || !name.starts_with(WHITEOUT_PREFIX) {
            return Ok(None);
        }
        let parent = RootPath::new(parent)?;
        if parent.as_bytes().len() + name.len() > LONGEST_PATH {
            return Err(refused(path, "its path is too long"));
        }
        Ok(Some((parent, name)))
    }

    fn root(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::Directory {
            return Err(refused(&entry.path, "the root can only be a directory"));
        }
        let root = self.dirs.make(b"")?;
        self.out.root = true;
        self.describe_directory(&root, entry, true)
    }

    fn directory(&mut self, parent: &[u8], name: &[u8], entry: &Entry) -> Result<()> {
        let parent = self.dirs.make(parent)?;
        let mut hides_below = false;
        loop {
            if let Some(made) = self.dirs.make_dir(&parent, name, entry.mode)? {
                if hides_below {
                    self.dirs.set_opaque(&made)?;
                }
                return self.describe_directory(&made, entry, false);
            }
            let path = join(&parent.path, name);
            let status = statat(&*parent, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|source| Error::io("look up", &path, source))?;
            if FileType::from_raw_mode(status.st_mode) == FileType::Directory {
                self.dirs.note_explicit(&path);
                let existing = self.dirs.existing(&path)?;
                return self.describe_directory(&existing, entry, true);
            }
            hides_below = self.dirs.is_whiteout(&status);
            self.dirs.clear(&parent, name, &status)?;
        }
    }

    /// Gives a directory what its entry says; one just made has the mode already.
    fn describe_directory(&mut self, dir: &OpenDir, entry: &Entry, is_old: bool) -> Result<()> {
        let failed = |source| Error::io("set the owner and mode of", &dir.path, source);
        let owner = self.owner(entry);
        let takes_chown = is_old || owner != self.own;
        if takes_chown {
            fchown(
                dir,
                Some(Uid::from_raw(owner.0)),
                Some(Gid::from_raw(owner.1)),
            )
            .map_err(failed)?;
        }
        if is_old || (takes_chown && entry.mode & 0o6000 != 0) {
            fchmod(dir, Mode::from_raw_mode(entry.mode)).map_err(failed)?;
        }
        dir.gives_group
            .set(entry.mode & 0o2000 != 0 || owner.1 != self.own.1);
        dir.mtime.set(entry.mtime);
        dir.touch();
        for xattr in &entry.xattrs {
            if xattr.name == DEFAULT_ACL.as_bytes() {
                if xattr.value.len() > 64 << 10 {
                    return Err(refused(&entry.path, "its default ACL is too large"));
                }
                self.dirs.has_default_acls = true;
                dir.default_acl.replace(Some(xattr.value.clone()));
            } else {
                self.xattr(&dir.path, xattr, true, |name, value| {
                    fsetxattr(dir, name, value, XattrFlags::empty())
                })?;
            }
        }
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        parent: &[u8],
        name: &[u8],
        entry: &Entry,
        tar: &mut Reader<R>,
    ) -> Result<()> {
        let parent = self.dirs.make(parent)?;
        let path = || join(&parent.path, name);
        parent.touch();
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let file = self.put(&parent, name, || openat(&*parent, name, flags, mode))?;
        let written = match &entry.sparse {
            None => write_all(file.as_fd(), tar),
            Some(_) => write_stretches(file.as_fd(), entry, tar),
        };
        match written {
            Ok(size) => self.out.content_size += size,
            Err(WriteFailure::Tar(error)) => return Err(error),
            Err(WriteFailure::File(source)) => return Err(Error::io("write", path(), source)),
        }
        let failed = |source| Error::io("set the owner, mode and time of", path(), source);
        let owner = self.owner(entry);
        let takes_chown = owner != self.own || parent.gives_group.get();
        if takes_chown {
            fchown(
                &file,
                Some(Uid::from_raw(owner.0)),
                Some(Gid::from_raw(owner.1)),
            )
            .map_err(failed)?;
        }
        // After chown and write, which both take capabilities away; chown takes setuid too.
        for xattr in &entry.xattrs {
            self.xattr(&entry.path, xattr, true, |name, value| {
                fsetxattr(&file, name, value, XattrFlags::empty())
            })?;
        }
        if entry.mode & (0o7000 | self.umask) != 0 {
            fchmod(&file, Mode::from_raw_mode(entry.mode)).map_err(failed)?;
        }
        futimens(&file, &timestamps(entry.mtime)).map_err(failed)
    }

    fn hard_link(&mut self, parent: &[u8], name: &[u8], entry: &Entry) -> Result<()> {
        let target = RootPath::new(&entry.link)?;
        let missing = || {
            refused(
                &entry.path,
                "the target of this hard link is not in the layer",
            )
        };
        let Some(target_name) = target.file_name() else {
            return Err(refused(&entry.path, "it is a hard link to a directory"));
        };
        let target_parent = target.parent().unwrap_or_else(RootPath::root);
        let target_dir = match self.dirs.existing(target_parent.relative()) {
            Err(Error::NotFound { .. } | Error::NotADirectory { .. }) => return Err(missing()),
            outcome => outcome?,
        };
        let status = match statat(&*target_dir, target_name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Err(missing()),
            outcome => outcome.map_err(|source| Error::io("look up", target.relative(), source))?,
        };
        if self.dirs.is_whiteout(&status) {
            return Err(missing());
        }
        if FileType::from_raw_mode(status.st_mode) == FileType::Directory {
            return Err(refused(&entry.path, "it is a hard link to a directory"));
        }
        let parent = self.dirs.make(parent)?;
        // Making the parent may have replaced what was looked at; then there is nothing to link to any more.
        if let Ok(known) = statat(&*parent, name, AtFlags::SYMLINK_NOFOLLOW)
            && (known.st_dev, known.st_ino) == (status.st_dev, status.st_ino)
        {
            return Ok(());
        }
        self.put(&parent, name, || {
            linkat(&*target_dir, target_name, &*parent, name, AtFlags::empty())
        })
    }

    fn symlink(&mut self, parent: &[u8], name: &[u8], entry: &Entry) -> Result<()> {
        if entry.link.is_empty() {
            return Err(refused(&entry.path, "it is a symbolic link to nothing"));
        }
        let parent = self.dirs.make(parent)?;
        self.put(&parent, name, || {
            symlinkat(entry.link.as_slice(), &*parent, name)
        })?;
        self.describe(&parent, name, entry)
    }

    fn node(&mut self, parent: &[u8], name: &[u8], entry: &Entry) -> Result<()> {
        let kind = match entry.kind {
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        if entry.kind == Kind::CharDevice && entry.device == (0, 0) {
            self.out.left_out.whiteout_devices += 1;
            return Ok(());
        }
        if entry.kind != Kind::Fifo {
            match self.options.devices {
                Devices::Create => {}
                Devices::Skip => {
                    self.out.left_out.devices += 1;
                    return Ok(());
                }
                Devices::Refuse => return Err(refused(&entry.path, "it is a device")),
            }
            // The kernel keeps 12 bits of major and 20 of minor.
            if entry.device.0 >= 1 << 12 || entry.device.1 >= 1 << 20 {
                return Err(refused(&entry.path, "its device number is out of range"));
            }
        }
        let parent = self.dirs.make(parent)?;
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let device = makedev(entry.device.0, entry.device.1);
        self.put(&parent, name, || {
            mknodat(&*parent, name, kind, mode, device)
        })?;
        self.describe(&parent, name, entry)
    }

    /// Gives what its entry says to something made that cannot be opened.
    fn describe(&mut self, parent: &OpenDir, name: &[u8], entry: &Entry) -> Result<()> {
        let failed = |source| Error::io("set the owner, mode and time of", &entry.path, source);
        let owner = self.owner(entry);
        if owner != self.own || parent.gives_group.get() {
            let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
            chownat(
                parent,
                name,
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .map_err(failed)?;
        }
        if !entry.xattrs.is_empty() {
            let path = [
                format!("/proc/self/fd/{}/", parent.as_fd().as_raw_fd()).as_bytes(),
                name,
            ]
            .concat();
            for xattr in &entry.xattrs {
                self.xattr(&entry.path, xattr, false, |xattr, value| {
                    lsetxattr(&path, xattr, value, XattrFlags::empty())
                })?;
            }
        }
        if entry.kind != Kind::Symlink && entry.mode & (0o7000 | self.umask) != 0 {
            // It was made here, and is no symlink.
            chmodat(
                parent,
                name,
                Mode::from_raw_mode(entry.mode),
                AtFlags::empty(),
            )
            .map_err(failed)?;
        }
        utimensat(
            parent,
            name,
            &timestamps(entry.mtime),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(failed)
    }

    fn whiteout(&mut self, parent: &[u8], name: &[u8]) -> Result<()> {
        let path = join(parent, name);
        if name == OPAQUE_NAME {
            let dir = self.dirs.make(parent)?;
            return self.dirs.set_opaque(&dir);
        }
        let hidden = &name[WHITEOUT_PREFIX.len()..];
        if hidden.starts_with(WHITEOUT_PREFIX) {
            // What aufs kept for itself.
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(refused(&path, "it is a whiteout of no name"));
        }
        let parent = self.dirs.make(parent)?;
        parent.touch();
        match mknodat(
            &*parent,
            hidden,
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        ) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(source) => return Err(Error::io("make whiteout", &path, source)),
        }
        // What is in the same layer stays; it only stops showing what is below.
        let path = join(&parent.path, hidden);
        let status = statat(&*parent, hidden, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|source| Error::io("look up", &path, source))?;
        if FileType::from_raw_mode(status.st_mode) == FileType::Directory {
            let dir = self.dirs.existing(&path)?;
            self.dirs.set_opaque(&dir)?;
            // Whatever was below under this name is gone: the directory takes nothing from there.
            self.dirs.note_explicit(&path);
        }
        Ok(())
    }

    /// Makes something that is no directory, in place of whatever is there.
    fn put<T>(
        &mut self,
        parent: &OpenDir,
        name: &[u8],
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T> {
        let failed = |source| Error::io("make", join(&parent.path, name), source);
        parent.touch();
        match make() {
            Err(Errno::EXIST) => {}
            outcome => return outcome.map_err(failed),
        }
        let status = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        self.dirs.clear(parent, name, &status)?;
        make().map_err(failed)
    }

    fn xattr(
        &mut self,
        path: &[u8],
        xattr: &Xattr,
        takes_user: bool,
        set: impl FnOnce(&[u8], &[u8]) -> rustix::io::Result<()>,
    ) -> Result<()> {
        if !xattr_travels(&xattr.name) {
            self.out.left_out.reserved_xattrs += 1;
            return Ok(());
        }
        let is_nested = self.options.form == Form::Overlay(OverlayXattrs::User);
        match set(&xattr.name, &xattr.value) {
            Ok(()) => Ok(()),
            // Symlinks and devices have no `user.`; a user namespace has no `security.` beside capabilities.
            Err(Errno::PERM) if is_nested || (!takes_user && xattr.name.starts_with(b"user.")) => {
                self.out.left_out.unsupported_xattrs += 1;
                Ok(())
            }
            Err(Errno::OPNOTSUPP) => {
                self.out.left_out.unsupported_xattrs += 1;
                Ok(())
            }
            Err(source) => Err(Error::io("set an xattr of", path, source)),
        }
    }

    fn owner(&self, entry: &Entry) -> (u32, u32) {
        match self.options.ownership {
            Ownership::Keep => (entry.uid, entry.gid),
            Ownership::Ignore => self.own,
            Ownership::Set { uid, gid } => (uid, gid),
        }
    }
}

enum WriteFailure {
    Tar(Error),
    File(Errno),
}

fn write_all<R: BufRead>(
    file: BorrowedFd<'_>,
    tar: &mut Reader<R>,
) -> std::result::Result<u64, WriteFailure> {
    let mut size = 0;
    loop {
        let piece = tar.data().map_err(WriteFailure::Tar)?;
        if piece.is_empty() {
            return Ok(size);
        }
        let length = rustix::io::retry_on_intr(|| rustix::io::write(file, piece))
            .map_err(WriteFailure::File)?;
        tar.consume(length);
        size += length as u64;
    }
}

fn write_stretches<R: BufRead>(
    file: BorrowedFd<'_>,
    entry: &Entry,
    tar: &mut Reader<R>,
) -> std::result::Result<u64, WriteFailure> {
    let mut size = 0;
    for stretch in entry.sparse.iter().flatten() {
        let (mut at, end) = (stretch.offset, stretch.offset + stretch.length);
        while at < end {
            let piece = tar.data().map_err(WriteFailure::Tar)?;
            let most = usize::try_from(end - at)
                .unwrap_or(usize::MAX)
                .min(piece.len());
            let length = rustix::io::retry_on_intr(|| rustix::io::pwrite(file, &piece[..most], at))
                .map_err(WriteFailure::File)?;
            tar.consume(length);
            at += length as u64;
            size += length as u64;
        }
    }
    ftruncate(file, entry.size).map_err(WriteFailure::File)?;
    Ok(size)
}

/// Returns the process's umask; all of it is taken to be set where it cannot be read.
fn umask() -> u32 {
    std::fs::read_to_string("/proc/thread-self/status")
        .ok()
        .and_then(|status| {
            let value = status
                .lines()
                .find_map(|line| line.strip_prefix("Umask:"))?;
            u32::from_str_radix(value.trim(), 8).ok()
        })
        .unwrap_or(0o777)
}
