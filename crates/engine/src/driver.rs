//! Carries out what the scheduler decides.
//!
//! One thread owns the scheduler. Lookups are answered there, as they cost microseconds; matching
//! and running get a thread each, because they wait for processes, disks and networks. Of vertices that need no slot
//! a graph may have any number: only so many have a thread at once, and the others wait for theirs.
//!
//! A vertex of several builds is worked on by the work of one of them: with its contexts, secrets and credentials. When
//! that build ends first, what is still to be done is done by the work of another.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
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
        // Not a word of canceling: nobody has asked for it.
        let ended = || {
            let message = "the scheduler has ended".to_owned();
            Err(Failed::general(EngineError::Panic(message)))
        };
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
    works: HashMap<Key, Works<W>>,
    cancels: HashMap<Key, Cancel>,
    errors: HashMap<Key, Arc<EngineError>>,
    jobs: HashMap<JobId, Job<W>>,
    /// What has one of the threads that are counted.
    counted: HashSet<Key>,
    /// What waits for one, in the order it came.
    waiting: VecDeque<Begun>,
}

/// What is to be done in a thread of its own.
struct Begun {
    key: Key,
    step: Step,
    body: Box<dyn FnOnce() + Send>,
}

/// Threads beside those of steps that have a slot, which wait for none.
const FREE_THREADS: usize = 512;

/// The works of one vertex, one for each job it is part of.
struct Works<W> {
    /// In the order they came.
    of_jobs: Vec<(JobId, Arc<W>)>,
    /// The job whose work tells the others what happens.
    told_by: JobId,
    class: Class,
}

impl<W: Work> Works<W> {
    fn of(&self, job: JobId) -> Option<&Arc<W>> {
        let mut works = self.of_jobs.iter();
        works.find_map(|(id, work)| (*id == job).then_some(work))
    }

    /// Adds the work of another job, which hears what was told already.
    fn add(&mut self, job: JobId, work: Arc<W>) {
        if let Some(teller) = self.of(self.told_by) {
            teller.join(&work);
        }
        self.of_jobs.push((job, work));
    }

