//! Completes a record with what the graph, the sources and the result are known to be.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use frontend::PlatformBuild;
use llb::{ActionInput, NetworkMode, Op};
use oci::Digest;
use store::Store;

use super::hidden::Hidden;
use super::parts::Parts;
use super::record::{
    BuildRecord, BuildStatus, DockerfileRecord, ErrorRecord, KeyRecord, LayerRecord, OutputRecord,
    ProcessRecord, SourceRecord, StepKind, StepOutcome, StepRecord, UsageRecord,
};
use super::{CachedBy, hidden};
use crate::build::{BuildResult, Built};
use crate::error::{Blame, BuildFailure, EngineError, StepFailure};
use crate::keys::hex;
use crate::source::fetched::Fetched;
use crate::source::image::PinnedImage;
use crate::vertex::{VertexAction, VertexWork};

/// What a build has come to know, filled in as it goes on.
#[derive(Default)]
pub(crate) struct Known {
    pub(crate) dockerfile: Option<(String, String)>,
    /// Names that ARG instructions declare.
    pub(crate) arguments: BTreeSet<String>,
    pub(crate) images: BTreeMap<(String, String), PinnedImage>,
    pub(crate) builds: Vec<PlatformBuild>,
    pub(crate) works: Vec<Arc<VertexWork>>,
    pub(crate) built: Vec<Built>,
}

/// Completes a record.
pub(crate) fn complete(store: &Store, record: &mut BuildRecord, known: &Known) {
    let hidden = super::request::hider(store);
    if let Some((name, text)) = &known.dockerfile {
        record.dockerfile = Some(DockerfileRecord {
            name: name.clone(),
            text: text.clone(),
        });
    }
    record.sources = sources(known);
    let mut works: HashMap<Digest, &VertexWork> = HashMap::new();
    for work in &known.works {
        works.entry(work.id.digest()).or_insert(work);
    }
    let mut vertices = HashMap::new();
    for (build, vertex) in known.builds.iter().flat_map(|build| {
        build
            .graph
            .vertices()
            .iter()
            .map(move |vertex| (build, vertex))
    }) {
        vertices
            .entry(vertex.id().digest())
            .or_insert((build, vertex));
    }
    for step in &mut record.steps {
        if let Some((build, vertex)) = vertices.get(&step.vertex) {
            from_graph(step, &build.graph, vertex);
            if let Some(work) = works.get(&step.vertex) {
                from_work(store, &hidden, known, step, vertex, work);
            }
        }
    }
    mask(record, known);
    let outputs = known.built.iter().map(|built| output(store, built));
    record.outputs = outputs.collect();
}

/// Says how the build has ended.
pub(crate) fn conclude(record: &mut BuildRecord, result: &Result<BuildResult, BuildFailure>) {
    match result {
        Ok(result) => {
            record.status = BuildStatus::Completed;
            // Of several platforms it is the index that has a name.
            if let [output] = record.outputs.as_mut_slice() {
                output.image.clone_from(&result.image);
                output.manifest = result.descriptor.as_ref().map(|found| found.digest.clone());
            }
        }
        Err(failure) => {
            record.status = match failure.blame() {
                Blame::Canceled => BuildStatus::Canceled,
                Blame::Build | Blame::Builder => BuildStatus::Failed,
            };
            record.outputs.clear();
            record.errors = failure.steps.iter().map(error).collect();
        }
    }
}

fn error(failed: &StepFailure) -> ErrorRecord {
    let message = match failed.error.as_ref() {
        EngineError::Dockerfile { diagnostics } => match diagnostics.first() {
            Some(first) => first.message.clone(),
            None => crate::error::chain(failed.error.as_ref()),
        },
        error => crate::error::chain(error),
    };
    ErrorRecord {
        step: failed.name.clone(),
        lines: failed.lines,
        message,
        help: failed.help.clone(),
    }
}

/// The shortest hidden value that is looked for in names: shorter ones are found in every word.
const SHORTEST_MASKED: usize = 4;

