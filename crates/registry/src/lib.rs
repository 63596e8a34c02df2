//! The distribution client: resolve, fetch, push, auth, mirrors, retry.
//!
//! *Responsibility*: images in registries by the OCI distribution specification 1.1 and Docker's forms of it, by way
//! of mirrors, proxies and logins as the user has configured them for this and other tools.
//!
//! *Not here*: the store, compression and unpacking, the choice of a platform, any terminal.
//!
//! *Invariants*
//! - Content is given out only while it is checked: manifests whole, blobs as they stream, and the end of a stream is
//!   reached only when digest and size are right. An error before that means that what came is not to be used.
//! - Only a tag is ever taken on the word of a server; what it resolved to is fetched by digest, wherever from.
//! - A login goes to the origin it is for and to the token server this origin names, never along a redirect.
//! - A request that failed in passing is repeated here, within [`RetryPolicy`]; whoever gets an error need not guess.
//! - Making a [`Client`] reads nothing and connects to nothing.

#![forbid(unsafe_code)]

mod answer;
mod auth;
mod blob;
mod client;
mod content;
mod credentials;
mod download;
mod error;
mod http;
mod layout;
mod listing;
mod push;
mod reader;
mod retry;
mod settings;
mod tls;
mod transport;

pub use blob::BlobStream;
pub use client::{Client, Resolved};
pub use content::{BlobSource, Opener, Progress};
pub use credentials::{Credential, CredentialProvider, CredentialSources, Stored, login, logout};
pub use error::{Cause, ErrorClass, RegistryError};
pub use push::{PushOptions, Pushed, UploadForm};
pub use reader::BlobReader;
pub use retry::RetryPolicy;
pub use settings::{
    ConfigurationSources, KeyPair, Mirror, ProxyUse, RegistrySettings, Settings, Timeouts,
};
