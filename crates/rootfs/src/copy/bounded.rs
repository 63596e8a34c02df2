//! Reading what may be a bomb.

use std::io::{BufRead, Read, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Error;

/// A reader that fails past so many bytes, and when it is told to stop.
pub(super) struct Bounded<R> {
    inner: R,
    limit: u64,
    left: u64,
    stopped: Option<Arc<AtomicBool>>,
}

impl<R: BufRead> Bounded<R> {
    pub(super) fn new(inner: R, limit: u64, stopped: Option<Arc<AtomicBool>>) -> Self {
        Self {
            inner,
            limit,
            left: limit,
            stopped,
        }
    }
}

impl<R: BufRead> BufRead for Bounded<R> {
    fn fill_buf(&mut self) -> Result<&[u8]> {
        let stopped = self.stopped.as_ref();
        if stopped.is_some_and(|stopped| stopped.load(Ordering::Relaxed)) {
            return Err(std::io::Error::other(Error::Stopped));
        }
        let found = self.inner.fill_buf()?;
        if found.is_empty() {
            return Ok(found);
        }
        if self.left == 0 {
            return Err(std::io::Error::other(Error::ArchiveLimit {
                what: "bytes",
                limit: self.limit,
            }));
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        Ok(&found[..found.len().min(most)])
    }

    fn consume(&mut self, count: usize) {
        self.inner.consume(count);
        self.left -= count as u64;
    }
}

impl<R: BufRead> Read for Bounded<R> {
    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        let found = self.fill_buf()?;
        let count = found.len().min(into.len());
        into[..count].copy_from_slice(&found[..count]);
        self.consume(count);
        Ok(count)
    }
}
