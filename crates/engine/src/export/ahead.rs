//! Writes layers while later steps still run.
//!
//! What a finished step adds to the image is hashed, compressed and sent as the outputs will want it. Nothing depends
//! on it: an output that finds a layer unwritten writes it, and what fails here fails there again, and is told.

use std::collections::{HashMap, VecDeque};
use std::io::{Error, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use llb::{ActionInput, Op};
use oci::Reference;
use oci::media_type::Naming;
use registry::{BlobSource, PushOptions};
use store::{Key, Layer, LayerId};

use super::layers::{self, Clamp};
use crate::request::{BuildRequest, CacheMode, CachePlace, LayerOptions, Output};
use crate::snapshot::{Snapshot, StepOutput};
use crate::step::Shared;
use crate::vertex::{VertexAction, VertexWork};
use crate::{Cancel, EngineError};

/// Layers that are written at once; each keeps all cores busy when it is compressed.
const MOST_AT_ONCE: usize = 3;

/// What an output will want of each layer.
#[derive(Debug)]
struct Form {
    options: LayerOptions,
    user: User,
    /// For the store nothing is compressed: only what names the layer is computed.
    encode: bool,
    /// Where the blob is sent.
    push: Vec<Reference>,
}

/// Who wants the layers of a form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum User {
    Image,
    /// A cache, of the layers of the image or of all results.
    Cache {
        all: bool,
    },
}

/// The layers of one build on their way.
#[derive(Debug)]
pub(crate) struct Ahead {
    inner: Arc<Inner>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    forms: Vec<Form>,
    state: Mutex<State>,
    changed: Condvar,
    cancel: Cancel,
}

#[derive(Debug, Default)]
struct State {
    watched: HashMap<Key, Vec<Watched>>,
    queue: VecDeque<Task>,
    /// By the layer, and whether it is wanted for an image or for caches of all results alone.
    known: HashMap<(LayerId, bool), Progress>,
    idle: usize,
    closed: bool,
}

/// A result whose layers are wanted.
#[derive(Debug, Clone, Copy)]
struct Watched {
    output: usize,
    /// Layers that came with the base image, where they lie at the bottom of an image.
    base: Option<usize>,
    epoch: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Waiting,
    Running,
    Done,
}

#[derive(Debug)]
struct Task {
    below: Vec<Layer>,
    layer: Layer,
    is_of_image: bool,
    from_image: bool,
    epoch: Option<i64>,
}

impl Ahead {
    /// Returns `None` where no output takes layers as the steps leave them.
    pub(crate) fn new(shared: &Arc<Shared>, request: &BuildRequest) -> Option<Arc<Self>> {
        let forms = forms(request);
        if forms.is_empty() || request.squash {
            return None;
        }
        Some(Arc::new(Self {
            inner: Arc::new(Inner {
                shared: Arc::clone(shared),
                forms,
                state: Mutex::default(),
                changed: Condvar::new(),
                cancel: Cancel::default(),
            }),
            workers: Mutex::default(),
        }))
    }

    /// Says which result becomes an image: what it is made of from below is wanted as it is.
    pub(crate) fn watch(
        &self,
        root: &Arc<VertexWork>,
        output: usize,
        base: usize,
        epoch: Option<i64>,
    ) {
        let mut state = self.inner.lock();
        let mut next = Some((Arc::clone(root), output));
        while let Some((work, output)) = next {
            let watched = Watched {
                output,
                base: Some(base),
                epoch,
            };
            state.watched.entry(work.key).or_default().push(watched);
            next = below(&work, output);
        }
    }

    /// Says which results there will be: caches may want all of them.
    pub(crate) fn watch_all(&self, works: &[Arc<VertexWork>], epoch: Option<i64>) {
        let mut forms = self.inner.forms.iter();
        if !forms.any(|form| form.user == User::Cache { all: true }) {
            return;
        }
        let mut state = self.inner.lock();
        for work in works {
            let VertexAction::Operation(op) = &work.action else {
                continue;
            };
            let base = None;
            for output in 0..op.outputs() {
                let watched = Watched {
                    output,
                    base,
                    epoch,
                };
                state.watched.entry(work.key).or_default().push(watched);
            }
        }
    }

