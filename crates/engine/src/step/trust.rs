//! Certificates that steps trust beside those of their image: `--ca-bundle`.
//!
//! The bundles of an image are laid over it once more, with the given certificates behind their own, as a layer
//! between the image and what the step writes: a package may replace or rename them, which it could not if they
//! were mounts. A whole bundle is also mounted where no step reaches, and named in the usual variables.
//! Nothing of this is in a key, a config or a layer: what the step has copied from our text is taken out again.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rootfs::copy::{Mkfile, Timestamp};
use rootfs::{Follow, Kind, RootPath, Tree};
use sandbox::{Content, Source, Spec};
use store::{Layer, MutLayer};

use super::apk;
use super::upper::{self, Found};
use crate::EngineError;
use crate::request::CaBundle;
use crate::snapshot::open_directory;
use crate::step::StepContext;

/// Where distributions keep the certificates of all authorities in one file. Some are links to others.
const BUNDLES: [&str; 8] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/ssl/certs/ca-bundle.crt",
    "/usr/local/share/certs/ca-root-nss.crt",
    "/var/lib/ca-certificates/ca-bundle.pem",
];

/// What programs read the path of a bundle from.
const VARIABLES: [&str; 11] = [
    "AWS_CA_BUNDLE",
    "BUNDLE_SSL_CA_CERT",
    "CARGO_HTTP_CAINFO",
    "CURL_CA_BUNDLE",
    "DENO_CERT",
    "GIT_SSL_CAINFO",
    "NIX_SSL_CERT_FILE",
    "NODE_EXTRA_CA_CERTS",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
];

/// Where the whole bundle is for the variables: in the file system that every step has for itself.
const MOUNTED: &str = "/dev/lapstrake/ca-certificates.crt";

/// A larger file is no bundle.
const MAX_BUNDLE: u64 = 8 << 20;

const BEGIN: &str = "# lapstrake: for this step alone, from here\n";
const END: &str = "# lapstrake: to here\n";

const BEGIN_CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";
const END_CERTIFICATE: &str = "-----END CERTIFICATE-----";

/// Certificates to trust: the base64 text of each, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trust {
    certificates: Vec<String>,
}

impl Trust {
    /// Reads what the user has named.
    pub(crate) fn read(bundle: &CaBundle) -> Result<Self, EngineError> {
        let path = match bundle {
            CaBundle::File(path) => path.clone(),
            CaBundle::Host => host_bundle()?,
        };
        let size = std::fs::metadata(&path).map_err(EngineError::io("read", &path))?;
        let wrong =
            |why: String| EngineError::Request(format!("--ca-bundle {}: {why}", path.display()));
        if size.len() > MAX_BUNDLE {
            let why = format!("it has {} bytes; {MAX_BUNDLE} are possible", size.len());
            return Err(wrong(why));
        }
        let bytes = std::fs::read(&path).map_err(EngineError::io("read", &path))?;
        let certificates = certificates(&String::from_utf8_lossy(&bytes)).map_err(wrong)?;
        if certificates.is_empty() {
            return Err(wrong("it holds no certificate in PEM form".to_owned()));
        }
        Ok(Self { certificates })
    }

    /// Returns a bundle with ours behind what it holds; `None` where it holds them all.
    fn added_to(&self, original: &str) -> Option<String> {
        // What cannot be read in it is not ours to judge: then all are added.
        let known: BTreeSet<String> = certificates(original)
            .unwrap_or_default()
            .into_iter()
            .collect();
        let missing: Vec<&String> = self
            .certificates
            .iter()
            .filter(|certificate| !known.contains(*certificate))
            .collect();
        if missing.is_empty() {
            return None;
        }
        let mut text = original.to_owned();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(BEGIN);
        for certificate in missing {
            text.push_str(BEGIN_CERTIFICATE);
            text.push('\n');
            for start in (0..certificate.len()).step_by(64) {
                let end = certificate.len().min(start + 64);
                text.push_str(&certificate[start..end]);
                text.push('\n');
            }
            text.push_str(END_CERTIFICATE);
            text.push('\n');
        }
        text.push_str(END);
        Some(text)
    }
}

fn host_bundle() -> Result<PathBuf, EngineError> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let usual = BUNDLES.iter().map(PathBuf::from);
    named
        .into_iter()
        .chain(usual)
        .find(|path| path.is_file())
        .ok_or_else(|| {
            EngineError::Request(
                "--ca-bundle host: this machine has no bundle of certificates in a usual place"
                    .to_owned(),
            )
        })
}

