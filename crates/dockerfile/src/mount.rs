//! `RUN --mount` and `--device`: comma-separated fields, most of them read only when variables are known.

use crate::go::{parse_bool, parse_ram, parse_u32};
use crate::quote::quote;
use crate::{Device, Diagnostic, Lines, Span, Word, suggest};

/// A `--mount` as written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MountSpec {
    /// The value of the flag.
    pub text: Word,
    /// The `from=` field, which cannot hold a variable and so is known at once.
    pub from: Option<String>,
}

/// A mount with all its fields read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub kind: MountKind,
    pub from: String,
    pub source: String,
    pub target: String,
    pub read_only: bool,
    /// In bytes, 0 if not given; only of a tmpfs.
    pub size_limit: i64,
    /// The `id=` field of a cache, secret or ssh mount.
    pub id: String,
    pub sharing: Option<CacheSharing>,
    pub required: bool,
    /// The environment variable that gets a secret.
    pub env: Option<String>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// The `type=` field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MountKind {
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

impl MountKind {
    const ALL: [MountKind; 5] = [
        MountKind::Bind,
        MountKind::Cache,
        MountKind::Tmpfs,
        MountKind::Secret,
        MountKind::Ssh,
    ];

    /// Returns the value of `type=`.
    pub fn as_str(self) -> &'static str {
        match self {
            MountKind::Bind => "bind",
            MountKind::Cache => "cache",
            MountKind::Tmpfs => "tmpfs",
            MountKind::Secret => "secret",
            MountKind::Ssh => "ssh",
        }
    }
}

/// The `sharing=` field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CacheSharing {
    Shared,
    Private,
    Locked,
}

impl CacheSharing {
    const ALL: [CacheSharing; 3] = [
        CacheSharing::Shared,
        CacheSharing::Private,
        CacheSharing::Locked,
    ];

    /// Returns the value of `sharing=`.
    pub fn as_str(self) -> &'static str {
        match self {
            CacheSharing::Shared => "shared",
            CacheSharing::Private => "private",
            CacheSharing::Locked => "locked",
        }
    }
}

/// Every key a mount may have, in the order in which suggestions are tried.
const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

impl MountSpec {
    /// Reads what can be known without variables.
    pub(crate) fn parse(text: Word, lines: Lines) -> Result<Self, Box<Diagnostic>> {
        let error = |message: String| {
            Diagnostic::error("invalid-mount", message, lines).label(text.span, "this mount")
        };
        let fields = split_fields(&text.text)
            .map_err(|reason| Box::new(error(format!("failed to parse csv mounts: {reason}"))))?;
        let mut from = None;
        for field in &fields {
            let Some((key, value)) = field.split_once('=') else {
                continue;
            };
            let key = key.to_lowercase();
            if key != "from" {
                continue;
            }
            if value.find('$').is_some_and(|at| at != value.len() - 1) {
                let message = format!(
                    "'{key}' doesn't support variable expansion, define alias stage instead"
                );
                let help = format!("add `FROM {value} AS name` above and use from=name");
                return Err(Box::new(error(message).help(help)));
            }
            from = Some(value.to_owned());
        }
        Ok(MountSpec { text, from })
    }

    /// Reads all fields, each value through `expand`.
    ///
    /// `lines` are those of the instruction.
    ///
    /// # Errors
    ///
    /// What `expand` returns, and a diagnostic for a field that is wrong.
    pub fn resolve<E: From<Box<Diagnostic>>>(
        &self,
        lines: Lines,
        expand: &mut dyn FnMut(&str) -> Result<String, E>,
    ) -> Result<Mount, E> {
        let error = |message: String| {
            Box::new(
                Diagnostic::error("invalid-mount", message, lines)
                    .label(self.text.span, "this mount"),
            )
        };
        let fields = split_fields(&self.text.text)
            .map_err(|reason| error(format!("failed to parse csv mounts: {reason}")))?;
        let mut draft = Draft::default();
        for (number, field) in fields.iter().enumerate() {
            let outcome = match field.split_once('=') {
                None => draft.set_switch(field).map_err(Problem::from),
                Some((key, value)) => {
                    let value = expand(value)?;
                    draft.set(field, &key.to_lowercase(), value)
                }
            };
            outcome.map_err(|problem| {
                let error = Diagnostic::error("invalid-mount", problem.message, lines);
                let error = error.label(self.field_span(number), "this field");
                let error = error.suggest(problem.suggestion);
                Box::new(match problem.help {
                    Some(help) => error.help(help),
                    None => error,
                })
            })?;
        }
        Ok(draft.finish().map_err(error)?)
    }

