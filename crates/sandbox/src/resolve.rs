//! Paths inside a root: opened and made without ever leaving it.
//!
//! Everything below a root is hostile, and some of it (a cache mount) may be changed by another step at
//! the same moment. So nothing is decided by name and used by name: what exists is opened by the kernel
//! with the root as its limit (`RESOLVE_IN_ROOT`), what is missing is made one component at a time
//! relative to an open directory, without following a link.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, Timespec};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// As many as the kernel follows.
const MAX_LINKS: usize = 40;

/// What a missing last component becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// Something that was made in a root so that a mount has a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stub {
    /// From the root, without links.
    pub(crate) path: String,
    /// The modification time of its directory before and after it was made.
    pub(crate) parent_before: (i64, u32),
    pub(crate) parent_after: (i64, u32),
}

/// Opens (`O_PATH`) what `path` names inside `root`; links are followed within the root.
pub(crate) fn open_in_root(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    open_in_root_with(root, path, OFlags::PATH)
}

/// Opens what `path` names inside `root` with flags of the caller's choice.
pub(crate) fn open_in_root_with(
    root: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { "." } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // A rename anywhere on the machine during a `..` makes the kernel ask for another try.
    for _ in 0..100 {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
    Err(io::Error::from(Errno::AGAIN))
}

/// Opens what `path` names inside `root` and makes what is missing; what was made in the root's own mount
/// is added to `made`.
pub(crate) fn make_in_root(
    root: BorrowedFd<'_>,
    path: &str,
    kind: Kind,
    made: &mut Vec<Stub>,
) -> io::Result<OwnedFd> {
    match open_in_root(root, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Walk::new(root)?.make(path, kind, made)
        }
        other => other,
    }
}

/// A walk by hand, for paths of which something is missing.
struct Walk<'a> {
    root: BorrowedFd<'a>,
    root_mount: u64,
    /// The directories from the root to here with their names; empty at the root.
    stack: Vec<(String, OwnedFd)>,
    links: usize,
}

impl<'a> Walk<'a> {
    fn new(root: BorrowedFd<'a>) -> io::Result<Walk<'a>> {
        Ok(Walk {
            root,
            root_mount: stat(root)?.stx_mnt_id,
            stack: Vec::new(),
            links: 0,
        })
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.stack.last().map_or(self.root, |(_, fd)| fd.as_fd())
    }

    fn make(mut self, path: &str, kind: Kind, made: &mut Vec<Stub>) -> io::Result<OwnedFd> {
        let mut rest: VecDeque<String> = components(path);
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                self.stack.pop();
                continue;
            }
            let kind = if rest.is_empty() {
                kind
            } else {
                Kind::Directory
            };
            let fd = match self.open(&name) {
                Err(Errno::NOENT) => {
                    let stub = self.create(&name, kind)?;
                    made.extend(stub);
                    self.open(&name)?
                }
                other => other?,
            };
            match FileType::from_raw_mode(stat(fd.as_fd())?.stx_mode.into()) {
                FileType::Symlink => {
                    self.links += 1;
                    if self.links > MAX_LINKS {
                        return Err(io::Error::from(Errno::LOOP));
                    }
                    let target = rustix::fs::readlinkat(&fd, "", Vec::new())?;
                    let target = target.to_str().map_err(|_| io::Error::from(Errno::ILSEQ))?;
                    if target.starts_with('/') {
                        self.stack.clear();
                    }
                    for component in components(target).into_iter().rev() {
                        rest.push_front(component);
                    }
                }
                FileType::Directory => self.stack.push((name, fd)),
                _ if rest.is_empty() => return Ok(fd),
                _ => return Err(io::Error::from(Errno::NOTDIR)),
            }
        }
        match self.stack.pop() {
            Some((_, fd)) => Ok(fd),
            None => self.root.try_clone_to_owned(),
        }
    }

    fn open(&self, name: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(self.here(), name, flags, Mode::empty())
    }

    /// Makes `name` here. What another process made in the meantime is left as it is.
    fn create(&self, name: &str, kind: Kind) -> io::Result<Option<Stub>> {
        let before = stat(self.here())?;
        let result = match kind {
            Kind::Directory => rustix::fs::mkdirat(self.here(), name, Mode::from_raw_mode(0o755)),
            Kind::File => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                rustix::fs::openat(self.here(), name, flags, Mode::from_raw_mode(0o644)).map(drop)
            }
        };
        match result {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let after = stat(self.here())?;
        if after.stx_mnt_id != self.root_mount {
            return Ok(None);
        }
        let names = self
            .stack
            .iter()
            .map(|(name, _)| name.as_str())
            .chain([name]);
        Ok(Some(Stub {
            path: names.collect::<Vec<_>>().join("/"),
            parent_before: (before.stx_mtime.tv_sec, before.stx_mtime.tv_nsec),
            parent_after: (after.stx_mtime.tv_sec, after.stx_mtime.tv_nsec),
        }))
    }
}

