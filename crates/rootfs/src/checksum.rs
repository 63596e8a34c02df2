//! Content checksums: what a copy would bring over, times left out.
//!
//! A checksum is the SHA-256 of one record for each file that is selected, sorted by path: the path below the selected
//! one, type, mode, owner, link target, device number, the hash of the extended attributes that travel with an image, and
//! the hash of the data. Everything is length-framed, and the first bytes say the version.

mod records;

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::copy::{Owner, pattern};
use crate::filter::{Filter, FilterState, Verdict};
use crate::layer::OverlayXattrs;
use crate::memo::{CarefulMemo, FileContent, FileMemo, FileStamp, NoMemo, file_clock};
use crate::meta::{self, Kind, Meta};
use crate::pool::{self, Queue};
use crate::resolve::Follow;
use crate::tree::{Dir, Entry, Tree};
use crate::{Error, Result, RootPath};
use records::{Batch, Records};
pub(crate) use records::{Header, NOTHING, Sum};

const READ_AT_ONCE: usize = 256 * 1024;
/// Files of one directory that one thread reads in one go.
const BATCH: usize = 64;
/// How often a file is read again that changes while it is read.
const MOST_READS: usize = 4;

/// What of a tree a step uses.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// A path, or a pattern with `wildcard`.
    pub path: String,
    pub wildcard: bool,
    /// The path, and what a pattern matches, is followed if it is a symlink.
    pub follow_symlink: bool,
    /// Include and exclude patterns for what lies below the path.
    pub filter: Option<Arc<dyn Filter>>,
    /// A directory stands for what is in it: its own mode, owner and xattrs do not count.
    pub contents_only: bool,
    /// The owner that everything counts as having.
    pub owner: Option<Owner>,
    /// Paths of which something must be selected, as the reference compares them: by their beginning.
    pub required: Vec<String>,
}

impl Selection {
    /// Selects one path with all below it.
    pub fn path(path: impl Into<String>) -> Selection {
        Selection {
            path: path.into(),
            ..Selection::default()
        }
    }

    pub(crate) fn follow(&self) -> Follow {
        if self.follow_symlink {
            Follow::Last
        } else {
            Follow::Parents
        }
    }

    /// Checks that for each of `required` something was selected whose path starts with it.
    pub(crate) fn check_required(&self, is_selected: impl Fn(&[u8]) -> bool) -> Result<()> {
        for required in &self.required {
            let path = RootPath::new(required)?;
            if !is_selected(path.as_bytes()) {
                return Err(Error::NotFound {
                    path: path.to_string(),
                });
            }
        }
        Ok(())
    }
}

/// Returns the checksum of a selection.
///
/// A path that is not there is an error; a pattern that matches nothing has the checksum of nothing.
pub fn checksum(tree: &Tree, selection: &Selection, memo: &dyn FileMemo) -> Result<[u8; 32]> {
    let scan = Scan {
        filter: selection.filter.as_deref(),
        owner: selection.owner,
        opaque: None,
        memo: CarefulMemo::new(memo),
        found: Mutex::default(),
        tally: None,
    };
    let path = RootPath::new(&selection.path)?;
    let (plain, wild) = pattern::split(&path);
    // A path without a wildcard stands for itself, and its symlinks are followed where it is read.
    let (base, tasks) = if selection.wildcard && !wild.is_empty() {
        let matches = pattern::expand(tree, &path, selection.follow())?;
        // Matches are below the base with its symlinks resolved: only what follows it is part of the checksum.
        let resolved = RootPath::new(tree.resolve(&plain, selection.follow())?.path())?;
        let length = led_in(&resolved).len();
        let tasks: Result<Vec<Task>> = matches
            .iter()
            .map(|found| scan.start(tree, found, &led_in(found)[length..], selection))
            .collect();
        (plain, tasks?)
    } else {
        let task = scan.start(tree, &path, b"", selection)?;
        (path, vec![task])
    };
    let records = scan.run(tasks)?;
    if !selection.required.is_empty() {
        let full: Vec<Vec<u8>> = records
            .iter()
            .map(|record| full_path(&base, record.path()))
            .collect();
        selection.check_required(|required| full.iter().any(|path| path.starts_with(required)))?;
    }
    Ok(records.sum())
}

/// Returns the checksum of one layer directory as it is, with overlay's whiteouts and opaque marks.
pub fn layer(path: &Path, xattrs: OverlayXattrs) -> Result<[u8; 32]> {
    Ok(census(path, xattrs, &NoMemo)?.checksum)
}

