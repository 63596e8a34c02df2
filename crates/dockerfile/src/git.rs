//! References to git repositories, as `ADD`, build contexts and `SOURCE_DATE_EPOCH` take them.

use std::collections::BTreeMap;

use crate::go::parse_bool;
use crate::{paths, quote};

/// A reference to a git repository.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GitRef {
    /// What git is told to fetch from: the reference without query and fragment.
    pub remote: String,
    /// The name of the repository: `bar` of `https://example.com/foo/bar.git`.
    pub short_name: String,
    /// A branch, tag or commit; empty for the default branch.
    pub reference: String,
    /// The commit the reference must lead to; empty for any.
    pub checksum: String,
    /// A folder of the repository; empty for all of it.
    pub sub_dir: String,
    /// It looks like a local path (`github.com/foo/bar`) and is a repository only as a build context.
    pub is_like_local: bool,
    /// It is fetched in clear (`http`, `git`).
    pub is_unencrypted: bool,
    pub keep_git_dir: Option<bool>,
    pub submodules: Option<bool>,
    /// `checkout` or `commit`; empty if not given.
    pub mtime: String,
    /// The commit is fetched by its name without asking for the reference.
    pub fetch_by_commit: bool,
}

/// Why a text is not a reference to a git repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GitRefError {
    /// It is something else: a path, another URL.
    #[error("not a git reference")]
    NotGit,
    /// It is a git reference with a query that cannot be followed.
    #[error("{message}")]
    Query { message: String },
}

impl GitRef {
    /// Reads a reference: a URL that ends in `.git`, `git@host:path`, `ssh://`, `git://`, or `github.com/…`.
    ///
    /// # Errors
    ///
    /// [`GitRefError::NotGit`] for anything else.
    pub fn parse(text: &str) -> Result<Self, GitRefError> {
        if text.starts_with("./") || text.starts_with("../") {
            return Err(GitRefError::NotGit);
        }
        let mut found = GitRef {
            is_like_local: text.starts_with("github.com/"),
            ..GitRef::default()
        };
        let url = if found.is_like_local {
            GitUrl::from_url(&format!("https://{text}"))
        } else {
            GitUrl::parse(text)
        };
        let url = url.ok_or(GitRefError::NotGit)?;
        if !found.is_like_local {
            let is_http = matches!(url.scheme.as_str(), "http" | "https");
            if is_http && !url.path.ends_with(".git") {
                return Err(GitRefError::NotGit);
            }
            found.is_unencrypted = matches!(url.scheme.as_str(), "http" | "git");
        }
        found.remote = url.remote;
        if found.is_like_local
            && let Some((_, rest)) = found.remote.split_once("://")
        {
            found.remote = rest.to_owned();
        }
        if let Some(fragment) = url.fragment {
            let (reference, sub_dir) = fragment.split_once(':').unwrap_or((&fragment, ""));
            found.reference = reference.to_owned();
            found.sub_dir = paths::join("/", sub_dir).trim_start_matches('/').to_owned();
        }
        let last = found.remote.rsplit('/').next().unwrap_or_default();
        found.short_name = last.strip_suffix(".git").unwrap_or(last).to_owned();
        found
            .read_query(&url.query)
            .map_err(|message| GitRefError::Query { message })?;
        Ok(found)
    }

    fn read_query(&mut self, query: &BTreeMap<String, Vec<String>>) -> Result<(), String> {
        let (mut tag, mut branch) = ("", "");
        for (key, values) in query {
            let value = match values.as_slice() {
                [value] => value.as_str(),
                _ => return Err(format!("query {} has multiple values", quote(key))),
            };
            let is_switch = matches!(
                key.as_str(),
                "submodules" | "keep-git-dir" | "fetch-by-commit"
            );
            if value.is_empty() && !is_switch {
                return Err(format!("query {} has no value", quote(key)));
            }
            let switch = || match value {
                "" => Ok(true),
                value => parse_bool(value)
                    .ok_or_else(|| format!("invalid {key} value: {}", quote(value))),
            };
            match key.as_str() {
                "ref" => set(&mut self.reference, value, "ref")?,
                "tag" => tag = value,
                "branch" => branch = value,
                "subdir" => set(&mut self.sub_dir, value, "subdir")?,
                "checksum" | "commit" => self.checksum = value.to_owned(),
                "keep-git-dir" => self.keep_git_dir = Some(switch()?),
                "submodules" => self.submodules = Some(switch()?),
                "fetch-by-commit" => self.fetch_by_commit = switch()?,
                "mtime" if matches!(value, "checkout" | "commit") => self.mtime = value.to_owned(),
                "mtime" => {
                    let value = quote(value);
                    return Err(format!(
                        "invalid mtime value: {value} (must be \"checkout\" or \"commit\")"
                    ));
                }
                _ => return Err(format!("unexpected query {}", quote(key))),
            }
        }
        if !tag.is_empty() {
            set(&mut self.reference, &prefixed("refs/tags/", tag), "ref")?;
        }
        if !branch.is_empty() {
            if !tag.is_empty() {
                return Err("branch conflicts with tag".to_owned());
            }
            set(&mut self.reference, &prefixed("refs/heads/", branch), "ref")?;
        }
        Ok(())
    }
}

