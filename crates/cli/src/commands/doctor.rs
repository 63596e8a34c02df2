//! `lapstrake doctor`: whether builds can work here, and how to mend what is in the way.

use std::fmt;
use std::path::Path;

use anyhow::Context;
use clap::Args;
use rustix::fs::Access;
use rustix::mount::{MountFlags, UnmountFlags};
use sandbox::NetworkMode;
use sandbox::userns::{self, Obstacle};
use serde_json::{Map, Value};

use crate::arguments::Global;
use crate::failure::{Failure, exit};
use crate::settings::Outlook;
use crate::table::{Listing, human_size};
use crate::{output, places, settings};

/// Check whether builds can work here, and say how to mend what is in the way
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code 1 if a check failed. A warning is no failure: builds work, with a limit.

Examples:
  lapstrake doctor                  all checks
  lapstrake doctor --format json    an object a line
  lapstrake doctor --format '{{.Name}} {{.Status}}'"
)]
pub(crate) struct Doctor {
    /// How to print: text, table, json, or a template
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: String,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Ok,
    /// Builds work, with a limit.
    Warn,
    Fail,
}

impl fmt::Display for Health {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Health::Ok => "ok",
            Health::Warn => "warn",
            Health::Fail => "fail",
        })
    }
}

/// One thing that was looked at.
#[derive(Debug)]
struct Finding {
    name: &'static str,
    health: Health,
    /// What was found.
    found: String,
    /// What to do about it; empty if nothing.
    mend: String,
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            health: Health::Ok,
            found: found.into(),
            mend: String::new(),
        }
    }

    fn bad(
        name: &'static str,
        health: Health,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            name,
            health,
            found: found.into(),
            mend: mend.into(),
        }
    }
}

impl Doctor {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        // What needs the user's own eyes comes before the namespaces in which everybody is root.
        let user = User::of_process();
        let root = places::root(global).map_err(exit::usage)?;
        let mut findings = vec![kernel(), configuration(global)];
        let tun = rustix::fs::access("/dev/net/tun", Access::READ_OK | Access::WRITE_OK).is_ok();
        let groups = control_groups(&user);
        findings.push(isolation_without_entering(&user));
        let can_run = findings
            .last()
            .is_some_and(|found| found.health != Health::Fail);
        if can_run {
            match settings::outlook() {
                Ok(outlook) => {
                    findings.push(network(&outlook, &user, tun));
                    findings.push(overlays(&root, &outlook));
                }
                Err(failure) => findings.push(Finding::bad(
                    "sandbox",
                    Health::Fail,
                    failure.text(),
                    "the message says what was refused; inside a container, allow it mounts and namespaces",
                )),
            }
        }
        findings.extend([groups, space(&root), clock(), emulators()]);
        let text = self.text(&findings).map_err(exit::usage)?;
        output::print(&text).map_err(exit::builder)?;
        match findings.iter().any(|found| found.health == Health::Fail) {
            true => Err(Failure::Said(1)),
            false => Ok(()),
        }
    }

    fn text(&self, findings: &[Finding]) -> anyhow::Result<String> {
        if self.format != "text" {
            let rows = findings.iter().map(row).collect();
            return Listing {
                columns: &COLUMNS,
                rows,
            }
            .render(Some(&self.format));
        }
        let mut text = String::new();
        for found in findings {
            text.push_str(&format!(
                "{:<5} {}: {}\n",
                found.health.to_string(),
                found.name,
                found.found
            ));
            if !found.mend.is_empty() {
                text.push_str(&format!("      to mend it: {}\n", found.mend));
            }
        }
        Ok(text)
    }
}

const COLUMNS: [(&str, &str); 4] = [
    ("Status", "STATUS"),
    ("Name", "NAME"),
    ("Found", "FOUND"),
    ("Mend", "MEND"),
];

