//! Proxies named by the environment. A test cannot set variables of its own process, so it runs itself again.

use oci::media_type;
use registry::{Client, ProxyUse, Settings};

use crate::server::Registry;
use crate::{reference, settings_with};

const NAME: &str = "LAPSTRAKE_TEST_NAME";

/// Resolves the image that the test below names, in the environment it makes.
#[tokio::test]
#[ignore = "run by another test in an environment of its own"]
async fn resolve_in_this_environment() {
    let name = std::env::var(NAME).unwrap();
    let mut settings = settings_with("registry.test", "[registry.\"HERE\"]\nhttp = true\n");
    settings.retry.attempts = 1;
    let client = Client::new(Settings {
        proxy: ProxyUse::Environment,
        ..settings
    });
    client.resolve(&reference(&name)).await.unwrap();
}

async fn resolves(name: &str, variables: &[(&str, &str)]) -> bool {
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "proxy::resolve_in_this_environment", "--ignored"]);
    for variable in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
        command
            .env_remove(variable)
            .env_remove(variable.to_lowercase());
    }
    command.env(NAME, name).envs(variables.iter().copied());
    command.output().await.unwrap().status.success()
}

#[tokio::test]
async fn proxies_of_the_environment_are_used_but_for_this_machine() {
    // A registry that is asked for its content under another name is all that a plain proxy is.
    let proxy = Registry::start().await;
    let manifest = br#"{"schemaVersion":2,"manifests":[]}"#;
    proxy
        .state()
        .add_manifest("a", "1", media_type::OCI_INDEX, manifest);
    let url = format!("http://{}", proxy.authority);
    assert!(resolves("registry.test/a:1", &[("HTTP_PROXY", &url)]).await);
    assert!(resolves("registry.test/a:1", &[("http_proxy", &url)]).await);
    let excluded = [("HTTP_PROXY", url.as_str()), ("NO_PROXY", ".test")];
    assert!(!resolves("registry.test/a:1", &excluded).await);
    let here = format!("{}/a:1", proxy.authority);
    assert!(resolves(&here, &[("HTTP_PROXY", "http://127.0.0.1:1")]).await);
}
