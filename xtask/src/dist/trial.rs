//! Tries a program where there is nothing but it: no C library, no `/etc/hosts`, no `/dev/urandom` at first.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::Context;

use crate::command::{command, run as run_command};
use crate::{tools, workspace};

/// The image that steps are tried on.
const IMAGE: &str = "docker.io/library/busybox";

/// What is done there.
const SCRIPT: &str = include_str!("trial.sh");

/// Builds, runs and pulls with a static program, as root and as an ordinary user, in a root of its own.
///
/// Where this machine lacks what it takes, a line says so.
pub(crate) fn run(program: &Path) -> anyhow::Result<()> {
    let image = workspace::fixtures().join(IMAGE);
    if let Some(lack) = lack(&image) {
        println!("not tried in a root of its own: {lack}");
        return Ok(());
    }
    let root = tempfile::tempdir().context("failed to make a root")?;
    lay_out(root.path(), program, &image).context("failed to lay out a root")?;
    let root = root.path().display().to_string();
    // The old root goes away in the script: the loader and the C library with it.
    let enter = "mount --bind \"$1\" \"$1\" && cd \"$1\" && mkdir old && ./bin/busybox pivot_root . old && \
                 exec /bin/busybox sh /trial.sh";
    run_command(&mut command(
        "unshare",
        [
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            enter,
            "sh",
            &root,
        ],
    ))
    .context("the program does not work in a root without a C library")
}

fn lack(image: &Path) -> Option<&'static str> {
    match () {
        () if !tools::is_root() => Some("this is for root"),
        () if !tools::is_there("unshare") => Some("there is no unshare"),
        () if !Path::new("/bin/busybox").is_file() => Some("there is no static busybox"),
        () if !image.is_dir() => Some("`cargo xtask fixtures busybox` makes the image for it"),
        () => None,
    }
}

fn lay_out(root: &Path, program: &Path, image: &Path) -> anyhow::Result<()> {
    for folder in ["bin", "etc", "app", "proc", "sys", "dev", "tmp", "state"] {
        fs::create_dir(root.join(folder))?;
    }
    // Anyone may enter, whatever the folder of temporary files was made with.
    for (folder, mode) in [("", 0o755), ("tmp", 0o1777), ("state", 0o755)] {
        fs::set_permissions(root.join(folder), fs::Permissions::from_mode(mode))?;
    }
    fs::copy(program, root.join("bin/lapstrake"))?;
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    for applet in [
        "sh", "mount", "umount", "mknod", "mkdir", "chown", "su", "cat", "grep", "sed", "sleep",
    ] {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    copy_folder(image, &root.join("images").join(IMAGE))?;
    fs::write(root.join("etc/passwd"), "user:x:1000:1000::/tmp:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "user:x:1000:\n")?;
    let mirror = "[registry.\"docker.io\"]\nmirrors = [\"oci-layout:/images\"]\n";
    fs::write(root.join("etc/lapstrake.toml"), mirror)?;
    fs::write(
        root.join("app/Dockerfile"),
        "FROM busybox\nRUN echo made > /made\n",
    )?;
    fs::write(
        root.join("app/Dockerfile.files"),
        "FROM scratch\nCOPY . /\n",
    )?;
    fs::write(root.join("trial.sh"), SCRIPT)?;
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        match fs::metadata(entry.path())?.is_dir() {
            true => copy_folder(&entry.path(), &to)?,
            false => fs::copy(entry.path(), to).map(drop)?,
        }
    }
    Ok(())
}
