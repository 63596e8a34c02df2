//! Listens to a build and keeps what it tells.
//!
//! Everything goes on to who shows it. Nothing is written while a build only finds what it needs; the first step
//! that prints something gets the build its folder. What cannot be written down is no reason to fail a build.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oci::Digest;
use progress::{Event, Log, Outcome, Receiver, Sink, Status, Vertex, VertexState, Warning};
use store::{BuildFolder, LogWriter, Store};

use crate::request::BuildRequest;

use super::record::{
    BuildRecord, GroupRecord, StepOutcome, StepRecord, TransferRecord, WarningRecord,
    nanoseconds_of,
};

/// How many transfers of a step are kept; layers of an image are fewer.
const MOST_TRANSFERS: usize = 1000;
/// How many warnings of a build are kept.
const MOST_WARNINGS: usize = 1000;

/// Records one build.
pub(crate) struct Recorder {
    listener: Arc<Listener>,
    sink: Sink,
}

struct Listener {
    next: Sink,
    store: Store,
    /// What is known before the end, kept with the logs should there be no end.
    opening: BuildRecord,
    seen: Mutex<AllSeen>,
    folder: Mutex<Folder>,
}

#[derive(Default)]
struct AllSeen {
    /// In the order they were announced.
    steps: Vec<Seen>,
    index: HashMap<Digest, usize>,
    warnings: Vec<WarningRecord>,
}

struct Seen {
    vertex: Arc<Vertex>,
    state: VertexState,
    transfers: Vec<TransferRecord>,
    log: Arc<Mutex<StepLog>>,
}

#[derive(Default)]
struct StepLog {
    writer: Option<LogWriter>,
    printed: u64,
    failed: bool,
}

enum Folder {
    /// Nothing had to be written yet.
    None,
    Open(BuildFolder),
    /// It could not be made; said once.
    Failed,
}

struct Tap(Arc<Listener>);

impl Receiver for Tap {
    fn receive(&self, event: Event) {
        self.0.note(&event);
        self.0.next.send(event);
    }
}

impl Recorder {
    /// Begins a record. `opening` has what is known before the build.
    pub(crate) fn new(store: &Store, opening: BuildRecord, next: &Sink) -> Self {
        let listener = Arc::new(Listener {
            next: next.clone(),
            store: store.clone(),
            opening,
            seen: Mutex::default(),
            folder: Mutex::new(Folder::None),
        });
        let sink = next.with_receiver(Tap(Arc::clone(&listener)));
        Self { listener, sink }
    }

    /// Returns where the build tells what happens.
    pub(crate) fn sink(&self) -> &Sink {
        &self.sink
    }

    /// Returns when the build began.
    pub(crate) fn started(&self) -> oci::Timestamp {
        self.listener.opening.started
    }

    /// Returns the build's id.
    pub(crate) fn id(&self) -> &str {
        &self.listener.opening.id
    }

    /// Makes a record of what was told, with the bytes that were printed.
    pub(crate) fn finish(&self) -> (BuildRecord, u64) {
        let mut seen = lock(&self.listener.seen);
        let mut record = self.listener.opening.clone();
        record.completed = Some(self.sink.now());
        record.steps = seen.steps.iter().map(Seen::record).collect();
        record.warnings = std::mem::take(&mut seen.warnings);
        let printed = record.steps.iter().map(|step| step.printed).sum();
        (record, printed)
    }

    /// Gives up the build's folder, after its record was written.
    pub(crate) fn close(&self) {
        *lock(&self.listener.folder) = Folder::None;
    }
}

/// Writes down what a build prints for as long as it runs, and nothing for good.
pub(crate) struct Passing(Recorder);

impl Passing {
    pub(crate) fn new(store: &Store, next: &Sink) -> Self {
        let mut opening = super::opening(store, &BuildRequest::default(), next.now());
        "of a client of serve".clone_into(&mut opening.name);
        Self(Recorder::new(store, opening, next))
    }

    pub(crate) fn sink(&self) -> &Sink {
        self.0.sink()
    }

    pub(crate) fn id(&self) -> &str {
        self.0.id()
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        let listener = &self.0.listener;
        let is_open = matches!(*lock(&listener.folder), Folder::Open(_));
        self.0.close();
        if is_open && let Err(error) = listener.store.remove_build(self.id()) {
            tracing::warn!(%error, "the log of a client's build stays");
        }
    }
}

impl Listener {
    fn note(&self, event: &Event) {
        match event {
            Event::Vertex { vertex, state } => self.note_vertex(vertex, state),
            Event::Status(status) => self.note_status(status),
            Event::Log(log) => self.note_log(log),
            Event::Warning(warning) => self.note_warning(warning),
        }
    }

