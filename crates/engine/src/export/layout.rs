//! Writes an image in OCI layout (image-spec, image-layout.md), as an archive or a directory.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use oci::Digest;

use crate::EngineError;

/// Where the files of a layout go.
pub(crate) enum LayoutWriter {
    Archive(Archive),
    Directory(PathBuf, BTreeSet<Digest>),
}

/// A tar that is being written.
pub(crate) struct Archive {
    out: Box<dyn Write + Send>,
    file: Option<File>,
    path: PathBuf,
    written: BTreeSet<Digest>,
    folders: BTreeSet<String>,
}

impl LayoutWriter {
    /// Begins an archive. With a `file`, big blobs are copied by the kernel.
    pub(crate) fn archive(file: File, path: &Path) -> Self {
        Self::Archive(Archive {
            out: Box::new(std::io::sink()),
            file: Some(file),
            path: path.to_owned(),
            written: BTreeSet::new(),
            folders: BTreeSet::new(),
        })
    }

    /// Begins an archive on a stream.
    pub(crate) fn stream(out: Box<dyn Write + Send>) -> Self {
        Self::Archive(Archive {
            out,
            file: None,
            path: PathBuf::from("-"),
            written: BTreeSet::new(),
            folders: BTreeSet::new(),
        })
    }

    /// Begins a directory, which may hold a layout already.
    pub(crate) fn directory(path: &Path) -> Result<Self, EngineError> {
        let blobs = path.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).map_err(EngineError::io("create", &blobs))?;
        Ok(Self::Directory(path.to_owned(), BTreeSet::new()))
    }

    /// Adds a blob once.
    pub(crate) fn blob(
        &mut self,
        digest: &Digest,
        size: u64,
        content: &mut File,
    ) -> Result<(), EngineError> {
        let name = oci::layout::blob_path(digest);
        match self {
            Self::Archive(archive) => {
                if !archive.written.insert(digest.clone()) {
                    return Ok(());
                }
                archive.folder("blobs/")?;
                archive.folder("blobs/sha256/")?;
                archive.entry(&name, size, content)
            }
            Self::Directory(root, written) => {
                let path = root.join(&name);
                let there = std::fs::metadata(&path).is_ok_and(|meta| meta.len() == size);
                if !written.insert(digest.clone()) || there {
                    return Ok(());
                }
                write_file(&path, content)
            }
        }
    }

    /// Adds a small file; in a directory it replaces what is there.
    pub(crate) fn file(&mut self, name: &str, bytes: &[u8]) -> Result<(), EngineError> {
        match self {
            Self::Archive(archive) => {
                if let Some((folder, _)) = name.rsplit_once('/') {
                    let mut above = String::new();
                    for part in folder.split('/') {
                        above.push_str(part);
                        above.push('/');
                        archive.folder(&above)?;
                    }
                }
                archive.bytes(name, bytes)
            }
            Self::Directory(root, _) => write_file(&root.join(name), &mut &bytes[..]),
        }
    }

    /// Adds a small blob once.
    pub(crate) fn bytes(&mut self, digest: &Digest, bytes: &[u8]) -> Result<(), EngineError> {
        let written = match self {
            Self::Archive(archive) => &mut archive.written,
            Self::Directory(_, written) => written,
        };
        if !written.insert(digest.clone()) {
            return Ok(());
        }
        self.file(&oci::layout::blob_path(digest), bytes)
    }

    /// Ends it.
    pub(crate) fn finish(self) -> Result<(), EngineError> {
        match self {
            Self::Archive(mut archive) => {
                archive.write(&[0; 1024])?;
                archive
                    .out
                    .flush()
                    .map_err(EngineError::io("write", &archive.path))
            }
            Self::Directory(..) => Ok(()),
        }
    }
}

impl Archive {
    fn folder(&mut self, name: &str) -> Result<(), EngineError> {
        if !self.folders.insert(name.to_owned()) {
            return Ok(());
        }
        let header = header(name, 0, 0o755, tar::EntryType::Directory);
        self.write(&header)
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), EngineError> {
        let header = header(name, bytes.len() as u64, 0o644, tar::EntryType::Regular);
        self.write(&header)?;
        self.write(bytes)?;
        self.pad(bytes.len() as u64)
    }

    fn entry(&mut self, name: &str, size: u64, content: &mut File) -> Result<(), EngineError> {
        let header = header(name, size, 0o644, tar::EntryType::Regular);
        self.write(&header)?;
        // Between two files the kernel copies, or shares the blocks.
        let copied = match &mut self.file {
            Some(file) => std::io::copy(content, file),
            None => std::io::copy(&mut content.take(size), &mut self.out),
        }
        .map_err(EngineError::io("write", &self.path))?;
        if copied != size {
            return Err(EngineError::Image {
                subject: name.to_owned(),
                reason: format!("it has {copied} bytes instead of {size}"),
            });
        }
        self.pad(size)
    }

    fn pad(&mut self, size: u64) -> Result<(), EngineError> {
        let rest = (512 - size % 512) % 512;
        self.write(&[0; 512][..rest as usize])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), EngineError> {
        match &mut self.file {
            Some(file) => file.write_all(bytes),
            None => self.out.write_all(bytes),
        }
        .map_err(EngineError::io("write", &self.path))
    }
}

/// Returns a header whose bytes depend on nothing but what it says.
fn header(name: &str, size: u64, mode: u32, kind: tar::EntryType) -> [u8; 512] {
    let mut header = tar::Header::new_ustar();
    header
        .set_path(name)
        .expect("names in a layout are short and relative");
    header.set_size(size);
    header.set_mode(mode);
    header.set_entry_type(kind);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    *header.as_bytes()
}

/// Writes a file so that it is there whole or not at all.
fn write_file(path: &Path, content: &mut dyn Read) -> Result<(), EngineError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(EngineError::io("create", folder))?;
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder)
        .map_err(EngineError::io("create a file in", folder))?;
    std::io::copy(content, file.as_file_mut()).map_err(EngineError::io("write", path))?;
    file.persist(path)
        .map_err(|error| EngineError::io("rename a file to", path)(error.error))?;
    Ok(())
}
