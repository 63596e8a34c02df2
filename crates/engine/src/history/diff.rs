//! How two builds differ: in what was asked, what came from outside, keys, times, and what was made.

use std::collections::BTreeMap;

use serde::Serialize;

use super::explain::{Change, FindFiles, changes};
use super::record::{BuildRecord, OutputRecord, RequestRecord, StepOutcome, StepRecord};

/// The differences between two builds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BuildDiff {
    /// Nanoseconds the builds took.
    pub took: (u64, u64),
    /// What was asked for otherwise: option, before, after.
    pub request: Vec<Change>,
    /// What came from outside and is another: a base image's digest.
    pub sources: Vec<Change>,
    /// Steps in the order of the later build, then those that are gone. Equal ones are left out.
    pub steps: Vec<StepDiff>,
    /// How many steps are equal: of one key, and both cached or both not.
    pub equal: usize,
    /// What was made, by platform.
    pub outputs: Vec<OutputDiff>,
}

/// How one step differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepDiff {
    pub step: String,
    /// How it ended in each build; `None` where it is not part of it.
    pub outcome: (Option<StepOutcome>, Option<StepOutcome>),
    /// Nanoseconds.
    pub took: (u64, u64),
    pub changes: Vec<Change>,
    /// What it builds on has another key.
    pub inputs_changed: bool,
    /// Bytes of the layer's content.
    pub size: (Option<u64>, Option<u64>),
}

/// How one image differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OutputDiff {
    pub platform: String,
    pub image: (Option<String>, Option<String>),
    pub size: (u64, u64),
    pub layers: (usize, usize),
    /// Layers that both have.
    pub shared_layers: usize,
}

/// Compares two builds.
pub(super) fn diff(a: &BuildRecord, b: &BuildRecord, find_files: FindFiles<'_>) -> BuildDiff {
    let mut steps = Vec::new();
    let mut equal = 0;
    let mut taken = vec![false; a.steps.len()];
    for step in b.steps.iter().filter(|step| step.is_instruction()) {
        let before = counterpart(step, a, &taken).map(|number| {
            taken[number] = true;
            &a.steps[number]
        });
        let found = step_diff(before, Some(step), find_files);
        match is_equal(&found) {
            true => equal += 1,
            false => steps.push(found),
        }
    }
    for (number, step) in a.steps.iter().enumerate() {
        if step.is_instruction() && !taken[number] {
            steps.push(step_diff(Some(step), None, find_files));
        }
    }
    BuildDiff {
        took: (a.nanoseconds(a.started), b.nanoseconds(b.started)),
        request: request_changes(&a.request, &b.request),
        sources: changed(&sources(a), &sources(b)),
        steps,
        equal,
        outputs: outputs(a, b),
    }
}

fn is_equal(step: &StepDiff) -> bool {
    step.outcome.0 == step.outcome.1 && step.changes.is_empty() && !step.inputs_changed
}

/// Finds the step of the other build that stands for this one.
fn counterpart(step: &StepRecord, other: &BuildRecord, taken: &[bool]) -> Option<usize> {
    let place = |name: &str| -> Option<String> {
        let head = name.strip_prefix('[')?.split_once(']')?.0;
        Some(head.rsplit_once('/')?.0.to_owned())
    };
    let free = || {
        other.steps.iter().enumerate().filter(|(number, found)| {
            !taken[*number] && found.kind == step.kind && found.stage == step.stage
        })
    };
    free()
        .find(|(_, found)| found.name == step.name)
        .or_else(|| free().find(|(_, found)| found.command == step.command))
        .or_else(|| {
            let own = place(&step.name)?;
            free().find(|(_, found)| place(&found.name).as_ref() == Some(&own))
        })
        .map(|(number, _)| number)
}

fn step_diff(
    a: Option<&StepRecord>,
    b: Option<&StepRecord>,
    find_files: FindFiles<'_>,
) -> StepDiff {
    let took = |step: Option<&StepRecord>| match step {
        Some(step) if step.outcome != StepOutcome::Cached => step.nanoseconds(),
        _ => 0,
    };
    let size = |step: Option<&StepRecord>| Some(step?.layer.as_ref()?.size);
    let definition = |step: &StepRecord| step.key.as_ref().map(|key| key.definition.clone());
    let operation = |step: &StepRecord| step.key.as_ref().map(|key| key.operation.clone());
    let (own, inputs_changed) = match (a, b) {
        (Some(a), Some(b)) => {
            let own = changes(b, a, find_files);
            let differs = definition(a) != definition(b);
            let inputs = differs && (own.is_empty() || operation(a) == operation(b));
            (own, inputs)
        }
        _ => (Vec::new(), false),
    };
    StepDiff {
        step: b.or(a).map(|step| step.name.clone()).unwrap_or_default(),
        outcome: (a.map(|step| step.outcome), b.map(|step| step.outcome)),
        took: (took(a), took(b)),
        changes: own,
        inputs_changed,
        size: (size(a), size(b)),
    }
}

fn sources(build: &BuildRecord) -> BTreeMap<String, String> {
    let sources = build.sources.iter().filter_map(|source| {
        // The name without its digest, which is what changes.
        let name = source.name();
        let digest = source.digest.as_ref()?;
        Some((name.to_owned(), digest.to_string()))
    });
    sources.collect()
}

