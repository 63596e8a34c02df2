//! Frontends that are images, for builds that are asked for here.

use std::collections::BTreeMap;
use std::sync::Arc;

use llb::Graph;
use progress::Sink;

use crate::cache::Imports;
use crate::cache::export as export_cache;
use crate::client::BuildClient;
use crate::error::{BuildFailure, StepFailure};
use crate::export::Course;
use crate::graphs::{Caches, ExportTree, GraphFailure};
use crate::history::Known;
use crate::history::recorder::Recorder;
use crate::request::{BuildRequest, IgnoreCache};
use crate::source::dockerfile::Loaded;
use crate::{BuildResult, Cancel, Engine, EngineError};

/// Runs frontends that are images.
pub trait RunFrontend: Send + Sync {
    /// Runs one and returns what it came to. Blocks.
    ///
    /// # Errors
    ///
    /// If the image cannot be had, or the frontend or what it asks for fails.
    fn run(&self, call: FrontendCall<'_>) -> Result<FrontendOutput, GraphFailure>;
}

/// What runs frontends for a request.
#[derive(Clone)]
pub struct Frontends(pub Arc<dyn RunFrontend>);

impl std::fmt::Debug for Frontends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Frontends").finish_non_exhaustive()
    }
}

/// A build handed to a frontend.
pub struct FrontendCall<'a> {
    pub engine: &'a Engine,
    /// What was asked for here.
    pub request: Arc<BuildRequest>,
    /// The same in the words frontends know; `source` is the frontend's image.
    pub attrs: BTreeMap<String, String>,
    pub client: Arc<dyn BuildClient>,
    /// The build's id.
    pub id: &'a str,
    pub caches: Caches,
    pub sink: &'a Sink,
    pub cancel: &'a Cancel,
}

impl std::fmt::Debug for FrontendCall<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrontendCall")
            .field("attrs", &self.attrs)
            .finish_non_exhaustive()
    }
}

/// What a frontend came to: trees to export, with the graphs they were made by.
#[derive(Debug, Default)]
pub struct FrontendOutput {
    pub trees: Vec<(ExportTree, Option<Arc<Graph>>)>,
    pub multi_platform: bool,
}

/// Returns whether a name of a frontend's image stands for the built-in frontend.
pub fn is_builtin_frontend(source: &str) -> bool {
    let Ok(reference) = oci::Reference::parse_normalized(source) else {
        return source == "dockerfile.v0";
    };
    let name = reference.name();
    source == "dockerfile.v0"
        || name == "docker.io/docker/dockerfile"
        || name == "docker.io/docker/dockerfile-upstream"
}

/// A frontend that a Dockerfile or a request names.
pub(crate) struct Named {
    source: String,
    /// All words of it.
    words: String,
    /// The lines that name it.
    lines: Option<(u32, u32)>,
}

/// Returns the frontend that is meant, if it is not the built-in one.
pub(crate) fn other_frontend(request: &BuildRequest, loaded: &Loaded) -> Option<Named> {
    let named = match request.build_args.get("BUILDKIT_SYNTAX") {
        Some(words) => Named {
            source: words
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned(),
            words: words.clone(),
            lines: None,
        },
        None => {
            let syntax = dockerfile::detect_syntax(&loaded.bytes)?;
            Named {
                source: syntax.first_word().to_owned(),
                lines: Some((syntax.lines.first as u32, syntax.lines.last as u32)),
                words: syntax.value,
            }
        }
    };
    (!is_builtin_frontend(&named.source)).then_some(named)
}

