//! What a build takes from outside.

use oci::{Digest, Platform, PlatformMatcher, Reference};
use serde_json::{Value, json};

use crate::purl::{Package, package_url};
use crate::url::without_credentials;

/// Everything that graphs take from outside, in the order in which it was found until it is tidied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    pub images: Vec<ImageSource>,
    pub git: Vec<GitSource>,
    pub http: Vec<HttpSource>,
    /// Names of directories of the client.
    pub locals: Vec<String>,
    pub secrets: Vec<SecretUse>,
    pub ssh: Vec<SecretUse>,
    /// A step may use the network.
    pub network_access: bool,
    /// Something is taken that is not named here.
    pub incomplete: bool,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSource {
    pub reference: Reference,
    pub platform: Option<Platform>,
    pub digest: Option<Digest>,
    /// From a layout, not from a registry.
    pub local: bool,
}

/// A commit of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitSource {
    /// With the reference that was asked for as its fragment.
    pub url: String,
    pub commit: String,
}

/// A file behind a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSource {
    pub url: String,
    pub digest: Digest,
}

/// A secret or an ssh agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretUse {
    pub id: String,
    /// No use needs it.
    pub optional: bool,
}

impl Sources {
    pub fn add_image(&mut self, image: ImageSource) {
        let is_same = |known: &ImageSource| {
            known.reference == image.reference
                && known.local == image.local
                && match (&known.platform, &image.platform) {
                    (Some(known), Some(new)) => known.full() == new.full(),
                    (known, new) => known.is_none() && new.is_none(),
                }
        };
        if !self.images.iter().any(is_same) {
            self.images.push(image);
        }
    }

    pub fn add_git(&mut self, url: &str, commit: &str) {
        let url = without_credentials(url);
        if !self.git.iter().any(|known| known.url == url) {
            let commit = commit.to_owned();
            self.git.push(GitSource { url, commit });
        }
    }

    pub fn add_http(&mut self, url: &str, digest: Digest) {
        let url = without_credentials(url);
        if !self.http.iter().any(|known| known.url == url) {
            self.http.push(HttpSource { url, digest });
        }
    }

    pub fn add_local(&mut self, name: &str) {
        if !self.locals.iter().any(|known| known == name) {
            self.locals.push(name.to_owned());
        }
    }

    pub fn add_secret(&mut self, id: &str, optional: bool) {
        add_use(&mut self.secrets, id, optional);
    }

    pub fn add_ssh(&mut self, id: &str, optional: bool) {
        let id = if id.is_empty() { "default" } else { id };
        add_use(&mut self.ssh, id, optional);
    }

    /// Adds what another build took.
    pub fn merge(&mut self, other: &Self) {
        for image in &other.images {
            self.add_image(image.clone());
        }
        for git in &other.git {
            self.add_git(&git.url, &git.commit);
        }
        for http in &other.http {
            self.add_http(&http.url, http.digest.clone());
        }
        for name in &other.locals {
            self.add_local(name);
        }
        for secret in &other.secrets {
            self.add_secret(&secret.id, secret.optional);
        }
        for agent in &other.ssh {
            self.add_ssh(&agent.id, agent.optional);
        }
        self.network_access |= other.network_access;
        self.incomplete |= other.incomplete;
    }

    /// Leaves out images for other platforms, where an image of one name was taken for all of `platforms`.
    pub fn keep_platform(&mut self, platform: &Platform, platforms: &[Platform]) {
        let of = |image: &ImageSource, wanted: &Platform| {
            let matcher = PlatformMatcher::runnable(wanted);
            let own = image.platform.as_ref();
            own.is_some_and(|own| matcher.matches(own))
        };
        let images = self.images.clone();
        let for_all = |reference: &Reference| {
            platforms.iter().all(|wanted| {
                let mut named = images.iter().filter(|image| image.reference == *reference);
                named.any(|image| of(image, wanted))
            })
        };
        self.images.retain(|image| {
            !for_all(&image.reference)
                || image.platform.as_ref().is_none_or(|own| {
                    own.os == platform.os && own.architecture == platform.architecture
                })
        });
    }

