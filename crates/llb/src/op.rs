//! What a vertex does. Every attribute of BuildKit's `pb.Op` has its place here.

use std::collections::BTreeMap;

/// The work of one vertex.
///
/// Input numbers inside an op are positions in [`crate::Vertex::inputs`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Brings content in from outside.
    Source(SourceOp),
    /// Runs a process.
    Exec(Box<ExecOp>),
    /// Changes files without running anything.
    File(FileOp),
    /// Lays trees over one another.
    Merge(MergeOp),
    /// The difference between two trees.
    Diff(DiffOp),
    /// A build whose definition comes from the build itself.
    Build(BuildOp),
}

impl Op {
    /// Returns the number of outputs other vertices may use.
    pub fn outputs(&self) -> usize {
        match self {
            Self::Exec(exec) => count(exec.mounts.iter().map(|mount| mount.output)),
            Self::File(file) => count(file.actions.iter().map(|action| action.output)),
            Self::Source(_) | Self::Merge(_) | Self::Diff(_) | Self::Build(_) => 1,
        }
    }

    /// Gives the inputs of an exec or file op new numbers: `numbers` has one for each old number.
    pub(crate) fn renumber_inputs(&mut self, numbers: &[usize]) {
        let renumber = |input: &mut usize| *input = numbers.get(*input).copied().unwrap_or(*input);
        match self {
            Self::Exec(exec) => {
                let inputs = exec
                    .mounts
                    .iter_mut()
                    .filter_map(|mount| mount.input.as_mut());
                inputs.for_each(renumber);
            }
            Self::File(file) => {
                for action in &mut file.actions {
                    let trees = [&mut action.input, &mut action.secondary_input];
                    for tree in trees.into_iter().flatten() {
                        if let ActionInput::Vertex(number) = tree {
                            renumber(number);
                        }
                    }
                    action.action.named_inputs().for_each(renumber);
                }
            }
            Self::Source(_) | Self::Merge(_) | Self::Diff(_) | Self::Build(_) => {}
        }
    }

    /// Returns the name of the kind, in lower case.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Source(_) => "source",
            Self::Exec(_) => "exec",
            Self::File(_) => "file",
            Self::Merge(_) => "merge",
            Self::Diff(_) => "diff",
            Self::Build(_) => "build",
        }
    }
}

fn count(outputs: impl Iterator<Item = Option<usize>>) -> usize {
    outputs
        .flatten()
        .map(|output| output + 1)
        .max()
        .unwrap_or(0)
}

/// Content named by an identifier whose scheme says what it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceOp {
    /// `docker-image://`, `oci-layout://`, `local://`, `git://`, `http://` or `https://` and what follows.
    pub identifier: String,
    /// Options by the names in [`crate::attr`].
    pub attrs: BTreeMap<String, String>,
}

/// A process in a root made of mounts. The mount at `/` is the root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOp {
    pub meta: Meta,
    /// In the order in which they are mounted; outputs are numbered.
    pub mounts: Vec<Mount>,
    pub network: NetworkMode,
    pub security: SecurityMode,
    pub secret_env: Vec<SecretEnv>,
    pub cdi_devices: Vec<CdiDevice>,
}

/// How a process is started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    pub args: Vec<String>,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    pub cwd: String,
    /// `user`, `uid`, `user:group`; empty is root.
    pub user: String,
    pub proxy_env: Option<ProxyEnv>,
    pub extra_hosts: Vec<HostIp>,
    /// Empty is the default name.
    pub hostname: String,
    pub ulimits: Vec<Ulimit>,
    pub cgroup_parent: String,
    /// Takes away mount points made for the step, and directories made for them.
    pub remove_mount_stubs_recursive: bool,
    /// Empty means 0 alone.
    pub valid_exit_codes: Vec<i32>,
}

/// Proxy variables that a step sees but no digest of its result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyEnv {
    pub http_proxy: String,
    pub https_proxy: String,
    pub ftp_proxy: String,
    pub no_proxy: String,
    pub all_proxy: String,
}

/// A line of `/etc/hosts`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostIp {
    pub host: String,
    pub ip: String,
}

/// A resource limit of the process; -1 is unlimited.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ulimit {
    pub name: String,
    pub soft: i64,
    pub hard: i64,
}

/// Which network a process sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NetworkMode {
    /// The builder's own way of giving network to steps.
    #[default]
    Sandbox,
    Host,
    None,
}

/// What a process may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SecurityMode {
    #[default]
    Sandbox,
    /// Privileged.
    Insecure,
}

/// A secret given as an environment variable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretEnv {
    pub id: String,
    pub name: String,
    pub optional: bool,
}

/// A device by its CDI name (`vendor.com/class=name`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CdiDevice {
    pub name: String,
    pub optional: bool,
}

/// One mount of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// Where the content comes from; `None` is nothing.
    pub input: Option<usize>,
    /// The path inside the input; empty is all of it.
    pub selector: String,
    pub dest: String,
    /// The output that what the process leaves here becomes.
    pub output: Option<usize>,
    pub read_only: bool,
    pub kind: MountKind,
    /// Name for the result of this mount in the records of a remote cache.
    pub result_id: String,
    pub content_cache: ContentCache,
}

/// What is mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum MountKind {
    /// The input.
    #[default]
    Bind,
    /// A directory that lives on between builds; the input is its first content.
    Cache { id: String, sharing: CacheSharing },
    /// Memory; a size of 0 is no limit.
    Tmpfs { size: i64 },
    /// A file with a secret's value.
    Secret(SecretFile),
    /// The socket of an ssh agent.
    Ssh(SecretFile),
}

