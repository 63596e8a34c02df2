//! Builds by the name their client gave them, and what they tell.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::StatusResponse;
use progress::{Event, Receiver};
use tokio::sync::Notify;
use tokio::sync::mpsc;
use tonic::Status;

use crate::status;

/// How long a question for the status of a build waits for the build.
const PATIENCE: Duration = Duration::from_secs(6);
/// Ended builds whose status can still be asked for.
const REMEMBERED: usize = 32;

/// All builds there are, and the last that were.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    table: Mutex<Table>,
    changed: Notify,
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
    pub(crate) fn begin(self: &Arc<Self>, id: &str) -> Result<JobGuard, Status> {
        let job = Arc::new(Job::default());
        let mut table = self.table();
        if table.jobs.contains_key(id) && !table.ended.iter().any(|ended| ended == id) {
            return Err(Status::already_exists(format!("job ID {id} exists")));
        }
        table.ended.retain(|ended| ended != id);
        table.jobs.insert(id.to_owned(), Arc::clone(&job));
        drop(table);
        self.changed.notify_waiters();
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

impl JobGuard {
    pub(crate) fn job(&self) -> &Arc<Job> {
        &self.job
    }
}

impl Drop for JobGuard {
    fn drop(&mut self) {
        self.job.end();
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

    fn end(&self) {
        self.told().ended = true;
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
