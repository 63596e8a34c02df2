//! The known ways out of a sandbox, one test each: nothing outside the root changes or is seen.

mod support;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use sandbox::{Network, Security, Source, Spec, Status};
use support::{Bench, able, bind, mount, rootless, skip};

support::everything_holds!();

const MARKER: &str = "outside-of-the-root";

/// A directory of the host that no step may reach, and what is in it.
struct Outside {
    directory: tempfile::TempDir,
}

impl Outside {
    fn new() -> Outside {
        let directory = tempfile::tempdir().expect("a directory");
        // Anybody may write: only the sandbox stands between a step and this.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777))
            .expect("permissions");
        fs::write(directory.path().join(MARKER), MARKER).expect("a file");
        Outside { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    #[track_caller]
    fn unchanged(&self) {
        let names: Vec<_> = fs::read_dir(self.path())
            .expect("read")
            .map(|entry| entry.expect("entry").file_name())
            .collect();
        assert_eq!(names, [MARKER]);
        assert_eq!(
            fs::read_to_string(self.path().join(MARKER)).expect("a file"),
            MARKER
        );
    }
}

/// CVE-2024-21626, CVE-2016-9962: a descriptor of the host that the command inherits.
#[test]
fn no_descriptor_of_the_builder_reaches_the_command() {
    if !able() {
        return;
    }
    let outside = Outside::new();
    let leaked = fs::File::open(outside.path()).expect("open");
    // As a careless library leaves one: it survives the exec of the helper.
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).expect("not close-on-exec");
    let bench = Bench::new();
    let count = "ls -l /proc/self/fd | grep -c -- '->'; ls -l /proc/1/fd 2>&1 | grep -c -- '->'";
    let counted = bench.run_shell(count).stdout;
    match support::runtime() {
        None => assert_eq!(counted, "3\n0\n"),
        // Process 1 is the shell itself then, with pipes to what it runs.
        Some(_) => assert!(counted.starts_with("3\n"), "{counted}"),
    }
    let all = "for fd in $(seq 3 40); do ls /proc/self/fd/$fd/ /proc/1/fd/$fd/ 2>/dev/null; done; ls /proc/1/cwd/ /proc/1/root/ 2>/dev/null";
    let outcome = bench.run_shell(all);
    assert!(!outcome.stdout.contains(MARKER), "{}", outcome.stdout);
    drop(leaked);
    outside.unchanged();
}

/// The old root and what was attached to it while the world was built.
#[test]
fn nothing_lies_over_the_root() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let look = "ls -a / > /tmp/root; for up in /.. /../.. /proc/self/root/..; do ls -a $up | cmp - /tmp/root || echo $up; done;
        grep -c ' / / ' /proc/self/mountinfo";
    let mut spec = bench.shell("over-the-root", look);
    spec.mounts.push(mount(
        "/tmp",
        Source::Tmpfs {
            size: None,
            mode: 0o1777,
        },
    ));
    for name in ["/run/first", "/run/second"] {
        spec.mounts.push(mount(
            name,
            Source::File {
                content: sandbox::Content(b"secret".to_vec()),
                mode: 0o400,
                uid: 0,
                gid: 0,
            },
        ));
    }
    assert_eq!(bench.run(&spec).stdout, "1\n");
}

/// CVE-2024-21626: a working directory that is a descriptor of the host.
#[test]
fn the_working_directory_cannot_be_a_descriptor() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    for process in ["self", "1", "thread-self"] {
        for fd in 0..16 {
            let mut spec = bench.shell(
                &format!("{process}{fd}"),
                "pwd -P >&2; ls -a . .. ../.. ../../.. ../../../..",
            );
            spec.cwd = format!("/proc/{process}/fd/{fd}");
            let outcome = bench.run(&spec);
            if outcome.exit.is_ok() {
                assert!(
                    !outcome.stderr.contains("unreachable"),
                    "{} {}",
                    spec.cwd,
                    outcome.stderr
                );
                assert!(
                    !outcome.stdout.contains("lower"),
                    "{} {}",
                    spec.cwd,
                    outcome.stdout
                );
            }
        }
    }
}

