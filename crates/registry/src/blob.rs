//! Blobs coming in: checked as they stream, taken up again where they were cut.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, stream};
use oci::{Descriptor, Digester, Reference};
use reqwest::header::{CONTENT_ENCODING, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::io::AsyncReadExt;

use crate::auth::{Actions, Scope};
use crate::client::{ATTEMPTS_AT_WRONG_CONTENT, Attempts};
use crate::content::Progress;
use crate::http::{Body, Outgoing};
use crate::retry::{Backoff, Failure, Retry};
use crate::settings::{Endpoint, Host};
use crate::transport::{Call, Target};
use crate::{Client, RegistryError, layout};

const PIECE: usize = 256 << 10;
/// Bytes after which an interrupted stream counts as one that gets on.
const PROGRESS: u64 = 16 << 10;

/// The bytes of a blob, in order.
///
/// [`next`](Self::next) gives `None` only when all bytes came and have the digest; until then what came is not to be
/// relied on, and after an error it is to be thrown away.
pub struct BlobStream {
    client: Client,
    repository: Reference,
    descriptor: Descriptor,
    subject: String,
    hosts: std::vec::IntoIter<Host>,
    attempts: Attempts,
    backoff: Backoff,
    /// The host that is asked now, and what is open there.
    host: Option<Host>,
    open: Open,
    digester: Digester,
    /// The offset when the connection was opened.
    opened_at: u64,
    progress: Option<Progress>,
}

enum Open {
    Nothing,
    Response {
        response: Response,
        url: Url,
        /// Bytes to leave out: the server does not do ranges.
        skip: u64,
    },
    File(tokio::fs::File),
    Finished,
    /// An error was given out.
    Failed,
}

impl fmt::Debug for BlobStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("BlobStream")
            .field("subject", &self.subject)
            .field("offset", &self.digester.length())
            .field("size", &self.descriptor.size)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Opens a blob of a repository; the version of `repository` is not looked at.
    ///
    /// A connection that is cut is opened again where it ended, if need be at the next source. `progress` is told the
    /// number of bytes so far.
    pub async fn fetch_blob(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
        progress: Option<Progress>,
    ) -> Result<BlobStream, RegistryError> {
        let digest = &descriptor.digest;
        let repository = repository
            .clone()
            .without_version()
            .with_digest(digest.clone());
        let subject = format!("blob {repository}");
        let mut blob = BlobStream {
            hosts: self.pull_hosts(&repository)?.into_iter(),
            attempts: Attempts::new(&subject),
            backoff: Backoff::new(self.transport().settings.retry),
            host: None,
            open: Open::Nothing,
            digester: Digester::new(digest.algorithm()),
            opened_at: 0,
            client: self.clone(),
            repository,
            descriptor: descriptor.clone(),
            subject,
            progress,
        };
        if descriptor.size > 0 {
            blob.open().await?;
        }
        Ok(blob)
    }

    /// Returns a whole blob that is not larger than `limit`, asking again where it was changed on its way.
    pub async fn fetch_blob_bytes(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        if descriptor.size > limit {
            return Err(RegistryError::TooLarge {
                subject: format!("blob {}@{}", repository.name(), descriptor.digest),
                endpoint: repository.domain().to_owned(),
                limit,
            });
        }
        let mut backoff = Backoff::new(self.transport().settings.retry);
        loop {
            let failure = match self.collect_blob(repository, descriptor).await {
                Ok(bytes) => return Ok(bytes),
                Err(error @ RegistryError::DigestMismatch { .. }) => Failure {
                    error,
                    retry: Retry::Few(ATTEMPTS_AT_WRONG_CONTENT),
                },
                Err(error) => return Err(error),
            };
            backoff.pause(failure).await?;
        }
    }

    async fn collect_blob(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut blob = self.fetch_blob(repository, descriptor, None).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = blob.next().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }
}

impl BlobStream {
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Returns how many bytes were given out.
    pub fn offset(&self) -> u64 {
        self.digester.length()
    }

