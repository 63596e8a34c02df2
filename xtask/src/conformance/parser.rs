//! The parser cases: `parser/dockerfiles/ID` against `parser/expected/ID.json`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Context;
use dockerfile::check::{self, BuildError, CheckOptions, Outline, OutlineMount, Report};
use dockerfile::{
    Args, Ast, CommandForm, CommandLine, Diagnostic, DirectiveName, Header, InlineFile,
    Instruction, KeyValue, Kind, Lines, NetworkMode, Node, SecurityMode, Stages, Word,
};
use serde_json::{Map, Value, json};

use super::{Tally, image};

/// Runs all cases of the folder.
pub(crate) fn run(corpus: &Path, tally: &mut Tally) -> anyhow::Result<()> {
    let folder = corpus.join("parser");
    let expected = folder.join("expected");
    let entries = fs::read_dir(&expected)
        .with_context(|| format!("failed to list {}", expected.display()))?;
    let mut names = BTreeSet::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(id) = name.strip_suffix(".json") {
            names.insert(id.to_owned());
        }
    }
    for id in names
        .into_iter()
        .filter(|id| tally.wants(id))
        .collect::<Vec<_>>()
    {
        let path = expected.join(format!("{id}.json"));
        let text = fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
        let expect: Value = serde_json::from_slice(&text)
            .with_context(|| format!("failed to parse {}", path.display()))?;
        let path = folder.join("dockerfiles").join(&id);
        let source =
            fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
        tally.count(&id, compare(&source, &expect).as_deref());
    }
    Ok(())
}

/// Returns the differences of all recorded sections.
fn compare(source: &[u8], expect: &Value) -> Option<String> {
    let mut differences = Vec::new();
    let mut section = |name: &str, found: Value| {
        // A section the oracle could not make is not recorded.
        if let Some(mut expected) = expect.get(name).cloned() {
            if name == "outline" {
                sort_parameters(&mut expected);
            }
            difference(name, &expected, &found, &mut differences);
        }
    };
    section("directives", directives(source));
    match dockerfile::parse(source) {
        Err(errors) => section("parse", json!({ "error": error(&errors, false) })),
        Ok(ast) => {
            section("parse", parsed(&ast));
            match ast.stages() {
                Err(errors) => section("stages", json!({ "error": error(&errors, true) })),
                Ok(stages) => {
                    section("stages", typed(&stages));
                    section("targets", targets(&stages));
                    section("image", image::image(&ast, &stages));
                }
            }
        }
    }
    let options = CheckOptions::default();
    section("lint", lint(&check::check(source, &options)));
    section("outline", outline(check::outline(source, &options)));
    (!differences.is_empty()).then(|| differences.join("; "))
}

/// Sorts the parameters of one line by name: the oracle has them in the order of a Go map, another in each run.
fn sort_parameters(outline: &mut Value) {
    for key in ["args", "secrets", "ssh"] {
        if let Some(Value::Array(parameters)) = outline.get_mut(key) {
            parameters.sort_by_key(|parameter| {
                (
                    parameter["lines"][0][0].as_u64(),
                    parameter["name"].as_str().map(str::to_owned),
                )
            });
        }
    }
}

/// Names the places where two values differ.
fn difference(path: &str, expected: &Value, found: &Value, differences: &mut Vec<String>) {
    match (expected, found) {
        (Value::Object(left), Value::Object(right)) => {
            // A note is a remark of the recorder on what it recorded.
            let keys: BTreeSet<&String> = left
                .keys()
                .chain(right.keys())
                .filter(|key| *key != "note")
                .collect();
            for key in keys {
                let (left, right) = (left.get(key), right.get(key));
                let path = format!("{path}.{key}");
                difference(
                    &path,
                    left.unwrap_or(&Value::Null),
                    right.unwrap_or(&Value::Null),
                    differences,
                );
            }
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            for (i, (left, right)) in left.iter().zip(right).enumerate() {
                difference(&format!("{path}[{i}]"), left, right, differences);
            }
        }
        (left, right) if left == right => {}
        (left, right) => differences.push(format!("{path}: expected {left}, found {right}")),
    }
}

