//! Directories that live on between builds: `--mount=type=cache`.
//!
//! *On disk*: `mounts/<sha256 of the id>[.<number>]/fs`; the folder is locked shared by each user,
//! exclusively by one that must be alone. The id never becomes a path.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use llb::{CacheSharing, ExecOp, MountKind};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, flock};
use rustix::io::Errno;
use store::Layer;

use crate::keys::KeyBuilder;
use crate::matching::content_id;
use crate::snapshot::Snapshot;
use crate::step::StepContext;
use crate::{Cancel, EngineError};

/// How many may use the directory at once; the stronger, the later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Claim {
    Shared,
    Private,
    Locked,
}

impl From<CacheSharing> for Claim {
    fn from(sharing: CacheSharing) -> Self {
        match sharing {
            CacheSharing::Shared => Self::Shared,
            CacheSharing::Private => Self::Private,
            CacheSharing::Locked => Self::Locked,
        }
    }
}

/// The directories that a step uses, by name: one that several of its mounts use it has once.
#[derive(Debug, Default)]
pub(crate) struct CacheMounts(BTreeMap<String, CacheMount>);

impl CacheMounts {
    /// Takes the directories of mounts, given by id and base, in the order of their names, in which all steps do: two that
    /// want the same never wait for each other. Mounts of one directory agree on the strongest claim.
    pub(crate) fn claim(
        context: &StepContext,
        wanted: &[(&str, Vec<Layer>, Claim)],
        cancel: &Cancel,
    ) -> Result<Self, EngineError> {
        let mut named: BTreeMap<String, (&str, &[Layer], Claim)> = BTreeMap::new();
        for (id, base, claim) in wanted {
            let name = name_of(context, id, base)?;
            let first = named.entry(name).or_insert((id, base, *claim));
            first.2 = first.2.max(*claim);
        }
        let mut claimed = BTreeMap::new();
        for (name, (id, base, claim)) in named {
            let mount = CacheMount::claim(context, (id, &name), base, claim, cancel)?;
            claimed.insert(name, mount);
        }
        Ok(Self(claimed))
    }

    /// Returns the directory of an id and a base, which was claimed.
    pub(crate) fn path(
        &self,
        context: &StepContext,
        id: &str,
        base: &[Layer],
    ) -> Result<PathBuf, EngineError> {
        let mount = self.0.get(&name_of(context, id, base)?);
        let missing = || EngineError::Graph(format!("the cache mount {id} was not claimed"));
        mount.map(CacheMount::path).ok_or_else(missing)
    }

    /// Returns the descriptors that hold the locks.
    pub(crate) fn locks(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.values().map(|mount| mount.lock.as_fd())
    }
}

pub(crate) const SHARED: FlockOperation = FlockOperation::NonBlockingLockShared;
pub(crate) const EXCLUSIVE: FlockOperation = FlockOperation::NonBlockingLockExclusive;

/// A directory in use by one step.
#[derive(Debug)]
pub(crate) struct CacheMount {
    folder: PathBuf,
    lock: File,
}

impl CacheMount {
    /// Takes the directory of this id, made from `base` if it is new.
    ///
    /// Waits for who has it, unless `cancel` is asked for.
    fn claim(
        context: &StepContext,
        (id, name): (&str, &str),
        base: &[Layer],
        claim: Claim,
        cancel: &Cancel,
    ) -> Result<Self, EngineError> {
        let store = &context.shared.store;
        let mounts = folder_of_all(context)?;
        let mount = match claim {
            Claim::Shared => Self::wait(&mounts.join(name), SHARED, cancel)?,
            Claim::Locked => Self::wait(&mounts.join(name), EXCLUSIVE, cancel)?,
            Claim::Private => Self::private(&mounts, name)?,
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

    fn private(mounts: &Path, name: &str) -> Result<Self, EngineError> {
        for folder in private_folders(mounts, name) {
            if let Some(mount) = Self::acquire(&folder, EXCLUSIVE)? {
                return Ok(mount);
            }
        }
        unreachable!("there are more numbers than users")
    }

    fn wait(
        folder: &Path,
        operation: FlockOperation,
        cancel: &Cancel,
    ) -> Result<Self, EngineError> {
        if let Some(mount) = Self::acquire(folder, operation)? {
            return Ok(mount);
        }
        let blocking = match operation {
            FlockOperation::NonBlockingLockShared => FlockOperation::LockShared,
            _ => FlockOperation::LockExclusive,
        };
        let folder = folder.to_owned();
        let taken = cancel.wait_for(move || Self::acquire(&folder, blocking))?;
        taken.transpose()?.flatten().ok_or(EngineError::Canceled)
    }

    /// Locks a folder, made if it is not there; `None` where somebody has it and the operation does not wait.
    pub(crate) fn acquire(
        folder: &Path,
        operation: FlockOperation,
    ) -> Result<Option<Self>, EngineError> {
        loop {
            let lock = open(folder)?;
            match flock(&lock, operation) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(EngineError::io("lock", folder)(errno.into())),
            }
            if is_named(&lock, folder) {
                return Ok(Some(Self {
                    folder: folder.to_owned(),
                    lock,
                }));
            }
        }
    }

    /// Makes an empty tree that can become the directory, which is removed with the first value.
    fn begin(&self, id: &str) -> Result<(tempfile::TempDir, PathBuf), EngineError> {
        let note = self.folder.join("id");
        std::fs::write(&note, id).map_err(EngineError::io("write", &note))?;
        let begun = tempfile::Builder::new()
            .prefix("begun-")
            .tempdir_in(&self.folder)
            .map_err(EngineError::io("create a directory in", &self.folder))?;
        let tree = begun.path().join("fs");
        std::fs::create_dir(&tree).map_err(EngineError::io("create", &tree))?;
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&tree, mode).map_err(EngineError::io("set the mode of", &tree))?;
        Ok((begun, tree))
    }

