//! The frontend `dockerfile.v0`: from a client's attributes and files to trees.

use std::collections::BTreeMap;
use std::sync::Arc;

use bollard_buildkit_proto::pb;
use dockerfile::check::{BaseImage, CheckConfig, CheckOptions, Images, Rule, UnknownImages, check};
use dockerfile::ignore::{IgnoreFile, Matcher};
use dockerfile::{Ast, Diagnostic, Stages, detect_syntax};
use engine::{
    BuildClient, FoundImage, ImageLookup, KnownImages, is_builtin_frontend as is_builtin,
};
use frontend::{
    Answers, ImageRequest, Lowered, Lowering, MainContext, Options, Request, ResolveMode,
    ResolvedImage, SourceRequest, Step, Unresolved,
};
use oci::{Platform, Reference};
use progress::{Event, Position, Range, SourceInfo, Vertex, Warning};
use prost::Message;
use serde_json::json;

use crate::attestations::{self, Wanted};
use crate::build::{Build, FrontendResult, Tree, Trees};
use crate::error::Failure;
use crate::files::{self, Files};
use crate::named_contexts::named_contexts;
use crate::options::{self, Attributes};
use crate::policy::Source;
use crate::scope::Scope;
use crate::subrequest;

/// What the frontend works on.
pub(crate) struct Input {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) ignore: IgnoreFile,
    /// The context may have an ignore file that was not read yet.
    ignore_unread: bool,
    pub(crate) options: Options,
    /// In place of the file's own `check` line.
    pub(crate) check: Option<CheckConfig>,
}

/// What a request came to.
pub(crate) enum Outcome {
    Built(FrontendResult),
    /// The Dockerfile is for another frontend.
    Forward(Forward),
}

/// A request for a frontend that is an image.
pub(crate) struct Forward {
    pub(crate) attrs: Attributes,
    /// The build argument that names it.
    argument: Option<String>,
    /// The Dockerfile, and its lines that name it.
    line: Option<(String, Vec<u8>, llb::Range)>,
}

impl Forward {
    /// Says of a failure what led to the frontend.
    pub(crate) fn place(&self, failure: Failure) -> Failure {
        if failure.has_source() {
            return failure;
        }
        match (&self.argument, &self.line) {
            (Some(argument), _) => {
                failure.context(&format!("failed with BUILDKIT_SYNTAX = {argument}"))
            }
            (None, Some((name, bytes, range))) => {
                failure.with_source(name, "Dockerfile", bytes, std::slice::from_ref(range))
            }
            (None, None) => failure,
        }
    }
}

/// Carries out a request for the frontend. Blocks.
pub(crate) fn build(
    build: &Build,
    attrs: Attributes,
    inputs: &BTreeMap<String, pb::Definition>,
    scope: &Arc<Scope>,
) -> Result<Outcome, Failure> {
    let unknown_cap = match unknown_cap(&attrs) {
        // Another frontend may know it.
        Some((cap, failure)) if cap.contains("+forward") => Some(failure),
        Some((_, failure)) => return Err(failure),
        None => None,
    };
    let mut input = load(build, &attrs, inputs, scope)?;
    if let Some(forward) = other_frontend(&attrs, &input) {
        return Ok(Outcome::Forward(forward));
    }
    if let Some(failure) = unknown_cap {
        return Err(failure);
    }
    if let Some(request) = attrs.get("requestid") {
        if request == "frontend.lint" {
            input.read_ignore(build)?;
        }
        return subrequest::answer(build, request, &input).map(Outcome::Built);
    }
    let wrong = |found: Vec<Diagnostic>| Failure::of_dockerfile(&input.name, &input.bytes, &found);
    if input.bytes.is_empty() {
        return Err(Failure::unknown("the Dockerfile cannot be empty"));
    }
    let ast = dockerfile::parse(&input.bytes).map_err(wrong)?;
    let stages = ast.stages().map_err(wrong)?;
    let mut images = Found::default();
    let mut lowered = lower(build, &input, &ast, &stages, &mut images)?;
    // A client that has no context is not asked for its ignore file.
    let uses_context = lowered
        .builds
        .iter()
        .flat_map(|built| &built.contexts)
        .any(|context| context.name == "context");
    if uses_context && input.read_ignore(build)? {
        lowered = lower(build, &input, &ast, &stages, &mut images)?;
    }
    warn(build, &input, &images)?;
    let scans = attestations::Scans::of(&attrs, &lowered)?;
    let mut result = result_of(lowered, &images.known, input.options.multi_platform)?;
    if let Some(scans) = scans {
        attestations::scan(build, scope, &mut result, &scans)?;
    }
    Ok(Outcome::Built(result))
}

