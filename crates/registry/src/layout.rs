//! Images in directories of this machine that stand in for a registry.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci::{Descriptor, Digest, Index, Reference};

use crate::client::{LARGEST_MANIFEST, manifest_type};
use crate::{RegistryError, Resolved};

const OFFICIAL: &str = "library/";

/// A directory that may be an image layout.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    directory: PathBuf,
    /// Whether the directory is one repository's, so that a tag alone names an image in it.
    of_repository: bool,
}

/// Looks for a manifest, by digest or by name.
pub(crate) fn resolve(
    root: &Path,
    reference: &Reference,
    subject: &str,
) -> Result<Resolved, RegistryError> {
    for place in places(root, reference) {
        let found = match reference.digest() {
            Some(digest) => {
                read_blob(&place.directory, digest, subject)?.map(|raw| (digest.clone(), raw))
            }
            None => match named(&place, reference)? {
                Some(entry) => {
                    let raw = read_blob(&place.directory, &entry.digest, subject)?
                        .ok_or_else(|| not_found(root, &format!("{subject} ({})", entry.digest)))?;
                    Some((entry.digest, raw))
                }
                None => None,
            },
        };
        if let Some((digest, raw)) = found {
            let source = name(root);
            let kind =
                manifest_type(subject, &source, "", &raw).map_err(|failure| failure.error)?;
            let descriptor = Descriptor::new(kind, digest, raw.len() as u64);
            return Ok(Resolved {
                descriptor,
                raw,
                source,
            });
        }
    }
    Err(not_found(root, subject))
}

/// Returns the file of a blob.
pub(crate) fn blob(
    root: &Path,
    reference: &Reference,
    digest: &Digest,
    subject: &str,
) -> Result<PathBuf, RegistryError> {
    let files = places(root, reference)
        .into_iter()
        .map(|place| place.directory.join(oci::layout::blob_path(digest)));
    let mut found = files.filter(|path| path.is_file());
    found.next().ok_or_else(|| not_found(root, subject))
}

/// Returns what a layout is called in messages.
pub(crate) fn name(root: &Path) -> String {
    format!("oci-layout:{}", root.display())
}

fn not_found(root: &Path, subject: &str) -> RegistryError {
    RegistryError::NotFound {
        subject: subject.to_owned(),
        endpoint: name(root),
        message: String::new(),
    }
}

fn places(root: &Path, reference: &Reference) -> Vec<Place> {
    let (registry, repository) = (reference.domain(), reference.path());
    let mut places = vec![Place {
        directory: root.to_owned(),
        of_repository: false,
    }];
    let mut add = |directory: PathBuf| {
        places.push(Place {
            directory,
            of_repository: true,
        })
    };
    add(root.join(registry).join(repository));
    add(root.join(repository));
    if registry == "docker.io"
        && let Some(short) = repository.strip_prefix(OFFICIAL)
    {
        add(root.join(short));
    }
    places.retain(|place| place.directory.join(oci::layout::INDEX_FILE).is_file());
    places
}

/// Looks in `index.json` for the entry of an image.
fn named(place: &Place, reference: &Reference) -> Result<Option<Descriptor>, RegistryError> {
    let path = place.directory.join(oci::layout::INDEX_FILE);
    let raw = read(&path)?.unwrap_or_default();
    let index: Index = serde_json::from_slice(&raw).map_err(|error| RegistryError::Settings {
        origin: path.display().to_string(),
        message: error.to_string(),
    })?;
    let tag = reference.tag().unwrap_or("latest");
    let is_meant = |entry: &&Descriptor| {
        let texts = [
            oci::layout::ANNOTATION_CONTAINERD_NAME,
            oci::layout::ANNOTATION_REF_NAME,
        ];
        let mut texts = texts.iter().filter_map(|name| entry.annotations.get(*name));
        texts.any(|text| {
            (place.of_repository && text == tag)
                || text
                    .parse::<Reference>()
                    .is_ok_and(|name| name.name() == reference.name() && name.tag() == Some(tag))
        })
    };
    if let Some(entry) = index.manifests.iter().find(is_meant) {
        return Ok(Some(entry.clone()));
    }
    // Tools that were told no tag write one entry without a name.
    match index.manifests.as_slice() {
        [entry]
            if place.of_repository
                && tag == "latest"
                && !entry
                    .annotations
                    .contains_key(oci::layout::ANNOTATION_REF_NAME) =>
        {
            Ok(Some(entry.clone()))
        }
        _ => Ok(None),
    }
}

