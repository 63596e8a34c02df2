//! Resolving and fetching.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use hyper::header::HeaderName;
use oci::{Descriptor, media_type};
use registry::{Client, ErrorClass, RegistryError};

use crate::server::{Fault, Registry};
use crate::{blob, client, digest, manifest, noise, reference, settings, settings_with};

const CONFIG: &[u8] = b"{}";

/// A registry with one image `a/b:1` of one layer of a megabyte.
async fn with_image() -> (Registry, Vec<u8>, Vec<u8>) {
    let registry = Registry::start().await;
    let layer = noise(1, 1 << 20);
    let raw = manifest(CONFIG, &[&layer]);
    let mut state = registry.state();
    state.add_blob("a/b", CONFIG);
    state.add_blob("a/b", &layer);
    state.add_manifest("a/b", "1", media_type::OCI_MANIFEST, &raw);
    drop(state);
    (registry, raw, layer)
}

async fn fetch(
    client: &Client,
    name: &str,
    descriptor: &Descriptor,
) -> Result<Vec<u8>, RegistryError> {
    let mut blob = client
        .fetch_blob(&reference(name), descriptor, None)
        .await?;
    let mut content = Vec::new();
    while let Some(piece) = blob.next().await? {
        content.extend_from_slice(&piece);
    }
    assert!(blob.next().await?.is_none());
    Ok(content)
}

#[tokio::test]
async fn an_image_is_resolved_and_fetched() {
    let (registry, raw, layer) = with_image().await;
    let (client, name) = (client(), format!("{}/a/b:1", registry.authority));
    let resolved = client.resolve(&reference(&name)).await.unwrap();
    assert_eq!(&resolved.raw[..], &raw[..]);
    assert_eq!(
        resolved.descriptor,
        Descriptor::of(media_type::OCI_MANIFEST, &raw)
    );
    assert_eq!(
        client.head(&reference(&name)).await.unwrap(),
        resolved.descriptor
    );
    assert_eq!(
        client
            .fetch_manifest(&reference(&name), &resolved.descriptor)
            .await
            .unwrap(),
        resolved.raw
    );
    assert_eq!(fetch(&client, &name, &blob(&layer)).await.unwrap(), layer);
    let config = client
        .fetch_blob_bytes(&reference(&name), &blob(CONFIG), 1024)
        .await
        .unwrap();
    assert_eq!(config, CONFIG);
}

#[tokio::test]
async fn what_is_not_there_is_not_found_at_once() {
    let (registry, ..) = with_image().await;
    let name = format!("{}/a/b:2", registry.authority);
    let error = client().resolve(&reference(&name)).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::NotFound);
    assert_eq!(
        error.to_string(),
        format!(
            "manifest {name} not found at {}: it is MANIFEST_UNKNOWN",
            registry.authority
        )
    );
    let error = client()
        .fetch_blob(&reference(&name), &blob(b"other"), None)
        .await
        .unwrap_err();
    assert!(error.is_not_found(), "{error}");
    // The first of each asks whether the server speaks TLS.
    let manifests = registry
        .log()
        .into_iter()
        .filter(|line| line.contains("manifests"))
        .count();
    assert_eq!(manifests, 1);
}

