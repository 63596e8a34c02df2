//! The engine for programs of one's own: opening it on this machine, asking for a build, waiting for it.
//!
//! ```no_run
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     engine::become_helper_if_asked();
//!     let engine = engine::Engine::open(engine::EngineSettings::of_this_machine("/tmp/state")?)?;
//!     let request = engine::BuildRequest::of_directory(".").named("app".parse()?);
//!     let runtime = tokio::runtime::Builder::new_current_thread().build()?;
//!     let built = runtime.block_on(engine.build_async(request, progress::Sink::discard()))?;
//!     println!("{:?}", built.image);
//!     Ok(())
//! }
//! ```

use std::path::PathBuf;

use oci::Reference;
use progress::Sink;
use sandbox::userns;
use store::{HistoryLimits, Ids};
use tokio::sync::oneshot;

use crate::error::BuildFailure;
use crate::request::{BuildRequest, Context, DockerfileSource, ImageOutput, Output};
use crate::{BuildResult, Cancel, Engine, EngineError, EngineSettings};

/// Makes this process the helper that runs steps, if the engine has started it as one; then it does not return.
///
/// The engine starts the program that it is part of a second time, so this comes first in `main`: before
/// threads are started, files opened and arguments read.
pub fn become_helper_if_asked() {
    sandbox::entry::run_if_requested();
}

impl EngineSettings {
    /// Returns settings for a state directory with what this machine has: the best isolation that the user may
    /// have, registries and logins as Docker's configuration and the environment tell, usual limits of space.
    ///
    /// As an ordinary user this process enters a user namespace, in which it is root of the store's files; so this
    /// is called before any thread starts.
    ///
    /// # Errors
    ///
    /// When no namespace can be made here.
    pub fn of_this_machine(root: impl Into<PathBuf>) -> Result<Self, EngineError> {
        let isolation = userns::enter_if_needed(&userns::Config::default())?;
        let ids = Ids::of_this_process().map_err(|source| EngineError::Io {
            action: "read",
            path: "/proc/self/uid_map".into(),
            source,
        })?;
        Ok(Self {
            root: root.into(),
            ids,
            registries: registry::Settings::from_environment(),
            limits: None,
            history: HistoryLimits::default(),
            sandbox: sandbox::Options::default(),
            step_limits: sandbox::Limits::default(),
            slots: None,
            runtime: None,
            notes: isolation.notes,
        })
    }
}

impl BuildRequest {
    /// Returns a request to build `Dockerfile` of a directory, all of it, into the store; each field may be changed.
    pub fn of_directory(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self {
            dockerfile: DockerfileSource::File(path.join("Dockerfile")),
            context: Context::Directory(path),
            outputs: vec![Output::Image(ImageOutput {
                store: true,
                ..ImageOutput::default()
            })],
            ..Self::default()
        }
    }

    /// Refuses what cannot be read of the request, before a build finds it out.
    pub fn check_options(&self) -> Result<(), EngineError> {
        crate::source::dockerfile::check_options(self)
    }

    /// Returns the request with another name for the image.
    #[must_use]
    pub fn named(mut self, name: Reference) -> Self {
        self.tags.push(name.or_latest());
        self
    }

    /// Returns the request for another stage than the last one.
    #[must_use]
    pub fn for_target(mut self, stage: impl Into<String>) -> Self {
        self.target = Some(stage.into());
        self
    }

    /// Returns the request with a build argument.
    #[must_use]
    pub fn with_argument(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.build_args.insert(name.into(), value.into());
        self
    }
}

/// Asks a build to stop when nobody waits for it any more.
struct StopWhenDropped(Cancel);

impl Drop for StopWhenDropped {
    fn drop(&mut self) {
        self.0.request();
    }
}

impl Engine {
    /// Carries out a build in a thread of its own, and returns when its outputs are written.
    ///
    /// Works on any async runtime. When the future is dropped, the build is canceled: its steps are killed, and
    /// what was recorded until then stays. Progress goes to `sink`, from several threads.
    ///
    /// # Errors
    ///
    /// As [`Engine::build`].
    pub async fn build_async(
        &self,
        request: BuildRequest,
        sink: Sink,
    ) -> Result<BuildResult, BuildFailure> {
        let cancel = Cancel::default();
        let _stop = StopWhenDropped(cancel.clone());
        let (sender, receiver) = oneshot::channel();
        let engine = self.clone();
        let started = std::thread::Builder::new()
            .name("build".to_owned())
            .spawn(move || {
                let result = engine.build(&request, &sink, &cancel);
                // Nobody may wait any more.
                let _ = sender.send(result);
            });
        if let Err(source) = started {
            return Err(EngineError::Thread { source }.into());
        }
        let result = receiver.await;
        result.unwrap_or_else(|_| {
            Err(
                EngineError::Panic("the thread of a build ended without a result".to_owned())
                    .into(),
            )
        })
    }
}
