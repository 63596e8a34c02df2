//! Overlay mounts without a mount point.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, OpenTreeFlags,
    UnmountFlags,
};

use crate::layer::OverlayXattrs;
use crate::tree::open_host_dir;
use crate::{Error, Result};

/// The most lowers that the kernel stacks (`OVL_MAX_STACK`).
pub const MOST_LOWERS: usize = 500;

/// `mount(2)` takes one page of options; pages are nowhere smaller.
const SMALLEST_PAGE: usize = 4096;

/// The options of every overlay; what a layer holds must mean the same wherever it is mounted.
///
/// `nofollow` is `redirect_dir=off` that also holds where the kernel was built to follow redirects, and the only
/// value that goes with `userxattr`.
const OPTIONS: [(&CStr, &CStr); 4] = [
    (c"redirect_dir", c"nofollow"),
    (c"metacopy", c"off"),
    (c"index", c"off"),
    (c"xino", c"off"),
];

/// An overlay to be mounted: open directories, so that no path is looked up twice.
#[derive(Debug)]
pub struct Overlay {
    /// The read-only layers, the lowest first.
    pub lowers: Vec<OwnedFd>,
    /// The directories that take changes; without them the mount is read-only.
    pub upper: Option<Upper>,
    pub xattrs: OverlayXattrs,
    /// Nothing is written back for `fsync` or at unmount: faster, and the work directory must not be used again
    /// (the kernel refuses it). Whoever keeps the upper directory syncs it by itself.
    pub volatile: bool,
}

/// The writable part of an overlay; both directories are on one file system.
#[derive(Debug)]
pub struct Upper {
    pub upper: OwnedFd,
    /// Empty, and used by this mount only.
    pub work: OwnedFd,
}

/// An overlay with all its strings made: mounting it takes nothing but system calls.
///
/// For a child between `clone` and `exec`, where nothing may be allocated. The descriptors of the [`Overlay`] must
/// be open under the same numbers, and `/proc` must be mounted.
#[derive(Debug)]
pub struct PreparedOverlay<'a> {
    overlay: &'a Overlay,
    /// Paths under `/proc/self/fd`, the highest lower first: short enough for `fsconfig` whatever the path is.
    lowers: Vec<CString>,
    upper: Option<[CString; 2]>,
    /// The options for `mount(2)`, if they fit into its page.
    joined: Option<CString>,
}

impl Overlay {
    /// Opens the directories at host paths, the lowest layer first.
    pub fn open(lowers: &[impl AsRef<Path>], xattrs: OverlayXattrs) -> Result<Overlay> {
        let lowers: Result<Vec<_>> = lowers
            .iter()
            .map(|path| open_host_dir(path.as_ref()))
            .collect();
        Ok(Overlay {
            lowers: lowers?,
            upper: None,
            xattrs,
            volatile: false,
        })
    }

    /// Adds the directories for changes.
    pub fn with_upper(mut self, upper: &Path, work: &Path) -> Result<Overlay> {
        self.upper = Some(Upper {
            upper: open_host_dir(upper)?,
            work: open_host_dir(work)?,
        });
        Ok(self)
    }

    /// Mounts the overlay without a place in the file system; it lives as long as the descriptor (or as it is
    /// moved to a mount point).
    ///
    /// A single directory (one lower, or an upper alone) is bound as it is, so overlay's marks in it are seen.
    /// Needs a private mount namespace where the kernel is older than 6.5: there it is mounted on a directory for
    /// a moment.
    pub fn mount_detached(&self) -> Result<OwnedFd> {
        let prepared = self.prepare()?;
        match prepared.mount() {
            Err(Errno::NOSYS | Errno::INVAL) if prepared.joined.is_some() && !self.is_single() => {
                self.mount_through_directory(&prepared)
            }
            result => result.map_err(unsupported),
        }
    }

