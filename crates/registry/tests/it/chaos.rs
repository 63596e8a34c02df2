//! Hundreds of pulls and pushes through a connection that cuts, delays, truncates and changes bytes, to a registry that
//! answers 429 and 500 at random: each outcome is right or a clear error.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use oci::{Descriptor, media_type};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use registry::{BlobSource, Client, PushOptions, RegistryError, UploadForm};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::server::{Fault, Login, Registry};
use crate::{auth, blob, digest, manifest, noise, reference, settings_with};

/// What may happen to one connection.
#[derive(Debug, Clone, Copy)]
enum Mishap {
    None,
    /// Both ways are closed after this many bytes of the answer or request.
    Cut {
        after: u64,
        request: bool,
    },
    /// One bit is changed.
    Flip {
        at: u64,
        bit: u8,
        request: bool,
    },
    /// A pause that is longer than the client's patience.
    Stall {
        after: u64,
    },
    /// A pause that is not.
    Delay,
}

impl Mishap {
    fn at_random(random: &mut StdRng, reach: u64) -> Self {
        match random.random_range(0..100) {
            0..=54 => Self::None,
            55..=69 => Self::Cut {
                after: random.random_range(0..reach),
                request: random.random_bool(0.3),
            },
            70..=86 => Self::Flip {
                at: random.random_range(0..reach),
                bit: random.random_range(0..8),
                request: random.random_bool(0.3),
            },
            87..=89 => Self::Stall {
                after: random.random_range(0..reach),
            },
            _ => Self::Delay,
        }
    }
}

/// Relays connections to `target` with mishaps from a seed; returns its own address.
pub(crate) async fn troublesome(target: String, seed: u64, reach: u64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let authority = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let mut random = StdRng::seed_from_u64(seed);
        while let Ok((client, _)) = listener.accept().await {
            let mishap = Mishap::at_random(&mut random, reach);
            let target = target.clone();
            tokio::spawn(async move {
                let Ok(server) = TcpStream::connect(target).await else {
                    return;
                };
                let (client_read, client_write) = client.into_split();
                let (server_read, server_write) = server.into_split();
                // Whichever ends first ends both, as dropping the halves closes the sockets.
                tokio::select! {
                    () = relay(client_read, server_write, mishap, true) => {}
                    () = relay(server_read, client_write, mishap, false) => {}
                }
            });
        }
    });
    authority
}

/// Relays connections, the answers of each only up to so many bytes.
pub(crate) async fn silent_after(target: String, bytes: u64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let authority = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let target = target.clone();
            tokio::spawn(async move {
                let server = TcpStream::connect(target).await.unwrap();
                let (client_read, client_write) = client.into_split();
                let (server_read, server_write) = server.into_split();
                tokio::join!(
                    relay(client_read, server_write, Mishap::None, true),
                    relay(
                        server_read,
                        client_write,
                        Mishap::Stall { after: bytes },
                        false
                    ),
                );
            });
        }
    });
    authority
}

async fn relay(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mishap: Mishap,
    request: bool,
) {
    let mut position = 0;
    let mut buffer = vec![0; 16 << 10];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        let mut piece = &mut buffer[..read];
        let end = position + read as u64;
        match mishap {
            Mishap::Cut {
                after,
                request: which,
            } if which == request && after < end => {
                piece = &mut piece[..(after - position) as usize];
                let _ = to.write_all(piece).await;
                return;
            }
            Mishap::Flip {
                at,
                bit,
                request: which,
            } if which == request && (position..end).contains(&at) => {
                piece[(at - position) as usize] ^= 1 << bit;
            }
            Mishap::Stall { after } if !request && (position..end).contains(&after) => {
                tokio::time::sleep(Duration::from_secs(600)).await;
            }
            Mishap::Delay => tokio::time::sleep(Duration::from_millis(1)).await,
            _ => {}
        }
        position = end;
        if to.write_all(piece).await.is_err() {
            return;
        }
    }
}

/// Answers with passing errors at random.
fn moody(registry: &Registry, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    registry.faults(move |_| match random.random_range(0..100) {
        0..=7 => Some(Fault::Status(500)),
        8..=11 => Some(Fault::Later(429, "0")),
        12..=13 => Some(Fault::Status(503)),
        _ => None,
    });
}

