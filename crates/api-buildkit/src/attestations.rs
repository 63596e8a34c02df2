//! Attestations of results: which are asked for, and what is known to write them.

use std::collections::BTreeMap;
use std::sync::Arc;

use attest::{Provenance, Sbom};
use engine::{Attestation, ProvenanceOf, SPDX, Solved};
use frontend::{Lowered, ScanTarget};
use oci::{Platform, Timestamp};
use serde_json::{Map, Value};

use crate::build::{Build, FrontendResult, Said, SaidKind, Tree, Trees};
use crate::error::Failure;
use crate::export;
use crate::gateway::{Lookup, find_image, image_name};
use crate::history::{self, Blob};
use crate::policy::Policies;
use crate::scope::Scope;

/// The version of the built-in Dockerfile frontend.
pub(crate) const FRONTEND_VERSION: &str = env!("CARGO_PKG_VERSION");

/// What a client asks to be said of its results.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) provenance: Option<Provenance>,
    pub(crate) sbom: Option<Sbom>,
    /// How the scanner's image is looked for.
    pub(crate) mode: String,
    /// What the builder's operator says of it.
    pub(crate) environment: Arc<Map<String, Value>>,
}

impl Wanted {
    /// Reads `attest:TYPE` and the build arguments that stand for it.
    pub(crate) fn parse(
        attrs: &BTreeMap<String, String>,
        environment: Arc<Map<String, Value>>,
    ) -> Result<Self, Failure> {
        let mut wanted = Self {
            environment,
            mode: attrs.get("image-resolve-mode").cloned().unwrap_or_default(),
            ..Self::default()
        };
        let invalid = |error: attest::AttestError| Failure::unknown(error.to_string());
        // The attributes stand before the arguments, which therefore count.
        for (name, value) in attrs {
            let kind = name
                .strip_prefix("attest:")
                .or_else(|| name.strip_prefix("build-arg:BUILDKIT_ATTEST_"));
            let Some(kind) = kind else { continue };
            match kind.to_lowercase().as_str() {
                "provenance" => wanted.provenance = Provenance::parse(value).map_err(invalid)?,
                "sbom" => wanted.sbom = Sbom::parse(value).map_err(invalid)?,
                kind => {
                    return Err(Failure::unknown(format!(
                        "unknown attestation type {kind:?}"
                    )));
                }
            }
        }
        Ok(wanted)
    }
}

/// Says what is asked to be said of one tree of a result. `platform` is `None` where there is but one.
pub(crate) fn of_tree(
    build: &Build,
    result: &FrontendResult,
    tree: &Arc<Tree>,
    solved: &Solved,
    platform: Option<&Platform>,
    platforms: &[Platform],
) -> Vec<Attestation> {
    let mut said = Vec::new();
    if let Some(wanted) = &build.attestations.provenance {
        let whole = Whole {
            build,
            result,
            platforms,
        };
        let of = whole.provenance(wanted.clone(), tree, solved, platform);
        said.push(Attestation::of_provenance(of));
    }
    said
}

/// Says for the history how each tree of a result was made, asked or not.
pub(crate) fn of_history(build: &Build, result: &FrontendResult) -> Vec<(Option<String>, Blob)> {
    let named: Vec<(Option<&String>, &Arc<Tree>)> = match &result.trees {
        Trees::One(tree) => tree.iter().map(|tree| (None, tree)).collect(),
        Trees::ByPlatform(trees) => trees
            .iter()
            .filter_map(|(id, tree)| Some((Some(id), tree.as_ref()?)))
            .collect(),
    };
    let platform = |id: Option<&String>| id.and_then(|id| id.parse::<Platform>().ok());
    let platforms: Vec<Platform> = named.iter().filter_map(|(id, _)| platform(*id)).collect();
    let whole = Whole {
        build,
        result,
        platforms: &platforms,
    };
    let asked = build.attestations.provenance.as_ref();
    let wanted = Provenance {
        builder_id: asked.map_or_else(String::new, |asked| asked.builder_id.clone()),
        ..Provenance::default()
    };
    let mut statements = Vec::new();
    for (id, tree) in named {
        let Ok(solved) = tree.solve(build) else {
            continue;
        };
        let of = whole.provenance(wanted.clone(), tree, &solved, platform(id).as_ref());
        let kind = of.wanted.version.predicate_type();
        let predicate = build.engine.provenance(&of);
        match predicate.map(|predicate| oci::json::indented(&predicate)) {
            Ok(Ok(bytes)) => {
                let blob = Blob::new(history::STATEMENT_TYPE, bytes);
                let blob = blob.with_annotation("in-toto.io/predicate-type", kind);
                statements.push((id.cloned(), blob));
            }
            Ok(Err(error)) => tracing::warn!(%error, "the history has no provenance"),
            Err(error) => tracing::warn!(%error, "the history has no provenance"),
        }
    }
    statements
}

