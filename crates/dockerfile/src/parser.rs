//! From the bytes of a Dockerfile to a list of instructions, split into words but not yet understood.

use std::ops::Range;

use crate::directive::DirectiveReader;
use crate::heredoc::{self, HeredocHead};
use crate::json::{self, NotStrings};
use crate::keyword::Keyword;
use crate::lines::{LineReader, LogicalLine, MAX_LINE};
use crate::quote::quote;
use crate::words::{self, Piece};
use crate::{Diagnostic, Directive, DirectiveName, Heredoc, KeyValue, Lines, Span, Stages, Word};

/// The file as a list of instructions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ast {
    /// The text all spans refer to: the file, with what is not UTF-8 replaced.
    pub source: String,
    /// The character that escapes another and continues a line: `\` or `` ` ``.
    pub escape: char,
    /// The parser directives, in order.
    pub directives: Vec<Directive>,
    pub nodes: Vec<Node>,
    /// Where empty lines stand between continued lines.
    pub empty_continuations: Vec<EmptyContinuation>,
}

/// One instruction, split by the rule of its keyword.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub keyword: Word,
    /// The instruction with its continuation lines joined; not trimmed, without heredocs.
    pub original: String,
    pub flags: Vec<Word>,
    pub args: Args,
    pub heredocs: Vec<Heredoc>,
    pub comments: Vec<String>,
    /// The bytes of the instruction, its heredocs included.
    pub span: Span,
    pub lines: Lines,
}

/// The arguments of an instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Args {
    /// Words, or one text, by the rule of the keyword.
    Plain(Vec<Word>),
    /// The elements of a JSON array; behind the type for `HEALTHCHECK`.
    Exec(Vec<Word>),
    /// The pairs of `ENV` and `LABEL`.
    Pairs(Vec<KeyValue>),
    /// The instruction behind `ONBUILD`.
    Nested(Box<Node>),
}

impl Args {
    /// Tells whether the arguments are a JSON array.
    pub fn is_exec(&self) -> bool {
        matches!(self, Args::Exec(_))
    }

    /// Returns the words; none for pairs and a nested instruction.
    pub fn words(&self) -> &[Word] {
        match self {
            Args::Plain(words) | Args::Exec(words) => words,
            Args::Pairs(_) | Args::Nested(_) => &[],
        }
    }
}

/// Empty lines inside of a continued instruction, which the reference wants to refuse one day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmptyContinuation {
    /// The whole instruction, its lines joined.
    pub original: String,
    /// The last line of the instruction.
    pub lines: Lines,
    /// The empty lines, each with its line end.
    pub empty: Vec<Span>,
}

/// How many errors of a file are gathered.
pub(crate) const MOST_ERRORS: usize = 1000;

/// Parses a Dockerfile.
///
/// # Errors
///
/// All errors that can be found, those of the typed instructions too. The first is the one at which the reference
/// stops. An error may hide others in its own instruction.
pub fn parse(source: &[u8]) -> Result<Ast, Vec<Diagnostic>> {
    let text = crate::text_of(source);
    let mut parser = Parser::new(&text, source);
    parser.run();
    let Parser {
        escape,
        directives,
        nodes,
        empty_continuations,
        mut errors,
        ..
    } = parser;
    let ast = Ast {
        source: text.into_owned(),
        escape,
        directives,
        nodes,
        empty_continuations,
    };
    if errors.is_empty() {
        return Ok(ast);
    }
    errors.extend(crate::typed::instruction_errors(&ast).take(MOST_ERRORS));
    Err(errors)
}

impl Ast {
    /// Returns the stages.
    ///
    /// # Errors
    ///
    /// All errors, the first being the one at which the reference stops.
    pub fn stages(&self) -> Result<Stages, Vec<Diagnostic>> {
        crate::typed::stages(self)
    }
}

struct Parser<'a> {
    lines: LineReader<'a>,
    escape: char,
    directives: Vec<Directive>,
    reader: DirectiveReader,
    comments: Vec<String>,
    nodes: Vec<Node>,
    empty_continuations: Vec<EmptyContinuation>,
    errors: Vec<Diagnostic>,
}

