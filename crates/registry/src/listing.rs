//! What a registry knows: tags, referrers, and whether it is there.

use std::collections::BTreeSet;

use oci::{Descriptor, Digest, Index, Reference};
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;

use crate::answer::LONGEST_ERROR;
use crate::auth::{Actions, Scope};
use crate::client::{Attempts, LARGEST_MANIFEST};
use crate::http::{Body, is_same_origin};
use crate::push::{empty_index, referrers_tag};
use crate::settings::{Endpoint, Host};
use crate::transport::{Answer, Call, Target, given_url};
use crate::{Client, RegistryError};

const LARGEST_PAGE: u64 = 16 << 20;
const MOST_PAGES: usize = 10_000;

impl Client {
    /// Returns the tags of a repository, sorted.
    pub async fn tags(&self, repository: &Reference) -> Result<Vec<String>, RegistryError> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            tags: Option<Vec<String>>,
        }
        let subject = format!("the tags of {}", repository.name());
        let mut attempts = Attempts::new(&subject);
        for host in self.pull_hosts(repository)? {
            let Host::Remote(endpoint) = &host else {
                continue;
            };
            let call = get(endpoint, "tags/list?n=1000".to_owned(), &subject, &[200]);
            let mut tags = BTreeSet::new();
            let listed = self
                .pages(call, |page: Page| {
                    tags.extend(page.tags.unwrap_or_default())
                })
                .await;
            match listed {
                Ok(()) => return Ok(tags.into_iter().collect()),
                Err(error) => attempts.add(self, &host, error)?,
            }
        }
        Err(attempts.into_error())
    }

    /// Returns the manifests whose subject is `digest`, in the order of the registry, of one artifact type or of all.
    pub async fn referrers(
        &self,
        repository: &Reference,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let endpoint = self.push_endpoint(repository)?;
        let subject = format!("the referrers of {}@{digest}", repository.name());
        let mut target = format!("referrers/{digest}");
        if let Some(artifact_type) = artifact_type {
            let encoded = Url::parse_with_params("query:", [("artifactType", artifact_type)]);
            if let Some(query) = encoded.ok().as_ref().and_then(Url::query) {
                target = format!("{target}?{query}");
            }
        }
        let mut manifests = Vec::new();
        let call = get(&endpoint, target, &subject, &[200]);
        match self
            .pages(call, |page: Index| manifests.extend(page.manifests))
            .await
        {
            Ok(()) => {}
            Err(
                RegistryError::NotFound { .. }
                | RegistryError::Refused {
                    status: 400 | 405, ..
                },
            ) => {
                let tag = referrers_tag(digest);
                let named = repository.clone().without_version().with_tag(&tag);
                let named = named.map_err(|error| RegistryError::Unsupported {
                    operation: "referrers",
                    subject: subject.clone(),
                    reason: error.to_string(),
                })?;
                manifests = self.referrers_by_tag(&named).await?.manifests;
            }
            Err(error) => return Err(error),
        }
        // The registry may leave out the filter.
        if let Some(artifact_type) = artifact_type {
            manifests.retain(|entry| entry.artifact_type.as_deref() == Some(artifact_type));
        }
        Ok(manifests)
    }

    /// Returns the index under a tag that stands in for referrers, empty if there is none.
    pub(crate) async fn referrers_by_tag(&self, named: &Reference) -> Result<Index, RegistryError> {
        let endpoint = self.push_endpoint(named)?;
        let subject = format!("manifest {named}");
        let mut call = get(
            &endpoint,
            format!("manifests/{}", named.tag().unwrap_or_default()),
            &subject,
            &[200, 404],
        );
        call.headers
            .insert(ACCEPT, HeaderValue::from_static(oci::media_type::OCI_INDEX));
        let answer = self.transport().call(&call, LARGEST_MANIFEST).await?;
        match answer.status.as_u16() {
            404 => Ok(empty_index()),
            _ => parse(&call, &answer),
        }
    }

    /// Whether a registry answers, logged in or not.
    pub async fn ping(&self, registry: &str) -> Result<(), RegistryError> {
        self.greet(registry, &[200, 401]).await
    }

    /// Whether a registry takes the login there is for it.
    pub async fn authenticate(&self, registry: &str) -> Result<(), RegistryError> {
        self.greet(registry, &[200]).await
    }

    async fn greet(&self, registry: &str, expected: &[u16]) -> Result<(), RegistryError> {
        let endpoint = self.registry_endpoint(registry)?;
        let subject = format!("the registry {registry}");
        let call = Call {
            target: Target::Api(String::new()),
            scopes: Vec::new(),
            ..get(&endpoint, String::new(), &subject, expected)
        };
        self.transport().call(&call, LONGEST_ERROR).await?;
        Ok(())
    }

    /// Follows the pages of a listing.
    async fn pages<T: for<'de> Deserialize<'de>>(
        &self,
        mut call: Call<'_>,
        mut add: impl FnMut(T),
    ) -> Result<(), RegistryError> {
        for _ in 0..MOST_PAGES {
            let answer = self.transport().call(&call, LARGEST_PAGE).await?;
            add(parse(&call, &answer)?);
            let Some(next) = answer.header("link").and_then(next_link) else {
                return Ok(());
            };
            let url = given_url(&call, &answer.url, Some(next)).map_err(|failure| failure.error)?;
            if !is_same_origin(&url, &answer.url) || url == answer.url {
                break;
            }
            call.target = Target::Url(url);
        }
        Err(malformed(&call, "its pages do not end"))
    }
}

fn get<'a>(
    endpoint: &'a Endpoint,
    target: String,
    subject: &'a str,
    expected: &'a [u16],
) -> Call<'a> {
    Call {
        endpoint,
        method: Method::GET,
        target: Target::Repository(target),
        headers: HeaderMap::new(),
        body: Body::Empty,
        scopes: vec![Scope::new(&endpoint.repository, Actions::Pull)],
        subject,
        action: "asking for",
        expected,
    }
}

fn parse<T: for<'de> Deserialize<'de>>(
    call: &Call<'_>,
    answer: &Answer,
) -> Result<T, RegistryError> {
    serde_json::from_slice(&answer.body).map_err(|error| malformed(call, &error.to_string()))
}

fn malformed(call: &Call<'_>, message: &str) -> RegistryError {
    RegistryError::Malformed {
        subject: call.subject.to_owned(),
        endpoint: call.endpoint.authority.clone(),
        message: message.to_owned(),
    }
}

/// Returns the target of a header `Link: <target>; rel="next"` (RFC 8288).
fn next_link(header: &str) -> Option<&str> {
    header.split(',').find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = parameters.split(';').any(|parameter| {
            let parameter: String = parameter
                .chars()
                .filter(|character| !" \"".contains(*character))
                .collect();
            parameter.eq_ignore_ascii_case("rel=next")
        });
        is_next.then_some(target)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_in_the_link_header() {
        assert_eq!(
            next_link(r#"</v2/a/tags/list?n=2&last=b>; rel="next""#),
            Some("/v2/a/tags/list?n=2&last=b")
        );
        assert_eq!(next_link("<a>; rel=prev, <b>; rel=next"), Some("b"));
        assert_eq!(next_link("<a>; rel=\"prev\""), None);
        assert_eq!(next_link("nonsense"), None);
    }
}