/// CVE-2024-23651, CVE-2024-23653 kin, CVE-2021-30465: targets that are links of the image.
#[test]
fn targets_of_mounts_that_are_links_stay_inside() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let outside = Outside::new();
    let lower = bench.lower();
    symlink(outside.path(), lower.join("absolute")).expect("a link");
    let up = "../".repeat(20)
        + outside
            .path()
            .to_str()
            .expect("text")
            .trim_start_matches('/');
    symlink(&up, lower.join("relative")).expect("a link");
    symlink("/proc/1/root", lower.join("magic")).expect("a link");
    symlink("/proc/self/cwd", lower.join("cwd")).expect("a link");
    for target in [
        "/absolute/new/x",
        "/relative/new/x",
        "/absolute",
        "/../../absolute/y",
        "/magic/new",
        "/cwd/new",
    ] {
        let mut spec = bench.shell("step", "true");
        let tmpfs = Source::Tmpfs {
            size: None,
            mode: 0o755,
        };
        let file = Source::File {
            content: sandbox::Content(b"x".to_vec()),
            mode: 0o644,
            uid: 0,
            gid: 0,
        };
        for source in [tmpfs, file] {
            spec.mounts = vec![mount(target, source)];
            // Whether it succeeds inside or is refused is not the point here.
            let _ = bench.run(&spec).exit;
            outside.unchanged();
        }
    }
}

/// CVE-2024-9407, CVE-2024-23651: sources that are links or climb out.
#[test]
fn sources_of_mounts_stay_inside_what_they_are_a_part_of() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let outside = Outside::new();
    let context = bench.path("context");
    fs::create_dir(&context).expect("a directory");
    symlink(outside.path(), context.join("absolute")).expect("a link");
    symlink("../".repeat(20), context.join("up")).expect("a link");
    symlink("/proc/self/root", context.join("magic")).expect("a link");
    let outside_text = outside.path().to_str().expect("text");
    for subpath in [
        "absolute".to_owned(),
        "absolute/..".to_owned(),
        "../../../../../../etc".to_owned(),
        format!("up{outside_text}"),
        format!("../../../../{outside_text}"),
        format!("magic{outside_text}"),
    ] {
        let mut spec = bench.shell("step", "ls -a /mnt; cat /mnt/outside*; touch /mnt/escaped");
        spec.mounts = vec![mount(
            "/mnt",
            Source::Bind {
                path: context.clone(),
                subpath: subpath.clone(),
            },
        )];
        let outcome = bench.run(&spec);
        assert!(
            !outcome.stdout.contains(MARKER) && !outcome.stdout.contains("passwd"),
            "{subpath}: {}",
            outcome.stdout
        );
        outside.unchanged();
        let _ = fs::remove_file(context.join("escaped"));
    }
}

/// CVE-2024-23652, CVE-2021-30465: another step swaps directories for links while mount points are made.
#[test]
fn a_race_in_a_shared_mount_does_not_lead_out() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let outside = Outside::new();
    let cache = bench.path("cache");
    fs::create_dir_all(cache.join("a/b")).expect("a directory");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let link = cache.join("link");
            while !stop.load(Ordering::Relaxed) {
                let _ = symlink(outside.path(), &link);
                let _ = fs::rename(cache.join("a"), cache.join("moved"));
                let _ = fs::rename(&link, cache.join("a"));
                let _ = fs::remove_file(cache.join("a"));
                let _ = fs::rename(cache.join("moved"), cache.join("a"));
            }
        });
        for round in 0..60 {
            let mut spec = bench.shell("step", "true");
            spec.mounts = vec![
                bind(cache.clone(), "/cache"),
                mount(
                    &format!("/cache/a/b/new{round}/x"),
                    Source::Tmpfs {
                        size: None,
                        mode: 0o755,
                    },
                ),
            ];
            let _ = bench.run(&spec).exit;
        }
        stop.store(true, Ordering::Relaxed);
    });
    outside.unchanged();
}

