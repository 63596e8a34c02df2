//! ADD of a local archive: it is unpacked instead of being copied.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::bounded::Bounded;
use super::data::write_all;
use super::{Copy, CopyReport, Owner, Timestamp};
use crate::apply::Limits;
use crate::layer::xattr_travels;
use crate::meta::{self, Kind, Xattr};
use crate::resolve::{Follow, NewDirs, make_missing};
use crate::tar::read::{Entry, Reader};
use crate::tar::{self};
use crate::tree::{Dir, Lookup, Tree, set_owner_at, set_owner_fd, timestamps};
use crate::{Error, Result, RootPath};

/// The mode of directories that an archive takes for granted.
const IMPLIED: NewDirs = NewDirs {
    mode: 0o755,
    owner: Some(Owner { uid: 0, gid: 0 }),
    time: None,
};

/// Unpacks the file at `path` into the directory `to` if it is a tar, compressed or not; otherwise does nothing and
/// returns `false`.
///
/// The mode and the time of the request are not applied to what comes from an archive, as in the reference. Symlinks
/// that are met in the target resolve with `to` as their root.
pub(super) fn unpack(
    source: &Tree,
    path: &RootPath,
    dest: &Tree,
    to: &RootPath,
    request: &Copy,
    report: &mut CopyReport,
) -> Result<bool> {
    let found = source.resolve(path, Follow::Last)?;
    let file = match (&found.rest[..], &found.leaf) {
        ([name], Some(entry)) if entry.meta.kind == Kind::File => {
            found.dir.open_file(name, entry)?
        }
        _ => return Ok(false),
    };
    let bounds = Bounds {
        limits: request.limits,
        stopped: request.stopped.clone(),
    };
    if !is_archive(&file, &bounds)? {
        return Ok(false);
    }
    let new = NewDirs {
        mode: 0o755,
        owner: request.owner,
        time: request.time,
    };
    let (root, _) = make_missing(dest.resolve(to, Follow::Last)?, &new)?;
    let input = decompressed(file, &bounds)
        .map_err(|source| Error::io("read the archive", path, source))?;
    let mut unpacking = Unpacking {
        tree: Tree::at(root),
        archive: path,
        owner: request.owner,
        dirs: Vec::new(),
        remembered: 0,
        memory: request.limits.memory,
        last: None,
        report,
    };
    let mut reader = Reader::new(input);
    let mut entries = 0;
    while let Some(entry) = reader.next()? {
        bounds.count(&mut entries)?;
        unpacking.entry(&entry, &mut reader)?;
    }
    unpacking.finish()?;
    Ok(true)
}

/// Returns the latest time of the files in an archive, in seconds since 1970; `None` for what is no archive, or has none.
pub fn latest_in_archive(
    file: File,
    limits: Limits,
    stopped: Option<Arc<AtomicBool>>,
) -> Result<Option<i64>> {
    let (file, bounds) = (OwnedFd::from(file), Bounds { limits, stopped });
    if !is_archive(&file, &bounds)? {
        return Ok(None);
    }
    let input = decompressed(file, &bounds).map_err(crate::tar::read::read_error)?;
    let mut reader = Reader::new(input);
    let (mut entries, mut latest) = (0, None);
    while let Some(entry) = reader.next()? {
        bounds.count(&mut entries)?;
        if entry.kind == tar::Kind::File {
            latest = latest.max(Some(entry.mtime.seconds));
        }
    }
    Ok(latest)
}

/// What ends the reading of an archive before its end.
struct Bounds {
    limits: Limits,
    stopped: Option<Arc<AtomicBool>>,
}

impl Bounds {
    fn count(&self, entries: &mut u64) -> Result<()> {
        *entries += 1;
        match *entries > self.limits.entries {
            false => Ok(()),
            true => Err(Error::ArchiveLimit {
                what: "entries",
                limit: self.limits.entries,
            }),
        }
    }
}

/// Returns whether a file starts with a tar header once it is decompressed.
fn is_archive(file: &OwnedFd, bounds: &Bounds) -> Result<bool> {
    let again = file
        .try_clone()
        .and_then(|again| decompressed(again, bounds));
    let Ok(input) = again else {
        return Ok(false);
    };
    match Reader::new(input).next() {
        Err(error @ (Error::Stopped | Error::ArchiveLimit { .. })) => Err(error),
        found => Ok(matches!(found, Ok(Some(_)))),
    }
}

