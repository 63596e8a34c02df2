//! `lapstrake completions`, `man` and `reference`: what the arguments tell of themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context;
use clap::builder::{StyledStr, ValueRange};
use clap::{Arg, Args, Command};
use clap_complete::Shell;

use crate::failure::{EXIT_CODES, Failure, exit};
use crate::{configuration_page, examples, output};

/// Print the completions of a shell
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  source <(lapstrake completions bash)                              for this shell
  lapstrake completions bash > /etc/bash_completion.d/lapstrake     for everyone
  lapstrake completions zsh > ~/.zfunc/_lapstrake                   a folder of zsh's fpath
  lapstrake completions fish > ~/.config/fish/completions/lapstrake.fish
  lapstrake completions powershell >> $PROFILE")]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let mut text = Vec::new();
        let mut command = examples::command();
        clap_complete::generate(self.shell, &mut command, "lapstrake", &mut text);
        output::print_bytes(&text).map_err(exit::builder)
    }
}

/// Write manual pages, one for each command
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lapstrake man --out /usr/local/share/man/man1    then: man lapstrake-build")]
pub(crate) struct Man {
    /// The folder they go to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Man {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let write = || {
            std::fs::create_dir_all(&self.out)?;
            clap_mangen::generate_to(examples::command(), &self.out)
        };
        write()
            .with_context(|| format!("failed to write manual pages to {}", self.out.display()))
            .map_err(exit::usage)
    }
}

/// Print the reference of all commands, as Markdown
#[derive(Debug, Args)]
pub(crate) struct Reference {
    /// Print that of the configuration instead
    #[arg(long)]
    configuration: bool,
}

impl Reference {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let page = match self.configuration {
            true => configuration(),
            false => reference(),
        };
        output::print(&page).map_err(exit::builder)
    }
}

/// Returns the page of all commands.
fn reference() -> String {
    let mut root = examples::command();
    root.build();
    let mut text = String::from(
        "# Reference\n\nAll commands and options. This page is made from the program by `cargo xtask docs`.\n\n\
         ## Global options\n\nEvery command takes these, before or after its name.\n\n",
    );
    text.push_str(&options(
        root.get_arguments().filter(|found| found.is_global_set()),
    ));
    text.push_str("\n## Exit codes\n\n| code | what it means |\n| --- | --- |\n");
    for (code, meaning) in EXIT_CODES {
        let _ = writeln!(text, "| {code} | {meaning} |");
    }
    text.push_str(
        "\n## Variables\n\n[Configuration](configuration.md#variables) has all of them, beside keys and files.\n",
    );
    let mut seen = BTreeMap::new();
    for command in visible(&root) {
        describe(command, "lapstrake", &mut seen, &mut text);
    }
    text
}

/// Returns the page of all that can be configured.
pub(crate) fn configuration() -> String {
    let mut root = examples::command();
    root.build();
    let mut found = BTreeMap::new();
    of_variables(&root, "", &mut found);
    let rows: Vec<(String, String)> = found
        .into_iter()
        .map(|(variable, options)| {
            let options: Vec<String> = options.into_iter().collect();
            (variable, format!("As {}", options.join(", ")))
        })
        .collect();
    configuration_page::page(&rows)
}

/// Collects the variables that stand for options.
fn of_variables(command: &Command, path: &str, found: &mut BTreeMap<String, BTreeSet<String>>) {
    for argument in command.get_arguments() {
        let (Some(variable), Some(option)) = (argument.get_env(), argument.get_long()) else {
            continue;
        };
        let told = match argument.is_global_set() {
            true => format!("`--{option}`"),
            false => format!("`--{option}` of `{path}`"),
        };
        let variable = variable.to_string_lossy().into_owned();
        found.entry(variable).or_default().insert(told);
    }
    for command in visible(command) {
        of_variables(
            command,
            format!("{path} {}", command.get_name()).trim_start(),
            found,
        );
    }
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command
        .get_subcommands()
        .filter(|found| !found.is_hide_set() && found.get_name() != "help")
}

