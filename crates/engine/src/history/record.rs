//! What is kept of a build. The form on disk is this, as JSON.

use std::collections::BTreeMap;

use oci::{Digest, Timestamp};
use serde::{Deserialize, Serialize};
use store::LayerId;

use crate::KeyPart;

/// The form of [`BuildRecord`]; a record of a newer one is not read.
pub const RECORD_VERSION: u32 = 1;

/// One build. Values of secrets are in none of it; values of build arguments whose name says that they are
/// secret are hashed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildRecord {
    pub version: u32,
    /// 25 lower-case letters and digits, as buildx names builds.
    pub id: String,
    /// As buildx shows it: the context's or the Dockerfile's directory, with the target.
    pub name: String,
    pub started: Timestamp,
    pub completed: Option<Timestamp>,
    pub status: BuildStatus,
    pub request: RequestRecord,
    /// The Dockerfile, once it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dockerfile: Option<DockerfileRecord>,
    /// What came from outside, pinned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceRecord>,
    /// Everything that was shown as a step, in the order of the graph; what is no vertex of it around that.
    pub steps: Vec<StepRecord>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<WarningRecord>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<OutputRecord>,
    /// Why it failed; several with `--keep-going`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ErrorRecord>,
}

/// How a build ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuildStatus {
    Running,
    Completed,
    /// `failed` in `inspect`, `Error` in lists, as buildx has it.
    Failed,
    Canceled,
    /// The builder was killed before it could write more than this.
    Killed,
}

/// What a build was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestRecord {
    /// A directory (absolute), a URL without its credentials, or `-`.
    pub context: String,
    /// A file (absolute where it is one), or a path in the context.
    pub dockerfile: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub build_args: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub named_contexts: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    #[serde(skip_serializing_if = "is_false")]
    pub no_cache: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub no_cache_filter: Vec<String>,
    #[serde(skip_serializing_if = "is_false")]
    pub pull: bool,
    pub network: String,
    /// What ran its steps, where it was not the sandbox itself: `crun 1.21`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub runtime: String,
    /// The caches of other machines that it looked into.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub caches: Vec<String>,
    /// Kinds of outputs: `image`, `oci`, `local`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<String>,
    /// Ids of the secrets it was given, never more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_date_epoch: Option<i64>,
}

/// The Dockerfile as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerfileRecord {
    pub name: String,
    pub text: String,
}

/// One thing from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// `docker-image://…`, `local://context`, `https://…`.
    pub uri: String,
    /// What it was pinned to, where it has a digest of its own.
    pub digest: Option<Digest>,
    /// For an image: the digest of its config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Digest>,
}

impl SourceRecord {
    /// Returns the URI without the digest of an image, which may differ from build to build.
    pub fn name(&self) -> &str {
        match self.uri.split_once("@sha256:") {
            Some((name, _)) => name,
            None => &self.uri,
        }
    }
}

/// One step of a build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// As in the progress of the build.
    pub vertex: Digest,
    /// As shown: `[builder 2/5] RUN make`.
    pub name: String,
    pub kind: StepKind,
    /// The stage's name as shown: `builder`, `stage-2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// The instruction alone: `RUN make`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub command: String,
    /// First and last line in the Dockerfile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<(u32, u32)>,
    /// The steps it uses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Digest>,
    /// The one of them whose files it changes; none where it began with nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed: Option<Timestamp>,
    pub outcome: StepOutcome,
    /// How the result was found, where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_by: Option<CachedBy>,
    /// The cache it came from, where it is one of another machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_from: Option<String>,
    /// Why no recorded result was used, where none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub miss: Option<Miss>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageRecord>,
    /// The layer it made, or was found to have made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<LayerRecord>,
    /// How to start its process again, for a step with one that ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessRecord>,
    /// What was moved: layers pulled, files sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transfers: Vec<TransferRecord>,
    /// Bytes printed in this build; see [`History::log`](super::History::log).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub printed: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// What kind of step it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepKind {
    /// A base image.
    Image,
    /// Files from outside: a context, a URL.
    Source,
    /// RUN.
    Exec,
    /// COPY, ADD, WORKDIR, a merge.
    File,
    /// Work of the builder around the graph: reading the Dockerfile, exporting.
    Builder,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepOutcome {
    Ran,
    Cached,
    Failed,
    Canceled,
    /// It was never come to: what it needs failed, or the build ended before.
    Skipped,
}

/// How a recorded result was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CachedBy {
    /// By the definition: nothing it is made of has changed.
    Definition,
    /// By the content of its inputs: they were made again and hold what they held.
    Content,
    /// Another build ran it meanwhile.
    OtherBuild,
    /// A cache that was named with `--cache-from` had it.
    Imported,
    /// A step above it was found, so nobody looked at this one.
    Covered,
}

/// Why a step's recorded result was not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "reason")]
pub enum Miss {
    /// `--no-cache`, or `--no-cache-filter` with its stage.
    NoCache,
    /// There was a result; it was removed then, by that rule.
    Evicted {
        /// Seconds since 1970.
        at: i64,
        rule: String,
    },
    /// The result is recorded, but a layer of it is gone.
    Lost,
    /// There is no result under its key.
    NotFound,
}

