//! Carries out what the scheduler decides.
//!
//! One thread owns the scheduler. Lookups are answered there, as they cost microseconds; matching
//! and running get a thread each, because they wait for processes, disks and networks.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use solver::{Class, Effect, Event, FailurePolicy, JobId, JobOutcome, Scheduler, Vertex};
use store::Key;

use crate::{Cancel, EngineError};

/// One vertex that can be carried out.
pub(crate) trait Work: Send + Sync + 'static {
    /// What it yields.
    type Output: std::fmt::Debug + Send + Sync + 'static;

    /// Tells another build that waits for this vertex, as `other`, what it tells its own.
    fn join(&self, _other: &Self) {}

    /// Looks for the result by the definition key.
    fn look_up(&self) -> Result<Option<Arc<Self::Output>>, EngineError>;

    /// Returns whether [`Work::fetch`] could find anything.
    fn may_fetch(&self) -> bool {
        false
    }

    /// Looks for the result by the definition key in places that may be far away.
    fn fetch(&self, _cancel: &Cancel) -> Result<Option<Arc<Self::Output>>, EngineError> {
        Ok(None)
    }

    /// Returns whether [`Work::match_inputs`] could find anything.
    fn may_match(&self) -> bool;

    /// Looks for the result by the content of the inputs.
    fn match_inputs(
        &self,
        inputs: &[Arc<Self::Output>],
        cancel: &Cancel,
    ) -> Result<Option<Arc<Self::Output>>, EngineError>;

    /// Makes the result.
    fn run(
        &self,
        inputs: &[Arc<Self::Output>],
        cancel: &Cancel,
    ) -> Result<Arc<Self::Output>, EngineError>;
}

/// One vertex of a job.
pub(crate) struct Task<W> {
    pub(crate) key: Key,
    pub(crate) inputs: Vec<Key>,
    pub(crate) class: Class,
    pub(crate) work: Arc<W>,
}

/// How a job ended: the results of its roots, or what failed.
pub(crate) type Outcome<W> = Result<Vec<Arc<<W as Work>::Output>>, Vec<Failed<W>>>;

/// A failure, with the vertex it happened at if it happened at one.
pub(crate) struct Failed<W> {
    pub(crate) work: Option<Arc<W>>,
    pub(crate) error: Arc<EngineError>,
}

impl<W> Failed<W> {
    fn general(error: EngineError) -> Vec<Self> {
        vec![Self {
            work: None,
            error: Arc::new(error),
        }]
    }
}

/// Runs jobs. Clones share one scheduler.
pub(crate) struct Driver<W: Work> {
    messages: Sender<Message<W>>,
}

impl<W: Work> Clone for Driver<W> {
    fn clone(&self) -> Self {
        Self {
            messages: self.messages.clone(),
        }
    }
}

enum Message<W: Work> {
    Submit {
        tasks: Vec<Task<W>>,
        roots: Vec<Key>,
        policy: FailurePolicy,
        cancel: Cancel,
        reply: Sender<Outcome<W>>,
    },
    Cancel(JobId),
    Answered(Key, Answer<W>, Step),
}

type Answer<W> = Result<Option<Arc<<W as Work>::Output>>, EngineError>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Fetch,
    Match,
    Run,
}

impl<W: Work> Driver<W> {
    /// Starts the scheduler's thread, which lives as long as the process.
    pub(crate) fn start(slots: usize) -> Self {
        let (messages, inbox) = channel();
        let outbox = messages.clone();
        std::thread::Builder::new()
            .name("scheduler".to_owned())
            .spawn(move || Loop::new(slots, outbox).run(&inbox))
            .expect("a process can start one thread");
        Self { messages }
    }

    /// Carries out a graph, inputs first, and waits for its roots.
    pub(crate) fn solve(
        &self,
        tasks: Vec<Task<W>>,
        roots: Vec<Key>,
        policy: FailurePolicy,
        cancel: &Cancel,
    ) -> Outcome<W> {
        let (reply, answer) = channel();
        let message = Message::Submit {
            tasks,
            roots,
            policy,
            cancel: cancel.clone(),
            reply,
        };
        let ended = || Err(Failed::general(EngineError::Canceled));
        if self.messages.send(message).is_err() {
            return ended();
        }
        answer.recv().unwrap_or_else(|_| ended())
    }
}

struct Job<W: Work> {
    /// The vertices of its graph.
    keys: Vec<Key>,
    reply: Sender<Outcome<W>>,
    _on_cancel: crate::cancel::CancelGuard,
}

struct Loop<W: Work> {
    scheduler: Scheduler<Key, Arc<W::Output>>,
    outbox: Sender<Message<W>>,
    works: HashMap<Key, Arc<W>>,
    cancels: HashMap<Key, Cancel>,
    errors: HashMap<Key, Arc<EngineError>>,
    jobs: HashMap<JobId, Job<W>>,
}

