//! What vertices do when they run, and what they need for it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llb::{ExecOp, NetworkMode, SecurityMode};
use registry::CredentialProvider;
use rootfs::checksum::Census;
use rootfs::{OverlayXattrs, Tree};
use sandbox::{Executor, Helper, Limits, OciExecutor, Runtime};
use store::{Ids, Key, Layer, LayerInfo, MutLayer, Store};

use crate::EngineError;
use crate::cache::Imports;
use crate::cancel::Cancel;
use crate::client::BuildClient;
use crate::context::ContextTree;
use crate::export::ahead::Ahead;
use crate::keys::KeyBuilder;
use crate::request::{BuildRequest, SecretSource, StepOptions};
use crate::shell::StepState;
use crate::snapshot::{tree_of, writable_tree};
use crate::source::git_program::GitAccess;
use crate::source::image::ImageResolver;
use crate::vertex::RecordInfo;

mod advice;
mod apk;
pub(crate) mod cache_mount;
pub(crate) mod exec;
pub(crate) mod file;
mod limits;
pub(crate) mod merge;
pub(crate) mod network;
pub(crate) mod output;
pub(crate) mod ssh;
mod ssh_keys;
pub(crate) mod trust;
mod upper;

/// What all builds of one engine share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) images: ImageResolver,
    helper: Arc<OnceLock<Result<Arc<Helper>, String>>>,
    executor: Arc<OnceLock<Box<dyn Executor>>>,
    sandbox: sandbox::Options,
    runtime: Option<Runtime>,
    /// Where a request has none.
    pub(crate) step_limits: Limits,
    /// What was not said yet.
    notes: Arc<Mutex<Vec<String>>>,
}

impl Shared {
    pub(crate) fn new(
        store: Store,
        registries: registry::Settings,
        sandbox: sandbox::Options,
        runtime: Option<Runtime>,
        notes: Vec<String>,
    ) -> Self {
        Self {
            images: ImageResolver::new(store.clone(), registries),
            store,
            helper: Arc::default(),
            executor: Arc::default(),
            sandbox,
            runtime,
            step_limits: Limits::default(),
            notes: Arc::new(Mutex::new(notes)),
        }
    }

    /// Returns the same, but for the logins at registries.
    pub(crate) fn with_credentials(&self, credentials: Arc<dyn CredentialProvider>) -> Self {
        Self {
            store: self.store.clone(),
            images: self.images.with_credentials(credentials),
            helper: Arc::clone(&self.helper),
            executor: Arc::clone(&self.executor),
            sandbox: self.sandbox.clone(),
            runtime: self.runtime.clone(),
            step_limits: self.step_limits.clone(),
            notes: Arc::clone(&self.notes),
        }
    }