    /// Returns the place of a field; of all of them where they do not stand in the source as they are.
    fn field_span(&self, number: usize) -> Span {
        let Word { text, span } = &self.text;
        if span.end - span.start != text.len() || !text.is_ascii() || text.contains('"') {
            return *span;
        }
        let mut fields = text.split(',');
        let before: usize = fields
            .by_ref()
            .take(number)
            .map(|field| field.len() + 1)
            .sum();
        let length = fields.next().map_or(0, str::len);
        Span::new(span.start + before, span.start + before + length)
    }
}

/// What is wrong with one field.
struct Problem {
    message: String,
    suggestion: Option<String>,
    help: Option<String>,
}

impl From<String> for Problem {
    fn from(message: String) -> Self {
        Problem {
            message,
            suggestion: None,
            help: None,
        }
    }
}

/// A mount whose fields are being read.
struct Draft {
    mount: Mount,
    /// Whether `readonly` or `readwrite` was among the fields.
    access_given: bool,
}

impl Default for Draft {
    fn default() -> Self {
        let mount = Mount {
            kind: MountKind::Bind,
            from: String::new(),
            source: String::new(),
            target: String::new(),
            read_only: false,
            size_limit: 0,
            id: String::new(),
            sharing: None,
            required: false,
            env: None,
            mode: None,
            uid: None,
            gid: None,
        };
        Draft {
            mount,
            access_given: false,
        }
    }
}

impl Draft {
    fn set_access(&mut self, read_only: bool) {
        self.mount.read_only = read_only;
        self.access_given = true;
    }

    fn unexpected(&self, key: &str) -> String {
        format!(
            "unexpected key '{key}' for mount type '{}'",
            self.mount.kind.as_str()
        )
    }

    fn can_be_required(&self) -> bool {
        matches!(self.mount.kind, MountKind::Secret | MountKind::Ssh)
    }

    /// Reads a field without `=`.
    fn set_switch(&mut self, field: &str) -> Result<(), String> {
        let key = field.to_lowercase();
        match key.as_str() {
            "readonly" | "ro" => self.set_access(true),
            "readwrite" | "rw" => self.set_access(false),
            "required" if self.can_be_required() => self.mount.required = true,
            "required" => return Err(self.unexpected(&key)),
            _ => return Err(format!("invalid field '{field}' must be a key=value pair")),
        }
        Ok(())
    }

    /// Reads a field with `=`; the order of fields matters where one is only good for a type.
    fn set(&mut self, field: &str, key: &str, value: String) -> Result<(), Problem> {
        let invalid = |value: &str| format!("invalid value for {key}: {value}");
        let can_be_required = self.can_be_required();
        let mount = &mut self.mount;
        match key {
            "type" => {
                mount.kind = choose(
                    &value,
                    "mount type",
                    &MountKind::ALL.map(|kind| (kind.as_str(), kind)),
                )?
            }
            "from" => mount.from = value,
            "source" | "src" => mount.source = value,
            "target" | "dst" | "destination" => mount.target = value,
            "readonly" | "ro" => {
                let on = parse_bool(&value).ok_or_else(|| invalid(&value))?;
                self.set_access(on);
            }
            "readwrite" | "rw" => {
                let on = parse_bool(&value).ok_or_else(|| invalid(&value))?;
                self.set_access(!on);
            }
            "required" if can_be_required => {
                mount.required = parse_bool(&value).ok_or_else(|| invalid(&value))?;
            }
            "size" if mount.kind == MountKind::Tmpfs => {
                mount.size_limit = parse_ram(&value).ok_or_else(|| invalid(&value))?;
            }
            "required" | "size" => return Err(self.unexpected(key).into()),
            "id" => mount.id = value,
            "sharing" => {
                let modes = CacheSharing::ALL.map(|mode| (mode.as_str(), mode));
                mount.sharing = Some(choose(&value, "sharing value", &modes)?);
            }
            "mode" => mount.mode = Some(number(key, &value, 8)?),
            "uid" => mount.uid = Some(number(key, &value, 10)?),
            "gid" => mount.gid = Some(number(key, &value, 10)?),
            "env" => mount.env = Some(value),
            _ => {
                let message = format!("unexpected key '{key}' in '{field}'");
                return Err(Problem {
                    message,
                    suggestion: suggest::nearest(key, KEYS).map(str::to_owned),
                    help: Some(format!("its fields are {}", KEYS.join(", "))),
                });
            }
        }
        Ok(())
    }

