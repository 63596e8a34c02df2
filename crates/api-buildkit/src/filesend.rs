//! Sends results to a client: a stream of bytes, or the sending side of fsutil's protocol.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::fsutil::types::{Packet, Stat};
use bollard_buildkit_proto::moby::filesync::packet::file_send_client::FileSendClient as PacketClient;
use bollard_buildkit_proto::moby::filesync::v1::BytesMessage;
use bollard_buildkit_proto::moby::filesync::v1::file_send_client::FileSendClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Streaming};

use crate::error::Failure;
use crate::session::Session;
use crate::wire;

/// Bytes in one message.
const PIECE: usize = 1 << 20;

fn check(session: &Session) -> Result<(), Failure> {
    match session.supports("/moby.filesync.v1.FileSend/DiffCopy") {
        true => Ok(()),
        false => Err(Failure::unknown(
            "method /moby.filesync.v1.FileSend/diffcopy not supported by the client",
        )),
    }
}

/// Sends a file as the result of the exporter `exporter`, with notes for the client.
pub(crate) async fn send_file(
    session: &Session,
    exporter: usize,
    notes: &[(String, String)],
    path: &Path,
) -> Result<(), Failure> {
    check(session)?;
    let unreadable = |error| Failure::unknown(format!("failed to read the result: {error}"));
    let mut file = File::open(path).map_err(unreadable)?;
    let (pieces, outgoing) = mpsc::channel(4);
    let mut request = Request::new(ReceiverStream::new(outgoing));
    let metadata = request.metadata_mut();
    for (name, value) in notes {
        let name = format!("exporter-md-{name}");
        wire::put(metadata, &name, std::slice::from_ref(value))?;
    }
    wire::put(
        metadata,
        "buildkit-attachable-exporter-id",
        &[exporter.to_string()],
    )?;
    let send = async move {
        loop {
            let mut data = vec![0; PIECE];
            let count = file.read(&mut data).map_err(unreadable)?;
            data.truncate(count);
            if count == 0 || pieces.send(BytesMessage { data }).await.is_err() {
                return Ok(());
            }
        }
    };
    let receive = async {
        let mut client = FileSendClient::new(session.channel());
        let mut answers = client.diff_copy(request).await?.into_inner();
        while answers.message().await?.is_some() {}
        Ok(())
    };
    let (sent, received): (Result<(), Failure>, Result<(), Failure>) = tokio::join!(send, receive);
    sent?;
    match received {
        // The client has it already, or does not want it.
        Err(failure) if failure.code == Code::AlreadyExists => Ok(()),
        received => received,
    }
}

/// Sends a directory as the result of the exporter `exporter`.
pub(crate) async fn send_directory(
    session: &Session,
    exporter: usize,
    root: &Path,
) -> Result<(), Failure> {
    check(session)?;
    let (packets, outgoing) = mpsc::channel(64);
    let mut request = Request::new(ReceiverStream::new(outgoing));
    let metadata = request.metadata_mut();
    wire::put(
        metadata,
        "buildkit-attachable-exporter-id",
        &[exporter.to_string()],
    )?;
    wire::put(
        metadata,
        "buildkit-exporter-multi-platform",
        &["1".to_owned()],
    )?;
    let mut client = PacketClient::new(session.channel());
    let unreadable = |error| Failure::unknown(format!("failed to read the result: {error}"));
    let files = list(root).map_err(unreadable)?;
    let name_all = async {
        for (stat, _) in &files {
            let packet = Packet {
                r#type: PacketType::PacketStat as i32,
                stat: Some(stat.clone()),
                ..Packet::default()
            };
            if packets.send(packet).await.is_err() {
                return;
            }
        }
        let last = Packet {
            r#type: PacketType::PacketStat as i32,
            ..Packet::default()
        };
        let _ = packets.send(last).await;
    };
    let answer = async {
        let requests = client.diff_copy(request).await?.into_inner();
        answer_requests(requests, &files, &packets).await
    };
    let ((), answered) = tokio::join!(name_all, answer);
    answered
}

