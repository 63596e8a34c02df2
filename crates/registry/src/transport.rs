//! Requests to an endpoint with logins and retries: what the operations of the client are made of.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, Response, StatusCode, Url};

use crate::RegistryError;
use crate::answer::{self, LONGEST_ERROR};
use crate::auth::{Authorizer, Scope};
use crate::http::{Body, Connections, Outgoing, is_same_origin};
use crate::retry::{Backoff, Failure};
use crate::settings::{Endpoint, Settings};

#[derive(Debug)]
pub(crate) struct Transport {
    pub(crate) settings: Arc<Settings>,
    pub(crate) connections: Connections,
    authorizer: Authorizer,
}

/// Where a request goes.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// Below the repository of the endpoint: `manifests/latest`.
    Repository(String),
    /// Below the beginning of the API.
    Api(String),
    /// Where the registry said, for an upload or the next page.
    Url(Url),
}

/// A request to an endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Call<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) method: Method,
    pub(crate) target: Target,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    pub(crate) scopes: Vec<Scope>,
    pub(crate) subject: &'a str,
    pub(crate) action: &'static str,
    /// The statuses that are an answer; any other is an error.
    pub(crate) expected: &'a [u16],
}

/// An answer whose body is all here.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// What was asked for, before any redirect.
    pub(crate) url: Url,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl Transport {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        Self {
            connections: Connections::new(Arc::clone(&settings)),
            authorizer: Authorizer::new(Arc::clone(&settings)),
            settings,
        }
    }

    /// Sends a request until there is an expected answer, reads its body and returns it.
    pub(crate) async fn call(&self, call: &Call<'_>, limit: u64) -> Result<Answer, RegistryError> {
        let mut backoff = Backoff::new(self.settings.retry);
        loop {
            let failure = match self.attempt(call, limit).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            backoff.pause(failure).await?;
        }
    }

    /// Does once what [`call`](Self::call) does.
    pub(crate) async fn attempt(&self, call: &Call<'_>, limit: u64) -> Result<Answer, Failure> {
        let (outgoing, response) = self.open(call).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = match call.method {
            Method::HEAD => Bytes::new(),
            _ => self.connections.collect(&outgoing, response, limit).await?,
        };
        Ok(Answer {
            status,
            headers,
            url: outgoing.url,
            body,
        })
    }

    /// Sends a request once, with a login where the endpoint wants one, and returns an expected answer whose body is
    /// yet to be read.
    pub(crate) async fn open<'a>(
        &self,
        call: &Call<'a>,
    ) -> Result<(Outgoing<'a>, Response), Failure> {
        let base = self.connections.base(call.endpoint).await?;
        let mut outgoing = Outgoing {
            endpoint: call.endpoint,
            method: call.method.clone(),
            url: target_url(call, &base)?,
            home: base,
            headers: call.headers.clone(),
            authorization: None,
            body: call.body.clone(),
            follows: true,
            subject: call.subject,
            action: call.action,
        };
        // A token may have ended since it was fetched, and what a challenge asks for may be more than was known.
        for challenges_left in [2, 1, 0] {
            outgoing.authorization = self.authorize(&outgoing, &call.scopes).await?;
            let response = self.connections.send(&outgoing).await?;
            let status = response.status();
            if call.expected.contains(&status.as_u16()) {
                return Ok((outgoing, response));
            }
            if status == StatusCode::UNAUTHORIZED
                && challenges_left > 0
                && is_same_origin(response.url(), &outgoing.home)
            {
                let refused = outgoing.authorization.take();
                let headers = response.headers();
                if self
                    .authorizer
                    .challenged(call.endpoint, &call.scopes, headers, refused.as_ref())
                    .await
                {
                    let next = self.authorize(&outgoing, &call.scopes).await?;
                    if next.is_some() && next != refused {
                        continue;
                    }
                }
            }
            return Err(self.refusal(&outgoing, response).await);
        }
        unreachable!("the last round returns")
    }

    async fn authorize(
        &self,
        outgoing: &Outgoing<'_>,
        scopes: &[Scope],
    ) -> Result<Option<HeaderValue>, Failure> {
        let authorization =
            self.authorizer
                .authorization(&self.connections, outgoing.endpoint, scopes);
        authorization.await.map_err(Failure::never)
    }

    async fn refusal(&self, outgoing: &Outgoing<'_>, response: Response) -> Failure {
        let (status, headers) = (response.status(), response.headers().clone());
        let body = match outgoing.method {
            Method::HEAD => Bytes::new(),
            // Without its text the status still says enough.
            _ => self
                .connections
                .collect(outgoing, response, LONGEST_ERROR)
                .await
                .unwrap_or_default(),
        };
        answer::refusal(
            outgoing.subject,
            &outgoing.endpoint.authority,
            status,
            &headers,
            &body,
        )
    }
}

fn target_url(call: &Call<'_>, base: &Url) -> Result<Url, Failure> {
    let endpoint = call.endpoint;
    let path = match &call.target {
        Target::Url(url) => return Ok(url.clone()),
        Target::Repository(path) => format!("{}/{path}", endpoint.repository),
        Target::Api(path) => path.clone(),
    };
    let mut url = base.join(&path).map_err(|error| {
        Failure::never(RegistryError::Malformed {
            subject: call.subject.to_owned(),
            endpoint: endpoint.authority.clone(),
            message: error.to_string(),
        })
    })?;
    if let Some(registry) = &endpoint.mirrored {
        url.query_pairs_mut().append_pair("ns", registry);
    }
    Ok(url)
}

/// Reads a URL that a registry gave (`Location`, `Link`), relative or absolute.
///
/// A registry behind a TLS proxy may not know that it is, and name itself with `http`.
pub(crate) fn given_url(call: &Call<'_>, from: &Url, text: Option<&str>) -> Result<Url, Failure> {
    let malformed = |message: &str| {
        Failure::soon(RegistryError::Malformed {
            subject: call.subject.to_owned(),
            endpoint: call.endpoint.authority.clone(),
            message: message.to_owned(),
        })
    };
    let text = text.ok_or_else(|| malformed("it does not say where to go on"))?;
    let mut url = from
        .join(text)
        .map_err(|_| malformed("it says to go on at what is no URL"))?;
    if from.scheme() == "https" && url.scheme() == "http" && url.host_str() == from.host_str() {
        let port = url.port();
        if url.set_scheme("https").is_ok() && (port.is_none() || port == Some(80)) {
            let _ = url.set_port(from.port());
        }
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if from.scheme() == "http" || call.endpoint.tls.skip_verify => Ok(url),
        _ => Err(malformed("it says to go on without TLS")),
    }
}