#[tokio::test]
async fn a_manifest_changed_on_its_way_is_never_taken() {
    let (registry, raw, _) = with_image().await;
    let name = reference(&format!("{}/a/b:1", registry.authority));
    // Once: asked for again.
    let mut times = 0;
    registry.faults(move |seen| {
        times += u32::from(seen.path.contains("manifests"));
        (times == 1).then_some(Fault::Flip)
    });
    assert_eq!(&client().resolve(&name).await.unwrap().raw[..], &raw[..]);
    // Always: an error.
    registry.faults(|seen| seen.path.contains("manifests").then_some(Fault::Flip));
    let error = client().resolve(&name).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::DigestMismatch { .. }),
        "{error}"
    );
    assert_eq!(error.class(), ErrorClass::DataLoss);
    // By digest, what the server says of it does not matter.
    registry.state().no_digest_header = true;
    let by_digest = name.with_digest(digest(&raw));
    let error = client().resolve(&by_digest).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::DigestMismatch { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn images_of_schema_1_and_what_is_no_image_are_refused() {
    let registry = Registry::start().await;
    let schema1 = br#"{"schemaVersion":1,"name":"a/b","tag":"1","fsLayers":[],"history":[]}"#;
    let both = br#"{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}"#;
    registry
        .state()
        .add_manifest("a/b", "old", media_type::DOCKER_SCHEMA1_SIGNED, schema1);
    registry
        .state()
        .add_manifest("a/b", "sly", "application/json", schema1);
    registry
        .state()
        .add_manifest("a/b", "both", media_type::OCI_INDEX, both);
    let resolve = async |tag: &str| {
        client()
            .resolve(&reference(&format!("{}/a/b:{tag}", registry.authority)))
            .await
    };
    for tag in ["old", "sly"] {
        let error = resolve(tag).await.unwrap_err();
        assert!(matches!(error, RegistryError::Schema1 { .. }), "{error}");
    }
    let error = resolve("both").await.unwrap_err();
    assert!(matches!(error, RegistryError::Malformed { .. }), "{error}");
}

#[tokio::test]
async fn a_manifest_without_end_is_not_read() {
    let (registry, ..) = with_image().await;
    registry.faults(|seen| {
        let huge = Fault::Answer(200, Vec::new(), vec![b' '; (4 << 20) + 1]);
        seen.path.contains("manifests").then_some(huge)
    });
    let error = client()
        .resolve(&reference(&format!("{}/a/b:1", registry.authority)))
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn a_blob_that_is_cut_is_taken_up_where_it_ended() {
    let (registry, _, layer) = with_image().await;
    let name = format!("{}/a/b:1", registry.authority);
    registry.faults(|seen| seen.path.contains("blobs").then_some(Fault::CutAt(300_000)));
    let total = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&total);
    let progress = Arc::new(move |bytes| told.store(bytes, Ordering::Relaxed));
    let stream = client()
        .fetch_blob(&reference(&name), &blob(&layer), Some(progress))
        .await
        .unwrap();
    use futures_util::TryStreamExt;
    let content: Vec<u8> = stream
        .into_stream()
        .map_ok(Vec::from)
        .try_concat()
        .await
        .unwrap();
    assert_eq!(content, layer);
    assert_eq!(total.load(Ordering::Relaxed), layer.len() as u64);
    let ranges: Vec<String> = {
        let state = registry.state();
        let seen = state.seen.iter().filter(|seen| seen.path.contains("blobs"));
        seen.map(|seen| seen.header("range").unwrap_or("all").to_owned())
            .collect()
    };
    assert_eq!(ranges[0], "all");
    assert!(
        ranges.len() >= 4 && ranges[1..].iter().all(|range| range.starts_with("bytes=")),
        "{ranges:?}"
    );
}

#[tokio::test]
async fn a_server_without_ranges_begins_again_and_the_reader_does_not_see_it() {
    let (registry, _, layer) = with_image().await;
    let mut times = 0;
    registry.faults(move |seen| {
        times += u32::from(seen.path.contains("blobs"));
        match times {
            1 => Some(Fault::CutAt(700_000)),
            _ => Some(Fault::NoRange),
        }
    });
    let name = format!("{}/a/b:1", registry.authority);
    assert_eq!(fetch(&client(), &name, &blob(&layer)).await.unwrap(), layer);
}

#[tokio::test]
async fn a_blob_changed_on_its_way_ends_in_an_error() {
    let (registry, _, layer) = with_image().await;
    registry.faults(|seen| seen.path.contains("blobs").then_some(Fault::Flip));
    let name = format!("{}/a/b:1", registry.authority);
    let error = fetch(&client(), &name, &blob(&layer)).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::DigestMismatch { .. }),
        "{error}"
    );
    assert!(error.may_pass());
    // A small one is asked for again here.
    let mut times = 0;
    registry.faults(move |seen| {
        times += u32::from(seen.path.contains("blobs"));
        (times < 3).then_some(Fault::Flip)
    });
    let config = client()
        .fetch_blob_bytes(&reference(&name), &blob(CONFIG), 1024)
        .await
        .unwrap();
    assert_eq!(config, CONFIG);
}

