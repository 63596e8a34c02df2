//! Tools of the machine that the tasks stand on.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::bail;

use crate::command::{command, output};

/// A program and the Debian package it comes in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package }
}

/// What the fixtures are made with.
pub(crate) const FIXTURES: &[Tool] = &[
    tool("mmdebstrap", "mmdebstrap"),
    tool("dpkg-deb", "dpkg"),
    tool("tar", "tar"),
    tool("chroot", "coreutils"),
    tool("unshare", "util-linux"),
];

/// What the Go toolchains come through.
pub(crate) const PIP: &[Tool] = &[tool("pip3", "python3-pip")];

/// What Node comes through.
pub(crate) const NPM: &[Tool] = &[tool("npm", "npm")];

/// What the tests use when it is there: static base images, rootless ids, other tools' view of our images.
pub(crate) const TESTS: &[Tool] = &[
    tool("busybox", "busybox-static"),
    tool("newuidmap", "uidmap"),
    tool("python3", "python3"),
    tool("git", "git"),
    tool("skopeo", "skopeo"),
    tool("umoci", "umoci"),
    tool("docker-registry", "docker-registry"),
    tool("zstd", "zstd"),
    tool("ip", "iproute2"),
    tool("nft", "nftables"),
    tool("setpriv", "util-linux"),
    tool("chromium", "chromium"),
    tool("script", "bsdutils"),
    tool("stty", "coreutils"),
    tool("crun", "crun"),
    tool("runc", "runc"),
    tool("pasta", "passt"),
    tool("slirp4netns", "slirp4netns"),
    tool("valgrind", "valgrind"),
];

/// Installs the packages of the tools that are missing.
///
/// # Errors
///
/// Names every missing tool and its package when they cannot be installed here.
pub(crate) fn ensure(tools: &[Tool]) -> anyhow::Result<()> {
    let missing: Vec<Tool> = tools
        .iter()
        .copied()
        .filter(|tool| !is_there(tool.program))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: BTreeSet<&str> = missing.iter().map(|tool| tool.package).collect();
    let packages: Vec<&str> = packages.into_iter().collect();
    let said = packages.join(" ");
    if !is_root() || !is_there("apt-get") {
        let programs: Vec<&str> = missing.iter().map(|tool| tool.program).collect();
        bail!(
            "missing on this machine: {}; install them with `apt-get install {said}` as root (or your system's equivalent)",
            programs.join(", ")
        );
    }
    eprintln!("installing {said}");
    output(&mut command("apt-get", ["update", "-q"]))?;
    output(
        command(
            "apt-get",
            ["install", "-y", "-q", "--no-install-recommends"],
        )
        .args(&packages)
        .env("DEBIAN_FRONTEND", "noninteractive"),
    )?;
    let still: Vec<&str> = missing
        .iter()
        .map(|tool| tool.program)
        .filter(|program| !is_there(program))
        .collect();
    if !still.is_empty() {
        bail!(
            "still missing after installing {said}: {}",
            still.join(", ")
        );
    }
    Ok(())
}

/// Returns whether a program is found on `PATH` or in the usual system folders.
pub(crate) fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(Into::into))
        .any(|folder| Path::new(&folder).join(program).is_file())
}

/// Returns whether this process is root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
