//! Which rules are checked: `# check=skip=RULE,...;experimental=RULE,...;error=true`.

use std::collections::BTreeSet;

use crate::directive::DirectiveReader;
use crate::go::parse_bool;
use crate::{Diagnostic, DirectiveName, quote};

use super::Rule;

/// Which rules are checked, and what a warning means.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckConfig {
    pub skip_all: bool,
    /// Names of rules; one that is no rule is no error.
    pub skip: BTreeSet<String>,
    pub experimental_all: bool,
    pub experimental: BTreeSet<String>,
    /// A warning makes the check fail.
    pub error: bool,
}

impl CheckConfig {
    /// Reads the value of a `check` directive or option.
    ///
    /// # Errors
    ///
    /// The message of the reference for an option that is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut config = CheckConfig::default();
        let text = text.trim();
        if text.is_empty() {
            return Ok(config);
        }
        for part in text.splitn(3, ';') {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| format!("invalid check option {}", quote(part)))?;
            let value = value.trim();
            let names = || {
                value
                    .split(',')
                    .map(|name| name.trim().to_owned())
                    .collect()
            };
            match key.trim() {
                "skip" if value == "all" => config.skip_all = true,
                "skip" => config.skip = names(),
                "experimental" if value == "all" => config.experimental_all = true,
                "experimental" => config.experimental = names(),
                "error" => {
                    config.error = parse_bool(value).ok_or_else(|| {
                        let reason = format!(
                            "strconv.ParseBool: parsing {}: invalid syntax",
                            quote(value)
                        );
                        format!("failed to parse check option {}: {reason}", quote(part))
                    })?;
                }
                key => return Err(format!("invalid check option {}", quote(key))),
            }
        }
        Ok(config)
    }

    /// Tells whether a rule is checked.
    pub fn checks(&self, rule: Rule) -> bool {
        if rule.is_experimental() {
            return self.experimental_all || self.experimental.contains(rule.name());
        }
        !self.skip_all && !self.skip.contains(rule.name())
    }

    /// Returns what a `check=…` comment above an instruction adds; the first one counts.
    fn from_comments(comments: &[String]) -> Option<Self> {
        let value =
            comments
                .iter()
                .find_map(|comment| match DirectiveReader::new("").read(comment) {
                    Ok(Some((DirectiveName::Check, value, _))) => Some(value),
                    _ => None,
                })?;
        CheckConfig::parse(value.split(' ').next().unwrap_or_default()).ok()
    }
}

/// Gathers warnings, those that are asked for.
#[derive(Debug, Default)]
pub(super) struct Linter {
    config: CheckConfig,
    pub(super) warnings: Vec<Diagnostic>,
}

impl Linter {
    pub(super) fn new(config: CheckConfig) -> Self {
        Linter {
            config,
            warnings: Vec::new(),
        }
    }

    /// Adds a warning, unless its rule is not checked, or not below these comments.
    pub(super) fn warn(
        &mut self,
        rule: Rule,
        comments: &[String],
        warning: impl FnOnce() -> Diagnostic,
    ) {
        let here = if comments.is_empty() {
            None
        } else {
            CheckConfig::from_comments(comments)
        };
        let wanted = match here {
            None => self.config.checks(rule),
            Some(here) if rule.is_experimental() => self.config.checks(rule) || here.checks(rule),
            Some(here) => self.config.checks(rule) && here.checks(rule),
        };
        if wanted {
            self.warnings.push(warning());
        }
    }

    /// Returns the error that warnings are, if the file wants it so.
    pub(super) fn error(&self) -> Option<Diagnostic> {
        if !self.config.error || self.warnings.is_empty() {
            return None;
        }
        let rules: BTreeSet<&str> = self.warnings.iter().map(|warning| warning.code).collect();
        let rules: Vec<&str> = rules.into_iter().collect();
        let message = format!("lint violation found for rules: {}", rules.join(", "));
        Some(super::failure("check-failed", message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_from_their_text() {
        let check = |text: &str, expect: Result<&str, &str>| {
            let found = CheckConfig::parse(text).map(|config| {
                let names = |all, names: &BTreeSet<String>| {
                    if all {
                        "all".to_owned()
                    } else {
                        names.iter().cloned().collect::<Vec<_>>().join(",")
                    }
                };
                let CheckConfig {
                    skip_all,
                    skip,
                    experimental_all,
                    experimental,
                    error,
                } = &config;
                format!(
                    "{}/{}/{error}",
                    names(*skip_all, skip),
                    names(*experimental_all, experimental)
                )
            });
            assert_eq!(
                found,
                expect.map(str::to_owned).map_err(str::to_owned),
                "{text}"
            );
        };
        check("", Ok("//false"));
        check("skip=A, B;error=true", Ok("A,B//true"));
        check(
            " skip = all ; experimental=all;error=0",
            Ok("all/all/false"),
        );
        check("skip", Err("invalid check option \"skip\""));
        check("what=x", Err("invalid check option \"what\""));
        check(
            "error=maybe",
            Err(
                "failed to parse check option \"error=maybe\": strconv.ParseBool: parsing \"maybe\": invalid syntax",
            ),
        );
    }

    #[test]
    fn comments_add_to_the_options() {
        let warns = |config: &str, comment: &str, rule: Rule| {
            let mut linter = Linter::new(CheckConfig::parse(config).unwrap());
            linter.warn(rule, &[comment.to_owned()], || {
                super::super::failure(rule.name(), String::new())
            });
            !linter.warnings.is_empty()
        };
        assert!(warns("", "", Rule::UndefinedVar));
        assert!(!warns("", "check=skip=UndefinedVar", Rule::UndefinedVar));
        assert!(warns("", "check=skip=FromAsCasing", Rule::UndefinedVar));
        assert!(!warns(
            "skip=all",
            "check=skip=FromAsCasing",
            Rule::UndefinedVar
        ));
        assert!(!warns("", "", Rule::InvalidDefinitionDescription));
        assert!(warns(
            "",
            "check=experimental=all",
            Rule::InvalidDefinitionDescription
        ));
        assert!(warns("", "a check=skip=all", Rule::UndefinedVar));
    }
}
