//! Hermetic environment for tests that drive the real binary.
//!
//! *Responsibility*: a state directory, a configuration and a scratch folder for one test; running
//! the binary there; finding fixtures and examples; a registry, and a bad connection to it; saying that a test is
//! skipped.
//!
//! *Not here*: making fixtures (`cargo xtask fixtures`), knowledge of the engine.
//!
//! *Invariants*: nothing is read from the person's home, configuration or environment, nothing is
//! left behind, no network is used.

pub mod browser;
pub mod pages;
pub mod registry;
pub mod soak;
pub mod times;
mod tokens;
pub mod trouble;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};

use tempfile::TempDir;

/// Set by `cargo xtask test`: a fixture or tool that is not there is a failure, not a skip.
const REQUIRED: &str = "LAPSTRAKE_TEST_REQUIRED";

/// Ends a test with a counted line, for the reason given.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        println!("skipped: {}", format_args!($($reason)*));
        return;
    }};
}

/// Ends a test with a counted line unless these fixtures are there, by the names FROM has for them.
#[macro_export]
macro_rules! require_fixtures {
    ($($name:expr),+ $(,)?) => {
        for name in [$($name),+] {
            if !$crate::has_fixture(name) {
                $crate::skip!("no fixture {name} (`cargo xtask fixtures` makes it)");
            }
        }
    };
}

/// Ends a test with a counted line unless these programs are on the machine.
#[macro_export]
macro_rules! require_programs {
    ($($name:expr),+ $(,)?) => {
        for name in [$($name),+] {
            if !$crate::has_program(name) {
                $crate::skip!("no {name} on this machine");
            }
        }
    };
}

/// Returns the root of the checkout.
pub fn checkout() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Returns the folder of the fixtures; it may be empty.
pub fn fixtures() -> PathBuf {
    checkout().join("target/fixtures")
}

/// Returns whether a fixture was made.
///
/// # Panics
///
/// When it was not and the run is one that has to have it.
pub fn has_fixture(name: &str) -> bool {
    let (repository, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
    let path = match repository.split_once('/') {
        Some((registry, _)) if registry.contains('.') => repository.to_owned(),
        Some(_) => format!("docker.io/{repository}"),
        None => format!("docker.io/library/{repository}"),
    };
    let index = fs::read_to_string(fixtures().join(path).join("index.json")).unwrap_or_default();
    let found = index.contains(&format!("\"{tag}\""));
    assert!(found || !is_required(), "the fixture {name} is not there");
    found
}

/// Returns whether a program is on the machine.
///
/// # Panics
///
/// When it is not and the run is one that has to have it.
pub fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .any(|folder| folder.join(name).is_file());
    assert!(found || !is_required(), "{name} is not on this machine");
    found
}

fn is_required() -> bool {
    std::env::var_os(REQUIRED).is_some_and(|value| !value.is_empty())
}

/// One test's own world: a state directory, a configuration, a scratch folder.
#[derive(Debug)]
pub struct Environment {
    folder: TempDir,
    binary: PathBuf,
}

