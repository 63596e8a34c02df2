//! Why a step ran: the named parts of its key against those of the nearest earlier one.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::files::{FileChanges, FileList};
use super::record::{BuildRecord, BuildStatus, CachedBy, Miss, StepKind, StepOutcome, StepRecord};
use crate::KeyPart;
use crate::cache::not_used;

/// Why a step ran, or did not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The step's name.
    pub step: String,
    pub outcome: StepOutcome,
    pub reasons: Vec<Reason>,
    /// The build it was compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compared_with: Option<String>,
}

/// One reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Reason {
    /// It did not run: the result was recorded.
    Cached,
    /// It did not run: what builds on it was recorded.
    Covered,
    /// It did not run: a cache of another machine had the result.
    Imported { cache: String },
    /// It was never come to.
    Skipped,
    /// Recorded results were not to be used.
    NoCache,
    /// The result was removed.
    Evicted {
        /// Seconds since 1970.
        at: i64,
        rule: String,
    },
    /// The result is recorded, but a layer of it is gone.
    Lost,
    /// Something it is made of has changed.
    Changed(Change),
    /// What it builds on was made again, and holds something else.
    Input {
        /// The step it builds on.
        step: String,
        /// What changed there, or in what that builds on.
        roots: Vec<Root>,
    },
    /// It ran before and did not end well, so there is nothing recorded.
    NeverFinished { build: String },
    /// No earlier build has such a step.
    NeverBuilt,
    /// A cache of another machine has no result for it either.
    NotInCache { cache: String },
    /// A cache of another machine could not be looked into.
    UnreadableCache { cache: String, error: String },
    /// Nothing has changed, but there is no result: it was made in another store, or removed long ago.
    NoResult,
}

/// A change that others follow from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Root {
    pub step: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
    /// It was made again without recorded results.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_cache: bool,
}

/// One part of a key that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The part's name: `command`, `ARG VERSION`, `files: /src`.
    pub part: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// For files: which of them, where lists of them are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<FileChanges>,
}

/// Finds the list of files behind a checksum.
pub(super) type FindFiles<'a> = &'a dyn Fn(&str) -> Option<FileList>;

/// Begins names of parts that are checksums of files.
const FILES: &str = "files: ";

/// Explains a step. `earlier` are builds before this one, the nearest first.
pub(super) fn explain(
    record: &BuildRecord,
    step: &StepRecord,
    earlier: &[BuildRecord],
    find_files: FindFiles<'_>,
) -> Explanation {
    let mut explanation = Explanation {
        step: step.name.clone(),
        outcome: step.outcome,
        reasons: Vec::new(),
        compared_with: None,
    };
    match step.outcome {
        StepOutcome::Cached => explanation.reasons.push(match &step.cached_from {
            Some(cache) => Reason::Imported {
                cache: cache.clone(),
            },
            None if step.cached_by == Some(CachedBy::Covered) => Reason::Covered,
            None => Reason::Cached,
        }),
        StepOutcome::Skipped => explanation.reasons.push(Reason::Skipped),
        StepOutcome::Ran | StepOutcome::Failed | StepOutcome::Canceled => {
            explain_run(record, step, earlier, find_files, &mut explanation);
            // With --no-cache nobody looks into caches, and a result that was lost was found.
            if matches!(step.miss, Some(Miss::NotFound | Miss::Evicted { .. })) {
                explanation.reasons.extend(missed(record));
            }
        }
    }
    explanation
}

/// Says of the caches of other machines that they had nothing, or why they were not looked into.
fn missed(record: &BuildRecord) -> impl Iterator<Item = Reason> {
    record.request.caches.iter().map(|cache| {
        let begin = not_used(cache);
        let mut warnings = record.warnings.iter();
        match warnings.find_map(|warning| warning.text.strip_prefix(&begin)) {
            Some(error) => Reason::UnreadableCache {
                cache: cache.clone(),
                error: error.to_owned(),
            },
            None => Reason::NotInCache {
                cache: cache.clone(),
            },
        }
    })
}

