//! Images and their names.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::OptionalExtension;
use serde::{Deserialize, Serialize};

use oci::{Digest, Reference};

use crate::{LayerId, Store, StoreError};

/// An image of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// IMAGE ID: the digest of the config, which is a blob.
    pub id: Digest,
    /// The manifest it was pulled by, a blob, if it was pulled.
    pub manifest: Option<Digest>,
    /// Its layers, lowest first; `None` while they have not been unpacked.
    pub layers: Option<Vec<LayerId>>,
    /// `os/architecture[/variant]`.
    pub platform: String,
    /// Bytes of all its layers' content.
    pub size: u64,
    /// When the image was made, in seconds since 1970.
    pub created: i64,
    /// Annotations of the manifest it was built with; those of a pulled one are in its manifest.
    pub annotations: BTreeMap<String, String>,
}

/// A name and what it points to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName {
    /// The canonical reference, with its tag.
    pub reference: String,
    /// The image's id.
    pub image: Digest,
    /// The digest the registry knows it by, if it was pulled or pushed under this name.
    pub digest: Option<Digest>,
    /// The images of all platforms, where the name stands for several.
    pub variants: Option<Variants>,
    /// When the name was given, in seconds since 1970.
    pub updated: i64,
}

/// Images of several platforms under one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variants {
    /// The index over them, a blob.
    pub index: Digest,
    /// Their ids, in the order of the index.
    pub images: Vec<Digest>,
}

impl ImageName {
    /// Returns the ids of all images the name stands for.
    pub fn images(&self) -> &[Digest] {
        match &self.variants {
            Some(variants) => &variants.images,
            None => std::slice::from_ref(&self.image),
        }
    }
}

/// Names to give to an image, or to the images of several platforms.
#[derive(Debug, Clone, Copy, Default)]
pub struct NewNames<'a> {
    pub names: &'a [Reference],
    /// The digest the registry knows it by.
    pub digest: Option<&'a Digest>,
    pub variants: Option<&'a Variants>,
}

type ImageRow = (
    String,
    Option<String>,
    Option<String>,
    String,
    i64,
    i64,
    Option<String>,
);

impl Store {
    /// Adds an image, or brings its record up to date, and gives it names; whoever had one of them
    /// before loses it. Its config is a blob already, and its layers are leased.
    ///
    /// All in one step: an image without a name may be pruned at any moment.
    pub fn put_image(
        &self,
        image: &Image,
        names: &[Reference],
        digest: Option<&Digest>,
    ) -> Result<(), StoreError> {
        let names = NewNames {
            names,
            digest,
            variants: None,
        };
        self.put_images(std::slice::from_ref(image), &image.id, names)
    }

    /// Adds the images of several platforms as [`Store::put_image`] adds one; the names stand for all of them,
    /// and for `usual` where one is meant.
    pub fn put_images(
        &self,
        images: &[Image],
        usual: &Digest,
        names: NewNames<'_>,
    ) -> Result<(), StoreError> {
        let now = self.now();
        self.write("record an image", |transaction| {
            for image in images {
                insert(transaction, image, now)?;
            }
            for name in names.names {
                give_name(transaction, name, usual, &names, now)?;
            }
            Ok(())
        })
    }

    /// Returns an image by its id.
    pub fn image(&self, id: &Digest) -> Result<Option<Image>, StoreError> {
        self.database()
            .prepare_cached(
                "SELECT id, manifest, layers, platform, size, created, annotations FROM image WHERE id = ?1",
            )
            .and_then(|mut statement| statement.query_row([id.to_string()], image_row).optional())
            .map_err(StoreError::database("look up an image"))?
            .map(image_of_row)
            .transpose()
    }

    /// Returns all images, newest first.
    pub fn images(&self) -> Result<Vec<Image>, StoreError> {
        let rows: Vec<ImageRow> = self
            .database()
            .prepare_cached(
                "SELECT id, manifest, layers, platform, size, created, annotations FROM image
                 ORDER BY created DESC, id",
            )
            .and_then(|mut statement| statement.query_map([], image_row)?.collect())
            .map_err(StoreError::database("list the images"))?;
        rows.into_iter().map(image_of_row).collect()
    }

