//! What goes to standard error beside progress: errors, warnings, notes, findings, and the log.

use std::sync::OnceLock;

use dockerfile::{Diagnostic, Severity};
use serde_json::{Value, json};

use crate::arguments::{Global, LogFormat};
use crate::diagnostics::{self, Source};

static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Chooses the format for the rest of the process, and starts the log if one is asked for.
pub(crate) fn start(global: &Global) {
    let _ = FORMAT.set(global.log_format);
    let filter = match std::env::var("LAPSTRAKE_LOG") {
        Ok(filter) => filter,
        Err(_) if global.debug => "debug".to_owned(),
        Err(_) => return,
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(std::io::stderr);
    match is_json() {
        true => log.json().flatten_event(true).init(),
        false => log.init(),
    }
}

/// Returns whether standard error gets one JSON object a line.
pub(crate) fn is_json() -> bool {
    FORMAT.get() == Some(&LogFormat::Json)
}

/// Says why the program, or a part of its work, failed.
pub(crate) fn error(message: &str) {
    say("error", "error: ", message);
}

/// Says what the user should look at.
pub(crate) fn warning(message: &str) {
    say("warning", "warning: ", message);
}

/// Says what may surprise.
pub(crate) fn note(message: &str) {
    say("note", "note: ", message);
}

/// Says what is going on, in a line of its own.
pub(crate) fn info(message: &str) {
    say("info", "", message);
}

fn say(level: &str, prefix: &str, message: &str) {
    match is_json() {
        true => line(&json!({"level": level, "message": message})),
        false => eprintln!("{prefix}{message}"),
    }
}

/// Prints an object as a line.
pub(crate) fn line(value: &Value) {
    eprintln!("{value}");
}

/// Says what is wrong with a Dockerfile.
pub(crate) fn finding(found: &Diagnostic, source: &Source<'_>) {
    match is_json() {
        true => line(&value(found, source)),
        false => eprintln!("{}", diagnostics::draw(found, source)),
    }
}

fn value(found: &Diagnostic, source: &Source<'_>) -> Value {
    let level = match found.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let mut value = json!({
        "level": level,
        "code": found.code,
        "message": found.message,
        "file": source.name(),
    });
    if let Some(lines) = found.lines.first() {
        value["line"] = lines.first.into();
        value["last_line"] = lines.last.into();
    }
    for (name, texts) in [("notes", &found.notes), ("helps", &found.helps)] {
        if !texts.is_empty() {
            value[name] = json!(texts);
        }
    }
    if let Some(word) = &found.suggestion {
        value["suggestion"] = json!(word);
    }
    value
}
