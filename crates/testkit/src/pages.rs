//! Pages of the manual as tests: the commands in them are run, and what they print is compared.
//!
//! A page is Markdown. Three kinds of fenced blocks mean something here:
//!
//! - ` ```console `: lines that begin with `$ ` are run in order by one shell, `> ` continues a line; the
//!   lines below are what the terminal shows. `…` stands for any text in a line, a line of `…` alone for any
//!   lines, any run of blanks for another. A command without lines below may print what it likes. A
//!   command has to succeed, unless the next one is `echo $?`.
//! - any block with `title=NAME`: the file that the reader writes at this point.
//! - others are only read.
//!
//! A comment `<!-- test: fixture NAME, example NAME, program NAME -->` says what a page needs: base images,
//! a copy of an example to begin in, programs.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::Environment;

/// What stands for any text.
const ANY: &str = "…";

/// A page of the manual.
#[derive(Debug)]
pub struct Page {
    /// What it needs to be run: kind and name.
    pub needs: Vec<(String, String)>,
    /// Its fenced blocks, in order.
    pub blocks: Vec<Block>,
}

/// A fenced block.
#[derive(Debug)]
pub struct Block {
    /// The words behind the fence.
    pub info: String,
    /// The line of the fence, counted from 1.
    pub line: usize,
    /// What is between the fences, each line with its newline.
    pub text: String,
}

/// A command of a page, and what it shows.
#[derive(Debug, PartialEq, Eq)]
pub struct Shown {
    /// The line it stands on, counted from 1.
    pub line: usize,
    /// What is typed.
    pub command: String,
    /// What is shown below it; empty if nothing is told.
    pub output: Vec<String>,
}

/// A step of a page.
#[derive(Debug)]
enum Step<'a> {
    Write { name: &'a str, text: &'a str },
    Run(Shown),
}

impl Page {
    /// Reads a page.
    pub fn parse(text: &str) -> Self {
        let mut page = Self {
            needs: Vec::new(),
            blocks: Vec::new(),
        };
        let mut open: Option<(String, Block)> = None;
        for (at, line) in text.lines().enumerate() {
            let trimmed = line.trim_start();
            match &mut open {
                Some((fence, block)) => match trimmed.trim_end() == *fence {
                    true => page.blocks.extend(open.take().map(|(_, block)| block)),
                    false => {
                        block.text.push_str(line);
                        block.text.push('\n');
                    }
                },
                None if trimmed.starts_with("```") => {
                    let info = trimmed.trim_start_matches('`');
                    let fence = "`".repeat(trimmed.len() - info.len());
                    let block = Block {
                        info: info.trim().to_owned(),
                        line: at + 1,
                        text: String::new(),
                    };
                    open = Some((fence, block));
                }
                None => page.needs.extend(needs_in(trimmed)),
            }
        }
        page
    }

    /// Returns whether any command of the page is run.
    pub fn is_run(&self) -> bool {
        self.blocks.iter().any(Block::is_console)
    }

    /// Returns the names of one kind of what the page needs.
    pub fn needed<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a str> {
        let of_kind = self.needs.iter().filter(move |(found, _)| found == kind);
        of_kind.map(|(_, name)| name.as_str())
    }

    fn steps(&self) -> Vec<Step<'_>> {
        let mut steps = Vec::new();
        for block in &self.blocks {
            if let Some(name) = block.title() {
                let text = &block.text;
                steps.push(Step::Write { name, text });
            } else if block.is_console() {
                steps.extend(block.shown().into_iter().map(Step::Run));
            }
        }
        steps
    }

    /// Does what the page says, in an environment, and returns what was otherwise; empty is good.
    ///
    /// # Panics
    ///
    /// When the shell cannot be started or the scratch folder not be written.
    pub fn run(&self, environment: &Environment) -> Vec<String> {
        let folder = environment.folder.path().join("page");
        fs::create_dir(&folder).expect("a folder can be made");
        let mut start = environment.work();
        for name in self.needed("example") {
            start = environment.example(name);
        }
        let steps = self.steps();
        let script = script(&steps, &folder);
        fs::write(folder.join("script"), script).expect("a script can be written");
        let mut shell = environment.program("bash");
        shell.arg(folder.join("script")).current_dir(start);
        shell.stdout(Stdio::null()).stderr(Stdio::null());
        shell.status().expect("bash can be started");
        let mut wrong = Vec::new();
        for (number, step) in steps.iter().enumerate() {
            let Step::Run(shown) = step else { continue };
            let read = |kind: &str| fs::read(folder.join(format!("{kind}{number}")));
            let Ok(status) = read("status") else {
                wrong.push(format!(
                    "line {}: $ {}\nwas not run",
                    shown.line, shown.command
                ));
                break;
            };
            let status = String::from_utf8_lossy(&status).trim().to_owned();
            let told = read("told").unwrap_or_default();
            let told = String::from_utf8_lossy(&told).replace("\r\n", "\n");
            let may_fail = next_asks(&steps[number + 1..]);
            let lines: Vec<&str> = told.lines().collect();
            let expected: Vec<&str> = shown.output.iter().map(String::as_str).collect();
            let is_as_told = expected.is_empty() || lines_match(&expected, &lines);
            if !is_as_told || (status != "0" && !may_fail) {
                wrong.push(format!(
                    "line {}: $ {}\n--- the page\n{}\n--- in truth, exit code {status}\n{told}",
                    shown.line,
                    shown.command,
                    expected.join("\n"),
                ));
            }
        }
        wrong
    }
}