/// Sets a field that the fragment, or another part of the query, may have set to the same.
fn set(field: &mut String, value: &str, name: &str) -> Result<(), String> {
    if !field.is_empty() && field != value {
        return Err(format!(
            "{name} conflicts: {} vs {}",
            quote(field),
            quote(value)
        ));
    }
    value.clone_into(field);
    Ok(())
}

fn prefixed(prefix: &str, name: &str) -> String {
    if name.starts_with(prefix) {
        name.to_owned()
    } else {
        format!("{prefix}{name}")
    }
}

/// Tells whether a source of `ADD` is fetched over HTTP as a file.
pub fn is_http_source(text: &str) -> bool {
    (text.starts_with("http://") || text.starts_with("https://")) && !is_git_source(text)
}

/// Tells whether a source of `ADD` is a git repository (one that looks like a local path counts, as in the reference).
pub fn is_git_source(text: &str) -> bool {
    GitRef::parse(text).is_ok()
}

/// The parts of a URL that matter for git.
struct GitUrl {
    scheme: String,
    path: String,
    query: BTreeMap<String, Vec<String>>,
    fragment: Option<String>,
    /// Without query and fragment.
    remote: String,
}

impl GitUrl {
    fn parse(text: &str) -> Option<Self> {
        let scheme = text.split_once("://").map(|(scheme, _)| scheme);
        match scheme.filter(|scheme| {
            !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric())
        }) {
            Some(scheme) => matches!(
                scheme.to_lowercase().as_str(),
                "http" | "https" | "ssh" | "git"
            )
            .then(|| Self::from_url(text))
            .flatten(),
            None => Self::from_scp(text),
        }
    }

    /// Reads `scheme://authority/path?query#fragment`.
    fn from_url(text: &str) -> Option<Self> {
        if text.bytes().any(|b| b < b' ' || b == 0x7f) {
            return None;
        }
        let (before, fragment) = split_off(text, '#');
        let (remote, query) = split_off(before, '?');
        let (scheme, rest) = remote.split_once("://")?;
        let at_path = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at_path);
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let is_user = user
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-._:~!$&'()*+,;=%@".contains(c));
        if !is_user || percent_decode(user).is_none() || !is_host(host) {
            return None;
        }
        let scheme = scheme.to_lowercase();
        Some(GitUrl {
            path: percent_decode(path)?,
            query: read_pairs(query).0,
            fragment: Some(percent_decode(fragment)?).filter(|fragment| !fragment.is_empty()),
            remote: format!("{scheme}://{rest}"),
            scheme,
        })
    }

    /// Reads `user@host:path?query#fragment`.
    fn from_scp(text: &str) -> Option<Self> {
        let (user, rest) = text.split_once('@')?;
        let is_user = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if user.is_empty() || !user.bytes().all(is_user) || text.contains('\n') {
            return None;
        }
        let (host, rest) = rest.split_once(':')?;
        let is_host = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
        if host.is_empty() || !host.bytes().all(is_host) {
            return None;
        }
        // Without a `?` before it, a `#` begins the fragment; a `?` behind that is part of it.
        let (path, query, fragment) = match rest.find(['?', '#']) {
            Some(at) if rest[at..].starts_with('?') => {
                let (query, fragment) = split_off(&rest[at + 1..], '#');
                (&rest[..at], query, fragment)
            }
            Some(at) => (&rest[..at], "", &rest[at + 1..]),
            None => (rest, "", ""),
        };
        let (query, is_clean) = read_pairs(query);
        is_clean.then(|| GitUrl {
            scheme: "ssh".to_owned(),
            path: path.to_owned(),
            query,
            fragment: Some(fragment.to_owned()).filter(|fragment| !fragment.is_empty()),
            remote: format!("{user}@{host}:{path}"),
        })
    }
}

