//! `cargo xtask peers`: other builders, in a root of their own, so that nothing of the machine is touched.
//!
//! Docker (whose daemon holds BuildKit), its `buildx` and buildah come from Debian's current stable release. They
//! run in a mount namespace in which the root has the machine's `/proc`, `/sys` and `/dev`, and the folder of the
//! measurements at the same path as outside.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

use crate::command::{command, output};
use crate::tools::{self, Tool};
use crate::{fixtures, workspace};

/// The release whose builders are compared with.
const SUITE: &str = "trixie";

/// What is installed; the network tools are what Docker and buildah refuse to start without.
const PACKAGES: &str = "docker.io,docker-cli,docker-buildx,buildah,netavark,aardvark-dns,crun,git,ca-certificates,iptables";

const TOOLS: &[Tool] = &[
    Tool {
        program: "mmdebstrap",
        package: "mmdebstrap",
    },
    Tool {
        program: "docker-registry",
        package: "docker-registry",
    },
    Tool {
        program: "skopeo",
        package: "skopeo",
    },
];

/// The base images that the workloads begin with.
const IMAGES: [&str; 2] = ["busybox:latest", "golang:1.23-alpine"];

/// Makes the root, once.
pub(crate) fn make() -> anyhow::Result<()> {
    if is_there() {
        println!("the other builders are in {}", root().display());
        return Ok(());
    }
    if !tools::is_root() {
        bail!("the other builders are installed by mmdebstrap as root: run this as root");
    }
    tools::ensure(TOOLS)?;
    let half = root().with_extension("half");
    if half.exists() {
        fs::remove_dir_all(&half).context("failed to remove a half-made root")?;
    }
    fs::create_dir_all(half.parent().unwrap_or(Path::new("/")))?;
    println!("installing Docker and buildah of Debian {SUITE} into a root of their own");
    output(
        command("mmdebstrap", ["--quiet", "--mode=root", "--variant=apt"])
            .arg("--aptopt=APT::Install-Recommends \"false\"")
            .arg(format!("--include={PACKAGES}"))
            .arg(SUITE)
            .arg(&half),
    )?;
    fs::rename(&half, root()).context("failed to name the finished root")?;
    println!("the other builders are in {}", root().display());
    Ok(())
}

/// Returns whether the root has been made.
pub(crate) fn is_there() -> bool {
    root().join("usr/bin/buildah").exists()
}

fn root() -> PathBuf {
    workspace::root().join("target/peers/root")
}

/// The other builders with their daemon and a registry of the base images, as long as they are measured.
pub(crate) struct Peers {
    work: PathBuf,
    registry: Child,
    daemon: Child,
}

impl Peers {
    /// Starts what the other builders need. `work` is seen inside at the same path.
    pub(crate) fn start(work: &Path) -> anyhow::Result<Self> {
        let (registry, address) = registry(work)?;
        let mut daemon = match daemon(work, &address) {
            Ok(daemon) => daemon,
            Err(error) => {
                end(registry);
                return Err(error);
            }
        };
        // The daemon's socket is asked rather than waited for: a daemon that ended is noticed at once.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let mut peers = None;
        while std::time::Instant::now() < deadline {
            if daemon.try_wait()?.is_some() {
                break;
            }
            let asked = inside(&daemon)
                .args(["docker", "version"])
                .env("DOCKER_HOST", socket(work))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            if asked.is_ok_and(|status| status.success()) {
                peers = Some(());
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        if peers.is_none() {
            let log = fs::read_to_string(work.join("dockerd.log")).unwrap_or_default();
            end(daemon);
            end(registry);
            let lines: Vec<&str> = log.lines().collect();
            bail!(
                "the daemon of Docker did not start:\n{}",
                lines[lines.len().saturating_sub(5)..].join("\n")
            );
        }
        Ok(Self {
            work: work.to_owned(),
            registry,
            daemon,
        })
    }

    /// Returns a command inside the root, where `DOCKER_HOST` names the daemon.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = inside(&self.daemon);
        command
            .arg(program)
            .env("DOCKER_HOST", socket(&self.work))
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null());
        command
    }

    /// Returns the words that build with buildah.
    ///
    /// crun refuses the unified cgroups beside those of version 1, so that they are hidden from it; and where the
    /// machine allows no higher limits, buildah's own wish for them fails.
    pub(crate) fn buildah(&self) -> Command {
        let mut command = self.command("unshare");
        command.args(["--mount", "bash", "-c", BUILDAH, "buildah"]);
        command.arg(self.work.join("buildah"));
        command
    }
}

