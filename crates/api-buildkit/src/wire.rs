//! How files and platforms are described on the wire: Go's file modes, and header values.

use std::path::{Component, Path};

use bollard_buildkit_proto::pb;
use oci::Platform;
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};

use crate::error::Failure;

/// Bits of Go's `os.FileMode`.
pub(crate) const DIRECTORY: u32 = 1 << 31;
pub(crate) const SYMLINK: u32 = 1 << 27;
pub(crate) const DEVICE: u32 = 1 << 26;
pub(crate) const FIFO: u32 = 1 << 25;
pub(crate) const SOCKET: u32 = 1 << 24;
const SETUID: u32 = 1 << 23;
const SETGID: u32 = 1 << 22;
pub(crate) const CHARACTER: u32 = 1 << 21;
const STICKY: u32 = 1 << 20;
const IRREGULAR: u32 = 1 << 19;
/// All that make a file no regular one.
pub(crate) const TYPE: u32 = DIRECTORY | SYMLINK | DEVICE | FIFO | SOCKET | CHARACTER | IRREGULAR;

/// Returns the twelve permission bits of a mode.
pub(crate) fn permissions(mode: u32) -> u32 {
    let bit = |go: u32, unix: u32| if mode & go != 0 { unix } else { 0 };
    (mode & 0o777) | bit(SETUID, 0o4000) | bit(SETGID, 0o2000) | bit(STICKY, 0o1000)
}

/// Returns the mode of permission bits, without a type.
pub(crate) fn mode_of(permissions: u32) -> u32 {
    let bit = |unix: u32, go: u32| if permissions & unix != 0 { go } else { 0 };
    (permissions & 0o777) | bit(0o4000, SETUID) | bit(0o2000, SETGID) | bit(0o1000, STICKY)
}

/// Whether a path is relative and made of plain names alone.
pub(crate) fn is_plain(path: &str) -> bool {
    let mut components = Path::new(path).components();
    !path.is_empty()
        && path.len() <= 4096
        && !path.contains('\0')
        && !path.ends_with('/')
        && !path.contains("//")
        && components.all(|part| matches!(part, Component::Normal(_)))
        && path.split('/').all(|part| part != "." && part.len() <= 255)
}

/// Adds values under one name, encoded as the client decodes them.
pub(crate) fn put(
    metadata: &mut MetadataMap,
    name: &str,
    values: &[String],
) -> Result<(), Failure> {
    let wrong = |_| Failure::unknown(format!("invalid header {name}"));
    let encode = values.iter().any(|value| !value.is_ascii());
    let key = |name: &str| MetadataKey::from_bytes(name.as_bytes()).map_err(|_| wrong(()));
    for value in values {
        let value = match encode {
            true => escape(value),
            false => value.clone(),
        };
        let value = MetadataValue::try_from(value).map_err(|_| wrong(()))?;
        metadata.append(key(name)?, value);
    }
    if encode {
        metadata.append(
            key(&format!("{name}-encoded"))?,
            MetadataValue::from_static("1"),
        );
    }
    Ok(())
}

/// Escapes as Go's `url.QueryEscape` does.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(byte as char);
            }
            b' ' => escaped.push('+'),
            byte => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// Returns a platform as it is described to others.
pub(crate) fn platform(platform: &Platform) -> pb::Platform {
    pb::Platform {
        os: platform.os.clone(),
        architecture: platform.architecture.clone(),
        variant: platform.variant.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_paths_are_taken_from_a_client() {
        for good in ["a", "a/b", ".hidden/..x", "a b/\u{e9}"] {
            assert!(is_plain(good), "{good}");
        }
        for bad in ["", "/a", "..", "a/../b", "a/.", "./a", "a//b", "a/", "a\0b"] {
            assert!(!is_plain(bad), "{bad:?}");
        }
        assert!(!is_plain(&"x".repeat(256)));
    }

    #[test]
    fn modes_go_both_ways() {
        for mode in [0o644, 0o4755, 0o2755, 0o1777] {
            assert_eq!(permissions(mode_of(mode)), mode);
        }
    }

    #[test]
    fn headers_are_escaped_only_where_they_must() {
        let mut metadata = MetadataMap::new();
        put(&mut metadata, "followpaths", &["a b%".to_owned()]).unwrap();
        assert_eq!(metadata.get("followpaths").unwrap(), "a b%");
        put(&mut metadata, "dir-name", &["\u{e9} %".to_owned()]).unwrap();
        assert_eq!(metadata.get("dir-name").unwrap(), "%C3%A9+%25");
        assert_eq!(metadata.get("dir-name-encoded").unwrap(), "1");
    }
}
