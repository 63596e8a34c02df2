//! What to do about a process that failed, as far as its end tells.

use sandbox::{Exit, Status};

const SIGKILL: i32 = 9;

/// Returns what to do; `absent_secrets` are those the step could have had.
pub(super) fn of_exit(args: &[String], exit: &Exit, absent_secrets: &[String]) -> Option<String> {
    let is_shell = args.len() > 2 && args[1].ends_with('c') && args[1].starts_with(['-', '/']);
    let by_end = match &exit.status {
        _ if exit.out_of_memory => Some(of_memory()),
        // A shell passes on how its command ended.
        Status::Signal(SIGKILL) | Status::Code(137) => Some(of_memory()),
        Status::NotStarted { code: 127, .. } if is_shell => Some(format!(
            "the image has no {}: name another with SHELL, begin the stage with an image that has one, or write the \
             command as a list, which needs no shell: RUN [\"program\", \"argument\"]",
            args[0]
        )),
        Status::NotStarted { code: 127, .. } => of_list(args),
        Status::NotStarted { code: 126, .. } => Some(of_mode()),
        Status::Code(127) if is_shell => Some(
            "the shell did not find a command, or what runs a script: is it installed in this stage, and do the lines \
             of the script end as Unix has it (LF, not CRLF)?"
                .to_owned(),
        ),
        Status::Code(126) if is_shell => Some(of_mode()),
        Status::Code(_) | Status::Signal(_) | Status::NotStarted { .. } => None,
    };
    by_end.or_else(|| of_secrets(absent_secrets))
}

fn of_memory() -> String {
    "most often that is for want of memory: let fewer steps run at once (--jobs), or give it more (--memory, or the \
     limit of the machine or container that builds)"
        .to_owned()
}

fn of_mode() -> String {
    "the file may not be executed: COPY --chmod=755 it, or RUN chmod +x before".to_owned()
}

/// A whole command line in one word is the usual mistake.
fn of_list(args: &[String]) -> Option<String> {
    let [only] = args else { return None };
    if !only.contains(' ') {
        return None;
    }
    let words: Vec<String> = only
        .split_whitespace()
        .map(|word| format!("{word:?}"))
        .collect();
    Some(format!(
        "the first word of the list is the program: write RUN [{}], or RUN {only} for a shell to read",
        words.join(", ")
    ))
}

fn of_secrets(absent: &[String]) -> Option<String> {
    let first = absent.first()?;
    Some(format!(
        "the build was not given the secret {first} that the step may have: --secret id={first},src=FILE"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(args: &[&str], status: Status, absent: &[&str], expect: Option<&str>) {
        let args: Vec<String> = args.iter().map(|word| (*word).to_owned()).collect();
        let absent: Vec<String> = absent.iter().map(|word| (*word).to_owned()).collect();
        let exit = Exit {
            status,
            out_of_memory: false,
            usage: Default::default(),
        };
        let found = of_exit(&args, &exit, &absent);
        match expect {
            None => assert_eq!(found, None),
            Some(part) => assert!(
                found.as_ref().is_some_and(|told| told.contains(part)),
                "{found:?}"
            ),
        }
    }

    fn not_started(code: i32) -> Status {
        Status::NotStarted {
            code,
            reason: "x".to_owned(),
        }
    }

    #[test]
    fn ends_that_tell_something_are_explained() {
        const SHELL: [&str; 3] = ["/bin/sh", "-c", "make"];
        check(&SHELL, Status::Code(1), &[], None);
        check(
            &SHELL,
            Status::Code(127),
            &[],
            Some("did not find a command"),
        );
        check(&["make"], Status::Code(127), &[], None);
        check(&SHELL, Status::Code(126), &[], Some("--chmod=755"));
        check(&SHELL, Status::Code(137), &[], Some("want of memory"));
        check(&SHELL, Status::Signal(9), &[], Some("want of memory"));
        check(&SHELL, Status::Signal(11), &[], None);
        check(
            &SHELL,
            not_started(127),
            &[],
            Some("the image has no /bin/sh"),
        );
        check(
            &["/bin/bash", "-euxc", "x"],
            not_started(127),
            &[],
            Some("no /bin/bash"),
        );
        check(&["make"], not_started(127), &[], None);
        check(
            &["echo  hello"],
            not_started(127),
            &[],
            Some(r#"RUN ["echo", "hello"], or RUN echo  hello for"#),
        );
        check(&["/x"], not_started(126), &[], Some("--chmod=755"));
    }

    #[test]
    fn a_secret_that_was_not_given_is_named() {
        const SHELL: [&str; 3] = ["/bin/sh", "-c", "cat /run/secrets/token"];
        check(
            &SHELL,
            Status::Code(1),
            &["token"],
            Some("--secret id=token,src=FILE"),
        );
        check(&SHELL, Status::Code(1), &[], None);
    }
}