fn explain_run(
    record: &BuildRecord,
    step: &StepRecord,
    earlier: &[BuildRecord],
    find_files: FindFiles<'_>,
    explanation: &mut Explanation,
) {
    let reasons = &mut explanation.reasons;
    match &step.miss {
        Some(Miss::NoCache) => return reasons.push(Reason::NoCache),
        Some(Miss::Evicted { at, rule }) => {
            let (at, rule) = (*at, rule.clone());
            return reasons.push(Reason::Evicted { at, rule });
        }
        Some(Miss::Lost) => return reasons.push(Reason::Lost),
        Some(Miss::NotFound) | None => {}
    }
    let Some((then, before)) = nearest(step, earlier) else {
        // Results can be there without a build: what is under it may have been made without the cache.
        reasons.extend(inputs_made_again(record, step));
        if reasons.is_empty() {
            reasons.push(Reason::NeverBuilt);
        }
        return;
    };
    explanation.compared_with = Some(then.id.clone());
    let now = Pair {
        record,
        then,
        find_files,
    };
    reasons.extend(
        now.own_changes(step, before)
            .into_iter()
            .map(Reason::Changed),
    );
    for input in now.changed_inputs(step, before) {
        let mut seen = BTreeSet::new();
        reasons.push(Reason::Input {
            step: input.name.clone(),
            roots: now.roots(input, &mut seen),
        });
    }
    once(record, reasons);
    if reasons.is_empty() {
        reasons.extend(inputs_made_again(record, step));
    }
    if reasons.is_empty() {
        let finished = matches!(before.outcome, StepOutcome::Ran | StepOutcome::Cached);
        reasons.push(match finished {
            true => Reason::NoResult,
            false => Reason::NeverFinished {
                build: then.id.clone(),
            },
        });
    }
}

/// Leaves each change in one place: an ARG that many steps see is said of this one, or else of the first.
fn once(record: &BuildRecord, reasons: &mut Vec<Reason>) {
    let position = |name: &str| record.steps.iter().position(|step| step.name == name);
    let mut first: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for reason in reasons.iter() {
        if let Reason::Input { roots, .. } = reason {
            for root in roots {
                let Some(change) = &root.change else { continue };
                let at = position(&root.step).unwrap_or(usize::MAX);
                let entry = (at, root.step.clone());
                let known = first.entry(id_of(change)).or_insert_with(|| entry.clone());
                *known = entry.min(known.clone());
            }
        }
    }
    for reason in reasons.iter() {
        if let Reason::Changed(change) = reason {
            first.insert(id_of(change), (0, String::new()));
        }
    }
    for reason in reasons.iter_mut() {
        if let Reason::Input { roots, .. } = reason {
            roots.retain(|root| {
                let Some(change) = &root.change else {
                    return true;
                };
                let id = id_of(change);
                let here = first.get(&id).is_some_and(|(_, step)| *step == root.step);
                if here {
                    // Said now; the next input that leads there need not say it again.
                    first.insert(id, (0, String::new()));
                }
                here
            });
        }
    }
    let says_something = |reason: &Reason| match reason {
        Reason::Input { roots, .. } => !roots.is_empty(),
        _ => true,
    };
    if reasons.iter().any(says_something) {
        reasons.retain(says_something);
    }
}

fn id_of(change: &Change) -> String {
    format!("{}\0{:?}\0{:?}", change.part, change.before, change.after)
}