/// Images by what they were asked for by.
#[derive(Default)]
pub(crate) struct Found {
    answers: Answers,
    images: BTreeMap<(String, String), FoundImage>,
    known: KnownImages,
}

fn load(
    build: &Build,
    attrs: &Attributes,
    inputs: &BTreeMap<String, pb::Definition>,
    scope: &Arc<Scope>,
) -> Result<Input, Failure> {
    let mut options = options::options(attrs)?;
    options.scan_targets = Wanted::parse(attrs, Arc::default())?.sbom.is_some();
    {
        let elsewhere = options::with_prefix(attrs, "local-sessionid:");
        if !elsewhere.is_empty() {
            build.remote()?.local_sessions().extend(elsewhere);
        }
    }
    let context_key = attrs.get("contextkey").map_or("context", String::as_str);
    let local_dockerfile = attrs.get("dockerfilekey");
    let dockerfile_key = local_dockerfile.map_or("dockerfile", String::as_str);
    let mut name = attrs
        .get("filename")
        .cloned()
        .unwrap_or_else(|| "Dockerfile".to_owned());
    let url = attrs.get(context_key).map_or("", String::as_str);
    let (mut remote, mut context_tree) = (None, None);
    if let Some(context) = files::remote_context(build, url, &options.build_args)? {
        if let MainContext::HttpFile { .. } = &context.context {
            "context".clone_into(&mut name);
        }
        options.context = context.context;
        remote = context.files;
        if let (Some(folder), Some(tree)) = (attrs.get("contextsubdir"), &remote) {
            remote = files::part_of(tree, folder)?;
            options.context = match &remote {
                Some(tree) => MainContext::Graph(Arc::clone(&tree.graph)),
                None => MainContext::Graph(Arc::new(llb::Graph::scratch())),
            };
            context_tree.clone_from(&remote);
        }
    } else if let Some(definition) = inputs.get("context")
        && let Some(tree) = Tree::of_definition(definition.clone())?
    {
        options.context = MainContext::Graph(Arc::clone(&tree.graph));
        context_tree = Some(tree);
    }
    let files = match (remote, local_dockerfile, inputs.get(dockerfile_key)) {
        (Some(tree), None, _) => Files::Tree(tree),
        (_, None, Some(definition)) => match Tree::of_definition(definition.clone())? {
            Some(tree) => Files::Tree(tree),
            None => {
                return Err(Failure::unknown(
                    "failed to read dockerfile: invalid nil input definition to definition op",
                ));
            }
        },
        _ => Files::Local(dockerfile_key.to_owned()),
    };
    match &files {
        Files::Local(name) => scope.add_local(name),
        Files::Tree(tree) => tree.belongs_to(scope),
    }
    if let MainContext::Local { .. } = options.context {
        scope.add_local("context");
    }
    let (bytes, own_ignore) = read_dockerfile(build, &files, &name)?;
    let ignore = match (own_ignore, &options.context) {
        (None, MainContext::Graph(_)) => {
            let tree = context_tree.map(Files::Tree);
            let found = tree.map(|tree| tree.read(build, "", &[".dockerignore"]));
            let bytes = found
                .transpose()?
                .and_then(|found| found.into_iter().next());
            bytes
                .flatten()
                .map(|bytes| (".dockerignore".to_owned(), bytes))
        }
        (Some(bytes), _) => Some((format!("{name}.dockerignore"), bytes)),
        _ => None,
    };
    let ignore_unread = ignore.is_none() && matches!(options.context, MainContext::Local { .. });
    let ignore = match ignore {
        Some((name, bytes)) => parse_ignore(&name, &bytes)?,
        None => IgnoreFile::default(),
    };
    if let MainContext::Local { ignore: patterns } = &mut options.context {
        *patterns = patterns_of(&ignore);
    }
    options.filename.clone_from(&name);
    options.definition = match &files {
        Files::Tree(tree) => Some(tree.definition.encode_to_vec()),
        Files::Local(local) => definition_of(local, &name),
    };
    options.named_contexts = named_contexts(build, attrs, inputs)?;
    let check = match attrs.get("build-arg:BUILDKIT_DOCKERFILE_CHECK") {
        None => None,
        Some(text) => Some(CheckConfig::parse(text).map_err(|reason| {
            Failure::unknown(format!(
                "failed to parse build-arg:BUILDKIT_DOCKERFILE_CHECK: {reason}"
            ))
        })?),
    };
    Ok(Input {
        name,
        bytes,
        ignore,
        ignore_unread,
        options,
        check,
    })
}

