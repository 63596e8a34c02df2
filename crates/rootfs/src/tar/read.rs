//! Reads layer tars as the reference does (Go's `archive/tar`), and what GNU tar and libarchive write beyond that.

use std::io::{BufRead, ErrorKind};

use super::header::{self, Block, Dialect};
use super::pax::{self, Records};
use super::sparse::{self, LeadingMap, Stretch};
use super::{BLOCK, Kind, Time, Xattr, padding};
use crate::{Error, Result};

/// The largest body of an extended header or a long name, as in the reference.
const LARGEST_SPECIAL: u64 = 1 << 20;

/// What the headers of one entry say. Paths are as they stand in the tar.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    /// The twelve permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) device: (u32, u32),
    /// The size the file will have.
    pub(crate) size: u64,
    pub(crate) xattrs: Vec<Xattr>,
    /// The stretches that hold data, when the file has holes.
    pub(crate) sparse: Option<Vec<Stretch>>,
}

/// Reads entry after entry; nothing but the current headers is held in memory.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    input: R,
    /// Bytes read so far.
    offset: u64,
    /// Data of the current entry still to come.
    remaining: u64,
    /// Filling after the data.
    padding: u64,
}

impl<R: BufRead> Reader<R> {
    pub(crate) fn new(input: R) -> Reader<R> {
        Reader {
            input,
            offset: 0,
            remaining: 0,
            padding: 0,
        }
    }

    /// Returns the input, to read what follows the archive.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }

