//! Brings the layers of an image in: downloaded, checked, inflated and unpacked at the same time.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use oci::{Descriptor, Digest, Reference};
use progress::RunningVertex;
use rootfs::apply::{Applied, ApplyOptions, Devices, Ownership, apply_layer, mend};
use rootfs::{Form, LayerDir, OverlayXattrs};
use sha2::{Digest as _, Sha256};
use store::{BlobWriter, Encoding, Ids, Layer, LayerInfo, MutLayer, NamedLock, Store};

use crate::step::Shared;
use crate::{Cancel, EngineError};

/// A layer on its way.
enum Fetched {
    /// It was there.
    Present(Layer),
    /// Unpacked by itself, to be mended with what lies below.
    Unpacked(Box<Unpacked>),
}

/// `None` where somebody else brings the layer in: another build, or another place of this image that has it too.
type Tried = Option<Fetched>;

struct Unpacked {
    layer: MutLayer,
    applied: Applied,
    /// Given up early by who has to wait for others.
    lock: Option<NamedLock>,
}

/// Returns the layers of an image; what is missing is fetched, all layers at once.
pub(crate) fn pull(
    shared: &Shared,
    reference: &Reference,
    layers: &[(Descriptor, Digest)],
    running: &RunningVertex,
    cancel: &Cancel,
) -> Result<Vec<Layer>, EngineError> {
    let chain_keys = chain_keys(layers);
    let results: Mutex<Vec<Option<Result<Tried, EngineError>>>> =
        Mutex::new(layers.iter().map(|_| None).collect());
    let stop = Cancel::default();
    let forward = {
        let stop = stop.clone();
        cancel.on_request(move || stop.request())
    };
    let next = AtomicU64::new(0);
    let workers = layers.len().min(MOST_AT_ONCE);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::SeqCst) as usize;
                    let Some((descriptor, diff_id)) = layers.get(index) else {
                        return;
                    };
                    let fetched = fetch(
                        shared,
                        reference,
                        descriptor,
                        diff_id,
                        &chain_keys[index],
                        running,
                        &stop,
                    );
                    if fetched.is_err() {
                        stop.request();
                    }
                    let mut results = results.lock().unwrap_or_else(|poison| poison.into_inner());
                    results[index] = Some(fetched);
                }
            });
        }
    });
    drop(forward);
    let results = results
        .into_inner()
        .unwrap_or_else(|poison| poison.into_inner());
    let mut fetched = Vec::with_capacity(layers.len());
    let mut canceled = None;
    for result in results {
        match result {
            Some(Ok(layer)) => fetched.push(layer),
            // The others were only stopped because of the one that failed.
            Some(Err(EngineError::Canceled)) | None => canceled = Some(EngineError::Canceled),
            Some(Err(error)) => return Err(error),
        }
    }
    if let Some(error) = canceled {
        return Err(error);
    }
    publish(
        shared,
        reference,
        layers,
        &chain_keys,
        fetched,
        running,
        cancel,
    )
}

/// Layers that are fetched at once.
const MOST_AT_ONCE: usize = 8;

/// Returns the key of each layer as it is on top of those below it (image-spec, config.md, chain id).
fn chain_keys(layers: &[(Descriptor, Digest)]) -> Vec<String> {
    let mut chain: Option<String> = None;
    let mut keys = Vec::with_capacity(layers.len());
    for (_, diff_id) in layers {
        let id = match chain {
            None => diff_id.to_string(),
            Some(below) => {
                let hash: [u8; 32] = Sha256::digest(format!("{below} {diff_id}")).into();
                Digest::from_sha256(hash).to_string()
            }
        };
        keys.push(format!("chain:{id}"));
        chain = Some(id);
    }
    keys
}

fn diff_key(diff_id: &Digest) -> String {
    format!("diff:{diff_id}")
}

