//! Any bytes through the check: no panic, every place is one of the text, and what is mended still parses.
#![no_main]

use dockerfile::check::{
    CheckOptions, check, check_json, check_sarif, check_text, fix, outline, outline_json, outline_text,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let options = CheckOptions::default();
    let report = check(data, &options);
    let errors = report.error.iter().flat_map(|error| &error.diagnostics);
    for diagnostic in report.warnings.iter().chain(errors) {
        let labels = diagnostic.labels.iter().map(|label| label.span);
        for span in labels.chain(diagnostic.edits.iter().map(|edit| edit.span)) {
            assert!(text.get(span.start..span.end).is_some());
        }
    }
    let _ = check_text(data, "Dockerfile", &report);
    let _ = check_json(data, "Dockerfile", &report);
    let _ = check_sarif(data, "Dockerfile", &report);
    if let Ok(outline) = outline(data, &options) {
        let _ = outline_text(&outline);
        let _ = outline_json(data, &outline);
    }
    if let Some(fixed) = fix(data, &options) {
        assert!(dockerfile::parse(fixed.text.as_bytes()).and_then(|ast| ast.stages()).is_ok());
    }
});
