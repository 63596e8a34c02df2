//! The `image` section of the parser cases: the image config a build would end with.
//!
//! As the oracle had it, every base image is a stub: one `PATH` and one line of history.

use dockerfile::{Ast, Stages};
use frontend::{Answers, Lowering, Options, Request, ResolvedImage, Step};
use oci::{Document as _, History, ImageConfig, Platform};
use serde_json::{Map, Value, json};

const STUB_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Returns the image of a file as the oracle writes it down, or its error.
pub(crate) fn image(ast: &Ast, stages: &Stages) -> Value {
    let platform = Platform::new("linux", "amd64", "");
    let options = Options {
        build_platforms: vec![platform.clone()],
        ..Options::default()
    };
    let mut lowering = Lowering::new(ast, stages, &options);
    let mut answers = Answers::default();
    loop {
        match lowering.step(&answers) {
            Err(errors) => {
                let Some(first) = errors.first() else {
                    return json!({ "error": Value::Null });
                };
                let lines = first.lines.iter().flat_map(|lines| lines.iter());
                let lines: Vec<Value> = lines.map(|line| json!([line, line])).collect();
                let mut error = json!({ "message": first.full_message() });
                if !lines.is_empty() {
                    error["lines"] = lines.into();
                }
                return json!({ "error": error });
            }
            Ok(Step::Resolve(requests)) => {
                for request in requests {
                    match request {
                        Request::Image(request) => {
                            answers.images.insert(request, Ok(stub(&platform)));
                        }
                        Request::SourceTime(request) => {
                            answers.source_times.insert(request, Ok(None));
                        }
                    }
                }
            }
            Ok(Step::Done(lowered)) => return written(&lowered.builds[0].config),
        }
    }
}

fn stub(platform: &Platform) -> ResolvedImage {
    let mut config = ImageConfig::new(platform.clone());
    config.config.env.push(STUB_PATH.to_owned());
    config.history.push(History {
        created_by: "STUB BASE".to_owned(),
        ..History::default()
    });
    ResolvedImage {
        reference: None,
        digest: None,
        config,
    }
}

/// Leaves out what the oracle left out: layers, comments, and what is empty.
fn written(config: &ImageConfig) -> Value {
    let mut whole: Value = serde_json::from_slice(&config.to_bytes()).unwrap_or_default();
    let Some(fields) = whole.as_object_mut() else {
        return Value::Null;
    };
    fields.remove("rootfs");
    if let Some(Value::Array(entries)) = fields.get_mut("history") {
        for entry in entries.iter_mut().filter_map(Value::as_object_mut) {
            entry.remove("comment");
        }
    }
    prune(fields);
    whole
}

fn prune(fields: &mut Map<String, Value>) {
    fields.retain(|_, value| match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(inner) => !inner.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => true,
    });
}
