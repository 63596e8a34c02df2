//! `lapstrake history inspect`: all that is known of a build.

use anyhow::Context;
use clap::Args;
use engine::history::{BuildRecord, BuildStatus, History, Totals};
use serde_json::{Value, json};

use super::{record_of, status_in_inspect, status_in_lists};
use crate::failure::{Failure, exit};
use crate::table::human_size;
use crate::template::Template;
use crate::{output, words};

/// Show what is known of a build
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// How to print: pretty, json, or a template
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    format: String,
    /// The build: an id, the beginning of one, or ^N for the Nth before the last [default: the last]
    build: Option<String>,
}

impl Inspect {
    pub(super) fn run(&self, history: &History) -> Result<(), Failure> {
        let record = record_of(history, self.build.as_deref()).map_err(exit::build)?;
        let text = match self.format.as_str() {
            "pretty" => pretty(&record),
            "json" => {
                let mut text = serde_json::to_string_pretty(&inspected(&record))
                    .context("failed to write the record")
                    .map_err(exit::builder)?;
                text.push('\n');
                text
            }
            template => {
                let template = Template::parse(template).map_err(exit::usage)?;
                let mut text = template.apply(&inspected(&record)).map_err(exit::usage)?;
                text.push('\n');
                text
            }
        };
        output::print(&text).map_err(exit::builder)
    }
}

/// Returns a record with the names that buildx gives its fields, and ours beside them.
fn inspected(record: &BuildRecord) -> Value {
    let request = &record.request;
    let pairs = |values: &std::collections::BTreeMap<String, String>| -> Value {
        let pairs = values
            .iter()
            .map(|(name, value)| json!({"Name": name, "Value": value}));
        pairs.collect()
    };
    let summary = record.summary();
    let materials = record.sources.iter().map(|source| {
        let digests: Vec<String> = source.digest.iter().map(ToString::to_string).collect();
        json!({"URI": source.uri, "Digests": digests})
    });
    let mut value = json!({
        "Name": record.name,
        "Ref": record.id,
        "Context": request.context,
        "Dockerfile": request.dockerfile,
        "Target": request.target,
        "Platform": request.platforms,
        "NamedContexts": pairs(&request.named_contexts),
        "StartedAt": record.started,
        "CompletedAt": record.completed,
        "Duration": record.nanoseconds(record.started),
        "Status": status_in_inspect(record.status),
        "NumCompletedSteps": summary.done,
        "NumTotalSteps": summary.total,
        "NumCachedSteps": summary.cached,
        "BuildArgs": pairs(&request.build_args),
        "Labels": pairs(&request.labels),
        "Config": {
            "Network": request.network,
            "Runtime": request.runtime,
            "NoCache": request.no_cache,
            "NoCacheFilter": request.no_cache_filter,
            "SourceDateEpoch": request.source_date_epoch.map(|epoch| epoch.to_string()),
        },
        "Materials": materials.collect::<Value>(),
        "Tags": request.tags,
        "Steps": record.steps,
        "Warnings": record.warnings,
        "Outputs": record.outputs,
        "Errors": record.errors,
    });
    if let Some(error) = record.errors.first() {
        value["Error"] = json!({"Message": error.message, "Name": error.step});
    }
    strip(&mut value);
    value
}

/// Takes out what is empty at the top, as Go's `omitempty` does.
fn strip(value: &mut Value) {
    let Value::Object(map) = value else { return };
    let kept = [
        "NumCompletedSteps",
        "NumTotalSteps",
        "NumCachedSteps",
        "Config",
    ];
    map.retain(|name, value| {
        let empty = match &*value {
            Value::Null => true,
            Value::Array(items) => items.is_empty(),
            Value::String(text) => text.is_empty(),
            _ => false,
        };
        kept.contains(&name.as_str()) || !empty
    });
    if let Some(config) = map.get_mut("Config").and_then(Value::as_object_mut) {
        config.retain(|_, value| match value {
            Value::Null => false,
            Value::Bool(value) => *value,
            Value::Array(items) => !items.is_empty(),
            Value::String(text) => !text.is_empty(),
            _ => true,
        });
    }
}

