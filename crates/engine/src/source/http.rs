//! Files behind URLs: ADD of a URL, and contexts that are one.

use std::borrow::Cow;

use llb::attr;
use oci::{Digest, without_user_info};
use progress::RunningVertex;
use rootfs::copy::{Mkfile, Owner, Timestamp, mkfile_from};
use serde::{Deserialize, Serialize};
use store::Layer;

use crate::EngineError;
use crate::cancel::Cancel;
use crate::step::Shared;

/// A file that was downloaded, pinned to its content.
#[derive(Debug, Clone)]
pub(crate) struct HttpFile {
    pub(crate) digest: Digest,
    name: String,
    mode: u32,
    owner: Owner,
    modified: i64,
}

/// What is kept of an earlier download, to ask whether it has changed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Remembered {
    etag: Option<String>,
    last_modified: Option<String>,
    digest: Option<Digest>,
}

/// The largest file that is taken.
const MAX_SIZE: u64 = 64 << 30;

/// Refuses what readers of URLs read in different ways: a policy may have read another host.
fn check(url: &str) -> Result<(), EngineError> {
    let has_host = url.split_once("://").is_some_and(|(_, rest)| {
        rest.starts_with(|first: char| first.is_alphanumeric() || "[-_.~%".contains(first))
    });
    let is_odd = |c: char| c.is_control() || c.is_whitespace() || c == '\\';
    match has_host && !url.contains(is_odd) {
        true => Ok(()),
        false => Err(EngineError::Request(format!(
            "invalid URL {:?}: a URL is scheme://host/path, blanks and backslashes are written as %20 and %5C",
            without_user_info(url)
        ))),
    }
}

/// Downloads the file of a source, unless it is known to be unchanged.
pub(crate) fn pin(
    shared: &Shared,
    cancels: &[Cancel],
    source: &llb::SourceOp,
    running: &RunningVertex,
) -> Result<HttpFile, EngineError> {
    let url = source.identifier.as_str();
    check(url)?;
    let shown = without_user_info(url);
    let name = file_name(source)?;
    let attribute = |name: &str| source.attrs.get(name).filter(|value| !value.is_empty());
    let wanted = attribute(attr::HTTP_CHECKSUM)
        .map(|text| {
            text.parse::<Digest>().map_err(|error| {
                EngineError::Request(format!("invalid checksum {text:?} of {shown}: {error}"))
            })
        })
        .transpose()?;
    let known = remembered(shared, url)?;
    let here = |digest: &Digest| shared.store.blobs().size(digest).is_some();
    let (digest, last_modified) = match (&wanted, &known) {
        (Some(wanted), known) if known.digest.as_ref() == Some(wanted) && here(wanted) => {
            (wanted.clone(), known.last_modified.clone())
        }
        _ => download(shared, cancels, (url, wanted.as_ref()), &known, running)?,
    };
    if let Some(wanted) = &wanted
        && *wanted != digest
    {
        return Err(EngineError::Request(format!(
            "digest mismatch for {shown}: it is {digest}, expected {wanted}"
        )));
    }
    let number = |name: &str, radix: u32, usual: u32| match attribute(name) {
        None => Ok(usual),
        Some(text) => u32::from_str_radix(text, radix)
            .map_err(|_| EngineError::Graph(format!("{name} of {shown} is {text:?}, no number"))),
    };
    Ok(HttpFile {
        digest,
        name,
        mode: number(attr::HTTP_PERM, 8, 0o600)?,
        owner: Owner {
            uid: number(attr::HTTP_UID, 10, 0)?,
            gid: number(attr::HTTP_GID, 10, 0)?,
        },
        modified: last_modified.as_deref().and_then(parse_date).unwrap_or(0),
    })
}

