//! One pattern, cleaned and classified.

use super::clean::clean;
use super::{IgnoreError, expression, syntax};

/// One pattern.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    /// The place in the list that was given.
    pub(super) index: usize,
    /// Without its `!`.
    pub(super) cleaned: String,
    pub(super) exception: bool,
    pub(super) kind: Kind,
    pub(super) line: Option<u32>,
}

/// How a pattern is compared with a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Exact,
    /// `…**` without other wildcards.
    Prefix(String),
    /// `**…` without other wildcards. A slash in front may be missing in the path.
    Suffix(String),
    /// By the expression at this place.
    Expression(usize),
    /// Well formed, but no expression: an error for the first path it is compared with.
    Invalid,
}

impl Pattern {
    /// Makes a pattern, adding its expression if it needs one. Blank patterns are none.
    pub(super) fn new(
        index: usize,
        text: &str,
        expressions: &mut Vec<String>,
    ) -> Result<Option<Self>, IgnoreError> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let mut cleaned = clean(text);
        let exception = cleaned.starts_with('!');
        if exception {
            cleaned.remove(0);
        }
        if cleaned.is_empty() {
            return Err(IgnoreError::EmptyException);
        }
        if !syntax::is_valid(&cleaned) {
            return Err(IgnoreError::Syntax { pattern: cleaned });
        }
        let kind = match classify(&cleaned) {
            Class::Plain(kind) => kind,
            Class::Expression(text) => match expression::translated(&text) {
                Some(translated) => {
                    expressions.push(translated);
                    Kind::Expression(expressions.len() - 1)
                }
                None => Kind::Invalid,
            },
        };
        Ok(Some(Self {
            index,
            cleaned,
            exception,
            kind,
            line: None,
        }))
    }

    /// Whether the pattern could match something below `directory`; never wrongly false.
    pub(super) fn may_match_below(&self, directory: &[u8]) -> bool {
        let pattern = self.cleaned.as_str();
        match &self.kind {
            Kind::Exact => {
                let below = pattern.as_bytes().strip_prefix(directory);
                return below.is_some_and(|below| below.starts_with(b"/"));
            }
            Kind::Suffix(_) | Kind::Invalid => return true,
            Kind::Prefix(_) | Kind::Expression(_) => {}
        }
        // Brackets may match a slash, and so may classes like `\W`; bars and braces mean what they do in expressions.
        if pattern.contains(['[', '\\', '^', '|', '{']) {
            return true;
        }
        let mut wanted = pattern.split('/');
        for component in directory.split(|byte| *byte == b'/') {
            match wanted.next() {
                None => return false,
                Some(wanted) if wanted.contains("**") => return true,
                Some(wanted) if wanted.contains(['*', '?']) => {}
                Some(wanted) if wanted.as_bytes() == component => {}
                Some(_) => return false,
            }
        }
        wanted.next().is_some()
    }
}

enum Class {
    Plain(Kind),
    /// An expression in Go's syntax.
    Expression(String),
}

/// Tells how a pattern is to be compared, by the steps of the reference: which shortcut is taken depends on them.
fn classify(pattern: &str) -> Class {
    #[derive(PartialEq)]
    enum Shape {
        Exact,
        Prefix,
        Suffix,
        Expression,
    }
    let mut shape = Shape::Exact;
    let mut expression = String::from("^");
    let text = pattern.strip_prefix('\u{feff}').unwrap_or(pattern);
    let mut characters = text.chars().peekable();
    let mut first = true;
    while let Some(character) = characters.next() {
        match character {
            '*' if characters.next_if_eq(&'*').is_some() => {
                // `**/` is `**`.
                characters.next_if_eq(&'/');
                if characters.peek().is_some() {
                    expression.push_str("(.*/)?");
                    shape = Shape::Expression;
                } else if shape == Shape::Exact {
                    shape = Shape::Prefix;
                } else {
                    expression.push_str(".*");
                    shape = Shape::Expression;
                }
                if first {
                    shape = Shape::Suffix;
                }
            }
            '*' => {
                expression.push_str("[^/]*");
                shape = Shape::Expression;
            }
            '?' => {
                expression.push_str("[^/]");
                shape = Shape::Expression;
            }
            // Braces and bars are not escaped: the reference means to, but its table of characters is too short.
            '.' | '+' | '(' | ')' | '$' => {
                expression.push('\\');
                expression.push(character);
            }
            '\\' => {
                expression.push('\\');
                if let Some(escaped) = characters.next() {
                    expression.push(escaped);
                    shape = Shape::Expression;
                }
            }
            '[' | ']' => {
                expression.push(character);
                shape = Shape::Expression;
            }
            _ => expression.push(character),
        }
        first = false;
    }
    match shape {
        Shape::Exact => Class::Plain(Kind::Exact),
        Shape::Prefix => Class::Plain(Kind::Prefix(pattern[..pattern.len() - 2].to_owned())),
        Shape::Suffix => Class::Plain(Kind::Suffix(
            pattern.get(2..).unwrap_or_default().to_owned(),
        )),
        Shape::Expression => {
            expression.push('$');
            Class::Expression(expression)
        }
    }
}
