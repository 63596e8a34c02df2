//! The page about configuration: keys, files and variables.

use std::fmt::Write as _;

use crate::configuration::{KEYS, Key, Reader};

/// A file of the user's or the machine's, and what is taken from it.
type Row = (&'static str, &'static str);

/// Files that are read beside the configuration.
const FILES: &[Row] = &[
    (
        "`~/.docker/config.json`",
        "Logins (`auths`, `credsStore`, `credHelpers`), and `proxies.default` as build arguments. `lapstrake login` writes \
         here. `DOCKER_CONFIG` names another directory",
    ),
    (
        "`$REGISTRY_AUTH_FILE`",
        "Logins, before all others; where it is set, `lapstrake login` writes here",
    ),
    (
        "`$XDG_RUNTIME_DIR/containers/auth.json`, `~/.config/containers/auth.json`",
        "Logins of Podman, after Docker's",
    ),
    (
        "`~/.config/containers/registries.conf`, else `/etc/containers/registries.conf`",
        "`[[registry]]` with `prefix`, `location`, `insecure`, `blocked`, `mirror-by-digest-only` and `[[registry.mirror]]` \
         (`location`, `insecure`, `pull-from-mirror`): the first that is there. Short names and aliases are not followed: \
         a name without a registry is Docker Hub's",
    ),
    (
        "`/etc/containers/registries.conf.d`, `~/.config/containers/registries.conf.d`",
        "Drop-ins `*.conf` to it, later ones stronger",
    ),
    (
        "`~/.config/containers/certs.d`, `~/.config/docker/certs.d`, `/etc/containerd/certs.d`, `/etc/containers/certs.d`, \
         `/etc/docker/certs.d`",
        "For each registry a directory `HOST`, `HOST:PORT` or `HOST_PORT_`, or `_default`: `hosts.toml` as containerd has it \
         (`server`, `[host.\"URL\"]` with `capabilities`, `ca`, `client`, `skip_verify`, `header`, `override_path`), or \
         else certificates `*.crt`, `*.cert`, `*.key`. The first directory that knows the registry counts",
    ),
    (
        "`PATH/Dockerfile.dockerignore`, else `PATH/.dockerignore`",
        "What of a context is left out; the name goes with that of the Dockerfile",
    ),
    (
        "`/etc/subuid`, `/etc/subgid`",
        "Ids that an ordinary user may give to files: [Build without root](rootless.md)",
    ),
    (
        "`/etc/resolv.conf`, `/etc/hosts`",
        "Name servers of steps, and names of this machine for what the builder fetches",
    ),
];