/// Stubs are taken away by name after a hostile step: it swapped their directory for a link.
#[test]
fn taking_mount_points_away_follows_no_link_of_the_step() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let outside = Outside::new();
    fs::create_dir(outside.path().join("stub")).expect("a directory");
    let script = format!(
        "mv /d /moved 2>/dev/null; rm -rf /d; ln -s {} /d; ls -ld /d",
        outside.path().display()
    );
    let mut spec = bench.shell("step", &script);
    spec.mounts = vec![mount(
        "/e/../d/stub",
        Source::Tmpfs {
            size: None,
            mode: 0o755,
        },
    )];
    let _ = bench.run(&spec).exit;
    assert!(outside.path().join("stub").is_dir());
    fs::remove_dir(outside.path().join("stub")).expect("still there");
    outside.unchanged();
}

/// Writes to `/proc` and `/sys` that would change the host.
#[test]
fn settings_of_the_host_can_not_be_written() {
    if !able() {
        return;
    }
    let files = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/panic_on_oom",
        "/proc/sys/kernel/hostname",
        "/sys/kernel/uevent_helper",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
    ];
    let read = || files.map(|file| fs::read_to_string(file).ok());
    let before = read();
    let bench = Bench::new();
    let script = "for f in FILES; do echo '|/tmp/evil' > $f && echo WRITTEN; chmod 777 $f && echo CHANGED; done; mount -o remount,rw /proc/sys && echo WRITTEN; true";
    let outcome = bench.run_shell(&script.replace("FILES", &files.join(" ")));
    assert!(!outcome.stdout.contains("WRITTEN"), "{}", outcome.stdout);
    assert_eq!(read(), before);
}

/// CVE-2025-31133: a mount over `/dev` whose `null` is a link to what must stay hidden or read-only.
#[test]
fn what_hides_is_never_the_steps_own() {
    if !able() || !support::native("a mount at /dev is refused") {
        return;
    }
    let bench = Bench::new();
    let dev = bench.path("dev");
    fs::create_dir(&dev).expect("a directory");
    symlink("/proc/sys/kernel/core_pattern", dev.join("null")).expect("a link");
    let script =
        "cat /proc/keys /proc/timer_list; echo x > /proc/keys; echo x > /proc/timer_list; true";
    let mut spec = bench.shell("step", script);
    spec.mounts = vec![bind(dev, "/dev")];
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("a setting");
    let outcome = bench.run(&spec);
    assert_eq!(outcome.printed(), "");
    assert_eq!(
        fs::read_to_string("/proc/sys/kernel/core_pattern").expect("a setting"),
        pattern
    );
}

/// CVE-2019-5736: the program of the builder, reached through a process of the step.
#[test]
fn the_builders_program_is_out_of_reach() {
    if !able() || !support::native("there is no init that could be reached") {
        return;
    }
    let program = fs::read("/proc/self/exe").expect("this program");
    let bench = Bench::new();
    let script = "for p in /proc/1 /proc/self /proc/$PPID; do cat $p/exe 2>/dev/null | head -c 100000 | md5sum; done; (echo evil > /proc/1/exe) 2>&1; readlink /proc/1/exe; true";
    let outcome = bench.run_shell(script);
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    let nothing = "d41d8cd98f00b204e9800998ecf8427e";
    assert!(
        lines[0].starts_with(nothing),
        "init's program can be read: {lines:?}"
    );
    assert!(outcome.stdout.contains("Permission denied"), "{lines:?}");
    assert_eq!(fs::read("/proc/self/exe").expect("this program"), program);
}

