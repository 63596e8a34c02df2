//! What the frontend tells of a Dockerfile without building it.

use std::collections::BTreeMap;

use dockerfile::check::{
    UnknownImages, check, check_json, check_text, outline, outline_json, outline_text,
    targets_json, targets_text,
};
use oci::Platform;
use serde_json::json;
use tonic::Code;

use crate::build::{Build, FrontendResult, Trees};
use crate::dockerfile::Input;
use crate::error::Failure;

const VERSION: &str = "1.0.0";

/// Answers a request by its name.
pub(crate) fn answer(
    _build: &Build,
    request: &str,
    input: &Input,
) -> Result<FrontendResult, Failure> {
    let host = Platform::host();
    let wrong = |found: Vec<dockerfile::Diagnostic>| {
        Failure::of_dockerfile(&input.name, &input.bytes, &found)
    };
    match request {
        "frontend.subrequests.describe" => {
            let (json, text) = describe();
            Ok(result(json, text, None))
        }
        "frontend.targets" => {
            let ast = dockerfile::parse(&input.bytes).map_err(wrong)?;
            let stages = ast.stages().map_err(wrong)?;
            let json = targets_json(&input.bytes, &stages);
            Ok(result(json, targets_text(&stages), None))
        }
        "frontend.outline" => {
            let target = input.options.target.as_deref();
            let options = input.check_options(&UnknownImages, &host, target);
            let outline = outline(&input.bytes, &options).map_err(|error| {
                Failure::of_dockerfile(&input.name, &input.bytes, &error.diagnostics)
            })?;
            let json = outline_json(&input.bytes, &outline);
            Ok(result(json, outline_text(&outline), None))
        }
        "frontend.lint" => {
            let target = input.options.target.as_deref();
            let options = input.check_options(&UnknownImages, &host, target);
            let report = check(&input.bytes, &options);
            let failed = !report.warnings.is_empty() || report.error.is_some();
            Ok(result(
                check_json(&input.bytes, &input.name, &report),
                check_text(&input.bytes, &input.name, &report),
                Some(if failed { "1" } else { "0" }),
            ))
        }
        other => Err(
            Failure::new(Code::Unimplemented, format!("unsupported request {other}"))
                .with_detail("errdefs.Subrequest+json", json!({"name": other})),
        ),
    }
}

fn result(json: String, text: String, status: Option<&str>) -> FrontendResult {
    let mut metadata = BTreeMap::from([
        ("result.json".to_owned(), json.into_bytes()),
        ("result.txt".to_owned(), text.into_bytes()),
        ("version".to_owned(), VERSION.as_bytes().to_vec()),
    ]);
    if let Some(status) = status {
        metadata.insert("result.statuscode".to_owned(), status.as_bytes().to_vec());
    }
    FrontendResult {
        trees: Trees::One(None),
        metadata,
        ..FrontendResult::default()
    }
}

fn describe() -> (String, String) {
    let named = |name: &str| json!({"name": name, "description": ""});
    let files = json!([named("result.json"), named("result.txt")]);
    let rows = [
        (
            "frontend.outline",
            "List all parameters current build target supports",
        ),
        (
            "frontend.targets",
            "List all targets current build supports",
        ),
        (
            "frontend.subrequests.describe",
            "List available subrequest types",
        ),
    ];
    let mut text = String::from("NAME                 VERSION DESCRIPTION\n");
    let mut all = Vec::new();
    for (name, description) in rows {
        let opts = match name {
            "frontend.outline" => json!([{"name": "target", "description": "Target build stage"}]),
            "frontend.targets" => json!([]),
            _ => serde_json::Value::Null,
        };
        all.push(json!({
            "name": name,
            "version": VERSION,
            "type": "rpc",
            "description": description,
            "opts": opts,
            "inputs": null,
            "metadata": files,
            "refs": null,
        }));
        let short = name.strip_prefix("frontend.").unwrap_or(name);
        text.push_str(&format!("{short:<20} {VERSION}   {description}\n"));
    }
    let json = serde_json::to_string_pretty(&all).expect("a value can be written as JSON");
    (json, text)
}
