//! Images of the store as things of their own: found, pulled, pushed, saved, loaded.

mod load;
mod pull;
mod save;
mod stored;

use oci::Reference;
use store::{Image, ImageName, Store};

use crate::EngineError;

pub use load::Loaded;
pub use pull::Pulled;

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
    let hex = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    let is_hex = !hex.is_empty() && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut found = store.images()?;
    found.retain(|image| is_hex && image.id.hex().starts_with(&hex.to_ascii_lowercase()));
    match found.len() {
        0 => Ok(None),
        1 => Ok(Some((found.remove(0), None))),
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
