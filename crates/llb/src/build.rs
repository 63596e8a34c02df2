//! Drafts of process and file vertices without counting inputs by hand.

use std::collections::HashMap;
use std::sync::Arc;

use oci::Platform;

use crate::{
    Action, ActionInput, CacheSharing, CdiDevice, ContentCache, Draft, ExecOp, FileAction, FileOp,
    Meta, Metadata, Mount, MountKind, NetworkMode, Op, Output, Owner, SecretEnv, SecretFile,
    SecurityMode, UserRef,
};

/// A process to be: mounts with the vertices they come from.
///
/// The mounts are sorted by destination, those of secrets and sockets last; outputs are numbered in that order over
/// the writable ones, so that the root is output 0.
#[derive(Debug, Clone, Default)]
pub struct ExecSpec {
    pub root: Option<Output>,
    pub meta: Meta,
    pub mounts: Vec<ExecMount>,
    pub secrets: Vec<SecretMount>,
    pub ssh: Vec<SshMount>,
    pub secret_env: Vec<SecretEnv>,
    pub network: NetworkMode,
    pub security: SecurityMode,
    pub cdi_devices: Vec<CdiDevice>,
    pub platform: Option<Arc<Platform>>,
    pub metadata: Metadata,
}

/// A mount of an [`ExecSpec`] beside its root.
#[derive(Debug, Clone, Default)]
pub struct ExecMount {
    pub source: Option<Output>,
    pub selector: String,
    pub dest: String,
    pub read_only: bool,
    /// What the process leaves in a writable bind mount is thrown away.
    pub no_output: bool,
    pub kind: MountKind,
    pub content_cache: ContentCache,
}

impl ExecMount {
    /// Returns a mount of a directory that lives on.
    pub fn cache(id: String, sharing: CacheSharing, dest: String) -> Self {
        Self {
            dest,
            kind: MountKind::Cache { id, sharing },
            ..Self::default()
        }
    }
}

/// A secret as a file of an [`ExecSpec`].
#[derive(Debug, Clone, Default)]
pub struct SecretMount {
    pub dest: String,
    pub file: SecretFile,
}

/// An ssh agent of an [`ExecSpec`].
#[derive(Debug, Clone, Default)]
pub struct SshMount {
    /// `None` is `/run/buildkit/ssh_agent.N`.
    pub dest: Option<String>,
    pub file: SecretFile,
}

/// The variable in which programs look for an ssh agent.
const SSH_AUTH_SOCK: &str = "SSH_AUTH_SOCK";

impl From<ExecSpec> for Draft {
    fn from(spec: ExecSpec) -> Self {
        let ExecSpec {
            mut meta,
            secrets,
            ssh,
            ..
        } = spec;
        let mut mounts = vec![ExecMount {
            source: spec.root,
            dest: "/".to_owned(),
            ..ExecMount::default()
        }];
        mounts.extend(spec.mounts);
        mounts.sort_by(|one, other| one.dest.cmp(&other.dest));
        let mut inputs = Inputs::default();
        let mut outputs = 0;
        let mut all: Vec<Mount> = Vec::with_capacity(mounts.len() + secrets.len() + ssh.len());
        for mount in mounts {
            let writable = !mount.no_output && !mount.read_only && mount.kind == MountKind::Bind;
            let output = writable.then_some(outputs);
            outputs += usize::from(writable);
            all.push(Mount {
                input: mount.source.map(|source| inputs.position(source)),
                selector: mount.selector,
                dest: mount.dest,
                output,
                read_only: mount.read_only,
                kind: mount.kind,
                result_id: String::new(),
                content_cache: mount.content_cache,
            });
        }
        let special = |dest, kind| Mount {
            dest,
            kind,
            ..Mount::default()
        };
        for SecretMount { dest, file } in secrets {
            all.push(special(dest, MountKind::Secret(file)));
        }
        for (number, SshMount { dest, file }) in ssh.into_iter().enumerate() {
            let dest = dest.unwrap_or_else(|| format!("/run/buildkit/ssh_agent.{number}"));
            if number == 0 && !has_variable(&meta.env, SSH_AUTH_SOCK) {
                meta.env.push(format!("{SSH_AUTH_SOCK}={dest}"));
            }
            all.push(special(dest, MountKind::Ssh(file)));
        }
        let exec = ExecOp {
            meta,
            mounts: all,
            network: spec.network,
            security: spec.security,
            secret_env: spec.secret_env,
            cdi_devices: spec.cdi_devices,
        };
        Draft {
            platform: spec.platform,
            metadata: spec.metadata,
            ..Draft::new(Op::Exec(Box::new(exec)), inputs.list)
        }
    }
}

