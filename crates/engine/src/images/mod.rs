//! Images of the store as things of their own: found, pulled, pushed, saved, loaded.

mod compare;
mod import;
pub(crate) mod load;
mod pull;
mod save;
mod stored;

use oci::{Digest, Platform, Reference};
use store::{Image, ImageName, Store};

use crate::EngineError;

pub use compare::LayerContent;
pub use import::ImportRequest;
pub use load::Loaded;
pub use pull::Pulled;
pub use rootfs::compare::{Change, Contents, Difference, Hidden};
pub(crate) use stored::StoredSet;
pub use stored::Subject;

/// Returns the image of a name or of an id, which may be shortened, and the name if it was one.
pub fn find(
    store: &Store,
    wanted: &str,
) -> Result<Option<(Image, Option<ImageName>)>, EngineError> {
    if let Ok(reference) = Reference::parse_normalized(wanted)
        && let Some(name) = name_of(store, reference)?
        && let Some(image) = store.image(&name.image)?
    {
        return Ok(Some((image, Some(name))));
    }
    Ok(by_id(store, wanted)?.map(|(subject, name)| (subject.image, name)))
}

/// Returns all that a name or an id stands for, and the name if it was one; with a platform, only what is for that.
pub fn find_subject(
    store: &Store,
    wanted: &str,
    platform: Option<&Platform>,
) -> Result<Option<(Subject, Option<ImageName>)>, EngineError> {
    if let Ok(reference) = Reference::parse_normalized(wanted)
        && let Some(name) = name_of(store, reference)?
    {
        let subject = Subject::of_name(store, &name, platform)?;
        return Ok(subject.map(|subject| (subject, Some(name))));
    }
    let found = by_id(store, wanted)?;
    Ok(found.filter(|(subject, _)| match platform {
        None => true,
        Some(platform) => stored::best_for(&subject.images, platform).is_some(),
    }))
}

/// Returns the image, or the images of the index, whose id begins like this.
fn by_id(store: &Store, wanted: &str) -> Result<Option<(Subject, Option<ImageName>)>, EngineError> {
    let hex = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    let is_hex = !hex.is_empty() && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_hex {
        return Ok(None);
    }
    let hex = hex.to_ascii_lowercase();
    let mut found: Vec<(Digest, Subject)> = Vec::new();
    for image in store.images()? {
        if image.id.hex().starts_with(&hex) {
            found.push((image.id.clone(), Subject::single(image)));
        }
    }
    for name in store.names()? {
        let Some(variants) = &name.variants else {
            continue;
        };
        let known = found.iter().any(|(id, _)| *id == variants.index);
        if variants.index.hex().starts_with(&hex)
            && !known
            && let Some(subject) = Subject::of_name(store, &name, None)?
        {
            found.push((variants.index.clone(), subject));
        }
    }
    match found.len() {
        0 => Ok(None),
        1 => Ok(Some((found.remove(0).1, None))),
        count => Err(EngineError::Request(format!(
            "{wanted} is the beginning of {count} image ids; write more of it"
        ))),
    }
}

/// Returns the name that a reference means: by its tag, or by the digest a registry knows it by.
fn name_of(store: &Store, reference: Reference) -> Result<Option<ImageName>, EngineError> {
    let Some(digest) = reference.digest().cloned() else {
        return Ok(store.name(&reference.or_latest().to_string())?);
    };
    let repository = reference.name();
    let mut names = store.names()?.into_iter().filter(|name| {
        let same = Reference::parse_normalized(&name.reference)
            .is_ok_and(|known| known.name() == repository);
        same && (name.digest.as_ref() == Some(&digest) || name.image == digest)
    });
    Ok(names.next())
}