    /// Returns the next piece, or `None` after the last when the whole is right.
    ///
    /// After an error there are only errors.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let next = self.advance().await;
        if next.is_err() {
            self.open = Open::Failed;
        }
        next
    }

    async fn advance(&mut self) -> Result<Option<Bytes>, RegistryError> {
        match self.open {
            Open::Finished => return Ok(None),
            Open::Failed => {
                return Err(RegistryError::Interrupted {
                    subject: self.subject.clone(),
                    endpoint: self.source(),
                    offset: self.offset(),
                    source: "it failed before".into(),
                });
            }
            _ => {}
        }
        loop {
            if self.offset() == self.descriptor.size {
                self.finish()?;
                return Ok(None);
            }
            if matches!(self.open, Open::Nothing) {
                self.open().await?;
            }
            match self.read().await {
                Ok(piece) if piece.is_empty() => {}
                Ok(piece) => {
                    self.digester.update(&piece);
                    if let Some(progress) = &self.progress {
                        progress(self.digester.length());
                    }
                    return Ok(Some(piece));
                }
                Err(failure) => {
                    self.open = Open::Nothing;
                    if self.offset() - self.opened_at >= PROGRESS {
                        self.backoff.reset();
                    }
                    self.pause(failure).await?;
                }
            }
        }
    }

    /// Returns the pieces as a stream, which ends after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, RegistryError>> + Send {
        stream::unfold(Some(self), |blob| async move {
            let mut blob = blob?;
            match blob.next().await {
                Ok(Some(piece)) => Some((Ok(piece), Some(blob))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    fn finish(&mut self) -> Result<(), RegistryError> {
        let digester = std::mem::take(&mut self.digester);
        let size = digester.length();
        let actual = digester.finish();
        if actual != self.descriptor.digest {
            return Err(RegistryError::DigestMismatch {
                subject: self.subject.clone(),
                endpoint: self.source(),
                expected: self.descriptor.digest.clone(),
                actual,
            });
        }
        tracing::debug!(blob = %self.subject, size, "complete");
        self.open = Open::Finished;
        Ok(())
    }

    fn source(&self) -> String {
        match &self.host {
            Some(Host::Remote(endpoint)) => endpoint.authority.clone(),
            Some(Host::Layout(root)) => layout::name(root),
            None => self.repository.domain().to_owned(),
        }
    }

    /// Opens the blob at the present offset, at the present host or one after it.
    async fn open(&mut self) -> Result<(), RegistryError> {
        loop {
            let host = match &self.host {
                Some(host) => host.clone(),
                None => match self.hosts.next() {
                    Some(host) => self.host.insert(host).clone(),
                    None => {
                        let attempts =
                            std::mem::replace(&mut self.attempts, Attempts::new(&self.subject));
                        return Err(attempts.into_error());
                    }
                },
            };
            let opened = match &host {
                Host::Remote(endpoint) => self.open_remote(endpoint).await,
                Host::Layout(root) => self.open_file(root).await.map_err(Failure::never),
            };
            match opened {
                Ok(open) => {
                    self.open = open;
                    self.opened_at = self.offset();
                    return Ok(());
                }
                Err(failure) => self.pause(failure).await?,
            }
        }
    }

    /// Waits for another attempt, or turns to the next host when there is none.
    async fn pause(&mut self, failure: Failure) -> Result<(), RegistryError> {
        let Err(error) = self.backoff.pause(failure).await else {
            return Ok(());
        };
        if let Some(host) = self.host.take() {
            self.attempts.add(&self.client, &host, error)?;
        }
        self.backoff.reset();
        Ok(())
    }

    async fn open_file(&self, root: &std::path::Path) -> Result<Open, RegistryError> {
        use tokio::io::AsyncSeekExt;
        let path = layout::blob(
            root,
            &self.repository,
            &self.descriptor.digest,
            &self.subject,
        )?;
        let failed = |source| RegistryError::Io {
            action: "read",
            path: path.clone(),
            source,
        };
        let mut file = tokio::fs::File::open(&path).await.map_err(failed)?;
        file.set_max_buf_size(PIECE);
        file.seek(std::io::SeekFrom::Start(self.offset()))
            .await
            .map_err(failed)?;
        Ok(Open::File(file))
    }

    async fn open_remote(&self, endpoint: &Arc<Endpoint>) -> Result<Open, Failure> {
        let offset = self.offset();
        let mut headers = HeaderMap::new();
        headers.insert(
            reqwest::header::ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        );
        if offset > 0 {
            let range = format!("bytes={offset}-");
            headers.insert(RANGE, HeaderValue::from_str(&range).expect("digits"));
        }
        let call = Call {
            endpoint,
            method: Method::GET,
            target: Target::Repository(format!("blobs/{}", self.descriptor.digest)),
            headers,
            body: Body::Empty,
            scopes: vec![Scope::new(&endpoint.repository, Actions::Pull)],
            subject: &self.subject,
            action: "fetching",
            expected: if offset > 0 { &[200, 206] } else { &[200] },
        };
        let (outgoing, response) = self.client.transport().open(&call).await?;
        self.check_head(&outgoing, &response)?;
        let skip = if response.status() == StatusCode::PARTIAL_CONTENT {
            0
        } else {
            offset
        };
        Ok(Open::Response {
            url: response.url().clone(),
            response,
            skip,
        })
    }

    /// Refuses early what cannot be the rest of the blob.
    fn check_head(&self, outgoing: &Outgoing<'_>, response: &Response) -> Result<(), Failure> {
        let malformed = |message: String| Failure {
            error: crate::http::malformed(outgoing, &message),
            retry: Retry::Few(ATTEMPTS_AT_WRONG_CONTENT),
        };
        let (offset, size) = (self.offset(), self.descriptor.size);
        let header = |name| {
            response
                .headers()
                .get(name)
                .and_then(|value: &HeaderValue| value.to_str().ok())
        };
        if let Some(encoding) = header(CONTENT_ENCODING)
            && !encoding.eq_ignore_ascii_case("identity")
        {
            return Err(malformed(format!(
                "its bytes come in the encoding {encoding:?}"
            )));
        }
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        if partial {
            let range = header(CONTENT_RANGE).and_then(parse_content_range);
            match range {
                Some((start, total))
                    if start == offset && total.is_none_or(|total| total == size) => {}
                _ => {
                    return Err(malformed(
                        "it sends another part than was asked for".to_owned(),
                    ));
                }
            }
        }
        let expected = if partial { size - offset } else { size };
        match header(reqwest::header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok())
        {
            Some(actual) if actual != expected => Err(Failure {
                error: RegistryError::SizeMismatch {
                    subject: self.subject.clone(),
                    endpoint: self.source(),
                    expected,
                    actual,
                },
                retry: Retry::Few(ATTEMPTS_AT_WRONG_CONTENT),
            }),
            _ => Ok(()),
        }
    }

    /// Returns a piece of what is open; it may be empty.
    async fn read(&mut self) -> Result<Bytes, Failure> {
        let silence = self.client.transport().settings.timeouts.silence;
        let offset = self.offset();
        let cut = |endpoint: String, source: crate::Cause| {
            Failure::soon(RegistryError::Interrupted {
                subject: self.subject.clone(),
                endpoint,
                offset,
                source,
            })
        };
        let mut piece = match &mut self.open {
            Open::Nothing | Open::Finished | Open::Failed => return Ok(Bytes::new()),
            Open::File(file) => {
                let mut buffer = bytes::BytesMut::with_capacity(PIECE);
                let read = file.read_buf(&mut buffer).await.map_err(|error| {
                    Failure::never(RegistryError::Interrupted {
                        subject: self.subject.clone(),
                        endpoint: "this machine".to_owned(),
                        offset,
                        source: error.into(),
                    })
                })?;
                if read == 0 {
                    return Err(Failure::never(self.wrong_size(offset)));
                }
                buffer.freeze()
            }
            Open::Response {
                response,
                url,
                skip,
            } => {
                let endpoint = url.host_str().unwrap_or_default().to_owned();
                match tokio::time::timeout(silence, response.chunk()).await {
                    Ok(Ok(Some(piece))) if *skip > 0 => {
                        let left_out = (*skip).min(piece.len() as u64);
                        *skip -= left_out;
                        piece.slice(left_out as usize..)
                    }
                    Ok(Ok(Some(piece))) => piece,
                    Ok(Ok(None)) => return Err(cut(endpoint, "it ended too early".into())),
                    Ok(Err(error)) => {
                        let error = error.without_url();
                        return Err(cut(endpoint, innermost(&error).into()));
                    }
                    Err(_) => {
                        if let Some(Host::Remote(endpoint)) = &self.host {
                            let connections = &self.client.transport().connections;
                            connections.give_up(&endpoint.tls);
                        }
                        return Err(Failure::soon(RegistryError::Timeout {
                            subject: self.subject.clone(),
                            endpoint,
                            action: "fetching",
                            after: silence,
                        }));
                    }
                }
            }
        };
        let left = self.descriptor.size - offset;
        if piece.len() as u64 > left {
            let actual = offset + piece.len() as u64;
            piece.truncate(left as usize);
            return Err(Failure {
                error: self.wrong_size(actual),
                retry: Retry::Few(ATTEMPTS_AT_WRONG_CONTENT),
            });
        }
        Ok(piece)
    }

    fn wrong_size(&self, actual: u64) -> RegistryError {
        RegistryError::SizeMismatch {
            subject: self.subject.clone(),
            endpoint: self.source(),
            expected: self.descriptor.size,
            actual,
        }
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Returns where a part begins and how large the whole is (RFC 9110, 14.4).
fn parse_content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end): (u64, u64) = (start.trim().parse().ok()?, end.trim().parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    (start <= end && total.is_none_or(|total| end < total)).then_some((start, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_checked() {
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(parse_content_range("bytes 0-0/*"), Some((0, None)));
        for text in [
            "",
            "bytes */10",
            "bytes 5-9",
            "bytes 9-5/10",
            "bytes 5-10/10",
            "items 0-1/2",
            "bytes -1-2/3",
        ] {
            assert_eq!(parse_content_range(text), None, "{text}");
        }
    }
}
