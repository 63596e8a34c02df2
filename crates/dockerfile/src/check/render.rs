//! What `docker build --call=check|outline|targets` prints, as text and as JSON.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::{Diagnostic, Lines, Stages};

use super::{Outline, OutlineMount, Report, Rule};

/// Returns the findings as text: a head line, then each with the lines it is about.
///
/// An error is not part of it: it is a diagnostic, and drawing those is the caller's work.
pub fn check_text(source: &[u8], filename: &str, report: &Report) -> String {
    let source = crate::text_of(source);
    let lines: Vec<&str> = source.split('\n').collect();
    let mut out = String::new();
    match report.warnings.len() {
        0 if report.error.is_none() => out.push_str("Check complete, no warnings found.\n"),
        0 => {}
        1 => out.push_str("Check complete, 1 warning has been found!\n"),
        count => {
            let _ = writeln!(out, "Check complete, {count} warnings have been found!");
        }
    }
    for warning in &report.warnings {
        let url = Rule::from_name(warning.code)
            .map(Rule::url)
            .filter(|url| !url.is_empty());
        let url = url.map(|url| format!(" - {url}")).unwrap_or_default();
        let _ = writeln!(
            out,
            "\nWARNING: {}{url}\n{}",
            warning.code,
            warning.full_message()
        );
        quote_lines(&lines, filename, numbers(&warning.lines), &mut out);
    }
    out
}

/// Writes the lines of a finding with some around them.
fn quote_lines(lines: &[&str], filename: &str, mut marked: Vec<usize>, out: &mut String) {
    marked.sort_unstable();
    let (Some(&first), Some(&last)) = (marked.first(), marked.last()) else {
        return;
    };
    if first < 1 || first > lines.len() {
        return;
    }
    let (mut start, mut end) = (first, last.min(lines.len()));
    let wanted = if end == start { 4 } else { 2 };
    let mut added = 0;
    while added < wanted {
        if start > 1 {
            start -= 1;
            added += 1;
        }
        if end != lines.len() {
            end += 1;
            added += 1;
        }
        added += 1;
    }
    let _ = writeln!(out, "{filename}:{first}\n--------------------");
    for number in start..=end {
        let mark = if marked.binary_search(&number).is_ok() {
            ">>>"
        } else {
            "   "
        };
        let _ = writeln!(out, " {number:3} | {mark} {}", lines[number - 1]);
    }
    out.push_str("--------------------\n");
}

fn numbers(lines: &[Lines]) -> Vec<usize> {
    lines.iter().flat_map(|lines| lines.iter()).collect()
}

#[derive(Serialize)]
struct Location {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ranges: Vec<Range>,
}

#[derive(Serialize)]
struct Range {
    start: Position,
    end: Position,
}

#[derive(Serialize)]
struct Position {
    #[serde(skip_serializing_if = "is_zero")]
    line: usize,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Location {
    fn of(lines: impl IntoIterator<Item = usize>) -> Self {
        let range = |line| Range {
            start: Position { line },
            end: Position { line },
        };
        Location {
            ranges: lines.into_iter().map(range).collect(),
        }
    }
}

fn is_empty(text: &str) -> bool {
    text.is_empty()
}

/// Returns JSON as the reference's encoder writes it.
fn json<T: Serialize>(value: &T) -> String {
    // Writing plain structs of texts and numbers to memory cannot fail.
    oci::json::indented(value)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CheckJson<'a> {
    /// Null where there are none.
    warnings: Option<Vec<WarningJson>>,
    sources: [SourceJson<'a>; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    build_error: Option<ErrorJson<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WarningJson {
    rule_name: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    url: String,
    detail: String,
    location: Location,
}

#[derive(Serialize)]
struct SourceJson<'a> {
    filename: &'a str,
    data: String,
    language: &'a str,
}

#[derive(Serialize)]
struct ErrorJson<'a> {
    message: &'a str,
    location: Location,
}

/// Returns the findings as JSON.
pub fn check_json(source: &[u8], filename: &str, report: &Report) -> String {
    let warning = |warning: &Diagnostic| {
        let rule = Rule::from_name(warning.code);
        WarningJson {
            rule_name: warning.code,
            description: rule.map(Rule::description).unwrap_or_default(),
            url: rule.map(Rule::url).unwrap_or_default(),
            detail: warning.full_message(),
            location: Location::of(numbers(&warning.lines)),
        }
    };
    let warnings: Vec<WarningJson> = report.warnings.iter().map(warning).collect();
    json(&CheckJson {
        warnings: Some(warnings).filter(|warnings| !warnings.is_empty()),
        sources: [SourceJson {
            filename,
            data: STANDARD.encode(source),
            language: "Dockerfile",
        }],
        build_error: report.error.as_ref().map(|error| ErrorJson {
            message: &error.message,
            location: Location::of(error.merged_lines()),
        }),
    })
}

