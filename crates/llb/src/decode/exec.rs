//! Reading processes and their mounts.

use super::{Decoded, Unknown, choice, fields, number, position};
use crate::{
    CacheSharing, CdiDevice, ContentCache, ExecOp, HostIp, LlbError, Meta, Mount, MountKind,
    NetworkMode, ProxyEnv, SecretEnv, SecretFile, SecurityMode, Ulimit,
};

pub(super) fn read_exec(into: &mut ExecOp, bytes: &[u8], unknown: &mut Unknown) -> Decoded<()> {
    fields("exec op", bytes, unknown, |field, unknown| {
        match field.number {
            1 => read_meta(&mut into.meta, field.bytes()?, unknown)?,
            2 => into.mounts.push(read_mount(field.bytes()?, unknown)?),
            3 => {
                let modes = [NetworkMode::Sandbox, NetworkMode::Host, NetworkMode::None];
                into.network = choice("network mode", &modes, field.int()?)?;
            }
            4 => {
                let modes = [SecurityMode::Sandbox, SecurityMode::Insecure];
                into.security = choice("security mode", &modes, field.int()?)?;
            }
            5 => {
                let mut secret = SecretEnv::default();
                fields("secret env", field.bytes()?, unknown, |field, _| {
                    match field.number {
                        1 => secret.id = field.text()?,
                        2 => secret.name = field.text()?,
                        3 => secret.optional = field.flag()?,
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?;
                into.secret_env.push(secret);
            }
            6 => {
                let mut device = CdiDevice::default();
                fields("device", field.bytes()?, unknown, |field, _| {
                    match field.number {
                        1 => device.name = field.text()?,
                        2 => device.optional = field.flag()?,
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?;
                into.cdi_devices.push(device);
            }
            _ => return Ok(false),
        }
        Ok(true)
    })
}

pub(super) fn read_meta(into: &mut Meta, bytes: &[u8], unknown: &mut Unknown) -> Decoded<()> {
    fields("meta", bytes, unknown, |field, unknown| {
        match field.number {
            1 => into.args.push(field.text()?),
            2 => into.env.push(field.text()?),
            3 => into.cwd = field.text()?,
            4 => into.user = field.text()?,
            5 => {
                let proxy = into.proxy_env.get_or_insert_default();
                read_proxy(proxy, field.bytes()?, unknown)?;
            }
            6 => {
                let mut host = HostIp::default();
                fields("extra host", field.bytes()?, unknown, |field, _| {
                    match field.number {
                        1 => host.host = field.text()?,
                        2 => host.ip = field.text()?,
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?;
                into.extra_hosts.push(host);
            }
            7 => into.hostname = field.text()?,
            9 => {
                let mut limit = Ulimit::default();
                fields("ulimit", field.bytes()?, unknown, |field, _| {
                    match field.number {
                        1 => limit.name = field.text()?,
                        2 => limit.soft = field.int()?,
                        3 => limit.hard = field.int()?,
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?;
                into.ulimits.push(limit);
            }
            10 => into.cgroup_parent = field.text()?,
            11 => into.remove_mount_stubs_recursive = field.flag()?,
            12 => {
                into.valid_exit_codes
                    .extend(field.numbers()?.into_iter().map(|code| code as i32));
            }
            _ => return Ok(false),
        }
        Ok(true)
    })
}

pub(super) fn read_proxy(into: &mut ProxyEnv, bytes: &[u8], unknown: &mut Unknown) -> Decoded<()> {
    fields("proxy env", bytes, unknown, |field, _| {
        match field.number {
            1 => into.http_proxy = field.text()?,
            2 => into.https_proxy = field.text()?,
            3 => into.ftp_proxy = field.text()?,
            4 => into.no_proxy = field.text()?,
            5 => into.all_proxy = field.text()?,
            _ => return Ok(false),
        }
        Ok(true)
    })
}

pub(super) fn read_mount(bytes: &[u8], unknown: &mut Unknown) -> Decoded<Mount> {
    let mut mount = Mount {
        input: Some(0),
        output: Some(0),
        ..Mount::default()
    };
    let mut kind = 0;
    let mut tmpfs_size = 0;
    let mut cache = (String::new(), CacheSharing::Shared);
    let (mut secret, mut ssh) = (SecretFile::default(), SecretFile::default());
    fields("mount", bytes, unknown, |field, unknown| {
        match field.number {
            1 => mount.input = position("mount input", field.int()?)?,
            2 => mount.selector = field.text()?,
            3 => mount.dest = field.text()?,
            4 => mount.output = position("mount output", field.int()?)?,
            5 => mount.read_only = field.flag()?,
            6 => kind = field.int()?,
            19 => fields("tmpfs", field.bytes()?, unknown, |field, _| {
                if field.number == 1 {
                    tmpfs_size = field.int()?;
                }
                Ok(field.number == 1)
            })?,
            20 => fields("cache", field.bytes()?, unknown, |field, _| {
                let modes = [
                    CacheSharing::Shared,
                    CacheSharing::Private,
                    CacheSharing::Locked,
                ];
                match field.number {
                    1 => cache.0 = field.text()?,
                    2 => cache.1 = choice("cache sharing mode", &modes, field.int()?)?,
                    _ => return Ok(false),
                }
                Ok(true)
            })?,
            21 => read_secret(&mut secret, field.bytes()?, unknown)?,
            22 => read_secret(&mut ssh, field.bytes()?, unknown)?,
            23 => mount.result_id = field.text()?,
            24 => {
                let modes = [ContentCache::Default, ContentCache::On, ContentCache::Off];
                mount.content_cache = choice("content cache mode", &modes, field.int()?)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    mount.kind = match kind {
        0 => MountKind::Bind,
        1 => MountKind::Secret(secret),
        2 => MountKind::Ssh(ssh),
        3 => MountKind::Cache {
            id: cache.0,
            sharing: cache.1,
        },
        4 => MountKind::Tmpfs { size: tmpfs_size },
        value => {
            return Err(LlbError::Value {
                what: "mount type",
                value,
            });
        }
    };
    if matches!(mount.kind, MountKind::Secret(_) | MountKind::Ssh(_)) {
        mount.output = None;
    }
    Ok(mount)
}

pub(super) fn read_secret(
    into: &mut SecretFile,
    bytes: &[u8],
    unknown: &mut Unknown,
) -> Decoded<()> {
    fields("secret", bytes, unknown, |field, _| {
        match field.number {
            1 => into.id = field.text()?,
            2 => into.uid = number("user id", field.int()?)?,
            3 => into.gid = number("group id", field.int()?)?,
            4 => into.mode = number("file mode", field.int()?)?,
            5 => into.optional = field.flag()?,
            _ => return Ok(false),
        }
        Ok(true)
    })
}
