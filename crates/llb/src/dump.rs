//! A graph as text: stable, for people and golden tests.

use std::fmt::Write as _;

use crate::{
    Action, ActionInput, CacheSharing, CopyMode, Edge, ExecOp, FileAction, Graph, Mount, MountKind,
    NetworkMode, Op, Owner, Range, SecurityMode, UserRef, Vertex,
};

impl Graph {
    /// Returns the graph as text: a block for each vertex, inputs first, then the root.
    ///
    /// Vertices are numbered; ids are left out, since they say nothing to people. What is not set is not shown.
    pub fn dump(&self) -> String {
        let mut text = String::new();
        for (number, vertex) in self.vertices.iter().enumerate() {
            // Writing to a text does not fail.
            let _ = Dump {
                text: &mut text,
                vertex,
            }
            .vertex(number);
        }
        let root = self.root.map_or_else(|| "scratch".to_owned(), edge);
        let _ = writeln!(text, "root {root}");
        text
    }
}

fn edge(edge: Edge) -> String {
    match edge.output {
        0 => format!("v{}", edge.vertex),
        output => format!("v{}.{output}", edge.vertex),
    }
}

struct Dump<'a> {
    text: &'a mut String,
    vertex: &'a Vertex,
}

impl Dump<'_> {
    fn vertex(&mut self, number: usize) -> std::fmt::Result {
        let vertex = self.vertex;
        write!(self.text, "v{number} {}", vertex.op.kind())?;
        if let Some(platform) = &vertex.platform {
            write!(self.text, " {}", platform.full())?;
        }
        self.text.push('\n');
        let metadata = &vertex.metadata;
        if !metadata.name.is_empty() {
            self.line(1, "name", &metadata.name)?;
        }
        if let Some(group) = &metadata.progress_group {
            let weak = if group.weak { "weak " } else { "" };
            self.line(1, "group", &format!("{weak}{}", group.name))?;
        }
        if metadata.ignore_cache {
            self.line(1, "ignore cache", "")?;
        }
        if !vertex.constraints.is_empty() {
            self.list(1, "constraints", &vertex.constraints)?;
        }
        for location in &metadata.locations {
            // An instruction of several lines is a range for each of them.
            let next =
                |one: &Range, other: &Range| one.end.line.checked_add(1) == Some(other.start.line);
            for run in location.ranges.chunk_by(next) {
                if let [first, ..] = run
                    && let Some(last) = run.last()
                {
                    let lines = format!("{}-{}", first.start.line, last.end.line);
                    self.line(1, "lines", &lines)?;
                }
            }
        }
        match &vertex.op {
            Op::Source(source) => {
                self.line(1, "source", &source.identifier)?;
                for (name, value) in &source.attrs {
                    self.line(2, name, value)?;
                }
            }
            Op::Exec(exec) => self.exec(exec)?,
            Op::File(file) => {
                for (number, action) in file.actions.iter().enumerate() {
                    self.action(number, action)?;
                }
            }
            Op::Merge(merge) => {
                for input in &merge.inputs {
                    let from = self.input(*input);
                    self.line(1, "layer", &from)?;
                }
            }
            Op::Diff(diff) => {
                let (lower, upper) = (self.input(diff.lower), self.input(diff.upper));
                self.line(1, "lower", &lower)?;
                self.line(1, "upper", &upper)?;
            }
            Op::Build(build) => {
                let builder = self.input(build.builder);
                self.line(1, "builder", &builder)?;
                for (name, input) in &build.inputs {
                    let from = self.input(*input);
                    self.line(1, &format!("input {name}"), &from)?;
                }
                for (name, value) in &build.attrs {
                    self.line(2, name, value)?;
                }
            }
        }
        Ok(())
    }

    fn exec(&mut self, exec: &ExecOp) -> std::fmt::Result {
        let meta = &exec.meta;
        self.list(1, "args", &meta.args)?;
        for pair in &meta.env {
            self.line(1, "env", pair)?;
        }
        self.line(1, "cwd", &meta.cwd)?;
        let texts = [
            ("user", &meta.user),
            ("hostname", &meta.hostname),
            ("cgroup", &meta.cgroup_parent),
        ];
        for (name, value) in texts.into_iter().filter(|(_, value)| !value.is_empty()) {
            self.line(1, name, value)?;
        }
        if let Some(proxy) = &meta.proxy_env {
            self.line(1, "proxy", &format!("{proxy:?}"))?;
        }
        for host in &meta.extra_hosts {
            self.line(1, "host", &format!("{} {}", host.host, host.ip))?;
        }
        for limit in &meta.ulimits {
            self.line(
                1,
                "ulimit",
                &format!("{}={}:{}", limit.name, limit.soft, limit.hard),
            )?;
        }
        if !meta.valid_exit_codes.is_empty() {
            self.line(1, "exit codes", &format!("{:?}", meta.valid_exit_codes))?;
        }
        match exec.network {
            NetworkMode::Sandbox => {}
            NetworkMode::Host => self.line(1, "network", "host")?,
            NetworkMode::None => self.line(1, "network", "none")?,
        }
        if exec.security == SecurityMode::Insecure {
            self.line(1, "security", "insecure")?;
        }
        for secret in &exec.secret_env {
            let optional = if secret.optional { " optional" } else { "" };
            self.line(
                1,
                "secret env",
                &format!("{}={}{optional}", secret.name, secret.id),
            )?;
        }
        for device in &exec.cdi_devices {
            let optional = if device.optional { " optional" } else { "" };
            self.line(1, "device", &format!("{}{optional}", device.name))?;
        }
        exec.mounts.iter().try_for_each(|mount| self.mount(mount))
    }

    fn mount(&mut self, mount: &Mount) -> std::fmt::Result {
        let mut words = format!("{} <- ", mount.dest);
        match &mount.kind {
            MountKind::Bind => words.push_str(&self.input(mount.input)),
            MountKind::Cache { id, sharing } => {
                let sharing = match sharing {
                    CacheSharing::Shared => "shared",
                    CacheSharing::Private => "private",
                    CacheSharing::Locked => "locked",
                };
                write!(
                    words,
                    "cache {id:?} {sharing} from {}",
                    self.input(mount.input)
                )?;
            }
            MountKind::Tmpfs { size } => write!(words, "tmpfs size={size}")?,
            MountKind::Secret(file) | MountKind::Ssh(file) => {
                let kind = if matches!(mount.kind, MountKind::Ssh(_)) {
                    "ssh"
                } else {
                    "secret"
                };
                let optional = if file.optional { " optional" } else { "" };
                let (id, uid, gid, mode) = (&file.id, file.uid, file.gid, file.mode);
                write!(words, "{kind} {id:?} {uid}:{gid} {mode:04o}{optional}")?;
            }
        }
        if !mount.selector.is_empty() {
            write!(words, ":{}", mount.selector)?;
        }
        if mount.read_only {
            words.push_str(" readonly");
        }
        if let Some(output) = mount.output {
            write!(words, " -> {output}")?;
        }
        self.line(1, "mount", &words)
    }

    fn action(&mut self, number: usize, action: &FileAction) -> std::fmt::Result {
        let input = self.action_input(action.input);
        let mut words = match action.output {
            Some(output) => format!("a{number} on {input} -> {output}: "),
            None => format!("a{number} on {input}: "),
        };
        let (owner, timestamp) = match &action.action {
            Action::Copy(copy) => {
                let from = self.action_input(action.secondary_input);
                write!(words, "copy {from}:{:?} to {:?}", copy.source, copy.dest)?;
                match &copy.mode {
                    CopyMode::Keep => {}
                    CopyMode::Bits(bits) => write!(words, " mode={bits:04o}")?,
                    CopyMode::Symbolic(mode) => write!(words, " mode={mode}")?,
                }
                for (set, word) in [
                    (copy.follow_symlink, " follow-symlink"),
                    (copy.directory_contents, " contents"),
                    (copy.unpack, " unpack"),
                    (copy.create_dest_path, " create-dest"),
                    (copy.allow_wildcard, " wildcard"),
                    (copy.allow_empty_wildcard, " empty-wildcard"),
                    (copy.replace_existing, " replace"),
                ] {
                    if set {
                        words.push_str(word);
                    }
                }
                for (name, list) in [
                    ("include", &copy.include_patterns),
                    ("exclude", &copy.exclude_patterns),
                    ("require", &copy.required_paths),
                ] {
                    if !list.is_empty() {
                        write!(words, " {name}={list:?}")?;
                    }
                }
                (copy.owner.as_ref(), copy.timestamp)
            }
            Action::MakeFile(file) => {
                let data = String::from_utf8_lossy(&file.data);
                write!(words, "mkfile {:?} {:04o} {data:?}", file.path, file.mode)?;
                (file.owner.as_ref(), file.timestamp)
            }
            Action::MakeDirectory(directory) => {
                let parents = if directory.make_parents {
                    " parents"
                } else {
                    ""
                };
                write!(
                    words,
                    "mkdir {:?} {:04o}{parents}",
                    directory.path, directory.mode
                )?;
                (directory.owner.as_ref(), directory.timestamp)
            }
            Action::Remove(remove) => {
                write!(words, "rm {:?}", remove.path)?;
                (None, None)
            }
            Action::Symlink(link) => {
                write!(words, "symlink {:?} to {:?}", link.new_path, link.old_path)?;
                (link.owner.as_ref(), link.timestamp)
            }
        };
        if let Some(Owner { user, group }) = owner {
            write!(
                words,
                " owner={}:{}",
                self.user(user.as_ref()),
                self.user(group.as_ref())
            )?;
        }
        if let Some(timestamp) = timestamp {
            write!(words, " time={timestamp}")?;
        }
        self.line(1, "action", &words)
    }

    fn user(&self, who: Option<&UserRef>) -> String {
        match who {
            None => "-".to_owned(),
            Some(UserRef::Id(id)) => id.to_string(),
            Some(UserRef::Name { name, input }) => format!("{name}@{}", self.input(*input)),
        }
    }

    fn input(&self, number: Option<usize>) -> String {
        number.map_or_else(
            || "scratch".to_owned(),
            |number| edge(self.vertex.inputs[number]),
        )
    }

    fn action_input(&self, input: Option<ActionInput>) -> String {
        match input {
            None => "scratch".to_owned(),
            Some(ActionInput::Vertex(number)) => self.input(Some(number)),
            Some(ActionInput::Action(number)) => format!("a{number}"),
        }
    }

    fn list(&mut self, depth: usize, name: &str, values: &[String]) -> std::fmt::Result {
        self.line(depth, name, &format!("{values:?}"))
    }

    /// Writes a line; what would break it is escaped.
    fn line(&mut self, depth: usize, name: &str, value: &str) -> std::fmt::Result {
        let value = value.replace('\n', "\\n").replace('\r', "\\r");
        let text = format!("{:width$}{name}: {value}", "", width = depth * 2);
        writeln!(self.text, "{}", text.trim_end())
    }
}
