//! What the helper may do here, found out once.

use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::mount::MountAttrFlags;

use crate::error::SandboxError;
use crate::mounts;
use crate::sys::{self, Cloned, WaitStatus};

/// The machine as the helper finds it.
#[derive(Debug)]
pub(crate) struct Machine {
    /// This is not the initial user namespace: overlays use `user.overlay.*`, devices can't be made, and
    /// what belongs to the initial one can't be mounted.
    pub(crate) user_namespace: bool,
    /// A new `/proc` may be mounted. Not so in a container that hides parts of its own.
    pub(crate) fresh_proc: bool,
    /// `/sys/fs/cgroup` is the unified hierarchy, which a step may see.
    pub(crate) unified_cgroups: bool,
    /// Lies under the layers of every step: see [`crate::Options::stub_layer`].
    pub(crate) stub_layer: Option<PathBuf>,
    /// This user namespace forbids `setgroups`, as one that a user fills with a single id must.
    pub(crate) groups_forbidden: bool,
    notes: Vec<String>,
}

impl Machine {
    pub(crate) fn examine() -> Result<Machine, SandboxError> {
        let map = std::fs::read_to_string("/proc/self/uid_map")
            .map_err(|error| SandboxError::io("read /proc/self/uid_map", error))?;
        let user_namespace = !is_initial_map(&map);
        let fresh_proc = !user_namespace || can_mount_proc()?;
        let mut notes = Vec::new();
        if !fresh_proc {
            notes.push(
                "a new /proc can't be mounted because parts of the machine's own are hidden: steps see the \
                 builder's /proc"
                    .to_owned(),
            );
        }
        const CGROUP2_MAGIC: rustix::fs::FsWord = 0x6367_7270;
        let unified_cgroups =
            rustix::fs::statfs("/sys/fs/cgroup").is_ok_and(|found| found.f_type == CGROUP2_MAGIC);
        Ok(Machine {
            user_namespace,
            fresh_proc,
            unified_cgroups,
            stub_layer: None,
            groups_forbidden: groups_forbidden(),
            notes,
        })
    }

    /// Returns what can't be had, in words for the user.
    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// A kernel that does not say forbids nothing.
fn groups_forbidden() -> bool {
    std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny")
}

/// Whether a `uid_map` is that of the initial user namespace.
pub(crate) fn is_initial_map(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Tries in a process of its own, as only the first process of a pid namespace can tell.
fn can_mount_proc() -> Result<bool, SandboxError> {
    let failed = |error| SandboxError::io("try to mount /proc", error);
    // SAFETY: the helper has one thread.
    match unsafe { sys::clone_process(libc::CLONE_NEWPID | libc::CLONE_NEWNS, None) }
        .map_err(failed)?
    {
        Cloned::Child => {
            let mounted = mounts::filesystem("proc", &[], MountAttrFlags::empty());
            sys::exit_now(i32::from(mounted.is_err()))
        }
        Cloned::Parent { pid, pidfd } => {
            let _ = pidfd.as_fd();
            let (_, status, _) = sys::wait_child(Some(pid)).map_err(failed)?;
            Ok(status == WaitStatus::Code(0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_range_is_the_initial_map() {
        assert!(is_initial_map("         0          0 4294967295\n"));
        assert!(!is_initial_map("         0       1000          1\n"));
        assert!(!is_initial_map("0 1000 1\n1 100000 65536\n"));
        assert!(!is_initial_map(""));
    }
}
