//! Mounts of a step and what they leave behind.

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use sandbox::{Content, Mount, NetworkMode, Options, Overlay, Source, Status, Upper};
use support::{Bench, able, bind, mount};

support::everything_holds!();

fn file(target: &str, content: &str, mode: u32, uid: u32) -> Mount {
    let content = Content(content.as_bytes().to_vec());
    Mount {
        target: target.to_owned(),
        source: Source::File {
            content,
            mode,
            uid,
            gid: uid,
        },
        read_only: true,
    }
}

fn write(path: impl AsRef<Path>, text: &str) {
    let path = path.as_ref();
    fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
    fs::write(path, text).expect("a file");
}

/// Lists everything below a directory.
fn listing(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).expect("read") {
            let path = entry.expect("entry").path();
            found.push(
                path.strip_prefix(root)
                    .expect("below")
                    .to_str()
                    .expect("text")
                    .to_owned(),
            );
            if path.is_dir() && !path.is_symlink() {
                pending.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Runs a script with mounts and compares what it prints and what is left in the layer.
#[track_caller]
fn check(mounts: impl FnOnce(&Bench) -> Vec<Mount>, script: &str, printed: &str, left: &[&str]) {
    if !able() {
        return;
    }
    let bench = Bench::new();
    write(bench.path("host/file"), "from the host\n");
    let mut spec = bench.shell("step", script);
    spec.mounts = mounts(&bench);
    assert_eq!(bench.run(&spec).printed(), printed, "{script}");
    assert_eq!(listing(&bench.changes("step")), left, "{script}");
}

#[test]
fn a_directory_is_bound_with_and_without_writing() {
    check(
        |bench| vec![bind(bench.path("host"), "/mnt")],
        "cat /mnt/file; echo x > /mnt/new",
        "from the host",
        &[],
    );
    let protected = |bench: &Bench| {
        vec![Mount {
            read_only: true,
            ..bind(bench.path("host"), "/mnt")
        }]
    };
    check(
        protected,
        "cat /mnt/file; touch /mnt/new 2>/dev/null; echo $?",
        "from the host\n1",
        &[],
    );
}

#[test]
fn a_single_file_is_bound() {
    check(
        |bench| vec![bind(bench.path("host/file"), "/a/b/file")],
        "cat /a/b/file",
        "from the host",
        &[],
    );
}

#[test]
fn a_part_of_a_source_is_bound() {
    let part = |bench: &Bench| {
        write(bench.path("host/deep/er/file"), "deep\n");
        vec![mount(
            "/mnt",
            Source::Bind {
                path: bench.path("host"),
                subpath: "/deep/er".to_owned(),
            },
        )]
    };
    check(part, "cat /mnt/file", "deep", &[]);
}

#[test]
fn mount_points_do_not_stay_in_the_layer() {
    let tmpfs = |target: &str| {
        mount(
            target,
            Source::Tmpfs {
                size: None,
                mode: 0o755,
            },
        )
    };
    let mounts = move |_: &Bench| vec![tmpfs("/new/deep"), tmpfs("/tmp/x"), tmpfs("/kept/mount")];
    check(
        mounts,
        "echo x > /new/deep/x; echo x > /kept/other",
        "",
        &["kept", "kept/other", "tmp"],
    );
    let command_made_it = |_: &Bench| vec![tmpfs("/new")];
    check(
        command_made_it,
        "echo x > /new/x; mkdir /other",
        "",
        &["other"],
    );
}

#[test]
fn files_of_the_network_do_not_stay_either_and_their_directory_keeps_its_time() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let mut spec = bench.shell("step", "cat /etc/hosts /etc/resolv.conf");
    spec.mounts = vec![
        file("/etc/hosts", "1.2.3.4 a\n", 0o644, 0),
        file("/etc/resolv.conf", "nameserver x\n", 0o644, 0),
    ];
    assert_eq!(bench.run(&spec).printed(), "1.2.3.4 a\nnameserver x");
    assert_eq!(listing(&bench.changes("step")), ["etc"]);
    let time = |path: &Path| {
        fs::metadata(path)
            .map(|stat| (stat.mtime(), stat.mtime_nsec()))
            .expect("stat")
    };
    assert_eq!(
        time(&bench.changes("step").join("etc")),
        time(&bench.lower().join("etc"))
    );
}

#[test]
fn a_layer_of_mount_points_keeps_the_changes_empty() {
    if !able() {
        return;
    }
    let stub_layer = tempfile::tempdir().expect("a directory");
    let options = Options {
        network: NetworkMode::Host,
        stub_layer: Some(stub_layer.path().join("stubs")),
        ..Options::default()
    };
    for _ in 0..2 {
        let bench = Bench::with(&options);
        let mut spec = bench.shell(
            "step",
            "cat /etc/hosts; stat -c '%a %u' /etc; ls /etc | tr '\\n' ' '",
        );
        spec.mounts = vec![
            file("/etc/hosts", "a\n", 0o644, 0),
            file("/etc/resolv.conf", "b\n", 0o644, 0),
        ];
        assert_eq!(
            bench.run(&spec).printed(),
            "a\n755 0\ngroup hosts passwd resolv.conf"
        );
        assert_eq!(listing(&bench.changes("step")), [""; 0]);
        assert_eq!(
            bench
                .run(&bench.shell("other", "echo x > /etc/made"))
                .printed(),
            ""
        );
        assert_eq!(listing(&bench.changes("other")), ["etc", "etc/made"]);
    }
}

#[test]
fn a_root_without_anything_gets_its_mount_points_and_loses_them() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let mut spec = bench.shell("step", "true");
    let (upper, work) = (bench.path("empty/upper"), bench.path("empty/work"));
    fs::create_dir_all(&upper)
        .and_then(|()| fs::create_dir_all(&work))
        .expect("directories");
    fs::copy("/bin/busybox", upper.join("true")).expect("a program");
    spec.root = sandbox::Root::Overlay(Overlay {
        lowers: vec![],
        upper: Some(Upper {
            upper: upper.clone(),
            work,
        }),
    });
    spec.args = vec!["/true".to_owned()];
    assert_eq!(bench.run(&spec).status(), Status::Code(0));
    assert_eq!(listing(&upper), ["true"]);
}

