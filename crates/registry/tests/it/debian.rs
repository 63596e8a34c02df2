//! The registry that Debian packages (`docker-registry`), with logins and TLS, also over a bad connection.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use oci::media_type;
use registry::{BlobSource, Client, ErrorClass, PushOptions, Pushed, Settings, UploadForm};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::chaos::{image, pull, push, troublesome};
use crate::tls::Authority;
use crate::{auth, blob, digest, noise, reference, settings, settings_with};

/// `user:pass`.
const LOGINS: &str = "user:$2y$05$abcdefghijklmnopqrstuuZFBUbfXoM8LFiPx8LYlO/sXZB/Cwk3K\n";

struct Debian {
    authority: String,
    root: tempfile::TempDir,
    _process: Child,
}

fn program() -> Option<PathBuf> {
    let found = ["/usr/bin/docker-registry", "/usr/local/bin/docker-registry"]
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists());
    if found.is_none() {
        println!("skipped: docker-registry is not installed");
    }
    found
}

/// Starts the registry on a free port, with TLS and a login where there is an authority for it.
async fn start(program: &Path, authority: Option<&Authority>) -> Debian {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    let mut config = format!(
        "version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  \
         delete: {{enabled: true}}\n",
        path("data").display()
    );
    let mut http = String::from("http:\n  addr: 127.0.0.1:0\n  secret: s\n");
    if let Some(authority) = authority {
        let (certificate, key) = authority.issue("127.0.0.1");
        std::fs::write(path("server.pem"), certificate.pem()).unwrap();
        std::fs::write(path("server.key"), key.serialize_pem()).unwrap();
        std::fs::write(path("ca.pem"), authority.pem()).unwrap();
        std::fs::write(path("logins"), LOGINS).unwrap();
        http += &format!(
            "  tls: {{certificate: {}, key: {}}}\n",
            path("server.pem").display(),
            path("server.key").display()
        );
        config += &format!(
            "auth:\n  htpasswd: {{realm: test, path: {}}}\n",
            path("logins").display()
        );
    }
    std::fs::write(path("config.yml"), config + &http).unwrap();
    let mut process = Command::new(program)
        .arg("serve")
        .arg(path("config.yml"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
    let authority = loop {
        let line = lines
            .next_line()
            .await
            .unwrap()
            .expect("docker-registry did not start");
        if let Some((_, rest)) = line.split_once("listening on ") {
            let end = rest.find(['"', ',', ' ']).unwrap_or(rest.len());
            break rest[..end].to_owned();
        }
    };
    // It must not block on its log.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Debian {
        authority,
        root,
        _process: process,
    }
}

fn secure(debian: &Debian, authority: &str) -> Settings {
    let toml = format!(
        "[registry.\"HERE\"]\nca = [\"{}\"]\n",
        debian.root.path().join("ca.pem").display()
    );
    Settings {
        credentials: auth::always("user", "pass"),
        ..settings_with(authority, &toml)
    }
}

async fn check(client: Client, authority: &str) {
    let (raw, blobs) = image(30);
    let name = format!("{authority}/some/image:1");
    for form in [UploadForm::Monolithic, UploadForm::Chunked(150_000)] {
        let options = PushOptions {
            form,
            ..PushOptions::default()
        };
        push(&client, &name, &raw, &blobs, &options).await.unwrap();
        let (found, contents) = pull(&client, &name).await.unwrap();
        assert!(found == raw && contents == blobs);
        for content in &blobs {
            client
                .delete_blob(&reference(&name), &digest(content))
                .await
                .unwrap();
        }
    }
    let options = PushOptions::default();
    push(&client, &name, &raw, &blobs, &options).await.unwrap();
    assert_eq!(
        client.head(&reference(&name)).await.unwrap().digest,
        digest(&raw)
    );
    assert_eq!(client.tags(&reference(&name)).await.unwrap(), ["1"]);
    client.ping(authority).await.unwrap();
    client.authenticate(authority).await.unwrap();

    let other = reference(&format!("{authority}/other"));
    let options = PushOptions {
        mount_from: vec![reference(&name)],
        ..options
    };
    let source = BlobSource::Bytes(blobs[1].clone().into());
    let pushed = client
        .push_blob(&other, &blob(&blobs[1]), &source, &options)
        .await
        .unwrap();
    assert!(matches!(pushed, Pushed::Mounted { .. }), "{pushed:?}");
    let pushed = client
        .push_blob(&other, &blob(&blobs[1]), &source, &options)
        .await
        .unwrap();
    assert_eq!(pushed, Pushed::Existing);
    let absent = vec![reference(&format!("{authority}/absent"))];
    let options = PushOptions {
        mount_from: absent,
        ..options
    };
    let content = noise(31, 1000);
    let source = BlobSource::Bytes(content.clone().into());
    let pushed = client
        .push_blob(&other, &blob(&content), &source, &options)
        .await
        .unwrap();
    assert_eq!(pushed, Pushed::Uploaded);

    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "artifactType": "application/x", "manifests": [],
        "subject": {"mediaType": media_type::OCI_MANIFEST, "digest": digest(&raw), "size": raw.len()},
    });
    let untagged = reference(&name).without_version();
    let referrer = client
        .push_manifest(
            &untagged,
            media_type::OCI_INDEX,
            index.to_string().as_bytes(),
        )
        .await
        .unwrap();
    let referrers = client
        .referrers(&untagged, &digest(&raw), Some("application/x"))
        .await
        .unwrap();
    assert_eq!(referrers[0].digest, referrer.digest);

    client
        .delete_manifest(&untagged.clone().with_digest(digest(&raw)))
        .await
        .unwrap();
    let error = client.resolve(&reference(&name)).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::NotFound, "{error}");
}

