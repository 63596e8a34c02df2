//! The client: which server is asked for what, and manifests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use oci::{Descriptor, Digest, Reference, media_type};
use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Deserialize;

use crate::auth::{Actions, Scope};
use crate::http::Body;
use crate::retry::{Backoff, Failure, Retry};
use crate::settings::{By, Endpoint, Host, HostTable, Settings};
use crate::transport::{Answer, Call, Target, Transport};
use crate::{RegistryError, layout};

/// The size that every registry takes (distribution-spec, pushing manifests).
pub(crate) const LARGEST_MANIFEST: u64 = 4 << 20;
const CONTENT_DIGEST: &str = "docker-content-digest";
/// How long a server that could not be reached is asked after all others.
const REST: Duration = Duration::from_secs(60);
/// A wrong answer may come from a cache that gives it for ever.
pub(crate) const ATTEMPTS_AT_WRONG_CONTENT: u32 = 4;

/// Talks to registries. Cheap to make and to clone; clones share connections, tokens and what is known of servers.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) transport: Transport,
    hosts: HostTable,
    /// Servers that could not be reached, and when they may be first again.
    resting: Mutex<BTreeMap<String, Instant>>,
}

/// A manifest or index, as a registry gave it for a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub descriptor: Descriptor,
    /// The bytes that have the digest.
    pub raw: Arc<[u8]>,
    /// The server it came from.
    pub source: String,
}

