//! The file operations.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::mode::ModeChange;
use super::walk::{Source, Target, copy_tree};
use super::{
    Copy, CopyReport, LinkPolicy, Mkdir, Mkfile, Owner, Remove, Symlink, Timestamp, Wildcard,
    pattern, unpack,
};
use crate::meta::{self, Kind};
use crate::resolve::{Follow, NewDirs, Resolved, make_missing};
use crate::tree::{Dir, Entry, Lookup, Tree, set_owner_at, set_owner_fd, timestamps};
use crate::{Error, Result, RootPath};

/// The mode of directories that a copy makes on the way.
const PARENT_MODE: u32 = 0o755;

/// A path as it was written: whether it ends in a slash or in `/.` says that it is a directory.
struct Written {
    path: RootPath,
    says_dir: bool,
    /// The last component is `.`: the directory itself, not something in it.
    ends_in_dot: bool,
}

impl Written {
    fn new(text: &str) -> Result<Written> {
        let ends_in_dot = text.ends_with("/.");
        Ok(Written {
            path: RootPath::new(text)?,
            says_dir: ends_in_dot || text.ends_with('/'),
            ends_in_dot,
        })
    }
}

/// Copies from one tree to another.
///
/// The two may be views of the same layers, but what is copied must not lie in the target.
pub fn copy(source: &Tree, dest: &Tree, request: &Copy) -> Result<CopyReport> {
    let mut report = CopyReport::default();
    let from = Written::new(&request.source)?;
    let to = Written::new(&request.dest)?;
    if !request.create_dest_path {
        let found = dest.resolve(&to.path, Follow::Last)?;
        if found.rest.len() > 1 {
            return Err(Error::NotFound {
                path: to.path.to_string(),
            });
        }
    }
    let follow = if request.follow_symlink {
        Follow::Last
    } else {
        Follow::Parents
    };
    if request.wildcard == Wildcard::No {
        copy_one(
            source,
            &from.path,
            from.ends_in_dot,
            dest,
            &to,
            request,
            &mut report,
        )?;
        return Ok(report);
    }
    let matches = pattern::expand(source, &from.path, follow)?;
    if matches.is_empty() && request.wildcard == Wildcard::Required {
        return Err(Error::NotFound {
            path: from.path.to_string(),
        });
    }
    // One match may lie in another, or lead to it.
    let several = (matches.len() > 1 && request.link != LinkPolicy::Never).then(|| {
        let linked = request.linked.clone();
        Copy {
            link: LinkPolicy::Allowed,
            linked: Some(linked.unwrap_or_default()),
            ..request.clone()
        }
    });
    let request = several.as_ref().unwrap_or(request);
    for path in matches {
        copy_one(source, &path, false, dest, &to, request, &mut report)?;
    }
    Ok(report)
}

/// Copies one path, which is no pattern.
fn copy_one(
    source: &Tree,
    path: &RootPath,
    ends_in_dot: bool,
    dest: &Tree,
    to: &Written,
    request: &Copy,
    report: &mut CopyReport,
) -> Result<()> {
    if request.unpack && unpack::unpack(source, path, dest, &to.path, request, report)? {
        return Ok(());
    }
    let follow = if request.follow_symlink {
        Follow::Last
    } else {
        Follow::Parents
    };
    let new = NewDirs {
        // A mode given in octal is that of new parents too; a symbolic one has nothing to start from.
        mode: match request.mode {
            Some(ModeChange::Set(mode)) => mode,
            _ => PARENT_MODE,
        },
        owner: request.owner,
        time: request.time,
    };
    let ensure = match (to.says_dir, to.path.parent()) {
        (false, Some(parent)) => parent,
        _ => to.path.clone(),
    };
    let (_, mut made) = make_missing(dest.resolve(&ensure, Follow::Last)?, &new)?;

    let found = source.resolve(path, follow)?;
    let source = match (&found.rest[..], found.leaf) {
        ([], _) => match found.dir.meta()? {
            Some(meta) => Source::Dir(found.dir, meta),
            // Nothing was ever put into this tree: there is only its root, with nothing in it.
            None => return Ok(()),
        },
        ([name], Some(entry)) => Source::Other(found.dir, name.clone(), entry),
        _ => {
            return Err(Error::NotFound {
                path: path.to_string(),
            });
        }
    };
    let name = path.file_name().filter(|_| !ends_in_dot);
    let target = target(
        dest.resolve(&to.path, Follow::Last)?,
        &source,
        name,
        request,
        &new,
        &mut made,
    )?;
    copy_tree(request, source, target, report)?;
    // What was made in new parents changed their times.
    if let Some(time) = request.time {
        made.iter().rev().try_for_each(|dir| dir.set_time(time))?;
    }
    Ok(())
}

