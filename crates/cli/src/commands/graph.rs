//! `lapstrake graph`: a picture of the stages of a Dockerfile.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use oci::Platform;
use report::{Picture, StageOptions, dot, mermaid, stage_picture, svg};

use super::check::locate;
use crate::diagnostics::Source;
use crate::failure::{Failure, exit};
use crate::{build_request, log, output};

/// Draw the stages and steps of a Dockerfile, and what the target needs of them
#[derive(Debug, Args)]
#[command(
    after_help = "Stages that the target does not need are grey. Nothing is built and no image is asked for: what a
base image brings along (ONBUILD) is not in the picture. For a picture of a build, with times, see
lapstrake report.

Examples:
  lapstrake graph -o stages.svg                 draw the Dockerfile here; a browser shows it
  lapstrake graph --target test -o stages.svg   show what the stage test needs
  lapstrake graph --format mermaid              for a README on a code host
  lapstrake graph --format dot | dot -Tpng      let Graphviz draw it"
)]
pub(crate) struct Graph {
    /// The context, for the Dockerfile; or the Dockerfile itself
    #[arg(value_name = "PATH", default_value = ".")]
    context: PathBuf,
    /// The Dockerfile [default: PATH/Dockerfile]; - reads it from stdin
    #[arg(long, short = 'f', value_name = "FILE")]
    file: Option<PathBuf>,
    /// The stage that is to be built [default: the last]
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Set a build argument; without a value it is taken from the environment
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    build_args: Vec<String>,
    /// Name a context that stands for a stage or an image, as for build
    #[arg(long = "build-context", value_name = "NAME=VALUE")]
    build_contexts: Vec<String>,
    /// Platform to build for [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// The language of the picture [default: by the name of the output, else svg]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Where to write; - is standard output
    #[arg(long, short = 'o', value_name = "FILE", default_value = "-")]
    output: PathBuf,
}

/// The language of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A picture for browsers, light or dark as they are
    Svg,
    /// A flowchart, as code hosts show it in Markdown
    Mermaid,
    /// For Graphviz
    Dot,
}

impl Graph {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let (name, source) = self.read().map_err(exit::usage)?;
        let picture = self.picture(&name, &source)?;
        let text = match self.format() {
            Format::Svg => svg(&picture, &format!("Stages of {name}")),
            Format::Mermaid => mermaid(&picture),
            Format::Dot => dot(&picture),
        };
        match self.output.as_os_str() == "-" {
            true => output::print(&text).map_err(exit::builder),
            false => std::fs::write(&self.output, text)
                .with_context(|| format!("failed to write {}", self.output.display()))
                .map_err(exit::usage),
        }
    }

    fn read(&self) -> Result<(String, Vec<u8>)> {
        let (_, path) = locate(&self.context, self.file.as_deref())?;
        if path == Path::new("-") {
            return Ok(("a Dockerfile".to_owned(), build_request::read_stdin()?));
        }
        let name = path.display().to_string();
        let source = std::fs::read(&path).with_context(|| format!("failed to read {name}"))?;
        Ok((name, source))
    }

    fn picture(&self, name: &str, source: &[u8]) -> Result<Picture, Failure> {
        let build_args = build_request::assignments("--build-arg", &self.build_args);
        let build_args = build_args.map_err(exit::usage)?;
        let named_contexts = self.named_contexts().map_err(exit::usage)?;
        let host = Platform::host();
        let platform = self.platform.as_deref().map(str::parse::<Platform>);
        let platform = platform
            .transpose()
            .context("invalid --platform")
            .map_err(exit::usage)?;
        let broken = |errors: Vec<dockerfile::Diagnostic>| {
            let text = String::from_utf8_lossy(source);
            let source = Source::new(name, &text);
            for error in &errors {
                log::finding(error, &source);
            }
            Failure::Said(1)
        };
        let tree = dockerfile::parse(source).map_err(broken)?;
        let stages = tree.stages().map_err(broken)?;
        let options = StageOptions {
            target: self.target.as_deref(),
            build_args: &build_args,
            named_contexts: &named_contexts,
            build_platform: &host,
            target_platform: platform.as_ref().unwrap_or(&host),
        };
        stage_picture(&stages, tree.escape, &options).map_err(exit::build_error)
    }

    fn named_contexts(&self) -> Result<BTreeSet<String>> {
        let names = self.build_contexts.iter().map(|text| {
            let name = text.split_once('=').map(|(name, _)| name);
            match name.filter(|name| !name.is_empty()) {
                Some(name) => Ok(name.to_owned()),
                None => bail!("invalid --build-context {text:?}: it is not NAME=VALUE"),
            }
        });
        names.collect()
    }

    fn format(&self) -> Format {
        let extension = self.output.extension().and_then(|text| text.to_str());
        self.format.unwrap_or(match extension {
            Some("mmd" | "mermaid") => Format::Mermaid,
            Some("dot" | "gv") => Format::Dot,
            _ => Format::Svg,
        })
    }
}
