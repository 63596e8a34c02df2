//! What a lowering is told beside the Dockerfile.

use std::collections::BTreeMap;

use oci::{Digest, Platform};

/// The settings of a build that shape its graph.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The name of the Dockerfile, for messages.
    pub filename: String,
    /// The stage to build, by name; `None` is the last one.
    pub target: Option<String>,
    /// Build arguments. `SOURCE_DATE_EPOCH` and the proxy variables among them have their own meaning.
    pub build_args: BTreeMap<String, String>,
    /// Labels of the image beside those of the Dockerfile, which they replace.
    pub labels: BTreeMap<String, String>,
    /// The platforms to build for; none asked for means that of the builder or what the base image is for.
    pub platforms: Vec<Platform>,
    /// What the builder itself runs on, best first; empty is the host's.
    pub build_platforms: Vec<Platform>,
    /// The result is an index even for one platform; always so for several.
    pub multi_platform: bool,
    /// The size of `/dev/shm` in bytes, 0 is the default.
    pub shm_size: i64,
    pub ulimits: Vec<llb::Ulimit>,
    pub extra_hosts: Vec<llb::HostIp>,
    /// Devices for every RUN.
    pub devices: Vec<llb::CdiDevice>,
    /// The network of a RUN that does not say its own.
    pub network: llb::NetworkMode,
    /// The host name of steps; empty is the default.
    pub hostname: String,
    pub cgroup_parent: String,
    pub resources: Option<llb::LinuxResources>,
    pub no_cache: NoCache,
    /// Set before the ids of cache mounts.
    pub cache_namespace: String,
    pub resolve_mode: ResolveMode,
    /// The main context.
    pub context: MainContext,
    /// Contexts by the names that stand in FROM, `COPY --from` and `--mount=from=`; also `name::platform`.
    pub named_contexts: BTreeMap<String, NamedContext>,
}

/// Which stages run without looking for recorded results.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NoCache {
    #[default]
    None,
    All,
    /// By name, in any case.
    Stages(Vec<String>),
}

impl NoCache {
    pub(crate) fn covers(&self, stage: &str) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Stages(names) => names
                .iter()
                .any(|name| name.to_lowercase() == stage.to_lowercase()),
        }
    }
}

/// Where an image is looked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResolveMode {
    /// As the builder likes.
    #[default]
    Default,
    /// The registry is asked.
    Pull,
    /// One that is there is used.
    Local,
}

impl ResolveMode {
    /// Returns the value of the attribute `image.resolvemode`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Pull => "pull",
            Self::Local => "local",
        }
    }
}

/// Where COPY and ADD without `--from` find their files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MainContext {
    /// A directory or stream that the caller has, by the name `context`.
    Local {
        /// The patterns of the ignore file.
        ignore: Vec<String>,
    },
    /// A git repository (`https://host/repo.git#ref:directory`).
    Git { url: String, keep_git_dir: bool },
    /// An archive behind a URL.
    HttpArchive { url: String },
    /// A file behind a URL: the Dockerfile itself, alone.
    HttpFile { url: String },
}

impl Default for MainContext {
    fn default() -> Self {
        Self::Local { ignore: Vec::new() }
    }
}

/// A context given beside the main one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedContext {
    /// An image (`docker-image://`); `scratch` is an empty tree.
    Image(String),
    /// An image in an OCI layout directory that the caller knows by `store`.
    OciLayout { store: String, digest: Digest },
    /// A directory that the caller has, by `name`.
    Local {
        name: String,
        /// The patterns of its ignore file.
        ignore: Vec<String>,
    },
    /// A git repository or a file behind `http://`, `https://`, `git://`, `git@host:path` or `ssh://`.
    Url(String),
}
