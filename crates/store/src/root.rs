//! Opening the state directory.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::Connection;

use crate::lease::BlobTable;
use crate::{Blobs, NamedLock, StoreError, database, layer::LayerTable};

/// Whose ids the files of the store carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ids {
    /// The ids in layers are those on the disk; overlay marks are `trusted.overlay.*`.
    Rootful,
    /// The files were written through this map of a user namespace (`inside outside count`, lines
    /// joined by commas); overlay marks are `user.overlay.*`.
    Rootless { map: String },
}

impl Ids {
    /// Returns those of the files that this process writes.
    ///
    /// # Errors
    ///
    /// When `/proc/self/uid_map` cannot be read.
    pub fn of_this_process() -> std::io::Result<Self> {
        let map = std::fs::read_to_string("/proc/self/uid_map")?;
        let lines: Vec<String> = map
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        Ok(match lines.as_slice() {
            [line] if line == "0 0 4294967295" => Ids::Rootful,
            lines => Ids::Rootless {
                map: lines.join(","),
            },
        })
    }

    /// Returns whether a file may be given to this id.
    pub fn maps(&self, id: u32) -> bool {
        let Ids::Rootless { map } = self else {
            return true;
        };
        map.split(',').any(|line| {
            let mut numbers = line.split(' ').map(|text| text.parse::<u64>().ok());
            let (first, _, count) = (numbers.next(), numbers.next(), numbers.next());
            let (Some(Some(first)), Some(Some(count))) = (first, count) else {
                return false;
            };
            (first..first + count).contains(&u64::from(id))
        })
    }

    /// Returns whether there is nobody but root, so that files of others become root's.
    pub fn is_single(&self) -> bool {
        matches!(self, Ids::Rootless { .. }) && !self.maps(1)
    }
}

impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ids::Rootful => f.write_str("rootful"),
            Ids::Rootless { map } => write!(f, "rootless with the id map {map}"),
        }
    }
}

/// How a store is opened.
#[derive(Clone)]
pub struct OpenOptions {
    /// The ids this process writes; `None` for who only reads records.
    pub ids: Option<Ids>,
    /// The clock, seconds since 1970.
    pub clock: Arc<dyn Fn() -> i64 + Send + Sync>,
    /// Names the time since the machine was started.
    pub boot: String,
}

impl OpenOptions {
    /// Returns options with the system's clock.
    pub fn new(ids: Option<Ids>) -> Self {
        Self {
            ids,
            clock: Arc::new(|| {
                SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |since| since.as_secs() as i64)
            }),
            boot: boot_id(),
        }
    }
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenOptions")
            .field("ids", &self.ids)
            .finish_non_exhaustive()
    }
}

/// An open state directory. Clones share one connection.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) root: PathBuf,
    pub(crate) database: Mutex<Connection>,
    pub(crate) layers: LayerTable,
    pub(crate) blobs: BlobTable,
    pub(crate) boot: String,
    ids: Ids,
    clock: Arc<dyn Fn() -> i64 + Send + Sync>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let connection = self
            .database
            .get_mut()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        database::before_close(connection, &self.root.join("records.db"));
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

/// The newest arrangement of directories this version knows; the records have a version of their own.
const LAYOUT: u32 = 2;

const FOLDERS: [&str; 4] = ["blobs/sha256", "layers", "ingest", "locks"];

impl Store {
    /// Opens the state directory, and makes it if it is not there.
    pub fn open(root: &Path, options: OpenOptions) -> Result<Self, StoreError> {
        let format = root.join("format");
        if !is_written(&format) {
            Self::create(root, options.ids.as_ref())?;
        }
        let ids = check_format(root, &format, options.ids)?;
        let path = root.join("records.db");
        let mut connection = database::open(&path)?;
        let found = database::format(&connection)?;
        if found > database::FORMAT {
            return Err(StoreError::TooNew {
                path: root.to_owned(),
                what: "record format",
                found,
                known: database::FORMAT,
            });
        }
        if found < database::FORMAT {
            let _lock = NamedLock::acquire(&root.join("locks/format"))?;
            database::migrate(&mut connection)?;
        }
        Ok(Self {
            inner: Arc::new(Inner {
                root: root.to_owned(),
                database: Mutex::new(connection),
                layers: LayerTable::default(),
                blobs: BlobTable::default(),
                boot: options.boot,
                ids,
                clock: options.clock,
            }),
        })
    }

    fn create(root: &Path, ids: Option<&Ids>) -> Result<(), StoreError> {
        for folder in FOLDERS {
            let path = root.join(folder);
            std::fs::create_dir_all(&path).map_err(StoreError::io("create", &path))?;
        }
        spread_layers(&root.join("ingest"));
        refuse_network_file_system(root)?;
        // What is in layers may be readable by anyone inside; the way there is not.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(root, private).map_err(StoreError::io("set the mode of", root))?;
        let _lock = NamedLock::acquire(&root.join("locks/format"))?;
        let format = root.join("format");
        if !is_written(&format) {
            write_format(root, &format, ids)?;
        }
        Ok(())
    }

    /// Returns the state directory.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// Returns whose ids the files carry.
    pub fn ids(&self) -> &Ids {
        &self.inner.ids
    }