/// Reads a file from its start through the decompressor that its first bytes ask for.
fn decompressed(file: OwnedFd, bounds: &Bounds) -> std::io::Result<Box<dyn BufRead>> {
    let mut file = File::from(file);
    file.seek(SeekFrom::Start(0))?;
    let mut start = [0; 10];
    let mut length = 0;
    while length < start.len() {
        match file.read(&mut start[length..])? {
            0 => break,
            count => length += count,
        }
    }
    file.seek(SeekFrom::Start(0))?;
    let input = BufReader::with_capacity(256 * 1024, file);
    let window = bounds.limits.zstd_window_log;
    let input: Box<dyn BufRead> = match &start[..length] {
        [0x1f, 0x8b, 0x08, ..] => buffered(flate2::bufread::MultiGzDecoder::new(input)),
        [b'B', b'Z', b'h', ..] => buffered(bzip2::bufread::MultiBzDecoder::new(input)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            // As much memory for its dictionary as the window of the other, and some for the rest.
            let kilobytes = (1 << window.saturating_sub(10)) + 1024;
            buffered(lzma_rust2::XzReader::new_mem_limit(input, true, kilobytes))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(window)?;
            buffered(decoder)
        }
        _ => Box::new(input),
    };
    let stopped = bounds.stopped.clone();
    Ok(Box::new(Bounded::new(input, bounds.limits.bytes, stopped)))
}

fn buffered(input: impl Read + 'static) -> Box<dyn BufRead> {
    Box::new(BufReader::with_capacity(256 * 1024, input))
}

struct Unpacking<'a> {
    /// The target as a root of its own.
    tree: Tree,
    archive: &'a RootPath,
    owner: Option<Owner>,
    /// Directories of the archive and their times, which are set when nothing changes them any more.
    dirs: Vec<(RootPath, Timestamp)>,
    /// Bytes of memory for them, and how many there may be.
    remembered: usize,
    memory: usize,
    /// The directory of the entry before; most entries lie beside the one before.
    last: Option<(RootPath, Arc<Dir>)>,
    report: &'a mut CopyReport,
}

