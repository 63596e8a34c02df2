//! Copies of a context's files: made when a build begins, so that nothing that changes later gets into a step.
//!
//! *On disk*: `memos/<hash of the directory and an operation>`: the layer that the operation's last copy has become, and where
//! in it which file of the directory lies. What is still the same is linked to it instead of copied again. Links are for
//! that operation alone, which brings a file to the same path each time: of two layers with the same inode one hides the
//! other.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};

use llb::{Op, Vertex, VertexId};
use oci::Digest;
use rootfs::checksum::{Census, Selection};
use rootfs::context::{Copies, Earlier, Staged, write_copies};
use store::{Layer, LayerId, MutLayer};

use crate::EngineError;
use crate::context::{ContextTree, write_whole};
use crate::keys::KeyBuilder;
use crate::step::Shared;

/// Files of a context, copied for a step.
#[derive(Debug)]
pub(crate) struct StagedCopy {
    pub(crate) layer: MutLayer,
    pub(crate) staged: Staged,
    /// Where to remember what became of them.
    copies_file: Option<PathBuf>,
}

/// What was copied of a context in one build.
#[derive(Debug, Default)]
pub(crate) struct Staging {
    copies: HashMap<VertexId, Arc<StagedCopy>>,
    /// Copies that processes only look at, by the paths they hold.
    bound: HashMap<Vec<String>, Arc<StagedCopy>>,
    /// The checksums of what steps take, which are part of their keys.
    planned: HashMap<VertexId, Vec<[u8; 32]>>,
    /// What earlier builds have copied, by file, where it was used in this one.
    used: HashSet<PathBuf>,
}

impl ContextTree {
    /// Copies what a step takes. `below` tells the layers of the images it builds upon.
    pub(crate) fn stage(
        &self,
        shared: &Shared,
        vertex: &Vertex,
        selections: &[Selection],
        below: impl FnOnce() -> BTreeSet<Digest>,
    ) -> Result<(), EngineError> {
        // A process sees the files where they are: steps that take the same share them.
        let process = matches!(vertex.op(), Op::Exec(_));
        let paths = || -> Vec<String> { selections.iter().map(|one| one.path.clone()).collect() };
        let mut copies_file = None;
        {
            let mut staging = self.staging();
            // The same step of another platform.
            if staging.copies.contains_key(&vertex.id()) {
                return Ok(());
            }
            if process && let Some(copy) = staging.bound.get(&paths()).cloned() {
                staging.copies.insert(vertex.id(), copy);
                return Ok(());
            }
            // Two steps of one build may lie in one mount.
            if !process && let Some(file) = self.copies_file(vertex) {
                copies_file = staging.used.insert(file.clone()).then_some(file);
            }
        }
        let earlier = copies_file.as_ref().and_then(|file| {
            let (layer, links) = earlier_copies(shared, file)?;
            let tar = shared.store.layer_info(layer.id()).ok()?.tar;
            let apart = tar.is_none_or(|(digest, _)| !below().contains(&digest));
            apart.then_some((layer, links))
        });
        let links = earlier.as_ref().map(|(_kept, links)| links);
        let (layer, staged) = self.copy(shared, selections, links)?;
        let copy = Arc::new(StagedCopy {
            layer,
            staged,
            copies_file,
        });
        let mut staging = self.staging();
        if process {
            staging.bound.insert(paths(), Arc::clone(&copy));
        }
        staging.copies.insert(vertex.id(), copy);
        Ok(())
    }

    /// Notes the checksums of what a step takes.
    pub(crate) fn plan(&self, vertex: VertexId, checksums: Vec<[u8; 32]>) {
        self.staging().planned.insert(vertex, checksums);
    }

    /// Returns the copy that was made for a step, made now if it was not expected to run.
    pub(crate) fn staged(
        &self,
        shared: &Shared,
        vertex: VertexId,
        selections: &[Selection],
    ) -> Result<Arc<StagedCopy>, EngineError> {
        let (found, planned) = {
            let mut staging = self.staging();
            let planned = staging.planned.get(&vertex).cloned();
            (staging.copies.remove(&vertex), planned)
        };
        match found {
            Some(copy) => Ok(copy),
            None => Ok(Arc::new(self.copy_late(shared, selections, planned)?)),
        }
    }