#[test]
fn a_secret_is_readable_by_its_owner_only_and_never_in_the_layer() {
    let secret = |_: &Bench| vec![file("/run/secrets/key", "hidden", 0o400, 1000)];
    check(
        secret,
        "stat -c '%a %u' /run/secrets/key; cat /run/secrets/key",
        "400 1000\nhidden",
        &[],
    );
    let spec = format!("{:?}", file("/x", "hidden", 0o400, 0));
    assert!(!spec.contains("hidden") && !spec.contains("104"), "{spec}");
}

#[test]
fn a_large_file_in_memory_is_whole() {
    let large = |_: &Bench| {
        vec![file(
            "/script",
            &"0123456789abcdef".repeat(100_000),
            0o644,
            0,
        )]
    };
    check(large, "wc -c < /script", "1600000", &[]);
}

#[test]
fn a_tmpfs_has_its_size() {
    let sized = |_: &Bench| {
        vec![mount(
            "/t",
            Source::Tmpfs {
                size: Some(1 << 20),
                mode: 0o1777,
            },
        )]
    };
    let script = "df -k /t | tail -1 | awk '{print $2}'; stat -c %a /t; head -c 2000000 /dev/zero > /t/x 2>/dev/null; echo $?";
    check(sized, script, "1024\n1777\n1", &[]);
}

#[test]
fn an_overlay_is_mounted_and_its_writes_are_the_callers_to_throw_away() {
    let layers = |bench: &Bench| {
        write(bench.path("one/dir/file"), "one\n");
        write(bench.path("two/dir/other"), "two\n");
        fs::create_dir_all(bench.path("scratch/upper")).expect("upper");
        fs::create_dir_all(bench.path("scratch/work")).expect("work");
        let upper = Some(Upper {
            upper: bench.path("scratch/upper"),
            work: bench.path("scratch/work"),
        });
        let lowers = vec![bench.path("one"), bench.path("two")];
        vec![
            mount(
                "/rw",
                Source::Overlay {
                    overlay: Overlay {
                        lowers: lowers.clone(),
                        upper,
                    },
                    subpath: "dir".to_owned(),
                },
            ),
            mount(
                "/ro",
                Source::Overlay {
                    overlay: Overlay {
                        lowers,
                        upper: None,
                    },
                    subpath: "/".to_owned(),
                },
            ),
        ]
    };
    let script = "cat /rw/file /rw/other /ro/dir/file; echo x > /rw/new && ls /rw | tr '\\n' ' '; touch /ro/x 2>/dev/null; echo $?";
    check(layers, script, "one\ntwo\none\nfile new other 1", &[]);
}

