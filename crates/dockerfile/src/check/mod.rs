//! What can be said of a Dockerfile without building it: the findings of `docker build --check`, the parameters and
//! the targets.
//!
//! The stages are walked as a build would walk them, with variables, shells and working directories, but nothing is
//! made. What an image brings along is asked of [`Images`].

mod bases;
mod config;
mod copy;
mod dispatch;
mod epoch;
mod fix;
mod outline;
mod plan;
mod render;
mod rule;
mod sarif;
mod scope;
mod source;
mod stages;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use oci::Platform;

pub use config::CheckConfig;
pub use fix::{Fixed, apply_edits, fix};
pub use outline::{Outline, OutlineArg, OutlineMount};
pub use render::{check_json, check_text, outline_json, outline_text, targets_json, targets_text};
pub use rule::Rule;
pub use sarif::check_sarif;
pub use stages::parse_reference;

use crate::expand::{ExpandError, Expander};
use crate::ignore::IgnoreFile;
use crate::{Ast, Diagnostic, DirectiveName, Lines, Severity, Stages, Word, find_directive};
use config::Linter;

/// What the check must know about an image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BaseImage {
    /// `NAME=value`, as in the image's config.
    pub env: Vec<String>,
    pub working_dir: String,
    pub has_shell: bool,
    /// The instructions it brings along.
    pub onbuild: Vec<String>,
    /// None if it is not known; then it counts as the one asked for.
    pub platform: Option<Platform>,
}

/// Tells about images.
pub trait Images {
    /// Returns an image; the name is normalized and has a tag or digest.
    ///
    /// # Errors
    ///
    /// Why there is no such image.
    fn image(&self, name: &str, platform: &Platform) -> Result<BaseImage, String>;

    /// Returns what stands in for a stage or an image, if something was given in its place.
    fn named_context(&self, name: &str) -> Option<BaseImage> {
        let _ = name;
        None
    }
}

/// Knows of every image only that it sets `PATH`. What an image really has may make warnings appear and vanish.
#[derive(Debug, Clone, Copy, Default)]
pub struct UnknownImages;

impl Images for UnknownImages {
    fn image(&self, _name: &str, _platform: &Platform) -> Result<BaseImage, String> {
        Ok(BaseImage {
            env: vec![format!("PATH={DEFAULT_PATH}")],
            ..BaseImage::default()
        })
    }
}

/// The `PATH` of an image that has none.
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The build argument that is used in place of the file's `check` directive.
const CONFIG_ARGUMENT: &str = "BUILDKIT_DOCKERFILE_CHECK";

const INVALID_OPTIONS: &str = "invalid-check";

/// What to do about a base of which nothing is left.
pub const BLANK_BASE_HELP: &str = "FROM sees only what ARG sets before the first FROM: give it a default there (ARG NAME=IMAGE), or a value with \
     --build-arg NAME=IMAGE";

/// What a build would be given.
#[derive(Clone, Copy)]
pub struct CheckOptions<'a> {
    pub build_args: &'a BTreeMap<String, String>,
    /// The stage asked for; for the check none means all stages, for the outline the last.
    pub target: Option<&'a str>,
    /// Used in place of the file's `check` directive and of the build argument `BUILDKIT_DOCKERFILE_CHECK`.
    pub config: Option<&'a CheckConfig>,
    pub build_platform: &'a Platform,
    /// None if it is not asked for, which makes it the build platform.
    pub target_platform: Option<&'a Platform>,
    pub images: &'a dyn Images,
    /// The ignore file of the context.
    pub ignore: Option<&'a IgnoreFile>,
}

static NO_BUILD_ARGS: BTreeMap<String, String> = BTreeMap::new();
static COMMON_PLATFORM: LazyLock<Platform> = LazyLock::new(|| Platform::new("linux", "amd64", ""));

/// Nothing is given and nothing known of images; the build platform is `linux/amd64`, whatever the host is.
impl Default for CheckOptions<'_> {
    fn default() -> Self {
        CheckOptions {
            build_args: &NO_BUILD_ARGS,
            target: None,
            config: None,
            build_platform: &COMMON_PLATFORM,
            target_platform: None,
            images: &UnknownImages,
            ignore: None,
        }
    }
}

