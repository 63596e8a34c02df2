//! The instructions, typed: each holds its words as written, before any variable is expanded.

use crate::{Lines, MountSpec, Span, Word};

/// What every instruction has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// The name of the instruction as written (`RUN`, `run`, `Run`).
    pub keyword: Word,
    /// The instruction with its continuation lines joined, without heredocs, trimmed.
    pub code: String,
    /// The bytes of the instruction, its heredocs included.
    pub span: Span,
    pub lines: Lines,
    /// The comment lines above it, trimmed, without `#`.
    pub comments: Vec<String>,
}

/// One instruction of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    pub header: Header,
    pub kind: Kind,
}

/// Every instruction but `FROM`, which begins a [`crate::Stage`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Add(Add),
    Arg(Arg),
    Cmd(Cmd),
    Copy(Copy),
    Entrypoint(Entrypoint),
    Env(Env),
    Expose(Expose),
    Healthcheck(Healthcheck),
    Label(LabelSet),
    Maintainer(Maintainer),
    Onbuild(Onbuild),
    Run(Run),
    Shell(Shell),
    StopSignal(StopSignal),
    User(User),
    Volume(Volume),
    Workdir(Workdir),
}

/// `ADD [flags] SOURCE... DEST`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Add {
    /// Paths, URLs and git references, in order; heredocs are in `contents`.
    pub sources: Vec<Word>,
    pub contents: Vec<InlineFile>,
    pub dest: Word,
    pub chown: Option<Word>,
    pub chmod: Option<Word>,
    pub link: bool,
    pub exclude: Vec<Word>,
    pub keep_git_dir: Option<bool>,
    pub checksum: Option<Word>,
    pub unpack: Option<bool>,
}

/// `COPY [flags] SOURCE... DEST`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Copy {
    /// A stage name, a stage index, a named context or an image. Never expanded.
    pub from: Option<Word>,
    pub sources: Vec<Word>,
    pub contents: Vec<InlineFile>,
    pub dest: Word,
    pub chown: Option<Word>,
    pub chmod: Option<Word>,
    pub link: bool,
    pub exclude: Vec<Word>,
    pub parents: bool,
}

/// A heredoc used as a source of `COPY` or `ADD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InlineFile {
    /// The word of the heredoc, which is the name of the file.
    pub path: String,
    /// The content; leading tabs are gone if it was `<<-`.
    pub data: String,
    /// Whether variables in the content are expanded (with `\` as escape and quotes left alone).
    pub expand: bool,
    /// The place of the `<<WORD`.
    pub span: Span,
}

/// A heredoc as it stands behind an instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    pub name: String,
    /// The number before `<<`, 0 if there is none.
    pub fd: u64,
    /// The word was not quoted.
    pub expand: bool,
    /// It was `<<-`: leading tabs are to be taken off (they are still in `content`).
    pub chomp: bool,
    /// The lines, with their line ends as in the file.
    pub content: String,
    /// The place of the content in the source.
    pub span: Span,
}

/// `ARG NAME[=DEFAULT]...`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Arg {
    pub args: Vec<ArgItem>,
}

/// One name of an `ARG`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ArgItem {
    pub key: Word,
    pub value: Option<Word>,
    /// The description in the comment above: `# NAME description`.
    pub doc: Option<String>,
}

/// `ENV KEY=VALUE...` or `ENV KEY VALUE`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Env {
    pub pairs: Vec<KeyValue>,
}

/// `LABEL KEY=VALUE...` or `LABEL KEY VALUE`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LabelSet {
    pub pairs: Vec<KeyValue>,
}

/// A pair of `ENV` or `LABEL`; both sides are expanded, quotes are still there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyValue {
    pub key: Word,
    pub value: Word,
    /// It was written `KEY VALUE`, without `=`.
    pub legacy: bool,
}

/// The command of `RUN`, `CMD` or `ENTRYPOINT`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommandLine {
    pub form: CommandForm,
    /// One word in shell form (none if the instruction is empty), the elements in exec form.
    pub args: Vec<Word>,
    /// Heredocs; only of `RUN` in shell form.
    pub heredocs: Vec<Heredoc>,
}

/// How a command is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CommandForm {
    /// Text for the shell.
    #[default]
    Shell,
    /// A JSON array.
    Exec,
}

/// `RUN [flags] COMMAND`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Run {
    pub command: CommandLine,
    /// In order. Their fields are read when variables are known: [`MountSpec::resolve`].
    pub mounts: Vec<MountSpec>,
    pub network: NetworkMode,
    pub security: SecurityMode,
    pub devices: Vec<Device>,
    /// The names of the flags given, sorted, each once.
    pub flags_used: Vec<String>,
}

/// `RUN --network`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum NetworkMode {
    #[default]
    Default,
    None,
    Host,
}

/// `RUN --security`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SecurityMode {
    #[default]
    Sandbox,
    Insecure,
}

/// `RUN --device`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Device {
    pub name: String,
    pub required: bool,
}

/// `CMD COMMAND`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cmd {
    pub command: CommandLine,
}

/// `ENTRYPOINT COMMAND`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entrypoint {
    pub command: CommandLine,
}

/// `EXPOSE PORT...`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expose {
    /// Sorted by text, before expansion.
    pub ports: Vec<Word>,
}

/// `HEALTHCHECK NONE` or `HEALTHCHECK [flags] CMD COMMAND`; never expanded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Healthcheck {
    /// As the image config has it: `NONE`; `CMD`, then words; or `CMD-SHELL`, then one text.
    pub test: Vec<String>,
    /// In nanoseconds, 0 if not given; likewise the other times.
    pub interval: i64,
    pub timeout: i64,
    pub start_period: i64,
    pub start_interval: i64,
    pub retries: i32,
}

/// `MAINTAINER NAME`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Maintainer {
    pub name: Word,
}

/// `ONBUILD INSTRUCTION`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Onbuild {
    /// The instruction as the image config keeps it, with its heredocs; see [`crate::parse_trigger`].
    pub trigger: String,
}

/// `SHELL ["PROGRAM", "ARG"...]`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shell {
    pub args: Vec<Word>,
}

/// `STOPSIGNAL SIGNAL`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopSignal {
    pub signal: Word,
}

/// `USER USER[:GROUP]`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    pub user: Word,
}

/// `VOLUME PATH...`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Volume {
    pub paths: Vec<Word>,
}

/// `WORKDIR PATH`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Workdir {
    pub path: Word,
}
