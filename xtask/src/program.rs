//! Our own program, built.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::command::output;
use crate::workspace;

/// Returns cargo, the one that runs us if there is one.
pub(crate) fn cargo() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(workspace::root()).stdin(Stdio::null());
    command
}

/// Builds the program for release and returns where it lies.
pub(crate) fn release() -> anyhow::Result<PathBuf> {
    release_of("cli")
}

/// Builds the program of a package for release and returns where it lies.
pub(crate) fn release_of(package: &str) -> anyhow::Result<PathBuf> {
    let output = cargo()
        .args([
            "build",
            "--release",
            "--package",
            package,
            "--message-format",
            "json-render-diagnostics",
        ])
        .stderr(Stdio::inherit())
        .output()
        .context("failed to start cargo")?;
    if !output.status.success() {
        bail!("failed to build the program");
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .context("cargo named no program")
}

/// Returns where the program lies that the tests have been built with.
pub(crate) fn tested() -> anyhow::Result<PathBuf> {
    let told = output(cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let about: Value = serde_json::from_str(&told).context("failed to read cargo's metadata")?;
    let folder = about["target_directory"]
        .as_str()
        .context("cargo named no target folder")?;
    Ok(PathBuf::from(folder).join("debug/lapstrake"))
}
