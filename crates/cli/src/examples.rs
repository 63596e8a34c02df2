//! What the help of each command shows as examples.
//!
//! Commands whose help has more to say have their examples beside their arguments.

use clap::{Command, CommandFactory};

use crate::arguments::Arguments;

/// Returns the whole command line, with the examples in its help.
pub(crate) fn command() -> Command {
    with_examples(without_examples(), "")
}

/// Returns the whole command line.
pub(crate) fn without_examples() -> Command {
    // Of an option that is given twice the last one counts, as docker has it.
    Arguments::command().args_override_self(true)
}

fn with_examples(mut command: Command, path: &str) -> Command {
    let names: Vec<String> = command
        .get_subcommands()
        .map(|found| found.get_name().to_owned())
        .collect();
    for name in names {
        let path = format!("{path} {name}");
        command = command.mut_subcommand(name, |found| with_examples(found, path.trim_start()));
    }
    let told = command
        .get_after_help()
        .map(ToString::to_string)
        .unwrap_or_default();
    match of(path) {
        Some(lines) if !told.contains("Examples:\n") => {
            let lines: String = lines.lines().map(|line| format!("\n  {line}")).collect();
            let gap = if told.is_empty() { "" } else { "\n\n" };
            command.after_help(format!("{told}{gap}Examples:{lines}"))
        }
        _ => command,
    }
}

