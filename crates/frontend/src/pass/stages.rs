//! The stages of a file, what they use, and which of them are needed.

use std::collections::hash_map::Entry;
use std::sync::Arc;

use dockerfile::{Diagnostic, Instruction, Kind, Lines, Span, parse_trigger, quote};
use oci::Platform;

use super::{Command, Pass, Place, SCRATCH, Stage, Text};
use crate::error::{Outcome, Stop, error, nowhere, of_trigger};
use crate::{Answers, NamedContext};

/// Which stages are needed, by number.
pub(crate) type Needed = Vec<bool>;

impl<'a> Pass<'a> {
    /// Computes the arguments that every FROM sees.
    pub(super) fn set_global_arguments(&mut self) -> Result<(), Stop> {
        let stages = self.stages;
        let Some(last) = stages.stages.last() else {
            return Err(nowhere("no-stages", "dockerfile contains no stages to build").into());
        };
        let target = match self.options.target.as_deref() {
            Some(target) if !target.is_empty() => target,
            _ => last.name_str(),
        };
        let build = &self.build_platforms[0];
        let platform = &self.target_platform;
        let predefined = [
            ("BUILDPLATFORM", build.to_string()),
            ("BUILDOS", build.os.clone()),
            ("BUILDOSVERSION", build.os_version.clone()),
            ("BUILDARCH", build.architecture.clone()),
            ("BUILDVARIANT", build.variant.clone()),
            ("TARGETPLATFORM", platform.full()),
            ("TARGETOS", platform.os.clone()),
            ("TARGETOSVERSION", platform.os_version.clone()),
            ("TARGETARCH", platform.architecture.clone()),
            ("TARGETVARIANT", platform.variant.clone()),
            (
                "TARGETSTAGE",
                if target.is_empty() { "default" } else { target }.to_owned(),
            ),
        ];
        for (name, value) in predefined {
            let value = self.build_args.get(name).unwrap_or(&value);
            self.global.set(name, value);
        }
        for meta in &stages.meta_args {
            for item in &meta.arg.args {
                let name = &item.key.text;
                let value = match (self.build_args.get(name), &item.value) {
                    (Some(given), _) => given.clone(),
                    (None, Some(default)) => {
                        self.expand(default, &self.global, meta.header.lines)?
                    }
                    (None, None) => continue,
                };
                self.spend(value.len(), meta.header.lines)?;
                self.global.set(name, &value);
            }
        }
        Ok(())
    }

    /// Makes a state for each stage.
    pub(super) fn make_states(&mut self) -> Result<(), Stop> {
        let stages = self.stages;
        for (number, stage) in stages.stages.iter().enumerate() {
            let lines = stage.header.lines;
            let base_name = self.expand(&stage.base, &self.global, lines)?;
            if base_name.is_empty() {
                let message = format!("base name ({}) should not be blank", stage.base);
                let error = Diagnostic::error("blank-base", message, lines);
                let label = "nothing is left of this after expansion";
                let error = error.label(stage.base.span, label);
                return Err(Box::new(error.help(dockerfile::check::BLANK_BASE_HELP)).into());
            }
            let platform = self.stage_platform(stage)?;
            let base_name = match self.by_name.contains_key(&base_name) {
                true => base_name,
                false => self.stand_in(&base_name, stage)?.unwrap_or(base_name),
            };
            let mut state = Stage {
                name: stage.name_str().to_owned(),
                label: stage.name_str().to_owned(),
                base_name,
                code: &stage.header.code,
                lines,
                base_span: stage.base.span,
                platform,
                ..Stage::default()
            };
            if !state.name.is_empty() {
                let context = self.named_context(&state.name, state.platform.as_deref(), lines)?;
                state.named_context = context.map(str::to_owned);
            }
            if state.named_context.is_some()
                && let Some(other) = self.stand_in(&state.name, stage)?
            {
                (state.base_name, state.named_context) = (other, None);
                (state.replaced, state.triggers_done) = (true, true);
                self.add_state(state);
                continue;
            }
            if state.name.is_empty() {
                state.label = format!("stage-{number}");
            }
            let replaced = state.named_context.is_some();
            let state = self.add_state(state);
            let state = &mut self.states[state];
            if replaced {
                state.base = None;
                continue;
            }
            state.command_total = stage
                .instructions
                .iter()
                .filter(|each| is_counted(each))
                .count();
            if state.base_name != SCRATCH && state.base.is_none() {
                state.command_total += 1;
            }
            state.ignore_cache = self.options.no_cache.covers(&state.name);
        }
        Ok(())
    }