/// An object that leaves out what is zero.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.0.insert(key.to_owned(), value.into());
        self
    }

    fn set_nonzero(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        let value = value.into();
        let zero = match &value {
            Value::Null | Value::Bool(false) => true,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Number(number) => number.as_i64() == Some(0),
            _ => false,
        };
        if !zero {
            self.0.insert(key.to_owned(), value);
        }
        self
    }

    fn done(&mut self) -> Value {
        Value::Object(std::mem::take(&mut self.0))
    }
}

fn text(word: &Option<Word>) -> Value {
    word.as_ref()
        .map_or(Value::Null, |word| word.text.clone().into())
}

fn texts(words: &[Word]) -> Value {
    words
        .iter()
        .map(|word| Value::from(word.text.clone()))
        .collect()
}

/// Lines as the oracle has them: each alone.
fn each(lines: &[Lines]) -> Value {
    lines
        .iter()
        .flat_map(|lines| lines.iter())
        .map(|line| json!([line, line]))
        .collect()
}

fn error(errors: &[Diagnostic], typed: bool) -> Value {
    let Some(first) = errors.first() else {
        return Value::Null;
    };
    let message = match first.lines.first() {
        Some(lines) if typed && first.code != "no-stage" => {
            format!(
                "dockerfile parse error on line {}: {}",
                lines.first,
                first.full_message()
            )
        }
        _ => first.full_message(),
    };
    json!({ "lines": each(&first.lines), "message": message })
}

fn directives(source: &[u8]) -> Value {
    let mut fields = Fields::default();
    let found = [
        ("syntax", dockerfile::detect_syntax(source)),
        (
            "escape",
            dockerfile::find_directive(DirectiveName::Escape, source),
        ),
        (
            "check",
            dockerfile::find_directive(DirectiveName::Check, source),
        ),
    ];
    for (name, directive) in found {
        if let Some(directive) = directive {
            let value = json!({ "value": directive.first_word(), "cmdline": directive.value, "lines": each(&[directive.lines]) });
            fields.set(name, value);
        }
    }
    fields.done()
}

fn parsed(ast: &Ast) -> Value {
    let warnings: Vec<Value> = ast
        .empty_continuations
        .iter()
        .map(|warning| {
            let short = format!("Empty continuation line found in: {}", warning.original);
            json!({ "short": short, "lines": each(&[warning.lines]) })
        })
        .collect();
    let instructions: Vec<Value> = ast
        .nodes
        .iter()
        .map(|node| {
            let mut fields = node_fields(node);
            fields.set("lines", json!([node.lines.first, node.lines.last]));
            fields.set("original", node.original.clone());
            fields.done()
        })
        .collect();
    Fields::default()
        .set("escape", ast.escape.to_string())
        .set("instructions", instructions)
        .set_nonzero("warnings", warnings)
        .done()
}

fn node_fields(node: &Node) -> Fields {
    let mut fields = Fields::default();
    fields
        .set("name", node.keyword.text.clone())
        .set_nonzero("flags", texts(&node.flags));
    let args = match &node.args {
        Args::Plain(words) | Args::Exec(words) => texts(words),
        Args::Pairs(pairs) => pairs
            .iter()
            .flat_map(|pair| {
                [
                    &*pair.key.text,
                    &*pair.value.text,
                    if pair.legacy { "" } else { "=" },
                ]
            })
            .map(Value::from)
            .collect(),
        Args::Nested(child) => {
            fields.set("child", json!([node_fields(child).done()]));
            json!([])
        }
    };
    let heredocs: Vec<Value> = node
        .heredocs
        .iter()
        .map(|doc| {
            json!({ "name": doc.name, "fd": doc.fd, "expand": doc.expand, "chomp": doc.chomp, "content": doc.content })
        })
        .collect();
    fields
        .set("args", args)
        .set_nonzero("json", node.args.is_exec())
        .set_nonzero("heredocs", heredocs)
        .set_nonzero("comments", node.comments.clone());
    fields
}

fn typed(stages: &Stages) -> Value {
    let meta_args: Vec<Value> = stages
        .meta_args
        .iter()
        .map(|meta| command(&meta.header, &Kind::Arg(meta.arg.clone())))
        .collect();
    let list: Vec<Value> = stages
        .stages
        .iter()
        .map(|stage| {
            let commands: Vec<Value> = stage
                .instructions
                .iter()
                .map(|Instruction { header, kind }| command(header, kind))
                .collect();
            Fields::default()
                .set("name", stage.name_str())
                .set("base", stage.base.text.clone())
                .set_nonzero("platform", text(&stage.platform))
                .set_nonzero("doc", stage.doc.clone())
                .set("lines", each(&[stage.header.lines]))
                .set("commands", commands)
                .done()
        })
        .collect();
    json!({ "meta_args": meta_args, "stages": list })
}