    /// Makes all strings that mounting needs.
    pub fn prepare(&self) -> Result<PreparedOverlay<'_>> {
        if self.lowers.len() > MOST_LOWERS {
            return Err(Error::TooManyLowers {
                count: self.lowers.len(),
                most: MOST_LOWERS,
            });
        }
        if self.lowers.is_empty() && self.upper.is_none() {
            return Err(Error::OverlayUnsupported {
                reason: "no layer and no upper directory".to_owned(),
            });
        }
        let path = |fd: &OwnedFd| {
            CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd()))
                .expect("a number has no NUL byte")
        };
        let lowers: Vec<CString> = self.lowers.iter().rev().map(path).collect();
        let upper = self
            .upper
            .as_ref()
            .map(|upper| [path(&upper.upper), path(&upper.work)]);
        let joined = self.joined(&lowers, upper.as_ref());
        Ok(PreparedOverlay {
            overlay: self,
            lowers,
            upper,
            joined,
        })
    }

    fn is_single(&self) -> bool {
        self.lowers.len() + usize::from(self.upper.is_some()) == 1
    }

    fn joined(&self, lowers: &[CString], upper: Option<&[CString; 2]>) -> Option<CString> {
        let mut text = b"lowerdir=".to_vec();
        text.extend(
            lowers
                .iter()
                .map(|path| path.to_bytes())
                .collect::<Vec<_>>()
                .join(&b':'),
        );
        if let Some([upper, work]) = upper {
            for (key, path) in [("upperdir", upper), ("workdir", work)] {
                text.extend_from_slice(format!(",{key}=").as_bytes());
                text.extend_from_slice(path.to_bytes());
            }
        }
        for (key, value) in OPTIONS {
            text.extend_from_slice(&[b",", key.to_bytes(), b"=", value.to_bytes()].concat());
        }
        if self.xattrs == OverlayXattrs::User {
            text.extend_from_slice(b",userxattr");
        }
        if self.volatile && self.upper.is_some() {
            text.extend_from_slice(b",volatile");
        }
        (text.len() < SMALLEST_PAGE).then(|| CString::new(text).expect("no option has a NUL byte"))
    }

    /// Mounts on a directory with `mount(2)`, opens what is mounted and takes the mount point away again.
    fn mount_through_directory(&self, prepared: &PreparedOverlay<'_>) -> Result<OwnedFd> {
        let point = self
            .upper
            .as_ref()
            .map_or(&self.lowers[0], |upper| &upper.work);
        let point = format!("/proc/self/fd/{}", point.as_raw_fd());
        let data = prepared.joined.as_deref();
        rustix::mount::mount(
            "overlay",
            point.as_str(),
            "overlay",
            MountFlags::empty(),
            data,
        )
        .map_err(unsupported)?;
        // The descriptor of the mount point still shows what is under the mount: its path has to be walked anew.
        let place =
            std::fs::read_link(&point).map_err(|source| Error::io("read link", &point, source))?;
        let mounted = open_host_dir(&place);
        let unmounted = rustix::mount::unmount(&place, UnmountFlags::DETACH);
        let mounted = mounted?;
        unmounted
            .map_err(|errno| Error::io("unmount", place.as_os_str().as_encoded_bytes(), errno))?;
        Ok(mounted)
    }
}

