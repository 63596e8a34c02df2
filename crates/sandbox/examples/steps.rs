//! Measures do-nothing steps against the bare price of the kernel: the same namespaces and an exec.
//!
//! `cargo run --release -p sandbox --example steps [COUNT]`; the bridge is measured with a second argument.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sandbox::{
    Content, Helper, Mount, Network, NetworkMode, Options, Overlay, Root, Source, Spec, Status,
    Stdio, Upper,
};

const BUSYBOX: &str = "/bin/busybox";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    sandbox::entry::run_if_requested();
    let isolation = sandbox::userns::enter_if_needed(&sandbox::userns::Config::default())?;
    println!("isolation: {}", isolation.rung);
    let count = std::env::args()
        .nth(1)
        .map_or(Ok(100), |text| text.parse())?;
    let directory = tempfile::tempdir()?;
    let lower = directory.path().join("lower");
    for name in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(lower.join(name))?;
    }
    for name in ["etc/hosts", "etc/resolv.conf"] {
        fs::write(lower.join(name), "")?;
    }
    fs::copy(BUSYBOX, lower.join("bin/busybox"))?;
    std::os::unix::fs::symlink("busybox", lower.join("bin/true"))?;
    fs::write(lower.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    let bare = measure(count, |_| {
        let status = std::process::Command::new("unshare")
            .args([
                "--pid", "--fork", "--ipc", "--uts", "--net", "--mount", "--cgroup", BUSYBOX,
                "true",
            ])
            .status()?;
        assert!(status.success());
        Ok(())
    })?;
    print("unshare(1) with the same namespaces", &bare);
    for (name, network, mode) in [
        ("step, host network", Network::Host, NetworkMode::Host),
        ("step, loopback only", Network::None, NetworkMode::Host),
        (
            "step, behind the bridge (changes the machine's network)",
            Network::Default,
            NetworkMode::Bridge,
        ),
    ] {
        if mode == NetworkMode::Bridge && std::env::args().len() < 3 {
            continue;
        }
        let start = Instant::now();
        let helper = Helper::start(&Options {
            network: mode,
            ..Options::default()
        })?;
        let started = start.elapsed();
        println!(
            "helper started in {:.2} ms, network {:?} {:?}",
            started.as_secs_f64() * 1000.0,
            helper.network(),
            helper.notes()
        );
        let times = measure(count, |index| {
            step(
                &helper,
                directory.path(),
                &lower,
                &format!("{name}{index}"),
                network,
            )
        })?;
        print(name, &times);
    }
    at_once(count, directory.path(), &lower)
}

/// Measures the throughput of steps that run beside each other.
fn at_once(count: usize, directory: &Path, lower: &Path) -> Result<(), Box<dyn std::error::Error>> {
    const THREADS: usize = 8;
    let helper = Helper::start(&Options {
        network: NetworkMode::Host,
        ..Options::default()
    })?;
    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let helper = &helper;
            scope.spawn(move || {
                for index in 0..count / THREADS {
                    let name = format!("together-{thread}-{index}");
                    step(helper, directory, lower, &name, Network::None).expect("a step");
                }
            });
        }
    });
    let steps = count / THREADS * THREADS;
    let each = start.elapsed().as_secs_f64() * 1000.0 / steps as f64;
    println!("{steps} steps, {THREADS} at once: {each:.2} ms each");
    Ok(())
}

fn step(
    helper: &Helper,
    directory: &Path,
    lower: &Path,
    name: &str,
    network: Network,
) -> Result<(), Box<dyn std::error::Error>> {
    let layer = directory.join(name);
    let (upper, work): (PathBuf, PathBuf) = (layer.join("upper"), layer.join("work"));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let overlay = Overlay {
        lowers: vec![lower.to_owned()],
        upper: Some(Upper { upper, work }),
    };
    let spec = Spec {
        network,
        ..Spec::new(Root::Overlay(overlay), vec!["/bin/true".to_owned()])
    };
    // As every RUN has them.
    let file = |target: &str| Mount {
        target: target.to_owned(),
        source: Source::File {
            content: Content(b"127.0.0.1 localhost\n".to_vec()),
            mode: 0o644,
            uid: 0,
            gid: 0,
        },
        read_only: true,
    };
    let spec = Spec {
        mounts: vec![file("/etc/hosts"), file("/etc/resolv.conf")],
        ..spec
    };
    let exit = helper
        .spawn(&spec, Stdio::default(), Vec::new(), Vec::new())?
        .wait()?;
    assert_eq!(exit.status, Status::Code(0));
    Ok(())
}

fn measure(
    count: usize,
    mut one: impl FnMut(usize) -> Result<(), Box<dyn std::error::Error>>,
) -> Result<Vec<Duration>, Box<dyn std::error::Error>> {
    let mut times = Vec::with_capacity(count);
    for index in 0..count {
        let start = Instant::now();
        one(index)?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times)
}

fn print(name: &str, times: &[Duration]) {
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
    println!(
        "{name:60} min {:6.2}  p50 {:6.2}  p90 {:6.2} ms",
        at(0),
        at(50),
        at(90)
    );
}
