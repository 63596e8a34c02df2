//! The seam between what is to be run and what runs it.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::error::SandboxError;
use crate::helper::{Helper, NetworkMode, Running, Stdio};
use crate::runtime::Runtime;
use crate::spec::Spec;

/// Runs steps. Every implementation keeps the promises of [`Spec`], or refuses the step by name.
pub trait Executor: fmt::Debug + Send + Sync {
    /// Returns what runs the steps, for people: `native`, `crun 1.21`.
    fn title(&self) -> String;

    /// Returns the network that steps with [`crate::Network::Default`] get.
    fn network(&self) -> NetworkMode;

    /// Returns what could not be had, in words for the user.
    fn notes(&self) -> &[String];

    /// Starts a step; as [`Helper::spawn`].
    fn spawn(
        &self,
        spec: &Spec,
        stdio: Stdio,
        sources: Vec<OwnedFd>,
        keep: Vec<OwnedFd>,
    ) -> Result<Running, SandboxError>;
}

impl Executor for Arc<Helper> {
    fn title(&self) -> String {
        "native".to_owned()
    }

    fn network(&self) -> NetworkMode {
        Helper::network(self)
    }

    fn notes(&self) -> &[String] {
        Helper::notes(self)
    }

    fn spawn(
        &self,
        spec: &Spec,
        stdio: Stdio,
        sources: Vec<OwnedFd>,
        keep: Vec<OwnedFd>,
    ) -> Result<Running, SandboxError> {
        Helper::spawn(self, spec, stdio, sources, keep)
    }
}

/// Has an OCI runtime run the steps, in roots and networks that the helper makes.
#[derive(Debug)]
pub struct OciExecutor {
    helper: Arc<Helper>,
    runtime: Runtime,
}

impl OciExecutor {
    pub fn new(helper: Arc<Helper>, runtime: Runtime) -> Self {
        Self { helper, runtime }
    }
}

impl Executor for OciExecutor {
    fn title(&self) -> String {
        self.runtime.title()
    }

    fn network(&self) -> NetworkMode {
        self.helper.network()
    }

    fn notes(&self) -> &[String] {
        self.helper.notes()
    }

    fn spawn(
        &self,
        spec: &Spec,
        stdio: Stdio,
        sources: Vec<OwnedFd>,
        keep: Vec<OwnedFd>,
    ) -> Result<Running, SandboxError> {
        self.runtime.check(spec)?;
        self.helper
            .spawn_with(spec, stdio, sources, keep, Some(&self.runtime))
    }
}
