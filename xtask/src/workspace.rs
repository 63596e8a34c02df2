//! Where things lie in the checkout.

use std::path::{Path, PathBuf};

/// Returns the root of the checkout.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the workspace")
        .to_path_buf()
}

/// Returns the folder of the fixtures.
///
/// It does not follow `CARGO_TARGET_DIR`: the images are shared by every build folder.
pub(crate) fn fixtures() -> PathBuf {
    root().join("target/fixtures")
}
