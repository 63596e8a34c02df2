//! The lexer of one word.

use std::collections::BTreeSet;

use super::pattern::{self, Greed, Pattern};
use super::unicode::{is_digit, is_name};
use super::{DEEPEST, Environment, ExpandReason, Expander, Expansion, LONGEST, MOST_GROWTH};

type Result<T> = std::result::Result<T, ExpandReason>;

pub(super) struct Lexer<'a> {
    options: &'a Expander,
    environment: &'a dyn Environment,
    rest: &'a str,
    /// Whether escape characters are kept just now.
    raw_escapes: bool,
    depth: usize,
    /// How long a text may become.
    limit: usize,
    /// The word being gathered for splitting. There is one for all levels: a nested substitution empties it, so that
    /// what stood before it in the same word is lost from the split words, as in the reference.
    gathered: String,
    matched: BTreeSet<String>,
    unmatched: BTreeSet<String>,
}

/// Where a level ends.
#[derive(Clone, Copy, PartialEq)]
enum Stop {
    End,
    At(char),
}

impl<'a> Lexer<'a> {
    pub(super) fn new(
        options: &'a Expander,
        word: &'a str,
        environment: &'a dyn Environment,
    ) -> Self {
        Self {
            options,
            environment,
            rest: without_mark(word),
            raw_escapes: options.raw_escapes,
            depth: 0,
            limit: LONGEST.max(word.len().saturating_mul(MOST_GROWTH)),
            gathered: String::new(),
            matched: BTreeSet::new(),
            unmatched: BTreeSet::new(),
        }
    }

    pub(super) fn process(mut self) -> Result<(Expansion, Vec<String>)> {
        let (text, words) = self.until(Stop::End, self.raw_escapes)?;
        Ok((
            Expansion {
                text,
                matched: self.matched,
                unmatched: self.unmatched,
            },
            words,
        ))
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let character = self.peek()?;
        self.rest = &self.rest[character.len_utf8()..];
        Some(character)
    }

    /// Processes up to `stop`, which is consumed.
    fn until(&mut self, stop: Stop, raw_escapes: bool) -> Result<(String, Vec<String>)> {
        if self.depth == DEEPEST {
            return Err(ExpandReason::Depth);
        }
        self.depth += 1;
        let outer = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let processed = self.level(stop);
        self.raw_escapes = outer;
        self.depth -= 1;
        processed
    }

    fn level(&mut self, stop: Stop) -> Result<(String, Vec<String>)> {
        let mut text = String::new();
        let mut words = Vec::new();
        self.gathered.clear();
        while let Some(character) = self.peek() {
            if stop == Stop::At(character) {
                self.next();
                self.end_word(&mut words);
                return Ok((text, words));
            }
            match character {
                '$' => {
                    let value = self.dollar()?;
                    value
                        .chars()
                        .for_each(|character| self.gather(character, &mut words));
                    text.push_str(&value);
                }
                '\'' | '"' if !self.options.literal_quotes => {
                    let quoted = if character == '"' {
                        self.double_quoted()?
                    } else {
                        self.single_quoted()?
                    };
                    self.gathered.push_str(&quoted);
                    text.push_str(&quoted);
                }
                '<' => {
                    let marker = self.possible_heredoc();
                    self.gathered.push_str(marker);
                    text.push_str(marker);
                }
                _ if character == self.options.escape => {
                    self.next();
                    if self.raw_escapes {
                        self.gathered.push(character);
                        text.push(character);
                    }
                    if let Some(escaped) = self.next() {
                        self.gathered.push(escaped);
                        text.push(escaped);
                    }
                }
                _ => {
                    self.next();
                    self.gather(character, &mut words);
                    text.push(character);
                }
            }
            if text.len() > self.limit {
                return Err(ExpandReason::Length { limit: self.limit });
            }
        }
        match stop {
            Stop::End => {
                self.end_word(&mut words);
                Ok((text, words))
            }
            Stop::At('}') => Err(ExpandReason::Unclosed { quote: "}" }),
            Stop::At(_) => Err(ExpandReason::Unclosed { quote: "/" }),
        }
    }