impl<W: Work> Loop<W> {
    fn new(slots: usize, outbox: Sender<Message<W>>) -> Self {
        Self {
            scheduler: Scheduler::new(slots),
            outbox,
            works: HashMap::new(),
            cancels: HashMap::new(),
            errors: HashMap::new(),
            jobs: HashMap::new(),
        }
    }

    fn run(mut self, inbox: &Receiver<Message<W>>) {
        while let Ok(message) = inbox.recv() {
            match message {
                Message::Submit {
                    tasks,
                    roots,
                    policy,
                    cancel,
                    reply,
                } => self.submit(tasks, roots, policy, &cancel, reply),
                Message::Cancel(job) => {
                    let effects = self.scheduler.handle(Event::Cancel { job });
                    self.carry_out(effects);
                }
                Message::Answered(key, answer, step) => self.answered(key, answer, step),
            }
        }
    }

    fn submit(
        &mut self,
        tasks: Vec<Task<W>>,
        roots: Vec<Key>,
        policy: FailurePolicy,
        cancel: &Cancel,
        reply: Sender<Outcome<W>>,
    ) {
        let mut vertices = Vec::with_capacity(tasks.len());
        let keys: Vec<Key> = tasks.iter().map(|task| task.key).collect();
        for task in tasks {
            vertices.push(Vertex {
                key: task.key,
                inputs: task.inputs,
                class: task.class,
            });
            match self.works.entry(task.key) {
                Entry::Vacant(place) => {
                    place.insert(task.work);
                }
                Entry::Occupied(first) => first.get().join(&task.work),
            }
        }
        let (id, effects) = match self.scheduler.submit(vertices, roots, policy) {
            Ok(taken) => taken,
            Err(error) => {
                let _ = reply.send(Err(Failed::general(EngineError::Graph(error.to_string()))));
                self.forget(keys);
                return;
            }
        };
        let outbox = self.outbox.clone();
        let on_cancel = cancel.on_request(move || {
            let _ = outbox.send(Message::Cancel(id));
        });
        self.jobs.insert(
            id,
            Job {
                keys,
                reply,
                _on_cancel: on_cancel,
            },
        );
        self.carry_out(effects);
    }

    fn answered(&mut self, key: Key, answer: Answer<W>, step: Step) {
        self.cancels.remove(&key);
        let event = match (step, answer) {
            (Step::Fetch, Ok(found)) => Event::LookedUp { key, found },
            (Step::Fetch, Err(error)) => {
                tracing::warn!(%error, "nothing was fetched");
                Event::LookedUp { key, found: None }
            }
            (Step::Match, Ok(found)) => Event::Matched { key, found },
            // A record that cannot be read is no reason not to build.
            (Step::Match, Err(error)) => {
                tracing::warn!(%error, "no match by content");
                Event::Matched { key, found: None }
            }
            (Step::Run, Ok(result)) => Event::Ran { key, result },
            (Step::Run, Err(error)) => {
                self.errors.insert(key, Arc::new(error));
                Event::Ran { key, result: None }
            }
        };
        let effects = self.scheduler.handle(event);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect<Key, Arc<W::Output>>>) {
        let mut work: std::collections::VecDeque<_> = effects.into();
        let mut left = Vec::new();
        while let Some(effect) = work.pop_front() {
            match effect {
                Effect::LookUp { key } => {
                    let found = self.works[&key].look_up().unwrap_or_else(|error| {
                        tracing::warn!(%error, "no lookup by key");
                        None
                    });
                    if found.is_none() && self.works[&key].may_fetch() {
                        self.spawn(key, Vec::new(), Step::Fetch);
                    } else {
                        work.extend(self.scheduler.handle(Event::LookedUp { key, found }));
                    }
                }
                Effect::Match { key, inputs } => {
                    if self.works[&key].may_match() {
                        self.spawn(key, inputs, Step::Match);
                    } else {
                        let event = Event::Matched { key, found: None };
                        work.extend(self.scheduler.handle(event));
                    }
                }
                Effect::Run { key, inputs } => self.spawn(key, inputs, Step::Run),
                Effect::Abort { key } => {
                    if let Some(cancel) = self.cancels.get(&key) {
                        cancel.request();
                    }
                }
                Effect::Finish { job, outcome } => left.extend(self.finish(job, outcome)),
            }
        }
        self.forget(left);
    }

    /// Lets go of the works of vertices, except where they are part of other jobs: those go on with them.
    fn forget(&mut self, keys: Vec<Key>) {
        for key in keys {
            if !self.scheduler.knows(key) {
                self.works.remove(&key);
                self.errors.remove(&key);
            }
        }
    }

