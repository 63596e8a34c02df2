//! Writes a layer directory as a canonical layer tar.

mod options;

pub use options::{DiffOptions, Diffed, TimePrecision, Written};
