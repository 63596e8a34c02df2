//! The images of the store behind the distribution API, for reading (distribution-spec 1.1, the pull part).
//!
//! There is nothing to log in to and nothing to write: who may read the store may read this. So it listens on
//! loopback, and answers only requests that name this machine: a page in a browser must not read images through a
//! name that leads here.

mod content;
mod route;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Empty, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use self::content::{Blob, Content};
use self::route::{Odd, Page, Route};
use crate::request::{Compression, LayerOptions};
use crate::{Cancel, Engine, EngineError};

/// Connections that are served at once; further ones wait.
const MOST_CONNECTIONS: usize = 64;

/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(30);

/// A listener that serves a store.
#[derive(Debug)]
pub struct RegistryServer {
    engine: Engine,
    listener: std::net::TcpListener,
    address: SocketAddr,
}

impl Engine {
    /// Listens on an address of this machine's loopback; port 0 is a free one.
    pub fn listen_as_registry(&self, address: SocketAddr) -> Result<RegistryServer, EngineError> {
        if !address.ip().is_loopback() {
            return Err(EngineError::Request(format!(
                "{address} is no loopback address; the store is served to this machine alone"
            )));
        }
        let failed = |source| EngineError::Listen { address, source };
        let listener = std::net::TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(RegistryServer {
            engine: self.clone(),
            address: listener.local_addr().map_err(failed)?,
            listener,
        })
    }
}

impl RegistryServer {
    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until it is canceled. Layers are written in the given form when they are first asked for.
    pub fn run(self, compression: Compression, cancel: &Cancel) -> Result<(), EngineError> {
        let shared = Arc::clone(&self.engine.shared);
        let options = LayerOptions {
            compression,
            ..LayerOptions::default()
        };
        let content = Arc::new(Content::new(Arc::clone(&shared), options));
        let stopped = Arc::new(tokio::sync::Notify::new());
        let notify = Arc::clone(&stopped);
        let _on_cancel = cancel.on_request(move || notify.notify_one());
        let address = self.address;
        let failed = |source| EngineError::Listen { address, source };
        shared.images.runtime().block_on(async {
            let listener = TcpListener::from_std(self.listener).map_err(failed)?;
            tokio::select! {
                () = accept(listener, content) => Ok(()),
                () = stopped.notified() => Ok(()),
            }
        })
    }
}

async fn accept(listener: TcpListener, content: Arc<Content>) {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, or gone already: the next one may do better.
                tracing::warn!(%error, "a connection is not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let content = Arc::clone(&content);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&content), request));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection has ended");
            }
            drop(place);
        });
    }
}

type Body = BoxBody<Bytes, std::io::Error>;

async fn answer(
    content: Arc<Content>,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::convert::Infallible> {
    let is_head = request.method() == Method::HEAD;
    let mut response = respond(content, &request).await;
    response.headers_mut().insert(
        "docker-distribution-api-version",
        HeaderValue::from_static("registry/2.0"),
    );
    if is_head {
        *response.body_mut() = empty();
    }
    Ok(response)
}

async fn respond(content: Arc<Content>, request: &Request<Incoming>) -> Response<Body> {
    let text = |name| {
        request
            .headers()
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
    };
    if !is_here(text(header::HOST)) {
        let message = "this registry is for this machine alone; use 127.0.0.1 or localhost";
        return failure(StatusCode::FORBIDDEN, "DENIED", message);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let message = "this registry is for reading only";
        let mut response = failure(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message);
        let headers = response.headers_mut();
        headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let route = match route::route(request.uri().path(), request.uri().query()) {
        Ok(route) => route,
        Err(odd) => return refusal(odd),
    };
    let range = text(header::RANGE).map(str::to_owned);
    // Layers may have to be written first, which takes a thread.
    let found = tokio::task::spawn_blocking(move || serve(&content, &route, range.as_deref()));
    match found.await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            let message = crate::error::chain(&error);
            tracing::warn!(error = message, "a request failed");
            failure(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", &message)
        }
        Err(_) => failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            "UNKNOWN",
            "internal error",
        ),
    }
}

