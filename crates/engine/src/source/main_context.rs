//! The main context: a directory, an archive, a repository, what a URL yields.

use std::io::Read;
use std::path::{Path, PathBuf};

use frontend::MainContext;
use progress::{Sink, Vertex};
use rootfs::Tree;
use rootfs::copy::{Copy, Owner};
use tempfile::TempDir;

use super::fetched::{Fetched, PinnedSource};
use super::git_program::GitAccess;
use super::temporary;
use crate::EngineError;
use crate::cancel::Cancel;
use crate::request::{BuildRequest, Context};
use crate::step::Shared;

/// The main context of a build, brought here as far as the Dockerfile needs it.
#[derive(Debug)]
pub(crate) struct Main {
    /// What the graph calls it; the patterns of an ignore file are not yet in it.
    pub(crate) context: MainContext,
    /// Where its files are, those of a Dockerfile at least.
    pub(crate) directory: PathBuf,
    /// The Dockerfile, where the context is nothing else.
    pub(crate) dockerfile: Option<Vec<u8>>,
    /// What a remote context was pinned to.
    pub(crate) pinned: Option<PinnedSource>,
    /// Keeps what was unpacked for this build.
    pub(crate) unpacked: Option<TempDir>,
}

impl Main {
    /// Whether the ignore file of the context counts. As in the reference it does not where all files are on their way
    /// already when it is read.
    pub(crate) fn has_ignore_file(&self, request: &BuildRequest) -> bool {
        matches!(request.context, Context::Directory(_))
    }

    /// Returns a context of files at hand.
    fn local(directory: PathBuf, unpacked: Option<TempDir>) -> Self {
        Self {
            context: MainContext::default(),
            directory,
            dockerfile: None,
            pinned: None,
            unpacked,
        }
    }

    pub(crate) fn of(
        request: &BuildRequest,
        shared: &Shared,
        sink: &Sink,
    ) -> Result<Self, EngineError> {
        match &request.context {
            Context::Directory(directory) => Ok(Self::local(directory.clone(), None)),
            Context::Tar(path) => {
                let (directory, unpacked) = unpack(path, shared.images.stopping())?;
                Ok(Self::local(directory, Some(unpacked)))
            }
            Context::Empty => {
                let unpacked = temporary("context")?;
                Ok(Self::local(unpacked.path().to_owned(), Some(unpacked)))
            }
            Context::Git(url) => Self::git(url, request, shared, sink),
            Context::Http(url) => Self::http(url, request, shared, sink),
        }
    }

    fn git(
        url: &str,
        request: &BuildRequest,
        shared: &Shared,
        sink: &Sink,
    ) -> Result<Self, EngineError> {
        let keep = request.build_args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR");
        let context = MainContext::Git {
            url: url.to_owned(),
            keep_git_dir: keep.is_some_and(|keep| frontend::is_true(keep)),
        };
        let name = format!("[internal] load git source {}", oci::without_user_info(url));
        let running = sink.vertex(Vertex::named(name)).start();
        let access = GitAccess::new(&request.secrets, &request.ssh).until(shared.images.stopping());
        let load = || -> Result<_, EngineError> {
            let mut pinned = pin(&context, request, shared, &access, &running)?;
            let layers = crate::vertex::recorded_source(shared, &pinned.fetched)?;
            let layers = match layers {
                Some(layers) => layers,
                None => pinned.fetched.unpack(shared, &access, &running)?,
            };
            let directory = layers.first().map(|layer| layer.path().to_owned());
            let directory = directory.ok_or_else(|| {
                EngineError::Graph("the tree of a repository has no layer".to_owned())
            })?;
            if let Fetched::Git(tree) = &mut pinned.fetched {
                tree.unpacked = Some(layers);
            }
            Ok((pinned, directory))
        };
        let loaded = load();
        running.conclude(&loaded, |error| crate::error::chain(error));
        let (pinned, directory) = loaded?;
        Ok(Self {
            pinned: Some(pinned),
            context,
            ..Self::local(directory, None)
        })
    }

