//! Files in and out of containers, with the rules of `docker cp`.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rootfs::copy::{Copy, Owner};
use rootfs::{Follow, RootPath, Tree};
use store::{Layer, NamedLock, Store};

use super::Container;
use crate::container::find_container;
use crate::error::is_out_of_room;
use crate::export::files::NewFile;
use crate::{Engine, EngineError};

/// Where files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopySource {
    Container {
        container: String,
        path: String,
    },
    /// A path of this machine; a trailing slash and `.` count.
    Local(PathBuf),
    /// A tar on standard input.
    Stdin,
}

/// Where files go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyTarget {
    Container {
        container: String,
        path: String,
    },
    Local(PathBuf),
    /// A tar on standard output.
    Stdout,
}

/// How files are copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyOptions {
    /// Owners are kept.
    pub archive: bool,
    /// A source that is a symlink stands for what it points to.
    pub follow_link: bool,
}

/// Something to copy: a path in a tree.
struct From {
    tree: Tree,
    path: String,
    /// The name it has in a directory; `None` for the contents of a directory.
    name: Option<String>,
    is_dir: bool,
    /// A symlink stands for what it points to.
    follow: bool,
    _held: Held,
}

/// Somewhere to copy to: a path in a tree.
struct Into {
    tree: Tree,
    path: String,
    /// What was written, for messages.
    shown: String,
    /// It ends in a slash: it has to be a directory.
    says_dir: bool,
    _held: Held,
}

/// What a copy keeps from being removed.
#[derive(Default)]
struct Held {
    _layers: Vec<Layer>,
    _lock: Option<NamedLock>,
    _temporary: Option<store::MutLayer>,
}

impl Engine {
    /// Copies files; returns the bytes copied.
    pub fn copy(
        &self,
        source: &CopySource,
        target: &CopyTarget,
        options: CopyOptions,
    ) -> Result<u64, EngineError> {
        match (source, target) {
            (CopySource::Container { .. }, CopyTarget::Container { .. }) => {
                Err(wrong("copying between containers is not supported"))
            }
            (
                CopySource::Local(_) | CopySource::Stdin,
                CopyTarget::Local(_) | CopyTarget::Stdout,
            ) => Err(wrong("must specify at least one container source")),
            (CopySource::Container { container, path }, CopyTarget::Local(local)) => {
                let from = self.source_in_container(container, path, options)?;
                let into = into_local(local)?;
                let owner = match options.archive {
                    true => None,
                    false => Some(Owner {
                        uid: rustix::process::geteuid().as_raw(),
                        gid: rustix::process::getegid().as_raw(),
                    }),
                };
                // The paths in such an error begin where the files go, which need not be the store's disk.
                transfer(&from, &into, owner).map_err(|error| match is_out_of_room(&error) {
                    true => EngineError::io("write", local)(std::io::Error::other(error)),
                    false => error,
                })
            }
            (CopySource::Container { container, path }, CopyTarget::Stdout) => {
                let from = self.source_in_container(container, path, options)?;
                self.write_tar(
                    &from,
                    Path::new("standard output"),
                    std::io::stdout().lock(),
                )
            }
            (CopySource::Local(local), CopyTarget::Container { container, path }) => {
                let from = from_local(local, options)?;
                let into = self.target_in_container(container, path)?;
                let owner = match options.archive {
                    true => None,
                    false => Some(Owner { uid: 0, gid: 0 }),
                };
                transfer(&from, &into, owner)
            }
            (CopySource::Stdin, CopyTarget::Container { container, path }) => {
                let from = self.source_on_stdin()?;
                let into = self.target_in_container(container, path)?;
                let found = into.tree.stat(&root_path(&into.path)?, Follow::Last)?;
                if !found.is_some_and(|meta| meta.is_dir()) {
                    return Err(wrong(&format!(
                        "destination \"{container}:{path}\" must be a directory"
                    )));
                }
                transfer(&from, &into, None)
            }
        }
    }

    fn source_in_container(
        &self,
        wanted: &str,
        path: &str,
        options: CopyOptions,
    ) -> Result<From, EngineError> {
        let container = find_container(self.store(), wanted)?;
        let layers = leased(self.store(), &container)?;
        let upper = self.store().container_folder(&container.id).join("fs");
        let mut paths: Vec<&Path> = layers.iter().map(Layer::path).collect();
        paths.push(&upper);
        let tree = Tree::open_layers(&paths, self.shared.xattrs())?;
        let ends = Ends::of(path);
        let clean = root_path(path)?;
        let follow = match options.follow_link || ends.slash || ends.dot {
            true => Follow::Last,
            false => Follow::Parents,
        };
        let missing = || {
            wrong(&format!(
                "Could not find the file {path} in container {wanted}"
            ))
        };
        let meta = tree.stat(&clean, follow)?;
        // A tree that nothing was ever put into has a root all the same.
        let is_dir = match meta {
            Some(meta) => meta.is_dir(),
            None if clean.is_root() => true,
            None => return Err(missing()),
        };
        if (ends.slash || ends.dot) && !is_dir {
            return Err(wrong(&format!("{wanted}:{path} is not a directory")));
        }
        let name = clean
            .file_name()
            .map(|name| String::from_utf8_lossy(name).into_owned());
        Ok(From {
            tree,
            path: clean.to_string(),
            name: name.filter(|_| !ends.dot),
            is_dir,
            follow: follow == Follow::Last,
            _held: Held {
                _layers: layers,
                ..Held::default()
            },
        })
    }

