//! Turns the words of the command line into outputs.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use engine::{ArchiveOutput, Compression, Destination, ImageOutput, LayerOptions, Output};
use oci::Reference;

use crate::build_request::{boolean, fields, reference, split_csv};
use crate::commands::build::Build;
use crate::{annotations, engines};

/// Reads `--output`, `--push` and `--load`.
pub(crate) fn outputs(build: &Build, tags: &[Reference]) -> Result<Vec<Output>> {
    let mut outputs: Vec<Output> = build
        .outputs
        .iter()
        .map(|text| output(text, tags))
        .collect::<Result<_>>()?;
    let store = ImageOutput {
        push: build.push,
        store: true,
        ..ImageOutput::default()
    };
    if outputs.is_empty() || build.load {
        outputs.push(Output::Image(store));
    } else if build.push {
        // As buildx has it: an image output that is there already is pushed.
        let mut images = outputs.iter_mut().filter_map(|output| match output {
            Output::Image(image) => Some(image),
            _ => None,
        });
        match images.next() {
            Some(image) => image.push = true,
            None => outputs.push(Output::Image(ImageOutput {
                push: true,
                store: false,
                ..ImageOutput::default()
            })),
        }
    }
    if build.load {
        outputs.extend(engines::find().map(|engine| {
            Output::Docker(ArchiveOutput {
                destination: Destination::Engine(engine),
                tar: true,
                names: tags.to_vec(),
                // Nobody keeps what is compressed for the way between two programs.
                layers: LayerOptions {
                    compression: Compression::Uncompressed,
                    ..LayerOptions::default()
                },
                annotations: Vec::new(),
            })
        }));
    }
    annotate(&mut outputs, &build.annotations)?;
    let nameless = |output: &Output| match output {
        Output::Image(image) => image.push && tags.is_empty() && image.names.is_empty(),
        _ => false,
    };
    if outputs.iter().any(nameless) {
        bail!("nothing to push to: give the image a name with --tag");
    }
    Ok(outputs)
}

/// Gives the annotations of the command line to all images.
fn annotate(outputs: &mut [Output], values: &[String]) -> Result<()> {
    let mut given = Vec::new();
    for text in values {
        given.extend(annotations::option(text)?);
    }
    let mut carried = given.is_empty();
    for output in outputs {
        let own = match output {
            Output::Image(image) => &mut image.annotations,
            Output::Oci(archive) => &mut archive.annotations,
            Output::Docker(archive) => &mut archive.annotations,
            Output::Local { .. } | Output::Tar { .. } | Output::CacheOnly => continue,
        };
        // What the output says itself comes last, and wins.
        own.splice(0..0, given.iter().cloned());
        carried = true;
    }
    if !carried {
        bail!("--annotation: no output is an image that could carry it");
    }
    Ok(())
}