#[tokio::test]
async fn debians_registry_takes_and_gives_images() {
    let Some(program) = program() else { return };
    let debian = start(&program, None).await;
    check(Client::new(settings()), &debian.authority).await;
}

#[tokio::test]
async fn debians_registry_takes_and_gives_images_with_tls_and_login() {
    let Some(program) = program() else { return };
    let debian = start(&program, Some(&Authority::new())).await;
    check(
        Client::new(secure(&debian, &debian.authority)),
        &debian.authority,
    )
    .await;
    let anonymous = Settings {
        credentials: Settings::default().credentials,
        ..secure(&debian, &debian.authority)
    };
    let name = reference(&format!("{}/some/image", debian.authority));
    let error = Client::new(anonymous).tags(&name).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Unauthenticated, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debians_registry_over_a_bad_connection_is_right_or_fails_clearly() {
    const IMAGES: u64 = 20;
    let Some(program) = program() else { return };
    for tls in [false, true] {
        let authority = tls.then(Authority::new);
        let debian = start(&program, authority.as_ref()).await;
        let proxy = troublesome(debian.authority.clone(), 7, 450_000).await;
        let mut images = tokio::task::JoinSet::new();
        for number in 0..IMAGES {
            let name = format!("{proxy}/image-{number}:1");
            let mut settings = if tls {
                secure(&debian, &proxy)
            } else {
                settings()
            };
            settings.timeouts.silence = Duration::from_millis(250);
            settings.timeouts.commit = Duration::from_millis(500);
            images.spawn(there_and_back(settings, name, number));
        }
        let (mut right, mut failed) = (0, Vec::new());
        for outcome in images.join_all().await {
            match outcome {
                Ok(()) => right += 1,
                Err(error) => failed.push(error.to_string()),
            }
        }
        println!("tls {tls}: {right} of {IMAGES} right, the others: {failed:#?}");
        assert!(right > IMAGES * 3 / 5, "{failed:#?}");
    }
}

/// Pushes an image and pulls it with another client; it must be the same.
async fn there_and_back(
    settings: Settings,
    name: String,
    number: u64,
) -> Result<(), registry::RegistryError> {
    let (raw, blobs) = image(5000 + number * 10);
    let form = if number.is_multiple_of(2) {
        UploadForm::Monolithic
    } else {
        UploadForm::Chunked(100_000)
    };
    let options = PushOptions {
        form,
        ..PushOptions::default()
    };
    push(
        &Client::new(settings.clone()),
        &name,
        &raw,
        &blobs,
        &options,
    )
    .await?;
    let (found, contents) = pull(&Client::new(settings), &name).await?;
    assert!(found == raw && contents == blobs, "{name} is wrong");
    Ok(())
}
