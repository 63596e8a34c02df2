//! What was measured, as lines, a table, JSON, a page and a chart.

use std::fmt::Write;

use serde_json::json;

use super::workloads::{Goal, Phase, Workload};

/// The seconds of one builder in one phase.
#[derive(Debug, Default, Clone)]
pub(crate) struct Cell {
    seconds: Vec<f64>,
    failed: bool,
}

impl Cell {
    pub(crate) fn failed() -> Self {
        Self {
            seconds: Vec::new(),
            failed: true,
        }
    }

    pub(crate) fn add(&mut self, seconds: f64) {
        if !self.failed {
            self.seconds.push(seconds);
        }
    }

    fn sorted(&self) -> Vec<f64> {
        let mut seconds = self.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        seconds
    }

    pub(crate) fn median(&self) -> Option<f64> {
        let seconds = self.sorted();
        let middle = seconds.len() / 2;
        match seconds.len() {
            0 => None,
            count if count % 2 == 0 => Some(f64::midpoint(seconds[middle - 1], seconds[middle])),
            _ => Some(seconds[middle]),
        }
    }

    fn text(&self) -> String {
        match self.median() {
            Some(median) => seconds(median),
            None if self.failed => "failed".to_owned(),
            None => String::new(),
        }
    }
}

/// One phase of one workload.
#[derive(Debug)]
pub(crate) struct Row {
    name: String,
    about: &'static str,
    goal: Goal,
    pub(crate) builders: Vec<Cell>,
    pub(crate) limit: Cell,
}

