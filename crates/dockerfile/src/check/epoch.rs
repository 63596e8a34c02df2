//! `SOURCE_DATE_EPOCH` as an argument: a number, the context, or a stage whose one remote file gives the time.

use std::collections::BTreeMap;

use crate::expand::Expander;
use crate::git::{GitRef, GitRefError, is_http_source};
use crate::go::{equal_fold, parse_i64};
use crate::{Add, Arg, Kind, Stage, Stages, Word, quote};

use super::scope::Scope;
use super::stages::Globals;
use super::{CheckOptions, Result, WithLines, expansion_failure, failure};

const NAME: &str = "SOURCE_DATE_EPOCH";

/// Checks the time, and makes a number of it in the variables.
pub(super) fn resolve(
    stages: &Stages,
    globals: &mut Globals,
    expander: &Expander,
    options: &CheckOptions<'_>,
) -> Result<()> {
    let global = globals.scope.value(NAME).filter(|value| !value.is_empty());
    let Some(value) = options.build_args.get(NAME).map(String::as_str).or(global) else {
        return Ok(());
    };
    let seconds = match parse_i64(value) {
        Ok(seconds) => Some(seconds),
        Err(_) if value.is_empty() => None,
        Err(_) => {
            check_source(value, stages, globals, expander, options)?;
            None
        }
    };
    // A time that is only known when something was fetched is not known here.
    match seconds {
        _ if globals.scope.value(NAME).is_none() => {}
        Some(seconds) => globals.scope.set(NAME, seconds.to_string()),
        None => globals.scope.remove(NAME),
    }
    Ok(())
}

fn check_source(
    value: &str,
    stages: &Stages,
    globals: &Globals,
    expander: &Expander,
    options: &CheckOptions<'_>,
) -> Result<()> {
    if value == "context" || options.images.named_context(value).is_some() {
        return Ok(());
    }
    let Some(stage) = stages
        .stages
        .iter()
        .find(|stage| equal_fold(stage.name_str(), value))
    else {
        let error = failure(
            "invalid-epoch",
            format!("invalid SOURCE_DATE_EPOCH: {value}"),
        );
        return Err(Box::new(error.help(
            "give seconds since 1970, `context`, or the name of a stage",
        )));
    };
    let mut scope = globals.scope.clone();
    scope.remove(NAME);
    check_stage(stage, scope, expander, options.build_args).at(stage.header.lines)
}

/// Checks that a stage is nothing but one remote file or repository.
fn check_stage(
    stage: &Stage,
    mut scope: Scope,
    expander: &Expander,
    given: &BTreeMap<String, String>,
) -> Result<()> {
    let base = expander.word(&stage.base.text, &scope).map_err(|error| {
        let mut error = expansion_failure(&error, &stage.base);
        error.message = format!(
            "failed to process source stage base name {}: {}",
            quote(&stage.base.text),
            error.message
        );
        error
    })?;
    if base.text != "scratch" {
        let error = failure(
            "invalid-epoch",
            "SOURCE_DATE_EPOCH stage must use FROM scratch",
        );
        return Err(Box::new(error.label(stage.base.span, "not scratch")));
    }
    let not_one = || {
        let error = failure(
            "invalid-epoch",
            "SOURCE_DATE_EPOCH stage must contain exactly one remote ADD",
        );
        Box::new(error.label(stage.header.span, "this stage"))
    };
    let mut is_found = false;
    for instruction in &stage.instructions {
        match &instruction.kind {
            Kind::Arg(arg) => set_args(arg, &mut scope, expander, given)?,
            Kind::Add(_) if is_found => return Err(not_one()),
            Kind::Add(add) => {
                check_add(add, &scope, expander)?;
                is_found = true;
            }
            _ => {
                let keyword = &instruction.header.keyword;
                let message = format!(
                    "SOURCE_DATE_EPOCH stage does not meet source-only requirements: unsupported {} instruction",
                    keyword.text
                );
                return Err(Box::new(
                    failure("invalid-epoch", message).label(keyword.span, "not allowed here"),
                ));
            }
        }
    }
    if is_found { Ok(()) } else { Err(not_one()) }
}

fn set_args(
    arg: &Arg,
    scope: &mut Scope,
    expander: &Expander,
    given: &BTreeMap<String, String>,
) -> Result<()> {
    for item in &arg.args {
        let value = match (given.get(&item.key.text), &item.value) {
            (Some(value), _) => value.clone(),
            (None, Some(word)) => expand(word, scope, expander)?,
            (None, None) => continue,
        };
        scope.set(&item.key.text, value);
    }
    Ok(())
}

fn check_add(add: &Add, scope: &Scope, expander: &Expander) -> Result<()> {
    let ([word], true) = (add.sources.as_slice(), add.contents.is_empty()) else {
        let message = "SOURCE_DATE_EPOCH stage must contain exactly one remote ADD source";
        return Err(Box::new(
            failure("invalid-epoch", message).label(add.dest.span, "of this ADD"),
        ));
    };
    let source = expand(word, scope, expander)?;
    let fail = |message: String| {
        Box::new(failure("invalid-epoch", message).label(word.span, "this source"))
    };
    if is_http_source(&source) {
        if let Some(checksum) = &add.checksum {
            let text = expand(checksum, scope, expander)?;
            super::copy::check_digest(&text).map_err(fail)?;
        }
        return Ok(());
    }
    match GitRef::parse(&source) {
        Ok(git) if !git.is_like_local => add.checksum.as_ref().map_or(Ok(()), |checksum| {
            expand(checksum, scope, expander).map(drop)
        }),
        Err(GitRefError::Query { message }) => Err(fail(message)),
        _ => Err(fail(
            "SOURCE_DATE_EPOCH stage source must be a single HTTP(S) or Git ADD".to_owned(),
        )),
    }
}

fn expand(word: &Word, scope: &Scope, expander: &Expander) -> Result<String> {
    expander
        .word(&word.text, scope)
        .map(|expansion| expansion.text)
        .map_err(|error| expansion_failure(&error, word))
}
