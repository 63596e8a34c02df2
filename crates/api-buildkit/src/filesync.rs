//! Brings a client's directory here: the receiving side of fsutil's protocol.
//!
//! The client sends the attributes of all its files in order, and the content of those that are asked for. Everything
//! it names is checked: a file is only made in a directory that this very transfer has named before.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::fsutil::types::{Packet, Stat};
use bollard_buildkit_proto::moby::filesync::v1::file_sync_client::FileSyncClient;
use engine::LocalFiles;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Request;

use crate::error::Failure;
use crate::session::Session;
use crate::wire;

/// Files a transfer may have.
const MOST_FILES: usize = 16 << 20;

/// Makes a directory like the client's, and tells how many bytes came.
pub(crate) async fn receive(
    session: &Session,
    wanted: &LocalFiles,
    into: &Path,
    mut progress: impl FnMut(u64),
) -> Result<u64, Failure> {
    if !session.supports("/moby.filesync.v1.FileSync/DiffCopy") {
        return Err(Failure::unknown("no local sources enabled"));
    }
    let (requests, outgoing) = mpsc::unbounded_channel();
    let mut request = Request::new(UnboundedReceiverStream::new(outgoing));
    let metadata = request.metadata_mut();
    wire::put(metadata, "include-patterns", &wanted.include_patterns)?;
    wire::put(metadata, "exclude-patterns", &wanted.exclude_patterns)?;
    wire::put(metadata, "followpaths", &wanted.follow_paths)?;
    wire::put(metadata, "dir-name", std::slice::from_ref(&wanted.name))?;
    let mut client = FileSyncClient::new(session.channel()).max_decoding_message_size(64 << 20);
    let mut incoming = client.diff_copy(request).await?.into_inner();
    let mut receiver = Receiver::new(into, requests);
    loop {
        let Some(packet) = incoming.message().await? else {
            return match receiver.finished {
                true => Ok(receiver.bytes),
                false => Err(Failure::unknown("the client ended its transfer early")),
            };
        };
        receiver.bytes += packet.encoded_len() as u64;
        progress(receiver.bytes);
        match packet.r#type() {
            PacketType::PacketErr => {
                let text = String::from_utf8_lossy(&packet.data);
                return Err(Failure::unknown(format!("error from sender: {text}")));
            }
            PacketType::PacketStat => match packet.stat {
                Some(stat) => receiver.file(&stat)?,
                None => receiver.all_named()?,
            },
            PacketType::PacketData => receiver.content(packet.id, &packet.data)?,
            PacketType::PacketFin => return Ok(receiver.bytes),
            PacketType::PacketReq => {
                return Err(Failure::unknown("the client asks for files it sends"));
            }
        }
    }
}

/// A file whose content is on its way.
#[derive(Debug)]
struct Expected {
    path: PathBuf,
    stat: Stat,
    /// Opened when its first bytes come.
    file: Option<File>,
}

#[derive(Debug)]
struct Receiver<'a> {
    into: &'a Path,
    requests: mpsc::UnboundedSender<Packet>,
    next: u32,
    /// Everything named so far.
    named: HashSet<String>,
    /// Regular files among them.
    regular: HashSet<String>,
    /// Directories among them, in order, with their times.
    directories: Vec<(String, i64, u32)>,
    directory_names: HashSet<String>,
    expected: HashMap<u32, Expected>,
    all_named: bool,
    finished: bool,
    bytes: u64,
}

impl<'a> Receiver<'a> {
    fn new(into: &'a Path, requests: mpsc::UnboundedSender<Packet>) -> Self {
        Self {
            into,
            requests,
            next: 0,
            named: HashSet::new(),
            regular: HashSet::new(),
            directories: Vec::new(),
            directory_names: HashSet::new(),
            expected: HashMap::new(),
            all_named: false,
            finished: false,
            bytes: 0,
        }
    }

    fn send(&self, kind: PacketType, id: u32) {
        // Where the client has gone, the next read says so.
        let _ = self.requests.send(Packet {
            r#type: kind as i32,
            id,
            ..Packet::default()
        });
    }

