//! What is to be run: a closed value that says everything about one step.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::bytes;

/// One process to run, with the whole world it sees.
///
/// Host paths are resolved in the mount namespace of the helper, which is the one of the process that
/// started it. Paths inside the container are text and resolved through the root, never joined with a
/// host path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub root: Root,
    /// Mounts the root read-only; mounts over it keep their own mode.
    pub read_only_root: bool,
    /// The command. The first word is looked up in `PATH` of `env` as a shell does, unless it has a slash.
    pub args: Vec<String>,
    /// `NAME=value`, in the order the process gets them. `HOME` is added from the image's `/etc/passwd`
    /// when it is not named, as runc does.
    pub env: Vec<String>,
    /// Absolute; made (0755, root) when it does not exist.
    pub cwd: String,
    pub user: User,
    pub hostname: String,
    /// Made in this order, after `/proc`, `/dev` and `/sys`.
    pub mounts: Vec<Mount>,
    pub network: Network,
    pub security: Security,
    /// Size of `/dev/shm` in bytes; 64 MiB when absent.
    pub shm_size: Option<u64>,
    pub rlimits: Vec<Rlimit>,
    pub limits: Limits,
    /// Standard input is a terminal: it becomes the controlling terminal and `/dev/console`.
    pub terminal: bool,
}

impl Spec {
    /// Returns the spec of a command in a root with everything else as Docker has it.
    pub fn new(root: Root, args: Vec<String>) -> Spec {
        Spec {
            root,
            read_only_root: false,
            args,
            env: vec![
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            ],
            cwd: "/".to_owned(),
            user: User::default(),
            hostname: "buildkitsandbox".to_owned(),
            mounts: Vec::new(),
            network: Network::Default,
            security: Security::Sandbox,
            shm_size: None,
            rlimits: Vec::new(),
            limits: Limits::default(),
            terminal: false,
        }
    }
}

/// A further command in a step that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entered {
    pub args: Vec<String>,
    /// As in [`Spec::env`].
    pub env: Vec<String>,
    pub cwd: String,
    pub user: User,
    pub security: Security,
    /// As in [`Spec::terminal`], but for `/dev/console`.
    pub terminal: bool,
}

/// The tree that becomes `/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// An overlay, mounted inside the step's own mount namespace only.
    Overlay(Overlay),
    /// A plain directory, changed in place.
    Directory(#[serde(with = "bytes::path")] PathBuf),
}

/// The parts of an overlay mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Lowest first. Empty for `scratch`: then the upper directory itself is the tree.
    #[serde(with = "bytes::paths")]
    pub lowers: Vec<PathBuf>,
    /// Where writes go; without it the tree is read-only.
    pub upper: Option<Upper>,
}

/// The writable side of an overlay: two directories on one file system, owned by the caller.
///
/// The work directory is empty and serves one mount: the kernel refuses one that an unsynced mount has used.
/// The upper one may hold the changes of an earlier step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upper {
    #[serde(with = "bytes::path")]
    pub upper: PathBuf,
    #[serde(with = "bytes::path")]
    pub work: PathBuf,
}

/// Who the command runs as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum User {
    /// `name`, `uid`, `name:group`, … resolved with the image's own `/etc/passwd` and `/etc/group`;
    /// empty is root.
    Named(String),
    Ids {
        uid: u32,
        gid: u32,
        groups: Vec<u32>,
    },
}

impl Default for User {
    fn default() -> User {
        User::Named(String::new())
    }
}

/// One mount inside the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path inside the container. Resolved through the root; made when it does not exist, and
    /// then taken away again after the step when the step left it as it was.
    pub target: String,
    pub source: Source,
    pub read_only: bool,
}

/// Where the content of a mount comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A directory, file or socket of the host. `subpath` is resolved inside it as if it were a root.
    Bind {
        #[serde(with = "bytes::path")]
        path: PathBuf,
        subpath: String,
    },
    /// One of the descriptors given to [`crate::Helper::spawn`]: a directory or file opened in the
    /// builder's mount namespace, or a detached mount.
    Descriptor { index: usize, subpath: String },
    /// A part of an overlay of its own. Writes go to its upper directory, which the caller throws away.
    Overlay { overlay: Overlay, subpath: String },
    /// An empty file system in memory; half of the memory when no size is given.
    Tmpfs { size: Option<u64>, mode: u32 },
    /// A file in memory that never touches a disk.
    File {
        content: Content,
        mode: u32,
        uid: u32,
        gid: u32,
    },
}

/// Bytes that may be a secret: they are never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Content(#[serde(with = "bytes::hex")] pub Vec<u8>);

impl std::fmt::Debug for Content {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Content({} bytes)", self.0.len())
    }
}

/// The network the command sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Network {
    /// What the helper was started with: see [`crate::NetworkMode`].
    Default,
    /// Loopback only, up.
    None,
    /// The builder's own network.
    Host,
}

/// How much the command is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Security {
    /// Docker's default capabilities, seccomp filter, masked and read-only paths.
    Sandbox,
    /// Every capability the builder has, no filter, nothing masked, devices of the host.
    Insecure,
}

/// One `ulimit`. `None` is unlimited. A hard limit above the builder's own is cut to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    pub resource: Resource,
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

/// The resources of `setrlimit(2)`, by Docker's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    Core,
    Cpu,
    Data,
    Fsize,
    Locks,
    Memlock,
    Msgqueue,
    Nice,
    Nofile,
    Nproc,
    Rss,
    Rtprio,
    Rttime,
    Sigpending,
    Stack,
}

/// Limits that only a control group can set. Best effort: what can't be set is in [`crate::Usage::unset_limits`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes.
    pub memory: Option<u64>,
    /// Memory and swap together in bytes; `None` leaves swap alone.
    pub memory_swap: Option<u64>,
    /// Thousandths of a processor.
    pub cpu_milli: Option<u64>,
    /// Docker's `--cpu-shares` (2 to 262144).
    pub cpu_shares: Option<u64>,
    /// List form, such as `0-1,3`.
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    pub pids: Option<u64>,
    /// The control group below which the step gets its own, made if it is not there; what it limits holds too. A path below
    /// [`crate::Options::cgroup_parent`], or below the top of each hierarchy where that is absent.
    pub parent: Option<String>,
}

impl Limits {
    /// Returns whether no limit is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Limits::default()
    }
}
