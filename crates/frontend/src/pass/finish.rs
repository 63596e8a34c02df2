//! The end of a lowering: the target's graph and image.

use llb::Graph;

use super::Pass;
use super::stages::Needed;
use crate::error::{Stop, nowhere};
use crate::{PlatformBuild, StageRole, StageSummary};

impl Pass<'_> {
    pub(super) fn finish(&mut self, target: usize, needed: &Needed) -> Result<PlatformBuild, Stop> {
        // All of the target is used: it is the result.
        self.states[target].paths.borrow_mut().add_all();
        let scanned = self.scan_outputs(target, needed)?;
        self.set_local_paths();
        let options = self.options;
        let stage = &self.states[target];
        let mut config = self.history.config(&stage.image);
        let labels = options
            .labels
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()));
        config.config.labels.extend(labels);
        if !self.implicit_platform {
            let (wanted, found) = (&self.target_platform, &mut config.platform);
            let same = wanted.os == found.os && wanted.architecture == found.architecture;
            found.os.clone_from(&wanted.os);
            found.architecture.clone_from(&wanted.architecture);
            if !wanted.variant.is_empty() || !same {
                found.variant.clone_from(&wanted.variant);
            }
            if !wanted.os_version.is_empty() || !same {
                found.os_version.clone_from(&wanted.os_version);
            }
            if !wanted.os_features.is_empty() {
                found.os_features.clone_from(&wanted.os_features);
            }
        }
        config.platform = config.platform.normalized();
        let scan_targets = self.scan_targets(scanned)?;
        let graph = std::mem::take(&mut self.graph).finish(stage.state.output);
        let graph: Graph = graph.map_err(|problem| nowhere("graph", problem.to_string()))?;
        let contexts = self.context_uses(&graph);
        Ok(PlatformBuild {
            platform: self.target_platform.normalized(),
            graph,
            config,
            base_config: stage.base_image.as_deref().cloned(),
            epoch: self.epoch,
            ignore_cache: stage.ignore_cache,
            contexts,
            scan_targets,
            stages: self.summaries(target, needed),
        })
    }

    fn summaries(&self, target: usize, needed: &Needed) -> Vec<StageSummary> {
        let stages = self.states.iter().zip(needed).enumerate();
        let own = stages.filter(|(_, (stage, _))| !stage.unregistered);
        own.map(|(number, (stage, needed))| StageSummary {
            name: stage.name.clone(),
            base: stage.base_name.clone(),
            lines: stage.lines,
            role: match (number == target, needed) {
                (true, _) => StageRole::Target,
                (false, true) => StageRole::Needed,
                (false, false) => StageRole::Skipped,
            },
        })
        .collect()
    }
}