impl std::fmt::Debug for CheckOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CheckOptions")
            .field("build_args", self.build_args)
            .field("target", &self.target)
            .finish()
    }
}

/// What the check found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// By line, then in the order found.
    pub warnings: Vec<Diagnostic>,
    /// Why the file cannot be built: what the reference says.
    pub error: Option<BuildError>,
}

/// An error as the reference reports it, and all there is to say about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildError {
    /// With the words the reference puts before it.
    pub message: String,
    /// The places the reference gives, in its order; none where it gives none.
    pub lines: Vec<Lines>,
    /// All errors found, the one reported first.
    pub diagnostics: Vec<Diagnostic>,
}

impl BuildError {
    /// Returns the lines in order, each once, as the check reports them.
    pub fn merged_lines(&self) -> Vec<usize> {
        let mut lines: Vec<usize> = self.lines.iter().flat_map(|lines| lines.iter()).collect();
        lines.sort_unstable();
        lines.dedup();
        lines
    }

    /// Tells whether it is the options of the check that cannot be read, so that nothing was checked.
    pub fn is_of_options(&self) -> bool {
        self.diagnostics
            .first()
            .is_some_and(|first| first.code == INVALID_OPTIONS)
    }

    fn of(diagnostics: Vec<Diagnostic>) -> Self {
        let first = diagnostics.first();
        BuildError {
            message: first.map(Diagnostic::full_message).unwrap_or_default(),
            lines: first.map(|first| first.lines.clone()).unwrap_or_default(),
            diagnostics,
        }
    }

    /// An error of an instruction, which the reference begins with its line.
    fn of_instruction(diagnostics: Vec<Diagnostic>) -> Self {
        let mut error = BuildError::of(diagnostics);
        if let Some(lines) = error.lines.first()
            && error
                .diagnostics
                .first()
                .is_none_or(|first| first.code != "no-stage")
        {
            error.message = format!(
                "dockerfile parse error on line {}: {}",
                lines.first, error.message
            );
        }
        error
    }
}

type Result<T, E = Box<Diagnostic>> = std::result::Result<T, E>;

/// Returns an error without a place.
fn failure(code: &'static str, message: impl Into<String>) -> Diagnostic {
    let mut error = Diagnostic::error(code, message, Lines::default());
    error.lines.clear();
    error
}

/// Returns an error in the expansion of a word.
fn expansion_failure(error: &ExpandError, word: &Word) -> Box<Diagnostic> {
    Box::new(
        failure("invalid-expansion", crate::heredoc::message(error))
            .label(word.span, "in this word"),
    )
}

/// Returns a warning with the exact words it is about.
fn warning(rule: Rule, message: String, lines: Lines, subject: &Word, label: &str) -> Diagnostic {
    let mut warning = Diagnostic::error(rule.name(), message, lines).label(subject.span, label);
    warning.severity = Severity::Warning;
    warning
}

/// Adds a place to an error, as the reference does at each level that knows one.
trait WithLines<T> {
    fn at(self, lines: Lines) -> Result<T>;
}

impl<T> WithLines<T> for Result<T> {
    fn at(self, lines: Lines) -> Result<T> {
        self.map_err(|mut error| {
            error.lines.push(lines);
            error
        })
    }
}

/// Checks a Dockerfile by the rules of `docker build --check`.
pub fn check(source: &[u8], options: &CheckOptions<'_>) -> Report {
    let mut linter = Linter::default();
    let walked = walk(source, options, &mut linter, options.target.is_none());
    report(walked, linter)
}

/// Checks a Dockerfile whose stages are known already: [`check`] without reading it once more.
///
/// `stages` are those of `ast`.
pub fn check_parsed(ast: &Ast, stages: &Stages, options: &CheckOptions<'_>) -> Report {
    let mut linter = Linter::default();
    let walked = configure(ast.source.as_bytes(), options, &mut linter).and_then(|()| {
        source::check_nodes(ast, &mut linter);
        walk_stages(ast, stages, options, &mut linter, options.target.is_none())
    });
    report(walked, linter)
}

