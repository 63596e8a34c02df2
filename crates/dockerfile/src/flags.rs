//! The flags of an instruction: `--name`, `--name=value`.

use crate::{Diagnostic, Lines, Word, suggest};

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlagKind {
    /// Nothing, or `true` or `false`.
    Bool,
    /// One value.
    Value,
    /// A value, and it may be repeated.
    Values,
}

/// The flags an instruction knows.
pub(crate) type FlagSpecs = &'static [(&'static str, FlagKind)];

/// The flags of one instruction, checked.
#[derive(Debug, Default)]
pub(crate) struct Flags {
    /// In the order given; a flag without a value has an empty one.
    given: Vec<(&'static str, Word)>,
}

impl Flags {
    /// Checks flags against those the instruction knows.
    pub(crate) fn parse(
        flags: &[Word],
        specs: FlagSpecs,
        lines: Lines,
    ) -> Result<Self, Box<Diagnostic>> {
        let mut given: Vec<(&'static str, Word)> = Vec::with_capacity(flags.len());
        for flag in flags {
            let (name, value) = match flag.text.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (flag.text.as_str(), None),
            };
            let error = |code, message: String| Diagnostic::error(code, message, lines);
            let Some(bare) = name.strip_prefix("--") else {
                return Err(Box::new(error(
                    "invalid-flag",
                    format!("arg should start with -- : {}", flag.text),
                )));
            };
            let (name_span, value_span) = flag.split_span(name.len(), 1);
            let Some((known, kind)) = specs.iter().find(|(known, _)| *known == bare) else {
                let error = error("unknown-flag", format!("unknown flag: {name}"))
                    .label(name_span, "no such flag");
                let error = error.suggest(suggest::nearest(
                    bare,
                    specs.iter().map(|(known, _)| *known),
                ));
                return Err(Box::new(error.help(known_flags(specs))));
            };
            if *kind != FlagKind::Values
                && let Some((_, first)) = given.iter().find(|(other, _)| other == known)
            {
                let error = error(
                    "duplicate-flag",
                    format!("duplicate flag specified: {name}"),
                );
                let error = error
                    .label(name_span, "given again")
                    .label(first.span, "first given here");
                return Err(Box::new(error));
            }
            let missing = || {
                let error = error(
                    "missing-flag-value",
                    format!("missing a value on flag: {name}"),
                );
                Box::new(
                    error
                        .label(flag.span, "no value")
                        .help(format!("write {name}=VALUE")),
                )
            };
            let value = match (kind, value) {
                (FlagKind::Bool, None) => "true".to_owned(),
                (FlagKind::Bool, Some("")) => return Err(missing()),
                (FlagKind::Bool, Some(value)) => {
                    let lower = value.to_lowercase();
                    if lower != "true" && lower != "false" {
                        let message =
                            format!("expecting boolean value for flag {name}, not: {value}");
                        let error = error("invalid-flag-value", message)
                            .label(flag.span, "neither true nor false");
                        return Err(Box::new(error));
                    }
                    lower
                }
                (FlagKind::Value | FlagKind::Values, Some(value)) => value.to_owned(),
                (FlagKind::Value | FlagKind::Values, None) => return Err(missing()),
            };
            given.push((known, Word::new(value, value_span)));
        }
        Ok(Flags { given })
    }

    /// Returns the value of a flag, if it was given and is not empty.
    pub(crate) fn value(&self, name: &str) -> Option<Word> {
        self.values(name)
            .find(|value| !value.text.is_empty())
            .cloned()
    }

    /// Returns the value of a flag even if it is empty.
    pub(crate) fn given(&self, name: &str) -> Option<&Word> {
        self.given
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value)
    }

    /// Returns all values of a flag.
    pub(crate) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Word> {
        self.given
            .iter()
            .filter(move |(known, _)| *known == name)
            .map(|(_, value)| value)
    }

    /// Returns the value of a boolean flag, if it was given.
    pub(crate) fn bool(&self, name: &str) -> Option<bool> {
        self.given(name).map(|value| value.text == "true")
    }

    /// Returns the names of the flags given, sorted, each once.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .given
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

fn known_flags(specs: FlagSpecs) -> String {
    if specs.is_empty() {
        return "this instruction has no flags".to_owned();
    }
    let names: Vec<String> = specs.iter().map(|(name, _)| format!("--{name}")).collect();
    format!("its flags are {}", names.join(", "))
}
