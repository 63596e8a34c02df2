//! The maps of sparse files, in the four forms GNU tar has had.

use super::header::{self, Block, Field};
use super::pax::{SparseRecords, decimal};

/// The most stretches a sparse file may have; their map is held in memory.
pub(crate) const MOST_STRETCHES: usize = 1 << 16;

/// A stretch of a sparse file that holds data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

const TOO_MANY: &str = "a sparse file has too many stretches";
const MALFORMED: &str = "the map of a sparse file is malformed";

/// Reads the stretches of an old GNU header or of one of the blocks after it, up to the first empty slot.
pub(crate) fn append_old_gnu(
    map: &mut Vec<Stretch>,
    block: &Block,
    table: Field,
) -> Result<(), &'static str> {
    for slot in header::bytes(block, table).chunks_exact(24) {
        if slot[0] == 0 {
            break;
        }
        let (offset, length) = slot.split_at(12);
        let number = |field| header::number(field).and_then(|number| u64::try_from(number).ok());
        push(
            map,
            number(offset).ok_or(MALFORMED)?,
            number(length).ok_or(MALFORMED)?,
        )?;
    }
    Ok(())
}

/// Makes the map of versions 0.0 and 0.1, which stands in the records.
pub(crate) fn from_records(records: &SparseRecords) -> Result<Vec<Stretch>, &'static str> {
    let mut map = Vec::new();
    if !records.map.len().is_multiple_of(2) || records.blocks != Some(records.map.len() as u64 / 2)
    {
        return Err(MALFORMED);
    }
    for pair in records.map.chunks_exact(2) {
        push(&mut map, pair[0], pair[1])?;
    }
    Ok(map)
}

/// Reads the map of version 1.0, which stands before the data: a count, then offsets and lengths, a line each.
#[derive(Debug, Default)]
pub(crate) struct LeadingMap {
    count: Option<usize>,
    offset: Option<u64>,
    line: Vec<u8>,
    map: Vec<Stretch>,
}

impl LeadingMap {
    /// Takes the next block; returns whether the map is complete.
    pub(crate) fn take(&mut self, block: &Block) -> Result<bool, &'static str> {
        for byte in block {
            if *byte != b'\n' {
                self.line.push(*byte);
                if self.line.len() > 20 {
                    return Err(MALFORMED);
                }
                continue;
            }
            let number = decimal(&self.line).ok_or(MALFORMED)?;
            self.line.clear();
            match (self.count, self.offset.take()) {
                (None, _) => {
                    let count = usize::try_from(number).unwrap_or(usize::MAX);
                    if count > MOST_STRETCHES {
                        return Err(TOO_MANY);
                    }
                    self.count = Some(count);
                }
                (Some(_), None) => self.offset = Some(number),
                (Some(_), Some(offset)) => push(&mut self.map, offset, number)?,
            }
            if self.count == Some(self.map.len()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(crate) fn finish(self) -> Vec<Stretch> {
        self.map
    }
}

fn push(map: &mut Vec<Stretch>, offset: u64, length: u64) -> Result<(), &'static str> {
    if map.len() == MOST_STRETCHES {
        return Err(TOO_MANY);
    }
    map.push(Stretch { offset, length });
    Ok(())
}

/// Checks that the stretches follow each other within `size` and make up `stored` bytes; drops empty ones.
pub(crate) fn check(
    mut map: Vec<Stretch>,
    size: u64,
    stored: u64,
) -> Result<Vec<Stretch>, &'static str> {
    let (mut end, mut sum) = (0, 0_u64);
    for stretch in &map {
        if stretch.offset < end {
            return Err("the stretches of a sparse file overlap");
        }
        end = stretch
            .offset
            .checked_add(stretch.length)
            .ok_or(MALFORMED)?;
        sum += stretch.length;
    }
    if end > size || size > i64::MAX.cast_unsigned() {
        return Err("a stretch of a sparse file is beyond its end");
    }
    if sum != stored {
        return Err("the map of a sparse file does not fit its data");
    }
    map.retain(|stretch| stretch.length > 0);
    Ok(map)
}
