//! Lists of the files that steps took from contexts, by the checksum that is part of their keys.
//!
//! A list is kept when a step runs, so that the next one that runs can say which file has changed. Only the
//! first ten thousand files of a selection are named.

use std::collections::BTreeMap;

use llb::Op;
use rootfs::Kind;
use rootfs::checksum::Selection;
use serde::{Deserialize, Serialize};
use store::Store;

use crate::EngineError;
use crate::context::{ContextTree, selections_of};
use crate::step::Shared;

/// Files of one selection that are named.
const MOST: usize = 10_000;
/// Where lists are remembered.
const SPACE: &str = "files";
/// Larger lists than this were written by nobody.
const MOST_BYTES: usize = 64 << 20;

/// The files of a selection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileList {
    /// By path.
    pub files: BTreeMap<String, FileEntry>,
    /// How many more there were.
    #[serde(default)]
    pub more: u64,
}

/// What counts of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// `f`, `d`, `l`, and so on, as in `find -type`.
    #[serde(rename = "t")]
    pub kind: char,
    #[serde(rename = "m")]
    pub mode: u32,
    #[serde(rename = "u")]
    pub uid: u32,
    #[serde(rename = "g")]
    pub gid: u32,
    /// The first digits of a digest of content, link target and extended attributes.
    #[serde(rename = "c")]
    pub content: String,
}

/// How two lists differ.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FileChanges {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    /// Paths of files with other content.
    pub changed: Vec<String>,
    /// Paths of files with another mode, owner or type, and what it was and is.
    pub attributes: Vec<(String, String)>,
}

impl FileList {
    /// Compares this list with a later one.
    pub fn changes(&self, later: &FileList) -> FileChanges {
        let mut changes = FileChanges::default();
        for (path, before) in &self.files {
            let Some(after) = later.files.get(path) else {
                changes.removed.push(path.clone());
                continue;
            };
            if before.kind != after.kind {
                let text = format!("{} became {}", kind_in_words(before), kind_in_words(after));
                changes.attributes.push((path.clone(), text));
            } else if before.content != after.content {
                changes.changed.push(path.clone());
            } else if before.mode != after.mode {
                let text = format!("mode {:04o} became {:04o}", before.mode, after.mode);
                changes.attributes.push((path.clone(), text));
            } else if (before.uid, before.gid) != (after.uid, after.gid) {
                let text = format!(
                    "owner {}:{} became {}:{}",
                    before.uid, before.gid, after.uid, after.gid
                );
                changes.attributes.push((path.clone(), text));
            }
        }
        for path in later.files.keys() {
            if !self.files.contains_key(path) {
                changes.added.push(path.clone());
            }
        }
        changes
    }
}

fn kind_in_words(file: &FileEntry) -> &'static str {
    match file.kind {
        'f' => "a file",
        'd' => "a directory",
        'l' => "a symlink",
        _ => "a special file",
    }
}

/// Keeps the lists of what an operation takes of the context that is its input `input`.
pub(crate) fn keep(
    shared: &Shared,
    tree: &ContextTree,
    op: &Op,
    input: usize,
) -> Result<(), EngineError> {
    for selection in selections_of(op, input)? {
        let checksum = tree.checksum(&selection)?;
        if shared.store.recall(SPACE, &checksum)?.is_some() {
            continue;
        }
        let list = list_of(tree, &selection)?;
        let json = serde_json::to_vec(&list).expect("a list can be written as JSON");
        let packed =
            zstd::bulk::compress(&json, 3).map_err(EngineError::io("compress", "a list"))?;
        shared
            .store
            .remember(SPACE, [(checksum.as_slice(), packed.as_slice())])?;
    }
    Ok(())
}

/// Returns the lists of what an operation takes of the context that is its input `input`, by checksum.
pub(crate) fn lists(
    tree: &ContextTree,
    op: &Op,
    input: usize,
) -> Result<Vec<(String, FileList)>, EngineError> {
    let mut found = Vec::new();
    for selection in selections_of(op, input)? {
        let checksum = crate::keys::hex(&tree.checksum(&selection)?);
        found.push((checksum, list_of(tree, &selection)?));
    }
    Ok(found)
}

fn list_of(tree: &ContextTree, selection: &Selection) -> Result<FileList, EngineError> {
    let (listed, more) = tree.list(selection, MOST)?;
    let mut list = FileList {
        more: more as u64,
        ..FileList::default()
    };
    for file in listed {
        let path = match file.path.as_slice() {
            [] => ".".to_owned(),
            path => String::from_utf8_lossy(path).into_owned(),
        };
        let entry = FileEntry {
            kind: letter(file.kind),
            mode: file.mode,
            uid: file.owner.uid,
            gid: file.owner.gid,
            content: crate::keys::hex(&file.content[..8]),
        };
        list.files.insert(path, entry);
    }
    Ok(list)
}

/// Returns the list behind a checksum; `None` where none is kept or it cannot be read.
pub(crate) fn find(store: &Store, checksum: &[u8]) -> Option<FileList> {
    let packed = store.recall(SPACE, checksum).ok().flatten()?;
    let json = zstd::bulk::decompress(&packed, MOST_BYTES).ok()?;
    serde_json::from_slice(&json).ok()
}

/// Keeps a list that was imported.
pub(crate) fn put(store: &Store, checksum: &[u8], list: &FileList) -> Result<(), EngineError> {
    let json = serde_json::to_vec(list).expect("a list can be written as JSON");
    let packed = zstd::bulk::compress(&json, 3).map_err(EngineError::io("compress", "a list"))?;
    store.remember(SPACE, [(checksum, packed.as_slice())])?;
    Ok(())
}

fn letter(kind: Kind) -> char {
    match kind {
        Kind::File => 'f',
        Kind::Directory => 'd',
        Kind::Symlink => 'l',
        Kind::Character => 'c',
        Kind::Block => 'b',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(files: &[(&str, char, u32, &str)]) -> FileList {
        let entry = |(path, kind, mode, content): &(&str, char, u32, &str)| {
            let entry = FileEntry {
                kind: *kind,
                mode: *mode,
                uid: 0,
                gid: 0,
                content: (*content).to_owned(),
            };
            ((*path).to_owned(), entry)
        };
        FileList {
            files: files.iter().map(entry).collect(),
            more: 0,
        }
    }

    #[test]
    fn lists_differ_file_by_file() {
        let before = list(&[
            ("a", 'f', 0o644, "1"),
            ("b", 'f', 0o644, "1"),
            ("c", 'f', 0o644, "1"),
            ("d", 'f', 0o644, "1"),
            ("e", 'f', 0o644, "1"),
        ]);
        let after = list(&[
            ("a", 'f', 0o644, "1"),
            ("b", 'f', 0o644, "2"),
            ("c", 'f', 0o755, "1"),
            ("d", 'l', 0o777, "3"),
            ("f", 'f', 0o644, "1"),
        ]);
        let changes = before.changes(&after);
        assert_eq!(changes.added, ["f"]);
        assert_eq!(changes.removed, ["e"]);
        assert_eq!(changes.changed, ["b"]);
        let attributes: Vec<String> = changes
            .attributes
            .iter()
            .map(|(path, text)| format!("{path}: {text}"))
            .collect();
        assert_eq!(
            attributes,
            ["c: mode 0644 became 0755", "d: a file became a symlink"]
        );
        assert_eq!(before.changes(&before), FileChanges::default());
    }
}
