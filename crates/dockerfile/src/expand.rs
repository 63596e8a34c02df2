//! Expansion of variables and quotes in the words of instructions.
//!
//! Follows BuildKit's `shell.Lex` in every case, its oddities among them: an image must not change with its builder.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

mod pattern;
mod unicode;
mod word;

pub use pattern::PatternError;

/// How deep `${a:-${b:-…}}` may nest.
const DEEPEST: usize = 200;
/// How long a word may become at least, in bytes: far longer than a variable can be that a program is given. One that
/// doubles itself at each line stops here, as do replacements of replacements.
const LONGEST: usize = 2 << 20;
/// How many times its length a longer one may become.
const MOST_GROWTH: usize = 16;

/// The variables an expansion can see.
pub trait Environment {
    /// Returns the value of a variable; `None` means that it is not set.
    fn get(&self, name: &str) -> Option<Cow<'_, str>>;
}

impl Environment for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        BTreeMap::get(self, name).map(|value| Cow::Borrowed(value.as_str()))
    }
}

/// `NAME=value` in order, as an image's config has them: the last one of a name counts.
impl Environment for [String] {
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        self.iter().rev().find_map(|assignment| {
            let (key, value) = assignment.split_once('=').unwrap_or((assignment, ""));
            (key == name).then_some(Cow::Borrowed(value))
        })
    }
}

impl Environment for Vec<String> {
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        Environment::get(self.as_slice(), name)
    }
}

impl<E: Environment + ?Sized> Environment for &E {
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        (**self).get(name)
    }
}

/// What became of a word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expansion {
    pub text: String,
    /// The variables that were asked for and are set.
    pub matched: BTreeSet<String>,
    /// The variables that were asked for and are not set, also where a default stood in.
    pub unmatched: BTreeSet<String>,
}

/// Why a word could not be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to process {word:?}")]
pub struct ExpandError {
    /// The whole word.
    pub word: String,
    #[source]
    pub reason: ExpandReason,
}

/// What is wrong with a word.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandReason {
    #[error("unexpected end of statement while looking for matching {quote}")]
    Unclosed { quote: &'static str },
    #[error("syntax error: missing '{missing}'")]
    Missing { missing: &'static str },
    #[error("syntax error: bad substitution")]
    BadSubstitution,
    #[error("unsupported modifier ({modifier}) in substitution")]
    Modifier { modifier: String },
    /// `${name?message}` of a variable that is not set.
    #[error("{name}: {message}")]
    Required { name: String, message: String },
    #[error("invalid pattern ({pattern}) in substitution")]
    Pattern {
        pattern: String,
        source: PatternError,
    },
    #[error("substitutions nest deeper than {DEEPEST}")]
    Depth,
    #[error("the result is longer than {limit} bytes")]
    Length { limit: usize },
}

/// Expands words.
///
/// ```
/// use std::collections::BTreeMap;
/// let environment = BTreeMap::from([("NAME".to_owned(), "value".to_owned())]);
/// let expansion = dockerfile::expand::Expander::new('\\').word("a-${NAME%ue}", &environment)?;
/// assert_eq!(expansion.text, "a-val");
/// # Ok::<(), dockerfile::expand::ExpandError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expander {
    escape: char,
    raw_quotes: bool,
    raw_escapes: bool,
    literal_quotes: bool,
    keep_unset: bool,
}

impl Expander {
    /// Makes an expander; `escape` is the escape character of the Dockerfile.
    pub fn new(escape: char) -> Self {
        Self {
            escape,
            raw_quotes: false,
            raw_escapes: false,
            literal_quotes: false,
            keep_unset: false,
        }
    }

    /// Keeps quotes in the result; what they hold is still expanded as they say.
    #[must_use]
    pub fn raw_quotes(mut self) -> Self {
        self.raw_quotes = true;
        self
    }

    /// Keeps escape characters in the result.
    #[must_use]
    pub fn raw_escapes(mut self) -> Self {
        self.raw_escapes = true;
        self
    }

    /// Takes quotes as ordinary characters.
    #[must_use]
    pub fn literal_quotes(mut self) -> Self {
        self.literal_quotes = true;
        self
    }

    /// Leaves references to variables that are not set as they are.
    #[must_use]
    pub fn keep_unset(mut self) -> Self {
        self.keep_unset = true;
        self
    }

    /// Expands `word` to one text; blanks stay.
    pub fn word(
        &self,
        word: &str,
        environment: &(impl Environment + ?Sized),
    ) -> Result<Expansion, ExpandError> {
        Ok(self.process(word, &environment)?.0)
    }

    /// Expands `word`, then splits it at blanks outside quotes. Empty words fall away, quoted ones too.
    pub fn words(
        &self,
        word: &str,
        environment: &(impl Environment + ?Sized),
    ) -> Result<Vec<String>, ExpandError> {
        Ok(self.process(word, &environment)?.1)
    }

    fn process(
        &self,
        word: &str,
        environment: &dyn Environment,
    ) -> Result<(Expansion, Vec<String>), ExpandError> {
        if self.is_plain(word) {
            let expansion = Expansion {
                text: word.to_owned(),
                ..Expansion::default()
            };
            return Ok((expansion, vec![word.to_owned()]));
        }
        word::Lexer::new(self, word, environment)
            .process()
            .map_err(|reason| ExpandError {
                word: word.to_owned(),
                reason,
            })
    }

    /// Tells whether a word is one that nothing can be expanded in.
    fn is_plain(&self, word: &str) -> bool {
        let is_plain = |byte: &u8| {
            matches!(byte, b'!'..=b'~')
                && !matches!(byte, b'$' | b'\'' | b'"' | b'<')
                && u32::from(*byte) != u32::from(self.escape)
        };
        !word.is_empty() && word.len() <= 256 && word.as_bytes().iter().all(is_plain)
    }
}

#[cfg(test)]
mod tests;