/// Takes hidden values out of the names of steps and what their failures say: the names have variables in them
/// replaced by their values.
fn mask(record: &mut BuildRecord, known: &Known) {
    let mut values = BTreeSet::new();
    for vertex in known.builds.iter().flat_map(|build| build.graph.vertices()) {
        if let Op::Exec(op) = vertex.op() {
            for variable in &op.meta.env {
                let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
                if value.len() >= SHORTEST_MASKED && hidden::is_secret(name) {
                    values.insert(value);
                }
            }
        }
    }
    // The longest first: one may begin with another.
    let mut values: Vec<&str> = values.into_iter().collect();
    values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    if values.is_empty() {
        return;
    }
    let hide = |text: &mut String| {
        for value in &values {
            if text.contains(value) {
                *text = text.replace(value, "***");
            }
        }
    };
    for step in &mut record.steps {
        hide(&mut step.name);
        hide(&mut step.command);
        hide(&mut step.error);
        for part in step.key.iter_mut().flat_map(|key| &mut key.parts) {
            hide(&mut part.value);
        }
    }
}

fn sources(known: &Known) -> Vec<SourceRecord> {
    let mut sources = Vec::new();
    for ((uri, _), image) in &known.images {
        sources.push(SourceRecord {
            uri: uri.clone(),
            digest: Some(image.digest.clone()),
            config: Some(image.id.clone()),
        });
    }
    for work in &known.works {
        if let VertexAction::Fetched(Fetched::Http(file)) = &work.action {
            sources.push(SourceRecord {
                uri: oci::without_user_info(&work.name).into_owned(),
                digest: Some(file.digest.clone()),
                config: None,
            });
        }
    }
    for context in known.builds.iter().flat_map(|build| &build.contexts) {
        let uri = format!("local://{}", context.name);
        sources.push(SourceRecord {
            uri,
            digest: None,
            config: None,
        });
    }
    sources.sort_by(|a, b| (&a.uri, &a.digest).cmp(&(&b.uri, &b.digest)));
    sources.dedup();
    sources
}

fn from_graph(step: &mut StepRecord, graph: &llb::Graph, vertex: &llb::Vertex) {
    let metadata = vertex.metadata();
    step.base = base_of(vertex)
        .and_then(|number| vertex.inputs().get(number))
        .map(|input| graph.vertices()[input.vertex].id().digest());
    step.kind = match vertex.op() {
        Op::Exec(_) => StepKind::Exec,
        Op::Source(source) => match source.identifier.split_once("://") {
            Some(("docker-image" | "oci-layout", _)) => StepKind::Image,
            _ => StepKind::Source,
        },
        Op::File(_) | Op::Merge(_) | Op::Diff(_) | Op::Build(_) => StepKind::File,
    };
    let (stage, command) = split_name(&step.name);
    step.stage = stage.map(str::to_owned);
    step.command = match metadata.command.as_str() {
        "" => command.to_owned(),
        command => command.to_owned(),
    };
    let range = metadata.locations.last();
    let range = range.and_then(|location| location.ranges.first());
    step.lines = range.map(|range| (range.start.line, range.end.line));
}

/// Returns which input has the files that a step changes.
fn base_of(vertex: &llb::Vertex) -> Option<usize> {
    match vertex.op() {
        Op::Exec(exec) => exec.mounts.iter().find(|mount| mount.dest == "/")?.input,
        Op::File(file) => match file.actions.first()?.input? {
            ActionInput::Vertex(number) => Some(number),
            ActionInput::Action(_) => None,
        },
        Op::Merge(merge) => *merge.inputs.first()?,
        Op::Diff(_) | Op::Source(_) | Op::Build(_) => None,
    }
}