impl Block {
    fn is_console(&self) -> bool {
        self.info == "console"
    }

    fn title(&self) -> Option<&str> {
        let words = self.info.split_whitespace();
        words.filter_map(|word| word.strip_prefix("title=")).next()
    }

    /// Returns the commands of a console block.
    pub fn shown(&self) -> Vec<Shown> {
        let mut all: Vec<Shown> = Vec::new();
        let mut is_typing = false;
        for (at, line) in self.text.lines().enumerate() {
            if let Some(command) = line.strip_prefix("$ ") {
                all.push(Shown {
                    line: self.line + 1 + at,
                    command: command.to_owned(),
                    output: Vec::new(),
                });
                is_typing = true;
            } else if let Some(shown) = all.last_mut() {
                match line.strip_prefix("> ").filter(|_| is_typing) {
                    Some(more) => {
                        shown.command.push('\n');
                        shown.command.push_str(more);
                    }
                    None => {
                        is_typing = false;
                        shown.output.push(line.to_owned());
                    }
                }
            }
        }
        for shown in &mut all {
            while shown
                .output
                .last()
                .is_some_and(|line| line.trim().is_empty())
            {
                shown.output.pop();
            }
        }
        all
    }
}

/// Returns the commands of a text: the words of each, as far as a shell would not change them.
///
/// What stands between `program` and the end of its command is read wherever it begins, be it behind a prompt, in
/// a script or in a file of a CI system. Variables stay as they are written.
pub fn commands_of(program: &str, text: &str) -> Vec<Vec<String>> {
    let joined = text.replace("\\\n", " ");
    let mut found = Vec::new();
    for line in joined.lines() {
        if let Some(words) = array_of(program, line) {
            found.push(words);
            continue;
        }
        let mut commands = split_commands(line.trim_start());
        for words in &mut commands {
            let begins = words.iter().position(|word| word == program);
            let leads = |words: &[String]| {
                words.iter().all(|word| {
                    ["$", "-", "run:", "time", "exec", "sudo", "!"].contains(&word.as_str())
                        || word.contains('=')
                })
            };
            if let Some(at) = begins.filter(|at| leads(&words[..*at])) {
                found.push(words.split_off(at));
            }
        }
    }
    found
}

/// Returns the words of a command that is written as an array: `["lapstrake", "build"]`.
fn array_of(program: &str, line: &str) -> Option<Vec<String>> {
    let (_, rest) = line.split_once('[')?;
    let (inner, _) = rest.rsplit_once(']')?;
    let words = inner.split(',').map(|word| word.trim());
    let words: Option<Vec<String>> = words
        .map(|word| Some(word.strip_prefix('"')?.strip_suffix('"')?.to_owned()))
        .collect();
    words.filter(|words| words[0] == program)
}

/// Splits a line into commands at what separates them, and each into words.
fn split_commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut is_target = false;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(open), close) if open == close => quote = None,
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (Some('"') | None, '$') if characters.peek() == Some(&'(') => {
                // A command inside of another one: its words are of no interest, its end is.
                let inside = characters.by_ref().skip(1);
                let inside: String = inside.take_while(|c| *c != ')').collect();
                word.get_or_insert_default().push_str(&inside);
            }
            (Some(_), character) => word.get_or_insert_default().push(character),
            (None, '#') if word.is_none() => break,
            (None, ' ' | '|' | '&' | ';' | '>' | '<' | ')' | '(') => {
                let last = commands.last_mut().expect("there is one command");
                match word.take() {
                    Some(number) if character == '>' && number.parse::<u8>().is_ok() => {}
                    Some(_) if is_target => is_target = false,
                    Some(word) => last.push(word),
                    None => {}
                }
                match character {
                    ' ' => {}
                    '>' | '<' => {
                        is_target = true;
                        if characters.peek() == Some(&'&') {
                            characters.next();
                        }
                    }
                    _ => commands.push(Vec::new()),
                }
            }
            (None, character) => word.get_or_insert_default().push(character),
        }
    }
    if let Some(word) = word.filter(|_| !is_target) {
        commands
            .last_mut()
            .expect("there is one command")
            .push(word);
    }
    commands.retain(|words| !words.is_empty());
    commands
}

fn needs_in(line: &str) -> Vec<(String, String)> {
    let comment = line.strip_prefix("<!-- test:");
    let Some(list) = comment.and_then(|rest| rest.split_once("-->")) else {
        return Vec::new();
    };
    let pairs = list.0.split(',').filter_map(|need| {
        let (kind, name) = need.trim().split_once(' ')?;
        Some((kind.to_owned(), name.trim().to_owned()))
    });
    pairs.collect()
}

