//! One build from a request to its outputs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use frontend::{
    Answers, ImageRequest, Lowered, Lowering, PlatformBuild, Request, ResolvedImage, Step,
    Unresolved,
};
use llb::SourceOp;
use oci::{Descriptor, Digest, Platform, PlatformMatcher, Reference};
use progress::{Outcome, RunningVertex, Sink, Vertex};
use solver::FailurePolicy;
use store::Layer;

use crate::attest::{self, Attestation};
use crate::cache::inline::InlineRecord;
use crate::cache::{Imports, export as export_cache};
use crate::check;
use crate::context::ContextTree;
use crate::driver::{Driver, Failed};
use crate::error::{BuildFailure, StepFailure};
use crate::export::Course;
use crate::export::ahead::Ahead;
use crate::export::{self, Exported};
use crate::frontends;
use crate::history::recorder::Recorder;
use crate::history::{self, BuildRecord, Known};
use crate::plan::{self, Pinned};
use crate::request::BuildRequest;
use crate::snapshot::Snapshot;
use crate::source::dockerfile::{Loaded, Parsed};
use crate::source::fetched::{self, Fetched};
use crate::source::git_program::GitAccess;
use crate::source::image::PinnedImage;
use crate::source::layout::LayoutPlace;
use crate::step::{Shared, StepContext, trust};
use crate::vertex::VertexWork;
use crate::{Cancel, Engine, EngineError};

/// What a build made.
#[derive(Debug, Clone, Default)]
pub struct BuildResult {
    /// The id of the image (the digest of its config), or of the index for several platforms.
    pub image: Option<Digest>,
    /// The digest of the config, of an image for one platform.
    pub config: Option<Digest>,
    /// The manifest or index, where one was written or pushed.
    pub descriptor: Option<Descriptor>,
    /// The names it was given.
    pub names: Vec<Reference>,
    /// Findings about the Dockerfile.
    pub warnings: Vec<dockerfile::Diagnostic>,
    /// The Dockerfile, for showing findings.
    pub dockerfile: Option<(String, String)>,
    /// The record of the build.
    pub record: Option<Arc<BuildRecord>>,
}

/// The answer to a question of the lowering.
enum Answer {
    Image(Result<Box<PinnedImage>, Unresolved>),
    /// In seconds since 1970.
    Time(Result<Option<i64>, String>),
}

/// The tree and the image of one platform.
pub(crate) struct Built {
    pub(crate) build: PlatformBuild,
    pub(crate) layers: Vec<Layer>,
    /// What its config says of keys, for other machines.
    pub(crate) inline: Vec<InlineRecord>,
    /// What is said of it beside it.
    pub(crate) attestations: Vec<Attestation>,
}

impl Engine {
    /// Carries out a build. Progress goes to `sink`; `cancel` stops it.
    pub fn build(
        &self,
        request: &BuildRequest,
        sink: &Sink,
        cancel: &Cancel,
    ) -> Result<BuildResult, BuildFailure> {
        // What is found in the store has to stay there until the outputs are written.
        let _blobs = self.shared.store.hold_blobs();
        let store = &self.shared.store;
        let mut opening = history::opening(store, request, sink.now());
        let runtime = self.shared.runtime().map(sandbox::Runtime::title);
        opening.request.runtime = runtime.unwrap_or_default();
        let recorder = Recorder::new(store, opening, sink);
        let mut known = Known::default();
        let result = self
            .build_recorded(request, &recorder, cancel, &mut known)
            // What is given up half-way fails in many words.
            .map_err(|failure| match cancel.is_requested() {
                true => EngineError::Canceled.into(),
                false => failure,
            });
        let (mut record, printed) = recorder.finish();
        history::complete(store, &mut record, &known);
        history::conclude(&mut record, &result);
        if let Err(error) = history::keep(store, &record)
            .and_then(|()| history::trim(store, &record, printed, &self.history))
        {
            tracing::warn!(%error, "the build is not recorded");
        }
        recorder.close();
        let record = Arc::new(record);
        match result {
            Ok(mut result) => {
                result.record = Some(record);
                Ok(result)
            }
            Err(mut failure) => {
                failure.dockerfile = known.dockerfile;
                for step in &mut failure.steps {
                    let help = || crate::error::room_help(&step.error, store.root());
                    step.help = step.help.take().or_else(help);
                }
                failure.record = Some(record);
                Err(failure)
            }
        }
    }

