//! Reads the command line; says of a wrong one what may be meant.

use std::ffi::OsString;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command, Error, FromArgMatches};

use crate::arguments::Arguments;
use crate::examples;

/// Reads what was typed.
pub(crate) fn read(words: Vec<OsString>) -> Result<Arguments, Error> {
    let mut command = examples::without_examples();
    let matches = match command.try_get_matches_from_mut(&words) {
        // To put the examples in their places takes longer than to read what was typed.
        Err(error) if shows_help(&error) => {
            command = examples::command();
            command.try_get_matches_from_mut(&words)
        }
        // Docker's switches may be told yes or no: --no-cache=false. The help does not show it, as Docker's does not.
        Err(error) if error.kind() == ErrorKind::TooManyValues => {
            let mut command = with_values(examples::command());
            command
                .try_get_matches_from_mut(&words)
                .map_err(|second| match second.kind() {
                    ErrorKind::TooManyValues => error,
                    _ => second,
                })
        }
        other => other,
    };
    let matches = matches.map_err(|error| advise(error, &mut command, &words))?;
    Arguments::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

fn shows_help(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    )
}

/// Has switches take `=true` and `=false` too.
fn with_values(command: Command) -> Command {
    let command = command.mut_args(|argument| match is_switch(&argument) {
        true => argument
            .action(ArgAction::Set)
            .value_parser(boolean)
            .num_args(0..=1)
            .require_equals(true)
            .default_value("false")
            .default_missing_value("true"),
        false => argument,
    });
    let names: Vec<String> = command
        .get_subcommands()
        .map(|found| found.get_name().to_owned())
        .collect();
    names.into_iter().fold(command, |command, name| {
        command.mut_subcommand(name, with_values)
    })
}

fn is_switch(argument: &Arg) -> bool {
    matches!(argument.get_action(), ArgAction::SetTrue)
        && argument.get_long().is_some()
        && argument.get_env().is_none()
}

/// Reads yes and no as Go's `strconv.ParseBool` does.
fn boolean(text: &str) -> Result<bool, &'static str> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("say true or false"),
    }
}

/// What `docker run` knows, and this program does not.
const DOCKERS_OPTIONS: [&str; 30] = [
    "--cap-add",
    "--cap-drop",
    "--cpus",
    "--cpu-shares",
    "--cpuset-cpus",
    "--device",
    "--dns",
    "--expose",
    "--gpus",
    "--group-add",
    "--health-cmd",
    "--ip",
    "--ipc",
    "--isolation",
    "--link",
    "--log-driver",
    "--log-opt",
    "--memory",
    "--memory-swap",
    "--network-alias",
    "--oom-kill-disable",
    "--pid",
    "--pids-limit",
    "--restart",
    "--security-opt",
    "--stop-timeout",
    "--sysctl",
    "--ulimit",
    "--userns",
    "--volumes-from",
];

/// Adds to an error what a newcomer would ask next.
fn advise(mut error: Error, command: &mut Command, words: &[OsString]) -> Error {
    let text = |error: &Error, kind| match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        _ => Vec::new(),
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let typed = text(&error, ContextKind::InvalidSubcommand);
            let known = text(&error, ContextKind::SuggestedSubcommand);
            let Some(typed) = typed.first() else {
                return error;
            };
            if let Some(tip) = elsewhere(typed) {
                error.remove(ContextKind::SuggestedSubcommand);
                tell(&mut error, tip);
            } else if let Some(nearest) = nearest(typed, &known) {
                let nearest = ContextValue::String(nearest.to_owned());
                error.insert(ContextKind::SuggestedSubcommand, nearest);
            } else {
                error.remove(ContextKind::SuggestedSubcommand);
            }
        }
        ErrorKind::UnknownArgument => {
            let typed = text(&error, ContextKind::InvalidArg);
            let meant = meant(command, words);
            let options = meant.get_arguments().filter_map(Arg::get_long);
            let options: Vec<String> = options.map(|name| format!("--{name}")).collect();
            let typed = typed.first().filter(|typed| typed.starts_with("--"));
            if let Some(typed) = typed {
                // That it could be a value behind `--` is seldom meant.
                error.remove(ContextKind::Suggested);
                let usage = ContextValue::StyledStr(meant.render_usage());
                error.insert(ContextKind::Usage, usage);
                match nearest(typed, &options) {
                    Some(nearest) => {
                        let nearest = ContextValue::String(nearest.to_owned());
                        error.insert(ContextKind::SuggestedArg, nearest);
                    }
                    None => {
                        error.remove(ContextKind::SuggestedArg);
                        if DOCKERS_OPTIONS.contains(&typed.as_str()) {
                            tell(
                                &mut error,
                                "docker has this option; here containers are for trying out what was built, and have \
                                 it not",
                            );
                        }
                    }
                }
            }
        }
        // What there is to choose from is the answer.
        ErrorKind::MissingSubcommand => {
            let meant = meant(command, words);
            let help = meant.render_help().ansi().to_string();
            return meant.error(ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand, help);
        }
        ErrorKind::MissingRequiredArgument => {
            // Else it names the options that variables have set.
            let usage = ContextValue::StyledStr(meant(command, words).render_usage());
            error.insert(ContextKind::Usage, usage);
            let missing = text(&error, ContextKind::InvalidArg);
            if missing.iter().any(|name| name == "<PATH|URL|->") {
                tell(
                    &mut error,
                    "the last word is the context: the directory with the files to build from, most often a dot, as in \
                     `lapstrake build -t app .`",
                );
            }
        }
        _ => {}
    }
    error
}