impl Environment {
    /// Makes an environment for a binary, with the fixtures as the only registries.
    ///
    /// # Panics
    ///
    /// When the temporary folder cannot be written.
    pub fn new(binary: impl AsRef<Path>) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("lapstrake-test-")
            .tempdir()
            .expect("a temporary folder can be made");
        for name in ["bin", "home", "work"] {
            fs::create_dir(folder.path().join(name)).expect("a folder can be made");
        }
        let binary = binary.as_ref().to_path_buf();
        std::os::unix::fs::symlink(&binary, folder.path().join("bin/lapstrake"))
            .expect("a link can be made");
        let environment = Self { folder, binary };
        environment.write_config(&configuration(&["docker.io", "gcr.io"]));
        environment
    }

    /// Returns the scratch folder, where commands run.
    pub fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    /// Returns the state directory.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Replaces the configuration.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    pub fn write_config(&self, text: &str) {
        fs::write(self.config(), text).expect("the configuration can be written");
    }

    /// Copies an example into the scratch folder and returns where it lies.
    ///
    /// # Panics
    ///
    /// When there is no such example.
    pub fn example(&self, name: &str) -> PathBuf {
        let copy = self.work().join(name);
        copy_tree(&checkout().join("examples").join(name), &copy);
        copy
    }

    /// Writes a file of the scratch folder, with its parents, and returns its path.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.work().join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).expect("a folder can be made");
        }
        fs::write(&path, content).expect("a file can be written");
        path
    }

    /// Returns the binary as a command that runs in the scratch folder.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = self.program(&self.binary);
        command.args(arguments);
        command
    }

    /// Returns a program as a command that sees this environment, with `lapstrake` on its `PATH`.
    pub fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut paths = vec![self.folder.path().join("bin")];
        paths.extend(std::env::split_paths(
            &std::env::var_os("PATH").unwrap_or_default(),
        ));
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::join_paths(paths).unwrap_or_default())
            .env("HOME", self.folder.path().join("home"))
            .env("LAPSTRAKE_ROOT", self.root())
            .env("LAPSTRAKE_CONFIG", self.config())
            .env("LC_ALL", "C.UTF-8")
            .current_dir(self.work())
            .stdin(Stdio::null());
        command
    }

    /// Runs the binary to its end.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Outcome {
        Outcome::of(&mut self.command(arguments))
    }

    /// Runs the binary, which has to succeed, and returns what it wrote.
    ///
    /// # Panics
    ///
    /// When it fails.
    #[track_caller]
    pub fn ok<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Outcome {
        self.run(arguments).success()
    }

    /// Opens this environment to an ordinary user: what lies in it, the binary and these fixtures.
    ///
    /// # Panics
    ///
    /// When this is not root's process.
    pub fn give_to(&self, uid: u32, fixtures: &[&str]) {
        let folder = self.folder.path();
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(folder, open).expect("a folder can be opened");
        let binary = folder.join("bin/lapstrake");
        fs::remove_file(&binary).expect("a link can be removed");
        fs::copy(&self.binary, &binary).expect("the binary can be copied");
        for name in fixtures {
            let path = Path::new("docker.io/library").join(name);
            let copy = folder.join("fixtures").join(&path);
            fs::create_dir_all(copy.parent().unwrap_or(folder)).expect("a folder can be made");
            copy_tree(&self::fixtures().join(&path), &copy);
        }
        let mirrors = folder.join("fixtures");
        let mirrors = mirrors.display();
        self.write_config(&format!(
            "[registry.\"docker.io\"]\nmirrors = [\"oci-layout:{mirrors}\"]\n"
        ));
        fs::create_dir_all(self.root()).expect("a folder can be made");
        give_tree(&self.root(), uid);
        give_tree(&self.work(), uid);
        give_tree(&folder.join("home"), uid);
    }

    /// Returns the binary as a command of an ordinary user to whom this environment was given.
    pub fn command_of<A: AsRef<OsStr>>(
        &self,
        uid: u32,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = self.program("setpriv");
        let id = uid.to_string();
        command
            .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
            .arg(self.folder.path().join("bin/lapstrake"))
            .args(arguments);
        command
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }
}

/// Returns a configuration in which the fixtures stand for some registries.
pub fn configuration(registries: &[&str]) -> String {
    let fixtures = fixtures();
    registries
        .iter()
        .map(|registry| {
            format!(
                "[registry.\"{registry}\"]\nmirrors = [\"oci-layout:{}\"]\n",
                fixtures.display()
            )
        })
        .collect()
}

/// How a program ended and what it wrote.
#[derive(Debug)]
pub struct Outcome {
    /// The command, to name in a failure.
    pub shown: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl Outcome {
    /// Runs a command to its end.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    pub fn of(command: &mut Command) -> Self {
        let shown = format!("{command:?}");
        let Output {
            status,
            stdout,
            stderr,
        } = command
            .output()
            .unwrap_or_else(|error| panic!("{shown} cannot be started: {error}"));
        Self {
            shown,
            status,
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        }
    }

    /// Returns itself if the program succeeded.
    ///
    /// # Panics
    ///
    /// When it did not.
    #[track_caller]
    pub fn success(self) -> Self {
        assert!(self.status.success(), "{}", self.told());
        self
    }

