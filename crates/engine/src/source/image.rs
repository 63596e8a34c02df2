//! Finds the image behind a name: in the store, or in a registry.

use std::sync::{Arc, OnceLock};

use oci::media_type::{self, Kind};
use oci::{Descriptor, Digest, ImageConfig, Index, Manifest, Platform, PlatformMatcher, Reference};
use registry::{Client, CredentialProvider};
use serde::{Deserialize, Serialize};
use store::{Image, Layer, Store};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::layout::{self, LayoutPlace};
use crate::images::Subject;
use crate::step::Shared;
use crate::{Cancel, EngineError};

/// An image for one platform, pinned to its content.
#[derive(Debug, Clone)]
pub(crate) struct PinnedImage {
    /// The name it was asked for by.
    pub(crate) reference: Reference,
    /// What pins it: the digest the name resolved to (of an index, if there is one), or the image's
    /// id for an image that was built here.
    pub(crate) digest: Digest,
    /// The digest of the config, which names the content whatever index it came by.
    pub(crate) id: Digest,
    /// The manifest it was found by, a blob of the store.
    pub(crate) manifest: Option<Digest>,
    pub(crate) platform: Platform,
    pub(crate) config: Arc<ImageConfig>,
    pub(crate) content: ImageContent,
}

/// Where the layers of an image are.
#[derive(Debug, Clone)]
pub(crate) enum ImageContent {
    /// Layers of the store.
    Store(Image),
    /// Layers of a registry, lowest first, with the digest of each one's tar.
    Registry(Vec<(Descriptor, Digest)>),
}

/// How deep indexes may nest.
const DEEPEST_INDEX: usize = 4;
/// The largest config that is read, in bytes.
const MAX_CONFIG: u64 = 8 << 20;

/// Finds images.
#[derive(Debug)]
pub(crate) struct ImageResolver {
    store: Store,
    client: Client,
    settings: registry::Settings,
    runtime: Arc<OnceLock<Runtime>>,
    /// Whether nobody waits for a network any more.
    stopped: Arc<watch::Sender<bool>>,
    /// The same for what does not wait in the runtime.
    stopping: Cancel,
}

/// What a tag was resolved to, kept so that the next build needs no network.
#[derive(Debug, Serialize, Deserialize)]
struct RememberedTag {
    digest: Digest,
    media_type: String,
}

impl ImageResolver {
    pub(crate) fn new(store: Store, settings: registry::Settings) -> Self {
        Self {
            store,
            client: Client::new(settings.clone()),
            settings,
            runtime: Arc::new(OnceLock::new()),
            stopped: Arc::new(watch::Sender::new(false)),
            stopping: Cancel::default(),
        }
    }

    /// Returns one that logs in with other credentials, and shares all else.
    pub(crate) fn with_credentials(&self, credentials: Arc<dyn CredentialProvider>) -> Self {
        let mut settings = self.settings.clone();
        settings.credentials = credentials;
        Self {
            store: self.store.clone(),
            client: Client::new(settings.clone()),
            settings,
            runtime: Arc::clone(&self.runtime),
            stopped: Arc::clone(&self.stopped),
            stopping: self.stopping.clone(),
        }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn settings(&self) -> &registry::Settings {
        &self.settings
    }

    /// Returns the runtime of everything that talks to a network, started when it is first needed.
    pub(crate) fn runtime(&self) -> &Runtime {
        self.runtime.get_or_init(|| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .thread_name("network")
                .enable_all()
                .build()
                .expect("a process can start two threads")
        })
    }

