//! RUN.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;

use dockerfile::paths;
use dockerfile::{
    CommandForm, Diagnostic, Mount, MountKind, NetworkMode, Run, SecurityMode, chomp_tabs,
    parse_heredoc_word, quote,
};
use llb::{
    Action, CacheSharing, Draft, ExecMount, ExecSpec, FileSpec, HostIp, MakeDirectory, Meta,
    Metadata, Output, Owner, ProxyEnv, SecretEnv, SecretFile, SecretMount, SshMount, UserRef,
};

use super::{Pass, Site, Stage};
use crate::error::{Outcome, error};
use crate::pass::{SCRATCH, context};
use crate::state::Layer;
use crate::{name, path};

/// Where the script of a heredoc that names its interpreter is found.
const PIPES: &str = "/dev/pipes/";

/// What is run and how it is told.
struct Script<'s> {
    args: Vec<String>,
    /// The instruction as people see it, before expansion.
    shown: Cow<'s, str>,
    mount: Option<ExecMount>,
}

impl Pass<'_> {
    pub(super) fn run_command(
        &mut self,
        stage: &mut Stage<'_>,
        site: &Site<'_>,
        run: &Run,
    ) -> Outcome<()> {
        // A process may use any file.
        stage.paths.borrow_mut().add_all();
        let mounts = self.mounts(stage, site, run)?;
        let script = self.script(stage, site, run)?;
        let args = match run.command.form {
            CommandForm::Shell => stage.image.in_shell(&script.args),
            CommandForm::Exec => script.args,
        };
        let created_by = format!("RUN {} # buildkit", self.with_arguments(stage, &args));
        let mut spec = ExecSpec {
            root: stage.state.output,
            meta: self.meta(stage, args),
            mounts: Vec::from_iter(script.mount),
            network: match run.network {
                NetworkMode::Default => self.options.network,
                NetworkMode::None => llb::NetworkMode::None,
                NetworkMode::Host => llb::NetworkMode::Host,
            },
            security: match run.security {
                SecurityMode::Sandbox => llb::SecurityMode::Sandbox,
                SecurityMode::Insecure => llb::SecurityMode::Insecure,
            },
            platform: Some(match &stage.state.platform {
                Some(platform) => platform.clone(),
                None => self.target_platform.clone(),
            }),
            ..ExecSpec::default()
        };
        for (number, mount) in mounts.iter().enumerate() {
            self.add_mount(stage, site, &mut spec, mount, number)?;
        }
        spec.cdi_devices.clone_from(&self.options.devices);
        spec.cdi_devices
            .extend(run.devices.iter().map(|device| llb::CdiDevice {
                name: device.name.clone(),
                optional: !device.required,
            }));
        if self.options.shm_size > 0 {
            spec.mounts.push(ExecMount {
                dest: "/dev/shm".to_owned(),
                kind: llb::MountKind::Tmpfs {
                    size: self.options.shm_size,
                },
                ..ExecMount::default()
            });
        }
        spec.metadata = Metadata {
            command: site.instruction.header.code.clone(),
            ignore_cache: stage.ignore_cache,
            linux_resources: self.options.resources.clone().map(Box::new),
            locations: self.location(site.lines),
            ..Metadata::named(self.run_name(stage, &script.shown, &mounts))
        };
        stage.state.output = Some(self.graph.add(Draft::from(spec)));
        self.commit(stage, created_by, Layer::Made);
        Ok(())
    }

    fn run_name(&self, stage: &mut Stage<'_>, shown: &str, mounts: &[Mount]) -> String {
        let own = stage.state.variables.clone();
        let mut variables = own.clone();
        let secrets = mounts
            .iter()
            .filter(|mount| mount.kind == MountKind::Secret);
        for secret in secrets.filter_map(|mount| mount.env.as_deref()) {
            // Not to hide a value, which is not known here, but to show that one will stand there.
            Rc::make_mut(&mut variables).set(secret, "****");
        }
        let shown = self.shown(self.expander.raw_quotes().keep_unset(), shown, &variables);
        let platform = stage.state.platform.clone();
        let platform = self.shown_platform(platform.as_deref());
        name::step(stage, &shown, platform, Some(&own))
    }

    fn meta(&mut self, stage: &Stage<'_>, args: Vec<String>) -> Meta {
        let options = self.options;
        let env = stage.state.variables.assignments();
        self.spent += crate::state::size(&env);
        Meta {
            args,
            env,
            cwd: stage.state.directory.to_string(),
            user: stage.state.user.to_string(),
            proxy_env: self.proxy(),
            extra_hosts: options.extra_hosts.iter().map(HostIp::clone).collect(),
            hostname: options.hostname.clone(),
            ulimits: options.ulimits.clone(),
            cgroup_parent: options.cgroup_parent.clone(),
            remove_mount_stubs_recursive: true,
            valid_exit_codes: Vec::new(),
        }
    }

    /// Returns a command behind the arguments it saw: `|1 VERSION=2 /bin/sh -c make`.
    fn with_arguments(&self, stage: &Stage<'_>, args: &[String]) -> String {
        let mut last = Vec::new();
        let mut next = stage.arguments;
        while let Some(at) = next {
            let argument = &self.arguments[at];
            last.push((&*argument.name, argument.value.as_deref()));
            next = argument.before;
        }
        let mut shown: Vec<(&str, &str)> = Vec::with_capacity(last.len());
        let mut places: HashMap<&str, usize> = HashMap::new();
        for (name, value) in last.into_iter().rev() {
            let value = stage.state.variables.value(name).or(value);
            let value = value.unwrap_or_default();
            match places.entry(name) {
                Entry::Occupied(place) => shown[*place.get()].1 = value,
                Entry::Vacant(place) => {
                    place.insert(shown.len());
                    shown.push((name, value));
                }
            }
        }
        let mut text = String::new();
        if !shown.is_empty() {
            text = format!("|{} ", shown.len());
            for (name, value) in shown {
                text.extend([name, "=", value, " "]);
            }
        }
        text.push_str(&args.join(" "));
        text
    }

    /// Returns the proxies given as build arguments, in any case.
    fn proxy(&self) -> Option<ProxyEnv> {
        let mut proxy = None;
        for (name, value) in &*self.build_args {
            let field: fn(&mut ProxyEnv) -> &mut String = match name.to_lowercase().as_str() {
                "http_proxy" => |proxy| &mut proxy.http_proxy,
                "https_proxy" => |proxy| &mut proxy.https_proxy,
                "ftp_proxy" => |proxy| &mut proxy.ftp_proxy,
                "no_proxy" => |proxy| &mut proxy.no_proxy,
                "all_proxy" => |proxy| &mut proxy.all_proxy,
                _ => continue,
            };
            field(proxy.get_or_insert_default()).clone_from(value);
        }
        proxy
    }

    /// Returns the command, with its heredocs put where they belong.
    fn script<'s>(&mut self, stage: &Stage<'_>, site: &Site<'s>, run: &Run) -> Outcome<Script<'s>> {
        let command = &run.command;
        let args: Vec<String> = command.args.iter().map(|word| word.text.clone()).collect();
        let shown = Cow::Borrowed(site.instruction.header.code.as_str());
        let Some(first) = command.heredocs.first() else {
            return Ok(Script {
                args,
                shown,
                mount: None,
            });
        };
        let [line] = args.as_slice() else {
            let message = format!(
                "parsing produced an invalid run command: {}",
                crate::text::list(&args)
            );
            let error = error("run", message, site.lines);
            return Err(Box::new(
                error.label(site.instruction.header.keyword.span, "this instruction"),
            ));
        };
        if parse_heredoc_word(line).is_none() {
            // The shell reads the heredocs.
            let mut whole = line.clone();
            for heredoc in &command.heredocs {
                whole.push('\n');
                whole.push_str(&heredoc.content);
                whole.push_str(&heredoc.name);
            }
            return Ok(Script {
                args: vec![whole],
                shown,
                mount: None,
            });
        }
        let shown = Cow::Owned(format!("{shown} ({})", summary(&first.content)));
        let content = match first.chomp {
            true => chomp_tabs(&first.content),
            false => first.content.clone(),
        };
        if stage.image.platform.os == "windows" || !content.starts_with("#!") {
            // The heredoc is the script, whichever shell runs it.
            return Ok(Script {
                args: vec![content],
                shown,
                mount: None,
            });
        }
        let file = path::action_path("/", &first.name);
        let file = self.graph.add(context::inline_file(file, 0o755, &content));
        let mount = ExecMount {
            source: Some(file),
            selector: "/".to_owned(),
            dest: PIPES.to_owned(),
            read_only: true,
            ..ExecMount::default()
        };
        let args = vec![paths::join(PIPES, &first.name)];
        Ok(Script {
            args,
            shown,
            mount: Some(mount),
        })
    }

    fn mounts(&self, stage: &Stage<'_>, site: &Site<'_>, run: &Run) -> Outcome<Vec<Mount>> {
        let resolve = |spec: &dockerfile::MountSpec| {
            let word = |text: &str| dockerfile::Word::new(text, spec.text.span);
            spec.resolve(site.lines, &mut |value| {
                self.word(stage, site, &word(value))
            })
        };
        run.mounts.iter().map(resolve).collect()
    }

    fn add_mount(
        &mut self,
        stage: &mut Stage<'_>,
        site: &Site<'_>,
        spec: &mut ExecSpec,
        mount: &Mount,
        number: usize,
    ) -> Outcome<()> {
        let wrong = |message: String| {
            let error = Diagnostic::error("mount", message, site.lines);
            let span = run_mount_span(site, number);
            Box::new(span.map_or(error.clone(), |span| error.label(span, "this mount")))
        };
        match mount.kind {
            MountKind::Secret => return add_secret(spec, mount).map_err(wrong),
            MountKind::Ssh => return add_ssh(spec, mount).map_err(wrong),
            MountKind::Bind | MountKind::Cache | MountKind::Tmpfs => {}
        }
        let from = match (mount.from.as_str(), mount.kind) {
            ("", MountKind::Cache) => SCRATCH,
            (from, _) => from,
        };
        let source = match from {
            "" => None,
            _ => site.sources.get(number).copied(),
        };
        let tree = match source {
            Some(source) => {
                let source = &self.states[source];
                if !source.dispatched {
                    return Err(wrong(format!(
                        "cannot mount from stage {} to {}, stage needs to be defined before current command",
                        quote(from),
                        quote(&mount.target)
                    )));
                }
                source.state.output
            }
            None if mount.kind == MountKind::Tmpfs => None,
            None => Some(self.main_context()?),
        };
        let target = match paths::clean(&mount.target).starts_with('/') {
            true => mount.target.clone(),
            false => paths::join(&stage.state.directory, &mount.target),
        };
        if target == "/" {
            let error = wrong(format!("invalid mount target {}", quote(&target)));
            return Err(Box::new(error.help(
                "say where in the step's file system it is to be: target=PATH",
            )));
        }
        let mut made = ExecMount {
            source: if mount.kind == MountKind::Tmpfs {
                None
            } else {
                tree
            },
            dest: target,
            read_only: mount.read_only,
            no_output: !mount.read_only && mount.kind == MountKind::Bind,
            kind: match mount.kind {
                MountKind::Tmpfs => llb::MountKind::Tmpfs {
                    size: mount.size_limit,
                },
                MountKind::Cache => llb::MountKind::Cache {
                    id: self.cache_id(mount),
                    sharing: sharing(mount.sharing),
                },
                _ => llb::MountKind::Bind,
            },
            ..ExecMount::default()
        };
        let selected = paths::join("/", &mount.source);
        if selected != "/" {
            made.selector.clone_from(&selected);
        } else if mount.uid.is_some() || mount.gid.is_some() || mount.mode.is_some() {
            made.source = Some(self.owned_cache(made.source, mount, stage.ignore_cache));
            made.selector = "/cache".to_owned();
        }
        spec.mounts.push(made);
        match source {
            Some(source) if !from.is_empty() => {
                self.states[source].paths.borrow_mut().add(selected);
            }
            _ => {
                stage.context_paths.add(selected);
            }
        }
        Ok(())
    }

    fn cache_id(&self, mount: &Mount) -> String {
        let id = match mount.id.as_str() {
            "" => paths::clean(&mount.target),
            id => id.to_owned(),
        };
        format!("{}/{id}", self.options.cache_namespace)
    }

    /// Returns a tree with a directory that has the owner and mode of a cache mount.
    ///
    /// It is made anew where recorded results do not count, and the cache mount with it.
    fn owned_cache(&mut self, tree: Option<Output>, mount: &Mount, ignore_cache: bool) -> Output {
        let id = |number: Option<u32>| Some(UserRef::Id(number.unwrap_or(0)));
        let mut file = FileSpec::new(tree);
        file.action(Action::MakeDirectory(MakeDirectory {
            path: "/cache".to_owned(),
            mode: mount.mode.unwrap_or(0o755) & 0o777,
            owner: Some(Owner {
                user: id(mount.uid),
                group: id(mount.gid),
            }),
            ..MakeDirectory::default()
        }));
        let name = "[internal] setting cache mount permissions";
        self.graph.add(file.into_draft(Metadata {
            ignore_cache,
            ..Metadata::named(name)
        }))
    }
}

