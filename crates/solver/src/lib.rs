//! Generic graph executor: which vertex is looked up, matched or run, and when.
//!
//! *Responsibility*: the scheduling of a build graph as a state machine without I/O.
//! [`Scheduler::handle`] takes what happened and returns what to do next; a driver carries it out
//! and reports back. Equal vertices of several jobs are one.
//!
//! *Not here*: what a vertex means, how keys are made, where results lie. Keys and results are
//! type parameters.
//!
//! *Invariants*: a vertex is run at most once at a time; each effect is answered by exactly one
//! event; a job ends exactly once; after a job has ended nothing of it runs; a vertex whose result
//! is found by its definition key never asks for its inputs.

mod node;
mod scheduler;
#[cfg(test)]
mod simulation;

pub use scheduler::{
    Class, Effect, Event, Failure, FailurePolicy, JobId, JobOutcome, Scheduler, SubmitError, Vertex,
};
