//! The main context and the named ones.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use dockerfile::git::{GitRef, GitRefError};
use dockerfile::{Diagnostic, Lines, quote};
use llb::{Action, Copy, Draft, FileSpec, Location, Metadata, Op, Output, Range, SourceOp, attr};
use oci::{ImageConfig, Platform, Reference};

use super::base::Found;
use super::stages::base_error;
use super::{LocalContext, Pass, SCRATCH, Stage};
use crate::error::{Outcome, error};
use crate::git::git_source;
use crate::state::{Paths, State};
use crate::{Answers, ContextUse, ImageRequest, MainContext, NamedContext};

/// The name of the main context.
const CONTEXT: &str = "context";

impl Pass<'_> {
    /// Returns the places of a vertex in the Dockerfile.
    pub(crate) fn location(&self, lines: Lines) -> Vec<Location> {
        // A range a line, as the reference has it.
        let ranges = lines.iter().map(|line| {
            let line = u32::try_from(line).unwrap_or(u32::MAX);
            Range::lines(line, line)
        });
        vec![Location {
            source: self.source_file,
            ranges: ranges.collect(),
        }]
    }

    /// Returns a platform if names show it.
    pub(crate) fn shown_platform<'p>(
        &self,
        platform: Option<&'p Platform>,
    ) -> Option<&'p Platform> {
        platform.filter(|_| self.multi_platform)
    }

    /// Returns the tree in which COPY and ADD find their files.
    pub(crate) fn main_context(&mut self) -> Outcome<Output> {
        if let Some(output) = self.main_context {
            return Ok(output);
        }
        let options = self.options;
        let output = match &options.context {
            MainContext::Local { ignore } => {
                let named = Metadata::named("[internal] load build context");
                self.local(CONTEXT, CONTEXT, ignore, named, None)
            }
            MainContext::Graph(graph) => match self.graph.import(graph) {
                Some(output) => output,
                None => {
                    let message = "the build context is empty".to_owned();
                    return Err(crate::error::nowhere("context", message));
                }
            },
            MainContext::Git { url, keep_git_dir } => {
                let source = main_git_source(url, *keep_git_dir, &self.build_args)?;
                self.graph.add(self.git_context(source, url))
            }
            MainContext::HttpFile { url } => {
                let name = "[internal] load remote build context";
                self.graph.add(http(url, CONTEXT, Metadata::named(name)))
            }
            MainContext::HttpArchive { url } => {
                let name = "[internal] load remote build context";
                let archive = self.graph.add(http(url, CONTEXT, Metadata::named(name)));
                let mut unpacked = FileSpec::new(None);
                unpacked.copy(
                    Some(archive),
                    Copy {
                        source: format!("/{CONTEXT}"),
                        dest: "/".to_owned(),
                        unpack: true,
                        ..Copy::default()
                    },
                );
                self.graph.add(unpacked.into_draft(Metadata::default()))
            }
        };
        self.main_context = Some(output);
        Ok(output)
    }

    fn git_context(&self, source: SourceOp, url: &str) -> Draft {
        let metadata = Metadata::named(format!(
            "[internal] load git source {}",
            oci::without_user_info(url)
        ));
        Draft {
            metadata,
            ..Draft::new(Op::Source(source), Vec::new())
        }
    }

    /// Adds a local directory; the paths needed of it are set at the end.
    fn local(
        &mut self,
        name: &str,
        hint: &str,
        ignore: &[String],
        metadata: Metadata,
        paths: Option<crate::state::UsedPaths>,
    ) -> Output {
        let mut source = SourceOp {
            identifier: format!("local://{name}"),
            ..SourceOp::default()
        };
        source
            .attrs
            .insert(attr::SHARED_KEY_HINT.to_owned(), hint.to_owned());
        if !ignore.is_empty() {
            source
                .attrs
                .insert(attr::EXCLUDE_PATTERNS.to_owned(), json(ignore));
        }
        let draft = Draft {
            metadata,
            ..Draft::new(Op::Source(source), Vec::new())
        };
        let output = self.graph.add(draft);
        self.locals.push(LocalContext {
            output,
            name: name.to_owned(),
            paths,
            ignore: ignore.to_vec(),
        });
        output
    }

    /// Says of every local directory which paths are needed.
    pub(super) fn set_local_paths(&mut self) {
        let mut used = Paths::default();
        for stage in &mut self.states {
            used.append(std::mem::take(&mut stage.context_paths));
        }
        for local in &self.locals {
            let paths = match &local.paths {
                None => used.relative(),
                Some(paths) => paths.borrow().relative(),
            };
            if let (Op::Source(source), false) =
                (&mut self.graph.draft_mut(local.output).op, paths.is_empty())
            {
                source
                    .attrs
                    .insert(attr::FOLLOW_PATHS.to_owned(), json(&paths));
            }
        }
    }

    /// Returns what a graph needs of local directories.
    pub(super) fn context_uses(&self, graph: &llb::Graph) -> Vec<ContextUse> {
        let mut uses = Vec::new();
        for (number, vertex) in graph.vertices().iter().enumerate() {
            let Op::Source(source) = vertex.op() else {
                continue;
            };
            let Some(name) = source.identifier.strip_prefix("local://") else {
                continue;
            };
            let ignore = self.locals.iter().find(|local| local.name == name);
            let paths = source.attrs.get(attr::FOLLOW_PATHS);
            let paths = paths.and_then(|paths| serde_json::from_str(paths).ok());
            uses.push(ContextUse {
                name: name.to_owned(),
                vertex: number,
                paths: paths.unwrap_or_default(),
                ignore: ignore.map(|local| local.ignore.clone()).unwrap_or_default(),
            });
        }
        uses
    }

    /// Returns the key of the context that has the name of a stage or image, if there is one.
    pub(super) fn named_context(
        &self,
        name: &str,
        platform: Option<&Platform>,
        lines: Lines,
    ) -> Outcome<Option<&str>> {
        let contexts = &self.options.named_contexts;
        if contexts.is_empty() || [SCRATCH, CONTEXT].contains(&name.to_lowercase().as_str()) {
            return Ok(None);
        }
        let name = context_name(name).map_err(|problem| {
            error(
                "context-name",
                format!("invalid context name {name}: {problem}"),
                lines,
            )
        })?;
        let platform = platform
            .unwrap_or(&self.target_platform)
            .normalized()
            .full();
        let find = |wanted: &str| {
            contexts.keys().find(|key| {
                let (bare, suffix) = key.split_once("::").unwrap_or((key, ""));
                let bare = context_name(bare).unwrap_or_else(|_| bare.to_owned());
                bare == name && suffix == wanted
            })
        };
        Ok(find(&platform).or_else(|| find("")).map(String::as_str))
    }

    /// Returns the tree and image of a named context.
    pub(super) fn load_context(
        &mut self,
        key: &str,
        platform: Option<&Platform>,
        stage: &Stage<'_>,
        answers: &Answers,
    ) -> Outcome<Found<(State, Option<Rc<ImageConfig>>)>> {
        let options = self.options;
        let Some(context) = options.named_contexts.get(key) else {
            let message = format!("context {} could not be found", quote(key));
            return Err(base_error("context", message, stage));
        };
        let platform = Arc::new(platform.unwrap_or(&self.target_platform).clone());
        match context {
            NamedContext::Image(name) if name == SCRATCH => {
                Ok(Found::Yes((State::default(), None)))
            }
            NamedContext::Image(name) => {
                let reference = Reference::parse_normalized(name)
                    .map_err(|problem| base_error("image-name", problem.to_string(), stage))?;
                let reference = reference.or_latest();
                let request = ImageRequest {
                    name: format!("[context {key}] load metadata for {name}"),
                    reference: reference.to_string(),
                    platform: (*platform).clone(),
                    mode: options.resolve_mode,
                    store: None,
                };
                let Found::Yes((_, config)) = self.find_image(&request, name, stage, answers)?
                else {
                    return Ok(Found::NotYet);
                };
                let answer = answers
                    .images
                    .get(&request)
                    .and_then(|found| found.as_ref().ok());
                let digest = answer.and_then(|answer| answer.digest.clone());
                let pinned = match digest {
                    Some(digest) => reference.with_digest(digest),
                    None => reference,
                };
                let metadata = Metadata::named(format!("[context {key}] {name}"));
                let output = self.image_vertex(pinned.to_string(), &platform, metadata);
                let state = State::new(Some(output))
                    .with_platform(&platform)
                    .with_image(&config);
                Ok(Found::Yes((state, Some(config))))
            }
            NamedContext::OciLayout { store, digest } => {
                let bare = key.split("::").next().unwrap_or(key);
                let reference = Reference::parse_normalized(bare)
                    .map_err(|problem| base_error("image-name", problem.to_string(), stage))?;
                let reference = reference.without_version().with_digest(digest.clone());
                let request = ImageRequest {
                    name: format!("[context {key}] load metadata for {reference}"),
                    reference: reference.to_string(),
                    platform: (*platform).clone(),
                    mode: options.resolve_mode,
                    store: Some(store.clone()),
                };
                let Found::Yes((_, config)) = self.find_image(&request, key, stage, answers)?
                else {
                    return Ok(Found::NotYet);
                };
                let mut source = SourceOp {
                    identifier: format!("oci-layout://{reference}"),
                    ..SourceOp::default()
                };
                source
                    .attrs
                    .insert(attr::OCI_LAYOUT_STORE_ID.to_owned(), store.clone());
                let output = self.graph.add(Draft {
                    platform: Some(platform.clone()),
                    metadata: Metadata::named(format!("[context {key}] OCI load from client")),
                    ..Draft::new(Op::Source(source), Vec::new())
                });
                let state = State::new(Some(output))
                    .with_platform(&platform)
                    .with_image(&config);
                Ok(Found::Yes((state, Some(config))))
            }
            NamedContext::Graph { graph, config } => {
                let state = State::new(self.graph.import(graph)).with_platform(&platform);
                let config = config.as_deref().cloned().map(Rc::new);
                let state = match &config {
                    Some(config) => state.with_image(config),
                    None => state,
                };
                Ok(Found::Yes((state, config)))
            }
            // Names that stand for stages are seen to where stages are found.
            NamedContext::Stage(name) => {
                let message = format!("the stage {} of context {key} is not found", quote(name));
                Err(base_error("context-stage", message, stage))
            }
            NamedContext::Local { name, ignore } => {
                let metadata = Metadata::named(format!("[context {key}] load from client"));
                let hint = format!("context:{key}-");
                let paths = Some(stage.paths.clone());
                let output = self.local(name, &hint, ignore, metadata, paths);
                Ok(Found::Yes((State::new(Some(output)), None)))
            }
            NamedContext::Url(url) => {
                let output = match parse_git(url, stage.lines)? {
                    Some(git) => {
                        let keep = git.keep_git_dir == Some(true);
                        let source = git_source(&git, keep, &git.checksum);
                        self.graph.add(self.git_context(source, url))
                    }
                    None if url.starts_with("http://") || url.starts_with("https://") => {
                        let metadata = Metadata::named(format!(
                            "[context {key}] {}",
                            oci::without_user_info(url)
                        ));
                        self.graph.add(http(url, CONTEXT, metadata))
                    }
                    None => {
                        let message = format!("invalid git context {url}");
                        return Err(base_error("git-context", message, stage));
                    }
                };
                Ok(Found::Yes((State::new(Some(output)), None)))
            }
        }
    }
}

