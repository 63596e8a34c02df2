//! Wildcard patterns in substitutions: `*` is any number of characters, `?` is one, neither crosses a line.
//!
//! There are no bracket expressions. A pattern is run as an automaton whose threads are kept in the order in which a
//! backtracking matcher would try them, so a hostile pattern costs its length times that of the value, never more.

use super::unicode::is_name;
use super::word::without_mark;

/// The most steps one match may take.
const LONGEST_MATCH: usize = 1 << 26;

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("invalid escape '\\{character}'")]
    Escape { character: char },
    #[error("invalid escape at the end")]
    TrailingEscape,
    #[error("the pattern is too long for a value of this length")]
    TooLong,
    #[error("the result is too long")]
    Result,
}

/// How much a `*` takes where it has the choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Greed {
    Shortest,
    Longest,
}

/// Removes what the pattern matches at the start of `value`.
pub(super) fn trim_start(pattern: &str, value: &str, greed: Greed) -> Result<String, PatternError> {
    let pattern = Pattern::new(pattern)?;
    let characters: Vec<char> = value.chars().collect();
    let end = pattern
        .find(&characters, 0, Anchor::Start, greed)?
        .map_or(0, |found| found.end);
    Ok(characters[end..].iter().collect())
}

/// Removes what the pattern matches at the end of `value`.
///
/// Pattern and value are turned round, as the shortest match at an end cannot be searched for from the left.
pub(super) fn trim_end(pattern: &str, value: &str, greed: Greed) -> Result<String, PatternError> {
    let reversed: String = value.chars().rev().collect();
    let trimmed = trim_start(&reversed_pattern(pattern), &reversed, greed)?;
    Ok(trimmed.chars().rev().collect())
}

/// Turns a pattern round but keeps each escape before its character. An escape at the very end becomes the first
/// character, and so an escape of what stood before it.
fn reversed_pattern(pattern: &str) -> String {
    let mut pieces: Vec<(Option<char>, char)> = Vec::new();
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        let escaped = if character == '\\' {
            characters.next()
        } else {
            None
        };
        pieces.push(match escaped {
            Some(escaped) => (Some('\\'), escaped),
            None => (None, character),
        });
    }
    pieces
        .into_iter()
        .rev()
        .flat_map(|(escape, character)| escape.into_iter().chain([character]))
        .collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Literal(char),
    One,
    Many,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Anchor {
    Start,
    Anywhere,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    start: usize,
    end: usize,
}

pub(super) struct Pattern {
    tokens: Vec<Token>,
}

impl Pattern {
    pub(super) fn new(text: &str) -> Result<Self, PatternError> {
        let mut tokens = Vec::with_capacity(text.len());
        let mut characters = without_mark(text).chars().peekable();
        while let Some(character) = characters.next() {
            tokens.push(match character {
                '*' if tokens.last() == Some(&Token::Many) => continue,
                '*' => Token::Many,
                '?' => Token::One,
                // The end of the substitution and the slash need an escape that is not part of the pattern.
                '\\' if matches!(characters.peek(), Some('}' | '/')) => continue,
                '\\' => match characters.next() {
                    Some(escaped @ ('*' | '?' | '\\')) => Token::Literal(escaped),
                    Some(character) => return Err(PatternError::Escape { character }),
                    None => return Err(PatternError::TrailingEscape),
                },
                _ => Token::Literal(character),
            });
        }
        Ok(Self { tokens })
    }

    pub(super) fn replace_first(
        &self,
        value: &str,
        replacement: &str,
    ) -> Result<String, PatternError> {
        let characters: Vec<char> = value.chars().collect();
        let Some(found) = self.find(&characters, 0, Anchor::Anywhere, Greed::Longest)? else {
            return Ok(value.to_owned());
        };
        let mut result: String = characters[..found.start].iter().collect();
        result.push_str(replacement);
        result.extend(&characters[found.end..]);
        Ok(result)
    }

