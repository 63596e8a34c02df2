//! Remembering what files hold, so that an unchanged tree costs one `statx` a file.
//!
//! A file is known again by its device, inode, size, modification and change time. The change time is the kernel's
//! and cannot be set back, so `touch -r` and renames do not fool it; what could is a change within the same tick of the
//! file system's clock. So nothing is remembered of a file that was not older, by that clock, than the reading of it
//! (git's rule for racy entries), nor on file systems whose change times are not this kernel's own.

use std::collections::HashMap;
use std::hash::Hasher;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};

use crate::copy::Timestamp;
use crate::meta::Meta;

/// What a file is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileStamp {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    pub modified: Timestamp,
    pub changed: Timestamp,
}

/// The SHA-256 of what a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileContent {
    /// Of its data; of nothing for what is no regular file.
    pub data: [u8; 32],
    /// Of its extended attributes, if it has any.
    pub xattrs: Option<[u8; 32]>,
}

/// Remembers the content of files. Called from many threads.
///
/// What is given to `remember` is safe to believe for ever; nothing else may be returned by `recall`.
pub trait FileMemo: Sync {
    fn recall(&self, stamp: &FileStamp) -> Option<FileContent>;
    fn remember(&self, stamp: &FileStamp, content: &FileContent);
}

/// Remembers nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMemo;

impl FileMemo for NoMemo {
    fn recall(&self, _stamp: &FileStamp) -> Option<FileContent> {
        None
    }

    fn remember(&self, _stamp: &FileStamp, _content: &FileContent) {}
}

impl FileStamp {
    pub fn of(meta: &Meta) -> FileStamp {
        FileStamp {
            device: meta.device,
            inode: meta.inode,
            size: meta.size,
            modified: meta.modified,
            changed: meta.changed,
        }
    }

    /// Returns whether a change after `clock`, the file system's time at which reading began, must show in the stamp.
    ///
    /// The clock goes in ticks of at most 10 ms (the coarsest kernel), some file systems keep whole seconds, or even
    /// ones: a time without a fraction is taken for such.
    fn is_settled(&self, clock: Timestamp) -> bool {
        [self.modified, self.changed].into_iter().all(|time| {
            let grain = if time.nanoseconds == 0 {
                2_000_000_000
            } else {
                20_000_000
            };
            nanoseconds(time) + grain < nanoseconds(clock)
        })
    }
}

fn nanoseconds(time: Timestamp) -> i128 {
    i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds)
}

/// Returns the clock by which local file systems stamp their files.
pub(crate) fn file_clock() -> Timestamp {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    Timestamp {
        seconds: now.tv_sec,
        nanoseconds: now.tv_nsec as u32,
    }
}

/// A memo that is asked and told only what it can be trusted with.
pub(crate) struct CarefulMemo<'a> {
    memo: &'a dyn FileMemo,
    /// Devices that were looked at, and whether their change times can be trusted.
    trusted: Mutex<HashMap<u64, bool>>,
}

