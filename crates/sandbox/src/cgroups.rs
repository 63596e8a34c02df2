//! Control groups of limited steps: the unified hierarchy, the old ones, or both, where they may be written.
//!
//! Best effort: what can't be set is said and does not stop the step. A step without limits gets none, since
//! making one costs more than the rest of the step.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::entry;
use crate::spec::Limits;

/// Where groups may be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hierarchies {
    /// The builder's group in the unified hierarchy, and the top of what is mounted of it.
    unified: Option<(PathBuf, PathBuf)>,
    /// The builder's group in the old hierarchy of each controller.
    old: BTreeMap<String, PathBuf>,
    /// `lapstrake-PID-`, of the helper.
    prefix: String,
    /// The group that was asked for, if one was: steps get theirs in it and nowhere else.
    parent: Option<String>,
}

/// The groups of one step. Dropping it removes them; nothing may be left in them.
#[derive(Debug)]
pub(crate) struct Group {
    directories: Vec<PathBuf>,
    /// The group in the unified hierarchy, to start the step in.
    pub(crate) unified: Option<OwnedFd>,
    /// `cgroup.procs` of the old ones, for the step to write itself into.
    pub(crate) old: Vec<OwnedFd>,
    pub(crate) unset: Vec<String>,
}

/// What the groups of a step counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) peak_memory: Option<u64>,
    pub(crate) out_of_memory: bool,
}

/// One value to write, by controller and file.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    /// The option's name, for the user.
    limit: &'static str,
    controller: &'static str,
    file: &'static str,
    value: String,
}

impl Hierarchies {
    /// Finds the hierarchies of this process. `parent` is `--cgroup-parent`: a path below the top.
    pub(crate) fn find(parent: Option<&str>) -> Hierarchies {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut found = parse(&mounts, &own, parent);
        found.prefix = format!("lapstrake-{}-", std::process::id());
        found.sweep();
        found
    }

    /// Makes the groups that the limits need.
    pub(crate) fn make(&self, id: u64, limits: &Limits) -> Group {
        let Some(parent) = &limits.parent else {
            return self.make_here(id, limits);
        };
        // What limits all steps holds for those that are to be in a group of their own too.
        let parent = match &self.parent {
            Some(above) => format!("{above}/{parent}"),
            None => parent.clone(),
        };
        Self::find(Some(&parent)).make_here(id, limits)
    }

    fn make_here(&self, id: u64, limits: &Limits) -> Group {
        let name = format!("{}{id}", self.prefix);
        let mut group = Group {
            directories: Vec::new(),
            unified: None,
            old: Vec::new(),
            unset: Vec::new(),
        };
        let (unified, old): (Vec<Setting>, Vec<Setting>) =
            (unified_settings(limits), old_settings(limits));
        let mut by_controller: BTreeMap<&'static str, (Vec<Setting>, Vec<Setting>)> =
            BTreeMap::new();
        for setting in unified {
            by_controller
                .entry(setting.controller)
                .or_default()
                .0
                .push(setting);
        }
        for setting in old {
            by_controller
                .entry(setting.controller)
                .or_default()
                .1
                .push(setting);
        }
        if self.parent.is_some() {
            group.enter_parent(self, &name);
        }
        for (controller, (unified, old)) in by_controller {
            let first = old
                .first()
                .or(unified.first())
                .map_or(controller, |setting| setting.limit);
            let result = match self.old.get(controller) {
                Some(base) => group.add_old(base, &name, controller, &old),
                None => group.add_unified(self, &name, controller, &unified),
            };
            if let Err(error) = result {
                group.unset.push(format!("{first}: {error}"));
            }
        }
        group
    }

    /// Removes what builders left that were killed. A group that is in use refuses.
    fn sweep(&self) {
        let bases = self
            .unified
            .iter()
            .map(|(own, _)| own)
            .chain(self.old.values());
        for base in bases {
            for entry in fs::read_dir(base).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let owner = name
                    .to_str()
                    .and_then(|name| name.strip_prefix("lapstrake-")?.split('-').next());
                if owner.is_some_and(|pid| !is_helper(pid)) {
                    let _ = fs::remove_dir(entry.path());
                }
            }
        }
    }
}

