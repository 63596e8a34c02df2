//! `lapstrake explain`: what a code means.

use clap::Args;

use crate::failure::{Failure, exit};
use crate::output;

/// The page of all codes: what is printed here is read there.
const PAGE: &str = include_str!("../../../../docs/user/codes.md");

/// Explain the code of a finding or an error
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lapstrake explain StageNameCasing    a rule of the check
  lapstrake explain unknown-flag       an error in a Dockerfile
  lapstrake explain                    list all codes")]
pub(crate) struct Explain {
    /// The code: what a message has in brackets
    #[arg(value_name = "CODE")]
    code: Option<String>,
}

/// What is said of codes that mean the same.
struct Section<'a> {
    codes: Vec<&'a str>,
    text: &'a str,
}

impl Explain {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let sections = sections();
        let text = match &self.code {
            None => sections
                .iter()
                .flat_map(|section| &section.codes)
                .map(|code| format!("{code}\n"))
                .collect(),
            Some(code) => explanation(&sections, code).map_err(exit::build)?,
        };
        output::print(&text).map_err(exit::builder)
    }
}

fn sections() -> Vec<Section<'static>> {
    let parts = PAGE.split("\n## ").skip(1);
    let sections = parts.filter_map(|part| {
        let (codes, text) = part.split_once('\n')?;
        let codes = codes.split(", ").collect();
        Some(Section { codes, text })
    });
    sections.collect()
}

/// Returns what is said of a code, as a terminal shows it.
fn explanation(sections: &[Section<'_>], code: &str) -> anyhow::Result<String> {
    let wanted = code.trim_start_matches('[').trim_end_matches(']');
    let is_it = |known: &&str| known.eq_ignore_ascii_case(wanted);
    let Some(section) = sections
        .iter()
        .find(|section| section.codes.iter().any(&is_it))
    else {
        let all = sections
            .iter()
            .flat_map(|section| section.codes.iter().copied());
        // A short word is near to anything.
        let is_near = |meant: &&str| meant.chars().next() == wanted.chars().next();
        let meant = dockerfile::nearest(wanted, all).filter(is_near);
        let hint = meant.map_or_else(
            || "; `lapstrake explain` lists all".to_owned(),
            |meant| format!("; did you mean {meant}?"),
        );
        anyhow::bail!("there is no code {code:?}{hint}");
    };
    let mut text = format!("{}\n", section.codes.join(", "));
    let mut is_code = false;
    for line in section.text.lines() {
        match line {
            "```dockerfile bad" => text.push_str("Not so:\n\n"),
            "```dockerfile good" => text.push_str("But so:\n\n"),
            "```" => {}
            line if is_code => text.push_str(&format!("    {line}\n")),
            line => text.push_str(&format!("{line}\n")),
        }
        is_code = match line {
            "```" => false,
            line => is_code || line.starts_with("```"),
        };
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use dockerfile::check::{CheckOptions, Rule, check};
    use testkit::pages::Page;

    use super::*;

    /// Returns the codes that a text leads to.
    fn found_in(text: &str) -> BTreeSet<&'static str> {
        let report = check(text.as_bytes(), &CheckOptions::default());
        let errors = report.error.iter().flat_map(|error| &error.diagnostics);
        let all = report.warnings.iter().chain(errors);
        all.map(|found| found.code).collect()
    }

    #[test]
    fn examples_are_what_the_page_says() {
        let mut count = 0;
        for section in sections() {
            for block in Page::parse(section.text).blocks {
                let found = found_in(&block.text);
                let has = section.codes.iter().any(|code| found.contains(code));
                let is_bad = block.info == "dockerfile bad";
                assert_eq!(
                    has, is_bad,
                    "{:?}: {found:?} in\n{}",
                    section.codes, block.text
                );
                count += 1;
            }
        }
        assert!(count > 100, "{count} examples");
    }

    #[test]
    fn every_code_is_explained_once() {
        let sections = sections();
        let explained: Vec<&str> = sections
            .iter()
            .flat_map(|section| section.codes.clone())
            .collect();
        let set: BTreeSet<&str> = explained.iter().copied().collect();
        assert_eq!(set.len(), explained.len(), "a code stands twice");
        let mut known: BTreeSet<String> = Rule::ALL
            .iter()
            .map(|rule| rule.name().to_owned())
            .collect();
        for name in ["dockerfile", "frontend"] {
            codes_of_sources(
                &testkit::checkout().join("crates").join(name).join("src"),
                &mut known,
            );
        }
        let set: BTreeSet<String> = set.into_iter().map(str::to_owned).collect();
        let missing: Vec<&String> = known.difference(&set).collect();
        assert!(missing.is_empty(), "not explained: {missing:?}");
        let unknown: Vec<&String> = set.difference(&known).collect();
        assert!(
            unknown.is_empty(),
            "explained, but there is none: {unknown:?}"
        );
    }

    /// Finds the codes that are given to diagnostics: the first argument of what makes them.
    fn codes_of_sources(folder: &std::path::Path, known: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).expect("sources can be read") {
            let path = entry.expect("sources can be read").path();
            if path.is_dir() {
                codes_of_sources(&path, known);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a source can be read");
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            // The last is a code with a name: `const INVALID_…: &str = "…"`.
            for maker in ["error(", "failure(", "wrong(", "const INVALID_"] {
                for rest in text.split(maker).skip(1) {
                    let named = rest.split_once(": &str = ").map(|(_, rest)| rest);
                    let rest = named.filter(|_| maker.starts_with("const")).unwrap_or(rest);
                    let code = rest
                        .trim_start()
                        .strip_prefix('"')
                        .and_then(|rest| rest.split_once('"'));
                    let Some((code, behind)) = code else { continue };
                    let is_code = code.chars().all(|c| c.is_ascii_lowercase() || c == '-')
                        && !code.is_empty();
                    if is_code && behind.starts_with([',', ';']) {
                        known.insert(code.to_owned());
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_misspelled_is_suggested() {
        let told = explanation(&sections(), "StageNameCasin").expect_err("there is no such code");
        assert_eq!(
            told.to_string(),
            "there is no code \"StageNameCasin\"; did you mean StageNameCasing?"
        );
    }
}
