//! When each step ran: a lane for each stage, all on one scale.

use engine::history::{StepOutcome, StepRecord, nanoseconds_between};
use oci::Timestamp;

use super::{MOST_STEPS, Page, Section, instruction, outcome, stage, took};
use crate::escape::{cut, markup};
use crate::words;

const BAR: usize = 30;
/// The share of the scale below which a bar has no text, in per cent.
const TEXT_SHARE: f64 = 5.0;

/// More lanes than these scroll in a window of their own: what follows stays within reach.
const MOST_LANES: usize = 40;

/// One line of bars.
struct Lane<'a> {
    name: String,
    /// Rows of steps that do not overlap.
    rows: Vec<Vec<(usize, &'a StepRecord)>>,
}

pub(super) fn section(page: &Page<'_>) -> Section {
    let record = page.record;
    let ends = record.steps.iter().filter_map(|step| step.completed);
    let end = ends.chain(record.completed).max().unwrap_or(record.started);
    let all = nanoseconds_between(record.started, end).max(1_000_000);
    let scale = Scale {
        start: record.started,
        all,
    };
    let path = record.critical_path();
    let is_critical = |step: &StepRecord| path.iter().any(|on| std::ptr::eq(*on, step));
    let lanes = lanes(page);
    let many = if lanes.len() > MOST_LANES {
        " many"
    } else {
        ""
    };
    let wide = match lanes.iter().any(|lane| lane.name.contains('/')) {
        true => " wide",
        false => "",
    };
    let lanes: String = lanes
        .iter()
        .map(|lane| lane.html(&scale, &is_critical))
        .collect();
    let body = format!(
        "<div class=\"timeline{wide}\">\n<div class=\"axis\" aria-hidden=\"true\"><span></span>{}</div>\n<ol class=\"lanes{many}\">{lanes}</ol>\n</div>\n{}{}",
        scale.axis(),
        legend(),
        slow(page, &path),
    );
    Section {
        id: "timeline",
        short: "Timeline",
        title: "Timeline",
        aside: format!("<p>Stages side by side, over {}</p>", words::duration(all)),
        body,
    }
}

/// Gathers the steps that have a time into lanes, in the order in which these began.
fn lanes<'a>(page: &Page<'a>) -> Vec<Lane<'a>> {
    let steps = page.record.steps.iter().enumerate().take(MOST_STEPS);
    let mut timed: Vec<(usize, &StepRecord)> = steps
        .filter(|(_, step)| step.started.is_some() && step.completed.is_some())
        .collect();
    timed.sort_by_key(|(number, step)| (step.started, *number));
    let mut lanes: Vec<Lane<'_>> = Vec::new();
    for (number, step) in timed {
        let name = stage(step);
        let lane = match lanes.iter_mut().position(|lane| lane.name == name) {
            Some(at) => &mut lanes[at],
            None => {
                let rows = Vec::new();
                lanes.push(Lane { name, rows });
                let last = lanes.len() - 1;
                &mut lanes[last]
            }
        };
        let free = lane.rows.iter_mut().find(|row| {
            let last = row.last().and_then(|(_, last)| last.completed);
            // What was found at once takes no room of its own.
            last <= step.started || step.outcome == StepOutcome::Cached
        });
        match free {
            Some(row) => row.push((number, step)),
            None => lane.rows.push(vec![(number, step)]),
        }
    }
    lanes
}

struct Scale {
    start: Timestamp,
    /// Nanoseconds.
    all: u64,
}

impl Scale {
    /// Returns where a time stands, in per cent.
    fn share(&self, time: Timestamp) -> f64 {
        let since = nanoseconds_between(self.start, time).min(self.all);
        since as f64 * 100.0 / self.all as f64
    }

    /// Returns the marks of the scale: at most six, at round numbers.
    fn marks(&self) -> Vec<(f64, String)> {
        let mut step: u64 = 1_000_000;
        let mut factors = [2, 5, 10].iter().cycle();
        let mut base = step;
        while self.all / step > 6 {
            let factor = *factors.next().unwrap_or(&10);
            step = base * factor;
            if factor == 10 {
                base = step;
            }
        }
        let marks = (0..=self.all / step).map(|number| {
            let at = number * step;
            (at as f64 * 100.0 / self.all as f64, mark(at))
        });
        marks.filter(|(share, _)| *share < 97.0).collect()
    }

