//! A registry in memory that does as the distribution specification says, unless it is told otherwise.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
    LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use oci::Digest;
use tokio::net::TcpListener;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// One request as the server saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: usize,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// What is done instead of the right thing.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    Status(u16),
    /// 429 with `Retry-After`.
    Later(u16, &'static str),
    /// The connection ends after this much of the body.
    CutAt(usize),
    /// One bit of the body is changed.
    Flip,
    /// There never is an answer.
    Silence,
    /// The answer is another one.
    Answer(u16, Vec<(HeaderName, String)>, Vec<u8>),
    /// The whole is sent where a range was asked for.
    NoRange,
    Header(HeaderName, String),
    WithoutHeader(HeaderName),
    Redirect(u16, String),
}

/// Chooses faults, by the request and how many came before it.
pub(crate) type Faults = Box<dyn FnMut(&Seen) -> Option<Fault> + Send>;

/// Who may come in.
#[derive(Debug, Clone, Default)]
pub(crate) enum Login {
    #[default]
    Nobody,
    Basic(&'static str, &'static str),
    /// Tokens from `/token`, to be had with a password or identity token, or by anyone for pulls.
    Bearer {
        user: &'static str,
        password: &'static str,
        identity: &'static str,
        life: u64,
        anonymous_pull: bool,
    },
}

#[derive(Default)]
pub(crate) struct State {
    pub login: Login,
    pub seen: Vec<Seen>,
    pub faults: Option<Faults>,
    /// By repository and digest.
    pub blobs: BTreeMap<(String, Digest), Bytes>,
    pub manifests: BTreeMap<(String, Digest), (String, Bytes)>,
    pub tags: BTreeMap<(String, String), Digest>,
    pub sessions: BTreeMap<String, (String, Vec<u8>)>,
    /// Access tokens given out, and what for.
    pub tokens: BTreeMap<String, Vec<String>>,
    pub referrers_api: bool,
    pub no_mount: bool,
    pub no_digest_header: bool,
    counter: u64,
}

impl State {
    pub(crate) fn add_blob(&mut self, repository: &str, content: &[u8]) -> Digest {
        let digest = Digest::sha256_of(content);
        self.blobs.insert(
            (repository.into(), digest.clone()),
            Bytes::copy_from_slice(content),
        );
        digest
    }

    pub(crate) fn add_manifest(
        &mut self,
        repository: &str,
        tag: &str,
        media_type: &str,
        raw: &[u8],
    ) -> Digest {
        let digest = Digest::sha256_of(raw);
        let content = (media_type.to_owned(), Bytes::copy_from_slice(raw));
        self.manifests
            .insert((repository.into(), digest.clone()), content);
        self.tags
            .insert((repository.into(), tag.into()), digest.clone());
        digest
    }
}

#[derive(Clone)]
pub(crate) struct Registry {
    pub authority: String,
    pub state: Arc<Mutex<State>>,
}

