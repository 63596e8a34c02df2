//! The git program: what it is given to reach a repository, and nothing else of the builder's.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use llb::SecretFile;
use oci::without_user_info;
use progress::RunningVertex;

use crate::EngineError;
use crate::cancel::Cancel;
use crate::client::BuildClient;
use crate::request::SecretSource;
use crate::step::read_secret;
use crate::step::ssh::AgentSocket;

/// The ways to fetch repositories and their submodules; git knows others, which read files of this machine or run programs.
pub(crate) const ALLOWED_PROTOCOLS: [&str; 4] = ["https", "http", "ssh", "git"];

/// What git gets of the builder's environment: where programs, proxies and authorities of certificates are.
const PASSED_ON: [&str; 14] = [
    "PATH",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
    "CURL_CA_BUNDLE",
];

/// The most that git is listened to: the references of the largest repositories are a tenth of it.
const MOST_OUTPUT: u64 = 256 << 20;

/// Where a repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remote {
    pub(crate) url: String,
    /// The ssh agent that may sign; empty for none.
    agent: String,
    /// The keys of hosts that are taken, as ssh keeps them; empty for those that the builder's user knows.
    known_hosts: String,
}

impl Remote {
    pub(crate) fn new(url: String, agent: String, known_hosts: String) -> Self {
        let is_ssh = url.starts_with("ssh://") || !url.contains("://");
        Self {
            agent: match agent.is_empty() && is_ssh {
                true => "default".to_owned(),
                false => agent,
            },
            url,
            known_hosts,
        }
    }
}

/// What git is given to reach repositories that are not open to all.
#[derive(Clone, Default)]
pub(crate) struct GitAccess {
    secrets: BTreeMap<String, SecretSource>,
    ssh: BTreeMap<String, Vec<PathBuf>>,
    client: Option<Arc<dyn BuildClient>>,
    /// What ends a fetch before its time.
    cancels: Vec<Cancel>,
}

impl GitAccess {
    pub(crate) fn new(
        secrets: &BTreeMap<String, SecretSource>,
        ssh: &BTreeMap<String, Vec<PathBuf>>,
    ) -> Self {
        Self {
            secrets: secrets.clone(),
            ssh: ssh.clone(),
            ..Self::default()
        }
    }

    /// Gives a fetch up when this is asked to stop; several may.
    pub(crate) fn until(mut self, cancel: &Cancel) -> Self {
        self.cancels.push(cancel.clone());
        self
    }

    /// Returns what ends a fetch.
    pub(crate) fn cancels(&self) -> &[Cancel] {
        &self.cancels
    }

    /// Asks a client for the secrets that are not given.
    pub(crate) fn of_client(mut self, client: Option<Arc<dyn BuildClient>>) -> Self {
        self.client = client;
        self
    }

    fn secret(&self, name: &str) -> Result<Option<Vec<u8>>, EngineError> {
        match (read_secret(&self.secrets, name, true)?, &self.client) {
            (Some(value), _) => Ok(Some(value)),
            (None, Some(client)) => client.secret(name),
            (None, None) => Ok(None),
        }
    }

    /// Returns the header that opens a remote: that of its own secrets, or of those for any.
    fn header(&self, remote: &str) -> Result<Option<String>, EngineError> {
        let host = host_of(remote);
        for (name, is_token) in [
            (format!("GIT_AUTH_HEADER.{host}"), false),
            (format!("GIT_AUTH_TOKEN.{host}"), true),
            ("GIT_AUTH_HEADER".to_owned(), false),
            ("GIT_AUTH_TOKEN".to_owned(), true),
        ] {
            let Some(value) = self.secret(&name)? else {
                continue;
            };
            let value = String::from_utf8_lossy(&value).trim().to_owned();
            return Ok(Some(match is_token {
                true => format!(
                    "basic {}",
                    STANDARD.encode(format!("x-access-token:{value}"))
                ),
                false => value,
            }));
        }
        Ok(None)
    }