fn output(text: &str, tags: &[Reference]) -> Result<Output> {
    if !text.contains('=') {
        return Ok(match text {
            "-" => Output::Tar {
                destination: Destination::Stdout,
            },
            directory => Output::Local {
                destination: PathBuf::from(directory),
                platform_split: None,
            },
        });
    }
    let mut fields = fields(text)?;
    let kind = fields
        .remove("type")
        .with_context(|| format!("invalid --output {text:?}: it has no type"))?;
    let destination = fields.remove("dest");
    let names = match fields.remove("name") {
        Some(names) => split_csv(&names)
            .iter()
            .filter(|name| !name.is_empty())
            .map(|name| reference(name))
            .collect::<Result<Vec<_>>>()?,
        None => Vec::new(),
    };
    let layers = layer_options(&mut fields)?;
    let mut annotations = Vec::new();
    for (name, value) in &fields {
        annotations.extend(annotations::field(name, value)?);
    }
    if matches!(kind.as_str(), "image" | "registry" | "oci" | "docker") {
        fields.retain(|name, _| !name.starts_with("annotation"));
    }
    let mut flag = |name: &str| {
        fields
            .remove(name)
            .map(|value| boolean(name, &value))
            .transpose()
    };
    let output = match kind.as_str() {
        "image" | "registry" => {
            let push = flag("push")?;
            let push_by_digest = flag("push-by-digest")?.unwrap_or(false);
            let store = flag("store")?;
            for ignored in ["unpack", "name-canonical", "danglingname-prefix"] {
                flag(ignored)?;
            }
            Output::Image(ImageOutput {
                names,
                push: push.unwrap_or(kind == "registry"),
                push_by_digest,
                store: store.unwrap_or(kind == "image"),
                layers,
                annotations,
            })
        }
        "oci" | "docker" => {
            let tar = flag("tar")?.unwrap_or(true);
            // As buildx has it: without a place to write to, it goes to Docker.
            let engine = match (kind.as_str(), &destination) {
                ("docker", None) if std::io::stdout().is_terminal() || !tar => engines::find(),
                _ => None,
            };
            let archive = ArchiveOutput {
                destination: match engine {
                    Some(engine) => Destination::Engine(engine),
                    None => archive_destination(text, destination, tar)?,
                },
                tar,
                names: match names.is_empty() {
                    true => tags.to_vec(),
                    false => names,
                },
                layers,
                annotations,
            };
            match kind.as_str() {
                "oci" => Output::Oci(archive),
                _ => Output::Docker(archive),
            }
        }
        "local" => Output::Local {
            platform_split: flag("platform-split")?,
            destination: PathBuf::from(
                destination
                    .with_context(|| format!("invalid --output {text:?}: it has no dest"))?,
            ),
        },
        "tar" => Output::Tar {
            destination: archive_destination(text, destination, true)?,
        },
        "cacheonly" => Output::CacheOnly,
        kind => bail!(
            "invalid --output {text:?}: there is no type {kind:?}; there are image, registry, oci, docker, local, tar and cacheonly"
        ),
    };
    if let Some(name) = fields.keys().next() {
        bail!("invalid --output {text:?}: the field {name:?} is not known for the type {kind}");
    }
    Ok(output)
}

fn archive_destination(text: &str, destination: Option<String>, tar: bool) -> Result<Destination> {
    match destination.as_deref() {
        Some("-") | None if !tar => bail!("invalid --output {text:?}: a directory needs a dest"),
        None | Some("-") if std::io::stdout().is_terminal() => {
            bail!(
                "--output {text:?} would write an archive to the terminal; give it a dest or redirect it"
            )
        }
        None | Some("-") => Ok(Destination::Stdout),
        Some(path) => {
            let path = PathBuf::from(path);
            // Known now, it need not be found out when all is built.
            let folder = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty());
            if tar
                && let Some(folder) = folder
                && !folder.is_dir()
            {
                bail!(
                    "invalid --output {text:?}: there is no directory {}",
                    folder.display()
                );
            }
            if tar && path.is_dir() {
                bail!(
                    "invalid --output {text:?}: {} is a directory; name a file, or say tar=false",
                    path.display()
                );
            }
            Ok(Destination::Path(path))
        }
    }
}

/// Takes the fields that say how layers are written.
pub(crate) fn layer_options(fields: &mut BTreeMap<String, String>) -> Result<LayerOptions> {
    let mut flag = |name: &str| {
        fields
            .remove(name)
            .map(|value| boolean(name, &value))
            .transpose()
    };
    let force = flag("force-compression")?.unwrap_or(false);
    let oci_media_types = flag("oci-mediatypes")?;
    let rewrite_timestamp = flag("rewrite-timestamp")?;
    flag("oci-artifact")?;
    flag("prefer-nondist-layers")?;
    let compression = match fields.remove("compression").as_deref() {
        None | Some("gzip") => Compression::Gzip,
        Some("zstd") => Compression::Zstd,
        Some("uncompressed") => Compression::Uncompressed,
        Some(name) => {
            bail!("there is no compression {name:?}; there are gzip, zstd and uncompressed")
        }
    };
    let level = fields
        .remove("compression-level")
        .map(|text| {
            text.parse()
                .with_context(|| format!("invalid compression-level {text:?}"))
        })
        .transpose()?;
    Ok(LayerOptions {
        compression,
        level,
        force,
        oci_media_types,
        rewrite_timestamp,
    })
}