fn row(found: &Finding) -> Map<String, Value> {
    let fields = [
        ("Name", found.name.to_owned()),
        ("Status", found.health.to_string()),
        ("Found", found.found.clone()),
        ("Mend", found.mend.clone()),
    ];
    let pairs = fields
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into()));
    pairs.collect()
}

/// Who runs this.
struct User {
    name: String,
    is_root: bool,
}

impl User {
    fn of_process() -> Self {
        let uid = rustix::process::geteuid();
        let name = std::env::var("USER").ok().filter(|name| !name.is_empty());
        Self {
            name: name.unwrap_or_else(|| uid.as_raw().to_string()),
            is_root: uid.is_root(),
        }
    }
}

fn kernel() -> Finding {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|text| text.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match version {
        (0..5, _) | (5, 0..12) => Finding::bad(
            "kernel",
            Health::Fail,
            format!("Linux {release}; 5.12 is needed"),
            "install a newer kernel",
        ),
        _ => Finding::ok("kernel", format!("Linux {release}")),
    }
}

fn configuration(global: &Global) -> Finding {
    let read = settings::check(global);
    let place = places::config(global).map(|(path, _)| path.display().to_string());
    let place = place.unwrap_or_else(|_| "nowhere".to_owned());
    match read {
        Ok(_) if Path::new(&place).exists() => Finding::ok("configuration", place),
        Ok(_) => Finding::ok("configuration", format!("none ({place} is not there)")),
        Err(error) => Finding::bad(
            "configuration",
            Health::Fail,
            format!("{error:#}"),
            format!("correct {place}"),
        ),
    }
}

fn isolation_without_entering(user: &User) -> Finding {
    const NAME: &str = "isolation";
    let isolation = match userns::probe() {
        Ok(isolation) => isolation,
        Err(error) => {
            let mend = "mount /proc where lapstrake runs";
            return Finding::bad(NAME, Health::Fail, engine::chain(&error), mend);
        }
    };
    let obstacle = isolation.obstacle.as_ref();
    let notes = isolation.notes.join("; ");
    let found = match notes.is_empty() {
        true => isolation.rung.to_string(),
        false => format!("{}: {notes}", isolation.rung),
    };
    match isolation.rung {
        userns::Rung::Unavailable => {
            Finding::bad(NAME, Health::Fail, found, mend_isolation(obstacle, user))
        }
        userns::Rung::SingleId => {
            Finding::bad(NAME, Health::Warn, found, mend_isolation(obstacle, user))
        }
        userns::Rung::Root | userns::Rung::SubordinateIds => Finding::ok(NAME, found),
    }
}

/// Returns what removes an obstacle, a command where there is one.
fn mend_isolation(obstacle: Option<&Obstacle>, user: &User) -> String {
    let mend = match obstacle {
        Some(Obstacle::AppArmor) => {
            "install lapstrake's AppArmor profile (the Debian package has it), or: \
             sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
        }
        Some(Obstacle::NamespaceLimit) => "sudo sysctl -w user.max_user_namespaces=28633",
        Some(Obstacle::NamespacesForbidden) => {
            "sudo sysctl -w kernel.unprivileged_userns_clone=1; in a container, allow it namespaces (docker run \
             --security-opt seccomp=unconfined --security-opt apparmor=unconfined; in a pod's securityContext, \
             seccompProfile and appArmorProfile of type Unconfined)"
        }
        Some(Obstacle::NoNamespaces | Obstacle::NamespacesRefused(_)) => {
            "take a kernel with user namespaces (CONFIG_USER_NS); in a container, allow it namespaces (docker run \
             --security-opt seccomp=unconfined; in a pod's securityContext, seccompProfile of type Unconfined)"
        }
        Some(Obstacle::NoRange { .. } | Obstacle::MapRefused(_)) => {
            let name = &user.name;
            return format!(
                "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}"
            );
        }
        Some(Obstacle::NoTool { .. }) => "sudo apt-get install -y uidmap (Fedora: shadow-utils)",
        Some(Obstacle::UnprivilegedTool { .. }) => "sudo apt-get install --reinstall uidmap",
        Some(Obstacle::NoSuid { path }) => {
            return format!("mount the file system of {} without nosuid", path.display());
        }
        Some(Obstacle::NoNewPrivileges) => {
            "run lapstrake without no_new_privs (in a container: allowPrivilegeEscalation)"
        }
        None => "run it as an ordinary user of the machine",
    };
    mend.to_owned()
}

