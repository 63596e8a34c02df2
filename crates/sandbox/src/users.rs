//! Names of users and groups, resolved with an image's own files.
//!
//! `/etc/passwd` and `/etc/group` are the image's and hostile: they are opened inside the root, must be
//! regular files, and are read up to a limit (as BuildKit does).

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, OFlags};

use crate::error::SandboxError;
use crate::resolve;

/// Larger files are refused.
const MAX_FILE: u64 = 10 << 20;

/// Ids above this are refused, as containerd refuses them.
const MAX_ID: u64 = i32::MAX as u64;

/// A user of an image in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, in the order of `/etc/group`.
    pub groups: Vec<u32>,
}

/// Resolves `user`, `uid`, `user:group`, `uid:gid`, … inside the tree at `root`; empty is root.
///
/// A number is never taken for a name. Two numbers need no files. A lone name or number gets the group and
/// the supplementary groups that the files say.
pub fn resolve_user(root: BorrowedFd<'_>, text: &str) -> Result<Identity, SandboxError> {
    if let Some(identity) = both_numbers(text) {
        return Ok(identity);
    }
    let text = if text.is_empty() { "0" } else { text };
    let passwd = read_file(root, "/etc/passwd")?;
    let group = read_file(root, "/etc/group")?;
    resolve_text(text, passwd.as_deref(), group.as_deref())
}

/// Returns the home directory that `/etc/passwd` gives to a uid; `/` when it gives none.
pub(crate) fn home(root: BorrowedFd<'_>, uid: u32) -> String {
    let passwd = read_file(root, "/etc/passwd")
        .ok()
        .flatten()
        .unwrap_or_default();
    let found = entries(&passwd).find(|fields| id_field(fields, 2) == Some(u64::from(uid)));
    match found.as_ref().and_then(|fields| fields.get(5)) {
        Some(home) if !home.is_empty() => (*home).to_owned(),
        _ => "/".to_owned(),
    }
}

fn both_numbers(text: &str) -> Option<Identity> {
    let (user, group) = text.split_once(':')?;
    let id = |text: &str| {
        if text == "root" {
            Some(0)
        } else {
            number(text)?.ok()
        }
    };
    Some(Identity {
        uid: id(user)?,
        gid: id(group)?,
        groups: Vec::new(),
    })
}

/// Parses an id; `None` when it is no number, an error when it is out of range.
fn number(text: &str) -> Option<Result<u32, ()>> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let id = text.parse::<u64>().ok().filter(|id| *id <= MAX_ID);
    Some(id.and_then(|id| u32::try_from(id).ok()).ok_or(()))
}

fn resolve_text(
    text: &str,
    passwd: Option<&str>,
    group: Option<&str>,
) -> Result<Identity, SandboxError> {
    let (user, group_name) = text.split_once(':').unwrap_or((text, ""));
    let unknown = |kind, name: &str, reason| SandboxError::UnknownUser {
        kind,
        name: name.to_owned(),
        reason,
    };
    let out_of_range = "uids and gids must be in range 0-2147483647";
    let wanted = number(if user.is_empty() { "0" } else { user });
    let wanted = wanted
        .transpose()
        .map_err(|()| unknown("user", user, out_of_range))?;
    let found = entries(passwd.unwrap_or_default()).find(|fields| match wanted {
        Some(uid) => id_field(fields, 2) == Some(u64::from(uid)),
        None => fields.first() == Some(&user),
    });
    let mut identity = match (&found, wanted) {
        (Some(fields), _) => Identity {
            uid: entry_id(fields, 2).map_err(|()| unknown("user", user, out_of_range))?,
            gid: entry_id(fields, 3).map_err(|()| unknown("user", user, out_of_range))?,
            groups: Vec::new(),
        },
        (None, Some(uid)) => Identity {
            uid,
            gid: 0,
            groups: Vec::new(),
        },
        (None, None) => return Err(unknown("user", user, "no matching entries in passwd file")),
    };
    let groups = group.unwrap_or_default();
    if group_name.is_empty() {
        if let Some(name) = found.as_ref().and_then(|fields| fields.first()) {
            let member = |fields: &&Vec<&str>| {
                fields
                    .get(3)
                    .is_some_and(|list| list.split(',').any(|one| one == *name))
            };
            let all: Vec<Vec<&str>> = entries(groups).collect();
            identity.groups = all
                .iter()
                .filter(member)
                .filter_map(|fields| entry_id(fields, 2).ok())
                .collect();
            // The kernel takes no more, and more is no honest file.
            identity.groups.truncate(65536);
        }
        return Ok(identity);
    }
    let wanted = number(group_name)
        .transpose()
        .map_err(|()| unknown("group", group_name, out_of_range))?;
    let found = entries(groups).find(|fields| match wanted {
        Some(gid) => id_field(fields, 2) == Some(u64::from(gid)),
        None => fields.first() == Some(&group_name),
    });
    identity.gid = match (found, wanted) {
        (Some(fields), _) => {
            entry_id(&fields, 2).map_err(|()| unknown("group", group_name, out_of_range))?
        }
        (None, Some(gid)) => gid,
        (None, None) => {
            return Err(unknown(
                "group",
                group_name,
                "no matching entries in group file",
            ));
        }
    };
    Ok(identity)
}

