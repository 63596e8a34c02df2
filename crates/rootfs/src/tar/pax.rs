//! PAX extended headers.

use super::{Time, Xattr};

/// The records of one extended header that mean something to a layer.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    pub(crate) mtime: Option<Time>,
    /// In the order of the names, one a name.
    pub(crate) xattrs: Vec<Xattr>,
    pub(crate) sparse: SparseRecords,
}

/// What GNU tar says about a sparse file, versions 0.0, 0.1 and 1.0.
#[derive(Debug, Default)]
pub(crate) struct SparseRecords {
    pub(crate) major: Option<u64>,
    pub(crate) minor: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) real_size: Option<u64>,
    pub(crate) blocks: Option<u64>,
    /// Offsets and lengths in turn.
    pub(crate) map: Vec<u64>,
}

/// More xattrs than this are no entry's: every file system stops far below.
const MOST_XATTRS: usize = 1024;

/// Reads the body of an extended header.
pub(crate) fn parse(mut body: &[u8]) -> Result<Records, &'static str> {
    let mut records = Records::default();
    let mut archive_xattrs = Vec::new();
    while !body.is_empty() {
        let [key, value, rest] = record(body)?;
        body = rest;
        take(&mut records, &mut archive_xattrs, key, value)?;
        if records.xattrs.len().max(archive_xattrs.len()) > MOST_XATTRS {
            return Err("an entry has too many xattrs");
        }
    }
    // libarchive writes each xattr twice; star's form is the exact one.
    for xattr in archive_xattrs {
        if records.xattrs.iter().all(|known| known.name != xattr.name) {
            records.xattrs.push(xattr);
        }
    }
    records.xattrs.sort();
    Ok(records)
}

/// Splits one record, `LENGTH KEY=VALUE\n`, off; returns its key, its value and what follows.
fn record(body: &[u8]) -> Result<[&[u8]; 3], &'static str> {
    const MALFORMED: &str = "an extended header record is malformed";
    let space = body
        .iter()
        .take(20)
        .position(|byte| *byte == b' ')
        .ok_or(MALFORMED)?;
    let length = decimal(&body[..space]).ok_or(MALFORMED)?;
    let length = usize::try_from(length).map_err(|_| MALFORMED)?;
    if length <= space + 2 || length > body.len() || body[length - 1] != b'\n' {
        return Err(MALFORMED);
    }
    let (record, rest) = body.split_at(length);
    let record = &record[space + 1..length - 1];
    let equals = record
        .iter()
        .position(|byte| *byte == b'=')
        .ok_or(MALFORMED)?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    if key.is_empty() || key.contains(&0) {
        return Err(MALFORMED);
    }
    Ok([key, value, rest])
}

fn take(
    records: &mut Records,
    archive_xattrs: &mut Vec<Xattr>,
    key: &[u8],
    value: &[u8],
) -> Result<(), &'static str> {
    const NUMBER: &str = "an extended header has a number that is none";
    let name = |value: &[u8]| match value {
        // An empty value means the header's own.
        b"" => Ok(None),
        value if value.contains(&0) => Err("an extended header has a path with a NUL byte"),
        value => Ok(Some(value.to_vec())),
    };
    let number = |value: &[u8]| match value {
        b"" => Ok(None),
        value => decimal(value).map(Some).ok_or(NUMBER),
    };
    match key {
        b"path" => records.path = name(value)?,
        b"linkpath" => records.link = name(value)?,
        b"size" => records.size = number(value)?,
        b"uid" => records.uid = number(value)?,
        b"gid" => records.gid = number(value)?,
        b"mtime" if value.is_empty() => records.mtime = None,
        b"mtime" => {
            records.mtime = Some(time(value).ok_or("an extended header has a time that is none")?)
        }
        b"GNU.sparse.major" => records.sparse.major = number(value)?,
        b"GNU.sparse.minor" => records.sparse.minor = number(value)?,
        b"GNU.sparse.name" => records.sparse.name = name(value)?,
        b"GNU.sparse.size" => records.sparse.size = number(value)?,
        b"GNU.sparse.realsize" => records.sparse.real_size = number(value)?,
        b"GNU.sparse.numblocks" => records.sparse.blocks = number(value)?,
        b"GNU.sparse.map" => {
            let numbers = value.split(|byte| *byte == b',').map(decimal);
            records.sparse.map = match value {
                b"" => Vec::new(),
                _ => numbers.collect::<Option<_>>().ok_or(NUMBER)?,
            };
        }
        b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
            let is_offset = key == b"GNU.sparse.offset";
            if is_offset != records.sparse.map.len().is_multiple_of(2) {
                return Err("the offsets and lengths of a sparse file are out of order");
            }
            records.sparse.map.push(decimal(value).ok_or(NUMBER)?);
        }
        _ => {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                put_xattr(&mut records.xattrs, name.to_vec(), value.to_vec());
            } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                let value =
                    base64(value).ok_or("an extended header has an xattr that is not base64")?;
                let name = percent_decoded(name);
                if name.contains(&0) {
                    return Err("an extended header has an xattr name with a NUL byte");
                }
                put_xattr(archive_xattrs, name, value);
            }
        }
    }
    Ok(())
}

