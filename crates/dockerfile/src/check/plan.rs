//! The stages of a build, how they hang together, and what they begin with.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use oci::{Platform, PlatformError};

use crate::expand::{Expander, Expansion};
use crate::go::parse_i64;
use crate::ignore::Matcher;
use crate::{Header, Instruction, Keyword, Kind, Lines, Span, Stage, Stages, Word, quote, suggest};

use super::config::Linter;
use super::fix::without_platform;
use super::scope::{Recorder, Scope};
use super::stages::Globals;
use super::{
    BaseImage, CheckOptions, Result, Rule, WithLines, expansion_failure, failure, outline, warning,
};

/// The base that is no image.
pub(super) const SCRATCH: &str = "scratch";

/// A walk over the stages.
pub(super) struct Plan<'a> {
    pub(super) states: Vec<State<'a>>,
    by_name: HashMap<String, usize>,
    pub(super) globals: &'a Globals,
    pub(super) expander: Expander,
    pub(super) options: &'a CheckOptions<'a>,
    /// What the ignore file leaves out.
    pub(super) ignore: Option<Matcher>,
    pub(super) linter: &'a mut Linter,
    pub(super) guesses: Guesses,
    /// How long all words have become.
    pub(super) expanded: Expanded,
}

/// How long words have become, so that a file of words that grow without measure has an end.
#[derive(Debug, Default)]
pub(super) struct Expanded(usize);

impl Expanded {
    const MOST: usize = 1 << 28;

    /// Counts a word.
    ///
    /// # Errors
    ///
    /// If the words together are longer than any file has use for.
    pub(super) fn count(&mut self, text: &str) -> Result<()> {
        self.0 = self.0.saturating_add(text.len());
        if self.0 > Self::MOST {
            let message = "the words of this file become longer than any image can use";
            return Err(Box::new(failure("too-large", message)));
        }
        Ok(())
    }
}

/// How many words may still be compared to guess what was meant, so that a file of names alone takes no time.
#[derive(Debug)]
pub(super) struct Guesses(usize);

impl Guesses {
    const ALL: usize = 200_000;

    /// Tells whether that many words may be compared, and counts them.
    pub(super) fn take(&mut self, words: usize) -> bool {
        let left = self.0.checked_sub(words);
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }
}

/// A stage, or an image used as a source, as far as it has been walked.
pub(super) struct State<'a> {
    /// None for an image that is only used as a source.
    pub(super) stage: Option<&'a Stage>,
    /// Where errors of its base are.
    pub(super) lines: Option<Lines>,
    pub(super) base_name: String,
    pub(super) base: Option<usize>,
    pub(super) platform: Option<Platform>,
    /// The name in messages: `stage-N` if it has none of its own.
    pub(super) name: String,
    pub(super) commands: Vec<Command<'a>>,
    /// The states it takes files from, each once, with the place of the last instruction that does.
    pub(super) sources: Vec<(usize, Place)>,
    source_places: HashMap<usize, usize>,
    pub(super) named_context: Option<BaseImage>,
    pub(super) is_dispatched: bool,
    pub(super) is_resolved: bool,
    pub(super) has_triggers: bool,
    pub(super) image: Image,
    pub(super) scope: Scope,
    pub(super) dir: String,
    /// The arguments declared so far, those of the base included.
    pub(super) declared: Rc<BTreeSet<String>>,
    pub(super) has_workdir: bool,
    /// The last `CMD`, `ENTRYPOINT` and `HEALTHCHECK` so far, of which only one counts.
    pub(super) last_of: BTreeMap<Keyword, (Word, Lines)>,
    pub(super) capture: outline::Capture,
}

/// The part of an image's config that instructions look at.
#[derive(Debug, Clone, Default)]
pub(super) struct Image {
    pub(super) env: Scope,
    pub(super) working_dir: String,
    pub(super) has_shell: bool,
    pub(super) onbuild: Vec<String>,
}

/// An instruction to be walked.
#[derive(Clone)]
pub(super) struct Command<'a> {
    pub(super) instruction: Source<'a>,
    /// The states behind `COPY --from` (one) or the mounts of a `RUN` (one each).
    pub(super) sources: Vec<usize>,
}

/// Where an instruction comes from.
#[derive(Clone)]
pub(super) enum Source<'a> {
    File(&'a Instruction),
    /// From a base image or stage; its spans are not of the file, this one is the `FROM`'s.
    Trigger(Rc<Instruction>, Span),
}

/// Where an instruction is.
#[derive(Clone, Copy)]
pub(super) struct Place {
    lines: Lines,
    span: Span,
}

