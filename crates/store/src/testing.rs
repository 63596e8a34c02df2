//! What tests of several files begin with.

use crate::{OpenOptions, Store};

/// Returns an empty store, and the folder it is in until it is dropped.
pub(crate) fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().expect("a directory");
    let store = Store::open(&folder.path().join("root"), OpenOptions::new(None));
    (folder, store.expect("a store"))
}