/// Takes stubs out of `tree` again (the upper directory, or the plain root), newest first.
///
/// A directory that is not empty and a file that has content stay: they are the step's now. So does what is
/// no longer where it was. Directories get their old time back when nothing else changed them.
pub(crate) fn remove_stubs(tree: BorrowedFd<'_>, stubs: &[Stub]) {
    for stub in stubs.iter().rev() {
        // What can't be taken away stays: the layer is right, if not minimal.
        let _ = remove_stub(tree, stub);
    }
}

fn remove_stub(tree: BorrowedFd<'_>, stub: &Stub) -> io::Result<()> {
    let (parent, name) = stub.path.rsplit_once('/').unwrap_or((".", &stub.path));
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::openat2(tree, parent, flags, Mode::empty(), resolve)?;
    let times = stat(parent.as_fd())?;
    let entry = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let how = match FileType::from_raw_mode(entry.st_mode) {
        FileType::Directory => AtFlags::REMOVEDIR,
        FileType::RegularFile if entry.st_size == 0 => AtFlags::empty(),
        _ => return Ok(()),
    };
    rustix::fs::unlinkat(&parent, name, how)?;
    let mtime = (times.stx_mtime.tv_sec, times.stx_mtime.tv_nsec);
    let restored = if mtime == stub.parent_after {
        stub.parent_before
    } else {
        mtime
    };
    let restored = rustix::fs::Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: restored.0,
            tv_nsec: restored.1.into(),
        },
    };
    rustix::fs::futimens(&parent, &restored).map_err(io::Error::from)
}

fn components(path: &str) -> VecDeque<String> {
    path.split('/')
        .filter(|name| !name.is_empty() && *name != ".")
        .map(str::to_owned)
        .collect()
}

fn stat(fd: BorrowedFd<'_>) -> io::Result<Statx> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, mask).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::Path;

    use super::*;

    fn open_directory(path: &Path) -> OwnedFd {
        rustix::fs::open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .expect("open")
    }

    /// Makes `path` in a tree with links in it, and says where it came to be.
    fn check_made(path: &str, kind: Kind, expected: &str) {
        let outside = tempfile::tempdir().expect("a directory");
        let root = outside.path().join("root");
        fs::create_dir_all(root.join("real/deep")).expect("a directory");
        symlink("/real", root.join("absolute")).expect("a link");
        symlink("../../../..", root.join("real/up")).expect("a link");
        symlink("/nowhere/there", root.join("dangling")).expect("a link");
        symlink("loop", root.join("loop")).expect("a link");
        fs::write(root.join("file"), "").expect("a file");
        let mut made = Vec::new();
        let result = make_in_root(open_directory(&root).as_fd(), path, kind, &mut made);
        let outcome = match result {
            Ok(fd) => {
                let stat = rustix::fs::fstat(&fd).expect("stat");
                let found = fs::metadata(root.join(expected)).map(|found| found.ino());
                assert_eq!(found.ok(), Some(stat.st_ino), "{path} is at {expected}");
                expected.to_owned()
            }
            Err(error) => error.kind().to_string(),
        };
        assert_eq!(outcome, expected);
        let mut left: Vec<_> = fs::read_dir(outside.path())
            .expect("read")
            .map(|entry| entry.expect("entry").file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["root"], "nothing is made outside");
    }

    #[test]
    fn missing_places_are_made_inside_whatever_links_say() {
        check_made("/new/dir", Kind::Directory, "new/dir");
        check_made("/new/file", Kind::File, "new/file");
        check_made("/absolute/new", Kind::Directory, "real/new");
        check_made("/real/up/new", Kind::Directory, "new");
        check_made("/../../new", Kind::Directory, "new");
        check_made("/dangling/x", Kind::File, "nowhere/there/x");
        check_made("/dangling", Kind::Directory, "nowhere/there");
        check_made(
            "/loop/x",
            Kind::Directory,
            "filesystem loop or indirection limit (e.g. symlink loop)",
        );
        check_made("/file/x", Kind::Directory, "not a directory");
    }

    #[test]
    fn stubs_go_and_times_come_back_unless_the_step_used_them() {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir(root.path().join("etc")).expect("a directory");
        let tree = open_directory(root.path());
        let before = fs::metadata(root.path().join("etc"))
            .expect("stat")
            .mtime_nsec();
        let mut made = Vec::new();
        make_in_root(tree.as_fd(), "/etc/hosts", Kind::File, &mut made).expect("made");
        make_in_root(tree.as_fd(), "/etc/resolv.conf", Kind::File, &mut made).expect("made");
        make_in_root(tree.as_fd(), "/run/secrets/key", Kind::File, &mut made).expect("made");
        make_in_root(tree.as_fd(), "/var/used/mount", Kind::Directory, &mut made).expect("made");
        fs::write(root.path().join("var/used/other"), "mine").expect("a file");
        remove_stubs(tree.as_fd(), &made);
        assert_eq!(
            fs::metadata(root.path().join("etc"))
                .expect("stat")
                .mtime_nsec(),
            before
        );
        let exists = |path: &str| root.path().join(path).exists();
        assert!(!exists("etc/hosts") && !exists("etc/resolv.conf") && !exists("run"));
        assert!(exists("var/used/other") && !exists("var/used/mount"));
    }
}
