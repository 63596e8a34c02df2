//! An open engine.

use std::path::PathBuf;
use std::sync::Arc;

use store::{CollectPolicy, Collected, HistoryLimits, Ids, OpenOptions, SpaceLimits, Store};

use crate::EngineError;
use crate::driver::Driver;
use crate::step::Shared;
use crate::vertex::VertexWork;

/// How an engine is opened.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// The state directory.
    pub root: PathBuf,
    /// Whose ids the files of the store carry.
    pub ids: Ids,
    /// Registries, mirrors and logins.
    pub registries: registry::Settings,
    /// The space the store may take; `None` for what is usual on such a disk.
    pub limits: Option<SpaceLimits>,
    /// What is kept of the history of builds.
    pub history: HistoryLimits,
    /// How steps are run.
    pub sandbox: sandbox::Options,
    /// What each step may take where its request sets no limits; what a graph asks for counts where it is tighter.
    pub step_limits: sandbox::Limits,
    /// Steps at once; `None` for what suits this machine.
    pub slots: Option<usize>,
    /// What runs RUN steps in place of the sandbox itself. Further commands and containers are the sandbox's.
    pub runtime: Option<sandbox::Runtime>,
    /// What this machine's isolation limits; said with the first step that runs.
    pub notes: Vec<String>,
}

/// Builds images. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Engine {
    pub(crate) shared: Arc<Shared>,
    pub(crate) driver: Driver<VertexWork>,
    limits: Option<SpaceLimits>,
    pub(crate) history: HistoryLimits,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("root", &self.shared.store.root())
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens the store. Nothing else is started before something needs it.
    pub fn open(settings: EngineSettings) -> Result<Self, EngineError> {
        let store = Store::open(&settings.root, OpenOptions::new(Some(settings.ids)))?;
        // What a killed builder was writing is of no use to anyone.
        if let Err(error) = store.sweep_ingest() {
            tracing::warn!(%error, "leftovers cannot be removed");
        }
        let mut sandbox = settings.sandbox;
        let mount_points = || store.root().join("mount-points");
        sandbox.stub_layer.get_or_insert_with(mount_points);
        let runtime = settings.runtime;
        let mut shared = Shared::new(store, settings.registries, sandbox, runtime, settings.notes);
        shared.step_limits = settings.step_limits;
        Ok(Self {
            shared: Arc::new(shared),
            driver: Driver::start(settings.slots.unwrap_or_else(default_slots)),
            limits: settings.limits,
            history: settings.history,
        })
    }

    /// Returns an engine that logs in at registries with other credentials, and shares all else.
    #[must_use]
    pub fn with_credentials(&self, credentials: Arc<dyn registry::CredentialProvider>) -> Self {
        Self {
            shared: Arc::new(self.shared.with_credentials(credentials)),
            driver: self.driver.clone(),
            limits: self.limits,
            history: self.history,
        }
    }

    /// Brings the store within its limits, after a build. Returns the policy and what
    /// was done, if anything was.
    pub fn collect_surplus(&self) -> Result<Option<(CollectPolicy, Collected)>, EngineError> {
        let limits = match self.limits {
            Some(limits) if !limits.are_set() => return Ok(None),
            limits => limits,
        };
        let store = &self.shared.store;
        let disk = store.disk()?;
        let limits = limits.unwrap_or_else(|| SpaceLimits::usual(disk.size));
        let policy = limits.policy(disk.size);
        if let Some(limit) = policy.max_used
            && store.used_bytes()? > limit
        {
            // So that there is room for layers, whatever was printed.
            let history = HistoryLimits {
                log_bytes: self.history.log_bytes.min(limit / 10),
                ..self.history
            };
            store.trim_builds(&history)?;
        }
        let done = store.collect_surplus(&policy, disk)?;
        Ok(done.map(|done| (policy, done)))
    }

    /// Ends every wait for a server that does not answer, for a process that is to end.
    pub fn stop_waiting(&self) {
        self.shared.images.stop();
    }

    /// Returns what the isolation of steps lacks here, in words for the user: once, and only what no build
    /// has said yet.
    pub fn notes(&self) -> Vec<String> {
        self.shared.notes()
    }

    /// Returns the store.
    pub fn store(&self) -> &Store {
        &self.shared.store
    }
}

/// Steps at once: most of them wait, for a network or for each other.
fn default_slots() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (4 * cores).max(16)
}
