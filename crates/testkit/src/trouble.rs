//! A bad connection to a registry: cut, slow, changed on the way, behind a server that is at its limits.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::registry::Certificate;
use crate::soak::Chance;
use crate::tokens::{Tokens, with_login};

/// How many bytes of a connection a mishap may be away from its begin.
const REACH: u64 = 600_000;

/// What happens to one connection.
#[derive(Debug, Clone, Copy)]
enum Mishap {
    None,
    /// Both ways end after so many bytes of one of them.
    Cut {
        after: u64,
        of_request: bool,
    },
    /// One bit is changed.
    Flip {
        at: u64,
        bit: u64,
        of_request: bool,
    },
    /// A pause at each piece.
    Delay,
    /// Nothing more comes, but the connection stays.
    Stall {
        after: u64,
    },
}

impl Mishap {
    fn at_random(chance: &mut Chance, stalls: bool) -> Self {
        // Most is small: answers without a body, manifests.
        let reach = *chance.one(&[1_500, 20_000, REACH]);
        let at = chance.below(reach);
        let of_request = chance.below(10) < 3;
        match chance.below(200) {
            0..=109 => Self::None,
            110..=139 => Self::Cut {
                after: at,
                of_request,
            },
            140..=174 => Self::Flip {
                at,
                bit: chance.below(8),
                of_request,
            },
            175 if stalls => Self::Stall { after: at },
            _ => Self::Delay,
        }
    }
}

/// Whom a relay connects to, and what it speaks.
#[derive(Debug, Clone)]
pub struct Targets {
    /// The registry in plain HTTP.
    pub plain: String,
    /// The same with TLS, for a relay that speaks TLS.
    pub secure: Option<(String, Arc<Certificate>)>,
    /// Whether the server at its limits wants tokens, and gives them out itself.
    pub with_tokens: bool,
}

/// Relays connections to a registry with mishaps from a seed, and returns where. Half of those with TLS, and all without,
/// go through a server that answers 429, 500 and 503 at random and changes bits of what it passes on. It ends with the
/// process. `troubles` counts the connections and requests that are not passed on as they are.
///
/// # Panics
///
/// When no port can be had.
pub fn connection(targets: &Targets, seed: u64, stalls: bool, troubles: &Arc<AtomicU64>) -> String {
    let chance = Arc::new(Mutex::new(Chance(seed)));
    let moody = moody(targets, Arc::clone(&chance), Arc::clone(troubles));
    let troubles = Arc::clone(troubles);
    let secure = targets.secure.as_ref().map(|(address, _)| address.clone());
    listen(move |client| {
        let (mishap, is_direct) = {
            let mut chance = chance.lock().unwrap_or_else(PoisonError::into_inner);
            (Mishap::at_random(&mut chance, stalls), chance.below(2) == 0)
        };
        if !matches!(mishap, Mishap::None) {
            troubles.fetch_add(1, Ordering::Relaxed);
        }
        let target = secure.as_ref().filter(|_| is_direct).unwrap_or(&moody);
        let Ok(server) = TcpStream::connect(target) else {
            return;
        };
        if !stalls && !matches!(mishap, Mishap::None) {
            // A length that was changed leaves both sides waiting for the other: not for as long as the client would.
            let patience = Some(Duration::from_secs(3));
            let _ = client.set_read_timeout(patience);
            let _ = server.set_read_timeout(patience);
        }
        let sides = || Some((client.try_clone().ok()?, server.try_clone().ok()?));
        let (Some(request), Some(answer)) = (sides(), sides()) else {
            return;
        };
        std::thread::scope(|scope| {
            scope.spawn(move || relay(request.0, request.1, mishap, true));
            relay(answer.1, answer.0, mishap, false);
        });
    })
}

