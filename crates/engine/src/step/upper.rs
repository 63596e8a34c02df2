//! Files in what a step has written: found and changed without following a link.
//!
//! The tree is hostile, but nobody changes it any more.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rootfs::copy::Timestamp;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use crate::EngineError;

/// Deeper than anybody keeps what is looked for.
const DEPTH: usize = 32;

/// A regular file.
pub(crate) struct Found {
    /// From the root, with a slash before it.
    pub(crate) path: String,
    pub(crate) size: u64,
    stat: Stat,
    directory: OwnedFd,
    name: String,
}

/// Returns the regular files whose path is wanted, sorted.
pub(crate) fn files(
    root: &OwnedFd,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Found>, EngineError> {
    let mut found = Vec::new();
    walk(root, "/", DEPTH, &wanted, &mut found)
        .map_err(|errno| EngineError::io("look through", "what a step wrote")(errno.into()))?;
    found.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(found)
}

fn walk(
    directory: &OwnedFd,
    path: &str,
    depth: usize,
    wanted: &impl Fn(&str) -> bool,
    found: &mut Vec<Found>,
) -> Result<(), Errno> {
    let mut entries = Dir::read_from(directory)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        // What has no text for a name is none of ours.
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        if matches!(name, "." | "..") {
            continue;
        }
        let full = format!("{path}{name}");
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            kind => kind,
        };
        match kind {
            FileType::Directory if depth > 0 => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let below = rustix::fs::openat(directory, name, flags, Mode::empty())?;
                walk(&below, &format!("{full}/"), depth - 1, wanted, found)?;
            }
            FileType::RegularFile if wanted(&full) => {
                let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                found.push(Found {
                    path: full,
                    size: u64::try_from(stat.st_size).unwrap_or(u64::MAX),
                    stat,
                    directory: rustix::io::fcntl_dupfd_cloexec(directory, 0)?,
                    name: name.to_owned(),
                });
            }
            _ => {}
        }
    }
    Ok(())
}

impl Found {
    pub(crate) fn read(&self) -> Result<Vec<u8>, EngineError> {
        let mut file = self.open(OFlags::RDONLY)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)
            .map_err(EngineError::io("read", &self.path))?;
        Ok(text)
    }

    /// Replaces the content; everything else stays, the time too.
    pub(crate) fn rewrite(&self, text: &[u8]) -> Result<(), EngineError> {
        let mut file = self.open(OFlags::WRONLY | OFlags::TRUNC)?;
        let failed = |error| EngineError::io("write", &self.path)(error);
        file.write_all(text).map_err(failed)?;
        set_time(&file, self.time()).map_err(failed)
    }

    /// Returns whether all attributes but those of the content are like those of another file.
    pub(crate) fn is_like(&self, meta: &rootfs::Meta) -> bool {
        let time = self.time();
        self.stat.st_mode & 0o7777 == meta.mode
            && self.stat.st_uid == meta.owner.uid
            && self.stat.st_gid == meta.owner.gid
            && time == meta.modified
    }

    pub(crate) fn remove(&self) -> Result<(), EngineError> {
        rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty())
            .map_err(|errno| EngineError::io("remove", &self.path)(errno.into()))
    }

    /// Renames it within its directory, where nothing has the other name.
    pub(crate) fn rename_to_if_free(&self, name: &str) -> Result<(), EngineError> {
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        let (from, to) = (&self.directory, &self.directory);
        match rustix::fs::renameat_with(from, &self.name, to, name, flags) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(EngineError::io("rename", &self.path)(errno.into())),
        }
    }

    fn open(&self, flags: OFlags) -> Result<File, EngineError> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.directory, &self.name, flags, Mode::empty())
            .map(File::from)
            .map_err(|errno| EngineError::io("open", &self.path)(errno.into()))
    }

    fn time(&self) -> Timestamp {
        Timestamp {
            seconds: self.stat.st_mtime,
            nanoseconds: u32::try_from(self.stat.st_mtime_nsec).unwrap_or(0),
        }
    }
}

/// Sets the time of an open file's last change.
pub(crate) fn set_time(file: impl AsFd, time: Timestamp) -> std::io::Result<()> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: time.seconds,
            tv_nsec: i64::from(time.nanoseconds),
        },
    };
    rustix::fs::futimens(file, &times).map_err(std::io::Error::from)
}
