//! Single HTTP exchanges: clients by their TLS settings, redirects, time limits. No retries, no logins.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Method, Response, StatusCode, Url};

use crate::content::Upload;
use crate::retry::{Failure, Retry};
use crate::settings::{Endpoint, ProxyUse, Scheme, Settings, TlsSettings, is_loopback};
use crate::tls::{self, Trouble};
use crate::{Cause, RegistryError};

pub(crate) const MOST_REDIRECTS: usize = 10;

/// The connections of a client, opened when they are needed and used again.
#[derive(Debug)]
pub(crate) struct Connections {
    settings: Arc<Settings>,
    clients: Mutex<BTreeMap<(TlsSettings, Route), reqwest::Client>>,
    /// For servers that may or may not speak TLS: whether they do.
    speaks_tls: Mutex<BTreeMap<String, bool>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Route {
    Direct,
    /// By a proxy where the environment names one.
    Proxied,
}

/// What goes with a request.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    Empty,
    Bytes(Bytes),
    Upload(Upload),
}

/// One request.
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) method: Method,
    pub(crate) url: Url,
    /// The origin that may know what belongs to the endpoint alone: authorization, configured headers, client
    /// certificates.
    pub(crate) home: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) authorization: Option<HeaderValue>,
    pub(crate) body: Body,
    /// Whether an answer may lead elsewhere; a secret in the body would go along.
    pub(crate) follows: bool,
    /// What the request is about, for errors.
    pub(crate) subject: &'a str,
    pub(crate) action: &'static str,
}

