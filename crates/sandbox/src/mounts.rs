//! Detached mounts: made without a place, attached to one later.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
    open_tree,
};

use crate::spec::Overlay;
use crate::sys;

pub(crate) const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
pub(crate) const NO_DEVICES: u64 = libc::MOUNT_ATTR_NODEV;

/// A string option of the mount API is shorter than this.
const MAX_OPTION: usize = 255;

/// Makes a file system of its own: `tmpfs`, `proc`, … with options, a flag being an option without a value.
pub(crate) fn filesystem(
    kind: &str,
    options: &[(&str, Option<&str>)],
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", kind)?;
    for (name, value) in options {
        match value {
            Some(value) => fsconfig_set_string(&context, *name, *value)?,
            None => fsconfig_set_flag(&context, *name)?,
        }
    }
    fsconfig_create(&context)?;
    Ok(fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// Makes an empty file system in memory.
pub(crate) fn tmpfs(
    size: Option<u64>,
    mode: u32,
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let mode = format!("{mode:o}");
    let size = size.map(|size| size.to_string());
    let mut options = vec![("mode", Some(mode.as_str()))];
    options.extend(size.as_deref().map(|size| ("size", Some(size))));
    filesystem("tmpfs", &options, attributes)
}

/// Clones the mount tree at an open file or directory.
///
/// With everything below, as a user namespace demands for what it did not mount itself.
pub(crate) fn bind(source: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    open_tree(source, "", flags).map_err(io::Error::from)
}

/// Opens a path of the host as the source of a bind.
pub(crate) fn open_path(path: &Path) -> io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from)
}

/// Attaches a detached mount over an open file or directory.
pub(crate) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags).map_err(io::Error::from)
}

/// Attaches a detached mount over the root of this mount namespace, where it hides nothing from a process
/// whose root is below: the place that always exists.
pub(crate) fn attach_over_root(mount: BorrowedFd<'_>) -> io::Result<()> {
    move_mount(mount, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(io::Error::from)
}

/// Attaches a detached mount where nothing needs to be found any more: in `/sys` of the old root.
///
/// A part of a mount can only be cloned while it has a place. The old root takes it along when it goes; over
/// the root itself it would have to be taken off by itself, and each such unmount waits for all processors.
pub(crate) fn attach_aside(mount: BorrowedFd<'_>) -> io::Result<()> {
    match open_path("/sys".as_ref()) {
        Ok(place) => attach(mount, place.as_fd()),
        Err(_) => attach_over_root(mount),
    }
}

/// Makes the attached mount the root of this mount namespace and lets go of everything else.
pub(crate) fn pivot_to(root: BorrowedFd<'_>) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::process::chdir("/")?;
    // The old root now lies over the new one, and over it whatever was attached to it: `..` of a root leads to the
    // highest of them. Each is taken off, until `..` is the root itself.
    while mount_id("/..")? != mount_id("/")? {
        rustix::mount::unmount("/..", UnmountFlags::DETACH)?;
    }
    Ok(())
}

pub(crate) fn mount_id(path: &str) -> io::Result<u64> {
    let found = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?;
    if found.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(io::Error::from(io::ErrorKind::Unsupported));
    }
    Ok(found.stx_mnt_id)
}

/// Mounts an overlay, detached.
///
/// `volatile`: nothing is synced, neither on the step's own `fsync` nor at the unmount, which would flush
/// the whole file system below. What is kept of the upper directory is synced by who keeps it.
pub(crate) fn overlay(overlay: &Overlay, user_xattr: bool) -> io::Result<OwnedFd> {
    let Some(upper) = &overlay.upper else {
        return match overlay.lowers.as_slice() {
            [] => tmpfs(Some(4096), 0o755, MountAttrFlags::MOUNT_ATTR_RDONLY),
            [only] => {
                let mount = bind(open_path(only)?.as_fd())?;
                sys::mount_setattr(mount.as_fd(), READ_ONLY, true)?;
                Ok(mount)
            }
            _ => overlay_options(overlay, user_xattr, MountAttrFlags::MOUNT_ATTR_RDONLY),
        };
    };
    if overlay.lowers.is_empty() {
        return bind(open_path(&upper.upper)?.as_fd());
    }
    overlay_options(overlay, user_xattr, MountAttrFlags::empty())
}