#[test]
fn a_descriptor_is_a_source() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    write(bench.path("host/deep/file"), "through a descriptor\n");
    let directory = fs::File::open(bench.path("host")).expect("open");
    let mut spec = bench.shell("step", "cat /mnt/file");
    spec.mounts = vec![mount(
        "/mnt",
        Source::Descriptor {
            index: 0,
            subpath: "deep".to_owned(),
        },
    )];
    let outcome = support::run(&*bench.executor, &spec, vec![directory.into()], vec![]);
    assert_eq!(outcome.printed(), "through a descriptor");
    let missing = support::run(&*bench.executor, &spec, vec![], vec![])
        .exit
        .expect_err("no descriptor");
    assert!(
        missing.to_string().contains("the mount at /mnt"),
        "{missing}"
    );
}

#[test]
fn parents_are_mounted_before_what_is_in_them() {
    let nested = |bench: &Bench| {
        vec![
            bind(bench.path("host/file"), "/a/b/file"),
            mount(
                "/a",
                Source::Tmpfs {
                    size: None,
                    mode: 0o755,
                },
            ),
        ]
    };
    check(nested, "cat /a/b/file", "from the host", &[]);
}

#[test]
fn a_mount_may_take_the_place_of_one_every_command_has() {
    let own = |_: &Bench| {
        vec![mount(
            "/dev/shm",
            Source::Tmpfs {
                size: Some(3 << 20),
                mode: 0o1777,
            },
        )]
    };
    check(
        own,
        "df -k /dev/shm | tail -1 | awk '{print $2}'; ls /dev/null",
        "3072\n/dev/null",
        &[],
    );
}

#[test]
fn a_mount_follows_links_of_the_image_inside_it() {
    let linked = |bench: &Bench| {
        fs::create_dir(bench.lower().join("real")).expect("a directory");
        symlink("/real", bench.lower().join("link")).expect("a link");
        vec![bind(bench.path("host"), "/link/mnt")]
    };
    check(linked, "cat /real/mnt/file", "from the host", &["real"]);
}

#[test]
fn a_missing_source_is_an_error_in_words() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let mut spec = bench.shell("step", "true");
    spec.mounts = vec![bind(bench.path("nosuch"), "/mnt")];
    let error = bench.run(&spec).exit.expect_err("no source").to_string();
    assert_eq!(
        error,
        "failed to open the source of the mount at /mnt: No such file or directory (os error 2)"
    );
}

#[test]
fn device_nodes_may_be_made_but_open_nothing() {
    if support::rootless() {
        return check(|_| vec![], "mknod /d b 8 0 2>/dev/null; echo $?", "1", &[]);
    }
    let script = "mknod /d b 8 0 && mknod /dev/d c 1 1 && mknod /t/d c 1 1 && for d in /d /dev/d /t/d; do head -c 1 $d 2>&1; done | grep -c 'Permission denied'";
    check(
        |_| {
            vec![mount(
                "/t",
                Source::Tmpfs {
                    size: None,
                    mode: 0o777,
                },
            )]
        },
        script,
        "3",
        &["d"],
    );
}

#[test]
fn the_builder_sees_no_mount_of_a_step() {
    if !able() {
        return;
    }
    let bench = Bench::new();
    let before = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let mut spec = bench.shell(
        "step",
        "mount -t tmpfs none /mnt && grep -c ' /mnt ' /proc/mounts",
    );
    spec.security = sandbox::Security::Insecure;
    spec.mounts = vec![mount(
        "/mnt",
        Source::Tmpfs {
            size: None,
            mode: 0o755,
        },
    )];
    assert_eq!(bench.run(&spec).printed(), "2");
    assert_eq!(
        fs::read_to_string("/proc/self/mountinfo").expect("mounts"),
        before
    );
}

#[test]
fn a_socket_is_bound() {
    let socket = |bench: &Bench| {
        let path = bench.path("agent");
        std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("permissions");
        vec![bind(path, "/run/agent")]
    };
    check(socket, "[ -S /run/agent ] && echo socket", "socket", &[]);
}
