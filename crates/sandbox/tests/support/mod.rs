//! A busybox tree to run commands in, and what runs them.
#![allow(dead_code, reason = "each test crate uses a part of it")]

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use sandbox::{
    Exit, Helper, Mount, Network, Options, Overlay, Root, SandboxError, Source, Spec, Status,
    Stdio, Upper,
};

sandbox::answer_as_helper_before_main!();

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
    pub(crate) helper: Helper,
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
        Bench::with(&Options::default())
    }

    pub(crate) fn with(options: &Options) -> Bench {
        let directory = tempfile::tempdir().expect("a directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))
            .expect("permissions");
        make_tree(&directory.path().join("lower"));
        let helper = Helper::start(options).expect("a helper");
        Bench { directory, helper }
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
        let (upper, work) = (self.changes(name), self.path(name).join("work"));
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
        run(&self.helper, spec, Vec::new(), Vec::new())
    }

    pub(crate) fn run_shell(&self, script: &str) -> Outcome {
        self.run(&self.shell("step", script))
    }
}

/// Runs a step and collects what it prints.
pub(crate) fn run(
    helper: &Helper,
    spec: &Spec,
    sources: Vec<OwnedFd>,
    keep: Vec<OwnedFd>,
) -> Outcome {
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
    let exit = helper
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
