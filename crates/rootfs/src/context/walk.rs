//! The walk that captures a context.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;

use super::{Capture, Entry};
use crate::copy::Owner;
use crate::filter::{Filter, FilterState, Verdict};
use crate::meta::{self, Kind, Meta};
use crate::pool::{self, Queue};
use crate::{Error, Result};

/// The most directories in each other: as many as the longest path can name.
const MOST_DEPTH: usize = 2048;

/// A directory to be listed.
struct Task {
    id: u32,
    /// The directory above, open, and the name in it; the root is open itself.
    place: Place,
    relative: Vec<u8>,
    depth: usize,
    state: FilterState,
    taken: bool,
}

enum Place {
    Open(OwnedFd),
    In(Arc<OwnedFd>, CString),
}

/// What was found in one directory.
#[derive(Default)]
struct Listing {
    files: Vec<Found>,
    names: Vec<u8>,
}

struct Found {
    name: (u32, u16),
    meta: Meta,
    link: Option<CString>,
    /// The number of its own listing, if it is a directory.
    id: u32,
    taken: bool,
}

struct Walk<'a> {
    filter: Option<&'a dyn Filter>,
    next: AtomicU32,
    listings: Mutex<Vec<Option<Listing>>>,
}

/// Walks everything below `root`.
pub(super) fn walk(
    root: OwnedFd,
    filter: Option<&dyn Filter>,
    owner: Option<Owner>,
) -> Result<Capture> {
    let failed = |errno| Error::io("open", "the context", errno);
    let meta = meta::stat_fd(&root).map_err(failed)?;
    let own = meta::open_dir(root.as_fd(), c".").map_err(failed)?;
    let walk = Walk {
        filter,
        next: AtomicU32::new(1),
        listings: Mutex::default(),
    };
    let task = Task {
        id: 0,
        place: Place::Open(own),
        relative: Vec::new(),
        depth: 0,
        state: FilterState::default(),
        taken: true,
    };
    pool::run(vec![task], pool::threads(), |task, queue| {
        walk.directory(task, queue)
    })?;
    let listings = walk
        .listings
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    Ok(assemble(root, meta, owner, listings))
}

impl Walk<'_> {
    fn directory(&self, task: Task, queue: &Queue<Task>) -> Result<()> {
        let failed = |errno| Error::io("list", &task.relative, errno);
        let dir = match task.place {
            Place::Open(dir) => dir,
            Place::In(parent, name) => match meta::open_dir(parent.as_fd(), &name) {
                Ok(dir) => dir,
                // Gone since its parent was listed, or a directory no more.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
                // An ignored directory that may not be read has nothing that is taken back in.
                Err(Errno::ACCESS | Errno::PERM) if !task.taken => return Ok(()),
                Err(errno) => return Err(failed(errno)),
            },
        };
        if task.depth >= MOST_DEPTH {
            return Err(failed(Errno::NAMETOOLONG));
        }
        let mut listing = Listing::default();
        let mut names = Vec::new();
        meta::list(dir.as_fd(), |name, kind| {
            names.push((name.to_owned(), kind))
        })
        .map_err(failed)?;
        names.sort_unstable();
        let mut below = Vec::new();
        for (name, kind) in names {
            let path = join(&task.relative, &name);
            let (verdict, state) = match self.filter {
                None => (Verdict::Take, FilterState::default()),
                Some(filter) => filter.judge(&path, &task.state),
            };
            let may_be_dir = matches!(kind, None | Some(Kind::Directory));
            if verdict == Verdict::Prune || (verdict == Verdict::Descend && !may_be_dir) {
                continue;
            }
            let taken = verdict == Verdict::Take;
            let Some((meta, link)) =
                look(&dir, &name).map_err(|errno| Error::io("read", &path, errno))?
            else {
                continue;
            };
            if !taken && !meta.is_dir() {
                continue;
            }
            let mut id = 0;
            if meta.is_dir() {
                id = self.next.fetch_add(1, Ordering::Relaxed);
                below.push((id, name.clone(), path, state, taken));
            }
            let start = listing.names.len() as u32;
            listing.names.extend_from_slice(name.as_bytes());
            listing.files.push(Found {
                name: (start, name.as_bytes().len() as u16),
                meta,
                link,
                id,
                taken,
            });
        }
        let dir = Arc::new(dir);
        for (id, name, relative, state, taken) in below.into_iter().rev() {
            let place = Place::In(Arc::clone(&dir), name);
            queue.push(Task {
                id,
                place,
                relative,
                depth: task.depth + 1,
                state,
                taken,
            });
        }
        self.keep(task.id, listing);
        Ok(())
    }

    fn keep(&self, id: u32, listing: Listing) {
        let mut listings = self.listings.lock().unwrap_or_else(PoisonError::into_inner);
        let index = id as usize;
        if listings.len() <= index {
            listings.resize_with(index + 1, || None);
        }
        listings[index] = Some(listing);
    }
}