    /// Removes an image's record; its content goes with the next collection.
    pub fn remove_image(&self, id: &Digest) -> Result<(), StoreError> {
        self.write("remove an image", |transaction| {
            let id = id.to_string();
            transaction.execute(
                "DELETE FROM name WHERE reference IN (SELECT reference FROM named WHERE image = ?1)",
                [&id],
            )?;
            transaction.execute("DELETE FROM image WHERE id = ?1", [&id])?;
            Ok(())
        })
    }

    /// Removes the records of those of these images that have no name; returns them, in the order given.
    ///
    /// All names are read once, however many images there are.
    pub fn remove_images_without_name(&self, ids: &[Digest]) -> Result<Vec<Digest>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.write("remove images", |transaction| {
            let named: BTreeSet<String> = transaction
                .prepare_cached("SELECT image FROM named")?
                .query_map([], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            let mut delete = transaction.prepare_cached("DELETE FROM image WHERE id = ?1")?;
            let mut removed = Vec::new();
            for id in ids {
                let text = id.to_string();
                if !named.contains(&text) && delete.execute([text])? > 0 {
                    removed.push(id.clone());
                }
            }
            Ok(removed)
        })
    }

    /// Gives an image of the store a name; whoever had it before loses it.
    pub fn set_name(
        &self,
        reference: &Reference,
        image: &Digest,
        digest: Option<&Digest>,
    ) -> Result<(), StoreError> {
        self.set_name_of(reference, image, digest, None)
    }

    /// Gives the images of several platforms a name; `image` is the one that is meant where one is wanted.
    pub fn set_name_of(
        &self,
        reference: &Reference,
        image: &Digest,
        digest: Option<&Digest>,
        variants: Option<&Variants>,
    ) -> Result<(), StoreError> {
        let now = self.now();
        let names = NewNames {
            names: &[],
            digest,
            variants,
        };
        let given = self.write("name an image", |transaction| {
            give_name(transaction, reference, image, &names, now)
        })?;
        match given {
            0 => Err(StoreError::NoImage { id: image.clone() }),
            _ => Ok(()),
        }
    }

    /// Takes a name away; returns whether it was there.
    pub fn remove_name(&self, reference: &str) -> Result<bool, StoreError> {
        self.write("remove a name", |transaction| {
            Ok(transaction.execute("DELETE FROM name WHERE reference = ?1", [reference])? > 0)
        })
    }

    /// Returns what a canonical reference points to.
    pub fn name(&self, reference: &str) -> Result<Option<ImageName>, StoreError> {
        let found = self.names_where("WHERE reference = ?1", &[&reference])?;
        Ok(found.into_iter().next())
    }

    /// Returns all names, in their order.
    pub fn names(&self) -> Result<Vec<ImageName>, StoreError> {
        self.names_where("ORDER BY reference", &[])
    }

    fn names_where(
        &self,
        clause: &str,
        values: &[&dyn rusqlite::ToSql],
    ) -> Result<Vec<ImageName>, StoreError> {
        type NameRow = (String, String, Option<String>, i64, Option<String>);
        let row = |row: &rusqlite::Row<'_>| -> rusqlite::Result<NameRow> {
            Ok((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get(4)?,
            ))
        };
        let rows: Vec<NameRow> = self
            .database()
            .prepare_cached(&format!(
                "SELECT reference, image, digest, updated, variants FROM name {clause}"
            ))
            .and_then(|mut statement| statement.query_map(values, row)?.collect())
            .map_err(StoreError::database("list the names"))?;
        rows.into_iter()
            .map(|(reference, image, digest, updated, variants)| {
                let variants = variants.map(|text| parse_json(&reference, &text));
                Ok(ImageName {
                    variants: variants.transpose()?,
                    image: parse_digest(&reference, &image)?,
                    digest: digest
                        .map(|text| parse_digest(&reference, &text))
                        .transpose()?,
                    reference,
                    updated,
                })
            })
            .collect()
    }
}

