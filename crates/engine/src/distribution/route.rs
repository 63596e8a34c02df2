//! What a request asks for: pure parsing (distribution-spec, "Endpoints").

use oci::Digest;

/// An endpoint of the pull part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// Whether the API is spoken here.
    Base,
    Catalog(Page),
    Tags {
        name: String,
        page: Page,
    },
    Manifest {
        name: String,
        reference: ManifestReference,
    },
    Blob {
        name: String,
        digest: Digest,
    },
    Referrers,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ManifestReference {
    Tag(String),
    Digest(Digest),
}

/// Which part of a list is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) most: Option<usize>,
    pub(super) last: Option<String>,
}

/// Why a request asks for nothing that could be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Odd {
    NoEndpoint,
    Name,
    Tag,
    Digest,
    Number,
}

/// Reads the path and query of a request.
pub(super) fn route(path: &str, query: Option<&str>) -> Result<Route, Odd> {
    let path = decode(path).ok_or(Odd::NoEndpoint)?;
    let rest = path.strip_prefix("/v2").ok_or(Odd::NoEndpoint)?;
    let rest = match rest {
        "" | "/" => return Ok(Route::Base),
        rest => rest.strip_prefix('/').ok_or(Odd::NoEndpoint)?,
    };
    if rest == "_catalog" {
        return Ok(Route::Catalog(page(query)?));
    }
    if let Some(name) = rest.strip_suffix("/tags/list") {
        let name = checked(name)?;
        let page = page(query)?;
        return Ok(Route::Tags { name, page });
    }
    let (front, last) = rest.rsplit_once('/').ok_or(Odd::NoEndpoint)?;
    let (name, kind) = front.rsplit_once('/').ok_or(Odd::NoEndpoint)?;
    let digest = || last.parse::<Digest>().map_err(|_| Odd::Digest);
    match kind {
        "manifests" => {
            let name = checked(name)?;
            let reference = match last.contains(':') {
                true => ManifestReference::Digest(digest()?),
                false if is_tag(last) => ManifestReference::Tag(last.to_owned()),
                false => return Err(Odd::Tag),
            };
            Ok(Route::Manifest { name, reference })
        }
        "blobs" => Ok(Route::Blob {
            name: checked(name)?,
            digest: digest()?,
        }),
        "referrers" => {
            checked(name)?;
            digest()?;
            Ok(Route::Referrers)
        }
        _ => Err(Odd::NoEndpoint),
    }
}

