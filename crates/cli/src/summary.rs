//! The last words about a build: what was cached, what ran, what took long.

use engine::history::{
    BuildRecord, BuildStatus, OutputRecord, StepKind, StepOutcome, StepRecord, Totals,
};

use crate::table::human_size;
use crate::words::{duration, one_line, short_name};

/// Steps that took less are not worth a line, in nanoseconds.
const WORTH_A_LINE: u64 = 500_000_000;
/// How many failed steps are named, and how many stages with what they have written.
const MOST_FAILED: usize = 5;
const MOST_STAGES: usize = 8;
/// How many slow steps are named.
const SLOWEST: usize = 3;

/// Returns a build in few lines; empty where there is nothing to say.
///
/// `columns` is how wide a line may be.
pub(crate) fn summary(record: &BuildRecord, columns: usize) -> String {
    let totals = Totals::of(record);
    if totals.all() == 0 {
        return String::new();
    }
    let took = duration(record.nanoseconds(record.started));
    let counts = counts(&totals);
    let mut text = match record.status {
        BuildStatus::Completed => {
            let made = record
                .outputs
                .iter()
                .map(made)
                .collect::<Vec<_>>()
                .join(", ");
            let made = match made.as_str() {
                "" => String::new(),
                made => format!(": {made}"),
            };
            format!("Built in {took}{made}\n")
        }
        BuildStatus::Canceled => format!("Canceled after {took}\n"),
        _ => format!("Failed after {took}\n"),
    };
    text.push_str(&format!("  {counts}\n"));
    let failed = record.steps.iter().filter(|step| !step.error.is_empty());
    for step in failed.take(MOST_FAILED) {
        let name = shortened(&short_name(&step.name));
        // The whole message, with the command in it, comes below.
        let why = step.error.lines().next().unwrap_or_default();
        let why = why.rsplit("did not complete successfully: ").next();
        let why = one_line(why.unwrap_or_default());
        text.push_str(&line(&format!("failed: {name}"), &[why], "", columns));
    }
    let slowest = record.slowest(SLOWEST);
    let worth = |step: &&&StepRecord| step.nanoseconds() >= WORTH_A_LINE;
    let slow: Vec<String> = slowest
        .iter()
        .filter(worth)
        .map(|step| timed(step))
        .collect();
    if !slow.is_empty() {
        text.push_str(&line("slowest", &slow, ", ", columns));
    }
    let path = record.critical_path();
    let sum: u64 = path.iter().map(|step| step.nanoseconds()).sum();
    // One slow step alone is said already.
    let path: Vec<String> = path.iter().filter(worth).map(|step| timed(step)).collect();
    if path.len() > 1 {
        let label = format!("critical path {}", duration(sum));
        text.push_str(&line(&label, &path, " > ", columns));
    }
    let sizes = sizes(record);
    // Of one stage, the size of the image says it.
    if sizes.len() > 1 {
        text.push_str(&line("written by stage", &sizes, ", ", columns));
    }
    text
}

/// Returns how much the stages have written in this build, the largest first.
fn sizes(record: &BuildRecord) -> Vec<String> {
    let mut sizes: Vec<(&str, u64)> = Vec::new();
    let ran = record.steps.iter().filter(|step| {
        step.outcome == StepOutcome::Ran && matches!(step.kind, StepKind::Exec | StepKind::File)
    });
    for step in ran {
        let (Some(stage), Some(layer)) = (&step.stage, &step.layer) else {
            continue;
        };
        match sizes.iter_mut().find(|(known, _)| known == stage) {
            Some((_, size)) => *size += layer.size,
            None => sizes.push((stage, layer.size)),
        }
    }
    sizes.retain(|(_, size)| *size > 0);
    sizes.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let shown = sizes.iter().take(MOST_STAGES);
    shown
        .map(|(stage, size)| format!("{} {}", one_line(stage), human_size(*size)))
        .collect()
}

fn counts(totals: &Totals) -> String {
    let steps = match totals.all() {
        1 => "1 step".to_owned(),
        all => format!("{all} steps"),
    };
    if totals.cached == totals.all() {
        return format!("{steps}, all cached");
    }
    let kinds = [
        (totals.cached, "cached"),
        (totals.ran, "ran"),
        (totals.failed, "failed"),
        (totals.canceled, "canceled"),
        (totals.skipped, "not run"),
    ];
    let kinds = kinds.iter().filter(|(count, _)| *count > 0);
    let kinds: Vec<String> = kinds
        .map(|(count, kind)| format!("{count} {kind}"))
        .collect();
    format!("{steps}: {}", kinds.join(", "))
}

fn made(output: &OutputRecord) -> String {
    let size = human_size(output.size);
    match &output.image {
        Some(image) => format!("{} {size}", &image.hex()[..12]),
        None => format!("{} {size}", output.platform),
    }
}

/// Returns a step's place and instruction, shortened, with its time.
fn timed(step: &StepRecord) -> String {
    let name = short_name(&step.name);
    let took = duration(step.nanoseconds());
    format!("{} {took}", shortened(&name))
}

fn shortened(name: &str) -> String {
    match name.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

/// Lays items behind a label; what does not fit goes on the next line.
fn line(label: &str, items: &[String], between: &str, columns: usize) -> String {
    let mut text = format!("  {label}: ");
    let indent = text.chars().count();
    let mut at = indent;
    for (number, item) in items.iter().enumerate() {
        let last = number + 1 == items.len();
        let piece = match last {
            true => item.clone(),
            false => format!("{item}{}", between.trim_end()),
        };
        let length = piece.chars().count();
        if number > 0 {
            if at + 1 + length > columns {
                text.push('\n');
                text.push_str(&" ".repeat(indent));
                at = indent;
            } else {
                text.push(' ');
                at += 1;
            }
        }
        text.push_str(&piece);
        at += length;
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_that_do_not_fit_go_on_the_next_line() {
        let items = [
            "one 1.0s".to_owned(),
            "two 2.0s".to_owned(),
            "three 3.0s".to_owned(),
        ];
        assert_eq!(
            line("slowest", &items, ", ", 32),
            "  slowest: one 1.0s, two 2.0s,\n           three 3.0s\n"
        );
        assert_eq!(
            line("path", &items[..2], " > ", 80),
            "  path: one 1.0s > two 2.0s\n"
        );
    }

    #[test]
    fn counts_name_only_what_there_is() {
        let totals = |cached, ran, failed| Totals {
            cached,
            ran,
            failed,
            ..Totals::default()
        };
        assert_eq!(counts(&totals(3, 0, 0)), "3 steps, all cached");
        assert_eq!(counts(&totals(0, 1, 0)), "1 step: 1 ran");
        assert_eq!(
            counts(&totals(2, 3, 1)),
            "6 steps: 2 cached, 3 ran, 1 failed"
        );
    }
}
