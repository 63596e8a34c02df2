//! Layers: unpacking what others and enemies write, writing what others read, and both in a circle.

mod compress;
mod forms;
mod hostile;
mod malformed;
mod mend;
mod rootless;
mod round_trip;
mod support;
