//! Bills of materials: a scanner's image run over a result, as BuildKit's protocol for scanners has it.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::attest::Sbom;
use llb::{
    Draft, ExecMount, ExecSpec, Graph, GraphBuilder, Meta, Metadata, MountKind, Op, SourceOp,
};
use oci::{Platform, Reference};
use progress::{Sink, Vertex};
use rootfs::{Kind, RootPath};
use serde::Deserialize;
use serde_json::Value;

use crate::attest::{Attestation, AttestationContent};
use crate::client::BuildClient;
use crate::error::{BuildFailure, StepFailure};
use crate::graphs::{Caches, FoundImage, GraphRequest, ImageLookup, KnownImages, Solved};
use crate::history::Known;
use crate::history::recorder::Recorder;
use crate::request::{BuildRequest, Output};
use crate::source::dockerfile::Loaded;
use crate::{Cancel, Engine, EngineError};

/// What a bill of materials is in.
pub const SPDX: &str = "https://spdx.dev/Document";

const SOURCES: &str = "/run/src";
const OUT: &str = "/run/out";
/// The name of the result, and the beginning of those of other trees.
const CORE: &str = "sbom";
/// The largest statement, in bytes.
const MOST: u64 = 40 << 20;

/// What is to be scanned by what.
#[derive(Debug, Clone)]
pub struct Scan<'a> {
    pub sbom: &'a Sbom,
    /// The scanner's image by its name, as it was found for this machine.
    pub scanner: (&'a Reference, &'a FoundImage),
    /// The platform of the result, as shown.
    pub platform: &'a str,
    pub result: &'a Graph,
    /// Further trees, by name.
    pub extras: Vec<(&'a str, &'a Graph)>,
    /// Scan also what was scanned before.
    pub ignore_cache: bool,
}

impl Scan<'_> {
    /// Makes the graph of the scan, whose result is a directory of statements. The scanner is added to `images`.
    ///
    /// # Errors
    ///
    /// If the scanner's image names no command.
    pub fn graph(&self, images: &mut KnownImages) -> Result<Graph, EngineError> {
        let (name, found) = self.scanner;
        let config = &found.config.config;
        let args: Vec<String> = config
            .entrypoint
            .iter()
            .chain(&config.cmd)
            .cloned()
            .collect();
        if args.is_empty() {
            return Err(EngineError::Request(format!(
                "the SBOM generator {name} has no command"
            )));
        }
        let host = Arc::new(Platform::host());
        images.insert(&name.to_string(), &host, found);
        let mut builder = GraphBuilder::default();
        let result = builder.import(self.result);
        let core = format!("{SOURCES}/core/{CORE}");
        let mut mounts = vec![read_only(result, core.clone())];
        for (name, graph) in &self.extras {
            let tree = builder.import(graph);
            mounts.push(read_only(tree, format!("{SOURCES}/extras/{CORE}-{name}")));
        }
        // What is scanned was made just now.
        builder.heed_cache();
        mounts.push(ExecMount {
            dest: "/tmp".to_owned(),
            kind: MountKind::Tmpfs { size: 0 },
            ..ExecMount::default()
        });
        mounts.push(ExecMount {
            dest: OUT.to_owned(),
            ..ExecMount::default()
        });
        let mut env = config.env.clone();
        let mut set = |name: &str, value: &str| {
            let head = format!("{name}=");
            env.retain(|variable| !variable.starts_with(&head));
            env.push(head + value);
        };
        set("BUILDKIT_SCAN_DESTINATION", &format!("{OUT}/"));
        set("BUILDKIT_SCAN_SOURCE", &core);
        if !self.extras.is_empty() {
            set("BUILDKIT_SCAN_SOURCE_EXTRAS", &format!("{SOURCES}/extras"));
        }
        for (name, value) in &self.sbom.parameters {
            set(&format!("BUILDKIT_SCAN_{name}"), value);
        }
        let pinned = crate::build::pinned_name(&name.to_string(), &found.digest);
        let op = SourceOp {
            identifier: pinned,
            ..SourceOp::default()
        };
        let mut image = Draft::new(Op::Source(op), Vec::new());
        image.platform = Some(Arc::clone(&host));
        let image = builder.add(image);
        let platform = self.platform;
        let exec = ExecSpec {
            root: Some(image),
            meta: Meta {
                args,
                env,
                cwd: match config.working_dir.as_str() {
                    "" => "/".to_owned(),
                    path => path.to_owned(),
                },
                ..Meta::default()
            },
            mounts,
            platform: Some(host),
            metadata: Metadata {
                ignore_cache: self.ignore_cache,
                ..Metadata::named(format!("[{platform}] generating sbom using {name}"))
            },
            ..ExecSpec::default()
        };
        let scanned = builder.add(exec.into());
        // The root is the first output.
        builder
            .finish(Some(scanned.at(1)))
            .map_err(|error| EngineError::Graph(format!("no graph of a scan: {error}")))
    }
}

