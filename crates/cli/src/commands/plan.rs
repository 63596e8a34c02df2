//! `lapstrake plan`: what a build would do.

use anyhow::Context;
use clap::Args;
use engine::forecast::{Fate, Forecast, Foreseen};

use super::build::Build;
use crate::arguments::Global;
use crate::failure::{Failure, exit};
use crate::table::human_size;
use crate::{build_request, output, settings, words};

/// Show which steps a build would run, and why, without building
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lapstrake plan .                          which steps would run
  lapstrake plan --build-arg VERSION=2 .    and with another argument
  lapstrake plan --format json .            for programs")]
pub(crate) struct Plan {
    /// How to print: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: String,
    #[command(flatten)]
    build: Box<Build>,
}

impl Plan {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        if !["text", "json"].contains(&self.format.as_str()) {
            let error = anyhow::anyhow!(
                "there is no format {:?}; there are text and json",
                self.format
            );
            return Err(exit::usage(error));
        }
        let (request, _spooled) = build_request::request(&self.build).map_err(exit::usage)?;
        let engine = settings::open_engine(global)?;
        let forecast = engine.forecast(&request).map_err(Failure::Build)?;
        let text = match self.format.as_str() {
            "json" => {
                let mut text = serde_json::to_string_pretty(&forecast)
                    .context("failed to write the plan")
                    .map_err(exit::builder)?;
                text.push('\n');
                text
            }
            _ => text(&forecast),
        };
        output::print(&text).map_err(exit::builder)
    }
}

fn text(forecast: &Forecast) -> String {
    let mut text = String::new();
    for step in &forecast.steps {
        text.push_str(&line(step));
        let reasons = step.why.as_ref().map(words::reasons).unwrap_or_default();
        for reason in reasons {
            text.push_str(&format!("          {reason}\n"));
        }
    }
    let count = |fate: Fate| {
        forecast
            .steps
            .iter()
            .filter(|step| step.fate == fate)
            .count()
    };
    let mut parts = vec![format!("{} cached", count(Fate::Cached))];
    if count(Fate::Runs) > 0 {
        parts.push(format!("{} to run", count(Fate::Runs)));
    }
    if count(Fate::Depends) > 0 {
        parts.push(format!(
            "{} to run unless what they build on holds what it held",
            count(Fate::Depends)
        ));
    }
    text.push_str(&format!(
        "{} steps: {}\n",
        forecast.steps.len(),
        parts.join(", ")
    ));
    if forecast.download > 0 {
        text.push_str(&format!("to fetch: {}\n", human_size(forecast.download)));
    }
    if forecast.expected > 0 {
        let rest = match forecast.unknown {
            0 => String::new(),
            1 => ", and a step that never ran".to_owned(),
            count => format!(", and {count} steps that never ran"),
        };
        let expected = words::duration(forecast.expected);
        text.push_str(&format!("expected: {expected}{rest}\n"));
    }
    text
}

fn line(step: &Foreseen) -> String {
    let fate = match step.fate {
        Fate::Cached => "cached  ",
        Fate::Runs => "run     ",
        Fate::Depends => "depends ",
    };
    let mut line = format!("{fate}  {}", words::short_name(&step.step));
    let mut notes = Vec::new();
    if let Some(expected) = step.expected {
        notes.push(format!("last time {}", words::duration(expected)));
    }
    if step.download > 0 {
        notes.push(format!("fetches {}", human_size(step.download)));
    }
    if !notes.is_empty() {
        line.push_str(&format!("  ({})", notes.join(", ")));
    }
    line.push('\n');
    line
}
