//! What a lowering is told beside the Dockerfile.

use std::collections::BTreeMap;
use std::sync::Arc;

use dockerfile::{Diagnostic, parse_bool};
use oci::{Digest, ImageConfig, Platform};

use crate::error::nowhere;

/// The settings of a build that shape its graph.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The name of the Dockerfile, for messages.
    pub filename: String,
    /// The graph that yields the Dockerfile, in wire form, where one is known.
    pub definition: Option<Vec<u8>>,
    /// The stage to build, by name; `None` is the last one.
    pub target: Option<String>,
    /// Build arguments. `SOURCE_DATE_EPOCH` and the proxy variables among them have their own meaning.
    pub build_args: BTreeMap<String, String>,
    /// Find out what else than the result is to be scanned for a bill of materials.
    pub scan_targets: bool,
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

impl Options {
    /// Follows the build arguments that are meant for the builder: `BUILDKIT_CACHE_MOUNT_NS`, `BUILDKIT_MULTI_PLATFORM`,
    /// `BUILDKIT_SANDBOX_HOSTNAME` and `BUILDKIT_CONTEXT_KEEP_GIT_DIR`.
    ///
    /// # Errors
    ///
    /// If one that is yes or no is neither, or an index is refused that several platforms need.
    pub fn heeding_build_args(mut self) -> Result<Self, Vec<Diagnostic>> {
        let given = |name: &str| self.build_args.get(name).filter(|value| !value.is_empty());
        let wrong = |message: String| vec![*nowhere("build-argument", message)];
        let multi_platform = given("BUILDKIT_MULTI_PLATFORM").map(|value| {
            parse_bool(value)
                .ok_or_else(|| wrong(format!("invalid boolean value for multi-platform: {value}")))
        });
        let multi_platform = multi_platform.transpose()?;
        if multi_platform == Some(false) && self.platforms.len() > 1 {
            let message = "conflicting config: returning multiple target platforms is not allowed";
            return Err(wrong(message.to_owned()));
        }
        let keep_git = given("BUILDKIT_CONTEXT_KEEP_GIT_DIR").and_then(|value| parse_bool(value));
        let namespace = given("BUILDKIT_CACHE_MOUNT_NS").cloned();
        let hostname = given("BUILDKIT_SANDBOX_HOSTNAME").cloned();
        self.multi_platform = multi_platform.unwrap_or(self.multi_platform);
        self.cache_namespace = namespace.unwrap_or(self.cache_namespace);
        self.hostname = hostname.unwrap_or(self.hostname);
        if let (MainContext::Git { keep_git_dir, .. }, Some(true)) = (&mut self.context, keep_git) {
            *keep_git_dir = true;
        }
        Ok(self)
    }
}

/// Tells whether a build argument that is yes or no is yes.
pub fn is_true(text: &str) -> bool {
    parse_bool(text) == Some(true)
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
#[derive(Debug, Clone)]
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
    /// What another build makes.
    Graph(Arc<llb::Graph>),
}

impl Default for MainContext {
    fn default() -> Self {
        Self::Local { ignore: Vec::new() }
    }
}

/// A context given beside the main one.
#[derive(Debug, Clone)]
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
    /// What another build makes, with the image's config if it makes an image.
    Graph {
        graph: Arc<llb::Graph>,
        config: Option<Box<ImageConfig>>,
    },
    /// A stage of the same file (`target:STAGE`), which stands before whatever uses it.
    Stage(String),
    /// A git repository or a file behind `http://`, `https://`, `git://`, `git@host:path` or `ssh://`.
    Url(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_build_arguments_are_for_the_builder() {
        let with = |pairs: &[(&str, &str)], platforms: usize| {
            let pairs = pairs.iter();
            Options {
                build_args: pairs
                    .map(|(name, value)| ((*name).into(), (*value).into()))
                    .collect(),
                platforms: vec![Platform::default(); platforms],
                context: MainContext::Git {
                    url: String::new(),
                    keep_git_dir: false,
                },
                ..Options::default()
            }
            .heeding_build_args()
        };
        let options = with(
            &[
                ("BUILDKIT_CACHE_MOUNT_NS", "ns"),
                ("BUILDKIT_MULTI_PLATFORM", "1"),
                ("BUILDKIT_SANDBOX_HOSTNAME", "box"),
                ("BUILDKIT_CONTEXT_KEEP_GIT_DIR", "true"),
            ],
            1,
        );
        let options = options.unwrap();
        assert_eq!(
            (options.cache_namespace.as_str(), options.hostname.as_str()),
            ("ns", "box")
        );
        assert!(options.multi_platform);
        assert!(matches!(
            options.context,
            MainContext::Git {
                keep_git_dir: true,
                ..
            }
        ));
        assert!(with(&[("BUILDKIT_MULTI_PLATFORM", "maybe")], 1).is_err());
        assert!(with(&[("BUILDKIT_MULTI_PLATFORM", "0")], 2).is_err());
        assert!(with(&[("BUILDKIT_MULTI_PLATFORM", "0")], 1).is_ok());
    }
}
