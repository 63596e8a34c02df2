//! The state directory of lapstrake, shared by any number of processes.
//!
//! *Responsibility*: content-addressed blobs, layer directories, cache records, images and their
//! names, leases, records of builds, garbage collection, crash safety.
//!
//! *Not here*: network, the meaning of keys, mounting.
//!
//! *On disk*, under the root:
//! - `format`: one line, the number of the format and whose ids the files carry ("rootful", the
//!   id map of a rootless user, or "undecided" until there are any);
//! - `blobs/sha256/<hex>`: content, named by what it is;
//! - `layers/<id>/fs`: one layer, as an overlay lower directory;
//! - `mounts/<name>/fs`: a cache mount;
//! - `containers/<id>/fs`: what was written in a container, over its image's layers;
//! - `builds/<id>/`: logs of a build's steps, locked while it runs;
//! - `ingest/`: what is being written; whatever is here and not locked is rubbish;
//! - `locks/`: files that exist to be locked; the lock of a step names the log of who holds it;
//! - `records.db`: SQLite, all records.
//!
//! *Invariants*: a record never names a blob or a layer that is not whole; a blob is synced before
//! a record names it; a layer directory never changes after its commit; what is locked (leased) is
//! never removed; killed at any instruction, the next start finds a consistent store.

mod blob;
mod check;
mod collect;
mod container;
mod database;
mod error;
mod follow;
mod history;
mod image;
mod layer;
mod lease;
mod lock;
mod log;
mod mount;
mod policy;
mod record;
mod root;
#[cfg(test)]
mod testing;
mod usage;

pub use blob::{BlobWriter, Blobs};
pub use check::{CheckReport, Problem, set_records_aside};
pub use collect::{CollectPolicy, Collected, Disk};
pub use container::Container;
pub use error::StoreError;
pub use follow::{LockNote, Told, Waker};
pub use history::{BuildEntry, BuildFolder, FinishedBuild, HistoryLimits, OpenBuild};
pub use image::{Image, ImageName, NewNames, Variants};
pub use layer::{Layer, LayerId, LayerInfo, MutLayer};
pub use lease::BlobLease;
pub use lock::NamedLock;
pub use log::{LogPiece, LogReader, LogWriter};
pub use policy::{Space, SpaceLimits};
pub use record::{Encoding, Key, Record, ResultId};
pub use root::{Ids, OpenOptions, Store};
pub use usage::{Item, ItemKind, Usage};
