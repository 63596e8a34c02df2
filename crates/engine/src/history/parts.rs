//! Names what an operation is made of, so that two of them can be compared part by part.
//!
//! The key of an operation is the digest of its canonical encoding. The parts here say the same in words: each field
//! of an operation is named below, and a field that is added does not compile before it is.

use std::collections::BTreeMap;

use llb::{
    Action, ActionInput, Copy, CopyMode, ExecOp, FileAction, FileOp, Meta, Mount, MountKind,
    NetworkMode, Op, Owner, SecretFile, SecurityMode, UserRef, Vertex,
};
use oci::Digest;

use super::hidden::Hidden;
use crate::KeyPart;

/// The longest value that is kept as it is, in bytes; of others the digest is kept.
const LONGEST: usize = 4096;

/// Collects parts.
pub(crate) struct Parts<'a> {
    parts: Vec<KeyPart>,
    hidden: &'a Hidden,
    /// Whether a variable comes from ARG.
    is_argument: &'a dyn Fn(&str) -> bool,
}

impl<'a> Parts<'a> {
    pub(crate) fn new(hidden: &'a Hidden, is_argument: &'a dyn Fn(&str) -> bool) -> Self {
        Self {
            parts: Vec::new(),
            hidden,
            is_argument,
        }
    }

    pub(crate) fn finish(self) -> Vec<KeyPart> {
        self.parts
    }

    /// Adds a part; one that is empty is none.
    pub(crate) fn add(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let value = value.into();
        if value.is_empty() {
            return;
        }
        let value = match value.len() > LONGEST {
            true => Digest::sha256_of(value.as_bytes()).to_string(),
            false => value,
        };
        self.parts.push(KeyPart {
            name: name.into(),
            value,
        });
    }

    /// Adds what a vertex does.
    pub(crate) fn operation(&mut self, vertex: &Vertex) {
        if let Some(platform) = vertex.platform() {
            self.add("platform", platform.to_string());
        }
        match vertex.op() {
            Op::Exec(op) => self.exec(op),
            Op::File(op) => self.file(op),
            Op::Source(op) => {
                self.add("source", oci::without_user_info(&op.identifier));
            }
            Op::Merge(op) => self.add("merged inputs", op.inputs.len().to_string()),
            Op::Diff(op) => self.add(
                "difference",
                format!("lower {}, upper {}", edge(op.lower), edge(op.upper)),
            ),
            Op::Build(_) => self.add("nested build", vertex.id().to_string()),
        }
    }

    fn exec(&mut self, op: &ExecOp) {
        let ExecOp {
            meta,
            mounts,
            network,
            security,
            secret_env,
            cdi_devices,
        } = op;
        self.meta(meta);
        self.add(
            "network",
            match network {
                NetworkMode::Sandbox => "",
                NetworkMode::Host => "host",
                NetworkMode::None => "none",
            },
        );
        self.add(
            "security",
            match security {
                SecurityMode::Sandbox => "",
                SecurityMode::Insecure => "insecure",
            },
        );
        for mount in mounts {
            self.mount(mount);
        }
        for secret in secret_env {
            // Its value is no part of the key, and must be none of this.
            let name = format!("secret variable {}", secret.name);
            self.add(name, secret_in_words(&secret.id, secret.optional));
        }
        for device in cdi_devices {
            self.add(format!("device {}", device.name), yes_no(!device.optional));
        }
    }

    fn meta(&mut self, meta: &Meta) {
        let Meta {
            args,
            env,
            cwd,
            user,
            // Seen by the process, but no part of the key.
            proxy_env: _,
            extra_hosts,
            hostname,
            ulimits,
            cgroup_parent,
            remove_mount_stubs_recursive,
            valid_exit_codes,
        } = meta;
        self.add("command", command(args));
        // A variable that is set twice has its last value.
        let variables: BTreeMap<&str, &str> = env
            .iter()
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .collect();
        for (name, value) in variables {
            let kind = match (self.is_argument)(name) {
                true => "ARG",
                false => "ENV",
            };
            let value = match value {
                "" => "\"\"".to_owned(),
                value => self.hidden.value(name, value),
            };
            self.add(format!("{kind} {name}"), value);
        }
        self.add("working directory", cwd.as_str());
        self.add("user", user.as_str());
        for host in extra_hosts {
            // The address is no part of the key.
            self.add(format!("host {}", host.host), "known");
        }
        self.add("hostname", hostname.as_str());
        for limit in ulimits {
            let value = format!("{}:{}", limit.soft, limit.hard);
            self.add(format!("ulimit {}", limit.name), value);
        }
        self.add("parent control group", cgroup_parent.as_str());
        if *remove_mount_stubs_recursive {
            self.add("mount points", "removed");
        }
        let codes: Vec<String> = valid_exit_codes.iter().map(ToString::to_string).collect();
        self.add("exit codes", codes.join(", "));
    }

