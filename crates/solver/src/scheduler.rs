//! The state machine.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;

use crate::node::{Node, State};

/// Names one submitted graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// What bounds the running of a vertex.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Counts against the number of slots given to [`Scheduler::new`].
    Step,
    /// Starts as soon as its inputs are there; its own work is bounded elsewhere.
    Free,
}

/// What a job does when one of its vertices fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailurePolicy {
    /// The first failure cancels what is left.
    Cancel,
    /// Everything that does not depend on a failure is finished.
    KeepGoing,
}

/// One vertex of a submitted graph.
#[derive(Debug, Clone)]
pub struct Vertex<K> {
    /// Identity: equal keys are one vertex, also between jobs.
    pub key: K,
    /// The keys of the vertices whose results this one needs, in order. Those of another job may be other ones, where
    /// they stand for the same.
    pub inputs: Vec<K>,
    /// What bounds its running.
    pub class: Class,
}

/// Why a vertex has no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure<K> {
    /// Its own operation failed; the driver knows more.
    Own,
    /// An input failed: the vertex at which it began.
    Input(K),
}

/// What happened.
#[derive(Debug)]
pub enum Event<K, R> {
    /// The answer to [`Effect::LookUp`].
    LookedUp { key: K, found: Option<R> },
    /// The answer to [`Effect::Match`].
    Matched { key: K, found: Option<R> },
    /// The answer to [`Effect::Run`]; `None` is a failure or an obeyed abort. The failure of what was run for a job that
    /// has ended meanwhile says nothing of the others: it is run again for one of them.
    Ran { key: K, result: Option<R> },
    /// The job's client does not want it any more.
    Cancel { job: JobId },
}

/// What the driver is to do. Each of the first three is answered by one event, and names the job that it is done for:
/// one that has not ended, though others may wait for it too.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect<K, R> {
    /// Look for a result by the definition key.
    LookUp { key: K, job: JobId },
    /// Look for a result by the content of the inputs, which are all there.
    Match { key: K, job: JobId, inputs: Vec<R> },
    /// Run the operation.
    Run { key: K, job: JobId, inputs: Vec<R> },
    /// Stop what was begun for this vertex; its answer is still awaited.
    Abort { key: K },
    /// The job has ended. No effect names it again.
    Finish {
        job: JobId,
        outcome: JobOutcome<K, R>,
    },
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobOutcome<K, R> {
    /// The results of the roots, in the order they were submitted in.
    Complete(Vec<R>),
    /// The vertices whose own operation failed, in the order of failing.
    Failed(Vec<K>),
    /// Canceled by its client.
    Canceled,
}

/// Why a graph was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// A vertex names an input that is neither before it in the list nor known.
    #[error("vertex {vertex} names an input that does not stand before it")]
    UnknownInput { vertex: usize },
    /// A root is not in the graph.
    #[error("root {root} is not in the graph")]
    UnknownRoot { root: usize },
}

#[derive(Debug)]
struct Job<K> {
    roots: Vec<K>,
    policy: FailurePolicy,
    vertices: Vec<K>,
    failed: Vec<K>,
    /// Set once the job is only waiting for what it began to stop.
    ending: Option<Ending>,
    /// Vertices of this job that are abandoned and have not answered yet.
    draining: BTreeSet<K>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Complete,
    Failed,
    Canceled,
}

/// Decides what is looked up, matched and run.
#[derive(Debug)]
pub struct Scheduler<K, R> {
    nodes: HashMap<K, Node<K, R>>,
    jobs: BTreeMap<JobId, Job<K>>,
    queue: VecDeque<K>,
    slots: usize,
    running_steps: usize,
    /// Keys whose run holds a slot.
    holding_slot: BTreeSet<K>,
    next_job: u64,
}

impl<K: Copy + Ord + Hash + Debug, R: Clone + Debug> Scheduler<K, R> {
    /// Makes a scheduler that runs at most `slots` vertices of [`Class::Step`] at once.
    pub fn new(slots: usize) -> Self {
        Self {
            nodes: HashMap::new(),
            jobs: BTreeMap::new(),
            queue: VecDeque::new(),
            slots: slots.max(1),
            running_steps: 0,
            holding_slot: BTreeSet::new(),
            next_job: 0,
        }
    }

