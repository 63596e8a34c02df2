//! Reading `pb.Definition`. Its bytes are hostile.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use oci::Platform;

use crate::graph::{Foreign, Pending};
use crate::wire::{Field, Reader};
use crate::{
    Action, ActionInput, BuildOp, CacheSharing, CdiDevice, ContentCache, Copy, CopyMode, DiffOp,
    Draft, ExecOp, FileAction, FileOp, Graph, GraphBuilder, HostIp, LinuxResources, LlbError,
    Location, MakeDirectory, MakeFile, MergeOp, Meta, Metadata, Mount, MountKind, NetworkMode, Op,
    Output, Owner, Position, ProgressGroup, ProxyEnv, Range, Remove, SecretEnv, SecretFile,
    SecurityMode, SourceFile, SourceOp, Symlink, Ulimit, UserRef, VertexId, encode,
};

/// The longest definition that is read.
const LONGEST: usize = 256 << 20;
/// The most vertices a definition may have.
const MOST_VERTICES: usize = 1 << 20;

type Decoded<T> = Result<T, LlbError>;

/// Fields not known here, with their tags.
type Unknown = Vec<u8>;

/// Calls `take` for each field; those it does not take are kept in `unknown`.
fn fields<'a>(
    message: &'static str,
    bytes: &'a [u8],
    unknown: &mut Unknown,
    mut take: impl FnMut(&Field<'a>, &mut Unknown) -> Decoded<bool>,
) -> Decoded<()> {
    let mut reader = Reader::new(message, bytes);
    while let Some(field) = reader.next()? {
        if !take(&field, unknown)? {
            unknown.extend_from_slice(field.raw);
        }
    }
    Ok(())
}

/// An op as it stands on the wire.
#[derive(Default)]
struct WireOp {
    op: Option<Op>,
    inputs: Vec<(String, i64)>,
    platform: Option<Platform>,
    constraints: Vec<String>,
    unknown: Unknown,
}

impl Graph {
    /// Reads a graph from the bytes of a `pb.Definition`.
    ///
    /// What the root does not need is left out. Links are followed by the digests of the bytes that were given; the
    /// vertices get ids of their own.
    ///
    /// # Errors
    ///
    /// If the bytes are not such a message, are too many, or name things that are not there.
    pub fn decode_definition(bytes: &[u8]) -> Result<Self, LlbError> {
        if bytes.len() > LONGEST {
            return Err(LlbError::TooLarge {
                size: bytes.len(),
                limit: LONGEST,
            });
        }
        let mut definition = Definition::default();
        fields("definition", bytes, &mut Vec::new(), |field, _| {
            definition.take(field)
        })?;
        definition.into_graph()
    }
}

#[derive(Default)]
struct Definition<'a> {
    operations: Vec<&'a [u8]>,
    metadata: BTreeMap<String, (Metadata, Unknown)>,
    sources: Vec<SourceFile>,
    locations: BTreeMap<String, Vec<Location>>,
    unknown: Unknown,
}