/// Variables that belong to no option.
const VARIABLES: &[Row] = &[
    (
        "`LAPSTRAKE_LOG`",
        "What the program logs about itself: `debug`, or a level for a part, such as `engine=debug`",
    ),
    (
        "`LAPSTRAKE_ROOTLESS`",
        "If set, root's state directory is in root's home, as that of other users",
    ),
    (
        "`NO_COLOR`",
        "If set and not empty, nothing is printed in colour",
    ),
    (
        "`HOME`",
        "Where `~` is: of this page, and of paths such as `--secret src=~/token`",
    ),
    (
        "`USER`",
        "The name that `lapstrake doctor` puts into the commands it tells",
    ),
    (
        "`PATH`",
        "Where `git`, runtimes, `newuidmap`, `docker` and helpers for logins are looked for",
    ),
    (
        "`XDG_DATA_HOME`",
        "The state directory is `lapstrake` in it; `~/.local/share` if unset, `/var/lib` for root",
    ),
    (
        "`XDG_CONFIG_HOME`",
        "The configuration is `lapstrake/config.toml` in it; `~/.config` if unset",
    ),
    (
        "`XDG_RUNTIME_DIR`",
        "Where Podman keeps its logins, and where sockets of Docker and Podman are looked for by `--load`",
    ),
    (
        "`DOCKER_CONFIG`",
        "Where `config.json` with logins and proxies is; `~/.docker` if unset",
    ),
    (
        "`REGISTRY_AUTH_FILE`",
        "A file with logins that is asked first",
    ),
    (
        "`CONTAINERS_REGISTRIES_CONF`",
        "The `registries.conf` to read; the usual ones and their drop-ins are not looked at",
    ),
    (
        "`DOCKER_HOST`, `CONTAINER_HOST`",
        "The Docker or Podman that `--load` brings images to",
    ),
    (
        "`SOURCE_DATE_EPOCH`",
        "The time that an image and its files have at most, in seconds since 1970",
    ),
    (
        "`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`",
        "Proxies for registries and other sources, in small letters too. Steps get none of them: `--build-arg` gives them one",
    ),
    (
        "`SSH_AUTH_SOCK`",
        "The agent that `--ssh default` lets steps use, and that opens contexts such as `git@host:repository`",
    ),
    (
        "`SSL_CERT_FILE`, `SSL_CERT_DIR`",
        "What this machine trusts, for `--ca-bundle host` and for git",
    ),
    (
        "`GIT_SSL_CAINFO`, `GIT_SSL_CAPATH`",
        "Passed on to git, as are proxies and `TMPDIR`; other variables of git are not",
    ),
    (
        "`EXPERIMENTAL_BUILDKIT_SOURCE_POLICY`",
        "Refused by `lapstrake build`, which would not follow it; `lapstrake serve` does for its clients",
    ),
    (
        "`GITHUB_ACTIONS`, `GITLAB_CI`",
        "If `true`, plain progress folds as that service's pages do",
    ),
    (
        "`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`",
        "A collector of OpenTelemetry that each build is sent to, over HTTP: [Build in CI](ci.md#traces)",
    ),
    (
        "`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_EXPORTER_OTLP_TIMEOUT`, `OTEL_EXPORTER_OTLP_PROTOCOL`",
        "How it is spoken to; each also with `TRACES_` behind `OTLP_`. The protocol can only be `http/protobuf`",
    ),
    (
        "`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`",
        "What is said of the builder there",
    ),
    (
        "`OTEL_SDK_DISABLED`, `OTEL_TRACES_EXPORTER`",
        "`true`, or `none`: nothing is sent",
    ),
    (
        "`TRACEPARENT`, `TRACESTATE`",
        "The trace that a build becomes a part of",
    ),
    (
        "`LISTEN_FDS`, `LISTEN_PID`",
        "Sockets that a service manager passes to `lapstrake serve --addr fd://`",
    ),
];

const BEGINNING: &str = "\
# Configuration

Every key, file and variable that is looked at. This page is made from the program by `cargo xtask docs`.

Nothing has to be configured. What is set is taken in this order, the first that says something: an option, its variable,
the configuration file, what other tools have configured, what is built in.

## The configuration file

It is `$XDG_CONFIG_HOME/lapstrake/config.toml` (`~/.config/lapstrake/config.toml`), or what `--config` or `LAPSTRAKE_CONFIG`
names. Paths in it are relative to its directory. A key that is not known has no effect, which is said, with its line and
the name that is most like it:

```text
warning: /home/ann/.config/lapstrake/config.toml:2: the key gc.max-used-spce is not known and has no effect; did you mean gc.max-used-space?
```

A value that cannot be meant is an error, and ends with exit code 2.

";

const SPACE: &str = "
Where neither `max-used-space` nor `min-free-space` is set the store may take 60 % of its disk and 100 GB at most, leaves
20 % of the disk free, and keeps 10 % of it, 10 GB at most, in any case.

A table `[registry.\"HOST\"]` is all that counts for its registry: what other tools say of it is not looked at.
";

const SERVER: &str = "
## Keys for `lapstrake serve`

`lapstrake serve` reads the file as a `buildkitd.toml`: what is above, and these. Other commands pass them over.

";

/// Returns the page; `options` are variables of options, with what the options do.
pub(crate) fn page(options: &[(String, String)]) -> String {
    let mut text = BEGINNING.to_owned();
    text.push_str(&keys(Reader::Everyone));
    text.push_str(SPACE);
    text.push_str("\nAll of it, with values as an example:\n\n```toml\n");
    text.push_str(&example(Reader::Everyone));
    text.push_str("```\n");
    text.push_str(SERVER);
    text.push_str(&keys(Reader::Server));
    text.push_str(
        "\n## Files\n\nWhat other tools have configured holds here too.\n\n\
         | file | what is taken from it |\n| --- | --- |\n",
    );
    for (file, meaning) in FILES {
        let _ = writeln!(text, "| {file} | {meaning} |");
    }
    text.push_str("\n## Variables\n\n| variable | what it does |\n| --- | --- |\n");
    for (name, meaning) in options {
        let _ = writeln!(text, "| `{name}` | {meaning} |");
    }
    for (name, meaning) in VARIABLES {
        let _ = writeln!(text, "| {name} | {meaning} |");
    }
    text
}