/// Returns the name a file gets in its tree: one component, whoever asked for it.
fn file_name(source: &llb::SourceOp) -> Result<String, EngineError> {
    let asked = source.attrs.get(attr::HTTP_FILENAME);
    let name = match asked.filter(|name| !name.is_empty()) {
        Some(name) => name.clone(),
        None => name_of(&source.identifier),
    };
    match name.contains(['/', '\0']) || matches!(name.as_str(), "." | "..") {
        false => Ok(name),
        true => Err(EngineError::Request(format!(
            "invalid file name {name:?} of {}: a name is one part of a path, without / and not . or ..",
            without_user_info(&source.identifier)
        ))),
    }
}

/// Returns the last part of a URL's path, or `download` where it has none.
fn name_of(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let path = path.split_once("://").map_or(path, |(_, rest)| rest);
    match path
        .split_once('/')
        .and_then(|(_, path)| path.rsplit('/').next())
    {
        Some(name) if !name.is_empty() && name != "." && name != ".." => name.to_owned(),
        _ => "download".to_owned(),
    }
}

/// Returns by what a URL is remembered: nobody reads in the store who opens it.
fn memory_key(url: &str) -> String {
    match without_user_info(url) {
        Cow::Borrowed(url) => url.to_owned(),
        Cow::Owned(shown) => format!("{shown} {}", Digest::sha256_of(url.as_bytes())),
    }
}

fn remembered(shared: &Shared, url: &str) -> Result<Remembered, EngineError> {
    let found = shared.store.recall("http", memory_key(url).as_bytes())?;
    Ok(found
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default())
}

fn download(
    shared: &Shared,
    cancels: &[Cancel],
    (url, wanted): (&str, Option<&Digest>),
    known: &Remembered,
    running: &RunningVertex,
) -> Result<(Digest, Option<String>), EngineError> {
    let shown = without_user_info(url);
    let failed = |error: &(dyn std::error::Error + 'static)| {
        EngineError::Request(format!(
            "failed to download {shown}: {}",
            without_user_info(&crate::error::chain(error))
        ))
    };
    let client = shared
        .images
        .settings()
        .download_client(url, wanted.is_some())?;
    let still_here = known
        .digest
        .clone()
        .filter(|digest| shared.store.blobs().size(digest).is_some());
    // Some servers send it all to who asks with a condition: asking comes first, taking later.
    let is_unchanged = async |etag: &str| {
        let request = client.head(url).header("If-None-Match", etag);
        // Whatever is wrong, the download will find it.
        let Ok(response) = request.send().await else {
            return false;
        };
        let now = response.headers().get("etag");
        let same = now.is_some_and(|now| now.as_bytes() == etag.as_bytes());
        response.status() == 304 || (response.status().is_success() && same)
    };
    shared.images.wait_until(cancels, async {
        if wanted.is_none()
            && let (Some(etag), Some(digest)) = (&known.etag, &still_here)
            && is_unchanged(etag).await
        {
            return Ok((digest.clone(), known.last_modified.clone()));
        }
        let mut request = client.get(url);
        if wanted.is_none() && still_here.is_some() {
            if let Some(etag) = &known.etag {
                request = request.header("If-None-Match", etag);
            }
            if let Some(time) = &known.last_modified {
                request = request.header("If-Modified-Since", time);
            }
        }
        let mut response = request.send().await.map_err(|error| failed(&error))?;
        if response.status() == 304
            && let Some(digest) = still_here
        {
            return Ok((digest, known.last_modified.clone()));
        }
        if !response.status().is_success() {
            return Err(EngineError::Request(format!(
                "failed to download {shown}: the server answers {}",
                response.status()
            )));
        }
        let header = |name: &str| {
            let value = response.headers().get(name)?;
            Some(value.to_str().ok()?.to_owned())
        };
        let (etag, last_modified) = (header("etag"), header("last-modified"));
        let total = response.content_length().unwrap_or(0);
        let status = running.status_of(&*shown, "downloading", total);
        let mut blob = shared.store.blobs().writer()?;
        let mut told = 0;
        while let Some(piece) = response.chunk().await.map_err(|error| failed(&error))? {
            blob.append(&piece)?;
            // A megabyte at a time is often enough for eyes.
            if blob.size() >= told + (1 << 20) {
                told = blob.size();
                status.update(told);
            }
            if blob.size() > MAX_SIZE {
                return Err(EngineError::Request(format!(
                    "{shown} is larger than {MAX_SIZE} bytes"
                )));
            }
        }
        let (digest, size) = blob.commit(None)?;
        status.finish(size);
        let value = Remembered {
            etag,
            last_modified: last_modified.clone(),
            digest: Some(digest.clone()),
        };
        let value = serde_json::to_vec(&value).expect("plain data can be written as JSON");
        shared
            .store
            .remember("http", [(memory_key(url).as_bytes(), value.as_slice())])?;
        Ok((digest, last_modified))
    })
}