    /// Takes a graph, inputs before the vertices that use them, and begins with its roots.
    pub fn submit(
        &mut self,
        vertices: Vec<Vertex<K>>,
        roots: Vec<K>,
        policy: FailurePolicy,
    ) -> Result<(JobId, Vec<Effect<K, R>>), SubmitError> {
        let mut seen = BTreeSet::new();
        for (index, vertex) in vertices.iter().enumerate() {
            if !vertex.inputs.iter().all(|input| seen.contains(input)) {
                return Err(SubmitError::UnknownInput { vertex: index });
            }
            seen.insert(vertex.key);
        }
        if let Some(root) = roots.iter().position(|root| !seen.contains(root)) {
            return Err(SubmitError::UnknownRoot { root });
        }
        let id = JobId(self.next_job);
        self.next_job += 1;
        for vertex in vertices {
            let node = self.nodes.entry(vertex.key).or_insert_with(|| Node {
                class: vertex.class,
                state: State::Idle,
                jobs: BTreeMap::new(),
                lead: id,
                dependents: Vec::new(),
            });
            node.jobs.insert(id, vertex.inputs);
        }
        self.jobs.insert(
            id,
            Job {
                roots: roots.clone(),
                policy,
                vertices: seen.into_iter().collect(),
                failed: Vec::new(),
                ending: None,
                draining: BTreeSet::new(),
            },
        );
        let mut effects = Vec::new();
        for root in roots {
            self.demand(root, &mut effects);
        }
        self.settle(&mut effects);
        Ok((id, effects))
    }

    /// Takes what happened and returns what to do next.
    pub fn handle(&mut self, event: Event<K, R>) -> Vec<Effect<K, R>> {
        let mut effects = Vec::new();
        match event {
            Event::LookedUp { key, found } => self.looked_up(key, found, &mut effects),
            Event::Matched { key, found } => self.matched(key, found, &mut effects),
            Event::Ran { key, result } => self.ran(key, result, &mut effects),
            Event::Cancel { job } => self.end_early(job, Ending::Canceled, &mut effects),
        }
        self.start_queued(&mut effects);
        self.settle(&mut effects);
        effects
    }

    /// Returns whether a vertex is part of a job that has not ended.
    pub fn knows(&self, key: K) -> bool {
        self.nodes.contains_key(&key)
    }