    /// Waits for an answer of the network, until [`stop`](Self::stop) is called.
    pub(crate) fn wait<T, E: Into<EngineError>>(
        &self,
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, EngineError> {
        let mut stopped = self.stopped.subscribe();
        self.runtime().block_on(async {
            tokio::select! {
                answer = answer => answer.map_err(Into::into),
                _ = stopped.wait_for(|stopped| *stopped) => Err(EngineError::Canceled),
            }
        })
    }

    /// Ends every wait for the network, those to come too.
    pub(crate) fn stop(&self) {
        self.stopped.send_replace(true);
        self.stopping.request();
    }

    /// Returns what [`stop`](Self::stop) asks to stop.
    pub(crate) fn stopping(&self) -> &Cancel {
        &self.stopping
    }

    /// Waits as [`wait`](Self::wait) does, until one of these is asked to stop too.
    pub(crate) fn wait_until<T, E: Into<EngineError>>(
        &self,
        cancels: &[Cancel],
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, EngineError> {
        let given_up = Arc::new(tokio::sync::Notify::new());
        let _guards: Vec<_> = cancels
            .iter()
            .map(|cancel| {
                let given_up = Arc::clone(&given_up);
                cancel.on_request(move || given_up.notify_one())
            })
            .collect();
        self.wait(async {
            tokio::select! {
                answer = answer => answer.map_err(Into::into),
                () = given_up.notified() => Err(EngineError::Canceled),
            }
        })
    }

    /// Returns the image of a name for a platform. With `pull` the registry is asked also for a tag
    /// that is known here.
    pub(crate) fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
        pull: bool,
    ) -> Result<PinnedImage, EngineError> {
        let reference = reference.clone().or_latest();
        if !pull && reference.digest().is_none() {
            if let Some(image) = self.named_here(&reference, platform)? {
                return Ok(image);
            }
            if let Some(image) = self.remembered(&reference, platform)? {
                return Ok(image);
            }
        }
        if let Some(digest) = reference.digest() {
            if let Some(image) = self.store.image(digest)? {
                // The id of an image that was built here, as it was told to who asked for its name.
                if let Some(pinned) = self.of_store(&reference, image, digest.clone())? {
                    return Ok(pinned);
                }
            }
            if let Ok(raw) = self.store.blobs().read(digest)
                && let Ok(image) = self.resolve_document(&reference, platform, digest.clone(), raw)
            {
                return Ok(image);
            }
        }
        let resolved = self.wait(async {
            let resolved = self.client.resolve(&reference).await;
            resolved.map_err(|source| EngineError::Resolve {
                reference: Box::new(reference.clone()),
                source: Box::new(source),
            })
        })?;
        let digest = resolved.descriptor.digest.clone();
        self.keep(&digest, &resolved.raw)?;
        let image =
            self.resolve_document(&reference, platform, digest.clone(), resolved.raw.to_vec())?;
        let tag = RememberedTag {
            digest,
            media_type: resolved.descriptor.media_type,
        };
        let tag = serde_json::to_vec(&tag).expect("a tag can be written as JSON");
        let key = reference.to_string();
        self.store
            .remember("tag", [(key.as_bytes(), tag.as_slice())])?;
        Ok(image)
    }

    /// Returns an image of an OCI layout, whose blobs are in the store from now on.
    pub(crate) fn resolve_layout(
        &self,
        shared: &Shared,
        place: LayoutPlace<'_>,
        reference: &Reference,
        platform: &Platform,
        digest: &Digest,
    ) -> Result<PinnedImage, EngineError> {
        let mut raw = layout::document(shared, place, digest)?;
        let found = raw.clone();
        for _ in 0..DEEPEST_INDEX {
            if kind_of(&raw) != Kind::Index {
                break;
            }
            let index: Index = parse("index", &raw)?;
            let Some(chosen) = choose(&index, platform) else {
                return Err(no_platform(reference, platform, &index));
            };
            raw = layout::document(shared, place, &chosen.digest)?;
        }
        let manifest: Manifest = parse("manifest", &raw)?;
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            layout::take(shared, place, blob)?;
        }
        self.resolve_document(reference, platform, digest.clone(), found)
    }

