//! `cargo xtask docs`: the pages of the manual that are made from the program.

use anyhow::Context;

use crate::command::output;
use crate::{program, workspace};

/// Writes the reference of all commands.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut command = program::cargo();
    command.args(["run", "--quiet", "--package", "cli", "--", "reference"]);
    let text = output(&mut command)?;
    let page = workspace::root().join("docs/user/reference.md");
    std::fs::write(&page, text).with_context(|| format!("failed to write {}", page.display()))?;
    println!("wrote {}", page.display());
    Ok(())
}
