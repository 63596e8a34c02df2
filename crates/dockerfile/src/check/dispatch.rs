//! Walking the instructions of each stage.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::LazyLock;

use regex::Regex;

use crate::expand::Expander;
use crate::ports::parse_port;
use crate::signal::is_signal;
use crate::{
    Arg, CommandForm, CommandLine, Diagnostic, Edit, Header, KeyValue, Keyword, Kind, Mount,
    MountKind, Run, Span, Word, paths, quote, suggest,
};

use super::fix::with_equals_sign;
use super::plan::{Command, Plan, Source, State};
use super::scope::Recorder;
use super::stages::ArgInfo;
use super::{DEFAULT_PATH, Result, Rule, WithLines, expansion_failure, failure, warning};

/// Arguments that are for the builder alone: no instruction sees them.
const BUILDER_ARGS: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// A word of a name that says it is secret, and one that says it is not the secret itself.
static SECRET: LazyLock<Option<Regex>> = LazyLock::new(|| {
    words_pattern("apikey|auth|credential|credentials|key|password|pword|passwd|secret|token")
});
static NOT_SECRET: LazyLock<Option<Regex>> = LazyLock::new(|| words_pattern("public|file|version"));

fn words_pattern(words: &str) -> Option<Regex> {
    Regex::new(&format!("(?i)(?:_|^)(?:{words})(?:_|$)")).ok()
}

fn is_secret(name: &str) -> bool {
    let matches = |pattern: &LazyLock<Option<Regex>>| {
        pattern
            .as_ref()
            .is_some_and(|pattern| pattern.is_match(name))
    };
    matches(&SECRET) && !matches(&NOT_SECRET)
}

impl Plan<'_> {
    /// Walks the stages, those that the target needs or all of them.
    pub(super) fn dispatch(&mut self, target: usize, all_stages: bool) -> Result<()> {
        let reachable = self.reachable(target);
        for at in 0..self.states.len() {
            if !all_stages && (!reachable.contains(&at) || self.states[at].is_dispatched) {
                continue;
            }
            self.dispatch_state(at)?;
        }
        Ok(())
    }

    fn dispatch_state(&mut self, at: usize) -> Result<()> {
        self.inherit(at);
        let target_platform = &self.globals.target_platform;
        let state = &mut self.states[at];
        state.is_dispatched = true;
        let os = &state
            .platform
            .get_or_insert_with(|| target_platform.clone())
            .os;
        if state.image.env.value("PATH").is_none() && os != "windows" {
            state.image.env.set("PATH", DEFAULT_PATH);
        }
        for (name, value) in state.image.env.entries() {
            state.scope.set(name, value);
        }
        if !state.image.working_dir.is_empty() {
            let dir = state.image.working_dir.clone();
            let lines = state.stage.map(|stage| stage.header.lines);
            let result = self.set_workdir(at, &dir);
            match lines {
                Some(lines) => result.at(lines)?,
                None => result?,
            }
        }
        // They stay with the state: those that say ONBUILD were looked at already, and no one asks again.
        for command in std::mem::take(&mut self.states[at].commands) {
            let lines = command.instruction.get().header.lines;
            Walker {
                plan: self,
                at,
                command: &command,
            }
            .walk()
            .at(lines)?;
        }
        Ok(())
    }

    fn set_workdir(&mut self, at: usize, path: &str) -> Result<()> {
        let state = &mut self.states[at];
        let os = state.os().to_owned();
        let dir = paths::workdir(&state.image.working_dir, path, &os).map_err(|reason| {
            let context =
                "normalizing workdir: normalizing working directory: removing drive letter";
            Box::new(failure("invalid-workdir", format!("{context}: {reason}")))
        })?;
        state.dir = paths::to_slash(&dir, &os);
        state.image.working_dir = dir;
        Ok(())
    }
}

/// Walks one instruction of one state.
pub(super) struct Walker<'a, 'p> {
    pub(super) plan: &'a mut Plan<'p>,
    pub(super) at: usize,
    pub(super) command: &'a Command<'p>,
}

