//! COPY and ADD.

use dockerfile::chmod::{Chmod, parse_chmod};
use dockerfile::git::{GitRef, is_git_source, is_http_source};
use dockerfile::paths::{self, PathError};
use dockerfile::{Add, Copy, Diagnostic, InlineFile, Span, Word, quote};
use llb::{CopyMode, Draft, FileSpec, Metadata, Op, Output, Owner, ProgressGroup, SourceOp, attr};
use oci::Digest;

use super::{Pass, Site, Stage, platform};
use crate::error::{Outcome, error};
use crate::git::git_source;
use crate::pass::context::{http, inline_file, parse_git};
use crate::path;
use crate::state::Layer;
use crate::{name, owner};

/// What COPY and ADD have in common.
struct Request<'s> {
    is_add: bool,
    sources: Vec<(String, &'s Word)>,
    contents: Vec<(String, String)>,
    dest: String,
    dest_span: Span,
    chown: String,
    chmod: String,
    chmod_span: Option<Span>,
    checksum: String,
    checksum_span: Option<Span>,
    exclude: Vec<String>,
    link: bool,
    parents: bool,
    keep_git_dir: Option<bool>,
    unpack: Option<bool>,
    /// The tree of local sources; `None` is the main context.
    from: Option<usize>,
}

/// What all copies of one instruction have in common.
struct Copying {
    dest: String,
    mode: CopyMode,
    owner: Option<Owner>,
    exclude: Vec<String>,
    os: String,
    /// The name of the step, which sources share.
    name: String,
}

