//! Builds by the name their client gave them, and what they tell.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::{
    BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, StatusResponse,
};
use progress::{Event, Receiver, system_clock};
use tokio::sync::{Notify, broadcast, mpsc};
use tonic::Status;

use crate::error::Failure;
use crate::export::Response;
use crate::status;

/// How long a question for the status of a build waits for the build.
const PATIENCE: Duration = Duration::from_secs(6);
/// Ended builds whose status can still be asked for.
const REMEMBERED: usize = 32;

/// Changes of the history that a slow listener may be behind.
const MOST_BEHIND: usize = 256;

/// All builds there are, and the last that were.
#[derive(Debug)]
pub(crate) struct Jobs {
    table: Mutex<Table>,
    changed: Notify,
    history: broadcast::Sender<BuildHistoryEvent>,
}

impl Default for Jobs {
    fn default() -> Self {
        Self {
            table: Mutex::default(),
            changed: Notify::default(),
            history: broadcast::channel(MOST_BEHIND).0,
        }
    }
}

#[derive(Debug, Default)]
struct Table {
    jobs: HashMap<String, Arc<Job>>,
    ended: VecDeque<String>,
}

/// What one build has told so far.
#[derive(Debug, Default)]
pub(crate) struct Job {
    told: Mutex<Told>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Told {
    events: Vec<Arc<StatusResponse>>,
    ended: bool,
    record: BuildHistoryRecord,
    /// The client said that it is nothing to remember.
    internal: bool,
}

/// Ends a job when the build does, however it does.
#[derive(Debug)]
pub(crate) struct JobGuard {
    jobs: Arc<Jobs>,
    id: String,
    job: Arc<Job>,
}

impl Jobs {
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
    ) -> Result<JobGuard, Status> {
        record.created_at = Some(status::timestamp(system_clock()));
        let id = record.r#ref.clone();
        let id = id.as_str();
        let job = Arc::new(Job::default());
        {
            let mut told = job.told();
            told.record = record;
            told.internal = internal;
        }
        let mut table = self.table();
        if table.jobs.contains_key(id) && !table.ended.iter().any(|ended| ended == id) {
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
        })
    }

    /// Returns a job, waiting a little for one that is about to begin.
    pub(crate) async fn get(&self, id: &str) -> Result<Arc<Job>, Status> {
        let found = async {
            loop {
                let changed = self.changed.notified();
                if let Some(job) = self.table().jobs.get(id) {
                    return Arc::clone(job);
                }
                changed.await;
            }
        };
        tokio::time::timeout(PATIENCE, found)
            .await
            .map_err(|_| Status::not_found(format!("no such job {id}")))
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

    /// Returns what is known of all builds, in the order they began, and what happens from now on.
    pub(crate) fn history(
        &self,
    ) -> (
        Vec<BuildHistoryEvent>,
        broadcast::Receiver<BuildHistoryEvent>,
    ) {
        let later = self.history.subscribe();
        let table = self.table();
        let mut events: Vec<_> = table.jobs.values().filter_map(|job| job.event()).collect();
        drop(table);
        let began = |event: &BuildHistoryEvent| {
            let record = event.record.as_ref();
            let time = record.and_then(|record| record.created_at);
            let time = time.map(|time| (time.seconds, time.nanos));
            (time, record.map(|record| record.r#ref.clone()))
        };
        events.sort_by_cached_key(began);
        (events, later)
    }

    /// Forgets a build that has ended.
    pub(crate) fn forget(&self, id: &str) -> Result<(), Status> {
        let mut table = self.table();
        if !table.ended.iter().any(|ended| ended == id) {
            return Err(Status::not_found(format!("no such ended build {id}")));
        }
        table.ended.retain(|ended| ended != id);
        let gone = table.jobs.remove(id);
        drop(table);
        if let Some(mut event) = gone.and_then(|job| job.event()) {
            event.r#type = BuildHistoryEventType::Deleted as i32;
            let _ = self.history.send(event);
        }
        Ok(())
    }
}

impl JobGuard {
    /// Notes what the build came to.
    pub(crate) fn conclude(&self, result: &Result<Response, Failure>) {
        let mut told = self.job.told();
        match result {
            Ok(response) => {
                told.record.exporter_response = response.clone().into_iter().collect();
            }
            Err(failure) => {
                let mut error = failure.to_rpc();
                error.details.clear();
                told.record.error = Some(error);
            }
        }
    }

    pub(crate) fn job(&self) -> &Arc<Job> {
        &self.job
    }
}

impl Drop for JobGuard {
    fn drop(&mut self) {
        self.job.end();
        self.jobs.publish(&self.job);
        let mut table = self.jobs.table();
        table.ended.push_back(self.id.clone());
        while table.ended.len() > REMEMBERED {
            if let Some(oldest) = table.ended.pop_front() {
                table.jobs.remove(&oldest);
            }
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
        if told.internal {
            return None;
        }
        let mut record = told.record.clone();
        let mut steps: HashMap<&str, (bool, bool)> = HashMap::new();
        for event in &told.events {
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
        let kind = match told.ended {
            true => BuildHistoryEventType::Complete,
            false => BuildHistoryEventType::Started,
        };
        Some(BuildHistoryEvent {
            r#type: kind as i32,
            record: Some(record),
        })
    }

    fn end(&self) {
        let mut told = self.told();
        told.ended = true;
        told.record.completed_at = Some(status::timestamp(system_clock()));
        // Clients look into it without asking whether it is there.
        told.record.result.get_or_insert_default();
        drop(told);
        self.changed.notify_waiters();
    }

    /// Adds what was told in a client's words.
    pub(crate) fn tell(&self, response: StatusResponse) {
        let mut told = self.told();
        if told.ended {
            return;
        }
        told.events.push(Arc::new(response));
        drop(told);
        self.changed.notify_waiters();
    }

    /// Sends everything that was and will be told, until the job ends or nobody listens.
    pub(crate) async fn follow(
        self: Arc<Self>,
        listener: mpsc::Sender<Result<StatusResponse, Status>>,
    ) {
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

/// Passes the engine's events on to a job.
#[derive(Debug)]
pub(crate) struct JobReceiver(pub(crate) Arc<Job>);

impl Receiver for JobReceiver {
    fn receive(&self, event: Event) {
        self.0.tell(status::of_event(&event));
    }
}
