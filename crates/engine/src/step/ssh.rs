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
    let path = match given {
        [] => std::env::var_os("SSH_AUTH_SOCK")
            .map(PathBuf::from)
            .ok_or_else(|| {
                EngineError::Request(format!(
                    "--ssh {id} takes the agent from SSH_AUTH_SOCK, which is not set"
                ))
            })?,
        [socket] => socket.clone(),
        _ => {
            return Err(EngineError::Unsupported(
                "an ssh agent made of several keys".to_owned(),
            ));
        }
    };
    let is_socket = std::fs::metadata(&path)
        .is_ok_and(|meta| std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()));
    match is_socket {
        true => Ok(path),
        false => Err(EngineError::Unsupported(format!(
            "--ssh {id} with {}, which is no socket of an agent,",
            path.display()
        ))),
    }
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