    /// Returns the work of a job, which tells all others from now on.
    fn take_over(&mut self, job: JobId) -> Arc<W> {
        let Some(work) = self.of(job).cloned() else {
            unreachable!("{job:?} has gone");
        };
        if self.told_by != job {
            self.told_by = job;
            for (other, listener) in &self.of_jobs {
                if *other != job {
                    work.join(listener);
                }
            }
        }
        work
    }
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
            counted: HashSet::new(),
            waiting: VecDeque::new(),
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
                Message::Answered(key, answer, step) => {
                    self.counted.remove(&key);
                    self.answered(key, answer, step);
                    self.start_waiting();
                }
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
        let mut works = Vec::with_capacity(tasks.len());
        for task in tasks {
            vertices.push(Vertex {
                key: task.key,
                inputs: task.inputs,
                class: task.class,
            });
            works.push((task.key, task.class, task.work));
        }
        let (id, effects) = match self.scheduler.submit(vertices, roots, policy) {
            Ok(taken) => taken,
            Err(error) => {
                let _ = reply.send(Err(Failed::general(EngineError::Graph(error.to_string()))));
                return;
            }
        };
        let keys = works.iter().map(|(key, ..)| *key).collect();
        for (key, class, work) in works {
            match self.works.entry(key) {
                Entry::Vacant(place) => {
                    place.insert(Works {
                        of_jobs: vec![(id, work)],
                        told_by: id,
                        class,
                    });
                }
                Entry::Occupied(mut others) => others.get_mut().add(id, work),
            }
        }
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
        let mut work: VecDeque<_> = effects.into();
        let mut left = Vec::new();
        while let Some(effect) = work.pop_front() {
            match effect {
                Effect::LookUp { key, job } => {
                    let one = self.work(key, job);
                    let found = one.look_up().unwrap_or_else(|error| {
                        tracing::warn!(%error, "no lookup by key");
                        None
                    });
                    if found.is_none() && one.may_fetch() {
                        self.spawn(key, one, Vec::new(), Step::Fetch);
                    } else {
                        work.extend(self.scheduler.handle(Event::LookedUp { key, found }));
                    }
                }
                Effect::Match { key, job, inputs } => {
                    let one = self.work(key, job);
                    if one.may_match() {
                        self.spawn(key, one, inputs, Step::Match);
                    } else {
                        let event = Event::Matched { key, found: None };
                        work.extend(self.scheduler.handle(event));
                    }
                }
                Effect::Run { key, job, inputs } => {
                    let one = self.work(key, job);
                    self.spawn(key, one, inputs, Step::Run);
                }
                Effect::Abort { key } => {
                    if let Some(cancel) = self.cancels.get(&key) {
                        cancel.request();
                    }
                }
                Effect::Finish { job, outcome } => left.push((job, self.finish(job, outcome))),
            }
        }
        for (job, keys) in left {
            self.forget(job, keys);
        }
    }

    /// Returns by what a vertex is worked on for a job.
    fn work(&mut self, key: Key, job: JobId) -> Arc<W> {
        match self.works.get_mut(&key) {
            Some(works) => works.take_over(job),
            None => unreachable!("a vertex of {job:?} has no work"),
        }
    }

    /// Lets go of a job's works; other jobs that have the vertices too have their own.
    fn forget(&mut self, job: JobId, keys: Vec<Key>) {
        for key in keys {
            let Entry::Occupied(mut works) = self.works.entry(key) else {
                continue;
            };
            works.get_mut().of_jobs.retain(|(id, _)| *id != job);
            if works.get().of_jobs.is_empty() {
                works.remove();
                self.errors.remove(&key);
            }
        }
    }

    fn spawn(&mut self, key: Key, work: Arc<W>, inputs: Vec<Arc<W::Output>>, step: Step) {
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
        let body = Box::new(body);
        let begun = Begun { key, step, body };
        let works = self.works.get(&key);
        if step == Step::Run && works.is_some_and(|works| works.class == Class::Step) {
            self.start(begun);
        } else {
            self.waiting.push_back(begun);
            self.start_waiting();
        }
    }

    fn start_waiting(&mut self) {
        while self.counted.len() < FREE_THREADS
            && let Some(begun) = self.waiting.pop_front()
        {
            self.counted.insert(begun.key);
            self.start(begun);
        }
    }

    fn start(&mut self, Begun { key, step, body }: Begun) {
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
                    let works = self.works.get(key);
                    Some(Failed {
                        work: works.and_then(|works| works.of(job)).cloned(),
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Nothing is known of a step: it has to run.
    macro_rules! nothing_is_known {
        () => {
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
        };
    }

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

        nothing_is_known!();

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

    /// A step that tells of each run and ends it as it is told to.
    struct Told {
        inputs: Vec<Key>,
        begun: Sender<&'static str>,
        /// Whether it comes to something.
        until: Mutex<Receiver<bool>>,
        name: &'static str,
    }

    impl Work for Told {
        type Output = String;

        nothing_is_known!();

        fn run(
            &self,
            inputs: &[Arc<String>],
            _cancel: &Cancel,
        ) -> Result<Arc<String>, EngineError> {
            self.begun.send(self.name).expect("somebody hears of it");
            let until = self.until.lock().expect("no panic");
            match until.recv().expect("a word") {
                true => Ok(Arc::new(format!("{} of {}", self.name, inputs.len()))),
                false => Err(EngineError::Canceled),
            }
        }
    }

    /// Builds of one driver, and what they do.
    struct Builds {
        driver: Driver<Told>,
        begun: Receiver<&'static str>,
        tell: Sender<&'static str>,
    }

    impl Builds {
        fn new() -> Self {
            let (tell, begun) = channel();
            let driver = Driver::start(4);
            Self {
                driver,
                begun,
                tell,
            }
        }

        /// Makes a task, and returns by what it is told how to end.
        fn task(&self, name: &'static str, key: u8, inputs: &[u8]) -> (Task<Told>, Sender<bool>) {
            let (end, until) = channel();
            let inputs: Vec<Key> = inputs.iter().map(|input| [*input; 32]).collect();
            let work = Told {
                inputs: inputs.clone(),
                begun: self.tell.clone(),
                until: Mutex::new(until),
                name,
            };
            let task = Task {
                key: [key; 32],
                inputs: work.inputs.clone(),
                class: Class::Step,
                work: Arc::new(work),
            };
            (task, end)
        }

        /// Begins a build of the last of the tasks.
        fn begin(&self, tasks: Vec<Task<Told>>, cancel: &Cancel) -> Receiver<Outcome<Told>> {
            let (reply, answer) = channel();
            let roots = vec![tasks.last().expect("a root").key];
            let message = Message::Submit {
                tasks,
                roots,
                policy: FailurePolicy::Cancel,
                cancel: cancel.clone(),
                reply,
            };
            assert!(self.driver.messages.send(message).is_ok());
            answer
        }
    }

    fn result(answer: &Receiver<Outcome<Told>>) -> String {
        let outcome = answer.recv().expect("the scheduler lives");
        let results = outcome.map_err(|failed| failed.len());
        results.expect("a result")[0].to_string()
    }

    /// Each build has its own context, though they do the same with it.
    #[test]
    fn a_build_that_comes_while_another_of_the_same_is_stopping_has_its_own_inputs() {
        let builds = Builds::new();
        let cancel = Cancel::default();
        let (slow, end_slow) = builds.task("slow of one", 1, &[]);
        let (own, end_own) = builds.task("context of one", 10, &[]);
        let (root, _) = builds.task("root of one", 2, &[1, 10]);
        let one = builds.begin(vec![slow, own, root], &cancel);
        let mut first = [builds.begun.recv(), builds.begun.recv()].map(Result::unwrap);
        first.sort_unstable();
        assert_eq!(first, ["context of one", "slow of one"]);
        end_own.send(true).expect("it runs");
        cancel.request();
        // Before the first has stopped; the messages of one thread keep their order.
        let (slow, end_again) = builds.task("slow of two", 1, &[]);
        let (own, end_own) = builds.task("context of two", 11, &[]);
        let (root, end_root) = builds.task("root of two", 2, &[1, 11]);
        let two = builds.begin(vec![slow, own, root], &Cancel::default());
        assert_eq!(builds.begun.recv().unwrap(), "context of two");
        end_own.send(true).expect("it runs");
        end_slow.send(false).expect("it runs");
        let stopped = one.recv().expect("the scheduler lives");
        let stopped = stopped.map(|_| ()).map_err(|failed| failed.len());
        assert_eq!(stopped, Err(1));
        assert_eq!(builds.begun.recv().unwrap(), "slow of two");
        end_again.send(true).expect("it runs");
        assert_eq!(builds.begun.recv().unwrap(), "root of two");
        end_root.send(true).expect("it runs");
        assert_eq!(result(&two), "root of two of 2");
    }

    #[test]
    fn a_build_goes_on_by_itself_where_the_one_that_ran_a_step_for_both_has_gone() {
        let builds = Builds::new();
        let cancel = Cancel::default();
        let (shared, end_first) = builds.task("by one", 1, &[]);
        let one = builds.begin(vec![shared], &cancel);
        assert_eq!(builds.begun.recv().unwrap(), "by one");
        let (shared, end_second) = builds.task("by two", 1, &[]);
        let two = builds.begin(vec![shared], &Cancel::default());
        cancel.request();
        assert!(one.recv().expect("the scheduler lives").is_err());
        // What it had from its client is there no longer.
        end_first.send(false).expect("it runs on");
        assert_eq!(builds.begun.recv().unwrap(), "by two");
        end_second.send(true).expect("it runs");
        assert_eq!(result(&two), "by two of 0");
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

    /// Counts how many run at once.
    struct Counting {
        now: Arc<AtomicUsize>,
        most: Arc<AtomicUsize>,
        inputs: usize,
    }

    impl Work for Counting {
        type Output = String;

        nothing_is_known!();

        fn run(
            &self,
            inputs: &[Arc<String>],
            _cancel: &Cancel,
        ) -> Result<Arc<String>, EngineError> {
            assert_eq!(inputs.len(), self.inputs);
            let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            std::thread::yield_now();
            self.now.fetch_sub(1, Ordering::SeqCst);
            Ok(Arc::new(String::new()))
        }
    }

    #[test]
    fn a_graph_as_wide_as_can_be_has_so_many_threads() {
        let count = FREE_THREADS * 3;
        let (now, most) = (Arc::default(), Arc::default());
        let task = |number: usize, inputs: Vec<Key>| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&(number as u64).to_be_bytes());
            let work = Counting {
                now: Arc::clone(&now),
                most: Arc::clone(&most),
                inputs: inputs.len(),
            };
            Task {
                key,
                inputs,
                class: Class::Free,
                work: Arc::new(work),
            }
        };
        let mut tasks: Vec<_> = (0..count).map(|number| task(number, Vec::new())).collect();
        let keys: Vec<Key> = tasks.iter().map(|task| task.key).collect();
        tasks.push(task(count, keys));
        let root = tasks[count].key;
        let driver = Driver::start(1);
        let (policy, cancel) = (FailurePolicy::Cancel, Cancel::default());
        let outcome = driver.solve(tasks, vec![root], policy, &cancel);
        assert_eq!(outcome.map_err(|_| ()).map(|found| found.len()), Ok(1));
        assert!(most.load(Ordering::SeqCst) <= FREE_THREADS);
    }
}
