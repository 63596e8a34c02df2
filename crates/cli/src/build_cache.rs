//! Reads `--cache-from` and `--cache-to`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use engine::{CacheMode, CachePlace, CacheSource, CacheTarget, LayerOptions};
use oci::Reference;

use crate::build_outputs::layer_options;
use crate::build_request::{boolean, fields};

/// The tag of a cache in a directory, where none is said.
const TAG: &str = "latest";

/// Reads caches to use: names of a registry, or `type=…` with fields.
pub(crate) fn sources(texts: &[String]) -> Result<Vec<CacheSource>> {
    let mut sources = Vec::new();
    for text in texts {
        let wrong = || format!("invalid --cache-from {text:?}");
        if !text.contains('=') {
            for name in text.split(',').filter(|name| !name.is_empty()) {
                sources.push(CacheSource::Registry(name_of(name).with_context(wrong)?));
            }
            continue;
        }
        let mut fields = fields(text)?;
        let source = match kind(&mut fields).as_str() {
            "registry" => CacheSource::Registry(reference(&mut fields).with_context(wrong)?),
            "local" => CacheSource::Local {
                directory: directory(&mut fields, &["src", "source"]).with_context(wrong)?,
                tag: fields.remove("tag").unwrap_or_else(|| TAG.to_owned()),
                digest: fields
                    .remove("digest")
                    .map(|text| text.parse().with_context(wrong))
                    .transpose()?,
            },
            kind => bail!(
                "{}: there is no type {kind:?}; there are registry and local",
                wrong()
            ),
        };
        nothing_left(&fields, &wrong())?;
        sources.push(source);
    }
    Ok(sources)
}

/// Reads caches to write.
pub(crate) fn targets(texts: &[String], inline: bool) -> Result<Vec<CacheTarget>> {
    let mut targets = Vec::new();
    if inline {
        targets.push(CacheTarget {
            place: CachePlace::Inline,
            mode: CacheMode::Min,
            layers: LayerOptions::default(),
        });
    }
    for text in texts {
        let wrong = || format!("invalid --cache-to {text:?}");
        let mut fields = match text.contains('=') {
            true => fields(text).with_context(wrong)?,
            false => BTreeMap::from([("ref".to_owned(), text.clone())]),
        };
        let kind = kind(&mut fields);
        let mode = match fields.remove("mode").as_deref() {
            None | Some("min") => CacheMode::Min,
            Some("max") => CacheMode::Max,
            Some(mode) => bail!(
                "{}: there is no mode {mode:?}; there are min and max",
                wrong()
            ),
        };
        // A cache that cannot be written is never an error, and always a manifest of an image.
        for ignored in ["ignore-error", "image-manifest"] {
            if let Some(value) = fields.remove(ignored) {
                boolean(ignored, &value).with_context(wrong)?;
            }
        }
        let layers = layer_options(&mut fields).with_context(wrong)?;
        let place = match kind.as_str() {
            "registry" => CachePlace::Registry(reference(&mut fields).with_context(wrong)?),
            "local" => CachePlace::Local {
                directory: directory(&mut fields, &["dest", "destination"]).with_context(wrong)?,
                tag: fields.remove("tag").unwrap_or_else(|| TAG.to_owned()),
            },
            "inline" => CachePlace::Inline,
            kind => bail!(
                "{}: there is no type {kind:?}; there are registry, local and inline",
                wrong()
            ),
        };
        nothing_left(&fields, &wrong())?;
        targets.push(CacheTarget {
            place,
            mode,
            layers,
        });
    }
    Ok(targets)
}

fn kind(fields: &mut BTreeMap<String, String>) -> String {
    fields
        .remove("type")
        .unwrap_or_else(|| "registry".to_owned())
}

fn reference(fields: &mut BTreeMap<String, String>) -> Result<Reference> {
    name_of(&fields.remove("ref").context("it has no ref")?)
}

pub(crate) fn name_of(name: &str) -> Result<Reference> {
    Ok(Reference::parse_normalized(name)?.or_latest())
}

fn directory(fields: &mut BTreeMap<String, String>, names: &[&str]) -> Result<PathBuf> {
    let found = names.iter().find_map(|name| fields.remove(*name));
    let found = found.filter(|path| !path.is_empty());
    Ok(PathBuf::from(
        found.with_context(|| format!("it has no {}", names[0]))?,
    ))
}

fn nothing_left(fields: &BTreeMap<String, String>, wrong: &str) -> Result<()> {
    match fields.keys().next() {
        Some(name) => bail!("{wrong}: the field {name:?} is not known for this type"),
        None => Ok(()),
    }
}
