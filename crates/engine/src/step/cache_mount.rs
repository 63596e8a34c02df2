//! Directories that live on between builds: `--mount=type=cache`.
//!
//! *On disk*: `mounts/<sha256 of the id>[.<number>]/fs`; the folder is locked shared by each user,
//! exclusively by one that must be alone. The id never becomes a path.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use store::Layer;

use crate::EngineError;
use crate::keys::KeyBuilder;
use crate::step::StepContext;

/// How many may use the directory at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    Shared,
    Private,
    Locked,
}

/// A directory in use by one step.
#[derive(Debug)]
pub(crate) struct CacheMount {
    folder: PathBuf,
    lock: File,
}

impl CacheMount {
    /// Takes the directory of this id, made from `base` if it is new.
    pub(crate) fn claim(
        context: &StepContext,
        id: &str,
        base: &[Layer],
        claim: Claim,
    ) -> Result<Self, EngineError> {
        let mut key = KeyBuilder::new("cache mount").part("id", id.as_bytes());
        for layer in base {
            key = key.part("base", &layer.id().0.to_be_bytes());
        }
        let name = crate::keys::hex(&key.finish().0);
        let store = &context.shared.store;
        let mounts = store.root().join("mounts");
        std::fs::create_dir_all(&mounts).map_err(EngineError::io("create", &mounts))?;
        let mount = match claim {
            Claim::Shared => Self::lock_folder(&mounts.join(&name), FlockOperation::LockShared)?,
            Claim::Locked => Self::lock_folder(&mounts.join(&name), FlockOperation::LockExclusive)?,
            Claim::Private => Self::private(&mounts, &name)?,
        };
        mount.fill(context, id, base)?;
        let name = mount.folder.file_name().and_then(|name| name.to_str());
        store.use_mount(name.unwrap_or_default(), id)?;
        Ok(mount)
    }

    /// Returns the directory to mount.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join("fs")
    }

    /// Returns the descriptor that holds the lock.
    pub(crate) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    fn private(mounts: &Path, name: &str) -> Result<Self, EngineError> {
        for number in 0.. {
            let folder = match number {
                0 => mounts.join(name),
                number => mounts.join(format!("{name}.{number}")),
            };
            if let Some(mount) = Self::try_lock(&folder)? {
                return Ok(mount);
            }
        }
        unreachable!("there are more numbers than users")
    }

    fn try_lock(folder: &Path) -> Result<Option<Self>, EngineError> {
        let lock = open(folder)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if !is_named(&lock, folder) => Self::try_lock(folder),
            Ok(()) => Ok(Some(Self {
                folder: folder.to_owned(),
                lock,
            })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(EngineError::io("lock", folder)(errno.into())),
        }
    }

    fn lock_folder(folder: &Path, operation: FlockOperation) -> Result<Self, EngineError> {
        loop {
            let lock = open(folder)?;
            flock(&lock, operation)
                .map_err(|errno| EngineError::io("lock", folder)(errno.into()))?;
            if is_named(&lock, folder) {
                return Ok(Self {
                    folder: folder.to_owned(),
                    lock,
                });
            }
        }
    }

    /// Makes the directory if it is not there: whole or not at all.
    fn fill(&self, context: &StepContext, id: &str, base: &[Layer]) -> Result<(), EngineError> {
        let path = self.path();
        if path.exists() {
            return Ok(());
        }
        let note = self.folder.join("id");
        std::fs::write(&note, id).map_err(EngineError::io("write", &note))?;
        let begun = tempfile::Builder::new()
            .prefix("begun-")
            .tempdir_in(&self.folder)
            .map_err(EngineError::io("create a directory in", &self.folder))?;
        let tree = begun.path().join("fs");
        std::fs::create_dir(&tree).map_err(EngineError::io("create", &tree))?;
        context.copy_whole(base, &tree)?;
        match std::fs::rename(&tree, &path) {
            // Another of the sharers was faster.
            Err(_) if path.exists() => Ok(()),
            result => result.map_err(EngineError::io("rename to", &path)),
        }
    }
}

/// Returns whether a folder is still where it was opened: a collector may have removed it meanwhile.
fn is_named(lock: &File, folder: &Path) -> bool {
    let held = rustix::fs::fstat(lock).map(|stat| stat.st_ino);
    held.is_ok() && held == rustix::fs::stat(folder).map(|stat| stat.st_ino)
}

fn open(folder: &Path) -> Result<File, EngineError> {
    loop {
        match std::fs::create_dir(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(EngineError::io("create", folder)(error));
            }
            _ => {}
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::open(folder, flags, Mode::empty()) {
            Ok(fd) => return Ok(fd.into()),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(EngineError::io("open", folder)(errno.into())),
        }
    }
}