/// Init is a copy of the helper: its memory has held other steps' secrets.
#[test]
fn the_memory_of_init_is_closed() {
    if !able() || !support::native("there is no init whose memory could be read") {
        return;
    }
    let bench = Bench::new();
    let script = "for f in environ maps mem auxv stack; do head -c 1 /proc/1/$f 2>/dev/null | wc -c; done | sort -u";
    assert_eq!(bench.run_shell(script).printed(), "0");
    let mut as_user = bench.shell("user", script);
    as_user.user = sandbox::User::Ids {
        uid: 1000,
        gid: 1000,
        groups: vec![],
    };
    assert_eq!(bench.run(&as_user).printed(), "0");
}

/// Processes of the builder can be neither seen, killed nor traced.
#[test]
fn processes_of_the_builder_are_out_of_reach() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let own = std::process::id();
    let script = format!(
        "kill -9 {own} 2>/dev/null; kill -9 -1 2>/dev/null; kill -9 1; ls /proc | grep -c '^[0-9]'; [ -e /proc/{own} ] && cat /proc/{own}/cmdline; true"
    );
    let mut spec = bench.shell("step", &script);
    spec.args = ["/bin/sh", "-c", &format!("({script}); echo alive")]
        .map(str::to_owned)
        .to_vec();
    let outcome = bench.run(&spec);
    // `kill -1` takes the step's own processes, so its end may be a signal; this process is still here.
    assert!(
        matches!(outcome.status(), Status::Code(0) | Status::Signal(9)),
        "{:?}",
        outcome.status()
    );
    assert_eq!(bench.run_shell("echo next").printed(), "next");
}

/// Setuid programs of the image gain no more than the bounding set.
#[test]
fn a_setuid_program_stays_in_the_bounding_set() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let program = bench.lower().join("bin/busybox");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).expect("permissions");
    let script = "grep ^CapBnd /proc/self/status | cut -f2; su -c 'mount -t tmpfs none /tmp' root 2>&1 </dev/null | tail -1; mount | grep -c ' /tmp '";
    let mut spec = bench.shell("step", script);
    spec.user = sandbox::User::Ids {
        uid: 1000,
        gid: 1000,
        groups: vec![],
    };
    let outcome = bench.run(&spec);
    assert!(
        outcome.stdout.starts_with("00000000a80425fb\n") && outcome.stdout.ends_with("0\n"),
        "{}",
        outcome.stdout
    );
}