/// Returns whether the step that comes next asks how the last one ended.
fn next_asks(following: &[Step<'_>]) -> bool {
    match following.first() {
        Some(Step::Run(shown)) => shown.command == "echo $?",
        _ => false,
    }
}

/// Returns a script that does all steps in one shell, and ends at the first that fails.
fn script(steps: &[Step<'_>], folder: &Path) -> String {
    let folder_text = folder.display();
    let mut text = String::from("last=0\n");
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Write {
                name,
                text: content,
            } => {
                let file = folder.join(format!("file{number}"));
                fs::write(&file, content).expect("a file can be written");
                let _ = writeln!(
                    text,
                    "mkdir -p \"$(dirname '{name}')\" && cp '{}' '{name}'",
                    file.display()
                );
            }
            Step::Run(shown) => {
                let end = match next_asks(&steps[number + 1..]) {
                    true => "",
                    false => "[ $last = 0 ] || exit 1\n",
                };
                let _ = write!(
                    text,
                    "exec >'{folder_text}/told{number}' 2>&1\n(exit $last)\n{}\nlast=$?\n\
                     echo $last >'{folder_text}/status{number}'\n{end}",
                    shown.command
                );
            }
        }
    }
    // What was left in the background ends with the page.
    text.push_str("jobs=$(jobs -p)\n[ -z \"$jobs\" ] || kill $jobs\n");
    text
}

/// Returns whether lines are as a page shows them.
fn lines_match(expected: &[&str], actual: &[&str]) -> bool {
    match expected.split_first() {
        None => actual.iter().all(|line| line.trim().is_empty()),
        Some((first, rest)) if first.trim() == ANY => {
            (0..=actual.len()).any(|skipped| lines_match(rest, &actual[skipped..]))
        }
        Some((first, rest)) => match actual.split_first() {
            Some((line, others)) => line_matches(first, line) && lines_match(rest, others),
            None => false,
        },
    }
}

fn line_matches(expected: &str, actual: &str) -> bool {
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (expected, actual) = (squeeze(expected), squeeze(actual));
    let mut parts = expected.split(ANY);
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = actual.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(lines: &[&str]) -> Page {
        Page::parse(&lines.join("\n"))
    }

    #[test]
    fn a_page_is_done_in_one_shell() {
        let page = page(&[
            "<!-- test: program sh -->",
            "```text title=folder/note",
            "hello",
            "```",
            "Words.",
            "```console",
            "$ cd folder",
            "$ cat note",
            "hello",
            "$ greeting=good && false",
            "$ echo $?",
            "1",
            "$ printf 'one\\ntwo 2\\nthree\\n' \\",
            "> | cat",
            "one",
            "two …",
            "…",
            "$ echo $greeting  day >&2",
            "good day",
            "```",
        ]);
        assert_eq!(page.needed("program").collect::<Vec<_>>(), ["sh"]);
        assert_eq!(
            page.run(&Environment::new("/bin/true")),
            Vec::<String>::new()
        );
    }

    #[test]
    fn what_is_otherwise_is_said() {
        let check = |lines: &[&str], expected: usize| {
            let wrong = page(lines).run(&Environment::new("/bin/true"));
            assert_eq!(wrong.len(), expected, "{lines:?}: {wrong:?}");
        };
        check(&["```console", "$ echo a", "b", "```"], 1);
        check(&["```console", "$ echo a", "a", "b", "```"], 1);
        check(&["```console", "$ printf 'a\\nb\\n'", "a", "```"], 1);
        check(&["```console", "$ false", "```"], 1);
        check(&["```console", "$ false", "$ true", "```"], 2);
        check(&["```console", "$ exit 0", "$ true", "```"], 1);
        check(&["```console", "$ echo axb", "a…c", "```"], 1);
        check(&["```console", "$ echo axb", "a…b", "```"], 0);
    }

    #[test]
    fn commands_are_found_where_they_stand() {
        let check = |text: &str, expected: &[&[&str]]| {
            assert_eq!(commands_of("lapstrake", text), expected, "{text}");
        };
        check(
            "$ lapstrake build -t 'a b' .",
            &[&["lapstrake", "build", "-t", "a b", "."]],
        );
        check("A=1 lapstrake images | wc -l", &[&["lapstrake", "images"]]);
        check(
            "lapstrake save app > app.tar && lapstrake load < app.tar",
            &[&["lapstrake", "save", "app"], &["lapstrake", "load"]],
        );
        check("lapstrake ps 2>/dev/null  # all", &[&["lapstrake", "ps"]]);
        check(
            "    - run: lapstrake build \\\n        .",
            &[&["lapstrake", "build", "."]],
        );
        check(
            "command: [\"lapstrake\", \"info\"]",
            &[&["lapstrake", "info"]],
        );
        check(
            "lapstrake rm $(lapstrake ps -q)",
            &[&["lapstrake", "rm", "lapstrake ps -q"]],
        );
        check("curl https://x/lapstrake", &[]);
        check("cp target/lapstrake /usr/bin", &[]);
    }
}
