//! One vertex as the scheduler sees it.

use std::collections::BTreeMap;

use crate::scheduler::{Class, Failure, JobId};

/// How far a vertex has come.
#[derive(Debug)]
pub(crate) enum State<K, R> {
    /// Nobody has asked for the result.
    Idle,
    /// The definition key is being looked up.
    LookingUp,
    /// The inputs are not all there; the number says how many are missing.
    WaitingForInputs { missing: usize },
    /// The content key is being looked up.
    Matching,
    /// Ready to run, no slot is free.
    Queued,
    /// The operation runs.
    Running,
    /// A lookup or run nobody wants any more; `wanted_again` if a new job asked meanwhile.
    Abandoned { wanted_again: bool },
    /// The result is known.
    Done { result: R },
    /// There will be no result.
    Failed { failure: Failure<K> },
}

#[derive(Debug)]
pub(crate) struct Node<K, R> {
    pub(crate) class: Class,
    pub(crate) state: State<K, R>,
    /// Jobs whose graph holds this vertex, with its inputs there: those that its key does not speak of may differ.
    pub(crate) jobs: BTreeMap<JobId, Vec<K>>,
    /// The job by whose graph and inputs it is worked on.
    pub(crate) lead: JobId,
    /// Vertices that wait for this one's result. One entry for each edge.
    pub(crate) dependents: Vec<K>,
}

impl<K, R> Node<K, R> {
    pub(crate) fn is_in_flight(&self) -> bool {
        matches!(
            self.state,
            State::LookingUp | State::Matching | State::Running | State::Abandoned { .. }
        )
    }

    pub(crate) fn is_finished(&self) -> bool {
        matches!(self.state, State::Done { .. } | State::Failed { .. })
    }

    /// Returns whether the result is asked for and not yet there.
    pub(crate) fn is_pending(&self) -> bool {
        !matches!(self.state, State::Idle) && !self.is_finished()
    }
}
