//! Containers: an image's layers, and a directory of their own for what is written over them.

use std::path::PathBuf;

use rusqlite::OptionalExtension;

use oci::Digest;

use crate::layer::remove_tree;
use crate::{LayerId, NamedLock, Store, StoreError};

/// A container of the store. As long as it is recorded, its layers are not removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// 64 hexadecimal digits, drawn by who makes it.
    pub id: String,
    /// No two containers have the same.
    pub name: String,
    /// The id of its image.
    pub image: Digest,
    /// The image's layers, lowest first.
    pub layers: Vec<LayerId>,
    /// JSON, the engine's: how it is run and how it ended.
    pub info: String,
    /// Seconds since 1970.
    pub created: i64,
}

type ContainerRow = (String, String, String, String, String, i64);

const COLUMNS: &str = "id, name, image, layers, info, created";

impl Store {
    /// Records a container; fails where its name is taken. The caller holds leases on the layers.
    pub fn add_container(&self, container: &Container) -> Result<(), StoreError> {
        let layers = serde_json::to_string(&container.layers).expect("numbers can be written");
        let added = self.write("add a container", |transaction| {
            transaction.execute(
                "INSERT OR IGNORE INTO container(id, name, image, layers, info, created)
                 VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
                rusqlite::params![
                    container.id,
                    container.name,
                    container.image.to_string(),
                    layers,
                    container.info,
                    container.created
                ],
            )
        })?;
        match added {
            0 => Err(StoreError::NameTaken {
                name: container.name.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Returns a container by its whole id.
    pub fn container(&self, id: &str) -> Result<Option<Container>, StoreError> {
        self.database()
            .prepare_cached(&format!("SELECT {COLUMNS} FROM container WHERE id = ?1"))
            .and_then(|mut statement| statement.query_row([id], container_row).optional())
            .map_err(StoreError::database("look up a container"))?
            .map(container_of_row)
            .transpose()
    }

    /// Returns all containers, newest first.
    pub fn containers(&self) -> Result<Vec<Container>, StoreError> {
        let rows: Vec<ContainerRow> = self
            .database()
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM container ORDER BY created DESC, rowid DESC"
            ))
            .and_then(|mut statement| statement.query_map([], container_row)?.collect())
            .map_err(StoreError::database("list the containers"))?;
        rows.into_iter().map(container_of_row).collect()
    }

    /// Replaces what the engine has recorded of a container.
    pub fn set_container_info(&self, id: &str, info: &str) -> Result<(), StoreError> {
        self.write("record a container's state", |transaction| {
            transaction.execute("UPDATE container SET info = ?2 WHERE id = ?1", [id, info])?;
            Ok(())
        })
    }

    /// Gives a container another name; fails where it is taken.
    pub fn rename_container(&self, id: &str, name: &str) -> Result<(), StoreError> {
        let renamed = self.write("rename a container", |transaction| {
            transaction.execute(
                "UPDATE OR IGNORE container SET name = ?2 WHERE id = ?1",
                [id, name],
            )
        })?;
        match renamed {
            0 => Err(StoreError::NameTaken {
                name: name.to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Returns the folder of a container: `fs` takes what is written, the rest is the engine's.
    pub fn container_folder(&self, id: &str) -> PathBuf {
        self.path(&format!("containers/{id}"))
    }

    /// Takes the lock that is held while a container runs; `None` while it does.
    pub fn try_lock_container(&self, id: &str) -> Result<Option<NamedLock>, StoreError> {
        self.try_lock(&format!("container-{id}"))
    }

    /// Removes a container and what was written in it. The caller holds its lock.
    pub fn remove_container(&self, id: &str) -> Result<(), StoreError> {
        self.write("remove a container", |transaction| {
            transaction.execute("DELETE FROM container WHERE id = ?1", [id])
        })?;
        let folder = self.container_folder(id);
        remove_tree(&folder).map_err(StoreError::io("remove", &folder))
    }
}

fn container_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<ContainerRow> {
    Ok((
        row.get(0)?,
        row.get(1)?,
        row.get(2)?,
        row.get(3)?,
        row.get(4)?,
        row.get(5)?,
    ))
}

fn container_of_row(row: ContainerRow) -> Result<Container, StoreError> {
    let (id, name, image, layers, info, created) = row;
    let damaged = |reason: String| StoreError::Damaged {
        subject: format!("container {name}"),
        reason,
    };
    let image = image
        .parse()
        .map_err(|_| damaged(format!("{image:?} is no digest")))?;
    let layers = serde_json::from_str(&layers).map_err(|error| damaged(error.to_string()))?;
    Ok(Container {
        id,
        name,
        image,
        layers,
        info,
        created,
    })
}