    /// Returns what the isolation of steps lacks here, in words for the user: once.
    pub(crate) fn notes(&self) -> Vec<String> {
        std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the sandbox's helper process, started when the first step needs it.
    pub(crate) fn helper(&self) -> Result<&Arc<Helper>, EngineError> {
        let started = self.helper.get_or_init(|| {
            let helper =
                Helper::start(&self.sandbox).map_err(|error| crate::error::chain(&error))?;
            let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
            notes.extend(helper.notes().iter().cloned());
            Ok(Arc::new(helper))
        });
        started
            .as_ref()
            .map_err(|reason| EngineError::SandboxStart(reason.clone()))
    }

    /// Returns what runs RUN steps: the helper, or the runtime that was chosen.
    pub(crate) fn executor(&self) -> Result<&dyn Executor, EngineError> {
        let helper = self.helper()?;
        let executor = self.executor.get_or_init(|| match &self.runtime {
            Some(runtime) => Box::new(OciExecutor::new(Arc::clone(helper), runtime.clone())),
            None => Box::new(Arc::clone(helper)),
        });
        Ok(&**executor)
    }

    /// Returns the runtime that was chosen.
    pub(crate) fn runtime(&self) -> Option<&Runtime> {
        self.runtime.as_ref()
    }

    /// Returns where overlay keeps its marks in this store.
    pub(crate) fn xattrs(&self) -> OverlayXattrs {
        match self.store.ids() {
            Ids::Rootful => OverlayXattrs::Trusted,
            Ids::Rootless { .. } => OverlayXattrs::User,
        }
    }

    /// Opens layers as one tree.
    pub(crate) fn tree(&self, layers: &[Layer]) -> Result<Tree, EngineError> {
        Ok(tree_of(layers, self.xattrs())?)
    }

    /// Opens layers as one tree that is written to a directory above them.
    pub(crate) fn writable_tree(&self, below: &[Layer], upper: &Path) -> Result<Tree, EngineError> {
        writable_tree(below, upper, self.xattrs())
    }

    /// Makes a layer to lie over the given ones: its root is like theirs.
    pub(crate) fn new_layer(&self, below: &[Layer]) -> Result<MutLayer, EngineError> {
        let layer = self.store.new_layer()?;
        let path = layer.path();
        attributes_of_root(below.last().map(Layer::path), &path)?;
        Ok(layer)
    }

    /// Commits what a step has written.
    pub(crate) fn commit(&self, layer: MutLayer, origin: &str) -> Result<Layer, EngineError> {
        let path = layer.path();
        let (bytes, content) = usage(&path).map_err(EngineError::io("measure", &path))?;
        let info = self.layer_info(origin, (bytes, content), None);
        Ok(layer.commit(info)?)
    }

    /// Commits what a step has written, as a walk has found it.
    pub(crate) fn commit_counted(
        &self,
        layer: MutLayer,
        origin: &str,
        census: &Census,
    ) -> Result<Layer, EngineError> {
        let size = (census.bytes, census.content);
        let info = self.layer_info(origin, size, Some(census.checksum));
        Ok(layer.commit(info)?)
    }

    fn layer_info(
        &self,
        origin: &str,
        (bytes, content): (u64, u64),
        content_id: Option<[u8; 32]>,
    ) -> LayerInfo {
        LayerInfo {
            tar: None,
            content_id,
            bytes,
            content,
            origin: origin.to_owned(),
            created: self.store.now(),
        }
    }
}

/// What the steps of one build share.
pub(crate) struct StepContext {
    pub(crate) shared: Arc<Shared>,
    pub(crate) secrets: BTreeMap<String, SecretSource>,
    pub(crate) ssh: BTreeMap<String, Vec<PathBuf>>,
    pub(crate) entitlements: Vec<String>,
    pub(crate) limits: Limits,
    pub(crate) shm_size: Option<u64>,
    pub(crate) steps: StepOptions,
    /// What [`StepOptions::ca_bundle`] holds.
    pub(crate) trust: Option<trust::Trust>,
    /// The build's id, which leads from a recorded result to its log.
    pub(crate) build: String,
    /// By what other processes find the log of a step that runs; empty if they cannot.
    pub(crate) log: String,
    /// Layers of the image that are written while later steps run.
    pub(crate) ahead: Option<Arc<Ahead>>,
    /// Who has the secrets and agents that are not here.
    pub(crate) client: Option<Arc<dyn BuildClient>>,
    /// What ends the build before its time.
    pub(crate) cancel: Cancel,
    /// What caches of other machines have.
    pub(crate) imports: Arc<Imports>,
    /// What is left of the first step that failed, where [`StepOptions::keep_failed`] asks for it.
    pub(crate) failed: Mutex<Option<Box<StepState>>>,
    /// Cache mounts that were begun anew for this build, by their folders.
    pub(crate) renewed: Mutex<BTreeSet<String>>,
}

impl std::ops::Deref for StepContext {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

/// The largest secret, as in BuildKit.
const MAX_SECRET: u64 = 500 * 1024;

/// Returns a secret's value; `None` where it is not given and need not be.
pub(crate) fn read_secret(
    secrets: &BTreeMap<String, SecretSource>,
    id: &str,
    optional: bool,
) -> Result<Option<Vec<u8>>, EngineError> {
    let value = match secrets.get(id) {
        Some(SecretSource::File(path)) => {
            let size = std::fs::metadata(path)
                .map_err(EngineError::io("read", path))?
                .len();
            if size > MAX_SECRET {
                return Err(EngineError::Request(format!(
                    "secret {id} has {size} bytes; {MAX_SECRET} are possible"
                )));
            }
            std::fs::read(path).map_err(EngineError::io("read", path))?
        }
        Some(SecretSource::Environment(name)) => {
            use std::os::unix::ffi::OsStringExt;
            match std::env::var_os(name) {
                Some(value) => value.into_vec(),
                None if optional => return Ok(None),
                None => {
                    return Err(EngineError::Request(format!(
                        "secret {id} comes from the variable {name}, which is not set"
                    )));
                }
            }
        }
        None if optional => return Ok(None),
        None => {
            return Err(EngineError::Request(format!(
                "secret {id}: not found; give it with --secret id={id},src=FILE"
            )));
        }
    };
    Ok(Some(value))
}

impl StepContext {
    /// Makes a context in which nothing is given and nothing is allowed.
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let limits = shared.step_limits.clone();
        Self {
            shared,
            secrets: BTreeMap::new(),
            ssh: BTreeMap::new(),
            entitlements: Vec::new(),
            limits,
            shm_size: None,
            steps: StepOptions::default(),
            trust: None,
            build: String::new(),
            log: String::new(),
            ahead: None,
            client: None,
            cancel: Cancel::default(),
            imports: Arc::default(),
            failed: Mutex::default(),
            renewed: Mutex::default(),
        }
    }

