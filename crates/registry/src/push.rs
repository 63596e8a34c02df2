//! Content going out: blobs and manifests.

use std::sync::Arc;

use oci::{Descriptor, Digest, Index, Reference, media_type};
use reqwest::Method;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Deserialize;

use crate::answer::LONGEST_ERROR;
use crate::auth::{Actions, Scope};
use crate::client::{ATTEMPTS_AT_WRONG_CONTENT, body_of, version};
use crate::content::{BlobSource, Progress, Upload};
use crate::http::Body;
use crate::retry::{Backoff, Failure, Retry};
use crate::settings::{Endpoint, canonical_registry};
use crate::transport::{Answer, Call, Target, given_url};
use crate::{Client, RegistryError};

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// How a blob is pushed.
#[derive(Clone, Default)]
pub struct PushOptions {
    /// Repositories that may have the blob; those of the same registry are asked to share it.
    pub mount_from: Vec<Reference>,
    pub form: UploadForm,
    /// Is told the number of bytes sent so far.
    pub progress: Option<Progress>,
}

impl std::fmt::Debug for PushOptions {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("PushOptions")
            .field("mount_from", &self.mount_from)
            .field("form", &self.form)
            .finish_non_exhaustive()
    }
}

/// In how many requests the bytes of a blob go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UploadForm {
    /// In one; a cut begins it anew.
    #[default]
    Monolithic,
    /// In pieces of this many bytes; a cut repeats what the registry has not got. The last may be smaller. A registry
    /// may ask for larger ones.
    Chunked(u64),
}

/// How a blob came into a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existing,
    /// The registry took it from another of its repositories.
    Mounted {
        from: String,
    },
    Uploaded,
}

/// One push of one blob.
struct Push<'a> {
    client: &'a Client,
    endpoint: Arc<Endpoint>,
    descriptor: &'a Descriptor,
    source: &'a BlobSource,
    subject: String,
    scopes: Vec<Scope>,
    options: &'a PushOptions,
}

impl Client {
    /// Whether a repository has a blob.
    pub async fn blob_exists(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
    ) -> Result<bool, RegistryError> {
        let endpoint = self.push_endpoint(repository)?;
        let subject = blob_subject(repository, descriptor);
        let scopes = vec![Scope::new(&endpoint.repository, Actions::Pull)];
        blob_exists(self, &endpoint, descriptor, &subject, scopes).await
    }

    /// Puts a blob into a repository, unless it is there. The version of `repository` is not looked at.
    ///
    /// The registry checks digest and size; a blob that is not what `descriptor` says is an error and leaves nothing.
    pub async fn push_blob(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
        source: &BlobSource,
        options: &PushOptions,
    ) -> Result<Pushed, RegistryError> {
        let endpoint = self.push_endpoint(repository)?;
        let push = Push {
            client: self,
            descriptor,
            source,
            subject: blob_subject(repository, descriptor),
            scopes: vec![Scope::new(&endpoint.repository, Actions::Push)],
            options,
            endpoint,
        };
        if push.exists().await? {
            return Ok(Pushed::Existing);
        }
        for from in &options.mount_from {
            let same = canonical_registry(from.domain()) == canonical_registry(repository.domain());
            if same && from.path() != repository.path() && push.mount(from.path()).await {
                return Ok(Pushed::Mounted { from: from.name() });
            }
        }
        push.upload().await?;
        Ok(Pushed::Uploaded)
    }