/// Whether a process is a helper that lives: its number may be another's by now, and one that nobody has
/// reaped has no words left.
fn is_helper(pid: &str) -> bool {
    let words = fs::read(Path::new("/proc").join(pid).join("cmdline")).unwrap_or_default();
    words.split(|byte| *byte == 0).next() == Some(entry::HELPER_NAME.as_bytes())
}

impl Group {
    /// Makes groups in all that the parent is in, so that its limits hold, whether or not the step has some of its own.
    fn enter_parent(&mut self, hierarchies: &Hierarchies, name: &str) {
        let mut entered =
            Err("it is no path below the top of this machine's control groups".to_owned());
        if hierarchies.old.is_empty()
            && let Some((parent, top)) = &hierarchies.unified
        {
            entered = make_parent(parent, top).and_then(|()| self.open_unified(parent, name));
        }
        for (controller, parent) in &hierarchies.old {
            // A new set of processors would have none.
            let made = match controller == "cpuset" && !parent.is_dir() {
                true => continue,
                false => fs::create_dir_all(parent)
                    .map_err(|error| format!("{} can't be made: {error}", parent.display()))
                    .and_then(|()| self.open_old(parent, name, controller)),
            };
            if let Err(error) = made {
                self.unset.push(format!("cgroup-parent: {error}"));
            }
            entered = Ok(());
        }
        if let Err(error) = entered {
            self.unset.push(format!("cgroup-parent: {error}"));
        }
    }

    fn add_old(
        &mut self,
        base: &Path,
        name: &str,
        controller: &str,
        settings: &[Setting],
    ) -> Result<(), String> {
        let directory = base.join(name);
        // With a parent it is there already.
        if !self.directories.contains(&directory) {
            self.open_old(base, name, controller)?;
        }
        self.write_all(&directory, settings);
        Ok(())
    }

