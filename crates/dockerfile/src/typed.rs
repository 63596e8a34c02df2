//! From split instructions to typed ones: which words, flags and forms each instruction takes.

mod commands;
mod files;

use crate::flags::{FlagKind, FlagSpecs, Flags};
use crate::go::equal_fold;
use crate::keyword::Keyword;
use crate::parser::{Args, Ast, MOST_ERRORS, Node};
use crate::quote::quote;
use crate::{
    Arg, ArgItem, Cmd, Diagnostic, Entrypoint, Env, Expose, Header, Instruction, Kind, LabelSet,
    Lines, Maintainer, MetaArg, Stage, Stages, StopSignal, User, Volume, Word, Workdir, suggest,
};

type Result<T, E = Box<Diagnostic>> = std::result::Result<T, E>;

/// What an instruction is: the begin of a stage, or a part of one.
#[derive(Debug)]
pub(crate) enum Typed {
    Stage(Stage),
    Instruction(Instruction),
}

/// Gathers the instructions of a file into stages, or all their errors.
pub(crate) fn stages(ast: &Ast) -> Result<Stages, Vec<Diagnostic>> {
    let mut stages = Stages::default();
    let mut errors = Vec::new();
    for node in &ast.nodes {
        match instruction(node) {
            Ok(Typed::Stage(stage)) => stages.stages.push(stage),
            Ok(Typed::Instruction(instruction)) => {
                if let Err(error) = stages.add(instruction)
                    // Without the FROM, which may itself be wrong, this is said once.
                    && errors.is_empty()
                {
                    errors.push(*error);
                }
            }
            Err(error) => errors.push(*error),
        }
        if errors.len() == MOST_ERRORS {
            break;
        }
    }
    if errors.is_empty() {
        Ok(stages)
    } else {
        Err(errors)
    }
}

/// Returns the errors of each instruction taken alone.
pub(crate) fn instruction_errors(ast: &Ast) -> impl Iterator<Item = Diagnostic> {
    ast.nodes
        .iter()
        .filter_map(|node| instruction(node).err())
        .map(|error| *error)
}

impl Stages {
    /// Adds an instruction to the last stage.
    pub(crate) fn add(&mut self, instruction: Instruction) -> Result<()> {
        match (self.stages.last_mut(), instruction) {
            (Some(stage), instruction) => stage.instructions.push(instruction),
            (
                None,
                Instruction {
                    header,
                    kind: Kind::Arg(arg),
                },
            ) => self.meta_args.push(MetaArg { header, arg }),
            (None, Instruction { header, .. }) => {
                let message = "no build stage in current context";
                let error = Diagnostic::error("no-stage", message, header.lines);
                let error = error.label(header.keyword.span, "before any FROM");
                return Err(Box::new(
                    error.note("only ARG may stand before the first FROM"),
                ));
            }
        }
        Ok(())
    }
}

/// Parses an instruction an image brings along for the builds that use it (`ONBUILD`).
///
/// It gets the `lines` of the `FROM` that names the image; its spans are those of `trigger`.
///
/// # Errors
///
/// Whatever is wrong with the text, and more than one instruction.
pub fn parse_trigger(trigger: &str, lines: Lines) -> Result<Instruction> {
    let at_from = |mut error: Diagnostic| {
        error.lines = vec![lines];
        error.labels.clear();
        Box::new(error.note(format!("in the ONBUILD trigger {}", quote(trigger))))
    };
    let mut ast = match crate::parse(trigger.as_bytes()) {
        Ok(ast) => ast,
        Err(errors) => {
            let first = errors.into_iter().next();
            return Err(at_from(first.unwrap_or_else(|| not_single(lines))));
        }
    };
    let (Some(mut node), true) = (ast.nodes.pop(), ast.nodes.is_empty()) else {
        return Err(at_from(not_single(lines)));
    };
    node.lines = lines;
    match instruction(&node) {
        Ok(Typed::Instruction(instruction)) => Ok(instruction),
        Ok(Typed::Stage(_)) => {
            let message = "*instructions.Stage is not a command type";
            Err(at_from(Diagnostic::error(
                "invalid-trigger",
                message,
                lines,
            )))
        }
        Err(error) => Err(at_from(*error)),
    }
}

fn not_single(lines: Lines) -> Diagnostic {
    Diagnostic::error(
        "invalid-trigger",
        "onbuild trigger should be a single expression",
        lines,
    )
}

