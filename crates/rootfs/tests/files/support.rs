//! Trees as text: made from a description, and described again.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rootfs::{Overlay, OverlayXattrs, Tree};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags};

/// Makes what the lines say, in their order:
///
/// ```text
/// PATH dir [MODE [UID:GID]]
/// PATH file CONTENT [MODE [UID:GID]]
/// PATH -> TARGET
/// PATH = OTHER        (hard link)
/// PATH fifo
/// PATH dev MAJOR:MINOR
/// PATH xattr NAME VALUE
/// PATH time SECONDS
/// PATH gone
/// ```
pub(crate) fn build(root: &Path, lines: &str) {
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split(' ').collect();
        let path = root.join(words[0]);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).unwrap();
        }
        let set = |mode: Option<&&str>, owner: Option<&&str>| {
            if let Some(owner) = owner {
                let (uid, gid) = owner.split_once(':').unwrap();
                std::os::unix::fs::chown(&path, uid.parse().ok(), gid.parse().ok()).unwrap();
            }
            if let Some(mode) = mode {
                let mode = u32::from_str_radix(mode, 8).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            }
        };
        match words[1] {
            "dir" => {
                fs::create_dir_all(&path).unwrap();
                set(words.get(2).or(Some(&"755")), words.get(3));
            }
            "file" => {
                fs::write(&path, words[2]).unwrap();
                set(words.get(3).or(Some(&"644")), words.get(4));
            }
            "->" => symlink(words[2], &path).unwrap(),
            "=" => fs::hard_link(root.join(words[2]), &path).unwrap(),
            "fifo" => rustix::fs::mknodat(CWD, &path, rustix::fs::FileType::Fifo, 0o644.into(), 0)
                .unwrap(),
            "dev" => {
                let (major, minor) = words[2].split_once(':').unwrap();
                let device = rustix::fs::makedev(major.parse().unwrap(), minor.parse().unwrap());
                let kind = rustix::fs::FileType::CharacterDevice;
                rustix::fs::mknodat(CWD, &path, kind, 0o600.into(), device).unwrap();
            }
            "xattr" => {
                rustix::fs::lsetxattr(&path, words[2], words[3].as_bytes(), XattrFlags::empty())
                    .unwrap();
            }
            "time" => set_time(&path, words[2].parse().unwrap()),
            "gone" => fs::remove_dir_all(&path)
                .or_else(|_| fs::remove_file(&path))
                .unwrap(),
            other => panic!("unknown word {other}"),
        }
    }
}

pub(crate) fn set_time(path: &Path, seconds: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Describes everything below a directory, one line an entry, sorted.
pub(crate) fn describe(root: &Path) -> String {
    let mut entries: BTreeMap<Vec<u8>, PathBuf> = BTreeMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                dirs.push(path.clone());
            }
            entries.insert(
                path.strip_prefix(root)
                    .unwrap()
                    .as_os_str()
                    .as_bytes()
                    .to_vec(),
                path,
            );
        }
    }
    let mut first_of: BTreeMap<u64, String> = BTreeMap::new();
    let mut text = String::new();
    for (name, path) in entries {
        let meta = path.symlink_metadata().unwrap();
        let name = String::from_utf8_lossy(&name).into_owned();
        let kind = meta.file_type();
        let owner = match (meta.uid(), meta.gid()) {
            (0, 0) => String::new(),
            (uid, gid) => format!(" {uid}:{gid}"),
        };
        let what = if kind.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else if kind.is_dir() {
            format!("dir {:o}", meta.mode() & 0o7777)
        } else if kind.is_file() {
            match first_of.get(&meta.ino()) {
                Some(first) if meta.nlink() > 1 => format!("= {first}"),
                _ => {
                    first_of.insert(meta.ino(), name.clone());
                    let data = fs::read(&path).unwrap();
                    let data =
                        String::from_utf8_lossy(&data[..data.len().min(40)]).replace('\n', "\\n");
                    format!("file {data} {:o}", meta.mode() & 0o7777)
                }
            }
        } else if kind.is_fifo() {
            format!("fifo {:o}", meta.mode() & 0o7777)
        } else if kind.is_char_device() || kind.is_block_device() {
            let (major, minor) = (
                rustix::fs::major(meta.rdev()),
                rustix::fs::minor(meta.rdev()),
            );
            format!("dev {major}:{minor} {:o}", meta.mode() & 0o7777)
        } else {
            "other".to_owned()
        };
        text.push_str(&format!("{name} {what}{owner}{}\n", xattrs(&path)));
    }
    text
}

