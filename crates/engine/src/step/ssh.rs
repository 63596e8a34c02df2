//! Gives a step the socket of an ssh agent: `--mount=type=ssh`.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use llb::SecretFile;

use crate::EngineError;
use crate::client::{AgentAddress, BuildClient};
use crate::step::StepContext;
use crate::step::ssh_keys::Keys;

/// A socket for one step, behind which an agent answers: one that runs, or this process with keys it was given.
pub(crate) struct AgentSocket {
    folder: tempfile::TempDir,
    /// What leads to the agent, where that is a client's.
    _client: Option<AgentAddress>,
}

impl AgentSocket {
    /// Opens a socket with the owner and mode the step asks for; `None` where it may do without.
    pub(crate) fn open(
        context: &StepContext,
        file: &SecretFile,
    ) -> Result<Option<Self>, EngineError> {
        Self::lead(context.client.as_ref(), &context.ssh, file)
    }

    /// Opens a socket that leads to an agent of a client, or to what was given here.
    pub(crate) fn lead(
        client: Option<&Arc<dyn BuildClient>>,
        ssh: &BTreeMap<String, Vec<PathBuf>>,
        file: &SecretFile,
    ) -> Result<Option<Self>, EngineError> {
        let id = match file.id.as_str() {
            "" => "default",
            id => id,
        };
        let client = match client {
            Some(client) => client.agent(id)?,
            None => None,
        };
        let given = client.as_ref().map(|agent| vec![agent.socket.clone()]);
        let Some(agent) = given.as_ref().or_else(|| ssh.get(id)) else {
            return match file.optional {
                true => Ok(None),
                false => Err(EngineError::Request(format!(
                    "the step asks for the ssh agent {id:?}, which was not given; use --ssh {id}"
                ))),
            };
        };
        let agent = Agent::of(id, agent)?;
        let folder = tempfile::Builder::new()
            .prefix("lapstrake-ssh-")
            .tempdir()
            .map_err(EngineError::io("create", "a directory for a socket"))?;
        let path = folder.path().join("agent");
        let listener = UnixListener::bind(&path).map_err(EngineError::io("bind", &path))?;
        std::os::unix::fs::chown(&path, Some(file.uid), Some(file.gid))
            .map_err(EngineError::io("change the owner of", &path))?;
        let mode = match file.mode {
            0 => 0o600,
            mode => mode,
        };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
            .map_err(EngineError::io("change the mode of", &path))?;
        std::thread::Builder::new()
            .name("ssh-agent".to_owned())
            .spawn(move || serve(&listener, &agent))
            .map_err(|source| EngineError::Thread { source })?;
        Ok(Some(Self {
            folder,
            _client: client,
        }))
    }

    /// Returns the socket.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("agent")
    }
}

impl Drop for AgentSocket {
    fn drop(&mut self) {
        // One last connection wakes the thread, which then finds the socket gone.
        let path = self.path();
        let last = UnixStream::connect(&path);
        let _ = std::fs::remove_file(&path);
        drop(last);
    }
}

/// What answers a step.
#[derive(Debug)]
enum Agent {
    /// An agent that runs.
    Socket(PathBuf),
    /// This process, with keys it was given.
    Keys(Arc<Keys>),
}

impl Agent {
    /// Finds out what was given: the socket of an agent, or private keys.
    fn of(id: &str, given: &[PathBuf]) -> Result<Self, EngineError> {
        let environment;
        let (given, from) = match given {
            [] => {
                let path = std::env::var_os("SSH_AUTH_SOCK").map(PathBuf::from);
                environment = [path.ok_or_else(|| {
                    EngineError::Request(format!(
                        "--ssh {id} takes the agent from SSH_AUTH_SOCK, which is not set; start one with \
                         eval $(ssh-agent) and give it keys with ssh-add, or give a key: --ssh {id}=FILE"
                    ))
                })?];
                (&environment[..], "SSH_AUTH_SOCK names ")
            }
            given => (given, ""),
        };
        for path in given {
            let reason = match std::fs::metadata(path) {
                Ok(found) if found.file_type().is_socket() => match given {
                    [_] => return Ok(Self::Socket(path.clone())),
                    _ => "which is a socket; an agent goes with no keys and no other agent"
                        .to_owned(),
                },
                Ok(found) if found.is_file() => continue,
                Ok(found) if found.is_dir() => {
                    "which is a directory; give the socket of an agent, or a key, that is in it"
                        .to_owned()
                }
                Ok(_) => "which is neither an agent's socket nor a key".to_owned(),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    "which is not there; has the agent ended?".to_owned()
                }
                Err(error) => format!("which cannot be looked at: {error}"),
            };
            return Err(EngineError::Request(format!(
                "--ssh {id}: {from}{}, {reason}",
                path.display()
            )));
        }
        Keys::read(given).map(Arc::new).map(Self::Keys)
    }

    /// Answers a connection, on threads of its own.
    fn answer(&self, step: UnixStream) -> std::io::Result<()> {
        match self {
            Self::Socket(path) => {
                let agent = UnixStream::connect(path)?;
                let (step_end, agent_end) = (step.try_clone()?, agent.try_clone()?);
                std::thread::spawn(move || pass(step, agent));
                std::thread::spawn(move || pass(agent_end, step_end));
            }
            Self::Keys(keys) => {
                let keys = Arc::clone(keys);
                // It ends with the connection, in whatever way that ends.
                std::thread::spawn(move || keys.serve(step));
            }
        }
        Ok(())
    }
}

fn serve(listener: &UnixListener, agent: &Agent) {
    let bound = listener.local_addr();
    let path = bound
        .ok()
        .and_then(|address| address.as_pathname().map(Path::to_owned));
    for connection in listener.incoming() {
        if path.as_ref().is_none_or(|path| !path.exists()) {
            return;
        }
        // One that cannot be answered is closed, which the step sees.
        let _ = connection.and_then(|step| agent.answer(step));
    }
}

fn pass(mut from: UnixStream, mut to: UnixStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_agent_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("key"), "-----BEGIN RSA PRIVATE KEY-----\n").expect("a file");
        let _agent = UnixListener::bind(path("agent")).expect("a socket");
        let check = |given: &[PathBuf], words: &str| {
            let told = match Agent::of("id", given) {
                Ok(agent) => format!("{agent:?}"),
                Err(error) => error.to_string(),
            };
            assert!(told.contains(words), "{told}");
        };
        check(&[path("agent")], "Socket(");
        check(
            &[path("key")],
            "cannot be used: it is not in OpenSSH's format; ssh-keygen -p",
        );
        check(&[path("")], "which is a directory");
        check(&[path("gone")], "which is not there");
        check(&[path("key/x")], "which cannot be looked at");
        check(&["/dev/null".into()], "neither an agent's socket nor a key");
        check(&[path("key"), path("agent")], "an agent goes with no keys");
    }
}
