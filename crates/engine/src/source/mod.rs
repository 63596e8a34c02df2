//! Where content comes from.

pub(crate) mod dockerfile;
mod git;
pub(crate) mod http;
pub(crate) mod image;
pub(crate) mod pull;