impl<'a, 'p> Walker<'a, 'p> {
    fn walk(&mut self) -> Result<()> {
        match &self.command.instruction.get().kind {
            Kind::Env(env) => self.env(&env.pairs),
            Kind::Label(label) => self.label(&label.pairs),
            Kind::Arg(arg) => self.arg(arg),
            Kind::Run(run) => self.run(run),
            Kind::Workdir(workdir) => self.workdir(&workdir.path),
            Kind::User(user) => self.expand(&user.user).map(drop),
            Kind::Volume(volume) => self.volumes(&volume.paths),
            Kind::StopSignal(signal) => self.stop_signal(&signal.signal),
            Kind::Expose(expose) => self.expose(&expose.ports),
            Kind::Cmd(cmd) => self.command_line(Keyword::Cmd, &cmd.command),
            Kind::Entrypoint(entrypoint) => {
                self.command_line(Keyword::Entrypoint, &entrypoint.command)
            }
            Kind::Healthcheck(_) => {
                self.used_once(Keyword::Healthcheck);
                Ok(())
            }
            Kind::Shell(shell) => {
                self.state().image.has_shell = !shell.args.is_empty();
                Ok(())
            }
            Kind::Add(add) => self.add(add),
            Kind::Copy(copy) => self.copy(copy),
            Kind::Maintainer(_) | Kind::Onbuild(_) => Ok(()),
        }
    }

