//! Writing `pb.Op` and `pb.Definition` as Go's deterministic encoder does.
//!
//! Fields stand in the order of their numbers, except that members of a oneof come last; maps are sorted by key and
//! write both key and value; messages that are there but empty are written.

use std::collections::BTreeMap;

use oci::Platform;

use crate::wire::Writer;
use crate::{
    Action, ActionInput, BuildOp, CacheSharing, ContentCache, Copy, CopyMode, DiffOp, ExecOp,
    FileAction, FileOp, Graph, LinuxResources, MergeOp, Metadata, Mount, MountKind, NetworkMode,
    Op, Owner, SecretFile, SecurityMode, SourceFile, UserRef, VertexId, caps,
};

/// The key under which a vertex's name stands in its description.
pub(crate) const CUSTOM_NAME: &str = "llb.customname";
pub(crate) use crate::attr::COMMAND;

/// Appends the encoding of a vertex, its inputs named by the given ids; `count` is the number it has.
pub(crate) fn operation(
    buffer: &mut Vec<u8>,
    op: &Op,
    count: usize,
    inputs: impl Iterator<Item = (VertexId, usize)>,
    platform: Option<&Platform>,
    constraints: &[String],
) {
    let mut writer = Writer::new(buffer);
    write_inputs(&mut writer, inputs);
    if let Some(platform) = platform {
        writer.message(10, |writer| write_platform(writer, platform));
    }
    writer.message(11, |writer| writer.texts(1, constraints));
    match op {
        Op::Exec(exec) => writer.message(2, |writer| write_exec(writer, exec)),
        Op::Source(source) => writer.message(3, |writer| {
            writer.text(1, &source.identifier);
            texts_map(writer, 2, &source.attrs);
        }),
        Op::File(file) => writer.message(4, |writer| write_file(writer, file, count)),
        Op::Build(build) => writer.message(5, |writer| write_build(writer, build)),
        Op::Merge(merge) => writer.message(6, |writer| write_merge(writer, merge)),
        Op::Diff(diff) => writer.message(7, |writer| write_diff(writer, diff)),
    }
}

fn write_inputs(writer: &mut Writer<'_>, inputs: impl Iterator<Item = (VertexId, usize)>) {
    let mut digest = Vec::with_capacity(71);
    for (id, output) in inputs {
        digest.clear();
        id.write_to(&mut digest);
        writer.message(1, |writer| {
            writer.bytes(1, &digest);
            writer.int(2, output as i64);
        });
    }
}

fn write_platform(writer: &mut Writer<'_>, platform: &Platform) {
    writer.text(1, &platform.architecture);
    writer.text(2, &platform.os);
    writer.text(3, &platform.variant);
    writer.text(4, &platform.os_version);
    writer.texts(5, &platform.os_features);
}

fn texts_map(writer: &mut Writer<'_>, field: u32, map: &BTreeMap<String, String>) {
    for (key, value) in map {
        writer.entry(field, key, |writer| writer.item(2, value.as_bytes()));
    }
}

/// An optional position: -1 where there is none.
fn position(number: Option<usize>) -> i64 {
    number.map_or(-1, |number| number as i64)
}

fn write_exec(writer: &mut Writer<'_>, exec: &ExecOp) {
    writer.message(1, |writer| {
        let meta = &exec.meta;
        writer.texts(1, &meta.args);
        writer.texts(2, &meta.env);
        writer.text(3, &meta.cwd);
        writer.text(4, &meta.user);
        if let Some(proxy) = &meta.proxy_env {
            writer.message(5, |writer| {
                writer.text(1, &proxy.http_proxy);
                writer.text(2, &proxy.https_proxy);
                writer.text(3, &proxy.ftp_proxy);
                writer.text(4, &proxy.no_proxy);
                writer.text(5, &proxy.all_proxy);
            });
        }
        for host in &meta.extra_hosts {
            writer.message(6, |writer| {
                writer.text(1, &host.host);
                writer.text(2, &host.ip);
            });
        }
        writer.text(7, &meta.hostname);
        for limit in &meta.ulimits {
            writer.message(9, |writer| {
                writer.text(1, &limit.name);
                writer.int(2, limit.soft);
                writer.int(3, limit.hard);
            });
        }
        writer.text(10, &meta.cgroup_parent);
        writer.flag(11, meta.remove_mount_stubs_recursive);
        writer.packed(
            12,
            meta.valid_exit_codes.iter().map(|code| i64::from(*code)),
        );
    });
    for mount in &exec.mounts {
        writer.message(2, |writer| write_mount(writer, mount));
    }
    let network = match exec.network {
        NetworkMode::Sandbox => 0,
        NetworkMode::Host => 1,
        NetworkMode::None => 2,
    };
    writer.int(3, network);
    writer.flag(4, exec.security == SecurityMode::Insecure);
    for secret in &exec.secret_env {
        writer.message(5, |writer| {
            writer.text(1, &secret.id);
            writer.text(2, &secret.name);
            writer.flag(3, secret.optional);
        });
    }
    for device in &exec.cdi_devices {
        writer.message(6, |writer| {
            writer.text(1, &device.name);
            writer.flag(2, device.optional);
        });
    }
}

