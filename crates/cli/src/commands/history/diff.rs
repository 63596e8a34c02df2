//! `lapstrake history diff`: what changed between two builds, in words.

use anyhow::Context;
use clap::Args;
use engine::history::{BuildDiff, BuildRecord, History, StepDiff};

use super::record_of;
use crate::failure::{Failure, exit};
use crate::table::human_size;
use crate::{output, words};

/// Show what changed between two builds: in what was asked, in keys, times and sizes
#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// How to print: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: String,
    /// The earlier build [default: the one before the last]
    #[arg(default_value = "^1")]
    a: String,
    /// The later build [default: the last]
    #[arg(default_value = "^0")]
    b: String,
}

impl Diff {
    pub(super) fn run(&self, history: &History) -> Result<(), Failure> {
        let read = |build: &str| record_of(history, Some(build)).map_err(exit::build);
        let (a, b) = (read(&self.a)?, read(&self.b)?);
        let diff = history.diff(&a, &b);
        let text = match self.format.as_str() {
            "text" => diff_text(&a, &b, &diff),
            "json" => {
                let mut text = serde_json::to_string_pretty(&diff)
                    .context("failed to write the differences")
                    .map_err(exit::builder)?;
                text.push('\n');
                text
            }
            format => {
                let error =
                    anyhow::anyhow!("there is no format {format:?}; there are text and json");
                return Err(exit::usage(error));
            }
        };
        output::print(&text).map_err(exit::builder)
    }
}

fn diff_text(a: &BuildRecord, b: &BuildRecord, diff: &BuildDiff) -> String {
    let (before, after) = diff.took;
    let mut text = format!(
        "{} -> {}\ntook {} -> {}\n",
        a.id,
        b.id,
        words::duration(before),
        words::duration(after)
    );
    let mut changes = |heading: &str, changes: &[engine::history::Change]| {
        if changes.is_empty() {
            return;
        }
        text.push_str(&format!("\n{heading}\n"));
        for line in changes.iter().flat_map(words::change_lines) {
            text.push_str(&format!("  {line}\n"));
        }
    };
    changes("asked for otherwise", &diff.request);
    changes("from outside", &diff.sources);
    if !diff.steps.is_empty() {
        text.push_str("\nsteps\n");
    }
    for step in &diff.steps {
        text.push_str(&step_text(step));
    }
    if diff.equal > 0 {
        text.push_str(&format!("  and {} that are equal\n", diff.equal));
    }
    for output in &diff.outputs {
        text.push_str(&format!("\nimage for {}\n", output.platform));
        let id = |image: &Option<String>| image.clone().unwrap_or_else(|| "none".to_owned());
        let (then, now) = (id(&output.image.0), id(&output.image.1));
        match then == now {
            true => text.push_str(&format!("  {now}, the same\n")),
            false => text.push_str(&format!("  - {then}\n  + {now}\n")),
        }
        text.push_str(&format!(
            "  {} -> {}, {} layers, {} of them as before\n",
            human_size(output.size.0),
            human_size(output.size.1),
            output.layers.1,
            output.shared_layers
        ));
    }
    text
}

fn step_text(step: &StepDiff) -> String {
    let name = words::short_name(&step.step);
    let ended = |outcome, took: u64| {
        let word = words::outcome(outcome);
        match took {
            0 => word.to_owned(),
            took => format!("{word} in {}", words::duration(took)),
        }
    };
    let mut text = match step.outcome {
        (Some(before), Some(after)) => {
            let (before, after) = (ended(before, step.took.0), ended(after, step.took.1));
            match before == after {
                true => format!("  ~ {name}: {after}\n"),
                false => format!("  ~ {name}: {before} -> {after}\n"),
            }
        }
        (None, Some(after)) => format!("  + {name}: {}\n", ended(after, step.took.1)),
        (Some(_), None) => format!("  - {name}\n"),
        (None, None) => String::new(),
    };
    for line in step.changes.iter().flat_map(words::change_lines) {
        text.push_str(&format!("      {line}\n"));
    }
    if step.inputs_changed {
        text.push_str("      what it builds on has changed\n");
    }
    if let (Some(before), Some(after)) = step.size
        && before != after
    {
        let (before, after) = (human_size(before), human_size(after));
        text.push_str(&format!("      its layer has {before} -> {after}\n"));
    }
    text
}