fn command(header: &Header, kind: &Kind) -> Value {
    let mut fields = Fields::default();
    fields
        .set("name", header.keyword.text.clone())
        .set("code", header.code.clone())
        .set("lines", each(&[header.lines]))
        .set("fields", kind_fields(kind));
    if let Kind::Run(run) = kind {
        let mounts: Vec<Value> = run
            .mounts
            .iter()
            .map(|mount| {
                let from = mount.from.clone().unwrap_or_default();
                Fields::default()
                    .set("Type", "bind")
                    .set("ReadOnly", true)
                    .set_nonzero("From", from)
                    .done()
            })
            .collect();
        let network = match run.network {
            NetworkMode::Default => "default",
            NetworkMode::None => "none",
            NetworkMode::Host => "host",
        };
        let security = match run.security {
            SecurityMode::Sandbox => "sandbox",
            SecurityMode::Insecure => "insecure",
        };
        fields
            .set_nonzero("mounts", mounts)
            .set("network", network)
            .set("security", security);
    }
    fields.done()
}

fn kind_fields(kind: &Kind) -> Value {
    let mut fields = Fields::default();
    match kind {
        Kind::Add(add) => {
            files(&mut fields, &add.sources, &add.contents, &add.dest);
            fields
                .set_nonzero("Chown", text(&add.chown))
                .set_nonzero("Chmod", text(&add.chmod))
                .set_nonzero("Link", add.link)
                .set_nonzero("ExcludePatterns", texts(&add.exclude))
                .set_nonzero("Checksum", text(&add.checksum));
            if let Some(keep) = add.keep_git_dir {
                fields.set("KeepGitDir", keep);
            }
            if let Some(unpack) = add.unpack {
                fields.set("Unpack", unpack);
            }
        }
        Kind::Copy(copy) => {
            files(&mut fields, &copy.sources, &copy.contents, &copy.dest);
            fields
                .set_nonzero("From", text(&copy.from))
                .set_nonzero("Chown", text(&copy.chown))
                .set_nonzero("Chmod", text(&copy.chmod))
                .set_nonzero("Link", copy.link)
                .set_nonzero("ExcludePatterns", texts(&copy.exclude))
                .set_nonzero("Parents", copy.parents);
        }
        Kind::Arg(arg) => {
            let args: Vec<Value> = arg
                .args
                .iter()
                .map(|arg| {
                    let doc = arg.doc.clone().unwrap_or_default();
                    json!({ "Key": arg.key.text, "Value": text(&arg.value), "DocComment": doc })
                })
                .collect();
            fields.set("Args", args);
        }
        Kind::Cmd(cmd) => {
            command_line(&mut fields, &cmd.command);
        }
        Kind::Entrypoint(entrypoint) => {
            command_line(&mut fields, &entrypoint.command);
            if entrypoint.command.args.is_empty() {
                fields.0.remove("CmdLine");
            }
        }
        Kind::Run(run) => {
            command_line(&mut fields, &run.command);
            fields.set("FlagsUsed", run.flags_used.clone());
        }
        Kind::Env(env) => {
            fields.set("Env", pairs(&env.pairs));
        }
        Kind::Label(label) => {
            fields.set("Labels", pairs(&label.pairs));
        }
        Kind::Expose(expose) => {
            fields.set("Ports", texts(&expose.ports));
        }
        Kind::Healthcheck(check) => {
            let health = Fields::default()
                .set("Test", check.test.clone())
                .set_nonzero("Interval", check.interval)
                .set_nonzero("Timeout", check.timeout)
                .set_nonzero("StartPeriod", check.start_period)
                .set_nonzero("StartInterval", check.start_interval)
                .set_nonzero("Retries", check.retries)
                .done();
            fields.set("Health", health);
        }
        Kind::Maintainer(maintainer) => {
            fields.set_nonzero("Maintainer", maintainer.name.text.clone());
        }
        Kind::Onbuild(onbuild) => {
            fields.set_nonzero("Expression", onbuild.trigger.clone());
        }
        Kind::Shell(shell) => {
            fields.set("Shell", texts(&shell.args));
        }
        Kind::StopSignal(signal) => {
            fields.set("Signal", signal.signal.text.clone());
        }
        Kind::User(user) => {
            fields.set("User", user.user.text.clone());
        }
        Kind::Volume(volume) => {
            fields.set("Volumes", texts(&volume.paths));
        }
        Kind::Workdir(workdir) => {
            fields.set("Path", workdir.path.text.clone());
        }
    }
    fields.done()
}

