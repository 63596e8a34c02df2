//! A busybox tree to run commands in, and what runs them.
#![allow(dead_code, reason = "each test crate uses a part of it")]

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use sandbox::{
    Executor, Exit, Helper, Mount, Network, OciExecutor, Options, Overlay, Root, SandboxError,
    Source, Spec, Status, Stdio, Upper,
};

/// Set for a test program that is to run as the ordinary user who started it, in its own user namespace.
pub(crate) const ROOTLESS: &str = "LAPSTRAKE_TEST_ROOTLESS";

/// The user that rootless tests run as.
const USER: &str = "lapstrake-test";

#[used]
#[unsafe(link_section = ".init_array")]
static ENTER_BEFORE_THREADS: extern "C" fn() = enter_before_threads;

/// The test harness starts threads before a test could enter a user namespace.
extern "C" fn enter_before_threads() {
    sandbox::entry::run_if_requested();
    if rootless()
        && let Err(error) = sandbox::userns::enter_if_needed(&sandbox::userns::Config::default())
    {
        eprintln!("no user namespace: {}", chain(&error));
        std::process::exit(3);
    }
}

/// Whether this is the test program as an ordinary user.
pub(crate) fn rootless() -> bool {
    std::env::var_os(ROOTLESS).is_some_and(|value| value == "1")
}

/// Set for a test program whose steps an OCI runtime of this name is to run.
const RUNTIME: &str = "LAPSTRAKE_TEST_RUNTIME";

/// Returns the name of the runtime that is tested; `None` for the sandbox itself.
pub(crate) fn runtime() -> Option<String> {
    std::env::var(RUNTIME).ok()
}

/// Whether this is about the sandbox itself; says what a runtime can't do.
pub(crate) fn native(what_it_lacks: &str) -> bool {
    match runtime() {
        None => true,
        Some(name) => {
            skip(&format!("{name}: {what_it_lacks}"));
            false
        }
    }
}

/// Makes tests that run all others of the program again: as an ordinary user, and by each OCI runtime that is
/// installed, as root and as an ordinary user.
#[allow(unused_macros, reason = "not of each test crate")]
macro_rules! everything_holds {
    ($($without:literal),*) => {
        mod everything_holds {
            const WITHOUT: &[&str] = &[$($without),*];

            #[test]
            fn for_an_ordinary_user() {
                crate::support::run_rootless();
            }

            #[test]
            fn by_crun() {
                crate::support::run_by("crun", false, WITHOUT);
            }

            #[test]
            fn by_crun_for_an_ordinary_user() {
                crate::support::run_by("crun", true, WITHOUT);
            }

            #[test]
            fn by_runc() {
                crate::support::run_by("runc", false, WITHOUT);
            }

            #[test]
            fn by_runc_for_an_ordinary_user() {
                crate::support::run_by("runc", true, WITHOUT);
            }
        }
    };
}
#[allow(unused_imports, reason = "not of each test crate")]
pub(crate) use everything_holds;

const ALL_BUT_THESE: [&str; 4] = ["--skip", "everything_holds", "--test-threads", "2"];

/// Runs the tests of this program again as a real ordinary user.
pub(crate) fn run_rootless() {
    if runtime().is_none()
        && let Some(text) = run_as_user(&ALL_BUT_THESE, "ip link set lo up; exec \"$@\"", &[])
    {
        count("native, ordinary user", &text);
    }
}

/// Runs the tests of this program again with steps run by an OCI runtime.
pub(crate) fn run_by(name: &str, as_user: bool, without: &[&str]) {
    if runtime().is_some() || rootless() || !able() {
        return;
    }
    if let Err(error) = sandbox::Runtime::find(name) {
        return skip(&chain(&error));
    }
    let mut arguments = ALL_BUT_THESE.to_vec();
    for test in without {
        arguments.extend(["--skip", test]);
    }
    if as_user {
        let script = "ip link set lo up; exec \"$@\"";
        if let Some(text) = run_as_user(&arguments, script, &[(RUNTIME, name)]) {
            count(&format!("{name}, ordinary user"), &text);
        }
        return;
    }
    let text = run_again(&arguments, (RUNTIME, name));
    count(&format!("{name}, root"), &text);
}

/// Runs this test program again with arguments and a variable, and returns what it printed.
pub(crate) fn run_again(arguments: &[&str], variable: (&str, &str)) -> String {
    let output = std::process::Command::new("/proc/self/exe")
        .arg("--nocapture")
        .args(arguments)
        .env(variable.0, variable.1)
        .output()
        .expect("this program");
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    println!("{text}");
    text
}

/// Says how many tests held, and how many of them were skipped.
fn count(who: &str, text: &str) {
    let passed = text.lines().filter(|line| line.ends_with("... ok")).count();
    let skipped = text.matches("skipped: ").count();
    eprintln!("{who}: {passed} passed, with {skipped} skips");
}

