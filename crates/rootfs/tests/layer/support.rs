//! Tars made byte by byte, and trees told line by line.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rootfs::apply::{Applied, ApplyOptions, apply_layer};
use rootfs::{Error, Form, LayerDir, OverlayXattrs};

pub(crate) const OVERLAY: Form = Form::Overlay(OverlayXattrs::Trusted);

/// Whether the tests may chown and make devices; says so when not.
pub(crate) fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("skipped: needs root");
    }
    is_root
}

/// One header, all of it free to be wrong.
#[derive(Clone)]
pub(crate) struct Head {
    block: [u8; 512],
}

impl Head {
    pub(crate) fn new(flag: u8, name: impl AsRef<[u8]>) -> Head {
        let mut head = Head { block: [0; 512] }
            .bytes(257, b"ustar\x0000")
            .mode(0o644)
            .size(0)
            .bytes(108, b"0000000\0")
            .bytes(116, b"0000000\0")
            .bytes(136, b"00000001750\0");
        head.block[156] = flag;
        head.bytes(0, name.as_ref())
    }

    pub(crate) fn bytes(mut self, offset: usize, value: &[u8]) -> Head {
        self.block[offset..offset + value.len()].copy_from_slice(value);
        self
    }

    pub(crate) fn gnu(self) -> Head {
        self.bytes(257, b"ustar  \0")
    }

    pub(crate) fn mode(self, mode: u32) -> Head {
        self.bytes(100, format!("{mode:07o}\0").as_bytes())
    }

    pub(crate) fn owner(self, uid: u32, gid: u32) -> Head {
        self.bytes(108, format!("{uid:07o}\0").as_bytes())
            .bytes(116, format!("{gid:07o}\0").as_bytes())
    }

    pub(crate) fn size(self, size: u64) -> Head {
        self.bytes(124, format!("{size:011o}\0").as_bytes())
    }

    pub(crate) fn link(self, target: impl AsRef<[u8]>) -> Head {
        self.bytes(157, target.as_ref())
    }

    pub(crate) fn device(self, major: u32, minor: u32) -> Head {
        self.bytes(329, format!("{major:07o}\0").as_bytes())
            .bytes(337, format!("{minor:07o}\0").as_bytes())
    }

    pub(crate) fn block(mut self) -> [u8; 512] {
        self.block[148..156].fill(b' ');
        let sum: u32 = self.block.iter().map(|byte| u32::from(*byte)).sum();
        self.block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.block
    }
}

/// A tar put together from headers and bytes.
#[derive(Clone, Default)]
pub(crate) struct Tar {
    pub(crate) bytes: Vec<u8>,
}

impl Tar {
    pub(crate) fn new() -> Tar {
        Tar::default()
    }

    pub(crate) fn head(mut self, head: Head) -> Tar {
        self.bytes.extend_from_slice(&head.block());
        self
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Tar {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends content and fills it up to a block.
    pub(crate) fn padded(mut self, bytes: &[u8]) -> Tar {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn body(self, head: Head, content: &[u8]) -> Tar {
        self.head(head.size(content.len() as u64)).padded(content)
    }

    pub(crate) fn file(self, name: impl AsRef<[u8]>, content: &str) -> Tar {
        self.body(Head::new(b'0', name), content.as_bytes())
    }

    pub(crate) fn dir(self, name: impl AsRef<[u8]>) -> Tar {
        self.head(Head::new(b'5', name).mode(0o755))
    }

    pub(crate) fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Tar {
        self.head(Head::new(b'2', name).mode(0o777).link(target))
    }

    pub(crate) fn link(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Tar {
        self.head(Head::new(b'1', name).link(target))
    }

    /// Appends an extended header of the records given as `key=value`.
    pub(crate) fn pax<R: AsRef<[u8]>>(self, records: &[R]) -> Tar {
        let mut body = Vec::new();
        for record in records {
            let record = record.as_ref();
            let rest = record.len() + 2;
            let length = (1..).find(|digits| (rest + digits).to_string().len() == *digits);
            let length = rest + length.unwrap();
            body.extend_from_slice(format!("{length} ").as_bytes());
            body.extend_from_slice(record);
            body.push(b'\n');
        }
        self.body(Head::new(b'x', "PaxHeaders.0/x"), &body)
    }

    /// Appends GNU tar's form of a long name (`L`) or link (`K`).
    pub(crate) fn long(self, flag: u8, name: &[u8]) -> Tar {
        self.body(
            Head::new(flag, "././@LongLink").gnu(),
            &[name, b"\0"].concat(),
        )
    }

    pub(crate) fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).bytes
    }
}

/// A place with a directory to unpack into, and things beside it that must stay as they are.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("outside/inner")).unwrap();
        fs::write(dir.path().join("outside/victim"), "untouched").unwrap();
        fs::create_dir(dir.path().join("layer")).unwrap();
        Place { dir }
    }