fn has_variable(env: &[String], name: &str) -> bool {
    env.iter().any(|pair| pair.split('=').next() == Some(name))
}

/// Inputs of a vertex, each once.
#[derive(Debug, Clone, Default)]
struct Inputs {
    list: Vec<Output>,
    places: HashMap<Output, usize>,
}

impl Inputs {
    /// Returns the position of an input, added if it is new.
    fn position(&mut self, input: Output) -> usize {
        /// How many are looked through one by one before an index is made.
        const FEW: usize = 16;
        if self.list.len() < FEW {
            let known = self.list.iter().position(|known| *known == input);
            return known.unwrap_or_else(|| {
                self.list.push(input);
                self.list.len() - 1
            });
        }
        if self.places.is_empty() {
            self.places = self.list.iter().copied().zip(0..).collect();
        }
        *self.places.entry(input).or_insert_with(|| {
            self.list.push(input);
            self.list.len() - 1
        })
    }
}

/// File actions to be, each on the result of the one before; the last one's result is the output.
#[derive(Debug, Clone, Default)]
pub struct FileSpec {
    base: Option<usize>,
    inputs: Inputs,
    actions: Vec<FileAction>,
}

impl FileSpec {
    /// Begins with a tree; `None` is an empty one.
    pub fn new(base: Option<Output>) -> Self {
        let mut inputs = Inputs::default();
        let base = base.map(|base| inputs.position(base));
        Self {
            base,
            inputs,
            actions: Vec::new(),
        }
    }

    /// Adds an action that reads no other tree. Names of owners are looked up in the tree begun with.
    pub fn action(&mut self, action: Action) {
        self.push(None, action);
    }

    /// Adds a copy from another tree; `None` is an empty one.
    pub fn copy(&mut self, from: Option<Output>, copy: crate::Copy) {
        let from = from.map(|from| ActionInput::Vertex(self.inputs.position(from)));
        self.push(from, Action::Copy(Box::new(copy)));
    }

    fn push(&mut self, secondary_input: Option<ActionInput>, mut action: Action) {
        let owner = match &mut action {
            Action::Copy(copy) => copy.owner.as_mut(),
            Action::MakeFile(file) => file.owner.as_mut(),
            Action::MakeDirectory(directory) => directory.owner.as_mut(),
            Action::Symlink(link) => link.owner.as_mut(),
            Action::Remove(_) => None,
        };
        if let Some(Owner { user, group }) = owner {
            for who in [user, group].into_iter().flatten() {
                if let UserRef::Name { input, .. } = who {
                    *input = self.base;
                }
            }
        }
        let input = match self.actions.len() {
            0 => self.base.map(ActionInput::Vertex),
            count => Some(ActionInput::Action(count - 1)),
        };
        self.actions.push(FileAction {
            input,
            secondary_input,
            output: None,
            action,
        });
    }

    /// Returns the vertex to be.
    pub fn into_draft(mut self, metadata: Metadata) -> Draft {
        if let Some(last) = self.actions.last_mut() {
            last.output = Some(0);
        }
        Draft {
            metadata,
            ..Draft::new(
                Op::File(FileOp {
                    actions: self.actions,
                }),
                self.inputs.list,
            )
        }
    }
}