    /// Returns whether nothing is known and nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.nodes.is_empty()
    }

    fn demand(&mut self, key: K, effects: &mut Vec<Effect<K, R>>) {
        match &mut self.node(key).state {
            State::Idle => {
                let job = self.lead(key);
                self.node(key).state = State::LookingUp;
                effects.push(Effect::LookUp { key, job });
            }
            State::Abandoned { wanted_again } => *wanted_again = true,
            _ => {}
        }
    }

    fn is_live(&self, job: JobId) -> bool {
        self.jobs.get(&job).is_some_and(|job| job.ending.is_none())
    }

    /// Returns the job that a vertex is worked on for from now on: the one it was, as long as that has not ended.
    ///
    /// What waits for inputs is to be taken off their lists before.
    fn lead(&mut self, key: K) -> JobId {
        let node = &self.nodes[&key];
        let mut lead = node.lead;
        if !self.is_live(lead) {
            let mut others = node.jobs.keys().copied();
            lead = others.find(|job| self.is_live(*job)).unwrap_or(lead);
            self.node(key).lead = lead;
        }
        lead
    }

    /// Returns whether a vertex is worked on for a job that has ended, while there is one that has not.
    fn is_orphan(&self, key: K) -> bool {
        let node = &self.nodes[&key];
        !self.is_live(node.lead) && node.jobs.keys().any(|job| self.is_live(*job))
    }

    /// Returns the inputs of a vertex for the job that it is worked on for.
    fn inputs(&self, key: K) -> &[K] {
        let node = &self.nodes[&key];
        match node.jobs.get(&node.lead) {
            Some(inputs) => inputs,
            None => unreachable!("{key:?} is worked on for {:?}, which has gone", node.lead),
        }
    }

    fn looked_up(&mut self, key: K, found: Option<R>, effects: &mut Vec<Effect<K, R>>) {
        if self.answer_abandoned(key, effects) {
            return;
        }
        match found {
            Some(result) => self.complete(key, result, effects),
            None => self.demand_inputs(key, effects),
        }
    }

    fn demand_inputs(&mut self, key: K, effects: &mut Vec<Effect<K, R>>) {
        self.lead(key);
        let inputs = self.inputs(key).to_vec();
        let mut missing = 0;
        for input in &inputs {
            let node = self.node(*input);
            match &node.state {
                State::Done { .. } => {}
                State::Failed { failure } => {
                    let origin = origin_of(*input, failure);
                    self.fail(key, Failure::Input(origin), effects);
                    return;
                }
                _ => missing += 1,
            }
        }
        self.node(key).state = State::WaitingForInputs { missing };
        if missing == 0 {
            self.inputs_complete(key, effects);
            return;
        }
        for input in inputs {
            let node = self.node(input);
            if !node.is_finished() {
                node.dependents.push(key);
                self.demand(input, effects);
            }
        }
    }

    fn inputs_complete(&mut self, key: K, effects: &mut Vec<Effect<K, R>>) {
        let inputs = self.results_of_inputs(key);
        let node = self.node(key);
        node.state = State::Matching;
        let job = node.lead;
        effects.push(Effect::Match { key, job, inputs });
    }

    fn matched(&mut self, key: K, found: Option<R>, effects: &mut Vec<Effect<K, R>>) {
        if self.answer_abandoned(key, effects) {
            return;
        }
        match found {
            Some(result) => self.complete(key, result, effects),
            // Its inputs may have gone with the job they belong to.
            None if self.is_orphan(key) => self.demand_inputs(key, effects),
            None => match self.node(key).class {
                Class::Free => self.run(key, effects),
                Class::Step => {
                    self.node(key).state = State::Queued;
                    self.queue.push_back(key);
                }
            },
        }
    }

    fn run(&mut self, key: K, effects: &mut Vec<Effect<K, R>>) {
        let inputs = self.results_of_inputs(key);
        let node = self.node(key);
        node.state = State::Running;
        let job = node.lead;
        effects.push(Effect::Run { key, job, inputs });
    }

    fn start_queued(&mut self, effects: &mut Vec<Effect<K, R>>) {
        while self.running_steps < self.slots
            && let Some(key) = self.queue.pop_front()
        {
            self.running_steps += 1;
            self.holding_slot.insert(key);
            self.run(key, effects);
        }
    }

    fn ran(&mut self, key: K, result: Option<R>, effects: &mut Vec<Effect<K, R>>) {
        if self.holding_slot.remove(&key) {
            self.running_steps -= 1;
        }
        if self.answer_abandoned(key, effects) {
            return;
        }
        match result {
            Some(result) => self.complete(key, result, effects),
            None if self.is_orphan(key) => {
                self.node(key).state = State::Idle;
                self.demand(key, effects);
            }
            None => self.fail(key, Failure::Own, effects),
        }
    }

    fn complete(&mut self, key: K, result: R, effects: &mut Vec<Effect<K, R>>) {
        let node = self.node(key);
        node.state = State::Done { result };
        for dependent in std::mem::take(&mut node.dependents) {
            // A dependent may have failed or been abandoned since it asked.
            if let Some(waiting) = self.nodes.get_mut(&dependent)
                && let State::WaitingForInputs { missing } = &mut waiting.state
            {
                *missing -= 1;
                if *missing == 0 {
                    self.inputs_complete(dependent, effects);
                }
            }
        }
    }

    fn fail(&mut self, key: K, failure: Failure<K>, effects: &mut Vec<Effect<K, R>>) {
        let origin = origin_of(key, &failure);
        let mut failed = BTreeSet::new();
        let mut work = vec![(key, failure)];
        // A list, not recursion: a chain may be ten thousand stages deep.
        while let Some((key, failure)) = work.pop() {
            self.detach(key);
            let node = self.node(key);
            node.state = State::Failed { failure };
            failed.insert(key);
            for dependent in std::mem::take(&mut node.dependents) {
                if let Some(waiting) = self.nodes.get(&dependent)
                    && matches!(waiting.state, State::WaitingForInputs { .. })
                {
                    work.push((dependent, Failure::Input(origin)));
                }
            }
        }
        for id in self.jobs_hit_by(&failed) {
            let Some(job) = self.jobs.get_mut(&id) else {
                continue;
            };
            if job.ending.is_none() && !job.failed.contains(&origin) {
                job.failed.push(origin);
            }
            if job.policy == FailurePolicy::Cancel {
                self.end_early(id, Ending::Failed, effects);
            }
        }
    }

    /// Returns the jobs that these failures are failures of: what stands in the way of a root, and for a job that keeps
    /// going all that is part of it. A job whose root may still be found without them has not failed.
    fn jobs_hit_by(&self, failed: &BTreeSet<K>) -> BTreeSet<JobId> {
        let parts = failed.iter().flat_map(|key| self.nodes[key].jobs.keys());
        let is_hit = |id: &JobId| {
            self.jobs.get(id).is_some_and(|job| {
                job.policy == FailurePolicy::KeepGoing
                    || job.roots.iter().any(|root| failed.contains(root))
            })
        };
        parts.copied().filter(is_hit).collect()
    }

    /// Takes a vertex that waits off the lists of its inputs, so that none counts it down later.
    fn detach(&mut self, key: K) {
        if !matches!(self.nodes[&key].state, State::WaitingForInputs { .. }) {
            return;
        }
        for input in self.inputs(key).to_vec() {
            self.node(input)
                .dependents
                .retain(|dependent| *dependent != key);
        }
    }

    /// Lets go of all that only this job wants; the job ends when that has answered.
    fn end_early(&mut self, id: JobId, ending: Ending, effects: &mut Vec<Effect<K, R>>) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if job.ending.is_some() {
            return;
        }
        job.ending = Some(ending);
        let vertices = job.vertices.clone();
        let mut orphans = Vec::new();
        let needed = self.needed_by_live_jobs(&mut orphans);
        let mut draining = BTreeSet::new();
        for key in vertices {
            if needed.contains(&key) {
                continue;
            }
            self.detach(key);
            let node = self.node(key);
            match node.state {
                State::LookingUp | State::Matching | State::Running => {
                    node.state = State::Abandoned {
                        wanted_again: false,
                    };
                    effects.push(Effect::Abort { key });
                    draining.insert(key);
                }
                State::Abandoned { .. } => {
                    node.state = State::Abandoned {
                        wanted_again: false,
                    };
                    draining.insert(key);
                }
                State::WaitingForInputs { .. } | State::Queued => node.state = State::Idle,
                State::Idle | State::Done { .. } | State::Failed { .. } => {}
            }
        }
        let nodes = &self.nodes;
        self.queue.retain(|key| {
            nodes
                .get(key)
                .is_some_and(|node| matches!(node.state, State::Queued))
        });
        if let Some(job) = self.jobs.get_mut(&id) {
            job.draining = draining;
        }
        for key in orphans {
            // The failure of one may have ended who wanted the next.
            if matches!(self.nodes[&key].state, State::Idle)
                && self.nodes[&key].jobs.keys().any(|job| self.is_live(*job))
            {
                self.demand_inputs(key, effects);
            }
        }
    }

    /// Returns what the jobs that are not ending have asked for, directly or through a vertex that
    /// waits. Being part of a job's graph is not enough: a cached root asks for nothing below it.
    ///
    /// What waits with inputs of a job that is ending is handed over to one that is not, and named in `orphans`: it has
    /// to ask for its inputs there.
    fn needed_by_live_jobs(&mut self, orphans: &mut Vec<K>) -> BTreeSet<K> {
        let mut needed = BTreeSet::new();
        let mut work: Vec<K> = Vec::new();
        for job in self.jobs.values().filter(|job| job.ending.is_none()) {
            work.extend(&job.roots);
            if job.policy == FailurePolicy::KeepGoing {
                let pending = |key: &&K| self.nodes[*key].is_pending();
                work.extend(job.vertices.iter().filter(pending));
            }
        }
        while let Some(key) = work.pop() {
            if needed.insert(key) {
                let state = &self.nodes[&key].state;
                let waits = matches!(state, State::WaitingForInputs { .. });
                let queued = matches!(state, State::Queued);
                if (waits || queued) && self.is_orphan(key) {
                    self.detach(key);
                    self.node(key).state = State::Idle;
                    self.lead(key);
                    orphans.push(key);
                    work.extend(self.inputs(key));
                } else if waits {
                    work.extend(self.inputs(key));
                }
            }
        }
        needed
    }

    /// Takes the answer of a vertex that was let go; returns whether it was one.
    fn answer_abandoned(&mut self, key: K, effects: &mut Vec<Effect<K, R>>) -> bool {
        let node = self.node(key);
        let State::Abandoned { wanted_again } = node.state else {
            return false;
        };
        node.state = State::Idle;
        for job in self.jobs.values_mut() {
            job.draining.remove(&key);
        }
        if wanted_again {
            self.demand(key, effects);
        }
        true
    }

    /// Ends the jobs that have nothing left to wait for and forgets what no job holds.
    fn settle(&mut self, effects: &mut Vec<Effect<K, R>>) {
        let endings: Vec<(JobId, Ending)> = self
            .jobs
            .iter()
            .filter_map(|(id, job)| self.ending_of(job).map(|ending| (*id, ending)))
            .collect();
        for (id, ending) in endings {
            self.end_early(id, ending, effects);
        }
        let ended: Vec<JobId> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.ending.is_some() && job.draining.is_empty())
            .map(|(id, _)| *id)
            .collect();
        for id in ended {
            if let Some(job) = self.jobs.remove(&id) {
                let outcome = self.outcome_of(&job);
                for key in job.vertices {
                    self.release(key, id);
                }
                effects.push(Effect::Finish { job: id, outcome });
            }
        }
    }

    /// Returns how a job that nobody has ended yet ends now, if it does.
    fn ending_of(&self, job: &Job<K>) -> Option<Ending> {
        if job.ending.is_some() {
            return None;
        }
        let mut complete = true;
        for root in &job.roots {
            match self.nodes[root].state {
                State::Done { .. } => {}
                State::Failed { .. } => complete = false,
                _ => return None,
            }
        }
        if complete {
            return Some(Ending::Complete);
        }
        let pending = job.vertices.iter().any(|key| self.nodes[key].is_pending());
        (!pending).then_some(Ending::Failed)
    }

    fn outcome_of(&self, job: &Job<K>) -> JobOutcome<K, R> {
        if job.ending == Some(Ending::Canceled) {
            return JobOutcome::Canceled;
        }
        let results = job.roots.iter().map(|root| match &self.nodes[root].state {
            State::Done { result } => Some(result.clone()),
            _ => None,
        });
        match results.collect() {
            Some(results) if job.ending == Some(Ending::Complete) => JobOutcome::Complete(results),
            _ => self.failure_of(job),
        }
    }

    /// Names what failed, also what had failed for another job before this one came.
    fn failure_of(&self, job: &Job<K>) -> JobOutcome<K, R> {
        let mut failed = job.failed.clone();
        for root in &job.roots {
            if let State::Failed { failure } = &self.nodes[root].state {
                let origin = origin_of(*root, failure);
                if !failed.contains(&origin) {
                    failed.push(origin);
                }
            }
        }
        JobOutcome::Failed(failed)
    }

    fn release(&mut self, key: K, job: JobId) {
        if let Some(node) = self.nodes.get_mut(&key) {
            node.jobs.remove(&job);
            if node.jobs.is_empty() && !node.is_in_flight() {
                self.nodes.remove(&key);
            }
        }
    }

    fn results_of_inputs(&self, key: K) -> Vec<R> {
        self.inputs(key)
            .iter()
            .map(|input| match &self.nodes[input].state {
                State::Done { result } => result.clone(),
                state => unreachable!("input {input:?} of {key:?} is {state:?}"),
            })
            .collect()
    }

    fn node(&mut self, key: K) -> &mut Node<K, R> {
        match self.nodes.get_mut(&key) {
            Some(node) => node,
            None => unreachable!("an answer for {key:?}, which was not asked about"),
        }
    }
}

fn origin_of<K: Copy>(key: K, failure: &Failure<K>) -> K {
    match failure {
        Failure::Own => key,
        Failure::Input(origin) => *origin,
    }
}