    fn mount(&mut self, mount: &Mount) {
        let Mount {
            input,
            selector,
            dest,
            output,
            read_only,
            kind,
            // Names for remote caches and hints where to look; they change no result.
            result_id: _,
            content_cache: _,
        } = mount;
        let mut words = vec![match kind {
            MountKind::Bind => "bind".to_owned(),
            // Which directory it is, and who may use it at once, is no part of the key.
            MountKind::Cache { id: _, sharing: _ } => "cache".to_owned(),
            MountKind::Tmpfs { size } => format!("tmpfs of {size} bytes"),
            MountKind::Secret(file) => format!("secret {}", file_in_words(file)),
            MountKind::Ssh(file) => format!("ssh {}", file_in_words(file)),
        }];
        if let Some(input) = input {
            words.push(format!("from input {input}"));
        }
        if !selector.is_empty() {
            words.push(format!("path {selector}"));
        }
        if *read_only {
            words.push("read-only".to_owned());
        }
        if let Some(output) = output {
            words.push(format!("kept as output {output}"));
        }
        self.add(format!("mount {dest}"), words.join(", "));
    }

    fn file(&mut self, op: &FileOp) {
        let FileOp { actions } = op;
        let several = actions.len() > 1;
        for (number, action) in actions.iter().enumerate() {
            let FileAction {
                input,
                secondary_input,
                output,
                action,
            } = action;
            let prefix = match several {
                true => format!("action {}: ", number + 1),
                false => String::new(),
            };
            let mut place = String::new();
            for (word, input) in [("onto", input), ("from", secondary_input)] {
                match input {
                    Some(ActionInput::Vertex(number)) => {
                        place.push_str(&format!("{word} input {number} "));
                    }
                    Some(ActionInput::Action(number)) => {
                        place.push_str(&format!("{word} action {} ", number + 1));
                    }
                    None => {}
                }
            }
            if let Some(output) = output {
                place.push_str(&format!("as output {output}"));
            }
            self.action(&prefix, action);
            self.add(format!("{prefix}place"), place.trim_end());
        }
    }

    fn action(&mut self, prefix: &str, action: &Action) {
        match action {
            Action::Copy(copy) => self.copy(prefix, copy),
            Action::MakeFile(file) => {
                self.add(
                    format!("{prefix}file {}", file.path),
                    Digest::sha256_of(&file.data).to_string(),
                );
                self.add(format!("{prefix}mode"), format!("{:o}", file.mode));
                self.made(prefix, file.owner.as_ref(), file.timestamp);
            }
            Action::MakeDirectory(folder) => {
                let value = match folder.make_parents {
                    true => format!("mode {:o}, with parents", folder.mode),
                    false => format!("mode {:o}", folder.mode),
                };
                self.add(format!("{prefix}directory {}", folder.path), value);
                self.made(prefix, folder.owner.as_ref(), folder.timestamp);
            }
            Action::Remove(remove) => {
                let mut value = "removed".to_owned();
                if remove.allow_not_found {
                    value.push_str(" if it is there");
                }
                if remove.allow_wildcard {
                    value.push_str(", a pattern");
                }
                self.add(format!("{prefix}path {}", remove.path), value);
            }
            Action::Symlink(link) => {
                let name = format!("{prefix}link {}", link.new_path);
                self.add(name, link.old_path.as_str());
                self.made(prefix, link.owner.as_ref(), link.timestamp);
            }
        }
    }

