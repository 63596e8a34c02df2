//! Layer directories.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::{Error, Result};

/// The directory of one layer on the host: an open descriptor, and the path it was opened by.
///
/// All work goes through the descriptor; the path is for messages and for mount options.
#[derive(Debug)]
pub struct LayerDir {
    fd: OwnedFd,
    path: PathBuf,
}

impl LayerDir {
    /// Opens the directory at `path`, which must be a directory and no symlink.
    pub fn open(path: impl Into<PathBuf>) -> Result<LayerDir> {
        let path = path.into();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(CWD, &path, flags, Mode::empty()).map_err(|source| {
            Error::io(
                "open layer directory",
                path.as_os_str().as_encoded_bytes(),
                source,
            )
        })?;
        Ok(LayerDir { fd, path })
    }

    /// Takes a descriptor of a directory opened for reading, and the path to name it by.
    pub fn from_fd(fd: OwnedFd, path: impl Into<PathBuf>) -> LayerDir {
        LayerDir {
            fd,
            path: path.into(),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for LayerDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The xattr namespace overlay keeps its marks in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OverlayXattrs {
    /// `trusted.overlay.*`, which needs privileges over the host.
    Trusted,
    /// `user.overlay.*`, for overlays mounted with `userxattr` in a user namespace.
    User,
}

impl OverlayXattrs {
    /// Returns the name of the xattr that makes a directory opaque.
    pub const fn opaque(self) -> &'static str {
        match self {
            OverlayXattrs::Trusted => "trusted.overlay.opaque",
            OverlayXattrs::User => "user.overlay.opaque",
        }
    }
}

/// How a tree says what is removed from the layers below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// A layer in overlay form: a 0:0 character device hides a name, an opaque directory hides all below it.
    Overlay(OverlayXattrs),
    /// A whole tree: nothing is below it, and `.wh.` names are names like any other.
    Plain,
}

impl fmt::Display for OverlayXattrs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            OverlayXattrs::Trusted => "trusted",
            OverlayXattrs::User => "user",
        })
    }
}

/// The prefix of a whiteout's name in a layer tar (image-spec, layer.md, whiteouts).
pub(crate) const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// The name of the entry that makes its directory opaque.
pub(crate) const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

/// Whether an xattr may pass between an image and a layer directory.
///
/// `trusted.` belongs to the administrator of the host (overlay's own marks among it), `user.overlay.` is overlay's in
/// a user namespace, and the labels of a security module or of integrity measurement say something about this host only.
pub(crate) fn xattr_travels(name: &[u8]) -> bool {
    const KEPT_BACK: [&[u8]; 6] = [
        b"trusted.",
        b"user.overlay.",
        b"security.selinux",
        b"security.ima",
        b"security.evm",
        b"security.SMACK64",
    ];
    !KEPT_BACK.iter().any(|prefix| name.starts_with(prefix))
}

/// Joins a path relative to a layer, empty for its root, and one name.
pub(crate) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() {
        name.to_vec()
    } else {
        [parent, b"/", name].concat()
    }
}
