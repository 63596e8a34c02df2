//! The way from stages to graphs, step by step.

use std::collections::BTreeSet;

use dockerfile::{Ast, Diagnostic, Stages};
use oci::Platform;

use crate::error::Stop;
use crate::pass::{Pass, PlatformChoice};
use crate::{Answers, Lowered, Options, PlatformBuild, Request};

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
#[derive(Debug)]
pub struct Lowering<'a> {
    multi_platform: bool,
    /// One for each platform, until it is done.
    passes: Vec<Progress<'a>>,
}

/// The lowering for one platform.
#[derive(Debug)]
enum Progress<'a> {
    Underway(Box<Pass<'a>>),
    Done(Box<PlatformBuild>),
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
        let build = match options.build_platforms.is_empty() {
            false => options.build_platforms.clone(),
            true => vec![Platform::host()],
        };
        let multi = options.multi_platform || options.platforms.len() > 1;
        let asked: Vec<Option<&Platform>> = match options.platforms.is_empty() {
            true => vec![None],
            false => options.platforms.iter().map(Some).collect(),
        };
        let passes = asked.into_iter().map(|platform| {
            let choice = PlatformChoice {
                target: platform.map_or_else(|| build[0].clone(), Platform::normalized),
                build: build.clone(),
                implicit: platform.is_none(),
                multi,
            };
            Progress::Underway(Box::new(Pass::new(ast, stages, options, choice)))
        });
        Self {
            multi_platform: multi,
            passes: passes.collect(),
        }
    }

    /// Goes as far as the answers lead.
    ///
    /// Answers that were there at one step must be there at the next.
    ///
    /// # Errors
    ///
    /// What is wrong with the file, as far as it is known: the first of the list is what the reference reports.
    /// The lowering has failed then.
    pub fn step(&mut self, answers: &Answers) -> Result<Step, Vec<Diagnostic>> {
        let mut requests = BTreeSet::new();
        for progress in &mut self.passes {
            let Progress::Underway(pass) = progress else {
                continue;
            };
            let outcome = pass.run(answers);
            requests.append(&mut pass.requests);
            match outcome {
                Ok(build) => *progress = Progress::Done(Box::new(build)),
                Err(Stop::Unanswered) => {}
                Err(Stop::Errors(errors)) => return Err(errors),
            }
        }
        if !requests.is_empty() {
            return Ok(Step::Resolve(requests.into_iter().collect()));
        }
        let done = std::mem::take(&mut self.passes).into_iter();
        let builds = done.filter_map(|progress| match progress {
            Progress::Done(build) => Some(*build),
            Progress::Underway(_) => None,
        });
        Ok(Step::Done(Box::new(Lowered {
            builds: builds.collect(),
            multi_platform: self.multi_platform,
        })))
    }
}