    /// Returns the image that was given this name here, built, loaded or tagged, and that no registry has under it as
    /// far as is known.
    pub(crate) fn made_here(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Option<PinnedImage>, EngineError> {
        let reference = reference.clone().or_latest();
        match self.store.name(&reference.to_string())? {
            Some(name) if name.digest.is_none() => self.named_here(&reference, platform),
            _ => Ok(None),
        }
    }

    /// Returns the image of the store that has this name and platform.
    fn named_here(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Option<PinnedImage>, EngineError> {
        let Some(name) = self.store.name(&reference.to_string())? else {
            return Ok(None);
        };
        let Some(subject) = Subject::of_name(&self.store, &name, Some(platform))? else {
            return Ok(None);
        };
        let image = subject.image;
        let digest = name.digest.or_else(|| image.manifest.clone());
        let digest = digest.unwrap_or_else(|| image.id.clone());
        self.of_store(reference, image, digest)
    }

    /// Returns an image of the store; `None` if it was never unpacked.
    fn of_store(
        &self,
        reference: &Reference,
        image: Image,
        digest: Digest,
    ) -> Result<Option<PinnedImage>, EngineError> {
        if image.layers.is_none() {
            return Ok(None);
        }
        let raw = self.store.blobs().read(&image.id)?;
        let config = parse_config(&image.id, &raw)?;
        Ok(Some(PinnedImage {
            reference: reference.clone(),
            digest,
            id: image.id.clone(),
            manifest: image.manifest.clone(),
            platform: config.platform.clone(),
            config: Arc::new(config),
            content: ImageContent::Store(image),
        }))
    }

    fn remembered(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Option<PinnedImage>, EngineError> {
        let Some(tag) = self.store.recall("tag", reference.to_string().as_bytes())? else {
            return Ok(None);
        };
        let Ok(tag) = serde_json::from_slice::<RememberedTag>(&tag) else {
            return Ok(None);
        };
        let Ok(raw) = self.store.blobs().read(&tag.digest) else {
            return Ok(None);
        };
        self.resolve_document(reference, platform, tag.digest, raw)
            .map(Some)
    }

    /// Follows an index to the manifest for the platform, and that to its config.
    fn resolve_document(
        &self,
        reference: &Reference,
        platform: &Platform,
        pinned: Digest,
        raw: Vec<u8>,
    ) -> Result<PinnedImage, EngineError> {
        let mut raw = raw;
        // An index may name indexes; none that is honest nests deeper.
        for _ in 0..DEEPEST_INDEX {
            match kind_of(&raw) {
                Kind::Index => {
                    let index: Index = parse("index", &raw)?;
                    raw = self.choose(reference, platform, &index)?;
                }
                _ => return self.resolve_manifest(reference, platform, pinned, &raw),
            }
        }
        Err(EngineError::Image {
            subject: reference.to_string(),
            reason: "its indexes are nested too deeply".to_owned(),
        })
    }

    fn choose(
        &self,
        reference: &Reference,
        platform: &Platform,
        index: &Index,
    ) -> Result<Vec<u8>, EngineError> {
        let Some(chosen) = choose(index, platform) else {
            return Err(no_platform(reference, platform, index));
        };
        self.manifest_bytes(reference, chosen)
    }

    fn manifest_bytes(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<Vec<u8>, EngineError> {
        if let Ok(raw) = self.store.blobs().read(&descriptor.digest) {
            return Ok(raw);
        }
        let raw = self.wait(self.client.fetch_manifest(reference, descriptor))?;
        self.keep(&descriptor.digest, &raw)?;
        Ok(raw.to_vec())
    }

    fn resolve_manifest(
        &self,
        reference: &Reference,
        platform: &Platform,
        pinned: Digest,
        raw: &[u8],
    ) -> Result<PinnedImage, EngineError> {
        let manifest: Manifest = parse("manifest", raw)?;
        let id = manifest.config.digest.clone();
        let config = match self.store.blobs().read(&id) {
            Ok(config) => config,
            Err(_) => {
                let fetch = self
                    .client
                    .fetch_blob_bytes(reference, &manifest.config, MAX_CONFIG);
                let config = self.wait(fetch)?;
                self.keep(&id, &config)?;
                config
            }
        };
        let config = parse_config(&id, &config)?;
        let diff_ids = config.rootfs.diff_ids.clone();
        if diff_ids.len() != manifest.layers.len() {
            return Err(EngineError::Image {
                subject: reference.to_string(),
                reason: format!(
                    "its manifest has {} layers, its config {}",
                    manifest.layers.len(),
                    diff_ids.len()
                ),
            });
        }
        for layer in &manifest.layers {
            refuse_odd_layer(reference, layer)?;
        }
        // Where an image does not say what it is for, it is for what was asked.
        let known = !config.platform.os.is_empty() && !config.platform.architecture.is_empty();
        let platform = if known {
            config.platform.clone()
        } else {
            platform.clone()
        };
        Ok(PinnedImage {
            reference: reference.clone(),
            digest: pinned,
            id,
            manifest: Some(Digest::sha256_of(raw)),
            platform,
            config: Arc::new(config),
            content: ImageContent::Registry(manifest.layers.into_iter().zip(diff_ids).collect()),
        })
    }

    fn keep(&self, digest: &Digest, raw: &[u8]) -> Result<(), EngineError> {
        let mut writer = self.store.blobs().writer()?;
        writer.append(raw)?;
        writer.commit_volatile(Some((digest, raw.len() as u64)))?;
        Ok(())
    }
}

fn choose<'i>(index: &'i Index, platform: &Platform) -> Option<&'i Descriptor> {
    let matcher = PlatformMatcher::runnable(platform);
    index.candidates(&matcher).into_iter().next()
}

fn no_platform(reference: &Reference, platform: &Platform, index: &Index) -> EngineError {
    let available: Vec<String> = index
        .manifests
        .iter()
        .filter(|entry| !entry.is_attestation())
        .filter_map(|entry| entry.platform.as_ref())
        .map(ToString::to_string)
        .collect();
    EngineError::NoPlatform {
        reference: Box::new(reference.clone()),
        platform: platform.to_string(),
        available: available.join(", "),
    }
}

fn refuse_odd_layer(reference: &Reference, layer: &Descriptor) -> Result<(), EngineError> {
    let odd = match () {
        () if layer.media_type.contains("encrypted") => "encrypted",
        () if is_foreign(layer) => "foreign (not distributable)",
        () => return Ok(()),
    };
    Err(EngineError::Image {
        subject: reference.to_string(),
        reason: format!("its layer {} is {odd} and cannot be used", layer.digest),
    })
}

fn is_foreign(layer: &Descriptor) -> bool {
    matches!(
        layer.kind(),
        Kind::Layer {
            nondistributable: true,
            ..
        }
    )
}

/// Returns what a document says it is; a document without a media type is told by its fields.
fn kind_of(raw: &[u8]) -> Kind {
    #[derive(Deserialize)]
    struct Probe {
        #[serde(rename = "mediaType")]
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    match serde_json::from_slice::<Probe>(raw) {
        Ok(Probe {
            media_type: Some(text),
            ..
        }) => media_type::kind(&text),
        Ok(Probe {
            manifests: Some(_), ..
        }) => Kind::Index,
        _ => Kind::Manifest,
    }
}

fn parse<T: serde::de::DeserializeOwned>(what: &str, raw: &[u8]) -> Result<T, EngineError> {
    serde_json::from_slice(raw).map_err(|error| EngineError::Image {
        subject: format!("{what} {}", Digest::sha256_of(raw)),
        reason: error.to_string(),
    })
}

fn parse_config(id: &Digest, raw: &[u8]) -> Result<ImageConfig, EngineError> {
    serde_json::from_slice(raw).map_err(|error| EngineError::Image {
        subject: format!("config {id}"),
        reason: error.to_string(),
    })
}

impl PinnedImage {
    /// Returns the bytes that would be fetched for it now.
    pub(crate) fn missing_bytes(&self, shared: &Shared) -> Result<u64, EngineError> {
        match &self.content {
            ImageContent::Registry(layers) => super::pull::missing_bytes(shared, layers),
            ImageContent::Store(_) => Ok(0),
        }
    }

    /// Returns the layers, unpacked; those that are missing are fetched all at once.
    pub(crate) fn unpack(
        &self,
        shared: &Shared,
        running: &progress::RunningVertex,
        cancel: &Cancel,
    ) -> Result<Vec<Layer>, EngineError> {
        match &self.content {
            ImageContent::Registry(layers) => {
                super::pull::pull(shared, &self.reference, layers, running, cancel)
            }
            ImageContent::Store(image) => {
                let ids = image.layers.as_deref().unwrap_or_default();
                shared.store.layers(ids)?.ok_or_else(|| EngineError::Image {
                    subject: self.reference.to_string(),
                    reason: "a layer of it is missing from the store".to_owned(),
                })
            }
        }
    }
}