/// Works out where a source goes, and makes the directory for it.
fn target(
    found: Resolved,
    source: &Source,
    name: Option<&[u8]>,
    request: &Copy,
    new: &NewDirs,
    made: &mut Vec<Arc<Dir>>,
) -> Result<Target> {
    let source_is_dir = matches!(source, Source::Dir(..));
    let goes_into = match source_is_dir {
        true => !request.dir_contents && found.exists(),
        false => found.is_dir(),
    };
    if goes_into {
        if found.leaf.is_some() {
            return Err(Error::NotADirectory {
                path: String::from_utf8_lossy(&found.path()).into_owned(),
            });
        }
        return Ok(match name {
            Some(name) => Target::Name(found.dir, to_cstring(name)),
            None => Target::Dir(found.dir),
        });
    }
    if found.is_dir() {
        return Ok(Target::Dir(found.dir));
    }
    if source_is_dir && request.dir_contents && !found.exists() {
        let (dir, new_dirs) = make_missing(found, new)?;
        made.extend(new_dirs);
        return Ok(Target::Dir(dir));
    }
    let (dir, name, new_dirs) = make_parents(found, new)?;
    made.extend(new_dirs);
    Ok(Target::Name(dir, name))
}

/// Makes what is missing above a path that is no directory.
fn make_parents(mut found: Resolved, new: &NewDirs) -> Result<(Arc<Dir>, CString, Vec<Arc<Dir>>)> {
    let name = found
        .rest
        .pop()
        .expect("a path that is no directory has a name");
    let (dir, made) = match found.rest.is_empty() {
        true => (found.dir, Vec::new()),
        false => make_missing(found, new)?,
    };
    Ok((dir, name, made))
}

fn to_cstring(name: &[u8]) -> CString {
    CString::new(name).expect("a component of a root path has no NUL byte")
}

/// Makes a directory.
///
/// Without `make_parents` what is above must be there; something that exists under the path stays as it is.
pub fn mkdir(dest: &Tree, request: &Mkdir) -> Result<()> {
    let path = RootPath::new(&request.path)?;
    let found = dest.resolve(&path, Follow::Last)?;
    if !request.make_parents {
        if found.exists() {
            return Ok(());
        }
        if found.rest.len() > 1 {
            return Err(Error::NotFound {
                path: path.to_string(),
            });
        }
    }
    let new = NewDirs {
        mode: request.mode,
        owner: request.owner,
        time: request.time,
    };
    let (_, made) = make_missing(found, &new)?;
    // Each directory made in another one has changed the time of that one.
    if let Some(time) = request.time {
        made.iter().rev().try_for_each(|dir| dir.set_time(time))?;
    }
    Ok(())
}

/// Makes a file, or overwrites the data of one that exists.
pub fn mkfile(dest: &Tree, request: &Mkfile) -> Result<()> {
    mkfile_from(dest, request, &mut request.data.as_slice())
}