const BUILDAH: &str = "state=$1; shift
umount /sys/fs/cgroup/unified 2>/dev/null; umount /sys/fs/cgroup/unified 2>/dev/null
exec buildah --root \"$state\" --runroot /run/buildah --storage-driver overlay bud --layers --network host \
--ulimit nofile=$(ulimit -n):$(ulimit -Hn) --ulimit nproc=$(ulimit -u | sed s/unlimited/-1/):$(ulimit -Hu | sed s/unlimited/-1/) \"$@\"";

impl Drop for Peers {
    fn drop(&mut self) {
        for child in [&mut self.daemon, &mut self.registry] {
            terminate(child);
        }
    }
}

fn end(mut child: Child) {
    terminate(&mut child);
}

/// Lets a child end by itself: the daemon unmounts what it mounted.
fn terminate(child: &mut Child) {
    if let Some(id) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
    }
    let _ = child.wait();
}

fn socket(work: &Path) -> String {
    format!("unix://{}", work.join("docker.sock").display())
}

fn inside(daemon: &Child) -> Command {
    let mut command = Command::new("nsenter");
    command
        .args(["--mount", "--target", &daemon.id().to_string()])
        .arg("chroot")
        .arg(root());
    command
}

/// Starts a registry with the base images on loopback.
fn registry(work: &Path) -> anyhow::Result<(Child, String)> {
    // The port is free now; that nobody takes it before the registry does is likely enough for a measurement.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let storage = work.join("registry");
    fs::create_dir_all(&storage)?;
    let config = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
        storage.display()
    );
    let file = work.join("registry.yml");
    fs::write(&file, config)?;
    let child = command("docker-registry", ["serve"])
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("failed to start docker-registry")?;
    fixtures::make(&IMAGES)?;
    for image in IMAGES {
        let (name, tag) = image.split_once(':').context("an image has a tag")?;
        let layout = workspace::fixtures().join("docker.io/library").join(name);
        let copied = output(
            command("skopeo", ["copy", "--quiet", "--retry-times", "5"])
                .args(["--dest-tls-verify=false"])
                .arg(format!("oci:{}:{tag}", layout.display()))
                .arg(format!("docker://{address}/library/{image}")),
        );
        if let Err(error) = copied {
            end(child);
            return Err(error);
        }
    }
    Ok((child, address))
}

/// Starts the daemon of Docker in a mount namespace of its own.
fn daemon(work: &Path, registry: &str) -> anyhow::Result<Child> {
    let root = root();
    let mirrors = format!(
        "unqualified-search-registries = [\"docker.io\"]\n[[registry]]\nlocation = \"docker.io\"\n\
         [[registry.mirror]]\nlocation = \"{registry}\"\ninsecure = true\n"
    );
    fs::create_dir_all(root.join("etc/containers"))?;
    fs::write(root.join("etc/containers/registries.conf"), mirrors)?;
    fs::create_dir_all(root.join("etc/docker"))?;
    // Only with containerd's image store can the daemon write OCI archives.
    fs::write(
        root.join("etc/docker/daemon.json"),
        "{\"features\": {\"containerd-snapshotter\": true}}\n",
    )?;
    let log = fs::File::create(work.join("dockerd.log"))?;
    command("unshare", ["--mount", "bash", "-ec", DAEMON, "dockerd"])
        .arg(&root)
        .arg(work)
        .arg(registry)
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("failed to start the daemon of Docker")
}

const DAEMON: &str = "root=$1 work=$2 registry=$3
mount --make-rprivate /
mount --bind \"$root\" \"$root\"
mount -t proc proc \"$root/proc\"
mount --rbind /sys \"$root/sys\"
mount --rbind /dev \"$root/dev\"
mount -t tmpfs tmpfs \"$root/run\"
mkdir -p \"$root$work\"
mount --bind \"$work\" \"$root$work\"
exec chroot \"$root\" /usr/sbin/dockerd -H \"unix://$work/docker.sock\" --data-root \"$work/docker\" \
--exec-root /run/docker --pidfile /run/docker.pid --bridge=none --iptables=false \
--registry-mirror \"http://$registry\" --insecure-registry \"$registry\"";

/// Returns the version a program of the root names.
pub(crate) fn version(peers: &Peers, program: &str, words: &[&str]) -> anyhow::Result<String> {
    let said = output(peers.command(program).args(words))?;
    Ok(said.lines().next().unwrap_or_default().trim().to_owned())
}
