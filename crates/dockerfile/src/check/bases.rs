//! What stages begin with: images, other stages, nothing; and the instructions those bring along.

use std::collections::HashSet;
use std::rc::Rc;

use oci::Platform;

use crate::{Diagnostic, Kind, parse_trigger, quote, suggest};

use super::plan::{Image, Plan, SCRATCH, Source};
use super::scope::Scope;
use super::stages::parse_reference;
use super::{BaseImage, DEFAULT_PATH, Result, Rule, WithLines, failure, warning};

impl Plan<'_> {
    /// Asks for the images, and adds the instructions they bring along, which may ask for more.
    pub(super) fn resolve(&mut self, target: usize, all_stages: bool) -> Result<()> {
        loop {
            let reachable = self.reachable(target);
            // The reference asks for all bases at once. Of several that fail it reports the one it began last, which
            // runs first, or else the first one.
            let (mut first, mut last) = (Ok(()), Ok(()));
            for at in 0..self.states.len() {
                let state = &self.states[at];
                if state.base.is_none() && !state.is_dispatched && !state.is_resolved {
                    first = first.and(last);
                    last = self.resolve_base(at, all_stages || reachable.contains(&at));
                }
            }
            last.and(first)?;
            let mut has_new_sources = false;
            let mut ordered: Vec<usize> = reachable.into_iter().collect();
            ordered.sort_unstable();
            for at in ordered {
                has_new_sources |= self.add_triggers(at)?;
            }
            if !has_new_sources {
                return Ok(());
            }
        }
    }

    /// Returns the states whose result the target needs.
    pub(super) fn reachable(&self, target: usize) -> HashSet<usize> {
        let mut reachable = HashSet::from([target]);
        let mut open = vec![target];
        while let Some(at) = open.pop() {
            let state = &self.states[at];
            for next in state
                .base
                .into_iter()
                .chain(state.sources.iter().map(|(source, _)| *source))
            {
                if reachable.insert(next) {
                    open.push(next);
                }
            }
        }
        reachable
    }

    fn resolve_base(&mut self, at: usize, is_reachable: bool) -> Result<()> {
        let target_platform = &self.globals.target_platform;
        let state = &mut self.states[at];
        state.is_resolved = is_reachable;
        let is_source_only = state.stage.is_none();
        if state.base_name == SCRATCH && state.named_context.is_none() {
            state.image.working_dir = "/".to_owned();
            if target_platform.os != "windows" {
                state.image.env.set("PATH", DEFAULT_PATH);
            }
            state.platform = Some(target_platform.clone());
            state.is_dispatched |= is_source_only;
            return Ok(());
        }
        state.is_dispatched |= is_source_only;
        let result = self.load_base(at, is_reachable);
        match self.states[at].lines {
            Some(lines) => result.at(lines),
            None => result,
        }
    }

    fn load_base(&mut self, at: usize, is_reachable: bool) -> Result<()> {
        let state = &self.states[at];
        let original = state.base_name.clone();
        let labelled = |error: Diagnostic| match state.stage {
            Some(stage) => error.label(stage.base.span, "this image"),
            None => error,
        };
        let name = parse_reference(&original).map_err(|reason| {
            let message = format!("failed to parse stage name {}: {reason}", quote(&original));
            Box::new(labelled(failure("invalid-reference", message)))
        })?;
        let wanted = state
            .platform
            .clone()
            .unwrap_or_else(|| self.globals.target_platform.clone());
        if !is_reachable {
            self.states[at].platform = Some(wanted);
            return Ok(());
        }
        if let Some(image) = state.named_context.clone() {
            let state = &mut self.states[at];
            state.is_dispatched = true;
            state.platform = image.platform.clone().or(state.platform.take());
            state.image = Image::of(image);
            return Ok(());
        }
        let name = name.or_latest().to_string();
        if let Some(image) = self.options.images.named_context(&name) {
            let state = &mut self.states[at];
            state.platform = Some(wanted);
            state.image = Image::of(image);
            return Ok(());
        }
        let image = self
            .options
            .images
            .image(&name, &wanted)
            .map_err(|reason| {
                let names = self
                    .states
                    .iter()
                    .map(|state| state.name.as_str())
                    .filter(|name| !name.is_empty());
                let meant = suggest::nearest(&original, names.chain(COMMON_IMAGES));
                let error =
                    failure("unresolved-image", format!("{original}: {reason}")).suggest(meant);
                Box::new(labelled(error))
            })?;
        let mut platform = wanted;
        if let Some(actual) = &image.platform {
            let is_same =
                |a: &Platform, b: &Platform| a.os == b.os && a.architecture == b.architecture;
            // Where no platform was asked for, that of the image is as good if this machine can build for it.
            if state.platform.is_none()
                && self.options.target_platform.is_none()
                && is_same(self.options.build_platform, actual)
            {
                platform = self.options.build_platform.clone();
            }
            if let Some(stage) = state.stage.filter(|_| !is_same(&platform, actual)) {
                self.linter.warn(Rule::InvalidBaseImagePlatform, &[], || {
                    let (actual, expected) = (actual.normalized().full(), platform.normalized().full());
                    let message = format!(
                        "Base image {original} was pulled with platform {}, expected {} for current build",
                        quote(&actual),
                        quote(&expected)
                    );
                    warning(Rule::InvalidBaseImagePlatform, message, stage.header.lines, &stage.base, "for another platform")
                });
            }
        }
        let state = &mut self.states[at];
        state.platform = Some(platform);
        state.image = Image::of(image);
        Ok(())
    }

    /// Puts the instructions that the base brings along before those of the stage; tells whether they need more states.
    ///
    /// An image that is only a source runs nothing. Its triggers, which may name it again, would never end.
    fn add_triggers(&mut self, at: usize) -> Result<bool> {
        let Some(stage) = self.states[at].stage else {
            return Ok(false);
        };
        let mut triggers = std::mem::take(&mut self.states[at].image.onbuild);
        let state = &self.states[at];
        if let Some(base) = state.base.filter(|_| !state.has_triggers) {
            triggers.extend(self.states[base].commands.iter().filter_map(|command| {
                match &command.instruction.get().kind {
                    Kind::Onbuild(onbuild) => Some(onbuild.trigger.clone()),
                    _ => None,
                }
            }));
        }
        self.states[at].has_triggers = true;
        if triggers.is_empty() {
            return Ok(false);
        }
        let (lines, span) = (stage.header.lines, stage.base.span);
        let own = std::mem::take(&mut self.states[at].commands);
        for trigger in triggers {
            let instruction = parse_trigger(&trigger, lines)?;
            self.link_command(at, Source::Trigger(Rc::new(instruction), span))
                .map_err(|mut error| {
                    error.lines = vec![lines];
                    error.labels.clear();
                    error
                })?;
        }
        let state = &mut self.states[at];
        let has_new_sources = state
            .commands
            .iter()
            .any(|command| !command.sources.is_empty());
        state.commands.extend(own);
        Ok(has_new_sources)
    }

    /// Gives a state what its base has come to.
    pub(super) fn inherit(&mut self, at: usize) {
        let Some(base) = self.states[at].base else {
            return;
        };
        let base = &self.states[base];
        let (scope, platform, image) = (
            base.scope.clone(),
            base.platform.clone(),
            base.image.clone(),
        );
        let (dir, declared, has_workdir) = (
            base.dir.clone(),
            Rc::clone(&base.declared),
            base.has_workdir,
        );
        let state = &mut self.states[at];
        state.scope = scope;
        state.platform = platform;
        state.image = image;
        state.dir = dir;
        state.declared = declared;
        state.has_workdir = has_workdir;
    }
}

impl Image {
    fn of(image: BaseImage) -> Self {
        let BaseImage {
            env: entries,
            working_dir,
            has_shell,
            onbuild,
            platform: _,
        } = image;
        let mut env = Scope::default();
        for entry in &entries {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            env.update(name, value.to_owned());
        }
        Image {
            env,
            working_dir,
            has_shell,
            onbuild,
        }
    }
}

/// What is suggested for an image that is not found, beside the stages.
const COMMON_IMAGES: [&str; 14] = [
    "alpine",
    "alpine:latest",
    "busybox",
    "busybox:latest",
    "centos",
    "centos:latest",
    "debian",
    "debian:latest",
    "golang",
    "golang:latest",
    "ubuntu",
    "ubuntu:latest",
    "fedora",
    "fedora:latest",
];