impl<'a> Definition<'a> {
    fn take(&mut self, field: &Field<'a>) -> Decoded<bool> {
        match field.number {
            1 if self.operations.len() > MOST_VERTICES => {
                let count = self.operations.len();
                return Err(LlbError::TooMany {
                    count,
                    limit: MOST_VERTICES,
                });
            }
            1 => self.operations.push(field.bytes()?),
            2 => {
                let (digest, value) = entry("metadata entry", field)?;
                let mut unknown = Vec::new();
                let metadata = read_metadata(value, &mut unknown)?;
                self.metadata.insert(digest, (metadata, unknown));
            }
            3 => {
                let mut unknown = Vec::new();
                let (sources, locations) = (&mut self.sources, &mut self.locations);
                fields("source", field.bytes()?, &mut unknown, |field, _| {
                    match field.number {
                        1 => {
                            let (digest, value) = entry("locations entry", field)?;
                            locations.insert(digest, read_locations(value)?);
                        }
                        2 => sources.push(read_source_file(field.bytes()?)?),
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?;
            }
            _ => self.unknown.extend_from_slice(field.raw),
        }
        Ok(true)
    }

    fn into_graph(mut self) -> Decoded<Graph> {
        let Some(last) = self.operations.pop() else {
            return Ok(Graph {
                sources: self.sources,
                unknown: self.unknown,
                ..Graph::default()
            });
        };
        let root = read_operation(last)?;
        if root.op.is_some() || root.inputs.len() != 1 {
            return Err(LlbError::Root {
                count: root.inputs.len(),
            });
        }
        let by_digest: HashMap<VertexId, usize> = self
            .operations
            .iter()
            .map(|bytes| VertexId::of(bytes))
            .zip(0..)
            .collect();
        let link = |position: usize, (digest, index): &(String, i64)| {
            let missing = || LlbError::MissingInput {
                position,
                digest: digest.clone(),
            };
            let id = VertexId::parse(digest).ok_or_else(missing)?;
            let draft = *by_digest.get(&id).ok_or_else(missing)?;
            let index = usize::try_from(*index).map_err(|_| LlbError::NoSuchOutput {
                kind: "op",
                position,
                output: *index,
                outputs: 0,
            })?;
            Ok((Output { draft, index }, id))
        };
        let mut builder = GraphBuilder::default();
        for (position, bytes) in self.operations.iter().enumerate() {
            let wire = read_operation(bytes)?;
            let op = wire.op.ok_or(LlbError::NoOperation { position })?;
            let linked = wire.inputs.iter().map(|input| link(position, input));
            let (inputs, links): (Vec<Output>, Vec<VertexId>) =
                linked.collect::<Decoded<Vec<_>>>()?.into_iter().unzip();
            let digest = VertexId::of(bytes).to_string();
            let (mut metadata, unknown_metadata) =
                self.metadata.get(&digest).cloned().unwrap_or_default();
            metadata.locations = self.locations.get(&digest).cloned().unwrap_or_default();
            let mut ours = Vec::with_capacity(bytes.len());
            let named = links
                .iter()
                .copied()
                .zip(inputs.iter().map(|input| input.index));
            encode::operation(
                &mut ours,
                &op,
                inputs.len(),
                named,
                wire.platform.as_ref(),
                &wire.constraints,
            );
            let same = ours == **bytes;
            let foreign = (!same || !unknown_metadata.is_empty()).then(|| {
                Arc::new(Foreign {
                    bytes: if same { Vec::new() } else { bytes.to_vec() },
                    links,
                    unknown: wire.unknown,
                    unknown_metadata,
                })
            });
            let draft = Draft {
                platform: wire.platform.map(Arc::new),
                constraints: wire.constraints,
                metadata,
                ..Draft::new(op, inputs)
            };
            builder.add_pending(Pending { draft, foreign });
        }
        for source in std::mem::take(&mut self.sources) {
            builder.source(source);
        }
        let (root, _) = link(self.operations.len(), &root.inputs[0])?;
        let mut graph = builder.finish(Some(root))?;
        graph.unknown = self.unknown;
        Ok(graph)
    }
}

/// Reads an entry of a map from texts to messages or texts.
fn entry<'a>(message: &'static str, field: &Field<'a>) -> Decoded<(String, &'a [u8])> {
    let mut key = String::new();
    let mut value: &[u8] = &[];
    fields(message, field.bytes()?, &mut Vec::new(), |field, _| {
        match field.number {
            1 => key = field.text()?,
            2 => value = field.bytes()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok((key, value))
}

fn text_entry(message: &'static str, field: &Field<'_>) -> Decoded<(String, String)> {
    let (key, value) = entry(message, field)?;
    let value = std::str::from_utf8(value).map_err(|_| LlbError::Text { message })?;
    Ok((key, value.to_owned()))
}

/// Reads a position that is -1 where there is none.
fn position(what: &'static str, value: i64) -> Decoded<Option<usize>> {
    match value {
        -1 => Ok(None),
        _ => usize::try_from(value)
            .map(Some)
            .map_err(|_| LlbError::Value { what, value }),
    }
}

fn number(what: &'static str, value: i64) -> Decoded<u32> {
    u32::try_from(value).map_err(|_| LlbError::Value { what, value })
}

fn choice<T: std::marker::Copy>(what: &'static str, choices: &[T], value: i64) -> Decoded<T> {
    let chosen = usize::try_from(value)
        .ok()
        .and_then(|value| choices.get(value));
    chosen.copied().ok_or(LlbError::Value { what, value })
}

fn read_operation(bytes: &[u8]) -> Decoded<WireOp> {
    let mut wire = WireOp::default();
    let mut unknown = Vec::new();
    fields("op", bytes, &mut unknown, |field, unknown| {
        match field.number {
            1 => wire.inputs.push(read_input(field.bytes()?, unknown)?),
            2 => {
                let mut exec = match wire.op.take() {
                    Some(Op::Exec(exec)) => exec,
                    _ => Box::default(),
                };
                read_exec(&mut exec, field.bytes()?, unknown)?;
                wire.op = Some(Op::Exec(exec));
            }
            3 => wire.op = Some(Op::Source(read_source(field.bytes()?, unknown)?)),
            4 => wire.op = Some(Op::File(FileOp::default())),
            5 => wire.op = Some(Op::Build(read_build(field.bytes()?, unknown)?)),
            6 => wire.op = Some(Op::Merge(read_merge(field.bytes()?, unknown)?)),
            7 => wire.op = Some(Op::Diff(read_diff(field.bytes()?, unknown)?)),
            10 => {
                let platform = wire.platform.get_or_insert_default();
                read_platform(platform, field.bytes()?, unknown)?;
            }
            11 => fields("constraints", field.bytes()?, unknown, |field, _| {
                if field.number == 1 {
                    wire.constraints.push(field.text()?);
                }
                Ok(field.number == 1)
            })?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    // The numbers in file actions are counted after the inputs, which may come later.
    if let Some(Op::File(_)) = wire.op {
        let inputs = wire.inputs.len();
        let mut file = FileOp::default();
        fields("op", bytes, &mut Vec::new(), |field, _| {
            if field.number == 4 {
                fields("file op", field.bytes()?, &mut unknown, |field, unknown| {
                    if field.number == 2 {
                        file.actions
                            .push(read_action(field.bytes()?, inputs, unknown)?);
                    }
                    Ok(field.number == 2)
                })?;
            }
            Ok(true)
        })?;
        wire.op = Some(Op::File(file));
    }
    wire.unknown = unknown;
    Ok(wire)
}

fn read_input(bytes: &[u8], unknown: &mut Unknown) -> Decoded<(String, i64)> {
    let mut input = (String::new(), 0);
    fields("input", bytes, unknown, |field, _| {
        match field.number {
            1 => input.0 = field.text()?,
            2 => input.1 = field.int()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(input)
}

fn read_platform(into: &mut Platform, bytes: &[u8], unknown: &mut Unknown) -> Decoded<()> {
    fields("platform", bytes, unknown, |field, _| {
        match field.number {
            1 => into.architecture = field.text()?,
            2 => into.os = field.text()?,
            3 => into.variant = field.text()?,
            4 => into.os_version = field.text()?,
            5 => into.os_features.push(field.text()?),
            _ => return Ok(false),
        }
        Ok(true)
    })
}

fn read_source(bytes: &[u8], unknown: &mut Unknown) -> Decoded<SourceOp> {
    let mut source = SourceOp::default();
    fields("source op", bytes, unknown, |field, _| {
        match field.number {
            1 => source.identifier = field.text()?,
            2 => source
                .attrs
                .extend([text_entry("source attribute", field)?]),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(source)
}

fn read_exec(into: &mut ExecOp, bytes: &[u8], unknown: &mut Unknown) -> Decoded<()> {
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

fn read_meta(into: &mut Meta, bytes: &[u8], unknown: &mut Unknown) -> Decoded<()> {
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

fn read_proxy(into: &mut ProxyEnv, bytes: &[u8], unknown: &mut Unknown) -> Decoded<()> {
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

fn read_mount(bytes: &[u8], unknown: &mut Unknown) -> Decoded<Mount> {
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

fn read_secret(into: &mut SecretFile, bytes: &[u8], unknown: &mut Unknown) -> Decoded<()> {
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

fn read_action(bytes: &[u8], inputs: usize, unknown: &mut Unknown) -> Decoded<FileAction> {
    let from = |value: i64| -> Decoded<Option<ActionInput>> {
        Ok(
            position("action input", value)?.map(|number| match number.checked_sub(inputs) {
                Some(action) => ActionInput::Action(action),
                None => ActionInput::Vertex(number),
            }),
        )
    };
    let mut input = from(0)?;
    let mut secondary_input = from(0)?;
    let mut output = Some(0);
    let mut action = None;
    fields("file action", bytes, unknown, |field, unknown| {
        match field.number {
            1 => input = from(field.int()?)?,
            2 => secondary_input = from(field.int()?)?,
            3 => output = position("action output", field.int()?)?,
            4 => action = Some(Action::Copy(Box::new(read_copy(field.bytes()?, unknown)?))),
            5 => action = Some(Action::MakeFile(read_make_file(field.bytes()?, unknown)?)),
            6 => {
                action = Some(Action::MakeDirectory(read_directory(
                    field.bytes()?,
                    unknown,
                )?))
            }
            7 => action = Some(Action::Remove(read_remove(field.bytes()?, unknown)?)),
            8 => action = Some(Action::Symlink(read_symlink(field.bytes()?, unknown)?)),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let action = action.ok_or(LlbError::Value {
        what: "file action",
        value: 0,
    })?;
    Ok(FileAction {
        input,
        secondary_input,
        output,
        action,
    })
}

fn time(value: i64) -> Option<i64> {
    (value != -1).then_some(value)
}

fn read_copy(bytes: &[u8], unknown: &mut Unknown) -> Decoded<Copy> {
    let mut copy = Copy {
        mode: CopyMode::Bits(0),
        timestamp: Some(0),
        ..Copy::default()
    };
    let mut symbolic = String::new();
    fields("copy", bytes, unknown, |field, unknown| {
        match field.number {
            1 => copy.source = field.text()?,
            2 => copy.dest = field.text()?,
            3 => copy.owner = Some(read_owner(field.bytes()?, unknown)?),
            4 => {
                copy.mode = match field.int32()? {
                    -1 => CopyMode::Keep,
                    bits => CopyMode::Bits(number("file mode", i64::from(bits))?),
                };
            }
            5 => copy.follow_symlink = field.flag()?,
            6 => copy.directory_contents = field.flag()?,
            7 => copy.unpack = field.flag()?,
            8 => copy.create_dest_path = field.flag()?,
            9 => copy.allow_wildcard = field.flag()?,
            10 => copy.allow_empty_wildcard = field.flag()?,
            11 => copy.timestamp = time(field.int()?),
            12 => copy.include_patterns.push(field.text()?),
            13 => copy.exclude_patterns.push(field.text()?),
            14 => copy.replace_existing = field.flag()?,
            15 => symbolic = field.text()?,
            16 => copy.required_paths.push(field.text()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if !symbolic.is_empty() {
        copy.mode = CopyMode::Symbolic(symbolic);
    }
    Ok(copy)
}

fn read_make_file(bytes: &[u8], unknown: &mut Unknown) -> Decoded<MakeFile> {
    let mut file = MakeFile {
        timestamp: Some(0),
        ..MakeFile::default()
    };
    fields("mkfile", bytes, unknown, |field, unknown| {
        match field.number {
            1 => file.path = field.text()?,
            2 => file.mode = number("file mode", field.int()?)?,
            3 => file.data = field.bytes()?.to_vec(),
            4 => file.owner = Some(read_owner(field.bytes()?, unknown)?),
            5 => file.timestamp = time(field.int()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(file)
}

fn read_directory(bytes: &[u8], unknown: &mut Unknown) -> Decoded<MakeDirectory> {
    let mut directory = MakeDirectory {
        timestamp: Some(0),
        ..MakeDirectory::default()
    };
    fields("mkdir", bytes, unknown, |field, unknown| {
        match field.number {
            1 => directory.path = field.text()?,
            2 => directory.mode = number("file mode", field.int()?)?,
            3 => directory.make_parents = field.flag()?,
            4 => directory.owner = Some(read_owner(field.bytes()?, unknown)?),
            5 => directory.timestamp = time(field.int()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(directory)
}

fn read_remove(bytes: &[u8], unknown: &mut Unknown) -> Decoded<Remove> {
    let mut remove = Remove::default();
    fields("rm", bytes, unknown, |field, _| {
        match field.number {
            1 => remove.path = field.text()?,
            2 => remove.allow_not_found = field.flag()?,
            3 => remove.allow_wildcard = field.flag()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(remove)
}

fn read_symlink(bytes: &[u8], unknown: &mut Unknown) -> Decoded<Symlink> {
    let mut link = Symlink {
        timestamp: Some(0),
        ..Symlink::default()
    };
    fields("symlink", bytes, unknown, |field, unknown| {
        match field.number {
            1 => link.old_path = field.text()?,
            2 => link.new_path = field.text()?,
            3 => link.owner = Some(read_owner(field.bytes()?, unknown)?),
            4 => link.timestamp = time(field.int()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(link)
}

fn read_owner(bytes: &[u8], unknown: &mut Unknown) -> Decoded<Owner> {
    let mut owner = Owner::default();
    fields("owner", bytes, unknown, |field, unknown| {
        match field.number {
            1 => owner.user = read_user(field.bytes()?, unknown)?,
            2 => owner.group = read_user(field.bytes()?, unknown)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(owner)
}

fn read_user(bytes: &[u8], unknown: &mut Unknown) -> Decoded<Option<UserRef>> {
    let mut who = None;
    fields("user", bytes, unknown, |field, unknown| {
        match field.number {
            1 => {
                let mut name = String::new();
                let mut input = Some(0);
                fields("user name", field.bytes()?, unknown, |field, _| {
                    match field.number {
                        1 => name = field.text()?,
                        2 => input = position("owner input", field.int()?)?,
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?;
                who = Some(UserRef::Name { name, input });
            }
            2 => who = Some(UserRef::Id(number("user id", field.int()?)?)),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(who)
}

/// Reads a message whose one field is a position.
fn read_position(field: &Field<'_>, unknown: &mut Unknown) -> Decoded<Option<usize>> {
    let mut input = Some(0);
    fields("input number", field.bytes()?, unknown, |field, _| {
        if field.number == 1 {
            input = position("input number", field.int()?)?;
        }
        Ok(field.number == 1)
    })?;
    Ok(input)
}

fn read_merge(bytes: &[u8], unknown: &mut Unknown) -> Decoded<MergeOp> {
    let mut merge = MergeOp::default();
    fields("merge op", bytes, unknown, |field, unknown| {
        if field.number == 1 {
            merge.inputs.push(read_position(field, unknown)?);
        }
        Ok(field.number == 1)
    })?;
    Ok(merge)
}

fn read_diff(bytes: &[u8], unknown: &mut Unknown) -> Decoded<DiffOp> {
    let mut diff = DiffOp::default();
    fields("diff op", bytes, unknown, |field, unknown| {
        match field.number {
            1 => diff.lower = read_position(field, unknown)?,
            2 => diff.upper = read_position(field, unknown)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(diff)
}

fn read_build(bytes: &[u8], unknown: &mut Unknown) -> Decoded<BuildOp> {
    let mut build = BuildOp {
        builder: Some(0),
        ..BuildOp::default()
    };
    fields("build op", bytes, unknown, |field, unknown| {
        match field.number {
            1 => build.builder = position("builder", field.int()?)?,
            2 => {
                let (name, value) = entry("build input", field)?;
                let mut input = Some(0);
                fields("build input", value, unknown, |field, _| {
                    if field.number == 1 {
                        input = position("build input", field.int()?)?;
                    }
                    Ok(field.number == 1)
                })?;
                build.inputs.insert(name, input);
            }
            3 => build.definition = Some(field.bytes()?.to_vec()),
            4 => build.attrs.extend([text_entry("build attribute", field)?]),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(build)
}

fn read_metadata(bytes: &[u8], unknown: &mut Unknown) -> Decoded<Metadata> {
    let mut metadata = Metadata::default();
    // Only fields of the message itself can be put back; those inside others are let go.
    let nested = &mut Vec::new();
    fields("metadata", bytes, unknown, |field, _| {
        match field.number {
            1 => metadata.ignore_cache = field.flag()?,
            2 => {
                let (key, value) = text_entry("description", field)?;
                match key.as_str() {
                    encode::CUSTOM_NAME => metadata.name = value,
                    encode::COMMAND => metadata.command = value,
                    _ => {
                        metadata.description.insert(key, value);
                    }
                }
            }
            4 => {
                let mut export = false;
                fields("export cache", field.bytes()?, nested, |field, _| {
                    if field.number == 1 {
                        export = field.flag()?;
                    }
                    Ok(field.number == 1)
                })?;
                metadata.export_cache = Some(export);
            }
            5 => {
                let (mut key, mut value) = (String::new(), false);
                fields("capability", field.bytes()?, nested, |field, _| {
                    match field.number {
                        1 => key = field.text()?,
                        2 => value = field.flag()?,
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?;
                metadata.caps.insert(key, value);
            }
            6 => {
                let group = metadata.progress_group.get_or_insert_default();
                read_group(group, field.bytes()?, nested)?;
            }
            7 => {
                let resources = metadata.linux_resources.get_or_insert_default();
                read_resources(resources, field.bytes()?, nested)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(metadata)
}

fn read_group(into: &mut ProgressGroup, bytes: &[u8], unknown: &mut Unknown) -> Decoded<()> {
    fields("progress group", bytes, unknown, |field, _| {
        match field.number {
            1 => into.id = field.text()?,
            2 => into.name = field.text()?,
            3 => into.weak = field.flag()?,
            _ => return Ok(false),
        }
        Ok(true)
    })
}

fn read_resources(into: &mut LinuxResources, bytes: &[u8], unknown: &mut Unknown) -> Decoded<()> {
    fields("resources", bytes, unknown, |field, _| {
        match field.number {
            1 => into.memory = field.int()?,
            2 => into.memory_swap = field.int()?,
            3 => into.cpu_shares = field.int()? as u64,
            4 => into.cpu_period = field.int()? as u64,
            5 => into.cpu_quota = field.int()?,
            6 => into.cpuset_cpus = field.text()?,
            7 => into.cpuset_mems = field.text()?,
            _ => return Ok(false),
        }
        Ok(true)
    })
}

fn read_source_file(bytes: &[u8]) -> Decoded<SourceFile> {
    let mut file = SourceFile::default();
    fields("source info", bytes, &mut Vec::new(), |field, _| {
        match field.number {
            1 => file.filename = field.text()?,
            2 => file.data = field.bytes()?.into(),
            3 => file.definition = Some(field.bytes()?.to_vec()),
            4 => file.language = field.text()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(file)
}

fn read_locations(bytes: &[u8]) -> Decoded<Vec<Location>> {
    let mut locations = Vec::new();
    let unknown = &mut Vec::new();
    fields("locations", bytes, unknown, |field, unknown| {
        if field.number != 1 {
            return Ok(false);
        }
        let mut location = Location::default();
        fields("location", field.bytes()?, unknown, |field, unknown| {
            match field.number {
                1 => {
                    let value = field.int()?;
                    location.source = usize::try_from(value).map_err(|_| LlbError::Value {
                        what: "source file number",
                        value,
                    })?;
                }
                2 => {
                    let mut range = Range::default();
                    fields("range", field.bytes()?, unknown, |field, unknown| {
                        match field.number {
                            1 => range.start = read_place(field.bytes()?, unknown)?,
                            2 => range.end = read_place(field.bytes()?, unknown)?,
                            _ => return Ok(false),
                        }
                        Ok(true)
                    })?;
                    location.ranges.push(range);
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        locations.push(location);
        Ok(true)
    })?;
    Ok(locations)
}

fn read_place(bytes: &[u8], unknown: &mut Unknown) -> Decoded<Position> {
    let mut position = Position::default();
    fields("position", bytes, unknown, |field, _| {
        match field.number {
            1 => position.line = number("line", field.int()?)?,
            2 => position.character = number("character", field.int()?)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(position)
}
