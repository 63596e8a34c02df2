//! One lowering for one platform, from the first stage to the graph.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use dockerfile::expand::{Expander, Expansion};
use dockerfile::{Ast, Instruction, Lines, Stages, Word};
use llb::{GraphBuilder, Output};
use oci::{ImageConfig, Platform};

use crate::error::{Outcome, Stop, unexpanded};
use crate::state::{HistoryLog, Image, Paths, State, UsedPaths, Variables};
use crate::{Answers, ImageRequest, Options, PlatformBuild, Request};

mod base;
pub(crate) mod context;
mod epoch;
mod finish;
mod scan;
mod stages;

/// The name that stands for an empty tree.
pub(crate) const SCRATCH: &str = "scratch";

/// What all parts of a lowering see.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    pub(crate) stages: &'a Stages,
    pub(crate) options: &'a Options,
    pub(crate) expander: Expander,
    pub(crate) target_platform: Arc<Platform>,
    pub(crate) build_platforms: Vec<Platform>,
    /// No platform was asked for.
    pub(crate) implicit_platform: bool,
    pub(crate) multi_platform: bool,
    pub(crate) build_args: Cow<'a, BTreeMap<String, String>>,
    /// The arguments before the first FROM, with the predefined ones.
    pub(crate) global: Variables,
    /// `SOURCE_DATE_EPOCH`.
    pub(crate) epoch: Option<i64>,
    pub(crate) graph: GraphBuilder,
    pub(crate) source_file: usize,
    pub(crate) history: HistoryLog,
    /// The ARGs of all stages: each says which came before it.
    pub(crate) arguments: Vec<Argument>,
    /// Bytes that images and steps take so far, roughly.
    pub(crate) spent: usize,
    pub(crate) states: Vec<Stage<'a>>,
    /// Known once the stages are.
    target: Option<usize>,
    by_name: HashMap<String, usize>,
    main_context: Option<Output>,
    locals: Vec<LocalContext>,
    images: HashMap<ImageRequest, (Image, Rc<ImageConfig>)>,
    /// Names of images that were read, as they are written.
    references: HashMap<String, Rc<base::Named>>,
    /// Images that stages begin with: many stages begin with one.
    taken: HashMap<base::Wanted, Rc<base::Taken>>,
    /// What was asked for since the last answers.
    asked: HashSet<base::Wanted>,
    pub(crate) requests: BTreeSet<Request>,
}

/// An ARG of a stage.
#[derive(Debug)]
pub(crate) struct Argument {
    /// The one before it, of this stage or the one it is built on.
    pub(crate) before: Option<usize>,
    pub(crate) name: Rc<str>,
    pub(crate) value: Option<Rc<str>>,
}

/// A local directory in the graph; what is needed of it is known at the end.
#[derive(Debug)]
struct LocalContext {
    output: Output,
    name: String,
    /// `None` for the main context: the paths of all stages.
    paths: Option<UsedPaths>,
    ignore: Vec<String>,
}

/// A stage on its way; also an image that is only copied from.
#[derive(Debug, Default)]
pub(crate) struct Stage<'a> {
    /// In lower case; empty if there is none.
    pub(crate) name: String,
    /// The name to show: `stage-0` for one without; empty for the only one.
    pub(crate) label: String,
    /// The base, expanded; once it is resolved, normalized and pinned.
    pub(crate) base_name: String,
    /// The FROM as written.
    pub(crate) code: &'a str,
    pub(crate) lines: Lines,
    pub(crate) base_span: dockerfile::Span,
    pub(crate) platform: Option<Arc<Platform>>,
    pub(crate) base: Option<usize>,
    /// Stages used by instructions, with the place of one that does.
    pub(crate) dependencies: Vec<(usize, Place)>,
    /// Where each is in `dependencies`.
    pub(crate) dependency_places: HashMap<usize, usize>,
    pub(crate) commands: Vec<Command<'a>>,
    pub(crate) state: State,
    pub(crate) image: Image,
    pub(crate) base_image: Option<Rc<ImageConfig>>,
    /// The key of the named context that replaces the stage.
    pub(crate) named_context: Option<String>,
    /// Another stage stands for this one: nothing of its own is followed.
    pub(crate) replaced: bool,
    pub(crate) dispatched: bool,
    pub(crate) resolved: bool,
    /// The base as it is written, once it is known to be the name of an image.
    pub(crate) written: Option<String>,
    pub(crate) triggers_done: bool,
    /// Not a stage of the file: an image or context that an instruction names.
    pub(crate) unregistered: bool,
    /// The ARG that came last, in [`Pass::arguments`].
    pub(crate) arguments: Option<usize>,
    /// Paths used of the main context.
    pub(crate) context_paths: Paths,
    /// Paths others use of this stage.
    pub(crate) paths: UsedPaths,
    pub(crate) ignore_cache: bool,
    pub(crate) command_index: usize,
    pub(crate) command_total: usize,
    pub(crate) in_trigger: bool,
    pub(crate) has_cmd: bool,
    pub(crate) failed: bool,
}