/// Returns the parameters of a target as text.
pub fn outline_text(outline: &Outline) -> String {
    let mut out = String::new();
    if !outline.name.is_empty() || outline.description.is_some() {
        let name = if outline.name.is_empty() {
            "(default)"
        } else {
            &outline.name
        };
        let mut rows = vec![["TARGET:", name]];
        rows.extend(
            outline
                .description
                .as_deref()
                .map(|description| ["DESCRIPTION:", description]),
        );
        table(&rows, 1, &mut out);
        out.push('\n');
    }
    if !outline.args.is_empty() {
        let mut rows = vec![["BUILD ARG", "VALUE", "DESCRIPTION"]];
        rows.extend(outline.args.iter().map(|arg| {
            [
                &*arg.name,
                &*arg.value,
                arg.description.as_deref().unwrap_or_default(),
            ]
        }));
        table(&rows, 3, &mut out);
        out.push('\n');
    }
    for (head, mounts) in [("SECRET", &outline.secrets), ("SSH", &outline.ssh)] {
        if mounts.is_empty() {
            continue;
        }
        let mut rows = vec![[head, "REQUIRED"]];
        rows.extend(
            mounts
                .iter()
                .map(|mount| [&*mount.name, if mount.required { "true" } else { "" }]),
        );
        table(&rows, 3, &mut out);
        out.push('\n');
    }
    out
}

/// Writes rows with the columns below each other; the last one is not padded.
fn table<const N: usize>(rows: &[[&str; N]], padding: usize, out: &mut String) {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or_default()
    };
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            out.push_str(cell);
            if column + 1 < N {
                let fill = width(column) + padding - cell.chars().count();
                out.extend(std::iter::repeat_n(' ', fill));
            }
        }
        out.push('\n');
    }
}

#[derive(Serialize)]
struct OutlineJson<'a> {
    #[serde(skip_serializing_if = "is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<ArgJson<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<MountJson<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh: Vec<MountJson<'a>>,
    sources: [String; 1],
}

#[derive(Serialize)]
struct ArgJson<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "is_empty")]
    value: &'a str,
    location: Location,
}

#[derive(Serialize)]
struct MountJson<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    required: bool,
    location: Location,
}

fn mounts_json(mounts: &[OutlineMount]) -> Vec<MountJson<'_>> {
    let mut list = Vec::with_capacity(mounts.len());
    for OutlineMount {
        name,
        required,
        lines,
    } in mounts
    {
        list.push(MountJson {
            name,
            required: *required,
            location: Location::of(lines.iter()),
        });
    }
    list
}

/// Returns the parameters of a target as JSON.
pub fn outline_json(source: &[u8], outline: &Outline) -> String {
    let args = outline.args.iter().map(|arg| ArgJson {
        name: &arg.name,
        description: arg.description.as_deref(),
        value: &arg.value,
        location: Location::of(arg.lines.iter()),
    });
    json(&OutlineJson {
        name: &outline.name,
        description: outline.description.as_deref(),
        args: args.collect(),
        secrets: mounts_json(&outline.secrets),
        ssh: mounts_json(&outline.ssh),
        sources: [STANDARD.encode(source)],
    })
}

/// Returns the stages that can be built as text.
pub fn targets_text(stages: &Stages) -> String {
    let last = stages.stages.len().saturating_sub(1);
    let names: Vec<String> = stages
        .stages
        .iter()
        .enumerate()
        .map(|(i, stage)| match (stage.name_str(), i == last) {
            ("", true) => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        })
        .collect();
    let mut rows = vec![["TARGET", "DESCRIPTION"]];
    let described = names.iter().zip(&stages.stages);
    rows.extend(
        described.map(|(name, stage)| [name.as_str(), stage.doc.as_deref().unwrap_or_default()]),
    );
    let mut out = String::new();
    table(&rows, 1, &mut out);
    out
}

#[derive(Serialize)]
struct TargetsJson<'a> {
    targets: Vec<TargetJson<'a>>,
    sources: [String; 1],
}

#[derive(Serialize)]
struct TargetJson<'a> {
    #[serde(skip_serializing_if = "is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    default: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "is_empty")]
    base: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<&'a str>,
    location: Location,
}

/// Returns the stages that can be built as JSON.
pub fn targets_json(source: &[u8], stages: &Stages) -> String {
    let last = stages.stages.len().saturating_sub(1);
    let targets = stages
        .stages
        .iter()
        .enumerate()
        .map(|(i, stage)| TargetJson {
            name: stage.name_str(),
            default: i == last,
            description: stage.doc.as_deref(),
            base: &stage.base.text,
            platform: stage
                .platform
                .as_ref()
                .map(|platform| platform.text.as_str()),
            location: Location::of(stage.header.lines.iter()),
        });
    json(&TargetsJson {
        targets: targets.collect(),
        sources: [STANDARD.encode(source)],
    })
}