fn missing(name: &str) -> Failure {
    Failure::unknown(format!(
        "failed to read dockerfile: open {name}: no such file or directory"
    ))
}

/// Returns the graph that yields a Dockerfile of a client's directory.
fn definition_of(local: &str, name: &str) -> Option<Vec<u8>> {
    let mut graph = llb::GraphBuilder::default();
    let follow = json!([name, format!("{name}.dockerignore")]).to_string();
    let source = llb::Op::Source(llb::SourceOp {
        identifier: format!("local://{local}"),
        attrs: BTreeMap::from([(llb::attr::FOLLOW_PATHS.to_owned(), follow)]),
    });
    let root = graph.add(llb::Draft::new(source, Vec::new()));
    let graph = graph.finish(Some(root)).ok()?;
    Some(graph.encode_definition())
}

/// Reads the Dockerfile and the ignore file beside it.
fn read_dockerfile(
    build: &Build,
    files: &Files,
    name: &str,
) -> Result<(Vec<u8>, Option<Vec<u8>>), Failure> {
    let ignore = format!("{name}.dockerignore");
    let mut names = vec![name.to_owned(), ignore];
    let (folder, base) = name
        .rsplit_once('/')
        .map_or(("", name), |(folder, base)| (folder, base));
    if base == "Dockerfile" {
        // The reference takes a file in lower case too.
        names.push(match folder {
            "" => "dockerfile".to_owned(),
            folder => format!("{folder}/dockerfile"),
        });
    }
    let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut found = files.read(build, &shown_name(name), &wanted)?.into_iter();
    let (own, ignore, lower) = (
        found.next().flatten(),
        found.next().flatten(),
        found.next().flatten(),
    );
    match own.or(lower) {
        Some(bytes) => Ok((bytes, ignore)),
        None => Err(missing(name)),
    }
}

pub(crate) fn shown_name(name: &str) -> String {
    format!("[internal] load build definition from {name}")
}

pub(crate) fn parse_ignore(name: &str, bytes: &[u8]) -> Result<IgnoreFile, Failure> {
    let invalid = |error| Failure::unknown(format!("failed parsing {name}: {error}"));
    let file = IgnoreFile::parse(&String::from_utf8_lossy(bytes)).map_err(invalid)?;
    Matcher::new(patterns_of(&file)).map_err(invalid)?;
    Ok(file)
}

pub(crate) fn patterns_of(file: &IgnoreFile) -> Vec<String> {
    file.lines.iter().map(|line| line.pattern.clone()).collect()
}

