//! An OCI runtime that a user chose to run steps: found, asked for its name, told what it can't do.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use serde::{Deserialize, Serialize};

use crate::bytes;
use crate::error::SandboxError;
use crate::spec::Spec;

/// A runtime that answers at all does so at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// More of what it prints about itself is not read.
const MAX_ANSWER: u64 = 4096;

/// A program that takes the command line of `runc`: `crun`, `runc`, `youki`, `runsc`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    #[serde(with = "bytes::path")]
    path: PathBuf,
    name: String,
    version: String,
    pub(crate) kind: Kind,
}

/// Whose own ways have to be minded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    Crun,
    Runc,
    Other,
}

impl Runtime {
    /// Finds a runtime by its path, or by its name in `PATH`, and asks for its version. `None` is for `native`: the
    /// sandbox of this crate.
    pub fn find(text: &str) -> Result<Option<Runtime>, SandboxError> {
        if text == "native" {
            return Ok(None);
        }
        let unusable = |reason: String| SandboxError::Runtime {
            name: text.to_owned(),
            reason,
        };
        let path = if text.contains('/') {
            std::path::absolute(text).map_err(|error| unusable(error.to_string()))?
        } else {
            let places = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&places)
                .filter(|place| place.is_absolute())
                .map(|place| place.join(text))
                .find(|path| is_program(path))
                .ok_or_else(|| {
                    unusable(
                        "it is not in PATH; install it, or name it by its path (native is the built-in sandbox)"
                            .to_owned(),
                    )
                })?
        };
        if !path.exists() {
            return Err(unusable("there is no such file".to_owned()));
        }
        if !is_program(&path) {
            return Err(unusable("it is no program".to_owned()));
        }
        let answer = ask(&path).map_err(unusable)?;
        let mut words = answer.lines().next().unwrap_or_default().split_whitespace();
        let plain = |word: &&str| {
            word.len() <= 64
                && word.bytes().all(|byte| byte.is_ascii_graphic())
                && *word != "version"
        };
        let own = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let name = words.next().filter(plain).unwrap_or(&own).to_owned();
        let version = words.find(plain).unwrap_or_default().to_owned();
        let kind = match name.as_str() {
            "crun" => Kind::Crun,
            "runc" => Kind::Runc,
            _ => Kind::Other,
        };
        Ok(Some(Runtime {
            path,
            name,
            version,
            kind,
        }))
    }

    /// Returns the program.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the name it gives itself, such as `crun`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the name with the version, where it says one: `crun 1.21`.
    pub fn title(&self) -> String {
        match self.version.as_str() {
            "" => self.name.clone(),
            version => format!("{} {version}", self.name),
        }
    }

    /// Refuses by name what is asked of a step and can't be had with a runtime.
    pub(crate) fn check(&self, spec: &Spec) -> Result<(), SandboxError> {
        if spec.terminal {
            return Err(self.refuse("a terminal"));
        }
        for mount in &spec.mounts {
            let target = crate::world::clean(&mount.target);
            let below = |place: &str| {
                target
                    .strip_prefix(place)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            if below("/proc") || below("/sys") || target == "/dev" {
                return Err(self.refuse(&format!("a mount at {target}")));
            }
        }
        Ok(())
    }

    pub(crate) fn refuse(&self, what: &str) -> SandboxError {
        SandboxError::Runtime {
            name: self.name.clone(),
            reason: format!("{what} is not possible with it; use --runtime native"),
        }
    }

    /// Returns a command of the runtime with the options before its verb.
    pub(crate) fn command(&self, state: &Path, log: &Path) -> Command {
        let mut command = Command::new(&self.path);
        command
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .arg0(self.path.file_name().unwrap_or_default())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .arg("--root")
            .arg(state)
            .arg("--log")
            .arg(log)
            .args(["--log-format", "json"]);
        // Control groups are the helper's affair: what a runtime made would outlive a killed builder.
        match self.kind {
            Kind::Crun => command.args(["--cgroup-manager", "disabled"]),
            // Then it goes on without those it may not make.
            Kind::Runc => command.args(["--rootless", "true"]),
            Kind::Other => &mut command,
        };
        command
    }
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path)
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Returns what a runtime prints about its version; the error in words.
fn ask(path: &Path) -> Result<String, String> {
    let mut child = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("it can't be started: {error}"))?;
    let output = child.stdout.take();
    let code = wait_for(&mut child, PATIENCE)
        .map_err(|error| format!("waiting for its version failed: {error}"))?
        .ok_or_else(|| format!("it does not tell its version within {PATIENCE:?}"))?;
    if !code.success() {
        return Err(format!("it does not tell its version: {code}"));
    }
    let mut bytes = Vec::new();
    if let Some(output) = output {
        // Whoever it left running may still hold the pipe: what has come is enough.
        let flags = rustix::fs::OFlags::NONBLOCK;
        let _ = rustix::fs::fcntl_setfl(&output, flags);
        let _ = output.take(MAX_ANSWER).read_to_end(&mut bytes);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Waits for a program; one that takes longer is killed, and `None` returned.
pub(crate) fn wait_for(
    child: &mut Child,
    patience: Duration,
) -> std::io::Result<Option<std::process::ExitStatus>> {
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .ok_or(std::io::ErrorKind::InvalidData)?;
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    let until = std::time::Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(std::time::Instant::now());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut polled = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
        match rustix::event::poll(&mut polled, Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(0) => {
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
            Ok(_) => return child.wait().map(Some),
        }
    }
}