/// Returns the source that a remote main context is; `None` for a local one.
///
/// # Errors
///
/// If it names a git repository in a way that cannot be followed.
pub fn context_source(
    context: &MainContext,
    build_args: &BTreeMap<String, String>,
) -> Result<Option<SourceOp>, Vec<Diagnostic>> {
    match context {
        MainContext::Local { .. } | MainContext::Graph(_) => Ok(None),
        MainContext::Git { url, keep_git_dir } => main_git_source(url, *keep_git_dir, build_args)
            .map(Some)
            .map_err(|error| vec![*error]),
        MainContext::HttpArchive { url } | MainContext::HttpFile { url } => {
            match http(url, CONTEXT, Metadata::default()).op {
                Op::Source(source) => Ok(Some(source)),
                _ => Ok(None),
            }
        }
    }
}

fn main_git_source(
    url: &str,
    keep_git_dir: bool,
    build_args: &BTreeMap<String, String>,
) -> Outcome<SourceOp> {
    let git = parse_git(url, Lines::default())?.ok_or_else(|| {
        let message = format!("invalid git context {url}");
        crate::error::nowhere("git-context", message)
    })?;
    let keep = keep_git_dir || git.keep_git_dir == Some(true);
    let mut source = git_source(&git, keep, &git.checksum);
    let has_epoch = build_args
        .get("SOURCE_DATE_EPOCH")
        .is_some_and(|epoch| !epoch.is_empty());
    if has_epoch && git.mtime.is_empty() {
        let time = (attr::GIT_MTIME.to_owned(), "commit".to_owned());
        source.attrs.extend([time]);
    }
    Ok(source)
}

