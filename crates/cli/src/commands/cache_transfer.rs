//! `lapstrake cache mounts export` and `import`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use engine::{Compression, LayerOptions, MountsPlace, MovedMount};

use super::cache::{self, Mount};
use crate::arguments::{Global, ProgressMode};
use crate::build_cache::name_of;
use crate::build_outputs::layer_options;
use crate::build_request::fields;
use crate::failure::{Failure, exit};
use crate::table::human_size;
use crate::{log, output, screen, settings};

/// The tag in a directory, where none is said.
const TAG: &str = "cache-mounts";

/// Write cache mounts to an archive, a directory or a registry, for another machine
#[derive(Debug, Args)]
#[command(after_help = "Targets:
  mounts.tar, -                        an archive of an OCI layout; - is standard output
  ./folder                             a directory in OCI layout, beside what it holds
  registry.example.com/team/mounts     a name in a registry
  type=oci|local|registry,…            the same in words, with dest=, ref=, tag=,
                                       compression=zstd|gzip|uncompressed, compression-level=

In a job of a CI service whose machines are new each time:
  lapstrake cache mounts import --missing-ok $REGISTRY/app/mounts
  lapstrake build -t app .
  lapstrake cache mounts export $REGISTRY/app/mounts")]
pub(crate) struct Export {
    /// Only this one: an id as the Dockerfile has it, or a name as `ls` shows it [default: all]
    #[arg(long = "id", value_name = "ID")]
    ids: Vec<String>,
    /// Progress on stderr
    #[arg(long, value_enum, env = "BUILDKIT_PROGRESS", default_value = "auto")]
    progress: ProgressMode,
    /// Where they go
    #[arg(value_name = "TARGET")]
    target: String,
}

/// Bring in cache mounts that `export` has written; those that are here already stay
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Only this one: an id as the Dockerfile has it [default: all]
    #[arg(long = "id", value_name = "ID")]
    ids: Vec<String>,
    /// Replace those that are here already
    #[arg(long)]
    replace: bool,
    /// Succeed where there is nothing yet to bring in
    #[arg(long)]
    missing_ok: bool,
    /// Progress on stderr
    #[arg(long, value_enum, env = "BUILDKIT_PROGRESS", default_value = "auto")]
    progress: ProgressMode,
    /// Where they are, as for `export`; with type=…, src= names a path
    #[arg(value_name = "SOURCE")]
    source: String,
}

impl Export {
    pub(super) fn run(&self, global: &Global) -> Result<(), Failure> {
        let (place, options) = place(&self.target, "dest").map_err(exit::usage)?;
        let engine = settings::open_engine(global)?;
        let found = cache::mounts(engine.store()).map_err(exit::builder)?;
        let names = self.names(&found).map_err(exit::build)?;
        let moved = screen::show(&engine, self.progress, |sink, cancel| {
            engine.export_mounts(&names, &place, &options, sink, cancel)
        })?;
        match place {
            // The archive itself is there.
            MountsPlace::Archive(None) => Ok(()),
            _ => output::print(&listed(&moved)).map_err(exit::builder),
        }
    }

    /// Returns the mounts that are meant, by name. Copies that private mounts have made are nobody's in particular.
    fn names(&self, found: &[Mount]) -> Result<BTreeMap<String, String>> {
        let mut names = BTreeMap::new();
        let all = found.iter().filter(|mount| !mount.name.contains('.'));
        if self.ids.is_empty() {
            names.extend(all.map(|mount| (mount.name.clone(), mount.id.clone())));
            return Ok(names);
        }
        for wanted in &self.ids {
            let mut known = all
                .clone()
                .filter(|mount| mount.is_called(wanted))
                .peekable();
            if known.peek().is_none() {
                bail!("there is no cache mount {wanted:?}");
            }
            names.extend(known.map(|mount| (mount.name.clone(), mount.id.clone())));
        }
        Ok(names)
    }
}

impl Import {
    pub(super) fn run(&self, global: &Global) -> Result<(), Failure> {
        let (place, _) = place(&self.source, "src").map_err(exit::usage)?;
        let engine = settings::open_engine(global)?;
        let is_wanted = |id: &str| {
            let mut wanted = self.ids.iter();
            self.ids.is_empty() || wanted.any(|wanted| cache::is_same_id(id, wanted))
        };
        let is_missing = match &place {
            MountsPlace::Archive(Some(path)) | MountsPlace::Directory { path, .. } => {
                !path.exists()
            }
            MountsPlace::Archive(None) | MountsPlace::Registry(_) => false,
        };
        let moved = match is_missing {
            true if self.missing_ok => None,
            true => return Err(exit::build(anyhow!("there is nothing at {place}"))),
            false => screen::show(&engine, self.progress, |sink, cancel| {
                let moved = engine.import_mounts(&place, &is_wanted, self.replace, sink, cancel);
                match moved {
                    Err(error) if self.missing_ok && error.is_not_found() => Ok(None),
                    moved => moved.map(Some),
                }
            })?,
        };
        let Some(moved) = moved else {
            log::info(&format!("there is nothing at {place} yet"));
            return Ok(());
        };
        for mount in moved.iter().filter(|mount| mount.kept) {
            log::info(&format!(
                "{} is here already and stays; --replace replaces it",
                mount.id
            ));
        }
        let is_in = |id: &str| moved.iter().any(|mount| cache::is_same_id(&mount.id, id));
        if let Some(id) = self.ids.iter().find(|id| !is_in(id)) {
            let error = anyhow!("there is no cache mount {id:?} in {place}");
            return Err(exit::build(error));
        }
        output::print(&listed(&moved)).map_err(exit::builder)
    }
}

