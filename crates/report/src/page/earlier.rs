//! What changed since the build before.

use engine::history::{Change, StepDiff, StepOutcome};

use super::{Page, Section, outcome};
use crate::escape::{cut, markup};
use crate::words;

/// More lines of one kind than that are not shown.
const MOST_LINES: usize = 200;
/// More steps than that are not shown.
const MOST_CHANGED: usize = 500;

pub(super) fn section(page: &Page<'_>) -> Option<Section> {
    let earlier = page.earlier.as_ref()?;
    let diff = earlier.diff;
    let lines = |changes: &[Change]| -> Vec<String> {
        let mut lines: Vec<String> = changes
            .iter()
            .flat_map(|change| (earlier.words)(change))
            .collect();
        if let Some(more) = lines.len().checked_sub(MOST_LINES + 1) {
            lines.truncate(MOST_LINES);
            lines.push(format!("and {}", words::count(more + 1, "more change")));
        }
        lines
    };
    let mut body = String::new();
    let mut rows = vec![(
        "Time",
        words::duration(diff.took.0),
        words::duration(diff.took.1),
    )];
    for output in &diff.outputs {
        rows.push((
            "Image",
            words::size(output.size.0),
            words::size(output.size.1),
        ));
        rows.push((
            "Layers",
            output.layers.0.to_string(),
            format!("{} ({} as before)", output.layers.1, output.shared_layers),
        ));
    }
    let rows = rows.iter().map(|(name, before, after)| {
        format!("<tr><th scope=\"row\">{name}</th><td>{before}</td><td>{after}</td></tr>")
    });
    body.push_str(&format!(
        "<table class=\"versus\"><caption>Against build <code>{}</code> of {}</caption><thead><tr><td></td>\
         <th scope=\"col\">Before</th><th scope=\"col\">This build</th></tr></thead><tbody>{}</tbody></table>\n",
        markup(&earlier.record.id),
        words::date(earlier.record.started),
        rows.collect::<String>()
    ));
    for (heading, changes) in [
        ("Asked for otherwise", &diff.request),
        ("From outside", &diff.sources),
    ] {
        if !changes.is_empty() {
            body.push_str(&format!("<h3>{heading}</h3>\n{}", list(&lines(changes))));
        }
    }
    if !diff.steps.is_empty() {
        let steps = diff.steps.iter().take(MOST_CHANGED).map(|step| {
            let mut told = lines(&step.changes);
            if step.inputs_changed {
                told.push("what it builds on has changed".to_owned());
            }
            if let (Some(before), Some(after)) = step.size
                && before != after
            {
                told.push(format!(
                    "its layer has {} → {}",
                    words::size(before),
                    words::size(after)
                ));
            }
            format!(
                "<li><p><code>{}</code> {}</p>{}</li>",
                markup(&cut(&words::short_name(&step.step), 300)),
                ending(step),
                list(&told)
            )
        });
        body.push_str(&format!(
            "<h3>Steps</h3>\n<ul class=\"changes\">{}</ul>\n{}",
            steps.collect::<String>(),
            words::rest(diff.steps.len().saturating_sub(MOST_CHANGED), "step")
        ));
    }
    if diff.equal > 0 {
        body.push_str(&format!(
            "<p class=\"quiet\">{} as before.</p>\n",
            match diff.equal {
                1 => "1 step ended".to_owned(),
                count => format!("{count} steps ended"),
            }
        ));
    }
    Some(Section {
        id: "changes",
        short: "Changes",
        title: "Since the build before",
        aside: String::new(),
        body,
    })
}

fn list(lines: &[String]) -> String {
    match lines.is_empty() {
        true => String::new(),
        false => {
            let lines: Vec<String> = lines.iter().map(|line| markup(&cut(line, 500))).collect();
            format!(
                "<pre class=\"lines\" tabindex=\"0\">{}</pre>\n",
                lines.join("\n")
            )
        }
    }
}

/// Says how a step ended then and now.
fn ending(step: &StepDiff) -> String {
    let told = |kind: StepOutcome, took: u64| {
        let (class, sign, word) = outcome(kind);
        let time = match took {
            0 => String::new(),
            took => format!(" {}", words::duration(took)),
        };
        format!(
            "<span class=\"end {class}\"><span aria-hidden=\"true\">{sign}</span> {word}{time}</span>"
        )
    };
    match step.outcome {
        (Some(before), Some(after)) => format!(
            "{} → {}",
            told(before, step.took.0),
            told(after, step.took.1)
        ),
        (None, Some(after)) => format!("new: {}", told(after, step.took.1)),
        (Some(_), None) => "gone".to_owned(),
        (None, None) => String::new(),
    }
}
