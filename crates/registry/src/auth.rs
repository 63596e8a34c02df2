//! Logins: answers the challenges of registries, fetches tokens and keeps them while they hold.

mod challenge;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;

use crate::RegistryError;
use crate::answer;
use crate::credentials::Credential;
use crate::http::{Body, Connections, Outgoing};
use crate::retry::{Backoff, Failure};
use crate::settings::{Endpoint, Settings, is_loopback};
use challenge::Challenge;

const CLIENT_ID: &str = "lapstrake";
const LONGEST_TOKEN_ANSWER: u64 = 1 << 20;
/// What a token holds that does not say (distribution, token specification).
const DEFAULT_LIFE: u64 = 60;

/// What is to be done in a repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Scope {
    pub(crate) repository: String,
    pub(crate) actions: Actions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Actions {
    Pull,
    Push,
    Delete,
}

impl Scope {
    pub(crate) fn new(repository: &str, actions: Actions) -> Self {
        Self {
            repository: repository.to_owned(),
            actions,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let actions = match self.actions {
            Actions::Pull => "pull",
            Actions::Push => "pull,push",
            Actions::Delete => "delete,pull",
        };
        write!(formatter, "repository:{}:{actions}", self.repository)
    }
}

/// How a server wants to know its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    Basic,
    Bearer {
        realm: String,
        service: String,
        scopes: Vec<String>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct TokenKey {
    realm: String,
    service: String,
    scopes: Vec<String>,
    registry: String,
    repository: String,
}

#[derive(Clone)]
struct Token {
    header: HeaderValue,
    until: Instant,
}

/// The place of a token. Locked while one is fetched, so that parallel requests share it.
type TokenSlot = Arc<tokio::sync::Mutex<Option<Token>>>;

/// What is known about logins at the servers met so far.
pub(crate) struct Authorizer {
    settings: Arc<Settings>,
    ways: Mutex<BTreeMap<(String, Vec<Scope>), Way>>,
    tokens: Mutex<BTreeMap<TokenKey, TokenSlot>>,
    credentials: tokio::sync::Mutex<BTreeMap<(String, String), Option<Credential>>>,
}

impl fmt::Debug for Authorizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Authorizer").finish_non_exhaustive()
    }
}