impl<'a> CarefulMemo<'a> {
    pub(crate) fn new(memo: &'a dyn FileMemo) -> CarefulMemo<'a> {
        CarefulMemo {
            memo,
            trusted: Mutex::default(),
        }
    }

    /// Looks a device up by a file on it, once.
    pub(crate) fn learn(&self, device: u64, file: BorrowedFd<'_>) {
        let mut trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
        trusted
            .entry(device)
            .or_insert_with(|| keeps_honest_times(file));
    }

    fn trusts(&self, device: u64) -> bool {
        let trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
        trusted.get(&device).copied().unwrap_or(false)
    }

    pub(crate) fn recall(&self, meta: &Meta) -> Option<FileContent> {
        self.trusts(meta.device)
            .then(|| self.memo.recall(&FileStamp::of(meta)))
            .flatten()
    }

    /// Remembers what was read of a file whose attributes were `meta` before and after, from `clock` on.
    pub(crate) fn remember(&self, meta: &Meta, clock: Timestamp, content: &FileContent) {
        let stamp = FileStamp::of(meta);
        if stamp.is_settled(clock) && self.trusts(meta.device) {
            self.memo.remember(&stamp, content);
        }
    }
}

/// Returns whether a file system is one of this kernel's own, on a disk or in memory of this machine.
///
/// FUSE, 9p, NFS, SMB and the like show times that another machine or program makes up.
fn keeps_honest_times(file: BorrowedFd<'_>) -> bool {
    const LOCAL: [u32; 9] = [
        0xef53,      // ext2, ext3, ext4
        0x5846_5342, // XFS
        0x9123_683e, // Btrfs
        0x0102_1994, // tmpfs
        0xf2f5_2010, // F2FS
        0x2fc1_2fc1, // ZFS
        0xca45_1a4e, // bcachefs
        0x794c_7630, // overlay
        0x8584_58f6, // ramfs
    ];
    rustix::fs::fstatfs(file).is_ok_and(|found| LOCAL.contains(&(found.f_type as u32)))
}

/// A memo in memory that can be written to and read from bytes.
///
/// What was read in stays as it was in the file: the memory of a large context is mostly this.
#[derive(Debug, Default)]
pub struct MemoTable {
    /// A header and entries, sorted by device and inode.
    bytes: Vec<u8>,
    /// The numbers of the entries plus one, by the hash of their inodes, each in the first free slot; half are free.
    index: Vec<u32>,
    fresh: Mutex<Fresh>,
}

/// What was remembered since. There may be hundreds of thousands of entries: they lie in blocks, which need not be moved
/// when there are more.
#[derive(Debug, Default)]
struct Fresh {
    blocks: Vec<Vec<FreshEntry>>,
    /// The hashes of extended attributes, by the number of the entry: few have any.
    xattrs: HashMap<u32, [u8; 32]>,
}

#[derive(Debug)]
struct FreshEntry {
    device: u64,
    inode: u64,
    size: u64,
    /// Of the modification and of the change.
    seconds: [i64; 2],
    nanoseconds: [u32; 2],
    data: [u8; 32],
}

const FRESH_BLOCK: usize = 1024;

impl Fresh {
    fn push(&mut self, stamp: &FileStamp, content: &FileContent) {
        if let Some(xattrs) = content.xattrs {
            self.xattrs.insert(self.len() as u32, xattrs);
        }
        let times = [stamp.modified, stamp.changed];
        let entry = FreshEntry {
            device: stamp.device,
            inode: stamp.inode,
            size: stamp.size,
            seconds: times.map(|time| time.seconds),
            nanoseconds: times.map(|time| time.nanoseconds),
            data: content.data,
        };
        match self.blocks.last_mut() {
            Some(block) if block.len() < FRESH_BLOCK => block.push(entry),
            _ => {
                let mut block = Vec::with_capacity(FRESH_BLOCK);
                block.push(entry);
                self.blocks.push(block);
            }
        }
    }

    fn len(&self) -> usize {
        let last = self.blocks.last().map_or(0, Vec::len);
        self.blocks.len().saturating_sub(1) * FRESH_BLOCK + last
    }

    fn entry(&self, number: u32) -> &FreshEntry {
        let number = number as usize;
        &self.blocks[number / FRESH_BLOCK][number % FRESH_BLOCK]
    }

    fn inode(&self, number: u32) -> (u64, u64) {
        let entry = self.entry(number);
        (entry.device, entry.inode)
    }

    fn encode(&self, number: u32, to: &mut Vec<u8>) {
        let entry = self.entry(number);
        let [modified, changed] = [0, 1].map(|which| Timestamp {
            seconds: entry.seconds[which],
            nanoseconds: entry.nanoseconds[which],
        });
        let stamp = FileStamp {
            device: entry.device,
            inode: entry.inode,
            size: entry.size,
            modified,
            changed,
        };
        let content = FileContent {
            data: entry.data,
            xattrs: self.xattrs.get(&number).copied(),
        };
        encode(&stamp, &content, to);
    }