/// Lines of a name and a value, the values below each other.
fn aligned(rows: &[(&str, String)]) -> String {
    let rows = rows.iter().filter(|(_, value)| !value.is_empty());
    let width = rows.clone().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
    rows.map(|(name, value)| {
        let name = format!("{name}:");
        format!("{name:<width$}{}\n", words::one_line(value))
    })
    .collect()
}

fn pretty(record: &BuildRecord) -> String {
    let request = &record.request;
    let mut text = aligned(&[
        ("Name", record.name.clone()),
        ("Ref", record.id.clone()),
        ("Context", request.context.clone()),
        ("Dockerfile", request.dockerfile.clone()),
        ("Target", request.target.clone().unwrap_or_default()),
        ("Platforms", request.platforms.join(", ")),
        ("Runtime", request.runtime.clone()),
        ("Tags", request.tags.join(", ")),
    ]);
    let totals = Totals::of(record);
    let now = progress::system_clock();
    let took = match record.status {
        BuildStatus::Running => format!("{} (running)", words::duration(record.nanoseconds(now))),
        BuildStatus::Killed => "unknown".to_owned(),
        _ => words::duration(record.nanoseconds(now)),
    };
    let errors: Vec<&str> = record
        .errors
        .iter()
        .map(|error| error.message.as_str())
        .collect();
    let image = record
        .outputs
        .first()
        .and_then(|output| output.image.as_ref());
    let size = record.outputs.iter().map(|output| output.size).sum();
    text.push('\n');
    text.push_str(&aligned(&[
        ("Started", output::date(record.started.unix_seconds())),
        ("Duration", took),
        ("Status", status_in_lists(record.status).to_owned()),
        ("Error", errors.join("; ")),
        ("Steps", steps_in_words(&totals)),
        ("Image", image.map(ToString::to_string).unwrap_or_default()),
        (
            "Size",
            if size > 0 {
                human_size(size)
            } else {
                String::new()
            },
        ),
    ]));
    let mut table = |heading: &str, rows: Vec<(String, String)>| {
        if rows.is_empty() {
            return;
        }
        let width = rows
            .iter()
            .map(|row| row.0.chars().count())
            .max()
            .unwrap_or(0);
        let width = width.max(heading.len());
        text.push_str(&format!("\n{heading:<width$}   VALUE\n"));
        for (name, value) in rows {
            let line = format!(
                "{:<width$}   {}",
                words::one_line(&name),
                words::one_line(&value)
            );
            text.push_str(line.trim_end());
            text.push('\n');
        }
    };
    let pairs = |values: &std::collections::BTreeMap<String, String>| {
        let pairs = values.iter();
        pairs
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    table("BUILD ARG", pairs(&request.build_args));
    table("LABEL", pairs(&request.labels));
    table("NAMED CONTEXT", pairs(&request.named_contexts));
    let materials = record.sources.iter().map(|source| {
        let digest = source.digest.as_ref().map(ToString::to_string);
        let name = source.name();
        (name.to_owned(), digest.unwrap_or_default())
    });
    table("MATERIAL", materials.collect());
    let steps = record.steps.iter().filter(|step| step.is_instruction());
    let steps = steps.map(|step| {
        let took = match step.nanoseconds() {
            _ if step.outcome == engine::history::StepOutcome::Cached => String::new(),
            0 => String::new(),
            took => format!(" in {}", words::duration(took)),
        };
        (
            words::short_name(&step.name),
            format!("{}{took}", words::outcome(step.outcome)),
        )
    });
    table("STEP", steps.collect());
    text.push_str(&format!(
        "\nPrint the logs: lapstrake history logs {}\n",
        record.id
    ));
    text
}

fn steps_in_words(totals: &Totals) -> String {
    if totals.all() == 0 {
        return String::new();
    }
    format!(
        "{} ({} cached, {} ran{}{})",
        totals.all(),
        totals.cached,
        totals.ran,
        some(totals.failed, "failed"),
        some(totals.canceled + totals.skipped, "not finished"),
    )
}

fn some(count: usize, what: &str) -> String {
    match count {
        0 => String::new(),
        count => format!(", {count} {what}"),
    }
}
