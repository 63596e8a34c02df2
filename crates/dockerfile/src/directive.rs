//! Parser directives: the comment lines `# syntax=…`, `# escape=…` and `# check=…` at the top of a file.

use crate::{Lines, Span, json};

/// One parser directive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    pub name: DirectiveName,
    /// Everything after the `=`, trimmed.
    pub value: String,
    /// Line 0 stands for a file that is one JSON object.
    pub lines: Lines,
    /// The place of the value.
    pub span: Span,
}

impl Directive {
    /// Returns the value up to its first space, which is what the reference uses of it.
    pub fn first_word(&self) -> &str {
        self.value.split(' ').next().unwrap_or_default()
    }
}

/// The directives there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DirectiveName {
    Syntax,
    Escape,
    Check,
}

impl DirectiveName {
    /// Returns the name in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            DirectiveName::Syntax => "syntax",
            DirectiveName::Escape => "escape",
            DirectiveName::Check => "check",
        }
    }

    fn from_key(key: &str) -> Option<Self> {
        [
            DirectiveName::Syntax,
            DirectiveName::Escape,
            DirectiveName::Check,
        ]
        .into_iter()
        .find(|name| key.eq_ignore_ascii_case(name.as_str()))
    }
}

/// Reads lines from the top of a file until the first that is not a directive.
///
/// Any other line, also an empty one or a comment, ends the directives for good.
#[derive(Debug)]
pub(crate) struct DirectiveReader {
    prefix: &'static str,
    seen: Vec<DirectiveName>,
    done: bool,
}

impl DirectiveReader {
    /// Returns a reader of directives behind `prefix` (`#`, `//`, or nothing).
    pub(crate) fn new(prefix: &'static str) -> Self {
        DirectiveReader {
            prefix,
            seen: Vec::new(),
            done: false,
        }
    }

    /// Returns the directive of a line and the offset of its value, if it is one.
    ///
    /// A directive that was there before is an error.
    pub(crate) fn read<'a>(
        &mut self,
        line: &'a str,
    ) -> Result<Option<(DirectiveName, &'a str, usize)>, DirectiveName> {
        if self.done {
            return Ok(None);
        }
        let Some((name, value)) = line.strip_prefix(self.prefix).and_then(split_directive) else {
            self.done = true;
            return Ok(None);
        };
        if self.seen.contains(&name) {
            return Err(name);
        }
        self.seen.push(name);
        let offset = value.as_ptr() as usize - line.as_ptr() as usize;
        Ok(Some((name, value, offset)))
    }
}

/// Splits `KEY = VALUE`; the value is not empty and holds no line end. A value of white space alone is its last character.
fn split_directive(text: &str) -> Option<(DirectiveName, &str)> {
    let (key, rest) = text.trim_start().split_once('=')?;
    let name = DirectiveName::from_key(key.trim_end_matches(is_regex_space))?;
    let value = match rest.trim_matches(is_regex_space) {
        "" => &rest[rest.len().checked_sub(1)?..],
        value => value,
    };
    (!value.contains('\n')).then_some((name, value))
}

/// Tells whether a character is white space to the reference's regular expressions, which know ASCII alone.
fn is_regex_space(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\x0c' | '\r' | ' ')
}

/// Returns the named directive of a file, written as a comment with `#`.
///
/// A byte order mark and a first line with `#!` are passed over.
pub fn find_directive(name: DirectiveName, source: &[u8]) -> Option<Directive> {
    let source = crate::text_of(source);
    let head = Head::of(&source);
    head.find(name, "#")
}

/// Returns what names the frontend of a file: `# syntax=…`, `// syntax=…`, or the member `syntax` of a JSON object.
pub fn detect_syntax(source: &[u8]) -> Option<Directive> {
    let source = crate::text_of(source);
    let head = Head::of(&source);
    head.find(DirectiveName::Syntax, "#")
        .or_else(|| head.find(DirectiveName::Syntax, "//"))
        .or_else(|| {
            let (value, range) = json::string_member(head.text, "syntax")?;
            Some(Directive {
                name: DirectiveName::Syntax,
                value,
                lines: Lines::at(head.lines_before),
                span: Span::new(head.offset + range.start, head.offset + range.end),
            })
        })
}

/// A file from where directives may begin.
struct Head<'a> {
    text: &'a str,
    offset: usize,
    lines_before: usize,
}

impl<'a> Head<'a> {
    fn of(source: &'a str) -> Self {
        let mut head = Head {
            text: source,
            offset: 0,
            lines_before: 0,
        };
        if let Some(rest) = source.strip_prefix('\u{feff}') {
            head.offset = source.len() - rest.len();
            head.text = rest;
        }
        if head.text.starts_with("#!") {
            let end = head.text.find('\n').map_or(head.text.len(), |i| i + 1);
            head.offset += end;
            head.text = &head.text[end..];
            head.lines_before = 1;
        }
        head
    }

    fn find(&self, name: DirectiveName, prefix: &'static str) -> Option<Directive> {
        let mut reader = DirectiveReader::new(prefix);
        let mut offset = self.offset;
        for (i, line) in self.text.split_inclusive('\n').enumerate() {
            let text = line.strip_suffix('\n').unwrap_or(line);
            let text = text.strip_suffix('\r').unwrap_or(text);
            let (found, value, at) = reader.read(text).ok()??;
            if found == name {
                return Some(Directive {
                    name,
                    value: value.to_owned(),
                    lines: Lines::at(self.lines_before + i + 1),
                    span: Span::new(offset + at, offset + at + value.len()),
                });
            }
            offset += line.len();
        }
        None
    }
}