fn report(walked: Result<Outline, Box<BuildError>>, linter: Linter) -> Report {
    let error = match walked {
        Ok(_) => linter.error().map(|error| BuildError::of(vec![error])),
        Err(error) => Some(*error),
    };
    let mut warnings = linter.warnings;
    warnings.sort_by_key(|warning| warning.lines.first().copied());
    Report { warnings, error }
}

/// Returns the parameters of a target: build arguments, secrets, ssh agents.
///
/// # Errors
///
/// What would make the build fail.
pub fn outline(source: &[u8], options: &CheckOptions<'_>) -> Result<Outline, Box<BuildError>> {
    let mut linter = Linter::default();
    walk(source, options, &mut linter, false)
}

/// Tells whether a file or its build arguments say how it is checked: only then can findings be errors.
pub fn is_configured(source: &[u8], build_args: &BTreeMap<String, String>) -> bool {
    build_args.contains_key(CONFIG_ARGUMENT)
        || find_directive(DirectiveName::Check, source).is_some()
}

/// Walks the stages; the outline is that of the target.
fn walk(
    source: &[u8],
    options: &CheckOptions<'_>,
    linter: &mut Linter,
    all_stages: bool,
) -> Result<Outline, Box<BuildError>> {
    if source.is_empty() {
        return Err(fail(vec![failure(
            "empty",
            "the Dockerfile cannot be empty",
        )]));
    }
    configure(source, options, linter)?;
    let ast = crate::parse(source).map_err(fail)?;
    let stages = source::stages(&ast, linter)
        .map_err(|errors| Box::new(BuildError::of_instruction(errors)))?;
    walk_stages(&ast, &stages, options, linter, all_stages)
}

fn fail(diagnostics: Vec<Diagnostic>) -> Box<BuildError> {
    Box::new(BuildError::of(diagnostics))
}

/// Makes a linter that checks what the options say, or else the file.
fn configure(
    source: &[u8],
    options: &CheckOptions<'_>,
    linter: &mut Linter,
) -> Result<(), Box<BuildError>> {
    let given = options.build_args.get(CONFIG_ARGUMENT);
    let config = match (options.config, given) {
        (Some(config), _) => config.clone(),
        (None, Some(text)) => CheckConfig::parse(text).map_err(|reason| {
            let message = format!("failed to parse build-arg:{CONFIG_ARGUMENT}: {reason}");
            fail(vec![failure(INVALID_OPTIONS, message)])
        })?,
        (None, None) => {
            let directive = find_directive(DirectiveName::Check, source);
            let text = directive
                .as_ref()
                .map(|directive| directive.first_word())
                .unwrap_or_default();
            CheckConfig::parse(text).map_err(|reason| {
                let mut error = failure(
                    INVALID_OPTIONS,
                    format!("failed to parse check options: {reason}"),
                );
                if let Some(directive) = &directive {
                    error = error.label(directive.span, "these options");
                }
                fail(vec![error])
            })?
        }
    };
    *linter = Linter::new(config);
    Ok(())
}

fn walk_stages(
    ast: &Ast,
    stages: &Stages,
    options: &CheckOptions<'_>,
    linter: &mut Linter,
    all_stages: bool,
) -> Result<Outline, Box<BuildError>> {
    if stages.stages.is_empty() {
        return Err(fail(vec![failure(
            "no-stages",
            "dockerfile contains no stages to build",
        )]));
    }
    source::check_stages(stages, linter);
    plan_and_dispatch(ast, stages, options, linter, all_stages).map_err(|error| fail(vec![*error]))
}

fn plan_and_dispatch(
    ast: &Ast,
    stages: &Stages,
    options: &CheckOptions<'_>,
    linter: &mut Linter,
    all_stages: bool,
) -> Result<Outline> {
    let expander = Expander::new(ast.escape);
    let mut globals = stages::Globals::new(stages, ast.escape, options);
    stages::check_default_bases(stages, &globals, &expander, linter);
    globals.apply(&stages.meta_args, &expander, Some(options.build_args))?;
    epoch::resolve(stages, &mut globals, &expander, options)?;
    let mut walk = plan::Plan::new(stages, &globals, expander, options, linter)?;
    let target = walk.target()?;
    walk.link()?;
    walk.resolve(target, all_stages)?;
    walk.dispatch(target, all_stages)?;
    Ok(outline::gather(&walk.states, target))
}
