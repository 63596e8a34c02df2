//! What is wrong with a Dockerfile, as data: drawing it is the caller's work.

use std::fmt;

use crate::{Lines, Span};

/// How much a diagnostic weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// The file can not be built.
    Error,
    /// A rule of the check is violated.
    Warning,
}

/// A note at a piece of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    pub span: Span,
    pub text: String,
}

/// A piece of the source and what should stand in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    pub span: Span,
    pub text: String,
}

impl Edit {
    /// Returns an edit that puts `text` in place of a piece of the source.
    pub fn new(span: Span, text: impl Into<String>) -> Self {
        Edit {
            span,
            text: text.into(),
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    /// A stable name: that of the rule for a warning, a word in kebab case for an error.
    pub code: &'static str,
    /// What is wrong, in one line, in the reference's words where it has some.
    pub message: String,
    /// The lines the reference gives, in its order; none where it gives none.
    pub lines: Vec<Lines>,
    /// The exact words meant; the first is the subject, the others explain it. May be empty.
    pub labels: Vec<Label>,
    /// Why it is so.
    pub notes: Vec<String>,
    /// What to do about it.
    pub helps: Vec<String>,
    /// The word that was probably meant instead of the subject.
    pub suggestion: Option<String>,
    /// What mends it, where that takes no thought.
    pub edits: Vec<Edit>,
}

impl Diagnostic {
    /// Returns the message as the reference words it, the suggestion included.
    pub fn full_message(&self) -> String {
        match &self.suggestion {
            Some(word) => format!("{} (did you mean {word}?)", self.message),
            None => self.message.clone(),
        }
    }

    /// Returns an error at `lines` without labels.
    pub fn error(code: &'static str, message: impl Into<String>, lines: Lines) -> Self {
        Diagnostic {
            severity: Severity::Error,
            code,
            message: message.into(),
            lines: vec![lines],
            labels: Vec::new(),
            notes: Vec::new(),
            helps: Vec::new(),
            suggestion: None,
            edits: Vec::new(),
        }
    }

    /// Returns the diagnostic with a label added.
    #[must_use]
    pub fn label(mut self, span: Span, text: impl Into<String>) -> Self {
        self.labels.push(Label {
            span,
            text: text.into(),
        });
        self
    }

    /// Returns the diagnostic with a reason added.
    #[must_use]
    pub fn note(mut self, text: impl Into<String>) -> Self {
        self.notes.push(text.into());
        self
    }

    /// Returns the diagnostic with the word that was probably meant, if there is one.
    #[must_use]
    pub fn suggest(mut self, word: Option<impl Into<String>>) -> Self {
        self.suggestion = word.map(Into::into);
        self
    }

    /// Returns the diagnostic with what mends it.
    #[must_use]
    pub fn edits(mut self, edits: impl IntoIterator<Item = Edit>) -> Self {
        self.edits.extend(edits);
        self
    }

    /// Returns the diagnostic with advice added.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.helps.push(text.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lines.first() {
            Some(lines) => write!(f, "line {}: {}", lines.first, self.full_message()),
            None => f.write_str(&self.full_message()),
        }
    }
}

impl std::error::Error for Diagnostic {}