impl Unpacking<'_> {
    fn entry<R: BufRead>(&mut self, entry: &Entry, reader: &mut Reader<R>) -> Result<()> {
        // `..` above the target is cut off, as where the target is a root: it leads nowhere else.
        let path = RootPath::new(&entry.path)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            // The root of the archive: the target stays as it is.
            return Ok(());
        };
        let name = CString::new(name)
            .map_err(|_| self.error(&entry.path, "its name contains a NUL byte"))?;
        let dir = self.parent(&parent)?;
        self.report.entries += 1;
        let owner = self.owner.unwrap_or(Owner {
            uid: entry.uid,
            gid: entry.gid,
        });
        let time = Timestamp {
            seconds: entry.mtime.seconds,
            nanoseconds: entry.mtime.nanoseconds,
        };
        if entry.kind == tar::Kind::Directory {
            return self.directory(entry, path, &dir, &name, owner, time);
        }
        // A directory in the way goes with all below it, and what is remembered may be in it.
        self.last = None;
        let fd = dir.clear_way(&name, true)?;
        self.last = Some((parent, Arc::clone(&dir)));
        let made = match entry.kind {
            tar::Kind::File => return self.file(entry, reader, &dir, &name, owner, time),
            tar::Kind::HardLink => return self.hard_link(entry, &dir, &name, owner, time),
            tar::Kind::Symlink => {
                let target = CString::new(entry.link.as_slice())
                    .map_err(|_| self.error(&entry.path, "its target contains a NUL byte"))?;
                rustix::fs::symlinkat(target.as_c_str(), fd, &name)
            }
            tar::Kind::CharDevice if entry.device == (0, 0) => Err(Errno::PERM),
            tar::Kind::CharDevice | tar::Kind::BlockDevice | tar::Kind::Fifo => {
                let kind = match entry.kind {
                    tar::Kind::CharDevice => FileType::CharacterDevice,
                    tar::Kind::BlockDevice => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let device = rustix::fs::makedev(entry.device.0, entry.device.1);
                rustix::fs::mknodat(fd, &name, kind, Mode::from_raw_mode(entry.mode), device)
            }
            tar::Kind::Directory => Err(Errno::ISDIR),
        };
        made.map_err(|errno| dir.error("create", &name, errno))?;
        self.attributes_at(entry, &dir, &name, owner, time)
    }

    /// Returns the directory at `path` in the target, after making what is missing.
    fn parent(&mut self, path: &RootPath) -> Result<Arc<Dir>> {
        if let Some((last, dir)) = &self.last
            && last == path
        {
            return Ok(Arc::clone(dir));
        }
        let (dir, _) = make_missing(self.tree.resolve(path, Follow::Last)?, &IMPLIED)?;
        self.last = Some((path.clone(), Arc::clone(&dir)));
        Ok(dir)
    }

    fn directory(
        &mut self,
        entry: &Entry,
        path: RootPath,
        dir: &Arc<Dir>,
        name: &CStr,
        owner: Owner,
        time: Timestamp,
    ) -> Result<()> {
        let made = match dir.lookup(name)? {
            Lookup::Found(found) if found.meta.is_dir() => dir.open_dir(name, &found)?,
            Lookup::Found(_) => {
                dir.remove(name)?;
                dir.create_dir(name)?
            }
            Lookup::Missing | Lookup::Whiteout => dir.create_dir(name)?,
        };
        made.set_owner(owner)?;
        made.set_mode(entry.mode)?;
        for attribute in attributes(entry) {
            meta::set_xattr(made.writable()?, &attribute)
                .map_err(|errno| dir.error("set an xattr of", name, errno))?;
        }
        self.remembered += path.as_bytes().len() + size_of::<(RootPath, Timestamp)>();
        if self.remembered > self.memory {
            return Err(Error::ArchiveLimit {
                what: "bytes of names of directories",
                limit: self.memory as u64,
            });
        }
        self.dirs.push((path, time));
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        entry: &Entry,
        reader: &mut Reader<R>,
        dir: &Dir,
        name: &CStr,
        owner: Owner,
        time: Timestamp,
    ) -> Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir.writable()?, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| dir.error("create", name, errno))?;
        let failed = |errno| dir.error("write", name, errno);
        match &entry.sparse {
            None => write_data(reader, &file, u64::MAX).map_err(|error| error.of(failed))?,
            Some(stretches) => {
                for stretch in stretches {
                    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(stretch.offset))
                        .map_err(failed)?;
                    write_data(reader, &file, stretch.length).map_err(|error| error.of(failed))?;
                }
                rustix::fs::ftruncate(&file, entry.size).map_err(failed)?;
            }
        }
        self.report.bytes += entry.size;
        let set = || -> std::result::Result<(), Errno> {
            set_owner_fd(file.as_fd(), owner)?;
            rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode))?;
            for attribute in attributes(entry) {
                meta::set_xattr(file.as_fd(), &attribute)?;
            }
            rustix::fs::futimens(&file, &timestamps(time))
        };
        set().map_err(|errno| dir.error("set the attributes of", name, errno))
    }

    fn hard_link(
        &self,
        entry: &Entry,
        dir: &Dir,
        name: &CStr,
        owner: Owner,
        time: Timestamp,
    ) -> Result<()> {
        let target = RootPath::new(&entry.link)?;
        let found = self.tree.resolve(&target, Follow::Parents)?;
        let (Some(_), [target_name]) = (&found.leaf, &found.rest[..]) else {
            return Err(self.error(&entry.path, "it links to something that is not there"));
        };
        // Only the upper directory's own files may get another name.
        let fd = found.dir.writable()?;
        rustix::fs::linkat(fd, target_name, dir.writable()?, name, AtFlags::empty()).map_err(
            |errno| match errno {
                Errno::NOENT => self.error(
                    &entry.path,
                    "it links to a file that is not of this archive",
                ),
                errno => dir.error("link", name, errno),
            },
        )?;
        self.attributes_at(entry, dir, name, owner, time)
    }

    /// Sets the attributes of something that is not open.
    fn attributes_at(
        &self,
        entry: &Entry,
        dir: &Dir,
        name: &CStr,
        owner: Owner,
        time: Timestamp,
    ) -> Result<()> {
        let set = || -> std::result::Result<(), Errno> {
            let Ok(fd) = dir.writable() else {
                return Err(Errno::ROFS);
            };
            set_owner_at(fd, name, owner)?;
            let found = meta::stat(fd, name)?;
            if found.kind != Kind::Symlink {
                rustix::fs::chmodat(fd, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
            }
            rustix::fs::utimensat(fd, name, &timestamps(time), AtFlags::SYMLINK_NOFOLLOW)
        };
        set().map_err(|errno| dir.error("set the attributes of", name, errno))
    }

    fn finish(self) -> Result<()> {
        for (path, time) in &self.dirs {
            // A later entry may have replaced it.
            let found = self.tree.resolve(path, Follow::Parents)?;
            if found.is_dir() {
                found.dir.set_time(*time)?;
            }
        }
        Ok(())
    }

    fn error(&self, member: &[u8], reason: &str) -> Error {
        Error::Archive {
            archive: self.archive.to_string(),
            member: String::from_utf8_lossy(member).into_owned(),
            reason: reason.to_owned(),
        }
    }
}

fn attributes(entry: &Entry) -> Vec<Xattr> {
    let travelling = entry
        .xattrs
        .iter()
        .filter(|xattr| xattr_travels(&xattr.name));
    travelling
        .filter_map(|xattr| {
            Some(Xattr {
                name: CString::new(xattr.name.as_slice()).ok()?,
                value: xattr.value.clone(),
            })
        })
        .collect()
}

/// What ended the writing of an entry's data.
enum DataError {
    Read(Error),
    Write(Errno),
}

impl DataError {
    fn of(self, write: impl FnOnce(Errno) -> Error) -> Error {
        match self {
            DataError::Read(error) => error,
            DataError::Write(errno) => write(errno),
        }
    }
}

fn write_data<R: BufRead>(
    reader: &mut Reader<R>,
    file: &OwnedFd,
    mut length: u64,
) -> std::result::Result<(), DataError> {
    while length > 0 {
        let data = reader.data().map_err(DataError::Read)?;
        let count = data
            .len()
            .min(usize::try_from(length).unwrap_or(usize::MAX));
        if count == 0 {
            break;
        }
        write_all(file, &data[..count]).map_err(DataError::Write)?;
        reader.consume(count);
        length -= count as u64;
    }
    Ok(())
}