/// Returns the base64 text of each certificate; other text between them is passed over.
fn certificates(text: &str) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    let mut open: Option<String> = None;
    for (number, line) in text.lines().enumerate() {
        let (number, line) = (number + 1, line.trim());
        match (&mut open, line) {
            (None, BEGIN_CERTIFICATE) => open = Some(String::new()),
            (None, _) => {}
            (Some(body), END_CERTIFICATE) => {
                if body.is_empty() {
                    return Err(format!(
                        "the certificate that ends in line {number} is empty"
                    ));
                }
                found.extend(open.take());
            }
            (Some(body), line) => {
                let base64 =
                    |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
                if !line.bytes().all(base64) {
                    return Err(format!("line {number} is no part of a certificate"));
                }
                body.push_str(line);
            }
        }
    }
    match open {
        Some(_) => Err("its last certificate has no end".to_owned()),
        None => Ok(found),
    }
}

/// What was laid over the root of one step.
#[derive(Debug)]
pub(crate) struct TrustLayer {
    /// Bundles where they really are, from the root, with what they were.
    bundles: Vec<(String, Original)>,
    /// Lies over the image; thrown away after the step.
    layer: MutLayer,
}

#[derive(Debug)]
struct Original {
    text: Vec<u8>,
    meta: rootfs::Meta,
}

impl TrustLayer {
    /// Makes the layer over those of an image, and tells the step of its certificates.
    pub(crate) fn make(
        context: &StepContext,
        trust: &Trust,
        below: &[Layer],
        spec: &mut Spec,
    ) -> Result<Self, EngineError> {
        let image = context.tree(below)?;
        let layer = context.new_layer(below)?;
        let mut bundles: Vec<(String, Original)> = Vec::new();
        let mut whole = None;
        for place in BUNDLES {
            let path = RootPath::new(place)?;
            let Some(original) = read_bundle(&image, &path)? else {
                continue;
            };
            let text = String::from_utf8_lossy(&original.text).into_owned();
            let Some(text) = trust.added_to(&text) else {
                whole.get_or_insert(text);
                continue;
            };
            whole.get_or_insert_with(|| text.clone());
            lay_over(context, below, &layer, place, &text, original.meta.modified)?;
            let known: BTreeSet<&String> = bundles.iter().map(|(path, _)| path).collect();
            let new = upper::files(&open_directory(&layer.path())?, |_| true)?
                .into_iter()
                .find(|found| !known.contains(&found.path));
            bundles.extend(new.map(|found| (found.path, original)));
        }
        restore_times(&image, &layer.path(), "/")?;
        let whole = whole.or_else(|| trust.added_to("")).unwrap_or_default();
        spec.mounts.push(sandbox::Mount {
            target: MOUNTED.to_owned(),
            source: Source::File {
                content: Content(whole.into_bytes()),
                mode: 0o644,
                uid: 0,
                gid: 0,
            },
            read_only: true,
        });
        for name in VARIABLES {
            let set = format!("{name}=");
            if !spec.env.iter().any(|variable| variable.starts_with(&set)) {
                spec.env.push(format!("{set}{MOUNTED}"));
            }
        }
        Ok(Self { bundles, layer })
    }

    /// Returns the directory to lay over the image.
    pub(crate) fn path(&self) -> PathBuf {
        self.layer.path()
    }

    /// Takes our certificates out of what the step has written.
    pub(crate) fn strip(&self, image: &Tree, written: &Path) -> Result<(), EngineError> {
        let root = open_directory(written)?;
        let is_bundle = |path: &str| {
            let ours = self.bundles.iter().any(|(bundle, _)| bundle == path);
            ours || path.ends_with(".crt") || path.ends_with(".pem") || path.ends_with(".apk-new")
        };
        for found in upper::files(&root, is_bundle)? {
            self.strip_file(image, &found)?;
        }
        Ok(())
    }

    fn strip_file(&self, image: &Tree, found: &Found) -> Result<(), EngineError> {
        if found.size > MAX_BUNDLE {
            return Ok(());
        }
        if let Some(name) = found.path.strip_suffix(".apk-new") {
            return self.take_new(image, name, found);
        }
        let text = found.read()?;
        let Some(stripped) = without_ours(&text) else {
            return Ok(());
        };
        let original = self.bundles.iter().find(|(path, _)| *path == found.path);
        if let Some((_, original)) = original
            && original.text == stripped
            && found.is_like(&original.meta)
        {
            // Opened to be written, and then not: as if it had never been copied up.
            return found.remove();
        }
        found.rewrite(&stripped)
    }

    /// Puts what apk has laid beside a bundle in its place: it took ours for a change by the user.
    fn take_new(&self, image: &Tree, name: &str, found: &Found) -> Result<(), EngineError> {
        let bundle = self.bundles.iter().find(|(path, _)| path == name);
        match bundle {
            Some((_, original)) if apk::is_unchanged(image, name, &original.text)? => {
                found.rename_to_if_free(name.rsplit('/').next().unwrap_or(name))
            }
            _ => Ok(()),
        }
    }
}