impl Authorizer {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        Self {
            settings,
            ways: Mutex::default(),
            tokens: Mutex::default(),
            credentials: tokio::sync::Mutex::default(),
        }
    }

    /// Returns the header for a request as far as the ways of the server are known.
    pub(crate) async fn authorization(
        &self,
        connections: &Connections,
        endpoint: &Endpoint,
        scopes: &[Scope],
    ) -> Result<Option<HeaderValue>, RegistryError> {
        match self.way(endpoint, scopes) {
            None => Ok(None),
            Some(Way::Basic) => match self.credential(endpoint).await? {
                Some(Credential::Basic { username, password }) => {
                    Ok(Some(basic(&username, &password)))
                }
                Some(Credential::RegistryToken(token)) => bearer(endpoint, &token).map(Some),
                Some(Credential::IdentityToken(_)) | None => Ok(None),
            },
            Some(Way::Bearer {
                realm,
                service,
                scopes,
            }) => {
                let key = TokenKey {
                    realm,
                    service,
                    scopes,
                    registry: endpoint.credentials.clone(),
                    repository: endpoint.repository.clone(),
                };
                self.token(connections, endpoint, key).await.map(Some)
            }
        }
    }

    /// Takes in the challenge of a server that refused a request with 401, and drops the token that it refused.
    ///
    /// Returns whether there is a way to try.
    pub(crate) async fn challenged(
        &self,
        endpoint: &Endpoint,
        scopes: &[Scope],
        headers: &HeaderMap,
        refused: Option<&HeaderValue>,
    ) -> bool {
        if let Some(refused) = refused {
            self.drop_token(refused).await;
        }
        let challenges: Vec<Challenge> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenge::parse)
            .collect();
        let named = |scheme: &str| {
            challenges
                .iter()
                .find(|challenge| challenge.scheme == scheme)
        };
        let (own, shared) = if let Some(challenge) = named("bearer")
            && let Some(realm) = challenge.parameters.get("realm")
        {
            let service = challenge
                .parameters
                .get("service")
                .cloned()
                .unwrap_or_default();
            let way = |scopes| Way::Bearer {
                realm: realm.clone(),
                service: service.clone(),
                scopes,
            };
            let mut all: Vec<String> = match endpoint.has_plain_path() {
                true => scopes.iter().map(Scope::to_string).collect(),
                // The names that such a server uses in scopes are not ours.
                false => Vec::new(),
            };
            if let Some(asked) = challenge.parameters.get("scope") {
                all.extend(
                    asked
                        .split(' ')
                        .filter(|scope| !scope.is_empty())
                        .map(str::to_owned),
                );
            }
            (
                way(merge_scopes(all)),
                endpoint.has_plain_path().then(|| way(Vec::new())),
            )
        } else if named("basic").is_some() {
            (Way::Basic, Some(Way::Basic))
        } else {
            return false;
        };
        let mut ways = self.ways.lock().expect("no panic while held");
        ways.insert((origin(endpoint), scopes.to_vec()), own);
        if let Some(shared) = shared {
            ways.insert((origin(endpoint), Vec::new()), shared);
        }
        true
    }

    fn way(&self, endpoint: &Endpoint, scopes: &[Scope]) -> Option<Way> {
        let ways = self.ways.lock().expect("no panic while held");
        if let Some(way) = ways.get(&(origin(endpoint), scopes.to_vec())) {
            return Some(way.clone());
        }
        match ways.get(&(origin(endpoint), Vec::new()))?.clone() {
            Way::Bearer { realm, service, .. } => {
                let scopes = merge_scopes(scopes.iter().map(Scope::to_string).collect());
                Some(Way::Bearer {
                    realm,
                    service,
                    scopes,
                })
            }
            Way::Basic => Some(Way::Basic),
        }
    }

    async fn credential(&self, endpoint: &Endpoint) -> Result<Option<Credential>, RegistryError> {
        let key = (endpoint.credentials.clone(), endpoint.repository.clone());
        let mut known = self.credentials.lock().await;
        if let Some(credential) = known.get(&key) {
            return Ok(credential.clone());
        }
        let credential = self.settings.credentials.credential(&key.0, &key.1).await?;
        known.insert(key, credential.clone());
        Ok(credential)
    }

    async fn token(
        &self,
        connections: &Connections,
        endpoint: &Endpoint,
        key: TokenKey,
    ) -> Result<HeaderValue, RegistryError> {
        let slot = Arc::clone(
            self.tokens
                .lock()
                .expect("no panic while held")
                .entry(key.clone())
                .or_default(),
        );
        let mut slot = slot.lock().await;
        if let Some(token) = &*slot
            && token.until > Instant::now()
        {
            return Ok(token.header.clone());
        }
        let credential = self.credential(endpoint).await?;
        if let Some(Credential::RegistryToken(token)) = &credential {
            return bearer(endpoint, token);
        }
        let mut backoff = Backoff::new(self.settings.retry);
        loop {
            let failure = match fetch_token(connections, endpoint, &key, credential.as_ref()).await
            {
                Ok(token) => return Ok(slot.insert(token).header.clone()),
                Err(failure) => failure,
            };
            backoff.pause(failure).await?;
        }
    }

    async fn drop_token(&self, refused: &HeaderValue) {
        let slots: Vec<TokenSlot> = self
            .tokens
            .lock()
            .expect("no panic while held")
            .values()
            .cloned()
            .collect();
        for slot in slots {
            let mut token = slot.lock().await;
            if token.as_ref().is_some_and(|token| token.header == *refused) {
                *token = None;
            }
        }
    }
}

fn origin(endpoint: &Endpoint) -> String {
    match endpoint.has_plain_path() {
        true => endpoint.authority.clone(),
        false => format!(
            "{}{}{}",
            endpoint.authority, endpoint.path, endpoint.repository
        ),
    }
}