impl Row {
    pub(crate) fn new(workload: &Workload, phase: &Phase, builders: usize) -> Self {
        Self {
            name: format!("{} {}", workload.name, phase.name),
            about: workload.about,
            goal: phase.goal,
            builders: vec![Cell::default(); builders],
            limit: Cell::default(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Report {
    builders: Vec<String>,
    runs: usize,
    versions: Vec<String>,
    pub(crate) rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new(builders: Vec<String>, runs: usize, versions: Vec<String>) -> Self {
        Self {
            builders,
            runs,
            versions,
            rows: Vec::new(),
        }
    }

    /// Our share of what the goal of a row speaks of, what it may be, and whether it is.
    fn verdict(&self, row: &Row) -> Option<(f64, f64, &'static str)> {
        let ours = row.builders.first()?.median()?;
        let (against, most, of) = match row.goal {
            Goal::OfBuildKit(most) => {
                let index = self.builders.iter().position(|name| name == "BuildKit")?;
                (row.builders[index].median()?, most, "BuildKit")
            }
            Goal::OfLimit(most) => (row.limit.median()?, most, "limit"),
        };
        Some((ours / against, most, of))
    }

    fn goal(&self, row: &Row) -> String {
        match self.verdict(row) {
            Some((share, most, of)) => {
                let reached = if share <= most { "reached" } else { "missed" };
                format!("{share:.3} of {of}, at most {most:.3}: {reached}")
            }
            None => String::new(),
        }
    }

    /// Returns one row as a line of a terminal.
    pub(crate) fn line(&self, row: &Row) -> String {
        let mut line = format!("{:18}", row.name);
        for (name, cell) in self.builders.iter().zip(&row.builders) {
            let _ = write!(line, "  {name} {}", cell.text());
        }
        if row.limit.median().is_some() {
            let _ = write!(line, "  limit {}", row.limit.text());
        }
        let _ = write!(line, "  {}", self.goal(row));
        line
    }

    /// Returns all rows as a table of Markdown.
    pub(crate) fn table(&self) -> String {
        let mut table = format!(
            "| workload | {} | plain limit | goal |\n",
            self.builders.join(" | ")
        );
        let columns = self.builders.len() + 3;
        table.push_str(&"| --- ".repeat(columns));
        table.push_str("|\n");
        for row in &self.rows {
            let _ = write!(table, "| {} |", row.name);
            for cell in &row.builders {
                let _ = write!(table, " {} |", cell.text());
            }
            let _ = writeln!(table, " {} | {} |", row.limit.text(), self.goal(row));
        }
        table
    }

    /// Returns every figure.
    pub(crate) fn json(&self) -> anyhow::Result<String> {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let builders: serde_json::Map<_, _> = self
                    .builders
                    .iter()
                    .zip(&row.builders)
                    .map(|(name, cell)| (name.clone(), json!(cell.seconds)))
                    .collect();
                json!({
                    "workload": row.name,
                    "about": row.about,
                    "seconds": builders,
                    "limit": row.limit.seconds,
                    "goal": self.goal(row),
                })
            })
            .collect();
        let report = json!({ "versions": self.versions, "runs": self.runs, "workloads": rows });
        Ok(serde_json::to_string_pretty(&report)? + "\n")
    }

    /// Returns the page of the documents.
    pub(crate) fn page(&self) -> String {
        let mut page = String::from(
            "# Benchmarks\n\nThis page is written by `cargo xtask bench compare --docs`. To have it from your own \
             machine:\n\n```sh\ncargo xtask peers              # Docker (with BuildKit) and buildah, in a root of \
             their own\ncargo xtask bench compare\n```\n\n## Method\n\nEvery workload runs on every builder in turn, \
             then again; what stands here is the median in seconds of ",
        );
        match self.runs {
            1 => page.push_str("one run"),
            runs => {
                let _ = write!(page, "{runs} runs");
            }
        }
        page.push_str(
            ". Machines differ and drift: only ratios inside one call mean anything. Every builder begins with an \
             empty store; removing the old one is not timed. BuildKit is the one in the daemon of Docker, with the \
             image store of containerd, called through `docker buildx`; its steps have the host's network, and so \
             have those of buildah, while ours have one of their own each. Archives are OCI archives with gzip \
             layers. The columns *store* and *cache only* compress nothing. The *plain limit* is the least that any \
             builder must do, done with common tools: the same bytes copied or compressed, the same processes \
             started, the tree walked.\n\nVersions: ",
        );
        page.push_str(&self.versions.join("; "));
        page.push_str(".\n\n## Figures\n\n");
        page.push_str(&self.table());
        page.push_str("\n![Times of each builder beside ours](benchmarks.svg)\n\n## Workloads\n\n");
        let mut last = "";
        for row in &self.rows {
            let name = row.name.split(' ').next().unwrap_or_default();
            if name != last {
                let _ = writeln!(page, "- `{name}`: {}.", row.about);
            }
            last = name;
        }
        page
    }
}

fn seconds(value: f64) -> String {
    match value {
        value if value < 1.0 => format!("{value:.3}"),
        value => format!("{value:.2}"),
    }
}

const BAR: f64 = 14.0;
const LEFT: f64 = 130.0;
const WIDTH: f64 = 860.0;
const COLOURS: [&str; 5] = ["#0b7285", "#e8590c", "#9c36b5", "#66a6b3", "#f0a878"];

/// Draws the medians as bars over a logarithmic axis, so that milliseconds and minutes fit one picture.
pub(crate) fn chart(report: &Report) -> String {
    let group = BAR * report.builders.len() as f64 + 12.0;
    let height = 60.0 + group * report.rows.len() as f64;
    let medians: Vec<f64> = report
        .rows
        .iter()
        .flat_map(|row| row.builders.iter().filter_map(Cell::median))
        .collect();
    let least = medians.iter().copied().fold(f64::INFINITY, f64::min) / 2.0;
    let most = medians.iter().copied().fold(0.0, f64::max);
    let span = (most / least).ln().max(1e-9);
    let length = |value: f64| ((value / least).ln() / span).max(0.0) * (WIDTH - LEFT - 70.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\" role=\"img\" aria-label=\"Seconds of each builder in each workload, logarithmic\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    for (index, name) in report.builders.iter().enumerate() {
        let x = LEFT + index as f64 * 140.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"12\" width=\"12\" height=\"12\" fill=\"{}\"/><text x=\"{}\" y=\"22\">{name}</text>",
            COLOURS[index % COLOURS.len()],
            x + 16.0
        );
    }
    for (number, row) in report.rows.iter().enumerate() {
        let top = 40.0 + number as f64 * group;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            top + group / 2.0,
            row.name
        );
        for (index, cell) in row.builders.iter().enumerate() {
            let Some(median) = cell.median() else {
                continue;
            };
            let y = top + index as f64 * BAR;
            let wide = length(median);
            let _ = writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{wide:.1}\" height=\"{}\" fill=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{} s</text>",
                BAR - 2.0,
                COLOURS[index % COLOURS.len()],
                LEFT + wide + 4.0,
                y + BAR - 4.0,
                seconds(median)
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::workloads::WORKLOADS;

    fn report() -> Report {
        let workload = &WORKLOADS[0];
        let mut report = Report::new(vec!["lapstrake".into(), "BuildKit".into()], 3, Vec::new());
        let mut row = Row::new(workload, &workload.phases[0], 2);
        for (ours, theirs) in [(0.02, 0.3), (0.01, 0.2), (0.03, 0.1)] {
            row.builders[0].add(ours);
            row.builders[1].add(theirs);
        }
        report.rows.push(row);
        report
    }

    #[test]
    fn a_median_is_held_against_the_goal() {
        let report = report();
        assert_eq!(
            report.goal(&report.rows[0]),
            "0.100 of BuildKit, at most 0.167: reached"
        );
    }

    #[test]
    fn a_builder_that_failed_has_no_median_any_more() {
        let mut cell = Cell::failed();
        cell.add(1.0);
        assert_eq!(cell.median(), None);
        assert_eq!(cell.text(), "failed");
    }

    #[test]
    fn a_chart_has_a_bar_for_each_figure() {
        let svg = chart(&report());
        assert_eq!(svg.matches("<rect").count(), 1 + 2 + 2);
    }
}