impl PreparedOverlay<'_> {
    /// Mounts without a place in the file system, with system calls alone.
    pub fn mount(&self) -> std::result::Result<OwnedFd, Errno> {
        if self.overlay.is_single() {
            let dir = match &self.overlay.upper {
                Some(upper) => &upper.upper,
                None => &self.overlay.lowers[0],
            };
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_EMPTY_PATH;
            return rustix::mount::open_tree(dir, c"", flags);
        }
        let context = rustix::mount::fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let context = context.as_fd();
        self.configure(context)?;
        rustix::mount::fsconfig_create(context)?;
        rustix::mount::fsmount(
            context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )
    }

    fn configure(&self, context: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
        use rustix::mount::{fsconfig_set_flag, fsconfig_set_string};
        fsconfig_set_string(context, c"source", c"overlay")?;
        for lower in &self.lowers {
            fsconfig_set_string(context, c"lowerdir+", lower.as_c_str())?;
        }
        if let Some([upper, work]) = &self.upper {
            fsconfig_set_string(context, c"upperdir", upper.as_c_str())?;
            fsconfig_set_string(context, c"workdir", work.as_c_str())?;
        }
        for (key, value) in OPTIONS {
            fsconfig_set_string(context, key, value)?;
        }
        if self.overlay.xattrs == OverlayXattrs::User {
            fsconfig_set_flag(context, c"userxattr")?;
        }
        if self.overlay.volatile && self.upper.is_some() {
            fsconfig_set_flag(context, c"volatile")?;
        }
        Ok(())
    }

    /// Mounts on the directory at `target` with `mount(2)` alone: for kernels whose `fsconfig` has no `lowerdir+`
    /// (older than 6.5).
    pub fn mount_on(&self, target: &CStr) -> std::result::Result<(), Errno> {
        let data = self.joined.as_deref().ok_or(Errno::NAMETOOLONG)?;
        rustix::mount::mount(c"overlay", target, c"overlay", MountFlags::empty(), data)
    }
}

fn unsupported(errno: Errno) -> Error {
    let reason = match errno {
        Errno::PERM | Errno::ACCESS => {
            "not permitted here (no CAP_SYS_ADMIN in this user namespace?)".to_owned()
        }
        Errno::NODEV => "the kernel has no overlay".to_owned(),
        errno => std::io::Error::from(errno).to_string(),
    };
    Error::OverlayUnsupported { reason }
}

/// Tries whether overlays can be mounted and written to, in an empty directory of the file system that will hold
/// the layers. Leaves the directory empty.
pub fn supported(scratch: &Path, xattrs: OverlayXattrs) -> Result<()> {
    const NAMES: [&CStr; 4] = [c"l1", c"l2", c"upper", c"work"];
    let scratch = open_host_dir(scratch)?;
    let clean = || {
        NAMES
            .iter()
            .try_for_each(|name| crate::tree::remove_tree(scratch.as_fd(), name))
    };
    let probe = || -> Result<()> {
        let mut dirs = Vec::new();
        for name in NAMES {
            rustix::fs::mkdirat(&scratch, name, Mode::RWXU)
                .and_then(|()| crate::meta::open_dir(scratch.as_fd(), name))
                .map(|dir| dirs.push(dir))
                .map_err(|errno| Error::io("create the directory", name.to_bytes(), errno))?;
        }
        rustix::fs::mkdirat(&dirs[0], c"d", Mode::RWXU).map_err(unsupported)?;
        let work = dirs.pop().expect("four directories were opened");
        let upper = dirs.pop().expect("four directories were opened");
        let overlay = Overlay {
            lowers: dirs,
            upper: Some(Upper { upper, work }),
            xattrs,
            volatile: true,
        };
        let mounted = overlay.mount_detached()?;
        // Removing makes a whiteout, making a directory again an opaque one: both need what layers are made of.
        rustix::fs::unlinkat(&mounted, c"d", AtFlags::REMOVEDIR).map_err(unsupported)?;
        rustix::fs::mkdirat(&mounted, c"d", Mode::RWXU).map_err(unsupported)?;
        let upper = &overlay.upper.as_ref().expect("it was given above").upper;
        rustix::fs::mknodat(upper, c"w", FileType::CharacterDevice, Mode::empty(), 0)
            .map_err(unsupported)
    };
    let result = probe();
    clean().map_err(|errno| Error::io("remove", "the scratch directory's contents", errno))?;
    result
}

