//! What one wants to know first: how it ended, how long it took, what was cached.

use engine::history::{BuildStatus, Totals};

use super::{MOST_STEPS, Page, outcome, status};
use crate::escape::{cut, markup};
use crate::words;

/// Returns the head of the page.
pub(super) fn header(page: &Page<'_>, name: &str) -> String {
    let record = page.record;
    let (class, sign, word) = status(record.status);
    let request = &record.request;
    let mut about = vec![format!(
        "<span>{}</span>",
        markup(&words::date(record.started))
    )];
    let mut add = |label: &str, value: &str| {
        if !value.is_empty() {
            about.push(format!(
                "<span>{label} <b>{}</b></span>",
                markup(&cut(value, 80))
            ));
        }
    };
    add("target", request.target.as_deref().unwrap_or_default());
    add("for", &request.platforms.join(", "));
    add("named", &request.tags.join(", "));
    format!(
        "<header class=\"top\">\n<div class=\"brand\"><svg viewBox=\"0 0 24 24\" width=\"22\" height=\"22\" aria-hidden=\"true\">\
         <path d=\"M3 7.5l9-4l9 4l-9 4zM3 12l9 4l9-4M3 16.5l9 4l9-4\"/></svg> lapstrake <span>build report</span>\
         <button type=\"button\" id=\"theme\" aria-label=\"Colours: as the system has them\">◐</button></div>\n\
         <p class=\"status {class}\"><span aria-hidden=\"true\">{sign}</span> {word}</p>\n\
         <h1>{}</h1>\n<p class=\"about\">{}</p>\n{}{}</header>\n",
        markup(&cut(name, 120)),
        about.join(""),
        figures(page),
        share(page),
    )
}

/// Returns the numbers.
fn figures(page: &Page<'_>) -> String {
    let record = page.record;
    let totals = Totals::of(record);
    let size: u64 = record.outputs.iter().map(|output| output.size).sum();
    let took = match record.status {
        BuildStatus::Running | BuildStatus::Killed if record.completed.is_none() => "–".to_owned(),
        _ => words::duration(record.nanoseconds(record.started)),
    };
    let mut figures = vec![
        ("Time".to_owned(), took, delta(page)),
        (
            "Steps".to_owned(),
            totals.all().to_string(),
            format!("{} ran", totals.ran + totals.failed + totals.canceled),
        ),
        (
            "Cached".to_owned(),
            match totals.all() {
                0 => "–".to_owned(),
                all => format!("{} %", totals.cached * 100 / all),
            },
            format!("{} of {}", totals.cached, totals.all()),
        ),
    ];
    if size > 0 {
        let layers: usize = record
            .outputs
            .iter()
            .map(|output| output.layers.len())
            .sum();
        figures.push((
            if record.outputs.len() > 1 {
                "Images"
            } else {
                "Image"
            }
            .to_owned(),
            words::size(size),
            words::count(layers, "layer"),
        ));
    }
    let path = record.critical_path();
    let sum: u64 = path.iter().map(|step| step.nanoseconds()).sum();
    if sum > 0 {
        figures.push((
            "Critical path".to_owned(),
            words::duration(sum),
            words::count(path.len(), "step"),
        ));
    }
    let figures = figures.iter().map(|(label, value, note)| {
        format!(
            "<div><dt>{label}</dt><dd><b>{}</b><span>{}</span></dd></div>",
            markup(value),
            markup(note)
        )
    });
    format!(
        "<dl class=\"figures\">{}</dl>\n",
        figures.collect::<String>()
    )
}

/// Says how the time compares with the build before.
fn delta(page: &Page<'_>) -> String {
    let Some(earlier) = &page.earlier else {
        return String::new();
    };
    let (before, after) = earlier.diff.took;
    match before.abs_diff(after) {
        difference if difference < 50_000_000 => "as the build before".to_owned(),
        difference if after < before => format!("{} less than before", words::duration(difference)),
        difference => format!("{} more than before", words::duration(difference)),
    }
}

/// Returns a bar of how the steps ended.
fn share(page: &Page<'_>) -> String {
    use engine::history::StepOutcome;
    let totals = Totals::of(page.record);
    let all = totals.all();
    if all == 0 {
        return String::new();
    }
    let kinds = [
        (totals.cached, StepOutcome::Cached),
        (totals.ran, StepOutcome::Ran),
        (totals.failed, StepOutcome::Failed),
        (totals.canceled, StepOutcome::Canceled),
        (totals.skipped, StepOutcome::Skipped),
    ];
    let (mut bar, mut legend) = (String::new(), String::new());
    let mut at = 0.0;
    for (count, kind) in kinds.into_iter().filter(|(count, _)| *count > 0) {
        let (class, sign, word) = outcome(kind);
        let width = count as f64 * 100.0 / all as f64;
        bar.push_str(&format!(
            "<rect class=\"{class}\" x=\"{at:.3}%\" width=\"{width:.3}%\" height=\"10\"/>"
        ));
        at += width;
        legend.push_str(&format!(
            "<li class=\"{class}\"><span aria-hidden=\"true\">{sign}</span> {count} {word}</li>"
        ));
    }
    format!(
        "<svg class=\"share\" width=\"100%\" height=\"10\" aria-hidden=\"true\">{bar}</svg>\n<ul class=\"legend\" \
         aria-label=\"How the steps ended\">{legend}</ul>\n"
    )
}

const MOST_ERRORS: usize = 20;
const MOST_WARNINGS: usize = 100;

/// Returns why it failed, and what it warned of.
pub(super) fn problems(page: &Page<'_>) -> String {
    let record = page.record;
    let mut html = String::new();
    for error in record.errors.iter().take(MOST_ERRORS) {
        let step = record
            .steps
            .iter()
            .take(MOST_STEPS)
            .position(|step| Some(&step.name) == error.step.as_ref() && !step.error.is_empty());
        let place = match (&error.step, step) {
            (Some(name), Some(number)) => format!(
                "<p><a href=\"#step-{number}\">{}</a></p>",
                markup(&words::short_name(name))
            ),
            (Some(name), None) => format!("<p>{}</p>", markup(&words::short_name(name))),
            (None, _) => String::new(),
        };
        let help = match &error.help {
            Some(help) => format!("<p class=\"help\">{}</p>", markup(help)),
            None => String::new(),
        };
        html.push_str(&format!(
            "<div class=\"problem failed\" role=\"alert\"><h2>Failed</h2>{place}<pre tabindex=\"0\">{}</pre>{help}</div>\n",
            markup(&cut(&error.message, 4000))
        ));
    }
    html.push_str(&words::rest(
        record.errors.len().saturating_sub(MOST_ERRORS),
        "error",
    ));
    if !record.warnings.is_empty() {
        let lines = record.warnings.iter().take(MOST_WARNINGS).map(|warning| {
            let line = match warning.line {
                Some(line) => format!(" <span>line {line}</span>"),
                None => String::new(),
            };
            format!("<li>{}{line}</li>", markup(&cut(&warning.text, 400)))
        });
        html.push_str(&format!(
            "<details class=\"problem canceled\"><summary>{}</summary><ul>{}</ul>{}</details>\n",
            words::count(record.warnings.len(), "warning"),
            lines.collect::<String>(),
            words::rest(
                record.warnings.len().saturating_sub(MOST_WARNINGS),
                "warning"
            )
        ));
    }
    html
}