/// Names the inputs that were made without recorded results: what builds on them was not looked up either.
fn inputs_made_again(record: &BuildRecord, step: &StepRecord) -> Vec<Reason> {
    let again =
        |step: &&StepRecord| step.outcome == StepOutcome::Ran && step.miss == Some(Miss::NoCache);
    let mut seen = BTreeSet::new();
    let mut work: Vec<&StepRecord> = record.inputs_of(step).collect();
    let mut found = Vec::new();
    while let Some(input) = work.pop() {
        if !seen.insert(&input.vertex) {
            continue;
        }
        if again(&input) {
            found.push(input);
        } else if input.outcome == StepOutcome::Ran {
            work.extend(record.inputs_of(input));
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    let reason = |input: &StepRecord| Reason::Input {
        step: input.name.clone(),
        roots: vec![Root {
            step: input.name.clone(),
            change: None,
            no_cache: true,
        }],
    };
    found.into_iter().map(reason).collect()
}

/// Finds the step of an earlier build that a step is compared with: the same instruction of the same stage, else the
/// same instruction, else the step in the same place. Of equals, that of the nearest build.
fn nearest<'a>(
    step: &StepRecord,
    earlier: &'a [BuildRecord],
) -> Option<(&'a BuildRecord, &'a StepRecord)> {
    let instruction = |other: &StepRecord| other.command == step.command;
    let stage = |other: &StepRecord| other.stage == step.stage;
    let place = |other: &StepRecord| place_of(&other.name) == place_of(&step.name);
    let levels: [&dyn Fn(&StepRecord) -> bool; 3] = [
        &|other| instruction(other) && stage(other),
        &|other| stage(other) && place(other),
        &|other| instruction(other),
    ];
    levels.iter().find_map(|level| {
        earlier.iter().find_map(|build| {
            let candidates = build
                .steps
                .iter()
                .filter(|other| other.key.is_some() && other.kind == step.kind && level(other));
            // Equal instructions in one stage: the one in the same place, or the first.
            let mut candidates = candidates.peekable();
            let first = candidates.peek().copied()?;
            let found = candidates.find(|other| place(other)).unwrap_or(first);
            Some((build, found))
        })
    })
}

/// Returns a step like this one that ran in one of the builds, the nearest first.
pub(crate) fn last_run<'a>(
    step: &StepRecord,
    earlier: &'a [BuildRecord],
) -> Option<&'a StepRecord> {
    let steps = earlier.iter().flat_map(|build| &build.steps);
    let mut like = steps.filter(|other| {
        let alike = other.kind == step.kind && other.command == step.command;
        alike && other.stage == step.stage && other.outcome == StepOutcome::Ran
    });
    like.next()
}

/// Returns what is between brackets, which says where a step stands: `builder 2/5` without the total.
fn place_of(name: &str) -> Option<&str> {
    let head = name.strip_prefix('[')?.split_once(']')?.0;
    head.rsplit_once('/').map(|(place, _)| place)
}

/// A build and the earlier one it is compared with.
struct Pair<'a> {
    record: &'a BuildRecord,
    then: &'a BuildRecord,
    find_files: FindFiles<'a>,
}

impl<'a> Pair<'a> {
    /// Returns what a step itself differs in.
    fn own_changes(&self, step: &StepRecord, before: &StepRecord) -> Vec<Change> {
        changes(step, before, self.find_files)
    }

    /// Returns the inputs of a step whose keys are not what they were.
    fn changed_inputs(&self, step: &StepRecord, before: &StepRecord) -> Vec<&'a StepRecord> {
        let inputs = |step: &StepRecord| -> BTreeMap<String, String> {
            let parts = step.key.iter().flat_map(|key| &key.parts);
            parts
                .filter(|part| part.name.starts_with("input "))
                .map(|part| (part.name.clone(), part.value.clone()))
                .collect()
        };
        let then = inputs(before);
        let mut found: Vec<&StepRecord> = Vec::new();
        for (name, value) in inputs(step) {
            if then.get(&name) == Some(&value) {
                continue;
            }
            let number = name
                .strip_prefix("input ")
                .and_then(|text| text.parse().ok());
            let vertex = number.and_then(|number: usize| step.inputs.get(number));
            let input = vertex.and_then(|vertex| self.record.step(vertex));
            // One step can be several inputs.
            if let Some(input) = input
                && !found.iter().any(|known| known.vertex == input.vertex)
            {
                found.push(input);
            }
        }
        found
    }

    /// Returns the changes that the change of a step follows from.
    fn roots(&self, step: &'a StepRecord, seen: &mut BTreeSet<&'a str>) -> Vec<Root> {
        if !seen.insert(step.vertex.as_str()) {
            return Vec::new();
        }
        let root = |change| Root {
            step: step.name.clone(),
            change,
            no_cache: step.miss == Some(Miss::NoCache),
        };
        let Some((_, before)) = nearest(step, std::slice::from_ref(self.then)) else {
            return vec![root(None)];
        };
        let mut roots: Vec<Root> = self
            .own_changes(step, before)
            .into_iter()
            .map(|change| root(Some(change)))
            .collect();
        for input in self.changed_inputs(step, before) {
            roots.extend(self.roots(input, seen));
        }
        roots
    }
}