fn read_blob(
    directory: &Path,
    digest: &Digest,
    subject: &str,
) -> Result<Option<Arc<[u8]>>, RegistryError> {
    let path = directory.join(oci::layout::blob_path(digest));
    let Some(raw) = read(&path)? else {
        return Ok(None);
    };
    if !digest.is_of(&raw) {
        return Err(RegistryError::DigestMismatch {
            subject: subject.to_owned(),
            endpoint: name(directory),
            expected: digest.clone(),
            actual: crate::client::digest_like(digest, &raw),
        });
    }
    Ok(Some(raw.into()))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, RegistryError> {
    let failed = |source| RegistryError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
        Ok(metadata) if metadata.len() > LARGEST_MANIFEST => Err(RegistryError::TooLarge {
            subject: path.display().to_string(),
            endpoint: "this machine".to_owned(),
            limit: LARGEST_MANIFEST,
        }),
        Ok(_) => std::fs::read(path).map(Some).map_err(failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(directory: &Path, names: &[(&str, &str)]) -> Vec<Digest> {
        let blobs = directory.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let mut entries = Vec::new();
        let mut digests = Vec::new();
        for (number, (key, value)) in names.iter().enumerate() {
            let raw = format!(
                "{{\"schemaVersion\":2,\"config\":{{}},\"layers\":[],\"number\":{number}}}"
            );
            let descriptor = Descriptor::of(oci::media_type::OCI_MANIFEST, raw.as_bytes());
            std::fs::write(
                directory.join(oci::layout::blob_path(&descriptor.digest)),
                raw,
            )
            .unwrap();
            digests.push(descriptor.digest.clone());
            entries.push(match *key {
                "" => descriptor,
                key => descriptor.with_annotation(key, *value),
            });
        }
        let index = serde_json::json!({"schemaVersion": 2, "manifests": entries});
        std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
        digests
    }

    fn check(root: &Path, reference: &str, expect: Option<&Digest>) {
        let found = resolve(root, &reference.parse().unwrap(), "manifest");
        match expect {
            Some(digest) => assert_eq!(found.unwrap().descriptor.digest, *digest, "{reference}"),
            None => assert!(found.unwrap_err().is_not_found(), "{reference}"),
        }
    }

    #[test]
    fn a_layout_names_its_images_in_full() {
        let root = tempfile::tempdir().unwrap();
        let names = [
            (
                oci::layout::ANNOTATION_REF_NAME,
                "docker.io/library/busybox:1.36",
            ),
            (
                oci::layout::ANNOTATION_CONTAINERD_NAME,
                "a.example/b:latest",
            ),
            (oci::layout::ANNOTATION_REF_NAME, "latest"),
            (oci::layout::ANNOTATION_REF_NAME, "alpine:3"),
        ];
        let digests = layout(root.path(), &names);
        check(root.path(), "busybox:1.36", Some(&digests[0]));
        check(root.path(), "a.example/b", Some(&digests[1]));
        check(root.path(), "alpine:3", Some(&digests[3]));
        // A tag alone would be the same image under every name.
        check(root.path(), "busybox", None);
        check(root.path(), "a.example/other", None);
        check(
            root.path(),
            &format!("any@{}", digests[2]),
            Some(&digests[2]),
        );
    }

    #[test]
    fn a_layout_of_one_repository_names_its_images_by_tag() {
        let root = tempfile::tempdir().unwrap();
        let tag = |tag| (oci::layout::ANNOTATION_REF_NAME, tag);
        let short = layout(&root.path().join("busybox"), &[tag("1.36"), tag("1.37")]);
        let path = layout(&root.path().join("org/tool"), &[("", "")]);
        let full = layout(&root.path().join("r.example/org/tool"), &[tag("v1")]);
        check(root.path(), "busybox:1.37", Some(&short[1]));
        check(root.path(), "busybox:latest", None);
        check(root.path(), "org/tool", Some(&path[0]));
        check(root.path(), "org/tool:2", None);
        check(root.path(), "r.example/org/tool:v1", Some(&full[0]));
        check(root.path(), "other.example/busybox:1.36", Some(&short[0]));
        check(root.path(), "unknown", None);
    }

    #[test]
    fn a_changed_blob_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let digests = layout(&root.path().join("busybox"), &[("", "")]);
        let file = root
            .path()
            .join("busybox")
            .join(oci::layout::blob_path(&digests[0]));
        std::fs::write(file, "{}").unwrap();
        let error = resolve(root.path(), &"busybox".parse().unwrap(), "manifest").unwrap_err();
        assert!(
            matches!(error, RegistryError::DigestMismatch { .. }),
            "{error}"
        );
    }
}
