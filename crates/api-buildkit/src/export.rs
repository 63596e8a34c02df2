//! Takes results where the client wants them: by its session, into the store, to registries.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard_buildkit_proto::moby::buildkit::v1::{self as pbc, Exporter};
use engine::{
    AnnotatedPart, Annotation, ArchiveOutput, BuildRequest, BuildResult, Destination, ExportTree,
    ImageOutput, LayerOptions, Output,
};
use oci::{ImageConfig, Platform, Reference};
use progress::{Outcome, Vertex};
use serde::Deserialize;
use tempfile::TempDir;

use crate::attestations;
use crate::build::{Build, FrontendResult, Tree, Trees};
use crate::content::ContentStore;
use crate::error::Failure;
use crate::filesend;
use crate::history::Blob;
use crate::options::{self, Attributes};

/// What exporters answer, by BuildKit's names.
pub(crate) type Response = BTreeMap<String, String>;

/// What became of a result.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exported {
    pub(crate) response: Response,
    /// The images that exporters made, by the exporters' places in the request.
    pub(crate) images: BTreeMap<i64, pbc::Descriptor>,
    /// How it was made, by platform if there are several.
    pub(crate) provenance: Vec<(Option<String>, Blob)>,
}

/// Carries out the exporters of a build, in their order. Blocks.
pub(crate) fn export(
    build: &Build,
    result: &FrontendResult,
    exporters: &[Exporter],
    build_args_epoch: Option<&str>,
) -> Result<Exported, Failure> {
    let (mut response, mut images) = (Response::new(), BTreeMap::new());
    let trees = trees(build, result)?;
    for (number, exporter) in exporters.iter().enumerate() {
        let mut attrs: Attributes = exporter.attrs.clone().into_iter().collect();
        if let Some(epoch) = build_args_epoch
            && !attrs.contains_key("source-date-epoch")
        {
            attrs.insert("source-date-epoch".to_owned(), epoch.to_owned());
        }
        let one = One {
            build,
            number,
            attrs,
            result,
            trees: &trees,
        };
        let answer = match exporter.r#type.as_str() {
            "image" | "moby" => one.image()?,
            "oci" => one.archive(false)?,
            "docker" => one.archive(true)?,
            "local" => one.local()?,
            "tar" => one.tar()?,
            name => {
                return Err(Failure::unknown(format!(
                    "exporter {name:?} could not be found"
                )));
            }
        };
        if let Some(image) = descriptor_in(&answer) {
            images.insert(number as i64, image);
        }
        response.extend(answer);
    }
    response.extend(build.caches.write(build, &trees)?);
    for (name, value) in &result.metadata {
        if let Some(name) = name.strip_prefix("frontend.") {
            let value = String::from_utf8_lossy(value).into_owned();
            response.insert(format!("frontend.{name}"), value);
        }
    }
    Ok(Exported {
        response,
        images,
        provenance: attestations::of_history(build, result),
    })
}

/// Returns what an exporter says it has made.
fn descriptor_in(answer: &Response) -> Option<pbc::Descriptor> {
    let json = STANDARD.decode(answer.get("containerimage.descriptor")?);
    let image: oci::Descriptor = serde_json::from_slice(&json.ok()?).ok()?;
    Some(pbc::Descriptor {
        media_type: image.media_type.to_string(),
        digest: image.digest.to_string(),
        size: image.size as i64,
        annotations: image.annotations.into_iter().collect(),
    })
}

#[derive(Deserialize)]
struct Platforms {
    #[serde(rename = "Platforms")]
    platforms: Option<Vec<NamedPlatform>>,
}

#[derive(Deserialize)]
struct NamedPlatform {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Platform")]
    platform: Platform,
}

/// Returns the names of a result's platforms, and the platforms.
pub(crate) fn platforms(result: &FrontendResult) -> Result<Vec<(String, Platform)>, Failure> {
    let Some(json) = result.metadata.get("refs.platforms") else {
        return Ok(Vec::new());
    };
    let platforms: Platforms = serde_json::from_slice(json).map_err(|error| {
        Failure::unknown(format!(
            "failed to parse platforms passed to exporter: {error}"
        ))
    })?;
    let named = platforms.platforms.unwrap_or_default().into_iter();
    Ok(named.map(|named| (named.id, named.platform)).collect())
}