/// Sorts scopes and joins the actions of those for the same thing.
fn merge_scopes(scopes: Vec<String>) -> Vec<String> {
    let mut merged: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for scope in scopes {
        let (thing, actions) = scope.rsplit_once(':').unwrap_or((&scope, ""));
        let known = merged.entry(thing.to_owned()).or_default();
        known.extend(
            actions
                .split(',')
                .filter(|action| !action.is_empty())
                .map(str::to_owned),
        );
    }
    let join = |(thing, mut actions): (String, Vec<String>)| {
        actions.sort();
        actions.dedup();
        if actions.is_empty() {
            thing
        } else {
            format!("{thing}:{}", actions.join(","))
        }
    };
    merged.into_iter().map(join).collect()
}

fn basic(username: &str, password: &str) -> HeaderValue {
    let text = format!(
        "Basic {}",
        STANDARD.encode(format!("{username}:{password}"))
    );
    let mut value = HeaderValue::from_str(&text).expect("base64");
    value.set_sensitive(true);
    value
}

fn bearer(endpoint: &Endpoint, token: &str) -> Result<HeaderValue, RegistryError> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
        RegistryError::Credentials {
            registry: endpoint.credentials.clone(),
            message: "the token cannot stand in a header".to_owned(),
        }
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<u64>,
}

/// Gets a token from the server that the challenge named: by GET as Docker's registries want it, by POST with an
/// identity token, or where GET is not known (distribution, token and OAuth2 specifications).
async fn fetch_token(
    connections: &Connections,
    endpoint: &Endpoint,
    key: &TokenKey,
    credential: Option<&Credential>,
) -> Result<Token, Failure> {
    let realm = token_server(connections, endpoint, key, credential.is_some()).await?;
    let subject = format!(
        "a token for {}/{}",
        endpoint.credentials, endpoint.repository
    );
    let begun = Instant::now();
    let mut url = realm.clone();
    let mut authorization = None;
    if let Some(Credential::IdentityToken(token)) = credential {
        let form = [("grant_type", "refresh_token"), ("refresh_token", token)];
        let body = post_form(connections, endpoint, &realm, key, &subject, &form).await?;
        return token_of(endpoint, &subject, &body, begun);
    }
    {
        let mut query = url.query_pairs_mut();
        if !key.service.is_empty() {
            query.append_pair("service", &key.service);
        }
        for scope in &key.scopes {
            query.append_pair("scope", scope);
        }
        if let Some(Credential::Basic { username, password }) = credential {
            query.append_pair("account", username);
            authorization = Some(basic(username, password));
        }
    }
    if url.query() == Some("") {
        url.set_query(None);
    }
    let outgoing = token_request(
        endpoint,
        Method::GET,
        url,
        &subject,
        authorization,
        Body::Empty,
    );
    let response = connections.send(&outgoing).await?;
    if matches!(
        response.status(),
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED
    ) && let Some(Credential::Basic { username, password }) = credential
    {
        let form = [
            ("grant_type", "password"),
            ("username", username),
            ("password", password),
        ];
        let body = post_form(connections, endpoint, &realm, key, &subject, &form).await?;
        return token_of(endpoint, &subject, &body, begun);
    }
    let body = collect(connections, &outgoing, response).await?;
    token_of(endpoint, &subject, &body, begun)
}

/// Returns the URL of the token server. A password is never sent in the clear because a registry says so.
async fn token_server(
    connections: &Connections,
    endpoint: &Endpoint,
    key: &TokenKey,
    with_credential: bool,
) -> Result<Url, Failure> {
    let malformed = |message: String| {
        Failure::never(RegistryError::Malformed {
            subject: "its login".to_owned(),
            endpoint: endpoint.authority.clone(),
            message,
        })
    };
    let realm = Url::parse(&key.realm);
    let realm = match realm {
        Ok(realm) => realm,
        Err(_) => {
            let base = connections.base(endpoint).await?;
            base.join(&key.realm)
                .map_err(|_| malformed("the realm is no URL".to_owned()))?
        }
    };
    if !matches!(realm.scheme(), "http" | "https") || !realm.has_host() {
        return Err(malformed("the realm is no URL".to_owned()));
    }
    let local = realm.host_str().is_some_and(is_loopback);
    if realm.scheme() == "http" && with_credential && !local {
        let base = connections.base(endpoint).await?;
        if base.scheme() == "https" {
            return Err(malformed(
                "it wants the login sent to a server without TLS".to_owned(),
            ));
        }
    }
    Ok(realm)
}

