//! Logins.

use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::pin::Pin;
use std::sync::Arc;

use hyper::header::WWW_AUTHENTICATE;
use oci::media_type;
use registry::{
    BlobSource, Client, Credential, CredentialProvider, CredentialSources, ErrorClass, PushOptions,
    Pushed, RegistryError, Settings, Stored,
};

use crate::server::{Fault, Login, Registry};
use crate::{blob, client, manifest, noise, reference, settings};

#[derive(Debug)]
struct Always(Credential);

impl CredentialProvider for Always {
    fn credential<'a>(
        &'a self,
        _registry: &'a str,
        _repository: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Option<Credential>, RegistryError>> + Send + 'a>> {
        Box::pin(std::future::ready(Ok(Some(self.0.clone()))))
    }
}

pub(crate) fn always(username: &str, password: &str) -> Arc<dyn CredentialProvider> {
    Arc::new(Always(Credential::Basic {
        username: username.into(),
        password: password.into(),
    }))
}

fn with(credential: Credential) -> Client {
    Client::new(Settings {
        credentials: Arc::new(Always(credential)),
        ..settings()
    })
}

fn basic(password: &str) -> Credential {
    Credential::Basic {
        username: "user".into(),
        password: password.into(),
    }
}

fn bearer(life: u64, anonymous_pull: bool) -> Login {
    Login::Bearer {
        user: "user",
        password: "pass",
        identity: "refresh-me",
        life,
        anonymous_pull,
    }
}

/// A registry with the image `a/b:1` without layers.
async fn with_image(login: Login) -> (Registry, Vec<u8>) {
    let registry = Registry::start().await;
    let raw = manifest(b"{}", &[]);
    registry.state().add_blob("a/b", b"{}");
    registry
        .state()
        .add_manifest("a/b", "1", media_type::OCI_MANIFEST, &raw);
    registry.state().login = login;
    (registry, raw)
}

fn count(registry: &Registry, text: &str) -> usize {
    registry
        .log()
        .iter()
        .filter(|line| line.contains(text))
        .count()
}

#[tokio::test]
async fn a_password_is_shown_to_a_registry_that_asks() {
    let (registry, raw) = with_image(Login::Basic("user", "pass")).await;
    let name = reference(&format!("{}/a/b:1", registry.authority));
    let resolved = with(basic("pass")).resolve(&name).await.unwrap();
    assert_eq!(&resolved.raw[..], &raw[..]);
    assert!(
        registry.state().seen[0].header("authorization").is_none(),
        "shown before it was asked for"
    );
    for client in [client(), with(basic("wrong"))] {
        let before = registry.log().len();
        let error = client.resolve(&name).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Unauthenticated, "{error}");
        assert!(
            registry.log().len() - before <= 3,
            "a wrong password is not tried again and again"
        );
    }
}

#[tokio::test]
async fn tokens_are_fetched_once_for_a_repository() {
    for credential in [
        basic("pass"),
        Credential::IdentityToken("refresh-me".into()),
    ] {
        let (registry, _) = with_image(bearer(300, false)).await;
        let name = reference(&format!("{}/a/b:1", registry.authority));
        let client = with(credential);
        let fetches = (0..8).map(|_| {
            let (client, name) = (client.clone(), name.clone());
            tokio::spawn(async move {
                client.resolve(&name).await.unwrap();
                client
                    .fetch_blob_bytes(&name, &blob(b"{}"), 100)
                    .await
                    .unwrap();
            })
        });
        for fetch in fetches.collect::<Vec<_>>() {
            fetch.await.unwrap();
        }
        assert_eq!(count(&registry, "/token"), 1, "{:#?}", registry.log());
    }
}

#[tokio::test]
async fn pulls_may_be_anonymous_and_pushes_are_not() {
    let (registry, _) = with_image(bearer(300, true)).await;
    let name = reference(&format!("{}/a/b:1", registry.authority));
    client().resolve(&name).await.unwrap();
    let source = BlobSource::Bytes("new".into());
    let push = async |client: Client| {
        client
            .push_blob(&name, &blob(b"new"), &source, &PushOptions::default())
            .await
    };
    let error = push(client()).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Unauthenticated, "{error}");
    assert_eq!(push(with(basic("pass"))).await.unwrap(), Pushed::Uploaded);
}

