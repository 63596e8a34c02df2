//! What was measured of growth: the fit, what is wrong with it, and its table, page, chart and file.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 200.0;

/// An exponent up to this is linear growth and the noise of the machine.
const LINEAR: f64 = 1.15;

/// What was measured at one size.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Point {
    pub(super) size: u64,
    pub(super) seconds: f64,
    /// What all cores together spent on it.
    pub(super) cpu: f64,
    /// The most memory that was resident.
    pub(super) megabytes: f64,
}

/// A curve with its points.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Grown {
    pub(super) name: String,
    pub(super) about: String,
    pub(super) unit: String,
    /// The memory it may take at any size.
    pub(super) most_megabytes: Option<f64>,
    pub(super) points: Vec<Point>,
}

impl Grown {
    /// Returns the exponent of the power of the size that fits the times of the larger half best.
    pub(super) fn exponent(&self) -> Option<f64> {
        self.fit(|point| point.seconds)
    }

    fn fit(&self, value: fn(&Point) -> f64) -> Option<f64> {
        let half = &self.points[self.points.len() / 2..];
        let logs: Vec<(f64, f64)> = half
            .iter()
            .map(|point| ((point.size as f64).ln(), value(point).max(1e-2).ln()))
            .collect();
        let count = logs.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / count;
        let (x, y) = (mean(|log| log.0), mean(|log| log.1));
        let spread: f64 = logs.iter().map(|log| (log.0 - x).powi(2)).sum();
        let both: f64 = logs.iter().map(|log| (log.0 - x) * (log.1 - y)).sum();
        (logs.len() > 1 && spread > 0.0).then(|| both / spread)
    }

    fn most_memory(&self) -> f64 {
        self.points
            .iter()
            .map(|point| point.megabytes)
            .fold(0.0, f64::max)
    }

    /// Returns what is wrong with the growth.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if let Some(exponent) = self.exponent().filter(|exponent| *exponent > LINEAR) {
            faults.push(format!("time grows with the power {exponent:.2}"));
        }
        if let Some(most) = self
            .most_megabytes
            .filter(|most| self.most_memory() > *most)
        {
            faults.push(format!(
                "{:.0} MB are more than {most:.0}",
                self.most_memory()
            ));
        }
        faults
    }
}

/// All curves that have been measured with one program, kept in a file so that a run can go on where another ended.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Figures {
    /// The version, length and time of the program.
    pub(super) program: String,
    pub(super) cores: usize,
    pub(super) curves: Vec<Grown>,
}

impl Figures {
    /// Reads what earlier runs measured with the same program; nothing where there is no such file.
    pub(super) fn of_earlier(path: &Path, program: &str) -> Figures {
        let found = fs::read(path).ok();
        let found = found.and_then(|bytes| serde_json::from_slice::<Figures>(&bytes).ok());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        found
            .filter(|figures| figures.program == program && figures.cores == cores)
            .unwrap_or_else(|| Figures {
                program: program.to_owned(),
                cores,
                curves: Vec::new(),
            })
    }

    /// Takes in a curve, in place of one with its name; `order` is that of the page.
    pub(super) fn put(&mut self, grown: Grown, order: &[String]) {
        self.curves.retain(|curve| curve.name != grown.name);
        self.curves.push(grown);
        let place = |grown: &Grown| order.iter().position(|name| *name == grown.name);
        self.curves.sort_by_key(place);
    }

    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
    }

    pub(super) fn table(&self) -> String {
        let mut text = String::from(
            "| curve | sizes | time, least to most | exponent | CPU time at the most | its exponent | memory, most | |\n\
             |---|---|---|---|---|---|---|---|\n",
        );
        let exponent = |of: Option<f64>| of.map_or("-".to_owned(), |it| format!("{it:.2}"));
        for grown in &self.curves {
            let (Some(first), Some(last)) = (grown.points.first(), grown.points.last()) else {
                continue;
            };
            let faults = grown.faults();
            let _ = writeln!(
                text,
                "| {} | {} to {} {} | {:.3} s to {:.3} s | {} | {:.3} s | {} | {:.0} MB | {} |",
                grown.about,
                first.size,
                last.size,
                grown.unit,
                first.seconds,
                last.seconds,
                exponent(grown.exponent()),
                last.cpu,
                exponent(grown.fit(|point| point.cpu)),
                grown.most_memory(),
                match faults.is_empty() {
                    true => "fine".to_owned(),
                    false => faults.join("; "),
                }
            );
        }
        text
    }

    pub(super) fn page(&self) -> String {
        let mut page = format!(
            "# How it grows\n\nWritten by `cargo xtask bench growth --docs`. Each curve is one command at several sizes, on \
             a machine with {} cores. The exponent is that of the power of the size that fits the larger half of the \
             curve: one is linear, less means that part of the time is the same for all sizes. What takes less than a \
             second is measured up to five times, and the quickest counts. Memory is what was resident at most.\n\n{}\n\
             ![Time over size, both logarithmic](growth.svg)\n\nThe line of dashes is linear growth. All figures:\n",
            self.cores,
            self.table()
        );
        for grown in &self.curves {
            let _ = write!(
                page,
                "\n{}:\n\n| {} | time | CPU time | memory |\n|---|---|---|---|\n",
                grown.about, grown.unit
            );
            for point in &grown.points {
                let _ = writeln!(
                    page,
                    "| {} | {:.3} s | {:.3} s | {:.0} MB |",
                    point.size, point.seconds, point.cpu, point.megabytes
                );
            }
        }
        page
    }

    /// Draws each curve in a picture of its own, both axes logarithmic, beside the line of linear growth.
    pub(super) fn chart(&self) -> String {
        let all = &self.curves;
        let rows = all.len().div_ceil(3);
        let (width, height) = (3.0 * WIDTH, rows as f64 * HEIGHT);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\" role=\"img\" aria-label=\"Time over size, both logarithmic\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
        );
        for (index, grown) in all.iter().enumerate() {
            let (x, y) = ((index % 3) as f64 * WIDTH, (index / 3) as f64 * HEIGHT);
            panel(&mut svg, grown, x, y);
        }
        svg.push_str("</svg>\n");
        svg
    }
}

