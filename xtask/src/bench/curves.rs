//! The curves of `cargo xtask bench growth`, and their picture.

use std::fmt::Write;
use std::fs;

use anyhow::Context;

use super::growth::{Bench, Grown, Point};

/// Something that is built at several sizes.
#[derive(Debug)]
pub(super) struct Curve {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) unit: &'static str,
    pub(super) sizes: &'static [u64],
    /// The memory it may take at any size.
    pub(super) megabytes: Option<f64>,
    pub(super) measure: fn(&Bench, u64) -> anyhow::Result<Point>,
}

const MEGABYTES: Option<f64> = Some(150.0);
const FILES: &[u64] = &[1000, 5000, 20_000, 50_000, 100_000, 200_000];
const INTO_STORE: &[&str] = &["-t", "grown"];

pub(super) const CURVES: &[Curve] = &[
    Curve {
        name: "files-cold",
        about: "a context of small files, first build",
        unit: "files",
        sizes: FILES,
        megabytes: MEGABYTES,
        measure: |bench, size| {
            files(bench, size)?;
            bench.measure(size, INTO_STORE)
        },
    },
    Curve {
        name: "files-warm",
        about: "a context of small files, nothing changed",
        unit: "files",
        sizes: FILES,
        megabytes: MEGABYTES,
        measure: |bench, size| {
            files(bench, size)?;
            // The first build may come too soon after the files were made to believe their times.
            bench.measure(size, INTO_STORE)?;
            bench.measure(size, INTO_STORE)?;
            bench.measure(size, INTO_STORE)
        },
    },
    Curve {
        name: "stages",
        about: "stages of a Dockerfile, three of them needed",
        unit: "stages",
        sizes: &[10, 100, 1000, 2000, 5000, 10_000],
        megabytes: None,
        measure: |bench, size| {
            let mut text = String::from("FROM busybox AS base\n");
            for number in 3..size {
                text.push_str(&format!(
                    "FROM base AS s{number}\nENV A{number}=1\nRUN sleep 1000 {number}\nCOPY . /x\n"
                ));
            }
            text.push_str(
                "FROM base AS dep\nRUN echo 1 > /one\nFROM base\nCOPY --from=dep /one /one\n",
            );
            bench.dockerfile(&text)?;
            bench.measure(size, INTO_STORE)
        },
    },
    Curve {
        name: "layers",
        about: "RUN steps in a row, each a layer",
        unit: "layers",
        sizes: &[1, 10, 30, 60, 90, 120],
        megabytes: MEGABYTES,
        measure: |bench, size| {
            let lines = (0..size).map(|number| format!("RUN echo {number} > /{number}\n"));
            bench.dockerfile(&format!("FROM busybox\n{}", lines.collect::<String>()))?;
            bench.measure(size, INTO_STORE)
        },
    },
    Curve {
        name: "bytes",
        about: "one large file, into an archive",
        unit: "MB",
        sizes: &[10, 50, 200, 1000, 2000, 4000],
        megabytes: MEGABYTES,
        measure: |bench, size| {
            large_file(bench, size)?;
            bench.dockerfile("FROM scratch\nCOPY large /\n")?;
            let archive = bench.root().with_file_name("out.tar");
            let output = format!("type=oci,dest={}", archive.display());
            bench.measure(size, &["--output", &output])
        },
    },
    Curve {
        name: "images",
        about: "images in the store, nothing changed since the last build",
        unit: "images",
        sizes: &[10, 100, 1000, 5000, 20_000],
        megabytes: MEGABYTES,
        measure: |bench, size| {
            for number in 0..size {
                bench.dockerfile(&format!("FROM scratch\nLABEL number={number}\n"))?;
                bench.measure(size, &["-t", &format!("grown:{number}")])?;
            }
            bench.dockerfile("FROM busybox\nRUN true\n")?;
            bench.measure(size, INTO_STORE)?;
            bench.measure(size, INTO_STORE)
        },
    },
    Curve {
        name: "records",
        about: "cache records in the store, nothing changed since the last build",
        unit: "records",
        sizes: &[1000, 10_000, 100_000, 1_000_000],
        megabytes: MEGABYTES,
        measure: |bench, size| {
            bench.dockerfile("FROM busybox\nRUN true\n")?;
            bench.measure(size, INTO_STORE)?;
            super::growth::fill_records(&bench.root(), size)?;
            bench.measure(size, INTO_STORE)?;
            bench.measure(size, INTO_STORE)
        },
    },
    Curve {
        name: "at-once",
        about: "equal builds of one step at once over one store",
        unit: "builds",
        sizes: &[1, 2, 4, 8, 16, 32, 64],
        megabytes: MEGABYTES,
        measure: |bench, size| {
            bench.dockerfile("FROM busybox\nRUN echo 1 > /one\n")?;
            bench.measure_at_once(size, size, INTO_STORE)
        },
    },
];

/// Makes small files, a hundred in each folder.
fn files(bench: &Bench, count: u64) -> anyhow::Result<()> {
    for number in 0..count {
        let folder = bench.context().join(format!("d{}", number / 100));
        if number % 100 == 0 {
            fs::create_dir(&folder)?;
        }
        fs::write(
            folder.join(format!("f{number}")),
            format!("{number}\n").repeat(30),
        )?;
    }
    bench.dockerfile("FROM scratch\nCOPY . /src\n")
}

/// Makes a file of so many megabytes, half of it random.
fn large_file(bench: &Bench, megabytes: u64) -> anyhow::Result<()> {
    use std::io::Write;
    let mut file = fs::File::create(bench.context().join("large"))?;
    let mut state = 1_u64;
    let mut piece = vec![0_u8; 1_000_000];
    for _ in 0..megabytes {
        for chunk in piece.chunks_exact_mut(16) {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            chunk[..8].copy_from_slice(&(state ^ (state >> 29)).to_le_bytes());
        }
        file.write_all(&piece)
            .context("failed to write a large file")?;
    }
    Ok(())
}

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 200.0;

/// Draws each curve in a picture of its own, both axes logarithmic, beside the line of linear growth.
pub(super) fn chart(all: &[Grown]) -> String {
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
        grown.curve.about
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
            grown.curve.unit
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
