//! Base images: asking for them and taking them over.

use std::rc::Rc;
use std::sync::Arc;

use dockerfile::check::parse_reference;
use dockerfile::quote;
use llb::{Draft, Metadata, Op, Output, SourceOp, attr};
use oci::{ImageConfig, Platform, Reference};

use super::stages::{Needed, base_error};
use super::{Pass, SCRATCH, Stage};
use crate::error::{Outcome, Stop};
use crate::name;
use crate::state::{Image, State};
use crate::{Answers, ImageRequest, Request, ResolveMode};

/// Images whose names are suggested for misspelt ones.
const COMMON_IMAGES: [&str; 7] = [
    "alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora",
];

/// The name of an image, read.
#[derive(Debug)]
pub(super) struct Named {
    reference: Reference,
    /// Normalized, with a tag or a digest.
    text: String,
}

/// An image as a FROM asks for it: by its name as written, and the platform asked for.
pub(super) type Wanted = (String, Option<Arc<Platform>>);

/// What a stage gets of an image it begins with.
#[derive(Debug)]
pub(super) struct Taken {
    /// Normalized and pinned.
    name: String,
    platform: Arc<Platform>,
    /// That of the tree.
    normalized: Arc<Platform>,
    image: Image,
    config: Rc<ImageConfig>,
}

/// An answer that may not be there yet.
pub(super) enum Found<T> {
    Yes(T),
    NotYet,
}

