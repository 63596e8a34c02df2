//! What can go wrong in a build.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci::{Digest, Reference};

use crate::history::BuildRecord;
use crate::shell::StepState;

/// Why a build, or a part of it, failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// Asked to stop.
    #[error("canceled")]
    Canceled,
    /// A RUN step ended with a failure.
    #[error("process {command:?} did not complete successfully: {ending}")]
    Step {
        command: String,
        ending: String,
        /// What to do about it, where the ending tells.
        help: Option<String>,
    },
    /// The Dockerfile, or what it asks for, is wrong; each diagnostic says where.
    #[error("failed to read the Dockerfile")]
    Dockerfile {
        diagnostics: Vec<dockerfile::Diagnostic>,
    },
    /// What the user asked for is wrong.
    #[error("{0}")]
    Request(String),
    /// A graph is wrong in itself.
    #[error("invalid build graph: {0}")]
    Graph(String),
    /// An image cannot be had.
    #[error("failed to resolve {reference}")]
    Resolve {
        reference: Box<Reference>,
        source: Box<registry::RegistryError>,
    },
    /// An image cannot be sent.
    #[error("failed to push {reference}")]
    Push {
        reference: Box<Reference>,
        source: Box<registry::RegistryError>,
    },
    /// An image has nothing for the platform.
    #[error("{reference} has no image for {platform}; it has {available}")]
    NoPlatform {
        reference: Box<Reference>,
        platform: String,
        available: String,
    },
    /// An image's own parts do not fit together.
    #[error("image {subject} is invalid: {reason}")]
    Image { subject: String, reason: String },
    /// There is nothing to bring cache mounts in from.
    #[error("there are no cache mounts in {place}")]
    NoCacheMounts { place: String },
    /// A layer's tar is not the one its image names.
    #[error("layer {digest} unpacks to {actual}, the image says {expected}")]
    LayerMismatch {
        digest: Digest,
        expected: Digest,
        actual: Digest,
    },
    /// What came of a layer cannot be unpacked.
    #[error("failed to unpack layer {digest} of {reference}")]
    Layer {
        digest: Digest,
        reference: Box<Reference>,
        source: rootfs::Error,
    },
    /// A file operation failed.
    #[error(transparent)]
    Files(#[from] rootfs::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// The sandbox failed.
    #[error(transparent)]
    Sandbox(#[from] sandbox::SandboxError),
    /// The sandbox could not be started.
    #[error("failed to start the sandbox: {0}")]
    SandboxStart(String),
    /// A container engine did not take an image.
    #[error("failed to load the image into {engine}: {reason}")]
    Load { engine: String, reason: String },
    /// Nobody can be listened to.
    #[error("failed to listen on {address}")]
    Listen {
        address: std::net::SocketAddr,
        source: std::io::Error,
    },
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] registry::RegistryError),
    /// A system call failed.
    #[error("failed to {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// No thread could be started.
    #[error("failed to start a thread")]
    Thread { source: std::io::Error },
    /// A defect of lapstrake.
    #[error("internal error: {0}")]
    Panic(String),
    /// Something that is not there yet.
    #[error("{0} is not supported yet")]
    Unsupported(String),
}

/// Whose failure it is: decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The build's: exit code 1.
    Build,
    /// The builder's: exit code 3.
    Builder,
    /// Interrupted: exit code 130.
    Canceled,
}

impl EngineError {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> EngineError {
        let path = path.into();
        move |source| EngineError::Io {
            action,
            path,
            source,
        }
    }

    /// Returns what to do about a step that failed.
    pub(crate) fn step_help(&self) -> Option<String> {
        match self {
            EngineError::Step { help, .. } => help.clone(),
            EngineError::Sandbox(error) => error.unfit()?.help,
            _ => None,
        }
    }

    /// Returns whether there is nothing where something was looked for.
    pub fn is_not_found(&self) -> bool {
        match self {
            EngineError::Registry(error) => error.is_not_found(),
            EngineError::Push { source, .. } => source.is_not_found(),
            EngineError::NoCacheMounts { .. } => true,
            _ => false,
        }
    }