impl Pass<'_> {
    pub(super) fn add(
        &mut self,
        number: usize,
        stage: &mut Stage<'_>,
        site: &Site<'_>,
        add: &Add,
    ) -> Outcome<()> {
        let request = Request {
            is_add: true,
            chown: self.optional_word(stage, site, add.chown.as_ref())?,
            chmod: self.optional_word(stage, site, add.chmod.as_ref())?,
            chmod_span: add.chmod.as_ref().map(|chmod| chmod.span),
            checksum: self.optional_word(stage, site, add.checksum.as_ref())?,
            checksum_span: add.checksum.as_ref().map(|checksum| checksum.span),
            sources: self.source_words(stage, site, &add.sources)?,
            dest: self.word(stage, site, &add.dest)?,
            dest_span: add.dest.span,
            contents: self.contents(stage, site, &add.contents)?,
            exclude: add.exclude.iter().map(|word| word.text.clone()).collect(),
            link: add.link,
            parents: false,
            keep_git_dir: add.keep_git_dir,
            unpack: add.unpack,
            from: None,
        };
        self.copy_files(number, stage, site, &request)?;
        let is_local = |source: &&String| {
            !is_http_source(source) && GitRef::parse(source).map_or(true, |git| git.is_like_local)
        };
        let local = request
            .sources
            .iter()
            .map(|(source, _)| source)
            .filter(is_local);
        local.for_each(|source| stage.context_paths.add(paths::join("/", source)));
        Ok(())
    }

    pub(super) fn copy(
        &mut self,
        number: usize,
        stage: &mut Stage<'_>,
        site: &Site<'_>,
        copy: &Copy,
    ) -> Outcome<()> {
        let request = Request {
            is_add: false,
            chown: self.optional_word(stage, site, copy.chown.as_ref())?,
            chmod: self.optional_word(stage, site, copy.chmod.as_ref())?,
            chmod_span: copy.chmod.as_ref().map(|chmod| chmod.span),
            checksum: String::new(),
            checksum_span: None,
            sources: self.source_words(stage, site, &copy.sources)?,
            dest: self.word(stage, site, &copy.dest)?,
            dest_span: copy.dest.span,
            contents: self.contents(stage, site, &copy.contents)?,
            exclude: copy.exclude.iter().map(|word| word.text.clone()).collect(),
            link: copy.link,
            parents: copy.parents,
            keep_git_dir: None,
            unpack: None,
            from: site.sources.first().copied(),
        };
        if let (Some(source), Some(from)) = (request.from, &copy.from)
            && !self.states[source].dispatched
        {
            let message = format!(
                "cannot copy from stage {}, it needs to be defined before current stage {}",
                quote(&from.text),
                quote(&stage.label)
            );
            let error = error("stage-order", message, site.lines);
            return Err(Box::new(error.label(from.span, "this stage comes later")));
        }
        self.copy_files(number, stage, site, &request)?;
        let used = request
            .sources
            .iter()
            .map(|(source, _)| paths::join("/", source));
        match request.from {
            None => used.for_each(|path| stage.context_paths.add(path)),
            Some(source) => {
                let mut paths = self.states[source].paths.borrow_mut();
                used.for_each(|path| paths.add(path));
            }
        }
        Ok(())
    }

    fn source_words<'s>(
        &self,
        stage: &Stage<'_>,
        site: &Site<'_>,
        words: &'s [Word],
    ) -> Outcome<Vec<(String, &'s Word)>> {
        words
            .iter()
            .map(|word| Ok((self.word(stage, site, word)?, word)))
            .collect()
    }

    fn contents(
        &self,
        stage: &Stage<'_>,
        site: &Site<'_>,
        files: &[InlineFile],
    ) -> Outcome<Vec<(String, String)>> {
        files
            .iter()
            .map(|file| Ok((file.path.clone(), self.content(stage, site, file)?)))
            .collect()
    }

    fn copy_files(
        &mut self,
        number: usize,
        stage: &mut Stage<'_>,
        site: &Site<'_>,
        request: &Request<'_>,
    ) -> Outcome<()> {
        let wrong = |problem: String, span: Span| {
            Box::new(error("copy", problem, site.lines).label(span, "this path"))
        };
        let on = platform(stage, &self.target_platform).clone();
        let directory = stage.state.directory.clone();
        let dest = match request.dest.as_str() {
            "." | "" => "./",
            dest => dest,
        };
        let checked = paths::without_drive(dest, &on.os, true).map_err(|problem| {
            wrong(
                format!("removing drive letter: {problem}"),
                request.dest_span,
            )
        })?;
        let parent = if paths::is_absolute(&checked, &on.os) {
            "/"
        } else {
            &*directory
        };
        let dest = paths::normalize(parent, &checked, &on.os, true)
            .map_err(|problem| wrong(problem.to_string(), request.dest_span))?;
        let mode = match request.chmod.as_str() {
            "" => CopyMode::Keep,
            chmod => match parse_chmod(chmod).map_err(|problem| {
                let error = error("copy", problem, site.lines);
                let error = match request.chmod_span {
                    Some(span) => error.label(span, "this mode"),
                    None => *error,
                };
                Box::new(error.help(dockerfile::chmod::HELP))
            })? {
                Chmod::Octal(bits) => CopyMode::Bits(bits),
                Chmod::Symbolic(change) => CopyMode::Symbolic(change),
            },
        };
        check_checksum(request, site)?;
        let variables = stage.state.variables.clone();
        let shown = self.shown(self.expander, &site.instruction.header.code, &variables);
        let shown_platform = self.shown_platform(Some(&on)).cloned();
        let shown_platform = shown_platform.as_ref();
        let step = name::step(stage, &shown, shown_platform, Some(&variables));
        let copying = Copying {
            dest: path::copy_destination(&directory, &dest),
            mode,
            owner: (!request.chown.is_empty()).then(|| owner::parse(&request.chown)),
            exclude: request.exclude.clone(),
            os: on.os.clone(),
            name: step.clone(),
        };
        let linked = request.link && request.chmod.is_empty();
        let mut files = FileSpec::new(stage.state.output.filter(|_| !linked));
        self.copy_sources(site, request, &copying, &mut files)?;
        for (name, data) in &request.contents {
            let name = paths::without_drive(name, &on.os, false).map_err(|problem| {
                wrong(
                    format!("removing drive letter: {problem}"),
                    request.dest_span,
                )
            })?;
            let file = path::action_path("/", &name);
            let source = self.graph.add(inline_file(file.clone(), 0o644, data));
            files.copy(Some(source), copying.copy_of(file));
        }
        let metadata = |name: String| Metadata {
            ignore_cache: stage.ignore_cache,
            locations: self.location(site.lines),
            ..Metadata::named(name)
        };
        let mut made = files.into_draft(metadata(step.clone()));
        let output = if linked {
            let link = format!("LINK {shown}");
            let link = name::repeated_step(stage, &link, shown_platform, Some(&variables));
            let group = |weak| {
                let id = format!("link-{number}-{}", stage.command_index);
                Some(Box::new(ProgressGroup {
                    id,
                    name: step.clone(),
                    weak,
                }))
            };
            made.metadata.progress_group = group(true);
            let merged = Metadata {
                progress_group: group(false),
                ..metadata(link)
            };
            self.link(stage.state.output, made, merged)
        } else {
            self.graph.add(made)
        };
        stage.state.output = Some(output);
        let created_by = created_by(request);
        self.commit(stage, created_by, Layer::Made);
        Ok(())
    }

    /// Lays the copied files over a tree without looking at it, so that they can be moved to another.
    fn link(&mut self, tree: Option<Output>, files: Draft, metadata: Metadata) -> Output {
        let files = self.graph.add(files);
        let Some(tree) = tree else { return files };
        let merge = llb::MergeOp {
            inputs: vec![Some(0), Some(1)],
        };
        self.graph.add(Draft {
            metadata,
            ..Draft::new(Op::Merge(merge), vec![tree, files])
        })
    }

    fn copy_sources(
        &mut self,
        site: &Site<'_>,
        request: &Request<'_>,
        copying: &Copying,
        files: &mut FileSpec,
    ) -> Outcome<()> {
        let wrong = |problem: String, word: &Word| {
            let error = Diagnostic::error("copy", problem, site.lines);
            Box::new(error.label(word.span, "this source"))
        };
        let mut keep_git_dir = request.keep_git_dir;
        let mut checksum = request.checksum.clone();
        let size = copying.name.len() + copying.dest.len() + crate::state::size(&copying.exclude);
        for (source, word) in &request.sources {
            self.spend(size, site.lines)?;
            let git = parse_git(source, site.lines)
                .map_err(|error| Box::new(error.label(word.span, "this repository")))?
                .filter(|git| !git.is_like_local);
            if let Some(git) = git {
                if !request.is_add {
                    let error = wrong("source can't be a git ref for COPY".to_owned(), word);
                    return Err(Box::new(error.help("ADD takes git repositories")));
                }
                agree(&mut keep_git_dir, &mut checksum, &git)
                    .map_err(|problem| wrong(problem, word))?;
                let source = git_source(&git, keep_git_dir == Some(true), &checksum);
                let draft = Draft {
                    metadata: fetched(copying),
                    ..Draft::new(Op::Source(source), Vec::new())
                };
                let tree = self.graph.add(draft);
                files.copy(Some(tree), copying.copy_of("/".to_owned()));
            } else if is_http_source(source) {
                if !request.is_add {
                    let error = wrong("source can't be a URL for COPY".to_owned(), word);
                    return Err(Box::new(error.help("ADD takes URLs")));
                }
                let name = file_name(source);
                let mut draft = http(source, &name, fetched(copying));
                if !checksum.is_empty() {
                    let digest: Digest = checksum.parse().map_err(|_| {
                        let error = error("copy", checksum_problem(&checksum), site.lines);
                        let span = request.checksum_span.unwrap_or(word.span);
                        let help = "a checksum is sha256: and 64 digits, as sha256sum prints them";
                        Box::new(error.label(span, "this checksum").help(help))
                    })?;
                    if let Op::Source(SourceOp { attrs, .. }) = &mut draft.op {
                        attrs.insert(attr::HTTP_CHECKSUM.to_owned(), digest.to_string());
                    }
                }
                let tree = self.graph.add(draft);
                let copy = copying.copy_of(paths::join("/", &name));
                let unpack = request.unpack.unwrap_or(false);
                files.copy(Some(tree), llb::Copy { unpack, ..copy });
            } else {
                let copy = local_copy(request, copying, source)
                    .map_err(|problem| wrong(format!("removing drive letter: {problem}"), word))?;
                let tree = match request.from {
                    Some(stage) => self.states[stage].state.output,
                    None => Some(self.main_context()?),
                };
                files.copy(tree, copy);
            }
        }
        Ok(())
    }
}

