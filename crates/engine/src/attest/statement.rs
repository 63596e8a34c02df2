//! Makes statements once it is known what they speak of.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;

use ::attest::{
    AttestationManifest, Build, Layers, Mode, Package, Statement, Subject, attestation_manifest,
    package_url, predicate, step_numbers,
};
use oci::{Descriptor, Digest, Digester, Platform, Reference};
use rootfs::{Kind, RootPath, Tree};
use store::{Layer, LayerId};

use super::{Attestation, AttestationContent, ProvenanceOf};
use crate::build::Built;
use crate::export::layers::EncodedLayer;
use crate::step::Shared;
use crate::vertex::RecordInfo;
use crate::{Engine, EngineError};

/// Makes the manifest of what is said of an image; `None` where nothing is.
pub(crate) fn manifest_of(
    shared: &Shared,
    built: &Built,
    names: &[Reference],
    image: &Descriptor,
    layers: &[EncodedLayer],
    with_inline: bool,
) -> Result<Option<AttestationManifest>, EngineError> {
    let wanted: Vec<&Attestation> = built
        .attestations
        .iter()
        .filter(|attestation| with_inline || !attestation.inline_only)
        .collect();
    if wanted.is_empty() {
        return Ok(None);
    }
    let platform = image.platform.as_ref().unwrap_or(&built.build.platform);
    let subjects: Vec<Subject> = names
        .iter()
        .map(|name| Subject {
            name: package_url(Package::Docker, name, Some(platform)),
            digest: image.digest.clone(),
        })
        .collect();
    let known = built.layers.iter().map(Layer::id);
    let known: HashMap<LayerId, &Descriptor> = known
        .zip(layers.iter().map(|layer| &layer.descriptor))
        .collect();
    let statements = wanted
        .into_iter()
        .map(|attestation| statement(shared, attestation, subjects.clone(), &known))
        .collect::<Result<Vec<_>, _>>()?;
    let manifest = attestation_manifest(image, &statements)
        .map_err(|error| EngineError::Graph(format!("an attestation is not written: {error}")))?;
    Ok(Some(manifest))
}

fn statement(
    shared: &Shared,
    attestation: &Attestation,
    subjects: Vec<Subject>,
    layers: &HashMap<LayerId, &Descriptor>,
) -> Result<Statement, EngineError> {
    let (predicate_type, predicate) = match &attestation.content {
        AttestationContent::Document {
            predicate_type,
            predicate,
        } => (predicate_type.clone(), predicate.clone()),
        AttestationContent::Provenance(of) => (
            of.wanted.version.predicate_type().to_owned(),
            of.predicate(shared, layers)?,
        ),
    };
    Ok(Statement {
        predicate_type,
        subjects,
        predicate,
    })
}

impl Engine {
    /// Says how a result was made, without the layers it came to.
    pub fn provenance(&self, of: &ProvenanceOf) -> Result<serde_json::Value, EngineError> {
        of.predicate(&self.shared, &HashMap::new())
    }
}

impl ProvenanceOf {
    fn predicate(
        &self,
        shared: &Shared,
        layers: &HashMap<LayerId, &Descriptor>,
    ) -> Result<serde_json::Value, EngineError> {
        let layers = match self.wanted.mode {
            Mode::Max => self.layers(shared, layers)?,
            Mode::Min => Layers::new(),
        };
        let build = Build {
            request: &self.request,
            sources: &self.sources,
            graph: &self.graph,
            invocation: &self.invocation,
            started: self.started,
            finished: progress::system_clock(),
            platform: &Platform::host(),
            frontend_version: self.frontend_version.as_deref(),
            environment: &self.environment,
            layers: &layers,
            is_secret: crate::history::is_secret,
        };
        predicate(&self.wanted, &build).map_err(|error| EngineError::Request(error.to_string()))
    }

    /// Returns the layers of the steps' results, of those whose layers are all in the image.
    fn layers(
        &self,
        shared: &Shared,
        known: &HashMap<LayerId, &Descriptor>,
    ) -> Result<Layers, EngineError> {
        let mut found = Layers::new();
        if known.is_empty() {
            return Ok(found);
        }
        let numbers = step_numbers(&self.graph);
        for work in self.taken.works.iter() {
            let Some(number) = numbers.get(&work.id) else {
                continue;
            };
            let Some(record) = shared.store.find(&work.record_key)? else {
                continue;
            };
            let Ok(info) = serde_json::from_value::<RecordInfo>(record.info) else {
                continue;
            };
            for (output, chain) in info.outputs.iter().enumerate() {
                let chain = chain.iter().map(|layer| known.get(layer).copied().cloned());
                let Some(chain) = chain.collect::<Option<Vec<Descriptor>>>() else {
                    continue;
                };
                if !chain.is_empty() {
                    found.insert(format!("step{number}:{output}"), vec![chain]);
                }
            }
        }
        Ok(found)
    }
}

/// Makes the statements that stand as files beside the files of a result: names and contents.
pub(crate) fn beside_files(
    shared: &Shared,
    built: &Built,
    platform_in_name: bool,
) -> Result<Vec<(String, Vec<u8>)>, EngineError> {
    let wanted: Vec<&Attestation> = built
        .attestations
        .iter()
        .filter(|attestation| !attestation.inline_only)
        .collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let subjects = match built.layers.is_empty() {
        true => Vec::new(),
        false => files_of(&shared.tree(&built.layers)?)?,
    };
    let mut files = BTreeMap::new();
    for attestation in wanted {
        let said = statement(shared, attestation, subjects.clone(), &HashMap::new())?;
        let bytes = oci::json::indented(&said.to_json()).map_err(|error| {
            EngineError::Graph(format!("an attestation is not written: {error}"))
        })?;
        let name = match platform_in_name {
            false => attestation.file.clone(),
            true => {
                let platform = built.build.platform.full().replace('/', "_");
                match attestation.file.rsplit_once('.') {
                    Some((stem, extension)) => format!("{stem}.{platform}.{extension}"),
                    None => format!("{}.{platform}", attestation.file),
                }
            }
        };
        if files.insert(name.clone(), bytes).is_some() {
            return Err(EngineError::Request(format!(
                "two attestations are named {name}"
            )));
        }
    }
    Ok(files.into_iter().collect())
}

/// Returns the digests of all files of a tree.
fn files_of(tree: &Tree) -> Result<Vec<Subject>, EngineError> {
    let mut files = Vec::new();
    let mut folders = vec![Vec::new()];
    while let Some(folder) = folders.pop() {
        let path = RootPath::new(&folder)?;
        let mut entries = tree.read_dir(&path)?.unwrap_or_default();
        entries.sort_by(|(a, _), (b, _)| b.cmp(a));
        let mut inner = Vec::new();
        for (name, meta) in entries {
            let mut path = folder.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            match meta.kind {
                Kind::Directory => inner.push(path),
                Kind::File => files.push(Subject {
                    digest: digest_of(tree, &path)?,
                    name: String::from_utf8_lossy(&path).into_owned(),
                }),
                _ => {}
            }
        }
        folders.extend(inner);
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

fn digest_of(tree: &Tree, path: &[u8]) -> Result<Digest, EngineError> {
    let mut file = std::fs::File::from(tree.open_file(&RootPath::new(path)?)?);
    let mut digester = Digester::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let failed = EngineError::io("read", String::from_utf8_lossy(path).into_owned());
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(digester.finish()),
            count => digester.update(&buffer[..count]),
        }
    }
}