    fn note_vertex(&self, vertex: &Arc<Vertex>, state: &VertexState) {
        let mut all = lock(&self.seen);
        match all.index.get(&vertex.digest).copied() {
            Some(at) => {
                // Announced again by another part of the build: what was known is not forgotten.
                if *state != VertexState::Waiting {
                    all.steps[at].state = state.clone();
                }
                if matches!(state, VertexState::Completed { .. }) {
                    // Others may follow this log; they hear of its end when the step's lock is given up.
                    let log = Arc::clone(&all.steps[at].log);
                    drop(all);
                    let mut log = lock(&log);
                    if let Some(Err(error)) = log.writer.as_mut().map(LogWriter::flush) {
                        tracing::warn!(%error, "the end of a log is not kept");
                    }
                }
            }
            None => {
                let at = all.steps.len();
                all.index.insert(vertex.digest.clone(), at);
                all.steps.push(Seen {
                    vertex: Arc::clone(vertex),
                    state: state.clone(),
                    transfers: Vec::new(),
                    log: Arc::default(),
                });
            }
        }
    }

    fn note_status(&self, status: &Status) {
        let mut all = lock(&self.seen);
        let Some(at) = all.index.get(&status.vertex).copied() else {
            return;
        };
        let transfers = &mut all.steps[at].transfers;
        let record = TransferRecord {
            id: status.id.clone(),
            name: status.name.clone(),
            current: status.current,
            total: status.total,
            started: status.started,
            completed: status.completed,
        };
        match transfers.iter().rposition(|known| known.id == status.id) {
            Some(known) => transfers[known] = record,
            None if transfers.len() < MOST_TRANSFERS => transfers.push(record),
            None => {}
        }
    }

    fn note_warning(&self, warning: &Warning) {
        let mut all = lock(&self.seen);
        if all.warnings.len() < MOST_WARNINGS {
            all.warnings.push(WarningRecord {
                text: warning.short.clone(),
                url: warning.url.clone(),
                line: warning.ranges.first().map(|range| range.start.line),
            });
        }
    }

    /// Writes what a step printed; of one step at a time, but of different ones at once.
    fn note_log(&self, log: &Log) {
        let slot = {
            let all = lock(&self.seen);
            let Some(at) = all.index.get(&log.vertex).copied() else {
                return;
            };
            Arc::clone(&all.steps[at].log)
        };
        let mut slot = lock(&slot);
        slot.printed += log.data.len() as u64;
        if slot.writer.is_none() && !slot.failed {
            slot.writer = self.new_log(&log.vertex);
            slot.failed = slot.writer.is_none();
        }
        let Some(writer) = &mut slot.writer else {
            return;
        };
        let time = nanoseconds_of(log.timestamp);
        if let Err(error) = writer.write(log.stream.number(), time, &log.data) {
            tracing::warn!(%error, "what a step prints is not kept any more");
            slot.writer = None;
            slot.failed = true;
        }
    }

    fn new_log(&self, vertex: &Digest) -> Option<LogWriter> {
        let mut folder = lock(&self.folder);
        if matches!(*folder, Folder::None) {
            let opening = serde_json::to_vec(&self.opening).expect("a record can be written");
            *folder = match self.store.begin_build(&self.opening.id, &opening) {
                Ok(folder) => Folder::Open(folder),
                Err(error) => {
                    tracing::warn!(%error, "what steps print is not kept");
                    Folder::Failed
                }
            };
        }
        let Folder::Open(folder) = &*folder else {
            return None;
        };
        match folder.log(vertex.hex()) {
            Ok(log) => Some(log),
            Err(error) => {
                tracing::warn!(%error, "what a step prints is not kept");
                None
            }
        }
    }
}

impl Seen {
    fn record(&self) -> StepRecord {
        let (started, completed, outcome, error) = match &self.state {
            VertexState::Waiting => (None, None, StepOutcome::Skipped, String::new()),
            VertexState::Running { started } => {
                (Some(*started), None, StepOutcome::Canceled, String::new())
            }
            VertexState::Completed {
                started,
                completed,
                outcome,
            } => {
                let (outcome, error) = match outcome {
                    Outcome::Done => (StepOutcome::Ran, String::new()),
                    Outcome::Cached => (StepOutcome::Cached, String::new()),
                    Outcome::Canceled => (StepOutcome::Canceled, String::new()),
                    Outcome::Failed { error } => (StepOutcome::Failed, error.clone()),
                };
                (Some(*started), Some(*completed), outcome, error)
            }
        };
        let printed = {
            let mut log = lock(&self.log);
            if let Some(writer) = log.writer.take()
                && let Err(error) = writer.finish()
            {
                tracing::warn!(%error, "the end of a log is not kept");
            }
            log.printed
        };
        let vertex = &self.vertex;
        StepRecord {
            name: vertex.name.clone(),
            inputs: vertex.inputs.clone(),
            group: vertex.group.as_ref().map(|group| GroupRecord {
                id: group.id.clone(),
                name: group.name.clone(),
                weak: group.weak,
            }),
            started,
            completed,
            outcome,
            transfers: self.transfers.clone(),
            printed,
            error,
            ..StepRecord::unseen(vertex.digest.clone())
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