/// Returns a table of keys.
fn keys(reader: Reader) -> String {
    let mut text =
        String::from("| key | value | if not set | what it does |\n| --- | --- | --- | --- |\n");
    for key in KEYS.iter().filter(|key| key.reader == reader) {
        let mut names = format!("`{}`", key.path.join(".").replace('*', "\"HOST\""));
        for alias in key.aliases {
            let _ = write!(names, ", `{alias}`");
        }
        let Key {
            value,
            default,
            meaning,
            ..
        } = key;
        let _ = writeln!(text, "| {names} | {value} | {default} | {meaning} |");
    }
    text
}

/// Returns a file in which all keys are set.
fn example(reader: Reader) -> String {
    let mut text = String::new();
    let mut last: &[&str] = &[];
    for key in KEYS.iter().filter(|key| key.reader == reader) {
        let Some((name, tables)) = key.path.split_last() else {
            continue;
        };
        if tables != last {
            let gap = if text.is_empty() { "" } else { "\n" };
            let header = tables.join(".").replace('*', "\"registry.example\"");
            let _ = match tables.last() {
                Some(&"keypair") => writeln!(text, "{gap}[[{header}]]"),
                _ => writeln!(text, "{gap}[{header}]"),
            };
            last = tables;
        }
        let _ = writeln!(text, "{name} = {}", key.example);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_example_is_read() {
        let text = example(Reader::Everyone);
        assert_eq!(crate::configuration::unknown(&text), []);
        crate::settings::read_all(Path::new("x.toml"), &text).expect(&text);
    }

    /// Returns the names between quotes that follow one of some words in the sources of all crates.
    fn variables_of_sources() -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut folders = vec![testkit::checkout().join("crates")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).expect("sources are there") {
                let path = entry.expect("sources can be read").path();
                let shown = path.to_string_lossy().into_owned();
                // Tests and their kit set variables of their own.
                let is_test = [
                    "/tests",
                    "/testkit",
                    "/testclient",
                    "/examples",
                    "simulation.rs",
                ]
                .iter()
                .any(|end| shown.ends_with(end));
                if is_test {
                    continue;
                }
                if path.is_dir() {
                    folders.push(path);
                } else if shown.ends_with(".rs") {
                    let text = std::fs::read_to_string(&path).expect("sources can be read");
                    let shipped = text
                        .split("#[cfg(test)]\nmod tests")
                        .next()
                        .unwrap_or_default();
                    for before in ["env::var(\"", "var_os(\"", "variable(\"", "env = \""] {
                        for rest in shipped.split(before).skip(1) {
                            let name = rest.split('"').next().unwrap_or_default();
                            found.insert(name.to_owned());
                        }
                    }
                }
            }
        }
        assert!(found.len() > 20, "{found:?}");
        found
    }

    #[test]
    fn every_variable_that_is_read_is_told_of() {
        let page = super::super::commands::manual::configuration();
        for name in variables_of_sources() {
            assert!(page.contains(&format!("`{name}`")), "{name} is not told of");
        }
    }

    #[test]
    fn every_file_about_registries_is_told_of() {
        let page = page(&[]);
        let home = std::env::home_dir().unwrap_or_default();
        let sources = registry::ConfigurationSources::from_environment();
        let logins = registry::CredentialSources::from_environment();
        let files = sources
            .registries_conf
            .iter()
            .chain(&sources.registries_conf_directories)
            .chain(&sources.host_directories)
            .chain(&logins.files);
        let mut count = 0;
        for path in files {
            // Where variables lead is theirs to say.
            let shown = match path.strip_prefix(&home) {
                Ok(path) => format!("~/{}", path.display()),
                Err(_) if path.starts_with("/etc") => path.display().to_string(),
                Err(_) => continue,
            };
            count += 1;
            assert!(
                page.contains(&format!("`{shown}`")),
                "{shown} is not told of"
            );
        }
        assert!(count >= 5, "{count} files");
    }
}