/// Returns the command that the words begin with.
fn meant<'a>(command: &'a mut Command, words: &[OsString]) -> &'a mut Command {
    let mut found = command;
    for word in words.iter().filter_map(|word| word.to_str()) {
        if found.find_subcommand(word).is_some() {
            found = found.find_subcommand_mut(word).expect("it was found");
        }
    }
    found
}

fn tell(error: &mut Error, tip: &'static str) {
    let tip = ContextValue::StyledStrs(vec![StyledStr::from(tip)]);
    error.insert(ContextKind::Suggested, tip);
}

/// Returns where something is that Docker has under another name, or has and this program has not.
fn elsewhere(typed: &str) -> Option<&'static str> {
    Some(match typed {
        "prune" => "`lapstrake system prune` removes what nothing needs",
        "du" | "df" => "`lapstrake system df` shows what takes space",
        "ls" | "list" => {
            "`lapstrake images` lists images, `lapstrake ps` containers, `lapstrake history ls` builds"
        }
        "bake" => "`docker buildx bake` builds with this engine over `lapstrake serve`",
        "compose" | "swarm" | "stack" | "service" => {
            "lapstrake builds images and tries them out; it does not keep services running"
        }
        "network" | "volume" => {
            "containers have no named networks or volumes here; `run --volume DIR:DIR` shows a directory"
        }
        "attach" => {
            "`lapstrake logs -f` follows what a container prints, `lapstrake exec` runs a command in it"
        }
        "commit" => {
            "`lapstrake cp` takes files out of a container; `lapstrake import --change` makes an image of a tar"
        }
        "create" | "use" | "inspect" | "rm" => {
            "there is one builder, always there: `lapstrake info` shows it, `lapstrake builder prune` empties it"
        }
        "context" => {
            "there is no daemon to choose: everything is done here, in the folder that --root names"
        }
        "imagetools" | "manifest" => {
            "`lapstrake image inspect` shows what an image is made of, `lapstrake image tree` its layers"
        }
        "restart" => "`lapstrake stop` ends a container, `lapstrake start` starts it again",
        "stats" | "top" | "events" | "pause" | "unpause" | "update" => {
            "containers are for trying out what was built: `lapstrake ps` lists them, `lapstrake logs -f` follows one"
        }
        "diff" => {
            "`lapstrake cp NAME:/ -` shows a container's files, `lapstrake history diff` compares builds"
        }
        "search" | "scout" | "trust" | "plugin" => {
            "this is no matter of building images, so lapstrake leaves it to other tools"
        }
        "buildx" => "`lapstrake build` takes the options of `docker buildx build`",
        _ => return None,
    })
}