impl<'a> Parser<'a> {
    fn new(source: &'a str, bytes: &[u8]) -> Self {
        Parser {
            lines: LineReader::new(source, bytes),
            escape: '\\',
            directives: Vec::new(),
            reader: DirectiveReader::new("#"),
            comments: Vec::new(),
            nodes: Vec::new(),
            empty_continuations: Vec::new(),
            errors: Vec::new(),
        }
    }

    fn run(&mut self) {
        while self.errors.len() < MOST_ERRORS
            && let Some((start, raw)) = self.lines.next_line()
        {
            let (start, raw) = match raw.strip_prefix('\u{feff}') {
                Some(rest) if self.lines.count == 1 => (start + raw.len() - rest.len(), rest),
                _ => (start, raw),
            };
            let line = trim_line_end(raw).trim_start();
            let start = start + (raw.len() - raw.trim_start().len()).min(raw.len());
            if !self.directive(line, start) {
                return;
            }
            if let Some(comment) = line.strip_prefix('#') {
                self.comment(raw, comment);
                continue;
            }
            self.instruction(line, start);
        }
        if self.nodes.is_empty() && self.errors.is_empty() {
            let error = Diagnostic::error(
                "no-instructions",
                "file with no instructions",
                Lines::at(self.lines.count),
            );
            self.errors
                .push(error.help("a Dockerfile begins with FROM"));
        }
        if self.lines.at_long_line() {
            let at = self.lines.position();
            let message = format!("dockerfile line greater than max allowed size of {MAX_LINE}");
            let error = Diagnostic::error("line-too-long", message, Lines::at(self.lines.count));
            self.errors.push(
                error
                    .label(Span::new(at, at), "this line")
                    .help("split the line with continuations"),
            );
        }
    }

    /// Reads a directive; returns false after an error, behind which nothing can be trusted.
    fn directive(&mut self, line: &str, start: usize) -> bool {
        let lines = Lines::at(self.lines.count);
        // The reference has not counted the line yet.
        let reported = Lines::at(self.lines.count - 1);
        match self.reader.read(line) {
            Ok(None) => {}
            Ok(Some((name, value, at))) => {
                let span = Span::new(start + at, start + at + value.len());
                self.directives.push(Directive {
                    name,
                    value: value.to_owned(),
                    lines,
                    span,
                });
                if name == DirectiveName::Escape {
                    match value {
                        "\\" => self.escape = '\\',
                        "`" => self.escape = '`',
                        _ => {
                            let message =
                                format!("invalid escape token '{value}' does not match ` or \\");
                            let error = Diagnostic::error("invalid-escape", message, reported);
                            self.errors.push(error.label(span, "neither ` nor \\"));
                            return false;
                        }
                    }
                }
            }
            Err(name) => {
                let message = format!("only one {} parser directive can be used", name.as_str());
                let mut error = Diagnostic::error("duplicate-directive", message, reported)
                    .label(Span::new(start, start + line.len()), "used again");
                if let Some(first) = self.directives.iter().find(|d| d.name == name) {
                    error = error.label(first.span, "first used here");
                }
                self.errors.push(error);
                return false;
            }
        }
        true
    }

    /// Remembers a comment for the instruction below it. An empty comment forgets those above; an empty line does not.
    fn comment(&mut self, raw: &str, comment: &str) {
        if self
            .directives
            .last()
            .is_some_and(|d| d.lines.first == self.lines.count)
        {
            return;
        }
        // Of an indented comment the reference cuts off the first blank, not the `#`.
        let indented = !raw.starts_with('#');
        let text = if indented {
            raw.chars()
                .next()
                .map_or("", |c| &raw[c.len_utf8()..])
                .trim()
        } else {
            comment.trim()
        };
        if text.is_empty() {
            self.comments.clear();
        } else {
            self.comments.push(text.to_owned());
        }
    }

