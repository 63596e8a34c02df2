//! Platforms: their short text (`linux/arm/v7`), canonical form, and which image suits which machine.
//!
//! The rules are those of containerd's platforms package, which Docker and BuildKit use.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::json::null_default;

mod matcher;
mod specifier;

pub use matcher::PlatformMatcher;

/// Why a text names no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlatformError {
    #[error("platform {text:?} has wildcards, which are not supported")]
    Wildcard { text: String },
    #[error("{component:?} in platform {text:?} has invalid characters")]
    Component { text: String, component: String },
    #[error("{option:?} in platform {text:?} has an invalid percent escape")]
    Escape { text: String, option: String },
    #[error("{text:?} is neither a known operating system nor a known architecture")]
    Unknown { text: String },
    #[error("platform {text:?} has more than three components")]
    Components { text: String },
}

/// What an image runs on, in Go's names. Empty texts mean not set.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    #[serde(deserialize_with = "null_default")]
    pub architecture: String,
    #[serde(deserialize_with = "null_default")]
    pub os: String,
    #[serde(
        rename = "os.version",
        deserialize_with = "null_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub os_version: String,
    #[serde(
        rename = "os.features",
        deserialize_with = "null_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
    #[serde(
        deserialize_with = "null_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub variant: String,
}

impl Platform {
    pub fn new(
        os: impl Into<String>,
        architecture: impl Into<String>,
        variant: impl Into<String>,
    ) -> Self {
        Self {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.into(),
            ..Self::default()
        }
    }

    /// Returns the platform this program was compiled for, normalized.
    pub fn host() -> Self {
        Self::new(host_os(), host_architecture(), "").normalized()
    }

    /// Returns the canonical form: known spellings unified, the variant given only where it says something.
    #[must_use]
    pub fn normalized(&self) -> Self {
        let (architecture, variant) =
            specifier::normalize_architecture(&self.architecture, &self.variant);
        let mut os_features = self.os_features.clone();
        os_features.sort();
        os_features.dedup();
        Self {
            os: specifier::normalize_os(&self.os),
            architecture,
            variant,
            os_version: self.os_version.clone(),
            os_features,
        }
    }

    /// Returns the text with the version and features of the operating system, `windows(10.0.17763)/amd64`.
    pub fn full(&self) -> String {
        specifier::format(self, true)
    }
}

/// The short text, without the version and features of the operating system.
impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&specifier::format(self, false))
    }
}

/// Reads `os`, `architecture`, `os/architecture` or `os/architecture/variant`; what is missing is this machine's.
impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        specifier::parse(text)
    }
}

fn host_os() -> &'static str {
    match std::env::consts::OS {
        "macos" => "darwin",
        other => other,
    }
}

fn host_architecture() -> &'static str {
    let little_endian = cfg!(target_endian = "little");
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if little_endian => "ppc64le",
        "powerpc64" => "ppc64",
        "loongarch64" => "loong64",
        "mips64" if little_endian => "mips64le",
        "mips" if little_endian => "mipsle",
        "wasm32" => "wasm",
        other => other,
    }
}
