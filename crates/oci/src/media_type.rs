//! Media types of images, in OCI's and Docker's naming.

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub const OCI_LAYER_NONDISTRIBUTABLE: &str =
    "application/vnd.oci.image.layer.nondistributable.v1.tar";
pub const OCI_LAYER_NONDISTRIBUTABLE_GZIP: &str =
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
pub const OCI_LAYER_NONDISTRIBUTABLE_ZSTD: &str =
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd";
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
pub const OCI_LAYOUT_HEADER: &str = "application/vnd.oci.layout.header.v1+json";

pub const DOCKER_MANIFEST_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
pub const DOCKER_LAYER_FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
pub const DOCKER_LAYER_FOREIGN_GZIP: &str =
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";

/// Manifests of Docker's schema 1: recognized only to be refused by name.
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
pub const DOCKER_SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

/// What a descriptor of some media type refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Index,
    Manifest,
    Config,
    Layer {
        compression: Compression,
        /// Layers that licences forbid to push elsewhere; they are fetched from `urls`.
        nondistributable: bool,
    },
    /// Attestations, artifacts, anything else.
    Other,
}

/// How the tar of a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Whose media types are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Naming {
    Oci,
    Docker,
}

/// Returns what `media_type` stands for; parameters (`; charset=…`) and case are ignored.
pub fn kind(media_type: &str) -> Kind {
    let name = essence(media_type);
    let layer = |compression, nondistributable| Kind::Layer {
        compression,
        nondistributable,
    };
    match name.as_str() {
        OCI_INDEX | DOCKER_MANIFEST_LIST => Kind::Index,
        OCI_MANIFEST | DOCKER_MANIFEST => Kind::Manifest,
        OCI_CONFIG | DOCKER_CONFIG => Kind::Config,
        OCI_LAYER | DOCKER_LAYER => layer(Compression::None, false),
        OCI_LAYER_GZIP | DOCKER_LAYER_GZIP => layer(Compression::Gzip, false),
        OCI_LAYER_ZSTD | DOCKER_LAYER_ZSTD => layer(Compression::Zstd, false),
        OCI_LAYER_NONDISTRIBUTABLE | DOCKER_LAYER_FOREIGN => layer(Compression::None, true),
        OCI_LAYER_NONDISTRIBUTABLE_GZIP | DOCKER_LAYER_FOREIGN_GZIP => {
            layer(Compression::Gzip, true)
        }
        OCI_LAYER_NONDISTRIBUTABLE_ZSTD => layer(Compression::Zstd, true),
        _ => Kind::Other,
    }
}

/// Whether `media_type` is one of Docker's schema 1.
pub fn is_schema1(media_type: &str) -> bool {
    matches!(
        essence(media_type).as_str(),
        DOCKER_SCHEMA1 | DOCKER_SCHEMA1_SIGNED
    )
}

fn essence(media_type: &str) -> String {
    let name = media_type.split(';').next().unwrap_or_default();
    name.trim().to_ascii_lowercase()
}

impl Naming {
    pub const fn index(self) -> &'static str {
        match self {
            Self::Oci => OCI_INDEX,
            Self::Docker => DOCKER_MANIFEST_LIST,
        }
    }

    pub const fn manifest(self) -> &'static str {
        match self {
            Self::Oci => OCI_MANIFEST,
            Self::Docker => DOCKER_MANIFEST,
        }
    }

    pub const fn config(self) -> &'static str {
        match self {
            Self::Oci => OCI_CONFIG,
            Self::Docker => DOCKER_CONFIG,
        }
    }

    pub const fn layer(self, compression: Compression) -> &'static str {
        match (self, compression) {
            (Self::Oci, Compression::None) => OCI_LAYER,
            (Self::Oci, Compression::Gzip) => OCI_LAYER_GZIP,
            (Self::Oci, Compression::Zstd) => OCI_LAYER_ZSTD,
            (Self::Docker, Compression::None) => DOCKER_LAYER,
            (Self::Docker, Compression::Gzip) => DOCKER_LAYER_GZIP,
            (Self::Docker, Compression::Zstd) => DOCKER_LAYER_ZSTD,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_media_type_is_read_back() {
        for naming in [Naming::Oci, Naming::Docker] {
            assert_eq!(kind(naming.index()), Kind::Index);
            assert_eq!(kind(naming.manifest()), Kind::Manifest);
            assert_eq!(kind(naming.config()), Kind::Config);
            for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
                assert_eq!(
                    kind(naming.layer(compression)),
                    Kind::Layer {
                        compression,
                        nondistributable: false
                    }
                );
            }
        }
    }

    #[test]
    fn parameters_and_case_do_not_matter() {
        assert_eq!(
            kind("Application/vnd.oci.image.index.v1+JSON; charset=utf-8"),
            Kind::Index
        );
        assert!(is_schema1(
            "application/vnd.docker.distribution.manifest.v1+prettyjws;x=y"
        ));
        assert_eq!(kind("application/json"), Kind::Other);
    }
}
