//! One module a command.

pub(crate) mod build;
pub(crate) mod images;