#[tokio::test]
async fn a_mount_asks_for_both_repositories() {
    let (registry, _) = with_image(bearer(300, false)).await;
    registry.state().add_blob("base", b"shared");
    let name = reference(&format!("{}/a/b", registry.authority));
    let from = reference(&format!("{}/base", registry.authority));
    let options = PushOptions {
        mount_from: vec![from],
        ..PushOptions::default()
    };
    let source = BlobSource::Bytes("shared".into());
    let pushed = with(basic("pass"))
        .push_blob(&name, &blob(b"shared"), &source, &options)
        .await
        .unwrap();
    assert!(matches!(pushed, Pushed::Mounted { .. }));
    let tokens = registry.state().tokens.clone();
    let both = ["repository:a/b:pull,push", "repository:base:pull"];
    assert!(tokens.values().any(|scopes| *scopes == both), "{tokens:?}");
}

#[tokio::test]
async fn a_token_that_ended_is_replaced() {
    let (registry, _) = with_image(bearer(300, false)).await;
    let name = reference(&format!("{}/a/b:1", registry.authority));
    let client = with(basic("pass"));
    client.resolve(&name).await.unwrap();
    // The registry forgets it early.
    registry.state().tokens.clear();
    client.resolve(&name).await.unwrap();
    assert_eq!(count(&registry, "/token"), 2);
    // Its life is told and over.
    registry.state().login = bearer(1, false);
    registry.state().tokens.clear();
    client.resolve(&name).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(850)).await;
    let before = count(&registry, "manifests");
    client.resolve(&name).await.unwrap();
    assert_eq!(count(&registry, "/token"), 4);
    assert_eq!(
        count(&registry, "manifests"),
        before + 1,
        "it was sent though its end was known"
    );
}

