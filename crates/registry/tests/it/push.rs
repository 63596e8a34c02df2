//! Pushing and deleting.

use std::sync::{Arc, Mutex};

use oci::{Descriptor, media_type};
use registry::{BlobSource, ErrorClass, PushOptions, Pushed, RegistryError, UploadForm};

use crate::server::{Fault, Registry};
use crate::{blob, client, digest, manifest, noise, reference};

fn source(content: &[u8]) -> BlobSource {
    BlobSource::Bytes(content.to_vec().into())
}

fn chunked(size: u64) -> PushOptions {
    PushOptions {
        form: UploadForm::Chunked(size),
        ..PushOptions::default()
    }
}

async fn push(
    registry: &Registry,
    content: &[u8],
    options: &PushOptions,
) -> Result<Pushed, RegistryError> {
    let name = reference(&format!("{}/a/b", registry.authority));
    client()
        .push_blob(&name, &blob(content), &source(content), options)
        .await
}

fn stored(registry: &Registry, content: &[u8]) -> bool {
    registry
        .state()
        .blobs
        .get(&("a/b".to_owned(), digest(content)))
        .is_some_and(|stored| stored[..] == *content)
}

#[tokio::test]
async fn an_image_is_pushed_and_what_is_there_is_not_sent_again() {
    let registry = Registry::start().await;
    let (config, layer) = (b"{}".to_vec(), noise(1, 3 << 20));
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let options = PushOptions {
        progress: Some(Arc::new(move |bytes| tell.lock().unwrap().push(bytes))),
        ..PushOptions::default()
    };
    assert_eq!(
        push(&registry, &config, &PushOptions::default())
            .await
            .unwrap(),
        Pushed::Uploaded
    );
    assert_eq!(
        push(&registry, &layer, &options).await.unwrap(),
        Pushed::Uploaded
    );
    assert_eq!(told.lock().unwrap().last(), Some(&(3 << 20)));
    assert!(told.lock().unwrap().is_sorted());
    assert!(stored(&registry, &layer));
    assert_eq!(
        push(&registry, &layer, &PushOptions::default())
            .await
            .unwrap(),
        Pushed::Existing
    );

    let raw = manifest(&config, &[&layer]);
    let name = reference(&format!("{}/a/b:v1", registry.authority));
    let pushed = client()
        .push_manifest(&name, media_type::OCI_MANIFEST, &raw)
        .await
        .unwrap();
    assert_eq!(pushed, Descriptor::of(media_type::OCI_MANIFEST, &raw));
    assert_eq!(&client().resolve(&name).await.unwrap().raw[..], &raw[..]);
    assert_eq!(client().tags(&name).await.unwrap(), ["v1"]);
    // Without a tag it goes by its digest.
    let index = br#"{"schemaVersion":2,"manifests":[]}"#;
    let untagged = name.without_version();
    client()
        .push_manifest(&untagged, media_type::OCI_INDEX, index)
        .await
        .unwrap();
    assert!(
        registry
            .log()
            .contains(&format!("PUT /v2/a/b/manifests/{}", digest(index)))
    );
    let wrong = untagged.with_digest(digest(b"x"));
    let error = client()
        .push_manifest(&wrong, media_type::OCI_INDEX, index)
        .await
        .unwrap_err();
    assert!(
        matches!(error, RegistryError::DigestMismatch { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn an_empty_blob_and_a_file_are_pushed() {
    let registry = Registry::start().await;
    assert_eq!(
        push(&registry, b"", &PushOptions::default()).await.unwrap(),
        Pushed::Uploaded
    );
    assert!(stored(&registry, b""));
    let file = tempfile::NamedTempFile::new().unwrap();
    let content = noise(2, 1 << 20);
    std::fs::write(file.path(), &content).unwrap();
    let name = reference(&format!("{}/a/b", registry.authority));
    let source = BlobSource::File(file.path().to_owned());
    client()
        .push_blob(&name, &blob(&content), &source, &PushOptions::default())
        .await
        .unwrap();
    assert!(stored(&registry, &content));
}

#[tokio::test]
async fn a_source_that_cannot_be_read_or_is_too_short_is_our_failure() {
    let registry = Registry::start().await;
    let name = reference(&format!("{}/a/b", registry.authority));
    let content = noise(3, 1 << 20);
    for source in [
        source(&content[..1000]),
        BlobSource::File("/does/not/exist".into()),
    ] {
        let error = client()
            .push_blob(&name, &blob(&content), &source, &PushOptions::default())
            .await
            .unwrap_err();
        assert!(matches!(error, RegistryError::Content { .. }), "{error:?}");
        assert_eq!(error.class(), ErrorClass::Internal);
    }
    // One that is something else is refused by the registry.
    let other = source(&noise(4, 1 << 20));
    let error = client()
        .push_blob(&name, &blob(&content), &other, &PushOptions::default())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, RegistryError::Refused { code, .. } if code == "DIGEST_INVALID"),
        "{error:?}"
    );
    assert!(registry.state().blobs.is_empty());
}

#[tokio::test]
async fn a_blob_is_taken_from_another_repository_of_the_same_registry() {
    let registry = Registry::start().await;
    let content = noise(5, 10_000);
    registry.state().add_blob("base", &content);
    let options = PushOptions {
        mount_from: vec![
            reference("other.example/base"),
            reference(&format!("{}/base", registry.authority)),
        ],
        ..PushOptions::default()
    };
    let from = format!("{}/base", registry.authority);
    assert_eq!(
        push(&registry, &content, &options).await.unwrap(),
        Pushed::Mounted { from }
    );
    assert!(stored(&registry, &content));
    // A registry that does not want to, or cannot, gets the bytes.
    registry.state().no_mount = true;
    registry
        .state()
        .blobs
        .remove(&("a/b".to_owned(), digest(&content)));
    assert_eq!(
        push(&registry, &content, &options).await.unwrap(),
        Pushed::Uploaded
    );
    assert!(
        registry.state().sessions.is_empty(),
        "a session was left open"
    );
    registry
        .state()
        .blobs
        .remove(&("a/b".to_owned(), digest(&content)));
    registry.faults(|seen| seen.query.contains("mount=").then_some(Fault::Status(403)));
    assert_eq!(
        push(&registry, &content, &options).await.unwrap(),
        Pushed::Uploaded
    );
}

#[tokio::test]
async fn an_upload_in_pieces_goes_on_after_a_failure() {
    let registry = Registry::start().await;
    let content = noise(6, 1_000_000);
    let mut patches = 0;
    registry.faults(move |seen| {
        patches += u32::from(seen.method == "PATCH");
        match (seen.method.as_str(), patches) {
            ("PATCH", 2) => Some(Fault::Status(500)),
            // The piece was taken, the answer is lost.
            ("PATCH", 4) => Some(Fault::Header(hyper::header::LOCATION, "http://[".into())),
            _ => None,
        }
    });
    assert_eq!(
        push(&registry, &content, &chunked(300_000)).await.unwrap(),
        Pushed::Uploaded
    );
    assert!(stored(&registry, &content));
    let log = registry.log();
    let patches = log.iter().filter(|line| line.starts_with("PATCH")).count();
    let sessions = log.iter().filter(|line| line.starts_with("POST")).count();
    assert_eq!((patches, sessions), (5, 1), "{log:#?}");
}

#[tokio::test]
async fn an_upload_in_pieces_obeys_a_least_size_and_begins_anew_when_its_session_is_lost() {
    let registry = Registry::start().await;
    let content = noise(7, 500_000);
    let shared = registry.clone();
    let mut lost = false;
    registry.faults(move |seen| {
        if seen.method == "POST" {
            return Some(Fault::Header(
                "oci-chunk-min-length".parse().unwrap(),
                "200000".into(),
            ));
        }
        if seen.method == "PUT" && !lost {
            lost = true;
            return Some(Fault::Status(404));
        }
        None
    });
    push(&shared, &content, &chunked(1000)).await.unwrap();
    assert!(stored(&shared, &content));
    let sizes: Vec<usize> = shared
        .state()
        .seen
        .iter()
        .filter(|seen| seen.method == "PATCH")
        .map(|seen| seen.body)
        .collect();
    assert_eq!(
        sizes,
        [200_000, 200_000, 100_000, 200_000, 200_000, 100_000]
    );
}

#[tokio::test]
async fn an_upload_whose_answer_was_lost_is_found_to_be_there() {
    let registry = Registry::start().await;
    let content = noise(8, 100_000);
    let mut times = 0;
    registry.faults(move |seen| {
        times += u32::from(seen.method == "PUT");
        (seen.method == "PUT" && times == 1).then_some(Fault::Status(500))
    });
    push(&registry, &content, &PushOptions::default())
        .await
        .unwrap();
    assert!(stored(&registry, &content));
}

#[tokio::test]
async fn a_manifest_stored_as_another_is_noticed() {
    let registry = Registry::start().await;
    let index = br#"{"schemaVersion":2,"manifests":[]}"#;
    let name = reference(&format!("{}/a/b:1", registry.authority));
    let other = digest(b"changed").to_string();
    registry.faults(move |seen| {
        (seen.method == "PUT")
            .then(|| Fault::Header("docker-content-digest".parse().unwrap(), other.clone()))
    });
    let error = client()
        .push_manifest(&name, media_type::OCI_INDEX, index)
        .await
        .unwrap_err();
    assert!(
        matches!(error, RegistryError::DigestMismatch { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_manifest_that_names_what_is_not_there_is_refused() {
    let registry = Registry::start().await;
    let raw = manifest(b"{}", &[b"layer"]);
    let name = reference(&format!("{}/a/b:1", registry.authority));
    let error = client()
        .push_manifest(&name, media_type::OCI_MANIFEST, &raw)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("MANIFEST_BLOB_UNKNOWN"),
        "{error}"
    );
}

#[tokio::test]
async fn referrers_are_listed_by_the_api_or_by_a_tag() {
    for api in [true, false] {
        let registry = Registry::start().await;
        registry.state().referrers_api = api;
        let subject = Descriptor::of(
            media_type::OCI_INDEX,
            br#"{"schemaVersion":2,"manifests":[]}"#,
        );
        let name = reference(&format!("{}/a/b:1", registry.authority));
        let mut pushed = Vec::new();
        for kind in ["application/one", "application/two", "application/one"] {
            let raw = serde_json::json!({
                "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "artifactType": kind, "manifests": [],
                "subject": subject, "annotations": {"number": pushed.len().to_string()},
            });
            let raw = raw.to_string();
            let named = name.clone().without_version();
            let twice = [&named, &named];
            for named in twice {
                client()
                    .push_manifest(named, media_type::OCI_INDEX, raw.as_bytes())
                    .await
                    .unwrap();
            }
            pushed.push(digest(raw.as_bytes()));
        }
        let list = async |kind: Option<&str>| {
            let found = client()
                .referrers(&name, &subject.digest, kind)
                .await
                .unwrap();
            let mut found: Vec<_> = found.into_iter().map(|entry| entry.digest).collect();
            found.sort();
            found
        };
        let sorted = |mut digests: Vec<oci::Digest>| {
            digests.sort();
            digests
        };
        assert_eq!(list(None).await, sorted(pushed.clone()), "api {api}");
        assert_eq!(
            list(Some("application/two")).await,
            [pushed[1].clone()],
            "api {api}"
        );
        assert_eq!(
            client()
                .referrers(&name, &digest(b"other"), None)
                .await
                .unwrap(),
            [],
            "api {api}"
        );
    }
}

#[tokio::test]
async fn manifests_and_blobs_are_deleted() {
    let registry = Registry::start().await;
    let content = noise(9, 100);
    registry.state().add_blob("a/b", &content);
    let found = registry
        .state()
        .add_manifest("a/b", "1", media_type::OCI_INDEX, b"{}");
    let name = reference(&format!("{}/a/b", registry.authority));
    assert!(client().blob_exists(&name, &blob(&content)).await.unwrap());
    client()
        .delete_blob(&name, &digest(&content))
        .await
        .unwrap();
    assert!(!client().blob_exists(&name, &blob(&content)).await.unwrap());
    let by_digest = name.clone().with_digest(found);
    client().delete_manifest(&by_digest).await.unwrap();
    assert!(
        client()
            .delete_manifest(&by_digest)
            .await
            .unwrap_err()
            .is_not_found()
    );
    registry.faults(|_| Some(Fault::Status(405)));
    let error = client().delete_manifest(&by_digest).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Unsupported);
}