impl Source<'_> {
    fn place(&self) -> Place {
        let Header { lines, span, .. } = self.get().header;
        match self {
            Source::File(_) => Place { lines, span },
            Source::Trigger(_, from) => Place { lines, span: *from },
        }
    }

    pub(super) fn get(&self) -> &Instruction {
        match self {
            Source::File(instruction) => instruction,
            Source::Trigger(instruction, _) => instruction,
        }
    }
}

impl<'a> State<'a> {
    fn new(stage: Option<&'a Stage>, base_name: String, lines: Option<Lines>) -> Self {
        State {
            stage,
            lines,
            base_name,
            base: None,
            platform: None,
            name: String::new(),
            commands: Vec::new(),
            sources: Vec::new(),
            source_places: HashMap::new(),
            named_context: None,
            is_dispatched: false,
            is_resolved: false,
            has_triggers: false,
            image: Image::default(),
            scope: Scope::default(),
            dir: "/".to_owned(),
            declared: Rc::default(),
            has_workdir: false,
            last_of: BTreeMap::new(),
            capture: outline::Capture::default(),
        }
    }

    /// Returns the operating system its paths are for.
    pub(super) fn os(&self) -> &str {
        self.platform
            .as_ref()
            .map_or("", |platform| platform.os.as_str())
    }

    fn add_source(&mut self, source: usize, place: Place) {
        match self.source_places.get(&source) {
            Some(known) => self.sources[*known].1 = place,
            None => {
                self.source_places.insert(source, self.sources.len());
                self.sources.push((source, place));
            }
        }
    }
}

impl<'a> Plan<'a> {
    /// Reads the `FROM` of each stage.
    pub(super) fn new(
        stages: &'a Stages,
        globals: &'a Globals,
        expander: Expander,
        options: &'a CheckOptions<'a>,
        linter: &'a mut Linter,
    ) -> Result<Self> {
        let ignore = options.ignore.map(|file| file.matcher()).transpose();
        let ignore =
            ignore.map_err(|error| Box::new(failure("invalid-ignore", error.to_string())))?;
        let mut plan = Plan {
            states: Vec::new(),
            by_name: HashMap::new(),
            globals,
            expander,
            options,
            ignore,
            linter,
            guesses: Guesses(Guesses::ALL),
            expanded: Expanded::default(),
        };
        for (i, stage) in stages.stages.iter().enumerate() {
            plan.add_stage(i, stage)?;
        }
        Ok(plan)
    }

    fn add_stage(&mut self, index: usize, stage: &'a Stage) -> Result<()> {
        let lines = stage.header.lines;
        let Expansion {
            text: base_name,
            matched: mut used,
            ..
        } = self.expand_in_from(stage, &stage.base).at(lines)?;
        if base_name.is_empty() {
            let error = failure(
                "blank-base",
                format!("base name ({}) should not be blank", stage.base.text),
            );
            let error = error.label(stage.base.span, "nothing is left of this");
            return Err(Box::new(error.help(crate::check::BLANK_BASE_HELP))).at(lines);
        }
        let mut state = State::new(Some(stage), base_name, Some(lines));
        if let Some(word) = &stage.platform {
            let (platform, names) = self.platform(stage, word)?;
            state.platform = Some(platform);
            used.extend(names);
        }
        state.capture = outline::Capture::of(&self.globals.args);
        let name = stage.name_str();
        if !name.is_empty()
            && !matches!(name, "scratch" | "context")
            && let Some(image) = self.options.images.named_context(name)
        {
            state.name = name.to_owned();
            state.named_context = Some(image);
            let at = self.add(state);
            self.states[at].base = None;
            return Ok(());
        }
        state.name = if name.is_empty() {
            format!("stage-{index}")
        } else {
            name.to_owned()
        };
        let at = self.add(state);
        self.states[at].capture.used.extend(used);
        Ok(())
    }

    /// Expands a word of a `FROM`.
    fn expand_in_from(&mut self, stage: &Stage, word: &Word) -> Result<Expansion> {
        let scope = Recorder::new(&self.globals.scope);
        let expansion = self.expander.word(&word.text, &scope);
        let missed = scope.missed();
        for name in missed.iter().filter(|name| !self.globals.has(name)) {
            let count = self.globals.args.len() + self.globals.scope.count();
            let meant = self
                .guesses
                .take(count)
                .then(|| suggest::nearest(name, self.globals.names()))
                .flatten();
            self.linter
                .warn(Rule::UndefinedArgInFrom, &stage.header.comments, || {
                    let message = format!("FROM argument '{name}' is not declared");
                    warning(
                        Rule::UndefinedArgInFrom,
                        message,
                        stage.header.lines,
                        word,
                        "no ARG above the first FROM",
                    )
                    .suggest(meant)
                });
        }
        expansion.map_err(|error| expansion_failure(&error, word))
    }