fn network(outlook: &Outlook, user: &User, tun: bool) -> Finding {
    const NAME: &str = "network";
    if outlook.network != NetworkMode::Host.to_string() {
        return Finding::ok(
            NAME,
            format!("steps have one of their own ({})", outlook.network),
        );
    }
    let mend = match (user.is_root, tun) {
        (true, _) => {
            "sudo apt-get install -y nftables; in a container, let it make network devices (NET_ADMIN)"
        }
        (false, true) => "sudo apt-get install -y passt (or slirp4netns)",
        (false, false) => "sudo modprobe tun; in a container, give it the device /dev/net/tun",
    };
    let found = "steps share the network of this machine";
    Finding::bad(NAME, Health::Warn, found, mend)
}

/// Mounts an overlay where layers will be.
fn overlays(root: &Path, outlook: &Outlook) -> Finding {
    const NAME: &str = "overlay";
    match try_overlay(root, outlook.isolation.rung) {
        Ok(()) => Finding::ok(NAME, format!("works in {}", root.display())),
        Err(error) => Finding::bad(
            NAME,
            Health::Fail,
            format!("{error:#}"),
            "put the state directory on ext4, xfs, btrfs or tmpfs with --root DIR (in a container: on a volume), or: \
             sudo modprobe overlay",
        ),
    }
}

fn try_overlay(root: &Path, rung: userns::Rung) -> anyhow::Result<()> {
    userns::enter_if_needed(&userns::Config::default())?;
    std::fs::create_dir_all(root).with_context(|| format!("failed to make {}", root.display()))?;
    let folder = tempfile::Builder::new()
        .prefix("doctor-")
        .tempdir_in(root)
        .with_context(|| format!("failed to write to {}", root.display()))?;
    for name in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir(folder.path().join(name))?;
    }
    // Relative: the path of the state directory may hold what separates options.
    std::env::set_current_dir(folder.path())?;
    let own = match rung {
        userns::Rung::Root => "",
        _ => ",userxattr",
    };
    let options =
        std::ffi::CString::new(format!("lowerdir=lower,upperdir=upper,workdir=work{own}"))?;
    rustix::mount::mount(
        "overlay",
        "merged",
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )
    .with_context(|| format!("no overlay can be mounted in {}", root.display()))?;
    let written = std::fs::write("merged/file", "");
    rustix::mount::unmount("merged", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")?;
    written.with_context(|| format!("an overlay in {} cannot be written to", root.display()))
}

fn control_groups(user: &User) -> Finding {
    const NAME: &str = "cgroups";
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if !unified {
        let mend = "boot with systemd.unified_cgroup_hierarchy=1";
        let found = "no cgroup v2: --memory, --cpus and the like hold only where version 1 can be written to";
        return Finding::bad(NAME, Health::Warn, found, mend);
    }
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or_default();
    let folder = match user.is_root {
        true => Path::new("/sys/fs/cgroup").to_owned(),
        false => Path::new("/sys/fs/cgroup").join(own),
    };
    match rustix::fs::access(&folder, Access::WRITE_OK) {
        Ok(()) => Finding::ok(NAME, "v2, and groups can be made"),
        Err(_) => Finding::bad(
            NAME,
            Health::Warn,
            format!(
                "v2, but no groups can be made in {}: --memory, --cpus and the like are refused",
                folder.display()
            ),
            "run it in a scope of its own: systemd-run --user --scope -p Delegate=yes lapstrake …",
        ),
    }
}

/// Less than this is not enough for any build.
const LEAST_SPACE: u64 = 500_000_000;
/// Less than this is soon used up.
const LITTLE_SPACE: u64 = 5_000_000_000;
const LITTLE_FILES: u64 = 50_000;

