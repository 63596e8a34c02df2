//! One vertex of a build as the driver carries it out: looked up, matched, run, recorded, shown.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use llb::Op;
use progress::{Outcome, RunningVertex, Stream, VertexHandle};
use serde::{Deserialize, Serialize};
use store::{Key, Layer, LayerId, LockNote, NamedLock, Record, Told, Waker};

use crate::cache::Wanted;
use crate::context::{ContextTree, selections_of};
use crate::driver::Work;
use crate::history::{CachedBy, Miss, UsageRecord, files};
use crate::keys::{KeyPart, hex};
use crate::matching::{InputUse, content_key, same_input};
use crate::shared_vertex::SharedVertex;
use crate::snapshot::{Snapshot, StepOutput};
use crate::source::fetched::Fetched;
use crate::source::image::PinnedImage;
use crate::staged::StagedCopy;
use crate::step::{Shared, StepContext, cache_mount, exec, file, merge};
use crate::{Cancel, EngineError};

/// A vertex and all it needs.
pub(crate) struct VertexWork {
    /// Identity in this build: [`VertexWork::record_key`], but never equal to it where a recorded
    /// result must not be used.
    pub(crate) key: Key,
    /// What the result is recorded under.
    pub(crate) record_key: Key,
    /// The operation alone, with what it takes from outside.
    pub(crate) operation: Key,
    /// What it takes from outside the graph, as part of its key.
    pub(crate) outside: Vec<KeyPart>,
    /// As shown.
    pub(crate) name: String,
    /// The vertices it uses and which output of each.
    pub(crate) inputs: Vec<(Arc<VertexWork>, usize)>,
    pub(crate) action: VertexAction,
    /// What the graph lets it take, no part of its key.
    pub(crate) resources: Option<Box<llb::LinuxResources>>,
    /// The vertex in the graph it comes from.
    pub(crate) id: llb::VertexId,
    pub(crate) context: Arc<StepContext>,
    pub(crate) handle: VertexHandle,
    /// What other builds that need it listen to.
    pub(crate) shared: SharedVertex,
    /// Recorded results of this very vertex are not used.
    pub(crate) forced: bool,
    /// Set once its end was shown.
    pub(crate) shown: AtomicBool,
    pub(crate) notes: Mutex<StepNotes>,
}

/// What the record of the build says of a step, noted while it is carried out.
#[derive(Debug, Clone, Default)]
pub(crate) struct StepNotes {
    pub(crate) cached_by: Option<CachedBy>,
    /// The cache of another machine that has the result.
    pub(crate) cached_from: Option<String>,
    pub(crate) miss: Option<Miss>,
    pub(crate) usage: Option<UsageRecord>,
    /// The layer it made, or was found to have made.
    pub(crate) layer: Option<LayerId>,
    /// The layers of its process's root.
    pub(crate) root: Option<Vec<LayerId>>,
}

/// What a vertex does.
pub(crate) enum VertexAction {
    /// An operation on its inputs.
    Operation(Op),
    /// Brings an image in.
    Image(PinnedImage),
    /// A file or a repository that was pinned when the build began.
    Fetched(Fetched),
    /// Files captured when the build began.
    Context(Arc<ContextTree>),
}

/// What is recorded with a result.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RecordInfo {
    pub(crate) name: String,
    /// Layers of each output.
    pub(crate) outputs: Vec<Vec<LayerId>>,
    /// Layers of each input; null for what was not in the store.
    pub(crate) inputs: Vec<Option<Vec<LayerId>>>,
    /// Milliseconds it took.
    pub(crate) took: u64,
    /// The key by the content of the inputs, where only that is known of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<String>,
    /// The build that made it, and the vertex it was there, which name its log.
    #[serde(default)]
    pub(crate) build: String,
    #[serde(default)]
    pub(crate) vertex: String,
}