fn read_only(source: Option<llb::Output>, dest: String) -> ExecMount {
    ExecMount {
        source,
        dest,
        read_only: true,
        ..ExecMount::default()
    }
}

#[derive(Deserialize)]
struct Written {
    #[serde(rename = "predicateType", default)]
    predicate_type: String,
    #[serde(default)]
    predicate: Value,
}

impl Engine {
    /// Reads the statements that are the files of a directory: a bundle. That of the result comes first.
    ///
    /// # Errors
    ///
    /// If a file is no statement, or none of `predicate_type` where that is not empty.
    pub fn statements(
        &self,
        solved: &Solved,
        path: &str,
        predicate_type: &str,
    ) -> Result<Vec<Attestation>, EngineError> {
        let folder = RootPath::new(path)?;
        let Some(tree) = self.open_tree(solved)? else {
            return Ok(Vec::new());
        };
        let mut entries = tree.read_dir(&folder)?.unwrap_or_default();
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        let mut found = Vec::new();
        for (name, meta) in entries {
            let shown = String::from_utf8_lossy(&name).into_owned();
            let wrong =
                |reason: String| EngineError::Request(format!("the attestation {shown} {reason}"));
            if meta.kind != Kind::File {
                return Err(wrong("is no regular file".to_owned()));
            }
            let mut place = folder.as_bytes().to_vec();
            place.push(b'/');
            place.extend_from_slice(&name);
            let bytes = tree
                .read(&RootPath::new(&place)?, MOST)?
                .unwrap_or_default();
            let written: Written = serde_json::from_slice(&bytes)
                .map_err(|error| wrong(format!("is no in-toto statement: {error}")))?;
            let own = &written.predicate_type;
            if !predicate_type.is_empty() && own != predicate_type {
                return Err(wrong(format!("is of the type {own}, not {predicate_type}")));
            }
            refuse_provenance(own)?;
            found.push(Attestation {
                file: shown,
                inline_only: false,
                content: AttestationContent::Document {
                    predicate_type: written.predicate_type,
                    predicate: written.predicate,
                },
            });
        }
        found.sort_by_key(|said| said.file.split('.').next() != Some(CORE));
        Ok(found)
    }

    /// Reads a predicate that is a file.
    ///
    /// # Errors
    ///
    /// If there is no such file, or it is not JSON.
    pub fn predicate(
        &self,
        solved: &Solved,
        path: &str,
        predicate_type: &str,
    ) -> Result<Attestation, EngineError> {
        refuse_provenance(predicate_type)?;
        let tree = self.open_tree(solved)?;
        let bytes = tree.map(|tree| tree.read(&RootPath::new(path)?, MOST));
        let bytes = bytes
            .transpose()?
            .flatten()
            .ok_or_else(|| EngineError::Request(format!("the attestation {path} is not there")))?;
        let predicate = serde_json::from_slice(&bytes).map_err(|error| {
            EngineError::Request(format!("the attestation {path} is not JSON: {error}"))
        })?;
        let file = path.trim_end_matches('/').rsplit('/').next();
        Ok(Attestation {
            file: file.unwrap_or(path).to_owned(),
            inline_only: false,
            content: AttestationContent::Document {
                predicate_type: predicate_type.to_owned(),
                predicate,
            },
        })
    }
}

