//! Results of vertices.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rootfs::{OverlayXattrs, Tree};
use store::{Layer, LayerId};

use crate::EngineError;
use crate::context::ContextTree;

/// One tree that a vertex yields.
#[derive(Debug, Clone)]
pub(crate) enum Snapshot {
    /// Layers of the store, lowest first. No layers: an empty tree.
    Layers(Vec<Layer>),
    /// Files outside the store, captured when the build began.
    Context(Arc<ContextTree>),
}

/// What a vertex yields: its outputs, by number.
#[derive(Debug)]
pub(crate) struct StepOutput {
    pub(crate) outputs: Vec<Snapshot>,
}

impl Snapshot {
    /// Returns the layer that lies above all others.
    pub(crate) fn top(&self) -> Option<LayerId> {
        match self {
            Snapshot::Layers(layers) => layers.last().map(Layer::id),
            Snapshot::Context(_) => None,
        }
    }

    /// Returns the layers' names, for records; `None` for what is not in the store.
    pub(crate) fn layer_ids(&self) -> Option<Vec<LayerId>> {
        match self {
            Snapshot::Layers(layers) => Some(layers.iter().map(Layer::id).collect()),
            Snapshot::Context(_) => None,
        }
    }
}

/// Opens layers as one tree that is written to a directory above them.
pub(crate) fn writable_tree(
    below: &[Layer],
    upper: &Path,
    xattrs: OverlayXattrs,
) -> Result<Tree, EngineError> {
    let lowers = below.iter().map(|layer| open_directory(layer.path()));
    let lowers = lowers.collect::<Result<Vec<_>, _>>()?;
    Ok(Tree::writable(lowers, open_directory(upper)?, xattrs))
}

pub(crate) fn open_directory(path: &Path) -> Result<OwnedFd, EngineError> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|errno| EngineError::io("open", path)(errno.into()))
}

/// Opens layers as one tree.
pub(crate) fn tree_of(layers: &[Layer], xattrs: OverlayXattrs) -> rootfs::Result<Tree> {
    let paths: Vec<_> = layers.iter().map(Layer::path).collect();
    Tree::open_layers(&paths, xattrs)
}
