//! Copies of the context's files that nobody else changes.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::copies::{Earlier, Near, Staged, StagedFile};
use super::{BATCH, Capture, Known, empty_hash, open_beneath};
use crate::checksum::{NOTHING, Selection, hash_xattrs};
use crate::copy::Owner;
use crate::copy::data::{DataCopy, with_buffer, write_all};
use crate::copy::links::Links;
use crate::memo::{CarefulMemo, FileContent, FileMemo, FileStamp, file_clock};
use crate::meta::{self, Kind, Meta};
use crate::pool::{self, Queue};
use crate::tree::{open_host_dir, set_owner_at, set_owner_fd, timestamps};
use crate::{Error, Result};

const READ_AT_ONCE: usize = 256 * 1024;
/// How often a file is copied again that changes while it is copied.
const MOST_READS: usize = 4;

struct Staging<'a> {
    capture: &'a Capture,
    /// Entries to stage.
    needed: Vec<bool>,
    into: OwnedFd,
    memo: CarefulMemo<'a>,
    data: DataCopy,
    links: Links,
    earlier: Option<&'a Earlier>,
    /// Who makes the files.
    own: Owner,
    files: AtomicU64,
    bytes: AtomicU64,
    linked: AtomicU64,
    copies: Mutex<Vec<Vec<StagedFile>>>,
}

enum Task {
    Dir(u32),
    /// Files of one directory.
    Files(u32, Vec<u32>),
}