/// Reads one instruction.
pub(crate) fn instruction(node: &Node) -> Result<Typed> {
    let reader = Reader { node };
    let kind = match Keyword::parse(&node.keyword.text) {
        Some(Keyword::From) => return Ok(Typed::Stage(reader.from()?)),
        Some(Keyword::Add) => Kind::Add(reader.add()?),
        Some(Keyword::Arg) => Kind::Arg(reader.arg()?),
        Some(Keyword::Cmd) => Kind::Cmd(Cmd {
            command: reader.command()?,
        }),
        Some(Keyword::Copy) => Kind::Copy(reader.copy()?),
        Some(Keyword::Entrypoint) => Kind::Entrypoint(Entrypoint {
            command: reader.command()?,
        }),
        Some(Keyword::Env) => Kind::Env(Env {
            pairs: reader.pairs("ENV")?,
        }),
        Some(Keyword::Expose) => Kind::Expose(reader.expose()?),
        Some(Keyword::Healthcheck) => Kind::Healthcheck(reader.healthcheck()?),
        Some(Keyword::Label) => Kind::Label(LabelSet {
            pairs: reader.pairs("LABEL")?,
        }),
        Some(Keyword::Maintainer) => Kind::Maintainer(Maintainer {
            name: reader.single("MAINTAINER")?,
        }),
        Some(Keyword::Onbuild) => Kind::Onbuild(reader.onbuild()?),
        Some(Keyword::Run) => Kind::Run(reader.run()?),
        Some(Keyword::Shell) => Kind::Shell(reader.shell()?),
        // Flags of STOPSIGNAL and ARG are passed over without a look.
        Some(Keyword::StopSignal) => Kind::StopSignal(StopSignal {
            signal: reader.one_word("STOPSIGNAL")?,
        }),
        Some(Keyword::User) => Kind::User(User {
            user: reader.single("USER")?,
        }),
        Some(Keyword::Volume) => Kind::Volume(reader.volume()?),
        Some(Keyword::Workdir) => Kind::Workdir(Workdir {
            path: reader.single("WORKDIR")?,
        }),
        None => return Err(reader.unknown()),
    };
    Ok(Typed::Instruction(Instruction {
        header: reader.header(),
        kind,
    }))
}

/// Reads the words of one instruction.
struct Reader<'a> {
    node: &'a Node,
}

const NO_FLAGS: FlagSpecs = &[];
const FROM_FLAGS: FlagSpecs = &[("platform", FlagKind::Value)];

