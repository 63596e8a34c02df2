//! A graph as the JSON that provenance holds: BuildKit's `pb.Op` in the names of its protocol.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use llb::{
    Action, ActionInput, CacheSharing, ContentCache, CopyMode, Graph, Mount, MountKind,
    NetworkMode, Op, Owner, SecretFile, SecurityMode, UserRef, Vertex, VertexId, attr,
};
use oci::Digest;
use serde_json::{Map, Value, json};

use crate::url::without_credentials;

/// Returns the numbers of the steps: depth first, inputs before what uses them.
pub fn step_numbers(graph: &Graph) -> BTreeMap<VertexId, usize> {
    let order = order(graph);
    order
        .iter()
        .enumerate()
        .map(|(number, index)| (graph.vertices()[*index].id(), number))
        .collect()
}

/// Returns positions of vertices in the order in which a walk from the root leaves them.
fn order(graph: &Graph) -> Vec<usize> {
    let Some(root) = graph.root() else {
        return Vec::new();
    };
    let mut order = Vec::with_capacity(graph.vertices().len());
    let mut seen = vec![false; graph.vertices().len()];
    let mut stack = vec![(root.vertex, 0)];
    seen[root.vertex] = true;
    while let Some((index, next)) = stack.pop() {
        match graph.vertices()[index].inputs().get(next) {
            Some(input) => {
                stack.push((index, next + 1));
                if !std::mem::replace(&mut seen[input.vertex], true) {
                    stack.push((input.vertex, 0));
                }
            }
            None => order.push(index),
        }
    }
    order
}

/// Returns the steps and which digest each has; `None` for an empty graph. Values of hidden variables are starred.
pub(crate) fn steps(graph: &Graph, hidden: &BTreeSet<String>) -> Option<(Value, Value)> {
    let root = graph.root()?;
    let order = order(graph);
    let mut numbers = vec![0; graph.vertices().len()];
    let mut steps = Vec::with_capacity(order.len() + 1);
    let mut digests = Map::new();
    for (number, index) in order.iter().enumerate() {
        numbers[*index] = number;
        let vertex = &graph.vertices()[*index];
        let inputs = vertex.inputs().iter();
        let inputs: Vec<String> = inputs
            .map(|edge| format!("step{}:{}", numbers[edge.vertex], edge.output))
            .collect();
        steps.push(step(number, operation(vertex, hidden), inputs));
        digests.insert(vertex.id().to_string(), json!(format!("step{number}")));
    }
    let last = order.len();
    let input = format!("step{}:{}", numbers[root.vertex], root.output);
    steps.push(step(last, json!({"Op": {}}), vec![input]));
    let id = graph.vertices()[root.vertex].id();
    digests.insert(
        end_of(id, root.output).to_string(),
        json!(format!("step{last}")),
    );
    // Sorted, as Go writes maps.
    let digests: BTreeMap<String, Value> = digests.into_iter().collect();
    Some((Value::Array(steps), json!(digests)))
}

fn step(number: usize, op: Value, inputs: Vec<String>) -> Value {
    let mut step = Members::default();
    step.value("id", json!(format!("step{number}")));
    step.value("op", op);
    step.list("inputs", inputs.into_iter().map(Value::from).collect());
    step.done()
}

