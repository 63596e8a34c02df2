//! Records of builds in words: durations, reasons, differences.

use engine::history::{Change, Explanation, FileChanges, Reason, Root, StepOutcome};

/// How many files of a change are named.
const MOST_FILES: usize = 8;
/// The longest value that is shown whole.
const LONGEST: usize = 60;

/// Writes a duration as buildx does: `8.1s`, `2m  5s`.
pub(crate) fn duration(nanoseconds: u64) -> String {
    let seconds = nanoseconds as f64 / 1e9;
    match seconds {
        ..60.0 => format!("{seconds:.1}s"),
        _ => format!("{}m {:2}s", seconds as u64 / 60, seconds as u64 % 60),
    }
}

/// Writes how a step ended.
pub(crate) fn outcome(outcome: StepOutcome) -> &'static str {
    match outcome {
        StepOutcome::Ran => "ran",
        StepOutcome::Cached => "cached",
        StepOutcome::Failed => "failed",
        StepOutcome::Canceled => "canceled",
        StepOutcome::Skipped => "not run",
    }
}

/// Explains a step in lines, each with its indentation but for the first.
pub(crate) fn explanation(explanation: &Explanation) -> String {
    let step = short_name(&explanation.step);
    let mut text = format!("{step}: {}\n", outcome(explanation.outcome));
    for line in reasons(explanation) {
        text.push_str(&format!("  {line}\n"));
    }
    text
}

/// Returns the lines of all reasons.
pub(crate) fn reasons(explanation: &Explanation) -> Vec<String> {
    explanation.reasons.iter().flat_map(reason).collect()
}

fn reason(reason: &Reason) -> Vec<String> {
    let line = |text: &str| vec![text.to_owned()];
    match reason {
        Reason::Cached => line("its result was there: nothing it is made of has changed"),
        Reason::Covered => line("it was not needed: what builds on it was there"),
        Reason::Imported { cache } => vec![format!("its result came from the cache {cache}")],
        Reason::NotInCache { cache } => vec![format!("the cache {cache} has no result for it")],
        Reason::UnreadableCache { cache, error } => {
            vec![format!("the cache {cache} was not used: {error}")]
        }
        Reason::Skipped => line("it was never come to"),
        Reason::NoCache => line("recorded results were not to be used (--no-cache)"),
        Reason::Evicted { at, rule } => {
            let date = crate::output::date(*at);
            vec![format!(
                "its result was removed at {date} by the rule {rule}"
            )]
        }
        Reason::Lost => line("its result is recorded, but the files of it are gone"),
        Reason::Changed(change) => change_lines(change),
        Reason::Input { step, roots } => input(step, roots),
        Reason::NeverFinished { build } => vec![format!(
            "nothing has changed since the build {build}, in which it did not finish"
        )],
        Reason::NeverBuilt => line("no earlier build has such a step"),
        Reason::NoResult => {
            line("nothing it is made of has changed, but there is no result of it in this store")
        }
    }
}

fn input(step: &str, roots: &[Root]) -> Vec<String> {
    let mut lines = Vec::new();
    for root in roots {
        let cause = short_name(&root.step);
        match &root.change {
            None if root.no_cache => {
                lines.push(format!(
                    "because of {cause}, which was made again without the cache"
                ));
            }
            None => lines.push(format!("because of {cause}, which is new")),
            Some(change) => {
                let mut changed = change_lines(change);
                match changed.len() {
                    1 => lines.push(format!("because of {cause}: {}", changed.remove(0))),
                    _ => {
                        lines.push(format!("because of {cause}:"));
                        lines.extend(changed.into_iter().map(|line| format!("  {line}")));
                    }
                }
            }
        }
    }
    if lines.is_empty() {
        lines.push(format!(
            "because of {}, which holds something else now",
            short_name(step)
        ));
    }
    lines
}

/// Describes one part that changed.
pub(crate) fn change_lines(change: &Change) -> Vec<String> {
    if let Some(path) = change.part.strip_prefix("files: ") {
        return file_lines(path, change.files.as_ref());
    }
    let part = match change.part.as_str() {
        "image" => "the base image",
        part => part,
    };
    match (&change.before, &change.after) {
        (Some(before), Some(after)) => {
            let (before, after) = (value(before), value(after));
            let short = before.len() + after.len() <= LONGEST;
            match short {
                true => vec![format!("{part} was {before}, is {after}")],
                false => vec![
                    format!("{part} has changed:"),
                    format!("  - {before}"),
                    format!("  + {after}"),
                ],
            }
        }
        (None, Some(after)) => vec![format!("{part} is new: {}", value(after))],
        (Some(before), None) => vec![format!("{part} is gone, it was {}", value(before))],
        (None, None) => vec![format!("{part} has changed")],
    }
}

