//! Random graphs, completion orders, failures and cancels, each made from a printed seed.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Class, Effect, Event, FailurePolicy, JobId, JobOutcome, Scheduler, Vertex};

type Key = u32;
type Answer = u64;

/// A small generator of our own: the seed alone must name the run, whatever crate versions are.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.next() % 100 < chance
    }
}

fn combine(key: Key, inputs: &[Answer]) -> Answer {
    inputs.iter().fold(u64::from(key) + 1, |sum, input| {
        sum.wrapping_mul(0x0100_0000_01b3).wrapping_add(*input)
    })
}

struct World {
    random: Random,
    scheduler: Scheduler<Key, Answer>,
    inputs: BTreeMap<Key, Vec<Key>>,
    classes: BTreeMap<Key, Class>,
    failing: BTreeSet<Key>,
    /// What lookups may find.
    records: BTreeMap<Key, Answer>,
    pending: Vec<Effect<Key, Answer>>,
    aborted: BTreeSet<Key>,
    running_steps: usize,
    slots: usize,
    live: BTreeMap<JobId, (Vec<Key>, FailurePolicy, BTreeSet<Key>)>,
    canceled: BTreeSet<JobId>,
    runs: BTreeMap<Key, usize>,
}

impl World {
    fn truth(&self, key: Key) -> Answer {
        let inputs: Vec<Answer> = self.inputs[&key].iter().map(|k| self.truth(*k)).collect();
        combine(key, &inputs)
    }

    fn take(&mut self, effects: Vec<Effect<Key, Answer>>) {
        for effect in effects {
            match &effect {
                Effect::Abort { key } => {
                    assert!(
                        self.pending.iter().any(|p| key_of(p) == Some(*key)),
                        "abort of {key}, which has nothing under way"
                    );
                    self.aborted.insert(*key);
                }
                Effect::Finish { job, outcome } => self.finish(*job, outcome),
                Effect::LookUp { key } | Effect::Match { key, .. } | Effect::Run { key, .. } => {
                    assert!(
                        !self.pending.iter().any(|p| key_of(p) == Some(*key)),
                        "two effects for {key} at once"
                    );
                    if matches!(effect, Effect::Run { .. }) {
                        *self.runs.entry(*key).or_default() += 1;
                        if self.classes[key] == Class::Step {
                            self.running_steps += 1;
                            assert!(self.running_steps <= self.slots, "too many steps at once");
                        }
                    }
                    self.pending.push(effect);
                }
            }
        }
    }

    fn finish(&mut self, job: JobId, outcome: &JobOutcome<Key, Answer>) {
        let (roots, policy, members) = self.live.remove(&job).expect("a job ends once");
        let canceled = self.canceled.contains(&job);
        match outcome {
            JobOutcome::Complete(answers) => {
                let expected: Vec<Answer> = roots.iter().map(|r| self.truth(*r)).collect();
                assert_eq!(*answers, expected, "cached equals uncached");
            }
            JobOutcome::Failed(failed) => {
                assert!(!failed.is_empty(), "a failure names its vertex");
                assert!(failed.iter().all(|f| self.failing.contains(f)));
                if policy == FailurePolicy::Cancel {
                    let alone = |key: &Key| {
                        members.contains(key)
                            && !self.live.values().any(|(_, _, other)| other.contains(key))
                    };
                    assert!(
                        !self.pending.iter().filter_map(key_of).any(|k| alone(&k)),
                        "nothing of an ended job is under way"
                    );
                }
            }
            JobOutcome::Canceled => assert!(canceled),
        }
    }

    fn step(&mut self) {
        let at = self.random.below(self.pending.len());
        let effect = self.pending.swap_remove(at);
        let effects = match effect {
            Effect::LookUp { key } => {
                self.aborted.remove(&key);
                let found = self.find(key, 50);
                self.scheduler.handle(Event::LookedUp { key, found })
            }
            Effect::Match { key, inputs } => {
                self.aborted.remove(&key);
                let truths: Vec<Answer> =
                    self.inputs[&key].iter().map(|k| self.truth(*k)).collect();
                assert_eq!(inputs, truths, "inputs come in their order");
                let found = self.find(key, 20);
                self.scheduler.handle(Event::Matched { key, found })
            }
            Effect::Run { key, inputs } => {
                if self.classes[&key] == Class::Step {
                    self.running_steps -= 1;
                }
                let obeyed = self.aborted.remove(&key) && self.random.percent(70);
                let result = (!obeyed && !self.failing.contains(&key)).then(|| {
                    let answer = combine(key, &inputs);
                    self.records.insert(key, answer);
                    answer
                });
                self.scheduler.handle(Event::Ran { key, result })
            }
            Effect::Abort { .. } | Effect::Finish { .. } => unreachable!("kept no such effect"),
        };
        self.take(effects);
    }

    fn find(&mut self, key: Key, chance: u64) -> Option<Answer> {
        let found = self.records.get(&key).copied();
        found.filter(|_| self.random.percent(chance))
    }

