//! Where content comes from.

pub(crate) mod dockerfile;
mod git;
pub(crate) mod image;
pub(crate) mod pull;
