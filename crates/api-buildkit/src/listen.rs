//! Where clients come in: sockets, ports with and without TLS, and what a service manager has opened already.

use std::fs::{self, Permissions};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use listenfd::ListenFd;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::Connected;

use crate::error::ServeError;

/// How long a client may take to agree on a key.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections that wait to be served.
const WAITING: usize = 64;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp(String),
    /// Sockets of a service manager (`LISTEN_FDS`): all of them, or the one of this number, counted from 3.
    Passed(Option<usize>),
}

impl FromStr for Address {
    type Err = ServeError;

    fn from_str(text: &str) -> Result<Self, ServeError> {
        let invalid = |reason: &str| ServeError::Address {
            address: text.to_owned(),
            reason: reason.to_owned(),
        };
        match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(PathBuf::from(path))),
            Some(("unix", _)) => Err(invalid("the path of a socket starts with a slash")),
            Some(("tcp", place)) => match place.rsplit_once(':') {
                Some((_, port)) if port.parse::<u16>().is_ok() => Ok(Self::Tcp(place.to_owned())),
                _ => Err(invalid("it has no port")),
            },
            Some(("fd", "" | "*")) => Ok(Self::Passed(None)),
            Some(("fd", number)) => match number.parse() {
                Ok(number @ 3..) => Ok(Self::Passed(Some(number))),
                _ => Err(invalid("a passed socket has a number from 3 on")),
            },
            _ => Err(invalid(
                "it is none of unix:///PATH, tcp://HOST:PORT and fd://",
            )),
        }
    }
}

/// How connections over TCP are protected. All files are in PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Who signs the certificates that clients must have; without one, every client is let in.
    pub client_authority: Option<PathBuf>,
}

/// Who may use what is listened on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    pub tls: Option<Tls>,
    /// Let anybody who reaches the port use it, of any interface.
    pub unprotected_tcp: bool,
    /// Who owns sockets, if another than who serves.
    pub socket_user: Option<u32>,
    pub socket_group: Option<u32>,
}

/// A client that has come in.
pub(crate) struct Connection(Box<dyn Stream>);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener, Option<TlsAcceptor>),
}

/// All that is listened on. Dropped, nobody comes in any more.
pub(crate) struct Listening {
    /// Where clients can connect.
    pub(crate) addresses: Vec<String>,
    pub(crate) incoming: mpsc::Receiver<std::io::Result<Connection>>,
    _accepting: JoinSet<()>,
    sockets: Vec<PathBuf>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        for path in &self.sockets {
            let _ = fs::remove_file(path);
        }
    }
}

impl Listening {
    /// Opens all addresses, or none.
    pub(crate) async fn open(addresses: &[Address], access: &Access) -> Result<Self, ServeError> {
        let acceptor = access.tls.as_ref().map(acceptor).transpose()?;
        let (arrivals, incoming) = mpsc::channel(WAITING);
        let mut listening = Self {
            addresses: Vec::new(),
            incoming,
            _accepting: JoinSet::new(),
            sockets: Vec::new(),
        };
        let mut listeners = Vec::new();
        // Those of a service manager can be asked for once.
        let mut sockets = ListenFd::from_env();
        for address in addresses {
            match address {
                Address::Unix(path) => {
                    let listener = listen_unix(path, access)?;
                    listening.sockets.push(path.clone());
                    listening
                        .addresses
                        .push(format!("unix://{}", path.display()));
                    listeners.push(Listener::Unix(listener));
                }
                Address::Tcp(place) => {
                    let failed = |source| ServeError::Listen {
                        address: format!("tcp://{place}"),
                        source,
                    };
                    let listener = TcpListener::bind(place).await.map_err(failed)?;
                    let bound = listener.local_addr().map_err(failed)?;
                    check_protection(bound.ip(), &format!("tcp://{place}"), access)?;
                    listening.addresses.push(format!("tcp://{bound}"));
                    listeners.push(Listener::Tcp(listener, acceptor.clone()));
                }
                Address::Passed(number) => {
                    for (name, listener) in
                        passed(*number, &mut sockets, access, acceptor.as_ref())?
                    {
                        listening.addresses.push(name);
                        listeners.push(listener);
                    }
                }
            }
        }
        for listener in listeners {
            let arrivals = arrivals.clone();
            listening._accepting.spawn(accept(listener, arrivals));
        }
        Ok(listening)
    }
}