/// A result with all its platforms.
struct Whole<'a> {
    build: &'a Build,
    result: &'a FrontendResult,
    platforms: &'a [Platform],
}

impl Whole<'_> {
    fn provenance(
        &self,
        wanted: Provenance,
        tree: &Arc<Tree>,
        solved: &Solved,
        platform: Option<&Platform>,
    ) -> ProvenanceOf {
        let build = self.build;
        let scope = tree.scope().unwrap_or(&build.scope);
        let mut sources = solved.taken().sources().clone();
        let trees = self.result.trees.all();
        let numbers: Vec<u64> = trees.iter().map(|tree| tree.number).collect();
        scope.add_sources(&mut sources, &numbers);
        let mut asked = attest::Sources::default();
        for image in scope.images() {
            asked.add_image(image);
        }
        if let Some(platform) = platform {
            asked.keep_platform(platform, self.platforms);
        }
        sources.merge(&asked);
        sources.tidy();
        let request = build.request_with_root(scope, &sources);
        let is_ours = request.frontend == "dockerfile.v0";
        ProvenanceOf {
            wanted,
            request,
            sources,
            graph: Arc::clone(tree.solved_graph()),
            taken: solved.taken().clone(),
            invocation: build.id.clone(),
            started: build.started,
            frontend_version: is_ours.then(|| FRONTEND_VERSION.to_owned()),
            environment: Arc::clone(&build.attestations.environment),
        }
    }
}

/// What is to be scanned for bills of materials.
pub(crate) struct Scans {
    sbom: Sbom,
    mode: String,
    /// By the trees' platforms: further trees, and whether nothing recorded is used.
    further: BTreeMap<String, (Vec<ScanTarget>, bool)>,
}

impl Scans {
    /// Finds out what a request for the Dockerfile frontend wants scanned.
    pub(crate) fn of(
        attrs: &BTreeMap<String, String>,
        lowered: &Lowered,
    ) -> Result<Option<Self>, Failure> {
        let Some(sbom) = Wanted::parse(attrs, Arc::default())?.sbom else {
            return Ok(None);
        };
        let further = lowered.builds.iter().map(|built| {
            let id = built.platform.normalized().full();
            (id, (built.scan_targets.clone(), built.ignore_cache))
        });
        Ok(Some(Self {
            sbom,
            mode: attrs.get("image-resolve-mode").cloned().unwrap_or_default(),
            further: further.collect(),
        }))
    }
}

const SBOM: &str = "sbom";

