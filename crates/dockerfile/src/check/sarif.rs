//! Findings in SARIF 2.1.0, which code hosts and editors read.

use serde::Serialize;

use crate::{Diagnostic, Severity, Span};

use super::{Report, Rule};

#[derive(Serialize)]
struct Log<'a> {
    #[serde(rename = "$schema")]
    schema: &'a str,
    version: &'a str,
    runs: [Run<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Run<'a> {
    tool: Tool<'a>,
    column_kind: &'a str,
    results: Vec<Finding<'a>>,
}

#[derive(Serialize)]
struct Tool<'a> {
    driver: Driver<'a>,
}

#[derive(Serialize)]
struct Driver<'a> {
    name: &'a str,
    rules: Vec<RuleEntry>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RuleEntry {
    id: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    short_description: Option<Message>,
    #[serde(skip_serializing_if = "String::is_empty")]
    help_uri: String,
}

#[derive(Serialize)]
struct Message {
    text: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding<'a> {
    rule_id: &'a str,
    rule_index: usize,
    level: &'a str,
    message: Message,
    locations: Vec<Location<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    related_locations: Vec<Location<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Location<'a> {
    physical_location: PhysicalLocation<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PhysicalLocation<'a> {
    artifact_location: ArtifactLocation<'a>,
    region: Region,
}

#[derive(Serialize)]
struct ArtifactLocation<'a> {
    uri: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Region {
    start_line: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_column: Option<usize>,
    end_line: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_column: Option<usize>,
}

/// Returns the findings as a SARIF log; `uri` is the address of the file, relative to where the log is read.
pub fn check_sarif(source: &[u8], uri: &str, report: &Report) -> String {
    let source = crate::text_of(source);
    let text = Text::new(&source);
    let all = || {
        report
            .warnings
            .iter()
            .chain(report.error.iter().flat_map(|error| &error.diagnostics))
    };
    let mut rules: Vec<&'static str> = all().map(|finding| finding.code).collect();
    rules.sort_unstable();
    rules.dedup();
    let finding = |diagnostic: &Diagnostic| {
        let location = |span: Span, label: Option<&str>| Location {
            physical_location: PhysicalLocation {
                artifact_location: ArtifactLocation { uri },
                region: text.region(span),
            },
            message: label
                .filter(|label| !label.is_empty())
                .map(|label| Message {
                    text: label.to_owned(),
                }),
        };
        let whole_lines = || {
            let lines = diagnostic.lines.first().copied().unwrap_or_default();
            let (start_line, end_line) = (lines.first.max(1), lines.last.max(1));
            let region = Region {
                start_line,
                start_column: None,
                end_line,
                end_column: None,
            };
            let artifact_location = ArtifactLocation { uri };
            Location {
                physical_location: PhysicalLocation {
                    artifact_location,
                    region,
                },
                message: None,
            }
        };
        let (subject, related) = match diagnostic.labels.split_first() {
            Some((subject, related)) => (location(subject.span, Some(&subject.text)), related),
            None => (whole_lines(), [].as_slice()),
        };
        let mut message = diagnostic.full_message();
        for line in diagnostic.notes.iter().chain(&diagnostic.helps) {
            message.push('\n');
            message.push_str(line);
        }
        Finding {
            rule_id: diagnostic.code,
            rule_index: rules.binary_search(&diagnostic.code).unwrap_or_default(),
            level: match diagnostic.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            },
            message: Message { text: message },
            locations: vec![subject],
            related_locations: related
                .iter()
                .map(|label| location(label.span, Some(&label.text)))
                .collect(),
        }
    };
    let entry = |id: &&'static str| {
        let rule = Rule::from_name(id);
        RuleEntry {
            id,
            short_description: rule.map(|rule| Message {
                text: rule.description().to_owned(),
            }),
            help_uri: rule.map(Rule::url).unwrap_or_default(),
        }
    };
    let log = Log {
        schema: "https://json.schemastore.org/sarif-2.1.0.json",
        version: "2.1.0",
        runs: [Run {
            tool: Tool {
                driver: Driver {
                    name: "lapstrake",
                    rules: rules.iter().map(entry).collect(),
                },
            },
            column_kind: "unicodeCodePoints",
            results: all().map(finding).collect(),
        }],
    };
    oci::json::indented(&log)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// A text that knows where its lines begin.
struct Text<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Text<'a> {
    fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        Text { text, starts }
    }

    /// Returns line and column, both from 1, of a byte.
    fn position(&self, at: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= at).max(1);
        let before = self.text.get(self.starts[line - 1]..at).unwrap_or_default();
        (line, before.chars().count() + 1)
    }

    fn region(&self, span: Span) -> Region {
        let (start_line, start_column) = self.position(span.start);
        let (end_line, end_column) = self.position(span.end);
        Region {
            start_line,
            start_column: Some(start_column),
            end_line,
            end_column: Some(end_column),
        }
    }
}
