//! From the stages of a Dockerfile to a picture.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use dockerfile::expand::Expander;
use dockerfile::{Copy, Diagnostic, Instruction, Kind, Mount, MountKind, Run, Stages, Word};
use oci::Platform;

use crate::escape::one_line;
use crate::{Edge, EdgeKind, Node, NodeKind, Picture, Role, Row};

/// The base that is nothing.
const SCRATCH: &str = "scratch";
/// How much of an instruction is kept; a picture shows less.
const LONGEST_TEXT: usize = 2000;

/// What the stages are seen with.
#[derive(Debug, Clone, Copy)]
pub struct StageOptions<'a> {
    /// `None` is the last stage.
    pub target: Option<&'a str>,
    pub build_args: &'a BTreeMap<String, String>,
    /// Names of contexts that stand for stages or images.
    pub named_contexts: &'a BTreeSet<String>,
    pub build_platform: &'a Platform,
    pub target_platform: &'a Platform,
}

/// There is no stage of the target's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no stage {target:?}; the stages are {}", known.join(", "))]
pub struct UnknownTarget {
    pub target: String,
    pub known: Vec<String>,
}

/// Draws up the stages of a Dockerfile; `escape` is its escape character.
pub fn stage_picture(
    stages: &Stages,
    escape: char,
    options: &StageOptions<'_>,
) -> Result<Picture, UnknownTarget> {
    let names = labels(stages);
    let target = find_target(stages, &names, options.target)?;
    let mut drafter = Drafter {
        options,
        expander: Expander::new(escape),
        variables: variables(stages, escape, options),
        stages: names.len(),
        by_name: HashMap::new(),
        sources: BTreeMap::new(),
        picture: Picture::default(),
        seen: HashSet::new(),
    };
    for name in &names {
        drafter.picture.nodes.push(Node {
            kind: NodeKind::Stage,
            name: one_line(name),
            role: Role::Skipped,
            rows: Vec::new(),
        });
    }
    // FROM sees the stages above it, everything else sees all of them.
    let bases: Vec<Source> = stages
        .stages
        .iter()
        .enumerate()
        .map(|(number, stage)| {
            let base = drafter.base(stage.name_str(), &stage.base);
            if !stage.name_str().is_empty() {
                drafter
                    .by_name
                    .insert(stage.name_str().to_lowercase(), number);
            }
            base
        })
        .collect();
    for (number, (stage, base)) in stages.stages.iter().zip(bases).enumerate() {
        drafter.add_row(number, &stage.header.code, &stage.header);
        drafter.connect(base, number, EdgeKind::Base);
        for instruction in &stage.instructions {
            drafter.add_instruction(number, instruction);
        }
    }
    let mut picture = drafter.picture;
    mark(&mut picture, target);
    Ok(picture)
}

/// Returns the names people know the stages by.
fn labels(stages: &Stages) -> Vec<String> {
    let stages = stages.stages.iter().enumerate();
    stages
        .map(|(number, stage)| match stage.name_str() {
            "" => format!("stage-{number}"),
            name => name.to_owned(),
        })
        .collect()
}

fn find_target(
    stages: &Stages,
    names: &[String],
    target: Option<&str>,
) -> Result<Option<usize>, UnknownTarget> {
    let Some(target) = target.filter(|target| !target.is_empty()) else {
        return Ok(stages.stages.len().checked_sub(1));
    };
    let wanted = target.to_lowercase();
    let found = stages.stages.iter().rposition(|stage| {
        !stage.name_str().is_empty() && stage.name_str().to_lowercase() == wanted
    });
    match found {
        Some(found) => Ok(Some(found)),
        None => Err(UnknownTarget {
            target: target.to_owned(),
            known: names.to_vec(),
        }),
    }
}

/// Returns the variables that every FROM sees.
fn variables(
    stages: &Stages,
    escape: char,
    options: &StageOptions<'_>,
) -> BTreeMap<String, String> {
    let (build, target) = (options.build_platform, options.target_platform);
    let given = |name: &str, value: String| {
        let value = options.build_args.get(name).cloned().unwrap_or(value);
        (name.to_owned(), value)
    };
    let mut variables = BTreeMap::from([
        given("BUILDPLATFORM", build.to_string()),
        given("BUILDOS", build.os.clone()),
        given("BUILDARCH", build.architecture.clone()),
        given("BUILDVARIANT", build.variant.clone()),
        given("TARGETPLATFORM", target.full()),
        given("TARGETOS", target.os.clone()),
        given("TARGETARCH", target.architecture.clone()),
        given("TARGETVARIANT", target.variant.clone()),
    ]);
    let expander = Expander::new(escape);
    for item in stages.meta_args.iter().flat_map(|meta| &meta.arg.args) {
        let name = &item.key.text;
        let value = match (options.build_args.get(name), &item.value) {
            (Some(given), _) => Some(given.clone()),
            (None, Some(default)) => expander
                .word(&default.text, &variables)
                .ok()
                .map(|expansion| expansion.text),
            (None, None) => None,
        };
        if let Some(value) = value {
            variables.insert(name.clone(), value);
        }
    }
    variables
}

/// What a step uses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Nothing,
    Stage(usize),
    Other(NodeKind, String),
}

struct Drafter<'a> {
    options: &'a StageOptions<'a>,
    expander: Expander,
    variables: BTreeMap<String, String>,
    stages: usize,
    by_name: HashMap<String, usize>,
    sources: BTreeMap<(NodeKind, String), usize>,
    picture: Picture,
    seen: HashSet<Edge>,
}

