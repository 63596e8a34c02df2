//! Errors at their places.

use dockerfile::expand::ExpandError;
use dockerfile::{Diagnostic, Lines, Span, quote};

use crate::pass::Stage;

/// What one instruction comes to.
pub(crate) type Outcome<T> = Result<T, Box<Diagnostic>>;

/// Why a lowering does not go on.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Questions are open.
    Unanswered,
    Errors(Vec<Diagnostic>),
}

impl From<Box<Diagnostic>> for Stop {
    fn from(diagnostic: Box<Diagnostic>) -> Self {
        Self::Errors(vec![*diagnostic])
    }
}

pub(crate) fn error(
    code: &'static str,
    message: impl Into<String>,
    lines: Lines,
) -> Box<Diagnostic> {
    Box::new(Diagnostic::error(code, message, lines))
}

/// Returns an error about the build as a whole.
pub(crate) fn nowhere(code: &'static str, message: impl Into<String>) -> Box<Diagnostic> {
    let mut error = error(code, message, Lines::default());
    error.lines.clear();
    error
}

/// Returns the error of an instruction that the base of a stage brings along: its words are not those of the file.
pub(crate) fn of_trigger(mut error: Box<Diagnostic>, stage: &Stage<'_>) -> Box<Diagnostic> {
    error.labels.clear();
    error.edits.clear();
    *error = error.label(stage.base_span, "in an ONBUILD trigger of this");
    error
}

/// Returns the error of a word that could not be expanded.
pub(crate) fn unexpanded(problem: &ExpandError, span: Span, lines: Lines) -> Box<Diagnostic> {
    let message = format!(
        "failed to process {}: {}",
        quote(&problem.word),
        problem.reason
    );
    Box::new(Diagnostic::error("expansion", message, lines).label(span, "this word"))
}