fn panel(svg: &mut String, grown: &Grown, left: f64, top: f64) {
    let (Some(first), Some(last)) = (grown.points.first(), grown.points.last()) else {
        return;
    };
    let (x0, x1) = (left + 50.0, left + WIDTH - 20.0);
    let (y0, y1) = (top + HEIGHT - 35.0, top + 30.0);
    let times = || grown.points.iter().map(|point| point.seconds.max(1e-3));
    let least = times().fold(f64::INFINITY, f64::min).log10().floor();
    let most = times().fold(0.0, f64::max).log10().ceil().max(least + 1.0);
    let across = (last.size as f64 / first.size as f64).log10().max(1e-9);
    let x = |size: u64| x0 + (size as f64 / first.size as f64).log10() / across * (x1 - x0);
    let y = |seconds: f64| y0 - (seconds.max(1e-3).log10() - least) / (most - least) * (y0 - y1);
    let _ = writeln!(
        svg,
        "<text x=\"{x0}\" y=\"{}\" font-weight=\"bold\">{}</text>\
         <path d=\"M{x0} {y1}V{y0}H{x1}\" fill=\"none\" stroke=\"#888\"/>",
        top + 20.0,
        grown.about
    );
    for power in least as i32..=most as i32 {
        let seconds = 10f64.powi(power);
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{seconds} s</text>",
            x0 - 4.0,
            y(seconds) + 4.0
        );
    }
    for (point, anchor) in [(first, "start"), (last, "end")] {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{} {}</text>",
            x(point.size),
            y0 + 14.0,
            point.size,
            grown.unit
        );
    }
    let line: Vec<String> = grown
        .points
        .iter()
        .map(|point| format!("{:.1},{:.1}", x(point.size), y(point.seconds)))
        .collect();
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#0b7285\" stroke-width=\"2\"/>",
        line.join(" ")
    );
    // Linear growth back from the largest, as far as it stays in the picture.
    let back =
        (last.size as f64 / first.size as f64).min(last.seconds.max(1e-3) / 10f64.powf(least));
    let start = (last.size as f64 / back).round().max(first.size as f64) as u64;
    let _ = writeln!(
        svg,
        "<path d=\"M{:.1} {:.1}L{:.1} {:.1}\" stroke=\"#bbb\" stroke-dasharray=\"4 3\"/>",
        x(start),
        y(last.seconds / (last.size as f64 / start as f64)),
        x(last.size),
        y(last.seconds)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grown(times: &[(u64, f64)]) -> Grown {
        Grown {
            name: "files".to_owned(),
            about: "files".to_owned(),
            unit: "files".to_owned(),
            most_megabytes: Some(150.0),
            points: times
                .iter()
                .map(|&(size, seconds)| Point {
                    size,
                    seconds,
                    cpu: seconds,
                    megabytes: 10.0,
                })
                .collect(),
        }
    }

    #[test]
    fn the_exponent_is_that_of_the_larger_half() {
        let linear = grown(&[(1, 0.5), (10, 0.5), (100, 1.0), (1000, 10.0)]);
        assert!((linear.exponent().unwrap() - 1.0).abs() < 1e-9);
        assert!(linear.faults().is_empty());
        let square = grown(&[(1, 0.1), (10, 0.1), (100, 1.0), (1000, 100.0)]);
        assert!((square.exponent().unwrap() - 2.0).abs() < 1e-9);
        assert_eq!(square.faults().len(), 1);
        assert_eq!(grown(&[(1, 0.1)]).exponent(), None);
    }

    #[test]
    fn figures_of_the_same_program_are_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("figures.json");
        let order = ["files".to_owned(), "layers".to_owned()];
        let mut figures = Figures::of_earlier(&path, "1");
        for (name, points) in [("layers", 1), ("files", 1), ("layers", 2)] {
            let mut curve = grown(&[(1, 0.1), (2, 0.1)][..points]);
            curve.name = name.to_owned();
            figures.put(curve, &order);
        }
        figures.write(&path).unwrap();
        let again = Figures::of_earlier(&path, "1");
        let found = again.curves.iter();
        let found: Vec<_> = found
            .map(|it| (it.name.as_str(), it.points.len()))
            .collect();
        assert_eq!(found, [("files", 1), ("layers", 2)]);
        assert!(Figures::of_earlier(&path, "2").curves.is_empty());
    }
}
