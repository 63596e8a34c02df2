//! The recursive copy: what goes where, over several threads.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::data::DataCopy;
use super::links::Links;
use super::{Copy, CopyReport, LinkPolicy, Owner, Powers, Timestamp};
use crate::filter::{FilterState, Verdict};
use crate::meta::{self, Kind, Meta};
use crate::pool::{self, Queue};
use crate::tree::{Dir, Entry, Lookup, set_owner_at, set_owner_fd, timestamps};
use crate::{Error, Result};

/// Files of one directory that one thread copies in one go.
const BATCH: usize = 64;

/// What is copied.
pub(super) enum Source {
    /// A directory, with the attributes it has.
    Dir(Arc<Dir>, Meta),
    /// Anything else: a name in a directory.
    Other(Arc<Dir>, CString, Entry),
}

/// Where it goes.
pub(super) enum Target {
    /// To a directory that exists.
    Dir(Arc<Dir>),
    /// To a name in a directory, whatever is there.
    Name(Arc<Dir>, CString),
}

/// One running copy.
struct Job<'a> {
    copy: &'a Copy,
    /// Whose files are that this process makes.
    own: Owner,
    data: DataCopy,
    links: Links,
    may_link: AtomicBool,
    may_move_dirs: AtomicBool,
    entries: AtomicU64,
    bytes: AtomicU64,
    linked: AtomicU64,
    cloned: AtomicU64,
    left_out: AtomicU64,
}

/// A directory that is being copied.
struct Node {
    parent: Option<Arc<Node>>,
    source: Arc<Dir>,
    meta: Meta,
    /// Path below the source of the copy; empty for the source itself.
    relative: Vec<u8>,
    state: FilterState,
    /// Whether the directory itself is taken, or only made when something below it is.
    included: bool,
    place: Mutex<Place>,
    /// Tasks in this directory and directories in it that are not done.
    pending: AtomicUsize,
}

/// Where a directory is in the destination.
enum Place {
    /// Nowhere yet.
    Later(Later),
    Made {
        dir: Arc<Dir>,
        created: bool,
    },
}

/// How to make it.
enum Later {
    Below(CString),
    Top(Target),
}

enum Task {
    Dir {
        parent: Arc<Node>,
        name: CString,
        entry: Entry,
        state: FilterState,
        included: bool,
    },
    Top(Arc<Node>),
    Files {
        node: Arc<Node>,
        files: Vec<(CString, Entry)>,
    },
}

/// Copies one source, with all below it, to one target.
pub(super) fn copy_tree(
    copy: &Copy,
    source: Source,
    target: Target,
    report: &mut CopyReport,
) -> Result<()> {
    let job = Job {
        copy,
        own: Owner {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        },
        data: DataCopy::default(),
        links: Links::default(),
        may_link: AtomicBool::new(copy.link != LinkPolicy::Never && copy.powers == Powers::Kept),
        may_move_dirs: AtomicBool::new(copy.keeps_everything()),
        entries: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        linked: AtomicU64::new(0),
        cloned: AtomicU64::new(0),
        left_out: AtomicU64::new(0),
    };
    match source {
        Source::Dir(dir, meta) => {
            let node = Arc::new(Node {
                parent: None,
                source: dir,
                meta,
                relative: Vec::new(),
                state: FilterState::default(),
                included: true,
                place: Mutex::new(Place::Later(Later::Top(target))),
                pending: AtomicUsize::new(1),
            });
            pool::run(vec![Task::Top(node)], pool::threads(), |task, queue| {
                job.work(task, queue)
            })?;
        }
        Source::Other(dir, name, entry) => match target {
            Target::Name(to, to_name) => job.file(&dir, &name, &entry, &to, &to_name, None)?,
            // The root of the destination is the only directory without a name to replace it by.
            Target::Dir(to) => {
                return Err(Error::ReplaceDirectory {
                    path: String::from_utf8_lossy(&to.path()).into_owned(),
                });
            }
        },
    }
    report.entries += job.entries.into_inner();
    report.bytes += job.bytes.into_inner();
    report.linked += job.linked.into_inner();
    report.cloned += job.cloned.into_inner();
    report.left_out += job.left_out.into_inner();
    Ok(())
}

