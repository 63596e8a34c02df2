//! Builds by the name their client gave them, and what they tell.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::{
    BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildResultInfo, StatusResponse,
    VertexLog,
};
use progress::{Event, Receiver, system_clock};
use prost::Message;
use tokio::sync::{Notify, broadcast, mpsc};
use tonic::{Code, Status};

use crate::collector::Collector;
use crate::error::Failure;
use crate::export::Exported;
use crate::gateway::blocking;
use crate::history::{self, Blob, Blobs, Records};
use crate::status;
use crate::trace::{self, Parent, Traces};

/// How long a question for the status of a build waits for the build.
const PATIENCE: Duration = Duration::from_secs(6);
/// Ended builds whose status is still in memory.
const REMEMBERED: usize = 8;

/// Changes of the history that a slow listener may be behind.
const MOST_BEHIND: usize = 256;

/// Bytes of what one step prints, and of what all steps of a build print, that a build tells; they stay in memory until some
/// builds later, and in the history.
const MOST_OF_A_STEP: usize = 16 << 20;
const MOST_OF_A_BUILD: usize = 64 << 20;

/// All builds there are, and those that were.
#[derive(Debug)]
pub(crate) struct Jobs {
    table: Mutex<Table>,
    changed: Notify,
    history: broadcast::Sender<BuildHistoryEvent>,
    records: Arc<Records>,
    traces: Arc<Traces>,
    collector: Option<Collector>,
}

#[derive(Debug, Default)]
struct Table {
    jobs: HashMap<String, Arc<Job>>,
    ended: VecDeque<String>,
}

/// What one build has told so far.
#[derive(Debug)]
pub(crate) struct Job {
    told: Mutex<Told>,
    changed: Notify,
    trace: Parent,
}

#[derive(Debug, Default)]
struct Told {
    events: Vec<Arc<StatusResponse>>,
    /// Bytes that each step has printed, nothing where no more is told, and all.
    printed: HashMap<String, Option<usize>>,
    printed_by_all: usize,
    ended: bool,
    /// Its record is written, or will not be.
    recorded: bool,
    record: BuildHistoryRecord,
    /// What the record speaks of.
    blobs: Vec<Blob>,
    /// The client said that it is nothing to remember.
    internal: bool,
}

/// Ends a job when the build does, however it does.
#[derive(Debug)]
pub(crate) struct JobGuard {
    jobs: Arc<Jobs>,
    id: String,
    job: Arc<Job>,
    finished: bool,
}

impl Jobs {
    pub(crate) fn new(
        records: Arc<Records>,
        traces: Arc<Traces>,
        collector: Option<Collector>,
    ) -> Self {
        Self {
            table: Mutex::default(),
            changed: Notify::default(),
            history: broadcast::channel(MOST_BEHIND).0,
            records,
            traces,
            collector,
        }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }

    /// Begins a job; two with one name cannot be under way.
    pub(crate) fn begin(
        self: &Arc<Self>,
        mut record: BuildHistoryRecord,
        internal: bool,
        trace: Parent,
    ) -> Result<JobGuard, Status> {
        record.created_at = Some(status::timestamp(system_clock()));
        let id = record.r#ref.clone();
        let id = id.as_str();
        let job = Arc::new(Job {
            told: Mutex::default(),
            changed: Notify::default(),
            trace,
        });
        {
            let mut told = job.told();
            told.record = record;
            told.internal = internal;
        }
        let mut table = self.table();
        let under_way = |job: &Arc<Job>| !job.told().ended;
        if table.jobs.get(id).is_some_and(under_way) {
            return Err(Status::already_exists(format!("job ID {id} exists")));
        }
        table.ended.retain(|ended| ended != id);
        table.jobs.insert(id.to_owned(), Arc::clone(&job));
        drop(table);
        self.changed.notify_waiters();
        self.publish(&job);
        Ok(JobGuard {
            jobs: Arc::clone(self),
            id: id.to_owned(),
            job,
            finished: false,
        })
    }

