//! Caches of other machines, as clients ask for them.

use std::collections::BTreeMap;

use bollard_buildkit_proto::moby::buildkit::v1::{CacheOptions, CacheOptionsEntry};
use engine::{CacheMode, CachePlace, CacheSource, CacheTarget, Caches, ExportTree, LayerOptions};
use oci::{Digest, Platform, Reference};
use progress::{Outcome, Vertex};
use serde::Deserialize;
use tempfile::TempDir;

use crate::build::Build;
use crate::content::ContentStore;
use crate::error::Failure;
use crate::export::Response;
use crate::options::{self, Attributes};

/// What a client wants of caches.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    imports: Vec<Import>,
    exports: Vec<Export>,
    platforms: Vec<Platform>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Import {
    Registry(Reference),
    /// A content store of the client.
    Client {
        store: String,
        digest: Digest,
    },
    /// What is not read here: its name, and why.
    Unknown(String, String),
}

#[derive(Debug)]
struct Export {
    place: Place,
    mode: CacheMode,
    layers: LayerOptions,
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    Registry(Reference),
    Inline,
    Client(String),
}

#[derive(Deserialize)]
struct FrontendImport {
    #[serde(rename = "Type")]
    kind: String,
    #[serde(rename = "Attrs", default)]
    attrs: BTreeMap<String, String>,
}

impl Wanted {
    pub(crate) fn parse(cache: Option<&CacheOptions>, attrs: &Attributes) -> Result<Self, Failure> {
        let mut wanted = Self::default();
        for entry in cache.iter().flat_map(|cache| &cache.imports) {
            let attrs = entry.attrs.clone().into_iter().collect();
            wanted.import(&entry.r#type, &attrs)?;
        }
        // Frontends are told of caches too, by clients that speak to them alone.
        for name in list(attrs.get("cache-from")) {
            let attrs = BTreeMap::from([("ref".to_owned(), name)]);
            wanted.import("registry", &attrs)?;
        }
        if let Some(json) = attrs.get("cache-imports") {
            let imports: Vec<FrontendImport> = serde_json::from_str(json).map_err(|error| {
                Failure::unknown(format!("failed to unmarshal cache-imports: {error}"))
            })?;
            for import in imports {
                wanted.import(&import.kind, &import.attrs)?;
            }
        }
        for entry in cache.iter().flat_map(|cache| &cache.exports) {
            wanted.export(entry)?;
        }
        for text in list(attrs.get("platform")) {
            wanted.platforms.extend(text.parse::<Platform>().ok());
        }
        if wanted.platforms.is_empty() {
            wanted.platforms.push(Platform::host());
        }
        Ok(wanted)
    }

    fn import(&mut self, kind: &str, attrs: &Attributes) -> Result<(), Failure> {
        let text = |name: &str| attrs.get(name).filter(|value| !value.is_empty());
        let import = match kind {
            "registry" => {
                let name = text("ref")
                    .ok_or_else(|| Failure::unknown("registry cache importer requires ref"))?;
                Import::Registry(reference(name)?)
            }
            "local" => {
                let missing =
                    |what: &str| Failure::unknown(format!("local cache importer requires {what}"));
                let folder = text("src").ok_or_else(|| missing("src"))?;
                let digest = text("digest").ok_or_else(|| missing("digest"))?;
                Import::Client {
                    store: format!("local:{folder}"),
                    digest: digest.parse().map_err(|error| {
                        Failure::unknown(format!("invalid digest {digest:?}: {error}"))
                    })?,
                }
            }
            kind => {
                let name = text("ref").or_else(|| text("src"));
                Import::Unknown(
                    name.cloned().unwrap_or_else(|| kind.to_owned()),
                    kind.to_owned(),
                )
            }
        };
        if !self.imports.contains(&import) {
            self.imports.push(import);
        }
        Ok(())
    }

    fn export(&mut self, entry: &CacheOptionsEntry) -> Result<(), Failure> {
        let attrs: Attributes = entry.attrs.clone().into_iter().collect();
        let text = |name: &str| attrs.get(name).filter(|value| !value.is_empty());
        let place = match entry.r#type.as_str() {
            "inline" => Place::Inline,
            "registry" => {
                let name = text("ref")
                    .ok_or_else(|| Failure::unknown("registry cache exporter requires ref"))?;
                Place::Registry(reference(name)?)
            }
            "local" => {
                let folder = text("dest")
                    .ok_or_else(|| Failure::unknown("local cache exporter requires dest"))?;
                Place::Client(format!("local:{folder}"))
            }
            kind => {
                return Err(Failure::unknown(format!(
                    "unknown cache exporter: {kind:?}"
                )));
            }
        };
        let mode = match text("mode").map(String::as_str) {
            None | Some("min") => CacheMode::Min,
            Some("max") => CacheMode::Max,
            Some(other) => {
                return Err(Failure::unknown(format!("unsupported cache mode: {other}")));
            }
        };
        self.exports.push(Export {
            place,
            mode,
            layers: options::layers(&attrs)?,
        });
        Ok(())
    }