    fn build_recorded(
        &self,
        request: &BuildRequest,
        recorder: &Recorder,
        cancel: &Cancel,
        known: &mut Known,
    ) -> Result<BuildResult, BuildFailure> {
        let sink = recorder.sink();
        let loaded = self.read_sources(request, sink)?;
        known.dockerfile = Some(loaded.source_text());
        if let Some(frontends) = &request.frontends
            && let Some(named) = frontends::other_frontend(request, &loaded)
        {
            let asked = (request, &loaded);
            return self.build_by_frontend(frontends, &named, asked, recorder, cancel, known);
        }
        let lowered = self.lower(request, &loaded, sink, known)?;
        known.builds = lowered.builds;
        let ahead = Ahead::new(&self.shared, request);
        let _stop = ahead.clone().map(StopAhead);
        let _canceled = ahead
            .clone()
            .map(|ahead| cancel.on_request(move || ahead.stop()));
        let ahead = ahead.as_ref();
        let images = known.images.clone();
        let warnings = std::thread::scope(|scope| {
            let checking = || check::warnings(request, &loaded, &images);
            if check::decides(request, &loaded) {
                let warnings = checking()?;
                known.built = self.solve(request, &loaded, known, recorder, ahead, cancel)?;
                return Ok::<_, BuildFailure>(warnings);
            }
            // Nothing waits for what is only told at the end.
            let checking = scope.spawn(checking);
            known.built = self.solve(request, &loaded, known, recorder, ahead, cancel)?;
            Ok(checking.join().expect("checking does not panic")?)
        })?;
        self.scan(request, &loaded, known, recorder, cancel)?;
        let ahead = ahead.map(Arc::as_ref);
        let course = Course { ahead, cancel };
        let result = self.deliver(request, known, lowered.multi_platform, sink, course)?;
        Ok(BuildResult { warnings, ..result })
    }

    /// Writes what was built to the outputs, and what others may use of it to the caches.
    pub(crate) fn deliver(
        &self,
        request: &BuildRequest,
        known: &Known,
        multi_platform: bool,
        sink: &Sink,
        course: Course<'_>,
    ) -> Result<BuildResult, BuildFailure> {
        let (shared, built) = (&self.shared, &known.built);
        let exported = export::export(shared, request, built, multi_platform, sink, course)?;
        let epochs = built.iter().find_map(|built| built.build.epoch);
        let epoch = epochs.or(request.source_date_epoch);
        let (targets, works) = (&request.cache_to, &known.works);
        if course.cancel.is_requested() {
            return Err(EngineError::Canceled.into());
        }
        export_cache::export(shared, targets, works, built, epoch, sink, course.ahead);
        let Exported {
            image,
            config,
            root,
            names,
        } = exported;
        Ok(BuildResult {
            image,
            config,
            descriptor: root,
            names,
            dockerfile: known.dockerfile.clone(),
            ..BuildResult::default()
        })
    }

    /// Reads what a request names: the Dockerfile, the ignore file, the contexts.
    pub(crate) fn read_sources(
        &self,
        request: &BuildRequest,
        sink: &Sink,
    ) -> Result<Loaded, EngineError> {
        crate::source::dockerfile::load(request, &self.shared, sink)
    }