    /// Returns what a remote is reached with; for use while what it holds is kept.
    fn way(&self, remote: &Remote) -> Result<Way, EngineError> {
        let mut way = Way::default();
        let url = remote.url.as_str();
        let is_http = url.starts_with("https://") || url.starts_with("http://");
        if is_http && let Some(header) = self.header(url)? {
            let scheme = url.split("://").next().unwrap_or_default();
            let key = format!("http.{scheme}://{}/.extraheader", host_of(url));
            // In the environment, where other users do not see it as they see arguments.
            way.variables.extend([
                ("GIT_CONFIG_COUNT", "1".into()),
                ("GIT_CONFIG_KEY_0", key.into()),
                (
                    "GIT_CONFIG_VALUE_0",
                    format!("Authorization: {header}").into(),
                ),
            ]);
        }
        if !remote.known_hosts.is_empty() {
            let mut file = tempfile::NamedTempFile::with_prefix("lapstrake-hosts-")
                .map_err(EngineError::io("create", "a temporary file"))?;
            file.write_all(remote.known_hosts.as_bytes())
                .map_err(EngineError::io("write", file.path()))?;
            way.known_hosts = Some(file);
        }
        let hosts = way.known_hosts.as_ref().map(|file| file.path());
        way.variables
            .push(("GIT_SSH_COMMAND", ssh_command(hosts).into()));
        if !remote.agent.is_empty() {
            let wanted = SecretFile {
                id: remote.agent.clone(),
                optional: true,
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
                mode: 0o600,
            };
            let agent = AgentSocket::lead(self.client.as_ref(), &self.ssh, &wanted)?;
            if let Some(agent) = &agent {
                way.variables
                    .push(("SSH_AUTH_SOCK", agent.path().into_os_string()));
            }
            way.agent = agent;
        }
        Ok(way)
    }
}

/// Returns how git calls ssh: without the configuration and the keys of whoever runs the builder.
fn ssh_command(known_hosts: Option<&Path>) -> String {
    let mut command =
        "ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=yes -o UpdateHostKeys=no \
                       -o IdentityFile=none -o GSSAPIAuthentication=no -o ConnectTimeout=30 \
                       -o ServerAliveInterval=20 -o ServerAliveCountMax=3"
            .to_owned();
    if let Some(path) = known_hosts {
        command.push_str(&format!(
            " -o GlobalKnownHostsFile=none -o 'UserKnownHostsFile=\"{}\"'",
            path.display()
        ));
    }
    command
}

/// What a remote is reached with.
#[derive(Default)]
struct Way {
    variables: Vec<(&'static str, OsString)>,
    known_hosts: Option<tempfile::NamedTempFile>,
    agent: Option<AgentSocket>,
}

fn host_of(remote: &str) -> &str {
    let rest = remote.split_once("://").map_or(remote, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    authority.rsplit('@').next().unwrap_or(authority)
}

/// The git program at one repository.
pub(crate) struct Git<'a> {
    access: &'a GitAccess,
    remote: &'a Remote,
    /// The repository and its work tree; none for what needs no repository.
    places: Option<(&'a Path, Option<&'a Path>)>,
    running: &'a RunningVertex,
}

impl<'a> Git<'a> {
    pub(crate) fn bare(
        access: &'a GitAccess,
        remote: &'a Remote,
        running: &'a RunningVertex,
    ) -> Self {
        Self {
            access,
            remote,
            places: None,
            running,
        }
    }

    pub(crate) fn new(
        access: &'a GitAccess,
        remote: &'a Remote,
        repository: &'a Path,
        work: Option<&'a Path>,
        running: &'a RunningVertex,
    ) -> Self {
        Self {
            access,
            remote,
            places: Some((repository, work)),
            running,
        }
    }

    /// Runs git without prompts and hooks, and returns what it prints; what it complains of goes to the log.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String, EngineError> {
        let bytes = self.run_for_bytes(arguments)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Runs git as [`run`](Self::run) does, where what it prints is no text.
    pub(crate) fn run_for_bytes(&self, arguments: &[&str]) -> Result<Vec<u8>, EngineError> {
        self.attempt_for_bytes(arguments)?.map_err(|complaint| {
            let last = last_words(&complaint).to_owned();
            let logger = self.running.logger(progress::Stream::Stderr);
            logger.log(complaint.into_bytes());
            EngineError::Request(format!(
                "failed to fetch {}: git {} says: {last}",
                without_user_info(&self.remote.url),
                arguments[0]
            ))
        })
    }

    /// Runs git where there is another way if it fails; returns what it prints, or complains of.
    pub(crate) fn attempt(
        &self,
        arguments: &[&str],
    ) -> Result<Result<String, String>, EngineError> {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(self.attempt_for_bytes(arguments)?.map(text))
    }