fn write_mount(writer: &mut Writer<'_>, mount: &Mount) {
    writer.int(1, position(mount.input));
    writer.text(2, &mount.selector);
    writer.text(3, &mount.dest);
    let kind = match &mount.kind {
        MountKind::Bind => 0,
        MountKind::Secret(_) => 1,
        MountKind::Ssh(_) => 2,
        MountKind::Cache { .. } => 3,
        MountKind::Tmpfs { .. } => 4,
    };
    // Secrets and sockets have no output; theirs is not given, which reads as 0.
    let output = match &mount.kind {
        MountKind::Secret(_) | MountKind::Ssh(_) => 0,
        _ => position(mount.output),
    };
    writer.int(4, output);
    writer.flag(5, mount.read_only);
    writer.int(6, kind);
    match &mount.kind {
        MountKind::Bind => {}
        MountKind::Tmpfs { size } => writer.message(19, |writer| writer.int(1, *size)),
        MountKind::Cache { id, sharing } => writer.message(20, |writer| {
            writer.text(1, id);
            let sharing = match sharing {
                CacheSharing::Shared => 0,
                CacheSharing::Private => 1,
                CacheSharing::Locked => 2,
            };
            writer.int(2, sharing);
        }),
        MountKind::Secret(file) => writer.message(21, |writer| write_secret(writer, file)),
        MountKind::Ssh(file) => writer.message(22, |writer| write_secret(writer, file)),
    }
    writer.text(23, &mount.result_id);
    let content_cache = match mount.content_cache {
        ContentCache::Default => 0,
        ContentCache::On => 1,
        ContentCache::Off => 2,
    };
    writer.int(24, content_cache);
}

fn write_secret(writer: &mut Writer<'_>, file: &SecretFile) {
    writer.text(1, &file.id);
    writer.int(2, i64::from(file.uid));
    writer.int(3, i64::from(file.gid));
    writer.int(4, i64::from(file.mode));
    writer.flag(5, file.optional);
}

/// `inputs` is the number of the vertex's inputs: results of actions are counted after them.
fn write_file(writer: &mut Writer<'_>, file: &FileOp, inputs: usize) {
    let number = |input: Option<ActionInput>| match input {
        None => -1,
        Some(ActionInput::Vertex(number)) => number as i64,
        Some(ActionInput::Action(number)) => (inputs + number) as i64,
    };
    for FileAction {
        input,
        secondary_input,
        output,
        action,
    } in &file.actions
    {
        writer.message(2, |writer| {
            writer.int(1, number(*input));
            writer.int(2, number(*secondary_input));
            writer.int(3, position(*output));
            write_action(writer, action);
        });
    }
}

fn write_action(writer: &mut Writer<'_>, action: &Action) {
    match action {
        Action::Copy(copy) => writer.message(4, |writer| write_copy(writer, copy)),
        Action::MakeFile(file) => writer.message(5, |writer| {
            writer.text(1, &file.path);
            writer.int(2, i64::from(file.mode));
            writer.bytes(3, &file.data);
            write_owner(writer, 4, file.owner.as_ref());
            writer.int(5, time(file.timestamp));
        }),
        Action::MakeDirectory(directory) => writer.message(6, |writer| {
            writer.text(1, &directory.path);
            writer.int(2, i64::from(directory.mode));
            writer.flag(3, directory.make_parents);
            write_owner(writer, 4, directory.owner.as_ref());
            writer.int(5, time(directory.timestamp));
        }),
        Action::Remove(remove) => writer.message(7, |writer| {
            writer.text(1, &remove.path);
            writer.flag(2, remove.allow_not_found);
            writer.flag(3, remove.allow_wildcard);
        }),
        Action::Symlink(link) => writer.message(8, |writer| {
            writer.text(1, &link.old_path);
            writer.text(2, &link.new_path);
            write_owner(writer, 3, link.owner.as_ref());
            writer.int(4, time(link.timestamp));
        }),
    }
}

