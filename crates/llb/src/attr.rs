//! The names of options of sources and of descriptions, as BuildKit has them.

pub const KEEP_GIT_DIR: &str = "git.keepgitdir";
pub const FULL_REMOTE_URL: &str = "git.fullurl";
pub const AUTH_HEADER_SECRET: &str = "git.authheadersecret";
pub const AUTH_TOKEN_SECRET: &str = "git.authtokensecret";
pub const KNOWN_SSH_HOSTS: &str = "git.knownsshhosts";
pub const MOUNT_SSH_SOCK: &str = "git.mountsshsock";
pub const GIT_CHECKSUM: &str = "git.checksum";
pub const GIT_SKIP_SUBMODULES: &str = "git.skipsubmodules";
pub const GIT_MTIME: &str = "git.mtime";
pub const GIT_FETCH_BY_COMMIT: &str = "git.fetchbycommit";

pub const LOCAL_SESSION_ID: &str = "local.session";
pub const LOCAL_UNIQUE_ID: &str = "local.unique";
/// A JSON array of patterns; only files that match one are taken.
pub const INCLUDE_PATTERNS: &str = "local.includepattern";
/// A JSON array of paths; only these are taken, symbolic links in them followed.
pub const FOLLOW_PATHS: &str = "local.followpaths";
/// A JSON array of patterns of an ignore file.
pub const EXCLUDE_PATTERNS: &str = "local.excludepatterns";
pub const SHARED_KEY_HINT: &str = "local.sharedkeyhint";
pub const LOCAL_DIFFER: &str = "local.differ";

pub const HTTP_CHECKSUM: &str = "http.checksum";
pub const HTTP_FILENAME: &str = "http.filename";
pub const HTTP_PERM: &str = "http.perm";
pub const HTTP_UID: &str = "http.uid";
pub const HTTP_GID: &str = "http.gid";
pub const HTTP_AUTH_HEADER_SECRET: &str = "http.authheadersecret";
pub const HTTP_HEADER_PREFIX: &str = "http.header.";

/// `default`, `pull` or `local`.
pub const IMAGE_RESOLVE_MODE: &str = "image.resolvemode";
pub const IMAGE_RECORD_TYPE: &str = "image.recordtype";
pub const IMAGE_LAYER_LIMIT: &str = "image.layerlimit";
pub const IMAGE_CHECKSUM: &str = "image.checksum";

pub const OCI_LAYOUT_SESSION_ID: &str = "oci.session";
pub const OCI_LAYOUT_STORE_ID: &str = "oci.store";
pub const OCI_LAYOUT_LAYER_LIMIT: &str = "oci.layerlimit";

/// The key under which the instruction of a vertex stands in its description.
pub const COMMAND: &str = "com.docker.dockerfile.v1.command";