    /// Returns what is asked for inside images.
    pub(crate) fn inline(&self) -> Vec<CacheTarget> {
        let inline = self.exports.iter();
        inline
            .filter(|export| export.place == Place::Inline)
            .map(|export| export.to(CachePlace::Inline))
            .collect()
    }

    /// Reads the caches that may be used. Blocks.
    pub(crate) fn read(&self, build: &Build) -> (Caches, Vec<TempDir>) {
        let mut sources = Vec::new();
        let mut held = Vec::new();
        for import in &self.imports {
            match import {
                Import::Registry(reference) => {
                    sources.push(CacheSource::Registry(reference.clone()));
                }
                Import::Client { store, digest } => match mirror(build, store, digest) {
                    Ok(folder) => {
                        sources.push(CacheSource::Local {
                            directory: folder.path().to_owned(),
                            tag: String::new(),
                            digest: Some(digest.clone()),
                        });
                        held.push(folder);
                    }
                    Err(failure) => tell(build, store, failure.message),
                },
                Import::Unknown(name, kind) => {
                    tell(
                        build,
                        name,
                        format!("caches of the type {kind:?} are not supported"),
                    );
                }
            }
        }
        let caches = build
            .engine
            .read_caches(&sources, &self.platforms, &build.sink);
        (caches, held)
    }

    /// Writes the caches that are asked for. Blocks.
    pub(crate) fn write(&self, build: &Build, trees: &[ExportTree]) -> Result<Response, Failure> {
        let mut response = Response::new();
        for export in &self.exports {
            let place = match &export.place {
                Place::Inline => continue,
                Place::Registry(reference) => CachePlace::Registry(reference.clone()),
                Place::Client(store) => {
                    response.extend(export.to_client(build, trees, store)?);
                    continue;
                }
            };
            let target = export.to(place);
            build
                .engine
                .write_caches(trees.to_vec(), &[target], &build.sink);
        }
        Ok(response)
    }
}

impl Export {
    fn to(&self, place: CachePlace) -> CacheTarget {
        CacheTarget {
            place,
            mode: self.mode,
            layers: self.layers.clone(),
        }
    }

    fn to_client(
        &self,
        build: &Build,
        trees: &[ExportTree],
        store: &str,
    ) -> Result<Response, Failure> {
        let client = build.remote()?;
        let folder = client.own_folder()?;
        let target = self.to(CachePlace::Local {
            directory: folder.path().to_owned(),
            tag: "latest".to_owned(),
        });
        build
            .engine
            .write_caches(trees.to_vec(), &[target], &build.sink);
        let Ok(index) = std::fs::read(folder.path().join(oci::layout::INDEX_FILE)) else {
            // It was told already.
            return Ok(Response::new());
        };
        let index: oci::Index = serde_json::from_slice(&index)
            .map_err(|error| Failure::unknown(format!("failed to read the cache: {error}")))?;
        let Some(root) = index.manifests.first() else {
            return Ok(Response::new());
        };
        let content = ContentStore {
            session: &client.session,
            id: store,
        };
        build
            .runtime
            .block_on(content.write_layout(folder.path()))?;
        let root = serde_json::to_string(root)
            .map_err(|error| Failure::unknown(format!("failed to name the cache: {error}")))?;
        Ok(Response::from([("cache.manifest".to_owned(), root)]))
    }
}

fn list(text: Option<&String>) -> Vec<String> {
    let parts = text.iter().flat_map(|text| text.split(','));
    parts
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

fn reference(name: &str) -> Result<Reference, Failure> {
    Reference::parse_normalized(name)
        .map(Reference::or_latest)
        .map_err(|error| Failure::unknown(format!("failed to parse {name}: {error}")))
}

/// Copies a cache of the client here, where it is looked for like one of this machine.
fn mirror(build: &Build, store: &str, digest: &Digest) -> Result<TempDir, Failure> {
    let client = build.remote()?;
    let folder = client.own_folder()?;
    let content = ContentStore {
        session: &client.session,
        id: store,
    };
    build
        .runtime
        .block_on(content.read_layout(digest, folder.path()))?;
    Ok(folder)
}

/// Says of a cache that it is not used, which fails no build.
fn tell(build: &Build, name: &str, error: String) {
    let vertex = Vertex::named(format!("importing cache manifest from {name}"));
    let running = build.sink.vertex(vertex).start();
    running.complete(Outcome::Failed { error });
}
