//! Every step: how it ended and why, what it used, what it printed.

use engine::history::{CachedBy, StepKind, StepRecord};

use super::{MOST_STEPS, Page, Section, instruction, outcome, stage, took};
use crate::LogText;
use crate::escape::{cut, markup};
use crate::words;

pub(super) fn section(page: &Page<'_>) -> Section {
    let record = page.record;
    let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
    for (number, step) in record.steps.iter().enumerate().take(MOST_STEPS) {
        let name = stage(step);
        match groups.iter_mut().find(|(known, _)| *known == name) {
            Some((_, steps)) => steps.push(number),
            None => groups.push((name, vec![number])),
        }
    }
    // What the builder does around the graph comes last.
    groups.sort_by_key(|(_, steps)| record.steps[steps[0]].stage.is_none());
    let path = record.critical_path();
    let mut body = String::from(TOOLS);
    for (name, steps) in &groups {
        let steps = steps.iter().map(|number| {
            let step = &record.steps[*number];
            let critical = path.iter().any(|on| std::ptr::eq(*on, step));
            html(page, *number, step, critical)
        });
        body.push_str(&format!(
            "<div class=\"group\"><h3>{}</h3>\n{}</div>\n",
            markup(&cut(name, 80)),
            steps.collect::<String>()
        ));
    }
    body.push_str("<p class=\"quiet\" id=\"none\" hidden>No step is like that.</p>\n");
    if let Some(more) = record
        .steps
        .len()
        .checked_sub(MOST_STEPS)
        .filter(|more| *more > 0)
    {
        body.push_str(&format!(
            "<p class=\"quiet\">{more} more steps are left out here; lapstrake history inspect {} lists them.</p>\n",
            markup(&record.id)
        ));
    }
    Section {
        id: "steps",
        short: "Steps",
        title: "Steps and logs",
        aside: String::new(),
        body,
    }
}

const TOOLS: &str = "<div class=\"tools\" role=\"search\">\n\
    <label for=\"search\">Search names and logs</label>\n\
    <div class=\"field\"><input type=\"search\" id=\"search\" autocomplete=\"off\" spellcheck=\"false\" \
    placeholder=\"Search names and logs ( / )\" aria-describedby=\"found\">\
    <span id=\"found\" role=\"status\" aria-live=\"polite\"></span>\
    <button type=\"button\" id=\"previous\" aria-label=\"Previous match\" disabled>↑</button>\
    <button type=\"button\" id=\"next\" aria-label=\"Next match\" disabled>↓</button></div>\n\
    <div class=\"filters\" role=\"group\" aria-label=\"Show\">\
    <button type=\"button\" data-show=\"all\" aria-pressed=\"true\">All</button>\
    <button type=\"button\" data-show=\"ran\" aria-pressed=\"false\">Ran</button>\
    <button type=\"button\" data-show=\"cached\" aria-pressed=\"false\">Cached</button>\
    <button type=\"button\" data-show=\"failed\" aria-pressed=\"false\">Failed</button>\
    <button type=\"button\" id=\"open\" aria-pressed=\"false\">Open all</button></div>\n</div>\n";

fn html(page: &Page<'_>, number: usize, step: &StepRecord, critical: bool) -> String {
    let (class, sign, word) = outcome(step.outcome);
    let facts = page.facts.get(number);
    let told = instruction(step);
    let (keyword, rest) = match told.split_once(' ') {
        Some((keyword, rest)) if keyword.bytes().all(|byte| byte.is_ascii_uppercase()) => {
            (keyword, rest)
        }
        _ => ("", told.as_str()),
    };
    let keyword = match keyword {
        "" => String::new(),
        keyword => format!("<b>{}</b> ", markup(keyword)),
    };
    let chip = match critical {
        true => "<span class=\"chip\">critical path</span>",
        false => "",
    };
    let size = match &step.layer {
        Some(layer) if layer.size > 0 => words::size(layer.size),
        _ => String::new(),
    };
    let open = match step.error.is_empty() {
        true => "",
        false => " open",
    };
    format!(
        "<details class=\"step {class}\" id=\"step-{number}\"{open}><summary><span class=\"sign\" aria-hidden=\"true\">{sign}</span>\
         <code>{keyword}{}</code>{chip}<span class=\"size\">{size}</span><span class=\"time\">{}</span>\
         <span class=\"word\">{word}</span></summary>\n<div class=\"inside\">{}{}</div></details>\n",
        markup(&cut(rest, 2000)),
        super::time(took(step)),
        details(step, facts.map_or(&[], |facts| &facts.reasons)),
        facts
            .map(|facts| log(page, step, &facts.log))
            .unwrap_or_default(),
    )
}

