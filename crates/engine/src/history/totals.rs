//! What a build comes to: counts, the slowest steps, the critical path.

use std::collections::HashMap;

use serde::Serialize;

use super::record::{BuildRecord, StepKind, StepOutcome, StepRecord};

/// The steps of a build, counted. What the builder does around the graph is not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    pub cached: usize,
    pub ran: usize,
    pub failed: usize,
    pub canceled: usize,
    pub skipped: usize,
}

impl Totals {
    /// Counts the steps of a build.
    pub fn of(record: &BuildRecord) -> Self {
        let mut totals = Self::default();
        for step in record.steps.iter().filter(|step| step.is_instruction()) {
            *match step.outcome {
                StepOutcome::Cached => &mut totals.cached,
                StepOutcome::Ran => &mut totals.ran,
                StepOutcome::Failed => &mut totals.failed,
                StepOutcome::Canceled => &mut totals.canceled,
                StepOutcome::Skipped => &mut totals.skipped,
            } += 1;
        }
        totals
    }

    /// Returns how many steps there are.
    pub fn all(&self) -> usize {
        self.cached + self.ran + self.failed + self.canceled + self.skipped
    }
}

impl StepRecord {
    /// Returns whether it is a step of the Dockerfile: an instruction, or a base image.
    pub fn is_instruction(&self) -> bool {
        match self.kind {
            StepKind::Image | StepKind::Exec | StepKind::File => true,
            StepKind::Source | StepKind::Builder => false,
        }
    }
}

impl BuildRecord {
    /// Returns the steps that took longest, the longest first; what was cached took no time.
    pub fn slowest(&self, most: usize) -> Vec<&StepRecord> {
        let mut steps: Vec<&StepRecord> = self
            .steps
            .iter()
            .filter(|step| step.is_instruction() && step.outcome != StepOutcome::Cached)
            .filter(|step| step.nanoseconds() > 0)
            .collect();
        steps.sort_by_key(|step| std::cmp::Reverse(step.nanoseconds()));
        steps.truncate(most);
        steps
    }

    /// Returns the chain of steps that took longest from the first to the last: the build cannot become faster than
    /// that without one of them doing so. Steps that took no time are left out.
    pub fn critical_path(&self) -> Vec<&StepRecord> {
        let index: HashMap<_, usize> = self
            .steps
            .iter()
            .enumerate()
            .map(|(number, step)| (&step.vertex, number))
            .collect();
        // Inputs come before what uses them; what a hostile record says otherwise is not followed.
        let mut longest: Vec<(u64, Option<usize>)> = Vec::with_capacity(self.steps.len());
        for (number, step) in self.steps.iter().enumerate() {
            let before = step
                .inputs
                .iter()
                .filter_map(|input| index.get(input).copied())
                .filter(|input| *input < number)
                .max_by_key(|input| longest[*input].0);
            let own = match step.outcome {
                StepOutcome::Cached | StepOutcome::Skipped => 0,
                _ => step.nanoseconds(),
            };
            let above = before.map_or(0, |input| longest[input].0);
            longest.push((above.saturating_add(own), before));
        }
        let last = (0..self.steps.len())
            .filter(|number| self.steps[*number].is_instruction())
            .max_by_key(|number| (longest[*number].0, std::cmp::Reverse(*number)));
        let mut path = Vec::new();
        let mut at = last.filter(|number| longest[*number].0 > 0);
        while let Some(number) = at {
            let (sum, before) = longest[number];
            if before.map_or(0, |input| longest[input].0) < sum {
                path.push(&self.steps[number]);
            }
            at = before;
        }
        path.reverse();
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::testing::{record, step};

    #[test]
    fn the_critical_path_is_the_longest_chain() {
        let mut record = record("b", &[]);
        record.steps = vec![
            step("[base 1/1] FROM x", &[], 5),
            step("[a 1/2] RUN quick", &["[base 1/1] FROM x"], 1),
            step("[b 1/2] RUN slow", &["[base 1/1] FROM x"], 9),
            step("[a 2/2] RUN long", &["[a 1/2] RUN quick"], 7),
            step("[c 1/1] COPY", &["[a 2/2] RUN long", "[b 1/2] RUN slow"], 0),
        ];
        let names = |steps: Vec<&StepRecord>| -> Vec<String> {
            steps.iter().map(|step| step.name.clone()).collect()
        };
        assert_eq!(
            names(record.critical_path()),
            ["[base 1/1] FROM x", "[b 1/2] RUN slow"]
        );
        assert_eq!(
            names(record.slowest(2)),
            ["[b 1/2] RUN slow", "[a 2/2] RUN long"]
        );
        record.steps[2].outcome = StepOutcome::Cached;
        assert_eq!(
            names(record.critical_path()),
            ["[base 1/1] FROM x", "[a 1/2] RUN quick", "[a 2/2] RUN long"]
        );
        assert_eq!(Totals::of(&record).cached, 1);
        assert_eq!(Totals::of(&record).all(), 5);
        record
            .steps
            .iter_mut()
            .for_each(|step| step.outcome = StepOutcome::Cached);
        assert_eq!(names(record.critical_path()), [""; 0]);
    }
}
