//! `lapstrake why`: why a step ran.

use anyhow::{Context, Result};
use clap::Args;
use engine::history::{BuildRecord, Explanation, History, Reason, StepOutcome, StepRecord, Totals};

use super::history::{record_of, step_of};
use crate::arguments::Global;
use crate::failure::{Failure, exit};
use crate::{output, settings, words};

/// How many earlier builds are looked at.
const MOST_EARLIER: usize = 30;

/// Say why a step ran: what changed since it ran before
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lapstrake why                     all steps of the last build that ran
  lapstrake why 'RUN make'          a step by its instruction, or a part of it
  lapstrake why 'builder 3'         the third step of a stage
  lapstrake why 12                  the step on line 12 of the Dockerfile
  lapstrake why ^1 'RUN make'       a step of the build before the last one")]
pub(crate) struct Why {
    /// How to print: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: String,
    /// The build [default: the last one], and the step [default: all that ran]
    #[arg(value_name = "[BUILD] STEP", num_args = 0..=2)]
    words: Vec<String>,
}

impl Why {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let history = History::new(&settings::open_records(global)?);
        let (build, step) = match self.words.as_slice() {
            [] => (None, None),
            // A build alone is meant where it cannot be a step.
            [word] if word.starts_with('^') => (Some(word.as_str()), None),
            [word] => match history.find(word) {
                Ok(build) if word.len() >= 6 && build.id.starts_with(word.as_str()) => {
                    (Some(word.as_str()), None)
                }
                _ => (None, Some(word.as_str())),
            },
            [build, step, ..] => (Some(build.as_str()), Some(step.as_str())),
        };
        let record = record_of(&history, build).map_err(exit::build)?;
        let explanations = match step {
            Some(step) => {
                let step = step_of(&record, step).map_err(exit::build)?;
                explain(&history, &record, &[step])
            }
            None => explain_all(&history, &record),
        };
        let explanations = explanations.map_err(exit::builder)?;
        let text = match self.format.as_str() {
            "json" => json(&explanations).map_err(exit::builder)?,
            "text" => text(&record, &explanations),
            format => {
                let error =
                    anyhow::anyhow!("there is no format {format:?}; there are text and json");
                return Err(exit::usage(error));
            }
        };
        output::print(&text).map_err(exit::builder)
    }
}

/// Explains all steps of a build that ran.
pub(crate) fn explain_all(history: &History, record: &BuildRecord) -> Result<Vec<Explanation>> {
    let ran = |step: &&StepRecord| {
        let ran = matches!(step.outcome, StepOutcome::Ran | StepOutcome::Failed);
        ran && step.is_instruction()
    };
    let steps: Vec<&StepRecord> = record.steps.iter().filter(ran).collect();
    explain(history, record, &steps)
}

fn explain(
    history: &History,
    record: &BuildRecord,
    steps: &[&StepRecord],
) -> Result<Vec<Explanation>> {
    if steps.is_empty() {
        return Ok(Vec::new());
    }
    let earlier = history.earlier(record, MOST_EARLIER)?;
    let explained = steps
        .iter()
        .map(|step| history.explain(record, step, &earlier));
    Ok(explained.collect())
}

/// Writes explanations for people.
pub(crate) fn text(record: &BuildRecord, explanations: &[Explanation]) -> String {
    if explanations.is_empty() {
        let mut caches: Vec<&str> = record
            .steps
            .iter()
            .filter_map(|step| step.cached_from.as_deref())
            .collect();
        let imported = caches.len();
        caches.sort_unstable();
        caches.dedup();
        let totals = Totals::of(record);
        let why = match totals.cached > 0 && totals.cached == totals.all() {
            true if imported > 0 => format!(
                ": all results were there, {imported} of them in the cache {}",
                caches.join(", ")
            ),
            true => ": all results were there".to_owned(),
            false => String::new(),
        };
        return format!("no step of the build {} ran{why}\n", record.id);
    }
    let is_of_caches = |reason: &Reason| {
        matches!(
            reason,
            Reason::NotInCache { .. } | Reason::UnreadableCache { .. }
        )
    };
    let is_new = |explanation: &&Explanation| {
        explanation
            .reasons
            .split_first()
            .is_some_and(|(first, rest)| {
                *first == Reason::NeverBuilt && rest.iter().all(is_of_caches)
            })
    };
    let new = explanations.iter().filter(is_new).count();
    if new > 1 && new == explanations.len() {
        let mut text = format!("no earlier build has any of these {new} steps\n");
        // What is said of caches is the same of all.
        for line in explanations.iter().take(1).flat_map(words::reasons).skip(1) {
            text.push_str(&line.replace("has no result for it", "has none of them"));
            text.push('\n');
        }
        return text;
    }
    explanations.iter().map(words::explanation).collect()
}

fn json(explanations: &[Explanation]) -> Result<String> {
    let mut text =
        serde_json::to_string_pretty(explanations).context("failed to write the reasons")?;
    text.push('\n');
    Ok(text)
}