impl Registry {
    /// Begins to serve on a free port; ends with the runtime.
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    pub(crate) async fn start_with(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
        let scheme = if tls.is_some() { "https" } else { "http" };
        let registry = Self {
            authority,
            state: Arc::default(),
        };
        let served = registry.clone();
        let base = format!("{scheme}://{}", registry.authority);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (registry, tls, base) = (served.clone(), tls.clone(), base.clone());
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let (registry, base) = (registry.clone(), base.clone());
                        async move { registry.serve(&base, request).await }
                    });
                    match tls {
                        None => {
                            let connection = hyper::server::conn::http1::Builder::new()
                                .serve_connection(TokioIo::new(socket), service);
                            let _ = connection.await;
                        }
                        Some(tls) => {
                            let Ok(socket) =
                                tokio_rustls::TlsAcceptor::from(tls).accept(socket).await
                            else {
                                return;
                            };
                            let http2 = socket.get_ref().1.alpn_protocol() == Some(b"h2");
                            let socket = TokioIo::new(socket);
                            if http2 {
                                let builder =
                                    hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                                let _ = builder.serve_connection(socket, service).await;
                            } else {
                                let builder = hyper::server::conn::http1::Builder::new();
                                let _ = builder.serve_connection(socket, service).await;
                            }
                        }
                    }
                });
            }
        });
        registry
    }

    pub(crate) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn faults(&self, faults: impl FnMut(&Seen) -> Option<Fault> + Send + 'static) {
        self.state().faults = Some(Box::new(faults));
    }

    /// Returns `METHOD path?query` of each request so far.
    pub(crate) fn log(&self) -> Vec<String> {
        let line = |seen: &Seen| match seen.query.as_str() {
            "" => format!("{} {}", seen.method, seen.path),
            query => format!("{} {}?{query}", seen.method, seen.path),
        };
        self.state().seen.iter().map(line).collect()
    }

    async fn serve(
        &self,
        base: &str,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, std::io::Error> {
        let (head, body) = request.into_parts();
        let mut seen = Seen {
            method: head.method.to_string(),
            path: head.uri.path().to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
            headers: head.headers.clone(),
            body: 0,
        };
        let (content, complete) = collect(body).await;
        seen.body = content.len();
        let fault = {
            let mut state = self.state();
            state.seen.push(seen.clone());
            let mut faults = state.faults.take();
            let fault = faults.as_mut().and_then(|faults| faults(&seen));
            state.faults = faults;
            fault
        };
        let range = !matches!(fault, Some(Fault::NoRange));
        match fault {
            Some(Fault::Status(status)) => return Ok(error(status, "FAULT")),
            Some(Fault::Later(status, wait)) => {
                let mut response = error(status, "TOOMANYREQUESTS");
                response
                    .headers_mut()
                    .insert(RETRY_AFTER, HeaderValue::from_static(wait));
                return Ok(response);
            }
            Some(Fault::Silence) => {
                tokio::time::sleep(Duration::from_secs(3600)).await;
            }
            Some(Fault::Answer(status, headers, body)) => {
                let mut response = plain(status, body);
                for (name, value) in headers {
                    response.headers_mut().insert(name, value.parse().unwrap());
                }
                return Ok(response);
            }
            Some(Fault::Redirect(status, target)) => {
                let mut response = plain(status, Vec::new());
                response
                    .headers_mut()
                    .insert(LOCATION, target.parse().unwrap());
                return Ok(response);
            }
            _ => {}
        }
        let mut response = self.state().answer(base, &seen, &content, complete, range);
        match fault {
            Some(Fault::CutAt(length)) => cut(&mut response, length).await,
            Some(Fault::Flip) => flip(&mut response).await,
            Some(Fault::Header(name, value)) => {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            Some(Fault::WithoutHeader(name)) => {
                response.headers_mut().remove(name);
            }
            _ => {}
        }
        Ok(response)
    }
}

/// Takes in a body; what was cut is kept too, as a registry does in an upload session.
async fn collect(mut body: Incoming) -> (Vec<u8>, bool) {
    let mut content = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => content.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
            Err(_) => return (content, false),
        }
    }
    (content, true)
}

async fn cut(response: &mut Response<Body>, length: usize) {
    let (head, body) = std::mem::take(response).into_parts();
    let content = body.collect().await.unwrap().to_bytes();
    let kept = content.slice(..length.min(content.len()));
    let failure = Err(std::io::Error::other("cut"));
    let pieces = stream::iter(vec![Ok(Frame::data(kept))]).chain(stream::once(async {
        // Lets the piece before it out.
        tokio::task::yield_now().await;
        failure
    }));
    *response = Response::from_parts(head, StreamBody::new(pieces).boxed_unsync());
    response
        .headers_mut()
        .insert(CONTENT_LENGTH, content.len().into());
}

async fn flip(response: &mut Response<Body>) {
    let (head, body) = std::mem::take(response).into_parts();
    let mut content = body.collect().await.unwrap().to_bytes().to_vec();
    if !content.is_empty() {
        let middle = content.len() / 2;
        content[middle] ^= 1;
    }
    *response = Response::from_parts(head, full(content));
}

fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into())
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

fn plain(status: u16, content: Vec<u8>) -> Response<Body> {
    Response::builder()
        .status(status)
        .body(full(content))
        .unwrap()
}

fn error(status: u16, code: &str) -> Response<Body> {
    let body = serde_json::json!({"errors": [{"code": code, "message": format!("it is {code}")}]});
    plain(status, body.to_string().into_bytes())
}