    /// Checks what the fields mean together.
    fn finish(self) -> Result<Mount, String> {
        let Draft {
            mut mount,
            access_given,
        } = self;
        let kind = mount.kind;
        if !matches!(kind, MountKind::Secret | MountKind::Ssh | MountKind::Cache) {
            let owner = [("mode", mount.mode), ("uid", mount.uid), ("gid", mount.gid)];
            if let Some((key, _)) = owner.into_iter().find(|(_, value)| value.is_some()) {
                return Err(format!(
                    "{key} not allowed for {} type mounts",
                    quote(kind.as_str())
                ));
            }
        }
        if !access_given {
            mount.read_only = !matches!(kind, MountKind::Cache | MountKind::Tmpfs);
        }
        if kind == MountKind::Secret {
            let problem = if !mount.from.is_empty() {
                Some("secret mount should not have a from")
            } else if mount.sharing.is_some() {
                Some("secret mount should not define sharing")
            } else if mount.source.is_empty() && mount.target.is_empty() && mount.id.is_empty() {
                Some("invalid secret mount. one of source, target required")
            } else if !mount.source.is_empty() && !mount.id.is_empty() {
                Some("both source and id can't be set")
            } else {
                None
            };
            if let Some(problem) = problem {
                return Err(problem.to_owned());
            }
        }
        if mount.sharing.is_some() && kind != MountKind::Cache {
            return Err(format!(
                "invalid cache sharing set for {} mount",
                kind.as_str()
            ));
        }
        Ok(mount)
    }
}

/// Returns the choice of that name, in any case.
fn choose<T: Copy>(value: &str, what: &str, choices: &[(&'static str, T)]) -> Result<T, Problem> {
    let lower = value.to_lowercase();
    choices
        .iter()
        .find(|(name, _)| *name == lower)
        .map(|(_, choice)| *choice)
        .ok_or_else(|| Problem {
            message: format!("unsupported {what} {}", quote(value)),
            suggestion: suggest::nearest(value, choices.iter().map(|(name, _)| *name))
                .map(str::to_owned),
            help: Some(format!(
                "it is one of {}",
                choices
                    .iter()
                    .map(|(name, _)| *name)
                    .collect::<Vec<_>>()
                    .join(", ")
            )),
        })
}

fn number(key: &str, value: &str, radix: u32) -> Result<u32, Problem> {
    parse_u32(value, radix).map_err(|_| format!("invalid value {value} for {key}").into())
}

/// Reads the value of `--device`.
pub(crate) fn parse_device(text: &Word, lines: Lines) -> Result<Device, Box<Diagnostic>> {
    let error = |message: String| {
        Box::new(
            Diagnostic::error("invalid-device", message, lines).label(text.span, "this device"),
        )
    };
    let fields = split_fields(&text.text)
        .map_err(|reason| error(format!("failed to parse csv devices: {reason}")))?;
    let mut device = Device::default();
    for field in fields {
        let pair = field
            .split_once('=')
            .map(|(key, value)| (key.to_lowercase(), value));
        match &pair {
            None if field.to_lowercase() == "required" => device.required = true,
            Some((key, value)) if key == "name" => {
                if !device.name.is_empty() {
                    return Err(error(format!("device name already set to {}", device.name)));
                }
                device.name = (*value).to_owned();
            }
            Some((key, value)) if key == "required" => {
                device.required = parse_bool(value)
                    .ok_or_else(|| error(format!("invalid value for {key}: {value}")))?;
            }
            _ if device.name.is_empty() => device.name = field,
            None => {
                return Err(error(format!(
                    "invalid field '{field}' must be a key=value pair"
                )));
            }
            Some((key, _)) => {
                let mut error = error(format!("unexpected key '{key}' in '{field}'"));
                error.suggestion = suggest::nearest(key, ["name", "required"]).map(str::to_owned);
                return Err(error);
            }
        }
    }
    Ok(device)
}

/// Splits one line of comma-separated values; the error is Go's.
fn split_fields(text: &str) -> Result<Vec<String>, String> {
    let line = text
        .strip_suffix('\n')
        .map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    if line.is_empty() {
        return Err("EOF".to_owned());
    }
    let error = |at: usize, what: &str| format!("parse error on line 1, column {}: {what}", at + 1);
    let mut fields = Vec::new();
    let mut pos = 0;
    loop {
        let rest = &line[pos..];
        let Some(quoted) = rest.strip_prefix('"') else {
            let length = rest.find(',').unwrap_or(rest.len());
            if let Some(at) = rest[..length].find('"') {
                return Err(error(pos + at, "bare \" in non-quoted field"));
            }
            fields.push(rest[..length].to_owned());
            pos += length;
            if pos == line.len() {
                return Ok(fields);
            }
            pos += 1;
            continue;
        };
        pos = line.len() - quoted.len();
        let mut field = String::new();
        loop {
            let rest = &line[pos..];
            let Some(end) = rest.find('"') else {
                return Err(error(pos, "extraneous or missing \" in quoted-field"));
            };
            field.push_str(&rest[..end]);
            pos += end + 1;
            match line.as_bytes().get(pos) {
                Some(b'"') => {
                    field.push('"');
                    pos += 1;
                }
                Some(b',') => {
                    pos += 1;
                    break;
                }
                None => {
                    fields.push(field);
                    return Ok(fields);
                }
                Some(_) => return Err(error(pos - 1, "extraneous or missing \" in quoted-field")),
            }
        }
        fields.push(field);
    }
}
