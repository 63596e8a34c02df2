//! The capabilities a builder must have for a vertex, by BuildKit's names.

use crate::{
    Action, ContentCache, CopyMode, Graph, MountKind, NetworkMode, Op, SecurityMode, Vertex, attr,
};

/// Returns what the op of a vertex needs.
pub(crate) fn needed(vertex: &Vertex) -> Vec<&'static str> {
    match &vertex.op {
        Op::Source(source) => of_source(source),
        Op::Exec(exec) => of_exec(exec, vertex.metadata.linux_resources.is_some()),
        Op::File(file) => of_file(file),
        Op::Merge(_) => vec!["mergeop"],
        Op::Diff(_) => vec!["diffop"],
        Op::Build(_) => Vec::new(),
    }
}

/// Returns what the definition as a whole needs.
pub(crate) fn of_graph(graph: &Graph) -> Vec<&'static str> {
    let mut caps = vec!["constraints", "platform"];
    let any = |has: fn(&Vertex) -> bool| graph.vertices.iter().any(has);
    if any(|vertex| vertex.metadata.ignore_cache) {
        caps.push("meta.ignorecache");
    }
    if any(|vertex| {
        let metadata = &vertex.metadata;
        let own = !metadata.name.is_empty() || !metadata.command.is_empty();
        own || !metadata.description.is_empty()
    }) {
        caps.push("meta.description");
    }
    if any(|vertex| vertex.metadata.export_cache.is_some()) {
        caps.push("meta.exportcache");
    }
    caps
}

fn of_source(source: &crate::SourceOp) -> Vec<&'static str> {
    let scheme = source.identifier.split("://").next().unwrap_or_default();
    let (base, options): (&str, &[(&str, &str)]) = match scheme {
        "docker-image" => (
            "source.image",
            &[
                (attr::IMAGE_LAYER_LIMIT, "source.image.layerlimit"),
                (attr::IMAGE_CHECKSUM, "source.image.checksum"),
            ],
        ),
        "oci-layout" => ("source.ocilayout", &[]),
        "local" => (
            "source.local",
            &[
                (attr::LOCAL_SESSION_ID, "source.local.sessionid"),
                (attr::LOCAL_UNIQUE_ID, "source.local.unique"),
                (attr::INCLUDE_PATTERNS, "source.local.includepatterns"),
                (attr::FOLLOW_PATHS, "source.local.followpaths"),
                (attr::EXCLUDE_PATTERNS, "source.local.excludepatterns"),
                (attr::SHARED_KEY_HINT, "source.local.sharedkeyhint"),
            ],
        ),
        "git" => (
            "source.git",
            &[
                (attr::KEEP_GIT_DIR, "source.git.keepgitdir"),
                (attr::FULL_REMOTE_URL, "source.git.fullurl"),
                (attr::KNOWN_SSH_HOSTS, "source.git.knownsshhosts"),
                (attr::MOUNT_SSH_SOCK, "source.git.mountsshsock"),
                (attr::GIT_CHECKSUM, "source.git.checksum"),
                (attr::GIT_SKIP_SUBMODULES, "source.git.skipsubmodules"),
                (attr::GIT_MTIME, "source.git.mtime"),
                (attr::GIT_FETCH_BY_COMMIT, "source.git.fetchbycommit"),
            ],
        ),
        "http" | "https" => (
            "source.http",
            &[
                (attr::HTTP_AUTH_HEADER_SECRET, "source.http.auth"),
                (attr::HTTP_CHECKSUM, "source.http.checksum"),
                (attr::HTTP_PERM, "source.http.perm"),
                // Spelt so in BuildKit.
                (attr::HTTP_UID, "soruce.http.uidgid"),
                (attr::HTTP_GID, "soruce.http.uidgid"),
            ],
        ),
        _ => return Vec::new(),
    };
    let mut caps = vec![base];
    let given = options
        .iter()
        .filter(|(name, _)| source.attrs.contains_key(*name));
    caps.extend(given.map(|(_, cap)| *cap));
    if source
        .attrs
        .get(attr::IMAGE_RESOLVE_MODE)
        .is_some_and(|mode| mode == "pull")
    {
        caps.push("source.image.resolvemode");
    }
    if source
        .attrs
        .keys()
        .any(|name| name.starts_with(attr::HTTP_HEADER_PREFIX))
    {
        caps.push("source.http.header");
    }
    caps
}

fn of_exec(exec: &crate::ExecOp, has_resources: bool) -> Vec<&'static str> {
    let mut caps = vec!["exec.meta.base", "exec.meta.setsdefaultpath"];
    let meta = &exec.meta;
    let mut need = |condition: bool, cap: &'static str| {
        if condition {
            caps.push(cap);
        }
    };
    need(meta.proxy_env.is_some(), "exec.meta.proxyenv");
    need(!meta.ulimits.is_empty(), "exec.meta.ulimit");
    need(!meta.valid_exit_codes.is_empty(), "exec.validexitcode");
    need(exec.network != NetworkMode::Sandbox, "exec.meta.network");
    need(exec.security != SecurityMode::Sandbox, "exec.meta.security");
    need(has_resources, "exec.meta.linux.resources");
    need(!exec.secret_env.is_empty(), "exec.mount.secret");
    need(!exec.secret_env.is_empty(), "exec.secretenv");
    need(!exec.cdi_devices.is_empty(), "exec.meta.cdi");
    for mount in &exec.mounts {
        need(!mount.selector.is_empty(), "exec.mount.selector");
        need(
            mount.content_cache != ContentCache::Default,
            "exec.mount.cache.content",
        );
        match &mount.kind {
            MountKind::Bind => need(mount.input.is_some(), "exec.mount.bind"),
            MountKind::Cache { .. } => {
                need(true, "exec.mount.cache");
                need(true, "exec.mount.cache.sharing");
            }
            MountKind::Tmpfs { size } => {
                need(true, "exec.mount.tmpfs");
                need(*size > 0, "exec.mount.tmpfs.size");
            }
            MountKind::Secret(_) => need(true, "exec.mount.secret"),
            MountKind::Ssh(_) => need(true, "exec.mount.ssh"),
        }
    }
    caps
}

fn of_file(file: &crate::FileOp) -> Vec<&'static str> {
    let mut caps = vec!["file.base"];
    let mut need = |condition: bool, cap: &'static str| {
        if condition {
            caps.push(cap);
        }
    };
    for action in &file.actions {
        match &action.action {
            Action::Copy(copy) => {
                let patterns =
                    !copy.include_patterns.is_empty() || !copy.exclude_patterns.is_empty();
                need(patterns, "file.copy.includeexcludepatterns");
                need(!copy.required_paths.is_empty(), "file.copy.requiredpaths");
                need(
                    copy.replace_existing,
                    "file.copy.alwaysreplaceexistingdestpaths",
                );
                need(
                    matches!(copy.mode, CopyMode::Symbolic(_)),
                    "file.copy.modestring",
                );
            }
            Action::Symlink(_) => need(true, "file.symlink.create"),
            Action::Remove(remove) => need(remove.allow_wildcard, "file.rm.wildcard"),
            Action::MakeFile(_) | Action::MakeDirectory(_) => {}
        }
    }
    caps
}
