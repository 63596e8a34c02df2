//! Hard links inside one copied tree.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Inodes with several names, and where the first of them was copied to.
#[derive(Debug, Default)]
pub(crate) struct Links {
    seen: Mutex<HashMap<(u64, u64), Link>>,
    settled: Condvar,
}

#[derive(Debug)]
enum Link {
    /// Some thread is copying it.
    Busy,
    /// It is there: path below the target of the copy.
    Done(Arc<Vec<u8>>),
}

impl Links {
    /// Returns where an inode was copied to; `None` when the caller has to copy it and then must [`settle`](Self::settle).
    pub(crate) fn claim(&self, inode: (u64, u64)) -> Option<Arc<Vec<u8>>> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match seen.get(&inode) {
                None => {
                    seen.insert(inode, Link::Busy);
                    return None;
                }
                Some(Link::Done(path)) => return Some(Arc::clone(path)),
                Some(Link::Busy) => {
                    seen = self
                        .settled
                        .wait(seen)
                        .unwrap_or_else(PoisonError::into_inner)
                }
            }
        }
    }

    /// Tells where the claimed inode is; `None` when copying it failed.
    pub(crate) fn settle(&self, inode: (u64, u64), path: Option<Vec<u8>>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match path {
            Some(path) => seen.insert(inode, Link::Done(Arc::new(path))),
            None => seen.remove(&inode),
        };
        drop(seen);
        self.settled.notify_all();
    }
}