    fn platform(&mut self, stage: &Stage, word: &Word) -> Result<(Platform, BTreeSet<String>)> {
        let header = &stage.header;
        let Expansion {
            text,
            matched,
            unmatched,
        } = match self.expand_in_from(stage, word) {
            Ok(expansion) => expansion,
            Err(mut error) => {
                error.message = format!(
                    "failed to process arguments for platform : {}",
                    error.message
                );
                return Err(error).at(header.lines);
            }
        };
        let target = self
            .globals
            .scope
            .value("TARGETPLATFORM")
            .unwrap_or_default();
        if matched.len() == 1
            && unmatched.is_empty()
            && matched.contains("TARGETPLATFORM")
            && text == target
        {
            self.linter.warn(Rule::RedundantTargetPlatform, &header.comments, || {
                let message = format!(
                    "Setting platform to predefined {} in FROM is redundant as this is the default behavior",
                    word.text
                );
                warning(Rule::RedundantTargetPlatform, message, header.lines, word, "the default")
                    .help("leave --platform away")
                    .edits(without_platform(word))
            });
        }
        let parsed = text.parse::<Platform>();
        if matched.is_empty()
            && unmatched.is_empty()
            && let Ok(platform) = &parsed
            && !stage.name_str().contains(&platform.os)
            && !stage.name_str().contains(&platform.architecture)
        {
            self.linter.warn(Rule::FromPlatformFlagConstDisallowed, &header.comments, || {
                let message = format!("FROM --platform flag should not use constant value {}", quote(&text));
                warning(Rule::FromPlatformFlagConstDisallowed, message, header.lines, word, "a constant")
                    .help("use $BUILDPLATFORM, $TARGETPLATFORM or an ARG, or name the stage for the platform")
            });
        }
        let meant = || {
            unmatched
                .iter()
                .find_map(|name| suggest::nearest(name, self.globals.scope.names()))
        };
        if text.is_empty() {
            let error = failure(
                "blank-platform",
                format!("empty platform value from expression {}", word.text),
            );
            let error = error
                .label(word.span, "nothing is left of this")
                .suggest(meant());
            return Err(Box::new(error)).at(header.lines);
        }
        match parsed {
            Ok(platform) => Ok((platform, matched)),
            Err(reason) => {
                let message = format!(
                    "failed to parse platform {}: {}",
                    word.text,
                    platform_reason(&text, &reason)
                );
                let error = failure("invalid-platform", message)
                    .label(word.span, "no platform")
                    .suggest(meant());
                Err(Box::new(error)).at(header.lines).at(header.lines)
            }
        }
    }

    /// Adds a state; an earlier stage of the name of its base is its base.
    fn add(&mut self, mut state: State<'a>) -> usize {
        let at = self.states.len();
        if let Some(&base) = self.by_name.get(&state.base_name) {
            state.base = Some(base);
            state.capture = self.states[base].capture.clone();
        }
        if let Some(name) = state
            .stage
            .map(Stage::name_str)
            .filter(|name| !name.is_empty())
        {
            self.by_name.insert(name.to_owned(), at);
        }
        self.states.push(state);
        at
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(&name.to_lowercase()).copied()
    }

    /// Returns the stage asked for, the last if none was.
    pub(super) fn target(&self) -> Result<usize> {
        let Some(name) = self.options.target.filter(|name| !name.is_empty()) else {
            return Ok(self.states.len().saturating_sub(1));
        };
        self.find(name).ok_or_else(|| {
            let names = self
                .states
                .iter()
                .map(|state| state.name.as_str())
                .filter(|name| !name.is_empty());
            let error = failure(
                "unknown-target",
                format!("target stage {} could not be found", quote(name)),
            );
            Box::new(error.suggest(suggest::nearest(name, names)))
        })
    }

    /// Finds the stages that instructions take files from.
    pub(super) fn link(&mut self) -> Result<()> {
        for at in 0..self.states.len() {
            let Some(stage) = self.states[at].stage else {
                continue;
            };
            for instruction in &stage.instructions {
                self.link_command(at, Source::File(instruction))?;
            }
        }
        self.check_cycles()?;
        if let [state] = self.states.as_mut_slice() {
            state.name.clear();
        }
        Ok(())
    }

