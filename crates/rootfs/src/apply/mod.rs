//! Unpacks a layer tar into a layer directory, each layer by itself and without regard to those below.

mod options;

pub use options::{Applied, ApplyOptions, Devices, LeftOut, Limits, Ownership};