/// Returns which of the layers are not unpacked yet.
pub(crate) fn missing(
    shared: &Shared,
    layers: &[(Descriptor, Digest)],
) -> Result<Vec<Descriptor>, EngineError> {
    let mut missing = Vec::new();
    for ((descriptor, diff_id), chain_key) in layers.iter().zip(chain_keys(layers)) {
        if find(shared, diff_id, &chain_key)?.is_none() {
            missing.push(descriptor.clone());
        }
    }
    Ok(missing)
}

fn find(shared: &Shared, diff_id: &Digest, chain_key: &str) -> Result<Option<Layer>, EngineError> {
    match shared.store.layer_of_image(&diff_key(diff_id))? {
        Some(layer) => Ok(Some(layer)),
        None => Ok(shared.store.layer_of_image(chain_key)?),
    }
}

/// Returns the layers if all are unpacked.
pub(crate) fn present(
    shared: &Shared,
    layers: &[(Descriptor, Digest)],
) -> Result<Option<Vec<Layer>>, EngineError> {
    let mut found = Vec::with_capacity(layers.len());
    for ((_, diff_id), chain_key) in layers.iter().zip(chain_keys(layers)) {
        match find(shared, diff_id, &chain_key)? {
            Some(layer) => found.push(layer),
            None => return Ok(None),
        }
    }
    Ok(Some(found))
}

/// Returns the bytes of the layers that are neither unpacked nor kept as they came.
pub(crate) fn missing_bytes(
    shared: &Shared,
    layers: &[(Descriptor, Digest)],
) -> Result<u64, EngineError> {
    let mut bytes = 0;
    for ((descriptor, diff_id), chain_key) in layers.iter().zip(chain_keys(layers)) {
        let is_here = shared.store.blobs().size(&descriptor.digest) == Some(descriptor.size);
        if !is_here && find(shared, diff_id, &chain_key)?.is_none() {
            bytes += descriptor.size;
        }
    }
    Ok(bytes)
}

fn fetch(
    shared: &Shared,
    reference: &Reference,
    descriptor: &Descriptor,
    diff_id: &Digest,
    chain_key: &str,
    running: &RunningVertex,
    stop: &Cancel,
) -> Result<Tried, EngineError> {
    if let Some(layer) = find(shared, diff_id, chain_key)? {
        return Ok(Some(Fetched::Present(layer)));
    }
    // Not waited for: who holds it may wait for what is held here.
    let Some(lock) = shared.store.try_lock(&lock_name(diff_id))? else {
        return Ok(None);
    };
    if let Some(layer) = find(shared, diff_id, chain_key)? {
        return Ok(Some(Fetched::Present(layer)));
    }
    let is_kept = shared.store.blobs().size(&descriptor.digest) == Some(descriptor.size);
    let mut attempts = if is_kept { MOST_ATTEMPTS } else { 1 };
    loop {
        let layer = shared.store.new_layer()?;
        let applied = download(
            shared, reference, descriptor, diff_id, &layer, running, stop,
        );
        match applied {
            Err(EngineError::Layer { source, .. })
                if attempts < MOST_ATTEMPTS && may_have_changed_on_the_way(&source) =>
            {
                attempts += 1;
            }
            applied => {
                return Ok(Some(Fetched::Unpacked(Box::new(Unpacked {
                    applied: applied?,
                    layer,
                    lock: Some(lock),
                }))));
            }
        }
    }
}

/// How often a layer is fetched that comes as something else than its digest says. What is cut or refused the client
/// has asked for again by itself.
const MOST_ATTEMPTS: u32 = 3;

/// Tells whether other bytes than those of the registry explain a failure: they are unpacked before the last of them
/// is there to check them all.
fn may_have_changed_on_the_way(error: &rootfs::Error) -> bool {
    use registry::RegistryError::{DigestMismatch, SizeMismatch};
    match error {
        rootfs::Error::ReadLayer { source } => {
            let cause = source.get_ref().and_then(|cause| cause.downcast_ref());
            matches!(cause, Some(DigestMismatch { .. } | SizeMismatch { .. }))
        }
        rootfs::Error::Decompress { .. }
        | rootfs::Error::MalformedTar { .. }
        | rootfs::Error::TruncatedTar
        | rootfs::Error::RefusedEntry { .. } => true,
        _ => false,
    }
}