/// Returns whether a request names this machine.
fn is_here(host: Option<&str>) -> bool {
    let Some(host) = host else {
        return false;
    };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

fn refusal(odd: Odd) -> Response<Body> {
    let (status, code, message) = match odd {
        Odd::NoEndpoint => (
            StatusCode::NOT_FOUND,
            "UNSUPPORTED",
            "there is no such endpoint",
        ),
        Odd::Name => (
            StatusCode::BAD_REQUEST,
            "NAME_INVALID",
            "invalid repository name",
        ),
        Odd::Tag => (StatusCode::BAD_REQUEST, "TAG_INVALID", "invalid tag"),
        Odd::Digest => (StatusCode::BAD_REQUEST, "DIGEST_INVALID", "invalid digest"),
        Odd::Number => (
            StatusCode::BAD_REQUEST,
            "PAGINATION_NUMBER_INVALID",
            "invalid number",
        ),
    };
    failure(status, code, message)
}

fn serve(
    content: &Content,
    route: &Route,
    range: Option<&str>,
) -> Result<Response<Body>, EngineError> {
    let unknown_name = || {
        let message = "repository name not known to this store";
        failure(StatusCode::NOT_FOUND, "NAME_UNKNOWN", message)
    };
    Ok(match route {
        Route::Base => document("application/json", None, b"{}".to_vec()),
        Route::Catalog(page) => {
            let (names, more) = content.catalog(page)?;
            let next = next_page("/v2/_catalog", page, &names, more);
            listing(&json!({"repositories": names}), next)
        }
        Route::Tags { name, page } => match content.tags(name, page)? {
            None => unknown_name(),
            Some((tags, more)) => {
                let next = next_page(&format!("/v2/{name}/tags/list"), page, &tags, more);
                listing(&json!({"name": name, "tags": tags}), next)
            }
        },
        Route::Manifest { name, reference } => match content.manifest(name, reference)? {
            None => {
                let message = "manifest unknown";
                failure(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", message)
            }
            Some(found) => document(&found.media_type, Some(&found.digest), found.bytes),
        },
        Route::Blob { name, digest } => match content.blob(name, digest)? {
            None => failure(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "blob unknown"),
            Some(found) => blob(found, digest, range),
        },
        // Nothing in a store refers to anything else; and the specification allows no 404 here.
        Route::Referrers => {
            let index = oci::Index::new(oci::media_type::Naming::Oci, Vec::new());
            let bytes = oci::json::compact(&index).expect("an index can be written as JSON");
            document(oci::media_type::OCI_INDEX, None, bytes)
        }
    })
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

fn full(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes))
        .map_err(|never| match never {})
        .boxed()
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

fn document(media_type: &str, digest: Option<&oci::Digest>, bytes: Vec<u8>) -> Response<Body> {
    let length = bytes.len();
    let mut response = Response::new(full(bytes));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, value(media_type));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    if let Some(digest) = digest {
        headers.insert("docker-content-digest", value(&digest.to_string()));
        headers.insert(header::ETAG, value(&format!("\"{digest}\"")));
    }
    response
}

fn listing(found: &serde_json::Value, next: Option<String>) -> Response<Body> {
    let mut response = document("application/json", None, found.to_string().into_bytes());
    if let Some(next) = next {
        response.headers_mut().insert(header::LINK, value(&next));
    }
    response
}

fn next_page(path: &str, page: &Page, found: &[String], more: bool) -> Option<String> {
    let (last, most) = (found.last()?, page.most?);
    // A slash is all that is special in a name.
    let last = last.replace('/', "%2F");
    more.then(|| format!("<{path}?last={last}&n={most}>; rel=\"next\""))
}

fn failure(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = json!({"errors": [{"code": code, "message": message, "detail": null}]});
    let mut response = document("application/json", None, body.to_string().into_bytes());
    *response.status_mut() = status;
    response
}

fn blob(found: Blob, digest: &oci::Digest, range: Option<&str>) -> Response<Body> {
    let size = match &found {
        Blob::Bytes(bytes) => bytes.len() as u64,
        Blob::File(_, size) => *size,
    };
    let part = match route::range(range, size) {
        Ok(part) => part,
        Err(()) => {
            let message = "there are no such bytes";
            let mut response = failure(StatusCode::RANGE_NOT_SATISFIABLE, "SIZE_INVALID", message);
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_RANGE, value(&format!("bytes */{size}")));
            return response;
        }
    };
    let (first, length) = match part {
        None => (0, size),
        Some((first, last)) => (first, last - first + 1),
    };
    let body = match found {
        Blob::Bytes(bytes) => full(bytes[first as usize..(first + length) as usize].to_vec()),
        Blob::File(file, _) => file_body(file, first, length),
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    if let Some((first, last)) = part {
        headers.insert(
            header::CONTENT_RANGE,
            value(&format!("bytes {first}-{last}/{size}")),
        );
    }
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert("docker-content-digest", value(&digest.to_string()));
    headers.insert(header::ETAG, value(&format!("\"{digest}\"")));
    if part.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}

/// Returns a body that reads as the client takes it.
fn file_body(file: std::fs::File, first: u64, length: u64) -> Body {
    const BLOCK: usize = 256 << 10;
    let (mut sender, body) = Channel::<Bytes, std::io::Error>::new(2);
    tokio::runtime::Handle::current().spawn(async move {
        let mut file = tokio::fs::File::from_std(file);
        let mut rest = length;
        if let Err(error) = file.seek(std::io::SeekFrom::Start(first)).await {
            sender.abort(error);
            return;
        }
        while rest > 0 {
            let mut block = bytes::BytesMut::with_capacity(BLOCK.min(rest as usize));
            match (&mut file).take(rest).read_buf(&mut block).await {
                Ok(0) => {
                    sender.abort(std::io::ErrorKind::UnexpectedEof.into());
                    return;
                }
                Ok(count) => rest -= count as u64,
                Err(error) => {
                    sender.abort(error);
                    return;
                }
            }
            if sender.send_data(block.freeze()).await.is_err() {
                return;
            }
        }
    });
    body.boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_to_this_machine_are_answered() {
        let check = |host: &str, expect: bool| assert_eq!(is_here(Some(host)), expect, "{host}");
        check("localhost:5000", true);
        check("LOCALHOST", true);
        check("127.0.0.1:1", true);
        check("127.9.9.9", true);
        check("[::1]:5000", true);
        check("evil.example:5000", false);
        check("localhost.evil.example", false);
        check("10.0.0.1", false);
        check("", false);
        assert!(!is_here(None));
    }
}