/// What one walk over a layer directory finds.
#[derive(Debug, Default)]
pub struct Census {
    /// What [`layer`] returns.
    pub checksum: [u8; 32],
    /// What everything below the root takes on disk, a file with several names once.
    pub bytes: u64,
    /// The length of all regular files, a file with several names once.
    pub content: u64,
    /// Paths of the regular files, without a leading slash, and their inodes; in the order of the checksum.
    pub files: Vec<(Vec<u8>, u64)>,
}

/// Walks over a layer directory; files that the memo does not know are read.
pub fn census(path: &Path, xattrs: OverlayXattrs, memo: &dyn FileMemo) -> Result<Census> {
    let tree = Tree::open(path)?;
    let tally = Mutex::default();
    let scan = Scan {
        filter: None,
        owner: None,
        opaque: Some(xattrs),
        memo: CarefulMemo::new(memo),
        found: Mutex::default(),
        tally: Some(&tally),
    };
    let start = scan.start(&tree, &RootPath::root(), b"", &Selection::path("/"))?;
    let records = scan.run(vec![start])?;
    let checksum = records.sum();
    let Tally { bytes, content, .. } = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    let files = records.iter().filter_map(|record| {
        let path = record.path().iter().skip(1);
        let path = path.map(|byte| if *byte == 0 { b'/' } else { *byte });
        Some((path.collect(), record.inode()?))
    });
    Ok(Census {
        checksum,
        bytes,
        content,
        files: files.collect(),
    })
}

/// What a walk has counted.
#[derive(Debug, Default)]
struct Tally {
    bytes: u64,
    content: u64,
    /// Files with several names.
    linked: HashSet<(u64, u64)>,
}

impl Tally {
    fn count(&mut self, meta: &Meta) {
        if !meta.is_dir() && meta.links > 1 && !self.linked.insert((meta.device, meta.inode)) {
            return;
        }
        self.bytes += meta.blocks * 512;
        if meta.kind == Kind::File {
            self.content += meta.size;
        }
    }
}

/// A path whose components are each led in by a separator: nothing for the root.
fn led_in(path: &RootPath) -> &[u8] {
    if path.is_root() { b"" } else { path.as_bytes() }
}

fn full_path(base: &RootPath, below: &[u8]) -> Vec<u8> {
    let mut path = led_in(base).to_vec();
    path.extend(
        below
            .iter()
            .map(|byte| if *byte == 0 { b'/' } else { *byte }),
    );
    path
}

/// One running checksum.
struct Scan<'a> {
    filter: Option<&'a dyn Filter>,
    owner: Option<Owner>,
    /// Marks of overlay count too.
    opaque: Option<OverlayXattrs>,
    memo: CarefulMemo<'a>,
    found: Mutex<Vec<Batch>>,
    tally: Option<&'a Mutex<Tally>>,
}

enum Task {
    Dir(Scanned),
    Below {
        parent: Arc<Scanned>,
        name: CString,
        entry: Entry,
        state: FilterState,
        included: bool,
    },
    Files {
        parent: Arc<Scanned>,
        files: Vec<(CString, Entry)>,
    },
    File {
        dir: Arc<Dir>,
        name: CString,
        entry: Entry,
        path: Vec<u8>,
    },
    Nothing,
}

struct Scanned {
    dir: Arc<Dir>,
    /// Path in the checksum: components each led in by a zero byte.
    path: Vec<u8>,
    /// Path that the filter sees.
    relative: Vec<u8>,
    state: FilterState,
    included: bool,
    contents_only: bool,
}

