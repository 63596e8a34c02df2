//! A build as one page of HTML.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::history::{BuildDiff, BuildRecord, BuildStatus, Change, StepOutcome, StepRecord};
use oci::ImageConfig;
use sha2::{Digest as _, Sha256};

use crate::LogText;
use crate::escape::markup;

mod earlier;
mod graph;
mod image;
mod overview;
mod steps;
mod timeline;

/// More steps than that are not shown.
pub(crate) const MOST_STEPS: usize = 2000;

const STYLE: &str = concat!(include_str!("../graph.css"), include_str!("page.css"));
const SCRIPT: &str = include_str!("page.js");

/// All that a page tells.
#[derive(Debug)]
pub struct Page<'a> {
    pub record: &'a BuildRecord,
    /// What is known of each step beside its record, in the order of the record.
    pub facts: Vec<Facts>,
    pub images: Vec<Image>,
    pub earlier: Option<Earlier<'a>>,
    /// What made the page: a name with a version.
    pub generator: &'a str,
}

/// What is known of a step beside its record.
#[derive(Debug, Default)]
pub struct Facts {
    pub log: LogText,
    /// Why it ran, in lines.
    pub reasons: Vec<String>,
}

/// An image that the build made.
#[derive(Debug)]
pub struct Image {
    pub platform: String,
    pub id: String,
    /// `None` where the image is not in the store any more.
    pub config: Option<ImageConfig>,
    /// Lowest first; empty where they are not known.
    pub layers: Vec<ImageLayer>,
}

/// A layer of an image.
#[derive(Debug)]
pub struct ImageLayer {
    /// The instruction that made it, where the image's history tells.
    pub made_by: String,
    pub size: u64,
    /// What is in it; `None` where the layer is gone.
    pub content: Option<LayerContent>,
}

/// The files of a layer.
#[derive(Debug)]
pub struct LayerContent {
    /// How many files it has, and the largest of them, the largest first.
    pub files: usize,
    pub largest: Vec<ImageFile>,
    /// What layers above hide: how many files, and the largest of them.
    pub hidden: usize,
    pub wasted: u64,
    pub wasteful: Vec<ImageFile>,
}

/// A file of a layer.
#[derive(Debug)]
pub struct ImageFile {
    pub path: String,
    pub size: u64,
    /// What became of it above: `removed in layer 3`.
    pub note: String,
}

/// The build before.
#[derive(Debug)]
pub struct Earlier<'a> {
    pub record: &'a BuildRecord,
    pub diff: &'a BuildDiff,
    /// Says a change in lines.
    pub words: fn(&Change) -> Vec<String>,
}

/// Writes a page.
pub fn page(page: &Page<'_>) -> String {
    let record = page.record;
    let name = crate::escape::one_line(&record.name);
    let sections: Vec<Section> = [
        Some(timeline::section(page)),
        graph::section(page),
        Some(steps::section(page)),
        image::layers(page),
        image::configuration(page),
        earlier::section(page),
    ]
    .into_iter()
    .flatten()
    .collect();
    let links: String = sections
        .iter()
        .map(|section| format!("<li><a href=\"#{}\">{}</a></li>", section.id, section.short))
        .collect();
    let bodies: String = sections.iter().map(Section::html).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src '{}'; style-src '{}'; \
         img-src data:; base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta name=\"generator\" content=\"{generator}\">\n<title>{title} – build report</title>\n\
         <link rel=\"icon\" href=\"data:,\">\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <a class=\"skip\" href=\"#main\">Skip to the content</a>\n\
         {}<nav class=\"sections\" aria-label=\"Sections\"><ul>{links}</ul></nav>\n\
         <main id=\"main\" tabindex=\"-1\">\n{}{bodies}</main>\n\
         <footer>Made by {generator} from build <code>{}</code></footer>\n\
         <script>{SCRIPT}</script>\n</body>\n</html>\n",
        hash(SCRIPT),
        hash(STYLE),
        overview::header(page, &name),
        overview::problems(page),
        markup(&record.id),
        generator = markup(page.generator),
        title = markup(&name),
    )
}

/// Returns what a content security policy calls a script or a style by.
fn hash(text: &str) -> String {
    format!(
        "sha256-{}",
        STANDARD.encode(Sha256::digest(text.as_bytes()))
    )
}

/// A part of the page with a heading.
struct Section {
    id: &'static str,
    /// In the list of sections.
    short: &'static str,
    title: &'static str,
    /// What stands beside the heading.
    aside: String,
    body: String,
}

impl Section {
    fn html(&self) -> String {
        format!(
            "<section id=\"{id}\" aria-labelledby=\"h-{id}\">\n<header><h2 id=\"h-{id}\">{}</h2>{}</header>\n{}</section>\n",
            self.title,
            self.aside,
            self.body,
            id = self.id
        )
    }
}

/// Returns the class, the sign and the word of how a step ended.
fn outcome(outcome: StepOutcome) -> (&'static str, &'static str, &'static str) {
    match outcome {
        StepOutcome::Ran => ("ran", "●", "ran"),
        StepOutcome::Cached => ("cached", "✓", "cached"),
        StepOutcome::Failed => ("failed", "✕", "failed"),
        StepOutcome::Canceled => ("canceled", "■", "canceled"),
        StepOutcome::Skipped => ("skipped", "○", "not run"),
    }
}

fn status(status: BuildStatus) -> (&'static str, &'static str, &'static str) {
    match status {
        BuildStatus::Running => ("ran", "●", "Running"),
        BuildStatus::Completed => ("cached", "✓", "Completed"),
        BuildStatus::Failed => ("failed", "✕", "Failed"),
        BuildStatus::Canceled => ("canceled", "■", "Canceled"),
        BuildStatus::Killed => ("canceled", "■", "Killed"),
    }
}

/// Returns how long a step ran; nothing for one that was cached.
fn took(step: &StepRecord) -> u64 {
    match step.outcome {
        StepOutcome::Cached | StepOutcome::Skipped => 0,
        _ => step.nanoseconds(),
    }
}

/// Returns the time in a part of its own, or nothing.
fn time(nanoseconds: u64) -> String {
    match nanoseconds {
        0 => String::new(),
        nanoseconds => crate::words::duration(nanoseconds),
    }
}

/// Returns the stage of a step as lanes and headings name it.
fn stage(step: &StepRecord) -> String {
    let Some(stage) = &step.stage else {
        return "Builder".to_owned();
    };
    // `[linux/arm64 builder 2/5]`: with several platforms the stage alone would not do.
    let head = step
        .name
        .strip_prefix('[')
        .and_then(|name| name.split_once(']'))
        .map(|(head, _)| head);
    match head.and_then(|head| head.split_once(' ')) {
        Some((platform, _))
            if platform.contains('/') && platform.starts_with(|c: char| c.is_alphabetic()) =>
        {
            format!("{platform} {stage}")
        }
        _ => stage.clone(),
    }
}

/// Returns the instruction of a step on one line, or what else it is called.
fn instruction(step: &StepRecord) -> String {
    match step.command.is_empty() {
        true => crate::words::short_name(&step.name),
        false => crate::words::short_name(&step.command),
    }
}