    /// Sends what a build told and will tell; waits a little for one that is about to begin.
    pub(crate) async fn follow(
        &self,
        id: &str,
        listener: mpsc::Sender<Result<StatusResponse, Status>>,
    ) -> Result<(), Status> {
        let known = self.table().jobs.contains_key(id);
        let (records, name) = (Arc::clone(&self.records), id.to_owned());
        let remembered = blocking(move || match records.find(&name) {
            Some(record) if !known => Ok(Some(records.told(&record).map_err(Status::from)?)),
            _ => Ok(None),
        });
        if let Some(told) = remembered.await? {
            tokio::spawn(async move {
                for status in told {
                    if listener.send(Ok(status)).await.is_err() {
                        return;
                    }
                }
            });
            return Ok(());
        }
        let found = async {
            loop {
                let changed = self.changed.notified();
                if let Some(job) = self.table().jobs.get(id) {
                    return Arc::clone(job);
                }
                changed.await;
            }
        };
        let job = tokio::time::timeout(PATIENCE, found)
            .await
            .map_err(|_| Status::not_found(format!("no such job {id}")))?;
        tokio::spawn(job.follow(listener));
        Ok(())
    }
}

/// History.
impl Jobs {
    /// Tells listeners what became of a job.
    fn publish(&self, job: &Job) {
        if let Some(event) = job.event() {
            // Nobody may be listening.
            let _ = self.history.send(event);
        }
    }

    /// Returns what is known of all builds, in the order they began, and what happens from now on. Blocks.
    pub(crate) fn history(
        &self,
    ) -> (
        Vec<BuildHistoryEvent>,
        broadcast::Receiver<BuildHistoryEvent>,
    ) {
        let later = self.history.subscribe();
        let table = self.table();
        let active = table.jobs.values().filter_map(|job| job.event());
        let mut events: Vec<_> = active
            .filter(|event| event.r#type == BuildHistoryEventType::Started as i32)
            .collect();
        drop(table);
        let kept = self.records.all().into_iter();
        events.extend(kept.map(|record| event(BuildHistoryEventType::Complete, record)));
        let began = |event: &BuildHistoryEvent| {
            let record = event.record.as_ref();
            (
                record.map(history::began),
                record.map(|record| record.r#ref.clone()),
            )
        };
        events.sort_by_cached_key(began);
        // One that ended in between is in both lists.
        events.dedup_by(|later, first| {
            let id = |event: &BuildHistoryEvent| event.record.as_ref().map(|one| one.r#ref.clone());
            id(later) == id(first)
        });
        (events, later)
    }

    /// Forgets a build that has ended. Blocks.
    pub(crate) fn forget(&self, id: &str) -> Result<(), Status> {
        let gone = self.records.remove(id)?.ok_or_else(|| no_such(id))?;
        let mut table = self.table();
        if table.ended.iter().any(|ended| ended == id) {
            table.ended.retain(|ended| ended != id);
            table.jobs.remove(id);
        }
        drop(table);
        let _ = self
            .history
            .send(event(BuildHistoryEventType::Deleted, gone));
        Ok(())
    }

    /// Keeps a build for good, or no longer. Blocks.
    pub(crate) fn pin(&self, id: &str, pinned: bool) -> Result<(), Status> {
        self.change(id, |record, _| {
            record.pinned = pinned;
            Ok(())
        })
    }

    /// Adds to a build's trace what its client has sent since it ended. Blocks.
    pub(crate) fn finalize(&self, id: &str) -> Result<(), Status> {
        self.change(id, |record, blobs| {
            let Some(trace) = &record.trace else {
                return Ok(());
            };
            let mut spans = trace::read(&blobs.read(trace)?);
            let known = spans.len();
            let id_of = |span: &serde_json::Value| span["SpanContext"].clone();
            let of_trace = spans.first().map(|span| id_of(span)["TraceID"].clone());
            let of_trace = of_trace.as_ref().and_then(|id| id.as_str());
            for span in self.traces.of(of_trace.unwrap_or_default()) {
                if !spans[..known].iter().any(|one| id_of(one) == id_of(&span)) {
                    spans.push(span);
                }
            }
            if spans.len() > known {
                let blob = Blob::new(history::TRACE_TYPE, trace::write(&spans));
                blobs.add(&blob)?;
                record.trace = Some(blob.descriptor);
            }
            Ok(())
        })
    }

    fn change(
        &self,
        id: &str,
        change: impl FnOnce(&mut BuildHistoryRecord, &Blobs) -> io::Result<()>,
    ) -> Result<(), Status> {
        let changed = self.records.update(id, change)?;
        let record = changed.ok_or_else(|| no_such(id))?;
        let _ = self
            .history
            .send(event(BuildHistoryEventType::Complete, record));
        Ok(())
    }

    /// Writes the record of a job that has ended, and tells listeners. Blocks.
    fn remember(&self, id: &str, job: &Arc<Job>) {
        if let Some((record, blobs)) = job.complete(self)
            && let Err(error) = self.records.keep(&record, &blobs)
        {
            tracing::warn!(%error, build = id, "a build is not remembered");
        }
        job.told().recorded = true;
        self.publish(job);
        let mut table = self.table();
        // One of the same name may have begun.
        if table
            .jobs
            .get(id)
            .is_some_and(|known| Arc::ptr_eq(known, job))
        {
            table.ended.push_back(id.to_owned());
        }
        while table.ended.len() > REMEMBERED {
            if let Some(oldest) = table.ended.pop_front() {
                table.jobs.remove(&oldest);
            }
        }
    }
}

fn no_such(id: &str) -> Status {
    Status::not_found(format!("no such ended build {id}"))
}

fn event(kind: BuildHistoryEventType, record: BuildHistoryRecord) -> BuildHistoryEvent {
    BuildHistoryEvent {
        r#type: kind as i32,
        record: Some(record),
    }
}

impl JobGuard {
    /// Ends the job with what the build came to, and returns once that is remembered.
    pub(crate) async fn finish(mut self, result: &Result<Exported, Failure>) {
        self.conclude(result);
        let remember = self.end();
        if let Err(error) = tokio::task::spawn_blocking(remember).await {
            tracing::warn!(%error, build = self.id, "a build is not remembered");
        }
    }

    /// Ends the job; returns what is left to do, which blocks.
    fn end(&mut self) -> impl FnOnce() + Send + 'static {
        self.finished = true;
        self.job.end();
        let (jobs, id, job) = (
            Arc::clone(&self.jobs),
            self.id.clone(),
            Arc::clone(&self.job),
        );
        move || jobs.remember(&id, &job)
    }

    fn conclude(&self, result: &Result<Exported, Failure>) {
        let mut told = self.job.told();
        match result {
            Ok(exported) => {
                let response = exported.response.clone();
                told.record.exporter_response = response.into_iter().collect();
                let info = told.record.result.get_or_insert_default();
                info.result_deprecated = exported.images.values().next().cloned();
                info.results = exported.images.clone().into_iter().collect();
                for (platform, statement) in &exported.provenance {
                    let info = match platform {
                        None => told.record.result.get_or_insert_default(),
                        Some(platform) => told.record.results.entry(platform.clone()).or_default(),
                    };
                    info.attestations.push(statement.descriptor.clone());
                    told.blobs.push(statement.clone());
                }
            }
            Err(failure) => {
                let mut error = failure.to_rpc();
                let blob = Blob::new(history::ERROR_TYPE, error.encode_to_vec());
                error.details.clear();
                told.record.error = Some(error);
                told.record.external_error = Some(blob.descriptor.clone());
                told.blobs.push(blob);
            }
        }
    }

    pub(crate) fn job(&self) -> &Arc<Job> {
        &self.job
    }
}

impl Drop for JobGuard {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // The client has given up the call.
        self.conclude(&Err(Failure::new(Code::Cancelled, "context canceled")));
        let remember = self.end();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remember)),
            Err(_) => remember(),
        }
    }
}