fn write_copy(writer: &mut Writer<'_>, copy: &Copy) {
    writer.text(1, &copy.source);
    writer.text(2, &copy.dest);
    write_owner(writer, 3, copy.owner.as_ref());
    let mode = match copy.mode {
        CopyMode::Keep => -1,
        CopyMode::Bits(bits) => i64::from(bits),
        CopyMode::Symbolic(_) => 0,
    };
    writer.int(4, mode);
    writer.flag(5, copy.follow_symlink);
    writer.flag(6, copy.directory_contents);
    writer.flag(7, copy.unpack);
    writer.flag(8, copy.create_dest_path);
    writer.flag(9, copy.allow_wildcard);
    writer.flag(10, copy.allow_empty_wildcard);
    writer.int(11, time(copy.timestamp));
    writer.texts(12, &copy.include_patterns);
    writer.texts(13, &copy.exclude_patterns);
    writer.flag(14, copy.replace_existing);
    if let CopyMode::Symbolic(mode) = &copy.mode {
        writer.text(15, mode);
    }
    writer.texts(16, &copy.required_paths);
}

/// Nanoseconds since 1970, -1 where the time is not set.
fn time(timestamp: Option<i64>) -> i64 {
    timestamp.unwrap_or(-1)
}

fn write_owner(writer: &mut Writer<'_>, field: u32, owner: Option<&Owner>) {
    let Some(owner) = owner else { return };
    writer.message(field, |writer| {
        for (field, who) in [(1, &owner.user), (2, &owner.group)] {
            match who {
                None => {}
                Some(UserRef::Name { name, input }) => writer.message(field, |writer| {
                    writer.message(1, |writer| {
                        writer.text(1, name);
                        writer.int(2, position(*input));
                    });
                }),
                Some(UserRef::Id(id)) => {
                    writer.message(field, |writer| writer.present(2, u64::from(*id)));
                }
            }
        }
    });
}

fn write_merge(writer: &mut Writer<'_>, merge: &MergeOp) {
    for input in &merge.inputs {
        writer.message(1, |writer| writer.int(1, position(*input)));
    }
}

fn write_diff(writer: &mut Writer<'_>, diff: &DiffOp) {
    writer.message(1, |writer| writer.int(1, position(diff.lower)));
    writer.message(2, |writer| writer.int(1, position(diff.upper)));
}

fn write_build(writer: &mut Writer<'_>, build: &BuildOp) {
    writer.int(1, position(build.builder));
    for (name, input) in &build.inputs {
        writer.entry(2, name, |writer| {
            writer.message(2, |writer| writer.int(1, position(*input)));
        });
    }
    if let Some(definition) = &build.definition {
        writer.item(3, definition);
    }
    texts_map(writer, 4, &build.attrs);
}

impl Graph {
    /// Returns the graph as the bytes of a `pb.Definition`.
    ///
    /// The result's vertex stands last, in an op that only names it. A graph without a root is an empty definition.
    pub fn encode_definition(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        let mut wire_ids: Vec<VertexId> = Vec::with_capacity(self.vertices.len());
        for vertex in &self.vertices {
            let encoded = self.wire_form(vertex, &wire_ids);
            wire_ids.push(VertexId::of(&encoded));
            writer.item(1, &encoded);
        }
        let mut metadata: BTreeMap<VertexId, Vec<u8>> = BTreeMap::new();
        for (vertex, id) in self.vertices.iter().zip(&wire_ids) {
            let mut encoded = Vec::new();
            let needed = caps::needed(vertex);
            write_metadata(&mut Writer::new(&mut encoded), &vertex.metadata, &needed);
            if let Some(foreign) = &vertex.foreign {
                encoded.extend_from_slice(&foreign.unknown_metadata);
            }
            metadata.insert(*id, encoded);
        }
        if let Some(root) = self.root {
            let mut last = Vec::new();
            let inputs = std::iter::once((wire_ids[root.vertex], root.output));
            write_inputs(&mut Writer::new(&mut last), inputs);
            writer.item(1, &last);
            let mut encoded = Vec::new();
            let needed = caps::of_graph(self);
            write_metadata(
                &mut Writer::new(&mut encoded),
                &Metadata::default(),
                &needed,
            );
            metadata.insert(VertexId::of(&last), encoded);
        }
        for (id, encoded) in &metadata {
            writer.entry(2, &id.to_string(), |writer| writer.item(2, encoded));
        }
        if !self.sources.is_empty() && self.root.is_some() {
            writer.message(3, |writer| self.write_sources(writer, &wire_ids));
        }
        writer.raw(&self.unknown);
        bytes
    }

