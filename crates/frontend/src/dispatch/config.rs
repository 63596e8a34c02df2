//! The instructions that change the image's config, and WORKDIR.

use dockerfile::ports::parse_port;
use dockerfile::signal::is_signal;
use dockerfile::{
    Arg, Cmd, CommandForm, CommandLine, Diagnostic, Entrypoint, Env, Expose, Healthcheck, KeyValue,
    LabelSet, Maintainer, Shell, StopSignal, User, Volume, Workdir, quote,
};
use llb::{Action, FileSpec, MakeDirectory, Metadata};

use super::{BUILDER_ARGUMENTS, Pass, Site, Stage, platform};
use crate::error::{Outcome, error};
use crate::pass::Argument;
use crate::state::{Image, Layer};
use crate::{name, owner, path, text};

impl Pass<'_> {
    pub(super) fn env(&mut self, stage: &mut Stage<'_>, site: &Site<'_>, env: &Env) -> Outcome<()> {
        let mut created_by = "ENV".to_owned();
        for (key, value) in self.pairs(stage, site, &env.pairs)? {
            created_by.push_str(&format!(" {key}={value}"));
            stage.state.set_variable(&key, &value);
            stage.image.set_variable(&key, &value);
        }
        self.commit(stage, created_by, Layer::None);
        Ok(())
    }

    pub(super) fn label(
        &mut self,
        stage: &mut Stage<'_>,
        site: &Site<'_>,
        labels: &LabelSet,
    ) -> Outcome<()> {
        let mut created_by = "LABEL".to_owned();
        for (key, value) in self.pairs(stage, site, &labels.pairs)? {
            created_by.push_str(&format!(" {key}={value}"));
            stage.image.config_mut().labels.insert(key, value);
        }
        self.commit(stage, created_by, Layer::None);
        Ok(())
    }

    /// Expands pairs; none of them sees another.
    fn pairs(
        &self,
        stage: &Stage<'_>,
        site: &Site<'_>,
        pairs: &[KeyValue],
    ) -> Outcome<Vec<(String, String)>> {
        let pairs = pairs.iter();
        pairs
            .map(|pair| {
                Ok((
                    self.word(stage, site, &pair.key)?,
                    self.word(stage, site, &pair.value)?,
                ))
            })
            .collect()
    }

    pub(super) fn arg(&mut self, stage: &mut Stage<'_>, site: &Site<'_>, arg: &Arg) -> Outcome<()> {
        let mut created_by = "ARG".to_owned();
        for item in &arg.args {
            let key = &item.key.text;
            let value = match (self.build_args.get(key), &item.value) {
                (Some(given), _) => Some(given.clone()),
                // A default sees the names before it.
                (None, Some(default)) => {
                    let variables = stage.state.variables.clone();
                    Some(self.expand(default, &variables, site.lines)?)
                }
                (None, None) => self.global.value(key).map(str::to_owned),
            };
            created_by.push_str(&format!(" {key}"));
            if let Some(value) = &value {
                created_by.push_str(&format!("={value}"));
                if !BUILDER_ARGUMENTS.contains(&key.as_str()) {
                    stage.state.set_variable(key, value);
                }
            }
            let value = value.map(Into::into);
            self.arguments.push(Argument {
                before: stage.arguments,
                name: key.as_str().into(),
                value,
            });
            stage.arguments = Some(self.arguments.len() - 1);
        }
        self.commit(stage, created_by, Layer::None);
        Ok(())
    }

    pub(super) fn workdir(
        &mut self,
        stage: &mut Stage<'_>,
        site: &Site<'_>,
        workdir: &Workdir,
    ) -> Outcome<()> {
        let to = self.word(stage, site, &workdir.path)?;
        self.change_directory(stage, &to, site.lines)?;
        let directory = stage.state.directory.to_string();
        let mut layer = Layer::None;
        if directory != "/" {
            let user = &stage.image.config.user;
            let made = MakeDirectory {
                path: path::action_path(&directory, &directory),
                mode: 0o755,
                make_parents: true,
                owner: (!user.is_empty()).then(|| owner::parse(user)),
                timestamp: self.timestamp(),
            };
            let variables = stage.state.variables.clone();
            let shown = self.shown(self.expander, &site.instruction.header.code, &variables);
            let on = platform(stage, &self.target_platform).clone();
            let name = name::step(
                stage,
                &shown,
                self.shown_platform(Some(&on)),
                Some(&variables),
            );
            let metadata = Metadata {
                locations: self.location(site.lines),
                ..Metadata::named(name)
            };
            let mut spec = FileSpec::new(stage.state.output);
            spec.action(Action::MakeDirectory(made));
            stage.state.output = Some(self.graph.add(spec.into_draft(metadata)));
            layer = Layer::Made;
        }
        self.commit(stage, format!("WORKDIR {directory}"), layer);
        Ok(())
    }

    /// Returns the time of what the build makes, in nanoseconds.
    pub(super) fn timestamp(&self) -> Option<i64> {
        self.epoch
            .map(|seconds| seconds.saturating_mul(1_000_000_000))
    }

    pub(super) fn maintainer(&mut self, stage: &mut Stage<'_>, maintainer: &Maintainer) {
        let author = &maintainer.name.text;
        stage.image.author = author.as_str().into();
        self.commit(stage, format!("MAINTAINER {author}"), Layer::None);
    }

    pub(super) fn cmd(&mut self, stage: &mut Stage<'_>, cmd: &Cmd) {
        stage.has_cmd = true;
        let line = command_line(&stage.image, &cmd.command);
        let created_by = format!("CMD {}", text::quoted_list(&line));
        let config = stage.image.config_mut();
        config.cmd = line;
        config.args_escaped = true;
        self.commit(stage, created_by, Layer::None);
    }

    pub(super) fn entrypoint(&mut self, stage: &mut Stage<'_>, entrypoint: &Entrypoint) {
        let line = command_line(&stage.image, &entrypoint.command);
        let created_by = format!("ENTRYPOINT {}", text::quoted_list(&line));
        let config = stage.image.config_mut();
        config.entrypoint = line;
        if !stage.has_cmd {
            // The base's arguments were meant for another program.
            config.cmd.clear();
        }
        self.commit(stage, created_by, Layer::None);
    }

    pub(super) fn healthcheck(&mut self, stage: &mut Stage<'_>, check: &Healthcheck) {
        let Healthcheck {
            test,
            interval,
            timeout,
            start_period,
            start_interval,
            retries,
        } = check;
        let created_by = format!(
            "HEALTHCHECK {{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{retries}}}",
            text::list(test),
            text::duration(*interval),
            text::duration(*timeout),
            text::duration(*start_period),
            text::duration(*start_interval),
        );
        stage.image.config_mut().healthcheck = Some(oci::Healthcheck {
            test: test.clone(),
            interval: *interval,
            timeout: *timeout,
            start_period: *start_period,
            start_interval: *start_interval,
            retries: i64::from(*retries),
        });
        self.commit(stage, created_by, Layer::None);
    }

    pub(super) fn expose(
        &mut self,
        stage: &mut Stage<'_>,
        site: &Site<'_>,
        expose: &Expose,
    ) -> Outcome<()> {
        let mut words = Vec::new();
        for port in &expose.ports {
            let expanded = self.expander.words(&port.text, &*stage.state.variables);
            let expanded = expanded
                .map_err(|problem| crate::error::unexpanded(&problem, port.span, site.lines))?;
            words.extend(expanded.into_iter().map(|word| (word, port.span)));
        }
        let mut all = Vec::new();
        for (word, span) in words {
            let port = parse_port(&word).map_err(|problem| {
                let error = Diagnostic::error("port", problem.message, site.lines);
                let error = error.label(span, format!("this is {}", quote(&word)));
                Box::new(error.help(dockerfile::ports::HELP))
            })?;
            all.extend(port.ports());
        }
        self.spent += 2 * crate::state::size(&all);
        let created_by = format!("EXPOSE {}", text::list(&all));
        stage.image.config_mut().exposed_ports.extend(all);
        self.commit(stage, created_by, Layer::None);
        Ok(())
    }

    pub(super) fn user(
        &mut self,
        stage: &mut Stage<'_>,
        site: &Site<'_>,
        user: &User,
    ) -> Outcome<()> {
        let user = self.word(stage, site, &user.user)?;
        stage.state.user = user.as_str().into();
        self.commit(stage, format!("USER {user}"), Layer::None);
        stage.image.config_mut().user = user;
        Ok(())
    }

    pub(super) fn volume(
        &mut self,
        stage: &mut Stage<'_>,
        site: &Site<'_>,
        volume: &Volume,
    ) -> Outcome<()> {
        let mut paths = Vec::new();
        for word in &volume.paths {
            let path = self.word(stage, site, word)?;
            if path.is_empty() {
                let message = "VOLUME specified can not be an empty string";
                let error = Diagnostic::error("volume", message, site.lines);
                return Err(Box::new(
                    error.label(word.span, "nothing is left of this after expansion"),
                ));
            }
            paths.push(path);
        }
        let created_by = format!("VOLUME {}", text::list(&paths));
        stage.image.config_mut().volumes.extend(paths);
        self.commit(stage, created_by, Layer::None);
        Ok(())
    }

    pub(super) fn stop_signal(
        &mut self,
        stage: &mut Stage<'_>,
        site: &Site<'_>,
        stop: &StopSignal,
    ) -> Outcome<()> {
        let signal = self.word(stage, site, &stop.signal)?;
        if !is_signal(&signal) {
            let message = format!("invalid signal: {signal}");
            let error = error("signal", message, site.lines);
            return Err(Box::new(
                error.label(stop.signal.span, "neither a number nor a name"),
            ));
        }
        self.commit(stage, format!("STOPSIGNAL {signal}"), Layer::None);
        stage.image.config_mut().stop_signal = signal;
        Ok(())
    }

    pub(super) fn shell(&mut self, stage: &mut Stage<'_>, shell: &Shell) {
        let line: Vec<String> = shell.args.iter().map(|word| word.text.clone()).collect();
        let created_by = format!("SHELL {}", text::list(&line));
        stage.image.config_mut().shell = line;
        self.commit(stage, created_by, Layer::None);
    }
}

/// Returns what is run: in exec form as it stands, in shell form behind the image's shell.
pub(super) fn command_line(image: &Image, command: &CommandLine) -> Vec<String> {
    let args: Vec<String> = command.args.iter().map(|word| word.text.clone()).collect();
    match command.form {
        CommandForm::Exec => args,
        CommandForm::Shell => image.in_shell(&args),
    }
}
