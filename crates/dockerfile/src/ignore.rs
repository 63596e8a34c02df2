//! Ignore patterns: `.dockerignore` files, and the `--exclude` of COPY and ADD.
//!
//! Follows moby's patternmatcher, which turns each pattern into a regular expression of Go: what that makes of odd
//! patterns (`[?]`, `\d`, a `*` inside brackets) decides which files an image gets, so it is the same here.

mod clean;
mod expression;
mod pattern;
mod syntax;

use std::borrow::Cow;

use regex::bytes::{RegexSet, RegexSetBuilder, SetMatches};

use clean::clean;
use pattern::{Kind, Pattern};

/// The longest line of an ignore file, in bytes.
const LONGEST_LINE: usize = 65_535;
/// How large the automaton of all patterns may become, in bytes.
const LARGEST_AUTOMATON: usize = 64 << 20;

/// Why patterns cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IgnoreError {
    #[error("line {line} is longer than {LONGEST_LINE} bytes")]
    LineTooLong { line: u32 },
    #[error("\"!\" is not a pattern: an exception needs something after the mark")]
    EmptyException,
    #[error("syntax error in pattern {pattern:?}")]
    Syntax { pattern: String },
    #[error("the patterns are too large together")]
    TooLarge,
}

/// One pattern of an ignore file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoreLine {
    /// Cleaned, with its `!` if it is an exception.
    pub pattern: String,
    /// Counts from 1.
    pub line: u32,
}

/// What an ignore file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IgnoreFile {
    pub lines: Vec<IgnoreLine>,
}

impl IgnoreFile {
    /// Reads an ignore file: a pattern a line, comments where `#` is the first character, absolute paths as relative.
    pub fn parse(text: &str) -> Result<Self, IgnoreError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut lines = Vec::new();
        for (line, content) in (1..).zip(text.split('\n')) {
            if content.len() > LONGEST_LINE {
                return Err(IgnoreError::LineTooLong { line });
            }
            if content.starts_with('#') {
                continue;
            }
            let content = content.trim();
            let (mark, pattern) = match content.strip_prefix('!') {
                Some(pattern) => ("!", pattern.trim()),
                None if content.is_empty() => continue,
                None => ("", content),
            };
            let mut cleaned = if pattern.is_empty() {
                String::new()
            } else {
                clean(pattern)
            };
            if cleaned.len() > 1 && cleaned.starts_with('/') {
                cleaned.remove(0);
            }
            lines.push(IgnoreLine {
                pattern: format!("{mark}{cleaned}"),
                line,
            });
        }
        Ok(Self { lines })
    }

    /// Makes the matcher of all lines.
    pub fn matcher(&self) -> Result<Matcher, IgnoreError> {
        let mut matcher = Matcher::build(self.lines.iter().map(|line| line.pattern.as_str()))?;
        for pattern in &mut matcher.patterns {
            pattern.line = Some(self.lines[pattern.index].line);
        }
        Ok(matcher)
    }
}

/// Decides by a list of patterns which paths are ignored. The last pattern that matches a path or one of its parents
/// counts; exceptions (`!`) take a path back in.
#[derive(Debug, Clone)]
pub struct Matcher {
    patterns: Vec<Pattern>,
    /// The expressions of those patterns that need one.
    expressions: RegexSet,
    exceptions: bool,
}

/// What became of one path, and what its children need to know of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matched {
    /// The place of the deciding pattern if the path is ignored.
    ignored_by: Option<usize>,
    /// Which patterns matched; none for a path without a parent.
    matching: Box<[bool]>,
}

impl Matched {
    pub fn is_ignored(&self) -> bool {
        self.ignored_by.is_some()
    }

    /// Tells of each pattern that is not blank whether it matched; one that could not change the decision did not.
    pub fn matching(&self) -> &[bool] {
        &self.matching
    }
}

impl Matcher {
    /// Makes a matcher of patterns, exceptions with their `!`. Blank patterns are passed over.
    pub fn new<P: AsRef<str>>(patterns: impl IntoIterator<Item = P>) -> Result<Self, IgnoreError> {
        let patterns: Vec<P> = patterns.into_iter().collect();
        Self::build(patterns.iter().map(AsRef::as_ref))
    }

