//! The rules that look at the text alone.

use std::collections::BTreeMap;

use crate::keyword::Keyword;
use crate::parser::{Ast, MOST_ERRORS, Node};
use crate::typed::{self, Typed};
use crate::{Diagnostic, Edit, Header, Kind, Severity, Stages, Word, quote};

use super::config::Linter;
use super::fix::maintainer_as_label;
use super::{Rule, warning};

/// Names a stage should not have: they mean something else.
const RESERVED: [&str; 2] = ["context", "scratch"];

/// Gathers the stages and checks each instruction on the way, up to the first that is wrong.
pub(super) fn stages(ast: &Ast, linter: &mut Linter) -> Result<Stages, Vec<Diagnostic>> {
    check_continuations(ast, linter);
    let mut stages = Stages::default();
    for (i, node) in ast.nodes.iter().enumerate() {
        before_reading(node, ast.escape, linter);
        let added = typed::instruction(node).and_then(|typed| {
            check_definition(&typed, node, linter);
            match typed {
                Typed::Stage(stage) => {
                    stages.stages.push(stage);
                    Ok(())
                }
                Typed::Instruction(instruction) => stages.add(instruction),
            }
        });
        if let Err(error) = added {
            let rest = ast.nodes[i + 1..]
                .iter()
                .filter_map(|node| typed::instruction(node).err());
            let all = std::iter::once(error).chain(rest).take(MOST_ERRORS);
            return Err(all.map(|error| *error).collect());
        }
    }
    Ok(stages)
}

/// Checks each instruction of a file whose stages are known.
pub(super) fn check_nodes(ast: &Ast, linter: &mut Linter) {
    check_continuations(ast, linter);
    for node in &ast.nodes {
        before_reading(node, ast.escape, linter);
        // Only what stands below a comment is read again: few instructions do.
        if !node.comments.is_empty()
            && let Ok(typed) = typed::instruction(node)
        {
            check_definition(&typed, node, linter);
        }
    }
}

fn check_continuations(ast: &Ast, linter: &mut Linter) {
    for place in &ast.empty_continuations {
        linter.warn(Rule::NoEmptyContinuation, &[], || {
            let mut warning = Diagnostic::error(
                Rule::NoEmptyContinuation.name(),
                "Empty continuation line",
                place.lines,
            );
            warning.severity = Severity::Warning;
            place.empty.iter().fold(warning, |warning, span| {
                warning
                    .label(*span, "empty line")
                    .edits([Edit::new(*span, "")])
            })
        });
    }
}

/// Checks the description of what an instruction defines.
fn check_definition(typed: &Typed, node: &Node, linter: &mut Linter) {
    match typed {
        Typed::Stage(stage) => {
            if let Some(name) = &stage.name {
                check_description("FROM", std::slice::from_ref(name), node, linter);
            }
        }
        Typed::Instruction(instruction) => {
            if let Kind::Arg(arg) = &instruction.kind {
                let keys: Vec<Word> = arg.args.iter().map(|arg| arg.key.clone()).collect();
                check_description("ARG", &keys, node, linter);
            }
        }
    }
}

/// Checks what the reference looks at before it reads an instruction's arguments.
fn before_reading(node: &Node, escape: char, linter: &mut Linter) {
    let words = node.args.words();
    match (Keyword::parse(&node.keyword.text), words) {
        (Some(Keyword::Maintainer), _) => {
            linter.warn(Rule::MaintainerDeprecated, &node.comments, || {
                let message =
                    "Maintainer instruction is deprecated in favor of using label".to_owned();
                warning(
                    Rule::MaintainerDeprecated,
                    message,
                    node.lines,
                    &node.keyword,
                    "deprecated",
                )
                .help("use LABEL org.opencontainers.image.authors=\"...\"")
                .edits(
                    words
                        .first()
                        .map(|name| maintainer_as_label(&node.keyword, name, escape)),
                )
            })
        }
        (Some(Keyword::From), [_, keyword, name, rest @ ..]) => {
            let lower = name.text.to_lowercase();
            if rest.is_empty() && name.text != lower {
                linter.warn(Rule::StageNameCasing, &node.comments, || {
                    let message = format!("Stage name '{}' should be lowercase", name.text);
                    warning(
                        Rule::StageNameCasing,
                        message,
                        node.lines,
                        name,
                        "not in lower case",
                    )
                    .help(format!("write {lower}"))
                    .edits([Edit::new(name.span, lower)])
                });
            }
            if let Some(expect) = case_of_from(&node.keyword.text, &keyword.text)
                .filter(|expect| *expect != keyword.text)
            {
                linter.warn(Rule::FromAsCasing, &node.comments, || {
                    let message = format!(
                        "'{}' and '{}' keywords' casing do not match",
                        keyword.text, node.keyword.text
                    );
                    warning(
                        Rule::FromAsCasing,
                        message,
                        node.lines,
                        keyword,
                        "in another case than FROM",
                    )
                    .help(format!("write {expect}"))
                    .edits([Edit::new(keyword.span, expect)])
                });
            }
        }
        _ => {}
    }
}