/// Returns a path without its percent signs; `None` where they stand for no text.
fn decode(path: &str) -> Option<String> {
    if !path.contains('%') {
        return Some(path.to_owned());
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        if *byte != b'%' {
            bytes.push(*byte);
            rest = after;
            continue;
        }
        let digits = std::str::from_utf8(after.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).ok()
}

/// Names as the specification has them; nothing else is looked for.
fn checked(name: &str) -> Result<String, Odd> {
    let is_part = |part: &str| {
        let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.starts_with(alphanumeric)
            && part.ends_with(alphanumeric)
            && part.chars().all(|c| alphanumeric(c) || ".-_".contains(c))
    };
    match name.len() <= 255 && name.split('/').all(is_part) {
        true => Ok(name.to_owned()),
        false => Err(Odd::Name),
    }
}

fn is_tag(text: &str) -> bool {
    let first = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= 128
        && text.starts_with(first)
        && text.chars().all(|c| first(c) || ".-".contains(c))
}

fn page(query: Option<&str>) -> Result<Page, Odd> {
    let mut page = Page::default();
    for field in query.unwrap_or_default().split('&') {
        match field.split_once('=') {
            Some(("n", text)) => page.most = Some(text.parse().map_err(|_| Odd::Number)?),
            Some(("last", text)) => page.last = Some(decode(text).ok_or(Odd::Number)?),
            _ => {}
        }
    }
    Ok(page)
}

/// The bytes of a blob that are asked for: first and last, both counted from 0.
///
/// `Ok(None)` is all of it, also for what is asked in another way than this knows; `Err` is a part that is not there.
pub(super) fn range(header: Option<&str>, size: u64) -> Result<Option<(u64, u64)>, ()> {
    let Some(text) = header.and_then(|text| text.trim().strip_prefix("bytes=")) else {
        return Ok(None);
    };
    let Some((first, last)) = text.split_once('-') else {
        return Ok(None);
    };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    match (first.trim(), last.trim()) {
        ("", count) => match number(count) {
            None => Ok(None),
            Some(0) => Err(()),
            Some(_) if size == 0 => Err(()),
            Some(count) => Ok(Some((size.saturating_sub(count), size - 1))),
        },
        (first, last) => {
            let (Some(first), true) = (number(first), last.is_empty() || number(last).is_some())
            else {
                return Ok(None);
            };
            let last = number(last).unwrap_or(u64::MAX);
            match () {
                () if last < first => Ok(None),
                () if first >= size => Err(()),
                () => Ok(Some((first, last.min(size - 1)))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_endpoints_or_odd() {
        let digest: Digest = Digest::sha256_of(b"x");
        let check = |path: &str, expect: Result<Route, Odd>| {
            let (path, query) = match path.split_once('?') {
                Some((path, query)) => (path, Some(query)),
                None => (path, None),
            };
            assert_eq!(route(path, query), expect, "{path}");
        };
        let name = "some/app".to_owned();
        check("/v2/", Ok(Route::Base));
        check("/v2", Ok(Route::Base));
        check("/v2/_catalog", Ok(Route::Catalog(Page::default())));
        let page = Page {
            most: Some(2),
            last: Some("a/b".to_owned()),
        };
        check("/v2/_catalog?n=2&last=a%2Fb", Ok(Route::Catalog(page)));
        check(
            "/v2/some/app/tags/list",
            Ok(Route::Tags {
                name: name.clone(),
                page: Page::default(),
            }),
        );
        check(
            "/v2/some/app/manifests/1.0",
            Ok(Route::Manifest {
                name: name.clone(),
                reference: ManifestReference::Tag("1.0".to_owned()),
            }),
        );
        let by_digest = Route::Manifest {
            name: name.clone(),
            reference: ManifestReference::Digest(digest.clone()),
        };
        check(
            &format!("/v2/some/app/manifests/{digest}"),
            Ok(by_digest.clone()),
        );
        let encoded = digest.to_string().replace(':', "%3A");
        check(&format!("/v2/some/app/manifests/{encoded}"), Ok(by_digest));
        let blob = Route::Blob {
            name,
            digest: digest.clone(),
        };
        check(&format!("/v2/some/app/blobs/{digest}"), Ok(blob));
        let path = format!("/v2/some/app/referrers/{}", Digest::sha256_of(b"x"));
        check(&path, Ok(Route::Referrers));
        check("/", Err(Odd::NoEndpoint));
        check("/v1/x", Err(Odd::NoEndpoint));
        check("/v20", Err(Odd::NoEndpoint));
        check("/v2/app/other/1", Err(Odd::NoEndpoint));
        check("/v2/App/manifests/1", Err(Odd::Name));
        check("/v2/../manifests/1", Err(Odd::Name));
        check("/v2/a//b/manifests/1", Err(Odd::Name));
        check("/v2/%2e%2e/manifests/1", Err(Odd::Name));
        check("/v2/app/manifests/.x", Err(Odd::Tag));
        check("/v2/app/manifests/sha256:12", Err(Odd::Digest));
        check("/v2/app/blobs/1", Err(Odd::Digest));
        check("/v2/app/tags/list?n=x", Err(Odd::Number));
        check("/v2/%ff/manifests/1", Err(Odd::NoEndpoint));
        check("/v2/%/manifests/1", Err(Odd::NoEndpoint));
    }

    #[test]
    fn ranges_are_parts_of_the_blob() {
        let check = |header: &str, expect: Result<Option<(u64, u64)>, ()>| {
            assert_eq!(range(Some(header), 10), expect, "{header}");
        };
        check("bytes=0-3", Ok(Some((0, 3))));
        check("bytes=4-", Ok(Some((4, 9))));
        check("bytes=4-100", Ok(Some((4, 9))));
        check("bytes=-3", Ok(Some((7, 9))));
        check("bytes=-30", Ok(Some((0, 9))));
        check("bytes=10-", Err(()));
        check("bytes=-0", Err(()));
        check("bytes=5-4", Ok(None));
        check("bytes=0-1,3-4", Ok(None));
        check("lines=0-1", Ok(None));
        check("bytes=x-", Ok(None));
        assert_eq!(range(None, 10), Ok(None));
        assert_eq!(range(Some("bytes=0-"), 0), Err(()));
        assert_eq!(range(Some("bytes=-1"), 0), Err(()));
    }
}