fn lock_name(diff_id: &Digest) -> String {
    format!("unpack-{}", diff_id.hex())
}

/// Waits for a layer that somebody else brings in, or brings it in when they have not. Nothing may be held meanwhile.
fn fetch_after_others(
    shared: &Shared,
    reference: &Reference,
    (descriptor, diff_id): &(Descriptor, Digest),
    chain_key: &str,
    running: &RunningVertex,
    cancel: &Cancel,
) -> Result<Fetched, EngineError> {
    loop {
        let (store, name) = (shared.store.clone(), lock_name(diff_id));
        let waited = cancel.wait_for(move || store.lock(&name))?;
        drop(waited.ok_or(EngineError::Canceled)??);
        let tried = fetch(
            shared, reference, descriptor, diff_id, chain_key, running, cancel,
        )?;
        if let Some(fetched) = tried {
            return Ok(fetched);
        }
    }
}

/// Unpacks a layer from its blob in the store, or from the registry while its blob is kept.
fn download(
    shared: &Shared,
    reference: &Reference,
    descriptor: &Descriptor,
    diff_id: &Digest,
    layer: &MutLayer,
    running: &RunningVertex,
    stop: &Cancel,
) -> Result<Applied, EngineError> {
    let path = layer.path();
    let dir = LayerDir::open(&path)?;
    let options = options(&shared.store, Some(diff_id));
    let short = format!("{}", descriptor.digest);
    let blobs = shared.store.blobs();
    if blobs.size(&descriptor.digest) == Some(descriptor.size) {
        let status = running.status_of(&short, "extracting", descriptor.size);
        let file = blobs.open(&descriptor.digest)?;
        let applied = apply_layer(Stoppable { inner: file, stop }, &dir, &options);
        if stop.is_requested() && applied.is_err() {
            return Err(EngineError::Canceled);
        }
        let applied = applied.map_err(unpacking(reference, descriptor))?;
        status.finish(descriptor.size);
        return check_blob(descriptor, applied);
    }
    let status = running.status_of(&short, "downloading", descriptor.size);
    let (sender, told) = std::sync::mpsc::channel();
    let progress: registry::Progress = {
        let last = Arc::new(AtomicU64::new(0));
        let sender = Mutex::new(sender);
        Arc::new(move |done| {
            // A megabyte at a time is often enough for eyes.
            if done < last.load(Ordering::Relaxed) + (1 << 20) {
                return;
            }
            last.store(done, Ordering::Relaxed);
            if let Ok(sender) = sender.lock() {
                let _ = sender.send(done);
            }
        })
    };
    let images = &shared.images;
    let handle = images.runtime().handle();
    let reader = images
        .client()
        .blob_reader(handle, reference, descriptor, Some(progress));
    let mut writer = blobs.writer_of_hashed()?;
    let shown = &status;
    let tee = Tee {
        inner: Stoppable {
            inner: reader,
            stop,
        },
        writer: &mut writer,
        tick: move || {
            if let Some(done) = told.try_iter().last() {
                shown.update(done);
            }
        },
    };
    let applied = apply_layer(tee, &dir, &options);
    if stop.is_requested() && applied.is_err() {
        return Err(EngineError::Canceled);
    }
    let applied = applied.map_err(unpacking(reference, descriptor))?;
    let applied = check_blob(descriptor, applied)?;
    writer.commit_volatile(Some((&descriptor.digest, descriptor.size)))?;
    status.finish(descriptor.size);
    Ok(applied)
}

/// Names what could not be unpacked.
fn unpacking(
    reference: &Reference,
    descriptor: &Descriptor,
) -> impl FnOnce(rootfs::Error) -> EngineError {
    let (digest, reference) = (descriptor.digest.clone(), Box::new(reference.clone()));
    move |source| EngineError::Layer {
        digest,
        reference,
        source,
    }
}