/// Makes the trees of a result, with their configs.
pub(crate) fn trees(build: &Build, result: &FrontendResult) -> Result<Vec<ExportTree>, Failure> {
    let scanned = attestations::scan_what_was_not(build, result)?;
    let result = scanned.as_ref().unwrap_or(result);
    let text = |name: &str| result.metadata.get(name);
    let platforms = platforms(result)?;
    let all: Vec<Platform> = platforms
        .iter()
        .map(|(_, platform)| platform.clone())
        .collect();
    let make = |id: Option<&str>,
                platform: Platform,
                tree: Option<&Arc<Tree>>|
     -> Result<ExportTree, Failure> {
        let solved = tree.map(|tree| tree.solve(build)).transpose()?;
        let mut stated = attestations::said(build, result, id)?;
        if let (Some(tree), Some(solved)) = (tree, &solved) {
            let own = id.map(|_| &platform);
            stated.extend(attestations::of_tree(
                build, result, tree, solved, own, &all,
            ));
        }
        let find = |name: &str| {
            id.and_then(|id| text(&format!("{name}/{id}")))
                .or_else(|| text(name))
        };
        let config = match find("containerimage.config") {
            None => ImageConfig {
                platform: platform.clone(),
                ..ImageConfig::default()
            },
            Some(json) => serde_json::from_slice(json).map_err(|error| {
                Failure::unknown(format!("failed to parse image config: {error}"))
            })?,
        };
        let epoch = match find("source.date.epoch") {
            None => None,
            Some(text) => Some(epoch(&String::from_utf8_lossy(text))?),
        };
        Ok(ExportTree {
            platform,
            config,
            tree: solved.unwrap_or_default(),
            epoch,
            attestations: stated,
        })
    };
    match &result.trees {
        Trees::One(tree) => {
            let first = platforms.into_iter().next();
            let (id, platform) = match first {
                Some((id, platform)) => (Some(id), platform),
                None => (None, Platform::host()),
            };
            Ok(vec![make(id.as_deref(), platform, tree.as_ref())?])
        }
        Trees::ByPlatform(trees) => {
            let mut found = Vec::new();
            // The order is the frontend's, which the map has lost.
            for (name, platform) in &platforms {
                let tree = trees.iter().find(|(id, _)| id == name);
                let Some((_, tree)) = tree else {
                    return Err(Failure::unknown(format!(
                        "failed to find ref for ID {name}"
                    )));
                };
                found.push(make(Some(name), platform.clone(), tree.as_ref())?);
            }
            if platforms.is_empty() && !trees.is_empty() {
                for (id, tree) in trees {
                    let platform = id.parse().unwrap_or_else(|_| Platform::host());
                    found.push(make(Some(id), platform, tree.as_ref())?);
                }
            }
            Ok(found)
        }
    }
}

fn epoch(text: &str) -> Result<i64, Failure> {
    text.trim()
        .parse()
        .map_err(|error| Failure::unknown(format!("invalid SOURCE_DATE_EPOCH: {text}: {error}")))
}

/// One exporter.
struct One<'a> {
    build: &'a Build,
    /// Its place in the request, by which the client knows it.
    number: usize,
    attrs: Attributes,
    result: &'a FrontendResult,
    trees: &'a [ExportTree],
}