fn run_mount_span(site: &Site<'_>, number: usize) -> Option<dockerfile::Span> {
    match &site.instruction.kind {
        dockerfile::Kind::Run(run) => run.mounts.get(number).map(|mount| mount.text.span),
        _ => None,
    }
}

fn sharing(sharing: Option<dockerfile::CacheSharing>) -> CacheSharing {
    match sharing {
        None | Some(dockerfile::CacheSharing::Shared) => CacheSharing::Shared,
        Some(dockerfile::CacheSharing::Private) => CacheSharing::Private,
        Some(dockerfile::CacheSharing::Locked) => CacheSharing::Locked,
    }
}

/// Returns owner and mode of a secret or socket: any of them given, the others have defaults.
fn secret_file(id: String, mount: &Mount, mode: u32) -> SecretFile {
    SecretFile {
        id,
        uid: mount.uid.unwrap_or(0),
        gid: mount.gid.unwrap_or(0),
        mode: mount.mode.unwrap_or(mode),
        optional: !mount.required,
    }
}

fn add_secret(spec: &mut ExecSpec, mount: &Mount) -> Result<(), String> {
    let id = match (
        mount.source.as_str(),
        mount.id.as_str(),
        mount.target.as_str(),
    ) {
        ("", "", "") => return Err("one of source, target required".to_owned()),
        ("", "", target) => path::base(target),
        ("", id, _) => id,
        (source, _, _) => source,
    };
    if let Some(name) = &mount.env {
        spec.secret_env.push(SecretEnv {
            id: id.to_owned(),
            name: name.clone(),
            optional: !mount.required,
        });
    }
    let dest = match (mount.target.as_str(), &mount.env) {
        ("", Some(_)) => None,
        ("", None) => Some(format!("/run/secrets/{}", path::base(id))),
        (target, _) => Some(target.to_owned()),
    };
    let file = secret_file(id.to_owned(), mount, 0o400);
    spec.secrets
        .extend(dest.map(|dest| SecretMount { dest, file }));
    Ok(())
}

fn add_ssh(spec: &mut ExecSpec, mount: &Mount) -> Result<(), String> {
    if !mount.source.is_empty() {
        return Err("ssh does not support source".to_owned());
    }
    spec.ssh.push(SshMount {
        dest: (!mount.target.is_empty()).then(|| mount.target.clone()),
        file: secret_file(mount.id.clone(), mount, 0o600),
    });
    Ok(())
}

/// Returns the first line of a heredoc, with dots if there are more.
fn summary(content: &str) -> String {
    let content = content.trim();
    match content.split_once('\n') {
        Some((first, _)) => format!("{}...", first.strip_suffix('\r').unwrap_or(first)),
        None => content.to_owned(),
    }
}