    fn gather(&mut self, character: char, words: &mut Vec<String>) {
        if character.is_whitespace() {
            self.end_word(words);
        } else {
            self.gathered.push(character);
        }
    }

    fn end_word(&mut self, words: &mut Vec<String>) {
        if !self.gathered.is_empty() {
            words.push(std::mem::take(&mut self.gathered));
        }
    }

    fn single_quoted(&mut self) -> Result<String> {
        let start = self.rest;
        self.next();
        let Some(length) = self.rest.find('\'') else {
            return Err(ExpandReason::Unclosed {
                quote: "single-quote",
            });
        };
        let quoted = &self.rest[..length];
        self.rest = &self.rest[length + 1..];
        Ok(if self.options.raw_quotes {
            start[..length + 2].to_owned()
        } else {
            quoted.to_owned()
        })
    }

    fn double_quoted(&mut self) -> Result<String> {
        let mut text = String::new();
        self.next();
        if self.options.raw_quotes {
            text.push('"');
        }
        loop {
            match self.peek() {
                None => {
                    return Err(ExpandReason::Unclosed {
                        quote: "double-quote",
                    });
                }
                Some('"') => {
                    self.next();
                    if self.options.raw_quotes {
                        text.push('"');
                    }
                    return Ok(text);
                }
                Some('$') => text.push_str(&self.dollar()?),
                Some(character) if character == self.options.escape => {
                    self.next();
                    if self.raw_escapes {
                        text.push(character);
                    }
                    match self.peek() {
                        None => {}
                        Some(special)
                            if special == '"'
                                || special == '$'
                                || special == self.options.escape =>
                        {
                            self.next();
                            text.push(special);
                        }
                        // Before anything else the escape stands for itself.
                        Some(_) => text.push(character),
                    }
                }
                Some(character) => {
                    self.next();
                    text.push(character);
                }
            }
            if text.len() > self.limit {
                return Err(ExpandReason::Length { limit: self.limit });
            }
        }
    }

