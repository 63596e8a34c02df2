//! Gives a step the socket of an ssh agent: `--mount=type=ssh`.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use llb::SecretFile;

use crate::EngineError;
use crate::client::AgentAddress;
use crate::step::StepContext;

/// A socket that passes everything on to an agent, for one step.
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
        let id = match file.id.as_str() {
            "" => "default",
            id => id,
        };
        let client = match &context.client {
            Some(client) => client.agent(id)?,
            None => None,
        };
        let given = client.as_ref().map(|agent| vec![agent.socket.clone()]);
        let Some(agent) = given.as_ref().or_else(|| context.ssh.get(id)) else {
            return match file.optional {
                true => Ok(None),
                false => Err(EngineError::Request(format!(
                    "the step asks for the ssh agent {id:?}, which was not given; use --ssh {id}"
                ))),
            };
        };
        let agent = agent_socket(id, agent)?;
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

fn agent_socket(id: &str, given: &[PathBuf]) -> Result<PathBuf, EngineError> {
    let (path, from) = match given {
        [] => {
            let path = std::env::var_os("SSH_AUTH_SOCK").map(PathBuf::from);
            let unset = || {
                EngineError::Request(format!(
                    "--ssh {id} takes the agent from SSH_AUTH_SOCK, which is not set; start one with \
                     eval $(ssh-agent) and give it keys with ssh-add"
                ))
            };
            (path.ok_or_else(unset)?, "SSH_AUTH_SOCK names ")
        }
        [socket] => (socket.clone(), ""),
        _ => {
            return Err(EngineError::Unsupported(
                "an ssh agent made of several keys (ssh-add gives them to one agent)".to_owned(),
            ));
        }
    };
    let reason = match std::fs::metadata(&path) {
        Ok(found) if std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
            return Ok(path);
        }
        Ok(found) if found.is_dir() => {
            "which is a directory; give the socket of an agent that is in it".to_owned()
        }
        Ok(_) => {
            "which is no socket; give a key to an agent with ssh-add, and the agent to the build"
                .to_owned()
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            "which is not there; has the agent ended?".to_owned()
        }
        Err(error) => format!("which cannot be looked at: {error}"),
    };
    Err(EngineError::Request(format!(
        "--ssh {id}: {from}{}, {reason}",
        path.display()
    )))
}

fn serve(listener: &UnixListener, agent: &Path) {
    let bound = listener.local_addr();
    let path = bound
        .ok()
        .and_then(|address| address.as_pathname().map(Path::to_owned));
    for connection in listener.incoming() {
        if path.as_ref().is_none_or(|path| !path.exists()) {
            return;
        }
        let (Ok(step), Ok(agent)) = (connection, UnixStream::connect(agent)) else {
            continue;
        };
        let (Ok(step_end), Ok(agent_end)) = (step.try_clone(), agent.try_clone()) else {
            continue;
        };
        std::thread::spawn(move || pass(step, agent));
        std::thread::spawn(move || pass(agent_end, step_end));
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
        std::fs::write(path("key"), "-----BEGIN OPENSSH PRIVATE KEY-----\n").expect("a file");
        let _agent = UnixListener::bind(path("agent")).expect("a socket");
        let check = |given: &[PathBuf], words: &str| {
            let told = match agent_socket("id", given) {
                Ok(_) => "an agent".to_owned(),
                Err(error) => error.to_string(),
            };
            assert!(told.contains(words), "{told}");
        };
        check(&[path("agent")], "an agent");
        check(
            &[path("key")],
            "which is no socket; give a key to an agent with ssh-add",
        );
        check(&[path("")], "which is a directory");
        check(&[path("gone")], "which is not there");
        check(&[path("key/x")], "which cannot be looked at");
        check(
            &[path("key"), path("key")],
            "an ssh agent made of several keys",
        );
    }
}