impl Job {
    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }

    /// Returns how far the build has come, for the history; `None` if it is none of its business.
    fn event(&self) -> Option<BuildHistoryEvent> {
        let told = self.told();
        let kind = match told.recorded {
            true => BuildHistoryEventType::Complete,
            false => BuildHistoryEventType::Started,
        };
        (!told.internal).then(|| event(kind, told.counted()))
    }

    /// Returns all that is to be remembered of a build that has ended; `None` if nothing is.
    fn complete(&self, jobs: &Jobs) -> Option<(BuildHistoryRecord, Vec<Blob>)> {
        let mut told = self.told();
        if told.internal {
            return None;
        }
        let logs = history::write_statuses(&status::joined(&told.events));
        let logs = Blob::new(history::STATUS_TYPE, logs);
        let mut spans = trace::of_build(&told.record, &told.events, &self.trace);
        if let Some(collector) = &jobs.collector
            && self.trace.is_sampled
        {
            collector.send(&spans);
        }
        spans.extend(jobs.traces.of(&self.trace.trace));
        let spans = Blob::new(history::TRACE_TYPE, trace::write(&spans));
        told.record.logs = Some(logs.descriptor.clone());
        told.record.trace = Some(spans.descriptor.clone());
        let mut blobs = std::mem::take(&mut told.blobs);
        blobs.extend([logs, spans]);
        Some((told.counted(), blobs))
    }

    fn end(&self) {
        let mut told = self.told();
        told.ended = true;
        told.record.completed_at = Some(status::timestamp(system_clock()));
        // Clients look into it without asking whether it is there.
        told.record
            .result
            .get_or_insert_with(BuildResultInfo::default);
        drop(told);
        self.changed.notify_waiters();
    }

    /// Adds what was told in a client's words.
    pub(crate) fn tell(&self, mut response: StatusResponse) {
        let mut told = self.told();
        if told.ended {
            return;
        }
        response.logs.retain_mut(|log| told.has_room_for(log));
        told.events.push(Arc::new(response));
        drop(told);
        self.changed.notify_waiters();
    }

    /// Sends everything that was and will be told, until the job ends or nobody listens.
    async fn follow(self: Arc<Self>, listener: mpsc::Sender<Result<StatusResponse, Status>>) {
        let mut next = 0;
        loop {
            let changed = self.changed.notified();
            let (pending, ended) = {
                let told = self.told();
                (told.events[next..].to_vec(), told.ended)
            };
            next += pending.len();
            for part in status::joined(&pending) {
                if listener.send(Ok(part)).await.is_err() {
                    return;
                }
            }
            if ended {
                return;
            }
            if pending.is_empty() {
                tokio::select! {
                    () = changed => {}
                    () = listener.closed() => return,
                }
            }
        }
    }
}