impl Client {
    pub fn new(settings: Settings) -> Self {
        let settings = Arc::new(settings);
        let inner = Inner {
            transport: Transport::new(Arc::clone(&settings)),
            hosts: HostTable::new(settings),
            resting: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Returns the manifest or index behind a reference, by its digest if it has one, else by its tag (`latest` if it
    /// has none).
    ///
    /// Mirrors are asked first, then the registry; any failure of one leads to the next.
    pub async fn resolve(&self, reference: &Reference) -> Result<Resolved, RegistryError> {
        let subject = format!("manifest {reference}");
        let mut attempts = Attempts::new(&subject);
        for host in self.pull_hosts(reference)? {
            match self.manifest_from(&host, reference, &subject).await {
                Ok(resolved) => return Ok(resolved),
                Err(error) => attempts.add(self, &host, error)?,
            }
        }
        Err(attempts.into_error())
    }

    /// Returns the descriptor behind a reference without fetching it, where the registry can say.
    pub async fn head(&self, reference: &Reference) -> Result<Descriptor, RegistryError> {
        let subject = format!("manifest {reference}");
        let mut attempts = Attempts::new(&subject);
        for host in self.pull_hosts(reference)? {
            let found = match &host {
                Host::Remote(endpoint) => self.head_at(endpoint, reference, &subject).await,
                Host::Layout(_) => Ok(None),
            };
            let found = match found {
                Ok(Some(descriptor)) => Ok(descriptor),
                Ok(None) => self
                    .manifest_from(&host, reference, &subject)
                    .await
                    .map(|found| found.descriptor),
                Err(error) => Err(error),
            };
            match found {
                Ok(descriptor) => return Ok(descriptor),
                Err(error) => attempts.add(self, &host, error)?,
            }
        }
        Err(attempts.into_error())
    }

    /// Returns the manifest or index of a descriptor, as an index names it. The version of `repository` is not looked at.
    pub async fn fetch_manifest(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
    ) -> Result<Arc<[u8]>, RegistryError> {
        let reference = repository
            .clone()
            .without_version()
            .with_digest(descriptor.digest.clone());
        if descriptor.size > LARGEST_MANIFEST {
            return Err(RegistryError::TooLarge {
                subject: format!("manifest {reference}"),
                endpoint: reference.domain().to_owned(),
                limit: LARGEST_MANIFEST,
            });
        }
        let resolved = self.resolve(&reference).await?;
        if resolved.descriptor.size != descriptor.size {
            return Err(RegistryError::SizeMismatch {
                subject: format!("manifest {reference}"),
                endpoint: resolved.source,
                expected: descriptor.size,
                actual: resolved.descriptor.size,
            });
        }
        Ok(resolved.raw)
    }

    /// Returns the servers to pull from, those that did not answer lately last.
    pub(crate) fn pull_hosts(&self, reference: &Reference) -> Result<Vec<Host>, RegistryError> {
        let by = by(reference);
        let mut hosts = self
            .inner
            .hosts
            .hosts(reference.domain(), reference.path(), by)?;
        hosts.retain(|host| match host {
            Host::Remote(endpoint) => match by {
                By::Tag(_) => endpoint.capabilities.resolve && endpoint.capabilities.pull,
                By::Digest => endpoint.capabilities.pull,
            },
            Host::Layout(_) => true,
        });
        if hosts.is_empty() {
            return Err(RegistryError::Unsupported {
                operation: "pull",
                subject: reference.to_string(),
                reason: "no server is configured for it".to_owned(),
            });
        }
        let resting = self.inner.resting.lock().expect("no panic while held");
        let now = Instant::now();
        hosts.sort_by_key(|host| match host {
            Host::Remote(endpoint) => resting
                .get(&endpoint.authority)
                .is_some_and(|until| *until > now),
            Host::Layout(_) => false,
        });
        Ok(hosts)
    }

    /// Returns the server that takes pushes.
    pub(crate) fn push_endpoint(
        &self,
        repository: &Reference,
    ) -> Result<Arc<Endpoint>, RegistryError> {
        let hosts = self
            .inner
            .hosts
            .hosts(repository.domain(), repository.path(), By::Digest)?;
        let endpoint = hosts.into_iter().find_map(|host| match host {
            Host::Remote(endpoint) if endpoint.capabilities.push => Some(endpoint),
            _ => None,
        });
        endpoint.ok_or_else(|| RegistryError::Unsupported {
            operation: "push",
            subject: repository.name(),
            reason: "no server is configured for it".to_owned(),
        })
    }

    /// Returns the servers of a registry, not of any repository.
    pub(crate) fn registry_endpoint(&self, registry: &str) -> Result<Arc<Endpoint>, RegistryError> {
        let hosts = self.inner.hosts.hosts(registry, "", By::Digest)?;
        match hosts.into_iter().next_back() {
            Some(Host::Remote(endpoint)) => Ok(endpoint),
            _ => Err(RegistryError::Unsupported {
                operation: "login",
                subject: registry.to_owned(),
                reason: "no server is configured for it".to_owned(),
            }),
        }
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.inner.transport
    }

    async fn manifest_from(
        &self,
        host: &Host,
        reference: &Reference,
        subject: &str,
    ) -> Result<Resolved, RegistryError> {
        match host {
            Host::Remote(endpoint) => self.manifest_at(endpoint, reference, subject).await,
            Host::Layout(root) => {
                let (root, reference, subject) =
                    (root.clone(), reference.clone(), subject.to_owned());
                let found = tokio::task::spawn_blocking(move || {
                    layout::resolve(&root, &reference, &subject)
                });
                found.await.expect("looking into a layout does not panic")
            }
        }
    }

    async fn manifest_at(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        subject: &str,
    ) -> Result<Resolved, RegistryError> {
        let call = manifest_call(endpoint, reference, subject, Method::GET);
        let mut backoff = Backoff::new(self.transport().settings.retry);
        loop {
            let answer = self.transport().attempt(&call, LARGEST_MANIFEST).await;
            let failure = match answer.and_then(|answer| checked(&call, reference, answer)) {
                Ok(resolved) => return Ok(resolved),
                Err(failure) => failure,
            };
            backoff.pause(failure).await?;
        }
    }

    /// Returns nothing when the answer leaves open what there is.
    async fn head_at(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        subject: &str,
    ) -> Result<Option<Descriptor>, RegistryError> {
        let mut call = manifest_call(endpoint, reference, subject, Method::HEAD);
        call.expected = &[200, 400, 405, 406];
        let answer = self.transport().call(&call, 0).await?;
        let header = |name: &str| answer.header(name);
        let digest: Option<Digest> = header(CONTENT_DIGEST).and_then(|digest| digest.parse().ok());
        let size: Option<u64> = header("content-length").and_then(|length| length.parse().ok());
        let kind = header(CONTENT_TYPE.as_str()).map(essence);
        let (200, Some(digest), Some(size), Some(kind)) =
            (answer.status.as_u16(), digest, size, kind)
        else {
            return Ok(None);
        };
        if reference
            .digest()
            .is_some_and(|expected| *expected != digest)
            || !is_manifest(&kind)
        {
            return Ok(None);
        }
        Ok(Some(Descriptor::new(kind, digest, size)))
    }
}

/// The failures of the servers asked so far.
#[derive(Debug)]
pub(crate) struct Attempts {
    subject: String,
    errors: Vec<RegistryError>,
}

impl Attempts {
    pub(crate) fn new(subject: &str) -> Self {
        Self {
            subject: subject.to_owned(),
            errors: Vec::new(),
        }
    }

    /// Takes in the failure of one server, or gives it back when the next one cannot do better.
    pub(crate) fn add(
        &mut self,
        client: &Client,
        host: &Host,
        error: RegistryError,
    ) -> Result<(), RegistryError> {
        if matches!(error, RegistryError::Schema1 { .. }) {
            return Err(error);
        }
        let unreachable = matches!(
            error,
            RegistryError::Connect { .. } | RegistryError::Timeout { .. }
        );
        if let Host::Remote(endpoint) = host
            && unreachable
        {
            let mut resting = client.inner.resting.lock().expect("no panic while held");
            resting.insert(endpoint.authority.clone(), Instant::now() + REST);
        }
        tracing::debug!(%error, "asking the next source");
        self.errors.push(error);
        Ok(())
    }

    pub(crate) fn into_error(mut self) -> RegistryError {
        match self.errors.len() {
            1 => self.errors.remove(0),
            _ => RegistryError::Exhausted {
                subject: self.subject,
                attempts: self.errors,
            },
        }
    }
}

fn by(reference: &Reference) -> By<'_> {
    match (reference.digest(), reference.tag()) {
        (Some(_), _) => By::Digest,
        (None, tag) => By::Tag(tag.unwrap_or("latest")),
    }
}

/// Returns digest or tag, as it stands in a path.
pub(crate) fn version(reference: &Reference) -> String {
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.unwrap_or("latest").to_owned(),
    }
}

fn manifest_call<'a>(
    endpoint: &'a Endpoint,
    reference: &Reference,
    subject: &'a str,
    method: Method,
) -> Call<'a> {
    const TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json, \
                         application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static(TYPES));
    Call {
        endpoint,
        method,
        target: Target::Repository(format!("manifests/{}", version(reference))),
        headers,
        body: Body::Empty,
        scopes: vec![Scope::new(&endpoint.repository, Actions::Pull)],
        subject,
        action: "asking for",
        expected: &[200],
    }
}