#[tokio::test]
async fn a_blob_of_another_size_is_refused_before_it_is_read() {
    let (registry, _, layer) = with_image().await;
    let name = format!("{}/a/b:1", registry.authority);
    for size in [layer.len() as u64 - 1, layer.len() as u64 + 1] {
        let descriptor = Descriptor {
            size,
            ..blob(&layer)
        };
        let error = fetch(&client(), &name, &descriptor).await.unwrap_err();
        assert!(
            matches!(error, RegistryError::SizeMismatch { .. }),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_part_that_was_not_asked_for_is_refused() {
    let (registry, _, layer) = with_image().await;
    let mut times = 0;
    registry.faults(move |seen| {
        times += u32::from(seen.path.contains("blobs"));
        let range =
            |text: &str| Fault::Header(HeaderName::from_static("content-range"), text.into());
        match times {
            0 => None,
            1 => Some(Fault::CutAt(1000)),
            _ => Some(range("bytes 999-1048575/1048576")),
        }
    });
    let name = format!("{}/a/b:1", registry.authority);
    let error = fetch(&client(), &name, &blob(&layer)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Malformed { .. }), "{error}");
}

#[tokio::test]
async fn passing_failures_are_tried_again_and_lasting_ones_reported() {
    let (registry, raw, _) = with_image().await;
    let name = reference(&format!("{}/a/b:1", registry.authority));
    let mut times = 0;
    registry.faults(move |seen| {
        times += u32::from(seen.path.contains("manifests"));
        match times {
            1 => Some(Fault::Status(500)),
            2 => Some(Fault::Later(429, "0")),
            3 => Some(Fault::Status(503)),
            4 => Some(Fault::CutAt(5)),
            _ => None,
        }
    });
    assert_eq!(&client().resolve(&name).await.unwrap().raw[..], &raw[..]);

    registry.faults(|seen| {
        seen.path
            .contains("manifests")
            .then_some(Fault::Status(502))
    });
    let error = client().resolve(&name).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{} answered 502 for manifest {name}: it is FAULT",
            registry.authority
        )
    );
    let before = registry.log().len();
    registry.faults(|seen| {
        seen.path
            .contains("manifests")
            .then_some(Fault::Later(429, "86400"))
    });
    let error = client().resolve(&name).await.unwrap_err();
    assert!(error.to_string().contains("(again in 86400 s)"), "{error}");
    assert_eq!(
        registry.log().len(),
        before + 2,
        "a registry that asks for a day is not waited for"
    );
}