/// Finds what a client says it needs of a frontend and is not here.
fn unknown_cap(attrs: &Attributes) -> Option<(&str, Failure)> {
    let wanted = attrs.get("frontend.caps").map_or("", String::as_str);
    let mut unknown = wanted
        .split(',')
        .filter(|cap| !cap.is_empty())
        // What stands after the plus is for frontends that hand a build on to another.
        .map(|cap| (cap, cap.split('+').next().unwrap_or(cap)))
        .filter(|(_, bare)| {
            !matches!(
                *bare,
                "moby.buildkit.frontend.inputs"
                    | "moby.buildkit.frontend.subrequests"
                    | "moby.buildkit.frontend.contexts"
                    | "moby.buildkit.frontend.gitquerystring"
            )
        });
    // One that cannot be handed on counts before others.
    let all: Vec<_> = unknown.by_ref().collect();
    let fatal = all.iter().find(|(cap, _)| !cap.contains("+forward"));
    let (cap, bare) = fatal.or(all.first())?;
    Some((cap, unsupported_cap(bare)))
}

pub(crate) fn unsupported_cap(cap: &str) -> Failure {
    Failure::new(
        tonic::Code::Unimplemented,
        format!("unsupported frontend capability {cap}"),
    )
    .with_detail("errdefs.FrontendCap+json", json!({"name": cap}))
}

/// Finds the frontend that a request or a `# syntax` line names, if it is not the built-in one.
fn other_frontend(attrs: &Attributes, input: &Input) -> Option<Forward> {
    // Then the request has been handed on already.
    if attrs.contains_key("cmdline") {
        return None;
    }
    let forward = |source: &str, cmdline: &str| {
        let mut attrs = attrs.clone();
        attrs.insert("source".to_owned(), source.to_owned());
        attrs.insert("cmdline".to_owned(), cmdline.to_owned());
        attrs
    };
    if let Some(command) = attrs.get("build-arg:BUILDKIT_SYNTAX") {
        let source = command.split_whitespace().next().unwrap_or_default();
        return (!is_builtin(source)).then(|| Forward {
            attrs: forward(source, command),
            argument: Some(command.clone()),
            line: None,
        });
    }
    let syntax = detect_syntax(&input.bytes)?;
    (!is_builtin(syntax.first_word())).then(|| {
        let lines = syntax.lines;
        let range = llb::Range::lines(lines.first as u32, lines.last as u32);
        Forward {
            attrs: forward(syntax.first_word(), &syntax.value),
            argument: None,
            line: Some((input.name.clone(), input.bytes.clone(), range)),
        }
    })
}