fn impatient(authority: &str) -> registry::Settings {
    let mut settings = settings_with(authority, "[registry.\"HERE\"]\nhttp = true\n");
    settings.timeouts.silence = Duration::from_millis(150);
    settings.timeouts.commit = Duration::from_millis(150);
    settings
}

/// Pulls an image as a builder does: manifest, config, layers by what the manifest says.
pub(crate) async fn pull(
    client: &Client,
    name: &str,
) -> Result<(Vec<u8>, Vec<Vec<u8>>), RegistryError> {
    let name = reference(name);
    let resolved = client.resolve(&name).await?;
    let parsed =
        oci::Parsed::<oci::Manifest>::parse(resolved.raw.to_vec()).expect("it was checked");
    let mut blobs = vec![
        client
            .fetch_blob_bytes(&name, &parsed.config, 1 << 20)
            .await?,
    ];
    for layer in &parsed.layers {
        let mut stream = client.fetch_blob(&name, layer, None).await?;
        let mut content = Vec::new();
        while let Some(piece) = stream.next().await? {
            content.extend_from_slice(&piece);
        }
        blobs.push(content);
    }
    Ok((resolved.raw.to_vec(), blobs))
}

#[derive(Debug, Default)]
struct Tally {
    right: u32,
    errors: Vec<String>,
}

impl Tally {
    fn error(&mut self, error: &RegistryError) {
        let text = error.to_string();
        assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
        self.errors.push(text);
    }
}