#[tokio::test]
async fn silence_is_not_waited_for_without_end() {
    let (registry, ..) = with_image().await;
    registry.faults(|seen| seen.path.contains("manifests").then_some(Fault::Silence));
    let mut settings = settings();
    settings.timeouts.silence = std::time::Duration::from_millis(20);
    settings.retry.attempts = 2;
    let name = reference(&format!("{}/a/b:1", registry.authority));
    let error = Client::new(settings).resolve(&name).await.unwrap_err();
    assert!(matches!(error, RegistryError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn nobody_there_is_a_clear_error() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let error = client()
        .resolve(&reference(&format!("127.0.0.1:{port}/a/b")))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("failed to connect to 127.0.0.1:{port}")
    );
    assert_eq!(error.class(), ErrorClass::Unavailable);
}

#[tokio::test]
async fn a_redirect_to_another_origin_gets_no_login() {
    let (registry, _, layer) = with_image().await;
    let storage = Registry::start().await;
    storage.state().add_blob("x", &layer);
    registry.state().login = crate::server::Login::Basic("u", "p");
    let target = format!(
        "http://{}/v2/x/blobs/{}?sig=secret",
        storage.authority,
        digest(&layer)
    );
    registry.faults(move |seen| {
        let logged_in = seen.path.contains("blobs") && seen.header("authorization").is_some();
        logged_in.then(|| Fault::Redirect(307, target.clone()))
    });
    let mut settings = settings();
    settings.credentials = crate::auth::always("u", "p");
    let name = format!("{}/a/b", registry.authority);
    assert_eq!(
        fetch(&Client::new(settings.clone()), &name, &blob(&layer))
            .await
            .unwrap(),
        layer
    );
    let seen = storage.state().seen.clone();
    assert!(
        seen.iter()
            .all(|seen| seen.header("authorization").is_none()),
        "{seen:?}"
    );
    // The signature in the URL gives access, and is not for logs.
    storage.faults(|_| Some(Fault::Status(500)));
    let error = fetch(&Client::new(settings), &name, &blob(&layer))
        .await
        .unwrap_err();
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");
}

#[tokio::test]
async fn redirects_without_end_are_left() {
    let (registry, ..) = with_image().await;
    registry.faults(|seen| {
        seen.path
            .contains("manifests")
            .then(|| Fault::Redirect(302, seen.path.clone()))
    });
    let error = client()
        .resolve(&reference(&format!("{}/a/b:1", registry.authority)))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("redirects without end"),
        "{error}"
    );
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_nothing_wrong_is_taken_from_them() {
    let (upstream, raw, layer) = with_image().await;
    let (broken, stale) = (Registry::start().await, Registry::start().await);
    broken.faults(|_| Some(Fault::Status(404)));
    // This mirror has the blob changed.
    let key = ("hub/a/b".to_owned(), digest(&layer));
    stale
        .state()
        .blobs
        .insert(key, noise(2, layer.len()).into());
    let toml = format!(
        "[registry.\"HERE\"]\nmirrors = [\"http://{}\", \"http://{}/hub\"]\n",
        broken.authority, stale.authority
    );
    let client = Client::new(settings_with(&upstream.authority, &toml));
    let name = format!("{}/a/b:1", upstream.authority);
    let resolved = client.resolve(&reference(&name)).await.unwrap();
    assert_eq!(
        (&resolved.raw[..], &resolved.source),
        (&raw[..], &upstream.authority)
    );
    assert!(
        broken.log()[0].ends_with(&format!("?ns={}", upstream.authority.replace(':', "%3A"))),
        "{:?}",
        broken.log()
    );
    assert!(
        stale.log()[0].starts_with("GET /v2/hub/a/b/manifests/1?"),
        "{:?}",
        stale.log()
    );
    let error = fetch(&client, &name, &blob(&layer)).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::DigestMismatch { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_mirror_that_dies_in_the_middle_is_left_for_the_registry() {
    let (upstream, _, layer) = with_image().await;
    let mirror = Registry::start().await;
    mirror.state().add_blob("a/b", &layer);
    let mut times = 0;
    mirror.faults(move |_| {
        times += 1;
        Some(if times == 1 {
            Fault::CutAt(400_000)
        } else {
            Fault::Status(500)
        })
    });
    let toml = format!(
        "[registry.\"HERE\"]\nmirrors = [\"http://{}\"]\n",
        mirror.authority
    );
    let client = Client::new(settings_with(&upstream.authority, &toml));
    let name = format!("{}/a/b:1", upstream.authority);
    assert_eq!(fetch(&client, &name, &blob(&layer)).await.unwrap(), layer);
    let state = upstream.state();
    let range = state
        .seen
        .iter()
        .find_map(|seen| seen.header("range"))
        .expect("not begun anew");
    assert_ne!(range, "bytes=0-");
}

#[tokio::test]
async fn a_mirror_that_is_away_is_asked_last_from_then_on() {
    let (upstream, _, layer) = with_image().await;
    let mirror = Registry::start().await;
    mirror.faults(|_| Some(Fault::Silence));
    let toml = format!(
        "[registry.\"HERE\"]\nmirrors = [\"http://{}\"]\n",
        mirror.authority
    );
    let mut settings = settings_with(&upstream.authority, &toml);
    settings.retry.attempts = 1;
    settings.timeouts.silence = std::time::Duration::from_millis(300);
    let client = Client::new(settings);
    let name = format!("{}/a/b:1", upstream.authority);
    client.resolve(&reference(&name)).await.unwrap();
    fetch(&client, &name, &blob(&layer)).await.unwrap();
    assert_eq!(mirror.log().len(), 1);
}

#[tokio::test]
async fn an_image_layout_stands_in_for_a_registry() {
    let root = tempfile::tempdir().unwrap();
    let layout = root.path().join("library/busybox");
    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let layer = noise(3, 700_000);
    let raw = manifest(CONFIG, &[&layer]);
    for content in [CONFIG, &layer, &raw] {
        std::fs::write(
            layout.join(oci::layout::blob_path(&digest(content))),
            content,
        )
        .unwrap();
    }
    let entry = Descriptor::of(media_type::OCI_MANIFEST, &raw)
        .with_annotation(oci::layout::ANNOTATION_REF_NAME, "1.36");
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    std::fs::write(layout.join("index.json"), index).unwrap();
    let toml = format!(
        "[registry.\"docker.io\"]\nmirrors = [\"oci-layout:{}\"]\n",
        root.path().display()
    );
    let client = Client::new(settings_with("", &toml));
    let resolved = client.resolve(&reference("busybox:1.36")).await.unwrap();
    assert_eq!(&resolved.raw[..], &raw[..]);
    assert_eq!(
        client.head(&reference("busybox:1.36")).await.unwrap(),
        resolved.descriptor
    );
    assert_eq!(
        fetch(&client, "busybox", &blob(&layer)).await.unwrap(),
        layer
    );
    std::fs::write(
        layout.join(oci::layout::blob_path(&digest(&layer))),
        noise(4, layer.len()),
    )
    .unwrap();
    let error = fetch(&client, "busybox", &blob(&layer)).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::DigestMismatch { .. }),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_thread_reads_a_blob_to_its_verified_end() {
    let (registry, _, layer) = with_image().await;
    let name = reference(&format!("{}/a/b", registry.authority));
    let read = async |descriptor: Descriptor| {
        let runtime = tokio::runtime::Handle::current();
        let mut reader = client().blob_reader(&runtime, &name, &descriptor, None);
        let read = std::thread::spawn(move || {
            let mut content = Vec::new();
            reader.read_to_end(&mut content).map(|_| content)
        });
        tokio::task::spawn_blocking(move || read.join().unwrap())
            .await
            .unwrap()
    };
    assert_eq!(read(blob(&layer)).await.unwrap(), layer);
    registry.faults(|seen| seen.path.contains("blobs").then_some(Fault::Flip));
    let error = read(blob(&layer)).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    let inner = error
        .get_ref()
        .unwrap()
        .downcast_ref::<RegistryError>()
        .unwrap();
    assert!(
        matches!(inner, RegistryError::DigestMismatch { .. }),
        "{inner}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reader_holds_only_a_little_ahead_and_dropping_it_ends_the_fetch() {
    let registry = Registry::start().await;
    let layer = noise(5, 64 << 20);
    registry.state().add_blob("a/b", &layer);
    let name = reference(&format!("{}/a/b", registry.authority));
    let fetched = Arc::new(Mutex::new(0));
    let told = Arc::clone(&fetched);
    let (sender, mut ended) = tokio::sync::mpsc::channel::<()>(1);
    let progress = Arc::new(move |bytes| {
        let _alive = &sender;
        *told.lock().unwrap() = bytes;
    });
    let reader = client().blob_reader(
        &tokio::runtime::Handle::current(),
        &name,
        &blob(&layer),
        Some(progress),
    );
    let mut first = [0; 1000];
    let (reader, first) = tokio::task::spawn_blocking(move || {
        let mut reader = reader;
        reader.read_exact(&mut first).unwrap();
        (reader, first)
    })
    .await
    .unwrap();
    assert_eq!(first, layer[..1000]);
    drop(reader);
    // The task lets go of the callback when it ends.
    assert!(ended.recv().await.is_none());
    assert!(*fetched.lock().unwrap() < 16 << 20);
}

#[tokio::test]
async fn tags_come_from_all_pages() {
    let registry = Registry::start().await;
    for tag in ["5", "1", "4", "2", "3"] {
        registry
            .state()
            .add_manifest("a/b", tag, media_type::OCI_MANIFEST, b"{}");
    }
    let name = reference(&format!("{}/a/b", registry.authority));
    assert_eq!(
        client().tags(&name).await.unwrap(),
        ["1", "2", "3", "4", "5"]
    );
    client().ping(&registry.authority).await.unwrap();
    // A listing that names itself as its next page.
    registry.faults(|seen| {
        let link = format!("<{}?{}>; rel=\"next\"", seen.path, seen.query);
        seen.path
            .contains("tags")
            .then_some(Fault::Header(HeaderName::from_static("link"), link))
    });
    let error = client().tags(&name).await.unwrap_err();
    assert!(error.to_string().contains("do not end"), "{error}");
}

#[tokio::test]
async fn a_registry_that_says_little_on_head_is_asked_again() {
    let (registry, raw, _) = with_image().await;
    let name = reference(&format!("{}/a/b:1", registry.authority));
    registry.faults(|seen| {
        (seen.method == "HEAD").then_some(Fault::WithoutHeader(HeaderName::from_static(
            "docker-content-digest",
        )))
    });
    assert_eq!(client().head(&name).await.unwrap().digest, digest(&raw));
    registry.faults(|seen| (seen.method == "HEAD").then_some(Fault::Status(405)));
    assert_eq!(client().head(&name).await.unwrap().digest, digest(&raw));
}
