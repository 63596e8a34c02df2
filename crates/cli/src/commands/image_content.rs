//! `lapstrake image tree`, `image diff` and `import`.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use engine::images::{Change, Difference, Hidden, ImportRequest, LayerContent};
use oci::{ImageConfig, Platform};
use serde_json::{Value, json};

use super::image::{config_of, platform};
use super::images::find_subject;
use crate::arguments::{Global, ProgressMode};
use crate::failure::{Failure, exit};
use crate::table::human_size;
use crate::{build_request, output, screen, settings};

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TextOrJson {
    Text,
    Json,
}

/// Show the layers of an image, what made them, and what they carry for nothing
#[derive(Debug, Args)]
pub(crate) struct TreeOf {
    /// How to print
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text")]
    format: TextOrJson,
    /// The image for this platform, where there are several
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Name or id
    image: String,
}

/// Files of a layer that are told of; there may be thousands.
const MOST_TOLD: usize = 5;

impl TreeOf {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let platform = platform(self.platform.as_deref()).map_err(exit::usage)?;
        let engine = settings::open_engine(global)?;
        let found = find_subject(engine.store(), &self.image, platform.as_ref());
        let image = found.map_err(exit::build)?.0.image;
        let config = config_of(engine.store(), &image).map_err(exit::builder)?;
        let layers = engine.layer_contents(&image).map_err(exit::engine)?;
        let text = match self.format {
            TextOrJson::Text => {
                let title = format!("{} {}", self.image, image.platform);
                tree_text(&title, &config, &layers)
            }
            TextOrJson::Json => {
                let value = tree_json(&image.id.to_string(), &config, &layers);
                format!(
                    "{}\n",
                    serde_json::to_string_pretty(&value).map_err(exit::builder)?
                )
            }
        };
        output::print(&text).map_err(exit::builder)
    }
}

/// Returns what made each layer, where the history tells.
pub(crate) fn makers(config: &ImageConfig, count: usize) -> Vec<String> {
    let told = config.history.iter().filter(|entry| !entry.empty_layer);
    let mut makers: Vec<String> = told
        .map(|entry| match entry.created_by.is_empty() {
            true => entry.comment.clone(),
            false => entry.created_by.clone(),
        })
        .collect();
    makers.resize(count, String::new());
    makers
}

fn tree_text(title: &str, config: &ImageConfig, layers: &[LayerContent]) -> String {
    let size: u64 = layers.iter().map(|layer| layer.size).sum();
    let wasted: u64 = layers.iter().map(LayerContent::wasted).sum();
    let mut text = format!("{title}  {} in {} layers", human_size(size), layers.len());
    if wasted > 0 {
        text.push_str(&format!(", {} wasted", human_size(wasted)));
    }
    text.push('\n');
    let makers = makers(config, layers.len());
    for (index, (layer, made_by)) in layers.iter().zip(&makers).enumerate() {
        let is_last = index + 1 == layers.len();
        let (branch, stem) = match is_last {
            true => ("└─", "  "),
            false => ("├─", "│ "),
        };
        let size = human_size(layer.size);
        let made_by: String = made_by
            .replace(['\t', '\n'], " ")
            .chars()
            .take(80)
            .collect();
        let line = format!("{branch} {:<3} {size:>8}  {made_by}", index + 1);
        text.push_str(line.trim_end());
        text.push('\n');
        let mut hidden: Vec<&Hidden> = layer.hidden.iter().filter(|file| file.size > 0).collect();
        hidden.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.path.cmp(&b.path)));
        for file in hidden.iter().take(MOST_TOLD) {
            let what = match file.replaced {
                true => "replaced",
                false => "removed",
            };
            text.push_str(&format!(
                "{stem}     {:>8}  {} is {what} in layer {}\n",
                human_size(file.size),
                shown(&file.path),
                file.by + 1
            ));
        }
        if let Some(more) = hidden.get(MOST_TOLD..).filter(|more| !more.is_empty()) {
            let bytes = more.iter().map(|file| file.size).sum();
            text.push_str(&format!(
                "{stem}     {:>8}  in {} more files\n",
                human_size(bytes),
                more.len()
            ));
        }
    }
    text
}