/// Where an instruction stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) lines: Lines,
    pub(crate) span: dockerfile::Span,
}

/// An instruction of a stage and the stages it uses.
#[derive(Debug)]
pub(crate) struct Command<'a> {
    pub(crate) instruction: Text<'a>,
    /// One for COPY with `--from`; one for each mount of RUN.
    pub(crate) sources: Vec<usize>,
    /// It comes from an ONBUILD of the base.
    pub(crate) is_trigger: bool,
}

/// An instruction, wherever it stands.
#[derive(Debug)]
pub(crate) enum Text<'a> {
    File(&'a Instruction),
    Trigger(Box<Instruction>),
}

impl Deref for Text<'_> {
    type Target = Instruction;

    fn deref(&self) -> &Instruction {
        match self {
            Self::File(instruction) => instruction,
            Self::Trigger(instruction) => instruction,
        }
    }
}

/// What a platform's lowering is made of.
#[derive(Debug, Clone)]
pub(crate) struct PlatformChoice {
    pub(crate) target: Platform,
    pub(crate) build: Vec<Platform>,
    pub(crate) implicit: bool,
    pub(crate) multi: bool,
}

impl<'a> Pass<'a> {
    pub(crate) fn new(
        ast: &'a Ast,
        stages: &'a Stages,
        options: &'a Options,
        choice: PlatformChoice,
    ) -> Self {
        let mut graph = GraphBuilder::default();
        let source_file = graph.source(llb::SourceFile {
            filename: options.filename.clone(),
            language: "Dockerfile".to_owned(),
            data: ast.source.as_bytes().into(),
            definition: options.definition.clone(),
        });
        Self {
            stages,
            options,
            expander: Expander::new(ast.escape),
            target_platform: Arc::new(choice.target),
            build_platforms: choice.build,
            implicit_platform: choice.implicit,
            multi_platform: choice.multi,
            build_args: Cow::Borrowed(&options.build_args),
            global: Variables::default(),
            epoch: None,
            graph,
            source_file,
            history: HistoryLog::default(),
            arguments: Vec::new(),
            spent: 0,
            states: Vec::with_capacity(stages.stages.len()),
            target: None,
            by_name: HashMap::new(),
            main_context: None,
            locals: Vec::new(),
            images: HashMap::new(),
            references: HashMap::new(),
            taken: HashMap::new(),
            asked: HashSet::new(),
            requests: BTreeSet::new(),
        }
    }

    /// Goes on with the file as far as the answers lead; what is asked for meanwhile is in `requests`.
    ///
    /// Once it is done, or has failed, it must not be called again.
    pub(crate) fn run(&mut self, answers: &Answers) -> Result<PlatformBuild, Stop> {
        self.requests.clear();
        self.asked.clear();
        let target = match self.target {
            Some(target) => target,
            None => self.begin_stages(answers)?,
        };
        let needed = self.resolve(target, answers)?;
        self.dispatch_all(&needed)?;
        self.finish(target, &needed)
    }

    /// Finds all that the file itself says of its stages.
    fn begin_stages(&mut self, answers: &Answers) -> Result<usize, Stop> {
        self.set_global_arguments()?;
        self.resolve_epoch(answers)?;
        self.make_states()?;
        let target = self.find_target()?;
        self.connect()?;
        self.target = Some(target);
        Ok(target)
    }

    /// Expands a word of the file.
    pub(crate) fn expand(
        &self,
        word: &Word,
        variables: &Variables,
        lines: Lines,
    ) -> Outcome<String> {
        if is_plain(&word.text) {
            return Ok(word.text.clone());
        }
        Ok(self.expansion(word, variables, lines)?.text)
    }

    fn expansion(&self, word: &Word, variables: &Variables, lines: Lines) -> Outcome<Expansion> {
        let expansion = self.expander.word(&word.text, variables);
        expansion.map_err(|problem| unexpanded(&problem, word.span, lines))
    }
}

/// Whether expansion leaves a text as it is: nothing in it is special with any escape character.
pub(crate) fn is_plain(text: &str) -> bool {
    !text
        .bytes()
        .any(|byte| matches!(byte, b'$' | b'"' | b'\'' | b'\\' | b'`'))
}
