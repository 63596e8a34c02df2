//! `lapstrake build --call` and `--print-llb`: what is said of a build instead of carrying it out.

use anyhow::bail;
use dockerfile::check::{
    check_json, check_text, outline_json, outline_text, targets_json, targets_text,
};
use engine::{BuildFailure, BuildRequest, Engine};
use progress::Sink;

use super::build::Build;
use crate::diagnostics::Source;
use crate::failure::{Failure, exit};
use crate::{diagnostics, output};

/// What is done with a Dockerfile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Call {
    question: Question,
    json: bool,
    ignore_status: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    Check,
    Outline,
    Targets,
    Definition,
}

impl Call {
    /// Reads what the options ask for; `None` is a build.
    pub(crate) fn of(build: &Build) -> anyhow::Result<Option<Self>> {
        if build.print_llb {
            return Ok(Some(Self {
                question: Question::Definition,
                json: false,
                ignore_status: false,
            }));
        }
        match (build.check, build.call.as_deref()) {
            (true, Some(_)) => bail!("--check is --call=check; give one of them"),
            (true, None) => Self::parse("check"),
            (false, None) => Ok(None),
            (false, Some(text)) => Self::parse(text),
        }
    }

    /// Reads `METHOD[,format=text|json][,ignorestatus=BOOL]`.
    fn parse(text: &str) -> anyhow::Result<Option<Self>> {
        let mut method = None;
        let (mut json, mut ignore_status) = (false, false);
        for field in text.split(',').filter(|field| !field.is_empty()) {
            match field.split_once('=') {
                None if method.is_some() => bail!("invalid --call {text:?}: it has two methods"),
                None => method = Some(field),
                Some(("format", "json")) => json = true,
                Some(("format", "text")) => json = false,
                Some(("format", other)) => {
                    bail!(
                        "invalid --call {text:?}: there is no format {other:?}; there are text and json"
                    )
                }
                Some(("ignorestatus", value)) => {
                    ignore_status = match dockerfile::parse_bool(value) {
                        Some(truth) => truth,
                        None => bail!("invalid --call {text:?}: ignorestatus is true or false"),
                    }
                }
                Some((name, _)) => bail!("invalid --call {text:?}: there is no field {name:?}"),
            }
        }
        let question = match method.unwrap_or("build") {
            "build" => return Ok(None),
            "check" | "lint" => Question::Check,
            "outline" => Question::Outline,
            "targets" => Question::Targets,
            other => bail!(
                "invalid --call {text:?}: there is no method {other:?}; there are build, check, outline and targets"
            ),
        };
        Ok(Some(Self {
            question,
            json,
            ignore_status,
        }))
    }

    /// Asks the engine; the answer is printed once progress is.
    pub(crate) fn ask(
        self,
        engine: &Engine,
        request: &BuildRequest,
        sink: &Sink,
    ) -> Result<Answer, BuildFailure> {
        let mut answer = Answer::default();
        match self.question {
            Question::Check => {
                let found = engine.check(request, sink)?;
                let (source, report) = (&found.source, &found.answer);
                answer.print(match self.json {
                    // The reference gives the name without its folders here.
                    true => check_json(source, base_name(&found.name), report) + "\n",
                    false => check_text(source, &found.name, report),
                });
                if let Some(error) = &report.error {
                    let text = String::from_utf8_lossy(source);
                    let source = Source::new(&found.name, &text);
                    let draw = |error| diagnostics::draw(error, &source);
                    answer.errors = error.diagnostics.iter().map(draw).collect();
                } else {
                    answer.failed = !report.warnings.is_empty() && !self.ignore_status;
                }
            }
            Question::Outline => {
                let found = engine.outline(request, sink)?;
                answer.print(match self.json {
                    true => outline_json(&found.source, &found.answer) + "\n",
                    false => outline_text(&found.answer),
                });
            }
            Question::Targets => {
                let found = engine.targets(request, sink)?;
                answer.print(match self.json {
                    true => targets_json(&found.source, &found.answer) + "\n",
                    false => targets_text(&found.answer),
                });
            }
            Question::Definition => answer.bytes = engine.definition(request, sink)?,
        }
        Ok(answer)
    }
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// What is to be printed.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    bytes: Vec<u8>,
    /// Why the Dockerfile cannot be built.
    errors: Vec<String>,
    /// There are findings.
    failed: bool,
}

impl Answer {
    fn print(&mut self, text: String) {
        self.bytes = text.into_bytes();
    }

    /// Prints the answer.
    pub(crate) fn show(self) -> Result<(), Failure> {
        output::print_bytes(&self.bytes).map_err(exit::builder)?;
        if !self.errors.is_empty() {
            let gap = if self.bytes.is_empty() { "" } else { "\n" };
            eprintln!("{gap}{}", self.errors.join("\n\n"));
            return Err(Failure::Said(1));
        }
        match self.failed {
            true => Err(Failure::Said(1)),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_read_as_docker_has_them() {
        let parse = |text: &str| Call::parse(text).map_err(|error| error.to_string());
        let call = |question, json, ignore_status| {
            Ok(Some(Call {
                question,
                json,
                ignore_status,
            }))
        };
        assert_eq!(parse("build"), Ok(None));
        assert_eq!(parse("check"), call(Question::Check, false, false));
        assert_eq!(
            parse("lint,format=json"),
            call(Question::Check, true, false)
        );
        assert_eq!(
            parse("format=json,outline"),
            call(Question::Outline, true, false)
        );
        assert_eq!(
            parse("targets,ignorestatus=1"),
            call(Question::Targets, false, true)
        );
        for wrong in ["what", "check,outline", "check,format=xml", "check,a=b"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