    /// Makes a file, or asks for its content.
    fn file(&mut self, stat: &Stat) -> Result<(), Failure> {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let path = stat.path.as_str();
        if self.all_named || self.named.len() >= MOST_FILES {
            return Err(Failure::unknown("the client names too many files"));
        }
        if !wire::is_plain(path) {
            return Err(Failure::unknown(format!(
                "invalid path {path:?} from client"
            )));
        }
        if let Some((parent, _)) = path.rsplit_once('/')
            && !self.directory_names.contains(parent)
        {
            let text = format!("invalid path {path:?} from client: its directory was not sent");
            return Err(Failure::unknown(text));
        }
        if !self.named.insert(path.to_owned()) {
            return Err(Failure::unknown(format!("the client sends {path:?} twice")));
        }
        let place = self.into.join(path);
        let failed = |error: io::Error| {
            Failure::unknown(format!("failed to write {path:?} of the context: {error}"))
        };
        match stat.mode & wire::TYPE {
            wire::DIRECTORY => {
                make_directory(&place, stat).map_err(failed)?;
                self.directory_names.insert(path.to_owned());
                self.directories.push((
                    path.to_owned(),
                    stat.mod_time,
                    wire::permissions(stat.mode),
                ));
            }
            0 if stat.linkname.is_empty() => {
                self.regular.insert(path.to_owned());
                if !is_unchanged(&place, stat) {
                    make_file(&place).map_err(failed)?;
                    let expected = Expected {
                        path: place,
                        stat: stat.clone(),
                        file: None,
                    };
                    self.expected.insert(id, expected);
                    self.send(PacketType::PacketReq, id);
                }
            }
            0 => {
                if !self.regular.contains(&stat.linkname) {
                    let text = format!("{path:?} is a link to a file that was not sent");
                    return Err(Failure::unknown(text));
                }
                remove(&place).map_err(failed)?;
                fs::hard_link(self.into.join(&stat.linkname), &place).map_err(failed)?;
            }
            wire::SYMLINK => {
                let same = fs::read_link(&place).is_ok_and(|to| to == Path::new(&stat.linkname));
                if !same {
                    remove(&place).map_err(failed)?;
                    std::os::unix::fs::symlink(&stat.linkname, &place).map_err(failed)?;
                }
                set_times_of_link(&place, stat.mod_time);
            }
            kind => {
                remove(&place).map_err(failed)?;
                make_special(&place, kind, stat).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Takes away what the client no longer has.
    fn all_named(&mut self) -> Result<(), Failure> {
        self.all_named = true;
        let failed =
            |error: io::Error| Failure::unknown(format!("failed to clean the context: {error}"));
        let mut work = vec![String::new()];
        while let Some(folder) = work.pop() {
            for entry in fs::read_dir(self.into.join(&folder)).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let name = entry.file_name();
                let path = name.to_str().map(|name| match folder.as_str() {
                    "" => name.to_owned(),
                    folder => format!("{folder}/{name}"),
                });
                match path {
                    Some(path) if self.named.contains(&path) => {
                        if self.directory_names.contains(&path) {
                            work.push(path);
                        }
                    }
                    _ => remove(&entry.path()).map_err(failed)?,
                }
            }
        }
        self.finish_if_done();
        Ok(())
    }

    fn content(&mut self, id: u32, data: &[u8]) -> Result<(), Failure> {
        let Some(expected) = self.expected.get_mut(&id) else {
            return Err(Failure::unknown(format!("invalid file request {id}")));
        };
        let failed = |path: &Path, error: io::Error| {
            Failure::unknown(format!("failed to write {}: {error}", path.display()))
        };
        if expected.file.is_none() && !data.is_empty() {
            let mut options = OpenOptions::new();
            options.write(true).custom_flags(NO_FOLLOW);
            let file = options.open(&expected.path);
            expected.file = Some(file.map_err(|error| failed(&expected.path, error))?);
        }
        if let Some(file) = &mut expected.file
            && !data.is_empty()
        {
            return file
                .write_all(data)
                .map_err(|error| failed(&expected.path, error));
        }
        if let Some(done) = self.expected.remove(&id) {
            drop(done.file);
            set_attributes(&done.path, &done.stat).map_err(|error| failed(&done.path, error))?;
        }
        self.finish_if_done();
        Ok(())
    }

    fn finish_if_done(&mut self) {
        if !self.all_named || !self.expected.is_empty() || self.finished {
            return;
        }
        self.finished = true;
        for (path, modified, mode) in self.directories.iter().rev() {
            let place = self.into.join(path);
            let _ = fs::set_permissions(&place, Permissions::from_mode(*mode));
            if let Ok(folder) = File::open(&place) {
                let _ = folder.set_times(times(*modified));
            }
        }
        self.send(PacketType::PacketFin, 0);
    }
}

const NO_FOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits() as i32;

fn times(nanoseconds: i64) -> FileTimes {
    FileTimes::new().set_modified(time(nanoseconds))
}

fn time(nanoseconds: i64) -> SystemTime {
    let distance = Duration::from_nanos(nanoseconds.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    match nanoseconds >= 0 {
        true => epoch.checked_add(distance),
        false => epoch.checked_sub(distance),
    }
    .unwrap_or(epoch)
}

fn set_times_of_link(path: &Path, nanoseconds: i64) {
    let time = rustix::fs::Timespec {
        tv_sec: nanoseconds.div_euclid(1_000_000_000),
        tv_nsec: nanoseconds.rem_euclid(1_000_000_000),
    };
    let times = rustix::fs::Timestamps {
        last_access: time,
        last_modification: time,
    };
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    // A link's time is worth no failure.
    let _ = rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags);
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn make_directory(path: &Path, stat: &Stat) -> io::Result<()> {
    if !fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir()) {
        remove(path)?;
        fs::create_dir(path)?;
    }
    // Writable for now, whatever it is to be.
    let mode = wire::permissions(stat.mode) | 0o700;
    fs::set_permissions(path, Permissions::from_mode(mode))
}

fn make_file(path: &Path) -> io::Result<()> {
    remove(path)?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map(drop)
}

fn make_special(path: &Path, kind: u32, stat: &Stat) -> io::Result<()> {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    let kind = match kind {
        wire::FIFO => FileType::Fifo,
        kind if kind & wire::DEVICE != 0 && kind & wire::CHARACTER != 0 => {
            FileType::CharacterDevice
        }
        wire::DEVICE => FileType::BlockDevice,
        // A socket without its server is nothing.
        _ => return Ok(()),
    };
    let mode = Mode::from_raw_mode(wire::permissions(stat.mode));
    let device = makedev(stat.devmajor as u32, stat.devminor as u32);
    mknodat(CWD, path, kind, mode, device)?;
    Ok(())
}

/// Whether a file is there with the same size, time and mode.
fn is_unchanged(path: &Path, stat: &Stat) -> bool {
    let Ok(meta) = fs::symlink_metadata(path) else {
        return false;
    };
    let nanoseconds = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
    meta.is_file()
        && meta.nlink() == 1
        && meta.len() == stat.size as u64
        && nanoseconds == i128::from(stat.mod_time)
        && meta.mode() & 0o7777 == wire::permissions(stat.mode)
}

fn set_attributes(path: &Path, stat: &Stat) -> io::Result<()> {
    let mut names: Vec<_> = stat.xattrs.iter().collect();
    names.sort();
    for (name, value) in names {
        if name.starts_with("user.") && !name.starts_with("user.overlay.") {
            let flags = rustix::fs::XattrFlags::empty();
            // Not every file system has them.
            let _ = rustix::fs::lsetxattr(path, name.as_str(), value, flags);
        }
    }
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(NO_FOLLOW);
    let file = options.open(path)?;
    file.set_permissions(Permissions::from_mode(wire::permissions(stat.mode)))?;
    file.set_times(times(stat.mod_time))
}
