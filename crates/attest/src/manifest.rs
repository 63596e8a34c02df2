//! The manifest that carries statements beside an image, as Docker's tools know it.

use oci::media_type::Naming;
use oci::{Descriptor, ImageConfig, Manifest, Platform, RootFs, layout};

use crate::Statement;

const IN_TOTO: &str = "application/vnd.in-toto+json";
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";

/// A manifest of statements, with all it names.
#[derive(Debug, Clone)]
pub struct AttestationManifest {
    /// As it stands in the index.
    pub descriptor: Descriptor,
    pub manifest: Vec<u8>,
    pub config: (Descriptor, Vec<u8>),
    /// The statements.
    pub layers: Vec<(Descriptor, Vec<u8>)>,
}

/// Makes the manifest of what is said of an image.
pub fn attestation_manifest(
    of: &Descriptor,
    statements: &[Statement],
) -> serde_json::Result<AttestationManifest> {
    let naming = Naming::Oci;
    let mut layers = Vec::with_capacity(statements.len());
    for statement in statements {
        let bytes = oci::json::compact(&statement.to_json())?;
        let descriptor = Descriptor::of(IN_TOTO, &bytes)
            .with_annotation(PREDICATE_TYPE, &statement.predicate_type);
        layers.push((descriptor, bytes));
    }
    let unknown = Platform::new("unknown", "unknown", "");
    let config = ImageConfig {
        platform: unknown.clone(),
        rootfs: RootFs {
            kind: "layers".to_owned(),
            diff_ids: layers
                .iter()
                .map(|(descriptor, _)| descriptor.digest.clone())
                .collect(),
            ..RootFs::default()
        },
        ..ImageConfig::default()
    };
    let config = oci::json::compact(&config)?;
    let config_descriptor = Descriptor::of(naming.config(), &config);
    let named = layers.iter().map(|(descriptor, _)| descriptor.clone());
    let manifest = Manifest::new(naming, config_descriptor.clone(), named.collect());
    let manifest = oci::json::indented(&manifest)?;
    let descriptor = Descriptor::of(naming.manifest(), &manifest)
        .with_platform(unknown)
        .with_annotation(layout::ANNOTATION_REFERENCE_TYPE, "attestation-manifest")
        .with_annotation(layout::ANNOTATION_REFERENCE_DIGEST, of.digest.to_string());
    Ok(AttestationManifest {
        descriptor,
        manifest,
        config: (config_descriptor, config),
        layers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_manifest_names_the_image_it_speaks_of() {
        let image = Descriptor::of("application/vnd.oci.image.manifest.v1+json", b"{}");
        let statement = Statement {
            predicate_type: "https://slsa.dev/provenance/v1".to_owned(),
            subjects: Vec::new(),
            predicate: json!({}),
        };
        let made = attestation_manifest(&image, &[statement]).unwrap();
        assert!(made.descriptor.is_attestation());
        assert_eq!(
            made.descriptor.annotations[layout::ANNOTATION_REFERENCE_DIGEST],
            image.digest.to_string()
        );
        assert_eq!(
            made.descriptor.platform.as_ref().unwrap().to_string(),
            "unknown/unknown"
        );
        let manifest: Manifest = serde_json::from_slice(&made.manifest).unwrap();
        assert_eq!(manifest.layers, [made.layers[0].0.clone()]);
        assert_eq!(manifest.config, made.config.0);
        let config: ImageConfig = serde_json::from_slice(&made.config.1).unwrap();
        assert_eq!(config.rootfs.diff_ids, [made.layers[0].0.digest.clone()]);
    }
}
