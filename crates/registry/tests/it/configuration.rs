//! The files of other tools, as a client uses them.

use oci::media_type;
use registry::{Client, ConfigurationSources, Settings};

use crate::server::Registry;
use crate::{manifest, reference, settings};

async fn with_image(repository: &str) -> (Registry, Vec<u8>) {
    let registry = Registry::start().await;
    let raw = manifest(b"{}", &[]);
    registry
        .state()
        .add_manifest(repository, "1", media_type::OCI_MANIFEST, &raw);
    (registry, raw)
}

#[tokio::test]
async fn hosts_toml_leads_to_a_mirror() {
    let (mirror, raw) = with_image("library/busybox").await;
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("docker.io")).unwrap();
    let hosts = format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"http://{}\".header]\nx-test = \"yes\"\n",
        mirror.authority
    );
    std::fs::write(root.path().join("docker.io/hosts.toml"), hosts).unwrap();
    let configuration = ConfigurationSources {
        host_directories: vec![root.path().to_owned()],
        ..ConfigurationSources::default()
    };
    let client = Client::new(Settings {
        configuration,
        ..settings()
    });
    assert_eq!(
        &client.resolve(&reference("busybox:1")).await.unwrap().raw[..],
        &raw[..]
    );
    assert_eq!(mirror.state().seen[0].header("x-test"), Some("yes"));
}

#[tokio::test]
async fn registries_conf_leads_to_a_mirror_under_another_name() {
    let (mirror, raw) = with_image("copies/busybox").await;
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("registries.conf");
    let conf = format!(
        "[[registry]]\nprefix = \"docker.io/library\"\nlocation = \"127.0.0.1:1/x\"\n\
         [[registry.mirror]]\nlocation = \"{}/copies\"\ninsecure = true\n",
        mirror.authority
    );
    std::fs::write(&file, conf).unwrap();
    let configuration = ConfigurationSources {
        registries_conf: vec![file],
        ..ConfigurationSources::default()
    };
    let client = Client::new(Settings {
        configuration,
        ..settings()
    });
    assert_eq!(
        &client.resolve(&reference("busybox:1")).await.unwrap().raw[..],
        &raw[..]
    );
    // What no source has: each is named with its reason.
    let error = client
        .resolve(&reference("busybox:2"))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&format!("not found at {}", mirror.authority)),
        "{error}"
    );
    assert!(
        error.contains("failed to connect to 127.0.0.1:1: "),
        "{error}"
    );
}

#[tokio::test]
async fn a_client_reads_and_connects_only_when_it_is_used() {
    let broken = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(broken.path(), "not toml").unwrap();
    let configuration = ConfigurationSources {
        registries_conf: vec![broken.path().to_owned()],
        ..ConfigurationSources::default()
    };
    let settings = Settings {
        configuration,
        ..settings()
    };
    let client = Client::new(settings);
    let error = client
        .resolve(&reference("a.example/b"))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&broken.path().display().to_string()),
        "{error}"
    );
}
