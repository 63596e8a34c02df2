//! Writes entries in the one form a layer tar has here: ustar headers, and PAX records for what does not fit them.
//!
//! Which form is taken follows from the entry alone, as in the reference (Go's `archive/tar`).

use super::header::{self, Block, Field};
use super::{BLOCK, EPOCH, Kind, Time, pax};

/// What the headers of an entry are to say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header<'a> {
    /// Relative; that of a directory ends with a slash.
    pub(crate) path: &'a [u8],
    pub(crate) link: &'a [u8],
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) mtime: Time,
    pub(crate) device: (u32, u32),
}

impl<'a> Header<'a> {
    /// An empty file of nobody, as whiteouts are.
    pub(crate) fn mark(path: &'a [u8]) -> Header<'a> {
        Header {
            path,
            link: b"",
            kind: Kind::File,
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: EPOCH,
            device: (0, 0),
        }
    }

    /// Appends the header blocks to `out`; `xattrs` are names and values, sorted by name.
    pub(crate) fn append<'x>(
        &self,
        out: &mut Vec<u8>,
        xattrs: impl Iterator<Item = (&'x [u8], &'x [u8])>,
    ) {
        let records = self.records(xattrs);
        let place = split(self.path);
        if !records.is_empty() {
            let name = extended_name(self.path);
            let extended = Header {
                mode: 0o644,
                size: records.len() as u64,
                ..Header::mark(&name)
            };
            out.extend_from_slice(&extended.block(b'x', Some((b"", &name))));
            out.extend_from_slice(&records);
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
        out.extend_from_slice(&self.block(self.kind.flag(), place));
    }

    /// Returns the PAX records, sorted by key.
    fn records<'x>(&self, xattrs: impl Iterator<Item = (&'x [u8], &'x [u8])>) -> Vec<u8> {
        let mut body = Vec::new();
        for (name, value) in xattrs {
            pax::append(&mut body, &[b"SCHILY.xattr.", name].concat(), value);
        }
        let mut number = |key: &str, value: u64, field: Field| {
            if value > largest(field) {
                pax::append(&mut body, key.as_bytes(), value.to_string().as_bytes());
            }
        };
        number("gid", self.gid.into(), header::GID);
        if !is_ascii(self.link) || self.link.len() > header::LINK.1 {
            pax::append(&mut body, b"linkpath", self.link);
        }
        if self.mtime.nanoseconds != 0 || whole_seconds(self.mtime).is_none() {
            pax::append(&mut body, b"mtime", time(self.mtime).as_bytes());
        }
        if split(self.path).is_none() {
            pax::append(&mut body, b"path", self.path);
        }
        let mut number = |key: &str, value: u64, field: Field| {
            if value > largest(field) {
                pax::append(&mut body, key.as_bytes(), value.to_string().as_bytes());
            }
        };
        number("size", self.size, header::SIZE);
        number("uid", self.uid.into(), header::UID);
        body
    }

    /// Fills one block; what does not fit stands in the PAX records.
    fn block(&self, flag: u8, place: Option<(&[u8], &[u8])>) -> Block {
        let mut block = [0; BLOCK];
        match place {
            Some((prefix, name)) => {
                put(&mut block, header::PREFIX, prefix);
                put(&mut block, header::NAME, name);
            }
            None => put(&mut block, header::NAME, &ascii(self.path)),
        }
        octal(&mut block, header::MODE, self.mode.into());
        octal(&mut block, header::UID, self.uid.into());
        octal(&mut block, header::GID, self.gid.into());
        octal(&mut block, header::SIZE, self.size);
        octal(
            &mut block,
            header::MTIME,
            whole_seconds(self.mtime).unwrap_or(0),
        );
        block[header::TYPE] = flag;
        put(&mut block, header::LINK, &ascii(self.link));
        put(&mut block, header::MAGIC, b"ustar\x0000");
        octal(&mut block, header::DEVICE_MAJOR, self.device.0.into());
        octal(&mut block, header::DEVICE_MINOR, self.device.1.into());
        let (sum, _) = header::checksums(&block);
        put(
            &mut block,
            header::CHECKSUM,
            format!("{sum:06o}\0 ").as_bytes(),
        );
        block
    }
}

/// Returns the seconds as the header can hold them.
fn whole_seconds(time: Time) -> Option<u64> {
    u64::try_from(time.seconds)
        .ok()
        .filter(|seconds| *seconds <= largest(header::MTIME))
}

/// Returns the largest number that fits a field in octal, a NUL behind it.
const fn largest(field: Field) -> u64 {
    (1 << (3 * (field.1 - 1))) - 1
}

fn put(block: &mut Block, field: Field, value: &[u8]) {
    let length = value.len().min(field.1);
    block[field.0..field.0 + length].copy_from_slice(&value[..length]);
}

fn octal(block: &mut Block, field: Field, value: u64) {
    let mut value = if value > largest(field) { 0 } else { value };
    for byte in block[field.0..field.0 + field.1 - 1].iter_mut().rev() {
        *byte = b'0' + (value & 7) as u8;
        value >>= 3;
    }
}

fn is_ascii(text: &[u8]) -> bool {
    text.is_ascii() && !text.contains(&0)
}

