//! One module a command.

pub(crate) mod build;
pub(crate) mod check;
pub(crate) mod container;
pub(crate) mod images;
pub(crate) mod run;