fn space(root: &Path) -> Finding {
    const NAME: &str = "space";
    const MEND: &str = "lapstrake system prune -a, or another place with --root DIR";
    let there = root.ancestors().find(|path| path.exists()).unwrap_or(root);
    let found = match rustix::fs::statvfs(there) {
        Ok(found) => found,
        Err(error) => {
            let place = there.display();
            return Finding::bad(
                NAME,
                Health::Fail,
                format!("{place}: {error}"),
                "choose another place with --root DIR",
            );
        }
    };
    let bytes = found.f_bavail.saturating_mul(found.f_frsize);
    let text = format!("{} free for {}", human_size(bytes), root.display());
    // Some file systems count no files.
    let few_files = found.f_files > 0 && found.f_favail < LITTLE_FILES;
    match bytes {
        _ if found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) => {
            let text = format!("{} is read-only", root.display());
            Finding::bad(
                NAME,
                Health::Fail,
                text,
                "choose another place with --root DIR",
            )
        }
        ..LEAST_SPACE => Finding::bad(NAME, Health::Fail, text, MEND),
        LEAST_SPACE..LITTLE_SPACE => Finding::bad(NAME, Health::Warn, text, MEND),
        _ if few_files => {
            let text = format!("{text}, but for {} files only", found.f_favail);
            Finding::bad(NAME, Health::Warn, text, MEND)
        }
        _ => Finding::ok(NAME, text),
    }
}

/// 2026-01-01: no machine that runs this program is older.
const EARLIEST: u64 = 1_767_225_600;

fn clock() -> Finding {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_secs());
    let date = output::date(i64::try_from(now).unwrap_or(0));
    match now {
        ..EARLIEST => Finding::bad(
            "clock",
            Health::Fail,
            format!("it is {date} here: certificates of registries are not valid yet"),
            "sudo timedatectl set-ntp true",
        ),
        _ => Finding::ok("clock", date),
    }
}

fn emulators() -> Finding {
    let entries = std::fs::read_dir("/proc/sys/fs/binfmt_misc")
        .into_iter()
        .flatten()
        .flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("qemu-")).collect();
    names.sort();
    let found = match names.is_empty() {
        true => "none: RUN steps for other machines need one (package qemu-user-static)".to_owned(),
        false => names.join(", "),
    };
    Finding::ok("emulators", found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_mended_by_its_own_command() {
        let user = User {
            name: "ana".to_owned(),
            is_root: false,
        };
        let check = |obstacle: Obstacle, expected: &str| {
            let mend = mend_isolation(Some(&obstacle), &user);
            assert!(mend.contains(expected), "{obstacle}: {mend}");
        };
        let (file, uid) = ("/etc/subuid", 5);
        check(
            Obstacle::NoRange { file, uid },
            "usermod --add-subuids 100000-165535",
        );
        check(Obstacle::NoRange { file, uid }, " ana");
        check(Obstacle::MapRefused("newuidmap: x".to_owned()), " ana");
        check(Obstacle::NoTool { name: "newuidmap" }, "install -y uidmap");
        let path: std::path::PathBuf = "/usr/bin/newuidmap".into();
        check(
            Obstacle::UnprivilegedTool { path: path.clone() },
            "--reinstall uidmap",
        );
        check(
            Obstacle::NoSuid { path },
            "/usr/bin/newuidmap without nosuid",
        );
        check(Obstacle::NoNewPrivileges, "allowPrivilegeEscalation");
        check(Obstacle::NamespaceLimit, "user.max_user_namespaces=");
        check(Obstacle::NamespacesForbidden, "unprivileged_userns_clone=1");
        check(Obstacle::NoNamespaces, "CONFIG_USER_NS");
        check(Obstacle::NamespacesRefused(5), "CONFIG_USER_NS");
        check(Obstacle::AppArmor, "profile");
    }
}
