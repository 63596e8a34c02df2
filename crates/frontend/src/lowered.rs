//! What comes of a lowering.

use dockerfile::Lines;
use oci::{ImageConfig, Platform};

/// A Dockerfile as graphs and images.
#[derive(Debug, Clone)]
pub struct Lowered {
    /// One for each platform asked for, in that order; one if none was.
    pub builds: Vec<PlatformBuild>,
    /// The result is an index.
    pub multi_platform: bool,
}

/// The build for one platform.
#[derive(Debug, Clone)]
pub struct PlatformBuild {
    /// What was asked for, normalized; the host's if nothing was.
    pub platform: Platform,
    pub graph: llb::Graph,
    /// The image without the layers of this build: `rootfs` and the first history entries are the base's.
    ///
    /// `created` is not set; nor are the times of new history entries, but for `epoch`.
    pub config: ImageConfig,
    /// The base image's config as it was found; `None` for `scratch`.
    pub base_config: Option<ImageConfig>,
    /// `SOURCE_DATE_EPOCH`, in seconds since 1970.
    pub epoch: Option<i64>,
    /// The target stage runs without recorded results.
    pub ignore_cache: bool,
    /// The local directories the graph needs.
    pub contexts: Vec<ContextUse>,
    /// What is to be scanned beside the result.
    pub scan_targets: Vec<ScanTarget>,
    /// Every stage of the file.
    pub stages: Vec<StageSummary>,
}

/// A tree that is looked into for a bill of materials.
#[derive(Debug, Clone)]
pub struct ScanTarget {
    /// `context`, or a stage.
    pub name: String,
    pub graph: llb::Graph,
}

/// What is needed of a local directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextUse {
    /// `context` for the main one.
    pub name: String,
    /// The position of the source in [`llb::Graph::vertices`].
    pub vertex: usize,
    /// The paths used, relative, sorted; they may hold wildcards. Empty means all of it.
    pub paths: Vec<String>,
    /// The patterns of the ignore file.
    pub ignore: Vec<String>,
}

/// A stage and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageSummary {
    /// Empty for a stage without a name.
    pub name: String,
    /// The base with variables expanded; normalized and pinned if it is an image.
    pub base: String,
    pub lines: Lines,
    pub role: StageRole,
}

/// Whether a stage is part of the build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageRole {
    Target,
    /// The target depends on it.
    Needed,
    /// Nothing of it is built.
    Skipped,
}