    fn axis(&self) -> String {
        let marks = self.marks().into_iter().map(|(share, text)| {
            format!(
                "<line x1=\"{share:.2}%\" x2=\"{share:.2}%\" y1=\"16\" y2=\"22\"/><text x=\"{share:.2}%\" y=\"12\">{text}</text>"
            )
        });
        format!(
            "<svg width=\"100%\" height=\"22\">{}</svg>",
            marks.collect::<String>()
        )
    }
}

/// Writes a time of the scale without digits that say nothing.
fn mark(nanoseconds: u64) -> String {
    match nanoseconds {
        0 => "0".to_owned(),
        1..1_000_000_000 => format!("{}ms", nanoseconds / 1_000_000),
        1_000_000_000..60_000_000_000 => {
            let tenths = nanoseconds / 100_000_000;
            match tenths % 10 {
                0 => format!("{}s", tenths / 10),
                rest => format!("{}.{rest}s", tenths / 10),
            }
        }
        _ => words::duration(nanoseconds),
    }
}

impl Lane<'_> {
    fn html(&self, scale: &Scale, is_critical: &dyn Fn(&StepRecord) -> bool) -> String {
        let height = self.rows.len() * BAR;
        let mut bars = String::new();
        for (share, _) in scale.marks() {
            bars.push_str(&format!(
                "<line class=\"mark\" x1=\"{share:.2}%\" x2=\"{share:.2}%\" y1=\"0\" y2=\"{height}\"/>"
            ));
        }
        let mut spent = 0;
        for (row, steps) in self.rows.iter().enumerate() {
            for (number, step) in steps {
                spent += took(step);
                bars.push_str(&bar(*number, step, row, scale, is_critical(step)));
            }
        }
        let spent = super::time(spent);
        let name = cut(&self.name, 60);
        let broken = label(&name);
        let name = markup(&name);
        format!(
            "<li><p class=\"lane\"><b>{broken}</b><span>{spent}</span></p>\
             <svg width=\"100%\" height=\"{height}\" role=\"group\" aria-label=\"Steps of {name}\">{bars}</svg></li>\n"
        )
    }
}

/// The longest word that stays on one line, in letters: more has no room beside the time.
const LONGEST_WHOLE: usize = 12;