/// Takes a manifest only if it is what was asked for.
fn checked(call: &Call<'_>, reference: &Reference, answer: Answer) -> Result<Resolved, Failure> {
    let (subject, endpoint) = (call.subject.to_owned(), call.endpoint.authority.clone());
    let given = answer
        .header(CONTENT_DIGEST)
        .and_then(|digest| digest.parse::<Digest>().ok());
    // Asked for by tag, the digest that comes with the answer is all there is to check it by.
    let expected = reference.digest().cloned().or(given);
    if let Some(expected) = &expected
        && !expected.is_of(&answer.body)
    {
        return Err(Failure {
            error: RegistryError::DigestMismatch {
                subject,
                endpoint,
                expected: expected.clone(),
                actual: digest_like(expected, &answer.body),
            },
            retry: Retry::Few(ATTEMPTS_AT_WRONG_CONTENT),
        });
    }
    let digest = expected.unwrap_or_else(|| Digest::sha256_of(&answer.body));
    let content_type = answer
        .header(CONTENT_TYPE.as_str())
        .map(essence)
        .unwrap_or_default();
    let kind = manifest_type(&subject, &endpoint, &content_type, &answer.body)?;
    let descriptor = Descriptor::new(kind, digest, answer.body.len() as u64);
    Ok(Resolved {
        descriptor,
        raw: Arc::from(&*answer.body),
        source: endpoint,
    })
}

/// Returns the digest of `content` by the algorithm of another.
pub(crate) fn digest_like(digest: &Digest, content: &[u8]) -> Digest {
    let mut digester = oci::Digester::new(digest.algorithm());
    digester.update(content);
    digester.finish()
}