    /// Lowers the Dockerfile; what it asks about images is answered in parallel.
    pub(crate) fn lower(
        &self,
        request: &BuildRequest,
        loaded: &Loaded,
        sink: &Sink,
        known: &mut Known,
    ) -> Result<Lowered, EngineError> {
        let wrong = |diagnostics| EngineError::Dockerfile { diagnostics };
        let options = loaded.options(request)?;
        let Parsed { ast, stages } = loaded.parsed().map_err(wrong)?;
        known.arguments = arguments_of(stages);
        let mut lowering = Lowering::new(ast, stages, &options);
        let mut answers = Answers::default();
        loop {
            let requests = match lowering.step(&answers).map_err(wrong)? {
                Step::Done(lowered) => return Ok(*lowered),
                Step::Resolve(requests) => requests,
            };
            let found: Vec<(Request, Answer)> = std::thread::scope(|scope| {
                let asked: Vec<_> = requests
                    .into_iter()
                    .map(|asked| {
                        scope.spawn(move || {
                            let answer = self.answer(&asked, request, loaded, sink);
                            (asked, answer)
                        })
                    })
                    .collect();
                asked
                    .into_iter()
                    .map(|thread| thread.join().expect("resolving does not panic"))
                    .collect()
            });
            for (asked, answer) in found {
                match (asked, answer) {
                    (Request::Image(asked), Answer::Image(answer)) => {
                        let resolved = answer.map(|image| {
                            let resolved = ResolvedImage {
                                reference: None,
                                digest: Some(image.digest.clone()),
                                config: (*image.config).clone(),
                            };
                            let platform = asked.platform.normalized().to_string();
                            known
                                .images
                                .insert((identifier(&asked, &image.digest), platform), *image);
                            resolved
                        });
                        answers.images.insert(asked, resolved);
                    }
                    (Request::SourceTime(asked), Answer::Time(time)) => {
                        answers.source_times.insert(asked, time);
                    }
                    (Request::Image(_), Answer::Time(_))
                    | (Request::SourceTime(_), Answer::Image(_)) => {
                        let message = "a question was answered with the answer to another";
                        return Err(EngineError::Graph(message.to_owned()));
                    }
                }
            }
        }
    }

    fn answer(
        &self,
        asked: &Request,
        request: &BuildRequest,
        loaded: &Loaded,
        sink: &Sink,
    ) -> Answer {
        fn told<T>(running: RunningVertex, found: &Result<T, EngineError>) {
            running.conclude(found, |error| crate::error::chain(error));
        }
        match asked {
            Request::Image(asked) => {
                let running = sink.vertex(Vertex::named(asked.name.clone())).start();
                let found = self.image_of(asked, request, loaded).map(Box::new);
                told(running, &found);
                Answer::Image(found.map_err(|error| Unresolved {
                    reason: crate::error::chain(&error),
                    help: crate::error::resolve_help(&error),
                }))
            }
            Request::SourceTime(asked) => {
                let running = sink.vertex(Vertex::named(asked.name.clone())).start();
                let source = SourceOp {
                    identifier: asked.identifier.clone(),
                    attrs: asked.attrs.clone(),
                };
                let access = GitAccess::new(&request.secrets, &request.ssh)
                    .until(self.shared.images.stopping());
                let pinned = Fetched::pin(&self.shared, &access, &source, &running);
                let time =
                    pinned.and_then(|pinned| pinned.own_time(&self.shared, &access, &running));
                told(running, &time);
                Answer::Time(time.map_err(|error| crate::error::chain(&error)))
            }
        }
    }

    fn image_of(
        &self,
        asked: &ImageRequest,
        request: &BuildRequest,
        loaded: &Loaded,
    ) -> Result<PinnedImage, EngineError> {
        let Some(store) = &asked.store else {
            return self.find_image(&asked.reference, &asked.platform, request.pull);
        };
        let invalid = |error: oci::ReferenceError| {
            EngineError::Request(format!("{}: {error}", asked.reference))
        };
        let reference = Reference::parse_normalized(&asked.reference).map_err(invalid)?;
        let digest = reference
            .digest()
            .cloned()
            .ok_or_else(|| EngineError::Graph(format!("{reference} of a layout has no digest")))?;
        let directory = loaded.layout(store)?;
        let images = &self.shared.images;
        images.resolve_layout(
            &self.shared,
            LayoutPlace::Directory(directory),
            &reference,
            &asked.platform,
            &digest,
        )
    }

