//! TLS: trust, client certificates, HTTP/2.

use std::sync::Arc;

use oci::media_type;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use registry::{Client, RegistryError};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::server::Registry;
use crate::{blob, manifest, noise, reference, settings_with};

pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub(crate) fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    fn server(
        &self,
        name: &str,
        clients: Option<&Authority>,
        protocols: &[&str],
    ) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.issuer.der().clone()).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .unwrap();
                builder.with_client_cert_verifier(verifier)
            }
        };
        let (certificate, key) = self.issue(name);
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = builder
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = protocols
            .iter()
            .map(|protocol| protocol.as_bytes().to_vec())
            .collect();
        Arc::new(config)
    }
}

async fn start(config: Arc<ServerConfig>) -> (Registry, Vec<u8>) {
    let registry = Registry::start_with(Some(config)).await;
    let layer = noise(1, 4 << 20);
    registry.state().add_blob("a/b", &layer);
    registry.state().add_manifest(
        "a/b",
        "1",
        media_type::OCI_MANIFEST,
        &manifest(b"{}", &[&layer]),
    );
    (registry, layer)
}

#[tokio::test]
async fn a_configured_authority_is_trusted_and_no_other() {
    let (ours, other) = (Authority::new(), Authority::new());
    let root = tempfile::tempdir().unwrap();
    for protocols in [&["h2"][..], &["http/1.1"]] {
        let (registry, layer) = start(ours.server("127.0.0.1", None, protocols)).await;
        let name = reference(&format!("{}/a/b:1", registry.authority));
        let resolve = async |authority: &Authority| {
            let path = root.path().join("ca.pem");
            std::fs::write(&path, authority.pem()).unwrap();
            let toml = format!("[registry.\"HERE\"]\nca = [\"{}\"]\n", path.display());
            let client = Client::new(settings_with(&registry.authority, &toml));
            client.resolve(&name).await.map(|_| client)
        };
        let client = resolve(&ours).await.unwrap();
        let content = client
            .fetch_blob_bytes(&name, &blob(&layer), u64::MAX)
            .await
            .unwrap();
        assert_eq!(content, layer);
        let error = resolve(&other).await.unwrap_err();
        assert!(matches!(error, RegistryError::Tls { .. }), "{error:?}");
        assert!(!error.may_pass());
    }
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let authority = Authority::new();
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("ca.pem");
    std::fs::write(&path, authority.pem()).unwrap();
    let (registry, _) = start(authority.server("other.example", None, &["h2"])).await;
    let toml = format!("[registry.\"HERE\"]\nca = [\"{}\"]\n", path.display());
    let client = Client::new(settings_with(&registry.authority, &toml));
    let error = client
        .resolve(&reference(&format!("{}/a/b:1", registry.authority)))
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::Tls { .. }), "{error:?}");
}

#[tokio::test]
async fn a_loopback_registry_without_settings_may_speak_tls() {
    let authority = Authority::new();
    let (registry, _) = start(authority.server("127.0.0.1", None, &["h2", "http/1.1"])).await;
    let client = Client::new(settings_with("", ""));
    client
        .resolve(&reference(&format!("{}/a/b:1", registry.authority)))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_client_certificate_is_presented() {
    let (servers, clients) = (Authority::new(), Authority::new());
    let root = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(root.path().join(name), text).unwrap();
    write("ca.crt", servers.pem());
    let (certificate, key) = clients.issue("client");
    write("client.cert", certificate.pem());
    write("client.key", key.serialize_pem());
    let (registry, _) = start(servers.server("127.0.0.1", Some(&clients), &["h2"])).await;
    let name = reference(&format!("{}/a/b:1", registry.authority));
    let directory = root.path().display();
    for toml in [
        format!("[registry.\"HERE\"]\ntlsconfigdir = [\"{directory}\"]\n"),
        format!(
            "[registry.\"HERE\"]\nca = [\"{directory}/ca.crt\"]\n\
             keypair = [{{key = \"{directory}/client.key\", cert = \"{directory}/client.cert\"}}]\n"
        ),
    ] {
        Client::new(settings_with(&registry.authority, &toml))
            .resolve(&name)
            .await
            .unwrap();
    }
    let toml = format!("[registry.\"HERE\"]\nca = [\"{directory}/ca.crt\"]\n");
    let error = Client::new(settings_with(&registry.authority, &toml))
        .resolve(&name)
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::Tls { .. }), "{error:?}");
}

#[tokio::test]
async fn a_plain_server_where_tls_is_due_is_told() {
    let registry = Registry::start().await;
    let toml = "[registry.\"HERE\"]\nhttp = false\n";
    let client = Client::new(settings_with(&registry.authority, toml));
    let error = client
        .resolve(&reference(&format!("{}/a/b", registry.authority)))
        .await
        .unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("plain HTTP"), "{error:?}");
}

#[tokio::test]
async fn an_unreadable_authority_is_an_error_of_the_settings() {
    let registry = Registry::start().await;
    let client = Client::new(settings_with(
        &registry.authority,
        "[registry.\"HERE\"]\nca = [\"/not/there.pem\"]\n",
    ));
    let error = client
        .resolve(&reference(&format!("{}/a/b", registry.authority)))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("invalid registry settings in /not/there.pem"),
        "{error}"
    );
}

#[tokio::test]
async fn a_connection_that_fell_silent_is_not_used_again() {
    let authority = Authority::new();
    let (registry, _) = start(authority.server("127.0.0.1", None, &["h2"])).await;
    // Relays until there was a first answer, then no more on that connection.
    let relay = crate::chaos::silent_after(registry.authority.clone(), 6_000).await;
    let mut settings = settings_with(
        &relay,
        "[registry.\"HERE\"]\ninsecure = true\nhttp = false\n",
    );
    settings.timeouts.silence = std::time::Duration::from_millis(200);
    let client = Client::new(settings);
    let name = reference(&format!("{relay}/a/b:1"));
    for _ in 0..50 {
        client.resolve(&name).await.unwrap();
    }
}
