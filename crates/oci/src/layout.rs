//! Names used in an image layout (image-spec, image-layout.md) and in annotations.

/// The file that marks a directory as an image layout.
pub const LAYOUT_FILE: &str = "oci-layout";
/// What stands in it.
pub const LAYOUT_CONTENT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
/// The entry point of a layout.
pub const INDEX_FILE: &str = "index.json";
/// The directory of the blobs.
pub const BLOBS_DIRECTORY: &str = "blobs";

/// The tag an entry of `index.json` is found by (a tag, or by some tools a whole reference).
pub const ANNOTATION_REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The whole image name of an entry of `index.json`, as containerd and Docker import it.
pub const ANNOTATION_CONTAINERD_NAME: &str = "io.containerd.image.name";
/// When the image was built, RFC 3339.
pub const ANNOTATION_CREATED: &str = "org.opencontainers.image.created";
pub const ANNOTATION_BASE_DIGEST: &str = "org.opencontainers.image.base.digest";
pub const ANNOTATION_BASE_NAME: &str = "org.opencontainers.image.base.name";
/// Marks an attestation manifest in an index and names the manifest it speaks of.
pub const ANNOTATION_REFERENCE_TYPE: &str = "vnd.docker.reference.type";
pub const ANNOTATION_REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";
/// The epoch to which the times in a layer were clamped, in seconds.
pub const ANNOTATION_REWRITTEN_TIMESTAMP: &str = "buildkit/rewritten-timestamp";

/// Returns the path of a blob inside a layout.
pub fn blob_path(digest: &crate::Digest) -> String {
    format!("{BLOBS_DIRECTORY}/{}/{}", digest.algorithm(), digest.hex())
}