    /// Begins to write the layers of a result, if they are wanted.
    pub(crate) fn ready(&self, key: &Key, result: &StepOutput) {
        let mut state = self.inner.lock();
        if state.closed {
            return;
        }
        for watched in state.watched.get(key).cloned().unwrap_or_default() {
            let Some(Snapshot::Layers(layers)) = result.outputs.get(watched.output) else {
                continue;
            };
            let is_of_image = watched.base.is_some();
            for (index, layer) in layers.iter().enumerate() {
                let id = layer.id();
                let is_known = |of_image| state.known.contains_key(&(id, of_image));
                // What is written for an image is written for all caches too.
                if is_known(true) || (!is_of_image && is_known(false)) {
                    continue;
                }
                let from_image = match watched.base {
                    Some(base) => index < base,
                    None => self.inner.shared.store.is_image_layer(id).unwrap_or(true),
                };
                state.known.insert((id, is_of_image), Progress::Waiting);
                state.queue.push_back(Task {
                    below: layers[..index].to_vec(),
                    layer: layer.clone(),
                    is_of_image,
                    from_image,
                    epoch: watched.epoch,
                });
            }
        }
        if state.queue.len() > state.idle {
            self.hire();
        }
        drop(state);
        self.inner.changed.notify_all();
    }

    fn hire(&self) {
        let mut workers = self.workers.lock().unwrap_or_else(|p| p.into_inner());
        if workers.len() >= MOST_AT_ONCE {
            return;
        }
        let inner = Arc::clone(&self.inner);
        let started = std::thread::Builder::new()
            .name("layers".to_owned())
            .spawn(move || inner.work());
        // Without threads to spare the output does the work.
        workers.extend(started.ok());
    }

    /// Waits for a layer that is being written; one that nobody has begun is the caller's.
    pub(crate) fn take(&self, layer: &Layer) {
        let id = layer.id();
        let mut state = self.inner.lock();
        for key in [(id, true), (id, false)] {
            if let Some(Progress::Waiting) = state.known.get(&key) {
                state.queue.retain(|task| task.key() != key);
                state.known.insert(key, Progress::Done);
            }
            while let Some(Progress::Running) = state.known.get(&key) {
                state = self
                    .inner
                    .changed
                    .wait(state)
                    .unwrap_or_else(|poison| poison.into_inner());
            }
        }
    }

    /// Stops what runs and waits for it: nothing is written for a build that has ended.
    pub(crate) fn stop(&self) {
        let mut state = self.inner.lock();
        state.closed = true;
        state.queue.clear();
        state.watched.clear();
        drop(state);
        self.inner.cancel.request();
        self.inner.changed.notify_all();
        let mut workers = self.workers.lock().unwrap_or_else(|p| p.into_inner());
        for worker in workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if state.closed {
                return;
            }
            let Some(task) = state.queue.pop_front() else {
                state.idle += 1;
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(|poison| poison.into_inner());
                state.idle -= 1;
                continue;
            };
            let (key, id) = (task.key(), task.layer.id());
            state.known.insert(key, Progress::Running);
            drop(state);
            let run = std::panic::AssertUnwindSafe(|| self.write(&task));
            match std::panic::catch_unwind(run) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, layer = id.0, "not written ahead"),
                Err(_) => tracing::warn!(layer = id.0, "writing ahead has failed"),
            }
            drop(task);
            state = self.lock();
            state.known.insert(key, Progress::Done);
            self.changed.notify_all();
        }
    }

    fn write(&self, task: &Task) -> Result<(), EngineError> {
        for form in &self.forms {
            if !task.is_of_image && form.user != (User::Cache { all: true }) {
                continue;
            }
            let clamp = Clamp {
                from_image: task.from_image,
                epoch: task.epoch,
            };
            let (below, layer, stop) = (&task.below, &task.layer, Some(&self.cancel));
            let (shared, options) = (&self.shared, &form.options);
            let encoded = match form.user {
                User::Cache { .. } => {
                    let clamp = task.epoch.filter(|_| !task.from_image);
                    layers::encode_one(shared, below, layer, clamp, options, stop)?
                }
                User::Image => {
                    let clamp = clamp.of(options);
                    if !form.encode {
                        layers::measure(shared, below, layer, clamp)?;
                        continue;
                    }
                    let naming = Naming::Oci;
                    layers::encode(shared, below, layer, clamp, options, naming, stop)?
                }
            };
            for name in &form.push {
                self.push(name, &encoded.descriptor, task)?;
            }
        }
        Ok(())
    }

    /// Sends a blob; the manifest that names it follows once the build has ended well.
    fn push(
        &self,
        name: &Reference,
        descriptor: &oci::Descriptor,
        task: &Task,
    ) -> Result<(), EngineError> {
        let images = &self.shared.images;
        let source = BlobSource::File(self.shared.store.blobs().path(&descriptor.digest));
        let from = match task.from_image {
            true => super::push::origin_of(&self.shared, &task.layer)?,
            false => None,
        };
        let options = PushOptions {
            mount_from: from.into_iter().collect(),
            ..PushOptions::default()
        };
        let push = images
            .client()
            .push_blob(name, descriptor, &source, &options);
        let stopped = Arc::new(tokio::sync::Notify::new());
        let notify = Arc::clone(&stopped);
        let _on_cancel = self.cancel.on_request(move || notify.notify_one());
        images.runtime().block_on(async {
            tokio::select! {
                pushed = push => pushed.map(drop).map_err(EngineError::from),
                () = stopped.notified() => Err(EngineError::Canceled),
            }
        })
    }
}