/// Who may use a cache directory at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CacheSharing {
    /// All writers at once.
    #[default]
    Shared,
    /// A second writer gets another directory.
    Private,
    /// A second writer waits.
    Locked,
}

/// Whether the content of a mount's input may find a result when its definition does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ContentCache {
    /// For read-only mounts alone.
    #[default]
    Default,
    On,
    Off,
}

/// A secret or an ssh agent as a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretFile {
    pub id: String,
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    /// Goes on without it where it is not given.
    pub optional: bool,
}

/// File actions, one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileOp {
    pub actions: Vec<FileAction>,
}

/// One change of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileAction {
    /// The tree that is changed; `None` is an empty one.
    pub input: Option<ActionInput>,
    /// The tree a copy reads; `None` is an empty one.
    pub secondary_input: Option<ActionInput>,
    /// The output that the changed tree becomes.
    pub output: Option<usize>,
    pub action: Action,
}

/// Where an action takes a tree from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActionInput {
    /// An input of the vertex.
    Vertex(usize),
    /// The result of an earlier action of the same op.
    Action(usize),
}

/// What an action does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Copy(Box<Copy>),
    MakeFile(MakeFile),
    MakeDirectory(MakeDirectory),
    Remove(Remove),
    Symlink(Symlink),
}

impl Action {
    /// Returns the inputs in which names of users and groups are looked up.
    pub fn names_from(&self) -> impl Iterator<Item = usize> {
        let owner = match self {
            Self::Copy(copy) => copy.owner.as_ref(),
            Self::MakeFile(file) => file.owner.as_ref(),
            Self::MakeDirectory(directory) => directory.owner.as_ref(),
            Self::Symlink(link) => link.owner.as_ref(),
            Self::Remove(_) => None,
        };
        let who = owner.map(|owner| [owner.user.as_ref(), owner.group.as_ref()]);
        let who = who.into_iter().flatten().flatten();
        who.filter_map(|who| match who {
            UserRef::Name { input, .. } => *input,
            UserRef::Id(_) => None,
        })
    }

    /// As [`Action::names_from`], to give the inputs other numbers.
    fn named_inputs(&mut self) -> impl Iterator<Item = &mut usize> {
        let owner = match self {
            Self::Copy(copy) => copy.owner.as_mut(),
            Self::MakeFile(file) => file.owner.as_mut(),
            Self::MakeDirectory(directory) => directory.owner.as_mut(),
            Self::Symlink(link) => link.owner.as_mut(),
            Self::Remove(_) => None,
        };
        let who = owner.map(|owner| [owner.user.as_mut(), owner.group.as_mut()]);
        let who = who.into_iter().flatten().flatten();
        who.filter_map(|who| match who {
            UserRef::Name { input, .. } => input.as_mut(),
            UserRef::Id(_) => None,
        })
    }
}

/// Copies from the secondary input onto the input.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copy {
    pub source: String,
    pub dest: String,
    pub owner: Option<Owner>,
    pub mode: CopyMode,
    pub follow_symlink: bool,
    /// Copies what is in a source directory, not the directory.
    pub directory_contents: bool,
    /// Unpacks a source that is an archive, as ADD does.
    pub unpack: bool,
    pub create_dest_path: bool,
    pub allow_wildcard: bool,
    /// A wildcard that finds nothing is no error.
    pub allow_empty_wildcard: bool,
    /// Nanoseconds since 1970 for what is made; `None` keeps times of the source.
    pub timestamp: Option<i64>,
    pub include_patterns: Vec<String>,
    pub exclude_patterns: Vec<String>,
    /// Replaces what is at a destination path in another type instead of failing.
    pub replace_existing: bool,
    /// Paths that must be there; only with include patterns.
    pub required_paths: Vec<String>,
}

/// Which permissions copied files get.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CopyMode {
    /// Those of the source.
    #[default]
    Keep,
    /// These bits, up to 0o7777.
    Bits(u32),
    /// A change in chmod's symbolic form (`u=rwX,go=rX`).
    Symbolic(String),
}

/// Makes a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MakeFile {
    pub path: String,
    pub mode: u32,
    pub data: Vec<u8>,
    pub owner: Option<Owner>,
    /// Nanoseconds since 1970; `None` is now.
    pub timestamp: Option<i64>,
}

/// Makes a directory; one that is there stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MakeDirectory {
    pub path: String,
    pub mode: u32,
    pub make_parents: bool,
    pub owner: Option<Owner>,
    pub timestamp: Option<i64>,
}

/// Removes a file or a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remove {
    pub path: String,
    pub allow_not_found: bool,
    pub allow_wildcard: bool,
}

/// Makes a symbolic link at `new_path` that says `old_path`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Symlink {
    pub old_path: String,
    pub new_path: String,
    pub owner: Option<Owner>,
    pub timestamp: Option<i64>,
}

/// Who owns what an action makes; `None` is root for made files and is also root for copied ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owner {
    pub user: Option<UserRef>,
    pub group: Option<UserRef>,
}

/// A user or group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserRef {
    Id(u32),
    /// A name to be looked up in `/etc/passwd` or `/etc/group` of an input of the vertex.
    Name {
        name: String,
        input: Option<usize>,
    },
}

/// Trees laid over one another, lowest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MergeOp {
    pub inputs: Vec<Option<usize>>,
}

/// What `upper` has that `lower` has not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiffOp {
    pub lower: Option<usize>,
    pub upper: Option<usize>,
}

/// A nested build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildOp {
    /// `None` builds a definition found in an input (`attrs` say in which file).
    pub builder: Option<usize>,
    pub inputs: BTreeMap<String, Option<usize>>,
    /// A whole definition in wire form.
    pub definition: Option<Vec<u8>>,
    pub attrs: BTreeMap<String, String>,
}