impl State {
    fn answer(
        &mut self,
        base: &str,
        seen: &Seen,
        content: &[u8],
        complete: bool,
        range: bool,
    ) -> Response<Body> {
        if seen.path == "/token" {
            return self.token(seen, content);
        }
        if let Some(challenge) = self.challenge(base, seen) {
            let mut response = error(401, "UNAUTHORIZED");
            response
                .headers_mut()
                .insert(WWW_AUTHENTICATE, challenge.parse().unwrap());
            return response;
        }
        let Some(path) = seen.path.strip_prefix("/v2/") else {
            return plain(404, b"404 page not found".to_vec());
        };
        if path.is_empty() {
            return plain(200, b"{}".to_vec());
        }
        for kind in [
            "/manifests/",
            "/blobs/uploads/",
            "/blobs/",
            "/tags/",
            "/referrers/",
        ] {
            if let Some((repository, name)) = path.split_once(kind) {
                let method = Method::from_bytes(seen.method.as_bytes()).unwrap();
                return match kind {
                    "/manifests/" => self.manifest(&method, repository, name, seen, content),
                    "/blobs/uploads/" => {
                        self.upload(&method, repository, name, seen, content, complete)
                    }
                    "/blobs/" => self.blob(&method, repository, name, seen, range),
                    "/tags/" => self.tag_list(base, repository, seen),
                    _ => self.referrers(repository, name),
                };
            }
        }
        error(404, "NAME_UNKNOWN")
    }

    fn manifest(
        &mut self,
        method: &Method,
        repository: &str,
        name: &str,
        seen: &Seen,
        content: &[u8],
    ) -> Response<Body> {
        if *method == Method::PUT {
            let digest = Digest::sha256_of(content);
            if name.contains(':') && name != digest.to_string() {
                return error(400, "DIGEST_INVALID");
            }
            let Ok(value) = serde_json::from_slice::<serde_json::Value>(content) else {
                return error(400, "MANIFEST_INVALID");
            };
            let layers = value["layers"].as_array().into_iter().flatten();
            for blob in layers.chain(value.get("config")) {
                let Ok(blob) = blob["digest"].as_str().unwrap_or_default().parse() else {
                    return error(400, "MANIFEST_INVALID");
                };
                if !self.blobs.contains_key(&(repository.into(), blob)) {
                    return error(404, "MANIFEST_BLOB_UNKNOWN");
                }
            }
            let media_type = seen.header("content-type").unwrap_or_default().to_owned();
            self.manifests.insert(
                (repository.into(), digest.clone()),
                (media_type, content.to_vec().into()),
            );
            if !name.contains(':') {
                self.tags
                    .insert((repository.into(), name.into()), digest.clone());
            }
            let mut response = plain(201, Vec::new());
            response
                .headers_mut()
                .insert("docker-content-digest", digest.to_string().parse().unwrap());
            if self.referrers_api && value.get("subject").is_some() {
                let subject = value["subject"]["digest"].as_str().unwrap();
                response
                    .headers_mut()
                    .insert("oci-subject", subject.parse().unwrap());
            }
            return response;
        }
        let digest = match name.parse::<Digest>() {
            Ok(digest) => digest,
            Err(_) => match self.tags.get(&(repository.into(), name.into())) {
                Some(digest) => digest.clone(),
                None => return error(404, "MANIFEST_UNKNOWN"),
            },
        };
        if *method == Method::DELETE {
            return match self.manifests.remove(&(repository.into(), digest)) {
                Some(_) => plain(202, Vec::new()),
                None => error(404, "MANIFEST_UNKNOWN"),
            };
        }
        let Some((media_type, raw)) = self.manifests.get(&(repository.into(), digest.clone()))
        else {
            return error(404, "MANIFEST_UNKNOWN");
        };
        let mut response = plain(200, raw.to_vec());
        response
            .headers_mut()
            .insert(CONTENT_TYPE, media_type.parse().unwrap());
        response
            .headers_mut()
            .insert(CONTENT_LENGTH, raw.len().into());
        if !self.no_digest_header {
            response
                .headers_mut()
                .insert("docker-content-digest", digest.to_string().parse().unwrap());
        }
        response
    }

