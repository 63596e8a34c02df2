//! What a build is asked for.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use oci::{Platform, Reference};

use crate::frontends::Frontends;

/// One build.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// Where `COPY` and `ADD` find their files.
    pub context: Context,
    /// The Dockerfile.
    pub dockerfile: DockerfileSource,
    /// Stage to build, by name or index; the last one if absent.
    pub target: Option<String>,
    /// Build arguments.
    pub build_args: BTreeMap<String, String>,
    /// Labels added to the image.
    pub labels: BTreeMap<String, String>,
    /// Platforms to build for; the host's if empty.
    pub platforms: Vec<Platform>,
    /// Contexts by name (`--build-context`), as they were written.
    pub named_contexts: BTreeMap<String, String>,
    /// Which recorded results are not used.
    pub ignore_cache: IgnoreCache,
    /// Ask the registry also for tags that are in the store.
    pub pull: bool,
    /// Network of RUN steps that do not say otherwise: `default`, `none` or `host`.
    pub network: String,
    /// `NAME:IP` lines for `/etc/hosts`.
    pub add_hosts: Vec<String>,
    /// Size of `/dev/shm`, in bytes.
    pub shm_size: Option<u64>,
    /// `NAME=SOFT:HARD`.
    pub ulimits: Vec<String>,
    /// Parent of the steps' control groups.
    pub cgroup_parent: Option<String>,
    /// Limits of each step.
    pub limits: sandbox::Limits,
    /// How each RUN step is run.
    pub steps: StepOptions,
    /// Secrets by id.
    pub secrets: BTreeMap<String, SecretSource>,
    /// SSH agents and keys by id.
    pub ssh: BTreeMap<String, Vec<PathBuf>>,
    /// What the build may do: `network.host`, `security.insecure`.
    pub entitlements: Vec<String>,
    /// Time for everything the build writes, in seconds since 1970.
    pub source_date_epoch: Option<i64>,
    /// RUN steps at once; `None` is max(16, 4 × cores).
    pub jobs: Option<usize>,
    /// Finish what does not depend on a failure.
    pub keep_going: bool,
    /// Names for the image.
    pub tags: Vec<Reference>,
    /// Where the result goes.
    pub outputs: Vec<Output>,
    /// Caches of other machines whose results may be used.
    pub cache_from: Vec<CacheSource>,
    /// Where results are written to for other machines.
    pub cache_to: Vec<CacheTarget>,
    /// Makes one layer of those this build adds.
    pub squash: bool,
    /// Says how it was built, beside what is pushed or written in OCI layout or as files.
    pub provenance: Option<::attest::Provenance>,
    /// Says what is in it, in the same places.
    pub sbom: Option<::attest::Sbom>,
    /// Runs the frontend that the Dockerfile names, if that is an image; without it all are read as Dockerfiles.
    pub frontends: Option<Frontends>,
}

/// Asks for nothing: no files, an empty Dockerfile, no outputs.
impl Default for BuildRequest {
    fn default() -> Self {
        Self {
            context: Context::Empty,
            dockerfile: DockerfileSource::Bytes {
                name: String::new(),
                bytes: Vec::new(),
            },
            target: None,
            build_args: BTreeMap::new(),
            labels: BTreeMap::new(),
            platforms: Vec::new(),
            named_contexts: BTreeMap::new(),
            ignore_cache: IgnoreCache::No,
            pull: false,
            network: String::new(),
            add_hosts: Vec::new(),
            shm_size: None,
            ulimits: Vec::new(),
            cgroup_parent: None,
            limits: sandbox::Limits::default(),
            steps: StepOptions::default(),
            secrets: BTreeMap::new(),
            ssh: BTreeMap::new(),
            entitlements: Vec::new(),
            source_date_epoch: None,
            jobs: None,
            keep_going: false,
            tags: Vec::new(),
            outputs: Vec::new(),
            cache_from: Vec::new(),
            cache_to: Vec::new(),
            squash: false,
            provenance: None,
            sbom: None,
            frontends: None,
        }
    }
}

/// Where the files of the build come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Context {
    /// A directory of this machine.
    Directory(PathBuf),
    /// A tar stream, compressed or not.
    Tar(PathBuf),
    /// No files at all: the Dockerfile came alone.
    Empty,
    /// A git repository, `URL#ref:directory`.
    Git(String),
    /// An archive or a Dockerfile behind a URL.
    Http(String),
}

/// Where the Dockerfile comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DockerfileSource {
    /// A file of this machine.
    File(PathBuf),
    /// A path inside the context.
    InContext(String),
    /// A file behind a URL.
    Url(String),
    /// Its bytes, and the name to show.
    Bytes { name: String, bytes: Vec<u8> },
}

