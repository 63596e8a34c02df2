//! `lapstrake check`: what can be said of a Dockerfile without building it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use dockerfile::Diagnostic;
use dockerfile::check::{
    CheckOptions, Fixed, Report, UnknownImages, check, check_json, check_sarif, fix,
};
use dockerfile::ignore::IgnoreFile;
use oci::Platform;

use crate::diagnostics::Source;
use crate::failure::{Failure, exit};
use crate::{build_request, diagnostics, output};

/// Check a Dockerfile by the rules of docker build --check
#[derive(Debug, Args)]
#[command(
    after_help = "Nothing is built and no image is asked for: of every base only PATH is taken as known.
build --check asks for the images too. Exit code 1 if there is anything left to say.

Examples:
  lapstrake check                            check the Dockerfile here
  lapstrake check docker/dev.Dockerfile      check another one
  lapstrake check --fix                      mend what takes no thought, say what is left
  lapstrake check --diff                     show what --fix would change
  lapstrake check --format sarif > o.sarif   for code hosts and editors"
)]
pub(crate) struct Check {
    /// The context, for the Dockerfile and its ignore file; or the Dockerfile itself
    #[arg(value_name = "PATH", default_value = ".")]
    context: PathBuf,
    /// The Dockerfile [default: PATH/Dockerfile]; - reads it from stdin
    #[arg(long, short = 'f', value_name = "FILE")]
    file: Option<PathBuf>,
    /// Check only what this stage needs [default: all stages]
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Set a build argument; without a value it is taken from the environment
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    build_args: Vec<String>,
    /// How to print
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Mend what takes no thought, in the file itself
    #[arg(long)]
    fix: bool,
    /// Show what --fix would change, as a patch, and change nothing
    #[arg(long, conflicts_with_all = ["fix", "format"])]
    diff: bool,
}

/// How findings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// With the lines they are about
    Text,
    /// As docker build --call=check,format=json prints them
    Json,
    /// Static Analysis Results Interchange Format 2.1.0
    Sarif,
}

/// The Dockerfile that is checked.
struct Subject {
    /// As shown in messages.
    name: String,
    /// Where it is; `None` is standard input.
    path: Option<PathBuf>,
    source: Vec<u8>,
    ignore: Option<IgnoreFile>,
}

impl Check {
    /// Prints the findings; there being any is a failure.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let mut subject = self.subject().map_err(exit::usage)?;
        let build_args = build_request::assignments("--build-arg", &self.build_args);
        let build_args = build_args.map_err(exit::usage)?;
        let platform = Platform::host();
        let ignore = subject.ignore.take();
        let options = self.options(&build_args, &platform, ignore.as_ref());
        if self.diff {
            return show_diff(&subject, &options);
        }
        let mended = match self.fix {
            true => mend(&mut subject, &options)?,
            false => Vec::new(),
        };
        let Subject { name, source, .. } = &subject;
        let report = check(source, &options);
        let text = match self.format {
            Format::Text => text_of(&report, name, source, &mended),
            Format::Json => check_json(source, name, &report) + "\n",
            Format::Sarif => check_sarif(source, name, &report) + "\n",
        };
        output::print(&text).map_err(exit::builder)?;
        match report.warnings.is_empty() && report.error.is_none() {
            true => Ok(()),
            false => Err(Failure::Said(1)),
        }
    }

    fn options<'a>(
        &'a self,
        build_args: &'a BTreeMap<String, String>,
        platform: &'a Platform,
        ignore: Option<&'a IgnoreFile>,
    ) -> CheckOptions<'a> {
        CheckOptions {
            build_args,
            target: self.target.as_deref().filter(|target| !target.is_empty()),
            config: None,
            build_platform: platform,
            target_platform: None,
            images: &UnknownImages,
            ignore,
        }
    }

    fn subject(&self) -> Result<Subject> {
        let (context, path) = locate(&self.context, self.file.as_deref())?;
        if path == Path::new("-") {
            if self.fix {
                bail!("what comes from standard input cannot be mended there; use --diff");
            }
            return Ok(Subject {
                name: "-".to_owned(),
                path: None,
                source: build_request::read_stdin()?,
                ignore: ignore_file(&[context.join(".dockerignore")])?,
            });
        }
        let mut own = path.as_os_str().to_owned();
        own.push(".dockerignore");
        let ignore = ignore_file(&[PathBuf::from(own), context.join(".dockerignore")])?;
        let name = path.display().to_string();
        let source = std::fs::read(&path).with_context(|| format!("failed to read {name}"))?;
        Ok(Subject {
            name,
            path: Some(path),
            source,
            ignore,
        })
    }
}