    /// Adds an instruction to a state.
    pub(super) fn link_command(&mut self, at: usize, instruction: Source<'a>) -> Result<()> {
        let header = &instruction.get().header;
        let lines = header.lines;
        let sources = match &instruction.get().kind {
            Kind::Copy(copy) => match &copy.from {
                None => Vec::new(),
                Some(from) => vec![self.copy_source(from, lines)?],
            },
            Kind::Run(run) => {
                let names = run
                    .mounts
                    .iter()
                    .map(|mount| mount.from.clone().filter(|from| !from.is_empty()));
                let names: Vec<Option<String>> = names.collect();
                names
                    .into_iter()
                    .map(|name| self.source(name.as_deref().unwrap_or(SCRATCH), None))
                    .collect()
            }
            _ => Vec::new(),
        };
        for source in &sources {
            self.states[at].add_source(*source, instruction.place());
        }
        self.states[at].commands.push(Command {
            instruction,
            sources,
        });
        Ok(())
    }

    fn copy_source(&mut self, from: &Word, lines: Lines) -> Result<usize> {
        let expansion = self
            .expander
            .word(&from.text, &BTreeMap::new())
            .map_err(|error| expansion_failure(&error, from))?;
        if expansion.text != from.text {
            let message = "variable expansion is not supported for --from, define a new stage with FROM using ARG \
                           from global scope as a workaround";
            let error = failure("variable-in-from", message).label(from.span, "expanded nowhere");
            return Err(Box::new(error.help(format!(
                "add `FROM {} AS name` and use --from=name",
                from.text
            ))));
        }
        let Ok(index) = parse_i64(&from.text) else {
            return Ok(self.source(&from.text, Some(lines)));
        };
        usize::try_from(index)
            .ok()
            .filter(|index| *index < self.states.len())
            .ok_or_else(|| {
                let error = failure("unknown-stage", format!("invalid stage index {index}"));
                Box::new(error.label(from.span, "no such stage"))
            })
    }

    /// Returns the stage of that name, or a new state for the image of that name.
    fn source(&mut self, name: &str, lines: Option<Lines>) -> usize {
        match self.find(name) {
            Some(at) => at,
            None => self.add(State::new(None, name.to_owned(), lines)),
        }
    }

    /// Checks that no stage takes files from itself, by whatever way.
    fn check_cycles(&self) -> Result<()> {
        let mut visited = vec![false; self.states.len()];
        let mut on_path = vec![false; self.states.len()];
        for start in 0..self.states.len() {
            if visited[start] {
                continue;
            }
            // The states on the way here, each with how many of its sources were tried.
            let mut path = vec![(start, 0)];
            visited[start] = true;
            on_path[start] = true;
            while let Some((at, tried)) = path.last_mut() {
                let Some(&(source, _)) = self.states[*at].sources.get(*tried) else {
                    on_path[*at] = false;
                    path.pop();
                    continue;
                };
                *tried += 1;
                if on_path[source] {
                    let message = format!(
                        "circular dependency detected on stage: {}",
                        self.states[start].name
                    );
                    let mut error = failure("circular-dependency", message);
                    for (at, tried) in &path {
                        let place = self.states[*at].sources[*tried - 1].1;
                        error.lines.push(place.lines);
                        error = error.label(
                            place.span,
                            format!("stage {} takes files here", self.states[*at].name),
                        );
                    }
                    return Err(Box::new(error));
                }
                if !visited[source] {
                    visited[source] = true;
                    on_path[source] = true;
                    path.push((source, 0));
                }
            }
        }
        Ok(())
    }
}

/// Returns why a text is no platform, in the words of the reference.
fn platform_reason(text: &str, reason: &PlatformError) -> String {
    let text = quote(text);
    match reason {
        PlatformError::Wildcard { .. } => {
            format!("{text}: wildcards not yet supported: invalid argument")
        }
        PlatformError::Component {
            component,
            text: whole,
        } if whole.split('/').next() == Some(component) => {
            let pattern =
                quote("^([A-Za-z0-9_-]+)(?:\\(([A-Za-z0-9_.%-]*)((?:\\+[A-Za-z0-9_.%-]+)*)\\))?$");
            let component = quote(component);
            format!(
                "{component} is an invalid OS component of {text}: OSAndVersion specifier component must match \
                 {pattern}: invalid argument"
            )
        }
        PlatformError::Component { component, .. } => {
            let pattern = quote("^[A-Za-z0-9_.-]+$");
            let component = quote(component);
            format!(
                "{component} is an invalid component of {text}: platform specifier component must match {pattern}: \
                 invalid argument"
            )
        }
        PlatformError::Unknown { .. } => {
            format!("{text}: unknown operating system or architecture: invalid argument")
        }
        PlatformError::Components { .. } => {
            format!("{text}: cannot parse platform specifier: invalid argument")
        }
        PlatformError::Escape { .. } => reason.to_string(),
    }
}