/// Moves the calling thread into a mount namespace of its own, from which nothing propagates.
///
/// To be called before other threads start: those that run already stay in the old namespace.
pub fn in_private_mount_namespace() -> Result<()> {
    // SAFETY: CLONE_NEWNS alone is passed: no descriptor table is unshared, so no descriptor changes its meaning.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
        .map_err(|errno| Error::io("enter", "a mount namespace", errno))?;
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).map_err(|errno| Error::io("make private", "/", errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Layers with a file each, and an upper and a work directory.
    fn stack(dir: &Path, count: usize) -> Overlay {
        let lowers: Vec<_> = (0..count).map(|n| dir.join(format!("l{n}"))).collect();
        for (n, lower) in lowers.iter().enumerate() {
            std::fs::create_dir(lower).unwrap();
            std::fs::write(lower.join(format!("f{n}")), "x").unwrap();
        }
        let [upper, work] = ["upper", "work"].map(|name| dir.join(name));
        std::fs::create_dir(&upper).unwrap();
        std::fs::create_dir(&work).unwrap();
        let overlay = Overlay::open(&lowers, OverlayXattrs::Trusted).unwrap();
        let mut overlay = overlay.with_upper(&upper, &work).unwrap();
        overlay.volatile = true;
        overlay
    }

    fn names(fd: &OwnedFd) -> Vec<String> {
        let mut names = Vec::new();
        let dir = crate::meta::open_dir(fd.as_fd(), c".").unwrap();
        crate::meta::list(dir.as_fd(), |name, _| {
            names.push(name.to_string_lossy().into_owned())
        })
        .unwrap();
        names.sort();
        names
    }

    fn can_mount(dir: &Path) -> bool {
        let scratch = dir.join("scratch");
        std::fs::create_dir(&scratch).unwrap();
        let supported = supported(&scratch, OverlayXattrs::Trusted);
        assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0);
        if let Err(error) = &supported {
            println!("skipped: {error}");
        }
        supported.is_ok()
    }

    #[test]
    fn hundreds_of_layers_are_mounted_whatever_their_paths() {
        let dir = tempfile::tempdir().unwrap();
        if !can_mount(dir.path()) {
            return;
        }
        let deep = dir.path().join("x:,\\".repeat(40)).join("y".repeat(200));
        std::fs::create_dir_all(&deep).unwrap();
        let overlay = stack(&deep, 300);
        assert_eq!(names(&overlay.mount_detached().unwrap()).len(), 300);
    }

    #[test]
    fn too_many_layers_are_named_as_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let one = dir.path().join("l");
        std::fs::create_dir(&one).unwrap();
        let overlay = Overlay::open(&vec![&one; MOST_LOWERS + 1], OverlayXattrs::Trusted).unwrap();
        let error = overlay.mount_detached().unwrap_err();
        assert_eq!(
            error.to_string(),
            "501 layers are more than the 500 one overlay can hold"
        );
    }

    #[test]
    fn one_directory_is_bound_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        if !can_mount(dir.path()) {
            return;
        }
        let mut overlay = stack(dir.path(), 1);
        overlay.upper = None;
        assert_eq!(names(&overlay.mount_detached().unwrap()), ["f0"]);
        let nothing = Overlay {
            lowers: Vec::new(),
            ..overlay
        };
        assert!(matches!(
            nothing.mount_detached(),
            Err(Error::OverlayUnsupported { .. })
        ));
    }

    #[test]
    fn kernels_without_the_new_calls_are_served_by_mount() {
        let dir = tempfile::tempdir().unwrap();
        if !can_mount(dir.path()) {
            return;
        }
        // A thread of its own: it stays in the mount namespace that it enters.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                in_private_mount_namespace().unwrap();
                let overlay = stack(dir.path(), 100);
                let prepared = overlay.prepare().unwrap();
                let mounted = overlay.mount_through_directory(&prepared).unwrap();
                assert_eq!(names(&mounted).len(), 100);
                let new = crate::Tree::plain(mounted.try_clone().unwrap());
                new.root().create_dir(c"new").unwrap();
                assert!(dir.path().join("upper/new").is_dir());

                let point = dir.path().join("point");
                std::fs::create_dir(&point).unwrap();
                let target = CString::new(point.as_os_str().as_encoded_bytes()).unwrap();
                let read_only = Overlay {
                    upper: None,
                    volatile: false,
                    ..overlay
                };
                read_only.prepare().unwrap().mount_on(&target).unwrap();
                assert_eq!(std::fs::read_dir(&point).unwrap().count(), 100);
                rustix::mount::unmount(&point, UnmountFlags::DETACH).unwrap();
            });
        });
    }
}