/// Calls a function with each connection, in a thread of its own; returns the address.
fn listen(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

/// Passes on what comes one way; where it ends, both ways end.
fn relay(mut from: TcpStream, mut to: TcpStream, mishap: Mishap, is_request: bool) {
    let mut position = 0;
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let mut piece = &mut buffer[..read];
        let end = position + read as u64;
        let mut is_over = false;
        match mishap {
            Mishap::Cut { after, of_request } if of_request == is_request && after < end => {
                piece = &mut piece[..(after - position) as usize];
                is_over = true;
            }
            Mishap::Flip {
                at,
                bit,
                of_request,
            } if of_request == is_request && (position..end).contains(&at) => {
                piece[(at - position) as usize] ^= 1 << bit;
            }
            Mishap::Stall { after } if !is_request && (position..end).contains(&after) => {
                // Until the client has lost its patience: what it sends then is its end.
                std::thread::sleep(Duration::from_secs(120));
                is_over = true;
            }
            Mishap::Delay => std::thread::sleep(Duration::from_millis(2)),
            _ => {}
        }
        position = end;
        if to.write_all(piece).is_err() || is_over {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// What a server that is at its limits does with a request.
enum Mood {
    Pass,
    /// Passes it on and changes a bit of the answer.
    Change {
        at: u64,
        bit: u64,
    },
    Refuse(&'static str),
}

impl Mood {
    fn at_random(chance: &mut Chance) -> Self {
        match chance.below(100) {
            0..=6 => Self::Refuse("500 Internal Server Error\r\n"),
            7..=10 => Self::Refuse("429 Too Many Requests\r\nRetry-After: 0\r\n"),
            11 => Self::Refuse("429 Too Many Requests\r\nRetry-After: 1\r\n"),
            12..=13 => Self::Refuse("503 Service Unavailable\r\n"),
            14..=18 => Self::Change {
                at: chance.below(REACH / 4),
                bit: chance.below(8),
            },
            _ => Self::Pass,
        }
    }
}

/// Where moods come from, and how many were bad.
struct Moods {
    chance: Arc<Mutex<Chance>>,
    troubles: Arc<AtomicU64>,
    tokens: Option<Tokens>,
}

impl Moods {
    fn next(&self) -> Mood {
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        let mood = Mood::at_random(&mut chance);
        if !matches!(mood, Mood::Pass) {
            self.troubles.fetch_add(1, Ordering::Relaxed);
        }
        mood
    }
}

impl Moods {
    /// Lets a request with a good token through; else returns the answer to it.
    fn admit(&self, tokens: &Tokens, first: &str, head: &str) -> Result<(), String> {
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.admit(&mut chance, first, head)
    }
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// Serves a registry in plain HTTP with moods, with TLS where the targets have a certificate.
fn moody(targets: &Targets, chance: Arc<Mutex<Chance>>, troubles: Arc<AtomicU64>) -> String {
    let config = targets.secure.as_ref().map(|(_, certificate)| {
        let chain = CertificateDer::from_pem_slice(certificate.chain.as_bytes()).expect("PEM");
        let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).expect("PEM");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions of TLS")
            .with_no_client_auth()
            .with_single_cert(vec![chain], key)
            .expect("a certificate");
        Arc::new(config)
    });
    let target = targets.plain.clone();
    let tokens = targets.with_tokens.then(Tokens::default);
    let moods = Moods {
        chance,
        troubles,
        tokens,
    };
    listen(move |client| {
        // What goes wrong on this connection is what this is about.
        let _ = match &config {
            None => answer(client, &target, &moods, "http"),
            Some(config) => ServerConnection::new(Arc::clone(config))
                .map_err(std::io::Error::other)
                .and_then(|tls| answer(StreamOwned::new(tls, client), &target, &moods, "https")),
        };
    })
}

/// Answers one request of a connection.
fn answer(stream: impl Stream, target: &str, moods: &Moods, scheme: &str) -> std::io::Result<()> {
    let mut client = BufReader::new(stream);
    let mut head = String::new();
    while client.read_line(&mut head)? > 0 && !head.ends_with("\r\n\r\n") && head.len() < 1 << 16 {}
    let Some((first, rest)) = head
        .split_once("\r\n")
        .filter(|_| head.ends_with("\r\n\r\n"))
    else {
        return Ok(());
    };
    let mood = moods.next();
    let mut flip = None;
    match mood {
        Mood::Refuse(status) => {
            let text = format!("HTTP/1.1 {status}Content-Length: 0\r\nConnection: close\r\n\r\n");
            client.get_mut().write_all(text.as_bytes())?;
            return client.get_mut().flush();
        }
        Mood::Change { at, bit } => flip = Some((at, bit)),
        Mood::Pass => {}
    }
    let mut rest = rest.to_owned();
    if let Some(tokens) = &moods.tokens {
        match moods.admit(tokens, first, &rest) {
            Err(text) => {
                client.get_mut().write_all(text.as_bytes())?;
                return client.get_mut().flush();
            }
            Ok(()) => rest = with_login(&rest),
        }
    }
    let mut server = TcpStream::connect(target)?;
    write!(
        server,
        "{first}\r\nX-Forwarded-Proto: {scheme}\r\nConnection: close\r\n{rest}"
    )?;
    // A server may answer before it has read everything.
    let _ = pass_body(&mut client, &mut server, &rest);
    pass_answer(&mut server, client.get_mut(), flip)
}

/// Returns what a head says under a name.
pub(super) fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    let mut fields = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name));
    fields.next().map(|(_, value)| value.trim())
}

/// Passes on the body of a request whose head is known.
fn pass_body(client: &mut impl BufRead, server: &mut TcpStream, head: &str) -> std::io::Result<()> {
    if field(head, "transfer-encoding").is_none() {
        let length = field(head, "content-length").and_then(|length| length.parse().ok());
        std::io::copy(&mut client.take(length.unwrap_or(0)), server)?;
        return Ok(());
    }
    loop {
        let mut line = String::new();
        client.read_line(&mut line)?;
        server.write_all(line.as_bytes())?;
        let size = line.trim().split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(size, 16).map_err(std::io::Error::other)?;
        // With the line's end, which for the last is that of the whole.
        std::io::copy(&mut client.take(size + 2), server)?;
        if size == 0 {
            return Ok(());
        }
    }
}

/// Passes on an answer up to its end.
fn pass_answer(
    server: &mut TcpStream,
    client: &mut impl Write,
    flip: Option<(u64, u64)>,
) -> std::io::Result<()> {
    let mut position = 0;
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = server.read(&mut buffer)?;
        if read == 0 {
            return client.flush();
        }
        let end = position + read as u64;
        if let Some((at, bit)) = flip
            && (position..end).contains(&at)
        {
            buffer[(at - position) as usize] ^= 1 << bit;
        }
        position = end;
        client.write_all(&buffer[..read])?;
    }
}
