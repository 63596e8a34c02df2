//! Tars that contradict themselves or claim too much.

use crate::hostile::Expect::{self, Refused, Tree};
use crate::support::*;

/// Cases of tars that contradict themselves or claim too much.
pub(crate) fn malformed() -> Vec<(&'static str, Tar, Expect)> {
    let many_xattrs: Vec<String> = (0..2000)
        .map(|number| format!("SCHILY.xattr.user.{number}=x"))
        .collect();
    let mut bad_sum = Tar::new().file("a", "").bytes;
    bad_sum[0] ^= 1;
    vec![
        (
            "not a tar",
            Tar::new().raw(&[b'x'; 2048]),
            Refused("checksum"),
        ),
        (
            "a checksum that is wrong",
            Tar { bytes: bad_sum },
            Refused("checksum"),
        ),
        (
            "a type nobody knows",
            Tar::new().head(Head::new(b'Z', "a")),
            Refused("unknown type"),
        ),
        (
            "a volume label",
            Tar::new().head(Head::new(b'V', "a").gnu()),
            Refused("unknown type"),
        ),
        (
            "a size below zero",
            Tar::new().head(Head::new(b'0', "a").bytes(124, &[0xff; 12])),
            Refused("no number"),
        ),
        (
            "a size beyond all",
            Tar::new().head(Head::new(b'0', "a").bytes(124, &[0xbf; 12])),
            Refused("no number"),
        ),
        (
            "a size that is cut off",
            Tar::new().head(Head::new(b'0', "a").size(8 << 30)),
            Refused("cut off"),
        ),
        (
            "a binary size of exabytes",
            Tar::new().head(Head::new(b'0', "a").bytes(
                124,
                &[
                    0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                ],
            )),
            Refused("cut off"),
        ),
        (
            "records of 8 GB",
            Tar::new().head(Head::new(b'x', "x").size(8 << 30)),
            Refused("larger than 1 MiB"),
        ),
        (
            "global records of 8 GB",
            Tar::new().head(Head::new(b'g', "x").size(8 << 30)),
            Refused("larger than 1 MiB"),
        ),
        (
            "a long name of 8 GB",
            Tar::new().head(Head::new(b'L', "x").gnu().size(8 << 30)),
            Refused("larger than 1 MiB"),
        ),
        (
            "a long link of 2 MB",
            Tar::new().body(Head::new(b'K', "x").gnu(), &[b'x'; 2 << 20]),
            Refused("larger than 1 MiB"),
        ),
        (
            "records cut off",
            Tar::new()
                .head(Head::new(b'x', "x").size(3000))
                .raw(b"30 path=a\n"),
            Refused("cut off"),
        ),
        (
            "records that are none",
            Tar::new()
                .body(Head::new(b'x', "x"), b"nonsense")
                .file("a", ""),
            Refused("malformed"),
        ),
        (
            "a record longer than all",
            Tar::new()
                .body(Head::new(b'x', "x"), b"99 path=a\n")
                .file("a", ""),
            Refused("malformed"),
        ),
        (
            "a record without a key",
            Tar::new()
                .body(Head::new(b'x', "x"), b"6 =ab\n")
                .file("a", ""),
            Refused("malformed"),
        ),
        (
            "too many xattrs",
            Tar::new().pax(&many_xattrs).file("a", ""),
            Refused("too many xattrs"),
        ),
        (
            "an xattr that is too large",
            Tar::new()
                .pax(&[format!("SCHILY.xattr.user.x={}", "x".repeat(100_000))])
                .file("a", ""),
            Refused("xattr"),
        ),
        (
            "a record's size wins over the header's",
            {
                let head = Head::new(b'0', "a").size(1 << 20);
                Tar::new()
                    .pax(&["size=3"])
                    .head(head)
                    .padded(b"abc")
                    .file("b", "")
            },
            Tree(&["a f 644 0:0 3", "b f 644 0:0 0"]),
        ),
        (
            "records do not size a long name",
            {
                let records = Tar::new().pax(&["size=1024"]);
                records
                    .long(b'L', b"long")
                    .body(Head::new(b'0', "x"), &[b'y'; 1024])
                    .file("b", "")
            },
            Tree(&["long f 644 0:0 1024", "b f 644 0:0 0"]),
        ),
        (
            "content of a hard link is not passed over",
            {
                let link = Tar::new()
                    .file("a", "x")
                    .head(Head::new(b'1', "b").link("a").size(512));
                link.file("c", "")
            },
            Tree(&["a f", "b f", "c f"]),
        ),
        (
            "content of a directory is not passed over",
            {
                Tar::new()
                    .head(Head::new(b'5', "d").mode(0o700).size(1024))
                    .file("c", "")
            },
            Tree(&["d d 700 0:0", "c f"]),
        ),
        (
            "an entry behind the end",
            Tar::new().raw(&[0; 512]).file("a", ""),
            Refused("end of the archive"),
        ),
        (
            "sparse: stretches overlap",
            old_sparse(&[(0, 512), (256, 512)], 2048, 1024),
            Refused("overlap"),
        ),
        (
            "sparse: a stretch goes back",
            old_sparse(&[(1024, 512), (0, 512)], 2048, 1024),
            Refused("overlap"),
        ),
        (
            "sparse: a stretch beyond the end",
            old_sparse(&[(4096, 512)], 2048, 512),
            Refused("beyond its end"),
        ),
        (
            "sparse: less data than the map says",
            old_sparse(&[(0, 1024)], 2048, 512),
            Refused("does not fit"),
        ),
        (
            "sparse: numbers run over",
            sparse_records(
                &["GNU.sparse.map=9223372036854775807,9223372036854775807"],
                512,
            ),
            Refused("sparse"),
        ),
        (
            "sparse: an odd map",
            sparse_records(&["GNU.sparse.map=0,512,1024"], 512),
            Refused("malformed"),
        ),
        (
            "sparse: a map of words",
            sparse_records(&["GNU.sparse.map=a,b"], 512),
            Refused("number that is none"),
        ),
        (
            "sparse: lengths before offsets",
            Tar::new().pax(&["GNU.sparse.numbytes=1"]).file("a", ""),
            Refused("out of order"),
        ),
        (
            "sparse: a map without end",
            {
                let records = Tar::new().pax(&[
                    "GNU.sparse.major=1",
                    "GNU.sparse.minor=0",
                    "GNU.sparse.realsize=9",
                ]);
                records.body(Head::new(b'0', "a"), &[b'1'; 512])
            },
            Refused("malformed"),
        ),
        (
            "sparse: a map of a billion",
            {
                let records = Tar::new().pax(&[
                    "GNU.sparse.major=1",
                    "GNU.sparse.minor=0",
                    "GNU.sparse.realsize=9",
                ]);
                let map = format!("{:<512}", "1000000000\n0\n1\n");
                records.body(Head::new(b'0', "a"), map.as_bytes())
            },
            Refused("too many stretches"),
        ),
        (
            "sparse: a directory",
            {
                let records = [
                    "GNU.sparse.major=1",
                    "GNU.sparse.minor=0",
                    "GNU.sparse.realsize=9",
                ];
                Tar::new().pax(&records).dir("d")
            },
            Refused("something sparse is no file"),
        ),
        (
            "sparse: larger than any file",
            {
                let records = [
                    "GNU.sparse.size=9223372036854775807",
                    "GNU.sparse.numblocks=1",
                    "GNU.sparse.map=0,512",
                ];
                Tar::new()
                    .pax(&records)
                    .body(Head::new(b'0', "a"), &[b'x'; 512])
            },
            Refused("failed to write a"),
        ),
    ]
}

fn old_sparse(map: &[(u64, u64)], real_size: u64, stored: usize) -> Tar {
    let mut head = Head::new(b'S', "s")
        .gnu()
        .bytes(483, format!("{real_size:011o}\0").as_bytes());
    for (index, (offset, length)) in map.iter().enumerate() {
        let slot = format!("{offset:011o}\0{length:011o}\0");
        head = head.bytes(386 + 24 * index, slot.as_bytes());
    }
    Tar::new().body(head, &vec![b'x'; stored])
}

fn sparse_records(records: &[&str], stored: usize) -> Tar {
    let mut all = vec!["GNU.sparse.size=2048", "GNU.sparse.numblocks=1"];
    all.extend(records);
    Tar::new()
        .pax(&all)
        .body(Head::new(b'0', "s"), &vec![b'x'; stored])
}