fn tree_json(id: &str, config: &ImageConfig, layers: &[LayerContent]) -> Value {
    let makers = makers(config, layers.len());
    let layers: Vec<Value> = layers
        .iter()
        .zip(&makers)
        .map(|(layer, made_by)| {
            let hidden = layer.hidden.iter().map(|file| {
                json!({
                    "path": shown(&file.path),
                    "size": file.size,
                    "hiddenBy": file.by + 1,
                    "replaced": file.replaced,
                })
            });
            json!({
                "diffId": layer.diff_id.as_ref().map(ToString::to_string),
                "size": layer.size,
                "wasted": layer.wasted(),
                "createdBy": made_by,
                "hidden": hidden.collect::<Vec<_>>(),
            })
        })
        .collect();
    let sum = |name: &str| -> u64 { layers.iter().filter_map(|layer| layer[name].as_u64()).sum() };
    json!({"id": id, "size": sum("size"), "wasted": sum("wasted"), "layers": layers})
}

/// Returns a path so that a terminal shows it on one line.
pub(crate) fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    text.chars()
        .flat_map(|c| match c.is_control() {
            true => c.escape_default().collect::<Vec<_>>(),
            false => vec![c],
        })
        .collect()
}

/// Show what differs between two images: files and configuration
#[derive(Debug, Args)]
pub(crate) struct DiffOf {
    /// How to print
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text")]
    format: TextOrJson,
    /// The images for this platform, where there are several
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Name or id
    #[arg(value_name = "IMAGE")]
    before: String,
    /// Name or id
    #[arg(value_name = "IMAGE")]
    after: String,
}

impl DiffOf {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let platform = platform(self.platform.as_deref()).map_err(exit::usage)?;
        let engine = settings::open_engine(global)?;
        let store = engine.store();
        let find = |name: &str| {
            let found = find_subject(store, name, platform.as_ref());
            found.map(|(subject, _)| subject.image).map_err(exit::build)
        };
        let (before, after) = (find(&self.before)?, find(&self.after)?);
        let config = |image| config_of(store, image).map_err(exit::builder);
        let fields = config_changes(&config(&before)?, &config(&after)?);
        let mut files = Vec::new();
        engine
            .compare_images(&before, &after, |difference| files.push(difference))
            .map_err(exit::engine)?;
        let text = match self.format {
            TextOrJson::Text if fields.is_empty() && files.is_empty() && before.id != after.id => {
                "only times and history differ\n".to_owned()
            }
            TextOrJson::Text => diff_text(&fields, &files),
            TextOrJson::Json => {
                let value = diff_json(&fields, &files);
                format!(
                    "{}\n",
                    serde_json::to_string_pretty(&value).map_err(exit::builder)?
                )
            }
        };
        output::print(&text).map_err(exit::builder)
    }
}

/// A field of the configuration with both its values.
type FieldChange = (String, Option<Value>, Option<Value>);

fn config_changes(before: &ImageConfig, after: &ImageConfig) -> Vec<FieldChange> {
    let fields = |config: &ImageConfig| -> BTreeMap<String, Value> {
        let value = serde_json::to_value(&config.config).unwrap_or_default();
        let map = value.as_object().cloned().unwrap_or_default();
        let mut map: BTreeMap<String, Value> = map.into_iter().collect();
        map.insert("Platform".to_owned(), config.platform.to_string().into());
        if !config.author.is_empty() {
            map.insert("Author".to_owned(), config.author.clone().into());
        }
        map
    };
    let (before, after) = (fields(before), fields(after));
    let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name))
        .map(|name| {
            (
                name.clone(),
                before.get(name).cloned(),
                after.get(name).cloned(),
            )
        })
        .collect()
}