fn put_xattr(xattrs: &mut Vec<Xattr>, name: Vec<u8>, value: Vec<u8>) {
    match xattrs.iter_mut().find(|known| known.name == name) {
        Some(known) => known.value = value,
        None => xattrs.push(Xattr { name, value }),
    }
}

/// Reads a decimal number that fits the signed numbers of tar.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = std::str::from_utf8(text).ok()?.parse::<i64>().ok()?;
    u64::try_from(value).ok()
}

/// Reads seconds with any number of decimals; what is beyond nanoseconds is cut off.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        text => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(point) => (&text[..point], &text[point + 1..]),
        None => (text, &b""[..]),
    };
    let seconds = decimal(whole)?.cast_signed();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut nanoseconds = 0;
    for place in 0..9 {
        nanoseconds = nanoseconds * 10
            + fraction
                .get(place)
                .map_or(0, |digit| u32::from(digit - b'0'));
    }
    Some(match (negative, nanoseconds) {
        (false, nanoseconds) => Time {
            seconds,
            nanoseconds,
        },
        (true, 0) => Time {
            seconds: -seconds,
            nanoseconds: 0,
        },
        (true, nanoseconds) => Time {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => break,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(out)
}

fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let decoded = match (first, tail) {
            (b'%', [high, low, ..]) => char::from(*high)
                .to_digit(16)
                .zip(char::from(*low).to_digit(16))
                .map(|(high, low)| (high << 4 | low) as u8),
            _ => None,
        };
        match decoded {
            Some(byte) => {
                out.push(byte);
                rest = &tail[2..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// Appends one record to the body of an extended header.
pub(crate) fn append(body: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // The length counts its own digits.
    let rest = key.len() + value.len() + 3;
    let mut length = rest + digits(rest);
    if rest + digits(length) != length {
        length = rest + digits(length);
    }
    body.extend_from_slice(length.to_string().as_bytes());
    body.push(b' ');
    body.extend_from_slice(key);
    body.push(b'=');
    body.extend_from_slice(value);
    body.push(b'\n');
}

fn digits(number: usize) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for length in 0..1200 {
            let mut body = Vec::new();
            append(&mut body, b"path", &vec![b'x'; length]);
            let (number, _) = body.split_at(body.iter().position(|byte| *byte == b' ').unwrap());
            assert_eq!(decimal(number), Some(body.len() as u64));
            if length > 0 {
                assert_eq!(parse(&body).unwrap().path.unwrap().len(), length);
            }
        }
    }

    #[test]
    fn times_are_counted_forward_from_the_second_before() {
        let check = |text: &str, seconds, nanoseconds| {
            assert_eq!(
                time(text.as_bytes()),
                Some(Time {
                    seconds,
                    nanoseconds
                }),
                "{text}"
            );
        };
        check("0", 0, 0);
        check("1.5", 1, 500_000_000);
        check("1350244992.023960108", 1_350_244_992, 23_960_108);
        check("1.0000000019", 1, 1);
        check("-1.5", -2, 500_000_000);
        check("-1", -1, 0);
        assert_eq!(time(b"1.x"), None);
        assert_eq!(time(b"--1"), None);
        assert_eq!(time(b"99999999999999999999"), None);
    }

    #[test]
    fn malformed_records_are_refused() {
        for body in [
            &b"x"[..],
            b"5 a=b",
            b"6 a=b\n\n",
            b"4 =b\n",
            b"3 \n\n",
            b"99 path=x\n",
            b"-6 a=b\n",
            b"7 a\0=b\n",
            b"9 path=\0\n",
            b"10 uid=-1\n",
            b"25 GNU.sparse.numbytes=5\n",
            b"18446744073709551622 a=b\n",
        ] {
            assert!(parse(body).is_err(), "{:?}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn star_xattrs_win_over_those_of_libarchive() {
        let mut body = Vec::new();
        append(&mut body, b"LIBARCHIVE.xattr.user.a%3Db", b"aGVsbG8=");
        append(&mut body, b"LIBARCHIVE.xattr.user.c", b"eA");
        append(&mut body, b"SCHILY.xattr.user.c", b"with\nnew line=\0");
        let xattrs = parse(&body).unwrap().xattrs;
        let names: Vec<_> = xattrs.iter().map(|xattr| xattr.name.as_slice()).collect();
        assert_eq!(names, [&b"user.a=b"[..], b"user.c"]);
        assert_eq!(xattrs[0].value, b"hello");
        assert_eq!(xattrs[1].value, b"with\nnew line=\0");
    }
}
