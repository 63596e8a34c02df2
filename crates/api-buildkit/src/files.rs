//! Reads single files: of a client's directories, and of trees.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use bollard_buildkit_proto::fsutil::types::Stat;
use dockerfile::ignore::Matcher;
use engine::LocalFiles;
use frontend::{MainContext, git_source};
use llb::{Copy, Draft, FileSpec, GraphBuilder, Metadata, Op, SourceOp, attr};
use progress::Vertex;
use rootfs::{Kind, Meta, RootPath};

use crate::build::{Build, Tree};
use crate::error::Failure;
use crate::wire;

/// The largest Dockerfile, ignore file, or piece a client reads, in bytes.
const MOST: u64 = 64 << 20;

/// What a client says of a directory it does not have.
const NO_ACCESS: &str = "no access allowed to dir";

/// Where a frontend's own files are.
pub(crate) enum Files {
    /// A directory of the client, by name.
    Local(String),
    Tree(Arc<Tree>),
}

impl Files {
    /// Reads files by their paths; `None` for what is not there. Blocks.
    pub(crate) fn read(
        &self,
        build: &Build,
        shown: &str,
        paths: &[&str],
    ) -> Result<Vec<Option<Vec<u8>>>, Failure> {
        match self {
            Self::Tree(tree) => paths
                .iter()
                .map(|path| match read(build, tree, path, None) {
                    Ok(bytes) => Ok(Some(bytes)),
                    Err(failure) if failure.code == tonic::Code::NotFound => Ok(None),
                    Err(failure) => Err(failure),
                })
                .collect(),
            Self::Local(name) => {
                let running = build.sink.vertex(Vertex::named(shown)).start();
                let wanted = LocalFiles {
                    name: name.clone(),
                    follow_paths: paths.iter().map(|path| (*path).to_owned()).collect(),
                    shared_key_hint: format!("{name}-files"),
                    fresh: true,
                    ..LocalFiles::default()
                };
                let found = build
                    .client
                    .directory(&wanted, &running)
                    .map(Some)
                    .map_err(Failure::from)
                    .or_else(|failure| match failure.message.starts_with(NO_ACCESS) {
                        true => Ok(None),
                        false => Err(failure),
                    })
                    .and_then(|directory| {
                        let Some(directory) = directory else {
                            return Ok(vec![None; paths.len()]);
                        };
                        let tree = rootfs::Tree::open(&directory.path).map_err(unreadable)?;
                        paths
                            .iter()
                            .map(|path| {
                                let path = RootPath::new(path).map_err(unreadable)?;
                                tree.read(&path, MOST).map_err(unreadable)
                            })
                            .collect::<Result<Vec<_>, Failure>>()
                    });
                running.conclude(&found, |failure| failure.message.clone());
                found
            }
        }
    }
}

fn unreadable(error: rootfs::Error) -> Failure {
    Failure::unknown(engine::chain(&error))
}

fn not_found(action: &str, path: &str) -> Failure {
    Failure::new(
        tonic::Code::NotFound,
        format!("{action} {path}: no such file or directory"),
    )
}

fn open(build: &Build, tree: &Tree) -> Result<Option<rootfs::Tree>, Failure> {
    let solved = tree.solve(build)?;
    Ok(build.engine.open_tree(&solved)?)
}

/// Reads a file of a tree, or a range of it.
pub(crate) fn read(
    build: &Build,
    tree: &Tree,
    path: &str,
    range: Option<(u64, u64)>,
) -> Result<Vec<u8>, Failure> {
    read_of(open(build, tree)?.as_ref(), path, range)
}

/// Reads a file of an open tree, or a range of it.
pub(crate) fn read_of(
    root: Option<&rootfs::Tree>,
    path: &str,
    range: Option<(u64, u64)>,
) -> Result<Vec<u8>, Failure> {
    let place = RootPath::new(path).map_err(unreadable)?;
    let missing = || not_found("open", path);
    let root = root.ok_or_else(missing)?;
    let Some((offset, length)) = range else {
        return root
            .read(&place, MOST)
            .map_err(unreadable)?
            .ok_or_else(missing);
    };
    let meta = root
        .stat(&place, rootfs::Follow::Last)
        .map_err(unreadable)?;
    match meta {
        None => return Err(missing()),
        Some(meta) if meta.kind != Kind::File => {
            return Err(Failure::unknown(format!("read {path}: not a regular file")));
        }
        Some(_) => {}
    }
    let file = root.open_file(&place).map_err(unreadable)?;
    let mut file = std::fs::File::from(file);
    let mut read = || -> std::io::Result<Vec<u8>> {
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        let most = if length == 0 { MOST } else { length.min(MOST) };
        (&mut file).take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|error| Failure::unknown(format!("read {path}: {error}")))
}