fn essence(content_type: &str) -> String {
    content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

fn is_manifest(kind: &str) -> bool {
    matches!(
        media_type::kind(kind),
        media_type::Kind::Manifest | media_type::Kind::Index
    )
}

/// The fields that tell kinds of manifests apart.
#[derive(Debug, Deserialize)]
struct Shape {
    #[serde(rename = "schemaVersion", default)]
    schema_version: u64,
    #[serde(rename = "mediaType", default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    config: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
    #[serde(rename = "fsLayers", default)]
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// Returns what kind of manifest this is, if all that speaks of it agrees (CVE-2021-41190).
pub(crate) fn manifest_type(
    subject: &str,
    endpoint: &str,
    content_type: &str,
    body: &[u8],
) -> Result<String, Failure> {
    let malformed = |message: String| Failure {
        error: RegistryError::Malformed {
            subject: subject.to_owned(),
            endpoint: endpoint.to_owned(),
            message,
        },
        retry: Retry::Few(ATTEMPTS_AT_WRONG_CONTENT),
    };
    let schema1 = || {
        Failure::never(RegistryError::Schema1 {
            subject: subject.to_owned(),
        })
    };
    if media_type::is_schema1(content_type) {
        return Err(schema1());
    }
    let shape: Shape =
        serde_json::from_slice(body).map_err(|_| malformed("it is no manifest".to_owned()))?;
    if shape.schema_version == 1 || shape.fs_layers.is_some() {
        return Err(schema1());
    }
    let is_index = shape.manifests.is_some();
    if is_index && (shape.config.is_some() || shape.layers.is_some()) {
        return Err(malformed("it is both a manifest and an index".to_owned()));
    }
    if !is_index && shape.config.is_none() {
        return Err(malformed(
            "it is neither a manifest nor an index".to_owned(),
        ));
    }
    let written = shape
        .media_type
        .as_deref()
        .map(essence)
        .filter(|kind| !kind.is_empty());
    if let Some(written) = &written
        && is_manifest(content_type)
        && written != content_type
    {
        return Err(malformed(format!(
            "it is sent as {content_type:?} and says it is {written:?}"
        )));
    }
    let kind = match written {
        Some(written) => written,
        None if is_manifest(content_type) => content_type.to_owned(),
        None if is_index => media_type::OCI_INDEX.to_owned(),
        None => media_type::OCI_MANIFEST.to_owned(),
    };
    let expected = if is_index {
        media_type::Kind::Index
    } else {
        media_type::Kind::Manifest
    };
    match media_type::kind(&kind) == expected {
        true => Ok(kind),
        false => Err(malformed(format!("{kind:?} is no media type for it"))),
    }
}

/// Makes the bytes of a body of those of a manifest.
pub(crate) fn body_of(raw: &[u8]) -> Body {
    Body::Bytes(Bytes::copy_from_slice(raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(content_type: &str, body: &str, expect: Result<&str, &str>) {
        match (
            manifest_type("s", "e", content_type, body.as_bytes()),
            expect,
        ) {
            (Ok(kind), Ok(expect)) => assert_eq!(kind, expect, "{body}"),
            (Err(failure), Err(expect)) => {
                let message = failure.error.to_string();
                assert!(message.contains(expect), "{message}");
            }
            (found, _) => panic!("{body}: {found:?}"),
        }
    }

    #[test]
    fn the_kind_of_a_manifest_is_what_all_agree_on() {
        let manifest = r#"{"schemaVersion":2,"config":{},"layers":[]}"#;
        let index = r#"{"schemaVersion":2,"manifests":[]}"#;
        check(
            media_type::DOCKER_MANIFEST,
            manifest,
            Ok(media_type::DOCKER_MANIFEST),
        );
        check("application/json", manifest, Ok(media_type::OCI_MANIFEST));
        check("text/plain", index, Ok(media_type::OCI_INDEX));
        check(
            "",
            r#"{"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json","manifests":[]}"#,
            Ok(media_type::DOCKER_MANIFEST_LIST),
        );
        check(media_type::OCI_INDEX, manifest, Err("no media type for it"));
        check(
            media_type::OCI_MANIFEST,
            r#"{"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{}}"#,
            Err("says it is"),
        );
        check(
            "",
            r#"{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}"#,
            Err("both"),
        );
        check("", r#"{"schemaVersion":2}"#, Err("neither"));
        check("", "<html>", Err("no manifest"));
    }

    #[test]
    fn schema_1_is_refused_by_name() {
        check("", r#"{"schemaVersion":1,"fsLayers":[]}"#, Err("schema 1"));
        check(media_type::DOCKER_SCHEMA1_SIGNED, "{}", Err("schema 1"));
        check(
            "application/json",
            r#"{"fsLayers":[],"config":{}}"#,
            Err("schema 1"),
        );
    }
}