    fn open_old(&mut self, base: &Path, name: &str, controller: &str) -> Result<(), String> {
        let directory = base.join(name);
        fs::create_dir(&directory)
            .map_err(|error| format!("no control group can be made: {error}"))?;
        self.directories.push(directory.clone());
        if controller == "cpuset" {
            // A new group has neither until they are written, and takes no process before.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let inherited = fs::read_to_string(base.join(file)).unwrap_or_default();
                let _ = write(&directory.join(file), inherited.trim());
            }
        }
        let procs = open_procs(&directory)
            .map_err(|error| format!("the control group can't be entered: {error}"))?;
        self.old.push(procs);
        Ok(())
    }

    fn add_unified(
        &mut self,
        hierarchies: &Hierarchies,
        name: &str,
        controller: &str,
        settings: &[Setting],
    ) -> Result<(), String> {
        let (own, top) = hierarchies
            .unified
            .as_ref()
            .ok_or("this machine has no control groups for it")?;
        let not_delegated = || format!("the controller {controller} is not delegated to this user");
        if hierarchies.parent.is_some() {
            make_parent(own, top)?;
            enable_down_to(own, top, controller);
            if !offers(own, controller) {
                return Err(not_delegated());
            }
            if self.unified.is_none() {
                self.open_unified(own, name)?;
            }
        } else if self.unified.is_none() {
            let base = own
                .ancestors()
                .take_while(|base| base.starts_with(top))
                .find(|base| offers(base, controller));
            self.open_unified(base.ok_or_else(not_delegated)?, name)?;
        }
        let directory = self.directories.first().cloned().unwrap_or_default();
        self.write_all(&directory, settings);
        Ok(())
    }

    fn open_unified(&mut self, base: &Path, name: &str) -> Result<(), String> {
        let directory = base.join(name);
        fs::create_dir(&directory)
            .map_err(|error| format!("no control group can be made: {error}"))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&directory, flags, Mode::empty())
            .map_err(|error| format!("the control group can't be opened: {error}"))?;
        // The first: settings of later controllers find it.
        self.directories.insert(0, directory);
        self.unified = Some(fd);
        Ok(())
    }

    fn write_all(&mut self, directory: &Path, settings: &[Setting]) {
        for setting in settings {
            if let Err(error) = write(&directory.join(setting.file), &setting.value) {
                self.unset.push(format!("{}: {error}", setting.limit));
            }
        }
    }

    /// Reads what was counted, when all processes have ended.
    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for directory in &self.directories {
            let number = |file: &str| {
                fs::read_to_string(directory.join(file))
                    .ok()?
                    .trim()
                    .parse::<u64>()
                    .ok()
            };
            let peak = number("memory.peak").or_else(|| number("memory.max_usage_in_bytes"));
            counts.peak_memory = counts.peak_memory.or(peak);
            for file in ["memory.events", "memory.oom_control"] {
                let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
                let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
                counts.out_of_memory |= kills.is_some_and(|kills| kills.trim() != "0");
            }
        }
        counts
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for directory in &self.directories {
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Makes the group that was asked for, if it is not there.
fn make_parent(parent: &Path, top: &Path) -> Result<(), String> {
    match parent == top {
        true => Ok(()),
        false => fs::create_dir_all(parent)
            .map_err(|error| format!("{} can't be made: {error}", parent.display())),
    }
}

/// Lets a group have a controller, as far as those above it may be changed.
fn enable_down_to(parent: &Path, top: &Path, controller: &str) {
    let mut above: Vec<&Path> = parent.ancestors().skip(1).collect();
    above.retain(|group| group.starts_with(top));
    for group in above.into_iter().rev() {
        offers(group, controller);
    }
}

/// Whether groups below `base` may have a controller; enabled when it is not yet.
fn offers(base: &Path, controller: &str) -> bool {
    let listed = |file: &str| {
        let text = fs::read_to_string(base.join(file)).unwrap_or_default();
        text.split_whitespace().any(|name| name == controller)
    };
    if !listed("cgroup.controllers") {
        return false;
    }
    let writable = rustix::fs::access(base, rustix::fs::Access::WRITE_OK).is_ok();
    writable
        && (listed("cgroup.subtree_control")
            || write(
                &base.join("cgroup.subtree_control"),
                &format!("+{controller}"),
            )
            .is_ok())
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(value.as_bytes())
}

fn open_procs(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::open(directory.join("cgroup.procs"), flags, Mode::empty()).map_err(io::Error::from)
}

fn unified_settings(limits: &Limits) -> Vec<Setting> {
    let setting = |limit, controller, file, value: Option<String>| {
        value.map(|value| Setting {
            limit,
            controller,
            file,
            value,
        })
    };
    let swap = limits
        .memory_swap
        .map(|total| total.saturating_sub(limits.memory.unwrap_or(0)).to_string());
    // Docker's shares from 2 to 262144 become weights from 1 to 10000.
    let weight = limits.cpu_shares.map(|shares| {
        let shares = shares.clamp(2, 262_144);
        (1 + (shares - 2) * 9999 / 262_142).to_string()
    });
    let all = [
        setting(
            "memory",
            "memory",
            "memory.max",
            limits.memory.map(|bytes| bytes.to_string()),
        ),
        setting("memory-swap", "memory", "memory.swap.max", swap),
        setting(
            "cpus",
            "cpu",
            "cpu.max",
            limits
                .cpu_milli
                .map(|milli| format!("{} 100000", (milli * 100).max(1000))),
        ),
        setting("cpu-shares", "cpu", "cpu.weight", weight),
        setting(
            "cpuset-cpus",
            "cpuset",
            "cpuset.cpus",
            limits.cpuset_cpus.clone(),
        ),
        setting(
            "cpuset-mems",
            "cpuset",
            "cpuset.mems",
            limits.cpuset_mems.clone(),
        ),
        setting(
            "pids-limit",
            "pids",
            "pids.max",
            limits.pids.map(|count| count.to_string()),
        ),
    ];
    all.into_iter().flatten().collect()
}

fn old_settings(limits: &Limits) -> Vec<Setting> {
    let setting = |limit, controller, file, value: Option<String>| {
        value.map(|value| Setting {
            limit,
            controller,
            file,
            value,
        })
    };
    let period = limits.cpu_milli.map(|_| "100000".to_owned());
    let quota = limits
        .cpu_milli
        .map(|milli| (milli * 100).max(1000).to_string());
    let all = [
        setting(
            "memory",
            "memory",
            "memory.limit_in_bytes",
            limits.memory.map(|bytes| bytes.to_string()),
        ),
        setting(
            "memory-swap",
            "memory",
            "memory.memsw.limit_in_bytes",
            limits.memory_swap.map(|bytes| bytes.to_string()),
        ),
        setting("cpus", "cpu", "cpu.cfs_period_us", period),
        setting("cpus", "cpu", "cpu.cfs_quota_us", quota),
        setting(
            "cpu-shares",
            "cpu",
            "cpu.shares",
            limits.cpu_shares.map(|shares| shares.to_string()),
        ),
        setting(
            "cpuset-cpus",
            "cpuset",
            "cpuset.cpus",
            limits.cpuset_cpus.clone(),
        ),
        setting(
            "cpuset-mems",
            "cpuset",
            "cpuset.mems",
            limits.cpuset_mems.clone(),
        ),
        setting(
            "pids-limit",
            "pids",
            "pids.max",
            limits.pids.map(|count| count.to_string()),
        ),
    ];
    all.into_iter().flatten().collect()
}

/// Joins what is mounted with where this process is.
fn parse(mountinfo: &str, own: &str, parent: Option<&str>) -> Hierarchies {
    let mut found = Hierarchies {
        unified: None,
        old: BTreeMap::new(),
        prefix: String::new(),
        parent: parent.map(str::to_owned),
    };
    let group_of = |controller: &str| {
        own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            controllers
                .split(',')
                .any(|name| name == controller)
                .then(|| path.to_owned())
        })
    };
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let fields: Vec<&str> = left.split(' ').collect();
        let (Some(root), Some(place)) = (fields.get(3), fields.get(4)) else {
            continue;
        };
        let right: Vec<&str> = right.split(' ').collect();
        // A mount may show only a part of a hierarchy; paths are below that part.
        let below = |controller: &str| {
            let path = match parent {
                Some(parent) => parent.to_owned(),
                None => group_of(controller)?,
            };
            let relative = if parent.is_some() {
                &path
            } else {
                path.strip_prefix(root.trim_end_matches('/'))?
            };
            let safe = !relative.split('/').any(|name| name == "..");
            safe.then(|| Path::new(place).join(relative.trim_start_matches('/')))
        };
        match right.as_slice() {
            ["cgroup2", ..] => found.unified = below("").map(|own| (own, PathBuf::from(place))),
            ["cgroup", _, options, ..] => {
                for controller in options.split(',') {
                    if matches!(controller, "memory" | "cpu" | "cpuset" | "pids") {
                        found
                            .old
                            .extend(below(controller).map(|path| (controller.to_owned(), path)));
                    }
                }
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
    const HYBRID: &str = "31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                          32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                          33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn hierarchies_are_found_in_each_layout() {
        let found = parse(UNIFIED, "0::/user.slice/me.scope\n", None);
        let top = PathBuf::from("/sys/fs/cgroup");
        assert_eq!(
            found.unified,
            Some((top.join("user.slice/me.scope"), top.clone()))
        );
        assert!(found.old.is_empty());

        let found = parse(HYBRID, "5:cpu,cpuacct:/a\n4:memory:/b/c\n0::/\n", None);
        assert_eq!(found.old["cpu"], Path::new("/sys/fs/cgroup/cpu/a"));
        assert_eq!(found.old["memory"], Path::new("/sys/fs/cgroup/memory/b/c"));
        assert_eq!(
            found.unified,
            Some((top.join("unified"), top.join("unified")))
        );

        let found = parse(UNIFIED, "0::/me\n", Some("/builds"));
        assert_eq!(found.unified, Some((top.join("builds"), top.clone())));
        assert_eq!(parse(UNIFIED, "0::/me\n", Some("/../..")).unified, None);

        let part = UNIFIED.replace("0:26 / ", "0:26 /docker/x ");
        assert_eq!(
            parse(&part, "0::/docker/x/y\n", None).unified,
            Some((top.join("y"), top))
        );
    }

    #[test]
    fn limits_become_what_each_kind_of_hierarchy_reads() {
        let limits = Limits {
            memory: Some(1 << 20),
            memory_swap: Some(3 << 20),
            cpu_milli: Some(1500),
            cpu_shares: Some(1024),
            cpuset_cpus: Some("0-1".to_owned()),
            cpuset_mems: None,
            pids: Some(10),
            parent: None,
        };
        let show = |settings: Vec<Setting>| {
            settings
                .iter()
                .map(|setting| format!("{}={}", setting.file, setting.value))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            show(unified_settings(&limits)),
            "memory.max=1048576 memory.swap.max=2097152 cpu.max=150000 100000 cpu.weight=39 cpuset.cpus=0-1 pids.max=10"
        );
        assert_eq!(
            show(old_settings(&limits)),
            "memory.limit_in_bytes=1048576 memory.memsw.limit_in_bytes=3145728 cpu.cfs_period_us=100000 \
             cpu.cfs_quota_us=150000 cpu.shares=1024 cpuset.cpus=0-1 pids.max=10"
        );
        assert!(unified_settings(&Limits::default()).is_empty());
    }

    #[test]
    fn a_limit_that_can_not_be_set_is_said() {
        let none = parse("", "", None);
        let limits = Limits {
            memory: Some(1),
            pids: Some(1),
            ..Limits::default()
        };
        let group = none.make(1, &limits);
        assert_eq!(
            group.unset,
            [
                "memory: this machine has no control groups for it",
                "pids-limit: this machine has no control groups for it"
            ]
        );
    }

    /// A directory as the kernel shows a unified hierarchy.
    #[test]
    fn a_group_is_made_where_its_controller_is_offered() {
        let top = tempfile::tempdir().expect("a directory");
        let own = top.path().join("a/b");
        fs::create_dir_all(&own).expect("a directory");
        fs::write(top.path().join("a/cgroup.controllers"), "memory pids\n").expect("a file");
        fs::write(top.path().join("a/cgroup.subtree_control"), "memory\n").expect("a file");
        let unified = Some((own, top.path().to_owned()));
        let hierarchies = Hierarchies {
            unified,
            old: BTreeMap::new(),
            prefix: "lapstrake-1-".to_owned(),
            parent: None,
        };
        let limits = Limits {
            memory: Some(4096),
            cpu_milli: Some(1),
            ..Limits::default()
        };
        let group = hierarchies.make(7, &limits);
        let directory = top.path().join("a/lapstrake-1-7");
        assert!(directory.is_dir());
        // A plain directory has no file to write the limit to.
        assert_eq!(group.unset.len(), 2, "{:?}", group.unset);
        assert!(
            group.unset[0].starts_with("cpus: the controller cpu is not delegated"),
            "{:?}",
            group.unset
        );
        drop(group);
        assert!(!directory.exists());
    }

    #[test]
    fn a_step_with_a_parent_gets_its_group_there_and_nowhere_else() {
        let top = tempfile::tempdir().expect("a directory");
        fs::write(top.path().join("cgroup.controllers"), "memory\n").expect("a file");
        let parent = top.path().join("builds/one");
        let mut hierarchies = Hierarchies {
            unified: Some((parent.clone(), top.path().to_owned())),
            old: BTreeMap::new(),
            prefix: "lapstrake-1-".to_owned(),
            parent: Some("builds/one".to_owned()),
        };
        let mut limits = Limits {
            parent: Some("builds/one".to_owned()),
            ..Limits::default()
        };
        // What the parent limits holds without limits of the step's own.
        assert!(!limits.is_empty());
        let group = hierarchies.make_here(7, &limits);
        assert!(parent.join("lapstrake-1-7").is_dir());
        assert!(group.unified.is_some());
        assert_eq!(group.unset, [""; 0]);
        drop(group);

        limits.memory = Some(4096);
        let group = hierarchies.make_here(8, &limits);
        let unset = ["memory: the controller memory is not delegated to this user"];
        assert_eq!(group.unset, unset);
        assert!(!top.path().join("lapstrake-1-8").exists());
        drop(group);

        let old = top.path().join("memory/builds/one");
        hierarchies.old.insert("memory".to_owned(), old.clone());
        fs::create_dir_all(top.path().join("memory")).expect("a directory");
        let group = hierarchies.make_here(9, &limits);
        assert!(old.join("lapstrake-1-9").is_dir());
        assert!(group.unified.is_none());
    }

    #[test]
    fn a_parent_outside_the_hierarchies_is_said() {
        let parent = Some("../..".to_owned());
        let limits = Limits {
            parent: parent.clone(),
            ..Limits::default()
        };
        let group = parse(UNIFIED, "0::/me\n", parent.as_deref()).make_here(1, &limits);
        assert_eq!(group.unset.len(), 1, "{:?}", group.unset);
        assert!(group.unset[0].starts_with("cgroup-parent: it is no path"));
        assert!(group.directories.is_empty());
    }
}