fn split_off(text: &str, at: char) -> (&str, &str) {
    text.split_once(at).unwrap_or((text, ""))
}

/// Tells whether a text may be `host` or `host:port` of a URL.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(inner) => match inner.split_once(']') {
            Some((name, rest)) => (
                name,
                if rest.is_empty() {
                    Some("")
                } else {
                    rest.strip_prefix(':')
                },
            ),
            None => return false,
        },
        None => match host.rsplit_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, Some("")),
        },
    };
    port.is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()))
        && !name.contains([' ', '"', '<', '>', '\\', '^', '`', '{', '|', '}'])
        && percent_decode(name).is_some()
}

/// Reads `key=value&…`; tells whether all of it could be read. What could not is left out.
fn read_pairs(query: &str) -> (BTreeMap<String, Vec<String>>, bool) {
    let mut pairs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut is_clean = true;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = split_off(pair, '=');
        let decode = |text: &str| percent_decode(&text.replace('+', " "));
        match (decode(key), decode(value)) {
            (Some(key), Some(value)) if !pair.contains(';') => {
                pairs.entry(key).or_default().push(value)
            }
            _ => is_clean = false,
        }
    }
    (pairs, is_clean)
}

/// Decodes `%XX`; none if one is not two hexadecimal digits.
fn percent_decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let high = char::from(rest.next()?).to_digit(16)?;
        let low = char::from(rest.next()?).to_digit(16)?;
        bytes.push(u8::try_from(high << 4 | low).ok()?);
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &str) {
        let found = match GitRef::parse(text) {
            Ok(GitRef {
                remote,
                short_name,
                reference,
                checksum,
                sub_dir,
                ..
            }) => {
                format!("{remote} {short_name} ref={reference} sum={checksum} dir={sub_dir}")
            }
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expect, "{text}");
    }

    #[test]
    fn references_are_told_from_paths_and_other_urls() {
        check(
            "https://example.com/a/b.git",
            "https://example.com/a/b.git b ref= sum= dir=",
        );
        check(
            "https://example.com/a/b.git#v1:sub/../x",
            "https://example.com/a/b.git b ref=v1 sum= dir=x",
        );
        check(
            "git@example.com:a/b.git#main",
            "git@example.com:a/b.git b ref=main sum= dir=",
        );
        check(
            "git://example.com/a",
            "git://example.com/a a ref= sum= dir=",
        );
        check(
            "ssh://git@example.com:22/a.git",
            "ssh://git@example.com:22/a.git a ref= sum= dir=",
        );
        check("github.com/a/b", "github.com/a/b b ref= sum= dir=");
        check("https://example.com/a/b", "not a git reference");
        check("https://example.com/a.git/x", "not a git reference");
        check("./git@example.com:a", "not a git reference");
        check("a/b.git", "not a git reference");
        check("ftp://example.com/b.git", "not a git reference");
        check("https://example.com:x/b.git", "not a git reference");
        check("user@host", "not a git reference");
    }

    #[test]
    fn queries_are_followed() {
        let base = "https://example.com/b.git";
        let with = |reference: &str, sum: &str, dir: &str| {
            format!("{base} b ref={reference} sum={sum} dir={dir}")
        };
        check(
            &format!("{base}?ref=x&subdir=d&checksum=1f"),
            &with("x", "1f", "d"),
        );
        check(&format!("{base}?tag=v1"), &with("refs/tags/v1", "", ""));
        check(
            &format!("{base}?branch=refs/heads/m"),
            &with("refs/heads/m", "", ""),
        );
        check(&format!("{base}?ref=x#y"), "ref conflicts: \"y\" vs \"x\"");
        check(
            &format!("{base}?tag=a&branch=b"),
            "branch conflicts with tag",
        );
        check(&format!("{base}?ref="), "query \"ref\" has no value");
        check(
            &format!("{base}?ref=a&ref=b"),
            "query \"ref\" has multiple values",
        );
        check(&format!("{base}?what=a"), "unexpected query \"what\"");
        check(
            &format!("{base}?keep-git-dir=x"),
            "invalid keep-git-dir value: \"x\"",
        );
        assert_eq!(
            GitRef::parse(&format!("{base}?keep-git-dir")).map(|git| git.keep_git_dir),
            Ok(Some(true))
        );
        assert_eq!(
            GitRef::parse(&format!("{base}?submodules=0")).map(|git| git.submodules),
            Ok(Some(false))
        );
    }
}