    /// Copies what was captured; what changed since is an error.
    pub(crate) fn copy_of(
        &self,
        shared: &Shared,
        selections: &[Selection],
    ) -> Result<StagedCopy, EngineError> {
        self.copy_late(shared, selections, None)
    }

    fn copy_late(
        &self,
        shared: &Shared,
        selections: &[Selection],
        planned: Option<Vec<[u8; 32]>>,
    ) -> Result<StagedCopy, EngineError> {
        let checksums = || -> Result<Vec<_>, EngineError> {
            let each = selections.iter();
            each.map(|selection| self.checksum(selection)).collect()
        };
        let before = match planned {
            Some(planned) => planned,
            None => checksums()?,
        };
        let (layer, staged) = self.copy(shared, selections, None)?;
        if checksums()? != before {
            return Err(EngineError::Request(
                "the context changed while it was built; build again".to_owned(),
            ));
        }
        Ok(StagedCopy {
            layer,
            staged,
            copies_file: None,
        })
    }

    fn copy(
        &self,
        shared: &Shared,
        selections: &[Selection],
        links: Option<&Earlier>,
    ) -> Result<(MutLayer, Staged), EngineError> {
        let layer = shared.store.new_layer()?;
        let path = layer.path();
        let staged = self.capture.stage(selections, &path, &self.memo, links)?;
        Ok((layer, staged))
    }

    /// Remembers where the files of a copy have come to lie, for the next build.
    pub(crate) fn remember_copies(&self, copy: &StagedCopy, layer: &Layer, census: &Census) {
        let Some(file) = &copy.copies_file else {
            return;
        };
        let kept = layer_mark(layer).and_then(|mark| {
            let mut bytes = write_copies(&self.capture, &copy.staged, census);
            bytes.extend_from_slice(&mark);
            write_whole(file, &bytes)
        });
        if let Err(error) = kept {
            tracing::warn!(%error, "copies of files are not remembered");
        }
    }

    fn copies_file(&self, vertex: &Vertex) -> Option<PathBuf> {
        let memo_file = self.memo_file.as_ref()?;
        let name = KeyBuilder::new("copies")
            .part("memo", memo_file.file_name()?.as_encoded_bytes())
            .part("operation", &vertex.operation_digest())
            .finish();
        Some(memo_file.with_file_name(crate::keys::hex(&name)))
    }

    fn staging(&self) -> MutexGuard<'_, Staging> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns what a layer is known again by: its id, and what another directory under that id would not have.
fn layer_mark(layer: &Layer) -> std::io::Result<[u8; 32]> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::symlink_metadata(layer.path())?;
    let mut mark = [0; 32];
    let numbers = [
        layer.id().0,
        meta.ino(),
        meta.ctime() as u64,
        meta.ctime_nsec() as u64,
    ];
    for (to, number) in mark.chunks_exact_mut(8).zip(numbers) {
        to.copy_from_slice(&number.to_le_bytes());
    }
    Ok(mark)
}

/// Finds what an earlier build has copied, and keeps the layer it lies in.
fn earlier_copies(shared: &Shared, file: &Path) -> Option<(Layer, Earlier)> {
    let mut bytes = std::fs::read(file).ok()?;
    let (_, mark) = bytes.split_last_chunk::<32>()?;
    let mark = *mark;
    bytes.truncate(bytes.len() - mark.len());
    let (id, _) = mark.split_first_chunk::<8>()?;
    let layer = shared.store.layer(LayerId(u64::from_le_bytes(*id)));
    let layer = layer.ok().flatten()?;
    let same = layer_mark(&layer).is_ok_and(|now| now == mark);
    same.then_some(())?;
    let links = Earlier::open(layer.path(), Copies::from_bytes(bytes)).ok()?;
    Some((layer, links))
}