impl RecordInfo {
    /// Says of a layer that it was copied from outside.
    pub(crate) fn of_source(name: &str, layer: LayerId) -> Self {
        Self {
            name: name.to_owned(),
            outputs: vec![vec![layer]],
            inputs: Vec::new(),
            took: 0,
            content: None,
            build: String::new(),
            vertex: String::new(),
        }
    }
}

/// Returns the tree of a source that an earlier build has recorded.
pub(crate) fn recorded_source(
    shared: &Shared,
    fetched: &Fetched,
) -> Result<Option<Vec<Layer>>, EngineError> {
    let key = crate::plan::definition_of(&fetched.operation_key()).finish();
    let Some(record) = shared.store.find(&key)? else {
        return Ok(None);
    };
    let Ok(info) = serde_json::from_value::<RecordInfo>(record.info) else {
        return Ok(None);
    };
    match info.outputs.as_slice() {
        [layers] => Ok(shared.store.layers(layers)?),
        _ => Ok(None),
    }
}

/// How many earlier results of an operation are compared by content.
const MOST_CANDIDATES: usize = 16;

impl VertexWork {
    /// Returns whether recorded results may be used by key.
    fn may_look_up(&self) -> bool {
        self.key == self.record_key
    }

    /// Returns what was noted of it.
    pub(crate) fn notes(&self) -> MutexGuard<'_, StepNotes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_cached(&self, by: CachedBy, output: &StepOutput) {
        let mut notes = self.notes();
        notes.cached_by = Some(by);
        notes.layer = output.outputs.first().and_then(Snapshot::top);
    }

    /// Finds out why no recorded result is used; called when the step is about to run.
    fn note_miss(&self) {
        let mut notes = self.notes();
        if self.forced {
            notes.miss = Some(Miss::NoCache);
        } else if notes.miss.is_none() {
            let buried = self.context.store.tombstone(&self.record_key);
            notes.miss = Some(match buried {
                Ok(Some((at, rule))) => Miss::Evicted { at, rule },
                _ => Miss::NotFound,
            });
        }
    }

    /// Returns whether a result of so many outputs can be one of this vertex.
    fn has_outputs(&self, count: usize) -> bool {
        match &self.action {
            VertexAction::Operation(op) => count == op.outputs(),
            _ => count == 1,
        }
    }

    fn output_of(&self, record: &Record) -> Result<Option<Arc<StepOutput>>, EngineError> {
        let info: RecordInfo = match serde_json::from_value(record.info.clone()) {
            Ok(info) => info,
            Err(error) => {
                tracing::warn!(%error, name = self.name, "a record is not readable");
                return Ok(None);
            }
        };
        if !self.has_outputs(info.outputs.len()) {
            tracing::warn!(name = self.name, "a record has other outputs than the step");
            return Ok(None);
        }
        let mut outputs = Vec::with_capacity(info.outputs.len());
        for layers in &info.outputs {
            match self.context.store.layers(layers)? {
                Some(layers) => outputs.push(Snapshot::Layers(layers)),
                None => return Ok(None),
            }
        }
        Ok(Some(Arc::new(StepOutput { outputs })))
    }

    /// Returns whether its result would be found by its key, and notes why not.
    pub(crate) fn foresee(&self) -> Result<bool, EngineError> {
        if matches!(self.action, VertexAction::Context(_)) {
            return Ok(true);
        }
        if self.may_look_up()
            && let Some(record) = self.context.store.find(&self.record_key)?
        {
            if let Some(output) = self.output_of(&record)? {
                self.note_cached(CachedBy::Definition, &output);
                return Ok(true);
            }
            self.notes().miss = Some(Miss::Lost);
        }
        if self.may_fetch() {
            self.note_source(Wanted::Key(&self.record_key));
            self.notes().cached_by = Some(CachedBy::Imported);
            return Ok(true);
        }
        self.note_miss();
        Ok(false)
    }

    /// Shows this vertex, and what it covers, as cached: inputs first.
    pub(crate) fn show_cached(&self) {
        let mut stack: Vec<(&VertexWork, usize)> = vec![(self, 0)];
        while let Some((vertex, next)) = stack.pop() {
            if vertex.shown.load(Ordering::SeqCst) {
                continue;
            }
            match vertex.inputs.get(next) {
                Some((input, _)) => {
                    stack.push((vertex, next + 1));
                    stack.push((input, 0));
                }
                None => {
                    if !vertex.shown.swap(true, Ordering::SeqCst) {
                        vertex.handle.cached();
                    }
                }
            }
        }
    }

    /// Lets the outputs' work on the layers of this result begin, while other steps still run.
    fn begin_layers(&self, output: &StepOutput) {
        if let Some(ahead) = &self.context.ahead {
            ahead.ready(&self.key, output);
        }
    }

    /// Returns the trees of the inputs, in the order the operation numbers them.
    fn trees(&self, inputs: &[Arc<StepOutput>]) -> Vec<Snapshot> {
        let edges = self.inputs.iter().zip(inputs);
        edges
            .map(|((_, output), input)| input.outputs[*output].clone())
            .collect()
    }

    /// Tells of each input whether recorded results of it do not count.
    ///
    /// Clients' frontends say so of a step alone, not of the directory that they make for it to begin a cache mount with.
    fn inputs_made_anew(&self) -> Vec<bool> {
        let inputs = self.inputs.iter().map(|(input, _)| input);
        let is_made_for_it = |input: &VertexWork| {
            let is_file = matches!(input.action, VertexAction::Operation(Op::File(_)));
            is_file && input.inputs.is_empty()
        };
        inputs
            .map(|input| input.forced || (self.forced && is_made_for_it(input)))
            .collect()
    }

    /// Waits until no other build runs this step; meanwhile shows what it prints there.
    fn claim(&self, running: &RunningVertex, cancel: &Cancel) -> Result<Claim, EngineError> {
        let name = format!("step-{}", hex(&self.key));
        let store = &self.context.store;
        let (lock, shown) = match store.try_lock(&name)? {
            Some(lock) => (lock, None),
            None => {
                let (lock, bytes) = self.follow(&name, running, cancel)?;
                (lock, Some(bytes))
            }
        };
        let mut claim = Claim {
            lock,
            waited: shown.is_some(),
        };
        if !self.context.log.is_empty() {
            let note = LockNote {
                build: self.context.log.clone(),
                log: self.handle.digest().hex().to_owned(),
                skip: shown.unwrap_or(0),
            };
            if let Err(error) = claim.lock.note(&note) {
                tracing::warn!(%error, "nobody can follow this step");
            }
        }
        Ok(claim)
    }

    /// Waits for a step that another build runs. Returns how many bytes of its log were shown.
    fn follow(
        &self,
        name: &str,
        running: &RunningVertex,
        cancel: &Cancel,
    ) -> Result<(NamedLock, u64), EngineError> {
        let waker = Waker::new()?;
        let stop = waker.clone();
        let _guard = cancel.on_request(move || stop.stop());
        let mut bytes = 0;
        let mut holder = None;
        let loggers = [Stream::Stdout, Stream::Stderr].map(|stream| running.logger(stream));
        let mut tell = |told: Told| match told {
            Told::Holder(build) => {
                let status = running.status(format!("shared with build {build}, which runs it"));
                if let Some(before) = holder.replace(status) {
                    before.finish(0);
                }
            }
            Told::Log(piece) => {
                bytes += piece.data.len() as u64;
                let logger = &loggers[usize::from(piece.stream != Stream::Stdout.number())];
                logger.log(piece.data);
            }
        };
        let waiting = running.status("waiting for another build that runs this step");
        let lock = self.context.store.lock_and_follow(name, &waker, &mut tell);
        waiting.finish(0);
        if let Some(holder) = holder {
            holder.finish(0);
        }
        match lock? {
            Some(lock) => Ok((lock, bytes)),
            None => Err(EngineError::Canceled),
        }
    }

    fn carry_out(
        &self,
        trees: &[Snapshot],
        running: &RunningVertex,
        cancel: &Cancel,
    ) -> Result<Vec<Snapshot>, EngineError> {
        match &self.action {
            VertexAction::Context(tree) => Ok(vec![Snapshot::Context(Arc::clone(tree))]),
            VertexAction::Image(image) => {
                let layers = image.unpack(&self.context.shared, running, cancel)?;
                Ok(vec![Snapshot::Layers(layers)])
            }
            VertexAction::Fetched(fetched) => {
                let access = self.context.git_access();
                let layers = fetched.unpack(&self.context.shared, &access, running)?;
                Ok(vec![Snapshot::Layers(layers)])
            }
            VertexAction::Operation(op) => match op {
                Op::Exec(op) => {
                    let mut usage = None;
                    let name = &self.name;
                    self.notes().root = root_of(op, trees);
                    let forced: Vec<bool> = self.inputs_made_anew();
                    cache_mount::renew(&self.context, op, trees, &forced, cancel)?;
                    let inputs = exec::Inputs {
                        trees,
                        staged: self.staged(trees)?,
                        resources: self.resources.as_deref(),
                    };
                    let (context, usage_of) = (&self.context, &mut usage);
                    let result = exec::run(context, op, &inputs, running, name, cancel, usage_of);
                    self.notes().usage = usage.map(UsageRecord::from);
                    result
                }
                Op::File(op) => {
                    let staged = self.staged(trees)?;
                    file::run(&self.context, staged, op, trees, &self.name, cancel)
                }
                Op::Merge(op) => merge::merge(&self.context, op, trees),
                Op::Diff(op) => merge::diff(&self.context, op, trees),
                Op::Build(_) => Err(EngineError::Unsupported("a nested build".to_owned())),
                Op::Source(op) => Err(EngineError::Unsupported(format!(
                    "the source {}",
                    op.identifier
                ))),
            },
        }
    }

    /// Returns what the operation takes of contexts, copied for it, by the number of the input.
    fn staged(&self, trees: &[Snapshot]) -> Result<BTreeMap<usize, Arc<StagedCopy>>, EngineError> {
        let VertexAction::Operation(op) = &self.action else {
            return Ok(BTreeMap::new());
        };
        let contexts = trees.iter().enumerate().filter_map(|(number, tree)| {
            let Snapshot::Context(tree) = tree else {
                return None;
            };
            let staged = selections_of(op, number)
                .and_then(|selections| tree.staged(&self.context.shared, self.id, &selections));
            Some(staged.map(|copy| (number, copy)))
        });
        contexts.collect()
    }

    /// Keeps the names and digests of the files taken from contexts, for who asks what changed.
    fn keep_file_lists(&self) {
        let VertexAction::Operation(op) = &self.action else {
            return;
        };
        for (number, (input, _)) in self.inputs.iter().enumerate() {
            if let VertexAction::Context(tree) = &input.action
                && let Err(error) = files::keep(&self.context.shared, tree, op, number)
            {
                tracing::warn!(%error, name = self.name, "a list of files is not kept");
            }
        }
    }

    fn note_source(&self, wanted: Wanted<'_>) {
        let source = self.context.imports.source_of(wanted).map(str::to_owned);
        self.notes().cached_from = source;
    }

    /// Takes a result from a cache of another machine, and records it.
    fn bring_in(
        &self,
        wanted: Wanted<'_>,
        trees: &[Snapshot],
        cancel: &Cancel,
    ) -> Result<Option<Arc<StepOutput>>, EngineError> {
        let running = self.handle.start();
        let shared = &self.context.shared;
        let imports = &self.context.imports;
        let fetched = match imports.fetch(shared, wanted, &running, cancel) {
            Ok(Some(fetched)) => fetched,
            Ok(None) | Err(EngineError::Canceled) => return Ok(None),
            Err(error) => {
                let text = crate::error::chain(&error);
                running.warn(format!("a cached result cannot be used: {text}"));
                return Ok(None);
            }
        };
        if !self.has_outputs(fetched.outputs.len()) {
            running.warn("a cached result cannot be used: it has other outputs than the step");
            return Ok(None);
        }
        let outputs: Vec<Snapshot> = fetched.outputs.into_iter().map(Snapshot::Layers).collect();
        let took = Duration::from_millis(fetched.took);
        self.record(&outputs, trees, fetched.content, took)?;
        let output = StepOutput { outputs };
        self.note_source(wanted);
        self.note_cached(CachedBy::Imported, &output);
        self.shown.store(true, Ordering::SeqCst);
        self.inputs
            .iter()
            .for_each(|(input, _)| input.show_cached());
        running.complete(Outcome::Cached);
        self.begin_layers(&output);
        Ok(Some(Arc::new(output)))
    }

    fn record(
        &self,
        outputs: &[Snapshot],
        trees: &[Snapshot],
        content: Option<Key>,
        took: Duration,
    ) -> Result<(), EngineError> {
        let layers: Option<Vec<Vec<LayerId>>> = outputs.iter().map(Snapshot::layer_ids).collect();
        let Some(outputs) = layers else {
            return Ok(());
        };
        let mut all: Vec<LayerId> = outputs.iter().flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        let info = RecordInfo {
            name: self.name.clone(),
            outputs,
            inputs: trees.iter().map(Snapshot::layer_ids).collect(),
            took: took.as_millis() as u64,
            content: content.map(|key| hex(&key)),
            build: self.context.build.clone(),
            vertex: self.id.digest().hex().to_owned(),
        };
        let info = serde_json::to_value(info).expect("a record can be written as JSON");
        let keys = [self.record_key];
        let store = &self.context.store;
        store.record(&self.operation, &keys, &all, &info)?;
        Ok(())
    }
}

