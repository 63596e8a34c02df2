//! Where lapstrake keeps its state and finds its configuration.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::arguments::Global;

/// Returns the state directory.
pub(crate) fn root(global: &Global) -> Result<PathBuf> {
    if let Some(root) = &global.root {
        return std::path::absolute(root).context("failed to make --root absolute");
    }
    if let Some(data) = absolute_variable("XDG_DATA_HOME") {
        return Ok(data.join("lapstrake"));
    }
    if rustix::process::geteuid().is_root() && std::env::var_os("LAPSTRAKE_ROOTLESS").is_none() {
        return Ok(PathBuf::from("/var/lib/lapstrake"));
    }
    Ok(home()?.join(".local/share/lapstrake"))
}

/// Returns the configuration file, and whether it was asked for by name.
pub(crate) fn config(global: &Global) -> Result<(PathBuf, bool)> {
    if let Some(config) = &global.config {
        return Ok((config.clone(), true));
    }
    let folder = match absolute_variable("XDG_CONFIG_HOME") {
        Some(folder) => folder,
        None => match home() {
            Ok(home) => home.join(".config"),
            Err(_) => PathBuf::from("/etc"),
        },
    };
    Ok((folder.join("lapstrake/config.toml"), false))
}

fn home() -> Result<PathBuf> {
    absolute_variable("HOME").context("HOME is not set; say --root DIR")
}

fn absolute_variable(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os(name)?);
    path.is_absolute().then_some(path)
}