    /// Puts a manifest or index into a repository, under the tag of `reference`, or by digest alone where it has none.
    ///
    /// Everything it names must be there. Where the registry does not keep referrers, a manifest with a subject is
    /// entered in the index that stands in for them.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        raw: &[u8],
    ) -> Result<Descriptor, RegistryError> {
        let descriptor = Descriptor::of(media_type, raw);
        let digest = match reference.digest() {
            Some(expected) if !expected.is_of(raw) => {
                return Err(RegistryError::DigestMismatch {
                    subject: format!("manifest {reference}"),
                    endpoint: "this machine".to_owned(),
                    expected: expected.clone(),
                    actual: descriptor.digest,
                });
            }
            Some(expected) => expected.clone(),
            None => descriptor.digest.clone(),
        };
        let target = match reference.tag() {
            Some(tag) => tag.to_owned(),
            None => digest.to_string(),
        };
        let answer = self
            .put_manifest(reference, &target, media_type, raw, &digest)
            .await?;
        if let Some(subject) = subject_of(raw)
            && answer.header("oci-subject").is_none()
        {
            self.enter_referrer(reference, &subject, &descriptor, raw)
                .await?;
        }
        Ok(Descriptor {
            digest,
            ..descriptor
        })
    }

    async fn put_manifest(
        &self,
        reference: &Reference,
        target: &str,
        media_type: &str,
        raw: &[u8],
        digest: &Digest,
    ) -> Result<Answer, RegistryError> {
        let endpoint = self.push_endpoint(reference)?;
        let subject = format!("manifest {reference}");
        let mut headers = HeaderMap::new();
        let media_type =
            HeaderValue::from_str(media_type).map_err(|_| RegistryError::Unsupported {
                operation: "push",
                subject: subject.clone(),
                reason: format!("{media_type:?} is no media type"),
            })?;
        headers.insert(CONTENT_TYPE, media_type);
        let call = Call {
            endpoint: &endpoint,
            method: Method::PUT,
            target: Target::Repository(format!("manifests/{target}")),
            headers,
            body: body_of(raw),
            scopes: vec![Scope::new(&endpoint.repository, Actions::Push)],
            subject: &subject,
            action: "pushing",
            expected: &[200, 201, 202],
        };
        let mut backoff = Backoff::new(self.transport().settings.retry);
        loop {
            let failure = match self.transport().attempt(&call, LONGEST_ERROR).await {
                Ok(answer) => match answer
                    .header("docker-content-digest")
                    .map(str::parse::<Digest>)
                {
                    // What was changed on its way is a manifest too, and has now the tag.
                    Some(Ok(actual))
                        if actual != *digest && actual.algorithm() == digest.algorithm() =>
                    {
                        let error = RegistryError::DigestMismatch {
                            subject: subject.clone(),
                            endpoint: endpoint.authority.clone(),
                            expected: digest.clone(),
                            actual,
                        };
                        Failure {
                            error,
                            retry: Retry::Few(ATTEMPTS_AT_WRONG_CONTENT),
                        }
                    }
                    _ => return Ok(answer),
                },
                Err(failure) => {
                    changed_on_its_way(failure, &["MANIFEST_INVALID", "DIGEST_INVALID"])
                }
            };
            backoff.pause(failure).await?;
        }
    }

    /// Adds a manifest to the index under the tag that names its subject (distribution-spec, referrers tag schema).
    async fn enter_referrer(
        &self,
        reference: &Reference,
        subject: &Digest,
        descriptor: &Descriptor,
        raw: &[u8],
    ) -> Result<(), RegistryError> {
        let tag = referrers_tag(subject);
        let named = reference
            .clone()
            .without_version()
            .with_tag(&tag)
            .map_err(|error| RegistryError::Unsupported {
                operation: "push",
                subject: reference.to_string(),
                reason: error.to_string(),
            })?;
        let mut index = self.referrers_by_tag(&named).await?;
        if index
            .manifests
            .iter()
            .any(|known| known.digest == descriptor.digest)
        {
            return Ok(());
        }
        let artifact: Artifact = serde_json::from_slice(raw).unwrap_or_default();
        let mut entry = descriptor.clone();
        entry.artifact_type = artifact
            .artifact_type
            .or(artifact.config.map(|config| config.media_type));
        entry.annotations = artifact.annotations.unwrap_or_default();
        index.manifests.push(entry);
        let raw = oci::Parsed::of(index);
        self.put_manifest(&named, &tag, media_type::OCI_INDEX, raw.raw(), raw.digest())
            .await?;
        Ok(())
    }

    /// Deletes a manifest by its digest, or a tag where the registry can.
    pub async fn delete_manifest(&self, reference: &Reference) -> Result<(), RegistryError> {
        let path = format!("manifests/{}", version(reference));
        self.delete(reference, path, format!("manifest {reference}"))
            .await
    }

    /// Deletes a blob from a repository.
    pub async fn delete_blob(
        &self,
        repository: &Reference,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        self.delete(
            repository,
            format!("blobs/{digest}"),
            format!("blob {}@{digest}", repository.name()),
        )
        .await
    }

    async fn delete(
        &self,
        repository: &Reference,
        path: String,
        subject: String,
    ) -> Result<(), RegistryError> {
        let endpoint = self.push_endpoint(repository)?;
        let call = Call {
            endpoint: &endpoint,
            method: Method::DELETE,
            target: Target::Repository(path),
            headers: HeaderMap::new(),
            body: Body::Empty,
            scopes: vec![Scope::new(&endpoint.repository, Actions::Delete)],
            subject: &subject,
            action: "deleting",
            expected: &[200, 202, 204],
        };
        match self.transport().call(&call, LONGEST_ERROR).await {
            Ok(_) => Ok(()),
            Err(RegistryError::Refused { status: 405, .. }) => Err(RegistryError::Unsupported {
                operation: "delete",
                subject,
                reason: format!("{} does not allow it", endpoint.authority),
            }),
            Err(error) => Err(error),
        }
    }
}

