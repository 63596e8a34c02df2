//! TLS: what is trusted, what is presented, nothing read before it is needed.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::RegistryError;
use crate::settings::TlsSettings;

/// Makes the configuration of a connection; the files that the settings name are read here, those of the system with
/// the first certificate that is to be checked.
pub(crate) fn client_config(settings: &TlsSettings) -> Result<ClientConfig, RegistryError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions");
    let verifier: Arc<dyn ServerCertVerifier> = if settings.skip_verify {
        Arc::new(AnyCertificate {
            provider: Arc::clone(&provider),
        })
    } else {
        let mut authorities = Vec::new();
        for path in &settings.authorities {
            authorities.extend(certificates(path)?);
        }
        Arc::new(SystemVerifier {
            authorities,
            provider: Arc::clone(&provider),
            inner: OnceLock::new(),
        })
    };
    let mut keys = Vec::new();
    for pair in &settings.key_pairs {
        let key =
            PrivateKeyDer::from_pem_file(&pair.key).map_err(|error| invalid(&pair.key, &error))?;
        let key = CertifiedKey::from_der(certificates(&pair.cert)?, key, &provider)
            .map_err(|error| invalid(&pair.cert, &error))?;
        keys.push(Arc::new(key));
    }
    let builder = builder
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match keys.is_empty() {
        true => builder.with_no_client_auth(),
        false => builder.with_client_cert_resolver(Arc::new(ClientKeys(keys))),
    };
    config.alpn_protocols = vec!["h2".into(), "http/1.1".into()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, RegistryError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(|error| invalid(path, &error))?
        .collect();
    let certificates = certificates.map_err(|error| invalid(path, &error))?;
    match certificates.is_empty() {
        true => Err(invalid(path, &"no certificate in it")),
        false => Ok(certificates),
    }
}

fn invalid(path: &Path, error: &dyn std::fmt::Display) -> RegistryError {
    RegistryError::Settings {
        origin: path.display().to_string(),
        message: error.to_string(),
    }
}

/// Trusts the authorities of the system and some more, reading the former when it is first asked.
#[derive(Debug)]
struct SystemVerifier {
    authorities: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
    inner: OnceLock<Result<Arc<WebPkiServerVerifier>, String>>,
}

impl SystemVerifier {
    fn inner(&self) -> Result<&WebPkiServerVerifier, rustls::Error> {
        let inner = self.inner.get_or_init(|| self.load());
        inner
            .as_deref()
            .map_err(|message| rustls::Error::General(message.clone()))
    }

    fn load(&self) -> Result<Arc<WebPkiServerVerifier>, String> {
        let mut roots = RootCertStore::empty();
        for certificate in &self.authorities {
            roots
                .add(certificate.clone())
                .map_err(|error| format!("a configured authority is not valid: {error}"))?;
        }
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            tracing::warn!(%error, "a certificate authority of the system is left out");
        }
        roots.add_parsable_certificates(system.certs);
        if roots.is_empty() {
            return Err(
                "this system has no certificate authorities (package ca-certificates)".to_owned(),
            );
        }
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| error.to_string())
    }
}

impl ServerCertVerifier for SystemVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner()?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12(&self.provider, message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13(&self.provider, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Trusts whoever answers; only for registries that the user calls insecure.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12(&self.provider, message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13(&self.provider, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn verify_tls12(
    provider: &CryptoProvider,
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let algorithms = &provider.signature_verification_algorithms;
    rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
}

fn verify_tls13(
    provider: &CryptoProvider,
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let algorithms = &provider.signature_verification_algorithms;
    rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
}

/// Presents the first client certificate that can sign in a way the server takes.
#[derive(Debug)]
struct ClientKeys(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for ClientKeys {
    fn resolve(
        &self,
        _issuers: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.0
            .iter()
            .find(|key| key.key.choose_scheme(schemes).is_some())
            .cloned()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// How a TLS error is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// One side does not trust the other.
    Trust,
    /// The same, unless a certificate was changed on its way.
    PerhapsTrust,
    /// The server does not speak TLS.
    NotTls,
    /// Bytes were lost or changed.
    Passing,
}

/// Looks for a TLS error in the causes of another.
pub(crate) fn trouble(error: &(dyn std::error::Error + 'static)) -> Option<Trouble> {
    let mut next = Some(error);
    let mut text = String::new();
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(judge(error));
        }
        text = error.to_string();
        next = match error.downcast_ref::<std::io::Error>() {
            // Its source is the source of what it wraps, not what it wraps.
            Some(error) => error.get_ref().map(|inner| inner as _),
            None => error.source(),
        };
    }
    // HTTP/2 keeps only the text of an error. With TLS 1.3 a server refuses a client after the handshake.
    let refusals = [
        "CertificateRequired",
        "BadCertificate",
        "UnknownCA",
        "AccessDenied",
        "CertificateUnknown",
    ];
    let alert = text.strip_prefix("received fatal alert: ")?;
    refusals
        .iter()
        .any(|refusal| alert.starts_with(refusal))
        .then_some(Trouble::Trust)
}

fn judge(error: &rustls::Error) -> Trouble {
    use rustls::AlertDescription as Alert;
    use rustls::{CertificateError, Error, InvalidMessage};
    match error {
        Error::InvalidCertificate(
            CertificateError::BadEncoding | CertificateError::BadSignature,
        ) => Trouble::PerhapsTrust,
        Error::InvalidCertificate(_) | Error::General(_) | Error::PeerIncompatible(_) => {
            Trouble::Trust
        }
        Error::AlertReceived(
            Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::UnrecognisedName
            | Alert::HandshakeFailure
            | Alert::ProtocolVersion,
        ) => Trouble::Trust,
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        ) => Trouble::NotTls,
        _ => Trouble::Passing,
    }
}
