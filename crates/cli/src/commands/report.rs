//! `lapstrake report`: a recorded build as a page for a browser.

use std::path::PathBuf;

use ::report::{Earlier, Facts, Image, ImageFile, ImageLayer, LayerContent, LogText, Page, page};
use anyhow::{Context, Result};
use clap::Args;
use engine::Engine;
use engine::history::{BuildRecord, History, OutputRecord, StepOutcome, StepRecord};
use engine::images::{self, Hidden};

use super::history::record_of;
use super::image::config_of;
use super::image_content::{makers, shown};
use crate::arguments::Global;
use crate::failure::{Failure, exit};
use crate::{output, settings, words};

/// How many earlier builds are looked at.
const MOST_EARLIER: usize = 30;
/// How many files of a layer are named, of what is there and of what is hidden.
const MOST_FILES: usize = 20;
/// Once logs have taken this much room, the others get little.
const MOST_LOGS: usize = 6 << 20;

/// Write a build as a page for a browser: its timeline, stages, logs, layers, and what changed
#[derive(Debug, Args)]
#[command(
    after_help = "The page is one file that needs nothing else: no network, no server. Values of secrets are not in it; what
steps printed is.

Examples:
  lapstrake report                       write report.html about the last build
  lapstrake report ^1 -o before.html     about the build before it
  lapstrake report -o - | gzip > r.gz    into a pipe"
)]
pub(crate) struct Report {
    /// Where to write; - is standard output
    #[arg(long, short = 'o', value_name = "FILE", default_value = "report.html")]
    output: PathBuf,
    /// The build: an id, the beginning of one, or ^N for the Nth before the last [default: the last]
    build: Option<String>,
}

impl Report {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let engine = settings::open_engine(global)?;
        let history = History::new(engine.store());
        let record = record_of(&history, self.build.as_deref()).map_err(exit::build)?;
        let earlier = history
            .earlier(&record, MOST_EARLIER)
            .map_err(exit::engine)?;
        let facts = facts(&history, &record, &earlier).map_err(exit::builder)?;
        let before = earlier
            .first()
            .map(|before| (before, history.diff(before, &record)));
        let outputs = record.outputs.iter();
        let told = Page {
            record: &record,
            facts,
            images: outputs.map(|output| image(&engine, output)).collect(),
            earlier: before.as_ref().map(|(record, diff)| Earlier {
                record,
                diff,
                words: words::change_lines,
            }),
            generator: concat!("lapstrake ", env!("CARGO_PKG_VERSION")),
        };
        let html = page(&told);
        match self.output.as_os_str() == "-" {
            true => output::print(&html).map_err(exit::builder),
            false => {
                std::fs::write(&self.output, html)
                    .with_context(|| format!("failed to write {}", self.output.display()))
                    .map_err(exit::usage)?;
                output::print(&format!("{}\n", self.output.display())).map_err(exit::builder)
            }
        }
    }
}

/// Gathers what is known of the steps beside their records.
fn facts(history: &History, record: &BuildRecord, earlier: &[BuildRecord]) -> Result<Vec<Facts>> {
    let mut facts: Vec<Facts> = Vec::with_capacity(record.steps.len());
    facts.resize_with(record.steps.len(), Facts::default);
    // What failed is read first, and what ran before what was cached.
    let mut order: Vec<usize> = (0..record.steps.len()).collect();
    order.sort_by_key(|number| match record.steps[*number].outcome {
        StepOutcome::Failed => 0,
        StepOutcome::Cached => 2,
        _ => 1,
    });
    let mut room = MOST_LOGS;
    for number in order {
        let step = &record.steps[number];
        facts[number].log = log(history, record, step, room == 0)?;
        room = room.saturating_sub(facts[number].log.kept());
        let ran = matches!(step.outcome, StepOutcome::Ran | StepOutcome::Failed);
        if ran && step.is_instruction() {
            facts[number].reasons = words::reasons(&history.explain(record, step, earlier));
        }
    }
    Ok(facts)
}

fn log(history: &History, record: &BuildRecord, step: &StepRecord, small: bool) -> Result<LogText> {
    let mut text = LogText::new(small);
    if let Some(log) = history.log(record, step)? {
        for piece in log {
            match piece {
                Ok(piece) => text.push(&piece.data),
                // The rest of the page is worth more than the end of a log that is damaged.
                Err(error) => {
                    tracing::warn!(%error, step = step.name, "a log cannot be read to its end");
                    break;
                }
            }
        }
    }
    Ok(text)
}

/// Returns what is known of an image: all, or, where it has gone from the store, what the record tells.
fn image(engine: &Engine, output: &OutputRecord) -> Image {
    let id = output.image.as_ref().map(ToString::to_string);
    let mut told = Image {
        platform: output.platform.clone(),
        id: id.clone().unwrap_or_default(),
        config: None,
        layers: Vec::new(),
    };
    let found = id.map(|id| read_image(engine, &id, &mut told));
    if let Some(Err(error)) = found {
        tracing::warn!(error = format!("{error:#}"), "an image cannot be read");
    }
    if told.layers.is_empty() {
        let layers = output.layers.iter().map(|layer| ImageLayer {
            made_by: layer
                .diff_id
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            size: layer.size,
            content: None,
        });
        told.layers = layers.collect();
    }
    told
}

fn read_image(engine: &Engine, id: &str, told: &mut Image) -> Result<()> {
    let Some((image, _)) = images::find(engine.store(), id)? else {
        return Ok(());
    };
    let config = config_of(engine.store(), &image)?;
    let contents = engine.layer_contents(&image)?;
    let files = engine.layer_files(&image, MOST_FILES)?;
    let makers = makers(&config, contents.len());
    told.config = Some(config);
    let layers = contents.iter().zip(files).zip(makers);
    told.layers = layers
        .map(|((content, files), made_by)| {
            let largest = files.largest.iter().map(|(path, size)| ImageFile {
                path: shown(path),
                size: *size,
                note: String::new(),
            });
            ImageLayer {
                made_by,
                size: content.size,
                content: Some(LayerContent {
                    files: files.files,
                    largest: largest.collect(),
                    hidden: content.hidden.len(),
                    wasted: content.wasted(),
                    wasteful: wasteful(&content.hidden),
                }),
            }
        })
        .collect();
    Ok(())
}

/// Returns the largest files that layers above hide.
fn wasteful(hidden: &[Hidden]) -> Vec<ImageFile> {
    let mut hidden: Vec<&Hidden> = hidden.iter().filter(|file| file.size > 0).collect();
    hidden.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.path.cmp(&b.path)));
    let named = hidden.into_iter().take(MOST_FILES).map(|file| {
        let what = match file.replaced {
            true => "replaced",
            false => "removed",
        };
        ImageFile {
            path: shown(&file.path),
            size: file.size,
            note: format!("{what} in layer {}", file.by + 1),
        }
    });
    named.collect()
}