/// Who does not say who it is comes from this machine, unless its owner wants it otherwise.
fn check_protection(ip: IpAddr, address: &str, access: &Access) -> Result<(), ServeError> {
    let knows_clients = |tls: &Tls| tls.client_authority.is_some();
    let is_shut = access.tls.as_ref().is_some_and(knows_clients);
    match is_shut || access.unprotected_tcp || ip.is_loopback() {
        true => Ok(()),
        false => Err(ServeError::Unprotected {
            address: address.to_owned(),
        }),
    }
}

/// Lets clients in until nobody takes them.
async fn accept(listener: Listener, arrivals: mpsc::Sender<std::io::Result<Connection>>) {
    loop {
        let accepted = match &listener {
            Listener::Unix(listener) => listener
                .accept()
                .await
                .map(|(stream, _)| Connection(Box::new(stream))),
            Listener::Tcp(listener, acceptor) => match (listener.accept().await, acceptor) {
                (Ok((stream, _)), None) => {
                    let _ = stream.set_nodelay(true);
                    Ok(Connection(Box::new(stream)))
                }
                (Ok((stream, peer)), Some(acceptor)) => {
                    let _ = stream.set_nodelay(true);
                    let (handshake, arrivals) = (acceptor.accept(stream), arrivals.clone());
                    // A client that dallies keeps no other one out.
                    tokio::spawn(async move {
                        match tokio::time::timeout(HANDSHAKE, handshake).await {
                            Ok(Ok(stream)) => {
                                let _ = arrivals.send(Ok(Connection(Box::new(stream)))).await;
                            }
                            Ok(Err(error)) => tracing::info!(%peer, %error, "a client is refused"),
                            Err(_) => tracing::info!(%peer, "a client does not say who it is"),
                        }
                    });
                    continue;
                }
                (Err(error), _) => Err(error),
            },
        };
        match accepted {
            Ok(connection) => {
                if arrivals.send(Ok(connection)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                // No descriptors are left, or the client has gone already.
                tracing::warn!(%error, "a client cannot be let in");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        if arrivals.is_closed() {
            return;
        }
    }
}

fn acceptor(tls: &Tls) -> Result<TlsAcceptor, ServeError> {
    let unreadable = |path: &Path, reason: String| ServeError::Tls {
        path: path.to_owned(),
        reason,
    };
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, ServeError> {
        let wrong = |error: rustls::pki_types::pem::Error| unreadable(path, error.to_string());
        let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
            .map_err(wrong)?
            .collect();
        match read.map_err(wrong)? {
            read if read.is_empty() => Err(unreadable(path, "it has no certificate".to_owned())),
            read => Ok(read),
        }
    };
    let chain = certificates(&tls.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&tls.key)
        .map_err(|error| unreadable(&tls.key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| unreadable(&tls.certificate, error.to_string()))?;
    let builder = match &tls.client_authority {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots
                    .add(certificate)
                    .map_err(|error| unreadable(path, error.to_string()))?;
            }
            let roots = Arc::new(roots);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                .build()
                .map_err(|error| unreadable(path, error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| unreadable(&tls.certificate, error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Takes sockets that were opened by a service manager.
fn passed(
    number: Option<usize>,
    sockets: &mut ListenFd,
    access: &Access,
    acceptor: Option<&TlsAcceptor>,
) -> Result<Vec<(String, Listener)>, ServeError> {
    let name = match number {
        None => "fd://".to_owned(),
        Some(number) => format!("fd://{number}"),
    };
    let failed = |source| ServeError::Listen {
        address: name.clone(),
        source,
    };
    let places: Vec<usize> = match number {
        None => (0..sockets.len()).collect(),
        Some(number) => vec![number - 3],
    };
    let mut taken = Vec::new();
    for place in places {
        let named = format!("fd://{}", place + 3);
        // It is one or the other; asked for the other, it stays where it is.
        if let Ok(Some(listener)) = sockets.take_unix_listener(place) {
            listener.set_nonblocking(true).map_err(failed)?;
            let listener = UnixListener::from_std(listener).map_err(failed)?;
            taken.push((named, Listener::Unix(listener)));
            continue;
        }
        let listener = sockets.take_tcp_listener(place).map_err(failed)?;
        let Some(listener) = listener else {
            return Err(failed(std::io::ErrorKind::NotFound.into()));
        };
        let bound = listener.local_addr().map_err(failed)?;
        check_protection(bound.ip(), &named, access)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = TcpListener::from_std(listener).map_err(failed)?;
        taken.push((named, Listener::Tcp(listener, acceptor.cloned())));
    }
    match taken.is_empty() {
        true => Err(ServeError::NothingPassed),
        false => Ok(taken),
    }
}

/// Opens a socket for its owner and group; one that nobody listens on is replaced.
fn listen_unix(path: &Path, access: &Access) -> Result<UnixListener, ServeError> {
    let failed = |source| ServeError::Listen {
        address: format!("unix://{}", path.display()),
        source,
    };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|source| ServeError::Io {
            action: "create",
            path: folder.to_owned(),
            source,
        })?;
    }
    // Only what is a socket, and of a server that has gone, is replaced.
    let is_other = |metadata: fs::Metadata| !metadata.file_type().is_socket();
    if fs::metadata(path).is_ok_and(is_other)
        || std::os::unix::net::UnixStream::connect(path).is_ok()
    {
        return Err(failed(std::io::ErrorKind::AddrInUse.into()));
    }
    // Nobody else may connect before owner and mode are set: it is made where nobody else comes, and then moved.
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let own = tempfile::Builder::new()
        .prefix(".listen-")
        .tempdir_in(folder.unwrap_or(Path::new(".")))
        .map_err(failed)?;
    let opened = fs::File::open(own.path()).map_err(failed)?;
    // The address of a socket is short; that of what it is moved to may be as long as it can be.
    let short = format!("/proc/self/fd/{}/socket", opened.as_raw_fd());
    let listener = UnixListener::bind(short).map_err(failed)?;
    let made = own.path().join("socket");
    if access.socket_user.is_some() || access.socket_group.is_some() {
        std::os::unix::fs::chown(&made, access.socket_user, access.socket_group).map_err(failed)?;
    }
    fs::set_permissions(&made, Permissions::from_mode(0o660)).map_err(failed)?;
    fs::rename(&made, path).map_err(failed)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_made_where_nothing_else_is() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _within = runtime.enter();
        let folder = tempfile::tempdir().unwrap();
        // As long as an address may be.
        let name = "s".repeat(106 - folder.path().as_os_str().len());
        let path = folder.path().join(name);
        let listen = || listen_unix(&path, &Access::default());
        fs::write(&path, "kept").unwrap();
        assert!(listen().is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
        fs::remove_file(&path).unwrap();
        let first = listen().unwrap();
        assert!(listen().is_err(), "it is in use");
        // What a killed server has left.
        drop(first);
        let second = listen().unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        drop(second);
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 1, "nothing but the socket is left");
    }

    #[test]
    fn addresses_are_sockets_or_ports() {
        assert_eq!(
            "unix:///run/x.sock".parse::<Address>().unwrap(),
            Address::Unix(PathBuf::from("/run/x.sock"))
        );
        assert_eq!(
            "tcp://127.0.0.1:1234".parse::<Address>().unwrap(),
            Address::Tcp("127.0.0.1:1234".to_owned())
        );
        assert_eq!("fd://".parse::<Address>().unwrap(), Address::Passed(None));
        assert_eq!(
            "fd://4".parse::<Address>().unwrap(),
            Address::Passed(Some(4))
        );
        for bad in [
            "",
            "unix://x",
            "tcp://host",
            "tcp://host:x",
            "npipe:////x",
            "/run/x",
            "fd://2",
            "fd://x",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_port_without_protection_is_for_this_machine() {
        let check = |ip: &str, access: &Access| check_protection(ip.parse().unwrap(), "x", access);
        let open = Access::default();
        assert!(check("127.0.0.1", &open).is_ok());
        assert!(check("::1", &open).is_ok());
        assert!(check("0.0.0.0", &open).is_err());
        assert!(check("10.1.2.3", &open).is_err());
        let asked = Access {
            unprotected_tcp: true,
            ..Access::default()
        };
        assert!(check("0.0.0.0", &asked).is_ok());
        let tls = Access {
            tls: Some(Tls::default()),
            ..Access::default()
        };
        // Anybody speaks TLS.
        assert!(check("0.0.0.0", &tls).is_err());
        let mutual = Access {
            tls: Some(Tls {
                client_authority: Some(PathBuf::from("ca.pem")),
                ..Tls::default()
            }),
            ..Access::default()
        };
        assert!(check("0.0.0.0", &mutual).is_ok());
    }
}