/// Lowers the Dockerfile; images are looked for all at once.
fn lower(
    build: &Build,
    input: &Input,
    ast: &Ast,
    stages: &Stages,
    images: &mut Found,
) -> Result<Lowered, Failure> {
    let wrong = |found: Vec<Diagnostic>| Failure::of_dockerfile(&input.name, &input.bytes, &found);
    let mut lowering = Lowering::new(ast, stages, &input.options);
    loop {
        let requests = match lowering.step(&images.answers).map_err(wrong)? {
            Step::Done(lowered) => return Ok(*lowered),
            Step::Resolve(requests) => requests,
        };
        let mut asked = Vec::new();
        for request in requests {
            match request {
                Request::Image(image) => asked.push(image),
                Request::SourceTime(asked) => {
                    let time = source_time(build, &asked);
                    images.answers.source_times.insert(asked, time);
                }
            }
        }
        let found: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = asked
                .into_iter()
                .map(|image: ImageRequest| {
                    scope.spawn(move || {
                        let found = find(build, &image);
                        (image, found)
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("resolving does not panic"))
                .collect()
        });
        for (asked, found) in found {
            let answer = found.map(|(other, image)| {
                let reference = other.as_ref().unwrap_or(&asked.reference);
                let platform = &asked.platform;
                match &asked.store {
                    None => images.known.insert(reference, platform, &image),
                    Some(_) => images.known.insert_of_store(reference, platform, &image),
                }
                let resolved = ResolvedImage {
                    reference: other,
                    digest: Some(image.digest.clone()),
                    config: (*image.config).clone(),
                };
                let platform = asked.platform.normalized().to_string();
                images
                    .images
                    .insert((asked.reference.clone(), platform), image);
                resolved
            });
            images.answers.images.insert(asked, answer);
        }
    }
}

/// Finds an image, and tells its name where that is another than was asked for.
fn find(build: &Build, asked: &ImageRequest) -> Result<(Option<String>, FoundImage), Unresolved> {
    let running = build.sink.vertex(Vertex::named(asked.name.clone())).start();
    let lookup = match asked.mode {
        ResolveMode::Default => ImageLookup::RegistryFirst,
        ResolveMode::Pull => ImageLookup::Registry,
        ResolveMode::Local => ImageLookup::StoreFirst,
    };
    let found = Reference::parse_normalized(&asked.reference)
        .map_err(|error| Unresolved {
            reason: error.to_string(),
            help: None,
        })
        .and_then(|reference| {
            let (engine, platform) = (&build.engine, &asked.platform);
            let other = match asked.store {
                None => allowed(build, &reference, platform).map_err(|failure| Unresolved {
                    reason: failure.message,
                    help: None,
                })?,
                Some(_) => None,
            };
            let reference = other.as_ref().unwrap_or(&reference);
            let found = match &asked.store {
                None => engine.find(reference, platform, lookup),
                Some(store) => engine.find_in_store(&*build.client, store, reference, platform),
            };
            let found = found.map_err(|error| Unresolved {
                reason: engine::chain(&error),
                help: engine::resolve_help(&error),
            })?;
            Ok((other.map(|other| other.to_string()), found))
        });
    running.conclude(&found, |error| error.reason.clone());
    found
}

/// Tells when a source was made, as far as the policies let it be taken.
fn source_time(build: &Build, asked: &SourceRequest) -> Result<Option<i64>, String> {
    let source = Source::new(&asked.identifier, asked.attrs.clone());
    let source = match build.policies.evaluate(&source, None) {
        Ok(changed) => changed.unwrap_or(source),
        Err(failure) => return Err(failure.message),
    };
    let source = llb::SourceOp {
        identifier: source.identifier,
        attrs: source.attrs,
    };
    let client: Arc<dyn BuildClient> = build.client.clone();
    build
        .engine
        .source_time(&source, &asked.name, &client, &build.cancel, &build.sink)
        .map_err(|error| engine::chain(&error))
}

/// Returns the image that the policies have in the place of another, if they do.
fn allowed(
    build: &Build,
    reference: &Reference,
    platform: &Platform,
) -> Result<Option<Reference>, Failure> {
    let tagged = reference.clone().or_latest();
    let Some(name) = build.policies.image_name(&tagged, platform)? else {
        return Ok(None);
    };
    let image = Reference::parse_normalized(&name)
        .map_err(|error| Failure::unknown(format!("failed to parse {name}: {error}")))?;
    Ok(Some(image.or_latest()))
}

/// Images for the check: those the build has asked about.
impl Images for Found {
    fn image(&self, name: &str, platform: &Platform) -> Result<BaseImage, String> {
        let key = (name.to_owned(), platform.normalized().to_string());
        let Some(image) = self.images.get(&key) else {
            return UnknownImages.image(name, platform);
        };
        Ok(BaseImage {
            env: image.config.config.env.clone(),
            working_dir: image.config.config.working_dir.clone(),
            has_shell: !image.config.config.shell.is_empty(),
            onbuild: image.config.config.on_build.clone(),
            platform: Some(image.platform.clone()),
        })
    }
}

impl Input {
    /// Reads the ignore file of the client's context; tells whether there is anything in it.
    fn read_ignore(&mut self, build: &Build) -> Result<bool, Failure> {
        if !std::mem::take(&mut self.ignore_unread) {
            return Ok(false);
        }
        let name = ".dockerignore";
        let context = Files::Local("context".to_owned());
        let found = context.read(build, "[internal] load .dockerignore", &[name])?;
        if let Some(bytes) = found.into_iter().next().flatten() {
            self.ignore = parse_ignore(name, &bytes)?;
        }
        let found = patterns_of(&self.ignore);
        let any = !found.is_empty();
        if let MainContext::Local { ignore } = &mut self.options.context {
            *ignore = found;
        }
        Ok(any)
    }

    pub(crate) fn check_options<'a>(
        &'a self,
        images: &'a dyn Images,
        host: &'a Platform,
        target: Option<&'a str>,
    ) -> CheckOptions<'a> {
        CheckOptions {
            build_args: &self.options.build_args,
            target,
            config: self.check.as_ref(),
            build_platform: host,
            target_platform: self.options.platforms.first(),
            images,
            ignore: Some(&self.ignore),
        }
    }
}