fn from_work(
    store: &Store,
    hidden: &Hidden,
    known: &Known,
    step: &mut StepRecord,
    vertex: &llb::Vertex,
    work: &VertexWork,
) {
    let notes = work.notes().clone();
    step.usage = notes.usage;
    match step.outcome {
        StepOutcome::Cached => {
            step.cached_by = Some(notes.cached_by.unwrap_or(CachedBy::Covered));
            step.cached_from = notes.cached_from;
        }
        StepOutcome::Ran | StepOutcome::Failed => step.miss = notes.miss,
        StepOutcome::Canceled | StepOutcome::Skipped => {}
    }
    if !matches!(work.action, VertexAction::Context(_)) {
        let is_argument = |name: &str| known.arguments.contains(name);
        let mut parts = Parts::new(hidden, &is_argument);
        parts.operation(vertex);
        for part in &work.outside {
            parts.add(part.name.as_str(), part.value.as_str());
        }
        for (number, (input, output)) in work.inputs.iter().enumerate() {
            if !matches!(input.action, VertexAction::Context(_)) {
                let value = match output {
                    0 => hex(&input.record_key),
                    output => format!("{} output {output}", hex(&input.record_key)),
                };
                parts.add(format!("input {number}"), value);
            }
        }
        step.key = Some(KeyRecord {
            definition: hex(&work.record_key),
            operation: hex(&work.operation),
            parts: parts.finish(),
        });
    }
    if let Some(id) = notes.layer {
        step.layer = layer(store, id);
    }
    if let (Op::Exec(op), Some(root)) = (vertex.op(), notes.root) {
        let mut process = ProcessRecord {
            args: op.meta.args.clone(),
            cwd: op.meta.cwd.clone(),
            user: op.meta.user.clone(),
            network: match op.network {
                NetworkMode::Sandbox => "",
                NetworkMode::Host => "host",
                NetworkMode::None => "none",
            }
            .to_owned(),
            root,
            ..ProcessRecord::default()
        };
        for variable in &op.meta.env {
            let name = variable
                .split_once('=')
                .map_or(variable.as_str(), |pair| pair.0);
            match hidden::is_secret(name) {
                true => process.hidden.push(name.to_owned()),
                false => process.env.push(variable.clone()),
            }
        }
        step.process = Some(process);
    }
}

fn layer(store: &Store, id: store::LayerId) -> Option<LayerRecord> {
    let info = store.layer_info(id).ok()?;
    Some(LayerRecord {
        id,
        diff_id: info.tar.map(|(digest, _)| digest),
        size: info.content,
    })
}

fn output(store: &Store, built: &Built) -> OutputRecord {
    let layers: Vec<LayerRecord> = built
        .layers
        .iter()
        .filter_map(|built| layer(store, built.id()))
        .collect();
    OutputRecord {
        platform: built.build.platform.to_string(),
        image: None,
        manifest: None,
        size: layers.iter().map(|layer| layer.size).sum(),
        layers,
    }
}

/// Splits `[linux/amd64 builder 2/5] RUN make` into the stage and the instruction.
pub(crate) fn split_name(name: &str) -> (Option<&str>, &str) {
    let split = name
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "));
    let Some((head, command)) = split else {
        return (None, name);
    };
    let mut words: Vec<&str> = head.split(' ').filter(|word| !word.is_empty()).collect();
    let is_number = |word: &str| {
        word.split_once('/').is_some_and(|(index, total)| {
            let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            digits(index) && digits(total)
        })
    };
    match words.pop() {
        Some(last) if is_number(last) => {}
        _ => return (None, name),
    }
    // What stands before is a platform, which has a slash; names of stages have none.
    let stage = words.pop().filter(|word| !word.contains('/'));
    (stage, command)
}

impl From<sandbox::Usage> for UsageRecord {
    fn from(usage: sandbox::Usage) -> Self {
        Self {
            user: usage.user.as_micros() as u64,
            system: usage.system.as_micros() as u64,
            peak_memory: usage.peak_memory,
            read: usage.read,
            written: usage.written,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_into_stage_and_instruction() {
        let check = |name: &str, stage: Option<&str>, command: &str| {
            assert_eq!(split_name(name), (stage, command), "{name}");
        };
        check("[builder 2/5] RUN make", Some("builder"), "RUN make");
        check("[stage-1  2/15] COPY a b", Some("stage-1"), "COPY a b");
        check("[2/5] RUN make", None, "RUN make");
        check("[linux/amd64 b 1/2] RUN x", Some("b"), "RUN x");
        check("[linux/amd64->arm64 b 1/2] RUN x", Some("b"), "RUN x");
        check("[linux/arm/v7 1/2] RUN x", None, "RUN x");
        check(
            "[internal] load .dockerignore",
            None,
            "[internal] load .dockerignore",
        );
        check("exporting to image", None, "exporting to image");
    }
}