/// Returns where two maps differ, by name.
fn changed(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> Vec<Change> {
    let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .filter(|name| a.get(*name) != b.get(*name))
        .map(|name| Change {
            part: name.clone(),
            before: a.get(name).cloned(),
            after: b.get(name).cloned(),
            files: None,
        })
        .collect()
}

fn request_changes(a: &RequestRecord, b: &RequestRecord) -> Vec<Change> {
    changed(&options(a), &options(b))
}

/// Returns what was asked for, by the option's name.
fn options(request: &RequestRecord) -> BTreeMap<String, String> {
    let RequestRecord {
        context,
        dockerfile,
        target,
        platforms,
        build_args,
        labels,
        named_contexts,
        tags,
        no_cache,
        no_cache_filter,
        pull,
        network,
        caches,
        runtime,
        outputs,
        secrets,
        source_date_epoch,
    } = request;
    let mut options = BTreeMap::new();
    let mut put = |name: &str, value: String| {
        if !value.is_empty() {
            options.insert(name.to_owned(), value);
        }
    };
    put("context", context.clone());
    put("--file", dockerfile.clone());
    put("--target", target.clone().unwrap_or_default());
    put("--platform", platforms.join(","));
    put("--tag", tags.join(", "));
    put("--no-cache", flag(*no_cache));
    put("--no-cache-filter", no_cache_filter.join(","));
    put("--pull", flag(*pull));
    put("--network", network.clone());
    put("--runtime", runtime.clone());
    put("--cache-from", caches.join(", "));
    put("--output", outputs.join(", "));
    put("--secret", secrets.join(", "));
    let epoch = source_date_epoch.map(|epoch| epoch.to_string());
    put("SOURCE_DATE_EPOCH", epoch.unwrap_or_default());
    let maps = [
        ("--build-arg", build_args),
        ("--label", labels),
        ("--build-context", named_contexts),
    ];
    for (option, values) in maps {
        for (name, value) in values {
            options.insert(format!("{option} {name}"), value.clone());
        }
    }
    options
}

fn flag(value: bool) -> String {
    match value {
        true => "true".to_owned(),
        false => String::new(),
    }
}

fn outputs(a: &BuildRecord, b: &BuildRecord) -> Vec<OutputDiff> {
    let by_platform = |build: &BuildRecord| -> BTreeMap<String, OutputRecord> {
        let outputs = build.outputs.iter();
        outputs
            .map(|output| (output.platform.clone(), output.clone()))
            .collect()
    };
    let (a, b) = (by_platform(a), by_platform(b));
    let mut platforms: Vec<&String> = a.keys().chain(b.keys()).collect();
    platforms.sort();
    platforms.dedup();
    let diff = |platform: &String| {
        let (a, b) = (a.get(platform), b.get(platform));
        let image = |output: Option<&OutputRecord>| Some(output?.image.as_ref()?.to_string());
        let ids = |output: Option<&OutputRecord>| -> Vec<store::LayerId> {
            let layers = output.into_iter().flat_map(|output| &output.layers);
            layers.map(|layer| layer.id).collect()
        };
        let (then, now) = (ids(a), ids(b));
        OutputDiff {
            platform: platform.clone(),
            image: (image(a), image(b)),
            size: (a.map_or(0, |a| a.size), b.map_or(0, |b| b.size)),
            layers: (then.len(), now.len()),
            shared_layers: now.iter().filter(|id| then.contains(id)).count(),
        }
    };
    platforms.into_iter().map(diff).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::testing::{record, step, with_parts};

    #[test]
    fn only_what_differs_is_listed() {
        let same = with_parts(step("[a 1/3] RUN same", &[], 1), &[("command", "same")]);
        let before = with_parts(step("[a 2/3] RUN x", &[], 3), &[("command", "x")]);
        let after = with_parts(step("[a 2/3] RUN y", &[], 5), &[("command", "y")]);
        let gone = with_parts(step("[a 3/3] COPY a b", &[], 1), &[("copied path", "a")]);
        let new = with_parts(step("[b 1/1] RUN z", &[], 1), &[("command", "z")]);
        let mut a = record("a", &[same.clone(), before, gone]);
        let mut b = record("b", &[same, after, new]);
        a.request.build_args.insert("V".to_owned(), "1".to_owned());
        b.request.build_args.insert("V".to_owned(), "2".to_owned());
        b.request.no_cache = true;
        let found = diff(&a, &b, &|_| None);
        assert_eq!(found.equal, 1);
        let steps: Vec<(&str, bool, bool)> = found
            .steps
            .iter()
            .map(|step| {
                let (then, now) = step.outcome;
                (step.step.as_str(), then.is_some(), now.is_some())
            })
            .collect();
        assert_eq!(
            steps,
            [
                ("[a 2/3] RUN y", true, true),
                ("[b 1/1] RUN z", false, true),
                ("[a 3/3] COPY a b", true, false),
            ]
        );
        assert_eq!(found.steps[0].changes[0].part, "command");
        assert_eq!(found.steps[0].took, (3_000_000_000, 5_000_000_000));
        let options: Vec<&str> = found.request.iter().map(|c| c.part.as_str()).collect();
        assert_eq!(options, ["--build-arg V", "--no-cache"]);
        assert_eq!(diff(&a, &a, &|_| None).steps, []);
    }
}