/// Returns a word in the case of the `FROM` before it; none if that has no one case.
pub(crate) fn case_of_from(from: &str, word: &str) -> Option<String> {
    if from == from.to_lowercase() {
        return Some(word.to_lowercase());
    }
    (from == from.to_uppercase()).then(|| word.to_uppercase())
}

/// Checks that a comment right above a definition describes it.
fn check_description(instruction: &str, keys: &[Word], node: &Node, linter: &mut Linter) {
    let (Some(comment), Some(first)) = (node.comments.last(), keys.first()) else {
        return;
    };
    let subject = comment.split(' ').next().unwrap_or_default();
    if keys.iter().any(|key| key.text == subject) {
        return;
    }
    linter.warn(Rule::InvalidDefinitionDescription, &node.comments, || {
        let example = if keys.len() > 1 {
            "<arg_key>"
        } else {
            &first.text
        };
        let message = format!(
            "Comment for {instruction} should follow the format: `# {example} <description>`"
        );
        warning(
            Rule::InvalidDefinitionDescription,
            message,
            node.lines,
            first,
            "described by the comment above",
        )
        .help("put an empty comment line between if it is not a description")
    });
}

/// Checks the names of stages, and the case of instructions.
pub(super) fn check_stages(stages: &Stages, linter: &mut Linter) {
    let mut seen: BTreeMap<&str, &Word> = BTreeMap::new();
    for stage in &stages.stages {
        let Some(name) = &stage.name else { continue };
        let lines = stage.header.lines;
        if RESERVED.contains(&name.as_str()) {
            linter.warn(Rule::ReservedStageName, &[], || {
                let message = format!(
                    "Stage name should not use the same name as reserved stage {}",
                    quote(&name.text)
                );
                warning(Rule::ReservedStageName, message, lines, name, "reserved")
            });
        }
        if let Some(first) = seen.get(name.as_str()) {
            linter.warn(Rule::DuplicateStageName, &[], || {
                let message = format!(
                    "Duplicate stage name {}, stage names should be unique",
                    quote(&name.text)
                );
                warning(Rule::DuplicateStageName, message, lines, name, "used again")
                    .label(first.span, "first used here")
            });
        }
        seen.entry(name.as_str()).or_insert(name);
    }
    check_casing(stages, linter);
}

/// Checks that all instructions are in the case of most of them. Upper case wins a draw.
fn check_casing(stages: &Stages, linter: &mut Linter) {
    let headers = || {
        stages.stages.iter().flat_map(|stage| {
            std::iter::once(&stage.header).chain(
                stage
                    .instructions
                    .iter()
                    .map(|instruction| &instruction.header),
            )
        })
    };
    let (mut lower, mut upper) = (0, 0);
    for Header { keyword, .. } in headers() {
        if is_in_case(keyword.as_str(), true) {
            lower += 1;
        } else if is_in_case(keyword.as_str(), false) {
            upper += 1;
        }
    }
    let is_lower = lower > upper;
    for Header { keyword, lines, .. } in headers() {
        if is_in_case(keyword.as_str(), is_lower) {
            continue;
        }
        let expect = if is_lower {
            keyword.text.to_lowercase()
        } else {
            keyword.text.to_uppercase()
        };
        linter.warn(Rule::ConsistentInstructionCasing, &[], || {
            let case = if is_lower { "lowercase" } else { "uppercase" };
            let message = format!(
                "Command '{}' should match the case of the command majority ({case})",
                keyword.text
            );
            warning(
                Rule::ConsistentInstructionCasing,
                message,
                *lines,
                keyword,
                "in another case",
            )
            .help(format!("write {expect}"))
            .edits([Edit::new(keyword.span, expect)])
        });
    }
}

/// Tells whether a word is what it is in lower, or else in upper case.
fn is_in_case(word: &str, lower: bool) -> bool {
    match (word.is_ascii(), lower) {
        (true, true) => !word.bytes().any(|byte| byte.is_ascii_uppercase()),
        (true, false) => !word.bytes().any(|byte| byte.is_ascii_lowercase()),
        (false, true) => word == word.to_lowercase(),
        (false, false) => word == word.to_uppercase(),
    }
}