/// Returns the word that is most like what was typed: whole words count, not how they begin.
fn nearest<'a>(typed: &str, known: &'a [String]) -> Option<&'a str> {
    let longer = known
        .iter()
        .map(String::as_str)
        .filter(|name| name.len() > 1);
    let mut letters: Vec<char> = typed.chars().collect();
    letters.sort_unstable();
    let same_letters = longer.clone().find(|name| {
        let mut other: Vec<char> = name.chars().collect();
        other.sort_unstable();
        other == letters
    });
    same_letters.or_else(|| dockerfile::nearest(typed, longer.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(words: &str) -> String {
        let words = words.split_whitespace().map(OsString::from).collect();
        match read(words) {
            Ok(read) => panic!("read as {read:?}"),
            Err(error) => error.render().to_string(),
        }
    }

    #[test]
    fn one_command_is_suggested() {
        let told = refused("lapstrake biuld .");
        assert!(
            told.contains("a similar subcommand exists: 'build'"),
            "{told}"
        );
        let told = refused("lapstrake prune");
        assert!(told.contains("`lapstrake system prune`"), "{told}");
        assert!(!told.contains("similar"), "{told}");
    }

    #[test]
    fn what_docker_has_and_this_has_not_is_told() {
        for (words, told) in [
            ("docker restart x", "`lapstrake stop`"),
            ("docker stats", "`lapstrake ps`"),
            ("docker context ls", "no daemon to choose"),
            ("docker buildx create --use", "one builder, always there"),
            ("docker scout quickview", "other tools"),
            ("docker run --gpus all x", "docker has this option"),
            ("docker run --memory=1g x", "docker has this option"),
        ] {
            let found = refused(words);
            assert!(found.contains(told), "{found}");
            assert!(!found.contains("similar"), "{found}");
        }
    }

    #[test]
    fn without_a_command_the_commands_are_shown() {
        for (words, command) in [("lapstrake", "images"), ("lapstrake image", "prune")] {
            let found = refused(words);
            assert!(
                found.contains("Usage:") && found.contains(command),
                "{found}"
            );
            assert!(!found.contains("error:"), "{found}");
        }
    }

    #[test]
    fn only_what_is_near_is_suggested() {
        let found = refused("lapstrake build --tagg=x .");
        assert!(
            found.contains("a similar argument exists: '--tag'"),
            "{found}"
        );
        for words in ["lapstrake build --colour .", "lapstrake zzz"] {
            let found = refused(words);
            assert!(
                !found.contains("similar") && !found.contains("tip"),
                "{found}"
            );
        }
    }

    #[test]
    fn a_context_that_is_left_out_is_explained() {
        let told = refused("lapstrake build -t app");
        assert!(told.contains("most often a dot"), "{told}");
    }

    #[test]
    fn the_last_one_of_an_option_counts() {
        let words = "lapstrake build --progress=plain -t a --target=x --progress=quiet -t b --target=y --no-cache --no-cache .";
        let words = words.split_whitespace().map(OsString::from).collect();
        match read(words).unwrap().command {
            crate::arguments::Command::Build(build) => {
                assert_eq!(build.progress, crate::arguments::ProgressMode::Quiet);
                assert_eq!(build.target.as_deref(), Some("y"));
                assert_eq!(build.tags, ["a", "b"]);
            }
            other => panic!("read as {other:?}"),
        }
    }

    #[test]
    fn switches_take_yes_and_no() {
        let check = |words: &str, expected: bool| {
            let words = words.split_whitespace().map(OsString::from).collect();
            match read(words).unwrap().command {
                crate::arguments::Command::Build(build) => {
                    assert_eq!(build.no_cache, expected);
                    assert_eq!(build.tags, ["app"]);
                }
                other => panic!("read as {other:?}"),
            }
        };
        check("lapstrake build --no-cache -t app .", true);
        check("lapstrake build --no-cache=true -t app .", true);
        check(
            "lapstrake build --no-cache=false --force-rm=true -t app .",
            false,
        );
        check("lapstrake build --no-cache=1 -t app .", true);
        let told = refused("lapstrake build --no-cache=maybe .");
        assert!(told.contains("say true or false"), "{told}");
        let told = refused("lapstrake build --tag=a=b=c --target=x=y");
        assert!(told.contains("required"), "{told}");
    }

    #[test]
    fn words_of_a_container_stay_its_own() {
        let words = [
            "lapstrake",
            "run",
            "--rm=true",
            "-it",
            "app",
            "tool",
            "--rm=false",
        ];
        let words = words.map(OsString::from).to_vec();
        match read(words).unwrap().command {
            crate::arguments::Command::Run(run) => {
                let told = format!("{run:?}");
                assert!(told.contains("\"--rm=false\""), "{told}");
            }
            other => panic!("read as {other:?}"),
        }
    }
}