    /// Returns the blobs.
    pub fn blobs(&self) -> Blobs<'_> {
        Blobs { store: self }
    }

    /// Waits for the lock of this name and takes it. `name` becomes a file name.
    pub fn lock(&self, name: &str) -> Result<NamedLock, StoreError> {
        NamedLock::acquire(&self.inner.root.join("locks").join(name))
    }

    /// Takes the lock of this name if nobody holds it.
    pub fn try_lock(&self, name: &str) -> Result<Option<NamedLock>, StoreError> {
        NamedLock::try_acquire(&self.inner.root.join("locks").join(name))
    }

    /// Returns the time, in seconds since 1970.
    pub fn now(&self) -> i64 {
        (self.inner.clock)()
    }

    pub(crate) fn database(&self) -> MutexGuard<'_, Connection> {
        // A panic while the connection was held left no transaction open: they roll back on drop.
        self.inner
            .database
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Runs `body` in one write transaction.
    pub(crate) fn write<T>(
        &self,
        action: &'static str,
        body: impl FnOnce(&rusqlite::Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let mut database = self.database();
        let run = || {
            let transaction =
                database.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let value = body(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        run().map_err(StoreError::database(action))
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.inner.root.join(relative)
    }
}

/// Asks the file system to begin each directory made in `folder` in a part of the disk of its own.
///
/// Without it, ext4 puts a new layer where the last one was removed and walks over all the inodes
/// that it keeps back for a minute after their removal: each file of a large tree then costs ten
/// times as much. Other file systems know no such flag, and need none.
fn spread_layers(folder: &Path) {
    use rustix::fs::{IFlags, Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(folder) = rustix::fs::open(folder, flags, Mode::empty()) else {
        return;
    };
    if let Ok(flags) = rustix::fs::ioctl_getflags(&folder) {
        // A hint: that it is refused changes nothing but the speed.
        let _ = rustix::fs::ioctl_setflags(&folder, flags | IFlags::TOPDIR);
    }
}

/// Stands for the ids of a store in which nobody has written files yet.
const UNDECIDED: &str = "undecided";

fn write_format(root: &Path, format: &Path, ids: Option<&Ids>) -> Result<(), StoreError> {
    let ids = match ids {
        None => UNDECIDED.to_owned(),
        Some(Ids::Rootful) => "rootful".to_owned(),
        Some(Ids::Rootless { map }) => format!("rootless {map}"),
    };
    write_whole(root, format, format!("{LAYOUT} {ids}\n").as_bytes())
}

/// Returns whose ids the store has, which must be `wanted`; the first that wants any decides.
fn check_format(root: &Path, format: &Path, wanted: Option<Ids>) -> Result<Ids, StoreError> {
    let found = match (read_format(root, format)?, &wanted) {
        (Some(found), _) => found,
        (None, None) => Ids::Rootful,
        (None, Some(ids)) => {
            let _lock = NamedLock::acquire(&root.join("locks/format"))?;
            match read_format(root, format)? {
                Some(found) => found,
                None => {
                    write_format(root, format, Some(ids))?;
                    ids.clone()
                }
            }
        }
    };
    match wanted {
        Some(wanted) if wanted != found => Err(StoreError::OtherIds {
            path: root.to_owned(),
            found: found.to_string(),
            wanted: wanted.to_string(),
        }),
        _ => Ok(found),
    }
}

/// Returns whose ids the store has; `None` where that is not decided.
fn read_format(root: &Path, format: &Path) -> Result<Option<Ids>, StoreError> {
    let text = std::fs::read_to_string(format).map_err(StoreError::io("read", format))?;
    let damaged = |reason: &str| StoreError::Damaged {
        subject: format.display().to_string(),
        reason: reason.to_owned(),
    };
    let (number, found) = text
        .trim_end()
        .split_once(' ')
        .ok_or_else(|| damaged("it has not two words"))?;
    let number: u32 = number
        .parse()
        .map_err(|_| damaged("it does not begin with a number"))?;
    if number > LAYOUT {
        return Err(StoreError::TooNew {
            path: root.to_owned(),
            what: "format",
            found: number,
            known: LAYOUT,
        });
    }
    match found.split_once(' ') {
        None if found == "rootful" => Ok(Some(Ids::Rootful)),
        None if found == UNDECIDED => Ok(None),
        Some(("rootless", map)) => Ok(Some(Ids::Rootless {
            map: map.to_owned(),
        })),
        _ => Err(damaged("it does not say whose ids there are")),
    }
}

/// Tells whether the store says how it is arranged.
///
/// The disk is not waited for when that is written: after a power cut the file may be empty. Then the store had just
/// been made, and is made again; layers that lie there without a record are swept.
fn is_written(format: &Path) -> bool {
    std::fs::metadata(format).is_ok_and(|meta| meta.len() > 0)
}

/// Writes a file so that nobody sees a part of it.
fn write_whole(root: &Path, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    use std::io::Write;
    let ingest = root.join("ingest");
    let mut file = tempfile::NamedTempFile::new_in(&ingest)
        .map_err(StoreError::io("create a file in", &ingest))?;
    file.write_all(bytes)
        .map_err(StoreError::io("write", path))?;
    file.persist(path)
        .map_err(|error| StoreError::io("rename a file to", path)(error.error))?;
    Ok(())
}

fn refuse_network_file_system(root: &Path) -> Result<(), StoreError> {
    let statistics = rustix::fs::statfs(root)
        .map_err(|errno| StoreError::io("find the file system of", root)(errno.into()))?;
    // Numbers of linux/magic.h; the field's type differs between architectures.
    let kind = match statistics.f_type as u32 {
        0x6969 => "nfs",
        0xff53_4d42 | 0x517b | 0xfe53_4d42 => "smb",
        0x0102_1997 => "9p",
        0x00c3_6400 => "ceph",
        0x5346_414f => "afs",
        _ => return Ok(()),
    };
    Err(StoreError::NetworkFileSystem {
        path: root.to_owned(),
        kind,
    })
}

/// Names this boot; empty where the kernel does not tell.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}