fn overlay_options(
    overlay: &Overlay,
    user_xattr: bool,
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "overlay")?;
    // Names of descriptors must stay open until the mount is made.
    let mut open = Vec::new();
    for (position, lower) in overlay.lowers.iter().rev().enumerate() {
        match fsconfig_set_string(&context, "lowerdir+", short_path(lower, &mut open)?) {
            Err(Errno::INVAL) if position == 0 => {
                return overlay_by_page(overlay, user_xattr, attributes);
            }
            other => other?,
        }
    }
    if let Some(upper) = &overlay.upper {
        fsconfig_set_string(&context, "upperdir", short_path(&upper.upper, &mut open)?)?;
        fsconfig_set_string(&context, "workdir", short_path(&upper.work, &mut open)?)?;
    }
    for (name, value) in fixed_options(overlay.upper.is_some(), user_xattr) {
        match value {
            Some(value) => fsconfig_set_string(&context, name, value)?,
            None => fsconfig_set_flag(&context, name)?,
        }
    }
    fsconfig_create(&context)?;
    Ok(fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// What every overlay of the builder is mounted with: a layer must mean the same anywhere, so nothing in it
/// may depend on features of this one mount.
fn fixed_options(
    writable: bool,
    user_xattr: bool,
) -> impl Iterator<Item = (&'static str, Option<&'static str>)> {
    let always = [
        ("redirect_dir", Some("off")),
        ("metacopy", Some("off")),
        ("index", Some("off")),
    ];
    let volatile = writable.then_some(("volatile", None));
    let user = user_xattr.then_some(("userxattr", None));
    // In a user namespace redirects are off anyway, and naming them beside `userxattr` is refused.
    always
        .into_iter()
        .filter(move |(name, _)| !(user_xattr && matches!(*name, "redirect_dir" | "metacopy")))
        .chain(volatile)
        .chain(user)
}

/// Returns the path as text, or by the name of a descriptor when the mount API would not take it.
fn short_path(path: &Path, open: &mut Vec<OwnedFd>) -> io::Result<String> {
    match path.to_str() {
        Some(text) if text.len() <= MAX_OPTION && !text.contains(['\\', ':', ',']) => {
            Ok(text.to_owned())
        }
        _ => descriptor_path(path, open),
    }
}

fn descriptor_path(path: &Path, open: &mut Vec<OwnedFd>) -> io::Result<String> {
    let fd = open_path(path)?;
    let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
    open.push(fd);
    Ok(name)
}

/// Mounts an overlay with the options in one page, as kernels before 6.5 want it; detached afterwards.
fn overlay_by_page(
    overlay: &Overlay,
    user_xattr: bool,
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let mut open = Vec::new();
    let lowers = overlay
        .lowers
        .iter()
        .rev()
        .map(|lower| descriptor_path(lower, &mut open));
    let mut options = format!(
        "lowerdir={}",
        lowers.collect::<io::Result<Vec<_>>>()?.join(":")
    );
    if let Some(upper) = &overlay.upper {
        let upper_name = descriptor_path(&upper.upper, &mut open)?;
        let work_name = descriptor_path(&upper.work, &mut open)?;
        options.push_str(&format!(",upperdir={upper_name},workdir={work_name}"));
    }
    for (name, value) in fixed_options(overlay.upper.is_some(), user_xattr) {
        options.push_str(&match value {
            Some(value) => format!(",{name}={value}"),
            None => format!(",{name}"),
        });
    }
    let options = std::ffi::CString::new(options)?;
    // An attached file system is needed to clone it: one in memory lends the place.
    let place = tmpfs(Some(4096), 0o700, MountAttrFlags::empty())?;
    attach_over_root(place.as_fd())?;
    rustix::process::fchdir(&place)?;
    let result = mount_here(&options);
    rustix::process::chdir("/")?;
    let mount = result?;
    if attributes.contains(MountAttrFlags::MOUNT_ATTR_RDONLY) {
        sys::mount_setattr(mount.as_fd(), READ_ONLY, false)?;
    }
    Ok(mount)
}

fn mount_here(options: &std::ffi::CStr) -> io::Result<OwnedFd> {
    rustix::fs::mkdirat(CWD, "overlay", Mode::from_raw_mode(0o700))?;
    rustix::mount::mount(
        "overlay",
        "overlay",
        "overlay",
        rustix::mount::MountFlags::empty(),
        Some(options),
    )?;
    let top = rustix::fs::open(
        "overlay",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    bind(top.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Upper;

    /// Set for the process in a mount namespace of its own, where mounts may be made.
    const INSIDE: &str = "LAPSTRAKE_TEST_MOUNTS";

    #[test]
    fn an_overlay_with_its_options_in_one_page_is_the_same() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: needs root");
        }
        let name = "mounts::tests::an_overlay_is_made_in_both_ways";
        let output = std::process::Command::new("unshare")
            .arg("--mount")
            .arg(std::env::current_exe().expect("this program"))
            .args(["--exact", name, "--nocapture"])
            .env(INSIDE, "1")
            .output()
            .expect("unshare");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    #[test]
    fn an_overlay_is_made_in_both_ways() {
        if std::env::var_os(INSIDE).is_none() {
            return;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        for name in ["one", "two:odd,\\name", "upper", "work", "upper2", "work2"] {
            std::fs::create_dir(path(name)).expect("a directory");
            std::fs::write(path(name).join("file"), name).expect("a file");
        }
        for name in ["work", "work2", "upper", "upper2"] {
            std::fs::remove_file(path(name).join("file")).expect("removed");
        }
        let upper = |upper: &str, work: &str| {
            Some(Upper {
                upper: path(upper),
                work: path(work),
            })
        };
        let lowers = vec![path("one"), path("two:odd,\\name")];
        let check =
            |overlay: Overlay, make: fn(&Overlay, bool, MountAttrFlags) -> io::Result<OwnedFd>| {
                let mount = make(&overlay, false, MountAttrFlags::empty()).expect("an overlay");
                let read = rustix::fs::openat(&mount, "file", OFlags::RDONLY, Mode::empty())
                    .expect("a file");
                assert_eq!(
                    io::read_to_string(std::fs::File::from(read)).expect("text"),
                    "two:odd,\\name"
                );
                let flags = OFlags::WRONLY | OFlags::CREATE;
                rustix::fs::openat(&mount, "new", flags, Mode::from_raw_mode(0o644))
                    .expect("a new file");
            };
        check(
            Overlay {
                lowers: lowers.clone(),
                upper: upper("upper", "work"),
            },
            overlay_options,
        );
        check(
            Overlay {
                lowers,
                upper: upper("upper2", "work2"),
            },
            overlay_by_page,
        );
        assert!(path("upper/new").exists() && path("upper2/new").exists());
    }
}