/// Returns the context and where its Dockerfile is; what is named as the context may be the Dockerfile itself.
pub(crate) fn locate<'a>(context: &'a Path, file: Option<&Path>) -> Result<(&'a Path, PathBuf)> {
    match (file, context.is_file()) {
        (Some(_), true) => {
            let context = context.display();
            bail!("{context} is a file; the context of --file is a directory")
        }
        (Some(file), false) => Ok((context, file.to_owned())),
        (None, true) => {
            let folder = context.parent();
            Ok((folder.unwrap_or(Path::new("")), context.to_owned()))
        }
        (None, false) => Ok((context, build_request::default_file(context))),
    }
}

/// Reads the first of these ignore files that is there.
fn ignore_file(paths: &[PathBuf]) -> Result<Option<IgnoreFile>> {
    for path in paths {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let file = IgnoreFile::parse(&text)
                    .with_context(|| format!("invalid {}", path.display()))?;
                return Ok(Some(file));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("failed to read {}", path.display()));
            }
        }
    }
    Ok(None)
}

/// Prints what mending would change; that it would change something is a failure.
fn show_diff(subject: &Subject, options: &CheckOptions<'_>) -> Result<(), Failure> {
    let Some(fixed) = fix(&subject.source, options) else {
        return Err(cannot_mend(subject, options));
    };
    if fixed.mended.is_empty() {
        return Ok(());
    }
    let source = dockerfile::text_of(&subject.source);
    let (old, new) = (format!("a/{}", subject.name), format!("b/{}", subject.name));
    let patch = crate::unified::unified(&source, &fixed.text, (&old, &new));
    output::print(&patch).map_err(exit::builder)?;
    Err(Failure::Said(1))
}

/// Mends the file, and returns what was mended.
fn mend(subject: &mut Subject, options: &CheckOptions<'_>) -> Result<Vec<Diagnostic>, Failure> {
    // What is wrong with a file that does not parse is said by the check.
    let Some(Fixed { text, mended }) = fix(&subject.source, options) else {
        return Ok(Vec::new());
    };
    if let (false, Some(path)) = (mended.is_empty(), &subject.path) {
        replace(path, text.as_bytes())
            .with_context(|| format!("failed to write {}", subject.name))
            .map_err(exit::usage)?;
        subject.source = text.into_bytes();
    }
    Ok(mended)
}

fn cannot_mend(subject: &Subject, options: &CheckOptions<'_>) -> Failure {
    let report = check(&subject.source, options);
    let text = text_of(&report, &subject.name, &subject.source, &[]);
    eprint!("{text}");
    Failure::Said(1)
}

/// Puts new content in the place of a file at once; a link to it stays one.
fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let path = std::fs::canonicalize(path)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(content)?;
    file.as_file()
        .set_permissions(std::fs::metadata(&path)?.permissions())?;
    file.as_file().sync_all()?;
    file.persist(&path)?;
    Ok(())
}

fn text_of(report: &Report, name: &str, source: &[u8], mended: &[Diagnostic]) -> String {
    let source = String::from_utf8_lossy(source);
    let mut text = String::new();
    for found in mended {
        let line = found.lines.first().map_or(0, |lines| lines.first);
        let message = found.full_message();
        let _ = writeln!(text, "fixed {name}:{line}: {} ({message})", found.code);
    }
    if !mended.is_empty() {
        text.push('\n');
    }
    let errors = report.error.iter().flat_map(|error| &error.diagnostics);
    let source = Source::new(name, &source);
    for found in report.warnings.iter().chain(errors) {
        text.push_str(&diagnostics::draw(found, &source));
        text.push_str("\n\n");
    }
    text.push_str(&summary(report, mended.len()));
    text
}

/// Returns the last line: how it stands, and what mends it.
fn summary(report: &Report, mended: usize) -> String {
    let number = |count: usize, noun: &str| match count {
        1 => format!("1 {noun}"),
        count => format!("{count} {noun}s"),
    };
    let fixed = match mended {
        0 => String::new(),
        mended => format!("{} fixed, ", number(mended, "finding")),
    };
    let warnings = number(report.warnings.len(), "warning");
    let fixable = report
        .warnings
        .iter()
        .filter(|warning| !warning.edits.is_empty())
        .count();
    let hint = match fixable {
        0 => String::new(),
        fixable => format!(" ({fixable} fixable with --fix)"),
    };
    match (&report.error, report.warnings.is_empty()) {
        (Some(_), true) => format!("{fixed}the file cannot be built\n"),
        (Some(_), false) => format!("{fixed}the file cannot be built; {warnings}{hint}\n"),
        (None, true) => format!("{fixed}no warnings\n"),
        (None, false) => format!("{fixed}{warnings}{hint}\n"),
    }
}