impl Engine {
    /// Lets another frontend carry out a build; its outputs are written here.
    pub(crate) fn build_by_frontend(
        &self,
        frontends: &Frontends,
        named: &Named,
        (request, loaded): (&BuildRequest, &Loaded),
        recorder: &Recorder,
        cancel: &Cancel,
        known: &mut Known,
    ) -> Result<BuildResult, BuildFailure> {
        let sink = recorder.sink();
        let mut attrs = attributes(request);
        let client = loaded.client(request, &mut attrs)?;
        attrs.insert("source".to_owned(), named.source.clone());
        attrs.insert("cmdline".to_owned(), named.words.clone());
        let platforms = &request.platforms;
        let caches = Imports::load(&self.shared, &request.cache_from, platforms, sink);
        let call = FrontendCall {
            engine: self,
            request: Arc::new(request.clone()),
            attrs,
            client: Arc::new(client),
            id: recorder.id(),
            caches: Caches::of(caches),
            sink,
            cancel,
        };
        let output = frontends
            .0
            .run(call)
            .map_err(|failure| failed(failure, loaded, named.lines))?;
        for (tree, graph) in output.trees {
            known.works.extend(tree.tree.works());
            let mut made = tree.into_built();
            if let Some(graph) = graph {
                made.build.graph = (*graph).clone();
            }
            known.builds.push(made.build.clone());
            let (targets, layers) = (&request.cache_to, &made.layers);
            made.inline =
                export_cache::inline_records(&self.shared, targets, &known.works, layers)?;
            known.built.push(made);
        }
        let ahead = None;
        let course = Course { ahead, cancel };
        self.deliver(request, known, output.multi_platform, sink, course)
    }
}

/// Says of a failure where in the Dockerfile it lies: at the line that names the frontend where nothing else is known.
fn failed(failure: GraphFailure, loaded: &Loaded, named: Option<(u32, u32)>) -> BuildFailure {
    let steps = failure.failed.into_iter().map(|failed| {
        let own = failed
            .locations
            .iter()
            .rev()
            .find(|(file, _)| *file.data == *loaded.bytes);
        let lines =
            own.and_then(|(_, ranges)| Some((ranges.first()?.start.line, ranges.last()?.end.line)));
        let canceled = matches!(&*failed.error, EngineError::Canceled);
        StepFailure {
            name: failed.name,
            lines: lines.or(named.filter(|_| failed.locations.is_empty() && !canceled)),
            span: None,
            help: None,
            error: failed.error,
        }
    });
    BuildFailure::of_steps(steps.collect())
}

/// Says what is asked for in the words frontends know.
fn attributes(request: &BuildRequest) -> BTreeMap<String, String> {
    let mut attrs = BTreeMap::new();
    let mut set = |name: &str, value: &str| attrs.insert(name.to_owned(), value.to_owned());
    for (name, value) in &request.build_args {
        set(&format!("build-arg:{name}"), value);
    }
    for (name, value) in &request.labels {
        set(&format!("label:{name}"), value);
    }
    if let Some(target) = &request.target {
        set("target", target);
    }
    let platforms: Vec<String> = request.platforms.iter().map(ToString::to_string).collect();
    if !platforms.is_empty() {
        set("platform", &platforms.join(","));
    }
    match &request.ignore_cache {
        IgnoreCache::No => {}
        IgnoreCache::All => {
            set("no-cache", "");
        }
        IgnoreCache::Stages(stages) => {
            set("no-cache", &stages.join(","));
        }
    }
    if request.pull {
        set("image-resolve-mode", "pull");
    }
    if !request.add_hosts.is_empty() {
        let hosts = request.add_hosts.iter();
        let hosts: Vec<String> = hosts
            .map(|entry| match entry.contains('=') {
                true => entry.clone(),
                false => entry.replacen(':', "=", 1),
            })
            .collect();
        set("add-hosts", &hosts.join(","));
    }
    if let Some(size) = request.shm_size {
        set("shm-size", &size.to_string());
    }
    if !request.ulimits.is_empty() {
        set("ulimit", &request.ulimits.join(","));
    }
    if let Some(parent) = &request.cgroup_parent {
        set("cgroup-parent", parent);
    }
    if !matches!(request.network.as_str(), "" | "default") {
        set("force-network-mode", &request.network);
    }
    if let Some(sbom) = &request.sbom {
        set("attest:sbom", &sbom.to_string());
    }
    attrs
}
