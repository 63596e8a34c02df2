//! What a build would do, without doing it.
//!
//! The graph is made and keyed as for a build, and its keys are looked up as the solver would: the target first,
//! inputs only of what is not there. Nothing is run, copied or recorded. Base images that are not known are asked for
//! at their registry, as the keys depend on them; files behind URLs are downloaded for the same reason.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use oci::{Digest, Platform, Timestamp};
use progress::Sink;
use serde::Serialize;

use crate::build::{Captured, contexts_of, failure_at, planning_failure};
use crate::cache::Imports;
use crate::error::BuildFailure;
use crate::history::{
    self, BuildRecord, Explanation, History, Known, StepKind, StepOutcome, StepRecord, files,
};
use crate::plan::{self, Pinned};
use crate::request::BuildRequest;
use crate::source::fetched;
use crate::step::StepContext;
use crate::vertex::{VertexAction, VertexWork};
use crate::{Engine, EngineError};

/// What a build would do.
#[derive(Debug, Clone, Serialize)]
pub struct Forecast {
    /// In the order of the graph. Steps below a result that is there are part of it.
    pub steps: Vec<Foreseen>,
    /// Nanoseconds of the longest chain of steps that would run, as far as earlier builds tell.
    pub expected: u64,
    /// Steps that would run and of which no earlier build tells.
    pub unknown: usize,
    /// Bytes that would be fetched.
    pub download: u64,
}

/// What would become of one step.
#[derive(Debug, Clone, Serialize)]
pub struct Foreseen {
    pub step: String,
    pub vertex: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lines: Option<(u32, u32)>,
    pub fate: Fate,
    /// Nanoseconds it took when it last ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<u64>,
    /// Bytes its layer had then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Bytes that would be fetched for it.
    #[serde(skip_serializing_if = "is_zero")]
    pub download: u64,
    /// Why it would run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<Explanation>,
}

/// What would become of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// Its result is in the store or in a cache that the request names, or that of a step above it.
    Cached,
    /// It would run.
    Runs,
    /// It would run, unless what it builds on turns out to hold what it held before.
    Depends,
}

/// How many earlier builds are looked at.
const MOST_EARLIER: usize = 30;

impl Engine {
    /// Says what a build would do.
    pub fn forecast(&self, request: &BuildRequest) -> Result<Forecast, BuildFailure> {
        let _blobs = self.shared.store.hold_blobs();
        let sink = Sink::discard();
        let store = &self.shared.store;
        let mut record = history::opening(store, request, progress::system_clock());
        let loaded = self.read_sources(request, &sink)?;
        let mut known = Known {
            dockerfile: Some(loaded.source_text()),
            ..Known::default()
        };
        let in_file = |mut failure: BuildFailure| {
            failure.dockerfile = Some(loaded.source_text());
            failure
        };
        let lowered = self.lower(request, &loaded, &sink, &mut known);
        known.builds = lowered.map_err(|error| in_file(error.into()))?.builds;
        let platforms: Vec<Platform> = known
            .builds
            .iter()
            .map(|build| build.platform.clone())
            .collect();
        let caches = &request.cache_from;
        let context = Arc::new(StepContext {
            imports: Arc::new(Imports::load(&self.shared, caches, &platforms, &sink)),
            secrets: request.secrets.clone(),
            ssh: request.ssh.clone(),
            ..StepContext::new(Arc::clone(&self.shared))
        });
        let mut fates = HashMap::new();
        let mut captured = Captured::new();
        for build in &known.builds {
            let fetched = fetched::pin_all(
                &self.shared,
                &context.git_access(),
                loaded.pinned(),
                &build.graph,
                &sink,
            )
            .map_err(|(id, error)| in_file(failure_at(id, error, None, build)))?;
            let pinned = Pinned {
                images: known.images.clone(),
                fetched,
                contexts: contexts_of(&self.shared, &loaded, build, &mut captured, &sink)?,
                directories: BTreeMap::new(),
            };
            let works = plan::preview(&build.graph, &pinned, &context).map_err(|(id, error)| {
                in_file(planning_failure(id, error, &loaded, &pinned, build))
            })?;
            if let Some(edge) = build.graph.root() {
                fate_of(&works[edge.vertex], &mut fates)?;
            }
            known.works.extend(works);
        }
        record.steps = known
            .works
            .iter()
            .map(|work| step_of(work, &fates))
            .collect();
        let mut seen = HashSet::new();
        record.steps.retain(|step| seen.insert(step.vertex.clone()));
        history::complete(store, &mut record, &known);
        Ok(self.foretell(record, &known, &fates)?)
    }