    /// Returns itself if the program ended with this code.
    ///
    /// # Panics
    ///
    /// When it ended otherwise.
    #[track_caller]
    pub fn fails_with(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{}", self.told());
        self
    }

    /// Checks that stderr has a text.
    ///
    /// # Panics
    ///
    /// When it has not.
    #[track_caller]
    pub fn says(&self, text: &str) -> &Self {
        assert!(
            self.stderr.contains(text),
            "stderr lacks {text:?}\n{}",
            self.told()
        );
        self
    }

    /// Returns everything that is known, for the message of a failed test.
    pub fn told(&self) -> String {
        format!(
            "{}: {}\n--- stdout\n{}\n--- stderr\n{}",
            self.shown, self.status, self.stdout, self.stderr
        )
    }
}

/// An id without an entry in `/etc/passwd` and `/etc/subuid`.
pub const USER_WITH_ONE_ID: u32 = 54321;

/// The user with subordinate ids that rootless tests run as.
const ORDINARY_USER: &str = "lapstrake-test";

/// Returns the id of an ordinary user with subordinate ids, made where there is none; `None` where none can
/// be made or what such a user needs is missing, which is said.
pub fn ordinary_user() -> Option<u32> {
    if !Path::new("/usr/bin/newuidmap").exists() {
        println!("skipped: rootless tests need newuidmap (package uidmap)");
        return None;
    }
    let id = || {
        let output = Command::new("id").args(["-u", ORDINARY_USER]).output();
        let text = String::from_utf8(output.ok()?.stdout).ok()?;
        text.trim().parse().ok()
    };
    // Another test may be adding it at this moment.
    let found: Option<u32> = id().or_else(|| {
        let _ = Command::new("useradd")
            .args(["--create-home", ORDINARY_USER])
            .output();
        id()
    });
    let ranges = fs::read_to_string("/etc/subuid").unwrap_or_default();
    if found.is_none() || !ranges.contains(&format!("{ORDINARY_USER}:")) {
        println!("skipped: there is no user with subordinate ids, and useradd made none");
        return None;
    }
    found
}

/// Returns whether this process may become any user.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|found| found.uid() == 0)
}

fn give_tree(path: &Path, uid: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(uid)).expect("a file can be given away");
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).expect("a folder can be read") {
            give_tree(&entry.expect("a folder can be read").path(), uid);
        }
    }
}

/// Copies a tree of files, folders and links, with their modes.
///
/// # Panics
///
/// When it cannot be read or written.
pub fn copy_tree(from: &Path, to: &Path) {
    let metadata = from
        .symlink_metadata()
        .unwrap_or_else(|error| panic!("{} cannot be read: {error}", from.display()));
    if metadata.is_symlink() {
        let target = fs::read_link(from).expect("a link can be read");
        std::os::unix::fs::symlink(target, to).expect("a link can be made");
    } else if metadata.is_dir() {
        fs::create_dir_all(to).expect("a folder can be made");
        for entry in fs::read_dir(from).expect("a folder can be read") {
            let name = entry.expect("a folder can be read").file_name();
            copy_tree(&from.join(&name), &to.join(&name));
        }
    } else {
        fs::copy(from, to).expect("a file can be copied");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_sees_only_its_environment() {
        let environment = Environment::new("/bin/true");
        let told = Outcome::of(&mut environment.program("env"))
            .success()
            .stdout;
        let mut names: Vec<&str> = told
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, _)| name)
            .collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "HOME",
                "LAPSTRAKE_CONFIG",
                "LAPSTRAKE_ROOT",
                "LC_ALL",
                "PATH"
            ]
        );
    }

    #[test]
    fn a_failure_is_told_whole() {
        let environment = Environment::new("/bin/true");
        let outcome = Outcome::of(
            environment
                .program("sh")
                .args(["-c", "echo a; echo b >&2; exit 3"]),
        );
        let outcome = outcome.fails_with(3);
        outcome.says("b");
        assert!(outcome.told().contains("--- stdout\na\n"));
    }

    #[test]
    fn an_example_is_copied_with_its_modes() {
        use std::os::unix::fs::PermissionsExt;
        let environment = Environment::new("/bin/true");
        let script = environment.example("builder-pattern").join("build.sh");
        let mode = fs::metadata(script).unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111);
    }
}