impl Connections {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        Self {
            settings,
            clients: Mutex::default(),
            speaks_tls: Mutex::default(),
        }
    }

    /// Returns where the API of an endpoint begins, finding out first whether the server speaks TLS if nobody said.
    pub(crate) async fn base(&self, endpoint: &Endpoint) -> Result<Url, Failure> {
        let secure = match endpoint.scheme {
            Scheme::Https => true,
            Scheme::Http => false,
            Scheme::HttpOrHttps | Scheme::HttpsOrHttp => self.find_out(endpoint).await?,
        };
        base_url(endpoint, secure)
    }

    async fn find_out(&self, endpoint: &Endpoint) -> Result<bool, Failure> {
        if let Some(secure) = self
            .speaks_tls
            .lock()
            .expect("no panic while held")
            .get(&endpoint.authority)
        {
            return Ok(*secure);
        }
        let first = endpoint.scheme == Scheme::HttpsOrHttp;
        let secure = match self.greet(endpoint, first).await {
            // The usual answer of a server that wants TLS; a proxy or a plain server may say so too.
            Ok(StatusCode::BAD_REQUEST) if !first => self.greet(endpoint, true).await.is_ok(),
            Ok(_) => first,
            Err(failure) if matches!(failure.error, RegistryError::Tls { .. }) => {
                return Err(failure);
            }
            Err(failure) => match self.greet(endpoint, !first).await {
                Ok(_) => !first,
                Err(_) => return Err(failure),
            },
        };
        self.speaks_tls
            .lock()
            .expect("no panic while held")
            .insert(endpoint.authority.clone(), secure);
        Ok(secure)
    }

    async fn greet(&self, endpoint: &Endpoint, secure: bool) -> Result<StatusCode, Failure> {
        let url = base_url(
            &Endpoint {
                path: "/v2/".to_owned(),
                ..endpoint.clone()
            },
            secure,
        )?;
        let outgoing = Outgoing {
            endpoint,
            method: Method::GET,
            home: url.clone(),
            url,
            headers: HeaderMap::new(),
            authorization: None,
            body: Body::Empty,
            follows: true,
            subject: "the API",
            action: "asking for",
        };
        let client = self.client(&endpoint.tls, &outgoing.url)?;
        Ok(self
            .exchange(
                &client,
                &outgoing,
                &outgoing.url,
                outgoing.method.clone(),
                true,
            )
            .await?
            .status())
    }

    /// Sends a request and returns the head of the answer, following redirects.
    ///
    /// What belongs to the endpoint alone goes to no other origin.
    pub(crate) async fn send(&self, outgoing: &Outgoing<'_>) -> Result<Response, Failure> {
        let mut url = outgoing.url.clone();
        let method = outgoing.method.clone();
        for _ in 0..=MOST_REDIRECTS {
            let own = is_same_origin(&url, &outgoing.home);
            let response = if own {
                let client = self.client(&outgoing.endpoint.tls, &url)?;
                self.exchange(&client, outgoing, &url, method.clone(), true)
                    .await?
            } else {
                let tls = TlsSettings {
                    key_pairs: Vec::new(),
                    ..TlsSettings::clone(&outgoing.endpoint.tls)
                };
                let client = self.client(&tls, &url)?;
                self.exchange(&client, outgoing, &url, method.clone(), false)
                    .await?
            };
            let Some(next) = redirect_target(&response, &method) else {
                return Ok(response);
            };
            if !outgoing.follows {
                return Err(Failure::never(malformed(
                    outgoing,
                    "it redirects a request that holds a secret",
                )));
            }
            url = self.follow(outgoing, &url, next)?;
        }
        Err(Failure::never(malformed(
            outgoing,
            "it redirects without end",
        )))
    }

    fn follow(
        &self,
        outgoing: &Outgoing<'_>,
        from: &Url,
        target: &HeaderValue,
    ) -> Result<Url, Failure> {
        let next = target
            .to_str()
            .ok()
            .and_then(|target| from.join(target).ok());
        let next = next.filter(|next| matches!(next.scheme(), "http" | "https") && next.has_host());
        let Some(next) = next else {
            return Err(Failure::soon(malformed(
                outgoing,
                "it redirects to what is no URL",
            )));
        };
        let reads = matches!(outgoing.method, Method::GET | Method::HEAD);
        let is_checked = reads && is_by_digest(&outgoing.url);
        if is_downgrade(from, &next) && !is_checked && !outgoing.endpoint.tls.skip_verify {
            let what = match reads {
                true => "it redirects what no digest is known of to a connection without TLS",
                false => "it redirects an upload to a connection without TLS",
            };
            return Err(Failure::never(malformed(outgoing, what)));
        }
        Ok(next)
    }

    async fn exchange(
        &self,
        client: &reqwest::Client,
        outgoing: &Outgoing<'_>,
        url: &Url,
        method: Method,
        own: bool,
    ) -> Result<Response, Failure> {
        let timeouts = &self.settings.timeouts;
        let mut request = client
            .request(method, url.clone())
            .headers(outgoing.headers.clone());
        if own {
            for (name, value) in &outgoing.endpoint.headers {
                request = request.header(name, value);
            }
            if let Some(authorization) = &outgoing.authorization {
                request = request.header(AUTHORIZATION, authorization);
            }
        }
        let sent = Arc::new(AtomicU64::new(0));
        let mut length = 0;
        request = match &outgoing.body {
            Body::Empty
                if matches!(outgoing.method, Method::GET | Method::HEAD | Method::DELETE) =>
            {
                request
            }
            Body::Empty => request.header(CONTENT_LENGTH, 0),
            Body::Bytes(bytes) => request.body(bytes.clone()),
            Body::Upload(upload) => {
                length = upload.length();
                request
                    .header(CONTENT_LENGTH, length)
                    .body(upload.body(Arc::clone(&sent)))
            }
        };
        let answer = std::pin::pin!(request.send());
        let mut answer = answer;
        let mut before = 0;
        loop {
            let patience = match sent.load(Ordering::Relaxed) {
                sent if length > 0 && sent >= length => timeouts.commit,
                _ => timeouts.silence,
            };
            match tokio::time::timeout(patience, &mut answer).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => return Err(failure(outgoing, url, error, 0)),
                Err(_) => {
                    let now = sent.load(Ordering::Relaxed);
                    if now == before {
                        self.give_up(&outgoing.endpoint.tls);
                        return Err(silent(outgoing, patience));
                    }
                    before = now;
                }
            }
        }
    }

    /// Reads the whole body of an answer.
    pub(crate) async fn collect(
        &self,
        outgoing: &Outgoing<'_>,
        mut response: Response,
        limit: u64,
    ) -> Result<Bytes, Failure> {
        let too_large = || {
            Failure::never(RegistryError::TooLarge {
                subject: outgoing.subject.to_owned(),
                endpoint: outgoing.endpoint.authority.clone(),
                limit,
            })
        };
        let announced = response.content_length();
        if announced.is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut body = BytesMut::new();
        loop {
            match tokio::time::timeout(self.settings.timeouts.silence, response.chunk()).await {
                Ok(Ok(Some(chunk))) => {
                    if body.len() as u64 + chunk.len() as u64 > limit {
                        return Err(too_large());
                    }
                    body.extend_from_slice(&chunk);
                }
                Ok(Ok(None)) => return Ok(body.freeze()),
                Ok(Err(error)) => {
                    let url = response.url().clone();
                    return Err(failure(outgoing, &url, error, body.len() as u64));
                }
                Err(_) => {
                    self.give_up(&outgoing.endpoint.tls);
                    return Err(silent(outgoing, self.settings.timeouts.silence));
                }
            }
        }
    }

    /// Uses the connections made so far no more, those in use excepted: one with HTTP/2 that fell silent would else
    /// take each further request to the same server.
    pub(crate) fn give_up(&self, tls: &TlsSettings) {
        let mut clients = self.clients.lock().expect("no panic while held");
        clients.retain(|(known, _), _| {
            (known.skip_verify, &known.authorities) != (tls.skip_verify, &tls.authorities)
        });
    }

    fn client(&self, tls: &TlsSettings, url: &Url) -> Result<reqwest::Client, Failure> {
        let local = url.host_str().is_some_and(is_loopback);
        let route = match self.settings.proxy {
            ProxyUse::Environment if !local => Route::Proxied,
            _ => Route::Direct,
        };
        let mut clients = self.clients.lock().expect("no panic while held");
        if let Some(client) = clients.get(&(tls.clone(), route)) {
            return Ok(client.clone());
        }
        let config = tls::client_config(tls).map_err(Failure::never)?;
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .user_agent(&self.settings.user_agent)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(self.settings.timeouts.connect)
            .pool_idle_timeout(Duration::from_secs(60))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(20))
            .http2_keep_alive_timeout(Duration::from_secs(20))
            // The windows of HTTP/2 would else bound a download to 64 KiB a round trip.
            .http2_initial_stream_window_size(4 << 20)
            .http2_initial_connection_window_size(16 << 20);
        if route == Route::Direct {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| {
            Failure::never(RegistryError::Settings {
                origin: "the HTTP client".to_owned(),
                message: error.without_url().to_string(),
            })
        })?;
        clients.insert((tls.clone(), route), client.clone());
        Ok(client)
    }
}