    /// Sorts everything, and leaves out images by digest that are there by their tag.
    pub fn tidy(&mut self) {
        let name = |reference: &Reference| {
            let bare = reference.clone().without_version();
            (bare.name(), reference.tag().unwrap_or("latest").to_owned())
        };
        let tagged: Vec<_> = self
            .images
            .iter()
            .filter(|image| image.reference.digest().is_none())
            .map(|image| name(&image.reference))
            .collect();
        self.images.retain(|image| {
            image.reference.digest().is_none() || !tagged.contains(&name(&image.reference))
        });
        self.images
            .sort_by_cached_key(|image| image.reference.to_string());
        self.git.sort_by(|a, b| a.url.cmp(&b.url));
        self.http.sort_by(|a, b| a.url.cmp(&b.url));
        self.locals.sort();
        self.secrets.sort_by(|a, b| a.id.cmp(&b.id));
        self.ssh.sort_by(|a, b| a.id.cmp(&b.id));
    }

    /// Whether all that is taken is named with its digest.
    pub(crate) fn is_complete(&self) -> bool {
        !self.incomplete && self.locals.is_empty()
    }

    /// Returns the materials: URI and digests.
    pub(crate) fn materials(&self) -> Vec<Value> {
        let images = self.images.iter().map(|image| {
            let kind = match image.local {
                true => Package::Oci,
                false => Package::Docker,
            };
            let uri = package_url(kind, &image.reference, image.platform.as_ref());
            match &image.digest {
                Some(digest) => json!({"uri": uri, "digest": digest_set(digest)}),
                None => json!({"uri": uri}),
            }
        });
        let git = self
            .git
            .iter()
            .map(|git| json!({"uri": git.url, "digest": commit_set(&git.commit)}));
        let http = self
            .http
            .iter()
            .map(|http| json!({"uri": http.url, "digest": digest_set(&http.digest)}));
        images.chain(git).chain(http).collect()
    }
}

fn add_use(known: &mut Vec<SecretUse>, id: &str, optional: bool) {
    match known.iter_mut().find(|known| known.id == id) {
        Some(known) => known.optional &= optional,
        None => known.push(SecretUse {
            id: id.to_owned(),
            optional,
        }),
    }
}

pub(crate) fn digest_set(digest: &Digest) -> Value {
    json!({ digest.algorithm().to_string(): digest.hex() })
}

pub(crate) fn commit_set(commit: &str) -> Value {
    let name = if commit.len() == 64 { "sha256" } else { "sha1" };
    json!({ name: commit })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str, platform: &str) -> ImageSource {
        ImageSource {
            reference: Reference::parse_normalized(name).unwrap(),
            platform: Some(platform.parse().unwrap()),
            digest: None,
            local: false,
        }
    }

    #[test]
    fn an_image_by_digest_is_left_out_beside_its_tag() {
        let digest = format!("busybox:1@sha256:{}", "a".repeat(64));
        let mut sources = Sources::default();
        sources.add_image(image(&digest, "linux/amd64"));
        sources.add_image(image("busybox:1", "linux/amd64"));
        sources.add_image(image("busybox:1", "linux/amd64"));
        sources.add_image(image("alpine", "linux/amd64"));
        sources.tidy();
        let names: Vec<String> = sources
            .images
            .iter()
            .map(|image| image.reference.familiar())
            .collect();
        assert_eq!(names, ["alpine", "busybox:1"]);
    }

    #[test]
    fn images_of_other_platforms_are_left_out() {
        let platforms = [
            "linux/amd64".parse().unwrap(),
            "linux/arm64".parse().unwrap(),
        ];
        let mut sources = Sources::default();
        sources.add_image(image("a", "linux/amd64"));
        sources.add_image(image("a", "linux/arm64"));
        sources.add_image(image("tool", "linux/amd64"));
        sources.keep_platform(&platforms[1], &platforms);
        let left: Vec<String> = sources
            .images
            .iter()
            .map(|image| image.platform.clone().unwrap().to_string())
            .collect();
        assert_eq!(left, ["linux/arm64", "linux/amd64"]);
    }

    #[test]
    fn a_secret_is_optional_only_where_all_uses_are() {
        let mut sources = Sources::default();
        sources.add_secret("a", true);
        sources.add_secret("a", false);
        sources.add_ssh("", true);
        assert!(!sources.secrets[0].optional);
        assert_eq!(sources.ssh[0].id, "default");
    }
}