/// Returns the parts in which two steps differ, inputs aside, in the order of the later one.
pub(crate) fn changes(
    step: &StepRecord,
    before: &StepRecord,
    find_files: FindFiles<'_>,
) -> Vec<Change> {
    let parts = |step: &StepRecord| -> Vec<KeyPart> {
        let parts = step.key.iter().flat_map(|key| &key.parts);
        parts
            .filter(|part| !part.name.starts_with("input "))
            .cloned()
            .collect()
    };
    let (then, now) = (parts(before), parts(step));
    let value = |parts: &[KeyPart], name: &str| -> Option<String> {
        parts
            .iter()
            .find(|part| part.name == name)
            .map(|part| part.value.clone())
    };
    let mut names: Vec<&str> = Vec::new();
    for part in now.iter().chain(&then) {
        if !names.contains(&part.name.as_str()) {
            names.push(&part.name);
        }
    }
    let mut found = Vec::new();
    for name in names {
        let (was, is) = (value(&then, name), value(&now, name));
        if was == is {
            continue;
        }
        let list = |checksum: &Option<String>| checksum.as_deref().and_then(find_files);
        let files = match name.starts_with(FILES) {
            true => match (list(&was), list(&is)) {
                (Some(was), Some(is)) => Some(was.changes(&is)),
                _ => None,
            },
            false => None,
        };
        found.push(Change {
            part: name.to_owned(),
            before: was,
            after: is,
            files,
        });
    }
    if step.kind == StepKind::Image {
        // The name has the digest in it: it says what the image's id says, and less well.
        let has_image = found.iter().any(|change| change.part == "image");
        if has_image {
            found.retain(|change| change.part != "source");
        } else if found.len() == 1 && found[0].part == "source" {
            // Another name for the same image changes no key.
            found.clear();
        }
    }
    found
}

impl BuildRecord {
    /// Returns a step by its vertex.
    pub fn step(&self, vertex: &oci::Digest) -> Option<&StepRecord> {
        self.steps.iter().find(|step| step.vertex == *vertex)
    }

    /// Returns the steps a step uses.
    pub fn inputs_of<'a>(&'a self, step: &'a StepRecord) -> impl Iterator<Item = &'a StepRecord> {
        step.inputs.iter().filter_map(|input| self.step(input))
    }

    /// Finds steps by what a user calls one: the whole name, the place (`builder 2`, `builder 2/5`), the number of a
    /// line, the beginning of the vertex' digest, or a part of the instruction.
    pub fn find_steps(&self, text: &str) -> Vec<&StepRecord> {
        let lower = text.to_lowercase();
        let place = text.trim_matches(['[', ']']);
        let line: Option<u32> = text.trim_start_matches("line ").parse().ok();
        let digest = text.strip_prefix("sha256:").unwrap_or(text);
        let is_place = |step: &StepRecord| {
            let head = step
                .name
                .strip_prefix('[')
                .and_then(|rest| rest.split_once(']'));
            head.is_some_and(|(head, _)| {
                head == place || head.rsplit_once('/').map(|p| p.0) == Some(place)
            })
        };
        let ways: [&dyn Fn(&StepRecord) -> bool; 5] = [
            &|step| step.name == text,
            &is_place,
            &|step| {
                let (Some(line), Some((first, last))) = (line, step.lines) else {
                    return false;
                };
                (first..=last).contains(&line)
            },
            &|step| digest.len() >= 6 && step.vertex.hex().starts_with(digest),
            &|step| step.name.to_lowercase().contains(&lower),
        ];
        ways.iter()
            .map(|way| -> Vec<&StepRecord> { self.steps.iter().filter(|step| way(step)).collect() })
            .find(|found| !found.is_empty())
            .unwrap_or_default()
    }