    /// Takes over how a request of this machine has its steps run.
    pub(crate) fn heed(&mut self, request: &BuildRequest, id: &str) -> Result<(), EngineError> {
        self.secrets.clone_from(&request.secrets);
        self.ssh.clone_from(&request.ssh);
        if !request.limits.is_empty() {
            self.limits.clone_from(&request.limits);
        }
        self.shm_size = request.shm_size;
        let bundle = request.steps.ca_bundle.as_ref();
        self.trust = bundle.map(trust::Trust::read).transpose()?;
        self.steps = StepOptions {
            keep_failed: false,
            ..request.steps.clone()
        };
        id.clone_into(&mut self.build);
        Ok(())
    }

    /// Keeps what is left of a failed step, unless another failed before it.
    pub(crate) fn keep_failed(&self, state: Option<Box<StepState>>) {
        let mut kept = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.is_none() {
            *kept = state;
        }
    }

    /// Returns what [`Self::keep_failed`] has kept.
    pub(crate) fn take_failed(&self) -> Option<Box<StepState>> {
        let mut kept = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        kept.take()
    }

    fn client_secret(&self, id: &str, optional: bool) -> Result<Option<Vec<u8>>, EngineError> {
        let found = match &self.client {
            Some(client) => client.secret(id)?,
            None => None,
        };
        match found {
            None if !optional => Err(EngineError::Request(format!("secret {id}: not found"))),
            Some(value) if value.len() as u64 > MAX_SECRET => Err(EngineError::Request(format!(
                "secret {id} has {} bytes; {MAX_SECRET} are possible",
                value.len()
            ))),
            found => Ok(found),
        }
    }

    /// Returns a secret's value; `None` where it is not given and need not be.
    pub(crate) fn secret(&self, id: &str, optional: bool) -> Result<Option<Vec<u8>>, EngineError> {
        if self.client.is_some() && !self.secrets.contains_key(id) {
            return self.client_secret(id, optional);
        }
        read_secret(&self.secrets, id, optional)
    }

