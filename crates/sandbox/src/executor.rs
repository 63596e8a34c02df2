//! The seam between what is to be run and what runs it.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::error::SandboxError;
use crate::helper::{Helper, Running, Stdio};
use crate::runtime::Runtime;
use crate::spec::Spec;

/// Runs steps. Every implementation keeps the promises of [`Spec`], or refuses the step by name.
pub trait Executor: fmt::Debug + Send + Sync {
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
    fn spawn(
        &self,
        spec: &Spec,
        stdio: Stdio,
        sources: Vec<OwnedFd>,
        keep: Vec<OwnedFd>,
    ) -> Result<Running, SandboxError> {
        self.spawn_with(spec, stdio, sources, keep, None)
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