fn base_url(endpoint: &Endpoint, secure: bool) -> Result<Url, Failure> {
    let scheme = if secure { "https" } else { "http" };
    Url::parse(&format!(
        "{scheme}://{}{}",
        endpoint.authority, endpoint.path
    ))
    .map_err(|error| {
        Failure::never(RegistryError::Settings {
            origin: format!("the registry {}", endpoint.authority),
            message: error.to_string(),
        })
    })
}

/// Whether a redirect leaves TLS: whoever is on the way could answer.
pub(crate) fn is_downgrade(from: &Url, to: &Url) -> bool {
    from.scheme() == "https" && to.scheme() == "http"
}

/// Whether what is asked for is named by its digest, and so checked whoever answers.
fn is_by_digest(url: &Url) -> bool {
    let mut parts = url.path().rsplit('/');
    let digest = parts
        .next()
        .and_then(|last| last.parse::<oci::Digest>().ok());
    digest.is_some() && matches!(parts.next(), Some("blobs" | "manifests"))
}

/// Whether scheme, host and port are the same.
pub(crate) fn is_same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && a.host_str() == b.host_str()
        && a.port_or_known_default() == b.port_or_known_default()
}

fn redirect_target<'a>(response: &'a Response, method: &Method) -> Option<&'a HeaderValue> {
    let follows = match response.status().as_u16() {
        301..=303 => matches!(*method, Method::GET | Method::HEAD),
        307 | 308 => true,
        _ => false,
    };
    response.headers().get(LOCATION).filter(|_| follows)
}

pub(crate) fn malformed(outgoing: &Outgoing<'_>, message: &str) -> RegistryError {
    RegistryError::Malformed {
        subject: outgoing.subject.to_owned(),
        endpoint: outgoing.endpoint.authority.clone(),
        message: message.to_owned(),
    }
}

