//! Draws findings about a Dockerfile, with the lines they are about.

use std::io::IsTerminal;
use std::ops::Range;

use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use dockerfile::{Diagnostic, Severity};
use engine::{BuildFailure, EngineError, StepFailure};
use serde_json::json;

use crate::log;

/// Says on stderr why a build failed.
pub(crate) fn show_failure(failure: &BuildFailure) {
    let dockerfile = failure.dockerfile.as_ref();
    let source = dockerfile.map(|(name, text)| Source::new(name, text));
    for step in &failure.steps {
        match log::is_json() {
            true => failure_lines(step, source.as_ref()),
            false => eprintln!("{}", failure_text(step, source.as_ref())),
        }
    }
    if failure.steps.len() > 1 {
        log::error(&format!("{} steps failed", failure.steps.len()));
    }
}

/// Labels of one finding that are drawn; a hostile file has one on each of a million lines.
const MOST_LABELS: usize = 10;

/// A Dockerfile to quote from. Its lines are found once: there may be as many findings as lines.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    name: &'a str,
    text: &'a str,
    /// Where each line begins.
    lines: Vec<usize>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(name: &'a str, text: &'a str) -> Self {
        let behind = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            name,
            text,
            lines: std::iter::once(0).chain(behind).collect(),
        }
    }

    /// Returns the name it is shown under.
    pub(crate) fn name(&self) -> &str {
        self.name
    }

    /// Returns the lines around spans as a snippet, and by how many bytes the spans lie further ahead in it.
    fn excerpt<'b>(&self, spans: &[Range<usize>]) -> (Snippet<'a, Annotation<'b>>, usize)
    where
        'a: 'b,
    {
        let first = spans.iter().map(|span| span.start).min().unwrap_or(0);
        let last = spans.iter().map(|span| span.end).max().unwrap_or(0);
        let line = self.lines.partition_point(|start| *start <= first).max(1) - 1;
        let start = self.lines[line];
        let behind = self.lines.partition_point(|start| *start <= last);
        let end = self.lines.get(behind).copied().unwrap_or(self.text.len());
        let snippet = Snippet::source(&self.text[start..end])
            .line_start(line + 1)
            .path(self.name);
        (snippet, start)
    }

    /// Returns the bytes of lines, counted from 1, without the last newline.
    fn lines(&self, first: usize, last: usize) -> Range<usize> {
        let start_of = |line: usize| self.lines.get(line).copied().unwrap_or(self.text.len());
        let start = start_of(first.max(1) - 1);
        let end = start_of(last.max(1)).max(start);
        clamp(self.text, start, end)
    }
}

/// Says why a step failed as objects, a line each.
fn failure_lines(step: &StepFailure, source: Option<&Source<'_>>) {
    if let (EngineError::Dockerfile { diagnostics }, Some(source)) = (step.error.as_ref(), source) {
        for found in diagnostics {
            log::finding(found, source);
        }
        return;
    }
    let mut value = json!({"level": "error", "message": engine::chain(step.error.as_ref())});
    if let (Some((first, last)), Some(source)) = (step.lines, source) {
        value["file"] = source.name.into();
        value["line"] = first.into();
        value["last_line"] = last.into();
    }
    if let Some(name) = &step.name {
        value["step"] = name.as_str().into();
    }
    if let Some(help) = &step.help {
        value["helps"] = json!([help]);
    }
    log::line(&value);
}

