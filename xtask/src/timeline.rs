//! The steps of a build on a time axis, out of its progress as JSON.

use std::collections::BTreeMap;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Width of the axis, in characters.
const WIDTH: usize = 48;
/// Names longer than this are cut.
const NAME_WIDTH: usize = 44;

/// When one step ran.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Step {
    name: String,
    started: OffsetDateTime,
    completed: OffsetDateTime,
    cached: bool,
}

/// Reads the steps of a build, by their start, from BuildKit's solve status, one object a line.
///
/// What is not such a line is left out, and so are steps that did not end.
pub(crate) fn steps(progress: &str) -> Vec<Step> {
    let mut last: BTreeMap<String, Step> = BTreeMap::new();
    for line in progress.lines() {
        let Ok(status) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        for vertex in status["vertexes"].as_array().into_iter().flatten() {
            let time = |field: &str| {
                vertex[field]
                    .as_str()
                    .and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok())
            };
            let (Some(digest), Some(name)) = (vertex["digest"].as_str(), vertex["name"].as_str())
            else {
                continue;
            };
            let (Some(started), Some(completed)) = (time("started"), time("completed")) else {
                continue;
            };
            let step = Step {
                name: name.to_owned(),
                started,
                completed,
                cached: vertex["cached"].as_bool().unwrap_or(false),
            };
            last.insert(digest.to_owned(), step);
        }
    }
    let mut steps: Vec<Step> = last.into_values().collect();
    steps.sort_by(|a, b| (a.started, &a.name).cmp(&(b.started, &b.name)));
    steps
}

/// Draws steps, a line each, with their seconds and a bar from start to end.
pub(crate) fn draw(steps: &[Step]) -> String {
    let Some(first) = steps.iter().map(|step| step.started).min() else {
        return String::new();
    };
    let last = steps
        .iter()
        .map(|step| step.completed)
        .max()
        .unwrap_or(first);
    let whole = (last - first).as_seconds_f64().max(0.001);
    let column = |time: OffsetDateTime| {
        let share = (time - first).as_seconds_f64() / whole;
        ((share * WIDTH as f64) as usize).min(WIDTH - 1)
    };
    let mut text = String::new();
    for step in steps {
        let (from, to) = (column(step.started), column(step.completed));
        let bar = format!("{}{}", " ".repeat(from), "━".repeat(to - from + 1));
        let name: String = step.name.chars().take(NAME_WIDTH).collect();
        let seconds = (step.completed - step.started).as_seconds_f64();
        let note = if step.cached { " cached" } else { "" };
        text.push_str(&format!(
            "  {name:NAME_WIDTH$} {seconds:>6.1}s {bar}{note}\n"
        ));
    }
    text
}

/// Height of a line of the picture.
const LINE: usize = 24;
/// Where the axis begins, and how wide it is.
const AXIS: (usize, usize) = (400, 420);

/// Draws the same as a picture, below a title. Steps that took no time worth seeing are left out.
pub(crate) fn picture(title: &str, steps: &[Step]) -> String {
    let seconds = |from: OffsetDateTime, to: OffsetDateTime| (to - from).as_seconds_f64();
    let shown: Vec<&Step> = steps
        .iter()
        .filter(|step| !step.name.starts_with("[internal]"))
        .collect();
    let first = shown.iter().map(|step| step.started).min();
    let last = shown.iter().map(|step| step.completed).max();
    let (Some(first), Some(last)) = (first, last) else {
        return String::new();
    };
    let whole = seconds(first, last).max(0.001);
    let place = |time: OffsetDateTime| seconds(first, time) / whole * AXIS.1 as f64;
    let mut rows = String::new();
    for (row, step) in shown.iter().enumerate() {
        let top = 48 + row * LINE;
        let (from, to) = (place(step.started), place(step.completed));
        let name: String = step.name.chars().take(NAME_WIDTH).collect();
        let taken = seconds(step.started, step.completed);
        let width = (to - from).max(2.0);
        // Beside the bar where there is room for it, else inside.
        let beside = from + width < AXIS.1 as f64 - 44.0;
        let (text_at, anchor) = match beside {
            true => (AXIS.0 as f64 + from + width + 6.0, "start"),
            false => (AXIS.0 as f64 + from + width - 6.0, "end"),
        };
        let inside = if beside { "" } else { " class=\"in\"" };
        rows.push_str(&format!(
            "<text x=\"16\" y=\"{}\">{}</text>\n<rect x=\"{:.1}\" y=\"{}\" width=\"{width:.1}\" height=\"14\" \
             rx=\"2\"/>\n<text x=\"{text_at:.1}\" y=\"{}\" text-anchor=\"{anchor}\"{inside}>{taken:.1}s</text>\n",
            top + 12,
            escaped(&name),
            AXIS.0 as f64 + from,
            top + 1,
            top + 12,
        ));
    }
    let height = 48 + shown.len() * LINE + 12;
    let width = AXIS.0 + AXIS.1 + 16;
    let title = escaped(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         aria-label=\"{title}\">\n<style>\nsvg {{ background: #fff; font: 13px ui-monospace, monospace; }}\n\
         text {{ fill: #222; }}\nrect {{ fill: #2b6cb0; }}\n.in {{ fill: #fff; }}\n\
         @media (prefers-color-scheme: dark) {{\nsvg {{ background: #16181d; }}\ntext {{ fill: #ddd; }}\n\
         rect {{ fill: #63a4e8; }}\n.in {{ fill: #111; }}\n}}\n</style>\n\
         <text x=\"16\" y=\"26\" font-weight=\"bold\">$ {title}</text>\n{rows}</svg>\n"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRESS: &str = concat!(
        r#"{"vertexes":[{"digest":"sha256:b","name":"two","started":"2026-01-01T00:00:01Z"}]}"#,
        "\nnot a status\n",
        r#"{"vertexes":[{"digest":"sha256:a","name":"one","started":"2026-01-01T00:00:00Z","completed":"2026-01-01T00:00:02Z"}]}"#,
        "\n",
        r#"{"vertexes":[{"digest":"sha256:b","name":"two","started":"2026-01-01T00:00:01Z","completed":"2026-01-01T00:00:04Z","cached":true}],"logs":[]}"#,
        "\n",
    );

    #[test]
    fn steps_are_read_in_the_order_of_their_start() {
        let steps = steps(PROGRESS);
        let names: Vec<&str> = steps.iter().map(|step| &*step.name).collect();
        assert_eq!(names, ["one", "two"]);
        assert!(steps[1].cached);
    }

    #[test]
    fn the_picture_has_a_bar_for_each_step() {
        let picture = picture("a < b", &steps(PROGRESS));
        assert!(picture.contains("$ a &lt; b"));
        assert_eq!(picture.matches("<rect ").count(), 2);
        // The second begins after a quarter of the axis, and ends with it.
        assert!(picture.contains("<rect x=\"505.0\" y=\"73\" width=\"315.0\""));
    }

    #[test]
    fn bars_lie_where_the_steps_were() {
        let drawn = draw(&steps(PROGRESS));
        let bars: Vec<(usize, usize)> = drawn
            .lines()
            .map(|line| {
                let axis: Vec<char> = line.chars().skip(2 + NAME_WIDTH + 1 + 7 + 1).collect();
                let from = axis.iter().take_while(|c| **c == ' ').count();
                (from, axis.iter().filter(|c| **c == '━').count())
            })
            .collect();
        assert_eq!(bars, [(0, 25), (12, 36)]);
        assert!(drawn.ends_with(" cached\n"));
    }

    #[test]
    fn no_steps_draw_nothing() {
        assert_eq!(draw(&[]), "");
    }
}