/// Abstract sockets belong to the network namespace: those of the host must not be in it.
#[test]
fn abstract_sockets_of_the_host_are_not_there() {
    use std::os::linux::net::SocketAddrExt;
    if !able() {
        return;
    }
    let name = format!("lapstrake-test-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("an address");
    let _listener = std::os::unix::net::UnixListener::bind_addr(&address).expect("a socket");
    let bench = Bench::new();
    assert_eq!(
        bench
            .run_shell(&format!("grep -c {name} /proc/net/unix; true"))
            .printed(),
        "0"
    );
    let host = Spec {
        network: Network::Host,
        ..bench.shell("host", &format!("grep -c {name} /proc/net/unix"))
    };
    assert_eq!(
        bench.run(&host).printed(),
        "1",
        "the test looks at the right place"
    );
}

/// The builder's session keyring holds the user's keys.
#[test]
#[cfg(target_arch = "x86_64")]
fn keys_of_the_builder_can_not_be_read() {
    if !able() {
        return;
    }
    const KEYCTL_READ: u32 = 11;
    const SESSION_KEYRING: libc::c_int = -3;
    let (kind, name, secret) = (c"user", c"lapstrake-test-key", b"secret");
    // SAFETY: terminated strings and a buffer of the stated length, alive over the calls.
    let (key, length) = unsafe {
        let secret_at = secret.as_ptr();
        let key = libc::syscall(
            libc::SYS_add_key,
            kind.as_ptr(),
            name.as_ptr(),
            secret_at,
            secret.len(),
            SESSION_KEYRING,
        );
        let nothing = std::ptr::null::<u8>();
        (
            key,
            libc::syscall(libc::SYS_keyctl, KEYCTL_READ, key, nothing, 0),
        )
    };
    if length != 6 {
        return skip("needs kernel keyrings");
    }
    let bench = Bench::new();
    let call = support::program_of_call(250, [KEYCTL_READ, u32::try_from(key).expect("a key")]);
    support::write_program(&bench.lower().join("read-key"), &call);
    let spec = Spec::new(bench.root("step"), vec!["/read-key".to_owned()]);
    assert_eq!(
        bench.run(&spec).status(),
        Status::Code(libc::EPERM),
        "the filter refuses"
    );
    let spec = Spec {
        security: Security::Insecure,
        ..spec
    };
    assert_eq!(
        bench.run(&spec).status(),
        Status::Code(libc::EACCES),
        "nor is the key theirs"
    );
}

/// Files of users in the image that lead elsewhere, or nowhere.
#[test]
fn files_of_users_are_read_inside_the_root_only() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let outside = Outside::new();
    let hostile = outside.directory.path().join(MARKER);
    let place = bench.lower().join("etc/passwd");
    fs::remove_file(&place).expect("removed");
    symlink(&hostile, &place).expect("a link");
    let mut spec = bench.shell("step", "id -u");
    spec.user = sandbox::User::Named("outside-of-the-root".to_owned());
    assert!(bench.run(&spec).exit.is_err());
    fs::remove_file(&place).expect("removed");
    symlink("/proc/self/environ", &place).expect("a link");
    assert!(bench.run(&spec).exit.is_err());
    spec.user = sandbox::User::Named(String::new());
    assert_eq!(bench.run(&spec).printed(), "0");
    outside.unchanged();
}

/// A link in the image under the working directory.
#[test]
fn a_working_directory_through_links_is_made_inside() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let outside = Outside::new();
    symlink(outside.path(), bench.lower().join("link")).expect("a link");
    let mut spec = bench.shell("step", "echo x > made; pwd -P");
    spec.cwd = "/link/dir".to_owned();
    let printed = bench.run(&spec).printed().to_owned();
    assert_eq!(printed, format!("{}/dir", outside.path().display()));
    outside.unchanged();
    let inside = bench
        .changes("step")
        .join(outside.path().strip_prefix("/").expect("absolute"))
        .join("dir/made");
    assert!(inside.exists());
}

/// A user namespace inside the sandbox would give rights over new mounts and networks.
#[test]
fn the_host_loopback_is_not_there() {
    if !able() {
        return;
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    let port = listener.local_addr().expect("an address").port();
    let bench = Bench::new();
    let script = format!("nc -w 2 127.0.0.1 {port} </dev/null; echo $?; ip -o link | wc -l");
    assert_eq!(bench.run_shell(&script).printed(), "1\n1");
    let host = Spec {
        network: Network::Host,
        ..bench.shell(
            "host",
            &format!("nc -w 2 127.0.0.1 {port} </dev/null; echo $?"),
        )
    };
    let reached = std::thread::spawn(move || listener.accept().is_ok());
    assert_eq!(
        bench.run(&host).printed(),
        "0",
        "the test looks at the right place"
    );
    assert!(reached.join().expect("accepted"));
}

/// What a step leaves running must not outlive it, even when it tried to leave the group and the session.
#[test]
fn nothing_of_a_step_lives_on() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let marker = format!("1{}", std::process::id());
    let script = format!(
        "(setsid nohup sleep {marker} >/dev/null 2>&1 &) ; (setsid sh -c 'trap \"\" TERM HUP INT; sleep {marker}' &) ; sleep 0.1"
    );
    assert_eq!(bench.run_shell(&script).status(), Status::Code(0));
    let alive = fs::read_dir("/proc").expect("read").flatten().any(|entry| {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(&format!("sleep\0{marker}"))
    });
    assert!(!alive);
    assert!(!rootless() || std::io::stdin().as_raw_fd() == 0);
}