/// A writer that fails once it is asked to stop.
pub(crate) struct Stoppable<'a, W> {
    pub(crate) inner: W,
    pub(crate) stop: Option<&'a Cancel>,
}

impl<W: Write> Write for Stoppable<'_, W> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        if self.stop.is_some_and(Cancel::is_requested) {
            return Err(Error::other("canceled"));
        }
        self.inner.write(buffer)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// Returns in which forms the outputs want layers; each one once.
fn forms(request: &BuildRequest) -> Vec<Form> {
    let mut forms: Vec<Form> = Vec::new();
    let mut add = |user: User, options: LayerOptions, encode: bool, push: &[Reference]| {
        let known = forms
            .iter_mut()
            .find(|form| (form.user, form.encode, &form.options) == (user, encode, &options));
        match known {
            Some(form) => form.push.extend_from_slice(push),
            None => forms.push(Form {
                options,
                user,
                encode,
                push: push.to_vec(),
            }),
        }
    };
    for target in &request.cache_to {
        let all = target.mode == CacheMode::Max;
        let (user, options) = (User::Cache { all }, target.layers.clone());
        match &target.place {
            CachePlace::Registry(reference) => {
                let name = reference.clone().without_version();
                add(user, options, true, &[name]);
            }
            CachePlace::Local { .. } => add(user, options, true, &[]),
            CachePlace::Inline => {}
        }
    }
    for output in &request.outputs {
        match output {
            Output::Image(image) => {
                if image.push {
                    // Only the registry and the repository count for a blob.
                    let mut names: Vec<Reference> = Vec::new();
                    for name in request.tags.iter().chain(&image.names) {
                        let bare = name.clone().without_version();
                        if !names.contains(&bare) {
                            names.push(bare);
                        }
                    }
                    add(User::Image, image.layers.clone(), true, &names);
                }
                if image.store {
                    let options = LayerOptions {
                        rewrite_timestamp: image.layers.rewrite_timestamp,
                        ..LayerOptions::default()
                    };
                    add(User::Image, options, false, &[]);
                }
            }
            Output::Oci(archive) | Output::Docker(archive) => {
                add(User::Image, archive.layers.clone(), true, &[]);
            }
            Output::Local { .. } | Output::Tar { .. } | Output::CacheOnly => {}
        }
    }
    // What is encoded is measured on the way.
    forms.sort_by_key(|form| !form.encode);
    forms
}

impl Task {
    fn key(&self) -> (LayerId, bool) {
        (self.layer.id(), self.is_of_image)
    }
}

/// Returns the result that an output of a vertex lies on.
fn below(work: &VertexWork, output: usize) -> Option<(Arc<VertexWork>, usize)> {
    let VertexAction::Operation(op) = &work.action else {
        return None;
    };
    let input = match op {
        Op::Exec(op) => {
            let mut mounts = op.mounts.iter();
            mounts.find(|mount| mount.output == Some(output))?.input?
        }
        Op::File(op) => {
            let mut actions = op.actions.iter();
            let mut action = actions.find(|action| action.output == Some(output))?;
            loop {
                match action.input? {
                    ActionInput::Vertex(input) => break input,
                    ActionInput::Action(number) => action = op.actions.get(number)?,
                }
            }
        }
        Op::Source(_) | Op::Merge(_) | Op::Diff(_) | Op::Build(_) => return None,
    };
    work.inputs.get(input).cloned()
}