fn listed(moved: &[MovedMount]) -> String {
    let moved = moved.iter().filter(|mount| !mount.kept);
    moved
        .map(|mount| format!("{} {} {}\n", mount.id, mount.digest, human_size(mount.size)))
        .collect()
}

/// Reads a place; `path` is the field that names a path.
fn place(text: &str, path: &str) -> Result<(MountsPlace, LayerOptions)> {
    let zstd = LayerOptions {
        compression: Compression::Zstd,
        ..LayerOptions::default()
    };
    let is_path = ["/", "./", "../"].iter().any(|top| text.starts_with(top));
    if is_path || !text.contains('=') {
        return Ok((place_in_short(text)?, zstd));
    }
    let wrong = || format!("invalid place {text:?}");
    let mut fields = fields(text).with_context(wrong)?;
    let kind = fields.remove("type");
    let kind = kind.with_context(|| format!("{}: it has no type", wrong()))?;
    let options = match path {
        "dest" => {
            let zstd = || "zstd".to_owned();
            fields.entry("compression".to_owned()).or_insert_with(zstd);
            layer_options(&mut fields).with_context(wrong)?
        }
        // How layers are compressed is a question only where they are written.
        _ => zstd,
    };
    let tag = fields.remove("tag");
    let mut take = |name: &str| {
        let value = fields.remove(name).filter(|value| !value.is_empty());
        value.with_context(|| format!("{}: it has no {name}", wrong()))
    };
    let place = match (kind.as_str(), &tag) {
        ("oci", None) => match take(path)?.as_str() {
            "-" => MountsPlace::Archive(None),
            path => MountsPlace::Archive(Some(PathBuf::from(path))),
        },
        ("local", _) => MountsPlace::Directory {
            path: PathBuf::from(take(path)?),
            tag: tag.unwrap_or_else(|| TAG.to_owned()),
        },
        ("registry", None) => MountsPlace::Registry(name_of(&take("ref")?).with_context(wrong)?),
        ("oci" | "registry", Some(_)) => bail!("{}: only type=local has a tag", wrong()),
        (kind, _) => bail!(
            "{}: there is no type {kind:?}; there are oci, local and registry",
            wrong()
        ),
    };
    match fields.keys().next() {
        Some(name) => bail!("{}: the field {name:?} is not known for this type", wrong()),
        None => Ok((place, options)),
    }
}

/// Reads a place that is said without words: what looks like a path is one.
fn place_in_short(text: &str) -> Result<MountsPlace> {
    let path = PathBuf::from(text);
    let is_path = text.starts_with(['/', '.']) || text.ends_with(".tar") || path.exists();
    Ok(match is_path {
        _ if text == "-" => MountsPlace::Archive(None),
        true if path.is_dir() => MountsPlace::Directory {
            path,
            tag: TAG.to_owned(),
        },
        true if path.exists() || text.ends_with(".tar") => MountsPlace::Archive(Some(path)),
        true => MountsPlace::Directory {
            path,
            tag: TAG.to_owned(),
        },
        false => {
            MountsPlace::Registry(name_of(text).with_context(|| format!("invalid place {text:?}"))?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() {
        let check = |text: &str, expected: &str| {
            let read = place(text, "dest");
            let found = match read {
                Ok((place, options)) => format!("{place:?} {:?}", options.compression),
                Err(error) => format!("{error:#}"),
            };
            assert!(found.contains(expected), "{text}: {found}");
        };
        check("-", "Archive(None) Zstd");
        check("mounts.tar", "Archive(Some(\"mounts.tar\")) Zstd");
        check(
            "./none",
            "Directory { path: \"./none\", tag: \"cache-mounts\" }",
        );
        check("/tmp", "Directory { path: \"/tmp\"");
        check("host:5000/a/b", "Registry(");
        check(
            "type=local,dest=x,tag=y",
            "Directory { path: \"x\", tag: \"y\" }",
        );
        check("type=oci,dest=-,compression=gzip", "Archive(None) Gzip");
        check("type=registry,ref=host/a:b", "Registry(");
        check("type=registry,dest=x", "it has no ref");
        check("type=oci,dest=x,tag=y", "only type=local has a tag");
        check("type=tar,dest=x", "there are oci, local and registry");
        check("type=oci,dest=x,what=y", "\"what\" is not known");
        check("dest=x", "it has no type");
        check("A B", "invalid place");
    }
}