fn file_lines(path: &str, changes: Option<&FileChanges>) -> Vec<String> {
    let Some(changes) = changes else {
        return vec![format!(
            "files of {path} have changed (which ones is not known)"
        )];
    };
    let mut lines: Vec<String> = Vec::new();
    let mut add = |path: &str, what: &str| lines.push(format!("{} {what}", one_line(path)));
    for path in &changes.changed {
        add(path, "has changed");
    }
    for path in &changes.added {
        add(path, "is new");
    }
    for path in &changes.removed {
        add(path, "is gone");
    }
    for (path, what) in &changes.attributes {
        add(path, &format!("({what})"));
    }
    match lines.len() {
        0 => vec![format!(
            "files of {path} have changed, beyond the first ten thousand"
        )],
        1 => vec![format!("file {}", lines.remove(0))],
        count => {
            let mut shown = vec![format!("{count} files of {path}:")];
            let rest = count.saturating_sub(MOST_FILES);
            lines.truncate(MOST_FILES);
            shown.extend(lines.into_iter().map(|line| format!("  {line}")));
            if rest > 0 {
                shown.push(format!("  and {rest} more"));
            }
            shown
        }
    }
}

fn value(text: &str) -> String {
    if text.starts_with("hidden:") {
        return "(hidden)".to_owned();
    }
    let line = one_line(text);
    match line.char_indices().nth(400) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// Returns a step's name on one line, its image's digest shortened.
pub(crate) fn short_name(name: &str) -> String {
    let name = one_line(name);
    let Some((head, rest)) = name.split_once("@sha256:") else {
        return name;
    };
    let digits = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
    match digits {
        64 => format!("{head}@sha256:{}{}", &rest[..12], &rest[64..]),
        _ => name,
    }
}

/// Returns a text on one line without what could steer a terminal.
pub(crate) fn one_line(text: &str) -> String {
    text.chars()
        .map(|character| match character {
            '\n' => '⏎',
            character if character.is_control() => ' ',
            character => character,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(part: &str, before: Option<&str>, after: Option<&str>) -> Change {
        Change {
            part: part.to_owned(),
            before: before.map(str::to_owned),
            after: after.map(str::to_owned),
            files: None,
        }
    }

    fn check(reasons: Vec<Reason>, expected: &str) {
        let found = explanation(&Explanation {
            step: "[a 2/2] RUN make".to_owned(),
            outcome: StepOutcome::Ran,
            reasons,
            compared_with: None,
        });
        assert_eq!(found, format!("[a 2/2] RUN make: ran\n{expected}"));
    }

    #[test]
    fn values_are_shown_as_they_were_and_are() {
        check(
            vec![Reason::Changed(change("ARG V", Some("1"), Some("2")))],
            "  ARG V was 1, is 2\n",
        );
        check(
            vec![Reason::Changed(change(
                "ARG TOKEN",
                Some("hidden:1"),
                Some("hidden:2"),
            ))],
            "  ARG TOKEN was (hidden), is (hidden)\n",
        );
        let long = "x".repeat(50);
        check(
            vec![Reason::Changed(change(
                "command",
                Some(&long),
                Some("a\nb\x1b[31m"),
            ))],
            "  command was xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx, is a⏎b [31m\n",
        );
        let long = "x".repeat(61);
        check(
            vec![Reason::Changed(change("command", Some(&long), Some("y")))],
            &format!("  command has changed:\n    - {long}\n    + y\n"),
        );
        check(
            vec![Reason::Changed(change("user", None, Some("me")))],
            "  user is new: me\n",
        );
    }

    #[test]
    fn what_follows_from_below_names_the_cause() {
        let root = |step: &str, change| Root {
            step: step.to_owned(),
            change,
            no_cache: false,
        };
        let image = change("image", Some("sha256:1"), Some("sha256:2"));
        check(
            vec![Reason::Input {
                step: "[b 2/2] RUN y".to_owned(),
                roots: vec![root("[a 1/2] FROM x", Some(image))],
            }],
            "  because of [a 1/2] FROM x: the base image was sha256:1, is sha256:2\n",
        );
        check(
            vec![Reason::Input {
                step: "[b 2/2] RUN y".to_owned(),
                roots: vec![root("[b 2/2] RUN y", None)],
            }],
            "  because of [b 2/2] RUN y, which is new\n",
        );
    }

    #[test]
    fn digests_in_names_are_shortened() {
        let digest = "ab".repeat(32);
        assert_eq!(
            short_name(&format!("FROM x@sha256:{digest} AS y")),
            "FROM x@sha256:abababababab AS y"
        );
        assert_eq!(short_name("FROM x@sha256:ab"), "FROM x@sha256:ab");
    }

    #[test]
    fn files_are_named_but_not_all_of_thousands() {
        let mut change = change("files: /src", Some("1"), Some("2"));
        change.files = Some(FileChanges {
            changed: vec!["src/a".to_owned()],
            ..FileChanges::default()
        });
        check(
            vec![Reason::Changed(change.clone())],
            "  file src/a has changed\n",
        );
        change.files = Some(FileChanges {
            added: (0..20).map(|number| format!("src/{number:02}")).collect(),
            attributes: vec![("src/b".to_owned(), "mode 0644 became 0755".to_owned())],
            ..FileChanges::default()
        });
        let text = change_lines(&change).join("\n");
        assert!(
            text.starts_with("21 files of /src:\n  src/00 is new\n"),
            "{text}"
        );
        assert!(text.ends_with("  and 13 more"), "{text}");
    }

    #[test]
    fn durations_read_as_in_buildx() {
        assert_eq!(duration(50_000_000), "0.1s");
        assert_eq!(duration(8_140_000_000), "8.1s");
        assert_eq!(duration(125_000_000_000), "2m  5s");
    }
}
