//! The configuration of one step for an OCI runtime (runtime-spec 1.0.2, config.md and config-linux.md).
//!
//! The root arrives with its mounts in it. What is left to the runtime belongs to namespaces that only it makes:
//! `/proc`, `/sys`, `/dev/mqueue`, the view of control groups.

use serde_json::{Value, json};

use crate::capabilities::{self, Set};
use crate::seccomp;
use crate::spec::{Resource, Security, Spec};
use crate::users::Identity;
use crate::world::{MASKED, READ_ONLY_PATHS};

/// What is known of a step only when its root stands.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) identity: &'a Identity,
    pub(crate) env: &'a [String],
    /// Inside the root, without links.
    pub(crate) cwd: &'a str,
    /// Soft and hard, as far as this process may set them.
    pub(crate) rlimits: Vec<(Resource, u64, u64)>,
    /// All capabilities the helper has.
    pub(crate) own_capabilities: Set,
    pub(crate) root: &'a str,
    /// The tree for `/dev`.
    pub(crate) devices: &'a str,
    /// The tree for `/sys`, where no new one may be mounted.
    pub(crate) sys: Option<&'a str>,
    /// The network namespace; the helper's own when absent.
    pub(crate) network: Option<&'a str>,
    /// `/sys/fs/cgroup` shows the unified hierarchy.
    pub(crate) control_groups: bool,
    /// The user namespace has no groups to give.
    pub(crate) groups_forbidden: bool,
}

/// Returns `config.json`.
pub(crate) fn config(facts: &Facts<'_>) -> Value {
    let spec = facts.spec;
    let insecure = spec.security == Security::Insecure;
    let set = match insecure {
        true => facts.own_capabilities,
        false => Set::docker_default(),
    };
    let names = json!(capabilities::names(set));
    let rlimits: Vec<Value> = facts
        .rlimits
        .iter()
        .map(|(resource, soft, hard)| {
            json!({"type": rlimit_name(*resource), "soft": soft, "hard": hard})
        })
        .collect();
    let mut namespaces = vec![
        json!({"type": "pid"}),
        json!({"type": "mount"}),
        json!({"type": "ipc"}),
        json!({"type": "uts"}),
        json!({"type": "cgroup"}),
    ];
    if let Some(path) = facts.network {
        namespaces.push(json!({"type": "network", "path": path}));
    }
    let mut linux = json!({"namespaces": namespaces});
    if !insecure {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY_PATHS);
        linux["seccomp"] = seccomp::oci_profile(set);
    }
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": facts.root, "readonly": spec.read_only_root},
        "hostname": spec.hostname,
        "process": {
            "terminal": false,
            "user": user(facts),
            "args": spec.args,
            "env": facts.env,
            "cwd": facts.cwd,
            "capabilities": {
                "bounding": names,
                "effective": names,
                "permitted": names,
                "inheritable": [],
                "ambient": [],
            },
            "rlimits": rlimits,
            "noNewPrivileges": false,
        },
        "mounts": mounts(facts, insecure),
        "linux": linux,
    })
}

fn user(facts: &Facts<'_>) -> Value {
    let Identity { uid, gid, groups } = facts.identity;
    let mut user = json!({"uid": uid, "gid": gid, "umask": 0o022});
    if !facts.groups_forbidden {
        // The main group is among the supplementary ones, as containerd has it.
        let others = groups.iter().filter(|group| *group != gid);
        user["additionalGids"] = std::iter::once(gid).chain(others).copied().collect();
    }
    user
}

fn mounts(facts: &Facts<'_>, insecure: bool) -> Vec<Value> {
    let inert = ["nosuid", "noexec", "nodev"];
    let protected = match insecure {
        true => inert.to_vec(),
        false => [&inert[..], &["ro"]].concat(),
    };
    // A runtime may take from the top of a bind what is not named for it.
    let devices = match insecure {
        true => vec!["rbind", "rprivate", "nosuid"],
        false => vec!["rbind", "rprivate", "nosuid", "nodev"],
    };
    let replaced = |place: &str| {
        let mut mounts = facts.spec.mounts.iter();
        mounts.any(|mount| crate::world::clean(&mount.target) == place)
    };
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": inert}),
        json!({"destination": "/dev", "type": "bind", "source": facts.devices, "options": devices}),
    ];
    if !replaced("/dev/mqueue") {
        mounts.push(json!({
            "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": inert,
        }));
    }
    mounts.push(match facts.sys {
        Some(tree) => json!({
            "destination": "/sys", "type": "bind", "source": tree,
            "options": ["rbind", "rprivate", "nosuid", "noexec", "nodev", "ro"],
        }),
        None => {
            json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": protected})
        }
    });
    if facts.control_groups && facts.sys.is_none() {
        mounts.push(json!({
            "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": protected,
        }));
    }
    mounts
}

fn rlimit_name(resource: Resource) -> &'static str {
    match resource {
        Resource::Core => "RLIMIT_CORE",
        Resource::Cpu => "RLIMIT_CPU",
        Resource::Data => "RLIMIT_DATA",
        Resource::Fsize => "RLIMIT_FSIZE",
        Resource::Locks => "RLIMIT_LOCKS",
        Resource::Memlock => "RLIMIT_MEMLOCK",
        Resource::Msgqueue => "RLIMIT_MSGQUEUE",
        Resource::Nice => "RLIMIT_NICE",
        Resource::Nofile => "RLIMIT_NOFILE",
        Resource::Nproc => "RLIMIT_NPROC",
        Resource::Rss => "RLIMIT_RSS",
        Resource::Rtprio => "RLIMIT_RTPRIO",
        Resource::Rttime => "RLIMIT_RTTIME",
        Resource::Sigpending => "RLIMIT_SIGPENDING",
        Resource::Stack => "RLIMIT_STACK",
    }
}