fn diff_text(fields: &[FieldChange], files: &[Difference]) -> String {
    let mut text = String::new();
    for (name, before, after) in fields {
        let value = |value: &Option<Value>| match value {
            Some(value) => value.to_string(),
            None => "nothing".to_owned(),
        };
        text.push_str(&format!(
            "config {name}: {} -> {}\n",
            value(before),
            value(after)
        ));
    }
    for file in files {
        let path = shown(&file.path);
        let size = |meta: &Option<rootfs::Meta>| match meta {
            Some(meta) if !meta.is_dir() => human_size(meta.size),
            _ => String::new(),
        };
        let (before, after) = (size(&file.before), size(&file.after));
        let line = match file.change {
            Change::Added => format!("A {path}  {after}"),
            Change::Removed => format!("D {path}  {before}"),
            Change::Modified if before == after => format!("C {path}  {after}"),
            Change::Modified => format!("C {path}  {before} -> {after}"),
        };
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn diff_json(fields: &[FieldChange], files: &[Difference]) -> Value {
    let meta = |meta: &Option<rootfs::Meta>| match meta {
        None => Value::Null,
        Some(meta) => json!({
            "type": format!("{:?}", meta.kind).to_lowercase(),
            "mode": format!("{:04o}", meta.mode),
            "uid": meta.owner.uid,
            "gid": meta.owner.gid,
            "size": if meta.is_dir() { 0 } else { meta.size },
        }),
    };
    let files = files.iter().map(|file| {
        json!({
            "path": shown(&file.path),
            "change": match file.change {
                Change::Added => "added",
                Change::Modified => "modified",
                Change::Removed => "removed",
            },
            "before": meta(&file.before),
            "after": meta(&file.after),
        })
    });
    let fields = fields
        .iter()
        .map(|(name, before, after)| json!({"field": name, "before": before, "after": after}));
    json!({
        "config": fields.collect::<Vec<_>>(),
        "files": files.collect::<Vec<_>>(),
    })
}

/// Make an image of one layer out of a tar
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Apply an instruction to the image, such as 'CMD ["/app"]'
    #[arg(long = "change", short = 'c', value_name = "INSTRUCTION")]
    changes: Vec<String>,
    /// What the history says of it
    #[arg(long, short = 'm', value_name = "TEXT")]
    message: Option<String>,
    /// Platform of the image
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// The tar, compressed or not; - is standard input
    #[arg(value_name = "FILE|-")]
    file: String,
    /// NAME[:TAG]
    name: Option<String>,
}

impl Import {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let request = self.request().map_err(exit::usage)?;
        let input = self.input().map_err(exit::build)?;
        let engine = settings::open_engine(global)?;
        let image = screen::show(&engine, ProgressMode::Quiet, |sink, cancel| {
            engine.import(input, &request, sink, cancel)
        })?;
        output::print(&format!("{}\n", image.id)).map_err(exit::builder)
    }

    fn request(&self) -> Result<ImportRequest> {
        let name = self.name.as_deref().map(build_request::reference);
        let platform = platform(self.platform.as_deref())?;
        let from = match self.file.as_str() {
            "-" => "-",
            file => file.rsplit('/').next().unwrap_or(file),
        };
        Ok(ImportRequest {
            platform: platform.unwrap_or_else(Platform::host),
            changes: self.changes.clone(),
            message: self
                .message
                .clone()
                .unwrap_or_else(|| format!("Imported from {from}")),
            name: name.transpose()?,
        })
    }

    fn input(&self) -> Result<Box<dyn std::io::Read + Send>> {
        if self.file == "-" {
            if std::io::stdin().is_terminal() {
                return Err(anyhow!(
                    "a tar is to come from standard input, which is a terminal"
                ));
            }
            return Ok(Box::new(std::io::stdin()));
        }
        if self.file.starts_with("http://") || self.file.starts_with("https://") {
            bail!(
                "a tar behind a URL is not imported; download it and give the file, or pipe it into -"
            );
        }
        let path = PathBuf::from(&self.file);
        let file = std::fs::File::open(&path);
        Ok(Box::new(
            file.with_context(|| format!("open {}", path.display()))?,
        ))
    }
}