/// Which recorded results are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum IgnoreCache {
    /// None.
    #[default]
    No,
    /// Those of these stages.
    Stages(Vec<String>),
    /// All.
    All,
}

/// How RUN steps are run. Nothing of it is in a key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StepOptions {
    /// Certificates that steps trust beside those of their image.
    pub ca_bundle: Option<CaBundle>,
    /// A step that takes longer is killed, and has failed.
    pub timeout: Option<Duration>,
    /// How often a step that has failed is tried again.
    pub retries: u32,
    /// What is left of the first step that fails is kept for [`crate::BuildFailure::state`].
    pub keep_failed: bool,
}

/// Where certificates come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaBundle {
    File(PathBuf),
    /// What this machine trusts.
    Host,
}

/// Where a secret's value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    File(PathBuf),
    Environment(String),
}

/// One place the result goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// The store, under the request's names.
    Image(ImageOutput),
    /// An archive or a directory in OCI layout.
    Oci(ArchiveOutput),
    /// An archive that `docker load` takes.
    Docker(ArchiveOutput),
    /// The files, into a directory.
    Local {
        destination: PathBuf,
        platform_split: Option<bool>,
    },
    /// The files, as a tar stream.
    Tar { destination: Destination },
    /// Nothing: only the records are filled.
    CacheOnly,
}

/// How an image is put into the store or pushed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageOutput {
    /// Further names.
    pub names: Vec<Reference>,
    /// Push it to the registry of its names.
    pub push: bool,
    /// Push by digest only, without a tag.
    pub push_by_digest: bool,
    /// Keep it in the store.
    pub store: bool,
    pub layers: LayerOptions,
    pub annotations: Vec<Annotation>,
}

/// A note on a part of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    pub part: AnnotatedPart,
    /// Only in what is made for this platform.
    pub platform: Option<Platform>,
    pub key: String,
    pub value: String,
}

/// What carries an annotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnnotatedPart {
    Manifest,
    /// The descriptor of a manifest, in an index or a layout.
    ManifestDescriptor,
    /// The index over several platforms.
    Index,
    /// The descriptor of that index, in a layout.
    IndexDescriptor,
}

/// How an archive is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveOutput {
    pub destination: Destination,
    /// An archive; otherwise a directory.
    pub tar: bool,
    pub names: Vec<Reference>,
    pub layers: LayerOptions,
    pub annotations: Vec<Annotation>,
}

/// Where bytes go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    Path(PathBuf),
    Stdout,
    /// Another program that keeps images.
    Engine(ContainerEngine),
}

/// A container engine that takes archives as `docker load` does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerEngine {
    /// As people call it.
    pub name: String,
    pub via: EngineDoor,
}

/// How an engine is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineDoor {
    /// Docker's API, which Podman speaks too, behind a Unix socket.
    Socket(PathBuf),
    /// A program that reads the archive from its standard input.
    Program {
        program: PathBuf,
        arguments: Vec<String>,
    },
}

/// How layers are encoded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LayerOptions {
    pub compression: Compression,
    pub level: Option<i32>,
    /// Encode layers again that came from an image in another form.
    pub force: bool,
    /// OCI media types; `None` is the exporter's own choice.
    pub oci_media_types: Option<bool>,
    /// Whether the times of files are clamped to `source_date_epoch`; `None` is yes where there is one.
    pub rewrite_timestamp: Option<bool>,
}

/// How a layer's tar is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    #[default]
    Gzip,
    Zstd,
    Uncompressed,
}

/// A cache to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheSource {
    /// A directory in OCI layout: the manifest with this tag, or with this digest.
    Local {
        directory: PathBuf,
        tag: String,
        digest: Option<oci::Digest>,
    },
    /// A cache in a registry, or the one inside an image.
    Registry(Reference),
}

/// A cache to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheTarget {
    pub place: CachePlace,
    pub mode: CacheMode,
    pub layers: LayerOptions,
}

/// Where a cache is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CachePlace {
    /// A directory in OCI layout, under a tag.
    Local { directory: PathBuf, tag: String },
    /// A name in a registry.
    Registry(Reference),
    /// The config of the image.
    Inline,
}

/// Which results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// Those whose layers are in the image.
    #[default]
    Min,
    /// Those of all steps.
    Max,
}

impl std::fmt::Display for CacheSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local { directory, .. } => write!(f, "{}", directory.display()),
            Self::Registry(reference) => f.write_str(&reference.familiar()),
        }
    }
}

impl std::fmt::Display for CachePlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local { directory, .. } => write!(f, "{}", directory.display()),
            Self::Registry(reference) => f.write_str(&reference.familiar()),
            Self::Inline => f.write_str("the image"),
        }
    }
}