    /// Returns whose failure it is.
    pub fn blame(&self) -> Blame {
        match self {
            EngineError::Canceled => Blame::Canceled,
            EngineError::Sandbox(error) if error.unfit().is_some() => Blame::Build,
            EngineError::Store(_)
            | EngineError::Sandbox(_)
            | EngineError::SandboxStart(_)
            | EngineError::Io { .. }
            | EngineError::Thread { .. }
            | EngineError::Panic(_) => Blame::Builder,
            _ if is_out_of_room(self) => Blame::Builder,
            _ => Blame::Build,
        }
    }
}

/// Tells whether the state directory has no room left: no Dockerfile can be blamed for that.
pub(crate) fn is_out_of_room(error: &EngineError) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        // One may stand in another, where what was written to is a file of ours.
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && matches!(io.kind(), QuotaExceeded | ReadOnlyFilesystem | StorageFull)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Below this many bytes a disk is full: what failed on it may have failed for that.
const FULL: u64 = 1 << 20;

/// Says that the disk of a store is full, to be put behind an error; empty where it is not.
pub(crate) fn fullness(store: &store::Store) -> String {
    match store.disk() {
        Ok(disk) if disk.free < FULL => full(store.root()),
        _ => String::new(),
    }
}

fn full(root: &Path) -> String {
    format!("; no space left on the disk of {}", root.display())
}

/// Says what to do about an error where the state directory `root` has no room.
pub fn room_help(error: &EngineError, root: &Path) -> Option<String> {
    if let EngineError::Io { path, .. } = error
        && !path.starts_with(root)
    {
        return None;
    }
    let is_full = match error {
        // A command may have any words in it.
        EngineError::Step { ending, .. } => ending.ends_with(&full(root)),
        // The database has errors of its own for it.
        error => {
            let told = chain(error).to_lowercase();
            told.contains("no space left") || told.contains("disk is full")
        }
    };
    is_full.then(|| {
        format!(
            "make room on the disk of {}: `lapstrake system df` shows what takes space, `lapstrake system prune` \
             gives back what nothing needs",
            root.display()
        )
    })
}

/// Says what to do about an image that cannot be had, or cannot be sent.
pub fn resolve_help(error: &EngineError) -> Option<String> {
    use registry::RegistryError as Cause;
    let (reference, source, is_push) = match error {
        EngineError::Resolve { reference, source } => (reference, source, false),
        EngineError::Push { reference, source } => (reference, source, true),
        _ => return None,
    };
    let registry = reference.domain();
    // The registry itself comes last and has the last word.
    let last = match source.as_ref() {
        Cause::Exhausted { attempts, .. } => attempts.last()?,
        only => only,
    };
    Some(match last {
        Cause::NotFound { .. } if is_push => {
            "look for a typo in the name; some registries want a repository to be made before anything is sent to it"
                .to_owned()
        }
        Cause::NotFound { .. } => {
            "look for a typo in the name or the tag: the registry has answered, and has no such image".to_owned()
        }
        Cause::Unauthorized { .. } | Cause::Denied { .. } if is_push => format!(
            "log in with `lapstrake login {registry}`, as someone who may write to this repository"
        ),
        Cause::Unauthorized { .. } | Cause::Denied { .. } => format!(
            "log in with `lapstrake login {registry}`; many registries say the same of a name that does not exist"
        ),
        Cause::RateLimited { .. } if is_push => {
            format!("log in with `lapstrake login {registry}` for more requests, or wait")
        }
        Cause::RateLimited { .. } => format!(
            "log in with `lapstrake login {registry}` for more requests, or name a mirror in the configuration"
        ),
        Cause::Connect { .. } | Cause::Timeout { .. } if is_push => {
            "look at the registry's name and the network; what was built is recorded, so a second try only sends it"
                .to_owned()
        }
        Cause::Connect { .. } | Cause::Timeout { .. } => {
            "look at the registry's name and the network; without one, bring images with `lapstrake load` or name a \
             mirror in the configuration"
                .to_owned()
        }
        Cause::Tls { .. } => {
            "have this machine trust the registry's certificate; for a registry without TLS set http = true for it in \
             the configuration"
                .to_owned()
        }
        _ => return None,
    })
}

