//! Who may come in: over sockets by their owner and group, over TCP by certificates.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use api_buildkit::{Access, Address, Tls};
use bollard_buildkit_proto::moby::buildkit::v1::InfoRequest;
use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use common::TestServer;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;

/// Tries to connect as another user; the rest of the test stays who it is.
fn connect_as(path: &Path, user: u32, group: u32) -> std::io::Result<()> {
    let path = path.to_owned();
    let thread = std::thread::spawn(move || {
        use rustix::process::{Gid, Uid};
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_gid(Gid::from_raw(group))?;
        rustix::thread::set_thread_uid(Uid::from_raw(user))?;
        UnixStream::connect(path).map(drop)
    });
    thread.join().expect("no panic")
}

#[test]
fn a_socket_is_for_its_owner_and_its_group() {
    if !testkit::is_root() {
        testkit::skip!("only root can become others");
    }
    let folder = tempfile::tempdir().expect("a directory");
    // What keeps others out is the socket alone.
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).expect("a mode");
    let path = folder.path().join("socket");
    let access = Access {
        socket_user: Some(61_000),
        socket_group: Some(61_001),
        ..Access::default()
    };
    let (mut server, _) = TestServer::listen(folder, Address::Unix(path.clone()), access);
    connect_as(&path, 61_000, 1).expect("the owner comes in");
    connect_as(&path, 1, 61_001).expect("the group comes in");
    let refused = connect_as(&path, 1, 1).expect_err("a refusal");
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    server.stop();
    assert!(!path.exists());
}

/// An authority, and what it has signed.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority");
        Self { issuer }
    }

    fn sign(&self) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate, key)
    }
}

/// Asks a server who it is, over TLS.
async fn ask(address: &str, authority: &Authority, own: Option<&Authority>) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from(authority.issuer.der().to_vec()))
        .expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let (certificate, key) = own.sign();
            let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
            builder
                .with_client_auth_cert(vec![certificate.der().clone()], key)
                .expect("a certificate")
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let place = address.strip_prefix("tcp://").expect("a port").to_owned();
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_| {
            let (connector, place) = (connector.clone(), place.clone());
            async move {
                let stream = tokio::net::TcpStream::connect(place).await?;
                let name = ServerName::try_from("localhost").expect("a name");
                connector.connect(name, stream).await.map(TokioIo::new)
            }
        }))
        .await
        .map_err(|error| format!("{error:?}"))?;
    let answer = ControlClient::new(channel).info(InfoRequest {}).await;
    answer.map(drop).map_err(|status| format!("{status:?}"))
}

#[test]
fn over_tcp_only_clients_with_a_certificate_come_in() {
    if !testkit::is_root() {
        testkit::skip!("the store of these tests is root's");
    }
    let folder = tempfile::tempdir().expect("a directory");
    let (ours, other) = (Authority::new(), Authority::new());
    let (certificate, key) = ours.sign();
    let place = |name: &str| folder.path().join(name);
    std::fs::write(place("cert.pem"), certificate.pem()).expect("room");
    std::fs::write(place("key.pem"), key.serialize_pem()).expect("room");
    std::fs::write(place("ca.pem"), ours.issuer.pem()).expect("room");
    let access = Access {
        tls: Some(Tls {
            certificate: place("cert.pem"),
            key: place("key.pem"),
            client_authority: Some(place("ca.pem")),
        }),
        ..Access::default()
    };
    let address = Address::Tcp("127.0.0.1:0".to_owned());
    let (_server, address) = TestServer::listen(folder, address, access);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        // One that says nothing keeps nobody out.
        let place = address.strip_prefix("tcp://").expect("a port");
        let silent = tokio::net::TcpStream::connect(place).await.expect("a port");
        ask(&address, &ours, Some(&ours)).await.expect("an answer");
        for (who, own) in [("nobody", None), ("a stranger", Some(&other))] {
            let refused = ask(&address, &ours, own).await;
            assert!(refused.is_err(), "{who} has come in");
        }
        let refused = ask(&address, &other, Some(&ours)).await;
        assert!(refused.is_err(), "a server that is another was taken");
        drop(silent);
    });
}