/// Returns the attributes of a file of a tree.
pub(crate) fn stat(build: &Build, tree: &Tree, path: &str) -> Result<Stat, Failure> {
    stat_of_path(open(build, tree)?.as_ref(), path)
}

/// Returns the attributes of a file of an open tree.
pub(crate) fn stat_of_path(root: Option<&rootfs::Tree>, path: &str) -> Result<Stat, Failure> {
    let place = RootPath::new(path).map_err(unreadable)?;
    let missing = || not_found("lstat", path);
    let root = root.ok_or_else(missing)?;
    let meta = root
        .stat(&place, rootfs::Follow::Parents)
        .map_err(unreadable)?
        .ok_or_else(missing)?;
    let name = path
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or(path);
    Ok(stat_of(root, &place, name, &meta))
}

/// Returns the attributes of what is in a directory of a tree.
pub(crate) fn list(
    build: &Build,
    tree: &Tree,
    path: &str,
    pattern: &str,
) -> Result<Vec<Stat>, Failure> {
    list_of(open(build, tree)?.as_ref(), path, pattern)
}

/// Returns the attributes of what is in a directory of an open tree.
pub(crate) fn list_of(
    root: Option<&rootfs::Tree>,
    path: &str,
    pattern: &str,
) -> Result<Vec<Stat>, Failure> {
    let place = RootPath::new(path).map_err(unreadable)?;
    let missing = || not_found("open", path);
    let root = root.ok_or_else(missing)?;
    let entries = root
        .read_dir(&place)
        .map_err(unreadable)?
        .ok_or_else(missing)?;
    let matcher = match pattern {
        "" => None,
        pattern => Some(Matcher::new([pattern]).map_err(|error| {
            Failure::new(
                tonic::Code::InvalidArgument,
                format!("invalid pattern: {error}"),
            )
        })?),
    };
    let mut found = Vec::new();
    for (name, meta) in entries {
        let taken = match &matcher {
            None => true,
            Some(matcher) => matcher.is_ignored(&name).unwrap_or(false),
        };
        if !taken {
            continue;
        }
        let mut inner = place.as_bytes().to_vec();
        inner.push(b'/');
        inner.extend_from_slice(&name);
        let inner = RootPath::new(&inner).map_err(unreadable)?;
        let name = String::from_utf8_lossy(&name);
        found.push(stat_of(root, &inner, &name, &meta));
    }
    Ok(found)
}

fn stat_of(root: &rootfs::Tree, place: &RootPath, name: &str, meta: &Meta) -> Stat {
    let mut stat = Stat {
        path: name.to_owned(),
        mode: wire::mode_of(meta.mode),
        uid: meta.owner.uid,
        gid: meta.owner.gid,
        mod_time: meta.modified.seconds * 1_000_000_000 + i64::from(meta.modified.nanoseconds),
        ..Stat::default()
    };
    match meta.kind {
        Kind::File => stat.size = meta.size as i64,
        Kind::Directory => stat.mode |= wire::DIRECTORY,
        Kind::Symlink => {
            stat.mode |= wire::SYMLINK;
            let target = root.read_link(place).ok().flatten().unwrap_or_default();
            stat.linkname = String::from_utf8_lossy(&target).into_owned();
        }
        Kind::Fifo => stat.mode |= wire::FIFO,
        Kind::Socket => stat.mode |= wire::SOCKET,
        Kind::Block | Kind::Character => {
            stat.mode |= wire::DEVICE;
            if meta.kind == Kind::Character {
                stat.mode |= wire::CHARACTER;
            }
            stat.devmajor = i64::from(meta.rdev.0);
            stat.devminor = i64::from(meta.rdev.1);
        }
    }
    stat
}

/// A context that no client's directory is.
pub(crate) struct RemoteContext {
    pub(crate) context: MainContext,
    /// Where the Dockerfile is, if not with the client.
    pub(crate) files: Option<Arc<Tree>>,
}