fn failure_text(step: &StepFailure, source: Option<&Source<'_>>) -> String {
    let error = step.error.as_ref();
    match (error, source) {
        (EngineError::Dockerfile { diagnostics }, Some(source)) => diagnostics
            .iter()
            .map(|diagnostic| draw(diagnostic, source))
            .collect::<Vec<_>>()
            .join("\n\n"),
        (EngineError::Canceled, _) => "error: canceled".to_owned(),
        (error, source) => {
            let message = engine::chain(error);
            match (step.lines, source) {
                (Some((first, last)), Some(source)) => {
                    let span = match step.span {
                        Some(words) => clamp(source.text, words.start, words.end),
                        None => source.lines(first as usize, last as usize),
                    };
                    let (snippet, ahead) = source.excerpt(std::slice::from_ref(&span));
                    let span = span.start - ahead..span.end - ahead;
                    let snippet = snippet.annotation(AnnotationKind::Primary.span(span));
                    let title = Level::ERROR.primary_title(message.as_str());
                    let mut group: Group<'_> = title.element(snippet);
                    if let Some(help) = &step.help {
                        group = group.element(Level::HELP.message(help.as_str()));
                    }
                    renderer().render(&[group])
                }
                _ => {
                    let mut text = format!("error: {message}");
                    if let Some(name) = &step.name {
                        text.push_str(&format!("\n  in {name}"));
                    }
                    if let Some(help) = &step.help {
                        text.push_str(&format!("\n  help: {help}"));
                    }
                    text
                }
            }
        }
    }
}

/// Draws one finding in the manner of rustc.
pub(crate) fn draw(diagnostic: &Diagnostic, source: &Source<'_>) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let mut marked: Vec<(Range<usize>, Option<&str>)> = diagnostic
        .labels
        .iter()
        .take(MOST_LABELS)
        .map(|label| {
            (
                clamp(source.text, label.span.start, label.span.end),
                Some(label.text.as_str()),
            )
        })
        .collect();
    if marked.is_empty() {
        let lines = diagnostic.lines.iter().take(MOST_LABELS);
        marked.extend(lines.map(|lines| (source.lines(lines.first, lines.last), None)));
    }
    let title = level
        .primary_title(diagnostic.message.as_str())
        .id(diagnostic.code);
    let mut group: Group<'_> = match marked.is_empty() {
        // It is about the file, or about what was asked of it.
        true => title.element(Origin::path(source.name)),
        false => title.element(snippet(marked, source)),
    };
    let more = diagnostic.labels.len().saturating_sub(MOST_LABELS);
    let more = format!("there are {more} more places like these");
    if diagnostic.labels.len() > MOST_LABELS {
        group = group.element(Level::NOTE.message(more.as_str()));
    }
    for note in &diagnostic.notes {
        group = group.element(Level::NOTE.message(note.as_str()));
    }
    for help in &diagnostic.helps {
        group = group.element(Level::HELP.message(help.as_str()));
    }
    let suggestion = diagnostic
        .suggestion
        .as_ref()
        .map(|word| match diagnostic.code {
            "unknown-flag" => format!("did you mean --{word}?"),
            _ => format!("did you mean {word}?"),
        });
    if let Some(text) = &suggestion {
        group = group.element(Level::HELP.message(text.as_str()));
    }
    renderer().render(&[group])
}

/// Returns the lines around what is marked.
fn snippet<'a>(
    marked: Vec<(Range<usize>, Option<&'a str>)>,
    source: &Source<'a>,
) -> Snippet<'a, Annotation<'a>> {
    let spans: Vec<Range<usize>> = marked.iter().map(|(span, _)| span.clone()).collect();
    let (mut snippet, ahead) = source.excerpt(&spans);
    for (number, (span, label)) in marked.into_iter().enumerate() {
        let kind = match number == 0 || label.is_none() {
            true => AnnotationKind::Primary,
            false => AnnotationKind::Context,
        };
        let annotation = kind.span(span.start - ahead..span.end - ahead);
        snippet = snippet.annotation(match label {
            Some(label) => annotation.label(label),
            None => annotation,
        });
    }
    snippet
}

fn renderer() -> Renderer {
    let colors = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    match colors {
        true => Renderer::styled(),
        false => Renderer::plain(),
    }
}

/// Moves a span to where characters begin and end.
fn clamp(text: &str, start: usize, end: usize) -> Range<usize> {
    let floor = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let start = floor(start);
    let end = floor(end).max(start);
    // The end of a line is no part of what is marked in it.
    let marked = text.get(start..end).unwrap_or_default();
    start..start + marked.trim_end_matches(['\r', '\n']).len()
}
