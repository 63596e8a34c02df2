//! Files behind URLs: ADD of a URL, and contexts that are one.

use llb::attr;
use oci::Digest;
use progress::RunningVertex;
use rootfs::copy::{Mkfile, Owner, mkfile};
use serde::{Deserialize, Serialize};
use store::Layer;

use crate::EngineError;
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

/// Downloads the file of a source, unless it is known to be unchanged.
pub(crate) fn pin(
    shared: &Shared,
    source: &llb::SourceOp,
    running: &RunningVertex,
) -> Result<HttpFile, EngineError> {
    let url = source.identifier.as_str();
    let attribute = |name: &str| source.attrs.get(name).filter(|value| !value.is_empty());
    let wanted = attribute(attr::HTTP_CHECKSUM)
        .map(|text| {
            text.parse::<Digest>().map_err(|error| {
                EngineError::Request(format!("invalid checksum {text:?} of {url}: {error}"))
            })
        })
        .transpose()?;
    let known = remembered(shared, url)?;
    let here = |digest: &Digest| shared.store.blobs().size(digest).is_some();
    let (digest, last_modified) = match (&wanted, &known) {
        (Some(wanted), known) if known.digest.as_ref() == Some(wanted) && here(wanted) => {
            (wanted.clone(), known.last_modified.clone())
        }
        _ => download(shared, url, wanted.as_ref(), &known, running)?,
    };
    if let Some(wanted) = &wanted
        && *wanted != digest
    {
        return Err(EngineError::Request(format!(
            "digest mismatch for {url}: it is {digest}, expected {wanted}"
        )));
    }
    let number = |name: &str, radix: u32, usual: u32| match attribute(name) {
        None => Ok(usual),
        Some(text) => u32::from_str_radix(text, radix)
            .map_err(|_| EngineError::Graph(format!("{name} of {url} is {text:?}, no number"))),
    };
    Ok(HttpFile {
        digest,
        name: attribute(attr::HTTP_FILENAME)
            .cloned()
            .unwrap_or_else(|| name_of(url)),
        mode: number(attr::HTTP_PERM, 8, 0o600)?,
        owner: Owner {
            uid: number(attr::HTTP_UID, 10, 0)?,
            gid: number(attr::HTTP_GID, 10, 0)?,
        },
        modified: last_modified.as_deref().and_then(parse_date).unwrap_or(0),
    })
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

fn remembered(shared: &Shared, url: &str) -> Result<Remembered, EngineError> {
    let found = shared.store.recall("http", url.as_bytes())?;
    Ok(found
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default())
}

fn download(
    shared: &Shared,
    url: &str,
    wanted: Option<&Digest>,
    known: &Remembered,
    running: &RunningVertex,
) -> Result<(Digest, Option<String>), EngineError> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        EngineError::Request(format!(
            "failed to download {url}: {}",
            crate::error::chain(error)
        ))
    };
    let client = shared.images.settings().download_client(url)?;
    let still_here = known
        .digest
        .clone()
        .filter(|digest| shared.store.blobs().size(digest).is_some());
    shared.images.runtime().block_on(async {
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
                "failed to download {url}: the server answers {}",
                response.status()
            )));
        }
        let header = |name: &str| {
            let value = response.headers().get(name)?;
            Some(value.to_str().ok()?.to_owned())
        };
        let (etag, last_modified) = (header("etag"), header("last-modified"));
        let total = response.content_length().unwrap_or(0);
        let status = running.status_of(url, "downloading", total);
        let mut blob = shared.store.blobs().writer()?;
        while let Some(piece) = response.chunk().await.map_err(|error| failed(&error))? {
            blob.append(&piece)?;
            if blob.size() > MAX_SIZE {
                return Err(EngineError::Request(format!(
                    "{url} is larger than {MAX_SIZE} bytes"
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
            .remember("http", [(url.as_bytes(), value.as_slice())])?;
        Ok((digest, last_modified))
    })
}

/// Reads an HTTP date in its usual form (RFC 9110, section 5.6.7).
fn parse_date(text: &str) -> Option<i64> {
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let date = time::PrimitiveDateTime::parse(text, format).ok()?;
    Some(date.assume_utc().unix_timestamp())
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
            time: None,
        };
        mkfile(&tree, &file)?;
        let place = layer.path().join(&self.name);
        let mut from = shared.store.blobs().open(&self.digest)?;
        let mut write = || -> std::io::Result<()> {
            let mut to = std::fs::OpenOptions::new().write(true).open(&place)?;
            std::io::copy(&mut from, &mut to)?;
            let time =
                std::time::UNIX_EPOCH + std::time::Duration::from_secs(self.modified.max(0) as u64);
            to.set_modified(time)
        };
        write().map_err(EngineError::io("write", &place))?;
        Ok(vec![shared.commit(layer, "download")?])
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