    fn target_in_container(&self, wanted: &str, path: &str) -> Result<Into, EngineError> {
        let store = self.store();
        let container = find_container(store, wanted)?;
        let Some(lock) = store.try_lock_container(&container.id)? else {
            return Err(wrong(&format!(
                "container {wanted} is running: stop it before files are copied into it"
            )));
        };
        let layers = leased(store, &container)?;
        let upper = store.container_folder(&container.id).join("fs");
        Ok(Into {
            tree: self.shared.writable_tree(&layers, &upper)?,
            path: root_path(path)?.to_string(),
            shown: format!("{wanted}:{path}"),
            says_dir: Ends::of(path).says_dir(),
            _held: Held {
                _layers: layers,
                _lock: Some(lock),
                _temporary: None,
            },
        })
    }

    /// Unpacks the tar on standard input where nobody else sees it.
    fn source_on_stdin(&self) -> Result<From, EngineError> {
        let layer = self.store().new_layer()?;
        let path = layer.path();
        let dir = rootfs::LayerDir::open(&path)?;
        let options = rootfs::apply::ApplyOptions::new(rootfs::Form::Plain);
        rootfs::apply::apply_layer(std::io::stdin(), &dir, &options)?;
        Ok(From {
            tree: Tree::open(&path)?,
            path: "/".to_owned(),
            name: None,
            is_dir: true,
            follow: false,
            _held: Held {
                _temporary: Some(layer),
                ..Held::default()
            },
        })
    }

    /// Writes all files of a container as a tar.
    pub fn export_container(
        &self,
        wanted: &str,
        out: impl std::io::Write,
    ) -> Result<u64, EngineError> {
        self.export_as(wanted, Path::new("the tar"), out)
    }

    /// Writes all files of a container as a tar into a file, which appears once it is whole.
    pub fn export_container_to(&self, wanted: &str, path: &Path) -> Result<u64, EngineError> {
        NewFile::write(path, |out| self.export_as(wanted, path, out))
    }

    fn export_as(
        &self,
        wanted: &str,
        shown: &Path,
        out: impl std::io::Write,
    ) -> Result<u64, EngineError> {
        let from = self.source_in_container(wanted, "/", CopyOptions::default())?;
        self.write_tar(&from, shown, out)
    }

    /// Writes a source as a tar: what it is named in the archive is its own name. Where it goes is only shown.
    fn write_tar(
        &self,
        from: &From,
        shown: &Path,
        out: impl std::io::Write,
    ) -> Result<u64, EngineError> {
        let layer = self.store().new_layer()?;
        let path = layer.path();
        let mut wanted = Copy::new(from.path.clone(), "/");
        wanted.follow_symlink = from.follow;
        wanted.dir_contents = from.name.is_none();
        let report = rootfs::copy::copy(&from.tree, &Tree::open(&path)?, &wanted)?;
        let dir = rootfs::LayerDir::open(&path)?;
        let options = rootfs::diff::DiffOptions::new(rootfs::Form::Plain);
        let compress =
            rootfs::compress::CompressOptions::new(rootfs::compress::Compression::Uncompressed);
        rootfs::diff::write_layer(&dir, None, &options, &compress, out).map_err(
            |error| match error {
                rootfs::Error::WriteLayer { source } => EngineError::io("write", shown)(source),
                other => other.into(),
            },
        )?;
        Ok(report.bytes)
    }
}

/// Puts a source where it goes by the rules of `docker cp`.
fn transfer(from: &From, into: &Into, owner: Option<Owner>) -> Result<u64, EngineError> {
    let target = root_path(&into.path)?;
    let found = into.tree.stat(&target, Follow::Last)?;
    let found_dir = match found {
        Some(meta) => Some(meta.is_dir()),
        None if target.is_root() => Some(true),
        None => None,
    };
    let mut wanted = Copy::new(from.path.clone(), into.path.clone());
    wanted.owner = owner;
    wanted.follow_symlink = from.follow;
    wanted.dir_contents = true;
    match (from.is_dir, found_dir) {
        (true, Some(false)) => {
            return Err(wrong(&format!(
                "cannot copy a directory to the file {}",
                into.shown
            )));
        }
        (_, Some(true)) => match &from.name {
            // By its own name: a symlink that has it there is replaced, not followed.
            Some(name) if from.path.ends_with(&format!("/{name}")) => wanted.dir_contents = false,
            Some(name) => {
                let slash = if target.is_root() { "" } else { "/" };
                wanted.dest = format!("{target}{slash}{name}");
            }
            None => {}
        },
        (false, Some(false)) if into.says_dir => {
            return Err(wrong(&format!("{} is not a directory", into.shown)));
        }
        (false, None) if into.says_dir => {
            return Err(wrong(&format!("no such directory: {}", into.shown)));
        }
        (false, Some(false)) => {}
        (_, None) => {
            let parent = target.parent().unwrap_or_else(RootPath::root);
            let is_dir = into
                .tree
                .stat(&parent, Follow::Last)?
                .is_some_and(|meta| meta.is_dir());
            if !is_dir && !parent.is_root() {
                return Err(wrong(&format!(
                    "no such directory: the parent of {}",
                    into.shown
                )));
            }
        }
    }
    let report = rootfs::copy::copy(&from.tree, &into.tree, &wanted)?;
    Ok(report.bytes)
}