    pub(crate) fn find_image(
        &self,
        reference: &str,
        platform: &Platform,
        pull: bool,
    ) -> Result<PinnedImage, EngineError> {
        let reference = Reference::parse_normalized(reference)
            .map_err(|error| EngineError::Request(format!("{reference}: {error}")))?;
        self.shared.images.resolve(&reference, platform, pull)
    }

    fn solve(
        &self,
        request: &BuildRequest,
        loaded: &Loaded,
        known: &mut Known,
        recorder: &Recorder,
        ahead: Option<&Arc<Ahead>>,
        cancel: &Cancel,
    ) -> Result<Vec<Built>, BuildFailure> {
        let sink = recorder.sink();
        let platforms: Vec<Platform> = known
            .builds
            .iter()
            .map(|build| build.platform.clone())
            .collect();
        let context = Arc::new(StepContext {
            shared: Arc::clone(&self.shared),
            secrets: request.secrets.clone(),
            ssh: request.ssh.clone(),
            entitlements: request.entitlements.clone(),
            limits: request.limits.clone(),
            shm_size: request.shm_size,
            trust: request
                .steps
                .ca_bundle
                .as_ref()
                .map(trust::Trust::read)
                .transpose()?,
            steps: request.steps.clone(),
            build: recorder.id().to_owned(),
            log: recorder.id().to_owned(),
            ahead: ahead.cloned(),
            client: None,
            cancel: cancel.clone(),
            imports: Arc::new(Imports::load(
                &self.shared,
                &request.cache_from,
                &platforms,
                sink,
            )),
            failed: Mutex::default(),
            renewed: Mutex::default(),
        });
        let policy = match request.keep_going {
            true => FailurePolicy::KeepGoing,
            false => FailurePolicy::Cancel,
        };
        let Known {
            images,
            builds,
            works: all,
            ..
        } = known;
        let builds = &*builds;
        let mut roots = Vec::new();
        let mut captured = Captured::new();
        let mut said = Vec::new();
        let started = recorder.started();
        for build in builds {
            let fetched = fetched::pin_all(
                &self.shared,
                &context.git_access(),
                loaded.pinned(),
                &build.graph,
                sink,
            );
            let pinned = Pinned {
                images: images.clone(),
                fetched: fetched.map_err(|(id, error)| failure_at(id, error, None, build))?,
                contexts: contexts_of(&self.shared, loaded, build, &mut captured, sink)?,
                directories: BTreeMap::new(),
            };
            let works = plan::plan(&build.graph, &pinned, &context, sink)
                .map_err(|(id, error)| planning_failure(id, error, loaded, &pinned, build))?;
            said.push(request.provenance.as_ref().map(|wanted| {
                let taken = attest::capture(&build.graph, &works);
                attest::attest(wanted, request, build, taken, (recorder.id(), started))
            }));
            if let Some(edge) = build.graph.root() {
                let root = Arc::clone(&works[edge.vertex]);
                if let Some(ahead) = ahead {
                    let base = build.config.rootfs.diff_ids.len();
                    let epoch = build.epoch.or(request.source_date_epoch);
                    ahead.watch(&root, edge.output, base, epoch);
                }
                roots.push((root, edge.output));
            }
            if let Some(ahead) = ahead {
                ahead.watch_all(&works, build.epoch.or(request.source_date_epoch));
            }
            all.extend(works);
        }
        let keys = roots.iter().map(|(work, _)| work.key).collect();
        let outputs = self
            .driver(request)
            .solve(plan::tasks(all), keys, policy, cancel)
            .map_err(|failed| BuildFailure {
                state: context.take_failed(),
                ..failure_of(failed, builds, loaded)
            });
        captured.values().for_each(|tree| tree.remember());
        if let Some((root, _)) = roots.last() {
            let keys: Vec<_> = all.iter().map(|work| work.record_key).collect();
            if let Err(error) = self.shared.store.mark_used(&root.record_key, &keys) {
                tracing::warn!(%error, "what was used is not marked");
            }
        }
        let outputs = outputs?;
        let mut found =
            roots
                .iter()
                .zip(outputs)
                .map(|((_, output), result)| match &result.outputs[*output] {
                    Snapshot::Layers(layers) => Ok(layers.clone()),
                    Snapshot::Context(tree) => context.materialize(tree).map(|layer| vec![layer]),
                });
        let mut built = Vec::new();
        for (build, said) in builds.iter().zip(said) {
            let layers: Result<Vec<Layer>, EngineError> = match build.graph.root() {
                None => Ok(Vec::new()),
                Some(_) => found.next().unwrap_or(Ok(Vec::new())),
            };
            let layers = layers?;
            let inline =
                export_cache::inline_records(&self.shared, &request.cache_to, all, &layers)?;
            built.push(Built {
                build: build.clone(),
                layers,
                inline,
                attestations: said.into_iter().collect(),
            });
        }
        Ok(built)
    }

