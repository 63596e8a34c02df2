//! Places in a source file.

use std::fmt;

/// A range of bytes of the source, `start` included, `end` not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Span {
    pub start: usize,
    pub end: usize,
}

impl Span {
    /// Returns the span between two byte offsets.
    pub fn new(start: usize, end: usize) -> Self {
        Span {
            start,
            end: end.max(start),
        }
    }

    /// Returns the smallest span that holds both.
    pub fn to(self, other: Span) -> Span {
        Span {
            start: self.start.min(other.start),
            end: self.end.max(other.end),
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// A range of lines, counted from 1, both ends included.
///
/// It is the reference's place of an instruction, a warning or an error; it can name line 0, where the reference
/// does (an error found while it reads the first line).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Lines {
    pub first: usize,
    pub last: usize,
}

impl Lines {
    /// Returns the range from `first` to `last`; `last` before `first` counts as `first`.
    pub fn new(first: usize, last: usize) -> Self {
        Lines {
            first,
            last: last.max(first),
        }
    }

    /// Returns the range of one line.
    pub fn at(line: usize) -> Self {
        Lines {
            first: line,
            last: line,
        }
    }

    /// Returns every line of the range.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        self.first..=self.last
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "L{}", self.first)
        } else {
            write!(f, "L{}-{}", self.first, self.last)
        }
    }
}

/// A piece of text as an instruction holds it, before expansion, and where it stands in the source.
///
/// The text is not always the source's: continuation lines are joined, quotes of flags and JSON strings are taken off.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Word {
    pub text: String,
    pub span: Span,
}

impl Word {
    /// Returns a word with its place.
    pub fn new(text: impl Into<String>, span: Span) -> Self {
        Word {
            text: text.into(),
            span,
        }
    }

    /// Splits the place at a byte of the text: before it, and after the separator of `skip` bytes there.
    ///
    /// Where the text is not the source's, both halves have the whole place.
    pub(crate) fn split_span(&self, at: usize, skip: usize) -> (Span, Span) {
        let Span { start, end } = self.span;
        if end - start != self.text.len() || !self.text.is_ascii() {
            return (self.span, self.span);
        }
        (
            Span::new(start, start + at),
            Span::new((start + at + skip).min(end), end),
        )
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}@{:?}", self.text, self.span)
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl AsRef<str> for Word {
    fn as_ref(&self) -> &str {
        &self.text
    }
}
