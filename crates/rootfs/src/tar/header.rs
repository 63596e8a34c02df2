//! The 512 bytes of a header block.

use super::BLOCK;

/// A field of the header: offset and length.
#[derive(Clone, Copy)]
pub(crate) struct Field(pub(crate) usize, pub(crate) usize);

pub(crate) const NAME: Field = Field(0, 100);
pub(crate) const MODE: Field = Field(100, 8);
pub(crate) const UID: Field = Field(108, 8);
pub(crate) const GID: Field = Field(116, 8);
pub(crate) const SIZE: Field = Field(124, 12);
pub(crate) const MTIME: Field = Field(136, 12);
pub(crate) const CHECKSUM: Field = Field(148, 8);
pub(crate) const TYPE: usize = 156;
pub(crate) const LINK: Field = Field(157, 100);
pub(crate) const MAGIC: Field = Field(257, 8);
pub(crate) const DEVICE_MAJOR: Field = Field(329, 8);
pub(crate) const DEVICE_MINOR: Field = Field(337, 8);
pub(crate) const PREFIX: Field = Field(345, 155);
/// The shorter prefix of star's headers, which keep times behind it.
pub(crate) const STAR_PREFIX: Field = Field(345, 131);
const STAR_TRAILER: Field = Field(508, 4);
pub(crate) const GNU_SPARSE: Field = Field(386, 96);
pub(crate) const GNU_IS_EXTENDED: usize = 482;
pub(crate) const GNU_REAL_SIZE: Field = Field(483, 12);

pub(crate) type Block = [u8; BLOCK];

/// The dialect of a header, which decides about the fields behind the link name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// Returns the bytes of a field.
pub(crate) fn bytes(block: &Block, field: Field) -> &[u8] {
    &block[field.0..field.0 + field.1]
}

/// Returns the bytes of a field up to its first NUL.
pub(crate) fn text(block: &Block, field: Field) -> &[u8] {
    until_nul(bytes(block, field))
}

pub(crate) fn until_nul(bytes: &[u8]) -> &[u8] {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    &bytes[..end]
}

/// Returns the dialect; `None` when the checksum is wrong.
pub(crate) fn dialect(block: &Block) -> Option<Dialect> {
    let stored = octal(bytes(block, CHECKSUM))?;
    let (unsigned, signed) = checksums(block);
    if stored != unsigned && stored != signed {
        return None;
    }
    Some(match bytes(block, MAGIC) {
        b"ustar  \0" => Dialect::Gnu,
        [b'u', b's', b't', b'a', b'r', 0, ..] => match bytes(block, STAR_TRAILER) {
            b"tar\0" => Dialect::Star,
            _ => Dialect::Ustar,
        },
        _ => Dialect::V7,
    })
}

/// Returns the sums of the block's bytes, taken as unsigned and, as some old writers did, as signed.
pub(crate) fn checksums(block: &Block) -> (i64, i64) {
    let (mut unsigned, mut signed) = (0, 0);
    for (index, byte) in block.iter().enumerate() {
        let byte = match index {
            148..156 => b' ',
            _ => *byte,
        };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    (unsigned, signed)
}

/// Reads an octal number between spaces and NULs; an empty field is zero.
pub(crate) fn octal(field: &[u8]) -> Option<i64> {
    let is_blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let Some(start) = field.iter().position(|byte| !is_blank(byte)) else {
        return Some(0);
    };
    let end = field
        .iter()
        .rposition(|byte| !is_blank(byte))
        .map_or(0, |last| last + 1);
    let mut value: i64 = 0;
    for byte in until_nul(&field[start..end]) {
        let digit = match byte {
            b'0'..=b'7' => i64::from(byte - b'0'),
            _ => return None,
        };
        value = value.checked_mul(8)?.checked_add(digit)?;
    }
    Some(value)
}

/// Reads an octal number, or a binary one when the first bit is set.
pub(crate) fn number(field: &[u8]) -> Option<i64> {
    let [first, rest @ ..] = field else {
        return Some(0);
    };
    if first & 0x80 == 0 {
        return octal(field);
    }
    // Two's complement, big endian, in what the marking bit leaves.
    let negative = first & 0x40 != 0;
    let mut value = i128::from(first & 0x3f) - if negative { 0x40 } else { 0 };
    for byte in rest {
        value = value.checked_mul(256)?.checked_add(i128::from(*byte))?;
    }
    i64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_octal_and_in_binary() {
        let check =
            |field: &[u8], expect: Option<i64>| assert_eq!(number(field), expect, "{field:?}");
        check(b"", Some(0));
        check(b"\0\0\0", Some(0));
        check(b"0000644\0", Some(0o644));
        check(b"  644 \0", Some(0o644));
        check(b"0000648\0", None);
        check(b"77777777777\0", Some(0o77_777_777_777));
        check(b"\x80\0\0\0\0\0\0\x07\0\0\0\0", Some(7 << 32));
        check(
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe",
            Some(-2),
        );
        check(b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None);
        check(
            b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            None,
        );
    }
}
