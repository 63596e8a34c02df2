//! File trees: path resolution, mounts, walk, copy, checksum, layer tar apply and diff.
//!
//! *Responsibility*: everything that touches the files of an image. A tree is one directory or a stack of
//! layer directories in overlay form, seen merged without a mount.
//!
//! *Not here*: which layers make up a result, databases, leases, the build graph.
//!
//! *Invariants*: no path of a tree is ever joined to a host path; every step goes through the descriptor of an open
//! directory and no symlink leads out of its tree. Nothing that is returned depends on the order in which a
//! directory lists its entries, on the clock or on the number of threads.
//!
//! *On disk*: layer directories as overlay's lowers: a whiteout is a character device 0:0, an opaque directory has the
//! xattr `trusted.overlay.opaque` (`user.overlay.opaque` in a user namespace).

pub mod apply;
pub mod checksum;
pub mod compare;
pub mod compress;
pub mod context;
pub mod copy;
pub mod diff;
mod error;
pub mod filter;
mod layer;
pub mod memo;
mod meta;
pub mod overlay;
mod path;
mod pool;
mod resolve;
mod tar;
mod tree;

pub use error::{Error, Result};
pub use layer::{Form, LayerDir, OverlayXattrs};
pub use meta::{Kind, Meta};
pub use overlay::{Overlay, PreparedOverlay, Upper};
pub use path::RootPath;
pub use resolve::{Follow, NamedMeta, NewDirs, Root};
pub use tree::Tree;