async fn blob_exists(
    client: &Client,
    endpoint: &Endpoint,
    descriptor: &Descriptor,
    subject: &str,
    scopes: Vec<Scope>,
) -> Result<bool, RegistryError> {
    let call = Call {
        endpoint,
        method: Method::HEAD,
        target: Target::Repository(format!("blobs/{}", descriptor.digest)),
        headers: HeaderMap::new(),
        body: Body::Empty,
        scopes,
        subject,
        action: "looking for",
        expected: &[200, 404],
    };
    let answer = client.transport().call(&call, 0).await?;
    let size = answer
        .header("content-length")
        .and_then(|length| length.parse::<u64>().ok());
    Ok(answer.status == 200 && size.is_none_or(|size| size == descriptor.size))
}

impl Push<'_> {
    async fn exists(&self) -> Result<bool, RegistryError> {
        blob_exists(
            self.client,
            &self.endpoint,
            self.descriptor,
            &self.subject,
            self.scopes.clone(),
        )
        .await
    }

    fn call(&self, method: Method, target: Target, expected: &'static [u16]) -> Call<'_> {
        Call {
            endpoint: &self.endpoint,
            method,
            target,
            headers: HeaderMap::new(),
            body: Body::Empty,
            scopes: self.scopes.clone(),
            subject: &self.subject,
            action: "pushing",
            expected,
        }
    }

    /// Asks the registry to take the blob from another repository; that it does not is no failure.
    async fn mount(&self, from: &str) -> bool {
        let query = format!(
            "blobs/uploads/?mount={}&from={from}",
            self.descriptor.digest
        );
        let mut call = self.call(Method::POST, Target::Repository(query), &[201, 202]);
        call.scopes.push(Scope::new(from, Actions::Pull));
        match self.client.transport().call(&call, LONGEST_ERROR).await {
            Ok(answer) if answer.status == 201 => true,
            // A session was opened instead. It is not used: its login may not be enough to go on.
            Ok(answer) => {
                if let Ok(url) = given_url(&call, &answer.url, answer.header("location")) {
                    self.cancel(url).await;
                }
                false
            }
            Err(error) => {
                tracing::debug!(%error, from, "not mounted");
                false
            }
        }
    }

    async fn cancel(&self, session: reqwest::Url) {
        let call = self.call(
            Method::DELETE,
            Target::Url(session),
            &[200, 202, 204, 404, 405],
        );
        let _ = self.client.transport().attempt(&call, LONGEST_ERROR).await;
    }

    async fn upload(&self) -> Result<(), RegistryError> {
        let mut backoff = Backoff::new(self.client.transport().settings.retry);
        loop {
            let attempt = match self.options.form {
                UploadForm::Monolithic => self.monolithic().await,
                UploadForm::Chunked(size) => self.chunked(size.max(1), &mut backoff).await,
            };
            let failure = match attempt {
                Ok(()) => return Ok(()),
                Err(failure) => changed_on_its_way(
                    failure,
                    &[
                        "DIGEST_INVALID",
                        "SIZE_INVALID",
                        "BLOB_UPLOAD_INVALID",
                        "BLOB_UPLOAD_UNKNOWN",
                        "RANGE_INVALID",
                    ],
                ),
            };
            backoff.pause(failure).await?;
            // The answer may have been lost, not the blob.
            if self.exists().await? {
                return Ok(());
            }
        }
    }

    async fn session(&self) -> Result<(reqwest::Url, Answer), Failure> {
        let call = self.call(
            Method::POST,
            Target::Repository("blobs/uploads/".to_owned()),
            &[202],
        );
        let answer = self
            .client
            .transport()
            .attempt(&call, LONGEST_ERROR)
            .await?;
        let url = given_url(&call, &answer.url, answer.header("location"))?;
        Ok((url, answer))
    }

    fn part(&self, start: u64, end: u64) -> Body {
        Body::Upload(Upload {
            source: self.source.clone(),
            start,
            end,
            progress: self.options.progress.clone(),
        })
    }

    async fn monolithic(&self) -> Result<(), Failure> {
        let (session, _) = self.session().await?;
        self.commit(session, self.part(0, self.descriptor.size))
            .await
    }

    /// Ends a session: with all of the blob, or with nothing when the registry has it all.
    async fn commit(&self, mut session: reqwest::Url, body: Body) -> Result<(), Failure> {
        session
            .query_pairs_mut()
            .append_pair("digest", &self.descriptor.digest.to_string());
        let mut call = self.call(Method::PUT, Target::Url(session), &[200, 201, 204]);
        call.headers.insert(CONTENT_TYPE, OCTETS);
        call.body = body;
        let answer = self
            .client
            .transport()
            .attempt(&call, LONGEST_ERROR)
            .await?;
        if answer.status == 201 || self.exists().await.map_err(Failure::never)? {
            return Ok(());
        }
        Err(Failure::soon(RegistryError::Unavailable {
            subject: self.subject.clone(),
            endpoint: self.endpoint.authority.clone(),
            status: answer.status.as_u16(),
            message: "the blob is not there after its upload".to_owned(),
        }))
    }

    /// Sends the blob in pieces; each that gets through takes back the failures before it.
    async fn chunked(&self, size: u64, backoff: &mut Backoff) -> Result<(), Failure> {
        let (mut session, answer) = self.session().await?;
        let least = answer
            .header("oci-chunk-min-length")
            .and_then(|length| length.parse::<u64>().ok());
        let size = size.max(least.unwrap_or(0));
        let mut offset = 0;
        while offset < self.descriptor.size {
            let end = offset.saturating_add(size).min(self.descriptor.size);
            let sent = self.chunk(&session, offset, end).await;
            let (next, reached) = match sent {
                Ok(position) => position,
                Err(failure) if failure.retry == Retry::Never => return Err(failure),
                Err(failure) => {
                    backoff.pause(failure).await.map_err(Failure::never)?;
                    self.position(&session, offset).await?
                }
            };
            if reached > end || reached < offset {
                return Err(Failure::soon(self.lost(reached)));
            }
            if reached > offset {
                backoff.reset();
            }
            (session, offset) = (next, reached);
        }
        self.commit(session, Body::Empty).await
    }

    async fn chunk(
        &self,
        session: &reqwest::Url,
        start: u64,
        end: u64,
    ) -> Result<(reqwest::Url, u64), Failure> {
        let mut call = self.call(Method::PATCH, Target::Url(session.clone()), &[202]);
        let range = format!("{start}-{}", end - 1);
        call.headers.insert(CONTENT_TYPE, OCTETS);
        call.headers.insert(
            CONTENT_RANGE,
            HeaderValue::from_str(&range).expect("digits"),
        );
        call.body = self.part(start, end);
        let answer = self
            .client
            .transport()
            .attempt(&call, LONGEST_ERROR)
            .await?;
        let next = given_url(&call, &answer.url, answer.header("location"))?;
        // Who does not say has it all.
        let reached = answer
            .header("range")
            .map_or(Some(end), |range| received(range, start));
        Ok((
            next,
            reached.ok_or_else(|| Failure::soon(self.lost(start)))?,
        ))
    }

    /// Asks how much of the blob a session has.
    async fn position(
        &self,
        session: &reqwest::Url,
        offset: u64,
    ) -> Result<(reqwest::Url, u64), Failure> {
        let call = self.call(Method::GET, Target::Url(session.clone()), &[204]);
        let answer = self
            .client
            .transport()
            .attempt(&call, LONGEST_ERROR)
            .await?;
        let next = match answer.header("location") {
            Some(location) => given_url(&call, &answer.url, Some(location))?,
            None => session.clone(),
        };
        let reached = answer
            .header("range")
            .map_or(Some(offset), |range| received(range, offset));
        Ok((
            next,
            reached.ok_or_else(|| Failure::soon(self.lost(offset)))?,
        ))
    }

    fn lost(&self, offset: u64) -> RegistryError {
        RegistryError::Malformed {
            subject: self.subject.clone(),
            endpoint: self.endpoint.authority.clone(),
            message: format!("the upload does not go on at byte {offset}"),
        }
    }
}

