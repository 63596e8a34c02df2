//! The way from stages to graphs, step by step.

use std::collections::BTreeSet;

use dockerfile::{Ast, Diagnostic, Stages};
use oci::Platform;

use crate::error::Stop;
use crate::pass::{Pass, PlatformChoice};
use crate::{Answers, Lowered, Options, Request};

/// A Dockerfile on its way to graphs.
///
/// ```text
/// let mut answers = Answers::default();
/// let lowered = loop {
///     match lowering.step(&answers)? {
///         Step::Resolve(requests) => answer them all, at once, into `answers`,
///         Step::Done(lowered) => break lowered,
///     }
/// };
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Lowering<'a> {
    ast: &'a Ast,
    stages: &'a Stages,
    options: &'a Options,
}

/// How far a lowering has come.
#[derive(Debug)]
pub enum Step {
    /// These are to be answered before the next step. Never empty, and nothing in it was answered before.
    Resolve(Vec<Request>),
    Done(Box<Lowered>),
}

impl<'a> Lowering<'a> {
    /// Begins to lower a file: `stages` are those of `ast`.
    pub fn new(ast: &'a Ast, stages: &'a Stages, options: &'a Options) -> Self {
        Self {
            ast,
            stages,
            options,
        }
    }

    /// Returns what the builder runs on, best first.
    fn build_platforms(&self) -> Vec<Platform> {
        match self.options.build_platforms.is_empty() {
            false => self.options.build_platforms.clone(),
            true => vec![Platform::host()],
        }
    }

    /// Goes as far as the answers lead.
    ///
    /// Nothing is kept from step to step but the answers, so that any set of them may be tried.
    ///
    /// # Errors
    ///
    /// What is wrong with the file, as far as it is known: the first of the list is what the reference reports.
    pub fn step(&self, answers: &Answers) -> Result<Step, Vec<Diagnostic>> {
        let options = self.options;
        let build = self.build_platforms();
        let multi = options.multi_platform || options.platforms.len() > 1;
        let asked: Vec<Option<&Platform>> = match options.platforms.is_empty() {
            true => vec![None],
            false => options.platforms.iter().map(Some).collect(),
        };
        let mut requests = BTreeSet::new();
        let mut builds = Vec::new();
        for platform in asked {
            let choice = PlatformChoice {
                target: platform.unwrap_or(&build[0]).clone(),
                build: build.clone(),
                implicit: platform.is_none(),
                multi,
            };
            let mut pass = Pass::new(self.ast, self.stages, options, answers, choice);
            let outcome = pass.run();
            requests.append(&mut pass.requests);
            match outcome {
                Ok(build) => builds.push(build),
                Err(Stop::Unanswered) => {}
                Err(Stop::Errors(errors)) => return Err(errors),
            }
        }
        if !requests.is_empty() {
            return Ok(Step::Resolve(requests.into_iter().collect()));
        }
        Ok(Step::Done(Box::new(Lowered {
            builds,
            multi_platform: multi,
        })))
    }
}