fn ascii(text: &[u8]) -> Vec<u8> {
    text.iter()
        .copied()
        .filter(u8::is_ascii)
        .take(100)
        .collect()
}

/// Splits a path into what goes into the prefix and the name of a header; `None` when it needs a PAX record.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if !is_ascii(path) {
        return None;
    }
    if path.len() <= header::NAME.1 {
        return Some((b"", path));
    }
    // The slash at the end of a directory splits nothing off.
    let end = path.len().min(header::PREFIX.1 + 1);
    let end = if end == path.len() { end - 1 } else { end };
    let slash = path[..end].iter().rposition(|byte| *byte == b'/')?;
    let (prefix, name) = (&path[..slash], &path[slash + 1..]);
    (!prefix.is_empty() && !name.is_empty() && name.len() <= header::NAME.1)
        .then_some((prefix, name))
}

/// Names an extended header after its entry.
fn extended_name(path: &[u8]) -> Vec<u8> {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let (parent, base) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => path.split_at(slash + 1),
        None => (&b""[..], path),
    };
    ascii(&[parent, b"PaxHeaders.0/", base].concat())
}

fn time(time: Time) -> String {
    let (sign, seconds, nanoseconds) = match time {
        Time {
            seconds,
            nanoseconds: 0,
        } if seconds < 0 => ("-", seconds.unsigned_abs(), 0),
        Time {
            seconds,
            nanoseconds,
        } if seconds < 0 => (
            "-",
            (seconds + 1).unsigned_abs(),
            1_000_000_000 - nanoseconds,
        ),
        Time {
            seconds,
            nanoseconds,
        } => ("", seconds.unsigned_abs(), nanoseconds),
    };
    if nanoseconds == 0 {
        return format!("{sign}{seconds}");
    }
    let decimals = format!("{nanoseconds:09}");
    format!("{sign}{seconds}.{}", decimals.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::super::read::Reader;
    use super::*;

    /// Writes one entry, reads it back and returns how many bytes the headers took.
    #[track_caller]
    fn round_trip(header: Header<'_>) -> usize {
        let mut out = Vec::new();
        let xattrs = [(&b"user.a"[..], &b"1\n\0"[..])];
        let has_xattrs = header.kind == Kind::Directory;
        header.append(&mut out, xattrs.into_iter().filter(|_| has_xattrs));
        let length = out.len();
        out.resize(length + 1024, 0);
        let entry = Reader::new(&out[..]).next().unwrap().unwrap();
        assert_eq!(entry.path, header.path);
        assert_eq!(entry.link, header.link);
        assert_eq!(entry.kind, header.kind);
        assert_eq!(
            (entry.mode, entry.uid, entry.gid),
            (header.mode, header.uid, header.gid)
        );
        assert_eq!((entry.size, entry.mtime), (header.size, header.mtime));
        assert_eq!(entry.device, header.device);
        assert_eq!(entry.xattrs.len(), usize::from(has_xattrs));
        length
    }

    #[test]
    fn what_fits_a_header_takes_one_block_and_what_does_not_takes_records() {
        let plain = Header::mark(b"usr/bin/true");
        assert_eq!(round_trip(plain), 512);
        let long = [&b"d/".repeat(60)[..], &b"n".repeat(100)].concat();
        assert_eq!(
            round_trip(Header {
                path: &long,
                ..plain
            }),
            512
        );
        let too_long = b"n".repeat(101);
        assert_eq!(
            round_trip(Header {
                path: &too_long,
                ..plain
            }),
            1536
        );
        assert_eq!(
            round_trip(Header {
                path: "ü".as_bytes(),
                ..plain
            }),
            1536
        );
        assert_eq!(
            round_trip(Header {
                path: b"\xff\xfe",
                ..plain
            }),
            1536
        );
        let deep_directory = [&b"d".repeat(99)[..], b"/", &b"e".repeat(56), b"/"].concat();
        let directory = Header {
            kind: Kind::Directory,
            path: &deep_directory,
            ..plain
        };
        assert_eq!(round_trip(directory), 1536);
        assert_eq!(
            round_trip(Header {
                uid: 0o7_777_777,
                ..plain
            }),
            512
        );
        assert_eq!(
            round_trip(Header {
                uid: 0o10_000_000,
                gid: 3_000_000_000,
                ..plain
            }),
            1536
        );
        assert_eq!(
            round_trip(Header {
                size: 1 << 33,
                ..plain
            }),
            1536
        );
        for (seconds, nanoseconds, length) in [
            (1_700_000_000, 0, 512),
            (1_700_000_000, 120_000_000, 1536),
            (-1, 500_000_000, 1536),
            (-86_400, 0, 1536),
            (1 << 33, 0, 1536),
        ] {
            let mtime = Time {
                seconds,
                nanoseconds,
            };
            assert_eq!(round_trip(Header { mtime, ..plain }), length, "{mtime:?}");
        }
        let link = b"t".repeat(101);
        assert_eq!(
            round_trip(Header {
                kind: Kind::Symlink,
                link: &link,
                ..plain
            }),
            1536
        );
        assert_eq!(
            round_trip(Header {
                kind: Kind::CharDevice,
                device: (4000, 1_000_000),
                ..plain
            }),
            512
        );
    }
}
