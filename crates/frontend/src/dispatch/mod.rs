//! What each instruction does to its stage.

use dockerfile::expand::Expander;
use dockerfile::paths;
use dockerfile::{Diagnostic, Instruction, Kind, Lines, Word};
use oci::Platform;

use crate::error::{Outcome, error, of_trigger, unexpanded};
use crate::pass::{Pass, Stage};
use crate::state::{DEFAULT_PATH, Layer, Variables, history};
use crate::text::uppercase_first_word;

mod config;
mod copy;
mod run;

pub(crate) use copy::file_name;

/// Arguments that are for the builder and never get into an environment.
const BUILDER_ARGUMENTS: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// How many bytes images and steps of one file may take, copies counted: a few lines can ask for endless amounts.
const MOST_SPENT: usize = 1 << 30;

/// How many errors of a stage are gathered.
const MOST_ERRORS: usize = 100;

/// An instruction at work: where it stands, and what its words see.
pub(crate) struct Site<'s> {
    instruction: &'s Instruction,
    sources: &'s [usize],
    lines: Lines,
}

impl Pass<'_> {
    /// Follows all instructions of a stage.
    ///
    /// Behind one that fails the others are followed too, to find their errors, up to one that sets variables: what
    /// comes after that would only fail for want of them.
    pub(crate) fn dispatch(
        &mut self,
        number: usize,
        stage: &mut Stage<'_>,
    ) -> Result<(), Vec<Diagnostic>> {
        self.begin(stage).map_err(|error| vec![*error])?;
        let commands = std::mem::take(&mut stage.commands);
        let mut errors = Vec::new();
        for command in &commands {
            stage.in_trigger = command.is_trigger;
            let site = Site {
                instruction: &command.instruction,
                sources: &command.sources,
                lines: command.instruction.header.lines,
            };
            let outcome = self.instruction(number, stage, &site);
            let outcome = match command.is_trigger {
                true => outcome.map_err(|error| of_trigger(error, stage)),
                false => outcome,
            };
            let Err(error) = outcome.and_then(|()| self.spend(0, site.lines)) else {
                continue;
            };
            errors.push(*error);
            let sets_variables = matches!(site.instruction.kind, Kind::Arg(_) | Kind::Env(_));
            if sets_variables || self.has_overspent() || errors.len() == MOST_ERRORS {
                break;
            }
        }
        stage.commands = commands;
        match errors.is_empty() {
            true => Ok(()),
            false => Err(errors),
        }
    }

    /// Counts what an instruction takes; fails once it is too much.
    pub(crate) fn spend(&mut self, bytes: usize, lines: Lines) -> Outcome<()> {
        self.spent = self.spent.saturating_add(bytes);
        if self.has_overspent() {
            let message = "the images of this file would hold more text than any image can use";
            return Err(error("too-large", message, lines));
        }
        Ok(())
    }

    /// Whether the file asks for more than any image can use.
    pub(crate) fn has_overspent(&self) -> bool {
        self.spent > MOST_SPENT
    }

    /// Gives a stage what the config of its image says.
    fn begin(&mut self, stage: &mut Stage<'_>) -> Outcome<()> {
        // A stage that changes its environment gets copies of what it was given.
        self.spent += stage.image.env_size() + 64 * stage.state.variables.len();
        let os = stage
            .platform
            .get_or_insert_with(|| self.target_platform.clone())
            .os
            .clone();
        if os != "windows" && !stage.image.has_variable("PATH") {
            stage
                .image
                .config_mut()
                .env
                .push(format!("PATH={DEFAULT_PATH}"));
        }
        let config = stage.image.config.clone();
        if !stage.state.variables.end_with(&config.env) {
            for pair in &config.env {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                stage.state.set_variable(name, value);
            }
        }
        if !config.working_dir.is_empty() {
            self.change_directory(stage, &config.working_dir, stage.lines)?;
        }
        if !config.user.is_empty() {
            stage.state.user = config.user.as_str().into();
        }
        Ok(())
    }

    fn instruction(
        &mut self,
        number: usize,
        stage: &mut Stage<'_>,
        site: &Site<'_>,
    ) -> Outcome<()> {
        match &site.instruction.kind {
            Kind::Add(add) => self.add(number, stage, site, add),
            Kind::Copy(copy) => self.copy(number, stage, site, copy),
            Kind::Run(run) => self.run_command(stage, site, run),
            Kind::Workdir(workdir) => self.workdir(stage, site, workdir),
            Kind::Arg(arg) => self.arg(stage, site, arg),
            Kind::Env(env) => self.env(stage, site, env),
            Kind::Label(labels) => self.label(stage, site, labels),
            Kind::Maintainer(maintainer) => {
                self.maintainer(stage, maintainer);
                Ok(())
            }
            Kind::Cmd(cmd) => {
                self.cmd(stage, cmd);
                Ok(())
            }
            Kind::Entrypoint(entrypoint) => {
                self.entrypoint(stage, entrypoint);
                Ok(())
            }
            Kind::Healthcheck(healthcheck) => {
                self.healthcheck(stage, healthcheck);
                Ok(())
            }
            Kind::Expose(expose) => self.expose(stage, site, expose),
            Kind::User(user) => self.user(stage, site, user),
            Kind::Volume(volume) => self.volume(stage, site, volume),
            Kind::StopSignal(signal) => self.stop_signal(stage, site, signal),
            Kind::Shell(shell) => {
                self.shell(stage, shell);
                Ok(())
            }
            Kind::Onbuild(onbuild) => {
                stage
                    .image
                    .config_mut()
                    .on_build
                    .push(onbuild.trigger.clone());
                Ok(())
            }
        }
    }

    /// Notes an instruction in the image's history.
    fn commit(&mut self, stage: &mut Stage<'_>, created_by: String, layer: Layer) {
        self.spent += created_by.len();
        let entry = history(created_by, layer, self.epoch);
        self.history.append(&mut stage.image, entry);
    }

    fn word(&self, stage: &Stage<'_>, site: &Site<'_>, word: &Word) -> Outcome<String> {
        self.expand(word, &stage.state.variables, site.lines)
    }

    fn optional_word(
        &self,
        stage: &Stage<'_>,
        site: &Site<'_>,
        word: Option<&Word>,
    ) -> Outcome<String> {
        word.map_or_else(|| Ok(String::new()), |word| self.word(stage, site, word))
    }

    /// Expands an instruction for its name; where that fails it stays as written.
    fn shown(&self, expander: Expander, code: &str, variables: &Variables) -> String {
        let shown = match crate::pass::is_plain(code) {
            true => code.to_owned(),
            false => expander
                .word(code, variables)
                .map_or_else(|_| code.to_owned(), |shown| shown.text),
        };
        uppercase_first_word(shown)
    }

    /// Expands the content of a heredoc, quotes and all.
    fn content(
        &self,
        stage: &Stage<'_>,
        site: &Site<'_>,
        file: &dockerfile::InlineFile,
    ) -> Outcome<String> {
        if !file.expand {
            return Ok(file.data.clone());
        }
        let expander = Expander::new('\\').literal_quotes();
        let expansion = expander.word(&file.data, &*stage.state.variables);
        Ok(expansion
            .map_err(|problem| unexpanded(&problem, file.span, site.lines))?
            .text)
    }

    /// Sets the directory of a stage and its image.
    fn change_directory(&self, stage: &mut Stage<'_>, to: &str, lines: Lines) -> Outcome<()> {
        let os = stage
            .platform
            .as_ref()
            .map_or("", |platform| platform.os.as_str());
        let directory =
            paths::workdir(&stage.image.config.working_dir, to, os).map_err(|problem| {
                let message =
                    format!("normalizing workdir: normalizing working directory: {problem}");
                error("workdir", message, lines)
            })?;
        let slashed = paths::to_slash(&directory, os);
        if stage.image.config.working_dir != directory {
            stage.image.config_mut().working_dir = directory;
        }
        if *stage.state.directory != *slashed {
            stage.state.directory = slashed.into();
        }
        Ok(())
    }
}

/// Returns the platform of a stage.
fn platform<'s>(stage: &'s Stage<'_>, target: &'s Platform) -> &'s Platform {
    stage.platform.as_deref().unwrap_or(target)
}