impl AsFd for TrustLayer {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.layer.lock()
    }
}

/// Reads a bundle of an image; `None` where none is, or what is there is none.
fn read_bundle(image: &Tree, path: &RootPath) -> Result<Option<Original>, EngineError> {
    let meta = match image.stat(path, Follow::Last) {
        Ok(Some(meta)) if meta.kind == Kind::File && meta.size <= MAX_BUNDLE => meta,
        // A hostile image may have anything there, such as a link to itself.
        Ok(_) | Err(_) => return Ok(None),
    };
    let text = image.read(path, MAX_BUNDLE)?;
    Ok(text.map(|text| Original { text, meta }))
}

fn lay_over(
    context: &StepContext,
    below: &[Layer],
    layer: &MutLayer,
    place: &str,
    text: &str,
    time: Timestamp,
) -> Result<(), EngineError> {
    let tree = context.writable_tree(below, &layer.path())?;
    let file = Mkfile {
        path: place.to_owned(),
        mode: 0o644,
        data: text.as_bytes().to_vec(),
        owner: None,
        time: Some(time),
    };
    Ok(rootfs::copy::mkfile(&tree, &file)?)
}

/// Gives directories the times they have in the image: a step that copies one up copies its time.
fn restore_times(image: &Tree, directory: &Path, path: &str) -> Result<(), EngineError> {
    let failed = |error| EngineError::io("set the times in", directory)(error);
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            let name = entry.file_name().to_string_lossy().into_owned();
            restore_times(image, &entry.path(), &format!("{path}{name}/"))?;
        }
    }
    if let Some(meta) = image.stat(&RootPath::new(path)?, Follow::Last)? {
        upper::set_time(&open_directory(directory)?, meta.modified).map_err(failed)?;
    }
    Ok(())
}

/// Returns a text without what we added; `None` where nothing is ours.
fn without_ours(text: &[u8]) -> Option<Vec<u8>> {
    let find = |text: &[u8], mark: &str| {
        text.windows(mark.len())
            .position(|window| window == mark.as_bytes())
    };
    let mut rest = text;
    let mut kept = Vec::new();
    while let Some(start) = find(rest, BEGIN) {
        kept.extend_from_slice(&rest[..start]);
        let ours = &rest[start..];
        // Cut off in the middle: what follows the mark is ours all the same.
        let end = find(ours, END).map_or(ours.len(), |end| end + END.len());
        rest = &ours[end..];
    }
    if rest.len() == text.len() {
        return None;
    }
    kept.extend_from_slice(rest);
    Some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    const TWO: &str = "# Two\n-----BEGIN CERTIFICATE-----\r\nBB\r\nBB\r\n-----END CERTIFICATE-----";

    #[test]
    fn certificates_are_found_between_other_text() {
        let found = certificates(&format!("# a comment\n{ONE}\n{TWO}"));
        assert_eq!(found, Ok(vec!["AAAA".to_owned(), "BBBB".to_owned()]));
        let check = |text: &str, words: &str| {
            let error = certificates(text).expect_err("an error");
            assert!(error.contains(words), "{error}");
        };
        check("-----BEGIN CERTIFICATE-----\nAA", "no end");
        check(
            "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----",
            "line 2 is empty",
        );
        check(
            &format!("-----BEGIN CERTIFICATE-----\n{ONE}"),
            "line 2 is no part",
        );
    }

    #[test]
    fn what_is_added_is_taken_out_again() {
        let trust = Trust {
            certificates: vec!["AAAA".to_owned(), "C".repeat(100)],
        };
        for original in ["", ONE, TWO, "no certificate"] {
            let added = trust.added_to(original).expect("something is missing");
            assert_eq!(
                added.matches(BEGIN_CERTIFICATE).count() > 1 || original.is_empty(),
                { original != "no certificate" || added.contains("AAAA") }
            );
            let stripped = without_ours(added.as_bytes()).expect("ours is in it");
            let stripped = String::from_utf8(stripped).expect("text");
            assert_eq!(stripped.trim_end(), original.trim_end());
            // A step that appends something of its own keeps it.
            let more = format!("{added}{TWO}");
            let stripped = without_ours(more.as_bytes()).expect("ours is in it");
            assert!(stripped.ends_with(TWO.as_bytes()));
        }
        assert!(without_ours(ONE.as_bytes()).is_none());
        let known = trust.added_to(ONE).expect("one is missing");
        assert_eq!(known.matches("AAAA").count(), 1, "{known}");
        let all = Trust {
            certificates: vec!["AAAA".to_owned()],
        };
        assert_eq!(all.added_to(ONE), None);
    }
}