    /// Returns what opens git repositories to this build.
    pub(crate) fn git_access(&self) -> GitAccess {
        GitAccess::new(&self.secrets, &self.ssh)
            .of_client(self.client.clone())
            .until(self.shared.images.stopping())
            .until(&self.cancel)
    }

    /// Refuses what the build was not allowed to do.
    pub(crate) fn check_entitlements(&self, op: &ExecOp) -> Result<(), EngineError> {
        let needed = [
            (op.network == NetworkMode::Host, "network.host"),
            (op.security == SecurityMode::Insecure, "security.insecure"),
        ];
        for (asked, name) in needed {
            if asked && !self.entitlements.iter().any(|given| given == name) {
                return Err(EngineError::Request(format!(
                    "{name} is not allowed; use --allow {name}"
                )));
            }
        }
        Ok(())
    }

    /// Returns the layer that holds the files of a context as they are, copied unless an earlier build has done so.
    pub(crate) fn materialize(&self, tree: &ContextTree) -> Result<Layer, EngineError> {
        let all = rootfs::checksum::Selection::path("/");
        let key = KeyBuilder::new("directory")
            .key("content", &tree.checksum(&all)?)
            .key("times", &tree.capture.times())
            .finish();
        if let Some(layer) = self.known_directory(&key)? {
            return Ok(layer);
        }
        let copy = tree.copy_of(&self.shared, &[all])?;
        let layer = self.shared.commit(copy.layer, "context")?;
        let info = RecordInfo::of_source("context", layer.id());
        let info = serde_json::to_value(info).expect("a record can be written as JSON");
        self.store.record(&key, &[key], &[layer.id()], &info)?;
        Ok(layer)
    }

    fn known_directory(&self, key: &Key) -> Result<Option<Layer>, EngineError> {
        let Some(record) = self.store.find(key)? else {
            return Ok(None);
        };
        let info = serde_json::from_value::<RecordInfo>(record.info);
        match info.ok().as_ref().map(|info| info.outputs.as_slice()) {
            Some([layers]) => match layers.as_slice() {
                [layer] => Ok(self.store.layer(*layer)?),
                _ => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// Copies whole layers, merged, into a directory.
    pub(crate) fn copy_whole(&self, layers: &[Layer], dest: &Path) -> Result<(), EngineError> {
        if layers.is_empty() {
            return Ok(());
        }
        let source = self.shared.tree(layers)?;
        let dest = Tree::open(dest)?;
        let mut copy = rootfs::copy::Copy::new("/", "/");
        copy.dir_contents = true;
        rootfs::copy::copy(&source, &dest, &copy)?;
        Ok(())
    }
}

/// Gives a directory that is to lie over another its attributes.
pub(crate) fn attributes_of_root(below: Option<&Path>, path: &Path) -> Result<(), EngineError> {
    match below {
        Some(top) => copy_root(top, path),
        None => std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)),
    }
    .map_err(EngineError::io("set the attributes of", path))
}

fn copy_root(from: &Path, to: &Path) -> std::io::Result<()> {
    let meta = std::fs::metadata(from)?;
    std::os::unix::fs::chown(to, Some(meta.uid()), Some(meta.gid()))?;
    std::fs::set_permissions(to, meta.permissions())?;
    let times = std::fs::FileTimes::new().set_modified(meta.modified()?);
    std::fs::File::open(to)?.set_times(times)
}

/// Returns the bytes a tree takes on disk and those of its files' content, a file with several links once.
pub(crate) fn usage(root: &Path) -> std::io::Result<(u64, u64)> {
    let (mut bytes, mut content) = (0, 0);
    let mut linked = std::collections::HashSet::new();
    let mut work = vec![root.to_owned()];
    while let Some(folder) = work.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_dir() {
                work.push(entry.path());
            } else if meta.nlink() > 1 && !linked.insert(meta.ino()) {
                continue;
            } else if meta.is_file() {
                content += meta.len();
            }
            bytes += meta.blocks() * 512;
        }
    }
    Ok((bytes, content))
}