/// Tells the findings of the check about the stages that are built.
fn warn(build: &Build, input: &Input, images: &Found) -> Result<(), Failure> {
    let host = Platform::host();
    let target = input.options.target.as_deref().unwrap_or("");
    let report = check(
        &input.bytes,
        &input.check_options(images, &host, Some(target)),
    );
    let source = Arc::new(SourceInfo {
        filename: input.name.clone(),
        data: input.bytes.clone(),
        language: "Dockerfile".to_owned(),
    });
    let vertex = Vertex::named(shown_name(&input.name)).digest;
    for warning in &report.warnings {
        let rule = Rule::from_name(warning.code);
        let line = warning.lines.first().map_or(0, |lines| lines.first);
        let mut short = format!("{}: {}", warning.code, warning.full_message());
        if line > 0 {
            short.push_str(&format!(" (line {line})"));
        }
        build.sink.send(Event::Warning(Warning {
            vertex: vertex.clone(),
            level: 1,
            short,
            detail: vec![rule.map(Rule::description).unwrap_or_default().to_owned()],
            url: rule.map(Rule::url).unwrap_or_default(),
            source: Some(Arc::clone(&source)),
            ranges: warning.lines.iter().map(range).collect(),
        }));
    }
    match report.error {
        Some(error) if !report.warnings.is_empty() || error.is_of_options() => {
            let failure = Failure::unknown(error.message.clone());
            let ranges: Vec<llb::Range> = error
                .lines
                .iter()
                .map(|lines| llb::Range::lines(lines.first as u32, lines.last as u32))
                .collect();
            Err(match ranges.is_empty() {
                true => failure,
                false => failure.with_source(&input.name, "Dockerfile", &input.bytes, &ranges),
            })
        }
        // Whatever else is wrong, the lowering has said it already.
        _ => Ok(()),
    }
}

fn range(lines: &dockerfile::Lines) -> Range {
    let at = |line: usize| Position {
        line: line as u32,
        character: 0,
    };
    Range {
        start: at(lines.first),
        end: at(lines.last),
    }
}

fn result_of(
    lowered: Lowered,
    known: &KnownImages,
    multi_platform: bool,
) -> Result<FrontendResult, Failure> {
    let multi_platform = multi_platform || lowered.multi_platform;
    let mut metadata = BTreeMap::new();
    let mut platforms = Vec::new();
    let mut trees = Vec::new();
    for built in lowered.builds {
        let platform = built.platform.normalized();
        let id = platform.full();
        let key = |name: &str| match multi_platform {
            true => format!("{name}/{id}"),
            false => name.to_owned(),
        };
        let mut config = built.config.clone();
        if let Some(epoch) = built.epoch {
            config.created = oci::Timestamp::from_unix(epoch, 0).ok();
        }
        let config = oci::json::compact(&config)
            .map_err(|error| Failure::unknown(format!("invalid image config: {error}")))?;
        metadata.insert(key("containerimage.config"), config);
        if let Some(base) = &built.base_config {
            let base = oci::json::compact(base)
                .map_err(|error| Failure::unknown(format!("invalid image config: {error}")))?;
            metadata.insert(key("containerimage.base.config"), base);
        }
        if let Some(epoch) = built.epoch {
            metadata.insert(key("source.date.epoch"), epoch.to_string().into_bytes());
        }
        platforms.push(json!({"ID": id, "Platform": platform}));
        trees.push((id, Tree::of_graph(built.graph, known.clone())?));
    }
    let platforms = json!({"Platforms": platforms});
    metadata.insert(
        "refs.platforms".to_owned(),
        platforms.to_string().into_bytes(),
    );
    let trees = match multi_platform {
        true => Trees::ByPlatform(trees),
        false => Trees::One(trees.into_iter().next().and_then(|(_, tree)| tree)),
    };
    Ok(FrontendResult {
        trees,
        metadata,
        ..FrontendResult::default()
    })
}
