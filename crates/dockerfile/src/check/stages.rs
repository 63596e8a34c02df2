//! The variables before the first stage, and the base names they make.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::rc::Rc;

use oci::{Platform, Reference, ReferenceError};

use crate::expand::Expander;
use crate::{Lines, MetaArg, Stages};

use super::config::Linter;
use super::plan::Expanded;
use super::scope::Scope;
use super::{CheckOptions, Result, Rule, WithLines, expansion_failure, warning};

/// What is known of a build argument.
#[derive(Debug, Clone)]
pub(super) struct ArgInfo {
    pub(super) value: String,
    pub(super) doc: Option<String>,
    /// The arguments its default is made of.
    pub(super) parts: BTreeSet<String>,
    pub(super) lines: Lines,
}

/// The variables all `FROM` instructions see.
#[derive(Debug, Clone)]
pub(super) struct Globals {
    pub(super) scope: Scope,
    /// Those the file defines.
    pub(super) args: Rc<BTreeMap<String, ArgInfo>>,
    pub(super) target_platform: Platform,
    /// The escape character of the file.
    pub(super) escape: char,
}

impl Globals {
    /// Returns the variables that are always there.
    pub(super) fn new(stages: &Stages, escape: char, options: &CheckOptions<'_>) -> Self {
        let build = options.build_platform;
        let target = options.target_platform.unwrap_or(build);
        let last = stages.stages.last().map_or("", |stage| stage.name_str());
        let stage = match options.target.unwrap_or(last) {
            "" => "default",
            name => name,
        };
        let given = [
            ("BUILDPLATFORM", build.to_string()),
            ("BUILDOS", build.os.clone()),
            ("BUILDOSVERSION", build.os_version.clone()),
            ("BUILDARCH", build.architecture.clone()),
            ("BUILDVARIANT", build.variant.clone()),
            ("TARGETPLATFORM", target.full()),
            ("TARGETOS", target.os.clone()),
            ("TARGETOSVERSION", target.os_version.clone()),
            ("TARGETARCH", target.architecture.clone()),
            ("TARGETVARIANT", target.variant.clone()),
            ("TARGETSTAGE", stage.to_owned()),
        ];
        let mut scope = Scope::default();
        for (name, value) in given {
            scope.set(name, options.build_args.get(name).cloned().unwrap_or(value));
        }
        Globals {
            scope,
            args: Rc::default(),
            target_platform: target.clone(),
            escape,
        }
    }

    /// Adds the arguments of the file; values given from outside win.
    pub(super) fn apply(
        &mut self,
        meta_args: &[MetaArg],
        expander: &Expander,
        given: Option<&BTreeMap<String, String>>,
    ) -> Result<()> {
        let mut expanded = Expanded::default();
        for MetaArg { header, arg } in meta_args {
            for item in &arg.args {
                let name = &item.key.text;
                let mut parts = BTreeSet::new();
                let value = match (given.and_then(|given| given.get(name)), &item.value) {
                    (Some(value), _) => Some(value.clone()),
                    (None, None) => None,
                    (None, Some(word)) => {
                        let expansion = expander
                            .word(&word.text, &self.scope)
                            .map_err(|error| expansion_failure(&error, word))
                            .at(header.lines)?;
                        expanded.count(&expansion.text).at(header.lines)?;
                        parts = expansion.matched;
                        // A default made of its own former value is made of the parts of that.
                        if parts.remove(name)
                            && let Some(former) = self.args.get(name)
                        {
                            parts.extend(former.parts.iter().cloned());
                        }
                        Some(expansion.text)
                    }
                };
                if let Some(value) = &value {
                    self.scope.set(name, value.clone());
                }
                let info = ArgInfo {
                    value: value.unwrap_or_default(),
                    doc: item.doc.clone(),
                    parts,
                    lines: header.lines,
                };
                Rc::make_mut(&mut self.args).insert(name.clone(), info);
            }
        }
        Ok(())
    }

    /// Tells whether a `FROM` may use a name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.args.contains_key(name) || self.scope.has(name)
    }

    /// Returns the names a `FROM` may use, those of the file and those that are always there.
    pub(super) fn names(&self) -> BTreeSet<&str> {
        self.args
            .keys()
            .map(String::as_str)
            .chain(self.scope.names())
            .collect()
    }
}

/// Checks that the base images have names when no build argument is given.
pub(super) fn check_default_bases(
    stages: &Stages,
    globals: &Globals,
    expander: &Expander,
    linter: &mut Linter,
) {
    let mut defaults = globals.clone();
    if defaults.apply(&stages.meta_args, expander, None).is_err() {
        return;
    }
    // Many stages begin with the same few.
    let mut valid = HashSet::new();
    for stage in &stages.stages {
        if valid.contains(stage.base.as_str()) {
            continue;
        }
        let Ok(name) = expander.word(&stage.base.text, &defaults.scope) else {
            return;
        };
        if parse_reference(&name.text).is_ok() {
            valid.insert(stage.base.as_str());
        } else {
            linter.warn(Rule::InvalidDefaultArgInFrom, &[], || {
                let message = format!(
                    "Default value for ARG {} results in empty or invalid base image name",
                    stage.base.text
                );
                warning(
                    Rule::InvalidDefaultArgInFrom,
                    message,
                    stage.header.lines,
                    &stage.base,
                    "no image name",
                )
                .help("give the ARG a default that makes a name")
            });
        }
    }
}

/// Reads the name of an image; the error is in the words of the reference.
pub fn parse_reference(text: &str) -> Result<Reference, String> {
    Reference::parse_normalized(text).map_err(|error| match error {
        ReferenceError::UpperCase { .. } => {
            format!(
                "invalid reference format: repository name ({}) must be lowercase",
                remote_name(text)
            )
        }
        ReferenceError::Identifier { text } => {
            format!("invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
        }
        ReferenceError::TooLong { .. } => {
            "repository name must not be more than 255 characters".to_owned()
        }
        ReferenceError::Format { .. } => "invalid reference format".to_owned(),
        ReferenceError::Digest { source, .. } => super::copy::digest_reason(&source),
        other => other.to_string(),
    })
}

/// Returns the part of an image name that is the path at its registry.
fn remote_name(text: &str) -> String {
    let path = match text.split_once('/') {
        None => format!("library/{text}"),
        Some((domain, path)) if domain == "docker.io" || domain == "index.docker.io" => {
            if path.contains('/') {
                path.to_owned()
            } else {
                format!("library/{path}")
            }
        }
        Some((domain, path))
            if domain == "localhost"
                || domain.contains(['.', ':'])
                || domain != domain.to_lowercase() =>
        {
            path.to_owned()
        }
        Some(_) => text.to_owned(),
    };
    path.split(':').next().unwrap_or_default().to_owned()
}
