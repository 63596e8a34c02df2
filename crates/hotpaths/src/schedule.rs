//! A graph run to its end by the scheduler, with answers that are always there at once.

use solver::{Class, Effect, Event, FailurePolicy, JobOutcome, Scheduler, Vertex};

/// Runs a graph in which each vertex needs up to three before it; returns how many were run.
pub(crate) fn run(count: u32) -> usize {
    let vertices = (0..count).map(|number| Vertex {
        key: number,
        inputs: [1, 7, 40]
            .into_iter()
            .filter_map(|back| number.checked_sub(back))
            .collect(),
        class: if number % 2 == 0 {
            Class::Step
        } else {
            Class::Free
        },
    });
    let mut scheduler = Scheduler::<u32, u32>::new(16);
    let (_, effects) = scheduler
        .submit(vertices.collect(), vec![count - 1], FailurePolicy::Cancel)
        .expect("inputs stand before what needs them");
    let (mut todo, mut ran) = (effects, 0);
    while let Some(effect) = todo.pop() {
        let event = match effect {
            Effect::LookUp { key, .. } => Event::LookedUp { key, found: None },
            Effect::Match { key, .. } => Event::Matched { key, found: None },
            Effect::Run { key, .. } => {
                ran += 1;
                Event::Ran {
                    key,
                    result: Some(key),
                }
            }
            Effect::Abort { key } => Event::Ran { key, result: None },
            Effect::Finish { outcome, .. } => {
                assert!(matches!(outcome, JobOutcome::Complete(_)));
                continue;
            }
        };
        todo.extend(scheduler.handle(event));
    }
    ran
}