/// Returns how many bytes a registry says it has. `0-0` is nothing where nothing was acknowledged before.
fn received(range: &str, acknowledged: u64) -> Option<u64> {
    let range = range.trim().trim_start_matches("bytes=");
    let (start, end) = range.split_once('-')?;
    let end: u64 = end.parse().ok()?;
    match (start, end) {
        ("0", 0) if acknowledged == 0 => Some(0),
        ("0", end) => end.checked_add(1),
        _ => None,
    }
}

/// A registry that refuses what it got for what it is may have got something else.
fn changed_on_its_way(failure: Failure, codes: &[&str]) -> Failure {
    match &failure.error {
        RegistryError::Refused { status: 416, .. } => {}
        RegistryError::Refused { code, .. } if codes.contains(&code.as_str()) => {}
        // An upload session that is gone; the repository was there when it was opened.
        RegistryError::NotFound { .. } if codes.contains(&"BLOB_UPLOAD_UNKNOWN") => {}
        _ => return failure,
    }
    Failure {
        retry: Retry::Few(ATTEMPTS_AT_WRONG_CONTENT),
        ..failure
    }
}

fn blob_subject(repository: &Reference, descriptor: &Descriptor) -> String {
    format!("blob {}@{}", repository.name(), descriptor.digest)
}

