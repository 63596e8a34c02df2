//! `lapstrake check`: what can be said of a Dockerfile without building it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine as _;
use clap::{Args, ValueEnum};
use dockerfile::check::{CheckOptions, Report, Rule, UnknownImages, check};
use dockerfile::ignore::IgnoreFile;
use dockerfile::{Diagnostic, Lines};
use oci::Platform;
use serde_json::{Value, json};

use crate::failure::{Failure, exit};
use crate::{diagnostics, output};

/// Check a Dockerfile by the rules of docker build --check
#[derive(Debug, Args)]
#[command(
    after_help = "Nothing is built and no image is asked for. Exit code 1 if there is anything to say.

Examples:
  lapstrake check .                          check the Dockerfile here
  lapstrake check -f Dockerfile.dev .        check another one
  lapstrake check --format sarif . > o.sarif for code hosts and editors"
)]
pub(crate) struct Check {
    /// The context, for the Dockerfile and its ignore file
    #[arg(value_name = "PATH", default_value = ".")]
    context: PathBuf,
    /// The Dockerfile [default: PATH/Dockerfile]
    #[arg(long, short = 'f', value_name = "FILE")]
    file: Option<PathBuf>,
    /// Check only what this stage needs [default: all stages]
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Set a build argument
    #[arg(long = "build-arg", value_name = "NAME=VALUE")]
    build_args: Vec<String>,
    /// How to print
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

/// How findings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// With the lines they are about
    Text,
    /// As docker build --call=check,format=json prints them
    Json,
    /// Static Analysis Results Interchange Format 2.1.0
    Sarif,
}

impl Check {
    /// Prints the findings; there being any is a failure.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let path = self
            .file
            .clone()
            .unwrap_or_else(|| self.context.join("Dockerfile"));
        let name = path.display().to_string();
        let source = std::fs::read(&path)
            .with_context(|| format!("failed to read {name}"))
            .map_err(exit::usage)?;
        let ignore = self.ignore_file(&path).map_err(exit::usage)?;
        let build_args = self.build_args().map_err(exit::usage)?;
        let platform = Platform::host();
        let options = CheckOptions {
            build_args: &build_args,
            target: self.target.as_deref(),
            config: None,
            build_platform: &platform,
            target_platform: None,
            images: &UnknownImages,
            ignore: ignore.as_ref(),
        };
        let report = check(&source, &options);
        let text = match self.format {
            Format::Text => text_of(&report, &name, &source),
            Format::Json => pretty(&json_of(&report, &name, &source)),
            Format::Sarif => pretty(&sarif_of(&report, &name)),
        };
        output::print(&text).map_err(exit::builder)?;
        match report.warnings.is_empty() && report.error.is_none() {
            true => Ok(()),
            false => Err(Failure::Said(1)),
        }
    }

    fn ignore_file(&self, dockerfile: &Path) -> Result<Option<IgnoreFile>> {
        let mut own = dockerfile.as_os_str().to_owned();
        own.push(".dockerignore");
        for path in [PathBuf::from(own), self.context.join(".dockerignore")] {
            match std::fs::read_to_string(&path) {
                Ok(text) => {
                    let file = IgnoreFile::parse(&text)
                        .with_context(|| format!("invalid {}", path.display()))?;
                    return Ok(Some(file));
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("failed to read {}", path.display()));
                }
            }
        }
        Ok(None)
    }

    fn build_args(&self) -> Result<BTreeMap<String, String>> {
        let read = |text: &String| match text.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => {
                let value = std::env::var(text);
                Ok((
                    text.clone(),
                    value.with_context(|| format!("{text} is not set"))?,
                ))
            }
        };
        self.build_args.iter().map(read).collect()
    }
}

fn text_of(report: &Report, name: &str, source: &[u8]) -> String {
    let source = String::from_utf8_lossy(source);
    let mut text = String::new();
    for warning in &report.warnings {
        text.push_str(&diagnostics::draw(warning, name, &source));
        text.push_str("\n\n");
    }
    for error in report.error.iter().flat_map(|error| &error.diagnostics) {
        text.push_str(&diagnostics::draw(error, name, &source));
        text.push_str("\n\n");
    }
    text.push_str(&match report.warnings.len() {
        0 => "Check complete, no warnings found.\n".to_owned(),
        1 => "Check complete, 1 warning has been found!\n".to_owned(),
        count => format!("Check complete, {count} warnings have been found!\n"),
    });
    text
}

fn pretty(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("a value can be written as JSON");
    text.push('\n');
    text
}

fn ranges(lines: &[Lines]) -> Vec<Value> {
    let range =
        |lines: &Lines| json!({"start": {"line": lines.first}, "end": {"line": lines.last}});
    lines.iter().map(range).collect()
}

/// Returns what a rule says of itself; a finding that is no rule's has neither page nor description.
fn described(warning: &Diagnostic) -> (&'static str, String) {
    match Rule::from_name(warning.code) {
        Some(rule) => (rule.description(), rule.url()),
        None => ("", String::new()),
    }
}

fn json_of(report: &Report, name: &str, source: &[u8]) -> Value {
    let warning = |warning: &Diagnostic| {
        let (description, url) = described(warning);
        json!({
            "ruleName": warning.code,
            "description": description,
            "url": url,
            "detail": warning.message,
            "location": {"ranges": ranges(&warning.lines)},
        })
    };
    let mut value = json!({
        "warnings": report.warnings.iter().map(warning).collect::<Vec<_>>(),
        "sources": [{
            "filename": name,
            "language": "Dockerfile",
            "data": base64::engine::general_purpose::STANDARD.encode(source),
        }],
    });
    if let Some(error) = &report.error {
        value["buildError"] = json!({
            "message": error.message,
            "location": {"ranges": ranges(&error.lines)},
        });
    }
    value
}

fn sarif_of(report: &Report, name: &str) -> Value {
    let result = |found: &Diagnostic, level: &str| {
        let region = found
            .lines
            .first()
            .map(|lines| json!({"startLine": lines.first.max(1), "endLine": lines.last.max(1)}));
        json!({
            "ruleId": found.code,
            "level": level,
            "message": {"text": found.full_message()},
            "locations": [{"physicalLocation": {
                "artifactLocation": {"uri": name},
                "region": region,
            }}],
        })
    };
    let errors = report.error.iter().flat_map(|error| &error.diagnostics);
    let results: Vec<Value> = report
        .warnings
        .iter()
        .map(|warning| result(warning, "warning"))
        .chain(errors.map(|error| result(error, "error")))
        .collect();
    let rule = |rule: Rule| {
        json!({
            "id": rule.name(),
            "shortDescription": {"text": rule.description()},
            "helpUri": rule.url(),
        })
    };
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "lapstrake",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": Rule::ALL.map(rule),
            }},
            "results": results,
        }],
    })
}