impl Capture {
    /// Copies what the selections take into an empty directory, under the same paths, and hashes it on the way.
    ///
    /// The copy has what the context had: parents, symlinks on the way, hard links, attributes (the owner is that of the
    /// capture). Whatever was known of a file is replaced by what the copy holds, so checksums taken after this are those
    /// of the copy, whether the context changed meanwhile or not. Files that change while they are copied are copied
    /// again; one that is gone is [`Error::Changed`]. What is known to be as it was when it was copied `earlier` is linked.
    pub fn stage(
        &self,
        selections: &[Selection],
        into: &Path,
        memo: &dyn FileMemo,
        earlier: Option<&Earlier>,
    ) -> Result<Staged> {
        let mut needed = vec![false; self.entries.len()];
        needed[0] = true;
        for selection in selections {
            let taken = self.select(selection)?;
            for mut index in taken.indices().chain(taken.through.iter().copied()) {
                while !needed[index as usize] {
                    needed[index as usize] = true;
                    index = self.entry(index).parent;
                }
            }
        }
        let staging = Staging {
            capture: self,
            needed,
            into: open_host_dir(into)?,
            memo: CarefulMemo::new(memo),
            data: DataCopy::default(),
            links: Links::default(),
            earlier,
            own: Owner {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
            },
            files: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            linked: AtomicU64::new(0),
            copies: Mutex::default(),
        };
        let threads = pool::threads();
        pool::run(vec![Task::Dir(0)], threads, |task, queue| {
            staging.work(task, queue)
        })?;
        // Last, as everything made in a directory changes its time, and it may be meant to be read-only.
        let dirs: Vec<u32> = (0..self.entries.len() as u32)
            .filter(|index| staging.needed[*index as usize] && self.entry(*index).meta.is_dir())
            .collect();
        let batches = dirs.chunks(BATCH).map(<[u32]>::to_vec).collect();
        pool::run(batches, threads, |batch: Vec<u32>, _| {
            batch
                .into_iter()
                .try_for_each(|index| staging.finish_dir(index))
        })?;
        let counts = [staging.files, staging.bytes, staging.linked].map(AtomicU64::into_inner);
        let copies = staging.copies.into_inner();
        Ok(Staged::new(
            counts.into(),
            copies.unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

impl Staging<'_> {
    fn work(&self, task: Task, queue: &Queue<Task>) -> Result<()> {
        let (dir, files) = match task {
            Task::Dir(dir) => (dir, self.directory(dir, queue)?),
            Task::Files(dir, files) => (dir, files),
        };
        if files.is_empty() {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let from = self
            .capture
            .open(dir, flags)
            .map_err(|errno| self.failed(dir, errno))?;
        self.memo
            .learn(self.capture.entry(dir).meta.device, from.as_fd());
        let to = self
            .open_staged(dir, flags)
            .map_err(|errno| self.error(dir, errno))?;
        let mut near = None;
        let mut copies = Vec::with_capacity(files.len());
        for index in files {
            copies.extend(self.file(index, from.as_fd(), to.as_fd(), &mut near)?);
        }
        self.copies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(copies);
        Ok(())
    }

    /// Makes the directories in a directory and queues them; returns some of its files and queues the rest.
    fn directory(&self, dir: u32, queue: &Queue<Task>) -> Result<Vec<u32>> {
        let (mut files, mut dirs) = (Vec::new(), Vec::new());
        for child in self
            .capture
            .children(dir)
            .filter(|child| self.needed[*child as usize])
        {
            match self.capture.entry(child).meta.kind {
                Kind::Directory => dirs.push(child),
                _ => files.push(child),
            }
        }
        if !dirs.is_empty() {
            let to = self
                .open_staged(dir, OFlags::PATH | OFlags::DIRECTORY)
                .map_err(|errno| self.error(dir, errno))?;
            for child in &dirs {
                rustix::fs::mkdirat(&to, self.capture.name(*child), Mode::RWXU)
                    .map_err(|errno| self.error(*child, errno))?;
            }
        }
        let rest = files.split_off(files.len().min(BATCH));
        for batch in rest.chunks(BATCH).rev() {
            queue.push(Task::Files(dir, batch.to_vec()));
        }
        for child in dirs.into_iter().rev() {
            queue.push(Task::Dir(child));
        }
        Ok(files)
    }

    fn open_staged(&self, index: u32, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
        let path = self.capture.path(index);
        open_beneath(
            self.into.as_fd(),
            if path.is_empty() { b"." } else { &path },
            flags,
        )
    }

    /// Stages what is no directory; returns what is known of a regular file.
    fn file(
        &self,
        index: u32,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        near: &mut Option<Near>,
    ) -> Result<Option<StagedFile>> {
        let capture = self.capture;
        let meta = capture.entry(index).meta;
        let name = CString::new(capture.name(index)).map_err(|_| capture.changed(index))?;
        self.files.fetch_add(1, Ordering::Relaxed);
        if meta.kind != Kind::File {
            return self
                .special(index, &meta, &name, to)
                .map(|()| None)
                .map_err(|errno| self.error(index, errno));
        }
        if meta.links < 2 {
            if let Some(linked) = self.link_earlier(index, &name, from, to, near) {
                return Ok(Some(linked));
            }
            return self.regular(index, &name, from, to);
        }
        let key = (meta.device, meta.inode);
        if let Some(first) = self.links.claim(key) {
            match rustix::fs::linkat(&self.into, first.as_slice(), to, &name, AtFlags::empty()) {
                Ok(()) => {
                    // Same inode, same content: taken over from whichever name was copied.
                    let first = self.index_of(&first);
                    if let Some(known) = first.and_then(|first| capture.known(first)) {
                        capture.learn(index, known);
                    }
                    return Ok(None);
                }
                Err(Errno::MLINK | Errno::NAMETOOLONG) => {
                    return self.regular(index, &name, from, to);
                }
                Err(errno) => return Err(self.error(index, errno)),
            }
        }
        let result = self.regular(index, &name, from, to);
        self.links
            .settle(key, result.is_ok().then(|| capture.path(index)));
        result
    }

    /// Links the copy an earlier build has made of a file, if it is known to be still the same.
    fn link_earlier(
        &self,
        index: u32,
        name: &CString,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        near: &mut Option<Near>,
    ) -> Option<StagedFile> {
        let earlier = self.earlier?;
        let meta = meta::stat(from, name).ok()?;
        let content = self.recall(index, &meta)?;
        let owner = self.capture.owner.unwrap_or(meta.owner);
        let path = self.capture.path(index);
        let there = earlier.link(&path, (&meta, owner), &content, near, (to, name))?;
        self.linked.fetch_add(1, Ordering::Relaxed);
        let known = Known { meta, content };
        self.staged(index, there.inode, known)
    }

    /// Returns what a file is known to hold, without reading it.
    fn recall(&self, index: u32, meta: &Meta) -> Option<FileContent> {
        let known = self
            .capture
            .known(index)
            .filter(|known| FileStamp::of(&known.meta) == FileStamp::of(meta));
        known
            .map(|known| known.content)
            .or_else(|| self.memo.recall(meta))
    }

    /// Notes what the copy of a file holds.
    fn staged(&self, index: u32, inode: u64, known: Known) -> Option<StagedFile> {
        self.bytes.fetch_add(known.meta.size, Ordering::Relaxed);
        self.capture.learn(index, known);
        let file = StagedFile {
            inode,
            index,
            size: known.meta.size,
            data: known.content.data,
            is_alone: known.meta.links < 2,
        };
        known.content.xattrs.is_none().then_some(file)
    }

    fn index_of(&self, path: &[u8]) -> Option<u32> {
        crate::path::components(path).try_fold(0, |dir, name| self.capture.child(dir, name))
    }

    /// Copies a file and learns what the copy holds.
    fn regular(
        &self,
        index: u32,
        name: &CString,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
    ) -> Result<Option<StagedFile>> {
        let source = meta::open_file(from, name).map_err(|errno| self.failed(index, errno))?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let captured = self.capture.entry(index).meta;
        // Nobody may read it before it has its owner.
        let first_mode = match self.capture.owner.unwrap_or(captured.owner) == self.own {
            true => Mode::from_raw_mode(captured.mode & 0o777),
            false => Mode::RUSR | Mode::WUSR,
        };
        let copy = rustix::fs::openat(to, name, flags, first_mode)
            .map_err(|errno| self.error(index, errno))?;
        let known = self
            .bring_over(index, source.as_fd(), copy.as_fd())
            .map_err(|errno| self.failed(index, errno))?;
        let set = || -> std::result::Result<u64, Errno> {
            // Each change is one of the file system's journal, a look is not: most files are made as they should be.
            let made = meta::stat_fd(&copy)?;
            let owner = self.capture.owner.unwrap_or(known.meta.owner);
            if made.owner != owner {
                set_owner_fd(copy.as_fd(), owner)?;
            }
            if (made.owner, made.mode) != (owner, known.meta.mode) {
                rustix::fs::fchmod(&copy, Mode::from_raw_mode(known.meta.mode))?;
            }
            if known.content.xattrs.is_some() {
                for attribute in meta::xattrs(source.as_fd())? {
                    meta::set_xattr(copy.as_fd(), &attribute)?;
                }
            }
            rustix::fs::futimens(&copy, &timestamps(known.meta.modified))?;
            Ok(made.inode)
        };
        let inode = set().map_err(|errno| self.error(index, errno))?;
        Ok(self.staged(index, inode, known))
    }

    fn bring_over(
        &self,
        index: u32,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
    ) -> std::result::Result<Known, Errno> {
        let clock = file_clock();
        let mut before = meta::stat_fd(from)?;
        if before.kind != Kind::File {
            // Swapped since the walk; a device might never end.
            return Err(Errno::NOENT);
        }
        if let Some(content) = self.recall(index, &before) {
            // The content is known: the kernel may copy it, if nothing changes meanwhile.
            self.data.copy(from, to, &before)?;
            let after = meta::stat_fd(from)?;
            if FileStamp::of(&after) == FileStamp::of(&before) {
                return Ok(Known {
                    meta: after,
                    content,
                });
            }
            rustix::fs::ftruncate(to, 0)?;
            before = after;
        }
        for reading in 1.. {
            rustix::fs::seek(from, rustix::fs::SeekFrom::Start(0))?;
            rustix::fs::seek(to, rustix::fs::SeekFrom::Start(0))?;
            let (data, length) = copy_hashed(from, to, before.size)?;
            let content = FileContent {
                data,
                xattrs: hash_xattrs(from)?,
            };
            let mut after = meta::stat_fd(from)?;
            let steady = FileStamp::of(&after) == FileStamp::of(&before);
            if steady {
                self.memo.remember(&after, clock, &content);
            }
            if steady || reading == MOST_READS {
                after.size = length;
                return Ok(Known {
                    meta: after,
                    content,
                });
            }
            rustix::fs::ftruncate(to, 0)?;
            before = after;
        }
        unreachable!("the last reading returns")
    }

    fn special(
        &self,
        index: u32,
        meta: &Meta,
        name: &CString,
        to: BorrowedFd<'_>,
    ) -> std::result::Result<(), Errno> {
        let mode = Mode::from_raw_mode(meta.mode);
        let device = rustix::fs::makedev(meta.rdev.0, meta.rdev.1);
        match meta.kind {
            Kind::Symlink => {
                let link = self.capture.links.get(&index).ok_or(Errno::NOENT)?;
                rustix::fs::symlinkat(link.as_c_str(), to, name)?;
            }
            Kind::Character if meta.is_whiteout() => return Err(Errno::PERM),
            Kind::Character => {
                rustix::fs::mknodat(to, name, FileType::CharacterDevice, mode, device)?
            }
            Kind::Block => rustix::fs::mknodat(to, name, FileType::BlockDevice, mode, device)?,
            Kind::Fifo => rustix::fs::mknodat(to, name, FileType::Fifo, mode, 0)?,
            Kind::Socket => {
                rustix::fs::mknodat(to, name, FileType::RegularFile, mode, 0)?;
                let content = FileContent {
                    data: empty_hash(),
                    xattrs: None,
                };
                self.capture.learn(
                    index,
                    Known {
                        meta: *meta,
                        content,
                    },
                );
            }
            Kind::File | Kind::Directory => return Err(Errno::INVAL),
        }
        set_owner_at(to, name, self.capture.owner.unwrap_or(meta.owner))?;
        if meta.kind != Kind::Symlink {
            rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
        }
        rustix::fs::utimensat(
            to,
            name,
            &timestamps(meta.modified),
            AtFlags::SYMLINK_NOFOLLOW,
        )
    }

    /// Gives a staged directory its attributes.
    fn finish_dir(&self, index: u32) -> Result<()> {
        let capture = self.capture;
        let captured = capture.entry(index).meta;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let set = || -> std::result::Result<(), Errno> {
            let to = self.open_staged(index, flags)?;
            set_owner_fd(to.as_fd(), capture.owner.unwrap_or(captured.owner))?;
            rustix::fs::fchmod(&to, Mode::from_raw_mode(captured.mode))?;
            let known = capture
                .known(index)
                .map(|known| known.content)
                .or_else(|| self.memo.recall(&captured));
            if known.is_none_or(|content| content.xattrs.is_some()) {
                let from = capture.open(index, flags)?;
                let attributes = meta::xattrs(from.as_fd())?;
                for attribute in &attributes {
                    meta::set_xattr(to.as_fd(), attribute)?;
                }
                let xattrs = if attributes.is_empty() {
                    None
                } else {
                    hash_xattrs(from.as_fd())?
                };
                capture.learn(
                    index,
                    Known {
                        meta: captured,
                        content: FileContent { xattrs, ..NOTHING },
                    },
                );
            }
            rustix::fs::futimens(&to, &timestamps(captured.modified))
        };
        set().map_err(|errno| self.failed(index, errno))
    }

    fn error(&self, index: u32, errno: Errno) -> Error {
        Error::io("stage", self.capture.path(index), errno)
    }

    /// The error of opening something in the context: it may be gone since the walk.
    fn failed(&self, index: u32, errno: Errno) -> Error {
        match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => self.capture.changed(index),
            errno => self.error(index, errno),
        }
    }
}

/// Copies a file to its end, which a short read at `size` or beyond is taken for, and hashes what is written; returns
/// the hash and the length.
fn copy_hashed(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    size: u64,
) -> std::result::Result<([u8; 32], u64), Errno> {
    with_buffer(READ_AT_ONCE, |buffer| {
        let mut hash = Sha256::new();
        let mut length = 0;
        loop {
            let count = rustix::io::retry_on_intr(|| rustix::io::read(from, &mut *buffer))?;
            if count == 0 {
                return Ok((hash.finalize().into(), length));
            }
            hash.update(&buffer[..count]);
            write_all(to, &buffer[..count])?;
            length += count as u64;
            if count < buffer.len() && length >= size {
                return Ok((hash.finalize().into(), length));
            }
        }
    })
}
