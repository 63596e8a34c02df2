//! Runs one process in a root: namespaces, mounts, network, capabilities, seccomp.
//!
//! *Responsibility.* A [`Helper`] process, single-threaded and one for the whole build, makes each step
//! with `clone3` from a closed [`Spec`]; rootful and rootless from the same code ([`userns`]).
//!
//! *Not here.* The graph, the store, what a layer is. The caller owns the directories a step's overlay is
//! made of and what becomes of them.
//!
//! *Invariants.*
//! - The process that builds never clones or forks; only the helper does.
//! - Nothing of the host but what a [`Spec`] names is seen by a command: no descriptor, no directory, no
//!   environment, no keyring, no abstract socket (save with the host's network).
//! - Paths inside a root are resolved component by component and never leave it, also while others change it.
//! - A step's processes and mounts are gone when its end is reported, and when the builder or the helper dies.
//! - What the sandbox put into a root for the step (mount points, `/etc/resolv.conf`) is taken out again
//!   unless the step made it its own.
//!
//! *On disk.* Nothing of its own but the layer of mount points ([`Options::stub_layer`]), where the caller wants it.

mod bundle;
mod bytes;
mod capabilities;
mod cgroups;
mod child;
mod command;
mod dial;
mod enter;
pub mod entry;
mod error;
mod executor;
mod exit;
mod helper;
mod machine;
mod mounts;
mod names;
mod netlink;
mod network;
mod oci;
mod open_files;
mod resolve;
mod runtime;
mod seccomp;
mod serve;
mod signals;
mod spec;
mod sys;
mod terminal;
pub mod userns;
mod users;
mod wire;
mod world;

pub use dial::Dialer;
pub use error::{SandboxError, Unfit};
pub use executor::{Executor, OciExecutor};
pub use exit::{Exit, Status, Usage};
pub use helper::{Helper, NetworkMode, Options, Running, Stdio};
pub use names::{hosts_file, resolver_file};
pub use network::bridge_obstacle;
pub use open_files::raise_open_files;
pub use runtime::Runtime;
pub use spec::{
    Content, Entered, Limits, Mount, Network, Overlay, Resource, Rlimit, Root, Security, Source,
    Spec, Upper, User,
};
pub use terminal::open_terminal;
pub use users::{Identity, resolve_user};