impl Reader<'_> {
    fn header(&self) -> Header {
        let Node {
            keyword,
            original,
            comments,
            span,
            lines,
            ..
        } = self.node;
        Header {
            keyword: keyword.clone(),
            code: original.trim().to_owned(),
            span: *span,
            lines: *lines,
            comments: comments.clone(),
        }
    }

    fn error(&self, code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(code, message, self.node.lines)
    }

    fn flags(&self, specs: FlagSpecs) -> Result<Flags> {
        Flags::parse(&self.node.flags, specs, self.node.lines)
    }

    fn words(&self) -> &[Word] {
        self.node.args.words()
    }

    fn unknown(&self) -> Box<Diagnostic> {
        let keyword = &self.node.keyword;
        let lower = keyword.text.to_lowercase();
        let options: Vec<String> = Keyword::ALL
            .iter()
            .map(|keyword| keyword.as_str().to_lowercase())
            .collect();
        // In upper case for a word in upper case, in lower case for any other.
        let is_upper = keyword.text != lower && keyword.text == keyword.text.to_uppercase();
        let meant = suggest::nearest(&lower, options.iter().map(String::as_str)).map(|word| {
            if is_upper {
                word.to_uppercase()
            } else {
                word.to_owned()
            }
        });
        let error = self.error(
            "unknown-instruction",
            format!("unknown instruction: {}", keyword.text),
        );
        Box::new(
            error
                .label(keyword.span, "no such instruction")
                .suggest(meant),
        )
    }

    fn at_least_one(&self, name: &str) -> Box<Diagnostic> {
        let error = self.error(
            "missing-argument",
            format!("{name} requires at least one argument"),
        );
        let error = error.label(self.node.keyword.span, "has no argument");
        Box::new(match usage(name) {
            Some(usage) => error.help(format!("write {usage}")),
            None => error,
        })
    }

    /// Returns the one word of an instruction.
    fn one_word(&self, name: &str) -> Result<Word> {
        match self.words() {
            [word] => Ok(word.clone()),
            _ => {
                let error = self.error(
                    "missing-argument",
                    format!("{name} requires exactly one argument"),
                );
                let (span, label) = match self.words() {
                    [_, second, ..] => (second.span, "one too many"),
                    _ => (self.node.keyword.span, "has no argument"),
                };
                let error = error.label(span, label);
                Err(Box::new(match usage(name) {
                    Some(usage) => error.help(format!("write {usage}")),
                    None => error,
                }))
            }
        }
    }

    /// Returns the one word of an instruction that has no flags.
    fn single(&self, name: &str) -> Result<Word> {
        let word = self.one_word(name)?;
        self.flags(NO_FLAGS)?;
        Ok(word)
    }

    fn from(&self) -> Result<Stage> {
        let words = self.words();
        let name = match words {
            [_, keyword, name] if equal_fold(&keyword.text, "as") => {
                let lower = name.text.to_lowercase();
                if !is_stage_name(&lower) {
                    let message = format!(
                        "invalid name for build stage: {}, name can't start with a number or contain symbols",
                        quote(&name.text)
                    );
                    let error = self
                        .error("invalid-stage-name", message)
                        .label(name.span, "not a stage name");
                    let help = "a stage name is a letter, then letters, digits, `-`, `_` and `.`";
                    return Err(Box::new(error.help(help)));
                }
                Some(Word::new(lower, name.span))
            }
            [_] => None,
            _ => {
                let error = self.error(
                    "invalid-from",
                    "FROM requires either one or three arguments",
                );
                let span = words
                    .iter()
                    .fold(self.node.keyword.span, |span, word| span.to(word.span));
                let error = error.label(span, format!("{} arguments", words.len()));
                return Err(Box::new(
                    error.help("write FROM IMAGE or FROM IMAGE AS NAME"),
                ));
            }
        };
        let flags = self.flags(FROM_FLAGS)?;
        let header = self.header();
        let doc = name
            .as_ref()
            .and_then(|name| doc_comment(&header.comments, &name.text));
        Ok(Stage {
            name,
            base: words[0].clone(),
            platform: flags.value("platform"),
            doc,
            header,
            instructions: Vec::new(),
        })
    }

    fn arg(&self) -> Result<Arg> {
        if self.words().is_empty() {
            return Err(self.at_least_one("ARG"));
        }
        let item = |word: &Word| {
            let (key, value) = match word.text.split_once('=') {
                None => (word.clone(), None),
                Some(("", _)) => return Err(self.blank_name("ARG", word)),
                Some((key, value)) => {
                    let (key_span, value_span) = word.split_span(key.len(), 1);
                    (Word::new(key, key_span), Some(Word::new(value, value_span)))
                }
            };
            let doc = doc_comment(&self.node.comments, &key.text);
            Ok(ArgItem { key, value, doc })
        };
        Ok(Arg {
            args: self.words().iter().map(item).collect::<Result<_>>()?,
        })
    }

    fn blank_name(&self, name: &str, word: &Word) -> Box<Diagnostic> {
        let error = self.error("blank-name", format!("{name} names can not be blank"));
        Box::new(error.label(word.span, "no name before the ="))
    }

    fn pairs(&self, name: &str) -> Result<Vec<crate::KeyValue>> {
        self.flags(NO_FLAGS)?;
        let Args::Pairs(pairs) = &self.node.args else {
            return Err(self.at_least_one(name));
        };
        if pairs.is_empty() {
            return Err(self.at_least_one(name));
        }
        match pairs.iter().find(|pair| pair.key.text.is_empty()) {
            Some(pair) => Err(self.blank_name(name, &pair.value)),
            None => Ok(pairs.clone()),
        }
    }

    fn expose(&self) -> Result<Expose> {
        if self.words().is_empty() {
            return Err(self.at_least_one("EXPOSE"));
        }
        self.flags(NO_FLAGS)?;
        let mut ports = self.words().to_vec();
        ports.sort_by(|a, b| a.text.cmp(&b.text));
        Ok(Expose { ports })
    }

    fn volume(&self) -> Result<Volume> {
        if self.words().is_empty() {
            return Err(self.at_least_one("VOLUME"));
        }
        self.flags(NO_FLAGS)?;
        let path = |word: &Word| match word.text.trim() {
            "" => {
                let error = self.error(
                    "blank-volume",
                    "VOLUME specified can not be an empty string",
                );
                Err(Box::new(error.label(word.span, "empty")))
            }
            text => Ok(Word::new(text, word.span)),
        };
        Ok(Volume {
            paths: self.words().iter().map(path).collect::<Result<_>>()?,
        })
    }
}

/// Tells whether a name, in lower case, may name a stage.
fn is_stage_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.'))
}

/// Returns the description of a name from the comments above its definition: `NAME description`.
fn doc_comment(comments: &[String], name: &str) -> Option<String> {
    let description = |line: &String| {
        line.strip_prefix(name)?
            .strip_prefix(' ')
            .map(str::to_owned)
    };
    comments
        .iter()
        .find_map(description)
        .filter(|description| !description.is_empty())
}

/// Returns how an instruction is written, for who left its arguments out.
fn usage(name: &str) -> Option<&'static str> {
    Some(match name {
        "ARG" => "ARG NAME or ARG NAME=DEFAULT",
        "ENV" => "ENV NAME=VALUE",
        "EXPOSE" => "EXPOSE PORT, such as EXPOSE 8080",
        "FROM" => "FROM IMAGE, such as FROM debian:13",
        "HEALTHCHECK" => "HEALTHCHECK CMD COMMAND, or HEALTHCHECK NONE",
        "LABEL" => "LABEL NAME=VALUE",
        "ONBUILD" => "ONBUILD INSTRUCTION, such as ONBUILD COPY . /src",
        "SHELL" => "SHELL [\"program\", \"argument\"]",
        "STOPSIGNAL" => "STOPSIGNAL SIGNAL, such as STOPSIGNAL SIGTERM",
        "USER" => "USER NAME[:GROUP]",
        "VOLUME" => "VOLUME PATH",
        "WORKDIR" => "WORKDIR /PATH",
        _ => return None,
    })
}