impl Scan<'_> {
    /// Makes the first task for one path that is no pattern; `below` is its path in the checksum.
    fn start(
        &self,
        tree: &Tree,
        path: &RootPath,
        below: &[u8],
        selection: &Selection,
    ) -> Result<Task> {
        let below = below
            .iter()
            .map(|byte| if *byte == b'/' { 0 } else { *byte })
            .collect();
        let found = tree.resolve(path, selection.follow())?;
        match (&found.rest[..], found.leaf) {
            ([], _) if found.dir.top().is_none() => Ok(Task::Nothing),
            ([], _) => Ok(Task::Dir(Scanned {
                dir: found.dir,
                path: below,
                relative: Vec::new(),
                state: FilterState::default(),
                included: true,
                contents_only: selection.contents_only,
            })),
            ([name], Some(entry)) => Ok(Task::File {
                dir: found.dir,
                name: name.clone(),
                entry,
                path: below,
            }),
            _ => Err(Error::NotFound {
                path: path.to_string(),
            }),
        }
    }

    /// Does the tasks and what follows from them; returns what was found, sorted.
    fn run(self, tasks: Vec<Task>) -> Result<Records> {
        pool::run(tasks, pool::threads(), |task, queue| self.work(task, queue))?;
        let batches = self.found.into_inner();
        Ok(Records::new(
            batches.unwrap_or_else(PoisonError::into_inner),
        ))
    }

    fn work(&self, task: Task, queue: &Queue<Task>) -> Result<()> {
        match task {
            Task::Nothing => Ok(()),
            Task::Dir(scanned) => self.directory(scanned, queue),
            Task::Below {
                parent,
                name,
                entry,
                state,
                included,
            } => {
                let dir = parent.dir.open_dir(&name, &entry)?;
                let path = below(&parent.path, &name);
                let relative = relative(&parent.relative, &name);
                let scanned = Scanned {
                    dir,
                    path,
                    relative,
                    state,
                    included,
                    contents_only: false,
                };
                self.directory(scanned, queue)
            }
            Task::Files { parent, files } => {
                let batch = Batch::with_capacity(files.len());
                self.files(&parent, files, batch)
            }
            Task::File {
                dir,
                name,
                entry,
                path,
            } => {
                self.memo.learn(entry.meta.device, dir.fd_of(&entry));
                let mut batch = Batch::default();
                self.file(&dir, &name, &entry, &path, &mut batch)?;
                self.add(batch);
                Ok(())
            }
        }
    }

    fn directory(&self, scanned: Scanned, queue: &Queue<Task>) -> Result<()> {
        let dir = &scanned.dir;
        let (mut files, mut dirs) = (Vec::new(), Vec::new());
        for listed in dir.list()? {
            let (verdict, state) = match self.filter {
                None => (Verdict::Take, FilterState::default()),
                Some(filter) => {
                    filter.judge(&relative(&scanned.relative, &listed.name), &scanned.state)
                }
            };
            let may_be_dir = matches!(listed.kind, None | Some(Kind::Directory));
            if verdict == Verdict::Prune || (verdict == Verdict::Descend && !may_be_dir) {
                continue;
            }
            let entry = dir.stat_listed(&listed)?;
            if entry.meta.is_dir() {
                dirs.push((listed.name, entry, state, verdict == Verdict::Take));
            } else if verdict == Verdict::Take {
                files.push((listed.name, entry));
            }
        }
        if let Some(tally) = self.tally {
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            let files = files.iter().map(|(_, entry)| entry);
            let all = files.chain(dirs.iter().map(|(_, entry, ..)| entry));
            all.for_each(|entry| tally.count(&entry.meta));
        }
        let mut batch = Batch::with_capacity(1 + files.len().min(BATCH));
        self.dir_record(&scanned, &mut batch)?;
        let parent = Arc::new(scanned);
        let mut rest = files.split_off(files.len().min(BATCH));
        while !rest.is_empty() {
            let more = rest.split_off(rest.len().min(BATCH));
            queue.push(Task::Files {
                parent: Arc::clone(&parent),
                files: rest,
            });
            rest = more;
        }
        for (name, entry, state, included) in dirs {
            queue.push(Task::Below {
                parent: Arc::clone(&parent),
                name,
                entry,
                state,
                included,
            });
        }
        self.files(&parent, files, batch)
    }

    fn dir_record(&self, scanned: &Scanned, batch: &mut Batch) -> Result<()> {
        let mut header = Header::contents_only();
        if !scanned.contents_only
            && let Some(top) = scanned.dir.top()
        {
            let failed = |errno| scanned.dir.error("read", c"", errno);
            let meta = meta::stat_fd(top).map_err(failed)?;
            self.memo.learn(meta.device, top);
            header = Header::new(&meta, self.owner);
            header.content.xattrs = hash_xattrs(top).map_err(failed)?;
            if let Some(xattrs) = self.opaque {
                let mark = meta::xattr(top, xattrs.opaque()).map_err(failed)?;
                header.opaque = mark.as_deref() == Some(b"y");
            }
        }
        batch.add(&scanned.path, &header, 0, !scanned.included);
        Ok(())
    }

    fn files(
        &self,
        parent: &Scanned,
        files: Vec<(CString, Entry)>,
        mut batch: Batch,
    ) -> Result<()> {
        for (name, entry) in &files {
            self.memo.learn(entry.meta.device, parent.dir.fd_of(entry));
            let path = below(&parent.path, name);
            self.file(&parent.dir, name, entry, &path, &mut batch)?;
        }
        self.add(batch);
        Ok(())
    }

    fn file(
        &self,
        dir: &Dir,
        name: &CStr,
        entry: &Entry,
        path: &[u8],
        batch: &mut Batch,
    ) -> Result<()> {
        let mut header = Header::new(&entry.meta, self.owner);
        match entry.meta.kind {
            Kind::File => {
                let (meta, content) = self.content(dir, name, entry)?;
                header = Header {
                    content,
                    ..Header::new(&meta, self.owner)
                };
            }
            Kind::Socket => header.content.data = Sha256::digest([]).into(),
            Kind::Symlink => header.link = Some(dir.read_link(name, entry)?),
            Kind::Directory | Kind::Character | Kind::Block | Kind::Fifo => {}
        }
        // A socket counts as a file, but has nothing that could be linked.
        let inode = match entry.meta.kind {
            Kind::File => entry.meta.inode,
            _ => 0,
        };
        batch.add(path, &header, inode, false);
        Ok(())
    }

    fn content(&self, dir: &Dir, name: &CStr, entry: &Entry) -> Result<(Meta, FileContent)> {
        if let Some(content) = self.memo.recall(&entry.meta) {
            return Ok((entry.meta, content));
        }
        let file = dir.open_file(name, entry)?;
        let failed = |errno| dir.error("read", name, errno);
        let clock = file_clock();
        let read = read_settled(file.as_fd()).map_err(failed)?;
        if read.steady {
            self.memo.remember(&read.meta, clock, &read.content);
        }
        Ok((read.meta, read.content))
    }

    fn add(&self, batch: Batch) {
        self.found
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(batch);
    }
}

