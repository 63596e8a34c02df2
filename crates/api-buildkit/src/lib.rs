//! BuildKit's gRPC API over the engine: what `docker buildx`, `buildctl` and their kin speak.
//!
//! *Responsibility*: serves `moby.buildkit.v1` (Control, the session tunnel with its callbacks, LLBBridge) and health
//! on a socket; turns requests into graphs for the engine, the engine's events into statuses, its errors into what
//! clients print with the lines of the Dockerfile. The frontend `dockerfile.v0` is built in.
//!
//! *Not here*: solving, storing, exporting: the engine's. Arguments and signals: the command line's.
//!
//! *Invariants*
//! - What a client sends is hostile until checked: a path of its files never leads out of the directory they go to.
//! - A build ends when the call that started it does: a client that has gone holds nothing.
//! - A capability that is announced works; what is not possible is refused by its name.
//!
//! *On disk*: `sync/` in the state directory keeps the files of clients' directories, so that only what changed is
//! sent again. Whoever uses such a directory holds a lock on it. `served/` remembers builds that have ended.

#![forbid(unsafe_code)]

mod attestations;
mod auth;
mod bridge;
mod build;
mod caches;
mod caps;
mod client;
mod collector;
mod config;
mod containers;
mod content;
mod control;
mod dockerfile;
mod error;
mod exec;
mod export;
mod files;
mod filesend;
mod filesync;
mod filter;
mod frontend_image;
mod gateway;
mod history;
mod history_filter;
mod info;
mod jobs;
mod listen;
mod local;
mod named_contexts;
mod options;
mod policy;
mod reading;
mod scope;
mod serve;
mod session;
mod source_meta;
mod status;
mod subrequest;
mod trace;
mod usage;
mod verifier;
mod wire;

pub use collector::Collector;
pub use config::{Config, Warning};
pub use error::ServeError;
pub use listen::{Access, Address, Tls};
pub use local::Frontends;
pub use serve::{HistoryLimits, Server, Settings};