    /// Lists the entries by device and inode; of equal ones the last is the last to be remembered.
    fn sorted(&self) -> Vec<u32> {
        let mut sorted: Vec<u32> = (0..self.len() as u32).collect();
        sorted.sort_unstable_by_key(|number| (self.inode(*number), *number));
        sorted
    }
}

const MAGIC: &[u8; 8] = b"LSMEMO1\n";
/// Length of what comes before the entries: the magic and a checksum of them.
const HEADER: usize = MAGIC.len() + 4;
/// Length of one entry: device, inode, size, two times, a flag and two hashes.
const ENTRY: usize = 8 + 8 + 8 + 12 + 12 + 1 + 32 + 32;
/// The most entries kept; beyond that, those with the lowest inode numbers go first.
const MOST_ENTRIES: usize = 2_000_000;

impl MemoTable {
    /// Reads what [`to_bytes`](Self::to_bytes) wrote; what is damaged or of another version is an empty table.
    pub fn from_bytes(bytes: Vec<u8>) -> MemoTable {
        let Some((sum, entries)) = bytes
            .strip_prefix(MAGIC)
            .and_then(|rest| rest.split_first_chunk::<4>())
        else {
            return MemoTable::default();
        };
        if u32::from_le_bytes(*sum) != crc32fast::hash(entries)
            || !entries.len().is_multiple_of(ENTRY)
        {
            return MemoTable::default();
        }
        let count = entries.len() / ENTRY;
        let mut table = MemoTable {
            index: vec![0; (count * 2).next_power_of_two()],
            bytes,
            fresh: Mutex::default(),
        };
        let mut last = None;
        for number in 0..count {
            let inode = inode_of(table.entry(number));
            if last.is_some_and(|last| last >= inode) {
                return MemoTable::default();
            }
            last = Some(inode);
            let slot = table
                .slots(inode)
                .find(|slot| table.index[*slot] == 0)
                .expect("half of the slots are free");
            table.index[slot] = number as u32 + 1;
        }
        table
    }

    /// Writes all entries, sorted.
    pub fn to_bytes(&self) -> Vec<u8> {
        let fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        let all = self.len() + fresh.len();
        let skip = all.saturating_sub(MOST_ENTRIES);
        let mut bytes = Vec::with_capacity(HEADER + (all - skip) * ENTRY);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[0; 4]);
        let mut known = (0..self.len()).map(|number| self.entry(number)).peekable();
        let mut sorted = fresh.sorted().into_iter().peekable();
        for number in 0..all {
            let next = sorted.peek().map(|next| fresh.inode(*next));
            let is_known = |entry: &&[u8]| next.is_none_or(|next| inode_of(entry) <= next);
            // What is fresh comes after what it replaces.
            if let Some(entry) = known.next_if(is_known) {
                if number >= skip && next != Some(inode_of(entry)) {
                    bytes.extend_from_slice(entry);
                }
            } else if let Some(entry) = sorted.next() {
                let next = sorted.peek().map(|next| fresh.inode(*next));
                if number >= skip && next != Some(fresh.inode(entry)) {
                    fresh.encode(entry, &mut bytes);
                }
            }
        }
        let sum = crc32fast::hash(&bytes[HEADER..]);
        bytes[MAGIC.len()..HEADER].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Returns whether something was remembered that the bytes it was read from do not hold.
    pub fn is_changed(&self) -> bool {
        let fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        !fresh.blocks.is_empty()
    }

    /// Returns how many entries were read in.
    fn len(&self) -> usize {
        self.bytes.len().saturating_sub(HEADER) / ENTRY
    }

    fn entry(&self, number: usize) -> &[u8] {
        &self.bytes[HEADER + number * ENTRY..][..ENTRY]
    }

    /// Lists the slots of the index where an inode may be, the likely ones first.
    fn slots(&self, (device, inode): (u64, u64)) -> impl Iterator<Item = usize> + use<> {
        let mut hasher = InodeHasher::default();
        hasher.write_u64(device);
        hasher.write_u64(inode);
        let (first, length) = (hasher.finish() as usize, self.index.len());
        (0..length).map(move |step| first.wrapping_add(step) & (length - 1))
    }
}

impl FileMemo for MemoTable {
    /// Returns what was read in; what is remembered now is for the next process.
    fn recall(&self, stamp: &FileStamp) -> Option<FileContent> {
        let inode = (stamp.device, stamp.inode);
        let mut entries = self
            .slots(inode)
            .map_while(|slot| self.index[slot].checked_sub(1))
            .map(|number| self.entry(number as usize));
        let entry = entries.find(|entry| inode_of(entry) == inode)?;
        let (known, content) = decode(entry);
        (known == *stamp).then_some(content)
    }