#[tokio::test]
async fn a_wrong_password_at_the_token_server_is_told() {
    let (registry, _) = with_image(bearer(300, true)).await;
    let name = reference(&format!("{}/a/b:1", registry.authority));
    for credential in [basic("wrong"), Credential::IdentityToken("wrong".into())] {
        let error = with(credential).resolve(&name).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Unauthenticated);
        assert!(
            error.to_string().contains("incorrect username or password"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn an_access_token_is_used_as_it_is() {
    let (registry, _) = with_image(bearer(300, false)).await;
    registry
        .state()
        .tokens
        .insert("mine".into(), vec!["repository:a/b:pull".into()]);
    let name = reference(&format!("{}/a/b:1", registry.authority));
    with(Credential::RegistryToken("mine".into()))
        .resolve(&name)
        .await
        .unwrap();
    assert_eq!(count(&registry, "/token"), 0);
}

/// Writes a helper that keeps its logins in files of a directory.
fn helper(directory: &std::path::Path, name: &str) {
    let script = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
case "$1" in
store) cat > kept ;;
get)
    read -r server || true
    if [ ! -e kept ]; then echo "credentials not found in native keychain"; exit 1; fi
    [ "$server" = broken ] && { echo "no luck"; exit 1; }
    cat kept ;;
erase) rm -f kept ;;
esac
"#;
    let path = directory.join(format!("docker-credential-{name}"));
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn login_keeps_what_the_registry_takes_and_logout_forgets_it() {
    for login in [Login::Basic("user", "pass"), bearer(300, false)] {
        let (registry, _) = with_image(login).await;
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("config.json");
        let sources = CredentialSources {
            files: vec![file.clone()],
            helper_directory: None,
        };
        let settings = settings();
        let error = registry::login(&settings, &sources, &registry.authority, &basic("wrong"))
            .await
            .unwrap_err();
        assert_eq!(error.class(), ErrorClass::Unauthenticated, "{error}");
        assert!(!file.exists());
        let stored = registry::login(&settings, &sources, &registry.authority, &basic("pass"))
            .await
            .unwrap();
        assert_eq!(stored, Stored::File(file.clone()));

        let settings = Settings {
            credentials: Arc::new(sources.clone()),
            ..settings
        };
        let name = reference(&format!("{}/a/b:1", registry.authority));
        Client::new(settings.clone()).resolve(&name).await.unwrap();
        assert!(
            registry::logout(&sources, &registry.authority)
                .await
                .unwrap()
        );
        assert!(
            !registry::logout(&sources, &registry.authority)
                .await
                .unwrap()
        );
        Client::new(settings).resolve(&name).await.unwrap_err();
    }
}

#[tokio::test]
async fn helpers_keep_logins_in_place_of_the_file() {
    let (registry, _) = with_image(Login::Basic("user", "pass")).await;
    let root = tempfile::tempdir().unwrap();
    helper(root.path(), "test");
    let file = root.path().join("config.json");
    std::fs::write(&file, r#"{"credsStore": "test"}"#).unwrap();
    let sources = CredentialSources {
        files: vec![file.clone()],
        helper_directory: Some(root.path().to_owned()),
    };
    let settings = Settings {
        credentials: Arc::new(sources.clone()),
        ..settings()
    };
    let name = reference(&format!("{}/a/b:1", registry.authority));
    Client::new(settings.clone())
        .resolve(&name)
        .await
        .unwrap_err();
    let stored = registry::login(&settings, &sources, &registry.authority, &basic("pass"))
        .await
        .unwrap();
    assert_eq!(stored, Stored::Helper("test".into()));
    assert!(
        !std::fs::read_to_string(&file)
            .unwrap()
            .contains("dXNlcjpwYXNz"),
        "the password is in the file"
    );
    Client::new(settings.clone()).resolve(&name).await.unwrap();
    assert!(
        registry::logout(&sources, &registry.authority)
            .await
            .unwrap()
    );
    Client::new(settings).resolve(&name).await.unwrap_err();
}

#[tokio::test]
async fn a_helper_that_fails_is_named() {
    let (registry, _) = with_image(Login::Basic("user", "pass")).await;
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("config.json");
    let sources = CredentialSources {
        files: vec![file.clone()],
        helper_directory: None,
    };
    let settings = Settings {
        credentials: Arc::new(sources),
        ..settings()
    };
    let name = reference(&format!("{}/a/b:1", registry.authority));
    for (helper, message) in [
        ("not-there", "docker-credential-not-there get"),
        ("../x", "is not the name of a helper"),
    ] {
        std::fs::write(&file, format!("{{\"credsStore\": \"{helper}\"}}")).unwrap();
        let error = Client::new(settings.clone())
            .resolve(&name)
            .await
            .unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[tokio::test]
async fn no_secret_is_in_an_error_or_a_debug_text() {
    let (registry, _) = with_image(Login::Basic("user", "other")).await;
    let name = reference(&format!("{}/a/b:1", registry.authority));
    let client = with(basic("s3cret"));
    let error = client.resolve(&name).await.unwrap_err();
    let text = format!("{error} {error:?} {client:?} {:?}", basic("s3cret"));
    assert!(!text.contains("s3cret"), "{text}");
}

/// Returns the answer of a registry that does not take a token any more.
fn refusal(realm: &str) -> Fault {
    let challenge = format!("Bearer realm=\"{realm}\",service=\"test\"");
    Fault::Answer(401, vec![(WWW_AUTHENTICATE, challenge)], b"{}".to_vec())
}

#[tokio::test]
async fn a_token_may_end_at_any_request() {
    let layer = noise(7, 300_000);
    let raw = manifest(b"{}", &[&layer]);
    let mut ended = 0;
    for moment in 0..12 {
        let registry = Registry::start().await;
        registry.state().login = bearer(300, false);
        let realm = format!("http://{}/token", registry.authority);
        let mut left = moment;
        registry.faults(move |seen| {
            if seen.path == "/token" || seen.header("authorization").is_none() {
                return None;
            }
            left -= 1;
            (left == -1).then(|| refusal(&realm))
        });
        let name = reference(&format!("{}/a/b:1", registry.authority));
        let client = with(basic("pass"));
        let options = PushOptions::default();
        for content in [&b"{}"[..], &layer] {
            let source = BlobSource::Bytes(content.to_vec().into());
            client
                .push_blob(&name, &blob(content), &source, &options)
                .await
                .unwrap();
        }
        client
            .push_manifest(&name, media_type::OCI_MANIFEST, &raw)
            .await
            .unwrap();
        let resolved = client.resolve(&name).await.unwrap();
        assert_eq!(&resolved.raw[..], &raw[..], "at request {moment}");
        let fetched = client
            .fetch_blob_bytes(&name, &blob(&layer), 1 << 20)
            .await
            .unwrap();
        assert_eq!(&fetched[..], &layer[..], "at request {moment}");
        ended += usize::from(count(&registry, "/token") > 1);
    }
    assert!(ended > 5, "tokens ended in the middle {ended} times only");
}

#[tokio::test]
async fn a_download_that_was_cut_goes_on_with_another_token() {
    let (registry, _) = with_image(bearer(300, false)).await;
    let layer = noise(8, 300_000);
    registry.state().add_blob("a/b", &layer);
    let realm = format!("http://{}/token", registry.authority);
    let mut asked = 0;
    registry.faults(move |seen| {
        if seen.method != "GET" || !seen.path.contains("/blobs/") {
            return None;
        }
        asked += 1;
        match asked {
            // The first is asked who it is.
            2 => Some(Fault::CutAt(100_000)),
            3 => Some(refusal(&realm)),
            _ => None,
        }
    });
    let name = reference(&format!("{}/a/b:1", registry.authority));
    let fetched = with(basic("pass"))
        .fetch_blob_bytes(&name, &blob(&layer), 1 << 20)
        .await
        .unwrap();
    assert_eq!(&fetched[..], &layer[..]);
    assert_eq!(count(&registry, "/token"), 2);
    let seen = registry.state().seen.clone();
    let resumed = seen.last().and_then(|seen| seen.header("range")).unwrap();
    assert!(
        resumed.starts_with("bytes=") && !resumed.starts_with("bytes=0-"),
        "{resumed}"
    );
}

#[tokio::test]
async fn a_registry_that_takes_no_token_is_told_of_and_left_alone() {
    let (registry, _) = with_image(bearer(300, false)).await;
    let realm = format!("http://{}/token", registry.authority);
    registry.faults(move |seen| (seen.path != "/token").then(|| refusal(&realm)));
    let name = reference(&format!("{}/a/b:1", registry.authority));
    let error = with(basic("pass")).resolve(&name).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Unauthenticated, "{error}");
    assert!(registry.log().len() <= 6, "{:#?}", registry.log());
}

#[tokio::test]
async fn a_realm_that_cannot_be_asked_is_told_of() {
    let (registry, _) = with_image(bearer(300, false)).await;
    let name = reference(&format!("{}/a/b:1", registry.authority));
    for (realm, message) in [
        ("ftp://127.0.0.1/token", "the realm is no URL"),
        ("http://", "the realm is no URL"),
        (
            "http://127.0.0.1:1/token",
            "failed to connect to 127.0.0.1:1",
        ),
    ] {
        registry.faults(move |_| Some(refusal(realm)));
        let error = with(basic("pass")).resolve(&name).await.unwrap_err();
        assert!(error.to_string().contains(message), "{realm}: {error}");
    }
    for (answer, message) in [
        ("{\"token\":", "it is not valid JSON"),
        ("{}", "there is no token in it"),
        ("{\"token\":\"\"}", "there is no token in it"),
        ("{\"token\":\"a\\nb\"}", "cannot stand in a header"),
    ] {
        let realm = format!("http://{}/token", registry.authority);
        registry.faults(move |seen| match seen.path.as_str() {
            "/token" => Some(Fault::Answer(200, Vec::new(), answer.into())),
            _ => Some(refusal(&realm)),
        });
        let error = with(basic("pass")).resolve(&name).await.unwrap_err();
        assert!(error.to_string().contains(message), "{answer}: {error}");
        assert!(!format!("{error:?}").contains("a\nb"), "{error:?}");
    }
}

#[tokio::test]
async fn what_holds_a_secret_is_sent_nowhere_else() {
    let (registry, _) = with_image(bearer(300, false)).await;
    let other = Registry::start().await;
    let target = format!("http://{}/token", other.authority);
    registry
        .faults(move |seen| (seen.method == "POST").then(|| Fault::Redirect(307, target.clone())));
    let name = reference(&format!("{}/a/b:1", registry.authority));
    let client = with(Credential::IdentityToken("refresh-me".into()));
    let error = client.resolve(&name).await.unwrap_err();
    assert!(error.to_string().contains("holds a secret"), "{error}");
    assert_eq!(other.log(), Vec::<String>::new());
}