/// Returns the digest of the vertex that ends a definition: no operation, one input.
fn end_of(root: VertexId, output: usize) -> Digest {
    let text = root.to_string();
    let mut input = vec![0x0a, text.len() as u8];
    input.extend_from_slice(text.as_bytes());
    if output > 0 {
        input.push(0x10);
        let mut rest = output as u64;
        while rest >= 0x80 {
            input.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        input.push(rest as u8);
    }
    let mut bytes = vec![0x0a, input.len() as u8];
    bytes.append(&mut input);
    Digest::sha256_of(&bytes)
}

/// Members of an object; defaults are left out.
#[derive(Default)]
struct Members(Map<String, Value>);

impl Members {
    fn value(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }

    fn text(&mut self, name: &str, text: &str) {
        if !text.is_empty() {
            self.value(name, json!(text));
        }
    }

    fn number(&mut self, name: &str, number: i64) {
        if number != 0 {
            self.value(name, json!(number));
        }
    }

    fn flag(&mut self, name: &str, flag: bool) {
        if flag {
            self.value(name, json!(true));
        }
    }

    fn list(&mut self, name: &str, list: Vec<Value>) {
        if !list.is_empty() {
            self.value(name, Value::Array(list));
        }
    }

    fn texts(&mut self, name: &str, texts: &[String]) {
        self.list(name, texts.iter().cloned().map(Value::from).collect());
    }

    fn done(self) -> Value {
        Value::Object(self.0)
    }
}

/// Returns a position as the protocol writes it.
fn position(number: Option<usize>) -> i64 {
    number.map_or(-1, |number| number as i64)
}

fn operation(vertex: &Vertex, hidden: &BTreeSet<String>) -> Value {
    let (kind, op) = match vertex.op() {
        Op::Source(source) => {
            let mut op = Members::default();
            op.text("identifier", &without_credentials(&source.identifier));
            // These differ from one client's session to the next.
            let kept = |name: &&String| {
                !matches!(
                    name.as_str(),
                    attr::LOCAL_SESSION_ID | attr::LOCAL_UNIQUE_ID
                )
            };
            let attrs: BTreeMap<&String, String> = source
                .attrs
                .iter()
                .filter(|(name, _)| kept(name))
                .map(|(name, value)| (name, without_credentials(value)))
                .collect();
            if !attrs.is_empty() {
                op.value("attrs", json!(attrs));
            }
            ("source", op.done())
        }
        Op::Exec(exec) => ("exec", exec_op(exec, hidden)),
        Op::File(file) => {
            let count = vertex.inputs().len();
            let actions = file.actions.iter().map(|action| file_action(action, count));
            ("file", json!({"actions": actions.collect::<Vec<_>>()}))
        }
        Op::Merge(merge) => {
            let inputs = merge.inputs.iter().map(|input| input_of(position(*input)));
            ("merge", json!({"inputs": inputs.collect::<Vec<_>>()}))
        }
        Op::Diff(diff) => {
            let lower = input_of(position(diff.lower));
            let upper = input_of(position(diff.upper));
            ("diff", json!({"lower": lower, "upper": upper}))
        }
        Op::Build(build) => {
            let mut op = Members::default();
            op.number("builder", position(build.builder));
            let inputs = build.inputs.iter();
            let inputs: BTreeMap<&String, Value> = inputs
                .map(|(name, input)| (name, input_of(position(*input))))
                .collect();
            if !inputs.is_empty() {
                op.value("inputs", json!(inputs));
            }
            if !build.attrs.is_empty() {
                op.value("attrs", json!(build.attrs));
            }
            ("build", op.done())
        }
    };
    let mut members = Members::default();
    members.value("Op", json!({ kind: op }));
    if let Some(platform) = vertex.platform() {
        let mut shown = Members::default();
        shown.text("Architecture", &platform.architecture);
        shown.text("OS", &platform.os);
        shown.text("Variant", &platform.variant);
        shown.text("OSVersion", &platform.os_version);
        shown.texts("OSFeatures", &platform.os_features);
        members.value("platform", shown.done());
    }
    if vertex.constraints().is_empty() {
        members.value("constraints", json!({}));
    } else {
        members.value("constraints", json!({"filter": vertex.constraints()}));
    }
    members.done()
}

fn input_of(number: i64) -> Value {
    let mut input = Members::default();
    input.number("input", number);
    input.done()
}

fn exec_op(exec: &llb::ExecOp, hidden: &BTreeSet<String>) -> Value {
    let mut op = Members::default();
    op.value("meta", meta(&exec.meta, hidden));
    op.list("mounts", exec.mounts.iter().map(mount).collect());
    op.number(
        "network",
        match exec.network {
            NetworkMode::Sandbox => 0,
            NetworkMode::Host => 1,
            NetworkMode::None => 2,
        },
    );
    op.number(
        "security",
        match exec.security {
            SecurityMode::Sandbox => 0,
            SecurityMode::Insecure => 1,
        },
    );
    let secrets = exec.secret_env.iter().map(|secret| {
        let mut shown = Members::default();
        shown.text("ID", &secret.id);
        shown.text("name", &secret.name);
        shown.flag("optional", secret.optional);
        shown.done()
    });
    op.list("secretenv", secrets.collect());
    let devices = exec.cdi_devices.iter().map(|device| {
        let mut shown = Members::default();
        shown.text("name", &device.name);
        shown.flag("optional", device.optional);
        shown.done()
    });
    op.list("cdiDevices", devices.collect());
    op.done()
}

fn meta(meta: &llb::Meta, hidden: &BTreeSet<String>) -> Value {
    let mut shown = Members::default();
    shown.texts("args", &meta.args);
    let env = meta.env.iter();
    let env: Vec<String> = env
        .map(|variable| match variable.split_once('=') {
            Some((name, _)) if hidden.contains(name) => format!("{name}=***"),
            _ => variable.clone(),
        })
        .collect();
    shown.texts("env", &env);
    shown.text("cwd", &meta.cwd);
    shown.text("user", &meta.user);
    // Proxies may hold credentials, and are part of no result: that there were some is all that is told.
    if meta.proxy_env.is_some() {
        shown.value("proxy_env", json!({}));
    }
    let hosts = meta.extra_hosts.iter();
    shown.list(
        "extraHosts",
        hosts
            .map(|host| json!({"Host": host.host, "IP": host.ip}))
            .collect(),
    );
    shown.text("hostname", &meta.hostname);
    let limits = meta.ulimits.iter().map(|limit| {
        let mut shown = Members::default();
        shown.text("Name", &limit.name);
        shown.number("Soft", limit.soft);
        shown.number("Hard", limit.hard);
        shown.done()
    });
    shown.list("ulimit", limits.collect());
    shown.text("cgroupParent", &meta.cgroup_parent);
    shown.flag(
        "removeMountStubsRecursive",
        meta.remove_mount_stubs_recursive,
    );
    let codes = meta.valid_exit_codes.iter().map(|code| json!(code));
    shown.list("validExitCodes", codes.collect());
    shown.done()
}

fn mount(mount: &Mount) -> Value {
    let mut shown = Members::default();
    shown.number("input", position(mount.input));
    shown.text("selector", &mount.selector);
    shown.text("dest", &mount.dest);
    let has_output = !matches!(mount.kind, MountKind::Secret(_) | MountKind::Ssh(_));
    if has_output {
        shown.number("output", position(mount.output));
    }
    shown.flag("readonly", mount.read_only);
    let (kind, name, options) = match &mount.kind {
        MountKind::Bind => (0, "", None),
        MountKind::Secret(file) => (1, "secretOpt", Some(secret(file))),
        MountKind::Ssh(file) => (2, "SSHOpt", Some(secret(file))),
        MountKind::Cache { id, sharing } => {
            let mut options = Members::default();
            options.text("ID", id);
            options.number(
                "sharing",
                match sharing {
                    CacheSharing::Shared => 0,
                    CacheSharing::Private => 1,
                    CacheSharing::Locked => 2,
                },
            );
            (3, "cacheOpt", Some(options.done()))
        }
        MountKind::Tmpfs { size } => {
            let mut options = Members::default();
            options.number("size", *size);
            (4, "TmpfsOpt", Some(options.done()))
        }
    };
    shown.number("mountType", kind);
    if let Some(options) = options {
        shown.value(name, options);
    }
    shown.text("resultID", &mount.result_id);
    shown.number(
        "contentCache",
        match mount.content_cache {
            ContentCache::Default => 0,
            ContentCache::On => 1,
            ContentCache::Off => 2,
        },
    );
    shown.done()
}

fn secret(file: &SecretFile) -> Value {
    let mut shown = Members::default();
    shown.text("ID", &file.id);
    shown.number("uid", i64::from(file.uid));
    shown.number("gid", i64::from(file.gid));
    shown.number("mode", i64::from(file.mode));
    shown.flag("optional", file.optional);
    shown.done()
}

fn file_action(action: &llb::FileAction, inputs: usize) -> Value {
    let number = |input: Option<ActionInput>| match input {
        None => -1,
        Some(ActionInput::Vertex(number)) => number as i64,
        Some(ActionInput::Action(number)) => (inputs + number) as i64,
    };
    let (kind, shown) = match &action.action {
        Action::Copy(copy) => ("copy", copy_action(copy)),
        Action::MakeFile(file) => {
            let mut shown = Members::default();
            shown.text("path", &file.path);
            shown.number("mode", i64::from(file.mode));
            shown.text("data", &STANDARD.encode(&file.data));
            owner(&mut shown, file.owner.as_ref());
            shown.number("timestamp", file.timestamp.unwrap_or(-1));
            ("mkfile", shown.done())
        }
        Action::MakeDirectory(directory) => {
            let mut shown = Members::default();
            shown.text("path", &directory.path);
            shown.number("mode", i64::from(directory.mode));
            shown.flag("makeParents", directory.make_parents);
            owner(&mut shown, directory.owner.as_ref());
            shown.number("timestamp", directory.timestamp.unwrap_or(-1));
            ("mkdir", shown.done())
        }
        Action::Remove(remove) => {
            let mut shown = Members::default();
            shown.text("path", &remove.path);
            shown.flag("allowNotFound", remove.allow_not_found);
            shown.flag("allowWildcard", remove.allow_wildcard);
            ("rm", shown.done())
        }
        Action::Symlink(link) => {
            let mut shown = Members::default();
            shown.text("oldpath", &link.old_path);
            shown.text("newpath", &link.new_path);
            owner(&mut shown, link.owner.as_ref());
            shown.number("timestamp", link.timestamp.unwrap_or(-1));
            ("symlink", shown.done())
        }
    };
    json!({
        "input": number(action.input),
        "secondaryInput": number(action.secondary_input),
        "output": position(action.output),
        "Action": { kind: shown },
    })
}

fn copy_action(copy: &llb::Copy) -> Value {
    let mut shown = Members::default();
    shown.text("src", &copy.source);
    shown.text("dest", &copy.dest);
    owner(&mut shown, copy.owner.as_ref());
    shown.number(
        "mode",
        match &copy.mode {
            CopyMode::Keep => -1,
            CopyMode::Bits(bits) => i64::from(*bits),
            CopyMode::Symbolic(_) => 0,
        },
    );
    shown.flag("followSymlink", copy.follow_symlink);
    shown.flag("dirCopyContents", copy.directory_contents);
    shown.flag("attemptUnpackDockerCompatibility", copy.unpack);
    shown.flag("createDestPath", copy.create_dest_path);
    shown.flag("allowWildcard", copy.allow_wildcard);
    shown.flag("allowEmptyWildcard", copy.allow_empty_wildcard);
    shown.number("timestamp", copy.timestamp.unwrap_or(-1));
    shown.texts("include_patterns", &copy.include_patterns);
    shown.texts("exclude_patterns", &copy.exclude_patterns);
    shown.flag("alwaysReplaceExistingDestPaths", copy.replace_existing);
    if let CopyMode::Symbolic(mode) = &copy.mode {
        shown.text("modeStr", mode);
    }
    shown.texts("required_paths", &copy.required_paths);
    shown.done()
}

fn owner(members: &mut Members, owner: Option<&Owner>) {
    let Some(owner) = owner else { return };
    let who = |who: &UserRef| match who {
        UserRef::Id(id) => json!({"User": {"byId": id}}),
        UserRef::Name { name, input } => {
            let mut named = Members::default();
            named.text("name", name);
            named.number("input", position(*input));
            json!({"User": {"byName": named.done()}})
        }
    };
    let mut shown = Members::default();
    if let Some(user) = &owner.user {
        shown.value("user", who(user));
    }
    if let Some(group) = &owner.group {
        shown.value("group", who(group));
    }
    members.value("owner", shown.done());
}

/// Returns the files the build was described in, and where each step stands in them.
pub(crate) fn source_of(graph: &Graph) -> Option<Value> {
    if graph.sources().is_empty() {
        return None;
    }
    let infos: Vec<Value> = graph
        .sources()
        .iter()
        .map(|file| {
            let mut shown = Members::default();
            shown.text("filename", &file.filename);
            shown.text("language", &file.language);
            shown.text("data", &STANDARD.encode(&file.data));
            let definition = file.definition.as_deref();
            let definition = definition.and_then(|bytes| Graph::decode_definition(bytes).ok());
            if let Some((steps, digests)) = definition
                .as_ref()
                .and_then(|graph| steps(graph, &BTreeSet::new()))
            {
                shown.value("llbDefinition", steps);
                shown.value("digestMapping", digests);
            }
            shown.done()
        })
        .collect();
    let mut locations = Map::new();
    for (number, index) in order(graph).into_iter().enumerate() {
        let vertex = &graph.vertices()[index];
        let places = vertex.metadata().locations.iter().map(|place| {
            let ranges = place
                .ranges
                .iter()
                .map(|range| json!({"start": point(&range.start), "end": point(&range.end)}));
            let mut shown = Members::default();
            shown.number("sourceIndex", place.source as i64);
            shown.list("ranges", ranges.collect());
            shown.done()
        });
        let mut shown = Members::default();
        shown.list("locations", places.collect());
        locations.insert(format!("step{number}"), shown.done());
    }
    Some(json!({"locations": locations, "infos": infos}))
}

fn point(position: &llb::Position) -> Value {
    let mut shown = Members::default();
    shown.number("line", i64::from(position.line));
    shown.number("character", i64::from(position.character));
    shown.done()
}

#[cfg(test)]
mod tests {
    use super::*;
    use llb::{Draft, GraphBuilder, SourceOp};

    #[test]
    fn sources_lose_their_credentials() {
        let url = "https://u:p@h/r.git";
        let mut builder = GraphBuilder::default();
        let source = SourceOp {
            identifier: url.to_owned(),
            attrs: BTreeMap::from([("git.fullurl".to_owned(), url.to_owned())]),
        };
        let output = builder.add(Draft::new(Op::Source(source), Vec::new()));
        let graph = builder.finish(Some(output)).unwrap();
        let source = &operation(&graph.vertices()[0], &BTreeSet::new())["Op"]["source"];
        assert_eq!(source["identifier"], "https://xxxxx:xxxxx@h/r.git");
        assert_eq!(
            source["attrs"]["git.fullurl"],
            "https://xxxxx:xxxxx@h/r.git"
        );
    }
}