impl Drafter<'_> {
    fn base(&self, stage: &str, word: &Word) -> Source {
        if self.options.named_contexts.contains(stage) {
            return Source::Other(NodeKind::Context, stage.to_owned());
        }
        let expanded = self.expander.word(&word.text, &self.variables);
        let name = match expanded {
            Ok(expansion) if !expansion.text.is_empty() => expansion.text,
            // What cannot be expanded is shown as it stands.
            _ => word.text.clone(),
        };
        self.named(&name)
    }

    fn named(&self, name: &str) -> Source {
        if let Some(stage) = self.by_name.get(&name.to_lowercase()) {
            return Source::Stage(*stage);
        }
        match name {
            SCRATCH | "" => Source::Nothing,
            "context" => Source::Other(NodeKind::Context, "build context".to_owned()),
            name if self.options.named_contexts.contains(name) => {
                Source::Other(NodeKind::Context, name.to_owned())
            }
            name => Source::Other(NodeKind::Image, name.to_owned()),
        }
    }

    fn add_row(&mut self, stage: usize, code: &str, header: &dockerfile::Header) {
        let mut text = one_line(code);
        if let Some((end, _)) = text.char_indices().nth(LONGEST_TEXT) {
            text.truncate(end);
        }
        self.picture.nodes[stage].rows.push(Row {
            text,
            lines: (header.lines.first, header.lines.last),
        });
    }

    fn add_instruction(&mut self, stage: usize, instruction: &Instruction) {
        let uses: Vec<(Source, EdgeKind)> = match &instruction.kind {
            Kind::Copy(copy) => self
                .copied(copy)
                .map(|source| (source, EdgeKind::Copy))
                .into_iter()
                .collect(),
            Kind::Add(add) => {
                let sources = add.sources.iter().map(|word| added(&word.text));
                sources.map(|source| (source, EdgeKind::Copy)).collect()
            }
            Kind::Run(run) => {
                let sources = self.mounted(run, instruction).into_iter();
                sources.map(|source| (source, EdgeKind::Mount)).collect()
            }
            Kind::Workdir(_) => Vec::new(),
            // Everything else only writes into the image's configuration.
            _ => return,
        };
        self.add_row(stage, &instruction.header.code, &instruction.header);
        for (source, kind) in uses {
            self.connect(source, stage, kind);
        }
    }

    fn copied(&self, copy: &Copy) -> Option<Source> {
        match copy.from.as_ref().map(|from| from.text.as_str()) {
            None | Some("") if copy.sources.is_empty() => None,
            None | Some("") => Some(context()),
            Some(from) => match from.parse::<usize>() {
                Ok(number) if number < self.stages => Some(Source::Stage(number)),
                _ => Some(self.named(from)),
            },
        }
    }

    fn mounted(&self, run: &Run, instruction: &Instruction) -> Vec<Source> {
        let lines = instruction.header.lines;
        let read = |mount: &dockerfile::MountSpec| -> Option<Mount> {
            let as_it_is = &mut |text: &str| Ok::<_, Box<Diagnostic>>(text.to_owned());
            mount.resolve(lines, as_it_is).ok()
        };
        let mounts = run.mounts.iter();
        mounts
            .filter_map(|mount| match mount.from.as_deref() {
                Some(from) if !from.is_empty() => Some(self.named(from)),
                _ => read(mount)
                    .is_some_and(|mount| mount.kind == MountKind::Bind)
                    .then(context),
            })
            .collect()
    }

    /// Leads from a source to the last step of a stage.
    fn connect(&mut self, source: Source, to: usize, kind: EdgeKind) {
        let from = match source {
            Source::Nothing => return,
            Source::Stage(stage) => stage,
            Source::Other(kind, name) => {
                let nodes = &mut self.picture.nodes;
                *self
                    .sources
                    .entry((kind, name))
                    .or_insert_with_key(|(kind, name)| {
                        nodes.push(Node {
                            kind: *kind,
                            name: one_line(name),
                            role: Role::Skipped,
                            rows: Vec::new(),
                        });
                        nodes.len() - 1
                    })
            }
        };
        let row = self.picture.nodes[to].rows.len().saturating_sub(1);
        let edge = Edge {
            from,
            to,
            row,
            kind,
        };
        // A stage that uses itself cannot be built; there is nothing to draw of that.
        if from != to && self.seen.insert(edge) {
            self.picture.edges.push(edge);
        }
    }
}

fn context() -> Source {
    Source::Other(NodeKind::Context, "build context".to_owned())
}

/// Returns where a source of `ADD` comes from.
fn added(source: &str) -> Source {
    let lower = source.to_ascii_lowercase();
    let schemes = ["http://", "https://", "git://", "ssh://", "git@"];
    match schemes.iter().any(|scheme| lower.starts_with(scheme)) {
        true => Source::Other(NodeKind::Remote, source.to_owned()),
        false => context(),
    }
}

/// Marks what the target needs.
fn mark(picture: &mut Picture, target: Option<usize>) {
    let Some(target) = target else { return };
    let mut inputs = vec![Vec::new(); picture.nodes.len()];
    for edge in &picture.edges {
        inputs[edge.to].push(edge.from);
    }
    picture.nodes[target].role = Role::Target;
    let mut open = vec![target];
    while let Some(node) = open.pop() {
        for input in &inputs[node] {
            if picture.nodes[*input].role == Role::Skipped {
                picture.nodes[*input].role = Role::Needed;
                open.push(*input);
            }
        }
    }
}