/// Returns the examples of a command, a line each.
fn of(path: &str) -> Option<&'static str> {
    let path = path
        .strip_prefix("image ")
        .or_else(|| path.strip_prefix("container "))
        .filter(|name| !["ls", "rm", "prune"].contains(name))
        .unwrap_or(path);
    Some(match path {
        "build" | "builder build" => {
            "lapstrake build -t app .                           build the Dockerfile here and name the image
lapstrake build -f dev.Dockerfile --target test .  another file, one stage of it
lapstrake build -o out .                           take the files instead of the image
lapstrake build -t host:5000/app --push .          send the image to its registry
lapstrake build --build-arg VERSION=2 .            set an argument
lapstrake build --secret id=token,src=token .      a file that RUN --mount=type=secret sees
git archive HEAD | lapstrake build -t app -        a context on standard input"
        }
        "run" => {
            "lapstrake run --rm app                       run what the image is for
lapstrake run --rm -it alpine sh             a shell in an image
lapstrake run --rm -v $PWD:/src app ls /src  see a folder of this machine
lapstrake run --rm -p 8080:80 app            reach its port 80 at localhost:8080
lapstrake run -d --name web app              in the background, under a name"
        }
        "create" => "lapstrake create --name box app    make a container; start, cp and rm take its name",
        "start" => {
            "lapstrake start box       start it in the background
lapstrake start -a box    and show what it prints"
        }
        "stop" => "lapstrake stop -t 2 box    ask it to end, kill it after two seconds",
        "kill" => "lapstrake kill -s HUP box    send SIGHUP",
        "exec" => {
            "lapstrake exec box ls /             run a command in a container that runs
lapstrake exec -it box sh           a shell in it"
        }
        "logs" => {
            "lapstrake logs box                  all it has printed
lapstrake logs -f --tail 10 box     the last lines, and what comes"
        }
        "wait" => "lapstrake wait box    wait until it ends, print its exit code",
        "cp" => {
            "lapstrake cp box:/app/out.txt .     out of a container
lapstrake cp conf box:/etc/         into it
lapstrake cp box:/app - | tar t     as a tar"
        }
        "ps" | "container ls" => {
            "lapstrake ps -a                                  all containers
lapstrake ps -q --filter status=exited           ids of those that ended
lapstrake ps --format '{{.Names}} {{.Status}}'   other columns"
        }
        "rm" | "container rm" => {
            "lapstrake rm box        remove a container that ended
lapstrake rm -f box     and one that runs"
        }
        "port" => {
            "lapstrake port box         all published ports
lapstrake port box 80      where one of them is reached"
        }
        "export" => {
            "lapstrake export -o files.tar box     all files of a container
lapstrake export box | tar t          their names"
        }
        "rename" => "lapstrake rename box crate    the container box is called crate now",
        "container prune" => "lapstrake container prune -f    remove all that ended, without a question",
        "images" | "image ls" => {
            "lapstrake images                                 all images
lapstrake images app                             those of one name
lapstrake images --filter dangling=true -q       ids of those without a name
lapstrake images --format '{{.ID}} {{.Size}}'    other columns
lapstrake images --format json                   an object a line"
        }
        "rmi" | "image rm" => {
            "lapstrake rmi app:old       remove a name, and the image with its last name
lapstrake rmi -f 1a2b3c     remove an image with all its names"
        }
        "prune" | "image prune" => {
            "lapstrake image prune -f                            remove images without a name, without a question
lapstrake image prune -af --filter until=168h       and all others older than a week that no container needs"
        }
        "tag" => "lapstrake tag app registry.example/team/app:1.0    give an image the name it is pushed under",
        "inspect" => {
            "lapstrake inspect app                                 all that is known, as JSON
lapstrake inspect --format '{{.Config.Entrypoint}}' app   one part of it
lapstrake inspect --type container box                a container, whatever images there are"
        }
        "save" => {
            "lapstrake save -o app.tar app            an archive that docker load takes
lapstrake save app | ssh host docker load    to another machine"
        }
        "load" => {
            "lapstrake load -i app.tar            images of an archive
docker save app | lapstrake load     from another program"
        }
        "import" => {
            "lapstrake import root.tar base                              an image of one layer
tar c -C root . | lapstrake import -c 'CMD [\"sh\"]' - base    from a pipe"
        }
        "pull" => {
            "lapstrake pull alpine                             from the registry of its name
lapstrake pull -a registry.example/team/app       all its tags
lapstrake pull --platform linux/arm64 alpine      for another machine"
        }
        "push" => "lapstrake push registry.example/team/app:1.0    to the registry of its name",
        "login" => {
            "lapstrake login registry.example                             asks for name and password
echo $TOKEN | lapstrake login -u ci --password-stdin ghcr.io   in a script"
        }
        "logout" => "lapstrake logout registry.example    forget the password",
        "registry serve" => {
            "lapstrake registry serve --listen 127.0.0.1:5000    then: docker pull 127.0.0.1:5000/app"
        }
        "system df" => {
            "lapstrake system df        what takes space
lapstrake system df -v     each image, container and result
lapstrake system df --format json"
        }
        "system prune" => {
            "lapstrake system prune -f                         what nothing needs, without a question
lapstrake system prune -af --filter until=168h    all that is a week old and unused"
        }
        "system check" => {
            "lapstrake system check              verify all digests and records
lapstrake system check --repair     and remove what is damaged"
        }
        "builder prune" => {
            "lapstrake builder prune -f                       results of builds that no image needs
lapstrake builder prune -af --filter until=24h   all that was not used for a day"
        }
        "cache mounts ls" => {
            "lapstrake cache mounts ls                   folders that RUN --mount=type=cache has kept
lapstrake cache mounts ls --format json"
        }
        "cache mounts export" => "lapstrake cache mounts export registry.example/app/mounts    for the next machine",
        "cache mounts import" => {
            "lapstrake cache mounts import --missing-ok registry.example/app/mounts    what another machine has kept"
        }
        "report" => "lapstrake report -o report.html    the last build as a page",
        "cache mounts rm" => "lapstrake cache mounts rm go-build    forget one, by its id",
        "history" => "lapstrake image history --no-trunc app    what each layer was made by",
        "history ls" | "builder history ls" => {
            "lapstrake history ls                        the builds, newest first
lapstrake history ls --format json          an object a line"
        }
        "history inspect" | "builder history inspect" => {
            "lapstrake history inspect        the last build
lapstrake history inspect ^1     the one before it"
        }
        "history logs" | "builder history logs" => {
            "lapstrake history logs       what all steps of the last build have printed"
        }
        "history rm" | "builder history rm" => "lapstrake history rm ^2    forget a build",
        "history export" | "builder history export" => {
            "lapstrake history export -o build.tar    the last build, with its logs"
        }
        "history import" | "builder history import" => "lapstrake history import -f build.tar",
        "history diff" | "builder history diff" => {
            "lapstrake history diff ^1 ^0    from the build before the last one to the last one"
        }
        "info" | "system info" => {
            "lapstrake info                                  where things are, how steps are isolated
lapstrake info --format '{{.Isolation}}'        one part of it"
        }
        "version" => "lapstrake version --format '{{.Client.Version}}'",
        "tree" => "lapstrake image tree app    each layer, what made it, what it carries for nothing",
        "diff" => "lapstrake image diff app:1 app:2    files and configuration that differ",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::command;

    fn check(command: &clap::Command, path: &str) {
        let visible: Vec<_> = command
            .get_subcommands()
            .filter(|found| !found.is_hide_set() && found.get_name() != "help")
            .collect();
        for found in &visible {
            check(found, &format!("{path} {}", found.get_name()));
        }
        if visible.is_empty() {
            let help = command.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            assert!(help.contains("Examples:\n"), "{path} shows no example");
        }
    }

    #[test]
    fn every_command_shows_examples() {
        check(&command(), "lapstrake");
    }

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }
}