/// Reads what the attribute of the context names; `None` where it names nothing remote. Blocks.
pub(crate) fn remote_context(
    build: &Build,
    url: &str,
    build_args: &BTreeMap<String, String>,
) -> Result<Option<RemoteContext>, Failure> {
    if url.is_empty() {
        return Ok(None);
    }
    let is_http = url.starts_with("http://") || url.starts_with("https://");
    if let Ok(git) = dockerfile::git::GitRef::parse(url)
        && !git.is_like_local
    {
        let keep = build_args
            .get("BUILDKIT_CONTEXT_KEEP_GIT_DIR")
            .and_then(|value| dockerfile::parse_bool(value))
            .unwrap_or(false);
        let mut source = git_source(&git, keep, &git.checksum);
        if build_args
            .get("SOURCE_DATE_EPOCH")
            .is_some_and(|epoch| !epoch.is_empty())
        {
            source
                .attrs
                .insert(attr::GIT_MTIME.to_owned(), "commit".to_owned());
        }
        let name = format!("[internal] load git source {}", oci::without_user_info(url));
        return Ok(Some(RemoteContext {
            context: MainContext::Git {
                url: url.to_owned(),
                keep_git_dir: keep,
            },
            files: of_source(source, &name, false)?,
        }));
    }
    if !is_http {
        return Ok(None);
    }
    let source = SourceOp {
        identifier: url.to_owned(),
        attrs: BTreeMap::from([(attr::HTTP_FILENAME.to_owned(), "context".to_owned())]),
    };
    let name = "[internal] load remote build context";
    let Some(file) = of_source(source.clone(), name, false)? else {
        return Ok(None);
    };
    let start = read(build, &file, "context", Some((0, 1024)))
        .map_err(|failure| failure.context("failed to read downloaded context"))?;
    Ok(Some(match is_archive(&start) {
        true => RemoteContext {
            context: MainContext::HttpArchive {
                url: url.to_owned(),
            },
            files: of_source(source, name, true)?,
        },
        false => RemoteContext {
            context: MainContext::HttpFile {
                url: url.to_owned(),
            },
            files: Some(file),
        },
    }))
}

/// Makes a tree of a source, unpacked if it is an archive.
fn of_source(source: SourceOp, name: &str, unpack: bool) -> Result<Option<Arc<Tree>>, Failure> {
    let mut builder = GraphBuilder::default();
    let mut output = builder.add(Draft {
        metadata: Metadata::named(name),
        ..Draft::new(Op::Source(source), Vec::new())
    });
    if unpack {
        let mut unpacked = FileSpec::new(None);
        unpacked.copy(
            Some(output),
            Copy {
                source: "/context".to_owned(),
                dest: "/".to_owned(),
                unpack: true,
                ..Copy::default()
            },
        );
        output = builder.add(unpacked.into_draft(Metadata::default()));
    }
    let graph = builder
        .finish(Some(output))
        .map_err(|error| Failure::unknown(format!("failed to load LLB: {error}")))?;
    Tree::of_graph(graph, engine::KnownImages::default())
}

/// Returns what is in a directory of a tree, as a tree.
pub(crate) fn part_of(tree: &Arc<Tree>, folder: &str) -> Result<Option<Arc<Tree>>, Failure> {
    let mut builder = GraphBuilder::default();
    let from = builder.import(&tree.graph);
    let mut part = FileSpec::new(None);
    part.copy(
        from,
        Copy {
            source: format!("/{}", folder.trim_start_matches('/')),
            dest: "/".to_owned(),
            directory_contents: true,
            ..Copy::default()
        },
    );
    let output = builder.add(part.into_draft(Metadata::default()));
    let graph = builder
        .finish(Some(output))
        .map_err(|error| Failure::unknown(format!("failed to load LLB: {error}")))?;
    Tree::of_graph(graph, engine::KnownImages::default())
}

/// Tells an archive by its first bytes, as the reference does.
fn is_archive(start: &[u8]) -> bool {
    const MAGIC: [&[u8]; 4] = [
        b"BZh",
        &[0x1f, 0x8b, 0x08],
        &[0xfd, b'7', b'z', b'X', b'Z', 0],
        &[0x28, 0xb5, 0x2f, 0xfd],
    ];
    MAGIC.iter().any(|magic| start.starts_with(magic))
        || start.get(257..262).is_some_and(|magic| magic == b"ustar")
}
