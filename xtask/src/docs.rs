//! `cargo xtask docs`: the pages of the manual that are made from the program.

use anyhow::Context;

use crate::command::output;
use crate::{program, workspace};

/// Writes the references of all commands and of the configuration.
pub(crate) fn run() -> anyhow::Result<()> {
    write("reference.md", &[])?;
    write("configuration.md", &["--configuration"])
}

fn write(name: &str, options: &[&str]) -> anyhow::Result<()> {
    let mut command = program::cargo();
    command.args(["run", "--quiet", "--package", "cli", "--", "reference"]);
    let text = output(command.args(options))?;
    let page = workspace::root().join("docs/user").join(name);
    std::fs::write(&page, text).with_context(|| format!("failed to write {}", page.display()))?;
    println!("wrote {}", page.display());
    Ok(())
}