fn describe(
    command: &Command,
    parent: &str,
    seen: &mut BTreeMap<String, String>,
    text: &mut String,
) {
    let path = format!("{parent} {}", command.get_name());
    let _ = write!(text, "\n## {path}\n\n{}.\n", plain(command.get_about()));
    let table = options(
        command
            .get_arguments()
            .filter(|found| !found.is_global_set()),
    );
    let is_long = table.lines().count() > 8;
    match seen.get(&table).filter(|_| is_long) {
        Some(other) => {
            let _ = write!(
                text,
                "\nTakes what [`{other}`](#{}) takes.\n",
                other.replace(' ', "-")
            );
        }
        None => {
            let usage = command.clone().render_usage().to_string();
            let usage = usage.trim_start_matches("Usage: ");
            let lines = usage.lines().map(str::trim);
            let _ = write!(
                text,
                "\n```text\n{}\n```\n",
                lines.collect::<Vec<_>>().join("\n")
            );
            if !table.is_empty() {
                let _ = write!(text, "\n{table}");
            }
            if let Some(help) = command.get_after_help() {
                after_help(&help.to_string(), text);
            }
            seen.insert(table, path.clone());
        }
    }
    for found in visible(command) {
        describe(found, &path, seen, text);
    }
}

/// Writes what a help ends with: words as they are, examples as commands.
fn after_help(help: &str, text: &mut String) {
    let (before, examples) = help.split_once("Examples:\n").unwrap_or((help, ""));
    let (examples, after) = examples.split_once("\n\n").unwrap_or((examples, ""));
    let paragraph = |words: &str, text: &mut String| {
        if !words.trim().is_empty() {
            let _ = write!(text, "\n{}\n", words.trim());
        }
    };
    paragraph(before, text);
    if !examples.is_empty() {
        text.push_str("\n```sh\n");
        for line in examples.lines() {
            let line = line.trim();
            // What explains an example stands behind two blanks.
            let _ = match line.split_once("  ") {
                Some((command, words)) => writeln!(text, "{command}  # {}", words.trim()),
                None => writeln!(text, "{line}"),
            };
        }
        text.push_str("```\n");
    }
    paragraph(after, text);
}

/// Returns a table of arguments and options.
fn options<'a>(arguments: impl Iterator<Item = &'a Arg>) -> String {
    let mut rows = String::new();
    for argument in arguments {
        let is_own = ["help", "version"].contains(&argument.get_id().as_str());
        if argument.is_hide_set() || is_own {
            continue;
        }
        let _ = writeln!(rows, "| {} | {} |", spelled(argument), meaning(argument));
    }
    match rows.is_empty() {
        true => rows,
        false => format!("| option | what it does |\n| --- | --- |\n{rows}"),
    }
}

/// Returns how an argument is typed.
fn spelled(argument: &Arg) -> String {
    let names: Vec<String> = argument
        .get_value_names()
        .unwrap_or_default()
        .iter()
        .map(ToString::to_string)
        .collect();
    let value = names.join(" ").replace('|', "\\|");
    let takes_value = argument.get_action().takes_values();
    let may_lack = argument
        .get_num_args()
        .is_some_and(|range: ValueRange| range.min_values() == 0);
    let value = match (argument.is_positional(), takes_value, may_lack) {
        (true, _, _) => return format!("`{value}`"),
        (false, false, _) => String::new(),
        (false, true, true) => format!("[={value}]"),
        (false, true, false) => format!(" {value}"),
    };
    let short = argument.get_short().map(|short| format!("`-{short}`"));
    let long = argument.get_long().map(|long| format!("`--{long}{value}`"));
    short.into_iter().chain(long).collect::<Vec<_>>().join(", ")
}