    /// Returns whether the build has ended.
    pub fn has_ended(&self) -> bool {
        !matches!(self.status, BuildStatus::Running | BuildStatus::Killed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::files::FileEntry;
    use crate::history::testing::{record, step, vertex, with_parts};

    const FROM: &str = "[base 1/2] FROM x";
    const RUN: &str = "[base 2/2] RUN make";

    fn build(id: &str, image: &str, parts: &[(&str, &str)]) -> BuildRecord {
        let from = with_parts(step(FROM, &[], 1), &[("source", image), ("image", image)]);
        let input = from.key.as_ref().expect("it has parts").definition.clone();
        let mut all = parts.to_vec();
        all.push(("input 0", &input));
        record(id, &[from, with_parts(step(RUN, &[FROM], 1), &all)])
    }

    fn reasons(now: &BuildRecord, earlier: &[BuildRecord]) -> Vec<Reason> {
        let step = now.step(&vertex(RUN)).expect("it is there");
        explain(now, step, earlier, &|_| None).reasons
    }

    fn change(part: &str, before: Option<&str>, after: Option<&str>) -> Change {
        Change {
            part: part.to_owned(),
            before: before.map(str::to_owned),
            after: after.map(str::to_owned),
            files: None,
        }
    }

    #[test]
    fn the_part_that_changed_is_named() {
        let before = build(
            "a",
            "1",
            &[("command", "make"), ("ARG V", "1"), ("ENV A", "b")],
        );
        let now = build(
            "b",
            "1",
            &[("command", "make"), ("ARG V", "2"), ("user", "me")],
        );
        assert_eq!(
            reasons(&now, std::slice::from_ref(&before)),
            [
                Reason::Changed(change("ARG V", Some("1"), Some("2"))),
                Reason::Changed(change("user", None, Some("me"))),
                Reason::Changed(change("ENV A", Some("b"), None)),
            ]
        );
        let far = build("c", "1", &[("command", "other")]);
        assert_eq!(reasons(&now, &[before, far]).len(), 3);
    }

    #[test]
    fn a_change_below_is_followed_to_its_root() {
        let before = build("a", "1", &[("command", "make")]);
        let now = build("b", "2", &[("command", "make")]);
        let expected = Reason::Input {
            step: FROM.to_owned(),
            roots: vec![Root {
                step: FROM.to_owned(),
                change: Some(change("image", Some("1"), Some("2"))),
                no_cache: false,
            }],
        };
        assert_eq!(reasons(&now, &[before]), [expected]);
    }

    #[test]
    fn a_change_that_many_steps_see_is_said_once() {
        const OTHER: &str = "[other 1/1] RUN x";
        const LAST: &str = "[last 1/1] RUN y";
        let build = |id: &str, value: &str| {
            let input = |step: &StepRecord| step.key.clone().expect("it has parts").definition;
            let from = with_parts(step(FROM, &[], 1), &[("image", "1")]);
            let parts = [("ARG V", value), ("input 0", &input(&from))];
            let run = with_parts(step(RUN, &[FROM], 1), &parts);
            let other = with_parts(step(OTHER, &[FROM], 1), &parts);
            let parts = [("input 0", input(&run)), ("input 1", input(&other))];
            let parts = parts
                .each_ref()
                .map(|(name, value)| (*name, value.as_str()));
            let last = with_parts(step(LAST, &[RUN, OTHER], 1), &parts);
            record(id, &[from, run, other, last])
        };
        let (before, now) = (build("a", "1"), build("b", "2"));
        let last = now.step(&vertex(LAST)).expect("it is there");
        let found = explain(&now, last, &[before], &|_| None).reasons;
        let [Reason::Input { step, roots }] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!((step.as_str(), roots.len()), (RUN, 1));
        assert_eq!(roots[0].step, RUN);
    }

    #[test]
    fn what_was_noted_when_it_ran_comes_first() {
        let before = build("a", "1", &[("command", "make")]);
        let check = |miss: Miss, expected: Reason| {
            let mut now = build("b", "1", &[("command", "make")]);
            now.steps[1].miss = Some(miss);
            assert_eq!(reasons(&now, std::slice::from_ref(&before)), [expected]);
        };
        check(Miss::NoCache, Reason::NoCache);
        check(Miss::Lost, Reason::Lost);
        let (at, rule) = (5, "max-used-space".to_owned());
        check(
            Miss::Evicted {
                at,
                rule: rule.clone(),
            },
            Reason::Evicted { at, rule },
        );
        check(Miss::NotFound, Reason::NoResult);
    }

    #[test]
    fn a_first_build_and_one_after_a_failure_say_so() {
        let now = build("b", "1", &[("command", "make")]);
        assert_eq!(reasons(&now, &[]), [Reason::NeverBuilt]);
        let mut before = build("a", "1", &[("command", "make")]);
        before.steps[1].outcome = StepOutcome::Failed;
        let build = "a".to_owned();
        assert_eq!(reasons(&now, &[before]), [Reason::NeverFinished { build }]);
    }

    #[test]
    fn what_builds_on_a_forced_step_says_so() {
        let before = build("a", "1", &[("command", "make")]);
        let mut now = build("b", "1", &[("command", "make")]);
        now.steps[0].miss = Some(Miss::NoCache);
        let found = reasons(&now, &[before]);
        assert!(
            matches!(&found[..], [Reason::Input { step, roots }] if step == FROM && roots[0].no_cache),
            "{found:?}"
        );
    }

    #[test]
    fn files_are_named_where_their_lists_are_kept() {
        let before = build("a", "1", &[("files: /src", "one")]);
        let now = build("b", "1", &[("files: /src", "two")]);
        let list = |content: &str| {
            let entry = FileEntry {
                kind: 'f',
                mode: 0o644,
                uid: 0,
                gid: 0,
                content: content.to_owned(),
            };
            FileList {
                files: BTreeMap::from([("src/main.go".to_owned(), entry)]),
                more: 0,
            }
        };
        let step = now.step(&vertex(RUN)).expect("it is there");
        let found = explain(&now, step, &[before], &|checksum| Some(list(checksum)));
        let [Reason::Changed(change)] = &found.reasons[..] else {
            panic!("{found:?}");
        };
        let files = change.files.as_ref().expect("both lists are there");
        assert_eq!(files.changed, ["src/main.go"]);
        assert_eq!(found.compared_with.as_deref(), Some("a"));
    }

    #[test]
    fn a_line_that_was_put_in_is_no_change_of_those_after_it() {
        let key = [("command", "b")];
        let before = record("a", &[with_parts(step("[s 2/3] RUN b", &[], 1), &key)]);
        let mut now = with_parts(
            step("[s 3/4] RUN b", &[], 1),
            &[("command", "b"), ("user", "x")],
        );
        now.outcome = StepOutcome::Ran;
        let other = with_parts(step("[s 2/4] RUN new", &[], 1), &[("command", "new")]);
        let now = record("b", &[other, now]);
        let found = explain(&now, &now.steps[1], std::slice::from_ref(&before), &|_| {
            None
        });
        assert_eq!(
            found.reasons,
            [Reason::Changed(change("user", None, Some("x")))]
        );
        // The new one is compared with what stood in its place.
        let found = explain(&now, &now.steps[0], &[before], &|_| None);
        assert_eq!(
            found.reasons,
            [Reason::Changed(change("command", Some("b"), Some("new")))]
        );
    }

    #[test]
    fn steps_are_found_by_what_people_call_them() {
        let mut record = record("a", &[step(FROM, &[], 1), step(RUN, &[FROM], 1)]);
        record.steps[1].lines = Some((3, 5));
        let check = |text: &str, expected: &[&str]| {
            let found: Vec<&str> = record
                .find_steps(text)
                .iter()
                .map(|step| step.name.as_str())
                .collect();
            assert_eq!(found, expected, "{text}");
        };
        check(RUN, &[RUN]);
        check("base 2", &[RUN]);
        check("[base 2/2]", &[RUN]);
        check("4", &[RUN]);
        check("line 3", &[RUN]);
        check("run MAKE", &[RUN]);
        check(&vertex(FROM).hex()[..12], &[FROM]);
        check("base", &[FROM, RUN]);
        check("nothing like it", &[]);
    }
}