impl Job<'_> {
    fn work(&self, task: Task, queue: &Queue<Task>) -> Result<()> {
        let node = match task {
            Task::Top(node) => {
                self.directory(&node, queue)?;
                node
            }
            Task::Dir {
                parent,
                name,
                entry,
                state,
                included,
            } => {
                let source = parent.source.open_dir(&name, &entry)?;
                let node = Arc::new(Node {
                    relative: join(&parent.relative, &name),
                    parent: Some(parent),
                    source,
                    meta: entry.meta,
                    state,
                    included,
                    place: Mutex::new(Place::Later(Later::Below(name))),
                    pending: AtomicUsize::new(1),
                });
                self.directory(&node, queue)?;
                node
            }
            Task::Files { node, files } => {
                self.files(&node, &files)?;
                node
            }
        };
        self.done(node)
    }

    /// Copies the files of a directory and queues the directories in it.
    fn directory(&self, node: &Arc<Node>, queue: &Queue<Task>) -> Result<()> {
        if node.included {
            self.place(node)?;
        }
        let (mut files, mut dirs) = (Vec::new(), Vec::new());
        for listed in node.source.list()? {
            let (verdict, state) = match &self.copy.filter {
                None => (Verdict::Take, FilterState::default()),
                Some(filter) => filter.judge(&join(&node.relative, &listed.name), &node.state),
            };
            if verdict == Verdict::Prune {
                continue;
            }
            if verdict == Verdict::Descend && !matches!(listed.kind, None | Some(Kind::Directory)) {
                continue;
            }
            let entry = node.source.stat_listed(&listed)?;
            if entry.meta.is_dir() {
                dirs.push((listed.name, entry, state, verdict == Verdict::Take));
            } else if verdict == Verdict::Take {
                files.push((listed.name, entry));
            }
        }
        let rest = files.split_off(files.len().min(BATCH));
        let mut rest = rest.into_iter().peekable();
        while rest.peek().is_some() {
            let files: Vec<_> = rest.by_ref().take(BATCH).collect();
            node.pending.fetch_add(1, Ordering::Relaxed);
            queue.push(Task::Files {
                node: Arc::clone(node),
                files,
            });
        }
        for (name, entry, state, included) in dirs.into_iter().rev() {
            if self.move_dir(node, &name, &entry)? {
                continue;
            }
            node.pending.fetch_add(1, Ordering::Relaxed);
            queue.push(Task::Dir {
                parent: Arc::clone(node),
                name,
                entry,
                state,
                included,
            });
        }
        self.files(node, &files)
    }

    /// Moves a directory of the source, with all it holds, to where nothing is yet; tells whether it did.
    fn move_dir(&self, node: &Arc<Node>, name: &CStr, entry: &Entry) -> Result<bool> {
        if !self.may_move_dirs.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let to = self.place(node)?;
        if !to.is_fresh() && !matches!(to.lookup(name)?, Lookup::Missing) {
            return Ok(false);
        }
        match rustix::fs::renameat(node.source.fd_of(entry), name, to.writable()?, name) {
            Ok(()) => {
                self.entries.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            }
            Err(Errno::XDEV | Errno::PERM | Errno::ACCESS) => {
                self.may_move_dirs.store(false, Ordering::Relaxed);
                Ok(false)
            }
            Err(errno) => Err(to.error("move", name, errno)),
        }
    }

    fn files(&self, node: &Arc<Node>, files: &[(CString, Entry)]) -> Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        let to = self.place(node)?;
        for (name, entry) in files {
            self.file(&node.source, name, entry, &to, name, Some(node))?;
        }
        Ok(())
    }

    /// Counts a task of a directory as done; the last one gives the directory its attributes.
    ///
    /// They come last because everything made in a directory changes its time, and because a directory may be
    /// meant to be read-only.
    fn done(&self, mut node: Arc<Node>) -> Result<()> {
        while node.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.finish(&node)?;
            let Some(parent) = node.parent.clone() else {
                break;
            };
            node = parent;
        }
        Ok(())
    }

    fn finish(&self, node: &Node) -> Result<()> {
        let place = node.lock();
        let Place::Made { dir, created } = &*place else {
            return Ok(());
        };
        let is_top = node.parent.is_none();
        if *created || (node.included && !is_top) {
            dir.set_owner(self.owner(&node.meta))?;
            dir.set_mode(self.mode(&node.meta))?;
            self.copy_dir_xattrs(node, dir)?;
            dir.set_time(self.time(&node.meta))?;
            self.entries.fetch_add(1, Ordering::Relaxed);
        } else if is_top {
            // As in the reference: an existing directory keeps its owner and mode, and gets the time of the source.
            dir.set_time(self.time(&node.meta))?;
        } else {
            // Only on the way to something included: as in the reference, its mode is that of the source.
            dir.set_mode(node.meta.mode)?;
        }
        Ok(())
    }

    fn copy_dir_xattrs(&self, node: &Node, dir: &Dir) -> Result<()> {
        let Some(top) = node.source.top() else {
            return Ok(());
        };
        let attributes = meta::xattrs(top)
            .map_err(|errno| node.source.error("read the xattrs of", c"", errno))?;
        for attribute in attributes {
            meta::set_xattr(dir.writable()?, &attribute)
                .map_err(|errno| dir.error("set an xattr of", c"", errno))?;
        }
        Ok(())
    }

    /// Returns the directory in the destination, after making it and what is above it.
    fn place(&self, node: &Arc<Node>) -> Result<Arc<Dir>> {
        let mut chain = vec![Arc::clone(node)];
        loop {
            let last = chain.last().expect("the chain starts with the node");
            let parent = match &*last.lock() {
                Place::Made { .. } | Place::Later(Later::Top(_)) => None,
                Place::Later(Later::Below(_)) => last.parent.clone(),
            };
            match parent {
                Some(parent) => chain.push(parent),
                None => break,
            }
        }
        let mut above: Option<Arc<Dir>> = None;
        for node in chain.iter().rev() {
            let mut place = node.lock();
            let (dir, created) = match &*place {
                Place::Made { dir, .. } => {
                    above = Some(Arc::clone(dir));
                    continue;
                }
                Place::Later(Later::Top(Target::Dir(dir))) => (Arc::clone(dir), false),
                Place::Later(Later::Top(Target::Name(dir, name))) => {
                    self.make_dir(dir, name, node.included)?
                }
                Place::Later(Later::Below(name)) => {
                    let above = above.as_ref().expect("what is above is made first");
                    self.make_dir(above, name, node.included)?
                }
            };
            above = Some(Arc::clone(&dir));
            *place = Place::Made { dir, created };
        }
        Ok(above.expect("the chain is not empty"))
    }

    /// Opens the directory `name`, or makes it; tells whether it is new.
    fn make_dir(&self, parent: &Arc<Dir>, name: &CStr, included: bool) -> Result<(Arc<Dir>, bool)> {
        if parent.is_fresh() {
            return Ok((parent.create_dir(name)?, true));
        }
        match parent.lookup(name)? {
            Lookup::Found(entry) if entry.meta.is_dir() => {
                return Ok((parent.open_dir(name, &entry)?, false));
            }
            Lookup::Found(_) if self.copy.replace && included => parent.remove(name)?,
            Lookup::Found(_) => {
                return Err(Error::CopyToNonDirectory {
                    path: String::from_utf8_lossy(&parent.path_of(name)).into_owned(),
                });
            }
            Lookup::Missing | Lookup::Whiteout => {}
        }
        Ok((parent.create_dir(name)?, true))
    }

    /// Copies one thing that is no directory.
    fn file(
        &self,
        from: &Arc<Dir>,
        name: &CStr,
        entry: &Entry,
        to: &Arc<Dir>,
        to_name: &CStr,
        node: Option<&Arc<Node>>,
    ) -> Result<()> {
        let is_device = matches!(entry.meta.kind, Kind::Character | Kind::Block);
        if is_device && self.copy.powers != Powers::Kept {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let to_fd = to.make_way(to_name, self.copy.replace)?;
        self.entries.fetch_add(1, Ordering::Relaxed);
        if entry.meta.kind != Kind::File {
            return self.special(from, name, entry, to, to_name);
        }
        let (Some(node), true) = (node, entry.meta.links > 1) else {
            return self.regular(from, name, entry, to, to_fd, to_name);
        };
        // One inode seen under several names becomes one inode again.
        let key = (entry.meta.device, entry.meta.inode);
        if let Some(first) = self.links.claim(key) {
            let top = top_of(node);
            let linked = match &*top.lock() {
                Place::Made { dir, .. } => {
                    let first = first.as_slice();
                    rustix::fs::linkat(dir.writable()?, first, to_fd, to_name, AtFlags::empty())
                }
                Place::Later(_) => Err(Errno::NOENT),
            };
            match linked {
                Ok(()) => return Ok(()),
                Err(Errno::MLINK | Errno::NAMETOOLONG) => {}
                Err(errno) => return Err(to.error("link", to_name, errno)),
            }
            return self.regular(from, name, entry, to, to_fd, to_name);
        }
        let result = self.regular(from, name, entry, to, to_fd, to_name);
        self.links
            .settle(key, result.is_ok().then(|| join(&node.relative, to_name)));
        result
    }

    fn regular(
        &self,
        from: &Dir,
        name: &CStr,
        entry: &Entry,
        to: &Dir,
        to_fd: BorrowedFd<'_>,
        to_name: &CStr,
    ) -> Result<()> {
        if self.may_link.load(Ordering::Relaxed)
            && self.link_to_source(from, name, entry, to, to_fd, to_name)?
        {
            return Ok(());
        }
        let source = from.open_file(name, entry)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (owner, mode) = (self.owner(&entry.meta), self.mode(&entry.meta));
        // Nobody may read it before it has its owner.
        let first_mode = match owner == self.own {
            true => Mode::from_raw_mode(mode & 0o777),
            false => Mode::RUSR | Mode::WUSR,
        };
        let file = rustix::fs::openat(to_fd, to_name, flags, first_mode)
            .map_err(|errno| to.error("create", to_name, errno))?;
        let copied = self
            .data
            .copy(source.as_fd(), file.as_fd(), &entry.meta)
            .map_err(|errno| to.error("copy to", to_name, errno))?;
        self.bytes.fetch_add(copied.bytes, Ordering::Relaxed);
        self.cloned
            .fetch_add(u64::from(copied.cloned), Ordering::Relaxed);
        let set = || -> std::result::Result<(), Errno> {
            // Each change is one of the file system's journal, a look is not: most files are made as they should be.
            let made = rustix::fs::fstat(&file)?;
            if (made.st_uid, made.st_gid) != (owner.uid, owner.gid) {
                set_owner_fd(file.as_fd(), owner)?;
            }
            if made.st_mode & 0o7777 != mode {
                rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
            }
            for attribute in meta::xattrs(source.as_fd())? {
                let is_power = attribute.name.as_bytes() == b"security.capability";
                if is_power && self.copy.powers == Powers::Dropped {
                    continue;
                }
                meta::set_xattr(file.as_fd(), &attribute)?;
            }
            rustix::fs::futimens(&file, &timestamps(self.time(&entry.meta)))
        };
        set().map_err(|errno| to.error("set the attributes of", to_name, errno))
    }

    /// Links or moves the file of the source, where the copy would have the same attributes.
    fn link_to_source(
        &self,
        from: &Dir,
        name: &CStr,
        entry: &Entry,
        to: &Dir,
        to_fd: BorrowedFd<'_>,
        to_name: &CStr,
    ) -> Result<bool> {
        let same = self.owner(&entry.meta) == entry.meta.owner
            && self.mode(&entry.meta) == entry.meta.mode
            && self.time(&entry.meta) == entry.meta.modified;
        // An attribute that does not travel (overlay's notes on a file it has copied up) must not come along.
        if !same || !meta::only_travelling_xattrs(from.fd_of(entry), name) {
            return Ok(false);
        }
        let inode = (entry.meta.device, entry.meta.inode);
        if let Some(linked) = &self.copy.linked
            && !linked.is_first(inode)
        {
            return Ok(false);
        }
        let from_fd = from.fd_of(entry);
        let linked = match self.copy.link {
            LinkPolicy::Moved => rustix::fs::renameat(from_fd, name, to_fd, to_name),
            _ => rustix::fs::linkat(from_fd, name, to_fd, to_name, AtFlags::empty()),
        };
        match linked {
            Ok(()) => {
                self.linked.fetch_add(1, Ordering::Relaxed);
                self.bytes.fetch_add(entry.meta.size, Ordering::Relaxed);
                Ok(true)
            }
            Err(Errno::MLINK) => Ok(false),
            Err(Errno::XDEV | Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => {
                self.may_link.store(false, Ordering::Relaxed);
                Ok(false)
            }
            Err(errno) => Err(to.error("link", to_name, errno)),
        }
    }

    /// Copies a symlink, a device, a FIFO or a socket.
    fn special(
        &self,
        from: &Dir,
        name: &CStr,
        entry: &Entry,
        to: &Dir,
        to_name: &CStr,
    ) -> Result<()> {
        let to_fd = to.writable()?;
        let mode = Mode::from_raw_mode(self.mode(&entry.meta));
        let (major, minor) = entry.meta.rdev;
        let device = rustix::fs::makedev(major, minor);
        let made = match entry.meta.kind {
            Kind::Symlink => {
                let target = from.read_link(name, entry)?;
                rustix::fs::symlinkat(target.as_c_str(), to_fd, to_name)
            }
            // It would hide what is below it instead of being copied.
            Kind::Character if entry.meta.is_whiteout() => Err(Errno::PERM),
            Kind::Character => {
                rustix::fs::mknodat(to_fd, to_name, FileType::CharacterDevice, mode, device)
            }
            Kind::Block => rustix::fs::mknodat(to_fd, to_name, FileType::BlockDevice, mode, device),
            Kind::Fifo => rustix::fs::mknodat(to_fd, to_name, FileType::Fifo, mode, 0),
            // A socket without its listener is nothing: as in the reference, an empty file takes its place.
            Kind::Socket => rustix::fs::mknodat(to_fd, to_name, FileType::RegularFile, mode, 0),
            Kind::File | Kind::Directory => Err(Errno::INVAL),
        };
        made.map_err(|errno| to.error("create", to_name, errno))?;
        let set = || -> std::result::Result<(), Errno> {
            set_owner_at(to_fd, to_name, self.owner(&entry.meta))?;
            if entry.meta.kind != Kind::Symlink {
                rustix::fs::chmodat(to_fd, to_name, mode, AtFlags::empty())?;
            }
            let times = timestamps(self.time(&entry.meta));
            rustix::fs::utimensat(to_fd, to_name, &times, AtFlags::SYMLINK_NOFOLLOW)
        };
        set().map_err(|errno| to.error("set the attributes of", to_name, errno))
    }

    fn owner(&self, meta: &Meta) -> Owner {
        self.copy.owner.unwrap_or(meta.owner)
    }

    fn mode(&self, meta: &Meta) -> u32 {
        match &self.copy.mode {
            Some(change) => change.apply(meta.mode, meta.is_dir()),
            None if self.copy.powers == Powers::Dropped && !meta.is_dir() => meta.mode & !0o6000,
            None => meta.mode,
        }
    }

    fn time(&self, meta: &Meta) -> Timestamp {
        self.copy.time.unwrap_or(meta.modified)
    }
}

impl Node {
    fn lock(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn top_of(node: &Arc<Node>) -> &Arc<Node> {
    let mut top = node;
    while let Some(parent) = &top.parent {
        top = parent;
    }
    top
}

fn join(relative: &[u8], name: &CStr) -> Vec<u8> {
    let mut path = Vec::with_capacity(relative.len() + 1 + name.count_bytes());
    if !relative.is_empty() {
        path.extend_from_slice(relative);
        path.push(b'/');
    }
    path.extend_from_slice(name.to_bytes());
    path
}