fn files(fields: &mut Fields, sources: &[Word], contents: &[InlineFile], dest: &Word) {
    let contents: Vec<Value> = contents
        .iter()
        .map(|file| json!({ "Path": file.path, "Data": file.data, "Expand": file.expand }))
        .collect();
    fields
        .set_nonzero("SourcePaths", texts(sources))
        .set_nonzero("SourceContents", contents)
        .set_nonzero("DestPath", dest.text.clone());
}

fn command_line(fields: &mut Fields, command: &CommandLine) {
    let files: Vec<Value> = command
        .heredocs
        .iter()
        .map(|doc| json!({ "Name": doc.name, "Data": doc.content, "Chomp": doc.chomp }))
        .collect();
    fields
        .set("CmdLine", texts(&command.args))
        .set_nonzero("Files", files)
        .set_nonzero("PrependShell", command.form == CommandForm::Shell);
}

fn pairs(pairs: &[KeyValue]) -> Value {
    pairs
        .iter()
        .map(|pair| json!({ "Key": pair.key.text, "Value": pair.value.text, "NoDelim": pair.legacy }))
        .collect()
}

/// The targets, in the shape of the recorded ones.
fn targets(stages: &Stages) -> Value {
    let last = stages.stages.len().saturating_sub(1);
    let list: Vec<Value> = stages
        .stages
        .iter()
        .enumerate()
        .map(|(i, stage)| {
            Fields::default()
                .set("name", stage.name_str())
                .set_nonzero("description", stage.doc.clone())
                .set_nonzero("default", i == last)
                .set_nonzero("base", stage.base.text.clone())
                .set_nonzero("platform", text(&stage.platform))
                .set("lines", each(&[stage.header.lines]))
                .done()
        })
        .collect();
    json!({ "targets": list })
}

fn lint(report: &Report) -> Value {
    let mut warnings: Vec<(Option<usize>, &str, String, Value)> = report
        .warnings
        .iter()
        .map(|warning| {
            let line = warning.lines.first().map(|lines| lines.first);
            (
                line,
                warning.code,
                warning.full_message(),
                each(&warning.lines),
            )
        })
        .collect();
    warnings.sort_by(|a, b| (a.0, a.1, &a.2).cmp(&(b.0, b.1, &b.2)));
    let warnings: Vec<Value> = warnings
        .into_iter()
        .map(|(_, rule, detail, lines)| json!({ "rule": rule, "detail": detail, "lines": lines }))
        .collect();
    let mut fields = Fields::default();
    fields.set("warnings", warnings);
    if let Some(error) = &report.error {
        let lines: Value = error
            .merged_lines()
            .into_iter()
            .map(|line| json!([line, line]))
            .collect();
        fields.set("error", json!({ "message": error.message, "lines": lines }));
    }
    fields.done()
}

fn outline(outline: Result<Outline, Box<BuildError>>) -> Value {
    let outline = match outline {
        Ok(outline) => outline,
        Err(error) => {
            let error = Fields::default()
                .set("message", error.message)
                .set_nonzero("lines", each(&error.lines))
                .done();
            return json!({ "error": error });
        }
    };
    let args: Vec<Value> = outline
        .args
        .iter()
        .map(|arg| {
            Fields::default()
                .set("name", arg.name.clone())
                .set_nonzero("description", arg.description.clone())
                .set_nonzero("value", arg.value.clone())
                .set("lines", each(&[arg.lines]))
                .done()
        })
        .collect();
    let mounts = |mounts: &[OutlineMount]| -> Value {
        mounts
            .iter()
            .map(|mount| json!({ "name": mount.name, "required": mount.required, "lines": each(&[mount.lines]) }))
            .collect()
    };
    Fields::default()
        .set("name", outline.name)
        .set_nonzero("description", outline.description)
        .set("args", args)
        .set_nonzero("secrets", mounts(&outline.secrets))
        .set_nonzero("ssh", mounts(&outline.ssh))
        .done()
}
