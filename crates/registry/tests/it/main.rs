//! The client against registries: one in this process that can be told to misbehave, and Debian's.

mod auth;
mod chaos;
mod configuration;
mod debian;
mod proxy;
mod pull;
mod push;
mod server;
mod tls;

use std::time::Duration;

use oci::{Descriptor, Digest, Reference, media_type};
use registry::{Client, RetryPolicy, Settings, Timeouts};

/// Settings that wait little and look at nothing on this machine.
pub(crate) fn settings() -> Settings {
    Settings {
        retry: RetryPolicy {
            first_wait: Duration::from_millis(1),
            longest_wait: Duration::from_millis(5),
            ..RetryPolicy::default()
        },
        timeouts: Timeouts {
            silence: Duration::from_millis(500),
            ..Timeouts::default()
        },
        ..Settings::default()
    }
}

pub(crate) fn client() -> Client {
    Client::new(settings())
}

/// Makes settings with one table for a registry, `HERE` being `authority`.
pub(crate) fn settings_with(authority: &str, toml: &str) -> Settings {
    let mut settings = settings();
    let toml = toml.replace("HERE", authority);
    settings
        .read_toml(std::path::Path::new("/test.toml"), &toml)
        .unwrap();
    settings
}

pub(crate) fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

/// Bytes that are the same for the same seed and have no pattern.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    use rand::{RngCore, SeedableRng};
    let mut bytes = vec![0; length];
    rand::rngs::StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

pub(crate) fn blob(content: &[u8]) -> Descriptor {
    Descriptor::of(media_type::OCI_LAYER, content)
}

/// Returns a manifest of one config and layers.
pub(crate) fn manifest(config: &[u8], layers: &[&[u8]]) -> Vec<u8> {
    let config = Descriptor::of(media_type::OCI_CONFIG, config);
    let layers = layers.iter().map(|layer| blob(layer)).collect();
    let manifest = oci::Manifest::new(media_type::Naming::Oci, config, layers);
    oci::Parsed::of(manifest).raw().to_vec()
}

pub(crate) fn digest(content: &[u8]) -> Digest {
    Digest::sha256_of(content)
}