/// Returns the form of a context's name in which names are compared.
fn context_name(name: &str) -> Result<String, oci::ReferenceError> {
    let familiar = Reference::parse_normalized(name)?.familiar();
    Ok(familiar
        .strip_suffix(":latest")
        .map(str::to_owned)
        .unwrap_or(familiar))
}

/// Reads a git reference at an instruction.
pub(crate) fn parse_git(url: &str, lines: Lines) -> Outcome<Option<GitRef>> {
    match GitRef::parse(url) {
        Ok(git) => Ok(Some(git)),
        Err(GitRefError::NotGit) => Ok(None),
        Err(problem) => Err(error("git-reference", problem.to_string(), lines)),
    }
}

/// Returns the source of a file behind a URL.
pub(crate) fn http(url: &str, filename: &str, metadata: Metadata) -> Draft {
    let mut source = SourceOp {
        identifier: url.to_owned(),
        ..SourceOp::default()
    };
    source
        .attrs
        .insert(attr::HTTP_FILENAME.to_owned(), filename.to_owned());
    Draft {
        metadata,
        ..Draft::new(Op::Source(source), Vec::new())
    }
}

/// Returns a vertex with one file.
pub(crate) fn inline_file(path: String, mode: u32, data: &str) -> Draft {
    let mut spec = FileSpec::new(None);
    spec.action(Action::MakeFile(llb::MakeFile {
        path,
        mode,
        data: data.as_bytes().to_vec(),
        ..llb::MakeFile::default()
    }));
    spec.into_draft(Metadata::named("[internal] preparing inline document"))
}

/// Returns texts as a JSON array, in Go's bytes.
fn json(texts: &[String]) -> String {
    // Texts always have a JSON form.
    let bytes = oci::json::compact(&texts).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}