/// Returns the fields of each entry.
fn entries(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| line.split(':').collect())
}

/// Returns the number in a field; what is no number counts as 0, as in the reference.
fn id_field(fields: &[&str], index: usize) -> Option<u64> {
    let text = fields.get(index).copied().unwrap_or_default();
    match number(text) {
        None => Some(0),
        Some(_) => Some(text.parse().unwrap_or(u64::MAX)),
    }
}

fn entry_id(fields: &[&str], index: usize) -> Result<u32, ()> {
    let id = id_field(fields, index)
        .filter(|id| *id <= MAX_ID)
        .ok_or(())?;
    u32::try_from(id).map_err(|_| ())
}

/// Reads a regular file inside the root; `None` when there is none.
fn read_file(root: BorrowedFd<'_>, path: &'static str) -> Result<Option<String>, SandboxError> {
    let failed = |source: io::Error| SandboxError::io(format!("read {path} of the image"), source);
    // NONBLOCK: a FIFO in its place must not hang the builder.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let kind = match resolve::open_in_root(root, path) {
        Ok(fd) => rustix::fs::fstat(&fd).map(|stat| FileType::from_raw_mode(stat.st_mode)),
        Err(_) => return Ok(None),
    };
    if kind != Ok(FileType::RegularFile) {
        return Ok(None);
    }
    let Ok(fd) = resolve::open_in_root_with(root, path, flags) else {
        return Ok(None);
    };
    let stat = rustix::fs::fstat(fd.as_fd()).map_err(|error| failed(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    std::fs::File::from(fd)
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(failed(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "the file is too large",
        )));
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\nwww:x:33:34::/var/www:\n  app:x:1000:1001:App:/home/app:/bin/sh\nodd:x:zero\nbig:x:99999999999:1::/:\n";
    const GROUP: &str =
        "root:x:0:\ndaemon:x:1:www\nwww:x:34:\nextra:x:50:other,www\nbig:x:4294967295:\n";

    fn check(text: &str, expected: Result<(u32, u32, &[u32]), &str>) {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(root.path().join("etc")).expect("a directory");
        std::fs::write(root.path().join("etc/passwd"), PASSWD).expect("a file");
        std::fs::write(root.path().join("etc/group"), GROUP).expect("a file");
        let directory = std::fs::File::open(root.path()).expect("open");
        let actual = resolve_user(directory.as_fd(), text).map_err(|error| error.to_string());
        let expected = expected
            .map(|(uid, gid, groups)| Identity {
                uid,
                gid,
                groups: groups.to_vec(),
            })
            .map_err(str::to_owned);
        assert_eq!(actual, expected, "{text}");
    }

    #[test]
    fn forms_of_a_user_resolve_as_the_reference_does() {
        check("", Ok((0, 0, &[])));
        check("root", Ok((0, 0, &[])));
        check("www", Ok((33, 34, &[1, 50])));
        check("33", Ok((33, 34, &[1, 50])));
        check("www:daemon", Ok((33, 1, &[])));
        check("www:77", Ok((33, 77, &[])));
        check("1234", Ok((1234, 0, &[])));
        check("12:34", Ok((12, 34, &[])));
        check("1000:extra", Ok((1000, 50, &[])));
        check("app", Ok((1000, 1001, &[])));
        check("odd", Ok((0, 0, &[])));
        check(
            "nosuch",
            Err("unable to find user nosuch: no matching entries in passwd file"),
        );
        check(
            "www:nosuch",
            Err("unable to find group nosuch: no matching entries in group file"),
        );
        check(
            "99999999999",
            Err("unable to find user 99999999999: uids and gids must be in range 0-2147483647"),
        );
        check(
            "big",
            Err("unable to find user big: uids and gids must be in range 0-2147483647"),
        );
        check(
            "www:big",
            Err("unable to find group big: uids and gids must be in range 0-2147483647"),
        );
    }

    #[test]
    fn odd_files_in_place_of_passwd_neither_hang_nor_leave_the_root() {
        let outside = tempfile::tempdir().expect("a directory");
        std::fs::write(outside.path().join("passwd"), "host:x:7:7::/:\n").expect("a file");
        let root = outside.path().join("root");
        std::fs::create_dir_all(root.join("etc")).expect("a directory");
        let place = root.join("etc/passwd");
        let directory = std::fs::File::open(&root).expect("open");
        let resolve =
            |text: &str| resolve_user(directory.as_fd(), text).map(|identity| identity.uid);
        std::os::unix::fs::symlink("../../passwd", &place).expect("a link");
        assert!(resolve("host").is_err());
        std::fs::remove_file(&place).expect("removed");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &place,
            FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o644),
            0,
        )
        .expect("a fifo");
        assert!(resolve("host").is_err());
        std::fs::remove_file(&place).expect("removed");
        std::fs::File::create(&place)
            .and_then(|file| file.set_len(MAX_FILE + 1))
            .expect("a file");
        assert!(resolve("host").is_err());
        assert_eq!(resolve("5:6").expect("two numbers need no file"), 5);
    }
}
