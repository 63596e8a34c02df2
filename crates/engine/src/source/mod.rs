//! Where content comes from.

pub(crate) mod dockerfile;
pub(crate) mod fetched;
pub(crate) mod git;
pub(crate) mod http;
pub(crate) mod image;
mod layout;
pub(crate) mod main_context;
pub(crate) mod pull;
