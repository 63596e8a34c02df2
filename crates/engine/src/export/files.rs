//! Writes the files of the result: into a directory, or as a tar.

use std::io::Write;
use std::path::Path;

use progress::RunningVertex;
use rootfs::compress::{CompressOptions, Compression};
use rootfs::copy::{Copy, Owner, Powers, copy};
use rootfs::diff::DiffOptions;
use rootfs::{Form, LayerDir, Tree};

use super::Exported;
use super::ahead::Stoppable;
use crate::build::Built;
use crate::request::Destination;
use crate::step::Shared;
use crate::{Cancel, EngineError};

/// Copies the result into a directory; several platforms get a folder each.
pub(crate) fn to_directory(
    shared: &Shared,
    destination: &Path,
    platform_split: Option<bool>,
    built: &[Built],
    running: &RunningVertex,
) -> Result<Exported, EngineError> {
    let mut left_out = 0;
    let several = built.len() > 1;
    let split = platform_split.unwrap_or(several);
    for built in built {
        let folder = match split {
            true => destination.join(folder_of(built)),
            false => destination.to_owned(),
        };
        std::fs::create_dir_all(&folder).map_err(EngineError::io("create", &folder))?;
        let mut wanted = Copy::new("/", "/");
        wanted.dir_contents = true;
        wanted.replace = true;
        // The files are for whoever asked for them.
        wanted.owner = Some(Owner {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        });
        // A device node, or a program of another user that becomes root's, is power over this machine.
        wanted.powers = match rustix::process::geteuid().is_root() {
            true => Powers::Dropped,
            false => Powers::NoDevices,
        };
        if !built.layers.is_empty() {
            let done = copy(&shared.tree(&built.layers)?, &Tree::open(&folder)?, &wanted)?;
            left_out += done.left_out;
        }
        attest(shared, built, several && !split, &folder)?;
    }
    if left_out > 0 {
        running.warn(format!(
            "device nodes of the result are left out ({left_out}): a directory gets none; a tar or an image has them"
        ));
    }
    Ok(Exported::default())
}

/// Writes what is said of a result beside its files, which have nothing to say to it: a file of the same name is
/// replaced, a link is not followed.
fn attest(
    shared: &Shared,
    built: &Built,
    platform_in_name: bool,
    folder: &Path,
) -> Result<(), EngineError> {
    for (name, bytes) in crate::attest::beside_files(shared, built, platform_in_name)? {
        let path = folder.join(name);
        tempfile::NamedTempFile::new_in(folder)
            .and_then(|mut file| {
                file.write_all(&bytes)?;
                file.persist(&path).map_err(|failed| failed.error)
            })
            .map_err(EngineError::io("write", &path))?;
    }
    Ok(())
}

/// Returns the name of a platform's folder.
fn folder_of(built: &Built) -> String {
    built.build.platform.full().replace('/', "_")
}

/// Writes the result as one tar stream; several platforms get a folder each.
pub(crate) fn to_tar(
    shared: &Shared,
    destination: &Destination,
    built: &[Built],
    cancel: &Cancel,
) -> Result<Exported, EngineError> {
    let merged = shared.store.new_layer()?;
    for one in built {
        let folder = match built.len() {
            1 => merged.path(),
            _ => merged.path().join(folder_of(one)),
        };
        std::fs::create_dir_all(&folder).map_err(EngineError::io("create", &folder))?;
        let mut wanted = Copy::new("/", "/");
        wanted.dir_contents = true;
        // The copy is read once and thrown away: links to the layers' files do as well.
        wanted.link = rootfs::copy::LinkPolicy::Allowed;
        if !one.layers.is_empty() {
            copy(&shared.tree(&one.layers)?, &Tree::open(&folder)?, &wanted)?;
        }
        attest(shared, one, false, &folder)?;
    }
    let dir = LayerDir::open(merged.path())?;
    let options = DiffOptions::new(Form::Plain);
    let compress = CompressOptions::new(Compression::Uncompressed);
    let write = |inner: &mut dyn Write| {
        let stop = Some(cancel);
        let out = Stoppable { inner, stop };
        rootfs::diff::write_layer(&dir, None, &options, &compress, out)
    };
    match destination {
        Destination::Stdout => write(&mut std::io::stdout())?,
        Destination::Engine(engine) => {
            return Err(EngineError::Request(format!(
                "{} takes images, not files",
                engine.name
            )));
        }
        Destination::Path(path) => NewFile::write(path, |out| Ok(write(out)?))?,
    };
    Ok(Exported::default())
}

/// A file that appears under its name only once it is whole.
#[derive(Debug)]
pub(crate) struct NewFile {
    file: std::fs::File,
    temporary: tempfile::TempPath,
    path: std::path::PathBuf,
}

impl NewFile {
    /// Begins a file beside its place, which a link leads to; `None` where something stands that cannot be replaced by
    /// a file.
    pub(crate) fn begin(path: &Path) -> Result<Option<Self>, EngineError> {
        // What these name is open already, under whatever name.
        let is_open = ["/dev", "/proc"].iter().any(|top| path.starts_with(top));
        if is_open || path.exists() && !path.is_file() {
            return Ok(None);
        }
        let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let temporary = tempfile::Builder::new()
            .prefix(".lapstrake-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(folder)
            .map_err(EngineError::io("create a file in", folder))?;
        let (file, temporary) = temporary.into_parts();
        Ok(Some(Self {
            file,
            temporary,
            path: path.to_owned(),
        }))
    }

    /// Writes a file whole; a device or a pipe is written to as it is.
    pub(crate) fn write<T>(
        path: &Path,
        write: impl FnOnce(&mut dyn Write) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        match Self::begin(path)? {
            Some(mut new) => {
                let written = write(&mut new.file)?;
                new.finish()?;
                Ok(written)
            }
            None => {
                let file = std::fs::File::create(path);
                write(&mut file.map_err(EngineError::io("open", path))?)
            }
        }
    }

    /// Returns another descriptor of the file.
    pub(crate) fn another(&self) -> Result<std::fs::File, EngineError> {
        self.file
            .try_clone()
            .map_err(EngineError::io("open", &self.path))
    }

    pub(crate) fn finish(self) -> Result<(), EngineError> {
        self.temporary
            .persist(&self.path)
            .map_err(|error| EngineError::io("rename an archive to", &self.path)(error.error))
    }
}