    pub(crate) fn driver(&self, request: &BuildRequest) -> Driver<VertexWork> {
        match request.jobs {
            Some(jobs) => Driver::start(jobs),
            None => self.driver.clone(),
        }
    }
}

/// Ends what was begun ahead with the build, however that ends.
struct StopAhead(Arc<Ahead>);

impl Drop for StopAhead {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Returns the names that ARG instructions declare, in all stages.
fn arguments_of(stages: &dockerfile::Stages) -> BTreeSet<String> {
    let global = stages.meta_args.iter().map(|global| &global.arg);
    let instructions = stages.stages.iter().flat_map(|stage| &stage.instructions);
    let local = instructions.filter_map(|instruction| match &instruction.kind {
        dockerfile::Kind::Arg(arg) => Some(arg),
        _ => None,
    });
    global
        .chain(local)
        .flat_map(|arg| &arg.args)
        .map(|item| item.key.text.clone())
        .collect()
}

/// Returns the identifier of the source that stands for an image in a graph.
pub(crate) fn pinned_name(reference: &str, digest: &Digest) -> String {
    format!("docker-image://{}", with_digest(reference, digest))
}

fn with_digest(reference: &str, digest: &Digest) -> String {
    match reference.contains('@') {
        true => reference.to_owned(),
        false => format!("{reference}@{digest}"),
    }
}

/// Returns the identifier of the source that an image which was asked for becomes.
fn identifier(asked: &ImageRequest, digest: &Digest) -> String {
    match asked.store {
        Some(_) => format!("oci-layout://{}", with_digest(&asked.reference, digest)),
        None => pinned_name(&asked.reference, digest),
    }
}

/// Contexts that were captured, by name and ignore patterns: platforms share them.
pub(crate) type Captured = BTreeMap<(String, Vec<String>), Arc<ContextTree>>;

pub(crate) fn contexts_of(
    shared: &Shared,
    loaded: &Loaded,
    build: &PlatformBuild,
    captured: &mut Captured,
    sink: &Sink,
) -> Result<BTreeMap<String, Arc<ContextTree>>, EngineError> {
    let mut contexts = BTreeMap::new();
    for used in &build.contexts {
        let wanted = (used.name.clone(), used.ignore.clone());
        if let Some(tree) = captured.get(&wanted) {
            contexts.insert(used.name.clone(), Arc::clone(tree));
            continue;
        }
        let directory = loaded.directory(&used.name)?;
        let vertex = &build.graph.vertices()[used.vertex];
        let name = vertex.metadata().name.clone();
        let shown = sink.vertex(Vertex::new(vertex.id().digest(), name)).start();
        let (patterns, lasts) = ((&[][..], &used.ignore[..]), loaded.lasts(&directory));
        let tree = Arc::new(ContextTree::capture_of(
            shared, &directory, patterns, lasts,
        )?);
        shown.complete(Outcome::Done);
        captured.insert(wanted, Arc::clone(&tree));
        contexts.insert(used.name.clone(), tree);
    }
    Ok(contexts)
}

/// Names the steps that failed and where they stand in the Dockerfile.
fn failure_of(
    failed: Vec<Failed<VertexWork>>,
    builds: &[PlatformBuild],
    loaded: &Loaded,
) -> BuildFailure {
    let steps = failed
        .into_iter()
        .map(|failed| {
            let id = failed.work.as_ref().map(|work| work.id);
            let lines = id.and_then(|id| builds.iter().find_map(|build| lines_of(build, id)));
            let span = match (&*failed.error, lines) {
                (EngineError::Files(rootfs::Error::NotFound { path }), Some(lines)) => {
                    source_word(loaded, lines, path).map(|word| word.span)
                }
                (EngineError::Sandbox(error), Some(lines)) => error
                    .unfit()
                    .and_then(|unfit| user_before(loaded, lines, &unfit.user?)),
                _ => None,
            };
            StepFailure {
                lines,
                help: id
                    .and_then(|id| {
                        let mut platforms =
                            builds.iter().filter_map(|build| platform_of(build, id));
                        foreign_program(&failed.error, platforms.next()?)
                    })
                    .or_else(|| failed.error.step_help()),
                name: failed.work.map(|work| work.name.clone()),
                span,
                error: failed.error,
            }
        })
        .collect();
    BuildFailure::of_steps(steps)
}

fn platform_of(build: &PlatformBuild, id: llb::VertexId) -> Option<&Platform> {
    let mut vertices = build.graph.vertices().iter();
    vertices.find(|vertex| vertex.id() == id)?.platform()
}

/// Says what is missing where the kernel did not know what to do with a program of another machine.
fn foreign_program(error: &EngineError, platform: &Platform) -> Option<String> {
    let EngineError::Step { ending, .. } = error else {
        return None;
    };
    let host = Platform::host();
    // A shell tells of what it could not start with this code.
    let is_meant = ending.contains("exec format error") || ending.contains("exit code: 126");
    if !is_meant || PlatformMatcher::runnable(&host).matches(platform) {
        return None;
    }
    Some(format!(
        "the step runs programs for {platform} on {host}, which takes an emulator: install qemu-user-static \
         (Debian, Ubuntu: apt-get install qemu-user-static binfmt-support), or build the stage natively with \
         FROM --platform=$BUILDPLATFORM"
    ))
}

/// Returns the first and last line of a vertex in the Dockerfile.
fn lines_of(build: &PlatformBuild, id: llb::VertexId) -> Option<(u32, u32)> {
    let vertex = build
        .graph
        .vertices()
        .iter()
        .find(|vertex| vertex.id() == id)?;
    let ranges = &vertex.metadata().locations.last()?.ranges;
    Some((ranges.first()?.start.line, ranges.last()?.end.line))
}

/// Says what a step lacks before it can run, and what was probably meant.
pub(crate) fn planning_failure(
    id: llb::VertexId,
    error: EngineError,
    loaded: &Loaded,
    pinned: &Pinned,
    build: &PlatformBuild,
) -> BuildFailure {
    let EngineError::Files(rootfs::Error::NotFound { path }) = &error else {
        return failure_at(id, error, None, build);
    };
    let message = format!("{path}: no such file or directory in the build context");
    let word = lines_of(build, id).and_then(|lines| source_word(loaded, lines, path));
    let leads_out = word.as_ref().is_some_and(|word| {
        let mut parts = word.text.split('/');
        parts.any(|part| part == "..")
    });
    let path = path.trim_start_matches('/');
    let nearest = || {
        let known = pinned.contexts.values().flat_map(|tree| tree.paths());
        let known: Vec<String> = known.collect();
        let nearest = dockerfile::nearest(path, known.iter().map(String::as_str));
        nearest.map(|word| format!("did you mean {word}?"))
    };
    let help = match leads_out {
        true => Some(
            "nothing above the context can be copied; build with a context further up, or name the other folder \
             with --build-context and copy --from it"
                .to_owned(),
        ),
        false => loaded.excluded_by(path).or_else(nearest),
    };
    let mut failure = failure_at(id, EngineError::Request(message), help, build);
    failure.steps[0].span = word.map(|word| word.span);
    failure
}

/// Finds the source of a COPY or ADD that stands for a path of the tree it copies from.
fn source_word(loaded: &Loaded, lines: (u32, u32), path: &str) -> Option<dockerfile::Word> {
    let parsed = loaded.parsed().ok()?;
    let instruction = parsed
        .stages
        .stages
        .iter()
        .flat_map(|stage| &stage.instructions)
        .find(|instruction| instruction.header.lines.first == lines.0 as usize)?;
    let words = match &instruction.kind {
        dockerfile::Kind::Copy(copy) => &copy.sources,
        dockerfile::Kind::Add(add) => &add.sources,
        _ => return None,
    };
    word_of_path(words, path).cloned()
}

/// Returns where the user of a step was chosen: the last USER before it in its stage, if that names the one meant.
fn user_before(loaded: &Loaded, lines: (u32, u32), name: &str) -> Option<dockerfile::Span> {
    let parsed = loaded.parsed().ok()?;
    let instructions = parsed.stages.stages.iter().find_map(|stage| {
        let at = |instruction: &dockerfile::Instruction| {
            instruction.header.lines.first == lines.0 as usize
        };
        let step = stage.instructions.iter().position(at)?;
        stage.instructions.get(..step)
    })?;
    instructions
        .iter()
        .rev()
        .find_map(|instruction| match &instruction.kind {
            dockerfile::Kind::User(user) => Some(&user.user),
            _ => None,
        })
        .filter(|word| word.text.contains(name) || word.text.contains('$'))
        .map(|word| word.span)
}

/// Returns the word that stands for a path: by its text, or as the only one it could be.
fn word_of_path<'w>(words: &'w [dockerfile::Word], path: &str) -> Option<&'w dockerfile::Word> {
    let absolute = |word: &dockerfile::Word| dockerfile::paths::join("/", &word.text);
    // Of a pattern, or of a path with a pivot, the folder it looks into is missing.
    let looks_into = |word: &dockerfile::Word| {
        let mut rest = absolute(word);
        while let Some((folder, _)) = rest.rsplit_once('/') {
            if folder == path {
                return word.text.contains(['*', '?', '[']) || word.text.contains("/./");
            }
            rest.truncate(folder.len());
        }
        false
    };
    // With variables or quotes in it a word does not look like the path.
    let mut changed = words
        .iter()
        .filter(|word| word.text.contains(['$', '"', '\'', '\\', '`']));
    match words {
        [only] => Some(only),
        words => words
            .iter()
            .find(|word| absolute(word) == path)
            .or_else(|| words.iter().find(|word| looks_into(word)))
            .or_else(|| changed.next().filter(|_| changed.next().is_none())),
    }
}

/// Returns a failure at the lines of a vertex.
pub(crate) fn failure_at(
    id: llb::VertexId,
    error: EngineError,
    help: Option<String>,
    build: &PlatformBuild,
) -> BuildFailure {
    let vertices = build.graph.vertices();
    // A source that is fetched for an instruction has no lines of its own: those of what uses it are meant.
    let user = || {
        let users = vertices.iter().filter(|vertex| {
            let mut inputs = vertex.inputs().iter();
            inputs.any(|edge| vertices[edge.vertex].id() == id)
        });
        users
            .map(llb::Vertex::id)
            .find_map(|id| lines_of(build, id))
    };
    BuildFailure::of_steps(vec![StepFailure {
        name: None,
        lines: lines_of(build, id).or_else(user),
        span: None,
        help,
        error: Arc::new(error),
    }])
}
