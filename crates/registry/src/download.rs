//! Downloads that have nothing to do with a registry, with the same TLS, proxies and time limits.

use reqwest::redirect::Attempt;

use crate::http::{MOST_REDIRECTS, is_downgrade};
use crate::settings::{ProxyUse, TlsSettings, is_loopback};
use crate::{RegistryError, Settings, tls};

/// What servers that treat image builders in some way of their own look for in the name of a client.
const LIKE: &str = "(like buildkit/v0.29)";

impl Settings {
    /// Returns a client for plain downloads from the server of `url`; it follows redirects, away from TLS only where
    /// what comes `is_checked` by a digest that is known.
    pub fn download_client(
        &self,
        url: &str,
        is_checked: bool,
    ) -> Result<reqwest::Client, RegistryError> {
        let follow = move |attempt: Attempt| match attempt.previous() {
            past if past.len() > MOST_REDIRECTS => attempt.error("too many redirects"),
            [.., last] if !is_checked && is_downgrade(last, attempt.url()) => {
                attempt.error("redirected to a connection without TLS, and no checksum is given")
            }
            _ => attempt.follow(),
        };
        self.client(url, reqwest::redirect::Policy::custom(follow))
    }

    /// Returns a client that sends to the server of `url`, and nowhere else.
    pub fn upload_client(&self, url: &str) -> Result<reqwest::Client, RegistryError> {
        self.client(url, reqwest::redirect::Policy::none())
    }

    fn client(
        &self,
        url: &str,
        redirects: reqwest::redirect::Policy,
    ) -> Result<reqwest::Client, RegistryError> {
        let invalid = |message: String| RegistryError::Settings {
            origin: "the HTTP client".to_owned(),
            message,
        };
        let url: reqwest::Url = url
            .parse()
            .map_err(|error| invalid(format!("{url}: {error}")))?;
        let config = tls::client_config(&TlsSettings::default())?;
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .user_agent(format!("{} {LIKE}", self.user_agent))
            .redirect(redirects)
            .connect_timeout(self.timeouts.connect)
            .read_timeout(self.timeouts.silence);
        let local = url.host_str().is_some_and(is_loopback);
        if local || self.proxy == ProxyUse::None {
            builder = builder.no_proxy();
        }
        builder.build().map_err(|error| invalid(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_server_that_says_nothing_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/x", listener.local_addr().expect("an address"));
        let mut settings = Settings::default();
        settings.timeouts.silence = Duration::from_millis(20);
        let client = settings.download_client(&url, false).expect("a client");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let told = runtime.block_on(async { client.get(&url).send().await });
        assert!(told.expect_err("no answer").is_timeout());
        drop(listener);
    }
}
