//! `SOURCE_DATE_EPOCH`: a number, or a source whose time is taken.

use std::borrow::Cow;

use dockerfile::{Kind, Lines};
use llb::{Op, SourceOp, attr};

use super::context::{http, parse_git};
use super::{Pass, SCRATCH};
use crate::error::{Outcome, Stop, error, nowhere};
use crate::git::git_source;
use crate::state::Variables;
use crate::{Answers, MainContext, NamedContext, Request, SourceRequest};

pub(super) const NAME: &str = "SOURCE_DATE_EPOCH";

impl Pass<'_> {
    /// Finds the time all files and history entries get, and puts it in place of what names it.
    pub(super) fn resolve_epoch(&mut self, answers: &Answers) -> Result<(), Stop> {
        let given = self.build_args.get(NAME).map(String::as_str);
        let global = || self.global.value(NAME).filter(|value| !value.is_empty());
        let Some(value) = given.or_else(global).map(str::to_owned) else {
            return Ok(());
        };
        self.epoch = match (value.as_str(), value.parse()) {
            ("", _) => None,
            (_, Ok(seconds)) => Some(seconds),
            (value, Err(_)) => self.source_time(value, answers)?,
        };
        let text = self.epoch.map(|seconds| seconds.to_string());
        if self.build_args.contains_key(NAME) {
            let mut args = self.build_args.clone().into_owned();
            match &text {
                Some(text) => args.insert(NAME.to_owned(), text.clone()),
                None => args.remove(NAME),
            };
            self.build_args = Cow::Owned(args);
        }
        if self.global.value(NAME).is_some() {
            match &text {
                Some(text) => self.global.set(NAME, text),
                None => self.global.remove(NAME),
            }
        }
        Ok(())
    }

    fn source_time(&mut self, value: &str, answers: &Answers) -> Result<Option<i64>, Stop> {
        let (name, source) = match self.epoch_source(value)? {
            Some(found) => found,
            None => return Ok(None),
        };
        let Some(SourceOp { identifier, attrs }) = source else {
            return Ok(None);
        };
        let request = SourceRequest {
            identifier,
            attrs,
            name,
        };
        match answers.source_times.get(&request) {
            Some(Ok(time)) => Ok(*time),
            Some(Err(problem)) => {
                let message = format!("failed to find the time of {value}: {problem}");
                Err(nowhere("source-date-epoch", message).into())
            }
            None => {
                self.requests.insert(Request::SourceTime(request));
                Err(Stop::Unanswered)
            }
        }
    }

    /// Returns the source that a value names, if it has a time, and the name to show for it.
    fn epoch_source(&mut self, value: &str) -> Outcome<Option<(String, Option<SourceOp>)>> {
        if value == "context" {
            let source = match &self.options.context {
                MainContext::Local { .. } | MainContext::Graph(_) => None,
                MainContext::Git { url, .. } => parse_git(url, Lines::default())?
                    .map(|git| git_source(&git, false, &git.checksum)),
                MainContext::HttpArchive { url } | MainContext::HttpFile { url } => {
                    Some(source_of(http(url, "context", llb::Metadata::default()).op))
                }
            };
            let name = "[internal] resolve main build context metadata".to_owned();
            return Ok(Some((name, source)));
        }
        if let Some(key) = self
            .named_context(value, None, Lines::default())?
            .map(str::to_owned)
        {
            let source = match self.options.named_contexts.get(&key) {
                Some(NamedContext::Url(url)) => match parse_git(url, Lines::default())? {
                    Some(git) => Some(git_source(&git, false, &git.checksum)),
                    None => Some(source_of(http(url, "context", llb::Metadata::default()).op)),
                },
                _ => None,
            };
            let name = format!("[internal] resolve {NAME} named context {value}");
            return Ok(Some((name, source)));
        }
        let stages = self.stages;
        let wanted = value.to_lowercase();
        let stage = stages
            .stages
            .iter()
            .find(|stage| stage.name_str().to_lowercase() == wanted);
        let Some(stage) = stage.filter(|stage| !stage.name_str().is_empty()) else {
            return Err(nowhere(
                "source-date-epoch",
                format!("invalid {NAME}: {value}"),
            ));
        };
        let source = self.stage_source(stage)?;
        let name = format!(
            "[internal] resolve {NAME} source stage {}",
            stage.name_str()
        );
        Ok(Some((name, Some(source))))
    }

    /// Returns the one source of a stage that does nothing but add it.
    fn stage_source(&self, stage: &dockerfile::Stage) -> Outcome<SourceOp> {
        let lines = stage.header.lines;
        let wrong = |message: String| error("source-date-epoch", message, lines);
        let one = || wrong(format!("{NAME} stage must contain exactly one remote ADD"));
        let mut variables = self.global.clone();
        variables.remove(NAME);
        if self.expand(&stage.base, &variables, lines)? != SCRATCH {
            return Err(wrong(format!("{NAME} stage must use FROM scratch")));
        }
        let mut source = None;
        for instruction in &stage.instructions {
            match &instruction.kind {
                Kind::Arg(arg) => {
                    for item in &arg.args {
                        let value = match (self.build_args.get(&item.key.text), &item.value) {
                            (Some(given), _) => given.clone(),
                            (None, Some(default)) => self.expand(default, &variables, lines)?,
                            (None, None) => continue,
                        };
                        variables.set(&item.key.text, &value);
                    }
                }
                Kind::Add(_) if source.is_some() => return Err(one()),
                Kind::Add(add) => source = Some(self.added_source(add, &variables, lines)?),
                _ => {
                    let name = &instruction.header.keyword;
                    return Err(wrong(format!(
                        "{NAME} stage does not meet source-only requirements: unsupported {name} instruction"
                    )));
                }
            }
        }
        source.ok_or_else(one)
    }

    fn added_source(
        &self,
        add: &dockerfile::Add,
        variables: &Variables,
        lines: Lines,
    ) -> Outcome<SourceOp> {
        let wrong = |message: String| error("source-date-epoch", message, lines);
        let ([source], true) = (add.sources.as_slice(), add.contents.is_empty()) else {
            return Err(wrong(format!(
                "{NAME} stage must contain exactly one remote ADD source"
            )));
        };
        let text = self.expand(source, variables, lines)?;
        let checksum = match &add.checksum {
            Some(checksum) => self.expand(checksum, variables, lines)?,
            None => String::new(),
        };
        if let Some(git) = parse_git(&text, lines)?.filter(|git| !git.is_like_local) {
            let keep = add.keep_git_dir == Some(true) || git.keep_git_dir == Some(true);
            let checksum = if checksum.is_empty() {
                git.checksum.clone()
            } else {
                checksum
            };
            return Ok(git_source(&git, keep, &checksum));
        }
        if !text.starts_with("http://") && !text.starts_with("https://") {
            return Err(wrong(format!(
                "{NAME} stage source must be a single HTTP(S) or Git ADD"
            )));
        }
        let filename = crate::dispatch::file_name(&text);
        let mut source = source_of(http(&text, &filename, llb::Metadata::default()).op);
        if !checksum.is_empty() {
            source
                .attrs
                .insert(attr::HTTP_CHECKSUM.to_owned(), checksum);
        }
        Ok(source)
    }
}

fn source_of(op: Op) -> SourceOp {
    match op {
        Op::Source(source) => source,
        _ => SourceOp::default(),
    }
}