    fn spawn(&mut self, key: Key, inputs: Vec<Arc<W::Output>>, step: Step) {
        let work = Arc::clone(&self.works[&key]);
        let outbox = self.outbox.clone();
        let cancel = Cancel::default();
        self.cancels.insert(key, cancel.clone());
        let body = move || {
            let run = AssertUnwindSafe(|| match step {
                Step::Fetch => work.fetch(&cancel),
                Step::Match => work.match_inputs(&inputs, &cancel),
                Step::Run => work.run(&inputs, &cancel).map(Some),
            });
            let answer = std::panic::catch_unwind(run).unwrap_or_else(|panic| {
                let text = panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                Err(EngineError::Panic(text.unwrap_or_default()))
            });
            drop(inputs);
            let _ = outbox.send(Message::Answered(key, answer, step));
        };
        let started = std::thread::Builder::new()
            .name("vertex".to_owned())
            .spawn(body);
        if let Err(source) = started {
            let error = EngineError::Thread { source };
            let message = Message::Answered(key, Err(error), step);
            let _ = self.outbox.send(message);
        }
    }

    /// Answers a job that has ended; returns the vertices it leaves.
    fn finish(&mut self, job: JobId, outcome: JobOutcome<Key, Arc<W::Output>>) -> Vec<Key> {
        let outcome = match outcome {
            JobOutcome::Complete(results) => Ok(results),
            JobOutcome::Canceled => Err(Failed::general(EngineError::Canceled)),
            JobOutcome::Failed(keys) => Err(keys
                .iter()
                .filter_map(|key| {
                    Some(Failed {
                        work: self.works.get(key).cloned(),
                        error: self.errors.get(key)?.clone(),
                    })
                })
                .collect()),
        };
        let Some(job) = self.jobs.remove(&job) else {
            return Vec::new();
        };
        let _ = job.reply.send(outcome);
        job.keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// A step that runs until another build has joined it.
    struct Joined {
        name: &'static str,
        others: Sender<&'static str>,
        until: Mutex<Receiver<&'static str>>,
    }

    impl Joined {
        fn new(name: &'static str) -> Arc<Self> {
            let (others, until) = channel();
            Arc::new(Self {
                name,
                others,
                until: Mutex::new(until),
            })
        }
    }

    impl Work for Joined {
        type Output = String;

        fn join(&self, other: &Self) {
            self.others.send(other.name).expect("the step runs");
        }

        fn look_up(&self) -> Result<Option<Arc<String>>, EngineError> {
            Ok(None)
        }

        fn may_match(&self) -> bool {
            false
        }

        fn match_inputs(
            &self,
            _inputs: &[Arc<String>],
            _cancel: &Cancel,
        ) -> Result<Option<Arc<String>>, EngineError> {
            Ok(None)
        }

        fn run(
            &self,
            _inputs: &[Arc<String>],
            _cancel: &Cancel,
        ) -> Result<Arc<String>, EngineError> {
            let until = self.until.lock().expect("no panic");
            let other = until.recv().expect("another build");
            Ok(Arc::new(format!("{} for {other} too", self.name)))
        }
    }

    #[test]
    fn a_build_that_needs_what_another_has_begun_joins_it() {
        let driver = Driver::start(1);
        let solve = |work: Arc<Joined>| {
            let driver = driver.clone();
            std::thread::spawn(move || {
                let task = Task {
                    key: [1; 32],
                    inputs: Vec::new(),
                    class: Class::Step,
                    work,
                };
                let policy = FailurePolicy::Cancel;
                let outcome = driver.solve(vec![task], vec![[1; 32]], policy, &Cancel::default());
                outcome.map_err(|_| ()).expect("a result").remove(0)
            })
        };
        // Whichever comes first is the one that runs.
        let builds = [solve(Joined::new("one")), solve(Joined::new("two"))];
        let results = builds.map(|build| build.join().expect("no panic"));
        assert!(Arc::ptr_eq(&results[0], &results[1]));
        assert!(["one for two too", "two for one too"].contains(&results[0].as_str()));
    }

    #[test]
    fn a_build_is_not_run_by_the_work_of_one_that_has_ended() {
        let driver = Driver::start(2);
        let solve = |key: u8, work: &Arc<Joined>| {
            let task = Task {
                key: [key; 32],
                inputs: Vec::new(),
                class: Class::Step,
                work: Arc::clone(work),
            };
            let policy = FailurePolicy::Cancel;
            let roots = vec![[key; 32]];
            let outcome = driver.solve(vec![task], roots, policy, &Cancel::default());
            outcome.map_err(|_| ()).expect("a result").remove(0)
        };
        let [long, one, two] = ["long", "one", "two"].map(Joined::new);
        std::thread::scope(|scope| {
            // Something is always under way.
            let busy = scope.spawn(|| solve(9, &long));
            for work in [&one, &two] {
                work.others.send("nobody").expect("it runs");
                assert_eq!(*solve(1, work), format!("{} for nobody too", work.name));
            }
            long.others.send("nobody").expect("it runs");
            busy.join().expect("no panic");
        });
    }
}