    fn build<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Self, IgnoreError> {
        let mut patterns = Vec::new();
        let mut expressions = Vec::new();
        for (index, text) in texts.enumerate() {
            if let Some(pattern) = Pattern::new(index, text, &mut expressions)? {
                patterns.push(pattern);
            }
        }
        let expressions = RegexSetBuilder::new(expressions)
            .size_limit(LARGEST_AUTOMATON)
            .dfa_size_limit(LARGEST_AUTOMATON)
            .build()
            .map_err(|_| IgnoreError::TooLarge)?;
        let exceptions = patterns.iter().any(|pattern| pattern.exception);
        Ok(Self {
            patterns,
            expressions,
            exceptions,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Returns how many patterns there are, blank ones left out.
    pub fn len(&self) -> usize {
        self.patterns.len()
    }

    /// Whether there are any exceptions.
    pub fn has_exceptions(&self) -> bool {
        self.exceptions
    }

    /// Whether a path, relative and with slashes, is ignored, for itself or for one of its parents. A walk may see it
    /// differently: see [`matched_by_walk`](Self::matched_by_walk).
    pub fn is_ignored(&self, path: impl AsRef<[u8]>) -> Result<bool, IgnoreError> {
        Ok(self.matched(path)?.is_ignored())
    }

    /// Matches a path of which no parent has been matched.
    pub fn matched(&self, path: impl AsRef<[u8]>) -> Result<Matched, IgnoreError> {
        self.evaluate(path.as_ref(), None)
    }

    /// Matches a path after each directory above it, as a walk does.
    ///
    /// An exception that names a directory which nothing ignored does not take back what is ignored in it, as it does in
    /// [`matched`](Self::matched): a file named `.env` in `app` stays ignored by `**/.env` and `!app`.
    pub fn matched_by_walk(&self, path: impl AsRef<[u8]>) -> Result<Matched, IgnoreError> {
        let path = path.as_ref();
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let mut ends = slashes.map(|(at, _)| at).chain([path.len()]);
        ends.try_fold(Matched::default(), |above, end| {
            self.matched_below(above.matching(), &path[..end])
        })
    }

    /// Matches a path in a walk. `parent` is what [`Matched::matching`] said of the directory it lies in, nothing for one
    /// right below the root.
    pub fn matched_below(
        &self,
        parent: &[bool],
        path: impl AsRef<[u8]>,
    ) -> Result<Matched, IgnoreError> {
        self.evaluate(path.as_ref(), Some(parent))
    }

    /// Returns the pattern, and its line in the ignore file, for which a path is ignored.
    pub fn reason(&self, matched: &Matched) -> Option<(&str, Option<u32>)> {
        let pattern = &self.patterns[matched.ignored_by?];
        Some((&pattern.cleaned, pattern.line))
    }

    /// Whether everything below an ignored directory is ignored too, so that a walk can pass it over.
    pub fn hides_below(&self, directory: impl AsRef<[u8]>, matched: &Matched) -> bool {
        let Some(decisive) = matched.ignored_by else {
            return false;
        };
        let directory = directory.as_ref();
        let later = &self.patterns[decisive + 1..];
        !later
            .iter()
            .any(|pattern| pattern.exception && pattern.may_match_below(directory))
    }

    fn evaluate(&self, path: &[u8], parent: Option<&[bool]>) -> Result<Matched, IgnoreError> {
        let parent = parent.filter(|parent| parent.len() == self.patterns.len());
        let mut candidate = Candidate::new(as_text(path), &self.expressions);
        let mut parents: Option<Vec<Candidate<'_>>> = None;
        let mut matching = vec![false; self.patterns.len()];
        let mut ignored_by = None;
        for (place, pattern) in self.patterns.iter().enumerate() {
            let mut matches = parent.is_some_and(|parent| parent[place]);
            if !matches {
                // A pattern that could not change the decision is not tried, and so not remembered for the children.
                if pattern.exception != ignored_by.is_some() {
                    continue;
                }
                matches = pattern.matches(&mut candidate)?;
                if !matches && parent.is_none() {
                    let parents = parents.get_or_insert_with(|| {
                        let parents = clean::parents(&candidate.path).into_iter();
                        parents
                            .map(|path| Candidate::new(path.into(), &self.expressions))
                            .collect()
                    });
                    for parent in parents {
                        matches |= pattern.matches(parent)?;
                    }
                }
            }
            matching[place] = matches;
            if matches {
                ignored_by = (!pattern.exception).then_some(place);
            }
        }
        Ok(Matched {
            ignored_by,
            matching: matching.into(),
        })
    }
}

/// A path and, once asked for, which expressions match it.
struct Candidate<'a> {
    path: Cow<'a, str>,
    expressions: &'a RegexSet,
    found: Option<SetMatches>,
}

impl<'a> Candidate<'a> {
    fn new(path: Cow<'a, str>, expressions: &'a RegexSet) -> Self {
        Self {
            path,
            expressions,
            found: None,
        }
    }

    fn matches_expression(&mut self, place: usize) -> bool {
        let found = self
            .found
            .get_or_insert_with(|| self.expressions.matches(self.path.as_bytes()));
        found.matched(place)
    }
}

impl Pattern {
    fn matches(&self, candidate: &mut Candidate<'_>) -> Result<bool, IgnoreError> {
        let path = &*candidate.path;
        Ok(match &self.kind {
            Kind::Exact => path == self.cleaned,
            Kind::Prefix(prefix) => path.starts_with(prefix),
            Kind::Suffix(suffix) => {
                path.ends_with(suffix) || suffix.strip_prefix('/').is_some_and(|name| path == name)
            }
            Kind::Expression(place) => candidate.matches_expression(*place),
            Kind::Invalid => {
                return Err(IgnoreError::Syntax {
                    pattern: self.cleaned.clone(),
                });
            }
        })
    }
}

/// Returns a path as text, each byte that is no UTF-8 replaced by one U+FFFD: so expressions see it, and patterns, which
/// are text themselves, name such a path in no other way.
fn as_text(path: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(path) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(std::iter::repeat_n('\u{fffd}', chunk.invalid().len()));
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests;
