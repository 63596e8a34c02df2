//! OCI values: digest, descriptor, platform, image reference, manifest, index, config
