//! One module a command.

pub(crate) mod build;
pub(crate) mod cache;
mod cache_transfer;
pub(crate) mod call;
pub(crate) mod check;
pub(crate) mod container;
pub(crate) mod debug;
pub(crate) mod doctor;
pub(crate) mod explain;
pub(crate) mod graph;
pub(crate) mod history;
pub(crate) mod image;
pub(crate) mod image_content;
pub(crate) mod images;
pub(crate) mod inspect;
pub(crate) mod manual;
pub(crate) mod plan;
pub(crate) mod registry;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod space;
pub(crate) mod system;
pub(crate) mod system_check;
pub(crate) mod why;
