//! Bringing the bytes of a file over.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::meta::Meta;

/// Up to this size one read and one write are cheaper than the kernel's copy.
const SMALL: u64 = 64 * 1024;
const BUFFER: usize = 256 * 1024;

/// How files are copied in one operation; it learns what the file systems cannot do.
#[derive(Debug)]
pub(crate) struct DataCopy {
    clone: AtomicBool,
    range: AtomicBool,
}

/// What became of one file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    pub(crate) bytes: u64,
    pub(crate) cloned: bool,
}

impl Default for DataCopy {
    fn default() -> Self {
        DataCopy {
            clone: AtomicBool::new(true),
            range: AtomicBool::new(true),
        }
    }
}

impl DataCopy {
    /// Copies a regular file into a new, empty one. `meta` is that of the source.
    pub(crate) fn copy(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        meta: &Meta,
    ) -> Result<Copied, Errno> {
        if meta.size == 0 {
            return Ok(Copied::default());
        }
        if self.clone.load(Ordering::Relaxed) {
            match rustix::fs::ioctl_ficlone(to, from) {
                Ok(()) => {
                    return Ok(Copied {
                        bytes: meta.size,
                        cloned: true,
                    });
                }
                Err(
                    Errno::OPNOTSUPP
                    | Errno::XDEV
                    | Errno::NOTTY
                    | Errno::INVAL
                    | Errno::NOSYS
                    | Errno::PERM,
                ) => {
                    self.clone.store(false, Ordering::Relaxed);
                }
                Err(errno) => return Err(errno),
            }
        }
        let is_sparse = meta.blocks.saturating_mul(512).saturating_add(4096) < meta.size;
        let bytes = match is_sparse {
            true => self.copy_sparse(from, to, meta.size)?,
            false => self.copy_to_end(from, to, meta.size)?,
        };
        Ok(Copied {
            bytes,
            cloned: false,
        })
    }

    /// Copies from both files' positions until `length` bytes or the end of the source.
    fn copy_to_end(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        length: u64,
    ) -> Result<u64, Errno> {
        let mut copied = 0;
        while length > SMALL && copied < length && self.range.load(Ordering::Relaxed) {
            let rest = usize::try_from(length - copied)
                .unwrap_or(usize::MAX)
                .min(1 << 30);
            match rustix::fs::copy_file_range(from, None, to, None, rest) {
                // Some file systems say 0 where they should refuse; reading finds out.
                Ok(0) => break,
                Ok(count) => copied += count as u64,
                Err(Errno::INTR) => {}
                Err(
                    Errno::NOSYS
                    | Errno::XDEV
                    | Errno::PERM
                    | Errno::IO
                    | Errno::OPNOTSUPP
                    | Errno::INVAL,
                ) if copied == 0 => {
                    self.range.store(false, Ordering::Relaxed);
                }
                Err(errno) => return Err(errno),
            }
        }
        if copied < length {
            copied += read_write(from, to, length - copied, |_| {})?;
        }
        Ok(copied)
    }

    fn copy_sparse(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        size: u64,
    ) -> Result<u64, Errno> {
        let mut offset = 0;
        while offset < size {
            let data = match rustix::fs::seek(from, SeekFrom::Data(offset)) {
                Ok(data) => data,
                // No data up to the end.
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL) if offset == 0 => return self.copy_to_end(from, to, size),
                Err(errno) => return Err(errno),
            };
            let hole = rustix::fs::seek(from, SeekFrom::Hole(data))?;
            rustix::fs::seek(from, SeekFrom::Start(data))?;
            rustix::fs::seek(to, SeekFrom::Start(data))?;
            let end = hole.min(size);
            if self.copy_to_end(from, to, end.saturating_sub(data))? == 0 {
                break;
            }
            offset = end;
        }
        rustix::fs::ftruncate(to, size)?;
        Ok(size)
    }
}

/// Copies through memory from both files' positions until `length` bytes or the end of the source; each piece is
/// shown to `each` before it is written.
pub(crate) fn read_write(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    length: u64,
    mut each: impl FnMut(&[u8]),
) -> Result<u64, Errno> {
    let size = usize::try_from(length).unwrap_or(BUFFER).clamp(1, BUFFER);
    with_buffer(size, |buffer| {
        let mut copied = 0;
        while copied < length {
            let most = usize::try_from(length - copied)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            let count = rustix::io::retry_on_intr(|| rustix::io::read(from, &mut buffer[..most]))?;
            if count == 0 {
                break;
            }
            each(&buffer[..count]);
            write_all(to, &buffer[..count])?;
            copied += count as u64;
        }
        Ok(copied)
    })
}

/// Lends a buffer of at least `size` bytes that the thread keeps.
pub(crate) fn with_buffer<R>(size: usize, work: impl FnOnce(&mut [u8]) -> R) -> R {
    thread_local! {
        static KEPT: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    let mut buffer = KEPT.take();
    if buffer.len() < size {
        buffer.resize(size.next_power_of_two(), 0);
    }
    let result = work(&mut buffer[..size]);
    KEPT.set(buffer);
    result
}

pub(crate) fn write_all(to: impl AsFd, mut data: &[u8]) -> Result<(), Errno> {
    while !data.is_empty() {
        match rustix::io::write(&to, data) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => data = &data[count..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
