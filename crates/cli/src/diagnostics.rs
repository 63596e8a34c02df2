//! Draws findings about a Dockerfile, with the lines they are about.

use std::io::IsTerminal;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use dockerfile::{Diagnostic, Severity};
use engine::{BuildFailure, EngineError, StepFailure};

/// Says on stderr why a build failed.
pub(crate) fn show_failure(failure: &BuildFailure) {
    for step in &failure.steps {
        eprintln!("{}", failure_text(step, failure.dockerfile.as_ref()));
    }
    if failure.steps.len() > 1 {
        eprintln!("error: {} steps failed", failure.steps.len());
    }
}

fn failure_text(step: &StepFailure, source: Option<&(String, String)>) -> String {
    let error = step.error.as_ref();
    match (error, source) {
        (EngineError::Dockerfile { diagnostics }, Some((name, text))) => diagnostics
            .iter()
            .map(|diagnostic| draw(diagnostic, name, text))
            .collect::<Vec<_>>()
            .join("\n\n"),
        (EngineError::Canceled, _) => "error: canceled".to_owned(),
        (error, source) => {
            let message = engine::chain(error);
            match (step.lines, source) {
                (Some((first, last)), Some((name, text))) => {
                    let span = match step.span {
                        Some(words) => clamp(text, words.start, words.end),
                        None => span_of_lines(text, first as usize, last as usize),
                    };
                    let snippet = Snippet::source(text.as_str())
                        .path(name.as_str())
                        .annotation(AnnotationKind::Primary.span(span));
                    let title = Level::ERROR.primary_title(message.as_str());
                    let mut group: Group<'_> = title.element(snippet);
                    if let Some(help) = &step.help {
                        group = group.element(Level::HELP.message(help.as_str()));
                    }
                    renderer().render(&[group])
                }
                _ => match &step.name {
                    Some(name) => format!("error: {message}\n  in {name}"),
                    None => format!("error: {message}"),
                },
            }
        }
    }
}

/// Draws one finding in the manner of rustc.
pub(crate) fn draw(diagnostic: &Diagnostic, name: &str, text: &str) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let mut snippet = Snippet::source(text).path(name);
    for (number, label) in diagnostic.labels.iter().enumerate() {
        let kind = match number {
            0 => AnnotationKind::Primary,
            _ => AnnotationKind::Context,
        };
        let span = clamp(text, label.span.start, label.span.end);
        snippet = snippet.annotation(kind.span(span).label(label.text.as_str()));
    }
    if diagnostic.labels.is_empty() {
        for lines in &diagnostic.lines {
            let span = span_of_lines(text, lines.first, lines.last);
            snippet = snippet.annotation(AnnotationKind::Primary.span(span));
        }
    }
    let title = level
        .primary_title(diagnostic.message.as_str())
        .id(diagnostic.code);
    let mut group: Group<'_> = title.element(snippet);
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

fn renderer() -> Renderer {
    let colors = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    match colors {
        true => Renderer::styled(),
        false => Renderer::plain(),
    }
}

/// Returns the bytes of lines, counted from 1, without the last newline.
fn span_of_lines(text: &str, first: usize, last: usize) -> std::ops::Range<usize> {
    let mut start = None;
    let mut at = 0;
    let mut end = text.len();
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if number + 1 == first.max(1) {
            start = Some(at);
        }
        at += line.len();
        if number + 1 == last.max(1) {
            end = at - (line.len() - line.trim_end_matches(['\n', '\r']).len());
            break;
        }
    }
    let start = start.unwrap_or(text.len());
    start..end.max(start)
}

/// Moves a span to where characters begin and end.
fn clamp(text: &str, start: usize, end: usize) -> std::ops::Range<usize> {
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