    /// Returns the next piece of the current entry's data; empty at its end.
    pub(crate) fn data(&mut self) -> Result<&[u8]> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let buffer = self.input.fill_buf().map_err(read_error)?;
        if buffer.is_empty() {
            return Err(Error::TruncatedTar);
        }
        let length = buffer
            .len()
            .min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        Ok(&buffer[..length])
    }

    /// Goes on by `length` bytes of the piece that [`data`](Self::data) returned.
    pub(crate) fn consume(&mut self, length: usize) {
        self.input.consume(length);
        self.offset += length as u64;
        self.remaining -= length as u64;
    }

    /// Returns the next entry; what is left of the current one's data is passed over.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        let mut records = Records::default();
        let mut long_path = None;
        let mut long_link = None;
        loop {
            self.pass_over()?;
            let Some((block, dialect)) = self.header()? else {
                return Ok(None);
            };
            let size = self.field(&block, header::SIZE)?;
            match block[header::TYPE] {
                b'x' => {
                    let body = self.special(size)?;
                    records = pax::parse(&body).map_err(|reason| self.malformed(reason))?;
                }
                // What holds for all files that follow: git's comment, in practice. The reference ignores it.
                b'g' => {
                    self.special(size)?;
                    records = Records::default();
                    (long_path, long_link) = (None, None);
                }
                b'L' => long_path = Some(header::until_nul(&self.special(size)?).to_vec()),
                b'K' => long_link = Some(header::until_nul(&self.special(size)?).to_vec()),
                _ => {
                    let mut entry = self.entry(&block, dialect, size, &mut records)?;
                    if let Some(path) = long_path.filter(|path| !path.is_empty()) {
                        entry.path = path;
                    }
                    if let Some(link) = long_link.filter(|link| !link.is_empty()) {
                        entry.link = link;
                    }
                    if block[header::TYPE] == 0 && entry.path.ends_with(b"/") {
                        entry.kind = Kind::Directory;
                        self.set_data(0);
                    }
                    self.sparse(&mut entry, &block, dialect, &records)?;
                    return Ok(Some(entry));
                }
            }
        }
    }

    fn entry(
        &mut self,
        block: &Block,
        dialect: Dialect,
        size: u64,
        records: &mut Records,
    ) -> Result<Entry> {
        let kind = match block[header::TYPE] {
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => return Err(self.malformed("an entry is of an unknown type")),
        };
        let size = records.size.unwrap_or(size);
        self.set_data(if kind == Kind::File { size } else { 0 });
        let device = match kind {
            Kind::CharDevice | Kind::BlockDevice => {
                let number = |field| self.field(block, field).map(u32::try_from);
                match (number(header::DEVICE_MAJOR)?, number(header::DEVICE_MINOR)?) {
                    (Ok(major), Ok(minor)) => (major, minor),
                    _ => return Err(self.malformed("a device number is out of range")),
                }
            }
            _ => (0, 0),
        };
        let id = |record: Option<u64>, field| {
            let number = match record {
                Some(number) => number,
                None => self.field(block, field)?,
            };
            // The last id stands for "leave it" in chown.
            match u32::try_from(number) {
                Ok(id) if id != u32::MAX => Ok(id),
                _ => Err(self.malformed("an owner is out of range")),
            }
        };
        let mtime = match records.mtime {
            Some(time) => time,
            None => {
                let seconds = header::number(header::bytes(block, header::MTIME));
                let seconds =
                    seconds.ok_or_else(|| self.malformed("a header field is no number"))?;
                Time {
                    seconds,
                    nanoseconds: 0,
                }
            }
        };
        Ok(Entry {
            path: records.path.take().unwrap_or_else(|| path(block, dialect)),
            link: records
                .link
                .take()
                .unwrap_or_else(|| header::text(block, header::LINK).to_vec()),
            kind,
            mode: (self.field(block, header::MODE)? & 0o7777) as u32,
            uid: id(records.uid, header::UID)?,
            gid: id(records.gid, header::GID)?,
            mtime,
            device,
            size: if kind == Kind::File { size } else { 0 },
            xattrs: std::mem::take(&mut records.xattrs),
            sparse: None,
        })
    }

    /// Reads the map of a sparse file, and puts the file's name and size right.
    fn sparse(
        &mut self,
        entry: &mut Entry,
        block: &Block,
        dialect: Dialect,
        records: &Records,
    ) -> Result<()> {
        let versions = (records.sparse.major, records.sparse.minor);
        let (map, size) = if block[header::TYPE] == b'S' {
            if dialect != Dialect::Gnu {
                return Err(self.malformed("a sparse file has no GNU header"));
            }
            (
                self.old_gnu_map(block)?,
                Some(self.field(block, header::GNU_REAL_SIZE)?),
            )
        } else {
            let is_leading = match versions {
                (Some(1), Some(0)) => true,
                (Some(0), Some(0 | 1)) => false,
                (None, None) if !records.sparse.map.is_empty() => false,
                _ => return Ok(()),
            };
            if entry.kind != Kind::File {
                return Err(self.malformed("something sparse is no file"));
            }
            if let Some(name) = &records.sparse.name {
                entry.path.clone_from(name);
            }
            let map = if is_leading {
                self.leading_map()?
            } else {
                sparse::from_records(&records.sparse).map_err(|reason| self.malformed(reason))?
            };
            (map, records.sparse.size.or(records.sparse.real_size))
        };
        let size = size.unwrap_or(entry.size);
        let map =
            sparse::check(map, size, self.remaining).map_err(|reason| self.malformed(reason))?;
        entry.size = size;
        entry.sparse = Some(map);
        Ok(())
    }

    /// The map goes on in blocks between the header and the data, which the size does not count.
    fn old_gnu_map(&mut self, block: &Block) -> Result<Vec<Stretch>> {
        let mut map = Vec::new();
        sparse::append_old_gnu(&mut map, block, header::GNU_SPARSE)
            .map_err(|reason| self.malformed(reason))?;
        let mut is_extended = block[header::GNU_IS_EXTENDED] != 0;
        while is_extended {
            let mut extension = [0; BLOCK];
            self.exact(&mut extension)?;
            let table = header::Field(0, 21 * 24);
            sparse::append_old_gnu(&mut map, &extension, table)
                .map_err(|reason| self.malformed(reason))?;
            if map.is_empty() {
                return Err(self.malformed("the map of a sparse file is malformed"));
            }
            is_extended = extension[504] != 0;
        }
        Ok(map)
    }

    fn leading_map(&mut self) -> Result<Vec<Stretch>> {
        let mut map = LeadingMap::default();
        loop {
            if self.remaining < BLOCK as u64 {
                return Err(self.malformed("the map of a sparse file is malformed"));
            }
            let mut block = [0; BLOCK];
            self.exact(&mut block)?;
            self.remaining -= BLOCK as u64;
            if map.take(&block).map_err(|reason| self.malformed(reason))? {
                return Ok(map.finish());
            }
        }
    }

    fn set_data(&mut self, size: u64) {
        self.remaining = size;
        self.padding = padding(size);
    }

    /// Reads the next header block; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<(Block, Dialect)>> {
        let mut block = [0; BLOCK];
        if !self.block(&mut block)? {
            return Ok(None);
        }
        if block == [0; BLOCK] {
            if !self.block(&mut block)? || block == [0; BLOCK] {
                return Ok(None);
            }
            return Err(self.malformed("an entry follows the end of the archive"));
        }
        match header::dialect(&block) {
            Some(dialect) => Ok(Some((block, dialect))),
            None => Err(self.malformed("the checksum of a header is wrong")),
        }
    }

    /// Reads the body of a header that belongs to the next entry.
    fn special(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > LARGEST_SPECIAL {
            return Err(self.malformed("an extended header is larger than 1 MiB"));
        }
        // Not reserved ahead: the size is only a claim.
        let mut body = Vec::new();
        self.set_data(size);
        loop {
            let piece = self.data()?;
            if piece.is_empty() {
                return Ok(body);
            }
            body.extend_from_slice(piece);
            let length = piece.len();
            self.consume(length);
        }
    }

    /// Passes over the rest of the current entry.
    fn pass_over(&mut self) -> Result<()> {
        loop {
            let length = self.data()?.len();
            if length == 0 {
                break;
            }
            self.consume(length);
        }
        // The filling of the last entry may be missing at the end.
        while self.padding > 0 {
            let length = self.input.fill_buf().map_err(read_error)?.len() as u64;
            if length == 0 {
                break;
            }
            let length = length.min(self.padding);
            self.input.consume(length as usize);
            self.offset += length;
            self.padding -= length;
        }
        Ok(())
    }

    /// Fills `block`; returns false when the input ends before it.
    fn block(&mut self, block: &mut Block) -> Result<bool> {
        let mut filled = 0;
        while filled < BLOCK {
            let buffer = self.input.fill_buf().map_err(read_error)?;
            if buffer.is_empty() {
                return if filled == 0 {
                    Ok(false)
                } else {
                    Err(Error::TruncatedTar)
                };
            }
            let length = buffer.len().min(BLOCK - filled);
            block[filled..filled + length].copy_from_slice(&buffer[..length]);
            self.input.consume(length);
            self.offset += length as u64;
            filled += length;
        }
        Ok(true)
    }

    fn exact(&mut self, block: &mut Block) -> Result<()> {
        if self.block(block)? {
            Ok(())
        } else {
            Err(Error::TruncatedTar)
        }
    }

    /// Reads a number that cannot be negative.
    fn field(&self, block: &Block, field: header::Field) -> Result<u64> {
        header::number(header::bytes(block, field))
            .and_then(|number| u64::try_from(number).ok())
            .ok_or_else(|| self.malformed("a header field is no number"))
    }

    fn malformed(&self, reason: &'static str) -> Error {
        Error::MalformedTar {
            offset: self.offset,
            reason,
        }
    }
}

/// Joins the prefix, where the dialect has one, and the name.
fn path(block: &Block, dialect: Dialect) -> Vec<u8> {
    let prefix = match dialect {
        Dialect::Ustar => header::text(block, header::PREFIX),
        Dialect::Star => header::text(block, header::STAR_PREFIX),
        Dialect::V7 | Dialect::Gnu => b"",
    };
    let name = header::text(block, header::NAME);
    if prefix.is_empty() {
        name.to_vec()
    } else {
        [prefix, b"/", name].concat()
    }
}

/// Takes an error of the pipeline out of the I/O error that carried it here.
pub(crate) fn read_error(error: std::io::Error) -> Error {
    if error.kind() == ErrorKind::UnexpectedEof && error.get_ref().is_none() {
        return Error::TruncatedTar;
    }
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(source) => Error::ReadLayer { source },
    }
}