    fn blob(
        &mut self,
        method: &Method,
        repository: &str,
        name: &str,
        seen: &Seen,
        range: bool,
    ) -> Response<Body> {
        let key = (repository.to_owned(), name.parse().unwrap());
        if *method == Method::DELETE {
            return match self.blobs.remove(&key) {
                Some(_) => plain(202, Vec::new()),
                None => error(404, "BLOB_UNKNOWN"),
            };
        }
        let Some(content) = self.blobs.get(&key).cloned() else {
            return error(404, "BLOB_UNKNOWN");
        };
        let start: Option<usize> = seen.header(RANGE.as_str()).and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .strip_suffix('-')?
                .parse()
                .ok()
        });
        match start {
            Some(start) if range => {
                if start >= content.len() {
                    return error(416, "RANGE_INVALID");
                }
                let mut response = Response::builder()
                    .status(206)
                    .body(full(content.slice(start..)))
                    .unwrap();
                let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
                response
                    .headers_mut()
                    .insert(CONTENT_RANGE, range.parse().unwrap());
                response
            }
            _ => {
                let mut response = Response::builder()
                    .status(200)
                    .body(full(content.clone()))
                    .unwrap();
                response
                    .headers_mut()
                    .insert(CONTENT_LENGTH, content.len().into());
                response
            }
        }
    }

    fn upload(
        &mut self,
        method: &Method,
        repository: &str,
        id: &str,
        seen: &Seen,
        content: &[u8],
        complete: bool,
    ) -> Response<Body> {
        let query = |name: &str| {
            let pairs = seen
                .query
                .split('&')
                .filter_map(|pair| pair.split_once('='));
            pairs
                .clone()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.replace("%3A", ":"))
        };
        let accepted = |status: u16, id: &str, length: usize| {
            let mut response = plain(status, Vec::new());
            let location = format!("/v2/{repository}/blobs/uploads/{id}?state=x");
            response
                .headers_mut()
                .insert(LOCATION, location.parse().unwrap());
            let range = format!("0-{}", length.saturating_sub(1));
            response.headers_mut().insert(RANGE, range.parse().unwrap());
            response
        };
        if *method == Method::POST {
            if let (Some(mount), Some(from), false) = (query("mount"), query("from"), self.no_mount)
                && let Some(content) = self.blobs.get(&(from, mount.parse().unwrap())).cloned()
            {
                self.blobs
                    .insert((repository.into(), mount.parse().unwrap()), content);
                return plain(201, Vec::new());
            }
            self.counter += 1;
            let id = format!("session-{}", self.counter);
            self.sessions
                .insert(id.clone(), (repository.into(), Vec::new()));
            return accepted(202, &id, 0);
        }
        let Some((_, received)) = self.sessions.get_mut(id) else {
            return error(404, "BLOB_UPLOAD_UNKNOWN");
        };
        match *method {
            Method::GET => accepted(204, id, received.len()),
            Method::DELETE => {
                self.sessions.remove(id);
                plain(204, Vec::new())
            }
            Method::PATCH => {
                let start = seen
                    .header("content-range")
                    .and_then(|range| range.split_once('-')?.0.parse::<usize>().ok());
                if start.is_some_and(|start| start != received.len()) {
                    return error(416, "RANGE_INVALID");
                }
                received.extend_from_slice(content);
                let length = received.len();
                accepted(202, id, length)
            }
            Method::PUT if complete => {
                received.extend_from_slice(content);
                let digest: Digest = query("digest").unwrap().parse().unwrap();
                if !digest.is_of(received) {
                    self.sessions.remove(id);
                    return error(400, "DIGEST_INVALID");
                }
                let (_, received) = self.sessions.remove(id).unwrap();
                self.blobs
                    .insert((repository.into(), digest), received.into());
                plain(201, Vec::new())
            }
            Method::PUT => error(400, "SIZE_INVALID"),
            _ => error(405, "UNSUPPORTED"),
        }
    }

    /// Two tags a page.
    fn tag_list(&self, base: &str, repository: &str, seen: &Seen) -> Response<Body> {
        let last = seen
            .query
            .split('&')
            .find_map(|pair| pair.strip_prefix("last="))
            .unwrap_or_default();
        let all = self
            .tags
            .keys()
            .filter(|(name, tag)| name == repository && tag.as_str() > last);
        let mut tags: Vec<String> = all.map(|(_, tag)| tag.clone()).collect();
        let more = tags.len() > 2;
        tags.truncate(2);
        let body = serde_json::json!({"name": repository, "tags": tags}).to_string();
        let mut response = plain(200, body.into_bytes());
        if more {
            let link = format!(
                "<{base}/v2/{repository}/tags/list?n=2&last={}>; rel=\"next\"",
                tags[1]
            );
            response.headers_mut().insert("link", link.parse().unwrap());
        }
        response
    }

    fn referrers(&self, repository: &str, digest: &str) -> Response<Body> {
        if !self.referrers_api {
            return plain(404, b"404 page not found".to_vec());
        }
        let mut manifests = Vec::new();
        for ((name, own), (media_type, raw)) in &self.manifests {
            let value: serde_json::Value = serde_json::from_slice(raw).unwrap();
            if name == repository && value["subject"]["digest"] == digest {
                manifests.push(serde_json::json!({
                    "mediaType": media_type, "digest": own, "size": raw.len(), "artifactType": value["artifactType"],
                }));
            }
        }
        let index = serde_json::json!({"schemaVersion": 2, "manifests": manifests});
        plain(200, index.to_string().into_bytes())
    }

    /// Returns the challenge where a request may not go on.
    fn challenge(&self, base: &str, seen: &Seen) -> Option<String> {
        let given = seen.header(AUTHORIZATION.as_str()).unwrap_or_default();
        match &self.login {
            Login::Nobody => None,
            Login::Basic(user, password) => {
                (given != basic(user, password)).then(|| "Basic realm=\"test\"".to_owned())
            }
            Login::Bearer { .. } => {
                let scope = self.needed(seen);
                let token = given.strip_prefix("Bearer ").unwrap_or_default();
                let has = self.tokens.get(token).is_some_and(|scopes| match &scope {
                    None => true,
                    Some((repository, action)) => scopes.iter().any(|scope| {
                        let mut parts = scope.splitn(3, ':').skip(1);
                        parts.next() == Some(repository)
                            && parts
                                .next()
                                .unwrap_or_default()
                                .split(',')
                                .any(|given| given == *action)
                    }),
                });
                let scope = scope.map(|(repository, action)| {
                    let actions = if action == "push" {
                        "pull,push"
                    } else {
                        action
                    };
                    format!(",scope=\"repository:{repository}:{actions}\"")
                });
                (!has).then(|| {
                    format!(
                        "Bearer realm=\"{base}/token\",service=\"test\"{}",
                        scope.unwrap_or_default()
                    )
                })
            }
        }
    }

    fn needed(&self, seen: &Seen) -> Option<(String, &'static str)> {
        let path = seen.path.strip_prefix("/v2/")?;
        let kinds = ["/manifests/", "/blobs/", "/tags/", "/referrers/"];
        let repository = kinds.iter().find_map(|kind| path.split_once(kind))?.0;
        let action = match seen.method.as_str() {
            "GET" | "HEAD" if !path.contains("/uploads/") => "pull",
            "DELETE" if !path.contains("/uploads/") => "delete",
            _ => "push",
        };
        Some((repository.to_owned(), action))
    }

    fn token(&mut self, seen: &Seen, content: &[u8]) -> Response<Body> {
        let Login::Bearer {
            user,
            password,
            identity,
            life,
            anonymous_pull,
        } = self.login.clone()
        else {
            return plain(404, Vec::new());
        };
        let form = String::from_utf8(content.to_vec()).unwrap();
        let text = if seen.method == "POST" {
            &form
        } else {
            &seen.query
        };
        let pairs: Vec<(String, String)> = text
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| {
                (
                    name.to_owned(),
                    value
                        .replace("%3A", ":")
                        .replace("%2F", "/")
                        .replace("%2C", ",")
                        .replace('+', " "),
                )
            })
            .collect();
        let known = match seen.method.as_str() {
            "POST" => pairs
                .iter()
                .any(|(name, value)| name == "refresh_token" && value == identity),
            _ => seen.header(AUTHORIZATION.as_str()) == Some(&basic(user, password)),
        };
        let claims_to_be_known =
            seen.header(AUTHORIZATION.as_str()).is_some() || seen.method == "POST";
        if claims_to_be_known && !known {
            return plain(
                401,
                br#"{"details":"incorrect username or password"}"#.to_vec(),
            );
        }
        let mut scopes: Vec<String> = pairs
            .iter()
            .filter(|(name, _)| name == "scope")
            .flat_map(|(_, value)| value.split(' '))
            .map(str::to_owned)
            .collect();
        if !known {
            for scope in &mut scopes {
                let thing = scope.rsplit_once(':').unwrap().0.to_owned();
                *scope = if anonymous_pull {
                    format!("{thing}:pull")
                } else {
                    thing
                };
            }
        }
        self.counter += 1;
        let token = format!("token-{}", self.counter);
        self.tokens.insert(token.clone(), scopes);
        plain(
            200,
            serde_json::json!({"token": token, "expires_in": life})
                .to_string()
                .into_bytes(),
        )
    }
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine;
    format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
    )
}