fn xattrs(path: &Path) -> String {
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut text = String::new();
    for name in names[..length]
        .split(|b| *b == 0)
        .filter(|name| name.starts_with(b"user."))
    {
        let mut value = vec![0; 256];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
        let value = String::from_utf8_lossy(&value[..length]).into_owned();
        let name = String::from_utf8_lossy(name).into_owned();
        text.push_str(&format!(" {name}={value}"));
    }
    text
}

/// Strips the indentation of an expectation.
pub(crate) fn lines(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| format!("{line}\n"))
        .collect()
}

/// A path that leads to an open directory.
pub(crate) fn path_of(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/", fd.as_raw_fd()))
}

/// A stack of layer directories with an upper and a work directory, all in one temporary directory.
pub(crate) struct Stack {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) lowers: Vec<PathBuf>,
}

impl Stack {
    pub(crate) fn new(layers: &[&str]) -> Stack {
        let dir = tempfile::tempdir().unwrap();
        let mut lowers = Vec::new();
        for (index, layer) in layers.iter().enumerate() {
            let path = dir.path().join(format!("layer{index}"));
            fs::create_dir(&path).unwrap();
            build(&path, layer);
            lowers.push(path);
        }
        for name in ["upper", "work"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Stack { dir, lowers }
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.dir.path().join("upper")
    }

    pub(crate) fn overlay(&self) -> Overlay {
        let mut overlay = Overlay::open(&self.lowers, OverlayXattrs::Trusted)
            .unwrap()
            .with_upper(&self.upper(), &self.dir.path().join("work"))
            .unwrap();
        // Unmounting would sync the whole file system otherwise.
        overlay.volatile = true;
        overlay
    }

    /// The layers without the upper directory, merged in user space.
    pub(crate) fn view(&self) -> Tree {
        Tree::open_layers(&self.lowers, OverlayXattrs::Trusted).unwrap()
    }

    /// The layers with the upper directory taking the changes, merged in user space.
    pub(crate) fn writable(&self) -> Tree {
        let overlay = self.overlay();
        Tree::writable(
            overlay.lowers,
            overlay.upper.unwrap().upper,
            OverlayXattrs::Trusted,
        )
    }

    /// What the kernel shows of the whole stack.
    pub(crate) fn describe(&self) -> String {
        let mut lowers = self.lowers.clone();
        lowers.push(self.upper());
        let overlay = Overlay::open(&lowers, OverlayXattrs::Trusted).unwrap();
        describe(&path_of(&overlay.mount_detached().unwrap()))
    }
}

/// Whether this process may mount overlays; prints why a test is skipped when not.
pub(crate) fn can_mount() -> bool {
    let dir = tempfile::tempdir().unwrap();
    match rootfs::overlay::supported(dir.path(), OverlayXattrs::Trusted) {
        Ok(()) => true,
        Err(error) => {
            println!("skipped: {error}");
            false
        }
    }
}

/// Makes a tree of its own.
pub(crate) fn source(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), text);
    dir
}

/// Runs an operation on each form of a destination that starts out as `layers`: a plain directory, a mounted overlay, and
/// layers with an upper directory that are merged in user space. All three must come out the same.
pub(crate) fn on_each_form(
    layers: &[&str],
    operation: impl Fn(&Tree) -> rootfs::Result<()>,
) -> Result<String, String> {
    let mut results = Vec::new();

    let plain = tempfile::tempdir().unwrap();
    layers.iter().for_each(|layer| build(plain.path(), layer));
    let result = operation(&Tree::open(plain.path()).unwrap());
    results.push(("plain", result.map(|()| describe(plain.path()))));

    if can_mount() {
        let stack = Stack::new(layers);
        let overlay = stack.overlay();
        let mounted = overlay.mount_detached().unwrap();
        let path = path_of(&mounted);
        let result = operation(&Tree::plain(mounted.try_clone().unwrap()));
        results.push(("mounted", result.map(|()| describe(&path))));

        let stack = Stack::new(layers);
        let result = operation(&stack.writable());
        results.push(("merged", result.map(|()| stack.describe())));
    }
    let mut results = results
        .into_iter()
        .map(|(form, result)| (form, result.map_err(|error| error.to_string())));
    let (_, first) = results.next().unwrap();
    for (form, result) in results {
        assert_eq!(result, first, "{form}");
    }
    first
}