/// Makes a file as [`mkfile`] does, with what `data` holds in place of the data of the request.
pub fn mkfile_from<R: Read + ?Sized>(dest: &Tree, request: &Mkfile, data: &mut R) -> Result<()> {
    let path = RootPath::new(&request.path)?;
    let found = dest.resolve(&path, Follow::Last)?;
    let (dir, name, old) = named(found, &path)?;
    // A new inode even over an old file: that one may be a link to a file of another layer.
    let (meta, attributes) = match &old {
        Some(entry) if entry.meta.kind == Kind::File => {
            let file = dir.open_file(&name, entry)?;
            let attributes = meta::xattrs(file.as_fd())
                .map_err(|errno| dir.error("read the xattrs of", &name, errno))?;
            (Some(entry.meta), attributes)
        }
        Some(_) => return Err(dir.error("write to", &name, Errno::INVAL)),
        None => (None, Vec::new()),
    };
    let fd = dir.make_way(&name, false)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(fd, &name, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| dir.error("create", &name, errno))?;
    let mut file = File::from(file);
    std::io::copy(data, &mut file).map_err(|error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        dir.error("write", &name, errno)
    })?;
    let fill = || -> std::result::Result<(), Errno> {
        if let Some(owner) = request.owner.or(meta.map(|meta| meta.owner)) {
            set_owner_fd(file.as_fd(), owner)?;
        }
        let mode = meta.map_or(request.mode & 0o777, |meta| meta.mode);
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        for attribute in &attributes {
            // Writing to a program takes its capabilities away.
            if attribute.name.as_bytes() != b"security.capability" {
                meta::set_xattr(file.as_fd(), attribute)?;
            }
        }
        match request.time {
            Some(time) => rustix::fs::futimens(&file, &timestamps(time)),
            None => Ok(()),
        }
    };
    fill().map_err(|errno| dir.error("write", &name, errno))
}

/// Makes a symlink; something that exists under the path is an error.
pub fn symlink(dest: &Tree, request: &Symlink) -> Result<()> {
    let path = RootPath::new(&request.path)?;
    let found = dest.resolve(&path, Follow::Last)?;
    if found.exists() {
        return Err(Error::io("create the symlink", &path, Errno::EXIST));
    }
    let (dir, name, _) = named(found, &path)?;
    let fd = dir.make_way(&name, false)?;
    rustix::fs::symlinkat(request.target.as_str(), fd, &name)
        .map_err(|errno| dir.error("create the symlink", &name, errno))?;
    set_attributes_at(&dir, &name, request.owner, request.time)
}

fn set_attributes_at(
    dir: &Dir,
    name: &CStr,
    owner: Option<Owner>,
    time: Option<Timestamp>,
) -> Result<()> {
    let fd = dir.writable()?;
    if let Some(owner) = owner {
        set_owner_at(fd, name, owner)
            .map_err(|errno| dir.error("change the owner of", name, errno))?;
    }
    if let Some(time) = time {
        rustix::fs::utimensat(fd, name, &timestamps(time), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| dir.error("set the time of", name, errno))?;
    }
    Ok(())
}

/// Returns the name of something in a directory that exists.
fn named(mut found: Resolved, path: &RootPath) -> Result<(Arc<Dir>, CString, Option<Entry>)> {
    if found.is_dir() {
        return Err(Error::io("write to", path, Errno::ISDIR));
    }
    if found.rest.len() > 1 {
        return Err(Error::NotFound {
            path: path.to_string(),
        });
    }
    let name = found.rest.pop().expect("what is no directory has a name");
    Ok((found.dir, name, found.leaf))
}

/// Removes a path, or all that a pattern matches, with what is below.
pub fn remove(dest: &Tree, request: &Remove) -> Result<()> {
    let path = RootPath::new(&request.path)?;
    if !request.wildcard {
        return remove_one(dest, &path, request.allow_not_found);
    }
    for path in pattern::expand(dest, &path, Follow::Parents)? {
        remove_one(dest, &path, request.allow_not_found)?;
    }
    Ok(())
}

fn remove_one(dest: &Tree, path: &RootPath, allow_not_found: bool) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::InvalidPath {
            path: path.to_string(),
            reason: "the root cannot be removed",
        });
    };
    let found = dest.resolve(&parent, Follow::Last)?;
    let name = to_cstring(name);
    let there = found.is_dir() && matches!(found.dir.lookup(&name)?, Lookup::Found(_));
    match (there, allow_not_found) {
        (true, _) => found.dir.remove(&name),
        (false, true) => Ok(()),
        (false, false) => Err(Error::NotFound {
            path: path.to_string(),
        }),
    }
}
