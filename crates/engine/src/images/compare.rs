//! Tells what images are made of, and what differs between two.

use rootfs::compare::{self, Difference};
use store::Image;

use crate::{Engine, EngineError};

/// One layer of an image.
#[derive(Debug, Clone)]
pub struct LayerContent {
    /// The digest of its tar, once someone has computed it.
    pub diff_id: Option<oci::Digest>,
    /// Bytes of file content.
    pub size: u64,
    /// What it holds that layers above hide: bytes that are carried for nothing.
    pub hidden: Vec<compare::Hidden>,
}

impl LayerContent {
    /// Returns the bytes that are carried for nothing.
    pub fn wasted(&self) -> u64 {
        self.hidden.iter().map(|hidden| hidden.size).sum()
    }
}

impl Engine {
    /// Returns the layers of an image, the lowest first.
    pub fn layer_contents(&self, image: &Image) -> Result<Vec<LayerContent>, EngineError> {
        let layers = self.layers_of(image)?;
        let paths: Vec<_> = layers.iter().map(|layer| layer.path()).collect();
        let hidden = compare::hidden(&paths, self.shared.xattrs())?;
        let mut found = Vec::with_capacity(layers.len());
        for (layer, hidden) in layers.iter().zip(hidden) {
            let info = self.store().layer_info(layer.id())?;
            found.push(LayerContent {
                diff_id: info.tar.map(|(digest, _)| digest),
                size: info.content,
                hidden,
            });
        }
        Ok(found)
    }

    /// Returns the largest files of each layer of an image, at most `most` of each, the lowest layer first.
    pub fn layer_files(
        &self,
        image: &Image,
        most: usize,
    ) -> Result<Vec<compare::Contents>, EngineError> {
        let layers = self.layers_of(image)?;
        let contents = layers
            .iter()
            .map(|layer| compare::contents(layer.path(), most));
        Ok(contents.collect::<Result<_, _>>()?)
    }

    /// Tells `each` what differs between the files of two images, in the order of their paths.
    pub fn compare_images(
        &self,
        before: &Image,
        after: &Image,
        each: impl FnMut(Difference),
    ) -> Result<(), EngineError> {
        let before = self.shared.tree(&self.layers_of(before)?)?;
        let after = self.shared.tree(&self.layers_of(after)?)?;
        Ok(compare::compare(&before, &after, each)?)
    }

    fn layers_of(&self, image: &Image) -> Result<Vec<store::Layer>, EngineError> {
        let ids = image.layers.as_deref();
        let layers = ids.map(|ids| self.store().layers(ids)).transpose()?;
        layers.flatten().ok_or_else(|| EngineError::Image {
            subject: image.id.to_string(),
            reason: "a layer of it is missing from the store; pull or build it again".to_owned(),
        })
    }
}