impl Engine {
    /// Has the results of a build scanned, if a bill of materials is asked for and an output holds one.
    pub(crate) fn scan(
        &self,
        request: &BuildRequest,
        loaded: &Loaded,
        known: &mut Known,
        recorder: &Recorder,
        cancel: &Cancel,
    ) -> Result<(), BuildFailure> {
        let holds = |output: &Output| match output {
            Output::Image(image) => image.push,
            Output::CacheOnly => false,
            _ => true,
        };
        let Some(sbom) = &request.sbom else {
            return Ok(());
        };
        if !request.outputs.iter().any(holds) {
            return Ok(());
        }
        let sink = recorder.sink();
        let (name, scanner) = self.scanner(&sbom.generator, request.pull, sink)?;
        let client = loaded.client(request, &mut BTreeMap::new())?;
        let client: Arc<dyn BuildClient> = Arc::new(client);
        for built in &mut known.built {
            let mut images = KnownImages::of(known.images.clone());
            let build = &built.build;
            let scan = Scan {
                sbom,
                scanner: (&name, &scanner),
                platform: &build.platform.to_string(),
                result: &build.graph,
                extras: build
                    .scan_targets
                    .iter()
                    .map(|target| (target.name.as_str(), &target.graph))
                    .collect(),
                ignore_cache: build.ignore_cache,
            };
            let graph = scan.graph(&mut images)?;
            let solved = self.solve_graph(
                &GraphRequest {
                    graph: Arc::new(graph),
                    images,
                    client: Arc::clone(&client),
                    entitlements: request.entitlements.clone(),
                    caches: Caches::default(),
                    part_of: Some((Arc::new(request.clone()), recorder.id().to_owned())),
                },
                sink,
                cancel,
            );
            let solved = solved.map_err(|failure| {
                let steps = failure.failed.into_iter().map(|failed| StepFailure {
                    name: failed.name,
                    lines: None,
                    span: None,
                    help: None,
                    error: failed.error,
                });
                BuildFailure::of_steps(steps.collect())
            })?;
            let said = self.statements(&solved, "/", SPDX)?;
            built.attestations.splice(0..0, said);
        }
        Ok(())
    }

    /// Finds the image of a scanner.
    fn scanner(
        &self,
        generator: &str,
        pull: bool,
        sink: &Sink,
    ) -> Result<(Reference, FoundImage), EngineError> {
        let name = Reference::parse_normalized(generator)
            .map_err(|error| EngineError::Request(format!("the SBOM generator {error}")))?
            .or_latest();
        let shown = format!("resolve image config for {name}");
        let running = sink.vertex(Vertex::named(shown)).start();
        let lookup = match pull {
            true => ImageLookup::Registry,
            false => ImageLookup::StoreFirst,
        };
        let found = self.find(&name, &Platform::host(), lookup).map_err(|error| {
            EngineError::Request(format!(
                "the SBOM generator cannot be had: {}; name another with --sbom=generator=IMAGE",
                crate::error::chain(&error)
            ))
        });
        running.conclude(&found, |error| crate::error::chain(error));
        Ok((name, found?))
    }
}

/// How something was built is for the builder to say.
fn refuse_provenance(predicate_type: &str) -> Result<(), EngineError> {
    match predicate_type.starts_with("https://slsa.dev/provenance/") {
        true => Err(EngineError::Request(
            "a frontend may not say how something was built".to_owned(),
        )),
        false => Ok(()),
    }
}