impl Copying {
    /// Returns a copy of one file or tree as it is.
    fn copy_of(&self, source: String) -> llb::Copy {
        llb::Copy {
            source,
            dest: self.dest.clone(),
            owner: self.owner.clone(),
            mode: self.mode.clone(),
            create_dest_path: true,
            exclude_patterns: self.exclude.clone(),
            ..llb::Copy::default()
        }
    }
}

/// Returns what is noted of a source that an ADD fetches: the reference keeps a place for the instruction, and leaves
/// it empty.
fn fetched(copying: &Copying) -> Metadata {
    let command = (attr::COMMAND.to_owned(), String::new());
    Metadata {
        description: [command].into(),
        ..Metadata::named(copying.name.clone())
    }
}

fn local_copy(
    request: &Request<'_>,
    copying: &Copying,
    source: &str,
) -> Result<llb::Copy, PathError> {
    let os = copying.os.as_str();
    let normal = |path: &str| paths::normalize("/", path, os, false);
    let mut from = source;
    let mut include = Vec::new();
    let mut required = Vec::new();
    if request.parents {
        // What is before `/./` is not repeated at the destination.
        let pattern = match source.split_once("/./") {
            Some((parent, pattern)) => {
                from = parent;
                pattern
            }
            None => {
                from = "/";
                source
            }
        };
        let pattern = normal(pattern)?;
        include.push(pattern.strip_prefix('/').unwrap_or(&pattern).to_owned());
        if !has_wildcards(from) && !has_wildcards(&pattern) {
            required.push(normal(&paths::join(from, &pattern))?);
        }
    }
    let from = normal(from)?;
    Ok(llb::Copy {
        follow_symlink: true,
        directory_contents: true,
        unpack: request.unpack.unwrap_or(request.is_add),
        allow_wildcard: true,
        allow_empty_wildcard: true,
        include_patterns: include,
        required_paths: required,
        ..copying.copy_of(paths::join("/", &from))
    })
}