/// Runs this program with arguments as a real ordinary user. `script` is a shell's, as root, in mount and network
/// namespaces of its own, and ends by executing its arguments.
///
/// Returns what it printed; `None` when this machine has no such user.
pub(crate) fn run_as_user(
    arguments: &[&str],
    script: &str,
    env: &[(&str, &str)],
) -> Option<String> {
    if rootless() || !able() {
        return None;
    }
    if !Path::new("/usr/bin/newuidmap").exists() {
        skip("rootless tests need newuidmap (package uidmap)");
        return None;
    }
    let id = || {
        std::process::Command::new("id")
            .arg("-u")
            .arg(USER)
            .output()
    };
    let known = || id().is_ok_and(|output| output.status.success());
    if !known() {
        // Another test program may be adding it at this moment.
        let _ = std::process::Command::new("useradd")
            .args(["--create-home", USER])
            .output();
    }
    if !known() {
        skip("rootless tests need a user, and useradd made none");
        return None;
    }
    let directory = tempfile::tempdir().expect("a directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
    let program = directory.path().join("tests");
    fs::copy("/proc/self/exe", &program).expect("a copy");
    let output = std::process::Command::new("unshare")
        .args(["--mount", "--net", "sh", "-ec", script, "sh"])
        .args(["setpriv", "--reuid", USER, "--regid", USER, "--init-groups"])
        .arg(&program)
        .arg("--nocapture")
        .args(arguments)
        .env(ROOTLESS, "1")
        .envs(env.iter().copied())
        .current_dir("/")
        .output()
        .expect("unshare");
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    println!("{text}");
    Some(text)
}

const BUSYBOX: &str = "/bin/busybox";

/// Says why a test does not run.
pub(crate) fn skip(reason: &str) {
    eprintln!("skipped: {reason}");
}

/// Whether this machine can run the tests at all; says so when not.
pub(crate) fn able() -> bool {
    if !rustix::process::geteuid().is_root() {
        skip("needs root");
        return false;
    }
    if !Path::new(BUSYBOX).exists() {
        skip("needs /bin/busybox (busybox-static)");
        return false;
    }
    true
}

/// A directory with a busybox tree as the lower of overlays, and a helper.
pub(crate) struct Bench {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) helper: std::sync::Arc<Helper>,
    /// The helper, or the runtime that is tested.
    pub(crate) executor: Box<dyn Executor>,
}

/// One root and what was printed and left.
pub(crate) struct Outcome {
    pub(crate) exit: Result<Exit, SandboxError>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    pub(crate) fn status(&self) -> Status {
        match &self.exit {
            Ok(exit) => exit.status.clone(),
            Err(error) => panic!("the step was not run: {}", chain(error)),
        }
    }

    /// Returns what was printed by a command that must have succeeded.
    #[track_caller]
    pub(crate) fn printed(&self) -> &str {
        assert_eq!(self.status(), Status::Code(0), "stderr: {}", self.stderr);
        self.stdout.trim_end()
    }
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

impl Bench {
    pub(crate) fn new() -> Bench {
        // The machine's own network is left alone.
        Bench::with(&Options {
            network: sandbox::NetworkMode::Host,
            ..Options::default()
        })
    }