fn insert(
    transaction: &rusqlite::Transaction<'_>,
    image: &Image,
    now: i64,
) -> rusqlite::Result<usize> {
    let layers = image
        .layers
        .as_ref()
        .map(|layers| serde_json::to_string(layers).expect("numbers can be written"));
    let annotations = (!image.annotations.is_empty())
        .then(|| serde_json::to_string(&image.annotations).expect("text can be written"));
    transaction.execute(
        "INSERT INTO image(id, manifest, layers, platform, size, created, used, annotations)
         VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT(id) DO UPDATE SET manifest = coalesce(?2, manifest),
           layers = coalesce(?3, layers), size = ?5, used = ?7, annotations = ?8",
        rusqlite::params![
            image.id.to_string(),
            image.manifest.as_ref().map(ToString::to_string),
            layers,
            image.platform,
            image.size as i64,
            image.created,
            now,
            annotations
        ],
    )
}

/// Names an image that is there, with all its variants; returns 0 where it is not.
fn give_name(
    transaction: &rusqlite::Transaction<'_>,
    reference: &Reference,
    image: &Digest,
    names: &NewNames<'_>,
    now: i64,
) -> rusqlite::Result<usize> {
    let images = names.variants.map(|variants| &variants.images);
    let images = serde_json::to_string(&images).expect("digests can be written");
    let variants = names
        .variants
        .map(|variants| serde_json::to_string(variants).expect("digests can be written"));
    transaction.execute(
        "INSERT OR REPLACE INTO name(reference, image, digest, updated, variants)
         SELECT ?1, id, ?3, ?4, ?5 FROM image WHERE id = ?2 AND NOT EXISTS
           (SELECT 1 FROM json_each(?6) WHERE value NOT IN (SELECT id FROM image))",
        rusqlite::params![
            reference.to_string(),
            image.to_string(),
            names.digest.map(ToString::to_string),
            now,
            variants,
            images
        ],
    )
}

fn image_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<ImageRow> {
    Ok((
        row.get(0)?,
        row.get(1)?,
        row.get(2)?,
        row.get(3)?,
        row.get(4)?,
        row.get(5)?,
        row.get(6)?,
    ))
}

fn parse_json<T: serde::de::DeserializeOwned>(subject: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Damaged {
        subject: subject.to_owned(),
        reason: error.to_string(),
    })
}

fn image_of_row(row: ImageRow) -> Result<Image, StoreError> {
    let (id, manifest, layers, platform, size, created, annotations) = row;
    let subject = format!("image {id}");
    let layers = layers.map(|text| parse_json(&subject, &text)).transpose()?;
    let annotations = annotations.map(|text| parse_json(&subject, &text));
    Ok(Image {
        annotations: annotations.transpose()?.unwrap_or_default(),
        manifest: manifest.map(|text| parse_digest(&id, &text)).transpose()?,
        id: parse_digest(&id, &id)?,
        layers,
        platform,
        size: size as u64,
        created,
    })
}

fn parse_digest(subject: &str, text: &str) -> Result<Digest, StoreError> {
    text.parse().map_err(|_| StoreError::Damaged {
        subject: subject.to_owned(),
        reason: format!("{text:?} is no digest"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::store;

    #[test]
    fn images_without_a_name_go_together_and_named_ones_stay() {
        let (_folder, store) = store();
        let image = |number: u8| Image {
            id: Digest::sha256_of(&[number]),
            manifest: None,
            layers: None,
            platform: "linux/amd64".to_owned(),
            size: 0,
            created: 0,
            annotations: BTreeMap::new(),
        };
        let ids: Vec<Digest> = (0..4).map(|number| image(number).id).collect();
        let name: Reference = "docker.io/library/app:latest".parse().expect("a name");
        let several = Variants {
            index: Digest::sha256_of(b"index"),
            images: vec![ids[1].clone(), ids[2].clone()],
        };
        let names = NewNames {
            names: &[name],
            digest: None,
            variants: Some(&several),
        };
        store
            .put_images(&[image(0), image(1), image(2)], &ids[1], names)
            .expect("room");
        // The last one is not in the store at all.
        let removed = store.remove_images_without_name(&ids).expect("removed");
        assert_eq!(removed, [ids[0].clone()]);
        let left: Vec<Digest> = store
            .images()
            .expect("a list")
            .into_iter()
            .map(|it| it.id)
            .collect();
        assert_eq!(left.len(), 2);
        assert!(left.contains(&ids[1]) && left.contains(&ids[2]));
    }
}