/// Has the trees of a result scanned, once somebody needs what that says. Blocks.
pub(crate) fn scan(
    build: &Build,
    scope: &Arc<Scope>,
    result: &mut FrontendResult,
    scans: &Scans,
) -> Result<(), Failure> {
    let mode = Lookup::Registry(&scans.mode);
    let host = Platform::host();
    let generator = image_name(build, &Policies::default(), &scans.sbom.generator, &host)?;
    let (name, scanner) = find_image(build, scope, &generator, &host, mode, "")
        .map_err(|failure| failure.context("the SBOM generator cannot be had"))?;
    let platforms = export::platforms(result)?;
    let only = platforms.first().map(|(id, _)| id.clone());
    let mut found = Vec::new();
    for (id, tree) in result.trees.named() {
        let id = match (id, &only) {
            ("", Some(only)) => only.clone(),
            ("", None) => host.full(),
            (id, _) => id.to_owned(),
        };
        let further = scans.further.get(&id);
        let extras = further
            .map(|(extras, _)| extras.iter())
            .into_iter()
            .flatten();
        let scan = engine::Scan {
            sbom: &scans.sbom,
            scanner: (&name, &scanner),
            platform: &id,
            result: &tree.graph,
            extras: extras
                .map(|extra| (extra.name.as_str(), &extra.graph))
                .collect(),
            ignore_cache: further.is_some_and(|(_, ignore)| *ignore),
        };
        let mut images = tree.images().clone();
        let graph = scan.graph(&mut images)?;
        let tree = Tree::of_graph(graph, images)?;
        if let Some(tree) = &tree {
            tree.belongs_to(scope);
        }
        let metadata = [("reason", SBOM), ("sbom-core", SBOM)];
        let metadata = metadata.map(|(name, value)| (name.to_owned(), value.into()));
        found.push((
            id,
            Said {
                kind: SaidKind::Statements,
                metadata: BTreeMap::from(metadata),
                tree,
                path: "/".to_owned(),
                predicate_type: SPDX.to_owned(),
            },
        ));
    }
    for (id, said) in found {
        result.attestations.entry(id).or_default().push(said);
    }
    Ok(())
}

/// Has a result scanned whose frontend did not: returns it with what that says. Blocks.
pub(crate) fn scan_what_was_not(
    build: &Build,
    result: &FrontendResult,
) -> Result<Option<FrontendResult>, Failure> {
    let Some(sbom) = &build.attestations.sbom else {
        return Ok(None);
    };
    let mut said = result.attestations.values().flatten();
    if said.any(|said| said.predicate_type == SPDX) {
        return Ok(None);
    }
    let mut result = result.clone();
    let scans = Scans {
        sbom: sbom.clone(),
        mode: build.attestations.mode.clone(),
        further: BTreeMap::new(),
    };
    scan(build, &build.scope, &mut result, &scans)?;
    Ok(Some(result))
}

/// Reads what a frontend says of one tree; `id` is that of its platform. Blocks.
pub(crate) fn said(
    build: &Build,
    result: &FrontendResult,
    id: Option<&str>,
) -> Result<Vec<Attestation>, Failure> {
    let given = &result.attestations;
    let list = match (id.and_then(|id| given.get(id)), given.len()) {
        (Some(list), _) => list,
        // Of one tree alone it is said, by whatever name.
        (None, 1) if matches!(result.trees, Trees::One(_)) => match given.values().next() {
            Some(list) => list,
            None => return Ok(Vec::new()),
        },
        (None, _) => return Ok(Vec::new()),
    };
    let mut found = Vec::new();
    for said in list {
        let tree = said
            .tree
            .as_ref()
            .ok_or_else(|| Failure::unknown("no ref provided for attestation bundle"))?;
        let solved = tree.solve(build)?;
        match said.kind {
            SaidKind::Statements => {
                let (path, kind) = (&said.path, &said.predicate_type);
                found.extend(build.engine.statements(&solved, path, kind)?);
            }
            SaidKind::Predicate if said.path.is_empty() => {
                return Err(Failure::unknown("attestation does not have set path"));
            }
            SaidKind::Predicate => {
                let (path, kind) = (&said.path, &said.predicate_type);
                found.push(build.engine.predicate(&solved, path, kind)?);
            }
        }
    }
    Ok(found)
}

/// Reads what an operator says of the builder: all JSON files of a folder, in the order of their names.
pub(crate) fn read_environment(folder: &std::path::Path) -> std::io::Result<Map<String, Value>> {
    let mut environment = Map::new();
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        let bytes = std::fs::read(&path)?;
        let found: Map<String, Value> = serde_json::from_slice(&bytes).map_err(|error| {
            let message = format!("{}: {error}", path.display());
            std::io::Error::new(std::io::ErrorKind::InvalidData, message)
        })?;
        environment.extend(found);
    }
    Ok(environment)
}

/// The time a build began.
pub(crate) fn now() -> Timestamp {
    progress::system_clock()
}