struct Claim {
    lock: NamedLock,
    waited: bool,
}

impl Work for VertexWork {
    type Output = StepOutput;

    fn join(&self, other: &Self) {
        self.shared.join(&other.shared);
    }

    fn look_up(&self) -> Result<Option<Arc<StepOutput>>, EngineError> {
        if let VertexAction::Context(tree) = &self.action {
            self.shown.store(true, Ordering::SeqCst);
            return Ok(Some(Arc::new(StepOutput {
                outputs: vec![Snapshot::Context(Arc::clone(tree))],
            })));
        }
        if !self.may_look_up() {
            return Ok(None);
        }
        let Some(record) = self.context.store.find(&self.record_key)? else {
            return Ok(None);
        };
        let output = self.output_of(&record)?;
        match &output {
            Some(output) => {
                self.note_cached(CachedBy::Definition, output);
                self.show_cached();
                self.begin_layers(output);
            }
            None => self.notes().miss = Some(Miss::Lost),
        }
        Ok(output)
    }

    fn may_fetch(&self) -> bool {
        self.may_look_up() && self.context.imports.has(&self.record_key)
    }

    fn fetch(&self, cancel: &Cancel) -> Result<Option<Arc<StepOutput>>, EngineError> {
        // Nothing is known of what its inputs held where it was made, but perhaps their content's key.
        self.bring_in(Wanted::Key(&self.record_key), &[], cancel)
    }