    /// Puts a new tree in the place of the directory: whole or not at all. The lock is to be exclusive.
    pub(crate) fn replace(
        &self,
        id: &str,
        fill: impl FnOnce(&Path) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let (begun, tree) = self.begin(id)?;
        fill(&tree)?;
        let path = self.path();
        let flags = match path.exists() {
            true => RenameFlags::EXCHANGE,
            false => RenameFlags::NOREPLACE,
        };
        rustix::fs::renameat_with(CWD, &tree, CWD, &path, flags)
            .map_err(|errno| EngineError::io("rename to", &path)(errno.into()))?;
        drop(begun);
        Ok(())
    }

    /// Makes the directory if it is not there: whole or not at all.
    fn fill(&self, context: &StepContext, id: &str, base: &[Layer]) -> Result<(), EngineError> {
        let path = self.path();
        if path.exists() {
            return Ok(());
        }
        let (begun, tree) = self.begin(id)?;
        context.copy_whole(base, &tree)?;
        let renamed = rustix::fs::renameat_with(CWD, &tree, CWD, &path, RenameFlags::NOREPLACE);
        drop(begun);
        match renamed {
            // Another of the sharers was faster, and may use it by now.
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(EngineError::io("rename to", &path)(errno.into())),
        }
    }
}

/// Returns the folders of a private directory, the first for who comes first.
fn private_folders(mounts: &Path, name: &str) -> impl Iterator<Item = PathBuf> {
    (0_u64..).map(move |number| match number {
        0 => mounts.join(name),
        number => mounts.join(format!("{name}.{number}")),
    })
}

/// Returns the name of a directory in [`folder_of_all`].
fn name_of(context: &StepContext, id: &str, base: &[Layer]) -> Result<String, EngineError> {
    let mut key = KeyBuilder::new("cache mount").part("id", id.as_bytes());
    // By content, so that the name is the same in every store.
    for layer in base {
        key = key.part("base", &content_id(&context.shared, layer)?);
    }
    Ok(crate::keys::hex(&key.finish()))
}

/// Returns the folder of all directories, made if it is not there.
fn folder_of_all(context: &StepContext) -> Result<PathBuf, EngineError> {
    let mounts = context.shared.store.root().join("mounts");
    std::fs::create_dir_all(&mounts).map_err(EngineError::io("create", &mounts))?;
    Ok(mounts)
}

/// Empties the directories whose base is made anew in this build, as BuildKit does: once, before the first use.
///
/// `forced` says of each input of the step whether recorded results of it do not count.
pub(crate) fn renew(
    context: &StepContext,
    op: &ExecOp,
    inputs: &[Snapshot],
    forced: &[bool],
    cancel: &Cancel,
) -> Result<(), EngineError> {
    for mount in &op.mounts {
        let (MountKind::Cache { id, sharing }, Some(input)) = (&mount.kind, mount.input) else {
            continue;
        };
        let (Some(true), Some(Snapshot::Layers(base))) = (forced.get(input), inputs.get(input))
        else {
            continue;
        };
        let (mounts, name) = (folder_of_all(context)?, name_of(context, id, base)?);
        let folder = mounts.join(&name);
        // Held until it is empty: whoever else of this build wants it waits for that.
        let mut renewed = context
            .renewed
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        if renewed.contains(&name) {
            continue;
        }
        let empty = |directory: CacheMount| -> Result<(), EngineError> {
            directory.replace(id, |tree| context.copy_whole(base, tree))
        };
        match sharing {
            // Nobody waits for these: one that another build has is not the one that this build gets.
            CacheSharing::Private => {
                for folder in private_folders(&mounts, &name) {
                    if !folder.join("fs").exists() {
                        break;
                    }
                    if let Some(directory) = CacheMount::acquire(&folder, EXCLUSIVE)? {
                        empty(directory)?;
                    }
                }
            }
            CacheSharing::Shared | CacheSharing::Locked => {
                if folder.join("fs").exists() {
                    empty(CacheMount::wait(&folder, EXCLUSIVE, cancel)?)?;
                }
            }
        }
        renewed.insert(name);
    }
    Ok(())
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
