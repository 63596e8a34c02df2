//! Walks a layer directory in the order of the tar, and leaves out what the layers below have already.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::fs::readlinkat;
use rustix::io::Errno;

use crate::layer::{Form, LayerDir, OPAQUE_NAME, WHITEOUT_PREFIX, join};
use crate::meta::{self, Kind, Meta, Xattr};
use crate::tree::{Dir, Tree};
use crate::{Error, Result};

/// What the root of an image is like when no layer says anything.
const ROOT_MODE: u32 = 0o755;
/// The deepest directory a path can name.
const MOST_DEPTH: usize = 2048;

/// One entry of the tar to be.
#[derive(Debug)]
pub(super) struct Item {
    /// Relative to the layer, without a slash at the end; empty for the root.
    pub(super) path: Vec<u8>,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    /// An empty file whose name says it all: a whiteout or an opaque directory.
    Mark,
    Node {
        meta: Meta,
        xattrs: Vec<Xattr>,
        content: Content,
    },
}

#[derive(Debug)]
pub(super) enum Content {
    None,
    File(OwnedFd),
    Symlink(Vec<u8>),
    /// The path of the entry that is the same file.
    HardLink(Vec<u8>),
}

/// A directory on the way down.
struct Frame {
    fd: OwnedFd,
    path: Vec<u8>,
    /// What the layers below show of this directory.
    lower: Option<Arc<Dir>>,
    /// Taken from the end.
    rest: Vec<Name>,
    /// The directory's own entry, until something makes it needed.
    entry: Option<Item>,
}

struct Name {
    name: CString,
    is_whiteout: bool,
}

/// A walk hands each item to `emit`, which returns false when it wants no more.
pub(super) struct Walk<F> {
    form: Form,
    /// Whether the layers below are known; if they are not, every mark counts.
    has_lowers: bool,
    frames: Vec<Frame>,
    /// Where files with several names were first met.
    links: HashMap<(u64, u64), Vec<u8>>,
    emit: F,
}

impl<F: FnMut(Item) -> bool> Walk<F> {
    pub(super) fn new(form: Form, emit: F) -> Walk<F> {
        Walk {
            form,
            has_lowers: false,
            frames: Vec::new(),
            links: HashMap::new(),
            emit,
        }
    }