    pub(super) fn header(&self) -> &'a Header {
        &self.command.instruction.get().header
    }

    pub(super) fn state(&mut self) -> &mut State<'p> {
        &mut self.plan.states[self.at]
    }

    /// Returns a word with a place that is in the file, also for an instruction that is not.
    pub(super) fn place(&self, word: &Word) -> Word {
        match &self.command.instruction {
            Source::File(_) => word.clone(),
            Source::Trigger(_, from) => Word::new(word.text.clone(), *from),
        }
    }

    /// Returns a finding about a word of this instruction.
    pub(super) fn finding(
        &self,
        rule: Rule,
        subject: &Word,
        message: String,
        label: &str,
    ) -> Diagnostic {
        warning(
            rule,
            message,
            self.header().lines,
            &self.place(subject),
            label,
        )
    }

    /// Adds a finding. An instruction that an image brings along cannot be mended here.
    pub(super) fn warn(&mut self, rule: Rule, mut finding: Diagnostic) {
        if matches!(self.command.instruction, Source::Trigger(..)) {
            finding.edits.clear();
        }
        self.plan
            .linter
            .warn(rule, &self.header().comments, || finding);
    }

    /// Expands a word, and warns of variables that are not set.
    pub(super) fn expand(&mut self, word: &Word) -> Result<String> {
        self.expand_text(&word.text, word, self.plan.expander)
    }

    pub(super) fn expand_optional(&mut self, word: Option<&Word>) -> Result<String> {
        word.map_or(Ok(String::new()), |word| self.expand(word))
    }

    pub(super) fn expand_all(&mut self, words: &[Word]) -> Result<Vec<String>> {
        words.iter().map(|word| self.expand(word)).collect()
    }

    /// Expands a text that stands in `word`.
    pub(super) fn expand_text(
        &mut self,
        text: &str,
        word: &Word,
        expander: Expander,
    ) -> Result<String> {
        let scope = Recorder::new(&self.plan.states[self.at].scope);
        let expansion = expander.word(text, &scope);
        for name in scope.missed() {
            self.warn_of_unset(&name, word);
        }
        let text = expansion
            .map_err(|error| expansion_failure(&error, &self.place(word)))?
            .text;
        self.plan.expanded.count(&text)?;
        Ok(text)
    }

    fn warn_of_unset(&mut self, name: &str, word: &Word) {
        let state = &self.plan.states[self.at];
        if state.declared.contains(name) || BUILDER_ARGS.contains(&name) {
            return;
        }
        let meant = match self.plan.guesses.take(state.scope.count()) {
            true => suggest::nearest(name, state.scope.names()).map(|meant| format!("${meant}")),
            false => None,
        };
        let subject = variable_in(&self.place(word), name);
        let header = self.header();
        self.plan
            .linter
            .warn(Rule::UndefinedVar, &header.comments, || {
                let message = format!("Usage of undefined variable '${name}'");
                warning(
                    Rule::UndefinedVar,
                    message,
                    header.lines,
                    &subject,
                    "not set here",
                )
                .suggest(meant)
            });
    }

    fn env(&mut self, pairs: &[KeyValue]) -> Result<()> {
        for (key, value, pair) in self.expand_pairs(pairs)? {
            self.warn_of_legacy(pair);
            self.warn_of_secret("ENV", &key, &pair.key);
            let state = self.state();
            state.scope.set(&key, value.clone());
            state.image.env.update(&key, value);
        }
        Ok(())
    }

    fn label(&mut self, pairs: &[KeyValue]) -> Result<()> {
        for (_, _, pair) in self.expand_pairs(pairs)? {
            self.warn_of_legacy(pair);
        }
        Ok(())
    }

    fn expand_pairs<'k>(
        &mut self,
        pairs: &'k [KeyValue],
    ) -> Result<Vec<(String, String, &'k KeyValue)>> {
        pairs
            .iter()
            .map(|pair| Ok((self.expand(&pair.key)?, self.expand(&pair.value)?, pair)))
            .collect()
    }

    fn warn_of_legacy(&mut self, pair: &KeyValue) {
        if !pair.legacy {
            return;
        }
        let name = self.header().keyword.text.clone();
        let message = format!(
            "\"{name} key=value\" should be used instead of legacy \"{name} key value\" format"
        );
        let subject = Word::new("", pair.key.span.to(pair.value.span));
        let help = format!(
            "put a = between the name and its value, and quotes around a value with spaces: {name} {}=...",
            pair.key.text
        );
        let edits = with_equals_sign(pair, self.plan.globals.escape);
        let finding = self
            .finding(Rule::LegacyKeyValueFormat, &subject, message, "no = here")
            .help(help)
            .edits(edits);
        self.warn(Rule::LegacyKeyValueFormat, finding);
    }

    fn warn_of_secret(&mut self, instruction: &str, name: &str, word: &Word) {
        if !is_secret(name) {
            return;
        }
        let message = format!(
            "Do not use ARG or ENV instructions for sensitive data ({instruction} {})",
            quote(name)
        );
        let help = "a secret stays out of the image with RUN --mount=type=secret";
        let finding = self
            .finding(
                Rule::SecretsUsedInArgOrEnv,
                word,
                message,
                "this stays readable in the image",
            )
            .help(help);
        self.warn(Rule::SecretsUsedInArgOrEnv, finding);
    }

    fn arg(&mut self, arg: &Arg) -> Result<()> {
        let lines = self.header().lines;
        for item in &arg.args {
            let name = &item.key.text;
            self.warn_of_secret("ARG", name, &item.key);
            let given = self.plan.options.build_args.get(name).cloned();
            let global = || self.plan.globals.scope.value(name).map(str::to_owned);
            // One that only repeats an argument from above all stages is described there.
            let (value, is_described_above) = match (given, &item.value) {
                (Some(value), _) => (Some(value), false),
                (None, Some(word)) => (Some(self.expand(word)?), false),
                (None, None) => match global() {
                    Some(value) => (Some(value), true),
                    None => (None, false),
                },
            };
            let state = self.state();
            if let Some(value) = value
                .as_ref()
                .filter(|_| !BUILDER_ARGS.contains(&name.as_str()))
            {
                state.scope.set(name, value.clone());
            }
            if !is_described_above {
                let value = value.unwrap_or_default();
                let info = ArgInfo {
                    value,
                    doc: item.doc.clone(),
                    parts: BTreeSet::new(),
                    lines,
                };
                state.capture.define(name, info);
            }
            state.capture.used.insert(name.clone());
            Rc::make_mut(&mut state.declared).insert(name.clone());
        }
        Ok(())
    }

    fn workdir(&mut self, word: &Word) -> Result<()> {
        let path = self.expand(word)?;
        let state = &self.plan.states[self.at];
        if !state.has_workdir && !paths::is_absolute(&path, state.os()) {
            let message = format!(
                "Relative workdir {} can have unexpected results if the base image changes",
                quote(&path)
            );
            let help = format!("begin with an absolute path: WORKDIR /{path}");
            let finding = self
                .finding(Rule::WorkdirRelativePath, word, message, "not absolute")
                .help(help);
            self.warn(Rule::WorkdirRelativePath, finding);
        }
        self.state().has_workdir = true;
        self.plan.set_workdir(self.at, &path)
    }

    fn volumes(&mut self, words: &[Word]) -> Result<()> {
        let volumes = self.expand_all(words)?;
        match volumes.iter().position(String::is_empty) {
            None => Ok(()),
            Some(empty) => {
                let error = failure(
                    "blank-volume",
                    "VOLUME specified can not be an empty string",
                );
                Err(Box::new(error.label(
                    self.place(&words[empty]).span,
                    "nothing is left of this",
                )))
            }
        }
    }

    fn stop_signal(&mut self, word: &Word) -> Result<()> {
        let signal = self.expand(word)?;
        if is_signal(&signal) {
            return Ok(());
        }
        let error = failure("invalid-signal", format!("invalid signal: {signal}"));
        Err(Box::new(error.label(self.place(word).span, "no signal")))
    }

    fn expose(&mut self, words: &[Word]) -> Result<()> {
        let mut ports = Vec::new();
        for word in words {
            let found = self
                .plan
                .expander
                .words(&word.text, &self.plan.states[self.at].scope);
            let found = found.map_err(|error| expansion_failure(&error, &self.place(word)))?;
            ports.extend(found.into_iter().map(|port| (port, word)));
        }
        for (port, word) in ports {
            let parsed = parse_port(&port);
            let (is_cased, is_mapping) = match &parsed {
                Ok(spec) => (spec.protocol_is_cased, spec.is_mapping),
                Err(error) => (error.protocol_is_cased, error.is_mapping),
            };
            if is_cased {
                let message =
                    format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase");
                let help = format!("write {}", port.to_lowercase());
                let finding = self
                    .finding(Rule::ExposeProtoCasing, word, message, "not in lower case")
                    .help(help);
                let is_as_written =
                    word.text == port && word.span.end - word.span.start == port.len();
                let finding =
                    finding.edits(is_as_written.then(|| Edit::new(word.span, port.to_lowercase())));
                self.warn(Rule::ExposeProtoCasing, finding);
            }
            if is_mapping {
                let message = format!(
                    "EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'"
                );
                let help =
                    "name the port in the container alone; it is mapped when the container is run";
                let finding = self
                    .finding(
                        Rule::ExposeInvalidFormat,
                        word,
                        message,
                        "more than a port of the container",
                    )
                    .help(help);
                self.warn(Rule::ExposeInvalidFormat, finding);
            }
            if let Err(error) = parsed {
                let error =
                    failure("invalid-port", error.message).label(self.place(word).span, "no port");
                return Err(Box::new(error.help(crate::ports::HELP)));
            }
        }
        Ok(())
    }

    fn command_line(&mut self, keyword: Keyword, command: &CommandLine) -> Result<()> {
        self.used_once(keyword);
        if command.form == CommandForm::Shell && !self.state().image.has_shell {
            let header = self.header();
            let message = format!(
                "JSON arguments recommended for {} to prevent unintended behavior related to OS signals",
                header.keyword.text
            );
            let subject = command.args.first().unwrap_or(&header.keyword);
            let help = match subject.text.trim_start().starts_with('[') {
                true => {
                    "this looks like a JSON array but is none, so a shell gets it as it is: JSON has double \
                         quotes around each text, and no comma behind the last"
                }
                false => {
                    "write it as [\"program\", \"argument\"], or name a SHELL to say that one is wanted"
                }
            };
            let finding = self
                .finding(
                    Rule::JsonArgsRecommended,
                    subject,
                    message,
                    "run by a shell, which gets the signals",
                )
                .help(help);
            self.warn(Rule::JsonArgsRecommended, finding);
        }
        Ok(())
    }

    /// Warns of a former instruction of that name, which does not count any more.
    fn used_once(&mut self, keyword: Keyword) {
        let header = self.header();
        let subject = self.place(&header.keyword);
        let former = self
            .state()
            .last_of
            .insert(keyword, (subject, header.lines));
        if let Some((former, lines)) = former {
            let name = &header.keyword.text;
            let message = format!(
                "Multiple {name} instructions should not be used in the same stage because only the last one will be used"
            );
            self.plan.linter.warn(
                Rule::MultipleInstructionsDisallowed,
                &header.comments,
                || {
                    warning(
                        Rule::MultipleInstructionsDisallowed,
                        message,
                        lines,
                        &former,
                        "has no effect",
                    )
                    .label(header.keyword.span, "this one counts")
                },
            );
        }
    }

    fn run(&mut self, run: &Run) -> Result<()> {
        let lines = self.header().lines;
        let mut mounts = Vec::with_capacity(run.mounts.len());
        for spec in &run.mounts {
            let expander = self.plan.expander;
            let mount = spec.resolve(lines, &mut |value| {
                self.expand_text(value, &spec.text, expander)
            });
            mounts.push(mount.map_err(|mut error: Box<Diagnostic>| {
                // The walk adds the place.
                error.lines.clear();
                if let (Source::Trigger(_, from), Some(label)) =
                    (&self.command.instruction, error.labels.first_mut())
                {
                    label.span = *from;
                }
                error
            })?);
        }
        self.mounts(run, mounts)?;
        if !run.devices.is_empty() {
            let message =
                "device feature is only supported in Dockerfile frontend 1.14.0-labs or later";
            let error = failure("device", message)
                .label(self.place(&self.header().keyword).span, "asks for a device");
            return Err(Box::new(error));
        }
        Ok(())
    }

    fn mounts(&mut self, run: &Run, mounts: Vec<Mount>) -> Result<()> {
        let lines = self.header().lines;
        for (i, mount) in mounts.into_iter().enumerate() {
            let fail = |message: String| {
                Box::new(
                    failure("invalid-mount", message)
                        .label(self.place(&run.mounts[i].text).span, "this mount"),
                )
            };
            if !mount.from.is_empty()
                && let Some(&source) = self.command.sources.get(i)
                && !self.plan.states[source].is_dispatched
            {
                return Err(fail(format!(
                    "cannot mount from stage {} to {}, stage needs to be defined before current command",
                    quote(&mount.from),
                    quote(&mount.target)
                )));
            }
            match mount.kind {
                MountKind::Secret => {
                    let id = if mount.source.is_empty() {
                        &mount.id
                    } else {
                        &mount.source
                    };
                    let id = if id.is_empty() {
                        base_name(&mount.target)
                    } else {
                        id
                    };
                    let capture = &mut self.state().capture;
                    capture
                        .secrets
                        .entry(id.to_owned())
                        .or_insert((mount.required, lines));
                }
                MountKind::Ssh if !mount.source.is_empty() => {
                    return Err(fail("ssh does not support source".to_owned()));
                }
                MountKind::Ssh => {
                    let id = if mount.id.is_empty() {
                        "default"
                    } else {
                        &mount.id
                    };
                    self.state()
                        .capture
                        .ssh
                        .entry(id.to_owned())
                        .or_insert((mount.required, lines));
                }
                MountKind::Bind | MountKind::Cache | MountKind::Tmpfs => {
                    let target = if paths::clean(&mount.target).starts_with('/') {
                        mount.target
                    } else {
                        paths::join(
                            &paths::join("/", &self.plan.states[self.at].dir),
                            &mount.target,
                        )
                    };
                    if target == "/" {
                        return Err(fail(format!("invalid mount target {}", quote(&target))));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Returns the last component of a path (Go's `path.Base`).
fn base_name(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    match path.trim_end_matches('/') {
        "" => "/",
        path => path.rsplit('/').next().unwrap_or(path),
    }
}

/// Narrows a word to the variable in it, where its text stands in the source as it is.
fn variable_in(word: &Word, name: &str) -> Word {
    let Span { start, end } = word.span;
    if end - start == word.text.len() {
        for reference in [format!("${name}"), format!("${{{name}")] {
            let is_whole =
                |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
            let found = word
                .text
                .match_indices(&reference)
                .find(|(at, _)| is_whole(&word.text[at + reference.len()..]));
            if let Some((at, _)) = found {
                return Word::new(
                    reference.clone(),
                    Span::new(start + at, start + at + reference.len()),
                );
            }
        }
    }
    word.clone()
}
