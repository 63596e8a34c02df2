//! Results that travel between machines: `--cache-from` and `--cache-to`.
//!
//! A portable cache is a document of keys and chains of layers ([`config`]) beside the layers' blobs, in a
//! directory in OCI layout, in a registry, or inside the config of an image. It is only ever a help: one that
//! cannot be reached, or is not what it says, costs a warning and the time to build.
//!
//! Beside it, [`mounts`]: the directories of cache mounts.

mod config;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod inline;
mod layout;
pub(crate) mod mounts;

pub(crate) use import::{Imports, Wanted, not_used};