    /// Walks the whole layer, or as far as items are wanted.
    pub(super) fn run(mut self, layer: &LayerDir, lowers: Option<&Tree>) -> Result<()> {
        self.has_lowers = lowers.is_some();
        if !self.enter_root(layer, lowers)? {
            return Ok(());
        }
        while let Some(frame) = self.frames.last_mut() {
            match frame.rest.pop() {
                None => drop(self.frames.pop()),
                Some(name) => {
                    if !self.visit(&name)? {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    fn enter_root(&mut self, layer: &LayerDir, lowers: Option<&Tree>) -> Result<bool> {
        let failed = |errno| Error::io("read", "/", errno);
        let fd = meta::open_dir(layer.as_fd(), c".").map_err(failed)?;
        let meta = meta::stat_fd(&fd).map_err(failed)?;
        let xattrs = meta::xattrs(fd.as_fd()).map_err(failed)?;
        let lower = lowers.map(Tree::root);
        // The root is described only when it is not what it would be anyway, as the reference leaves it out.
        let is_same = match lower.and_then(|lower| lower.top()) {
            Some(below) => is_same_directory(&meta, &xattrs, below).map_err(failed)?,
            None => {
                meta.mode == ROOT_MODE
                    && (meta.owner.uid, meta.owner.gid) == (0, 0)
                    && xattrs.is_empty()
            }
        };
        let lower = lower.cloned();
        self.enter(fd, Vec::new(), lower, None)?;
        let content = Content::None;
        let what = What::Node {
            meta,
            xattrs,
            content,
        };
        Ok(is_same
            || (self.emit)(Item {
                path: Vec::new(),
                what,
            }))
    }

    /// Lists a directory and puts it on top: names in order, whiteouts before all others.
    fn enter(
        &mut self,
        fd: OwnedFd,
        path: Vec<u8>,
        lower: Option<Arc<Dir>>,
        entry: Option<Item>,
    ) -> Result<()> {
        if self.frames.len() > MOST_DEPTH {
            return Err(Error::io("go deeper into", path, Errno::NAMETOOLONG));
        }
        let mut rest = Vec::new();
        let mut unsure = Vec::new();
        meta::list(fd.as_fd(), |name, kind| {
            if self.form != Form::Plain && matches!(kind, Some(Kind::Character) | None) {
                unsure.push(rest.len());
            }
            rest.push(Name {
                name: name.to_owned(),
                is_whiteout: false,
            });
        })
        .map_err(|errno| Error::io("list", &path, errno))?;
        for index in unsure {
            let meta = meta::stat(fd.as_fd(), &rest[index].name).map_err(|errno| {
                Error::io("stat", join(&path, rest[index].name.to_bytes()), errno)
            })?;
            rest[index].is_whiteout = meta.is_whiteout();
        }
        rest.sort_unstable_by(|a, b| (a.is_whiteout, &b.name).cmp(&(b.is_whiteout, &a.name)));
        self.frames.push(Frame {
            fd,
            path,
            lower,
            rest,
            entry,
        });
        Ok(())
    }

    fn top(&self) -> &Frame {
        self.frames
            .last()
            .expect("a name is visited in the directory on top")
    }

    fn visit(&mut self, name: &Name) -> Result<bool> {
        let frame = self.top();
        let path = join(&frame.path, name.name.to_bytes());
        let lower = frame.lower.as_deref();
        if name.is_whiteout {
            let hides = match lower {
                Some(lower) => lower.find(&name.name)?.is_some(),
                None => !self.has_lowers,
            };
            let mark = [WHITEOUT_PREFIX, name.name.to_bytes()].concat();
            let path = join(&frame.path, &mark);
            return Ok(!hides
                || self.put(Item {
                    path,
                    what: What::Mark,
                }));
        }
        if self.form != Form::Plain && name.name.to_bytes().starts_with(WHITEOUT_PREFIX) {
            return Err(Error::NotInLayer {
                path: String::from_utf8_lossy(&path).into_owned(),
                reason: "names that start with .wh. stand for removed files there",
            });
        }
        let meta = meta::stat(frame.fd.as_fd(), &name.name)
            .map_err(|errno| Error::io("stat", &path, errno))?;
        match meta.kind {
            Kind::Socket => Ok(true),
            Kind::Directory => self.directory(&name.name, path, meta),
            _ => self.leaf(&name.name, path, meta),
        }
    }

    fn directory(&mut self, name: &CStr, path: Vec<u8>, meta: Meta) -> Result<bool> {
        let failed = |errno| Error::io("read", &path, errno);
        let frame = self.top();
        let fd = meta::open_dir(frame.fd.as_fd(), name).map_err(failed)?;
        let xattrs = meta::xattrs(fd.as_fd()).map_err(failed)?;
        let is_opaque = match self.form {
            Form::Overlay(marks) => {
                meta::xattr(fd.as_fd(), marks.opaque())
                    .map_err(failed)?
                    .as_deref()
                    == Some(b"y")
            }
            Form::Plain => false,
        };
        let below = match &frame.lower {
            Some(lower) => match lower.find(name)? {
                Some(entry) if entry.meta.is_dir() => Some(lower.open_dir(name, &entry)?),
                _ => None,
            },
            None => None,
        };
        let hides_below = is_opaque && (below.is_some() || !self.has_lowers);
        let is_same = match below.as_ref().and_then(|below| below.top()) {
            Some(below) if !is_opaque => {
                is_same_directory(&meta, &xattrs, below).map_err(failed)?
            }
            _ => false,
        };
        let content = Content::None;
        let entry = Item {
            path: path.clone(),
            what: What::Node {
                meta,
                xattrs,
                content,
            },
        };
        let below = below.filter(|_| !is_opaque);
        if is_same {
            self.enter(fd, path, below, Some(entry))?;
            return Ok(true);
        }
        if !self.put(entry) {
            return Ok(false);
        }
        let mark = hides_below.then(|| join(&path, OPAQUE_NAME));
        self.enter(fd, path, below, None)?;
        Ok(mark.is_none_or(|path| {
            self.put(Item {
                path,
                what: What::Mark,
            })
        }))
    }

    fn leaf(&mut self, name: &CStr, path: Vec<u8>, meta: Meta) -> Result<bool> {
        let failed = |errno| Error::io("read", &path, errno);
        let frame = self.top();
        let mut xattrs = Vec::new();
        let mut content = match meta.kind {
            Kind::File => {
                let file = meta::open_file(frame.fd.as_fd(), name).map_err(failed)?;
                xattrs = meta::xattrs(file.as_fd()).map_err(failed)?;
                Content::File(file)
            }
            Kind::Symlink => {
                let target =
                    readlinkat(&frame.fd, name, Vec::with_capacity(256)).map_err(failed)?;
                Content::Symlink(target.into_bytes())
            }
            _ => Content::None,
        };
        // Each name is judged by itself, as in the reference: a copy that overlay made for the sake of a new link is left
        // out, and the new name is a file of its own.
        if let Some(lower) = &frame.lower
            && is_same_leaf(lower, name, &meta, &xattrs, &content)?
        {
            return Ok(true);
        }
        if meta.links > 1 {
            let identity = (meta.device, meta.inode);
            match self.links.get(&identity) {
                Some(first) => {
                    content = Content::HardLink(first.clone());
                    xattrs.clear();
                }
                None => drop(self.links.insert(identity, path.clone())),
            }
        }
        Ok(self.put(Item {
            path,
            what: What::Node {
                meta,
                xattrs,
                content,
            },
        }))
    }

    /// Emits an item after the directories it lies in.
    fn put(&mut self, item: Item) -> bool {
        for frame in &mut self.frames {
            if let Some(entry) = frame.entry.take()
                && !(self.emit)(entry)
            {
                return false;
            }
        }
        (self.emit)(item)
    }
}

/// Directories are compared without their times, which say only that something in them changed.
fn is_same_directory(
    meta: &Meta,
    xattrs: &[Xattr],
    below: BorrowedFd<'_>,
) -> std::result::Result<bool, Errno> {
    let known = meta::stat_fd(below)?;
    Ok(known.mode == meta.mode && known.owner == meta.owner && meta::xattrs(below)? == xattrs)
}

/// Whether the layers below show the very same thing: a copy-up of something that was not changed then.
fn is_same_leaf(
    lower: &Arc<Dir>,
    name: &CStr,
    meta: &Meta,
    xattrs: &[Xattr],
    content: &Content,
) -> Result<bool> {
    let Some(entry) = lower.find(name)? else {
        return Ok(false);
    };
    let known = &entry.meta;
    let is_alike = known.kind == meta.kind
        && known.mode == meta.mode
        && known.owner == meta.owner
        && known.size == meta.size
        && known.modified == meta.modified
        && known.rdev == meta.rdev;
    if !is_alike {
        return Ok(false);
    }
    match content {
        Content::Symlink(target) => Ok(lower.read_link(name, &entry)?.as_bytes() == target),
        Content::File(file) => {
            let below = lower.open_file(name, &entry)?;
            let failed = |errno| lower.error("read", name, errno);
            Ok(meta::xattrs(below.as_fd()).map_err(failed)? == xattrs
                && is_same_content(file.as_fd(), below.as_fd()).map_err(failed)?)
        }
        Content::None => Ok(true),
        Content::HardLink(_) => Ok(false),
    }
}

pub(crate) fn is_same_content(
    a: BorrowedFd<'_>,
    b: BorrowedFd<'_>,
) -> std::result::Result<bool, Errno> {
    const CHUNK: usize = 64 << 10;
    let (mut first, mut second) = (Vec::with_capacity(CHUNK), Vec::with_capacity(CHUNK));
    let mut offset = 0;
    loop {
        fill_at(a, &mut first, offset)?;
        fill_at(b, &mut second, offset)?;
        if first != second {
            return Ok(false);
        }
        if first.is_empty() {
            return Ok(true);
        }
        offset += first.len() as u64;
    }
}

/// Fills the buffer from `offset` on, or up to the end of the file; the file's own position stays.
fn fill_at(
    file: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
    offset: u64,
) -> std::result::Result<(), Errno> {
    buffer.clear();
    while buffer.len() < buffer.capacity() {
        let at = offset + buffer.len() as u64;
        if rustix::io::retry_on_intr(|| rustix::io::pread(file, spare_capacity(buffer), at))? == 0 {
            break;
        }
    }
    Ok(())
}