    /// Reads the instruction that begins with `line`, through its last heredoc.
    fn instruction(&mut self, line: &str, start: usize) {
        let first = self.lines.count;
        let (text, mut continued) = strip_continuation(line, self.escape);
        if text.is_empty() && !continued {
            return;
        }
        let mut logical = LogicalLine::new(text, start);
        let mut end = start + line.len();
        let mut empty = Vec::new();
        while continued && let Some((start, raw)) = self.lines.next_line() {
            let line = trim_line_end(raw);
            match line.trim_start().as_bytes().first() {
                Some(b'#') => continue,
                None => {
                    empty.push(Span::new(start, start + raw.len()));
                    continue;
                }
                Some(_) => {}
            }
            let text;
            (text, continued) = strip_continuation(line, self.escape);
            logical.push(text, start);
            end = start + line.len();
        }
        let lines = Lines::new(first, self.lines.count);
        if !empty.is_empty() {
            let lines = Lines::at(lines.last);
            self.empty_continuations.push(EmptyContinuation {
                original: logical.text.to_string(),
                lines,
                empty,
            });
        }
        let comments = std::mem::take(&mut self.comments);
        let context = LineContext {
            line: &logical,
            escape: self.escape,
            lines,
            span: Span::new(start, end),
            depth: 0,
        };
        match context.node(0..logical.text.len()) {
            Ok(mut node) => {
                node.comments = comments;
                match self.heredocs(&logical.text, &mut node) {
                    Ok(()) => self.nodes.push(node),
                    Err(error) => self.errors.push(*error),
                }
            }
            Err(error) => self.errors.push(*error),
        }
    }

    /// Reads the heredocs an instruction asks for from the lines below it.
    fn heredocs(&mut self, line: &str, node: &mut Node) -> Result<(), Box<Diagnostic>> {
        if !node.takes_heredocs() || !line.contains("<<") {
            return Ok(());
        }
        let heads = heredoc::heads(line).map_err(|message| {
            let error = Diagnostic::error("invalid-heredoc", message, node.lines);
            Box::new(error.label(node.span, "in this instruction"))
        })?;
        for head in heads {
            let begin = self.lines.position();
            let Some((content, end)) = self.heredoc_content(&head) else {
                let lines = Lines::new(node.lines.first, self.lines.count);
                let error =
                    Diagnostic::error("unterminated-heredoc", "unterminated heredoc", lines);
                let error = error.label(node.span, "the heredoc is asked for here");
                return Err(Box::new(
                    error.help(format!("end it with a line that is just {}", head.name)),
                ));
            };
            let HeredocHead {
                name,
                fd,
                expand,
                chomp,
            } = head;
            let span = Span::new(begin, begin + content.len());
            let content = content.to_owned();
            node.heredocs.push(Heredoc {
                name,
                fd,
                expand,
                chomp,
                content,
                span,
            });
            node.lines.last = self.lines.count;
            node.span.end = end;
        }
        Ok(())
    }

    /// Passes over the lines of a heredoc and its end; returns the content and where the end ends.
    fn heredoc_content(&mut self, head: &HeredocHead) -> Option<(&'a str, usize)> {
        let begin = self.lines.position();
        while let Some((start, raw)) = self.lines.next_line() {
            let line = trim_line_end(raw);
            let word = if head.chomp {
                line.trim_start_matches('\t')
            } else {
                line
            };
            if word == head.name {
                return Some((self.lines.slice(begin, start), start + line.len()));
            }
        }
        None
    }
}

impl Node {
    /// Tells whether `<<` in the instruction begins a heredoc.
    fn takes_heredocs(&self) -> bool {
        let node = match (&self.args, Keyword::parse(&self.keyword.text)) {
            (Args::Nested(child), Some(Keyword::Onbuild)) => child,
            _ => self,
        };
        matches!(
            Keyword::parse(&node.keyword.text),
            Some(Keyword::Add | Keyword::Copy | Keyword::Run)
        ) && !node.args.is_exec()
    }
}

fn trim_line_end(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}

/// Takes the escape that continues a line off its end; tells whether there was one.
///
/// Blanks may follow it. An escape before it takes its meaning, however many there are.
fn strip_continuation(line: &str, escape: char) -> (&str, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(text) if !text.ends_with(escape) => (text, true),
        _ => (line, false),
    }
}