/// Returns the attributes of a file and what it says if it is a symlink; `None` if it is gone.
fn look(dir: &OwnedFd, name: &CStr) -> std::result::Result<Option<(Meta, Option<CString>)>, Errno> {
    let meta = match meta::stat(dir.as_fd(), name) {
        Ok(meta) => meta,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    if meta.kind != Kind::Symlink {
        return Ok(Some((meta, None)));
    }
    match rustix::fs::readlinkat(dir, name, Vec::with_capacity(128)) {
        Ok(link) => Ok(Some((meta, Some(link)))),
        // Replaced by something else between the two calls, or gone: taken as not there.
        Err(Errno::NOENT | Errno::INVAL) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Puts the listings together, depth first.
///
/// Directories that the filter did not take stay only if something below them was taken.
fn assemble(
    root: OwnedFd,
    meta: Meta,
    owner: Option<Owner>,
    mut listings: Vec<Option<Listing>>,
) -> Capture {
    let total: usize = listings
        .iter()
        .flatten()
        .map(|listing| listing.files.len())
        .sum();
    let mut entries = Vec::with_capacity(total + 1);
    let mut names = Vec::with_capacity(
        listings
            .iter()
            .flatten()
            .map(|listing| listing.names.len())
            .sum(),
    );
    let mut links = HashMap::new();
    entries.push(Entry {
        name: (0, 0),
        parent: 0,
        end: 0,
        meta,
    });
    let mut open = vec![Level {
        entry: 0,
        taken: true,
        listing: take(&mut listings, 0),
        next: 0,
    }];
    while let Some(level) = open.last_mut() {
        let Some(found) = level.listing.files.get_mut(level.next) else {
            let done = open.pop().expect("the loop holds the last level");
            let is_empty = entries.len() as u32 == done.entry + 1;
            if is_empty && !done.taken {
                entries.pop();
            } else {
                entries[done.entry as usize].end = entries.len() as u32;
                if let Some(above) = open.last_mut() {
                    // What holds something that is taken is needed itself.
                    above.taken = true;
                }
            }
            continue;
        };
        level.next += 1;
        let index = entries.len() as u32;
        let start = names.len() as u32;
        names.extend_from_slice(
            &level.listing.names[found.name.0 as usize..][..usize::from(found.name.1)],
        );
        if let Some(link) = found.link.take() {
            links.insert(index, link);
        }
        entries.push(Entry {
            name: (start, found.name.1),
            parent: level.entry,
            end: index + 1,
            meta: found.meta,
        });
        if found.meta.is_dir() {
            let (id, taken) = (found.id, found.taken);
            let listing = take(&mut listings, id);
            open.push(Level {
                entry: index,
                taken,
                listing,
                next: 0,
            });
        }
    }
    let contents = std::iter::repeat_with(Mutex::default)
        .take(entries.len())
        .collect();
    Capture {
        root,
        entries,
        names,
        links,
        contents,
        others: Mutex::default(),
        owner,
    }
}

/// A directory whose entries are being taken over.
struct Level {
    entry: u32,
    taken: bool,
    listing: Listing,
    next: usize,
}

fn take(listings: &mut [Option<Listing>], id: u32) -> Listing {
    listings
        .get_mut(id as usize)
        .and_then(Option::take)
        .unwrap_or_default()
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