    fn attempt_for_bytes(
        &self,
        arguments: &[&str],
    ) -> Result<Result<Vec<u8>, String>, EngineError> {
        let mut command = Command::new("git");
        for setting in [
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "core.symlinks=true",
            "core.autocrlf=false",
            "gc.auto=0",
            "init.defaultBranch=master",
            "protocol.allow=never",
            "submodule.recurse=false",
            // A server that sends nothing for a minute has gone.
            "http.lowSpeedLimit=1",
            "http.lowSpeedTime=60",
        ] {
            command.args(["-c", setting]);
        }
        for protocol in ALLOWED_PROTOCOLS {
            command.args(["-c", &format!("protocol.{protocol}.allow=always")]);
        }
        // What the builder's own user has set up, and where it was started, is not for repositories of others.
        command.env_clear();
        for name in PASSED_ON {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let way = self.access.way(self.remote)?;
        command.current_dir("/");
        if let Some((repository, work)) = self.places {
            command.env("GIT_DIR", repository);
            if let Some(work) = work {
                command.env("GIT_WORK_TREE", work).current_dir(work);
            }
        }
        command
            .args(arguments)
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("HOME", "/dev/null")
            .env("LC_ALL", "C")
            .envs(way.variables.iter().map(|(name, value)| (name, value)));
        let output =
            output_of(&mut command, self.access.cancels()).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => EngineError::Request(format!(
                    "{} needs the git program, which is not installed",
                    without_user_info(&self.remote.url)
                )),
                _ => EngineError::io("run", "git")(error),
            })?;
        if self.access.cancels().iter().any(Cancel::is_requested) {
            return Err(EngineError::Canceled);
        }
        if output.status.success() {
            return Ok(Ok(output.stdout));
        }
        let text = String::from_utf8_lossy(&output.stderr);
        Ok(Err(without_user_info(&text).into_owned()))
    }
}

/// Runs a command in a process group of its own, which is killed with all that it has started when one asks to stop.
fn output_of(command: &mut Command, cancels: &[Cancel]) -> std::io::Result<Output> {
    use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let group = Pid::from_child(&child);
    // None once the process has ended: its id may be another's then.
    let alive = Arc::new(Mutex::new(Some(group)));
    let _guards: Vec<_> = cancels
        .iter()
        .map(|cancel| {
            let alive = Arc::clone(&alive);
            cancel.on_request(move || {
                let alive = alive.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(group) = *alive {
                    let _ = kill_process_group(group, Signal::KILL);
                }
            })
        })
        .collect();
    let (mut out, mut complaints) = (child.stdout.take(), child.stderr.take());
    fn all(pipe: &mut Option<impl Read>) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            pipe.take(MOST_OUTPUT).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    }
    let (stdout, stderr) = std::thread::scope(|scope| {
        let stderr = scope.spawn(|| all(&mut complaints));
        let stdout = all(&mut out);
        // Whoever says more than is taken finds nobody listening.
        drop(out);
        (stdout, stderr.join().expect("reading does not panic"))
    });
    drop(complaints);
    let ended = waitid(
        WaitId::Pid(group),
        WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
    );
    *alive.lock().unwrap_or_else(PoisonError::into_inner) = None;
    ended?;
    Ok(Output {
        status: child.wait()?,
        stdout: stdout?,
        stderr: stderr?,
    })
}

/// Returns the line of git's messages that says what went wrong.
fn last_words(text: &str) -> &str {
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines()
        .find(|line| line.starts_with("fatal:") || line.starts_with("error:"))
        .or(lines().next_back())
        .unwrap_or("nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssh_has_neither_keys_nor_configuration_of_the_builder() {
        let command = ssh_command(None);
        for option in ["-F none", "IdentityFile=none", "StrictHostKeyChecking=yes"] {
            assert!(command.contains(option), "{command}");
        }
        let command = ssh_command(Some(Path::new("/tmp/hosts")));
        assert!(
            command.ends_with("-o 'UserKnownHostsFile=\"/tmp/hosts\"'"),
            "{command}"
        );
    }

    #[test]
    fn an_agent_signs_for_ssh_alone() {
        let agent = |url: &str, id: &str| Remote::new(url.into(), id.into(), String::new()).agent;
        assert_eq!(agent("git@h:r.git", ""), "default");
        assert_eq!(agent("ssh://h/r.git", "other"), "other");
        assert_eq!(agent("https://h/r.git", ""), "");
    }

    #[test]
    fn a_fetch_that_is_given_up_ends_with_all_its_processes() {
        let installed = Command::new("git").arg("version").output();
        if installed.is_err() {
            testkit::skip!("git is not installed");
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!(
            "http://{}/r.git",
            listener.local_addr().expect("an address")
        );
        let cancel = Cancel::default();
        let access = GitAccess::default().until(&cancel);
        let fetching = std::thread::spawn(move || {
            let sink = progress::Sink::discard();
            let running = sink.vertex(progress::Vertex::named("git")).start();
            let remote = Remote::new(url.clone(), String::new(), String::new());
            let git = Git::bare(&access, &remote, &running);
            git.run(&["ls-remote", "--", &url]).map(drop)
        });
        // The server takes the request and says nothing.
        let (mut connection, _) = listener.accept().expect("git asks");
        cancel.request();
        let told = fetching.join().expect("no panic").expect_err("given up");
        assert!(matches!(told, EngineError::Canceled), "{told}");
        // The helper that holds the connection has ended too.
        let _ = connection.read_to_end(&mut Vec::new());
    }
}