/// The keys of a step and what they were made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// What the result is recorded under, in hexadecimal digits.
    pub definition: String,
    /// The operation alone.
    pub operation: String,
    /// Named parts, as docs/decisions/keys.md lists them.
    pub parts: Vec<KeyPart>,
}

/// What a step used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRecord {
    /// Microseconds on processors, in programs and in the kernel.
    pub user: u64,
    pub system: u64,
    /// Bytes.
    pub peak_memory: u64,
    pub read: u64,
    pub written: u64,
}

/// A layer of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Names it in its store, as long as it is there.
    pub id: LayerId,
    /// The digest of its tar, where it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff_id: Option<Digest>,
    /// Bytes of file content.
    pub size: u64,
}

/// The process of a RUN step, for starting a shell in its place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessRecord {
    pub args: Vec<String>,
    /// `NAME=value`; variables whose value was left out are in `hidden`.
    pub env: Vec<String>,
    /// Names of variables whose values are not kept.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hidden: Vec<String>,
    pub cwd: String,
    pub user: String,
    /// `none` or `host`; empty is a network of its own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// The layers of its root, lowest first.
    pub root: Vec<LayerId>,
}

/// Steps shown as one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    pub id: String,
    pub name: String,
    #[serde(default, skip_serializing_if = "is_false")]
    pub weak: bool,
}

/// A part of a step that moved bytes or took its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferRecord {
    pub id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    pub current: u64,
    pub total: u64,
    pub started: Option<Timestamp>,
    pub completed: Option<Timestamp>,
}

/// A warning that was shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarningRecord {
    pub text: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
}

/// An image that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputRecord {
    pub platform: String,
    /// The id: the digest of the config.
    pub image: Option<Digest>,
    /// The digest of the manifest or index, where one was written.
    pub manifest: Option<Digest>,
    /// Bytes of its layers' content.
    pub size: u64,
    /// Lowest first.
    pub layers: Vec<LayerRecord>,
}

/// One failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorRecord {
    /// The step, where it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<(u32, u32)>,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

/// A build as lists show it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildSummary {
    pub id: String,
    pub name: String,
    pub status: BuildStatus,
    pub started: Timestamp,
    pub completed: Option<Timestamp>,
    /// Steps in all, those that ended well, and those of them that were cached.
    pub total: u32,
    pub done: u32,
    pub cached: u32,
    /// What tells its builds from those of other Dockerfiles: see [`BuildRecord::project`].
    pub project: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl StepRecord {
    /// Makes a record of a step of which nothing is known but that it is there.
    pub(crate) fn unseen(vertex: Digest) -> Self {
        Self {
            vertex,
            name: String::new(),
            kind: StepKind::Builder,
            stage: None,
            command: String::new(),
            lines: None,
            inputs: Vec::new(),
            base: None,
            group: None,
            started: None,
            completed: None,
            outcome: StepOutcome::Skipped,
            cached_by: None,
            cached_from: None,
            miss: None,
            key: None,
            usage: None,
            layer: None,
            process: None,
            transfers: Vec::new(),
            printed: 0,
            error: String::new(),
        }
    }

    /// Returns how long it took; zero where it did not run.
    pub fn nanoseconds(&self) -> u64 {
        match (self.started, self.completed) {
            (Some(started), Some(completed)) => nanoseconds_between(started, completed),
            _ => 0,
        }
    }
}

impl BuildRecord {
    /// Returns what earlier builds of the same thing have in common: context and Dockerfile.
    pub fn project(&self) -> String {
        format!("{}\n{}", self.request.context, self.request.dockerfile)
    }

    /// Returns what lists show.
    pub fn summary(&self) -> BuildSummary {
        let count = |wanted: &dyn Fn(&StepRecord) -> bool| {
            self.steps.iter().filter(|step| wanted(step)).count() as u32
        };
        BuildSummary {
            id: self.id.clone(),
            name: self.name.clone(),
            status: self.status,
            started: self.started,
            completed: self.completed,
            total: self.steps.len() as u32,
            done: count(&|step| matches!(step.outcome, StepOutcome::Ran | StepOutcome::Cached)),
            cached: count(&|step| step.outcome == StepOutcome::Cached),
            project: self.project(),
            error: self.errors.first().map(|error| error.message.clone()),
        }
    }

    /// Returns how long the build took, or has taken until `now`.
    pub fn nanoseconds(&self, now: Timestamp) -> u64 {
        nanoseconds_between(self.started, self.completed.unwrap_or(now))
    }
}

/// Returns the time from one moment to another; zero if it is the other way round.
pub fn nanoseconds_between(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(nanoseconds_of(to) - nanoseconds_of(from)).unwrap_or(0)
}

/// Returns a time as nanoseconds since 1970.
pub(crate) fn nanoseconds_of(time: Timestamp) -> i64 {
    time.unix_seconds()
        .saturating_mul(1_000_000_000)
        .saturating_add(i64::from(time.nanoseconds()))
}

/// Returns the time of nanoseconds since 1970, as pieces of logs carry it.
pub fn time_of(nanoseconds: i64) -> Timestamp {
    let second = nanoseconds.div_euclid(1_000_000_000);
    let rest = nanoseconds.rem_euclid(1_000_000_000) as u32;
    Timestamp::from_unix(second, rest).unwrap_or(Timestamp::EPOCH)
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}
