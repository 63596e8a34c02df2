//! Which container engine `--load` means: the one that runs on this machine.

use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use engine::{ContainerEngine, EngineDoor};

/// Finds Docker, Podman or containerd, in this order; what the environment names comes first.
///
/// `None` is a machine without any: the image is in the store alone.
pub(crate) fn find() -> Option<ContainerEngine> {
    for (variable, name, program) in [
        ("DOCKER_HOST", "docker", "docker"),
        ("CONTAINER_HOST", "podman", "podman"),
    ] {
        match std::env::var(variable) {
            Ok(host) if !host.is_empty() => return named(&host, name, program),
            _ => {}
        }
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let own = |path: &str| runtime.as_ref().map(|folder| folder.join(path));
    let sockets = [
        ("docker", own("docker.sock")),
        ("docker", Some(PathBuf::from("/var/run/docker.sock"))),
        ("podman", own("podman/podman.sock")),
        ("podman", Some(PathBuf::from("/run/podman/podman.sock"))),
    ];
    for (name, socket) in sockets {
        if let Some(socket) = socket
            && answers(&socket)
        {
            return Some(ContainerEngine {
                name: name.to_owned(),
                via: EngineDoor::Socket(socket),
            });
        }
    }
    if let Some(podman) = program("podman", "podman", &["load", "-q"]) {
        return Some(podman);
    }
    if !answers(Path::new("/run/containerd/containerd.sock")) {
        return None;
    }
    program("containerd", "nerdctl", &["load"])
        .or_else(|| program("containerd", "ctr", &["images", "import", "-"]))
}

/// Returns the engine that a variable names: its socket, or the program that knows how to get there.
fn named(host: &str, name: &str, client: &str) -> Option<ContainerEngine> {
    match host.strip_prefix("unix://") {
        Some(path) => Some(ContainerEngine {
            name: name.to_owned(),
            via: EngineDoor::Socket(PathBuf::from(path)),
        }),
        None => program(name, client, &["load", "-q"]),
    }
}

fn answers(socket: &Path) -> bool {
    let is_socket = std::fs::metadata(socket).is_ok_and(|meta| meta.file_type().is_socket());
    is_socket && UnixStream::connect(socket).is_ok()
}

fn program(name: &str, file: &str, arguments: &[&str]) -> Option<ContainerEngine> {
    let paths = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&paths)
        .map(|folder| folder.join(file))
        .find(|path| {
            rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file()
        })?;
    Some(ContainerEngine {
        name: name.to_owned(),
        via: EngineDoor::Program {
            program: found,
            arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
        },
    })
}