/// How a path ends, which says what is meant.
struct Ends {
    slash: bool,
    dot: bool,
}

impl Ends {
    fn of(path: &str) -> Self {
        Self {
            slash: path.ends_with('/'),
            dot: path == "." || path.ends_with("/."),
        }
    }

    fn says_dir(&self) -> bool {
        self.slash || self.dot
    }
}

fn from_local(path: &Path, options: CopyOptions) -> Result<From, EngineError> {
    let text = text_of(path)?;
    let ends = Ends::of(text);
    // `..` has no name of its own; what a slash or -L follows has that of its target.
    let whole = ends.says_dir() || options.follow_link || path.file_name().is_none();
    let (parent, name) = match whole {
        true => {
            let found = path
                .canonicalize()
                .map_err(|error| unreadable(path, error))?;
            if ends.says_dir() && !found.is_dir() {
                return Err(wrong(&format!("{text} is not a directory")));
            }
            let name = match options.follow_link {
                true => path.file_name().map(ToOwned::to_owned),
                false => found.file_name().map(ToOwned::to_owned),
            };
            let inner = found.file_name().map(ToOwned::to_owned);
            let parent = found.parent().unwrap_or(Path::new("/")).to_owned();
            (parent, (inner, name))
        }
        false => {
            path.symlink_metadata()
                .map_err(|error| unreadable(path, error))?;
            let parent = match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            let parent = parent
                .canonicalize()
                .map_err(|error| unreadable(path, error))?;
            let name = path.file_name().map(ToOwned::to_owned);
            (parent, (name.clone(), name))
        }
    };
    let (inner, shown) = name;
    let inner = match &inner {
        Some(name) => format!("/{}", text_of(Path::new(name))?),
        None => "/".to_owned(),
    };
    let shown = shown
        .map(|name| text_of(Path::new(&name)).map(ToOwned::to_owned))
        .transpose()?;
    let tree = Tree::open(&parent)?;
    let is_dir = tree
        .stat(&root_path(&inner)?, Follow::Parents)?
        .is_some_and(|meta| meta.is_dir());
    Ok(From {
        tree,
        path: inner,
        name: shown.filter(|_| !ends.dot),
        is_dir,
        follow: false,
        _held: Held::default(),
    })
}

fn unreadable(path: &Path, error: std::io::Error) -> EngineError {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            wrong(&format!("{}: no such file or directory", path.display()))
        }
        _ => EngineError::io("read", path)(error),
    }
}

fn into_local(path: &Path) -> Result<Into, EngineError> {
    let text = text_of(path)?;
    let says_dir = Ends::of(text).says_dir();
    // What is there may be a link to elsewhere on this machine.
    let (parent, name) = match path.canonicalize() {
        Ok(found) if found.is_dir() => (found, String::new()),
        Ok(found) => split(&found)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let (parent, name) = split(path)?;
            let parent = match parent.as_os_str().is_empty() {
                true => PathBuf::from("."),
                false => parent,
            };
            let found = parent.canonicalize().map_err(|_| {
                wrong(&format!(
                    "invalid output path: directory {:?} does not exist",
                    parent.display().to_string()
                ))
            })?;
            (found, name)
        }
        Err(error) => return Err(EngineError::io("open", path)(error)),
    };
    Ok(Into {
        tree: Tree::open(&parent)?,
        path: format!("/{name}"),
        shown: text.to_owned(),
        says_dir,
        _held: Held::default(),
    })
}

fn split(path: &Path) -> Result<(PathBuf, String), EngineError> {
    let name = path
        .file_name()
        .ok_or_else(|| wrong(&format!("{} has no name", path.display())))?;
    let parent = path.parent().unwrap_or(Path::new("/")).to_owned();
    Ok((parent, text_of(Path::new(name))?.to_owned()))
}

fn text_of(path: &Path) -> Result<&str, EngineError> {
    std::str::from_utf8(path.as_os_str().as_bytes())
        .map_err(|_| wrong(&format!("the path {} is not UTF-8", path.display())))
}

fn leased(store: &Store, container: &Container) -> Result<Vec<Layer>, EngineError> {
    store
        .layers(&container.layers)?
        .ok_or_else(|| EngineError::Image {
            subject: container.config.image.clone(),
            reason: "a layer of it is missing from the store".to_owned(),
        })
}

fn root_path(path: &str) -> Result<RootPath, EngineError> {
    Ok(RootPath::new(path)?)
}

fn wrong(text: &str) -> EngineError {
    EngineError::Request(text.to_owned())
}