fn silent(outgoing: &Outgoing<'_>, after: Duration) -> Failure {
    Failure::soon(RegistryError::Timeout {
        subject: outgoing.subject.to_owned(),
        endpoint: outgoing.endpoint.authority.clone(),
        action: outgoing.action,
        after,
    })
}

/// Says what an error of the HTTP library means for the exchange. `url` may be one that was redirected to.
pub(crate) fn failure(
    outgoing: &Outgoing<'_>,
    url: &Url,
    error: reqwest::Error,
    offset: u64,
) -> Failure {
    // The URL of a redirect holds a signature that gives access.
    let error = error.without_url();
    if let Some(content) = crate::content::local_error(&error) {
        return Failure::never(RegistryError::Content {
            subject: outgoing.subject.to_owned(),
            source: content,
        });
    }
    let endpoint = match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => outgoing.endpoint.authority.clone(),
    };
    let (connecting, timed_out) = (error.is_connect(), error.is_timeout());
    let trouble = tls::trouble(&error);
    let refused = connecting && is_refused(&error);
    let source = innermost(error);
    match trouble {
        Some(Trouble::Trust) => {
            return Failure::never(RegistryError::Tls { endpoint, source });
        }
        Some(Trouble::PerhapsTrust) => {
            return Failure {
                error: RegistryError::Tls { endpoint, source },
                retry: Retry::Few(3),
            };
        }
        Some(Trouble::NotTls) => {
            let source =
                "the server does not speak TLS; is it to be reached with plain HTTP?".into();
            return Failure {
                error: RegistryError::Connect { endpoint, source },
                retry: Retry::Few(2),
            };
        }
        Some(Trouble::Passing) | None => {}
    }
    match connecting {
        true => {
            let source = if timed_out {
                "the connection timed out".into()
            } else {
                source
            };
            let retry = if refused { Retry::Few(3) } else { Retry::Soon };
            Failure {
                error: RegistryError::Connect { endpoint, source },
                retry,
            }
        }
        false => Failure::soon(RegistryError::Interrupted {
            subject: outgoing.subject.to_owned(),
            endpoint,
            offset,
            source,
        }),
    }
}

/// Whether nobody listens there, or there is no such name: waiting will hardly help.
fn is_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return error.kind() == std::io::ErrorKind::ConnectionRefused
                || error.raw_os_error().is_none();
        }
        next = error.source();
    }
    false
}

/// Returns the cause that says most: the outer ones of the HTTP library only say that a request failed.
fn innermost(error: reqwest::Error) -> Cause {
    let mut cause: &dyn std::error::Error = &error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    in_words(cause.to_string()).into()
}

/// Says as the C library does that a name is not known; the library that looks it up shows its query instead.
fn in_words(text: String) -> String {
    match text.starts_with("no records found for Query") {
        true => "the name is not known".to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::default_endpoint;

    #[test]
    fn only_what_is_named_by_digest_may_leave_tls() {
        let connections = Connections::new(Arc::new(Settings::default()));
        let endpoint = default_endpoint("h.example");
        let digest = oci::Digest::sha256_of(b"x");
        let follow = |method: &Method, path: &str, to: &'static str| {
            let url = Url::parse(&format!("https://h.example/v2/a/{path}")).expect("a URL");
            let outgoing = Outgoing {
                endpoint: &endpoint,
                method: method.clone(),
                home: url.clone(),
                url: url.clone(),
                headers: HeaderMap::new(),
                authorization: None,
                body: Body::Empty,
                follows: true,
                subject: "it",
                action: "asking for",
            };
            let followed = connections.follow(&outgoing, &url, &HeaderValue::from_static(to));
            followed.is_ok()
        };
        let (get, post) = (Method::GET, Method::POST);
        let (blob, manifest) = (format!("blobs/{digest}"), format!("manifests/{digest}"));
        let referrers = format!("referrers/{digest}");
        for path in [blob.as_str(), &manifest] {
            assert!(follow(&get, path, "http://s.example/x"), "{path}");
            assert!(!follow(&post, path, "http://s.example/x"), "{path}");
        }
        for path in ["manifests/latest", "tags/list", "token", &referrers] {
            assert!(!follow(&get, path, "http://s.example/x"), "{path}");
            assert!(follow(&get, path, "https://s.example/x"), "{path}");
        }
    }
}
