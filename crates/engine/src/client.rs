//! What a build needs of whoever asked for it, where that is not this process.

use std::any::Any;
use std::io::Write;
use std::path::PathBuf;

use progress::RunningVertex;

use crate::EngineError;

/// The host whose files are the client's own.
pub const UPLOAD_HOST: &str = "buildkit-session";

/// A client at the other end of a connection: its directories, secrets and agents.
///
/// Its methods are called from the engine's threads and may block them; they end when the client has gone.
pub trait BuildClient: Send + Sync {
    /// Brings the files of a local source onto this machine.
    fn directory(
        &self,
        wanted: &LocalFiles,
        running: &RunningVertex,
    ) -> Result<LocalDirectory, EngineError>;

    /// Writes what the client offers behind a URL of the host [`UPLOAD_HOST`].
    fn upload(&self, url: &str, into: &mut dyn Write) -> Result<(), EngineError>;

    /// Writes a blob of one of the client's layouts, as it comes: whoever takes it checks it.
    fn content(
        &self,
        store: &str,
        digest: &oci::Digest,
        into: &mut dyn Write,
    ) -> Result<(), EngineError>;

    /// Returns a secret's value; `None` if there is none by this name.
    fn secret(&self, id: &str) -> Result<Option<Vec<u8>>, EngineError>;

    /// Returns a socket that leads to an ssh agent; `None` if there is none by this name.
    fn agent(&self, id: &str) -> Result<Option<AgentAddress>, EngineError>;
}

/// What is wanted of a local source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalFiles {
    /// The name the client knows the directory by.
    pub name: String,
    /// The session that has it, if it is not the build's own.
    pub session: Option<String>,
    pub include_patterns: Vec<String>,
    pub exclude_patterns: Vec<String>,
    pub follow_paths: Vec<String>,
    /// Distinguishes copies of one directory that are kept for different uses.
    pub shared_key_hint: String,
    /// Take nothing that is here already for what the client has.
    pub fresh: bool,
}

/// A directory of this machine that holds a client's files.
pub struct LocalDirectory {
    pub path: PathBuf,
    /// What counts of it, where that is not all.
    pub filter: Option<LocalFilter>,
    /// Keeps the directory as it is until it is dropped.
    pub held: Box<dyn Any + Send + Sync>,
}

/// Patterns of files; without includes all are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalFilter {
    pub include: Vec<String>,
    pub exclude: Vec<String>,
}

impl std::fmt::Debug for LocalDirectory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalDirectory")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// A socket of this machine that leads to a client's agent.
pub struct AgentAddress {
    pub socket: PathBuf,
    /// Keeps the socket until it is dropped.
    pub held: Box<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for AgentAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentAddress")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}
