//! Takes the files of a git repository, by the git program, as the reference does.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::EngineError;

/// Checks a reference such as `https://host/repository.git#ref:directory` out into a directory and
/// returns the part of it that was asked for.
pub(crate) fn checkout(text: &str, into: &Path) -> Result<PathBuf, EngineError> {
    let (url, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (reference, folder) = fragment.split_once(':').unwrap_or((fragment, ""));
    let work = into.join("repository");
    run(into, &["init", "--quiet", "--", "repository"])?;
    let wanted = match reference {
        "" => "HEAD",
        reference => reference,
    };
    if wanted.starts_with('-') {
        return Err(EngineError::Request(format!(
            "invalid git reference {wanted:?}"
        )));
    }
    let shallow = run(
        &work,
        &["fetch", "--quiet", "--depth", "1", "--", url, wanted],
    );
    let found = match shallow {
        Ok(()) => "FETCH_HEAD",
        // Some servers give no commit by its digest: then all is fetched.
        Err(_) => {
            run(
                &work,
                &[
                    "fetch",
                    "--quiet",
                    "--tags",
                    "--",
                    url,
                    "+refs/heads/*:refs/remotes/origin/*",
                ],
            )?;
            wanted
        }
    };
    run(&work, &["checkout", "--quiet", "--detach", found, "--"])?;
    run(
        &work,
        &[
            "submodule",
            "update",
            "--quiet",
            "--init",
            "--recursive",
            "--depth",
            "1",
        ],
    )?;
    let git = work.join(".git");
    std::fs::remove_dir_all(&git).map_err(EngineError::io("remove", &git))?;
    let tree = rootfs::Root::open(&work)?;
    let path = rootfs::RootPath::new(folder)?;
    // The part is looked up inside the repository: a symlink in it leads nowhere else.
    let part = tree.open_dir(&path)?;
    let named = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&part));
    std::fs::read_link(&named).map_err(EngineError::io("find", work.join(folder)))
}

/// Runs git without prompts, without the user's and the system's configuration of hooks.
fn run(folder: &Path, arguments: &[&str]) -> Result<(), EngineError> {
    let output = Command::new("git")
        .current_dir(folder)
        .args([
            "-c",
            "core.hooksPath=/dev/null",
            "-c",
            "protocol.ext.allow=never",
        ])
        .args(arguments)
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => EngineError::Request(
                "a git context needs the git program, which is not installed".to_owned(),
            ),
            _ => EngineError::io("run", "git")(error),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(EngineError::Request(format!(
        "git {} failed: {}",
        arguments[0],
        text.trim()
    )))
}