/// Returns a name that breaks where a reader would: before the arrow of platforms, not within short words.
fn label(name: &str) -> String {
    let word = |word: &str| {
        let parts = word.split("->").map(|part| {
            let is_whole = part.contains('-') && part.chars().count() <= LONGEST_WHOLE;
            match is_whole {
                true => format!("<span class=\"whole\">{}</span>", markup(part)),
                false => markup(part),
            }
        });
        parts.collect::<Vec<_>>().join("<wbr>-&gt;")
    };
    name.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn bar(number: usize, step: &StepRecord, row: usize, scale: &Scale, critical: bool) -> String {
    let (Some(started), Some(completed)) = (step.started, step.completed) else {
        return String::new();
    };
    let (class, sign, word) = outcome(step.outcome);
    let left = scale.share(started);
    let width = (scale.share(completed) - left).max(0.02);
    let y = row * BAR;
    let told = instruction(step);
    let time = match took(step) {
        0 => String::new(),
        took => format!(" in {}", words::duration(took)),
    };
    let (critical, note) = match critical {
        true => (" critical", ", on the critical path"),
        false => ("", ""),
    };
    let label = format!("{told}: {word}{time}{note}");
    let text = match width >= TEXT_SHARE {
        true => format!(
            "<svg x=\"{left:.3}%\" y=\"{y}\" width=\"{width:.3}%\" height=\"{BAR}\"><text x=\"9\" y=\"19.5\">{sign} {}</text></svg>",
            markup(&cut(&told, 90))
        ),
        false => String::new(),
    };
    let line = match critical.is_empty() {
        true => String::new(),
        false => format!(
            "<rect class=\"line\" x=\"{left:.3}%\" y=\"{}\" width=\"{width:.3}%\" height=\"3\"/>",
            y + BAR - 4
        ),
    };
    format!(
        "<a href=\"#step-{number}\" class=\"bar {class}{critical}\" aria-label=\"{label}\"><title>{label}</title>\
         <rect x=\"{left:.3}%\" y=\"{}\" width=\"{width:.3}%\" height=\"{}\" rx=\"4\"/>{text}{line}</a>",
        y + 3,
        BAR - 8,
        label = markup(&cut(&label, 300)),
    )
}

/// Returns the critical path and the slowest steps, each with a bar of its share.
fn slow(page: &Page<'_>, path: &[&StepRecord]) -> String {
    let record = page.record;
    let number = |step: &StepRecord| {
        record
            .steps
            .iter()
            .position(|other| std::ptr::eq(other, step))
    };
    let list = |steps: &[&StepRecord], most: u64| -> String {
        let rows = steps.iter().map(|step| {
            let share = step.nanoseconds() as f64 * 100.0 / most.max(1) as f64;
            // Beyond these the page has no steps to go to.
            let link = match number(step).filter(|number| *number < MOST_STEPS) {
                Some(number) => format!(" href=\"#step-{number}\""),
                None => String::new(),
            };
            format!(
                "<li><a{link}><b>{}</b> <code>{}</code></a><span class=\"time\">{}</span>\
                 <svg width=\"100%\" height=\"4\" aria-hidden=\"true\"><rect width=\"{share:.2}%\" height=\"4\" rx=\"2\"/></svg></li>",
                markup(&cut(&stage(step), 40)),
                markup(&cut(&instruction(step), 120)),
                words::duration(step.nanoseconds()),
            )
        });
        rows.collect()
    };
    let sum: u64 = path.iter().map(|step| step.nanoseconds()).sum();
    let slowest = record.slowest(5);
    if slowest.is_empty() {
        return "<p class=\"quiet\">No step ran: every result was there.</p>\n".to_owned();
    }
    let most = slowest.first().map_or(0, |step| step.nanoseconds());
    let longest = path
        .iter()
        .map(|step| step.nanoseconds())
        .max()
        .unwrap_or(0);
    // What takes no time makes no path longer.
    let worth: Vec<&StepRecord> = path
        .iter()
        .copied()
        .filter(|step| step.nanoseconds() * 100 >= sum)
        .take(12)
        .collect();
    let rest = match path.len() - worth.len() {
        0 => String::new(),
        rest => format!(
            "<p class=\"quiet\">and {} that took less</p>",
            words::count(rest, "step")
        ),
    };
    format!(
        "<div class=\"two\">\n<div class=\"slow critical\"><h3>Critical path <span>{}</span></h3>\
         <p class=\"quiet\">The build cannot be faster than this chain.</p><ol>{}</ol>{rest}</div>\n\
         <div class=\"slow\"><h3>Slowest steps</h3><p class=\"quiet\">By their own time, wherever they ran.</p><ol>{}</ol></div>\n</div>\n",
        words::duration(sum),
        list(&worth, longest),
        list(&slowest, most),
    )
}

fn legend() -> String {
    let kinds = [
        StepOutcome::Ran,
        StepOutcome::Cached,
        StepOutcome::Failed,
        StepOutcome::Canceled,
    ];
    let items = kinds.map(|kind| {
        let (class, sign, word) = outcome(kind);
        format!("<li class=\"{class}\"><span aria-hidden=\"true\">{sign}</span> {word}</li>")
    });
    format!(
        "<ul class=\"legend\" aria-hidden=\"true\">{}<li class=\"critical\"><span>▁</span> critical path</li></ul>\n",
        items.concat()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_words_of_a_label_stay_whole() {
        assert_eq!(label("stage-1"), "<span class=\"whole\">stage-1</span>");
        assert_eq!(
            label("linux/amd64->arm64 my-app"),
            "linux/amd64<wbr>-&gt;arm64 <span class=\"whole\">my-app</span>"
        );
        let long = "a-stage-with-a-long-name";
        assert_eq!(label(long), long);
        assert_eq!(label("<b>-"), "<span class=\"whole\">&lt;b&gt;-</span>");
    }
}