/// Takes the file of a source from whoever writes it.
pub(crate) fn receive(
    shared: &Shared,
    source: &llb::SourceOp,
    write: impl FnOnce(&mut dyn std::io::Write) -> Result<(), EngineError>,
) -> Result<HttpFile, EngineError> {
    struct Taker(store::BlobWriter);
    impl std::io::Write for Taker {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.append(bytes).map_err(std::io::Error::other)?;
            match self.0.size() > MAX_SIZE {
                true => Err(std::io::ErrorKind::FileTooLarge.into()),
                false => Ok(bytes.len()),
            }
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let name = file_name(source)?;
    let mut taker = Taker(shared.store.blobs().writer()?);
    write(&mut taker)?;
    let (digest, _) = taker.0.commit(None)?;
    Ok(HttpFile {
        digest,
        name,
        mode: 0o600,
        owner: Owner { uid: 0, gid: 0 },
        modified: 0,
    })
}

/// Whether the file of a source is a client's own, by its URL.
pub(crate) fn is_upload(source: &llb::SourceOp) -> bool {
    is_upload_url(&source.identifier)
}

pub(crate) fn is_upload_url(url: &str) -> bool {
    let rest = url.strip_prefix("http://");
    rest.and_then(|rest| rest.strip_prefix(crate::client::UPLOAD_HOST))
        .is_some_and(|rest| rest.starts_with('/'))
}

/// Reads an HTTP date in any of its forms (RFC 9110, section 5.6.7).
fn parse_date(text: &str) -> Option<i64> {
    let usual = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let asctime = time::macros::format_description!(
        "[weekday repr:short] [month repr:short] [day padding:space] [hour]:[minute]:[second] [year]"
    );
    let parsed = time::PrimitiveDateTime::parse(text, usual)
        .or_else(|_| time::PrimitiveDateTime::parse(text, asctime))
        .ok();
    let date = parsed.or_else(|| parse_rfc850(text))?;
    Some(date.assume_utc().unix_timestamp())
}

/// Reads `Sunday, 06-Nov-94 08:49:37 GMT`.
fn parse_rfc850(text: &str) -> Option<time::PrimitiveDateTime> {
    let format = time::macros::format_description!(
        "[day]-[month repr:short]-[year] [hour]:[minute]:[second]"
    );
    let (_, rest) = text.split_once(", ")?;
    let rest = rest.strip_suffix(" GMT").or(rest.strip_suffix(" UTC"))?;
    let (day_and_month, rest) = rest.split_at_checked(7)?;
    let (year, clock) = rest.split_once(' ')?;
    let year: u32 = year.parse().ok().filter(|year| *year < 100)?;
    let century = if year < 70 { 2000 } else { 1900 };
    let text = format!("{day_and_month}{} {clock}", century + year);
    time::PrimitiveDateTime::parse(&text, format).ok()
}

impl HttpFile {
    /// Makes a tree of the one file.
    pub(crate) fn unpack(&self, shared: &Shared) -> Result<Vec<Layer>, EngineError> {
        let layer = shared.new_layer(&[])?;
        let tree = rootfs::Tree::open(&layer.path())?;
        let file = Mkfile {
            path: format!("/{}", self.name),
            mode: self.mode,
            data: Vec::new(),
            owner: Some(self.owner),
            time: Some(Timestamp {
                seconds: self.modified.max(0),
                nanoseconds: 0,
            }),
        };
        let mut from = shared.store.blobs().open(&self.digest)?;
        mkfile_from(&tree, &file, &mut from)?;
        Ok(vec![shared.commit(layer, "download")?])
    }

    /// Returns the latest time of an archive's files; `None` for what is no archive.
    pub(crate) fn latest_in_archive(
        &self,
        shared: &Shared,
        cancels: &[Cancel],
    ) -> Result<Option<i64>, EngineError> {
        let (stopped, _guards) = Cancel::flag_of(cancels);
        let file = self.open(shared)?;
        let limits = rootfs::apply::Limits::default();
        match rootfs::copy::latest_in_archive(file, limits, Some(stopped)) {
            Err(rootfs::Error::Stopped) => Err(EngineError::Canceled),
            found => Ok(found?),
        }
    }

    /// Opens what was downloaded.
    pub(crate) fn open(&self, shared: &Shared) -> Result<std::fs::File, EngineError> {
        Ok(shared.store.blobs().open(&self.digest)?)
    }

    /// Returns when the file was changed, if its server says so, in seconds since 1970.
    pub(crate) fn modified(&self) -> Option<i64> {
        Some(self.modified).filter(|time| *time != 0)
    }

    /// Returns what decides on the tree: content, name, mode, owner, time.
    pub(crate) fn identity(&self) -> String {
        format!(
            "{} {} {:o} {}:{} {}",
            self.digest, self.name, self.mode, self.owner.uid, self.owner.gid, self.modified
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{attr, check, file_name, parse_date};

    #[test]
    fn the_name_of_a_file_is_one_component() {
        let named = |url: &str, name: Option<&str>| {
            let name = name.map(|name| (attr::HTTP_FILENAME.to_owned(), name.to_owned()));
            file_name(&llb::SourceOp {
                identifier: url.to_owned(),
                attrs: name.into_iter().collect(),
            })
        };
        for (url, name, expected) in [
            ("https://h/a/b?c#d", None, "b"),
            ("https://h/a/b", Some(""), "b"),
            ("https://h/a/b", Some("x y"), "x y"),
            ("https://h/a/b", Some("...x"), "...x"),
            ("https://h", None, "download"),
            ("https://h/a/..", None, "download"),
        ] {
            let found = named(url, name);
            assert_eq!(found.expect("a name"), expected, "{url} {name:?}");
        }
        for bad in [
            ".",
            "..",
            "/",
            "/etc/cron.d/x",
            "../x",
            "a/../../x",
            "a/b",
            "a/",
            "a\0b",
        ] {
            let told = named("https://h/x", Some(bad)).expect_err(bad).to_string();
            assert!(told.starts_with("invalid file name"), "{told}");
        }
    }

    #[test]
    fn urls_that_can_be_read_in_two_ways_are_refused() {
        for good in [
            "https://h/x",
            "http://[::1]:80/a?b#c",
            "https://u@h",
            "http://127.0.0.1/%20",
        ] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in [
            "https:////h/x",
            "https:/\\h/x",
            "https://\\h/x",
            "https://ev\til/x",
            "https://h/a b",
            " https://h/",
            "https://h/\n",
            "https:///x",
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn dates_come_in_three_forms() {
        let expected = Some(784_111_777);
        assert_eq!(parse_date("Sun, 06 Nov 1994 08:49:37 GMT"), expected);
        assert_eq!(parse_date("Sunday, 06-Nov-94 08:49:37 GMT"), expected);
        assert_eq!(parse_date("Sun Nov  6 08:49:37 1994"), expected);
        for bad in ["", "x, ", "Sunday, 06-Nov-\u{e9}4 08:49:37 GMT"] {
            assert_eq!(parse_date(bad), None, "{bad}");
        }
    }
}