    pub(crate) fn layer(&self) -> LayerDir {
        LayerDir::open(self.dir.path().join("layer")).unwrap()
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn apply(&self, blob: impl Read + Send) -> Result<Applied, Error> {
        self.apply_with(blob, &ApplyOptions::new(OVERLAY))
    }

    pub(crate) fn apply_with(
        &self,
        blob: impl Read + Send,
        options: &ApplyOptions,
    ) -> Result<Applied, Error> {
        apply_layer(blob, &self.layer(), options)
    }

    /// Tells the unpacked tree.
    pub(crate) fn tree(&self) -> String {
        tree(&self.dir.path().join("layer"))
    }

    #[track_caller]
    pub(crate) fn assert_outside_is_untouched(&self, case: &str) {
        let outside = tree(&self.dir.path().join("outside"));
        assert!(outside.contains("inner d 755"), "{case}: {outside}");
        assert!(outside.contains("victim f 644 0:0 9"), "{case}: {outside}");
        assert_eq!(outside.lines().count(), 3, "{case}: {outside}");
        let names = fs::read_dir(self.dir.path()).unwrap().count();
        assert_eq!(names, 2, "{case}: something new lies beside the layer");
        let content = fs::read(self.dir.path().join("outside/victim")).unwrap();
        assert_eq!(content, b"untouched", "{case}");
    }
}

/// Tells a tree: a line for each path with type, mode, owner and what else there is, xattrs last.
pub(crate) fn tree(root: &Path) -> String {
    let mut lines = String::new();
    tell(root, root, &mut lines);
    lines
}

fn tell(root: &Path, path: &Path, lines: &mut String) {
    let meta = fs::symlink_metadata(path).unwrap();
    let name = path
        .strip_prefix(root)
        .unwrap()
        .as_os_str()
        .as_bytes()
        .escape_ascii();
    let kind = meta.file_type();
    let owner = format!("{:o} {}:{}", meta.mode() & 0o7777, meta.uid(), meta.gid());
    let what = if kind.is_dir() {
        format!("d {owner}")
    } else if kind.is_symlink() {
        let target = fs::read_link(path).unwrap();
        format!(
            "l {}:{} {}",
            meta.uid(),
            meta.gid(),
            target.as_os_str().as_bytes().escape_ascii()
        )
    } else if kind.is_file() {
        format!("f {owner} {}", meta.size())
    } else if kind.is_char_device() {
        format!("c {owner} {}", device(meta.rdev()))
    } else if kind.is_block_device() {
        format!("b {owner} {}", device(meta.rdev()))
    } else if kind.is_fifo() {
        format!("p {owner}")
    } else {
        "socket".to_owned()
    };
    let xattrs = if kind.is_symlink() {
        String::new()
    } else {
        xattrs(path)
    };
    lines.push_str(&format!("{name} {what}{xattrs}\n"));
    if kind.is_dir() {
        let mut children: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        children.sort();
        for child in children {
            tell(root, &child, lines);
        }
    }
}

fn device(number: u64) -> String {
    format!(
        "{}:{}",
        rustix::fs::major(number),
        rustix::fs::minor(number)
    )
}

fn xattrs(path: &Path) -> String {
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut names: Vec<&[u8]> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .collect();
    names.sort();
    let mut told = String::new();
    for name in names {
        let mut value = vec![0; 4096];
        let length =
            rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap_or(0);
        told.push_str(&format!(
            " {}={}",
            name.escape_ascii(),
            value[..length].escape_ascii()
        ));
    }
    told
}

/// Modification time in seconds and nanoseconds.
pub(crate) fn mtime(path: &Path) -> (i64, i64) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.mtime(), meta.mtime_nsec())
}

/// The whole chain of an error in one line.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Numbers from a seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}