    fn remember(&self, stamp: &FileStamp, content: &FileContent) {
        self.fresh
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(stamp, content);
    }
}

/// Returns the device and inode that an entry begins with.
fn inode_of(entry: &[u8]) -> (u64, u64) {
    let number = |at: usize| {
        let bytes = entry[at..].first_chunk::<8>();
        u64::from_le_bytes(*bytes.expect("an entry has a fixed length"))
    };
    (number(0), number(8))
}

fn encode(stamp: &FileStamp, content: &FileContent, to: &mut Vec<u8>) {
    for number in [stamp.device, stamp.inode, stamp.size] {
        to.extend_from_slice(&number.to_le_bytes());
    }
    for time in [stamp.modified, stamp.changed] {
        to.extend_from_slice(&time.seconds.to_le_bytes());
        to.extend_from_slice(&time.nanoseconds.to_le_bytes());
    }
    to.push(u8::from(content.xattrs.is_some()));
    to.extend_from_slice(&content.data);
    to.extend_from_slice(&content.xattrs.unwrap_or_default());
}

/// Reads one entry of exactly [`ENTRY`] bytes.
fn decode(mut entry: &[u8]) -> (FileStamp, FileContent) {
    fn take<const N: usize>(entry: &mut &[u8]) -> [u8; N] {
        let (first, rest) = entry
            .split_first_chunk::<N>()
            .expect("an entry has a fixed length");
        *entry = rest;
        *first
    }
    let number = |entry: &mut &[u8]| u64::from_le_bytes(take(entry));
    let (device, inode, size) = (number(&mut entry), number(&mut entry), number(&mut entry));
    let time = |entry: &mut &[u8]| Timestamp {
        seconds: i64::from_le_bytes(take(entry)),
        nanoseconds: u32::from_le_bytes(take(entry)),
    };
    let (modified, changed) = (time(&mut entry), time(&mut entry));
    let [has_xattrs] = take::<1>(&mut entry);
    let data = take(&mut entry);
    let xattrs = take(&mut entry);
    let stamp = FileStamp {
        device,
        inode,
        size,
        modified,
        changed,
    };
    (
        stamp,
        FileContent {
            data,
            xattrs: (has_xattrs != 0).then_some(xattrs),
        },
    )
}

/// A quick hash for device and inode numbers, which no attacker chooses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct InodeHasher(u64);

impl Hasher for InodeHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(26) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64, nanoseconds: u32) -> Timestamp {
        Timestamp {
            seconds,
            nanoseconds,
        }
    }

    fn stamp(inode: u64) -> FileStamp {
        FileStamp {
            device: 1,
            inode,
            size: 3,
            modified: at(5, 6),
            changed: at(7, 8),
        }
    }

    fn content(byte: u8) -> FileContent {
        FileContent {
            data: [byte; 32],
            xattrs: (byte % 2 == 1).then_some([byte; 32]),
        }
    }

    #[test]
    fn a_table_survives_being_written_and_read() {
        let table = MemoTable::default();
        (0..100).for_each(|n| table.remember(&stamp(n), &content(n as u8)));
        let again = MemoTable::from_bytes(table.to_bytes());
        (0..100).for_each(|n| assert_eq!(again.recall(&stamp(n)), Some(content(n as u8))));
        assert!(table.is_changed() && !again.is_changed());
        assert_eq!(again.to_bytes(), table.to_bytes());

        again.remember(
            &FileStamp {
                size: 4,
                ..stamp(5)
            },
            &content(77),
        );
        let third = MemoTable::from_bytes(again.to_bytes());
        assert_eq!(third.recall(&stamp(5)), None);
        assert_eq!(
            third.recall(&FileStamp {
                size: 4,
                ..stamp(5)
            }),
            Some(content(77))
        );
    }

    #[test]
    fn any_difference_in_the_stamp_is_another_file() {
        let table = MemoTable::default();
        table.remember(&stamp(1), &content(1));
        let table = MemoTable::from_bytes(table.to_bytes());
        for other in [
            FileStamp {
                device: 2,
                ..stamp(1)
            },
            FileStamp {
                size: 4,
                ..stamp(1)
            },
            FileStamp {
                modified: at(5, 7),
                ..stamp(1)
            },
            FileStamp {
                changed: at(7, 9),
                ..stamp(1)
            },
            stamp(2),
        ] {
            assert_eq!(table.recall(&other), None, "{other:?}");
        }
    }

    #[test]
    fn damaged_bytes_are_an_empty_table() {
        let table = MemoTable::default();
        table.remember(&stamp(1), &content(1));
        let bytes = table.to_bytes();
        for length in 0..bytes.len() {
            assert_eq!(
                MemoTable::from_bytes(bytes[..length].to_vec()).recall(&stamp(1)),
                None
            );
        }
        let mut flipped = bytes.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert_eq!(MemoTable::from_bytes(flipped).recall(&stamp(1)), None);
    }

    #[test]
    fn entries_out_of_order_are_an_empty_table() {
        let table = MemoTable::default();
        (1..3).for_each(|n| table.remember(&stamp(n), &content(1)));
        let bytes = table.to_bytes();
        let (first, second) = bytes[HEADER..].split_at(ENTRY);
        let mut turned = [&bytes[..HEADER], second, first].concat();
        let sum = crc32fast::hash(&turned[HEADER..]);
        turned[MAGIC.len()..HEADER].copy_from_slice(&sum.to_le_bytes());
        let table = MemoTable::from_bytes(turned);
        assert_eq!(table.recall(&stamp(1)), None);
        assert_eq!(table.recall(&stamp(2)), None);
    }

    #[test]
    fn what_is_learned_joins_what_was_known_in_its_place() {
        let table = MemoTable::default();
        for n in [2, 4, 6] {
            table.remember(&stamp(n), &content(10));
        }
        let table = MemoTable::from_bytes(table.to_bytes());
        // One of them twice: the last one counts.
        for n in [7, 4, 1, 5, 4] {
            table.remember(&stamp(n), &content(n as u8 + 20));
        }
        let all = MemoTable::from_bytes(table.to_bytes());
        let found = (0..9).map(|n| all.recall(&stamp(n)).map(|content| content.data[0]));
        let found: Vec<Option<u8>> = found.collect();
        let expected = [0, 21, 10, 0, 24, 25, 10, 27, 0];
        assert_eq!(found, expected.map(|byte| (byte > 0).then_some(byte)));
    }

    #[test]
    fn a_table_takes_little_more_memory_than_its_bytes() {
        const COUNT: u64 = 50_000;
        let table = MemoTable::default();
        (0..COUNT).for_each(|n| table.remember(&stamp(n), &content(n as u8)));
        let bytes = table.to_bytes();
        let mut read = None;
        let measured = allocation_counter::measure(|| read = Some(MemoTable::from_bytes(bytes)));
        assert!(measured.bytes_max < 16 * COUNT, "{measured:?}");
        assert_eq!(measured.count_total, 1, "{measured:?}");
        let read = read.unwrap();
        let mut again = Vec::new();
        let measured = allocation_counter::measure(|| again = read.to_bytes());
        assert_eq!(measured.count_total, 1, "{measured:?}");
        assert_eq!(again.len(), HEADER + COUNT as usize * ENTRY);
    }

    #[test]
    fn what_could_have_changed_in_the_same_tick_is_not_settled() {
        let changed = |changed| FileStamp {
            changed,
            ..stamp(1)
        };
        assert!(!changed(at(100, 500_000_000)).is_settled(at(100, 500_000_000)));
        assert!(!changed(at(100, 500_000_000)).is_settled(at(100, 510_000_000)));
        assert!(changed(at(100, 500_000_000)).is_settled(at(100, 530_000_000)));
        // Whole seconds: the file system may not keep more.
        assert!(!changed(at(100, 0)).is_settled(at(101, 900_000_000)));
        assert!(changed(at(100, 0)).is_settled(at(102, 1)));
        // From the future.
        assert!(!changed(at(200, 1)).is_settled(at(100, 0)));
        assert!(
            !FileStamp {
                modified: at(200, 1),
                ..stamp(1)
            }
            .is_settled(at(100, 0))
        );
    }
}
