//! What can be asked of a Dockerfile without building it.

use dockerfile::check::{BaseImage, CheckOptions, Images, Outline, Report, check, outline};
use dockerfile::{Diagnostic, Stages};
use frontend::NamedContext;
use oci::Platform;
use progress::{Sink, Vertex};

use crate::error::BuildFailure;
use crate::history::Known;
use crate::request::BuildRequest;
use crate::source::dockerfile::Loaded;
use crate::source::image::PinnedImage;
use crate::{Engine, EngineError};

/// A Dockerfile and what was asked of it.
#[derive(Debug)]
pub struct Inspected<T> {
    /// As shown in messages.
    pub name: String,
    pub source: Vec<u8>,
    pub answer: T,
}

impl Engine {
    /// Checks a Dockerfile by the rules of `docker build --check`; all stages, unless the request names one.
    ///
    /// # Errors
    ///
    /// If the Dockerfile cannot be read. That it cannot be built is part of the report.
    pub fn check(
        &self,
        request: &BuildRequest,
        sink: &Sink,
    ) -> Result<Inspected<Report>, BuildFailure> {
        self.inspect(request, sink, |loaded, options| {
            Ok(check(&loaded.bytes, options))
        })
    }

    /// Returns the parameters of a target.
    ///
    /// # Errors
    ///
    /// What would make the build fail before it begins.
    pub fn outline(
        &self,
        request: &BuildRequest,
        sink: &Sink,
    ) -> Result<Inspected<Outline>, BuildFailure> {
        self.inspect(request, sink, |loaded, options| {
            outline(&loaded.bytes, options).map_err(|error| error.diagnostics)
        })
    }

    /// Returns the stages that can be built.
    ///
    /// # Errors
    ///
    /// If the Dockerfile does not parse.
    pub fn targets(
        &self,
        request: &BuildRequest,
        sink: &Sink,
    ) -> Result<Inspected<Stages>, BuildFailure> {
        self.inspect(request, sink, |loaded, _| {
            Ok(loaded.parsed()?.stages.clone())
        })
    }

    /// Returns the graph of a request as BuildKit's clients send it, the bytes of a `pb.Definition`.
    ///
    /// # Errors
    ///
    /// What makes the build fail before it begins; a request for several platforms.
    pub fn definition(&self, request: &BuildRequest, sink: &Sink) -> Result<Vec<u8>, BuildFailure> {
        let loaded = self.read_sources(request, sink)?;
        let mut known = Known::default();
        let lowered = self.lower(request, &loaded, sink, &mut known);
        let lowered = lowered.map_err(|error| failure_in(&loaded, error))?;
        match lowered.builds.as_slice() {
            [build] => Ok(build.graph.encode_definition()),
            builds => Err(EngineError::Request(format!(
                "a definition is for one platform; {} are asked for",
                builds.len()
            ))
            .into()),
        }
    }

    fn inspect<T>(
        &self,
        request: &BuildRequest,
        sink: &Sink,
        ask: impl FnOnce(&Loaded, &CheckOptions<'_>) -> Result<T, Vec<Diagnostic>>,
    ) -> Result<Inspected<T>, BuildFailure> {
        let loaded = self.read_sources(request, sink)?;
        let host = Platform::host();
        let images = Registries {
            engine: self,
            request,
            loaded: &loaded,
            sink,
        };
        let options = CheckOptions {
            build_args: &request.build_args,
            target: request.target.as_deref(),
            config: None,
            build_platform: &host,
            target_platform: request.platforms.first(),
            images: &images,
            ignore: Some(loaded.ignore_file()),
        };
        let answer = ask(&loaded, &options)
            .map_err(|diagnostics| failure_in(&loaded, EngineError::Dockerfile { diagnostics }))?;
        let name = loaded.name.clone();
        Ok(Inspected {
            name,
            source: loaded.bytes,
            answer,
        })
    }
}

/// Returns a failure that can show the Dockerfile it is about.
fn failure_in(loaded: &Loaded, error: EngineError) -> BuildFailure {
    let mut failure = BuildFailure::from(error);
    failure.dockerfile = Some(loaded.source_text());
    failure
}

/// Looks images up as a build does: in the store, or in their registries.
struct Registries<'a> {
    engine: &'a Engine,
    request: &'a BuildRequest,
    loaded: &'a Loaded,
    sink: &'a Sink,
}

impl Registries<'_> {
    fn find(&self, name: &str, platform: &Platform) -> Result<BaseImage, EngineError> {
        let shown = format!("[internal] load metadata for {name}");
        let running = self.sink.vertex(Vertex::named(shown)).start();
        let found = self.engine.find_image(name, platform, self.request.pull);
        running.conclude(&found, |error| crate::error::chain(error));
        found.map(|image| base_image(&image))
    }
}

impl Images for Registries<'_> {
    fn image(&self, name: &str, platform: &Platform) -> Result<BaseImage, String> {
        self.find(name, platform)
            .map_err(|error| crate::error::chain(&error))
    }

    fn named_context(&self, name: &str) -> Option<BaseImage> {
        let platform = self.request.platforms.first().cloned();
        let platform = platform.unwrap_or_else(Platform::host);
        match self.loaded.named_context(name)? {
            NamedContext::Image(image) if image != "scratch" => self.find(image, &platform).ok(),
            _ => Some(BaseImage::default()),
        }
    }
}

/// Returns what the check must know of an image.
pub(crate) fn base_image(image: &PinnedImage) -> BaseImage {
    let config = &image.config.config;
    BaseImage {
        env: config.env.clone(),
        working_dir: config.working_dir.clone(),
        has_shell: !config.shell.is_empty(),
        onbuild: config.on_build.clone(),
        platform: Some(image.platform.clone()),
    }
}