    /// Adds what earlier builds tell.
    fn foretell(
        &self,
        mut record: BuildRecord,
        known: &Known,
        fates: &Fates,
    ) -> Result<Forecast, EngineError> {
        let history = History::new(&self.shared.store);
        let earlier = history.earlier(&record, MOST_EARLIER)?;
        let mut downloads = HashMap::new();
        for work in &known.works {
            if let VertexAction::Image(image) = &work.action
                && fates.get(&work.id.digest()) == Some(&Fate::Runs)
            {
                downloads.insert(work.id.digest(), image.missing_bytes(&self.shared)?);
            }
        }
        // Lists are kept when a step runs; those of now are made here.
        let mut lists = HashMap::new();
        for work in &known.works {
            let VertexAction::Operation(op) = &work.action else {
                continue;
            };
            let runs = fates
                .get(&work.id.digest())
                .is_some_and(|fate| *fate != Fate::Cached);
            for (number, (input, _)) in work.inputs.iter().enumerate().filter(|_| runs) {
                if let VertexAction::Context(tree) = &input.action {
                    lists.extend(files::lists(tree, op, number)?);
                }
            }
        }
        let mut steps = Vec::new();
        let mut unknown = 0;
        for number in 0..record.steps.len() {
            let step = &record.steps[number];
            if !step.is_instruction() {
                continue;
            }
            let fate = fates.get(&step.vertex).copied().unwrap_or(Fate::Cached);
            let then = history::last_run(step, &earlier);
            let expected = then.map(StepRecord::nanoseconds);
            let runs = fate != Fate::Cached;
            unknown += usize::from(runs && expected.is_none());
            steps.push(Foreseen {
                step: step.name.clone(),
                vertex: step.vertex.clone(),
                lines: step.lines,
                fate,
                expected: expected.filter(|_| runs),
                size: then.and_then(|then| Some(then.layer.as_ref()?.size)),
                download: downloads.get(&step.vertex).copied().unwrap_or(0),
                why: runs.then(|| history.explain_with(&record, step, &earlier, &lists)),
            });
            // As if it had run, so that the longest chain is found as in a build that did.
            let took = expected.filter(|_| runs).unwrap_or(0);
            let step = &mut record.steps[number];
            step.started = Some(Timestamp::EPOCH);
            step.completed = Some(history::time_of(i64::try_from(took).unwrap_or(i64::MAX)));
        }
        let path = record.critical_path();
        Ok(Forecast {
            expected: path.iter().map(|step| step.nanoseconds()).sum(),
            unknown,
            download: steps.iter().map(|step| step.download).sum(),
            steps,
        })
    }
}

type Fates = HashMap<Digest, Fate>;

/// Finds out what would become of a vertex and of those it would ask for.
fn fate_of(root: &Arc<VertexWork>, fates: &mut Fates) -> Result<(), EngineError> {
    let mut stack: Vec<(&VertexWork, usize)> = vec![(root, 0)];
    while let Some((work, next)) = stack.pop() {
        if next == 0 {
            if fates.contains_key(&work.id.digest()) {
                continue;
            }
            if work.foresee()? {
                fates.insert(work.id.digest(), Fate::Cached);
                continue;
            }
        }
        if let Some((input, _)) = work.inputs.get(next) {
            stack.push((work, next + 1));
            stack.push((input, 0));
            continue;
        }
        let is_there = |input: &VertexWork| fates.get(&input.id.digest()) == Some(&Fate::Cached);
        let inputs_are_there = work.inputs.iter().all(|(input, _)| is_there(input));
        let fate = match !inputs_are_there && crate::driver::Work::may_match(work) {
            true => Fate::Depends,
            false => Fate::Runs,
        };
        fates.insert(work.id.digest(), fate);
    }
    Ok(())
}

/// Returns a step as it would be told.
fn step_of(work: &VertexWork, fates: &Fates) -> StepRecord {
    let vertex = work.id.digest();
    let outcome = match fates.get(&vertex) {
        Some(Fate::Runs | Fate::Depends) => StepOutcome::Ran,
        Some(Fate::Cached) | None => StepOutcome::Cached,
    };
    StepRecord {
        name: work.name.clone(),
        kind: StepKind::Builder,
        inputs: work
            .inputs
            .iter()
            .map(|(input, _)| input.id.digest())
            .collect(),
        outcome,
        ..StepRecord::unseen(vertex)
    }
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}