    /// Returns the stage that a context puts in place of a name (`target:STAGE`).
    ///
    /// As with any base it has to come before the stage that begins with it.
    fn stand_in(&self, name: &str, user: &dockerfile::Stage) -> Outcome<Option<String>> {
        let lines = user.header.lines;
        let Some(wanted) = self.stage_context(name, lines)? else {
            return Ok(None);
        };
        let lower = wanted.to_lowercase();
        if self.by_name.contains_key(&lower) {
            return Ok(Some(lower));
        }
        let message = format!(
            "the context {name} is to be stage {}, which is not defined before this one",
            quote(wanted)
        );
        let error = Diagnostic::error("context-stage", message, lines);
        let error = error.label(user.base.span, "the stage is needed from here on");
        let known = self.by_name.keys().map(String::as_str);
        let mut known: Vec<&str> = known.collect();
        known.sort_unstable();
        let nearest = dockerfile::nearest(&lower, known).map(str::to_owned);
        Err(Box::new(error.suggest(nearest)))
    }

    /// Returns the stage that a context with this name is.
    fn stage_context(&self, name: &str, lines: Lines) -> Outcome<Option<&'a str>> {
        let key = self.named_context(name, None, lines)?;
        let options = self.options;
        Ok(match key.and_then(|key| options.named_contexts.get(key)) {
            Some(NamedContext::Stage(stage)) => Some(stage),
            _ => None,
        })
    }

    fn stage_platform(&self, stage: &dockerfile::Stage) -> Outcome<Option<Arc<Platform>>> {
        let Some(word) = stage.platform.as_ref().filter(|word| !word.text.is_empty()) else {
            return Ok(None);
        };
        let lines = stage.header.lines;
        let expansion = self
            .expansion(word, &self.global, lines)
            .map_err(|mut problem| {
                problem.message = format!(
                    "failed to process arguments for platform : {}",
                    problem.message
                );
                problem
            })?;
        let suggestion = || {
            let names = || self.global.iter().map(|(name, _)| name);
            let nearest = expansion.unmatched.iter();
            nearest
                .filter_map(|name| dockerfile::nearest(name, names()))
                .map(str::to_owned)
                .next()
        };
        if expansion.text.is_empty() {
            let message = format!("empty platform value from expression {word}");
            let error = Diagnostic::error("empty-platform", message, lines);
            let error = error.label(word.span, "nothing is left of this after expansion");
            return Err(Box::new(error.suggest(suggestion())));
        }
        let platform: Result<Platform, _> = expansion.text.parse();
        platform
            .map(|platform| Some(Arc::new(platform)))
            .map_err(|problem| {
                let message = format!("failed to parse platform {word}: {problem}");
                let error = Diagnostic::error("invalid-platform", message, lines);
                let error = error.label(word.span, format!("this is {}", quote(&expansion.text)));
                Box::new(error.suggest(suggestion()))
            })
    }

    /// Adds a state; its base is a stage of that name, if there is one before it.
    pub(super) fn add_state(&mut self, mut state: Stage<'a>) -> usize {
        let number = self.states.len();
        state.base = self.by_name.get(&state.base_name).copied();
        if !state.name.is_empty() {
            self.by_name.insert(state.name.to_lowercase(), number);
        }
        self.states.push(state);
        number
    }

    fn find_state(&self, name: &str) -> Option<usize> {
        if name
            .bytes()
            .any(|byte| byte.is_ascii_uppercase() || !byte.is_ascii())
        {
            return self.by_name.get(&name.to_lowercase()).copied();
        }
        self.by_name.get(name).copied()
    }

    /// Returns the names people know the stages by.
    pub(super) fn labels(&self) -> impl Iterator<Item = &str> {
        self.states
            .iter()
            .map(|state| state.label.as_str())
            .filter(|label| !label.is_empty())
    }

    pub(super) fn find_target(&self) -> Result<usize, Stop> {
        let Some(target) = self
            .options
            .target
            .as_deref()
            .filter(|target| !target.is_empty())
        else {
            return Ok(self.states.len() - 1);
        };
        self.find_state(target).ok_or_else(|| {
            let message = format!("target stage {} could not be found", quote(target));
            let known: Vec<&str> = self.labels().collect();
            let help = format!("the stages are {}", known.join(", "));
            let error = nowhere("unknown-target", message).help(help);
            let nearest = dockerfile::nearest(target, known).map(str::to_owned);
            Stop::Errors(vec![error.suggest(nearest)])
        })
    }

    /// Finds the stages that instructions use.
    pub(super) fn connect(&mut self) -> Result<(), Stop> {
        let stages = self.stages;
        for (number, stage) in stages.stages.iter().enumerate() {
            if self.states[number].replaced {
                continue;
            }
            let mut commands = Vec::with_capacity(stage.instructions.len());
            for instruction in &stage.instructions {
                commands.push(self.command(number, Text::File(instruction), false)?);
            }
            self.states[number].commands = commands;
        }
        self.check_circles()?;
        if let [only] = self.states.as_mut_slice() {
            only.label.clear();
        }
        Ok(())
    }

    fn command(
        &mut self,
        stage: usize,
        instruction: Text<'a>,
        is_trigger: bool,
    ) -> Outcome<Command<'a>> {
        let sources = self.sources(&instruction, is_trigger)?;
        let user = &mut self.states[stage];
        let here = Place {
            lines: instruction.header.lines,
            span: match is_trigger {
                true => user.base_span,
                false => instruction.header.span,
            },
        };
        for source in &sources {
            match user.dependency_places.entry(*source) {
                Entry::Occupied(place) => user.dependencies[*place.get()].1 = here,
                Entry::Vacant(place) => {
                    place.insert(user.dependencies.len());
                    user.dependencies.push((*source, here));
                }
            }
        }
        Ok(Command {
            instruction,
            sources,
            is_trigger,
        })
    }

    fn sources(&mut self, instruction: &Instruction, is_trigger: bool) -> Outcome<Vec<usize>> {
        let lines = instruction.header.lines;
        match &instruction.kind {
            Kind::Copy(copy) => {
                let Some(from) = copy.from.as_ref().filter(|from| !from.text.is_empty()) else {
                    return Ok(Vec::new());
                };
                let expanded = self.expander.word(&from.text, &Vec::<String>::new());
                let expanded = expanded
                    .map_err(|problem| crate::error::unexpanded(&problem, from.span, lines))?;
                if expanded.text != from.text {
                    let message = "variable expansion is not supported for --from, define a new stage with FROM \
                                   using ARG from global scope as a workaround";
                    let error = nowhere("from-variable", message);
                    return Err(Box::new(error.label(from.span, "this would be expanded")));
                }
                let source = match from.text.parse::<i64>() {
                    Ok(index) => usize::try_from(index)
                        .ok()
                        .filter(|index| *index < self.states.len())
                        .ok_or_else(|| {
                            let message = format!("invalid stage index {index}");
                            let error = Diagnostic::error("stage-index", message, lines);
                            let count = self.stages.stages.len();
                            let error = error.label(from.span, "no stage has this number");
                            Box::new(
                                error.note(format!("stages are counted from 0; there are {count}")),
                            )
                        })?,
                    Err(_) => {
                        // The words of a trigger are not in the file.
                        let span = if is_trigger {
                            Span::default()
                        } else {
                            from.span
                        };
                        self.source(&from.text, lines, span)
                    }
                };
                Ok(vec![source])
            }
            Kind::Run(run) => {
                let mounts = run.mounts.iter();
                let names = mounts.map(|mount| mount.from.as_deref().unwrap_or_default());
                let names = names.map(|name| if name.is_empty() { SCRATCH } else { name });
                // The reference gives no place to images named by mounts.
                let nowhere = Span::default();
                Ok(names
                    .map(|name| self.source(name, lines, nowhere))
                    .collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Returns the stage of a name, or a new one for the image of that name.
    fn source(&mut self, name: &str, lines: Lines, span: Span) -> usize {
        let known = self.find_state(name).or_else(|| {
            // What is no name of a context is no name of an image either, which is said later.
            let other = self.stage_context(name, lines).ok().flatten()?;
            self.find_state(other)
        });
        known.unwrap_or_else(|| {
            self.add_state(Stage {
                base_name: name.to_owned(),
                lines,
                base_span: span,
                unregistered: true,
                ..Stage::default()
            })
        })
    }

    /// Fails if a stage uses itself through instructions.
    fn check_circles(&self) -> Outcome<()> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let mut marks = vec![Mark::New; self.states.len()];
        for start in 0..self.states.len() {
            // Each element: a stage, the next of its dependencies to look at.
            let mut path: Vec<(usize, usize)> = Vec::new();
            if marks[start] == Mark::New {
                marks[start] = Mark::Open;
                path.push((start, 0));
            }
            while let Some((stage, next)) = path.last_mut() {
                let Some((dependency, _)) = self.states[*stage].dependencies.get(*next) else {
                    marks[*stage] = Mark::Done;
                    path.pop();
                    continue;
                };
                *next += 1;
                match marks[*dependency] {
                    Mark::New => {
                        marks[*dependency] = Mark::Open;
                        path.push((*dependency, 0));
                    }
                    Mark::Done => {}
                    Mark::Open => return Err(self.circle(start, &path)),
                }
            }
        }
        Ok(())
    }

    fn circle(&self, start: usize, path: &[(usize, usize)]) -> Box<Diagnostic> {
        let label = &self.states[start].label;
        let message = format!("circular dependency detected on stage: {label}");
        let mut error = nowhere("circular-dependency", message);
        for (stage, next) in path {
            let (used, place) = self.states[*stage].dependencies[next - 1];
            error.lines.push(place.lines);
            let label = match self.states[used].label.as_str() {
                "" => "needs its own stage".to_owned(),
                used => format!("needs stage {used}"),
            };
            *error = error.label(place.span, label);
        }
        Box::new(error.note("each of these instructions needs the stage of the next"))
    }

    /// Resolves the bases of the needed stages, again as triggers bring new needs.
    pub(super) fn resolve(&mut self, target: usize, answers: &Answers) -> Result<Needed, Stop> {
        loop {
            let needed = self.needed(target);
            self.resolve_bases(&needed, answers)?;
            let mut is_new = false;
            for (number, _) in needed.iter().enumerate().filter(|(_, needed)| **needed) {
                self.inherit(number);
                is_new |= self.add_triggers(number)?;
            }
            if !is_new {
                return Ok(needed);
            }
        }
    }

    /// Returns which stages the target needs, itself included.
    fn needed(&self, target: usize) -> Needed {
        let mut needed = vec![false; self.states.len()];
        let mut open = vec![target];
        while let Some(stage) = open.pop() {
            if std::mem::replace(&mut needed[stage], true) {
                continue;
            }
            let state = &self.states[stage];
            open.extend(state.base);
            open.extend(state.dependencies.iter().map(|(dependency, _)| *dependency));
        }
        needed
    }

    /// Takes over what a stage is built on, if that is another stage.
    pub(super) fn inherit(&mut self, number: usize) {
        let Some(base) = self.states[number].base else {
            return;
        };
        let base = &self.states[base];
        let (state, platform, mut image) = (
            base.state.clone(),
            base.platform.clone(),
            base.image.clone(),
        );
        let (base_image, paths) = (base.base_image.clone(), base.paths.clone());
        let arguments = base.arguments;
        if !image.config.on_build.is_empty() {
            image.config_mut().on_build.clear();
        }
        let stage = &mut self.states[number];
        stage.state = state;
        stage.platform = platform;
        stage.image = image;
        stage.base_image = base_image;
        stage.paths = paths;
        stage.arguments = arguments;
    }

    /// Puts the ONBUILD triggers of the base before a stage's instructions; returns whether they use stages.
    fn add_triggers(&mut self, number: usize) -> Result<bool, Stop> {
        let stage = &self.states[number];
        if stage.dispatched {
            // Nothing is run on an image that is only copied from. Its triggers could name itself, without an end.
            return Ok(false);
        }
        let mut triggers = stage.image.config.on_build.clone();
        if let Some(base) = stage.base.filter(|_| !stage.triggers_done) {
            for command in &self.states[base].commands {
                if let Kind::Onbuild(onbuild) = &command.instruction.kind {
                    triggers.push(onbuild.trigger.clone());
                }
            }
            self.states[number].triggers_done = true;
        }
        if triggers.is_empty() {
            return Ok(false);
        }
        let lines = self.states[number].lines;
        let mut commands = Vec::new();
        for trigger in triggers {
            let command = parse_trigger(&trigger, lines).and_then(|instruction| {
                self.command(number, Text::Trigger(Box::new(instruction)), true)
            });
            let stage = &self.states[number];
            commands.push(command.map_err(|error| of_trigger(error, stage))?);
        }
        let is_new = commands.iter().any(|command| !command.sources.is_empty());
        let stage = &mut self.states[number];
        stage.command_total += commands.len();
        commands.append(&mut stage.commands);
        stage.commands = commands;
        stage.image.config_mut().on_build.clear();
        Ok(is_new)
    }

    /// Follows the instructions of every needed stage.
    ///
    /// Where one fails, the stages that do not need it are followed all the same, to find their errors too.
    pub(super) fn dispatch_all(&mut self, needed: &Needed) -> Result<(), Stop> {
        let mut errors = Vec::new();
        for number in 0..self.states.len() {
            if !needed.get(number).copied().unwrap_or(false) || self.states[number].dispatched {
                continue;
            }
            let stage = &self.states[number];
            let mut uses = stage
                .dependencies
                .iter()
                .map(|(used, _)| *used)
                .chain(stage.base);
            if uses.any(|used| self.states[used].failed) {
                self.states[number].failed = true;
                continue;
            }
            self.inherit(number);
            let mut stage = std::mem::take(&mut self.states[number]);
            stage.dispatched = true;
            if let Err(mut found) = self.dispatch(number, &mut stage) {
                stage.failed = true;
                errors.append(&mut found);
            }
            self.states[number] = stage;
            if self.has_overspent() {
                break;
            }
        }
        match errors.is_empty() {
            true => Ok(()),
            false => Err(Stop::Errors(errors)),
        }
    }
}

/// Whether an instruction is one of the numbered steps of its stage.
fn is_counted(instruction: &Instruction) -> bool {
    matches!(
        instruction.kind,
        Kind::Add(_) | Kind::Copy(_) | Kind::Run(_) | Kind::Workdir(_)
    )
}

/// Returns the error of a stage whose base can not be used.
pub(super) fn base_error(
    code: &'static str,
    message: String,
    stage: &Stage<'_>,
) -> Box<Diagnostic> {
    let error = error(code, message, stage.lines);
    match stage.base_span == Span::default() {
        true => error,
        false => Box::new(error.label(stage.base_span, "this image")),
    }
}