    /// Takes `<`, or `<<` with the blanks after it: those belong to the marker when words are split.
    fn possible_heredoc(&mut self) -> &'a str {
        let start = self.rest;
        self.next();
        if self.peek() == Some('<') {
            self.next();
            while let Some('\t' | '\r' | ' ') = self.peek() {
                self.next();
            }
        }
        &start[..start.len() - self.rest.len()]
    }

    fn dollar(&mut self) -> Result<String> {
        self.next();
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.variable(name) {
                None if self.options.keep_unset => format!("${name}"),
                value => value.unwrap_or_default(),
            });
        }
        self.next();
        match self.peek() {
            None => return Err(ExpandReason::Missing { missing: "}" }),
            Some('{' | '}' | ':') => return Err(ExpandReason::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        match self.next() {
            Some('}') => Ok(match self.variable(name) {
                None if self.options.keep_unset => format!("${{{name}}}"),
                value => value.unwrap_or_default(),
            }),
            Some(':') => {
                let operator = self.next();
                self.modified(name, operator, true)
            }
            operator @ Some('+' | '-' | '?' | '#' | '%') => self.modified(name, operator, false),
            Some('/') => self.replaced(name),
            operator => Err(modifier(operator, false)),
        }
    }

    /// Processes `${name:-word}` and its like, from the word on. With a colon an empty value counts as none.
    fn modified(&mut self, name: &str, operator: Option<char>, colon: bool) -> Result<String> {
        let trims = matches!(operator, Some('#' | '%'));
        if colon && trims {
            return Err(modifier(operator, colon));
        }
        let word = self.nested('}', trims, "}")?;
        let value = self.variable(name);
        if self.options.keep_unset && value.is_none() {
            let operator = shown(operator, colon);
            return Ok(format!("${{{name}{operator}{word}}}"));
        }
        let absent = value
            .as_deref()
            .is_none_or(|value| colon && value.is_empty());
        match operator {
            Some('-') => Ok(if absent {
                word
            } else {
                value.unwrap_or_default()
            }),
            Some('+') => Ok(if absent { String::new() } else { word }),
            Some('?') if absent => {
                let state = if value.is_none() { "unset" } else { "empty" };
                let message = if word.is_empty() {
                    format!("is not allowed to be {state}")
                } else {
                    word
                };
                Err(ExpandReason::Required {
                    name: name.to_owned(),
                    message,
                })
            }
            Some('?') => Ok(value.unwrap_or_default()),
            Some(operator @ ('#' | '%')) => {
                let (greed, pattern) = match word.strip_prefix(operator) {
                    Some(pattern) => (Greed::Longest, pattern),
                    None => (Greed::Shortest, word.as_str()),
                };
                let trim = if operator == '#' {
                    pattern::trim_start
                } else {
                    pattern::trim_end
                };
                trim(pattern, &value.unwrap_or_default(), greed).map_err(|source| {
                    ExpandReason::Pattern {
                        pattern: pattern.to_owned(),
                        source,
                    }
                })
            }
            operator => Err(modifier(operator, colon)),
        }
    }

    /// Processes `${name/pattern/replacement}` and `${name//pattern/replacement}`, from after the first slash on.
    fn replaced(&mut self, name: &str) -> Result<String> {
        let all = self.peek() == Some('/');
        if all {
            self.next();
        }
        let pattern = self.nested('/', true, "/' in ${}")?;
        let replacement = self.nested('}', true, "}")?;
        let value = self.variable(name);
        let Some(value) = value else {
            return match self.options.keep_unset {
                // The second slash of a replacement of all is lost, as in the reference.
                true => Ok(format!("${{{name}/{pattern}/{replacement}}}")),
                false => self.replace(&pattern, "", &replacement, all),
            };
        };
        self.replace(&pattern, &value, &replacement, all)
    }

    fn replace(&self, pattern: &str, value: &str, replacement: &str, all: bool) -> Result<String> {
        let failed = |source| ExpandReason::Pattern {
            pattern: pattern.to_owned(),
            source,
        };
        let compiled = Pattern::new(pattern).map_err(failed)?;
        let replaced = match all {
            true => compiled.replace_all(value, replacement, self.limit),
            false => compiled.replace_first(value, replacement),
        };
        replaced.map_err(failed)
    }

    /// Processes the part of a substitution up to `stop`; `missing` is what is said to be missing at the end.
    fn nested(&mut self, stop: char, raw_escapes: bool, missing: &'static str) -> Result<String> {
        match self.until(Stop::At(stop), raw_escapes) {
            Ok((text, _)) => Ok(text),
            Err(ExpandReason::Depth) => Err(ExpandReason::Depth),
            Err(_) if self.rest.is_empty() => Err(ExpandReason::Missing { missing }),
            Err(reason) => Err(reason),
        }
    }

    /// Takes the name of a variable: letters, digits and underscores, or digits only, or one special character.
    fn name(&mut self) -> &'a str {
        let is_special = |character| "@*#?-$!0".contains(character);
        let length = match self.peek() {
            Some(first) if is_digit(first) => self.rest.find(|character| !is_digit(character)),
            Some(first) if is_special(first) => Some(first.len_utf8()),
            _ => self.rest.find(|character| !is_name(character)),
        };
        let (name, rest) = self.rest.split_at(length.unwrap_or(self.rest.len()));
        self.rest = rest;
        name
    }

    fn variable(&mut self, name: &str) -> Option<String> {
        let value = self.environment.get(name).map(|value| value.into_owned());
        let asked = if value.is_some() {
            &mut self.matched
        } else {
            &mut self.unmatched
        };
        if !asked.contains(name) {
            asked.insert(name.to_owned());
        }
        value
    }
}

fn shown(operator: Option<char>, colon: bool) -> String {
    let mut text = String::new();
    if colon {
        text.push(':');
    }
    text.extend(operator);
    text
}

fn modifier(operator: Option<char>, colon: bool) -> ExpandReason {
    ExpandReason::Modifier {
        modifier: shown(operator, colon),
    }
}

/// Drops a byte order mark at the start, which Go's scanner passes over.
pub(super) fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}