    pub(crate) fn with(options: &Options) -> Bench {
        let directory = tempfile::tempdir().expect("a directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))
            .expect("permissions");
        make_tree(&directory.path().join("lower"));
        let helper = std::sync::Arc::new(Helper::start(options).expect("a helper"));
        let runtime = runtime().and_then(|name| sandbox::Runtime::find(&name).expect("a runtime"));
        let executor: Box<dyn Executor> = match runtime {
            Some(runtime) => Box::new(OciExecutor::new(std::sync::Arc::clone(&helper), runtime)),
            None => Box::new(std::sync::Arc::clone(&helper)),
        };
        Bench {
            directory,
            helper,
            executor,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn lower(&self) -> PathBuf {
        self.path("lower")
    }

    /// Returns a fresh root over the tree; its changes are in `changes(name)`.
    pub(crate) fn root(&self, name: &str) -> Root {
        Root::Overlay(self.overlay(name))
    }

    pub(crate) fn overlay(&self, name: &str) -> Overlay {
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (upper, work) = (
            self.changes(name),
            self.path(name).join(format!("work{number}")),
        );
        fs::create_dir_all(&upper).expect("upper");
        fs::create_dir_all(&work).expect("work");
        Overlay {
            lowers: vec![self.lower()],
            upper: Some(Upper { upper, work }),
        }
    }

    pub(crate) fn changes(&self, name: &str) -> PathBuf {
        self.path(name).join("upper")
    }

    /// Returns a spec that runs a shell script with loopback only.
    pub(crate) fn shell(&self, name: &str, script: &str) -> Spec {
        let args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        Spec {
            network: Network::None,
            ..Spec::new(self.root(name), args)
        }
    }

    pub(crate) fn run(&self, spec: &Spec) -> Outcome {
        run(&*self.executor, spec, Vec::new(), Vec::new())
    }

    pub(crate) fn run_shell(&self, script: &str) -> Outcome {
        self.run(&self.shell("step", script))
    }
}

/// Runs a step and collects what it prints.
pub(crate) fn run(
    executor: &dyn Executor,
    spec: &Spec,
    sources: Vec<OwnedFd>,
    keep: Vec<OwnedFd>,
) -> Outcome {
    if let Root::Overlay(Overlay {
        upper: Some(Upper { work, .. }),
        ..
    }) = &spec.root
    {
        // One that served a mount serves no other.
        fs::remove_dir_all(work)
            .and_then(|()| fs::create_dir(work))
            .expect("an empty directory");
    }
    let (stdout, stdout_writer) = std::io::pipe().expect("a pipe");
    let (stderr, stderr_writer) = std::io::pipe().expect("a pipe");
    let stdio = Stdio {
        stdin: None,
        stdout: Some(stdout_writer.into()),
        stderr: Some(stderr_writer.into()),
    };
    let collect = |mut pipe: std::io::PipeReader| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).expect("output");
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let (stdout, stderr) = (collect(stdout), collect(stderr));
    let exit = executor
        .spawn(spec, stdio, sources, keep)
        .and_then(|running| running.wait());
    Outcome {
        exit,
        stdout: stdout.join().expect("stdout"),
        stderr: stderr.join().expect("stderr"),
    }
}

pub(crate) fn make_tree(root: &Path) {
    for directory in ["bin", "etc", "root", "home/app"] {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    fs::create_dir(root.join("tmp")).expect("a directory");
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("permissions");
    fs::copy(BUSYBOX, root.join("bin/busybox")).expect("busybox");
    let list = std::process::Command::new(BUSYBOX)
        .arg("--list")
        .output()
        .expect("a list")
        .stdout;
    for applet in String::from_utf8(list)
        .expect("text")
        .lines()
        .filter(|name| *name != "busybox")
    {
        symlink("busybox", root.join("bin").join(applet)).expect("a link");
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n",
    )
    .expect("passwd");
    fs::write(
        root.join("etc/group"),
        "root:x:0:\napp:x:1001:\nextra:x:50:app\n",
    )
    .expect("group");
}

pub(crate) fn mount(target: &str, source: Source) -> Mount {
    Mount {
        target: target.to_owned(),
        source,
        read_only: false,
    }
}

pub(crate) fn bind(path: PathBuf, target: &str) -> Mount {
    mount(
        target,
        Source::Bind {
            path,
            subpath: String::new(),
        },
    )
}

/// Returns a 64-bit program that makes one system call and exits with its error number.
pub(crate) fn program_of_call(number: u32, arguments: [u32; 2]) -> Vec<u8> {
    let mut code = vec![0xbf];
    code.extend(arguments[0].to_le_bytes()); // mov edi, first
    code.push(0xbe);
    code.extend(arguments[1].to_le_bytes()); // mov esi, second
    code.extend([0x31, 0xd2, 0x45, 0x31, 0xd2]); // xor edx, edx; xor r10d, r10d
    code.push(0xb8);
    code.extend(number.to_le_bytes()); // mov eax, number
    code.extend([0x0f, 0x05]); // syscall
    code.extend([0xf7, 0xd8, 0x89, 0xc7]); // neg eax; mov edi, eax
    code.extend([0xb8, 60, 0, 0, 0, 0x0f, 0x05]); // exit
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    elf.extend(0x40_0078_u64.to_le_bytes()); // entry: after the headers
    elf.extend(64_u64.to_le_bytes());
    elf.extend([0; 12]);
    elf.extend([64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for value in [
        0_u64,
        0x40_0000,
        0x40_0000,
        120 + code.len() as u64,
        120 + code.len() as u64,
        0x1000,
    ] {
        elf.extend(value.to_le_bytes());
    }
    elf.extend(code);
    elf
}

/// Returns a 32-bit program that makes one system call and exits with its error number.
pub(crate) fn program_of_call_i386(number: u32) -> Vec<u8> {
    let mut code = vec![0x31, 0xdb, 0x31, 0xc9, 0x31, 0xd2, 0xb8]; // ebx = ecx = edx = 0
    code.extend(number.to_le_bytes());
    code.extend([
        0xcd, 0x80, 0xf7, 0xd8, 0x89, 0xc3, 0xb8, 1, 0, 0, 0, 0xcd, 0x80,
    ]);
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend([2, 0, 3, 0, 1, 0, 0, 0]);
    for value in [0x0804_8054_u32, 52, 0, 0] {
        elf.extend(value.to_le_bytes());
    }
    elf.extend([52, 0, 32, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let length = 84 + u32::try_from(code.len()).expect("short");
    for value in [
        1_u32,
        0,
        0x0804_8000,
        0x0804_8000,
        length,
        length,
        5,
        0x1000,
    ] {
        elf.extend(value.to_le_bytes());
    }
    elf.extend(code);
    elf
}

pub(crate) fn write_program(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("a program");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("permissions");
}