fn check_blob(descriptor: &Descriptor, applied: Applied) -> Result<Applied, EngineError> {
    if applied.blob != descriptor.digest {
        return Err(EngineError::LayerMismatch {
            digest: descriptor.digest.clone(),
            expected: descriptor.digest.clone(),
            actual: applied.blob,
        });
    }
    Ok(applied)
}

/// Returns how layers of images are unpacked into a store.
pub(crate) fn options(store: &Store, diff_id: Option<&Digest>) -> ApplyOptions {
    let xattrs = match store.ids() {
        Ids::Rootful => OverlayXattrs::Trusted,
        Ids::Rootless { .. } => OverlayXattrs::User,
    };
    let mut options = ApplyOptions::new(Form::Overlay(xattrs));
    options.diff_id = diff_id.cloned();
    if let Ids::Rootless { .. } = store.ids() {
        options.devices = Devices::Skip;
    }
    if store.ids().is_single() {
        options.ownership = Ownership::Ignore;
    }
    options
}

/// Mends each layer with those below it and commits it, the lowest first.
fn publish(
    shared: &Shared,
    reference: &Reference,
    layers: &[(Descriptor, Digest)],
    chain_keys: &[String],
    mut tried: Vec<Tried>,
    running: &RunningVertex,
    cancel: &Cancel,
) -> Result<Vec<Layer>, EngineError> {
    let mut done: Vec<Layer> = Vec::with_capacity(tried.len());
    if tried.iter().any(Option::is_none) {
        // Whoever waits with locks in hand may be waited for. Without them the worst is work done twice.
        for tried in &mut tried {
            if let Some(Fetched::Unpacked(unpacked)) = tried {
                unpacked.lock = None;
            }
        }
    }
    for (index, tried) in tried.into_iter().enumerate() {
        let (descriptor, diff_id) = &layers[index];
        let fetched = match tried {
            Some(fetched) => fetched,
            None => {
                let key = &chain_keys[index];
                fetch_after_others(shared, reference, &layers[index], key, running, cancel)?
            }
        };
        let unpacked = match fetched {
            Fetched::Present(layer) => {
                done.push(layer);
                continue;
            }
            Fetched::Unpacked(unpacked) => *unpacked,
        };
        let depends = match done.is_empty() {
            true => false,
            false => {
                let dir = LayerDir::open(unpacked.layer.path())?;
                let form = Form::Overlay(shared.xattrs());
                mend(&dir, form, &unpacked.applied, &shared.tree(&done)?)?
            }
        };
        let key = match depends {
            true => chain_keys[index].clone(),
            false => diff_key(diff_id),
        };
        let info = LayerInfo {
            tar: Some((diff_id.clone(), unpacked.applied.size)),
            content_id: None,
            bytes: unpacked.applied.content_size,
            content: unpacked.applied.content_size,
            origin: reference.familiar(),
            created: shared.store.now(),
        };
        done.push(unpacked.layer.commit_unpacked(info, &key)?);
        let encoding = Encoding {
            media_type: descriptor.media_type.clone(),
            digest: descriptor.digest.clone(),
            size: descriptor.size,
        };
        shared
            .store
            .set_encoding(diff_id, Encoding::ORIGINAL, &encoding)?;
    }
    Ok(done)
}

/// A reader that fails once it is asked to stop.
pub(crate) struct Stoppable<'a, R> {
    pub(crate) inner: R,
    pub(crate) stop: &'a Cancel,
}

impl<R: Read> Read for Stoppable<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.stop.is_requested() {
            return Err(std::io::Error::other("canceled"));
        }
        self.inner.read(buffer)
    }
}

/// A reader that keeps what it gives.
struct Tee<'a, R, F> {
    inner: R,
    writer: &'a mut BlobWriter,
    tick: F,
}

impl<R: Read, F: FnMut()> Read for Tee<'_, R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        (self.tick)();
        self.writer
            .append(&buffer[..count])
            .map_err(std::io::Error::other)?;
        Ok(count)
    }
}
