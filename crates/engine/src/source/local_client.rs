//! This machine as the client of a graph: its directories, layouts, secrets and agents.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use oci::Digest;
use oci::layout::blob_path;
use progress::RunningVertex;
use tempfile::TempDir;

use crate::EngineError;
use crate::client::{AgentAddress, BuildClient, LocalDirectory, LocalFiles, LocalFilter};
use crate::request::{BuildRequest, SecretSource};
use crate::step::read_secret;

/// The name under which the Dockerfile is asked for.
pub(crate) const DOCKERFILE: &str = "dockerfile";

/// What a build of this machine offers to graphs.
pub(crate) struct LocalClient {
    pub(super) directories: BTreeMap<String, PathBuf>,
    pub(super) layouts: BTreeMap<String, PathBuf>,
    secrets: BTreeMap<String, SecretSource>,
    /// The Dockerfile alone, with its own ignore file.
    dockerfile: TempDir,
}

impl LocalClient {
    /// Makes a client of directories and layouts by name, with a Dockerfile under a name of its own.
    pub(super) fn new(
        request: &BuildRequest,
        directories: BTreeMap<String, PathBuf>,
        layouts: BTreeMap<String, PathBuf>,
        files: &[(String, &[u8])],
    ) -> Result<Self, EngineError> {
        let dockerfile = super::temporary("dockerfile")?;
        for (name, bytes) in files {
            let path = dockerfile.path().join(name);
            std::fs::write(&path, bytes).map_err(EngineError::io("write", &path))?;
        }
        Ok(Self {
            directories,
            layouts,
            secrets: request.secrets.clone(),
            dockerfile,
        })
    }
}

impl BuildClient for LocalClient {
    fn directory(
        &self,
        wanted: &LocalFiles,
        _running: &RunningVertex,
    ) -> Result<LocalDirectory, EngineError> {
        let path = match (wanted.name.as_str(), self.directories.get(&wanted.name)) {
            (_, Some(path)) => path.clone(),
            (DOCKERFILE, None) => self.dockerfile.path().to_owned(),
            (name, None) => {
                return Err(EngineError::Request(format!(
                    "the build has no directory {name:?}"
                )));
            }
        };
        let mut include = wanted.include_patterns.clone();
        if !wanted.follow_paths.is_empty() {
            match followed(&path, &wanted.follow_paths) {
                None => include.clear(),
                Some(followed) => include.extend(followed),
            }
        }
        Ok(LocalDirectory {
            path,
            filter: Some(LocalFilter {
                include,
                exclude: wanted.exclude_patterns.clone(),
            }),
            held: Box::new(()),
        })
    }

    fn upload(&self, url: &str, _into: &mut dyn Write) -> Result<(), EngineError> {
        Err(EngineError::Request(format!(
            "there is no client to take {url} from"
        )))
    }

    fn content(
        &self,
        store: &str,
        digest: &Digest,
        into: &mut dyn Write,
    ) -> Result<(), EngineError> {
        let layout = self
            .layouts
            .get(store)
            .ok_or_else(|| EngineError::Request(format!("the build has no layout {store:?}")))?;
        let path = layout.join(blob_path(digest));
        let mut file = File::open(&path).map_err(EngineError::io("open", &path))?;
        std::io::copy(&mut file, into).map_err(EngineError::io("read", &path))?;
        Ok(())
    }

    fn secret(&self, id: &str) -> Result<Option<Vec<u8>>, EngineError> {
        read_secret(&self.secrets, id, true)
    }

    fn agent(&self, _id: &str) -> Result<Option<AgentAddress>, EngineError> {
        // A step finds them where it finds its other settings.
        Ok(None)
    }
}

/// Links that lead to each other are followed no further.
const MOST_LINKS: usize = 255;

/// Returns paths, and those that links among them lead to; `None` where everything is meant.
fn followed(root: &Path, paths: &[String]) -> Option<Vec<String>> {
    let mut found = Vec::new();
    for path in paths {
        let mut left = MOST_LINKS;
        follow(root, path, &mut left, &mut found);
    }
    found.sort();
    found.dedup();
    match found.iter().any(String::is_empty) {
        true => None,
        false => Some(found),
    }
}

fn follow(root: &Path, path: &str, left: &mut usize, found: &mut Vec<String>) {
    let mut walked = String::new();
    let mut parts = dockerfile::paths::join("/", path);
    parts = parts.trim_start_matches('/').to_owned();
    let mut rest = parts.split('/').filter(|part| !part.is_empty()).peekable();
    while let Some(part) = rest.next() {
        let parent = walked.clone();
        if !walked.is_empty() {
            walked.push('/');
        }
        walked.push_str(part);
        let Ok(target) = std::fs::read_link(root.join(&walked)) else {
            continue;
        };
        let Some(target) = target.to_str().filter(|_| *left > 0) else {
            break;
        };
        *left -= 1;
        // The link itself is needed too.
        found.push(walked.clone());
        let behind: Vec<&str> = rest.collect();
        let base = match target.starts_with('/') {
            true => "/".to_owned(),
            false => format!("/{parent}"),
        };
        let target = dockerfile::paths::join(&base, target);
        follow(root, &format!("{target}/{}", behind.join("/")), left, found);
        return;
    }
    found.push(walked);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_within_the_directory() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        symlink("a/b", root.join("link")).unwrap();
        symlink("/link/../c", root.join("a/b/up")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let of = |path: &str| followed(root, &[path.to_owned()]);
        assert_eq!(of("plain/x"), Some(vec!["plain/x".to_owned()]));
        assert_eq!(of("link/x").unwrap(), ["a/b/x", "link"]);
        assert_eq!(of("link/up").unwrap(), ["a/b/up", "c", "link"]);
        assert_eq!(of("../../etc").unwrap(), ["etc"]);
        assert_eq!(of("loop").unwrap(), ["loop"]);
        assert_eq!(of("."), None);
        assert_eq!(of("/"), None);
    }
}