    fn http(
        url: &str,
        request: &BuildRequest,
        shared: &Shared,
        sink: &Sink,
    ) -> Result<Self, EngineError> {
        let url = url.to_owned();
        let mut context = MainContext::HttpFile { url: url.clone() };
        let name = "[internal] load remote build context";
        let running = sink.vertex(Vertex::named(name)).start();
        let access = GitAccess::default();
        let pinned = pin(&context, request, shared, &access, &running);
        running.conclude(&pinned, |error| crate::error::chain(error));
        let pinned = pinned?;
        let Fetched::Http(file) = &pinned.fetched else {
            return Err(EngineError::Graph(format!(
                "{} is no file",
                oci::without_user_info(&url)
            )));
        };
        let mut head = Vec::new();
        let read = |limit: u64, into: &mut Vec<u8>| -> Result<usize, EngineError> {
            let file = file.open(shared)?;
            let read = file.take(limit).read_to_end(into);
            read.map_err(EngineError::io("read", &url))
        };
        read(1024, &mut head)?;
        let mut main = match looks_like_archive(&head) {
            true => {
                context = MainContext::HttpArchive { url };
                let (directory, unpacked) = unpack(
                    &shared.store.blobs().path(&file.digest),
                    shared.images.stopping(),
                )?;
                Self::local(directory, Some(unpacked))
            }
            false => {
                let mut bytes = Vec::new();
                let limit = super::dockerfile::MAX_FILE;
                if read(limit + 1, &mut bytes)? as u64 > limit {
                    return Err(EngineError::Request(format!(
                        "{} is neither an archive nor a Dockerfile: it is larger than {limit} bytes",
                        oci::without_user_info(&url)
                    )));
                }
                let unpacked = temporary("context")?;
                Self {
                    dockerfile: Some(bytes),
                    ..Self::local(unpacked.path().to_owned(), Some(unpacked))
                }
            }
        };
        main.context = context;
        main.pinned = Some(pinned);
        Ok(main)
    }
}

/// Pins the source that the graph will have for a context.
fn pin(
    context: &MainContext,
    request: &BuildRequest,
    shared: &Shared,
    access: &GitAccess,
    running: &progress::RunningVertex,
) -> Result<PinnedSource, EngineError> {
    let source = frontend::context_source(context, &request.build_args)
        .map_err(|diagnostics| EngineError::Dockerfile { diagnostics })?
        .ok_or_else(|| EngineError::Graph("a remote context has no source".to_owned()))?;
    let fetched = Fetched::pin(shared, access, &source, running)?;
    Ok(PinnedSource { source, fetched })
}

/// Tells whether bytes begin a tar, plain or compressed.
pub fn looks_like_archive(bytes: &[u8]) -> bool {
    let magics: [&[u8]; 4] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    magics.iter().any(|magic| bytes.starts_with(magic)) || is_tar_header(bytes)
}

/// Tells whether bytes begin with a tar header: the sum of one holds, also in archives older than `ustar`.
fn is_tar_header(bytes: &[u8]) -> bool {
    let Some(header) = bytes.get(..512) else {
        return false;
    };
    let field = String::from_utf8_lossy(&header[148..156]);
    let digits = field.trim_matches(|c: char| c == ' ' || c == '\0');
    let Ok(wanted) = u32::from_str_radix(digits, 8) else {
        return false;
    };
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    wanted == sum(&header[..148]) + 8 * u32::from(b' ') + sum(&header[156..])
}

/// Unpacks an archive, compressed in any way the reference knows, into a directory for this build.
fn unpack(archive: &Path, cancel: &Cancel) -> Result<(PathBuf, TempDir), EngineError> {
    let unpacked = temporary("context")?;
    let directory = unpacked.path().join("context");
    std::fs::create_dir(&directory).map_err(EngineError::io("create", &directory))?;
    let archive = archive
        .canonicalize()
        .map_err(EngineError::io("open", archive))?;
    let (Some(folder), Some(name)) = (archive.parent(), archive.file_name()) else {
        return Err(no_archive());
    };
    let name = name.to_string_lossy();
    let mut copy = Copy::new(format!("/{name}"), "/");
    copy.unpack = true;
    // Files of a context are root's, and no one else may be there to give them to.
    copy.owner = Some(Owner { uid: 0, gid: 0 });
    let (flag, _guard) = Cancel::flag_of(std::slice::from_ref(cancel));
    copy.stopped = Some(flag);
    match rootfs::copy::copy(&Tree::open(folder)?, &Tree::open(&directory)?, &copy) {
        Err(rootfs::Error::Stopped) => return Err(EngineError::Canceled),
        copied => copied.map(drop)?,
    }
    // What is no archive was copied as it is.
    let copied = std::fs::read_dir(&directory).map_err(EngineError::io("list", &directory))?;
    let entries: Vec<_> = copied.flatten().map(|entry| entry.file_name()).collect();
    let is_same = |one: &Path, other: &Path| {
        let size = |path: &Path| std::fs::metadata(path).map(|meta| meta.len()).ok();
        size(one) == size(other)
    };
    match entries.as_slice() {
        [only] if *only == *name && is_same(&directory.join(only), &archive) => Err(no_archive()),
        _ => Ok((directory, unpacked)),
    }
}

fn no_archive() -> EngineError {
    EngineError::Request("the context is neither a directory nor a tar archive".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_told_from_dockerfiles() {
        for magic in [
            &b"\x1f\x8b\x08"[..],
            b"BZh9",
            b"\xfd7zXZ\0\0",
            b"\x28\xb5\x2f\xfd",
        ] {
            assert!(looks_like_archive(magic));
        }
        assert!(!looks_like_archive(b"FROM scratch\n"));
        assert!(!looks_like_archive(&b"# comment\n".repeat(100)));
        let mut header = vec![0; 1024];
        header[..4].copy_from_slice(b"name");
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header[..512].iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert!(looks_like_archive(&header), "a tar of the oldest kind");
    }
}