/// The image of these tests: a small config and two layers, the second of some size.
pub(crate) fn image(seed: u64) -> (Vec<u8>, Vec<Vec<u8>>) {
    let layers = vec![noise(seed, 5_000), noise(seed + 1, 400_000)];
    let config = format!("{{\"seed\":{seed}}}").into_bytes();
    let raw = manifest(&config, &[&layers[0], &layers[1]]);
    let blobs = std::iter::once(config).chain(layers).collect();
    (raw, blobs)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_are_right_or_fail_clearly() {
    const PULLS: u64 = 200;
    let registry = Registry::start().await;
    let (raw, blobs) = image(10);
    for content in &blobs {
        registry.state().add_blob("a/b", content);
    }
    registry
        .state()
        .add_manifest("a/b", "1", media_type::OCI_MANIFEST, &raw);
    moody(&registry, 1);
    let tally = Arc::new(Mutex::new(Tally::default()));
    let proxy = troublesome(registry.authority.clone(), 2, 450_000).await;
    let mut running = tokio::task::JoinSet::new();
    for number in 0..PULLS {
        if running.len() >= 8 {
            running.join_next().await.unwrap().unwrap();
        }
        let (proxy, tally, raw, blobs) = (
            proxy.clone(),
            Arc::clone(&tally),
            raw.clone(),
            blobs.clone(),
        );
        running.spawn(async move {
            // A client of its own: connections of its own.
            let client = Client::new(impatient(&proxy));
            let pulled = pull(&client, &format!("{proxy}/a/b:1")).await;
            let mut tally = tally.lock().unwrap();
            match pulled {
                Ok((found, contents)) => {
                    assert_eq!(found, raw, "pull {number} gave a wrong manifest");
                    assert!(contents == blobs, "pull {number} gave wrong content");
                    tally.right += 1;
                }
                Err(error) => tally.error(&error),
            }
        });
    }
    while let Some(joined) = running.join_next().await {
        joined.unwrap();
    }
    let tally = tally.lock().unwrap();
    println!(
        "{} of {PULLS} pulls right, the others: {:#?}",
        tally.right, tally.errors
    );
    // A changed layer cannot be taken back; all else is mended.
    assert!(tally.right > PULLS as u32 * 3 / 4, "{:#?}", tally.errors);
    assert_eq!(u64::from(tally.right) + tally.errors.len() as u64, PULLS);
}

/// Pushes an image as a builder does: blobs, then the manifest.
pub(crate) async fn push(
    client: &Client,
    name: &str,
    raw: &[u8],
    blobs: &[Vec<u8>],
    options: &PushOptions,
) -> Result<Descriptor, RegistryError> {
    let name = reference(name);
    for content in blobs {
        let source = BlobSource::Bytes(content.clone().into());
        client
            .push_blob(&name, &blob(content), &source, options)
            .await?;
    }
    client
        .push_manifest(&name, media_type::OCI_MANIFEST, raw)
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushes_are_right_or_fail_clearly() {
    const PUSHES: u64 = 200;
    let registry = Registry::start().await;
    moody(&registry, 3);
    let proxy = troublesome(registry.authority.clone(), 4, 450_000).await;
    let tally = Arc::new(Mutex::new(Tally::default()));
    let mut running = tokio::task::JoinSet::new();
    for number in 0..PUSHES {
        if running.len() >= 8 {
            running.join_next().await.unwrap().unwrap();
        }
        let (registry, proxy, tally) = (registry.clone(), proxy.clone(), Arc::clone(&tally));
        running.spawn(async move {
            let (raw, blobs) = image(1000 + number * 10);
            let form = match number % 2 {
                0 => UploadForm::Monolithic,
                _ => UploadForm::Chunked(100_000),
            };
            let options = PushOptions {
                form,
                ..PushOptions::default()
            };
            let client = Client::new(impatient(&proxy));
            let repository = format!("repo-{number}");
            let pushed = push(
                &client,
                &format!("{proxy}/{repository}:1"),
                &raw,
                &blobs,
                &options,
            )
            .await;
            match pushed {
                Ok(descriptor) => {
                    let state = registry.state();
                    assert_eq!(descriptor.digest, digest(&raw));
                    assert_eq!(
                        state.tags[&(repository.clone(), "1".to_owned())],
                        digest(&raw),
                        "push {number}"
                    );
                    let stored = &state.manifests[&(repository.clone(), digest(&raw))];
                    assert_eq!(
                        (stored.0.as_str(), &stored.1[..]),
                        (media_type::OCI_MANIFEST, &raw[..])
                    );
                    for content in &blobs {
                        assert_eq!(
                            state.blobs[&(repository.clone(), digest(content))][..],
                            content[..]
                        );
                    }
                    drop(state);
                    tally.lock().unwrap().right += 1;
                }
                Err(error) => tally.lock().unwrap().error(&error),
            }
        });
    }
    while let Some(joined) = running.join_next().await {
        joined.unwrap();
    }
    let tally = tally.lock().unwrap();
    println!(
        "{} of {PUSHES} pushes right, the others: {:#?}",
        tally.right, tally.errors
    );
    assert!(tally.right > PUSHES as u32 * 3 / 4, "{:#?}", tally.errors);
    assert_eq!(u64::from(tally.right) + tally.errors.len() as u64, PUSHES);
    // Whatever happened, nothing in the registry is under a digest that it has not.
    for ((_, name), content) in &registry.state().blobs {
        assert!(name.is_of(content));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_hold_through_trouble() {
    const PULLS: u64 = 60;
    let registry = Registry::start().await;
    let (raw, blobs) = image(20);
    for content in &blobs {
        registry.state().add_blob("a/b", content);
    }
    registry
        .state()
        .add_manifest("a/b", "1", media_type::OCI_MANIFEST, &raw);
    registry.state().login = Login::Bearer {
        user: "user",
        password: "pass",
        identity: "",
        life: 300,
        anonymous_pull: false,
    };
    moody(&registry, 5);
    let proxy = troublesome(registry.authority.clone(), 6, 450_000).await;
    let mut tally = Tally::default();
    for number in 0..PULLS {
        let mut settings = impatient(&proxy);
        settings.credentials = auth::always("user", "pass");
        match pull(&Client::new(settings), &format!("{proxy}/a/b:1")).await {
            Ok((found, contents)) => {
                assert!(found == raw && contents == blobs, "pull {number} was wrong");
                tally.right += 1;
            }
            Err(error) => tally.error(&error),
        }
    }
    println!(
        "{} of {PULLS} right, the others: {:#?}",
        tally.right, tally.errors
    );
    assert!(tally.right > PULLS as u32 * 3 / 4, "{:#?}", tally.errors);
}