fn token_request<'a>(
    endpoint: &'a Endpoint,
    method: Method,
    url: Url,
    subject: &'a str,
    authorization: Option<HeaderValue>,
    body: Body,
) -> Outgoing<'a> {
    let (home, headers) = (url.clone(), HeaderMap::new());
    Outgoing {
        endpoint,
        follows: method != Method::POST,
        method,
        home,
        url,
        headers,
        authorization,
        body,
        subject,
        action: "asking for",
    }
}

async fn post_form(
    connections: &Connections,
    endpoint: &Endpoint,
    realm: &Url,
    key: &TokenKey,
    subject: &str,
    form: &[(&str, &str)],
) -> Result<Bytes, Failure> {
    let mut encoded = Url::parse("form:").expect("a URL");
    {
        let mut pairs = encoded.query_pairs_mut();
        pairs.extend_pairs(form).append_pair("client_id", CLIENT_ID);
        pairs.append_pair("service", &key.service);
        if !key.scopes.is_empty() {
            pairs.append_pair("scope", &key.scopes.join(" "));
        }
    }
    let body = Bytes::from(encoded.query().unwrap_or_default().to_owned());
    let mut outgoing = token_request(
        endpoint,
        Method::POST,
        realm.clone(),
        subject,
        None,
        Body::Bytes(body),
    );
    let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
    outgoing.headers.insert(CONTENT_TYPE, form_type);
    let response = connections.send(&outgoing).await?;
    collect(connections, &outgoing, response).await
}

async fn collect(
    connections: &Connections,
    outgoing: &Outgoing<'_>,
    response: reqwest::Response,
) -> Result<Bytes, Failure> {
    let (status, headers) = (response.status(), response.headers().clone());
    let body = connections
        .collect(outgoing, response, LONGEST_TOKEN_ANSWER)
        .await?;
    match status {
        StatusCode::OK => Ok(body),
        status => Err(answer::refusal(
            outgoing.subject,
            &outgoing.endpoint.authority,
            status,
            &headers,
            &body,
        )),
    }
}

fn token_of(
    endpoint: &Endpoint,
    subject: &str,
    body: &[u8],
    begun: Instant,
) -> Result<Token, Failure> {
    let malformed = |message: &str| {
        Failure::soon(RegistryError::Malformed {
            subject: subject.to_owned(),
            endpoint: endpoint.authority.clone(),
            message: message.to_owned(),
        })
    };
    let answer: TokenAnswer =
        serde_json::from_slice(body).map_err(|_| malformed("it is not valid JSON"))?;
    let token = answer
        .token
        .filter(|token| !token.is_empty())
        .or(answer.access_token)
        .unwrap_or_default();
    if token.is_empty() {
        return Err(malformed("there is no token in it"));
    }
    let life = answer
        .expires_in
        .filter(|life| *life > 0)
        .unwrap_or(DEFAULT_LIFE);
    let header = bearer(endpoint, &token).map_err(Failure::never)?;
    Ok(Token {
        header,
        until: begun + usable_life(life),
    })
}

/// A token is given up a little before its end, so that none ends on its way.
fn usable_life(seconds: u64) -> Duration {
    let life = Duration::from_secs(seconds.min(24 * 3600));
    life - (life / 5).min(Duration::from_secs(10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_sorted_and_merged() {
        let scopes = [
            "repository:b:pull",
            "repository:a:push,pull",
            "repository:b:push,pull",
            "registry:catalog:*",
            "x",
        ];
        assert_eq!(
            merge_scopes(scopes.iter().map(|&scope| scope.to_owned()).collect()),
            [
                "registry:catalog:*",
                "repository:a:pull,push",
                "repository:b:pull,push",
                "x"
            ]
        );
    }

    #[test]
    fn tokens_are_given_up_before_their_end() {
        assert_eq!(usable_life(300), Duration::from_secs(290));
        assert_eq!(usable_life(5), Duration::from_secs(4));
    }
}
