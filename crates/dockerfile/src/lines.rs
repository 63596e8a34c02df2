//! The physical lines of a file and the logical lines that continuations make of them.

use std::borrow::Cow;
use std::ops::Range;

use crate::Span;

/// The longest line the reference reads, without its line end.
pub(crate) const MAX_LINE: usize = 65_535;

/// Hands out the lines of a file one by one, up to the first that is too long.
#[derive(Debug)]
pub(crate) struct LineReader<'a> {
    source: &'a str,
    pos: usize,
    /// The index of the first line that is too long.
    too_long: Option<usize>,
    /// How many lines were handed out.
    pub(crate) count: usize,
}

impl<'a> LineReader<'a> {
    /// Returns a reader of `source`, which is `bytes` with what is not UTF-8 replaced.
    pub(crate) fn new(source: &'a str, bytes: &[u8]) -> Self {
        let too_long = bytes
            .split(|b| *b == b'\n')
            .position(|line| line.len() > MAX_LINE);
        LineReader {
            source,
            pos: 0,
            too_long,
            count: 0,
        }
    }

    /// Returns the next line with its line end, and where it begins.
    pub(crate) fn next_line(&mut self) -> Option<(usize, &'a str)> {
        if self.at_long_line() {
            return None;
        }
        let rest = &self.source[self.pos..];
        if rest.is_empty() {
            return None;
        }
        let start = self.pos;
        let len = rest.find('\n').map_or(rest.len(), |i| i + 1);
        self.pos += len;
        self.count += 1;
        Some((start, &rest[..len]))
    }

    /// Tells whether reading has stopped, or will not begin, because the next line is too long.
    pub(crate) fn at_long_line(&self) -> bool {
        self.too_long == Some(self.count)
    }

    /// Returns the source between two offsets.
    pub(crate) fn slice(&self, start: usize, end: usize) -> &'a str {
        &self.source[start..end]
    }

    /// Returns where the next line begins.
    pub(crate) fn position(&self) -> usize {
        self.pos
    }
}

/// A line made of the parts of several lines, and where each part comes from.
#[derive(Debug)]
pub(crate) struct LogicalLine<'a> {
    pub(crate) text: Cow<'a, str>,
    /// Where the first part begins in the source.
    first: usize,
    /// Where each other part begins here and in the source, ascending.
    parts: Vec<(usize, usize)>,
}

impl<'a> LogicalLine<'a> {
    /// Returns a line of one part that stands at `source` in the file.
    pub(crate) fn new(text: &'a str, source: usize) -> Self {
        LogicalLine {
            text: Cow::Borrowed(text),
            first: source,
            parts: Vec::new(),
        }
    }

    /// Adds text that stands at `source` in the file.
    pub(crate) fn push(&mut self, text: &str, source: usize) {
        self.parts.push((self.text.len(), source));
        self.text.to_mut().push_str(text);
    }

    /// Returns the place in the source of a range of this line.
    pub(crate) fn span(&self, range: Range<usize>) -> Span {
        let start = self.locate(range.start);
        let end = if range.end > range.start {
            self.locate(range.end - 1) + 1
        } else {
            start
        };
        Span::new(start, end)
    }

    fn locate(&self, at: usize) -> usize {
        match self
            .parts
            .partition_point(|(start, _)| *start <= at)
            .checked_sub(1)
        {
            None => self.first + at,
            Some(part) => {
                let (start, source) = self.parts[part];
                source + (at - start)
            }
        }
    }
}