async fn answer_requests(
    mut requests: Streaming<Packet>,
    files: &[(Stat, PathBuf)],
    packets: &mpsc::Sender<Packet>,
) -> Result<(), Failure> {
    let gone = |_| Failure::unknown("the client has gone");
    while let Some(packet) = requests.message().await? {
        match packet.r#type() {
            PacketType::PacketReq => {
                let file = files.get(packet.id as usize);
                let (_, path) = file
                    .filter(|(stat, _)| stat.mode & wire::TYPE == 0)
                    .ok_or_else(|| Failure::unknown(format!("invalid file id {}", packet.id)))?;
                let unreadable =
                    |error| Failure::unknown(format!("failed to read the result: {error}"));
                let mut file = File::open(path).map_err(unreadable)?;
                loop {
                    let mut data = vec![0; PIECE];
                    let count = file.read(&mut data).map_err(unreadable)?;
                    data.truncate(count);
                    let piece = Packet {
                        r#type: PacketType::PacketData as i32,
                        id: packet.id,
                        data,
                        ..Packet::default()
                    };
                    packets.send(piece).await.map_err(gone)?;
                    if count == 0 {
                        break;
                    }
                }
            }
            PacketType::PacketErr => {
                let text = String::from_utf8_lossy(&packet.data);
                return Err(Failure::unknown(format!("error from receiver: {text}")));
            }
            PacketType::PacketFin => {
                let fin = Packet {
                    r#type: PacketType::PacketFin as i32,
                    ..Packet::default()
                };
                packets.send(fin).await.map_err(gone)?;
                return Ok(());
            }
            PacketType::PacketStat | PacketType::PacketData => {
                return Err(Failure::unknown("the client sends files it asked for"));
            }
        }
    }
    Ok(())
}

/// Lists a directory in the order of the protocol: each directory's names sorted, its content right after it.
fn list(root: &Path) -> std::io::Result<Vec<(Stat, PathBuf)>> {
    let mut found = Vec::new();
    let mut links = HashMap::new();
    walk(root, "", &mut links, &mut found)?;
    Ok(found)
}

fn walk(
    folder: &Path,
    above: &str,
    links: &mut HashMap<(u64, u64), String>,
    found: &mut Vec<(Stat, PathBuf)>,
) -> std::io::Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let name = entry.file_name();
        let name = format!("{above}{}", name.to_string_lossy());
        let meta = fs::symlink_metadata(&path)?;
        let kind = meta.file_type();
        let mut stat = Stat {
            path: name.clone(),
            mode: wire::mode_of(meta.mode()),
            uid: meta.uid(),
            gid: meta.gid(),
            size: 0,
            mod_time: meta.mtime().saturating_mul(1_000_000_000) + meta.mtime_nsec(),
            ..Stat::default()
        };
        if kind.is_dir() {
            stat.mode |= wire::DIRECTORY;
        } else if kind.is_symlink() {
            stat.mode |= wire::SYMLINK;
            stat.linkname = fs::read_link(&path)?.to_string_lossy().into_owned();
        } else if kind.is_file() {
            stat.size = meta.size() as i64;
            if meta.nlink() > 1 {
                let inode = (meta.dev(), meta.ino());
                match links.get(&inode) {
                    Some(first) => stat.linkname.clone_from(first),
                    None => drop(links.insert(inode, name.clone())),
                }
            }
        } else if kind.is_fifo() {
            stat.mode |= wire::FIFO;
        } else if kind.is_socket() {
            continue;
        } else {
            stat.mode |= wire::DEVICE;
            if kind.is_char_device() {
                stat.mode |= wire::CHARACTER;
            }
            stat.devmajor = i64::from(rustix::fs::major(meta.rdev()));
            stat.devminor = i64::from(rustix::fs::minor(meta.rdev()));
        }
        found.push((stat, path.clone()));
        if kind.is_dir() {
            walk(&path, &format!("{name}/"), links, found)?;
        }
    }
    Ok(())
}