/// What was read of a file.
pub(crate) struct Read {
    /// Its attributes after the last byte was read.
    pub(crate) meta: Meta,
    pub(crate) content: FileContent,
    /// Nothing about it changed from before the first byte to after the last.
    pub(crate) steady: bool,
}

/// Reads and hashes an open file, again if it changes meanwhile.
///
/// A file that never stands still is taken as it was read last.
pub(crate) fn read_settled(file: BorrowedFd<'_>) -> std::result::Result<Read, Errno> {
    let mut before = meta::stat_fd(file)?;
    if before.kind != Kind::File {
        // Swapped since it was looked at; a device might never end.
        return Err(Errno::NOENT);
    }
    for reading in 1.. {
        let data = hash_data(file, before.size)?;
        let xattrs = hash_xattrs(file)?;
        let after = meta::stat_fd(file)?;
        let steady = FileStamp::of(&before) == FileStamp::of(&after);
        if steady || reading == MOST_READS {
            return Ok(Read {
                meta: after,
                content: FileContent { data, xattrs },
                steady,
            });
        }
        before = after;
    }
    unreachable!("the last reading returns")
}

/// Hashes a file from its start to its end, which a short read at `size` or beyond is taken for.
fn hash_data(file: BorrowedFd<'_>, size: u64) -> std::result::Result<[u8; 32], Errno> {
    crate::copy::data::with_buffer(READ_AT_ONCE, |buffer| {
        let mut hash = Sha256::new();
        let mut offset = 0;
        loop {
            let count =
                rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *buffer, offset))?;
            if count == 0 {
                return Ok(hash.finalize().into());
            }
            hash.update(&buffer[..count]);
            offset += count as u64;
            if count < buffer.len() && offset >= size {
                return Ok(hash.finalize().into());
            }
        }
    })
}

/// Hashes the attributes that travel with an image; `None` where there are none.
pub(crate) fn hash_xattrs(file: BorrowedFd<'_>) -> std::result::Result<Option<[u8; 32]>, Errno> {
    let attributes = meta::xattrs(file)?;
    if attributes.is_empty() {
        return Ok(None);
    }
    let mut hash = Sha256::new();
    for attribute in &attributes {
        for part in [attribute.name.as_bytes(), &attribute.value] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    Ok(Some(hash.finalize().into()))
}

/// Appends a component to a path in the checksum.
pub(crate) fn below(path: &[u8], name: &CStr) -> Vec<u8> {
    let mut longer = Vec::with_capacity(path.len() + 1 + name.count_bytes());
    longer.extend_from_slice(path);
    longer.push(0);
    longer.extend_from_slice(name.to_bytes());
    longer
}

fn relative(path: &[u8], name: &CStr) -> Vec<u8> {
    let mut longer = Vec::with_capacity(path.len() + 1 + name.count_bytes());
    if !path.is_empty() {
        longer.extend_from_slice(path);
        longer.push(b'/');
    }
    longer.extend_from_slice(name.to_bytes());
    longer
}