/// Why a build failed.
#[derive(Debug)]
pub struct BuildFailure {
    /// What failed; several with `--keep-going`.
    pub steps: Vec<StepFailure>,
    /// The name and text of the Dockerfile, once it was read.
    pub dockerfile: Option<(String, String)>,
    /// The record of the build.
    pub record: Option<Arc<BuildRecord>>,
    /// What is left of the step that failed, where the request asked to keep it.
    pub state: Option<Box<StepState>>,
}

/// One thing that failed.
#[derive(Debug, Clone)]
pub struct StepFailure {
    /// The step as shown, if it was one.
    pub name: Option<String>,
    /// Its first and last line in the Dockerfile.
    pub lines: Option<(u32, u32)>,
    /// The words of the Dockerfile that are meant, if not all of the step.
    pub span: Option<dockerfile::Span>,
    /// What to do about it.
    pub help: Option<String>,
    pub error: Arc<EngineError>,
}

impl BuildFailure {
    pub(crate) fn of_steps(steps: Vec<StepFailure>) -> Self {
        Self {
            steps,
            dockerfile: None,
            record: None,
            state: None,
        }
    }

    /// Returns whose failure it is: the builder's if any part of it is.
    pub fn blame(&self) -> Blame {
        let blames = || self.steps.iter().map(|step| step.error.blame());
        match () {
            () if blames().any(|blame| blame == Blame::Builder) => Blame::Builder,
            () if blames().any(|blame| blame == Blame::Build) => Blame::Build,
            () => Blame::Canceled,
        }
    }
}

impl std::fmt::Display for BuildFailure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, step) in self.steps.iter().enumerate() {
            let gap = if number == 0 { "" } else { "; " };
            let reason = match step.error.as_ref() {
                EngineError::Dockerfile { diagnostics } => {
                    let all: Vec<String> = diagnostics.iter().map(ToString::to_string).collect();
                    all.join("; ")
                }
                error => chain(error),
            };
            match &step.name {
                Some(name) => write!(formatter, "{gap}{name}: {reason}")?,
                None => write!(formatter, "{gap}{reason}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for BuildFailure {}

impl From<EngineError> for BuildFailure {
    fn from(error: EngineError) -> Self {
        Self::of_steps(vec![StepFailure {
            name: None,
            lines: None,
            span: None,
            help: resolve_help(&error),
            error: Arc::new(error),
        }])
    }
}

/// Writes an error with its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = in_words(error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = in_words(error.to_string());
        // A transparent variant says what its cause says.
        if !text.ends_with(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        cause = error.source();
    }
    text
}

/// Takes out the numbers that the standard library puts behind the words of the system's errors.
fn in_words(mut text: String) -> String {
    const MARK: &str = " (os error ";
    while let Some(start) = text.find(MARK) {
        let rest = &text[start + MARK.len()..];
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || !rest[digits..].starts_with(')') {
            break;
        }
        text.replace_range(start..=start + MARK.len() + digits, "");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_never_the_builds_failure() {
        let unpacking = |kind: std::io::ErrorKind| {
            EngineError::Registry(registry::RegistryError::Io {
                action: "write",
                path: PathBuf::from("blob"),
                source: kind.into(),
            })
            .blame()
        };
        assert_eq!(unpacking(std::io::ErrorKind::StorageFull), Blame::Builder);
        assert_eq!(unpacking(std::io::ErrorKind::NotFound), Blame::Build);
        let inner = store::StoreError::Io {
            action: "write",
            path: PathBuf::from("blob"),
            source: std::io::ErrorKind::StorageFull.into(),
        };
        let writing = registry::RegistryError::Io {
            action: "write",
            path: PathBuf::from("layer"),
            source: std::io::Error::other(inner),
        };
        assert_eq!(EngineError::Registry(writing).blame(), Blame::Builder);
    }
}