/// Returns what is known of a step beside its log.
fn details(step: &StepRecord, reasons: &[String]) -> String {
    let mut rows: Vec<(&str, String)> = Vec::new();
    let lines = |lines: &[String]| {
        let lines: Vec<String> = lines
            .iter()
            .take(60)
            .map(|line| markup(&cut(line, 500)))
            .collect();
        lines.join("\n")
    };
    if !step.error.is_empty() {
        rows.push(("Error", markup(&cut(&step.error, 4000))));
    }
    if !reasons.is_empty() {
        rows.push(("Ran because", lines(reasons)));
    }
    if let Some(by) = step.cached_by {
        let why = match by {
            CachedBy::Definition => "nothing it is made of has changed",
            CachedBy::Content => "its inputs were made again and hold what they held",
            CachedBy::OtherBuild => "another build ran it meanwhile",
            CachedBy::Imported => "a cache named with --cache-from had it",
            CachedBy::Covered => "a step above it was found, so this one was not needed",
        };
        let why = match &step.cached_from {
            Some(cache) => format!("{why}: {}", markup(&cut(cache, 400))),
            None => why.to_owned(),
        };
        rows.push(("Cached because", why));
    }
    if let Some((first, last)) = step.lines {
        let place = match first == last {
            true => format!("line {first}"),
            false => format!("lines {first} to {last}"),
        };
        rows.push(("Dockerfile", place));
    }
    if let Some(usage) = &step.usage {
        let cpu = words::duration((usage.user + usage.system) * 1000);
        let mut used = format!(
            "{cpu} of processor time, {} of memory",
            words::size(usage.peak_memory)
        );
        if usage.read + usage.written > 0 {
            used.push_str(&format!(
                ", {} read, {} written",
                words::size(usage.read),
                words::size(usage.written)
            ));
        }
        rows.push(("Used", used));
    }
    for part in step.transfers.iter().take(12) {
        let bytes = match part.current {
            0 => String::new(),
            bytes => words::size(bytes),
        };
        let text = format!("{} {bytes}", cut(&crate::words::short_name(&part.id), 90));
        rows.push(("Moved", markup(text.trim_end())));
    }
    if let Some(diff_id) = step.layer.as_ref().and_then(|layer| layer.diff_id.as_ref()) {
        rows.push((
            "Layer",
            format!("<code>{}</code>", markup(diff_id.as_str())),
        ));
    }
    if rows.is_empty() {
        return String::new();
    }
    let rows = rows
        .iter()
        .map(|(name, value)| format!("<div><dt>{name}</dt><dd>{value}</dd></div>"));
    format!("<dl class=\"facts\">{}</dl>", rows.collect::<String>())
}

fn log(page: &Page<'_>, step: &StepRecord, log: &LogText) -> String {
    if log.is_empty() {
        return match step.printed {
            0 if step.kind != StepKind::Exec => String::new(),
            0 => "<p class=\"quiet\">It printed nothing.</p>".to_owned(),
            _ => "<p class=\"quiet\">Its log is not in the store any more.</p>".to_owned(),
        };
    }
    let name = markup(&cut(&instruction(step), 80));
    let pre = |text: &str, what: &str| {
        format!(
            "<pre class=\"log\" tabindex=\"0\" role=\"region\" aria-label=\"{what} of {name}\">{}</pre>",
            markup(text)
        )
    };
    match log.parts() {
        (text, None) => pre(&text, "Log"),
        (head, Some((bytes, tail))) => format!(
            "{}<p class=\"gap\">{} are left out here. <code>lapstrake history logs {} {}</code> prints all.</p>{}",
            pre(&head, "Beginning of the log"),
            words::size(bytes),
            markup(&page.record.id),
            markup(&quoted(step)),
            pre(&tail, "End of the log"),
        ),
    }
}

/// Returns what names a step on a command line.
fn quoted(step: &StepRecord) -> String {
    match step.lines {
        Some((first, _)) => first.to_string(),
        None => format!("'{}'", cut(&instruction(step), 60).replace('\'', "'\\''")),
    }
}