impl Pass<'_> {
    /// Gives every stage that begins with an image its tree and image.
    ///
    /// The names of images that are not needed are checked all the same.
    pub(super) fn resolve_bases(&mut self, needed: &Needed, answers: &Answers) -> Result<(), Stop> {
        let mut errors = Vec::new();
        for number in 0..self.states.len() {
            let stage = &self.states[number];
            if stage.base.is_some() || stage.dispatched || stage.resolved {
                continue;
            }
            let is_needed = needed.get(number).copied().unwrap_or(false);
            if stage.written.is_some() && !is_needed {
                continue;
            }
            let mut stage = std::mem::take(&mut self.states[number]);
            let outcome = self.resolve_base(&mut stage, is_needed, answers);
            stage.resolved = is_needed && matches!(outcome, Ok(Found::Yes(())));
            self.states[number] = stage;
            if let Err(error) = outcome {
                // The reference resolves all at once and mostly reports the one begun last.
                errors.insert(0, *error);
            }
        }
        if !errors.is_empty() {
            return Err(Stop::Errors(errors));
        }
        match self.requests.is_empty() {
            true => Ok(()),
            false => Err(Stop::Unanswered),
        }
    }

    fn resolve_base(
        &mut self,
        stage: &mut Stage<'_>,
        is_needed: bool,
        answers: &Answers,
    ) -> Outcome<Found<()>> {
        if stage.base_name == SCRATCH && stage.named_context.is_none() {
            stage.state = State::default();
            stage.image = Image::empty(&self.target_platform);
            stage.platform = Some(self.target_platform.clone());
            stage.dispatched |= stage.unregistered;
            return Ok(Found::Yes(()));
        }
        let written = stage.written.take();
        let written = written.unwrap_or_else(|| stage.base_name.clone());
        let named = self.named(&written, stage)?;
        stage.base_name.clone_from(&named.text);
        stage.written = Some(written.clone());
        if !is_needed {
            return Ok(Found::NotYet);
        }
        let platform = stage.platform.clone();
        let platform = platform.unwrap_or_else(|| self.target_platform.clone());
        let found = if let Some(key) = stage.named_context.clone() {
            self.replace_stage(stage, &key, answers)?
        } else {
            let context = self.named_context(&stage.base_name, Some(&platform), stage.lines)?;
            match context.map(str::to_owned) {
                Some(key) => self.replace_base(stage, &key, &platform, answers)?,
                None => self.take_image(stage, written, &named, platform, answers)?,
            }
        };
        if let Found::Yes(()) = found {
            stage.dispatched |= stage.unregistered;
        }
        Ok(found)
    }

    /// A named context with the name of a stage stands for all of it.
    fn replace_stage(
        &mut self,
        stage: &mut Stage<'_>,
        key: &str,
        answers: &Answers,
    ) -> Outcome<Found<()>> {
        let platform = stage.platform.clone();
        let loaded = self.load_context(key, platform.as_deref(), stage, answers)?;
        let Found::Yes((state, image)) = loaded else {
            return Ok(Found::NotYet);
        };
        stage.dispatched = true;
        stage.state = state;
        if let Some(image) = image {
            stage.image = self.history.image(&image);
            let platform = &image.platform;
            if !platform.architecture.is_empty() && !platform.os.is_empty() {
                stage.platform = Some(Arc::new(platform.clone()));
            }
        }
        Ok(Found::Yes(()))
    }

    /// A named context with the name of an image stands for the image.
    fn replace_base(
        &mut self,
        stage: &mut Stage<'_>,
        key: &str,
        platform: &Arc<Platform>,
        answers: &Answers,
    ) -> Outcome<Found<()>> {
        let loaded = self.load_context(key, Some(platform), stage, answers)?;
        let Found::Yes((state, image)) = loaded else {
            return Ok(Found::NotYet);
        };
        stage.image = match &image {
            Some(image) => self.history.image(image),
            None => Image::empty(platform),
        };
        let image = image.unwrap_or_else(|| Rc::new(self.history.config(&stage.image)));
        stage.base_image = Some(image);
        stage.state = state.with_platform(platform);
        stage.platform = Some(platform.clone());
        Ok(Found::Yes(()))
    }

    /// Reads the name of an image, each once.
    fn named(&mut self, written: &str, stage: &Stage<'_>) -> Outcome<Rc<Named>> {
        if let Some(named) = self.references.get(written) {
            return Ok(named.clone());
        }
        let reference = parse_reference(written).map_err(|problem| {
            let message = format!("failed to parse stage name {}: {problem}", quote(written));
            base_error("image-name", message, stage)
        })?;
        let reference = reference.or_latest();
        let text = reference.to_string();
        let named = Rc::new(Named { reference, text });
        self.references.insert(written.to_owned(), named.clone());
        Ok(named)
    }

    fn take_image(
        &mut self,
        stage: &mut Stage<'_>,
        written: String,
        named: &Named,
        platform: Arc<Platform>,
        answers: &Answers,
    ) -> Outcome<Found<()>> {
        let wanted: Wanted = (written, stage.platform.clone());
        let taken = match self.taken.get(&wanted) {
            Some(taken) => taken.clone(),
            None if self.asked.contains(&wanted) => return Ok(Found::NotYet),
            None => {
                let found = self.find_base(stage, &wanted.0, named, platform, answers)?;
                let Found::Yes(taken) = found else {
                    self.asked.insert(wanted);
                    return Ok(Found::NotYet);
                };
                let taken = Rc::new(taken);
                self.taken.insert(wanted, taken.clone());
                taken
            }
        };
        stage.base_name.clone_from(&taken.name);
        stage.state = match is_empty(&taken.config) {
            true => State::default(),
            false => State {
                platform: Some(taken.normalized.clone()),
                ..State::new(Some(self.image_source(stage, &taken.platform)))
            },
        };
        stage.image = taken.image.clone();
        stage.base_image = Some(taken.config.clone());
        stage.platform = Some(taken.platform.clone());
        Ok(Found::Yes(()))
    }

    fn find_base(
        &mut self,
        stage: &Stage<'_>,
        written: &str,
        named: &Named,
        platform: Arc<Platform>,
        answers: &Answers,
    ) -> Outcome<Found<Taken>> {
        let prefix = match self.multi_platform {
            true => format!("[{} internal]", platform.full()),
            false => "[internal]".to_owned(),
        };
        let request = ImageRequest {
            name: format!("{prefix} load metadata for {}", named.text),
            reference: named.text.clone(),
            platform: (*platform).clone(),
            mode: self.options.resolve_mode,
            store: None,
        };
        let Found::Yes((image, config)) = self.find_image(&request, written, stage, answers)?
        else {
            return Ok(Found::NotYet);
        };
        let answer = answers
            .images
            .get(&request)
            .and_then(|answer| answer.as_ref().ok());
        let mut reference = match answer.and_then(|answer| answer.reference.as_deref()) {
            None => named.reference.clone(),
            Some(other) => parse_reference(other).map_err(|problem| {
                let message = format!("failed to parse ref {}: {problem}", quote(other));
                base_error("image-name", message, stage)
            })?,
        };
        if let Some(digest) = answer.and_then(|answer| answer.digest.clone()) {
            reference = reference.with_digest(digest);
        }
        let platform = match stage.platform.is_none() && self.implicit_platform {
            true => self.detected_platform(&config.platform, platform),
            false => platform,
        };
        Ok(Found::Yes(Taken {
            name: reference.to_string(),
            normalized: Arc::new(platform.normalized()),
            platform,
            image,
            config,
        }))
    }

    /// Returns an image that was asked for, or asks for it.
    pub(super) fn find_image(
        &mut self,
        request: &ImageRequest,
        written: &str,
        stage: &Stage<'_>,
        answers: &Answers,
    ) -> Outcome<Found<(Image, Rc<ImageConfig>)>> {
        if let Some((image, config)) = self.images.get(request) {
            return Ok(Found::Yes((image.clone(), config.clone())));
        }
        match answers.images.get(request) {
            None => {
                self.requests.insert(Request::Image(request.clone()));
                Ok(Found::NotYet)
            }
            Some(Ok(found)) => {
                let mut config = found.config.clone();
                config.created = None;
                let config = Rc::new(config);
                let image = self.history.image(&config);
                self.images
                    .insert(request.clone(), (image.clone(), config.clone()));
                Ok(Found::Yes((image, config)))
            }
            Some(Err(problem)) => {
                let message = format!("{written}: {}", problem.reason);
                let error = base_error("image", message, stage);
                // A plain word that is nearly a stage's name: nothing is wrong with the network.
                let is_plain = !written.contains(['/', ':', '@']);
                if let Some(stage) = dockerfile::nearest(written, self.labels())
                    && is_plain
                {
                    let stage = Some(stage.to_owned());
                    let note = "no stage above has this name, so it is taken for an image's";
                    return Err(Box::new(error.note(note).suggest(stage)));
                }
                let error = match &problem.help {
                    Some(help) => Box::new(error.help(help)),
                    None => error,
                };
                let nearest = dockerfile::nearest(written, COMMON_IMAGES).map(str::to_owned);
                Err(Box::new(error.suggest(nearest)))
            }
        }
    }

    fn image_source(&mut self, stage: &mut Stage<'_>, platform: &Arc<Platform>) -> Output {
        let name = format!("FROM {}", stage.base_name);
        let name = name::step(stage, &name, self.shown_platform(Some(platform)), None);
        let mut metadata = Metadata {
            command: stage.code.to_owned(),
            locations: self.location(stage.lines),
            ..Metadata::named(name)
        };
        if stage.unregistered {
            let command = (attr::COMMAND.to_owned(), String::new());
            metadata.description.extend([command]);
        }
        let reference = stage.base_name.clone();
        self.image_vertex(reference, platform, metadata)
    }

    pub(super) fn image_vertex(
        &mut self,
        reference: String,
        platform: &Arc<Platform>,
        metadata: Metadata,
    ) -> Output {
        let mut source = SourceOp {
            identifier: format!("docker-image://{reference}"),
            ..SourceOp::default()
        };
        if self.options.resolve_mode != ResolveMode::Default {
            let mode = self.options.resolve_mode.as_str().to_owned();
            source
                .attrs
                .insert(attr::IMAGE_RESOLVE_MODE.to_owned(), mode);
        }
        self.graph.add(Draft {
            platform: Some(platform.clone()),
            metadata,
            ..Draft::new(Op::Source(source), Vec::new())
        })
    }

    /// Returns the platform of an image where none was asked for, if the builder runs it.
    fn detected_platform(&self, image: &Platform, target: Arc<Platform>) -> Arc<Platform> {
        let same = |platform: &Platform| {
            platform.os == image.os && platform.architecture == image.architecture
        };
        if same(&target) {
            return target;
        }
        let supported = self.build_platforms.iter().find(|platform| same(platform));
        supported.cloned().map_or(target, Arc::new)
    }
}

/// Whether an image has no files: no layers, and, as old images do not list them, no history of any.
fn is_empty(config: &ImageConfig) -> bool {
    config.rootfs.diff_ids.is_empty() && config.history.iter().all(|entry| entry.empty_layer)
}