fn has_wildcards(path: &str) -> bool {
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'*' | b'?' | b'[' => return true,
            b'\\' => drop(bytes.next()),
            _ => {}
        }
    }
    false
}

/// Returns the name a file behind a URL gets.
pub(crate) fn file_name(url: &str) -> String {
    let path = url_path(url).unwrap_or_default();
    match path::base(&path) {
        "." | "/" => "__unnamed__".to_owned(),
        name => name.to_owned(),
    }
}

/// Returns the path of a URL, percent escapes resolved.
fn url_path(url: &str) -> Option<String> {
    let (_, rest) = url.split_once("://")?;
    let rest = rest.split(['#', '?']).next()?;
    let mut bytes = Vec::with_capacity(rest.len());
    let mut rest = rest[rest.find('/')?..].bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let value = digit(rest.next()?)? * 16 + digit(rest.next()?)?;
                u8::try_from(value).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// Joins what the flags and the URL say of a repository.
fn agree(
    keep_git_dir: &mut Option<bool>,
    checksum: &mut String,
    git: &GitRef,
) -> Result<(), String> {
    if keep_git_dir.is_some() && git.keep_git_dir.is_some() && *keep_git_dir != git.keep_git_dir {
        return Err("inconsistent keep-git-dir configuration".to_owned());
    }
    *keep_git_dir = git.keep_git_dir.or(*keep_git_dir);
    if !checksum.is_empty() && !git.checksum.is_empty() && *checksum != git.checksum {
        let (flag, url) = (quote(checksum), quote(&git.checksum));
        return Err(format!("checksum mismatch {flag} != {url}"));
    }
    if !git.checksum.is_empty() {
        checksum.clone_from(&git.checksum);
    }
    Ok(())
}

fn checksum_problem(checksum: &str) -> String {
    match checksum.split_once(':') {
        None => "invalid checksum digest format".to_owned(),
        Some(("sha256" | "sha384" | "sha512", _)) => "invalid checksum digest length".to_owned(),
        Some(_) => "unsupported digest algorithm".to_owned(),
    }
}

fn check_checksum(request: &Request<'_>, site: &Site<'_>) -> Outcome<()> {
    if request.checksum.is_empty() {
        return Ok(());
    }
    let problem = match request.sources.as_slice() {
        [(source, _)] if is_http_source(source) || is_git_source(source) => return Ok(()),
        [_] => "checksum requires HTTP(S) or Git sources",
        _ => "checksum can't be specified for multiple sources",
    };
    let error = error("checksum", problem, site.lines);
    Err(match request.checksum_span {
        Some(span) => Box::new(error.label(span, "this checksum")),
        None => error,
    })
}

/// Returns the instruction as the history shows it.
fn created_by(request: &Request<'_>) -> String {
    let mut text = if request.is_add { "ADD" } else { "COPY" }.to_owned();
    if request.parents {
        text.push_str(" --parents");
    }
    for (flag, value) in [("chown", &request.chown), ("chmod", &request.chmod)] {
        if !value.is_empty() {
            text.push_str(&format!(" --{flag}={value}"));
        }
    }
    for (source, _) in &request.sources {
        text.push_str(&format!(" {}", oci::without_user_info(source)));
    }
    for (name, _) in &request.contents {
        text.push_str(&format!(" <<{name}"));
    }
    text.push_str(&format!(" {} # buildkit", request.dest));
    text
}