#[derive(Debug, Default, Deserialize)]
struct Artifact {
    #[serde(rename = "artifactType", default)]
    artifact_type: Option<String>,
    #[serde(default)]
    config: Option<ArtifactConfig>,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
struct ArtifactConfig {
    #[serde(rename = "mediaType", default)]
    media_type: String,
}

fn subject_of(raw: &[u8]) -> Option<Digest> {
    #[derive(Deserialize)]
    struct WithSubject {
        subject: Option<Subject>,
    }
    #[derive(Deserialize)]
    struct Subject {
        digest: Digest,
    }
    let manifest: WithSubject = serde_json::from_slice(raw).ok()?;
    Some(manifest.subject?.digest)
}

/// Returns the tag of the index that stands in for the referrers of a manifest.
pub(crate) fn referrers_tag(subject: &Digest) -> String {
    let tag = subject.to_string().replace(':', "-");
    tag.chars().take(128).collect()
}

/// Returns an index without entries.
pub(crate) fn empty_index() -> Index {
    Index::new(media_type::Naming::Oci, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_of_an_upload_says_what_was_received() {
        assert_eq!(received("0-0", 0), Some(0));
        assert_eq!(received("0-9", 0), Some(10));
        assert_eq!(received("bytes=0-9", 5), Some(10));
        assert_eq!(received("0-0", 1), Some(1));
        for range in ["", "5-9", "0-", "0-x", "0-18446744073709551615"] {
            assert_eq!(received(range, 0), None, "{range}");
        }
    }

    #[test]
    fn the_subject_of_a_manifest_is_found() {
        let digest = Digest::sha256_of(b"x");
        let raw = format!(r#"{{"subject":{{"digest":"{digest}","size":1,"mediaType":"m"}}}}"#);
        assert_eq!(subject_of(raw.as_bytes()), Some(digest.clone()));
        assert_eq!(subject_of(b"{}"), None);
        assert_eq!(referrers_tag(&digest), format!("sha256-{}", digest.hex()));
    }
}