/// Returns what an argument does, which values it takes, and where else it comes from.
fn meaning(argument: &Arg) -> String {
    let mut text = plain(argument.get_help()).replace('|', "\\|");
    let values = argument.get_possible_values();
    let is_boolean = values.len() == 2
        && values
            .iter()
            .all(|found| found.matches("true", false) || found.matches("false", false));
    if argument.get_action().takes_values() && !values.is_empty() && !is_boolean {
        let names = values.iter().filter(|found| !found.is_hide_set());
        let names: Vec<String> = names
            .map(|found| format!("`{}`", found.get_name()))
            .collect();
        let _ = write!(text, ": {}", names.join(", "));
    }
    let defaults: Vec<String> = argument
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy().into_owned())
        .collect();
    if argument.get_action().takes_values() && !defaults.is_empty() {
        let _ = write!(text, " (default: `{}`)", defaults.join(" "));
    }
    if let Some(variable) = argument.get_env() {
        let _ = write!(text, " (variable: `{}`)", variable.to_string_lossy());
    }
    text
}

fn plain(text: Option<&StyledStr>) -> String {
    let text = text.map(ToString::to_string).unwrap_or_default();
    text.trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use testkit::pages::{Page, commands_of};

    use super::*;

    /// Returns all pages: their path in the checkout, and their text.
    fn pages() -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut folders = vec![testkit::checkout()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).expect("a folder can be read") {
                let path = entry.expect("a folder can be read").path();
                let name = path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                if path.is_dir() && !path.is_symlink() && !name.starts_with('.') && name != "target"
                {
                    folders.push(path);
                } else if name.ends_with(".md") {
                    let shown = path
                        .strip_prefix(testkit::checkout())
                        .expect("it is in there");
                    let text = std::fs::read_to_string(&path).expect("a page can be read");
                    found.push((shown.display().to_string(), text));
                }
            }
        }
        found.sort();
        assert!(found.len() > 15, "{} pages", found.len());
        found
    }

    #[test]
    fn commands_of_the_pages_are_spelled_right() {
        let mut count = 0;
        for (page, text) in pages() {
            for block in &Page::parse(&text).blocks {
                if ["text", "dockerfile", "diff"].contains(&block.info.as_str()) {
                    continue;
                }
                for words in commands_of("lapstrake", &block.text) {
                    count += 1;
                    let parsed = examples::command().try_get_matches_from(&words);
                    let Err(error) = parsed else { continue };
                    let is_help = !error.use_stderr();
                    // Usage alone: what is typed without a command shows the help.
                    assert!(is_help, "{page}:{}: {words:?}: {error}", block.line);
                }
            }
        }
        assert!(count > 100, "{count} commands");
    }

    #[test]
    fn pages_link_to_what_is_there() {
        let all = pages();
        for (page, text) in &all {
            let folder = std::path::Path::new(page)
                .parent()
                .expect("a page is in a folder");
            for rest in text.split("](").skip(1) {
                let Some((link, _)) = rest.split_once(')') else {
                    continue;
                };
                if link.contains("://") || link.contains(' ') {
                    continue;
                }
                let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
                let target = match path.is_empty() {
                    true => page.into(),
                    false => folder.join(path),
                };
                let file = testkit::checkout().join(&target);
                assert!(file.exists(), "{page}: {link} leads nowhere");
                if !anchor.is_empty() {
                    let target = std::fs::read_to_string(file).expect("a page can be read");
                    let has = target
                        .lines()
                        .any(|line| line.starts_with('#') && slug(line) == anchor);
                    assert!(has, "{page}: {link} has no such heading");
                }
            }
        }
    }

    /// Returns the anchor of a heading, as GitHub makes it.
    fn slug(heading: &str) -> String {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = words
            .chars()
            .filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-' || *c == '_');
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    }

    #[test]
    fn the_reference_is_that_of_the_program() {
        for (name, page) in [
            ("docs/user/reference.md", reference()),
            ("docs/user/configuration.md", configuration()),
        ] {
            let written = std::fs::read_to_string(testkit::checkout().join(name));
            assert!(
                written.unwrap_or_default() == page,
                "{name} is old: cargo xtask docs"
            );
        }
    }
}