    fn may_match(&self) -> bool {
        // What must run again must not be found by its content either; what lies above it may.
        let possible = !self.forced && !self.inputs.is_empty();
        let store = &self.context.store;
        possible
            && (self.context.imports.knows_operation(&self.operation)
                || store.knows_operation(&self.operation).unwrap_or(false))
    }

    fn match_inputs(
        &self,
        inputs: &[Arc<StepOutput>],
        cancel: &Cancel,
    ) -> Result<Option<Arc<StepOutput>>, EngineError> {
        let VertexAction::Operation(op) = &self.action else {
            return Ok(None);
        };
        let trees = self.trees(inputs);
        let uses = InputUse::of(op, trees.len());
        let store = &self.context.store;
        let shared = &self.context.shared;
        // Computed when it is first asked for.
        let mut content = None;
        let mut content = || -> Result<Key, EngineError> {
            match content {
                Some(known) => Ok(known),
                None => {
                    let found = content_key(shared, &self.operation, &trees, &uses)?;
                    Ok(*content.insert(found))
                }
            }
        };
        'candidates: for record in store.results_of(&self.operation, MOST_CANDIDATES)? {
            let Ok(info) = serde_json::from_value::<RecordInfo>(record.info.clone()) else {
                continue;
            };
            if info.inputs.len() != trees.len() {
                // It came from another machine, perhaps with what its inputs held there.
                let Some(then) = &info.content else { continue };
                if *then != hex(&content()?) {
                    continue;
                }
            }
            for ((tree, then), uses) in trees.iter().zip(&info.inputs).zip(&uses) {
                if cancel.is_requested() {
                    return Err(EngineError::Canceled);
                }
                if !same_input(&self.context.shared, tree, then.as_deref(), uses)? {
                    continue 'candidates;
                }
            }
            if let Some(output) = self.output_of(&record)? {
                store.alias(&self.operation, &[self.record_key], record.result)?;
                self.note_cached(CachedBy::Content, &output);
                self.show_cached();
                self.begin_layers(&output);
                return Ok(Some(output));
            }
        }
        let imports = &self.context.imports;
        if imports.knows_operation(&self.operation) {
            let content = content()?;
            if imports.has_content(&content) {
                return self.bring_in(Wanted::Content(&content), &trees, cancel);
            }
        }
        Ok(None)
    }

    fn run(
        &self,
        inputs: &[Arc<StepOutput>],
        cancel: &Cancel,
    ) -> Result<Arc<StepOutput>, EngineError> {
        let running = self.handle.start();
        self.shown.store(true, Ordering::SeqCst);
        let claim = match self.claim(&running, cancel) {
            Ok(claim) => claim,
            Err(error) => return Err(end(running, error)),
        };
        if self.may_look_up() {
            // Whoever ran it since it was looked up, waited for or not, has recorded the result or has failed.
            let found = self.context.store.find(&self.record_key)?;
            if let Some(output) = found
                .map(|record| self.output_of(&record))
                .transpose()?
                .flatten()
            {
                self.note_cached(CachedBy::OtherBuild, &output);
                running.complete(Outcome::Cached);
                self.begin_layers(&output);
                return Ok(output);
            }
            if claim.waited {
                // It failed there, or its builder has died.
                let text = "the other build has not finished this step: it runs here";
                running.status(text).finish(0);
            }
        }
        self.note_miss();
        let began = std::time::Instant::now();
        let trees = self.trees(inputs);
        let result = self
            .carry_out(&trees, &running, cancel)
            .and_then(|outputs| {
                self.notes().layer = outputs.first().and_then(Snapshot::top);
                self.keep_file_lists();
                self.record(&outputs, &trees, None, began.elapsed())?;
                Ok(StepOutput { outputs })
            });
        match result {
            Ok(output) => {
                running.complete(Outcome::Done);
                self.begin_layers(&output);
                Ok(Arc::new(output))
            }
            Err(error) => Err(end(running, error)),
        }
    }
}

/// Returns the layers of a process's root.
fn root_of(op: &llb::ExecOp, trees: &[Snapshot]) -> Option<Vec<LayerId>> {
    let root = op.mounts.iter().find(|mount| mount.dest == "/")?;
    match root.input {
        Some(input) => trees.get(input)?.layer_ids(),
        None => Some(Vec::new()),
    }
}

fn end(running: RunningVertex, error: EngineError) -> EngineError {
    let outcome = match &error {
        EngineError::Canceled => Outcome::Canceled,
        error => Outcome::Failed {
            error: error.to_string(),
        },
    };
    running.complete(outcome);
    error
}