impl One<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        self.attrs.get(name).map(String::as_str)
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, Failure> {
        options::flag(&self.attrs, name)
    }

    fn multi_platform(&self) -> bool {
        matches!(self.result.trees, Trees::ByPlatform(_))
    }

    fn names(&self) -> Result<Vec<Reference>, Failure> {
        let mut names = self.text("name").unwrap_or_default().to_owned();
        if names == "*" {
            let given = self.result.metadata.get("image.name");
            names = given.map_or_else(String::new, |name| {
                String::from_utf8_lossy(name).into_owned()
            });
        }
        names
            .split(',')
            .filter(|name| !name.is_empty())
            .map(|name| {
                let parsed = Reference::parse_normalized(name).map_err(|error| {
                    Failure::unknown(format!("failed to parse {name}: {error}"))
                })?;
                Ok(parsed.or_latest())
            })
            .collect()
    }

    fn layers(&self) -> Result<LayerOptions, Failure> {
        options::layers(&self.attrs)
    }

    /// Reads `annotation[-PART][[PLATFORM]].KEY`.
    fn annotations(&self) -> Result<Vec<Annotation>, Failure> {
        let mut annotations = Vec::new();
        for (name, value) in &self.attrs {
            let Some(rest) = name.strip_prefix("annotation") else {
                continue;
            };
            let invalid = || Failure::unknown(format!("invalid annotation {name:?}"));
            let (head, key) = match rest.split_once(']') {
                Some((head, rest)) => (head, rest.strip_prefix('.').ok_or_else(invalid)?),
                None => rest.split_once('.').ok_or_else(invalid)?,
            };
            let (part, platform) = match head.split_once('[') {
                None => (head, None),
                Some((part, platform)) => (
                    part,
                    Some(platform.parse::<Platform>().map_err(|_| invalid())?),
                ),
            };
            annotations.push(Annotation {
                part: match part {
                    "" | "-manifest" => AnnotatedPart::Manifest,
                    "-manifest-descriptor" => AnnotatedPart::ManifestDescriptor,
                    "-index" => AnnotatedPart::Index,
                    "-index-descriptor" => AnnotatedPart::IndexDescriptor,
                    _ => return Err(invalid()),
                },
                platform,
                key: key.to_owned(),
                value: value.clone(),
            });
        }
        Ok(annotations)
    }

    /// Lets the engine carry out one output.
    fn run(&self, output: Output, names: Vec<Reference>) -> Result<BuildResult, Failure> {
        let source_date_epoch = match self.text("source-date-epoch") {
            None | Some("") => None,
            Some(text) => Some(epoch(text)?),
        };
        let mut trees = self.trees.to_vec();
        for tree in &mut trees {
            // What the client says of an exporter goes before what the frontend says.
            match self.text("source-date-epoch") {
                None => {}
                Some(_) => tree.epoch = source_date_epoch,
            }
        }
        let request = BuildRequest {
            outputs: vec![output],
            tags: names,
            cache_to: self.build.caches.inline(),
            source_date_epoch: source_date_epoch.or(trees.iter().find_map(|tree| tree.epoch)),
            ..BuildRequest::default()
        };
        let several = self.multi_platform();
        let (engine, sink, cancel) = (&self.build.engine, &self.build.sink, &self.build.cancel);
        Ok(engine.export(trees, several, &request, sink, cancel)?)
    }

    fn describe(&self, result: &BuildResult, names: &[Reference]) -> Response {
        let mut response = Response::new();
        if let Some(id) = &result.config {
            response.insert("containerimage.config.digest".to_owned(), id.to_string());
        }
        if let Some(descriptor) = &result.descriptor {
            let digest = descriptor.digest.to_string();
            response.insert("containerimage.digest".to_owned(), digest);
            let json = serde_json::to_vec(descriptor).unwrap_or_default();
            response.insert(
                "containerimage.descriptor".to_owned(),
                STANDARD.encode(json),
            );
        }
        if !names.is_empty() {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            response.insert("image.name".to_owned(), names.join(","));
        }
        response
    }

    fn image(&self) -> Result<Response, Failure> {
        let names = self.names()?;
        let push = self.flag("push")?.unwrap_or(false);
        let output = ImageOutput {
            names: Vec::new(),
            push,
            push_by_digest: self.flag("push-by-digest")?.unwrap_or(false),
            // What is pushed is at the registry; a copy here would be one that no pruning takes.
            store: self.flag("store")?.unwrap_or(!push),
            layers: self.layers()?,
            annotations: self.annotations()?,
        };
        let result = self.run(Output::Image(output), names.clone())?;
        let mut response = self.describe(&result, &names);
        if !response.contains_key("containerimage.digest")
            && let Some(id) = &result.image
        {
            response.insert("containerimage.digest".to_owned(), id.to_string());
        }
        Ok(response)
    }

    fn archive(&self, docker: bool) -> Result<Response, Failure> {
        if docker && self.multi_platform() {
            return Err(Failure::unknown(
                "docker exporter does not currently support exporting manifest lists",
            ));
        }
        let tar = self.flag("tar")?.unwrap_or(true);
        let names = self.names()?;
        let folder = self.folder()?;
        let path = folder.path().join("result");
        let output = ArchiveOutput {
            destination: Destination::Path(path.clone()),
            tar,
            names: names.clone(),
            layers: self.layers()?,
            annotations: self.annotations()?,
        };
        let result = match docker {
            true => self.run(Output::Docker(output), names.clone())?,
            false => self.run(Output::Oci(output), names.clone())?,
        };
        let response = self.describe(&result, &names);
        if !tar {
            self.send("sending layout", |session| {
                let path = path.clone();
                async move {
                    let content = ContentStore {
                        session: &session,
                        id: "export",
                    };
                    content.write_layout(&path).await
                }
            })?;
            return Ok(response);
        }
        let notes: Vec<(String, String)> = response.clone().into_iter().collect();
        self.send("sending tarball", |session| {
            let (notes, path) = (notes.clone(), path.clone());
            async move { filesend::send_file(&session, self.number, &notes, &path).await }
        })?;
        Ok(response)
    }

    fn local(&self) -> Result<Response, Failure> {
        let folder = self.folder()?;
        let root = folder.path().join("files");
        std::fs::create_dir(&root).map_err(no_room)?;
        let split = match self.flag("platform-split")? {
            Some(split) => split,
            None => self.multi_platform(),
        };
        let output = Output::Local {
            destination: root.clone(),
            platform_split: Some(split),
        };
        self.run(output, Vec::new())?;
        self.send("copying files", |session| {
            let root = root.clone();
            async move { filesend::send_directory(&session, self.number, &root).await }
        })?;
        Ok(Response::new())
    }

    fn tar(&self) -> Result<Response, Failure> {
        let folder = self.folder()?;
        let path = folder.path().join("result.tar");
        let output = Output::Tar {
            destination: Destination::Path(path.clone()),
        };
        self.run(output, Vec::new())?;
        self.send("sending tarball", |session| {
            let path = path.clone();
            async move { filesend::send_file(&session, self.number, &[], &path).await }
        })?;
        Ok(Response::new())
    }

    fn folder(&self) -> Result<TempDir, Failure> {
        let parent = &self.build.remote()?.folder;
        std::fs::create_dir_all(parent).map_err(no_room)?;
        tempfile::Builder::new()
            .prefix("one-")
            .tempdir_in(parent)
            .map_err(no_room)
    }

    /// Sends something to the client, shown as a vertex.
    fn send<F>(
        &self,
        shown: &str,
        work: impl FnOnce(std::sync::Arc<crate::session::Session>) -> F,
    ) -> Result<(), Failure>
    where
        F: std::future::Future<Output = Result<(), Failure>>,
    {
        let running = self
            .build
            .sink
            .vertex(Vertex::named(format!("{shown} to client")))
            .start();
        let status = running.status(shown);
        let session = std::sync::Arc::clone(&self.build.remote()?.session);
        let sent = self.build.runtime.block_on(work(session));
        match &sent {
            Ok(()) => {
                status.finish(0);
                running.complete(Outcome::Done);
            }
            Err(failure) => running.complete(Outcome::Failed {
                error: failure.message.clone(),
            }),
        }
        sent
    }
}

fn no_room(error: std::io::Error) -> Failure {
    Failure::unknown(format!("no room for the result: {error}"))
}