impl Told {
    /// Returns whether a log is still told. The first of a step that is not says so instead, as in BuildKit.
    fn has_room_for(&mut self, log: &mut VertexLog) -> bool {
        let printed = self.printed.entry(log.vertex.clone()).or_insert(Some(0));
        let Some(before) = *printed else {
            return false;
        };
        let (of_step, of_all) = (before + log.msg.len(), self.printed_by_all + log.msg.len());
        if of_step <= MOST_OF_A_STEP && of_all <= MOST_OF_A_BUILD {
            (*printed, self.printed_by_all) = (Some(of_step), of_all);
            return true;
        }
        *printed = None;
        log.msg = b"[output clipped, log limit reached]\n".to_vec();
        true
    }

    /// Returns the record with the steps counted.
    fn counted(&self) -> BuildHistoryRecord {
        let mut record = self.record.clone();
        let mut steps: HashMap<&str, (bool, bool)> = HashMap::new();
        for event in &self.events {
            record.num_warnings += event.warnings.len() as i32;
            for vertex in &event.vertexes {
                let step = steps.entry(&vertex.digest).or_default();
                step.0 |= vertex.completed.is_some();
                step.1 |= vertex.cached;
            }
        }
        record.num_total_steps = steps.len() as i32;
        record.num_completed_steps = steps.values().filter(|step| step.0).count() as i32;
        record.num_cached_steps = steps.values().filter(|step| step.1).count() as i32;
        record
    }
}

/// Passes the engine's events on to a job.
#[derive(Debug)]
pub(crate) struct JobReceiver(pub(crate) Arc<Job>);

impl Receiver for JobReceiver {
    fn receive(&self, event: Event) {
        self.0.tell(status::of_event(&event));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_without_end_is_clipped() {
        let mut told = Told::default();
        let mut print = |vertex: &str, length: usize| {
            let mut log = VertexLog {
                vertex: vertex.to_owned(),
                msg: vec![b'x'; length],
                ..VertexLog::default()
            };
            told.has_room_for(&mut log).then_some(log.msg.len())
        };
        let note = "[output clipped, log limit reached]\n".len();
        assert_eq!(print("one", MOST_OF_A_STEP), Some(MOST_OF_A_STEP));
        assert_eq!(print("one", 1), Some(note));
        assert_eq!(print("one", 1), None);
        for step in ["two", "three"] {
            assert_eq!(print(step, MOST_OF_A_STEP), Some(MOST_OF_A_STEP));
        }
        assert_eq!(print("four", MOST_OF_A_STEP - 1), Some(MOST_OF_A_STEP - 1));
        assert_eq!(print("five", 10), Some(note));
        assert_eq!(print("five", 10), None);
    }
}
