//! The warnings of a build: the check of the Dockerfile, with what is known of its images.

use dockerfile::Diagnostic;
use dockerfile::check::{BaseImage, CheckOptions, Images, check};
use dockerfile::ignore::{IgnoreFile, IgnoreLine};
use oci::{Platform, Reference};

use crate::{Answers, ImageRequest, Lowering, MainContext, NamedContext, Options, ResolvedImage};

impl Lowering<'_> {
    /// Returns what the check finds in the stages of the target, each finding once.
    ///
    /// Rules that ask for base images look at `answers`; an image that is not there has nothing but a `PATH`.
    pub(crate) fn warnings(&self, answers: &Answers) -> Vec<Diagnostic> {
        let options = self.options;
        let ignore = match &options.context {
            MainContext::Local { ignore } if !ignore.is_empty() => Some(ignore_file(ignore)),
            _ => None,
        };
        let build = self.build_platforms();
        let targets: Vec<Option<&Platform>> = match options.platforms.is_empty() {
            true => vec![None],
            false => options.platforms.iter().map(Some).collect(),
        };
        let mut warnings: Vec<Diagnostic> = Vec::new();
        for target_platform in targets {
            let report = check(
                self.ast.source.as_bytes(),
                &CheckOptions {
                    build_args: &options.build_args,
                    // An empty name is the last stage; none at all would be every stage.
                    target: Some(options.target.as_deref().unwrap_or_default()),
                    config: None,
                    build_platform: &build[0],
                    target_platform,
                    images: &KnownImages { options, answers },
                    ignore: ignore.as_ref(),
                },
            );
            for warning in report.warnings {
                if !warnings.contains(&warning) {
                    warnings.push(warning);
                }
            }
        }
        warnings
    }
}

fn ignore_file(patterns: &[String]) -> IgnoreFile {
    let lines = patterns.iter().zip(1..);
    IgnoreFile {
        lines: lines
            .map(|(pattern, line)| IgnoreLine {
                pattern: pattern.clone(),
                line,
            })
            .collect(),
    }
}

/// The images a lowering was told about.
struct KnownImages<'a> {
    options: &'a Options,
    answers: &'a Answers,
}

impl KnownImages<'_> {
    fn find(&self, matches: impl Fn(&ImageRequest) -> bool) -> Option<&ResolvedImage> {
        let images = self.answers.images.iter();
        let mut found = images.filter(|(request, _)| matches(request));
        found.find_map(|(_, answer)| answer.as_ref().ok())
    }
}

impl Images for KnownImages<'_> {
    fn image(&self, name: &str, platform: &Platform) -> Result<BaseImage, String> {
        let found = self.find(|request| request.reference == name && request.platform == *platform);
        Ok(found.map_or_else(unknown, known))
    }

    fn named_context(&self, name: &str) -> Option<BaseImage> {
        let context = self.options.named_contexts.get(name)?;
        let found = match context {
            NamedContext::Image(image) => {
                let reference = Reference::parse_normalized(image)
                    .ok()?
                    .or_latest()
                    .to_string();
                self.find(|request| request.reference == reference)
            }
            NamedContext::OciLayout { digest, .. } => {
                let end = format!("@{digest}");
                self.find(|request| request.store.is_some() && request.reference.ends_with(&end))
            }
            NamedContext::Local { .. } | NamedContext::Url(_) => None,
        };
        Some(found.map_or_else(unknown, known))
    }
}

fn unknown() -> BaseImage {
    BaseImage {
        env: vec![format!("PATH={}", crate::state::DEFAULT_PATH)],
        ..BaseImage::default()
    }
}

fn known(image: &ResolvedImage) -> BaseImage {
    let config = &image.config.config;
    BaseImage {
        env: config.env.clone(),
        working_dir: config.working_dir.clone(),
        has_shell: !config.shell.is_empty(),
        onbuild: config.on_build.clone(),
        platform: Some(image.config.platform.clone()),
    }
}
