//! Fills in what the tar of a layer takes for granted of the layers below.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, fchmod, futimens};
use rustix::io::Errno;

use super::Applied;
use crate::layer::{Form, LayerDir};
use crate::meta::{self, Meta};
use crate::path::components;
use crate::resolve::Follow;
use crate::tree::{Tree, set_owner_fd, timestamps};
use crate::{Error, Result, RootPath};

/// Gives the directories that the tar of `layer` leaves out what they have in `lowers`, the layers below it.
///
/// Returns whether anything came from there: then the tree belongs to this place in the chain of layers, and is not the
/// same for all that have this diff id. As in the reference, a directory that is a symlink below takes the place of the
/// symlink and gets what the directory has that it leads to; one that is not below, or hidden by an opaque directory of
/// this layer, stays as it is: of root, mode 0755, from 1970. The root directory takes owner, mode and xattrs.
///
/// To be called once, before the layer is published, and after the layers below are mended.
pub fn mend(layer: &LayerDir, form: Form, applied: &Applied, lowers: &Tree) -> Result<bool> {
    let mut has_changed = false;
    if !applied.root
        && let Some(below) = lowers.root().top()
    {
        has_changed |= describe(layer.as_fd(), b"/", below, Times::Leave)?;
    }
    let mut ways = Ways {
        layer,
        form,
        open: Vec::new(),
    };
    for path in &applied.implicit {
        if ways.is_hidden(path)? {
            continue;
        }
        let below = match lowers.resolve(path, Follow::Last) {
            Ok(found) if found.is_dir() => found.dir,
            Ok(_) | Err(Error::NotADirectory { .. } | Error::TooManyLinks { .. }) => continue,
            Err(error) => return Err(error),
        };
        if let Some(below) = below.top() {
            let dir = ways.open(path)?;
            has_changed |= describe(dir, path.as_bytes(), below, Times::Copy)?;
        }
    }
    Ok(has_changed)
}

#[derive(PartialEq, Eq)]
enum Times {
    Copy,
    Leave,
}

/// Makes `dir` like the directory `below`; returns whether it was not already.
fn describe(dir: BorrowedFd<'_>, path: &[u8], below: BorrowedFd<'_>, times: Times) -> Result<bool> {
    let failed = |errno| Error::io("mend", path, errno);
    let described = || -> std::result::Result<bool, Errno> {
        let (known, wanted): (Meta, Meta) = (meta::stat_fd(dir)?, meta::stat_fd(below)?);
        let xattrs = meta::xattrs(below)?;
        let takes_time = times == Times::Copy && known.modified != wanted.modified;
        if known.owner == wanted.owner
            && known.mode == wanted.mode
            && xattrs == meta::xattrs(dir)?
            && !takes_time
        {
            return Ok(false);
        }
        set_owner_fd(dir, wanted.owner)?;
        fchmod(dir, Mode::from_raw_mode(wanted.mode))?;
        for xattr in &xattrs {
            meta::set_xattr(dir, xattr)?;
        }
        futimens(
            dir,
            &timestamps(if takes_time {
                wanted.modified
            } else {
                known.modified
            }),
        )?;
        Ok(true)
    };
    described().map_err(failed)
}

/// The directories on the way to the last one looked at, so that each is opened once in a sorted list.
struct Ways<'a> {
    layer: &'a LayerDir,
    form: Form,
    open: Vec<Way>,
}

struct Way {
    name: Vec<u8>,
    dir: OwnedFd,
    is_opaque: bool,
}

impl Ways<'_> {
    /// Returns whether an opaque directory of the layer lies above `path`, so that nothing below is seen there.
    fn is_hidden(&mut self, path: &RootPath) -> Result<bool> {
        self.open(path)?;
        let above = self.open.len() - 1;
        Ok(self.open[..above].iter().any(|way| way.is_opaque))
    }

    /// Opens a directory of the layer, whose path is known to have no symlinks.
    fn open(&mut self, path: &RootPath) -> Result<BorrowedFd<'_>> {
        let failed = |errno| Error::io("open directory", path, errno);
        let names: Vec<&[u8]> = components(path.as_bytes()).collect();
        let common = self
            .open
            .iter()
            .zip(&names)
            .take_while(|(way, name)| way.name == **name)
            .count();
        self.open.truncate(common);
        for name in &names[common..] {
            let parent = self
                .open
                .last()
                .map_or(self.layer.as_fd(), |way| way.dir.as_fd());
            let name_text = std::ffi::CString::new(*name).map_err(|_| failed(Errno::INVAL))?;
            let dir = meta::open_dir(parent, &name_text).map_err(failed)?;
            let is_opaque = match self.form {
                Form::Overlay(marks) => meta::xattr(dir.as_fd(), marks.opaque())
                    .map_err(failed)?
                    .is_some(),
                Form::Plain => false,
            };
            self.open.push(Way {
                name: name.to_vec(),
                dir,
                is_opaque,
            });
        }
        Ok(self
            .open
            .last()
            .map_or(self.layer.as_fd(), |way| way.dir.as_fd()))
    }
}
