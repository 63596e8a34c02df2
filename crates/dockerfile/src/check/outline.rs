//! The parameters of a target.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::rc::Rc;

use crate::Lines;

use super::plan::State;
use super::stages::ArgInfo;

/// What a target can be given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outline {
    /// The name of the stage, empty if it has none.
    pub name: String,
    pub description: Option<String>,
    /// By line, then by name; likewise the others.
    pub args: Vec<OutlineArg>,
    pub secrets: Vec<OutlineMount>,
    pub ssh: Vec<OutlineMount>,
}

/// A build argument.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OutlineArg {
    pub name: String,
    pub description: Option<String>,
    /// Empty if it has no default.
    pub value: String,
    pub lines: Lines,
}

/// A secret or an ssh agent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OutlineMount {
    pub name: String,
    pub required: bool,
    pub lines: Lines,
}

/// What a stage says of its parameters.
#[derive(Debug, Clone, Default)]
pub(super) struct Capture {
    args: Rc<BTreeMap<String, ArgInfo>>,
    pub(super) used: BTreeSet<String>,
    pub(super) secrets: BTreeMap<String, (bool, Lines)>,
    pub(super) ssh: BTreeMap<String, (bool, Lines)>,
}

impl Capture {
    /// Returns the begin of a stage, which knows the arguments above all stages.
    pub(super) fn of(args: &Rc<BTreeMap<String, ArgInfo>>) -> Self {
        Capture {
            args: Rc::clone(args),
            ..Capture::default()
        }
    }

    pub(super) fn define(&mut self, name: &str, info: ArgInfo) {
        Rc::make_mut(&mut self.args).insert(name.to_owned(), info);
    }

    /// Returns the arguments used, and those their defaults are made of.
    fn all_used(&self) -> BTreeSet<&str> {
        let mut used: BTreeSet<&str> = BTreeSet::new();
        let mut open: Vec<&str> = self.used.iter().map(String::as_str).collect();
        while let Some(name) = open.pop() {
            if used.insert(name)
                && let Some(info) = self.args.get(name)
            {
                open.extend(info.parts.iter().map(String::as_str));
            }
        }
        used
    }
}

/// Gathers the parameters of a state and of those it is made of. The nearest definition of a name counts.
pub(super) fn gather(states: &[State<'_>], target: usize) -> Outline {
    let mut args: BTreeMap<&str, OutlineArg> = BTreeMap::new();
    let mut secrets: BTreeMap<&str, OutlineMount> = BTreeMap::new();
    let mut ssh: BTreeMap<&str, OutlineMount> = BTreeMap::new();
    let mut visited = HashSet::new();
    let mut open = vec![target];
    while let Some(at) = open.pop() {
        if !visited.insert(at) {
            continue;
        }
        let state = &states[at];
        let capture = &state.capture;
        for name in capture.all_used() {
            let Some(info) = capture.args.get(name) else {
                continue;
            };
            args.entry(name).or_insert_with(|| OutlineArg {
                name: name.to_owned(),
                description: info.doc.clone(),
                value: info.value.clone(),
                lines: info.lines,
            });
        }
        let mount = |name: &str, (required, lines): (bool, Lines)| OutlineMount {
            name: name.to_owned(),
            required,
            lines,
        };
        for (name, secret) in &capture.secrets {
            secrets.entry(name).or_insert_with(|| mount(name, *secret));
        }
        for (name, agent) in &capture.ssh {
            ssh.entry(name).or_insert_with(|| mount(name, *agent));
        }
        // The base comes first, so it goes on the stack last.
        open.extend(state.sources.iter().rev().map(|(source, _)| *source));
        open.extend(state.base);
    }
    let stage = states.get(target).and_then(|state| state.stage);
    let mut args: Vec<OutlineArg> = args.into_values().collect();
    args.sort_by_key(|arg| arg.lines.first);
    let by_line = |mounts: BTreeMap<&str, OutlineMount>| {
        let mut mounts: Vec<OutlineMount> = mounts.into_values().collect();
        mounts.sort_by_key(|mount| mount.lines.first);
        mounts
    };
    Outline {
        name: stage
            .map(|stage| stage.name_str().to_owned())
            .unwrap_or_default(),
        description: stage.and_then(|stage| stage.doc.clone()),
        args,
        secrets: by_line(secrets),
        ssh: by_line(ssh),
    }
}
