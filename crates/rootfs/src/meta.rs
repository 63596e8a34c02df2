//! What `statx` and the xattr calls tell of one file.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, StatxFlags, XattrFlags};
use rustix::io::Errno;
use rustix::path;

use crate::copy::{Owner, Timestamp};
use crate::layer::xattr_travels;

/// The type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    Character,
    Block,
    Fifo,
    Socket,
}

/// The attributes of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    pub kind: Kind,
    /// The twelve permission bits.
    pub mode: u32,
    pub owner: Owner,
    pub size: u64,
    /// Units of 512 bytes that the file takes on disk.
    pub blocks: u64,
    pub links: u32,
    /// Device number of a device file.
    pub rdev: (u32, u32),
    pub device: u64,
    pub inode: u64,
    pub modified: Timestamp,
    pub changed: Timestamp,
}

impl Meta {
    /// Returns whether this is how an overlay's layer says "nothing is here".
    pub(crate) fn is_whiteout(&self) -> bool {
        self.kind == Kind::Character && self.rdev == (0, 0)
    }

    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Directory
    }
}

impl Kind {
    /// Reads the type bits of a mode; `None` for a type that Linux does not have.
    pub(crate) fn from_mode(mode: u32) -> Option<Kind> {
        Some(match mode & libc::S_IFMT {
            libc::S_IFREG => Kind::File,
            libc::S_IFDIR => Kind::Directory,
            libc::S_IFLNK => Kind::Symlink,
            libc::S_IFCHR => Kind::Character,
            libc::S_IFBLK => Kind::Block,
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            _ => return None,
        })
    }
}

const MASK: StatxFlags = StatxFlags::BASIC_STATS.difference(StatxFlags::ATIME);

/// Returns the attributes of `name` in `dir`, of the symlink itself if it is one; of `dir` for an empty name.
pub(crate) fn stat(dir: BorrowedFd<'_>, name: &CStr) -> Result<Meta, Errno> {
    let mut flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    if name.is_empty() {
        flags |= AtFlags::EMPTY_PATH;
    }
    let found = rustix::fs::statx(dir, name, flags, MASK)?;
    let time = |t: rustix::fs::StatxTimestamp| Timestamp {
        seconds: t.tv_sec,
        nanoseconds: t.tv_nsec,
    };
    Ok(Meta {
        kind: Kind::from_mode(u32::from(found.stx_mode)).ok_or(Errno::INVAL)?,
        mode: u32::from(found.stx_mode) & 0o7777,
        owner: Owner {
            uid: found.stx_uid,
            gid: found.stx_gid,
        },
        size: found.stx_size,
        blocks: found.stx_blocks,
        links: found.stx_nlink,
        rdev: (found.stx_rdev_major, found.stx_rdev_minor),
        device: rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor),
        inode: found.stx_ino,
        modified: time(found.stx_mtime),
        changed: time(found.stx_ctime),
    })
}

/// Opens a directory for listing, never through a symlink.
pub(crate) fn open_dir(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Opens a file for reading, never through a symlink and never waiting for the other end of a FIFO.
pub(crate) fn open_file(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Lists a directory, in the order of the kernel, without `.` and `..`; the type is `None` where the file
/// system does not tell.
pub(crate) fn list(
    dir: BorrowedFd<'_>,
    mut each: impl FnMut(&CStr, Option<Kind>),
) -> Result<(), Errno> {
    // A descriptor of its own: the position in `dir` may be shared with another thread.
    let own = open_dir(dir, c".")?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 32 * 1024];
    let mut entries = RawDir::new(own, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        each(name, Kind::from_mode(entry.file_type().as_raw_mode()));
    }
    Ok(())
}

/// One extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Xattr {
    pub(crate) name: CString,
    pub(crate) value: Vec<u8>,
}

/// Returns the content attributes of an open file, sorted by name.
pub(crate) fn xattrs(file: BorrowedFd<'_>) -> Result<Vec<Xattr>, Errno> {
    let mut list = [MaybeUninit::<u8>::uninit(); 1024];
    let mut long;
    let names: &[u8] = match rustix::fs::flistxattr(file, &mut list) {
        Ok((names, _)) => names,
        Err(Errno::RANGE) => {
            long = vec![0; 64 * 1024];
            let length = rustix::fs::flistxattr(file, &mut long[..])?;
            &long[..length]
        }
        Err(Errno::OPNOTSUPP | Errno::BADF) => &[],
        Err(errno) => return Err(errno),
    };
    let mut found = Vec::new();
    for name in names.split_inclusive(|b| *b == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        if !xattr_travels(name.to_bytes()) {
            continue;
        }
        if let Some(value) = xattr(file, name)? {
            found.push(Xattr {
                name: name.to_owned(),
                value,
            });
        }
    }
    found.sort();
    Ok(found)
}

/// Returns one attribute; `None` where it is not there or may not be read.
pub(crate) fn xattr(
    file: BorrowedFd<'_>,
    name: impl path::Arg + Copy,
) -> Result<Option<Vec<u8>>, Errno> {
    let mut small = [MaybeUninit::<u8>::uninit(); 256];
    match rustix::fs::fgetxattr(file, name, &mut small) {
        Ok((value, _)) => return Ok(Some(value.to_vec())),
        Err(Errno::RANGE) => {}
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => return Ok(None),
        Err(errno) => return Err(errno),
    }
    let mut large = vec![0; 64 * 1024];
    let length = rustix::fs::fgetxattr(file, name, &mut large[..])?;
    large.truncate(length);
    Ok(Some(large))
}

/// Sets an attribute; where the file system or the privileges forbid it, it is left out with a trace.
pub(crate) fn set_xattr(file: BorrowedFd<'_>, attribute: &Xattr) -> Result<(), Errno> {
    match rustix::fs::fsetxattr(
        file,
        attribute.name.as_c_str(),
        &attribute.value,
        XattrFlags::empty(),
    ) {
        Err(errno @ (Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS)) => {
            tracing::warn!(name = ?attribute.name, %errno, "extended attribute left out");
            Ok(())
        }
        result => result,
    }
}

/// Returns the file's attributes through its descriptor.
pub(crate) fn stat_fd(file: impl AsFd) -> Result<Meta, Errno> {
    stat(file.as_fd(), c"")
}

/// Returns whether all attributes of a file are such as belong to an image; `false` where that cannot be told.
pub(crate) fn only_travelling_xattrs(dir: BorrowedFd<'_>, name: &CStr) -> bool {
    let mut list = [MaybeUninit::<u8>::uninit(); 1024];
    let Ok(file) = open_file(dir, name) else {
        return false;
    };
    match rustix::fs::flistxattr(&file, &mut list) {
        Ok((names, _)) => names
            .split(|b| *b == 0)
            .filter(|name| !name.is_empty())
            .all(xattr_travels),
        Err(errno) => errno == Errno::OPNOTSUPP,
    }
}