/// What is known of the instruction whose words are being split.
struct LineContext<'a> {
    line: &'a LogicalLine<'a>,
    escape: char,
    lines: Lines,
    span: Span,
    /// How many instructions this one stands in.
    depth: usize,
}

/// How deep instructions are looked into. Only one behind `ONBUILD` is allowed anyway.
const DEEPEST: usize = 16;

impl LineContext<'_> {
    /// Splits the instruction that stands in a range of the line.
    fn node(&self, range: Range<usize>) -> Result<Node, Box<Diagnostic>> {
        let original = &self.line.text[range.clone()];
        let trimmed = trim_range(original, 0..original.len());
        let (name, rest) = words::split_first(&original[trimmed.clone()]);
        let base = range.start + trimmed.start;
        let keyword = self.word(
            base,
            (original[trimmed.clone()][name.clone()].to_owned(), name),
        );
        let mut flags = Vec::new();
        let mut args = base + trimmed.len()..base + trimmed.len();
        if let Some(rest) = rest {
            let text = &original[trimmed][rest.clone()];
            let (found, at) = words::split_flags(text, self.escape);
            let start = base + rest.start;
            flags = found
                .into_iter()
                .map(|flag| self.word(start, flag))
                .collect();
            args = trim_range(&self.line.text, start + at..base + rest.end);
        }
        let args = self.args(Keyword::parse(&keyword.text), &keyword, args)?;
        Ok(Node {
            keyword,
            original: original.to_owned(),
            flags,
            args,
            heredocs: Vec::new(),
            comments: Vec::new(),
            span: self.span,
            lines: self.lines,
        })
    }

    /// Splits the arguments, which are trimmed, by the rule of the keyword.
    fn args(
        &self,
        keyword: Option<Keyword>,
        name: &Word,
        range: Range<usize>,
    ) -> Result<Args, Box<Diagnostic>> {
        let text = &self.line.text[range.clone()];
        let words = |pieces: Vec<Piece>| {
            pieces
                .into_iter()
                .map(|piece| self.word(range.start, piece))
                .collect()
        };
        let whole = |range: Range<usize>| {
            if range.is_empty() {
                Vec::new()
            } else {
                vec![self.word(0, (self.line.text[range.clone()].to_owned(), range))]
            }
        };
        match keyword {
            // What is no instruction has one empty argument, as the reference would have it.
            None => Ok(Args::Plain(vec![Word::new("", self.line.span(range))])),
            Some(Keyword::Add | Keyword::Copy | Keyword::Volume) => Ok(self
                .exec(range.clone())?
                .map_or_else(|| Args::Plain(words(words::split_blanks(text))), Args::Exec)),
            Some(Keyword::Cmd | Keyword::Entrypoint | Keyword::Run | Keyword::Shell) => Ok(self
                .exec(range.clone())?
                .map_or_else(|| Args::Plain(whole(range.clone())), Args::Exec)),
            Some(Keyword::Expose | Keyword::From) => {
                Ok(Args::Plain(words(words::split_blanks(text))))
            }
            Some(Keyword::Arg) => Ok(Args::Plain(words(words::split_quoted(text, self.escape)))),
            Some(Keyword::Env | Keyword::Label) => self.pairs(name, range),
            Some(Keyword::Maintainer | Keyword::StopSignal | Keyword::User | Keyword::Workdir) => {
                Ok(Args::Plain(whole(range.clone())))
            }
            Some(Keyword::Healthcheck) => self.healthcheck(range),
            Some(Keyword::Onbuild) if range.is_empty() || self.depth == DEEPEST => {
                Ok(Args::Plain(Vec::new()))
            }
            Some(Keyword::Onbuild) => {
                let inner = LineContext {
                    depth: self.depth + 1,
                    ..*self
                };
                Ok(Args::Nested(Box::new(inner.node(range)?)))
            }
        }
    }

    /// Reads the JSON form; none if the text is not a JSON array.
    fn exec(&self, range: Range<usize>) -> Result<Option<Vec<Word>>, Box<Diagnostic>> {
        match json::string_array(&self.line.text[range.clone()]) {
            Ok(strings) => Ok(Some(
                strings
                    .into_iter()
                    .map(|piece| self.word(range.start, piece))
                    .collect(),
            )),
            Err(NotStrings::NotArray) => Ok(None),
            Err(NotStrings::Element(element)) => {
                let message =
                    "when using JSON array syntax, arrays must be comprised of strings only";
                let error = Diagnostic::error("json-not-strings", message, self.lines);
                let span = self
                    .line
                    .span(range.start + element.start..range.start + element.end);
                Err(Box::new(
                    error
                        .label(span, "not a string")
                        .help("put it in double quotes"),
                ))
            }
        }
    }

    /// Reads `KEY=VALUE ...`, or the old `KEY VALUE`: which one is told by the first word.
    fn pairs(&self, keyword: &Word, range: Range<usize>) -> Result<Args, Box<Diagnostic>> {
        let text = &self.line.text[range.clone()];
        let pieces = words::split_quoted(text, self.escape);
        let Some((first, at)) = pieces.first() else {
            return Ok(Args::Pairs(Vec::new()));
        };
        if !first.contains('=') {
            let (key, value) = words::split_first(text);
            let Some(value) = value else {
                let name = keyword.text.to_uppercase();
                let error = Diagnostic::error(
                    "missing-value",
                    format!("{name} must have two arguments"),
                    self.lines,
                );
                let span = self.line.span(range.start + at.start..range.start + at.end);
                return Err(Box::new(
                    error
                        .label(span, "no value")
                        .help(format!("write {name} {first}=VALUE")),
                ));
            };
            let key = self.word(range.start, (text[key.clone()].to_owned(), key));
            let value = self.word(range.start, (text[value.clone()].to_owned(), value));
            return Ok(Args::Pairs(vec![KeyValue {
                key,
                value,
                legacy: true,
            }]));
        }
        let pair = |(word, at): Piece| {
            let span = self.line.span(range.start + at.start..range.start + at.end);
            let Some((key, value)) = word.split_once('=') else {
                let message = format!(
                    "Syntax error - can't find = in {}. Must be of the form: name=value",
                    quote(&word)
                );
                let error = Diagnostic::error("missing-equals", message, self.lines)
                    .label(span, "no = in this word");
                return Err(Box::new(error.help("a value with spaces needs quotes")));
            };
            // A word is as long as its text, but for an escape dropped at its end.
            let middle = range.start + at.start + key.len();
            let key = Word::new(key, self.line.span(range.start + at.start..middle));
            let value = Word::new(value, self.line.span(middle + 1..range.start + at.end));
            Ok(KeyValue {
                key,
                value,
                legacy: false,
            })
        };
        Ok(Args::Pairs(
            pieces.into_iter().map(pair).collect::<Result<_, _>>()?,
        ))
    }

    /// Reads the type of a health check, then a command.
    fn healthcheck(&self, range: Range<usize>) -> Result<Args, Box<Diagnostic>> {
        let text = &self.line.text[range.clone()];
        // The reference looks at bytes here: no wider blank ends the type.
        let is_space = |c: char| c.is_ascii_whitespace() || c == '\x0b';
        let kind = text.find(is_space).unwrap_or(text.len());
        if kind == 0 {
            return Ok(Args::Plain(Vec::new()));
        }
        let mut words = vec![self.word(range.start, (text[..kind].to_owned(), 0..kind))];
        let rest = &text[kind..];
        let gap = rest.len() - rest.trim_start_matches(is_space).len();
        let command = range.start + kind + gap..range.end;
        if command.is_empty() {
            return Ok(Args::Plain(words));
        }
        if let Some(exec) = self.exec(command.clone())? {
            words.extend(exec);
            return Ok(Args::Exec(words));
        }
        words.push(self.word(0, (self.line.text[command.clone()].to_owned(), command)));
        Ok(Args::Plain(words))
    }

    fn word(&self, base: usize, (text, range): Piece) -> Word {
        Word::new(text, self.line.span(base + range.start..base + range.end))
    }
}

/// Returns the range without white space at its ends.
fn trim_range(text: &str, range: Range<usize>) -> Range<usize> {
    let part = &text[range.clone()];
    let start = range.start + (part.len() - part.trim_start().len());
    start..start + part.trim().len()
}
