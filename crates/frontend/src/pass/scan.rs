//! What else than the result a Dockerfile wants scanned for a bill of materials.

use llb::Output;

use super::Pass;
use super::stages::Needed;
use crate::ScanTarget;
use crate::error::{Outcome, nowhere};

const CONTEXT: &str = "BUILDKIT_SBOM_SCAN_CONTEXT";
const STAGE: &str = "BUILDKIT_SBOM_SCAN_STAGE";

impl Pass<'_> {
    /// Returns the trees to be scanned beside the target's: the context, and stages the target depends on.
    pub(super) fn scan_outputs(
        &mut self,
        target: usize,
        needed: &Needed,
    ) -> Outcome<Vec<(String, Option<Output>)>> {
        let mut outputs = Vec::new();
        if !self.options.scan_targets {
            return Ok(outputs);
        }
        if self.is_wanted(CONTEXT, target) {
            outputs.push(("context".to_owned(), Some(self.main_context()?)));
        }
        for (number, needed) in needed.iter().enumerate() {
            if *needed
                && number != target
                && !self.states[number].unregistered
                && self.is_wanted(STAGE, number)
            {
                let stage = &self.states[number];
                outputs.push((stage.label.clone(), stage.state.output));
            }
        }
        Ok(outputs)
    }

    pub(super) fn scan_targets(
        &self,
        outputs: Vec<(String, Option<Output>)>,
    ) -> Outcome<Vec<ScanTarget>> {
        let targets = outputs.into_iter().map(|(name, output)| {
            let graph = self.graph.clone().finish(output);
            let graph = graph.map_err(|problem| nowhere("graph", problem.to_string()))?;
            Ok(ScanTarget { name, graph })
        });
        targets.collect()
    }

    /// Reads an argument that is true, false, or a list of stages; that of the stage counts, then the file's.
    fn is_wanted(&self, argument: &str, stage: usize) -> bool {
        let stage = &self.states[stage];
        let mut next = stage.arguments;
        let mut own = None;
        while let (None, Some(number)) = (&own, next) {
            let found = &self.arguments[number];
            if &*found.name == argument {
                own.clone_from(&found.value);
            }
            next = found.before;
        }
        let value = own.as_deref().or_else(|| self.global.value(argument));
        value.is_some_and(|value| {
            dockerfile::parse_bool(value)
                .unwrap_or_else(|| value.split(',').any(|name| name == stage.name))
        })
    }
}