    /// Replaces every match. `$0` in the replacement is the match, `$$` a dollar and `$name` nothing: the reference
    /// takes the replacement for a template of its regular expressions here, though not in [`Self::replace_first`].
    pub(super) fn replace_all(
        &self,
        value: &str,
        replacement: &str,
        longest: usize,
    ) -> Result<String, PatternError> {
        let characters: Vec<char> = value.chars().collect();
        let mut result = String::new();
        let (mut position, mut copied) = (0, 0);
        while position <= characters.len() {
            let Some(found) = self.find(&characters, position, Anchor::Anywhere, Greed::Longest)?
            else {
                break;
            };
            result.extend(&characters[copied..found.start]);
            // An empty match right after another one is none.
            if found.end > copied || found.start == 0 {
                fill_template(
                    replacement,
                    &characters[found.start..found.end],
                    &mut result,
                );
            }
            if result.len() > longest {
                return Err(PatternError::Result);
            }
            copied = found.end;
            position = found.end.max(position + 1);
        }
        result.extend(&characters[copied..]);
        Ok(result)
    }

    /// Finds the leftmost match at or after `from`, and of those the one a backtracking matcher finds first.
    fn find(
        &self,
        text: &[char],
        from: usize,
        anchor: Anchor,
        greed: Greed,
    ) -> Result<Option<Found>, PatternError> {
        if (text.len() + 1).saturating_mul(self.tokens.len() + 1) > LONGEST_MATCH {
            return Err(PatternError::TooLong);
        }
        let mut now = Threads::new(self.tokens.len() + 1);
        let mut then = Threads::new(self.tokens.len() + 1);
        let mut found = None;
        for position in from..=text.len() {
            if found.is_none() && (anchor == Anchor::Anywhere || position == from) {
                self.follow(&mut now, 0, position, greed);
            }
            if now.ordered.is_empty() && (found.is_some() || anchor == Anchor::Start) {
                break;
            }
            let character = text.get(position).copied();
            for index in 0..now.ordered.len() {
                let (state, start) = now.ordered[index];
                let Some(token) = self.tokens.get(state) else {
                    // Threads after this one would have been tried later.
                    found = Some(Found {
                        start,
                        end: position,
                    });
                    break;
                };
                let Some(character) = character else {
                    continue;
                };
                match token {
                    Token::Literal(literal) if *literal == character => {
                        self.follow(&mut then, state + 1, start, greed)
                    }
                    Token::One if character != '\n' => {
                        self.follow(&mut then, state + 1, start, greed)
                    }
                    Token::Many if character != '\n' => self.follow(&mut then, state, start, greed),
                    _ => {}
                }
            }
            std::mem::swap(&mut now, &mut then);
            then.clear();
        }
        Ok(found)
    }

    /// Adds a thread at `state` and, past a `*`, at the one after it, in order of preference.
    fn follow(&self, threads: &mut Threads, state: usize, start: usize, greed: Greed) {
        match (self.tokens.get(state), greed) {
            (Some(Token::Many), Greed::Longest) => {
                threads.add(state, start);
                threads.add(state + 1, start);
            }
            (Some(Token::Many), Greed::Shortest) => {
                threads.add(state + 1, start);
                threads.add(state, start);
            }
            _ => threads.add(state, start),
        }
    }
}

/// Threads of the automaton, each a state and where its match began, in order of preference.
struct Threads {
    ordered: Vec<(usize, usize)>,
    present: Vec<bool>,
}

impl Threads {
    fn new(states: usize) -> Self {
        Self {
            ordered: Vec::new(),
            present: vec![false; states],
        }
    }

    fn add(&mut self, state: usize, start: usize) {
        if !std::mem::replace(&mut self.present[state], true) {
            self.ordered.push((state, start));
        }
    }

    fn clear(&mut self) {
        for (state, _) in self.ordered.drain(..) {
            self.present[state] = false;
        }
    }
}

/// Appends a template of Go's regular expressions that has no groups but the whole match.
fn fill_template(template: &str, found: &[char], result: &mut String) {
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('$') {
        result.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            result.push('$');
            rest = after;
            continue;
        }
        let Some((name, after)) = template_name(after) else {
            result.push('$');
            rest = after;
            continue;
        };
        if name == "0" {
            result.extend(found);
        }
        rest = after;
    }
    result.push_str(rest);
}

fn template_name(text: &str) -> Option<(&str, &str)> {
    let (text, braced) = match text.strip_prefix('{') {
        Some(text) => (text, true),
        None => (text, false),
    };
    let length = text
        .find(|character| !is_name(character))
        .unwrap_or(text.len());
    let (name, rest) = text.split_at(length);
    if name.is_empty() {
        return None;
    }
    match braced {
        true => Some((name, rest.strip_prefix('}')?)),
        false => Some((name, rest)),
    }
}