    fn copy(&mut self, prefix: &str, copy: &Copy) {
        let Copy {
            source,
            dest,
            owner,
            mode,
            follow_symlink,
            directory_contents,
            unpack,
            create_dest_path,
            allow_wildcard,
            allow_empty_wildcard,
            timestamp,
            include_patterns,
            exclude_patterns,
            replace_existing,
            required_paths,
        } = copy;
        self.add(format!("{prefix}copied path"), source.as_str());
        self.add(format!("{prefix}destination"), dest.as_str());
        self.add(
            format!("{prefix}--chmod"),
            match mode {
                CopyMode::Keep => String::new(),
                CopyMode::Bits(bits) => format!("{bits:o}"),
                CopyMode::Symbolic(text) => text.clone(),
            },
        );
        let flags = [
            (*follow_symlink, "follow symlinks"),
            (*directory_contents, "contents of directories"),
            (*unpack, "unpack archives"),
            (*create_dest_path, "make the destination"),
            (*allow_wildcard, "patterns"),
            (*allow_empty_wildcard, "patterns may find nothing"),
            (*replace_existing, "replace what is there"),
        ];
        let flags: Vec<&str> = flags
            .iter()
            .filter(|flag| flag.0)
            .map(|flag| flag.1)
            .collect();
        self.add(format!("{prefix}way of copying"), flags.join(", "));
        self.add(format!("{prefix}--include"), include_patterns.join(", "));
        self.add(format!("{prefix}--exclude"), exclude_patterns.join(", "));
        self.add(format!("{prefix}required paths"), required_paths.join(", "));
        self.made(prefix, owner.as_ref(), *timestamp);
    }

    fn made(&mut self, prefix: &str, owner: Option<&Owner>, timestamp: Option<i64>) {
        if let Some(owner) = owner {
            let name = |user: &Option<UserRef>| match user {
                None => String::new(),
                Some(UserRef::Id(id)) => id.to_string(),
                Some(UserRef::Name { name, .. }) => name.clone(),
            };
            let value = format!("{}:{}", name(&owner.user), name(&owner.group));
            self.add(format!("{prefix}--chown"), value);
        }
        if let Some(timestamp) = timestamp {
            self.add(format!("{prefix}time"), timestamp.to_string());
        }
    }
}

fn edge(input: Option<usize>) -> String {
    input.map_or_else(|| "nothing".to_owned(), |input| format!("input {input}"))
}

fn yes_no(value: bool) -> &'static str {
    match value {
        true => "required",
        false => "optional",
    }
}

fn secret_in_words(id: &str, optional: bool) -> String {
    format!("{id}, {}", yes_no(!optional))
}

fn file_in_words(file: &SecretFile) -> String {
    format!(
        "{}, {}:{} {:o}, {}",
        file.id,
        file.uid,
        file.gid,
        file.mode,
        yes_no(!file.optional)
    )
}

/// Writes a command as one reads it: the text of a shell, or the words with quotes where they need them.
pub(crate) fn command(args: &[String]) -> String {
    if let [shell, flag, text] = args
        && flag.starts_with('-')
        && flag.ends_with('c')
        && shell.ends_with("sh")
    {
        return match shell == "/bin/sh" && flag == "-c" {
            true => text.clone(),
            false => format!("{shell} {flag} {text}"),
        };
    }
    let quoted = args.iter().map(|word| {
        let plain = !word.is_empty()
            && word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c));
        match plain {
            true => word.clone(),
            false => format!("'{}'", word.replace('\'', "'\\''")),
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_read_as_they_were_written() {
        let check = |args: &[&str], expected: &str| {
            let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            assert_eq!(command(&args), expected);
        };
        check(&["/bin/sh", "-c", "echo $A && ls"], "echo $A && ls");
        check(
            &["/bin/bash", "-eo", "pipefail", "-c", "x"],
            "/bin/bash -eo pipefail -c x",
        );
        check(&["/bin/bash", "-c", "x y"], "/bin/bash -c x y");
        check(&["go", "build", "./..."], "go build ./...");
        check(&["echo", "a b", "it's", ""], "echo 'a b' 'it'\\''s' ''");
    }

    #[test]
    fn long_values_are_kept_as_their_digest() {
        let hidden = Hidden::new(|| [0; 16]);
        let mut parts = Parts::new(&hidden, &|_| false);
        parts.add("command", "x".repeat(LONGEST));
        parts.add("command", "x".repeat(LONGEST + 1));
        parts.add("nothing", "");
        let parts = parts.finish();
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[0].value.len(), LONGEST);
        assert!(parts[1].value.starts_with("sha256:"));
    }
}