    fn wire_form(&self, vertex: &crate::Vertex, wire_ids: &[VertexId]) -> Vec<u8> {
        let inputs = vertex
            .inputs
            .iter()
            .map(|edge| (wire_ids[edge.vertex], edge.output));
        if let Some(foreign) = &vertex.foreign
            && inputs
                .clone()
                .map(|(id, _)| id)
                .eq(foreign.links.iter().copied())
            && !foreign.bytes.is_empty()
        {
            return foreign.bytes.clone();
        }
        let mut encoded = Vec::new();
        let platform = vertex.platform.as_deref();
        operation(
            &mut encoded,
            &vertex.op,
            vertex.inputs.len(),
            inputs,
            platform,
            &vertex.constraints,
        );
        encoded
    }

    fn write_sources(&self, writer: &mut Writer<'_>, wire_ids: &[VertexId]) {
        // Every vertex has an entry, also one that comes from no line.
        let located: BTreeMap<VertexId, &crate::Vertex> =
            wire_ids.iter().copied().zip(&self.vertices).collect();
        for (id, vertex) in located {
            writer.entry(1, &id.to_string(), |writer| {
                writer.message(2, |writer| {
                    for location in &vertex.metadata.locations {
                        writer.message(1, |writer| write_location(writer, location));
                    }
                });
            });
        }
        for SourceFile {
            filename,
            language,
            data,
            definition,
        } in &self.sources
        {
            writer.message(2, |writer| {
                writer.text(1, filename);
                writer.bytes(2, data);
                if let Some(definition) = definition {
                    writer.item(3, definition);
                }
                writer.text(4, language);
            });
        }
    }
}

fn write_location(writer: &mut Writer<'_>, location: &crate::Location) {
    writer.int(1, location.source as i64);
    for range in &location.ranges {
        writer.message(2, |writer| {
            for (field, position) in [(1, range.start), (2, range.end)] {
                writer.message(field, |writer| {
                    writer.int(1, i64::from(position.line));
                    writer.int(2, i64::from(position.character));
                });
            }
        });
    }
}

fn write_metadata(writer: &mut Writer<'_>, metadata: &Metadata, needed: &[&str]) {
    writer.flag(1, metadata.ignore_cache);
    let own = [(COMMAND, &metadata.command), (CUSTOM_NAME, &metadata.name)];
    let own = own.into_iter().filter(|(_, value)| !value.is_empty());
    let given = metadata
        .description
        .iter()
        .map(|(key, value)| (key.as_str(), value));
    let description: BTreeMap<&str, &String> = given.chain(own).collect();
    for (key, value) in description {
        writer.entry(2, key, |writer| writer.item(2, value.as_bytes()));
    }
    if let Some(export) = metadata.export_cache {
        writer.message(4, |writer| writer.flag(1, export));
    }
    let mut all: BTreeMap<&str, bool> = needed.iter().map(|cap| (*cap, true)).collect();
    all.extend(
        metadata
            .caps
            .iter()
            .map(|(cap, value)| (cap.as_str(), *value)),
    );
    for (cap, value) in all {
        writer.entry(5, cap, |writer| writer.present(2, u64::from(value)));
    }
    if let Some(group) = &metadata.progress_group {
        writer.message(6, |writer| {
            writer.text(1, &group.id);
            writer.text(2, &group.name);
            writer.flag(3, group.weak);
        });
    }
    if let Some(resources) = &metadata.linux_resources {
        writer.message(7, |writer| write_resources(writer, resources));
    }
}

fn write_resources(writer: &mut Writer<'_>, resources: &LinuxResources) {
    writer.int(1, resources.memory);
    writer.int(2, resources.memory_swap);
    writer.int(3, resources.cpu_shares as i64);
    writer.int(4, resources.cpu_period as i64);
    writer.int(5, resources.cpu_quota);
    writer.text(6, &resources.cpuset_cpus);
    writer.text(7, &resources.cpuset_mems);
}