    fn submit(&mut self) {
        let count = self.inputs.len();
        let roots: BTreeSet<Key> = (0..1 + self.random.below(2))
            .map(|_| self.random.below(count) as Key)
            .collect();
        let mut members = BTreeSet::new();
        let mut stack: Vec<Key> = roots.iter().copied().collect();
        while let Some(key) = stack.pop() {
            if members.insert(key) {
                stack.extend(&self.inputs[&key]);
            }
        }
        // Inputs have smaller keys, so the order of the set is an order of dependence.
        let vertices = members
            .iter()
            .map(|key| Vertex {
                key: *key,
                inputs: self.inputs[key].clone(),
                class: self.classes[key],
            })
            .collect();
        let policy = if self.random.percent(50) {
            FailurePolicy::Cancel
        } else {
            FailurePolicy::KeepGoing
        };
        let roots: Vec<Key> = roots.into_iter().collect();
        let (id, effects) = self
            .scheduler
            .submit(vertices, roots.clone(), policy)
            .expect("a graph in order is taken");
        self.live.insert(id, (roots, policy, members));
        self.take(effects);
    }
}

fn key_of(effect: &Effect<Key, Answer>) -> Option<Key> {
    match effect {
        Effect::LookUp { key } | Effect::Match { key, .. } | Effect::Run { key, .. } => Some(*key),
        Effect::Abort { .. } | Effect::Finish { .. } => None,
    }
}

fn world(seed: u64) -> World {
    let mut random = Random(seed);
    let count = 1 + random.below(12);
    let mut inputs = BTreeMap::new();
    let mut classes = BTreeMap::new();
    let mut failing = BTreeSet::new();
    for key in 0..count as Key {
        let edges = random.below(4).min(key as usize);
        // The same input twice is legal: COPY --from of one stage onto itself.
        let list = (0..edges)
            .map(|_| random.below(key as usize) as Key)
            .collect();
        inputs.insert(key, list);
        let class = if random.percent(60) {
            Class::Step
        } else {
            Class::Free
        };
        classes.insert(key, class);
        if random.percent(8) {
            failing.insert(key);
        }
    }
    let slots = 1 + random.below(3);
    World {
        random,
        scheduler: Scheduler::new(slots),
        inputs,
        classes,
        failing,
        records: BTreeMap::new(),
        pending: Vec::new(),
        aborted: BTreeSet::new(),
        running_steps: 0,
        slots,
        live: BTreeMap::new(),
        canceled: BTreeSet::new(),
        runs: BTreeMap::new(),
    }
}

/// Plays one world to its end; panics name the seed.
fn play(seed: u64) {
    let mut world = world(seed);
    let mut jobs_left = 1 + world.random.below(4);
    let mut steps = 0;
    let single = jobs_left == 1;
    let mut canceled_any = false;
    while jobs_left > 0 || !world.pending.is_empty() {
        steps += 1;
        assert!(steps < 10_000, "it ends");
        if jobs_left > 0 && (world.pending.is_empty() || world.random.percent(20)) {
            jobs_left -= 1;
            world.submit();
        } else if world.random.percent(3) && !world.live.is_empty() {
            let at = world.random.below(world.live.len());
            let job = *world.live.keys().nth(at).expect("it is in range");
            world.canceled.insert(job);
            canceled_any = true;
            let effects = world.scheduler.handle(Event::Cancel { job });
            world.take(effects);
        } else if !world.pending.is_empty() {
            world.step();
        }
    }
    assert!(world.live.is_empty(), "no wake-up is lost");
    assert!(world.scheduler.is_empty(), "nothing is kept");
    if single && !canceled_any {
        assert!(
            world.runs.values().all(|runs| *runs == 1),
            "each vertex at most once"
        );
    }
}

#[test]
fn invariants_hold_for_random_graphs_and_orders() {
    let first: u64 = std::env::var("SOLVER_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    for seed in first..first + 100_000 {
        if let Err(panic) = std::panic::catch_unwind(|| play(seed)) {
            eprintln!("seed {seed} (SOLVER_SEED={seed} runs it first)");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn a_chain_of_a_hundred_thousand_fails_without_recursion() {
    let mut scheduler: Scheduler<u32, u64> = Scheduler::new(1);
    let vertices = (0..100_000u32)
        .map(|key| Vertex {
            key,
            inputs: key.checked_sub(1).into_iter().collect(),
            class: Class::Step,
        })
        .collect();
    let (_, mut effects) = scheduler
        .submit(vertices, vec![99_999], FailurePolicy::Cancel)
        .expect("a chain is a graph");
    let mut outcome = None;
    while let Some(effect) = effects.pop() {
        let event = match effect {
            Effect::LookUp { key } => Event::LookedUp { key, found: None },
            Effect::Match { key, .. } => Event::Matched { key, found: None },
            Effect::Run { key, .. } => Event::Ran { key, result: None },
            Effect::Finish { outcome: ended, .. } => {
                outcome = Some(ended);
                continue;
            }
            Effect::Abort { .. } => continue,
        };
        effects.extend(scheduler.handle(event));
    }
    assert_eq!(outcome, Some(JobOutcome::Failed(vec![0])));
}

#[test]
fn a_graph_out_of_order_is_refused() {
    let mut scheduler: Scheduler<u32, u64> = Scheduler::new(1);
    let vertex = |key, inputs: &[u32]| Vertex {
        key,
        inputs: inputs.to_vec(),
        class: Class::Free,
    };
    let taken = scheduler.submit(
        vec![vertex(1, &[2]), vertex(2, &[])],
        vec![1],
        FailurePolicy::Cancel,
    );
    assert_eq!(
        taken.err(),
        Some(crate::SubmitError::UnknownInput { vertex: 0 })
    );
}
